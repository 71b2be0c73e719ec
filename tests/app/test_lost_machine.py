"""A machine is lost, and a backup that was made under load brings everything back."""

from __future__ import annotations

import itertools
import json
import os
import poplib
import shutil
import smtplib
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from restante.app import tokens
from restante.collect.oauth.flow import Tokens
from restante.config import load
from restante.testing import Pop3Server

from ..cli.conftest import Outcome, program, started

PASSWORD = "tan staaf"
pytestmark = pytest.mark.slow


@dataclass
class Story:
    """What happened to each message, by its name in the subject; times are monotonic."""

    delivered: dict[str, float] = field(default_factory=dict)
    """When the sender got 250."""
    deleting: dict[str, float] = field(default_factory=dict)
    """When QUIT was sent."""
    deleted: dict[str, float] = field(default_factory=dict)
    """When its answer came."""
    ids: dict[str, str] = field(default_factory=dict)
    """Unique-ids that a client has seen."""
    errors: list[BaseException] = field(default_factory=list)


class Server:
    """A running server with its addresses."""

    def __init__(self, process: subprocess.Popen[bytes], addresses: dict[str, Any]) -> None:
        self.process, self._addresses = process, addresses

    @contextmanager
    def session(self, user: str, password: str = PASSWORD) -> Iterator[poplib.POP3_SSL]:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host, _, port = self._addresses["pop3s"].rpartition(":")
        client = poplib.POP3_SSL(host, int(port), context=context, timeout=30)
        try:
            client.user(user)
            client.pass_(password)
            yield client
            client.quit()
        except BaseException:
            client.close()
            raise

    def deliver(self, user: str, name: str) -> None:
        with smtplib.LMTP(self._addresses["lmtp_unix"]) as client:
            client.sendmail("", [user], f"Subject: {name}\r\n\r\n{name * 50}\r\n")


@contextmanager
def serving() -> Iterator[Server]:
    with started("--json", "serve") as process:
        assert process.stdout is not None
        yield Server(process, json.loads(process.stdout.readline()))
        process.terminate()
        process.communicate(timeout=30)


def must(*words: str | Path, stdin: bytes = b"") -> Outcome:
    done = program(*words, stdin=stdin)
    assert done.code == 0, done
    return done


def listing(client: poplib.POP3_SSL) -> dict[str, str]:
    """Return the name of each message by its unique-id; every message must be whole."""
    names = {}
    for line in client.uidl()[1]:
        number, unique_id = line.decode().split()
        lines = client.retr(int(number))[1]
        name = next(each for each in lines if each.startswith(b"Subject: ")).decode()[9:]
        assert lines[-1].decode() == name * 50
        names[unique_id] = name
    return names


def load_on(server: Server, story: Story, user: str, stop: threading.Event, pause: float) -> None:
    """Deliver to a user without end."""
    try:
        for number in itertools.count():
            if stop.is_set():
                return
            name = f"{user}-{number:05}"
            server.deliver(user, name)
            story.delivered[name] = time.monotonic()
            time.sleep(pause)
    except BaseException as error:
        story.errors.append(error)


def polling(server: Server, story: Story, user: str, stop: threading.Event) -> None:
    """Download what is new, and delete the oldest messages."""
    try:
        while not stop.is_set():
            names: list[str] = []
            with suppress(poplib.error_proto), server.session(user) as client:
                rows = [line.decode().split() for line in client.uidl()[1]]
                for number, unique_id in rows[:20]:
                    lines = client.retr(int(number))[1]
                    name = next(each for each in lines if each[:9] == b"Subject: ").decode()[9:]
                    story.ids[name] = unique_id
                for number, unique_id in rows[:5]:
                    client.dele(int(number))
                    names += [each for each, seen in story.ids.items() if seen == unique_id]
                story.deleting |= dict.fromkeys(names, time.monotonic())
            story.deleted |= dict.fromkeys(names, time.monotonic())
    except BaseException as error:
        story.errors.append(error)


