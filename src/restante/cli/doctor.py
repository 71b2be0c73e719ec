"""``restante doctor``: examine the installation, and show how to fix each fault."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import wrap

from .. import config as config_module
from .. import sysexits
from ..app import privileges
from ..app.doctor import separation
from ..app.doctor.checks import CHECKS, examine, outcome
from ..app.doctor.files import permission_denied, user_name
from ..app.doctor.findings import Finding, Level, Subject, error, not_checked
from ..app.doctor.repairs import CannotRepair, Repair
from ..errors import ConfigurationError
from ..escaping import printable
from ..words import counted
from . import common

_WIDTH = 80  # columns
_MARKS = {Level.OK: "✓", Level.WARNING: "!", Level.ERROR: "✗", Level.NOT_CHECKED: "-"}
_ASCII_MARKS = {**_MARKS, Level.OK: "+", Level.ERROR: "x"}
_NAME_WIDTH = max(len(check.name) for check in CHECKS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Examine this installation: the configuration, files, the running server and its "
        "listeners, storage, users, and the environment of the server. Each fault is printed with "
        "a command that fixes it. Nothing is changed without --fix. Run this command as root or as "
        "the server's user. The exit code is 0 if there is no fault, and 1 if there are only "
        "warnings."
    )
    parser.add_argument(
        "--fix",
        action="store_true",
        help="repair permissions and owners of the server's files, missing directories, stale "
        "sockets and disabled units; print each change, and examine again",
    )
    parser.add_argument(
        "--ntp", metavar="HOST", default="", help="compare the clock with this NTP server"
    )
    parser.add_argument(
        "--mta-user",
        metavar="NAME",
        default="postfix",
        help="the operating system's user that delivers mail over LMTP (default: postfix)",
    )
    parser.add_argument(
        "--round-trip",
        metavar="USER",
        default="",
        help="deliver a test message to this user, fetch it with a temporary app password, and "
        "delete it; no other mail is touched",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings, and return 0, 1 for warnings, or the most serious error's exit code."""
    with common.signals_as_interrupts():
        findings = _examined(options)
        repaired, refused = _repair(findings) if options.fix else ([], [])
        if repaired:
            if not options.json:
                print()
            findings = _examined(options)
    if options.json:
        rows = [each.as_json() for each in findings]
        commands = [each.command for each in repaired]
        common.print_json("doctor", findings=rows, fixed=commands, not_fixed=refused)
        return outcome(findings)
    print(f"\n{_summary(findings)}")
    if not options.fix and any(each.repair for each in findings):
        print("restante doctor --fix can fix some of them.")
    return outcome(findings)


def _examined(options: argparse.Namespace) -> list[Finding]:
    """Run all checks, and print each finding unless JSON is printed at the end."""
    findings = []
    for finding in _findings(options):
        findings.append(finding)
        if not options.json:
            _print(finding)
    return findings


def _repair(findings: Sequence[Finding]) -> tuple[list[Repair], list[str]]:
    """Make the changes of ``--fix``, report each, and return them and why others were not made."""
    repaired, refused = [], []
    for repair in dict.fromkeys(each.repair for each in findings if each.repair):
        try:
            repair.make()
        except CannotRepair as failure:
            refused.append(f"{repair.command}: {failure}")
            common.say(f"restante doctor: not fixed: {printable(refused[-1])}")
        else:
            repaired.append(repair)
            common.say(f"restante doctor: fixed: {printable(repair.command)}")
    return repaired, refused


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    try:
        config = config_module.load(options.config)
        account = privileges.server_account(config) if privileges.is_root() else None
    except (PermissionError, ConfigurationError) as failure:
        yield from _unusable_configuration(failure)
        yield replace(not_checked("the configuration cannot be used"), check="others")
        return
    owner = account.pw_uid if account else os.geteuid()
    if not privileges.is_root() and (reason := _wrong_user(config.state)):
        yield replace(error(sysexits.EX_NOPERM, reason, "sudo restante doctor"), check="files")
        return
    subject = Subject(
        config, owner, ntp=options.ntp, mta=options.mta_user, round_trip=options.round_trip
    )
    with_own_rights = examine(subject, [check for check in CHECKS if not check.as_root])
    yield from separation.as_user(account, with_own_rights) if account else with_own_rights
    yield from examine(subject, [check for check in CHECKS if check.as_root])


def _wrong_user(state: Path) -> str:
    """Return why the current user cannot examine the installation; empty if it is the server's."""
    try:
        uid = state.stat().st_uid
    except FileNotFoundError:  # the server has never run
        return ""
    except PermissionError:
        return f"{state} cannot be examined by this user"
    if uid == os.geteuid():
        return ""
    return f"{state} belongs to {user_name(uid)}; only this user and root can examine it"


def _unusable_configuration(failure: PermissionError | ConfigurationError) -> Iterator[Finding]:
    cause = failure.__cause__ or failure
    if isinstance(cause, PermissionError) and cause.filename:
        found = [permission_denied(Path(cause.filename), os.geteuid())]
    else:
        # The texts about owners end with the command that helps.
        rows = [line.partition(" Run: ") for line in str(failure).splitlines()]
        found = [
            error(sysexits.EX_CONFIG, text, command or "restante check")
            for text, _, command in rows
        ]
    for each in found:
        yield replace(each, check="configuration")


def _print(finding: Finding) -> None:
    marks = _MARKS if _can_print("✓✗") else _ASCII_MARKS
    text = finding.text
    if finding.level is Level.NOT_CHECKED:
        text = f"not checked: {text}"
    margin = " " * (_NAME_WIDTH + 4)
    first = f"{marks[finding.level]} {finding.check:<{_NAME_WIDTH}}  "
    lines = wrap(
        printable(text), _WIDTH - len(margin), break_long_words=False, break_on_hyphens=False
    )
    for number, line in enumerate(lines):
        print(f"{margin if number else first}{line}")
    if finding.command:
        print(f"{margin}next: {printable(finding.command)}", flush=True)


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeError):
        return False
    return True


def _summary(findings: Sequence[Finding]) -> str:
    """Return the numbers of findings, such as "12 well, 1 warning, 0 errors, 3 not checked."."""
    count = {level: sum(each.level is level for each in findings) for level in Level}
    warnings = counted(count[Level.WARNING], "warning")
    errors = counted(count[Level.ERROR], "error")
    return f"{count[Level.OK]} well, {warnings}, {errors}, {count[Level.NOT_CHECKED]} not checked."
