"""restante: mail held until called for.  A POP3 server, client library and collector."""

__version__ = "0.1.0"
