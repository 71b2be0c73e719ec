"""A running server renews the keys of TLS tickets and its certificates."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
from pathlib import Path

import pytest

from restante import config, tls
from restante.app import server
from restante.app.server import running
from restante.auth.users import Users
from restante.store.memory import MemoryStore

from ..support import Run


class Visitor:
    """A client that keeps its TLS session and verifies no certificate."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._context = ssl.create_default_context()
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._session: ssl.SSLSession | None = None

    def visit(self) -> tuple[bool, bytes]:
        """Return whether the server resumed the last session, and its certificate."""
        with (
            socket.create_connection((self._host, self._port), timeout=10) as connected,
            self._context.wrap_socket(connected, session=self._session) as client,
        ):
            assert client.recv(64).startswith(b"+OK")  # the ticket comes with it
            client.sendall(b"QUIT\r\n")
            assert client.recv(64).startswith(b"+OK")
            self._session = client.session
            return bool(client.session_reused), client.getpeercert(binary_form=True) or b""


async def until_another(visitor: Visitor) -> bytes:
    """Return the certificate shown when the server no longer resumes the session."""
    async with asyncio.timeout(30):
        while True:
            was_known, seen = await asyncio.to_thread(visitor.visit)
            if not was_known:
                return seen


def test_a_certificate_that_goes_while_it_is_read_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, run: Run[None]
) -> None:
    """A program may be renewing it just then; the server tries again later."""
    monkeypatch.setattr(server, "_RENEW_EVERY", 0.0)
    caplog.set_level(logging.ERROR, "restante")

    async def main() -> None:
        done = asyncio.Event()
        errors = iter((FileNotFoundError(2, "gone"), UnicodeError("half")))

        def secure() -> None:
            if error := next(errors, None):
                raise error
            done.set()

        renewing = asyncio.create_task(server._renew_tls(secure))
        async with asyncio.timeout(10):
            await done.wait()
        renewing.cancel()

    run(main())
    assert caplog.messages == ["certificate refused"] * 2


def test_ticket_key_and_certificate_are_renewed(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, run: Run[None]
) -> None:
    """A ticket works as long as its key is kept, at most a day (RFC 9325 §3.4)."""
    monkeypatch.setattr(server, "_RENEW_EVERY", 0.2)
    caplog.set_level(logging.ERROR, "restante")
    first, second = (tls.make_self_signed(home / name, [name]) for name in ("first", "second"))
    place = [home / each.name for each in first]
    for source, target in zip(first, place, strict=True):
        shutil.copy(source, target)
    (home / "restante.toml").write_text(
        '[server]\nlisten = ["pop3s://127.0.0.1:0"]\n'
        f'[tls]\nmode = "files"\ncert = "{place[0]}"\nkey = "{place[1]}"\n'
    )
    configuration = config.load(home / "restante.toml")

    async def main() -> None:
        users = Users(home / "users.db")
        async with running(configuration, users, MemoryStore()) as server:
            visitor = Visitor(server.addresses["pop3s"])
            before = await until_another(visitor)
            assert await until_another(visitor) == before
            place[1].write_text("nonsense")
            async with asyncio.timeout(30):
                while not caplog.messages:  # noqa: ASYNC110  # no event signals a log line
                    await asyncio.sleep(0.05)
            assert (await asyncio.to_thread(visitor.visit))[1] == before
            for source, target in zip(second, place, strict=True):
                shutil.copy(source, target)
            async with asyncio.timeout(30):
                while await until_another(visitor) == before:
                    pass

    run(main())
    assert caplog.messages[0] == "certificate refused"
