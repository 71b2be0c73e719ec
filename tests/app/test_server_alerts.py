"""Alerts about the server: one for each episode and channel, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
import http.server
import io
import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from restante import config, log, tls
from restante.app import episodes, server_alerts
from restante.app.episodes import Episode, Episodes
from restante.app.incidents import Incidents
from restante.app.server_alerts import ServerAlerts
from restante.config import Configuration, Log

from ..cli.conftest import Restante

DAY = 86_400.0
REAL_TIME = time.time
LOGGER = logging.getLogger("restante.test")
EVENTS = {
    "deletions": "deletion braked",
    "store": "update failed",
    "worker": "worker ended",
}


@dataclass
class Site:
    """A server of which only the alerts run."""

    home: Path
    monkeypatch: pytest.MonkeyPatch
    incidents: Incidents = field(default_factory=lambda: Incidents(2))
    now: float = 1_790_000_000.0
    certificate_end: float = 1_790_000_000.0 + 90 * DAY
    alerts: ServerAlerts = field(init=False)
    stderr: io.StringIO = field(default_factory=io.StringIO)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def configure(self, text: str) -> Configuration:
        folder = self.home / "config" / "restante"
        folder.mkdir(exist_ok=True)
        (folder / "restante.toml").touch(0o600)
        quiet = "" if "quiet" in text else 'quiet = "1h"\n'
        (folder / "restante.toml").write_text(
            f'[server]\nhostname = "mx.test"\n[alert]\n{quiet}{text}\n'
        )
        self.config = config.load()
        self.config.state.mkdir(parents=True, exist_ok=True)
        return self.config

    def start(self) -> None:
        """Begin as after a start of the server."""
        self.alerts = ServerAlerts(
            self.incidents, lambda: self.config, lambda: self.certificate_end
        )

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Do rounds, although a call hangs."""

        async def rounds() -> None:
            async with asyncio.timeout(10):
                while not condition():
                    await self.alerts.run()
                    await asyncio.sleep(0.01)

        self.loop.run_until_complete(rounds())

    def stop(self) -> None:
        self.loop.run_until_complete(self.alerts.close())

    def use_log(self, level: str = "info") -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", self.stderr)
            log.set_up(Log(level=level, format="journal"))

    def written(self) -> str:
        """Return what was logged since the last call."""
        text = self.stderr.getvalue()
        self.stderr.seek(0)
        self.stderr.truncate()
        return text

    def happen(self, kind: str, times: int = 1, **fields: object) -> None:
        for _ in range(times):
            log.write(LOGGER, logging.ERROR, EVENTS[kind], fields)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.run()

    def run(self, *, retry: bool = True) -> None:
        """Do rounds until nothing changes; a check is due, and retries are if ``retry``."""

        async def rounds() -> None:
            for _ in range(20):
                await self.alerts.run()
                calls = list(self.alerts._calls.values())
                if not calls:
                    return
                await asyncio.wait([call.future for call in calls], timeout=20)

        self.alerts._checked_at = float("-inf")
        for wait in self.alerts._waits.values() if retry else ():
            wait.until = 0.0
        self.loop.run_until_complete(rounds())

    def mail(self, folder: str = "Mail") -> list[EmailMessage]:
        texts = [path.read_bytes() for path in (self.home / folder / "new").glob("*")]
        return [message_from_bytes(each, _class=EmailMessage, policy=default) for each in texts]

    def subjects(self, folder: str = "Mail") -> list[str]:
        prefix = "restante on mx.test: "
        return sorted(each["Subject"].removeprefix(prefix) for each in self.mail(folder))


