"""Hostile POP3 servers for testing any client.

Each ``Attack`` is one way in which a server, or an attacker in its place, breaks the protocol.
``try_client`` runs a client against it and returns the client's faults:

- it accepted octets that are not a message, or only a part of a message, as a message;
- it removed a message that it had not retrieved;
- it revealed the password although no login was safe, or continued after a failed login;
- it did not end in time.

A client may report an attack as an error or continue unharmed; both are correct.

Limits: the server has a valid certificate for ``localhost``; invalid certificates are not tested.
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
"""A client: it logs in at a URL, trusts the CA file at a path, passes each message to ``keep``, and
deletes it from the server.  ``pop3s://`` means implicit TLS, ``pop3://`` STLS before the login."""
Say = bytes | Callable[[bytes], bytes] | None
"""Octets to send, or a function that returns octets for the client's line; None: no response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One violation of the protocol."""

    what: str
    """A description that continues the sentence "The server …"."""
    says: Mapping[str, Say] = field(default_factory=dict)
    """Responses, with a verb, a whole command (``RETR 1``) or ``greeting`` as the key."""
    messages: tuple[bytes, ...] = MESSAGES
    """The messages in the maildrop."""
    is_stls: bool = False
    """Whether the client must begin with STLS."""
    no_login: bool = False
    """Whether the client must neither log in nor send anything that reveals the password."""
    ends_at: str = ""
    """The command after whose response the connection ends."""
    forged: tuple[bytes, ...] = ()
    """Messages that are not in the maildrop but that a client may accept, since a server can invent
    any message.  The client must not remove another message because of them."""
    cut: int | None = None
    """Number of octets after which the connection ends; None: it does not end early."""
    reset: bool = False
    """Whether the connection ends with RST instead of FIN."""


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
    """Return the server's responses; ``last`` answers the client's proof."""

    def answer(line: bytes) -> bytes:
        words = line.split(b" ")
        if len(words) == 2:
            return b"+ \r\n"  # AUTH without an initial response
        decoded = b64decode(words[-1] + b"==")
        if decoded.startswith(b"c="):
            return last
        client_nonce = decoded.rpartition(b"r=")[2]
        message = b"r=" + client_nonce * (nonce != b"-") + nonce + b",s=c2FsdA==,i=" + iterations
        return b"+ " + b64encode(message) + b"\r\n"

    return {"CAPA": _SCRAM, "AUTH": answer, "+": answer}


def _stls(what: str, **says: Say) -> Attack:
    return Attack(what=what, says={"CAPA": _STLS, **says}, is_stls=True, no_login=True)


