"""TLS contexts for both sides, and a self-signed certificate for servers without one.

Standards: RFC 8314, RFC 8997 and RFC 9325 (at least TLS 1.2, forward secrecy, AEAD), RFC 7301 with
the identifier ``pop3``.
"""

from __future__ import annotations

import os
import re
import secrets
import ssl
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple, cast

from .errors import ConfigurationError
from .regular import read_regular
from .sasl.exchange import Channel

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # for TLS 1.2; all cipher suites of TLS 1.3 are acceptable
_SRV_NAME = "1.3.6.1.5.5.7.8.7"  # RFC 4985 §2
_CLEAR = Channel()
# Protocols that a browser or another program may offer (IANA's registry of RFC 7301).
# If no protocol is common to client and server, Python's ssl continues the handshake and does not
# report whether the client offered any protocol.  So a server claims to support these protocols,
# and disconnects when one of them is chosen.
_FOREIGN = (
    "acme-tls/1 co coap c-webrtc dicom dot doq ftp h2 h2c h3 http/0.9 http/1.0 http/1.1 imap irc"
    " managesieve mqtt nntp nnsp ntske/1 postgresql radius/1.0 radius/1.1 sip/2 smb spdy/1 spdy/2"
    " spdy/3 stun.nat-discovery stun.turn sunrpc tds/8.0 webrtc xmpp-client xmpp-server"
)
_LIFETIME = timedelta(days=3650)  # long, because some devices pin this certificate


class ServerContext(ssl.SSLContext):
    """A context for accepting connections."""

    can_bind = True
    """Whether to compute ``end_point``: parsing the certificate needs a large library."""
    end_point: bytes = b""
    """Channel binding to the certificate, for SCRAM (RFC 5929 §4)."""
    _certificate = ""  # in PEM format

    def load(self, certificate: Path, key: Path) -> None:
        """Use this certificate from the next handshake on.

        Raises:
            ConfigurationError: a file is unsuitable; the context has not changed.
        """
        load_own(self, certificate, key)
        self._certificate = _first_block(certificate)
        if self.can_bind:
            self.end_point = end_point(ssl.PEM_cert_to_DER_cert(self._certificate))

    @property
    def ends_at(self) -> float:
        """When the certificate in use expires, in seconds since the epoch."""
        from cryptography import x509  # a large library, which servers rarely need

        loaded = x509.load_pem_x509_certificate(self._certificate.encode())
        return loaded.not_valid_after_utc.timestamp()


class ForeignProtocol(ssl.SSLError):
    """The client offered only protocols other than POP3 (RFC 7301 §3.2)."""

    reason = "NO_APPLICATION_PROTOCOL"


def refuse_foreign(tls: ssl.SSLObject | None) -> None:
    """Refuse other protocols.  Must be called before the first octet is sent through TLS.

    Raises:
        ForeignProtocol: the caller must abort the connection without a response, because the client
            could take a response for HTTP.
    """
    if tls is not None and tls.selected_alpn_protocol() not in (None, "pop3"):
        raise ForeignProtocol


