"""Read the configuration from files, the environment and the command line.

Each source overrides the earlier ones: the defaults, the file, ``conf.d/*.toml`` in the file's
directory (sorted by name), the environment (``RESTANTE__SERVER__HOSTNAME``), the command line.
Unknown keys are errors and are never ignored: a typing error in ``hold`` must not lose mail.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigurationError
from ..regular import read_regular
from ..server.address import MAX_SOCKET_PATH
from .contradictions import contradictions, readable_secrets
from .schema import Account, Configuration, options
from .values import BadValue

SYSTEM = (Path("/etc"), Path("/var/lib/restante"))
"""The configuration and state directories of a service, as in contrib/systemd."""
_PREFIX = "RESTANTE__"


def load(
    named: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> Configuration:
    """Load and check the configuration.

    ``named`` is a file that must exist.  Without it, the file named by RESTANTE_CONFIG, the user's
    file, or the system's file is read.  ``overrides`` maps dotted keys to values from the command
    line.

    Raises:
        ConfigurationError: the configuration is invalid; the text has a line for each mistake with
            its file, line number and key.
    """
    path = _find(named, environment)
    source = path.absolute() if path else None  # the current directory may change before a reload
    state = _state(source, environment)
    folder = _folder(source, environment)
    layers = [_read(source) if source else _private(state)]
    layers += (_read(each) for each in sorted(folder.glob("*.toml")))
    for name, value in environment.items():
        if name.startswith(_PREFIX):
            keys = name.removeprefix(_PREFIX).lower().split("__")
            layers.append(_Layer(name, _nested(keys, value)))
    for key, value in (overrides or {}).items():
        layers.append(_Layer("command line", _nested(key.split("."), value)))
    return _build(layers, source, folder, state)


def ephemeral(folder: Path) -> Configuration:
    """Return a configuration for tests, with all files in ``folder`` and free ports."""
    lmtp, smtp = ["127.0.0.1:0"], "127.0.0.1:0"
    if len(os.fsencode(path := f"{folder}/lmtp.sock")) <= MAX_SOCKET_PATH:
        lmtp.insert(0, f"unix:{path}")  # the path of a temporary directory may be too long
    tree = {
        "server": {"listen": ["pop3s://127.0.0.1:0", "pop3://127.0.0.1:0"]},
        "intake": {"lmtp": {"listen": lmtp}, "smtp": {"listen": smtp}},
        "log": {"level": "warning"},
    }
    return _build([_Layer("configuration", tree)], None, folder, folder)


class _Layer(NamedTuple):
    """The values from one source, such as a file."""

    name: str
    tree: dict[str, Any]
    text: str = ""
    """Text of the file, to find the line of a key."""


def _private(state: Path) -> _Layer:
    """Return the values that apply without a file, for one user on this machine."""
    lmtp, smtp = f"unix:{state}/lmtp.sock", "127.0.0.1:2525"
    tree = {"intake": {"lmtp": {"listen": lmtp}, "smtp": {"listen": smtp}}}
    return _Layer("configuration", tree)


def _find(named: Path | None, environment: Mapping[str, str]) -> Path | None:
    if named is None and environment.get("RESTANTE_CONFIG"):
        named = Path(environment["RESTANTE_CONFIG"])
    if named is not None:
        return named
    usual = [SYSTEM[0] / "restante" / "restante.toml"]
    with suppress(ConfigurationError):  # this user has no home directory
        home = _home(environment, "XDG_CONFIG_HOME", ".config")
        usual.insert(0, home / "restante" / "restante.toml")
    return next((path for path in usual if os.path.exists(path)), None)


def _state(source: Path | None, environment: Mapping[str, str]) -> Path:
    """Return the state directory; if a service is installed, commands must use the service's."""
    if given := environment.get("STATE_DIRECTORY"):  # a list separated by ":" (systemd.exec(5))
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
        raise ConfigurationError(f"this user has no home directory; set {name}") from None


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
        raise ConfigurationError(f"{source}: invalid UTF-8") from error
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
    lines: list[str] = []
    for layer in layers:
        mistakes: list[str] = []
        values = _section(Configuration, layer.tree, (), mistakes)
        if layer.text and os.stat(layer.name).st_mode & 0o077:
            mistakes += readable_secrets(layer.name, values)
        lines += (_located_in(layer, mistake) for mistake in mistakes)
    if lines:
        raise ConfigurationError("\n".join(lines))
    made = {"store": {"path": f"{state}/mail/%u"}, "auth": {"users": f"{state}/users.sqlite3"}}
    tree = reduce(_merge, (layer.tree for layer in layers), made)
    configuration = Configuration(
        **_section(Configuration, tree, (), []), source=source, folder=folder, state=state
    )
    located = {name: _located(account) for name, account in configuration.account.items()}
    configuration = replace(configuration, account=located)
    lines += (_located_in(_last(layers, each), each) for each in contradictions(configuration))
    if lines:
        raise ConfigurationError("\n".join(lines))
    return configuration


def _located(account: Account) -> Account:
    """Fill in the URL of a well-known provider from the user's address."""
    from ..collect.providers import by_domain

    known = by_domain(account.user.rpartition("@")[2])
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
            from difflib import get_close_matches  # commands start faster without it

            near = get_close_matches(name, known, 1)
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
                mistakes.append(f"{key}: must be a section; write [{key}]")
        else:
            try:
                values[name] = known[name].metadata["convert"](value)
            except BadValue as error:
                mistakes.append(f"{key}: {error}")
    return values


def _named(
    kind: type[Any], value: Any, path: tuple[str, ...], mistakes: list[str]
) -> dict[str, Any]:
    """Read sections whose names the operator chooses, such as ``[account.isp]``."""
    sections = value if isinstance(value, dict) else {"": value}
    for name, section in sections.items():
        if not isinstance(section, dict) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            mistakes.append(f"{path[-1]}: must be a section with a name; write [{path[-1]}.isp]")
            return {}
    return {
        name: kind(**_section(kind, section, (*path, name), mistakes))
        for name, section in sections.items()
    }


def _located_in(layer: _Layer, mistake: str) -> str:
    return f"{layer.name}{_line_of(layer.text, _path(mistake))}: {mistake}"


def _last(layers: Sequence[_Layer], mistake: str) -> _Layer:
    """Return the layer that sets the key in question, the last one if several do."""
    return next((each for each in reversed(layers) if _has_key(each.tree, mistake)), layers[0])


def _has_key(tree: Any, mistake: str) -> bool:
    for name in _path(mistake):
        if name not in tree:
            return False
        tree = tree[name]
    return True


def _path(mistake: str) -> list[str]:
    return mistake.partition(":")[0].split(".")


def _line_of(text: str, path: Sequence[str]) -> str:
    """Return the line number of a key, such as ``:12``, which tomllib does not report."""
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
