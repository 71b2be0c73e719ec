"""Metrics and health checks of a server in this process, requested over TCP."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from restante import config
from restante.app import readiness, stores
from restante.app.server import running
from restante.errors import (
    ConfigurationError,
    DeletionLimitExceeded,
    MessageGone,
    NoSuchUser,
    QuotaExceeded,
    TemporaryFailure,
)
from restante.series import cells_by_label, zeros
from restante.server import monitoring, store_errors
from restante.store.maildir import MaildirStore

from ..client import certificates
from ..exposition import parsed
from ..server.test_every_listener import JumpingLoop, jump
from ..support import once

KINDS = cells_by_label("store_errors_total")
Answered = tuple[int, dict[str, str], bytes]
GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
NOT_FOUND = (
    "/",
    "/sessions",
    "/status",
    "/events",
    "/reload",
    "/metrics/",
    "//metrics",
    "/METRICS",
)


@dataclass
class Served:
    """A server with an address for metrics."""

    address: str
    folder: Path

    async def send(self, octets: bytes) -> bytes:
        """Send octets, and return everything that the server sends until it disconnects."""
        host, _, port = self.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(octets)
            async with asyncio.timeout(10):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def ask(self, path: str, method: str = "GET") -> Answered:
        octets = await self.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head, _, content = octets.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(status.split()[1]), headers, content

    async def reasons(self) -> list[str]:
        status, headers, content = await self.ask("/readyz")
        document = json.loads(content)
        assert headers["content-type"] == "application/json"
        assert status == (503 if document["reasons"] else 200)
        assert document["ready"] is (status == 200)
        reasons: list[str] = document["reasons"]
        return reasons


@asynccontextmanager
async def serving(
    folder: Path, more: str = "", *, metrics: str = "", chain: str = '"passwd-file"'
) -> AsyncIterator[Served]:
    (folder / "passwd").write_text("ann:{PLAIN}secret\n")
    (folder / "mail").mkdir()
    (folder / "restante.toml").write_text(
        f"""
[server]
hostname = "localhost"
listen = ["pop3://127.0.0.1:0"]
[metrics]
listen = ["127.0.0.1:0"]
{metrics}
[store]
path = "{folder}/mail/%u"
[auth]
chain = [{chain}]
passwd_file.path = "{folder}/passwd"
{more}
"""
    )
    environment = {"STATE_DIRECTORY": str(folder), "HOME": str(folder)}
    found = config.load(folder / "restante.toml", environment=environment)
    users = stores.users(found)
    users.add("mrose", "tan staaf")
    async with running(found, users, stores.store(found, users)) as server:
        yield Served(server.addresses["metrics"], folder)


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(work)


def test_metrics_are_valid_and_nothing_else_is_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served:
            status, headers, content = await served.ask("/metrics")
            assert status == 200
            assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert int(headers["content-length"]) == len(content)
            samples = parsed(content.decode())
            assert samples["restante_workers"] == 1
            assert samples['restante_sessions{protocol="pop3"}'] == 0
            assert (await served.ask("/metrics?x=1"))[0] == 200
            assert (await served.ask("/metrics", "HEAD"))[::2] == (200, b"")
            assert (await served.ask("/healthz"))[::2] == (200, b"ok\n")
            for path in NOT_FOUND:
                assert (await served.ask(path))[0] == 404, path
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
                assert (await served.ask("/metrics", method))[0] == 405
                assert (await served.ask("/sessions", method))[0] == 405

    run(main())


@pytest.mark.parametrize(
    "octets",
    [
        b"GET /metrics HTTP/1.1\r\n\r\n",  # without Host
        GET + b"Content-Length: 5\r\n\r\nhello",
        GET + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"GET /metrics HTTP/1.1\nHost: x\r\nX : y\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",  # a TLS handshake
        b"USER ann\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n",
        b"GET /" + b"%41" * 3000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_invalid_requests_are_refused(octets: bytes, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served:
            answer = await served.send(octets)
            assert answer.startswith(b"HTTP/1.1 4"), answer
            assert b"restante_" not in answer
            assert (await served.ask("/healthz"))[0] == 200

    run(main())


def test_only_this_machine_and_permitted_networks_get_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 stands for another machine, because this machine's addresses are removed."""
    monkeypatch.setattr(monitoring, "_THIS_MACHINE", ())

    async def main(folder: Path, networks: str, is_allowed: bool) -> None:
        async with serving(folder, metrics=f'allow_from = ["{networks}"]') as served:
            answer = await served.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200") == is_allowed
            assert is_allowed or answer == b""

    for networks, is_allowed in (("10.0.0.0/8", False), ("127.0.0.1/32", True)):
        folder = tmp_path / str(is_allowed)
        folder.mkdir()
        run(main(folder, networks, is_allowed))


