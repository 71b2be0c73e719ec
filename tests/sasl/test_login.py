"""The client's login against our server's session, and over real TLS."""

from __future__ import annotations

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography import x509

from restante import tls
from restante.client.asynchronous import connect
from restante.client.blocking import connect_blocking
from restante.errors import LoginFailed, ProtocolBroken, UnsafeArgument
from restante.pop3.dialogue import Capabilities, Dialogue, Procedure
from restante.pop3.quirks import Quirks
from restante.pop3.session import Policy
from restante.pop3.state import State
from restante.sasl import plain
from restante.sasl.exchange import Channel, ClientLogin, Strength
from restante.sasl.mechanisms import MECHANISMS, Mechanism
from restante.store.memory import MemoryStore

from ..client import certificates
from ..pop3.core import Core
from ..support import Run, serving

T = TypeVar("T")
ALL = tuple(MECHANISMS)
BOUND = b"hash of the certificate"
TOKEN = "vF9dft4qmT"


def bound() -> bytes:
    return BOUND


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
    meet(dialogue.request_capabilities(), core)
    return core, dialogue


@pytest.mark.rfc("P-050", "P-061")
@pytest.mark.parametrize("name", [*ALL, "USER"])
def test_every_mechanism_logs_in(name: str) -> None:
    core, dialogue = server(*ALL)
    user = "mrose@example.org" if name == "EXTERNAL" else "mrose"
    token = TOKEN if "AUTH" in name else ""
    login = dialogue.log_in(ClientLogin(user, "tan staaf", token, mechanism=name), bound)
    sent, _ = meet(login, core)
    assert core.session.state is State.TRANSACTION
    assert sent.startswith(b"USER " if name == "USER" else b"AUTH " + name.encode())
    assert core.send(b"AUTH PLAIN\r\n").startswith(b"-ERR")


def test_row_of_the_table_is_all_that_a_new_mechanism_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = Mechanism(
        plain.server, lambda login, _: plain.client(login.user, login.secret), Strength.PROOF
    )
    monkeypatch.setitem(MECHANISMS, "X-NEW", row)
    core, dialogue = server("X-NEW", "PLAIN")
    login = ClientLogin("mrose", "tan staaf", strength=Strength.PROOF)
    sent, _ = meet(dialogue.log_in(login, bound), core)
    assert sent.startswith(b"AUTH X-NEW ")
    assert core.session.state is State.TRANSACTION


@pytest.mark.parametrize("name", [name for name in ALL if name != "EXTERNAL"])
def test_wrong_secret_is_an_auth_failure(name: str) -> None:
    core, dialogue = server(*ALL)
    token = "wrong" if "AUTH" in name else ""
    login = dialogue.log_in(ClientLogin("mrose", "wrong", token, mechanism=name), bound)
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
def test_strongest_mechanism_is_chosen(
    offered: tuple[str, ...], can_bind: bool, chosen: bytes
) -> None:
    end_point = BOUND if can_bind else b""
    core, dialogue = server(*offered, end_point=end_point)
    sent, _ = meet(dialogue.log_in(ClientLogin("mrose", "tan staaf"), lambda: end_point), core)
    assert re.match(re.escape(chosen) + rb"[ \r]", sent)
    assert core.session.state is State.TRANSACTION


SASL_ONLY = Capabilities({"SASL": ("CRAM-MD5", "NTLM"), "UIDL": ()})


