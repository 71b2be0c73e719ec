"""Send alerts by mail when an account fails or works again, or must soon be signed in again.

A series of failed sessions causes one alert, and the next successful session causes another, even
if the program is restarted during the series.
Security: alerts contain no secrets.  Text from the server is untrusted, so it is escaped and
indented.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from ..collect.collector import LooksMoved
from ..collect.health import Health
from ..collect.ledger import Ledger
from ..collect.ledger_file import AccountBusy
from ..config import Account
from ..errors import (
    ConfigurationError,
    ConsentNeeded,
    LoginFailed,
    RestanteError,
    TLSUnavailable,
    UnsafeArgument,
)
from ..escaping import printable
from .job import Job
from .notices import mail, put, quoted, when


@dataclass(frozen=True, slots=True)
class _Alert:
    """One message, and the values that the ledger records when the message is delivered."""

    topic: str
    """``failure``, ``consent`` or ``consent.to``."""
    time: float | None
    """Start of the failures or expiry of the sign-in, in seconds since the epoch; None if the
    account works again."""
    identity: str
    """Identifies the message at the destination, so that it is delivered only once."""
    subject: str
    text: str


def send(job: Job, ledger: Ledger, error: RestanteError | OSError | None) -> None:
    """Send the alerts that are due after a session.  Blocking.

    ``error`` is the error that ended the session, or None if the session succeeded.

    Raises:
        RestanteError, OSError: an alert was not delivered; it is sent again after the next session.
    """
    if not job.options.alert.after:
        return
    try:
        account_ledger = ledger.of(job.name)
        health = Health(account_ledger)
        with account_ledger.alone():
            for alert in filter(None, _due(job, health, error)):
                _deliver(job, health, alert)
    except AccountBusy:
        pass  # the process that is collecting the account sends the same alert


def _due(job: Job, health: Health, error: RestanteError | OSError | None) -> list[_Alert | None]:
    name, account = job.name, job.options
    state, reported = health.state(), health.reported("failure")
    alerts: list[_Alert | None] = []
    if error is not None and state.failing_since is not None:
        if reported is None and state.failures >= account.alert.after:
            alerts.append(_failing(name, account, state.failing_since, state.failures, error))
    elif error is None and reported is not None:
        alerts.append(_recovered(name, account, reported))
    for topic, grant in (("consent", job.grant), ("consent.to", job.destination_grant)):
        end = grant.imminent_expiry() if grant.options.provider else None
        if end is not None and health.reported(topic) != end:
            alerts.append(_expiring(name, topic, end))
    return alerts


def _deliver(job: Job, health: Health, alert: _Alert) -> None:
    """Deliver an alert exactly once if the destination recognises messages that it already has.

    For other destinations, the alert is recorded as sent before it is delivered.  Thus a crash can
    lose the alert but cannot duplicate it.
    """
    settings = job.options.alert
    recipient = settings.recipient or job.recipient
    options = replace(job.options, to=settings.to or job.options.to, recipient=recipient)
    previous = health.reported(alert.topic)
    with closing(replace(job, options=options).open_destination()) as destination:
        if not destination.is_repeatable:
            health.set_reported(alert.topic, alert.time)
        try:
            host = job.config.server.hostname
            put(destination, alert.identity, mail(host, recipient, alert.subject, alert.text))
        except (RestanteError, OSError):
            health.set_reported(alert.topic, previous)
            raise
    health.set_reported(alert.topic, alert.time)


# Texts.


def _failing(
    name: str, account: Account, since: float, failures: int, error: RestanteError | OSError
) -> _Alert:
    reason = quoted(printable(str(error)))
    return _Alert(
        "failure",
        since,
        f"{name} failure {since}",
        f"restante cannot collect {name}",
        f"""\
restante has collected no mail from the account {name} ({account.user}
at {_host(account)}) since {when(since)}.
{_failures(failures)}. The last error was:

{reason}

{_advice(name, account, error)}

No mail is lost. Collected messages are stored, and the others are still
on the server. You will get another message when the account works again.
""",
    )


def _advice(name: str, account: Account, error: RestanteError | OSError) -> str:
    match error:
        case ConsentNeeded():
            return f"You must sign in again. Run:\n\n    restante account auth {name}"
        case LoginFailed(retry=False) if account.oauth.provider:
            return (
                "The server refused the login. Sign in again, then test the account:\n\n"
                f"    restante account auth {name}\n    restante account test {name}"
            )
        case LoginFailed(retry=False):
            return (
                f"The server refused the login. Correct the password that the setting\n"
                f"account.{name}.password refers to, then test the account:\n\n"
                f"    restante account test {name}"
            )
        case LooksMoved():
            return (
                "If the provider has moved the mailbox to another server, run the command\n"
                "below. It retrieves all messages and stores those that you do not have:\n\n"
                f"    restante collect {name} --again dedupe"
            )
        case TLSUnavailable():
            return (
                "The server's certificate could not be verified, so no password was sent.\n"
                "If you have the certificate of the server's CA in a file, set\n"
                f"account.{name}.ca_file to the path of that file."
            )
        case ConfigurationError() | UnsafeArgument():
            return f"Correct the configuration, then run:\n\n    restante account test {name}"
    return (
        "restante tries again automatically. If the server and the network work,\n"
        f"test the account:\n\n    restante account test {name}"
    )


def _failures(number: int) -> str:
    return "1 session has failed" if number == 1 else f"{number} sessions in a row have failed"


def _recovered(name: str, account: Account, since: float) -> _Alert:
    return _Alert(
        "failure",
        None,
        f"{name} well {since}",
        f"restante collects {name} again",
        f"""\
restante collects mail from the account {name} ({account.user}
at {_host(account)}) again.
Collection had been failing since {when(since)}.
You do not have to do anything.
""",
    )


def _expiring(name: str, topic: str, end: float) -> _Alert:
    option = " --to" if topic == "consent.to" else ""
    return _Alert(
        topic,
        end,
        f"{name} {topic} {end}",
        f"restante: sign in for {name} before {time.strftime('%Y-%m-%d', time.localtime(end))}",
        f"""\
The OAuth 2 sign-in of the account {name} expires on
{when(end)}. Sign in again before that;
otherwise, restante can no longer collect mail:

    restante account auth {name}{option}
""",
    )


def _host(account: Account) -> str:
    """Return only the host name, because a URL may contain a password."""
    return urlsplit(account.url).hostname or ""
