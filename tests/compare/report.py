"""What was found, as lines of JSON and as docs/comparison.md."""

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
_HEAD = """# Collectors in trouble

restante's collector and three others fetched the same mail from the same server, over TLS, through
the same troubles, and one oracle looked at what became of it: is every message here exactly once,
octet for octet but for the line ends of the place, are those and only those gone from the server
that should be, and did the program come to an end? After the trouble each program is run again,
without trouble unless it lasts, so what only waits for the next run is right.
`./dev compare collectors` does it again and writes `tests/compare/results.jsonl`, from which this
page is made.

| word | after all runs |
|---|---|
| right | none of these |
| lost | a message is neither here nor on the server |
| twice | a message is here more than once |
| half | a beginning of a message is here as if it were one |
| forged | something is here that is no message of the server |
| not taken | a message is still on the server and not here |
| left there | a message is here, and the server was to give it up and has it still |
| removed there | a message is here, and the server was to keep it and has it no more |
| no end | the program ran for {patience:g} s and was ended, first by SIGTERM |
| fills the disk | it wrote megabytes, of messages with a few hundred octets, and was ended |
| – | cannot be tried with it |

What to keep in mind:

- The authors of restante chose the troubles, and mended what restante got wrong in them before this
  was written down. The others have fetched mail from servers that behave for many years.
- Each program has the options below, the safest that we know. Kept: mail stays on the server.
  Deleted: it is removed there when it is here.
- fetchmail hands a message to a program of its user's choice as it comes, and cannot take back what
  that has been given of one that did not come to its end.
- "Left there" is no mail lost. fetchmail does not delete what an earlier run has seen; its option
  `flush` would, and may delete what was never fetched, as its manual warns.
- Where nothing else is said the mail goes into a Maildir. An mbox has no names by which a message
  could be found again, so there a kill at a bad moment brings one message twice with restante, too,
  which [says so](howto/collect.md).
- A kill is a race. Numbers in such rows differ a bit from time to time, and a program that is right
  in all tries may be wrong at a moment that was not tried.

"""


_OCTETS = """\
One message at a time, as it goes over the wire, into a Maildir and into an mbox. As sent: not one
octet differs. LF: but for line ends, which are LF in the place and were CRLF. A field more: a
Return-Path was put in front. In an mbox `>` before a From line is taken away again, as a reader of
mboxrd does.
"""


def read() -> list[Line]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def write(lines: Iterable[Line]) -> None:
    RESULTS.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def page(lines: list[Line]) -> Iterator[str]:
    """docs/comparison.md."""
    about, found = lines[0], lines[1:]
    yield _HEAD.format(patience=PATIENCE)
    yield "| program | version | told |\n|---|---|---|"
    for name, program in PROGRAMS.items():
        yield f"| {name} | {about['versions'][name]} | {program.told} |"
    yield "\n## Troubles\n"
    yield f"""\
Behind the word: in how many tries, or for how many messages. Connections end after each
{about["step"]} octets of what a server that behaves would say.
"""
    yield f"| trouble | mail is | {' | '.join(PROGRAMS)} |\n|---|---|{'---|' * len(PROGRAMS)}"
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
    """Of "octet 4: one instead of another"."""
    at, _, rest = detail.partition(": ")
    one, _, other = rest.partition(" instead of ")
    return f"{at}: ``{one}`` instead of ``{other}``"
