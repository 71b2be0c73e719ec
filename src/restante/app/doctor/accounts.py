"""Check the accounts from which mail is collected: sign-ins that expire, sessions that fail."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing

from ... import sysexits
from ...collect.health import Health
from ...errors import RestanteError
from ...words import counted
from ..failures import describe, exit_code
from ..job import Job, all_jobs, open_ledger
from ..tokens import SOON, Grant
from ..upkeep import format_time
from .findings import Finding, Subject, error, not_checked, ok, warning
from .server import listed

_DAY = 86_400.0


def accounts(subject: Subject) -> Iterator[Finding]:
    """Check each account's OAuth 2 sign-ins and the results of its last sessions."""
    jobs = all_jobs(subject.config)
    if not jobs:
        yield not_checked("there are no accounts")
    for job in jobs:
        try:
            found = [*_sign_ins(job), *_sessions(job)]
        except RestanteError as failure:
            found = [error(listed(exit_code(failure)), f"{job.name}: {describe(failure)}")]
        yield from found
        if not found:
            yield ok(f"{job.name}: {_days_left(job)}the last session did not fail")


def _grants(job: Job) -> Iterator[Grant]:
    if job.options.oauth.provider:
        yield job.grant
    if job.options.to_oauth.provider:
        yield job.destination_grant


def _expiries(job: Job) -> Iterator[tuple[Grant, float]]:
    """Yield when each sign-in of a user expires, in seconds since the epoch; -1 without sign-in."""
    for grant in _grants(job):
        if grant.options.flow == "client":  # needs no user
            continue
        # The key for the tokens is created by the first sign-in, not here.
        has_key = bool(job.config.collect.key) or (job.config.state / "tokens/key").exists()
        tokens = grant.file().get() if has_key else None
        if tokens is None:
            yield grant, -1.0
        elif tokens.refresh_expires_at is not None:
            yield grant, tokens.refresh_expires_at


def _sign_ins(job: Job) -> Iterator[Finding]:
    now = time.time()
    for grant, expiry in _expiries(job):
        if expiry < 0:
            yield error(sysexits.EX_NOPERM, f"{job.name}: not signed in yet", grant.command)
        elif expiry <= now:
            text = f"{job.name}: the sign-in expired on {format_time(expiry)}"
            yield error(sysexits.EX_NOPERM, text, grant.command)
        elif expiry - now < SOON:
            days = counted(math.ceil((expiry - now) / _DAY), "day")
            yield warning(f"{job.name}: the sign-in expires in {days}", grant.command)


def _days_left(job: Job) -> str:
    expiry = min((each for _, each in _expiries(job)), default=None)
    if expiry is None:
        return ""
    return f"signed in for {counted(int((expiry - time.time()) / _DAY), 'day')}; "


def _sessions(job: Job) -> Iterator[Finding]:
    if not (job.config.state / "ledger.sqlite3").exists():
        return
    with closing(open_ledger(job.config)) as ledger:
        state = Health(ledger.of(job.name)).state()
    if state.failing_since is not None:
        sessions = counted(state.failures, "session")
        text = f"{job.name}: {sessions} failed since {format_time(state.failing_since)}"
        yield warning(text, f"restante account test {job.name}")