@pytest.fixture
def site(home: Path, loggers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(home, monkeypatch)
    monkeypatch.setattr(time, "time", lambda: site.now)
    monkeypatch.setattr(os, "statvfs", lambda _: disk())
    site.configure(f'to = "maildir:{home}/Mail"')
    site.use_log()
    with log.watched(site.incidents.watch):
        site.start()
        yield site
    site.stop()
    site.loop.close()


def disk(free: int = 500, inodes: int = 500, *, total: int = 1000, files: int = 1000) -> Any:
    """The numbers of a file system, of which root may use another 100 blocks."""
    return SimpleNamespace(
        f_blocks=total + 100,
        f_bfree=free + 100,
        f_bavail=free,
        f_frsize=4096,
        f_files=files,
        f_favail=inodes,
    )


# Series of events.

BEGINNINGS = {
    "deletions": "a mass deletion was stopped",
    "store": "the mail storage has errors",
    "worker": "a worker process ended unexpectedly",
}
ENDS = {
    "deletions": "no more mass deletions were stopped",
    "store": "no more errors of the mail storage",
    "worker": "no more worker processes ended",
}


@pytest.mark.parametrize("kind", EVENTS)
@pytest.mark.parametrize("times", [0, 1, 2, 5000])
def test_a_series_causes_one_alert_and_another_when_it_is_over(
    kind: str, times: int, site: Site
) -> None:
    site.run()
    site.happen(kind, times, user="ann")
    site.run()
    assert site.subjects() == [BEGINNINGS[kind]] * bool(times)
    site.happen(kind, times)
    site.pass_time(3599)
    assert site.subjects() == [BEGINNINGS[kind]] * bool(times)
    site.pass_time(3600)
    assert site.subjects() == sorted([BEGINNINGS[kind], ENDS[kind]] * bool(times))
    site.pass_time(3600)
    assert len(site.mail()) == 2 * bool(times)
    if times:
        begin, over = sorted(site.mail(), key=lambda each: ENDS[kind] in each["Subject"])
        assert f"{EVENTS[kind]}: user=ann" in begin.get_content()
        assert ("of 5000 events so far" in begin.get_content()) == (times == 5000)
        assert f"{2 * times} events" in over.get_content()
        assert "restante log" in begin.get_content()
        for each in (begin, over):
            assert all(len(line) <= 78 for line in each.get_content().splitlines())
            assert each["Auto-Submitted"] == "auto-generated"
    site.happen(kind)
    site.run()
    assert site.subjects().count(BEGINNINGS[kind]) == bool(times) + 1


def test_an_error_that_occurs_hourly_is_one_series(site: Site) -> None:
    """The upkeep reports a maildrop that it cannot read, or a wrong clock, in each round."""
    default = config.Configuration().alert.quiet
    site.configure(f'to = "maildir:{site.home}/Mail"\nquiet = "{default:.0f}s"')
    for _ in range(24):
        for event, reason in (("purge withheld", ""), ("purge failed", "mail storage: failed")):
            log.write(LOGGER, logging.WARNING, event, {"reason": reason})
        site.run()
        site.pass_time(3660)
    assert site.subjects() == [BEGINNINGS["deletions"], BEGINNINGS["store"]]


def test_a_restart_repeats_and_loses_no_alert(site: Site) -> None:
    site.happen("store")
    site.run()
    site.happen("worker")
    site.stop()  # before the next round
    for _ in range(3):
        site.incidents = Incidents(2)
        site.start()
        site.run()
        assert site.subjects() == sorted([BEGINNINGS["store"], BEGINNINGS["worker"]])
    site.start()
    site.pass_time(3600)
    assert site.subjects() == sorted(
        [BEGINNINGS["store"], BEGINNINGS["worker"], ENDS["store"], ENDS["worker"]]
    )
    assert Episodes.load((site.config.state / "alerts.json").read_bytes()).due("x") is None


def test_a_new_error_before_the_end_is_reported_continues_the_episode(site: Site) -> None:
    site.happen("store")
    site.run()
    known = site.alerts._episodes
    assert known is not None
    known.end("store", site.now + 3600)
    over = known.due("mail")
    assert over is not None
    site.now += 3601
    site.happen("store")
    site.run()
    assert known.due("mail") is None
    known.record(over, "mail", ["mail"])  # the mail was on its way
    site.run()
    assert site.subjects() == [BEGINNINGS["store"]] * 2, "the episode lasts, and the reader knows"


@pytest.mark.parametrize("level", ["error", "warning", "debug"])
def test_events_below_the_level_of_the_log_cause_alerts_too(level: str, site: Site) -> None:
    site.use_log(level)
    log.write(LOGGER, logging.WARNING, "read failed", {"user": "ann"})
    LOGGER.warning("purge withheld", extra={"fields": {"messages": 300}})
    site.run()
    assert site.subjects() == [BEGINNINGS["deletions"], BEGINNINGS["store"]]
    written = site.written()
    assert ("read failed" in written) == (level != "error")
    assert ("purge withheld" in written) == (level != "error")


@pytest.mark.parametrize(
    ("event", "reason", "counts"),
    [
        ("delivery refused", "mail storage: Input/output error", True),
        ("login impossible", "mail storage: not found; is it mounted?", True),
        ("purge failed", "mail storage: Read-only file system", True),
        ("update failed", "mail storage: Input/output error", True),
        ("delivery refused", "maildrop is full: its quota is 1 octets", False),
        ("login impossible", "maildrop-in-use", False),
        ("update failed", "1 deleted message not removed", False),
        ("login refused", "mail storage: Input/output error", False),
    ],
)
def test_other_events_count_if_the_storage_is_the_reason(
    event: str, reason: str, counts: bool, site: Site
) -> None:
    log.write(LOGGER, logging.WARNING, event, {"session": "1f", "reason": reason})
    site.run()
    assert site.subjects() == [BEGINNINGS["store"]] * counts


def test_untrusted_text_is_escaped(site: Site) -> None:
    evil = "\x1b[2J\r\n\r\nSubject: \u202e" + "x" * 9000
    site.happen("deletions", user=evil)
    site.run()
    (mail,) = site.mail()
    assert mail["Subject"] == f"restante on mx.test: {BEGINNINGS['deletions']}"
    text = mail.get_content()
    assert all(line.isprintable() and len(line) <= 78 for line in text.splitlines())
    assert len(text) < 2000


def add_many(incidents: Incidents) -> None:
    for _ in range(2000):
        incidents.add("store", "x")


def test_processes_and_threads_count_every_event_once() -> None:
    incidents = Incidents(3)
    children = []
    for worker in range(3):
        if not (child := os.fork()):
            incidents.serve_as(worker)
            sys.setswitchinterval(1e-6)
            threads = [threading.Thread(target=add_many, args=[incidents]) for _ in range(2)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
            os._exit(0)
        children.append(child)
    incidents.add("worker", "worker ended: worker=1")
    counted = 0
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            assert status == 0
            children.remove(child)
        if (batch := incidents.take("store")) is not None:
            counted += batch.events
    counted += batch.events if (batch := incidents.take("store")) else 0
    assert counted == 12_000
    ended = incidents.take("worker")
    assert ended is not None
    assert ended.line == "worker ended: worker=1"


# Disk and certificate.


@pytest.mark.parametrize("resource", ["free", "inodes"])
def test_a_nearly_full_disk(resource: str, site: Site) -> None:
    full, enough = "the disk is nearly full", "the disk has enough free space again"

    def measure(number: int, seconds: float) -> list[str]:
        site.monkeypatch.setattr(os, "statvfs", lambda _: disk(**{resource: number}))
        site.pass_time(seconds)
        return site.subjects()

    assert measure(50, 60) == []  # 5 %
    assert measure(49, 60) == [full]
    assert measure(0, 60) == [full]
    assert measure(50, 60) == [full]  # not over until it has lasted
    assert measure(49, 300) == [full]
    assert measure(60, 599) == [full]
    assert measure(60, 1) == [enough, full]
    assert measure(49, 60) == [enough, full, full]
    text = next(each for each in site.mail() if full in each["Subject"]).get_content()
    assert ("49 of 1000 inodes" if resource == "inodes" else "201 kB of 4.1 MB") in (
        " ".join(text.split())
    )
    assert "df -h" in text


def test_a_file_system_without_inodes_or_blocks_is_not_full(site: Site) -> None:
    site.monkeypatch.setattr(os, "statvfs", lambda _: disk(inodes=0, files=0))
    site.run()
    site.monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**dict.fromkeys(
        ("f_blocks", "f_bfree", "f_bavail", "f_frsize", "f_files", "f_favail"), 0
    )))  # fmt: skip
    site.run()
    assert site.subjects() == []


