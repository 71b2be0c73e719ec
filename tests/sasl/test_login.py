"""The client's login against our server's session, and over real TLS."""

from __future__ import annotations

import re
import ssl
from base64 import b64encode
from pathlib import Path
from typing import TypeVar

import pytest

from restante.errors import LoginFailed, ProtocolBroken
from restante.net import tls
from restante.pop3.dialogue import Dialogue, Procedure
from restante.pop3.session import Policy
from restante.pop3.state import State
from restante.sasl import MECHANISMS, Channel
from restante.store.memory import MemoryStore

from ..pop3.core import Core
from ..support import Run, serving

T = TypeVar("T")
ALL = tuple(MECHANISMS)
BOUND = b"hash of the certificate"
TOKEN = "vF9dft4qmT"


def meet(procedure: Procedure[T], core: Core) -> tuple[bytes, T]:
    """Run a client's procedure against a server's session; what the client has sent."""
    sent = bytearray()
    heard = b""
    try:
        wanted = next(procedure)
        while True:
            if wanted is None:
                assert heard, "both wait"
                octets, heard = heard, b""
                wanted = procedure.send(octets)
            else:
                sent += wanted
                heard += core.send(wanted)
                wanted = procedure.send(b"")
    except StopIteration as end:
        return bytes(sent), end.value


def server(*mechanisms: str, end_point: bytes = BOUND) -> tuple[Core, Dialogue]:
    channel = Channel(end_point, ("mrose@example.org",))
    core = Core([], policy=Policy(mechanisms=mechanisms), channel=channel)
    dialogue = Dialogue()
    meet(dialogue.ask_capabilities(), core)
    return core, dialogue


@pytest.mark.rfc("P-050", "P-061")
@pytest.mark.parametrize("name", [*ALL, "USER"])
def test_every_mechanism_logs_in(name: str) -> None:
    core, dialogue = server(*ALL)
    user = "mrose@example.org" if name == "EXTERNAL" else "mrose"
    token = TOKEN if "AUTH" in name else ""
    login = dialogue.log_in(user, "tan staaf", token=token, mechanism=name, end_point=BOUND)
    sent, _ = meet(login, core)
    assert core.session.state is State.TRANSACTION
    assert sent.startswith(b"USER " if name == "USER" else b"AUTH " + name.encode())
    assert core.send(b"AUTH PLAIN\r\n").startswith(b"-ERR")


@pytest.mark.parametrize("name", [name for name in ALL if name != "EXTERNAL"])
def test_a_wrong_secret_is_told_as_such(name: str) -> None:
    core, dialogue = server(*ALL)
    token = "wrong" if "AUTH" in name else ""
    login = dialogue.log_in("mrose", "wrong", token=token, mechanism=name, end_point=BOUND)
    with pytest.raises(LoginFailed) as caught:
        meet(login, core)
    assert caught.value.code == "AUTH"
    assert core.session.state is State.AUTHORIZATION


@pytest.mark.parametrize(
    ("offered", "can_bind", "chosen"),
    [
        (ALL, True, b"AUTH SCRAM-SHA-256-PLUS"),
        (ALL, False, b"AUTH SCRAM-SHA-256"),
        (
            ("PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256"),
            True,
            b"AUTH SCRAM-SHA-1-PLUS",
        ),
        (("PLAIN", "SCRAM-SHA-1"), True, b"AUTH SCRAM-SHA-1"),
        (("LOGIN", "PLAIN"), True, b"AUTH PLAIN"),
        (("LOGIN",), True, b"USER mrose"),
        ((), True, b"USER mrose"),
    ],
)
def test_the_strongest_is_chosen(offered: tuple[str, ...], can_bind: bool, chosen: bytes) -> None:
    end_point = BOUND if can_bind else b""
    core, dialogue = server(*offered, end_point=end_point)
    sent, _ = meet(dialogue.log_in("mrose", "tan staaf", end_point=end_point), core)
    assert re.match(re.escape(chosen) + rb"[ \r]", sent)
    assert core.session.state is State.TRANSACTION


def test_a_token_is_never_sent_as_a_password() -> None:
    core, dialogue = server("PLAIN", "SCRAM-SHA-256")
    with pytest.raises(LoginFailed, match="no OAuth 2"):
        meet(dialogue.log_in("mrose", "", token=TOKEN), core)


def test_nothing_weaker_is_tried_after_a_failure() -> None:
    core, dialogue = server("PLAIN", "SCRAM-SHA-256")
    with pytest.raises(LoginFailed):
        meet(dialogue.log_in("mrose", "wrong"), core)
    assert core.said.count(b"-ERR") == 1


def test_a_forced_mechanism_says_nothing_of_channel_binding() -> None:
    """Forced SCRAM-SHA-256 beside an offered -PLUS is the user's choice, not a downgrade."""
    core, dialogue = server(*ALL)
    meet(dialogue.log_in("mrose", "tan staaf", mechanism="SCRAM-SHA-256", end_point=BOUND), core)


def test_who_took_minus_plus_out_is_found() -> None:
    """RFC 5802 §6: the client says that it could bind, and the server knows that it offered."""
    core, dialogue = server("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS")
    tampered = dict(dialogue.capabilities.tags) | {"SASL": ("SCRAM-SHA-256",)}
    object.__setattr__(dialogue.capabilities, "tags", tampered)
    with pytest.raises(LoginFailed, match="server-does-support-channel-binding"):
        meet(dialogue.log_in("mrose", "tan staaf", end_point=BOUND), core)


