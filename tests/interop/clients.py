"""Real POP3 clients, and ours: how each is run, and how it changes messages.

Each client is a function.  Another small function makes the same changes to the sent octets:
nothing else may differ.
"""

from __future__ import annotations

import json
import poplib
import re
import ssl
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .programs import RESTANTE, Account, call, differences, need


class Client(Protocol):
    """Fetches all mail; each account has one ``folder`` for all calls.

    Returns the exit status, and the messages downloaded by this call in any order.
    """

    def __call__(self, account: Account, folder: Path) -> tuple[int, list[bytes]]: ...


def curl(account: Account, folder: Path) -> tuple[int, list[bytes]]:
    """curl keeps raw octets, uses no unique-ids, and deletes only by command."""
    scheme = "pop3s" if account.implicit else "pop3"
    url = f"{scheme}://localhost:{account.port}/"
    options = ["-sS", "--ssl-reqd", "--cacert", str(account.ca)]
    options += ["--user", f"{account.user}:{account.password}"]
    listed = call(need("curl"), *options, url)
    count = len(listed.stdout.splitlines())
    if listed.returncode or not count:
        return listed.returncode, []
    inbox = _fresh(folder)
    status = call(need("curl"), *options, f"{url}[1-{count}]", "-o", inbox / "#1").returncode
    if status == 0 and not account.keep:
        # One session, which curl ends with QUIT; --head: the response has no lines.
        delete = ("--head", "--request", "DELE")
        status = call(need("curl"), *options, *delete, f"{url}[1-{count}]").returncode
    return status, _taken(inbox)


def python_poplib(account: Account, folder: Path) -> tuple[int, list[bytes]]:
    """poplib returns lines without ends; it raises if the login is refused, which is 77 here."""
    vars(poplib)["_MAXLINE"] = 2**20  # otherwise it refuses lines over 2048 octets
    context = ssl.create_default_context(cafile=account.ca)
    server: poplib.POP3
    if account.implicit:
        server = poplib.POP3_SSL("localhost", account.port, context=context)
    else:
        server = poplib.POP3("localhost", account.port)
        server.stls(context)
    fetched = []
    with closing(server):
        server.user(account.user)
        try:
            server.pass_(account.password)
        except poplib.error_proto:
            return 77, []
        for number in range(1, server.stat()[0] + 1):
            lines = server.retr(number)[1]
            fetched.append(b"".join(line + b"\r\n" for line in lines))
            if not account.keep:
                server.dele(number)
        server.quit()
    return 0, fetched


def fetchmail(account: Account, folder: Path) -> tuple[int, list[bytes]]:
    """fetchmail delivers to a shell command that makes a file; status 1 means no mail."""
    inbox = _fresh(folder)
    # Neither option would be opportunistic; with sslcertck a server without STLS is refused.
    security = "ssl" if account.implicit else "sslproto TLS1.2+"
    control = folder / "fetchmailrc"
    _write(
        control,
        f"poll localhost protocol POP3 service {account.port} uidl "
        "bad-header accept "  # otherwise it leaves malformed messages on the server
        f'user "{account.user}" password "{account.password}" '
        f'{security} sslcertck sslcertfile "{account.ca}" '
        f"{'keep' if account.keep else 'nokeep'} "
        "no rewrite "  # otherwise it completes addresses
        f"mda '{_into(inbox)}'\n",
    )
    home = {"FETCHMAILHOME": str(folder), "HOME": str(folder)}
    # Without --invisible it would add a Received field.
    ended = call(
        need("fetchmail"),
        "--invisible",
        "--pidfile",
        folder / "pid",
        "-f",
        control,
        environment=home,
    )
    return 0 if ended.returncode == 1 else ended.returncode, _taken(inbox)


def getmail(account: Account, folder: Path) -> tuple[int, list[bytes]]:
    """getmail supports only TLS from the first octet."""
    inbox = _fresh(folder)
    control = folder / "getmailrc"
    # Its own Maildir delivery refuses to work for root, which CI is.
    _write(
        control,
        "[retriever]\ntype = SimplePOP3SSLRetriever\n"
        f"server = localhost\nport = {account.port}\nca_certs = {account.ca}\n"
        f"username = {account.user}\npassword = {account.password}\n"
        "[destination]\ntype = MDA_external\npath = /bin/sh\n"
        f'arguments = ("-c", "{_AWAITED}; {_into(inbox)}")\nallow_root_commands = true\n'
        f"[options]\ndelete = {not account.keep}\nread_all = false\n"
        # Otherwise it adds its own fields.
        "delivered_to = false\nreceived = false\n",
    )
    ended = call(need("getmail"), "--getmaildir", folder, "--rcfile", control)
    return ended.returncode, _taken(inbox)


# getmail begins to wait for the end of a child after it has started it.  If the child was quicker
# it waits for a minute and gives up, so ours first sees it asleep, with a handler for SIGCHLD.
_AWAITED = (
    "until [ $(grep -cE '^State:.S|^SigCgt:.*[13579bdf]....$' /proc/$PPID/status) = 2 ]; do :; done"
)


def mpop(account: Account, folder: Path) -> tuple[int, list[bytes]]:
    """mpop delivers into a Maildir, with pipelining."""
    inbox = _fresh(folder)
    for name in ("cur", "new", "tmp"):
        (inbox / name).mkdir()
    control = folder / "mpoprc"
    _write(
        control,
        f"account default\nhost localhost\nport {account.port}\n"
        f"tls on\ntls_starttls {'off' if account.implicit else 'on'}\n"
        f"tls_trust_file {account.ca}\n"
        f"user {account.user}\npassword {account.password}\n"
        f"keep {'on' if account.keep else 'off'}\nuidls_file {folder}/uidls\n"
        # Otherwise it adds its own field.
        f"delivery maildir {inbox}\nreceived_header off\n",
    )
    ended = call(need("mpop"), "--quiet", "--file", control)
    return ended.returncode, _taken(inbox / "new")