@pytest.mark.parametrize(
    "tags",
    [
        {"SASL": ("CRAM-MD5",)},
        {"SASL": ("CRAM-MD5", "GSSAPI"), "UIDL": (), "TOP": ()},
        {"SASL": ("LOGIN",)},
        {"SASL": ("EXTERNAL",)},
        {"SASL": ("OAUTHBEARER", "XOAUTH2")},
    ],
)
def test_password_is_not_sent_to_a_server_that_announces_only_sasl(
    tags: dict[str, tuple[str, ...]],
) -> None:
    """RFC 2449 §6.3: the capability USER announces USER and PASS."""
    dialogue = Dialogue()
    dialogue.capabilities = Capabilities(tags)
    with pytest.raises(LoginFailed, match="add:USER") as caught:
        next(dialogue.log_in(ClientLogin("mrose", "tan staaf")))
    assert all(name in str(caught.value) for name in tags["SASL"])
    assert caught.value.code is None  # the credentials were not refused


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"UIDL": (), "TOP": ()},
        {"SASL": ()},
        {"USER": ()},
        {"SASL": ("CRAM-MD5",), "USER": ()},
    ],
)
def test_user_and_pass_where_they_are_announced_or_nothing_is(
    tags: dict[str, tuple[str, ...]],
) -> None:
    dialogue = Dialogue()
    dialogue.capabilities = Capabilities(tags)
    assert next(dialogue.log_in(ClientLogin("mrose", "tan staaf"))) == b"USER mrose\r\n"


def test_user_and_pass_are_used_if_forced() -> None:
    """By the mechanism, or by a quirk of the server."""
    dialogue = Dialogue()
    dialogue.capabilities = SASL_ONLY
    login = dialogue.log_in(ClientLogin("mrose", "tan staaf", mechanism="USER"))
    assert next(login) == b"USER mrose\r\n"
    dialogue = Dialogue(quirks=Quirks(no_capa=True, added=("SASL CRAM-MD5", "USER")))
    list(dialogue.request_capabilities())
    assert next(dialogue.log_in(ClientLogin("mrose", "tan staaf"))) == b"USER mrose\r\n"


def test_a_required_strength_is_named_before_a_missing_mechanism() -> None:
    dialogue = Dialogue()
    dialogue.capabilities = Capabilities({"SASL": ("PLAIN",)})
    login = dialogue.log_in(ClientLogin("mrose", "tan staaf", strength=Strength.PROOF))
    with pytest.raises(LoginFailed, match="required strength"):
        next(login)


def test_a_token_is_never_sent_as_a_password() -> None:
    core, dialogue = server("PLAIN", "SCRAM-SHA-256")
    with pytest.raises(LoginFailed, match="not accept OAuth 2"):
        meet(dialogue.log_in(ClientLogin("mrose", token=TOKEN)), core)


@pytest.mark.parametrize(
    ("offered", "can_bind", "strength", "is_possible"),
    [
        ((), False, Strength.SECRET, True),
        (("PLAIN",), True, Strength.PROOF, False),
        (("PLAIN", "SCRAM-SHA-1"), True, Strength.PROOF, True),
        (("PLAIN", "SCRAM-SHA-256"), True, Strength.BOUND, False),
        (("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"), True, Strength.BOUND, True),
        (("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"), False, Strength.BOUND, False),
    ],
)
def test_required_strength_is_enforced(
    offered: tuple[str, ...], can_bind: bool, strength: Strength, is_possible: bool
) -> None:
    """FAULTS G 149: what a meddler takes out of CAPA stops the login, and nothing is sent."""
    core, dialogue = server(*offered, end_point=BOUND if can_bind else b"")
    heard = len(core.said)
    login = dialogue.log_in(
        ClientLogin("mrose", "tan staaf", strength=strength), bound if can_bind else lambda: b""
    )
    if is_possible:
        meet(login, core)
        assert core.session.state is State.TRANSACTION
    else:
        with pytest.raises(LoginFailed, match="required strength"):
            meet(login, core)
        assert len(core.said) == heard


@pytest.mark.parametrize("mechanism", ["PLAIN", "USER", "APOP", "XOAUTH2", "SCRAM-SHA-256"])
def test_a_forced_mechanism_is_held_against_the_required_strength(mechanism: str) -> None:
    _, dialogue = server(*ALL)
    login = ClientLogin("mrose", "tan staaf", mechanism=mechanism, strength=Strength.BOUND)
    with pytest.raises(LoginFailed, match="required strength"):
        next(dialogue.log_in(login, bound))


