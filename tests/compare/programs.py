"""The collectors: how each is run, what it promises, and where it stores mail.

Each has its safest working configuration: with a list of unique-ids, without additional header
fields, and with a timeout of three seconds.
"""

from __future__ import annotations

import json
import mailbox
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from restante.testing_hostile import PASSWORD

USER = "ann"
PATIENCE = 3  # seconds of silence of a server, where configurable
DEADLINE = 5  # seconds for a session, where configurable
LARGEST = 2**20  # octets


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The options for a run of a program."""

    place: Path
    """Its home: configuration, lists of seen messages, and Mail."""
    port: int
    ca: Path
    keep: bool
    mbox: bool = False
    hasty: bool = False
    """A session has a deadline."""
    small: bool = False
    """Messages over LARGEST octets are not fetched."""
    scram: bool = False
    """The password must stay secret."""
    no_ids: bool = False
    """The server's unique-ids are useless."""
    no_top: bool = False
    """The server has no TOP."""
    asked: bool = False
    """The answer to questions about mail that looks new: fetch it and compare."""


@dataclass(frozen=True, slots=True)
class Program:
    """A collector."""

    name: str
    command: Callable[[Order], list[str]]
    options: str
    """The options it is run with, as shown in the report."""
    version: tuple[str, ...]
    """The command that prints the version."""
    has_scram: bool = False
    has_mbox: bool = True
    owner: str = ""
    """The user that root must run it as."""

    @property
    def is_here(self) -> bool:
        return self.name == "restante" or shutil.which(self.version[0]) is not None

    def installed_version(self) -> str:
        done = subprocess.run(self.version, capture_output=True, text=True, timeout=20)
        found = re.search(r"\d+\.\d[\w.]*", done.stdout)
        return found[0] if found else "unknown"


def _restante(order: Order) -> list[str]:
    target = f"mbox:{order.place}/Mail/box" if order.mbox else f"maildir:{order.place}/Mail"
    account: dict[str, object] = {
        "url": f"pop3s://localhost:{order.port}",
        "user": USER,
        "password": PASSWORD,
        "to": target,
        "ca_file": str(order.ca),
        "keep": "all" if order.keep else "none",
    }
    account |= {"deadline": f"{DEADLINE}s"} if order.hasty else {}
    account |= {"largest": f"{LARGEST}"} if order.small else {}
    lines = ["[account.one]", *(f"{key} = {json.dumps(value)}" for key, value in account.items())]
    again = ["--again", "dedupe"] if order.asked else []
    control = _written(order.place / "restante.toml", lines)
    return [sys.executable, "-m", "restante", "-c", control, "collect", *again, "one"]


def _mpop(order: Order) -> list[str]:
    lines = [
        "account default",
        "host localhost",
        f"port {order.port}",
        "tls on",
        "tls_starttls off",
        f"tls_trust_file {order.ca}",
        f"user {USER}",
        f'password "{PASSWORD}"',
        f"keep {'on' if order.keep else 'off'}",
        "only_new on",
        f"uidls_file {order.place}/uidls",
        "received_header off",
        f"timeout {PATIENCE}",
        f"delivery mbox {order.place}/Mail/box"
        if order.mbox
        else f"delivery maildir {order.place}/Mail",
        *(["skipsize 1m"] if order.small else []),
        *(["auth scram-sha-256"] if order.scram else []),
    ]
    return ["mpop", "--quiet", "--file", _written(order.place / "mpoprc", lines)]


def _getmail(order: Order) -> list[str]:
    kind = "BrokenUIDLPOP3SSL" if order.no_ids and not order.keep else "SimplePOP3SSL"
    lines = [
        "[retriever]",
        f"type = {kind}Retriever",
        "server = localhost",
        f"port = {order.port}",
        f"ca_certs = {order.ca}",
        f"username = {USER}",
        f"password = {PASSWORD}",
        f"timeout = {PATIENCE}",
        "[destination]",
        *(
            ["type = Mboxrd", f"path = {order.place}/Mail/box"]
            if order.mbox
            else ["type = Maildir", f"path = {order.place}/Mail/"]
        ),
        "[options]",
        "read_all = false",
        f"delete = {not order.keep}",
        "delivered_to = false",
        "received = false",
        *([f"max_message_size = {LARGEST}"] if order.small else []),
    ]
    control = _written(order.place / "getmailrc", lines)
    if order.mbox:
        (order.place / "Mail" / "box").touch()  # it does not create one
    return ["getmail", "--getmaildir", str(order.place), "--rcfile", control]


