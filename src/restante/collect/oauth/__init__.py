"""OAuth 2 for accounts on other servers (RFC 6749).

The user signs in once, and restante then renews the tokens.  ``flow`` contains the steps without
I/O, ``web`` sends requests to the provider, and ``sealed`` stores tokens.
"""
