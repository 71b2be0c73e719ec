"""bench/report.py: the pages and charts of what was measured."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HOUSE = Path(__file__).parent.parent.parent
BENCH = HOUSE / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return bench/report.py, with ``measured`` beside ``charts`` and ``sizing`` in it."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCH))
    report: Any = importlib.import_module("report")
    report.measured = sys.modules["measured"]
    yield report
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def line(
    bench: str, question: str, unit: str, contender: str = "restante", median: float = 100.0
) -> dict[str, Any]:
    return {
        "bench": bench,
        "question": question,
        "unit": unit,
        "contender": contender,
        "median": median,
        "least": median,
        "most": median,
        "rounds": 1,
        "at": "2026-11-30",
        "commit": "0",
        "machine": "a machine",
        "command": f"./dev bench bench/{bench}.py",
    }


def everything(report: Any) -> list[dict[str, Any]]:
    """A line of restante's for each row that is needed, and one for each other benchmark."""
    keys = {key for _, keys in report.charts.CHARTS.values() for key in keys}
    keys |= set(report.sizing.USED) | set(report.sizing.MORE)
    keys |= {(name, *row) for name, part in report.SECTIONS.items() for row in part.needs}
    keys |= {(name, "a question", "ms") for name in report.SECTIONS if name != "bench_workers"}
    workers = [
        line(
            "bench_workers", "sessions, unpinned", "sessions/s", f"restante, {n} workers", n * 10.0
        )
        for n in (1, 2)
    ]
    return [line(*key) for key in sorted(keys)] + workers


@pytest.mark.parametrize(
    ("unit", "ours", "theirs", "is_behind"),
    [
        ("µs of server CPU each", 80.0, 79.0, True),
        ("µs of server CPU each", 79.0, 80.0, False),
        ("µs of server CPU each", 80.0, 80.0, False),
        ("messages/s", 79.0, 80.0, True),
        ("messages/s", 80.0, 79.0, False),
        ("MB/s", 79.0, 80.0, True),
        ("MB of PSS", 79.0, 80.0, False),
        ("disk flushes each", 80.0, 79.0, True),
    ],
)
def test_row_behind_is_listed(
    bench: Any, unit: str, ours: float, theirs: float, is_behind: bool
) -> None:
    lines = [
        line("bench_top", "a slow thing", unit, "dovecot-multi", theirs),
        line("bench_top", "a slow thing", unit, "restante", ours),
    ]
    text = bench.behind(bench.Results(lines))
    assert ("a slow thing" in text) is is_behind
    assert text.startswith("In 1 of 1 " if is_behind else "In none of 1 ")


def test_worst_row_is_listed_first_and_compared_with_the_best_peer(bench: Any) -> None:
    lines = [
        line("bench_top", "slow", "µs", "restante", 20.0),
        line("bench_top", "slow", "µs", "dovecot-fast", 19.0),
        line("bench_top", "slow", "µs", "dovecot-multi", 10.0),
        line("bench_retr", "slower", "messages/s", "restante", 10.0),
        line("bench_retr", "slower", "messages/s", "dovecot-multi", 100.0),
    ]
    rows = bench.behind(bench.Results(lines)).splitlines()[-2:]
    assert rows == [
        "| slower, messages/s | 0.10\N{NO-BREAK SPACE}× | 10 | dovecot-multi 100 |",
        "| slow, µs | 0.50\N{NO-BREAK SPACE}× | 20 | dovecot-multi 10 |",
    ]


def test_other_mail_format_is_compared_on_its_own(bench: Any) -> None:
    lines = [
        line("bench_top", "TOP", "µs", "restante", 10.0),
        line("bench_top", "TOP", "µs", "dovecot-multi", 20.0),
        line("bench_top", "TOP", "µs", "dovecot-mdbox", 5.0),
    ]
    results = bench.Results(lines)
    assert "| TOP, µs | 0.50\N{NO-BREAK SPACE}× | 10 | dovecot-mdbox 5 |" in bench.behind(results)
    assert "In 1 of 2 " in bench.behind(results)
    row = results.row("bench_top", "TOP", "µs")
    assert (row.ratio(), row.ratio_to_other_format()) == (2.0, 0.5)


def test_both_pages_and_all_charts_are_made_of_complete_results(bench: Any) -> None:
    results = bench.Results(everything(bench))
    page = bench.performance(results)
    titles = ["Where other programs are better", "Conditions"]
    titles += [part.title for part in bench.SECTIONS.values()]
    assert re.findall("^## (.*)", page, re.M) == titles
    assert set(re.findall(r"\{picture\} (\w+)", page)) == set(bench.charts.CHARTS)
    assert set(bench.charts.drawn(results)) == set(bench.charts.CHARTS)
    assert "`./dev bench bench/bench_delete.py`" in page
    assert bench.sizing.page(results).count("\n## ") == 5


