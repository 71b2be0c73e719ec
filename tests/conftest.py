"""Fixtures for all tests."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import ssl
from collections.abc import Coroutine, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings

from restante import tls
from restante.auth import passwords, scram
from restante.cli import command

from .support import LOOPS, Run

# No test trusts the authorities of the machine. Loading them takes 40 ms for each context, too.
os.environ["SSL_CERT_FILE"] = os.environ["SSL_CERT_DIR"] = os.devnull

T = TypeVar("T")
# A busy machine is not a failure.  Developers run half of the examples, .ci/run all of them.
EXAMPLES = 100 if "CI" in os.environ else 50
settings.register_profile("untimed", deadline=None, max_examples=EXAMPLES)
settings.load_profile("untimed")

# The cost of hashing protects users, and would be a third of the time of all tests.
FULL_COST = {
    (passwords, "_MEMORY"): passwords._MEMORY,
    (passwords, "_ITERATIONS"): passwords._ITERATIONS,
    (scram, "ITERATIONS"): scram.ITERATIONS,
}
passwords._MEMORY, passwords._ITERATIONS = 64, 1
scram.ITERATIONS = 4096

# A process builds its parser once, in some 10 ms; the tests run more than a thousand commands.
command.make_parser = cache(command.make_parser)

# Collecting makes thousands of objects that stay.  Every worker would search them for garbage.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests five minutes; the limit of fast ones is in pyproject.toml."""
    for item in items:
        is_long = item.get_closest_marker("slow") or item.get_closest_marker("interop")
        if is_long and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run[Any]:
    """Return a function that runs a coroutine, for each kind of event loop."""

    def run_on(work: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(work)

    return run_on


@pytest.fixture
def full_cost(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use the real cost of passwords."""
    for (module, name), value in FULL_COST.items():
        monkeypatch.setattr(module, name, value)
    passwords.decoy_hash.cache_clear()
    yield
    passwords.decoy_hash.cache_clear()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a certificate and key for this machine."""
    return tls.make_self_signed(tmp_path_factory.mktemp("tls"), ["localhost", "127.0.0.1"])


@pytest.fixture
def server_tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return tls.server_context(*certificate)


@pytest.fixture
def client_tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return tls.client_context(certificate[0])


@pytest.fixture
def loggers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the loggers after a test that sets up the log."""
    for switch in ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, switch, getattr(logging, switch))
    ours = [logging.getLogger(name) for name in ("restante", "asyncio")]
    before = [(each, each.level, each.handlers[:], each.propagate) for each in ours]
    yield
    for each, level, handlers, propagate in before:
        each.setLevel(level)
        each.handlers[:] = handlers
        each.propagate = propagate
