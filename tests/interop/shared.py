"""A maildrop that our server and Dovecot's IMAP server share."""

from __future__ import annotations

import imaplib
import json
import poplib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from restante import tls

from .dovecot import AS_OWNER, USER, Dovecot, dovecot
from .programs import RESTANTE, call, running

# The owner of the mail may be unable to read this checkout or its Python.  (Containers allow this
# capability but refuse the smaller one, dac_read_search.)
_READS_ALL = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
_AS_OWNER = [*AS_OWNER, *_READS_ALL] if AS_OWNER else []

_CONFIGURATION = """
[server]
listen = ["pop3s://127.0.0.1:0"]
[store]
path = "{folder}/mail/%u"
quota = "{quota}"
[auth]
users = "{folder}/users.sqlite3"
[intake.lmtp]
listen = ["127.0.0.1:0"]
"""


@dataclass
class Shared:
    """Both servers, and their clients."""

    dovecot: Dovecot
    told: dict[str, str]

    @property
    def maildir(self) -> Path:
        return self.dovecot.maildir

    def port(self, scheme: str) -> int:
        return int(self.told[scheme].rpartition(":")[2])

    @contextmanager
    def pop3(self, user: str = USER) -> Iterator[poplib.POP3_SSL]:
        """Yield a session with our server, which is dropped unless QUIT was sent."""
        context = tls.client_context(Path(self.told["ca"]))
        client = poplib.POP3_SSL("localhost", self.port("pop3s"), context=context, timeout=20)
        try:
            client.user(user)
            client.pass_(self.dovecot.password)
            yield client
        finally:
            client.close()

    @contextmanager
    def imap(self) -> Iterator[imaplib.IMAP4_SSL]:
        """Yield a session with Dovecot, with INBOX selected."""
        context = tls.client_context(self.dovecot.ca)
        port = self.dovecot.ports["imaps"]
        client = imaplib.IMAP4_SSL("localhost", port, ssl_context=context, timeout=20)
        try:
            client.login(USER, self.dovecot.password)
            client.select("INBOX")
            yield client
        finally:
            client.logout()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run ``restante …`` for this maildrop."""
        return _restante(self.dovecot.folder, *arguments)

    def everywhere(self) -> list[bytes]:
        """Return every message file: in INBOX, in other IMAP folders, and held."""
        found = [*self.maildir.rglob("new/*"), *self.maildir.rglob("cur/*")]
        found += (self.maildir / "held").glob("*")
        return [path.read_bytes() for path in found]


def unique_ids(client: poplib.POP3) -> dict[bytes, bytes]:
    """Return the unique-ids in the order of message-numbers."""
    return dict(line.split(b" ") for line in client.uidl()[1])


def retrieve(client: poplib.POP3, number: int) -> bytes:
    return b"".join(line + b"\r\n" for line in client.retr(number)[1])


@contextmanager
def shared(messages: list[bytes], *, quota: str = "0", dovecot_too: str = "") -> Iterator[Shared]:
    """Run both servers on a maildrop with these messages; ``dovecot_too``: configuration."""
    with dovecot(messages, more=dovecot_too) as imap_server:
        folder = imap_server.folder
        text = _CONFIGURATION.format(folder=folder, quota=quota)
        (folder / "restante.toml").write_text(text)
        (folder / "password").write_text(imap_server.password)
        added = _restante(folder, "user", "add", USER, "--password-file", f"{folder}/password")
        assert added.returncode == 0, added.stderr
        serve = _command(folder, "--json", "serve")
        with running(*serve, environment=_environment(folder)) as process:
            assert process.stdout is not None
            yield Shared(imap_server, json.loads(process.stdout.readline()))


def _command(folder: Path, *arguments: str) -> list[str]:
    return [*_AS_OWNER, *RESTANTE, "-c", f"{folder}/restante.toml", *arguments]


def _environment(folder: Path) -> dict[str, str]:
    return {"STATE_DIRECTORY": str(folder / "state")}


def _restante(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return call(*_command(folder, *arguments), environment=_environment(folder))
