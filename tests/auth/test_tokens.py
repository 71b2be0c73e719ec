"""OAuth 2 tokens: claims that are accepted, and attacks (FAULTS.md I 198)."""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from restante.auth.http import ProviderClient, is_safe
from restante.auth.tokens import Introspected, KeySet, Signed, TokenRules
from restante.errors import AuthenticationFailed, BackendUnavailable

T = TypeVar("T")
WANTED = TokenRules("https://id.example.org", ("restante",))
NOW = int(time.time())
GOOD: dict[str, Any] = {
    "iss": "https://id.example.org",
    "aud": "restante",
    "exp": NOW + 600,
    "sub": "4711",
    "email": "mrose@example.org",
    "email_verified": True,
    "scope": "openid mail",
}


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


# The provider's keys.


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def published(**more: Any) -> dict[str, Any]:
    keys = [
        {**RSAAlgorithm.to_jwk(rsa_key().public_key(), as_dict=True), "kid": "rsa"},
        {**ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True), "kid": "ec", "use": "sig"},
        {**OKPAlgorithm.to_jwk(ED_KEY.public_key(), as_dict=True), "kid": "ed"},
    ]
    return {"keys": keys, **more}


def public_pem() -> bytes:
    return (
        rsa_key()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


@pytest.fixture
def jwks(tmp_path: Path) -> Path:
    (tmp_path / "jwks.json").write_text(json.dumps(published()))
    return tmp_path / "jwks.json"


@pytest.fixture
def issuer(jwks: Path) -> Signed:
    return Signed(KeySet(str(jwks), ProviderClient()), WANTED)


def token(claims: dict[str, Any] = GOOD, algorithm: str = "RS256", **header: Any) -> str:
    key: Any = {"ES": EC_KEY, "Ed": ED_KEY}.get(algorithm[:2], rsa_key())
    kid = {"ES": "ec", "Ed": "ed"}.get(algorithm[:2], "rsa")
    return jwt.encode(claims, key, algorithm, headers={"kid": kid, **header})


def part(value: object) -> str:
    octets = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(octets).decode().rstrip("=")


def refused(issuer: Signed | Introspected, shown: str) -> str:
    with pytest.raises(AuthenticationFailed) as raised:
        run(issuer.owner(shown))
    return raised.value.reason


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS256", "ES256", "EdDSA"])
def test_a_signed_token_names_its_owner(issuer: Signed, algorithm: str) -> None:
    assert run(issuer.owner(token(algorithm=algorithm))) == "mrose@example.org"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": ["other", "restante"]},
        {"nbf": NOW - 10},
        {"nested": {"a": [{}] * 20}},
    ],
)
def test_valid_variants_of_claims_are_accepted(issuer: Signed, claims: dict[str, Any]) -> None:
    assert run(issuer.owner(token({**GOOD, **claims}))) == "mrose@example.org"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "other"},
        {"aud": []},
        {"aud": None},
        {"aud": {"restante": 1}},
        {"aud": "restante2"},
        {"iss": "https://id.example.org/"},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"iss": ["https://id.example.org"]},
        {"exp": NOW - 60},
        {"exp": None},
        {"exp": "never"},
        {"exp": [NOW + 600]},
        {"nbf": NOW + 600},
        {"nbf": "x"},
        {"iat": NOW + 6000},
        {"email": None},
        {"email": ""},
        {"email": ["mrose@example.org"]},
        {"email": {"a": "mrose@example.org"}},
        {"email_verified": None},
        {"email_verified": False},
        {"email_verified": "true"},
    ],
    ids=" ".join,
)
def test_token_with_a_wrong_or_missing_claim_is_refused(
    issuer: Signed, claims: dict[str, Any]
) -> None:
    """None leaves it out."""
    changed = {name: value for name, value in {**GOOD, **claims}.items() if value is not None}
    header = {"alg": "RS256", "kid": "rsa"}
    signed = f"{part(header)}.{part(changed)}"  # PyJWT would not make some of them
    signature = RSAAlgorithm(RSAAlgorithm.SHA256).sign(signed.encode(), rsa_key())
    refused(issuer, f"{signed}.{part(signature)}")


