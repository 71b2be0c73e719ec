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
    "twice": "duplicated",
    "half": "truncated",
    "forged": "forged",
    "missing": "not fetched",
    "left": "not deleted",
    "removed": "wrongly deleted",
    "hangs": "hung",
    "fills": "filled the disk",
}
_HEAD = """# Comparison of collectors: what happens to mail when things go wrong

restante's collector and three others fetched the same mail from the same server over TLS, under
the same faults. One oracle checked the results: is every message stored exactly once, octet for
octet except for the line endings of the destination? Are exactly the right messages deleted on the
server? Did the program terminate? After a fault each program runs again, without the fault unless
it is permanent, so a message that is fetched only in the next run counts as correct.
`./dev compare collectors` repeats the comparison and writes `tests/compare/results.jsonl`, from
which this page is generated.

| result | state after all runs |
|---|---|
| correct | none of the problems below |
| lost | a message is neither stored nor on the server |
| duplicated | a message is stored more than once |
| truncated | the beginning of a message is stored as a complete message |
| forged | something that was never a message on the server is stored |
| not fetched | a message is still on the server and not stored |
| not deleted | a message is stored, and is still on the server although it should be deleted |
| wrongly deleted | a message is stored, and was deleted on the server although it should be kept |
| hung | the program ran for {patience:g} s and had to be stopped, first by SIGTERM |
| filled the disk | the program wrote megabytes for a few hundred octets of mail, and was stopped |
| – | not applicable |

Keep in mind:

- The authors of restante chose the faults, and fixed the problems they found in restante before
  they wrote this page. The other programs have fetched mail from well-behaved servers for many
  years.
- Each program was run with the options below, the safest that we know of. In rows with "kept",
  mail is to stay on the server; in rows with "deleted", it is to be deleted after it is stored.
- fetchmail passes a message to a program while the message is still arriving, and cannot withdraw
  it if it turns out to be incomplete.
- "Not deleted" does not mean lost mail. fetchmail does not delete messages that an earlier run has
  seen. Its option `flush` would delete them, but may also delete messages that were never fetched,
  as its manual warns.
- Unless stated otherwise, the destination is a Maildir. An mbox has no file names by which a
  message could be recognised. If a program, including restante, is killed at the wrong moment, it
  stores one message twice ([documented](howto/collect.md#destinations)).
- The moment of a kill is random. The numbers in the rows with `kill -9` vary, and a program that
  was correct in all runs may fail at a moment that was not tested.

"""


_OCTETS = """\
Each message is fetched on its own into a Maildir and into an mbox, and compared with the octets
on the wire. "As sent" means that no octet differs. "LF" means that the message is identical
except for its line endings, which are LF in the destination and were CRLF on the wire. "Extra
field" means that a Return-Path was added. Before a message in an mbox is compared, one `>` before
each From line is removed, as readers of mboxrd do.
"""


def read() -> list[Line]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def write(lines: Iterable[Line]) -> None:
    RESULTS.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def page(lines: list[Line]) -> Iterator[str]:
    """Return the lines of docs/comparison.md."""
    about, results = lines[0], lines[1:]
    yield _HEAD.format(patience=PATIENCE)
    yield "| program | version | options |\n|---|---|---|"
    for name, program in PROGRAMS.items():
        yield f"| {name} | {about['versions'][name]} | {program.options} |"
    yield "\n## Faults\n"
    step = about["step"]
    yield f"""\
The numbers in parentheses are the runs or messages with this result, and their total. In the rows
with "every n-th octet", the connection ends after {step}, {2 * step}, {3 * step} … octets of a
normal dialogue.
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
                _cell(scenario, _one(results, trouble=trouble, kept=keep, program=name))
                for name in PROGRAMS
            ]
            yield f"| {what} | {'kept' if keep else 'deleted'} | {' | '.join(cells)} |"
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
            line = _one(results, message=message, to=to, program=name)
            cells.append(line["verdict"] if line else "–")
            if line and line["detail"]:
                where = f"{name}, {'mbox' if to == 'mbox' else 'Maildir'}"
                details.setdefault((message, line["detail"]), []).append(where)
        yield f"| {message} | {' | '.join(cells)} |"
    if details:
        yield "\nThe first difference in each message that was changed or truncated:\n"
    for (message, detail), places in details.items():
        yield f"- {message} ({'; '.join(places)}): {_code(detail)}"
    yield f"\n`{about['command']}`, {about['at']}, commit {about['commit']}, {about['machine']}."


def _one(results: list[Line], **wanted: object) -> Line | None:
    return next((line for line in results if wanted.items() <= line.items()), None)


def _cell(scenario: Scenario, line: Line | None) -> str:
    if line is None:
        return "–"
    tries = f" of {line['tries']}"
    if not line["wrong"]:
        return f"correct ({line['tries']}{tries})" if scenario.points else "correct"
    of = tries if scenario.points else f" of {len(scenario.messages)}"
    words = [
        WORDS[word]
        + ("" if word in ("hangs", "fills") and not scenario.points else f" ({many}{of})")
        for word, many in line["wrong"].items()
    ]
    return ", ".join(words)


def _code(detail: str) -> str:
    """Return the short form of "octet 4: one instead of another"."""
    at, _, rest = detail.partition(": ")
    one, _, other = rest.partition(" instead of ")
    return f"{at}: ``{one}`` instead of ``{other}``"
