"""A Maildir store.  Any MTA can deliver into them, and an IMAP server can share them.

A maildrop is the INBOX of a Maildir (``cur``, ``new``, ``tmp``) with an additional directory
``held``.  Octets are stored unchanged; messages that other programs stored with bare LF are sent
with CRLF.

Standards: RFC 1939 §4-§8, §11; https://cr.yp.to/proto/maildir.html.
Security: user names are checked by ``paths``, symbolic links refused by ``files``.
"""

from __future__ import annotations

import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    aclosing,
    asynccontextmanager,
    suppress,
)
from dataclasses import replace
from functools import partial
from itertools import islice
from math import inf
from operator import attrgetter
from typing import TypeVar

from ..clock import Clock
from ..errors import MessageGone, PermanentFailure, TemporaryFailure
from ..maildrop import (
    DELETION_LIMITED,
    Entry,
    Forecast,
    HeldMessage,
    Maildrop,
    RawMessage,
    SessionRecord,
    Sweep,
    Usage,
    View,
)
from ..message import LineEndings, Top, crlf_text
from ..scanning import ChangingMaildir, scan_exactly, scan_for
from ..wire import stuffed
from . import adopted, expiry, files, journal, quota, rules
from .coded import ENCODED_ERROR, PREFIX_LENGTH, encoding_of
from .delivery import NamedDeliveries
from .files import in_thread
from .folders import (
    INBOX,
    Part,
    ViewMaildrop,
    directory_of,
    each_folder,
    joined,
    names_held,
    recent,
)
from .held import (
    finish_update,
    is_unfinished,
    list_held,
    purge,
    reading_held,
    restore,
    update,
)
from .index import Form, Index, forget, load, save, stamps
from .names import File, Identity, unique_id_of, unique_part
from .paths import Template
from .refresh import correct_sizes, current_index
from .rules import Rules, days_to_seconds
from .single_delivery import deliver, deliver_named
from .verification import Finding, verify

# The index is written if a session has determined the form of at least one message in 16.  For
# fewer, writing 100 octets per message costs more than converting these messages again.
_SAVE_RATIO = 16
_CACHE = 67_108_864  # octets of indexes in memory: about 600,000 messages at 100 octets each
_MAX_VIEWS = 16  # joined listings in memory; few users open several folders at a time
_ATTEMPTS = 5  # attempts to open a file that another program is renaming
_BEGINNING = 16_384  # octets read for TOP; we estimate that nearly all headers are shorter
_BATCH = 32  # users or messages in one call in a thread, which cannot be cancelled

T = TypeVar("T")