def test_missing_row_is_an_error(bench: Any) -> None:
    lines = everything(bench)
    optional = {"a question", "sessions, unpinned"}
    for at, left_out in enumerate(lines):
        if left_out["question"] in optional:
            continue
        results = bench.Results(lines[:at] + lines[at + 1 :])
        with pytest.raises(bench.Missing, match=re.escape(left_out["question"])):
            bench.charts.drawn(results), bench.performance(results), bench.sizing.page(results)


def test_missing_benchmark_is_an_error(bench: Any) -> None:
    for name in bench.SECTIONS:
        results = bench.Results(each for each in everything(bench) if each["bench"] != name)
        with pytest.raises(bench.Missing, match=name):
            bench.performance(results)


def test_row_of_peers_alone_is_an_error(bench: Any) -> None:
    lines = [*everything(bench), line("bench_top", "RSET", "µs", "dovecot-multi")]
    with pytest.raises(bench.Missing, match="RSET"):
        bench.performance(bench.Results(lines))


def test_incomplete_results_leave_the_pages_alone(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "DOCS", tmp_path)
    monkeypatch.setattr(bench.measured, "RESULTS", tmp_path / "results.jsonl")
    bench.measured.keep([each for each in everything(bench) if each["bench"] != "bench_top"])
    with pytest.raises(bench.Missing):
        bench.write()
    assert not (tmp_path / "performance.md").exists()
    (tmp_path / "howto").mkdir()
    bench.measured.keep(everything(bench))
    bench.write()
    assert (tmp_path / "howto" / "sizing.md").exists()


def test_new_results_replace_those_of_the_same_command(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.measured, "RESULTS", tmp_path / "results.jsonl")
    bench.measured.keep([line("bench_top", "TOP", "µs"), line("bench_top", "renamed", "µs")])
    bench.measured.keep([line("bench_retr", "RETR", "µs")])
    bench.measured.keep([line("bench_top", "TOP", "µs", median=5.0)])
    found = {each["question"]: each["median"] for each in bench.read().lines}
    assert found == {"RETR": 100.0, "TOP": 5.0}
    bench.measured.forget_all_but({"./dev bench bench/bench_top.py"})
    assert [each["question"] for each in bench.read().lines] == ["TOP"]


def test_needs_of_a_site_add_up(bench: Any) -> None:
    """All rows are 100, so that a session takes 100 µs and a hash 100 ms."""
    sizing = bench.sizing
    site = sizing.Site("one", 1_000, 10, 20, sizing.LARGE_KILOBYTES, 2, 3, 500)
    found = sizing.need(site, bench.Results(everything(bench)))
    assert found.sessions == pytest.approx(1_000 * 10 * 100e-6)
    assert found.hashing == pytest.approx(1_000 * 2 * 0.1)
    # Delivered, retrieved, deleted, removed, and 25 MiB of it sent.
    assert found.mail == pytest.approx(1_000 * 20 * 5 * 100e-6)
    assert found.cores == pytest.approx((1 + 200 + 10) / 86_400 * 3)
    assert found.megabytes == pytest.approx(100 + 500 * 0.1)
    assert found.writes == pytest.approx(1_000 * 20 * 100)
    assert found.flushes == pytest.approx(1_000 * 20 * 100 / 86_400 * 3)


def test_longest_bar_is_the_greatest_figure() -> None:
    drawn = runpy.run_path(str(HOUSE / "docs" / "pictures.py"))["bars"](
        "a title", [("a question", {"restante": 5.0, "dovecot-multi": 10.0, "slow": 0.001})]
    )
    found = re.findall(r'<rect class="(bar|bar peer)" x="130" y="\d+" width="(\d+)"', drawn)
    assert found == [("bar", "115"), ("bar peer", "230"), ("bar peer", "1")]
    assert ">0.001</text>" in drawn


def test_every_benchmark_of_the_page_is_run(bench: Any) -> None:
    source = (BENCH / "everything.py").read_text()
    runs = set(re.findall(r'\("(bench_\w+)\.py"', source))
    assert runs == set(bench.SECTIONS)
    assert all((BENCH / f"{name}.py").exists() for name in runs)


def test_pages_are_written_from_the_results(bench: Any) -> None:
    docs, results = HOUSE / "docs", bench.read()
    assert (docs / "performance.md").read_text() == bench.performance(results)
    assert (docs / "howto" / "sizing.md").read_text() == bench.sizing.page(results)
