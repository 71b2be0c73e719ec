"""Authentication back ends of the configuration, with a running server."""

from __future__ import annotations

import asyncio
import json
import poplib
import smtplib
import time
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from restante import config, connect_blocking
from restante.app import backends, stores
from restante.auth.chain import Backend
from restante.errors import AuthenticationFailed, LoginFailed, RestanteError
from restante.passdb import Credentials, UserAccount

from ..cli.conftest import Restante
from ..cli.test_serve import Serving, serving
from ..sasl.test_login import personal_certificate

SERVED = """
[server]
listen = ["pop3s://127.0.0.1:0", "pop3://127.0.0.1:0"]
workers = 1
[intake.smtp]
listen = ["127.0.0.1:0"]
"""


OAUTH = '[auth.oauth]\nissuer = "https://id.example.org"\naudience = ["restante"]\n'


@pytest.fixture(autouse=True)
def at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed logins are answered without delay."""
    monkeypatch.setenv("RESTANTE__AUTH__FAILURE_DELAY", "0")


def configured(home: Path, text: str) -> Path:
    path = home / "restante.toml"
    path.write_text(SERVED + text)
    return path


def answer(server: Serving, user: str, password: str) -> str:
    with server.client() as client:
        client.user(user)
        try:
            return client.pass_(password).decode()
        except poplib.error_proto as error:
            reported: bytes = error.args[0]
            return reported.decode()


@pytest.fixture
def chained(home: Path) -> Path:
    (home / "passwd").write_text("bob:{PLAIN}from the file\nann:{PLAIN}from the file\n")
    chain = f'[auth]\nchain = ["users", "passwd-file"]\npasswd_file.path = "{home}/passwd"\n'
    return configured(home, chain)


def test_each_user_logs_in_where_it_is_known(home: Path, chained: Path, ann: str) -> None:
    with serving("-c", chained) as server:
        host, _, port = server.said["smtp"].rpartition(":")
        with smtplib.SMTP(host, int(port)) as mail:
            mail.sendmail("eve@example.net", ["bob@localhost"], "Subject: x\r\n\r\nx\r\n")
        with server.client(user="bob", password="from the file") as client:
            assert client.stat()[0] == 1
            assert b"SASL PLAIN" in b"\r\n".join(client._longcmd("CAPA")[1])  # type: ignore[attr-defined]
            client.quit()
        assert answer(server, "ann", "tan staaf").startswith("+OK")
        for user in "ann", "eve", "bob":  # the line of ann in the file is ignored
            password = "tan staaf" if user == "bob" else "from the file"
            assert answer(server, user, password) == "-ERR [AUTH] authentication failed"
        (home / "passwd").unlink()
        assert answer(server, "bob", "from the file").startswith("-ERR [SYS/TEMP] ")
        assert answer(server, "ann", "tan staaf").startswith("+OK")
        _, reported = server.stop()
    assert f"{home}/passwd:" in reported


ORDERS = ['["users", "passwd-file"]', '["passwd-file", "users"]']


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("line", "is_admitted"),
    [
        ("ann:{PLAIN}p", True),
        ("ANN:{PLAIN}p::::::allow_nets=192.0.2.0/24", True),
        ("ann:{PLAIN}p::::::nologin", False),
        ("ann:{PLAIN}p::::::malformed", False),
        ("bob:{PLAIN}p", False),
    ],
)
def test_rm_warns_if_another_back_end_accepts_the_user(
    order: str, line: str, is_admitted: bool, home: Path, ann: str, restante: Restante
) -> None:
    """That back end has another password for the same mail; the warning precedes the prompt."""
    (home / "passwd").write_text(f"{line}\n")
    text = f'[auth]\nchain = {order}\npasswd_file.path = "{home}/passwd"\n'
    configuration = configured(home, text)
    refused = restante("-c", configuration, "user", "rm", "Ann")
    reported = "warning: ann can still log in to the maildrop ann through the back end passwd-file"
    assert refused.code == 64
    assert (reported in refused.err) is is_admitted
    assert ("restante user disable ann" in refused.err) is (is_admitted and order == ORDERS[0])
    found = restante("-c", configuration, "user", "rm", "ann", "--yes", "--json")
    expected = {"backend": "passwd-file", "maildrop": "ann"} if is_admitted else None
    assert (found.code, found.json["admitted_by"]) == (0, expected)
    assert len(found.json["warnings"]) == is_admitted
    why = restante("-c", configuration, "auth", "why", "ann", "192.0.2.1")
    assert (why.code == 0) is is_admitted


def test_rm_warns_of_tokens_of_unknown_users_and_of_back_ends_that_are_down(
    home: Path, ann: str, restante: Restante
) -> None:
    (home / "jwks").write_text('{"keys": []}')
    text = f'[auth]\nchain = ["users", "oauth"]\n{OAUTH}jwks = "{home}/jwks"\nusers = "any"\n'
    found = restante("-c", configured(home, text), "user", "rm", "ann")
    assert (
        "warning: ann can still log in to the maildrop ann through the back end oauth" in found.err
    )
    text = f'[auth]\nchain = ["users", "passwd-file"]\npasswd_file.path = "{home}/none"\n'
    found = restante("-c", configured(home, text), "user", "rm", "ann", "--yes")
    reported = (
        "ann may still be able to log in through another back end: logins cannot be checked now"
    )
    assert f"{reported}: {home}" in found.err
    assert found.code == 0


def test_rm_warns_of_nothing_where_no_other_back_end_is(ann: str, restante: Restante) -> None:
    found = restante("user", "rm", "ann", "--yes", "--json")
    assert (found.json["admitted_by"], found.json["warnings"], found.err) == (None, [], "")


@pytest.mark.slow
def test_apop_is_there_by_configuration_only(home: Path) -> None:
    """It must be configured, and needs back ends with plaintext passwords."""
    (home / "passwd").write_text("bob:{PLAIN}in clear\n")
    file = f'[auth]\npasswd_file.path = "{home}/passwd"\n'
    named = 'mechanisms = ["PLAIN", "APOP"]\n'
    alone, both = 'chain = ["passwd-file"]\n', 'chain = ["users", "passwd-file"]\n'
    for text in (alone, both + named, alone + named):
        with serving("-c", configured(home, file + text)) as server, server.client() as client:
            is_offered = text == alone + named
            assert (b"<" in client.getwelcome()) is is_offered
            sasl = next(each for each in client._longcmd("CAPA")[1] if each.startswith(b"SASL"))  # type: ignore[attr-defined]
            assert b"APOP" not in sasl
            if is_offered:
                assert client.apop("bob", "in clear").startswith(b"+OK")
                client.quit()
            server.stop()


def test_a_token_and_a_certificate_log_in(home: Path, ann: str) -> None:
    """CVE-2019-3814: a certificate without an address logs no user in."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    (home / "jwks.json").write_text(json.dumps({"keys": [{**public, "kid": "one"}]}))
    own = personal_certificate(home, "ann@localhost")
    (home / "other").mkdir()
    named = personal_certificate(home / "other", "", common_name="ann@localhost")
    (home / "clients.pem").write_bytes(own[0].read_bytes() + named[0].read_bytes())
    text = f'[auth]\nchain = ["users", "oauth"]\n{OAUTH}jwks = "{home}/jwks.json"\n'
    text += f'[tls]\nclient_ca = "{home}/clients.pem"\n'
    claims: dict[str, Any] = {"iss": "https://id.example.org", "aud": "restante"}
    claims |= {"exp": time.time() + 60, "email": "ann@localhost", "email_verified": True}

    def token(**changed: Any) -> str:
        return jwt.encode({**claims, **changed}, key, "ES256", headers={"kid": "one"})

    with serving("-c", configured(home, text)) as server:
        for scheme in "pop3s", "pop3":
            url = f"{scheme}://{server.said[scheme].replace('127.0.0.1', 'localhost')}"
            trusted: dict[str, Any] = {"ca_file": Path(server.said["ca"])}
            reported: list[str] = []
            with connect_blocking(url, user="ann", token=token(), **trusted) as client:
                assert client.stat() == (0, 0)
            with connect_blocking(
                url, certificate=own, record=reported.append, **trusted
            ) as client:
                assert client.stat() == (0, 0)
            assert any(line.startswith("C: AUTH EXTERNAL") for line in reported)
            wrong: list[dict[str, Any]] = [
                {"user": "ann", "token": token(aud="other")},
                {"user": "ann", "token": token(email="bob@localhost")},
                {"user": "bob", "token": token()},
            ]
            for options in wrong:
                with pytest.raises(LoginFailed) as raised:
                    connect_blocking(url, **options, **trusted).__enter__()
                assert raised.value.code == "AUTH"
            with pytest.raises(RestanteError, match="not accept client certificates"):
                connect_blocking(url, certificate=named, **trusted).__enter__()
        _, log = server.stop()
    assert "app=certificate" in log
    assert "app=token" in log


