"""The results as lines of JSON and as docs/comparison.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .octets import MESSAGES
from .programs import PROGRAMS
from .scenarios import SCENARIOS, Scenario
from .trial import PATIENCE

RESULTS = Path(__file__).with_name("results.jsonl")
Line = Mapping[str, Any]
WORDS = {
    "lost": "lost",
    "twice": "twice",
    "half": "half",
    "forged": "forged",
    "missing": "not taken",
    "left": "left there",
    "removed": "removed there",
    "hangs": "no end",
    "fills": "fills the disk",
}
_HEAD = """# Collectors compared: what happens to mail when things go wrong

restante's collector and three others fetched the same mail from the same server over TLS, under
the same faults. One oracle checked the result: is every message stored exactly once, octet for
octet except for the line ends of the destination? Are exactly the right messages deleted on the
server? Did the program terminate? After a fault each program runs again, without the fault unless
it is permanent, so a message that only waits for the next run counts as right. `./dev compare
collectors` repeats the comparison and writes `tests/compare/results.jsonl`, from which this page
is made.

| result | after all runs |
|---|---|
| right | none of the problems below |
| lost | a message is neither stored nor on the server |
| twice | a message is stored more than once |
| half | the beginning of a message is stored as a complete message |
| forged | something is stored that is not a message of the server |
| not taken | a message is still on the server and not stored |
| left there | a message is stored, and is still on the server although it should be deleted |
| removed there | a message is stored, and was deleted on the server although it should be kept |
| no end | the program ran for {patience:g} s and had to be stopped, first by SIGTERM |
| fills the disk | it wrote megabytes for messages of a few hundred octets, and had to be stopped |
| – | not applicable |

Keep in mind:

- The authors of restante chose the faults, and fixed restante's own problems with them before
  they wrote this page. The other programs have fetched mail from well-behaved servers for many
  years.
- Each program has the options below, the safest that we know. Kept: mail stays on the server.
  Deleted: it is removed from the server when it is stored.
- fetchmail passes a message to a program while it arrives, and cannot take it back if the message
  turns out to be incomplete.
- "Left there" is not lost mail. fetchmail does not delete messages that an earlier run has seen;
  its option `flush` would, and may delete messages that were never fetched, as its manual warns.
- Unless stated otherwise, the destination is a Maildir. An mbox has no names by which a message
  could be found again, so a kill at the wrong moment stores one message twice, with restante too
  ([documented](howto/collect.md#destinations)).
- A kill is a race. The numbers in such rows vary, and a program that is right in all tries may
  fail at a moment that was not tried.

"""


_OCTETS = """\
Each message is fetched on its own into a Maildir and into an mbox, and compared with the octets
on the wire. As sent: no octet differs. LF: identical except for line ends, which are LF in the
destination and were CRLF. A field more: a Return-Path was added. In an mbox `>` before a From
line is removed before comparing, as readers of mboxrd do."""


def read() -> list[Line]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def write(lines: Iterable[Line]) -> None:
    RESULTS.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def page(lines: list[Line]) -> Iterator[str]:
    """Return the lines of docs/comparison.md."""
    about, found = lines[0], lines[1:]
    yield _HEAD.format(patience=PATIENCE)
    yield "| program | version | options |\n|---|---|---|"
    for name, program in PROGRAMS.items():
        yield f"| {name} | {about['versions'][name]} | {program.told} |"
    yield "\n## Faults\n"
    yield f"""\
After the result: in how many tries, or for how many messages. Connections end after each
{about["step"]} octets of the dialogue with a correct server.
"""
    yield f"| fault | mail is | {' | '.join(PROGRAMS)} |\n|---|---|{'---|' * len(PROGRAMS)}"
    remarks: list[str] = []
    for trouble, scenario in SCENARIOS.items():
        what = scenario.what
        if scenario.remark:
            remarks.append(scenario.remark)
            what += f" ({len(remarks)})"
        for keep in scenario.modes:
            cells = [
                _cell(scenario, _one(found, trouble=trouble, kept=keep, program=name))
                for name in PROGRAMS
            ]
            yield f"| {what} | {'kept' if keep else 'deleted'} | {' | '.join(cells)} |"
            what = "…"
    yield ""
    yield from (f"({at}) {remark}\n" for at, remark in enumerate(remarks, 1))
    yield "## Octets\n"
    yield _OCTETS
    columns = [
        (name, to)
        for to in ("maildir", "mbox")
        for name, program in PROGRAMS.items()
        if to == "maildir" or program.has_mbox
    ]
    heads = [name if to == "maildir" else f"{name}, mbox" for name, to in columns]
    yield f"| message | {' | '.join(heads)} |\n|---|{'---|' * len(columns)}"
    details: dict[tuple[str, str], list[str]] = {}
    for message in MESSAGES:
        cells = []
        for name, to in columns:
            line = _one(found, message=message, to=to, program=name)
            cells.append(line["verdict"] if line else "–")
            if line and line["detail"]:
                where = f"{name}, {'mbox' if to == 'mbox' else 'Maildir'}"
                details.setdefault((message, line["detail"]), []).append(where)
        yield f"| {message} | {' | '.join(cells)} |"
    if details:
        yield "\nWhere it was changed or cut, the first difference:\n"
    for (message, detail), places in details.items():
        yield f"- {message} ({'; '.join(places)}): {_code(detail)}"
    yield f"\n`{about['command']}`, {about['at']}, commit {about['commit']}, {about['machine']}."


def _one(found: list[Line], **wanted: object) -> Line | None:
    return next((line for line in found if wanted.items() <= line.items()), None)


def _cell(scenario: Scenario, line: Line | None) -> str:
    if line is None:
        return "–"
    tries = f" of {line['tries']}"
    if not line["wrong"]:
        return f"right{tries}" if scenario.points else "right"
    of = tries if scenario.points else f" of {len(scenario.messages)}"
    words = [
        WORDS[word] + ("" if word in ("hangs", "fills") and not scenario.points else f" {many}{of}")
        for word, many in line["wrong"].items()
    ]
    return ", ".join(words)


def _code(detail: str) -> str:
    """Return the short form of "octet 4: one instead of another"."""
    at, _, rest = detail.partition(": ")
    one, _, other = rest.partition(" instead of ")
    return f"{at}: ``{one}`` instead of ``{other}``"
