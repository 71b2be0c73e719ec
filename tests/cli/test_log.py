"""``restante log``: earlier events come from systemd's journal, and only from there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from restante.cli import log

from .conftest import Restante


def test_earlier_events_are_refused_without_a_journal(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_JOURNAL", home / "missing")
    done = restante("log", "--since", "today")
    assert (done.code, done.out) == (os.EX_CONFIG, "")
    assert "journal" in done.err


def test_earlier_events_are_printed_by_journalctl(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "journalctl").write_text(f'#!/bin/sh\necho "$@" > {home}/called\nexit 3\n')
    (home / "journalctl").chmod(0o755)
    monkeypatch.setattr(log, "_JOURNAL", home)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    assert restante("log", "--since", "-1 hour", "-f").code == 3
    called = (home / "called").read_text()
    assert called == "--unit restante --since=-1 hour --no-pager --follow\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["--user", "ann"], ["--since", "today", "--user", "ann"], ["-f", "--level", "loud"]],
)
def test_invalid_options_are_refused(restante: Restante, arguments: list[str]) -> None:
    assert restante("log", *arguments).code == os.EX_USAGE


def test_no_server_is_an_error(restante: Restante, home: Path) -> None:
    done = restante("log", "-f")
    assert (done.code, done.out) == (os.EX_UNAVAILABLE, "")
    assert "no server is running" in done.err
