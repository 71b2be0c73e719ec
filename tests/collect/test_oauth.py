"""OAuth 2 of the collector: consent, stored tokens, and failures that must not lose them."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote

import pytest

from restante import config
from restante.app.job import Job
from restante.cli import consent
from restante.cli.main import main as restante
from restante.collect.oauth import flow, web
from restante.collect.oauth.errors import ProviderUnavailable, explain
from restante.collect.oauth.flow import AuthorizationRequest, Tokens
from restante.collect.oauth.sealed import Tokenfile, load_key
from restante.errors import ConfigurationError, ConsentNeeded, LoginFailed, UnsafeArgument
from restante.pop3.session import Policy
from restante.store.memory import MemoryStore

from ..support import once, serving
from .provider import TOKEN, StandIn, provider

KEY = bytes(range(32))


@pytest.fixture
def server() -> Iterator[StandIn]:
    with provider() as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Tokenfile:
    (tmp_path / "tokens").mkdir()
    return Tokenfile(tmp_path / "tokens", "isp", KEY)


def visit(url: str) -> str:
    """Follow an address as a browser does; returns the final one."""
    with urllib.request.urlopen(url, timeout=10) as page:
        return str(page.url)


def browse(url: str) -> None:
    threading.Thread(target=visit, args=(url,)).start()


# Ways to consent


def test_in_a_browser_on_this_machine(server: StandIn) -> None:
    found = web.by_browser(server.application, "mrose", browse)
    assert (found.access, found.refresh, found.user) == (TOKEN, "refresh-1", "mrose")
    assert found.expires_at > time.time() + 3000


def test_the_loopback_address_takes_no_other_answer(server: StandIn) -> None:
    """Any program on this machine may send requests: only the right state is accepted."""
    wrong: list[int] = []

    def show(url: str) -> None:
        def attack_first() -> None:
            asked = dict(part.split("=") for part in url.partition("?")[2].split("&"))
            loopback = unquote(asked["redirect_uri"])
            for query in ("", "?code=x", "?code=x&state=wrong", f"?state={asked['state']}"):
                with pytest.raises(HTTPError) as refused:
                    visit(loopback + query)
                wrong.append(refused.value.code)
                refused.value.close()
            visit(url)

        threading.Thread(target=attack_first).start()

    assert web.by_browser(server.application, "mrose", show).access == TOKEN
    assert wrong == [400] * 4


def test_declined_consent_is_reported(server: StandIn) -> None:
    question = AuthorizationRequest(server.application, "http://127.0.0.1:1/", "mrose")
    with pytest.raises(ConsentNeeded, match="the provider refused"):
        question.code(f"/?error=access_denied&state={question.state}")


def test_by_pasting_the_last_address(server: StandIn) -> None:
    shown: list[str] = []

    def read() -> str:
        query = dict(
            (key, unquote(value))
            for key, value in (part.split("=") for part in shown[0].partition("?")[2].split("&"))
        )
        return server.agree(query) + "\n"

    found = web.by_pasting(server.application, "mrose", shown.append, read)
    assert found.refresh == "refresh-1"


def test_a_code_of_another_question_is_worth_nothing(server: StandIn) -> None:
    """It has another verifier (RFC 7636) and nonce."""
    mine = AuthorizationRequest(server.application, "http://127.0.0.1:1/", "mrose")
    query = dict(part.split("=") for part in mine.url.partition("?")[2].split("&"))
    server.agree({key: unquote(value) for key, value in query.items()})
    stolen = replace(mine, verifier="another")
    with pytest.raises(ConsentNeeded, match="was revoked"):
        stolen.tokens(web.post(server.provider.token, stolen.redeem("the-code")), 0.0)
    server.nonce = "another"
    with pytest.raises(ConsentNeeded, match="another request"):
        mine.tokens(web.post(server.provider.token, mine.redeem("the-code")), 0.0)


def test_on_another_device(server: StandIn) -> None:
    """It waits as long as the provider requests (RFC 8628 §3.5)."""
    shown: list[tuple[str, str]] = []
    waits: list[float] = []
    pending = (400, {"error": "authorization_pending"})
    slow = (400, {"error": "slow_down"})

    def show(address: str, user_code: str) -> None:
        shown.append((address, user_code))
        server.answers = [pending, slow, (503, {}), pending]

    found = web.by_device(server.application, show, waits.append)
    assert shown == [(f"{server.url}/enter", "F7KQ-22LM")]
    assert waits == [3, 3, 8, 16, 16]
    assert found.refresh == "refresh-1"


@pytest.mark.parametrize("error", ["expired_token", "access_denied"])
def test_unconfirmed_device_needs_consent(error: str, server: StandIn) -> None:
    def show(*_: str) -> None:
        server.answers = [(400, {"error": error})]

    with pytest.raises(ConsentNeeded):
        web.by_device(server.application, show, lambda _: None)


def test_google_gives_no_mail_to_devices() -> None:
    with pytest.raises(UnsafeArgument, match="does not support sign-in with a device code"):
        web.by_device(flow.Application(flow.GOOGLE, "app"), lambda *_: None)


def test_a_service_agrees_by_its_own_secret(server: StandIn, file: Tokenfile) -> None:
    assert web.access_token(server.application, file, is_service=True) == TOKEN
    assert server.forms[0]["grant_type"] == "client_credentials"
    web.access_token(server.application, file, is_service=True)
    assert len(server.forms) == 1  # the first token is still valid


# Refreshing


def agreed(server: StandIn, file: Tokenfile) -> Tokens:
    found = web.by_browser(server.application, "mrose", browse)
    file.put(found)
    server.forms.clear()
    return found


def test_a_good_token_is_used_until_shortly_before_its_end(
    server: StandIn, file: Tokenfile
) -> None:
    found = agreed(server, file)
    assert web.access_token(server.application, file) == TOKEN
    assert server.forms == []
    file.put(replace(found, expires_at=time.time() + 60))
    server.access = "new"
    assert web.access_token(server.application, file) == "new"
    assert [form["grant_type"] for form in server.forms] == ["refresh_token"]


def test_a_rotated_refresh_token_is_durable_before_the_access_token_is_used(
    server: StandIn, file: Tokenfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed(server, file)
    done: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        done.append("sync")
        real_fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    web.access_token(server.application, file, renew=True)
    assert done == ["sync", "rename", "sync"]
    stored = file.get()
    assert stored is not None
    assert (stored.refresh, stored.user) == ("refresh-2", "mrose")
    assert web.access_token(server.application, file, renew=True) == TOKEN  # rotated again


@pytest.mark.parametrize(
    "answer",
    [
        (500, {"error": "invalid_grant"}),
        (429, {}),
        (400, {"error": "temporarily_unavailable"}),
        (200, {"token_type": "Bearer"}),
        (200, {"access_token": "x", "token_type": "mac"}),
    ],
)
def test_provider_that_is_down_does_not_affect_the_tokens(
    answer: tuple[int, dict[str, Any]], server: StandIn, file: Tokenfile
) -> None:
    before = agreed(server, file)
    server.answers = [answer]
    with pytest.raises(ProviderUnavailable):
        web.access_token(server.application, file, renew=True)
    assert file.get() == before
    assert web.access_token(server.application, file, renew=True) == TOKEN


def test_network_error_does_not_affect_the_tokens(tmp_path: Path, file: Tokenfile) -> None:
    with provider() as server:
        before = agreed(server, file)
    with pytest.raises(ProviderUnavailable):
        web.access_token(server.application, file, renew=True)
    assert file.get() == before


def test_revoked_consent_names_the_next_step(server: StandIn, file: Tokenfile) -> None:
    """Also after a crash between the rotation at the provider and the write here."""
    before = agreed(server, file)
    web.access_token(server.application, file, renew=True)
    file.put(before)  # as if the last write was lost
    with pytest.raises(ConsentNeeded, match="account auth"):
        web.access_token(server.application, file, renew=True)
    assert file.get() == before
    failure = file.failure()
    assert failure is not None
    assert "was revoked" in failure[1]
    file.put(before)
    assert file.failure() is None


def test_two_at_once_refresh_once(server: StandIn, file: Tokenfile) -> None:
    """A provider that sees a refresh token twice revokes the consent."""
    found = agreed(server, file)
    file.put(replace(found, expires_at=0.0))
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: web.access_token(server.application, file), range(4)))
    assert got == [TOKEN] * 4
    assert len(server.forms) == 1


def test_missing_consent_names_the_command(server: StandIn, file: Tokenfile) -> None:
    with pytest.raises(ConsentNeeded, match="account auth"):
        web.access_token(server.application, file)


# On disk


def test_the_file_holds_no_token_and_opens_by_its_key_only(tmp_path: Path, file: Tokenfile) -> None:
    file.put(Tokens("access-1", 9e9, "refresh-1"))
    (path,) = (tmp_path / "tokens").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert not {b"access-1", b"refresh-1"} & {path.read_bytes()[at:][:9] for at in range(200)}
    command = "restante account auth isp"
    with pytest.raises(ConfigurationError, match=f"; run: {command}$"):
        Tokenfile(tmp_path / "tokens", "isp", bytes(32), command).get()
    path.rename(path.with_name("other.sealed"))
    with pytest.raises(ConfigurationError):
        Tokenfile(tmp_path / "tokens", "other", KEY).get()


def test_key_is_created_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "made" / "key"
    key = load_key(path, None)
    assert (len(key), load_key(path, None)) == (32, key)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path, lambda: b64encode(KEY).decode()) == KEY
    with pytest.raises(ConfigurationError, match="32 octets"):
        load_key(path, lambda: "c2hvcnQ=")
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_key(path, None)


def test_no_repr_holds_a_secret(server: StandIn) -> None:
    question = AuthorizationRequest(server.application, "http://127.0.0.1:1/", "mrose")
    reported = repr([question, server.application, Tokens("access", 0.0, "refresh")])
    for secret in ("'secret'", question.state, question.nonce, question.verifier, "'access'"):
        assert secret not in reported


# Requests to the provider


def test_secrets_go_by_https_and_nowhere_else(server: StandIn) -> None:
    for url in ("http://login.example/token", "ftp://127.0.0.1/", "file:///etc/passwd"):
        with pytest.raises(ConfigurationError, match="https"):
            web.post(url, {})
    server.redirects = True
    with pytest.raises(ProviderUnavailable):
        web.post(server.provider.token, {"refresh_token": "secret"})
    assert server.forms == []


@pytest.mark.parametrize(
    ("error", "description", "meaning"),
    [
        ("invalid_grant", "AADSTS50173: The provided grant has expired", "new password"),
        (
            "invalid_grant",
            "AADSTS700082: The refresh token has expired",
            "not used for a long time",
        ),
        ("unauthorized_client", "AADSTS700016: Application not found", "client_id"),
        ("invalid_client", "AADSTS7000218: The request body must contain", "public client flows"),
        ("invalid_grant", "AADSTS1234567: whatever", "AADSTS1234567: the sign-in"),
        ("invalid_grant", "Token has been expired or revoked.", "7 days"),
        ("admin_policy_enforced", "", "administrator forbids"),
        ("odd\x1b[1m", "thing", "reports odd[1m: thing"),
    ],
)
def test_errors_are_explained(error: str, description: str, meaning: str) -> None:
    assert meaning in str(explain(error, description))


def test_presets_request_the_scopes_of_the_providers() -> None:
    google = AuthorizationRequest(
        flow.Application(flow.GOOGLE, "app"), "http://127.0.0.1:1/", "ann"
    ).url
    assert "access_type=offline" in google
    assert "https%3A%2F%2Fmail.google.com%2F" in google
    tenant = flow.microsoft("example.onmicrosoft.com")
    assert "example.onmicrosoft.com/oauth2/v2.0/token" in tenant.token
    form = flow.device_request(flow.Application(tenant, "app"))
    assert {"offline_access", "https://outlook.office.com/POP.AccessAsUser.All"} <= set(
        form["scope"].split()
    )


# Together: the command, the collector, and a server that accepts tokens


def configured(tmp_path: Path, server: StandIn, port: int, ca_file: Path) -> config.Configuration:
    path = tmp_path / "restante.toml"
    path.write_text(
        f'[account.isp]\nurl = "pop3s://127.0.0.1:{port}"\nuser = "mrose"\n'
        f'ca_file = "{ca_file}"\nto = "maildir:{tmp_path}/Mail"\n'
        "[account.isp.oauth]\n"
        'provider = "other"\nclient_id = "app"\nclient_secret = "secret"\n'
        f'authorize_url = "{server.url}/authorize"\ntoken_url = "{server.url}/token"\n'
        'scopes = ["openid"]\n'
    )
    path.chmod(0o600)
    return config.load(path, environment={"STATE_DIRECTORY": str(tmp_path / "state")})


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
def test_a_session_by_token_and_one_more_when_it_was_taken_back(
    mechanism: str,
    server: StandIn,
    tmp_path: Path,
    server_tls: ssl.SSLContext,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """XOAUTH2 takes two steps, as at Microsoft."""

    async def log_in(found: config.Configuration) -> int:
        async with Job.of(found, "isp").connect() as client:
            return (await client.stat())[0]

    async def main() -> None:
        store = MemoryStore()
        await store.deliver("mrose", once(b"Subject: x\r\n\r\n"))
        policy = Policy(mechanisms=(mechanism,))
        async with serving(
            store, tls=server_tls, implicit=True, clear=False, policy=policy
        ) as running:
            found = configured(tmp_path, server, running.port, certificate[0])
            grant = Job.of(found, "isp").grant
            with pytest.raises(ConsentNeeded):
                await log_in(found)
            monkeypatch.setattr(consent, "_open_browser", browse)
            await asyncio.to_thread(consent.sign_in, grant, "browser")
            assert await log_in(found) == 1
            file = Job.of(found, "isp").grant.file()
            tokens = file.get()
            assert tokens is not None
            file.put(replace(tokens, access="stale"))
            assert await log_in(found) == 1
            server.access = "wrong"
            file.put(replace(tokens, access="stale", refresh="refresh-2"))
            with pytest.raises(LoginFailed):
                await log_in(found)

    asyncio.run(main())


def test_account_list_shows_how_long_a_consent_lasts(
    server: StandIn,
    tmp_path: Path,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configured(tmp_path, server, 1, certificate[0])
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    words = ["-c", str(tmp_path / "restante.toml"), "account"]
    assert restante([*words, "list"]) == os.EX_OK
    assert "Not signed in yet" in capsys.readouterr().out
    server.answers = []
    monkeypatch.setattr(consent, "_open_browser", browse)
    assert restante([*words, "auth", "isp", "--browser"]) == os.EX_OK
    assert f"signed in {time.strftime('%Y-%m-%d')} as mrose" in capsys.readouterr().out
    found = config.load(tmp_path / "restante.toml")
    file = Job.of(found, "isp").grant.file()
    tokens = file.get()
    assert tokens is not None
    file.put(replace(tokens, refresh_expires_at=time.time() + 86_400))
    assert restante([*words, "show", "isp"]) == os.EX_OK
    assert "Run: restante account auth isp" in capsys.readouterr().out