def test_refused_clients_do_not_flood_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(monitoring, "_THIS_MACHINE", ())

    def lines() -> int:
        return [record.getMessage() for record in caplog.records].count("metrics refused")

    async def main() -> None:
        async with serving(tmp_path) as served:
            monkeypatch.setattr(monitoring, "_LOG_EVERY", 3600.0)
            for _ in range(20):
                assert await served.send(GET + b"\r\n") == b""
            assert lines() == 1
            monkeypatch.setattr(monitoring, "_LOG_EVERY", 0.0)
            assert await served.send(GET + b"\r\n") == b""
            assert lines() == 2

    run(main())


def test_web_page_in_a_local_browser_gets_no_answer(tmp_path: Path) -> None:
    """DNS rebinding: the page's own name has the address 127.0.0.1."""
    name = socket.gethostname()
    allowed = ("localhost", "LOCALHOST:9110", "127.0.0.1:9110", "[::1]:9110", "192.0.2.1", name)
    refused = ("evil.example", "evil.example:9110", "localhost.evil.example", "[x]", "127.0.0.1.x")

    async def main() -> None:
        async with serving(tmp_path) as served:
            for path in ("metrics", "healthz", "readyz"):
                for host in (*allowed, *refused):
                    request = f"GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n"
                    status = (await served.send(request.encode()))[:12]
                    assert status == b"HTTP/1.1 " + (b"200" if host in allowed else b"403"), host
            assert b" 200 " in await served.send(b"GET /metrics HTTP/1.0\r\n\r\n")

    run(main())


# -- Readiness


