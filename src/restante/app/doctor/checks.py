"""The table of checks, and how they are run."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ... import sysexits
from ..failures import describe, exit_code, most_serious
from . import accounts, backends, clock, dns, files, host, intake, round_trip, server
from .findings import Check, Finding, Level, Subject, error, not_checked

# In the order of the output: first what everything else depends on.
CHECKS = (
    Check("configuration", files.configuration),
    Check("files", files.files),
    Check("server", server.server),
    Check("listen", server.listen),
    Check("tls", server.tls),
    Check("limits", server.limits),
    Check("clock", clock.clock),
    Check("store", files.store),
    Check("users", files.users),
    Check("back-ends", backends.back_ends),
    Check("lmtp", intake.lmtp),
    Check("dns", dns.dns),
    Check("accounts", accounts.accounts),
    Check("units", host.units),
    Check("fail2ban", host.fail2ban),
    Check("package", host.package),
    Check("processes", host.processes, as_root=True),  # sees the processes of all users
    Check("round-trip", round_trip.round_trip),
    Check("lmtp-rights", intake.lmtp_rights, as_root=True),
)
DEADLINE = 60.0  # seconds for each check; a disk or a back end may hang


def examine(
    subject: Subject, checks: Iterable[Check] = CHECKS, *, deadline: float = DEADLINE
) -> Iterator[Finding]:
    """Run the checks in this order, and yield what they find.  Does not raise."""
    for check in checks:
        yield from _run(check, subject, deadline)


def _run(check: Check, subject: Subject, deadline: float) -> Iterator[Finding]:
    """Run a check in a thread, so that it can be abandoned if it hangs."""
    found: list[Finding] = []
    has_ended = threading.Event()

    def work() -> None:
        try:
            found.extend(check.run(subject))
        except Exception as failure:
            found.append(error(exit_code(failure), describe(failure)))
        finally:
            has_ended.set()

    threading.Thread(target=work, name=f"doctor {check.name}", daemon=True).start()
    try:
        has_ended.wait(deadline)  # after Ctrl-C, Thread.join does not wait again (bpo-45274)
    except BaseException:
        has_ended.wait(deadline)  # the check undoes what it did
        raise
    results = list(found)
    if not has_ended.is_set():
        text = f"this check has not finished within {deadline:.0f} seconds"
        results.append(error(sysexits.EX_TEMPFAIL, text))
    for finding in results or [not_checked("there is nothing to check")]:
        yield replace(finding, check=check.name)


def outcome(findings: Sequence[Finding]) -> int:
    """Return the exit code of ``restante doctor``: 0, 1 for warnings, or that of the errors."""
    codes = [each.code for each in findings if each.level is Level.ERROR]
    if codes:
        return most_serious(codes)
    return int(any(each.level is Level.WARNING for each in findings))
