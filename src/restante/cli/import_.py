"""``restante import``: take over mail from another server, with every unique-id and the order."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from ..app import backends, stores
from ..app.words import counted
from ..auth.names import check_new_name, normalise
from ..errors import PermanentFailure, TemporaryFailure, UnsafeArgument
from ..scanning import MAIL, open_maildir, scan_exactly
from ..store import foreign
from ..store.maildir import MaildirStore
from ..store.names import unique_id_of
from . import common, import_accounts, import_mbox
from .fetch import password_of
from .import_messages import Arrival, Found, decoded, name_of


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
        text = f"mail from the files of {_READERS[kind][1]}"
        _add_server(kinds.add_parser(kind, help=text), kind)
    import_accounts.add_parsers(kinds)


def _add_server(parser: argparse.ArgumentParser, kind: str) -> None:
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
    if _READERS[kind][0] is import_mbox.read:
        import_mbox.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    found = common.configuration(options)
    store = stores.store(found)
    if not isinstance(store, MaildirStore):
        raise UnsafeArgument("only a store of kind maildir can take mail over")
    user = normalise(options.user)
    own = stores.maildrop_path(found, user)
    with (
        closing(backends.chain(found, stores.users(found))) as directory,
        suppress(TemporaryFailure),  # who is known may be settled later
    ):
        if asyncio.run(directory.account(user)) is None:
            check_new_name(user)
            common.say(f"no such user: {user}; create it with: restante user add {user}")
    result = _READERS[options.kind][0](options)
    result.arrivals = decoded(result.arrivals, own, found.limits.message)
    if options.uidl:
        listed = len(result.arrivals) - result.unlisted
        ids = _with_ids(result.arrivals[:listed], options.uidl.read_bytes())
        result.arrivals[:listed] = ids
    if result.unlisted:
        common.say(
            f"{counted(result.unlisted, 'message')} with unique-ids of ours, for want of any "
            "there; log in to the old server once more to avoid that"
        )
    for note in result.notes:
        common.say(note)
    if options.compare:
        _compare(options, result.arrivals)
    added = 0 if options.dry_run else asyncio.run(_take_over(store, user, result.arrivals))
    if options.json:
        common.print_json("import", user=user, copied=added, **result.as_json())
        return os.EX_OK
    _report(options, result, added)
    return os.EX_OK


def _report(options: argparse.Namespace, result: Found, added: int) -> None:
    kept = len(result.arrivals) - result.made
    messages = counted(kept, "message") if kept or not result.made else ""
    if options.dry_run:
        told = [f"{messages} would have the unique-ids they had"] if messages else []
        told += [f"{counted(result.made, 'message')} would have new unique-ids"] * bool(result.made)
        print(f"{', '.join(told)}; nothing was changed")
    else:
        told = [f"{messages} with the unique-ids they had"] if messages else []
        told += [f"{counted(result.made, 'message')} with new unique-ids"] * bool(result.made)
        print(f"{', '.join(told)}, {added} copied now")


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
        replace(
            each, name=each.name if each.unique_id else name_of(ids[number]), unique_id=ids[number]
        )
        for number, each in enumerate(arrivals, 1)
    ]


def _compare(options: argparse.Namespace, arrivals: list[Arrival]) -> None:
    """Raises:
    PermanentFailure: the old server lists something else.
    """
    from ..client.blocking import connect_blocking
    from ..client.remote import split

    user = split(options.compare)[3].user or options.user
    password = password_of(options, user)
    with connect_blocking(
        options.compare, user=user, password=password, ca_file=options.ca_file
    ) as client:
        there = [(message.unique_id, message.size) for message in client.list()]
    here = [(arrival.unique_id, arrival.size()) for arrival in arrivals]
    wrong = [n for n, (one, other) in enumerate(zip(there, here, strict=False), 1) if one != other]
    if wrong or len(there) != len(here):
        first = f"; the first that differs is number {wrong[0]}" if wrong else ""
        raise PermanentFailure(
            f"the old server lists {len(there)} messages, its files hold {len(here)}{first}"
        )
    common.say(f"the old server lists the same {len(here)} messages")


# The files of other servers.


def _dovecot(options: argparse.Namespace) -> Found:
    octets = (options.path / "dovecot-uidlist").read_bytes()
    return _maildir(options.path, foreign.dovecot(octets, options.format or foreign.DOVECOT))


def _courier(options: argparse.Namespace) -> Found:
    return _maildir(
        options.path, foreign.courier((options.path / "courierpop3dsizelist").read_bytes())
    )


def _maildir(path: Path, ids: dict[str, str]) -> Found:
    files: dict[str, Path] = {}
    with open_maildir(path) as maildir:
        listed = sorted(scan_exactly(maildir), key=lambda each: (MAIL.index(each.directory), each))
    for found in listed:
        file, base = path / found.directory / found.name, found.name.partition(":")[0]
        other = files.get(base, file)
        if other.exists() and not other.samefile(file):
            raise PermanentFailure(f"two messages there are called {base}; rename one")
        files[base] = file
    known = [name for name in ids if name in files]
    others = [name for name in files if name not in ids]
    arrivals = [Arrival(files[name].name, ids[name], files[name]) for name in known]
    arrivals += [Arrival(files[name].name, unique_id_of(name), files[name]) for name in others]
    return Found(arrivals, unlisted=len(others), made=len(others))


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
        arrivals.append(Arrival(name_of(unique_id, arrived), unique_id, file))
    return Found(arrivals)


_READERS: dict[str, tuple[Callable[[argparse.Namespace], Found], str]] = {
    "courier": (_courier, "Courier"),
    "cyrus": (_cyrus, "Cyrus"),
    "dovecot": (_dovecot, "Dovecot"),
    "mbox": (import_mbox.read, "mboxes: of Thunderbird, of Google Takeout, of a server"),
    "uw": (import_mbox.read, "ipop3d and its kin"),
}
