"""Sections of the configuration: frozen dataclasses without generated code.

``dataclass`` would generate and compile six methods for each class, although these methods are the
same for all sections.  This took a fifth of the start-up time of a command.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, fields
from typing import Any, ClassVar, NoReturn, dataclass_transform


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Section:
    """Base class of the sections.  ``dataclasses.fields`` and ``replace`` can be used with them.

    The constructor accepts values as keyword arguments; every option has a default.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False, match_args=False)(cls)

    def __init__(self, **values: Any) -> None:
        for each in fields(self):
            if each.name in values:
                value = values.pop(each.name)
            else:
                factory = each.default_factory
                value = each.default if factory is MISSING else factory()
            vars(self)[each.name] = value
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete {name!r}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"
