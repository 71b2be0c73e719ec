"""Following the log: filters, readers that are slow or stop, events of threads."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from restante import log
from restante.app.control import Control
from restante.app.events import MAX_OCTETS, MAX_WAITING, EventQueue, SupervisorEvents
from restante.app.live import Live, Site
from restante.app.monitoring import Monitor
from restante.app.reloads import Reloads
from restante.config import Log

from ..server.test_control import run, serving
from ..server.test_every_listener import settled
from ..support import until

LOGGER = logging.getLogger("restante.test")


@pytest.fixture(autouse=True)
def _log(loggers: None, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    log.set_up(Log(level="debug", format="journal"))
    yield
    log._followers.clear()


def event(name: str, level: int = logging.INFO, **fields: object) -> None:
    log.write(LOGGER, level, name, fields)


def rows(octets: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in octets.splitlines()]


def names(octets: bytes) -> list[object]:
    return [row.get("event", row.get("skipped")) for row in rows(octets)]


def test_a_queue_has_the_events_of_its_user_and_level() -> None:
    async def main() -> None:
        every, ann, grave = EventQueue(), EventQueue(user="ann"), EventQueue(logging.WARNING)
        with log.following(every.put), log.following(ann.put), log.following(grave.put):
            event("login ok", user="ann")
            event("login refused", logging.WARNING, user="bob")
            LOGGER.error("accept paused", extra={"fields": {"reason": "full"}})
            LOGGER.debug("no fields")
        event("later", user="ann")
        await settled()
        assert names(await every.take()) == [
            *("login.ok", "login.refused", "accept.paused", "no.fields"),
        ]
        assert names(await ann.take()) == ["login.ok"]
        assert names(await grave.take()) == ["login.refused", "accept.paused"]
        assert not every._lines
        assert not ann._lines

    run(main())


@pytest.mark.parametrize("count", [1, MAX_WAITING, MAX_WAITING + 1, 3 * MAX_WAITING])
def test_a_full_queue_counts_skipped_events(count: int) -> None:
    async def main() -> None:
        queue = EventQueue()
        with log.following(queue.put):
            for number in range(count):
                if number % 2:
                    event("here", number=number)
                else:
                    queue.put_line(json.dumps({"event": "there", "number": number}).encode())
        found = rows(await queue.take())
        kept, skipped = min(count, MAX_WAITING), max(0, count - MAX_WAITING)
        assert [row["number"] for row in found[:kept]] == list(range(kept))
        assert found[kept:] == ([{"skipped": skipped}] if skipped else [])
        queue.put_line(b"{}")
        assert await queue.take() == b"{}\n", "skipped events are counted once"

    run(main())


def test_queue_of_long_events_is_full_earlier() -> None:
    """Clients of the server choose the length of user names and other fields."""

    async def main() -> None:
        queue = EventQueue()
        with log.following(queue.put):
            for _ in range(MAX_WAITING):
                event("login refused", user="\u00e9" * 2000)
                queue.put_line(b"x" * 12_000)
        octets = await queue.take()
        assert MAX_OCTETS <= len(octets) < MAX_OCTETS + 20_000
        *lines, last = octets.splitlines()
        assert json.loads(last) == {"skipped": 2 * MAX_WAITING - len(lines)}
        queue.put_line(b"{}")
        assert await queue.take() == b"{}\n"

    run(main())


@pytest.mark.parametrize("count", [0, 1, 64, 65, 200])
def test_last_events_of_the_supervisor_can_be_read_later(count: int) -> None:
    supervisor = SupervisorEvents()
    with log.following(supervisor.put):
        for number in range(count):
            event("worker ended", logging.ERROR, worker=number)
    assert supervisor.count == count
    for since in (0, 1, max(0, count - 1), count):
        numbers = [json.loads(line)["worker"] for line in supervisor.since(since)]
        # The oldest slot may be about to be overwritten.
        assert numbers == list(range(max(since, count - 63, 0), count))


def test_event_that_is_overwritten_while_it_is_read_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = SupervisorEvents()
    with log.following(supervisor.put):
        for number in range(60):
            event("worker ended", worker=number)
        memory, reads = supervisor._memory, 0

        class Memory:
            """The supervisor writes 20 events during the 10th read."""

            def __getitem__(self, part: slice) -> bytes:
                nonlocal reads
                reads += 1
                if reads == 20:
                    supervisor._memory = memory
                    for number in range(60, 80):
                        event("worker ended", worker=number)
                return bytes(memory[part])

        monkeypatch.setattr(supervisor, "_memory", Memory())
        numbers = [json.loads(line)["worker"] for line in supervisor.since(0)]
    assert numbers == [*range(9), *range(17, 60)]


def test_long_event_of_the_supervisor_fits() -> None:
    supervisor = SupervisorEvents()
    with log.following(supervisor.put):
        event("reload failed", reason="\u00e9" * 2000)
        event("worker started", worker=1)
    lines = supervisor.since(0)
    assert [json.loads(line)["event"] for line in lines] == ["reload.failed", "worker.started"]


def test_supervisor_events_have_the_level_and_user_of_the_queue() -> None:
    async def main() -> None:
        supervisor = SupervisorEvents()
        with log.following(supervisor.put):
            event("worker ended", logging.ERROR)
            event("worker started")
        for queue, expected in (
            (EventQueue(), ["worker.ended", "worker.started"]),
            (EventQueue(logging.WARNING), ["worker.ended"]),
            (EventQueue(user="ann"), []),
        ):
            queue.put_lines(supervisor.since(0))
            queue.put_line(b'{"event": "last"}')
            assert names(await queue.take()) == [*expected, "last"]

    run(main())


def test_events_of_threads_arrive() -> None:
    async def main() -> None:
        # Then a thread that uses the loop's functions gets an exception.
        asyncio.get_running_loop().set_debug(True)
        queue = EventQueue()
        found: list[object] = []

        async def collect() -> None:
            while len(found) < 50:
                found.extend(names(await queue.take()))

        with log.following(queue.put):
            collecting = asyncio.create_task(collect())
            await settled()
            threads = [threading.Thread(target=event, args=(f"t {n}",)) for n in range(50)]
            for each in threads:
                each.start()
            async with asyncio.timeout(10):
                await collecting
            for each in threads:
                each.join()
        assert sorted(map(str, found)) == sorted(f"t.{n}" for n in range(50))

    run(main())


def test_a_long_traceback_is_left_out() -> None:
    async def main() -> None:
        queue = EventQueue()
        with log.following(queue.put):
            try:
                raise ValueError("x" * 100_000)
            except ValueError:
                LOGGER.exception("bug")
        octets = await queue.take()
        assert len(octets) < 1000
        assert names(octets) == ["bug"]

    run(main())


def control(folder: Path) -> Control:
    unused: Any = None
    live = Live(0, Site(1, Reloads(1)), folder, *[unused] * 4)
    return Control(live, Monitor(live, dict))


def test_stopped_reader_is_cheap_and_gets_the_number_of_skipped_events(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as door:
            door.service.answer = control(tmp_path).answer
            reader, writer = await door.connect()
            writer.write(b"GET /events?user=ann HTTP/1.0\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await until(lambda: bool(log._followers))
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            text = "x" * 400
            for number in range(6000):
                event("login ok", user="ann", number=number, text=text)
                if number % 50 == 0:
                    await settled()
            assert door.held < 2 * 65_536 + MAX_WAITING * 600
            queue = log._followers[0].__self__  # type: ignore[attr-defined]
            assert len(queue._lines) == MAX_WAITING
            assert queue._skipped > 0
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            found: list[dict[str, Any]] = []
            async with asyncio.timeout(10):
                while not found or "skipped" not in found[-1]:
                    found.append(json.loads(await reader.readline()))
            assert len(found) - 1 + found[-1]["skipped"] == 6000
            assert [row["number"] for row in found[:-1]] == list(range(len(found) - 1))
            event("login ok", user="ann", number=6000)
            assert json.loads(await reader.readline())["number"] == 6000
            writer.close()
            await until(lambda: not log._followers)

    run(main())


def test_an_unknown_level_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as door:
            door.service.answer = control(tmp_path).answer
            heard = await door.ask(b"GET /events?level=loud HTTP/1.1\r\nHost: x\r\n\r\n")
            assert heard.startswith(b"HTTP/1.1 400")
            assert not log._followers

    run(main())