def test_a_certificate_is_never_replaced_by_something_weaker() -> None:
    core, dialogue = server("PLAIN")
    with pytest.raises(LoginFailed, match="not accept client certificates"):
        meet(dialogue.log_in(ClientLogin("mrose", has_certificate=True)), core)


def test_a_certificate_beside_a_password_is_not_the_login() -> None:
    core, dialogue = server("EXTERNAL", "PLAIN")
    sent, _ = meet(dialogue.log_in(ClientLogin("mrose", "tan staaf", has_certificate=True)), core)
    assert sent.startswith(b"AUTH PLAIN ")


def greeted(text: bytes) -> Dialogue:
    dialogue = Dialogue()
    greeting = dialogue.greeting()
    next(greeting)
    with pytest.raises(StopIteration):
        greeting.send(b"+OK " + text + b"\r\n")
    return dialogue


@pytest.mark.rfc("P-041", "P-042")
def test_apop_digest_of_the_rfc_example() -> None:
    """RFC 1939 §7; text after the time stamp is seen in the wild."""
    dialogue = greeted(b"POP3 server ready <1896.697170952@dbc.mtview.ca.us> and more")
    login = dialogue.log_in(ClientLogin("mrose", "tanstaaf", mechanism="apop"))
    assert next(login) == b"APOP mrose c4c9334bac560ecc979e58001b3e22fb\r\n"


@pytest.mark.rfc("P-042")
@pytest.mark.parametrize(
    "greeting",
    [b"", b"ready", b"<1896>", b"<18\x01@b>", b"<a b@c>", b"<\xff@b>", b"<a@b@c>", b"<a@>"],
)
def test_apop_requires_a_message_id_as_time_stamp(greeting: bytes) -> None:
    """CVE-2007-1558: a server that can choose it freely learns about the password."""
    dialogue = greeted(greeting)
    with pytest.raises(LoginFailed, match="no usable time stamp"):
        next(dialogue.log_in(ClientLogin("mrose", "tanstaaf", mechanism="APOP")))


def test_apop_takes_ascii() -> None:
    dialogue = greeted(b"<1896.697170952@dbc.mtview.ca.us>")
    with pytest.raises(UnsafeArgument, match="ASCII"):
        next(dialogue.log_in(ClientLogin("mrose", "größe", mechanism="APOP")))


@pytest.mark.rfc("P-147")
def test_user_and_pass_are_ascii_unless_the_server_announces_utf8() -> None:
    """RFC 6856 §2.2."""
    with pytest.raises(UnsafeArgument, match="ASCII"):
        next(Dialogue().log_in(ClientLogin("mrose", "größe")))
    dialogue = Dialogue()
    dialogue.capabilities = Capabilities({"UTF8": ("USER",)})
    login = dialogue.log_in(ClientLogin("mrose", "größe"))
    next(login)
    login.send(b"")
    assert login.send(b"+OK\r\n") == "PASS größe\r\n".encode()


def test_server_may_send_ok_as_a_challenge() -> None:
    """Seen in the wild; it is no success, because nothing was shown yet."""
    login = Dialogue().log_in(ClientLogin("mrose", "x", mechanism="PLAIN"))
    next(login)
    login.send(b"")
    assert login.send(b"+OK go on\r\n") == b64encode(b"\0mrose\0x") + b"\r\n"
    login.send(b"")
    with pytest.raises(StopIteration):
        login.send(b"+OK\r\n")


def test_nothing_weaker_is_tried_after_a_failure() -> None:
    core, dialogue = server("PLAIN", "SCRAM-SHA-256")
    with pytest.raises(LoginFailed):
        meet(dialogue.log_in(ClientLogin("mrose", "wrong")), core)
    assert core.said.count(b"-ERR") == 1


