"""Send alerts about the server by mail or to a webhook (docs/decisions/0247-server-alerts.md).

One worker of a server sends them.  It takes the events that all processes have counted, and checks
the disk and the certificate.  Nothing here runs in the path of a session.

Security: alerts contain no secrets, and the URL of the webhook is not logged.
Limits: one alert for each episode and channel and another when it is over; a channel sends one
alert at a time, and waits longer after each failure; see ``https`` for the webhook.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Configuration
from ..errors import ConfigurationError, RestanteError, TemporaryFailure, UnsafeArgument
from ..store.paths import Template
from ..threads import Threads
from ..words import size
from . import episodes, failures
from .episodes import Episodes, Notice
from .incidents import KINDS, Incidents
from .live import CERTIFICATE_DAYS

_EVERY = 5.0  # seconds between two rounds; the delay of an alert
_CHECK_EVERY = 60.0  # seconds between two checks of disk and certificate
_SAVE_EVERY = 60.0  # seconds between two saves if only a count has changed
# Seconds for which the disk must have enough space before the episode is over, so that a disk whose
# free space oscillates around the limit causes few alerts.
_DISK_SETTLED = 600.0
_NO_ANSWER = 60.0  # seconds after which a call that hangs is reported
_STOP = 2.0  # seconds for which a server that stops waits for alerts that are being sent
_FIRST_RETRY, _LAST_RETRY = 60.0, 3600.0  # seconds; each failure doubles the wait
_TIMEOUT, _DEADLINE = 10.0, 30.0  # seconds for each read from the webhook, and for its response
_MAX_RESPONSE = 65_536  # octets of the webhook's response, which is not used
_NEEDS_PASSWORD = ("imap", "imaps", "gmail")

_log = logging.getLogger("restante.alerts")


@dataclass(slots=True)
class _Call:
    """A call in a thread."""

    future: asyncio.Future[Any]
    began: float
    notice: Notice | None = None
    is_reported: bool = False
    """Whether the log says that the call hangs."""


@dataclass(slots=True)
class _Wait:
    """The wait of a channel after failures."""

    until: float = 0.0
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class _Check:
    """The result of a check of disk and certificate."""

    disk: str
    """Describes the disk that is nearly full; empty if there is enough space."""
    certificate_end: float


class ServerAlerts:
    """Sends the alerts of one server."""

    def __init__(
        self,
        incidents: Incidents,
        config: Callable[[], Configuration],
        certificate_end: Callable[[], float],
    ) -> None:
        """
        Args:
            config: returns the configuration in use.
            certificate_end: returns when the certificate in use expires; may block.
        """
        self._incidents = incidents
        self._config = config
        self._certificate_end = certificate_end
        self._path = config().state / "alerts.json"
        self._episodes: Episodes | None = None  # None before the first round
        # The summary and the content that are in the file, and those that are being saved.
        self._saved: tuple[object, bytes] = (None, b"")
        self._saving: tuple[object, bytes] = (None, b"")
        self._saved_at = self._checked_at = float("-inf")
        self._save_failed = False
        self._threads = Threads("alerts", 4)  # to save, to check, and one for each channel
        self._calls: dict[str, _Call] = {}  # "save", "check", or the name of a channel
        self._configuration: Configuration | None = None  # in the last round
        self._waits: dict[str, _Wait] = {}

    async def run_for_ever(self) -> None:
        """Send alerts until cancelled."""
        while True:
            try:
                await self.run()
            except Exception:
                _log.exception("bug", extra={"fields": {"via": "alerts"}})
            await asyncio.sleep(_EVERY)

    async def run(self) -> None:
        """Do one round.  It does not wait for checks and channels."""
        config = self._config()
        if config is not self._configuration:  # a reload may have corrected the cause of a failure
            self._configuration = config
            self._waits.clear()
        if not (channels := _channels(config)):
            return
        if self._episodes is None:
            self._episodes = await self._threads.run(lambda: episodes.read(self._path))
        self._finish_calls(channels)
        self._check()
        self._record(self._episodes)
        self._save(self._episodes)
        for channel in channels:
            self._send_next(channel, self._episodes)

    async def close(self) -> None:
        """Save what has happened since the last round.  Called after the last round.

        Alerts that are being sent may end; otherwise they would be sent again after a restart.
        """
        if self._calls:
            await asyncio.wait([call.future for call in self._calls.values()], timeout=_STOP)
        if self._episodes is not None:
            self._finish_calls(_channels(self._config()))
            self._record(self._episodes)
            with suppress(OSError):
                episodes.write(self._path, self._episodes.dump())
        for call in self._calls.values():
            call.future.cancel()  # its result is not needed

    # Episodes.

    def _record(self, known: Episodes) -> None:
        now, quiet = time.time(), self._config().alert.quiet
        for kind in KINDS:
            batch = self._incidents.take(kind)
            # Events of a time before alerts were configured may be old, and over already.
            if batch is not None and now - batch.last < quiet:
                known.add(kind, batch.line, batch.last, count=batch.events)
            known.end(kind, now, after=quiet)

    def _check(self) -> None:
        """Start a check of disk and certificate if it is time for one."""
        now = time.monotonic()
        if "check" not in self._calls and now - self._checked_at >= _CHECK_EVERY:
            self._checked_at = now
            config = self._config()
            paths = [config.state]
            if config.store.kind == "maildir":
                paths.insert(0, Path(Template(config.store.path).base))
            least, end = config.alert.min_free, self._certificate_end
            self._start("check", lambda: _Check(_nearly_full(paths, least), end()))

    def _apply(self, check: _Check) -> None:
        known, now = self._episodes, time.time()
        assert known is not None
        if check.disk:
            known.hold("disk", check.disk, now)
        else:
            known.end("disk", now, after=_DISK_SETTLED)
        days = (check.certificate_end - now) / 86_400
        line = f"It expires at {_utc(check.certificate_end)}."
        if days <= 0:
            known.drop("certificate")  # a more serious alert replaces it
            known.hold("expired", line.replace("expires", "expired"), now)
        elif days < CERTIFICATE_DAYS:
            known.end("expired", now)
            known.hold("certificate", line, now)
        else:
            known.end("expired", now)
            known.end("certificate", now)

    def _save(self, known: Episodes) -> None:
        """Start to save the state if it has changed; if only counts have, do this less often."""
        state, now = (known.summary(), known.dump()), time.monotonic()
        is_due = state[0] != self._saved[0] or now - self._saved_at >= _SAVE_EVERY
        if "save" in self._calls or state == self._saved or not is_due:
            return
        self._saving, self._saved_at = state, now
        self._start("save", lambda: episodes.write(self._path, state[1]))

    def _finish_save(self, error: BaseException | None) -> None:
        if error is None:
            self._saved = self._saving
        elif not self._save_failed:
            reason = failures.describe(error)
            _log.warning("alerts not saved", extra={"fields": {"reason": reason}})
        self._save_failed = error is not None

    # Calls in threads.

    def _start(self, name: str, call: Callable[[], object], notice: Notice | None = None) -> None:
        def work() -> object:
            self._incidents.ignore_this_thread()
            return call()

        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._threads.start(work, future)
        self._calls[name] = _Call(future, time.monotonic(), notice)

    def _finish_calls(self, channels: list[str]) -> None:
        for name, call in list(self._calls.items()):
            if call.future.done():
                del self._calls[name]
                error = call.future.exception()
                if name == "save":
                    self._finish_save(error)
                elif call.notice is None:
                    self._finish_check(error, call)
                else:
                    self._finish_alert(name, call.notice, error, channels)
            elif not call.is_reported and time.monotonic() - call.began > _NO_ANSWER:
                call.is_reported = True
                reason = f"no answer for {_NO_ANSWER:.0f} seconds"
                if call.notice is None:
                    self._incidents.add("store", f"The file system does not answer: {reason}.")
                else:
                    _failed(name, call.notice, reason)

    def _finish_check(self, error: BaseException | None, call: _Call) -> None:
        if error is None:
            self._apply(call.future.result())
        elif isinstance(error, OSError):
            self._incidents.add("store", failures.describe(error))
        else:
            _log.error("bug", exc_info=error, extra={"fields": {"via": "alerts"}})

    def _send_next(self, channel: str, known: Episodes) -> None:
        """Start to send the next alert of a channel, unless it is busy or waits."""
        wait = self._waits.setdefault(channel, _Wait())
        if channel in self._calls or time.monotonic() < wait.until:
            return
        if (notice := known.due(channel)) is not None:
            config, send = self._config(), _SENDERS[channel]
            self._start(channel, lambda: send(config, notice), notice)

    def _finish_alert(
        self, channel: str, notice: Notice, error: BaseException | None, channels: list[str]
    ) -> None:
        assert self._episodes is not None
        wait = self._waits.setdefault(channel, _Wait())
        if error is None:
            wait.until = wait.delay = 0.0
            self._episodes.record(notice, channel, channels)
            _log.info("alert sent", extra={"fields": _fields(channel, notice)})
            return
        wait.delay = min(max(_FIRST_RETRY, 2 * wait.delay), _LAST_RETRY)
        wait.until = time.monotonic() + wait.delay
        _failed(channel, notice, failures.describe(error))


def _fields(channel: str, notice: Notice) -> dict[str, object]:
    state = "over" if notice.is_over else "begin"
    return {"kind": notice.episode.kind, "state": state, "channel": channel}


def _failed(channel: str, notice: Notice, reason: str) -> None:
    fields = {**_fields(channel, notice), "reason": reason}
    _log.warning("alert failed", extra={"fields": fields})


# Disk.


def _nearly_full(paths: list[Path], least: int) -> str:
    """Return a description of the first file system with less than ``least`` % free, or "".

    Raises:
        OSError: a file system cannot be read.
    """
    for path in paths:
        status = os.statvfs(_existing(path))
        # Like df: space that is reserved for root is neither free nor used.
        used = status.f_blocks - status.f_bfree
        free = status.f_bavail * status.f_frsize
        if status.f_bavail * 100 < least * (used + status.f_bavail):
            total = (used + status.f_bavail) * status.f_frsize
            return f"{path}: {size(free)} of {size(total)} free."
        # Some file systems, such as btrfs, have no fixed number of inodes and report 0.
        if status.f_favail * 100 < least * status.f_files:
            return f"{path}: {status.f_favail} of {status.f_files} inodes free."
    return ""


def _existing(path: Path) -> Path:
    """Return the path or its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