def _fetchmail(order: Order) -> list[str]:
    """fetchmail delivers to a shell command, which makes a file when ``cat`` has ended."""
    mail = f"{order.place}/Mail"
    script = _written(
        order.place / "deliver",
        [
            "set -e",
            f"file=$(mktemp {mail}/tmp/XXXXXXXXXXXX)",
            'cat > "$file"',
            'sync "$file"',
            f'mv "$file" {mail}/new/',
        ],
    )
    limit = f"limit {LARGEST} " if order.small else ""
    # It reads messages by TOP if possible, so that the server does not mark them as read.
    limit += "fetchall " if order.no_top and not order.keep else ""
    lines = [
        f"poll localhost protocol POP3 service {order.port} uidl timeout {PATIENCE} ",
        "bad-header accept ",  # otherwise it leaves malformed messages on the server
        f'user "{USER}" password "{PASSWORD}" ssl sslproto "TLS1.2+" ',
        f'sslcertck sslcertfile "{order.ca}" {limit}',
        f"{'keep' if order.keep else 'nokeep'} no rewrite mda 'sh {script}'",
    ]
    control = _written(order.place / "fetchmailrc", lines)
    files = ["--idfile", f"{order.place}/ids", "--pidfile", f"{order.place}/pid"]
    return ["fetchmail", "--silent", "--invisible", "-f", control, *files]


def _written(path: Path, lines: list[str]) -> str:
    """Write a private file; fetchmail and mpop refuse others."""
    path.touch(mode=0o600)
    path.write_text("\n".join([*lines, ""]))
    return str(path)


PROGRAMS = {
    each.name: each
    for each in (
        Program(
            "restante",
            _restante,
            '`keep = "all"` or `"none"`; also `deadline` and `largest` where a fault requires them',
            (sys.executable, "-m", "restante", "--version"),
            has_scram=True,
        ),
        Program(
            "mpop",
            _mpop,
            "`only_new on`, `uidls_file`, `timeout 3`, delivery to a Maildir or mbox; `skipsize`",
            ("mpop", "--version"),
            has_scram=True,
        ),
        Program(
            "getmail6",
            _getmail,
            "`read_all = false`, `timeout = 3`, Maildir or Mboxrd; `max_message_size`; the "
            "BrokenUIDL retriever if unique-ids are useless and mail is deleted. "
            "`to_oldmail_on_each_mail` is not used, because with it this version forgets all seen "
            "messages before the next run",
            ("getmail", "--version"),
            owner="nobody",  # it delivers nothing as root
        ),
        Program(
            "fetchmail",
            _fetchmail,
            "`uidl`, an `idfile`, `timeout 3`, `bad-header accept`; a shell script as `mda`, which "
            "syncs a file and moves it into a Maildir when the message is complete; `limit`",
            ("fetchmail", "--version"),
            has_mbox=False,
        ),
    )
}


def environment(place: Path) -> dict[str, str]:
    return os.environ | {
        "HOME": str(place),
        "FETCHMAILHOME": str(place),
        "STATE_DIRECTORY": str(place / "state"),
        "LC_ALL": "C",
    }


def stored(place: Path, *, mbox: bool = False) -> list[bytes]:
    """Return the messages that a mail reader would show."""
    mail = place / "Mail"
    if not mbox:
        return [path.read_bytes() for name in ("new", "cur") for path in (mail / name).iterdir()]
    if not (mail / "box").exists():
        return []
    box = mailbox.mbox(mail / "box", create=False)
    try:
        texts = [box.get_bytes(key) for key in box.keys()]  # noqa: SIM118 - not a dictionary
    finally:
        box.close()
    # mboxrd: one > is removed.
    return [re.sub(rb"^>(>*From )", rb"\1", text, flags=re.MULTILINE) for text in texts]
