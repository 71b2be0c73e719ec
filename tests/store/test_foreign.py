"""Mail of other servers keeps its unique-ids and order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from restante.errors import PermanentFailure
from restante.maildrop import Entry, Usage
from restante.store import foreign
from restante.store.maildir import MaildirStore

from .helpers import contents, deliver, listing, names, pieces, put, remove, rename, run
from .watched import Crash, die_at, watched

UIDLIST = b"""3 V1275660208 N25 G3085f01b7f11094c501100008c4a11c1
3 Pfoo O5 W18 :999.c
7 W17 :1000.a.host:2,S
8 Pbar O2 W18 :1001.b.host,S=15
9 :1003.d
"""  # written by Dovecot 2.3.19 of Debian; its answer to UIDL is in the test
SIZELIST = b"""/3 5 1795555760
999.c:2,S 18 1:1795555760:0
1000.a.host:2, 17 2:1795555760:0
1001.b.host,S=15:2,S 18 0:0:0
"""


# -- Reading their files


def test_dovecot() -> None:
    assert list(foreign.dovecot(UIDLIST).items()) == [
        ("1001.b.host,S=15", "bar"),
        ("999.c", "foo"),
        ("1000.a.host", "000000074c0907b0"),
        ("1003.d", "000000094c0907b0"),
    ]


def test_dovecot_version_1() -> None:
    assert foreign.dovecot(b"1 1275660208 10\n7 1000.a:2,S\n") == {"1000.a": "000000074c0907b0"}


def test_courier() -> None:
    assert list(foreign.courier(SIZELIST).items()) == [
        ("999.c", "UID1-1795555760"),
        ("1000.a.host", "UID2-1795555760"),
        ("1001.b.host,S=15", "1001.b.host,S=15"),
    ]


@pytest.mark.parametrize(
    ("template", "unique_id"),
    [
        ("%08Xu%08Xv", "0000000c4c0907b0"),
        ("%v.%u", "1275660208.12"),
        ("%u", "12"),
        ("%08u-%v", "00000012-1275660208"),
        ("%Xv%f", "4c0907b01.a,S=1"),
        ("%g", "abc"),
        ("UID%u-%v", "UID12-1275660208"),
        ("100%%", "100%"),
    ],
)
def test_formats_of_dovecot(template: str, unique_id: str) -> None:
    found = foreign.render(template, uid=12, uid_validity=1275660208, file="1.a,S=1", guid="abc")
    assert found == unique_id


@pytest.mark.parametrize(
    "octets",
    [
        *(b"", b"2 x", b"garbage\n", b"3 V1 N2 G0\nx :1.a\n"),
        *(b"3 V1 N2\n1 Oabc :1.a\n", b"3 V1 N2\n1 O%s :1.a\n" % (b"9" * 5000)),
    ],
)
def test_no_uidlist(octets: bytes) -> None:
    with pytest.raises(PermanentFailure):
        foreign.dovecot(octets)


def test_uidlist_may_contain_octets_that_are_not_utf8() -> None:
    assert foreign.dovecot(b"3 V1 N2\n1 P\xff :1.\xfe\n") == {"1.\udcfe": "\udcff"}


@pytest.mark.parametrize(
    "octets", [b"", b"/1 2\n", b"/3 1 2\n1.a 2\n", b"/3 1\n1.a 2 1:%s\n" % (b"9" * 5000)]
)
def test_no_sizelist(octets: bytes) -> None:
    with pytest.raises(PermanentFailure):
        foreign.courier(octets)


def test_list_of_unique_ids() -> None:
    assert foreign.unique_id_list(b"+OK\r\n1 a\r\n2  b.c\r\n.\r\n") == {1: "a", 2: "b.c"}
    with pytest.raises(PermanentFailure):
        foreign.unique_id_list(b"1 a b\n")


# -- Taking over


ARRIVALS = {"30.c:2,S": "old/1", "10.a": "old:2", "20.b,S=3": ".x", "40.d": "d" * 70}


async def text_of(name: str) -> AsyncIterator[bytes]:
    async for piece in pieces(name[:4].encode(), b"\n"):
        yield piece


EXPECTED = [Entry(unique_id, len(name[:4]) + 2) for name, unique_id in ARRIVALS.items()]


def test_adopted_mail_keeps_ids_and_order(maildir: MaildirStore, place: Path) -> None:
    own = run(deliver(maildir, "ann", b"x"))
    assert run(maildir.adopt("ann", ARRIVALS, text_of)) == 4
    later = run(deliver(maildir, "ann", b"y"))
    assert run(listing(maildir, "ann")) == [*EXPECTED, own, later]
    assert run(contents(maildir, "ann"))[:2] == [b"30.c\r\n", b"10.a\r\n"]
    rename(place, "new/10.a", "cur/10.a:2,FS")
    (place / "restante.index").unlink()
    assert run(listing(MaildirStore(f"{place.parent}/%u"), "ann")) == [*EXPECTED, own, later]
    assert run(maildir.adopt("ann", ARRIVALS, text_of)) == 0


def test_mail_already_in_the_maildrop_is_not_copied(maildir: MaildirStore, place: Path) -> None:
    for name in ARRIVALS:
        put(place, f"cur/{name}", name[:4].encode() + b"\n")
    assert run(maildir.adopt("ann", ARRIVALS, text_of)) == 0
    assert run(listing(maildir, "ann")) == EXPECTED


def test_mail_deleted_here_is_not_copied_again(maildir: MaildirStore, place: Path) -> None:
    """Otherwise a repeated import would show it again to clients that have it."""
    run(maildir.adopt("ann", ARRIVALS, text_of))
    assert run(remove(maildir, "ann", EXPECTED[:3])) == []
    assert run(maildir.adopt("ann", ARRIVALS, text_of)) == 0
    assert run(listing(maildir, "ann")) == EXPECTED[3:]


def test_copied_mail_counts_for_the_quota(tmp_path: Path, place: Path) -> None:
    """Even if other mail arrives meanwhile, and the maildrop is counted."""
    store = MaildirStore(f"{tmp_path}/%u", limit=lambda _: 1000)

    async def read(name: str) -> AsyncIterator[bytes]:
        await deliver(store, "ann", b"x\r\n")
        yield b"copied"

    run(store.adopt("ann", {"1.a": "a", "2.b": "b"}, read))
    assert run(store.usage("ann")) == Usage(2 * (6 + 3), 4, 1000)


def test_adopted_mail_is_restored_under_its_ids(maildir: MaildirStore, place: Path) -> None:
    run(maildir.adopt("ann", ARRIVALS, text_of))
    assert run(remove(maildir, "ann", EXPECTED)) == []
    held = run(maildir.held("ann"))
    assert run(maildir.restore("ann", held, same_unique_ids=True)) == 4
    assert run(listing(maildir, "ann")) == EXPECTED


@pytest.mark.parametrize(
    "arrivals",
    [
        {"1.a": "x", "2.a": "x"},
        {"1.a": "x", "1.a:2,S": "y"},
        {"1.a": ""},
        {"1.a": "d" * 71},
        {"1.a": "a b"},
        {"1.a": "mine"},
    ],
)
def test_invalid_unique_ids_are_refused(
    maildir: MaildirStore, place: Path, arrivals: dict[str, str]
) -> None:
    put(place, "cur/mine:2,S", b"x")
    before = run(listing(maildir, "ann"))
    with pytest.raises(PermanentFailure):
        run(maildir.adopt("ann", arrivals, text_of))
    assert run(listing(maildir, "ann")) == before
    assert "restante.ids" not in names(place)


@pytest.mark.parametrize("number", range(0, 60, 3))
def test_interrupted_import_shows_no_other_ids_and_can_be_repeated(
    maildir: MaildirStore, place: Path, number: int
) -> None:
    with watched(place.parent, die_at(number)), suppress(Crash):
        run(maildir.adopt("ann", ARRIVALS, text_of))
    store = MaildirStore(f"{place.parent}/%u")
    found = run(listing(store, "ann"))
    assert found == [entry for entry in EXPECTED if entry in found]
    run(store.adopt("ann", ARRIVALS, text_of))
    assert run(listing(store, "ann")) == EXPECTED
