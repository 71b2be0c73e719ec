"""The metrics of a server with two workers, as clients and a monitoring system see them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection

import pytest

from restante.series import METRICS, Kind
from restante.store.maildir import MaildirStore

from ..exposition import parsed
from ..server.test_control import needs_root
from ..support import once
from .test_control import Operator, http
from .test_supervisor import WAIT, Site
from .test_supervisor import site as site

pytestmark = pytest.mark.slow  # each starts a server with its workers

METRICS_ON = '\n[metrics]\nlisten = ["127.0.0.1:0"]\n'
MESSAGE = b"Subject: hello\r\n\r\nhi\r\n"


def scraped(site: Site) -> str:
    """Return the metrics that one of the workers shows on the TCP port."""
    host, _, port = site.told["metrics"].rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=WAIT)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode()
    finally:
        connection.close()


def metrics(site: Site) -> dict[str, float]:
    return parsed(scraped(site))


class Watcher:
    """Scrapes a server, and checks that no counter decreases."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._last: dict[str, float] = {}

    def look(self) -> dict[str, float]:
        samples = metrics(self._site)
        for key, before in self._last.items():
            if "_total" in key or "_bucket" in key or "_count" in key:
                assert samples[key] >= before, key
        self._last = samples
        return samples

    def until(self, condition: Callable[[dict[str, float]], object]) -> dict[str, float]:
        """Scrape until the condition is true: other workers publish every second."""
        for _ in range(100):
            with suppress(ConnectionError):
                samples = self.look()
                if condition(samples):
                    return samples
            time.sleep(0.1)
        raise AssertionError({key: value for key, value in samples.items() if value})

    def until_equal(self, **expected: float) -> dict[str, float]:
        """Wait until the samples have these values; ``__`` separates name and label values."""
        keys = {
            next(key for key in self.look() if _short(key) == name): value
            for name, value in expected.items()
        }
        return self.until(lambda samples: all(samples[key] == keys[key] for key in keys))


def _short(key: str) -> str:
    """Return ``logins_total__ok__user`` for ``restante_logins_total{result="ok",…}``."""
    name, _, labels = key.removeprefix("restante_").rstrip("}").partition("{")
    values = [each.split('"')[1] for each in labels.split('",')] if labels else []
    return "__".join([name, *values])


@pytest.fixture
def watcher(site: Site) -> Watcher:
    site.write(workers=2, limits=METRICS_ON, auth="failure_delay = 0")
    site.start()
    return Watcher(site)


def deliver(site: Site, user: str, count: int) -> None:
    store = MaildirStore(f"{site.place}/mail/%u")

    async def main() -> None:
        for _ in range(count):
            await store.deliver(user, once(MESSAGE))

    asyncio.run(main())


def dialogue(site: Site, *lines: str) -> list[str]:
    """Send commands one after another; return the first lines of the answers."""
    host, _, port = site.told["pop3"].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as connected:
        file = connected.makefile("rb")
        file.readline()
        answers = []
        for line in lines:
            connected.sendall(line.encode() + b"\r\n")
            answers.append(file.readline().decode())
            if answers[-1].startswith("+OK") and line.split()[0] in ("RETR", "TOP", "UIDL", "CAPA"):
                while file.readline() not in (b".\r\n", b""):
                    pass
        if lines[-1] == "QUIT":
            file.read()  # until the server has processed everything and disconnects
    return answers


def test_every_metric_is_shown_from_the_beginning(site: Site, watcher: Watcher) -> None:
    samples = watcher.until(
        lambda samples: samples["restante_workers"] == 2 and "restante_maildrops" in samples
    )
    shown = {key.partition("{")[0] for key in samples}
    for metric in METRICS:
        suffix = "_count" if metric.kind is Kind.HISTOGRAM else ""
        assert f"restante_{metric.name}{suffix}" in shown
    assert abs(samples["restante_start_time_seconds"] - time.time()) < 120
    assert samples["restante_config_last_reload_successful"] == 1
    assert samples["restante_tls_certificate_expiry_timestamp_seconds"] > time.time()
    counters = {key: value for key, value in samples.items() if "_total" in key and value}
    assert counters == {}
    for worker in (0, 1):  # and on both control sockets
        status, content = http(site, worker, "GET", "/metrics")
        assert status == 200
        assert parsed(content.decode()).keys() == samples.keys()


