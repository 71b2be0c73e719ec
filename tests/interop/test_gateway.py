"""A legacy device reads a remote mailbox through our maildrop: fetchmail with USER and PASS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from . import clients
from .programs import RESTANTE, Account, call, running, serving

pytestmark = pytest.mark.interop

LETTERS = [b"Subject: %d\r\n\r\nhello\r\n" % at for at in range(3)]


class Gateway:
    """Our server between the device and the other one."""

    def __init__(self, folder: Path, upstream: Account, hold: str) -> None:
        self.folder = folder
        self.upstream = upstream
        self._environment = {
            "HOME": str(folder),
            "STATE_DIRECTORY": str(folder / "state"),
            "RESTANTE_CONFIG": str(folder / "restante.toml"),
        }
        self.write(upstream.port, hold)
        done = call(
            *RESTANTE, "--json", "user", "add", "ann", "--generate", environment=self._environment
        )
        assert done.returncode == 0, done.stderr
        self._password = json.loads(done.stdout)["password"]

    def write(self, port: int, hold: str = "14d") -> None:
        path = self.folder / "restante.toml"
        path.write_text(
            f'[server]\nlisten = ["pop3s://127.0.0.1:0"]\nworkers = 1\n'
            f'[store]\nhold = "{hold}"\n'
            f'[intake.lmtp]\nlisten = []\n[intake.smtp]\nlisten = ""\n'
            f'[account.isp]\nurl = "pop3s://localhost:{port}"\nuser = "{self.upstream.user}"\n'
            f'password = "{self.upstream.password}"\nca_file = "{self.upstream.ca}"\n'
            'to = "maildrop:ann"\nkeep = "until-deleted"\nevery = "0"\npoll_on_login = "20s"\n'
        )
        path.chmod(0o600)

    @contextmanager
    def serving(self) -> Iterator[Account]:
        with running(*RESTANTE, "--json", "serve", environment=self._environment) as process:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            port = int(told["pop3s"].rpartition(":")[2])
            ca = self.folder / "state" / "tls" / "certificate.pem"
            yield Account(port, ca, "ann", self._password)

    def purge(self) -> None:
        done = call(*RESTANTE, "maildrop", "purge", "ann", "--yes", environment=self._environment)
        assert done.returncode == 0, done.stderr


def test_mail_comes_at_login_and_is_deleted_upstream_after_the_hold(tmp_path: Path) -> None:
    with serving() as upstream:
        upstream.deliver(LETTERS)
        gateway = Gateway(tmp_path, upstream.account("pop3s"), "14d")
        device = tmp_path / "device"
        device.mkdir()
        with gateway.serving() as account:
            status, fetched = clients.fetchmail(account, device)
            assert (status, len(fetched)) == (0, 3)
            assert len(upstream.stored()) == 3
            # They are held here, so they stay there; no message comes twice.
            assert clients.fetchmail(account, device) == (0, [])
            assert len(upstream.stored()) == 3
            gateway.purge()
            assert clients.fetchmail(account, device) == (0, [])
            assert upstream.stored() == []
            upstream.deliver([b"Subject: new\r\n\r\n"])
            status, fetched = clients.fetchmail(account, device)
            assert (status, len(fetched)) == (0, 1)


def test_unreachable_upstream_serves_local_mail(tmp_path: Path) -> None:
    """The maildrop is never shown as empty."""
    with serving() as upstream:
        upstream.deliver(LETTERS)
        gateway = Gateway(tmp_path, upstream.account("pop3s"), "14d")
        device = tmp_path / "device"
        device.mkdir()
        with gateway.serving() as account:
            kept = replace(account, keep=True)
            status, fetched = clients.fetchmail(kept, device)
            assert (status, len(fetched)) == (0, 3)
    with gateway.serving() as account:
        status, fetched = clients.fetchmail(account, device / "again")
        assert (status, len(fetched)) == (0, 3)
