"""Exit codes by situation: 75 means that trying again can help (sysexits.h)."""

from __future__ import annotations

import errno
import fcntl
import inspect
import json
import os
import socket
import sqlite3
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from restante import config, tls
from restante.app import failures
from restante.auth import database
from restante.auth.http import ProviderClient
from restante.collect.destinations import Destination, imap
from restante.collect.destinations.gmail import Gmail
from restante.collect.destinations.opening import open_destination
from restante.collect.ledger import Ledger
from restante.collect.oauth.flow import Application, Provider
from restante.collect.oauth.web import by_client_secret
from restante.errors import RestanteError
from tests.collect.imap import imap_server

from ..cli.conftest import Restante

USERS = '[auth]\nchain = ["passwd-file"]\npasswd_file.path = {}\n'


@dataclass
class Scene:
    """User ann, and an account with a destination."""

    restante: Restante
    home: Path
    state: Path
    certificate: tuple[Path, Path]

    def configure(self, text: str) -> None:
        path = self.home / "config/restante/restante.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        path.write_text(text)

    def code(self, *arguments: str) -> int:
        return self.restante(*arguments).code


@pytest.fixture
def scene(
    restante: Restante, ann: str, home: Path, state: Path, certificate: tuple[Path, Path]
) -> Scene:
    return Scene(restante, home, state, certificate)


def raised(action: Callable[[], object]) -> int:
    """Return the exit code of a command that ends with the exception this raises."""
    with pytest.raises(Exception, match=r".") as caught:
        action()
    return failures.exit_code(caught.value)


# Our files.


def damaged_ids(scene: Scene) -> int:
    assert scene.restante("deliver", "ann", stdin=b"Subject: x\n\nx\n").code == 0
    (scene.state / "mail/ann/restante.ids").write_bytes(b"restante ids 1\n" + 40 * b"x")
    return scene.code("maildrop", "show", "ann")


def damaged_index(scene: Scene) -> int:
    """The index is rebuilt."""
    assert scene.restante("deliver", "ann", stdin=b"Subject: x\n\nx\n").code == 0
    assert scene.code("maildrop", "show", "ann") == 0
    (scene.state / "mail/ann/restante.index").write_bytes(b"damaged")
    return scene.code("maildrop", "show", "ann")


def damaged_users(scene: Scene) -> int:
    (scene.state / "users.sqlite3").write_bytes(1000 * b"damaged ")
    return scene.code("user", "list")


def locked_users(scene: Scene) -> int:
    with closing(sqlite3.connect(scene.state / "users.sqlite3")) as other:
        other.execute("BEGIN EXCLUSIVE")
        return scene.code("user", "disable", "ann")


def damaged_ledger(scene: Scene) -> int:
    path = scene.state / "ledger"
    path.write_bytes(1000 * b"damaged ")
    return raised(lambda: Ledger(path).close())


def ledger_that_is_a_directory(scene: Scene) -> int:
    (scene.state / "ledger").mkdir()
    return raised(lambda: Ledger(scene.state / "ledger"))


# Configuration.


def unknown_option(scene: Scene) -> int:
    scene.configure("[log]\nlevl = 'info'\n")
    return scene.code("user", "list")


def missing_passwd_file(scene: Scene) -> int:
    scene.configure(USERS.format(config.toml(f"{scene.home}/missing/users")))
    return scene.code("auth", "why", "ann", "::1")


def passwd_file_that_is_a_fifo(scene: Scene) -> int:
    os.mkfifo(scene.home / "users")
    scene.configure(USERS.format(config.toml(f"{scene.home}/users")))
    return scene.code("auth", "why", "ann", "::1")


# Back ends and OAuth providers.


