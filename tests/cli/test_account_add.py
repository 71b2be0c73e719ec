"""`restante account add`: an address is enough, and secrets stay out of the configuration."""

from __future__ import annotations

import argparse
import dataclasses
import ssl
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from restante import config
from restante.app.job import Job
from restante.cli import account_add, consent, prompts
from restante.cli.account_add import _locate
from restante.cli.command import make_parser
from restante.client import discovery
from restante.client.remote import TLS, Service
from restante.collect.oauth.flow import AuthorizationRequest
from restante.errors import ConnectionLost, UnsafeArgument
from restante.testing import Pop3Server

from ..collect.imap import ImapStandIn, imap_server
from ..collect.provider import TOKEN, StandIn, provider
from .conftest import Input, Outcome, Restante

MESSAGE = b"Subject: one\r\n\r\nhello\r\n"


@pytest.fixture
def issuer() -> Iterator[StandIn]:
    with provider() as running:
        yield running


@pytest.fixture(params=["XOAUTH2", "OAUTHBEARER"])
def server(request: pytest.FixtureRequest) -> Iterator[Pop3Server]:
    """Run a server where the provider's token opens the maildrop of mrose."""
    with Pop3Server(users={"mrose": TOKEN}, sasl=[request.param]) as running:
        running.deliver("mrose", MESSAGE)
        yield running


def person(monkeypatch: pytest.MonkeyPatch, *typed: str, secret: str = "tan staaf") -> list[str]:
    """Simulate a user who types these lines; returns the list of questions."""
    asked: list[str] = []
    answers = iter(typed)

    def answer(question: str) -> str:
        asked.append(question)
        return next(answers)

    def hidden(question: str) -> str:
        asked.append(question)
        return secret

    monkeypatch.setattr(Input, "is_terminal", True)
    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(prompts, "getpass", hidden)
    return asked


def written(home: Path) -> str:
    """Return the text of the configuration."""
    folder = home / "config" / "restante" / "conf.d"
    return "".join(path.read_text() for path in folder.glob("*")) if folder.is_dir() else ""


def secrets(home: Path) -> list[Path]:
    state = home / "state" / "restante"
    return [*(state / "passwords").glob("*"), *(state / "tokens").glob("*.sealed")]


# Finding the server.


@pytest.mark.parametrize(
    ("address", "host", "url", "user"),
    [
        ("ann@gmail.com", None, "pop3s://pop.gmail.com", "ann@gmail.com"),
        ("ann@Outlook.com", None, "pop3s://outlook.office365.com", "ann@Outlook.com"),
        ("ann@example.org", "mail.example.org:1995", "pop3s://mail.example.org:1995", None),
        ("pop3://ann%40example.org@pop.example.org", None, "pop3://pop.example.org", None),
    ],
)
def test_server_is_derived_from_the_address(
    address: str, host: str | None, url: str, user: str | None
) -> None:
    place = _locate(address, host)
    assert (place.url, place.user) == (url, user or "ann@example.org")


