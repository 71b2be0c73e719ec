"""Destinations store each message completely, durably and once, or not at all."""

from __future__ import annotations

import errno
import mailbox
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante import scanning, syncing
from restante.collect.destinations import Destination, Grouping, Verifying
from restante.collect.destinations.folder import Folder
from restante.collect.destinations.maildir import Maildir
from restante.collect.destinations.maildrop import LocalMaildrop
from restante.collect.destinations.mbox import Mbox, _Quoting
from restante.collect.destinations.opening import open_destination
from restante.errors import TemporaryFailure, UnsafeArgument
from restante.store.maildir import MaildirStore

MESSAGE = b"Subject: x\r\n\r\n.dot\r\nFrom here\r\n"


def maildrop(path: Path) -> Destination:
    return LocalMaildrop(MaildirStore(f"{path.parent}/%u").deliveries(path.name))


KINDS: dict[str, Callable[[Path], Destination]] = {
    "folder": Folder,
    "maildir": Maildir,
    "maildrop": maildrop,
    "mbox": Mbox,
}
kinds = pytest.mark.parametrize("kind", list(KINDS))
with_paths = pytest.mark.parametrize("kind", ["folder", "maildir", "mbox"])
with_names = pytest.mark.parametrize("kind", ["folder", "maildir", "maildrop"])
in_maildirs = pytest.mark.parametrize("kind", ["maildir", "maildrop"])


def opened(kind: str, path: Path) -> closing[Destination]:
    return closing(KINDS[kind](path / "mail"))


def put(destination: Destination, identity: str, *pieces: bytes) -> None:
    assert destination.begin(identity)
    try:
        for piece in pieces:
            destination.write(piece)
        destination.commit()
    finally:
        destination.abort()


def stored(kind: str, path: Path) -> list[bytes]:
    """Return what another program reads there, with CRLF line ends."""
    mail = path / "mail"
    if kind == "folder":
        return [each.read_bytes() for each in sorted(mail.glob("*.eml"))]
    if kind in ("maildir", "maildrop"):
        return [each.read_bytes() for each in sorted(mail.glob("new/*"))]
    return messages_of(mail.read_bytes() if mail.exists() else b"")


def messages_of(mbox: bytes) -> list[bytes]:
    """Read an mbox by the rules of mboxrd, which the standard library does not support."""
    parts = re.split(rb"(?:\A|(?<=\n\n))From [^\n]*\n", mbox)[1:]
    return [
        re.sub(rb"^>(>*From )", rb"\1", part[:-1], flags=re.MULTILINE).replace(b"\n", b"\r\n")
        for part in parts
    ]


@kinds
@pytest.mark.parametrize(
    "message",
    [
        MESSAGE,
        b"",
        b"\r\n",
        b"From x\r\n>From y\r\n>>From z\r\nFromage\r\n From\r\n",
        b"a\r\n\r\nFrom the middle\r\n\r\n\r\n",
        b"8-bit \xff\x00 and a lone\rreturn\r\n",
    ],
)
def test_octet_for_octet_in_any_pieces(kind: str, message: bytes, tmp_path: Path) -> None:
    with opened(kind, tmp_path) as destination:
        put(destination, "whole", message)
        put(destination, "pieces", *(bytes([each]) for each in message))
    assert stored(kind, tmp_path) == [message, message]


@given(
    st.lists(st.sampled_from([b"From ", b">", b"Fro", b"m x", b"\r\n", b"\r", b"y"]), max_size=12),
    st.data(),
)
def test_quoting_does_not_depend_on_the_pieces(parts: list[bytes], data: st.DataObject) -> None:
    message = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(message)), max_size=6)))
    quoting = _Quoting()
    pieces = [message[a:b] for a, b in zip([0, *cuts], [*cuts, len(message)], strict=True)]
    text = b"".join(map(quoting.feed, pieces)) + quoting.finish()
    lines = message.replace(b"\r\n", b"\n").split(b"\n")
    expected = b"\n".join(b">" + each if re.match(b">*From ", each) else each for each in lines)
    assert text == (expected if expected.endswith(b"\n") or not expected else expected + b"\n")


