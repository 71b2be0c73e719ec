"""The control sockets of a server with workers, as an operator and other programs use them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from restante.app.asking import ask
from restante.server.http import ClientExchange
from restante.store.maildir import MaildirStore

from ..cli.conftest import Outcome, program, started
from ..server.test_control import OTHER, needs_root
from ..support import once
from .test_supervisor import WAIT, Site
from .test_supervisor import site as site

pytestmark = pytest.mark.slow  # each starts a server with its workers


@dataclass
class Operator:
    """Runs commands for a server."""

    site: Site

    def run(self, *arguments: str) -> Outcome:
        done = subprocess.run(
            [*self._command(), *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command that does not end on its own."""
        with subprocess.Popen(
            [*self._command(), *arguments],
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def _command(self) -> list[str]:
        config = f"{self.site.place}/restante.toml"
        return [sys.executable, "-W", "error", "-m", "restante", "--config", config]

    def _environment(self) -> dict[str, str]:
        return os.environ | {"STATE_DIRECTORY": str(self.site.place)}

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        assert done.code == 0, done.err
        status: dict[str, Any] = done.json
        return status

    def until(self, **expected: object) -> dict[str, Any]:
        """Wait until the status has these values."""
        for _ in range(100):
            with suppress(AssertionError):  # a worker that is starting
                status = self.status()
                if expected.items() <= status.items():
                    return status
            time.sleep(0.1)
        raise AssertionError(f"{status} never had {expected}")


@pytest.fixture
def operator(site: Site) -> Operator:
    site.write(workers=3)
    site.start()
    return Operator(site)


def sockets(site: Site) -> list[str]:
    return sorted(path.name for path in (site.place / "control").iterdir())


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def http(site: Site, worker: int, method: str, target: str) -> tuple[int, bytes]:
    """Send a request to one worker."""
    exchange = ClientExchange(method, target)
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(WAIT)
        connected.connect(f"{site.place}/control/{worker}.sock")
        connected.sendall(exchange.request)
        while not exchange.is_over:
            exchange.receive(connected.recv(65_536))
    return exchange.status, b"".join(exchange.take())


# -- Status


def test_status_shows_all_workers_and_open_connections(site: Site, operator: Operator) -> None:
    with ExitStack() as stack:
        stack.callback(site.client().log_in("ann").close)
        stack.callback(site.client().close)
        status = operator.status()
        shown = operator.run("status")
    assert status["schema"] == "restante/status/1"
    assert (status["ready"], status["faults"], status["attention"]) == (True, [], [])
    assert status["pid"] == site.process.pid
    assert {each["pid"] for each in status["workers"]} == set(site.workers())
    assert (status["connections"], status["logged_in"]) == ({"pop3": 2}, 1)
    assert status["configuration"]["file"] == str(site.place / "restante.toml")
    end = datetime.fromisoformat(status["certificate_end"].replace("Z", "+00:00"))
    assert end > datetime.now(UTC) + timedelta(days=3000)
    assert "2 pop3; 1 user session" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    assert operator.run("status", "--exit-code").code == 0
    assert site.stop() == 0
    assert sockets(site) == []
    for arguments in (["status"], ["status", "--exit-code"]):
        done = operator.run(*arguments)
        assert (done.code, done.out) == (os.EX_UNAVAILABLE, "")
        assert "no server is running" in done.err


def test_killed_and_stopped_workers_are_reported(site: Site, operator: Operator) -> None:
    """The supervisor is stopped too, so that it does not start the killed worker again."""
    pids = {each["worker"]: each["pid"] for each in operator.status()["workers"]}
    with stopped(site.process.pid, pids[1]):
        os.kill(pids[0], signal.SIGKILL)
        began = time.monotonic()
        done = operator.run("status", "--json", "--exit-code")
        assert time.monotonic() - began < WAIT, "a sibling is asked for two seconds"
        status = done.json
        assert done.code == os.EX_TEMPFAIL
        assert not status["ready"]
        assert [each.get("pid") for each in status["workers"]] == [None, None, pids[2]]
        assert len(status["faults"]) == 2
        shown = operator.run("status")
        assert (shown.code, shown.out.count("no answer")) == (0, 2)
        with operator.started("status", "--exit-code") as unread:
            assert unread.stdout is not None
            unread.stdout.close()  # as `| head` does
            assert unread.wait(WAIT) == os.EX_TEMPFAIL
        assert max(map(len, shown.out.splitlines())) <= 80
    new = operator.until(ready=True)["workers"]
    assert [new[1]["pid"], new[2]["pid"]] == [pids[1], pids[2]]
    assert new[0]["pid"] not in (pids[0], None)
    assert sockets(site) == ["0.sock", "1.sock", "2.sock"]


def test_a_server_that_does_not_answer_is_not_ready(site: Site, operator: Operator) -> None:
    with stopped(*site.workers()):
        done = operator.run("status", "--exit-code")
    assert (done.code, done.out) == (os.EX_TEMPFAIL, "")
    assert "does not answer" in done.err


def test_sockets_of_a_killed_server_are_replaced(site: Site, operator: Operator) -> None:
    workers = site.workers()
    for pid in (site.process.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    site.process.wait(WAIT)
    assert site.process.stdout is not None
    site.process.stdout.close()
    assert len(sockets(site)) == 3
    assert operator.run("status").code == os.EX_UNAVAILABLE
    site.start()
    assert operator.status()["ready"]


def test_sockets_of_other_servers_and_files_are_left_in_place(site: Site) -> None:
    """A server whose control socket is taken serves mail without it."""
    site.write(workers=2)
    folder = site.place / "control"
    folder.mkdir(0o700)
    (folder / "1.sock").write_text("a file")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "0.sock"))
        other.listen()
        site.start()
        for _ in range(2):
            assert ".sock" in site.wait_for("control unavailable")
        client = site.client().log_in("ann")
        assert client.is_alive()
        client.close()
        assert site.stop() == 0
    assert (folder / "1.sock").read_text() == "a file"
    assert sockets(site) == ["0.sock", "1.sock"]


