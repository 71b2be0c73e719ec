"""The receiving side of SMTP and LMTP without I/O: octets in, events out."""
