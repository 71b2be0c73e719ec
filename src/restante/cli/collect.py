"""``restante collect``: take new mail from accounts elsewhere, once."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
    suppress,
)
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import log
from ..config import Account, Configuration, duration
from ..errors import (
    ConfigurationError,
    ConnectionLost,
    LoginFailed,
    LoginWithheld,
    QuotaExceeded,
    RestanteError,
    TemporaryFailure,
    UnsafeArgument,
)
from ..log import printable
from ..pop3 import quirks
from . import common, local, oauth, secrets, telling

if TYPE_CHECKING:
    from ..client.asynchronous import Client
    from ..client.remote import Options
    from ..collect.accounts import Mailbox
    from ..collect.collector import Outcome
    from ..collect.destinations import Destination
    from ..collect.ledger import Ledger
    from ..collect.plan import Budget, Policy
    from ..collect.run import Run
    from .telling import Bars

_AT_ONCE = 4  # accounts
_TRIES = 3  # sessions in a run; more logins after a loss would only annoy a provider
# Destinations that can look at what they stored, and that know what was deleted there.
_READABLE = ("", "maildir", "maildrop")
_TRACED = ("maildrop",)
_PORTS = (110, 995)  # of POP3, so that one mailbox answers at both


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
    found = common.configuration(options, collect__metrics=options.metrics)
    accounts = chosen(found, options.name, everything=options.all)
    if options.watch:
        log.set_up(found.log)
    else:  # the outcome is printed, and `account log` shows what was deleted
        logging.getLogger("restante").addHandler(logging.NullHandler())
    with closing(open_ledger(found)) as ledger:
        run_all = _watch if options.watch else _stoppable
        results = asyncio.run(run_all(options, found, accounts, ledger))
    codes = [common.exit_code(each) if isinstance(each, BaseException) else 0 for each in results]
    stored = sum(each.stored for each in results if not isinstance(each, BaseException))
    if options.fail_if_empty and not any(codes) and not stored:
        return 1
    return common.gravest(codes)


def chosen(found: Configuration, names: Sequence[str], *, everything: bool) -> dict[str, Account]:
    """Accounts by name, as the command line asks.

    Raises:
        UnsafeArgument: none is meant, or one does not exist.
    """
    if everything == bool(names):
        raise UnsafeArgument("which accounts? NAME …, or --all")
    for name in names:
        if name not in found.account:
            known = ", ".join(found.account) or "none yet; next: restante account add"
            raise UnsafeArgument(f"no account {name!r}; there are: {known}")
    return {name: found.account[name] for name in names or found.account}


def open_ledger(found: Configuration) -> Ledger:
    from ..collect.ledger import Ledger

    return Ledger(found.state / "ledger.sqlite3")


class _Stopped(TemporaryFailure):
    """By a signal."""

    def __init__(self) -> None:
        super().__init__("stopped; what is stored is safe and known, and the rest comes next time")


async def _stoppable(
    options: argparse.Namespace,
    found: Configuration,
    accounts: Mapping[str, Account],
    ledger: Ledger,
) -> Sequence[Outcome | BaseException]:
    """
    Raises:
        _Stopped: by SIGTERM or SIGINT.
    """
    with _bars(options) as bars:
        work = asyncio.ensure_future(_once(options, found, accounts, ledger, bars))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, work.cancel)
        try:
            return await work
        except asyncio.CancelledError:
            raise _Stopped from None


def _bars(options: argparse.Namespace) -> AbstractContextManager[Bars]:
    is_usual = not (options.json or options.watch)
    return telling.bars(wanted=is_usual if options.progress is None else options.progress)


async def _once(
    options: argparse.Namespace,
    found: Configuration,
    accounts: Mapping[str, Account],
    ledger: Ledger,
    bars: Bars,
) -> Sequence[Outcome | BaseException]:
    """A session with each account, some at a time; each is told as it ends."""
    from ..collect.collector import Outcome

    free = asyncio.Semaphore(_AT_ONCE)

    async def one(name: str, account: Account, total: Outcome) -> None:
        def complain(text: str) -> None:
            common.say(printable(f"{name}: {text}"))

        working = sessions(
            found,
            name,
            account,
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
            await noted(found, name, account, ledger, working, total, complain)

    async def told(name: str, account: Account) -> Outcome | BaseException:
        total, error = Outcome(), None
        async with free:
            try:
                await one(name, account, total)
            except (RestanteError, OSError) as caught:
                error = caught
            except asyncio.CancelledError:
                telling.tell(options, name, total, _Stopped())
                raise
        telling.tell(options, name, total, error)
        return error or total

    work = (told(name, account) for name, account in accounts.items())
    results = await asyncio.gather(*work, return_exceptions=True)
    if bug := next((each for each in results if not _is_expected(each)), None):
        assert isinstance(bug, BaseException)
        raise bug
    return results


def _is_expected(result: Outcome | BaseException) -> bool:
    return not isinstance(result, BaseException) or isinstance(result, RestanteError | OSError)


async def _watch(
    options: argparse.Namespace,
    found: Configuration,
    accounts: Mapping[str, Account],
    ledger: Ledger,
) -> Sequence[Outcome | BaseException]:
    """Each account at its own pace, until SIGTERM or SIGINT; a session under way is given up."""
    from ..collect.pace import Pace, follow

    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)

    async def watch(name: str, account: Account) -> None:
        async def session() -> Outcome | BaseException:
            (result,) = await _once(options, found, {name: account}, ledger, bars)
            return result

        def may_begin(now: float) -> float:
            return ledger.may_begin(name, now, account.logins_per_hour or None)

        await follow(session, may_begin, Pace(account.every, account.slowest))

    with _bars(options) as bars:
        tasks = [loop.create_task(watch(name, account)) for name, account in accounts.items()]
        stop = loop.create_task(told.wait())
        await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in (stop, *tasks):
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    return [each for each in ended if isinstance(each, Exception)]


async def sessions(
    found: Configuration,
    name: str,
    account: Account,
    ledger: Ledger,
    total: Outcome,
    *,
    limit: int | None = None,
    **options: Any,
) -> None:
    """One, and as many more as a server needs that lists its mail in parts.

    One that was lost is followed by another at once if that avoids what the first was lost by, and
    one that found no room by another that only deletes.  A failure of a later one loses nothing; a
    login that is too soon ends them.  What came of all is added to ``total``, also when one fails.

    Raises:
        QuotaExceeded: not all of the mail had room; what is safe was deleted all the same.
    """
    from ..collect.collector import LoginTooSoon, Outcome
    from ..collect.run import Run

    run = Run()
    limit = left = limit or account.limit or None
    lost: ConnectionLost | QuotaExceeded | None = None
    tries, is_first = _TRIES, True
    while is_first or lost or (total.may_list_more and not options.get("whole")):
        if limit is not None and (left := limit - total.stored) <= 0:
            break
        part, run.is_last = Outcome(), tries == 1
        try:
            await session(found, name, account, ledger, part, limit=left, run=run, **options)
            lost = None
        except (ConnectionLost, QuotaExceeded) as error:
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
    found: Configuration,
    name: str,
    account: Account,
    ledger: Ledger,
    outcome: Outcome,
    *,
    limit: int | None = None,
    whole: Sequence[str] = (),
    again: str = "stop",
    dry_run: bool = False,
    unlimited: bool = False,
    bars: Bars = telling.no_bar,
    run: Run | None = None,
) -> None:
    """One session with one account; see ``collector.collect`` for ``run``.

    Raises:
        ConfigurationError: its destination cannot do what ``keep`` needs.
    """
    from ..collect import collector

    if text := contradiction(name, account):
        raise ConfigurationError(text)
    policy = policy_of(account, limit, whole, unlimited=unlimited)
    log_in = partial(connected, found, name, account)
    remote = collector.Account(name, log_in, policy, mailbox_of(found, name))
    with (
        common.naming(account.to),
        closing(await asyncio.to_thread(open_destination, found, name, account)) as destination,
        bars(name) as show,
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
    found: Configuration,
    name: str,
    account: Account,
    ledger: Ledger,
    session: Awaitable[None],
    outcome: Outcome,
    complain: Callable[[str], None],
) -> None:
    """The same session, and what people must be told of it; ``complain`` hears if they cannot be.

    One that gave way to another, to the server's wish or to earlier refusals has not failed.
    """
    from ..collect.collector import LoginTooSoon
    from ..collect.health import Health
    from ..collect.ledger import AccountBusy
    from . import alert, metrics

    def note(error: RestanteError | OSError | None) -> None:
        """Nothing that fails here makes a failure of a session."""
        came = (outcome.stored, outcome.octets)
        try:
            if error is None:
                Health(ledger).succeeded(name, *came)
            else:
                Health(ledger).failed(name, time.time(), *came)
            if found.collect.metrics:
                metrics.write(found, ledger, Path(found.collect.metrics))
        except (RestanteError, OSError) as trouble:
            complain(f"no metrics: {common.describe(trouble)}")
        try:
            alert.tell(found, name, account, ledger, error)
        except (RestanteError, OSError) as trouble:
            complain(f"nobody could be told: {common.describe(trouble)}")

    try:
        await session
    except asyncio.CancelledError:
        with suppress(RestanteError):
            Health(ledger).stopped(name, outcome.stored, outcome.octets)
        raise
    except (AccountBusy, LoginTooSoon, LoginWithheld):
        raise
    except (RestanteError, OSError) as error:
        await asyncio.to_thread(note, error)
        raise
    await asyncio.to_thread(note, None)


@asynccontextmanager
async def connected(found: Configuration, name: str, account: Account) -> AsyncIterator[Client]:
    """A session with the account's server; see ``client.asynchronous.connect``."""
    from ..client.asynchronous import connect

    options: Options = {"user": account.user, "quirks": _quirks(account)}
    if account.ca_file:
        options["ca_file"] = Path(account.ca_file)
    if account.oauth.provider:
        options["token"] = partial(oauth.fresh, found, name, account)
    else:
        fetch = partial(secrets.fetch, account.password, f"account.{name}.password")
        options["password"] = await asyncio.to_thread(fetch)
    connect_in_time = partial(connect, deadline=account.deadline)
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(connect_in_time(account.url, **options))
        except LoginFailed as error:
            if not account.oauth.provider or error.retry:
                raise
            # What seemed good may have been taken back: once more with a new one.
            options["token"] = partial(oauth.fresh, found, name, account, renew=True)
            client = await stack.enter_async_context(connect_in_time(account.url, **options))
        yield client


