"""``restante maildrop``: list and verify maildrops, restore deleted mail, show session logs."""

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
from shlex import quote
from typing import Any

from ..app import failures, stores
from ..auth.names import normalise
from ..errors import MaildropInUse, NoSuchUser, RestanteError, TemporaryFailure, UnsafeArgument
from ..escaping import printable
from ..maildrop import Entry, HeldMessage, ServableStore, SessionRecord
from ..store.foreign import dovecot_uidlist
from ..store.maildir import MaildirStore
from ..words import counted, limit_size, size
from . import common
from .summaries import read_summary

_OLD_RESTORE = "undelete"  # the name of `restore` up to 0.1; scripts may still use it

Action = Callable[[argparse.Namespace, ServableStore], Coroutine[Any, Any, int]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Inspect and verify users' maildrops, and restore deleted mail."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add_action(
        name: str, run: Action, text: str, *, user: str = "USER"
    ) -> argparse.ArgumentParser:
        # argparse does not list an action that has no ``help``.
        parser = actions.add_parser(name, help=text) if text else actions.add_parser(name)
        if user:
            parser.add_argument(
                "user",
                metavar="USER",
                nargs="?" if user == "?" else None,
                help="the user who owns the maildrop",
            )
        parser.set_defaults(run=lambda options: _run(options, run))
        return parser

    add_action("list", list_, "list maildrops with their number of messages and size", user="")
    add_action("show", show, "list the messages of one maildrop")
    add_action("held", held, "list deleted messages that can be restored")
    _add_restore_options(add_action("restore", restore, "restore deleted messages"))
    _add_restore_options(add_action(_OLD_RESTORE, restore, ""))
    export_parser = add_action(
        "export", export, "print the unique-ids, for a migration to another server"
    )
    export_parser.add_argument(
        "--uidlist",
        action="store_true",
        help="print the unique-ids in the format of Dovecot's file dovecot-uidlist",
    )
    log_parser = add_action("log", log, "show which sessions retrieved or deleted which messages")
    log_parser.add_argument(
        "--since", metavar="TIME", help="show only sessions from the last TIME, such as 2h or 3d"
    )
    for name, run, text in (
        ("verify", verify, "read every message, and compare it with its index and file name"),
        ("reindex", reindex, "rebuild the index from the mail"),
    ):
        check_parser = add_action(name, run, text, user="?")
        check_parser.add_argument("--all", action="store_true", help=f"{name} all maildrops")
    purge_parser = add_action("purge", purge, "destroy deleted messages permanently", user="?")
    purge_parser.description = (
        "Destroy deleted messages permanently. Without USER, --all and --older-than, only messages "
        "whose hold time is over are destroyed, including those that the server keeps because the "
        "clock has jumped."
    )
    purge_parser.add_argument(
        "--older-than",
        metavar="TIME",
        help="destroy only messages that have been held for longer than TIME",
    )
    purge_parser.add_argument(
        "--all", action="store_true", help="destroy messages in all maildrops"
    )
    purge_parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _add_restore_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="*", help="the name of a message, as printed by `held`"
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        help="restore all messages that were deleted within the last TIME, such as 2h or 3d",
    )
    parser.add_argument("--all", action="store_true", help="restore all held messages")
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
            code = failures.most_serious((code, _report_error(row, error)))
            continue
        else:
            octets = sum(entry.size for entry in entries)
            row |= {"messages": len(entries), "octets": octets, "in_use": False}
        row |= await _usage(store, user)
    if options.json:
        common.print_json("maildrop-list", maildrops=rows)
        return code
    if shown := [_table_row(row) for row in rows if "error" not in row]:
        common.print_table("user messages size held quota", shown, right="messages size held")
    elif not rows:
        common.say("No maildrops yet. Deliver a message: restante deliver ann < message")
    return code


def _table_row(row: Mapping[str, object]) -> tuple[str, ...]:
    """Return the table row of one maildrop."""
    quota = f"{_size(row['used'])} of {_limit(row['quota'])}" if "quota" in row else "none"
    if row["in_use"]:
        return str(row["user"]), "in use", "-", str(row["held"]), quota
    return str(row["user"]), str(row["messages"]), _size(row["octets"]), str(row["held"]), quota


def _size(octets: object) -> str:
    return size(int(str(octets)))


def _limit(octets: object) -> str:
    return limit_size(int(str(octets)))


