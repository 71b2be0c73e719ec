"""The embedded user database: identity, permission, names, and a database in trouble."""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import subprocess
import sys
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from restante.auth import database as database_module
from restante.auth.names import BadName, check_name, check_new_name, key, normalise
from restante.auth.users import BadPassword, NameTaken, Users
from restante.errors import (
    AuthenticationFailed,
    ConfigurationError,
    NoSuchUser,
    RestanteError,
    TemporaryFailure,
    TooBusy,
)
from restante.passdb import Credentials, UserAccount
from restante.sasl.prepare import saslprep


def verify(users: Users, identity: str, password: str, **more: str) -> UserAccount:
    return asyncio.run(users.verify(Credentials("PLAIN", identity, password, **more)))


def refused(users: Users, identity: str, password: str, **more: str) -> AuthenticationFailed:
    with pytest.raises(AuthenticationFailed) as caught:
        verify(users, identity, password, **more)
    return caught.value


# Identity.


def test_right_password_opens_the_maildrop_of_its_user(users: Users) -> None:
    account = verify(users, "mrose", "tan staaf")
    assert (account.user, account.maildrop, account.credential) == ("mrose", "mrose", "password")
    assert account.refusal("192.0.2.7") is None


@pytest.mark.parametrize("identity", ["MRose", "MROSE", "mrose"])
def test_case_does_not_matter_in_a_name(users: Users, identity: str) -> None:
    assert verify(users, identity, "tan staaf").user == "mrose"


@pytest.mark.parametrize("password", ["Tan staaf", "tan staaf ", "tan", "tan staaf\udcff", "x" * 9])
def test_wrong_password_is_refused(users: Users, password: str) -> None:
    assert refused(users, "mrose", password).reason == "bad-password"


@pytest.mark.parametrize(
    "identity",
    [
        "nobody",
        "",
        "mrose ",
        " mrose",
        "mrose\0",
        "mrose\udcff",
        "mrose\u202e",
        "\udcc3",
        "../mrose",
        "/etc/passwd",
        "mro%",
        "%n",
        "_rose",
        "mrose' OR '1'='1",
        "mrose@example.org",
        "m" * 100_000,
    ],
)
def test_other_names_are_unknown(users: Users, identity: str) -> None:
    """Nor is a name a part of a query: CVE-2026-24031."""
    assert refused(users, identity, "tan staaf").reason == "unknown-user"


def rename(database: Path, name: str) -> None:
    """As an earlier version let users be named."""
    with closing(sqlite3.connect(database)) as raw, raw:
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute("UPDATE users SET name = ?", [name])
        raw.execute("UPDATE credentials SET user = ?", [name])


def test_invalid_identity_never_matches_another_user(users: Users, database: Path) -> None:
    """U+FFFD, which often stands for what could not be decoded, was a name like any other."""
    rename(database, "\ufffd")
    refused(users, "\udcff", "tan staaf")


def test_unknown_user_is_indistinguishable_from_a_wrong_password(
    users: Users, hashed: Counter[str]
) -> None:
    """RFC 1939 §13; enumeration by text (CVE-2000-0960) and by work."""
    wrong = refused(users, "mrose", "wrong")
    work, hashed_before = dict(hashed), hashed.total()
    unknown = refused(users, "nobody", "wrong")
    assert (str(unknown), unknown.code) == (str(wrong), wrong.code)
    assert hashed_before == 1
    assert hashed == {parameters: 2 * times for parameters, times in work.items()}


def test_login_of_a_disabled_user_takes_the_same_work(users: Users, hashed: Counter[str]) -> None:
    verify(users, "mrose", "tan staaf")
    users.set_enabled("mrose", False)
    verify(users, "mrose", "tan staaf")
    refused(users, "mrose", "wrong")
    assert list(hashed.values()) == [3]


@pytest.mark.parametrize("password", ["", "x" * 1025, "ü" * 513, "tan\0staaf"])
def test_impossible_password_is_refused_without_hashing(
    users: Users, hashed: Counter[str], password: str
) -> None:
    for identity in ("mrose", "nobody"):
        assert refused(users, identity, password).reason == "impossible-password"
        with pytest.raises(BadPassword):
            users.add("other", password)
        with pytest.raises(BadPassword):
            users.set_password(identity, password)
    assert not hashed


