"""POP3 without I/O, for the server's side and the client's: octets in, events out."""
