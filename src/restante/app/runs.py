"""Run the sessions of one account, and update its metrics and alerts."""

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
    """Returns a function that shows the progress of the account with this name."""

_TRIES = 3  # sessions in a run; an estimate of the logins that a provider tolerates


def no_bar(name: str) -> AbstractContextManager[Progress]:
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

    Another session follows at once if the server lists its mail in parts, if the connection was
    lost and a new one can avoid the cause, or if the destination was full or QUIT was not allowed,
    so that another session can delete.  A failure of a later session loses nothing.  A login that
    is too soon ends the run.  The results of all sessions are added to ``total``, even after a
    failure.

    Raises:
        QuotaExceeded: the destination is full; stored messages were nevertheless deleted on the
            server.
        LeftWithoutQuit: no message was deleted, although stored messages are due for deletion.
    """
    from ..collect.collector import LeftWithoutQuit, LoginTooSoon, Outcome
    from ..collect.run import Run

    run = Run()
    limit = left = limit or job.options.limit or None
    lost: ConnectionLost | LeftWithoutQuit | QuotaExceeded | None = None
    tries, is_first = _TRIES, True
    while is_first or lost or (total.may_list_more and not options.get("whole")):
        if limit is not None and (left := limit - total.stored) <= 0:
            if lost is not None:
                raise lost
            break
        part, run.is_last = Outcome(), tries == 1
        try:
            await session(job, ledger, part, limit=left, run=run, **options)
            lost = None
        except (ConnectionLost, LeftWithoutQuit, QuotaExceeded) as error:
            tries -= 1
            if not part.may_go_on or not tries:
                raise
            lost = error
        except LoginTooSoon:
            if lost is not None:
                raise lost from None
            if is_first:
                raise
            break
        finally:
            total += part
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
    """Run one session; see ``collector.collect`` for ``run``.

    Raises:
        ConfigurationError: the destination cannot do what ``keep`` requires.
    """
    from ..collect import collector

    if text := job.contradiction():
        raise ConfigurationError(text)
    policy = job.policy(limit, whole, unlimited=unlimited)
    remote = collector.Account(job.name, job.connect, policy, job.mailbox())
    with (
        failures.naming(job.options.to),
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


async def noted(
    job: Job,
    ledger: Ledger,
    session: Awaitable[None],
    outcome: Outcome,
    complain: Callable[[str], None],
) -> None:
    """Await a session, then update metrics and alerts; ``complain`` is called if the update fails.

    A session that did not begin because of another session, LOGIN-DELAY or earlier refused logins
    does not count as failed.
    """
    from ..collect.collector import LoginTooSoon
    from ..collect.health import Health
    from ..collect.ledger_file import AccountBusy
    from . import alerts, metrics

    health = Health(ledger.of(job.name))

    def note(error: RestanteError | OSError | None) -> None:
        """Write metrics and alerts; an error here does not make the session fail."""
        received = (outcome.stored, outcome.octets)
        try:
            if error is None:
                health.succeeded(*received)
            else:
                health.failed(time.time(), *received)
            if job.config.collect.metrics:
                metrics.write(job.config, ledger, Path(job.config.collect.metrics))
        except (RestanteError, OSError) as trouble:
            complain(f"no metrics: {failures.describe(trouble)}")
        try:
            alerts.send(job, ledger, error)
        except (RestanteError, OSError) as trouble:
            complain(f"no alert was sent: {failures.describe(trouble)}")

    try:
        await session
    except asyncio.CancelledError:
        with suppress(RestanteError):
            health.stopped(outcome.stored, outcome.octets)
        raise
    except (AccountBusy, LoginTooSoon, LoginWithheld):
        raise
    except (RestanteError, OSError) as error:
        await asyncio.to_thread(note, error)
        raise
    await asyncio.to_thread(note, None)
