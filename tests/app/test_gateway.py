"""``poll_on_login`` takes a bounded time, and never prevents a login."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

import pytest

from restante import config
from restante.app.gateway import Gateway
from restante.auth.users import Users
from restante.series import BUCKETS, cell, zeros
from restante.testing import Pop3Server

from .test_local import Names

ANN = Names(ann="ann", bob="bob")


def configured(tmp_path: Path, port: int, patience: str, more: str = "") -> config.Configuration:
    path = tmp_path / "restante.toml"
    path.write_text(
        f'[account.isp]\nurl = "pop3s://localhost:{port}"\nuser = "ann"\npassword = "x"\n'
        f'to = "maildrop:ann"\npoll_on_login = "{patience}"\n{more}'
        '[account.other]\nurl = "pop3s://localhost"\nuser = "bob"\nto = "maildrop:bob"\n'
    )
    path.chmod(0o600)
    users = Users(tmp_path / "state" / "users.sqlite3")
    (tmp_path / "state").mkdir(exist_ok=True)
    users.add("ann", "tan staaf")
    users.close()
    return config.load(path, environment={"STATE_DIRECTORY": str(tmp_path / "state")})


def test_upstream_down_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    counts = zeros()
    gateway = Gateway(configured(tmp_path, port, "20s"), ANN, counts)
    asyncio.run(gateway.poll("ann"))
    assert [record.message for record in caplog.records] == ["upstream not polled"]
    assert counted(counts) == (0, 1, 1)
    assert caplog.records[0].levelno == logging.WARNING


def test_messages_of_a_poll_are_counted(tmp_path: Path) -> None:
    messages = [b"Subject: 1\r\n\r\n", b"Subject: 2\r\n\r\nhi\r\n"]
    counts = zeros()
    (tmp_path / "state" / "mail").mkdir(parents=True)
    with Pop3Server(users={"ann": "x"}) as server:
        for message in messages:
            server.deliver("ann", message)
        found = configured(tmp_path, server.port, "20s", f'ca_file = "{server.ca_file}"\n')
        for _ in range(2):  # the second poll comes too soon, so there is no session
            asyncio.run(Gateway(found, ANN, counts).poll("ann"))
    assert counted(counts) == (2, 0, 1)
    assert counts[cell("received_bytes_total", "gateway")] == sum(map(len, messages))


def counted(counts: list[float]) -> tuple[float, float, float]:
    """Return the numbers of stored messages, of failed polls and of observed times."""
    stored, deferred = (
        counts[cell("deliveries_total", "gateway", result)] for result in ("stored", "deferred")
    )
    first = cell("delivery_seconds", "gateway")
    return stored, deferred, sum(counts[first : first + len(BUCKETS) + 1])


def test_users_without_a_gateway_account_do_not_wait(tmp_path: Path) -> None:
    gateway = Gateway(configured(tmp_path, 1, "20s"), ANN)
    assert gateway
    asyncio.run(gateway.poll("bob"))
    assert not (tmp_path / "state" / "ledger.sqlite3").exists()


@pytest.mark.slow
def test_a_silent_upstream_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        gateway = Gateway(configured(tmp_path, silent.getsockname()[1], "1s"), ANN)
        asyncio.run(gateway.poll("ann"))
        assert [record.message for record in caplog.records] == ["login did not wait"]