def test_a_scope_may_be_required(jwks: Path) -> None:
    keys = KeySet(str(jwks), ProviderClient())
    for scope, claims, is_right in (
        ("mail", {}, True),
        ("mail", {"scope": "mail2 openid"}, False),
        ("mail", {"scope": ["mail"]}, True),
        ("mail", {"scope": None, "scp": "mail"}, True),
        ("mail", {"scope": 7}, False),
        ("admin", {}, False),
    ):
        issuer = Signed(keys, replace(WANTED, scope=scope))
        made = {name: each for name, each in {**GOOD, **claims}.items() if each is not None}
        if is_right:
            assert run(issuer.owner(token(made)))
        else:
            assert refused(issuer, token(made)) == "token-scope"


def test_another_claim_may_name_the_user(jwks: Path) -> None:
    issuer = Signed(KeySet(str(jwks), ProviderClient()), replace(WANTED, claim="sub"))
    assert run(issuer.owner(token({**GOOD, "email_verified": False}))) == "4711"


def test_clocks_may_differ_by_half_a_minute(issuer: Signed) -> None:
    assert run(issuer.owner(token({**GOOD, "exp": int(time.time()) - 15})))
    assert run(issuer.owner(token({**GOOD, "nbf": int(time.time()) + 25})))


# Forgeries.


def forged(kind: str) -> str:
    header, body = {"alg": "RS256", "kid": "rsa", "typ": "JWT"}, part(GOOD)
    good = token()
    public = published()["keys"][0]

    def signed_by_public(secret: bytes, algorithm: str = "HS256") -> str:
        """Confusion: the public key taken for a secret."""
        text = f"{part({**header, 'alg': algorithm})}.{body}"
        return f"{text}.{part(hmac.digest(secret, text.encode(), 'sha256'))}"

    other = rsa.generate_private_key(65537, 2048) if "jwk" in kind or kind == "key" else None
    headers: dict[str, dict[str, Any]] = {
        "jwk": {"jwk": RSAAlgorithm.to_jwk(other.public_key(), as_dict=True)} if other else {},
        "jku": {"jku": "https://evil.example/jwks"},
        "x5u": {"x5u": "https://evil.example/cert"},
        "kid path": {"kid": "../../etc/passwd"},
        "kid url": {"kid": "https://evil.example/jwks"},
        "kid query": {"kid": "' OR 1=1 --"},
        "kid of another": {"kid": "ec"},
        "crit": {"crit": ["exp"]},
        "zip": {"zip": "DEF"},
        "kid number": {"kid": 1},
        "kid list": {"kid": ["rsa"]},
        "no kid": {"kid": None},
    }
    if kind in headers:
        made = {name: each for name, each in {**header, **headers[kind]}.items() if each}
        text = f"{part(made)}.{body}"
        key = other or rsa_key()
        return f"{text}.{part(RSAAlgorithm(RSAAlgorithm.SHA256).sign(text.encode(), key))}"
    return {
        "none": f"{part({'alg': 'none', 'kid': 'rsa'})}.{body}.",
        "None": f"{part({'alg': 'None', 'kid': 'rsa'})}.{body}.",
        "none, signed": f"{part({'alg': 'none', 'kid': 'rsa'})}.{body}.{good.split('.')[2]}",
        "no algorithm": f"{part({'kid': 'rsa'})}.{body}.{good.split('.')[2]}",
        "algorithms": f"{part({'alg': ['RS256'], 'kid': 'rsa'})}.{body}.{good.split('.')[2]}",
        "no signature": good.rpartition(".")[0] + ".",
        "two parts": good.rpartition(".")[0],
        "four parts": good + ".x",
        "five parts": good + ".x.y",
        "confusion, PEM": signed_by_public(public_pem()),
        "confusion, n": signed_by_public(public["n"].encode()),
        "confusion, RS256": signed_by_public(public_pem(), "RS256"),
        "key": jwt.encode(GOOD, other, "RS256", headers={"kid": "rsa"}) if other else "",
        "another body": ".".join([good.split(".")[0], part({**GOOD, "sub": "x"}), good[-342:]]),
        "huge": token({**GOOD, "x": "x" * 20_000}),
        "deep": f"{part(b'[' * 10_000)}.{body}.x",
        "deep body": f"{part(header)}.{part(b'[' * 11_000)}.x",
        "nested": jwt.encode({"jwt": good}, rsa_key(), "RS256", headers={"kid": "rsa"}),
        "not JSON": f"{part(b'{')}.{body}.x",
        "a list": f"{part([])}.{body}.x",
        "no Base64": "#.#.#",
        "empty": "",
        "dots": "..",
        "opaque": "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("none", "None", "none, signed", "no algorithm", "algorithms", "no signature"),
        *("two parts", "four parts", "five parts", "confusion, PEM", "confusion, n"),
        *("confusion, RS256", "key", "another body", "huge", "deep", "deep body", "nested"),
        *("not JSON", "a list", "no Base64", "empty", "dots", "opaque", "jwk", "kid path"),
        *("kid url", "kid query", "kid of another", "crit", "zip", "kid number", "kid list"),
        "no kid",
    ],
)
def test_forged_token_is_refused(issuer: Signed, kind: str) -> None:
    refused(issuer, forged(kind))


