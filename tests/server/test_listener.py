"""Where connections come in: whose they are, and what may not be in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from restante.errors import CannotListen, ConfigurationError
from restante.server.listener import Address, Admission, bind


def test_neighbours_in_a_64_share_their_seats() -> None:
    """Whoever has one IPv6 address has 2^64 of them."""
    admission = Admission(100, 2)
    assert admission.enter("2001:db8:0:1::1")
    assert admission.enter("2001:db8:0:1:ffff::2")
    assert admission.enter("2001:db8:0:1::3") is None
    assert admission.enter("2001:db8:0:2::1")
    assert all(admission.enter("192.0.2.1") for _ in range(2))
    assert admission.enter("192.0.2.1") is None
    assert admission.enter("192.0.2.2")


def test_a_socket_that_a_crash_has_left_is_replaced(tmp_path: Path) -> None:
    address = Address.parse(f"unix:{tmp_path}/lmtp")
    bind(address).close()
    assert (tmp_path / "lmtp").is_socket()
    with bind(address), pytest.raises(CannotListen), bind(address):
        pass  # the first one lives


def test_a_file_in_the_way_of_a_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "lmtp").write_text("of somebody")
    with pytest.raises(CannotListen), bind(Address.parse(f"unix:{tmp_path}/lmtp")):
        pass
    assert (tmp_path / "lmtp").read_text() == "of somebody"


@pytest.mark.parametrize("text", ["unix:", "pop3:", "127.0.0.1", "127.0.0.1:65536", "pop3://x:y"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no address"):
        Address.parse(text)
