"""Tokens of a real OpenID provider: signed ones, and opaque ones by introspection."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen

import pytest

from restante.auth.http import ProviderClient
from restante.auth.tokens import Introspected, Issuer, KeySet, Signed, TokenRules
from restante.errors import AuthenticationFailed, BackendUnavailable

from .programs import missing, need, running

pytestmark = pytest.mark.interop
PACKAGES = Path(__file__).parents[2] / "build" / "openid" / "node_modules"


@dataclass
class Provider:
    process: Popen[bytes]
    url: str

    def token(self, account: str, format: str, **more: object) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(
            json.dumps({"account": account, "format": format, **more}).encode()
        )
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        token: str = read(self.process)["token"]
        return token

    @property
    def wanted(self) -> TokenRules:
        return TokenRules(self.url, ("urn:restante",), scope="mail")

    def signed(self) -> Signed:
        return Signed(KeySet(f"{self.url}/jwks", ProviderClient()), self.wanted)

    def introspected(self, secret: str = "sec:ret") -> Introspected:
        url = f"{self.url}/token/introspection"
        return Introspected(url, "restante", secret, self.wanted, ProviderClient())


def read(process: Popen[bytes]) -> dict[str, str]:
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith(b"{"):
        assert line, "the provider has ended"
    found: dict[str, str] = json.loads(line)
    return found


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    node = need("node")
    if not PACKAGES.is_dir():
        missing("oidc-provider is not installed; .ci/run does it")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("oidc")
    (folder / "node_modules").symlink_to(PACKAGES)
    shutil.copy(Path(__file__).with_name("oidc.mjs"), folder)
    with running(node, "--preserve-symlinks-main", folder / "oidc.mjs", str(port)) as process:
        yield Provider(process, read(process)["issuer"])


def owner(issuer: Issuer, token: str) -> str:
    return asyncio.run(issuer.owner(token))


def refused(issuer: Issuer, token: str) -> str:
    with pytest.raises(AuthenticationFailed) as raised:
        owner(issuer, token)
    return raised.value.reason


def test_signed_token_from_a_real_provider(provider: Provider) -> None:
    token = provider.token("mrose", "jwt")
    assert owner(provider.signed(), token) == "mrose@example.org"
    header, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    for changed in ({"email": "ann@example.org"}, {"exp": claims["exp"] + 600}):
        other = base64.urlsafe_b64encode(json.dumps({**claims, **changed}).encode()).rstrip(b"=")
        refused(provider.signed(), f"{header}.{other.decode()}.{signature}")
    refused(provider.signed(), provider.token("mrose", "jwt", audience="urn:other"))
    refused(provider.signed(), provider.token("eve", "jwt"))  # her address is not verified
    refused(provider.signed(), provider.token("mrose", "opaque"))
    issuer = Signed(
        KeySet(f"{provider.url}/jwks", ProviderClient()), replace(provider.wanted, issuer="x")
    )
    assert refused(issuer, token) == "token: InvalidIssuerError"


def test_an_opaque_token_of_a_real_provider(provider: Provider) -> None:
    token = provider.token("mrose", "opaque")
    assert owner(provider.introspected(), token) == "mrose@example.org"
    assert refused(provider.introspected(), token[:-1] + "~") == "token-not-active"
    assert refused(provider.introspected(), "x") == "token-not-active"
    other = provider.token("mrose", "opaque", audience="urn:other")
    assert refused(provider.introspected(), other) == "token-audience"
    assert refused(provider.introspected(), provider.token("eve", "opaque")) == (
        "token-email-not-verified"
    )


def test_a_provider_that_does_not_know_us_makes_no_token_wrong(provider: Provider) -> None:
    with pytest.raises(BackendUnavailable):
        owner(provider.introspected(secret="wrong"), provider.token("mrose", "opaque"))
