"""Several identity back ends as one: which one decides, and what happens when one is down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from restante.addons import offers
from restante.auth.cache import Cache
from restante.auth.chain import Chain
from restante.auth.login_queue import LoginQueue
from restante.auth.passwd_file import PasswdFile
from restante.auth.throttle import Priority
from restante.errors import (
    AuthenticationFailed,
    BackendUnavailable,
    NoMaildrop,
    NoSuchUser,
    TemporaryFailure,
)
from restante.passdb import (
    Certificates,
    Credentials,
    Digest,
    Digests,
    Generations,
    ImmediateScramKeys,
    LastUses,
    MustWait,
    Proof,
    ScramKey,
    ScramKeys,
    ScramSecrets,
    Token,
    Tokens,
    UserAccount,
    attempting,
)
from restante.server.login import supported_mechanisms

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@dataclass
class Plain:
    """A back end with passwords in clear, which notes what it was asked."""

    users: dict[str, str]
    asked: list[tuple[str, str]] = field(default_factory=list)
    fault: Exception | None = None
    hangs: bool = False

    async def verify(self, credentials: Credentials) -> UserAccount:
        await self._ask("verify", credentials.identity)
        if self.users.get(credentials.identity) != credentials.password:
            raise AuthenticationFailed
        return UserAccount(credentials.identity, credentials.identity)

    async def account(self, identity: str) -> UserAccount | None:
        await self._ask("account", identity)
        return UserAccount(identity, identity) if identity in self.users else None

    def close(self) -> None:
        self.asked.append(("close", ""))

    async def _ask(self, what: str, identity: str) -> None:
        self.asked.append((what, identity))
        if self.hangs:
            await asyncio.Event().wait()
        if self.fault:
            raise self.fault


class Keyed(Plain):
    """One with keys for SCRAM, too."""

    def used(self, account: UserAccount, address: str) -> None:
        self.asked.append(("used", account.user))

    async def scram(self, identity: str, digest: str) -> ScramSecrets:
        await self._ask("scram", identity)
        return ScramSecrets(digest.encode(), 1, (ScramKey("password", b"", b""),))

    async def proved(self, proof: Proof) -> UserAccount:
        return await self.verify(Credentials("SCRAM", proof.identity, self.users[proof.identity]))

    async def generation(self, identity: str) -> bytes | None:
        if self.fault:
            raise self.fault
        return repr(self.users.get(identity)).encode()


def log_in(chain: Chain, identity: str, password: str) -> UserAccount:
    return run(chain.verify(Credentials("PLAIN", identity, password)))


def chained(*backends: Plain, **options: Any) -> Chain:
    names = ["users", "passwd-file", "ldap"]
    return Chain(dict(zip(names, backends, strict=False)), domains=["b.example"], **options)


def test_first_back_end_that_knows_a_user_decides() -> None:
    """A password that only a later back end would accept is refused."""
    first, second = Plain({"ann": "one"}), Plain({"ann": "two", "bob": "three"})
    chain = chained(first, second)
    assert log_in(chain, "ann", "one").user == "ann"
    assert log_in(chain, "bob", "three").user == "bob"
    for identity, password in (("ann", "two"), ("bob", "one"), ("eve", "one"), ("eve", "two")):
        with pytest.raises(AuthenticationFailed):
            log_in(chain, identity, password)
    assert ("verify", "ann") not in second.asked
    assert ("verify", "bob") not in first.asked


def test_refusal_takes_the_same_work_for_every_user() -> None:
    """Each back end looks the name up, and one checks the password."""
    for identity in ("ann", "bob", "cat", "eve"):
        backends = [Plain({name: "right"}) for name in ("ann", "bob", "cat")]
        with pytest.raises(AuthenticationFailed):
            log_in(chained(*backends), identity, "wrong")
        asked = [what for each in backends for what, _ in each.asked]
        assert asked.count("verify") == 1
        assert asked.count("account") == 2


def test_right_password_does_not_wait_for_other_back_ends() -> None:
    first, second = Plain({"ann": "one"}), Plain({}, hangs=True)
    assert log_in(chained(first, second), "ann", "one").user == "ann"
    assert second.asked == []


@pytest.mark.parametrize("identity", ["bob", "eve"])
def test_back_end_that_is_down_is_a_temporary_failure(identity: str) -> None:
    """FAULTS.md I 195: the failure is temporary, so no client gets [AUTH]."""
    down = Plain({"bob": "two"}, fault=BackendUnavailable("ldap: connection refused"))
    for chain in (chained(down, Plain({})), chained(Plain({"ann": "one"}), down), chained(down)):
        with pytest.raises(BackendUnavailable):
            log_in(chain, identity, "two")
        if len(chain._backends) == 2:
            with pytest.raises(BackendUnavailable):
                run(chain.account(identity))


@pytest.mark.parametrize("identity", ["bob", "eve"])
def test_back_end_that_hangs_is_abandoned_at_the_deadline(identity: str) -> None:
    slow = Plain({"bob": "two"}, hangs=True)
    for chain, who in (
        (chained(slow, Plain({}), deadline=0.01), "users"),
        (chained(Plain({"ann": "one"}), slow, deadline=0.01), "passwd-file"),
        (chained(slow, deadline=0.01), "users"),
    ):
        with pytest.raises(BackendUnavailable) as raised:
            log_in(chain, identity, "two")
        assert raised.value.reason.startswith(f"{who}: no answer in")
        assert who not in str(raised.value)


PLAIN = Credentials("PLAIN", "bob", "two")
QUESTIONS: dict[str, Callable[[Chain], Awaitable[object]]] = {
    "account": lambda chain: chain.account("bob"),
    "maildrop_of": lambda chain: chain.maildrop_of("bob"),
    "verify": lambda chain: chain.verify(PLAIN),
    "generation": lambda chain: chain.generation("bob"),
    "scram": lambda chain: chain.scram("bob", "sha256"),
    "proved": lambda chain: chain.proved(Proof("SCRAM-SHA-256", "bob", "password")),
    "digested": lambda chain: chain.digested(Digest("APOP", "bob", "<1@b>", "")),
    "verify_token": lambda chain: chain.verify_token(Token("XOAUTH2", "bob", "x")),
    "certified": lambda chain: chain.certified(Proof("EXTERNAL", "bob", "certificate")),
}


@dataclass
class Everything(Keyed):
    """A back end for all questions, and a provider of tokens; generations can hang as well."""

    async def digested(self, shown: Digest) -> UserAccount:
        return await self.verify(PLAIN)

    async def generation(self, identity: str) -> bytes | None:
        await self._ask("generation", identity)
        return b""

    async def owner(self, token: str) -> str:
        return "bob"


def test_all_queries_of_one_login_share_one_deadline() -> None:
    """Each further question gets only the time that is left of the login."""

    async def main() -> None:
        slow = Everything({"bob": "two"}, hangs=True)
        chain = chained(slow, issuer=slow, accepts_certificates=True, deadline=30)
        for name, ask in QUESTIONS.items():
            with attempting(PLAIN, asyncio.get_running_loop().time() - 30):
                with pytest.raises(BackendUnavailable) as raised:
                    await ask(chain)
                assert raised.value.reason == "users: no answer in 30 s", name
            with pytest.raises(TimeoutError):  # no login, or the next: all the time there is
                await asyncio.wait_for(ask(chain), 0.001)

    run(main())


@pytest.mark.parametrize("kind", [BackendUnavailable, None])
def test_a_wrong_password_stays_wrong_while_another_back_end_is_down(kind: type | None) -> None:
    first = Plain({"ann": "one"})
    down = Plain({}, fault=BackendUnavailable("down")) if kind else Plain({}, hangs=True)
    with pytest.raises(AuthenticationFailed):
        log_in(chained(first, down, Plain({}), deadline=0.01), "ann", "two")
    assert down.asked == [("account", "ann")]


@pytest.mark.parametrize("question", ["account", "verify"])
def test_hanging_back_end_delays_its_own_users_only(question: str) -> None:
    """Each has a queue of its own, so that logins at the hanging one delay no others."""
    first, hangs = Plain({"ann": "one"}), Plain({"bob": "two"})
    queues = {
        name: LoginQueue(each, lambda shown: (Priority.CLEAN, shown.identity), slots=1)
        for name, each in (("users", first), ("passwd-file", hangs))
    }

    async def main() -> None:
        chain = chained(first, hangs, verifiers=queues, lookups=queues)
        assert (await chain.verify(Credentials("PLAIN", "bob", "two"))).user == "bob"
        hangs.hangs = True
        waiting = [asyncio.ensure_future(QUESTIONS[question](chain)) for _ in range(5)]
        await asyncio.sleep(0)
        assert (await chain.verify(Credentials("PLAIN", "ann", "one"))).user == "ann"
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    run(main())


def test_passwords_and_names_go_through_their_queues() -> None:
    backend, queue = Plain({"ann": "one"}), Plain({"ann": "one"})
    log_in(chained(backend, verifiers={"users": queue}), "ann", "one")
    assert (backend.asked, queue.asked) == ([], [("verify", "ann")])
    for ask in "account", "maildrop_of", "verify", "verify_token", "certified":
        backend, queue = Plain({"bob": "two"}), Plain({"bob": "two"})
        queued = {"verifiers": {"users": queue}, "lookups": {"users": queue}}
        chain = chained(
            backend, Plain({}), issuer=Everything({}), accepts_certificates=True, **queued
        )
        run(QUESTIONS[ask](chain))  # type: ignore[arg-type]
        assert backend.asked == []
        assert ("account", "bob") in queue.asked


def test_scram_is_offered_only_if_every_back_end_has_keys() -> None:
    """Otherwise clients would choose it, fail, and never try a weaker mechanism."""
    keyed, plain = Keyed({"ann": "one"}), Plain({"bob": "two"})
    wanted = ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "OAUTHBEARER", "EXTERNAL", "PLAIN")
    assert not isinstance(chained(keyed, plain), ScramKeys)
    assert supported_mechanisms(chained(keyed, plain), wanted) == ("PLAIN",)
    assert supported_mechanisms(chained(keyed, Keyed({})), wanted) == (*wanted[:2], "PLAIN")


def test_scram_keys_come_from_the_deciding_back_end() -> None:
    first, second = Keyed({"ann": "one"}), Keyed({"bob": "two"})
    chain = chained(first, second)
    assert isinstance(chain, ScramKeys)
    for identity, other in (("ann", second), ("bob", first), ("eve", first)):
        assert run(chain.scram(identity, "sha256")).salt == b"sha256"
        assert ("scram", identity) not in other.asked
    assert run(chain.proved(Proof("SCRAM-SHA-256", "bob", "password"))).user == "bob"
    second.fault = TemporaryFailure("down")
    with pytest.raises(TemporaryFailure):
        run(chain.scram("bob", "sha256"))


class Digested(Plain):
    """One that can check APOP, too."""

    async def digested(self, shown: Digest) -> UserAccount:
        await self._ask("digested", shown.identity)
        return await self.verify(Credentials("APOP", shown.identity, shown.digest))


def test_apop_is_offered_only_if_every_back_end_has_passwords() -> None:
    """Otherwise the greeting would offer it to users that can never log in by it."""
    first, second, plain = Digested({"ann": "1"}), Digested({"bob": "2"}), Plain({"eve": "3"})
    assert supported_mechanisms(chained(first, plain), ("APOP", "PLAIN")) == ("PLAIN",)
    chain = chained(first, second)
    assert isinstance(chain, Digests)
    assert supported_mechanisms(chain, ("APOP", "PLAIN")) == ("APOP", "PLAIN")
    assert supported_mechanisms(chain, ("PLAIN",)) == ("PLAIN",)
    assert run(chain.digested(Digest("APOP", "ann", "<a@b>", "1"))).user == "ann"
    assert second.asked == []
    assert run(chain.digested(Digest("APOP", "bob", "<a@b>", "2"))).user == "bob"
    for identity in ("bob", "eve"):
        with pytest.raises(AuthenticationFailed):
            run(chain.digested(Digest("APOP", identity, "<a@b>", "x")))
    assert ("digested", "bob") not in first.asked
    second.fault = TemporaryFailure("down")
    with pytest.raises(TemporaryFailure):
        run(chain.digested(Digest("APOP", "bob", "<a@b>", "2")))


def test_a_generation_changes_with_every_back_end() -> None:
    first, second = Keyed({}), Keyed({})
    chain = chained(first, second)
    assert isinstance(chain, Generations)
    seen = {run(chain.generation("ann"))}
    for backend, password in ((second, "one"), (first, "one"), (second, "two")):
        backend.users["ann"] = password
        seen.add(run(chain.generation("ann")))
    assert len(seen) == 4
    assert None not in seen


class Immediate(Keyed):
    """Has its generation without waiting, unless it is being changed."""

    is_changing = False

    def generation_now(self, identity: str) -> bytes | None:
        return None if self.is_changing else repr(self.users.get(identity)).encode()


def test_generation_without_waiting_is_that_of_all_back_ends() -> None:
    first, second, blind = (
        Immediate({"ann": "one"}),
        Immediate({"ann": "two"}),
        Plain({"ann": "three"}),
    )
    for chain in (chained(first, second), chained(second, blind, first), chained(first)):
        assert chain.generation_now("ann") == run(chain.generation("ann")) is not None
    first.is_changing = True
    assert chained(first, second).generation_now("ann") is None
    assert chained(second, first).generation_now("ann") is None
    assert chained(second, Keyed({"ann": "one"})).generation_now("ann") is None
    assert chained(blind).generation_now("ann") is None


class ImmediateKeyed(Keyed):
    """Has its keys without waiting."""

    def scram_now(self, identity: str, digest: str) -> ScramSecrets | None:
        return None

    def proved_now(self, proof: Proof) -> UserAccount | None:
        return None


def test_only_one_back_end_can_have_keys_without_waiting() -> None:
    """With more than one, a look-up decides which of them is responsible."""
    assert offers(chained(ImmediateKeyed({})), ImmediateScramKeys)
    assert not offers(chained(ImmediateKeyed({}), ImmediateKeyed({})), ImmediateScramKeys)
    assert not offers(chained(Keyed({})), ImmediateScramKeys)
    assert not offers(chained(ImmediateKeyed({}), Plain({})), ImmediateScramKeys)


def test_generation_covers_every_back_end_in_any_order() -> None:
    first, blind = Keyed({"ann": "one"}), Plain({"bob": "two"})
    for chain in (chained(first, blind), chained(blind, first)):
        before = run(chain.generation("ann"))
        assert before is not None
        first.users["ann"] = f"{first.users['ann']} changed"
        assert run(chain.generation("ann")) not in (before, None)
        assert not chain.has_all_generations
    assert run(chained(blind).generation("bob")) is None
    assert chained(first).has_all_generations
    assert blind.asked == []


@pytest.mark.parametrize("is_first", [True, False])
def test_change_takes_effect_at_the_next_login_in_any_order(is_first: bool) -> None:
    """A cache in front of both must not admit a disabled or removed user for a minute."""
    keyed, blind = Keyed({"ann": "one"}), Plain({})
    chain = chained(*((keyed, blind) if is_first else (blind, keyed)))
    cache = Cache(chain, has_all_generations=chain.has_all_generations)
    shown = Credentials("PLAIN", "ann", "one")

    async def main() -> None:
        assert (await cache.verify(shown)).user == "ann"
        keyed.users["ann"] = "two"
        with pytest.raises(AuthenticationFailed):
            await cache.verify(shown)

    run(main())


REFUSED_LINES = (
    "ann:{PLAIN}two::::::nologin",
    "ann:{PLAIN}two::::::allow_nets=nonsense",
    "ann:{PLAIN}two::::::unknown_field=1",
    "ann:{NO-SUCH-SCHEME}x",
    "ann:",
    "ann",
    "ann:{PLAIN}two:::::nologin",
    " ann:{PLAIN}two::::::nologin",
    "\ufeffann:{PLAIN}two::::::nologin",
    "ann:{PLAIN}two\nAnn:{PLAIN}two",
)


@pytest.mark.parametrize("line", REFUSED_LINES)
@pytest.mark.parametrize("others", ["", "bob:{PLAIN}one\n"])
@pytest.mark.parametrize("password", ["one", "two"])
def test_refused_user_is_not_passed_on_to_the_next_back_end(
    line: str, others: str, password: str, tmp_path: Path
) -> None:
    """A malformed line may be the one that forbids; without it the next back end would decide."""
    path = tmp_path / "passwd"
    path.write_text(f"{others}{line}\n")
    second = Plain({"ann": "one"})
    file = PasswdFile(path)
    chain = Chain(
        {"passwd-file": file, "users": second}, issuer=Anyone(), accepts_unknown_users=True
    )
    try:
        with suppress(AuthenticationFailed):
            account = log_in(chain, "ann", password)
            assert account.refusal("192.0.2.1", is_secure=True, mechanism="PLAIN") == "disabled"
        account = run(chain.verify_token(Token("OAUTHBEARER", "", "ann")))
        assert account.refusal("192.0.2.1", is_secure=True, mechanism="OAUTHBEARER") == "disabled"
        assert ("verify", "ann") not in second.asked
        assert file.review()[1] or "nologin" in line
    finally:
        chain.close()


class Anyone:
    """Takes every token for the name of its owner."""

    async def owner(self, token: str) -> str:
        return token


def test_generation_is_known_while_a_later_back_end_is_down() -> None:
    first, down = Keyed({"ann": "one"}), Keyed({}, fault=BackendUnavailable("down"))
    assert run(chained(first, down).generation("ann")) is not None
    with pytest.raises(BackendUnavailable):
        run(chained(first, down).generation("bob"))


def test_recipient_is_found_in_any_back_end() -> None:
    chain = chained(Plain({"ann": "one"}), Plain({"bob@a.example": "two"}))
    for recipient in ("ann", "Ann+list@b.example", "ann@b.example"):
        assert run(chain.maildrop_of(recipient)) == "ann"
    assert run(chain.maildrop_of("bob@a.example")) == "bob@a.example"
    for recipient in ("ann@a.example", "bob@b.example", "eve", ""):
        with pytest.raises(NoSuchUser):
            run(chain.maildrop_of(recipient))


class ImmediateAccounts(Plain):
    """Has its accounts without waiting, unless they are being changed."""

    is_changing = False

    def account_now(self, identity: str) -> UserAccount | None:
        if self.is_changing:
            raise MustWait
        return run(self.account(identity))


def test_recipient_is_found_without_waiting_as_with_it() -> None:
    first, second = ImmediateAccounts({"ann": "one"}), ImmediateAccounts({"bob@a.example": "two"})
    chain = chained(first, second)
    for recipient in ("ann", "Ann+list@b.example", "ann@b.example", "bob@a.example"):
        assert chain.maildrop_now(recipient) == run(chain.maildrop_of(recipient))
    for recipient in ("ann@a.example", "bob@b.example", "eve", ""):
        assert chain.maildrop_now(recipient) is None
    first.is_changing = True  # it may be about to get the user that the second one has
    for recipient in ("ann", "bob@a.example"):
        assert chain.maildrop_now(recipient) is None
    assert chained(Plain({}), second).maildrop_now("bob@a.example") is None


def test_recipient_without_a_valid_maildrop_is_not_accepted_without_waiting() -> None:
    def refuse(maildrop: str) -> None:
        raise NoMaildrop("no maildrop", "is reserved")

    chain = Chain({"0": ImmediateAccounts({"ann": "one"})}, check_maildrop=refuse)
    assert chain.maildrop_now("ann") is None
    with pytest.raises(NoSuchUser):
        run(chain.maildrop_of("ann"))


def test_mail_waits_for_a_back_end_that_is_down() -> None:
    """The failure is temporary, so the sender tries again."""
    chain = chained(Plain({}), Plain({}, fault=BackendUnavailable("down")))
    with pytest.raises(TemporaryFailure):
        run(chain.maildrop_of("ann@b.example"))


def test_chain_names_the_deciding_back_end_and_closes_all() -> None:
    backends = Plain({"ann": "one"}), Plain({"bob": "two"})
    chain = chained(*backends)
    assert run(chain.find("bob")) == ("passwd-file", UserAccount("bob", "bob"))
    assert run(chain.find("eve")) == ("", None)
    chain.close()
    assert all(each.asked[-1] == ("close", "") for each in backends)


def test_cached_login_is_reported_to_back_ends_that_record_it() -> None:
    keyed = Keyed({"ann": "one"})
    chain = chained(Plain({}), keyed)
    assert isinstance(chain, LastUses)
    chain.used(UserAccount("ann", "ann"), "::1")
    assert keyed.asked == [("used", "ann")]


# Identities that were proved elsewhere.


@dataclass
class Tokened:
    """An issuer whose tokens are names."""

    fault: Exception | None = None
    hangs: bool = False

    async def owner(self, token: str) -> str:
        if self.hangs:
            await asyncio.Event().wait()
        if self.fault:
            raise self.fault
        return token


def show(chain: Chain, token: str, identity: str = "") -> UserAccount:
    assert isinstance(chain, Tokens)
    return run(chain.verify_token(Token("OAUTHBEARER", identity, token)))


@pytest.fixture
def two() -> tuple[Plain, Plain]:
    return Plain({"ann": "one"}), Plain({"bob@a.example": "two", "cat@b.example": "three"})


@pytest.mark.parametrize(
    ("owner", "identity", "user"),
    [
        ("ann", "", "ann"),
        ("Ann", "ANN", "ann"),
        ("ann@b.example", "", "ann"),
        ("ann@b.example", "ann", "ann"),
        ("ann", "ann@b.example", "ann"),
        ("bob@a.example", "bob@A.example", "bob@a.example"),
        ("cat@b.example", "", "cat@b.example"),
        ("ann@a.example", "", None),  # another's domain
        ("ann+x@b.example", "", None),
        ("ann@b.example@b.example", "", None),
        ("bob", "", None),
        ("", "", None),
        ("@b.example", "", None),
        ("eve", "", None),
        ("ann\0", "", None),
        ("ann", "bob@a.example", None),
        ("ann", "eve", None),
        ("bob@a.example", "ann", None),
    ],
)
def test_token_opens_the_maildrops_of_its_owner(
    two: tuple[Plain, Plain], owner: str, identity: str, user: str | None
) -> None:
    chain = chained(*two, issuer=Tokened())
    if user is None:
        with pytest.raises(AuthenticationFailed):
            show(chain, owner, identity)
    else:
        assert show(chain, owner, identity) == UserAccount(user, user, "token")
    assert not any(what == "verify" for each in two for what, _ in each.asked)


def test_permissions_hold_for_tokens_and_certificates() -> None:
    class Closed(Plain):
        async def account(self, identity: str) -> UserAccount | None:
            return UserAccount(identity, identity, is_enabled=False, is_read_only=True)

    chain = chained(Closed({}), issuer=Tokened(), accepts_certificates=True)
    assert isinstance(chain, Certificates)
    for account in show(chain, "ann"), run(chain.certified(Proof("EXTERNAL", "ann", ""))):
        assert not account.is_enabled
        assert account.is_read_only


def test_unknown_users_are_admitted_only_if_configured(two: tuple[Plain, Plain]) -> None:
    chain = chained(*two, issuer=Tokened(), accepts_unknown_users=True)
    assert show(chain, "Eve") == UserAccount("eve", "eve", "token")
    assert show(chain, "eve", "EVE") == UserAccount("eve", "eve", "token")
    assert show(chain, "ann@b.example").user == "ann"
    for owner, identity in (("eve", "ann"), ("../eve", ""), ("", ""), ("a b", ""), ("ann", "eve")):
        with pytest.raises(AuthenticationFailed):
            show(chain, owner, identity)


def test_tokens_and_certificates_are_accepted_only_if_configured(
    two: tuple[Plain, Plain],
) -> None:
    wanted = ("EXTERNAL", "OAUTHBEARER", "XOAUTH2", "PLAIN")
    assert supported_mechanisms(chained(*two), wanted) == ("PLAIN",)
    assert supported_mechanisms(chained(*two, issuer=Tokened()), wanted) == wanted[1:]
    assert supported_mechanisms(chained(*two, accepts_certificates=True), wanted) == (
        "EXTERNAL",
        "PLAIN",
    )


@pytest.mark.parametrize("issuer", [Tokened(BackendUnavailable("down")), Tokened(hangs=True)])
def test_provider_that_is_down_or_slow_is_a_temporary_failure(
    two: tuple[Plain, Plain], issuer: Tokened
) -> None:
    with pytest.raises(BackendUnavailable):
        show(chained(*two, issuer=issuer, deadline=0.01), "ann")
    log_in(chained(*two, issuer=issuer), "ann", "one")


@pytest.mark.parametrize(
    ("address", "wanted", "user"),
    [
        ("ann@b.example", "", "ann"),
        ("Ann@B.example", "", "ann"),
        ("ann@b.example", "ann", "ann"),
        ("ann@b.example", "ann@b.example", "ann"),
        ("bob@a.example", "", "bob@a.example"),
        ("ann@a.example", "", None),
        ("ann@b.example", "bob@a.example", None),
        ("ann@b.example", "eve", None),
        ("eve@b.example", "", None),
        ("ann@b.example\0@a.example", "", None),
    ],
)
def test_certificate_opens_the_maildrops_of_its_address(
    two: tuple[Plain, Plain], address: str, wanted: str, user: str | None
) -> None:
    chain = chained(*two, accepts_certificates=True)
    assert isinstance(chain, Certificates)
    proof = Proof("EXTERNAL", address, "certificate", wanted)
    if user is None:
        with pytest.raises(AuthenticationFailed):
            run(chain.certified(proof))
    else:
        assert run(chain.certified(proof)) == UserAccount(user, user, "certificate")
