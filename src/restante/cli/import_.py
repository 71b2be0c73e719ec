"""``restante import``: take over mail from another server, with every unique-id and the order."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..auth.names import normalise
from ..errors import PermanentFailure, TemporaryFailure, UnsafeArgument
from ..message import Survey
from ..store import foreign
from ..store.coded import LONGEST, UNPACKED, coding, unpacked
from ..store.maildir import MaildirStore
from ..store.names import unique_id_of
from . import common, identities, takeover
from .fetch import password_of
from .telling import counted

_PIECE = 65_536  # octets read at once


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message of the old server."""

    name: str
    """Of its file in our Maildir."""
    unique_id: str
    path: Path
    begin: int = 0
    end: int | None = None
    """Octets of the file; None: to its end."""
    coding: str = ""
    """How the file is compressed; empty: it is plain."""
    limit: int = 0
    """Octets that it may have when unpacked."""

    def octets(self) -> Iterator[bytes]:
        stored = self._stored()
        return unpacked(stored, self.coding, self.limit) if self.coding else stored

    def _stored(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.begin)
            left = os.fstat(file.fileno()).st_size if self.end is None else self.end - self.begin
            while left > 0 and (piece := file.read(min(left, _PIECE))):
                left -= len(piece)
                yield piece

    def size(self) -> int:
        """Octets on the wire (RFC 1939 §11)."""
        survey = Survey()
        for piece in self.octets():
            survey.feed(piece)
        survey.finish()
        return survey.size


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "import",
        help="take over mail from another server, or accounts from another collector",
        description="Copy one user's mail from the files of another POP3 server, which must not "
        "serve this user meanwhile. Clients that keep mail on the server download nothing again. "
        "If PATH is the user's maildrop itself, only the unique-ids are taken over. An "
        "interrupted import may be repeated. Of getmail, fetchmail and mpop: their accounts, and "
        "which messages they have seen.",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind in sorted(_READERS):
        _add_server(kinds.add_parser(kind, help=f"mail from the files of {_READERS[kind][1]}"))
    takeover.add_parsers(kinds)


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", type=Path, help="a Maildir, spool or mbox file")
    parser.add_argument("user", metavar="USER", help="whose maildrop they go to")
    parser.add_argument(
        "--uidl", type=Path, metavar="FILE", help="the old server's answer to UIDL has the ids"
    )
    parser.add_argument(
        "--format", metavar="FORMAT", help="Dovecot's pop3_uidl_format, or Cyrus's, if it was set"
    )
    parser.add_argument("--uidvalidity", type=int, metavar="N", help="of the mailbox (Cyrus)")
    parser.add_argument(
        "--compare",
        metavar="URL",
        help="first log in to the old server, and stop unless it lists the same",
    )
    parser.add_argument(
        "--password-file", type=Path, metavar="FILE", help="its first line is the password there"
    )
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="trust these certificates")
    parser.add_argument("--dry-run", action="store_true", help="change nothing, tell what would be")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    found = common.configuration(options)
    store = common.store(found)
    if not isinstance(store, MaildirStore):
        raise UnsafeArgument("only a store of kind maildir can take mail over")
    user = normalise(options.user)
    own = common.maildrop_path(found, user)
    with (
        closing(identities.chain(found, common.users(found))) as directory,
        suppress(TemporaryFailure),  # who is known may be settled later
    ):
        if asyncio.run(directory.account(user)) is None:
            common.say(f"nobody here is called {user}; next: restante user add {user}")
    arrivals, without = _READERS[options.kind][0](options)
    arrivals = _decoded(arrivals, own, found.limits.message)
    listed = len(arrivals) - without
    if options.uidl:
        arrivals[:listed] = _with_ids(arrivals[:listed], options.uidl.read_bytes())
    if without:
        common.say(
            f"{counted(without, 'message')} with unique-ids of ours, for want of any there; "
            "log in to the old server once more to avoid that"
        )
    if options.compare:
        _compare(options, arrivals)
    added = 0 if options.dry_run else asyncio.run(_take_over(store, user, arrivals))
    if options.json:
        common.print_json("import", user=user, messages=len(arrivals), copied=added)
        return os.EX_OK
    messages = counted(listed, "message")
    if options.dry_run:
        print(f"{messages} would have the unique-ids they had; nothing was changed")
    else:
        print(f"{messages} with the unique-ids they had, {added} copied now")
    return os.EX_OK


