"""The page "Contracts" lists every add-on, the classes that offer it and the modules that use it.

``python -m tests.docs.test_contracts`` rewrites its tables.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import restante
from restante import maildrop, passdb
from restante.collect import destinations

SOURCE = Path(restante.__file__).parent
PAGE = SOURCE.parent.parent / "docs" / "contracts.md"
HEAD = "| add-on | description | offered by | used in |\n|---|---|---|---|\n"
CONTRACTS = {
    "Storage": (maildrop, "store/"),
    "Identity": (passdb, "auth/"),
    "Destinations": (destinations, "collect/destinations/"),
}


def add_ons(module: object) -> dict[str, type]:
    return {
        name: kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind)
        and kind.__module__ == getattr(module, "__name__", "")
        and (kind.__doc__ or "").startswith("Add-on")
    }


def methods(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


@cache
def nodes() -> dict[str, list[ast.AST]]:
    """Return all nodes of each module."""
    return {
        path.relative_to(SOURCE).as_posix(): list(ast.walk(ast.parse(path.read_text())))
        for path in sorted(SOURCE.rglob("*.py"))
    }


@cache
def classes(room: str) -> dict[str, tuple[set[str], set[str]]]:
    """Return the bases and own members of each class in a package."""
    return {
        node.name: ({ast.unparse(base) for base in node.bases}, set(members(node)))
        for path, all_nodes in nodes().items()
        if path.startswith(room)
        for node in all_nodes
        if isinstance(node, ast.ClassDef)
    }


def members(node: ast.ClassDef) -> Iterator[str]:
    """Return methods, and functions that ``__init__`` assigns to attributes."""
    for each in ast.walk(node):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            yield each.name
        elif isinstance(each, ast.Assign) and isinstance(each.value, ast.Attribute):
            yield from (to.attr for to in each.targets if isinstance(to, ast.Attribute))


def offering(kind: type, room: str) -> list[str]:
    """Return classes of the package that have all methods, or inherit from an add-on class."""
    names = []
    for name, (bases, own) in classes(room).items():
        inherited = [classes(room)[base][1] for base in bases & classes(room).keys()]
        has_all = methods(kind) <= own.union(*inherited)
        is_offered = kind.__name__ in bases if inspect.isabstract(kind) else has_all
        if is_offered and "Protocol" not in bases:
            names.append(name)
    return sorted(names)


@cache
def asking() -> dict[str, list[str]]:
    """Return modules by the add-ons that they check for."""
    found = defaultdict(set)
    for path, all_nodes in nodes().items():
        for node in all_nodes:
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id in ("offers", "isinstance"):
                for name in ast.walk(node.args[1]):
                    if isinstance(name, ast.Name):
                        found[name.id].add(path)
    return {name: sorted(paths) for name, paths in found.items()}


def table(module: object, room: str) -> str:
    rows = []
    for name, kind in sorted(add_ons(module).items()):
        first = (kind.__doc__ or "").split("\n\n")[0].rstrip(".").split()
        text = " ".join(first).removeprefix("Add-on ").removeprefix("of ").replace("``", "`")
        offered = " ".join(f"`{each}`" for each in offering(kind, room))
        asked = " ".join(f"`{each}`" for each in asking().get(name, users_of(name)))
        rows.append(f"| `{name}` | {text} | {offered} | {asked} |\n")
    return HEAD + "".join(rows)


@cache
def annotated() -> dict[str, set[str]]:
    """Return the names in types of parameters, by module."""
    return {
        path: {
            word
            for node in all_nodes
            if isinstance(node, ast.arg) and node.annotation is not None
            for word in re.findall(r"\w+", ast.unparse(node.annotation))
        }
        for path, all_nodes in nodes().items()
    }


def users_of(name: str) -> list[str]:
    """Return where a mandatory add-on is used: in the type of a parameter, or in the store that a
    server needs."""
    inherits = {each.__name__ for each in maildrop.ServableStore.__mro__}
    wanted = {name, "ServableStore"} if name in inherits else {name}
    return [
        path
        for path, words in annotated().items()
        if path not in ("maildrop.py", "passdb.py") and wanted & words
    ]


def page() -> str:
    """Return the page with tables made from the sources."""
    text = PAGE.read_text()
    for title, contract in CONTRACTS.items():
        before, heading, part = text.partition(f"\n## {title}")
        section, rest = re.split(r"(?=\n## )|\Z", part, maxsplit=1)
        text = before + heading + section.partition(HEAD)[0].rstrip() + "\n\n"
        text += table(*contract) + (rest or "")
    return text


def test_page_shows_every_add_on() -> None:
    assert page() == PAGE.read_text(), "run: python -m tests.docs.test_contracts"


@pytest.mark.parametrize("title", CONTRACTS)
def test_every_add_on_is_offered_and_asked_for(title: str) -> None:
    module, room = CONTRACTS[title]
    for name, kind in add_ons(module).items():
        assert offering(kind, room), name
        assert asking().get(name) or users_of(name), name


if __name__ == "__main__":
    PAGE.write_text(page())