def _report_error(row: dict[str, object], error: RestanteError) -> int:
    """Report a maildrop that cannot be read, and return the exit code.

    The other maildrops are still shown.
    """
    row |= {"in_use": isinstance(error, MaildropInUse), "error": str(error)}
    common.say(f"{row['user']}: {error}")
    return failures.exit_code(error)


async def show(options: argparse.Namespace, store: ServableStore) -> int:
    rows = []
    user = await _user_name(options, store)
    async with store.open(user) as maildrop:
        for number, entry in enumerate(maildrop.listing, 1):
            head = await _header_fields(maildrop.read(entry))
            rows.append(
                {"number": number, "size": entry.size, "unique_id": entry.unique_id, **head}
            )
    code = os.EX_DATAERR if any("error" in row for row in rows) else os.EX_OK
    if options.json:
        usage = await _usage(store, user)
        common.print_json("maildrop-show", user=user, messages=rows, **usage)
        return code
    if rows:
        lines = [
            (
                str(row["number"]),
                _size(row["size"]),
                _truncated(row["date"], 25),
                *_sender_and_subject(row),
            )
            for row in rows
        ]
        common.print_table("nr size date from subject", lines, right="nr size")
    else:
        common.say(f"{user}'s maildrop is empty.")
    if usage := await _usage(store, user):
        common.say(f"Quota: {_size(usage['used'])} of {_limit(usage['quota'])} used.")
    return code


def _sender_and_subject(row: Mapping[str, object]) -> tuple[str, str]:
    return _truncated(row["sender"], 30), _subject(row)


def _truncated(text: object, length: int) -> str:
    return str(text)[:length]


async def _header_fields(pieces: AsyncIterator[bytes]) -> dict[str, str]:
    """Return the headers, or ``error`` for a message that cannot be read."""
    try:
        return await read_summary(pieces)
    except RestanteError as error:
        return {"sender": "", "subject": "", "date": "", "error": str(error)}


def _subject(row: Mapping[str, object]) -> str:
    return f"[cannot be read: {row['error']}]" if "error" in row else str(row["subject"])


async def _usage(store: ServableStore, user: str) -> dict[str, object]:
    """Return the quota and its use; empty for users without a quota."""
    if not isinstance(store, MaildirStore):
        return {}
    usage = await store.usage(user)
    return {"used": usage.octets, "quota": usage.limit} if usage.limit else {}


async def held(options: argparse.Namespace, store: ServableStore) -> int:
    user = await _user_name(options, store)
    rows = []
    for message in await store.held(user):
        head = await _header_fields(store.read_held(user, message))
        row = {"name": message.name, "size": message.size, "unique_id": message.unique_id, **head}
        rows.append({**row, "removed_at": message.removed_at})
    if options.json:
        common.print_json("maildrop-held", user=user, messages=rows)
        return os.EX_OK
    if not rows:
        common.say(f"No deleted messages are held for {user}.")
        return os.EX_OK
    lines = [
        (
            _format_time(float(str(row["removed_at"]))),
            _size(row["size"]),
            row["name"],
            *_sender_and_subject(row),
        )
        for row in rows
    ]
    common.print_table("deleted size name from subject", lines, right="size")
    return os.EX_OK


