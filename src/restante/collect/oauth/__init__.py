"""Log in to other servers with OAuth 2 (RFC 6749).

The user signs in once, and restante then renews the tokens.  ``flow`` creates requests and
interprets responses without I/O, ``web`` sends the requests to the provider, and ``sealed`` stores
the tokens.
"""
