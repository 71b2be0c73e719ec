"""Destinations that accept or refuse a complete message: LMTP, SMTP, a command.

A message is spooled in an unnamed file until it is complete, so an incomplete message is never
delivered.  These destinations cannot check whether they already have a message.  After a crash
between their response and the ledger, one message may be delivered twice.

A refusal may apply to one message or to all messages.  The next message is tried only if the
refusal applies to one message.  If a response does not show this, it counts as a doubt, and the
message is set aside.  After several doubts in a row without an accepted message, the destination is
considered broken (docs/decisions/0196-refusals.md).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import smtplib
import socket
import subprocess
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import IO

from ... import sysexits
from ...errors import (
    ConfigurationError,
    MessageRefused,
    PermanentFailure,
    TemporaryFailure,
    UnsafeArgument,
)
from ...wire import Stuffer
from . import Doubtful

_IN_MEMORY = 2**20  # octets; larger messages are spooled on disk
_PIECE = 65_536  # octets
_TIMEOUT = 300.0  # seconds for a response (RFC 5321 §4.5.3.2)
# Number of doubts in a row after which the destination is considered broken.  An estimate: high
# enough to get past a few messages that crash a program, but low enough to avoid downloading a
# whole maildrop for a broken destination.
_ENOUGH_DOUBTS = 10
HANG = 5  # a timeout counts as this number of doubts, because it takes minutes

# sysexits.h: temporary failures whose cause is not the message.
_LATER = {sysexits.EX_TEMPFAIL, sysexits.EX_OSERR, sysexits.EX_IOERR}
_PERMANENT = range(sysexits.EX_USAGE, sysexits.EX_CONFIG + 1)
_CLOSING = 421  # RFC 5321 §4.2.3
_OF_THE_MAILBOX = re.compile(r"4\d\d 4\.2\.")  # for example, the mailbox is full: RFC 3463 §3.3


class Handed:
    """Base class of destinations that spool a message before they deliver it."""

    is_repeatable = False

    def __init__(self) -> None:
        self._message: IO[bytes] | None = None
        self._doubts = 0  # number of consecutive doubts

    def has(self, identity: str) -> bool:
        return False

    def begin(self, identity: str) -> bool:
        self._message = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  # until abort
        return True

    def write(self, octets: bytes) -> None:
        assert self._message is not None
        self._message.write(octets)

    def commit(self) -> None:
        assert self._message is not None
        self._message.seek(0)
        self._hand_over(self._message)
        self._doubts = 0

    def _hand_over(self, message: IO[bytes]) -> None:
        raise NotImplementedError

    def _doubt(self, text: str, weight: int = 1) -> MessageRefused | TemporaryFailure:
        """Return the error for a response that may apply to this message or to all messages."""
        self._doubts += weight
        if self._doubts < _ENOUGH_DOUBTS:
            return Doubtful(text)
        return TemporaryFailure(f"{text} (and similar failures before it); all other mail waits")

    def abort(self) -> None:
        if self._message is not None:
            self._message.close()
            self._message = None

    def close(self) -> None:
        self.abort()


class Command(Handed):
    """A program that reads one message from standard input, such as a mail delivery agent.

    The message has LF line ends, as Unix programs expect.  It counts as stored only if the exit
    code is 0.
    """

    def __init__(self, command: str) -> None:
        """
        Raises:
            UnsafeArgument: the program is missing.
            ConfigurationError: the program does not exist.
        """
        super().__init__()
        self._arguments = shlex.split(command)
        if not self._arguments:
            raise UnsafeArgument("command: requires a program")
        if shutil.which(self._arguments[0]) is None:
            raise ConfigurationError(f"command: program not found: {self._arguments[0]}")
        self._cr = b""

    def begin(self, identity: str) -> bool:
        self._cr = b""  # a CR whose LF may be in the next piece
        return super().begin(identity)

    def write(self, octets: bytes) -> None:
        text = self._cr + octets
        self._cr = b"\r" if text.endswith(b"\r") else b""
        super().write(text.removesuffix(b"\r").replace(b"\r\n", b"\n"))

    def _hand_over(self, message: IO[bytes]) -> None:
        """
        Raises:
            MessageRefused: a permanent exit code of sysexits.h, such as 65; or another failure,
                after only a few failures in a row.
            TemporaryFailure: exit code 71, 74 or 75; or too many failures in a row.
        """
        message.seek(0, os.SEEK_END)
        message.write(self._cr)
        message.flush()
        # A file, because a pipe would block if the program reads nothing.
        os.lseek(message.fileno(), 0, os.SEEK_SET)
        with subprocess.Popen(
            self._arguments, stdin=message, stdout=subprocess.DEVNULL, start_new_session=True
        ) as program:
            try:
                code = program.wait(_TIMEOUT)
            except subprocess.TimeoutExpired as error:
                text = f"{self._arguments[0]}: still running after {_TIMEOUT:g} s"
                raise self._doubt(text, HANG) from error
            finally:
                if program.poll() is None:
                    os.killpg(program.pid, signal.SIGKILL)  # includes child processes
        if code:
            raise self._failed(code)

    def _failed(self, code: int) -> MessageRefused | TemporaryFailure:
        text = f"{self._arguments[0]}: ended with {code}"
        if code in _LATER:
            return TemporaryFailure(text)
        return MessageRefused(text) if code in _PERMANENT else self._doubt(text)


class Smtp(Handed):
    """Another mail server, over SMTP or LMTP; one connection is used for all messages."""

    def __init__(self, address: str, recipient: str, *, lmtp: bool) -> None:
        """``address`` is ``host:port`` or ``unix:/path``."""
        super().__init__()
        host, _, port = address.rpartition(":")
        self._path = address.removeprefix("unix:") if address.startswith("unix:/") else ""
        if not self._path and not (host and port.isdecimal()):
            raise UnsafeArgument("lmtp: and smtp: require host:port or unix:/path")
        if not recipient.isprintable() or set("<> ") & set(recipient) or not recipient:
            raise UnsafeArgument("the recipient must be an address without spaces and brackets")
        self._host, self._port = host.strip("[]"), int(port) if port.isdecimal() else 0
        self._recipient = recipient
        self._kind = smtplib.LMTP if lmtp else smtplib.SMTP
        self._server: smtplib.SMTP | None = None

    def _hand_over(self, message: IO[bytes]) -> None:
        """
        Raises:
            MessageRefused: 5yz after DATA; or 4yz or no response after DATA, after only a few
                doubts in a row.
            PermanentFailure: 5yz before DATA, which applies to all messages.
            TemporaryFailure: 4yz before DATA, no connection, or too many doubts in a row.
        """
        is_sent = False
        try:
            server = self._ready()
            is_sent = True
            self._send(server, message)
        except smtplib.SMTPResponseException as error:
            self._leave()
            text = f"{error.smtp_code} {os.fsdecode(error.smtp_error)}"
            raise self._refusal(error.smtp_code, text, is_sent=is_sent) from error
        except (smtplib.SMTPException, OSError) as error:
            self._leave()
            text = f"the mail server: {error}"
            raise (self._doubt(text, HANG) if is_sent else TemporaryFailure(text)) from error

    def _refusal(
        self, code: int, text: str, *, is_sent: bool
    ) -> MessageRefused | TemporaryFailure | PermanentFailure:
        is_permanent = 500 <= code < 600
        if is_sent and is_permanent:
            return MessageRefused(text)
        if is_sent and not _OF_THE_MAILBOX.match(text):
            return self._doubt(text)
        if is_permanent:
            text = f"the mail server accepts no mail for {self._recipient}: {text}"
            return PermanentFailure(text)
        return TemporaryFailure(text)

    def _ready(self) -> smtplib.SMTP:
        """Return the connection, ready for the message after DATA.

        If the server has dropped an idle connection, connect again (RFC 5321 §4.5.3.2.7).
        """
        if self._server is not None:
            try:
                return self._started(self._server)
            except smtplib.SMTPServerDisconnected:
                self._leave()
            except smtplib.SMTPResponseException as error:
                if error.smtp_code != _CLOSING:
                    raise
                self._leave()
        self._server = self._connect()
        return self._started(self._server)

    def _started(self, server: smtplib.SMTP) -> smtplib.SMTP:
        server.ehlo_or_helo_if_needed()
        # The null reverse-path: undeliverable mail must not be bounced to its forged senders.
        self._expect(2, server.docmd("MAIL", "FROM:<>"))
        self._expect(2, server.docmd("RCPT", f"TO:<{self._recipient}>"))
        self._expect(3, server.docmd("DATA"))
        return server

    def _send(self, server: smtplib.SMTP, message: IO[bytes]) -> None:
        stuffer = Stuffer()
        while piece := message.read(_PIECE):
            server.send(stuffer.feed(piece))
        server.send(stuffer.finish())
        self._expect(2, server.getreply())

    def _connect(self) -> smtplib.SMTP:
        if self._path:
            # smtplib's LMTP accepts a path as its host.
            return smtplib.LMTP(self._path, timeout=_TIMEOUT)
        return self._kind(
            self._host, self._port, local_hostname=socket.gethostname(), timeout=_TIMEOUT
        )

    def _expect(self, severity: int, reply: tuple[int, bytes]) -> None:
        """Check the first digit of a reply.

        The other digits vary: the reply to RCPT may be 251, for example (RFC 5321 §4.3.2).
        """
        if reply[0] // 100 != severity:
            raise smtplib.SMTPResponseException(*reply)

    def _leave(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        super().close()
        if self._server is not None:
            with suppress(smtplib.SMTPException, OSError):
                self._server.quit()
            self._leave()
