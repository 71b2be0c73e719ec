"""The warnings of `restante check`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import chdir, closing
from ipaddress import ip_network
from pathlib import Path

import pytest

from restante import config, tls
from restante.auth.users import Users
from restante.passdb import UserAccount

from .conftest import Restante


def test_relative_paths_are_reported(restante: Restante, home: Path) -> None:
    """The mistake shows only when cron runs the command in another directory."""
    file = home / "restante.toml"
    file.write_text(
        '[account.isp]\nurl = "pop3s://h"\nuser = "ann"\npassword = { file = "secret" }\n'
        'to = "maildir:Mail"\nca_file = "ca.pem"\n'
        '[account.other]\nurl = "pop3s://h"\nuser = "bob"\nto = "maildir:../Mail"\n'
    )
    with chdir(home):
        done = restante("check", "-c", file.name)
        warnings = restante("check", "-c", file.name, "--json").json["warnings"]
    assert done.code == 0
    assert (
        f"isp.to: maildir:Mail depends on the current directory; use maildir:{home}/M" in done.err
    )
    assert [each.partition(":")[0] for each in warnings] == [
        "account.isp.to",
        "account.other.to",
        "account.isp.ca_file",
        "account.isp.password",
    ]


def test_configuration_paths_do_not_depend_on_the_working_directory(home: Path) -> None:
    (home / "restante.toml").write_text("")
    with chdir(home):
        found = config.load(Path("restante.toml"), environment={"XDG_STATE_HOME": "state"})
    assert found.source == home / "restante.toml"
    assert found.folder == home / "conf.d"
    assert found.state == home / "state" / "restante"


# -- Users who cannot log in, and files that others can read


def warnings(restante: Restante, file: Path, text: str = "") -> list[str]:
    file.write_text(text)
    done = restante("-c", file, "--json", "check")
    assert done.code == 0, done.err
    found: list[str] = done.json["warnings"]
    return found


def let(state: Path, **permissions: object) -> None:
    """Add user ann with these permissions."""
    users = Users(state / "users.sqlite3")
    users.add("ann", "tan staaf")
    users.permit("ann", UserAccount("ann", "ann", **permissions))  # type: ignore[arg-type]
    users.close()


@pytest.mark.parametrize(
    "listen", ["pop3://0.0.0.0:110", "pop3://127.0.0.1:110", "pop3s://[::]:995"]
)
@pytest.mark.parametrize(
    ("networks", "reason"),
    [
        ([], ""),
        (["0.0.0.0/0"], ""),
        (["127.0.0.0/8"], ""),
        (["192.0.2.0/24"], "pop3://127.0.0.1:110"),
        (["192.0.2.0/24", "127.0.0.1/32"], ""),
        (["2001:db8::/32"], "pop3://127.0.0.1:110 pop3://0.0.0.0:110"),
        (["2001:db8::/32", "192.0.2.0/24"], "pop3://127.0.0.1:110"),
        (["::ffff:c000:200/120"], "mapped"),  # ::ffff:192.0.2.0
        (["224.0.0.0/4"], "no client"),
        (["0.0.0.0/32", "ff00::/8"], "no client"),
    ],
)
def test_networks_that_lock_out_a_user_are_reported(
    restante: Restante, home: Path, state: Path, networks: Sequence[str], reason: str, listen: str
) -> None:
    """``reason``: the addresses that clients from these networks cannot reach, or what is wrong
    with the networks themselves."""
    meant = tuple(map(ip_network, networks))
    let(state, networks=meant)
    found = warnings(restante, home / "r.toml", f'[server]\nlisten = "{listen}"\n')
    named = ", ".join(map(str, meant))  # in the form this Python uses for mapped addresses
    locked = f"user ann may log in only from {named}, "
    if reason == "mapped":
        assert found == [
            f"user ann may log in from {named}; write it as 192.0.2.0/24",
            locked + "but no client has such an address",
        ]
    elif reason == "no client":
        assert found == [locked + "but no client has such an address"]
    else:
        unreachable = [locked + "but no address in server.listen can be reached from there"]
        assert found == unreachable * (listen in reason)


def test_addresses_behind_proxy_or_systemd_lock_no_user_out(
    restante: Restante, home: Path, state: Path
) -> None:
    let(state, networks=(ip_network("192.0.2.0/24"),))
    listen = '[server]\nlisten = "pop3://127.0.0.1:110"\n'
    for text in "", *(f'{listen}{key} = "127.0.0.0/8"\n' for key in ("proxy_from", "xclient_from")):
        assert warnings(restante, home / "r.toml", text) == []


def test_a_disabled_user_is_meant_to_be_kept_out(
    restante: Restante, home: Path, state: Path
) -> None:
    let(state, networks=(ip_network("224.0.0.0/4"),), mechanisms=("X",), is_enabled=False)
    assert warnings(restante, home / "r.toml") == []


@pytest.mark.parametrize(
    ("mechanisms", "offered", "expected"),
    [
        ("PLAIN", '["PLAIN"]', []),
        ("USER", '["PLAIN"]', []),  # USER and PASS are not a mechanism and always available
        ("SCRAM-SHA-256", '["SCRAM-SHA-256-PLUS"]', []),
        ("SCRAM-SHA-256-PLUS", '["SCRAM-SHA-256"]', ["only"]),
        ("LOGIN", '["PLAIN"]', ["only"]),
        ("OAUTHBEARER", '["PLAIN", "OAUTHBEARER"]', ["only"]),  # no back end accepts tokens
        ("PLAIN CRAM-MD5", '["PLAIN"]', ["CRAM-MD5"]),
        ("CRAM-MD5", '["PLAIN"]', ["CRAM-MD5", "only"]),
    ],
)
def test_mechanisms_that_are_unknown_or_not_offered_are_reported(
    restante: Restante, home: Path, state: Path, mechanisms: str, offered: str, expected: list[str]
) -> None:
    let(state, mechanisms=tuple(mechanisms.split()))
    found = warnings(restante, home / "r.toml", f"[auth]\nmechanisms = {offered}\n")
    assert len(found) == len(expected)
    for sentence, word in zip(found, expected, strict=True):
        assert "user ann " in sentence
        assert word in sentence


def test_a_name_of_an_earlier_version_that_no_client_can_show_is_named(
    restante: Restante, home: Path, state: Path
) -> None:
    let(state)
    with closing(sqlite3.connect(state / "users.sqlite3")) as raw, raw:
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute("UPDATE users SET name = '\uff41nn'")
    (sentence,) = warnings(restante, home / "r.toml")
    assert sentence.endswith("use ann")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o602])
def test_secret_files_that_others_can_read_are_reported(
    restante: Restante, home: Path, state: Path, mode: int
) -> None:
    let(state)
    certificate, key = tls.make_self_signed(home / "tls", ["localhost"])
    passwd = home / "passwd"
    passwd.write_text("bob:{PLAIN}x::::::allow_nets=224.0.0.0/4\n")
    secrets = {
        "auth.users": state / "users.sqlite3",
        "auth.passwd_file.path": passwd,
        "tls.key": key,
    }
    for path in secrets.values():
        path.chmod(mode)
    text = (
        f'[auth]\nchain = ["users", "passwd-file"]\npasswd_file.path = "{passwd}"\n'
        f'[tls]\nmode = "files"\ncert = "{certificate}"\nkey = "{key}"\n'
    )
    *named, locked = warnings(restante, home / "r.toml", text)
    assert [each.partition(":")[0] for each in named] == list(secrets) * bool(mode & 0o006)
    assert locked.startswith("user bob may log in only from 224.0.0.0/4, but")


def test_unusable_lines_of_a_passwd_file_are_reported(restante: Restante, home: Path) -> None:
    passwd = home / "passwd"
    text = "ann:{PLAIN}x\n bob:{PLAIN}x\ncat:{PLAIN}x:::::nologin\ndan:$y$j9T$a$b\n"
    passwd.write_bytes(f"{text}\uff45ve:{{PLAIN}}x\n".encode() + b"m\xfcller:{PLAIN}x\n")
    passwd.chmod(0o600)
    text = f'[auth]\nchain = ["passwd-file"]\npasswd_file.path = "{passwd}"\n'
    *lines, typed = warnings(restante, home / "r.toml", text)
    assert [each.split()[:3] for each in lines] == [
        [f"{passwd}:", "line", "2"],
        [f"{passwd}:", "line", "3"],
        [f"{passwd}:", "line", "6"],
        [f"{passwd}:", "the", "hash"],
    ]
    assert typed.startswith("no client could log in as \uff45ve")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[server]\nproxy_from = ["0.0.0.0/0"]', "server.proxy_from"),
        ('[server]\nxclient_from = ["192.0.2.1", "::/0"]', "server.xclient_from"),
        ('[auth]\ntrusted = ["0.0.0.0/0"]', "auth.trusted"),
        ('[auth]\nallow_plaintext_from = ["::/0"]', "auth.allow_plaintext_from"),
        ('[intake.lmtp]\nlisten = ["[::]:24"]', "intake.lmtp.listen"),
        ('[intake.lmtp]\nlisten = ["192.0.2.1:24"]', "intake.lmtp.listen"),
        ('[server]\nproxy_from = ["192.0.2.0/24"]\nxclient_from = ["2001:db8::/32"]', ""),
        ('[auth]\ntrusted = ["127.0.0.1"]\nallow_plaintext_from = ["10.0.0.0/8"]', ""),
        ('[intake.lmtp]\nlisten = ["127.0.0.1:24", "[::1]:24", "unix:/run/lmtp"]', ""),
    ],
)
def test_trust_in_every_address_is_named(
    restante: Restante, home: Path, text: str, named: str
) -> None:
    found = warnings(restante, home / "r.toml", text)
    assert [each.partition(":")[0] for each in found] == [named] * bool(named)


def test_back_end_that_cannot_be_asked_is_named(restante: Restante, home: Path) -> None:
    (home / "passwd").mkdir()
    file = home / "r.toml"
    file.write_text(f'[auth]\nchain = ["passwd-file"]\npasswd_file.path = "{home}/passwd"\n')
    done = restante("-c", file, "check")
    assert done.code == os.EX_CONFIG
    assert f"{home}/passwd: " in done.err