def test_success_before_the_proof_is_no_success() -> None:
    """A server that says +OK to SCRAM without having shown that it knows the password."""
    _, dialogue = server("SCRAM-SHA-256")
    login = dialogue.log_in("mrose", "tan staaf")
    next(login)
    login.send(b"")
    with pytest.raises(ProtocolBroken, match="did not prove"):
        login.send(b"+OK welcome\r\n")


@pytest.mark.rfc("P-052")
@pytest.mark.parametrize(("size", "is_initial"), [(180, True), (181, False), (5000, False)])
def test_a_long_first_response_goes_after_the_challenge(size: int, is_initial: bool) -> None:
    """RFC 5034 §4: the command is not longer than 255 octets."""
    password = "p" * (size - len("\0mrose\0"))
    core = Core([], password=password)
    dialogue = Dialogue()
    meet(dialogue.ask_capabilities(), core)
    sent, _ = meet(dialogue.log_in("mrose", password), core)
    assert (len(sent.partition(b"\r\n")[0]) > len("AUTH PLAIN")) == is_initial
    assert len(sent.partition(b"\r\n")[0]) + 2 <= 255


@pytest.mark.rfc("P-063")
def test_no_initial_response_where_sasl_is_not_announced() -> None:
    core = Core([])
    sent, _ = meet(Dialogue().log_in("mrose", "tan staaf", mechanism="PLAIN"), core)
    assert sent.startswith(b"AUTH PLAIN\r\n")


@pytest.mark.rfc("P-051")
def test_an_empty_initial_response_is_an_equals_sign() -> None:
    core, dialogue = server("EXTERNAL")
    sent, _ = meet(dialogue.log_in("", "", mechanism="EXTERNAL"), core)
    assert sent == b"AUTH EXTERNAL =\r\n"


@pytest.mark.rfc("P-053", "P-057")
@pytest.mark.parametrize("challenge", [b"+\r\n", b"+ \r\n"])
def test_an_empty_challenge_with_and_without_its_space(challenge: bytes) -> None:
    login = Dialogue().log_in("mrose", "x", mechanism="PLAIN")
    assert next(login) == b"AUTH PLAIN\r\n"
    login.send(b"")
    assert login.send(challenge) == b64encode(b"\0mrose\0x") + b"\r\n"


@pytest.mark.parametrize("challenge", [b"+ !!!\r\n", b"+ AAAA\r\n"])
def test_a_challenge_that_makes_no_sense_is_cancelled(challenge: bytes) -> None:
    _, dialogue = server("PLAIN")
    login = dialogue.log_in("mrose", "x")
    next(login)
    login.send(b"")
    assert login.send(challenge) == b"*\r\n"
    login.send(b"")
    with pytest.raises(LoginFailed):
        login.send(b"-ERR cancelled\r\n")


# Over TLS.


def test_channel_binding_over_tls(
    run: Run[None], server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """tls-server-end-point as both sides compute it for themselves (RFC 5929 §4)."""
    policy = Policy(mechanisms=("SCRAM-SHA-256-PLUS",))

    async def main(implicit: bool) -> None:
        async with (
            serving(MemoryStore(), tls=server_tls, implicit=implicit, policy=policy) as server,
            server.client(client_tls if implicit else None) as client,
        ):
            if not implicit:
                await client.ask(b"STLS")
                await client.writer.start_tls(client_tls, server_hostname="localhost")
            certificate = client.writer.get_extra_info("ssl_object").getpeercert(True)
            dialogue = Dialogue()
            login = dialogue.log_in(
                "mrose",
                "tan staaf",
                mechanism="SCRAM-SHA-256-PLUS",
                end_point=tls.end_point(certificate),
            )
            wanted = next(login)
            try:
                while True:
                    if wanted is None:
                        wanted = login.send(await client.line() + b"\r\n")
                    else:
                        client.send(wanted)
                        wanted = login.send(b"")
            except StopIteration:
                assert await client.ask(b"STAT") == b"+OK 0 0"

    run(main(True))
    run(main(False))


@pytest.mark.rfc("P-129")
def test_a_client_certificate_logs_in(
    tmp_path: Path, run: Run[None], certificate: tuple[Path, Path], client_tls: ssl.SSLContext
) -> None:
    """RFC 8314 §4.2, §3.1: by EXTERNAL, never by itself; who shows none is served as well."""
    client_certificate, client_key = personal_certificate(tmp_path, "mrose@example.org")
    server_tls = tls.server_context(*certificate, client_ca=client_certificate)
    policy = Policy(mechanisms=("EXTERNAL", "PLAIN"))

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls, implicit=True, policy=policy) as server:
            async with server.client(client_tls) as client:
                assert (await client.ask(b"AUTH EXTERNAL =")).startswith(b"-ERR no such")
            client_tls.load_cert_chain(client_certificate, client_key)
            async with server.client(client_tls) as client:
                assert (await client.ask(b"STAT")).startswith(b"-ERR")
                client.send(b"CAPA\r\n")
                while (line := await client.line()) != b".":
                    assert not line.startswith(b"SASL") or line == b"SASL EXTERNAL PLAIN"
                other = b64encode(b"other@example.org")
                assert (await client.ask(b"AUTH EXTERNAL " + other)).startswith(b"-ERR [AUTH]")
                assert (await client.ask(b"AUTH EXTERNAL =")).startswith(b"+OK")

    run(main())


def personal_certificate(folder: Path, address: str) -> tuple[Path, Path]:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "M. Rose")])
    now = datetime.now(UTC)
    found = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(address)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "person.pem", folder / "person.key"
    certificate.write_bytes(found.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, private
