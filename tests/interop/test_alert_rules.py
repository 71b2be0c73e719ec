"""The alert rules for Prometheus, evaluated by promtool over invented numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from .programs import call, need

pytestmark = pytest.mark.interop

RULES = Path(__file__).parent.parent.parent / "contrib" / "prometheus" / "restante.rules.yml"
GUIDE = RULES.parent.parent.parent / "docs" / "howto" / "monitoring.md"
INSTANCE = 'instance="pop:9110",job="restante"'
DAY = 86_400
# Times of the evaluation, and the same times in seconds since the epoch, where promtool's clock
# starts.  The rules about collecting need more than a day.
NOW, AT = "1h", 3600
LATER, LATER_AT = "1d12h", int(1.5 * DAY)
LONG = 2170  # minutes, a little more than the later time


class Case(NamedTuple):
    """Series by name and labels, with values per minute, and the number of alerts that fire."""

    alert: str
    series: dict[str, str]
    firing: int
    at: str = NOW

    @property
    def interval(self) -> str:
        """How often the rules are evaluated; a minute would take long for more than a day."""
        return "30m" if self.alert.startswith("RestanteCollect") else "1m"


def logins(result: str, values: str) -> dict[str, str]:
    return {f'restante_logins_total{{result="{result}",mechanism="plain",{INSTANCE}}}': values}


def deliveries(result: str, values: str, via: str = "lmtp") -> dict[str, str]:
    return {f'restante_deliveries_total{{result="{result}",via="{via}",{INSTANCE}}}': values}


def store_errors(kind: str, values: str) -> dict[str, str]:
    return {f'restante_store_errors_total{{kind="{kind}",{INSTANCE}}}': values}


def counter(name: str, values: str) -> dict[str, str]:
    return {f"restante_{name}{{{INSTANCE}}}": values}


def certificate(end: int) -> dict[str, str]:
    return counter("tls_certificate_expiry_timestamp_seconds", f"{end}x{LONG}")


def disk(free: int) -> dict[str, str]:
    return counter("store_free_bytes", f"{free}x{LONG}") | counter(
        "store_size_bytes", f"1000x{LONG}"
    )


def collected(account: str, success: str | None, failures: str = f"0x{LONG}") -> dict[str, str]:
    labels = f'{{account="{account}",instance="pop:9100",job="node"}}'
    series = {f"restante_collect_failures{labels}": failures}
    if success is not None:
        series[f"restante_collect_last_success_timestamp_seconds{labels}"] = success
    return series


QUIET = f"0x{LONG}"
CASES = [
    Case("RestanteDown", {f"up{{{INSTANCE}}}": "1x10 0x20"}, 0, "15m"),
    Case("RestanteDown", {f"up{{{INSTANCE}}}": "1x10 0x20"}, 1, "16m"),
    Case("RestanteDown", {f"up{{{INSTANCE}}}": "1x10 0x4 1x20"}, 0, "20m"),
    Case("RestanteDown", {'up{instance="pop:9110",job="other"}': "0x60"}, 0),
    Case("RestanteCertificateExpires", certificate(AT + 7 * DAY), 0),
    Case("RestanteCertificateExpires", certificate(AT + 7 * DAY - 60), 1),
    Case("RestanteCertificateExpires", certificate(AT + 60), 1),
    Case("RestanteCertificateExpires", certificate(AT), 0),
    Case("RestanteCertificateExpired", certificate(AT + 60), 0),
    Case("RestanteCertificateExpired", certificate(AT), 1),
    Case("RestanteCertificateExpired", certificate(AT - 9 * DAY), 1),
    Case("RestanteLoginsFail", logins("ok", QUIET) | logins("failed", QUIET), 0),
    Case("RestanteLoginsFail", logins("ok", "0+8x60") | logins("failed", "0+1x60"), 0),
    Case("RestanteLoginsFail", logins("ok", "0+7x60") | logins("failed", "0+3x60"), 1),
    Case("RestanteLoginsFail", logins("ok", QUIET) | logins("failed", "0+1x60"), 1),
    Case("RestanteLoginsFail", logins("ok", QUIET) | logins("failed", "0x30 0+1x3 3x60"), 0, "40m"),
    Case("RestanteLoginsFail", logins("ok", QUIET) | logins("refused", "0+99x60"), 0),
    Case("RestanteStoreErrors", store_errors("read", QUIET), 0),
    Case("RestanteStoreErrors", store_errors("read", "0x30 1x30"), 1, "40m"),
    Case("RestanteStoreErrors", store_errors("read", "0x30 1x30"), 0, "50m"),
    Case(
        "RestanteStoreErrors",
        store_errors("read", "0+9x60")
        | store_errors("write", "0+9x60"),
        2,
    ),
    Case("RestanteDeliveriesDeferred", deliveries("deferred", QUIET), 0),
    Case(
        "RestanteDeliveriesDeferred",
        deliveries("stored", "0+100x60") | deliveries("deferred", "0+1x60"),
        0,
    ),
    Case(
        "RestanteDeliveriesDeferred",
        deliveries("stored", "0+8x60") | deliveries("deferred", "0+1x60", "smtp"),
        1,
    ),
    Case("RestanteDeliveriesDeferred", deliveries("deferred", "0+9x60", "gateway"), 0),
    Case("RestanteDiskNearlyFull", disk(50), 0),
    Case("RestanteDiskNearlyFull", disk(49), 1),
    Case("RestanteDiskNearlyFull", disk(0), 1),
    Case("RestanteWorkersEnd", counter("workers_ended_total", QUIET), 0),
    Case("RestanteWorkersEnd", counter("workers_ended_total", "0x30 1x30"), 0, "35m"),
    Case("RestanteWorkersEnd", counter("workers_ended_total", "0x30 2x30"), 1, "35m"),
    Case("RestanteWorkersEnd", counter("workers_ended_total", "0x20 1x15 2x30"), 0, "40m"),
    Case("RestanteWorkersEnd", counter("workers_ended_total", "0x30 1x4 2x30"), 1, "40m"),
    Case("RestanteWorkersEnd", counter("workers_ended_total", "0x30 2x30"), 0, "50m"),
    Case("RestanteReloadRefused", counter("config_last_reload_successful", "1x60"), 0),
    Case("RestanteReloadRefused", counter("config_last_reload_successful", "1x9 0x60"), 1),
    Case("RestanteReloadRefused", counter("config_last_reload_successful", "0x9 1x60"), 0),
    Case("RestanteDeletionsBraked", counter("deletions_braked_total", QUIET), 0),
    Case("RestanteDeletionsBraked", counter("deletions_braked_total", "0x30 1x90"), 1),
    Case("RestanteDeletionsBraked", counter("deletions_braked_total", "0x30 1x90"), 0, "100m"),
    Case("RestanteCollectStale", collected("isp", f"{LATER_AT - DAY}x{LONG}"), 0, LATER),
    Case("RestanteCollectStale", collected("isp", f"{LATER_AT - DAY - 60}x{LONG}"), 1, LATER),
    Case("RestanteCollectStale", collected("isp", "0x2170") | collected("b", "0x2170"), 2, LATER),
    Case("RestanteCollectStale", collected("isp", None), 0, LATER),
    Case("RestanteCollectNeverWorked", collected("isp", None), 0, LATER),
    Case("RestanteCollectNeverWorked", collected("isp", None, f"3x{LONG}"), 0, "23h"),
    Case("RestanteCollectNeverWorked", collected("isp", None, f"3x{LONG}"), 1, LATER),
    Case("RestanteCollectNeverWorked", collected("isp", f"60x{LONG}", f"3x{LONG}"), 0, LATER),
]  # fmt: skip


def unit_test(case: Case) -> dict[str, object]:
    firing = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)'
    return {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": values} for name, values in case.series.items()
        ],
        "promql_expr_test": [
            {
                "expr": firing,
                "eval_time": case.at,
                "exp_samples": [{"labels": "{}", "value": case.firing}],
            }
        ],
    }


def promtool(folder: Path, *cases: Case, tests: list[dict[str, object]] | None = None) -> str:
    """Run unit tests; return the differences, or "" if all tests pass.

    All cases must have the same interval of evaluation.
    """
    (interval,) = {each.interval for each in cases}
    tests = [unit_test(each) for each in cases] if tests is None else tests
    path = folder / "tests.yml"  # JSON is valid YAML
    content = {"rule_files": [str(RULES)], "evaluation_interval": interval, "tests": tests}
    path.write_text(json.dumps(content))
    done = call(need("promtool"), "test", "rules", path)
    return "" if done.returncode == 0 else (done.stdout + done.stderr).decode()


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    for interval in ("1m", "30m"):
        cases = [each for each in CASES if each.interval == interval]
        assert promtool(tmp_path, *cases) == ""


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    assert len(alerts) == len(set(alerts)) > 9
    assert {case.alert for case in CASES if case.firing} == set(alerts)
    assert {case.alert for case in CASES if not case.firing} == set(alerts)


def test_a_wrong_expectation_is_noticed(tmp_path: Path) -> None:
    assert "RestanteDown" in promtool(tmp_path, CASES[0]._replace(firing=1))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.firing], ids=lambda case: case.alert
)
def test_texts_of_alerts_are_complete(case: Case, tmp_path: Path) -> None:
    """No template fails, and no label that a text contains is missing."""
    test = unit_test(case)
    del test["promql_expr_test"]
    test["alert_rule_test"] = [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": []}]
    shown = promtool(tmp_path, case, tests=[test])
    annotations = re.findall(r'(?:summary|description)="([^"]*)"', shown)
    assert len(annotations) == 2 * case.firing, shown
    for text in annotations:
        assert "<error" not in text
        assert "<no value>" not in text
        assert not re.search(r"  | \.|\(\)| for $", text), text
    assert 'severity="' in shown


def test_rules_are_valid() -> None:
    done = call(need("promtool"), "check", "rules", RULES)
    assert done.returncode == 0, done.stderr


def guided_configuration() -> str:
    """Return the configuration of Prometheus in the guide, with the path of our rules."""
    blocks: list[str] = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)
    (text,) = [block for block in blocks if "scrape_configs" in block]
    assert "/etc/prometheus/restante.rules.yml" in text
    return text.replace("/etc/prometheus/restante.rules.yml", str(RULES))


def test_configuration_in_the_guide_is_valid(tmp_path: Path) -> None:
    text = guided_configuration()
    assert "job_name: restante\n" in text, "the rules require this name"
    path = tmp_path / "prometheus.yml"
    path.write_text(text)
    done = call(need("promtool"), "check", "config", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"12 rules found" in done.stdout


def test_guide_lists_every_alert() -> None:
    listed = re.findall(r"`(Restante\w+)`", GUIDE.read_text())
    assert set(listed) == set(re.findall(r"- alert: (\w+)", RULES.read_text()))
