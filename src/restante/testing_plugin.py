"""pytest fixtures for ``restante.testing``.

The plugin is loaded in every pytest run where restante is installed, so it imports only pytest
until a fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .testing import Pop3Server

_SERVERS = "_restante_pop3_servers"
_OPTIONS = ("users", "sasl", "clear")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "pop3(users={name: password}, sasl=[mechanism, …], clear=bool): "
        "options for the server of ``pop3_server``; markers of module, class and function are "
        "combined, and the innermost one has precedence",
    )


def _options(node: pytest.Item, parameter: object = None) -> dict[str, Any]:
    """Return the options from markers and from an indirect parameter, which has precedence.

    If several markers have ``users``, these are merged.

    Raises:
        Failed: an option is unknown, or was passed without its name.
    """
    options: dict[str, Any] = {}
    for marker in reversed([*node.iter_markers("pop3")]):
        if marker.args:
            pytest.fail(f"marker pop3: name the option, such as users={marker.args[0]!r}", False)
        for name, value in marker.kwargs.items():
            if name not in _OPTIONS:
                known = ", ".join(_OPTIONS)
                pytest.fail(f"marker pop3: unknown option {name!r}; known options: {known}", False)
            options[name] = _merge(options.get(name), value)
    if not isinstance(parameter, Mapping | None):
        pytest.fail(f"pop3_server: an indirect parameter must be a dict, not {parameter!r}", False)
    for name, value in (parameter or {}).items():
        if name not in _OPTIONS:
            known = ", ".join(_OPTIONS)
            pytest.fail(f"pop3_server: unknown option {name!r}; known options: {known}", False)
        options[name] = _merge(options.get(name), value)
    return options


def _merge(before: object, value: object) -> object:
    if isinstance(before, dict) and isinstance(value, dict):
        return {**before, **value}
    return value


@pytest.fixture
def pop3_server(request: pytest.FixtureRequest) -> Iterator[Pop3Server]:
    """A POP3 server for one test; see ``restante.testing.Pop3Server``.

    Options come from ``@pytest.mark.pop3(clear=True)``, or from an indirect parameter:
    ``@pytest.mark.parametrize("pop3_server", [{"clear": True}], indirect=True)``.
    The transcript is added to the report of a failed test.
    """
    from .testing import Pop3Server

    try:
        server = Pop3Server(**_options(request.node, getattr(request, "param", None)))
    except (TypeError, ValueError) as error:
        pytest.fail(f"marker pop3: {error}", False)
    with server:
        setattr(request.node, _SERVERS, [server])
        yield server


@pytest.fixture(scope="session")
def pop3_server_factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., Pop3Server]]:
    """Creates servers that run until the end of the test run, for fixtures of any scope.

    If a test that uses this fixture fails, the transcripts of all these servers are in its report.
    """
    from .testing import Pop3Server

    servers: list[Pop3Server] = []
    setattr(request.session, _SERVERS, servers)
    with ExitStack() as stack:

        def make(**options: Any) -> Pop3Server:
            servers.append(stack.enter_context(Pop3Server(**options)))
            return servers[-1]

        yield make


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        servers = [*getattr(item, _SERVERS, ())]
        if "pop3_server_factory" in getattr(item, "fixturenames", ()):
            servers += getattr(item.session, _SERVERS, ())
        for server in servers:
            unused = "".join(f"\n(fault.{each} never occurred)" for each in server.fault.unused)
            report.sections.append(("POP3 transcript", server.transcript + unused))
