"""PAM: users, the meaning of status codes, and modules that crash or hang."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from restante.auth.chain import Chain
from restante.auth.pam import Pam
from restante.errors import AuthenticationFailed, BackendUnavailable
from restante.passdb import Accounts, Credentials, UserAccount

from ..support import until

ANN = UserAccount("ann", "ann")


class Asked(NamedTuple):
    """One call of PAM, in a process of its own."""

    function: str
    process: int
    helper: int
    service: str
    user: str
    password: str
    flags: int


@dataclass
class System:
    """Users, and what PAM was asked."""

    folder: Path
    users: dict[str, int] = field(
        default_factory=lambda: {"root": 0, "daemon": 1, "ann": 1000, "nobody": 65_534}
    )
    down: bool = False

    def answer(self, status: int) -> None:
        (self.folder / "answer").write_text(str(status))

    @property
    def asked(self) -> list[Asked]:
        path = self.folder / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Asked(*json.loads(line)) for line in lines]

    async def until_asked(self, count: int) -> list[Asked]:
        await until(lambda: len(self.asked) >= count)
        return self.asked


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> System:
    found = System(tmp_path)
    shutil.copy(Path(__file__).with_name("fake_pam.py"), tmp_path / "pamela.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def getpwnam(name: str) -> pwd.struct_passwd:
        if found.down:
            raise OSError(5, "Input/output error")
        return pwd.struct_passwd((name, "x", found.users[name], 0, "", "/", "/bin/sh"))

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    return found


@pytest.fixture
def pam(system: System) -> Iterator[Pam]:
    """When it is closed, neither a process nor a zombie of it is left."""
    with closing(Pam("restante")) as made:
        yield made
    deadline = time.monotonic() + 10
    while left := [each for each in processes(system) if is_there(each)]:
        assert time.monotonic() < deadline, left


def processes(system: System) -> set[int]:
    return {each for asked in system.asked for each in (asked.process, asked.helper)}


def is_there(process: int) -> bool:
    """A zombie is."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def shown(identity: str, password: str = "tan staaf", **more: str) -> Credentials:
    return Credentials("PLAIN", identity, password, **more)


def log_in(pam: Pam, identity: str, password: str = "tan staaf", **more: str) -> UserAccount:
    return asyncio.run(pam.verify(shown(identity, password, **more)))


def refused(pam: Pam, *arguments: str, **more: str) -> str:
    with pytest.raises(AuthenticationFailed) as raised:
        log_in(pam, *arguments, **more)
    return raised.value.reason


def unavailable(pam: Pam, identity: str, password: str = "tan staaf") -> str:
    with pytest.raises(BackendUnavailable) as raised:
        log_in(pam, identity, password)
    return raised.value.reason


def test_a_user_of_the_system_logs_in(system: System, pam: Pam) -> None:
    assert isinstance(pam, Accounts)
    assert log_in(pam, "ann") == ANN
    assert log_in(pam, "Ann", "pässw\udcff", authorization="ann").user == "ann"
    assert system.asked[-1][3:6] == ("restante", "ann", "pässw\udcff")
    assert asyncio.run(pam.account("ann")) == ANN


