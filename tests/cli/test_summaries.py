"""Summaries of messages for users, with any header that a sender may write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from email.header import Header, decode_header, make_header
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.cli.summaries import decoded, read_summary, summarise

from ..store.helpers import put
from .conftest import Restante


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("café".encode(), "café"),  # RFC 6532
        ("café".encode("latin-1"), "café"),
        (b"=?utf-8?q?caf=C3=A9?=", "café"),
        (b"=?UTF-8*fr?B?Y2Fmw6k=?=", "café"),  # with a language, RFC 2231 §5
        (b"=?iso-8859-1?Q?caf=E9_au_lait?= x", "café au lait x"),
        (b"a =?utf-8?q?b?= =?utf-8?q?c?= d", "a bc d"),  # RFC 2047 §6.2
        (b"=?utf-8?B?4oI=?=\r\n =?utf-8?B?rA==?=", "€"),  # split within a character
        ("caf\xe9 =?utf-8?q?=C3=A9?=".encode(), "café é"),
        (b"=?utf-8?q?a?= =?latin-1?q?b?=", "ab"),
        (b"=?no-such?q?x?= =?utf-8?q?y?=", "=?no-such?q?x?= y"),
        (b"=?hex?q?00?= =?idna?q?x?=", "=?hex?q?00?= =?idna?q?x?="),
        (b"=?utf-8?b?!?= =?utf-8?b?=ZZ?=", "=?utf-8?b?!?= =?utf-8?b?=ZZ?="),
        (b"=?utf-8?q?=FF?=", "\N{REPLACEMENT CHARACTER}"),
        (b"\x1b[2J =?utf-8?q?=1B]0;x=07?=", "\\x1b[2J \\x1b]0;x\\x07"),
        (b"=?utf-8?q?=E2=80=AE?=", "\\u202e"),
        (b"", ""),
    ],
)
def test_header_values_are_decoded(value: bytes, text: str) -> None:
    assert decoded(value.replace(b"\r\n", b"")) == text


@given(st.lists(st.text(st.characters(categories=["L", "N", "P"]), min_size=1), min_size=1))
def test_headers_encoded_by_python_are_decoded(words: list[str]) -> None:
    value = Header(" ".join(words), "utf-8").encode(linesep="")
    assert decoded(value.encode()) == " ".join(str(make_header(decode_header(value))).split())


def test_fields_are_folded_and_the_first_of_each_counts() -> None:
    octets = b"Received: x\r\nSUBJECT :a\r\n\tb\r\nFrom: A <a@b>\nSubject: c\n\nDate: in the body\n"
    assert summarise(octets) == {"sender": "A <a@b>", "subject": "a b", "date": ""}


@given(st.binary())
def test_no_header_raises_an_exception(octets: bytes) -> None:
    found = summarise(b"Subject: " + octets)
    assert "".join(found.values()).isprintable()


async def once(octets: bytes) -> AsyncIterator[bytes]:
    yield octets


@pytest.mark.parametrize(
    "octets",
    [
        b"Subject: " + b"=?utf-8?q?" * 100_000,
        b"Subject: " + b"=?utf-8?B?4oI=?= " * 100_000,
        b"Subject: " + b"=?" * 500_000,
        b"Subject:" * 100_000,
        b"Subject:\n " + b"\n " * 500_000,
        b"Subject: =?punycode?q?" + b"a" * 100_000 + b"?=",
    ],
)
def test_hostile_header_takes_little_time(octets: bytes) -> None:
    began = time.thread_time()
    asyncio.run(read_summary(once(octets)))
    assert time.thread_time() - began < 3


def test_unreadable_message_does_not_hide_others(restante: Restante, ann: str, home: Path) -> None:
    place = home / "state/restante/mail/ann"
    put(place, "cur/1.a:2,", b"Subject: first\n\n")
    put(place, "cur/2.b,S=999,W=999:2,", b"Subject: second\n\n")
    put(place, "cur/3.c:2,", b"\x1f\x8b\x08 compressed")
    put(place, "cur/4.d:2,", b"Subject: last\n\n")
    done = restante("maildrop", "show", "ann")
    assert done.code == 65
    heads, *lines = done.out.splitlines()
    assert heads.endswith("SUBJECT")
    assert [word in line for word, line in zip(("first", "[", "[", "last"), lines, strict=True)]
    assert "[cannot be read: message does not have the announced size" in lines[1]
    rows = restante("maildrop", "show", "ann", "--json").json["messages"]
    assert ["error" in row for row in rows] == [
        False,
        False,
        True,
        False,
    ]  # the size is correct now
