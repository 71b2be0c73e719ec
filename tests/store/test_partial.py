"""Recipients who have a message that will be sent again are remembered for a week."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from restante.errors import ConfigurationError, TemporaryFailure
from restante.store import partial
from restante.store.partial import PartialDeliveries

DAY = 86_400


def recipients(deliveries: PartialDeliveries, message: bytes) -> set[str]:
    return set(asyncio.run(deliveries.recipients(message)))


def test_recipients_are_remembered_across_processes_and_forgotten_one_by_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "state" / "intake.sqlite3"
    assert recipients(PartialDeliveries(path), b"a") == set()
    assert not path.exists(), "a look creates nothing"
    asyncio.run(PartialDeliveries(path).remember(b"a", ["ann", "eve"]))
    asyncio.run(PartialDeliveries(path).remember(b"b", ["ann"]))
    assert path.stat().st_mode & 0o077 == 0
    assert recipients(PartialDeliveries(path), b"a") == {"ann", "eve"}
    asyncio.run(PartialDeliveries(path).forget(b"a", ["ann"]))
    assert recipients(PartialDeliveries(path), b"a") == {"eve"}
    assert recipients(PartialDeliveries(path), b"b") == {"ann"}


@pytest.mark.parametrize(("later", "known"), [(0, True), (6 * DAY, True), (8 * DAY, False)])
def test_memory_outlasts_the_retries_of_a_sender(tmp_path: Path, later: int, known: bool) -> None:
    """RFC 5321 §4.5.4.1: a sender gives up after four to five days."""
    now = 1_800_000_000.0
    deliveries = PartialDeliveries(tmp_path / "x", lambda: now)
    asyncio.run(deliveries.remember(b"a", ["ann"]))
    now += later
    asyncio.run(deliveries.remember(b"b", ["eve"]))  # removes old rows
    assert recipients(deliveries, b"a") == ({"ann"} if known else set())


def test_number_of_rows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_MAX_ROWS", 3)
    now = 0.0
    deliveries = PartialDeliveries(tmp_path / "x", lambda: now)
    for at in range(5):
        now = float(at)
        asyncio.run(deliveries.remember(b"%d" % at, ["ann"]))
    known = [at for at in range(5) if recipients(deliveries, b"%d" % at)]
    assert known == [2, 3, 4]


def test_damaged_or_newer_file_raises_our_errors(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(TemporaryFailure):
        recipients(PartialDeliveries(path), b"a")
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.commit()
    database.close()
    with pytest.raises(ConfigurationError, match="newer"):
        recipients(PartialDeliveries(path), b"a")
