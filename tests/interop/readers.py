"""Other mail readers and libraries: each fetches all mail and deletes message 1.

Each is a function.  Unless stated otherwise it uses the defaults of the program, which trusts only
the given certificate.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..cli import screen
from .clients import Rewrite, line_ends, nothing
from .programs import Account, call, differences, missing, need

_SCRIPTS = Path(__file__).parent / "libraries"
_PACKAGES = Path(__file__).parents[2] / "build/readers"  # of npm, by .ci/run


class Fetched(NamedTuple):
    """The result of one program in one session, in order."""

    messages: list[bytes]
    sizes: list[int] | None = None
    """The listing, if the program shows it."""


Read = Callable[[Account, str, Path], Fetched]
"""Called with the account, "tls", "stls" or "clear", and a folder for files."""


def mutt(account: Account, security: str, folder: Path) -> Fetched:
    return _mutt("mutt", account, security, folder)


def neomutt(account: Account, security: str, folder: Path) -> Fetched:
    return _mutt("neomutt", account, security, folder)


def _mutt(name: str, account: Account, security: str, folder: Path) -> Fetched:
    """mutt uses STLS if possible, so it must be disabled for plaintext."""
    inbox = folder / "inbox"
    lines = [
        f'set certificate_file="{account.ca}" folder="{folder}"',
        f'set pop_user="{account.user}" pop_pass="{account.password}"',
        "set mbox_type=Maildir confirmcreate=no confirmappend=no delete=yes quit=yes",
        f'push "<tag-pattern>~A<enter><tag-prefix><copy-message>{inbox}<enter>'
        '<untag-pattern>~A<enter><first-entry><delete-message><quit>"',
    ]
    if security == "clear":
        lines.append("set ssl_force_tls=no ssl_starttls=no")
    control = folder / "muttrc"
    control.write_text("\n".join(lines) + "\n")
    scheme = "pops" if security == "tls" else "pop"
    url = f"{scheme}://localhost:{account.port}"
    home = {"HOME": str(folder), "TERM": "xterm"}
    with screen.program([need(name), "-n", "-F", str(control), "-f", url], environment=home) as at:
        assert at.wait() == 0, at.shown
    return Fetched([path.read_bytes() for path in inbox.glob("???/*")])


def alpine(account: Account, security: str, folder: Path) -> Fetched:
    """alpine cannot be given a certificate, so verification is disabled."""
    inbox = folder / "inbox"
    inbox.touch()  # otherwise it asks first
    (folder / "mail").mkdir()
    flags = {"tls": "ssl/novalidate-cert", "stls": "tls/novalidate-cert", "clear": "notls"}
    control = folder / "pinerc"
    control.write_text(
        f"inbox-path={{localhost:{account.port}/pop3/{flags[security]}/user={account.user}}}inbox\n"
        "feature-list=quit-without-confirm,expunge-without-confirm,"
        "disable-password-file-saving,disable-password-caching\n"
        # Otherwise it begins with questions and news.
        "last-version-used=9.99\nuser-domain=example.org\n"
    )
    command = [need("alpine"), "-p", str(control), "-i"]
    home = {"HOME": str(folder), "TERM": "vt100"}
    with screen.program(command, columns=120, environment=home) as at:
        for shown, keys in [
            ("ENTER PASSWORD", f"{account.password}\r"),
            (r"opened with \d+ messages", ";"),
            ("SELECT criteria", "a"),
            ("messages selected", "a"),
            ("APPLY command", "s"),
            ("SAVE ", "\x12"),  # without deleting them
            (r"SAVE \(no delete\)", f"{inbox}\r"),
            (r"messages saved|Saving.*DONE", "d"),
            ("marked for deletion", "q"),
        ]:
            at.expect(shown)
            at.settle(0.3)  # it discards keys pressed before a prompt is complete
            at.press(keys)
        assert at.wait() == 0, at.shown
    return Fetched(list(_letters(inbox)))


def s_nail(account: Account, security: str, folder: Path) -> Fetched:
    scheme = "pop3s" if security == "tls" else "pop3"
    settings = ["v15-compat", f"tls-ca-file={account.ca}", f"password={account.password}"]
    settings += ["pop3-use-starttls"] * (security == "stls")
    options = [f"-S{each}" for each in settings]
    url = f"{scheme}://{account.user}@localhost:{account.port}"
    return _mailx([need("s-nail"), "-:/", "-#", *options, "-f", url], folder)


def mailutils(account: Account, security: str, folder: Path) -> Fetched:
    """mailutils uses STLS if it is offered."""
    return _mailx(
        [need("mail.mailutils"), "--norc", "-f", _mailutils_url(account, security)], folder
    )


def movemail(account: Account, security: str, folder: Path) -> Fetched:
    """movemail deletes all messages or none: here none."""
    inbox = folder / "inbox"
    url = _mailutils_url(account, security)
    home = {"HOME": str(folder)}
    done = call(need("movemail.mailutils"), "--preserve", url, inbox, environment=home)
    assert done.returncode == 0, done.stderr
    return Fetched(list(_letters(inbox)))


def _mailutils_url(account: Account, security: str) -> str:
    scheme = "pops" if security == "tls" else "pop"
    return f"{scheme}://{account.user}:{quote(account.password)}@localhost:{account.port}"


def _mailx(command: list[str], folder: Path) -> Fetched:
    """Run a program with the commands of mailx."""
    inbox = folder / "inbox"
    home = {"HOME": str(folder)}
    done = call(*command, stdin=f"copy * {inbox}\ndelete 1\nquit\n".encode(), environment=home)
    assert done.returncode == 0, done.stderr
    return Fetched(list(_letters(inbox)))


def _letters(mbox: Path) -> Iterator[bytes]:
    """Return the messages of a file, in which lines that begin with From may be unquoted."""
    separator = re.compile(rb"^From \S+ +\w{3} \w{3} .*\n", re.MULTILINE)
    yield from separator.split(mbox.read_bytes())[1:]


def _library(program: str | Path, *script: str | Path) -> Read:
    """Run a script that prints numbers and sizes, and writes each message to a file."""

    def read(account: Account, security: str, folder: Path) -> Fetched:
        inbox = folder / "inbox"
        inbox.mkdir()
        login = (account.ca, account.user, account.password)
        command = (need(str(program)), *script, security, str(account.port), *login, inbox)
        # This is the only way to give certificates to PHP.
        done = call(*command, environment={"SSL_CERT_FILE": str(account.ca)})
        assert done.returncode == 0, done.stderr
        listing = [line.split() for line in done.stdout.decode().splitlines()]
        messages = [(inbox / number).read_bytes() for number, _ in listing]
        return Fetched(messages, [int(size) for _, size in listing])

    return read


def _npm(name: str) -> Read:
    def read(account: Account, security: str, folder: Path) -> Fetched:
        if not (_PACKAGES / "node_modules").is_dir():
            missing("the packages of npm are not in build/readers, as .ci/run puts them there")
        # A module looks for others relative to its own path.
        script = shutil.copy(_SCRIPTS / f"{name}.mjs", _PACKAGES)
        return _library("node", script)(account, security, folder)

    return read


# -- Changes by programs


def stuffed(messages: Iterable[bytes]) -> list[bytes]:
    """The npm libraries keep doubled dots, and omit the last line end."""
    return [re.sub(rb"^\.", b"..", each, flags=re.MULTILINE)[:-2] for each in messages]


def as_files(messages: Iterable[bytes]) -> list[bytes]:
    """Undo usual changes in files: fields of the program, quoted "From ", and blank lines at the
    end."""
    fields = re.compile(
        rb"^(?:Status|X-Status|X-Keywords|X-UID|X-UIDL|X-IMAPbase|Content-Length|Lines):.*\n",
        re.MULTILINE,
    )
    parts = [each.partition(b"\n\n") for each in line_ends(messages)]
    bodies = [re.sub(rb"^>+From ", b"From ", body, flags=re.MULTILINE) for _, _, body in parts]
    heads = [fields.sub(b"", head + b"\n") for head, _, _ in parts]
    return [(head + b"\n" + body).rstrip(b"\n") for head, body in zip(heads, bodies, strict=True)]


@dataclass(frozen=True, slots=True)
class Reader:
    """A program and its properties."""

    read: Read
    securities: tuple[str, ...] = ("tls", "stls", "clear")
    """The modes that its version in Debian 12 supports."""
    rewrite: Rewrite = nothing
    """Returns the expected form of sent messages."""
    ignore: Rewrite = nothing
    """Removes changes of the program from sent and received messages."""
    deletes: bool = True
    """Can delete a single message."""

    def differences(self, fetched: Iterable[bytes], sent: Iterable[bytes]) -> list[str]:
        """Return differences between received and expected messages."""
        return differences(self.ignore(fetched), self.ignore(self.rewrite(sent)))


READERS = {
    "mutt": Reader(mutt, ignore=as_files),
    "neomutt": Reader(neomutt, ignore=as_files),
    "alpine": Reader(alpine, ignore=as_files),
    "s-nail": Reader(s_nail, ignore=as_files),
    "mailutils": Reader(mailutils, ("tls", "stls"), ignore=as_files),
    "movemail": Reader(movemail, ("tls", "stls"), ignore=as_files, deletes=False),
    # With STLS it supports only TLS 1.0.
    "php-imap": Reader(_library("php", _SCRIPTS / "imap.php"), ("tls", "clear")),
    "Net::POP3": Reader(_library("perl", _SCRIPTS / "net_pop3.pl"), ignore=line_ends),
    "net/pop": Reader(_library("ruby", _SCRIPTS / "net_pop.rb"), ("tls", "clear")),
    "node-pop3": Reader(_npm("node_pop3"), ("tls", "clear"), stuffed),
    "yapople": Reader(_npm("yapople"), ("tls", "clear"), stuffed),
    "Twisted": Reader(
        _library(sys.executable, _SCRIPTS / "twisted_pop3.py"), ("tls", "stls"), nothing
    ),
}
