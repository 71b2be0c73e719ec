"""Other mail readers and libraries, with their defaults, fetch from our server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .programs import Server, configured, differences
from .readers import READERS
from .test_clients import MESSAGES

pytestmark = pytest.mark.interop

CONFIGURATION = """
[server]
listen = ["pop3s://127.0.0.1:0", "pop3://127.0.0.1:0"]
workers = 1
[auth]
allow_plaintext_from = ["127.0.0.0/8"]
[intake.lmtp]
listen = ["127.0.0.1:0"]
[intake.smtp]
listen = ""
"""
ROWS = [(name, each) for name, reader in READERS.items() for each in reader.securities]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with configured(tmp_path_factory.mktemp("server"), CONFIGURATION) as server:
        yield server


@pytest.mark.parametrize(("name", "security"), ROWS, ids=[" ".join(row) for row in ROWS])
def test_lists_fetches_and_deletes(
    name: str, security: str, server: Server, tmp_path: Path
) -> None:
    reader = READERS[name]
    for path in server.maildir.glob("*/*.*"):
        path.unlink()
    server.deliver(MESSAGES)
    sent = server.stored()
    account = server.account("pop3s" if security == "tls" else "pop3")
    fetched = reader.read(account, security, tmp_path)
    assert reader.differences(fetched.messages, sent) == []
    assert fetched.sizes in (None, [len(message) for message in sent])
    first = 1 if reader.deletes else 0
    assert differences(server.stored(), sent[first:]) == []
    assert differences(server.held(), sent[:first]) == []
