"""Build the throttle for failed logins from the configuration, and save its state."""

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

_CPU_SHARE = 0.5  # maximum share of one core for checking passwords from networks with guesses
_SAVE_EVERY = 60.0  # seconds between two saves; a crash loses the guesses since the last save

_log = logging.getLogger("restante.guessing")


@contextmanager
def saved_throttle(config: Configuration) -> Iterator[Throttle]:
    """Load the throttle, and save its state when the context ends.

    The context must be entered before workers are forked, so that they share the throttle.
    """
    with closing(throttle(config)) as loaded:
        yield loaded
        save(loaded, config)


def throttle(config: Configuration) -> Throttle:
    """Return a throttle with the state that was saved last."""
    loaded = Throttle()
    configure(loaded, config)
    loaded.load(_path(config))
    return loaded


def configure(throttle: Throttle, config: Configuration) -> None:
    """Apply the settings that may change while the server runs."""
    throttle.delay = config.auth.failure_delay
    throttle.trusted = config.auth.trusted


def login_queue(backend: Verifier, throttle: Throttle, workers: int, slots: int) -> LoginQueue:
    """Return a queue in front of a back end, for one of several workers."""
    return LoginQueue(backend, throttle.priority, slots=slots, share=_CPU_SHARE / workers)


def save(throttle: Throttle, config: Configuration) -> None:
    """Save the throttle's state; an error is only logged."""
    path = _path(config)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        throttle.save(path)
    except OSError as error:
        _log.warning("guesses not saved", extra={"fields": {"reason": error.strerror}})


async def save_for_ever(throttle: Throttle, config: Configuration) -> None:
    """Save the throttle regularly, until cancelled."""
    while True:
        await asyncio.sleep(_SAVE_EVERY)
        await asyncio.to_thread(save, throttle, config)


def _path(config: Configuration) -> Path:
    return config.state / "guesses"
