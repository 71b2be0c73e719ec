"""Set up a server: plan its configuration and the missing steps, and carry them out.

``plan`` and ``check`` change nothing.  ``missing_steps`` returns the steps that are
not done yet, so that a second run completes a run that was interrupted.  No step overwrites a file.

Security: everything in directories of the server's user is done by this user (``privileges``), so
root follows no link that another user has created.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import config as config_module
from .. import tls
from ..auth.names import check_new_name
from ..config import SYSTEM, Configuration, toml
from ..config.values import BadValue, hostname
from ..errors import ConfigurationError, NoMaildrop, TemporaryFailure, UnsafeArgument
from ..regular import read_regular
from ..server.address import Address
from ..server.binding import bind
from ..store.paths import Template
from . import backends, privileges, server, stores

if TYPE_CHECKING:
    from pwd import struct_passwd

MAIL_SOURCES = ("lmtp", "smtp", "none")
"""How mail arrives: from a mail server over LMTP, from other servers over SMTP, or not at all."""
# Addresses for POP3, LMTP and SMTP.  Ports below 1024 are not available in a container and to
# ordinary users.  On this machine, LMTP has a port that only root can take while the server is
# down, because any user could otherwise receive the mail.
_ADDRESSES = {
    "system": ("pop3s://[::]:995", "127.0.0.1:24", "[::]:25"),
    "container": ("pop3s://[::]:1995", "[::]:2424", "[::]:2525"),
    "private": ("pop3s://127.0.0.1:1995", "127.0.0.1:2424", "127.0.0.1:2525"),
}
_SYSTEM_MAIL = "/var/mail/restante"
_SYSTEMD = Path("/run/systemd/system")  # exists while systemd runs (sd_booted(3))
_SECONDS = 120  # for systemctl, which waits until the server is ready


@dataclass(frozen=True, slots=True)
class Choices:
    """The user's decisions."""

    address: str
    """The first user's address."""
    hostname: str
    mail: str
    """One of ``MAIL_SOURCES``."""
    certificate: Path | None = None
    """The certificate and its chain; None creates a self-signed certificate."""
    key: Path | None = None
    starts: bool = True
    """Whether systemd starts the server."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the server is set up."""

    kind: str
    """"system", "container", or "private" for a server of an ordinary user."""
    file: Path
    """The configuration file, which may not exist yet."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration that has been checked, and the user who will own the server's files."""

    choices: Choices
    place: Place
    tree: Mapping[str, Mapping[str, Any]]
    """The values of the configuration file, by section."""
    config: Configuration
    account: struct_passwd | None = None
    """The server's user; None if this process already runs as this user."""
    units: tuple[str, ...] = ()
    """The systemd units to enable and start."""

    @property
    def text(self) -> str:
        """The content of the configuration file."""
        lines = ["# Made by `restante init`. restante.toml(5) explains every option."]
        for section, values in self.tree.items():
            lines += ["", f"[{section}]"]
            lines += [f"{name} = {toml(value)}" for name, value in values.items()]
        return "\n".join([*lines, ""])


class Step(NamedTuple):
    """A step that is not done yet."""

    text: str
    """An imperative sentence, such as "create /var/mail/restante"."""
    act: Callable[[], None]


def place(file: Path | None) -> Place:
    """Return where a server is set up; ``file`` is the configuration file, if the user names it.

    Raises:
        UnsafeArgument: root names a file that is not in /etc.
    """
    is_root = privileges.is_root()
    path = (file or config_module.new_file(is_service=is_root)).absolute()
    if not is_root:
        # The image sets both.  Some desktops also set the first one in their containers.
        names = ("container", "RESTANTE_CONFIG")
        is_contained = all(os.environ.get(name) for name in names)
        return Place("container" if is_contained else "private", path)
    if not path.is_relative_to(SYSTEM[0]):
        raise UnsafeArgument(
            f"{path} is not in {SYSTEM[0]}. Root sets up the server of this machine; run init as "
            "an ordinary user to set up a private server"
        )
    return Place("system", path)


def default_hostname(place: Place, address: str) -> str:
    """Return the host name that is proposed for the server."""
    domain = address.rpartition("@")[2]
    return "localhost" if place.kind == "private" else f"mail.{domain}"


def check_hostname(name: str) -> None:
    """Check a host name for the server.

    Raises:
        UnsafeArgument: the name is invalid.
    """
    try:
        hostname(name)
    except BadValue as error:
        raise UnsafeArgument(f"{name!r} {error}") from error


def plan(place: Place, choices: Choices) -> Plan:
    """Return the plan, without looking at this machine.

    Raises:
        UnsafeArgument, BadName: the address is invalid.
        ConfigurationError: a choice is not a valid value of the configuration.
    """
    name = check_new_name(choices.address)
    if "@" not in name:
        raise UnsafeArgument(f"{name} is not a mail address, such as ann@example.org")
    tree = _tree(place, choices, name.rpartition("@")[2])
    text = Plan(choices, place, tree, Configuration()).text
    config = config_module.load(place.file, text=text)
    try:
        backends.maildrop_check(config)(name)
    except NoMaildrop as error:
        raise UnsafeArgument(f"{name} cannot have a maildrop: the name {error.reason}") from error
    return Plan(choices, place, tree, config)