def test_logins_and_commands_are_counted(site: Site, watcher: Watcher) -> None:
    deliver(site, "ann", 3)
    size = len(MESSAGE)
    dialogue(site, "USER ann", "PASS wrong")
    watcher.until_equal(
        logins_total__refused__user=1, logins_total__ok__user=0, commands_total__pass__err=1
    )
    login = ["USER ann", "PASS secret"]
    dialogue(
        site, *login, "STAT", "UIDL", "RETR 1", "RETR 9", "NONSENSE", "TOP 2 0", "NOOP", "QUIT"
    )
    samples = watcher.until_equal(
        logins_total__ok__user=1,
        commands_total__user__ok=2,
        commands_total__pass__ok=1,
        commands_total__stat__ok=1,
        commands_total__uidl__ok=1,
        commands_total__retr__ok=1,
        commands_total__retr__err=1,
        commands_total__other__err=1,
        commands_total__top__ok=1,
        commands_total__noop__ok=1,
        commands_total__quit__ok=1,
        messages_sent_total=1,
        sent_bytes_total=size,
        messages_deleted_total=0,
        login_seconds_count__ok=1,
        login_seconds_count__refused=1,
        command_seconds_count__retr=3,
        command_seconds_count__list=1,
        command_seconds_count__quit=1,
        # USER twice, STAT, NONSENSE and NOOP
        command_seconds_count__other=5,
    )
    assert samples['restante_login_seconds_sum{result="ok"}'] > 0, "a hash takes milliseconds"
    for _ in range(5):
        dialogue(site, *login, "RETR 1\r\nRETR 2\r\nRETR 3", "NOOP", "QUIT")
    watcher.until_equal(
        logins_total__ok__user=6, messages_sent_total=16, sent_bytes_total=16 * size
    )
    dialogue(site, *login, "DELE 1\r\nDELE 2", "NOOP", "QUIT")
    watcher.until_equal(commands_total__dele__ok=2, messages_deleted_total=2)
    done = Operator(site).run("maildrop", "restore", "ann", "--all")
    assert done.code == 0, done.err
    watcher.until_equal(messages_restored_total=2)
    for target in ("/restored", "/restored?messages=-1", "/restored?messages=1e9"):
        assert http(site, 0, "POST", target)[0] == 400


def test_connections_and_sessions_are_gauges(site: Site, watcher: Watcher) -> None:
    clients = [site.client() for _ in range(5)]
    watcher.until_equal(connections__pop3=5, sessions__pop3=0, connections__pop3s=0)
    for client, user in zip(clients, ("ann", "bob"), strict=False):
        client.log_in(user)
    watcher.until_equal(connections__pop3=5, sessions__pop3=2)
    for client in clients:
        client.close()
    watcher.until_equal(connections__pop3=0, sessions__pop3=0)


def test_killed_workers_lose_no_counts_that_were_shown(site: Site, watcher: Watcher) -> None:
    """Each worker is killed while clients are connected; the sum stays and the gauges fall."""
    deliver(site, "ann", 1)
    for _ in range(10):
        dialogue(site, "USER ann", "PASS secret", "RETR 1", "QUIT")
    watcher.until_equal(messages_sent_total=10)
    time.sleep(1.5)  # the values of both workers are published
    for number, pid in enumerate(site.workers(), 1):
        client = site.alone(pid, lambda: site.client().log_in("bob"))
        watcher.until_equal(sessions__pop3=1)
        os.kill(pid, signal.SIGKILL)
        samples = watcher.until_equal(workers_ended_total=number, sessions__pop3=0, workers=2)
        assert samples["restante_messages_sent_total"] == 10
        client.close()
    dialogue(site, "USER ann", "PASS secret", "RETR 1", "QUIT")
    watcher.until_equal(messages_sent_total=11)


def test_deliveries_are_counted(site: Site, watcher: Watcher) -> None:
    def send(*recipients: str) -> None:
        for recipient in recipients:
            sender = smtplib.LMTP(f"{site.place}/lmtp.sock")
            with suppress(smtplib.SMTPException), sender:
                sender.sendmail("x@example.org", recipient, MESSAGE.decode())

    send("ann")
    samples = watcher.until_equal(
        deliveries_total__lmtp__stored=1,
        delivery_seconds_count__lmtp=1,
        deliveries_total__smtp__stored=0,
    )
    assert samples['restante_received_bytes_total{via="lmtp"}'] > len(MESSAGE)
    send("ann", "bob")
    watcher.until_equal(deliveries_total__lmtp__stored=3, deliveries_total__lmtp__deferred=0)
    shutil.rmtree(site.place / "mail" / "bob")
    (site.place / "mail" / "bob").touch()
    send("bob")
    watcher.until_equal(deliveries_total__lmtp__deferred=1, store_errors_total__write=1)
    assert watcher.look()["restante_messages_sent_total"] == 0


