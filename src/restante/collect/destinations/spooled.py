"""Deliver mail to LMTP and SMTP servers and to commands, which accept or refuse a whole message.

A message is spooled in an unnamed file until it is complete, so an incomplete message is never
delivered.  These destinations cannot check whether they already have a message.  After a crash
between their response and the record in the ledger, one message may be delivered twice.

A refusal may apply to one message or to all messages.  If it applies to all messages, the run ends;
otherwise the next message is tried.  If a response does not show which of the two is the case, it
counts as a *doubt*, and the message is set aside.  After several doubts in a row, without an
accepted message between them, the destination is considered broken
(docs/decisions/0196-refusals.md).
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
# Number of doubts in a row after which the destination is considered broken.  This value is
# an estimate: a few messages that crash a program must not stop the delivery of the others, but a
# broken destination must not cause the download of a whole maildrop.
_MAX_DOUBTS = 10
HANG_WEIGHT = 5  # number of doubts that a timeout counts as, because each timeout takes minutes

# Exit codes of sysexits.h for temporary failures whose cause is not the message.
_TEMPORARY = {sysexits.EX_TEMPFAIL, sysexits.EX_OSERR, sysexits.EX_IOERR}
_PERMANENT = range(sysexits.EX_USAGE, sysexits.EX_CONFIG + 1)
_CLOSING = 421  # RFC 5321 §4.2.3
_MAILBOX_STATUS = re.compile(r"4\d\d 4\.2\.")  # for example, the mailbox is full: RFC 3463 §3.3


class Spooled:
    """Base class of destinations that spool a message before they deliver it."""

    is_repeatable = False

    def __init__(self) -> None:
        self._message: IO[bytes] | None = None
        self._doubts = 0  # number of consecutive doubts

    def has(self, identity: str) -> bool:
        return False

    def begin(self, identity: str) -> bool:
        self._message = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  # ``abort`` closes it
        return True

    def write(self, octets: bytes) -> None:
        assert self._message is not None
        self._message.write(octets)

    def commit(self) -> None:
        assert self._message is not None
        self._message.seek(0)
        self._deliver(self._message)
        self._doubts = 0

    def _deliver(self, message: IO[bytes]) -> None:
        """Deliver the complete message."""
        raise NotImplementedError

    def _doubtful_error(self, text: str, weight: int = 1) -> MessageRefused | TemporaryFailure:
        """Return the error for a response that may apply to this message or to all messages.

        ``weight`` is the number of doubts that the response counts as.
        """
        self._doubts += weight
        if self._doubts < _MAX_DOUBTS:
            return Doubtful(text)
        return TemporaryFailure(
            f"{text} (after similar failures of other messages); all other mail stays on the server"
        )

    def abort(self) -> None:
        if self._message is not None:
            self._message.close()
            self._message = None

    def close(self) -> None:
        self.abort()


class Command(Spooled):
    """A program that reads one message from standard input, such as a mail delivery agent.

    The message has LF line endings, as Unix programs expect.  It counts as stored only if the exit
    code is 0.
    """

    def __init__(self, command: str) -> None:
        """``command`` is a program with its arguments, quoted as for a shell.

        Raises:
            UnsafeArgument: ``command`` is empty.
            ConfigurationError: the program does not exist.
        """
        super().__init__()
        self._arguments = shlex.split(command)
        if not self._arguments:
            raise UnsafeArgument("command: the program is missing")
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

    def _deliver(self, message: IO[bytes]) -> None:
        """Run the program with the message.

        Raises:
            MessageRefused: a permanent exit code of sysexits.h, such as 65.
            Doubtful: another exit code, or a timeout.
            TemporaryFailure: exit code 71, 74 or 75, or too many doubts in a row.
        """
        message.seek(0, os.SEEK_END)
        message.write(self._cr)
        message.flush()
        # The input is a file, because a pipe would block if the program does not read.
        os.lseek(message.fileno(), 0, os.SEEK_SET)
        with subprocess.Popen(
            self._arguments, stdin=message, stdout=subprocess.DEVNULL, start_new_session=True
        ) as program:
            try:
                code = program.wait(_TIMEOUT)
            except subprocess.TimeoutExpired as error:
                text = f"{self._arguments[0]}: still running after {_TIMEOUT:g} s"
                raise self._doubtful_error(text, HANG_WEIGHT) from error
            finally:
                if program.poll() is None:
                    os.killpg(program.pid, signal.SIGKILL)  # includes child processes
        if code:
            raise self._failure(code)

    def _failure(self, code: int) -> MessageRefused | TemporaryFailure:
        text = f"{self._arguments[0]}: exit code {code}"
        if code in _TEMPORARY:
            return TemporaryFailure(text)
        return MessageRefused(text) if code in _PERMANENT else self._doubtful_error(text)


class Smtp(Spooled):
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

    def _deliver(self, message: IO[bytes]) -> None:
        """Send the message.

        Raises:
            MessageRefused: 5yz after DATA.
            Doubtful: 4yz or no response after DATA.
            PermanentFailure: 5yz before DATA, which applies to all messages.
            TemporaryFailure: 4yz before DATA, a full mailbox, no connection, or too many doubts in
                a row.
        """
        is_sent = False
        try:
            server = self._begin_message()
            is_sent = True
            self._send(server, message)
        except smtplib.SMTPResponseException as error:
            self._drop_connection()
            text = f"{error.smtp_code} {os.fsdecode(error.smtp_error)}"
            raise self._refusal(error.smtp_code, text, is_sent=is_sent) from error
        except (smtplib.SMTPException, OSError) as error:
            self._drop_connection()
            text = f"the mail server: {error}"
            raise (
                self._doubtful_error(text, HANG_WEIGHT) if is_sent else TemporaryFailure(text)
            ) from error

    def _refusal(
        self, code: int, text: str, *, is_sent: bool
    ) -> MessageRefused | TemporaryFailure | PermanentFailure:
        is_permanent = 500 <= code < 600
        if is_sent and is_permanent:
            return MessageRefused(text)
        if is_sent and not _MAILBOX_STATUS.match(text):
            return self._doubtful_error(text)
        if is_permanent:
            text = f"the mail server accepts no mail for {self._recipient}: {text}"
            return PermanentFailure(text)
        return TemporaryFailure(text)

    def _begin_message(self) -> smtplib.SMTP:
        """Send all commands up to DATA, and return the connection.

        If the server has dropped an idle connection, connect again (RFC 5321 §4.5.3.2.7).
        """
        if self._server is not None:
            try:
                return self._start_data(self._server)
            except smtplib.SMTPServerDisconnected:
                self._drop_connection()
            except smtplib.SMTPResponseException as error:
                if error.smtp_code != _CLOSING:
                    raise
                self._drop_connection()
        self._server = self._connect()
        return self._start_data(self._server)

    def _start_data(self, server: smtplib.SMTP) -> smtplib.SMTP:
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

    def _drop_connection(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        super().close()
        if self._server is not None:
            with suppress(smtplib.SMTPException, OSError):
                self._server.quit()
            self._drop_connection()