ATTACKS: Mapping[str, Attack] = {
    "polite": Attack(what="follows the protocol; every client must work with it"),
    # The greeting and the status line.
    "greeting-err": Attack(what="refuses the connection", says={"greeting": b"-ERR no\r\n"}),
    "greeting-empty": Attack(what="greets with an empty line", says={"greeting": b"\r\n"}),
    "greeting-binary": Attack(
        what="sends a binary greeting", says={"greeting": b"\x16\x03\0\xff" * 50_000}
    ),
    "greeting-endless": Attack(
        what="sends an endless greeting", says={"greeting": b"x" * 10_000_000}
    ),
    "status-plus": Attack(
        what="answers with a single plus", says={"STAT": b"+\r\n", "LIST": b"+\r\n"}
    ),
    "status-none": Attack(
        what="answers without a status indicator",
        says=dict.fromkeys(("RETR 1", "RETR 2", "RETR 3"), b" +OK\r\nx\r\n.\r\n"),
    ),
    # Listings.
    "list-negative": Attack(what="lists a negative number", says={"LIST": _listing(b"-1 100")}),
    "list-zero": Attack(
        what="lists a message with the number 0", says={"LIST": _listing(b"0 100", b"1 100")}
    ),
    "list-huge": Attack(what="lists a number above 2^64", says={"LIST": _listing(b"%d 1" % 2**70)}),
    "list-words": Attack(
        what="lists words instead of numbers", says={"LIST": _listing(b"one hundred")}
    ),
    "list-twice": Attack(what="lists a number twice", says={"LIST": _listing(b"1 9", b"1 9")}),
    "list-more": Attack(
        what="lists messages that do not exist",
        says={"LIST": _listing(*(b"%d 9" % number for number in range(1, 10)))},
    ),
    "list-cut": Attack(
        what="ends in the middle of a listing", says={"LIST": b"+OK\r\n1 9\r\n2"}, ends_at="LIST"
    ),
    "uidl-same": Attack(
        what="has the same unique-id for all messages",
        says={"UIDL": _listing(b"1 a", b"2 a", b"3 a")},
    ),
    "uidl-blank": Attack(what="has blank unique-ids", says={"UIDL": _listing(b"1 ", b"2", b"3  ")}),
    "uidl-path": Attack(
        what="has unique-ids that are paths",
        says={"UIDL": _listing(b"1 ../../../../tmp/x", b"2 /etc/passwd", b"3 .")},
    ),
    "uidl-long": Attack(
        what="has unique-ids of 5000 octets", says={"UIDL": _listing(b"1 " + b"x" * 5000)}
    ),
    "uidl-octets": Attack(
        what="has unique-ids with control and 8-bit octets",
        says={"UIDL": _listing(b"1 \x1b[2J", b"2 \xff\0")},
    ),
    "uidl-err": Attack(what="refuses UIDL", says={"UIDL": b"-ERR [SYS/TEMP] later\r\n"}),
    "capa-err": Attack(what="does not support CAPA", says={"CAPA": b"-ERR\r\n"}),
    "capa-huge": Attack(
        what="sends an endless response to CAPA", says={"CAPA": b"+OK\r\n" + b"X\r\n" * 3_000_000}
    ),
    # Messages.
    "size-lie": Attack(
        what="lies about sizes", says={"LIST": _listing(b"1 1", b"2 99999999", b"3 0")}
    ),
    "dot-lf": Attack(
        what="sends bare LF: the message seems to contain its end and a second response",
        messages=(_SMUGGLED, *MESSAGES[1:]),
    ),
    "dot-cr": Attack(
        what="sends bare CR: the message seems to contain its end and a second response",
        messages=(_SMUGGLED_CR, *MESSAGES[1:]),
    ),
    "dot-half": Attack(
        what="sends LF before a dot and CRLF after it, inside a message",
        messages=(_SMUGGLED_HALF, *MESSAGES[1:]),
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
        what="injects a second response after the requested one",
        says={"RETR 1": _message(MESSAGES[0]) + _message(_FORGED)},
        forged=(_FORGED,),
    ),
    "retr-twice": Attack(
        what="sends a response twice",
        says={"RETR 1": _message(MESSAGES[0]) + _message(MESSAGES[0])},
    ),
    "retr-err-and-body": Attack(
        what="refuses a message and then sends one", says={"RETR 1": b"-ERR no\r\nforged\r\n.\r\n"}
    ),
    "retr-endless": Attack(
        what="answers with an endless line", says={"RETR 1": b"+OK " + b"x" * 10_000_000}
    ),
    "quit-lost": Attack(what="removes messages without a response to QUIT", says={"QUIT": b""}),
    "quit-err": Attack(
        what="reports at QUIT that it did not remove messages",
        says={"QUIT": b"-ERR [SYS/TEMP]\r\n"},
    ),
    # Before the login.
    "stls-stripped": Attack(
        what="removes STLS from CAPA",
        says={"CAPA": b"+OK\r\nUSER\r\n.\r\n", "STLS": b"-ERR\r\n"},
        is_stls=True,
        no_login=True,
    ),
    "stls-refused": _stls("refuses STLS", STLS=b"-ERR [SYS/TEMP] no\r\n"),
    "stls-injected": _stls(
        "injects responses after the one to STLS", STLS=b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n"
    ),
    "stls-fragment": _stls(
        "injects half a response after the one to STLS", STLS=b"+OK begin\r\n+O"
    ),
    "stls-clear": _stls("continues without TLS after STLS", STLS=b"+OK\r\n-ERR no TLS\r\n+OK\r\n"),
    "scram-iterations": Attack(
        what="requires so much hashing that the client is busy for hours",
        says=_scram(b"x", b"1000000000"),
        no_login=True,
    ),
    "scram-few": Attack(
        what="requires so little hashing that passwords are easy to guess",
        says=_scram(b"x", b"1"),
    ),
    "scram-nonce": Attack(
        what="answers with a nonce that is not the client's",
        says=_scram(b"-", b"4096"),
        no_login=True,
    ),
    "scram-proof": Attack(
        what="reports a login without proof that it knows the password",
        says=_scram(b"x", b"4096", b"+OK\r\n"),
        no_login=True,
    ),
    "auth-refused": Attack(
        what="refuses the strong login in order to get the password",
        says={"CAPA": _SCRAM.replace(b"256", b"256 PLAIN"), "AUTH": b"-ERR [AUTH] no\r\n"},
        no_login=True,
    ),
}


def cuts(step: int = 1) -> Iterator[tuple[str, Attack]]:
    """Yield attacks that end the connection at each octet of the session, with FIN and with RST.

    ``step`` is the number of octets between two attacks.
    """
    for offset in range(0, _session_length(), step):
        for reset in (False, True):
            name = f"{'rst' if reset else 'fin'}-{offset}"
            yield name, Attack(what=f"ends after {offset} octets", cut=offset, reset=reset)


def _session_length() -> int:
    server = HostileServer(Attack(what=""))
    return (
        sum(map(len, server._correct_responses.values()))
        + sum(len(_message(m)) for m in MESSAGES)
        + 200
    )


