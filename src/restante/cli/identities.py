"""The identity back ends that the configuration asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..auth.chain import Backend, Chain
from ..auth.passwd_file import PasswdFile
from ..auth.users import Users
from ..config import Auth, Configuration


def chain(found: Configuration, users: Users) -> Chain:
    """All of them as one."""
    auth = found.auth
    makers: dict[str, Callable[[], Backend]] = {
        "users": lambda: users,
        "passwd-file": lambda: _passwd_file(auth),
    }
    return Chain(
        {name: makers[name]() for name in auth.chain},
        domains=domains(found),
        deadline=auth.deadline,
    )


def domains(found: Configuration) -> set[str]:
    """Where a user without a domain in the name gets mail."""
    return {"localhost", found.server.hostname, *found.intake.smtp.domains}


def missing(found: Configuration) -> Iterator[str]:
    """What the back ends need and do not have, a sentence each."""
    auth = found.auth
    users = Path(auth.users)
    if users.exists() and not os.access(users, os.R_OK):
        yield f"auth.users: {users} cannot be read by this user"
    if "passwd-file" in auth.chain and not os.access(auth.passwd_file.path, os.R_OK):
        yield f"auth.passwd_file.path: {auth.passwd_file.path} cannot be read by this user"


def _passwd_file(auth: Auth) -> PasswdFile:
    return PasswdFile(Path(auth.passwd_file.path), scheme=auth.passwd_file.scheme)