def _format_time(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


async def log(options: argparse.Namespace, store: ServableStore) -> int:
    user = await _user_name(options, store)
    since = time.time() - common.seconds(options.since) if options.since else 0.0
    sessions = [each for each in await store.sessions(user) if each.ended_at >= since]
    heads = await _held_headers(
        store, user, {e.unique_id for each in sessions for e in each.removed}
    )
    if options.json:
        common.print_json(
            "maildrop-log", user=user, sessions=[_session_as_json(each) for each in sessions]
        )
        return os.EX_OK
    if not sessions:
        common.say(f"No sessions by {user} {'since then' if options.since else 'yet'}.")
        return os.EX_OK
    common.print_table(
        "began login address tls retrieved deleted end",
        [
            (
                _format_time(session.began_at),
                session.credential or "unknown",
                session.address or "unknown",
                session.tls or "no",
                _retrieved(session),
                len(session.removed),
                session.end,
            )
            for session in sessions
        ],
        right="retrieved deleted",
    )
    deleted = [
        (_format_time(session.ended_at), entry.unique_id, size(entry.size), *heads[entry.unique_id])
        if entry.unique_id in heads
        else (
            _format_time(session.ended_at),
            entry.unique_id,
            size(entry.size),
            "",
            "no longer held",
        )
        for session in sessions
        for entry in session.removed
    ]
    if deleted:
        print()
        common.print_table("deleted unique-id size from subject", deleted, right="size")
    return os.EX_OK


def _retrieved(session: SessionRecord) -> int:
    return len(session.retrieved) + session.unnamed


def _session_as_json(session: SessionRecord) -> dict[str, object]:
    """Return a session as a JSON object."""

    def as_objects(entries: Sequence[Entry]) -> list[dict[str, object]]:
        return [{"unique_id": entry.unique_id, "size": entry.size} for entry in entries]

    return {
        "began_at": session.began_at,
        "ended_at": session.ended_at,
        "address": session.address,
        "tls": session.tls,
        "credential": session.credential,
        "retrieved": as_objects(session.retrieved),
        "retrieved_messages": _retrieved(session),
        "removed": as_objects(session.removed),
        "end": session.end,
    }


async def _held_headers(
    store: ServableStore, user: str, selected: set[str]
) -> dict[str, tuple[str, str]]:
    """Return sender and subject of held messages by unique-id; the journal contains neither."""
    heads = {}
    for message in await store.held(user):
        if message.unique_id in selected:
            head = await _header_fields(store.read_held(user, message))
            heads[message.unique_id] = _sender_and_subject(head)
    return heads


async def export(options: argparse.Namespace, store: ServableStore) -> int:
    """Print the unique-ids as octets, because file names may be invalid as text."""
    user = await _user_name(options, store)
    ids = await _files(store).unique_ids(user)
    if options.json:
        common.print_json("maildrop-export", user=user, unique_ids=list(ids.values()))
        return os.EX_OK
    if options.uidlist:
        lines = dovecot_uidlist(ids, uid_validity=int(time.time()), guid=secrets.token_hex(16))
    else:
        lines = b"".join(b"%d %s\n" % (n, each.encode()) for n, each in enumerate(ids.values(), 1))
    sys.stdout.buffer.write(lines)
    return os.EX_OK


async def restore(options: argparse.Namespace, store: ServableStore) -> int:
    if options.action == _OLD_RESTORE:
        common.say("`restante maildrop undelete` is deprecated: use `restante maildrop restore`")
    user = await _user_name(options, store)
    selected = _selected_messages(options, list(await store.held(user)))
    count = await store.restore(user, selected, same_unique_ids=options.same_uidl)
    _report_restored(options, count)
    if options.json:
        common.print_json(f"maildrop-{options.action}", user=user, messages=count)
    elif count:
        print(f"Restored {counted(count, 'message')} to {user}. {_effect_on_clients(options)}")
    else:
        print("No held message matches; nothing was restored.")
    return os.EX_OK


def _report_restored(options: argparse.Namespace, count: int) -> None:
    """Let a running server count the messages for its metrics."""
    if count:
        from .control import ask

        with suppress(RestanteError, OSError):  # no server is running
            ask(options, "POST", "/restored", {"messages": str(count)}).json()


def _effect_on_clients(options: argparse.Namespace) -> str:
    if options.same_uidl:
        return "Clients will not download them again."
    return "Clients will download them again."


def _selected_messages(options: argparse.Namespace, held_: list[HeldMessage]) -> list[HeldMessage]:
    if options.all:
        return held_
    if options.since:
        since = time.time() - common.seconds(options.since)
        return [message for message in held_ if message.removed_at >= since]
    by_name = {message.name: message for message in held_}
    if not options.name:
        raise UnsafeArgument(
            f"no messages selected; use --since 2h, --all, or names that are printed by: "
            f"restante maildrop held {quote(options.user)}"
        )
    if missing := [name for name in options.name if name not in by_name]:
        raise UnsafeArgument(f"no held message has the name {missing[0]!r}")
    return [by_name[name] for name in options.name]


async def purge(options: argparse.Namespace, store: ServableStore) -> int:
    if not (options.user or options.all or options.older_than):
        return await _purge_due(options, store)
    users = await _selected_users(options, store)
    longer = common.seconds(options.older_than) if options.older_than else 0.0
    before = time.time() - longer if longer else inf  # includes messages dated in the future
    if not common.confirm("Destroy deleted messages permanently?", options):
        return os.EX_OK

    async def destroy(user: str) -> int:
        return await store.purge(user, before)

    return await _purge_users(options, users, destroy)


async def _purge_due(options: argparse.Namespace, store: ServableStore) -> int:
    """Destroy the messages whose hold time is over, if the operator confirms the time."""
    clock = stores.clock(common.configuration(options))
    reading = clock.advance()
    today = datetime.fromtimestamp(reading.now).strftime("%Y-%m-%d %H:%M")
    if reading.is_behind:
        raise TemporaryFailure(
            f"the clock shows {today}, which is in the past; set the clock first"
        )
    users = [user async for user in store.users()]
    due = 0
    for user in users:
        with suppress(RestanteError):  # reported below
            due += (await store.purge_due(user, until=-inf, now=reading.now)).doubtful
    question = f"It is {today}. Destroy {counted(due, 'held message')} whose hold time is over?"
    if due and not common.confirm(question, options):
        return os.EX_OK
    clock.accept()

    async def destroy(user: str) -> int:
        return (await store.purge_due(user, until=reading.now, now=reading.now)).messages

    return await _purge_users(options, users, destroy)


async def _purge_users(
    options: argparse.Namespace, users: Sequence[str], destroy: Callable[[str], Awaitable[int]]
) -> int:
    counts, code = dict[str, int](), os.EX_OK
    for user in users:
        try:
            counts[user] = await destroy(user)
        except RestanteError as error:
            code = failures.most_serious((code, _report_error({"user": user}, error)))
    if options.json:
        common.print_json("maildrop-purge", purged=counts)
        return code
    print(f"Destroyed {counted(sum(counts.values()), 'message')}.")
    return code


async def verify(options: argparse.Namespace, store: ServableStore) -> int:
    files = _files(store)
    rows: list[dict[str, object]] = []
    code = os.EX_OK
    for user in await _selected_users(options, store):
        try:
            messages, faults = await files.verify(user)
        except RestanteError as error:
            rows.append({"user": user})
            error_code = _report_error(rows[-1], error)
            code = code if code == os.EX_DATAERR else failures.most_serious((code, error_code))
            continue
        findings = [asdict(each) for each in faults]
        rows.append({"user": user, "in_use": False, "messages": messages, "findings": findings})
        code = os.EX_DATAERR if faults else code
        if not options.json:
            read = counted(messages, "message")
            print(
                f"{user}: {read} read, {counted(len(faults), 'fault') if faults else 'no faults'}"
            )
            for each in faults:
                print(printable(f"    {each.what}: {each.name} {each.text}"))
    if options.json:
        common.print_json("maildrop-verify", maildrops=rows)
    return code


async def reindex(options: argparse.Namespace, store: ServableStore) -> int:
    files = _files(store)
    rows: list[dict[str, object]] = []
    code = os.EX_OK
    for user in await _selected_users(options, store):
        try:
            messages = await files.reindex(user)
        except RestanteError as error:
            rows.append({"user": user})
            code = failures.most_serious((code, _report_error(rows[-1], error)))
            continue
        rows.append({"user": user, "in_use": False, "messages": messages})
        if not options.json:
            print(f"{user}: {counted(messages, 'message')} indexed")
    if options.json:
        common.print_json("maildrop-reindex", maildrops=rows)
    return code


async def _selected_users(options: argparse.Namespace, store: ServableStore) -> list[str]:
    if bool(options.user) == options.all:
        raise UnsafeArgument("name a USER, or use --all for every user")
    if options.user:
        return [await _user_name(options, store)]
    return [user async for user in store.users()]


def _files(store: ServableStore) -> MaildirStore:
    if not isinstance(store, MaildirStore):
        raise UnsafeArgument('this requires store.kind = "maildir"')
    return store


async def _user_name(options: argparse.Namespace, store: ServableStore) -> str:
    """Return the user's name in the store; a misspelt name must not look like an empty maildrop.

    Raises:
        NoSuchUser: neither the store nor the user database has that name.
    """
    name: str = normalise(options.user)
    async for each in store.users():
        if each in (options.user, name):
            return each
    users = await asyncio.to_thread(stores.users(common.configuration(options)).list)
    if all(user.name != name for user in users):
        raise NoSuchUser(options.user)
    return name
