"""Tokens of a real OpenID provider, the npm package oidc-provider: every consent flow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from restante import config
from restante.app.job import Job
from restante.cli import consent
from restante.cli.main import main as restante
from restante.collect.oauth import web
from restante.collect.oauth.flow import Application, Provider
from restante.collect.oauth.sealed import Tokenfile
from restante.errors import ConsentNeeded

from .openid import OpenId, browse, confirm, openid

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def server() -> Iterator[OpenId]:
    with openid() as running:
        yield running


@pytest.fixture
def application(server: OpenId) -> Application:
    provider = Provider(
        f"{server.url}/auth",
        f"{server.url}/token",
        f"{server.url}/device/auth",
        ("openid", "email", "offline_access"),
        ("mail",),
        extra=(("prompt", "consent"),),
    )
    return Application(provider, "collector", "collector-secret")


@pytest.fixture
def file(tmp_path: Path) -> Tokenfile:
    return Tokenfile(tmp_path, "isp", bytes(32))


def test_sign_in_with_a_browser_and_refresh(application: Application, file: Tokenfile) -> None:
    """The provider rotates refresh tokens, and revokes the consent if one is used twice."""
    found = web.by_browser(application, "ann@example.org", browse)
    assert found.user == "ann@example.org"
    assert found.refresh
    file.put(replace(found, expires_at=0.0))
    assert web.access_token(application, file) not in ("", found.access)
    second = file.get()
    assert second is not None
    assert second.refresh != found.refresh
    assert second.expires_at > time.time()
    file.put(replace(found, expires_at=0.0))
    with pytest.raises(ConsentNeeded, match="account auth"):
        web.access_token(application, file)
    file.put(replace(second, expires_at=0.0))
    with pytest.raises(ConsentNeeded):
        web.access_token(application, file)


def test_on_another_device(application: Application, server: OpenId) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:  # the first request is too early
            confirm(server, codes[0])

    codes: list[str] = []
    found = web.by_device(application, lambda _, code: codes.append(code), sleep)
    assert len(waits) == 2
    assert found.refresh


def test_by_the_applications_own_secret(application: Application) -> None:
    assert web.by_client_secret(application).access
    with pytest.raises(ConsentNeeded, match="client_id"):
        web.by_client_secret(replace(application, client_secret="wrong"))


def test_an_account_from_nothing_but_the_issuers_address(
    server: OpenId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The issuer publishes its addresses; the stored token can be refreshed."""
    monkeypatch.setattr(consent, "_open_browser", browse)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("APP_SECRET", server.client_secret)
    path = tmp_path / "restante.toml"
    path.write_text("")
    words = ["-c", str(path), "account", "add", "ann@example.org", "--host", "localhost"]
    words += ["--to", f"maildir:{tmp_path}/Mail", "--issuer", server.url, "--no-test"]
    words += ["--client-id", server.client_id, "--client-secret-env", "APP_SECRET", "--browser"]
    assert restante(words) == 0
    grant = Job.of(config.load(path), "example").grant
    first = grant.token()
    assert grant.token(renew=True) not in ("", first)
    assert "as ann@example.org" in consent.state(grant)