def test_why_names_the_back_end_of_a_user(
    home: Path, chained: Path, ann: str, restante: Restante
) -> None:
    for user, backend in ("ann", "users"), ("bob", "passwd-file"):
        found = restante("-c", chained, "auth", "why", user, "::1")
        reported = found.out.splitlines()[0]
        assert reported == f"{user} (back end: {backend}): a correct password is accepted from ::1"
        found = restante("-c", chained, "auth", "why", user, "::1", "--json")
        assert (found.json["backend"], found.json["allowed"]) == (backend, True)
    assert restante("-c", chained, "auth", "why", "eve", "::1").code == 67
    (home / "passwd").write_text("bob:{PLAIN}p::::::nologin\n")
    found = restante("-c", chained, "auth", "why", "bob", "::1")
    assert (
        found.out.splitlines()[0] == "bob (back end: passwd-file) is refused: the user is disabled"
    )
    for stored in ("*", "!!", "{ARGON2ID}malformed", "$1$salt$md5"):
        (home / "passwd").write_text(f"bob:{stored}\n")
        found = restante("-c", chained, "auth", "why", "bob", "::1", "--json")
        assert (found.code, found.json["reason"]) == (77, "no-password"), stored
    (home / "passwd").unlink()
    assert restante("-c", chained, "auth", "why", "bob", "::1").code == 74


