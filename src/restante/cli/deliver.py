"""``restante deliver``: one message from standard input into a maildrop."""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from ..app import failures, stores
from ..app.local import maildrop_of
from ..config import Configuration
from ..errors import (
    MessageRefused,
    MessageTooLarge,
    NoMaildrop,
    NoSuchUser,
    RestanteError,
    TemporaryFailure,
    UnsafeArgument,
)
from ..message import Envelope, LineEnds, separate
from . import common

_PIECE = 65_536  # octets
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Read = Callable[[], bytes]
"""The next piece, as long as can be; empty at the end."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "deliver",
        help="put a message from standard input into a maildrop",
        description="Exit code 0 only once the message is on disk; 75 at any doubt, and then "
        "nothing was stored.",
    )
    parser.add_argument(
        "user", metavar="USER", type=_without_brackets, help="a user's name or address"
    )
    parser.add_argument(
        "--from",
        dest="reverse_path",
        type=_without_brackets,
        default="",
        metavar="ADDRESS",
        help="for Return-Path",
    )
    parser.set_defaults(run=run)


def _without_brackets(path: str) -> str:
    """Some mail servers pass an address as SMTP writes it (RFC 5321 §4.1.2)."""
    return path[1:-1] if path.startswith("<") and path.endswith(">") else path


def run(options: argparse.Namespace) -> int:
    """A mail server bounces mail at most exit codes.  So an invalid configuration, a bug and every
    other fault that an administrator may repair is a 75 too: the message comes again.  What is
    wrong with this very message or recipient stays wrong, and is none."""
    try:
        with _stoppable() as read:
            return asyncio.run(_deliver(options, common.configuration(options), read))
    except (NoSuchUser, NoMaildrop, MessageRefused, UnsafeArgument):
        raise
    except Exception as error:
        if options.verbose or not isinstance(error, RestanteError | OSError):
            traceback.print_exception(error)
        raise TemporaryFailure(failures.describe(error)) from None  # 75 whatever the cause is


async def _deliver(options: argparse.Namespace, found: Configuration, read: Read) -> int:
    store = stores.store(found)
    user = await maildrop_of(found, options.user)
    envelope = Envelope(options.reverse_path, options.user, "local")
    head = envelope.trace_fields(found.server.hostname, datetime.now(UTC))
    entry = await store.deliver(user, _message(head, read, found.limits.message))
    if options.json:
        common.print_json("deliver", user=user, unique_id=entry.unique_id, size=entry.size)
    return os.EX_OK


async def _message(head: bytes, read: Read, most: int) -> AsyncIterator[bytes]:
    """Standard input as CRLF text; a "From " line, as mbox files have it, is not mail."""
    ends, octets = LineEnds(), read()
    skipped, inserted = separate(octets)
    octets = octets[skipped:]
    if not octets:
        raise MessageRefused("no message on standard input")
    yield head + inserted
    while octets:
        yield ends.feed(octets)
        if ends.size > most:
            raise MessageTooLarge(most)
        octets = read()
    yield ends.finish()


@contextmanager
def _stoppable() -> Iterator[Read]:
    """Reads standard input by pieces; a signal ends the input, and nothing else.

    So a signal never comes between the message's rename into the maildrop and our answer.
    """
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell)
    handlers = {number: signal.signal(number, lambda *_: None) for number in _STOPS}

    def read() -> bytes:
        octets, source = b"", sys.stdin.fileno()
        while len(octets) < _PIECE:
            if told in select.select([source, told], [], [])[0]:
                raise TemporaryFailure("stopped before the message was stored")
            if not (more := os.read(source, _PIECE - len(octets))):
                break
            octets += more
        return octets

    try:
        yield read
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(told)
        os.close(tell)