@contextmanager
def provider(status: int, body: bytes, context: ssl.SSLContext | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client without trusted certificates hangs up

    with Server(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def introspect(url: str) -> int:
    return raised(lambda: ProviderClient().ask(url, b"token=x"))


def renew(url: str) -> int:
    at = Provider(url, url, url, ("mail",))
    return raised(lambda: by_client_secret(Application(at, "client", "secret")))


def answered(ask: Callable[[str], int], status: int, body: bytes = b"") -> Callable[[Scene], int]:
    def situation(_: Scene) -> int:
        with provider(status, body) as url:
            return ask(url)

    return situation


def untrusted(ask: Callable[[str], int]) -> Callable[[Scene], int]:
    def situation(scene: Scene) -> int:
        with provider(200, b"{}", tls.server_context(*scene.certificate)) as url:
            return ask(url)

    return situation


def gone(ask: Callable[[str], int]) -> Callable[[Scene], int]:
    def situation(_: Scene) -> int:
        with provider(200, b"{}") as url:
            pass
        return ask(url)

    return situation


# An IMAP server as destination.


def store_by_imap(
    login: bytes = b"", append: bytes = b"", *, trusted: bool = True
) -> Callable[[Scene], int]:
    def situation(scene: Scene) -> int:
        with imap_server(tls.server_context(*scene.certificate)) as server:
            server.login, server.answers = login, [append] if append else []
            return _append(server.port, scene.certificate[0] if trusted else None)

    return situation


def no_imap_server(scene: Scene) -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return _append(port, scene.certificate[0])


def silent_imap_server(scene: Scene) -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return _append(server.getsockname()[1], scene.certificate[0])


def _append(port: int, ca_file: Path | None) -> int:
    url = f"imaps://ann@127.0.0.1:{port}/"
    with closing(
        open_destination(url, password=lambda: "tan staaf", ca_file=ca_file)
    ) as destination:
        return stored_in(destination)


def stored_in(destination: Destination) -> int:
    def store() -> None:
        destination.begin("any")
        destination.write(b"Subject: x\r\n\r\nx\r\n")
        destination.commit()

    return raised(store)


def gmail(status: int, reason: str) -> Callable[[Scene], int]:
    body = json.dumps({"error": {"message": reason, "errors": [{"reason": reason}]}}).encode()

    def situation(_: Scene) -> int:
        with (
            provider(status, body) as url,
            closing(Gmail("", lambda _: "token", url)) as destination,
        ):
            return stored_in(destination)

    return situation


def by_lmtp(scene: Scene) -> int:
    """Use a socket whose mail server is not running."""
    with closing(open_destination(f"lmtp:unix:{scene.home}/lmtp", recipient="a@b.example")) as to:
        return stored_in(to)


# The collector.


def collecting(change: str, **options: str) -> Callable[[Scene], int]:
    """Collect from a server that does not exist, with an earlier error."""

    def situation(scene: Scene) -> int:
        account = {
            "url": "pop3s://localhost:1",
            "user": "u",
            "password": "pw",
            "to": "maildrop:ann",
            **options,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in account.items()]
        scene.configure("[account.isp]\n" + "\n".join(lines))
        return scene.code("collect", "isp")

    situation.__name__ = change
    return situation


SITUATIONS = [
    (damaged_ids, 65),
    (damaged_index, 0),
    (damaged_users, 74),
    (locked_users, 75),
    (damaged_ledger, 78),
    (ledger_that_is_a_directory, 74),
    (unknown_option, 78),
    (missing_passwd_file, 74),
    (passwd_file_that_is_a_fifo, 74),
    (untrusted(introspect), 77),
    (gone(introspect), 75),
    (answered(introspect, 401), 78),
    (answered(introspect, 302), 78),
    (answered(introspect, 429), 75),
    (answered(introspect, 503), 75),
    (untrusted(renew), 77),
    (gone(renew), 75),
    (answered(renew, 404, b"not here"), 78),
    (answered(renew, 400, b'{"error": "invalid_client"}'), 77),
    (answered(renew, 400, b'{"error": "temporarily_unavailable"}'), 75),
    (answered(renew, 429), 75),
    (answered(renew, 500), 75),
    (store_by_imap(b"NO [AUTHENTICATIONFAILED] no"), 77),
    (store_by_imap(b"NO no"), 77),
    (store_by_imap(b"NO [UNAVAILABLE] later"), 75),
    (store_by_imap(b"lost"), 75),
    (store_by_imap(trusted=False), 77),
    (store_by_imap(append=b"NO [NOPERM] no"), 77),
    (store_by_imap(append=b"NO [OVERQUOTA] full"), 75),
    (gmail(400, "failedPrecondition"), 78),
    (gmail(403, "insufficientPermissions"), 77),
    (gmail(429, "rateLimitExceeded"), 75),
    (gmail(403, "userRateLimitExceeded"), 75),
    (no_imap_server, 75),
    (silent_imap_server, 75),
    (by_lmtp, 75),
    (collecting("server down"), 75),
    (collecting("unknown user", to="maildrop:bob"), 78),
    (collecting("missing certificates", ca_file="/missing/ca.pem"), 78),
    (collecting("missing program", to="command:/missing/program"), 78),
    (collecting("directory in a file", to="maildir:/etc/hostname/Mail"), 74),
]


def _name(value: object) -> str:
    """Return a name such as ``introspect-401`` for a generated situation."""
    name = getattr(value, "__name__", str(value))
    if name != "situation" or not callable(value):
        return name
    variables = inspect.getclosurevars(value).nonlocals.values()
    return "-".join(getattr(each, "__name__", str(each)) for each in variables)


@pytest.mark.parametrize(("situation", "code"), SITUATIONS, ids=_name)
def test_exit_code_of_each_situation(
    situation: Callable[[Scene], int],
    code: int,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "_LOCK_TIMEOUT", 0.05)
    monkeypatch.setattr(imap, "_TIMEOUT", 0.1)
    assert situation(scene) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.EMFILE, "x"), 75),
        (OSError(errno.EAGAIN, "x"), 75),
        (TimeoutError("x"), 75),
        (ConnectionResetError(errno.ECONNRESET, "x"), 75),
        (socket.gaierror(socket.EAI_NONAME, "x"), 68),
        (FileNotFoundError(errno.ENOENT, "x", "/missing/file"), 74),
        (ssl.SSLCertVerificationError(1, "x"), 77),
        (ssl.SSLEOFError(8, "x"), 75),
    ],
)
def test_an_error_of_the_system_has_one_code_also_as_a_cause(error: OSError, code: int) -> None:
    outer = RestanteError("x")
    outer.retry, outer.__cause__ = True, error
    again = RestanteError("x")
    again.retry, again.__cause__ = True, outer
    assert [failures.exit_code(each) for each in (error, outer, again)] == [code] * 3


@pytest.mark.parametrize(
    ("codes", "code"),
    [((), 0), ((0, 75), 75), ((75, 74), 74), ((74, 75), 74), ((75, 65, 0), 65), ((0, 130), 130)],
)
def test_75_only_if_trying_again_can_help_all(codes: tuple[int, ...], code: int) -> None:
    assert failures.most_serious(codes) == code


def test_a_maildrop_in_use_does_not_hide_a_damaged_one(scene: Scene) -> None:
    scene.restante("user", "add", "bob", stdin=b"tan staaf\n")
    scene.restante("deliver", "bob", stdin=b"Subject: x\n\nx\n")
    assert damaged_ids(scene) == 65
    for command in (("list",), ("verify", "--all"), ("reindex", "--all")):
        assert scene.code("maildrop", *command) == 65, command
    with open(scene.state / "mail/bob/restante.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (("verify", "--all"), ("reindex", "--all")):
            assert scene.code("maildrop", *command) == 65, command
