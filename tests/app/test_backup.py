"""``restante backup`` and ``restante restore``: everything comes back, or nothing is written."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from restante.app import stores
from restante.app.backup import manifest, reading, restoring, writing
from restante.config import load
from restante.errors import Damaged, RestanteError
from restante.store import files as store_files
from restante.store import snapshot
from restante.store.paths import Template
from restante.syncing import sync_files

from ..cli.conftest import Restante

MESSAGE = b"From: bob@example.net\r\nSubject: hello\r\n\r\nhi\r\n"
KINDS = ("backup.tar", "backup.tar.gz", "backups/")


@pytest.fixture
def place(home: Path) -> Path:
    """A directory for backups."""
    (home / "place").mkdir()
    return home / "place"


@pytest.fixture
def mail(restante: Restante, ann: str, home: Path) -> None:
    """A configuration, two users, mail, held mail, an app password and files of other programs."""
    folder = home / "config" / "restante"
    (folder / "conf.d").mkdir(parents=True)
    (folder / "restante.toml").write_text("[log]\nlevel = 'warning'\n")
    (folder / "conf.d" / "a.toml").write_text("[store]\nhold = '3d'\n")
    (folder / "restante.toml").chmod(0o640)
    assert restante("user", "add", "ben@example.org", stdin=b"tan staaf\n").code == 0
    for user in ("ann", "ann", "ben@example.org"):
        assert restante("deliver", user, stdin=MESSAGE).code == 0
    assert restante("user", "app-password", "new", "ann", "phone").code == 0

    async def delete() -> None:
        async with stores.store(load()).open("ann") as maildrop:
            assert not await maildrop.remove(maildrop.listing[:1])

    asyncio.run(delete())
    (home / "state" / "restante" / "passwords").mkdir()
    (home / "state" / "restante" / "passwords" / "isp").write_text("secret\n")


def unique_ids(user: str = "ann") -> list[str]:
    async def listed() -> list[str]:
        async with stores.store(load()).open(user) as maildrop:
            return [entry.unique_id for entry in maildrop.listing]

    return asyncio.run(listed())


def files(*places: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, mtime and content of all files, without those that are made again automatically."""
    left_out = ("restante.index", "restante.lock", "users.sqlite3", "maildirsize", "clock.lock")
    return {
        str(path): (
            stat.S_IMODE(path.stat().st_mode),
            path.stat().st_mtime_ns,
            path.read_bytes(),
        )
        for place in places
        for path in place.rglob("*")
        if path.is_file() and path.name not in left_out
    }


def destroy(home: Path) -> None:
    for name in ("state", "config"):
        shutil.rmtree(home / name)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_comes_back(
    restante: Restante, mail: None, home: Path, place: Path, kind: str
) -> None:
    before = files(home / "state", home / "config")
    ids = unique_ids()
    users, held = restante("user", "list").out, restante("maildrop", "held", "ann").out
    done = restante("backup", f"{place}/{kind}")
    assert done.code == 0, done.err
    destroy(home)
    assert restante("backup", "--verify", f"{place}/{kind}").code == 0
    done = restante("restore", f"{place}/{kind}", "--yes")
    assert done.code == 0, done.err
    after = files(home / "state", home / "config")
    assert after.keys() - before.keys() == set()
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {str(home / "state/restante/clock")}
    assert unique_ids() == ids
    assert restante("user", "list").out == users
    assert restante("maildrop", "held", "ann").out == held
    assert restante("maildrop", "verify", "--all").code == 0
    assert not (home / "state" / "restante" / "restore.incomplete").exists()


def test_configuration_directories_come_back_as_init_makes_them(
    restante: Restante, ann: str, home: Path, place: Path
) -> None:
    """Also an empty conf.d."""
    folder = home / "config" / "restante"
    folder.mkdir()
    (folder / "conf.d").mkdir(mode=0o700)
    (folder / "restante.toml").touch()
    assert restante("backup", place / "a.tar").code == 0
    destroy(home)
    assert restante("restore", place / "a.tar", "--yes").code == 0
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "conf.d")]
    assert modes == [0o700, 0o700]


def test_files_are_private(restante: Restante, mail: None, place: Path) -> None:
    old = os.umask(0)
    try:
        assert restante("backup", place / "a.tar").code == 0
        assert restante("backup", f"{place}/b/").code == 0
    finally:
        os.umask(old)
    (tree,) = (place / "b").glob("2*")
    assert stat.S_IMODE((place / "a.tar").stat().st_mode) == 0o600
    for path in (place / "b", tree, *tree.rglob("*")):
        assert not path.stat().st_mode & 0o007, path


def test_contested_unique_ids_stay(restante: Restante, ann: str, state: Path, place: Path) -> None:
    """Two files with the same unique part; restored files have other inode numbers."""
    assert restante("deliver", "ann", stdin=MESSAGE).code == 0
    maildrop = state / "mail" / "ann"
    (first,) = (maildrop / "new").iterdir()
    for number in range(3):
        copy = maildrop / "cur" / f"{first.name}:2,{'FRS'[number]}"
        copy.write_bytes(b"Subject: %d\r\n\r\n" % number)
    ids = unique_ids()
    assert len(set(ids)) == 4
    sizes = {entry.name: entry.stat().st_size for entry in maildrop.glob("*/*")}

    def by_id() -> dict[str, int]:
        async def listed() -> dict[str, int]:
            async with stores.store(load()).open("ann") as opened:
                return {entry.unique_id: entry.size for entry in opened.listing}

        return asyncio.run(listed())

    before = by_id()
    assert restante("backup", place / "a.tar").code == 0
    shutil.rmtree(state)
    (place / "other").mkdir()
    for number in range(30):  # other inode numbers
        (place / "other" / str(number)).touch()
    assert restante("restore", place / "a.tar", "--yes").code == 0
    assert {entry.name: entry.stat().st_size for entry in maildrop.glob("*/*")} == sizes
    assert by_id() == before
    assert unique_ids() == ids


