"""``restante import``: import mail from another server, and keep its unique-ids and order."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote

from ..app import backends, stores
from ..auth.names import check_new_name, normalise
from ..errors import PermanentFailure, TemporaryFailure, UnsafeArgument
from ..scanning import MAIL, open_maildir, scan_exactly
from ..store import foreign
from ..store.maildir import MaildirStore
from ..store.names import unique_id_of
from ..words import counted
from . import common, import_accounts, import_mbox
from .fetch import password_of
from .import_messages import ImportedFiles, ImportedMessage, decoded, name_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Copy one user's mail from the files of another POP3 server. That server must not serve "
        "the user during the import. Clients that keep mail on the server do not download it "
        "again. If PATH is the user's maildrop itself, only the unique-ids are imported. An "
        "interrupted import can be repeated. For getmail, fetchmail and mpop, the accounts and the "
        "lists of seen messages are imported."
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind in sorted(_READERS):
        text = f"import mail from {_READERS[kind][1]}"
        _add_server(kinds.add_parser(kind, help=text), kind)
    import_accounts.add_parsers(kinds)


def _add_server(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="the Maildir, the spool directory or the mbox file"
    )
    parser.add_argument("user", metavar="USER", help="the user to import the mail for")
    parser.add_argument(
        "--uidl",
        type=Path,
        metavar="FILE",
        help="if the server's files contain no unique-ids, read them from FILE, a copy of the old "
        "server's response to UIDL",
    )
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        help="the value of pop3_uidl_format in Dovecot or Cyrus, if it was set",
    )
    parser.add_argument(
        "--uidvalidity", type=int, metavar="N", help="the UIDVALIDITY of the mailbox (Cyrus)"
    )
    parser.add_argument(
        "--compare",
        metavar="URL",
        help="first log in to the old server at URL, and stop if the messages that it lists differ "
        "from the files",
    )
    parser.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="the user's password on the old server for --compare, from the first line of FILE",
    )
    parser.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="trust the CA certificates in this PEM file for --compare",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="change nothing, only print what would be done"
    )
    if _READERS[kind][0] is import_mbox.read:
        import_mbox.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    common.password_from_file(options)
    config = common.configuration(options)
    store = stores.store(config)
    if not isinstance(store, MaildirStore):
        raise UnsafeArgument('import requires store.kind = "maildir"')
    user = normalise(options.user)
    maildrop = stores.maildrop_path(config, user)
    with (
        closing(backends.chain(config, stores.users(config))) as chain,
        suppress(TemporaryFailure),  # the user may exist in a back end that is down
    ):
        if asyncio.run(chain.account(user)) is None:
            check_new_name(user)
            common.say(f"No such user: {user}. Create it with: restante user add {quote(user)}")
    result = _READERS[options.kind][0](options)
    result.messages = decoded(result.messages, maildrop, config.limits.message)
    if options.uidl:
        listed = len(result.messages) - result.unlisted
        ids = _with_ids(result.messages[:listed], options.uidl.read_bytes())
        result.messages[:listed] = ids
    if result.unlisted:
        common.say(
            f"{counted(result.unlisted, 'message')} had no unique-id on the old server. The "
            "import assigns new unique-ids to such messages. To avoid this, log in to the old "
            "server before the import, so that it assigns them."
        )
    for note in result.notes:
        common.say(note)
    if options.compare:
        _compare(options, result.messages)
    added = 0 if options.dry_run else asyncio.run(_copy(store, user, result.messages))
    if options.json:
        common.print_json("import", user=user, copied=added, **result.as_json())
        return os.EX_OK
    _report(options, result, added)
    return os.EX_OK


def _report(options: argparse.Namespace, result: ImportedFiles, added: int) -> None:
    old, new = len(result.messages) - result.new_ids, result.new_ids
    parts = []
    if old or not new:
        parts.append(f"{counted(old, 'message')} with the {_unique_ids(old)} of the old server")
    if new:
        ids = "new unique-ids" if new > 1 else "a new unique-id"
        parts.append(f"{counted(new, 'message')} with {ids}")
    messages = " and ".join(parts)
    if options.dry_run:
        print(f"Would import {messages}. Nothing was changed.")
    else:
        print(f"Imported {messages}. This run copied {counted(added, 'message')}.")


def _unique_ids(number: int) -> str:
    return "unique-id" if number == 1 else "unique-ids"


async def _copy(store: MaildirStore, user: str, messages: list[ImportedMessage]) -> int:
    by_name = {message.name: message for message in messages}
    if len(by_name) != len(messages):
        raise PermanentFailure("two messages have the same file name")

    async def read(name: str) -> AsyncIterator[bytes]:
        for piece in by_name[name].octets():
            yield piece

    return await store.adopt(user, {each.name: each.unique_id for each in messages}, read)


def _with_ids(messages: list[ImportedMessage], lines: bytes) -> list[ImportedMessage]:
    """Return the messages with the unique-ids of a complete list."""
    ids = foreign.unique_id_list(lines)
    if sorted(ids) != list(range(1, len(messages) + 1)):
        raise PermanentFailure(
            f"the list has {counted(len(ids), 'unique-id')}, but the server's files contain "
            f"{counted(len(messages), 'message')}"
        )
    return [
        replace(
            each, name=each.name if each.unique_id else name_of(ids[number]), unique_id=ids[number]
        )
        for number, each in enumerate(messages, 1)
    ]


def _compare(options: argparse.Namespace, messages: list[ImportedMessage]) -> None:
    """Compare with the list of the old server.

    Raises:
        PermanentFailure: the old server lists different messages.
    """
    from ..client.blocking import connect_blocking
    from ..client.remote import split

    user = split(options.compare)[3].user or options.user
    password = password_of(options, user)
    with connect_blocking(
        options.compare, user=user, password=password, ca_file=options.ca_file
    ) as client:
        listed = [(message.unique_id, message.size) for message in client.list()]
    imported = [(message.unique_id, message.size()) for message in messages]
    pairs = enumerate(zip(listed, imported, strict=False), 1)
    different = [number for number, (old, new) in pairs if old != new]
    if different or len(listed) != len(imported):
        first = f"; the first difference is message {different[0]}" if different else ""
        raise PermanentFailure(
            f"the old server lists {counted(len(listed), 'message')}, but its files contain "
            f"{len(imported)}{first}"
        )
    common.say(f"The old server lists the same {counted(len(imported), 'message')}.")


# Reading the files of other servers.


def _dovecot(options: argparse.Namespace) -> ImportedFiles:
    octets = (options.path / "dovecot-uidlist").read_bytes()
    return _maildir(options.path, foreign.dovecot(octets, options.format or foreign.DOVECOT))


def _courier(options: argparse.Namespace) -> ImportedFiles:
    return _maildir(
        options.path, foreign.courier((options.path / "courierpop3dsizelist").read_bytes())
    )


def _maildir(path: Path, ids: dict[str, str]) -> ImportedFiles:
    files: dict[str, Path] = {}
    with open_maildir(path) as maildir:
        listed = sorted(scan_exactly(maildir), key=lambda each: (MAIL.index(each.directory), each))
    for entry in listed:
        file, base = path / entry.directory / entry.name, entry.name.partition(":")[0]
        other = files.get(base, file)
        if other.exists() and not other.samefile(file):
            raise PermanentFailure(f"two message files have the name {base}; rename one")
        files[base] = file
    known = [name for name in ids if name in files]
    others = [name for name in files if name not in ids]
    messages = [ImportedMessage(files[name].name, ids[name], files[name]) for name in known]
    messages += [
        ImportedMessage(files[name].name, unique_id_of(name), files[name]) for name in others
    ]
    return ImportedFiles(messages, unlisted=len(others), new_ids=len(others))


def _cyrus(options: argparse.Namespace) -> ImportedFiles:
    template = options.format or foreign.CYRUS
    if "v" in template and options.uidvalidity is None and not options.uidl:
        raise UnsafeArgument("Cyrus requires --uidvalidity N or --uidl FILE")
    numbered = {
        int(file.name[:-1]): file
        for file in options.path.iterdir()
        if file.name[:-1].isdecimal() and file.name.endswith(".")
    }
    messages = []
    for uid, file in sorted(numbered.items()):
        unique_id = foreign.render(template, uid=uid, uid_validity=options.uidvalidity or 0)
        arrived_at = int(file.stat().st_mtime)
        messages.append(ImportedMessage(name_of(unique_id, arrived_at), unique_id, file))
    return ImportedFiles(messages)


_READERS: dict[str, tuple[Callable[[argparse.Namespace], ImportedFiles], str]] = {
    "courier": (_courier, "Courier"),
    "cyrus": (_cyrus, "Cyrus"),
    "dovecot": (_dovecot, "Dovecot"),
    "mbox": (import_mbox.read, "an mbox file from Thunderbird, Google Takeout or a server"),
    "uw": (import_mbox.read, "UW ipop3d and similar servers"),
}
