"""The server: listeners, admission, and one connection for each client."""
