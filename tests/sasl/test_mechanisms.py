"""Each mechanism alone: the examples of the RFCs, then everything that may go wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scramp import ScramClient, ScramMechanism

from restante import config
from restante.auth import choices
from restante.errors import AuthenticationFailed, BadCommand, ProtocolBroken, UnsafeArgument
from restante.passdb import (
    AnyCredentials,
    Credentials,
    FailedProof,
    Proof,
    ScramKey,
    ScramSecrets,
    Token,
)
from restante.sasl import external, login, oauth, plain, scram
from restante.sasl.exchange import Channel, ClientExchange, ClientLogin, Lookup
from restante.sasl.mechanisms import MECHANISMS, Binding, client_exchange

from ..support import OneUser

BOUND = Channel(end_point=b"hash of the certificate")
SCRAM = [name for name in MECHANISMS if name.startswith("SCRAM-")]
KEYS = OneUser().keys


def test_configuration_names_all_mechanisms_without_importing_them() -> None:
    assert tuple(MECHANISMS) == choices.MECHANISMS
    usual = [name for name, mechanism in MECHANISMS.items() if mechanism.is_usual]
    bound = {name for name, each in MECHANISMS.items() if each.binding is Binding.REQUIRE}
    assert tuple(name for name in usual if name not in bound) == config.MECHANISMS


def serve(name: str, *responses: bytes, channel: Channel = BOUND) -> AnyCredentials:
    """What the server's half makes of these responses, given one after the other."""
    exchange = MECHANISMS[name].server(channel)
    next(exchange)
    try:
        for response in responses:
            step = exchange.send(response)
            if isinstance(step, Lookup):
                step.secrets = KEYS(step.identity, step.digest)
                exchange.send(b"")
    except StopIteration as end:
        shown: AnyCredentials = end.value
        return shown
    raise AssertionError("the exchange did not end")


def converse(
    name: str,
    client: ClientExchange,
    channel: Channel = BOUND,
    between: Callable[[bytes], bytes] = lambda challenge: challenge,
    keys: Callable[[str, str], ScramSecrets] = KEYS,
) -> AnyCredentials:
    """Both halves with each other; ``between`` may change what the server says."""
    server = MECHANISMS[name].server(channel)
    next(server)
    answer = next(client)
    try:
        while True:
            step = server.send(answer.response)
            if isinstance(step, Lookup):
                step.secrets = keys(step.identity, step.digest)
                step = server.send(b"")
                assert isinstance(step, bytes)
            answer = client.send(between(step))
    except StopIteration as end:
        shown: AnyCredentials = end.value
        assert answer.may_be_last or isinstance(shown, FailedProof)
        return shown


# PLAIN (RFC 4616 §4) and LOGIN.


@pytest.mark.rfc("P-070")
@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (b"\0tim\0tanstaaftanstaaf", Credentials("PLAIN", "tim", "tanstaaftanstaaf")),
        (b"Ursel\0Kurt\0xipj3plmq", Credentials("PLAIN", "Kurt", "xipj3plmq", "Ursel")),
    ],
)
def test_plain_of_rfc4616(message: bytes, shown: Credentials) -> None:
    assert serve("PLAIN", message) == shown
    client = plain.client(shown.identity, shown.password, shown.authorization)
    assert next(client).response == message


@pytest.mark.rfc("P-070")
def test_plain_accepts_255_octets_in_each_part() -> None:
    long = "ü" * 127 + "x"
    assert serve("PLAIN", f"{long}\0{long}\0{long}".encode()) == Credentials(
        "PLAIN", long, long, long
    )


def test_login_both_sides() -> None:
    shown = converse("LOGIN", login.client("mrose", "tan staaf"))
    assert shown == Credentials("LOGIN", "mrose", "tan staaf")


