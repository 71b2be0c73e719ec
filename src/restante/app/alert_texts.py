"""The texts of alerts about the server: what happened, since when, and the next command.

Security: the lines of episodes are escaped already, and nothing else in a text is untrusted.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..words import counted
from .episodes import CONDITIONS, Notice
from .notices import quoted, when


@dataclass(frozen=True, slots=True)
class _Texts:
    begin: str
    """The subject when the episode begins."""
    over: str
    """The subject when the episode is over."""
    advice: str


_LOG = '    restante log --since "-1 hour"'
_TEXTS = {
    "disk": _Texts(
        "the disk is nearly full",
        "the disk has enough free space again",
        """\
No mail is lost when the disk is full: senders are asked to try again
later. To see what uses the space, run:

    df -h; df -i
    restante maildrop list""",
    ),
    "certificate": _Texts(
        "the certificate expires soon",
        "the certificate was renewed",
        """\
Clients refuse to connect when the certificate has expired. Renew it,
then run:

    restante reload
    restante status""",
    ),
    "expired": _Texts(
        "the certificate has expired",
        "the certificate is valid again",
        """\
Clients refuse to connect. Renew the certificate, then run:

    restante reload
    restante status""",
    ),
    "deletions": _Texts(
        "a mass deletion was stopped",
        "no more mass deletions were stopped",
        f"""\
No message was removed. The cause may be a new device with wrong
settings, a stolen password, or a wrong clock. Look at the log:

{_LOG}

To end the sessions of a user and to set a new password, run:

    restante user disable USER
    restante user passwd USER""",
    ),
    "store": _Texts(
        "the mail storage has errors",
        "no more errors of the mail storage",
        f"""\
Clients and senders get a temporary error and try again later. Check
the disk and the log:

    df -h; dmesg | tail
{_LOG}""",
    ),
    "worker": _Texts(
        "a worker process ended unexpectedly",
        "no more worker processes ended",
        f"""\
The connections of this process were dropped. The process is started
again automatically. To see the reason, run:

    restante status
{_LOG}""",
    ),
}


def subject(host: str, notice: Notice) -> str:
    texts = _TEXTS[notice.episode.kind]
    return f"restante on {host}: {texts.over if notice.is_over else texts.begin}"


def text(notice: Notice) -> str:
    """Return the text of an alert, with lines that fit into 80 columns."""
    episode, texts = notice.episode, _TEXTS[notice.episode.kind]
    if notice.is_over:
        until = when(episode.last if episode.ended is None else episode.ended)
        return (
            f"It began at {when(episode.since)} and was over at {until}.\n"
            f"{_total(notice)}You do not have to do anything.\n"
        )
    return f"Since {when(episode.since)}:\n\n{_last(notice)}\n\n{texts.advice}\n\n{_end(notice)}\n"


def _total(notice: Notice) -> str:
    episode = notice.episode
    if episode.kind in CONDITIONS:
        return ""
    events = counted(episode.count, "event")
    return f"In all, {events} occurred. The last one was:\n\n{quoted(episode.line)}\n\n"


def _last(notice: Notice) -> str:
    episode = notice.episode
    line = quoted(episode.line)
    return line if episode.count == 1 else f"{line}\n\n(the last of {episode.count} events so far)"


def _end(notice: Notice) -> str:
    if notice.episode.kind in CONDITIONS:
        return "You will get another alert when this is over."
    return "Further events cause no alert. You will get another one when they are over."