def test_a_disk_that_fails_or_hangs_is_a_storage_error(site: Site) -> None:
    def fail(_: object) -> None:
        raise OSError(5, "Input/output error", "/var/mail")

    site.monkeypatch.setattr(os, "statvfs", fail)
    site.run()
    site.run()
    assert site.subjects() == [BEGINNINGS["store"]]
    assert "/var/mail: Input/output error" in site.mail()[0].get_content()
    assert site.alerts._episodes is not None
    assert not site.alerts._episodes.lasts("disk")


def test_a_hanging_disk_does_not_stop_other_alerts(site: Site) -> None:
    released = threading.Event()
    site.monkeypatch.setattr(os, "statvfs", lambda _: released.wait(20) and disk())
    site.monkeypatch.setattr(server_alerts, "_NO_ANSWER", 0.0)
    site.happen("worker")
    site.run_until(lambda: len(site.subjects()) == 2)
    assert site.subjects() == sorted([BEGINNINGS["store"], BEGINNINGS["worker"]])
    released.set()
    site.run()


def test_a_certificate_that_ends(site: Site) -> None:
    soon, ended = "the certificate expires soon", "the certificate has expired"
    renewed, valid = "the certificate was renewed", "the certificate is valid again"

    def expire(days: float) -> list[str]:
        site.certificate_end = site.now + 60 + days * DAY
        site.pass_time(60)
        return site.subjects()

    assert expire(90) == []
    assert expire(7.01) == []
    assert expire(6.99) == [soon]
    assert expire(1) == [soon]
    assert expire(7.01) == [soon, renewed]
    assert expire(3) == [soon, soon, renewed]
    assert expire(0) == sorted([soon, soon, renewed, ended])
    assert expire(-9) == sorted([soon, soon, renewed, ended])
    assert expire(90) == sorted([soon, soon, renewed, ended, valid])
    texts = [each.get_content() for each in site.mail()]
    assert sum("restante reload" in text for text in texts) == 3