# Channels.


def _channels(config: Configuration) -> list[str]:
    channels = {"mail": config.alert.to, "webhook": config.alert.webhook}
    return [channel for channel, value in channels.items() if value]


def _send_mail(config: Configuration, notice: Notice) -> None:
    """Deliver an alert.  Blocking.

    Raises:
        RestanteError, OSError: it was not delivered.
    """
    from ..collect.destinations import name_of
    from . import alert_texts, notices

    host, recipient = config.server.hostname, _recipient(config)
    message = notices.mail(
        host,
        recipient,
        alert_texts.subject(host, notice),
        alert_texts.text(notice),
        name_of(f"{host} {notice.identity}"),
    )
    with closing(_open(config)) as destination:
        notices.put(destination, notice.identity, message)


def _recipient(config: Configuration) -> str:
    return config.alert.recipient or f"postmaster@{config.server.hostname}"


def _open(config: Configuration) -> Any:
    from ..collect.destinations.opening import open_destination
    from .local import open_maildrop

    _refuse_passwords(config)
    return open_destination(
        config.alert.to,
        recipient=_recipient(config),
        maildrop=lambda user: open_maildrop(config, user),
    )


def _refuse_passwords(config: Configuration) -> None:
    """Refuse destinations that require a password, for which there is no option.

    Raises:
        UnsafeArgument: the destination requires a password.
    """
    kind = config.alert.to.partition(":")[0]
    if kind in _NEEDS_PASSWORD:
        raise UnsafeArgument(f"{kind}: requires a password; use smtp: or another destination")


