"""SASL mechanisms, one small file each (RFC 4422, RFC 5034)."""
