"""A kit of hostile POP3 servers, to try any client with.

Each ``Attack`` is one way in which a server, or somebody in its place, breaks the protocol.
``try_client`` runs a client against it and says what went wrong:

- it took for a message what is none, or half of one;
- it removed a message that it had not fetched;
- it gave the password away where no login was safe, or took a login for done that was none;
- it did not come to an end.

Whether a client reports an attack as an error or carries on unharmed is its own affair.

Limits: a server speaks TLS with a certificate for ``localhost``; what a certificate can be wrong in
is not tried here.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .testing import certificate

PASSWORD = "tan staaf"
MESSAGES = (
    b"Subject: one\r\n\r\n.dot\r\n..\r\n. \r\n",
    b"Subject: two\r\n\r\nTwo.\r\n",
    b"..\r\nno header\r\n\r\n",
)

Keep = Callable[[bytes], None]
Fetch = Callable[[str, Path, Keep], None]
"""A client: log in at this URL, trusting this file; give each message to ``keep``, and delete it.
``pop3s://`` has TLS first, ``pop3://`` needs STLS before the login."""
Say = bytes | Callable[[bytes], bytes] | None
"""Octets, perhaps made from what the client said, or None: silence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What is done instead of what the protocol wants."""

    what: str
    """In words."""
    says: Mapping[str, Say] = field(default_factory=dict)
    """By verb, by whole command (``RETR 1``), or by ``greeting``."""
    messages: tuple[bytes, ...] = MESSAGES
    """What is really there."""
    is_stls: bool = False
    """The client has to begin with STLS."""
    no_login: bool = False
    """Nothing that leads to the password may be sent."""
    ends_at: str = ""
    """The command whose answer is the last thing that is said."""
    forged: tuple[bytes, ...] = ()
    """What a client cannot know not to be there: a server may make up any message.  It must not
    remove another one for it."""
    cut: int | None = None
    """Octets after which the connection ends."""
    reset: bool = False
    """It ends with RST, not with FIN."""


def _message(octets: bytes) -> bytes:
    stuffed = (b"\r\n" + octets).replace(b"\r\n.", b"\r\n..")[2:]
    return b"+OK\r\n" + stuffed + b".\r\n"


def _listing(*lines: bytes) -> bytes:
    return b"+OK\r\n" + b"".join(line + b"\r\n" for line in lines) + b".\r\n"


_SMUGGLED = b"Subject: x\r\n\r\nx\n.\n+OK\r\n"
_SMUGGLED_CR = b"Subject: x\r\n\r\nx\r.\r+OK\r\n"
_SMUGGLED_HALF = b"Subject: x\r\n\r\nx\n.\r\n+OK\r\n"
_FORGED = b"Subject: forged\r\n\r\n"
_STLS = b"+OK\r\nSTLS\r\nUSER\r\nUIDL\r\n.\r\n"
_SCRAM = b"+OK\r\nSASL SCRAM-SHA-256\r\nUIDL\r\n.\r\n"


def _scram(nonce: bytes, iterations: bytes, last: bytes = b"-ERR no\r\n") -> dict[str, Say]:
    """The server's side; ``last`` is said to the client's proof."""

    def answer(line: bytes) -> bytes:
        words = line.split(b" ")
        if len(words) == 2:
            return b"+ \r\n"  # AUTH without an initial response
        opening = b64decode(words[-1] + b"==")
        if opening.startswith(b"c="):
            return last
        theirs = opening.rpartition(b"r=")[2]
        message = b"r=" + theirs * (nonce != b"-") + nonce + b",s=c2FsdA==,i=" + iterations
        return b"+ " + b64encode(message) + b"\r\n"

    return {"CAPA": _SCRAM, "AUTH": answer, "+": answer}


def _stls(what: str, **says: Say) -> Attack:
    given = {"CAPA": _STLS, **says}
    return Attack(what=what, says=given, is_stls=True, no_login=True)


