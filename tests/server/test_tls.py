"""Certificates: made once, completely, and accepted by strict clients."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from restante import tls
from restante.errors import ConfigurationError
from restante.store.memory import MemoryStore

from ..support import Run, serving

NAMES = ["mail.example.org", "localhost", "127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [(hashes.SHA256(), "sha256"), (hashes.SHA384(), "sha384"), (None, "")],
    ids=["sha256", "sha384", "ed25519"],
)
def test_channel_binding_to_a_certificate(
    algorithm: hashes.SHA256 | hashes.SHA384 | None, digest: str
) -> None:
    """RFC 5929 §4.1: by the hash of its signature; Ed25519 has no separate hash."""
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    key = (
        ec.generate_private_key(ec.SECP256R1())
        if algorithm
        else ed25519.Ed25519PrivateKey.generate()
    )
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, algorithm)
        .public_bytes(serialization.Encoding.DER)
    )
    assert tls.end_point(made) == (hashlib.new(digest, made).digest() if digest else b"")


def test_the_key_is_private_and_both_stay_as_they_are(tmp_path: Path) -> None:
    certificate, key = tls.make_self_signed(tmp_path / "tls", NAMES)
    before = certificate.read_bytes(), key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    assert tls.make_self_signed(tmp_path / "tls", NAMES) == (certificate, key)
    assert (certificate.read_bytes(), key.read_bytes()) == before
    assert sorted(path.name for path in (tmp_path / "tls").iterdir()) == [
        "certificate.pem",
        "key.pem",
    ]


def test_concurrent_calls_make_one_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the calls finds a pair, so each makes one; all return the one stored first."""
    together = threading.Barrier(8)
    new_key = tls._new_key

    def new_key_together() -> bytes:
        together.wait(timeout=30)
        return new_key()

    def pair() -> tuple[bytes, bytes]:
        certificate, key = tls.make_self_signed(tmp_path, NAMES)
        tls.server_context(certificate, key)
        return certificate.read_bytes(), key.read_bytes()

    monkeypatch.setattr(tls, "_new_key", new_key_together)
    with ThreadPoolExecutor(8) as pool:
        made = [each.result() for each in [pool.submit(pair) for _ in range(8)]]
    assert len(set(made)) == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["certificate.pem", "key.pem"]


def test_crash_between_key_and_certificate_is_repaired(tmp_path: Path) -> None:
    certificate, _ = tls.make_self_signed(tmp_path, NAMES)
    certificate.unlink()
    tls.server_context(*tls.make_self_signed(tmp_path, NAMES))


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "mail.example.org"])
def test_it_is_its_own_trust_anchor_under_strict_rules(name: str, tmp_path: Path) -> None:
    """Python 3.13 sets VERIFY_X509_STRICT by default."""
    certificate, key = tls.make_self_signed(tmp_path, NAMES)
    client = tls.client_context(certificate)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    shake_hands(tls.server_context(certificate, key), client, name)


@pytest.mark.rfc("P-065", "P-130", "P-133")
def test_another_name_is_refused(tmp_path: Path) -> None:
    certificate, key = tls.make_self_signed(tmp_path, NAMES)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(
            tls.server_context(certificate, key), tls.client_context(certificate), "example.net"
        )


@pytest.mark.rfc("P-136")
def test_alpn_is_pop3(tmp_path: Path) -> None:
    certificate, key = tls.make_self_signed(tmp_path, NAMES)
    server = shake_hands(
        tls.server_context(certificate, key), tls.client_context(certificate), "localhost"
    )
    assert server.selected_alpn_protocol() == "pop3"
    assert server.version() == "TLSv1.3"


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname=name),
    ]
    for _ in range(6):
        for side in sides:
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    sides[0].do_handshake()
    return sides[0]


def test_resumed_session_gets_a_new_ticket(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """RFC 8446 §C.4: a ticket used only once does not reveal that a client comes back."""

    def visit(port: int, before: ssl.SSLSession | None) -> tuple[ssl.SSLSession, bool]:
        with (
            socket.create_connection(("127.0.0.1", port)) as connected,
            client_tls.wrap_socket(
                connected, server_hostname="localhost", session=before
            ) as client,
        ):
            assert client.recv(64).startswith(b"+OK")  # the ticket comes with it
            client.sendall(b"QUIT\r\n")
            assert client.recv(64).startswith(b"+OK")
            assert client.session is not None
            return client.session, bool(client.session_reused)

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls, implicit=True) as server:
            first, was_known = await asyncio.to_thread(visit, server.port, None)
            assert not was_known
            second, was_known = await asyncio.to_thread(visit, server.port, first)
            assert was_known
            third, was_known = await asyncio.to_thread(visit, server.port, second)
            assert was_known
        assert len({first.id, second.id, third.id}) == 3
        assert all(each.has_ticket for each in (first, second, third))

    run(main())


def test_the_cheapest_key_exchange_and_key(certificate: tuple[Path, Path]) -> None:
    """P-256 signs thirty times as fast as RSA, and one ticket is enough."""
    server = tls.server_context(*certificate)
    key = serialization.load_pem_private_key(certificate[1].read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    assert server.num_tickets == 1


def test_errors_name_the_file_and_the_mistake(tmp_path: Path) -> None:
    certificate, key = tls.make_self_signed(tmp_path / "one", NAMES)
    _, other = tls.make_self_signed(tmp_path / "two", NAMES)
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no PEM")
    for pair, words in (
        ((tmp_path / "none.pem", key), "none.pem: No such file"),
        ((certificate, other), "is not the key of"),
        ((garbage, key), "PEM format"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            tls.server_context(*pair)
    with pytest.raises(ConfigurationError, match="cannot read certificates"):
        tls.client_context(garbage)


def test_the_fingerprint_is_that_of_openssl(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command to compare with")
    certificate, _ = tls.make_self_signed(tmp_path, NAMES)
    command = [openssl, "x509", "-in", str(certificate), "-noout", "-fingerprint", "-sha256"]
    reported = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert reported.split("=")[1].strip().replace(":", "") == tls.fingerprint(certificate).replace(
        " ", ""
    )


# TLS settings of client and server.


@pytest.mark.rfc("P-129")
def test_no_client_certificate_is_requested(tmp_path: Path) -> None:
    assert tls.server_context(*tls.make_self_signed(tmp_path, NAMES)).verify_mode == ssl.CERT_NONE


@pytest.mark.rfc("P-138")
def test_every_cipher_suite_has_forward_secrecy_and_is_authenticated(tmp_path: Path) -> None:
    certificate, key = tls.make_self_signed(tmp_path, NAMES)
    for context in (tls.server_context(certificate, key), tls.client_context(certificate)):
        suites = context.get_ciphers()
        assert suites
        for suite in suites:
            assert suite["protocol"] == "TLSv1.3" or suite["name"].startswith("ECDHE-")
            assert suite["aead"], suite["name"]


@pytest.mark.rfc("P-131", "P-132")
@pytest.mark.parametrize(
    ("named", "asked", "fits"),
    [
        ("*.example.org", "mail.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "a.mail.example.org", False),
        ("m*.example.org", "mail.example.org", False),
        ("mail.example.org", "MAIL.example.org", True),
        ("mail.example.org", "mail.example.com", False),
    ],
)
def test_wildcard_matches_exactly_one_label(
    named: str, asked: str, fits: bool, tmp_path: Path
) -> None:
    """RFC 7817 §3."""
    certificate, key = tls.make_self_signed(tmp_path, [named])
    server, client = tls.server_context(certificate, key), tls.client_context(certificate)
    if fits:
        shake_hands(server, client, asked)
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(server, client, asked)
