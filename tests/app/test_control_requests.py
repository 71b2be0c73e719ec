"""Requests to a worker's control socket, with connections made by the test."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from restante.app.control import Control
from restante.app.live import Live, Site
from restante.app.monitoring import Monitor
from restante.app.reloads import Reloads
from restante.config import Configuration
from restante.server.connection import BaseService
from restante.server.control import Peer
from restante.server.http import Request
from restante.server.http_connection import Answer

OWN, OTHER = os.geteuid(), 12_345


@dataclass(eq=False)
class Connection:
    """A session that the operator can list and end."""

    id: str
    user: str = "ann"
    is_updating: bool = False
    ended: int = 0
    protocol: str = "pop3"

    def describe(self) -> dict[str, Any]:
        return {"id": self.id, "user": self.user, "seconds": 1}

    def end(self) -> bool:
        self.ended += not self.is_updating
        return not self.is_updating


def worker(folder: Path, *connections: Connection, pid: int | None = None) -> Control:
    site = Site(1, Reloads(1), os.getpid() if pid is None else pid)
    live = Live(0, site, folder, Configuration, lambda: 4e9, bool, list)
    service = BaseService()
    service.connections.update(connections)  # type: ignore[arg-type]
    live.services = (service,)
    return Control(live, Monitor(live, dict))


def requested(
    control: Control, method: str, path: str, query: Mapping[str, str], peer: int = OWN
) -> tuple[int, bytes]:
    """Return the status code and the content of the response to an operator's request."""

    async def main() -> tuple[int, bytes]:
        answer = await control.answer(Request(method, path, query), Peer(peer, frozenset()))
        return answer.status, await content(answer)

    return asyncio.run(main())


async def content(answer: Answer) -> bytes:
    if isinstance(answer.content, bytes):
        return answer.content
    return b"".join([piece async for piece in answer.content])


def test_sessions_are_ended_by_id_or_by_user(tmp_path: Path) -> None:
    connections = [
        Connection("aa"),
        Connection("bb"),
        Connection("cc", is_updating=True),
        Connection("dd", user="bob"),
        Connection("ee", user=""),
    ]
    control = worker(tmp_path, *connections)
    for path, query in (
        ("/sessions", {}),
        ("/sessions/", {}),
        ("/sessions", {"uid": "0", "here": "1"}),
        ("/sessions/aa/bb", {}),
        ("/sessions/AA", {}),
    ):
        status, _ = requested(control, "DELETE", path, query)
        assert status in (400, 404)
    assert not any(each.ended for each in connections)
    for path, query, ended, finishing in (
        ("/sessions/ff", {}, [], []),
        ("/sessions/aa", {}, ["aa"], []),
        ("/sessions/cc", {}, [], ["cc"]),
        ("/sessions/dd", {"user": "ann"}, ["dd"], []),
        ("/sessions", {"user": "carol"}, [], []),
        ("/sessions", {"user": "ann"}, ["aa", "bb"], ["cc"]),
    ):
        status, octets = requested(control, "DELETE", path, query)
        result = json.loads(octets)
        assert (status, sorted(result["ended"]), result["finishing"]) == (200, ended, finishing)
    assert [each.ended for each in connections] == [2, 1, 0, 1, 0]


def test_session_that_ends_during_a_list_is_left_out(tmp_path: Path) -> None:
    connections = [Connection(f"{number:x}") for number in range(1000)]
    control = worker(tmp_path, *connections)

    async def main() -> None:
        request = Request("GET", "/sessions", {})
        answer = await control.answer(request, Peer(OWN, frozenset()))
        assert not isinstance(answer.content, bytes)
        first = {json.loads(row)["id"] for row in (await anext(answer.content)).splitlines()}
        [service] = control._live.services
        for each in list(service.connections):
            if isinstance(each, Connection) and each.id not in first and int(each.id, 16) % 2:
                service.discard(each)
        rest = b"".join([piece async for piece in answer.content])
        rows = [json.loads(row) for row in rest.splitlines()]
        left = {each.id for each in service.connections if each.id not in first}
        assert {row["id"] for row in rows[:-1]} == left

    asyncio.run(main())


@pytest.mark.parametrize(
    ("peer", "query", "logged"),
    [
        (OWN, {}, str(OWN)),
        (OWN, {"uid": "77"}, str(OWN)),  # only another worker reports the operator's uid
        (OTHER, {"uid": "77", "here": "1"}, str(OTHER)),
        (OWN, {"uid": "77", "here": "1"}, "77"),
    ],
)
def test_log_names_the_operator_who_ended_a_session(
    peer: int,
    query: dict[str, str],
    logged: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    control = worker(tmp_path, Connection("aa"))
    with caplog.at_level(logging.INFO, "restante.control"):
        requested(control, "DELETE", "/sessions/aa", query, peer)
    [record] = caplog.records
    assert record.getMessage() == "control"
    assert getattr(record, "fields")["uid"] == logged  # noqa: B009


def test_other_work_gets_turns_while_sessions_are_listed_and_ended(tmp_path: Path) -> None:
    """Also if no session is of the user, so that nothing is written."""
    connections = [Connection(f"{number:x}") for number in range(5000)]
    control = worker(tmp_path, *connections)

    async def turns(method: str, **query: str) -> int:
        """Return the number of turns of the event loop until the response is complete."""
        count, task = 0, asyncio.create_task(whole(method, query))
        while not task.done():
            count += 1
            await asyncio.sleep(0)
        assert task.result() == 200
        return count

    async def whole(method: str, query: dict[str, str]) -> int:
        request = Request(method, "/sessions", query)
        answer = await control.answer(request, Peer(OWN, frozenset()))
        await content(answer)
        return answer.status

    for method, query in (
        ("GET", {}),
        ("GET", {"user": "bob"}),
        ("DELETE", {"user": "bob"}),
        ("DELETE", {"user": "ann"}),
    ):
        assert asyncio.run(turns(method, **query)) >= 50
    assert all(each.ended for each in connections)


def test_reload_never_signals_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the supervisor's death, its number may belong to any process."""
    signalled: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: signalled.append(pid))
    status, _ = requested(worker(tmp_path, pid=os.getpid() + 1), "POST", "/reload", {})
    assert (status, signalled) == (503, [])
