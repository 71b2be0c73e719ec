"""A disk on which writes block."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from restante import config
from restante.app.server import running
from restante.auth.users import Users
from restante.store.maildir import MaildirStore

from ..support import Client, Run, once

SLOW = 20  # deliveries; more than the threads of an event loop on a small machine


def test_slow_disk_delays_only_its_own_users(
    home: Path, monkeypatch: pytest.MonkeyPatch, run: Run[None]
) -> None:
    """A new maildrop is opened while many deliveries to others are blocked."""
    real, waiting, may_end = os.fsync, threading.Semaphore(0), threading.Event()

    def fsync(file: int) -> None:
        if "/slow" in os.readlink(f"/proc/self/fd/{file}"):
            waiting.release()
            assert may_end.wait(60)
        real(file)

    (home / "restante.toml").write_text(
        '[server]\nlisten = ["pop3://127.0.0.1:0"]\n'
        '[auth]\nallow_plaintext_from = ["127.0.0.0/8"]\n'
    )

    async def main() -> None:
        (home / "mail").mkdir()
        users, store = Users(home / "users.db"), MaildirStore(f"{home}/mail/%u")
        users.add("ann", "tan staaf")
        await store.deliver("ann", once(b"hello\r\n"))
        async with running(config.load(home / "restante.toml"), users, store) as server:
            monkeypatch.setattr(os, "fsync", fsync)
            slow: list[asyncio.Task[Any]] = [
                asyncio.create_task(store.deliver(f"slow{at}", once(b"x\r\n")))
                for at in range(SLOW)
            ]
            try:
                async with asyncio.timeout(30):
                    while not waiting.acquire(blocking=False):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    host, _, port = server.addresses["pop3"].rpartition(":")
                    client = Client(*await asyncio.open_connection(host, int(port)))
                    await client.line()
                    assert (await client.ask(b"USER ann")).startswith(b"+OK")
                    assert (await client.ask(b"PASS tan staaf")).startswith(b"+OK")
                    assert (await client.ask(b"RETR 1")).startswith(b"+OK 7")
                    client.writer.close()
            finally:
                may_end.set()
                await asyncio.gather(*slow)

    run(main())
