"""A supervisor and two workers as processes: crashes, signals and shared state."""

from __future__ import annotations

import asyncio
import json
import os
import poplib
import queue
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest

from restante import tls
from restante.app import sockets
from restante.auth.users import Users
from restante.clock import RELEASED
from restante.config import Configuration
from restante.errors import ConfigurationError
from restante.server.address import Address
from restante.shared import SharedTally
from restante.store.maildir import MaildirStore

pytestmark = pytest.mark.slow  # each starts a server with its workers

T = TypeVar("T")
WAIT = 20.0  # seconds; the limit for any single wait


class Client(poplib.POP3):
    """Python's client; closing it sends nothing."""

    def log_in(self, user: str) -> Client:
        self.user(user)
        self.pass_("secret")
        return self

    def is_alive(self) -> bool:
        return self.noop().startswith(b"+OK")

    def has_ended(self) -> bool:
        """Wait for the end of the session."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


FREE_PORTS = ("pop3://127.0.0.1:0", "pop3s://127.0.0.1:0")


@dataclass
class Site:
    """A server as an operator runs it."""

    place: Path
    process: subprocess.Popen[str] = field(init=False)
    told: dict[str, str] = field(init=False)
    lines: queue.Queue[str] = field(default_factory=queue.Queue)

    def write(
        self,
        *,
        workers: int = 2,
        limits: str = "",
        auth: str = "",
        listen: Sequence[str] = FREE_PORTS,
    ) -> None:
        (self.place / "restante.toml").write_text(
            f"""
[server]
hostname = "localhost"
listen = {json.dumps(list(listen))}
workers = {workers}
[intake.lmtp]
listen = "unix:{self.place}/lmtp.sock"
[auth]
allow_plaintext_from = ["127.0.0.0/8"]
{auth}
[tls]
mode = "files"
cert = "{self.place}/cert.pem"
key = "{self.place}/key.pem"
[log]
format = "journal"
[limits]
{limits}
"""
        )

    def use_certificate(self, name: str) -> bytes:
        """Install a new certificate; returns its DER form."""
        made, key = tls.make_self_signed(self.place / name, ["localhost"])
        (self.place / "cert.pem").write_bytes(made.read_bytes())
        (self.place / "key.pem").write_bytes(key.read_bytes())
        return ssl.PEM_cert_to_DER_cert(made.read_text())

    def start(
        self,
        *before: str,
        pass_fds: Sequence[int] = (),
        names_file: bool = True,
        **environment: str,
    ) -> None:
        """Start the server.  ``names_file``: whether to pass the path of the configuration."""
        config = ["--config", f"{self.place}/restante.toml"] if names_file else []
        command = [sys.executable, "-m", "restante", *config]
        self.process = subprocess.Popen(
            [*before, *command, "--json", "serve"],
            env=os.environ | {"STATE_DIRECTORY": str(self.place)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        threading.Thread(target=self._hear, args=[self.process.stderr]).start()
        self.told = json.loads(self.process.stdout.readline() or "{}")

    def _hear(self, stderr: IO[str]) -> None:
        with stderr:
            for line in stderr:
                self.lines.put(line)

    def wait_for(self, event: str) -> str:
        """Wait for the next log line that begins like this."""
        while not (line := self.lines.get(timeout=WAIT)).startswith(event):
            pass
        return line

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(w) for w in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def client(self) -> Client:
        host, _, port = self.told["pop3"].rpartition(":")
        return Client(host, int(port), timeout=WAIT)

    def is_full(self) -> bool:
        """Return whether there is no slot for another connection."""
        host, _, port = self.told["pop3"].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=WAIT) as connected:
            return b"too many connections" in connected.recv(1000)

    def alone(self, worker: int, act: Callable[[], T]) -> T:
        """Call a function while this worker runs and the others are stopped."""
        with self.asleep(*(each for each in self.workers() if each != worker)):
            return act()

    @contextmanager
    def asleep(self, *workers: int) -> Iterator[None]:
        """Stop workers, but not while one writes to the user database and holds its lock."""
        with closing(sqlite3.connect(self.place / "users.sqlite3", timeout=WAIT)) as users:
            users.execute("BEGIN EXCLUSIVE")
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)
        try:
            yield
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)

    def client_of(self, worker: int) -> Client:
        return self.alone(worker, self.client)

    def certificate_seen(self) -> bytes | None:
        host, _, port = self.told["pop3s"].rpartition(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection((host, int(port)), timeout=WAIT) as connected,
            context.wrap_socket(connected) as secure,
        ):
            return secure.getpeercert(binary_form=True)

    def why(self, user: str) -> dict[str, Any]:
        """Return the output of `restante auth why` for a user and this machine."""
        command = [sys.executable, "-m", "restante", "--config", f"{self.place}/restante.toml"]
        told = subprocess.run(
            [*command, "--json", "auth", "why", user, "127.0.0.1"],
            env=os.environ | {"STATE_DIRECTORY": str(self.place)},
            capture_output=True,
            check=True,
        )
        found: dict[str, Any] = json.loads(told.stdout)
        return found

    def shifted(self, seconds: int) -> str:
        """Return a PYTHONPATH that sets the clock ahead."""
        (self.place / "sitecustomize.py").write_text(
            f"import time\nnow = time.time\ntime.time = lambda: now() + {seconds}\n"
        )
        return f"{self.place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(WAIT)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def site(tmp_path: Path, home: Path) -> Iterator[Site]:
    users = Users(tmp_path / "users.sqlite3")
    for name in ("ann", "bob"):
        users.add(name, "secret")
    made = Site(tmp_path)
    made.use_certificate("first")
    made.write()
    yield made
    if made.process.poll() is None:
        made.stop()
    assert made.process.stdout is not None
    made.process.stdout.close()


def test_killed_worker_loses_its_sessions_and_is_restarted(site: Site) -> None:
    site.start()
    victim, other = site.workers()
    with ExitStack() as stack:
        lost, kept = site.client_of(victim), site.client_of(other)
        for client in (lost, kept):
            stack.callback(client.close)
        lost.log_in("ann")
        kept.log_in("bob")
        os.kill(victim, signal.SIGKILL)
        assert str(victim) in site.wait_for("worker ended")
        assert lost.has_ended()
        assert kept.is_alive()
        with site.asleep(other):  # so that the new worker answers, and the lock is free
            again = site.client().log_in("ann")
            stack.callback(again.close)
    assert len(set(site.workers()) - {victim}) == 2
    assert site.stop() == 0


def test_limits_apply_to_all_workers_and_a_dead_worker_frees_its_slots(site: Site) -> None:
    site.write(limits="per_address = 2")
    site.start()
    victim, other = site.workers()
    with ExitStack() as stack:
        for worker, user in ((victim, "ann"), (other, "bob")):
            stack.callback(site.client_of(worker).log_in(user).close)
        for worker in (victim, other):
            assert site.alone(worker, site.is_full)
        os.kill(victim, signal.SIGKILL)
        site.wait_for("worker ended")
        stack.callback(site.client().log_in("ann").close)
        assert site.is_full()


@pytest.mark.parametrize(("soft", "hard", "kept"), [(70, 124, 10), (70, 400, 60)])
def test_idle_connections_leave_descriptors_for_users(
    soft: int, hard: int, kept: int, site: Site
) -> None:
    """The oldest connections are evicted, although there are far fewer than ``limits.sessions``;
    the soft limit alone limits nothing."""
    site.write(workers=1, limits="sessions = 112\nper_address = 100")
    site.start("sh", "-c", f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$@"', "sh")
    with ExitStack() as stack:
        idle = [site.client() for _ in range(60)]
        for each in idle:
            stack.callback(each.close)
        stack.callback(site.client().log_in("ann").close)
        assert all(each.capa() for each in idle[60 - kept :])
        assert kept == 60 or all(each.has_ended() for each in idle[:40])
    assert site.stop() == 0


def test_unauthenticated_connections_are_evicted_in_the_same_worker(site: Site) -> None:
    site.write(limits="per_address = 1")
    site.start()
    one, other = site.workers()
    first = site.client_of(one)
    assert site.alone(other, site.is_full)
    second = site.client_of(one)
    assert first.has_ended()
    second.log_in("ann")
    for worker in (one, other):
        assert site.alone(worker, site.is_full)
    for each in (first, second):
        each.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_applies_a_certificate_to_new_sessions_only(workers: int, site: Site) -> None:
    first = site.use_certificate("first")
    site.write(workers=workers)
    site.start()
    before = site.client().log_in("ann")
    assert site.certificate_seen() == first
    second = site.use_certificate("second")
    site.process.send_signal(signal.SIGHUP)
    for _ in range(workers):
        site.wait_for("reloaded")
    assert site.certificate_seen() == second
    (site.place / "cert.pem").write_text("nonsense")
    site.process.send_signal(signal.SIGHUP)
    assert "cert.pem" in site.wait_for("reload failed")
    assert site.certificate_seen() == second
    assert before.is_alive()
    before.close()


def test_sighup_applies_limits_and_an_invalid_file_changes_nothing(site: Site) -> None:
    site.start()
    for limits, needs_restart in (
        ("per_address = 1", False),
        ('per_address = 1\nmessage = "1MiB"', True),
    ):
        site.write(limits=limits)
        site.process.send_signal(signal.SIGHUP)
        for _ in range(2):
            assert ("restart=needed" in site.wait_for("reloaded")) is needs_restart
    first = site.client().log_in("ann")
    assert site.is_full()
    site.write(limits="per_adress = 5")
    site.process.send_signal(signal.SIGHUP)
    assert "per_address" in site.wait_for("reload failed")
    assert site.is_full()
    (site.place / "restante.toml").unlink()
    os.mkfifo(site.place / "restante.toml", 0o600)
    site.process.send_signal(signal.SIGHUP)
    assert "regular" in site.wait_for("reload failed")
    assert first.is_alive()
    first.close()


@pytest.mark.slow
def test_many_sighups_end_no_session(site: Site) -> None:
    site.start()
    before = site.client().log_in("ann")
    for _ in range(50):
        site.process.send_signal(signal.SIGHUP)
    site.wait_for("reloaded")
    after = site.client().log_in("bob")
    for each in (before, after):
        assert each.is_alive()
        each.close()


@pytest.mark.slow
@pytest.mark.rfc("P-087")
def test_login_delay_applies_across_workers_and_restarts(site: Site) -> None:
    users = Users(site.place / "users.sqlite3")
    users.permit("ann", users.get("ann").account._replace(login_delay=300))
    users.close()
    site.write(limits='login_delay = "0"')
    site.start()
    first, second = site.workers()
    with ExitStack() as stack:
        client = site.client_of(first)
        stack.callback(client.close)
        assert client.capa()["LOGIN-DELAY"] == ["300", "USER"]
        client.log_in("ann")
        assert client.capa()["LOGIN-DELAY"] == ["300"]
        client.quit()
        other = site.client_of(second)
        stack.callback(other.close)
        with pytest.raises(poplib.error_proto, match="LOGIN-DELAY"):
            other.log_in("ann")
        other.log_in("bob")  # bob has none
        assert "LOGIN-DELAY" not in other.capa()
    site.stop()
    assert site.process.stdout is not None
    site.process.stdout.close()
    site.start()
    again = site.client()
    with pytest.raises(poplib.error_proto, match="LOGIN-DELAY"):
        again.log_in("ann")
    again.close()


@pytest.mark.rfc("P-089", "P-191")
def test_old_mail_is_removed_at_the_start_and_then_regularly(site: Site) -> None:
    store = MaildirStore(f"{site.place}/mail/%u")
    (site.place / "mail").mkdir()
    entry = asyncio.run(store.deliver("ann", _once(b"Subject: old\r\n\r\n")))
    bob = asyncio.run(store.deliver("bob", _once(b"Subject: old\r\n\r\n")))
    asyncio.run(store.deliver("gone", _once(b"Subject: nobody's\r\n\r\n")))
    for user in ("ann", "bob"):  # the rule is an old one
        asyncio.run(store.note_rules(user, 30, RELEASED))
    users = Users(site.place / "users.sqlite3")
    users.remove("bob")  # so that only the file has the user
    users.close()
    (site.place / "passwd").write_text("bob:{PLAIN}secret\n")
    (site.place / "conf.d").mkdir()
    (site.place / "conf.d" / "more.toml").write_text(
        '[auth]\nchain = ["users", "passwd-file"]\n'
        f'[auth.passwd_file]\npath = "{site.place}/passwd"\n'
    )
    site.write(limits='expire = "30d"')
    site.start(PYTHONPATH=site.shifted(31 * 86_400))  # by its clock, a month has passed
    for user in ("ann", "bob"):
        assert f"user={user} messages=1" in site.wait_for("expired")
    client = site.client()
    assert client.capa()["EXPIRE"] == ["30"]
    assert client.log_in("ann").stat() == (0, 0)
    client.close()
    (held,) = asyncio.run(store.held("ann"))
    assert held.unique_id == entry.unique_id
    assert [each.unique_id for each in asyncio.run(store.held("bob"))] == [bob.unique_id]
    assert asyncio.run(store.held("gone")) == []


@pytest.mark.slow
def test_a_year_that_was_mistyped_destroys_nothing_until_the_operator_says_so(site: Site) -> None:
    store = MaildirStore(f"{site.place}/mail/%u")
    (site.place / "mail").mkdir()
    for n in range(101):
        asyncio.run(store.deliver("ann", _once(b"Subject: %d\r\n\r\n" % n)))
    site.start()
    client = site.client().log_in("ann")
    for number in range(1, 102):
        client.dele(number)
    client.quit()
    assert site.stop() == 0
    jumped = site.shifted(300 * 86_400)
    site.start(PYTHONPATH=jumped)
    assert "seconds=25920000" in site.wait_for("clock jumped")
    assert "messages=101" in site.wait_for("purge withheld")
    assert len(asyncio.run(store.held("ann"))) == 101
    command = [sys.executable, "-m", "restante", "--config", f"{site.place}/restante.toml"]
    environment = os.environ | {"STATE_DIRECTORY": str(site.place), "PYTHONPATH": jumped}
    done = subprocess.run(
        [*command, "maildrop", "purge", "--yes"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "Destroyed 101 messages.\n")
    assert len(asyncio.run(store.held("ann"))) == 0
    assert site.stop() == 0
    site.start()
    assert "seconds=-25" in site.wait_for("clock jumped"), "and back"


def test_reload_announces_deletions_by_a_shorter_hold(site: Site) -> None:
    """The purge follows a day later."""
    store = MaildirStore(f"{site.place}/mail/%u")
    (site.place / "mail").mkdir()
    for n in range(3):
        asyncio.run(store.deliver("ann", _once(b"Subject: %d\r\n\r\n" % n)))
    site.write()
    site.start()
    client = site.client().log_in("ann")
    for number in (1, 2, 3):
        client.dele(number)
    client.quit()
    (site.place / "conf.d").mkdir()
    (site.place / "conf.d" / "hold.toml").write_text('[store]\nhold = "0"\n')
    site.process.send_signal(signal.SIGHUP)
    lines = [site.wait_for("reloaded"), site.wait_for("reloaded")]
    (line,) = [each for each in lines if "held=3" in each]
    assert "restart" not in line
    at = re.search(r" at=(\S+)", line)
    assert at is not None
    wanted = datetime.now(UTC) + timedelta(days=1)
    assert abs(datetime.fromisoformat(at[1]) - wanted) < timedelta(minutes=5)
    assert len(asyncio.run(store.held("ann"))) == 3
    client = site.client().log_in("ann")
    client.quit()
    asyncio.run(store.deliver("ann", _once(b"Subject: 4\r\n\r\n")))
    client = site.client().log_in("ann")
    client.dele(1)
    client.quit()
    assert len(asyncio.run(store.held("ann"))) == 3, "the new hold is in force without a restart"


@pytest.mark.slow
def test_guesses_are_known_to_all_workers_and_after_a_restart(site: Site) -> None:
    """The worker that counted them is killed; `restante auth why` shows what is left."""
    site.start(RESTANTE__AUTH__FAILURE_DELAY="0")
    first, second = site.workers()
    for number, worker in enumerate((first, second, second)):
        client = site.client_of(worker)
        client.user("ann")
        with pytest.raises(poplib.error_proto, match="AUTH"):
            client.pass_(f"guess {number}")
        client.close()
    site.client_of(second).log_in("bob").close()
    os.kill(first, signal.SIGKILL)
    site.wait_for("worker ended")
    for _ in range(2):
        site.stop()
        for user, is_known in (("ann", False), ("bob", True)):
            told = site.why(user)
            assert (told["is_known"], round(told["guesses"])) == (is_known, 3)
        assert site.process.stdout is not None
        site.process.stdout.close()
        site.start()


async def _once(octets: bytes) -> AsyncIterator[bytes]:
    yield octets


@pytest.mark.parametrize("workers", [1, 2])
def test_stop_ends_idle_sessions_and_leaves_nothing(workers: int, site: Site) -> None:
    site.write(workers=workers)
    site.start()
    idle = site.client().log_in("ann")
    children = site.workers()
    assert (site.place / "lmtp.sock").exists()
    assert site.stop() == 0
    assert idle.has_ended()
    idle.close()
    assert not (site.place / "lmtp.sock").exists()
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_workers_end_with_their_supervisor(site: Site) -> None:
    site.start()
    idle = site.client().log_in("ann")
    site.process.kill()
    site.process.wait(WAIT)
    assert idle.has_ended()
    idle.close()


_BORN_SLOWLY = """
import os, signal, sys, threading, time
from restante.app.terminal import Terminal
from restante.app.supervisor import Supervisor

