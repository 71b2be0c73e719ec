"""The architecture: imports go downward only (docs/design.md)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "restante"

LAYERS = {
    room: layer
    for layer, rooms in enumerate(
        (
            "addons errors escaping headers maildrop message mime passdb surrogate"
            " series sysexits wire words",
            "pop3 sasl smtp",
            "clock https mounts posix syncing threads",
            "regular scanning shared",
            "auth store",
            "tls",
            "client server",
            "collect",
            "config",
            "log",
            "app",
            "cli poplib testing",
            "testing_command testing_hostile testing_plugin",
            "__main__ __init__",
        )
    )
    for room in rooms.split()
}
SIDEWAYS = {("pop3", "sasl")}
FORBIDDEN = {("server", "store"), ("server", "auth"), ("collect", "store"), ("collect", "auth")}
IO = {"asyncio", "socket", "ssl", "os", "time", "logging", "threading", "selectors", "subprocess"}
LIBRARIES = {
    "tls": {"cryptography"},
    "client": {"dns"},
    "server": {"h11"},
    "auth": {"cryptography", "scramp"},
}
LIBRARIES["auth"] |= {"bcrypt", "jwt", "ldap", "pamela", "passlib"}  # extras
LIBRARIES |= {"cli": {"rich"}, "app": {"keyring", "uvloop"}, "testing_plugin": {"pytest"}}
LIBRARIES["addons"] = {"typing_extensions"}  # for the type checker only
LIBRARIES |= {"sasl": {"scramp"}, "collect": {"cryptography", "imapclient"}}


@cache
def imports(module: str, source: str) -> list[str]:
    """Return the imports of a module, also inside functions; ours begin with a dot."""
    return list(_imports(module, source))


def _imports(module: str, source: str) -> Iterator[str]:
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
            yield from ("." + ".".join([*base, alias.name]) for alias in node.names)


def violations(module: str, source: str) -> list[str]:
    """Yield each import of ``module`` (such as ``pop3.session``) that the layers forbid."""
    room = module.split(".")[0]
    found = []
    for name in imports(module, source):
        if name.startswith("restante"):
            found.append(f"{module}: {name} is not relative")
        elif name == ".__version__":
            continue
        elif name.startswith("."):
            other = name[1:].split(".")[0] or "__init__"
            other = other if other in LAYERS else "__init__"
            up = LAYERS[other] > LAYERS[room]
            beside = LAYERS[other] == LAYERS[room] and other != room
            beside = beside and LAYERS[room] > 0 and (room, other) not in SIDEWAYS
            if room != "__init__" and (up or beside or (room, other) in FORBIDDEN):
                found.append(f"{module}: imports {other}, which is not below it")
        else:
            top = name.split(".")[0]
            if LAYERS[room] <= 1 and top in IO:
                found.append(f"{module}: {top} in a layer without I/O")
            elif top not in sys.stdlib_module_names and top not in LIBRARIES.get(room, set()):
                found.append(f"{module}: {top} does not belong here")
    return found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("wire", "import socket"),
        ("pop3.session", "import asyncio"),
        ("pop3.session", "def f():\n    from ..server import pop3"),
        ("sasl.plain", "from ..pop3 import state"),
        ("store.maildir", "from ..auth.users import Users"),
        ("server.pop3", "from ..store.memory import MemoryStore"),
        ("server.pop3", "from ..config import Configuration"),
        ("server.pop3", "if TYPE_CHECKING:\n    from ..config import Configuration"),
        ("collect.plan", "from .. import config"),
        ("errors", "import cryptography"),
        ("pop3.state", "import restante.server"),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str) -> None:
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pop3.session", "from ..sasl import MECHANISMS"),
        ("server.pop3", "from ..pop3.session import Session"),
        ("cli.serve", "from ..store.maildir import MaildirStore"),
        ("wire", "from .errors import OverlongLine"),
    ],
)
def test_a_right_import_is_not(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_every_import_goes_downward() -> None:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found += violations(".".join(parts), path.read_text())
    assert found == []


def circle(modules: Mapping[str, str]) -> list[str]:
    """Return modules that import each other, even for types or in functions; empty if none."""

    def known(imported: str) -> str | None:
        """Return our module that has a name such as ``.pop3.session.Session``."""
        while imported:
            for name in (imported[1:], f"{imported[1:]}.__init__"):
                if name in modules:
                    return name
            imported = imported.rpartition(".")[0]
        return None

    graph = {}
    for name, source in modules.items():
        found = {known(each) for each in imports(name, source) if each.startswith(".")}
        graph[name] = found - {None, name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other() -> None:
    paths = (path.relative_to(SOURCE).with_suffix("") for path in SOURCE.rglob("*.py"))
    modules = {
        ".".join(path.parts): (SOURCE / path).with_suffix(".py").read_text() for path in paths
    }
    del modules["__init__"]  # its names are those of the modules below
    assert circle(modules) == []


def test_a_circle_of_types_is_seen() -> None:
    one = "if TYPE_CHECKING:\n    from . import b"
    assert circle({"p.a": one, "p.b": "def f():\n    from .a import g"}) != []
