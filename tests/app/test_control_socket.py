"""A control socket that is taken at startup, or whose file is removed while the server runs."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from restante import log
from restante.app import control_socket
from restante.app.asking import ask
from restante.app.live import Live, Site
from restante.app.monitoring import Monitor
from restante.app.reloads import Reloads
from restante.config import Configuration, Log

from ..server.test_control import OTHER, needs_root, run
from ..server.test_every_listener import jump, settled
from ..support import until


@asynccontextmanager
async def serving(folder: Path, config: Configuration | None = None) -> AsyncIterator[None]:
    used = config or Configuration()
    live = Live(0, Site(1, Reloads(1)), folder, lambda: used, lambda: 4e9, bool, list)
    async with control_socket.serving(live, Monitor(live, dict)):
        await settled()
        yield


async def answers(folder: Path) -> bool:
    def status() -> dict[str, Any]:
        return ask(folder / "control", "GET", "/status?here=1").json()

    return "pid" in await asyncio.to_thread(status)


def test_socket_that_is_taken_is_opened_later(
    tmp_path: Path, loggers: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """The workers of a killed server use it until they have ended their sessions."""
    log.set_up(Log(format="journal"))
    (tmp_path / "control").mkdir()
    path = tmp_path / "control" / "0.sock"

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
            async with serving(tmp_path):
                for _ in range(3):
                    await jump(6)
                assert path.exists()
                other.close()
                await jump(6)
                assert await answers(tmp_path)
                assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert not path.exists()

    run(main())
    events = [line.split(":")[0] for line in capfd.readouterr().err.splitlines()]
    assert [each for each in events if "available" in each] == [
        "control unavailable",
        "control available",
    ]


@pytest.mark.parametrize("is_with_folder", [False, True])
def test_socket_whose_file_is_removed_is_opened_again(tmp_path: Path, is_with_folder: bool) -> None:
    path = tmp_path / "control" / "0.sock"

    async def main() -> None:
        async with serving(tmp_path):
            assert await answers(tmp_path)
            path.unlink()
            if is_with_folder:
                path.parent.rmdir()
            await jump(6)
            await until(path.exists)
            assert await answers(tmp_path)
        assert not path.exists()

    run(main())


def test_file_that_replaced_the_socket_is_left_in_place(tmp_path: Path) -> None:
    path = tmp_path / "control" / "0.sock"

    async def main() -> None:
        async with serving(tmp_path):
            path.unlink()
            path.write_text("a file")
            await jump(6)
            await jump(6)
        assert path.read_text() == "a file"

    run(main())


def test_mode_of_a_socket_does_not_depend_on_the_umask_of_the_process(tmp_path: Path) -> None:
    """Nor is the umask changed, because other threads may create a maildrop at the same time."""
    calls: list[int] = []

    async def main() -> None:
        async with serving(tmp_path):
            path = tmp_path / "control" / "0.sock"
            assert stat.S_IMODE(path.stat().st_mode) == 0o660

    for mask in (0, 0o077):
        before = os.umask(mask)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "umask", calls.append)
                run(main())
        finally:
            os.umask(before)
    assert calls == []


def test_a_worker_has_a_limited_number_of_control_connections(tmp_path: Path) -> None:
    """The oldest that are not protected are closed, so the operator can always connect."""

    async def main() -> None:
        async with serving(tmp_path):
            clients = []
            for _ in range(40):
                path = str(tmp_path / "control" / "0.sock")
                clients.append(await asyncio.open_unix_connection(path))
                await settled()
            closed = [await ended(reader) for reader, _ in clients]
            # The first 16 are protected, because the test runs as an operator.
            assert closed == 16 * [False] + 8 * [True] + 16 * [False]
            assert await answers(tmp_path)
            for _, writer in clients:
                writer.close()

    async def ended(reader: asyncio.StreamReader) -> bool:
        for _ in range(3):
            await settled()
        return reader.at_eof() or reader.exception() is not None

    run(main())


@pytest.mark.parametrize("kind", ["link", "file", pytest.param("other", marks=needs_root)])
def test_the_directory_of_another_user_is_not_used(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, elsewhere = tmp_path / "control", tmp_path / "elsewhere"
    elsewhere.mkdir(0o711)
    if kind == "link":
        folder.symlink_to("elsewhere")
    elif kind == "file":
        folder.write_text("a file")
    else:
        folder.mkdir(0o711)
        os.chown(folder, OTHER, OTHER)
    before = folder.stat()

    async def main() -> None:
        async with serving(tmp_path):
            pass

    run(main())
    assert [each.getMessage() for each in caplog.records] == ["control unavailable"]
    assert list(elsewhere.iterdir()) == []
    assert (folder.stat().st_mode, folder.stat().st_uid) == (before.st_mode, before.st_uid)


@pytest.mark.parametrize(("is_shared", "mode"), [(True, 0o750), (False, 0o700)])
def test_group_may_enter_the_runtime_directory_only(
    is_shared: bool, mode: int, tmp_path: Path
) -> None:
    """A directory that an earlier version or a mistake left open is closed."""
    folder = tmp_path / "control"
    folder.mkdir()
    folder.chmod(0o777)

    async def main() -> None:
        state = tmp_path / "elsewhere" if is_shared else tmp_path
        async with serving(tmp_path, Configuration(state=state)):
            assert stat.S_IMODE(folder.stat().st_mode) == mode

    run(main())
