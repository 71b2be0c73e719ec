"""The configuration: one TOML file and its options.

``schema`` declares the options, ``values`` checks their values, ``loading`` reads the files, and
``manual`` generates the documentation.
"""

from .loading import SYSTEM, ephemeral, load
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
    "octets",
    "sections",
    "toml",
]
