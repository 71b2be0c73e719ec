"""Generate documentation from the schema: the sample file, and the data for the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import Field, is_dataclass
from typing import Any

from .schema import Configuration, options


def sections(
    kind: type[Any] = Configuration, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, type[Any], list[Field[Any]]]]:
    """Yield the dotted name, the class and the options of each section."""
    own = [each for each in options(kind) if "doc" in each.metadata]
    if own:
        yield ".".join(path), kind, own
    for each in options(kind):
        if named := each.metadata.get("named"):
            yield from sections(named, (*path, each.name, "isp"))
        elif is_dataclass(each.default_factory):
            assert isinstance(each.default_factory, type)
            yield from sections(each.default_factory, (*path, each.name))


def example() -> str:
    """Return a sample file that lists every option with its description.

    All options are commented out, so the file has no effect until a "#" is removed.
    """
    lines: list[str] = []
    for name, kind, own in sections():
        prefix = "#" if name.startswith("account.") else ""  # an account cannot be empty
        lines += [f"{prefix}[{name}]", f"# {kind.__doc__}"]
        for each in own:
            lines += [f"# {each.metadata['doc']}"]
            lines += [f"#{each.name} = {toml(each.metadata['example'])}"]
        lines.append("")
    return "\n".join(lines)


def toml(value: Any) -> str:
    """Return a value in TOML notation."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub("[\0-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", escaped) + '"'
    return str(value)
