"""Malformed mail can be parsed, and everything in it read, without an exception.

The values below make the parsers of some Python since 3.11 raise, recurse or never end.  Each is
read in every way, in every field that has its own class.
"""

from __future__ import annotations

import copy
import encodings.aliases
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage, MIMEPart
from email.policy import Policy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restante import headers, mime
from restante.headers import MAX_VALUE, HeaderNotParsed, split_addresses
from restante.mime import MAX_DEPTH, MAX_PARTS, POLICY, MessageNotSplit, TolerantMessage

from .malformed import BODIES, PIECES, VALUES

ALL_FIELDS = [*headers.Headers().registry, "x-any"]
FIELDS = ["subject", "date", "from", "sender", "message-id", "mime-version", "content-type"]
FIELDS += ["content-disposition", "content-transfer-encoding", "x-any"]  # one of each kind
POLICIES: list[Policy[Any]] = [policy.default, policy.SMTP, policy.SMTPUTF8, policy.HTTP, POLICY]
POLICIES += [policy.compat32, policy.SMTP.clone(cte_type="7bit"), POLICY.clone(cte_type="7bit")]


def attributes(header: Any) -> Iterator[object]:
    """Read every attribute of a header object and of its parts."""
    for name, _ in inspect.getmembers(type(header), lambda each: isinstance(each, property)):
        yield repr(getattr(header, name))
    for group in getattr(header, "groups", ()):
        yield str(group), repr(group), group.display_name
        for address in group.addresses:
            yield str(address), repr(address), address.addr_spec
            yield f"{address.display_name}{address.username}{address.domain}".encode()
    yield header.encode()  # no lone surrogates


def read_values(message: EmailMessage, field: str) -> None:
    message.items(), message.values(), message[field], message.get_all("x-none")
    for header in message.get_all(field, []):
        list(attributes(header))
        pickle.loads(pickle.dumps(str(header)))


def fold_values(message: EmailMessage, field: str) -> None:
    for header in message.get_all(field, []):
        for each in POLICIES:
            text = header.fold(policy=each)
            assert text.startswith(f"{header.name}:")
            _, *lines = text.removesuffix(each.linesep).split(each.linesep)
            assert all(line[:1] in (" ", "\t") and line.strip() for line in lines)


def read_types(message: EmailMessage, field: str) -> None:
    for part in message.walk():
        part.get_content_type(), part.get_content_maintype(), part.get_content_subtype()
        part.get_content_charset(), part.get_charsets(), part.get_boundary()
        part.get_filename(), part.get_content_disposition(), part.is_attachment()
        part.get_params(), part.get_params(header=field, unquote=False)
        part.get_param("name"), part.get_param("name", header=field)


def read_contents(message: EmailMessage, field: str) -> None:
    for part in message.walk():
        part.get_payload(), part.get_payload(decode=True)
        part.preamble, part.epilogue, part.defects, part.get_unixfrom()
        if part.get_content_maintype() != "multipart":
            part.get_content()
    message.get_body(), message.get_body(("plain",))
    list(message.iter_attachments()), list(message.iter_parts())


def write_octets(message: EmailMessage, field: str) -> None:
    bytes(message), message.as_bytes(unixfrom=True)
    for each in POLICIES:
        message.as_bytes(policy=each)


def write_text(message: EmailMessage, field: str) -> None:
    str(message), message.as_string(maxheaderlen=64)
    for each in POLICIES:
        message.as_string(policy=each)


def make_copies(message: EmailMessage, field: str) -> None:
    copy.deepcopy(message).as_bytes()
    if field == "content-type":
        return
    for header in message.get_all(field, [])[:1]:
        for reply in (TolerantMessage(), EmailMessage()):
            reply[field] = header
            reply.as_bytes(), reply.as_string()
        reply = TolerantMessage()
        reply["X-Copy"] = " ".join(header.splitlines())
        reply.as_bytes(), reply.as_string()


