"""Our collector fetches mail from other servers: each message once, and none is lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from .programs import RESTANTE, call
from .servers import SERVERS, foreign

pytestmark = pytest.mark.interop


def letter(number: int) -> bytes:
    """Return a message with lines of dots."""
    head = b"From: s@example.org\r\nMessage-ID: <%d@example.org>\r\nSubject: %d\r\n" % (
        number,
        number,
    )
    return head + b"\r\nbody %d\r\n.\r\n..\r\n" % number + b"x\r\n" * number * 500


class Collector:
    def __init__(self, folder: Path, account: str) -> None:
        self.inbox = folder / "inbox"
        self._folder = folder
        self._account = account

    def run(self, keep: str) -> int:
        """Run the collector; returns the number of messages stored."""
        control = self._folder / "restante.toml"
        control.touch(mode=0o600)
        control.write_text(f'{self._account}keep = "{keep}"\nto = "{self.inbox}"\n')
        environment = {"STATE_DIRECTORY": str(self._folder / "state")}
        done = call(*RESTANTE, "--json", "-c", control, "collect", "isp", environment=environment)
        assert done.returncode == os.EX_OK, done.stdout + done.stderr
        return int(json.loads(done.stdout)["stored"])

    def forget(self) -> None:
        """Lose the ledger."""
        shutil.rmtree(self._folder / "state")

    def bodies(self) -> list[bytes]:
        """Return the bodies of all stored messages."""
        texts = [path.read_bytes() for path in self.inbox.iterdir()]
        return sorted(each.partition(b"\r\n\r\n")[2] for each in texts)


@pytest.mark.parametrize("name", SERVERS)
def test_each_message_is_stored_once_and_deleted_on_request(name: str, tmp_path: Path) -> None:
    def sent(count: int) -> list[bytes]:
        return sorted(letter(each).partition(b"\r\n\r\n")[2] for each in range(count))

    with foreign(name, tmp_path) as server:
        server.put(letter(each) for each in range(3))
        account = server.account
        collector = Collector(
            tmp_path,
            f'[account.isp]\nurl = "pop3s://localhost:{account.port}"\nca_file = "{account.ca}"\n'
            f'user = "{account.user}"\npassword = "{account.password}"\n'
            # Courier's is ten seconds.
            'quirks = ["hide:LOGIN-DELAY"]\n',
        )
        before = server.listing()
        assert collector.run("all") == 3
        assert (server.listing() != before) == SERVERS[name].rewrites
        assert collector.bodies() == sent(3)
        assert collector.run("all") == 0
        server.put([letter(3)])
        assert collector.run("all") == 1
        assert collector.run("all") == 0
        if not SERVERS[name].rewrites:  # a changed message and no ledger: no evidence, so a copy
            collector.forget()
        assert collector.run("all") == 0
        assert collector.bodies() == sent(4)
        server.put([letter(4)])
        assert collector.run("none") == 1
        assert server.listing() == []
        assert collector.run("none") == 0
        assert collector.bodies() == sent(5)
