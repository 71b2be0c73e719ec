"""``restante deliver``: one message from standard input into a maildrop."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from ..config import Configuration
from ..errors import MessageRefused, MessageTooLarge, TemporaryFailure
from ..message import Envelope, LineEnds
from . import common

_PIECE = 65_536  # octets


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "deliver",
        help="put a message from standard input into a maildrop",
        description="Exit code 0 only once the message is on disk; 75 at any doubt, and then "
        "nothing was stored.",
    )
    parser.add_argument("user", metavar="USER", help="a user's name or address")
    parser.add_argument(
        "--from", dest="reverse_path", default="", metavar="ADDRESS", help="for Return-Path"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    found = common.configuration(options)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return asyncio.run(_deliver(options, found))
    except OSError as error:
        raise TemporaryFailure(error.strerror or "input failed") from error


async def _deliver(options: argparse.Namespace, found: Configuration) -> int:
    users, store = common.users(found), common.store(found)
    user = await users.maildrop_of(options.user)
    envelope = Envelope(options.reverse_path, options.user, "local")
    head = envelope.trace_fields(found.server.hostname, datetime.now(UTC))
    entry = await store.deliver(user, _message(head, found.limits.message))
    if options.json:
        common.print_json("deliver", user=user, unique_id=entry.unique_id, size=entry.size)
    return os.EX_OK


async def _message(head: bytes, most: int) -> AsyncIterator[bytes]:
    """Standard input as CRLF text; a "From " line, as mbox files have it, is not mail."""
    ends, octets = LineEnds(), sys.stdin.buffer.read(_PIECE)
    if octets.startswith(b"From "):
        octets = octets.partition(b"\n")[2]
    if not octets:
        raise MessageRefused("no message on standard input")
    yield head
    while octets:
        yield ends.feed(octets)
        if ends.size > most:
            raise MessageTooLarge(most)
        octets = sys.stdin.buffer.read(_PIECE)
    yield ends.finish()


def _stop(*_: object) -> None:
    raise TemporaryFailure("stopped before the message was stored")