def mailbox_of(found: Configuration, name: str) -> Mailbox:
    """Where its mailbox is: by this the ledger knows an account that was renamed."""
    from ..client.remote import split
    from ..collect.accounts import Mailbox

    account = found.account[name]
    host, port, *_ = split(account.url)
    # Another port may be a tunnel to another server.
    server = host if port in (None, *_PORTS) else f"{host}:{port}"
    address = f"pop3 {server} {account.user}"
    return Mailbox(name, address, account.label, found.account.keys())


def contradiction(name: str, account: Account) -> str:
    """Why its destination cannot do what ``keep`` needs; empty: it can."""
    kind, colon, _ = account.to.partition(":")
    kind = kind if colon else ""
    needs: dict[str, tuple[tuple[str, ...], str]] = {
        "until-verified": (_READABLE, "whose copies can be read again"),
        "until-deleted": (_TRACED, "that shows what the user deleted"),
    }
    kinds, words = needs.get(account.keep, ((kind,), ""))
    if kind in kinds:
        return ""
    possible = ", ".join(f"{each}:" if each else "a directory" for each in kinds)
    return (
        f'account.{name}.keep: "{account.keep}" needs a destination {words} ({possible}), '
        f"and account.{name}.to is {kind}:"
    )


def policy_of(
    account: Account,
    limit: int | None = None,
    whole: Sequence[str] = (),
    *,
    unlimited: bool = False,
) -> Policy:
    """``account.keep`` and its neighbours, as the collector knows them."""
    from ..collect.plan import Policy

    verified = account.keep == "until-verified"
    if account.keep == "all":
        keep = None
    else:
        is_word = account.keep in ("none", "until-verified", "until-deleted")
        keep = 0.0 if is_word else duration(account.keep)
    return Policy(
        keep=keep,
        newest=account.newest,
        verified=verified,
        until_deleted=account.keep == "until-deleted",
        largest=None if "all" in whole else account.largest or None,
        limit=limit or account.limit or None,
        stubs=account.larger == "stub",
        whole=frozenset(whole) - {"all"},
        budget=_budget(account),
        deletions=None if unlimited else account.deletion_limit or None,
    )


