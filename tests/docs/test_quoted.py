"""Quotations from the program and from measurements on pages are correct."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from restante.pop3.texts import TEXTS

DOCS = Path(__file__).parent.parent.parent / "docs"
SOURCE = "".join(path.read_text() for path in (DOCS.parent / "src").rglob("*.py"))
EVENTS = set(re.findall(r"^\| ([a-z -]+) \|", (DOCS / "reference/log-events.md").read_text(), re.M))
HOWTOS = {page.stem: page.read_text() for page in sorted((DOCS / "howto").glob("*.md"))}


def after_log(text: str) -> list[str]:
    """Return the events in a cell such as "log: `a` or `b` with …"."""
    return [
        event
        for cell in re.findall(r"log: ((?:`[^`]+`(?: or )?)+)", text)
        for event in re.findall(r"`([^`]+)`", cell)
    ]


def test_log_events_of_troubleshooting_are_in_the_reference() -> None:
    named = after_log(HOWTOS["troubleshooting"])
    assert len(named) > 8
    assert set(named) <= EVENTS


def test_events_to_alert_on_are_in_the_reference() -> None:
    table = HOWTOS["monitoring"].partition("| event | why |")[2].partition("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    named = [event for cell in cells for event in re.findall(r"`([^`]+)`", cell)]
    assert len(named) > 10
    assert set(named) <= EVENTS


def test_reasons_of_refused_logins_are_those_of_the_source() -> None:
    table = HOWTOS["troubleshooting"].partition("| `reason` |")[2].partition("\n\n")[0]
    reasons = [
        reason
        for row in table.splitlines()[2:]
        for reason in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]
    assert len(reasons) > 5
    assert [reason for reason in reasons if f'"{reason}"' not in SOURCE] == []


def test_answers_of_the_server_are_quoted_word_for_word() -> None:
    rows = re.findall(r"^\| `-ERR.*?\|", HOWTOS["troubleshooting"], re.M)
    quoted = [text for row in rows for text in re.findall(r'"([^"]+)"', row)]
    assert len(quoted) > 3
    assert set(quoted) <= set(TEXTS)


@pytest.mark.parametrize("text", re.findall(r'"([^"]+)"', HOWTOS["troubleshooting"]))
def test_messages_in_troubleshooting_exist(text: str) -> None:
    assert text in SOURCE


def test_figures_of_sizing_were_measured() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([\d.,]+) \|$", HOWTOS["sizing"], re.M)
    measured = (DOCS / "performance.md").read_text()
    assert len(rows) > 8
    for question, unit, figure in rows:
        assert re.search(
            rf"^\| {re.escape(question)} \| {re.escape(unit)} \| {re.escape(figure)}[ |]",
            measured,
            re.M,
        ), question


def test_front_page_shows_the_output_of_the_demo() -> None:
    text = runpy.run_path(str(DOCS / "screenshot.py"))["screenshot"]()
    assert text.startswith("$ restante demo\n    start  POP3S on 127.0.0.1, ")
    assert "Invoice 4711" in text
    assert not re.search("[0-9A-F]{4} [0-9A-F]{4}", text), "a fingerprint"
