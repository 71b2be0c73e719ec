"""The architecture is tested like behaviour: imports go downward only (docs/design.md)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "restante"

LAYERS = {
    **dict.fromkeys(
        ("errors", "wire", "maildrop", "passdb", "message", "surrogate", "sysexits"), 0
    ),
    **dict.fromkeys(("headers", "mime"), 0),
    **dict.fromkeys(("pop3", "smtp", "sasl"), 1),
    **dict.fromkeys(("store", "auth", "shared", "https", "clock", "syncing", "mounts"), 2),
    **dict.fromkeys(("posix", "regular", "scanning", "threads"), 2),
    **dict.fromkeys(("server", "client", "tls"), 3),
    "collect": 4,
    **dict.fromkeys(("config", "log", "cli", "__main__", "__init__"), 5),
    **dict.fromkeys(
        ("testing", "testing_command", "testing_hostile", "testing_plugin", "poplib"), 5
    ),
}
SIDEWAYS = {("pop3", "sasl"), ("log", "config"), ("cli", "config"), ("cli", "log")}
SIDEWAYS |= {("auth", "shared"), ("auth", "https"), ("auth", "clock"), ("store", "clock")}
SIDEWAYS |= {("shared", "clock"), ("auth", "threads"), ("server", "tls"), ("client", "tls")}
SIDEWAYS |= {
    ("store", "syncing"),
    ("store", "mounts"),
    ("store", "scanning"),
    ("store", "threads"),
    ("scanning", "posix"),
}
SIDEWAYS |= {("auth", "regular"), ("regular", "posix")}
SIDEWAYS |= {("shared", "posix"), ("store", "posix"), ("auth", "posix")}
SIDEWAYS |= {("__main__", "cli"), ("cli", "__init__"), ("config", "__init__")}
SIDEWAYS |= {("testing_plugin", "testing"), ("testing_hostile", "testing")}
SIDEWAYS |= {("testing_command", "testing")}
FORBIDDEN = {("server", "store"), ("server", "auth"), ("collect", "store"), ("collect", "auth")}
IO = {"asyncio", "socket", "ssl", "os", "time", "logging", "threading", "selectors", "subprocess"}
LIBRARIES = {
    "tls": {"cryptography"},
    "client": {"dns"},
    "auth": {"cryptography", "scramp"},
}
LIBRARIES["auth"] |= {"bcrypt", "jwt", "ldap", "pamela", "passlib"}  # extras
LIBRARIES |= {"cli": {"keyring", "rich", "uvloop"}, "testing_plugin": {"pytest"}}
LIBRARIES |= {"sasl": {"scramp"}, "collect": {"cryptography", "imapclient"}}


def imports(module: str, source: str) -> Iterator[str]:
    """What a module imports, also inside functions: dotted, ours beginning with a dot."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
            names = [alias.name for alias in node.names]
            yield from (
                "." + ".".join([*base, name] if not node.module else base) for name in names
            )


def violations(module: str, source: str) -> list[str]:
    """Each import of ``module`` (such as ``pop3.session``) that the architecture forbids."""
    room = module.split(".")[0]
    found = []
    for name in imports(module, source):
        if name.startswith("restante"):
            found.append(f"{module}: {name} is not relative")
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
        ("pop3.session", "def f():\n    from ..net import server"),
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
