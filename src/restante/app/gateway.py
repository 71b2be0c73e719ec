"""``poll_on_login``: collect from an account on another server when its user logs in.

This lets a device that supports only USER and PASS read a mailbox that requires OAuth 2.  Mail that
has already been collected is served even if the poll fails; the failure is logged as a warning.

Security: only authenticated users start a poll, and only of their own accounts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future
from contextlib import closing
from threading import Thread
from typing import TYPE_CHECKING

from ..config import Configuration
from ..errors import ConfigurationError, RestanteError
from ..passdb import Directory
from . import runs
from .job import Job, all_jobs, open_ledger

if TYPE_CHECKING:
    from ..collect.collector import Outcome

_RETRY = 60.0  # seconds until a failed look-up of a user is repeated

_log = logging.getLogger("restante.gateway")


def validate(config: Configuration) -> None:
    """Check the destinations of the accounts that are polled at logins.

    Raises:
        ConfigurationError: an account's mail can never be stored.
    """
    jobs = [job for job in all_jobs(config) if _polled_by(job) is not None]
    if mistakes := [text for job in jobs for text in job.mistakes(strictly=False)]:
        raise ConfigurationError("\n".join(mistakes))


def _polled_by(job: Job) -> str | None:
    """Return the user at whose logins the account is polled, or None."""
    return job.local_user if job.options.poll_on_login else None


class Gateway:
    """Polls accounts in its own threads, because syncing files would block the server."""

    def __init__(self, config: Configuration, directory: Directory) -> None:
        """``directory`` maps the recipient of an account to a maildrop."""
        self._config = config
        self._directory = directory
        self._unresolved = {
            job.name: user for job in all_jobs(config) if (user := _polled_by(job)) is not None
        }
        self._retry_at = 0.0  # on the monotonic clock
        self._accounts: dict[str, list[str]] = {}  # by maildrop
        self._running: dict[str, asyncio.Future[None]] = {}

    def __bool__(self) -> bool:
        return bool(self._accounts or self._unresolved)

    async def poll(self, maildrop: str) -> None:
        """Poll all accounts of this maildrop at the same time.

        The login does not wait for an account that takes longer; that poll continues.
        """
        await self._resolve()
        names = self._accounts.get(maildrop, ())
        if not names:
            return
        waiting = [self._begin(name) for name in names]
        patience = max(self._config.account[name].poll_on_login for name in names)
        _, late = await asyncio.wait(waiting, timeout=patience)
        if late:
            fields = {"user": maildrop, "seconds": f"{patience:g}"}
            _log.warning("login did not wait", extra={"fields": fields})

    async def _resolve(self) -> None:
        """Look up the maildrops of accounts whose maildrop is not known yet."""
        if not self._unresolved or time.monotonic() < self._retry_at:
            return
        self._retry_at = time.monotonic() + _RETRY
        for name, recipient in list(self._unresolved.items()):
            try:
                maildrop = await self._directory.maildrop_of(recipient)
            except RestanteError as error:
                _warn("upstream not polled", name, error)
            else:
                if self._unresolved.pop(name, None):
                    self._accounts.setdefault(maildrop, []).append(name)

    def _begin(self, name: str) -> asyncio.Future[None]:
        running = self._running.get(name)
        if running is None or running.done():
            done: Future[None] = Future()
            # When the server stops, the poll is interrupted, which is as safe as a crash.
            Thread(target=self._poll, args=(name, done), name=f"poll {name}", daemon=True).start()
            running = self._running[name] = asyncio.wrap_future(done)
        return running

    def _poll(self, name: str, done: Future[None]) -> None:
        try:
            outcome = asyncio.run(self._session(Job.of(self._config, name)))
        except (RestanteError, OSError) as error:
            _warn("upstream not polled", name, error)
        except Exception:
            _log.exception("upstream not polled", extra={"fields": {"account": name}})
        else:
            if outcome is not None:
                fields = {"account": name, "stored": outcome.stored, "deleted": outcome.deleted}
                _log.info("upstream polled", extra={"fields": fields})
        finally:
            done.set_result(None)

    async def _session(self, job: Job) -> Outcome | None:
        """Run a session; returns None if the last one is too recent or another process runs one."""
        from ..collect.collector import LoginTooSoon, Outcome
        from ..collect.ledger_file import AccountBusy

        with closing(open_ledger(self._config)) as ledger:
            # A time stamp from the future is ignored: the clock was set back.
            if 0 <= time.time() - ledger.of(job.name).last_begin() < job.options.every:
                return None
            try:
                outcome = Outcome()
                session = runs.session(job, ledger, outcome)
                await runs.noted(
                    job,
                    ledger,
                    session,
                    outcome,
                    lambda text: _warn("report failed", job.name, text),
                )
                return outcome
            except (AccountBusy, LoginTooSoon):
                return None


def _warn(event: str, account: str, reason: object) -> None:
    fields = {"account": account, "reason": str(reason)}
    _log.warning(event, extra={"fields": fields})
