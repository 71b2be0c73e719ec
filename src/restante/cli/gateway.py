"""``poll_on_login``: a maildrop that is filled from an account elsewhere when somebody logs in.

So a device that knows USER and PASS only reads a mailbox that takes nothing but OAuth 2.  What is
here is served whatever becomes of the poll: upstream in trouble is a warning, never an empty
maildrop.

Security: only who has proved who he is starts a poll, of his own accounts, with their own secrets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future
from contextlib import closing
from threading import Thread
from typing import TYPE_CHECKING

from ..config import Account, Configuration
from ..errors import RestanteError
from . import collect

if TYPE_CHECKING:
    from ..collect.collector import Outcome

_log = logging.getLogger("restante.gateway")


class Gateway:
    """Polls in threads of their own: they sync files, and the server must not wait for that."""

    def __init__(self, found: Configuration) -> None:
        self._found = found
        self._accounts: dict[str, list[str]] = {}
        self._running: dict[str, asyncio.Future[None]] = {}
        for name, account in found.account.items():
            kind, _, user = account.to.partition(":")
            if kind == "maildrop" and account.poll_on_login:
                self._accounts.setdefault(user, []).append(name)

    def __bool__(self) -> bool:
        return bool(self._accounts)

    async def poll(self, user: str) -> None:
        """All accounts of this user, side by side; what takes longer goes on by itself."""
        names = self._accounts.get(user, ())
        if not names:
            return
        waiting = [self._begin(name) for name in names]
        patience = max(self._found.account[name].poll_on_login for name in names)
        _, late = await asyncio.wait(waiting, timeout=patience)
        if late:
            _log.warning(
                "login did not wait", extra={"fields": {"user": user, "seconds": f"{patience:g}"}}
            )

    def _begin(self, name: str) -> asyncio.Future[None]:
        running = self._running.get(name)
        if running is None or running.done():
            done: Future[None] = Future()
            # When the server ends it is cut off; that is no worse than a crash.
            Thread(target=self._poll, args=(name, done), name=f"poll {name}", daemon=True).start()
            running = self._running[name] = asyncio.wrap_future(done)
        return running

    def _poll(self, name: str, done: Future[None]) -> None:
        account = self._found.account[name]
        try:
            outcome = asyncio.run(self._session(name, account))
        except (RestanteError, OSError) as error:
            fields = {"account": name, "reason": str(error)}
            _log.warning("upstream not polled", extra={"fields": fields})
        except Exception:
            _log.exception("upstream not polled", extra={"fields": {"account": name}})
        else:
            if outcome is not None:
                came = {"account": name, "stored": outcome.stored, "deleted": outcome.deleted}
                _log.info("upstream polled", extra={"fields": came})
        finally:
            done.set_result(None)

    async def _session(self, name: str, account: Account) -> Outcome | None:
        """None: too soon after the last one, or another process is at it."""
        from ..collect.collector import LoginTooSoon, Outcome
        from ..collect.ledger import AccountBusy

        def complain(text: str) -> None:
            fields = {"account": name, "reason": text}
            _log.warning("report failed", extra={"fields": fields})

        with closing(collect.open_ledger(self._found)) as ledger:
            if time.time() < ledger.last_begin(name) + account.every:
                return None
            try:
                outcome = Outcome()
                session = collect.session(self._found, name, account, ledger, outcome)
                await collect.noted(self._found, name, account, ledger, session, outcome, complain)
                return outcome
            except (AccountBusy, LoginTooSoon):
                return None