@pytest.mark.rfc("P-070")
@pytest.mark.parametrize(
    ("identity", "password"),
    [(b"", b"p"), (b"u", b""), (b"", b""), (b"u", b"\xc2\xad"), (b"u", b"\x7f"), (b"\xff", b"p")],
)
def test_empty_password_is_refused(identity: bytes, password: bytes) -> None:
    """A directory takes it for an anonymous login, which succeeds (RFC 4513 §5.1.2)."""
    with pytest.raises(AuthenticationFailed):
        serve("PLAIN", b"\0" + identity + b"\0" + password)
    with pytest.raises(AuthenticationFailed):
        serve("LOGIN", identity, password)


def test_no_octet_of_login_is_nul() -> None:
    for responses in (b"a\0b", b"p"), (b"a", b"p\0q"):
        with pytest.raises(AuthenticationFailed):
            serve("LOGIN", *responses)


@pytest.mark.parametrize("client", [plain.client, login.client])
@pytest.mark.parametrize(
    ("identity", "password"), [("", "p"), ("u", ""), ("u\0", "p"), ("u", "\0")]
)
def test_client_refuses_invalid_passwords(
    client: Callable[[str, str], ClientExchange], identity: str, password: str
) -> None:
    with pytest.raises(UnsafeArgument):
        next(client(identity, password))


# OAUTHBEARER (RFC 7628 §4) and XOAUTH2.

BEARER = b"vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="


@pytest.mark.rfc("P-075")
def test_oauthbearer_of_rfc7628() -> None:
    message = (
        b"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01"
        b"auth=Bearer " + BEARER + b"\x01\x01"
    )
    shown = Token("OAUTHBEARER", "user@example.com", BEARER.decode())
    assert serve("OAUTHBEARER", message) == shown
    client = oauth.client("user@example.com", BEARER.decode(), "server.example.com", 143)
    assert next(client).response == message


@pytest.mark.rfc("P-077")
def test_xoauth2_of_google() -> None:
    message = b"user=someuser@example.com\x01auth=Bearer ya29.vF9d\x01\x01"
    assert serve("XOAUTH2", message) == Token("XOAUTH2", "someuser@example.com", "ya29.vF9d")
    answer = next(oauth.xoauth2_client("someuser@example.com", "ya29.vF9d"))
    assert answer.response == message
    assert not answer.is_initial


def test_commas_in_a_user_of_oauthbearer() -> None:
    assert converse("OAUTHBEARER", oauth.client("a,b=c", "t")) == Token("OAUTHBEARER", "a,b=c", "t")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n,,",
        b"\x01\x01",
        b"n,,\x01\x01",
        b"n,,\x01auth=Bearer\x01\x01",
        b"n,,\x01auth=Bearer a b\x01\x01",
        b"n,,\x01auth=Basic dGVzdA==\x01\x01",
        b"n,,\x01auth=Bearer t\x01",
        b"n,,auth=Bearer t\x01\x01",
        b"x,,\x01auth=Bearer t\x01\x01",
        b"n,a=a,b,\x01auth=Bearer t\x01\x01",
        b"n,,\x01auth=Bearer t\x01auth=Bearer u\x01\x01",
        b"n,,\x01auth=Bearer \xff\x01\x01",
        b"user=u\x01auth=Bearer t\x01\x01",
    ],
)
def test_malformed_oauthbearer(message: bytes) -> None:
    with pytest.raises(BadCommand):
        serve("OAUTHBEARER", message)


@pytest.mark.parametrize("user", ["", "mrose"])
@pytest.mark.parametrize("token", ["", "a b", "a\x01b", "a\r\nb", "ä"])
def test_client_refuses_invalid_tokens(user: str, token: str) -> None:
    for client in (oauth.client, oauth.xoauth2_client):
        with pytest.raises(UnsafeArgument):
            next(client(user, token))


# EXTERNAL.


@pytest.mark.parametrize(
    ("wanted", "identity"),
    [("", "a@x.org"), ("b@x.org", "b@x.org"), ("B@X.org", "b@x.org"), ("c@x.org", "a@x.org")],
)
def test_external_shows_an_address_of_the_certificate(wanted: str, identity: str) -> None:
    """Another authorization identity is passed on, for the passdb to refuse."""
    channel = Channel(identities=("a@x.org", "b@x.org"))
    shown = converse("EXTERNAL", external.client(wanted), channel)
    assert shown == Proof("EXTERNAL", identity, "certificate", wanted)


