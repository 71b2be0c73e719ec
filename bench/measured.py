"""What the benchmarks measured: bench/results.jsonl, and its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parent / "results.jsonl"
OURS = "restante"
OTHER_FORMAT = "dovecot-mdbox"
"""Compared on its own: it stores mail in files that only Dovecot can read."""
EACH = "µs of server CPU each"
_LESS_IS_BETTER = ("ms", "µs", "kB", "MB of PSS", "disk")

Line = dict[str, Any]
"""One line of ``harness.Results``."""


class Missing(Exception):
    """Something was not measured that a page needs."""


class Row(NamedTuple):
    """The answers of all contenders to one question."""

    bench: str
    question: str
    unit: str
    lines: dict[str, Line]

    def medians(self) -> dict[str, float]:
        """By contender, restante first."""
        names = sorted(self.lines, key=lambda name: name != OURS)
        return {name: self.lines[name]["median"] for name in names}

    def others(self) -> dict[str, float]:
        """The medians of what restante is compared with; those of mpop alone where it is."""
        found = {
            contender: value
            for contender, value in self.medians().items()
            if not contender.startswith(OURS) and contender != OTHER_FORMAT
        }
        return {"mpop": found["mpop"]} if "mpop" in found else found

    def best(self) -> str:
        """The contender that the ratio is to."""
        found = self.others()
        return (min if self.less_is_better() else max)(found, key=found.__getitem__)

    def less_is_better(self) -> bool:
        return self.unit.startswith(_LESS_IS_BETTER)

    def ratio(self) -> float | None:
        """Of restante to the best of the others; None if it is compared with none."""
        return self._ratio(self.best()) if self.others() else None

    def ratio_to_other_format(self) -> float | None:
        return self._ratio(OTHER_FORMAT) if OTHER_FORMAT in self.lines else None

    def _ratio(self, contender: str) -> float | None:
        ours, other = self.medians().get(OURS), self.medians()[contender]
        if not ours or not other:
            return None
        return other / ours if self.less_is_better() else ours / other


class Results:
    """All that was measured."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = list(lines)
        self.rows: dict[tuple[str, str, str], Row] = {}
        for line in self.lines:
            key = (line["bench"], line["question"], line["unit"])
            self.rows.setdefault(key, Row(*key, {})).lines[line["contender"]] = line

    def row(self, bench: str, question: str, unit: str) -> Row:
        try:
            return self.rows[bench, question, unit]
        except KeyError:
            raise Missing(f"{bench}: {question}, in {unit}: not measured") from None

    def figure(self, bench: str, question: str, unit: str, contender: str = OURS) -> float:
        medians = self.row(bench, question, unit).medians()
        if contender not in medians:
            raise Missing(f"{bench}: {question}, in {unit}: not measured with {contender}")
        return medians[contender]


def read() -> Results:
    text = RESULTS.read_text() if RESULTS.exists() else ""
    return Results(json.loads(line) for line in text.splitlines())


def keep(new: Sequence[Line]) -> None:
    """Put these in the place of older answers to the same questions and of the same commands."""
    commands = {line["command"] for line in new}
    found = {_key(line): line for line in read().lines if line["command"] not in commands}
    found |= {_key(line): line for line in new}
    _store(found.values())


def forget_all_but(commands: set[str]) -> None:
    """Drop the results of commands that are not among ``./dev bench --all`` any more."""
    _store(line for line in read().lines if line["command"] in commands)


def _store(lines: Iterable[Line]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    RESULTS.write_text(text)


def _key(line: Line) -> tuple[str, ...]:
    return tuple(str(line[part]) for part in ("bench", "question", "contender", "unit"))


# -- For pages

_LABELS = (
    ("drain ", "download everything, "),
    ("d4k", "messages of 4 kB"),
    ("d100k", "messages of 100 kB"),
    ("d25m", "messages of 25 MiB"),
    ("r25m", "messages of 25 MiB without dots"),
    ("n100k", "100,000 messages"),
    ("n10k", "10,000 messages"),
    ("n1k", "1,000 messages"),
    ("n1m", "1,000,000 messages"),
    ("n10_", "10 messages_"),
    ("_crlf", " (CRLF)"),
    ("_lf", " (LF)"),
    ("beside no crowd", "without other clients"),
    ("beside an idle crowd, and slow readers", "alongside idle sessions and slow readers"),
    ("beside an idle crowd", "alongside idle sessions"),
    ("with both crowds", "with idle sessions and slow readers"),
    ("poll of 100,000 ", "poll of 100,000 messages "),
    ("after 1 new,", "after 1 new message,"),
    ("after 10 new,", "after 10 new messages,"),
    ("maildrop of 100,000,", "maildrop of 100,000 messages,"),
    ("DELE of 10,000,", "DELE of 10,000 messages,"),
    ("DELE of 100,000,", "DELE of 100,000 messages,"),
    ("removes 10,000,", "removes 10,000 messages,"),
    ("removes 100,000,", "removes 100,000 messages,"),
    ("99th of 100", "99th percentile"),
    ("not let in", "failed logins"),
    ("1,000 networks guess", "during password guessing from 1,000 networks"),
    ("its own address guesses", "during password guessing from the client's own address"),
    ("1,000 networks begin TLS", "during TLS handshakes from 1,000 networks"),
    ("known user", "user on a known network"),
    ("stranger", "user on a new network"),
)


def label(name: str) -> str:
    """Return the name of a row, a unit or a contender in words for readers of the pages."""
    for short_form, words in _LABELS:
        name = name.replace(short_form, words)
    return name


def markdown(table: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in table) + "\n"


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
