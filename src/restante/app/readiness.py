"""Whether a worker can serve: for ``/readyz`` and ``restante status``.

A check of the disk or of a back end may take long or hang.  Its result is used for ``MAX_AGE``
seconds, however many clients ask, and a check that hangs is not started again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from ..errors import RestanteError
from ..passdb import Accounts
from ..threads import to_thread
from . import stores
from .disk import write_test
from .live import Live
from .upkeep import format_time

MAX_AGE = 10.0  # seconds; health checks often come every second, and each check writes to the disk
_PATIENCE = 1.0  # seconds after which a check counts as failed; less than ``siblings.TIMEOUT``
_BACK_END_DEADLINE = 5.0  # seconds for all back ends
# A name that no user has: whether a back end knows it does not matter, but it must answer.
_UNKNOWN_USER = "restante-readyz"


class _Check:
    """A check that is done at most once in ``MAX_AGE`` seconds."""

    def __init__(self, name: str, check: Callable[[], Awaitable[str]]) -> None:
        """``check`` returns what is wrong, or an empty text.  It should not raise."""
        self._name, self._check = name, check
        self._running: asyncio.Future[str] | None = None
        self._result = ""
        self._valid_until = float("-inf")

    async def result(self) -> str:
        """Return what is wrong, or an empty text."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._valid_until:
            return self._result
        if self._running is None:
            self._running = asyncio.ensure_future(self._check())
            self._running.add_done_callback(self._ended)
        await asyncio.wait([self._running], timeout=_PATIENCE)
        if self._running is not None and not self._running.done():
            return f"{self._name}: no answer"
        return self._result

    def _ended(self, check: asyncio.Future[str]) -> None:
        self._running = None
        self._valid_until = check.get_loop().time() + MAX_AGE
        error = asyncio.CancelledError() if check.cancelled() else check.exception()
        self._result = check.result() if error is None else f"{self._name}: {error!r}"


class Readiness:
    """Finds the reasons why a worker cannot serve."""

    def __init__(self, live: Live, back_ends: Callable[[], Mapping[str, Accounts]]) -> None:
        """``back_ends`` returns the identity back ends by name."""
        self._live = live
        self._back_ends = back_ends
        self._checks = (
            _Check("mail storage", self._check_store),
            _Check("identity back ends", self._check_back_ends),
        )

    async def reasons(self) -> list[str]:
        """Return the reasons why this worker is not ready; empty if it is ready."""
        if not self._live.services:
            return ["the server is starting"]
        reasons = ["the server is stopping"] if self._live.is_stopping else []
        if (end := self._live.certificate_end()) <= time.time():
            reasons.append(f"the certificate expired on {format_time(end)}")
        results = await asyncio.gather(*(check.result() for check in self._checks))
        return [*reasons, *filter(None, results)]

    async def _check_store(self) -> str:
        base = stores.base(self._live.config())
        if base is None:
            return ""
        try:
            await to_thread(write_test, base, ".restante-ready")
        except OSError as error:
            return f"mail storage: {error.strerror}"
        return ""

    async def _check_back_ends(self) -> str:
        back_ends = self._back_ends()
        if any(await asyncio.gather(*map(_answers, back_ends.values()))):
            return ""
        # Why a back end fails is not shown to clients of ``metrics.listen``.
        return f"no identity back end answers: {', '.join(back_ends)}"


async def _answers(back_end: Accounts) -> bool:
    try:
        async with asyncio.timeout(_BACK_END_DEADLINE):
            await back_end.account(_UNKNOWN_USER)
    except (RestanteError, TimeoutError):
        return False
    return True