# Mail.


def test_alerts_to_a_full_maildrop_are_delivered_when_there_is_space(
    site: Site, restante: Restante, ann: str
) -> None:
    site.configure('to = "maildrop:ann"')
    assert restante("user", "quota", "ann", "1").code == 0
    site.use_log()
    site.happen("worker")
    for _ in range(3):
        site.run()
    written = site.written()
    assert written.count("alert failed: kind=worker state=begin channel=mail reason=") == 3
    assert "sent" not in written
    assert restante("user", "quota", "ann", "default").code == 0
    site.use_log()
    for _ in range(3):
        site.run()
    assert site.written().count("alert sent: kind=worker state=begin channel=mail") == 1
    (path,) = (site.config.state / "mail" / "ann" / "new").glob("*")
    assert BEGINNINGS["worker"] in path.read_text()


def test_an_alert_that_cannot_be_stored_causes_no_alert(site: Site, home: Path) -> None:
    def write(*_: object) -> None:
        log.write(LOGGER, logging.ERROR, "message not kept", {"reason": "No space left on device"})
        raise OSError(28, "No space left on device")

    site.monkeypatch.setattr(server_alerts, "_SENDERS", {"mail": write})
    site.monkeypatch.setattr(os, "statvfs", lambda _: disk(free=0))
    for _ in range(5):
        site.run()
    assert site.written().count("alert failed: kind=disk") == 5
    assert site.alerts._episodes is not None
    assert not site.alerts._episodes.lasts("store")


def test_failures_are_retried_less_and_less_often(site: Site) -> None:
    site.configure('to = "command:false"')
    site.happen("store")
    delays = []
    for _ in range(9):
        site.run()
        delays.append(site.alerts._waits["mail"].delay)
    assert delays == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    site.configure(f'to = "maildir:{site.home}/Mail"')  # a reload: tried immediately
    site.run(retry=False)
    assert site.subjects() == [BEGINNINGS["store"]]


