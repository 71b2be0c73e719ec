"""The TOML file: keys, errors and precedence."""

from __future__ import annotations

import errno
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from functools import reduce
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from restante import config
from restante.config import Configuration, loading
from restante.errors import ConfigurationError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "restante.toml"


def load(text: str, file: Path, **environment: str) -> Configuration:
    file.write_text(text)
    return config.load(file, environment={"XDG_STATE_HOME": "/state", **environment})


def mistakes(text: str, file: Path, **environment: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(text, file, **environment)
    return str(caught.value).replace(f"{file.parent}/", "").split("\n")


# Defaults.


def test_an_empty_file_is_all_defaults(file: Path) -> None:
    found = load("", file)
    expected = Configuration(source=file, state=Path("/state/restante"))
    assert found.store.path == "/state/restante/mail/%u"
    assert found.auth.users == "/state/restante/users.sqlite3"
    assert (found.server, found.tls, found.limits) == (
        expected.server,
        expected.tls,
        expected.limits,
    )
    assert (found.source, found.state) == (expected.source, expected.state)


@pytest.mark.parametrize(
    ("source", "environment", "expected"),
    [
        ("/etc/restante/restante.toml", {}, "{run}"),
        ("/etc/restante/other.toml", {"RUNTIME_DIRECTORY": "/run/other:/run/more"}, "/run/other"),
        ("/srv/restante.toml", {}, "/home/ann/.local/state/restante"),
        ("/srv/restante.toml", {"STATE_DIRECTORY": "/state/a"}, "/state/a"),
    ],
)
def test_the_runtime_directory_is_known_without_the_file(
    source: str,
    environment: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "RUNTIME", tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    found = config.runtime(Path(source), environment=environment)
    assert str(found) == expected.format(run=tmp_path)
    monkeypatch.setattr(loading, "RUNTIME", tmp_path / "missing")
    if expected == "{run}":
        found = config.runtime(Path(source), environment=environment)
        assert str(found) == "/var/lib/restante"


def test_the_server_and_its_commands_find_the_same_runtime_directory(file: Path) -> None:
    found = config.runtime(file, environment={"XDG_STATE_HOME": "/state"})
    assert load("", file).runtime == found == Path("/state/restante")


def test_a_section_is_a_value_that_cannot_change() -> None:
    log = config.Log(level="debug")
    assert log == replace(config.Log(), level="debug") != config.Log()
    assert config.Log() != config.TLS()
    assert repr(log) == "Log(format='auto', level='debug')"
    with pytest.raises(FrozenInstanceError):
        log.level = "info"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del log.level
    with pytest.raises(TypeError, match="levle"):
        config.Log(levle="info")  # type: ignore[call-arg]


def keys(value: Any = None, path: str = "") -> Iterator[str]:
    """Yield every dotted key of the configuration."""
    value = Configuration() if value is None else value
    for each in fields(value):
        inner = getattr(value, each.name)
        if is_dataclass(inner) and not isinstance(inner, config.Secret):
            yield from keys(inner, f"{path}{each.name}.")
        elif path:
            yield path + each.name


def whole_example() -> str:
    return re.sub("^#(?! )", "", config.example(), flags=re.MULTILINE)


def test_example_configuration_equals_the_defaults_until_edited(file: Path) -> None:
    """The example mentions load balancers, devices without TLS and so on, which must be off."""
    assert load(config.example(), file) == load("", file)


def test_the_example_is_a_good_configuration_with_every_key(file: Path) -> None:
    tree = tomllib.loads(whole_example())
    for key in keys():
        inner: Any = tree
        for part in key.split("."):
            inner = inner[part]
    found = load(whole_example(), file)
    assert found.server.hostname == "mail.example.org"
    assert found.store.hold == 14 * 86_400
    assert found.auth.allow_plaintext_from == (ip_network("192.168.1.40/32"),)


def test_without_its_examples_the_example_is_the_defaults(file: Path) -> None:
    shown, default = load(whole_example(), file), load("", file)
    for name, kind, options in config.sections():
        if kind is config.Account:  # exists only if configured
            sections: list[object] = [shown.account["isp"], config.Account()]
        elif kind is config.OAuth:
            sections = [shown.account["isp"].oauth, config.OAuth()]
        elif kind is config.Alert:
            sections = [shown.account["isp"].alert, config.Alert()]
        else:
            sections = [reduce(getattr, name.split("."), each) for each in (shown, default)]
        for option in options:
            is_example = option.metadata["example"] != option.metadata["default"]
            one, other = (getattr(section, option.name) for section in sections)
            assert is_example or one == other, option.name


def test_every_key_has_a_manual(file: Path) -> None:
    for _, kind, options in config.sections():
        assert kind.__doc__
        for each in options:
            assert re.search(r"[.)]$", each.metadata["doc"]), each.name


# Errors: file, line, key, and valid values.


@pytest.mark.parametrize(
    "value", ["[[]]", "{ a = 1 }", "1.5", "1979-05-27", "true", '"a\\nb"', "-1"]
)
def test_keys_refuse_meaningless_values(value: str, file: Path) -> None:
    for key in keys():
        section, _, name = key.rpartition(".")
        found = mistakes(f"# one\n[{section}]\n{name} = {value}\n", file)
        assert all(line.startswith(f"restante.toml:3: {key}: must ") for line in found), key


@pytest.mark.parametrize(
    ("text", "line", "reported"),
    [
        ("[server]\nhostnam = 'x'", 2, "server.hostnam: unknown option; did you mean hostname?"),
        ("[servr]\nhostname = 'x'", 1, "servr: unknown option; did you mean server?"),
        ("[intake.lmpt]\nlisten = ''", 1, "intake.lmpt: unknown option; did you mean lmtp?"),
        ("[store]\n\nholt = '1d'", 3, "store.holt: unknown option; did you mean hold?"),
        ("[store]\nxyzzy = 1", 2, "store.xyzzy: unknown option"),
        ("server = 'x'", 1, "server: must be a section; write [server]"),
        ("[[server]]\nhostname = 'x'", 1, "server: must be a section; write [server]"),
        ("source = 'x'", 1, "source: unknown option"),
        ("state = 'x'", 1, "state: unknown option"),
        ("[store]\nhold = 'soon'", 2, "store.hold: must be a time, such as"),
        ("[store]\nhold = '14days'", 2, "store.hold: must be a time, such as"),
        ("[store]\n'hold' = '1y'", 2, "store.hold: must be a time, such as"),
        ("[limits]\nidle = '9min'", 2, "limits.idle: must be at least 600 s (RFC 1939 §3)"),
        ("[limits]\nlogin = 0", 2, "limits.login: must be "),
        ("[limits]\nmessage = '25MB'", 2, 'limits.message: must be a size, such as "25MiB"'),
        ("[limits]\nsessions = 0", 2, "limits.sessions: must be a whole number, at least 1"),
        ("[tls]\nmode = 'acme'", 2, "tls.mode: must be one of self, files"),
        ("[tls]\nmin_version = 1.2", 2, "tls.min_version: must be one of 1.2, 1.3"),
        ("[tls]\nmode = 'files'", 2, 'tls.mode: "files" requires tls.cert and tls.key'),
        (
            "[account.x]\nurl = 'pop3s://a:s3cret@h'",
            2,
            "account.x.url: must not contain a password",
        ),
        (
            "[account.x]\nto = 'imaps://a:s3/cret@h/INBOX'",
            2,
            "account.x.to: must not contain a",
        ),
        (
            "[server]\nproxy_from = ['192.0.2.1']\ntls_at_proxy = ['pop3://127.0.0.1:1100']",
            3,
            "server.tls_at_proxy: pop3://127.0.0.1:1100 is not in server.listen",
        ),
        (
            "[server]\nlisten = ['pop3://127.0.0.1:1']\ntls_at_proxy = ['pop3://127.0.0.1:1']",
            3,
            "server.tls_at_proxy: this option requires server.proxy_from, the proxy addresses",
        ),
        ("[tls]\ncert = '/c'", 2, 'tls.cert: this option requires tls.mode = "files"'),
        ("[server]\nlisten = 'smtp://[::]:995'", 2, "server.listen: must begin"),
        ("[server]\nlisten = ':'", 2, "server.listen: must be an address"),
        ("[server]\nlisten = 'pop3://[::]:65536'", 2, "server.listen: must be an address"),
        ("[server]\nbanner = '<1@x>'", 2, "server.banner: must be ASCII"),
        ("[server]\nbanner = '[AUTH] x'", 2, "server.banner: must be ASCII"),
        ("[server]\nhostname = 'a b'", 2, "server.hostname: must be a host name"),
        ("[server]\nhostname = ''", 2, "server.hostname: must be a host name"),
        (
            "[auth]\nallow_plaintext_from = ['10.0.0.1/8']",
            2,
            "auth.allow_plaintext_from: must be a network",
        ),
    ],
)
@pytest.mark.rfc("P-010", "P-015")
def test_mistake_is_reported_with_its_line(text: str, line: int, reported: str, file: Path) -> None:
    (found,) = mistakes(text, file)
    assert found.startswith(f"restante.toml:{line}: {reported}")


def test_all_mistakes_are_reported_at_once(file: Path) -> None:
    assert len(mistakes("[store]\nholt = 1\nhold = 'x'\n[sever]\n", file)) == 3


@pytest.mark.parametrize(
    ("octets", "reported"),
    [
        (b"[server", "table declaration"),
        (b"\xff", "UTF-8"),
        (b"a = 1\na = 2", "overwrite"),
        pytest.param(b"a = " + b"[" * 100_000, "nested", id="arrays"),
        pytest.param(b"a = " + b"{a = " * 100_000, "nested", id="tables"),
        pytest.param(b"a" + b".a" * 1000 + b" = 1", "unknown option", id="dotted key"),
        pytest.param(b"[a" + b".a" * 1000 + b"]", "unknown option", id="section"),
    ],
)
def test_invalid_toml_is_reported_with_its_file(octets: bytes, reported: str, file: Path) -> None:
    file.write_bytes(octets)
    with pytest.raises(ConfigurationError, match=f"{file}: .*{reported}"):
        config.load(file, environment={})


@pytest.mark.parametrize("name", ["none.toml", ".", "restante.toml/x"])
def test_a_file_that_was_named_must_be_there(name: str, file: Path) -> None:
    """A file named in any way is never ignored."""
    file.write_text("")
    path = file.parent / name
    with pytest.raises(ConfigurationError, match=re.escape(str(path))):
        config.load(path, environment={})
    with pytest.raises(ConfigurationError, match=re.escape(str(path))):
        config.load(environment={"RESTANTE_CONFIG": str(path)})


# Values.


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90),
        ("90s", 90),
        ("90", 90),
        ("10min", 600),
        ("2h", 7200),
        ("14d", 1209600),
        ("1w", 604800),
        ("0", 0),
        (0, 0),
        ("2 h", 7200),
    ],
)
def test_durations(value: str | int, seconds: float) -> None:
    assert config.duration(value) == seconds


