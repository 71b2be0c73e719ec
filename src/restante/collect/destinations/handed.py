"""Destinations that take a message whole and answer: LMTP, SMTP, a command.

Each waits in an unnamed file until all of it is here, so nobody is handed half a message.  None of
these can tell whether it has a message already: after a crash between their answer and the ledger
one message may be handed over twice.
"""

from __future__ import annotations

import os
import shlex
import smtplib
import socket
import subprocess
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import IO

from ...errors import MessageRefused, TemporaryFailure, UnsafeArgument
from ...wire import Stuffer

_IN_MEMORY = 2**20  # octets; a larger message waits on disk
_PIECE = 65_536  # octets
_PATIENCE = 300.0  # seconds for an answer (RFC 5321 §4.5.3.2)


class Handed:
    """What they have in common."""

    is_repeatable = False

    def __init__(self) -> None:
        self._message: IO[bytes] | None = None

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

    def _hand_over(self, message: IO[bytes]) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        if self._message is not None:
            self._message.close()
            self._message = None

    def close(self) -> None:
        self.abort()


class Command(Handed):
    """A program that reads one message from standard input, such as a mail delivery agent.

    It gets LF line ends, as Unix programs expect.  Only exit code 0 counts as stored.
    """

    def __init__(self, command: str) -> None:
        super().__init__()
        self._arguments = shlex.split(command)
        if not self._arguments:
            raise UnsafeArgument("command: wants a program")

    def _hand_over(self, message: IO[bytes]) -> None:
        """
        Raises:
            TemporaryFailure: it failed, was killed, or took too long.
        """
        program = subprocess.Popen(
            self._arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert program.stdin is not None
        try:
            with suppress(BrokenPipeError), program.stdin:  # its exit code tells
                last = b""
                while piece := message.read(_PIECE):
                    text = last + piece
                    last = b"\r" if text.endswith(b"\r") else b""
                    program.stdin.write(text.removesuffix(b"\r").replace(b"\r\n", b"\n"))
                program.stdin.write(last)
            code = program.wait(_PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise TemporaryFailure(f"{self._arguments[0]}: no end after {_PATIENCE:g} s") from error
        finally:
            if program.poll() is None:
                program.kill()
                program.wait()
        if code:
            raise TemporaryFailure(f"{self._arguments[0]}: ended with {code}")


class Smtp(Handed):
    """The next mail server, by SMTP or LMTP; one connection for all messages."""

    def __init__(self, address: str, recipient: str, *, lmtp: bool) -> None:
        """``address`` is ``host:port`` or ``unix:/path``."""
        super().__init__()
        host, _, port = address.rpartition(":")
        self._path = address.removeprefix("unix:") if address.startswith("unix:/") else ""
        if not self._path and not (host and port.isdecimal()):
            raise UnsafeArgument("lmtp: and smtp: want host:port or unix:/path")
        if not recipient.isprintable() or set("<> ") & set(recipient) or not recipient:
            raise UnsafeArgument("a recipient is an address without spaces and brackets")
        self._host, self._port = host.strip("[]"), int(port) if port.isdecimal() else 0
        self._recipient = recipient
        self._kind = smtplib.LMTP if lmtp else smtplib.SMTP
        self._server: smtplib.SMTP | None = None

    def _hand_over(self, message: IO[bytes]) -> None:
        """
        Raises:
            MessageRefused: 5yz; the message stays where it was.
            TemporaryFailure: 4yz, or no answer.
        """
        try:
            self._ask(message)
        except smtplib.SMTPResponseException as error:
            self._leave()
            answer = f"{error.smtp_code} {os.fsdecode(error.smtp_error)}"
            if 500 <= error.smtp_code < 600:
                raise MessageRefused(answer) from error
            raise TemporaryFailure(answer) from error
        except (smtplib.SMTPException, OSError) as error:
            self._leave()
            raise TemporaryFailure(f"the mail server: {error}") from error

    def _ask(self, message: IO[bytes]) -> None:
        server = self._server = self._server or self._connect()
        server.ehlo_or_helo_if_needed()
        # The null reverse-path: what cannot be delivered must not be bounced to strangers.
        self._expect(2, server.docmd("MAIL", "FROM:<>"))
        self._expect(2, server.docmd("RCPT", f"TO:<{self._recipient}>"))
        self._expect(3, server.docmd("DATA"))
        stuffer = Stuffer()
        while piece := message.read(_PIECE):
            server.send(stuffer.feed(piece))
        server.send(stuffer.finish())
        self._expect(2, server.getreply())

    def _connect(self) -> smtplib.SMTP:
        if self._path:
            # smtplib's LMTP takes a path where SMTP takes a host.
            return smtplib.LMTP(self._path, timeout=_PATIENCE)
        return self._kind(
            self._host, self._port, local_hostname=socket.gethostname(), timeout=_PATIENCE
        )

    def _expect(self, severity: int, reply: tuple[int, bytes]) -> None:
        """The first digit decides: RCPT may be answered by 251, say (RFC 5321 §4.3.2)."""
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