def test_a_message_takes_parts_of_another_class() -> None:
    message, part = TolerantMessage(), EmailMessage()
    part.set_content("hello")
    message.make_mixed()
    message.attach(part)
    assert message.get_payload() == [part]


WAYS: list[Callable[[EmailMessage, str], None]] = [
    read_values,
    fold_values,
    read_types,
    read_contents,
    write_octets,
    write_text,
    make_copies,
]


def read_all(octets: bytes, field: str) -> None:
    message = mime.parse(octets)
    for way in WAYS:
        way(message, field)
    header = mime.parse(octets, header_only=True)
    assert header.keys() == message.keys()
    header.as_bytes(), header.as_string(), header.get_content_type()


@pytest.fixture
def few_frames() -> Iterator[None]:
    """Leave few stack frames, as in a program with deep calls."""
    limit, depth = sys.getrecursionlimit(), len(inspect.stack())
    sys.setrecursionlimit(depth + 450)
    yield
    sys.setrecursionlimit(limit)


def field_with(name: str, value: str) -> bytes:
    return f"{name}: {value}\r\n".encode("utf-8", "surrogateescape")


@pytest.mark.slow
@pytest.mark.parametrize("field", ALL_FIELDS)
def test_every_class_takes_every_value(field: str) -> None:
    for value in VALUES:
        list(attributes(POLICY.header_fetch_parse(field, value)))


@pytest.mark.slow
@pytest.mark.usefixtures("few_frames")
@pytest.mark.parametrize("field", FIELDS)
def test_every_value_can_be_read_in_every_field(field: str) -> None:
    for value in VALUES:
        read_all(field_with(field, value) + b"\r\nb\xc3\xb6dy\r\n", field)


@pytest.mark.slow
@pytest.mark.usefixtures("few_frames")
@pytest.mark.parametrize("name", BODIES)
def test_every_structure_can_be_read(name: str) -> None:
    read_all(BODIES[name], "subject")


@given(st.sampled_from(FIELDS), st.lists(st.sampled_from(PIECES) | st.text(max_size=3)))
def test_invented_values_can_be_read(field: str, pieces: list[str]) -> None:
    value = "".join(pieces).encode("utf-8", "replace")
    read_all(field.encode() + b": " + value + b"\r\n\r\nbody\r\n", field)


@settings(max_examples=20)
@given(st.lists(st.sampled_from(list(BODIES)) | st.binary(max_size=20), max_size=4))
def test_invented_structures_can_be_read(pieces: list[str | bytes]) -> None:
    octets = [BODIES[piece] if isinstance(piece, str) else piece for piece in pieces]
    read_all(b"".join(octets)[:20_000], "subject")


@pytest.mark.parametrize("parameter", ["charset={}", "charset*={}''x", "charset*=us-ascii''{}"])
def test_text_in_any_charset_can_be_read(parameter: str) -> None:
    for codec in sorted({*encodings.aliases.aliases.values(), "no", "a\0b", ""}):
        kind = b"Content-Type: text/plain; " + parameter.format(codec).encode() + b"\r\n"
        message = mime.parse(kind + b"\r\n" + bytes(range(256)) * 2)
        for content in (message.get_content(), message.get_payload(), message.as_string()):
            assert isinstance(content, str), codec
        word = f"=?{codec}?q?=00=7f=80=ff=5Cd?= x".encode()
        assert isinstance(mime.parse(b"Subject: " + word + b"\r\n\r\n")["Subject"], str), codec


# A fallback is text with a defect, and affects nothing else.


@pytest.mark.parametrize(
    ("field", "value", "attribute", "empty"),
    [
        ("to", "unlisted-recipients:; (no To-header on input)", "addresses", ()),
        ("sender", "(" * 50, "address", Address()),
        ("message-id", "<[0123456789@mail.example.org]>", "name", "message-id"),
        ("content-disposition", "attachment; filename*", "params", {}),
        ("content-type", "x" * 5000, "content_type", "text/plain"),
        ("date", "Mon, 1 Jan 2020 00:00:00 +99999999", "datetime", None),
    ],
)
def test_a_malformed_value_is_text(field: str, value: str, attribute: str, empty: object) -> None:
    header = mime.parse(field_with(field, value) + b"\r\n")[field]
    assert value in header
    assert header.defects or field in ("to", "message-id")  # some Pythons can parse these
    assert getattr(header, attribute) == empty


