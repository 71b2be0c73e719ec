"""Runs commands with a new home and state, independent of this machine's configuration."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from restante.cli.main import main

Restante = Callable[..., "Outcome"]


class Input(io.TextIOWrapper):
    """Standard input: a file, or a terminal with a user."""

    is_terminal = False

    def isatty(self) -> bool:
        return self.is_terminal


@dataclass
class Outcome:
    """The result of a command: its exit code and output."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory for everything."""
    for name in list(os.environ):
        if name.startswith("RESTANTE"):
            monkeypatch.delenv(name)
    for name in ("STATE_DIRECTORY", "JOURNAL_STREAM"):
        monkeypatch.delenv(name, raising=False)
    places = {"HOME": "", "XDG_STATE_HOME": "state", "XDG_CONFIG_HOME": "config", "TMPDIR": "tmp"}
    for name, place in places.items():
        (tmp_path / place).mkdir(exist_ok=True)
        monkeypatch.setenv(name, str(tmp_path / place))
    return tmp_path


@pytest.fixture
def state(home: Path) -> Path:
    return home / "state" / "restante"


@pytest.fixture
def restante(
    home: Path,
    loggers: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Restante:
    """Run a command in this process."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
        (home / "stdin").write_bytes(stdin)
        capsys.readouterr()
        with open(home / "stdin", "rb") as file:
            monkeypatch.setattr(sys, "stdin", Input(file))
            try:
                code = main([str(each) for each in arguments])
            except SystemExit as end:  # argparse
                code = end.code if isinstance(end.code, int) else 1
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def ann(restante: Restante) -> str:
    """Add user ann with the password "tan staaf"."""
    assert restante("user", "add", "ann", stdin=b"tan staaf\n").code == 0
    return "ann"


@contextmanager
def started(*arguments: str | Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command as a separate process, which is ended with the block."""
    command = [sys.executable, "-W", "error", "-m", "restante", *map(str, arguments)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **{**pipes, **options}) as process:
        try:
            yield process
        finally:
            process.kill()


def program(*arguments: str | Path, stdin: bytes = b"", **options: Any) -> Outcome:
    """Run a command as a separate process."""
    with started(*arguments, **options) as process:
        out, err = process.communicate(stdin if process.stdin else None, timeout=30)
    return Outcome(process.returncode, (out or b"").decode(), (err or b"").decode())
