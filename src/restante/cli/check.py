"""``restante check``: is this configuration good?  Looks only; needs no network."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from ..config import Configuration
from ..errors import ConfigurationError
from ..net import tls
from ..store.place import Template
from . import common


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("check", help="look the configuration over, without a network")
    parser.add_argument(
        "--example", action="store_true", help="print a commented configuration instead"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """78 when something is wrong, with a line for each mistake."""
    if options.example:
        from ..config import example

        print(example(), end="")
        return os.EX_OK
    found = common.configuration(options)
    mistakes = list(_mistakes(found))
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    source = str(found.source) if found.source else None
    if options.json:
        common.print_json("check", source=source, listen=list(found.server.listen))
        return os.EX_OK
    print(f"{source or 'no configuration file, private mode'}: good")
    print(f"  POP3  {' '.join(found.server.listen)}")
    print(f"  in    {' '.join((*found.intake.lmtp.listen, *found.intake.smtp.listen)) or 'off'}")
    print(f"  mail  {found.store.path}, deleted mail held {found.store.hold / 86_400:g} days")
    return os.EX_OK


def _mistakes(found: Configuration) -> Iterator[str]:
    if found.tls.mode == "files":
        try:
            tls.server_context(Path(found.tls.cert), Path(found.tls.key), found.tls.min_version)
        except ConfigurationError as error:
            yield str(error)
    if found.store.kind == "maildir" and not found.store.path.startswith(f"{found.state}/"):
        try:
            base = Path(Template(found.store.path).base)
        except ConfigurationError as error:
            yield f"store.path: {error}"
        else:
            if not base.is_dir():
                yield f"store.path: {base} is not there; next: mkdir -p {base}"
            elif not os.access(base, os.W_OK | os.X_OK):
                yield f"store.path: {base} cannot be written by this user"
    users = Path(found.auth.users)
    if users.exists() and not os.access(users, os.R_OK):
        yield f"auth.users: {users} cannot be read by this user"
