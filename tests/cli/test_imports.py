"""Which modules a command imports: the time in which it starts, tested without a clock.

A mail server starts ``restante deliver`` for each message, and cron ``restante collect`` every few
minutes.  Most of their processor time is spent on imports.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Libraries that take more than 2 ms to import, ours and the standard one's.
_HEAVY = {
    *("asyncio", "bcrypt", "concurrent", "cryptography", "ctypes", "difflib", "dns", "email"),
    *("http", "imapclient", "jwt", "keyring", "ldap", "logging", "pamela", "rich", "scramp"),
    *("shutil", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "tomllib"),
    *("urllib.request", "uvloop"),
}
_STORE = {"asyncio", "concurrent", "email", "logging", "shutil", "sqlite3", "ssl", "subprocess"}
_STORE |= {"socket", "tomllib"}
_PACKAGES = {"app", "auth", "cli", "client", "collect", "config", "pop3", "sasl", "server", "smtp"}
_PACKAGES |= {"store"}
_LOCAL = {"app", "auth", "cli", "config", "store"}
# The configuration and user names need one module of each.
_NAMES = {"pop3.texts", "sasl.prepare", "server.address", "store.paths"}

_PROBE = """
import sys
before = set(sys.modules)
from restante.cli.main import main
#
try:
    main()
finally:
    sys.stdout = sys.stderr
    print("imported:", *sorted(set(sys.modules) - before))
"""


def imported(*arguments: str, stdin: bytes = b"", patch: str = "") -> set[str]:
    """Return the modules that a command imports; ``patch`` is executed before it."""
    command = [sys.executable, "-c", _PROBE.replace("#", patch), *arguments]
    # A measured process has imported some of these modules already.
    environment = {k: value for k, value in os.environ.items() if not k.startswith("COVERAGE")}
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=30, env=environment)
    said = done.stderr.decode()
    assert "imported: " in said, said
    assert "Traceback" not in said, said
    return set(said.rpartition("imported: ")[2].split())


def heavy(modules: set[str]) -> set[str]:
    return _HEAVY & modules


def packages(modules: set[str]) -> set[str]:
    """Our packages of which a command needs more than names."""
    ours = {each.removeprefix("restante.") for each in modules if each.startswith("restante.")}
    return {each.partition(".")[0] for each in ours - _PACKAGES - _NAMES} & _PACKAGES


def test_version_needs_only_the_entry_point() -> None:
    assert imported("--version") <= {"__future__", "restante", "restante.cli", "restante.cli.main"}


@pytest.mark.parametrize("arguments", [["--help"], ["delivr"], []])
def test_no_verb_is_imported_without_need(arguments: list[str], home: Path) -> None:
    modules = imported(*arguments)
    assert heavy(modules) <= {"difflib"}
    assert packages(modules) == {"cli"}
    ours = {each for each in modules if each.startswith("restante.cli.")}
    assert ours == {f"restante.cli.{each}" for each in ("command", "examples", "main")}


def test_delivery_imports_the_store_and_the_configured_back_ends(ann: str) -> None:
    modules = imported("deliver", ann, stdin=b"Subject: hello\n\nhi\n")
    assert heavy(modules) == {"logging", "sqlite3", "tomllib"}
    assert packages(modules) == _LOCAL
    others = {"http", "ldap", "pam", "passwd_file", "schemes", "tokens"}
    assert not modules & {f"restante.auth.{each}" for each in others}
    store = {each.removeprefix("restante.store.") for each in modules if ".store." in each}
    assert store == {"files", "names", "paths", "quota", "rules", "single_delivery"}


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["user", "add", "bob", "--generate"], {"cryptography", "scramp", "tempfile"}),
        (["user", "list"], {"rich"}),
        (["maildrop", "list"], {"rich"}),
    ],
)
def test_users_and_maildrops_need_no_network(
    arguments: list[str], more: set[str], ann: str
) -> None:
    modules = imported(*arguments)
    assert heavy(modules) <= _STORE | more
    assert packages(modules) <= _LOCAL


@pytest.mark.parametrize("verb", ["fetch", "collect"])
def test_a_client_needs_no_server_and_no_store(verb: str, home: Path) -> None:
    """The store is only for accounts with ``maildrop:``."""
    url, to = "pop3s://127.0.0.1:1", f"maildir:{home}/M"
    source = home / "restante.toml"
    source.touch(mode=0o600)
    source.write_text(f'[account.isp]\nurl = "{url}"\nuser = "ann"\npassword = "x"\nto = "{to}"\n')
    password = home / "password"
    password.write_text("x")
    fetch = ["fetch", "pop3s://ann@127.0.0.1:1", "--to", to, "--password-file", str(password)]
    modules = imported(*(fetch if verb == "fetch" else ["-c", str(source), "collect", "isp"]))
    assert heavy(modules) <= _STORE | {"tempfile"}
    assert packages(modules) == _PACKAGES - {"server", "smtp", "store"}
    assert "restante.client.asynchronous" in modules
    assert not modules & {"smtplib", "email.policy", "restante.collect.destinations.spooled"}


_WITHOUT_WORKERS = """
import gc
from restante.app.supervisor import Supervisor
def run(supervisor):
    assert len(gc.get_objects()) < 1000, "a search for cycles in a worker copies all objects"
    return 0
Supervisor.run = run
"""


def test_workers_share_only_the_modules_that_they_need(
    home: Path, certificate: tuple[Path, Path]
) -> None:
    """A module that is imported before the fork is in memory once."""
    cert, key = certificate
    source = home / "restante.toml"
    source.write_text(
        '[server]\nlisten = ["pop3s://127.0.0.1:0"]\nworkers = 2\n'
        f'[auth]\nchain = ["passwd-file"]\n[auth.passwd_file]\npath = "{home}/passwd"\n'
        f'[tls]\nmode = "files"\ncert = "{cert}"\nkey = "{key}"\n'
    )
    (home / "passwd").write_text("ann:{PLAIN}tan staaf\n")
    modules = imported("-c", str(source), "serve", patch=_WITHOUT_WORKERS)
    assert {"uvloop", "restante.auth.passwd_file"} <= modules
    assert heavy(modules) <= _STORE | {"tempfile", "uvloop"}
    assert not modules & {"restante.surrogate", "email.headerregistry"}
    # Only an operator's command needs it, after which one worker has it.
    assert not modules & {"h11", "restante.app.control", "restante.server.control"}
    assert packages(modules) == _PACKAGES - {"client", "collect"}
