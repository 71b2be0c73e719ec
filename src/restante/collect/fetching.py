"""Fetch messages in one session: store new messages, and compare messages in doubt.

Each message goes through these steps: intend → store → took.  If the destination identifies
messages by name, storing a message again after a crash has no effect, so messages are handled in
groups.  For other destinations they are handled one by one.  While one group is made durable, the
next group is fetched.

Security: the server is not trusted; no text from the server becomes a path or an SQL statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count, takewhile
from tempfile import SpooledTemporaryFile

from ..addons import offers
from ..errors import CommandFailed, MessageRefused, TemporaryFailure
from ..pop3.listing import Message
from ..threads import in_thread, wait_until_done
from .account_ledger import AccountLedger, Stored, earlier_key
from .deletions import Reader
from .destinations import Destination, Doubtful, Grouping, Verifying
from .fingerprint import LONGEST_HEADER, Content, ContentReader, header_digest, header_of
from .known import Known
from .outcome import Outcome, Progress
from .plan import (
    Compare,
    Doubt,
    Fetch,
    Policy,
    Seen,
    SetAside,
    Stub,
    Used,
    aside_key,
    short_name,
)
from .run import Run
from .stub import stub

_GROUP_SIZE = 256  # messages between two commits of the ledger; a crash repeats at most two groups
_IN_MEMORY = 2**20  # octets; a larger message is buffered on disk while it is compared
_PIECE = 65_536  # octets read from this buffer at a time
# Number of octets by which a message may exceed twice its announced size.  Some servers guess
# sizes.
_SIZE_TOLERANCE = 2**30
# Number of consecutive temporary refusals after which the server is considered the cause, and not
# the messages.  For example, some servers limit the mail that they send per day.
_MAX_REFUSALS = 50
# Number of consecutive refusals after which the server is assumed not to support TOP.
_MAX_TOP_REFUSALS = 3


class Usage:
    """Counts received messages and octets against the daily budget, even if the session fails."""

    def __init__(self, ledger: AccountLedger, run: int, clock: Callable[[], float]) -> None:
        """``run`` is the ledger's run number, ``clock`` the machine's clock."""
        self._ledger, self._run, self._clock = ledger, run, clock
        self._received = Used()  # not in the ledger yet

    def add(self, *, messages: int = 0, octets: int = 0) -> None:
        before = self._received
        self._received = Used(before.messages + messages, before.octets + octets)

    def record(self) -> None:
        """Write the counts to the ledger."""
        received, self._received = self._received, Used()
        if received != Used():
            self._ledger.add_usage(self._run, received, self._clock())


@dataclass(slots=True)
class _Received:
    """A completely received message that is stored, and will be recorded with its group."""

    seen: Seen
    row: Stored
    is_compared: bool = False
    """Whether the ledger already has a message with this content, under this key or another."""

    @property
    def restarts_retention(self) -> bool:
        """Whether the time for which the message stays on the server starts again."""
        return self.seen.has_come_back or bool(self.row.moved_from)


class Fetching:
    """Fetches the messages of one session; ``seen`` lists the messages that are recorded."""

    def __init__(
        self,
        reader: Reader,
        ledger: AccountLedger,
        known: Known,
        destination: Destination,
        policy: Policy,
        usage: Usage,
        outcome: Outcome,
        progress: Progress,
        now: Callable[[], float],
        run: Run,
    ) -> None:
        """``now`` is the ledger's clock."""
        self.seen: list[Seen] = []
        """Messages that were received in this session and are recorded in the ledger."""
        self.awaited: Message | None = None
        """The message whose response has not been received completely."""
        self.dedupe = False
        """Whether to compare messages that look new with all collected messages, because they may
        be old mail under new unique-ids."""
        self.finds_moved = False
        """Whether to compare messages that look new with the collected messages that are no longer
        listed, because they may be listed under new unique-ids."""
        self.listed: Collection[str] = ()
        """Unique-ids listed in this session."""
        self.aside: dict[str, SetAside] = {}
        """Messages that earlier sessions could not collect, by ``aside_key``."""
        self.unstored: dict[str, Message] = {}
        """Messages of which the server sent all or a part for RETR, and which are not recorded in
        the ledger as stored.  The keys are message-numbers as text, because the server chooses the
        numbers; see ``Listing``."""
        self._reader, self._ledger = reader, ledger
        self._known, self._destination, self._policy = known, destination, policy
        self._usage, self._outcome, self._progress, self._now = usage, outcome, progress, now
        self._run = run
        self._grouping = destination if offers(destination, Grouping) else None
        self._refusals = 0  # number of consecutive temporary refusals
        self._in_doubt: list[tuple[Message, str]] = []  # consecutive messages, with the reasons
        self._recognised: set[str] = set()  # keys of messages that were recognised by their content
        self._waiting: list[_Received] = []  # stored, not in the ledger yet
        self._writing: asyncio.Task[None] | None = None  # records the previous group
        # A cancellation that arrived while a message was being stored.
        self._cancelled: asyncio.CancelledError | None = None

    # Messages.

    async def fetch(self, steps: Sequence[Fetch | Compare]) -> None:
        """Fetch these messages, and store them unless the same message is already stored."""
        try:
            await self._fetch_all(steps)
        except TemporaryFailure:
            self._settle_doubts(is_broken=True)
            raise
        finally:
            await self._record_received()

    async def _record_received(self) -> None:
        """Record all completely received messages, even after an error.

        Otherwise an account whose connection always breaks before the end of a group would make no
        progress.
        """
        try:
            await self._commit_group()
            await self._commit_group()  # the second call waits until the last group is recorded
        finally:
            self._usage.record()
            if self._writing is not None:  # wait, because the task uses its files and the ledger
                await asyncio.gather(self._writing, return_exceptions=True)

    async def _fetch_all(self, steps: Sequence[Fetch | Compare]) -> None:
        messages = [step.message for step in steps]
        group = _GROUP_SIZE if self._destination.is_repeatable else 1
        self._progress(messages, 0)
        index = 0
        requested = takewhile(lambda _: self._refusals < _MAX_REFUSALS, messages)
        self.awaited = messages[0] if messages else None
        async for message, body in self._reader.retrieve_all(requested):
            self.awaited = message
            if index % _GROUP_SIZE == 0:
                self._usage.record()
            if index % group == 0:
                await self._commit_group()
                self._intend(steps[index : index + group])
            self._usage.add(messages=1)
            self.unstored[str(message.number)] = message
            await self._process(steps[index], self._counted(message, body))
            index += 1
            if self.awaited is None:  # if the connection is lost now, the next message is the cause
                self.awaited = messages[index] if index < len(messages) else None
        self.awaited = None
        self._settle_doubts()
        if index < len(steps):
            self._outcome.later += len(steps) - index
            self._outcome.later_for = "refusals"

    async def _counted(self, message: Message, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Yield the body, and count its octets.

        Raises:
            MessageRefused: the message is much larger than announced, or larger than allowed.
        """
        largest, octets = self._policy.largest, 0
        limit = 2 * message.size + _SIZE_TOLERANCE
        if largest is not None and message.size <= largest:
            limit = largest
        try:
            async for piece in body:
                octets += len(piece)
                self._usage.add(octets=len(piece))
                if octets > limit:
                    text = f"announced as {message.size} octets, but longer than {limit}"
                    raise MessageRefused(text)
                yield piece
        except CommandFailed:
            self.awaited = None
            raise
        self.awaited = None

    def _intend(self, steps: Sequence[Fetch | Compare]) -> None:
        new = [step for step in steps if isinstance(step, Fetch) and step.key is not None]
        if new:
            rows = [(step.key, step.message.size) for step in new if step.key is not None]
            self._ledger.intend(rows)

    async def _process(self, step: Fetch | Compare, body: AsyncIterable[bytes]) -> None:
        message, key = step.message, step.key
        try:
            if key is None or not await self._store_directly(step, key, body):
                await self._compare_and_store(step, body)
        except (CommandFailed, MessageRefused) as error:
            self.refuse(message, error)
            if isinstance(error, CommandFailed):
                del self.unstored[str(message.number)]  # the server did not send the message
            is_temporary = isinstance(error, CommandFailed) and error.retry
            self._refusals = self._refusals + 1 if is_temporary else 0
        else:
            self._refusals = 0
            self._settle_doubts()
            if aside_key(message) in self.aside:
                self._ledger.bring_back([aside_key(message)])

    async def _store_directly(
        self, step: Fetch | Compare, key: str, body: AsyncIterable[bytes]
    ) -> bool:
        """Store the message while it is received; return False if it must be compared first."""
        message, destination = step.message, self._destination
        if isinstance(step, Compare) or self.dedupe or self.finds_moved:
            return False
        identity = self._known.identity(key, message.size)
        if step.was_begun and await in_thread(destination.has, identity):
            return False
        if not destination.begin(identity):
            return False
        reader = ContentReader()
        await self._store(message, reader, self._read(reader, body), was_begun=step.was_begun)
        row = self._known.row(key, message.size, reader.content(), identity)
        self._add_to_group(message, row, reader, is_new=True)
        return True

    async def _read(
        self, reader: ContentReader, body: AsyncIterable[bytes]
    ) -> AsyncIterator[bytes]:
        async for piece in body:
            reader.feed(piece)
            self._progress((), len(piece))
            yield piece

    async def _compare_and_store(self, step: Fetch | Compare, body: AsyncIterable[bytes]) -> None:
        """Receive the whole message, and store it unless the same message is already stored."""
        message = step.message
        with SpooledTemporaryFile(_IN_MEMORY) as buffer:
            reader = ContentReader()
            async for piece in self._read(reader, body):
                buffer.write(piece)
            content, key = reader.content(), step.key
            if key is None:
                key = await in_thread(self._key_of, content)
            duplicate = await in_thread(self._find_duplicate, step, key, content)
            if duplicate is not None:
                self._outcome.known += step.key is None or not self._is_present(key)
                self._waiting.append(duplicate)
                return
            buffer.seek(0)
            if isinstance(step, Compare):
                if reader.is_short(message.size):
                    self._refuse_part(key, content)
                await self._store_other(message, key, reader, _pieces(buffer))
            else:
                await self._store_new(step, key, reader, _pieces(buffer))

    def _is_present(self, key: str) -> bool:
        """Return whether the destination had the message before the first session."""
        known = self._known.collected.get(key)
        return known is not None and known.at is not None and self._known.record(key) is None

    def _find_duplicate(
        self, step: Fetch | Compare, key: str, content: Content
    ) -> _Received | None:
        """Return what to record if a message with this content is already stored, else None.

        Blocking.
        """
        message, known = step.message, self._known.collected.get(key)
        seen = Seen(message, key, whole=content)
        if known is None or known.at is None:
            return self._find_duplicate_of_new(seen, step, content)
        seen = replace(seen, has_come_back=known.is_gone or not known.is_expected)
        record, identity = self._known.record(key), self._known.identity_of(key)
        row = Stored(key, message.size, content, identity)
        if record is None:
            # The message was never downloaded, so only the destination's copy can be compared.
            is_same = self._holds(identity, content)
        else:
            is_same = record.content.is_same(content)
        if is_same:
            return _Received(seen, row, is_compared=True)
        earlier = earlier_key(key, content.digest)
        self._known.load_more([earlier])
        if (before := self._known.record(earlier)) is not None:
            row = row._replace(identity=before.identity, replaces=identity)
            return _Received(replace(seen, has_come_back=True), row)
        return self._find_moved(seen, row._replace(replaces=identity), content)

    def _find_duplicate_of_new(
        self, seen: Seen, step: Fetch | Compare, content: Content
    ) -> _Received | None:
        """Like ``_find_duplicate``, but for a key under which no message was collected."""
        row = self._known.row(seen.key, seen.message.size, content)
        if step.key is not None and (moved := self._find_moved(seen, row, content)):
            return moved
        is_known = self.dedupe and self._ledger.has_content(content)
        if is_known or self._holds(self._known.identity(seen.key, row.size), content):
            return _Received(seen, row)
        return None

    def _find_moved(self, seen: Seen, row: Stored, content: Content) -> _Received | None:
        """Return what to record if a message with this content is no longer listed, else None."""
        before = self._key_of_duplicate(content, is_unlisted=True) if self.finds_moved else None
        if before is None:
            return None
        self._known.load_more([before])
        row = row._replace(identity=self._known.identity_of(before), moved_from=before)
        return _Received(seen, row, is_compared=True)

    def _key_of(self, content: Content) -> str:
        """Return the key of a message that has no unique-id of its own.  Blocking.

        The result is the key of a message with this content that is not listed, or a new key.  A
        new key begins with a space, because a unique-id cannot contain a space.
        """
        key = self._key_of_duplicate(content, is_unlisted=False)
        if key is None:
            candidates = (f" {content.digest.hex()}:{number}" for number in count(1))
            key = next(each for each in candidates if each not in self._recognised)
            self._recognised.add(key)
        self._known.load_more([key])
        return key

    def _key_of_duplicate(self, content: Content, *, is_unlisted: bool) -> str | None:
        """Return the key of a collected message with this content; return each key only once."""
        keys = self._ledger.with_content(content, is_unlisted=is_unlisted)
        free = (each for each in keys if each not in self._recognised and each not in self.listed)
        key = next(free, None)
        if key is not None:
            self._recognised.add(key)
        return key

    def _holds(self, identity: str, content: Content) -> bool:
        """Return whether the destination has exactly these octets under this name.

        If the destination cannot read its messages again, only the name is compared.
        """
        destination = self._destination
        if offers(destination, Verifying):
            return destination.has(identity) and destination.holds(identity, content.digest)
        return destination.has(identity)

    def _refuse_part(self, key: str, content: Content) -> None:
        """Refuse a truncated copy of a message that is already stored.

        Raises:
            MessageRefused: the content is, or may be, part of the stored message.
        """
        record, known = self._known.record(key), self._known.collected[key]
        digest = record.content.header_digest if record is not None else None
        if known.doubt is Doubt.SHORT or (digest is not None and digest == content.header_digest):
            raise MessageRefused("only part of the message was received")

    async def _store_new(
        self, step: Fetch, key: str, reader: ContentReader, body: AsyncIterable[bytes]
    ) -> None:
        message, destination, content = step.message, self._destination, reader.content()
        identity = self._known.identity(key, message.size)
        # A message with this name must be different, or ``_find_duplicate`` would have returned it.
        if offers(destination, Verifying) and destination.has(identity):
            identity = self._known.identity(key, message.size, content)
        self._ledger.intend([(key, message.size)])
        row = self._known.row(key, message.size, content, identity)
        is_new = destination.begin(identity)
        await self._store(message, reader, body, was_begun=step.was_begun, must_store=is_new)
        self._add_to_group(message, row, reader, is_new=is_new)

    async def _store_other(
        self, message: Message, key: str, reader: ContentReader, body: AsyncIterable[bytes]
    ) -> None:
        """Store a different message under a known unique-id."""
        content, before = reader.content(), self._known.identity_of(key)
        intent = earlier_key(key, content.digest)
        begun = self._known.collected.get(intent)
        was_begun = begun is not None
        size = message.size if begun is None else begun.size
        identity = await in_thread(self._other_identity, key, size, content)
        self._ledger.intend([(intent, message.size)])
        is_new = self._destination.begin(identity)
        await self._store(message, reader, body, was_begun=was_begun, must_store=is_new)
        row = Stored(key, message.size, content, identity, replaces=before)
        self._add_to_group(message, row, reader, is_new=is_new)
        text = "its unique-id belonged to a different message before; both are stored"
        self._outcome.notes.append(f"message {message.number}: {text}")

    def _other_identity(self, key: str, size: int, content: Content) -> str:
        """Return a name for a message that differs from the recorded message with this key.

        If the name that the message would have without the ledger is free, that name is returned,
        so that the message is recognised even if the ledger is lost.  Blocking.
        """
        destination, usual = self._destination, self._known.usual_identity(key, size)
        other = self._known.identity(key, size, content)
        if not offers(destination, Verifying) or usual == self._known.identity_of(key):
            return other
        is_free = not destination.has(usual) or destination.holds(usual, content.digest)
        return usual if is_free else other

    def _add_to_group(
        self, message: Message, row: Stored, reader: ContentReader, *, is_new: bool
    ) -> None:
        is_short = reader.is_short(message.size)
        if is_short:
            text = (
                f"received {reader.octets} of {message.size} octets; "
                "the message will be compared in the next session"
            )
            self._outcome.short.append(f"message {message.number}: {text}")
        seen = Seen(message, row.key, whole=row.content, is_new=is_new, is_short=is_short)
        self._waiting.append(_Received(seen, row._replace(is_short=is_short and is_new)))
        if self._cancelled is not None:
            raise self._cancelled

    async def _store(
        self,
        message: Message,
        reader: ContentReader,
        body: AsyncIterable[bytes],
        *,
        was_begun: bool,
        must_store: bool = True,
    ) -> None:
        """Write a message to the destination; on return it is durable, or part of its group.

        The caller must have called ``begin``, and ``body`` must pass its octets to ``reader``.  If
        ``must_store`` is false, the destination already has the message, so ``body`` is read but
        not stored.
        """
        destination = self._destination
        try:
            async for piece in body:
                if must_store:
                    destination.write(piece)
                self._outcome.octets += len(piece)
            if reader.is_substitute(message.size):
                text = "Exchange cannot convert the message, and sent a notice instead"
                raise MessageRefused(text)
            if must_store and self._grouping is not None:
                self._grouping.end()
            elif must_store:
                await self._commit()
        finally:
            destination.abort()
        if must_store:
            self._outcome.stored += 1
            self._outcome.in_doubt += was_begun and not destination.is_repeatable
        else:
            self._outcome.known += 1

    async def _commit(self) -> None:
        """Commit the message in a thread, and wait for it even if the session is cancelled.

        Otherwise the session would abort the message while the thread is using the destination, and
        an accepted message would not be recorded.  ``_add_to_group`` raises the cancellation later.
        """
        work = asyncio.ensure_future(asyncio.to_thread(self._destination.commit))
        self._cancelled = await wait_until_done(work)
        if self._cancelled is not None and work.exception() is not None:
            raise self._cancelled
        work.result()

    # Groups.

    async def _commit_group(self) -> None:
        """Start to record the current group; on return, the previous group is recorded."""
        waiting, self._waiting = self._waiting, []
        await self._wait_for_group()
        if waiting:
            sync = self._grouping.group() if self._grouping is not None else None
            self._writing = asyncio.create_task(self._record_group(waiting, sync))
            if not self._destination.is_repeatable:
                # Otherwise a crash could duplicate more than one message.
                await self._wait_for_group()

    async def _wait_for_group(self) -> None:
        if self._writing is not None:
            await asyncio.shield(self._writing)  # a cancelled session must not cancel the task
            self._writing = None

    async def _record_group(
        self, waiting: Sequence[_Received], sync: Callable[[], None] | None
    ) -> None:
        """Make a group durable, and then record it, so that ``prove`` can confirm its messages."""
        if sync is not None:
            await asyncio.to_thread(sync)
        now = self._now()
        await asyncio.to_thread(self._write_rows, waiting, now)
        for each in waiting:
            if each.is_compared:
                self._known.update(each.row, now if each.restarts_retention else None)
            else:
                self._known.add(each.row, now)
            if not each.seen.is_short:
                del self.unstored[str(each.seen.message.number)]
            if self._policy.keep is not None:
                self.seen.append(each.seen)

    def _write_rows(self, waiting: Sequence[_Received], now: float) -> None:
        """Write a durable group to the ledger.  Blocking."""
        new = [each.row for each in waiting if not each.is_compared]
        known = [each for each in waiting if each.is_compared]
        moved = [each.row for each in known if each.row.moved_from]
        restarted = [each.row for each in known if each.restarts_retention]
        unchanged = [each.row for each in known if not each.restarts_retention]
        if new:
            self._ledger.took(new, now)
        if moved:
            self._ledger.record_moved(moved)
        for rows, again_at in ((unchanged, None), (restarted, now)):
            if rows:
                self._ledger.record_match(rows, again_at)

    # Headers.

    async def header_digests(self, messages: Sequence[Message]) -> dict[int, bytes | None]:
        """Return the digests, by message-number, of the headers that the server sends for TOP."""
        header_digests: dict[int, bytes | None] = {}
        tags = self._reader.capabilities.tags
        if "TOP" in self._reader.quirks.hidden or (tags and not self._reader.capabilities.top):
            return header_digests
        refusals = 0
        requested = takewhile(lambda _: refusals < _MAX_TOP_REFUSALS, messages)
        index = 0
        self.awaited = messages[0] if messages else None
        async for message, body in self._reader.raw_headers(requested):
            self.awaited = message
            try:
                header = await self._header(message, body)
                header_digests[message.number], refusals = header_digest(header_of(header)), 0
            except (CommandFailed, MessageRefused):
                refusals += 1
            index += 1
            if self.awaited is None:
                self.awaited = messages[index] if index < len(messages) else None
        self.awaited = None
        return header_digests

    async def _header(self, message: Message, body: AsyncIterable[bytes]) -> bytes:
        header = bytearray()
        async for piece in self._counted(message, body):
            if len(header) < LONGEST_HEADER:  # the rest must be read before the next response
                header += piece
        return bytes(header[:LONGEST_HEADER])

    # Stubs.

    async def fetch_stubs(self, stubs: Sequence[Stub]) -> None:
        """Fetch and store stubs, in the same steps as messages.

        A stored stub never allows the deletion of its message.
        """
        capabilities = self._reader.capabilities
        for step in stubs:
            message = step.message
            if capabilities.tags and not capabilities.top:
                text = f"message {message.number}: too large, and the server does not support TOP"
                if self._run.report_once([aside_key(message)]):
                    self._outcome.skipped.append(text)
                continue
            try:
                self.awaited = message
                self._usage.add(messages=1)
                header = await self._header(message, self._reader.top(message))
                self._outcome.octets += len(header)
                self._ledger.intend([(step.key, message.size)])
                content = Content(sha256(b"stub " + header).digest())
                if not (self.dedupe and self._ledger.has_content(content)):
                    await self._store_stub(step, header)
            except (CommandFailed, MessageRefused) as error:
                self.refuse(message, error)
            else:
                row = Stored(step.key, message.size, content, is_gone=True)
                self._ledger.took([row], self._now())
        self.awaited = None
        self._usage.record()

    async def _store_stub(self, step: Stub, header: bytes) -> None:
        """Store a stub; it is durable on return."""
        destination, message = self._destination, step.message
        identity = self._known.identity(step.key, message.size)
        if step.was_begun and await in_thread(destination.has, identity):
            return
        try:
            if destination.begin(identity):
                text = stub(header, self._ledger.name, short_name(message), message.size)
                destination.write(text)
                await in_thread(destination.commit)
                self._outcome.stubs += 1
                self._outcome.in_doubt += step.was_begun and not destination.is_repeatable
        finally:
            destination.abort()

    def refuse(self, message: Message, error: CommandFailed | MessageRefused) -> None:
        """Report a message that stays on the server.

        If the message was refused here, and not by the server, it is set aside.
        """
        text = error.text if isinstance(error, CommandFailed) else str(error)
        self._outcome.refused.append(f"message {message.number}: {text}")
        if isinstance(error, Doubtful):
            self._in_doubt.append((message, text))
        elif isinstance(error, MessageRefused):
            self.set_aside(message, text)

    def _settle_doubts(self, *, is_broken: bool = False) -> None:
        """Set aside the messages in doubt.

        If the destination works, the messages must be the cause of their failures.  If the
        destination ``is_broken``, messages that were set aside before do not wait longer.
        """
        in_doubt, self._in_doubt = self._in_doubt, []
        for message, reason in in_doubt:
            if not (is_broken and aside_key(message) in self.aside):
                self.set_aside(message, reason)

    def set_aside(self, message: Message, reason: str) -> None:
        key = aside_key(message)
        is_first = self._run.count_failure(key)
        self._ledger.set_aside(key, reason, self._now(), is_first=is_first)


async def _pieces(file: SpooledTemporaryFile[bytes]) -> AsyncIterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece
