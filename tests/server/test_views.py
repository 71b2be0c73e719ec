"""Views in login names: a folder, or only recent mail."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import os
from pathlib import Path

import pytest

from restante.auth.users import Users
from restante.errors import AuthenticationFailed, TemporaryFailure
from restante.maildrop import Paced, View
from restante.passdb import Credentials, Proof, Terms, UserAccount
from restante.pop3.session import Policy
from restante.sasl.exchange import Lookup
from restante.server.login import look_up, resolve, verify
from restante.server.views import RECENT, interpret, interpretations
from restante.store.maildir import MaildirStore
from restante.store.memory import MemoryStore

from ..support import Client, OneUser, Run, serving

WRONG = b"-ERR [AUTH] authentication failed"


class Known(OneUser):
    """A passdb that can look users up."""

    def __init__(self, *others: str) -> None:
        super().__init__()
        self.users = {"mrose", *others}
        self.asked: list[str] = []

    async def account(self, identity: str) -> UserAccount | None:
        self.asked.append(identity)
        if identity == "down":
            raise TemporaryFailure("directory is down")
        return UserAccount(identity, identity) if identity in self.users else None


# -- Parsing names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mrose", ("mrose", View())),
        ("mrose+Junk", ("mrose", View(("Junk",)))),
        ("mrose+C++", ("mrose", View(("C++",)))),
        ("mrose+", ("mrose", View(("",)))),
        ("recent:mrose", ("mrose", View(recent=RECENT))),
        ("Recent:mrose+Junk", ("mrose", View(("Junk",), RECENT))),
        ("ann@example.org+Junk", ("ann@example.org", View(("Junk",)))),
        ("ann+Junk@example.org", ("ann@example.org", View(("Junk",)))),
        ("bob+lists", ("bob+lists", View())),
        ("bob+lists+Junk", ("bob+lists", View(("Junk",)))),
        ("recent:bob+lists", ("bob+lists", View(recent=RECENT))),
        ("recent:eve", ("recent:eve", View())),
        ("nobody+Junk", ("nobody", View(("Junk",)))),
        ("mrose-Junk", ("mrose-Junk", View())),
    ],
)
def test_login_name_means_the_first_existing_user(
    run: Run[tuple[str, View]], name: str, expected: tuple[str, View]
) -> None:
    passdb = Known("ann@example.org", "bob+lists", "recent:eve")
    assert run(interpret(passdb, name, "+")) == expected


@pytest.mark.parametrize("name", ["mrose+Junk", "nobody+Junk", "bob+lists"])
def test_number_of_lookups_does_not_reveal_users(run: Run[tuple[str, View]], name: str) -> None:
    passdb = Known("bob+lists")
    run(interpret(passdb, name, "+"))
    assert len(passdb.asked) == 2


def test_ordinary_name_takes_no_lookup(run: Run[tuple[str, View]]) -> None:
    passdb = Known()
    run(interpret(passdb, "mrose@example.org", "+"))
    assert passdb.asked == []


def test_long_names_take_bounded_work(run: Run[tuple[str, View]]) -> None:
    assert len(interpretations("recent:" + "+" * 900 + "@" + "+" * 50, "+")) <= 10
    assert len(interpretations("recent:" + "+" * 100_000, "+")) == 1


def test_other_separators_and_none(run: Run[tuple[str, View]]) -> None:
    assert run(interpret(Known(), "mrose#Junk", "#")) == ("mrose", View(("Junk",)))
    assert run(interpret(Known(), "mrose+Junk", "")) == ("mrose+Junk", View())
    assert run(interpret(OneUser(), "mrose+Junk", "+")) == ("mrose+Junk", View())


# -- Sessions


def store(tmp_path: Path) -> MaildirStore:
    for name, octets in (("new/1.a", b"a"), ("cur/2.b:2,S", b"bb"), (".Junk/cur/3.c:2,", b"ccc")):
        path = tmp_path / "mrose" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(octets + b"\r\n")
    (tmp_path / "mrose/.Junk/new").mkdir()
    return MaildirStore(f"{tmp_path}/%u")


@pytest.mark.parametrize(
    ("user", "password", "answer", "stat"),
    [
        (b"mrose", b"tan staaf", b"+OK", b"+OK 2 7"),
        (b"mrose+Junk", b"tan staaf", b"+OK", b"+OK 1 5"),
        (b"mrose+INBOX", b"tan staaf", b"+OK", b"+OK 2 7"),
        (b"recent:mrose", b"tan staaf", b"+OK", b"+OK 2 7"),
        (b"mrose+Junk", b"wrong", WRONG, b""),
        (b"mrose+Spam", b"wrong", WRONG, b""),
        (b"mrose+../bob", b"wrong", WRONG, b""),
        (b"nobody+Junk", b"tan staaf", WRONG, b""),
        (b"mrose+Spam", b"tan staaf", b"-ERR [SYS/PERM] no such folder", b""),
        (b"mrose+../bob", b"tan staaf", b"-ERR [SYS/PERM] invalid folder name", b""),
        (b"mrose+.", b"tan staaf", b"-ERR [SYS/PERM] invalid folder name", b""),
    ],
)
def test_folder_is_checked_after_the_password_only(
    run: Run[None], tmp_path: Path, user: bytes, password: bytes, answer: bytes, stat: bytes
) -> None:
    async def main() -> None:
        async with serving(store(tmp_path)) as server:
            server.service.passdb = Known()
            async with server.client() as client:
                assert (await client.ask(b"USER " + user)).startswith(b"+OK")
                assert (await client.ask(b"PASS " + password)).startswith(answer)
                if stat:
                    assert await client.ask(b"STAT") == stat
                else:
                    await client.log_in()  # still in AUTHORIZATION

    run(main())


def test_sasl_opens_folders_too(run: Run[None], tmp_path: Path) -> None:
    """RFC 4616: the authorization identity may be sent too, if it is the same."""

    async def main() -> None:
        async with serving(store(tmp_path)) as server:
            server.service.passdb = Known()
            for wanted in (b"", b"mrose+Junk"):
                async with server.client() as client:
                    shown = base64.b64encode(wanted + b"\0mrose+Junk\0tan staaf")
                    assert (await client.ask(b"AUTH PLAIN " + shown)).startswith(b"+OK")
                    assert await client.ask(b"STAT") == b"+OK 1 5"

    run(main())


def test_user_database_gets_the_name_without_the_view(run: Run[None], tmp_path: Path) -> None:
    users = Users(tmp_path / "users.sqlite3")
    for name in ("mrose", "bob"):
        users.add(name, "tan staaf")
    users.permit("mrose", UserAccount("", "", view=View(("INBOX", "Junk"))))

    async def open_view(identity: str, wanted: str = "") -> View:
        shown = Credentials("PLAIN", identity, "tan staaf", wanted)
        return (await verify(users, *await resolve(users, shown, "+"))).view

    async def main() -> None:
        assert await open_view("MRose") == View(("INBOX", "Junk"))
        assert await open_view("MRose+Junk", "MRose+Junk") == View(("Junk",))
        with pytest.raises(AuthenticationFailed):  # permitted folders are a limit
            await open_view("MRose+Spam", "MRose+Spam")
        assert await open_view("recent:mrose", "mrose") == View(("INBOX", "Junk"), RECENT)
        for wanted in ("bob", "bob+Spam", "mrose+Other"):
            with pytest.raises(AuthenticationFailed):
                await open_view("mrose+Spam", wanted)
        keys = await look_up(users, Lookup("mrose+Spam", "sha256"), separator="+")
        assert keys == await users.scram("mrose", "sha256")
        proof = Proof("SCRAM-SHA-256", "mrose+Junk", "password")
        resolved = await resolve(users, proof, "+")
        assert (await verify(users, *resolved)).view == View(("Junk",))

    try:
        run(main())
    finally:
        users.close()


def test_deleted_messages_leave_their_own_folder(run: Run[None], tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(store(tmp_path)) as server:
            server.service.passdb = Known()
            async with server.client() as client:
                await client.ask(b"USER mrose+Junk")
                await client.ask(b"PASS tan staaf")
                assert (await client.ask(b"RETR 1")).startswith(b"+OK")
                assert [await client.line(), await client.line()] == [b"ccc", b"."]
                assert (await client.ask(b"DELE 1")).startswith(b"+OK")
                assert (await client.ask(b"QUIT")).startswith(b"+OK")
        assert len(list((tmp_path / "mrose/.Junk/held").iterdir())) == 1
        assert len(list((tmp_path / "mrose/held").iterdir())) == 0

    run(main())


def test_store_without_folders_refuses_views(run: Run[None]) -> None:
    async def main() -> None:
        async with serving(MemoryStore()) as server:
            server.service.passdb = Known()
            async with server.client() as client:
                await client.ask(b"USER mrose+Junk")
                heard = await client.ask(b"PASS tan staaf")
                assert heard == b"-ERR [SYS/PERM] this mail store does not support folders"

    run(main())


@pytest.mark.parametrize("digest", ["sha256", "sha1"])
def test_scram_salts_are_as_equal_for_unknown_users_as_for_known_ones(
    digest: str, run: Run[None], tmp_path: Path
) -> None:
    """RFC 5802 §9: the pattern of equal salts must not reveal who exists."""
    users = Users(tmp_path / "users.sqlite3")
    users.add("ann", "tan staaf")
    shapes = ("{}", "{}+x", "recent:{}", "{}+x+y", "RECENT:{}+x", "{}@d", "{}+x@d", "{}@d+x")

    async def main() -> None:
        patterns = []
        for name in ("ann", "zed"):
            salts = []
            for shape in shapes:
                lookup = Lookup(shape.format(name), digest)
                salts.append((await look_up(users, lookup, separator="+")).salt)
            patterns.append([[one == two for one in salts] for two in salts])
        assert patterns[0] == patterns[1]

    try:
        run(main())
    finally:
        users.close()


# -- LOGIN-DELAY (RFC 2449 §6.5) counts for the user


class Aliased(OneUser):
    """Knows ``mrose``, in upper or lower case and with two passwords, and ``bob``."""

    async def account(self, identity: str) -> UserAccount | None:
        user = identity.lower()
        return UserAccount(user, user) if user in ("mrose", "bob") else None

    async def verify(self, credentials: Credentials) -> UserAccount:
        account = await self.account(credentials.identity)
        if account is None or credentials.password not in ("tan staaf", "app"):
            raise AuthenticationFailed
        return account._replace(credential=credentials.password)


NAMES = (b"mrose", b"MRose", b"mrose+Junk", b"mrose+INBOX", b"MROSE+Junk", b"recent:mrose")
LOGINS = [(name, password) for name in NAMES for password in (b"tan staaf", b"app")]


@pytest.mark.rfc("P-087")
def test_login_delay_applies_to_all_names_and_passwords_of_a_user(
    run: Run[None], tmp_path: Path
) -> None:
    """Each login delays all others; wrong passwords and other users are not affected."""
    mail = store(tmp_path)
    delayed = b"-ERR [LOGIN-DELAY]"

    async def log_in(client: Client, name: bytes, password: bytes) -> bytes:
        await client.ask(b"USER " + name)
        return await client.ask(b"PASS " + password)

    async def main() -> None:
        async with serving(mail, policy=Policy(terms=Terms(login_delay=300))) as server:
            server.service.passdb = Aliased()
            for first in LOGINS:
                async with server.client() as client:
                    assert (await log_in(client, *first)).startswith(b"+OK"), first
                    await client.ask(b"QUIT")
                    await client.rest()
                async with server.client() as client:
                    for second in LOGINS:
                        assert (await log_in(client, *second)).startswith(delayed), (first, second)
                    assert await log_in(client, b"mrose+Junk", b"wrong") == WRONG
                    assert (await log_in(client, b"bob", b"app")).startswith(b"+OK")
                for user in "mrose", "bob":
                    (tmp_path / user / "restante.login").unlink()

    run(main())


def test_only_one_of_simultaneous_logins_succeeds(run: Run[None], tmp_path: Path) -> None:
    """Sessions with different folders have different locks."""
    mail = store(tmp_path)
    stamp = tmp_path / "mrose" / "restante.login"

    async def main() -> None:
        async with (
            mail.open_view("mrose", View(("INBOX",))) as inbox,
            mail.open_view("mrose", View(("Junk",))) as junk,
        ):
            assert isinstance(inbox, Paced)
            assert isinstance(junk, Paced)
            for _ in range(20):
                waits = await asyncio.gather(*(each.pace(100) for each in (inbox, junk) * 4))
                assert [wait > 0 for wait in waits].count(False) == 1
                stamp.unlink()
            stamp.touch()
            os.utime(stamp, (0, 0))
            other = os.open(stamp, os.O_RDWR)
            fcntl.flock(other, fcntl.LOCK_EX)
            waiting = asyncio.create_task(junk.pace(100))
            await asyncio.sleep(0.02)
            os.utime(other)  # the login was counted
            os.close(other)
            assert await waiting > 99

    run(main())
