"""Collect one account: store each new message exactly once, and delete what the policy allows.

Each message goes through these steps: intend → store → took → removing → DELE → QUIT → gone.  The
ledger's records are on disk before the next step begins.  A message is deleted on its server only
after ``took``, and only if ``plan.prove`` has confirmed its identity in this session.  QUIT carries
out the deletions.

After a crash, the next run repeats only messages that were recorded as intended but not as
collected.
If the destination identifies messages by name, as a Maildir does, storing a message again has no
effect, so there is exactly one copy.  Other destinations may get a second copy, which ``in_doubt``
counts.

Security: the server is not trusted; no text from the server becomes a path or an SQL statement.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from ..addons import offers
from ..client.asynchronous import Client
from ..errors import (
    CommandFailed,
    ConfigurationError,
    ConnectionLost,
    DeadlineExceeded,
    LoginFailed,
    PermanentFailure,
    QuotaExceeded,
    TemporaryFailure,
)
from ..pop3.listing import Message
from ..threads import in_thread
from ..words import counted
from .account_ledger import Stored
from .accounts import Accounts, Entry, Mailbox
from .deletions import Deletions, Reader, quit_removes_retrieved
from .destinations import Destination, Presence, Tracing, Verifying
from .elapsed import Elapsed
from .fetching import Fetching, Usage
from .known import Known
from .ledger import Ledger
from .outcome import Outcome, Progress
from .plan import (
    Allowance,
    CheckHeader,
    Compare,
    Due,
    Fetch,
    Policy,
    Postpone,
    Proof,
    Seen,
    Skip,
    Step,
    Stub,
    Used,
    aside_key,
    compare,
    is_due,
    is_too_large,
    lists_hardly_any,
    looks_moved,
    newest_of,
    plan,
    prove,
    short_name,
    stub_key,
    unique_ids,
    why_due,
)
from .run import Run

__all__ = [
    "Account",
    "LeftWithoutQuit",
    "LoginTooSoon",
    "LooksMoved",
    "Outcome",
    "Progress",
    "collect",
]

_SAMPLE_SIZE = 100  # number of new messages whose headers are compared with the ledger
_MIN_DIGESTS = 20  # number of these headers that must have a digest
_DAY = 86_400.0  # seconds for which deletions are limited for a new account or a changed rule

_log = logging.getLogger(__name__)


class LooksMoved(PermanentFailure):
    """Nearly every message looks new; the user must decide whether to fetch them again."""

    def __init__(self, new: int, listed: int) -> None:
        super().__init__(
            f"{new} of {listed} messages look new, and hardly any collected message is listed; if "
            "the provider moved the mailbox, use --again dedupe, or --again fetch to download all "
            "of them again"
        )


class LoginTooSoon(TemporaryFailure):
    """The server or the budget requires more time between two logins (RFC 2449 §6.5)."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the next login is allowed in {seconds:.0f} s")
        self.seconds = seconds


class LeftWithoutQuit(TemporaryFailure):
    """The session ended without QUIT, at which the server may remove messages not stored here."""

    def __init__(self, unstored: int) -> None:
        super().__init__(
            "nothing was deleted on the server in this session: at QUIT it may remove all messages "
            f"that it sent (EXPIRE 0), including {counted(unstored, 'message')} not stored here"
        )


