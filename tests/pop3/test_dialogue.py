"""Cases that transcripts cannot show: windows, interrupted sessions, bodies read later."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from restante.errors import (
    BodySkipped,
    CommandFailed,
    ConnectionLost,
    ProtocolBroken,
    UnsafeArgument,
)
from restante.pop3 import dialogue as module
from restante.pop3.dialogue import Capabilities, Dialogue, Procedure
from restante.pop3.listing import Message
from restante.pop3.quirks import Quirks
from restante.sasl.exchange import ClientLogin
from restante.wire import Stuffer

PIPELINING = Capabilities({"PIPELINING": ()})


class Closed(Exception):
    """The scripted server has closed the connection."""


class Server:
    """Answers commands as they arrive; closes after ``limit`` octets of answers."""

    def __init__(self, messages: list[bytes], limit: int | None = None) -> None:
        self.dialogue = Dialogue()
        self.messages = messages
        self.heard: list[str] = []
        self.unanswered: list[str] = []
        self.said = 0  # octets
        self._limit = limit
        self._greeting = b"+OK ready\r\n"

    def listing(self) -> list[Message]:
        return [Message(at, f"u{at}", len(text)) for at, text in enumerate(self.messages, 1)]

    def run(self, procedure: Procedure[Any]) -> Any:
        try:
            wanted = next(procedure)
            while True:
                octets = b""
                if wanted is None:
                    octets = self._say()
                else:
                    commands = wanted.decode().removesuffix("\r\n").split("\r\n")
                    self.heard += commands
                    self.unanswered += commands
                    self.check()
                wanted = procedure.send(octets)
        except StopIteration as end:
            return end.value

    def check(self) -> None:
        """Do nothing; a test replaces this by a check that must always hold."""

    def _say(self) -> bytes:
        octets, self._greeting = self._greeting, b""
        if not octets:
            if not self.unanswered:
                raise Closed
            octets = self._answer(self.unanswered.pop(0))
        if self._limit is not None:
            octets = octets[: self._limit - self.said]
            if not octets:
                raise Closed
        self.said += len(octets)
        return octets

    def _answer(self, command: str) -> bytes:
        match command.split(" "):
            case ["RETR", number]:
                stuffer = Stuffer()
                text = stuffer.feed(self.messages[int(number) - 1]) + stuffer.finish()
                return b"+OK\r\n" + text
            case ["LIST"]:
                lines = [f"{each.number} {each.size}\r\n" for each in self.listing()]
            case ["UIDL"]:
                lines = [f"{each.number} {each.unique_id}\r\n" for each in self.listing()]
            case ["CAPA"]:
                lines = ["PIPELINING\r\n", "UIDL\r\n"]
            case ["STAT"]:
                return b"+OK %d 0\r\n" % len(self.messages)
            case ["TOP", _, _]:
                return b"-ERR no TOP\r\n"
            case _:
                return b"+OK\r\n"
        return ("+OK\r\n" + "".join(lines) + ".\r\n").encode()

    def read(self, messages: list[Message]) -> list[bytes]:
        found: list[bytes] = []
        retrieval = self.run(self.dialogue.request_messages(messages))
        while (answer := self.run(self.dialogue.next_message(retrieval))) is not None:
            found.append(b"")
            while piece := self.run(self.dialogue.piece(answer)):
                found[-1] += piece
        return found


def ready(messages: list[bytes], *, pipelining: bool = True) -> Server:
    server = Server(messages)
    server.run(server.dialogue.greeting())
    if pipelining:
        server.dialogue.capabilities = PIPELINING
    return server


def test_capabilities_as_values() -> None:
    """RFC 2449 §6."""
    found = Capabilities(
        {
            "STLS": (),
            "TOP": (),
            "SASL": ("PLAIN",),
            "IMPLEMENTATION": ("SHLEMAZLE-PLOTZ-V302",),
            "LOGIN-DELAY": ("900", "USER"),
            "EXPIRE": ("60",),
        }
    )
    assert (found.stls, found.top, found.uidl, found.pipelining) == (True, True, False, False)
    assert (found.sasl, found.implementation) == (("PLAIN",), "SHLEMAZLE-PLOTZ-V302")
    assert (found.login_delay, found.expire) == (900, "60")
    none = Capabilities({"LOGIN-DELAY": ("soon",)})
    assert (none.login_delay, none.expire, none.implementation, none.sasl) == (None, None, "", ())


# The window.


@given(st.lists(st.integers(0, 3 * 2**20), max_size=200), st.booleans())
@example([1] * 200, True)
@example([2**20] * 9, True)
def test_never_more_is_outstanding_than_the_window_allows(sizes: list[int], pipe: bool) -> None:
    class Strict(Server):
        def check(self) -> None:
            numbers = [int(each.split(" ")[1]) for each in self.unanswered]
            octets = sum(sizes[number - 1] for number in numbers)
            assert len(numbers) <= (module.WINDOW_COMMANDS if pipe else 1)
            assert octets <= module.WINDOW_OCTETS or len(numbers) == 1

    server = Strict([b"x\r\n"] * len(sizes))
    server.run(server.dialogue.greeting())
    server.dialogue.capabilities = PIPELINING if pipe else Capabilities()
    wanted = [Message(at, None, size) for at, size in enumerate(sizes, 1)]
    assert server.read(wanted) == [b"x\r\n"] * len(sizes)
    assert server.heard == [f"RETR {at}" for at in range(1, len(sizes) + 1)]


def test_small_messages_fill_the_window() -> None:
    server = ready([b"x\r\n"] * 3000)
    most = 0

    def note() -> None:
        nonlocal most
        most = max(most, len(server.unanswered))

    server.check = note  # type: ignore[method-assign]
    server.read(server.listing())
    assert most == module.WINDOW_COMMANDS


def test_a_server_that_refuses_is_asked_one_by_one_until_it_gives_again() -> None:
    class Busy(Server):
        def _answer(self, command: str) -> bytes:
            number = int(command.split(" ")[1])
            is_busy = 1500 <= number < 3000
            waiting[number] = len(self.unanswered)
            return b"-ERR [SYS/TEMP] too much\r\n" if is_busy else b"+OK\r\n.\r\n"

    waiting: dict[int, int] = {}
    server = Busy([b""] * 6000)
    server.run(server.dialogue.greeting())
    server.dialogue.capabilities = PIPELINING
    retrieval = server.run(server.dialogue.request_messages(server.listing()))
    refused = 0
    while (answer := server.run(server.dialogue.next_message(retrieval))) is not None:
        refused += answer.error is not None
    assert refused == 1500
    assert waiting[1499] > 500
    assert max(waiting[number] for number in range(2600, 3000)) == 0
    assert max(waiting.values()) == waiting[1]
    assert max(waiting[number] for number in range(3000, 3004)) < 32
    assert max(waiting[number] for number in range(4000, 5000)) > 500


@pytest.mark.parametrize("pipelining", [True, False])
def test_deletions_keep_to_the_window(pipelining: bool) -> None:
    server = ready([b""] * 500, pipelining=pipelining)
    most = module.WINDOW_COMMANDS if pipelining else 1

    def check() -> None:
        assert len(server.unanswered) <= most

    server.check = check  # type: ignore[method-assign]
    server.run(server.dialogue.delete(server.listing()))
    assert server.heard == [f"DELE {at}" for at in range(1, 501)]
    assert server.dialogue.deletions == 500


# Byte-stuffing.


@given(st.lists(st.sampled_from([b".", b"\r", b"\n", b"\r\n", b"x", b"\r\n.", b"+OK\r\n"])))
def test_every_message_is_read_octet_for_octet(parts: list[bytes]) -> None:
    """Stuffed as in RFC 1939 §3; servers add a missing last line end."""
    text = b"".join(parts)
    whole = text if text.endswith(b"\r\n") or not text else text + b"\r\n"
    assert ready([text]).read([Message(1, None, 0)]) == [whole]


# Sessions that end early.

MESSAGES = [b"Subject: a\r\n\r\n.dot\r\n", b"", b"x\n.\n+OK\r\n"]


def session(server: Server) -> list[bytes]:
    dialogue = server.dialogue
    server.run(dialogue.greeting())
    server.run(dialogue.request_capabilities())
    server.run(dialogue.log_in(ClientLogin("mrose", "tan staaf")))
    listing = server.run(dialogue.listing())
    found = server.read(listing)
    server.run(dialogue.delete(listing))
    server.run(dialogue.quit())
    return found


def test_a_whole_session() -> None:
    assert session(Server(MESSAGES)) == MESSAGES


def test_message_cut_at_any_octet_is_never_complete() -> None:
    whole = Server(MESSAGES)
    session(whole)
    for limit in range(whole.said):
        server = Server(MESSAGES, limit)
        with pytest.raises(Closed):
            session(server)


@pytest.mark.parametrize(
    ("commands", "lost", "is_known"),
    [(["delete"], 3, True), (["delete", "reset"], 0, True), (["delete", "quit"], 3, False)],
)
def test_lost_connection_reports_lost_deletions(
    commands: list[str], lost: int, is_known: bool
) -> None:
    """RFC 1939 §6: without QUIT none was removed; after QUIT, that is unknown."""
    server = ready(MESSAGES)
    server.run(server.dialogue.delete(server.listing()))
    if "reset" in commands:
        server.run(server.dialogue.reset())
    if "quit" in commands:
        procedure = server.dialogue.quit()
        assert next(procedure) == b"QUIT\r\n"
        assert procedure.send(b"") is None
    error = server.dialogue.connection_lost("gone")
    assert (error.lost_deletions, error.is_known) == (lost, is_known)


def test_deletions_on_their_way_are_lost_too() -> None:
    dialogue = Dialogue()
    procedure = dialogue.delete([Message(1, None, 1)])
    assert next(procedure) == b"DELE 1\r\n"
    assert dialogue.connection_lost("gone").lost_deletions == 1


def test_octets_behind_the_answer_to_stls() -> None:
    """CVE-2021-22947: octets sent before TLS must not count as protected."""
    for injected in (b"+OK 99 messages\r\n", b"+OK"):
        dialogue = Dialogue()
        procedure = dialogue.start_tls()
        assert next(procedure) == b"STLS\r\n"
        assert procedure.send(b"") is None
        with pytest.raises(ProtocolBroken):
            procedure.send(b"+OK begin\r\n" + injected)


# Responses without end.


@pytest.mark.parametrize(
    "start", [lambda d: d.greeting(), lambda d: d.noop()], ids=["greeting", "noop"]
)
def test_endless_line(start: Callable[[Dialogue], Procedure[None]]) -> None:
    procedure = start(Dialogue())
    wanted = next(procedure)
    for _ in range(module.MAX_LINE // 4096 + 2):
        try:
            wanted = procedure.send(b"x" * 4096 if wanted is None else b"")
        except ProtocolBroken:
            return
    pytest.fail("read on and on")


@pytest.mark.parametrize("name", ["request_capabilities", "listing"])
def test_endless_listing_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LISTING", module.MAX_LINE)
    procedure = getattr(Dialogue(), name)()
    lines = (b"%d 1\r\n" % number for number in itertools.count(1))

    def read_on() -> None:
        wanted, octets = next(procedure), b"+OK\r\n"
        for _ in range(100):
            if wanted is None:
                wanted, octets = procedure.send(octets), b"".join(itertools.islice(lines, 500))
            else:
                wanted = procedure.send(b"")

    with pytest.raises(ProtocolBroken, match="too long"):
        read_on()


@pytest.mark.parametrize(("spaces", "error"), [(60_000, StopIteration), (10**6, ProtocolBroken)])
def test_a_line_of_spaces_costs_no_time(spaces: int, error: type[Exception]) -> None:
    """A unique-id of many spaces and a letter takes linear work, and is ignored or an error."""
    dialogue = Dialogue()
    procedure = dialogue.listing()
    next(procedure)
    procedure.send(b"")
    assert procedure.send(b"+OK\r\n1 1\r\n.\r\n") == b"UIDL\r\n"
    procedure.send(b"")
    with pytest.raises(error) as end:
        procedure.send(b"+OK\r\n1 a" + b" " * spaces + b"b\r\n.\r\n")
    if isinstance(end.value, StopIteration):
        assert [message.unique_id for message in end.value.value] == [None]


# Bodies.


def test_a_body_is_gone_when_another_command_came() -> None:
    """It must not look as if the message ended there."""
    server = ready([b"a" * 10 + b"\r\n", b"b\r\n"])
    retrieval = server.run(server.dialogue.request_messages(server.listing()))
    answer = server.run(server.dialogue.next_message(retrieval))
    server.run(server.dialogue.noop())
    with pytest.raises(BodySkipped):
        server.run(server.dialogue.piece(answer))
    with pytest.raises(BodySkipped):
        server.run(server.dialogue.next_message(retrieval))
    assert server.run(server.dialogue.stat()) == (2, 0)


def test_a_body_is_not_taken_for_the_one_before() -> None:
    server = ready([b"a\r\n", b"b\r\n"])
    retrieval = server.run(server.dialogue.request_messages(server.listing()))
    first = server.run(server.dialogue.next_message(retrieval))
    second = server.run(server.dialogue.next_message(retrieval))
    with pytest.raises(BodySkipped):
        server.run(server.dialogue.piece(first))
    assert server.run(server.dialogue.piece(second)) == b"b\r\n"


def test_a_body_stays_at_its_end() -> None:
    server = ready([b"a\r\n", b"b\r\n"])
    retrieval = server.run(server.dialogue.request_messages(server.listing()))
    first = server.run(server.dialogue.next_message(retrieval))
    assert server.run(server.dialogue.piece(first)) == b"a\r\n"
    assert server.run(server.dialogue.piece(first)) == b""
    server.run(server.dialogue.next_message(retrieval))
    assert server.run(server.dialogue.piece(first)) == b""


@pytest.mark.parametrize("pipelining", [True, False])
def test_messages_may_be_deleted_while_the_next_ones_come(pipelining: bool) -> None:
    server = ready([b"%d\r\n" % at for at in range(2000)], pipelining=pipelining)
    found = []
    retrieval = server.run(server.dialogue.request_messages(server.listing()))
    while (answer := server.run(server.dialogue.next_message(retrieval))) is not None:
        found.append(server.run(server.dialogue.piece(answer)))
        server.run(server.dialogue.delete([answer.message]))
    assert found == server.messages
    assert server.dialogue.deletions == 2000
    server.run(server.dialogue.quit())
    deletions = [each for each in server.heard if each.startswith("DELE")]
    assert deletions == [f"DELE {at}" for at in range(1, 2001)]
    assert server.heard.index("DELE 1") < server.heard.index("RETR 2000")


class Refusing(Server):
    """Refuses to mark some messages, and records what QUIT would remove."""

    def __init__(self, messages: list[bytes], *refused: int) -> None:
        super().__init__(messages)
        self.marked: set[int] = set()
        self.removed: set[int] = set()
        self._refused = refused

    def _answer(self, command: str) -> bytes:
        match command.split(" "):
            case ["DELE", number] if int(number) in self._refused:
                return b"-ERR [SYS/PERM] message is on hold\r\n"
            case ["DELE", number]:
                self.marked.add(int(number))
            case ["RSET"]:
                self.marked.clear()
            case ["QUIT"]:
                self.removed = self.marked
        return super()._answer(command)


def mark_all_at_once(server: Server) -> None:
    server.run(server.dialogue.delete(server.listing()))


def mark_one_by_one(server: Server) -> None:
    for message in server.listing():
        server.run(server.dialogue.delete([message]))


def mark_while_reading(server: Server) -> None:
    retrieval = server.run(server.dialogue.request_messages(server.listing()))
    while (answer := server.run(server.dialogue.next_message(retrieval))) is not None:
        assert server.run(server.dialogue.piece(answer)) == b"%d\r\n" % answer.message.number
        server.run(server.dialogue.delete([answer.message]))


def mark_before_reading(server: Server) -> None:
    retrieval = server.run(server.dialogue.request_messages(server.listing()))
    while (answer := server.run(server.dialogue.next_message(retrieval))) is not None:
        server.run(server.dialogue.delete([answer.message]))
        assert server.run(server.dialogue.piece(answer)) == b"%d\r\n" % answer.message.number
        assert server.run(server.dialogue.piece(answer)) == b""


def mark_without_reading(server: Server) -> None:
    retrieval = server.run(server.dialogue.request_messages(server.listing()))
    while (answer := server.run(server.dialogue.next_message(retrieval))) is not None:
        server.run(server.dialogue.delete([answer.message]))


def mark_and_break_off(server: Server) -> None:
    """Delete only the last message, without reading its body."""
    retrieval = server.run(server.dialogue.request_messages(server.listing()))
    for message in server.listing():
        answer = server.run(server.dialogue.next_message(retrieval))
        assert answer.message == message
    server.run(server.dialogue.delete(server.listing()))


WAYS = [
    mark_all_at_once,
    mark_one_by_one,
    mark_while_reading,
    mark_before_reading,
    mark_without_reading,
    mark_and_break_off,
]


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("count", [1, 2, 8, 1025])
@pytest.mark.parametrize("mark", WAYS)
def test_deletions_are_carried_out_in_any_order_of_calls(
    mark: Callable[[Server], None], count: int, pipelining: bool
) -> None:
    server = Refusing([b"%d\r\n" % at for at in range(1, count + 1)])
    server.run(server.dialogue.greeting())
    server.dialogue.capabilities = PIPELINING if pipelining else Capabilities()
    mark(server)
    server.run(server.dialogue.quit())
    assert server.removed == set(range(1, count + 1))
    assert server.dialogue.deletions == 0


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("refused", [[1], [2], [3], [1, 3], [1, 2, 3]])
@pytest.mark.parametrize("mark", WAYS)
def test_refused_deletion_does_not_prevent_quit_or_other_deletions(
    mark: Callable[[Server], None], refused: list[int], pipelining: bool
) -> None:
    """The refusal is reported after the others are removed."""
    server = Refusing([b"1\r\n", b"2\r\n", b"3\r\n"], *refused)
    server.run(server.dialogue.greeting())
    server.dialogue.capabilities = PIPELINING if pipelining else Capabilities()
    mark(server)
    with pytest.raises(CommandFailed, match="DELE: message is on hold") as caught:
        server.run(server.dialogue.quit())
    assert caught.value.command == "DELE"
    assert server.removed == {1, 2, 3} - set(refused)
    assert sorted(message.number for message in server.dialogue.refused) == refused


def test_deletions_that_were_taken_back_are_refused_no_more() -> None:
    server = Refusing([b"a\r\n", b"b\r\n"], 1)
    server.run(server.dialogue.greeting())
    server.run(server.dialogue.delete(server.listing()))
    server.run(server.dialogue.reset())
    server.run(server.dialogue.delete([server.listing()[1]]))
    server.run(server.dialogue.quit())
    assert server.removed == {2}


def test_deletion_of_the_last_message_waits_until_its_body_is_read() -> None:
    """Unsolicited octets after that body must not be taken for the answer to DELE."""
    server = Server([b"a\r\n"])
    server.run(server.dialogue.greeting())
    server.dialogue.capabilities = PIPELINING
    retrieval = server.run(server.dialogue.request_messages(server.listing()))
    answer = server.run(server.dialogue.next_message(retrieval))
    server.dialogue._unread += b"+OK marked\r\n"
    server.run(server.dialogue.delete([answer.message]))
    with pytest.raises(ProtocolBroken, match="data without a command"):
        server.run(server.dialogue.quit())
    assert server.heard == ["RETR 1"]


def failing(messages: list[Message], error: Exception) -> Iterator[Message]:
    yield from messages
    raise error


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 8, 1023, 1024, 1025, 3000])
def test_exception_of_an_iterable_does_not_affect_the_session(count: int, pipelining: bool) -> None:
    server = ready([b"%d\r\n" % at for at in range(count)], pipelining=pipelining)
    mistake = ZeroDivisionError()
    try:
        asked = server.dialogue.request_messages(failing(server.listing(), mistake))
    except ZeroDivisionError:
        assert count == 0
    else:
        retrieval = server.run(asked)
        found = []
        while (answer := server.run(server.dialogue.next_message(retrieval))) is not None:
            found.append(server.run(server.dialogue.piece(answer)))
        assert found == server.messages
        assert retrieval.failure is mistake
    assert server.run(server.dialogue.stat()) == (count, 0)
    assert server.heard == [*(f"RETR {at}" for at in range(1, count + 1)), "STAT"]


def test_an_iterable_that_raises_costs_no_quit() -> None:
    server = ready([b"%d\r\n" % at for at in range(3)])
    retrieval = server.run(
        server.dialogue.request_messages(failing(server.listing(), ZeroDivisionError()))
    )
    answer = server.run(server.dialogue.next_message(retrieval))
    server.run(server.dialogue.delete([answer.message]))
    server.run(server.dialogue.quit())
    assert server.heard[-2:] == ["DELE 1", "QUIT"]


@pytest.mark.parametrize("wrong", [1, "1", None, [], b"1", [Message(1, None, 1)]])
def test_invalid_message_is_refused_before_anything_is_sent(wrong: Any) -> None:
    server = ready([b"a\r\n"])
    with pytest.raises(TypeError, match="a Message"):
        server.dialogue.delete([*server.listing(), wrong])
    with pytest.raises(TypeError, match="a Message"):
        server.dialogue.request_messages([wrong])
    retrieval = server.run(server.dialogue.request_messages([*server.listing(), wrong]))
    assert server.run(server.dialogue.next_message(retrieval)) is not None
    assert server.run(server.dialogue.next_message(retrieval)) is None
    assert isinstance(retrieval.failure, TypeError)
    assert server.run(server.dialogue.stat()) == (1, 0)
    assert server.heard == ["RETR 1", "STAT"]


def test_deletions_outlive_the_retrieval() -> None:
    """Another command ends the retrieval, but pending deletions are carried out."""
    server = ready([b"x" * 100 + b"\r\n"] * 3, pipelining=False)
    retrieval = server.run(server.dialogue.request_messages(server.listing()))
    answer = server.run(server.dialogue.next_message(retrieval))
    server.run(server.dialogue.delete([answer.message]))
    server.run(server.dialogue.quit())
    assert server.heard == ["RETR 1", "DELE 1", "QUIT"]


def test_a_message_of_another_session_is_refused() -> None:
    """Its number may belong to another message now."""
    old, new = ready([b"a\r\n"]), ready([b"b\r\n"])
    listing = old.run(old.dialogue.listing())
    for ask in (new.dialogue.delete, new.dialogue.request_messages):
        with pytest.raises(UnsafeArgument):
            ask(listing)
    retrieval = new.run(new.dialogue.request_messages([*new.listing(), *listing]))
    assert new.run(new.dialogue.next_message(retrieval)) is not None
    assert new.run(new.dialogue.next_message(retrieval)) is None
    assert isinstance(retrieval.failure, UnsafeArgument)
    assert new.heard == ["RETR 1"]


def test_a_number_is_a_number() -> None:
    server = ready([])
    wrong: Any = "1\r\nDELE 2"
    for ask in (server.dialogue.delete, server.dialogue.request_messages):
        with pytest.raises(UnsafeArgument):
            ask([Message(wrong, None, 1)])
    assert server.heard == []


@pytest.mark.parametrize("takes_utf8", [False, True])
def test_half_a_surrogate_is_no_argument(takes_utf8: bool) -> None:
    with pytest.raises(UnsafeArgument):
        next(Dialogue(quirks=Quirks(utf8_login=takes_utf8)).log_in(ClientLogin("mr\udc80se", "x")))


@given(st.text(max_size=20), st.text(max_size=20))
@example("mrose", "tan\r\nDELE 1")
def test_argument_cannot_contain_a_second_argument(user: str, password: str) -> None:
    """For any text, at most two lines are sent, or none."""
    server = ready([])
    try:
        server.run(server.dialogue.log_in(ClientLogin(user, password)))
    except UnsafeArgument:
        assert server.heard == []
    else:
        assert [each[:4] for each in server.heard] == ["USER", "PASS"]


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=20))
def test_noise_gives_only_our_errors(noise: list[bytes]) -> None:
    """For any octets from a server, an operation ends with a result or one of our errors."""
    for name in ("greeting", "request_capabilities", "stat", "listing", "noop", "quit"):
        procedure, left = getattr(Dialogue(), name)(), list(noise)
        try:
            wanted = next(procedure)
            while True:
                if wanted is None and not left:
                    break
                wanted = procedure.send(left.pop(0) if wanted is None else b"")
        except (StopIteration, ConnectionLost, CommandFailed):
            pass


@pytest.mark.parametrize(
    ("code", "retry"),
    [
        ("SYS/TEMP", True),
        ("SYS/TEMP/DISK", True),
        ("SYS/PERM", False),
        ("SYS/PERM/DISK", False),
        ("SYS/OTHER", True),
        ("IN-USE/BY-PHONE", True),
        ("LOGIN-DELAY", True),
        ("AUTH", False),
        ("AUTH/EXPIRED", False),
        ("IN-USELESS", False),
        ("X/SYS/TEMP", False),
        (None, False),
    ],
)
@pytest.mark.rfc("P-084")
def test_known_response_codes_take_precedence(code: str | None, retry: bool) -> None:
    """RFC 2449 §8: clients ignore levels that they do not know."""
    assert CommandFailed("PASS", "text", code).retry == retry
