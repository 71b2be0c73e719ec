"""The client: POP3 over sockets, with asyncio and without."""