@dataclass(frozen=True, slots=True)
class Account:
    """An account on another server from which mail is collected."""

    name: str
    connect: Callable[[], AbstractAsyncContextManager[Client]]
    """Logs in and opens a session, which ends with QUIT unless the context raises an error."""
    policy: Policy = field(default_factory=Policy)
    mailbox: Mailbox | None = None
    """Identifies the account by its address, so that it can be renamed.  None if the account is
    never renamed."""


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
    run: Run | None = None,
) -> Outcome:
    """Run one session with the server and return its outcome.

    ``outcome`` is filled in even if the session fails.  Sessions that follow each other without a
    pause must share one ``run``.  If ``run`` is None, the session is a run of its own.

    ``again`` decides what happens when nearly every message looks new: ``stop``; ``fetch`` and
    store all of them; or ``dedupe``, which fetches all of them and stores only those that differ
    from every collected message.  ``adopt_present`` is for a ledger without earlier sessions:
    messages that the destination already contains are recorded as collected.

    Raises:
        AccountBusy, LoginTooSoon, LoginWithheld: nothing was done.
        ConfigurationError: the policy requires an ability that this destination lacks.
        LooksMoved: nothing was fetched or deleted.
        LeftWithoutQuit: nothing was deleted, but another session of this ``run`` can delete the
            messages that are due.
        ClientError, OSError: stored messages are safe and recorded; nothing else was deleted.
    """
    check_policy(account.policy, destination)
    outcome = Outcome() if outcome is None else outcome
    account_ledger = ledger.of(account.name)
    with account_ledger.alone():
        wall, budget = clock(), account.policy.budget
        if (wait := account_ledger.may_begin(wall, budget.logins) - wall) > 0:
            raise LoginTooSoon(wait)
        account_ledger.withhold(wall)
        now = Elapsed(ledger.now(wall), clock)
        entry = Accounts(ledger).enter(account.mailbox or Mailbox(account.name), now())
        account_ledger.record_unanswered()
        if entry.renamed_from:
            outcome.notes.append(
                f"the account was renamed from {entry.renamed_from}; "
                "its record of collected messages was kept"
            )
        used = account_ledger.used_in_a_day(wall)
        usage = Usage(account_ledger, account_ledger.record_attempt(wall), clock)
        run = run or Run()
        session = _Session(account, ledger, destination, entry, usage, outcome, progress, now, run)
        await session.run(clock, again, used, dry_run=dry_run, adopt_present=adopt_present)
        account_ledger.record_success(clock())
        return outcome


def check_policy(policy: Policy, destination: Destination) -> None:
    """Check that the destination has the abilities that the policy requires.

    Raises:
        ConfigurationError: the destination lacks a required ability.
    """
    if policy.verified and not offers(destination, Verifying):
        raise ConfigurationError(
            'keep: "until-verified" requires a destination whose copies can be read again'
        )
    if policy.until_deleted and not offers(destination, Tracing):
        raise ConfigurationError(
            'keep: "until-deleted" requires a destination that records which messages were deleted'
        )


