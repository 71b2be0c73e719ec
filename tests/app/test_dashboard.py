"""The alert rules and the dashboard name only metrics, labels and values that exist."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from restante import config
from restante.app import exposition
from restante.app.job import Job
from restante.collect.oauth.flow import Tokens
from restante.series import METRICS, SIZE, Kind
from restante.testing import Pop3Server

from ..cli.conftest import Restante
from ..exposition import parsed
from .test_supervisor import WAIT, Site
from .test_supervisor import site as site

CONTRIB = Path(__file__).parent.parent.parent / "contrib"
RULES = (CONTRIB / "prometheus" / "restante.rules.yml").read_text()
DASHBOARD = json.loads((CONTRIB / "grafana" / "restante.json").read_text())
TARGET = {"instance", "job"}  # labels that Prometheus adds
Samples = Mapping[str, list[dict[str, str]]]
"""The labels of each sample, by the name of its metric."""


@dataclass(frozen=True)
class Expression:
    """An expression in PromQL, and the labels that the texts about its result contain."""

    text: str
    shown: frozenset[str]

    def selectors(self) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
        """Yield the name and the matchers (label, operator, value) of each selector."""
        for name, braces in re.findall(r"\b(restante_\w+|up)\b(\{[^}]*\})?", self.text):
            yield name, re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', braces)

    def grouping(self) -> set[str]:
        """Return the labels in ``by (…)`` and ``on (…)``."""
        lists = re.findall(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)", self.text)
        return {label for text in lists for label in re.findall(r"\w+", text)}


def alert_expressions() -> list[Expression]:
    rules = RULES.split("- alert: ")[1:]
    found = []
    for rule in rules:
        (text,) = re.findall(r"^ +expr: (.*)$", rule, re.M)
        found.append(Expression(text, frozenset(re.findall(r"\$labels\.(\w+)", rule))))
    return found


def panels() -> list[dict[str, Any]]:
    every = list(DASHBOARD["panels"])
    return every + [inner for panel in every for inner in panel.get("panels", [])]


def dashboard_expressions() -> list[Expression]:
    found = []
    for panel in panels():
        for target in panel.get("targets", []):
            shown = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            found.append(Expression(target["expr"], frozenset(shown)))
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            text, label = re.fullmatch(
                r"label_values\((.*), (\w+)\)", variable["definition"]
            ).groups()  # type: ignore[union-attr]
            found.append(Expression(text, frozenset({label})))
    return found


EXPRESSIONS = [*alert_expressions(), *dashboard_expressions()]


def by_name(text: str) -> Samples:
    samples: dict[str, list[dict[str, str]]] = {"up": [{}]}
    for key in parsed(text):
        name, _, labels = key.partition("{")
        samples.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', labels)))
    return samples


def problems(expression: Expression, samples: Samples) -> list[str]:
    """Return what is wrong with an expression."""
    found, labels = [], set(TARGET)
    for name, matchers in expression.selectors():
        if name not in samples:
            found.append(f"no metric {name}")
            continue
        labels |= {label for each in samples[name] for label in each}
        for label, operator, value in matchers:
            if label in TARGET:
                continue
            values = {each.get(label) for each in samples[name]}
            for each in value.split("|") if operator.endswith("~") else [value]:
                if each not in values:
                    found.append(f"{name}: no {label}={each}")
    found += [f"no label {label}" for label in sorted(expression.grouping() - labels)]
    kept = expression.grouping() if re.search(r"\bby\b", expression.text) else labels
    found += [f"label {label} is not in the result" for label in sorted(expression.shown - kept)]
    return found


@pytest.mark.parametrize(
    ("text", "shown", "problem"),
    [
        ("restante_missing > 0", "", "no metric restante_missing"),
        ('restante_logins_total{result="lost"}', "", "restante_logins_total: no result=lost"),
        ('restante_logins_total{result=~"ok|lost"}', "", "restante_logins_total: no result=lost"),
        ('restante_logins_total{color="red"}', "", "restante_logins_total: no color=red"),
        ("sum by (color) (restante_sessions)", "", "no label color"),
        ("sum by (protocol) (restante_sessions)", "job", "label job is not in the result"),
        ("restante_login_seconds", "", "no metric restante_login_seconds"),
        ('sum by (protocol) (restante_sessions{job="x"})', "protocol", ""),
    ],
)
def test_wrong_expressions_are_noticed(text: str, shown: str, problem: str) -> None:
    expression = Expression(text, frozenset(shown.split()))
    assert problems(expression, server_samples()) == [problem] * bool(problem)


def server_samples() -> Samples:
    """Return all samples of a server, whose metrics are all known."""
    computed: dict[str, list[tuple[dict[str, str], float]]] = {
        metric.name: [({}, 1.0)] for metric in METRICS if not metric.kind.cells
    }
    computed["build_info"] = [({"version": "1"}, 1.0)]
    computed["reloads_total"] = [({"result": each}, 1.0) for each in ("ok", "refused")]
    assert {metric.name for metric in METRICS if metric.kind in (Kind.COMPUTED, Kind.COUNTED)} == (
        set(computed)
    )
    lines = exposition.lines([1.0] * SIZE, computed)
    return by_name("".join(f"{line}\n" for line in lines))


@pytest.fixture
def collector_samples(home: Path, restante: Restante) -> Samples:
    """Return the samples in the file of a collector."""
    path = home / "config" / "restante" / "restante.toml"
    path.parent.mkdir()
    path.touch(0o600)
    with Pop3Server(users={"ann": "secret"}, sasl=()) as server:
        url = server.url("ann").replace("ann:secret@", "")
        path.write_text(
            f'[account.isp]\nurl = "{url}"\nuser = "ann"\npassword = "secret"\n'
            f'to = "maildir:{home}/Mail"\nca_file = "{server.ca_file}"\n'
            '[account.cloud]\nurl = "pop3s://pop.example.org"\nuser = "ann"\n'
            f'to = "maildir:{home}/Mail"\n'
            '[account.cloud.oauth]\nprovider = "microsoft"\nclient_id = "app"\n'
        )
        grant = Job.of(config.load(), "cloud").grant
        grant.file().put(Tokens("access", 0.0, "refresh", 2e9))
        done = restante("collect", "isp", "--metrics", home / "collect.prom")
        assert done.code == 0, done.err
    return by_name((home / "collect.prom").read_text())


def test_expressions_name_metrics_that_exist(collector_samples: Samples) -> None:
    samples = {**server_samples(), **collector_samples}
    wrong = {each.text: problems(each, samples) for each in EXPRESSIONS}
    assert {text: found for text, found in wrong.items() if found} == {}
    assert len(EXPRESSIONS) > 40


def test_dashboard_shows_every_metric(collector_samples: Samples) -> None:
    shown = {name for each in dashboard_expressions() for name, _ in each.selectors()}
    shown = {name.removesuffix("_bucket") for name in shown}
    expected = {f"restante_{metric.name}" for metric in METRICS} | {*collector_samples}
    assert expected - shown == set()


@pytest.mark.slow
def test_expressions_name_metrics_that_a_live_server_shows(
    site: Site, collector_samples: Samples
) -> None:
    path = site.place / "restante.toml"
    path.write_text(f'{path.read_text()}\n[metrics]\nlisten = "127.0.0.1:0"\n')
    site.start()
    url = f"http://{site.told['metrics']}/metrics"
    end = time.monotonic() + WAIT
    while True:
        with urllib.request.urlopen(url, timeout=WAIT) as response:
            samples = {**by_name(response.read().decode()), **collector_samples}
        wrong = {each.text: problems(each, samples) for each in EXPRESSIONS}
        wrong = {text: found for text, found in wrong.items() if found}
        if not wrong or time.monotonic() > end:
            break
        time.sleep(0.2)  # until the disk has been measured
    assert wrong == {}


# The form of the dashboard, which only Grafana can check completely.


def test_dashboard_has_the_form_of_a_dashboard() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["uid"]
    assert DASHBOARD["title"]
    assert "id" not in DASHBOARD, "Grafana assigns it"
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    known |= {"__rate_interval"}
    for panel in panels():
        assert panel["type"] in ("row", "stat", "timeseries")
        assert panel["title"]
        targets = panel.get("targets", [])
        assert bool(targets) == (panel["type"] != "row")
        references = [target["refId"] for target in targets]
        assert len(references) == len(set(references))
        for target in targets:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= known


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in own) < 24, panel["title"]
        assert not own & cells, panel["title"]
        cells |= own


def test_parentheses_in_expressions_are_balanced() -> None:
    for each in EXPRESSIONS:
        for opening, closing in ("()", "{}", "[]"):
            assert each.text.count(opening) == each.text.count(closing), each.text


@pytest.mark.interop
def test_expressions_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    """promtool parses each one as the expression of a recording rule."""
    from ..interop.programs import call, need

    rules = [
        {"record": f"check:{number}", "expr": re.sub(r"\$__rate_interval", "5m", each.text)}
        for number, each in enumerate(EXPRESSIONS)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = call(need("promtool"), "check", "rules", path)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