@pytest.mark.parametrize("kind", ["link", pytest.param("directory", marks=needs_root)])
def test_the_directory_of_another_user_is_not_used(kind: str, site: Site) -> None:
    site.write(workers=1)
    elsewhere = site.place / ("elsewhere" if kind == "link" else "control")
    elsewhere.mkdir()
    if kind == "link":
        (site.place / "control").symlink_to("elsewhere")
    else:
        os.chown(elsewhere, OTHER, OTHER)
    site.start()
    site.wait_for("control unavailable")
    assert list(elsewhere.iterdir()) == []


def test_a_file_that_replaced_the_socket_is_not_removed(site: Site) -> None:
    site.write(workers=1)
    site.start()
    path = site.place / "control" / "0.sock"
    path.unlink()
    path.write_text("a file")
    assert site.stop() == 0
    assert path.read_text() == "a file"


def test_status_needs_no_valid_configuration(site: Site, operator: Operator) -> None:
    source = site.place / "restante.toml"
    source.write_text("nonsense")
    os.utime(source, (time.time() + 60,) * 2)  # changed after the start
    status = operator.status()
    assert status["ready"]
    assert "not reloaded" in "".join(status["attention"])


# -- One process


def test_a_server_without_workers_has_a_control_socket(site: Site) -> None:
    site.write(workers=1)
    site.start()
    operator = Operator(site)
    status = operator.status()
    assert [each["pid"] for each in status["workers"]] == [site.process.pid]
    assert status["pid"] == site.process.pid
    assert json.loads(http(site, 0, "GET", "/status")[1])["ready"]
    assert http(site, 0, "GET", "/nothing")[0] == 404
    assert http(site, 0, "POST", "/status")[0] == 405


# -- Sessions

MESSAGE = b"Subject: hello\r\n\r\nhi\r\n"


def deliver(operator: Operator, user: str, count: int = 1) -> None:
    store = MaildirStore(f"{operator.site.place}/mail/%u")

    async def main() -> None:
        for _ in range(count):
            await store.deliver(user, once(MESSAGE))

    asyncio.run(main())