def test_ready_server_has_no_reasons(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served:
            assert await served.reasons() == []
            assert list((tmp_path / "mail").iterdir()) == [], "the test file is removed"

    run(main())


def missing_directory(folder: Path) -> None:
    (folder / "mail").rmdir()


def directory_is_a_file(folder: Path) -> None:
    (folder / "mail").rmdir()
    (folder / "mail").touch()


def missing_back_end(folder: Path) -> None:
    (folder / "passwd").unlink()
    (folder / "passwd").mkdir()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (missing_directory, "mail storage: No such file or directory"),
        (directory_is_a_file, "mail storage: Not a directory"),
        (missing_back_end, "no identity back end answers: passwd-file"),
    ],
)
def test_each_reason_is_named_and_disappears(
    change: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served:
            change(tmp_path)
            assert await served.reasons() == [reason]
            assert (await served.ask("/healthz"))[0] == 200, "restarting would not help"
            assert (await served.ask("/metrics"))[0] == 200
            for name in ("mail", "passwd"):
                if (path := tmp_path / name).is_file():
                    path.unlink()
                elif path.is_dir():
                    path.rmdir()
            (tmp_path / "mail").mkdir()
            (tmp_path / "passwd").write_text("ann:{PLAIN}secret\n")
            await jump(10)
            assert await served.reasons() == []

    run(main())


def test_one_back_end_that_answers_is_enough(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, chain='"passwd-file", "users"') as served:
            missing_back_end(tmp_path)
            assert await served.reasons() == []

    run(main())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_disk_that_cannot_be_written_is_tested_once_in_ten_seconds(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = 0

    def fail(*_: object) -> None:
        nonlocal tests
        tests += 1
        raise OSError(number, os.strerror(number))

    async def main() -> None:
        monkeypatch.setattr(readiness, "write_test", fail)
        async with serving(tmp_path) as served:
            for _ in range(20):
                assert await served.reasons() == [f"mail storage: {os.strerror(number)}"]
            assert tests == 1
            await jump(10)
            await asyncio.gather(*(served.reasons() for _ in range(20)))
            assert tests == 2

    run(main())


def test_disk_that_hangs_is_a_reason_and_is_not_tested_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests, goes_on = 0, threading.Event()

    def hang(*_: object) -> None:
        nonlocal tests
        tests += 1
        goes_on.wait(20)

    async def main() -> None:
        monkeypatch.setattr(readiness, "write_test", hang)
        monkeypatch.setattr(readiness, "_PATIENCE", 0.05)
        async with serving(tmp_path) as served:
            for _ in range(3):
                assert await served.reasons() == ["mail storage: no answer"]
                await jump(60)
            assert tests == 1
            goes_on.set()
            async with asyncio.timeout(10):
                while await served.reasons():  # noqa: ASYNC110  # as clients do
                    await asyncio.sleep(0.01)

    try:
        run(main())
    finally:
        goes_on.set()


def test_expired_certificate_is_a_reason(tmp_path: Path) -> None:
    certificate, key = certificates.make(tmp_path, [], ends_in=timedelta(days=-1))

    async def main() -> None:
        more = f'[tls]\nmode = "files"\ncert = "{certificate}"\nkey = "{key}"'
        async with serving(tmp_path, more) as served:
            [reason] = await served.reasons()
            assert reason.startswith("the certificate expired on 20")
            samples = parsed((await served.ask("/metrics"))[2].decode())
            end = samples["restante_tls_certificate_expiry_timestamp_seconds"]
            assert end < datetime.now(UTC).timestamp()

    run(main())


# -- Configuration


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        ('listen = ["127.0.0.1:9110", "[::1]:9110", "localhost:9110"]', True),
        ('listen = ["0.0.0.0:9110"]', False),
        ('listen = ["127.0.0.1:9110", "[::]:9110"]', False),
        ('listen = [":9110"]', False),
        ('listen = ["0.0.0.0:9110"]\nallow_from = ["192.0.2.0/24"]', True),
        ('listen = ["unix:/run/metrics"]', False),
        ('listen = ["pop3://127.0.0.1:9110"]', False),
    ],
)
def test_address_that_other_machines_reach_must_be_permitted(
    text: str, is_valid: bool, tmp_path: Path
) -> None:
    (tmp_path / "restante.toml").write_text(f"[metrics]\n{text}\n")
    expected: AbstractContextManager[object] = (
        nullcontext() if is_valid else pytest.raises(ConfigurationError, match=r"metrics\.listen")
    )
    with expected:
        config.load(tmp_path / "restante.toml", environment={"HOME": str(tmp_path)})


# -- Errors of the store


@pytest.mark.parametrize(
    ("call", "number", "kind"),
    [
        ("fsync", errno.EIO, "sync"),
        ("write", errno.ENOSPC, "write"),
        ("rename", errno.EIO, "write"),
    ],
)
def test_error_of_a_delivery_is_counted_by_kind(
    call: str, number: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    store = MaildirStore(f"{tmp_path}/%u")
    asyncio.run(store.deliver("ann", once(b"Subject: 1\r\n\r\n")))
    monkeypatch.setattr(os, call, fail)
    values = zeros()
    try:
        asyncio.run(store.deliver("ann", once(b"Subject: 2\r\n\r\n")))
    except TemporaryFailure as error:
        store_errors.count(values, error, "write")
        assert {name: values[place] for name, place in KINDS.items() if values[place]} == {kind: 1}
    else:
        raise AssertionError(f"the delivery succeeded without {call}")


def test_other_errors_are_not_errors_of_the_store() -> None:
    values = zeros()
    for error in (QuotaExceeded(1), MessageGone(), DeletionLimitExceeded(5), NoSuchUser("ann")):
        store_errors.count(values, error, "read")
    assert not any(values[place] for place in KINDS.values())