def check(plan: Plan) -> Plan:
    """Check everything that can be checked before the first change.

    Returns the plan with the server's user and the units.

    Raises:
        ConfigurationError: the existing configuration differs, or a precondition is missing, such
            as an account, a unit, a readable certificate or a free port.
    """
    place, choices, config = plan.place, plan.choices, plan.config
    _refuse_differences(place.file, plan.tree)
    account = _account(config) if place.kind == "system" else None
    units = _units(choices) if place == Place("system", _system_file()) else ()
    if choices.certificate:
        privileges.run_as(account, lambda: _check_certificate(config))
    checked = replace(plan, account=account, units=units)
    if not place.file.exists():
        _check_ports(checked)
    return checked


def _system_file() -> Path:
    """Return the configuration file that the units name."""
    return SYSTEM[0] / "restante" / "restante.toml"


def _tree(place: Place, choices: Choices, domain: str) -> dict[str, dict[str, Any]]:
    """Return the few values of the configuration file that are not defaults."""
    pop3s, lmtp, smtp = _ADDRESSES[place.kind]
    paths = {"system": _SYSTEM_MAIL, "container": f"{place.file.parent}/mail"}
    tree: dict[str, dict[str, Any]] = {
        "server": {"hostname": choices.hostname, "listen": [pop3s]},
        "tls": {"mode": "self"},
    }
    if choices.certificate and choices.key:
        files = {"cert": str(choices.certificate.absolute()), "key": str(choices.key.absolute())}
        tree["tls"] = {"mode": "files", **files}
    if base := paths.get(place.kind):
        tree["store"] = {"path": f"{base}/%d/%n"}
    if choices.mail == "lmtp":
        tree["intake.lmtp"] = {"listen": [lmtp]}
    if choices.mail == "smtp":
        tree["intake.smtp"] = {"listen": [smtp], "domains": [domain]}
    return tree


def _refuse_differences(file: Path, tree: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare an existing configuration file with the plan; more options in the file are allowed.

    Raises:
        ConfigurationError: the file has other values; the text has a line for each of them.
    """
    try:
        present = tomllib.loads(read_regular(file).decode())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    lines = []
    for section, values in tree.items():
        found: Any = present
        for part in section.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        for name, value in values.items():
            if (other := found.get(name) if isinstance(found, dict) else None) != value:
                is_there = "no value" if other is None else toml(other)
                lines.append(f"{section}.{name}: {is_there} in the file, {toml(value)} in the plan")
    if lines:
        header = f"{file} exists and differs from the plan, so nothing was changed:"
        raise ConfigurationError("\n".join([header, *lines]))


def _account(config: Configuration) -> struct_passwd:
    if account := privileges.server_account(config):
        return account
    name = privileges.ACCOUNT
    raise ConfigurationError(
        f"there is no account for the server. Run: adduser --system --group --home {SYSTEM[1]} "
        f"--no-create-home {name}"
    )


def _check_certificate(config: Configuration) -> None:
    """Check the certificate with the rights of the server's user."""
    certificate, key = Path(config.tls.cert), Path(config.tls.key)
    try:
        tls.server_context(certificate, key, config.tls.min_version, can_bind=False)
    except ConfigurationError as error:
        if isinstance(error.__cause__, PermissionError):
            raise ConfigurationError(
                f"{error}. The server's user must be able to read the certificate and the key; "
                "copy them, such as: install -o restante -m 0400 FILES /etc/restante/"
            ) from error
        raise


def _check_ports(plan: Plan) -> None:
    """Check that all ports are free, unless the units already use them.

    Raises:
        CannotListen: another program listens on an address.
    """
    if plan.units and all(_is_unit("is-active", unit) for unit in plan.units):
        return
    config = plan.config
    for text in (*config.server.listen, *config.intake.lmtp.listen, *config.intake.smtp.listen):
        bind(Address.parse(text), "the configuration with -c").close()


# systemd


def has_systemd() -> bool:
    """Return whether systemd runs this machine."""
    return _SYSTEMD.is_dir()


def units_for(choices: Choices) -> tuple[str, ...]:
    """Return the names of the units that serve these choices."""
    sockets = {"lmtp": ("restante-lmtp.socket",), "smtp": ("restante-smtp.socket",)}
    return ("restante.socket", *sockets.get(choices.mail, ()), "restante.service")


def _units(choices: Choices) -> tuple[str, ...]:
    """Return the units that serve these choices; empty without systemd.

    Raises:
        ConfigurationError: a unit is not installed.
    """
    if not choices.starts or not has_systemd():
        return ()
    units = units_for(choices)
    for unit in units:
        if _systemctl("cat", unit).returncode:
            raise ConfigurationError(
                f"the unit {unit} is not installed. Copy it from "
                f"{Path(sys.prefix) / 'share/restante/systemd'} to /etc/systemd/system, or add "
                "--no-start"
            )
    return units


def _is_unit(question: str, unit: str) -> bool:
    return _systemctl(question, "--quiet", unit).returncode == 0


def _systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemctl", "--no-pager", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def _start(units: tuple[str, ...]) -> None:
    """Enable and start the units; the sockets start before the server, which uses them.

    Raises:
        TemporaryFailure: a unit does not start.
    """
    try:
        done = _systemctl("enable", "--now", *units)
    except subprocess.TimeoutExpired as error:
        raise TemporaryFailure(f"systemctl does not answer within {_SECONDS} seconds") from error
    if done.returncode:
        reason = done.stderr.strip() or "systemctl failed"
        raise TemporaryFailure(f"{reason}\nThe log says more: journalctl -u restante")


# Steps


class Setup:
    """Carries out a plan.  The password is known after the user has been created."""

    def __init__(self, plan: Plan, password: str) -> None:
        """``password`` is the first user's password, if the user does not exist yet."""
        self._plan, self._password = plan, password
        self.user = check_new_name(plan.choices.address)
        self.password = ""
        """The password if this run has created the user; otherwise empty."""

    def missing_steps(self) -> list[Step]:
        """Return the steps that are not done yet, in their order."""
        return list(self._missing_steps())

    def _missing_steps(self) -> Iterator[Step]:
        plan, config, account = self._plan, self._plan.config, self._plan.account
        for path, mode, owner in self._directories():
            if not path.is_dir():
                yield Step(f"create the directory {path}", _Directory(path, mode, owner, account))
        if not plan.place.file.exists():
            yield Step(
                f"write {plan.place.file}", lambda: _write(plan.place.file, plan.text, account)
            )
        own = config.state / "tls" / "certificate.pem"
        if config.tls.mode == "self" and not privileges.run_as(account, own.exists):
            yield Step(
                f"create a self-signed certificate for {config.server.hostname}",
                lambda: privileges.run_as(account, lambda: _make_certificate(config)),
            )
        if not privileges.run_as(account, self._has_user):
            yield Step(f"add the user {self.user}", self._add_user)
        units = plan.units
        if not all(_is_unit(word, unit) for unit in units for word in ("is-enabled", "is-active")):
            yield Step(f"enable and start {', '.join(units)}", lambda: _start(units))

    def _directories(self) -> Iterator[tuple[Path, int, bool]]:
        """Yield path, mode, and whether the directory belongs to the server's user."""
        plan, config = self._plan, self._plan.config
        is_system = plan.place.kind == "system"
        yield plan.place.file.parent, 0o750 if is_system else 0o700, not is_system
        yield config.state, 0o700, True
        # `restante account add` writes here as the server's user.
        yield config.folder, 0o700, True
        yield Path(Template(config.store.path).base), 0o700, True

    def _has_user(self) -> bool:
        config = self._plan.config
        if not os.path.exists(config.auth.users):
            return False
        return any(user.name == self.user for user in stores.users(config).list())

    def _add_user(self) -> None:
        def add() -> None:
            stores.users(self._plan.config).add(self.user, self._password)

        privileges.run_as(self._plan.account, add)
        self.password = self._password

    def fingerprint(self) -> str:
        """Return the fingerprint of a self-signed certificate; empty for another certificate."""
        plan = self._plan
        if plan.config.tls.mode != "self":
            return ""
        file = plan.config.state / "tls" / "certificate.pem"
        return str(privileges.run_as(plan.account, lambda: tls.fingerprint(file)))


def _make_certificate(config: Configuration) -> None:
    server.certificate_files(config)


@dataclass(frozen=True, slots=True)
class _Directory:
    """Creates a directory and the directories above it."""

    path: Path
    mode: int
    is_owned: bool
    """Whether it belongs to the server's user, instead of root with the group of this user."""
    account: struct_passwd | None

    def __call__(self) -> None:
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with suppress(FileExistsError):  # because a directory above it was missing, too
            self.path.mkdir(mode=0o700)
        if self.account is None:
            return
        # The descriptor names this directory even if another user replaces it by a link.
        opened = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(opened).st_uid not in (0, self.account.pw_uid):
                raise ConfigurationError(f"another user has created {self.path}")
            owner = self.account.pw_uid if self.is_owned else 0
            os.fchown(opened, owner, self.account.pw_gid)
            os.fchmod(opened, self.mode)
        finally:
            os.close(opened)


def _write(path: Path, text: str, account: struct_passwd | None) -> None:
    """Write a new file durably; root's file is readable for the server's group.

    Raises:
        FileExistsError: the file exists; it was not changed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            if account:
                os.fchown(descriptor, 0, account.pw_gid)
                os.fchmod(descriptor, 0o640)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.link(temporary, path)  # fails if the file exists
    finally:
        temporary.unlink()