def _send_to_webhook(config: Configuration, notice: Notice) -> None:
    """Send an alert as JSON.  Blocking.

    Raises:
        RestanteError: the webhook did not accept it.
    """
    import json
    from urllib.parse import urlsplit

    from ..auth.http import is_safe
    from ..https import JsonClient
    from ..tls import client_context
    from . import secrets

    url = secrets.fetch(config.alert.webhook, "alert.webhook")
    if not is_safe(url) or not url.isascii() or " " in url:
        raise ConfigurationError("alert.webhook: is not an https URL")
    ca_file = Path(config.alert.ca_file) if config.alert.ca_file else None
    client = JsonClient(
        client_context(ca_file), timeout=_TIMEOUT, deadline=_DEADLINE, max_octets=_MAX_RESPONSE
    )
    body = json.dumps(_content(config.server.hostname, notice)).encode()
    status, _ = client.request(url, body, {"Content-Type": "application/json"})
    if not 200 <= status < 300:
        raise TemporaryFailure(f"{urlsplit(url).hostname}: HTTP status {status}")


def _content(host: str, notice: Notice) -> dict[str, object]:
    """Return the JSON object for the webhook.  Chat services display its member ``text``."""
    from . import alert_texts

    episode, subject = notice.episode, alert_texts.subject(host, notice)
    return {
        "schema": "restante/alert/1",
        "id": notice.identity,
        "server": host,
        "kind": episode.kind,
        "state": "over" if notice.is_over else "begin",
        "since": _utc(episode.since),
        "ended": _utc(episode.ended) if notice.is_over and episode.ended is not None else None,
        "count": episode.count,
        "event": episode.line,
        "subject": subject,
        "text": f"{subject}\n\n{alert_texts.text(notice)}",
    }


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(seconds))


_SENDERS = {"mail": _send_mail, "webhook": _send_to_webhook}


# restante check


def mistake(config: Configuration) -> str | None:
    """Return a sentence about a mistake in ``alert.to``, or None.  Nothing is delivered."""
    from ..collect.destinations.opening import check_destination
    from .local import open_maildrop

    if not config.alert.to:
        return None
    try:
        _refuse_passwords(config)
        check_destination(
            config.alert.to,
            recipient=_recipient(config),
            maildrop=lambda user: open_maildrop(config, user),
        )
    except (RestanteError, OSError) as error:
        return f"alert.to: {failures.describe(error)}"
    return None
