"""Run checks as the server's user if root runs ``restante doctor``.

As root, a check would see files that the server cannot open, and could create files that the server
cannot open.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from ... import sysexits
from ...errors import ConfigurationError
from .. import privileges
from .findings import Finding, error

if TYPE_CHECKING:
    from pwd import struct_passwd


def as_user(account: struct_passwd, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings that a child process produces with the rights of another user.

    The current process must have only one thread.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            with open(writing, "w", encoding="utf-8") as pipe:
                for finding in _produced(account, findings):
                    pipe.write(json.dumps(finding.encoded()) + "\n")
                    pipe.flush()
        finally:
            os._exit(0)
    os.close(writing)
    try:
        with open(reading, encoding="utf-8") as pipe:
            for line in pipe:
                with suppress(ValueError):  # the child was killed
                    yield Finding.decoded(json.loads(line))
    finally:
        os.waitpid(child, 0)  # after Ctrl-C, the child undoes what it did


def _produced(account: struct_passwd, findings: Iterable[Finding]) -> Iterator[Finding]:
    try:
        privileges.become(account)
    except ConfigurationError as failure:
        yield error(sysexits.EX_NOPERM, str(failure))
    else:
        yield from findings