@pytest.mark.parametrize(
    ("value", "octets"), [(1, 1), ("25MiB", 26214400), ("2GiB", 2**31), ("1 KiB", 1024), ("7", 7)]
)
def test_sizes(value: str | int, octets: int) -> None:
    assert config.octets(value) == octets


@pytest.mark.parametrize("value", ["", "h", "1.5h", "-1h", "1h30", "1H", "٣h", "1 month", None, []])
def test_invalid_durations_are_refused(value: object) -> None:
    with pytest.raises(Exception, match="must be a time"):
        config.duration(value)


def test_a_single_text_is_a_list_of_one(file: Path) -> None:
    assert load("[intake.smtp]\ndomains = 'example.org'", file).intake.smtp.domains == (
        "example.org",
    )
    assert load("[server]\nlisten = ''", file).server.listen == ()


# Precedence.


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(file: Path) -> None:
    text = "[server]\nhostname = 'file'\nbanner = 'file'\n[store]\nhold = '1d'"
    file.write_text(text)
    environment = {"RESTANTE__SERVER__HOSTNAME": "environment", "RESTANTE__STORE__HOLD": "2d"}
    found = config.load(file, environment=environment, overrides={"server.hostname": "flag"})
    assert found.server.hostname == "flag"
    assert found.store.hold == 2 * 86_400
    assert found.server.banner == "file"


