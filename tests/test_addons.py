"""``offers`` agrees with ``isinstance`` of runtime protocols."""

from __future__ import annotations

from pathlib import Path

import pytest

from restante.addons import offers
from restante.maildrop import Journal, NamedDelivery, Paced, RawReading, Viewing
from restante.store.maildir import MaildirStore
from restante.store.memory import MemoryStore


class Complete:
    async def record(self, session: object) -> None: ...

    async def past(self, credential: str) -> tuple[()]:
        return ()


class Half:
    async def record(self, session: object) -> None: ...


class Inherits(Complete):
    pass


class Sometimes:
    def __init__(self, *, has_both: bool) -> None:
        self.record = Complete().record
        if has_both:
            self.past = Complete().past


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (Complete(), True),
        (Inherits(), True),
        (Half(), False),
        (object(), False),
        (Sometimes(has_both=True), True),
        (Sometimes(has_both=False), False),
    ],
)
def test_add_on_needs_all_its_methods_in_this_object(thing: object, expected: bool) -> None:
    assert offers(thing, Journal) is isinstance(thing, Journal) is expected


def test_memory_store_has_no_folders_and_no_named_delivery(tmp_path: Path) -> None:
    memory, files = MemoryStore(), MaildirStore(f"{tmp_path}/%u")
    for add_on in (NamedDelivery, Viewing, Paced, RawReading):
        assert offers(memory, add_on) is isinstance(memory, add_on)
        assert offers(files, add_on) is isinstance(files, add_on)
    assert offers(files, Viewing)
    assert not offers(memory, Viewing)
