"""Serve POP3: run a ``Session`` on each connection.

Standards: RFC 1939 §3 (autologout), RFC 2595 (STLS), RFC 8314.
Security: no stream classes are used, so octets that were received before TLS cannot be read after
the handshake.
Promises: the termination octet is never sent after a message that could not be read to its end.
The response to QUIT is sent only when the removal is durable and the lock has been released.
Limits: see ``connection``.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, replace
from time import time
from typing import Any, cast

from .. import tls
from ..addons import offers
from ..clock import is_credible
from ..errors import (
    AuthenticationFailed,
    BackendUnavailable,
    DeletionLimitExceeded,
    LoginDelayed,
    NotRemoved,
    RestanteError,
    TemporaryFailure,
    TooBusy,
)
from ..maildrop import (
    DELETION_LIMITED,
    Entry,
    Journal,
    Maildrop,
    OpensImmediately,
    Paced,
    Store,
)
from ..passdb import (
    Accounts,
    AnyCredentials,
    FailedProof,
    Generations,
    Network,
    Passdb,
    UserAccount,
    attempting,
    is_within,
)
from ..pop3.commands import VERBS
from ..pop3.grammar import Challenge, Repeated, Response
from ..pop3.session import Policy, Session
from ..pop3.state import Close, Event, Login, Retrieve, StartTLS, State, Update, Xclient
from ..sasl.exchange import Lookup
from ..series import MECHANISMS, cell, observe
from ..wire import TERMINATION
from . import login, retrieval, store_errors, views
from .admission import Slot
from .connection import DIRECT, BaseConnection, BaseService
from .output import HIGH_WATER
from .proxy import Origin
from .session_log import SessionLog

_log = logging.getLogger("restante.pop3")
_WITH_REASON = (AuthenticationFailed, BackendUnavailable)  # their ``reason`` is only for the log
_REVIEW_TIMEOUT = 1.0  # seconds; maximum duration of a review, and the interval between reviews
# Seconds for which a credential is new: a day, so that the user has time to notice misuse.
_NEW_FOR = 86_400
# Metrics.  Times below a millisecond are not observed; see ``series.Kind``.
_SENT, _SENT_BYTES = cell("messages_sent_total"), cell("sent_bytes_total")
_DELETED, _BRAKED = cell("messages_deleted_total"), cell("deletions_braked_total")
_READ_ERRORS = cell("store_errors_total", "read")
_OBSERVED_FROM = 0.001  # seconds
_LOGINS = {
    result: {name.upper(): cell("logins_total", result, name) for name in MECHANISMS}
    for result in ("ok", "refused", "failed")
}
_LOGIN_SECONDS = {result: cell("login_seconds", result) for result in _LOGINS}
_COMMAND_SECONDS: dict[type, int] = {
    kind: cell("command_seconds", name)
    for kind, name in (
        (Retrieve, "retr"),
        (Response, "list"),
        (Update, "quit"),
        (StartTLS, "other"),
        (Xclient, "other"),
    )
}


@dataclass(slots=True)
class Service(BaseService):
    """The state that the connections of one POP3 server share."""

    log: logging.Logger = field(default=_log, kw_only=True)
    store: Store
    passdb: Passdb
    passwords: Passdb | None = None
    """Used instead of ``passdb`` for passwords, for example a cache in front of it."""
    guard: login.Guard | None = None
    """Records logins and delays responses to failed logins; None for no delays."""
    time_stamp: Callable[[], str] | None = None
    """Returns a new time stamp for each greeting; None disables APOP (RFC 1939 §7)."""
    before_opening: Callable[[str], Awaitable[None]] | None = None
    """Called with the maildrop's name after login and before it is opened.  Must not raise."""
    is_crowded: Callable[[], bool] = lambda: False
    """Returns whether connection slots are scarce.  In that case, a failed login is answered
    immediately and the client is disconnected."""
    policy: Policy = field(default_factory=Policy)
    allow_plaintext_from: tuple[Network, ...] = ()
    """Networks from which a login without TLS is allowed."""
    xclient_from: tuple[Network, ...] = ()
    """Networks whose proxies may report the client's address (XCLIENT)."""
    folder_separator: str = "+"
    """Separator between user and folder in a login name; empty to disable folders in names."""
    deletions_by_new_credential: int = 0
    """Number of messages that a credential may remove on its first day; 0 for no limit."""
    proven_time: Callable[[], float] = time
    """Returns the latest time that is known to have passed, even if the clock has jumped."""
    _reviewed: dict[str, bytes | None] = field(default_factory=dict)
    """The generation of each user with a session, as of the last look-up by ``end_disabled``."""

    def connection(self, address: str, slot: Slot, origin: Origin = DIRECT) -> Connection:
        """Return the protocol object for a connection; ``origin`` has the data from a proxy."""
        return Connection(self, address, slot, origin)

    def allows_plaintext(self, address: str) -> bool:
        """Return whether a client at this address may log in without TLS."""
        return is_within(address, self.allow_plaintext_from)

    async def end_disabled(self) -> None:
        """End the sessions of users who have been disabled or removed since they logged in.

        Must be called every second.  A user is looked up only by the first call after the login,
        and when a back end with generations reports a change.
        """
        passdb, sessions = self.passdb, self._sessions_by_user()
        self._reviewed = {user: seen for user, seen in self._reviewed.items() if user in sessions}
        if not (offers(passdb, Generations) and offers(passdb, Accounts)):
            return
        with suppress(TimeoutError):  # if a back end hangs, users of other back ends must not wait
            async with asyncio.timeout(_REVIEW_TIMEOUT), asyncio.TaskGroup() as reviews:
                for user, connections in sessions.items():
                    with suppress(TemporaryFailure):  # the next review tries again
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
            # A user who is unknown to all back ends may have logged in with a token.
            may_continue = account.is_enabled if account else connection.used_token
            if not (may_continue or connection.is_updating):
                connection.abort("disabled")

    def _sessions_by_user(self) -> dict[str, list[Connection]]:
        sessions: dict[str, list[Connection]] = {}
        for connection in self.connections:
            if isinstance(connection, Connection) and (user := connection.user):
                sessions.setdefault(user, []).append(connection)
        return sessions