def test_external_without_a_certificate_is_refused() -> None:
    assert not MECHANISMS["EXTERNAL"].is_possible(BOUND)
    with pytest.raises(AuthenticationFailed):
        serve("EXTERNAL", b"a@x.org")


# SCRAM (RFC 5802 §5, RFC 7677 §3).

VECTORS = {
    "SCRAM-SHA-1": (
        "fyko+d2lbbFgONRv9qkxdawL",
        "3rfcNHYJY1ZVvWVs7j",
        "QSXCR+Q6sek8bf92",
        "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        "rmF9pqV8S7suAoZWja4dJRkFsKQ=",
    ),
    "SCRAM-SHA-256": (
        "rOprNGfwEbeRWgbNEkqO",
        "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
        "W22ZaJ0SNY7soEsUEjb6gQ==",
        "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    ),
}


@pytest.mark.rfc("P-071")
@pytest.mark.parametrize("name", VECTORS)
def test_scram_of_the_rfcs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from base64 import b64decode

    from scramp import ScramMechanism
    from scramp.core import Nonce

    from restante.passdb import ScramKey

    client_nonce, server_nonce, salt, proof, signature = VECTORS[name]
    monkeypatch.setattr(Nonce, "create", lambda: Nonce(client_nonce))
    monkeypatch.setattr("secrets.token_urlsafe", lambda _: server_nonce)
    keys = ScramMechanism(name).make_auth_info("pencil", 4096, b64decode(salt))
    secrets = ScramSecrets(b64decode(salt), 4096, (ScramKey("password", keys[1], keys[2]),))
    challenges: list[bytes] = []

    def hear(challenge: bytes) -> bytes:
        challenges.append(challenge)
        return challenge

    client = scram.client(name, "user", "pencil")
    shown = converse(name, client, Channel(), hear, lambda identity, digest: secrets)
    assert shown == Proof(name, "user", "password")
    nonce = client_nonce + server_nonce
    assert challenges == [f"r={nonce},s={salt},i=4096".encode(), f"v={signature}".encode()]
    final = serve_once(name, secrets, f"n,,n=user,r={client_nonce}", f"c=biws,r={nonce},p={proof}")
    assert final == f"v={signature}"


def serve_once(name: str, secrets: ScramSecrets, first: str, last: str) -> str:
    exchange = MECHANISMS[name].server(Channel())
    next(exchange)
    lookup = exchange.send(first.encode())
    assert isinstance(lookup, Lookup)
    lookup.secrets = secrets
    exchange.send(b"")
    said = exchange.send(last.encode())
    assert isinstance(said, bytes)
    return said.decode()


@pytest.mark.parametrize("name", SCRAM)
def test_scram_shows_which_credential(name: str) -> None:
    for password, credential in (("tan staaf", "password"), ("another", "phone")):
        client = scram.client(name, "mrose", password, BOUND.end_point)
        channel = BOUND if name.endswith("-PLUS") else Channel()
        assert converse(name, client, channel).identity == "mrose"
        client = scram.client(name, "mrose", password, channel.end_point)
        assert converse(name, client, channel) == Proof(name, "mrose", credential)


@pytest.mark.parametrize("name", SCRAM)
@pytest.mark.parametrize(("user", "password"), [("mrose", "wrong"), ("nobody", "tan staaf")])
def test_scram_with_a_wrong_password(name: str, user: str, password: str) -> None:
    """Unknown and known users get the same messages, and the failure counts as a guess."""
    channel = BOUND if name.endswith("-PLUS") else Channel()
    shown = converse(name, scram.client(name, user, password, channel.end_point), channel)
    assert shown == FailedProof(name, user)


def test_a_name_with_comma_and_equals() -> None:
    heard: list[str] = []

    def keys(identity: str, digest: str) -> ScramSecrets:
        heard.append(identity)
        return KEYS("mrose", digest)

    client = scram.client("SCRAM-SHA-256", "a=b,c", "tan staaf")
    assert converse("SCRAM-SHA-256", client, Channel(), keys=keys).identity == "a=b,c"
    assert heard == ["a=b,c"]


def flag(first: bytes, name: str = "SCRAM-SHA-256", channel: Channel = BOUND) -> Lookup:
    exchange = MECHANISMS[name].server(channel)
    next(exchange)
    lookup = exchange.send(first)
    assert isinstance(lookup, Lookup)
    return lookup


@pytest.mark.rfc("P-073")
@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("SCRAM-SHA-256", b"y,,n=mrose,r=abc"),  # we do offer channel binding: a downgrade
        ("SCRAM-SHA-256", b"p=tls-server-end-point,,n=mrose,r=abc"),  # for -PLUS only
        ("SCRAM-SHA-256-PLUS", b"n,,n=mrose,r=abc"),
        ("SCRAM-SHA-256-PLUS", b"y,,n=mrose,r=abc"),
        ("SCRAM-SHA-256-PLUS", b"p=tls-exporter,,n=mrose,r=abc"),
        ("SCRAM-SHA-256-PLUS", b"p=tls-unique,,n=mrose,r=abc"),
        ("SCRAM-SHA-256-PLUS", b"p=unheard-of,,n=mrose,r=abc"),
    ],
)
def test_wrong_channel_binding_flags(name: str, first: bytes) -> None:
    with pytest.raises(BadCommand):
        flag(first, name)


