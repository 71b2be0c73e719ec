"""From Debian's collectors to ours: what they have seen is not downloaded again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import clients
from .programs import RESTANTE, Server, call, serving

pytestmark = pytest.mark.interop

CONFIGURATIONS = {"fetchmail": "fetchmailrc", "getmail": "getmailrc", "mpop": "mpoprc"}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.deliver(b"Subject: %d\r\n\r\nold\r\n" % at for at in range(30))
        yield running


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_the_first_run_downloads_nothing_again(kind: str, server: Server, tmp_path: Path) -> None:
    """And the second only what is new."""
    program: clients.Client = getattr(clients, kind)
    status, messages = program(server.account("pop3s", keep=True), tmp_path)
    assert (status, len(messages)) == (0, 30)

    environment = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }

    def restante(*words: str | Path) -> dict[str, object]:
        done = call(*RESTANTE, "--json", *words, environment=environment)
        assert done.returncode == os.EX_OK, done.stderr
        return dict(json.loads(done.stdout))

    control = tmp_path / CONFIGURATIONS[kind]
    inbox = tmp_path / "Mail"
    taken = restante("import", kind, control, "--to", f"maildir:{inbox}")
    assert (taken["seen"], taken["keep"]) == (30, "all")
    assert restante("collect", "--all")["stored"] == 0
    server.deliver([b"Subject: new\r\n\r\nnew\r\n"])
    assert restante("collect", "--all")["stored"] == 1
    (new,) = (inbox / "new").iterdir()
    assert new.read_bytes().endswith(b"Subject: new\r\n\r\nnew\r\n")
