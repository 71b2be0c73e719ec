"""Check that the mail server can reach the LMTP listener, and that it accepts a recipient."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ... import sysexits
from ...errors import ProtocolBroken, RestanteError
from ...pop3.dialogue import Procedure
from ...posix import pwd
from ...server.address import Address
from .. import stores
from ..failures import describe
from ..privileges import is_root
from .files import user_name
from .findings import Finding, Subject, error, not_checked, ok
from .probing import Probe
from .server import addresses

if TYPE_CHECKING:
    from pwd import struct_passwd

_REACHED, _DENIED = 0, 13  # exit codes of the child process
_MAX_LINE = 1000  # octets of a reply line; RFC 5321 §4.5.3.1.5 allows 512
_MAX_LINES = 100
_REPLY = re.compile(rb"([2-5][0-9]{2})([ -])([^\r\n]*)\r\n")
_CONNECT = """
import socket, sys
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except PermissionError:
    sys.exit(13)
"""


# Rights


def lmtp_rights(subject: Subject) -> Iterator[Finding]:
    """Check that the mail server's user can connect to each LMTP socket."""
    paths = [Path(each.path) for _, each in addresses(subject, "lmtp") if each.path]
    if not paths:
        yield not_checked("there is no Unix socket in intake.lmtp.listen")
        return
    try:
        account = pwd.getpwnam(subject.mta)
    except KeyError:
        yield not_checked(f"this system has no user {subject.mta}; see --mta-user")
        return
    for path in paths:
        if not path.exists():
            yield not_checked(f"{path} does not exist; the server creates it")
        else:
            yield from _rights(path, account)


def _rights(path: Path, account: struct_passwd) -> Iterator[Finding]:
    obstacle = _obstacle(path, account)
    can_connect = _try(path, account) if is_root() else None  # the mode does not show ACLs
    if can_connect is None:
        can_connect = obstacle is None
    if can_connect:
        yield ok(f"the user {account.pw_name} can connect to {path}")
        return
    if obstacle is None:
        text = f"the user {account.pw_name} cannot connect to {path}"
        yield error(sysexits.EX_NOPERM, text, f"namei -l {path}")
        return
    found = obstacle.stat()
    mode, owner, group = stat.S_IMODE(found.st_mode), user_name(found.st_uid), _group(found.st_gid)
    verb = "connect to" if obstacle == path else "enter"
    text = f"the user {account.pw_name} cannot {verb} {obstacle} ({mode:o}, {owner}:{group})"
    yield error(sysexits.EX_NOPERM, text, _remedy(path, obstacle, account, found))


def _remedy(path: Path, obstacle: Path, account: struct_passwd, found: os.stat_result) -> str:
    needed = stat.S_IWGRP if obstacle == path else stat.S_IXGRP
    if found.st_mode & needed and found.st_gid:
        group = _group(found.st_gid)
        return f"usermod -aG {group} {account.pw_name}, then restart {account.pw_name}"
    return 'set listen = ["unix:/run/restante/lmtp.sock"] under [intake.lmtp]'


def _obstacle(path: Path, account: struct_passwd) -> Path | None:
    """Return the first directory, or the socket, whose mode keeps a user from connecting."""
    real = Path(os.path.realpath(path.parent)) / path.name
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    for each in (*reversed(real.parents), real):
        bit = stat.S_IWOTH if each == real else stat.S_IXOTH
        if not _allows(each.stat(), bit, account.pw_uid, groups):
            return each
    return None


def _allows(found: os.stat_result, bit: int, uid: int, groups: list[int]) -> bool:
    """Return whether a mode allows an access; ``bit`` is that of other users."""
    if uid == 0:
        return True
    if found.st_uid == uid:
        return bool(found.st_mode & bit << 6)
    if found.st_gid in groups:
        return bool(found.st_mode & bit << 3)
    return bool(found.st_mode & bit)


