"""``restante serve``, ``demo`` and ``check`` as a new user runs them."""

from __future__ import annotations

import asyncio
import json
import os
import poplib
import signal
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from restante import config, tls
from restante.app import stores
from restante.app.server import make_first_user, tls_context
from restante.cli import serve
from restante.clock import RELEASED

from .conftest import Restante, program, started

CANARY = "canary-7QK2M"


@dataclass
class Serving:
    """A server in a separate process, and its first output."""

    process: subprocess.Popen[bytes]
    said: dict[str, Any]

    @contextmanager
    def client(
        self, name: str = "pop3s", password: str = "", user: str = "me"
    ) -> Iterator[poplib.POP3]:
        """Connect, and log in if there is a password; closed without QUIT by default."""
        host, _, port = self.said[name].rpartition(":")
        context = tls.client_context(Path(self.said["ca"]))
        if name == "pop3s":
            client: poplib.POP3 = poplib.POP3_SSL(host, int(port), context=context, timeout=10)
        else:
            client = poplib.POP3(host, int(port), timeout=10)
        try:
            if password:
                client.user(user)
                client.pass_(password)
            yield client
        finally:
            client.close()

    def deliver(self, text: str, name: str = "smtp") -> None:
        host, _, port = self.said[name].rpartition(":")
        kind = smtplib.LMTP if name == "lmtp" else smtplib.SMTP
        with kind(host, int(port)) as server:
            server.sendmail("bob@example.net", ["me@localhost"], text)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Stop the server; returns its exit code and standard error."""
        self.process.send_signal(number)
        _, reported = self.process.communicate(timeout=30)
        return self.process.returncode, reported.decode()


@contextmanager
def serving(*arguments: str | Path, **options: Any) -> Iterator[Serving]:
    with started("serve", "--json", *arguments, **options) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate(timeout=30))
        yield Serving(process, json.loads(line))


# --ephemeral


def test_ephemeral_serves_one_user_and_leaves_nothing(home: Path) -> None:
    with serving("--ephemeral") as server:
        assert server.said["schema"] == "restante/serve/1"
        assert server.said.keys() == {
            *("schema", "pop3s", "pop3", "lmtp", "lmtp_unix", "smtp", "ca", "users", "maildir")
        }
        ((user, password),) = server.said["users"].items()
        assert user == "me"
        for name in ("smtp", "lmtp"):
            server.deliver(f"Subject: by {name}\r\n\r\nhi\r\n", name)
        with server.client(password=password) as client:
            assert client.stat()[0] == 2
            client.quit()
        code, reported = server.stop()
    assert code == 0
    assert "login" not in reported
    assert list((home / "tmp").iterdir()) == []
    assert list((home / "state").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("stdin", [subprocess.PIPE, subprocess.DEVNULL, "file"])
def test_ephemeral_ends_with_its_input(home: Path, stdin: int | str) -> None:
    (home / "empty").touch()
    with (
        open(home / "empty", "rb") as file,
        serving("--ephemeral", stdin=file if stdin == "file" else stdin) as server,
    ):
        out, reported = server.process.communicate(timeout=30)
    assert (server.process.returncode, out) == (0, b"")
    assert b"Standard input has ended" in reported
    assert (
        b"clock jumped" not in reported
    )  # at a first start there is no mail that a wrong clock could destroy
    assert list((home / "tmp").iterdir()) == []


@pytest.mark.slow
def test_ephemeral_runs_while_its_input_is_open(home: Path) -> None:
    with serving("--ephemeral") as server:
        assert server.process.stdin is not None
        server.process.stdin.write(b"x\n" * 10)
        server.process.stdin.flush()
        with server.client() as client:
            client.quit()
        assert server.process.poll() is None


# Without configuration.


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ports of private mode may be in use here, so use others."""
    monkeypatch.setenv("RESTANTE__SERVER__LISTEN", "pop3s://127.0.0.1:0 pop3://127.0.0.1:0")
    monkeypatch.setenv("RESTANTE__INTAKE__SMTP__LISTEN", "127.0.0.1:0")


