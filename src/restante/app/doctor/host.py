"""Check what surrounds the server: units of systemd, fail2ban, the package, other servers."""

from __future__ import annotations

import base64
import csv
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from ... import log, sysexits
from ...words import counted
from .findings import Finding, Subject, error, not_checked, ok, warning
from .repairs import Repair

_UNITS = "restante.service", "restante.socket"
_COLLECTOR = "restante-collect.service"
_UNIT_FOLDERS = "etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"
_NAMED = 3  # changed files that are named
_REINSTALL = {
    "deb": "apt install --reinstall restante",
    "wheel": "pip install --force-reinstall restante",
}


# systemd


def units(subject: Subject) -> Iterator[Finding]:
    """Check that the server is started again after a reboot."""
    if not (subject.system / "run/systemd/system").is_dir():
        yield not_checked("systemd does not run on this machine")
    elif subject.config.state != subject.service_state:
        yield not_checked(f"the state of the service is in {subject.service_state}")
    elif not _exists(subject, _UNITS[0]):
        yield not_checked(f"there is no unit {_UNITS[0]}")
    else:
        found = [*_disabled(subject, _UNITS)]
        if subject.config.account and _exists(subject, _COLLECTOR):
            found += _disabled(subject, [_COLLECTOR])
        yield from found
        if not found:
            yield ok("the server starts when the machine boots")


def _exists(subject: Subject, unit: str) -> bool:
    return any((subject.system / folder / unit).exists() for folder in _UNIT_FOLDERS)


def _disabled(subject: Subject, names: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding unless one of these units is enabled (systemd.unit(5))."""
    folder = subject.system / _UNIT_FOLDERS[0]
    for name in names:
        link = folder / name
        if link.is_symlink() and os.readlink(link) == "/dev/null":
            command = f"systemctl unmask {name}"
            yield error(sysexits.EX_UNAVAILABLE, f"the unit {name} is masked", command)
            return
    # An enabled unit has a link in a directory of the unit that starts it.
    enabled = {path.name for path in folder.glob("*.target.*/*")}
    if enabled.isdisjoint(names):
        text = f"the unit {names[0]} is not enabled: it does not start when the machine boots"
        yield warning(text, repair=Repair("enable", names[0]))


# fail2ban


def fail2ban(subject: Subject) -> Iterator[Finding]:
    """Check that the filter of fail2ban matches the server's own line about a refused login."""
    folder = subject.system / "etc/fail2ban"
    if not (folder / "jail.conf").exists():
        yield not_checked("fail2ban is not installed")
        return
    if not _has_jail(folder):
        yield not_checked("no jail [restante] is enabled in /etc/fail2ban")
        return
    path, copy = folder / "filter.d/restante.conf", "copy contrib/fail2ban/restante.conf there"
    try:
        expressions = _expressions(path.read_text("utf-8", "replace"))
    except OSError as failure:
        yield warning(f"{path}: {failure.strerror}, but there is a jail [restante]", copy)
        return
    line = _refusal(subject)
    if any(_matches(each, line) for each in expressions):
        yield ok("the filter of fail2ban matches refused logins")
    elif subject.config.log.format == "json":
        text = "the filter of fail2ban does not match, because log.format is json"
        yield warning(text, 'set format = "journal" under [log]')
    else:
        yield warning(f"{path} does not match the server's line: {line}", copy)


def _has_jail(folder: Path) -> bool:
    jails = [folder / "jail.local", *sorted((folder / "jail.d").glob("*.conf"))]
    jails += sorted((folder / "jail.d").glob("*.local"))
    is_enabled = False
    for path in jails:
        with suppress(OSError):
            text = path.read_text("utf-8", "replace")
            section = re.search(r"^\[restante\]$(.*?)(?=^\[|\Z)", text, re.M | re.S)
            value = section and re.search(r"^\s*enabled\s*=\s*(\w+)", section[1], re.M)
            if value:
                is_enabled = value[1].lower() in ("true", "1", "yes", "on")
    return is_enabled


def _expressions(text: str) -> list[str]:
    """Return the expressions of a filter, with a pattern in place of fail2ban's own tags."""
    section = re.search(r"^failregex\s*=(.*?)(?=^\S|\Z)", text, re.M | re.S)
    lines = section[1].splitlines() if section else []
    address = r"(?P<address>[0-9A-Fa-f:.]+)"
    return [re.sub("<(ADDR|HOST|IP4|IP6)>", lambda _: address, line.strip()) for line in lines]


def _matches(expression: str, line: str) -> bool:
    with suppress(re.error, IndexError):
        match = re.search(expression, line) if expression else None
        return match is not None and match["address"] == "192.0.2.7"
    return False


def _refusal(subject: Subject) -> str:
    """Return the line that the server logs about a refused login, as fail2ban sees it."""
    record = logging.makeLogRecord({"msg": "login refused", "levelno": logging.WARNING})
    record.fields = {"ip": "192.0.2.7", "user": "ann", "reason": "bad-password"}
    is_json = subject.config.log.format == "json"
    formatter = log.JSON if is_json else log.Plain(with_time=False)
    return formatter.format(record)


# The package


def package(subject: Subject) -> Iterator[Finding]:
    """Check that the files of the program are those of the package."""
    sums = subject.system / "var/lib/dpkg/info/restante.md5sums"
    if sums.exists() and str(_program()).startswith("/usr/lib/restante"):
        yield from _report(_changed_in_deb(sums, subject.system), "deb")
        return
    try:
        installed = distribution("restante")
    except PackageNotFoundError:
        yield not_checked("the program was not installed from a package")
        return
    if '"editable": true' in (installed.read_text("direct_url.json") or ""):
        yield not_checked("the program runs from a checkout")
    else:
        yield from changed_in_wheel(installed)


def _program() -> Path:
    return Path(__file__).parents[2]


def changed_in_wheel(installed: Distribution) -> Iterator[Finding]:
    """Compare the modules of an installed wheel with its RECORD.

    Manual pages and scripts are left out, because ``pip install --target`` puts them elsewhere.
    """
    # Not ``installed.files``, which leaves out missing files since Python 3.12.
    record = (installed.read_text("RECORD") or "").splitlines()
    changed, number = [], 0
    for name, checksum, _ in csv.reader(record):
        if not name.startswith("restante/") or not checksum.startswith("sha256="):
            continue
        number += 1
        path = Path(str(installed.locate_file(name)))
        try:
            digest = hashlib.sha256(path.read_bytes()).digest()
        except OSError:
            changed.append(str(path))
            continue
        encoded = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if encoded != checksum.removeprefix("sha256="):
            changed.append(str(path))
    if not number:
        yield not_checked("the package has no record of its files")
    else:
        yield from _report(changed, "wheel")


def _changed_in_deb(sums: Path, system: Path) -> list[str]:
    changed = []
    for line in sums.read_text().splitlines():
        expected, _, name = line.partition("  ")
        try:
            digest = hashlib.md5((system / name).read_bytes(), usedforsecurity=False).hexdigest()
        except OSError:
            digest = ""
        if digest != expected:
            changed.append(f"/{name}")
    return changed


def _report(changed: Sequence[str], kind: str) -> Iterator[Finding]:
    if not changed:
        yield ok("the files of the program are unchanged")
        return
    names = ", ".join(changed[:_NAMED]) + (", …" if len(changed) > _NAMED else "")
    number = counted(len(changed), "file")
    yield warning(f"{number} of the program changed or missing: {names}", _REINSTALL[kind])


# Other servers


def processes(subject: Subject) -> Iterator[Finding]:
    """Find another server with the same configuration file."""
    workers = subject.status["workers"] if subject.status else []
    if subject.status is None or any("missing" in each for each in workers):
        yield not_checked("the processes of the server are not known")
        return
    own = {subject.status["pid"], *(each["pid"] for each in workers)}
    others = []
    for path in (subject.system / "proc").glob("[0-9]*/cmdline"):
        with suppress(OSError, ValueError):
            pid = int(path.parent.name)
            words = path.read_bytes().decode("utf-8", "replace").split("\0")
            if pid not in own and _serves(words, subject.config.source):
                others.append(pid)
    if others:
        listed = ", ".join(map(str, sorted(others)))
        text = f"another restante serves {subject.config.source}: process {listed}"
        yield warning(text, f"ps -fp {min(others)}")
    else:
        yield ok("no other restante serves this configuration")


def _serves(words: Sequence[str], source: Path | None) -> bool:
    """Return whether a command line is that of a server with this configuration file."""
    is_server = "serve" in words and any(Path(each).name == "restante" for each in words[:4])
    return is_server and source is not None and str(source) in words
