"""Compose mail to the operator, and store it once.

Security: the mail contains no secrets.  Untrusted text must be escaped by the caller.
"""

from __future__ import annotations

import textwrap
import time

from ..collect.destinations import Destination

_WIDTH = 72  # characters per line, the convention for plain-text mail


def mail(host: str, recipient: str, subject: str, text: str, identity: str = "") -> bytes:
    """Return a mail from the server ``host``, as CRLF text.

    Mails with the same ``identity`` have the same Message-ID.
    """
    from email import policy  # imported only for the rare sessions that cause an alert
    from email.message import EmailMessage
    from email.utils import format_datetime, localtime, make_msgid

    message = EmailMessage(policy.SMTP)
    message["Subject"] = subject
    message["From"] = f"restante <postmaster@{host}>"
    if "@" in recipient:
        message["To"] = recipient
    message["Date"] = format_datetime(localtime())
    message["Message-ID"] = f"<{identity}@{host}>" if identity else make_msgid(domain=host)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834
    message.set_content(text)
    return message.as_bytes()


def put(destination: Destination, identity: str, message: bytes) -> None:
    """Store a message at the destination unless it is there already."""
    try:
        if not destination.has(identity) and destination.begin(identity):
            destination.write(message)
            destination.commit()
    finally:
        destination.abort()


def quoted(text: str) -> str:
    """Return text as an indented paragraph."""
    return textwrap.fill(
        text, _WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
    )


def when(seconds: float) -> str:
    """Return a local time, such as "2026-11-30 19:30 CET"."""
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(seconds))