def test_another_kind_of_channel_binding_is_named() -> None:
    """RFC 5802 §7, so that a client can distinguish it from a wrong password."""
    with pytest.raises(BadCommand, match="unsupported-channel-binding-type"):
        flag(b"p=tls-exporter,,n=mrose,r=abc", "SCRAM-SHA-256-PLUS")


def test_right_channel_binding_flags() -> None:
    assert flag(b"n,,n=mrose,r=abc").identity == "mrose"
    assert flag(b"y,,n=mrose,r=abc", channel=Channel()).identity == "mrose"
    first = b"p=tls-server-end-point,,n=mrose,r=abc"
    assert flag(first, "SCRAM-SHA-256-PLUS").digest == "sha256"


def test_channel_binding_of_another_connection() -> None:
    """A man in the middle with another certificate."""
    client = scram.client("SCRAM-SHA-256-PLUS", "mrose", "tan staaf", b"hash of another")
    with pytest.raises(BadCommand, match="channel-bindings-dont-match"):
        converse("SCRAM-SHA-256-PLUS", client)


@pytest.mark.rfc("P-072")
@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"n,",
        b"n,,",
        b"n,,n=mrose",
        b"n,,r=abc,n=mrose",
        b"n,,m=x,n=mrose,r=abc",
        b"n,,n=mrose,m=x,r=abc",
        b"n,,n=,r=abc",
        b"n,,n=mrose,r=",
        b"n,a=other,n=mrose,r=abc",
        b"n,,n=mr\0ose,r=abc",
        b"n,,n=\xff,r=abc",
        b"q,,n=mrose,r=abc",
        b"n,,n=mrose,r=abc,r=def",
    ],
)
def test_malformed_first_messages(first: bytes) -> None:
    with pytest.raises(BadCommand):
        flag(first)


@pytest.mark.parametrize("name", [b"a=2Db", b"a=", b"a=2c", b"\xc2\xa0\xe2\x80\xae"])
def test_invalid_names_are_refused(name: bytes) -> None:
    """RFC 5802 §5.1: "=" only as =2C and =3D; and SASLprep (RFC 4013)."""
    with pytest.raises((AuthenticationFailed, BadCommand)):
        flag(b"n,,n=" + name + b",r=abc")


def test_a_name_that_saslprep_refuses_is_wrong_and_not_malformed() -> None:
    with pytest.raises(AuthenticationFailed):
        flag(b"n,,n=\xe2\x80\xae,r=abc")


