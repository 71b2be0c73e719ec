"""Postfix and Exim, configured by our guide, deliver while our server is killed."""

from __future__ import annotations

import os
import re
import smtplib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from .dovecot import free_ports
from .programs import Server, add_user, started
from .relays import CONCURRENCY, RELAYS, Relay

pytestmark = [pytest.mark.interop, pytest.mark.timeout(150)]

ANN, BOB = "ann@example.org", "bob@example.org"
CONFIGURATION = """
[server]
listen = ["pop3s://127.0.0.1:0"]
workers = 1
[intake.lmtp]
listen = ["{address}"]
[intake.smtp]
listen = ""
"""
_PATIENCE = 40.0  # seconds


class Site:
    """Our server and the mail server in front of it."""

    def __init__(self, folder: Path, name: str) -> None:
        (port,) = free_ports(1)
        unix = f"unix:{folder}/lmtp/lmtp.sock"
        self.address = unix if name == "postfix" else f"127.0.0.1:{port}"
        self.folder = folder
        self.relay: Relay
        (folder / "lmtp").mkdir()
        (folder / "restante.toml").write_text(CONFIGURATION.format(address=self.address))
        for user in (ANN, BOB):
            add_user(folder, user)
        self._server = ExitStack()
        self._name = name

    def run(self) -> Server:
        return self._server.enter_context(started(self.folder, ANN))

    def kill(self) -> None:
        """kill -9."""
        self._server.close()

    def code(self, recipient: str) -> int:
        """Return the reply code for this recipient."""
        with smtplib.SMTP("127.0.0.1", self.relay.port, timeout=30) as smtp:
            smtp.ehlo("client.example.net")
            smtp.mail("sender@example.net")
            return smtp.rcpt(recipient)[0]

    def await_code(self, recipient: str, code: int) -> None:
        until = time.monotonic() + _PATIENCE
        while (found := self.code(recipient)) != code:
            assert time.monotonic() < until, found
            time.sleep(0.5)

    def send(self, numbers: range) -> None:
        """Send each message to both users in one transaction."""
        with smtplib.SMTP("127.0.0.1", self.relay.port, timeout=30) as smtp:
            for number in numbers:
                text = b"Subject: %d\r\nMessage-ID: <%d@example.net>\r\n\r\n.\r\n" % (
                    number,
                    number,
                )
                refused = smtp.sendmail("sender@example.net", [ANN, BOB], text)
                assert refused == {}

    def count(self) -> int:
        """Return the number of messages in both maildrops."""
        return sum(len(os.listdir(path)) for path in self.folder.glob("state/mail/*/new"))

    def stored(self) -> dict[str, Counter[int]]:
        """Return how often each message is in each maildrop."""
        return {
            user: Counter(
                int(found[1])
                for path in (self.folder / "state/mail" / user).glob("???/*")
                if (found := re.search(rb"^Subject: (\d+)", path.read_bytes(), re.MULTILINE))
            )
            for user in (ANN, BOB)
        }


@pytest.fixture(params=RELAYS)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    # Not below pytest's folders: paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="relay-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        made = Site(folder, request.param)
        with RELAYS[request.param](folder, made.address) as made.relay:
            made.run()
            yield made
            made.kill()


def test_relays_verify_recipients(site: Site) -> None:
    """An unknown address is refused at once, and accepted soon after it exists; while our server is
    down no address is reported as unknown."""
    assert site.code(ANN) == 250
    assert site.code("carol@example.org") == 550
    assert site.code("carol@example.net") // 100 == 5
    add_user(site.folder, "carol@example.org")
    site.await_code("carol@example.org", 250)
    site.kill()
    assert site.code("dave@example.org") // 100 == 4
    assert site.code(ANN) == 250
    site.run()


def test_nothing_is_lost_when_the_server_is_killed(site: Site) -> None:
    """A message is stored again only if our server was killed before its reply arrived."""
    site.send(range(10))
    site.relay.drain(_PATIENCE)
    assert site.stored() == {user: Counter(range(10)) for user in (ANN, BOB)}
    with ThreadPoolExecutor() as pool:
        sent = pool.submit(site.send, range(10, 60))
        while site.count() < 20 + 40:
            time.sleep(0.002)
        site.kill()
        sent.result()
    site.run()
    site.send(range(60, 70))
    site.relay.drain(_PATIENCE)
    for counts in site.stored().values():
        assert counts.keys() == set(range(70))
        again = [number for number, times in counts.items() if times > 1]
        assert len(again) <= CONCURRENCY
        assert not set(again) - set(range(10, 60))
        assert max(counts.values()) <= 2
