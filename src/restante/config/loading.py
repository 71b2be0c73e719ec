"""Read the configuration from files, the environment and the command line.

Each source overrides the sources before it: the defaults, the configuration file, the files
``conf.d/*.toml`` in its directory (sorted by name), environment variables such as
``RESTANTE__SERVER__HOSTNAME``, and the command line.  An unknown key is an error and is never
ignored, because a typing error in ``hold`` must not lose mail.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigurationError
from ..regular import RegularFile, read_file
from ..server.address import MAX_SOCKET_PATH
from .contradictions import contradictions, readable_secrets
from .schema import Account, Configuration, options
from .values import BadValue

SYSTEM = (Path("/etc"), Path("/var/lib/restante"))
"""The configuration and state directories of a service, as in contrib/systemd."""
RUNTIME = Path("/run/restante")
"""The runtime directory of a service, as in contrib/systemd."""
_PREFIX = "RESTANTE__"


def load(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
    text: str | None = None,
) -> Configuration:
    """Load and check the configuration.

    ``file`` is the configuration file, which must exist.  Without ``file``, the file that the
    variable RESTANTE_CONFIG names is read, or the user's file, or the system's file.  ``overrides``
    maps dotted keys to values from the command line.  ``text`` replaces the content of ``file``,
    which need not exist.

    Raises:
        ConfigurationError: the configuration is invalid; the text has a line for each mistake with
            its file, line number and key.
    """
    path = _find(file, environment)
    source = path.absolute() if path else None  # the current directory may change before a reload
    state = _state(source, environment)
    folder = _folder(source, environment)
    if text is not None:
        layers = [_Layer(str(source), tomllib.loads(text))]
    else:
        layers = [_read(source) if source else _private_layer(state)]
    layers += (_read(each) for each in _parts(folder, is_private=source is None))
    layers += _environment_layers(environment)
    for key, value in (overrides or {}).items():
        layers.append(_Layer("command line", _nested(key.split("."), value)))
    return replace(_build(layers, source, folder, state), runtime=_runtime(state, environment))


def new_file(*, environment: Mapping[str, str] = os.environ, is_service: bool) -> Path:
    """Return the path at which a configuration file is created by default.

    ``is_service`` chooses the system's file instead of the user's.

    Raises:
        ConfigurationError: the user has no home directory.
    """
    return _named(None, environment) or (_system_file() if is_service else _user_file(environment))


def runtime(file: Path | None = None, *, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the runtime directory of the server that uses a configuration, without reading it.

    ``file`` is the configuration file, as for ``load``.  It may be invalid or unreadable.
    """
    path = _find(file, environment)
    return _runtime(_state(path.absolute() if path else None, environment), environment)


def place(
    file: Path | None, recorded: Path | None, *, environment: Mapping[str, str] = os.environ
) -> Path | None:
    """Return where a restored configuration file belongs; None for private mode.

    ``file`` is the file that the user has named.  ``recorded`` is where the file was when the
    backup was made.  It is used only if restante reads this file without being asked to, so a
    hostile backup cannot choose a place.

    Raises:
        ConfigurationError: the user must name the file, or move away another one.
    """
    file = _named(file, environment)
    if file is not None:
        return file.absolute()
    if recorded is None:
        if existing := _find(None, environment):
            raise ConfigurationError(
                f"the backup contains no configuration file, but {existing} exists; move it away"
            )
        return None
    if recorded not in _candidates(environment):
        raise ConfigurationError(
            f"the configuration file was {recorded}; name it to restore it there: -c {recorded}"
        )
    return recorded


