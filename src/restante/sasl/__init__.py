"""SASL mechanisms, one small file each (RFC 4422, RFC 5034)."""

from __future__ import annotations

from .choice import choose, uses_binding
from .exchange import (
    Channel,
    ClientExchange,
    ClientLogin,
    ClientStep,
    Exchange,
    Lookup,
    Strength,
)
from .mechanisms import MECHANISMS, Binding, Mechanism, Needs, client_exchange

__all__ = [
    "MECHANISMS",
    "Binding",
    "Channel",
    "ClientExchange",
    "ClientLogin",
    "ClientStep",
    "Exchange",
    "Lookup",
    "Mechanism",
    "Needs",
    "Strength",
    "choose",
    "client_exchange",
    "uses_binding",
]
