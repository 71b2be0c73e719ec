"""SASL mechanisms (RFC 4422, RFC 5034), with one module for each mechanism."""