_PLAIN_COPY = (
    "nothing was changed; next, with Dovecot: doveadm -o maildir_copy_with_hardlinks=no "
    "-o plugin/zlib_save= -o plugin/mail_crypt_save_version=0 backup -u USER maildir:/NEW/PLACE, "
    "and import that"
)


def _decoded(arrivals: list[Arrival], own: Path, limit: int) -> list[Arrival]:
    """The same, with what must be unpacked.  Each of these is unpacked once now, so that what
    cannot be is found before anything changes.

    ``own``: the maildrop, whose own files are not copied.  ``limit``: octets of one message.

    Raises:
        PermanentFailure: some are encrypted, or compressed so that they cannot be unpacked.
    """
    coded = {at: how for at, each in enumerate(arrivals) if (how := _coding(each))}
    refused = [at for at, how in coded.items() if how not in UNPACKED or _is_in(arrivals[at], own)]
    if refused:
        raise PermanentFailure(
            f"{counted(len(refused), 'file')} cannot be read by restante "
            f"({', '.join(sorted({coded[at] for at in refused}))}), such as "
            f"{arrivals[refused[0]].path}; {_PLAIN_COPY}"
        )
    found = list(arrivals)
    for at, how in coded.items():
        name = _without_z(arrivals[at].name)
        found[at] = replace(arrivals[at], name=name, coding=how, limit=limit)
        try:
            found[at].size()
        except PermanentFailure as error:
            raise PermanentFailure(
                f"{arrivals[at].path}: {error} (limits.message); nothing was changed"
            ) from error
    if coded:
        common.say(f"{counted(len(coded), 'message')} compressed there, to be unpacked here")
    return found


def _coding(arrival: Arrival) -> str:
    with arrival.path.open("rb") as file:
        file.seek(arrival.begin)
        return coding(file.read(LONGEST))


def _is_in(arrival: Arrival, maildrop: Path) -> bool:
    directory = maildrop / arrival.path.parent.name
    return directory.is_dir() and directory.samefile(arrival.path.parent)


def _without_z(name: str) -> str:
    """By Dovecot's flag Z programs know compressed files."""
    base, colon, flags = name.partition(":2,")
    return f"{base}{colon}{flags.replace('Z', '')}"


async def _take_over(store: MaildirStore, user: str, arrivals: list[Arrival]) -> int:
    by_name = {arrival.name: arrival for arrival in arrivals}
    if len(by_name) != len(arrivals):
        raise PermanentFailure("two of these messages have one name")

    async def read(name: str) -> AsyncIterator[bytes]:
        for piece in by_name[name].octets():
            yield piece

    return await store.adopt(user, {each.name: each.unique_id for each in arrivals}, read)


def _with_ids(arrivals: list[Arrival], lines: bytes) -> list[Arrival]:
    """With the ids of a list, which must have one for each message."""
    ids = foreign.unique_id_list(lines)
    if sorted(ids) != list(range(1, len(arrivals) + 1)):
        raise PermanentFailure(f"{len(ids)} unique-ids for {len(arrivals)} messages")
    return [
        Arrival(_name(ids[number]), ids[number], each.path, each.begin, each.end)
        if each.unique_id == ""
        else Arrival(each.name, ids[number], each.path, each.begin, each.end)
        for number, each in enumerate(arrivals, 1)
    ]


