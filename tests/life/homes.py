"""An installation of restante for tests: its configuration, state and commands."""

from __future__ import annotations

import atexit
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import Any

from restante.cli.main import main

PASSWORDS = {"ann": "correct horse battery staple", "bob": "tan staaf"}
_BUG = 70  # EX_SOFTWARE


@dataclass(frozen=True)
class Ran:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Home:
    """The files of one installation, and its commands."""

    def __init__(self, place: Path, *, workers: int = 1) -> None:
        self.place = place
        self.mail = place / "mail"
        self.state = place / "state"
        self.configuration = place / "restante.toml"
        self.options: dict[str, dict[str, Any]] = {
            "server": {
                "hostname": "localhost",
                "listen": ["pop3://127.0.0.1:0", "pop3s://127.0.0.1:0"],
                "workers": workers,
            },
            "store": {"path": f"{self.mail}/%u"},
            "auth": {
                "users": f"{self.state}/users.sqlite3",
                "allow_plaintext_from": ["127.0.0.0/8"],
                "failure_delay": "0",
                "trusted": ["127.0.0.0/8"],
            },
            "intake.lmtp": {"listen": ["127.0.0.1:0"]},
            "intake.smtp": {"listen": ["127.0.0.1:0"], "domains": ["localhost"]},
            "limits": {},
            "log": {"format": "json"},
        }

    def fill(self) -> None:
        """Make the initial state: two users and a certificate."""
        shutil.copytree(_template(), self.place, dirs_exist_ok=True)
        self.configure()

    def configure(self, section: str = "", **changes: Any) -> None:
        """Write the configuration; options that are None are omitted."""
        if section:
            self.options.setdefault(section, {}).update(changes)
        lines = []
        for name, options in self.options.items():
            lines.append(f"[{name}]")
            lines += [f"{k} = {_toml(v)}" for k, v in options.items() if v is not None]
        self.configuration.write_text("\n".join([*lines, ""]))
        self.configuration.chmod(0o600)

    def run(self, *arguments: str, stdin: bytes = b"") -> Ran:
        """Run a command in this process."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
        with self.environment(), _input(stdin), redirect_stdout(out), redirect_stderr(err):
            try:
                code = main(["--json", "-c", str(self.configuration), *arguments])
            except SystemExit as end:  # argparse
                code = end.code if isinstance(end.code, int) else 1
        out.seek(0)
        err.seek(0)
        ran = Ran(code, out.read(), err.read())
        assert code != _BUG, f"restante {' '.join(arguments)}: {ran.err}"
        return ran

    def must(self, *arguments: str, stdin: bytes = b"") -> Any:
        """Run a command that must succeed; returns the JSON that it prints."""
        ran = self.run(*arguments, stdin=stdin)
        assert ran.code == 0, f"restante {' '.join(arguments)}: exit code {ran.code}, {ran.err}"
        return ran.json

    @contextmanager
    def environment(self) -> Iterator[None]:
        names = ("STATE_DIRECTORY", "HOME", "XDG_CONFIG_HOME")
        before = {name: os.environ.get(name) for name in names}
        os.environ |= dict(zip(names, map(str, (self.state, self.place, self.place)), strict=True))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@cache
def _template() -> Path:
    """Make the initial state once for all lives: hashing passwords is slow."""
    home = Home(Path(mkdtemp(prefix="life-", dir=memory())))
    atexit.register(shutil.rmtree, home.place, ignore_errors=True)
    home.state.mkdir(mode=0o700)
    home.mail.mkdir(mode=0o700)
    home.configure()
    for name, password in PASSWORDS.items():
        home.must("user", "add", name, stdin=f"{password}\n".encode())
    return home.place


def memory() -> Path | None:
    """Return a directory in memory if there is one: no test here depends on a real disk."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else None


def _toml(value: object) -> str:
    return json.dumps(value) if not isinstance(value, dict) else _table(value)


def _table(values: Mapping[str, object]) -> str:
    return "{ " + ", ".join(f"{key} = {_toml(value)}" for key, value in values.items()) + " }"


@contextmanager
def _input(octets: bytes) -> Iterator[None]:
    """Replace standard input by a file with these octets."""
    with TemporaryFile() as file, io.TextIOWrapper(file) as text:
        file.write(octets)
        file.seek(0)
        before, sys.stdin = sys.stdin, text
        try:
            yield
        finally:
            sys.stdin = before