def test_files_beside_win_over_the_file_in_the_order_of_their_names(file: Path) -> None:
    beside = file.parent / "conf.d"
    beside.mkdir()
    (beside / "20-b.toml").write_text("[store]\nhold = '2d'")
    (beside / "10-a.toml").write_text("[store]\nhold = '1d'\n[server]\nbanner = 'a'")
    (beside / "30-c.toml~").write_text("[store]\nhold = 'not read'")
    found = load("[server]\nbanner = 'file'\nhostname = 'file'", file)
    assert (found.store.hold, found.server.banner) == (2 * 86_400, "a")
    assert found.server.hostname == "file"


def test_mistake_is_reported_with_its_source(file: Path) -> None:
    beside = file.parent / "conf.d"
    beside.mkdir()
    (beside / "a.toml").write_text("\n[store]\nhold = 'soon'")
    (reported,) = mistakes("[store]\nhold = '1d'", file)
    assert reported.startswith("conf.d/a.toml:3: store.hold: ")
    (beside / "a.toml").unlink()
    (reported,) = mistakes("[store]\nhold = '1d'", file, RESTANTE__STORE__HOLD="now")
    assert reported.startswith("RESTANTE__STORE__HOLD: store.hold: must be")
    (reported,) = mistakes("", file, RESTANTE__STORE="x", RESTANTE__STORE__HOLD="1d")
    assert reported.startswith("RESTANTE__STORE: store: must be a section")


def test_an_unknown_key_in_the_environment_is_a_mistake(file: Path) -> None:
    (reported,) = mistakes("", file, RESTANTE__STORE__HOLT="1d")
    assert reported == "RESTANTE__STORE__HOLT: store.holt: unknown option; did you mean hold?"


def test_a_list_in_the_environment_is_separated_by_spaces(file: Path) -> None:
    found = load("", file, RESTANTE__SERVER__LISTEN="pop3://127.0.0.1:1 pop3s://[::1]:2")
    assert found.server.listen == ("pop3://127.0.0.1:1", "pop3s://[::1]:2")


def test_the_file_of_the_user_wins_over_nothing(tmp_path: Path) -> None:
    place = tmp_path / "restante"
    place.mkdir()
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": "/state"}
    assert config.load(environment=environment).source is None
    (place / "restante.toml").write_text("")
    assert config.load(environment=environment).source == place / "restante.toml"


def test_systemd_names_the_state_directory(file: Path) -> None:
    """systemd.exec(5): several are separated by colons."""
    found = load("", file, STATE_DIRECTORY="/var/lib/restante:/var/lib/other")
    assert found.state == Path("/var/lib/restante")


def test_the_file_of_the_system_has_the_state_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands of an administrator must use the same state as the systemd service."""
    monkeypatch.setattr(loading, "SYSTEM", (tmp_path / "etc", Path("/var/lib/restante")))
    file = tmp_path / "etc" / "restante" / "restante.toml"
    file.parent.mkdir(parents=True)
    assert load("", file, XDG_STATE_HOME="/state").state == Path("/var/lib/restante")
    assert load("", file, STATE_DIRECTORY="/elsewhere").state == Path("/elsewhere")
    assert load("", tmp_path / "own.toml", XDG_STATE_HOME="/state").state == Path("/state/restante")


def test_a_home_that_cannot_be_read_holds_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """setpriv(1) keeps the home of root."""
    file, home = tmp_path / "etc" / "restante" / "restante.toml", tmp_path / "home"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(loading, "SYSTEM", (tmp_path / "etc", Path("/var/lib/restante")))
    look = os.stat

    def stat(path: str | Path, **options: Any) -> os.stat_result:
        if str(path).startswith(str(home)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return look(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    assert config.load(environment={"XDG_CONFIG_HOME": str(home)}).source == file


def test_missing_home_names_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For example in a container where the user has no entry in passwd."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigurationError, match="XDG_STATE_HOME"):
        config.load(environment={})
    assert config.load(environment={"STATE_DIRECTORY": "/state"}).state == Path("/state")


# Private mode.


@pytest.mark.parametrize(
    ("key", "address"),
    [
        ("server.listen", "pop3s://[::]:995"),
        ("server.listen", "pop3s://192.0.2.7:995"),
        ("server.listen", "pop3s://mail.example.org:995"),
        ("server.listen", "pop3://:110"),
        ("intake.lmtp.listen", "0.0.0.0:24"),
        ("intake.smtp.listen", "[::]:25"),
    ],
)
def test_without_a_file_nothing_public_is_served(key: str, address: str, tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    with pytest.raises(ConfigurationError, match=f"{key}: .* is public"):
        config.load(environment=environment, overrides={key: address})
    with pytest.raises(ConfigurationError, match=f"{key}: .* is public"):
        config.load(
            environment={**environment, f"RESTANTE__{key.replace('.', '__').upper()}": address}
        )


def test_directory_of_parts_that_cannot_be_read_is_not_ignored(file: Path) -> None:
    (file.parent / "conf.d").symlink_to("conf.d")  # a loop, which root cannot pass either
    assert mistakes("", file) == ["conf.d: Too many levels of symbolic links"]


def test_configuration_that_cannot_be_reached_is_not_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Private mode has other users, another store and another hold."""
    folder, home = tmp_path / "etc", tmp_path / "home"
    environment = {"XDG_CONFIG_HOME": str(home), "XDG_STATE_HOME": str(tmp_path)}
    monkeypatch.setattr(loading, "SYSTEM", (folder, tmp_path / "state"))
    assert config.load(environment=environment).source is None
    for each in folder, home:
        each.mkdir()
        (each / "restante").symlink_to("restante")  # a loop, which root cannot pass either
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
            assert config.load(environment=environment).source is None
        with pytest.raises(ConfigurationError, match=r"restante\.toml: Too many levels"):
            config.load(environment=environment)
        (each / "restante").unlink()


def test_private_mode_serves_loopback_and_the_users_own_files(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    found = config.load(environment=environment)
    assert found.server.listen == ("pop3s://127.0.0.1:1995", "pop3://127.0.0.1:1110")
    assert found.intake.lmtp.listen == (f"unix:{tmp_path}/restante/lmtp.sock",)
    assert found.intake.smtp.listen == ("127.0.0.1:2525",)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("length", "has_path"), [(107, True), (108, False)])
def test_ephemeral_server_starts_in_a_deep_directory(length: int, has_path: bool) -> None:
    """Paths of sockets must be short (unix(7)); the port works as well."""
    folder = Path("/" + "x" * (length - len("//lmtp.sock")))
    found = config.ephemeral(folder).intake.lmtp.listen
    assert found == (f"unix:{folder}/lmtp.sock",) * has_path + ("127.0.0.1:0",)


def test_a_line_of_toml_is_read_back() -> None:
    for value in ("a", 'a"b\\c', ["a", "b"], [], 7):
        assert tomllib.loads(f"x = {config.toml(value)}")["x"] == value
