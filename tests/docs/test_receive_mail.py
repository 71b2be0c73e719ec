"""The limits and replies in docs/howto/receive-mail.md agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

from restante.errors import (
    LargerThanQuota,
    MessageRefused,
    MessageTooLarge,
    NoSuchUser,
    QuotaExceeded,
    TemporaryFailure,
)
from restante.server import intake
from restante.smtp import content
from restante.smtp.grammar import MAX_LINE, failure
from restante.smtp.session import Policy
from restante.store import partial

PAGE = (Path(__file__).parents[2] / "docs/howto/receive-mail.md").read_text()


def test_limits_on_the_page_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| ([^|]+) \| (\d+)(?: minutes)? \|", PAGE, re.MULTILINE))
    policy = Policy("mail.example.org", 1)
    assert {limit: int(value) for limit, value in rows.items()} == {
        "recipients of a message": policy.recipients,
        "commands other than RCPT since the last delivered message": policy.commands,
        "RCPT commands since the last delivered message": policy.recipient_commands,
        "bad commands": policy.bad_commands,
        "unknown recipients": policy.unknown_recipients,
        "octets of a command line": MAX_LINE,
        "idle time": intake._IDLE_TIMEOUT / 60,
        "from MAIL to the end of the message": intake._MESSAGE_TIMEOUT / 60,
        "a session": intake._SESSION_TIMEOUT / 60,
    }
    assert f"more than {content._MAX_HOPS} `Received` fields" in PAGE
    assert intake._MAX_IN_MEMORY == 64 * 1024
    assert partial._RETENTION == 7 * 86_400


def test_replies_on_the_page_are_those_of_the_code() -> None:
    named = set(re.findall(r"`(\d{3} \d\.\d\.\d)`", PAGE))
    errors = [NoSuchUser("x"), MessageTooLarge(1), LargerThanQuota(1), MessageRefused("x")]
    replies = [failure(each) for each in (*errors, QuotaExceeded(1), TemporaryFailure("x"))]
    made = {f"{reply.code} {reply.status}" for reply in replies}
    assert named == made | {"550 5.7.1", "554 5.4.6", "452 4.5.3"}
