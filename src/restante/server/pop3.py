"""Drives one POP3 session per connection: a transport on one side, ``Session`` on the other.

Standards: RFC 1939 §3 (autologout), RFC 2595 (STLS), RFC 8314.
Security: no stream classes; an octet that came before TLS must not be read after it.
Promises: a message that cannot be read to its end is never closed with the termination octet;
the response to QUIT comes after the removal is durable and the lock is free.
Limits: who does not read is not served on, so a connection holds some 64 KiB of output and as
much input, whatever is pipelined.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing, suppress
from dataclasses import dataclass, field, replace
from time import time
from typing import Any, cast

from .. import tls
from ..addons import offers
from ..clock import is_credible
from ..errors import (
    AuthenticationFailed,
    BackendUnavailable,
    Braked,
    LoginDelayed,
    NotRemoved,
    RestanteError,
    TemporaryFailure,
    TooBusy,
)
from ..maildrop import (
    BRAKED,
    Entry,
    Journal,
    Maildrop,
    Paced,
    RawMessage,
    RawReading,
    SessionRecord,
    Store,
)
from ..message import Top
from ..passdb import (
    Account,
    Accounts,
    Disproof,
    Generations,
    Network,
    Passdb,
    Shown,
    attempting,
    is_within,
)
from ..pop3.commands import VERBS
from ..pop3.grammar import Challenge, Response
from ..pop3.session import Policy, Session
from ..pop3.state import Close, Event, Login, Relay, Retrieve, StartTLS, State, Update
from ..sasl import Lookup
from ..wire import TERMINATION, Stuffer
from . import login, retrieval, views
from .admission import Slot
from .connection import DIRECT, HIGH_WATER, WAITING, BaseConnection, BaseService
from .proxy import Origin

_log = logging.getLogger("restante.pop3")
_REASONED = (AuthenticationFailed, BackendUnavailable)  # the log hears more than the client
_NAMED = 1000  # messages that one session retrieved and its record names
_REVIEW = 1.0  # seconds for one look at the users of all sessions
_NEW = 86_400  # seconds after its first session in the journal for which a credential is new


@dataclass(slots=True)
class Service(BaseService):
    """What the connections of one POP3 server share."""

    log: logging.Logger = field(default=_log, kw_only=True)
    store: Store
    passdb: Passdb
    passwords: Passdb | None = None
    """Asked in place of ``passdb`` where a password was shown, such as a cache before it."""
    guard: login.Guard | None = None
    time_stamp: Callable[[], str] | None = None
    """Makes that of a greeting, another one each time; None: no APOP (RFC 1939 §7)."""
    before_opening: Callable[[str], Awaitable[None]] | None = None
    """Is told the maildrop of who has logged in, which is opened when it returns; never raises."""
    is_crowded: Callable[[], bool] = lambda: False
    """Whether slots are scarce: then a failure is answered at once and its slot cleared."""
    policy: Policy = field(default_factory=Policy)
    clear_login_from: tuple[Network, ...] = ()
    """From where a login without TLS is allowed."""
    relays: tuple[Network, ...] = ()
    """Whence a proxy may tell who its client is (XCLIENT)."""
    separator: str = "+"
    """Between a user and a folder in a login name; empty: folders cannot be named."""
    brake: int = 0
    """Messages that a credential may remove in its first day; 0: as many as it likes."""
    proven_time: Callable[[], float] = time
    """The latest moment that has certainly come, though the clock may have jumped."""
    _reviewed: dict[str, bytes | None] = field(default_factory=dict)
    """The generation of each user with a session, at the last ``end_disabled``."""

    def connection(self, address: str, slot: Slot, origin: Origin = DIRECT) -> Connection:
        """The protocol for one accepted connection; ``origin`` is what a proxy tells of it."""
        return Connection(self, address, slot, origin)

    def may_login_in_clear(self, address: str) -> bool:
        return is_within(address, self.clear_login_from)

    async def end_disabled(self) -> None:
        """End the sessions of users who were disabled or removed since they logged in.

        Call it every second.  A user is looked up only when seen for the first time, or when a
        back end that can tell says that something has changed.
        """
        passdb, sessions = self.passdb, self._sessions_by_user()
        self._reviewed = {user: seen for user, seen in self._reviewed.items() if user in sessions}
        if not (offers(passdb, Generations) and offers(passdb, Accounts)):
            return
        with suppress(TimeoutError):  # a back end that hangs delays no user of another
            async with asyncio.timeout(_REVIEW), asyncio.TaskGroup() as reviews:
                for user, connections in sessions.items():
                    with suppress(TemporaryFailure):  # the next time will do
                        generation = await passdb.generation(user)
                        if user not in self._reviewed or self._reviewed[user] != generation:
                            reviews.create_task(self._review(user, generation, connections))

    async def _review(
        self, user: str, generation: bytes | None, connections: Sequence[Connection]
    ) -> None:
        try:
            account = await cast(Accounts, self.passdb).account(user)
        except TemporaryFailure:
            return
        self._reviewed[user] = generation
        for connection in connections:
            # A token may be enough for a user who is in no back end.
            if not account.is_enabled if account else not connection.is_by_token:
                connection.expel()

    def _sessions_by_user(self) -> dict[str, list[Connection]]:
        found: dict[str, list[Connection]] = {}
        for connection in self.connections:
            if isinstance(connection, Connection) and (user := connection.user):
                found.setdefault(user, []).append(connection)
        return found


class Connection(BaseConnection[Event]):
    """One POP3 client."""

    __slots__ = (
        "_account",
        "_is_judged",
        "_maildrop",
        "_opened",
        "_penalty",
        "_quit",
        "_raw",
        "_removed",
        "_retrieved",
        "_retrieved_messages",
        "_retrieved_octets",
    )

    _service: Service
    _session: Session

    def __init__(self, service: Service, address: str, slot: Slot, origin: Origin = DIRECT) -> None:
        super().__init__(service, address, slot, origin)
        self._maildrop: Maildrop
        self._raw: RawReading | None = None  # the maildrop, if it has files
        self._opened: AbstractAsyncContextManager[Maildrop] | None = None  # its lock is ours
        self._is_judged = False  # a login is being checked
        self._penalty = 0.0  # until when it waits for the answer to a failed one, and has its slot
        # For the log.
        self._account: Account | None = None
        self._retrieved: list[Entry] = []  # of very many the first
        self._retrieved_messages = 0
        self._retrieved_octets = 0
        self._removed: tuple[Entry, ...] = ()
        self._quit = ""  # what became of the deletions at QUIT; empty: there was none

    def _open_session(self, ssl_object: ssl.SSLObject | None) -> bytes:
        told = self._origin.tls  # of what is between the client and its proxy
        make = self._service.time_stamp
        self._proto = "pop3" if ssl_object is None else "pop3s"
        self._session = Session(
            VERBS,
            self._service.policy,
            is_secure=told != "no" if told else ssl_object is not None,
            may_start_tls=self._service.tls is not None and not told,
            may_login_in_clear=self._service.may_login_in_clear(self._address),
            may_relay=is_within(self._address, self._service.relays),
            channel=tls.channel(ssl_object),
            time_stamp=make() if make is not None else "",
        )
        return self._session.greeting().head()

    def _is_interruptible(self) -> bool:
        """What QUIT began is finished, and a guess is counted."""
        return self._session.state is not State.UPDATE and not self._is_judged

    def abandon(self) -> None:
        """Cut the connection, and what it waits for unless that is UPDATE."""
        is_judged, self._is_judged = self._is_judged, False
        self.abort("stopped")
        if is_judged and self._worker is not None:
            self._worker.cancel()

    @property
    def user(self) -> str:
        """Who has logged in; empty: not yet."""
        return self._account.user if self._account else ""

    @property
    def is_by_token(self) -> bool:
        return self._account is not None and self._account.credential == "token"

    def expel(self) -> None:
        """The user may not be here any more.  Nothing that is marked is removed; what QUIT began is
        finished."""
        if self._session.state is not State.UPDATE:
            self.abort("disabled")

    def _respond(self, event: Event) -> bool:
        match event:
            case Retrieve():
                octets = self._at_hand(event)
                if octets is None:
                    return False
                self._write(event.response.head() + octets)
                self._has_retrieved(event.entry)
                if self._out_octets >= HIGH_WATER:
                    self._flush()
            case Response(lines=lines) if lines is None or _is_short(lines):
                self._say(event)
            case Challenge():
                self._say(event)
            case Close(reason):
                if reason != "quit":
                    self._note("session ended", ip=self._address, proto=self._proto, reason=reason)
                self._close(reason)
            case StartTLS():
                self._transport.pause_reading()  # at once: what comes now is the handshake
                return False
            case _:
                return False
        return True

    def _answer_bug(self, event: Event | None) -> None:
        """[SYS/TEMP] (RFC 3206 §4).  The connection ends, and with it the lock; only a message that
        cannot be read leaves the others readable."""
        self._say(self._session.failed(TemporaryFailure("internal error, try again later")))
        if not isinstance(event, Retrieve):
            self._close("bug")

    async def _perform(self, event: Event) -> None:
        match event:
            case Response():
                await self._list(event)
            case Login(shown):
                self._slot.protect()  # during a delayed answer too: see ``admission``
                await self._log_in(shown)
                if self._account is None and not self._is_closing:
                    self._slot.make_evictable(self._make_room)
            case Lookup():
                await self._look_up(event)
            case Retrieve():
                await self._retrieve(event)
            case Update(entries):
                await self._update(entries)
            case StartTLS(response):
                await self._start_tls(response.head())
            case Relay():
                self._relay(event)

    # What takes longer.

    async def _list(self, response: Response) -> None:
        for piece in response.encode():
            self._write(piece)
            await self._drain()

    async def _look_up(self, lookup: Lookup) -> None:
        try:
            shown = Disproof("SCRAM", lookup.identity, self._address)  # until its proof comes
            with attempting(shown, self._loop.time()):
                secrets = await login.look_up(
                    self._service.passdb, lookup, separator=self._service.separator
                )
        except RestanteError as error:
            fields = {"ip": self._address, "user": lookup.identity, "proto": self._proto}
            self._note_failure(error, fields)
            self._say(self._session.failed(error))
        else:
            self._say(self._session.found(secrets))

    def _relay(self, told: Relay) -> None:
        """Limits, permission and the log are about the client from here on."""
        if told.address:
            if not self._slot.move(told.address):
                self._say(self._session.failed(TooBusy("too many connections, try again later")))
                self._close("too-many")
                return
            self._origin = replace(self._origin, address=told.address, proxy=self._address)
            self._address = told.address
        if told.tls:
            self._origin = replace(self._origin, tls=told.tls)
        may = self._service.may_login_in_clear(self._address)
        self._say(self._session.relayed(told.tls, may_login_in_clear=may))

    async def _log_in(self, shown: Shown) -> None:
        fields: dict[str, Any] = {
            "ip": self._address,
            "user": shown.identity,
            "proto": self._proto,
            "tls": self._tls_version(),
            "mech": shown.mechanism,
        }
        if self._origin.proxy:
            fields["proxy"] = self._origin.proxy
        try:
            account = await self._judge(replace(shown, address=self._address))
            if self._is_lost:
                return
            if self._service.before_opening is not None:
                await self._service.before_opening(account.maildrop)
                if self._is_lost:
                    return
            terms = self._service.policy.terms_of(account)
            opening = views.opening(self._service.store, account)
            self._maildrop = await opening.__aenter__()
            if terms.login_delay:
                await self._pace(terms.login_delay, opening)
        except RestanteError as error:
            self._note_failure(error, fields)
            await self._refuse(error)
            return
        self._opened, self._account, timeouts = opening, account, self._service.timeouts
        if offers(self._maildrop, RawReading):
            self._raw = self._maildrop
        self._note("login ok", **fields, app=account.credential)
        self._say(
            self._session.opened(
                self._maildrop.listing, is_read_only=account.is_read_only, terms=terms
            )
        )
        if self._timer is None or self._timer.when() > self._loop.time() + timeouts.idle:
            self._set_timer(timeouts.idle)  # otherwise it finds out itself what is due

    def _note_failure(self, error: RestanteError, fields: dict[str, Any]) -> None:
        """Only a refusal may have been a guess: for the other, nobody bans an address."""
        reason = error.reason if isinstance(error, _REASONED) else str(error)
        if isinstance(error, AuthenticationFailed):
            self._note("login refused", logging.WARNING, **fields, reason=reason)
        else:
            self._note("login impossible", logging.WARNING, **fields, reason=reason)

    async def _refuse(self, error: RestanteError) -> None:
        """When its penalty is over; where slots are scarce at once, and the slot is cleared."""
        if self._is_lost:
            return
        wait = self._penalty - self._loop.time()
        is_cut = wait > 0 and self._service.is_crowded()
        if wait > 0 and not is_cut:
            await asyncio.sleep(wait)
        self._say(self._session.failed(error))
        if is_cut:
            self._flush()
            self._close("crowded")

    async def _judge(self, shown: Shown) -> Account:
        """Whose account it is, if it may be opened now.  Who hangs up has guessed all the same.

        Raises:
            AuthenticationFailed: no; it is answered when ``_penalty`` is over.
            TemporaryFailure: it cannot be told now.
        """
        service, began, guard = self._service, self._loop.time(), self._service.guard
        self._is_judged = True
        try:
            with attempting(shown, began):
                # Guesses are counted under the user who is meant, whatever alias was typed.
                shown, view = await login.resolve(service.passdb, shown, service.separator)
                account = await login.verify(service.passdb, shown, view, service.passwords)
            if reason := account.refusal(
                self._address, is_secure=self._session.is_secure, mechanism=shown.mechanism
            ):
                raise AuthenticationFailed(reason)
            if guard is not None:
                guard.accepted(shown, account)
            return account
        except AuthenticationFailed:
            if guard is not None:
                self._penalty = began + guard.refused(shown)
            raise
        finally:
            self._is_judged = False
            if self._is_lost:
                self._release_slot()

    def _release_slot(self) -> None:
        """Hanging up shortens no penalty: the slot stays taken until it is over."""
        wait = self._penalty - self._loop.time()
        if self._is_judged:
            return  # it is not over
        if wait > 0:
            self._slot.release_total()
            self._loop.call_later(wait, self._slot.release)
        else:
            self._slot.release()

    async def _pace(self, delay: float, opening: AbstractAsyncContextManager[Maildrop]) -> None:
        """
        Raises:
            LoginDelayed: too soon after the last login; the lock is free again.
        """
        wait = 0.0
        try:
            if offers(self._maildrop, Paced):
                wait = await self._maildrop.pace(delay)
            if wait:
                raise LoginDelayed(wait)
        except BaseException:
            await opening.__aexit__(None, None, None)
            raise

    def _at_hand(self, action: Retrieve) -> bytes | None:
        """The message as it goes out, where it is to be had without waiting."""
        size = action.entry.size
        if self._raw is None or size > retrieval.SMALL or action.lines is not None:
            return None
        if self._session.wants_surrogates:
            return None
        raw = self._raw.read_cached(action.entry)
        if raw is None:
            return None
        message = retrieval.at_hand(raw, size)
        if message is not None and not raw.has_crlf and len(raw.octets) == size:
            is_ready = len(message) == size + len(TERMINATION)
            self._raw.learn(action.entry, is_wire_ready=is_ready)
        return message

    async def _retrieve(self, action: Retrieve) -> None:
        """The message; the termination octet only if every announced octet was there."""
        may_lie = action.lines is None and not self._session.wants_surrogates
        raw = self._raw.open_raw(action.entry) if self._raw and may_lie else None
        with ExitStack() as opened:
            if raw is not None:
                opened.callback(os.close, raw.descriptor)
                if not raw.has_crlf:
                    opened.close()  # only its size is of use
            match retrieval.outlet(self._transport):
                case retrieval.Clear() as clear if raw is not None and raw.is_wire_ready:
                    is_whole = await self._send_file(action, raw, clear)
                case _:
                    is_whole = await self._send_pieces(action, raw)
        if is_whole:
            self._has_retrieved(None if action.lines is not None else action.entry)

    async def _send_pieces(self, action: Retrieve, raw: RawMessage | None) -> bool:
        stuffer = Stuffer()
        top = None if action.lines is None else Top(action.lines)
        left = size = action.entry.size
        added = 0  # octets that byte-stuffing did
        head = action.response.head()
        as_it_lies = raw is not None and raw.has_crlf
        source = retrieval.pieces(raw) if raw and as_it_lies else self._maildrop.read(action.entry)
        if self._session.wants_surrogates:
            source = retrieval.downgraded(source)
        try:
            async with aclosing(source) as pieces:
                async for piece in pieces:
                    left -= len(piece)
                    stuffed = piece
                    if raw is None or not raw.is_wire_ready:
                        stuffed = stuffer.feed(top.feed(piece) if top else piece)
                    added += len(stuffed) - len(piece)
                    self._write(head + stuffed)
                    head = piece = stuffed = b""  # thousands may wait here
                    if top and top.is_finished:
                        break
                    await self._drain()
        except RestanteError as error:
            self._tell_failed_read(action, error)
            if head:
                self._say(self._session.failed(error))
            else:
                self.abort("read-failed")
            return False
        if left and not (top and top.is_finished):
            self._tell_other_size(action, -left)
            return False
        self._write(head + stuffer.finish())
        if raw is not None and self._raw is not None and raw.size == size and not as_it_lies:
            self._raw.learn(action.entry, is_wire_ready=not added)
        return True

    async def _send_file(self, action: Retrieve, raw: RawMessage, clear: retrieval.Clear) -> bool:
        """As it lies; the kernel copies.  What it cannot copy now shows when it can again."""
        self._write(action.response.head())
        offset = 0
        self._transport.set_write_buffer_limits(high=0)  # so that we hear when it is empty
        try:
            while offset < raw.size:
                await self._drain(at_least=1)
                await retrieval.fetch(raw, offset)
                sent = clear.send_file(raw.descriptor, offset, raw.size - offset)
                if sent is None:
                    # Thousands of connections may wait here.
                    octets = await retrieval.read(raw, offset, retrieval.PAGE)
                    self._write(octets)
                    sent = len(octets)
                else:
                    self._written += sent
                if not sent:
                    self._tell_other_size(action, offset - raw.size)
                    return False
                offset += sent
        except RestanteError as error:
            self._tell_failed_read(action, error)
            self.abort("read-failed")
            return False
        except OSError:  # the client has gone, which the transport will hear too
            self.abort("dropped")
            return False
        finally:
            if not self._is_closing:
                self._transport.set_write_buffer_limits(high=WAITING)
        self._write(TERMINATION)
        return True

    def _has_retrieved(self, entry: Entry | None) -> None:
        if entry is not None:
            if len(self._retrieved) < _NAMED:
                self._retrieved.append(entry)
            self._retrieved_messages += 1
            self._retrieved_octets += entry.size
        self._session.retrieved()

    def _tell_failed_read(self, action: Retrieve, error: RestanteError) -> None:
        told = {"user": self.user, "number": action.number, "reason": str(error)}
        self._note("read failed", logging.WARNING, **told)

    def _tell_other_size(self, action: Retrieve, octets: int) -> None:
        told = {"user": self.user, "number": action.number, "octets": octets}
        self._note("size differs", logging.WARNING, **told)
        self.abort("size-differs")

    async def _update(self, entries: tuple[Entry, ...]) -> None:
        error: RestanteError | None = None
        end = "quit"
        try:
            if entries and self._service.brake:
                await self._brake(len(entries))
            left = await self._maildrop.remove(entries) if entries else ()
            if left:
                error = NotRemoved(len(left))
        except RestanteError as failure:
            error, left = failure, entries
            end = BRAKED if isinstance(failure, Braked) else end
        kept = {entry.unique_id for entry in left}
        self._removed = tuple(entry for entry in entries if entry.unique_id not in kept)
        self._quit = "clean" if error is None else BRAKED if end == BRAKED else "failed"
        await self._give_back(end)
        if error is not None:
            self._note(
                "update failed",
                logging.ERROR,
                user=self.user,
                left=len(left),
                reason=str(error),
            )
        self._say(self._session.failed(error) if error else self._session.updated())

    async def _brake(self, marked: int) -> None:
        """
        Raises:
            Braked: the credential is new here, and may not remove so many messages yet.
        """
        if self._account is None or not offers(self._maildrop, Journal):
            return
        past = await self._maildrop.past(self._account.credential)
        now = self._service.proven_time()
        began = [each.began_at for each in past if is_credible(each.began_at, now)]
        is_new = not began or now - min(began) < _NEW
        if is_new and marked + sum(len(each.removed) for each in past) > self._service.brake:
            told = {"user": self.user, "ip": self._address, "app": self._account.credential}
            self._note("deletion braked", logging.WARNING, **told, marked=marked)
            raise Braked(marked)

    def _secured(self, ssl_object: ssl.SSLObject) -> None:
        self._session.secured(tls.channel(ssl_object))

    def _say(self, event: Response | Challenge) -> None:
        if type(event) is Response and event.lines is None:
            self._write(event.head())
        else:
            for piece in event.encode():
                self._write(piece)
        if self._out_octets >= HIGH_WATER:
            self._flush()

    # Time and the end.

    def _deadline(self) -> float:
        timeouts = self._service.timeouts
        if self._session.state is State.AUTHORIZATION:
            return self._began + timeouts.login
        return self._last_command + timeouts.idle

    def _part(self) -> None:
        if self._opened is None:
            self._tell_end()
        else:
            self._service.spawn(self._depart())

    async def _depart(self) -> None:
        """Give the maildrop back.  Not later than the end of the connection, maybe earlier."""
        await self._give_back(self._end)
        self._tell_end()

    async def _give_back(self, end: str) -> None:
        opened, self._opened, self._raw = self._opened, None, None
        if opened is None:
            return
        try:
            try:
                if offers(self._maildrop, Journal):
                    await self._maildrop.record(self._record(end))
            finally:
                await opened.__aexit__(None, None, None)
        except Exception:  # what the client did is done, and the connection must end all the same
            self._log_bug()

    def _record(self, end: str) -> SessionRecord:
        now = time()
        return SessionRecord(
            began_at=now - (self._loop.time() - self._began),
            ended_at=now,
            address=self._address,
            tls=self._tls_version(),
            credential=self._account.credential if self._account else "",
            retrieved=self._retrieved,
            removed=self._removed,
            end=end,
            unnamed=self._retrieved_messages - len(self._retrieved),
        )

    def _tell_end(self) -> None:
        if not (self._is_lost and self._service.forget(self)):
            return
        if self._account is not None:
            self._note(
                "session end",
                user=self.user,
                retr=self._retrieved_messages,
                bytes=self._retrieved_octets,
                dele=len(self._removed),
                # What became of the deletions; how the TCP connection ended tells nothing of it.
                quit=self._quit or self._end,
                ms=round((self._loop.time() - self._began) * 1000),
            )
        elif self._session.cancelled:
            self._note(
                "login cancelled",
                ip=self._address,
                proto=self._proto,
                tls=self._tls_version(),
                mech=self._session.cancelled,
            )


def _is_short(lines: object) -> bool:
    """Lies ready, and fits into one write."""
    return isinstance(lines, bytes) and len(lines) <= HIGH_WATER
