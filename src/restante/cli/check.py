"""``restante check``: is this configuration good?  Looks only; needs no network."""

from __future__ import annotations

import argparse
import os

from . import common


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("check", help="look the configuration over, without a network")
    parser.add_argument(
        "--example",
        action="store_true",
        help="print a file with every option, none in force, instead",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """78 when something is wrong, with a line for each mistake."""
    if options.example:
        from ..config import example

        print(example(), end="")
        return os.EX_OK
    found = common.configuration(options)
    common.look_over(found)
    common.look_over_users(found)
    source = str(found.source) if found.source else None
    if options.json:
        common.print_json("check", source=source, listen=list(found.server.listen))
        return os.EX_OK
    print(f"{source or 'no configuration file, private mode'}: good")
    print(f"  POP3  {' '.join(found.server.listen)}")
    print(f"  in    {' '.join((*found.intake.lmtp.listen, *found.intake.smtp.listen)) or 'off'}")
    print(f"  mail  {found.store.path}, deleted mail {common.told_hold(found.store.hold)}")
    return os.EX_OK