def test_state_that_cannot_be_saved_is_reported_once(site: Site) -> None:
    (site.config.state / "alerts.json").mkdir()
    site.happen("store")
    for _ in range(3):
        site.run()
    assert site.subjects() == [BEGINNINGS["store"]]
    assert site.written().count("alerts not saved") == 1


def test_partly_written_state_is_not_saved(site: Site) -> None:
    write = os.pwrite
    site.monkeypatch.setattr(os, "pwrite", lambda file, octets, at: write(file, octets[:99], at))
    site.happen("store")
    for _ in range(3):
        site.run()
    assert site.written().count("alerts not saved: reason=") == 1
    site.monkeypatch.setattr(os, "pwrite", write)
    site.run()
    site.start()
    site.run()
    assert site.subjects() == [BEGINNINGS["store"]]


def test_state_is_saved_on_a_full_disk(site: Site) -> None:
    """The file has its size from the start, and is overwritten in place."""
    site.run()
    path = site.config.state / "alerts.json"
    before = path.stat()
    assert before.st_size == episodes._SIZE
    assert before.st_blocks * 512 >= episodes._SIZE
    assert before.st_mode & 0o777 == 0o600
    line = "\\" * 400
    kinds = (*episodes.CONDITIONS, *EVENTS)
    longest = [
        Episode(kind, 1.1e9, 1.1e9, 10**15, line, 1.1e9, {"mail": 2, "webhook": 2})
        for kind in kinds
    ]
    episodes.write(path, Episodes(longest).dump())
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    read = episodes.read(path)
    assert read.dump() == Episodes(longest).dump()


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\0" * episodes._SIZE,
        b"[]",
        b'{"episodes": 1}',
        b'{"episodes": [1]}',
        b'{"episodes": [{"kind": "store"}]}',
        b"[" * episodes._SIZE,
        *(
            json.dumps({"episodes": [{**row, "since": since}]}).encode()
            for row in [{"kind": "store", "last": 1, "count": 1, "line": "", "ended": None,
                         "sent": {}}]
            for since in (float("nan"), float("inf"), -1, "x", 1e300)
        ),
    ],
)  # fmt: skip
def test_damaged_state_is_ignored(octets: bytes, site: Site) -> None:
    (site.config.state / "alerts.json").write_bytes(octets)
    site.happen("worker")
    site.run()
    assert site.subjects() == [BEGINNINGS["worker"]]


def test_state_never_follows_a_link(site: Site, home: Path) -> None:
    (home / "target").write_text("precious")
    (site.config.state / "alerts.json").symlink_to(home / "target")
    site.happen("worker")
    site.run()
    assert (home / "target").read_text() == "precious"


@pytest.mark.parametrize(("age", "count"), [(3599, 1), (3600, 0)])
def test_old_events_from_before_alerts_were_configured_cause_none(
    age: float, count: int, site: Site
) -> None:
    mail = site.config
    site.configure("")
    log.write(LOGGER, logging.ERROR, "update failed", {})
    happened = next(iter(site.incidents._times[1:2]))
    site.run()
    site.config = mail
    site.now = happened + age
    site.certificate_end = site.now + 90 * DAY
    site.run()
    assert site.subjects() == [BEGINNINGS["store"]] * count


# Webhook.


@dataclass
class Hook:
    """A web server that answers as it is asked to."""

    url: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    before: Callable[[], object] = lambda: None
    received: list[Any] = field(default_factory=list)


@contextmanager
def serving(context: Any = None) -> Iterator[Hook]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            octets = self.rfile.read(int(self.headers["Content-Length"]))
            made.received.append((self.path, dict(self.headers), json.loads(octets)))
            made.before()
            self.send_response(made.status)
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(made.content)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https" if context is not None else "http"
        made = Hook(f"{scheme}://127.0.0.1:{server.server_port}/T0KEN")
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def hook() -> Iterator[Hook]:
    with serving() as hook:
        yield hook


