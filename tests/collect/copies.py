"""Reads a collector's destinations without the collector's code, and knows what is durable.

A file that can be read may not survive a power failure, so ``Disk`` records what was synced.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from restante.maildrop import Entry
from restante.store.maildir import MaildirStore

from ..store.helpers import contents, listing, remove, run

USER = "ann"
_fsync = os.fsync


@dataclass(frozen=True)
class Copy:
    """A message at the destination."""

    octets: bytes
    """The message with LF line ends."""
    is_durable: bool
    is_held: bool = False
    """Its user has deleted it, and it can be restored."""


class Disk:
    """Records which files and names are durable, in this process and its children."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._read = 0
        self._sizes: dict[int, int] = {}
        """Number of durable octets, by inode."""
        self._names: dict[int, dict[str, int]] = {}
        """Durable names with their inodes, by inode of the directory."""
        journal.touch()

    def fsync(self, file: int) -> None:
        """Replace ``os.fsync``."""
        _fsync(file)
        found = os.fstat(file)
        names: dict[str, int] | None = None
        if os.path.isdir(f"/proc/self/fd/{file}"):
            names = {each.name: each.inode() for each in os.scandir(file)}
        line = json.dumps([found.st_ino, found.st_size, names]) + "\n"
        opened = os.open(self._journal, os.O_WRONLY | os.O_APPEND)
        os.write(opened, line.encode())
        os.close(opened)

    def size(self, path: Path) -> int:
        """Return how many octets of a file survive a power failure; -1 if its name does not."""
        self._catch_up()
        names = self._names.get(path.parent.stat().st_ino, {})
        inode = path.stat().st_ino
        return self._sizes.get(inode, 0) if names.get(path.name) == inode else -1

    def cut_power(self, path: Path) -> None:
        """Reduce a file to what is durable."""
        size = self.size(path)
        if size < 0:
            path.unlink()
        elif size < path.stat().st_size:
            os.truncate(path, size)

    def _catch_up(self) -> None:
        with self._journal.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                inode, size, names = json.loads(line)
                self._sizes[inode] = size
                if names is not None:
                    self._names[inode] = names
            self._read = lines.tell()


class Destination:
    """A destination of the collector, and the actions of its user."""

    is_repeatable = True
    """Whether a message that is stored again after a crash has the same name."""
    keeps: tuple[str, ...] = ("all", "none", "7d")
    """Values of ``keep`` that it supports."""
    holds = False
    """Whether mail that its user deletes can be restored."""
    is_readable = True
    """Whether ``Disk`` shows that its mail is durable."""

    def __init__(self, place: Path, disk: Disk) -> None:
        self.place, self.disk = place, disk

    @property
    def to(self) -> str:
        """Return the value of ``to`` in the configuration."""
        raise NotImplementedError

    def copies(self) -> list[Copy]:
        """Return all messages that are there."""
        raise NotImplementedError

    def delete(self, octets: bytes) -> int:
        """Delete a message as a user does; returns the number of copies there were."""
        return 0

    def give_back(self) -> None:
        """Restore all messages that are held."""

    def purge(self) -> None:
        """Destroy all held messages."""

    def refuse(self, is_refusing: bool) -> None:
        """Refuse long messages, or accept all again, if the destination can refuse any."""

    def cut_power(self) -> None:
        """Lose everything that is not durable."""


class _Files(Destination):
    """A destination with one message per file."""

    def _files(self) -> Iterator[Path]:
        raise NotImplementedError

    def copies(self) -> list[Copy]:
        return [self._copy(each) for each in self._files()]

    def _copy(self, path: Path) -> Copy:
        octets = path.read_bytes()
        is_durable = not self.is_readable or self.disk.size(path) == len(octets)
        return Copy(octets.replace(b"\r\n", b"\n"), is_durable, path.parent.name == "held")

    def delete(self, octets: bytes) -> int:
        found = [each for each in self._files() if self._copy(each).octets == octets]
        for each in found:
            each.unlink()
        return len(found)

    def cut_power(self) -> None:
        for each in list(self._files()):
            self.disk.cut_power(each)


class Folder(_Files):
    keeps = (*Destination.keeps, "until-verified")

    @property
    def to(self) -> str:
        return f"{self.place}/folder"

    def _files(self) -> Iterator[Path]:
        yield from (self.place / "folder").glob("*.eml")