def test_second_links_stay_links(restante: Restante, ann: str, state: Path, place: Path) -> None:
    assert restante("deliver", "ann", stdin=MESSAGE).code == 0
    (first,) = (state / "mail" / "ann" / "new").iterdir()
    second = state / "mail" / "ann" / "cur" / f"{first.name}:2,S"
    os.link(first, second)
    for kind in KINDS:
        assert restante("backup", f"{place}/{kind}").code == 0
        to = place / f"to {kind.strip('/')}"
        assert restante("restore", f"{place}/{kind}", "--to", to).code == 0
        links = [path.stat() for path in (to / "mail" / "ann").glob("*/*")]
        assert [each.st_nlink for each in links] == [2, 2]
        assert links[0].st_ino == links[1].st_ino


def test_names_that_are_no_text_come_back(
    restante: Restante, ann: str, state: Path, place: Path
) -> None:
    assert restante("deliver", "ann", stdin=MESSAGE).code == 0
    names = [b"1.\xff\xfe.x:2,", b"2." + b"y" * 240, "3.ä\n\u202e.z:2,S".encode()]
    for name in names:
        (state / "mail" / "ann" / "cur" / os.fsdecode(name)).write_bytes(name)
    for kind in KINDS:
        assert restante("backup", f"{place}/{kind}").code == 0
        to = place / f"to {kind.strip('/')}"
        assert restante("restore", f"{place}/{kind}", "--to", to).code == 0
        for name in names:
            assert (to / "mail" / "ann" / "cur" / os.fsdecode(name)).read_bytes() == name


def test_existing_file_is_replaced_only_on_request(
    restante: Restante, ann: str, place: Path
) -> None:
    path = place / "a.tar"
    path.write_text("precious")
    done = restante("backup", path)
    assert (done.code, path.read_text()) == (os.EX_CANTCREAT, "precious")
    assert "--overwrite" in done.err
    assert restante("backup", path, "--overwrite").code == 0
    assert restante("backup", path, "--verify").code == 0
    assert os.listdir(place) == ["a.tar"]


