"""Collect one account: take what is new, durably and once, and delete what the policy lets go.

For each message, in this order: intend → store → took → DELE → QUIT → gone; the ledger's parts are
on disk before the next one begins.  A message is deleted on its server only after ``took``, and
only QUIT carries deletions out.  After a crash the next run repeats at most what was intended and
not took: where the destination knows a message by its name, as a Maildir does, repeating it is
nothing, so it is there exactly once; elsewhere it may be there twice, and ``in_doubt`` counts it.

Security: the server is a stranger; nothing it says becomes a path or a query.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from itertools import takewhile
from tempfile import SpooledTemporaryFile

from ..errors import CommandFailed, LoginFailed, MessageRefused, PermanentFailure, TemporaryFailure
from ..net.client import Client
from ..pop3.listing import Message
from .destinations import Destination, Grouping, Place, Tracing, Verifying
from .ledger import Ledger
from .plan import (
    Delete,
    Fetch,
    Later,
    Policy,
    Skip,
    Stub,
    Taken,
    Used,
    is_due,
    is_strange,
    is_too_large,
    looks_moved,
    plan,
    short_name,
    stub_key,
    unique_ids,
)
from .stub import LONGEST_HEADER, stub

_GROUP = 256  # messages between two commits of the ledger, where repeating one is nothing
_IN_MEMORY = 2**20  # octets of a message that must be seen whole before it is stored
_PIECE = 65_536  # octets
_DELETE_AT_ONCE = 1000  # messages
_ROOM = 2**30  # octets that a message may have beyond what was announced: some servers guess
_ENOUGH_REFUSALS = 50  # "not now" in a row: it is the server, such as one that counts what it gives
_UNKNOWN = b""  # in place of the digest of what an earlier program run stored

Progress = Callable[[Sequence[Message], int], None]
"""Called with all that will be fetched and the number of octets that came."""


class LooksMoved(PermanentFailure):
    """Nearly everything looks new: people decide whether it is fetched again."""

    def __init__(self, new: int, listed: int) -> None:
        super().__init__(
            f"{new} of {listed} messages look new, and hardly any that was taken before is listed; "
            "did the provider move? Next: --again dedupe, or --again fetch"
        )


class LoginTooSoon(TemporaryFailure):
    """The server or the budget wants more time between two logins (RFC 2449 §6.5)."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the next login is allowed in {seconds:.0f} s")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Account:
    """One maildrop elsewhere."""

    name: str
    connect: Callable[[], AbstractAsyncContextManager[Client]]
    """A session that is logged in, and left by QUIT if all went well."""
    policy: Policy = field(default_factory=Policy)


