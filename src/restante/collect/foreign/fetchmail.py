"""fetchmail: one file in a language of its own, and ``.fetchids`` with what was seen."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from ...errors import PermanentFailure
from . import Foreign, home, lines, octets, text

_TOKEN = re.compile(
    r"""\#[^\n]* | "((?:\\.|[^"\\])*)" | '((?:\\.|[^'\\])*)' | ([^\s:;,\#"'=]+)""",
    re.DOTALL | re.VERBOSE,
)
_NOISE = {"and", "with", "has", "wants", "options"}
# Those that we do not know but must not take for others, with how many words follow.
_ARGUMENTS = {
    "interval": 1, "timeout": 1, "envelope": 1, "qvirtual": 1, "auth": 1, "preauth": 1,
    "authenticate": 1, "interface": 1, "monitor": 1, "plugin": 1, "plugout": 1, "principal": 1,
    "esmtpname": 1, "esmtppassword": 1, "bad-header": 1, "aka": 1, "localdomains": 1,
    "folder": 1, "folders": 1, "smtphosts": 1, "fetchdomains": 1, "smtpaddress": 1,
    "antispam": 1, "spamresponse": 1, "warnings": 1, "batchlimit": 1, "fetchlimit": 1,
    "fetchsizelimit": 1, "fastuidl": 1, "expunge": 1, "preconnect": 1, "postconnect": 1,
    "bsmtp": 1, "properties": 1, "sslcert": 1, "sslkey": 1, "sslproto": 1, "sslcertpath": 1,
    "sslcommonname": 1, "sslfingerprint": 1, "retrieve-error": 1,
}  # fmt: skip


def fetchmail(path: Path, seen: Path | None = None) -> list[Foreign]:
    """
    Raises:
        PermanentFailure: no POP3 server in it.
        OSError: it cannot be read.
    """
    parser = _Parser(text(path))
    ids = seen or Path(home(parser.settings.get("idfile", str(path.with_name(".fetchids")))))
    listed = [line.partition(" ") for line in lines(ids)]
    found = []
    for server in parser.rows:
        protocol = server.get("protocol", "auto").lower()
        if protocol not in ("pop3", "auto"):
            continue
        account = _account(server)
        hosts = {server["poll"].lower(), account.host.lower()}
        account.seen_file = ids
        for whose, _, unique_id in listed:
            user, _, host = whose.rpartition("@")
            if user == account.user and host.lower() in hosts:
                account.seen.append(unique_id)
        found.append(account)
    if not found:
        raise PermanentFailure(f"{path}: no POP3 server of fetchmail")
    names = [each.name for each in found]
    for each in found:
        if names.count(each.name) > 1:
            each.name = f"{each.name}-{re.sub('[^A-Za-z0-9_-]', '-', each.user)}"
    return found


def _account(given: Row) -> Foreign:
    port = given.get("service", "")
    local = given.get("local", given.get("is", ""))
    found = Foreign(
        re.sub("[^A-Za-z0-9_-]", "-", given["poll"]),
        host=given.get("via", given["poll"]),
        port=int(port) if port.isdecimal() else None,
        is_implicit=given.get("ssl") == "yes" or port == "pop3s",
        user=given.get("username", local),
        password=given.get("password", ""),
        keep="all" if given.get("keep") == "yes" else "none",
        largest=octets(given.get("limit", "")),
        ca_file=home(given.get("sslcertfile", "")),
    )
    mda = given.get("mda", "")
    if mda and "%" not in mda:
        found.to = f"command:{shlex.join(['/bin/sh', '-c', mda])}"
    elif mda:
        found.notes.append("its mda takes addresses of the envelope, which are not known here")
    else:
        host, _, number = given.get("smtphost", "localhost").partition("/")
        found.to = f"smtp:{host}:{number or 25}"
        found.recipient = local if "@" in local else f"{local or found.user}@localhost"
    if not found.password:
        found.notes.append("its password is not there (perhaps in ~/.netrc)")
    return found


def _tokens(rc: str) -> Iterator[str]:
    for match in _TOKEN.finditer(rc):
        if match[0].startswith("#"):
            continue
        quoted = next((each for each in (match[1], match[2]) if each is not None), None)
        if quoted is not None:
            yield '"' + re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
        elif match[3].lower() not in _NOISE:
            yield match[3]


_ALIASES = {"proto": "protocol", "user": "username", "pass": "password", "port": "service"}
_ALIASES |= {"to": "is", "server": "poll", "skip": "poll"}
_OF_A_USER = {"username", "password", "is", "local", "keep", "ssl", "sslcertfile", "mda"}
_OF_A_USER |= {"smtphost", "limit"}
_VALUES = {"protocol", "password", "service", "via", "mda", "smtphost", "limit"}
_VALUES |= {"sslcertfile", "is"}
_FLAGS = {"ssl": ("ssl", "yes"), "keep": ("keep", "yes"), "nokeep": ("keep", "no")}
_TURNED = {"keep": ("keep", "no"), "ssl": ("ssl", "no")}  # behind "no"

Row = dict[str, str]


class _Parser:
    """``rows`` has one for each user of each server, with the defaults filled in."""

    def __init__(self, rc: str) -> None:
        self.settings: Row = {}
        self.rows: list[Row] = []
        self._defaults: Row = {}
        self._server = self._row = self._defaults
        self._words = iter(list(_tokens(rc)))
        for word in self._words:
            self._take(_ALIASES.get(word.lower(), word.lower()))

    def _next(self) -> str:
        return next(self._words, "").lstrip('"')

    def _take(self, word: str) -> None:
        if word in _FLAGS:
            self._row.update([_FLAGS[word]])
        elif word in _VALUES:
            self._row[word] = self._next()
        elif word == "set":
            name = self._next().lower()
            self.settings[name] = self._next()
        elif word in ("defaults", "poll"):
            self._begin(word)
        elif word == "username":
            self._user(self._next())
        elif word in ("here", "there"):
            self._side(word)
        elif word == "no":
            self._row.update([_TURNED.get(self._next().lower(), ("no", ""))])
        else:
            for _ in range(_ARGUMENTS.get(word, 0)):
                self._next()

    def _begin(self, word: str) -> None:
        self._server = self._row = self._defaults
        if word == "poll":
            self._server = self._row = {**self._defaults, "poll": self._next()}
            self.rows.append(self._row)

    def _user(self, name: str) -> None:
        """The first user of a server has its row already."""
        if self._row is not self._defaults and self._row.keys() & {"username", "local"}:
            self._row = {key: self._server[key] for key in self._server.keys() - _OF_A_USER}
            self._row |= {key: self._defaults[key] for key in self._defaults.keys() & _OF_A_USER}
            self.rows.append(self._row)
        self._row["username"] = name

    def _side(self, word: str) -> None:
        """``user ann here is ann42 there`` turns the names round."""
        row = self._row
        if word == "here" and "is" not in row and "username" in row:
            row["local"] = row.pop("username")
        elif word == "there" and "username" not in row and "is" in row:
            row["username"] = row.pop("is")
