"""``poll_on_login``: a maildrop that is filled from an account elsewhere when its user logs in.

So a device that knows USER and PASS only reads a mailbox that takes nothing but OAuth 2.  What is
here is served whatever becomes of the poll: upstream in trouble is a warning, never an empty
maildrop.

Security: only users who have proved who they are start a poll, of their own accounts, with their
own secrets.
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

_RETRY = 60.0  # seconds until a name that could not be looked up is looked up again

_log = logging.getLogger("restante.gateway")


def look_over(config: Configuration) -> None:
    """
    Raises:
        ConfigurationError: an account that is polled at logins can never be stored.
    """
    jobs = [job for job in all_jobs(config) if _polled_by(job) is not None]
    if mistakes := [text for job in jobs for text in job.mistakes(strictly=False)]:
        raise ConfigurationError("\n".join(mistakes))


def _polled_by(job: Job) -> str | None:
    """Return the user at whose logins the account is polled, or None."""
    return job.local_user if job.options.poll_on_login else None


class Gateway:
    """Polls in threads of their own: they sync files, and the server must not wait for that."""

    def __init__(self, config: Configuration, directory: Directory) -> None:
        """``directory`` knows which maildrop an account's mail goes to."""
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
        """All accounts of this maildrop, side by side; one that takes longer goes on without the
        login."""
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
        """Find the maildrops of accounts that are not known yet."""
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
            # When the server ends it is cut off; that is no worse than a crash.
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
                came = {"account": name, "stored": outcome.stored, "deleted": outcome.deleted}
                _log.info("upstream polled", extra={"fields": came})
        finally:
            done.set_result(None)

    async def _session(self, job: Job) -> Outcome | None:
        """None: too soon after the last one, or another process is at it."""
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
