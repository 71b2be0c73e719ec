"""Alerts of a real server with workers: each kind is caused from outside."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ..client import certificates
from .test_server_alerts import BEGINNINGS, ENDS, Hook, serving
from .test_supervisor import WAIT, Site
from .test_supervisor import site as site

pytestmark = pytest.mark.slow

# Rounds and checks are frequent, and the file ``disk`` replaces the numbers of the file system.
SITECUSTOMIZE = """
import os
from types import SimpleNamespace
from restante.app import server_alerts
server_alerts._EVERY = server_alerts._CHECK_EVERY = 0.05
server_alerts._DISK_SETTLED = 0.3
server_alerts._FIRST_RETRY = 0.1
def statvfs(path):
    free = int(open({disk!r}).read())
    return SimpleNamespace(f_blocks=1000, f_bfree=free, f_bavail=free, f_frsize=4096,
                           f_files=0, f_favail=0)
os.statvfs = statvfs
"""


@pytest.fixture
def hook() -> Iterator[Hook]:
    with serving() as hook:
        yield hook


def subjects(place: Path) -> list[str]:
    texts = [path.read_text() for path in (place / "Alerts" / "new").glob("*")]
    return sorted(re.search("Subject: restante on localhost: (.*)", each)[1] for each in texts)  # type: ignore[index]


def wait_until(condition: Callable[[], bool], found: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, found()
        time.sleep(0.02)


def start(
    site: Site, hook: Hook, *, quiet: str = "1s", workers: int = 2, by_reload: bool = False
) -> None:
    """Start a server with alerts, or configure them by a reload."""
    place = site.place
    (place / "disk").write_text("900")
    (place / "sitecustomize.py").write_text(SITECUSTOMIZE.format(disk=f"{place}/disk"))
    site.write(limits="deletions_by_new = 1", workers=workers)
    search = f"{place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    if by_reload:
        site.start(PYTHONPATH=search)
    path = place / "restante.toml"
    path.write_text(
        f'{path.read_text()}\n[alert]\nto = "maildir:{place}/Alerts"\nquiet = "{quiet}"\n'
        f'webhook = "{hook.url}"\n'
    )
    path.chmod(0o600)
    if by_reload:
        site.process.send_signal(signal.SIGHUP)
        for _ in range(workers):
            site.wait_for("reloaded")
    else:
        site.start(PYTHONPATH=search)


def shorten_quiet(site: Site) -> None:
    """Let a series of errors be over after a second."""
    path = site.place / "restante.toml"
    path.write_text(path.read_text().replace('quiet = "1h"', 'quiet = "1s"'))


def sent(hook: Hook, kind: str) -> list[str]:
    return [row["state"] for _, _, row in hook.received if row["kind"] == kind]


def deliver(site: Site, user: str, times: int = 1) -> list[int]:
    codes = []
    with smtplib.LMTP(f"{site.place}/lmtp.sock") as client:
        for _ in range(times):
            try:
                client.sendmail("x@example.org", [user], "Subject: x\r\n\r\nx\r\n")
                codes.append(250)
            except smtplib.SMTPRecipientsRefused as error:
                codes.append(error.recipients[user][0])
            except smtplib.SMTPDataError as error:
                codes.append(error.smtp_code)
    return codes


def test_ended_workers_cause_one_alert(site: Site, hook: Hook) -> None:
    """Among them the worker that sends the alerts."""
    start(site, hook, quiet="1h")
    assert subjects(site.place) == []
    for _ in range(2):
        for worker in site.workers():
            os.kill(worker, signal.SIGKILL)
            site.wait_for("worker ended")
            wait_until(lambda: len(site.workers()) == 2, site.workers)
    wait_until(lambda: sent(hook, "worker") == ["begin"], lambda: hook.received)
    shorten_quiet(site)
    site.process.send_signal(signal.SIGHUP)
    both = sorted([BEGINNINGS["worker"], ENDS["worker"]])
    wait_until(lambda: subjects(site.place) == both, lambda: subjects(site.place))
    wait_until(lambda: sent(hook, "worker") == ["begin", "over"], lambda: hook.received)
    assert hook.received[-1][2]["count"] == 4
    assert site.stop() == 0
    assert subjects(site.place) == both, "an end that was requested is no fault"


def test_errors_of_the_storage_in_all_workers_cause_one_alert(site: Site, hook: Hook) -> None:
    start(site, hook, quiet="1h")
    assert deliver(site, "ann") == [250]
    box = site.place / "mail" / "ann"
    (box / "new").rename(box / "hidden")
    (box / "new").write_text("not a directory")
    for worker in site.workers():
        assert set(site.alone(worker, lambda: deliver(site, "ann", 20))) == {451}
    wait_until(lambda: sent(hook, "store") == ["begin"], lambda: hook.received)
    site.stop()
    shorten_quiet(site)
    (box / "new").unlink()
    (box / "hidden").rename(box / "new")
    while not site.lines.empty():
        site.lines.get()
    site.start(PYTHONPATH=f"{site.place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    wait_until(lambda: sent(hook, "store") == ["begin", "over"], lambda: hook.received)
    assert 40 <= hook.received[-1][2]["count"] < 45  # the upkeep may have failed, too
    both = sorted([BEGINNINGS["store"], ENDS["store"]])
    wait_until(lambda: subjects(site.place) == both, lambda: subjects(site.place))


@pytest.mark.parametrize(("workers", "by_reload"), [(1, True), (2, True), (2, False)])
def test_stopped_mass_deletion(workers: int, by_reload: bool, site: Site, hook: Hook) -> None:
    start(site, hook, quiet="1h", workers=workers, by_reload=by_reload)
    deliver(site, "ann", 5)

    def delete(number: int) -> bytes:
        with closing(site.client().log_in("ann")) as client:
            for each in range(1, number + 1):
                client.dele(each)
            client.sock.sendall(b"QUIT\r\n")
            return client.sock.recv(1000)

    assert delete(1).startswith(b"+OK")
    assert sent(hook, "deletions") == []
    for _ in range(3):
        assert b"too new" in delete(4)
    wait_until(lambda: sent(hook, "deletions") == ["begin"], lambda: hook.received)
    (row,) = [row for _, _, row in hook.received]
    assert "deletion braked: user=ann ip=127.0.0.1" in row["event"]
    one = [BEGINNINGS["deletions"]]
    wait_until(lambda: subjects(site.place) == one, lambda: subjects(site.place))


def test_disk_and_certificate_and_a_webhook_that_failed(site: Site, hook: Hook) -> None:
    hook.status = 503
    (site.place / "odd").mkdir()
    start(site, hook)
    (site.place / "disk").write_text("49")
    full, enough = "the disk is nearly full", "the disk has enough free space again"
    wait_until(lambda: full in subjects(site.place), lambda: subjects(site.place))
    certificate, key = certificates.make(
        site.place / "odd", [certificates.dns_name("localhost")]
    )  # for an hour
    (site.place / "cert.pem").write_bytes(certificate.read_bytes())
    (site.place / "key.pem").write_bytes(key.read_bytes())
    site.process.send_signal(signal.SIGHUP)
    soon = "the certificate expires soon"
    wait_until(lambda: subjects(site.place) == [soon, full], lambda: subjects(site.place))
    (site.place / "disk").write_text("900")
    site.use_certificate("second")
    site.process.send_signal(signal.SIGHUP)
    renewed = "the certificate was renewed"
    expected = sorted([soon, full, enough, renewed])
    wait_until(lambda: subjects(site.place) == expected, lambda: subjects(site.place))
    site.wait_for("alert failed: kind=disk state=begin channel=webhook")
    hook.received.clear()
    hook.status = 200
    wait_until(lambda: len(hook.received) >= 4, lambda: hook.received)
    assert sorted((row["kind"], row["state"]) for _, _, row in hook.received[-4:]) == [
        ("certificate", "begin"),
        ("certificate", "over"),
        ("disk", "begin"),
        ("disk", "over"),
    ]