def test_webhook_gets_json_without_secrets(site: Site, hook: Hook) -> None:
    site.configure(f'webhook = "{hook.url}"')
    site.happen("deletions", 3, user="ann\u202e")
    site.run()
    site.pass_time(3600)
    (path, headers, begin), (_, _, over) = hook.received
    assert path == "/T0KEN"
    assert headers["Content-Type"] == "application/json"
    assert begin["schema"] == "restante/alert/1"
    assert (begin["server"], begin["kind"], begin["state"]) == ("mx.test", "deletions", "begin")
    assert (begin["count"], begin["ended"]) == (3, None)
    assert begin["since"].startswith("2026-")
    assert begin["event"] == "deletion braked: user=ann\\u202e"
    assert begin["text"].startswith(f"{begin['subject']}\n\n")
    assert (over["state"], over["id"] != begin["id"]) == ("over", True)
    assert over["ended"].startswith("2026-")
    assert "T0KEN" not in json.dumps([begin, over])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 500}, "HTTP"),
        ({"status": 403, "content": b"T0KEN is wrong"}, "HTTP"),
        ({"status": 302, "headers": {"Location": "/elsewhere"}}, "HTTP"),
        ({"status": 307, "headers": {"Location": "http://127.0.0.1:1/elsewhere"}}, "HTTP"),
        ({"before": lambda: time.sleep(0.4)}, "timed"),
    ],
)
def test_webhook_that_fails_gets_the_alert_later(
    answer: dict[str, Any], reason: str, site: Site, hook: Hook
) -> None:
    site.monkeypatch.setattr(server_alerts, "_TIMEOUT", 0.1)
    site.configure(f'webhook = "{hook.url}"\nto = "maildir:{site.home}/Mail"')
    for name, value in answer.items():
        setattr(hook, name, value)
    site.happen("store")
    for _ in range(2):
        site.run()
    written = site.written()
    assert written.count("alert failed: kind=store state=begin channel=webhook reason=") == 2
    assert reason in written
    assert "T0KEN" not in written
    assert {path for path, *_ in hook.received} == {"/T0KEN"}, "a redirect was followed"
    assert site.subjects() == [BEGINNINGS["store"]], "mail does not wait for the webhook"
    hook.status, hook.headers, hook.before = 204, {}, lambda: None
    attempts = len(hook.received)
    for _ in range(3):
        site.run()
    assert len(hook.received) == attempts + 1
    assert len({row["id"] for _, _, row in hook.received}) == 1
    site.pass_time(3600)
    assert hook.received[-1][2]["state"] == "over"
    assert len(site.mail()) == 2


def test_alert_that_is_being_sent_when_the_server_stops_is_sent_once(
    site: Site, hook: Hook
) -> None:
    hook.before = lambda: time.sleep(0.1)
    site.configure(f'webhook = "{hook.url}"')
    site.happen("store")
    site.run_until(lambda: "webhook" in site.alerts._calls)
    site.stop()
    site.start()
    site.run()
    assert len(hook.received) == 1
    assert "alert sent: kind=store state=begin channel=webhook" in site.written()


def test_server_stops_although_a_webhook_hangs(site: Site, hook: Hook) -> None:
    released = threading.Event()
    hook.before = lambda: released.wait(20)
    site.monkeypatch.setattr(server_alerts, "_STOP", 0.05)
    site.configure(f'webhook = "{hook.url}"')
    site.happen("store")
    site.run_until(lambda: bool(hook.received))
    site.stop()
    released.set()
    site.start()
    site.run()
    assert [row["state"] for _, _, row in hook.received] == ["begin", "begin"]
    assert len({row["id"] for _, _, row in hook.received}) == 1


def test_huge_answer_of_a_webhook_is_not_read(site: Site, hook: Hook) -> None:
    hook.content = random.randbytes(1000) * 20_000
    site.configure(f'webhook = "{hook.url}"')
    site.happen("store")
    site.run()
    site.run()
    assert len(hook.received) == 1


