"""Mail about an account: that it fails, that it works again, that a consent is about to end.

One for each streak of failures, and one at its end, whatever is restarted in between.
Security: holds no secret; what a server said is a stranger's text and is shown as such.
"""

from __future__ import annotations

import textwrap
import time
from contextlib import closing
from dataclasses import dataclass, replace
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime, localtime, make_msgid
from urllib.parse import urlsplit

from ..collect.collector import LooksMoved
from ..collect.destinations import Destination
from ..collect.health import Health
from ..collect.ledger import Ledger
from ..collect.ledger_file import AccountBusy
from ..config import Account, Configuration
from ..errors import (
    ConfigurationError,
    ConsentNeeded,
    LoginFailed,
    RestanteError,
    TLSUnavailable,
    UnsafeArgument,
)
from ..log import printable
from .job import Job

_WIDTH = 72  # characters of a line


@dataclass(frozen=True, slots=True)
class _Letter:
    """What is told; after it people know of the moment ``when``, or of none any more."""

    what: str
    when: float | None
    identity: str
    subject: str
    text: str


def send(job: Job, ledger: Ledger, error: RestanteError | OSError | None) -> None:
    """After a session, send what users should know and do not know yet.  Blocking.

    Raises:
        RestanteError, OSError: it could not be delivered; it will be, after the next session.
    """
    if not job.options.alert.after:
        return
    try:
        account_ledger = ledger.of(job.name)
        health = Health(account_ledger)
        with account_ledger.alone():
            for letter in filter(None, _due(job, health, error)):
                _deliver(job, health, letter)
    except AccountBusy:
        pass  # whoever works on it will see the same


def _due(job: Job, health: Health, error: RestanteError | OSError | None) -> list[_Letter | None]:
    name, account = job.name, job.options
    state, told = health.state(), health.told("failure")
    letters: list[_Letter | None] = []
    if error is not None and state.failing_since is not None:
        if told is None and state.failures >= account.alert.after:
            letters.append(_failing(name, account, state.failing_since, state.failures, error))
    elif error is None and told is not None:
        letters.append(_well(name, account, told))
    for what, grant in (("consent", job.grant), ("consent.to", job.destination_grant)):
        end = grant.ends_soon() if grant.options.provider else None
        if end is not None and health.told(what) != end:
            letters.append(_ending(name, what, end))
    return letters


def _deliver(job: Job, health: Health, letter: _Letter) -> None:
    """Where a destination knows its messages, exactly once.  Elsewhere it counts as told before it
    is handed over, so a crash loses it rather than repeats it."""
    alert = job.options.alert
    recipient = alert.recipient or job.recipient
    options = replace(job.options, to=alert.to or job.options.to, recipient=recipient)
    before = health.told(letter.what)
    with closing(replace(job, options=options).open_destination()) as destination:
        if not destination.is_repeatable:
            health.tell(letter.what, letter.when)
        try:
            _put(destination, letter.identity, _message(job.config, recipient, letter))
        except (RestanteError, OSError):
            health.tell(letter.what, before)
            raise
    health.tell(letter.what, letter.when)


def _put(destination: Destination, identity: str, message: bytes) -> None:
    try:
        if not destination.has(identity) and destination.begin(identity):
            destination.write(message)
            destination.commit()
    finally:
        destination.abort()


def _message(config: Configuration, recipient: str, letter: _Letter) -> bytes:
    message = EmailMessage(policy.SMTP)
    message["Subject"] = letter.subject
    message["From"] = f"restante <postmaster@{config.server.hostname}>"
    if "@" in recipient:
        message["To"] = recipient
    message["Date"] = format_datetime(localtime())
    message["Message-ID"] = make_msgid(domain=config.server.hostname)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834
    message.set_content(letter.text)
    return message.as_bytes()


# What they say.


def _failing(
    name: str, account: Account, since: float, failures: int, error: RestanteError | OSError
) -> _Letter:
    reason = textwrap.fill(
        printable(str(error)), _WIDTH, initial_indent="    ", subsequent_indent="    "
    )
    return _Letter(
        "failure",
        since,
        f"{name} failure {since}",
        f"restante cannot collect {name}",
        f"""\
No mail comes from the account {name} ({account.user} at
{_host(account)}) since {_when(since)}:
{failures} sessions in a row have failed. The last one ended with

{reason}

{_advice(name, account, error)}

Nothing is lost: what was collected is safe, and the rest waits on its
server. You will hear once more when it works again, and nothing until
then.
""",
    )


def _advice(name: str, account: Account, error: RestanteError | OSError) -> str:
    match error:
        case ConsentNeeded():
            return f"Somebody must sign in again. Run:\n\n    restante account auth {name}"
        case LoginFailed(retry=False) if account.oauth.provider:
            return (
                "The server refuses the login. If it should not, sign in again:\n\n"
                f"    restante account auth {name}\n    restante account test {name}"
            )
        case LoginFailed(retry=False):
            return (
                f"The server refuses the login. Put the right password where\n"
                f"account.{name}.password says; then run:\n\n    restante account test {name}"
            )
        case LooksMoved():
            return (
                "If the provider has moved, this fetches all of it and stores what is\n"
                f"new by its content:\n\n    restante collect {name} --again dedupe"
            )
        case TLSUnavailable():
            return (
                "The server could not prove who it is, so no password was sent. If you\n"
                f"know its certificate, account.{name}.ca_file says where it is."
            )
        case ConfigurationError() | UnsafeArgument():
            return f"When you have mended that, run:\n\n    restante account test {name}"
    return (
        "If the server or the network is only away for a while, there is nothing\n"
        f"to do: it is tried again. Else run:\n\n    restante account test {name}"
    )


def _well(name: str, account: Account, since: float) -> _Letter:
    return _Letter(
        "failure",
        None,
        f"{name} well {since}",
        f"restante collects {name} again",
        f"""\
Mail comes again from the account {name} ({account.user} at
{_host(account)}). That had failed since
{_when(since)}. There is nothing to do.
""",
    )


def _ending(name: str, what: str, end: float) -> _Letter:
    option = " --to" if what == "consent.to" else ""
    return _Letter(
        what,
        end,
        f"{name} {what} {end}",
        f"restante: sign in for {name} before {time.strftime('%Y-%m-%d', time.localtime(end))}",
        f"""\
What somebody agreed to for the account {name} ends on
{_when(end)}. So that its mail goes on coming, sign in again:

    restante account auth {name}{option}
""",
    )


def _host(account: Account) -> str:
    """The URL may hold more than should be told."""
    return urlsplit(account.url).hostname or ""


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(at))
