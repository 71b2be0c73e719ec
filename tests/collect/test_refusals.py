"""A destination that refuses mail: one bad message does not stop the rest."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from restante.collect.ledger import Ledger
from restante.collect.plan import Policy
from restante.errors import TemporaryFailure

from .shelf import Shelf
from .test_collector import Home, text

ALL = Policy(keep=0.0)
HOUR = 3600.0


class Program:
    """A delivery program that rejects messages with certain words, each with an exit code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "out").mkdir()
        self.rejects({})

    def rejects(self, codes: dict[str, int], usual: int = 0) -> None:
        (self.folder / "program").write_text(
            "import sys\n"
            "word = sys.stdin.read().split()[-1]\n"
            f"code = {codes!r}.get(word, {usual})\n"
            "if not code:\n"
            f"    open({str(self.folder / 'out')!r} + '/' + word, 'x')\n"
            "sys.exit(code)\n"
        )

    def stored(self) -> set[str]:
        return {path.name for path in (self.folder / "out").iterdir()}


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture
def home(
    program: Program, server_tls: ssl.SSLContext, certificate: tuple[Path, Path]
) -> Iterator[Home]:
    place = f"command:{sys.executable} {program.folder}/program"
    with closing(Ledger(program.folder / "ledger")) as ledger:
        yield Home(Shelf(), ledger, place, server_tls, certificate[0])


def fill(home: Home, count: int) -> list[str]:
    words = [f"w{at}" for at in range(count)]
    home.shelf.rows = [(word, text(word)) for word in words]
    return words


def left(home: Home) -> set[str]:
    return {row[0] for row in home.shelf.rows}


@pytest.mark.slow
@pytest.mark.parametrize("code", [1, 65, 69, 77, 126])
@pytest.mark.parametrize("count", [1, 2, 15])
@pytest.mark.parametrize("bad", [0, -1])
def test_one_bad_message_stays_and_the_others_are_stored(
    code: int, count: int, bad: int, home: Home, program: Program
) -> None:
    """It is reported, tried last in the next run, and then postponed."""
    words = fill(home, count)
    poison = words[bad]
    program.rejects({poison: code})
    outcome = home.collect(ALL)
    assert (outcome.stored, outcome.deleted) == (count - 1, count - 1)
    assert len(outcome.refused) == 1
    assert left(home) == {poison}
    again = home.collect(ALL)
    assert len(again.refused) == 1
    waits = home.collect(ALL)
    assert (waits.refused, len(waits.skipped)) == ([], 1)
    program.rejects({})
    home.now += 25 * HOUR
    assert home.collect(ALL).stored == 1
    assert program.stored() == set(words)
    assert left(home) == set()


@pytest.mark.slow
@pytest.mark.parametrize("code", [75, 1])
def test_broken_program_stops_the_account_and_postpones_no_message(
    code: int, home: Home, program: Program
) -> None:
    words = fill(home, 30)
    program.rejects({}, usual=code)
    for _ in range(4):
        with pytest.raises(TemporaryFailure):
            home.collect(ALL)
    assert left(home) == set(words)
    program.rejects({})
    outcome = home.collect(ALL)
    assert (outcome.stored, outcome.deleted) == (30, 30)
    assert program.stored() == set(words)


@pytest.mark.slow
def test_many_bad_messages_in_a_row_do_not_block_the_others_forever(
    home: Home, program: Program
) -> None:
    """They crash the program, which then seems broken: the next run tries the others first."""
    words = fill(home, 30)
    program.rejects(dict.fromkeys(words[:12], 1))
    with pytest.raises(TemporaryFailure):
        home.collect(ALL)
    for _ in range(2):
        home.collect(ALL)
    assert program.stored() == set(words[12:])
    assert left(home) == set(words[:12])
