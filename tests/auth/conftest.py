"""A user database with one user, and a count of what hashing costs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.kdf import argon2

from restante.auth import passwords
from restante.auth.users import Users


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state" / "users.sqlite3"


@pytest.fixture
def users(database: Path) -> Users:
    """Knows "mrose"."""
    found = Users(database, domains=["example.org"])
    found.add("mrose", "tan staaf")
    return found


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often argon2id was computed, by its parameters; time itself is not asserted."""
    counted: Counter[str] = Counter()
    real = argon2.Argon2id

    class Counting:
        def __call__(self, **parameters: Any) -> argon2.Argon2id:
            counted["made"] += 1
            return real(**parameters)

        def verify_phc_encoded(self, password: bytes, phc: str) -> None:
            counted[phc.split("$")[3]] += 1
            real.verify_phc_encoded(password, phc)

    passwords.decoy_hash()  # one is made in every process
    monkeypatch.setattr(argon2, "Argon2id", Counting())
    return counted
