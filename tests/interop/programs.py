"""Finding, starting and stopping other programs and our server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import smtplib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

RESTANTE = (sys.executable, "-m", "restante")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_PASSWORD = "tan staaf"
_PATIENCE = 50  # seconds after which a program counts as hung


def need(program: str) -> str:
    """Return the path of a program; in CI its absence is a failure."""
    found = shutil.which(program, path=_PATH)
    if found is None:
        missing(f"{program} is not installed; .ci/run shows which packages these tests need")
    return found


def missing(text: str) -> NoReturn:
    """Skip on a developer's machine, and fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)


def call(
    *command: str | Path, stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end; it may fail."""
    return subprocess.run(
        [str(part) for part in command],
        input=stdin,
        capture_output=True,
        timeout=_PATIENCE,
        env={**os.environ, "LC_ALL": "C", **(environment or {})},
        check=False,
    )


@contextmanager
def running(
    *command: str | Path,
    environment: Mapping[str, str] | None = None,
    last_signal: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a process group, which is killed at the end."""
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield process
    finally:
        process.send_signal(last_signal)
        try:
            process.communicate(timeout=_PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Account:
    """An account: a user and a server."""

    port: int
    ca: Path
    user: str
    password: str
    implicit: bool = True
    """TLS from the first octet; otherwise STLS."""
    keep: bool = False
    """Leave the mail on the server."""


@dataclass
class Server:
    """``restante serve --ephemeral`` and its output."""

    told: dict[str, str]
    user: str
    password: str

    @property
    def maildir(self) -> Path:
        return Path(self.told["maildir"].replace("%u", self.user))

    @property
    def ca(self) -> Path:
        return Path(self.told["ca"])

    def port(self, scheme: str) -> int:
        return int(self.told[scheme].rpartition(":")[2])

    def account(self, scheme: str, *, keep: bool = False) -> Account:
        """Return the account; ``scheme``: pop3s, or pop3 with STLS."""
        implicit = scheme == "pop3s"
        return Account(self.port(scheme), self.ca, self.user, self.password, implicit, keep)

    def deliver(self, messages: Iterable[bytes]) -> None:
        """Deliver by LMTP, as a mail server does."""
        with smtplib.LMTP("127.0.0.1", self.port("lmtp")) as lmtp:
            for message in messages:
                refused = lmtp.sendmail("sender@example.org", [self.user], message)
                assert refused == {}

    def stored(self) -> list[bytes]:
        """Return the octets of every message file, oldest first."""
        return _read(self.maildir / "new") + _read(self.maildir / "cur")

    def held(self) -> list[bytes]:
        """Return the octets of every held message."""
        return _read(self.maildir / "held")


def _read(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*"))]


@contextmanager
def serving() -> Iterator[Server]:
    with running(*RESTANTE, "serve", "--ephemeral") as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        [(user, password)] = told["users"].items()
        yield Server(told, user, password)


@contextmanager
def configured(folder: Path, text: str) -> Iterator[Server]:
    """Run ``restante serve`` with this configuration and one user.

    Its mail and its state are in ``folder``.
    """
    (folder / "restante.toml").write_text(text)
    add_user(folder, "mrose")
    with started(folder, "mrose") as server:
        yield server


@contextmanager
def started(folder: Path, user: str) -> Iterator[Server]:
    """Run ``restante serve`` with ``folder``/restante.toml; it is killed at the end."""
    command = (*RESTANTE, "-c", folder / "restante.toml", "--json", "serve")
    with running(*command, environment=_environment(folder), last_signal=signal.SIGKILL) as process:
        assert process.stdout is not None
        addresses = {**json.loads(process.stdout.readline()), "maildir": f"{folder}/state/mail/%u"}
        yield Server(addresses, user, _PASSWORD)


def add_user(folder: Path, user: str) -> None:
    """Add a user whose password has a space."""
    (folder / "password").write_text(_PASSWORD)
    words = ("user", "add", user, "--password-file", folder / "password")
    done = call(*RESTANTE, "-c", folder / "restante.toml", *words, environment=_environment(folder))
    assert done.returncode == os.EX_OK, done.stderr


def _environment(folder: Path) -> dict[str, str]:
    return {"HOME": str(folder), "STATE_DIRECTORY": str(folder / "state")}


def differences(found: Iterable[bytes], wanted: Iterable[bytes]) -> list[str]:
    """Return short differences, in any order: pytest takes minutes for large messages."""
    found, wanted = Counter(found), Counter(wanted)
    more, fewer = sorted((found - wanted).elements()), sorted((wanted - found).elements())
    told = []
    if len(more) != len(fewer):
        told.append(f"{len(more)} messages where there should be {len(fewer)}")
    for one, other in zip(more[:5], fewer, strict=False):
        at = next(
            (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other)
        )
        near = slice(max(at - 30, 0), at + 30)
        told.append(f"octet {at}: {one[near]!r} should be {other[near]!r}")
    return told