def test_tls_handshakes_are_counted(site: Site, watcher: Watcher) -> None:
    site.certificate_seen()
    watcher.until_equal(**{"tls_handshakes_total__1.3": 1, "tls_handshakes_total__failed": 0})
    host, _, port = site.told["pop3s"].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as connected:
        connected.sendall(b"not a TLS handshake\r\n")
        connected.recv(100)
    watcher.until_equal(tls_handshakes_total__failed=1, connections_refused_total__handshake=1)


@pytest.mark.parametrize(
    ("limits", "reason"), [("sessions = 2", "total"), ("per_address = 2", "per_address")]
)
def test_refused_connections_are_counted(limits: str, reason: str, site: Site) -> None:
    site.write(workers=2, limits=limits + METRICS_ON)
    site.start()
    watcher = Watcher(site)
    clients = [site.client().log_in(user) for user in ("ann", "bob")]
    for _ in range(3):
        assert site.is_full()
    expected = {"total": 0, "per_address": 0, "handshake": 0, "proxy": 0, reason: 3}
    samples = watcher.until_equal(
        **{f"connections_refused_total__{name}": value for name, value in expected.items()}
    )
    assert samples['restante_connections{protocol="pop3"}'] == 2
    for client in clients:
        client.close()


def test_invalid_proxy_headers_are_counted(site: Site) -> None:
    site.write(workers=2, limits=METRICS_ON)
    (site.place / "conf.d").mkdir()
    (site.place / "conf.d" / "proxy.toml").write_text('[server]\nproxy_from = ["127.0.0.0/8"]\n')
    site.start()
    host, _, port = site.told["pop3"].rpartition(":")
    for _ in range(2):
        with socket.create_connection((host, int(port)), timeout=WAIT) as connected:
            connected.sendall(b"USER ann\r\n")
            with suppress(ConnectionError):
                assert connected.recv(100) == b""
    Watcher(site).until_equal(connections_refused_total__proxy=2, connections__pop3=0)


def test_versions_of_tls_are_counted(site: Site, watcher: Watcher) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, _, port = site.told["pop3s"].rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=WAIT) as connected,
        context.wrap_socket(connected) as secure,
    ):
        assert secure.recv(100).startswith(b"+OK")
        watcher.until_equal(**{"tls_handshakes_total__1.2": 1, "tls_handshakes_total__1.3": 0})
        watcher.until_equal(connections__pop3s=1, connections__pop3=0)


def test_reloads_are_counted(site: Site, watcher: Watcher) -> None:
    operator = Operator(site)
    assert operator.run("reload").code == 0
    watcher.until_equal(reloads_total__ok=1, reloads_total__refused=0)
    path = site.place / "restante.toml"
    valid = path.read_text()
    path.write_text("nonsense")
    for _ in range(2):
        assert operator.run("reload").code == os.EX_CONFIG
    watcher.until_equal(
        reloads_total__ok=1, reloads_total__refused=2, config_last_reload_successful=0
    )
    path.write_text(valid)
    assert operator.run("reload").code == 0
    watcher.until_equal(reloads_total__ok=2, config_last_reload_successful=1)


def test_server_without_workers_has_the_same_metrics(site: Site) -> None:
    site.write(workers=1, limits=METRICS_ON)
    site.start()
    watcher = Watcher(site)
    dialogue(site, "USER ann", "PASS secret", "QUIT")
    samples = watcher.until_equal(workers=1, logins_total__ok__user=1, commands_total__quit__ok=1)
    assert len(samples) > 200


