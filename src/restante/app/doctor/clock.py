"""Compare the clock with the time at which the server last ran, and with an NTP server."""

from __future__ import annotations

import secrets
import socket
import struct
import time
from collections.abc import Iterator

from ... import sysexits
from .. import stores
from ..upkeep import format_time
from .findings import Finding, Subject, error, not_checked, ok, warning

_LARGEST_OFFSET = 2.0  # seconds; time-based one-time codes and log times need no more than that
_PORT = 123
_LENGTH = 48  # octets of an NTP packet without extensions (RFC 5905 §7.3)
_EPOCH = 2_208_988_800  # seconds from 1900, where NTP begins, to 1970
_CLIENT, _SERVER = 0x23, 4  # version 4 with mode 3; mode 4


def clock(subject: Subject) -> Iterator[Finding]:
    """Check the clock, by which held mail is destroyed and certificates expire."""
    reading = stores.clock(subject.config).read()
    if reading.is_behind:
        text = f"the clock is behind {format_time(reading.mark)}, when the server last ran"
        yield error(sysexits.EX_TEMPFAIL, text, "timedatectl set-ntp true")
        return
    if not subject.ntp:
        yield not_checked("give an NTP server with --ntp HOST to compare the clock")
        return
    try:
        offset = _offset(subject.ntp, subject.timeout)
    except TimeoutError:
        yield not_checked(f"{subject.ntp} does not answer over NTP")
    except OSError as failure:
        yield not_checked(f"{subject.ntp}: {failure.strerror or failure}")
    else:
        if abs(offset) > _LARGEST_OFFSET:
            direction = "behind" if offset > 0 else "ahead of"
            text = f"the clock is {abs(offset):.1f} s {direction} that of {subject.ntp}"
            yield warning(text, "timedatectl set-ntp true")
        else:
            yield ok(f"the clock differs from that of {subject.ntp} by {abs(offset):.1f} s")


def _offset(host: str, seconds: float) -> float:
    """Return how many seconds an NTP server's clock is ahead of ours (RFC 5905 §8).

    Raises:
        OSError: there is no such host, or no valid answer arrives in time (``TimeoutError``).
    """
    name, _, port = host.partition(":") if host.count(":") == 1 else (host, "", "")
    [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
        name, int(port or _PORT), type=socket.SOCK_DGRAM
    )
    cookie = secrets.token_bytes(8)  # in place of our time, so that no answer can be forged
    deadline = time.monotonic() + seconds
    with socket.socket(family, kind, protocol) as connected:
        connected.connect(address)
        sent = time.time()
        connected.send(bytes([_CLIENT]).ljust(_LENGTH - 8, b"\0") + cookie)
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            connected.settimeout(remaining)
            answer = connected.recv(1024)
            received = time.time()
            is_valid = len(answer) >= _LENGTH and answer[0] & 7 == _SERVER and 0 < answer[1] < 16
            if is_valid and answer[24:32] == cookie:
                break
    arrived, left = (_seconds(answer[start : start + 8]) for start in (32, 40))
    return ((arrived - sent) + (left - received)) / 2


def _seconds(stamp: bytes) -> float:
    """Return a time stamp of NTP (RFC 5905 §6) in seconds since 1970, until 2036."""
    whole, fraction = struct.unpack("!II", stamp)
    return float(whole - _EPOCH + fraction / 2**32)
