"""Sockets, TLS and event loops around the protocol."""
