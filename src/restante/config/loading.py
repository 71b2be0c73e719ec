"""Reading the configuration: from files, the environment and the command line.

Precedence: defaults < file < ``conf.d/*.toml`` beside it, by name < environment
(``RESTANTE__SERVER__HOSTNAME``) < command line.
An unknown key is an error, never ignored: a typing error in ``hold`` must not cost mail.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from ..collect import providers
from ..errors import ConfigurationError
from ..regular import read_regular
from ..server.address import MAX_SOCKET_PATH
from .contradictions import contradictions, readable_secrets
from .schema import Account, Configuration, options
from .values import BadValue

SYSTEM = (Path("/etc"), Path("/var/lib/restante"))
"""Where the file of a service lies, and its state directory, as contrib/systemd has it."""
_PREFIX = "RESTANTE__"


def load(
    named: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> Configuration:
    """The configuration in force.

    ``named`` is a file that must exist; else RESTANTE_CONFIG, the user's and the system's are
    looked for.  ``overrides`` are values from the command line, by dotted key.

    Raises:
        ConfigurationError: every mistake, a line each, with file, line and key.
    """
    found = _find(named, environment)
    source = found.absolute() if found else None  # a reload may come in another directory
    state = _state(source, environment)
    folder = _folder(source, environment)
    layers = [_read(source) if source else _private(state)]
    layers += (_read(path) for path in sorted(folder.glob("*.toml")))
    for name, value in environment.items():
        if name.startswith(_PREFIX):
            path = name.removeprefix(_PREFIX).lower().split("__")
            layers.append(_Layer(name, _nested(path, value)))
    for key, value in (overrides or {}).items():
        layers.append(_Layer("command line", _nested(key.split("."), value)))
    return _build(layers, source, folder, state)


def ephemeral(folder: Path) -> Configuration:
    """For tests and the demo: everything in ``folder``, every port chosen by the system."""
    lmtp, smtp = ["127.0.0.1:0"], "127.0.0.1:0"
    if len(os.fsencode(path := f"{folder}/lmtp.sock")) <= MAX_SOCKET_PATH:
        lmtp.insert(0, f"unix:{path}")  # the folder for temporary files may lie deep
    tree = {
        "server": {"listen": ["pop3s://127.0.0.1:0", "pop3://127.0.0.1:0"]},
        "intake": {"lmtp": {"listen": lmtp}, "smtp": {"listen": smtp}},
        "log": {"level": "warning"},
    }
    return _build([_Layer("configuration", tree)], None, folder, folder)


class _Layer(NamedTuple):
    """Values from one place."""

    name: str
    tree: dict[str, Any]
    text: str = ""
    """Of the file, to find the line of a key."""


def _private(state: Path) -> _Layer:
    """What serves one person on one machine, without a file."""
    lmtp, smtp = f"unix:{state}/lmtp.sock", "127.0.0.1:2525"
    tree = {"intake": {"lmtp": {"listen": lmtp}, "smtp": {"listen": smtp}}}
    return _Layer("configuration", tree)


def _find(named: Path | None, environment: Mapping[str, str]) -> Path | None:
    if named is None and environment.get("RESTANTE_CONFIG"):
        named = Path(environment["RESTANTE_CONFIG"])
    if named is not None:
        return named
    usual = [SYSTEM[0] / "restante" / "restante.toml"]
    with suppress(ConfigurationError):  # no home, so there is nothing in it
        home = _home(environment, "XDG_CONFIG_HOME", ".config")
        usual.insert(0, home / "restante" / "restante.toml")
    return next((path for path in usual if os.path.exists(path)), None)


def _state(source: Path | None, environment: Mapping[str, str]) -> Path:
    """What somebody types beside a service must find what that service writes."""
    if given := environment.get("STATE_DIRECTORY"):  # several are possible, systemd.exec(5)
        return Path(given.partition(":")[0]).absolute()
    folder, state = SYSTEM
    if source is not None and source.is_relative_to(folder):
        return state
    return _home(environment, "XDG_STATE_HOME", ".local/state") / "restante"


def _home(environment: Mapping[str, str], name: str, usual: str) -> Path:
    if given := environment.get(name):
        return Path(given).absolute()
    try:
        return Path.home() / usual
    except RuntimeError:
        raise ConfigurationError(f"this user has no home directory; next: set {name}") from None


def _folder(source: Path | None, environment: Mapping[str, str]) -> Path:
    if source is not None:
        return source.parent / "conf.d"
    with suppress(ConfigurationError):
        return _home(environment, "XDG_CONFIG_HOME", ".config") / "restante" / "conf.d"
    return Path("/etc/restante/conf.d")


def _read(source: Path) -> _Layer:
    try:
        text = read_regular(source).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        return _Layer(str(source), tomllib.loads(text), text)
    except OSError as error:
        raise ConfigurationError(f"{source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source}: is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source}: {error}") from error


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        merged[name] = _merge(merged.get(name, {}), value) if isinstance(value, dict) else value
    return merged


def _build(
    layers: Sequence[_Layer], source: Path | None, folder: Path, state: Path
) -> Configuration:
    told: list[str] = []
    for layer in layers:
        mistakes: list[str] = []
        values = _section(Configuration, layer.tree, (), mistakes)
        if layer.text and os.stat(layer.name).st_mode & 0o077:
            mistakes += readable_secrets(layer.name, values)
        told += (_told(layer, mistake) for mistake in mistakes)
    if told:
        raise ConfigurationError("\n".join(told))
    made = {"store": {"path": f"{state}/mail/%u"}, "auth": {"users": f"{state}/users.sqlite3"}}
    tree = reduce(_merge, (layer.tree for layer in layers), made)
    configuration = Configuration(
        **_section(Configuration, tree, (), []), source=source, folder=folder, state=state
    )
    located = {name: _located(account) for name, account in configuration.account.items()}
    configuration = replace(configuration, account=located)
    told += (_told(_last(layers, each), each) for each in contradictions(configuration))
    if told:
        raise ConfigurationError("\n".join(told))
    return configuration


def _located(account: Account) -> Account:
    """Where a well-known provider's mail is, its address tells."""
    known = providers.by_domain(account.user.rpartition("@")[2])
    if account.url or known is None or not known.host:
        return account
    return replace(account, url=f"pop3s://{known.host}")