def test_hanging_webhook_delays_nothing_else(site: Site, hook: Hook) -> None:
    released = threading.Event()
    hook.before = lambda: released.wait(20)
    site.monkeypatch.setattr(server_alerts, "_NO_ANSWER", 0.05)
    site.configure(f'webhook = "{hook.url}"\nto = "maildir:{site.home}/Mail"')
    site.happen("store")
    site.happen("worker")
    site.run_until(lambda: len(site.subjects()) == 2)
    site.run_until(lambda: "channel=webhook reason=no" in site.stderr.getvalue())
    for _ in range(5):
        site.loop.run_until_complete(site.alerts.run())
    assert len(hook.received) == 1, "a channel sends one alert at a time"
    assert site.written().count("channel=webhook reason=no") == 1
    released.set()
    site.run()
    assert len(hook.received) == 2


def test_webhook_over_tls_is_verified(site: Site, home: Path) -> None:
    site.monkeypatch.setattr(time, "time", REAL_TIME)  # of the certificate
    site.monkeypatch.setenv("NO_PROXY", "*")
    certificate, key = tls.make_self_signed(home / "tls", ["127.0.0.1"])
    (home / "url").touch(0o600)
    with serving(tls.server_context(certificate, key)) as hook:
        (home / "url").write_text(f"{hook.url}\n")
        reference = f'webhook = {{ file = "{home}/url" }}\n'
        site.configure(reference)
        site.certificate_end = time.time() + 90 * DAY
        site.happen("store")
        site.run()
        assert not hook.received
        assert "certificate" in site.written()
        site.configure(f'{reference}ca_file = "{certificate}"')
        site.run()
        assert len(hook.received) == 1


@pytest.mark.parametrize(
    "url",
    [
        *("", "http://example.org/x", "ftp://x", "https://u:p@h/", "https://h/a b"),
        *("https://h:p/", "https://h:99999/", "https://a..b/", f"https://{'a' * 64}.org/"),
    ],
)
def test_secret_that_is_no_url_is_not_logged(url: str, site: Site, home: Path) -> None:
    (home / "url").write_text(f"{url}\n")
    site.configure(f'webhook = {{ file = "{home}/url" }}')
    site.happen("store")
    site.run()
    written = site.written()
    assert "alert failed" in written
    assert "webhook:" in written
    assert not url or url not in written


# restante check


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('to = "imaps://ann@example.org/In"', "alert.to: imaps: requires a password"),
        ('to = "gmail:In"', "alert.to: gmail: requires a password"),
        ('to = "mail"', ""),
        ('to = "nonsense:x"', "alert.to: a destination is"),
        ('to = "maildrop:nobody"', "alert.to: maildrop:nobody: "),
        ('to = "maildrop:postmaster"', ""),
        ('to = "smtp:127.0.0.1:25"', ""),
        ('to = "smtp:127.0.0.1"', "alert.to: lmtp: and smtp: require"),
        ('webhook = "http://example.org/hook"', "alert.webhook: must begin with https://"),
        ('webhook = "https://example.org:xyz/hook"', "alert.webhook: must begin with https://"),
        ('webhook = "https://example..org/hook"', "alert.webhook: must begin with https://"),
        ('webhook = "https://example.org/hook"', ""),
        ('webhook = { file = "/missing" }', ""),
        ("min_free = 0", "alert.min_free: must be"),
        ("min_free = 51", "alert.min_free: must be at most 50"),
        ('quiet = "0s"', "alert.quiet: must be at least 1 s"),
        ("after = 3", "alert.after: "),
    ],
)
def test_check_finds_mistakes(
    text: str, words: str, home: Path, restante: Restante, ann: str
) -> None:
    path = home / "config" / "restante" / "restante.toml"
    path.parent.mkdir(exist_ok=True)
    path.touch(0o600)
    path.write_text(f"[alert]\n{text}\n")
    done = restante("check")
    assert (done.code == 0) == (not words), done.err
    assert words in done.err
    assert "xyz" not in done.err


def test_readable_webhook_is_refused(home: Path, restante: Restante) -> None:
    path = home / "config" / "restante" / "restante.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text('[alert]\nwebhook = "https://example.org/hook"\n')
    path.chmod(0o644)
    done = restante("check")
    assert done.code == 78
    assert "alert.webhook: other users can read this file" in done.err
