"""``restante demo``: run a server and a client on loopback, with temporary files only."""

from __future__ import annotations

import argparse
import asyncio
import os
import poplib
import smtplib
import sys
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path
from tempfile import TemporaryDirectory

from .. import tls
from ..app import stores
from ..app.server import Running, run_loop, running
from ..auth import passwords
from ..client import asynchronous
from ..config import Configuration, ephemeral
from ..server.address import Address
from ..words import counted, size
from . import common

_MESSAGES = (
    ("Invoice 4711", "supplier@example.com", "The invoice is in your post office box."),
    ("Re: order", "bob@example.net", "It left the warehouse this morning.\n\n.a line with a dot"),
    ("Photos", "eve@example.org", "Three photos of the lighthouse."),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Start a server on this machine, deliver messages, fetch and delete them with a client, "
        "and restore them. All files are temporary."
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demonstration, and remove its temporary files."""
    common.refuse_json(options)
    with TemporaryDirectory(prefix="restante-demo-") as folder:
        run_loop(_demonstrate(ephemeral(Path(folder))))
    _print("stop", "Server stopped; temporary files removed.")
    return os.EX_OK


async def _demonstrate(config: Configuration) -> None:
    users = stores.users(config)
    store = stores.store(config, users)
    password = passwords.generate()
    await asyncio.to_thread(users.add, "ann", password)
    async with running(config, users, store) as server:
        _print("start", f"POP3S on {server.addresses['pop3s']}, LMTP on {server.addresses['lmtp']}")
        _print("", "The new certificate has the SHA-256 fingerprint")
        for half in common.halves(tls.fingerprint(server.certificate)):
            _print("", f"  {half}")

        await asyncio.to_thread(_deliver, server)
        _print(
            "deliver",
            f"{len(_MESSAGES)} messages over LMTP; each is stored before it is accepted.",
        )

        url = f"pop3s://ann@{server.addresses['pop3s']}"
        async with asynchronous.connect(
            url, password=password, ca_file=server.certificate
        ) as maildrop:
            for message in await maildrop.list():
                octets = b"".join([piece async for piece in maildrop.retrieve(message)])
                subject = _subject(octets)
                _print("fetch", f"{message.number}  {size(message.size):>9}  {subject}")
                await maildrop.delete(message)
            _print("delete", "All messages are marked as deleted; QUIT removes them.")

        count = await asyncio.to_thread(_count_with_poplib, server, password)
        _print("poplib", f"Python's own client finds {counted(count, 'message')}. Are they lost?")

        held = await store.held("ann")
        restored = await store.restore("ann", held)
        _print("restore", f"No: {counted(restored, 'message')} restored, with new unique-ids.")

        count = await asyncio.to_thread(_count_with_poplib, server, password, fetch=True)
        _print("poplib", f"It connects again and fetches {counted(count, 'message')}.")


def _deliver(server: Running) -> None:
    """Deliver the messages over LMTP, as a mail server does."""
    address = Address.parse(server.addresses["lmtp"])
    with smtplib.LMTP(address.host, address.port) as lmtp:
        for subject, sender, text in _MESSAGES:
            message = EmailMessage()
            message["From"], message["To"], message["Subject"] = sender, "ann@localhost", subject
            message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="localhost")
            message.set_content(text)
            lmtp.send_message(message)


def _count_with_poplib(server: Running, password: str, *, fetch: bool = False) -> int:
    """Return the number of messages that Python's poplib finds; ``fetch`` downloads them."""
    address = Address.parse(server.addresses["pop3s"])
    maildrop = poplib.POP3_SSL(
        address.host, address.port, context=tls.client_context(server.certificate)
    )
    maildrop.user("ann")
    maildrop.pass_(password)
    count, _ = maildrop.stat()
    if fetch:
        for number in range(1, count + 1):
            maildrop.retr(number)
    maildrop.quit()
    return count


def _subject(octets: bytes) -> str:
    lines = octets.partition(b"\r\n\r\n")[0].decode("ascii", "replace").split("\r\n")
    return next(line for line in lines if line.startswith("Subject: "))


def _print(step: str, text: str) -> None:
    strong, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    print(f"{strong}{step:>9}{plain}  {text}", flush=True)
