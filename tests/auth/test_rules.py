"""Each rule of identity, in each order of back ends, after each change.

A chain of every pair of back ends, with a cache in front as in a server.  ``ann`` has an entry in
one or both; expected results follow from two rules, not from the code: the first back end with an
entry decides, whether it admits or refuses; and an entry admits its passwords, where and how its
permissions allow.  A changed entry takes effect at the next login.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from ipaddress import ip_network
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import pytest

from restante.auth import passwords, scram
from restante.auth.cache import Cache
from restante.auth.chain import Backend, Chain
from restante.auth.ldap import Ldap, Search
from restante.auth.pam import Pam
from restante.auth.passwd_file import PasswdFile
from restante.auth.users import Users
from restante.errors import AuthenticationFailed, NoSuchUser
from restante.maildrop import View
from restante.passdb import AnyCredentials, Credentials, Proof, Token, UserAccount
from restante.server import login

INSIDE, OUTSIDE = "192.0.2.1", "198.51.100.1"
APP = passwords.generate_app_password()


class Way(NamedTuple):
    """The way in which a client logs in."""

    address: str = INSIDE
    is_secure: bool = True
    mechanism: str = "PLAIN"
    folder: str = ""


WAYS = (
    Way(),
    Way(address=OUTSIDE),
    Way(is_secure=False),
    Way(mechanism="LOGIN"),
    Way(folder="Junk"),
    Way(folder="INBOX"),
)
OTHER_PROOFS = ("XOAUTH2", "EXTERNAL")


@dataclass(frozen=True)
class Entry:
    """The permissions of ``ann`` in a back end."""

    passwords: tuple[str, ...] = ()
    allows: Callable[[Way], bool] = lambda way: True
    permissions: Mapping[str, object] | None = None
    """As `user permit` writes them."""
    line: str = ""
    """The entry in a passwd-file; ``*`` is the password."""


def never(way: Way) -> bool:
    return False


def inside(way: Way) -> bool:
    return way.address == INSIDE


def junk(way: Way) -> bool:
    return way.folder in ("", "Junk")


# What each back end can say.  "" is its own password, which the other one does not take.
USERS = {
    "absent": None,
    "good": Entry(("",)),
    "passwd": Entry(("new",)),
    "app": Entry(("", APP)),
    "disable": Entry(("",), never, {"is_enabled": False}),
    "network": Entry(("",), inside, {"networks": (ip_network("192.0.2.0/24"),)}),
    "tls": Entry(("",), lambda way: way.is_secure, {"needs_tls": True}),
    "mechanism": Entry(
        ("",),
        lambda way: way.mechanism in ("PLAIN", "XOAUTH2"),
        {"mechanisms": ("PLAIN", "XOAUTH2")},
    ),
    "folder": Entry(("",), junk, {"view": View(("Junk",))}),
}
REFUSED = {
    "nologin": "ann:{PLAIN}*::::::nologin",
    "nologin-elsewhere": "ann:{PLAIN}*::::::allow_nets=192.0.2.0/24 nologin",
    "bad-network": "ann:{PLAIN}*::::::allow_nets=nonsense",
    "no-network": "ann:{PLAIN}*::::::allow_nets=",
    "unknown-field": "ann:{PLAIN}*::::::allow_real_nets=192.0.2.0/24",
    "unknown-scheme": "ann:{NO-SUCH}*",
    "empty-hash": "ann:",
    "no-hash": "ann",
    "duplicate": "ann:{PLAIN}*\nAnn:{PLAIN}*",
}
FILE = {
    "absent": None,
    "good": Entry(("",), line="ann:{PLAIN}*"),
    "passwd": Entry(("new",), line="ann:{PLAIN}*"),
    "network": Entry(("",), inside, line="ann:{PLAIN}*::::::allow_nets=192.0.2.0/24"),
    **{name: Entry(("",), never, line=line) for name, line in REFUSED.items()},
}
OTHERS = {"absent": None, "good": Entry(("",))}
STATES: dict[str, Mapping[str, Entry | None]] = {
    "users": USERS,
    "passwd-file": FILE,
    "ldap": OTHERS,
    # PAM says so only of a password: a token or a certificate is proof of its own.
    "pam": {**OTHERS, "expired": Entry()},
}
CHANGING = ("users", "passwd-file")  # changes of the others are cached for a minute


# -- The back ends, and how their entries come about


class Directory(Ldap):
    """One entry, without a network."""

    known = True

    def _find(self, name: str, end: float) -> str | None:
        return f"uid={name}" if self.known and name == "ann" else None

    def _accepts(self, entry: str, password: bytes, end: float) -> bool:
        return (entry, password) == ("uid=ann", b"ldap")


class System(Pam):
    """One user, without PAM modules."""

    state = "good"

    def _look_up(self, name: str) -> UserAccount | None:
        return UserAccount("ann", "ann") if name == "ann" and self.state != "absent" else None

    async def _check(self, name: str, password: str) -> None:
        if (name, password) != ("ann", "pam"):
            raise AuthenticationFailed
        if self.state == "expired":
            raise AuthenticationFailed("account-expired")


class Site:
    """A chain with its cache, and the entries of each back end."""

    def __init__(self, order: tuple[str, ...], folder: Path, stack: ExitStack) -> None:
        self.users = Users(folder / "users.sqlite3")
        self.users.add("bob", "x")
        self.path, self.edits = folder / "passwd", 0
        self.path.write_text("")
        self.ldap, self.pam = Directory(Search("ldapi://x", "dc=example")), System("other")
        made: dict[str, Backend] = {
            "users": self.users,
            "passwd-file": PasswdFile(self.path),
            "ldap": self.ldap,
            "pam": self.pam,
        }
        for backend in made.values():
            stack.enter_context(closing(backend))
        self.order = order
        self.chain = Chain(
            {name: made[name] for name in order},
            domains=["localhost"],
            issuer=Anyone(),
            accepts_unknown_users=True,
            accepts_certificates=True,
        )
        self.cache = Cache(self.chain, has_all_generations=self.chain.has_all_generations)
        self.states = dict.fromkeys(STATES, "absent")
        for name in STATES:
            self.put(name, "absent")

    def put(self, name: str, state: str) -> None:
        """Change what a back end says, as an administrator would."""
        before, self.states[name] = self.states[name], state
        entry = STATES[name][state]
        password = entry.passwords[0] or name if entry and entry.passwords else ""
        if name == "users":
            self._put_user(before, entry, password)
        elif name == "passwd-file":
            line = entry.line.replace("*", password) if entry else ""
            self.path.write_text(f"{line}\nbob:{{PLAIN}}x\n")
            self.edits += 1  # long ago, otherwise it is read every time
            os.utime(self.path, (self.edits, self.edits))
        elif name == "ldap":
            self.ldap.known = entry is not None
        else:
            self.pam.state = state

    def _put_user(self, before: str, entry: Entry | None, password: str) -> None:
        users = self.users
        if entry is None:
            if before != "absent":
                users.remove("ann")
            return
        if before == "absent":
            users.add("ann", password)
        elif password != (USERS[before].passwords[0] or "users"):  # type: ignore[union-attr]
            users.set_password("ann", password)
        labels = [each.label for each in users.app_passwords("ann")]
        if APP in entry.passwords:
            users.add_app_password("ann", "phone")
        elif "phone" in labels:
            users.revoke("ann", "phone")
        plain = UserAccount("ann", "ann")
        users.permit("ann", plain._replace(**(entry.permissions or {})))  # type: ignore[arg-type]

    def decides(self) -> tuple[str, Entry | None]:
        """The first back end that has an entry, and the entry."""
        for name in self.order:
            if entry := STATES[name][self.states[name]]:
                return name, entry
        return "", None

    async def expect(self, expected: bool, proof: AnyCredentials, way: Way) -> None:
        identity = f"ann+{way.folder}" if way.folder else "ann"
        shown = replace(proof, mechanism=way.mechanism, identity=identity, address=way.address)
        assert await self._opens(shown, way) == expected, (self.states, shown, way)

    async def _opens(self, shown: AnyCredentials, way: Way) -> bool:
        """As a server finds out (``server.pop3``)."""
        try:
            if known := login.verify_now(self.chain, shown, "+", self.cache):
                account = known
            else:
                resolved, view = await login.resolve(self.chain, shown, "+")
                account = await login.verify(self.chain, resolved, view, self.cache)
        except AuthenticationFailed:
            return False
        return not account.refusal(way.address, is_secure=way.is_secure, mechanism=shown.mechanism)

    async def check(self) -> None:
        """Each password, a token and a certificate, each way; and mail."""
        name, entry = self.decides()
        own = [each or name for each in entry.passwords] if entry else []
        for way in WAYS:
            for password in (*self.order, "new", APP) if way == Way() else own:
                expected = password in own and entry is not None and entry.allows(way)
                await self.expect(expected, Credentials("", "", password), way)
            by_token, by_certificate = (way._replace(mechanism=each) for each in OTHER_PROOFS)
            allowed = entry is None or entry.allows(
                by_token
            )  # tokens of unknown users are accepted too
            await self.expect(allowed, Token("", "", "ann"), by_token)
            for credential, label in (("password", own[:1]), ("phone", own[1:])):
                if self.order == ("users",):
                    by_scram = way._replace(mechanism="SCRAM-SHA-256")
                    allowed = bool(label) and entry is not None and entry.allows(by_scram)
                    await self.expect(allowed, Proof("", "", credential), by_scram)
            if not way.folder:  # it names the user
                allowed = entry is not None and entry.allows(by_certificate)
                await self.expect(allowed, Proof("", "", "certificate"), by_certificate)
        if entry:
            assert await self.chain.maildrop_of("ann@localhost") == "ann", self.states
            assert self.chain.maildrop_now("ann@localhost") in ("ann", None), self.states
        else:
            assert self.chain.maildrop_now("ann@localhost") is None, self.states
            with pytest.raises(NoSuchUser):
                await self.chain.maildrop_of("ann@localhost")


class Anyone:
    """A provider: a token is the name of its owner."""

    async def owner(self, token: str) -> str:
        return token


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes and keys that cost nothing, and one app password that is known before."""
    monkeypatch.setattr(passwords, "make_hash", lambda password: f"hash of {password}")
    monkeypatch.setattr(passwords, "matches", lambda password, phc: phc == f"hash of {password}")
    monkeypatch.setattr(passwords, "is_current", lambda phc: True)
    monkeypatch.setattr(passwords, "is_sane", lambda phc: phc.startswith("hash of "))
    monkeypatch.setattr(passwords, "decoy_hash", lambda: "")
    monkeypatch.setattr(passwords, "generate_app_password", lambda length=0: APP)
    keys = scram.StoredKeys(b"x" * 64, b"x" * 40)
    monkeypatch.setattr(scram, "make_keys", lambda *arguments: keys)