class HostileServer:
    """A context manager that runs one server on loopback, in its own thread."""

    host = "localhost"

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.heard: list[bytes] = []
        """Lines received from clients, in order."""
        self.removed: set[int] = set()
        """Message-numbers that were marked as deleted at QUIT."""
        self.port = 0
        sizes = [len(message) for message in attack.messages]
        self._correct_responses = {
            "greeting": b"+OK ready\r\n",
            "CAPA": _listing(b"USER", b"UIDL", b"TOP", b"PIPELINING"),
            "STAT": b"+OK %d %d\r\n" % (len(sizes), sum(sizes)),
            "LIST": _listing(*(b"%d %d" % each for each in enumerate(sizes, 1))),
            "UIDL": _listing(*(b"%d id%d" % (index + 1, index) for index in range(len(sizes)))),
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
        """Serve one client after another, because a maildrop is locked exclusively."""
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
                    with self._context.wrap_socket(connection, server_side=True) as secured:
                        self._connections.append(secured)
                        self._serve(secured)

    def _serve(self, connection: socket.socket) -> None:
        responses = _Responses(connection, self.attack)
        marked: set[int] = set()
        responses.send(self._answer("greeting", b"", marked))
        with connection.makefile("rb") as commands:
            for line in commands:
                command = line.removesuffix(b"\r\n")
                self.heard.append(command)
                text = command.decode("latin-1")
                verb = text.partition(" ")[0].upper()
                if verb == "QUIT":
                    self.removed |= marked
                answer = self._answer(text, command, marked)
                responses.send(answer)
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
        exists = 0 < number <= len(self.attack.messages) and number not in marked
        match key:
            case "greeting" | "CAPA" | "STAT":
                return self._correct_responses[key]
            case "LIST" | "UIDL" if not argument:
                return self._correct_responses[key]
            case "LIST" | "UIDL" if exists:
                return self._line(key, number)
            case "RETR" | "TOP" if exists:
                return _message(self.attack.messages[number - 1])
            case "DELE" if exists:
                marked.add(number)
                return b"+OK\r\n"
            case "RSET":
                marked.clear()
                return b"+OK\r\n"
            case "USER" | "PASS" | "NOOP" | "QUIT":
                return b"+OK\r\n"
        return b"-ERR\r\n"

    def _line(self, verb: str, number: int) -> bytes:
        """Return one line of the listing, or of the forged listing of the attack."""
        listing = self.attack.says.get(verb, self._correct_responses[verb])
        lines = listing.split(b"\r\n") if isinstance(listing, bytes) else []
        line = next((each for each in lines if each.split(b" ")[0] == b"%d" % number), None)
        return b"-ERR\r\n" if line is None else b"+OK " + line + b"\r\n"


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


class _Responses:
    """Sends responses until the attack ends the connection."""

    def __init__(self, connection: socket.socket, attack: Attack) -> None:
        self._connection = connection
        self._remaining = attack.cut
        self._reset = attack.reset

    def send(self, octets: bytes | None) -> None:
        """Send octets; None sends nothing.

        Raises:
            OSError: the attack ended the connection.
        """
        if octets is None:
            return
        if self._remaining is not None:
            octets, self._remaining = octets[: self._remaining], self._remaining - len(octets)
        self._connection.sendall(octets)
        if self._remaining is not None and self._remaining <= 0:
            if self._reset:
                linger = struct.pack("ii", 1, 0)
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            raise ConnectionAbortedError


def try_client(fetch: Fetch, attack: Attack, *, patience: float = 30.0) -> list[str]:
    """Run a client against an attack, and return its faults as sentences; empty if it is safe.

    ``patience`` is the time limit for the client, in seconds.
    """
    kept: list[bytes] = []
    with HostileServer(attack) as server:

        def run() -> None:
            with suppress(Exception):
                fetch(server.url, server.ca_file, kept.append)

        client = threading.Thread(target=run, name="client", daemon=True)
        client.start()
        client.join(patience)
        has_ended = not client.is_alive()
    client.join(patience)
    faults = [] if has_ended else [f"did not end within {patience:g} s"]
    stored = [_normal(message) for message in attack.messages]
    accepted = [_normal(message) for message in kept]
    allowed = [*stored, *map(_normal, attack.forged)]
    faults += [f"accepted as a message: {each[:60]!r}" for each in accepted if each not in allowed]
    faults += [
        f"removed message {number}, which it did not retrieve"
        for number in sorted(server.removed)
        if stored[number - 1] not in accepted
    ]
    if attack.no_login and any(_shows_password(line) for line in server.heard):
        faults.append("revealed the password")
    if attack.no_login and any(line[:4] in (b"STAT", b"LIST", b"RETR") for line in server.heard):
        faults.append("continued after a failed login")
    return faults


def _normal(message: bytes) -> bytes:
    """Return a message with LF line endings, and without line endings at the end of the message."""
    return message.replace(b"\r\n", b"\n").rstrip(b"\n")


def _shows_password(line: bytes) -> bool:
    if PASSWORD.encode() in line:
        return True
    with suppress(ValueError):
        return PASSWORD.encode() in b64decode(line.rpartition(b" ")[2])
    return False
