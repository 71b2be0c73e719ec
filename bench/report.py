"""Writes docs/performance.md and docs/howto/sizing.md from bench/results.jsonl.

A row that a page or a picture needs and that was not measured is an error, never a gap.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import charts
import sizing
from measured import (
    EACH,
    OTHER_FORMAT,
    OURS,
    Line,
    Missing,
    Results,
    Row,
    label,
    markdown,
    read,
    short,
)

DOCS = Path(__file__).resolve().parent.parent / "docs"

_HEAD = """\
# Performance

`bench/report.py` writes this page from `bench/results.jsonl`; `./dev bench --all` repeats the
measurements and writes both files. To run restante with another Python interpreter, in which
`requirements/run.txt` is installed, set `RESTANTE_BENCH_PYTHON` to its path. In each run, all
servers or clients did the same work in turn. Each figure is the median of the rounds, followed by
the lowest and the highest value. The ratio compares restante with the best of the other programs:
if it is above 1, restante is better. [Sizing](howto/sizing.md) estimates the resources that a
server needs.

"""
_CONDITIONS = """\
## Conditions

- Both sides ran on **one machine**, over the loopback interface, the server on one core and the
  load generator on another. Other work on the machine increases the spread of the figures, so
  compare ratios.
- Each section ends with the command, the commit, the machine and the Python that ran restante.
  "PGO" means that Python was built with profile-guided optimisation, which makes it faster.
  Python's `sysconfig` shows this if the option `--enable-optimizations` was used. Debian's build
  rules run `make profile-opt` instead, which `sysconfig` does not show, so Debian's Python is
  identified by the package that its executable belongs to.
- CPU time is the sum over all threads and processes of a server, measured with CPU clocks in
  nanoseconds.
- Dovecot is Debian's 2.3 in its fastest modes: long-lived processes, authentication cache
  enabled, one process for many users (`multi`) or for one at a time (`fast`). With Debian's
  default settings, it starts two processes for each connection and is far slower.
- `dovecot-mdbox` is `multi` with mail in Dovecot's own format, imported by `doveadm`. The column
  "ratio" compares restante with Dovecot on the same Maildirs; the column "to mdbox" compares it
  with mdbox.
- Passwords are stored in clear text in the same `passwd-file`, so no server computes hashes, except
  in the section on stored hashes.
- Small messages have `S=` and `W=` in their file names, so Dovecot does not have to read each of
  them.
- "(LF)" and "(CRLF)" are the line endings in the message files. The charts use the short names of
  the test data: the size of the messages (`d4k`) or their number (`n1k`), and the line endings
  (`_lf`, `_crlf`).
- In the messages "without dots", no line begins with a dot, as in mail with large attachments; in
  the other messages, few lines do (`bench/corpora.py`).
- In restante, the log, the journal, the limits and the timers are enabled.
- mpop is the only other client known to sync each message, so the ratio compares restante with
  mpop. The poplib loop, and the program that receives mail from fetchmail here, do not sync
  messages to disk.
- On slower disks, programs that sync each message slow down more than the others.

"""
TIMEOUTS = """\
A client receives nothing between `QUIT` and its response. By default, clients wait this long:

| client | seconds | source |
| --- | ---: | --- |
| Python's poplib | no limit | `poplib.POP3(timeout=…)`, `Lib/poplib.py` |
| Jakarta Mail | no limit | `mail.pop3.timeout` of its POP3 provider |
| fetchmail | 300 | `timeout`, fetchmail(1) |
| mpop | 180 | `timeout`, mpop(1) |
| getmail6 | 180 | `timeout`, `getmailcore/retrievers.py` |
| Thunderbird | 100 | `mailnews.tcptimeout`, `mailnews/mailnews.js` |
| Ruby's Net::POP3 | 60 | `read_timeout` in its reference documentation |
| OpenPop.NET | 60 | `Pop3Client.Connect` in its reference documentation |
"""


class Section(NamedTuple):
    """A part of the page: the results of one benchmark."""

    title: str
    picture: str = ""
    """The name of its chart in ``charts.CHARTS``."""
    note: str = ""
    """Markdown below the tables."""
    needs: tuple[tuple[str, str], ...] = ()
    """Questions and units that must have been measured before the page can be written."""


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
    "bench_drain": Section("Downloading everything, 64 pipelined commands at a time", "drain"),
    "bench_retr": Section("Downloading one message at a time"),
    "bench_top": Section("Headers: TOP n 0, 64 pipelined commands at a time", "commands"),
    "bench_listing": Section("Polls and listings", "polls"),
    "bench_large": Section("New mail in a maildrop of 100,000 messages", "large", needs=POLLS),
    "bench_idle_memory": Section("Memory of an idle connection"),
    "bench_start": Section(
        "Start, memory and commands", needs=(("from start to ready", "ms"), *COMMANDS)
    ),
    "bench_crowd": Section("10,000 idle TLS sessions and 10,000 slow readers"),
    "bench_guessing": Section("Logging in during an attack"),
    "bench_workers": Section("Workers"),
    "bench_delivery": Section("Delivery over LMTP, each message synced before its reply"),
    "bench_collect": Section(
        "Collecting 10,000 messages of 4 kB into a Maildir",
        needs=(("round trip 0 ms", "messages/s"),),
    ),
    "bench_client": Section("The client library: reading 10,000 messages of 4 kB", needs=CLIENTS),
    "bench_delete": Section("Deleting", note=TIMEOUTS, needs=DELETING),
}


def performance(results: Results) -> str:
    """Return the text of docs/performance.md.

    Raises:
        Missing: a benchmark, or a row that the page needs, has no results.
    """
    parts = [_HEAD, "## Where other programs are better\n\n", behind(results), f"\n{_CONDITIONS}"]
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
    """Return a table of every row with a ratio below 1, the worst first."""
    found = []
    for row in results.rows.values():
        if row.bench in SECTIONS:
            to_peer, to_format = row.ratio(), row.ratio_to_other_format()
            found += [(to_peer, row, row.best())] if to_peer is not None else []
            found += [(to_format, row, OTHER_FORMAT)] if to_format is not None else []
    worse = sorted((each for each in found if each[0] < 1), key=lambda each: each[0])
    if not worse:
        return f"In none of {len(found)} comparisons.\n"
    table = [["", "ratio", OURS, "other program"], ["---", "---:", "---:", "---:"]]  # fits a phone
    for ratio, row, other in worse:
        ours, theirs = (short(row.medians()[each]) for each in (OURS, other))
        table.append([f"{_name(row)}, {label(row.unit)}", _times(ratio), ours, f"{other} {theirs}"])
    return f"In {len(worse)} of {len(found)} comparisons:\n\n" + markdown(table)


def _table(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.lines))
    names.sort(key=lambda name: name != OURS)  # restante first; the others in their old order
    has_other_format = OTHER_FORMAT in names
    heads = [label(name) for name in names]
    table = [["", "unit", *heads, "ratio", *(["to mdbox"] if has_other_format else [])]]
    table.append(["---"] * 2 + ["---:"] * (len(table[0]) - 2))
    for row in rows:
        if OURS in names and OURS not in row.lines:
            raise Missing(f"{row.bench}: {row.question}, in {row.unit}: only measured with others")
        cells = [_cell(row.lines.get(name)) for name in names]
        ratios = [_ratio_cell(row)]
        ratios += [_times(row.ratio_to_other_format())] if has_other_format else []
        table.append([_name(row), label(row.unit), *cells, *ratios])
    return markdown(table)


def _name(row: Row) -> str:
    """Return the question in words; ``--`` must not become a dash."""
    return f"`{row.question}`" if row.question.startswith("--") else label(row.question)


def _ratio_cell(row: Row) -> str:
    if row.bench == "bench_workers":  # the ratio of two workers to one worker
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
    return f"{ratio:,.{digits}f}\N{NO-BREAK SPACE}×"


def write() -> None:
    """Write both pages.

    Raises:
        Missing: a row was not measured, so neither page is written.
    """
    results = read()
    charts.drawn(results)
    pages = {"performance.md": performance(results), "howto/sizing.md": sizing.page(results)}
    for name, text in pages.items():
        (DOCS / name).write_text(text)


if __name__ == "__main__":
    write()