def first_password(state: Path) -> str:
    return (state / "first-password").read_text().removesuffix("\n")


def test_the_first_start_makes_all_it_needs(home: Path, state: Path, ports: None) -> None:
    with serving("--ready-file", home / "ready") as server:
        assert (home / "ready").exists()
        assert server.said.keys() == {
            *("schema", "pop3s", "pop3", "lmtp_unix", "smtp", "ca", "password_file")
        }
        assert all(server.said[name].startswith("127.0.0.1:") for name in ("pop3s", "smtp"))
        assert server.said["password_file"] == str(state / "first-password")
        server.deliver("Subject: hello\r\n\r\nhi\r\n")
        with server.client(password=first_password(state)) as client:
            assert client.stat()[0] == 1
            client.quit()
        code, _ = server.stop(signal.SIGINT)
    assert code == 0
    assert not (home / "ready").exists()
    assert not (state / "lmtp.sock").exists()
    for path in [state, *state.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, f"{path} is for its owner only"


@pytest.mark.slow
def test_the_second_start_finds_mail_user_and_certificate_again(
    home: Path, state: Path, ports: None
) -> None:
    prints = []
    for _ in range(2):
        with serving() as server:
            prints.append(tls.fingerprint(Path(server.said["ca"])))
            server.deliver("Subject: hello\r\n\r\nhi\r\n")
            server.stop()
    assert prints[0] == prints[1]
    with serving() as server, server.client(password=first_password(state)) as client:
        assert client.stat()[0] == 2


def test_first_start_prints_the_next_steps(home: Path, state: Path, ports: None) -> None:
    with started("serve") as process:
        assert process.stderr is not None
        reported = []
        for line in process.stderr:
            reported.append(line.decode())
            if line.startswith(b"  restante fetch "):
                break
        process.terminate()
        assert process.wait(30) == 0
    text = "".join(reported)
    assert max(len(line) for line in reported if str(home) not in line) <= 81  # line end included
    for word in ("private mode", "pop3s://127.0.0.1:", "STLS required", "first user 'me'"):
        assert word in text
    assert f"--ca-file {state / 'tls' / 'certificate.pem'}\n" in reported[-1]
    assert str(state / "first-password") in text, "not a terminal, so the password is not shown"
    assert first_password(state) not in text
    assert (state / "first-password").stat().st_mode & 0o777 == 0o600


def test_login_requires_tls_even_on_the_same_machine(home: Path, state: Path, ports: None) -> None:
    with serving() as server, server.client("pop3") as client:
        with pytest.raises(poplib.error_proto, match="STLS"):
            client.user("me")
        client.stls(tls.client_context(Path(server.said["ca"])))
        client.user("me")
        client.pass_(first_password(state))
        client.quit()


# Stopping.


@pytest.mark.slow
def test_tls_at_a_proxy_counts_at_its_address_only(home: Path, state: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        ports = [each.getsockname()[1] for each in (one, other)]
    config = home / "restante.toml"
    config.write_text(
        f'[server]\nlisten = ["pop3://127.0.0.1:{ports[0]}", "pop3://127.0.0.1:{ports[1]}"]\n'
        f'tls_at_proxy = ["pop3://127.0.0.1:{ports[0]}"]\nproxy_from = ["127.0.0.1/32"]\n'
        "workers = 1\n[intake.lmtp]\nlisten = []\n"
    )
    heard = []
    with serving("-c", config):
        for port in ports:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\nUSER ann\r\nQUIT\r\n")
                heard.append(client.makefile("rb").read().split(b"\r\n")[1][:4])
    assert heard == [b"+OK ", b"-ERR"]


def test_sigterm_ends_sessions_without_removing_anything(
    home: Path, state: Path, ports: None
) -> None:
    with serving() as server:
        server.deliver("Subject: hello\r\n\r\nhi\r\n")
        with server.client(password=first_password(state)) as client:
            client.dele(1)
            server.process.terminate()
            assert client.file.readline() == b""
        assert server.process.wait(30) == 0
    assert len(list((state / "mail/me/new").iterdir())) == 1


# Secrets and logs.


@pytest.mark.slow
def test_no_secret_is_in_any_log(home: Path, state: Path, ports: None) -> None:
    """Neither wrong nor right passwords, sent in any way; even with -v."""
    environment = {**os.environ, "RESTANTE__LOG__LEVEL": "debug", "PYTHONASYNCIODEBUG": "1"}
    assert program("user", "add", "ann", stdin=CANARY.encode()).code == 0
    with serving("-v", env=environment) as server:
        with server.client(user="ann", password=CANARY) as client:
            client.quit()
        for command in (f"PASS {CANARY}x", f"AUTH PLAIN {CANARY}", f"XYZZY {CANARY}"):
            with server.client() as client:
                client.user("ann")
                with pytest.raises(poplib.error_proto):
                    client._shortcmd(command)  # type: ignore[attr-defined]
        code, reported = server.stop()
    assert code == 0
    assert "login ok: ip=127.0.0.1 user=ann proto=pop3s" in reported
    assert "login refused: ip=127.0.0.1 user=ann proto=pop3s" in reported
    assert CANARY not in reported
    for path in state.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


# Errors at the start: one line with the object and the next step, and the right code.


def in_use(home: Path) -> tuple[str, int, str]:
    listening = socket.create_server(("127.0.0.1", 0))
    keep.append(listening)
    port = listening.getsockname()[1]
    text = f"[server]\nlisten = 'pop3://127.0.0.1:{port}'"
    own = f"{Path('/proc/self/comm').read_text().strip()} (process {os.getpid()})"
    reported = f"{own} uses this address; stop that program, or change server.listen"
    return text, 69, f"cannot listen on pop3://127.0.0.1:{port}: {reported}"


keep: list[socket.socket] = []


def no_such_address(home: Path) -> tuple[str, int, str]:
    return "[server]\nlisten = 'pop3://192.0.2.1:0'", 69, "this machine does not have that address"


def no_certificate(home: Path) -> tuple[str, int, str]:
    text = f"[tls]\nmode = 'files'\ncert = '{home}/x.pem'\nkey = '{home}/y.pem'"
    return text, 78, f"{home}/x.pem"


def no_store(home: Path) -> tuple[str, int, str]:
    return (
        f"[store]\npath = '{home}/mail/%u'",
        78,
        f"store.path: {home}/mail does not exist; run: mkdir -p {home}/mail",
    )


def shared_store(home: Path) -> tuple[str, int, str]:
    return f"[store]\npath = '{home}/mail'", 78, "needs %u or %n"


def no_state(home: Path) -> tuple[str, int, str]:
    (home / "state" / "restante").write_text("a file, where a directory should be")
    return "", 74, f"{home}/state/restante: File exists"


def no_socket(home: Path) -> tuple[str, int, str]:
    return f"[intake.lmtp]\nlisten = 'unix:{home}/none/lmtp'", 69, "No such file or directory"


def a_second_that_fails(home: Path) -> tuple[str, int, str]:
    """The first listener must be closed; otherwise Python's warning would be a second line."""
    return "[server]\nlisten = ['pop3://127.0.0.1:0', 'pop3://192.0.2.1:0']", 69, "that address"


def a_long_socket(home: Path) -> tuple[str, int, str]:
    return f"[intake.lmtp]\nlisten = 'unix:{home}/{'x' * 108}'", 69, "path too long"


@pytest.mark.parametrize(
    "trouble",
    [
        *(in_use, no_such_address, no_certificate, no_store, shared_store, no_state),
        *(no_socket, a_long_socket, a_second_that_fails),
    ],
)
def test_errors_at_the_start_are_one_line(
    trouble: Callable[[Path], tuple[str, int, str]], restante: Restante, home: Path
) -> None:
    text, code, words = trouble(home)
    (home / "x.toml").write_text("[server]\nlisten = []\n" * ("[server]" not in text) + text)
    try:
        found = restante("serve", "-c", home / "x.toml")
    finally:
        while keep:
            keep.pop().close()
    assert found.code == code
    assert found.err.startswith("restante serve: ")
    assert words in found.err
    assert len(found.err.splitlines()) == 1


# check


def test_check_shows_the_listeners(restante: Restante, home: Path) -> None:
    found = restante("check")
    assert (found.code, found.err) == (0, "")
    assert "private mode: OK" in found.out
    assert restante("check", "--json").json.keys() == {
        *("schema", "source", "listen", "warnings", "goes")
    }
    assert list((home / "state").iterdir()) == [], "it only looks"


def test_check_finds_all_that_is_missing_at_once(restante: Restante, home: Path) -> None:
    (home / "x.toml").write_text(
        f"[tls]\nmode = 'files'\ncert = '{home}/c'\nkey = '{home}/k'\n"
        f"[store]\npath = '{home}/mail/%u'\n"
    )
    found = restante("check", "-c", home / "x.toml")
    assert found.code == 78
    assert len(found.err.splitlines()) == 2


def test_the_example_is_printed_and_is_good(restante: Restante, home: Path) -> None:
    (home / "x.toml").write_text(restante("check", "--example").out)
    assert restante("check", "-c", home / "x.toml").code == 0


# demo


@pytest.mark.slow
def test_demo_prints_each_step_and_leaves_nothing(home: Path) -> None:
    found = program("demo")
    assert (found.code, found.err) == (0, "")
    steps = ["start", "deliver", "fetch", "delete", "poplib", "restore", "poplib", "stop"]
    reported = iter([line[:9].strip() for line in found.out.splitlines()])
    assert all(step in reported for step in steps), found.out
    assert max(map(len, found.out.splitlines())) <= 80
    for place in ("tmp", "state", "config"):
        assert list((home / place).iterdir()) == []


@pytest.mark.parametrize("has_mail", [False, True])
def test_first_user_trusts_the_clock_only_where_there_is_no_mail(
    tmp_path: Path, has_mail: bool
) -> None:
    """For any path of mail: a wrong clock must not destroy mail that is held there."""
    state, mail = tmp_path / "state", tmp_path / "elsewhere"
    environment = {"HOME": str(tmp_path), "STATE_DIRECTORY": str(state)}
    environment["RESTANTE__STORE__PATH"] = f"{mail}/%u"
    found = config.load(environment=environment)
    mail.mkdir()
    if has_mail:
        (mail / "me").mkdir()
    clock = stores.clock(found)
    assert clock.advance().mark == RELEASED  # the time is not known yet
    with closing(stores.users(found)) as users:
        assert make_first_user(found, users) is not None
        assert make_first_user(found, users) is None
    reading = clock.read()
    assert (reading.mark == reading.now) is not has_mail


@pytest.mark.parametrize(
    ("mechanisms", "can_bind"),
    [
        (("PLAIN", "SCRAM-SHA-256"), False),
        (("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"), True),
        (("SCRAM-SHA-1-PLUS",), True),
    ],
)
def test_the_certificate_can_be_bound_to_where_a_mechanism_does(
    mechanisms: tuple[str, ...], can_bind: bool, tmp_path: Path
) -> None:
    usual = config.ephemeral(tmp_path)
    context = tls_context(replace(usual, auth=replace(usual.auth, mechanisms=mechanisms)))
    certificate = ssl.PEM_cert_to_DER_cert((tmp_path / "tls/certificate.pem").read_text())
    assert context.end_point == (sha256(certificate).digest() if can_bind else b"")


def test_hangups_that_arrive_during_a_reload_cause_one_more() -> None:
    """Many signals do not keep clients waiting: other work gets a turn after each reload."""
    reloads = turns = 0

    async def main() -> None:
        nonlocal turns

        def reload() -> None:
            nonlocal reloads
            reloads += 1
            if reloads < 5:
                for _ in range(20):
                    os.kill(os.getpid(), signal.SIGHUP)

        serve._listen_to_hangups(reload)
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(10):
            while reloads < 5:
                turns += 1
                await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0.001)

    asyncio.run(main())
    assert reloads == 5
    assert turns >= 5
