"""Twisted's POP3 client: list, fetch everything, delete message 1."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet import defer, endpoints, ssl, task
from twisted.mail.pop3 import AdvancedPOP3Client

SECURITY, PORT, CA, USER, PASSWORD, FOLDER = sys.argv[1:]
TRUSTED = ssl.Certificate.loadPEM(Path(CA).read_bytes())


async def visit(reactor: Any) -> None:
    client = AdvancedPOP3Client()
    server = endpoints.HostnameEndpoint(reactor, "localhost", int(PORT))
    if SECURITY == "tls":
        server = endpoints.wrapClientTLS(ssl.optionsForClientTLS("localhost", TRUSTED), server)
    greeted: Any = defer.Deferred()
    client.serverGreeting = greeted.callback
    await endpoints.connectProtocol(server, client)
    await greeted
    await client.login(USER.encode(), PASSWORD.encode())  # uses STLS if offered
    for index, size in enumerate(await client.listSize()):  # it counts from 0
        print(index + 1, size)
        lines = await client.retrieve(index)
        store(index + 1, lines)
    await client.delete(0)
    await client.quit()


def store(number: int, lines: list[bytes]) -> None:
    (Path(FOLDER) / str(number)).write_bytes(b"".join(line + b"\r\n" for line in lines))


task.react(lambda reactor: defer.ensureDeferred(visit(reactor)))
