"""App passwords and SCRAM keys: one user has several credentials, which are independent."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from scramp import ScramClient, ScramException, ScramMechanism

from restante.auth import passwords
from restante.auth import users as module
from restante.auth.database import STEPS
from restante.auth.names import BadName
from restante.auth.users import BadPassword, NameTaken, NoSuchAppPassword, Users
from restante.errors import AuthenticationFailed, NoSuchUser, TemporaryFailure
from restante.passdb import Credentials, Proof, ScramKeys, ScramSecrets, UserAccount

from .test_users import refused, verify

T = TypeVar("T")


def rows(database: Path, statement: str, *values: object) -> list[Any]:
    opened = sqlite3.connect(database)
    try:
        with opened:
            return opened.execute(statement, values).fetchall()
    finally:
        opened.close()


# App passwords.


def test_an_app_password_logs_in_as_the_same_user(users: Users) -> None:
    for label in ("phone", "Odoo"):
        account = verify(users, "MRose", users.add_app_password("MRose", label))
        assert (account.user, account.maildrop, account.credential) == ("mrose", "mrose", label)
    assert verify(users, "mrose", "tan staaf").credential == "password"


def test_stolen_database_leaves_69_bits_of_an_app_password(users: Users) -> None:
    """The database reveals the first four characters; 69 bits are left to guess."""
    made = users.add_app_password("mrose", "phone")
    assert len(made) <= 19  # what many devices take
    assert 31 ** (len(made) - 5) > 2**69
    assert set(made) <= set("abcdefghjkmnpqrstuvwxyz23456789")
    assert passwords.selector(made) == made[:4]


def test_a_password_that_begins_like_an_app_password_is_refused(users: Users) -> None:
    """Otherwise its hash would never be checked."""
    made = users.add_app_password("mrose", "phone")
    with pytest.raises(BadPassword):
        users.set_password("mrose", made)
    assert verify(users, "mrose", "tan staaf").credential == "password"
    assert verify(users, "mrose", made).credential == "phone"


def test_login_computes_one_hash_with_any_number_of_app_passwords(
    users: Users, hashed: Counter[str]
) -> None:
    """Neither the number of app passwords nor whether the user exists can be timed."""
    made = [users.add_app_password("mrose", str(number)) for number in range(3)]
    wrong = passwords.generate_app_password()
    for identity, password in [
        ("mrose", made[2]),
        ("mrose", "tan staaf"),
        ("mrose", "wrong"),
        ("mrose", wrong),
        ("mrose", made[0][:5] + wrong[5:]),
        ("nobody", made[0]),
        ("nobody", "wrong"),
    ]:
        hashed.clear()
        with suppress(AuthenticationFailed):
            verify(users, identity, password)
        assert hashed.total() == 1


def test_revoked_app_password_is_refused_and_others_are_not(users: Users) -> None:
    phone, odoo = (users.add_app_password("mrose", label) for label in ("phone", "Odoo"))
    users.revoke("MRose", "phone")
    refused(users, "mrose", phone)
    assert verify(users, "mrose", odoo).credential == "Odoo"
    assert verify(users, "mrose", "tan staaf")
    with pytest.raises(NoSuchAppPassword):
        users.revoke("mrose", "phone")
    with pytest.raises(NoSuchAppPassword):
        users.revoke("mrose", "password")


def test_app_password_works_for_its_own_user_only(users: Users) -> None:
    users.add("ann", "other")
    made = users.add_app_password("mrose", "phone")
    refused(users, "ann", made)
    with pytest.raises(NoSuchAppPassword):
        users.revoke("ann", "phone")


def test_new_password_keeps_app_passwords(users: Users) -> None:
    made = users.add_app_password("mrose", "phone")
    users.set_password("mrose", "new")
    assert verify(users, "mrose", made).credential == "phone"
    refused(users, "mrose", "tan staaf")


def test_removing_a_user_revokes_them(users: Users) -> None:
    made = users.add_app_password("mrose", "phone")
    users.remove("mrose")
    users.add("mrose", "new")
    refused(users, "mrose", made)


@pytest.mark.parametrize(
    "label", ["", " ", "password", "x" * 65, "a\nb", "a\x1bb", "a\u202eb", "\udcff"]
)
def test_label_must_be_printable(users: Users, label: str) -> None:
    with pytest.raises(BadName):
        users.add_app_password("mrose", label)


def test_labels_are_unique_and_limited_in_number(
    users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    users.add_app_password("mrose", "phone")
    with pytest.raises(NameTaken, match="app password 'phone' already exists"):
        users.add_app_password("mrose", "phone")
    monkeypatch.setattr(module, "MAX_APP_PASSWORDS", 2)
    users.add_app_password("mrose", "two")
    with pytest.raises(BadName, match="at most 2"):
        users.add_app_password("mrose", "three")
    with pytest.raises(NoSuchUser):
        users.add_app_password("nobody", "phone")


def test_last_use_is_recorded(users: Users, database: Path) -> None:
    made = users.add_app_password("mrose", "phone")
    assert [(each.label, each.used_at) for each in users.app_passwords("mrose")] == [
        ("phone", None)
    ]
    verify(users, "mrose", made, address="192.0.2.7")
    users.close()
    (used,) = Users(database).app_passwords("mrose")
    assert used.used_at is not None
    assert used.used_at >= used.created_at
    assert used.used_from == "192.0.2.7"


def test_last_use_is_recorded_after_the_clock_was_ahead(users: Users, database: Path) -> None:
    users.add_app_password("mrose", "phone")
    ahead = time.time() + 300 * 86_400
    rows(database, "UPDATE credentials SET created_at = ?, used_at = ?", ahead, ahead)
    users.used(UserAccount("mrose", "mrose", "phone"), "192.0.2.7")
    users.close()
    (phone,) = users.app_passwords("mrose")
    assert phone.used_at == pytest.approx(time.time(), abs=60)
    assert phone.used_from == "192.0.2.7"


def test_refused_login_is_not_recorded_as_a_use(users: Users, database: Path) -> None:
    made = users.add_app_password("mrose", "phone")
    refused(users, "mrose", made[:-1] + ("x" if made[-1] != "x" else "y"))
    users.close()
    assert rows(database, "SELECT used_at FROM credentials") == [(None,), (None,)]


# Hashes that grow old.


OLD = "$argon2id$v=19$m=8192,t=1,p=1$"


def old_hash(password: str) -> str:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    kdf = Argon2id(salt=b"s" * 16, length=32, iterations=1, lanes=1, memory_cost=8192)
    return kdf.derive_phc_encoded(password.encode())


def test_an_old_hash_is_renewed_at_the_next_login(users: Users, database: Path) -> None:
    rows(database, "UPDATE credentials SET hash = ?, sha256 = NULL", old_hash("tan staaf"))
    refused(users, "mrose", "wrong")
    verify(users, "mrose", "tan staaf")
    users.close()
    ((phc, keys),) = rows(database, "SELECT hash, sha256 FROM credentials")
    assert passwords.is_current(phc)
    assert len(keys) == 64
    assert verify(Users(database), "mrose", "tan staaf")


def test_hash_renewal_does_not_undo_a_password_change(users: Users, database: Path) -> None:
    """Compare and swap: the renewed hash does not replace a newer one."""
    old = old_hash("tan staaf")
    rows(database, "UPDATE credentials SET hash = ?", old)
    users.set_password("mrose", "new")
    users._renew("mrose", "password", old, "tan staaf")
    assert verify(users, "mrose", "new")
    refused(users, "mrose", "tan staaf")


def test_current_hash_is_not_renewed(users: Users, database: Path) -> None:
    before = rows(database, "SELECT hash, sha256 FROM credentials")
    verify(users, "mrose", "tan staaf")
    users.close()
    assert rows(database, "SELECT hash, sha256 FROM credentials") == before


# SCRAM.


def prove(users: Users, identity: str, password: str, digest: str = "sha256") -> UserAccount:
    """RFC 5802 §3 with scramp on both sides, over the keys of the database."""
    secrets = asyncio.run(users.scram(identity, digest))
    mechanism = {"sha256": "SCRAM-SHA-256", "sha1": "SCRAM-SHA-1"}[digest]
    for key in secrets.keys:
        client = ScramClient([mechanism], "user", password, c_nonce="fixed")
        server = ScramMechanism(mechanism).make_server(
            lambda _, key=key: (secrets.salt, key.stored_key, key.server_key, secrets.iterations)
        )
        server.set_client_first(client.get_client_first())
        client.set_server_first(server.get_server_first())
        try:
            server.set_client_final(client.get_client_final())
        except ScramException:
            continue
        client.set_server_final(server.get_server_final())
        return asyncio.run(users.proved(Proof(mechanism, identity, key.credential)))
    raise AuthenticationFailed("bad-proof")


def at_once(answer: Coroutine[Any, Any, T]) -> T | None:
    """What a coroutine returns if it does not have to wait, or None."""
    try:
        answer.send(None)
    except StopIteration as end:
        found: T = end.value
        return found
    answer.close()
    return None


def test_scram_needs_a_thread_only_while_another_process_writes(
    users: Users, database: Path
) -> None:
    """And an unknown user is looked up like a known one."""
    proof = Proof("SCRAM-SHA-256", "mrose", "password")
    for digest in ("sha256", "sha1"):
        known, unknown = at_once(users.scram("mrose", digest)), at_once(users.scram("x", digest))
        assert known is not None
        assert unknown is not None
        assert len(unknown.salt) == len(known.salt)
    assert at_once(users.proved(proof)) is not None
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")

    async def main() -> None:
        for question in (users.scram("mrose", "sha256"), users.scram("x", "sha256")):
            waiting = asyncio.create_task(question)
            await asyncio.sleep(0.02)
            assert not waiting.done()
            other.execute("ROLLBACK")
            assert (await waiting).keys
            other.execute("BEGIN EXCLUSIVE")
        asyncio.get_running_loop().call_later(0.02, other.execute, "ROLLBACK")
        assert (await users.proved(proof)).user == "mrose"

    asyncio.run(main())
    other.close()
    users.close()


def test_the_database_is_a_lookup_for_scram(users: Users) -> None:
    lookup: ScramKeys = users
    assert lookup is users


@pytest.mark.parametrize("digest", ["sha256", "sha1"])
def test_every_credential_proves_itself(users: Users, digest: str) -> None:
    made = users.add_app_password("mrose", "phone")
    assert prove(users, "mrose", "tan staaf", digest).credential == "password"
    assert prove(users, "MRose", made, digest).credential == "phone"
    for identity, password in [("mrose", "wrong"), ("nobody", "tan staaf"), ("nobody", "")]:
        with pytest.raises((AuthenticationFailed, ScramException)):
            prove(users, identity, password, digest)


def test_a_new_password_has_new_keys(users: Users) -> None:
    users.set_password("mrose", "new")
    assert prove(users, "mrose", "new")
    with pytest.raises(AuthenticationFailed):
        prove(users, "mrose", "tan staaf")


def test_composed_and_decomposed_passwords_are_equal(users: Users) -> None:
    """RFC 4013: a client may send the composed or the decomposed form."""
    users.set_password("mrose", "p\u00e4ss")
    assert prove(users, "mrose", "pa\u0308ss")


def test_a_password_without_keys_works_with_plain(users: Users) -> None:
    """RFC 4013 §2.5: unassigned characters of Unicode 3.2 are allowed in queries, without keys."""
    users.set_password("mrose", "a\U0001f600b")
    assert verify(users, "mrose", "a\U0001f600b")
    assert not fits_anything(asyncio.run(users.scram("mrose", "sha256")))


def fits_anything(secrets: ScramSecrets) -> bool:
    return any(key.credential != "nobody" for key in secrets.keys)


@pytest.mark.parametrize("digest", ["sha256", "sha1"])
def test_unknown_user_gets_keys_like_a_known_one(users: Users, database: Path, digest: str) -> None:
    """The same form as real keys, stable over tries and processes, different for each name."""

    def shape(secrets: ScramSecrets) -> Sequence[int]:
        (key,) = secrets.keys
        return [len(secrets.salt), secrets.iterations, len(key.stored_key), len(key.server_key)]

    known, unknown, again = (
        asyncio.run(each.scram(name, digest))
        for each, name in [(users, "mrose"), (users, "nobody"), (Users(database), "Nobody")]
    )
    assert shape(known) == shape(unknown)
    assert unknown == again
    assert unknown.salt != asyncio.run(users.scram("nobody2", digest)).salt
    assert not fits_anything(unknown)


@pytest.mark.parametrize("identity", ["", "\0", "\udcff", "../x", "%n", "m" * 10_000])
def test_an_impossible_identity_is_an_unknown_one(users: Users, identity: str) -> None:
    assert not fits_anything(asyncio.run(users.scram(identity, "sha256")))


def test_a_credential_revoked_during_the_exchange_is_refused(users: Users) -> None:
    users.add_app_password("mrose", "phone")
    users.revoke("mrose", "phone")
    for proof in (Proof("SCRAM-SHA-256", "mrose", "phone"), Proof("x", "nobody", "nobody")):
        with pytest.raises(AuthenticationFailed):
            asyncio.run(users.proved(proof))


def test_proof_acts_for_its_own_user_only(users: Users) -> None:
    users.add("ann", "pw")
    with pytest.raises(AuthenticationFailed):
        asyncio.run(users.proved(Proof("SCRAM-SHA-256", "mrose", "password", "ann")))
    proof = Proof("SCRAM-SHA-256", "mrose", "password", "MRose", "192.0.2.7")
    assert asyncio.run(users.proved(proof)).user == "mrose"


def test_missing_database_is_not_a_wrong_password(users: Users, database: Path) -> None:
    database.unlink()
    with pytest.raises(TemporaryFailure):
        asyncio.run(users.scram("mrose", "sha256"))
    with pytest.raises(TemporaryFailure):
        asyncio.run(users.proved(Proof("SCRAM-SHA-256", "mrose", "password")))


# A database of before.

VERSION_1 = """
CREATE TABLE users (name TEXT PRIMARY KEY, is_enabled INTEGER NOT NULL DEFAULT 1,
    networks TEXT NOT NULL DEFAULT '', created_at REAL NOT NULL) STRICT;
