"""POP3 without I/O: octets in, events out, for the server's side and the client's."""