@pytest.mark.parametrize(
    ("hosts", "url"),
    [
        (["aspmx.l.google.com"], "pop3s://pop.gmail.com"),
        (["other.example", "smtp.google.com"], "pop3s://pop.gmail.com"),
        (["contoso-example.mail.protection.outlook.com"], "pop3s://outlook.office365.com"),
        (["in1-smtp.messagingengine.com"], "pop3s://pop.fastmail.com"),
    ],
)
def test_provider_is_found_by_mx_records(
    hosts: list[str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "mail_exchangers", lambda _: hosts)
    assert _locate("ann@contoso.example", None).url == url


def announced(monkeypatch: pytest.MonkeyPatch, *found: Service) -> None:
    monkeypatch.setattr(discovery, "mail_exchangers", lambda _: ["mx.notgoogle.com"])
    monkeypatch.setattr(discovery, "discover_blocking", lambda _: list(found))


@pytest.mark.parametrize(
    ("port", "tls", "url"),
    [
        (995, TLS.IMPLICIT, "pop3s://mail.example.org"),
        (110, TLS.STARTTLS, "pop3://mail.example.org"),
        (1995, TLS.IMPLICIT, "pop3s://mail.example.org:1995"),
    ],
)
def test_announced_server_is_used(
    port: int, tls: TLS, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = "ann@example.org"
    announced(monkeypatch, Service("mail.example.org", port, tls, "example.org", user))
    assert (_locate(user, None).url, _locate(user, None).user) == (url, user)


@pytest.mark.rfc("P-162")
def test_announced_server_in_another_domain_needs_confirmation(
    monkeypatch: pytest.MonkeyPatch, restante: Restante
) -> None:
    user = "ann@example.org"
    announced(monkeypatch, Service("pop.hoster.net", 995, TLS.IMPLICIT, "example.org", user))
    done = restante("account", "add", user, "--to", "maildir:Mail", stdin=b"secret\n")
    assert done.code == 64
    assert "pop.hoster.net" in done.err
    asked = person(monkeypatch, "", "y")
    assert restante("account", "add", user, "--to", "maildir:Mail").code == 64
    assert restante("account", "add", user, "--to", "maildir:Mail", "--no-test").code == 0
    assert (
        asked[0]
        == asked[1]
        == ("example.org announces the server pop.hoster.net. Is that your provider? [y/N] ")
    )


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ann@icloud.com", "iCloud does not offer POP3"),
        ("ann@example.org", "--host HOST"),
        ("example.org", "ann@example.org"),
        ("ann@", "ann@example.org"),
        ("pop3s://ann:secret@host", "every user of this machine"),
        ("pop3s://host", "the URL contains no user name"),
    ],
)
def test_address_without_a_known_server_asks_for_one(
    address: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced(monkeypatch)
    with pytest.raises(UnsafeArgument, match=words):
        _locate(address, None)


def test_failed_dns_query_is_not_an_empty_answer(
    monkeypatch: pytest.MonkeyPatch, restante: Restante
) -> None:
    def silent(_: str) -> list[str]:
        raise ConnectionLost("the DNS gives no answer")

    monkeypatch.setattr(discovery, "mail_exchangers", silent)
    done = restante("account", "add", "ann@example.org", "--to", "maildir:Mail")
    assert done.code not in (0, 64)
    assert "--host HOST" in done.err


def test_url_of_a_known_server_may_be_omitted(tmp_path: Path) -> None:
    path = tmp_path / "restante.toml"
    path.write_text('[account.ann]\nuser = "ann@gmail.com"\nto = "maildir:Mail"\n')
    assert config.load(path).account["ann"].url == "pop3s://pop.gmail.com"


# With a password.


def add(restante: Restante, server: Pop3Server, *words: str | Path, stdin: bytes = b"") -> Outcome:
    host = f"localhost:{server.port}"
    return restante(
        *("account", "add", "mrose@example.org", "--host", host, "--to", "maildir:Mail"),
        *("--ca-file", server.ca_file, *words),
        stdin=stdin,
    )


@pytest.fixture
def plain() -> Iterator[Pop3Server]:
    with Pop3Server(users={"mrose@example.org": "tan staaf"}) as running:
        running.deliver("mrose@example.org", MESSAGE)
        yield running


def test_typed_password_is_stored_in_a_private_file(
    restante: Restante, home: Path, plain: Pop3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its owner can ever read it: CVE-2005-3088."""
    asked = person(monkeypatch)
    done = add(restante, plain)
    assert (done.code, done.out) == (0, "example: 1 message, 23 bytes\n")
    assert asked == ["Password for mrose@example.org: "]
    assert "tan staaf" not in written(home)
    assert f'to = "maildir:{home}/Mail"' in written(home)  # an absolute path
    [path] = secrets(home)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("tan staaf\n", 0o600)
    assert restante("collect", "example").out == "example: 1 message stored, 23 bytes\n"
    assert restante("account", "rm", "example", "--yes").code == 0
    assert (written(home), secrets(home)) == ("", [])


def test_a_wrong_password_leaves_nothing(restante: Restante, home: Path, plain: Pop3Server) -> None:
    done = add(restante, plain, stdin=b"wrong\n")
    assert done.code == 77
    assert "domain" not in done.err
    assert add(restante, plain, stdin=b"\n").code == 64
    assert (written(home), secrets(home)) == ("", [])


@pytest.mark.rfc("P-163")
def test_name_without_domain_is_tried_too(restante: Restante, home: Path) -> None:
    """RFC 6186 §4: the whole address first; the name that works is stored."""
    with Pop3Server(users={"mrose": "tan staaf"}) as server:
        server.deliver("mrose", MESSAGE)
        done = add(restante, server, stdin=b"tan staaf\n")
        assert (done.code, done.out) == (0, "example: 1 message, 23 bytes\n")
        assert "The server requires the user name without the domain: mrose" in done.err
        assert 'user = "mrose"\n' in written(home)
        assert restante("collect", "example").out == "example: 1 message stored, 23 bytes\n"


@pytest.mark.parametrize("code", ["SYS/TEMP", "SYS/PERM", "IN-USE"])
@pytest.mark.rfc("P-163")
def test_other_refusals_do_not_try_another_name(code: str, restante: Restante, home: Path) -> None:
    users = {"mrose@example.org": "tan staaf", "mrose": "tan staaf"}
    with Pop3Server(users=users, sasl=[]) as server:
        server.fault.err("PASS", f"[{code}] not now", times=1)
        done = add(restante, server, stdin=b"tan staaf\n")
        assert done.code != 0
    assert (written(home), secrets(home)) == ("", [])


def test_references_are_written_and_nothing_else(
    restante: Restante, home: Path, plain: Pop3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "secret").write_text("tan staaf\n")
    monkeypatch.setenv("SECRET", "tan staaf")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(home))
    references: Sequence[Sequence[str]] = [
        ("--password-file", str(home / "secret")),
        ("--password-env", "SECRET"),
        ("--password-credential", "secret"),
        ("--password-command", "cat", str(home / "secret")),
    ]
    for reference in references:
        assert add(restante, plain, *reference).code == 0
        assert secrets(home) == []
        assert "tan staaf" not in written(home)
        assert restante("account", "rm", "example", "--yes").code == 0


def test_missing_options_are_prompted_for(
    restante: Restante, home: Path, plain: Pop3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = person(monkeypatch, f"pop3s://mrose%40example.org@localhost:{plain.port}", "")
    done = restante("account", "add", "--ca-file", plain.ca_file)
    assert done.code == 0
    assert len(asked) == 3
    assert f'to = "maildir:{home}/Mail/example"' in written(home)


def test_another_account_at_the_same_place_has_another_name(
    restante: Restante, plain: Pop3Server
) -> None:
    for _ in range(2):
        assert add(restante, plain, stdin=b"tan staaf\n").code == 0
    rows = restante("--json", "account", "list").json["accounts"]
    assert [row["name"] for row in rows] == ["example", "mrose-example"]
    again = restante("account", "add", "example", "ann@gmail.com", "--to", "maildir:M", stdin=b"x")
    assert again.code == 78


def test_required_kind_of_password_is_named(restante: Restante) -> None:
    done = restante(
        "account", "add", "ann@gmail.com", "--to", "maildir:M", "--no-test", stdin=b"abcd\n"
    )
    assert done.code == 0
    assert "Google requires an app password" in done.err


# With OAuth 2.


def browse(url: str) -> None:
    threading.Thread(target=lambda: urllib.request.urlopen(url, timeout=10).close()).start()


def sign_in(restante: Restante, server: Pop3Server, issuer: StandIn, *words: str) -> Outcome:
    return restante(
        *("account", "add", "work", f"pop3s://mrose@localhost:{server.port}"),
        *("--to", "maildir:Mail", "--ca-file", server.ca_file, "--issuer", issuer.url),
        *("--client-id", "app", *words, "--client-secret-env", "APP_SECRET"),
    )


@pytest.fixture(autouse=True)
def _world(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_SECRET", "secret")
    monkeypatch.chdir(home)


def test_browser_sign_in_leads_to_a_working_account(
    restante: Restante,
    home: Path,
    server: Pop3Server,
    issuer: StandIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consent, "_open_browser", browse)
    done = sign_in(restante, server, issuer, "--browser")
    assert (done.code, done.out) == (0, "work: 1 message, 23 bytes\n"), done.err
    assert "Next: restante collect work --dry-run" in done.err
    assert TOKEN not in written(home)
    assert restante("collect", "work").out == "work: 1 message stored, 23 bytes\n"
    assert "as mrose" in restante("account", "show", "work").out
    issuer.answers = [(400, {"error": "invalid_grant"})]
    grant = Job.of(config.load(), "work").grant
    with pytest.raises(Exception, match=r"run: restante account auth work$"):
        grant.token(renew=True)
    assert "renewal failed" in restante("account", "show", "work").out
    assert grant.file().failure() is not None
    assert restante("account", "rm", "work", "--yes").code == 0
    assert secrets(home) == []
    assert grant.file().failure() is None


def test_sign_in_by_pasting_needs_no_browser(
    restante: Restante, server: Pop3Server, issuer: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    questions: list[AuthorizationRequest] = []
    make = AuthorizationRequest.__init__

    def remember(self: AuthorizationRequest, *given: Any) -> None:
        make(self, *given)
        questions.append(self)

    def paste() -> str:
        from urllib.parse import parse_qsl, urlsplit

        return issuer.agree(dict(parse_qsl(urlsplit(questions[0].url).query)))

    monkeypatch.setattr(AuthorizationRequest, "__init__", remember)
    monkeypatch.setattr(consent, "_read_address", paste)
    done = sign_in(restante, server, issuer, "--paste")
    assert done.code == 0, done.err
    assert "copy that page's address" in done.err


def test_sign_in_on_another_device(restante: Restante, server: Pop3Server, issuer: StandIn) -> None:
    device = {"device_code": "device", "user_code": "F7KQ-22LM", "expires_in": 600}
    issuer.answers = [(200, {**device, "verification_uri": "https://x/enter", "interval": 0.01})]
    done = sign_in(restante, server, issuer, "--device")
    assert done.code == 0, done.err
    assert "Open https://x/enter on any device, and enter the code F7KQ-22LM" in done.err


def test_sign_in_with_a_client_secret(
    restante: Restante, home: Path, server: Pop3Server, issuer: StandIn
) -> None:
    assert sign_in(restante, server, issuer, "--client-credentials").code == 0
    assert 'flow = "client"' in written(home)
    assert "with the app's secret" in restante("account", "list").out


def test_declined_consent_leaves_nothing(
    restante: Restante, home: Path, server: Pop3Server, issuer: StandIn
) -> None:
    issuer.answers = [(400, {"error": "access_denied"})]
    done = sign_in(restante, server, issuer, "--device")
    assert done.code == 77
    assert "the provider refused" in done.err
    assert (written(home), secrets(home)) == ("", [])


def test_sign_in_is_kept_when_the_first_session_fails(
    restante: Restante, home: Path, server: Pop3Server, issuer: StandIn
) -> None:
    issuer.access = "another"
    done = sign_in(restante, server, issuer, "--client-credentials")
    assert done.code == 77
    assert "account work is kept.\nTry again: restante account test work" in done.err
    assert len(secrets(home)) == 1


def test_wrong_issuer_is_refused(
    restante: Restante, home: Path, server: Pop3Server, issuer: StandIn
) -> None:
    issuer.metadata["issuer"] = "https://other.example"
    assert sign_in(restante, server, issuer).code == 78
    assert written(home) == ""


def test_microsoft_app_is_registered_only_once(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("account", "add", "ann@outlook.com", "--to", "maildir:M")
    done = restante(*words)
    assert done.code == 64
    assert "entra.microsoft.com" in done.err
    assert "--client-id ID" in done.err
    agreed: list[str] = []
    monkeypatch.setattr(consent, "sign_in", lambda grant, _: agreed.append(grant.account))
    assert restante(*words, "--client-id", "9e5f", "--no-test").code == 0
    second = restante("account", "add", "bob@hotmail.com", "--to", "maildir:B", "--no-test")
    assert second.code == 0
    assert "Using the app of account outlook" in second.err
    assert agreed == ["outlook", "hotmail"]
    accounts = config.load().account
    assert [each.oauth.client_id for each in accounts.values()] == ["9e5f", "9e5f"]
    assert accounts["hotmail"].oauth.tenant == "consumers"


def test_googles_secret_is_typed_and_kept_apart(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consent, "sign_in", lambda *_: None)
    words = ("account", "add", "ann@gmail.com", "--to", "maildir:M", "--no-test")
    assert restante(*words, "--client-id", "12.apps", stdin=b"GOCSPX-1\n").code == 0
    assert "GOCSPX" not in written(home)
    [path] = secrets(home)
    assert path.read_text() == "GOCSPX-1\n"
    grant = Job.of(config.load(), "gmail").grant
    assert grant.application().client_secret == "GOCSPX-1"


# Destinations.


def at_terminal(restante: Restante, *words: str | Path) -> Outcome:
    return restante("account", "add", *words, "--no-test")


SOURCE = ("isp", "pop3s://ann@pop.example.org")


@pytest.fixture
def imap(server_tls: ssl.SSLContext) -> Iterator[ImapStandIn]:
    with imap_server(server_tls) as running:
        yield running


def test_imap_destination_prompts_for_its_password_and_is_tested(
    restante: Restante,
    home: Path,
    plain: Pop3Server,
    imap: ImapStandIn,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = person(monkeypatch)
    place = f"imaps://ann@127.0.0.1:{imap.port}/Old"
    words = ("account", "add", "mrose@example.org", "--host", f"localhost:{plain.port}")
    options = ("--ca-file", plain.ca_file, "--to-ca-file", certificate[0])
    done = restante(*words, "--to", place, *options)
    assert done.code == 0, done.err
    assert asked == ["Password for mrose@example.org: ", "Password for ann at 127.0.0.1: "]
    assert b"Old" in b"".join(imap.heard), "it was not tried"
    assert sorted(each.name for each in secrets(home)) == ["example", "example.to"]
    assert "tan staaf" not in written(home)
    assert restante("check").code == 0
    assert "to_password     file " in restante("account", "show", "example").out
    assert restante("collect", "example").code == 0
    assert len(imap.stored) == 1
    assert restante("account", "rm", "example", "--yes").code == 0
    assert (written(home), secrets(home)) == ("", [])


@pytest.mark.parametrize("reference", ["file", "env"])
def test_the_password_of_an_imap_destination_has_an_option(
    reference: str, restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "there").write_text("secret\n")
    monkeypatch.setenv("THERE", "secret")
    value = {"file": "there", "env": "THERE"}[reference]
    done = at_terminal(
        restante,
        *(*SOURCE, "--to", "imaps://ann@127.0.0.1/Old"),
        *("--password-env", "THERE", f"--to-password-{reference}", value),
    )
    assert done.code == 0, done.err
    found = config.load().account["isp"].to_password
    assert (found.kind, found.value) == (
        reference,
        str(home / value) if reference == "file" else value,
    )
    assert secrets(home) == []
    assert restante("check").code == 0


def test_without_a_terminal_passwords_are_lines(restante: Restante, home: Path) -> None:
    words = ("account", "add", *SOURCE, "--to", "imaps://bob@127.0.0.1/Old", "--no-test")
    assert restante(*words, stdin=b"one\ntwo\n").code == 0
    assert [each.read_text() for each in sorted(secrets(home))] == ["one\n", "two\n"]
    assert restante("account", "rm", "isp", "--yes").code == 0
    done = restante(*words, stdin=b"one\n")
    assert (done.code, "--to-password-file FILE" in done.err) == (64, True)
    assert (written(home), secrets(home)) == ("", [])


def test_gmail_destination_starts_a_sign_in(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed: list[tuple[str, str]] = []
    monkeypatch.setattr(consent, "sign_in", lambda grant, _: agreed.append((grant.key, grant.user)))
    asked = person(monkeypatch, "ann@gmail.com", "12.apps", secret="GOCSPX")
    done = at_terminal(restante, *SOURCE, "--to", "gmail:Old")
    assert done.code == 0, done.err
    assert asked == [
        "Gmail address to deliver to: ",
        "Client ID: ",
        "Password for ann: ",
        "Client secret of the app registered with Google: ",
    ]
    assert "console.cloud.google.com" in done.err
    assert agreed == [("account.isp.to_oauth", "ann@gmail.com")]
    assert "GOCSPX" not in written(home)
    account = config.load().account["isp"]
    assert (account.to_oauth.provider, account.to_oauth.client_id) == ("google", "12.apps")
    assert restante("check").code == 0
    # Another account uses the same app, and needs no terminal.
    second = ("account", "add", "two", "pop3s://bob@h", "--to", "gmail:", "--no-test")
    assert restante(*second, "--recipient", "bob@gmail.com", stdin=b"x\n").code == 0
    assert agreed[1] == ("account.two.to_oauth", "bob@gmail.com")


def test_gmail_without_a_terminal_says_which_option_is_missing(
    restante: Restante, home: Path
) -> None:
    done = restante("account", "add", *SOURCE, "--to", "gmail:Old", "--no-test", stdin=b"x\n")
    assert (done.code, "add --to-client-id ID" in done.err) == (64, True)
    assert (written(home), secrets(home)) == ("", [])


def test_a_recipient_is_asked_for_where_the_user_is_no_address(
    restante: Restante, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = person(monkeypatch, "ann@example.org")
    assert at_terminal(restante, *SOURCE, "--to", "lmtp:localhost:24").code == 0
    assert asked[0] == "Address of the recipient: "
    assert config.load().account["isp"].recipient == "ann@example.org"
    words = ("two", "pop3s://bob%40example.org@h", "--to", "lmtp:localhost:24")
    assert at_terminal(restante, *words).code == 0
    assert len(asked) == 3  # plus two passwords


def test_gateway_account_is_complete(restante: Restante, ann: str, home: Path) -> None:
    (home / "p").write_text("secret\n")
    words = (*SOURCE, "--keep", "until-deleted", "--password-file", "p", "--poll-on-login", "20s")
    done = at_terminal(restante, *words, "--to", "maildrop:till")
    assert (done.code, "till" in done.err) == (78, True), "nobody could read it"
    assert restante("user", "add", "till", "--generate").code == 0
    assert at_terminal(restante, *words, "--to", "maildrop:till").code == 0
    assert config.load().account["isp"].poll_on_login == 20
    assert restante("check").code == 0
    done = at_terminal(restante, "other", "pop3s://ann@h", *words[2:], "--to", "maildir:M")
    assert (done.code, "--poll-on-login requires --to maildrop:USER" in done.err) == (64, True)


def test_a_gateway_for_oauth_is_offered(
    restante: Restante, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert restante("user", "add", "till", "--generate").code == 0
    monkeypatch.setattr(consent, "sign_in", lambda *_: None)
    asked = person(monkeypatch, "9e5f", "y")
    assert at_terminal(restante, "ann@outlook.com", "--to", "maildrop:till").code == 0
    assert asked[-1] == "Collect from ann@outlook.com whenever till logs in to this server? [y/N] "
    assert config.load().account["outlook"].poll_on_login == 20


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--set", "largest=20MiB"], "largest", 20 * 2**20),
        (["--set", "quirks=no-capa add:UIDL"], "quirks", ("no-capa", "add:UIDL")),
        (["--set", "newest=100", "--set", "limit=7"], "newest", 100),
        (["--set", "deadline=10min"], "deadline", 600),
    ],
)
def test_any_option_can_be_set(
    words: list[str], key: str, value: object, restante: Restante, home: Path
) -> None:
    (home / "p").write_text("secret\n")
    done = at_terminal(restante, *SOURCE, "--to", "maildir:M", "--password-file", "p", *words)
    assert done.code == 0, done.err
    assert getattr(config.load().account["isp"], key) == value


def test_options_below_an_account_can_be_set(restante: Restante, home: Path) -> None:
    (home / "p").write_text("secret\n")
    words = (*SOURCE, "--to", "maildir:M", "--password-file", "p")
    assert (
        at_terminal(restante, *words, "--set", "alert.after=3", "--set", "oauth.flow=device").code
        == 0
    )
    account = config.load().account["isp"]
    assert (account.alert.after, account.oauth.flow) == (3, "device")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "largst=1"], "did you mean largest?"),
        (["--set", "largest=many"], "account.isp.largest"),
        (["--set", "largest"], "write KEY=VALUE"),
        (["--set", "password=x"], "every user of this machine"),
        (["--to", "nothing:x"], "account.isp.to"),
        (["--to", "imaps://127.0.0.1/Old"], "imaps://user@host/Folder"),
        (["--to", "maildrop:bob"], "bob"),
        (["--to", "lmtp:nowhere", "--recipient", "ann@h"], "host:port"),
        (["--keep", "until-verified", "--to", "command:cat"], "until-verified"),
        (["--to-client-id", "x"], "--to-client-id requires --to gmail:LABEL"),
        (["--keep", "soon"], "account.isp.keep"),
    ],
)
def test_impossible_options_are_refused_before_the_password_prompt(
    words: list[str],
    said: str,
    restante: Restante,
    ann: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = person(monkeypatch)
    given = words if "--to" in words else [*words, "--to", "maildir:M"]
    done = at_terminal(restante, *SOURCE, *given)
    assert (done.code in (64, 78), said in done.err, asked) == (True, True, []), done.err
    assert (written(home), secrets(home)) == ("", [])


def test_every_option_of_an_account_can_be_given(home: Path) -> None:
    """No option can be set only by editing the file."""
    keys = {each.name for each in dataclasses.fields(config.Account)}
    options = {action.dest for action in _actions()}
    own = {"oauth": "client_id", "to_oauth": "to_client_id", "password": "password_file"}
    own |= {"to_password": "to_password_file"}
    by_set = keys - options - own.keys()
    assert {own.get(key, key) for key in keys - by_set} <= options
    for key in by_set:
        assert account_add._extra_options([f"{key}=x"]) == {key: "x"}


def _actions() -> list[argparse.Action]:
    parser = make_parser(is_complete=True)
    for word in ("account", "add"):
        (subparsers,) = (
            each for each in parser._actions if isinstance(each, argparse._SubParsersAction)
        )
        parser = subparsers.choices[word]
    return parser._actions