def test_sessions_of_all_workers_are_listed(site: Site) -> None:
    """0, 1 and many sessions, with the IDs of the log."""
    site.write(workers=3, limits="per_address = 200")
    site.start()
    operator = Operator(site)
    assert operator.run("sessions", "--json").json["sessions"] == []
    assert len(operator.run("sessions").out.splitlines()) == 1
    deliver(operator, "ann", 2)
    with ExitStack() as stack:
        ann = site.client().log_in("ann")
        stack.callback(ann.close)
        logged = re.search(r"session=(\S+)", site.wait_for("login ok: ip=127.0.0.1 user=ann"))
        assert logged is not None
        [row] = operator.run("sessions", "--json").json["sessions"]
        assert (row["id"], row["user"], row["ip"]) == (logged[1], "ann", "127.0.0.1")
        login = (row["proto"], row["tls"], row["mech"], row["app"])
        assert login == ("pop3", "no", "USER", "password")
        assert (row["state"], row["messages"]) == ("transaction", 2)
        shown = operator.run("sessions", "list", "--user", "ann").out.splitlines()
        assert shown[1].split()[:5] == [logged[1], "ann", "127.0.0.1", "pop3", "transaction"]
        for pid in site.workers():
            for _ in range(40):
                stack.callback(site.client_of(pid).close)
        rows = operator.run("sessions", "--json").json["sessions"]
        assert len({each["id"] for each in rows}) == len(rows) == 121
        assert {each["worker"] for each in rows} == {0, 1, 2}
        assert [each["id"] for each in rows if each["user"]] == [row["id"]]
        for user, count in (("ann", 1), ("bob", 0)):
            assert len(operator.run("sessions", "--user", user, "--json").json["sessions"]) == count
        with stopped(site.workers()[2]):
            done = operator.run("sessions", "--json")
            assert done.code == os.EX_TEMPFAIL
            assert len(done.json["missing"]) == 1
            assert 0 < len(done.json["sessions"]) < 121


def test_an_ended_session_removes_no_message(site: Site, operator: Operator) -> None:
    deliver(operator, "ann", 3)
    clients = {}
    with ExitStack() as stack:
        for worker, user in zip(site.workers(), ("ann", "bob"), strict=False):
            clients[user] = site.client_of(worker).log_in(user)
            stack.callback(clients[user].close)
        for number in (1, 2):
            clients["ann"].dele(number)
        rows = operator.run("sessions", "--user", "ann", "--json").json["sessions"]
        done = operator.run("sessions", "end", rows[0]["id"])
        assert (done.code, done.out) == (0, "Ended 1 session.\n")
        assert clients["ann"].has_ended()
        line = site.wait_for("control:")
        assert f"uid={os.geteuid()} verb=end session={rows[0]['id']} user=ann" in line
        end = site.wait_for("session end:")
        assert "quit=ended" in end
        assert rows[0]["id"] in end
        assert clients["bob"].is_alive()
        again = site.client().log_in("ann")
        stack.callback(again.close)
        assert again.stat()[0] == 3, "marked messages are not removed without QUIT (RFC 1939 §3)"
        assert operator.run("sessions", "end", "--user", "bob").out == "Ended 1 session.\n"
        assert clients["bob"].has_ended()
        assert again.is_alive()
        assert operator.run("sessions", "end", "--user", "bob").out == "Ended 0 sessions.\n"
        assert operator.run("sessions", "end", rows[0]["id"]).code == os.EX_USAGE
        assert operator.run("sessions", "end", "../x").code == os.EX_USAGE
        for arguments in ([], ["--user", ""], ["1f3a5c7e90", "--user", "ann"]):
            assert operator.run("sessions", "end", *arguments).code == os.EX_USAGE
        assert http(site, 0, "DELETE", "/sessions")[0] == 400
        assert http(site, 0, "DELETE", "/sessions?user=")[0] == 400
        assert http(site, 0, "DELETE", "/sessions/")[0] == 400
        assert again.is_alive()


def test_sessions_of_a_stopped_worker_are_not_said_to_have_ended(
    site: Site, operator: Operator
) -> None:
    worker = site.workers()[0]
    client = site.client_of(worker).log_in("ann")
    with stopped(worker):
        done = operator.run("sessions", "end", "--user", "ann", "--json")
    assert done.code == os.EX_TEMPFAIL
    assert (done.json["ended"], len(done.json["missing"])) == ([], 1)
    client.close()


