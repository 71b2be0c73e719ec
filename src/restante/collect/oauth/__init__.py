"""OAuth 2 for accounts on other servers (RFC 6749): the user signs in once, then tokens are
renewed.

``flow`` has the steps without I/O, ``web`` sends requests to the provider, ``sealed`` stores
tokens.
"""
