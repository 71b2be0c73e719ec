"""A stub: the header of a message that is too large, with a note in place of its body.

Security: the header is a stranger's; nothing of it becomes part of the note.
"""

from __future__ import annotations

import re

_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")  # a name, and white space as old mail has it
_OF_THE_BODY = re.compile(rb"(content-|mime-version[ \t]*:)", re.IGNORECASE)

_NOTE = """\
This is only the header of a message of {size} octets, which is larger than
the account {account} takes by itself. The message is on its server still, and
is not deleted there. To have all of it:

    restante collect {account} --whole {name}
"""


def stub(header: bytes, account: str, name: str, size: int) -> bytes:
    """CRLF text.  ``name`` is the message's short name, ``size`` its octets.

    What the header says of the body is not true of the note, and stands under other names:
    ``X-Restante-Was-Content-Type``.
    """
    lines = [f"X-Restante-Stub: {account} {name}; octets={size}".encode()]
    is_field = False
    for line in header.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        if not line.startswith((b" ", b"\t")):  # what is no header field would end the header
            is_field = _FIELD.match(line) is not None
        if is_field:
            lines.append((b"X-Restante-Was-" if _OF_THE_BODY.match(line) else b"") + line)
    note = _NOTE.format(account=account, name=name, size=size)
    lines += [b"MIME-Version: 1.0", b"Content-Type: text/plain; charset=us-ascii", b""]
    return b"\r\n".join([*lines, *note.encode().split(b"\n")])