def _quirks(account: Account) -> quirks.Quirks:
    from ..client.remote import split

    return quirks.parse(account.quirks, split(account.url)[0])


def _budget(account: Account) -> Budget:
    from ..collect.plan import Budget

    octets = account.octets_per_day
    if octets is None:
        octets = _quirks(account).octets_per_day
    return Budget(account.messages_per_day or None, octets or None, account.logins_per_hour or None)


def open_destination(found: Configuration, name: str, account: Account) -> Destination:
    """What ``account.to`` means here.  Blocking, and not in an event loop.

    Raises:
        UnsafeArgument, ConfigurationError, PermanentFailure: it can never work as it is written.
        TemporaryFailure, OSError: not now.
    """
    from ..collect import destinations

    kind, _, recipient = account.to.partition(":")
    if kind == "maildrop":
        return local.open_maildrop(found, recipient)
    password = ""
    if account.to_password:
        password = secrets.fetch(account.to_password, "to_password")
    return destinations.open_destination(
        account.to,
        recipient=account.recipient or account.user,
        password=password,
        ca_file=Path(account.to_ca_file) if account.to_ca_file else None,
        token=_token(found, name, account) if account.to_oauth.provider else None,
    )


def mistakes(
    found: Configuration, accounts: Mapping[str, Account], *, strictly: bool
) -> Iterator[str]:
    """Destinations of these accounts that cannot work, or not with ``keep``; a sentence each.

    Looks only, and asks no mail server.  ``strictly``: a user database that is not there is a
    mistake, too, and not a disk that is away.
    """
    for name, account in accounts.items():
        if text := contradiction(name, account):
            yield text
        places = {"to": account}
        if account.alert.after and account.alert.to:
            places["alert.to"] = replace(account, to=account.alert.to)
        for key, its in places.items():
            if mistake := _mistake(found, its, strictly=strictly):
                yield f"account.{name}.{key}: {mistake}"


def _mistake(found: Configuration, account: Account, *, strictly: bool) -> str | None:
    from ..collect.destinations import look_over

    kind, _, recipient = account.to.partition(":")
    try:
        if kind == "maildrop":
            local.open_maildrop(found, recipient).close()
        else:
            look_over(
                account.to,
                recipient=account.recipient or account.user,
                password="?" if account.to_password else "",
                token=(lambda _: "") if account.to_oauth.provider else None,
            )
    except TemporaryFailure as error:
        # Of a maildrop: a back end is down, or a disk is away, which is no mistake.
        is_mistake = kind != "maildrop" or (strictly and not Path(found.auth.users).exists())
        return common.describe(error) if is_mistake else None
    except (RestanteError, OSError) as error:
        return common.describe(error)
    return None


def _token(found: Configuration, name: str, account: Account) -> Callable[[bool], str]:
    there, its = oauth.at_destination(name, account)
    return lambda renew: oauth.token(found, there, its, renew=renew)
