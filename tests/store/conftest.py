"""Each contract test runs against every store."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from restante.maildrop import Expiring, Holding, Store
from restante.store.maildir import MaildirStore
from restante.store.memory import MemoryStore


class HoldingStore(Store, Holding, Expiring, Protocol):
    """A store that holds removed mail and expires old mail."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The path of the Maildir of user ``ann``."""
    return tmp_path / "ann"


@pytest.fixture
def maildir(tmp_path: Path) -> MaildirStore:
    return MaildirStore(f"{tmp_path}/%u")


@pytest.fixture(params=["memory", "maildir"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> HoldingStore:
    return MemoryStore() if request.param == "memory" else MaildirStore(f"{tmp_path}/%u")
