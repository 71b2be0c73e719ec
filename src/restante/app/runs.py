"""Sessions of one account: as many as a run needs, with their metrics and alerts."""

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
    """Shows the progress of what has this name."""

_TRIES = 3  # sessions in a run; more logins after a loss would only annoy a provider


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
    """One, and as many more as a server needs that lists its mail in parts.

    One that was lost is followed by another at once if that avoids what the first was lost by, and
    one that found no room, or must not end by QUIT, by another that only deletes.  A failure of a
    later one loses nothing; a login that is too soon ends them.  What came of all is added to
    ``total``, also when one fails.

    Raises:
        QuotaExceeded: not all of the mail had room; what is safe was deleted all the same.
        LeftWithoutQuit: nothing was deleted, though some of what is safe is due.
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
    """One session with one account; see ``collector.collect`` for ``run``.

    Raises:
        ConfigurationError: its destination cannot do what ``keep`` needs.
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
    """The same session with its metrics and alerts; ``complain`` is called if these fail.

    A session that gave way to another, to the server's wish or to earlier refusals has not failed.
    """
    from ..collect.collector import LoginTooSoon
    from ..collect.health import Health
    from ..collect.ledger_file import AccountBusy
    from . import alerts, metrics

    def note(error: RestanteError | OSError | None) -> None:
        """Nothing that fails here makes a failure of a session."""
        came = (outcome.stored, outcome.octets)
        try:
            if error is None:
                Health(ledger.of(job.name)).succeeded(*came)
            else:
                Health(ledger.of(job.name)).failed(time.time(), *came)
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
            Health(ledger.of(job.name)).stopped(outcome.stored, outcome.octets)
        raise
    except (AccountBusy, LoginTooSoon, LoginWithheld):
        raise
    except (RestanteError, OSError) as error:
        await asyncio.to_thread(note, error)
        raise
    await asyncio.to_thread(note, None)
