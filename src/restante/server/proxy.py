"""Parse headers of the PROXY protocol, with which load balancers report their clients' addresses.

Standards: HAProxy's doc/proxy-protocol.txt, versions 1 and 2, whose sections are cited in this
module; RFC 3385 (CRC32C).
Security: the caller must read the header only from the proxies in the configuration, must end the
connection if the header is malformed, and must not read octets after the header, because they may
begin a TLS handshake.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address

from ..errors import HostileInput
from ..wire import CRLF

MAX_V1 = 107  # octets of a header of version 1, including CRLF (§2.1)
MAX_V2 = 4096  # octets after the first 16 of version 2; our own limit, the protocol allows 65,535
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"  # the first octets of version 2

_PORT = "(0|[1-9][0-9]{0,4})"
_V1 = re.compile(f"PROXY TCP([46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) {_PORT} {_PORT}", re.ASCII)
_LOCAL, _PROXY = 0x20, 0x21  # version 2 and the command
_ADDRESSES_LENGTH = {0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}  # octets by family, for streams
_SOURCE_LENGTH = {0x11: 4, 0x21: 16}  # octets of the source's IP address, by family
_CRC32C, _UNIQUE_ID, _SSL = 0x03, 0x05, 0x20  # types of the values after the addresses (§2.2)
_SSL_VERSION = 0x21  # type of a value within a value of type _SSL
_CLIENT_SSL = 0x01  # flag: the client uses TLS


@dataclass(frozen=True, slots=True)
class Origin:
    """Data about a client that a trusted proxy has reported."""

    address: str = ""
    """The client's address; empty if it was not reported."""
    tls: str = ""
    """The version of TLS between client and proxy, such as ``1.3``; ``no`` without TLS.  Empty if
    not reported; ``proxy`` if not reported, but the configuration states that TLS is used."""
    proxy: str = ""
    """The proxy's own address; empty without a proxy."""


def parse(octets: bytes) -> tuple[Origin, int] | None:
    """Return the data in a header, and its length in octets; None if the header is incomplete.

    Raises:
        HostileInput: the header is malformed.
    """
    if SIGNATURE.startswith(octets[: len(SIGNATURE)]):
        return _parse_v2(octets)
    return _parse_v1(octets)


def _parse_v1(octets: bytes) -> tuple[Origin, int] | None:
    if not octets.startswith(b"PROXY "[: len(octets)]):
        raise HostileInput("no PROXY header")
    line, end, _ = octets[:MAX_V1].partition(CRLF)
    if not end:
        if len(octets) >= MAX_V1 or b"\n" in octets or b"\r" in octets[:-1]:
            raise HostileInput("PROXY header without an end")
        return None
    text = line.decode("latin-1")
    if b"\r" in line or b"\n" in line:
        raise HostileInput("a bare CR or LF in a PROXY header")
    if text == "PROXY UNKNOWN" or text.startswith("PROXY UNKNOWN "):
        return Origin(), len(line) + 2
    match = _V1.fullmatch(text)
    if match is None or max(int(match[4]), int(match[5])) > 65_535:
        raise HostileInput("malformed PROXY header")
    try:
        source, destination = ip_address(match[2]), ip_address(match[3])
    except ValueError as error:
        raise HostileInput("malformed address in a PROXY header") from error
    if not source.version == destination.version == int(match[1]):
        raise HostileInput("an address of the wrong family in a PROXY header")
    return Origin(str(source)), len(line) + 2


def _parse_v2(octets: bytes) -> tuple[Origin, int] | None:
    if len(octets) < 16:
        return None
    command, family, length = struct.unpack_from("!BBH", octets, 12)
    if command not in (_LOCAL, _PROXY):
        raise HostileInput("unknown command in a PROXY header")
    if length > MAX_V2:
        raise HostileInput("overlong PROXY header")
    end = 16 + length
    if len(octets) < end:
        return None
    if command == _LOCAL:
        return Origin(), end
    return _origin(octets[:end], family), end


def _origin(header: bytes, family: int) -> Origin:
    """Return the data in a complete header of version 2."""
    begin = 16 + _ADDRESSES_LENGTH.get(family, len(header))
    if begin > len(header):
        raise HostileInput("unknown family in a PROXY header")
    tls = ""
    for kind, value, offset in _values(header, begin):
        if kind == _CRC32C:
            _verify_checksum(header, value, offset)
        elif kind == _UNIQUE_ID and len(value) > 128:
            raise HostileInput("overlong unique id in a PROXY header")
        elif kind == _SSL:
            tls = _tls_version(value)
    source = header[16 : 16 + _SOURCE_LENGTH.get(family, 0)]
    return Origin(str(ip_address(source)) if source else "", tls)


def _values(octets: bytes, offset: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield type, content and offset of each value from ``offset`` to the end."""
    while offset < len(octets):
        if len(octets) - offset < 3:
            raise HostileInput("a truncated value in a PROXY header")
        kind, length = struct.unpack_from("!BH", octets, offset)
        offset += 3
        value = octets[offset : offset + length]
        if len(value) < length:
            raise HostileInput("a truncated value in a PROXY header")
        yield kind, value, offset
        offset += length


def _tls_version(value: bytes) -> str:
    """Return the client's TLS version, or ``no`` for a connection without TLS."""
    if len(value) < 5:
        raise HostileInput("a truncated value in a PROXY header")
    if not value[0] & _CLIENT_SSL:
        return "no"
    versions = [each for kind, each, _ in _values(value, 5) if kind == _SSL_VERSION]
    version = versions[0].decode("latin-1").removeprefix("TLSv") if versions else ""
    return version if re.fullmatch(r"[0-9.]{1,8}", version) else "unknown"


def _verify_checksum(header: bytes, value: bytes, offset: int) -> None:
    """Verify the checksum of a header, in which the checksum's own octets are zero (§2.2.3)."""
    zeroed = header[:offset] + bytes(4) + header[offset + 4 :]
    if len(value) != 4 or crc32c(zeroed) != int.from_bytes(value, "big"):
        raise HostileInput("wrong checksum in a PROXY header")


def crc32c(octets: bytes) -> int:
    """Return the CRC-32C checksum (Castagnoli, RFC 3385)."""
    crc, table = 0xFFFFFFFF, _table()
    for octet in octets:
        crc = table[(crc ^ octet) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    def entry(value: int) -> int:
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        return value

    return tuple(map(entry, range(256)))
