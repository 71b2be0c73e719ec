"""Certificates that no authority would issue."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_SRV_NAME = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.7")  # RFC 4985 §2


def srv_name(text: str) -> x509.GeneralName:
    """Return a name for a service, encoded as IA5String."""
    return x509.OtherName(_SRV_NAME, bytes([0x16, len(text)]) + text.encode())


def dns_name(text: str) -> x509.GeneralName:
    """Return a DNS name, possibly with invalid octets."""
    return x509.DNSName._init_without_validation(text)


def make(
    folder: Path,
    names: Sequence[x509.GeneralName],
    common: str = "x",
    *,
    ends_in: timedelta = timedelta(hours=1),
) -> tuple[Path, Path]:
    """Make a self-signed certificate, which may have expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + ends_in)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    made = builder.sign(key, hashes.SHA256())
    certificate, private = folder / "odd.pem", folder / "odd.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, private
