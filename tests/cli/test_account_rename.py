"""``restante account rename``: no message is stored twice, even after a kill at any step."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import ssl
import sys
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from restante import config
from restante.app import job, runs
from restante.app.job import Job, open_ledger
from restante.app.tokens import token_file
from restante.cli.command import run
from restante.collect.accounts import Accounts
from restante.collect.collector import Outcome
from restante.collect.oauth.flow import Tokens
from restante.collect.oauth.sealed import Tokenfile
from restante.config import Configuration

from ..client.shells import scripted
from ..collect.odd import MAIL, Odd
from ..collect.test_killed import Death

TOKENS = Tokens(access="a", expires_at=0.0, refresh="r", user="ann", agreed_at=1.0)
STEPS = (
    (os, "fsync"),
    (os, "rename"),
    (os, "unlink"),
    (os, "link"),
    (Accounts, "enter"),
    (Accounts, "rename"),
    (Tokenfile, "put"),
    (Tokenfile, "forget"),
)


class Home:
    """A configuration with one account in a separate file, as written by `account add`."""

    def __init__(self, path: Path, tls: ssl.SSLContext, ca_file: Path) -> None:
        self.path, self._tls, self._ca = path, tls, ca_file
        self.state, self.folder = path / "state", path / "config" / "restante" / "conf.d"
        self.environment = {"STATE_DIRECTORY": str(self.state), "HOME": str(path)}
        self.environment["XDG_CONFIG_HOME"] = str(path / "config")
        secret = self.state / "passwords" / "isp"
        secret.parent.mkdir(parents=True)
        secret.write_text("pw\n")
        self.folder.mkdir(parents=True)
        other = secret.with_name("isp.to")
        other.write_text("other\n")
        self.write("account-isp.toml", "isp", secret, f'to_password = {{ file = "{other}" }}\n')

    def write(self, file: str, name: str, secret: Path, more: str = "") -> None:
        path = self.folder / file
        path.touch(0o600)
        path.write_text(
            f'# mine\n[account.{name}]\nurl = "pop3s://127.0.0.1:1"\nuser = "ann"  # me\n'
            f'password = {{ file = "{secret}" }}\nca_file = "{self._ca}"\n'
            f'to = "maildir:{self.path}/Mail"\nkeep = "none"\n{more}'
            f"[account.{name}.alert]\nafter = 3\n"
        )

    def load(self) -> Configuration:
        return config.load(environment=self.environment)

    def collect(self, server: Odd) -> Outcome:
        """Collect with the only account."""

        async def main() -> Outcome:
            async with scripted(server, tls=self._tls) as (port, _):
                for path in self.folder.iterdir():
                    path.write_text(path.read_text().replace("127.0.0.1:1\n", "127.0.0.1"))
                environment = dict(self.environment)
                found = self.load()
                (name,) = found.account
                environment[f"RESTANTE__ACCOUNT__{name.upper()}__URL"] = f"pop3s://127.0.0.1:{port}"
                found = config.load(environment=environment)
                with closing(open_ledger(found)) as ledger:
                    total = Outcome()
                    await runs.sessions(Job.of(found, name), ledger, total)
                    return total

        return asyncio.run(main())

    def rename(self, old: str = "isp", new: str = "home") -> int:
        with pytest.MonkeyPatch.context() as patch:
            for key, value in self.environment.items():
                patch.setenv(key, value)
            return run(["account", "rename", old, new])

    def put_tokens(self) -> None:
        for is_destination in (False, True):
            token_file(self.load(), "isp", is_destination=is_destination).put(TOKENS)

    @property
    def mail(self) -> int:
        return len(list((self.path / "Mail" / "new").iterdir()))


@pytest.fixture
def home(tmp_path: Path, server_tls: ssl.SSLContext, certificate: tuple[Path, Path]) -> Home:
    return Home(tmp_path, server_tls, certificate[0])


class Keeping(Odd):
    """A server that forgets deletions, so that collected messages are listed again."""

    def _update(self, gone: set[str]) -> None:
        pass


def test_all_that_an_account_has_gets_the_new_name(home: Home) -> None:
    home.put_tokens()
    server = Keeping()
    assert home.collect(server).stored == 3
    assert home.rename() == 0
    found = home.load()
    assert list(found.account) == ["home"]
    account = found.account["home"]
    assert (account.label, account.keep, account.alert.after) == ("isp", "none", 3)
    assert (home.folder / "account-home.toml").stat().st_mode & 0o777 == 0o600
    assert "# mine" in (home.folder / "account-home.toml").read_text()
    assert [each.name for each in home.folder.iterdir()] == ["account-home.toml"]
    secrets = sorted(each.name for each in (home.state / "passwords").iterdir())
    assert secrets == ["home", "home.to"]
    assert Path(str(account.password.value)).read_text() == "pw\n"
    assert Path(str(account.to_password.value)).read_text() == "other\n"
    for is_destination in (False, True):
        assert token_file(found, "home", is_destination=is_destination).get() == TOKENS
        assert token_file(found, "isp", is_destination=is_destination).get() is None
    again = home.collect(server)
    assert (again.stored, home.mail) == (0, 3)


def test_a_second_rename_keeps_the_first_label(home: Home) -> None:
    server = Keeping()
    home.collect(server)
    assert [home.rename(), home.rename("home", "third"), home.rename("third", "isp")] == [0, 0, 0]
    assert home.load().account["isp"].label == "isp"
    assert (home.collect(server).stored, home.mail) == (0, 3)


def test_with_a_lost_ledger_the_label_still_names_its_messages(home: Home) -> None:
    server = Keeping()
    home.collect(server)
    home.rename()
    for each in home.state.glob("ledger*"):
        each.unlink()
    assert (home.collect(server).stored, home.mail) == (0, 3)


@pytest.mark.parametrize("name", ["isp", "other"])
def test_another_server_at_another_port_has_other_mail(home: Home, name: str) -> None:
    """For example behind two tunnels; unique-ids and sizes do not identify a server."""
    (file,) = home.folder.iterdir()
    file.write_text(file.read_text().replace('"none"', '"all"'))
    home.collect(Keeping())
    file.write_text(file.read_text().replace("[account.isp", f"[account.{name}"))
    there = {key: text[:-3].swapcase() + text[-3:] for key, text in MAIL.items()}
    assert (home.collect(Keeping(mail=there)).stored, home.mail) == (3, 6)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("pop3s://pop.example.com", "pop3://POP.example.com:110", True),
        ("pop.example.com", "pop3s://pop.example.com:995", True),
        ("pop.example.com", "pop.example.org", False),
        ("pop3s://pop.example.com", "pop3s://pop.example.com:1995", False),
    ],
)
def test_an_account_is_known_by_its_server(
    home: Home, one: str, other: str, *, is_same: bool
) -> None:
    (file,) = home.folder.iterdir()
    addresses = set()
    for url in (one, other):
        file.write_text(re.sub(r'url = ".*"', f'url = "{url}"', file.read_text()))
        addresses.add(Job.of(home.load(), "isp").mailbox().address)
    assert len(addresses) == 2 - is_same


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("isp", "other", 64, "account 'other' already exists"),
        ("nothing", "home", 64, "no such account: 'nothing'"),
        ("isp", "a b", 64, "an account name may contain only letters"),
    ],
)
def test_impossible_renames_are_refused(
    old: str, new: str, code: int, words: str, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.write("other.toml", "other", home.state / "passwords" / "other")
    before = {path.name: path.read_text() for path in home.folder.iterdir()}
    assert home.rename(old, new) == code
    assert words in capsys.readouterr().err
    assert {path.name: path.read_text() for path in home.folder.iterdir()} == before


@pytest.mark.parametrize("is_own_file", [True, False])
def test_an_account_in_another_file_is_renamed_by_hand(
    is_own_file: bool, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if its own file has a form that the command does not understand."""
    home.put_tokens()
    server = Keeping()
    home.collect(server)
    path = home.folder / "account-isp.toml"
    if not is_own_file:
        path = path.rename(home.folder / "mine.toml")
    path.write_text(path.read_text().replace("[account.isp]", "[account]\n[account . 'isp']"))
    assert home.rename() == 78
    assert "by hand" in capsys.readouterr().err
    path.write_text(path.read_text().replace("'isp'", "home").replace(".isp.", ".home."))
    assert home.rename() == 0
    found = home.load()
    assert token_file(found, "home").get() == TOKENS
    assert Path(str(found.account["home"].password.value)).exists()
    assert (home.collect(server).stored, home.mail) == (0, 3)