ATTACKS: Mapping[str, Attack] = {
    "polite": Attack(what="nothing at all: a client must get along with it"),
    # The greeting and the status line.
    "greeting-err": Attack(what="refuses the connection", says={"greeting": b"-ERR no\r\n"}),
    "greeting-empty": Attack(what="greets with an empty line", says={"greeting": b"\r\n"}),
    "greeting-binary": Attack(
        what="greets in binary", says={"greeting": b"\x16\x03\0\xff" * 50_000}
    ),
    "greeting-endless": Attack(what="greets without end", says={"greeting": b"x" * 10_000_000}),
    "status-plus": Attack(
        what="answers with a lone plus", says={"STAT": b"+\r\n", "LIST": b"+\r\n"}
    ),
    "status-none": Attack(
        what="answers with what is no status",
        says=dict.fromkeys(("RETR 1", "RETR 2", "RETR 3"), b" +OK\r\nx\r\n.\r\n"),
    ),
    # Listings.
    "list-negative": Attack(what="counts below nothing", says={"LIST": _listing(b"-1 100")}),
    "list-zero": Attack(what="has a message 0", says={"LIST": _listing(b"0 100", b"1 100")}),
    "list-huge": Attack(what="counts beyond 2^64", says={"LIST": _listing(b"%d 1" % 2**70)}),
    "list-words": Attack(what="lists words", says={"LIST": _listing(b"one hundred")}),
    "list-twice": Attack(what="lists a number twice", says={"LIST": _listing(b"1 9", b"1 9")}),
    "list-more": Attack(
        what="lists what is not there",
        says={"LIST": _listing(*(b"%d 9" % at for at in range(1, 10)))},
    ),
    "list-cut": Attack(
        what="ends in the middle of a listing", says={"LIST": b"+OK\r\n1 9\r\n2"}, ends_at="LIST"
    ),
    "uidl-same": Attack(what="one id for all", says={"UIDL": _listing(b"1 a", b"2 a", b"3 a")}),
    "uidl-blank": Attack(what="blank ids", says={"UIDL": _listing(b"1 ", b"2", b"3  ")}),
    "uidl-path": Attack(
        what="ids that are paths",
        says={"UIDL": _listing(b"1 ../../../../tmp/x", b"2 /etc/passwd", b"3 .")},
    ),
    "uidl-long": Attack(what="ids of 5000 octets", says={"UIDL": _listing(b"1 " + b"x" * 5000)}),
    "uidl-octets": Attack(
        what="ids of control and 8-bit octets", says={"UIDL": _listing(b"1 \x1b[2J", b"2 \xff\0")}
    ),
    "uidl-err": Attack(what="refuses UIDL", says={"UIDL": b"-ERR [SYS/TEMP] later\r\n"}),
    "capa-err": Attack(what="has no CAPA", says={"CAPA": b"-ERR\r\n"}),
    "capa-huge": Attack(what="CAPA without end", says={"CAPA": b"+OK\r\n" + b"X\r\n" * 3_000_000}),
    # Messages.
    "size-lie": Attack(
        what="lies about sizes", says={"LIST": _listing(b"1 1", b"2 99999999", b"3 0")}
    ),
    "dot-lf": Attack(
        what="passes bare LF on: a message holds its own end and a response",
        messages=(_SMUGGLED, *MESSAGES[1:]),
    ),
    "dot-cr": Attack(what="the same with bare CR", messages=(_SMUGGLED_CR, *MESSAGES[1:])),
    "dot-half": Attack(
        what="the same with LF before and CRLF after", messages=(_SMUGGLED_HALF, *MESSAGES[1:])
    ),
    "retr-cut": Attack(
        what="ends in the middle of a message",
        says={"RETR 2": b"+OK\r\nSubject: two\r\n\r\nTw"},
        ends_at="RETR 2",
    ),
    "retr-cut-at-line": Attack(
        what="ends after a line of a message",
        says={"RETR 2": b"+OK\r\nSubject: two\r\n"},
        ends_at="RETR 2",
    ),
    "retr-extra": Attack(
        what="says more than it was asked: the next response is an injected one",
        says={"RETR 1": _message(MESSAGES[0]) + _message(_FORGED)},
        forged=(_FORGED,),
    ),
    "retr-twice": Attack(
        what="answers twice", says={"RETR 1": _message(MESSAGES[0]) + _message(MESSAGES[0])}
    ),
    "retr-err-and-body": Attack(
        what="refuses a message and gives one", says={"RETR 1": b"-ERR no\r\nforged\r\n.\r\n"}
    ),
    "retr-endless": Attack(
        what="a response line without end", says={"RETR 1": b"+OK " + b"x" * 10_000_000}
    ),
    "quit-lost": Attack(what="removes, and does not say so", says={"QUIT": b""}),
    "quit-err": Attack(what="says that it did not remove", says={"QUIT": b"-ERR [SYS/TEMP]\r\n"}),
    # Before the login.
    "stls-stripped": Attack(
        what="somebody has taken STLS out of CAPA",
        says={"CAPA": b"+OK\r\nUSER\r\n.\r\n", "STLS": b"-ERR\r\n"},
        is_stls=True,
        no_login=True,
    ),
    "stls-refused": _stls("refuses STLS", STLS=b"-ERR [SYS/TEMP] no\r\n"),
    "stls-injected": _stls(
        "somebody adds responses to the one to STLS", STLS=b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n"
    ),
    "stls-fragment": _stls("the same, and the last is not whole", STLS=b"+OK begin\r\n+O"),
    "stls-clear": _stls("goes on in clear", STLS=b"+OK\r\n-ERR no TLS\r\n+OK\r\n"),
    "scram-iterations": Attack(
        what="wants to keep the client busy for hours, or to guess its password cheaply",
        says=_scram(b"x", b"1000000000"),
        no_login=True,
    ),
    "scram-few": Attack(
        what="wants a cheap proof",
        says=_scram(b"x", b"1"),
    ),
    "scram-nonce": Attack(
        what="answers to another nonce",
        says=_scram(b"-", b"4096"),
        no_login=True,
    ),
    "scram-proof": Attack(
        what="cannot prove that it knows the password, and says that the login is done",
        says=_scram(b"x", b"4096", b"+OK\r\n"),
        no_login=True,
    ),
    "auth-refused": Attack(
        what="refuses the strong login, to be told the password",
        says={"CAPA": _SCRAM.replace(b"256", b"256 PLAIN"), "AUTH": b"-ERR [AUTH] no\r\n"},
        no_login=True,
    ),
}


