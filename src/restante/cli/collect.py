"""``restante collect``: take new mail from accounts elsewhere, once."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from collections.abc import Sequence
from contextlib import (
    AbstractContextManager,
    closing,
)
from typing import TYPE_CHECKING

from .. import log
from ..app import failures, runs
from ..app.job import Job, chosen, open_ledger
from ..errors import RestanteError, TemporaryFailure
from ..log import printable
from . import common, progress

if TYPE_CHECKING:
    from ..app.runs import Bars
    from ..collect.collector import Outcome
    from ..collect.ledger import Ledger

_AT_ONCE = 4  # accounts


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "collect",
        help="take new mail from accounts elsewhere",
        description="Log in to each account, store what was never taken, and delete on the server "
        "what the account's policy lets go. A message is deleted only after it is on disk here and "
        "known to the ledger; run it as often as you like. 75 means: try again, nothing is lost.",
    )
    parser.add_argument("name", metavar="NAME", nargs="*", help="an account of the configuration")
    parser.add_argument("--all", action="store_true", help="every account")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    parser.add_argument(
        "--again",
        choices=("stop", "dedupe", "fetch"),
        default="stop",
        help="when nearly everything looks new, as after a provider's move: stop; or fetch and "
        "store only what no message taken before equals; or fetch all of it",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many from each account")
    parser.add_argument(
        "--whole",
        metavar="ID",
        action="append",
        default=[],
        help="take this message however large it is, as its stub or an earlier run names it; all",
    )
    parser.add_argument(
        "--no-deletion-limit",
        action="store_true",
        help="delete on the server all that is due, also for a new account or after keep changed",
    )
    parser.add_argument(
        "--metrics", metavar="FILE", help="write metrics there, instead of to collect.metrics"
    )
    parser.add_argument("--watch", action="store_true", help="go on until told to stop")
    parser.add_argument(
        "-P",
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="bars on a terminal, as without --json and --watch",
    )
    parser.add_argument(
        "--fail-if-empty", action="store_true", help="exit code 1 when nothing new came"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The gravest exit code of all accounts."""
    config = common.configuration(options, collect__metrics=options.metrics)
    jobs = chosen(config, options.name, everything=options.all)
    if options.watch:
        log.set_up(config.log)
    else:  # the outcome is printed, and `account log` shows what was deleted
        logging.getLogger("restante").addHandler(logging.NullHandler())
    with closing(open_ledger(config)) as ledger:
        run_all = _watch if options.watch else _stoppable
        results = asyncio.run(run_all(options, jobs, ledger))
    codes = [failures.exit_code(each) if isinstance(each, BaseException) else 0 for each in results]
    stored = sum(each.stored for each in results if not isinstance(each, BaseException))
    if options.fail_if_empty and not any(codes) and not stored:
        return 1
    return failures.gravest(codes)


class _Stopped(TemporaryFailure):
    """By a signal."""

    def __init__(self) -> None:
        super().__init__("stopped; what is stored is safe and known, and the rest comes next time")


async def _stoppable(
    options: argparse.Namespace,
    jobs: Sequence[Job],
    ledger: Ledger,
) -> Sequence[Outcome | BaseException]:
    """
    Raises:
        _Stopped: by SIGTERM or SIGINT.
    """
    with _bars(options) as bars:
        work = asyncio.ensure_future(_once(options, jobs, ledger, bars))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        try:
            return await work
        except asyncio.CancelledError:
            raise _Stopped from None


def _bars(options: argparse.Namespace) -> AbstractContextManager[Bars]:
    is_usual = not (options.json or options.watch)
    return progress.bars(wanted=is_usual if options.progress is None else options.progress)


async def _once(
    options: argparse.Namespace,
    jobs: Sequence[Job],
    ledger: Ledger,
    bars: Bars,
) -> Sequence[Outcome | BaseException]:
    """A session with each account, some at a time; each is told as it ends."""
    from ..collect.collector import Outcome

    free = asyncio.Semaphore(_AT_ONCE)

    async def one(job: Job, total: Outcome) -> None:
        def complain(text: str) -> None:
            common.say(printable(f"{job.name}: {text}"))

        working = runs.sessions(
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
            await working
        else:
            await runs.noted(job, ledger, working, total, complain)

    async def reported(job: Job) -> Outcome | BaseException:
        total, error = Outcome(), None
        async with free:
            try:
                await one(job, total)
            except (RestanteError, OSError) as caught:
                error = caught
            except asyncio.CancelledError:
                progress.report(options, job.name, total, _Stopped())
                raise
        progress.report(options, job.name, total, error)
        return error or total

    work = map(reported, jobs)
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
    """Each account at its own pace, until SIGTERM or SIGINT; a session under way is given up."""
    from ..collect.pace import Pace, follow

    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)

    async def watch(job: Job) -> None:
        async def session() -> Outcome | BaseException:
            (result,) = await _once(options, [job], ledger, bars)
            return result

        def may_begin(now: float) -> float:
            return ledger.may_begin(job.name, now, job.options.logins_per_hour or None)

        await follow(session, may_begin, Pace(job.options.every, job.options.slowest))

    with _bars(options) as bars:
        tasks = [loop.create_task(watch(job)) for job in jobs]
        stop = loop.create_task(stopped.wait())
        await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in (stop, *tasks):
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    return [each for each in ended if isinstance(each, Exception)]
