"""``restante collect``: collect new mail from accounts on other servers."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING

from .. import log
from ..app import failures, runs
from ..app.job import Job, open_ledger, select_jobs
from ..errors import RestanteError, TemporaryFailure
from ..escaping import printable
from . import common, progress

if TYPE_CHECKING:
    from ..app.runs import Bars
    from ..collect.collector import Outcome
    from ..collect.ledger import Ledger

# Number of simultaneous sessions, so that a slow server does not delay the other accounts.  With
# more sessions, each would have so little bandwidth that it could exceed its deadline.
_MAX_SESSIONS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Log in to each account, store new messages, and delete messages on the server "
        "according to the account's option `keep`. A message is deleted only after it has been "
        "stored on disk and recorded in the ledger. You may run this command as often as you "
        "like. Exit code 75 means that no mail is lost and that you should try again."
    )
    parser.add_argument(
        "name", metavar="NAME", nargs="*", help="the name of an account to collect from"
    )
    parser.add_argument("--all", action="store_true", help="collect from every account")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done, without changing anything"
    )
    parser.add_argument(
        "--again",
        choices=("stop", "dedupe", "fetch"),
        default="stop",
        help="what to do if nearly all messages look new, as after a provider's migration: stop "
        "(default), store only messages that were not collected before (dedupe), or store all "
        "messages (fetch)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="collect at most N messages per account"
    )
    parser.add_argument(
        "--whole",
        metavar="ID",
        action="append",
        default=[],
        help="collect the message with this name regardless of its size, or all messages if ID is "
        "`all`; the name is in the message's stub and in the output of an earlier run",
    )
    parser.add_argument(
        "--no-deletion-limit",
        action="store_true",
        help="delete all messages that are due, even if the account is new or its option `keep` "
        "was changed",
    )
    parser.add_argument(
        "--metrics",
        metavar="FILE",
        help="write metrics to FILE instead of the file in the option collect.metrics",
    )
    parser.add_argument(
        "--watch", action="store_true", help="keep running, and collect at regular intervals"
    )
    parser.add_argument(
        "-P",
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show progress bars; by default they are shown on a terminal, except with --json or "
        "--watch",
    )
    parser.add_argument(
        "--fail-if-empty", action="store_true", help="exit with code 1 if no new mail was stored"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Return the most severe exit code of all accounts."""
    config = common.configuration(options, collect__metrics=options.metrics)
    jobs = select_jobs(config, options.name, select_all=options.all)
    if options.watch:
        log.set_up(config.log)
    else:  # no log: the outcome is printed, and `account log` shows what was deleted
        logging.getLogger("restante").addHandler(logging.NullHandler())
    with closing(open_ledger(config)) as ledger:
        run_all = _watch if options.watch else _run_once
        results = asyncio.run(run_all(options, jobs, ledger))
    codes = [failures.exit_code(each) if isinstance(each, BaseException) else 0 for each in results]
    stored = sum(each.stored for each in results if not isinstance(each, BaseException))
    if options.fail_if_empty and not any(codes) and not stored:
        return 1
    return failures.most_serious(codes)


class _Stopped(TemporaryFailure):
    """A signal stopped the run."""

    def __init__(self) -> None:
        super().__init__("stopped; stored messages are recorded, and the next run continues")


async def _run_once(
    options: argparse.Namespace,
    jobs: Sequence[Job],
    ledger: Ledger,
) -> Sequence[Outcome | BaseException]:
    """Collect once from each account, unless a signal stops the run.

    Raises:
        _Stopped: SIGTERM or SIGINT was received.
    """
    with _bars(options) as bars:
        work = asyncio.ensure_future(_run_sessions(options, jobs, ledger, bars))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        try:
            return await work
        except asyncio.CancelledError:
            raise _Stopped from None


def _bars(options: argparse.Namespace) -> AbstractContextManager[Bars]:
    is_default = not (options.json or options.watch)
    return progress.bars(is_enabled=is_default if options.progress is None else options.progress)


async def _run_sessions(
    options: argparse.Namespace,
    jobs: Sequence[Job],
    ledger: Ledger,
    bars: Bars,
) -> Sequence[Outcome | BaseException]:
    """Run a session for each account, and report each result when its session has ended."""
    from ..collect.collector import Outcome

    slots = asyncio.Semaphore(_MAX_SESSIONS)

    async def run_account(job: Job, total: Outcome) -> None:
        def warn(text: str) -> None:
            common.say(printable(f"{job.name}: {text}"))

        sessions = runs.sessions(
            job,
            ledger,
            total,
            limit=options.limit,
            whole=options.whole,
            again=options.again,
            dry_run=options.dry_run,
            unlimited=options.no_deletion_limit,
            bars=bars,
        )
        if options.dry_run:
            await sessions
        else:
            await runs.run_and_report(job, ledger, sessions, total, warn)

    async def run_and_print(job: Job) -> Outcome | BaseException:
        total, error = Outcome(), None
        async with slots:
            try:
                await run_account(job, total)
            except (RestanteError, OSError) as caught:
                error = caught
            except asyncio.CancelledError:
                progress.report(options, job.name, total, _Stopped())
                raise
        progress.report(options, job.name, total, error)
        return error or total

    work = map(run_and_print, jobs)
    results = await asyncio.gather(*work, return_exceptions=True)
    if bug := next((each for each in results if not _is_expected(each)), None):
        assert isinstance(bug, BaseException)
        raise bug
    return results


def _is_expected(result: Outcome | BaseException) -> bool:
    return not isinstance(result, BaseException) or isinstance(result, RestanteError | OSError)


async def _watch(
    options: argparse.Namespace,
    jobs: Sequence[Job],
    ledger: Ledger,
) -> Sequence[Outcome | BaseException]:
    """Collect from each account at its own interval; SIGTERM and SIGINT cancel the sessions."""
    from ..collect.pace import Pace, run_sessions

    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)

    async def watch(job: Job) -> None:
        async def session() -> Outcome | BaseException:
            (result,) = await _run_sessions(options, [job], ledger, bars)
            return result

        def may_begin(now: float) -> float:
            return ledger.of(job.name).may_begin(now, job.options.logins_per_hour or None)

        await run_sessions(session, may_begin, Pace(job.options.every, job.options.slowest))

    with _bars(options) as bars:
        tasks = [loop.create_task(watch(job)) for job in jobs]
        stop = loop.create_task(stopped.wait())
        await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in (stop, *tasks):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    return [each for each in results if isinstance(each, Exception)]