def cuts(step: int = 1) -> Iterator[tuple[str, Attack]]:
    """The end of the connection at every octet that a polite server says, by FIN and by RST."""
    for at in range(0, _said_in_all(), step):
        for reset in (False, True):
            name = f"{'rst' if reset else 'fin'}-{at}"
            yield name, Attack(what=f"ends after {at} octets", cut=at, reset=reset)


def _said_in_all() -> int:
    honest = HostileServer(Attack(what=""))
    return sum(map(len, honest._honest.values())) + sum(len(_message(m)) for m in MESSAGES) + 200


class HostileServer:
    """A context manager: one server on loopback, on threads of its own."""

    host = "localhost"

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.heard: list[bytes] = []
        """What clients have said, in order."""
        self.removed: set[int] = set()
        """Message-numbers that were marked when QUIT came."""
        self.port = 0
        sizes = [len(message) for message in attack.messages]
        self._honest = {
            "greeting": b"+OK ready\r\n",
            "CAPA": _listing(b"USER", b"UIDL", b"TOP", b"PIPELINING"),
            "STAT": b"+OK %d %d\r\n" % (len(sizes), sum(sizes)),
            "LIST": _listing(*(b"%d %d" % each for each in enumerate(sizes, 1))),
            "UIDL": _listing(*(b"%d id%d" % (at + 1, at) for at in range(len(sizes)))),
        }
        self._connections: list[socket.socket] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate())

    def __enter__(self) -> HostileServer:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="hostile-server", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    @property
    def ca_file(self) -> Path:
        return certificate()[0]

    @property
    def url(self) -> str:
        scheme = "pop3" if self.attack.is_stls else "pop3s"
        return f"{scheme}://ann:{PASSWORD.replace(' ', '%20')}@{self.host}:{self.port}"

    def _accept(self) -> None:
        """One client after the other, as a maildrop has its lock."""
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._connections.append(connection)
            with suppress(OSError), connection:
                if self.attack.is_stls:
                    self._serve(connection)
                else:
                    with self._context.wrap_socket(connection, server_side=True) as inside:
                        self._connections.append(inside)
                        self._serve(inside)

    def _serve(self, connection: socket.socket) -> None:
        said = _Said(connection, self.attack)
        marked: set[int] = set()
        said.say(self._answer("greeting", b"", marked))
        with connection.makefile("rb") as commands:
            for line in commands:
                command = line.removesuffix(b"\r\n")
                self.heard.append(command)
                text = command.decode("latin-1")
                verb = text.partition(" ")[0].upper()
                if verb == "QUIT":
                    self.removed |= marked
                answer = self._answer(text, command, marked)
                said.say(answer)
                if verb == "QUIT" or text == self.attack.ends_at:
                    return

    def _answer(self, text: str, command: bytes, marked: set[int]) -> bytes | None:
        verb, _, argument = text.partition(" ")
        keys = (text.upper(), verb.upper() if text != "greeting" else text, "+")
        is_response = (
            command and re.fullmatch(r"[A-Za-z0-9+/=]+", text) and verb.upper() not in _VERBS
        )
        is_line = verb.upper() in ("LIST", "UIDL") and argument
        for key in keys if is_response else keys[: 1 if is_line else 2]:
            if key in self.attack.says:
                says = self.attack.says[key]
                return says(command) if callable(says) else says
        key = verb if text == "greeting" else verb.upper()
        number = int(argument.split(" ")[0]) if argument[:1].isdecimal() else 0
        there = 0 < number <= len(self.attack.messages) and number not in marked
        match key:
            case "greeting" | "CAPA" | "STAT":
                return self._honest[key]
            case "LIST" | "UIDL" if not argument:
                return self._honest[key]
            case "LIST" | "UIDL" if there:
                return self._line(key, number)
            case "RETR" | "TOP" if there:
                return _message(self.attack.messages[number - 1])
            case "DELE" if there:
                marked.add(number)
                return b"+OK\r\n"
            case "RSET":
                marked.clear()
                return b"+OK\r\n"
            case "USER" | "PASS" | "NOOP" | "QUIT":
                return b"+OK\r\n"
        return b"-ERR\r\n"

    def _line(self, verb: str, number: int) -> bytes:
        """One line of a listing, with whatever it lies."""
        said = self.attack.says.get(verb, self._honest[verb])
        lines = said.split(b"\r\n") if isinstance(said, bytes) else []
        found = next((each for each in lines if each.split(b" ")[0] == b"%d" % number), None)
        return b"-ERR\r\n" if found is None else b"+OK " + found + b"\r\n"


