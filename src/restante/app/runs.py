"""Run the collector's sessions for one account, and update the account's metrics and alerts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import (
    ConfigurationError,
    ConnectionLost,
    LoginWithheld,
    QuotaExceeded,
    RestanteError,
)
from . import failures
from .job import Job

if TYPE_CHECKING:
    from ..collect.collector import Outcome, Progress
    from ..collect.ledger import Ledger
    from ..collect.run import Run

    Bars = Callable[[str], AbstractContextManager[Progress]]
    """Returns a context manager for a function that shows the progress of the named account."""

# Interrupted sessions after which a run ends.  We estimate that providers tolerate this number of
# logins.
_MAX_INTERRUPTIONS = 3


def no_bar(name: str) -> AbstractContextManager[Progress]:
    """A function of type ``Bars`` that shows no progress."""
    return nullcontext(lambda messages, octets: None)


async def sessions(
    job: Job,
    ledger: Ledger,
    total: Outcome,
    *,
    limit: int | None = None,
    **options: Any,
) -> None:
    """Run one session, and more sessions if necessary.

    Another session follows immediately in these cases:

    - The server lists its mail in parts.
    - The connection was lost, and the next session can avoid the cause.
    - The session could not delete messages, because the destination was full or QUIT was not
      allowed.  The next session can delete them.

    The run ends if the server refuses a login because it is too soon after the previous one.  The
    results of all sessions are added to ``total``, even after a failure.

    Raises:
        QuotaExceeded: the destination is full; stored messages were nevertheless deleted on the
            server.
        LeftWithoutQuit: no message was deleted, although stored messages are due for deletion.
    """
    from ..collect.collector import LeftWithoutQuit, LoginTooSoon, Outcome
    from ..collect.run import Run

    run = Run()
    limit = remaining = limit or job.options.limit or None
    interruption: ConnectionLost | LeftWithoutQuit | QuotaExceeded | None = None
    attempts_left, is_first = _MAX_INTERRUPTIONS, True
    while is_first or interruption or (total.may_list_more and not options.get("whole")):
        if limit is not None and (remaining := limit - total.stored) <= 0:
            if interruption is not None:
                raise interruption
            break
        outcome, run.is_last = Outcome(), attempts_left == 1
        try:
            await session(job, ledger, outcome, limit=remaining, run=run, **options)
            interruption = None
        except (ConnectionLost, LeftWithoutQuit, QuotaExceeded) as error:
            attempts_left -= 1
            if not outcome.may_go_on or not attempts_left:
                raise
            interruption = error
        except LoginTooSoon:
            if interruption is not None:
                raise interruption from None
            if is_first:
                raise
            break
        finally:
            total += outcome
        is_first = False
    if run.full is not None:
        raise run.full


async def session(
    job: Job,
    ledger: Ledger,
    outcome: Outcome,
    *,
    limit: int | None = None,
    whole: Sequence[str] = (),
    again: str = "stop",
    dry_run: bool = False,
    unlimited: bool = False,
    bars: Bars = no_bar,
    run: Run | None = None,
) -> None:
    """Run one session.  For ``again`` and ``run``, see ``collector.collect``.

    Raises:
        ConfigurationError: the destination does not support the account's value of ``keep``.
    """
    from ..collect import collector

    if text := job.contradiction():
        raise ConfigurationError(text)
    policy = job.policy(limit, whole, unlimited=unlimited)
    remote = collector.Account(job.name, job.connect, policy, job.mailbox())
    with (
        failures.adding_path(job.options.to),
        closing(await asyncio.to_thread(job.open_destination)) as destination,
        bars(job.name) as show,
    ):
        await collector.collect(
            remote,
            ledger,
            destination,
            again=again,
            dry_run=dry_run,
            progress=show,
            outcome=outcome,
            run=run,
        )


async def run_and_report(
    job: Job,
    ledger: Ledger,
    session: Awaitable[None],
    outcome: Outcome,
    warn: Callable[[str], None],
) -> None:
    """Await a session, then update the account's metrics and send alerts.

    If the update fails, ``warn`` is called with the reason.  A session that did not begin because
    of another session, LOGIN-DELAY or earlier refused logins does not count as failed.
    """
    from ..collect.collector import LoginTooSoon
    from ..collect.health import Health
    from ..collect.ledger_file import AccountBusy
    from . import alerts, metrics

    health = Health(ledger.of(job.name))

    def report(error: RestanteError | OSError | None) -> None:
        """Update metrics and send alerts; an error in doing so does not make the session fail."""
        received = (outcome.stored, outcome.octets)
        try:
            if error is None:
                health.record_success(*received)
            else:
                health.record_failure(time.time(), *received)
            if job.config.collect.metrics:
                metrics.write(job.config, ledger, Path(job.config.collect.metrics))
        except (RestanteError, OSError) as problem:
            warn(f"no metrics: {failures.describe(problem)}")
        try:
            alerts.send(job, ledger, error)
        except (RestanteError, OSError) as problem:
            warn(f"no alert was sent: {failures.describe(problem)}")

    try:
        await session
    except asyncio.CancelledError:
        with suppress(RestanteError):
            health.record_stop(outcome.stored, outcome.octets)
        raise
    except (AccountBusy, LoginTooSoon, LoginWithheld):
        raise
    except (RestanteError, OSError) as error:
        await asyncio.to_thread(report, error)
        raise
    await asyncio.to_thread(report, None)