@pytest.mark.parametrize("password", ["x", "x" * 1024, "ü" * 512, " leading and trailing "])
def test_every_other_password_works(users: Users, password: str) -> None:
    users.set_password("mrose", password)
    assert verify(users, "mrose", password).user == "mrose"


@pytest.mark.parametrize(
    ("authorization", "works"), [("mrose", True), ("MROSE", True), ("ann", False)]
)
def test_no_user_can_log_in_as_another(users: Users, authorization: str, works: bool) -> None:
    """RFC 4616 §2: an authorization identity other than one's own needs permission."""
    users.add("ann", "other")
    if works:
        assert verify(users, "mrose", "tan staaf", authorization=authorization).user == "mrose"
    else:
        refused(users, "mrose", "tan staaf", authorization=authorization)


def test_new_password_replaces_the_old_one_at_once(users: Users) -> None:
    users.set_password("MRose", "new")
    refused(users, "mrose", "tan staaf")
    verify(users, "mrose", "new")


def test_removed_user_cannot_log_in_and_the_credentials_are_removed(users: Users) -> None:
    users.remove("mrose")
    refused(users, "mrose", "tan staaf")
    users.add("mrose", "other")
    refused(users, "mrose", "tan staaf")


def test_one_user_never_opens_the_maildrop_of_another(users: Users) -> None:
    users.add("ann", "tan staaf")
    assert verify(users, "ann", "tan staaf").maildrop == "ann"
    assert verify(users, "mrose", "tan staaf").maildrop == "mrose"


# Permission.


@pytest.mark.parametrize(
    ("networks", "address", "refusal"),
    [
        ((), "192.0.2.7", None),
        ((), "", None),
        (("192.0.2.0/24",), "192.0.2.7", None),
        (("192.0.2.0/24",), "198.51.100.7", "network"),
        (("192.0.2.0/24",), "2001:db8::1", "network"),
        (("192.0.2.0/24", "2001:db8::/32"), "2001:db8::1", None),
        (("192.0.2.0/24",), "", "network"),
        (("0.0.0.0/0",), "::1", "network"),
    ],
)
def test_user_with_networks_logs_in_from_them_only(
    users: Users, networks: tuple[str, ...], address: str, refusal: str | None
) -> None:
    users.add("ann", "pw", networks=[ip_network(each) for each in networks])
    assert verify(users, "ann", "pw").refusal(address) == refusal


def test_disabled_user_is_known_but_refused(users: Users) -> None:
    users.set_enabled("MROSE", False)
    assert verify(users, "mrose", "tan staaf").refusal("192.0.2.7") == "disabled"
    assert refused(users, "mrose", "wrong").reason == "bad-password"
    users.set_enabled("mrose", True)
    assert verify(users, "mrose", "tan staaf").refusal("192.0.2.7") is None


# Names.


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("ann", "ANN"),
        ("jos\u00e9", "jose\u0301"),
        ("JOS\u00c9", "jose\u0301"),
        ("straße", "STRASSE"),
        ("\u03c3\u03c2", "\u03a3\u03a3"),
        ("ann@Example.ORG", "ann@example.org"),
        ("\u212bngstr\u00f6m", "A\u030angstro\u0308m"),
    ],
)
def test_equivalent_names_cannot_be_two_users(users: Users, one: str, two: str) -> None:
    users.add(one, "first")
    with pytest.raises(NameTaken):
        users.add(two, "second")
    assert verify(users, two, "first").user == normalise(one)
    refused(users, two, "second")


@given(st.text(max_size=12))
def test_the_normal_form_of_a_name_is_its_own(name: str) -> None:
    """What `restante user list` shows is what every other verb finds."""
    assert normalise(normalise(name)) == normalise(name)