# -- Reload


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_waits_for_all_workers_or_prints_the_reason(workers: int, site: Site) -> None:
    first = site.use_certificate("first")
    site.write(workers=workers)
    site.start()
    operator = Operator(site)
    assert site.certificate_seen() == first
    for name in ("second", "third"):
        certificate = site.use_certificate(name)
        done = operator.run("reload")
        noun = "worker" if workers == 1 else "workers"
        assert (done.code, done.out) == (0, f"Configuration reloaded by {workers} {noun}.\n")
        assert {site.certificate_seen() for _ in range(10)} == {certificate}
        assert f"control: uid={os.geteuid()} verb=reload" in site.wait_for("control:")
    client = site.client().log_in("ann")
    site.write(workers=workers, limits="per_adress = 5")
    done = operator.run("reload")
    assert (done.code, done.out) == (os.EX_CONFIG, "")
    assert "did you mean per_address" in done.err
    assert "restante.toml:" in done.err
    status = operator.status()
    assert status["ready"]
    assert "per_adress" in status["reload_refused"]["reason"]
    assert len(status["attention"]) == 1
    assert "per_adress" in operator.run("status").out
    site.write(workers=workers, limits='message = "1MiB"')
    done = operator.run("reload", "--json")
    assert (done.json["workers"], done.json["restart_needed"]) == (workers, True)
    assert operator.status()["attention"] == ["changed settings require a restart"]
    assert client.is_alive()
    client.close()


@pytest.mark.parametrize("worker", [0, 1])  # commands ask worker 0 first
def test_reload_names_a_worker_that_does_not_reload(
    worker: int, site: Site, operator: Operator
) -> None:
    with stopped(operator.status()["workers"][worker]["pid"]):
        began = time.monotonic()
        done = operator.run("reload")
        assert time.monotonic() - began < 30, "a worker that hangs is not asked to reload"
    assert (done.code, done.out) == (os.EX_TEMPFAIL, "Configuration reloaded by 2 workers.\n")
    assert f"worker {worker} has not reloaded" in done.err


def test_reloads_at_the_same_time_all_get_a_result(site: Site, operator: Operator) -> None:
    """Also while a worker is killed, and with plain SIGHUP in between."""
    with ExitStack() as stack:
        for number in range(3):
            running = [stack.enter_context(operator.started("reload")) for _ in range(3)]
            site.process.send_signal(signal.SIGHUP)
            if number == 1:
                os.kill(site.workers()[0], signal.SIGKILL)
            assert http(site, 2, "GET", "/status")[0] == 200
            codes = [each.wait(WAIT) for each in running]
            assert codes in ([0, 0, 0],) or number == 1
    operator.until(ready=True)
    assert operator.run("reload").out == "Configuration reloaded by 3 workers.\n"


def test_a_worker_that_starts_later_uses_the_reloaded_configuration(site: Site) -> None:
    site.use_certificate("first")
    site.start()
    operator = Operator(site)
    second = site.use_certificate("second")
    assert operator.run("reload").code == 0
    victim = site.workers()[0]
    os.kill(victim, signal.SIGKILL)
    site.wait_for("worker ended")
    operator.until(ready=True)
    assert {site.certificate_seen() for _ in range(20)} == {second}
    assert {each["reload"] for each in operator.status()["workers"]} == {1}


# -- The log


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def until_lines(process: subprocess.Popen[str], expected: set[str]) -> None:
    """Read until each of these texts was in a line."""
    while expected:
        line = line_of(process)
        assert line, expected
        expected = {each for each in expected if each not in line}


def following(site: Site, count: int) -> None:
    """Wait until the workers have as many control connections, of followers and siblings."""
    for _ in range(200):
        if sum(http_followers(site, worker) for worker in range(3)) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("the log is not followed")


def http_followers(site: Site, worker: int) -> int:
    status, body = http(site, worker, "GET", "/status?here=1")
    assert status == 200
    followers: int = json.loads(body)["followers"]
    return followers