@pytest.fixture
def upstream() -> Iterator[Pop3Server]:
    with Pop3Server(users={"u": "pw"}, sasl=()) as running:
        yield running


@pytest.fixture
def machine(home: Path, upstream: Pop3Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server for ann and bob, with an account from which mail is collected."""
    monkeypatch.setenv("RESTANTE__SERVER__LISTEN", "pop3s://127.0.0.1:0")
    monkeypatch.setenv("RESTANTE__INTAKE__SMTP__LISTEN", "127.0.0.1:0")
    folder = home / "config" / "restante"
    folder.mkdir()
    (folder / "restante.toml").write_text(
        f"[server]\nworkers = 2\n[intake.lmtp]\nlisten = ['unix:{home}/lmtp.sock']\n"
        f'[account.isp]\nurl = "pop3s://localhost:{upstream.port}"\n'
        f'user = "u"\npassword = "pw"\nca_file = "{upstream.ca_file}"\nkeep = "all"\n'
        'to = "maildrop:ann"\n'
    )
    (folder / "restante.toml").chmod(0o600)
    for user in ("ann", "bob"):
        must("user", "add", user, stdin=f"{PASSWORD}\n".encode())
    for number in range(5):
        name = f"isp-{number}"
        upstream.deliver("u", f"Subject: {name}\r\n\r\n{name * 50}\r\n".encode())
    return home


@pytest.mark.parametrize("kind", ["backup.tar.gz", "backups/"])
def test_backup_under_load_brings_everything_back(
    machine: Path, upstream: Pop3Server, kind: str
) -> None:
    place, story, stop = machine / kind, Story(), threading.Event()
    app_password = must("user", "app-password", "new", "ann", "phone", "--json").out
    secret = json.loads(app_password)["password"]
    token = Tokens("access", time.time() + 3600, "refresh", None, time.time(), "u")
    tokens.token_file(load(), "isp").put(token)
    must("collect", "isp")
    fill(machine, "bob", 700, 0)
    with serving() as server:
        threads = [
            threading.Thread(target=load_on, args=(server, story, "ann", stop, 0.02)),
            threading.Thread(target=load_on, args=(server, story, "bob", stop, 0.005)),
            threading.Thread(target=polling, args=(server, story, "bob", stop)),
        ]
        for thread in threads:
            thread.start()
        time.sleep(1)
        with server.session("ann") as client:
            known = listing(client)
        if kind == "backups/":
            must("backup", f"{place}/")
        began = time.monotonic()
        report = json.loads(
            must("backup", str(machine / kind) + "/" * kind.endswith("/"), "--json").out
        )
        ended = time.monotonic()
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join()
    assert story.errors == []
    assert story.deleted, "nothing was deleted"
    assert report["destroyed"] == 0

    for name in ("state", "config"):
        shutil.rmtree(machine / name)
    must("backup", "--verify", place)
    must("restore", place, "--yes")
    must("maildrop", "verify", "--all")

    with serving() as server:
        with server.session("ann") as client:
            ann = listing(client)
        with server.session("ann", secret):
            pass
        with server.session("bob") as client:
            bob = listing(client)
    # A client that polled before downloads nothing again.
    assert {each: ann.get(each) for each in known} == known
    rows = json.loads(must("maildrop", "held", "bob", "--json").out)["messages"]
    must("maildrop", "restore", "bob", "--all", "--same-uidl")
    with serving() as server, server.session("bob") as client:
        all_of_bob = listing(client)
    held = {row["unique_id"] for row in rows}
    assert held.isdisjoint(bob)
    assert len(all_of_bob) == len(held) + len(bob)
    check_story(story, Backup(began, ended, ann, bob, all_of_bob))
    # The collector knows what it has collected, and can still use its tokens.
    assert json.loads(must("collect", "isp", "--json").out)["stored"] == 0
    assert len(upstream.messages("u")) == 5
    assert tokens.token_file(load(), "isp").get() == token


@dataclass
class Backup:
    """When a backup was made, and the unique-ids and names of what it contained."""

    began: float
    ended: float
    ann: dict[str, str]
    bob: dict[str, str]
    all_of_bob: dict[str, str]
    """With the held messages."""


def check_story(story: Story, backup: Backup) -> None:
    """Compare what was restored with what happened."""
    listed = set(backup.bob.values())
    assert len(listed) == len(backup.bob)
    present = {*backup.ann.values(), *backup.all_of_bob.values()}
    before = {name for name, at in story.delivered.items() if at < backup.began}
    assert before <= present, "nothing that was there is lost, also if it was deleted since"
    # The sender may have got its answer some time after the delivery.
    after = {name for name, at in story.delivered.items() if at > backup.ended + 0.5}
    assert not after & present
    seen = {name: unique_id for unique_id, name in backup.all_of_bob.items()}
    assert {n: story.ids[n] for n in story.ids if n in seen} == {
        n: seen[n] for n in story.ids if n in seen
    }
    deleted = {name for name, at in story.deleted.items() if at < backup.began}
    assert not deleted & listed, "a deleted message is listed again"
    not_deleted = {
        name
        for name in before
        if name.startswith("bob") and story.deleting.get(name, backup.ended) >= backup.ended
    }
    assert not_deleted <= listed, "a message is held that was not deleted"


def fill(machine: Path, user: str, messages: int, octets: int) -> None:
    """Put messages into a maildrop, as another program would."""
    must("deliver", user, stdin=b"Subject: first\n\n" + b"first" * 50 + b"\n")
    place = machine / "state/restante/mail" / user / "new"
    for number in range(messages):
        name = f"{user}-fill-{number:05}"
        text = name * 50 if not octets else "x" * octets
        (place / f"1.{name}").write_text(f"Subject: {name}\n\n{text}\n")


def delays(count: int) -> Iterator[float]:
    """Seconds after which a process is killed; the last ones are enough for it to finish."""
    return itertools.chain((0.2 + number / 25 for number in range(count)), itertools.repeat(30.0))


@pytest.mark.parametrize("path", ["a.tar", "b/"])
def test_killed_backup_leaves_nothing_that_looks_complete(machine: Path, path: str) -> None:
    fill(machine, "ann", 40, 100_000)
    place = machine / path
    for delay in delays(5):
        code = killed_after(delay, "backup", f"{machine}/{path}", "--overwrite")
        if code == 0:
            break
        assert code == -9
        done = program("backup", "--verify", place)
        assert done.code == 0 or not (list(place.glob("2*")) if place.is_dir() else place.exists())
    must("backup", "--verify", place)


def test_killed_restore_is_recognised_and_repeated(machine: Path) -> None:
    fill(machine, "ann", 200, 100_000)
    must("backup", machine / "a.tar")
    wanted = must("maildrop", "show", "ann").out
    shutil.rmtree(machine / "state")
    state, kills = machine / "state/restante", 0
    for files in (0, 1, 50, 150):
        with started("restore", machine / "a.tar", "--yes") as process:
            while process.poll() is None and files_below(state) <= files:
                pass
            process.kill()
            process.communicate()
        if not (state / "restore.incomplete").exists():
            break  # it was complete
        kills += 1
        with started("serve") as process:
            _, errors = process.communicate(timeout=30)
        assert (process.returncode, b"is not complete" in errors) == (os.EX_TEMPFAIL, True)
    assert kills
    if (state / "restore.incomplete").exists():
        must("restore", machine / "a.tar", "--yes")
    assert must("maildrop", "show", "ann").out == wanted
    must("maildrop", "verify", "--all")


def files_below(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def killed_after(seconds: float, *words: str | Path) -> int:
    with started(*words) as process:
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        return process.returncode


def test_restore_refuses_the_running_server(machine: Path) -> None:
    must("backup", machine / "a.tar")
    with serving():
        done = program("restore", machine / "a.tar", "--yes")
        assert (done.code, "the server is running" in done.err) == (os.EX_TEMPFAIL, True)