def _section(
    kind: type[Any], tree: Mapping[str, Any], path: tuple[str, ...], mistakes: list[str]
) -> dict[str, Any]:
    known = {each.name: each for each in options(kind)}
    values: dict[str, Any] = {}
    for name, value in tree.items():
        key = ".".join((*path, name))
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            mistakes.append(
                f"{key}: unknown option" + "".join(f"; did you mean {n}?" for n in near)
            )
        elif named := known[name].metadata.get("named"):
            values[name] = _named(named, value, (*path, name), mistakes)
        elif is_dataclass(section := known[name].default_factory):
            if isinstance(value, dict):
                assert isinstance(section, type)
                values[name] = section(**_section(section, value, (*path, name), mistakes))
            else:
                mistakes.append(f"{key}: is a section; write [{key}]")
        else:
            try:
                values[name] = known[name].metadata["convert"](value)
            except BadValue as error:
                mistakes.append(f"{key}: {error}")
    return values


def _named(
    kind: type[Any], value: Any, path: tuple[str, ...], mistakes: list[str]
) -> dict[str, Any]:
    """Sections of one kind whose names are the writer's: ``[account.isp]``."""
    found = value if isinstance(value, dict) else {"": value}
    for name, section in found.items():
        if not isinstance(section, dict) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            mistakes.append(f"{path[-1]}: is a section with a name; write [{path[-1]}.isp]")
            return {}
    return {
        name: kind(**_section(kind, section, (*path, name), mistakes))
        for name, section in found.items()
    }


def _told(layer: _Layer, mistake: str) -> str:
    return f"{layer.name}{_line_of(layer.text, _path(mistake))}: {mistake}"


def _last(layers: Sequence[_Layer], mistake: str) -> _Layer:
    """The layer whose value of a key is in force."""
    return next((each for each in reversed(layers) if _holds(each.tree, mistake)), layers[0])


def _holds(tree: Any, mistake: str) -> bool:
    for name in _path(mistake):
        if name not in tree:
            return False
        tree = tree[name]
    return True


def _path(mistake: str) -> list[str]:
    return mistake.partition(":")[0].split(".")


def _line_of(text: str, path: Sequence[str]) -> str:
    """``:12``, where a key stands; tomllib does not tell."""
    *sections, key = path
    wanted, current = ".".join(sections), ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if header := re.match(r"\[+\s*([^\]]+?)\s*\]", line):
            current = header[1]
            if current == ".".join((*sections, key)):
                return f":{number}"
        elif current == wanted and re.match(rf"[\"']?{re.escape(key)}[\"']?\s*=", line):
            return f":{number}"
    return ""