@pytest.mark.parametrize("kind", ["jku", "x5u"])
def test_a_url_in_a_token_is_not_followed(issuer: Signed, kind: str) -> None:
    """Here the signature is good, so that only what is looked at can differ."""
    assert run(issuer.owner(forged(kind))) == "mrose@example.org"


def test_unusable_keys_are_ignored(tmp_path: Path) -> None:
    """Secret keys, keys for encryption, short keys and garbage are not there."""
    secret = {"kty": "oct", "k": part(b"secret" * 6), "kid": "secret"}
    short = RSAAlgorithm.to_jwk(rsa_key(1024).public_key(), as_dict=True)
    listed = [
        secret,
        {**published()["keys"][0], "use": "enc", "kid": "enc"},
        {**short, "kid": "short"},
        {**RSAAlgorithm.to_jwk(rsa_key(), as_dict=True), "kid": "private"},
        {"kty": "RSA", "n": "AQAB", "kid": "half"},
        {"kty": ["RSA"], "kid": "list"},
        {"kid": "nothing"},
        7,
    ]
    (tmp_path / "jwks").write_text(json.dumps({"keys": listed}))
    issuer = Signed(KeySet(str(tmp_path / "jwks"), ProviderClient()), WANTED)
    for kid in ("enc", "short", "private", "half", "list", "nothing"):
        assert refused(issuer, token(kid=kid)) == "token-key"
    assert refused(issuer, jwt.encode(GOOD, b"secret" * 6, "HS256", headers={"kid": "secret"})) == (
        "token-algorithm"
    )


def test_a_single_key_needs_no_name(tmp_path: Path) -> None:
    (tmp_path / "jwks").write_text(json.dumps({"keys": [published()["keys"][0]]}))
    issuer = Signed(KeySet(str(tmp_path / "jwks"), ProviderClient()), WANTED)
    assert run(issuer.owner(jwt.encode(GOOD, rsa_key(), "RS256"))) == "mrose@example.org"


# A provider.


@dataclass
class Provider:
    """Answers over HTTP, and counts what it was asked."""

    answer: Any = field(default_factory=published)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str], dict[str, list[str]]]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            found.asked.append((self.path, dict(self.headers), parse_qs(form)))
            answer = found.answer
            octets = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(octets)))
            self.end_headers()
            self.wfile.write(octets)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_keys_are_fetched_once_an_hour(provider: Provider) -> None:
    clock = Clock()
    issuer = Signed(KeySet(f"{provider.url}/jwks", ProviderClient(), clock), WANTED)

    async def main() -> None:
        await asyncio.gather(*(issuer.owner(token()) for _ in range(20)))
        assert len(provider.asked) == 1
        clock.now += 3601
        await issuer.owner(token())
        assert len(provider.asked) == 2

    run(main())