def test_nothing_follows_the_proof_of_a_server() -> None:
    def talkative() -> ClientExchange:
        client = scram.client("SCRAM-SHA-256", "mrose", "tan staaf")
        challenge = yield next(client)
        challenge = yield client.send(challenge)
        yield client.send(challenge)._replace(response=b"more")

    with pytest.raises(BadCommand, match="no data may follow"):
        converse("SCRAM-SHA-256", talkative(), Channel())


def test_unknown_attributes_are_ignored() -> None:
    assert flag(b"n,,n=mrose,r=abc,x=more", channel=Channel()).identity == "mrose"


@pytest.mark.rfc("P-072")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"c=biws", b"c=eSws"),
        (b",r=", b",r=X"),
        (b",p=", b",p=AAAA"),
        (b",p=", b",m=1,p="),
        (b"c", b"d"),
    ],
)
def test_a_changed_final_message(old: bytes, new: bytes) -> None:
    client = scram.client("SCRAM-SHA-256", "mrose", "tan staaf")
    server = MECHANISMS["SCRAM-SHA-256"].server(Channel())
    next(server)
    lookup = server.send(next(client).response)
    assert isinstance(lookup, Lookup)
    lookup.secrets = KEYS("mrose", "sha256")
    challenge = server.send(b"")
    assert isinstance(challenge, bytes)
    final = client.send(challenge).response
    with pytest.raises((BadCommand, StopIteration)) as caught:
        server.send(final.replace(old, new, 1))
    if isinstance(caught.value, StopIteration):
        assert caught.value.value == FailedProof("SCRAM-SHA-256", "mrose")


def test_nonce_is_never_reused() -> None:
    nonces = set()
    for _ in range(20):
        exchange = MECHANISMS["SCRAM-SHA-256"].server(Channel())
        next(exchange)
        lookup = exchange.send(b"n,,n=mrose,r=abc")
        assert isinstance(lookup, Lookup)
        lookup.secrets = KEYS("nobody", "sha256")
        nonces.add(exchange.send(b""))
    assert len(nonces) == 20


# A hostile server.


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.replace(b"i=4100", b"i=1"),
        lambda said: said.replace(b"i=4100", b"i=1000001"),
        lambda said: said.replace(b"i=4100", b"i=1000000000"),
        lambda said: said.replace(b"i=4100", b"i=4096,m=x"),
        lambda said: b"r=x" + said[3:] if said.startswith(b"r=") else said,
        lambda said: said if said.startswith(b"r=") else b"v=" + b"A" * 43 + b"=",
        lambda said: said if said.startswith(b"r=") else b"",
        lambda said: b"\xff",
    ],
    ids=["few", "many", "endless", "extension", "nonce", "signature", "nothing", "binary"],
)
def test_client_requires_proof_from_the_server(change: Callable[[bytes], bytes]) -> None:
    """RFC 5802 §5, and a server that would have us compute for a day."""
    with pytest.raises(ProtocolBroken):
        converse(
            "SCRAM-SHA-256", scram.client("SCRAM-SHA-256", "mrose", "tan staaf"), Channel(), change
        )


def test_a_server_that_refuses_a_proof_says_so_and_is_answered() -> None:
    """RFC 5802 §7, server-error; POP3's -ERR comes behind the empty answer (RFC 5034 §4)."""
    client = scram.client("SCRAM-SHA-256", "mrose", "tan staaf")
    nonce = next(client).response.rpartition(b"r=")[2]
    client.send(b"r=" + nonce + b"server,s=QSXCR+Q6sek8bf92QSXC,i=4096")
    assert client.send(b"e=invalid-proof").response == b""
    with pytest.raises(ProtocolBroken):
        client.send(b"")


@pytest.mark.parametrize(("user", "password"), [("a\0b", "x"), ("mrose", "\u0007")])
def test_a_name_or_password_that_scram_cannot_send(user: str, password: str) -> None:
    with pytest.raises(UnsafeArgument):
        next(scram.client("SCRAM-SHA-256", user, password))


