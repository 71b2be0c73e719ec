"""restante passes every scenario, the oracle detects failures, and the page is up to date."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..interop.programs import missing
from . import octets, report
from .programs import PROGRAMS, Program
from .remote import Remote
from .scenarios import FEW, SCENARIOS, mail
from .trial import Case, judge, normal

PAGE = Path(__file__).parent.parent.parent / "docs" / "comparison.md"
RESTANTE = PROGRAMS["restante"]
PATIENCE = 40.0  # seconds, for a busy machine
STEP = 211  # octets; ``./dev compare collectors`` uses smaller ones
MODES = [(name, keep) for name, scenario in SCENARIOS.items() for keep in scenario.modes]
# Reproducible failures of other programs.
KNOWN = [
    ("half-listing", "mpop", True, "twice"),
    ("half-listing", "fetchmail", True, "twice"),
    ("half-listing", "getmail6", True, ""),
    ("notify", "mpop", True, "fills"),
    ("fin", "fetchmail", True, "half"),
    ("retr-err", "mpop", True, "missing"),
    ("dot-lf", "getmail6", False, "lost"),
    ("quit-err", "getmail6", False, ""),
]


# -- The oracle


def stores(have: Callable[[list[bytes]], list[bytes]], gone: int, *, keep: bool) -> list[str]:
    """Return the verdict if a number of messages left the server and these are here."""
    remote = Remote(mail(FEW))
    for unique_id in list(remote.left)[:gone]:
        del remote.left[unique_id]
    texts = list(mail(FEW).values())
    return judge(Case(messages=mail(FEW), keep=keep), remote, have(texts)).wrong()


@pytest.mark.parametrize(
    ("have", "gone", "keep", "wrong"),
    [
        (lambda texts: texts, FEW, False, []),
        (lambda texts: texts, 0, True, []),
        (lambda texts: [each.replace(b"\r\n", b"\n") for each in texts], 0, True, []),
        (lambda texts: [b"Return-Path: <x>\n" + each for each in texts], 0, True, []),
        (lambda texts: texts[1:], FEW, False, ["lost"]),
        (lambda texts: texts[1:], 0, True, ["missing"]),
        (lambda texts: texts[1:] + texts, 0, True, ["twice"]),
        (lambda texts: [*texts, texts[0][:-9]], 0, True, ["half"]),
        (lambda texts: [*texts, texts[0][:150] + b"xxx"], 0, True, ["half"]),
        (lambda texts: [*texts, b""], 0, True, ["half"]),
        (lambda texts: [*texts, b"Subject: x\r\n"], 0, True, ["forged"]),
        (lambda texts: [texts[0] + b"x", *texts[1:]], FEW, False, ["lost", "half"]),
        (lambda texts: texts, 1, False, ["left"]),
        (lambda texts: texts, 1, True, ["removed"]),
    ],
)
def test_the_oracle(have: Any, gone: int, keep: bool, wrong: list[str]) -> None:
    assert stores(have, gone, keep=keep) == wrong


def test_oracle_finds_every_difference() -> None:
    texts = [normal(each)[:120] for each in mail(30).values()]
    assert len(set(texts)) == 30


@pytest.mark.parametrize(
    ("have", "verdict"),
    [
        ([b"A: b\r\n\r\n\0x\r\n"], "as sent"),
        ([b"A: b\n\n\0x\n"], "LF"),
        ([b"A: b\n\n\0x\n\n"], "LF, extra line ending"),
        ([b"A: b\n\nx\n"], "LF, without NULs"),
        ([b"Return-Path: <x>\nA: b\n\n\0x\n"], "LF, extra field"),
        ([b"A: b\n\n"], "truncated"),
        ([b"A: b\n\n\0y\n"], "changed"),
        ([], "not fetched"),
        ([b"", b""], "2 messages"),
    ],
)
def test_how_octets_differ(have: list[bytes], verdict: str) -> None:
    assert octets.explain(b"A: b\r\n\r\n\0x\r\n", have).verdict == verdict


# -- The page


def test_everything_was_tried_and_our_column_is_right() -> None:
    _, *found = report.read()
    cells = {(x["trouble"], x["kept"], x["program"]): x for x in found if "trouble" in x}
    programs = PROGRAMS.values()
    assert set(cells) == {
        (name, keep, each.name)
        for name, keep in MODES
        for each in programs
        if SCENARIOS[name].applies_to(each)
    }
    ours = [line for (*_, program), line in cells.items() if program == "restante"]
    assert [line for line in ours if line["wrong"] or not line["tries"]] == []
    kept = {(x["message"], x["to"], x["program"]): x["verdict"] for x in found if "message" in x}
    assert {
        (message, "maildir", each.name) for message in octets.MESSAGES for each in programs
    } <= (set(kept))
    assert {v for (_, to, p), v in kept.items() if (to, p) == ("maildir", "restante")} == {
        "as sent"
    }
    assert {v for (_, to, p), v in kept.items() if (to, p) == ("mbox", "restante")} <= {
        "as sent",
        "LF",
    }


def test_page_shows_the_recorded_results() -> None:
    assert "\n".join(report.page(report.read())).strip() in PAGE.read_text()


# -- The programs


def wrong(program: Program, name: str, *, keep: bool, step: int = STEP) -> set[str]:
    scenario = SCENARIOS[name]
    if not scenario.can_run:
        missing("only root can make a disk that is full")
    tries = list(scenario.tries(program, keep=keep, step=step, patience=PATIENCE))
    assert tries
    return {word for verdict in tries for word in verdict.wrong()}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "keep"), MODES, ids=[f"{n}-{'kept' * k}" for n, k in MODES])
def test_restante_passes_every_trial(name: str, keep: bool) -> None:
    assert wrong(RESTANTE, name, keep=keep) == set()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("mbox", "verdicts"), [(False, {"as sent"}), (True, {"as sent", "LF"})])
def test_restante_keeps_every_octet(mbox: bool, verdicts: set[str]) -> None:
    assert {kept.verdict for _, kept in octets.tries(RESTANTE, mbox=mbox)} <= verdicts


@pytest.mark.interop
@pytest.mark.timeout(200)
@pytest.mark.parametrize(("name", "peer", "keep", "known"), KNOWN)
def test_peers_behave_as_the_page_says(name: str, peer: str, keep: bool, known: str) -> None:
    program = PROGRAMS[peer]
    if not program.is_here:
        missing(f"{peer} is not installed")
    about, *lines = report.read()
    found = wrong(program, name, keep=keep, step=about["step"])
    assert (known in found) if known else (found == set())
    (line,) = [
        each
        for each in lines
        if (each.get("trouble"), each["program"], each.get("kept")) == (name, peer, keep)
    ]
    assert bool(line["wrong"].get(known)) == bool(known)
