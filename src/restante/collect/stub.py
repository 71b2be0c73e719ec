"""Create a stub: the header of a message that is too large, with a note instead of its body.

Security: the header is untrusted, so the note does not repeat any part of it.
"""

from __future__ import annotations

import re

_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")  # obsolete syntax allows white space before the colon
_BODY_FIELD = re.compile(rb"(content-|mime-version[ \t]*:)", re.IGNORECASE)

_NOTE = """\
This is only the header of a message of {size} octets. The account {account}
does not collect messages of this size automatically. The message is still
on the server and is not deleted there. To collect the whole message, run:

    restante collect {account} --whole {name}
"""


def stub(header: bytes, account: str, name: str, size: int) -> bytes:
    """Return the stub, with CRLF line endings.

    ``name`` is the message's short name, ``size`` is its size in octets.  Header fields about the
    body do not apply to the note, so they are renamed, for example to
    ``X-Restante-Was-Content-Type``.
    """
    lines = [f"X-Restante-Stub: {account} {name}; octets={size}".encode()]
    is_field = False
    for line in header.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        if not line.startswith((b" ", b"\t")):  # any other line would end the header
            is_field = _FIELD.match(line) is not None
        if is_field:
            lines.append((b"X-Restante-Was-" if _BODY_FIELD.match(line) else b"") + line)
    note = _NOTE.format(account=account, name=name, size=size)
    lines += [b"MIME-Version: 1.0", b"Content-Type: text/plain; charset=us-ascii", b""]
    return b"\r\n".join([*lines, *note.encode().split(b"\n")])
