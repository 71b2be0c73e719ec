"""What keeps guessing slow: made from the configuration, and kept over a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..auth.chain import Verifier
from ..auth.login_queue import LoginQueue
from ..auth.throttle import Throttle
from ..config import Configuration

_SHARE = 0.5  # of one core, at most, for passwords from networks that guess
_SAVE_EVERY = 60.0  # seconds

_log = logging.getLogger("restante.guessing")


@contextmanager
def kept(configuration: Configuration) -> Iterator[Throttle]:
    """One that knows what it knew before, and is saved at the end.  Enter it before workers are
    forked."""
    with closing(throttle(configuration)) as made:
        yield made
        save(made, configuration)


def throttle(configuration: Configuration) -> Throttle:
    """With what it knew when it was saved."""
    made = Throttle()
    configure(made, configuration)
    made.load(_path(configuration))
    return made


def configure(throttle: Throttle, configuration: Configuration) -> None:
    """What may change while it serves."""
    throttle.delay = configuration.auth.failure_delay
    throttle.trusted = configuration.auth.trusted


def login_queue(backend: Verifier, throttle: Throttle, workers: int, slots: int) -> LoginQueue:
    return LoginQueue(backend, throttle.priority, slots=slots, share=_SHARE / workers)


def save(throttle: Throttle, configuration: Configuration) -> None:
    path = _path(configuration)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        throttle.save(path)
    except OSError as error:
        _log.warning("guesses not saved", extra={"fields": {"reason": error.strerror}})


async def save_for_ever(throttle: Throttle, configuration: Configuration) -> None:
    """Now and then."""
    while True:
        await asyncio.sleep(_SAVE_EVERY)
        await asyncio.to_thread(save, throttle, configuration)


def _path(configuration: Configuration) -> Path:
    return configuration.state / "guesses"
