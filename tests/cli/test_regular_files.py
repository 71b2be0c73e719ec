"""Files in the configuration must be regular files; a FIFO is an immediate error.

Opening a FIFO waits for its other end, and during a waiting reload no user is served.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from restante import config
from restante.errors import ConfigurationError
from restante.regular import MAX_SIZE, read_regular
from restante.tls import client_context, fingerprint, server_context

from .conftest import Restante

PATIENCE = 5.0  # seconds; far longer than any of these takes

OAUTH = (
    'chain = ["users", "oauth"]\n[auth.oauth]\nissuer = "https://id.example.org"\n'
    'audience = ["mail"]\n'
)
JWKS = 'jwks = "https://id.example.org/jwks"\n'
INTROSPECTION = 'introspection = "https://id.example.org/x"\nclient_id = "mail"\n'
FILE = "{{file={}}}"
LDAP = (
    'chain = ["ldap"]\n[auth.ldap]\nurl = "ldaps://ldap.example.org"\nbase = "dc=example"\n'
    'filter = "(uid=%u)"\nbind_dn = "cn=x"\n'
)
ACCOUNT = '[account.isp]\nurl = "pop3s://pop.example.org"\nuser = "ann"\nto = "maildrop:ann"\n'
BY_KEY = {
    "tls.cert": '[tls]\nmode = "files"\ncert = {}\nkey = "/etc/hostname"\n',
    "tls.key": '[tls]\nmode = "files"\ncert = "/etc/hostname"\nkey = {}\n',
    "tls.client_ca": "[tls]\nclient_ca = {}\n",
    "auth.users": "[auth]\nusers = {}\n",
    "auth.passwd_file.path": '[auth]\nchain = ["passwd-file"]\npasswd_file.path = {}\n',
    "auth.ldap.ca_file": f"[auth]\n{LDAP}ca_file = {{}}\n",
    "auth.ldap.bind_password": f"[auth]\n{LDAP}bind_password = {FILE}\n",
    "auth.oauth.ca_file": f"[auth]\n{OAUTH}{JWKS}ca_file = {{}}\n",
    "auth.oauth.jwks": f"[auth]\n{OAUTH}jwks = {{}}\n",
    "auth.oauth.client_secret": f"[auth]\n{OAUTH}{INTROSPECTION}client_secret = {FILE}\n",
}


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Interrupt a command that waits for the other end of a FIFO; the test fails."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError("waits for the other end of a FIFO")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo", 0o600)
    return tmp_path / "fifo"


def configure(home: Path, text: str) -> Path:
    path = home / "config/restante/restante.toml"
    path.parent.mkdir(parents=True)
    path.touch(0o600)
    path.write_text(text)
    return path


@pytest.mark.parametrize("key", BY_KEY)
def test_fifo_in_the_configuration_is_reported(
    key: str, restante: Restante, home: Path, fifo: Path
) -> None:
    configure(home, BY_KEY[key].format(config.toml(str(fifo))))
    found = restante("check")
    assert (found.code in (74, 75, 78), str(fifo) in found.err) == (True, True), found.err
    assert "a bug" not in found.err


def test_every_file_that_the_configuration_names_is_tried() -> None:
    """Every option that its name or text describes as a file has a row above.

    Files of accounts are read by ``collect`` with the same two functions.
    """
    words = ("path", "file", "cert", "key", "ca", "users", "secret", "password", "jwks")
    named = {
        f"{section}.{option.name}"
        for section, _, options in config.sections()
        for option in options
        if section.partition(".")[0] in ("tls", "auth")
        and set(option.name.replace("_", " ").split()) & set(words)
    }
    assert named - {"auth.oauth.users"} == set(BY_KEY)


def test_fifo_or_device_as_configuration_is_reported(
    restante: Restante, home: Path, fifo: Path
) -> None:
    for path in (fifo, Path("/dev/zero")):
        found = restante("-c", path, "check")
        assert (found.code, found.err) == (
            78,
            f"restante check: {path}: is not a regular file\n",
        )
    configure(home, "")
    (home / "config/restante/conf.d").mkdir()
    os.mkfifo(home / "config/restante/conf.d/10-own.toml")
    assert "10-own.toml: is not a regular file" in restante("check").err


def test_fifo_of_an_account_is_an_error_in_words(
    restante: Restante, home: Path, fifo: Path, ann: str
) -> None:
    for text in (f'password = {{file="{fifo}"}}', f'password = "x"\nca_file = "{fifo}"'):
        path = home / "config/restante/restante.toml"
        path.unlink(missing_ok=True)
        (path.parent).mkdir(exist_ok=True)
        path.touch(0o600)
        path.write_text(f"{ACCOUNT}{text}\n")
        found = restante("collect", "isp")
        assert (found.code, str(fifo) in found.err) == (78, True), found.err


def test_certificates_are_read_from_regular_files_only(
    fifo: Path, certificate: tuple[Path, Path]
) -> None:
    with pytest.raises(ConfigurationError):
        client_context(fifo)
    with pytest.raises(ConfigurationError):
        server_context(*certificate, client_ca=fifo)
    with pytest.raises(OSError, match="is not a regular file"):
        fingerprint(fifo)


def test_regular_file_is_read_whole_up_to_a_limit(tmp_path: Path) -> None:
    """Through a symbolic link too, as Kubernetes mounts secrets."""
    (tmp_path / "file").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"secret"
    with open(tmp_path / "file", "wb") as file:
        file.truncate(MAX_SIZE)
        assert len(read_regular(tmp_path / "file")) == MAX_SIZE
        file.truncate(MAX_SIZE + 1)
    with pytest.raises(OSError, match="is larger than 16 MiB"):
        read_regular(tmp_path / "file")
