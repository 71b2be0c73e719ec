"""Names that can have a maildrop: all commands agree with a login."""

from __future__ import annotations

import base64
import poplib
import smtplib
from pathlib import Path

import pytest

from restante import tls
from restante.auth.names import BadName
from restante.auth.users import Users

from .conftest import Restante
from .test_serve import Serving, serving

TEMPLATES = [
    "%n/%d/box",
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("%u", "%n", "%d/%n", "%d/%u")),
]
NAMES = [
    "bob",
    "bob@example.org",
    "bob@localhost",  # the domain is the server's own
    "ann+junk",  # could be the folder junk of ann
    "ann+junk@example.org",
    "strasse@example.org",
    "x" * 128,
    "x" * 128 + "@" + "y" * 128,  # too long for one file name
    "bob@",
    ".bob",
]
PASSWORD = "correct-horse-17"


def may_log_in(server: Serving, name: str) -> bool:
    host, _, port = server.said["pop3s"].rpartition(":")
    context = tls.client_context(Path(server.said["ca"]))
    client = poplib.POP3_SSL(host, int(port), context=context, timeout=20)
    try:
        shown = base64.b64encode(f"\0{name}\0{PASSWORD}".encode()).decode()
        for line in ("AUTH PLAIN", shown):  # a command has at most 255 octets (RFC 2449 §4)
            client._shortcmd(line)  # type: ignore[attr-defined]
        client.quit()
    except poplib.error_proto:
        client.close()
        return False
    return True


def is_recipient(server: Serving, name: str) -> bool:
    with smtplib.LMTP(server.said["lmtp_unix"], timeout=20) as client:
        client.ehlo_or_helo_if_needed()
        client.mail("a@example.net")
        code, _ = client.rcpt(name)
    assert code == 250 or code // 100 == 5, f"{code}: a sender would try again for days"
    return code == 250


@pytest.mark.slow
@pytest.mark.parametrize("template", TEMPLATES)
def test_all_commands_agree_with_a_login(template: str, home: Path, restante: Restante) -> None:
    (home / "mail").mkdir()
    config = home / "restante.toml"
    config.write_text(
        f'[server]\nhostname = "localhost"\nworkers = 1\nlisten = "pop3s://127.0.0.1:0"\n'
        f'[store]\npath = "{home}/mail/{template}"\n'
        f'[intake.lmtp]\nlisten = "unix:{home}/lmtp.sock"\n'
    )
    state = home / "state" / "restante"
    users = Users(state / "users.sqlite3")
    added = {name: restante("-c", config, "user", "add", name, "--generate") for name in NAMES}
    for name, done in added.items():
        if done.code:  # a user from an earlier version or another back end
            try:
                users.add(name, PASSWORD)
            except BadName:
                continue
        else:
            users.set_password(name, PASSWORD)
    users.close()
    complaints = restante("-c", config, "check").err
    with serving("-c", config) as server:
        logged_in = {name: may_log_in(server, name) for name in NAMES}
        recipients = {name: is_recipient(server, name) for name in NAMES}
    assert set(logged_in.values()) == {True, False}, "else nothing is compared"
    for name, is_right in logged_in.items():
        why = restante("-c", config, "auth", "why", name, "127.0.0.1")
        delivered = restante("-c", config, "deliver", name, stdin=b"Subject: x\n\nhello\n")
        assert (added[name].code == 0) == is_right, name
        assert (why.code == 0) == is_right, name
        assert recipients[name] == is_right, name
        assert delivered.code == (0 if is_right else 67), name
        is_known = name in (user.name for user in Users(state / "users.sqlite3").list())
        assert (f"the user {name} " in complaints) == (is_known and not is_right), name


def test_user_add_shows_a_valid_login_name(home: Path, restante: Restante) -> None:
    (home / "mail").mkdir()
    config = home / "restante.toml"
    config.write_text(f'[store]\npath = "{home}/mail/%d/%n"\n')
    done = restante("-c", config, "user", "add", "bob", "--generate")
    assert (done.code, "as in bob@example.org" in done.err) == (64, True)
    assert restante("-c", config, "user", "list").out == ""
    Users(home / "state/restante/users.sqlite3").add("bob", PASSWORD)
    shown = restante("-c", config, "user", "show", "bob").out
    assert "problem       cannot log in: the name has no domain" in shown


@pytest.mark.parametrize("name", ["ann+Junk", "recent:ann", "recent:ann+Junk"])
def test_why_understands_a_name_as_a_login_does(name: str, ann: str, restante: Restante) -> None:
    done = restante("auth", "why", name, "127.0.0.1")
    assert (done.code, done.out.partition(" ")[0]) == (0, ann)


def test_why_knows_which_mechanisms_are_offered(
    ann: str, restante: Restante, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTANTE__AUTH__MECHANISMS", "PLAIN")
    for mechanism, code in (("PLAIN", 0), ("USER", 0), ("SCRAM-SHA-256", 77), ("CRAM-MD5", 77)):
        done = restante("auth", "why", ann, "127.0.0.1", "--mechanism", mechanism)
        assert done.code == code, mechanism
