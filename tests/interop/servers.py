"""Other POP3 servers, unpacked, with stunnel in front, since not all support TLS."""

from __future__ import annotations

import os
import poplib
import smtplib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from restante import tls

from .dovecot import await_port, free_ports
from .programs import Account, need
from .unpacked import MAIL, unpacked

USER, PASSWORD = "mrose", "tan staaf"
_USERS = f"""
echo '{USER}:x:{MAIL}:{MAIL}::/var/mail/home:/bin/sh' >> /etc/passwd
echo "{USER}:$(openssl passwd -6 '{PASSWORD}'):19000:0:99999:7:::" >> /etc/shadow
"""
_STUNNEL = """
foreground = yes
pid =
debug = err
[pop3s]
accept = 127.0.0.1:{port}
cert = {certificate}
key = {key}
{then}
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a server is started, and how mail is stored in it."""

    package: str
    """The directory in which it is unpacked."""
    then: str
    """The address to which stunnel connects."""
    prepare: str = ""
    """Shell commands that start it, run as root."""
    fill: Callable[[Path, Iterable[bytes]], None] | None = None
    """Stores mail in the folder that is /var/mail there; None: by LMTP."""
    rewrites: bool = False
    """Whether a session may add header fields to messages, under the same unique-ids."""


def _lines(message: bytes) -> bytes:
    """Return text as stored in a file."""
    return message.replace(b"\r\n", b"\n")


def _append(mail: Path, messages: Iterable[bytes]) -> None:
    mbox = mail / USER
    with mbox.open("ab") as file:
        for message in messages:
            file.write(b"From s@example.org Thu Jan  1 00:00:00 2026\n")
            file.write(_lines(message) + b"\n")
    os.chown(mbox, MAIL, MAIL)


def _into_maildir(mail: Path, messages: Iterable[bytes]) -> None:
    home = mail / "home"
    maildir = home / "Maildir"
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True, exist_ok=True)
    for message in messages:
        number = len(list(maildir.glob("???/*")))
        (maildir / "new" / f"{1_000_000 + number}.x.test").write_bytes(_lines(message))
    for path in (home, *home.rglob("*")):
        os.chown(path, MAIL, MAIL)


_POPA3D = """
echo 'popa3d:x:901:901::/:/bin/false' >> /etc/passwd
echo 'popa3d:x:901:' >> /etc/group
"""
_COURIER = """
echo 'courier:x:902:902::/:/bin/false' >> /etc/passwd
mkdir -p /run/courier/authdaemon
cp /etc/pam.d/other /etc/pam.d/pop3
/usr/lib/courier/courier-authlib/authdaemond &
set -a
. /etc/courier/pop3d
TCPLOCALIP=127.0.0.1 TCPLOCALPORT=110 TCPREMOTEIP=127.0.0.1 TCPREMOTEPORT=4000
set +a
"""
_CYRUS = """
echo 'cyrus:x:903:8::/:/bin/sh' >> /etc/passwd
cat > /etc/imapd.conf <<'END'
configdirectory: /var/lib/cyrus
defaultpartition: default
partition-default: /var/spool/cyrus/mail
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_mech_list: PLAIN
allowplaintext: yes
unixhierarchysep: yes
autocreate_quota: 0
autocreate_post: yes
END
cat > /etc/cyrus.conf <<'END'
START {{
  recover cmd="/usr/lib/cyrus/bin/ctl_cyrusdb -r"
}}
SERVICES {{
  pop3 cmd="/usr/lib/cyrus/bin/pop3d" listen="127.0.0.1:{inner}" prefork=0
  lmtp cmd="/usr/lib/cyrus/bin/lmtpd -a" listen="127.0.0.1:{lmtp}" prefork=0
}}
END
echo '{password}' | saslpasswd2 -p -c {user}
mkdir -p /var/lib/cyrus /var/spool/cyrus/mail /run/cyrus
chown cyrus:mail /etc/sasldb2 /run/cyrus /var/lib/cyrus /var/spool/cyrus /var/spool/cyrus/mail
/usr/lib/cyrus/bin/makedirs
chown -R cyrus:mail /var/lib/cyrus /var/spool/cyrus
/usr/lib/cyrus/bin/master -C /etc/imapd.conf -M /etc/cyrus.conf &
"""

SERVERS = {
    "mailutils": Kind(
        "peers", "exec = /usr/sbin/pop3d\nexecArgs = pop3d -i", fill=_append, rewrites=True
    ),
    "popa3d": Kind("peers", "exec = /usr/sbin/popa3d", _POPA3D, fill=_append),
    "courier": Kind(
        "courier",
        "exec = /usr/lib/courier/courier/courierpop3login\n"
        "execArgs = courierpop3login /usr/lib/courier/courier/courierpop3d Maildir",
        _COURIER,
        _into_maildir,
    ),
    "cyrus": Kind("peers", "connect = 127.0.0.1:{inner}", _CYRUS),
}


@dataclass
class Foreign:
    """A running server."""

    account: Account
    put: Callable[[Iterable[bytes]], None]

    def listing(self) -> list[str]:
        """Return the sizes and unique-ids that a client gets."""
        context = tls.client_context(self.account.ca)
        pop3 = poplib.POP3_SSL("localhost", self.account.port, context=context, timeout=20)
        with closing(pop3):
            pop3.user(USER)
            pop3.pass_(PASSWORD)
            listed = pop3.list()[1]
            pop3.quit()
            return [line.decode() for line in listed]


@contextmanager
def foreign(name: str, folder: Path) -> Iterator[Foreign]:
    kind = SERVERS[name]
    port, inner, lmtp = free_ports(3)
    certificate, key = tls.make_self_signed(folder / "tls", ["localhost"])
    names = {"user": USER, "password": PASSWORD, "inner": inner, "lmtp": lmtp, "folder": folder}
    then = kind.then.format(**names)
    text = _STUNNEL.format(port=port, certificate=certificate, key=key, then=then)
    (folder / "stunnel.conf").write_text(text)
    need("stunnel")
    script = _USERS + kind.prepare.format(**names) + f"exec stunnel {folder}/stunnel.conf\n"
    with unpacked(kind.package, folder, script):
        for each in (port, inner, lmtp) if kind.fill is None else (port,):
            await_port(each)

        def put(messages: Iterable[bytes]) -> None:
            if kind.fill is not None:
                kind.fill(folder / "mail", messages)
                return
            with smtplib.LMTP("127.0.0.1", lmtp) as client:
                for message in messages:
                    assert client.sendmail("s@example.org", [USER], message) == {}

        yield Foreign(Account(port, certificate, USER, PASSWORD), put)