def restante_fetch(account: Account, folder: Path) -> tuple[int, list[bytes]]:
    """Our command, into a directory, which keeps every octet."""
    inbox = _fresh(folder)
    scheme = "pop3s" if account.implicit else "pop3"
    url = f"{scheme}://{account.user}@localhost:{account.port}"
    options = ["--to", str(inbox), "--ca-file", str(account.ca), *["--keep"] * account.keep]
    secret = {"RESTANTE_PASSWORD": account.password}
    ended = call(*RESTANTE, "fetch", url, *options, environment=secret)
    return ended.returncode, _taken(inbox)


def restante_collect(account: Account, folder: Path) -> tuple[int, list[bytes]]:
    """Our collector, into a directory per call and a ledger for all of them."""
    inbox = _fresh(folder)
    control = folder / "restante.toml"
    scheme = "pop3s" if account.implicit else "pop3"
    _write(
        control,
        "[account.real]\n"
        f'url = "{scheme}://localhost:{account.port}"\nca_file = "{account.ca}"\n'
        f'user = "{account.user}"\npassword = "{account.password}"\n'
        f'keep = "{"all" if account.keep else "none"}"\nto = "{inbox}"\n',
    )
    state = {"STATE_DIRECTORY": str(folder / "state")}
    ended = call(*RESTANTE, "-c", control, "collect", "real", environment=state)
    return ended.returncode, _taken(inbox)


# -- Changes by clients

Rewrite = Callable[[Iterable[bytes]], list[bytes]]


def nothing(messages: Iterable[bytes]) -> list[bytes]:
    return list(messages)


def line_ends(messages: Iterable[bytes]) -> list[bytes]:
    """Unix programs store mail with LF."""
    return [message.replace(b"\r\n", b"\n") for message in messages]


def stripped_lines(messages: Iterable[bytes]) -> list[bytes]:
    """fetchmail removes CRs before CRLF too, and adds a blank line to a header without body."""
    stripped = (re.sub(rb"\r+\n", b"\n", message) for message in messages)
    return [text if b"\n\n" in text else text + b"\n" for text in stripped]


def until_a_long_line(messages: Iterable[bytes]) -> list[bytes]:
    """fetchmail writes garbage into lines of more than 8191 octets."""
    return [re.split(rb"(?<=[^\n]{8000})", message)[0] for message in messages]


def rewritten_by_python(messages: Iterable[bytes]) -> list[bytes]:
    """getmail parses and writes messages with the email package of its Python.

    That package refolds fields, rewrites boundaries and drops malformed parts.
    """
    script = "import email, json, sys; json.dump([email.message_from_bytes(message.encode("
    script += "'latin-1')).as_bytes().decode('latin-1') for message in json.load(sys.stdin)],"
    script += " sys.stdout)"
    texts = [message.decode("latin-1") for message in line_ends(messages)]
    done = call("/usr/bin/python3", "-c", script, stdin=json.dumps(texts).encode())
    return [text.encode("latin-1") for text in json.loads(done.stdout)]


def without_return_path(messages: Iterable[bytes]) -> list[bytes]:
    """getmail leaves exactly one Return-Path field."""
    field = re.compile(rb"^return-path:.*\n(?:[ \t].*\n)*", re.IGNORECASE | re.MULTILINE)
    parts = [message.partition(b"\n\n") for message in messages]
    return [field.sub(b"", head + blank) + body for head, blank, body in parts]


@dataclass(frozen=True, slots=True)
class Dialect:
    """A client and its properties."""

    fetch: Client
    login_refused: int
    """Its exit status for a wrong password."""
    rewrite: Rewrite = nothing
    """Returns the expected form of sent messages."""
    ignore: Rewrite = nothing
    """Removes unpredictable parts from sent and received messages."""
    has_stls: bool = True
    remembers: bool = False
    """Recognises fetched messages by unique-id."""
    long_lines: bool = True
    """Accepts lines of any length."""

    def differences(self, fetched: Iterable[bytes], sent: Iterable[bytes]) -> list[str]:
        """Return differences between received and expected messages."""
        return differences(self.ignore(fetched), self.ignore(self.rewrite(sent)))


CLIENTS = {
    "curl": Dialect(curl, 67),
    "poplib": Dialect(python_poplib, 77),
    "fetchmail": Dialect(
        fetchmail, 3, stripped_lines, until_a_long_line, remembers=True, long_lines=False
    ),
    "getmail": Dialect(
        getmail, 127, rewritten_by_python, without_return_path, has_stls=False, remembers=True
    ),
    "mpop": Dialect(mpop, 77, line_ends, remembers=True),
    "fetch": Dialect(restante_fetch, 77),
    "collect": Dialect(restante_collect, 77, remembers=True),
}


def _fresh(folder: Path) -> Path:
    """Return an empty folder for the next call."""
    folder.mkdir(exist_ok=True)
    inbox = folder / f"inbox-{len(list(folder.iterdir()))}"
    inbox.mkdir()
    return inbox


def _into(inbox: Path) -> str:
    """Return a shell command, without quotes, that writes its input to a file."""
    return f"exec cat > {inbox}/$$"


def _taken(inbox: Path) -> list[bytes]:
    return [path.read_bytes() for path in inbox.iterdir()]


def _write(path: Path, text: str) -> None:
    """Write a private file; fetchmail and mpop refuse others."""
    path.touch(mode=0o600)
    path.write_text(text)