def test_no_line_is_kept_whole() -> None:
    """A hostile message of one long line takes little memory and time."""
    quoting = _Quoting()
    for octet in (b"x", b">", b"\r"):
        for _ in range(100):
            quoting.feed(octet * 65_536)
            assert len(quoting._pending) <= 1010


@with_names
def test_stored_messages_are_recognised(kind: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path) as destination:
        assert not destination.has("a")
        put(destination, "a", MESSAGE)
        assert destination.has("a")
    with opened(kind, tmp_path) as destination:
        assert destination.has("a")
        assert not destination.has("b")


@kinds
def test_abort_leaves_no_trace(kind: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path) as destination:
        destination.begin("a")
        destination.write(MESSAGE)
        destination.abort()
        assert stored(kind, tmp_path) == []
        put(destination, "a", MESSAGE)
        destination.abort()
    assert stored(kind, tmp_path) == [MESSAGE]
    assert leftovers(tmp_path) == []


def leftovers(path: Path) -> list[Path]:
    """Return temporary files, which no other program takes for mail."""
    return [each for each in (*path.rglob(".*"), *path.rglob("tmp/*")) if each.is_file()]


@kinds
def test_mail_is_private(kind: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path) as destination:
        put(destination, "a", MESSAGE)
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert {each.stat().st_mode & 0o777 for each in files} == {0o600}


@pytest.mark.parametrize("identity", ["../../x", "/etc/passwd", "\udcff", "a\0b", "", "x" * 5000])
@with_names
def test_no_unique_id_makes_a_path(kind: str, identity: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path) as destination:
        put(destination, identity, MESSAGE)
    paths = tmp_path.rglob("*")
    (file,) = [each for each in paths if each.is_file() and each.name != "restante.lock"]
    assert re.fullmatch(r"[0-9a-f]{32}\.eml|\d+\.[0-9a-f]{32}\.restante(,.*)?", file.name)


@with_paths
def test_old_leftovers_are_removed(kind: str, tmp_path: Path) -> None:
    """maildir(5): files of killed processes are removed after 36 hours; files that another process
    may be writing are not."""
    with opened(kind, tmp_path) as destination:
        destination.begin("killed")
        (unfinished,) = tmp_path.rglob(".*.part")
    old, young = (unfinished.with_name(f"{unfinished.name[:-6]}{at}.part") for at in "ab")
    for each, hours in (old, 36.1), (young, 35.9):
        each.touch()
        os.utime(each, (time.time() - hours * 3600,) * 2)
    with opened(kind, tmp_path) as destination:
        put(destination, "1", MESSAGE)
    assert list(tmp_path.rglob("*.part")) == [young]


# The order of effects.


class Dead(BaseException):
    """Raised when the simulated process has died."""


CHANGES = ("open", "mkdir", "fsync", "link", "rename", "unlink", "ftruncate", "write")


class Recorder:
    """Records system calls that change files; fails or dies at one of them."""

    def __init__(self, base: Path, die_at: int = -1, fail: str = "", error: int = 0) -> None:
        self.calls: list[str] = []
        self._base = base
        self._die_at = die_at
        self._fail = fail
        self._error = error

    def call(self, name: str, real: Any, *arguments: Any, **options: Any) -> Any:
        where = arguments[0]
        if isinstance(where, int):
            where = os.readlink(f"/proc/self/fd/{where}")
        parent = options.get("dir_fd", options.get("src_dir_fd"))
        if parent is not None:
            where = os.path.join(os.readlink(f"/proc/self/fd/{parent}"), where)
        changes = name != "open" or arguments[1] & (os.O_CREAT | os.O_TRUNC)
        if changes and os.fspath(where).startswith(str(self._base)):
            path = os.path.relpath(where, self._base)
            path = re.sub(r"\d{9,}\.", "T.", re.sub(r"[0-9a-f]{16,}", "N", path))
            path = re.sub(r"T\.M\d+P\d+R\w*\..*", "T.N", path)
            self.calls.append(f"{name} {path}")
            if 0 <= self._die_at < len(self.calls):
                raise Dead
            if name == self._fail:
                raise OSError(self._error, os.strerror(self._error))
        return real(*arguments, **options)


