"""Check whether an object offers an add-on: a protocol that its core contract does not require.

Sessions do not use ``isinstance`` for this, because it takes about 10 µs for a runtime protocol in
Python 3.11, as much as the rest of a login with a cached password.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from typing_extensions import TypeIs

T = TypeVar("T")


def offers(candidate: object, add_on: type[T]) -> TypeIs[T]:
    """Return whether ``candidate`` has all public methods of the protocol ``add_on``.

    The object is checked and not its class, because some objects hide methods depending on how they
    were created: a ``Chain`` of back ends supports SCRAM only if every back end does.
    """
    for name in _methods(cast(type, add_on)):  # noqa: SIM110  # ``all`` takes three times as long
        if not hasattr(candidate, name):
            return False
    return True


@cache
def _methods(add_on: type) -> tuple[str, ...]:
    names = (name for base in add_on.__mro__ for name in vars(base))
    return tuple(dict.fromkeys(name for name in names if not name.startswith("_")))
