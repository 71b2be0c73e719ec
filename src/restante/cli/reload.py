"""``restante reload``: make the running server reload its configuration."""

from __future__ import annotations

import argparse

from .. import sysexits
from ..errors import ConfigurationError
from ..words import counted
from . import common, control

_TIMEOUT = 40.0  # seconds: longer than the server waits for all its workers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make the running server reload its configuration and certificate, and wait for the "
        "result. If the configuration is invalid, the reason is printed and the server keeps the "
        "old one. Open sessions continue."
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Reload the configuration.

    Raises:
        ConfigurationError: the server has refused the new configuration.
    """
    reply = control.ask(options, "POST", "/reload", timeout=_TIMEOUT, accept=409)
    result = reply.json()
    if reply.status != 200:
        raise ConfigurationError(result["reason"])
    if options.json:
        common.print_json("reload", **result)
    else:
        print(f"Configuration reloaded by {counted(result['workers'], 'worker')}.")
    if result["restart_needed"]:
        common.say("Some of the changed settings require a restart.")
    for worker in result["missing"]:
        common.say(f"restante reload: worker {worker} has not reloaded yet; see its log")
    return sysexits.EX_TEMPFAIL if result["missing"] else sysexits.EX_OK