class MaildirStore:
    """A Maildir store.

    Implements ``Store``, ``Holding``, ``Remembering``, ``Viewing``, ``Expiring`` and
    ``NamedDelivery``.  Its maildrops also implement ``RawReading``, ``Journal`` and ``Paced``.
    """

    def __init__(
        self,
        template: str,
        *,
        hold: float | Callable[[str], float] = 14 * 86400,
        limit: Callable[[str], int] = lambda _: 0,
        folders: Sequence[str] = ("INBOX",),
        clock: Clock | None = None,
    ) -> None:
        """
        ``template``: see ``paths.Template``.
        ``hold``: the number of seconds for which removed mail is held, or a function that returns
        this number for a user and may block.  0 destroys mail immediately; with infinity, mail is
        not removed, and the next session lists it again.
        ``limit``: a function that returns the quota of a user in octets, 0 for no quota.  It may
        block.
        ``folders``: the folders shown to clients that do not request a folder.
        ``clock``: the clock kept in the state directory; by default a new one.

        Raises:
            ConfigurationError: the template would let two users share a maildrop.
            PermanentFailure: a folder name is invalid.
        """
        self.hold = hold if callable(hold) else lambda _: hold
        self.limit = limit
        self._clock = clock or Clock()
        self._folders = list(dict.fromkeys(map(directory_of, folders)))
        self._views: dict[tuple[Index, ...], tuple[list[str], Index]] = {}
        self._template = Template(template)
        self._indexes: dict[str, Index] = {}  # by user and folder, the most recently used last
        self._cached_octets = 0  # total size of the cached indexes

    @property
    def opens_immediately(self) -> bool:
        return True

    def open(self, user: str) -> AbstractAsyncContextManager[Maildrop]:
        if self._folders == [INBOX]:
            return self._session(user)
        return self.open_view(user, View())

    @asynccontextmanager
    async def open_view(self, user: str, view: View) -> AsyncIterator[Maildrop]:
        requested = list(dict.fromkeys(map(directory_of, view.folders))) or self._folders
        async with AsyncExitStack() as stack:
            by_folder = {}
            # Folders are locked in a fixed order, so that two sessions cannot each get half of the
            # locks.
            for folder in sorted(requested):
                with suppress(_NoSuchFolder):
                    session = self._session(user, folder)
                    by_folder[folder] = await stack.enter_async_context(session)
            if not by_folder:
                raise _NoSuchFolder
            if requested == list(by_folder) and len(requested) == 1 and not view.recent:
                yield by_folder[requested[0]]
                return
            since = time.time() - view.recent if view.recent else None
            sessions = [(folder, by_folder[folder]) for folder in requested if folder in by_folder]
            parts = await in_thread(_parts, sessions, since, len(requested) == 1)
            yield ViewMaildrop(parts, await self._joined(parts, is_complete=since is None))

    async def _joined(self, parts: Sequence[Part], *, is_complete: bool) -> Index:
        """Return the joined listing.  Listings of complete folders are cached until they change."""
        key = tuple(part.session.listing for part in parts)
        names = [part.folder for part in parts]
        cached_names, index = self._views.pop(key, ([], Index()))
        if not is_complete or cached_names != names:
            index = await in_thread(joined, parts)
        if is_complete:
            self._views[key] = names, index
            while len(self._views) > _MAX_VIEWS:
                del self._views[next(iter(self._views))]
        return index

    def _session(self, user: str, folder: str = INBOX) -> _SessionContext:
        return _SessionContext(self, user, folder)

    async def _begin(
        self, user: str, folder: str, resources: _Resources
    ) -> tuple[str, _OpenMaildir]:
        """Open a session.  Returns the key of its cached index, and the session.

        Raises:
            _NoSuchFolder, MaildropInUse, TemporaryFailure
        """
        names, key = self._template.names(user), user if folder == INBOX else f"{user}/{folder}"
        cached = self._indexes.get(key)
        locked = None
        lock = partial(self._lock, resources, names, folder, cached)
        if cached is not None:
            # These calls read cached directories, so a thread would cost more than it saves.
            with files.storage_errors(), suppress(FileNotFoundError):
                locked = lock()
        if locked is None:  # create missing directories
            resources.release()
            locked = await in_thread(lock, make=True)
        root, maildrop, began, current = locked
        hold = partial(self.hold, user)
        index = current
        if index is None:
            index = await self._refresh(root, maildrop, began, cached, hold)
        self._cache_index(key, index)
        return key, _OpenMaildir(maildrop, index, root=root, hold=hold, clock=self._clock)

    async def _end(self, key: str, session: _OpenMaildir) -> None:
        maildrop, index, sizes = session.maildrop, session.listing, session.close()
        if session.known_forms:
            index = index.with_forms(session.known_forms)
            self._cache_index(key, index)
            if len(session.known_forms) * _SAVE_RATIO >= len(index):
                await in_thread(save, maildrop, index)
        if sizes:
            self._cache_index(key, await in_thread(correct_sizes, maildrop, index, sizes))

    def _lock(
        self,
        resources: _Resources,
        names: Sequence[str],
        folder: str,
        cached: Index | None,
        *,
        make: bool = False,
    ) -> tuple[int, int, int, Index | None]:
        """Lock a folder.

        Returns the Maildir, the folder, the start time of the session, and the known index, which
        is None if the folder has changed.
        """
        root = resources.enter(files.maildrop(self._template.base, names, make=make))
        maildrop = root
        if folder != INBOX:
            try:
                maildrop = resources.enter(files.folder(folder, root))
            except FileNotFoundError:
                raise _NoSuchFolder from None
        began = resources.enter(files.session_lock(maildrop))
        is_current = cached is not None and cached.stamps == stamps(maildrop)
        current = cached if is_current and not is_unfinished(maildrop) else None
        return root, maildrop, began, current

    async def _refresh(
        self, root: int, maildrop: int, began: int, cached: Index | None, hold: Callable[[], float]
    ) -> Index:
        """Finish an interrupted UPDATE, and return a current index."""

        def newest_index() -> tuple[Index | None, bool]:
            if is_unfinished(maildrop):
                finish_update(maildrop, self._removed_at(root, hold))
                quota.forget(root)
            now = stamps(maildrop)
            if cached is not None and cached.stamps == now:
                return cached, True
            loaded = load(maildrop, cached)
            if loaded is None:
                return cached, False
            return loaded, loaded.stamps == now

        index, is_current = await in_thread(newest_index)
        if index is not None and is_current:
            return index
        return await current_index(maildrop, began, index)

    def _cache_index(self, key: str, index: Index) -> None:
        if (old := self._indexes.pop(key, None)) is not None:
            self._cached_octets -= old.memory
        self._indexes[key] = index
        self._cached_octets += index.memory
        while self._cached_octets > _CACHE and len(self._indexes) > 1:
            self._cached_octets -= self._indexes.pop(next(iter(self._indexes))).memory

    async def deliver(self, user: str, message: AsyncIterator[bytes]) -> Entry:
        names, limit = self._template.names(user), partial(self.limit, user)
        return await deliver(self._template.base, names, limit, message)

    def deliveries(self, user: str) -> NamedDeliveries:
        names, limit = self._template.names(user), partial(self.limit, user)
        return NamedDeliveries(self._template.base, names, limit)

    async def adopt(
        self,
        user: str,
        arrivals: Mapping[str, str],
        read: Callable[[str], AsyncIterator[bytes]],
    ) -> int:
        """Import mail from another server with that server's unique-ids and order.

        ``arrivals`` maps the file names to be created to unique-ids.  ``read`` yields the octets of
        a message that is neither in the maildrop nor held.  Returns the number of added messages,
        which are durable on return.  After an interruption, repeat the call to add the rest.

        Raises:
            PermanentFailure: two messages would have the same unique-id; nothing is changed.
        """
        added = 0
        async with self._session(user) as session:
            present = await in_thread(session.adopt_ids, arrivals)
            await in_thread(quota.forget, session.maildrop)  # as for ``restore``
            try:
                for name in arrivals:
                    if name not in present:
                        await deliver_named(session.maildrop, name, read(name))
                        added += 1
                if added:
                    await in_thread(files.sync, "cur", "new", parent=session.maildrop)
            finally:
                await in_thread(quota.forget, session.maildrop)
        return added

    async def unique_ids(self, user: str) -> dict[str, str]:
        """Return the unique-ids by file name (without flags), in the order of the listing."""
        async with self._session(user) as session:
            messages = map(session.listing.row, range(len(session.listing)))
            return {each.file.name.partition(":")[0]: each.unique_id for each in messages}

    async def held(self, user: str) -> Sequence[HeldMessage]:
        def collect_held(maildrop: int) -> list[HeldMessage]:
            messages = []
            for name, folder in each_folder(maildrop):
                before = "" if name == INBOX else f"{name}/"
                messages += [each._replace(name=before + each.name) for each in list_held(folder)]
            now = self._clock.read().now
            messages = [each._replace(removed_at=min(each.removed_at, now)) for each in messages]
            return sorted(messages, key=attrgetter("removed_at", "name"))

        return await in_thread(self._with_maildrop, user, collect_held, [])

    async def read_held(self, user: str, held: HeldMessage) -> AsyncIterator[bytes]:
        def find(maildrop: int) -> int:
            for folder, names in names_held(maildrop, [held.name]):
                return stack.enter_context(reading_held(folder, names[0]))
            return -1

        with ExitStack() as stack:
            file = await in_thread(self._with_maildrop, user, find, -1)
            if file < 0:
                raise MessageGone
            offset = 0
            while octets := await files.read_piece(file, offset):
                offset += len(octets)
                yield octets

    async def restore(
        self, user: str, held: Collection[HeldMessage], *, same_unique_ids: bool = False
    ) -> int:
        names = [each.name for each in held]

        def restore_all(maildrop: int) -> int:
            # Also called before restoring, because a crash must not make the count too small.
            quota.forget(maildrop)
            removed_at = self._removed_at(maildrop, partial(self.hold, user))
            try:
                return sum(
                    restore(folder, own, same_unique_ids=same_unique_ids, removed_at=removed_at)
                    for folder, own in names_held(maildrop, names)
                )
            finally:
                quota.forget(maildrop)

        return await in_thread(self._with_maildrop, user, restore_all, 0)

    def _removed_at(self, root: int, hold: Callable[[], float]) -> int | None:
        """Return the removal time to record when an interrupted UPDATE is finished.

        None means that mail is destroyed.  It is returned only if the rule was to destroy mail when
        the UPDATE began, and still is.
        """
        return None if rules.read(root).destroys_immediately and not hold() else self._clock.stamp()

    async def purge(self, user: str, removed_before: float) -> int:
        def clean(maildrop: int) -> int:
            expiry.remove_abandoned_files(maildrop, self._clock.read().proven)
            return sum(
                purge(folder, lambda removed_at: removed_at < removed_before)
                for _, folder in each_folder(maildrop)
            )

        return await in_thread(self._with_maildrop, user, clean, 0)

    async def purge_due(self, user: str, *, until: float, now: float) -> Sweep:
        def clean(maildrop: int) -> Sweep:
            expiry.remove_abandoned_files(maildrop, until)
            current = rules.read(maildrop).changed(int(now), hold=self.hold(user))
            return expiry.purge_due(maildrop, current, until=until, now=now)

        return await in_thread(self._with_maildrop, user, clean, Sweep())

    async def expire(self, user: str, days: int | None, *, until: float, now: float) -> Sweep:
        def read_arrivals(maildrop: int) -> tuple[Rules, list[float]]:
            current = rules.read(maildrop).changed(int(now), expire=days_to_seconds(days))
            arrivals = expiry.arrival_times(maildrop, now, reset_time=True)
            return current, [current.kept_until(each) for each in arrivals]

        if days is None:
            return Sweep()
        current, ends = await in_thread(self._with_maildrop, user, read_arrivals, (Rules(), []))
        doubtful = sum(until < each <= now for each in ends)
        if not any(each <= until for each in ends):
            return Sweep(0, doubtful)  # without taking the lock, which would keep clients out

        def is_expired(arrived_at: float) -> bool:
            return current.kept_until(arrived_at) <= until

        async with self._session(user) as session:
            return Sweep(await in_thread(session.expire, is_expired, now), doubtful)

    async def note_rules(self, user: str, days: int | None, now: float) -> Forecast:
        def note(maildrop: int) -> Forecast:
            hold, before = self.hold(user), rules.read(maildrop)
            quota.update_limit(maildrop, self.limit(user))
            if days is None and before.is_empty and not expiry.has_held_mail(maildrop):
                return Forecast()  # no rule has ever applied to this maildrop
            before, after = rules.record_change(
                maildrop, int(now), hold=hold, expire=days_to_seconds(days)
            )
            return expiry.forecast(maildrop, before, after, now)

        return await in_thread(self._with_maildrop, user, note, Forecast())

    async def forecast(self, user: str, days: int | None, now: float) -> Forecast:
        def compute(maildrop: int) -> Forecast:
            recorded, hold = rules.read(maildrop), self.hold(user)
            after = recorded.changed(int(now), hold=hold, expire=days_to_seconds(days))
            return expiry.forecast(maildrop, after.without_recent_changes(now), after, now)

        return await in_thread(self._with_maildrop, user, compute, Forecast())

    async def usage(self, user: str) -> Usage:
        """Return how full the maildrop is, with zeros for a user without a maildrop."""

        def read_usage(maildrop: int) -> Usage:
            return quota.usage(maildrop, self.limit(user))

        usage = await in_thread(self._with_maildrop, user, read_usage, None)
        return usage or Usage(0, 0, await in_thread(self.limit, user))

    async def sessions(self, user: str) -> Sequence[SessionRecord]:
        def read_sessions(maildrop: int) -> list[SessionRecord]:
            records = [each for _, folder in each_folder(maildrop) for each in journal.read(folder)]
            return sorted(records, key=attrgetter("ended_at"))

        return await in_thread(self._with_maildrop, user, read_sessions, [])

    async def verify(self, user: str) -> tuple[int, list[Finding]]:
        """Return the number of messages read, and the faults found.  Changes nothing.

        Raises:
            MaildropInUse: another session has the maildrop open.
            TemporaryFailure: the maildrop cannot be read at present.
        """
        messages, faults = 0, []
        async with aclosing(self._each_locked(user)) as locked:
            async for folder, maildrop, _ in locked:
                before = "" if folder == INBOX else f"{folder}/"
                findings = verify(maildrop)
                while batch := await in_thread(list, islice(findings, _BATCH)):
                    messages += batch.count(None)
                    faults += [replace(each, name=before + each.name) for each in batch if each]
        return messages, faults

    async def reindex(self, user: str) -> int:
        """Rebuild the index from the mail alone.  Returns the number of messages.

        Raises:
            MaildropInUse: another session has the maildrop open.
            TemporaryFailure: the maildrop cannot be read at present.
        """
        messages = 0

        def unfinished(root: int) -> int | None:
            return self._removed_at(root, partial(self.hold, user))

        removed_at = await in_thread(self._with_maildrop, user, unfinished, None)
        async with aclosing(self._each_locked(user)) as locked:
            async for folder, maildrop, began in locked:
                self._indexes.pop(user if folder == INBOX else f"{user}/{folder}", None)
                await in_thread(forget, maildrop)
                await in_thread(finish_update, maildrop, removed_at)
                index = await current_index(maildrop, began, None, measure_all=True)
                messages += len(index)
        return messages

    async def _each_locked(self, user: str) -> AsyncGenerator[tuple[str, int, int], None]:
        """Lock and yield each folder, with the time of locking.  Does not repair anything."""
        if not await in_thread(self._with_maildrop, user, lambda _: True, False):
            return
        with ExitStack() as stack:
            names = self._template.names(user)
            opening = files.maildrop(self._template.base, names, make=True)  # with a lock file
            root = await in_thread(stack.enter_context, opening)
            folders = [INBOX]
            folders += await in_thread(lambda: [name for name, _ in each_folder(root)][1:])
            for folder in folders:
                with ExitStack() as each:
                    entering = partial(_enter_folder, each, root, folder)
                    maildrop, began = await in_thread(entering)
                    yield folder, maildrop, began

    async def users(self) -> AsyncIterator[str]:
        users = self._template.users()
        while batch := await in_thread(lambda: list(islice(users, _BATCH))):
            for user in batch:
                yield user

    def _with_maildrop(self, user: str, call: Callable[[int], T], default: T) -> T:
        """Call a function with the user's maildrop, or return ``default`` if there is no maildrop.

        Blocking.
        """
        names = self._template.names(user)
        with ExitStack() as stack:
            try:
                maildrop = stack.enter_context(files.maildrop(self._template.base, names))
            except FileNotFoundError:
                return default
            return call(maildrop)


