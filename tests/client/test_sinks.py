"""A message is stored in a file completely and durably, or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from restante.client.sinks import FileSink


def test_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is durable before save() returns, since the message may then be deleted."""
    target, synced, fsync = tmp_path / "message", list[tuple[str, bool]](), os.fsync

    def noted(opened: int) -> None:
        fsync(opened)
        status = os.fstat(opened)
        what = "directory" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} octets"
        synced.append((what, target.exists()))

    monkeypatch.setattr(os, "fsync", noted)
    with FileSink(target) as file:
        file.write(b"Subject: x\r\n")
    assert synced == [("12 octets", False), ("directory", True)]


def test_incomplete_message_leaves_no_trace(tmp_path: Path) -> None:
    file = FileSink(tmp_path / "message").__enter__()
    file.write(b"Subject: x\r\n")
    file.__exit__(ConnectionResetError, ConnectionResetError(), None)
    assert list(tmp_path.iterdir()) == []
