"""Every example of the help, which is also that of the manual pages, runs as it is printed.

Each one begins with a home of its own: users, mail, another server and files of other programs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from restante.app import stores
from restante.cli.command import make_parser
from restante.cli.examples import EXAMPLES
from restante.config import load
from restante.testing import Pop3Server

from .conftest import Restante, program, started

HOUSE = Path(__file__).parent.parent.parent
MESSAGE = b"From: bob@example.net\r\nSubject: hello\r\n\r\nhi\r\n"
PASSWORD = "tan staaf"
GROUPS = sorted({verb.split()[0] for verb in EXAMPLES})
ALL = {example for examples in EXAMPLES.values() for example in examples}

# Examples that cannot run in a test. Their arguments are parsed all the same.
ONLY_PARSED = {
    'restante log --since "-1 hour"': "reads the journal of systemd",
    "restante account add ann@outlook.com --to maildrop:ann": "signs in at Microsoft",
    "restante account auth isp": "signs in at a provider",
    "restante account auth isp --device": "signs in at a provider",
    **dict.fromkeys(EXAMPLES["init"], "sets up this machine; tests/cli/test_init.py runs it"),
}

CONTROL = [
    example
    for verb in ("status", "log", "reload", "sessions", "sessions list", "sessions end")
    for example in EXAMPLES[verb]
]

# Examples whose exit code is their answer: that login would be refused, no server is running
# (with one: tests/app/test_control.py).
ANSWERS = {
    "restante auth why ann 192.0.2.7 --clear": os.EX_NOPERM,
    **dict.fromkeys([*CONTROL, *EXAMPLES["doctor"]], os.EX_UNAVAILABLE),
}

# The beginnings of examples that run until a signal stops them.
UNTIL_STOPPED = (
    "restante serve",
    "restante -c /etc/restante/restante.toml serve",
    "restante collect --all --watch",
)

ANN = "restante user add ann"
MAIL = "restante deliver ann < message"
ISP = "restante account add isp pop3s://ann@pop.example.org --to maildir:Mail"
COLLECTED = (ISP, "restante collect isp")
HELD = "(a client deletes the messages of ann)"
LOST = "(the state directory is lost)"

# Commands that come before an example, by how it begins; the longest match counts.
BEFORE: dict[str, tuple[str, ...]] = {
    "restante": (),
    "restante user": (ANN,),
    "restante user add": (),
    "restante user app-password": (ANN, "restante user app-password new ann laptop"),
    "restante user app-password revoke": (ANN, "restante user app-password new ann phone"),
    "restante auth": (ANN,),
    "restante maildrop": (ANN, MAIL, MAIL, HELD, MAIL),
    "restante maildrop purge": (ANN, MAIL, HELD),
    "restante deliver": (ANN,),
    "restante doctor": (ANN,),
    "restante import": (ANN,),
    "restante account": COLLECTED,
    "restante account add": (),
    "restante account adopt": (ISP, "restante fetch pop3s://ann@pop.example.org --to Mail --keep"),
    "restante collect": (ISP,),
    "restante backup": (ANN, MAIL),
    "restante backup --verify": (ANN, MAIL, "restante backup /var/backups/restante/"),
    "restante restore": (
        ANN,
        "restante backup /var/backups/restante/",
        "restante backup /var/backups/restante/restante.tar.gz",
        LOST,
    ),
}

# An example's paths and hosts, and what stands for them here.
PLACES = {
    "pop.example.org": "localhost:{port}",
    "/srv/old": "{home}/old",
    "/etc/restante/restante.toml": "{home}/restante.toml",
    "127.0.0.1:1995": "127.0.0.1:0",
    "/var/backups/restante": "{home}/backups",
}


def parsers(
    parser: argparse.ArgumentParser, path: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield each verb and action with its parser, without deprecated names."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            shown = {each.dest for each in action._choices_actions}
            for name, below in action.choices.items():
                if name in shown:
                    yield f"{path}{name}", below
                    yield from parsers(below, f"{path}{name} ")


def arguments(example: str) -> list[str]:
    """The words behind the name of the program, without what is for the shell."""
    assert not set(example) & set("|;&$`\\"), "the shell would do something else with it"
    words = shlex.split(example.partition(" < ")[0].partition(" > ")[0])
    assert words[0] == "restante"
    return words[1:]


def before(example: str) -> tuple[str, ...]:
    longest = max((each for each in BEFORE if example.startswith(each)), key=len)
    return BEFORE[longest]


def test_every_verb_has_examples_in_its_help() -> None:
    verbs = dict(parsers(make_parser(is_complete=True)))
    assert EXAMPLES.keys() == verbs.keys()
    for verb, parser in verbs.items():
        text = parser.format_help()
        for example in EXAMPLES[verb]:
            assert f"\n  {example}\n" in f"{text}\n", verb
            assert len(example) <= 78, "with two spaces before it, a terminal has 80 columns"


@pytest.mark.parametrize("verb", EXAMPLES)
def test_an_example_is_parsed_and_is_one_of_its_verb(verb: str) -> None:
    for example in EXAMPLES[verb]:
        options = make_parser(is_complete=True).parse_args(arguments(example))
        assert callable(options.run), example
        words = [word for word in arguments(example) if word not in ("-c", "restante.toml")]
        assert verb.split() == [word for word in words if "/" not in word][: len(verb.split())]


def test_nothing_is_excused_that_is_no_example() -> None:
    assert ONLY_PARSED.keys() | ANSWERS.keys() <= ALL
    for beginning in (*UNTIL_STOPPED, *BEFORE, *PLACES):
        assert any(beginning in example for example in ALL), beginning


class World:
    """A home in which an example can run, and another server with mail for ann."""

    def __init__(self, home: Path, restante: Restante, server: Pop3Server) -> None:
        self._home, self._restante, self._server = home, restante, server

    def begin(self) -> None:
        """Empty the home, and put the files of other programs there."""
        for path in self._home.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in ("state", "config", "tmp", ".getmail", "backups"):
            (self._home / name).mkdir()
        self._server.deliver("ann", MESSAGE)
        retriever = "[retriever]\ntype = SimplePOP3SSLRetriever\nserver = h\nusername = u\n"
        destination = "password = p\n[destination]\ntype = Maildir\npath = Mail/\n"
        mbox = b"From - Mon Nov 30 06:00:00 2026\n" + MESSAGE
        files = {
            "message": MESSAGE,
            "ann.password": f"{PASSWORD}\n".encode(),
            "restante.toml": b"[log]\nlevel = 'info'\n",
            ".getmail/getmailrc": (retriever + destination).encode(),
            ".fetchmailrc": b"poll a.example proto pop3 user u pass p ssl\n",
            ".mpoprc": b"account b\nhost b\nuser u\npassword p\n",
            "Inbox": mbox,
            "old/mbox": mbox,
            "old/spool/1.": MESSAGE,
            "old/Maildir/cur/1.example:2,": MESSAGE,
            "old/Maildir/dovecot-uidlist": b"3 V1 N2 G0\n1 :1.example\n",
            "old/Maildir/courierpop3dsizelist": b"/3 1\n1.example %d 1:1\n" % len(MESSAGE),
        }
        for name, octets in files.items():
            (self._home / name).parent.mkdir(parents=True, exist_ok=True)
            (self._home / name).write_bytes(octets)
            (self._home / name).chmod(0o600)
        for name in ("new", "tmp"):
            (self._home / "old" / "Maildir" / name).mkdir()

    def run(self, example: str) -> None:
        """Run one; a question is answered with the password or with yes."""
        if example == HELD:
            asyncio.run(self._delete())
            return
        if example == LOST:
            shutil.rmtree(self._home / "state")
            return
        words = [self._here(word) for word in arguments(example)]
        if example.startswith(UNTIL_STOPPED):
            with started(*words, "--json") as process:  # it prints a line when it is ready
                assert process.stdout is not None
                assert process.stdout.readline().startswith(b"{")
                process.terminate()
                assert process.wait(20) == 0, example
                assert process.stderr is not None
                assert b"Traceback" not in process.stderr.read()
            return
        if example == "restante demo":  # it starts a server
            assert program(*words).code == 0
            return
        if (set(words) & {"rm", "purge"} or words[0] == "restore") and "--yes" not in words:
            words.append("--yes")  # on a terminal it would ask
        reads_file = " < " in example
        done = self._restante(*words, stdin=MESSAGE if reads_file else f"{PASSWORD}\n".encode() * 2)
        assert done.code == ANSWERS.get(example, 0), (example, done)

    def _here(self, word: str) -> str:
        for place, here in PLACES.items():
            word = word.replace(place, here.format(home=self._home, port=self._server.port))
        return word

    async def _delete(self) -> None:
        async with stores.store(load()).open("ann") as maildrop:
            assert not await maildrop.remove(maildrop.listing)


@pytest.fixture
def world(home: Path, monkeypatch: pytest.MonkeyPatch, restante: Restante) -> Iterator[World]:
    monkeypatch.chdir(home)
    monkeypatch.setenv("RESTANTE_PASSWORD", PASSWORD)
    monkeypatch.setenv("RESTANTE__SERVER__LISTEN", "pop3s://127.0.0.1:0")
    monkeypatch.setenv("RESTANTE__INTAKE__SMTP__LISTEN", "127.0.0.1:0")
    with Pop3Server(users={"ann": PASSWORD, "ann@example.org": PASSWORD}) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.ca_file))
        yield World(home, restante, server)


# -- The files of a verb in its manual page

# A hook cannot be removed, so it writes to whatever set is here.
OPENED: list[set[str]] = []
# Listed files that no example opens here, and when they are.
UNOPENED = {
    **{verb: {"control"} for verb in ("log", "reload", "sessions", "status")},  # no server runs
    "account": {"users.sqlite3", "tokens"},  # for maildrop:USER; after signing in
    "collect": {"users.sqlite3", "mail", "tokens"},  # the same
    "doctor": {"tls", "control"},  # no server runs
    "check": {"users.sqlite3"},  # where a configuration is checked that has users
}
OWN_PROCESS = {"demo", "serve"}
ALL_FILES = {"backup", "restore"}


def note_opened(event: str, arguments: tuple[object, ...]) -> None:
    if OPENED and event in ("open", "sqlite3.connect"):
        OPENED[-1].add(str(arguments[0]))


@pytest.fixture(scope="module")
def hook() -> None:
    sys.addaudithook(note_opened)


def files_of(verb: str) -> tuple[set[str], set[str]]:
    """The files of a verb in the state directory, and those of all verbs."""
    files = runpy.run_path(str(HOUSE / "docs" / "generate.py"))["FILES"]
    rows = [row for row in files if not row[0].endswith(".toml")]
    return {name for name, _, verbs in rows if verb in verbs.split()}, {row[0] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.usefixtures("hook")
def test_every_example_runs_with_the_files_of_its_manual_page(group: str, world: World) -> None:
    examples = [each for verb in EXAMPLES if verb.split()[0] == group for each in EXAMPLES[verb]]
    paths: set[str] = set()
    for example in dict.fromkeys(examples):
        if example not in ONLY_PARSED:
            world.begin()
            for command in before(example):
                world.run(command)
            OPENED.append(paths)
            world.run(example)
            OPENED.clear()
    if group in OWN_PROCESS | ALL_FILES:
        return
    files, known = files_of(group)
    names = set(re.findall(r"/state/restante/([^/?\n]+)", "\n".join(paths)))
    assert names & known == files - UNOPENED.get(group, set())