@given(st.text(max_size=12), st.sampled_from(["NFC", "NFD"]))
def test_equivalent_names_have_one_normal_form(name: str, form: str) -> None:
    assert normalise(unicodedata.normalize(form, name)) == normalise(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "@",
        "ann@",
        "@example.org",
        "a@b@c",
        ".",
        "..",
        ".ann",
        "-ann",
        "ann@-x",
        "ann@.org",
        "a/b",
        "../ann",
        "/ann",
        "ann smith",
        "ann\t",
        "ann\n",
        "ann\0",
        "ann\u202egro",
        "ann\u200b",
        "ann\u00a0x",
        "\ufeffann",
        "ann\udcff",
        "a" * 129,
        "ann@" + "d" * 129,
        "ü" * 65,
    ],
)
def test_misleading_names_are_refused(users: Users, name: str) -> None:
    with pytest.raises(BadName):
        users.add(name, "pw")
    assert [user.name for user in users.list()] == ["mrose"]


@pytest.mark.parametrize(
    "name", ["ann", "ann@example.org", "o'neil", "a%b", "a+b", "a" * 128, "安"]
)
def test_ordinary_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("\uff41nn", "ann"),  # full width
        ("ann\u00b2", "ann2"),
        ("\u2167", "viii"),  # one character
        ("\u24d0nn@example.org", "ann@example.org"),
        ("ann@ex\u1d43mple.org", "ann@example.org"),  # of Unicode 4
        ("\u05d0nn", ""),  # from right to left and from left to right
        ("ann\u05d0", ""),
        ("\ufdfa", ""),  # becomes words with spaces
    ],
)
def test_new_name_must_survive_saslprep(users: Users, name: str, use: str) -> None:
    """RFC 5034 §4, RFC 4013: what a client types is prepared before it is looked up."""
    with pytest.raises(BadName, match=f"use {use}$" if use else "SASLprep forbids"):
        users.add(name, "pw")
    if use:
        users.add(use, "pw")
        assert verify(users, unicodedata.normalize("NFKC", saslprep(name)), "pw").user == use


@given(st.text(max_size=12))
@example("\u017f")
@example("\u1e9b\u0323")
def test_new_name_is_unchanged_by_every_login(name: str) -> None:
    try:
        normal = check_new_name(name)
    except BadName:
        return
    assert key(saslprep(normal)) == normal
    assert check_new_name(normal) == normal


def test_users_with_names_from_earlier_versions_can_log_in(users: Users, database: Path) -> None:
    rename(database, "\uff4drose")
    assert verify(users, "\uff4drose", "tan staaf").user == "\uff4drose"
    users.set_password("\uff4drose", "another")
    users.set_enabled("\uff4drose", False)
    assert users.add_app_password("\uff4drose", "phone")
    users.remove("\uff4drose")
    assert users.list() == []


# Whose mail intake takes.


@pytest.mark.parametrize(
    ("recipient", "maildrop"),
    [
        ("mrose", "mrose"),
        ("MRose@Example.ORG", "mrose"),
        ("mrose+lists@example.org", "mrose"),
        ("ann@example.net", "ann@example.net"),
        ("ann+x@example.net", "ann@example.net"),
        ("full+name@example.org", "full+name@example.org"),
        ("mrose@example.net", None),
        ("ann@example.org", None),
        ("", None),
        ("@example.org", None),
        ("+x@example.org", None),
        ("mrose\0@example.org", None),
        ("\udcff@example.org", None),
        ("../mrose@example.org", None),
        ("%@example.org", None),
    ],
)
def test_a_recipient_has_one_maildrop_or_none(
    users: Users, recipient: str, maildrop: str | None
) -> None:
    users.add("ann@example.net", "pw")
    users.add("full+name@example.org", "pw")
    if maildrop is None:
        with pytest.raises(NoSuchUser):
            asyncio.run(users.maildrop_of(recipient))
    else:
        assert asyncio.run(users.maildrop_of(recipient)) == maildrop


def test_mail_for_a_disabled_user_still_comes_in(users: Users) -> None:
    users.set_enabled("mrose", False)
    assert asyncio.run(users.maildrop_of("mrose")) == "mrose"


# Hashing does not stop the others.