def _enter_folder(stack: ExitStack, root: int, folder: str) -> tuple[int, int]:
    maildrop = root if folder == INBOX else stack.enter_context(files.folder(folder, root))
    return maildrop, stack.enter_context(files.session_lock(maildrop))


class _NoSuchFolder(PermanentFailure):
    def __init__(self) -> None:
        super().__init__("no such folder")


def _parts(
    sessions: Sequence[tuple[str, _OpenMaildir]], since: float | None, is_only: bool
) -> list[Part]:
    """Return the parts of a view.  Blocking."""
    parts = []
    for folder, session in sessions:
        positions: Sequence[int] = range(len(session.listing))
        if since is not None:
            positions = recent(session.maildrop, session.listing, since)
        parts.append(Part(folder, session, positions, is_own=is_only or folder == INBOX))
    return parts


class _Resources(list[AbstractContextManager[int]]):
    """The locks and descriptors of a session.  An ``ExitStack`` would take ten times the memory."""

    __slots__ = ()

    def enter(self, manager: AbstractContextManager[int]) -> int:
        value = manager.__enter__()
        self.append(manager)
        return value

    def release(self) -> None:
        """Release all resources in reverse order, even if an error occurs."""
        try:
            while self:
                self.pop().__exit__(None, None, None)
        finally:
            if self:
                self.release()