def linger():
    signal.set_wakeup_fd(-1)
    print("born", flush=True)
    time.sleep(0.5)

os.register_at_fork(after_in_child=linger)
never = lambda *_: None
options = {"on_ready": never, "reload": never, "on_exit": never, "terminal": Terminal()}
sys.exit(Supervisor(1, lambda _: time.sleep(60), **options).run())
"""


def test_a_worker_that_is_being_born_hears_of_the_stop() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _BORN_SLOWLY], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "born\n"
        process.terminate()
        assert process.wait(WAIT) == 0


_STARTS_SLOWLY = """
import signal, sys, time
from restante.app.terminal import Terminal
from restante.app.supervisor import Supervisor

def work(_):
    print(signal.getsignal(signal.SIGHUP).name, signal.getsignal(signal.SIGTERM).name, flush=True)
    time.sleep(60)

never = lambda *_: None
options = {"on_ready": never, "reload": never, "on_exit": never, "terminal": Terminal()}
sys.exit(Supervisor(1, work, **options).run())
"""


def test_a_reload_does_not_end_a_worker_that_is_starting() -> None:
    """Until the worker has its own handler, only a stop may end it."""
    with subprocess.Popen(
        [sys.executable, "-c", _STARTS_SLOWLY], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        handlers = process.stdout.readline()
        process.terminate()
        assert process.wait(WAIT) == 0
        assert handlers == "SIG_IGN SIG_DFL\n"


def test_failed_start_ends_the_server(site: Site) -> None:
    (site.place / "users.sqlite3").write_text("no database at all, and longer than its header" * 9)
    (site.place / "lmtp.sock").mkdir()
    site.start()
    assert site.process.wait(WAIT) != 0


@pytest.mark.parametrize("workers", [1, 2])
def test_systemd_is_notified_of_each_change(workers: int, site: Site) -> None:
    site.write(workers=workers)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hearing:
        hearing.bind(str(site.place / "notify"))
        hearing.settimeout(WAIT)

        def hear(state: bytes) -> None:
            while state not in hearing.recv(4096).split(b"\n"):
                pass

        site.start(NOTIFY_SOCKET=str(site.place / "notify"))
        hear(b"READY=1")
        hear(b"WATCHDOG=1")
        site.process.send_signal(signal.SIGHUP)
        hear(b"RELOADING=1")
        hear(b"READY=1")
        site.process.terminate()
        hear(b"STOPPING=1")
        assert site.process.wait(WAIT) == 0


@pytest.mark.parametrize("change", ["disable", "remove"])
def test_disabled_user_is_disconnected_in_every_worker_and_loses_no_mail(
    change: str, site: Site
) -> None:
    (site.place / "mail").mkdir()
    store = MaildirStore(f"{site.place}/mail/%u")
    asyncio.run(store.deliver("ann", _once(b"Subject: kept\r\n\r\n")))
    site.start()
    users = Users(site.place / "users.sqlite3")
    others = [site.client().log_in("bob")]
    reader = site.client().log_in("ann")
    reader.dele(1)
    if change == "disable":
        users.set_enabled("ann", False)
    else:
        users.remove("ann")
    assert reader.has_ended()
    assert "quit=disabled" in site.wait_for("session end: user=ann")
    assert all(each.is_alive() for each in others)
    assert len(list((site.place / "mail" / "ann" / "new").iterdir())) == 1
    for each in (*others, reader):
        each.close()


def start_with_socket(site: Site, listening: socket.socket, name: str) -> None:
    """Start the server with the socket as descriptor 3, as systemd does."""
    script = (
        f"import os, sys; os.dup2({listening.fileno()}, 3); "
        "os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])"
    )
    before = [sys.executable, "-c", script]
    site.start(*before, pass_fds=[listening.fileno()], LISTEN_FDS="1", LISTEN_FDNAMES=name)


@pytest.mark.parametrize("name", ["pop3", "gopher"])
def test_sockets_of_systemd_are_served_by_their_names(name: str, site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        site.write(listen=[f"pop3://127.0.0.1:{port}", "pop3s://127.0.0.1:0"])
        start_with_socket(site, listening, name)
        if name == "gopher":
            assert site.process.wait(WAIT) == os.EX_CONFIG
            return
        assert site.told["pop3"].endswith(f":{port}")
        assert "pop3s" in site.told, "an address that no socket covers is opened"
        assert "lmtp_unix" in site.told
        client = site.client().log_in("ann")
        assert client.is_alive()
        client.close()


@pytest.mark.parametrize(
    ("configured", "host", "accepted"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("[::]", "127.0.0.1", True),
        ("[::]", "::", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("localhost", "127.0.0.1", True),
        ("127.0.0.1", "::", False),
        ("127.0.0.1", "0.0.0.0", False),
        ("0.0.0.0", "::", False),
        ("192.0.2.1", "127.0.0.1", False),
    ],
)
def test_socket_that_is_open_to_more_than_the_configuration_is_refused(
    configured: str, host: str, accepted: bool
) -> None:
    """A server that is meant for loopback must not listen on every address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        place = sockets.BoundSocket("pop3", listening)
        addresses = [Address.parse(f"pop3://{configured}:1110")]
        if accepted:
            sockets._check_inherited(place, addresses)
        else:
            with pytest.raises(ConfigurationError, match="open to more"):
                sockets._check_inherited(place, addresses)