@dataclass(slots=True)
class Outcome:
    """What one session did."""

    stored: int = 0
    octets: int = 0
    known: int = 0
    """Fetched, and found to be here already: no unique-id told, or a crash hid it."""
    present: int = 0
    """Not fetched, because the destination had them before the ledger did."""
    in_doubt: int = 0
    """Of the stored: maybe twice, since a crash hid the first time."""
    stubs: int = 0
    """Headers stored in place of messages that are too large."""
    deleted: int = 0
    later: int = 0
    """Left for another session."""
    later_for: str = ""
    """Why: "the limit", "the day's budget" or "refusals"."""
    skipped: list[str] = field(default_factory=list)
    """What the policy leaves on the server, with the reason."""
    refused: list[str] = field(default_factory=list)
    """What the server did not give or not delete."""
    unverified: int = 0
    """Not deleted, because the copy here is not what came."""
    may_list_more: bool = False
    """The server lists its mail in parts, and these were done: the next session may list others."""

    def __iadd__(self, later: Outcome) -> Outcome:
        """What two sessions did."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(later, each.name))
        self.later, self.later_for = later.later, later.later_for
        self.may_list_more = later.may_list_more
        return self


async def collect(
    account: Account,
    ledger: Ledger,
    destination: Destination,
    *,
    again: str = "stop",
    dry_run: bool = False,
    adopt_present: bool = False,
    progress: Progress = lambda messages, octets: None,
    clock: Callable[[], float] = time.time,
    outcome: Outcome | None = None,
) -> Outcome:
    """One session with the server.

    What came of it is returned, and stands in ``outcome`` also when it fails.

    ``again`` says what to do when nearly everything looks new: ``stop``, ``fetch`` all of it, or
    ``dedupe``: fetch it and store only what no message taken before equals.  ``adopt_present`` is
    for a ledger that remembers no earlier session: what the destination has counts as taken.

    Raises:
        AccountBusy, LoginTooSoon, LoginWithheld: nothing was done.
        LooksMoved: nothing was fetched or deleted.
        ClientError, OSError: what was stored is safe and known; nothing else was deleted.
    """
    with ledger.alone(account.name):
        now, budget = clock(), account.policy.budget
        if (wait := ledger.may_begin(account.name, now, budget.logins) - now) > 0:
            raise LoginTooSoon(wait)
        ledger.withhold(account.name, now)
        used = ledger.used_in_a_day(account.name, now)
        run = ledger.tried(account.name, now)
        session: _Session | None = None
        try:
            async with account.connect() as client:
                delay = client.capabilities.login_delay or 0
                ledger.began(account.name, clock(), delay)
                session = _Session(account, client, ledger, destination, progress, clock, run)
                session.outcome = session.outcome if outcome is None else outcome
                await session.run(again, used, dry_run=dry_run, adopt_present=adopt_present)
        except LoginFailed as error:
            if not error.retry:
                ledger.refused(account.name, clock())
            raise
        except CommandFailed as error:
            if session is None or error.command not in ("DELE", "QUIT"):
                raise
            session.outcome.refused.append(f"{error.command}: {error.text}")
            if error.command == "DELE":  # raised after QUIT, which has removed the others
                session.removed(dry_run=dry_run)
        else:
            session.removed(dry_run=dry_run)
        ledger.succeeded(account.name, clock())
        return session.outcome


class _Session:
    """The steps of one session and what came of them."""

    def __init__(
        self,
        account: Account,
        client: Client,
        ledger: Ledger,
        destination: Destination,
        progress: Progress,
        clock: Callable[[], float],
        run: int,
    ) -> None:
        self.outcome = Outcome()
        self.deleted: list[str] = []  # keys of what was marked as deleted
        self._account = account
        self._client = client
        self._ledger = ledger
        self._destination = destination
        self._grouping = destination if isinstance(destination, Grouping) else None
        self._progress = progress
        self._clock = clock
        self._number = run
        self._refusals = 0  # of messages in a row, for now
        self._came = Used()  # and not in the ledger yet
        self._dedupe = False
        self._known: dict[str, Taken] = {}
        self._contents: Counter[bytes] = Counter()  # of messages without a unique-id
        self._safe: list[tuple[Message, str, bytes]] = []  # stored, not in the ledger yet
        self._writing: asyncio.Task[None] | None = None  # of the group before
        self._due: list[tuple[Message, str]] = []  # to be deleted
        self._places: list[tuple[str, Place]] = []  # by key, where they changed

    async def run(self, again: str, used: Used, *, dry_run: bool, adopt_present: bool) -> None:
        name, policy = self._account.name, self._account.policy
        listing = [message async for message in self._client.messages()]
        ids = unique_ids(listing)
        if adopt_present:
            self._adopt_present(listing, ids)
        large = [stub_key(ids[each.number]) for each in listing if self._may_be_stub(each, ids)]
        self._known = self._ledger.known(name, [*ids.values(), *large])
        expected = self._ledger.expected(name)
        self._dedupe = again != "fetch" and is_strange(listing, self._known, expected)
        if looks_moved(listing, self._known, expected):
            if self._client.quirks.in_parts and again == "stop":
                again = "dedupe"  # the next part looks just so
            if again == "stop":
                new = sum(1 for unique_id in ids.values() if unique_id not in self._known)
                raise LooksMoved(new, len(listing))
        steps = list(plan(listing, self._known, policy, self._clock(), used))
        fetches = [step for step in steps if isinstance(step, Fetch)]
        stubs = [step for step in steps if isinstance(step, Stub)]
        wanted = {short_name(each.message) for each in steps if isinstance(each, Fetch | Later)}
        missing = policy.whole - wanted if policy.whole else ()
        self.outcome.refused += [f"{each}: not there, or here already" for each in sorted(missing)]
        waiting = [step for step in steps if isinstance(step, Later)]
        self.outcome.later = len(waiting)
        self.outcome.later_for = waiting[0].why if waiting else ""
        for step in steps:
            if isinstance(step, Skip):
                self.outcome.skipped.append(f"message {step.message.number}: {step.reason}")
            elif isinstance(step, Delete) and await self._may_delete(step):
                self._due.append((step.message, step.key))
        if dry_run:
            self.outcome.stored = len(fetches)
            self.outcome.stubs = len(stubs)
            self.outcome.octets = sum(step.message.size for step in fetches)
            self.outcome.deleted = len(self._due)
            return
        self._write_places_down()
        try:
            await self._fetch(fetches)
            await self._fetch_headers(stubs)
        finally:
            self._write_use_down()
        await self._delete()

    def removed(self, *, dry_run: bool) -> None:
        """QUIT was answered: what was marked is no longer on the server."""
        self._ledger.gone(self._account.name, self.deleted)
        self.outcome.deleted = len(self.deleted)
        self.outcome.may_list_more = not dry_run and self.may_list_more

    @property
    def may_list_more(self) -> bool:
        """Not when nothing has changed: the next session would list the same."""
        known = (self._known.get(key) for key in self.deleted)
        is_new = any(each is None or not each.is_gone for each in known)
        is_new = is_new or self.outcome.stored > 0
        return self._client.quirks.in_parts and is_new and not self.outcome.later

    def _may_be_stub(self, message: Message, ids: Mapping[int, str]) -> bool:
        policy = self._account.policy
        return policy.stubs and message.number in ids and is_too_large(message, policy)

    def _adopt_present(self, listing: Sequence[Message], ids: Mapping[int, str]) -> None:
        rows = [
            (ids[message.number], message.size, _UNKNOWN)
            for message in listing
            if message.number in ids
            and self._destination.has(self._identity(message, ids[message.number]))
        ]
        self._ledger.took(self._account.name, rows, self._clock())
        self.outcome.present = len(rows)

    # Fetching.

    async def _fetch(self, fetches: Sequence[Fetch]) -> None:
        try:
            await self._fetch_all(fetches)
        finally:
            await self._settle()

    async def _settle(self) -> None:
        """All that came whole is known, also after an error: or a line that breaks before the end
        of a group would bring nothing, ever."""
        try:
            await self._write_down()
            await self._write_down()  # and the last group
        finally:
            if self._writing is not None:  # its files and the ledger are in use
                await asyncio.gather(self._writing, return_exceptions=True)

    async def _fetch_all(self, fetches: Sequence[Fetch]) -> None:
        wanted = [step.message for step in fetches]
        group = _GROUP if self._destination.is_repeatable else 1
        self._progress(wanted, 0)
        at = 0
        left = takewhile(lambda _: self._refusals < _ENOUGH_REFUSALS, wanted)
        async for _, body in self._client.retrieve_all(left):
            if at % _GROUP == 0:
                self._write_use_down()
            if at % group == 0:
                await self._write_down()
                self._intend(fetches[at : at + group])
            self._came = replace(self._came, messages=self._came.messages + 1)
            await self._take(fetches[at], self._counted(fetches[at].message, body))
            at += 1
        if at < len(fetches):
            self.outcome.later += len(fetches) - at
            self.outcome.later_for = "refusals"

    async def _counted(self, message: Message, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """
        Raises:
            MessageRefused: much more came than was announced, or than is wanted.
        """
        largest, octets = self._account.policy.largest, 0
        most = 2 * message.size + _ROOM
        if largest is not None and message.size <= largest:
            most = largest
        async for piece in body:
            octets += len(piece)
            self._came = replace(self._came, octets=self._came.octets + len(piece))
            if octets > most:
                raise MessageRefused(f"announced as {message.size} octets, longer than {most}")
            yield piece

    def _write_use_down(self) -> None:
        came, self._came = self._came, Used()
        if came != Used():
            self._ledger.used(self._number, came, self._clock())

    def _intend(self, fetches: Sequence[Fetch]) -> None:
        self._ledger.intend(
            self._account.name,
            [(step.key, step.message.size) for step in fetches if step.key is not None],
        )

    async def _write_down(self) -> None:
        """Begin to make the group durable; the one before it is, on return."""
        safe, self._safe = self._safe, []
        await self._written()
        if safe:
            sync = self._grouping.group() if self._grouping is not None else None
            self._writing = asyncio.create_task(self._make_known(safe, sync))
            if not self._destination.is_repeatable:
                await self._written()  # or more than one could come twice

    async def _written(self) -> None:
        if self._writing is not None:
            await asyncio.shield(self._writing)  # the deadline must not leave it half done
            self._writing = None

    async def _make_known(
        self, safe: list[tuple[Message, str, bytes]], sync: Callable[[], None] | None
    ) -> None:
        """What is durable at the destination becomes known, and may then be deleted."""
        name, policy = self._account.name, self._account.policy
        if sync is not None:
            await asyncio.to_thread(sync)
        now = self._clock()
        rows = [(key, message.size, digest) for message, key, digest in safe]
        await asyncio.to_thread(self._ledger.took, name, rows, now)
        for message, key, _ in safe:
            fresh = Taken(message.size, now)
            is_later = policy.verified or policy.newest or policy.until_deleted
            if not is_later and is_due(fresh, policy, now):
                self._due.append((message, key))

    async def _take(self, step: Fetch, body: AsyncIterable[bytes]) -> None:
        message, key = step.message, step.key
        known = self._known.get(key) if key is not None else None
        try:
            if key is None or self._dedupe or (known is not None and known.at is not None):
                await self._take_by_content(step, body)
            else:
                await self._store(step, key, body)
        except (CommandFailed, MessageRefused) as error:
            self._refuse(message, error)
            is_passing = isinstance(error, CommandFailed) and error.retry
            self._refusals = self._refusals + 1 if is_passing else 0
        else:
            self._refusals = 0

    async def _take_by_content(self, step: Fetch, body: AsyncIterable[bytes]) -> None:
        """Only the whole message tells whether it is here already."""
        message, name = step.message, self._account.name
        with SpooledTemporaryFile(_IN_MEMORY) as whole:
            seen = sha256()
            async for piece in body:
                whole.write(piece)
                seen.update(piece)
                self._progress((), len(piece))
            digest = seen.digest()
            if step.key is None:
                self._contents[digest] += 1
                # No unique-id begins with a space.
                key = f" {digest.hex()}:{self._contents[digest]}"
                record = self._ledger.known(name, [key]).get(key)
                is_here = record is not None and record.at is not None
                if record is not None and is_due(record, self._account.policy, self._clock()):
                    self._due.append((message, key))
            else:
                key = step.key
                is_here = self._ledger.digest(name, key) == digest
                if self._dedupe and not is_here:
                    is_here = self._ledger.has_content(name, digest)
                if is_here:
                    self._safe.append((message, key, digest))
            if is_here:
                self.outcome.known += 1
                return
            whole.seek(0)
            self._intend([Fetch(message, key)])
            await self._store(step, key, _pieces(whole), is_new=False)

    async def _store(
        self, step: Fetch, key: str, body: AsyncIterable[bytes], *, is_new: bool = True
    ) -> None:
        """At the destination on return, and durable or in its group."""
        seen, destination, message = sha256(), self._destination, step.message
        is_doubtful = step.was_begun or not is_new
        try:
            identity = self._identity(message, key)
            is_wanted = not (is_doubtful and await asyncio.to_thread(destination.has, identity))
            is_wanted = is_wanted and destination.begin(identity)
            async for piece in body:  # also what is there already: its digest is wanted
                seen.update(piece)
                if is_wanted:
                    destination.write(piece)
                if is_new:
                    self._progress((), len(piece))
                self.outcome.octets += len(piece)
            if is_wanted and self._grouping is not None:
                self._grouping.end()
            elif is_wanted:
                await asyncio.to_thread(destination.commit)
        finally:
            destination.abort()
        if is_wanted:
            self.outcome.stored += 1
            self.outcome.in_doubt += step.was_begun and not destination.is_repeatable
        else:
            self.outcome.known += 1
        self._safe.append((message, key, seen.digest()))

    async def _fetch_headers(self, stubs: Sequence[Stub]) -> None:
        """In the same order of effects as messages; what they stand for is never due."""
        name, capabilities = self._account.name, self._client.capabilities
        for step in stubs:
            message = step.message
            if capabilities.tags and not capabilities.top:
                text = f"message {message.number}: too large, and the server gives no headers"
                self.outcome.skipped.append(text)
                continue
            try:
                header = await self._header(message)
                self._ledger.intend(name, [(step.key, message.size)])
                digest = sha256(b"stub " + header).digest()
                if not (self._dedupe and self._ledger.has_content(name, digest)):
                    await self._store_stub(step, header)
            except (CommandFailed, MessageRefused) as error:
                self._refuse(message, error)
            else:
                row = (step.key, message.size, digest)
                self._ledger.took(name, [row], self._clock(), is_gone=True)

    async def _header(self, message: Message) -> bytes:
        found = bytearray()
        self._came = replace(self._came, messages=self._came.messages + 1)
        async for piece in self._counted(message, self._client.top(message)):
            if len(found) < LONGEST_HEADER:  # what is too long is read, or nothing more could be
                found += piece
            self.outcome.octets += len(piece)
        return bytes(found[:LONGEST_HEADER])

    async def _store_stub(self, step: Stub, header: bytes) -> None:
        """Durable on return."""
        account, destination, message = self._account, self._destination, step.message
        identity = self._identity(message, step.key)
        if step.was_begun and await asyncio.to_thread(destination.has, identity):
            return
        try:
            if destination.begin(identity):
                destination.write(stub(header, account.name, short_name(message), message.size))
                await asyncio.to_thread(destination.commit)
                self.outcome.stubs += 1
                self.outcome.in_doubt += step.was_begun and not destination.is_repeatable
        finally:
            destination.abort()

    def _refuse(self, message: Message, error: CommandFailed | MessageRefused) -> None:
        text = error.text if isinstance(error, CommandFailed) else str(error)
        self.outcome.refused.append(f"message {message.number}: {text}")

    def _identity(self, message: Message, key: str) -> str:
        return f"{self._account.name} {key} {message.size}"

    # Deleting.

    async def _may_delete(self, step: Delete) -> bool:
        policy, known = self._account.policy, self._known[step.key]
        if known.is_gone:
            return True
        if policy.until_deleted:
            return self._was_deleted(step, known)
        if not policy.verified:
            return True
        digest = self._ledger.digest(self._account.name, step.key)
        destination = self._destination
        is_good = (
            digest is not None
            and isinstance(destination, Verifying)
            and await asyncio.to_thread(
                destination.holds, self._identity(step.message, step.key), digest
            )
        )
        self.outcome.unverified += not is_good
        return is_good

    def _was_deleted(self, step: Delete, known: Taken) -> bool:
        """Only what we saw held and see no more: a Maildir that is lost deletes nothing there."""
        if not isinstance(self._destination, Tracing):
            return False
        place = self._destination.place(self._identity(step.message, step.key))
        if place is not Place.GONE and known.was_held != (place is Place.HELD):
            self._places.append((step.key, place))
        return place is Place.GONE and known.was_held

    def _write_places_down(self) -> None:
        for place in (Place.HERE, Place.HELD):
            keys = [key for key, where in self._places if where is place]
            if keys:
                self._ledger.held(self._account.name, keys, is_held=place is Place.HELD)

    async def _delete(self) -> None:
        for first in range(0, len(self._due), _DELETE_AT_ONCE):
            some = self._due[first : first + _DELETE_AT_ONCE]
            await self._client.delete(*[message for message, _ in some])
            refused = {message.number for message in self._client.refused}
            self.deleted += [key for message, key in some if message.number not in refused]


async def _pieces(file: SpooledTemporaryFile[bytes]) -> AsyncIterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece
