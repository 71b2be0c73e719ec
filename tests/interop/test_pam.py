"""PAM with a temporary service of this system."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from restante.auth.chain import Chain
from restante.auth.pam import Pam
from restante.errors import AuthenticationFailed, BackendUnavailable
from restante.passdb import Credentials, UserAccount

from .programs import missing

pytestmark = pytest.mark.interop
Service = Callable[[str], Pam]

# Runs a script, whose exit code decides whether the user may log in.
CHECKED = """
auth [success=1 default=ignore] pam_exec.so quiet expose_authtok {script}
auth requisite pam_deny.so
auth required pam_permit.so
account required {account}
"""
SCRIPT = """#!/bin/sh
password=$(tr -d '\\0')
echo "$PAM_USER" >> {folder}/asked
[ "$PAM_USER" = daemon ] && [ "$password" = "tan staaf" ]
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Make a service for the users of the system with uid 1 and above."""
    if os.geteuid() != 0 or not Path("/etc/pam.d").is_dir():
        missing("PAM can be configured by root only")
    path = Path(f"/etc/pam.d/restante-test-{os.getpid()}")

    with ExitStack() as stack:
        stack.callback(path.unlink, missing_ok=True)

        def make(text: str) -> Pam:
            path.write_text(text)
            return stack.enter_context(closing(Pam(path.name, first_uid=1)))

        yield make


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "check"
    path.write_text(SCRIPT.format(folder=tmp_path))
    path.chmod(0o755)
    return path


def verify(pam: Pam, identity: str, password: str, deadline: float = 20.0) -> UserAccount:
    chain = Chain({"pam": pam}, deadline=deadline)
    return asyncio.run(chain.verify(Credentials("PLAIN", identity, password)))


def test_pam_decides(service: Service, script: Path) -> None:
    pam = service(CHECKED.format(script=script, account="pam_permit.so"))
    assert verify(pam, "daemon", "tan staaf") == UserAccount("daemon", "daemon")
    for identity, password in (("daemon", "wrong"), ("bin", "tan staaf"), ("root", "tan staaf")):
        with pytest.raises(AuthenticationFailed):
            verify(pam, identity, password)
    asked = (script.parent / "asked").read_text().split()
    assert asked == ["daemon", "daemon", "bin", "restante-nobody"]


def test_the_account_must_be_good_too(service: Service, script: Path) -> None:
    pam = service(CHECKED.format(script=script, account="pam_deny.so"))
    with pytest.raises(AuthenticationFailed):
        verify(pam, "daemon", "tan staaf")


def test_a_module_that_fails_makes_no_password_wrong(service: Service) -> None:
    pam = service(
        "auth required pam_exec.so quiet /nowhere/check\naccount required pam_permit.so\n"
    )
    with pytest.raises(BackendUnavailable) as raised:
        verify(pam, "daemon", "tan staaf")
    assert raised.value.reason.startswith("pam: ")


def test_module_that_hangs_is_abandoned_at_the_deadline(service: Service, tmp_path: Path) -> None:
    (tmp_path / "slow").write_text("#!/bin/sh\nexec sleep 5\n")
    (tmp_path / "slow").chmod(0o755)
    pam = service(f"auth required pam_exec.so quiet {tmp_path}/slow\n")
    with pytest.raises(BackendUnavailable) as raised:
        verify(pam, "daemon", "tan staaf", deadline=0.2)
    assert raised.value.reason == "pam: no answer in 0.2 s"