def test_socket_is_compared_with_the_addresses_of_its_own_port() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listening:
        port = listening.getsockname()[1]
        addresses = [f"pop3://127.0.0.1:{port}", "pop3://0.0.0.0:1110"]
        with pytest.raises(ConfigurationError, match="open to more"):
            sockets._check_inherited(
                sockets.BoundSocket("pop3", listening), list(map(Address.parse, addresses))
            )


@pytest.mark.parametrize(
    ("host", "configured", "bound"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.2", True),
        ("127.0.0.1", "[::1]", True),
        ("127.0.0.1", "localhost", False),
        ("127.0.0.1", "[::]", False),
        ("127.0.0.1", "0.0.0.0", False),
        ("0.0.0.0", "127.0.0.2", False),
        ("0.0.0.0", "[::1]", True),
        ("::", "127.0.0.2", False),
        ("::1", "0.0.0.0", True),
    ],
)
def test_address_that_no_socket_of_systemd_serves_is_bound(
    host: str, configured: str, bound: bool
) -> None:
    """Also if a socket for another address has the same port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        address = Address.parse(f"pop3://{configured}:{listening.getsockname()[1]}")
        assert sockets._serves(listening, address) is not bound


@pytest.mark.parametrize(("count", "name"), [("x", "pop3"), ("-1", "pop3"), ("2", "pop3:pop3")])
def test_wrong_listen_fds_is_a_clear_error(count: str, name: str, site: Site) -> None:
    script = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.closerange(3, 9); "
    before = [sys.executable, "-c", script + "os.execv(sys.argv[1], sys.argv[1:])"]
    site.write()
    site.start(*before, LISTEN_FDS=count, LISTEN_FDNAMES=name)
    assert site.process.wait(WAIT) == os.EX_CONFIG
    assert "socket unit: " in site.wait_for("restante")


def test_default_addresses_give_way_to_sockets_of_systemd() -> None:
    default = Configuration()
    assert sockets.configured_listeners(default, {"pop3s"}) == []
    assert len(sockets.configured_listeners(default, ())) == 2
    assert len(sockets.configured_listeners(default, {"lmtp"})) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_without_the_file_is_refused(workers: int, site: Site) -> None:
    """In private mode, the server would hold deleted mail for a shorter time."""
    site.write(workers=workers)
    folder = site.place / "xdg" / "restante"
    folder.mkdir(parents=True)
    source = (site.place / "restante.toml").rename(folder / "restante.toml")
    site.start(names_file=False, XDG_CONFIG_HOME=str(folder.parent))
    source.rename(folder / "elsewhere.toml")
    for _ in range(2):
        site.process.send_signal(signal.SIGHUP)
        assert "restante.toml:\\x20No\\x20such\\x20file" in site.wait_for("reload failed")
    (folder / "elsewhere.toml").rename(source)
    site.process.send_signal(signal.SIGHUP)
    site.wait_for("reloaded")


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_survives_any_certificate_file(workers: int, site: Site) -> None:
    """PKCS#12 exports have octets in any encoding before the block."""
    site.write(workers=workers)
    site.start()
    whole = (site.place / "cert.pem").read_bytes()
    for octets, event in (
        (b"Bag Attributes\n    friendlyName: M\xfcller\n" + whole, "reloaded"),
        (b"\xff\xfe\0garbage", "reload failed"),
        (b"", "reload failed"),
        (whole, "reloaded"),
    ):
        (site.place / "cert.pem").write_bytes(octets)
        site.process.send_signal(signal.SIGHUP)
        site.wait_for(event)
        client = site.client().log_in("ann")
        assert client.is_alive()
        client.close()


