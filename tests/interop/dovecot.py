"""Debian's Dovecot with its own configuration in a temporary folder."""

from __future__ import annotations

import grp
import os
import pwd
import signal
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from restante import tls

from .programs import Account, need, running

USER = "mrose"
_OWNER = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
_UID, _GID = pwd.getpwnam(_OWNER)[2:4]
_PATIENCE = 10.0  # seconds

AS_OWNER = ["setpriv", f"--reuid={_UID}", f"--regid={_GID}", "--clear-groups"] * (os.geteuid() == 0)
"""Dovecot serves no mail to root, so under root it and programs sharing its mail use this user."""

_CONFIGURATION = """
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
protocols = pop3 imap
listen = 127.0.0.1
default_internal_user = {owner}
default_internal_group = {group}
default_login_user = {owner}
first_valid_uid = 1
ssl = yes
ssl_cert = <{folder}/certificate.pem
ssl_key = <{folder}/key.pem
disable_plaintext_auth = yes
auth_failure_delay = 0
mail_location = maildir:~
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
userdb {{
  driver = passwd-file
  args = {folder}/users
}}
service anvil {{
  chroot =
  # Or it makes us wait for the failed logins of the tests before.
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service pop3-login {{
  chroot =
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = {pop3s}
  }}
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = 0
  }}
  inet_listener imaps {{
    port = {imaps}
  }}
}}
"""


@dataclass
class Dovecot:
    """A running server with one user and Maildir."""

    folder: Path
    ports: dict[str, int]
    password: str

    @property
    def maildir(self) -> Path:
        return self.folder / "mail" / USER

    @property
    def ca(self) -> Path:
        return self.folder / "certificate.pem"

    def account(self, scheme: str, *, keep: bool = False) -> Account:
        return Account(self.ports[scheme], self.ca, USER, self.password, scheme == "pop3s", keep)

    def fill(self, messages: Iterable[bytes]) -> None:
        """Add messages, stored as they are, in this order."""
        for number, message in enumerate(messages, 1):
            (self.maildir / "new" / f"{number}.M{time.time_ns()}.test").write_bytes(message)
        _give_away(self.maildir)

    def stored(self) -> list[bytes]:
        """Return the octets of every message, oldest first."""
        while True:
            found = [*(self.maildir / "new").iterdir(), *(self.maildir / "cur").iterdir()]
            in_order = sorted(found, key=lambda path: int(path.name.partition(".")[0]))
            # A session that has lost its client still moves messages from new/ to cur/.
            with suppress(FileNotFoundError):
                return [path.read_bytes() for path in in_order]


@contextmanager
def dovecot(
    messages: Iterable[bytes] = (),
    password: str = "tan staaf",
    *,
    more: str = "",
    fields: str = "",
) -> Iterator[Dovecot]:
    """Run Dovecot with these messages; ``more``: additional configuration; ``fields``: additional
    ones of the user in passwd-file."""
    program = need("dovecot")
    # Not below pytest's folders, which are for one user only.
    with tempfile.TemporaryDirectory(prefix="dovecot-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for made in ("run", "state", *(f"mail/{USER}/{name}" for name in ("cur", "new", "tmp"))):
            (folder / made).mkdir(parents=True)
        certificate, key = tls.make_self_signed(folder / "tls", ["localhost"])
        certificate.rename(folder / "certificate.pem")
        key.rename(folder / "key.pem")
        ports = dict(zip(("pop3", "pop3s", "imaps"), free_ports(3), strict=True))
        names = {"owner": _OWNER, "group": grp.getgrgid(_GID).gr_name}
        text = _CONFIGURATION.format(folder=folder, **names, **ports)
        (folder / "dovecot.conf").write_text(text + more)
        home = folder / "mail" / USER
        (folder / "users").write_text(
            f"{USER}:{{PLAIN}}{password}:{_UID}:{_GID}::{home}::{fields}\n"
        )
        _give_away(folder)
        server = Dovecot(folder, ports, password)
        server.fill(messages)
        start = (*AS_OWNER, program, "-F", "-c", f"{folder}/dovecot.conf")
        with running(*start, last_signal=signal.SIGKILL):
            for port in ports.values():
                await_port(port)
            yield server


def free_ports(count: int) -> list[int]:
    """Choose free ports, as Dovecot cannot; they are not reused soon."""
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in opened]
    for each in opened:
        each.close()
    return ports


def await_port(port: int) -> None:
    """Wait until a newly started server listens there."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            with closing(socket.create_connection(("127.0.0.1", port))):
                return
        except ConnectionRefusedError:
            assert time.monotonic() < until, f"nothing listens on {port}"
            time.sleep(0.02)


def _give_away(folder: Path) -> None:
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, _UID, _GID)
