"""The path of each user's maildrop, built from a template and the user's name.

Security: a user's name comes from the network.  It is checked by the authentication module and
again by this module.  It is inserted in a single pass over the template, so nothing in a name is
ever expanded.  A path component contains at most one variable, and no part of a name can be empty,
be "..", or contain a "/".  So all maildrops are at the same depth, no maildrop is inside another,
and two users never share a maildrop.  (Names that differ only in case belong to different users,
but on a file system that ignores case they would share a path.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from ..errors import ConfigurationError, NoMaildrop

MAX_PART = 128  # octets of a local part or a domain; our limit; RFC 5321 §4.5.3.1 allows 64 and 255
_CACHED_USERS = 4096  # number of users whose paths are cached, which takes about 1 MB
_FILE_NAME_MAX = 255  # octets of a file name on nearly every file system


class _Component(NamedTuple):
    """One component of the path: literal text, a variable or nothing, literal text."""

    before: str
    variable: str
    after: str


class Template:
    """A template such as ``/var/mail/%d/%n``.

    %u stands for the whole user name, %n for its local part, %d for its domain, and %% for "%".
    ``base`` is the part that all users share.  It must exist, because an unmounted disk must not
    look like many empty maildrops.
    """

    def __init__(self, template: str) -> None:
        """Parse a template.

        Raises:
            ConfigurationError: the path is not absolute, or two users could share a maildrop.
        """
        components = [_component(template, text) for text in template.split("/") if text]
        variables = [component.variable for component in components if component.variable]
        if not template.startswith("/"):
            raise ConfigurationError(f"maildrop path {template!r}: not absolute")
        if not {"u", "n"} & set(variables):
            raise ConfigurationError(f"maildrop path {template!r}: needs %u or %n")
        fixed = next(n for n, component in enumerate(components) if component.variable)
        self.base = "/" + "/".join(component.before for component in components[:fixed])
        self._below = components[fixed:]
        self._has_domain = bool({"u", "d"} & set(variables))
        self.names: Callable[[str], tuple[str, ...]] = lru_cache(_CACHED_USERS)(self._names)
        """Cached version of ``_names``, which each message and login calls more than once."""

    def _names(self, user: str) -> tuple[str, ...]:
        """Return the names of the directories below ``base`` on the path of the user's maildrop.

        The last name is that of the maildrop.

        Raises:
            NoMaildrop: this user cannot have a maildrop under this template.
        """
        local, at, domain = user.rpartition("@")
        values = {"u": user, "n": local, "d": domain} if at else {"u": user, "n": user}
        if not all(_is_safe(values[part]) for part in values if part != "u"):
            raise NoMaildrop(
                "user name is not valid as a maildrop name", "cannot be part of a path"
            )
        if at and not self._has_domain:
            raise NoMaildrop(
                "log in with a user name without a domain",
                "has a domain, but the path contains neither %u nor %d",
            )
        names = []
        for before, variable, after in self._below:
            if variable and variable not in values:
                raise NoMaildrop(
                    "log in with your full address (name@domain)",
                    f"has no domain, but the path requires one (%d), as in {user}@example.org",
                )
            names.append(before + values.get(variable, "") + after)
        if any(len(os.fsencode(name)) > _FILE_NAME_MAX for name in names):
            raise NoMaildrop(
                "user name is too long for a maildrop name", "is too long for a file name"
            )
        return tuple(names)

    def users(self) -> Iterator[str]:
        """Yield each user whose Maildir exists and can be opened.  Blocking.

        Raises:
            OSError: the base directory, or a disk, cannot be read.
        """
        return self._users_below(self.base, [], {})

    def _users_below(self, path: str, parents: list[str], values: dict[str, str]) -> Iterator[str]:
        if len(parents) == len(self._below):
            user = values.get("u") or "@".join(values[part] for part in "nd" if part in values)
            if os.path.isdir(f"{path}/new") and self._has_path(user, parents):
                yield user
            return
        before, variable, after = self._below[len(parents)]
        try:
            with os.scandir(path) as entries:
                names = sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))
        except PermissionError:
            if not parents:
                raise
            return  # for example lost+found
        for name in names:
            value = name[len(before) : len(name) - len(after)]
            if name == before + value + after and bool(value) == bool(variable):
                below = {**values, variable: value} if variable else values
                yield from self._users_below(f"{path}/{name}", [*parents, name], below)

    def _has_path(self, user: str, names: list[str]) -> bool:
        try:
            return self.names(user) == tuple(names)
        except NoMaildrop:
            return False


def _component(template: str, text: str) -> _Component:
    variables: list[str] = []

    def expand(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        variables.append(match[1])
        return "\0"

    parts = re.sub("%(.?)", expand, text).split("\0")
    if text in (".", "..") or "\0" in text or len(variables) > 1:
        raise ConfigurationError(
            f"maildrop path {template!r}: {text!r} is not a name with at most one variable"
        )
    if not set(variables) <= {"u", "n", "d"}:
        raise ConfigurationError(f"maildrop path {template!r}: unknown variable in {text!r}")
    return _Component(parts[0], "".join(variables), "".join(parts[1:]))


def _is_safe(part: str) -> bool:
    """Return whether the text is safe as a component of a path and on a terminal."""
    return (
        part.isprintable()  # no control characters, no NUL, no lone surrogates
        and "/" not in part
        and not part.startswith((".", "-"))
        and 0 < len(part.encode()) <= MAX_PART
    )