def test_a_forced_mechanism_says_nothing_of_channel_binding() -> None:
    """Forced SCRAM-SHA-256 beside an offered -PLUS is the user's choice, not a downgrade."""
    core, dialogue = server(*ALL)
    meet(dialogue.log_in(ClientLogin("mrose", "tan staaf", mechanism="SCRAM-SHA-256"), bound), core)


def test_removed_channel_binding_offer_is_detected() -> None:
    """RFC 5802 §6: the client says that it could bind, and the server knows that it offered."""
    core, dialogue = server("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS")
    tampered = dict(dialogue.capabilities.tags) | {"SASL": ("SCRAM-SHA-256",)}
    object.__setattr__(dialogue.capabilities, "tags", tampered)
    with pytest.raises(LoginFailed, match="server-does-support-channel-binding"):
        meet(dialogue.log_in(ClientLogin("mrose", "tan staaf"), bound), core)


def test_success_before_the_proof_is_not_accepted() -> None:
    """A server that says +OK to SCRAM without having shown that it knows the password."""
    _, dialogue = server("SCRAM-SHA-256")
    login = dialogue.log_in(ClientLogin("mrose", "tan staaf"))
    next(login)
    login.send(b"")
    with pytest.raises(ProtocolBroken, match="did not prove"):
        login.send(b"+OK welcome\r\n")


@pytest.mark.rfc("P-052")
@pytest.mark.parametrize(("size", "is_initial"), [(180, True), (181, False), (1000, False)])
def test_long_initial_response_is_sent_after_the_challenge(size: int, is_initial: bool) -> None:
    """RFC 5034 §4: the command is not longer than 255 octets."""
    password = "p" * (size - len("\0mrose\0"))
    core = Core([], password=password)
    dialogue = Dialogue()
    meet(dialogue.request_capabilities(), core)
    sent, _ = meet(dialogue.log_in(ClientLogin("mrose", password)), core)
    assert (len(sent.partition(b"\r\n")[0]) > len("AUTH PLAIN")) == is_initial
    assert len(sent.partition(b"\r\n")[0]) + 2 <= 255


@pytest.mark.rfc("P-063")
def test_no_initial_response_if_sasl_is_not_announced() -> None:
    core = Core([])
    sent, _ = meet(Dialogue().log_in(ClientLogin("mrose", "tan staaf", mechanism="PLAIN")), core)
    assert sent.startswith(b"AUTH PLAIN\r\n")


@pytest.mark.rfc("P-051")
def test_empty_initial_response_is_an_equals_sign() -> None:
    core, dialogue = server("EXTERNAL")
    sent, _ = meet(dialogue.log_in(ClientLogin("", mechanism="EXTERNAL")), core)
    assert sent == b"AUTH EXTERNAL =\r\n"


@pytest.mark.rfc("P-053", "P-057")
@pytest.mark.parametrize("challenge", [b"+\r\n", b"+ \r\n"])
def test_an_empty_challenge_with_and_without_its_space(challenge: bytes) -> None:
    login = Dialogue().log_in(ClientLogin("mrose", "x", mechanism="PLAIN"))
    assert next(login) == b"AUTH PLAIN\r\n"
    login.send(b"")
    assert login.send(challenge) == b64encode(b"\0mrose\0x") + b"\r\n"


@pytest.mark.parametrize("challenge", [b"+ !!!\r\n", b"+ AAAA\r\n"])
def test_malformed_challenge_is_cancelled(challenge: bytes) -> None:
    _, dialogue = server("PLAIN")
    login = dialogue.log_in(ClientLogin("mrose", "x"))
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
                ClientLogin("mrose", "tan staaf", mechanism="SCRAM-SHA-256-PLUS"),
                lambda: tls.end_point(certificate),
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


