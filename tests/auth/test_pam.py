"""PAM: who is asked about, and what its answers mean."""

from __future__ import annotations

import asyncio
import pwd
import sys
from dataclasses import dataclass, field
from types import ModuleType

import pytest

from restante.auth.pam import Pam
from restante.errors import AuthenticationFailed, BackendUnavailable
from restante.passdb import Account, Accounts, Credentials


class Refused(Exception):
    """As pamela's."""

    def __init__(self, errno: int) -> None:
        self.errno = errno
        self.message = "its words"


@dataclass
class System:
    """Users, and what PAM says."""

    users: dict[str, int] = field(
        default_factory=lambda: {"root": 0, "daemon": 1, "ann": 1000, "nobody": 65_534}
    )
    answer: int = 0
    asked: list[tuple[str, bytes, str]] = field(default_factory=list)
    down: bool = False


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    found = System()

    def authenticate(name: str, passwords: list[bytes], *, service: str, resetcred: int) -> None:
        assert resetcred == 0
        found.asked.append((name, passwords[0], service))
        if found.answer:
            raise Refused(found.answer)

    def getpwnam(name: str) -> pwd.struct_passwd:
        if found.down:
            raise OSError(5, "Input/output error")
        return pwd.struct_passwd((name, "x", found.users[name], 0, "", "/", "/bin/sh"))

    module = ModuleType("pamela")
    module.authenticate = authenticate  # type: ignore[attr-defined]
    module.PAMError = Refused  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pamela", module)
    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    return found


def log_in(identity: str, password: str = "tan staaf", **more: str) -> Account:
    return asyncio.run(Pam("restante").verify(Credentials("PLAIN", identity, password, **more)))


def refused(*arguments: str, **more: str) -> str:
    with pytest.raises(AuthenticationFailed) as raised:
        log_in(*arguments, **more)
    return raised.value.reason


def test_a_user_of_the_system_logs_in(system: System) -> None:
    assert isinstance(Pam("restante"), Accounts)
    assert log_in("ann") == Account("ann", "ann")
    assert log_in("Ann", "pässw\udcff", authorization="ann").user == "ann"
    assert system.asked[-1] == ("ann", "pässw".encode() + b"\xff", "restante")
    assert asyncio.run(Pam("restante").account("ann")) == Account("ann", "ann")


@pytest.mark.parametrize(
    "identity", ["root", "ROOT", "daemon", "nobody", "eve", "", "../ann", "an n", "ann\0", "\udcff"]
)
def test_who_is_no_person_is_nobody(system: System, identity: str) -> None:
    """Whatever PAM says: it is asked about somebody else, for the time that it takes."""
    assert refused(identity) == "unknown-user"
    assert [name for name, _, _ in system.asked] == ["restante-nobody"]
    system.answer = 7
    assert refused(identity) == "unknown-user"
    assert asyncio.run(Pam("restante").account(identity)) is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (6, "permission"),
        (7, "bad-password"),
        (8, "bad-password"),
        (10, "unknown-user"),
        (11, "bad-password"),
        (12, "password-expired"),
        (13, "account-expired"),
        (27, "password-expired"),
    ],
)
def test_a_no_is_a_no(system: System, answer: int, reason: str) -> None:
    system.answer = answer
    assert refused("ann") == reason


@pytest.mark.parametrize("answer", [1, 2, 3, 4, 5, 9, 19, 26, 28, 99])
def test_what_is_no_answer_makes_no_password_wrong(system: System, answer: int) -> None:
    system.answer = answer
    for identity in "ann", "eve":
        with pytest.raises(BackendUnavailable) as raised:
            log_in(identity)
        assert "its words" in raised.value.reason


def test_a_system_that_cannot_tell_its_users(system: System) -> None:
    system.down = True
    with pytest.raises(BackendUnavailable):
        log_in("ann")
    with pytest.raises(BackendUnavailable):
        asyncio.run(Pam("restante").account("ann"))


def test_nobody_acts_for_another(system: System) -> None:
    assert refused("ann", authorization="eve") == "authorization"
    assert refused("ann", "") == "impossible-password"
    assert system.asked == []


def test_a_missing_library_makes_no_password_wrong(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pamela", None)
    with pytest.raises(BackendUnavailable) as raised:
        log_in("ann")
    assert "restante[pam]" in raised.value.reason