def test_a_bad_address_spoils_no_other() -> None:
    value = (
        "Ann <ann@example.org>, "
        + "(" * 30
        + ")" * 30
        + ', "B, b" <b@example.org>, g: c@x.y, d@x.y;'
    )
    header = mime.parse(field_with("To", value) + b"\r\n")["To"]
    shown = [each.addr_spec for each in header.addresses]
    assert shown == ["ann@example.org", "b@example.org", "c@x.y", "d@x.y"]
    assert [type(each) for each in header.defects] == [HeaderNotParsed]
    assert "(" * 30 in header


LETTERS = st.characters(codec="utf-8", categories=("L", "N"), max_codepoint=0x2FFF)
NAME = st.text(
    LETTERS, min_size=1, max_size=12
)  # Python 3.13.0 folds longer ones with a space inside
WORD = st.from_regex("[a-z0-9]{1,9}", fullmatch=True)
ADDRESS = st.builds(Address, NAME | st.just("B, b (x) <y>"), username=WORD, domain=WORD)


@given(st.lists(ADDRESS, min_size=1, max_size=60))
def test_a_long_list_reads_as_the_library_reads_it(addresses: list[Address]) -> None:
    value = ", ".join(map(str, addresses))
    header = mime.parse(field_with("To", value) + b"\r\n")["To"]
    assert header == policy.default.header_factory("To", value)
    assert header.addresses == tuple(addresses)
    written = mime.parse(header.fold(policy=policy.SMTP).encode() + b"\r\n")
    assert written["To"].addresses == tuple(addresses)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("", []),
        (" , ,", []),
        ("a@b", ["a@b"]),
        ('"x, y" <a@b>, c@d', ['"x, y" <a@b>', "c@d"]),
        ('"x\\", y" <a@b>, c@d', ['"x\\", y" <a@b>', "c@d"]),
        ("a@b (x, (y), z), c@d", ["a@b (x, (y), z)", "c@d"]),
        ("g: a@b, c@d;, e@f", ["g: a@b, c@d;", "e@f"]),
        ("<@a,@b:c@d>, e@f", ["<@a,@b:c@d>", "e@f"]),
        ("a@[IPv6:::1], b@c", ["a@[IPv6:::1]", "b@c"]),
        ('(5" x) a@b, c@d', ['(5" x) a@b', "c@d"]),
        ("<a@b, c@d", ["<a@b, c@d"]),
    ],
)
def test_addresses_are_split_at_the_right_commas(value: str, parts: list[str]) -> None:
    assert list(split_addresses(value)) == parts


# Limits, at the threshold.


def nested(levels: int) -> bytes:
    each = b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n"
    ends = b"\r\n".join(b"--b%d--\r\n" % level for level in reversed(range(levels)))
    return b"".join(each % (level, level) for level in range(levels)) + b"\r\nx\r\n" + ends


def deepest(message: MIMEPart) -> int:
    return 1 + max((deepest(part) for part in message.iter_parts()), default=0)


def is_unsplit(message: EmailMessage) -> bool:
    return any(
        isinstance(each, MessageNotSplit) for part in message.walk() for each in part.defects
    )


@pytest.mark.parametrize("levels", [0, 1, 2, MAX_DEPTH, MAX_DEPTH + 1, 3000])
def test_levels_are_bounded(levels: int) -> None:
    message = mime.parse(nested(levels))
    assert deepest(message) == min(levels, MAX_DEPTH) + 1
    assert is_unsplit(message) == (levels > MAX_DEPTH)
    assert message.as_bytes(policy=policy.SMTP) == nested(levels)