def test_unknown_mechanism_is_refused() -> None:
    with pytest.raises(UnsafeArgument, match="unknown mechanism: X"):
        client_exchange("X", ClientLogin("mrose", "tan staaf"))


def test_client_refuses_a_nonce_without_a_server_part() -> None:
    client = scram.client("SCRAM-SHA-256", "mrose", "tan staaf")
    nonce = next(client).response.rpartition(b"r=")[2]
    with pytest.raises(ProtocolBroken):
        client.send(b"r=" + nonce + b",s=QSXCR+Q6sek8bf92QSXC,i=4096")


# Whatever comes.


@given(st.sampled_from(sorted(MECHANISMS)), st.lists(st.binary(max_size=80), max_size=4))
def test_no_response_raises_anything_else(name: str, responses: list[bytes]) -> None:
    channel = Channel(b"x", ("a@x.org",))
    with suppress(BadCommand, AuthenticationFailed, AssertionError):
        serve(name, *responses, channel=channel)


@given(
    st.lists(
        st.sampled_from(
            [
                b"n,,",
                b"p=tls-server-end-point,,",
                b"n=",
                b"a",
                b",",
                b"r=",
                b"=2C",
                b"m=",
                b"\0",
                b"\xff",
                "é".encode(),
                b"=",
                b"c=biws",
                b"p=AAAA",
            ]
        ),
        max_size=12,
    ).map(b"".join)
)
def test_no_first_message_of_scram_raises_anything_else(first: bytes) -> None:
    for name in ("SCRAM-SHA-256", "SCRAM-SHA-1-PLUS"):
        with suppress(BadCommand, AuthenticationFailed, AssertionError):
            serve(name, first, first)


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=3))
def test_no_challenge_raises_anything_else(challenges: list[bytes]) -> None:
    for client in (
        scram.client("SCRAM-SHA-256", "mrose", "x"),
        oauth.client("mrose", "x"),
        login.client("mrose", "x"),
    ):
        next(client)
        with suppress(ProtocolBroken, StopIteration):
            for challenge in challenges:
                client.send(challenge)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1"])
@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("authorization", ["", "a=mrose"])
def test_scram_finds_the_one_app_password_of_many(
    mechanism: str, count: int, authorization: str
) -> None:
    """One look-up, whichever of the passwords it was; ``a=`` may name the user again."""
    library = ScramMechanism(mechanism)
    keys, salt = [], bytes(16)
    for number in range(count):
        _, stored, server_key, _ = library.make_auth_info(f"password-{number}", 4096, salt)
        keys.append(ScramKey(f"device-{number}", stored, server_key))
    for password, expected in ((f"password-{count - 1}", f"device-{count - 1}"), ("wrong", None)):
        exchange = MECHANISMS[mechanism].server(Channel())
        assert next(exchange) == b""
        client = ScramClient([mechanism], "mrose", password)
        header = f"n,{authorization},".encode()
        opening = client.get_client_first().encode().replace(b"n,,", header, 1)
        lookup = exchange.send(opening)
        assert isinstance(lookup, Lookup)
        lookup.secrets = ScramSecrets(salt, 4096, tuple(keys))
        challenge = exchange.send(b"")
        assert isinstance(challenge, bytes)
        client.gs2_header = Header(header)
        client.set_server_first(challenge.decode())
        final = client.get_client_final().encode()
        if expected is None:
            with pytest.raises(StopIteration) as ended:
                exchange.send(final)
            assert ended.value.value == FailedProof(mechanism, "mrose")
            continue
        proof = exchange.send(final)
        assert isinstance(proof, bytes)
        client.set_server_final(proof.decode())
        with pytest.raises(StopIteration) as ended:
            exchange.send(b"")
        assert ended.value.value == Proof(mechanism, "mrose", expected)


class Header:
    """What a client binds: the header of its first message, to the letter."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets

    def make_cbind_input(self, _: object) -> bytes:
        return self._octets