@pytest.mark.interop
def test_promtool_finds_no_fault(site: Site, watcher: Watcher) -> None:
    program = shutil.which("promtool")
    assert program is not None, "install Debian's package prometheus"
    dialogue(site, "USER ann", "PASS secret", "QUIT")
    done = subprocess.run(
        [program, "check", "metrics"],
        input=scraped(site),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_held_mail_and_the_disk_are_measured_after_the_start(site: Site) -> None:
    (site.place / "mail").mkdir()
    deliver(site, "ann", 3)
    deliver(site, "bob", 1)
    site.write(workers=2, limits=METRICS_ON)
    site.start()
    watcher = Watcher(site)
    samples = watcher.until(lambda samples: "restante_maildrops" in samples)
    assert (samples["restante_maildrops"], samples["restante_held_messages"]) == (2, 0)
    dialogue(site, "USER ann", "PASS secret", "DELE 1\r\nDELE 2", "NOOP", "QUIT")
    watcher.until_equal(messages_deleted_total=2)
    for pid in site.workers():  # the worker that measures is one of them
        os.kill(pid, signal.SIGKILL)
        samples = watcher.until(lambda samples: samples["restante_workers"] == 2)
        assert samples["restante_maildrops"] == 2, "the last measurement is kept"
    samples = watcher.until_equal(held_messages=2, held_bytes=2 * len(MESSAGE))
    usage = os.statvfs(site.place)
    assert samples["restante_store_size_bytes"] == usage.f_blocks * usage.f_frsize
    assert 0 < samples["restante_store_free_bytes"] < samples["restante_store_size_bytes"]


def test_errors_of_the_store_are_counted_by_kind(site: Site, watcher: Watcher) -> None:
    deliver(site, "ann", 1)
    [message] = (site.place / "mail" / "ann" / "new").iterdir()
    host, _, port = site.told["pop3"].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as connected:
        connected.sendall(b"USER ann\r\nPASS secret\r\n")
        site.wait_for("login ok")
        os.truncate(message, 3)
        connected.sendall(b"RETR 1\r\n")
        while b"-ERR" not in connected.recv(1000):
            pass
    watcher.until_equal(
        store_errors_total__read=1, commands_total__retr__err=1, messages_sent_total=0
    )
    (site.place / "mail" / "bob").mkdir()
    deliver(site, "bob", 1)
    (site.place / "mail" / "bob" / "restante.journal").mkdir()
    dialogue(site, "USER bob", "PASS secret", "RETR 1", "QUIT")
    watcher.until_equal(store_errors_total__journal=1, store_errors_total__write=0)


def test_limits_on_deletions_are_counted(site: Site) -> None:
    site.write(workers=2, limits="deletions_by_new = 1" + METRICS_ON)
    site.start()
    watcher = Watcher(site)
    deliver(site, "ann", 2)
    dialogue(site, "USER ann", "PASS secret", "DELE 1\r\nDELE 2", "NOOP", "QUIT")
    watcher.until_equal(
        deletions_braked_total=1,
        messages_deleted_total=0,
        store_errors_total__write=0,
        commands_total__quit__err=1,
    )


# -- Readiness


def ready(site: Site) -> tuple[int, list[str]]:
    host, _, port = site.told["metrics"].rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=WAIT)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        return response.status, json.loads(response.read())["reasons"]
    finally:
        connection.close()


def test_server_that_drains_is_not_ready(site: Site, watcher: Watcher) -> None:
    """A client that reads slowly keeps its session for some seconds."""
    deliver(site, "ann", 1)
    (site.place / "mail" / "ann" / "new" / "large").write_bytes(b"x" * 99 + b"\n" * 10_000_000)
    assert ready(site) == (200, [])
    host, _, port = site.told["pop3"].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as connected:
        connected.sendall(b"USER ann\r\nPASS secret\r\n")
        site.wait_for("login ok")
        connected.sendall(b"RETR 1\r\nRETR 2\r\n")
        time.sleep(0.5)
        site.process.terminate()
        for _ in range(50):
            with suppress(ConnectionError):
                if ready(site) == (503, ["the server is stopping"]):
                    break
            time.sleep(0.05)
        else:
            raise AssertionError("never reported that it stops")
        done = Operator(site).run("status", "--exit-code")
        assert done.code == os.EX_TEMPFAIL, done.err
        assert "the server is stopping" in done.out
    assert site.process.wait(WAIT) == 0


@needs_root
def test_full_disk_is_a_reason_until_there_is_room(site: Site) -> None:
    site.write(workers=2, limits=METRICS_ON)
    mail = site.place / "mail"
    mail.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mail], check=True)
    try:
        site.start()
        assert ready(site) == (200, [])
        with suppress(OSError):
            (mail / "filler").write_bytes(b"x" * 100_000)
        reason = "mail storage: No space left on device"
        deadline = time.monotonic() + 30
        while ready(site) != (503, [reason]):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        done = Operator(site).run("status", "--exit-code")
        assert (done.code, reason in done.out) == (os.EX_TEMPFAIL, True)
        (mail / "filler").unlink()
        while ready(site) != (200, []) or Operator(site).run("status", "--exit-code").code:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        site.stop()
        subprocess.run(["umount", mail], check=True)