@contextmanager
def recorded(base: Path, **options: Any) -> Iterator[Recorder]:
    recorder = Recorder(base, **options)
    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            real = getattr(os, name)

            def stand_in(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
                return recorder.call(name, real, *args, **kwargs)

            patch.setattr(os, name, stand_in)
        yield recorder


def test_a_file_is_durable_before_its_name_and_that_before_commit_returns(tmp_path: Path) -> None:
    with opened("folder", tmp_path) as folder, recorded(tmp_path) as recorder:
        put(folder, "a", MESSAGE)
    assert recorder.calls == [
        "open mail/.N.part",
        "fsync mail/.N.part",
        "rename mail/.N.part",
        "fsync mail",
    ]


@pytest.mark.parametrize(("kind", "name"), [("maildir", ".N.part"), ("maildrop", "T.N")])
def test_the_same_in_a_maildir(kind: str, name: str, tmp_path: Path) -> None:
    with opened(kind, tmp_path) as destination:
        put(destination, "first", MESSAGE)
        assert not destination.has("a")
        with recorded(tmp_path) as recorder:
            put(destination, "a", MESSAGE)
    assert [each for each in recorder.calls if not each.startswith(("write", "unlink"))] == [
        f"open mail/tmp/{name}",
        f"fsync mail/tmp/{name}",
        f"rename mail/tmp/{name}",
        "fsync mail/new",
    ]


def test_an_mbox_is_appended_to_when_the_message_is_durable_beside_it(tmp_path: Path) -> None:
    """It is appended to only then, and while it is locked."""
    with opened("mbox", tmp_path) as mbox, recorded(tmp_path) as recorder:
        put(mbox, "a", MESSAGE)
    assert recorder.calls == [
        "open .mail.N.part",
        "open mail",
        "open .mail.N.part",
        "write .mail.N.part",
        "link .mail.N.part",
        "unlink .mail.N.part",
        "fsync .mail.N.part",
        "rename .mail.N.part",
        "fsync .",
        "write mail",
        "fsync mail",
        "unlink .mail.restante",
        "unlink mail.lock",
    ]


@with_paths
def test_names_are_durable_from_the_beginning(kind: str, tmp_path: Path) -> None:
    """Also names that an earlier run made and did not sync before it was killed."""
    with (
        recorded(tmp_path) as recorder,
        closing(open_destination(f"{kind}:{tmp_path}/b".removeprefix("folder:"))),
    ):
        pass
    fsyncs = {each.removeprefix("fsync ") for each in recorder.calls if "fsync" in each}
    expected = {"folder": {".", "b"}, "mbox": {"."}}
    assert fsyncs >= expected.get(kind, {".", "b", "b/new", "b/cur"})


@with_paths
def test_no_directory_above_the_destination_is_made(kind: str, tmp_path: Path) -> None:
    """The disk may not be mounted: the next mount would hide the mail."""
    with pytest.raises(TemporaryFailure, match=f"{tmp_path}/disk does not exist; is its disk mou"):
        open_destination(f"{kind}:{tmp_path}/disk/mail".removeprefix("folder:"))
    assert list(tmp_path.iterdir()) == []


FOLDERS = ("new/{}", "cur/{}:2,S", "held/1700000000.{}", ".Old/cur/{}:2,FS", ".Old.er/new/{}")


@in_maildirs
@pytest.mark.parametrize("place", FOLDERS)
@pytest.mark.parametrize("is_older", [True, False], ids=["older", "newer"])
def test_moved_message_is_recognised(kind: str, place: str, is_older: bool, tmp_path: Path) -> None:
    """Moved into a folder by IMAP, or held after deletion by POP3; also if an older version stored
    it, without sizes in its name."""
    with opened(kind, tmp_path) as destination:
        put(destination, "a", MESSAGE)
    (new,) = (tmp_path / "mail" / "new").iterdir()
    name = new.name.partition(",")[0] if is_older else new.name
    moved = tmp_path / "mail" / place.format(name)
    moved.parent.mkdir(parents=True, exist_ok=True)
    new.rename(moved)
    if moved.parent.parent != tmp_path / "mail":
        for each in ("cur", "new"):
            (moved.parent.parent / each).mkdir(exist_ok=True)
    with opened(kind, tmp_path) as destination:
        assert destination.has("a")
        assert not destination.begin("a")
        assert isinstance(destination, Verifying)
        assert destination.holds("a", sha256(MESSAGE).digest())


@in_maildirs
@pytest.mark.parametrize(
    ("old", "new"), [("new", "cur"), ("cur", "new"), ("held", "new"), ("cur", "held")]
)
def test_message_moved_during_a_scan_is_recognised(
    kind: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass over each directory misses it."""
    with opened(kind, tmp_path) as destination:
        put(destination, "a", MESSAGE)
    mail = tmp_path / "mail"
    (mail / "held").mkdir(exist_ok=True)
    (delivered,) = (mail / "new").iterdir()
    place = {
        "new": mail / "new" / delivered.name,
        "cur": mail / "cur" / f"{delivered.name}:2,S",
        "held": mail / "held" / f"1764000000.{delivered.name}",
    }
    delivered.rename(place[old])
    real, missed = scanning._list, list[str]()

    def list_(name: str, parent: int) -> dict[str, int]:
        if name in (f"./{old}", f"./{new}") and name not in missed:
            missed.append(name)
            if place[old].exists():
                place[old].rename(place[new])
            return {}
        return real(name, parent)

    monkeypatch.setattr(scanning, "_list", list_)
    with opened(kind, tmp_path) as destination:
        assert destination.has("a")
    assert len(missed) == 2


@in_maildirs
def test_message_unseen_during_renames_is_neither_here_nor_missing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(kind, tmp_path) as destination:
        put(destination, "a", MESSAGE)
    stamps = count()
    with opened(kind, tmp_path) as destination:
        with monkeypatch.context() as patch:
            patch.setattr(scanning, "_stamp", lambda *_: (1, next(stamps), 1))
            assert destination.has("a")
            with pytest.raises(TemporaryFailure):
                destination.has("b")
        assert not destination.has("b")


@kinds
def test_retry_after_being_killed_at_any_call(kind: str, tmp_path: Path) -> None:
    """Every message is complete and there once, except after a death behind the commit to an mbox,
    which has no list: then a message may be there twice."""
    for number in range(100):
        base = tmp_path / str(number)
        base.mkdir()
        with opened(kind, base) as destination:
            put(destination, "first", MESSAGE)
        second = b"Subject: second\r\n\r\n" + b"x" * 70 + b"\r\n"
        with recorded(base, die_at=number) as recorder:
            try:
                put(KINDS[kind](base / "mail"), "second", second)
            except Dead:
                is_done = False
            else:
                is_done = True
        with opened(kind, base) as destination:
            if not destination.has("second"):
                put(destination, "second", second)
        found = stored(kind, base)
        assert sorted(set(found)) == sorted([MESSAGE, second]), recorder.calls
        assert len(found) == 2 or (kind == "mbox" and len(found) == 3)
        if is_done:
            return
    pytest.fail("never done")


@kinds
@pytest.mark.parametrize("call", ["fsync", "rename", "write"])
def test_a_full_disk_stores_nothing(kind: str, call: str, tmp_path: Path) -> None:
    if (kind, call) in (("mbox", "rename"), ("folder", "write"), ("maildir", "write")):
        call = "open"  # a call that it does not make
    with opened(kind, tmp_path) as destination:
        put(destination, "first", MESSAGE)
        with (
            recorded(tmp_path, fail=call, error=errno.ENOSPC),
            pytest.raises((OSError, TemporaryFailure), match="No space"),
        ):
            put(destination, "second", MESSAGE)
        assert stored(kind, tmp_path) == [MESSAGE]
        put(destination, "third", MESSAGE)
    assert stored(kind, tmp_path) == [MESSAGE, MESSAGE]
    assert leftovers(tmp_path) == []


# An mbox that other programs use too.


def test_incomplete_append_is_truncated(tmp_path: Path) -> None:
    with opened("mbox", tmp_path) as mbox:
        put(mbox, "a", MESSAGE)
    path = tmp_path / "mail"
    before = path.read_bytes()
    torn = b"From MAILER-DAEMON Thu Jan  1 00:00:00 1970\nSubject: torn\n\nbody\n\n"
    (tmp_path / ".mail.restante").write_bytes(b"%d\n" % len(before) + torn)
    for end in range(1, len(torn)):
        path.write_bytes(before + torn[:end])
        (tmp_path / ".mail.restante").write_bytes(b"%d\n" % len(before) + torn)
        with opened("mbox", tmp_path):
            pass
        assert path.read_bytes() == before
    path.write_bytes(before + torn)
    (tmp_path / ".mail.restante").write_bytes(b"%d\n" % len(before) + torn)
    with opened("mbox", tmp_path):
        pass
    assert path.read_bytes() == before + torn


@pytest.mark.parametrize("journal", [b"", b"x\n", b"-1\nFrom", b"0\nFrom other", b"999999\nFrom x"])
def test_mail_of_another_program_is_never_truncated(journal: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mail"
    path.write_bytes(b"From a\n\nmail\n\n")
    (tmp_path / ".mail.restante").write_bytes(journal)
    with opened("mbox", tmp_path):
        pass
    assert path.read_bytes() == b"From a\n\nmail\n\n"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_a_message_begins_behind_a_blank_line(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mail"
    path.write_bytes(b"From a\nSubject: old\n\nold" + end)
    with opened("mbox", tmp_path) as mbox:
        put(mbox, "a", MESSAGE)
    found = mailbox.mbox(path)
    with closing(found):
        assert [each["subject"] for each in found] == ["old", "x"]


@pytest.mark.parametrize("text", ["", "maildir:", "mbox:", "imap:x"])
def test_no_destination(text: str) -> None:
    with pytest.raises(UnsafeArgument):
        open_destination(text)


@with_names
def test_a_group_is_synced_before_any_of_it_has_its_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(file: int) -> None:
        events.append("directory" if os.path.isdir(f"/proc/self/fd/{file}") else "file")
        fsync(file)

    def renamed(*args: Any, **kwargs: Any) -> None:
        events.append("rename")
        rename(*args, **kwargs)

    with opened(kind, tmp_path) as destination:
        assert isinstance(destination, Grouping)
        put(destination, "zero", b"zero")
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "rename", renamed)
        for word in ("one", "two", "three"):
            assert destination.begin(word)
            destination.write(word.encode())
            destination.end()
        assert stored(kind, tmp_path) == [b"zero"]
        destination.group()()
        assert events == ["file"] * 3 + ["rename"] * 3 + ["directory"]
        assert sorted(stored(kind, tmp_path)) == [b"one", b"three", b"two", b"zero"]
        assert all(map(destination.has, ("one", "two", "three")))


@with_names
def test_a_group_that_cannot_be_synced_leaves_no_trace(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: int) -> None:
        raise OSError(errno.EIO, "disk")

    with opened(kind, tmp_path) as destination:
        assert isinstance(destination, Grouping)
        for word in ("one", "two"):
            assert destination.begin(word)
            destination.write(word.encode())
            destination.end()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            with pytest.raises((OSError, TemporaryFailure)):
                destination.group()()
        destination.group()()  # nothing is left that could count as stored
        assert stored(kind, tmp_path) == []
        assert not any(map(destination.has, ("one", "two")))
    assert leftovers(tmp_path) == []


@with_names
@pytest.mark.parametrize("works", [True, False])
def test_a_large_group_is_synced_with_its_file_system(
    kind: str, works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[bool] = []

    def syncfs(file: int) -> None:
        called.append(os.fstat(file).st_size > 0)
        if not works:
            raise OSError(errno.EIO, "disk")

    monkeypatch.setattr(syncing, "_syncfs", lambda: syncfs)
    monkeypatch.setattr(syncing, "_SYNCFS_MIN", 3)
    with opened(kind, tmp_path) as destination:
        assert isinstance(destination, Grouping)
        for word in ("one", "two", "three"):
            assert destination.begin(word)
            destination.write(word.encode())
            destination.end()
        if works:
            destination.group()()
        else:
            with pytest.raises((OSError, TemporaryFailure)):
                destination.group()()
        assert called == [True]
        assert len(stored(kind, tmp_path)) == (3 if works else 0)


def test_syncfs_is_the_one_of_the_system(tmp_path: Path) -> None:
    syncfs = syncing._syncfs()
    if syncfs is None:
        pytest.skip("not Linux 5.8 or newer")
    with tmp_path.joinpath("file").open("wb") as file:
        syncfs(file.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        syncfs(-1)
