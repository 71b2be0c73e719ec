"""TLS contexts for both sides, and a certificate for where there is none.

Standards: RFC 8314, RFC 8997 and RFC 9325 (TLS 1.2 at least, forward secrecy, AEAD), RFC 7301 with
the identifier ``pop3``.
"""

from __future__ import annotations

import os
import re
import secrets
import ssl
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

from ..errors import ConfigurationError

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all good
_LIFETIME = timedelta(days=3650)  # devices remember this very certificate


def server_context(certificate: Path, key: Path, minimum: str = "1.2") -> ssl.SSLContext:
    """For accepting connections; asks for no client certificate (RFC 8314 §4.2).

    Raises:
        ConfigurationError: names the file and what is wrong with it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context, minimum)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    for path in (certificate, key):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"tls: {path}: {error.strerror}") from error
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            what = f"tls: {key} is not the key of {certificate}"
        else:
            what = f"tls: {certificate} and {key} are no certificate and key in PEM form"
        raise ConfigurationError(what) from error
    except _EncryptedKeyError as error:
        raise ConfigurationError(f"tls: {key} is encrypted; store it without a password") from error
    return context


def client_context(ca_file: Path | None = None, minimum: str = "1.2") -> ssl.SSLContext:
    """For connecting: the chain and the name are verified (RFC 7817 §3).

    ``ca_file`` is trusted instead of the system's authorities.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"tls: {ca_file}: no certificates can be read there") from error
    context.hostname_checks_common_name = False
    _restrict(context, minimum)
    return context


def _restrict(context: ssl.SSLContext, minimum: str) -> None:
    context.minimum_version = _VERSIONS[minimum]
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["pop3"])


class _EncryptedKeyError(Exception):
    pass


def _no_password() -> bytes:
    """OpenSSL would ask at the terminal instead."""
    raise _EncryptedKeyError


def make_self_signed(directory: Path, hostnames: Sequence[str]) -> tuple[Path, Path]:
    """Certificate and key in ``directory``: made at the first call, the same ones later.

    The key is stored first, and the certificate is made for the key that is stored: so neither a
    crash between the two nor two processes at once leave a pair that does not match.

    Raises:
        ConfigurationError: they cannot be stored.
    """
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    if certificate.exists() and key.exists():
        return certificate, key
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _store(key, _new_key())
        _store(certificate, _certificate(key.read_bytes(), hostnames))
    except OSError as error:
        raise ConfigurationError(f"tls: {directory}: {error.strerror}") from error
    return certificate, key


def _store(path: Path, octets: bytes) -> None:
    """Durable and complete before it has its name; the first one to come wins."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(octets)
            stream.flush()
            os.fsync(file)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _new_key() -> bytes:
    from cryptography.hazmat.primitives import serialization  # 0.1 s, and seldom needed
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _certificate(key_pem: bytes, hostnames: Sequence[str]) -> bytes:
    """Self-signed, and complete enough to be its own trust anchor under strict rules."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = serialization.load_pem_private_key(key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hostnames[0][:64])])
    now = datetime.now(UTC)
    alternatives: list[x509.GeneralName] = []
    for hostname in hostnames:
        try:
            alternatives.append(x509.IPAddress(ip_address(hostname)))
        except ValueError:
            alternatives.append(x509.DNSName(hostname))
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: Path) -> str:
    """SHA-256 of the (first) certificate in a PEM file, in groups of four hex digits."""
    block = re.search(
        "-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", certificate.read_text(), re.S
    )
    if block is None:
        raise ConfigurationError(f"tls: {certificate} holds no certificate in PEM form")
    digest = sha256(ssl.PEM_cert_to_DER_cert(block[0])).hexdigest().upper()
    return " ".join(re.findall("....", digest))