def test_busy_accounts_are_not_renamed(home: Home) -> None:
    for name in ("isp", "home"):
        with closing(open_ledger(home.load())) as ledger, ledger.of(name).alone():
            assert home.rename() == 75


@pytest.mark.slow
@pytest.mark.parametrize("is_repeated", [True, False], ids=["repeated", "collected"])
def test_killed_at_every_step(
    is_repeated: bool,
    tmp_path: Path,
    server_tls: ssl.SSLContext,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of the names is valid and knows the collected messages; a second run finishes."""
    monkeypatch.setattr(job, "_STANDARD_PORTS", range(65_536))  # all ports count as the same server
    home, server = Home(tmp_path / "home", server_tls, certificate[0]), Keeping()
    home.put_tokens()
    home.collect(server)
    home.path.rename(tmp_path / "before")
    for moment in count():
        shutil.rmtree(home.path, ignore_errors=True)
        shutil.copytree(tmp_path / "before", home.path)
        child = os.fork()
        if child == 0:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            Death(moment).stalk(STEPS)
            home.rename()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if is_repeated:
            assert home.rename() == 0, moment
            assert list(home.load().account) == ["home"]
            assert [each.name for each in home.folder.iterdir()] == ["account-home.toml"]
            assert len(list((home.state / "passwords").iterdir())) == 2
        (name,) = home.load().account
        assert token_file(home.load(), name).get() == TOKENS, moment
        assert (home.collect(server).stored, home.mail) == (0, 3), moment
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert moment > 20
