"""``restante maildrop``: list messages, and restore deleted ones."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from restante.app import stores
from restante.config import load
from restante.maildrop import SessionRecord

from .conftest import Restante

HOSTILE = (
    b"From: =?utf-8?q?=1B[2J=0D=0Arestante:_all_is_well?= <eve@example.org>\n"
    b"Subject: one\x1b]0;title\x07\xff two =?utf-8?q?=E2=80=AE?=\nDate: \x9b31m\n\nhi\n"
)
MESSAGES = [
    b"From: Ann <ann@example.org>\nSubject: =?utf-8?b?w6RwZmVs?=\n\nhi\n",
    b"Subject: =?utf-8?B?a?=\n\nno base64\n",
    b"Subject: =?no-such-charset?Q?x?=\n\n",
    b"no head at all",
    HOSTILE,
]


@pytest.fixture
def mail(restante: Restante, ann: str) -> int:
    """Deliver messages to ann; returns their number."""
    for message in MESSAGES:
        assert restante("deliver", "ann", stdin=message).code == 0
    return len(MESSAGES)


@pytest.fixture
def remove(home: Path) -> Callable[[int], None]:
    """Remove the first messages of ann, as a client does with QUIT."""

    async def work(count: int) -> None:
        async with stores.store(load()).open("ann") as maildrop:
            assert not await maildrop.remove(maildrop.listing[:count])

    return lambda count: asyncio.run(work(count))


def test_list_counts(restante: Restante, mail: int, remove: Callable[[int], None]) -> None:
    remove(2)
    found = restante("maildrop", "list")
    assert found.out.splitlines()[0].split() == ["USER", "MESSAGES", "SIZE", "HELD", "QUOTA"]
    assert re.fullmatch(r"ann +3 +\d+ bytes +2  none", found.out.splitlines()[1])
    (row,) = restante("maildrop", "list", "--json").json["maildrops"]
    assert row.keys() == {"user", "messages", "octets", "held", "in_use"}


def test_usage_is_shown_if_there_is_a_quota(restante: Restante, mail: int) -> None:
    assert "quota" not in restante("maildrop", "show", "ann", "--json").json
    assert restante("user", "quota", "ann", "1MiB").code == 0
    (row,) = restante("maildrop", "list", "--json").json["maildrops"]
    assert (row["quota"], row["used"]) == (2**20, row["octets"])
    assert f"  {row['used']} bytes of 1 MiB\n" in restante("maildrop", "list").out
    shown = restante("maildrop", "show", "ann", "--json").json
    assert (shown["quota"], shown["used"]) == (2**20, row["used"])
    assert restante("maildrop", "show", "ann").err == f"Quota: {row['used']} bytes of 1 MiB used.\n"


def test_list_passes_over_a_maildrop_in_use(restante: Restante, mail: int) -> None:
    async def main() -> None:
        async with stores.store(load()).open("ann"):
            found = await asyncio.to_thread(restante, "maildrop", "list")
            assert found.code == 0
            assert found.out.splitlines()[1].split() == ["ann", "in", "use", "-", "0", "none"]
            assert (await asyncio.to_thread(restante, "maildrop", "show", "ann")).code == 75

    asyncio.run(main())


def test_show_has_one_printable_line_for_each_message(restante: Restante, mail: int) -> None:
    found = restante("maildrop", "show", "ann")
    assert found.code == 0
    lines = found.out.splitlines()
    assert lines[0].split() == ["NR", "SIZE", "DATE", "FROM", "SUBJECT"]
    assert len(lines) == mail + 1
    assert "äpfel" in lines[1]
    assert all(line.isprintable() for line in lines)


def test_show_for_programs(restante: Restante, mail: int) -> None:
    found = restante("maildrop", "show", "ann", "--json").json
    assert [message["number"] for message in found["messages"]] == [1, 2, 3, 4, 5]
    for message in found["messages"]:
        assert message.keys() == {"number", "size", "unique_id", "sender", "subject", "date"}
        assert all(str(value).isprintable() for value in message.values())


def test_held_and_restore_by_name(
    restante: Restante, mail: int, remove: Callable[[int], None]
) -> None:
    before = restante("maildrop", "show", "ann", "--json").json["messages"]
    remove(mail)
    found = restante("maildrop", "held", "ann", "--json").json["messages"]
    assert len(found) == mail
    assert found[0].keys() == {
        *("name", "size", "unique_id", "sender", "subject", "date", "removed_at")
    }
    assert all(line.isprintable() for line in restante("maildrop", "held", "ann").out.splitlines())

    back = restante("maildrop", "restore", "ann", found[0]["name"], "--same-uidl")
    assert back.out == ("Restored 1 message to ann. Clients will not download them again.\n")
    back = restante("maildrop", "restore", "ann", found[1]["name"])
    assert back.out == "Restored 1 message to ann. Clients will download them again.\n"
    after = restante("maildrop", "show", "ann", "--json").json["messages"]
    ids = {message["unique_id"] for message in after}
    assert len(after) == 2
    assert len(ids & {message["unique_id"] for message in before}) == 1


@pytest.mark.parametrize(
    ("arguments", "count"), [(["--since", "1h"], 5), (["--all"], 5), (["--since", "0"], 0)]
)
def test_restore_by_time(
    restante: Restante,
    mail: int,
    remove: Callable[[int], None],
    arguments: list[str],
    count: int,
) -> None:
    remove(mail)
    assert restante("maildrop", "restore", "ann", *arguments, "--json").json["messages"] == count


def test_restore_of_no_message_says_so(restante: Restante, mail: int) -> None:
    done = restante("maildrop", "restore", "ann", "--all")
    assert (done.code, done.out) == (0, "No held message matches; nothing was restored.\n")
    assert done.err == ""


def test_old_name_of_restore_still_works(
    restante: Restante, mail: int, remove: Callable[[int], None]
) -> None:
    remove(2)
    done = restante("maildrop", "undelete", "ann", "--since", "1h", "--json")
    assert done.json == {"schema": "restante/maildrop-undelete/1", "user": "ann", "messages": 2}
    assert done.err == (
        "`restante maildrop undelete` is deprecated: use `restante maildrop restore`\n"
    )
    assert "undelete" not in restante("maildrop", "--help").out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["restore", "ann"], 64, "no messages selected; use --since 2h, --all, or names"),
        (["restore", "ann", "../x"], 64, "no held message has the name '../x'"),
        (
            ["restore", "ann", "--since", "soon"],
            64,
            "is not a valid duration; write a number and a unit",
        ),
        (["purge", "--older-than", "1d"], 64, "name a USER, or use --all"),
        (["purge", "ann", "--all"], 64, "name a USER, or use --all"),
        (
            ["purge", "ann", "--older-than", "x", "--yes"],
            64,
            "is not a valid duration; write a number and a unit",
        ),
        (["purge", "ann"], 64, "Confirm with --yes"),
        (["show", "bob"], 67, "no such user: 'bob'"),
        (["held", "../ann"], 67, "no such user"),
        (["restore", "bob", "--all"], 67, "no such user"),
        (["purge", "bob", "--yes"], 67, "no such user"),
        (["show", "ann\0"], 67, "no such user"),
    ],
)
def test_impossible_requests_are_explained(
    restante: Restante, mail: int, arguments: list[str], code: int, words: str
) -> None:
    found = restante("maildrop", *arguments)
    assert found.code == code
    assert words in found.err
    assert "Traceback" not in found.err


def test_purge_destroys_mail_held_long_enough(
    restante: Restante, mail: int, remove: Callable[[int], None]
) -> None:
    remove(2)
    assert restante("maildrop", "purge", "ann", "--older-than", "1h", "--yes").out == (
        "Destroyed 0 messages.\n"
    )
    assert restante("maildrop", "purge", "--all", "--yes", "--json").json["purged"] == {"ann": 2}
    assert restante("maildrop", "held", "ann").out == ""
    assert len(restante("maildrop", "show", "ann").out.splitlines()) == mail - 1  # with heads


@pytest.mark.parametrize("user", ["ANN", "ann"])
def test_user_without_mail_is_not_an_error(restante: Restante, ann: str, user: str) -> None:
    for verb in (["show"], ["held"], ["restore", "--all"], ["purge", "--yes"]):
        assert restante("maildrop", verb[0], user, *verb[1:]).code == 0


@pytest.fixture
def journal(home: Path) -> Callable[..., None]:
    """Record a session of ann that removed the first messages, as the server does."""

    async def work(count: int, began: float) -> None:
        async with stores.store(load()).open("ann") as maildrop:
            first = list(maildrop.listing[:count])
            assert not await maildrop.remove(first)
            reported = ("192.0.2.7", "1.3", "phone\x1b[2J")
            session = SessionRecord(began, began + 1, *reported, first, first, "quit", unnamed=2)
            await maildrop.record(session)  # type: ignore[attr-defined]

    return lambda count, began: asyncio.run(work(count, began))


def test_log_shows_logins_and_deletions(
    restante: Restante, mail: int, journal: Callable[..., None]
) -> None:
    journal(1, time.time() - 7200)
    journal(1, time.time() - 60)
    found = restante("maildrop", "log", "ann")
    assert found.code == 0
    lines = found.out.splitlines()
    assert all(line.isprintable() for line in lines)
    heads, first, second, empty, deleted_heads, *deleted = lines
    assert heads.split() == ["BEGAN", "LOGIN", "ADDRESS", "TLS", "RETRIEVED", "DELETED", "END"]
    session = r"\d{4}-\d\d-\d\d \d\d:\d\d  phone.*  192\.0\.2\.7  1\.3 +3 +1  quit"
    assert re.fullmatch(session, first)
    assert re.fullmatch(session, second)
    assert empty == ""
    assert deleted_heads.split() == ["DELETED", "UNIQUE-ID", "SIZE", "FROM", "SUBJECT"]
    assert ["äpfel" in line for line in deleted] == [True, False]
    (session,) = restante("maildrop", "log", "ann", "--since", "1h", "--json").json["sessions"]
    assert session["removed"] == session["retrieved"]
    assert session["retrieved_messages"] == 3
    assert session.keys() == {
        *("began_at", "ended_at", "address", "tls", "credential", "end"),
        *("retrieved", "retrieved_messages", "removed"),
    }
    assert restante("maildrop", "purge", "ann", "--yes").code == 0
    assert restante("maildrop", "log", "ann").out.count("no longer held") == 2


def test_verify_and_reindex(restante: Restante, mail: int, home: Path) -> None:
    good = restante("maildrop", "verify", "ann")
    assert (good.code, good.out) == (0, "ann: 5 messages read, no faults\n")
    cur = Path(load().store.path.replace("%u", "ann"), "cur")
    (cur / "1.x,S=1,W=99:2,").write_bytes(b"x")
    bad = restante("maildrop", "verify", "--all")
    assert bad.code == 65
    assert bad.out.splitlines() == [
        "ann: 6 messages read, 1 fault",
        "    size differs: 1.x the announced size is 99 octets, the real size is 3",
    ]
    (row,) = restante("maildrop", "verify", "--all", "--json").json["maildrops"]
    assert [each["what"] for each in row["findings"]] == ["size differs"]
    again = restante("maildrop", "reindex", "ann")
    assert (again.code, again.out) == (0, "ann: 6 messages indexed\n")
    assert restante("maildrop", "verify", "ann").code == 0
    assert restante("maildrop", "verify").code == 64
    (row,) = restante("maildrop", "reindex", "--all", "--json").json["maildrops"]
    assert row == {"user": "ann", "in_use": False, "messages": 6}


@pytest.mark.parametrize("verb", ["verify", "reindex"])
def test_a_maildrop_in_use_is_looked_at_later(restante: Restante, mail: int, verb: str) -> None:
    async def main() -> None:
        async with stores.store(load()).open("ann"):
            for whose in ("ann", "--all"):
                found = await asyncio.to_thread(restante, "maildrop", verb, whose)
                assert (found.code, found.out) == (75, "")
                assert found.err.startswith("ann: maildrop in use by another session")

    asyncio.run(main())


def test_a_maildrop_that_cannot_be_read_hides_no_other(
    restante: Restante, home: Path, mail: int, remove: Callable[[int], None]
) -> None:
    """It is named in an error."""
    remove(1)
    for user in "adam", "zoe":
        path = home / "state/restante/mail" / user
        (path / "new").mkdir(parents=True)
        for name in "cur", "held":
            (path / name).write_text("no directory")
    reported = [f"{user}: mail storage: Not a directory" for user in ("adam", "zoe")]
    for verb in ["list"], ["verify", "--all"], ["reindex", "--all"], ["purge", "--all", "--yes"]:
        found = restante("maildrop", *verb)
        assert (found.code, found.err.splitlines()) == (74, reported)
        assert len(found.out.splitlines()) == (2 if verb == ["list"] else 1)  # with heads
    rows = {row["user"]: row for row in restante("maildrop", "list", "--json").json["maildrops"]}
    assert rows["zoe"]["error"] == "mail storage: Not a directory"
    assert rows["ann"]["messages"] == mail - 1
