"""All programs that deliver into local maildrops map names to users in the same way."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from restante import config
from restante.app import gateway, local
from restante.app.gateway import Gateway
from restante.errors import BackendUnavailable, ConfigurationError, NoSuchUser
from restante.testing import Pop3Server

from ..cli.conftest import Restante

MESSAGE = b"Subject: one\n\nhello\n"
LARGE = b"Subject: two\n\n" + 999 * b"x\n"
MEANS_ANN = ["ann", "Ann", "ANN", "\N{LATIN SMALL LETTER A}nn", "ann+lists", "ann@localhost"]
MEANS_ANN += ["Ann+Lists@LOCALHOST"]
MEANS_NONE = ["bob", "ann@example.org", "a\N{COMBINING DIAERESIS}nn", "", "../ann", "ann/"]


@pytest.fixture
def upstream() -> Iterator[Pop3Server]:
    with Pop3Server(users={"u": "pw"}, sasl=()) as running:
        yield running


@pytest.fixture
def configure(home: Path, upstream: Pop3Server) -> Configure:
    return Configure(home, upstream)


class Configure:
    """Writes an account and other configuration for a test."""

    def __init__(self, home: Path, upstream: Pop3Server) -> None:
        self.home = home
        self.upstream = upstream
        self.path = home / "config/restante/restante.toml"
        self.path.parent.mkdir(parents=True)
        self.path.touch(0o600)

    def __call__(self, to: str, more: str = "", store: str = "", keep: str = "none") -> None:
        upstream = self.upstream
        self.path.write_text(
            f'[store]\n{store}\n[account.isp]\nurl = "pop3s://localhost:{upstream.port}"\n'
            f'user = "u"\npassword = "pw"\nca_file = "{upstream.ca_file}"\nkeep = "{keep}"\n'
            f"to = {config.toml(to)}\n{more}\n"
        )


def in_maildrop(restante: Restante, user: str = "ann") -> int:
    return len(restante("--json", "maildrop", "show", user).json["messages"])


@pytest.mark.parametrize("name", MEANS_ANN)
def test_all_deliveries_find_the_same_user(
    name: str, restante: Restante, ann: str, configure: Configure
) -> None:
    configure.upstream.deliver("u", MESSAGE)
    configure(f"maildrop:{name}")
    assert restante("deliver", name, stdin=MESSAGE).code == 0
    assert restante("check").code == 0
    assert restante("collect", "isp").code == 0
    assert in_maildrop(restante) == 2
    assert configure.upstream.messages("u") == []
    assert [path.name for path in (configure.home / "state/restante/mail").iterdir()] == ["ann"]


@pytest.mark.parametrize("name", MEANS_NONE)
def test_no_delivery_accepts_mail_for_an_unknown_name(
    name: str, restante: Restante, ann: str, configure: Configure
) -> None:
    """No mail is fetched, deleted or stored, and a gateway does not start."""
    configure.upstream.deliver("u", MESSAGE)
    configure(f"maildrop:{name}", 'poll_on_login = "5s"')
    assert restante("deliver", name, stdin=MESSAGE).code != 0
    checked, collected = restante("check"), restante("collect", "isp")
    assert (checked.code, collected.code) == (78, 78)
    assert "account.isp.to: " in checked.err
    assert "no such user" in collected.err
    assert len(configure.upstream.messages("u")) == 1
    assert list(configure.home.glob("state/restante/mail/**/new/*")) == []
    with pytest.raises(ConfigurationError, match=r"account\.isp\.to"):
        gateway.validate(config.load(configure.path, environment=environment(configure.home)))


def environment(home: Path) -> dict[str, str]:
    return {"STATE_DIRECTORY": str(home / "state/restante")}


def test_a_user_who_cannot_have_a_maildrop_is_refused(
    restante: Restante, ann: str, configure: Configure, tmp_path: Path
) -> None:
    """The path of maildrops contains a domain, and the user name has none."""
    configure.upstream.deliver("u", MESSAGE)
    (tmp_path / "store").mkdir()
    configure("maildrop:ann", store=f'path = "{tmp_path}/store/%d/%n"')
    assert restante("check").code == 78
    assert restante("collect", "isp").code == 78
    assert len(configure.upstream.messages("u")) == 1


def test_a_store_in_memory_is_refused(restante: Restante, ann: str, configure: Configure) -> None:
    configure.upstream.deliver("u", MESSAGE)
    configure("maildrop:ann", store='kind = "memory"')
    assert restante("check").code == 78
    assert restante("collect", "isp").code == 78
    assert len(configure.upstream.messages("u")) == 1


def test_collector_waits_for_an_unmounted_disk(
    restante: Restante, ann: str, configure: Configure, tmp_path: Path
) -> None:
    """Nothing is written to the mount point; after the mount everything works."""
    configure.upstream.deliver("u", MESSAGE)
    disk = tmp_path / "disk"
    disk.mkdir()
    configure("maildrop:ann", store=f'path = "{disk}/mail/%u"')
    found = restante("collect", "isp")
    assert (found.code, list(disk.iterdir())) == (75, [])
    assert "is it mounted?" in found.err
    assert len(configure.upstream.messages("u")) == 1
    (disk / "mail").mkdir()
    assert restante("collect", "isp").code == 0
    assert in_maildrop(restante) == 1


@pytest.mark.parametrize("to", ["maildir:{}/disk/Mail", "mbox:{}/disk/mbox", "{}/disk/Mail"])
def test_parent_directory_of_a_destination_is_never_created(
    to: str, restante: Restante, configure: Configure, tmp_path: Path
) -> None:
    configure.upstream.deliver("u", MESSAGE)
    configure(to.format(tmp_path))
    checked, collected = restante("check"), restante("collect", "isp")
    assert (checked.code, collected.code) == (78, 75)
    assert f"mkdir -p {tmp_path}/disk" in checked.err
    assert f"{tmp_path}/disk does not exist" in collected.err
    assert not (tmp_path / "disk").exists()
    assert len(configure.upstream.messages("u")) == 1


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("maildirr:x", "a destination is"),
        ("lmtp:nowhere", "host:port"),
        ("imaps://ann@mail.example.org/", "to_password"),
        ("gmail:Old", "to_oauth"),
        ("command:/nowhere/at/all", "program not found"),
    ],
)
def test_check_names_a_destination_that_cannot_work(
    to: str, words: str, restante: Restante, configure: Configure
) -> None:
    configure(to)
    found = restante("check")
    assert found.code == 78
    assert "account.isp.to: " in found.err
    assert words in found.err


def test_check_misses_a_user_database(restante: Restante, configure: Configure) -> None:
    """A server may wait for its disk, but `check` reports it."""
    configure("maildrop:ann", 'poll_on_login = "5s"')
    found = restante("check")
    assert (found.code, "run: restante user add" in found.err) == (78, True)
    assert restante("collect", "isp").code == 75
    gateway.validate(config.load(configure.path, environment=environment(configure.home)))


def test_check_verifies_the_alert_destination(
    restante: Restante, ann: str, configure: Configure
) -> None:
    configure("maildrop:ann", 'alert = { after = 3, to = "maildrop:postmistress" }')
    found = restante("check")
    assert found.code == 78
    assert "account.isp.alert.to: maildrop:postmistress: no such user" in found.err


def test_mail_that_does_not_fit_stays_on_its_server(
    restante: Restante, ann: str, configure: Configure
) -> None:
    """Messages that fit are stored and counted, the rest comes when there is room."""
    for _ in range(20):
        configure.upstream.deliver("u", LARGE)
    configure("maildrop:ann", store="quota = 10_000")
    found = restante("collect", "isp")
    assert found.code == 75
    assert "its quota is 10000 octets" in found.err
    assert "17 left for later because of the full destination" in found.out
    assert (in_maildrop(restante), len(configure.upstream.messages("u"))) == (3, 17)
    assert restante("deliver", "ann", stdin=LARGE).code == 75
    assert restante("collect", "isp").code == 75
    assert in_maildrop(restante) == 3
    assert len(configure.upstream.messages("u")) == 17
    restante("user", "quota", "ann", "none")
    assert restante("collect", "isp").code == 0
    assert (in_maildrop(restante), len(configure.upstream.messages("u"))) == (20, 0)


def test_a_message_larger_than_the_quota_does_not_stop_the_rest(
    restante: Restante, ann: str, configure: Configure
) -> None:
    for octets in (MESSAGE, LARGE, MESSAGE):
        configure.upstream.deliver("u", octets)
    configure("maildrop:ann", store="quota = 1_000")
    found = restante("collect", "isp")
    assert found.code == 0
    assert "larger than the whole quota" in found.err
    assert (in_maildrop(restante), len(configure.upstream.messages("u"))) == (2, 1)


def test_maildrop_that_was_moved_away_and_back_gets_no_duplicates(
    restante: Restante, ann: str, configure: Configure
) -> None:
    """As after a restore: file names identify messages without index and ledger."""
    configure.upstream.deliver("u", MESSAGE)
    configure("maildrop:ann", 'keep = "all"'.replace("keep", 'every = "0"\n#keep'))
    assert restante("collect", "isp").code == 0
    state = configure.home / "state/restante"
    shutil.copytree(state / "mail/ann", configure.home / "backup")
    shutil.rmtree(state / "mail/ann")
    shutil.copytree(configure.home / "backup", state / "mail/ann")
    for each in state.glob("ledger*"):
        each.unlink()
    configure.upstream.deliver("u", MESSAGE)
    assert restante("collect", "isp").code == 0
    assert in_maildrop(restante) == 2


# The gateway.


class Names:
    """A user directory that may be unavailable."""

    def __init__(self, **maildrops: str) -> None:
        self.maildrops = maildrops
        self.is_away = False
        self.asked: list[str] = []

    async def maildrop_of(self, recipient: str) -> str:
        self.asked.append(recipient)
        if self.is_away:
            raise BackendUnavailable("away")
        if recipient not in self.maildrops:
            raise NoSuchUser(recipient)
        return self.maildrops[recipient]


def test_gateway_polls_for_the_user_of_its_maildrop(
    restante: Restante, ann: str, configure: Configure
) -> None:
    """By the same lookup as deliveries, not by the spelling in the configuration."""
    configure.upstream.deliver("u", MESSAGE)
    configure("maildrop:Ann+shop", 'poll_on_login = "20s"\nevery = "0"')
    found = config.load(configure.path, environment=environment(configure.home))
    polling = Gateway(found, Names(**{"Ann+shop": "ann"}))
    asyncio.run(polling.poll("bob"))
    assert in_maildrop(restante) == 0
    asyncio.run(polling.poll("ann"))
    assert in_maildrop(restante) == 1


def test_a_gateway_looks_names_up_again_when_it_could_not(
    restante: Restante, ann: str, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not at each login, which would have to wait for an unavailable directory."""
    configure.upstream.deliver("u", MESSAGE)
    configure("maildrop:ann", 'poll_on_login = "20s"\nevery = "0"')
    names = Names(ann="ann")
    names.is_away = True
    polling = Gateway(config.load(configure.path, environment=environment(configure.home)), names)
    assert polling
    for _ in range(3):
        asyncio.run(polling.poll("ann"))
    assert names.asked == ["ann"]
    names.is_away = False
    monkeypatch.setattr(gateway, "_RETRY_EVERY", 0.0)
    polling._retry_at = 0.0
    asyncio.run(polling.poll("ann"))
    assert in_maildrop(restante) == 1


def test_the_door_is_closed_behind_the_last_message(
    restante: Restante, ann: str, configure: Configure
) -> None:
    """A gateway opens the maildrop at every login: no descriptor may stay open."""
    configure("maildrop:ann")
    found = config.load(configure.path, environment=environment(configure.home))
    descriptors = Path("/proc/self/fd")
    local.open_maildrop(found, "ann").close()
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        destination = local.open_maildrop(found, "ann")
        assert destination.begin("x")
        destination.write(b"x")
        destination.close()
    assert len(list(descriptors.iterdir())) == before
    assert list(configure.home.glob("state/restante/mail/ann/tmp/*")) == []