@pytest.mark.parametrize("lines", [1000, 10_000_000])
def test_fewer_levels_where_there_are_many_lines(lines: int) -> None:
    """Every level compares every line with its boundary."""
    factory = mime._MessageFactory(b"\n" * lines)
    assert factory(policy=POLICY).levels == (MAX_DEPTH if lines == 1000 else mime._MIN_DEPTH)


@pytest.mark.parametrize("kind", ["multipart/mixed; boundary=x", "message/delivery-status"])
@pytest.mark.parametrize("parts", [1, MAX_PARTS, MAX_PARTS + 1, 50_000])
def test_parts_are_bounded(kind: str, parts: int) -> None:
    """Messages with more parts are not split: parts of five octets would take 2 kB each."""
    part = b"--x\r\n\r\ny\r\n" if kind.startswith("multi") else b"a: b\r\n\r\n"
    end = b"--x--\r\n" if kind.startswith("multi") else b""
    octets = f"Content-Type: {kind}\r\n\r\n".encode() + part * parts + end
    message = mime.parse(octets)
    assert is_unsplit(message) == (parts > MAX_PARTS)
    if parts > MAX_PARTS:
        assert message.get_content_type() == "application/octet-stream"
        assert message.get_content() == part * parts + end
    assert message.as_bytes(policy=policy.SMTP).strip() == octets.strip()