_VERBS = frozenset(
    [
        "USER",
        "PASS",
        "CAPA",
        "STAT",
        "LIST",
        "UIDL",
        "RETR",
        "TOP",
        "DELE",
        "RSET",
        "NOOP",
        "QUIT",
        "STLS",
        "AUTH",
    ]
)


class _Said:
    """What goes out, as far as the attack lets it."""

    def __init__(self, connection: socket.socket, attack: Attack) -> None:
        self._connection = connection
        self._left = attack.cut
        self._reset = attack.reset

    def say(self, octets: bytes | None) -> None:
        """
        Raises:
            OSError: the connection was ended.
        """
        if octets is None:
            return
        if self._left is not None:
            octets, self._left = octets[: self._left], self._left - len(octets)
        self._connection.sendall(octets)
        if self._left is not None and self._left <= 0:
            if self._reset:
                linger = struct.pack("ii", 1, 0)
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            raise ConnectionAbortedError


def try_client(fetch: Fetch, attack: Attack, *, patience: float = 30.0) -> list[str]:
    """What went wrong, in words; nothing, if the client has withstood it.

    ``patience`` is how many seconds it may take.
    """
    kept: list[bytes] = []
    with HostileServer(attack) as server:

        def run() -> None:
            with suppress(Exception):
                fetch(server.url, server.ca_file, kept.append)

        client = threading.Thread(target=run, name="client", daemon=True)
        client.start()
        client.join(patience)
        is_over = not client.is_alive()
    client.join(patience)
    found = [] if is_over else [f"not at an end after {patience:g} s"]
    there = [_normal(message) for message in attack.messages]
    have = [_normal(message) for message in kept]
    given = [*there, *map(_normal, attack.forged)]
    found += [f"took for a message: {each[:60]!r}" for each in have if each not in given]
    found += [
        f"removed message {number}, which it has not"
        for number in sorted(server.removed)
        if there[number - 1] not in have
    ]
    if attack.no_login and any(_shows_password(line) for line in server.heard):
        found.append("gave the password away")
    if attack.no_login and any(line[:4] in (b"STAT", b"LIST", b"RETR") for line in server.heard):
        found.append("went on as if it were logged in")
    return found


def _normal(message: bytes) -> bytes:
    """As it is in whatever form a client stores it."""
    return message.replace(b"\r\n", b"\n").rstrip(b"\n")


def _shows_password(line: bytes) -> bool:
    if PASSWORD.encode() in line:
        return True
    with suppress(ValueError):
        return PASSWORD.encode() in b64decode(line.rpartition(b" ")[2])
    return False
