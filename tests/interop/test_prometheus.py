"""A real Prometheus scrapes a real server, with the configuration and the rules that we ship."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ..app.test_dashboard import dashboard_expressions
from ..app.test_supervisor import WAIT, Site
from ..app.test_supervisor import site as site
from ..cli.conftest import home as home
from .programs import need
from .test_alert_rules import guided_configuration

pytestmark = pytest.mark.interop


class Prometheus:
    """A running Prometheus."""

    def __init__(self, folder: Path, target: str) -> None:
        text = guided_configuration().replace("127.0.0.1:9110", target)
        often = "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n"
        (folder / "prometheus.yml").write_text(often + text)
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self._url = f"http://{address}/api/v1"
        self.process = subprocess.Popen(
            [
                need("prometheus"),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/series",
                f"--web.listen-address={address}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, path: str, **query: str) -> Any:
        url = f"{self._url}/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=WAIT) as response:
            answer = json.load(response)
        assert answer["status"] == "success"
        return answer["data"]

    def value(self, expression: str) -> float | None:
        results = self.ask("query", query=expression)["result"]
        return float(results[0]["value"][1]) if results else None

    def has(self, expression: str, value: float) -> bool:
        return self.value(expression) == value

    def firing(self) -> set[str]:
        alerts = self.ask("alerts")["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}


def eventually(condition: Callable[[], object], seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            found = condition()
        except OSError:  # Prometheus has not started yet
            found = False
        if found:
            return
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture
def prometheus(site: Site, tmp_path: Path) -> Iterator[Prometheus]:
    path = site.place / "restante.toml"
    path.write_text(f'{path.read_text()}\n[metrics]\nlisten = "127.0.0.1:0"\n')
    site.start()
    running = Prometheus(tmp_path, site.told["metrics"])
    yield running
    running.process.terminate()
    running.process.wait(WAIT)


@pytest.mark.timeout(180)
def test_prometheus_scrapes_the_server_and_alerts(site: Site, prometheus: Prometheus) -> None:
    eventually(lambda: prometheus.value('up{job="restante"}') == 1)
    eventually(lambda: prometheus.value("restante_workers") == 2)
    site.client().log_in("ann").quit()
    eventually(lambda: prometheus.value('sum(restante_logins_total{result="ok"})') == 1)
    assert prometheus.firing() == set()

    for number in (1, 2):
        os.kill(site.workers()[0], signal.SIGKILL)
        site.wait_for("worker ended")
        eventually(partial(prometheus.has, "restante_workers_ended_total", number))
    path = site.place / "restante.toml"
    path.write_text(f"{path.read_text()}\n[nonsense]\n")
    site.process.send_signal(signal.SIGHUP)
    eventually(lambda: prometheus.firing() == {"RestanteWorkersEnd", "RestanteReloadRefused"})

    silent = []
    for each in dashboard_expressions():
        text = re.sub(r"\$__rate_interval", "5m", each.text)
        text = re.sub(r"\$(instance|job)", ".*", text)
        is_of_collector = "restante_collect" in text or "restante_oauth" in text
        if prometheus.value(text) is None and not is_of_collector:
            silent.append(text)
    assert silent == [], "panels without data"