def test_mail_is_delivered_to_users_of_the_passwd_file(
    home: Path, chained: Path, ann: str, restante: Restante
) -> None:
    assert restante("-c", chained, "deliver", "bob", stdin=b"Subject: x\n\nx\n").code == 0
    assert restante("-c", chained, "deliver", "eve", stdin=b"Subject: x\n\nx\n").code == 67
    (home / "passwd").unlink()
    assert restante("-c", chained, "deliver", "bob", stdin=b"Subject: x\n\nx\n").code == 75


def test_every_back_end_has_a_row_and_a_section() -> None:
    """OAuth verifies tokens only, so it has no row; ``users`` is a path and not a section."""
    assert [*backends.KINDS, "oauth"] == list(config.BACKENDS)
    sections = {name.replace("-", "_") for name in config.BACKENDS}
    assert sections <= {each.name for each in fields(config.Auth)}


@pytest.mark.slow
def test_a_server_without_a_database_of_its_own(home: Path) -> None:
    (home / "passwd").write_text("bob:{PLAIN}from the file\n")
    alone = f'[auth]\nchain = ["passwd-file"]\npasswd_file.path = "{home}/passwd"\n'
    with serving("-c", configured(home, alone)) as server:
        assert answer(server, "bob", "from the file").startswith("+OK")
        assert answer(server, "ann", "tan staaf") == "-ERR [AUTH] authentication failed"


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        (
            'chain = ["user"]',
            "auth.chain: possible back ends are users, passwd-file, ldap, pam, oauth; "
            "did you mean users?",
        ),
        (
            'chain = ["users", "users"]',
            "auth.chain: must list at least one back end, and none more than once",
        ),
        ("chain = []", "auth.chain: must list at least one back end, and none more than once"),
        ('chain = ["passwd-file"]', "auth.passwd_file.path: this option is required"),
        ('chain = ["passwd_file"]', "auth.passwd_file.path: this option is required"),
        (
            '[auth.passwd-file]\npath = "/x"',
            "auth.passwd-file: unknown option; did you mean passwd_file?",
        ),
        ('passwd_file.scheme = "MD5"', "auth.passwd_file.scheme: must be one of ARGON2I,"),
        ('deadline = "0s"', "auth.deadline: must be at least 1 s (checking"),
        ('chain = ["ldap"]', "auth.ldap.url: this option is required"),
        ('chain = ["ldapp"]', "pam, oauth; did you mean ldap?"),
        ('ldap.url = "https://ldap.example.org"', "auth.ldap.url: must be an LDAP URL, such as"),
        ('ldap.url = "ldap://x/dc=example"', "auth.ldap.url: must be an LDAP URL, such as"),
        ('ldap.filter = "(uid=ann)"', "auth.ldap.filter: must be a filter with %u"),
        (
            'ldap.bind_password = "secret"',
            "auth.ldap.bind_password: other users can read this file",
        ),
        (
            'chain = ["ldap"]\n[auth.ldap]\nurl = "ldapi://%2Frun%2Fldapi"\nbase = "dc=x"\n'
            'bind_dn = "cn=x"\nbind_password = { file = "/nowhere/password" }',
            "auth.ldap.bind_password: ",
        ),
        ('pam.service = "../shadow"', "auth.pam.service: must be the name of a file in /etc/pam.d"),
        (
            'chain = ["pam"]\npam.service = "no-such-service"',
            "auth.pam.service: /etc/pam.d/no-such-service does not exist",
        ),
        (
            'chain = ["oauth"]',
            "auth.chain: must contain a back end for passwords in addition to oauth",
        ),
        ('chain = ["users", "oauth"]', "auth.oauth.issuer: this option is required"),
        ('chain = ["users", "oauth"]', "auth.oauth.jwks: set either this or auth.oauth.intro"),
        ('oauth.jwks = "http://id.example.org/"', "auth.oauth.jwks: must begin"),
        ('oauth.algorithms = ["HS256"]', "auth.oauth.algorithms: must be one of RS256,"),
        (
            f'chain = ["users", "oauth"]\n{OAUTH}jwks = "/nowhere/jwks"',
            "auth.oauth.jwks: /nowhere/jwks: No such file or directory",
        ),
        (
            f'chain = ["users", "oauth"]\n{OAUTH}introspection = "https://id.example.org/"\n'
            'client_id = "x"\nclient_secret = { env = "NOT_SET" }',
            "auth.oauth.client_secret: the value is empty or not set",
        ),
        (
            'oauth.client_secret = "secret"',
            "auth.oauth.client_secret: other users can read this file. Run: chmod 600",
        ),
        (
            '[tls]\nclient_ca = "/nowhere/ca"',
            "tls.client_ca: cannot read certificates from /nowhere/ca",
        ),
        (
            'chain = ["passwd-file"]\npasswd_file.path = "/nowhere/passwd"',
            "auth.passwd_file.path: /nowhere/passwd: No such file or directory",
        ),
    ],
)
def test_configuration_errors_are_reported_before_serving(
    home: Path, restante: Restante, text: str, reported: str
) -> None:
    path = configured(home, text if text.startswith("[") else f"[auth]\n{text}\n")
    found = restante("-c", path, "check")
    assert found.code == 78
    assert reported in found.err


