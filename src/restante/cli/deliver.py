"""``restante deliver``: deliver one message from standard input."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from ..app import backends, stores
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
from ..message import Envelope, LineEndings, header_insertion
from . import common
from .command import discard_output

_PIECE = 65_536  # octets, the capacity of a pipe on Linux (pipe(7))
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Read = Callable[[], bytes]
"""Returns the next piece, of at most ``_PIECE`` octets; empty at the end of the input."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Deliver a message from standard input to a user of this server. Exit code 0 "
        "means that the message is on disk; 75 means that it was not stored and that the mail "
        "server should try again."
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
        help="the sender's address for the Return-Path field; empty by default",
    )
    parser.set_defaults(run=run)


def _without_brackets(path: str) -> str:
    """Remove angle brackets: some mail servers pass an address as in SMTP (RFC 5321 §4.1.2)."""
    return path[1:-1] if path.startswith("<") and path.endswith(">") else path


def run(options: argparse.Namespace) -> int:
    """Deliver the message.  All errors that an administrator can fix result in exit code 75.

    After 75, a mail server keeps the message and tries again; after most other codes, it bounces
    the message.  Even bugs result in 75.  Errors in the message itself or in its recipient are
    permanent and have their own codes.
    """
    try:
        with _interruptible_input() as read:
            config = common.configuration(options)
            return backends.run(config, _deliver(options, config, read))
    except (NoSuchUser, NoMaildrop, MessageRefused, UnsafeArgument):
        raise
    except Exception as error:
        from traceback import print_exception  # only needed after an error

        from ..app.failures import describe

        if options.verbose or not isinstance(error, RestanteError | OSError):
            with suppress(OSError):  # a broken pipe must not replace exit code 75
                print_exception(error)
        raise TemporaryFailure(describe(error)) from None  # exit code 75


async def _deliver(options: argparse.Namespace, config: Configuration, read: Read) -> int:
    user = await maildrop_of(config, options.user)
    envelope = Envelope(options.reverse_path, options.user, "local")
    head = envelope.trace_fields(config.server.hostname, datetime.now(UTC))
    message = _message(head, read, config.limits.message)
    entry = await stores.deliver(config, user, message)
    if options.is_program:
        _ignore_signals()
    if options.json:
        try:
            common.print_json("deliver", user=user, unique_id=entry.unique_id, size=entry.size)
        except OSError:  # after 75, the mail server would deliver the message again
            discard_output(sys.stdout)
    return os.EX_OK


def _ignore_signals() -> None:
    """Ignore signals until the process ends.

    If a signal ended the process after the message was stored, the mail server would deliver the
    message again.
    """
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


async def _message(head: bytes, read: Read, max_octets: int) -> AsyncIterator[bytes]:
    """Yield the message with CRLF line endings, without the "From " line of an mbox."""
    line_endings, octets = LineEndings(), read()
    skipped, inserted = header_insertion(octets)
    octets = octets[skipped:]
    if not octets:
        raise MessageRefused("no message on standard input")
    yield head + inserted
    while octets:
        yield line_endings.feed(octets)
        if line_endings.size > max_octets:
            raise MessageTooLarge(max_octets)
        octets = read()
    yield line_endings.finish()


@contextmanager
def _interruptible_input() -> Iterator[Read]:
    """Yield a function that reads standard input; signals interrupt only this function.

    Therefore no signal can end the process after the message was moved into the maildrop.  The
    previous handlers are restored at the end, except after ``_ignore_signals``.
    """
    signal_pipe, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    previous_fd = signal.set_wakeup_fd(wakeup)
    handlers = {number: signal.signal(number, lambda *_: None) for number in _STOP_SIGNALS}

    def read() -> bytes:
        octets, source = b"", sys.stdin.fileno()
        while len(octets) < _PIECE:
            if signal_pipe in select.select([source, signal_pipe], [], [])[0]:
                raise TemporaryFailure("stopped before the message was stored")
            if not (more := os.read(source, _PIECE - len(octets))):
                break
            octets += more
        return octets

    try:
        yield read
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)
        signal.set_wakeup_fd(previous_fd)
        os.close(signal_pipe)
        os.close(wakeup)
