"""Folders made by Dovecot's IMAP server are opened by POP3."""

from __future__ import annotations

import poplib
from collections.abc import Iterator

import pytest

from .shared import Shared, retrieve, shared, unique_ids

pytestmark = pytest.mark.interop

MESSAGE = b"Subject: x\r\n\r\nin a folder\r\n"


@pytest.fixture
def servers() -> Iterator[Shared]:
    with shared([b"Subject: y\r\n\r\nin the INBOX\r\n"]) as servers:
        yield servers


@pytest.mark.parametrize(
    ("imap_name", "folder"),
    [
        ("Junk", "Junk"),
        ("Lists.Python", "Lists.Python"),
        ("Entw&APw-rfe", "Entwürfe"),
        ("A&-B", "A&B"),
        ('"two words"', "two words"),
    ],
)
def test_a_folder_of_imap_is_a_maildrop(servers: Shared, imap_name: str, folder: str) -> None:
    with servers.imap() as imap:
        assert imap.create(imap_name)[0] == "OK"
        assert imap.append(imap_name, "", "", MESSAGE)[0] == "OK"
    with servers.pop3(f"mrose+{folder}") as pop3:
        assert retrieve(pop3, 1) == MESSAGE
        pop3.dele(1)
        pop3.quit()
    with servers.imap() as imap:
        assert imap.select(imap_name) == ("OK", [b"0"])
        assert imap.select("INBOX") == ("OK", [b"1"])
        listed = b" ".join(each for each in imap.list()[1] if isinstance(each, bytes))
    assert b"held" not in listed
    restored = servers.command("maildrop", "restore", "mrose", "--all", "--same-uidl")
    assert restored.returncode == 0, restored.stderr
    with servers.imap() as imap:
        assert imap.select(imap_name) == ("OK", [b"1"])


def test_a_folder_that_imap_deletes_is_gone(servers: Shared) -> None:
    with servers.imap() as imap:
        imap.create("Junk")
        imap.append("Junk", "", "", MESSAGE)
    with servers.pop3("mrose+Junk") as pop3:
        assert len(unique_ids(pop3)) == 1
    with servers.imap() as imap:
        assert imap.delete("Junk")[0] == "OK"
    with (
        pytest.raises(poplib.error_proto, match="no such folder"),
        servers.pop3("mrose+Junk"),
    ):
        pass
