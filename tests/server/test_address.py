"""Addresses to listen on, and files at the path of a socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from restante.errors import CannotListen, ConfigurationError
from restante.server.address import Address
from restante.server.binding import bind


def test_socket_left_by_a_crash_is_replaced(tmp_path: Path) -> None:
    address = Address.parse(f"unix:{tmp_path}/lmtp")
    bind(address).close()
    assert (tmp_path / "lmtp").is_socket()
    with bind(address), pytest.raises(CannotListen), bind(address):
        pass  # the first server still runs


def test_file_at_the_path_of_a_socket_is_kept(tmp_path: Path) -> None:
    (tmp_path / "lmtp").write_text("of somebody")
    with pytest.raises(CannotListen), bind(Address.parse(f"unix:{tmp_path}/lmtp")):
        pass
    assert (tmp_path / "lmtp").read_text() == "of somebody"


@pytest.mark.parametrize("text", ["unix:", "pop3:", "127.0.0.1", "127.0.0.1:65536", "pop3://x:y"])
def test_invalid_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an address"):
        Address.parse(text)
