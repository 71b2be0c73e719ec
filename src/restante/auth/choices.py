"""Names that the configuration accepts, in a module of their own that imports no other code."""

from __future__ import annotations

# Hash schemes of a passwd-file (``schemes``).
SCHEMES = (
    *("ARGON2I", "ARGON2ID", "BLF-CRYPT", "CRYPT", "PBKDF2", "PLAIN", "SCRAM-SHA-256"),
    *("SHA", "SHA1", "SHA256", "SHA256-CRYPT", "SHA512", "SHA512-CRYPT"),
    *("SSHA", "SSHA256", "SSHA512"),
)
# Signatures of OAuth 2 tokens (``tokens``).
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
# SASL mechanisms (``sasl.mechanisms``).
MECHANISMS = (
    *("EXTERNAL", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1"),
    *("OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN"),
)
