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

_SHARE = 0.5  # maximum share of one core for checking passwords from networks with guesses
_SAVE_EVERY = 60.0  # seconds; a crash loses the guesses of one minute

_log = logging.getLogger("restante.guessing")


@contextmanager
def kept(config: Configuration) -> Iterator[Throttle]:
    """Load the throttle, and save it at the end.  Enter this before workers are forked."""
    with closing(throttle(config)) as loaded:
        yield loaded
        save(loaded, config)


def throttle(config: Configuration) -> Throttle:
    """Return a throttle with the state of the last save."""
    loaded = Throttle()
    configure(loaded, config)
    loaded.load(_path(config))
    return loaded


def configure(throttle: Throttle, config: Configuration) -> None:
    """Apply the settings that may change while the server runs."""
    throttle.delay = config.auth.failure_delay
    throttle.trusted = config.auth.trusted


def login_queue(backend: Verifier, throttle: Throttle, workers: int, slots: int) -> LoginQueue:
    return LoginQueue(backend, throttle.priority, slots=slots, share=_SHARE / workers)


def save(throttle: Throttle, config: Configuration) -> None:
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