def load_own(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Present this certificate to peers.

    Raises:
        ConfigurationError: a file is unsuitable; the context has not changed.
    """
    for path in (certificate, key):
        try:
            read_regular(path)
        except OSError as error:
            raise ConfigurationError(f"tls: {path}: {error.strerror}") from error
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = f"tls: {key} is not the key of {certificate}"
        else:
            message = f"tls: {certificate} and {key} are not a certificate and key in PEM format"
        raise ConfigurationError(message) from error
    except _EncryptedKeyError as error:
        message = f"tls: {key} is encrypted; store it without a password"
        raise ConfigurationError(message) from error


def server_context(
    certificate: Path,
    key: Path,
    minimum: str = "1.2",
    client_ca: Path | None = None,
    *,
    can_bind: bool = True,
) -> ServerContext:
    """Return a context with this certificate.

    If ``client_ca`` is given, clients are asked for a certificate issued by one of these
    authorities (RFC 8314 §4.2).  A client without a certificate is still accepted.  Without
    ``can_bind`` no mechanism can bind to the connection (``SCRAM-…-PLUS``).

    Raises:
        ConfigurationError: a file is unsuitable.
    """
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.can_bind = can_bind
    _restrict(context, minimum)
    context.set_alpn_protocols(["pop3", *_FOREIGN.split()])
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    # One ticket is enough: a client opens one session at a time, and each resumption issues another
    # ticket.
    context.num_tickets = 1
    context.load(certificate, key)
    if client_ca is not None:
        try:
            read_regular(client_ca)
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            message = f"tls: cannot read certificates from {client_ca}"
            raise ConfigurationError(message) from error
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def channel(tls: ssl.SSLObject | None) -> Channel:
    """Return the connection's data that server-side SASL needs.  ``tls`` is None without TLS."""
    if tls is None:
        return _CLEAR
    certificate = tls.getpeercert() or {}
    names = cast("Iterable[tuple[str, str]]", certificate.get("subjectAltName", ()))  # documented
    identities = tuple(value for kind, value in names if kind == "email")
    return Channel(getattr(tls.context, "end_point", b""), identities)


def end_point(certificate: bytes) -> bytes:
    """Return the channel binding to a server's certificate in DER (RFC 5929 §4.1).

    The result is empty if the RFC defines no channel binding, because the signature has no hash
    function.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes

    try:
        algorithm = x509.load_der_x509_certificate(certificate).signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return b""
    if algorithm is None:
        return b""
    if isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        algorithm = hashes.SHA256()
    digest = hashes.Hash(algorithm)
    digest.update(certificate)
    return digest.finalize()


def is_valid_for(certificate: bytes, hosts: Collection[str], service: str) -> bool:
    """Return whether a server's certificate in DER is valid for one of the hosts or the service.

    A host name may begin with ``*.``, which stands for one complete label (RFC 7817 §3).
    ``service`` is the name of an SRV record without the protocol, such as ``_pop3s.example.org``
    (RFC 4985 §2).
    """
    from cryptography import x509

    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        subjects = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    services = set()
    for name in subjects:
        if isinstance(name, x509.DNSName):
            dns_name = name.value.lower()
            if any(dns_name in (host, f"*.{host.partition('.')[2]}") for host in hosts):
                return True
        elif isinstance(name, x509.OtherName) and name.type_id.dotted_string == _SRV_NAME:
            services.add(name.value)
    # An IA5String of less than 128 octets: tag, length, text.
    return bytes([0x16, len(service)]) + service.encode() in services


class CertificateFacts(NamedTuple):
    """The facts about a certificate that decide whether clients accept it."""

    der: bytes
    begins_at: float
    """When it becomes valid, in seconds since the epoch."""
    ends_at: float
    """When it expires, in seconds since the epoch."""

    def is_valid_for(self, host: str) -> bool:
        """Return whether the certificate is valid for a host name."""
        return is_valid_for(self.der, [host.lower()], "")


def certificate_facts(der: bytes) -> CertificateFacts:
    """Return the facts about a certificate in DER."""
    from cryptography import x509

    loaded = x509.load_der_x509_certificate(der)
    begins, ends = loaded.not_valid_before_utc, loaded.not_valid_after_utc
    return CertificateFacts(der, begins.timestamp(), ends.timestamp())


def client_context(ca_file: Path | None = None, minimum: str = "1.2") -> ssl.SSLContext:
    """Return a context for connecting that verifies the chain and the name (RFC 7817 §3).

    The authorities in ``ca_file`` are trusted instead of the system's authorities.

    Raises:
        ConfigurationError: ``ca_file`` cannot be read.
    """
    try:
        if ca_file is not None:
            read_regular(ca_file)  # OpenSSL would wait for a FIFO
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"tls: cannot read certificates from {ca_file}") from error
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
    """Raise an error; OpenSSL calls this for an encrypted key instead of prompting."""
    raise _EncryptedKeyError


def make_self_signed(directory: Path, hostnames: Sequence[str]) -> tuple[Path, Path]:
    """Return certificate and key in ``directory``.  The first call creates them.

    The key is stored first, and the certificate is created for the stored key.  So the pair matches
    even after a crash between the two steps, or if two processes create it at the same time.

    Raises:
        ConfigurationError: the certificate or the key cannot be stored.
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
    """Write and sync a file before it gets its name.  An existing file of this name is kept."""
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
    from cryptography.hazmat.primitives import serialization  # takes 0.1 s and is rarely needed
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _certificate(key_pem: bytes, hostnames: Sequence[str]) -> bytes:
    """Return a self-signed certificate that strict verifiers accept as its own trust anchor."""
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
    """Return the SHA-256 hash of a PEM file's first certificate, in groups of four hex digits."""
    digest = sha256(first_certificate(certificate)).hexdigest().upper()
    return " ".join(re.findall("....", digest))


def first_certificate(path: Path) -> bytes:
    """Return the first certificate of a PEM file in DER.

    Raises:
        OSError: the file cannot be read.
        ConfigurationError: the file has no certificate.
    """
    return ssl.PEM_cert_to_DER_cert(_first_block(path))


def _first_block(certificate: Path) -> str:
    """Return the first certificate of a PEM file.

    Raises:
        ConfigurationError: the file has no certificate.
    """
    # The file is read as octets, because PKCS#12 exports write names in any encoding before the
    # block.
    pattern = b"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----"
    block = re.search(pattern, read_regular(certificate), re.S)
    if block is None:
        raise ConfigurationError(f"tls: {certificate} contains no certificate in PEM format")
    return block[0].decode("ascii", "replace")