@pytest.mark.rfc("P-126", "P-129")
def test_a_client_certificate_logs_in(
    tmp_path: Path, run: Run[None], certificate: tuple[Path, Path], client_tls: ssl.SSLContext
) -> None:
    """RFC 8314 §4.2, §3.1: by EXTERNAL only; clients without a certificate are served too."""
    client_certificate, client_key = personal_certificate(tmp_path, "mrose@example.org")
    server_tls = tls.server_context(*certificate, client_ca=client_certificate)
    policy = Policy(mechanisms=("EXTERNAL", "PLAIN"))

    async def main() -> None:
        async with serving(MemoryStore(), tls=server_tls, implicit=True, policy=policy) as server:
            async with server.client(client_tls) as client:
                assert (await client.ask(b"AUTH EXTERNAL =")).startswith(
                    b"-ERR authentication mechanism not supported"
                )
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


# Both clients, over TLS.


def with_asyncio(url: str, options: dict[str, Any]) -> tuple[int, int]:
    async def main() -> tuple[int, int]:
        async with connect(url, **options) as client:
            return await client.stat()

    return asyncio.run(main())


def with_blocking(url: str, options: dict[str, Any]) -> tuple[int, int]:
    with connect_blocking(url, **options) as client:
        return client.stat()


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("log_in", [with_asyncio, with_blocking])
@pytest.mark.parametrize(
    ("offered", "options", "said"),
    [
        (ALL, {"password": "tan staaf", "strength": Strength.BOUND}, "SCRAM-SHA-256-PLUS"),
        (("SCRAM-SHA-1", "PLAIN"), {"password": "tan staaf"}, "SCRAM-SHA-1"),
        (ALL, {"password": "tan staaf", "mechanism": "login"}, "LOGIN"),
        (ALL, {"token": TOKEN}, "OAUTHBEARER"),
        (("XOAUTH2",), {"token": lambda: TOKEN}, "XOAUTH2"),
        (ALL, {"certificate": "own"}, "EXTERNAL"),
    ],
)
def test_every_credential_by_both_clients(
    offered: tuple[str, ...],
    options: dict[str, Any],
    said: str,
    log_in: Callable[[str, dict[str, Any]], tuple[int, int]],
    implicit: bool,
    tmp_path: Path,
    certificate: tuple[Path, Path],
    client_tls: ssl.SSLContext,
) -> None:
    own = personal_certificate(tmp_path, "mrose@example.org")
    server_tls = tls.server_context(*certificate, client_ca=own[0])
    reported: list[str] = []
    given = {"record": reported.append, "ca_file": certificate[0], **options}
    given |= {"certificate": own} if "certificate" in options else {"user": "mrose"}

    async def main() -> tuple[int, int]:
        policy = Policy(mechanisms=offered)
        store = MemoryStore()
        async with serving(store, tls=server_tls, implicit=implicit, policy=policy) as server:
            url = f"{'pop3s' if implicit else 'pop3'}://localhost:{server.port}"
            return await asyncio.to_thread(log_in, url, given)

    assert asyncio.run(main()) == (0, 0)
    assert any(line.startswith(f"C: AUTH {said}") for line in reported)
    assert TOKEN not in "\n".join(reported)


def test_each_login_gets_a_fresh_token(server_tls: ssl.SSLContext, certificate: Any) -> None:
    given = [TOKEN, TOKEN, "stale"]

    async def fresh() -> str:
        return given.pop(0)

    async def main() -> None:
        async with serving(
            MemoryStore(), tls=server_tls, implicit=True, policy=Policy(mechanisms=ALL)
        ) as server:
            url = f"pop3s://mrose@localhost:{server.port}"
            async with connect(url, token=fresh, ca_file=certificate[0]) as client:
                await client.reconnect()
                with pytest.raises(LoginFailed) as caught:
                    await client.reconnect()
                assert caught.value.code == "AUTH"

    asyncio.run(main())
    assert given == []


def personal_certificate(
    folder: Path, address: str, common_name: str = "M. Rose"
) -> tuple[Path, Path]:
    """It names no address if ``address`` is empty."""
    name = x509.RFC822Name(address) if address else x509.DNSName("ann")
    return certificates.make(folder, [name], common_name)