def test_an_account_without_a_password_is_refused(system: System, pam: Pam) -> None:
    """PAM_DISALLOW_NULL_AUTHTOK, 1 in ``_pam_types.h``, for both functions that know it."""
    log_in(pam, "ann")
    assert {each.function: each.flags for each in system.asked} == {
        "authenticate": 1,
        "acct_mgmt": 1,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows them as files")
def test_a_password_is_in_no_argument_and_no_environment(system: System, pam: Pam) -> None:
    async def main() -> set[bytes]:
        async with hanging(system, pam):
            return {open_to_all(process, "cmdline") for process in processes(system)} | {
                open_to_all(process, "environ") for process in processes(system)
            }

    found = asyncio.run(main())
    assert any(b"pam_helper" in octets for octets in found)
    assert not any(b"hang" in octets for octets in found)


def open_to_all(process: int, name: str) -> bytes:
    return Path(f"/proc/{process}/{name}").read_bytes()


@pytest.mark.parametrize(
    "identity", ["root", "ROOT", "daemon", "nobody", "eve", "", "../ann", "an n", "ann\0", "\udcff"]
)
def test_system_accounts_are_unknown(system: System, pam: Pam, identity: str) -> None:
    """Whatever PAM answers: a decoy is checked instead, which takes the same time."""
    assert refused(pam, identity) == "unknown-user"
    assert {each.user for each in system.asked} == {"restante-nobody"}
    system.answer(7)
    assert refused(pam, identity) == "unknown-user"
    assert asyncio.run(pam.account(identity)) is None


def test_refusals_of_pam_are_wrong_passwords(system: System, pam: Pam) -> None:
    for answer, reason in {
        6: "permission",
        7: "bad-password",
        8: "bad-password",
        10: "unknown-user",
        11: "bad-password",
        12: "password-expired",
        13: "account-expired",
        27: "password-expired",
    }.items():
        system.answer(answer)
        assert refused(pam, "ann") == reason
    system.answer(0)
    assert refused(pam, "ann", "expired") == "account-expired"


def test_errors_of_pam_are_temporary_failures(system: System, pam: Pam) -> None:
    for answer in 1, 2, 3, 4, 5, 9, 19, 26, 28, 99:
        system.answer(answer)
        for identity in "ann", "eve":
            assert unavailable(pam, identity) == "pam: its words"


def test_user_lookup_failure_of_the_system_is_temporary(system: System, pam: Pam) -> None:
    system.down = True
    unavailable(pam, "ann")
    with pytest.raises(BackendUnavailable):
        asyncio.run(pam.account("ann"))


def test_users_act_for_themselves_only(system: System, pam: Pam) -> None:
    assert refused(pam, "ann", authorization="eve") == "authorization"
    assert refused(pam, "ann", "") == "impossible-password"
    assert refused(pam, "ann", "restante\0ann\0") == "impossible-password"
    assert system.asked == []


def test_missing_pam_library_is_a_temporary_failure(system: System, pam: Pam) -> None:
    library = system.folder / "pamela.py"
    library.write_text("raise ImportError")
    assert "restante[pam]" in unavailable(pam, "ann")
    with closing(Pam("restante")) as another:
        library.write_text("raise AttributeError('pam_start')")  # ctypes, without the library
        assert unavailable(another, "ann") == "pam: AttributeError: pam_start"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("crash", "ended by SIGSEGV"),
        ("abort", "ended by SIGABRT"),
        ("exit", "the check ended without an answer"),
        ("exit 7", "exit status 7"),
        ("raise", "exit status 70"),
        ("close", "exit status 70"),
        ("fork", "ended by SIGSEGV"),
    ],
)
def test_broken_module_affects_only_its_own_check(
    system: System, pam: Pam, kind: str, reason: str
) -> None:
    """As a temporary failure, also for a user who does not exist; the next check is as usual."""
    assert unavailable(pam, "ann", kind) == f"pam: {reason}"
    assert unavailable(pam, "eve", kind) == f"pam: {reason}"
    assert log_in(pam, "ann") == ANN
    assert len({each.helper for each in system.asked}) == 1
    (system.folder / "go").touch()


def test_a_module_that_hangs_is_killed_at_the_deadline(system: System, pam: Pam) -> None:
    async def main() -> None:
        await pam.verify(shown("ann"))  # the helper is there
        with pytest.raises(BackendUnavailable) as raised:
            await Chain({"pam": pam}, deadline=0.3).verify(shown("ann", "hang"))
        assert raised.value.reason == "pam: no answer in 0.3 s"
        hung = (await system.until_asked(3))[-1]
        await until(lambda: not is_there(hung.process))
        assert is_there(hung.helper)

    asyncio.run(main())


def test_modules_that_hang_do_not_delay_other_checks(system: System, pam: Pam) -> None:
    """At most 16 checks run at a time; the callers that give up make room."""

    async def main() -> None:
        async with hanging(system, pam, 15):
            assert await pam.verify(shown("ann")) == ANN
        async with hanging(system, pam, 16):
            ann = asyncio.create_task(pam.verify(shown("ann")))
            await asyncio.sleep(0.05)
            assert not ann.done()
        assert await ann == ANN
        hung = {each.process for each in system.asked if each.password == "hang"}
        await until(lambda: not any(map(is_there, hung)))

    asyncio.run(main())


def test_a_helper_that_is_killed_is_replaced(system: System, pam: Pam) -> None:
    async def main() -> None:
        await pam.verify(shown("ann"))
        helper = system.asked[-1].helper
        for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            os.kill(helper, number)
            assert await pam.verify(shown("ann")) == ANN
        assert {each.helper for each in system.asked} == {helper}
        os.kill(helper, signal.SIGKILL)
        with suppress(BackendUnavailable):  # it may take this one along
            await pam.verify(shown("ann"))
        assert await pam.verify(shown("ann")) == ANN

    asyncio.run(main())


def test_a_helper_that_is_stopped_is_replaced_and_delays_no_loop(system: System, pam: Pam) -> None:
    """When the socket to it is full, which takes some hundred logins that were given up."""

    async def main() -> None:
        await pam.verify(shown("ann"))
        os.kill(system.asked[-1].helper, signal.SIGSTOP)
        for _ in range(1000):  # a busy machine starts the new helper late
            tries = [asyncio.wait_for(pam.verify(shown("ann")), 0.02) for _ in range(16)]
            if ANN in await asyncio.gather(*tries, return_exceptions=True):
                return
        pytest.fail("it was not replaced")

    asyncio.run(main())


@asynccontextmanager
async def hanging(system: System, pam: Pam, count: int = 1) -> AsyncIterator[None]:
    """This many checks hang."""
    already = len(system.asked)
    checks = [asyncio.create_task(pam.verify(shown("ann", "hang"))) for _ in range(count)]
    await system.until_asked(already + count)
    yield
    for each in checks:
        each.cancel()
    await asyncio.gather(*checks, return_exceptions=True)
