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

from .test_local import Names

ANN = Names(ann="ann", bob="bob")


def configured(tmp_path: Path, port: int, patience: str) -> config.Configuration:
    path = tmp_path / "restante.toml"
    path.write_text(
        f'[account.isp]\nurl = "pop3s://localhost:{port}"\nuser = "ann"\npassword = "x"\n'
        f'to = "maildrop:ann"\npoll_on_login = "{patience}"\n'
        '[account.other]\nurl = "pop3s://localhost"\nuser = "bob"\nto = "maildrop:bob"\n'
    )
    path.chmod(0o600)
    users = Users(tmp_path / "state" / "users.sqlite3")
    (tmp_path / "state").mkdir()
    users.add("ann", "tan staaf")
    users.close()
    return config.load(path, environment={"STATE_DIRECTORY": str(tmp_path / "state")})


def test_upstream_down_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gateway = Gateway(configured(tmp_path, port, "20s"), ANN)
    asyncio.run(gateway.poll("ann"))
    assert [record.message for record in caplog.records] == ["upstream not polled"]
    assert caplog.records[0].levelno == logging.WARNING


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