CREATE TABLE credentials (user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    label TEXT NOT NULL, hash TEXT NOT NULL, created_at REAL NOT NULL,
    PRIMARY KEY (user, label)) STRICT;
PRAGMA user_version = 1;
INSERT INTO users VALUES ('ann', 0, '192.0.2.0/24', 7);
"""


def test_a_database_of_version_1_goes_on_working(tmp_path: Path) -> None:
    database = tmp_path / "users.sqlite3"
    opened = sqlite3.connect(database)
    opened.executescript(VERSION_1)
    opened.execute("INSERT INTO credentials VALUES ('ann', 'password', ?, 7)", (old_hash("pw"),))
    opened.commit()
    opened.close()
    users = Users(database)
    assert not fits_anything(asyncio.run(users.scram("ann", "sha256")))
    account = verify(users, "ann", "pw")
    assert account.refusal("192.0.2.7") == "disabled"
    assert [str(network) for network in account.networks] == ["192.0.2.0/24"]
    users.close()
    assert prove(Users(database), "ann", "pw"), "the first login made the keys"
    assert rows(database, "PRAGMA user_version") == [(len(STEPS),)]


def test_no_secret_is_in_a_repr(users: Users) -> None:
    made = users.add_app_password("mrose", "phone")
    secrets = asyncio.run(users.scram("mrose", "sha256"))
    for each in (users.app_passwords("mrose"), users.list(), secrets, secrets.keys):
        assert made not in repr(each)
        assert "stored_key" not in repr(each)
    assert Credentials("PLAIN", "mrose", made).password not in repr(
        Credentials("PLAIN", "mrose", made)
    )