def test_unknown_keys_are_looked_for_once_a_minute(provider: Provider) -> None:
    """A thousand of them cause one request to the provider."""
    clock = Clock()
    issuer = Signed(KeySet(f"{provider.url}/jwks", ProviderClient(), clock), WANTED)

    async def main() -> None:
        await issuer.owner(token())
        for number in range(30):
            with pytest.raises(AuthenticationFailed):
                await issuer.owner(token(kid=f"unknown{number}"))
        assert len(provider.asked) == 1
        clock.now += 61
        provider.answer["keys"].append({**provider.answer["keys"][0], "kid": "new"})
        assert await issuer.owner(token(kid="new")) == "mrose@example.org"
        assert len(provider.asked) == 2

    run(main())


def test_a_key_that_is_withdrawn_is_forgotten(provider: Provider) -> None:
    clock = Clock()
    issuer = Signed(KeySet(f"{provider.url}/jwks", ProviderClient(), clock), WANTED)

    async def main() -> None:
        await issuer.owner(token())
        del provider.answer["keys"][0]
        clock.now += 3601
        with pytest.raises(AuthenticationFailed):
            await issuer.owner(token())

    run(main())


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"", 200),
        (b"{", 200),
        (b"[]", 200),
        (b"[" * 100_000, 200),
        (b"\xff", 200),
        ({"keys": 7}, 200),
        ({"keys": [{}] * 101}, 200),
        ({}, 500),
        ({}, 404),
        ({}, 302),
        (b" " * 1_100_000, 200),
    ],
)
def test_broken_provider_is_a_temporary_failure(
    provider: Provider, answer: Any, status: int
) -> None:
    """Tokens with keys fetched before still log in."""
    clock = Clock()
    issuer = Signed(KeySet(f"{provider.url}/jwks", ProviderClient(), clock), WANTED)

    async def main() -> None:
        provider.headers["Location"] = f"{provider.url}/elsewhere"
        good, provider.answer, provider.status = provider.answer, answer, status
        with pytest.raises(BackendUnavailable):
            await issuer.owner(token())
        assert [path for path, _, _ in provider.asked] == ["/jwks"]
        clock.now += 61
        provider.answer, provider.status = good, 200
        await issuer.owner(token())
        clock.now += 3601
        provider.answer, provider.status = answer, status
        await issuer.owner(token())
        with pytest.raises(BackendUnavailable):
            await issuer.owner(token(kid="new"))

    run(main())


def test_unreachable_key_source_is_a_temporary_failure(tmp_path: Path) -> None:
    for source in "http://127.0.0.1:1/jwks", str(tmp_path / "missing"), str(tmp_path):
        with pytest.raises(BackendUnavailable):
            run(Signed(KeySet(source, ProviderClient()), WANTED).owner(token()))


# Introspection.


def introspecting(provider: Provider, **answer: Any) -> Introspected:
    """None leaves a value out."""
    said = {"active": True, "client_id": "mail", **GOOD, **answer}
    provider.answer = {name: value for name, value in said.items() if value is not None}
    return Introspected(f"{provider.url}/introspect", "rest ante", "p:w", WANTED, ProviderClient())


def test_introspection_names_the_user(provider: Provider) -> None:
    assert run(introspecting(provider).owner("a+b/c=")) == "mrose@example.org"
    ((path, headers, form),) = provider.asked
    assert path == "/introspect"
    assert b64decode(headers["Authorization"].removeprefix("Basic ")) == b"rest+ante:p%3Aw"
    assert form == {"token": ["a+b/c="], "token_type_hint": ["access_token"]}


@pytest.mark.parametrize(
    "answer",
    [
        {"iss": None},
        {"exp": None},
        {"aud": None, "client_id": "restante"},
        {"aud": ["other", "restante"]},
    ],
    ids=" ".join,
)
def test_optional_claims_may_be_missing(provider: Provider, answer: dict[str, Any]) -> None:
    assert run(introspecting(provider, **answer).owner("t")) == "mrose@example.org"


