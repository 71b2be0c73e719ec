"""OAuth 2 for accounts elsewhere (RFC 6749): the user consents once, then tokens renew themselves.

``flow`` is the steps without I/O, ``web`` asks the provider, ``sealed`` keeps what it gave.
"""