def test_look_ups_in_other_programs_wait_in_the_queue(home: Path) -> None:
    """Lookups in LDAP and PAM are queued; those in files and our database are cheap."""
    text = (
        '[auth]\nchain = ["passwd-file", "ldap", "pam"]\n'
        f'passwd_file.path = "{home}/passwd"\n'
        'ldap = { url = "ldapi://%2Fnowhere", base = "dc=example" }\n'
    )
    (home / "passwd").touch()
    asked: list[tuple[str, str]] = []

    class Queue:
        def __init__(self, backend: Backend, slots: int) -> None:
            self.name = type(backend).__name__

        async def account(self, identity: str) -> UserAccount | None:
            asked.append((self.name, "account"))
            return None

        async def verify(self, credentials: Credentials) -> UserAccount:
            asked.append((self.name, "verify"))
            raise AuthenticationFailed

    configuration = config.load(configured(home, text))
    users = stores.users(configuration)
    with (
        closing(backends.chain(configuration, users, Queue)) as chain,
        pytest.raises(AuthenticationFailed),
    ):
        asyncio.run(chain.verify(Credentials("PLAIN", "eve", "x")))
    assert asked == [("Ldap", "account"), ("Pam", "verify")]


@pytest.mark.parametrize("chain", [("users",), ("users", "passwd-file"), ("passwd-file",)])
def test_back_end_that_was_read_ahead_is_part_of_the_chain(
    chain: tuple[str, ...], tmp_path: Path
) -> None:
    """It exists once, with what it read, in all processes that are forked."""
    (tmp_path / "passwd").write_text("ann:{PLAIN}tan staaf\n")
    usual = config.ephemeral(tmp_path)
    passwd = replace(usual.auth.passwd_file, path=str(tmp_path / "passwd"))
    chosen = replace(usual, auth=replace(usual.auth, chain=chain, passwd_file=passwd))
    built = backends.read_ahead(chosen)
    assert list(built) == [each for each in chain if each == "passwd-file"]
    with (
        closing(stores.users(chosen)) as users,
        closing(backends.chain(chosen, users, built=built)) as whole,
    ):
        assert [whole._backends[name] for name in built] == list(built.values())
        assert list(whole._backends) == list(chain)