class _Session:
    """The steps of one session and their results."""

    _reader: Reader  # cannot delete messages; only ``_deletions`` can
    _deletions: Deletions
    _fetching: Fetching

    def __init__(
        self,
        account: Account,
        ledger: Ledger,
        destination: Destination,
        entry: Entry,
        usage: Usage,
        outcome: Outcome,
        progress: Progress,
        now: Callable[[], float],
        run: Run,
    ) -> None:
        """``now`` is the ledger's clock."""
        self._account, self._name, self._policy = account, account.name, account.policy
        self._ledger, self._accounts = ledger.of(account.name), Accounts(ledger)
        self._destination = destination
        self._entry = entry
        self._usage, self._outcome, self._progress = usage, outcome, progress
        self._now, self._this_run = now, run
        self._known = Known(self._ledger, entry.label)
        self._is_logged_in = False
        self._is_done = False  # whether every step before QUIT is done
        self._limited_until = entry.limited_until
        self._newest: frozenset[int] = frozenset()
        self._reasons: dict[str, str] = {}  # reasons for deletion, by key
        self._proofs: list[Proof] = []
        self._presence: list[tuple[str, Presence]] = []  # changes at the destination, by key

    async def run(
        self,
        clock: Callable[[], float],
        again: str,
        used: Used,
        *,
        dry_run: bool,
        adopt_present: bool,
    ) -> None:
        """Run the session from the login to the response to QUIT."""
        try:
            async with self._account.connect() as client:
                delay = client.capabilities.login_delay or 0
                self._ledger.record_login(clock(), delay)
                self._prepare(client)
                await self._run_steps(again, used, dry_run=dry_run, adopt_present=adopt_present)
        except LoginFailed as error:
            if not error.retry:
                self._ledger.record_refusal(clock())
            raise
        except CommandFailed as error:
            if not self._is_logged_in or error.command not in ("DELE", "QUIT"):
                raise
            self._outcome.refused.append(f"{error.command}: {error.text}")
            if error.command == "QUIT":
                self._deletions.record_refusal(error.text)
            else:  # a refused DELE is raised only after QUIT has removed the other messages
                self._confirm(dry_run=dry_run)
        except ConnectionLost as error:
            if not self._is_logged_in or not self._had_finished(error):
                raise
        else:
            self._confirm(dry_run=dry_run)

    def _confirm(self, *, dry_run: bool) -> None:
        """Record that QUIT succeeded, so the marked messages are no longer on the server."""
        self._deletions.record_confirmation()
        self._outcome.deleted += len(self._deletions.marked)
        self._outcome.may_list_more = not dry_run and self._may_list_more()

    def _prepare(self, client: Client) -> None:
        """Prepare the steps that follow the login."""
        if self._policy.deletions is None and self._limited_until:
            self._limited_until = 0.0  # the operator removed the limit, so it does not come back
            self._accounts.remove_limit(self._name)
        if self._now() < self._entry.one_by_one_until:
            client.stop_pipelining()
        self._reader, self._deletions = client, Deletions(client, self._ledger)
        self._fetching = Fetching(
            client,
            self._ledger,
            self._known,
            self._destination,
            self._policy,
            self._usage,
            self._outcome,
            self._progress,
            self._now,
            self._this_run,
        )
        self._fetching.aside = self._ledger.aside()
        self._is_logged_in = True

    async def _run_steps(
        self, again: str, used: Used, *, dry_run: bool, adopt_present: bool
    ) -> None:
        listing = await self._reader.list()
        ids = unique_ids(listing)
        if adopt_present:
            self._adopt_present(listing, ids)
        large = [stub_key(ids[each.number]) for each in listing if self._may_be_stub(each, ids)]
        self._known.load([*ids.values(), *large])
        await self._check_listing(listing, ids, again, dry_run=dry_run)
        fetches, stubs = await self._decide(listing, used)
        if dry_run:
            self._count_planned(fetches, stubs)
        else:
            self._record_presence()
            self._change_rule()
            await self._fetch(fetches, stubs)
            await self._delete()
        self._is_done = True

    async def _decide(
        self, listing: Sequence[Message], used: Used
    ) -> tuple[list[Fetch | Compare], list[Stub]]:
        """Return the messages to fetch completely, and those to fetch as stubs.

        On return, ``_proofs`` contains the messages that can be deleted without being fetched.
        """
        policy, outcome = self._policy, self._outcome
        allowance = Allowance(policy, used, is_full=self._this_run.full is not None)
        aside = self._fetching.aside
        postponed = self._this_run.postponed(aside)
        self._newest = newest_of(listing, self._known.collected, policy.newest)
        now, collected = self._now(), self._known.collected
        steps = list(plan(listing, collected, policy, now, allowance, aside, postponed))
        due = [step for step in steps if isinstance(step, Due) and await self._may_delete(step.key)]
        self._reasons = {step.key: step.why for step in due}
        headers = [step for step in steps if isinstance(step, CheckHeader)]
        steps += await self._check_headers([*due, *headers], allowance)
        waiting = [step for step in steps if isinstance(step, Postpone)]
        outcome.later = len(waiting)
        outcome.later_for = waiting[0].why if waiting else ""
        skips = [step for step in steps if isinstance(step, Skip)]
        new = self._this_run.report_once(aside_key(each.message) for each in skips)
        outcome.skipped += [
            f"message {each.message.number}: {each.reason}"
            for each in skips
            if aside_key(each.message) in new
        ]
        fetches = [step for step in steps if isinstance(step, Fetch | Compare)]
        names = {short_name(each.message) for each in (*fetches, *waiting, *skips)}
        missing = policy.whole - names if policy.whole else ()
        outcome.refused += [
            f"{each}: not on the server, or already collected" for each in sorted(missing)
        ]
        return fetches, [step for step in steps if isinstance(step, Stub)]

    def _count_planned(self, fetches: Sequence[Fetch | Compare], stubs: Sequence[Stub]) -> None:
        """Count what a session without ``dry_run`` would do."""
        outcome, new = self._outcome, [step for step in fetches if isinstance(step, Fetch)]
        outcome.stored, outcome.stubs = len(new), len(stubs)
        outcome.octets = sum(step.message.size for step in new)
        compared = [step for step in fetches if step.key in self._reasons]
        outcome.deleted = len(self._proofs) + len(compared)

    def _may_list_more(self) -> bool:
        """Return whether the next session may list other messages.

        This is possible only if this session stored or deleted messages.
        """
        keys = [each.key for each in self._deletions.marked]
        is_new = any(self._known.collected[key].seen_again is None for key in keys)
        is_new = is_new or self._outcome.stored > 0
        return self._reader.quirks.in_parts and is_new and not self._outcome.later

    async def _fetch(self, steps: Sequence[Fetch | Compare], stubs: Sequence[Stub]) -> None:
        """Fetch and store messages and stubs.

        Raises:
            QuotaExceeded: the destination is full.  If stored messages are due, another session
                can delete them.  The current session must not reach QUIT, because some messages
                are not stored, and the server may remove all messages that it sent (EXPIRE 0,
                RFC 2449 §6.7).
        """
        try:
            await self._fetching.fetch(steps)
            await self._fetching.fetch_stubs(stubs)
        except QuotaExceeded as error:
            self._this_run.full = error
            self._outcome.may_go_on = bool(await self._all_proofs())
            raise

    # Loss of the connection.

    def _had_finished(self, error: ConnectionLost) -> bool:
        """Return whether the session had finished its work when the connection was lost.

        If no message was marked, QUIT has no effect (RFC 1939 §6), so its response is not needed.
        If work was left, the message that may be the cause is recorded.
        """
        if self._is_done:
            return not self._deletions.marked
        self._record_connection_loss(error)
        return False

    def _record_connection_loss(self, error: ConnectionLost) -> None:
        awaited, outcome = self._fetching.awaited, self._outcome
        if self._reader.is_pipelining_in_doubt:
            self._accounts.pause_pipelining(self._name, self._now())
            outcome.notes.append(
                "the connection was lost after several commands had been sent together; for a "
                "week, commands are sent one at a time. If this helps, set quirks = "
                '["auto", "hide:PIPELINING"]'
            )
            outcome.may_go_on = True
        if awaited is not None:
            if aside_key(awaited) in self._fetching.aside:
                # The message has failed before, so the message is the cause, not pipelining.
                self._accounts.pause_pipelining(self._name, None)
            is_late = isinstance(error, DeadlineExceeded)
            reason = (
                "its download did not end in time"
                if is_late
                else "the connection was lost during its download"
            )
            self._fetching.set_aside(awaited, reason)
            outcome.refused.append(f"message {awaited.number}: {reason}")
            outcome.may_go_on = True

    # The listing.

    def _may_be_stub(self, message: Message, ids: Mapping[int, str]) -> bool:
        policy = self._policy
        return policy.stubs and message.number in ids and is_too_large(message, policy)

    def _adopt_present(self, listing: Sequence[Message], ids: Mapping[int, str]) -> None:
        known = self._ledger.known(ids.values())
        new = [
            each
            for each in listing
            if each.number in ids and not ((row := known.get(ids[each.number])) and row.at)
        ]
        rows = [
            Stored(ids[each.number], each.size, None)
            for each in new
            if self._destination.has(self._known.identity(ids[each.number], each.size))
        ]
        self._ledger.took(rows, self._now())
        self._outcome.present = len(rows)

    async def _check_listing(
        self, listing: Sequence[Message], ids: Mapping[int, str], again: str, *, dry_run: bool
    ) -> None:
        """Detect whether the provider moved the mailbox, and record which messages are missing.

        Raises:
            LooksMoved: nearly every message looks new, and the user must decide what to do.
        """
        expected, collected = self._ledger.expected(), self._known.collected
        may_have_moved = looks_moved(listing, collected, expected)
        if may_have_moved and again != "stop" and not dry_run:
            self._accounts.set_answer(self._name, again)
        elif may_have_moved and again == "stop":
            # If the server lists its mail in parts, every part looks new.  If the user has decided
            # before, the question is not repeated.  In both cases ``dedupe`` is safe: comparing by
            # content neither loses messages nor stores them twice.
            is_decided = self._reader.quirks.in_parts or self._entry.answer
            if not is_decided and not await self._is_other_mail(listing, expected):
                new = sum(1 for each in ids.values() if each not in collected)
                raise LooksMoved(new, len(listing))
            again = "dedupe"
        self._fetching.dedupe = again != "fetch" and lists_hardly_any(listing, collected, expected)
        is_complete = 0 < len(listing) == len(ids) and not self._reader.quirks.in_parts
        listed = [collected[key] for key in ids.values() if key in collected]
        seen = sum(1 for each in listed if each.at and each.is_expected and not each.is_gone)
        if is_complete and seen < self._ledger.on_server() and not dry_run:
            self._ledger.record_listing(ids.values())
        # If a session with ``fetch`` was interrupted, this one must store the remaining messages.
        must_fetch_again = "fetch" in (again, self._entry.answer)
        self._fetching.listed = frozenset(ids.values())
        self._fetching.finds_moved = not must_fetch_again and self._ledger.unlisted()

    async def _is_other_mail(self, listing: Sequence[Message], expected: int) -> bool:
        """Return whether the headers show that all mail is new because the old mail was deleted.

        If the provider had moved the mailbox, the old messages would be listed under new
        unique-ids.
        """
        known = self._ledger.header_digests()
        if len(known) < expected / 2:
            return False  # too many messages were recorded without a header digest
        new = [
            each
            for each in listing
            if each.unique_id not in self._known.collected
            # A message that was set aside may break the connection.
            and aside_key(each) not in self._fetching.aside
        ]
        sample = new[:: max(len(new) // _SAMPLE_SIZE, 1)]
        results = (await self._fetching.header_digests(sample)).values()
        digests = [digest for digest in results if digest]
        return len(digests) >= _MIN_DIGESTS and known.isdisjoint(digests)

    # Checks before deletions.

    async def _check_headers(
        self, steps: Sequence[Due | CheckHeader], allowance: Allowance
    ) -> list[Step]:
        """Compare the headers of these messages with those of the recorded messages.

        Returns steps for the messages that a header does not identify.
        """
        self._known.load_records(step.key for step in steps)
        records = {step.key: self._known.record(step.key) for step in steps}
        with_digest = [
            step.message
            for step in steps
            if (record := records[step.key]) is not None
            and record.content.header_digest is not None
        ]
        header_digests = await self._fetching.header_digests(with_digest)
        unproved: list[Step] = []
        settled = []
        for step in steps:
            known, message = self._known.collected[step.key], step.message
            seen = Seen(message, step.key, header=header_digests.get(message.number))
            proof = prove(seen, known, records[step.key], step.why)
            if not isinstance(proof, Proof):
                unproved.append(compare(message, step.key, proof.value, self._policy, allowance))
                continue
            if isinstance(step, Due):
                self._proofs.append(proof)
            if known.doubt:
                settled.append(step.key)
        if settled:
            self._ledger.clear_doubt(settled)
        return unproved

    async def _may_delete(self, key: str) -> bool:
        """Return whether the state of the copy here allows the deletion on the server."""
        policy = self._policy
        if policy.until_deleted:
            return await in_thread(self._was_deleted, key)
        if not policy.verified:
            return True
        record = self._known.record(key)
        is_intact = (
            record is not None
            and offers(self._destination, Verifying)
            and await in_thread(self._destination.holds, record.identity, record.content.digest)
        )
        self._outcome.unverified += not is_intact
        return is_intact

    def _was_deleted(self, key: str) -> bool:
        """Return whether the user deleted the message here.  Blocking.

        The result is True only if an earlier session found the message among the held mail, and it
        is recorded as purged.  A missing file is not enough, because a disk may not be mounted.
        """
        assert offers(self._destination, Tracing)
        known = self._known.collected[key]
        presence = self._destination.presence(self._known.identity_of(key))
        if presence is not Presence.GONE and known.was_held != (presence is Presence.HELD):
            self._presence.append((key, presence))
        return presence is Presence.GONE and known.was_held

    def _record_presence(self) -> None:
        """Record which messages are now present at the destination, and which are held there."""
        for presence in (Presence.HERE, Presence.HELD):
            keys = [key for key, current in self._presence if current is presence]
            if keys:
                self._ledger.held(keys, is_held=presence is Presence.HELD)

    # Deletions.

    def _change_rule(self) -> None:
        """Record a changed deletion rule, limit deletions for a day, and report what is due."""
        rule, before = self._policy.rule, self._entry.rule
        if rule == before:
            return
        # The day of a new account begins when its first rule is recorded.
        if (before or self._limited_until) and self._policy.deletions is not None:
            self._limited_until = self._now() + _DAY
        if before and self._reasons:
            text = (
                f"the deletion rule was changed from {before} to {rule}; "
                f"messages to delete: {len(self._reasons)}"
            )
            self._outcome.notes.append(text)
            fields = {
                "account": self._name,
                "rule": rule,
                "before": before,
                "messages": len(self._reasons),
            }
            _log.warning("deletion rule changed", extra={"fields": fields})
        self._accounts.change_rule(self._name, rule, self._limited_until)

    async def _deletion_reason(self, seen: Seen) -> str:
        """Return why the policy allows deleting a message that was fetched in this session.

        The result is empty if the policy does not allow it.
        """
        policy, known = self._policy, self._known.collected[seen.key]
        # ``_reasons`` is about the message that had this unique-id before, so it does not apply to
        # a new message.
        if not seen.is_new and (why := self._reasons.get(seen.key)):
            return why
        is_for_later = policy.verified or policy.until_deleted or policy.newest > 0
        # ``plan`` did not decide what to do with a message without a unique-id.
        has_unique_id = not seen.key.startswith(" ")
        if not is_due(known, policy, self._now()) or (is_for_later and has_unique_id):
            return ""
        if is_for_later:
            is_kept = seen.is_new or seen.message.number in self._newest
            if is_kept or not await self._may_delete(seen.key):
                return ""
        return why_due(known, policy, self._now())

    async def _all_proofs(self) -> list[Proof]:
        """Return the messages that are due and proved to be stored here."""
        proofs = list(self._proofs)
        for seen in self._fetching.seen:
            if why := await self._deletion_reason(seen):
                known, record = (
                    self._known.collected[seen.key],
                    self._known.record(seen.key),
                )
                proof = prove(seen, known, record, why)
                if isinstance(proof, Proof):
                    proofs.append(proof)
        return proofs

    async def _delete(self) -> None:
        """Mark the messages that are due and proved.

        If QUIT could remove messages that are not stored here, drop the connection instead.

        Raises:
            LeftWithoutQuit: the connection was dropped; another session of this run can delete the
                messages that are due.
        """
        proofs = await self._all_proofs()
        is_allowed = bool(proofs) and not self._is_over_limit(len(proofs))
        if unstored := await self._removed_by_quit():
            self._this_run.unstored.update(map(aside_key, unstored))
            if is_allowed:
                self._outcome.may_go_on = True
                raise LeftWithoutQuit(len(unstored))
            self._deletions.leave_without_quit()
        elif is_allowed:
            await self._deletions.request(proofs, self._now())

    async def _removed_by_quit(self) -> list[Message]:
        """Return the messages that the server may remove at QUIT but that are not stored here."""
        if not quit_removes_retrieved(self._reader):
            return []
        unstored = list(self._fetching.unstored.values())
        if self._policy.verified:  # copies from earlier sessions may have been damaged
            compared = [each for each in self._fetching.seen if not each.is_new]
            unstored += [each.message for each in compared if not await self._may_delete(each.key)]
        return unstored

    def _is_over_limit(self, count: int) -> bool:
        """Return whether ``count`` deletions exceed the limit for a new account or changed rule."""
        limit, until = self._policy.deletions, self._limited_until
        if limit is None or self._now() >= until:
            return False
        if self._ledger.removed_since(until - _DAY) + count <= limit:
            return False
        self._outcome.withheld = count
        fields = {"account": self._name, "messages": count, "limit": limit}
        _log.warning("deletions withheld", extra={"fields": fields})
        return True