@pytest.mark.parametrize("field", ALL_FIELDS)
@pytest.mark.parametrize("octets", [100_000, 1_000_000])
def test_a_value_that_is_too_long_never_reaches_the_library(
    field: str, octets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for piece in ("x", '"', "a@b, ", "é ", "=?utf-8?q?a?= ", ";", "("):
        value = piece * (octets // len(piece))
        header: Any = POLICY.header_factory(field, value)
        assert header == value
        assert [type(each) for each in header.defects] == [HeaderNotParsed]


@pytest.mark.parametrize(
    ("field", "within", "beyond"),
    [
        ("to", "a@b " + "(" * 20 + ")" * 20, "a@b " + "(" * 21 + ")" * 21),
        ("to", "a@b " + "(\\)" * 20, "a@b " + "(\\)" * 21),
        ("to", "a@b " + "()" * 200, "a@b " + "()" * 250),
        ("to", "a@" + "b" * 998, "a@" + "b" * 999),
        ("to", "a@b," * 2000, "a@b," * 2001),
        ("content-type", "a/b;" + "c" * 4092, "a/b;" + "c" * 4093),
        ("content-type", "a/b" + ";" * 499, "a/b" + ";" * 500),
        ("subject", "a" * MAX_VALUE, "a" * (MAX_VALUE + 1)),
    ],
)
def test_values_beyond_the_bounds_are_text(field: str, within: str, beyond: str) -> None:
    def is_text(value: str) -> bool:
        header = POLICY.header_factory(field, value)
        return any(isinstance(defect, HeaderNotParsed) for defect in header.defects)

    assert (is_text(within), is_text(beyond)) == (False, True)


@pytest.mark.parametrize("piece", ['"', ",", "a ", "a,", ";", "\\", "<", "()", "=?utf-8?q?a?= "])
@pytest.mark.parametrize("field", ["to", "subject", "content-type", "content-transfer-encoding"])
def test_work_grows_no_faster_than_the_value(field: str, piece: str) -> None:
    """Counted in function calls; the library alone needs at least nine times as many."""

    def calls(octets: int) -> int:
        count = 0

        def called(*_: object) -> None:
            nonlocal count
            count += 1

        value = (piece * octets)[:octets]
        sys.setprofile(called)
        try:
            POLICY.header_factory(field, value)
        finally:
            sys.setprofile(None)
        return count

    assert calls(30_000) < 4 * max(calls(10_000), 10_000)


# Well-formed mail is unchanged.


def test_well_formed_mail_reads_as_the_library_reads_it() -> None:
    made = EmailMessage(policy.SMTP)
    made["From"], made["To"] = "Jörg <j@example.org>", "a@example.org, B <b@example.org>"
    made["Subject"], made["Date"] = "Grüße " * 30, "Thu, 01 Jan 2026 10:00:00 +0100"
    made.set_content("Größe\n")
    made.add_alternative("<p>Größe</p>\n", subtype="html")
    made.add_attachment(b"\0\1", maintype="image", subtype="png", filename="é" * 60 + ".png")
    octets = made.as_bytes()
    ours, theirs = (
        mime.parse(octets),
        message_from_bytes(octets, EmailMessage, policy=policy.default),
    )
    assert ours.items() == theirs.items()
    assert [part.get_content_type() for part in ours.walk()] == [
        part.get_content_type() for part in theirs.walk()
    ]
    for one, other in zip(ours.iter_attachments(), theirs.iter_attachments(), strict=True):
        assert one.get_filename() == other.get_filename()
        assert one.get_content() == other.get_content()
    body, other_body = ours.get_body(), theirs.get_body()
    assert body is not None
    assert other_body is not None
    assert body.get_content() == other_body.get_content()
    assert ours.as_bytes(policy=policy.SMTP) == octets
    assert ours["From"].addresses == theirs["From"].addresses
    assert not ours.defects


@pytest.mark.parametrize(
    "field",
    [
        b"DKIM-Signature: " + b"x" * 900,
        b"Subject: =?utf-8?q?not?touched?=\r\n\tand folded\r\n  as it came",
        b"X: \xff\xfe raw octets",
        b"To: \xc3\xa9 <a@b>,,, <",
        b"X: a\x0cb\x1cc\x85",
    ],
)
def test_fields_are_written_as_they_came(field: bytes) -> None:
    octets = field + b"\r\n\r\nbody\r\n"
    assert mime.parse(octets).as_bytes(policy=policy.SMTP) == octets


def test_a_changed_message_is_written_with_the_change() -> None:
    message = mime.parse(b"Subject: a\r\nX: y\r\n\r\nbody\r\n")
    message.replace_header("Subject", "Grüße")
    message["Reply-To"] = [Address("Jörg", "j", "example.org")]
    again = mime.parse(message.as_bytes())
    assert (again["Subject"], again["X"]) == ("Grüße", "y")
    assert again["Reply-To"].addresses[0].display_name == "Jörg"
    message.set_content("other\n")
    message.add_attachment("text", filename="a.txt")
    assert [part.get_filename() for part in mime.parse(bytes(message)).iter_attachments()] == [
        "a.txt"
    ]


def test_mistakes_of_the_program_are_heard() -> None:
    message = mime.parse(nested(1))
    with pytest.raises(ValueError, match="linefeed"):
        message["Subject"] = "a\r\nBcc: x"
    with pytest.raises(AttributeError):
        message["Date"] = 5
    with pytest.raises(IndexError):
        message.get_payload(7)
    with pytest.raises(KeyError):
        message.get_content()


@pytest.mark.parametrize(
    "boundary", ["", "; boundary", "; boundary*", '; boundary=""', "; boundary=x"]
)
def test_a_multipart_without_parts_is_text(boundary: str) -> None:
    """RFC 2045 §5.2: an incomplete type means plain text."""
    octets = f"Content-Type: multipart/mixed{boundary}\r\n\r\n--\r\n\r\nhello\r\n".encode()
    message = mime.parse(octets)
    body = message.get_body()
    assert body is not None
    assert body.get_content() == "--\r\n\r\nhello\r\n"
    assert message.defects
    assert message.as_bytes(policy=policy.SMTP) == octets


def test_a_fault_of_the_library_leaves_the_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise HeaderParseError("a fault of the library")

    monkeypatch.setattr("email.message.MIMEPart.attach", fail, raising=False)
    monkeypatch.setattr("email.message.Message.attach", fail)
    message = mime.parse(nested(2))
    assert is_unsplit(message)
    assert message.as_bytes(policy=policy.SMTP) == nested(2)