def preview(
    source: Path | None,
    main: bytes | None,
    parts: Sequence[bytes],
    *,
    environment: Mapping[str, str] = os.environ,
) -> Configuration:
    """Return the configuration that ``load`` would return if these files were in their places.

    ``main`` is the content of the file ``source``, and ``parts`` that of the files in ``conf.d``.

    Raises:
        ConfigurationError: the configuration is invalid.
    """
    state = _state(source, environment)
    layers = [_private_layer(state)] if main is None else []
    for octets in (*(() if main is None else (main,)), *parts):
        try:
            layers.append(_Layer("the configuration", tomllib.loads(octets.decode("utf-8"))))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigurationError(f"the configuration in the backup: {error}") from error
    layers += _environment_layers(environment)
    config = _build(layers, source, _folder(source, environment), state)
    return replace(config, runtime=_runtime(state, environment))


def _parts(folder: Path, *, is_private: bool) -> list[Path]:
    """Return the files in ``conf.d``, sorted by name.

    Raises:
        ConfigurationError: the directory cannot be read.  ``Path.glob`` would return nothing, and
            settings would be ignored.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if is_private and _owner(folder) != os.geteuid():
            return []  # in the home directory of another user: see ``_owner``
        raise ConfigurationError(f"{folder}: {error.strerror}") from error
    return sorted(folder / name for name in names if name.endswith(".toml"))


def _environment_layers(environment: Mapping[str, str]) -> Iterator[_Layer]:
    for name, value in environment.items():
        if name.startswith(_PREFIX):
            keys = name.removeprefix(_PREFIX).lower().split("__")
            yield _Layer(name, _nested(keys, value))


def ephemeral(folder: Path) -> Configuration:
    """Return a test configuration that uses free ports and stores all files in ``folder``."""
    lmtp, smtp = ["127.0.0.1:0"], "127.0.0.1:0"
    if len(os.fsencode(path := f"{folder}/lmtp.sock")) <= MAX_SOCKET_PATH:
        lmtp.insert(0, f"unix:{path}")  # the path of a temporary directory may be too long
    tree = {
        "server": {"listen": ["pop3s://127.0.0.1:0", "pop3://127.0.0.1:0"]},
        "intake": {"lmtp": {"listen": lmtp}, "smtp": {"listen": smtp}},
        "log": {"level": "warning"},
    }
    return replace(_build([_Layer("configuration", tree)], None, folder, folder), runtime=folder)


class _Layer(NamedTuple):
    """The values from one source, such as a file."""

    name: str
    """Name of the source for error messages, such as the path of the file."""
    tree: dict[str, Any]
    text: str = ""
    """Text of the file, in which the lines of keys are found; empty for other sources."""
    file: RegularFile | None = None


def _private_layer(state: Path) -> _Layer:
    """Return the values for a server without a configuration file, which serves one local user."""
    lmtp, smtp = f"unix:{state}/lmtp.sock", "127.0.0.1:2525"
    tree = {"intake": {"lmtp": {"listen": lmtp}, "smtp": {"listen": smtp}}}
    return _Layer("configuration", tree)


def _find(file: Path | None, environment: Mapping[str, str]) -> Path | None:
    """Return the path of the configuration file; None if there is no such file.

    Raises:
        ConfigurationError: it is unknown whether there is a file.  Without its values, mail might
            be held for a shorter time.
    """
    named = _named(file, environment)
    if named is not None:
        return named
    return next((path for path in _candidates(environment) if _exists(path)), None)


def _named(file: Path | None, environment: Mapping[str, str]) -> Path | None:
    """Return the file that the user names by an option or else by RESTANTE_CONFIG."""
    if file is None and (path := environment.get("RESTANTE_CONFIG")):
        return Path(path)
    return file


def _candidates(environment: Mapping[str, str]) -> list[Path]:
    """Return the files of which the first is used if the user names none."""
    candidates = [_system_file()]
    with suppress(ConfigurationError):  # the user may have no home directory
        candidates.insert(0, _user_file(environment))
    return candidates


def _system_file() -> Path:
    return SYSTEM[0] / "restante" / "restante.toml"


def _user_file(environment: Mapping[str, str]) -> Path:
    folder = _base_directory(environment, "XDG_CONFIG_HOME", ".config")
    return folder / "restante" / "restante.toml"


def _exists(path: Path) -> bool:
    """Return whether there is a configuration file; False if it is in another user's directory.

    Raises:
        ConfigurationError: the file is this user's, and cannot be reached.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        folder, state = SYSTEM
        is_service = path.is_relative_to(folder) and _owner(state) == os.geteuid()
        if is_service or _owner(path) == os.geteuid():
            raise ConfigurationError(f"{path}: {error.strerror}") from error
        return False
    return True


def _owner(path: Path) -> int:
    """Return the user who owns a file, or otherwise the first of its parents that can be reached.

    For example, a command that setpriv(1) starts cannot reach the home directory of root.
    """
    for each in (path, *path.parents):
        with suppress(OSError):
            return os.stat(each).st_uid
    return 0


def _state(source: Path | None, environment: Mapping[str, str]) -> Path:
    """Return the state directory: the service's if the configuration file is in /etc."""
    if paths := environment.get("STATE_DIRECTORY"):  # separated by ":" (systemd.exec(5))
        return Path(paths.partition(":")[0]).absolute()
    folder, state = SYSTEM
    if source is not None and source.is_relative_to(folder):
        return state
    return _base_directory(environment, "XDG_STATE_HOME", ".local/state") / "restante"


def _runtime(state: Path, environment: Mapping[str, str]) -> Path:
    """Return the runtime directory that systemd has created, otherwise the state directory."""
    if paths := environment.get("RUNTIME_DIRECTORY"):  # separated by ":" (systemd.exec(5))
        return Path(paths.partition(":")[0]).absolute()
    return RUNTIME if state == SYSTEM[1] and RUNTIME.is_dir() else state


def _base_directory(environment: Mapping[str, str], variable: str, default: str) -> Path:
    """Return a directory of the XDG Base Directory Specification.

    ``default`` is its path in the user's home directory if the variable is not set.
    """
    if path := environment.get(variable):
        return Path(path).absolute()
    try:
        return Path.home() / default
    except RuntimeError:
        raise ConfigurationError(f"this user has no home directory; set {variable}") from None


def _folder(source: Path | None, environment: Mapping[str, str]) -> Path:
    """Return the directory ``conf.d``, which may not exist."""
    if source is not None:
        return source.parent / "conf.d"
    with suppress(ConfigurationError):
        return _base_directory(environment, "XDG_CONFIG_HOME", ".config") / "restante" / "conf.d"
    return Path("/etc/restante/conf.d")


def _read(source: Path) -> _Layer:
    """Read a TOML file.

    Raises:
        ConfigurationError: the file cannot be read, or is not valid TOML.
    """
    try:
        file = read_file(source)
        text = file.octets.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        return _Layer(str(source), tomllib.loads(text), text, file)
    except OSError as error:
        raise ConfigurationError(f"{source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source}: invalid UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    except RecursionError as error:
        raise ConfigurationError(f"{source}: too many nested arrays or tables") from error


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return nested tables that contain only one value, at ``path``."""
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested tables ``base`` with the values in ``overrides``."""
    merged = dict(base)
    for name, value in overrides.items():
        merged[name] = _merge(merged.get(name, {}), value) if isinstance(value, dict) else value
    return merged


def _build(
    layers: Sequence[_Layer], source: Path | None, folder: Path, state: Path
) -> Configuration:
    """Merge the layers into a configuration.

    Raises:
        ConfigurationError: an option is unknown, a value is invalid, or options contradict each
            other.
    """
    lines: list[str] = []
    for layer in layers:
        mistakes: list[str] = []
        values = _convert(Configuration, layer.tree, (), mistakes)
        if layer.file is not None and layer.file.status.st_mode & 0o077:
            mistakes += readable_secrets(layer.name, values)
        lines += (_with_position(layer, mistake) for mistake in mistakes)
    if lines:
        raise ConfigurationError("\n".join(lines))
    defaults = {"store": {"path": f"{state}/mail/%u"}, "auth": {"users": f"{state}/users.sqlite3"}}
    tree = reduce(_merge, (layer.tree for layer in layers), defaults)
    configuration = Configuration(
        **_convert(Configuration, tree, (), []),
        source=source,
        folder=folder,
        state=state,
        files=tuple(layer.file for layer in layers if layer.file is not None),
    )
    accounts = {name: _with_url(account) for name, account in configuration.account.items()}
    configuration = replace(configuration, account=accounts)
    lines += (
        _with_position(_last_layer(layers, each), each) for each in contradictions(configuration)
    )
    if lines:
        raise ConfigurationError("\n".join(lines))
    return configuration


def _with_url(account: Account) -> Account:
    """Return the account with the URL of a well-known provider, if its URL is missing."""
    from ..collect.providers import by_domain

    provider = by_domain(account.user.rpartition("@")[2])
    if account.url or provider is None or not provider.host:
        return account
    return replace(account, url=f"pop3s://{provider.host}")


def _convert(
    kind: type[Any], tree: Mapping[str, Any], path: tuple[str, ...], mistakes: list[str]
) -> dict[str, Any]:
    """Return the converted values of a section; append an error to ``mistakes`` for each mistake.

    ``kind`` is the class of the section, and ``path`` are the parts of its name.
    """
    declared = {each.name: each for each in options(kind)}
    values: dict[str, Any] = {}
    for name, value in tree.items():
        key = ".".join((*path, name))
        if name not in declared:
            from difflib import get_close_matches  # commands start faster without it

            similar = get_close_matches(name, declared, 1)
            mistakes.append(
                f"{key}: unknown option" + "".join(f"; did you mean {n}?" for n in similar)
            )
        elif named := declared[name].metadata.get("named"):
            values[name] = _convert_named(named, value, (*path, name), mistakes)
        elif is_dataclass(section := declared[name].default_factory):
            if isinstance(value, dict):
                assert isinstance(section, type)
                values[name] = section(**_convert(section, value, (*path, name), mistakes))
            else:
                mistakes.append(f"{key}: must be a section; write [{key}]")
        else:
            try:
                values[name] = declared[name].metadata["convert"](value)
            except BadValue as error:
                mistakes.append(f"{key}: {error}")
    return values


def _convert_named(
    kind: type[Any], value: Any, path: tuple[str, ...], mistakes: list[str]
) -> dict[str, Any]:
    """Convert sections whose names the operator chooses, such as ``[account.isp]``."""
    sections = value if isinstance(value, dict) else {"": value}
    for name, section in sections.items():
        if not isinstance(section, dict) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            mistakes.append(f"{path[-1]}: must be a section with a name; write [{path[-1]}.isp]")
            return {}
    return {
        name: kind(**_convert(kind, section, (*path, name), mistakes))
        for name, section in sections.items()
    }


def _with_position(layer: _Layer, mistake: str) -> str:
    """Return an error with the name of the source and the line number of the key."""
    return f"{layer.name}{_line_of(layer.text, _path(mistake))}: {mistake}"


def _last_layer(layers: Sequence[_Layer], mistake: str) -> _Layer:
    """Return the last layer that contains the key of an error."""
    return next((each for each in reversed(layers) if _has_key(each.tree, mistake)), layers[0])


def _has_key(tree: Any, mistake: str) -> bool:
    for name in _path(mistake):
        if name not in tree:
            return False
        tree = tree[name]
    return True


def _path(mistake: str) -> list[str]:
    """Return the parts of the key with which an error begins."""
    return mistake.partition(":")[0].split(".")


def _line_of(text: str, path: Sequence[str]) -> str:
    """Return the line number of a key, such as ``:12``, because tomllib does not report it."""
    *sections, key = path
    section, current = ".".join(sections), ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if header := re.match(r"\[+\s*([^\]]+?)\s*\]", line):
            current = header[1]
            if current == ".".join((*sections, key)):
                return f":{number}"
        elif current == section and re.match(rf"[\"']?{re.escape(key)}[\"']?\s*=", line):
            return f":{number}"
    return ""
