"""The POP3 protocol without I/O: the server's side and the client's side."""
