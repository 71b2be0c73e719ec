"""Polling at logins: collect mail from a user's account on another server when the user logs in.

This allows a device that supports only USER and PASS to read a mailbox that requires OAuth 2.  The
account's ``poll_on_login`` setting enables it.  If a poll fails, the failure is logged as a
warning, and the user gets the mail that has already been collected.

Security: only authenticated users can start a poll, and only of their own accounts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future
from contextlib import closing
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

from ..config import Configuration
from ..errors import ConfigurationError, RestanteError
from ..passdb import Directory
from ..series import cell, observe, zeros
from . import runs
from .job import Job, all_jobs, open_ledger

if TYPE_CHECKING:
    from ..collect.collector import Outcome

_RETRY_EVERY = 60.0  # seconds after which a failed look-up of a user is repeated

_STORED, _DEFERRED = (
    cell("deliveries_total", "gateway", result) for result in ("stored", "deferred")
)
_RECEIVED_BYTES = cell("received_bytes_total", "gateway")
_SECONDS = cell("delivery_seconds", "gateway")

_log = logging.getLogger("restante.gateway")


class _Poll(NamedTuple):
    """A poll that has ended."""

    outcome: Outcome
    has_failed: bool
    seconds: float


def validate(config: Configuration) -> None:
    """Check the destinations of the accounts that are polled at logins.

    Raises:
        ConfigurationError: an account's mail can never be stored.
    """
    jobs = [job for job in all_jobs(config) if _polling_user(job) is not None]
    if mistakes := [text for job in jobs for text in job.mistakes(strict=False)]:
        raise ConfigurationError("\n".join(mistakes))


def _polling_user(job: Job) -> str | None:
    """Return the user whose logins poll the account, or None."""
    return job.local_user if job.options.poll_on_login else None


class Gateway:
    """Polls accounts in its own threads, because syncing files would block the server."""

    def __init__(
        self, config: Configuration, directory: Directory, counts: list[float] | None = None
    ) -> None:
        """Prepare to poll.

        Args:
            directory: maps the users of accounts to maildrops.
            counts: the values of the metrics (``series``).
        """
        self._config = config
        self._counts = zeros() if counts is None else counts
        self._directory = directory
        # The users of accounts whose maildrops have not been looked up yet, by account name.
        self._unresolved = {
            job.name: user for job in all_jobs(config) if (user := _polling_user(job)) is not None
        }
        self._retry_at = 0.0  # on the monotonic clock
        self._accounts: dict[str, list[str]] = {}  # names of accounts by maildrop
        self._polls: dict[str, asyncio.Future[_Poll | None]] = {}  # by account name

    def __bool__(self) -> bool:
        """Return whether any account is polled at logins."""
        return bool(self._accounts or self._unresolved)

    async def poll(self, maildrop: str) -> None:
        """Poll all accounts of a maildrop at the same time, and wait for the polls.

        The wait is limited to the longest ``poll_on_login`` of these accounts.  Polls that take
        longer continue in the background.
        """
        await self._resolve()
        names = self._accounts.get(maildrop, ())
        if not names:
            return
        polls = [self._start_poll(name) for name in names]
        timeout = max(self._config.account[name].poll_on_login for name in names)
        _, unfinished = await asyncio.wait(polls, timeout=timeout)
        if unfinished:
            fields = {"user": maildrop, "seconds": f"{timeout:g}"}
            _log.warning("login did not wait", extra={"fields": fields})

    async def _resolve(self) -> None:
        """Look up the maildrops that have not been looked up successfully yet."""
        if not self._unresolved or time.monotonic() < self._retry_at:
            return
        self._retry_at = time.monotonic() + _RETRY_EVERY
        for name, user in list(self._unresolved.items()):
            try:
                maildrop = await self._directory.maildrop_of(user)
            except RestanteError as error:
                _warn("upstream not polled", name, error)
            else:
                if self._unresolved.pop(name, None):
                    self._accounts.setdefault(maildrop, []).append(name)

    def _start_poll(self, name: str) -> asyncio.Future[_Poll | None]:
        """Start a poll of an account in a thread, or return the poll that is running."""
        poll = self._polls.get(name)
        if poll is None or poll.done():
            done: Future[_Poll | None] = Future()
            # A daemon thread, because the server must not wait for polls when it stops.
            # Interrupting a poll is as safe as a crash.
            Thread(target=self._poll, args=(name, done), name=f"poll {name}", daemon=True).start()
            poll = self._polls[name] = asyncio.wrap_future(done)
            poll.add_done_callback(self._count)
        return poll

    def _count(self, ended: asyncio.Future[_Poll | None]) -> None:
        """Count the messages that a poll has stored.  Called by the event loop."""
        poll = None if ended.cancelled() else ended.result()
        if poll is None:
            return
        self._counts[_STORED] += poll.outcome.stored
        self._counts[_RECEIVED_BYTES] += poll.outcome.octets
        self._counts[_DEFERRED] += poll.has_failed
        observe(self._counts, _SECONDS, poll.seconds)

    def _poll(self, name: str, done: Future[_Poll | None]) -> None:
        from ..collect.collector import Outcome

        outcome, began, has_run, has_failed = Outcome(), time.monotonic(), False, True
        try:
            has_run = asyncio.run(self._session(Job.of(self._config, name), outcome))
            has_failed = False
        except (RestanteError, OSError) as error:
            _warn("upstream not polled", name, error)
        except Exception:
            _log.exception("upstream not polled", extra={"fields": {"account": name}})
        else:
            if has_run:
                fields = {"account": name, "stored": outcome.stored, "deleted": outcome.deleted}
                _log.info("upstream polled", extra={"fields": fields})
        finally:
            seconds = time.monotonic() - began
            done.set_result(_Poll(outcome, has_failed, seconds) if has_run or has_failed else None)

    async def _session(self, job: Job, outcome: Outcome) -> bool:
        """Run one session, and add its results to ``outcome``.

        Returns False if the last session was too recent, or if another process is running one.
        """
        from ..collect.collector import LoginTooSoon
        from ..collect.ledger_file import AccountBusy

        with closing(open_ledger(self._config)) as ledger:
            # A time stamp in the future is ignored, because the clock has been set back since.
            if 0 <= time.time() - ledger.of(job.name).last_begin() < job.options.every:
                return False
            try:
                session = runs.session(job, ledger, outcome)
                await runs.run_and_report(
                    job,
                    ledger,
                    session,
                    outcome,
                    lambda text: _warn("report failed", job.name, text),
                )
                return True
            except (AccountBusy, LoginTooSoon):
                return False


def _warn(event: str, account: str, reason: object) -> None:
    fields = {"account": account, "reason": str(reason)}
    _log.warning(event, extra={"fields": fields})
