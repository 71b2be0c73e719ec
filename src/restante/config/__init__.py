"""The configuration: its options, how it is read, and its documentation.

``schema`` declares the options, ``values`` checks their values, ``loading`` reads TOML files and
other sources, and ``manual`` generates the documentation.
"""

from .loading import SYSTEM, ephemeral, load, new_file, place, preview, runtime
from .manual import example, sections, toml
from .schema import (
    ALL_MECHANISMS,
    BACKENDS,
    LDAP,
    LMTP,
    MECHANISMS,
    PAM,
    SMTP,
    TLS,
    Account,
    Alert,
    Auth,
    Collect,
    Configuration,
    Intake,
    Limits,
    Log,
    OAuth,
    PasswdFile,
    Provider,
    Server,
    Store,
)
from .values import Secret, duration, octets

__all__ = [
    "ALL_MECHANISMS",
    "BACKENDS",
    "LDAP",
    "LMTP",
    "MECHANISMS",
    "PAM",
    "SMTP",
    "SYSTEM",
    "TLS",
    "Account",
    "Alert",
    "Auth",
    "Collect",
    "Configuration",
    "Intake",
    "Limits",
    "Log",
    "OAuth",
    "PasswdFile",
    "Provider",
    "Secret",
    "Server",
    "Store",
    "duration",
    "ephemeral",
    "example",
    "load",
    "new_file",
    "octets",
    "place",
    "preview",
    "runtime",
    "sections",
    "toml",
]