class Connection(BaseConnection[Event]):
    """The connection of one POP3 client."""

    __slots__ = (
        "_account",
        "_is_authenticating",
        "_is_releasing",
        "_maildrop",
        "_mechanism",
        "_opening",
        "_penalty_end",
        "_reader",
        "_session_log",
    )

    _service: Service
    _session: Session

    def __init__(self, service: Service, address: str, slot: Slot, origin: Origin = DIRECT) -> None:
        super().__init__(service, address, slot, origin)
        self._maildrop: Maildrop
        self._reader: retrieval.Reader
        # Keeps the maildrop open and locked; None if it is not open.
        self._opening: AbstractAsyncContextManager[Maildrop] | None = None
        self._is_authenticating = self._is_releasing = False
        # Time of the response to a failed login.  The slot is not released before then.
        self._penalty_end = 0.0
        self._account: UserAccount | None = None
        self._mechanism = ""  # mechanism of the last login
        self._session_log = SessionLog(self._began)

    def _open_session(self, ssl_object: ssl.SSLObject | None) -> bytes:
        tls_at_proxy = self._origin.tls
        make_time_stamp = self._service.time_stamp
        self._proto = "pop3" if ssl_object is None else "pop3s"
        self._session = Session(
            VERBS,
            self._service.policy,
            is_secure=tls_at_proxy != "no" if tls_at_proxy else ssl_object is not None,
            may_start_tls=self._service.tls is not None and not tls_at_proxy,
            allow_plaintext=self._service.allows_plaintext(self._address),
            accepts_xclient=is_within(self._address, self._service.xclient_from),
            channel=tls.channel(ssl_object),
            time_stamp=make_time_stamp() if make_time_stamp is not None else "",
        )
        return self._session.greeting().head()

    def _is_interruptible(self) -> bool:
        """Return False during an UPDATE or a password check.

        Both must finish: messages must be removed completely, and a wrong guess must be counted.
        """
        return not (self.is_updating or self._is_authenticating)

    def abort(self, reason: str, *, is_forced: bool = False) -> None:
        """Abort the connection.  If ``is_forced``, also cancel a password check."""
        super().abort(reason)
        if is_forced and self._is_authenticating:
            self._cancel_work()

    @property
    def user(self) -> str:
        """The user who has logged in; empty before the login."""
        return self._account.user if self._account else ""

    @property
    def used_token(self) -> bool:
        """Whether the user has logged in with an OAuth 2 token."""
        return self._account is not None and self._account.credential == "token"

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "mech": self._mechanism,
            "app": self._account.credential if self._account else "",
            "state": self._session.state.name.lower(),
            "messages": len(self._maildrop.listing) if self._account else 0,
        }

    def end(self) -> bool:
        """End the session without removing messages (RFC 1939 §3).

        Returns False if QUIT has begun to remove messages, because a removal is always completed.
        """
        if self.is_updating:
            return False
        self.abort("ended")
        return True

    @property
    def is_updating(self) -> bool:
        """Whether QUIT has begun to remove messages.  A removal is always completed."""
        return self._session.state is State.UPDATE

    def _respond(self, event: Event) -> bool:
        match event:
            case Retrieve():
                return self._send_cached(event)
            case Response(lines=lines) if lines is None or _is_short(lines):
                self._send(event)
            case Challenge() | Repeated():
                self._send(event)
            case Close(reason):
                self._end_session(reason)
            case StartTLS():
                self._transport.pause_reading()  # the next octets belong to the TLS handshake
                return False
            case _:
                return False
        return True

    def _answer_internal_error(self, event: Event | None) -> None:
        """Send [SYS/TEMP] (RFC 3206 §4), and end the connection to release the lock.

        If the error occurred while a message was being read, the session continues.
        """
        self._send(self._session.failed(TemporaryFailure("internal error, try again later")))
        if not isinstance(event, Retrieve):
            self.close("bug")

    async def _perform(self, event: Event) -> None:
        await self._act(event)
        seconds = self._loop.time() - self._last_command
        if seconds >= _OBSERVED_FROM and type(event) in _COMMAND_SECONDS:
            observe(self._service.counts, _COMMAND_SECONDS[type(event)], seconds)

    async def _act(self, event: Event) -> None:
        if not isinstance(event, Login | Lookup | Update):  # these events rarely have to wait
            await self._enter_task()
        match event:
            case Response():
                await self._list(event)
            case Login(credentials):
                self._slot.protect()  # also while the response is delayed; see ``admission``
                await self._log_in(credentials)
                if self._account is None and not self._is_closing:
                    self._slot.make_evictable(self._evict)
            case Lookup():
                await self._look_up(event)
            case Retrieve():
                await self._retrieve(event)
            case Update(entries):
                await self._update(entries)
            case StartTLS(response):
                await self._start_tls(response.head())
                self._count(is_ok=not self._is_closing)
            case Xclient():
                self._change_client(event)

    def _count(self, *, is_ok: bool, number: int = 1) -> None:
        """Count commands that were answered."""
        self._service.counts[self._session.cell + (not is_ok)] += number

    # Events that require waiting.

    async def _list(self, response: Response) -> None:
        for piece in response.encode():
            self._output.write(piece)
            await self._output.flush_and_wait()
        self._count(is_ok=True)

    async def _look_up(self, lookup: Lookup) -> None:
        passdb, separator = self._service.passdb, self._service.folder_separator
        try:
            secrets = login.look_up_now(passdb, lookup, separator)
            if secrets is None:
                await self._enter_task()
                # The client has not sent its proof yet.
                credentials = FailedProof("SCRAM", lookup.identity, self._address)
                with attempting(credentials, self._loop.time()):
                    secrets = await login.look_up(passdb, lookup, separator=separator)
        except RestanteError as error:
            fields = {"ip": self._address, "user": lookup.identity, "proto": self._proto}
            self._mechanism = self._session.mechanism
            self._log_failed_login(error, fields)
            self._send(self._session.failed(error))
        else:
            self._send(self._session.looked_up(secrets))

    def _change_client(self, reported: Xclient) -> None:
        """Continue as a connection of the client that the proxy has reported."""
        if reported.address:
            if not self._slot.move(reported.address):
                self._send(self._session.failed(TooBusy("too many connections, try again later")))
                self.close("too-many")
                return
            self._origin = replace(self._origin, address=reported.address, proxy=self._address)
            self._address = reported.address
        if reported.tls:
            self._origin = replace(self._origin, tls=reported.tls)
        allow_plaintext = self._service.allows_plaintext(self._address)
        self._send(self._session.client_changed(reported.tls, allow_plaintext=allow_plaintext))

    async def _log_in(self, credentials: AnyCredentials) -> None:
        fields = self._login_fields(credentials)
        self._mechanism = credentials.mechanism
        try:
            account = await self._authenticate(replace(credentials, address=self._address))
            if self._is_lost:
                return
            if self._service.before_opening is not None:
                await self._enter_task()
                await self._service.before_opening(account.maildrop)
                if self._is_lost:
                    return
            terms = self._service.policy.terms_of(account)
            await self._prepare_store()
            opening = views.opening(self._service.store, account)
            self._maildrop = await opening.__aenter__()
            if terms.login_delay:
                await self._pace(terms.login_delay, opening)
        except RestanteError as error:
            self._log_failed_login(error, fields)
            await self._refuse(error)
            return
        self._opening, self._account, timeouts = opening, account, self._service.timeouts
        self._reader = retrieval.Reader(self._maildrop)
        self._log_event("login ok", **fields, app=account.credential)
        self._count_login("ok")
        self._send(
            self._session.opened(
                self._maildrop.listing, is_read_only=account.is_read_only, terms=terms
            )
        )
        if self._timer is None or self._timer.when() > self._loop.time() + timeouts.idle:
            self._set_timer(timeouts.idle)  # a timer that fires earlier sets the next timer

    async def _prepare_store(self) -> None:
        """Enter a task if the store may need one."""
        if not offers(self._service.store, OpensImmediately):
            await self._enter_task()

    def _login_fields(self, credentials: AnyCredentials) -> dict[str, Any]:
        """Return the log fields of a login, whether it succeeds or not."""
        fields: dict[str, Any] = {
            "ip": self._address,
            "user": credentials.identity,
            "proto": self._proto,
            "tls": self._tls_version(),
            "mech": credentials.mechanism,
        }
        return fields | {"proxy": self._origin.proxy} if self._origin.proxy else fields

    def _log_failed_login(self, error: RestanteError, fields: dict[str, Any]) -> None:
        """Log the reason why a login failed.

        A refused login may be a guess.  Other failures are logged as a different event, because
        programs that read the log must not ban clients for them.
        """
        reason = error.reason if isinstance(error, _WITH_REASON) else str(error)
        if isinstance(error, AuthenticationFailed):
            self._log_event("login refused", logging.WARNING, **fields, reason=reason)
            self._count_login("refused")
        else:
            self._log_event("login impossible", logging.WARNING, **fields, reason=reason)
            self._count_login("failed")

    def _count_login(self, result: str) -> None:
        counts, cells = self._service.counts, _LOGINS[result]
        counts[cells.get(self._mechanism, cells["OTHER"])] += 1
        seconds = self._loop.time() - self._last_command
        if seconds >= _OBSERVED_FROM:
            observe(counts, _LOGIN_SECONDS[result], seconds)

    async def _refuse(self, error: RestanteError) -> None:
        """Answer a failed login at the end of the penalty.

        If slots are scarce, answer immediately and disconnect.
        """
        if self._is_lost:
            return
        wait = self._penalty_end - self._loop.time()
        must_disconnect = wait > 0 and self._service.is_crowded()
        if wait > 0 and not must_disconnect:
            await asyncio.sleep(wait)
        self._send(self._session.failed(error))
        if must_disconnect:
            self.close("crowded")

    async def _authenticate(self, credentials: AnyCredentials) -> UserAccount:
        """Check the credentials and whether the user may log in now; return the user's account.

        A wrong guess counts even if the client disconnects.

        Raises:
            AuthenticationFailed: the login is refused; the response is due at ``_penalty_end``.
            TemporaryFailure: a back end cannot answer now.
        """
        service, began, guard = self._service, self._loop.time(), self._service.guard
        self._is_authenticating = True
        try:
            cached = login.verify_now(
                service.passdb, credentials, service.folder_separator, service.passwords
            )
            if cached is not None:
                account = cached
            else:
                await self._enter_task()
                with attempting(credentials, began):
                    # Guesses are counted for the user, whichever alias the client uses.
                    credentials, view = await login.resolve(
                        service.passdb, credentials, service.folder_separator
                    )
                    account = await login.verify(
                        service.passdb, credentials, view, service.passwords
                    )
            if reason := account.refusal(
                self._address, is_secure=self._session.is_secure, mechanism=credentials.mechanism
            ):
                raise AuthenticationFailed(reason)
            if guard is not None:
                guard.record_success(credentials, account, is_cached=cached is not None)
            return account
        except AuthenticationFailed:
            if guard is not None:
                self._penalty_end = began + guard.record_failure(credentials)
            raise
        finally:
            self._is_authenticating = False
            if self._is_lost:
                self._release_slot()

    def _release_slot(self) -> None:
        """Release the slot at the end of the penalty, which disconnecting must not shorten."""
        wait = self._penalty_end - self._loop.time()
        if self._is_authenticating:
            return  # ``_authenticate`` will call this method again
        if wait > 0:
            self._slot.release_total()
            self._loop.call_later(wait, self._slot.release)
        else:
            self._slot.release()

    async def _pace(self, delay: float, opening: AbstractAsyncContextManager[Maildrop]) -> None:
        """Enforce the minimum delay between two logins.

        Raises:
            LoginDelayed: the last login was too recent; the maildrop has been closed.
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

    def _send_cached(self, action: Retrieve) -> bool:
        """Send the first messages of a series of RETR or TOP that can be read without waiting.

        Returns False if there is no such message.
        """
        if self._session.needs_surrogates:
            return False
        texts = self._reader.cached_texts(action)
        if not texts:
            return False
        for head, text in zip(action.heads, texts, strict=False):
            self._output.write(head, text, TERMINATION)
        self._retrieved(action, len(texts))
        return True

    async def _retrieve(self, action: Retrieve) -> None:
        downgrades = self._session.needs_surrogates
        fields = {"user": self.user, "number": action.numbers[0]}
        try:
            await self._reader.send(action, self._output, downgrades=downgrades)
        except RestanteError as error:
            self._log_event("read failed", logging.WARNING, **fields, reason=str(error))
            store_errors.count(self._service.counts, error, "read")
            self._send(self._session.failed(error))
        except retrieval.Incomplete as error:
            match error:
                case retrieval.ReadFailed():
                    self._log_event("read failed", logging.WARNING, **fields, reason=str(error))
                case retrieval.SizeDiffers(octets=octets):
                    self._log_event("size differs", logging.WARNING, **fields, octets=octets)
            self._service.counts[_READ_ERRORS] += error.reason != retrieval.Incomplete.reason
            self._count(is_ok=False)
            self.abort(error.reason)
        else:
            self._retrieved(action, 1)

    def _retrieved(self, action: Retrieve, count: int) -> None:
        counts = self._service.counts
        counts[self._session.cell] += count
        if action.lines is None:
            counts[_SENT] += count
            counts[_SENT_BYTES] += self._session_log.add(action.entries[:count])
        self._session.retrieved(count)

    async def _update(self, entries: Sequence[Entry]) -> None:
        error: RestanteError | None = None
        end = "quit"
        await self._prepare_store()
        try:
            if entries and self._service.deletions_by_new_credential:
                await self._check_deletion_limit(len(entries))
            not_removed = await self._maildrop.remove(entries) if entries else ()
            if not_removed:
                error = NotRemoved(len(not_removed))
        except RestanteError as failure:
            error, not_removed = failure, entries
            end = DELETION_LIMITED if isinstance(failure, DeletionLimitExceeded) else end
        session_log = self._session_log
        session_log.removed = entries
        if not_removed:
            remaining = {entry.unique_id for entry in not_removed}
            session_log.removed = [each for each in entries if each.unique_id not in remaining]
        self._service.counts[_DELETED] += len(session_log.removed)
        failed = DELETION_LIMITED if end == DELETION_LIMITED else "failed"
        session_log.update = "clean" if error is None else failed
        await self._close_maildrop(end)
        if error is not None:
            store_errors.count(self._service.counts, error, "write")
            self._log_event(
                "update failed",
                logging.ERROR,
                user=self.user,
                left=len(not_removed),
                reason=str(error),
            )
        self._send(self._session.failed(error) if error else self._session.updated())

    async def _check_deletion_limit(self, marked: int) -> None:
        """Enforce the limit on deletions by new credentials.

        Raises:
            DeletionLimitExceeded: the credential is too new to remove this many messages.
        """
        if self._account is None or not offers(self._maildrop, Journal):
            return
        past_sessions = await self._maildrop.past(self._account.credential)
        now = self._service.proven_time()
        began = [each.began_at for each in past_sessions if is_credible(each.began_at, now)]
        is_new = not began or now - min(began) < _NEW_FOR
        removed = sum(len(each.removed) for each in past_sessions)
        if is_new and removed + marked > self._service.deletions_by_new_credential:
            fields = {"user": self.user, "ip": self._address, "app": self._account.credential}
            self._log_event("deletion braked", logging.WARNING, **fields, marked=marked)
            self._service.counts[_BRAKED] += 1
            raise DeletionLimitExceeded(marked)

    def _on_tls_started(self, ssl_object: ssl.SSLObject) -> None:
        self._session.secured(tls.channel(ssl_object))

    def _send(self, event: Response | Repeated | Challenge) -> None:
        if type(event) is Response:
            self._service.counts[self._session.cell + (not event.is_ok)] += 1
            if event.lines is None:
                self._output.write(event.head())
                return
        elif type(event) is Repeated:
            self._count(is_ok=event.response.is_ok, number=event.commands)
        for piece in event.encode():
            self._output.write(piece)

    # Closing the session.

    def _deadline(self) -> float:
        timeouts = self._service.timeouts
        if self._session.state is State.AUTHORIZATION:
            return self._began + timeouts.login
        return self._last_command + timeouts.idle

    def _release(self) -> None:
        if self._is_releasing:
            return  # ``_close_and_finish`` will call ``_finish``
        if self._opening is None:
            self._finish()
        else:
            self._is_releasing = True
            self._service.spawn(self._close_and_finish())

    async def _close_and_finish(self) -> None:
        await self._close_maildrop(self._end)
        self._is_releasing = False
        self._finish()

    async def _close_maildrop(self, end: str) -> None:
        """Record the session in the journal, and close the maildrop unless it is closed already."""
        opening, self._opening = self._opening, None
        if opening is None:
            return
        try:
            try:
                if offers(self._maildrop, Journal):
                    record = self._session_log.record(
                        address=self._address,
                        tls=self._tls_version(),
                        credential=self._account.credential if self._account else "",
                        end=end,
                    )
                    await self._maildrop.record(record)
            finally:
                await opening.__aexit__(None, None, None)
        except Exception:  # the removals are already durable, and the connection must end
            self._log_bug()

    def _finish(self) -> None:
        if not (self._is_lost and self._service.discard(self)):
            return
        if self._account is not None:
            self._log_event(
                "session end",
                user=self.user,
                retr=self._session_log.messages,
                bytes=self._session_log.octets,
                dele=len(self._session_log.removed),
                # After QUIT, log the result of the deletions instead of the end of the connection.
                quit=self._session_log.update or self._end,
                ms=round(self._session_log.seconds * 1000),
            )
        elif self._session.cancelled_mechanism:
            self._log_event(
                "login cancelled",
                ip=self._address,
                proto=self._proto,
                tls=self._tls_version(),
                mech=self._session.cancelled_mechanism,
            )


def _is_short(lines: object) -> bool:
    """Return whether a response is pre-rendered and small enough for one write."""
    return isinstance(lines, bytes) and len(lines) <= HIGH_WATER