def test_a_file_that_appears_meanwhile_is_not_replaced(
    restante: Restante, ann: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place / "a.tar"
    finish = writing.TarWriter.finish

    def appear(writer: writing.TarWriter) -> Path:
        path.write_text("precious")
        return finish(writer)

    monkeypatch.setattr(writing.TarWriter, "finish", appear)
    assert restante("backup", path).code == os.EX_CANTCREAT
    assert (path.read_text(), os.listdir(place)) == ("precious", ["a.tar"])


def test_backup_inside_the_backed_up_directories_is_refused(
    restante: Restante, ann: str, state: Path
) -> None:
    assert restante("backup", state / "a.tar").code == os.EX_USAGE
    assert restante("backup", f"{state}/mail/backups/").code == os.EX_USAGE


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_failed_backup_leaves_nothing_that_looks_complete(
    restante: Restante, mail: None, place: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The disk is full at each write in turn."""
    for number in range(1000):
        left = number

        def write(size: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as full:
            full.setattr(writing.TarWriter, "_put", lambda self, octets: write(len(octets)))
            full.setattr(writing, "_write", lambda file, octets: write(len(octets)))
            full.setattr(writing, "fsync_directory", lambda path: write(0))
            done = restante("backup", f"{place}/{kind}")
        if done.code == 0:
            break
        assert (done.code, "No space left" in done.err) == (os.EX_TEMPFAIL, True)
        if kind != KINDS[2]:
            assert os.listdir(place) == []
        else:
            assert set(os.listdir(place / kind)) <= {"lock"}
            assert restante("restore", f"{place}/{kind}").code == os.EX_DATAERR
    assert number > 5


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("kind", KINDS)
def test_signal_leaves_no_part_of_a_backup(
    mail: None, place: Path, kind: str, number: signal.Signals
) -> None:
    """The process stops reading after the first copied database, so the signal is inside."""
    code = (
        "import sys, time; from restante.app.backup import making\n"
        "def wait(path):\n"
        "    print('inside', flush=True); time.sleep(30)\n"
        "making._database = wait\n"
        "from restante.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "backup", f"{place}/{kind}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"inside\n"
        assert [*place.rglob("*.part"), *place.rglob("incomplete")]
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"restante backup: stopped\n")
    assert [path.name for path in place.rglob("*") if path.is_file()] in ([], ["lock"])
    assert not [*place.rglob("incomplete")]


def test_standard_output_is_refused(
    restante: Restante, ann: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    done = restante("backup", "-")
    assert (done.code, os.listdir(place)) == (os.EX_USAGE, [])
    assert "name a file" in done.err


def test_unreadable_file_fails_the_backup(
    restante: Restante, mail: None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "1796067078.M8.example")

    with monkeypatch.context() as patch:
        patch.setattr(store_files, "open_file", refuse)
        done = restante("backup", place / "a.tar")
    assert (done.code, os.listdir(place)) == (os.EX_IOERR, [])
    assert "1796067078.M8.example: Permission denied" in done.err


def test_message_that_disappears_while_it_is_read_is_counted(
    restante: Restante, mail: None, state: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = snapshot.snapshot

    def destroying(maildrop: int) -> snapshot.Snapshot:
        result = real(maildrop)
        for path in (state / "mail" / "ann" / "new").iterdir():
            path.unlink()
        return result

    monkeypatch.setattr(snapshot, "snapshot", destroying)
    report = restante("backup", place / "a.tar", "--json").json
    assert (report["messages"], report["destroyed"]) == (2, 1)
    assert restante("backup", place / "a.tar", "--verify").code == 0


def test_two_backups_at_the_same_place_exclude_each_other(
    restante: Restante, ann: str, place: Path
) -> None:
    (place / "backups").mkdir()
    for name, lock in (("a.tar", ".a.tar.part"), ("backups/", "backups/lock")):
        with open(place / lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert restante("backup", f"{place}/{name}").code == os.EX_TEMPFAIL
        # The same file without a lock is left from a killed process.
        (place / "backups" / "incomplete" / "mail").mkdir(parents=True, exist_ok=True)
        assert restante("backup", f"{place}/{name}").code == 0
    assert sorted(os.listdir(place)) == ["a.tar", "backups"]
    assert "incomplete" not in os.listdir(place / "backups")


def test_a_file_of_another_user_is_not_written_to(
    restante: Restante, ann: str, place: Path
) -> None:
    """In a directory where others may create files, the temporary name may be taken."""
    (place / "other").write_text("precious")
    os.link(place / "other", place / ".a.tar.part")
    assert restante("backup", place / "a.tar").code == os.EX_CANTCREAT
    (place / ".a.tar.part").unlink()
    (place / ".a.tar.part").symlink_to(place / "other")
    assert restante("backup", place / "a.tar").code == os.EX_IOERR
    assert (place / "other").read_text() == "precious"


def test_unreadable_maildrop_is_not_left_out(
    restante: Restante, mail: None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing maildrops omits directories of other users, such as lost+found."""
    monkeypatch.setattr(Template, "users", lambda self: iter(["ben@example.org"]))
    assert restante("backup", place / "a.tar", "--json").json["maildrops"] == 2
    status = os.stat

    def refuse(path: object, **options: object) -> os.stat_result:
        if str(path).endswith("/ann/new"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return status(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refuse)
    done = restante("backup", place / "b.tar")
    assert (done.code, "ann/new: Permission denied" in done.err) == (os.EX_IOERR, True)


def test_maildir_in_the_state_directory_is_treated_as_a_maildrop(
    restante: Restante, ann: str, state: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account may be collected into it, and an IMAP server may rename its messages."""
    for name in ("new", "cur", "tmp"):
        (state / "collected" / name).mkdir(parents=True)
    (state / "collected" / "new" / "1.a").write_bytes(MESSAGE)
    (state / "collected" / "tmp" / "2.b").write_bytes(b"half")
    real = snapshot.snapshot

    def reading(maildrop: int) -> snapshot.Snapshot:
        result = real(maildrop)
        with contextlib.suppress(FileNotFoundError):
            (state / "collected/new/1.a").rename(state / "collected/cur/1.a:2,S")
        return result

    monkeypatch.setattr(snapshot, "snapshot", reading)
    assert restante("backup", place / "a.tar").code == 0
    assert restante("restore", place / "a.tar", "--to", place / "to").code == 0
    found = [path for path in (place / "to/state/collected").rglob("*") if path.is_file()]
    assert found == [place / "to/state/collected/new/1.a"]


# -- Directories


def test_unchanged_messages_are_shared(
    restante: Restante, mail: None, state: Path, place: Path
) -> None:
    assert restante("backup", f"{place}/b/", "--json").json["reused"] == 0
    (path,) = (state / "mail" / "ann" / "new").iterdir()
    path.rename(state / "mail" / "ann" / "cur" / f"{path.name}:2,S")
    assert restante("deliver", "ann", stdin=MESSAGE).code == 0
    report = restante("backup", f"{place}/b/", "--json").json
    assert (report["messages"], report["reused"]) == (4, 3)
    for tree in (place / "b").glob("2*"):
        assert restante("backup", tree, "--verify").code == 0
    old, new = sorted((place / "b").glob("2*"), key=lambda each: manifest._order(each.name))
    shutil.rmtree(old)
    assert restante("backup", new, "--verify").code == 0


def test_damaged_message_is_not_shared(restante: Restante, mail: None, place: Path) -> None:
    assert restante("backup", f"{place}/b/").code == 0
    (tree,) = (place / "b").glob("2*")
    (path, *_) = (tree / "mail" / "ann" / "new").iterdir()
    path.write_bytes(b"changed")
    assert restante("backup", tree, "--verify").code == os.EX_DATAERR
    assert restante("backup", f"{place}/b/").code == 0
    assert restante("backup", f"{place}/b/", "--verify").code == 0


def test_restore_uses_the_newest_complete_backup(
    restante: Restante, mail: None, place: Path
) -> None:
    assert restante("backup", f"{place}/b/").code == 0
    (first,) = (place / "b").glob("2*")
    first = first.rename(place / "b" / "2026-11-30T190001Z")
    for name in ("2026-11-30T190000Z", *(f"2026-11-30T190001Z-{n}" for n in range(2, 11))):
        shutil.copytree(first, place / "b" / name)
    assert manifest.latest(place / "b") == place / "b" / "2026-11-30T190001Z-10"
    (place / "b" / "2026-11-30T190001Z-10" / "MANIFEST").unlink()  # looks incomplete
    assert manifest.latest(place / "b") == place / "b" / "2026-11-30T190001Z-9"


# -- Power failures


class Synced:
    """Records which files and directories are durable."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inodes: set[int] = set()
        fsync = os.fsync

        def fsync_and_record(file: int) -> None:
            fsync(file)
            self.inodes.add(os.fstat(file).st_ino)

        def sync_and_record(opened: list[int]) -> None:
            sync_files(opened)
            self.inodes |= {os.fstat(file).st_ino for file in opened}

        monkeypatch.setattr(os, "fsync", fsync_and_record)
        monkeypatch.setattr(writing, "sync_files", sync_and_record)

    def missing(self, *places: Path) -> list[Path]:
        found = [path for place in places for path in (place, *place.rglob("*"))]
        return [path for path in found if path.lstat().st_ino not in self.inodes]


def test_restored_files_are_durable_before_the_marker_is_removed(
    restante: Restante, mail: None, home: Path, state: Path, place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert restante("backup", place / "a.tar").code == 0
    destroy(home)
    synced = Synced(monkeypatch)
    unlink, checks = os.unlink, 0

    def check(path: str, **options: int) -> None:
        nonlocal checks
        if path == "restore.incomplete":
            assert synced.missing(state, home / "config") == []
            checks += 1
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", check)
    assert restante("restore", place / "a.tar", "--yes").code == 0
    assert checks == 1
    assert home.stat().st_ino in synced.inodes  # it contains the new directory state/


@pytest.mark.parametrize("kind", KINDS)
def test_backup_is_durable_before_it_gets_its_name(
    restante: Restante, mail: None, place: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    synced = Synced(monkeypatch)
    link, rename, checks = os.link, os.rename, 0

    def check(source: object) -> None:
        nonlocal checks
        source = Path(str(source))
        if source.name.endswith((".part", "incomplete")):
            assert synced.missing(source) == []
            checks += 1

    def checked_link(source: object, target: object, **options: bool) -> None:
        check(source)
        link(source, target, **options)  # type: ignore[arg-type]

    def checked_rename(source: object, target: object) -> None:
        check(source)
        rename(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", checked_link)
    monkeypatch.setattr(os, "rename", checked_rename)
    assert restante("backup", f"{place}/{kind}").code == 0
    assert checks == 1
    assert synced.missing(place) in ([], [place / "backups" / "lock"])


# -- Damage


def restored(place: Path, restante: Restante, path: Path) -> bool:
    """Try to restore a file beside; return whether all was restored.  Nothing is, or all."""
    to = place / "to"
    done = restante("restore", path, "--to", to)
    assert done.code in (0, os.EX_DATAERR), done
    if done.code == 0:
        shutil.rmtree(to)
        return True
    assert not to.exists()
    return False


@pytest.mark.parametrize("kind", KINDS[:2])
def test_damage_anywhere_is_noticed(restante: Restante, mail: None, place: Path, kind: str) -> None:
    """A flipped octet is noticed, or nothing that is restored depends on it."""
    path = place / kind
    assert restante("backup", path).code == 0
    octets = path.read_bytes()
    assert restante("restore", path, "--to", place / "good").code == 0
    good = {
        name.removeprefix(str(place / "good")): each for name, each in files(place / "good").items()
    }
    step = len(octets) // 25
    for offset in range(7, len(octets), step):
        damaged = bytearray(octets)
        damaged[offset] ^= 0x21
        path.write_bytes(damaged)
        to = place / f"to {offset}"
        done = restante("restore", path, "--to", to)
        assert done.code in (0, os.EX_DATAERR), (offset, done)
        if done.code:
            assert not to.exists()
        else:
            assert {name.removeprefix(str(to)): each for name, each in files(to).items()} == good, (
                offset
            )


@pytest.mark.parametrize("kind", KINDS[:2])
def test_truncated_file_is_incomplete(
    restante: Restante, mail: None, place: Path, kind: str
) -> None:
    path = place / kind
    assert restante("backup", path).code == 0
    octets = path.read_bytes()
    end = len(octets.rstrip(b"\0")) - 1
    for length in (*range(0, end, max(512, end // 40)), end):
        path.write_bytes(octets[:length])
        assert not restored(place, restante, path), length


def test_damage_to_a_tree_is_noticed(restante: Restante, mail: None, place: Path) -> None:
    assert restante("backup", f"{place}/b/").code == 0
    (tree,) = (place / "b").glob("2*")
    for path in [each for each in tree.rglob("*") if each.is_file()]:
        octets, status = path.read_bytes(), path.stat()
        for change in (octets[:-1], octets + b"x", octets[:-1] + bytes([octets[-1] ^ 1])):
            path.write_bytes(change)
            assert not restored(place, restante, tree), path
        path.unlink()
        assert not restored(place, restante, tree), path
        path.symlink_to("/etc/passwd")
        assert not restored(place, restante, tree), path
        path.unlink()
        path.write_bytes(octets)
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert restored(place, restante, tree)


def test_newer_format_is_refused_with_clear_words(
    restante: Restante, mail: None, home: Path, place: Path
) -> None:
    assert restante("backup", f"{place}/b/").code == 0
    (tree,) = (place / "b").glob("2*")
    header = json.loads((tree / manifest.HEADER).read_text())
    (tree / manifest.HEADER).write_text(json.dumps({**header, "format": manifest.FORMAT + 1}))
    with tarfile.open(place / "a.tar", "w") as tar:
        tar.add(tree / manifest.HEADER, manifest.HEADER)
        tar.add(tree / "MANIFEST", "something new")
    destroy(home)
    for path in (tree, place / "a.tar"):
        done = restante("restore", path, "--yes")
        assert done.code == os.EX_CONFIG
        assert f"was written by a newer restante, in format {manifest.FORMAT + 1}" in done.err
    assert not (home / "state").exists()


# -- Hostile backups


def hostile(path: Path, *entries: manifest.Entry, header: bytes | None = None) -> Path:
    """Write a tar file with entries that ``backup`` would never write, and a fitting manifest."""
    head = json.dumps({"format": 1, "with_mail": True}).encode() if header is None else header
    writer = writing.TarWriter(path, replace=True, progress=manifest.no_progress)
    first = manifest.Entry(manifest.HEADER, 0o600, 0, len(head))
    writer.file(first, io.BytesIO(head))
    for entry in entries:
        if entry.is_directory:
            writer.directory(entry)
        elif entry.link:
            writer.link(entry)
        else:
            writer.file(entry, io.BytesIO(bytes(entry.size)))
    return writer.finish()


def entry(path: str, size: int = 1, *, mode: int = 0o600, link: str = "") -> manifest.Entry:
    return manifest.Entry(path, mode, 0, size, link=link)


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../state/x")],
        [entry("state/../../x")],
        [entry("/etc/x")],
        [entry("state//x")],
        [entry("state/./x")],
        [entry("other/x")],
        [entry("x")],
        [entry("state/x\0y")],
        [entry("state/" + "d/" * 60 + "x")],
        [entry("state/" + "x" * 256)],
        [entry("state/x"), entry("state/x")],
        [entry("state/x"), entry("state/x/y")],
        [entry("state/x/y"), entry("state/x")],
        [entry("state/x/y"), entry("state/x/", 0), entry("state/x/", 0), entry("state/x")],
        [entry("state/x", 0, link="/etc/passwd")],
        [entry("state/x", 0, link="../../etc/passwd")],
        [entry("state/x", 0, link="state/y"), entry("state/y")],
        [entry("state/x", 0, link="state/x")],
        [entry("state/x", mode=0o4755)],
        [entry("configuration/other")],
        [entry("configuration/conf.d/x/y.toml")],
        [entry("configuration/conf.d/x.toml", 20_000_000)],
        [entry(manifest.HEADER)],
    ],
    ids=lambda each: repr([entry.path[:40] for entry in each]),
)
def test_hostile_entries_are_refused(
    restante: Restante, home: Path, place: Path, entries: list[manifest.Entry]
) -> None:
    path = hostile(place / "a.tar", *entries)
    assert not restored(place, restante, path)
    assert not (home / "x").exists()


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE,
        tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE, tarfile.CONTTYPE, b"?",
    ],
)  # fmt: skip
def test_other_kinds_of_entries_are_refused(
    restante: Restante, home: Path, place: Path, kind: bytes
) -> None:
    path = hostile(place / "a.tar", entry("state/x"))
    octets = bytearray(path.read_bytes())
    head = octets.index(b"state/x")
    octets[head + 156 : head + 157] = kind
    octets[head + 148 : head + 156] = b" " * 8
    octets[head + 148 : head + 156] = b"%06o\0 " % sum(octets[head : head + 512])
    path.write_bytes(octets)
    assert not restored(place, restante, path)


def test_sizes_that_lie_take_no_memory(restante: Restante, home: Path, place: Path) -> None:
    """A pax header of a gigabyte, compressed."""
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 2**30
    first = tarfile.TarInfo(manifest.HEADER)
    header = b'{"format": 1}'
    first.size = len(header)
    octets = first.tobuf() + header.ljust(512, b"\0") + member.tobuf() + bytes(2**20)
    path = place / "a.tar.gz"
    path.write_bytes(gzip.compress(octets))
    done = restante("restore", path, "--to", place / "to")
    assert (done.code, "too long" in done.err) == (os.EX_DATAERR, True)


def block(name: str, kind: bytes, content: bytes) -> bytes:
    """Return a member of a tar file."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(content)
    return member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def test_manifest_longer_than_its_backup_takes_no_memory(place: Path) -> None:
    listed = manifest.Manifest()
    header = b'{"format": 1}'
    digest = hashlib.sha256(header).hexdigest()
    listed.add(manifest.Entry(manifest.HEADER, 0o600, 0, len(header), digest))
    for number in range(5000):
        listed.add(entry(f"mail/{number}/" + "a/" * 37, 0))
    path = place / "a.tar"
    head = block(manifest.HEADER, tarfile.REGTYPE, header)
    path.write_bytes(
        head + block(manifest.MANIFEST, tarfile.REGTYPE, listed.file()[0].read()) + bytes(1024)
    )
    tracemalloc.start()
    try:
        with pytest.raises(Damaged, match="entries are missing"):
            reading.source(path).verify(manifest.no_progress)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def record(key: bytes, value: bytes) -> bytes:
    """Return a record of a pax header."""
    content = b" %b=%b\n" % (key, value)
    length = len(content)
    while len(b"%d" % length + content) != length:
        length = len(b"%d" % length + content)
    return b"%d" % length + content


@pytest.mark.parametrize(
    "records",
    [
        *(b"%b a=b\n" % length for length in (b"0", b"-5", b"9" * 20, b"9" * 5000)),
        *(record(b"size", value) for value in (b"-1", b"1e400", b"9" * 30, b"9" * 5000)),
        *(record(b"mtime", value) for value in (b"x", b"inf", b"-" + b"9" * 400)),
        *(record(b"path", value) for value in (b"", b"\xff", b"x\0y")),
        record(b"hdrcharset", b"x") + record(b"path", b"\xff"),
        record(b"GNU.sparse.map", b"1,a"),
        record(b"GNU.sparse.size", b"x"),
        record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"),
        b"",
        b"\n",
    ],
    ids=lambda each: repr(each[:30]),
)
def test_invalid_pax_headers_are_damage(
    restante: Restante, home: Path, place: Path, records: bytes
) -> None:
    path = place / "a.tar"
    path.write_bytes(
        block(manifest.HEADER, tarfile.REGTYPE, b'{"format": 1}')
        + block("x", tarfile.XHDTYPE, records)
        + block("state/x", tarfile.REGTYPE, b"x")
        + bytes(10_240)
    )
    done = restante("backup", "--verify", path)
    assert (done.code, "is damaged" in done.err) == (os.EX_DATAERR, True), done.err


def test_chain_of_pax_headers_is_damage(restante: Restante, home: Path, place: Path) -> None:
    path = place / "a.tar"
    path.write_bytes(block("x", tarfile.XHDTYPE, record(b"path", b"x")) * 3000 + bytes(10_240))
    for command in (("backup", "--verify", path), ("restore", path, "--to", place / "to")):
        done = restante(*command)
        assert (done.code, "is damaged" in done.err) == (os.EX_DATAERR, True), done.err


@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_changed_headers_are_damage_or_harmless(place: Path, count: int) -> None:
    path = hostile(
        place / "a.tar",
        entry("state/x", 3000),
        entry("state/" + "d" * 120 + "/", 0),
        entry("state/y", 0, link="state/x"),
    )
    octets = path.read_bytes()
    heads = [at for at in range(0, len(octets), 512) if octets[at + 257 : at + 262] == b"ustar"]
    assert len(heads) > 5  # two of them belong to a pax header
    chosen = random.Random(count)
    for _ in range(count):
        changed = bytearray(octets)
        for _ in range(chosen.randrange(1, 4)):
            head = chosen.choice(heads)
            at, length = chosen.choice([(0, 512), (100, 8), (124, 12), (156, 1), (512, 200)])
            at = head + chosen.randrange(at, at + length)
            changed[at : at + 1] = chosen.choice([b"\0", b"\xff", b"-", b"9", b"=", b"\n", b"x"])
            changed[head + 148 : head + 156] = b" " * 8
            checksum = b"%06o\0 " % sum(changed[head : head + 512])
            changed[head + 148 : head + 156] = checksum
        path.write_bytes(changed)
        with contextlib.suppress(RestanteError):
            reading.source(path).verify(manifest.no_progress)


@pytest.mark.parametrize(
    "octets", [b"", b"{", b"[]", b"{}", b'{"format": "1"}', b"[" * 60_000, b'{"format": null}']
)
def test_other_headers_are_no_backup(
    restante: Restante, home: Path, place: Path, octets: bytes
) -> None:
    path = hostile(place / "a.tar", header=octets)
    done = restante("restore", path, "--to", place / "to")
    assert (done.code, "is not a backup of restante" in done.err) == (os.EX_DATAERR, True)


def test_other_files_are_no_backup(restante: Restante, home: Path, place: Path) -> None:
    (place / "text").write_text("hello\n" * 1000)
    (place / "empty").touch()
    (place / "folder").mkdir()
    os.mkfifo(place / "fifo")
    for name in ("text", "empty", "folder", "fifo"):
        assert restante("restore", place / name, "--yes").code == os.EX_DATAERR
    assert restante("restore", place / "missing", "--yes").code == os.EX_IOERR


def test_backup_does_not_choose_the_place_of_the_configuration(
    restante: Restante, home: Path, place: Path
) -> None:
    target = home / "elsewhere" / "restante.toml"
    header = json.dumps({"format": 1, "configuration": str(target)}).encode()
    path = hostile(place / "a.tar", entry("configuration/restante.toml", 0), header=header)
    done = restante("restore", path, "--yes")
    assert (done.code, f"-c {target}" in done.err) == (os.EX_CONFIG, True)
    assert not target.parent.exists()
    assert restante("-c", target, "restore", path, "--yes").code == 0


@pytest.mark.parametrize("name", ["users/other", "users/users.sqlite3/x", "users/d/users.sqlite3"])
def test_backup_does_not_choose_the_name_of_the_user_database(
    restante: Restante, home: Path, place: Path, name: str
) -> None:
    path = hostile(place / "a.tar", entry(name))
    assert restante("restore", path, "--yes").code == os.EX_DATAERR
    assert not (home / "state" / "restante").exists()


def test_private_backup_is_not_restored_for_a_configuration_file(
    restante: Restante, ann: str, home: Path, place: Path
) -> None:
    """Its state would be in another place."""
    assert restante("backup", place / "a.tar").code == 0
    shutil.rmtree(home / "state")
    done = restante("-c", home / "r.toml", "restore", place / "a.tar", "--yes")
    assert (done.code, "no configuration file" in done.err) == (os.EX_CONFIG, True)
    path = hostile(place / "b.tar", entry("configuration/restante.toml", 0))
    assert restante("restore", path, "--yes").code == os.EX_DATAERR
    assert not (home / "state").exists()


# -- Restore


def test_restore_refuses_a_running_server(
    restante: Restante, mail: None, home: Path, state: Path, place: Path
) -> None:
    assert restante("backup", place / "a.tar").code == 0
    destroy(home)
    (state / "control").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(state / "control" / "0.sock"))
        listening.listen()
        done = restante("restore", place / "a.tar", "--yes")
        assert (done.code, "the server is running" in done.err) == (os.EX_TEMPFAIL, True)
        assert restante("restore", place / "a.tar", "--to", home / "to").code == 0
    # The socket of a server that was killed is no obstacle.
    assert restante("restore", place / "a.tar", "--yes").code == 0


@pytest.mark.parametrize("name", ["state/restante/x", "state/restante/mail/bob/new/1"])
def test_restore_refuses_existing_files(
    restante: Restante, mail: None, home: Path, place: Path, name: str
) -> None:
    assert restante("backup", place / "a.tar").code == 0
    destroy(home)
    (home / name).parent.mkdir(parents=True)
    (home / name).write_text("precious")
    done = restante("restore", place / "a.tar", "--yes")
    assert (done.code, "is not empty" in done.err) == (os.EX_CANTCREAT, True)
    assert list(files(home / "state")) == [str(home / name)]
    assert not (home / "config").exists()


def test_restore_refuses_another_configuration(
    restante: Restante, mail: None, home: Path, place: Path
) -> None:
    assert restante("backup", place / "a.tar").code == 0
    shutil.rmtree(home / "state")
    source = home / "config" / "restante" / "restante.toml"
    source.write_text("[log]\nlevel = 'info'\n")
    assert restante("restore", place / "a.tar", "--yes").code == os.EX_CANTCREAT
    assert not (home / "state").exists()
    source.unlink()
    assert restante("restore", place / "a.tar", "--yes").code == 0


@pytest.mark.parametrize("has_file", [False, True])
def test_restore_refuses_a_configuration_that_is_not_in_the_backup(
    restante: Restante, ann: str, home: Path, place: Path, has_file: bool
) -> None:
    """It would move the mail to another place, for example."""
    folder = home / "config" / "restante"
    (folder / "conf.d").mkdir(parents=True)
    if has_file:
        (folder / "restante.toml").touch()
    assert restante("backup", place / "a.tar").code == 0
    shutil.rmtree(home / "state")
    (folder / "conf.d" / "z.toml").write_text("[store]\npath = '/elsewhere/%u'\n")
    assert restante("restore", place / "a.tar", "--yes").code == os.EX_CANTCREAT
    (folder / "conf.d" / "z.toml").unlink()
    if not has_file:
        (folder / "restante.toml").touch()
        assert restante("restore", place / "a.tar", "--yes").code == os.EX_CONFIG
        (folder / "restante.toml").unlink()
    assert not (home / "state").exists()
    assert restante("restore", place / "a.tar", "--yes").code == 0


def test_other_directory_must_be_empty(
    restante: Restante, ann: str, home: Path, place: Path
) -> None:
    assert restante("backup", place / "a.tar").code == 0
    (home / "to").mkdir()
    (home / "to" / "x").touch()
    assert restante("restore", place / "a.tar", "--to", home / "to").code == os.EX_CANTCREAT
    assert os.listdir(home / "to") == ["x"]
    (home / "to" / "x").unlink()
    assert restante("restore", place / "a.tar", "--to", home / "to").code == 0


def test_restore_asks_first(restante: Restante, mail: None, home: Path, place: Path) -> None:
    assert restante("backup", place / "a.tar").code == 0
    destroy(home)
    done = restante("restore", place / "a.tar")
    assert (done.code, "--yes" in done.err) == (os.EX_USAGE, True)
    assert not (home / "state").exists()


def test_interrupted_restore_is_recognised_and_repeated(
    restante: Restante, mail: None, home: Path, state: Path, place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The process stops after each file in turn, and a half-written file stays."""
    before = files(home / "state", home / "config")
    assert restante("backup", place / "a.tar").code == 0
    assert restante("deliver", "ann", stdin=MESSAGE).code == 0
    assert restante("backup", place / "other.tar").code == 0
    destroy(home)
    write = restoring._Writing._write
    for number in range(100):
        left = number

        def stopping(self: object, entry: object, file: object, durable: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            write(self, entry, file, durable)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(restoring._Writing, "_write", stopping)
            done = restante("restore", place / "a.tar", "--yes")
        if done.code == 0:
            break
        assert done.code == 130
        for command in (
            ("user", "list"),
            ("deliver", "ann"),
            ("backup", place / "b.tar"),
            ("check",),
        ):
            refused = restante(*command, stdin=MESSAGE)
            assert (refused.code, "is not complete" in refused.err) == (os.EX_TEMPFAIL, True)
        assert restante("restore", place / "other.tar", "--yes").code == os.EX_CANTCREAT
    assert number > 5
    after = files(home / "state", home / "config")
    assert after == before


def test_restore_that_wrote_only_its_marker_counts_as_none(
    restante: Restante, mail: None, home: Path, state: Path, place: Path
) -> None:
    assert restante("backup", place / "a.tar").code == 0
    destroy(home)
    state.mkdir(parents=True)
    (state / "restore.incomplete").touch()
    assert restante("restore", place / "a.tar", "--yes").code == 0


def test_two_restores_exclude_each_other(
    restante: Restante, mail: None, home: Path, state: Path, place: Path
) -> None:
    assert restante("backup", place / "a.tar").code == 0
    verified = restoring.verify(reading.source(place / "a.tar"), manifest.no_progress)
    digest = verified.manifest.digest
    destroy(home)
    state.mkdir(parents=True)
    with open(state / "restore.incomplete", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps({"backup": digest}))
        file.flush()
        assert restante("restore", place / "a.tar", "--yes").code == os.EX_TEMPFAIL
    assert restante("restore", place / "a.tar", "--yes").code == 0


def test_links_in_the_targets_are_not_followed(
    restante: Restante, mail: None, home: Path, state: Path, place: Path
) -> None:
    assert restante("backup", place / "a.tar").code == 0
    destroy(home)
    (home / "outside").mkdir()
    (state / "mail").mkdir(parents=True)
    (state / "mail" / "ann").symlink_to(home / "outside")
    assert restante("restore", place / "a.tar", "--yes").code != 0
    assert list((home / "outside").iterdir()) == []


def test_without_mail_only_the_mail_is_missing(
    restante: Restante, mail: None, home: Path, state: Path, place: Path
) -> None:
    done = restante("backup", place / "a.tar", "--without-mail")
    assert "without mail" in done.out
    with tarfile.open(place / "a.tar") as tar:
        assert not [name for name in tar.getnames() if name.startswith("mail")]
    for path in state.iterdir():
        if path.name != "mail":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.move(state / "mail", home / "mail")
    done = restante("restore", place / "a.tar", "--yes")
    assert (done.code, f"it must be in {state}/mail" in done.out) == (0, True)
    shutil.move(home / "mail", state / "mail")
    assert len(unique_ids()) == 1


# -- Databases


def test_databases_are_consistent_while_they_are_written(
    restante: Restante, ann: str, state: Path, place: Path
) -> None:
    """A transaction that has begun is left out; one in the write-ahead log is included."""
    path = state / "ledger.sqlite3"
    with sqlite3.connect(path, isolation_level=None) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (n)")
        database.execute("INSERT INTO t VALUES (1)")
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO t VALUES (2)")
        assert (state / "ledger.sqlite3-wal").stat().st_size > 0
        assert restante("backup", place / "a.tar").code == 0
        database.execute("COMMIT")
    database.close()
    assert restante("restore", place / "a.tar", "--to", place / "to").code == 0
    assert sorted(path.name for path in (place / "to" / "state").glob("ledger*")) == [
        "ledger.sqlite3"
    ]
    with sqlite3.connect(place / "to" / "state" / "ledger.sqlite3") as copy:
        assert copy.execute("SELECT n FROM t").fetchall() == [(1,)]
    copy.close()


def test_damaged_database_fails_the_backup(
    restante: Restante, ann: str, state: Path, place: Path
) -> None:
    octets = bytearray((state / "users.sqlite3").read_bytes())
    octets[4096:8192] = bytes(range(256)) * 16
    (state / "users.sqlite3").write_bytes(octets)
    done = restante("backup", place / "a.tar")
    assert (done.code, "users.sqlite3 is damaged" in done.err) == (os.EX_DATAERR, True)
    assert os.listdir(place) == []


def test_databases_come_before_the_mail(restante: Restante, mail: None, place: Path) -> None:
    assert restante("backup", place / "a.tar").code == 0
    with tarfile.open(place / "a.tar") as tar:
        names = tar.getnames()
    first_mail = next(n for n, name in enumerate(names) if name.startswith("mail/"))
    assert names.index("state/users.sqlite3") < first_mail


def test_references_outside_the_backup_are_listed(
    restante: Restante, ann: str, home: Path, place: Path
) -> None:
    folder = home / "config" / "restante"
    folder.mkdir()
    (folder / "restante.toml").write_text(
        "[collect]\nkey = { env = 'KEY' }\n[account.isp]\nurl = 'pop3s://a.example'\n"
        "user = 'ann'\nto = 'maildrop:ann'\npassword = { file = '/run/secrets/isp' }\n"
        f"[account.own]\nurl = 'pop3s://b.example'\nuser = 'ann'\nto = 'maildrop:ann'\n"
        f"password = {{ file = '{home}/state/restante/passwords/own' }}\n"
    )
    (folder / "restante.toml").chmod(0o600)
    found = restante("backup", place / "a.tar", "--json").json["not_included"]
    assert found == ["collect.key (env)", "account.isp.password (file)"]