def _try(path: Path, account: struct_passwd) -> bool | None:
    """Connect in a child process of this user; None if the user cannot run Python."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CONNECT, str(path)],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=os.getgrouplist(account.pw_name, account.pw_gid),
            cwd="/",
            env={},
            capture_output=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {_REACHED: True, _DENIED: False}.get(done.returncode)


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


# Recipients


def lmtp(subject: Subject) -> Iterator[Finding]:
    """Check that each LMTP listener accepts the first user as a recipient."""
    listeners = [each for _, each in addresses(subject, "lmtp")]
    if not listeners:
        yield not_checked("mail is not received over LMTP (intake.lmtp.listen)")
        return
    recipient = _recipient(subject)
    for address in listeners:
        try:
            with Probe(address, subject.timeout) as probe:
                code, text = probe.perform(_ask(recipient))
        except (ConnectionRefusedError, FileNotFoundError):
            yield not_checked(f"{address}: the server is not running")
        except PermissionError:
            yield not_checked(f"{address}: only the server's user and root can connect")
        except TimeoutError:
            text = f"{address}: no answer within {subject.timeout:g} s"
            yield error(sysexits.EX_TEMPFAIL, text, f"ss -lp | grep {address.path or address.port}")
        except (OSError, RestanteError) as failure:
            text = f"{address} does not answer as an LMTP server: {describe(failure)}"
            yield error(sysexits.EX_UNAVAILABLE, text)
        else:
            yield _judge(address, recipient, code, text)


def _judge(address: Address, recipient: str, code: int, text: str) -> Finding:
    if not recipient:
        return not_checked(f"{address} answers, but there is no user to ask it about")
    if code // 100 == 2:
        return ok(f"{address} accepts mail for {recipient}")
    exit_code = sysexits.EX_TEMPFAIL if code // 100 == 4 else sysexits.EX_UNAVAILABLE
    refusal = f"{address} refuses mail for {recipient}: {code} {text}"
    return error(exit_code, refusal, f"restante user show {recipient.partition('@')[0]}")


def _recipient(subject: Subject) -> str:
    """Return the address of a user; empty if there are no users, or if they cannot be read."""
    try:
        names = [user.name for user in stores.users(subject.config).list()]
    except RestanteError:
        return ""
    name = subject.round_trip or next(iter(names), "")
    return address_of(name) if name else ""


def address_of(name: str) -> str:
    """Return a user's address; localhost is always a local domain (``backends.domains``)."""
    return name if "@" in name else f"{name}@localhost"


def _ask(recipient: str) -> Procedure[tuple[int, str]]:
    """Ask whether a recipient is accepted, without sending a message (RFC 2033)."""
    buffer = bytearray()
    yield from reply(buffer)
    code, text = 0, ""
    for command in ("LHLO localhost", "MAIL FROM:<>", f"RCPT TO:<{recipient}>", "RSET", "QUIT"):
        if command.startswith("RCPT") and not recipient:
            continue
        yield command.encode() + b"\r\n"
        answer = yield from reply(buffer)
        if command.startswith("RCPT"):
            code, text = answer
    return code, text


def reply(buffer: bytearray) -> Procedure[tuple[int, str]]:
    """Read one reply (RFC 5321 §4.2).

    Raises:
        ProtocolBroken: the server sends something else, or too much.
    """
    for _ in range(_MAX_LINES):
        while (end := buffer.find(b"\n")) < 0:
            if len(buffer) > _MAX_LINE:
                raise ProtocolBroken("a line of a reply is too long")
            buffer += yield None
        line = bytes(buffer[: end + 1])
        del buffer[: end + 1]
        match = _REPLY.fullmatch(line)
        if match is None or len(line) > _MAX_LINE:
            raise ProtocolBroken("a command was not answered with a reply code")
        if match[2] == b" ":
            return int(match[1]), match[3].decode("ascii", "replace")
    raise ProtocolBroken("a reply has too many lines")