def _compare(options: argparse.Namespace, arrivals: list[Arrival]) -> None:
    """Raises:
    PermanentFailure: the old server lists something else.
    """
    from ..net.blocking import connect_blocking
    from ..net.remote import split

    user = split(options.compare)[3].user or options.user
    password = password_of(options, user)
    with connect_blocking(
        options.compare, user=user, password=password, ca_file=options.ca_file
    ) as client:
        there = [(message.unique_id, message.size) for message in client.messages()]
    here = [(arrival.unique_id, arrival.size()) for arrival in arrivals]
    wrong = [n for n, (one, other) in enumerate(zip(there, here, strict=False), 1) if one != other]
    if wrong or len(there) != len(here):
        first = f"; the first that differs is number {wrong[0]}" if wrong else ""
        raise PermanentFailure(
            f"the old server lists {len(there)} messages, its files hold {len(here)}{first}"
        )
    common.say(f"the old server lists the same {len(here)} messages")


# The files of other servers.  Each gives the messages in their order, and how many of them, the
# last ones, have no unique-id there.

Found = tuple[list[Arrival], int]


def _dovecot(options: argparse.Namespace) -> Found:
    octets = (options.path / "dovecot-uidlist").read_bytes()
    return _maildir(options.path, foreign.dovecot(octets, options.format or foreign.DOVECOT))


def _courier(options: argparse.Namespace) -> Found:
    return _maildir(
        options.path, foreign.courier((options.path / "courierpop3dsizelist").read_bytes())
    )


def _maildir(path: Path, ids: dict[str, str]) -> Found:
    files: dict[str, Path] = {}
    for directory in ("new", "cur"):  # in the order in which messages move
        for file in sorted((path / directory).iterdir()):
            if file.is_file() and not file.is_symlink() and not file.name.startswith("."):
                base = file.name.partition(":")[0]
                other = files.get(base, file)
                if other.exists() and not other.samefile(file):
                    raise PermanentFailure(f"two messages there are called {base}; rename one")
                files[base] = file
    known = [name for name in ids if name in files]
    others = [name for name in files if name not in ids]
    arrivals = [Arrival(files[name].name, ids[name], files[name]) for name in known]
    arrivals += [Arrival(files[name].name, unique_id_of(name), files[name]) for name in others]
    return arrivals, len(others)


def _cyrus(options: argparse.Namespace) -> Found:
    template = options.format or foreign.CYRUS
    if "v" in template and options.uidvalidity is None and not options.uidl:
        raise UnsafeArgument("Cyrus: --uidvalidity N is needed, or --uidl FILE")
    numbered = {
        int(file.name[:-1]): file
        for file in options.path.iterdir()
        if file.name[:-1].isdecimal() and file.name.endswith(".")
    }
    arrivals = []
    for uid, file in sorted(numbered.items()):
        unique_id = foreign.render(template, uid=uid, uid_validity=options.uidvalidity or 0)
        arrived = int(file.stat().st_mtime)
        arrivals.append(Arrival(_name(unique_id, arrived), unique_id, file))
    return arrivals, 0


def _mbox(options: argparse.Namespace) -> Found:
    with options.path.open("rb") as lines:
        if how := coding(lines.read(LONGEST)):
            raise PermanentFailure(f"{options.path} is no plain mbox ({how}); next: unpack it")
        lines.seek(0)
        found = list(foreign.mbox(lines))
    arrivals = [
        Arrival(_name(each.unique_id), each.unique_id, options.path, each.begin, each.end)
        for each in found
    ]
    if not options.uidl and not all(each.unique_id for each in found):
        raise PermanentFailure("some messages of the mbox have no unique-id; --uidl FILE is needed")
    return arrivals, 0


def _name(unique_id: str, arrived: int = 0) -> str:
    """The same each time, so that an import can be repeated.  ``arrived``: seconds since the
    epoch, where nothing but the arrival changes the time of the file."""
    return f"{arrived}.I{hashlib.sha256(unique_id.encode()).hexdigest()[:32]}"


_READERS: dict[str, tuple[Callable[[argparse.Namespace], Found], str]] = {
    "courier": (_courier, "Courier"),
    "cyrus": (_cyrus, "Cyrus"),
    "dovecot": (_dovecot, "Dovecot"),
    "mbox": (_mbox, "a server with mboxes"),
    "uw": (_mbox, "ipop3d and its kin"),
}