@pytest.mark.parametrize("end", [os.getpid, lambda: os.kill(os.getpid(), signal.SIGKILL)])
def test_shared_count_survives_a_crash_while_counting(end: Callable[[], object]) -> None:
    tally = SharedTally(2)
    pid = os.fork()
    if not pid:
        tally.serve_as(1)
        with tally.lock():
            tally.add("192.0.2.1", 3)
            end()
        os._exit(0)
    os.waitpid(pid, 0)
    with tally.lock():  # the lock was released with its holder
        tally.add("192.0.2.1", 1)
        tally.add("192.0.2.2", 1)
    assert (tally.count("192.0.2.1"), tally.count("192.0.2.2"), tally.total()) == (4, 1, 5)
    tally.forget(1)
    assert (tally.count("192.0.2.1"), tally.total()) == (1, 2)
    tally.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/etc/pam.d/other").exists(), reason="a system without PAM")
def test_broken_pam_module_ends_no_worker(site: Site, tmp_path: Path) -> None:
    """A check that hangs and one that crashes, each in a separate process; after a reload and a
    stop no process of PAM is left."""
    shutil.copy(Path(__file__).parent.parent / "auth" / "fake_pam.py", tmp_path / "pamela.py")
    site.write(
        auth='chain = ["pam"]\npam = { service = "other", first_uid = 1 }\n'
        "failure_delay = 0\ndeadline = 1"
    )
    site.start(PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    workers = site.workers()
    with ExitStack() as stack:
        for worker in workers:
            stuck = site.client_of(worker)
            stack.callback(stuck.close)
            stuck.sock.sendall(b"USER daemon\r\nPASS hang\r\n")
        for password in "crash", "exit", "tan staaf":
            for worker in workers:
                other = site.client_of(worker)
                stack.callback(other.close)
                other.user("daemon")
                other.sock.sendall(f"PASS {password}\r\n".encode())
                answer = other.sock.recv(1000)
                expected = b"+OK" if password == "tan staaf" else b"-ERR [SYS/TEMP]"
                assert answer.startswith((expected, b"-ERR [IN-USE]")), answer
    assert site.workers() == workers
    site.process.send_signal(signal.SIGHUP)
    site.wait_for("reloaded")
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert {each[5] for each in asked} == {"hang", "crash", "exit", "tan staaf"}
    assert site.stop() == 0
    for process in {process for each in asked for process in each[1:3]}:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
