"""SASL mechanisms, one small file each (RFC 4422, RFC 5034).

A mechanism's server half is a generator: it yields challenges, receives the client's
responses, and returns the credentials that were shown.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple

from ..passdb import Credentials
from . import plain

Exchange = Generator[bytes, bytes, Credentials]


class Mechanism(NamedTuple):
    """One row of ``MECHANISMS``."""

    server: Callable[[], Exchange]
    """Begins an exchange.  Raises AuthenticationFailed on a malformed response."""
    is_clear: bool
    """It shows the password, so it needs TLS (RFC 5034 §4)."""


MECHANISMS = {
    "PLAIN": Mechanism(plain.server, is_clear=True),
}
