"""The POP3 client over sockets, in an asyncio and a blocking version."""