class Maildir(_Files):
    keeps = (*Destination.keeps, "until-verified")

    @property
    def to(self) -> str:
        return f"maildir:{self.place}/Maildir"

    def _files(self) -> Iterator[Path]:
        for name in ("new", "cur"):
            yield from (self.place / "Maildir" / name).glob("*")


class Maildrop(_Files):
    """The maildrop of a user of this server."""

    holds = True
    keeps = (*Destination.keeps, "until-verified", "until-deleted")

    def __init__(self, place: Path, disk: Disk) -> None:
        super().__init__(place, disk)
        self._store = MaildirStore(f"{place}/mail/%u")

    @property
    def to(self) -> str:
        return f"maildrop:{USER}"

    def _files(self) -> Iterator[Path]:
        for name in ("new", "cur", "held"):
            yield from (self.place / "mail" / USER / name).glob("*.restante*")

    def delete(self, octets: bytes) -> int:
        async def victims() -> list[Entry]:
            entries = await listing(self._store, USER)
            texts = await contents(self._store, USER)
            both = zip(entries, texts, strict=True)
            return [each for each, text in both if text.replace(b"\r\n", b"\n") == octets]

        chosen = run(victims())
        run(remove(self._store, USER, chosen))
        return len(chosen)

    def give_back(self) -> None:
        async def story() -> None:
            await self._store.restore(USER, await self._store.held(USER))

        run(story())

    def purge(self) -> None:
        run(self._store.purge(USER, 2.0**40))


class Command(_Files):
    is_repeatable = is_readable = False

    def __init__(self, place: Path, disk: Disk) -> None:
        super().__init__(place, disk)
        (place / "taken").mkdir()

    @property
    def to(self) -> str:
        file = f"{self.place}/taken/$$"
        refuses = f"test -e {self._sign} && grep -q xxxx {file}.part"
        refuse = f"if {refuses}; then rm {file}.part; exit 65; fi"
        return f"command:sh -c 'cat > {file}.part && {refuse} && mv {file}.part {file}'"

    @property
    def _sign(self) -> Path:
        """Return the path of the file that exists while mail is refused."""
        return self.place / "refuses"

    def refuse(self, is_refusing: bool) -> None:
        self._sign.unlink(missing_ok=True)
        if is_refusing:
            self._sign.touch()

    def _files(self) -> Iterator[Path]:
        for path in (self.place / "taken").iterdir():
            if not path.name.endswith(".part"):
                yield path

    def cut_power(self) -> None:
        """Do nothing: durability is the program's own responsibility."""


class Mbox(Destination):
    is_repeatable = False

    @property
    def to(self) -> str:
        return f"mbox:{self._path}"

    @property
    def _path(self) -> Path:
        return self.place / "mbox"

    def copies(self) -> list[Copy]:
        return [copy for _, copy in self._parts()]

    def _parts(self) -> Iterator[tuple[bytes, Copy]]:
        """Return each message in its quoted and in its original form."""
        if not self._path.exists():
            return
        end, durable = 0, self.disk.size(self._path)
        for raw in re.split(rb"(?m)^(?=From MAILER-DAEMON )", self._path.read_bytes()):
            end += len(raw)
            text = raw.partition(b"\n")[2].removesuffix(b"\n")
            if raw:
                yield raw, Copy(re.sub(rb"(?m)^>(>*From )", rb"\1", text), end <= durable)

    def delete(self, octets: bytes) -> int:
        """Delete a message as mail readers do: write a new file and rename it."""
        parts = list(self._parts())
        kept = [raw for raw, copy in parts if copy.octets != octets]
        if len(kept) < len(parts):
            other = self.place / "mbox.new"
            other.write_bytes(b"".join(kept))
            self._sync(other)
            other.rename(self._path)
            self._sync(self.place)
        return len(parts) - len(kept)

    def _sync(self, path: Path) -> None:
        opened = os.open(path, os.O_RDONLY)
        self.disk.fsync(opened)
        os.close(opened)

    def cut_power(self) -> None:
        with suppress(FileNotFoundError):
            self.disk.cut_power(self._path)
        journal = self.place / ".mbox.restante"
        with suppress(FileNotFoundError):
            self.disk.cut_power(journal)


DESTINATIONS: dict[str, Callable[[Path, Disk], Destination]] = {
    "folder": Folder,
    "maildir": Maildir,
    "maildrop": Maildrop,
    "mbox": Mbox,
    "command": Command,
}
