"""``restante maildrop``: look into maildrops, read session logs, restore deleted mail."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from math import inf
from typing import Any

from ..app import failures, stores
from ..app.words import counted
from ..auth.names import normalise
from ..errors import MaildropInUse, NoSuchUser, RestanteError, TemporaryFailure, UnsafeArgument
from ..log import printable
from ..maildrop import Entry, HeldMessage, ServableStore, SessionRecord
from ..store.foreign import dovecot_uidlist
from ..store.maildir import MaildirStore
from . import common
from .summaries import head_of

_OLD_RESTORE = "undelete"  # the name of `restore` up to 0.1; scripts may still use it

Action = Callable[[argparse.Namespace, ServableStore], Coroutine[Any, Any, int]]


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    noun = verbs.add_parser(
        "maildrop",
        help="list, show, log, verify; held, restore and purge for what clients deleted",
    )
    actions = noun.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, run: Action, text: str, *, user: str = "USER") -> argparse.ArgumentParser:
        # Without ``help`` argparse does not list it.
        parser = actions.add_parser(name, help=text) if text else actions.add_parser(name)
        if user:
            parser.add_argument("user", metavar="USER", nargs="?" if user == "?" else None)
        parser.set_defaults(run=lambda options: _run(options, run))
        return parser

    action("list", list_, "every maildrop: messages, octets, held", user="")
    action("show", show, "the messages of one maildrop")
    action("held", held, "what can be given back")
    _add_restore_options(action("restore", restore, "restore deleted messages"))
    _add_restore_options(action(_OLD_RESTORE, restore, ""))
    out = action("export", export, "tell the unique-ids, for another server")
    out.add_argument("--uidlist", action="store_true", help="as Dovecot's dovecot-uidlist")
    told = action("log", log, "which sessions retrieved or deleted which messages")
    told.add_argument("--since", metavar="TIME", help="only the last 2h, 3d …")
    for name, run, text in (
        ("verify", verify, "read every message and compare all that is said of it"),
        ("reindex", reindex, "make the index anew, from the mail alone"),
    ):
        whose = action(name, run, text, user="?")
        whose.add_argument("--all", action="store_true", help="every maildrop")
    end = action(
        "purge",
        purge,
        "destroy held mail for good; without USER and --all only messages whose time is over, and "
        "also those that wait because the clock has jumped",
        user="?",
    )
    end.add_argument("--older-than", metavar="TIME", help="only what is held longer")
    end.add_argument("--all", action="store_true", help="in every maildrop")
    end.add_argument("--yes", action="store_true", help="do not ask")


def _add_restore_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="*", help="a name printed by `held`")
    parser.add_argument(
        "--since", metavar="TIME", help="all messages deleted in the last 2h, 3d, …"
    )
    parser.add_argument("--all", action="store_true", help="all held messages")
    parser.add_argument(
        "--same-uidl",
        action="store_true",
        help="keep the unique-ids, so that clients do not download the messages again",
    )


def _run(options: argparse.Namespace, action: Action) -> int:
    return asyncio.run(action(options, stores.store(common.configuration(options))))


async def list_(options: argparse.Namespace, store: ServableStore) -> int:
    rows: list[dict[str, object]] = []
    code = os.EX_OK
    async for user in store.users():
        row: dict[str, object] = {"user": user}
        rows.append(row)
        try:
            row["held"] = len(await store.held(user))
            async with store.open(user) as maildrop:
                entries = maildrop.listing
        except MaildropInUse:
            row["in_use"] = True
        except RestanteError as error:
            code = failures.gravest((code, _unread(row, error)))
            continue
        else:
            octets = sum(entry.size for entry in entries)
            row |= {"messages": len(entries), "octets": octets, "in_use": False}
        row |= await _usage(store, user)
    if options.json:
        common.print_json("maildrop-list", maildrops=rows)
        return code
    for row in rows:
        if "error" in row:
            continue
        there = (
            "in use now" if row["in_use"] else "{messages} messages, {octets} octets".format(**row)
        )
        print("{user}: {there}, {held} held".format(**row, there=there) + _told(row))
    return code


def _unread(row: dict[str, object], error: RestanteError) -> int:
    """A maildrop that cannot be read hides no other; returns the exit code."""
    row |= {"in_use": isinstance(error, MaildropInUse), "error": str(error)}
    common.say(f"{row['user']}: {error}")
    return failures.exit_code(error)


async def show(options: argparse.Namespace, store: ServableStore) -> int:
    rows = []
    user = await _known(options, store)
    async with store.open(user) as maildrop:
        for number, entry in enumerate(maildrop.listing, 1):
            head = await _head(maildrop.read(entry))
            rows.append(
                {"number": number, "size": entry.size, "unique_id": entry.unique_id, **head}
            )
    code = os.EX_DATAERR if any("error" in row for row in rows) else os.EX_OK
    if options.json:
        usage = await _usage(store, user)
        common.print_json("maildrop-show", user=user, messages=rows, **usage)
        return code
    for row in rows:
        print("{number:4} {size:9}  {date}  {sender:30.30}  ".format(**row) + _subject(row))
    if told := _told(await _usage(store, user)):
        common.say(f"{user}{told}")
    return code


async def _head(pieces: AsyncIterator[bytes]) -> dict[str, str]:
    """A message that cannot be read, which ``error`` explains, hides no other."""
    try:
        return await head_of(pieces)
    except RestanteError as error:
        return {"sender": "", "subject": "", "date": "", "error": str(error)}


def _subject(row: Mapping[str, object]) -> str:
    return f"[cannot be read: {row['error']}]" if "error" in row else str(row["subject"])


async def _usage(store: ServableStore, user: str) -> dict[str, object]:
    """What there is of the quota; of a user who has none nothing."""
    if not isinstance(store, MaildirStore):
        return {}
    usage = await store.usage(user)
    return {"used": usage.octets, "quota": usage.limit} if usage.limit else {}


def _told(row: Mapping[str, object]) -> str:
    return ", {used} of {quota} octets used".format(**row) if "quota" in row else ""


async def held(options: argparse.Namespace, store: ServableStore) -> int:
    user = await _known(options, store)
    rows = []
    for message in await store.held(user):
        head = await _head(store.read_held(user, message))
        row = {"name": message.name, "size": message.size, "unique_id": message.unique_id, **head}
        rows.append({**row, "removed_at": message.removed_at})
    if options.json:
        common.print_json("maildrop-held", user=user, messages=rows)
        return os.EX_OK
    for each in rows:
        at = datetime.fromtimestamp(float(str(each["removed_at"]))).strftime("%Y-%m-%d %H:%M")
        print(f"{at}  {each['size']:9}  {each['sender']:30.30}  {_subject(each)}")
        print(f"    {printable(str(each['name']))}")
    return os.EX_OK


async def log(options: argparse.Namespace, store: ServableStore) -> int:
    user = await _known(options, store)
    since = time.time() - common.seconds(options.since) if options.since else 0.0
    found = [each for each in await store.sessions(user) if each.ended_at >= since]
    heads = await _heads(store, user, {e.unique_id for each in found for e in each.removed})
    if options.json:
        common.print_json("maildrop-log", user=user, sessions=[_session(each) for each in found])
        return os.EX_OK
    for session in found:
        at = datetime.fromtimestamp(session.began_at).strftime("%Y-%m-%d %H:%M")
        tls = f"TLS {session.tls}" if session.tls not in ("", "no") else "no TLS"
        who = f"{session.credential}  {session.address}  {tls}" if session.address else "unknown"
        counts = f"{_retrieved(session)} retrieved, {len(session.removed)} deleted"
        print(printable(f"{at}  {who}  {counts}  {session.end}"))
        for entry in session.removed:
            sender, subject = heads.get(
                entry.unique_id, ("", "no longer held: given back or destroyed")
            )
            print(printable(f"    {entry.unique_id}  {entry.size:9}  {sender:30.30}  {subject}"))
    return os.EX_OK


def _retrieved(session: SessionRecord) -> int:
    return len(session.retrieved) + session.unnamed


def _session(session: SessionRecord) -> dict[str, object]:
    """For programs."""

    def entries(of: Sequence[Entry]) -> list[dict[str, object]]:
        return [{"unique_id": entry.unique_id, "size": entry.size} for entry in of]

    return {
        "began_at": session.began_at,
        "ended_at": session.ended_at,
        "address": session.address,
        "tls": session.tls,
        "credential": session.credential,
        "retrieved": entries(session.retrieved),
        "retrieved_messages": _retrieved(session),
        "removed": entries(session.removed),
        "end": session.end,
    }


async def _heads(store: ServableStore, user: str, wanted: set[str]) -> dict[str, tuple[str, str]]:
    """Sender and subject of those that are held, by unique-id: the journal holds no text."""
    found = {}
    for message in await store.held(user):
        if message.unique_id in wanted:
            head = await _head(store.read_held(user, message))
            found[message.unique_id] = head["sender"], _subject(head)
    return found


async def export(options: argparse.Namespace, store: ServableStore) -> int:
    """Octets, for the names of files may be any."""
    user = await _known(options, store)
    ids = await _files(store).unique_ids(user)
    if options.json:
        common.print_json("maildrop-export", user=user, unique_ids=list(ids.values()))
        return os.EX_OK
    if options.uidlist:
        told = dovecot_uidlist(ids, uid_validity=int(time.time()), guid=secrets.token_hex(16))
    else:
        told = b"".join(b"%d %s\n" % (n, each.encode()) for n, each in enumerate(ids.values(), 1))
    sys.stdout.buffer.write(told)
    return os.EX_OK


async def restore(options: argparse.Namespace, store: ServableStore) -> int:
    if options.action == _OLD_RESTORE:
        common.say("`restante maildrop undelete` is deprecated: use `restante maildrop restore`")
    user = await _known(options, store)
    wanted = _chosen(options, list(await store.held(user)))
    count = await store.restore(user, wanted, same_unique_ids=options.same_uidl)
    if options.json:
        common.print_json(f"maildrop-{options.action}", user=user, messages=count)
    elif count:
        print(f"Restored {counted(count, 'message')} to {user}. {_what_clients_do(options)}")
    else:
        print("No held message matches; nothing was restored.")
    return os.EX_OK


def _what_clients_do(options: argparse.Namespace) -> str:
    if options.same_uidl:
        return "Known to clients; not downloaded again."
    return "New to clients; downloaded again."


def _chosen(options: argparse.Namespace, found: list[HeldMessage]) -> list[HeldMessage]:
    if options.all:
        return found
    if options.since:
        since = time.time() - common.seconds(options.since)
        return [message for message in found if message.removed_at >= since]
    by_name = {message.name: message for message in found}
    if not options.name:
        raise UnsafeArgument(
            "which ones? --since 2h, --all, or names from `restante maildrop held`"
        )
    if missing := [name for name in options.name if name not in by_name]:
        raise UnsafeArgument(f"nothing is held under the name {missing[0]!r}")
    return [by_name[name] for name in options.name]


async def purge(options: argparse.Namespace, store: ServableStore) -> int:
    if not (options.user or options.all or options.older_than):
        return await _purge_due(options, store)
    users = await _whose(options, store)
    longer = common.seconds(options.older_than) if options.older_than else 0.0
    before = time.time() - longer if longer else inf  # all, also what is dated in the future
    if not common.confirm("Destroy held mail for good?", options):
        return os.EX_OK

    async def destroy(user: str) -> int:
        return await store.purge(user, before)

    return await _purged(options, users, destroy)


async def _purge_due(options: argparse.Namespace, store: ServableStore) -> int:
    """What the server would destroy if it believed the clock, which the operator vouches for."""
    clock = stores.clock(common.configuration(options))
    reading = clock.advance()
    today = datetime.fromtimestamp(reading.now).strftime("%Y-%m-%d %H:%M")
    if reading.is_behind:
        raise TemporaryFailure(f"the clock shows {today}, which is in the past; set it first")
    users = [user async for user in store.users()]
    due = 0
    for user in users:
        with suppress(RestanteError):  # it is named below
            due += (await store.purge_due(user, until=-inf, now=reading.now)).doubtful
    question = f"It is {today}. Destroy {counted(due, 'held message')} whose time is over?"
    if due and not common.confirm(question, options):
        return os.EX_OK
    clock.accept()

    async def destroy(user: str) -> int:
        return (await store.purge_due(user, until=reading.now, now=reading.now)).messages

    return await _purged(options, users, destroy)


async def _purged(
    options: argparse.Namespace, users: Sequence[str], destroy: Callable[[str], Awaitable[int]]
) -> int:
    counts, code = dict[str, int](), os.EX_OK
    for user in users:
        try:
            counts[user] = await destroy(user)
        except RestanteError as error:
            code = failures.gravest((code, _unread({"user": user}, error)))
    if options.json:
        common.print_json("maildrop-purge", purged=counts)
        return code
    print(f"{counted(sum(counts.values()), 'message')} destroyed")
    return code


async def verify(options: argparse.Namespace, store: ServableStore) -> int:
    files = _files(store)
    rows: list[dict[str, object]] = []
    code = os.EX_OK
    for user in await _whose(options, store):
        try:
            messages, found = await files.verify(user)
        except RestanteError as error:
            rows.append({"user": user})
            unread = _unread(rows[-1], error)
            code = code if code == os.EX_DATAERR else failures.gravest((code, unread))
            continue
        findings = [asdict(each) for each in found]
        rows.append({"user": user, "in_use": False, "messages": messages, "findings": findings})
        code = os.EX_DATAERR if found else code
        if not options.json:
            print(f"{user}: {messages} messages read, {len(found) or 'no'} faults found")
            for each in found:
                print(printable(f"    {each.what}: {each.name} {each.text}"))
    if options.json:
        common.print_json("maildrop-verify", maildrops=rows)
    return code


async def reindex(options: argparse.Namespace, store: ServableStore) -> int:
    files = _files(store)
    rows: list[dict[str, object]] = []
    code = os.EX_OK
    for user in await _whose(options, store):
        try:
            messages = await files.reindex(user)
        except RestanteError as error:
            rows.append({"user": user})
            code = failures.gravest((code, _unread(rows[-1], error)))
            continue
        rows.append({"user": user, "in_use": False, "messages": messages})
        if not options.json:
            print(f"{user}: {messages} messages indexed")
    if options.json:
        common.print_json("maildrop-reindex", maildrops=rows)
    return code


async def _whose(options: argparse.Namespace, store: ServableStore) -> list[str]:
    if bool(options.user) == options.all:
        raise UnsafeArgument("whose? USER, or --all for everybody")
    if options.user:
        return [await _known(options, store)]
    return [user async for user in store.users()]


def _files(store: ServableStore) -> MaildirStore:
    if not isinstance(store, MaildirStore):
        raise UnsafeArgument("only a store of kind maildir has files")
    return store


async def _known(options: argparse.Namespace, store: ServableStore) -> str:
    """The user's name as the store knows it.  A typing error must not look like no mail.

    Raises:
        NoSuchUser: nobody has that name, here or in the user database.
    """
    name: str = normalise(options.user)
    async for each in store.users():
        if each in (options.user, name):
            return each
    users = await asyncio.to_thread(stores.users(common.configuration(options)).list)
    if all(user.name != name for user in users):
        raise NoSuchUser(options.user)
    return name
