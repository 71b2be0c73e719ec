"""The cache before a passdb: never an answer that does not hold, never another's."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.auth import cache as module
from restante.auth.cache import Cache
from restante.auth.users import NoSuchAppPassword, Users
from restante.errors import AuthenticationFailed, TemporaryFailure
from restante.passdb import AnyCredentials, Credentials, Digest, Proof, Token, UserAccount
from restante.server import login

from ..support import OneUser

ROSE = Credentials("PLAIN", "mrose", "tan staaf", address="192.0.2.7")
WRONG = replace(ROSE, password="wrong")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Plain:
    """A passdb without add-ons; counts its calls."""

    right: set[tuple[str, str]] = field(default_factory=lambda: {("mrose", "tan staaf")})
    asked: int = 0
    is_down: bool = False

    async def verify(self, credentials: Credentials) -> UserAccount:
        self.asked += 1
        if self.is_down:
            raise TemporaryFailure("down")
        if (credentials.identity, credentials.password) not in self.right:
            raise AuthenticationFailed("bad-password")
        return UserAccount(credentials.identity, credentials.identity)


@dataclass
class Telling(Plain):
    """A passdb with generations and last uses."""

    now: bytes | None = b"1"
    change_while_asked: bool = False
    uses: list[tuple[str, str]] = field(default_factory=list)

    async def verify(self, credentials: Credentials) -> UserAccount:
        try:
            return await super().verify(credentials)
        finally:
            if self.change_while_asked:
                self.now = b"2"

    async def generation(self, identity: str) -> bytes | None:
        return self.now

    def used(self, account: UserAccount, address: str) -> None:
        self.uses.append((account.user, address))


def verify(cache: Cache, credentials: Credentials = ROSE) -> UserAccount:
    """The answer without waiting, if there is one, must be that of ``verify``."""
    known = cache.remembered(credentials)
    try:
        account = asyncio.run(cache.verify(credentials))
    except (AuthenticationFailed, TemporaryFailure):
        assert known is None
        raise
    assert known in (None, account)
    return account


def refused(cache: Cache, credentials: Credentials = WRONG) -> str:
    with pytest.raises(AuthenticationFailed) as caught:
        verify(cache, credentials)
    return caught.value.reason


# What is remembered, and for how long.


def test_poll_with_known_credentials_computes_no_hash(users: Users, hashed: Counter[str]) -> None:
    cache = Cache(users)
    for _ in range(5):
        assert verify(cache).user == "mrose"
        assert refused(cache) == "bad-password"
        assert refused(cache, replace(ROSE, identity="nobody")) == "unknown-user"
    assert hashed.total() == 3
    users.close()


@pytest.mark.parametrize(("passdb", "lifetime"), [(Telling(), 300), (Plain(), 60)])
def test_right_password_is_cached_for_its_lifetime(passdb: Plain, lifetime: float) -> None:
    """Five minutes, or one minute without generations."""
    clock = Clock()
    cache = Cache(passdb, clock=clock)
    for after, asked in [(0, 1), (lifetime - 1, 1), (1, 2)]:
        clock.now += after
        verify(cache)
        assert passdb.asked == asked


def test_backend_without_generation_gives_none() -> None:
    passdb, clock = Telling(now=None), Clock()
    cache = Cache(passdb, clock=clock)
    verify(cache)
    clock.now += 60
    verify(cache)
    assert passdb.asked == 2


def test_wrong_password_is_cached_for_ten_seconds() -> None:
    passdb, clock = Telling(), Clock()
    cache = Cache(passdb, clock=clock)
    for after, asked in [(0, 1), (9, 1), (1, 2)]:
        clock.now += after
        assert refused(cache) == "bad-password"
        assert passdb.asked == asked


def test_wrong_password_is_not_cached_without_generations() -> None:
    passdb = Plain(right=set())
    cache = Cache(passdb)
    refused(cache, ROSE)
    passdb.right.add(("mrose", "tan staaf"))
    assert verify(cache)


def test_temporary_failure_is_not_cached_or_hidden_by_the_cache() -> None:
    passdb, clock = Telling(), Clock()
    cache = Cache(passdb, clock=clock)
    verify(cache)
    passdb.is_down = True
    assert verify(cache), "it still holds"
    clock.now += 300
    for _ in range(2):
        with pytest.raises(TemporaryFailure):
            verify(cache)
    passdb.is_down = False
    assert verify(cache)


def test_guesses_do_not_displace_right_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_CORRECT", 2)
    monkeypatch.setattr(module, "_MAX_WRONG", 2)
    passdb = Telling(right={(name, "tan staaf") for name in "abc"})
    cache = Cache(passdb)
    a, b, c = (replace(ROSE, identity=name) for name in "abc")
    for each in (a, b):
        verify(cache, each)
    for number in range(50):
        refused(cache, replace(ROSE, password=str(number)))
    passdb.asked = 0
    verify(cache, a)
    assert passdb.asked == 0
    verify(cache, c)  # b was not asked for longest
    verify(cache, a)
    assert passdb.asked == 1
    verify(cache, b)
    assert passdb.asked == 2


def test_change_during_a_check_is_not_cached_over() -> None:
    """Not even if it is undone later, which restores the earlier generation."""
    passdb = Telling(change_while_asked=True)
    cache = Cache(passdb)
    for _ in range(2):
        passdb.now = b"1"
        verify(cache)
        passdb.now = b"1"
        refused(cache)
    assert passdb.asked == 4


# I 191, 192, 194: what changes holds at once.


def in_another_process(database: Path) -> Users:
    """Knows nothing of the cache."""
    return Users(database)


@pytest.mark.parametrize("own", [True, False])
def test_old_password_fails_immediately_after_a_change(
    users: Users, database: Path, own: bool
) -> None:
    """I 191."""
    cache = Cache(users)
    verify(cache)
    (users if own else in_another_process(database)).set_password("mrose", "new")
    assert refused(cache, ROSE) == "bad-password"
    assert verify(cache, replace(ROSE, password="new"))
    users.close()


def test_refused_password_works_immediately_after_it_is_set(users: Users, database: Path) -> None:
    """I 194."""
    cache = Cache(users)
    refused(cache)
    in_another_process(database).set_password("mrose", "wrong")
    assert verify(cache, WRONG)
    users.close()


def test_a_user_who_was_unknown_is_known_at_once(users: Users) -> None:
    cache, ann = Cache(users), Credentials("PLAIN", "ann", "pw")
    refused(cache, ann)
    users.add("ann", "pw")
    assert verify(cache, ann).user == "ann"
    users.remove("ann")
    assert refused(cache, ann) == "unknown-user"
    users.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda users, account: users.set_enabled("mrose", False), "disabled"),
        (
            lambda users, account: users.permit(
                "mrose", account._replace(networks=(ip_network("10.0.0.0/8"),))
            ),
            "network",
        ),
        (lambda users, account: users.permit("mrose", account._replace(needs_tls=True)), "tls"),
        (
            lambda users, account: users.permit(
                "mrose", account._replace(mechanisms=("SCRAM-SHA-256",))
            ),
            "mechanism",
        ),
    ],
)
def test_changed_permission_applies_immediately(
    users: Users, database: Path, change: Callable[[Users, UserAccount], None], reason: str
) -> None:
    """I 192: permissions are checked at each login, not cached."""
    cache = Cache(users)
    account = verify(cache)
    assert account.refusal(ROSE.address, is_secure=False, mechanism="PLAIN") is None
    change(in_another_process(database), account)
    reported = verify(cache).refusal(ROSE.address, is_secure=False, mechanism="PLAIN")
    assert reported is not None
    assert reason in reported
    users.close()


def test_a_revoked_app_password_fails_at_once(users: Users) -> None:
    shown = replace(ROSE, password=users.add_app_password("mrose", "phone"))
    cache = Cache(users)
    assert verify(cache, shown).credential == "phone"
    users.revoke("mrose", "phone")
    refused(cache, shown)
    with pytest.raises(NoSuchAppPassword):
        users.revoke("mrose", "phone")
    users.close()


def test_restored_database_has_another_generation(users: Users, database: Path) -> None:
    """A backup replaces the file that is open."""
    cache = Cache(users)
    backup = database.read_bytes()
    users.set_password("mrose", "new")
    verify(cache, replace(ROSE, password="new"))
    settle(users)
    (database.parent / "copy").write_bytes(backup)
    (database.parent / "copy").replace(database)
    assert refused(cache, replace(ROSE, password="new")) == "bad-password"
    assert verify(cache)
    users.close()


def test_missing_database_admits_no_user(users: Users, database: Path) -> None:
    cache = Cache(users)
    verify(cache)
    away = database.rename(database.parent / "away")
    with pytest.raises(TemporaryFailure):
        verify(cache)
    away.rename(database)
    assert verify(cache)
    users.close()


def test_a_generation_does_not_wait_for_a_writer(users: Users, database: Path) -> None:
    """The event loop goes on; a thread waits for the writer."""
    cache = Cache(users)
    verify(cache)
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")

    async def main() -> UserAccount:
        asyncio.get_running_loop().call_later(0.05, other.execute, "ROLLBACK")
        return await cache.verify(ROSE)

    assert asyncio.run(main()).user == "mrose"
    other.close()
    users.close()


# I 193: no user gets the answer of another (CVE-2025-30189).


@pytest.mark.parametrize(
    "other",
    [
        replace(ROSE, identity="ann"),
        replace(ROSE, identity="mrose@example.org"),
        replace(ROSE, mechanism="LOGIN"),
        replace(ROSE, authorization="ann"),
        replace(ROSE, password="tan staaf "),
        replace(ROSE, identity="mrosetan", password=" staaf"),
        replace(ROSE, identity="mros", password="etan staaf"),
    ],
)
def test_two_credentials_never_share_an_entry(other: Credentials) -> None:
    """I 193: users, realms, mechanisms; and no two whose parts run into one another."""
    passdb = Telling()
    cache = Cache(passdb)
    verify(cache)
    with suppress(AuthenticationFailed):  # right by another mechanism, but not by what was said
        verify(cache, other)
    assert passdb.asked == 2


def test_two_services_never_share_an_entry() -> None:
    """I 193."""
    pop3, smtp = (Cache(Telling(), service=service) for service in ("pop3", "smtp"))
    pop3._secret = smtp._secret
    assert pop3._key(ROSE, b"1") != smtp._key(ROSE, b"1")


@given(st.lists(st.builds(Credentials, *[st.text(max_size=4)] * 4), max_size=20))
def test_cached_answer_equals_that_of_the_passdb(shown: list[Credentials]) -> None:
    """The cache gives the answer that the passdb would give, after any earlier logins."""
    right = {(each.identity, each.password) for each in shown[::2]}
    cache = Cache(Telling(right=right))

    async def main() -> None:
        for each in shown * 2:
            try:
                assert (await cache.verify(each)).user == each.identity
            except AuthenticationFailed:
                assert (each.identity, each.password) not in right

    asyncio.run(main())


@pytest.mark.parametrize(
    "shown",
    [
        Token("OAUTHBEARER", "mrose", "vF9dft4qmT"),
        Digest("APOP", "mrose", "<1896.697170952@dbc.mtview.ca.us>", ""),
        Proof("SCRAM-SHA-256", "mrose", "password", ""),
    ],
)
def test_one_time_proofs_are_never_cached(shown: AnyCredentials) -> None:
    """CVE-2026-27855: a cached one-time password admitted its user again."""
    asked = []

    class Once(OneUser):
        def open(self, shown: AnyCredentials) -> UserAccount:
            asked.append(shown)
            return UserAccount("mrose", "mrose")

    passdb = Once()
    for _ in range(2):
        asyncio.run(login.verify(passdb, shown, passwords=Cache(passdb)))
    assert len([each for each in asked if each is shown]) == 2


def test_no_password_is_stored_in_the_cache() -> None:
    cache = Cache(Telling())
    verify(cache)
    refused(cache)
    kept = repr([cache._correct_passwords._entries, cache._wrong_passwords._entries])
    assert "UserAccount" in kept
    assert "staaf" not in kept
    assert "'wrong'" not in kept


# The last use.


def test_cached_logins_count_as_uses() -> None:
    passdb = Telling()
    cache = Cache(passdb)
    verify(cache)
    verify(cache, replace(ROSE, address="192.0.2.8"))
    refused(cache)
    refused(cache)
    assert passdb.uses == [("mrose", "192.0.2.8")]


def settle(users: Users) -> None:
    """Wait until the first use is written."""
    if users._last_use._timer is not None:
        users._last_use._timer.join()
    with users._last_use._writing:
        pass


def test_many_uses_are_one_transaction(
    users: Users, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is written at once, the others at the end of the minute or of the server."""
    shown = replace(ROSE, password=users.add_app_password("mrose", "phone"))
    cache = Cache(users)
    before = sqlite3.connect(database)
    for number in range(20):
        verify(cache, replace(shown, address=f"192.0.2.{number}"))
        if number == 0:
            settle(users)
            (version,) = before.execute("PRAGMA data_version").fetchone()
    assert before.execute("PRAGMA data_version").fetchone() == (version,)
    before.close()
    users.close()
    (used,) = users.app_passwords("mrose")
    assert used.used_from == "192.0.2.19"


def test_use_is_not_recorded_for_a_later_credential(users: Users) -> None:
    shown = replace(ROSE, password=users.add_app_password("mrose", "phone"))
    verify(Cache(users), shown)
    settle(users)
    verify(Cache(users), shown)
    users.revoke("mrose", "phone")
    users.add_app_password("mrose", "phone")
    users.close()
    (used,) = users.app_passwords("mrose")
    assert used.used_at is None
