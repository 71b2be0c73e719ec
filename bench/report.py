"""Writes docs/performance.md and docs/howto/sizing.md from bench/results.jsonl.

A row that a page or a picture needs and that was not measured is an error, never a gap.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import charts
import sizing
from measured import EACH, OTHER_FORMAT, OURS, Line, Missing, Results, Row, markdown, read, short

DOCS = Path(__file__).resolve().parent.parent / "docs"

_HEAD = """\
# Performance

`bench/report.py` writes this page from `bench/results.jsonl`; `./dev bench --all` measures again
and writes both. `RESTANTE_BENCH_PYTHON` names another Python to run restante, in which
`requirements/run.txt` is installed. In each run, all servers or clients did the same work in turn.
A figure is the median of the rounds, followed by the lowest and the highest value. The ratio
compares restante with the best of the others; above 1 restante is better.
[Sizing](howto/sizing.md) computes what a server needs.

"""
_CONDITIONS = """\
## Conditions

- Both sides ran on **one machine**, over the loopback interface, the server on one core and the
  load generator on another. Other work of the machine is included in the spread: compare ratios.
- Each section ends with the command, the commit, the machine and the Python that ran restante.
  "PGO" is a build of Python that was guided by a profile, which is faster. Python's `sysconfig`
  shows the option `--enable-optimizations`, which makes one. Debian's build rules run
  `make profile-opt` instead, which `sysconfig` does not show: Debian's Python is known by the
  package of its binary.
- CPU is that of all threads and processes of a server, from their clocks in ns.
- Dovecot is Debian's 2.3 in its fastest modes: long-lived processes, authentication cache
  enabled, one process for many users (`multi`) or for one at a time (`fast`). As packaged by
  Debian it starts two processes for each connection and is far slower.
- `dovecot-mdbox` is `multi` with mail in Dovecot's own format, imported by `doveadm`. The ratio is
  to Dovecot on the same Maildirs, and a ratio of its own is to mdbox.
- Passwords are stored in clear in the same `passwd-file`, so no server computes hashes, except
  in the section on stored hashes.
- Small messages have `S=` and `W=` in their names, so Dovecot does not have to read each of them.
- Corpora are named after the size of their messages (`d4k`, `d25m`) or their number (`n1k`), and
  after the line ends in their files (`_lf`, `_crlf`).
- No line of `r25m` begins with a dot, as in mail with large attachments; in the other messages,
  few lines do (`bench/corpora.py`).
- restante keeps its log, its journal, its limits and its timers.
- mpop is the only other client known to sync each message, so the ratio is to mpop. The poplib
  loop, and the program that receives mail from fetchmail here, make nothing durable.
- Programs that sync each message lose more on disks that are slower than this one.

"""
TIMEOUTS = """\
Clients hear nothing between `QUIT` and its answer. This is how long they wait by default:

| client | seconds | source |
| --- | ---: | --- |
| Python's poplib | no limit | `poplib.POP3(timeout=…)`, `Lib/poplib.py` |
| Jakarta Mail | no limit | `mail.pop3.timeout` of its POP3 provider |
| fetchmail | 300 | `timeout`, fetchmail(1) |
| mpop | 180 | `timeout`, mpop(1) |
| getmail6 | 180 | `timeout`, `getmailcore/retrievers.py` |
| Thunderbird | 100 | `mailnews.tcptimeout`, `mailnews/mailnews.js` |
| Ruby's Net::POP3 | 60 | `read_timeout` of its reference |
| OpenPop.NET | 60 | `Pop3Client.Connect` of its reference |
"""


class Section(NamedTuple):
    """A part of the page: the results of one benchmark."""

    title: str
    picture: str = ""
    """Its name in ``charts.CHARTS``."""
    note: str = ""
    """Markdown below the tables."""
    needs: tuple[tuple[str, str], ...] = ()
    """Questions and units without which the page is not written."""


POLLS = tuple(
    (f"first poll of 100,000 after {count} new, delivered by {way}", "ms")
    for count in (1, 10)
    for way in ("the server", "another program")
)
DELETING = tuple(
    row
    for hold in ("hold = 0", "hold = 14 d")
    for row in (
        (f"DELE of 10,000, {hold}", EACH),
        (f"QUIT that removes 10,000, {hold}", EACH),
        (f"QUIT that removes 100,000, {hold}", "ms until the answer"),
    )
)
COMMANDS = tuple(
    (command, "ms of CPU")
    for command in ("--version", "deliver", "fetch, nothing new", "collect, nothing new")
)
CLIENTS = tuple(
    (client, "µs of client CPU each")
    for client in ("restante.connect", "restante.connect_blocking", "restante.poplib")
)
SECTIONS = {
    "bench_sessions": Section("Sessions: log in, STAT, UIDL, RETR 1, QUIT", "sessions"),
    "bench_logins": Section("Logins with stored hashes, and SCRAM", "logins"),
    "bench_drain": Section("Downloading everything, 64 commands ahead", "drain"),
    "bench_retr": Section("Downloading one message at a time"),
    "bench_top": Section("Looking over headers: TOP n 0, 64 commands ahead", "commands"),
    "bench_listing": Section("Polls and listings", "polls"),
    "bench_large": Section("A maildrop of 100,000 that receives mail", "large", needs=POLLS),
    "bench_idle_memory": Section("Memory of an idle connection"),
    "bench_start": Section(
        "Start, memory and commands", needs=(("from start to ready", "ms"), *COMMANDS)
    ),
    "bench_crowd": Section("10,000 idle TLS sessions and 10,000 slow readers"),
    "bench_guessing": Section("Logging in during an attack"),
    "bench_workers": Section("Workers"),
    "bench_delivery": Section("Delivering by LMTP, each message durable before its answer"),
    "bench_collect": Section(
        "Collecting 10,000 messages of 4 kB into a Maildir",
        needs=(("round trip 0 ms", "messages/s"),),
    ),
    "bench_client": Section("The client library: reading 10,000 messages of 4 kB", needs=CLIENTS),
    "bench_delete": Section("Deleting", note=TIMEOUTS, needs=DELETING),
}


def performance(results: Results) -> str:
    """The page.

    Raises:
        Missing: a benchmark of it, or a row that it needs, has no results.
    """
    parts = [_HEAD, "## Where restante is behind\n\n", behind(results), f"\n{_CONDITIONS}"]
    for bench, section in SECTIONS.items():
        lines = [line for line in results.lines if line["bench"] == bench]
        if not lines:
            raise Missing(f"{bench}: not measured")
        for question, unit in section.needs:
            results.figure(bench, question, unit)
        parts.append(f"## {section.title}\n\n")
        if section.picture:
            parts.append(f"```{{picture}} {section.picture}\n```\n\n")
        for command in dict.fromkeys(str(line["command"]) for line in lines):
            some = [line for line in lines if line["command"] == command]
            last = some[-1]
            parts.append(f"{_table(list(Results(some).rows.values()))}\n")
            parts.append(
                f"`{command}`, {last['at']}, commit {last['commit']}, {last['machine']}.\n\n"
            )
        parts.append(f"{section.note}\n" if section.note else "")
    return "".join(parts).rstrip("\n") + "\n"


def behind(results: Results) -> str:
    """Every row with a ratio below 1, the worst first."""
    found = []
    for row in results.rows.values():
        if row.bench in SECTIONS:
            to_peer, to_format = row.ratio(), row.ratio_to_other_format()
            found += [(to_peer, row, row.best())] if to_peer is not None else []
            found += [(to_format, row, OTHER_FORMAT)] if to_format is not None else []
    worse = sorted((each for each in found if each[0] < 1), key=lambda each: each[0])
    if not worse:
        return f"In none of {len(found)} comparisons.\n"
    table = [["", "ratio", OURS, "the other"], ["---", "---:", "---:", "---:"]]  # fits a phone
    for ratio, row, other in worse:
        ours, theirs = (short(row.medians()[each]) for each in (OURS, other))
        table.append([f"{_name(row)}, {row.unit}", _times(ratio), ours, f"{other} {theirs}"])
    return f"In {len(worse)} of {len(found)} comparisons:\n\n" + markdown(table)


def _table(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.lines))
    names.sort(key=lambda name: name != OURS)  # first; the others as they came
    has_other_format = OTHER_FORMAT in names
    table = [["", "unit", *names, "ratio", *(["to mdbox"] if has_other_format else [])]]
    table.append(["---"] * 2 + ["---:"] * (len(table[0]) - 2))
    for row in rows:
        if OURS in names and OURS not in row.lines:
            raise Missing(f"{row.bench}: {row.question}, in {row.unit}: only measured with others")
        cells = [_cell(row.lines.get(name)) for name in names]
        ratios = [_ratio_cell(row)]
        ratios += [_times(row.ratio_to_other_format())] if has_other_format else []
        table.append([_name(row), row.unit, *cells, *ratios])
    return markdown(table)


def _name(row: Row) -> str:
    """The question, where ``--`` must not become a dash."""
    return f"`{row.question}`" if row.question.startswith("--") else row.question


def _ratio_cell(row: Row) -> str:
    if row.bench == "bench_workers":  # of two workers to one
        one, two = row.medians().values()
        return _times(two / one)
    return _times(row.ratio())


def _cell(line: Line | None) -> str:
    if line is None:
        return "–"
    spread = f" ({short(line['least'])}–{short(line['most'])})" if line["rounds"] > 1 else ""
    return short(line["median"]) + spread


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    digits = 2 if ratio < 2 else 1 if ratio < 100 else 0
    return f"{ratio:,.{digits}f} ×"


def write() -> None:
    """Write both pages.

    Raises:
        Missing: a row of them was not measured; then neither is written.
    """
    results = read()
    charts.drawn(results)
    pages = {"performance.md": performance(results), "howto/sizing.md": sizing.page(results)}
    for name, text in pages.items():
        (DOCS / name).write_text(text)


if __name__ == "__main__":
    write()
