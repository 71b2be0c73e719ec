"""SASLprep (RFC 4013): converts names and passwords that look alike to the same text.

Security: malformed and forbidden texts are refused in the same way as a wrong password.
"""

from __future__ import annotations

import stringprep
from unicodedata import ucd_3_2_0

from ..errors import AuthenticationFailed
from ..passdb import MAX_PASSWORD

# Octets of UTF-8.  In the worst case, normalisation takes quadratic time: a few milliseconds for
# this length.
MAX_TEXT = MAX_PASSWORD
_FORBIDDEN = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,  # includes lone surrogates, which stand for octets that are not UTF-8
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def saslprep(text: str) -> str:
    """Return the text, prepared as a query string.

    It may contain characters that are not assigned in Unicode 3.2 (RFC 4013 §2.5).

    Raises:
        AuthenticationFailed: the text is too long, forbidden or malformed, or the result is empty
            (RFC 5034 §4).
    """
    if len(text) > MAX_TEXT or len(text.encode("utf-8", "surrogateescape")) > MAX_TEXT:
        raise AuthenticationFailed("too-long")
    if text.isascii() and text.isprintable() and text:
        return text
    mapped = "".join(
        " " if stringprep.in_table_c12(each) else each
        for each in text
        if not stringprep.in_table_b1(each)
    )
    normal = ucd_3_2_0.normalize("NFKC", mapped)
    if not normal or any(is_in(each) for each in normal for is_in in _FORBIDDEN):
        raise AuthenticationFailed("unprepared")
    if any(map(stringprep.in_table_d1, normal)) and (
        any(map(stringprep.in_table_d2, normal))
        or not (stringprep.in_table_d1(normal[0]) and stringprep.in_table_d1(normal[-1]))
    ):
        raise AuthenticationFailed("unprepared")
    return normal