@pytest.mark.parametrize(
    "answer",
    [
        {"active": False},
        {"active": None},
        {"active": "true"},
        {"active": 1},
        {"iss": "https://evil.example"},
        {"aud": "other"},
        {"aud": ["other"], "client_id": "restante"},
        {"aud": None},
        {"aud": None, "client_id": None},
        {"aud": {"restante": 1}},
        {"aud": [["restante"]]},
        {"exp": NOW - 60},
        {"exp": "9999999999"},
        {"exp": [9]},
        {"nbf": NOW + 600},
        {"email": None},
        {"email_verified": False},
    ],
    ids=" ".join,
)
def test_introspected_claims_must_match(provider: Provider, answer: dict[str, Any]) -> None:
    refused(introspecting(provider, **answer), "t")


def test_huge_token_is_not_introspected(provider: Provider) -> None:
    assert refused(introspecting(provider), "x" * 20_000) == "token-form"
    assert provider.asked == []


@pytest.mark.parametrize("status", [302, 400, 401, 403, 500, 503])
def test_refusal_by_the_provider_is_a_temporary_failure(provider: Provider, status: int) -> None:
    """The client secret is not sent to the target of a redirect."""
    issuer = introspecting(provider)
    provider.status, provider.headers = status, {"Location": f"{provider.url}/elsewhere"}
    with pytest.raises(BackendUnavailable) as raised:
        run(issuer.owner("t"))
    assert str(status) in raised.value.reason
    assert [path for path, _, _ in provider.asked] == ["/introspect"]


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://id.example.org/jwks", True),
        ("http://127.0.0.1:8080/jwks", True),
        ("http://[::1]/jwks", True),
        ("http://localhost/jwks", True),
        ("http://id.example.org/jwks", False),
        ("http://127.0.0.1.example.org/", False),
        ("http://localhost@evil.example/", False),
        ("https://user:password@id.example.org/", False),
        ("file:///etc/passwd", False),
        ("ftp://id.example.org/", False),
        ("https:///jwks", False),
        ("https://[/", False),
        ("/etc/restante/jwks.json", False),
        ("https://id.example.org/\r\nX: y", False),
        ("https://id.example.org:8443/jwks", True),
        ("https://id.example.org:port/jwks", False),
        ("https://id.example.org:65536/jwks", False),
        ("https://id..example.org/jwks", False),
        (f"https://{'a' * 63}.example/jwks", True),
        (f"https://{'a' * 64}.example/jwks", False),
    ],
)
def test_a_provider_is_asked_by_tls_or_on_this_machine(url: str, safe: bool) -> None:
    assert is_safe(url) == safe


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        (None, True),
        ("JWT", True),
        ("at+jwt", True),
        ("application/AT+JWT", True),
        ("dpop+jwt", False),
        ("logout+jwt", False),
        ("id_token+jwt", False),
        ("", False),
        (["JWT"], False),
    ],
)
def test_only_access_tokens_log_in(issuer: Signed, kind: object, accepted: bool) -> None:
    """RFC 9068 §4, RFC 8725 §3.11."""
    header: dict[str, object] = {"alg": "RS256", "kid": "rsa"}
    if kind is not None:
        header["typ"] = kind
    signing = f"{part(header)}.{part(GOOD)}"
    signature = rsa_key().sign(signing.encode(), padding.PKCS1v15(), hashes.SHA256())
    token = f"{signing}.{urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    if accepted:
        assert run(issuer.owner(token))
    else:
        refused(issuer, token)


def test_token_that_is_bound_to_a_key_is_refused(issuer: Signed) -> None:
    """RFC 7800 §3.1: SASL cannot show the key, so the token may be stolen."""
    for cnf in ({"jkt": "x"}, {"x5t#S256": "x"}, {}):
        claims = {**GOOD, "cnf": cnf}
        refused(issuer, jwt.encode(claims, rsa_key(), "RS256", headers={"kid": "rsa"}))
