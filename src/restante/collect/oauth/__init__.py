"""OAuth 2 for accounts elsewhere (RFC 6749): a person agrees once, the collector goes on alone.

``flow`` is the steps without I/O, ``web`` asks the provider, ``sealed`` keeps what it gave.
"""
