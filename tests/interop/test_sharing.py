"""An IMAP server works on the same Maildir while our sessions are open.

No wrong message is ever served or removed, message-numbers stay, and the rest of the session
goes on (docs/design.md).
"""

from __future__ import annotations

import poplib
from collections.abc import Iterator

import pytest

from .shared import Shared, retrieve, shared, unique_ids

pytestmark = pytest.mark.interop

MESSAGES = [f"Subject: {number}\r\n\r\nbody of {number}\r\n".encode() for number in range(1, 6)]


@pytest.fixture
def servers() -> Iterator[Shared]:
    with shared(MESSAGES) as servers:
        yield servers


def test_flags_do_not_disturb_a_session(servers: Shared) -> None:
    with servers.pop3() as pop3:
        before = unique_ids(pop3)
        with servers.imap() as imap:
            imap.store("1:5", "+FLAGS", r"(\Seen \Flagged $Label1)")
            assert [retrieve(pop3, number) for number in range(1, 6)] == MESSAGES
            imap.store("2:3", "-FLAGS", r"(\Flagged)")
            pop3.dele(2)
            imap.store("1:5", "+FLAGS", r"(\Answered)")
        pop3.quit()
    with servers.pop3() as pop3:
        assert list(unique_ids(pop3).values()) == [
            unique_id for number, unique_id in before.items() if number != b"2"
        ]
        fetched = [retrieve(pop3, number) for number in range(1, 5)]
    assert fetched == [MESSAGES[0], *MESSAGES[2:]]


def test_expunged_message_is_an_error_and_the_others_are_kept(servers: Shared) -> None:
    with servers.pop3() as pop3:
        with servers.imap() as imap:
            imap.store("2", "+FLAGS", r"(\Deleted)")
            imap.expunge()
        with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/TEMP\]"):
            pop3.retr(2)
        assert pop3.stat()[0] == 5
        assert [retrieve(pop3, number) for number in (1, 3, 4, 5)] == [MESSAGES[0], *MESSAGES[2:]]
        pop3.dele(2)
        pop3.dele(3)
        pop3.quit()
    with servers.pop3() as pop3:
        assert [retrieve(pop3, number) for number in (1, 2, 3)] == [MESSAGES[0], *MESSAGES[3:]]


def test_moved_message_is_not_removed_from_its_new_folder(servers: Shared) -> None:
    with servers.imap() as imap:
        imap.create("Kept")
    with servers.pop3() as pop3:
        with servers.imap() as imap:
            moved = imap.uid("MOVE", "2,4", "Kept")
            assert moved[0] == "OK", moved
        for number in range(1, 6):
            pop3.dele(number)
        pop3.quit()
    with servers.imap() as imap:
        assert imap.select("INBOX") == ("OK", [b"0"])
        assert imap.select("Kept") == ("OK", [b"2"])
        bodies = [imap.fetch(number, "(RFC822)")[1][0][1] for number in ("1", "2")]  # type: ignore[index]
    assert bodies == [MESSAGES[1], MESSAGES[3]]


def test_appended_mail_waits_for_the_next_session(servers: Shared) -> None:
    with servers.pop3() as pop3:
        before = unique_ids(pop3)
        with servers.imap() as imap:
            imap.append("INBOX", r"(\Seen)", "", b"Subject: new\r\n\r\nappended\r\n")
        assert pop3.stat()[0] == 5
        with pytest.raises(poplib.error_proto):
            pop3.retr(6)
        pop3.dele(5)
        pop3.quit()
    with servers.pop3() as pop3:
        after = unique_ids(pop3)
        assert [after[number] for number in (b"1", b"2", b"3", b"4")] == list(before.values())[:4]
        assert retrieve(pop3, 5) == b"Subject: new\r\n\r\nappended\r\n"


def test_imap_sees_mail_removed_and_restored_by_pop3(servers: Shared) -> None:
    with servers.imap() as imap:
        with servers.pop3() as pop3:
            pop3.dele(1)
            pop3.dele(2)
            pop3.quit()
        imap.noop()
        assert imap.select("INBOX") == ("OK", [b"3"])
        restored = servers.command("maildrop", "restore", "mrose", "--all")
        assert restored.returncode == 0, restored.stderr
        imap.noop()
        assert imap.select("INBOX") == ("OK", [b"5"])
    assert sorted(servers.everywhere()) == sorted(MESSAGES)


def test_unique_ids_survive_changes_by_imap(servers: Shared) -> None:
    with servers.pop3() as pop3:
        before = unique_ids(pop3)
    with servers.imap() as imap:
        imap.store("1:5", "+FLAGS", r"(\Seen)")
        imap.store("1:5", "-FLAGS", r"(\Seen)")
        imap.store("3", "+FLAGS", r"(\Deleted)")
        imap.expunge()
    with servers.pop3() as pop3:
        after = unique_ids(pop3)
    del before[b"3"]
    assert list(after.values()) == list(before.values())
