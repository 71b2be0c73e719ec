"""Dovecot's ``maildir`` quota and ours read and write the same file."""

from __future__ import annotations

import json
import re
import smtplib
from collections.abc import Iterator

import pytest

from .shared import Shared, shared

pytestmark = pytest.mark.interop

KIB = 1024
_DOVECOT = """
mail_plugins = quota
protocol imap {
  mail_plugins = quota imap_quota
}
plugin {
  quota = maildir:User quota
  quota_rule = *:storage=100K
  quota_grace = 0
}
"""


@pytest.fixture
def servers() -> Iterator[Shared]:
    with shared([], quota="100KiB", dovecot_too=_DOVECOT) as servers:
        yield servers


def deliver(servers: Shared, octets: int) -> int:
    """Deliver by our LMTP; returns the reply code."""
    with smtplib.LMTP("127.0.0.1", servers.port("lmtp")) as lmtp:
        try:
            lmtp.sendmail("bob@example.org", ["mrose"], b"Subject: x\r\n\r\n" + b"x" * octets)
        except smtplib.SMTPDataError as refused:
            return refused.smtp_code
    return 250


def used_by_imap(servers: Shared) -> int:
    """Return the KiB used, rounded up, by Dovecot's IMAP server (RFC 9208)."""
    with servers.imap() as imap:
        answer = imap.getquotaroot("INBOX")[1][1][0]
    found = re.search(rb"STORAGE (\d+) 100", answer)
    assert found
    return int(found[1])


def used_by_us(servers: Shared) -> int:
    """Return the octets used by our server."""
    (row,) = json.loads(servers.command("--json", "maildrop", "list").stdout)["maildrops"]
    assert row["quota"] == 100 * KIB
    used: int = row["used"]
    return used


def lines(servers: Shared) -> list[str]:
    return (servers.maildir / "maildirsize").read_text().splitlines()


def there(servers: Shared) -> int:
    """Return the octets of all messages that are not held."""
    found = [*servers.maildir.rglob("new/*"), *servers.maildir.rglob("cur/*")]
    return sum(path.stat().st_size for path in found)


def test_both_servers_count_mail_stored_by_the_other(servers: Shared) -> None:
    assert deliver(servers, 30 * KIB) == 250
    assert used_by_imap(servers) == 31
    with servers.imap() as imap:
        imap.create("Kept")
        for folder in ("INBOX", "Kept"):
            assert imap.append(folder, "", "", b"x" * 10 * KIB)[0] == "OK"
    before = lines(servers)
    assert used_by_us(servers) == there(servers)
    assert deliver(servers, 10) == 250
    assert lines(servers)[:-1] == before, "neither of them recounted"
    assert before[0] == "102400S"


def test_both_servers_count_mail_removed_by_the_other(servers: Shared) -> None:
    for _ in range(3):
        assert deliver(servers, 20 * KIB) == 250
    with servers.imap() as imap:
        imap.store("1", "+FLAGS", r"(\Deleted)")
        imap.expunge()
    assert used_by_us(servers) == there(servers)
    with servers.pop3() as pop3:
        pop3.dele(1)
        pop3.quit()
    assert used_by_us(servers) == there(servers)
    assert used_by_imap(servers) == 21


def test_both_refuse_when_the_other_has_filled_it(servers: Shared) -> None:
    assert deliver(servers, 60 * KIB) == 250
    with servers.imap() as imap:
        assert imap.append("INBOX", "", "", b"x" * 50 * KIB)[0] == "NO"
        assert imap.append("INBOX", "", "", b"x" * 30 * KIB)[0] == "OK"
    assert deliver(servers, 20 * KIB) == 452
    assert deliver(servers, 101 * KIB) == 552
    with servers.pop3() as pop3:
        pop3.dele(1)
        pop3.quit()
    with servers.imap() as imap:
        assert imap.append("INBOX", "", "", b"x" * 50 * KIB)[0] == "OK"


def test_both_servers_count_restored_mail(servers: Shared) -> None:
    assert deliver(servers, 20 * KIB) == 250
    with servers.pop3() as pop3:
        pop3.dele(1)
        pop3.quit()
    assert used_by_imap(servers) == 0
    restored = servers.command("maildrop", "restore", "mrose", "--all")
    assert restored.returncode == 0, restored.stderr
    assert used_by_imap(servers) == 21
    assert used_by_us(servers) == there(servers)