ORDERS = [*((name,) for name in STATES), *permutations(STATES, 2)]


def changes(name: str) -> Iterator[str]:
    """From each state to each other one, over the good one."""
    for state in STATES[name]:
        if state != "good":
            yield state
            yield "good"


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_first_back_end_with_an_entry_decides_after_each_change(
    order: tuple[str, ...], tmp_path: Path
) -> None:
    async def main() -> None:
        with ExitStack() as stack:
            site = Site(order, tmp_path, stack)
            await site.check()
            for changed in order:
                for other in order:
                    if other != changed:
                        site.put(other, "good")
                if changed not in CHANGING:
                    continue
                for state in changes(changed):
                    site.put(changed, state)
                    await site.check()
                site.put(changed, "absent")

    asyncio.run(main())


@pytest.mark.parametrize(
    "order", [each for each in ORDERS if each[0] in ("ldap", "pam")], ids="-".join
)
@pytest.mark.parametrize("state", STATES["pam"])
def test_ldap_and_pam_also_decide(order: tuple[str, ...], state: str, tmp_path: Path) -> None:
    """Without a change, because their answers are cached for a minute."""
    if state not in STATES[order[0]]:
        return

    async def main() -> None:
        with ExitStack() as stack:
            site = Site(order, tmp_path, stack)
            for name in order:
                site.put(name, "good")
            site.put(order[0], state)
            await site.check()

    asyncio.run(main())