def test_log_shows_the_events_of_all_workers(site: Site, operator: Operator) -> None:
    with (
        operator.started("log", "-f") as all_events,
        operator.started("--json", "log", "-f", "--user", "bob", "--level", "info") as of_bob,
    ):
        following(site, 6)
        seen = []
        for pid in site.workers():
            for user in ("ann", "bob"):
                site.client_of(pid).log_in(user).quit()
                seen += [line_of(all_events), line_of(all_events)]
        assert [line.split()[1:3] for line in seen] == 6 * [["login", "ok:"], ["session", "end:"]]
        assert len(set(seen)) == 12
        for name in 3 * ("login.ok", "session.end"):
            row = json.loads(line_of(of_bob))
            assert (row["event"], row["user"]) == (name, "bob")
        victim = operator.status()["workers"][1]["pid"]
        os.kill(victim, signal.SIGKILL)
        expected = {"does not answer", f"worker ended: worker=1 pid={victim}", "worker started"}
        until_lines(all_events, expected)
        operator.until(ready=True)
        following(site, 6)
        site.client().log_in("ann").quit()
        assert "user=ann" in line_of(all_events)
        victim = operator.status()["workers"][0]["pid"]  # the worker that sends the events
        os.kill(victim, signal.SIGKILL)
        until_lines(all_events, {f"worker ended: worker=0 pid={victim}", "worker started"})
        operator.until(ready=True)
        following(site, 6)
        site.client().log_in("ann").quit()
        until_lines(all_events, {"login ok", "session end"})
        site.write(workers=3, limits="per_adress = 5")
        assert operator.run("reload").code == os.EX_CONFIG
        until_lines(all_events, {"reload failed: reason="})
        with stopped(all_events.pid):
            for _ in range(20):
                site.client().log_in("ann").quit()
        assert site.stop() == 0
        assert of_bob.wait(WAIT) == os.EX_UNAVAILABLE
        assert all_events.wait(WAIT) == os.EX_UNAVAILABLE


# -- Private mode


def test_private_mode_has_a_control_socket(home: Path, state: Path) -> None:
    """Without a configuration file, the sockets are below the private state directory."""
    addresses = ["--listen", "pop3s://127.0.0.1:0"]
    with started("--json", "serve", *addresses, env=private(home)) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(b"{")
        assert stat.S_IMODE((state / "control").stat().st_mode) == 0o700
        status = program("status", "--json", env=private(home)).json
        assert (status["ready"], status["configuration"]["file"]) == (True, None)
        assert program("status", env=private(home)).out.count("private mode") == 1
        done = program("reload", env=private(home))
        assert (done.code, done.out) == (0, "Configuration reloaded by 1 worker.\n")
        server.terminate()
        assert server.wait(WAIT) == 0
    assert program("reload", env=private(home)).code == os.EX_UNAVAILABLE


@pytest.mark.parametrize("length", [1, 200])
def test_reload_does_not_stop_an_ephemeral_server(length: int, home: Path) -> None:
    """SIGHUP alone stops it, because its terminal or its test has ended.

    A path of more than 107 octets does not fit into the address of a Unix socket (unix(7)).
    """
    folder = home / ("d" * length)
    folder.mkdir()
    with started("serve", "--ephemeral", env={**private(home), "TMPDIR": str(folder)}) as server:
        assert server.stdout is not None
        server.stdout.readline()
        [path] = folder.glob("restante-*/control")
        reply = ask(path, "POST", "/reload", timeout=WAIT)
        assert (reply.status, reply.json()["workers"]) == (200, 1)
        assert ask(path, "GET", "/status").json()["ready"]
        server.send_signal(signal.SIGHUP)
        assert server.wait(WAIT) == 0


def private(home: Path) -> dict[str, str]:
    return {**os.environ, "RESTANTE__INTAKE__SMTP__LISTEN": "127.0.0.1:0"}


def test_a_group_member_may_read_in_the_runtime_directory(site: Site) -> None:
    """As with systemd's RuntimeDirectory=; the directory lets the server's group in."""
    runtime = site.place / "run"
    runtime.mkdir()
    site.start(RUNTIME_DIRECTORY=str(runtime))
    folder = runtime / "control"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o660}
    assert ask(folder, "GET", "/status").json()["ready"]
    assert not (site.place / "control").exists()
