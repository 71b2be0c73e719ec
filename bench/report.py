"""Writes docs/performance.md from bench/results.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
PAGE = HERE.parent / "docs" / "performance.md"

Line = dict[str, Any]
"""One line of ``harness.Results``."""

_HEAD = """\
# Performance

`bench/report.py` writes this page from `bench/results.jsonl`; `./dev bench --all` measures again
and writes both. In each run, all servers or clients did the same work in turn. A figure is the
median of the rounds, followed by the lowest and the highest value. The ratio compares restante
with the best of the others; above 1 restante is better. [Sizing](howto/sizing.md) explains
what a server needs.

Conditions:

- Both sides ran on **one machine**, over the loopback interface, the server on one core and the
  load generator on another. Other work of the machine is included in the spread: compare ratios.
- Dovecot is Debian's 2.3 in its fastest modes: long-lived processes, authentication cache
  enabled, one process for many users (`multi`) or for one at a time (`fast`). As packaged by
  Debian it starts two processes for each connection and is about ten times slower.
- Passwords are stored in clear in the same `passwd-file`, so no server computes hashes.
- Small messages have `S=` and `W=` in their names, so Dovecot does not have to read each of them.
- Corpora are named after the size of their messages (`d4k`, `d25m`) or their number (`n1k`), and
  after the line ends in their files (`_lf`, `_crlf`).
- No line of `r25m` begins with a dot, as in mail with large attachments; in the other messages,
  one line in a thousand does.
- restante keeps its log, its journal, its limits and its timers.
- mpop is the only other client known to sync each message, so the ratio is to mpop. The poplib
  loop, and the program that receives mail from fetchmail here, make nothing durable.
- Deliveries were measured while other programs kept both cores busy. With less load beside them,
  restante needed 400 µs of CPU for each at 16 senders, and 690 µs at one. The file system takes
  100 to 270 µs of that: as much as a loop that only creates, writes, syncs and renames a file of
  4 kB and syncs its directory.
- A sync of this disk takes about 0.2 ms. On slower disks, programs that sync each message lose
  more.

"""
_TITLES = {
    "bench_sessions": "Sessions: log in, STAT, UIDL, RETR 1, QUIT",
    "bench_drain": "Downloading everything, 64 commands ahead",
    "bench_listing": "Polls and listings",
    "bench_idle_memory": "Memory of an idle connection",
    "bench_crowd": "10,000 idle TLS sessions and 10,000 slow readers",
    "bench_guessing": "Logging in during an attack",
    "bench_workers": "Workers",
    "bench_start": "Start, memory and commands",
    "bench_delivery": "Delivering by LMTP, each message durable before its answer",
    "bench_collect": "Collecting 10,000 messages of 4 kB into a Maildir",
}
_LESS_IS_BETTER = ("ms", "µs", "kB", "MB of PSS")


def keep(new: Iterable[Line]) -> None:
    """Put these in the place of older answers to the same questions."""
    found = {_key(line): line for line in _read()}
    found |= {_key(line): line for line in new}
    RESULTS.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found.values())
    )


def write() -> None:
    lines = _read()
    text = _HEAD
    for bench, title in _TITLES.items():
        mine = [line for line in lines if line["bench"] == bench]
        if mine:
            text += f"## {title}\n\n" + "\n".join(_sections(mine)) + "\n"
    PAGE.write_text(text.rstrip("\n") + "\n")


def _sections(lines: list[Line]) -> Iterable[str]:
    for command in dict.fromkeys(str(line["command"]) for line in lines):
        some = [line for line in lines if line["command"] == command]
        yield _table(some)
        last = some[-1]
        yield f"`{command}`, {last['at']}, commit {last['commit']}, {last['machine']}.\n"


def _table(lines: list[Line]) -> str:
    names = list(dict.fromkeys(line["contender"] for line in lines))
    rows = [["", "unit", *names, "ratio"]]
    rows.append(["---"] * 2 + ["---:"] * (len(names) + 1))
    for (question, unit), group in groupby(
        sorted(lines, key=lambda line: _order(lines, line)),
        key=lambda line: (line["question"], line["unit"]),
    ):
        found = {line["contender"]: line for line in group}
        cells = [_cell(found.get(name)) for name in names]
        rows.append([question, unit, *cells, _ratio(list(found.values()), unit)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _order(lines: list[Line], line: Line) -> int:
    """Where its question and unit first came."""
    return next(
        at
        for at, each in enumerate(lines)
        if (each["question"], each["unit"]) == (line["question"], line["unit"])
    )


def _cell(line: Line | None) -> str:
    if line is None:
        return "–"
    spread = f" ({_short(line['least'])}–{_short(line['most'])})" if line["rounds"] > 1 else ""
    return _short(line["median"]) + spread


def _ratio(lines: list[Line], unit: str) -> str:
    """Of the first to the best of the others, or to the one that promises as much."""
    if not lines[0]["contender"].startswith("restante"):
        return "–"
    peers = [line for line in lines[1:] if line["contender"] == "mpop"] or lines[1:]
    ours, others = lines[0]["median"], [line["median"] for line in peers]
    if not others or not ours or not all(others):
        return "–"
    if unit.startswith(_LESS_IS_BETTER):
        return f"{min(others) / ours:.1f} ×"
    if lines[-1]["contender"].endswith("workers"):
        return f"{others[-1] / ours:.2f} ×"
    return f"{ours / max(others):.1f} ×"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _key(line: Line) -> tuple[str, ...]:
    return tuple(str(line[part]) for part in ("bench", "question", "contender", "unit"))


def _read() -> list[Line]:
    return (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )


if __name__ == "__main__":
    write()
