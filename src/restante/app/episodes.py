"""Decide which alerts of the server are due: one when a series of errors begins, one when it ends.

The state is stored in a file of fixed size, which is overwritten in place.  It can therefore be
saved even if the disk is full.  If a crash damages it, alerts may be sent a second time.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..clock import UNKNOWN
from .incidents import KINDS

NOTHING, BEGIN, OVER = range(3)
"""What a channel has sent about an episode."""

CONDITIONS = ("disk", "certificate", "expired")
"""Kinds of episodes that are states rather than series of events."""

_SIZE = 16_384  # octets of the file; six episodes with lines of 400 octets fit
_MAX_LINE = 1000  # characters of a line that is read from the file


@dataclass(frozen=True, slots=True)
class Episode:
    """A series of errors of one kind."""

    kind: str
    since: float
    """Time of the first error, in seconds since the epoch, as are the other times."""
    last: float
    """Time of the last error."""
    count: int
    """Number of errors."""
    line: str
    """Describes the last error; untrusted text in it is escaped."""
    ended: float | None = None
    """When the episode ended; None while it lasts."""
    sent: dict[str, int] = field(default_factory=dict)
    """The last alert that was sent, by channel: ``BEGIN`` or ``OVER``."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An alert that is due."""

    episode: Episode
    is_over: bool

    @property
    def identity(self) -> str:
        """Identifies this alert at its destination."""
        state = "over" if self.is_over else "begin"
        return f"alert {self.episode.kind} {self.episode.since!r} {state}"


class Episodes:
    """The episodes of a server that last, or about which alerts are due."""

    def __init__(self, episodes: Iterable[Episode] = ()) -> None:
        self._episodes = {each.kind: each for each in episodes}

    def add(self, kind: str, line: str, at: float, *, count: int = 1) -> None:
        """Record ``count`` errors, the last of which occurred at ``at``."""
        episode = self._episodes.get(kind)
        if episode is None:
            episode = Episode(kind, at, at, 0, line)
        elif episode.ended is not None:
            episode = _reopened(episode, at)
        self._episodes[kind] = replace(
            episode, last=at, count=episode.count + count, line=line, ended=None
        )

    def hold(self, kind: str, line: str, at: float) -> None:
        """Record that a condition, such as a full disk, exists."""
        self.add(kind, line, at, count=0 if self.lasts(kind) else 1)

    def lasts(self, kind: str) -> bool:
        """Return whether there is an episode of this kind that has not ended."""
        episode = self._episodes.get(kind)
        return episode is not None and episode.ended is None

    def end(self, kind: str, now: float, *, after: float = 0.0) -> None:
        """End the episode of this kind if the last error occurred ``after`` seconds ago."""
        episode = self._episodes.get(kind)
        if episode is None or episode.ended is not None:
            return
        if now < episode.last:  # the clock was set back
            self._episodes[kind] = replace(episode, last=now)
        elif now - episode.last >= after:
            self._episodes[kind] = replace(episode, ended=now)

    def drop(self, kind: str) -> None:
        """Forget an episode, about which no more alerts are sent."""
        self._episodes.pop(kind, None)

    def due(self, channel: str) -> Notice | None:
        """Return the oldest alert that this channel has not sent."""
        for episode in sorted(self._episodes.values(), key=lambda each: each.since):
            sent = episode.sent.get(channel, NOTHING)
            if sent == NOTHING:
                return Notice(episode, is_over=False)
            if sent == BEGIN and episode.ended is not None:
                return Notice(episode, is_over=True)
        return None

    def record(self, notice: Notice, channel: str, channels: Iterable[str]) -> None:
        """Record that a channel has sent an alert.

        An episode that has ended is forgotten when all ``channels`` have sent their alerts.
        """
        episode = self._episodes.get(notice.episode.kind)
        if episode is None or episode.since != notice.episode.since:
            return
        episode = replace(
            episode, sent={**episode.sent, channel: OVER if notice.is_over else BEGIN}
        )
        if notice.is_over and episode.ended is None:  # another error occurred in the meantime
            episode = _reopened(episode, episode.last)
        self._episodes[episode.kind] = episode
        if episode.ended is not None and all(episode.sent.get(each) == OVER for each in channels):
            self.drop(episode.kind)

    def summary(self) -> object:
        """Return a value that changes when the state must be saved immediately."""
        episodes = self._episodes.values()
        return [(each.kind, each.since, each.ended, dict(each.sent)) for each in episodes]

    def dump(self) -> bytes:
        """Return the content of the file."""
        rows = [asdict(each) for each in self._episodes.values()]
        return json.dumps({"schema": "restante/alerts/1", "episodes": rows}).encode()

    @classmethod
    def load(cls, octets: bytes) -> Episodes:
        """Return the episodes in a file; a damaged file has no episodes."""
        try:
            rows = json.loads(octets)["episodes"]
            kinds = (*CONDITIONS, *KINDS)  # a newer version may have saved others
            return cls([_episode(row) for row in rows if row["kind"] in kinds])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return cls()


def _reopened(episode: Episode, at: float) -> Episode:
    """Return an ended episode that continues because of another error.

    Channels that have reported its end report a new beginning.
    """
    if OVER not in episode.sent.values():
        return episode
    sent = {channel: state for channel, state in episode.sent.items() if state != OVER}
    return replace(episode, since=at, count=0, sent=sent)


def _episode(row: dict[str, Any]) -> Episode:
    """Return an episode from a file.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the row is invalid.
    """
    ended = row["ended"]
    return Episode(
        str(row["kind"]),
        _time(row["since"]),
        _time(row["last"]),
        int(row["count"]),
        str(row["line"])[:_MAX_LINE],
        None if ended is None else _time(ended),
        {str(channel): int(state) for channel, state in row["sent"].items()},
    )


def _time(value: Any) -> float:
    if not 0 <= float(value) < UNKNOWN:
        raise ValueError("not a time")
    return float(value)


def read(path: Path) -> Episodes:
    """Read the file; if it cannot be read, it has no episodes.  Blocking."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return Episodes.load(os.read(file, _SIZE))
        finally:
            os.close(file)
    return Episodes()


def write(path: Path, octets: bytes) -> None:
    """Save the content of the file durably.  Blocking.

    Raises:
        OSError: it was not saved.
    """
    if len(octets) > _SIZE:
        raise OSError(f"{path}: too many alerts")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.pwrite(file, octets.ljust(_SIZE), 0) < _SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file)
    finally:
        os.close(file)