def test_hashing_does_not_block_the_event_loop(
    users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop runs during a hash of any duration."""
    release = threading.Event()
    monkeypatch.setattr(Users, "_verify", lambda *_: release.wait(10))

    async def main() -> None:
        login = asyncio.create_task(users.verify(Credentials("PLAIN", "mrose", "x")))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not login.done()
        release.set()
        assert await login

    asyncio.run(main())


def test_number_of_waiting_logins_is_limited(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login above the limit gets [SYS/TEMP] and not [AUTH], and can be tried again."""
    release = threading.Event()
    monkeypatch.setattr(Users, "_verify", lambda *_: release.wait(10))

    async def main() -> None:
        credentials = Credentials("PLAIN", "mrose", "x")
        logins = [asyncio.create_task(users.verify(credentials)) for _ in range(256)]
        await asyncio.sleep(0)
        with pytest.raises(TooBusy) as caught:
            await users.verify(credentials)
        assert caught.value.code == "SYS/TEMP"
        release.set()
        await asyncio.gather(*logins)
        await users.verify(credentials)

    asyncio.run(main())


# Several processes.


@pytest.mark.slow
def test_processes_add_users_to_a_new_database_at_once(database: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from restante.auth.users import Users\n"
        "users = Users(Path(sys.argv[1]))\n"
        "for number in range(3): users.add(f'{sys.argv[2]}{number}', 'pw')\n"
    )
    commands = [[sys.executable, "-c", program, str(database), name] for name in "abc"]
    started = [subprocess.Popen(command) for command in commands]
    assert [process.wait(30) for process in started] == [0, 0, 0]
    assert [user.name for user in Users(database).list()] == [
        f"{name}{number}" for name in "abc" for number in range(3)
    ]


def test_a_database_that_another_process_makes_meanwhile(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is accepted, although it had no version a moment before."""
    other = list("b")

    class Slow(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            found = super().execute(statement, *values)
            if statement == "PRAGMA user_version" and other:
                assert found.fetchall() == [(0,)]
                Users(database).add(other.pop(), "pw")
                return super().execute("SELECT 0")
            return found

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Slow))
    Users(database).add("a", "pw")
    assert [user.name for user in Users(database).list()] == ["a", "b"]


def test_only_the_first_of_two_gets_a_name(database: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from restante.auth.users import Users\n"
        "Users(Path(sys.argv[1])).add('ann', sys.argv[2])\n"
    )
    commands = [[sys.executable, "-c", program, str(database), word] for word in ("one", "two")]
    started = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    codes = [process.wait(30) for process in started]
    assert sorted(codes) == [0, 1]
    assert verify(Users(database), "ann", ("one", "two")[codes.index(0)])


# A database in trouble.


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


def newer(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    database.close()


TROUBLES = [truncated, garbage, a_directory, gone, newer, foreign]


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.rfc("P-086")
def test_unusable_database_is_not_a_wrong_password(
    users: Users, database: Path, trouble: Callable[[Path], None]
) -> None:
    """[SYS/TEMP], never [AUTH]: else a client forgets a good password (RFC 3206 §4, §5)."""
    trouble(database)
    with pytest.raises(RestanteError) as caught:
        verify(users, "mrose", "tan staaf")
    assert caught.value.code == "SYS/TEMP"
    assert str(database.parent) not in str(caught.value), "the client learns no path"


@pytest.mark.parametrize("trouble", TROUBLES)
def test_unusable_database_bounces_no_mail(
    users: Users, database: Path, trouble: Callable[[Path], None]
) -> None:
    trouble(database)
    with pytest.raises(TemporaryFailure):
        asyncio.run(users.maildrop_of("mrose@example.org"))


@pytest.mark.parametrize("trouble", [truncated, garbage, a_directory, foreign])
def test_unusable_database_changes_no_quota_and_no_hold_time(
    users: Users, database: Path, trouble: Callable[[Path], None]
) -> None:
    """Otherwise the configuration's hold time could destroy mail that the user's own one keeps."""
    users.set_hold("mrose", math.inf)
    users.set_quota("mrose", 7)
    assert (users.hold("mrose"), users.quota("mrose"), users.hold("eve")) == (math.inf, 7, None)
    trouble(database)
    for setting in (users.hold, users.quota):
        with pytest.raises(TemporaryFailure):
            setting("mrose")


@pytest.mark.parametrize("trouble", [newer, foreign])
def test_foreign_database_is_not_changed(
    users: Users, database: Path, trouble: Callable[[Path], None]
) -> None:
    trouble(database)
    before = database.read_bytes()
    for call in (lambda: users.add("ann", "pw"), users.list, lambda: users.remove("mrose")):
        with pytest.raises(ConfigurationError, match=str(database)):
            call()
    assert database.read_bytes() == before


def test_missing_database_has_no_users(tmp_path: Path) -> None:
    users = Users(tmp_path / "none" / "users.sqlite3")
    assert users.list() == []
    with pytest.raises(NoSuchUser):
        users.set_enabled("ann", False)
    assert not (tmp_path / "none").exists()


def test_a_database_that_another_process_writes_is_waited_for(users: Users, database: Path) -> None:
    with sqlite3.connect(database, check_same_thread=False) as other:
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(0.05, other.rollback).start()
        assert verify(users, "mrose", "tan staaf").user == "mrose"
        other.execute("BEGIN EXCLUSIVE")
        other.execute("UPDATE users SET hold = 60")
        threading.Timer(0.05, other.commit).start()
        assert users.hold("mrose") == 60
    other.close()


def test_only_the_owner_can_read_the_database(users: Users, database: Path) -> None:
    assert database.stat().st_mode & 0o777 == 0o600
    assert database.parent.stat().st_mode & 0o777 == 0o700
    assert {name for name in os.listdir(database.parent)} == {database.name}


def test_malformed_hash_refuses_its_own_user_only(
    users: Users, database: Path, hashed: Counter[str]
) -> None:
    """At the cost of a hash, so that the response time does not reveal the user."""
    users.add("ann", "pw")
    with sqlite3.connect(database) as raw:
        raw.execute("UPDATE credentials SET hash = '$argon2id$v=19$m=99999999' WHERE user = 'ann'")
    raw.close()
    hashed.clear()
    assert refused(users, "ann", "pw").reason == "bad-password"
    assert hashed.total() == 1
    verify(users, "mrose", "tan staaf")


def test_no_password_and_no_hash_is_in_the_list_or_a_repr(users: Users) -> None:
    assert "staaf" not in repr(Credentials("PLAIN", "mrose", "tan staaf"))
    assert "argon2" not in repr(users.list())


def test_permit_changes_only_the_named_permissions(users: Users) -> None:
    """A `permit` that read the account before a concurrent `disable` must not undo it."""
    users.add("ann", "tan staaf")
    before = users.get("ann").account
    users.set_enabled("ann", False)
    users.permit("ann", before._replace(needs_tls=True, login_delay=60.0), ["needs_tls"])
    after = users.get("ann").account
    assert (after.is_enabled, after.needs_tls, after.login_delay) == (False, True, 0.0)
    users.permit("ann", before, [])
    assert users.get("ann").account == after
    with pytest.raises(NoSuchUser):
        users.permit("eve", before, [])


@pytest.mark.parametrize(
    "kind", ["empty", "garbage", "another program", "another program with a version"]
)
def test_readers_neither_create_nor_alter_a_schema(kind: str, tmp_path: Path) -> None:
    """Otherwise an empty file, as a full disk leaves it, would make every user unknown."""
    path = tmp_path / "users.sqlite3"
    path.write_bytes(b"" if kind == "empty" else b"garbage" * 1000)
    if kind.startswith("another"):
        path.unlink()
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE others (x)")
            database.execute(f"PRAGMA user_version = {2 if kind.endswith('version') else 0}")
            database.commit()
    before = path.read_bytes()
    users = Users(path)
    with pytest.raises((ConfigurationError, TemporaryFailure)):
        users.list()
    with pytest.raises((ConfigurationError, TemporaryFailure)):
        users.add("ann", "tan staaf")
    with pytest.raises(TemporaryFailure):  # LMTP answers 4yz: the mail is not refused
        asyncio.run(users.maildrop_of("ann"))
    users.close()
    assert path.read_bytes() == before


def test_disk_that_is_full_leaves_no_half_of_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(database_module, "_migrate", full)
        with pytest.raises(TemporaryFailure):
            Users(tmp_path / "users.sqlite3").add("ann", "tan staaf")
    assert list(tmp_path.iterdir()) == []
    Users(tmp_path / "users.sqlite3").add("ann", "tan staaf")
