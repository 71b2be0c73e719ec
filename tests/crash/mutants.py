"""Remove one thing that durability depends on, and see that a test fails: ``./dev mutants``.

Each fsync, rename, lock and check of the store or of the destinations is removed in turn in a
copy of the source.  A mutant that survives means that a test is missing or the code is not needed.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "restante"
PARTS = {
    "store": (
        [
            "store/files.py",
            "store/held.py",
            "store/maildir.py",
            "store/adopted.py",
            "store/journal.py",
            "store/index.py",
            "store/quota.py",
            "store/folders.py",
        ],
        ["tests/store", "tests/crash"],
    ),
    "destinations": (
        ["collect/destinations/folder.py", "collect/destinations/mbox.py"],
        ["tests/crash"],
    ),
}
DROPPED = {"fsync", "fsync_directory", "sync", "rename", "move", "flock", "lockf", "unlink"}
DROPPED |= {"flush", "ftruncate", "_delete_list", "_finish", "finish_update", "_repair", "_forget"}
DROPPED |= {"undone_on_error", "session_lock", "sync_together", "lock"}
WEAKER = {"directory_lock": "directory", "replace": "replace_cache"}
FLAGS = {"O_EXCL": "O_CREAT", "O_NOFOLLOW": "O_CLOEXEC"}
LIMIT = 240  # seconds for the tests of one mutant


Edit = Callable[[Any], None]


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    what: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


def mutants(file: str) -> Iterator[Mutant]:
    tree = ast.parse((SOURCE / file).read_text())
    for number, node in enumerate(ast.walk(tree)):
        for what, edit in _edits(node):
            copied = deepcopy(tree)
            edit(list(ast.walk(copied))[number])
            source = ast.unparse(ast.fix_missing_locations(copied))
            yield Mutant(file, getattr(node, "lineno", 0), what, source)


def _edits(node: ast.AST) -> Iterator[tuple[str, Edit]]:
    """Yield what can be removed at this node."""
    for name in ("body", "orelse", "finalbody"):
        statements = getattr(node, name, None)
        for at, statement in enumerate(statements if isinstance(statements, list) else []):
            if _is_dropped(statement):
                yield f"without {_text(statement)}", _replaced(name, at)
    if isinstance(node, ast.With):
        for at, item in enumerate(node.items):
            if _called(item.context_expr) in DROPPED and item.optional_vars is None:
                yield f"without {_text(item)}", _without_item(at)
    if isinstance(node, ast.Call):
        yield from _edits_of_call(node)
    if isinstance(node, ast.Attribute) and node.attr in FLAGS:
        yield f"without {node.attr}", _other_flag


def _edits_of_call(node: ast.Call) -> Iterator[tuple[str, Edit]]:
    name = _called(node)
    if name == "sync" and len(node.args) > 1:
        for at, argument in enumerate(node.args):
            yield f"without sync of {_text(argument)}", _without_argument(at)
    if name in WEAKER and _text(node).startswith("files."):
        yield f"{WEAKER[name]} for {name}", _renamed(WEAKER[name])


def _is_dropped(statement: ast.AST) -> bool:
    if isinstance(statement, ast.Raise):
        return statement.exc is not None
    value = getattr(statement, "value", None)
    if isinstance(value, ast.Call) and _called(value) == "enter_context":
        value = value.args[0]
    return isinstance(statement, ast.Expr | ast.Return) and _called(value) in DROPPED


def _called(node: ast.AST | None) -> str:
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", ""))


def _text(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0]


# -- Edits of a node


def _replaced(name: str, at: int) -> Edit:
    def edit(node: Any) -> None:
        getattr(node, name)[at] = ast.Pass()

    return edit


def _without_item(at: int) -> Edit:
    def edit(node: Any) -> None:
        nothing = ast.parse("__import__('contextlib').nullcontext()", mode="eval").body
        node.items[at].context_expr = nothing

    return edit


def _without_argument(at: int) -> Edit:
    def edit(node: Any) -> None:
        del node.args[at]

    return edit


def _renamed(name: str) -> Edit:
    def edit(node: Any) -> None:
        node.func.attr = name

    return edit


def _other_flag(node: Any) -> None:
    node.attr = FLAGS[node.attr]


# -- Trials


def killed(mutant: Mutant | None, tests: list[str]) -> bool:
    """Return whether a test fails; without a mutant none should."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(SOURCE, Path(place, "restante"))
        if mutant:
            Path(place, "restante", mutant.file).write_text(mutant.source)
        options = ["-x", "-q", "-p", "no:cacheprovider", "--timeout", "30"]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *options, *tests],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": place},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            return True
        return done.returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev mutants", description=__doc__)
    parser.add_argument("part", choices=list(PARTS), nargs="*", default=["store"])
    parser.add_argument("--only", default="", help="only mutants whose description contains this")
    parser.add_argument(
        "--list", action="store_true", help="list the mutants without running tests"
    )
    options = parser.parse_args()
    survivors = total = 0
    for part in options.part:
        names, tests = PARTS[part]
        found = [each for name in names for each in mutants(name) if options.only in str(each)]
        if options.list:
            print(*found, sep="\n")
            continue
        if killed(None, tests):
            print(f"{part}: the tests fail without a mutant", file=sys.stderr)
            return 1
        with ThreadPoolExecutor(2) as pool:
            for mutant, dead in zip(found, pool.map(killed, found, repeat(tests)), strict=True):
                total += 1
                survivors += not dead
                print("killed " if dead else "SURVIVED", mutant, flush=True)
    print(f"{total - survivors} of {total} mutants killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