class _SessionContext(AbstractAsyncContextManager["_OpenMaildir"]):
    """Context manager that opens and closes a session.

    It is not a generator, because its frame would stay in memory while the client is connected.
    """

    __slots__ = ("_folder", "_key", "_resources", "_session", "_store", "_user")

    def __init__(self, store: MaildirStore, user: str, folder: str) -> None:
        self._store, self._user, self._folder = store, user, folder
        self._resources = _Resources()

    async def __aenter__(self) -> _OpenMaildir:
        try:
            opened = await self._store._begin(self._user, self._folder, self._resources)
        except BaseException:
            self._resources.release()
            raise
        self._key, self._session = opened
        return self._session

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._store._end(self._key, self._session)
        finally:
            self._resources.release()


class _OpenMaildir:
    """One session's ``Maildrop``."""

    __slots__ = (
        "_clock",
        "_directories",
        "_hold",
        "_renamed",
        "_root",
        "_sizes",
        "known_forms",
        "listing",
        "maildrop",
    )

    def __init__(
        self, maildrop: int, index: Index, *, root: int, hold: Callable[[], float], clock: Clock
    ) -> None:
        """``root``: the Maildir; ``maildrop`` is either this Maildir or one of its folders."""
        self.listing = index
        self.maildrop = maildrop
        """Descriptor of the open directory."""
        self._root = root
        self.known_forms: dict[int, Form] = {}
        """Forms determined in this session, by position in the listing."""
        # New files by position, for messages renamed since the index was built; None if removed.
        self._renamed: dict[int, File | None] = {}
        self._sizes: dict[int, int] = {}  # octets on the wire where the index was wrong
        self._directories: dict[str, int] = {}
        self._hold = hold
        self._clock = clock

    def close(self) -> dict[int, int]:
        """Close and forget all descriptors, because their numbers may soon be reused.

        Returns the corrected sizes by position in the index.
        """
        self.maildrop = self._root = -1
        while self._directories:
            files.close(self._directories.popitem()[1])
        return self._sizes

    def adopt_ids(self, arrivals: Mapping[str, str]) -> set[str]:
        """Assign unique-ids to these file names durably.

        Returns the names whose messages are already in the maildrop or held.
        """
        present = {unique_part(file.name): file for file in scan_exactly(self.maildrop)}
        held = {each.unique_id for each in list_held(self.maildrop)}
        adopted_ids = adopted.read(self.maildrop)
        requested = {(unique_part(name), 0): unique_id for name, unique_id in arrivals.items()}
        ids = set(requested.values())
        if len(ids) != len(arrivals):
            raise PermanentFailure("two messages have the same unique-id or file name")
        if not all(map(adopted.UNIQUE_ID.fullmatch, ids)):
            raise PermanentFailure("a unique-id must be 1 to 70 printable characters (RFC 1939 §7)")
        for position in range(len(self.listing)):
            message = self.listing.row(position)
            identity = (unique_part(message.file.name), 0)
            if identity not in requested and message.unique_id in ids:
                raise PermanentFailure(
                    f"another message in this maildrop has the unique-id {message.unique_id}"
                )
        for name in arrivals:
            if (file := present.get(unique_part(name))) and self._encoding_of_file(file):
                raise PermanentFailure(f"{file.name}: {ENCODED_ERROR}")
        if any(adopted_ids.get(identity) != unique_id for identity, unique_id in requested.items()):
            adopted.write(self.maildrop, adopted_ids | requested)
        return {
            name
            for name, unique_id in arrivals.items()
            if unique_part(name) in present or not held.isdisjoint((unique_id, unique_id_of(name)))
        }

    def _encoding_of_file(self, file: File) -> str:
        with (
            files.directory(file.directory, self.maildrop) as directory,
            files.reading(file.name, directory) as descriptor,
        ):
            return encoding_of(files.beginning(descriptor, PREFIX_LENGTH))

    def _file(self, entry: Entry) -> tuple[int, File]:
        """Return the position and the file of a message.

        Raises:
            MessageGone: the message is not in the index, or a later scan did not find it.
        """
        position = self.listing.find(entry)
        if position is None:
            raise MessageGone
        if self._renamed and position in self._renamed:
            file = self._renamed[position]
            if file is None:
                raise MessageGone
            return position, file
        return position, self.listing.file(position, entry.unique_id)

    def open_raw(self, entry: Entry) -> RawMessage | None:
        try:
            position, file = self._file(entry)
            descriptor, size = files.open_file(file.name, self._directory(file.directory))
        except (MessageGone, OSError):
            return None
        form = self._form(position, entry, size)
        has_crlf = form is Form.READY or form is Form.CRLF
        return RawMessage(descriptor, size, is_wire_ready=form is Form.READY, has_crlf=has_crlf)

    def cached_texts(
        self, entries: Sequence[Entry], max_octets: int, lines: int | None = None
    ) -> list[bytes]:
        texts: list[bytes] = []
        for entry in entries:
            text = None
            if lines is not None and entry.size >= _BEGINNING:
                text = self._cached_top(entry, lines)
            if text is None and entry.size <= max_octets:
                text = self._cached_text(entry)
                if text is not None and lines is not None:
                    text = Top(lines).feed(text)
            if text is None:
                break
            max_octets -= len(text)
            texts.append(text)
        return texts

    def _cached_top(self, entry: Entry, lines: int) -> bytes | None:
        """Return the response to TOP if the cached beginning of the message is enough for it."""
        octets, _ = self._cached_octets(entry, _BEGINNING)
        if octets is None:
            return None
        top = Top(lines)
        text = top.feed(LineEndings().feed(octets))
        return stuffed(text) if top.is_finished else None

    def _cached_octets(self, entry: Entry, max_octets: int) -> tuple[bytes | None, int]:
        """Return the cached octets of a message's file, and its position in the index.

        Returns None and -1 if no octets are in the page cache, or if the message is encoded.
        """
        try:
            position, file = self._file(entry)
            octets = files.read_cached(file.name, self._directory(file.directory), max_octets)
        except (MessageGone, OSError):
            return None, -1
        if octets is None or encoding_of(octets):  # ``read`` reports an encoded message
            return None, -1
        return octets, position

    def _cached_text(self, entry: Entry) -> bytes | None:
        octets, position = self._cached_octets(entry, entry.size + 1)
        if octets is None:
            return None
        form, size = self._form(position, entry, len(octets)), entry.size
        if form is Form.READY:
            return octets
        text = octets if form is Form.CRLF else crlf_text(octets)
        if len(text) != size:  # only a part was in the page cache, or the file has changed
            return None
        encoded = stuffed(text)
        if form is not Form.CRLF and len(octets) == size:
            self.known_forms[position] = Form.READY if len(encoded) == size else Form.CRLF
        return encoded

    def _form(self, position: int, entry: Entry, size: int) -> Form:
        """Return the known form of a message whose file currently has ``size`` octets."""
        if size != entry.size:
            return Form.UNKNOWN
        return self.known_forms.get(position) or self.listing.form(position)

    def record_form(self, entry: Entry, *, is_wire_ready: bool) -> None:
        position = self.listing.find(entry)
        if position is not None:
            self.known_forms[position] = Form.READY if is_wire_ready else Form.CRLF

    def _directory(self, name: str) -> int:
        """Return a descriptor that stays open, to save one path look-up per message."""
        if name not in self._directories:
            self._directories[name] = files.open_directory(name, self.maildrop)
        return self._directories[name]

    async def read(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        """Yield the message in pieces.

        The last piece is held back until the size is known to match the announced size.

        Raises:
            PermanentFailure: another program has compressed or encrypted the message; nothing was
                yielded.
        """
        ends = LineEndings()
        pending: list[bytes] = []  # so that yielded pieces are referenced nowhere else
        offset = 0
        with ExitStack() as stack:
            file = await in_thread(self._open, stack, entry)
            while octets := await files.read_piece(file, offset):
                if not offset and encoding_of(octets):
                    raise PermanentFailure(ENCODED_ERROR)
                offset += len(octets)
                pending.append(ends.feed(octets))
                del octets
                if ends.size > entry.size:
                    break
                if len(pending) > 1:
                    yield pending.pop(0)
            pending.append(ends.finish())
            if ends.size != entry.size:
                position, _ = self._file(entry)
                self._sizes[position] = (await in_thread(files.survey, file)).size
                raise TemporaryFailure("message does not have the announced size; log in again")
            if last := b"".join(pending):
                yield last

    def _open(self, stack: ExitStack, entry: Entry) -> int:
        """Open the file of a message, even if another program has renamed it.  Blocking.

        Raises:
            MessageGone: the message has been removed.
            TemporaryFailure: another program keeps renaming the file.
        """
        for _ in range(_ATTEMPTS):
            _, file = self._file(entry)
            with (
                suppress(FileNotFoundError),
                files.directory(file.directory, self.maildrop) as directory,
            ):
                return stack.enter_context(files.reading(file.name, directory))
            self._rescan(file.identity)
        raise ChangingMaildir

    def _rescan(self, missing: Identity) -> None:
        """Find the files again after another program has renamed or removed some."""
        seen, _ = scan_for(self.maildrop, {missing})
        by_identity = {file.identity: file for file in seen.files()}
        for position in range(len(self.listing)):
            old = self.listing.row(position).file
            now = by_identity.get(old.identity)
            if now == old:
                self._renamed.pop(position, None)
            elif now is not None or seen.is_exact:
                self._renamed[position] = now

    async def pace(self, delay: float) -> float:
        return await in_thread(self._pace, delay)

    def _pace(self, delay: float) -> float:
        """Return the seconds to wait before this login is allowed, or 0.

        The delay applies per user: sessions with different folders have different locks but share
        one time stamp.
        """
        with suppress(OSError), files.locked_time_stamp(files.LOGIN, self._root) as (stamp, last):
            now = time.time()
            if last is not None and last <= now < last + delay:  # otherwise the clock was set back
                return last + delay - now
            files.set_time(stamp)
        return 0.0  # even if the disk is full, because access to mail is more important

    def expire(self, is_expired: Callable[[float], bool], now: float) -> int:
        """Remove messages, and return their number.  Blocking.

        ``is_expired``: returns whether a message with this time of arrival has expired.
        """
        messages = map(self.listing.row, range(len(self.listing)))
        victims = []
        for position, file in enumerate(each.file for each in messages):
            arrived_at = expiry.arrival_time(self.maildrop, file, now)
            if arrived_at is not None and is_expired(arrived_at):
                victims.append(self.listing[position])
        return len(victims) - len(self._remove(victims)) if victims else 0

    async def record(self, session: SessionRecord) -> None:
        if session.removed:
            with suppress(TemporaryFailure):
                if await in_thread(self._hold) == inf:
                    session = session._replace(removed=())
        if not session.retrieved and not session.removed and session.end != DELETION_LIMITED:
            return
        # Appending to the page cache costs less than a switch to a thread and back.
        if not journal.record_without_waiting(self._root, session):
            await in_thread(journal.record, self._root, session)

    async def past(self, credential: str) -> Sequence[SessionRecord]:
        records = await in_thread(list, journal.read(self._root))
        return [each for each in records if each.credential == credential]

    async def remove(self, entries: Collection[Entry]) -> Collection[Entry]:
        return await in_thread(self._remove_entries, entries)

    def _remove_entries(self, entries: Collection[Entry]) -> Collection[Entry]:
        if not entries or self._hold() == inf:
            return ()
        not_removed = self._remove(entries)
        return [each for each in entries if each.unique_id in not_removed] if not_removed else []

    def _remove(self, entries: Collection[Entry]) -> set[str]:
        """Remove messages.  Returns the unique-ids of those not removed.  Blocking."""
        victims = self.listing.victims(entries)
        if not victims:
            return set()
        sizes = quota.sizes(self._root, self.maildrop, self._files(entries))
        hold, removed_at = self._hold(), self._clock.stamp()
        with suppress(OSError):  # after a failure, the next call records the change
            rules.record_change(self._root, removed_at, hold=hold)
        # Looking up one file takes as long as scanning two.
        is_part = 2 * len(victims) < len(self.listing)
        expected = [file for _, file in self._files(entries)] if is_part else []
        not_removed = update(self.maildrop, victims, removed_at if hold else None, expected)
        removed_sizes = [size for unique_id, size in sizes.items() if unique_id not in not_removed]
        quota.record_change(self._root, -sum(removed_sizes), -len(removed_sizes))
        return not_removed

    def _files(self, entries: Iterable[Entry]) -> Iterator[tuple[str, File]]:
        """Yield the unique-ids and files of messages that are not known to be removed."""
        for entry in entries:
            with suppress(MessageGone):
                yield entry.unique_id, self._file(entry)[1]
