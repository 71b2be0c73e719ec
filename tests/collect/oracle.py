"""Checks the real collector with a hostile server, by the commands it got and the mail stored here.

The laws:

1. The collector marks a message as deleted only if its octets are here, durably, or were deleted
   here by their user; and its QUIT removes no message that was only sent (EXPIRE 0).
2. ``keep = "all"`` never sends DELE.  The other values of ``keep``, and ``newest``, delete what
   they promise and nothing else.
3. No message is stored that no server had, and none more often than it was delivered; ``Excuses``
   lists the exceptions.
4. When the server becomes honest, all its mail arrives within a few runs.
5. No run ends with a traceback; with an honest server it succeeds.
6. The deletion limit holds.

``hostile`` lists the lies that are not tried because no client could notice them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest import mock

from restante.client import asynchronous
from restante.collect import collector
from restante.collect.account_ledger import AccountLedger

from ..client.shells import NONE, UNUSED
from ..life.homes import Home, Ran, memory
from . import test_killed
from .copies import DESTINATIONS, Copy, Destination, Disk
from .hostile import Hostile, Letter, Lies, Mail, Session, rewrite

HOUR, DAY = 3600.0, 86_400.0  # seconds
_LOOKS_MOVED = 78  # exit code
_KILLED = 9  # exit code of a child that was killed
_MOMENTS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("rename", "link", "unlink")),
    *((AccountLedger, name) for name in ("intend", "took", "removing", "gone")),
    (Disk, "fsync"),
)
"""A run may be killed before and after each of these."""
_now = time.time


class Excuses:
    """Letters that may be stored more often than they were delivered.

    ``excuse`` is called when a client cannot know, or must not guess, that it already has a
    message:

    - The collector removed it, and it is listed again under another unique-id.
    - It is listed under another unique-id while other mail has its old one, so that it does not
      seem to be missing.
    - Its header was rewritten, and has neither Message-ID nor Date.
    - After a crash the collector does not know that it was stored, and the next session shows it
      under another unique-id, under none of its own, or with another header.
    - The listing showed a unique-id twice, so that it is incomplete and no message counts as
      missing, and the connection ended in the middle of this one.
    """

    def __init__(self) -> None:
        self._of: Counter[Letter] = Counter()
        self._forgotten: Counter[Letter] = Counter()
        self.for_any = 0
        """Programs and mboxes cannot show which messages they have: after a crash the message that
        was being stored is stored again, but no other."""

    def excuse(self, letter: Letter) -> None:
        self._of[letter] += 1

    def forget(self, letter: Letter) -> None:
        """Note that the ledger was lost, is an old one, or was overruled by ``--again fetch``."""
        self._forgotten[letter] += letter.deliveries

    def allow(
        self, copies: Counter[Letter], is_steady: Callable[[Letter], bool]
    ) -> Sequence[Letter]:
        """Return the letters that are stored too often.

        ``is_steady``: the letter gets the same name if stored again, so no ledger is needed.
        """
        more: Counter[Letter] = Counter()
        for letter, count in copies.items():
            allowed = letter.deliveries + self._of[letter]
            if count > allowed and not is_steady(letter):
                allowed += self._forgotten[letter]
            more[letter] = max(0, count - allowed)
        return [] if more.total() <= self.for_any else list(+more)


class World:
    """An account at a hostile server, and its destination here."""

    def __init__(self, kind: str, keep: str = "all") -> None:
        """``kind``: of the destination; ``keep``: changed to the nearest value that it supports."""
        self.place = Path(mkdtemp(prefix="oracle-", dir=memory()))
        self.home = Home(self.place)
        self.home.fill()
        (self.place / "conf.d").mkdir()
        self.disk = Disk(self.place / "synced")
        self.here: Destination = DESTINATIONS[kind](self.place, self.disk)
        self.server = Hostile()
        self.server.marked, self.server.removed = self._judge_mark, self._judge_removal
        self.server.expired = self._judge_loss
        self.server.deliver = lambda: self.deliver()
        self.letters: list[Letter] = []
        self.faults: list[str] = []
        """Violations of the laws."""
        self.excuses = Excuses()
        self.name = "isp"
        self.passed = 0.0
        """Seconds by which the clock was moved."""
        self._ids = 0
        self._removed: set[str] = set()
        """Unique-ids that the collector removed, according to its ledger."""
        self._unnamed: set[Letter] = set()
        """Messages that were listed without a unique-id of their own."""
        self._in_doubt: set[Mail] = set()
        """Messages that were listed when the collector was killed."""
        self._taken_away: set[Mail] = set()
        """Messages that the collector removed."""
        self._arrived: dict[Letter, float] = {}
        """When each message was first seen here."""
        self._deleted_here: Counter[Letter] = Counter()
        """The number of copies that their user has deleted."""
        self._destroyed: Counter[Letter] = Counter()
        """The number of deleted copies that are no longer held."""
        self._names = 0
        self._limit = Limit()
        self.set_policy(keep, 0, 0)

    def end(self) -> None:
        self.server.close()
        shutil.rmtree(self.place)

    # The server's mail.

    def write(self, kind: str = "usual") -> Letter:
        number = len(self.letters) + 1
        marks = [f"Message-ID: <{number:06}@example.org>", "Date: Mon, 2 Nov 2026 10:00:00 +0000"]
        lines = ["From: ann@example.org", "To: bob@example.org", f"Subject: letter {number:06}"]
        if kind != "without marks":
            lines[:0] = marks
        body = [f"Body of letter {number:06}.", "", ".", "From here on: >From there", "..", "end"]
        if kind == "long":
            body += [f"{number:06} {line:03} {'x' * 60}" for line in range(60)]
        text = "\r\n".join([*lines, "", *body, ""]).encode()
        return self._letter(text, has_marks=kind != "without marks")

    def twin(self, other: Letter) -> Letter:
        """Make a letter with the same header and another body of another size."""
        head, end, body = other.text.partition(b"\r\n\r\n")
        twin = self._letter(head + end + b"Twin!\r\n" + body, has_marks=other.has_marks)
        twin.has_twin = other.has_twin = True
        return twin

    def _letter(self, text: bytes, *, has_marks: bool) -> Letter:
        found = next((each for each in self.letters if each.text == text), None)
        if found is None:
            found = Letter(len(self.letters) + 1, text, has_marks, forms={text})
            self.letters.append(found)
        return found

    def deliver(self, kind: str = "usual", unique_id: str = "") -> None:
        self.put(self.write(kind), unique_id)

    def put(self, letter: Letter, unique_id: str = "") -> None:
        letter.deliveries += 1
        mail = Mail(unique_id or self.new_id(), letter, letter.text)
        mail.is_disguised = unique_id not in self._removed
        self._removed.discard(unique_id)
        self._usurp(unique_id)
        self.server.mails.append(mail)

    def new_id(self) -> str:
        self._ids += 1
        return f"id{self._ids:05}"

    def exchange(self, mail: Mail, letter: Letter) -> None:
        """Replace a message by other mail under its unique-id, not on the collector's command."""
        letter.deliveries += 1
        other = Mail(mail.unique_id, letter, letter.text, is_disguised=True)
        self.server.mails[self.server.mails.index(mail)] = other
        self.server.gone.append(mail)
        self._usurp(mail.unique_id)

    def _usurp(self, unique_id: str) -> None:
        """Excuse messages that had this unique-id: they may come back under another one."""
        for letter, _ in self.server.announced.get(unique_id, ()):
            self.excuses.excuse(letter)

    def swap_ids(self, one: Mail, other: Mail) -> None:
        one.unique_id, other.unique_id = other.unique_id, one.unique_id
        for mail in (one, other):
            mail.is_disguised = True
            self.excuses.excuse(mail.letter)

    def rewrite(self, mail: Mail) -> None:
        rewrite(mail)
        self._rewritten(mail)

    def _rewritten(self, mail: Mail) -> None:
        """Note a rewritten header: without Message-ID and Date it cannot be recognised."""
        if not mail.letter.has_marks or mail in self._in_doubt:
            self.excuses.excuse(mail.letter)

    def bring_back(self, mail: Mail, *, is_same: bool) -> None:
        """Bring a removed message back, under another unique-id unless ``is_same``."""
        self.server.gone.remove(mail)
        used = {each.unique_id for each in self.server.mails}
        back = Mail(mail.unique_id, mail.letter, mail.octets)
        if mail in self._taken_away:
            self._taken_away.add(back)
        self.server.mails.append(back)
        if not is_same or back.unique_id in used:
            self._rename(back)

    def renumber(self) -> None:
        for mail in self.server.mails:
            self._rename(mail)

    def _rename(self, mail: Mail) -> None:
        """Note a new unique-id: to the client a message that it thinks gone is a new one."""
        mail.unique_id = self.new_id()
        if mail in self._taken_away or mail in self._in_doubt:
            self.excuses.excuse(mail.letter)

    # Runs.

    def set_policy(self, keep: str, limit: int, newest: int) -> None:
        """Set the policy of the next runs."""
        self.keep = keep if keep in self.here.keeps else "7d"
        self.limit, self.newest = limit, newest
        self._write_account()

    def _write_account(self) -> None:
        path = self.place / "conf.d" / f"account-{self.name}.toml"
        label = f"label = {json.dumps(self._label)}\n" if self._names else ""
        path.write_text(
            f"[account.{self.name}]\n"
            f'url = "pop3://127.0.0.1:{self.server.port}"\nuser = "bob"\npassword = "pw"\n'
            f'to = {json.dumps(self.here.to)}\nkeep = "{self.keep}"\nnewest = {self.newest}\n'
            f"deletion_limit = {self.limit}\n{label}"
        )
        path.chmod(0o600)

    _label = "isp"

    def collect(self, lies: Lies | None = None, *arguments: str) -> Ran:
        """Run the collector once, in this process."""
        with self._session(lies):
            ran = self._run("collect", self.name, *arguments)
        self._judge_run(ran)
        return ran

    def collect_and_die(self, lies: Lies, moment: int, *, power: bool) -> None:
        """Run the collector and kill it at this moment; ``power``: lose what is not durable."""
        with self._session(lies):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # the server is a thread
                child = os.fork()
            if not child:
                self._die(moment)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == _KILLED:
            self._limit.is_certain = False
            self.excuses.for_any += not self.here.is_repeatable
            self._in_doubt.update(mail for each in self.server.sessions for mail in each.listed)
            for mail in self._nameless():
                self.excuses.excuse(mail.letter)
            if power:
                self.here.cut_power()
        self._look()

    def _nameless(self) -> list[Mail]:
        """Return the messages that the run saw without a unique-id, or with that of another one.

        If the collector crashes after storing such a message, the message gets another name in a
        session that shows a unique-id.
        """
        if not self.server.lies.has_uidl:
            return [mail for each in self.server.sessions for mail in each.listed]
        if self.server.lies.same_id:
            return [mail for each in self.server.sessions for mail in each.listed[:2]]
        return []

    def _die(self, moment: int) -> None:
        code = _KILLED + 1
        try:
            with Death(moment).near():
                code = self._run("collect", self.name).code
        finally:
            os._exit(code)

    @contextmanager
    def _session(self, lies: Lies | None) -> Iterator[None]:
        self.server.lies = lies or Lies()
        self.server.sessions.clear()
        self._limit.begin(self)
        yield
        self.server.settle()
        assert not self.server.errors, self.server.errors
        self._unnamed.update(each.letter for each in self._nameless())
        if self.server.lies.same_id:
            for past in self.server.sessions:
                for mail in [] if past.is_closed else past.listed:
                    self.excuses.excuse(mail.letter)
        if self.server.lies.quit == "forgets":
            self._taken_away.update(each for past in self.server.sessions for each in past.marked)
        for letter in {each.letter for each in self._taken_away} & self._unnamed:
            self.excuses.excuse(letter)
        if self.server.lies.rewrites:
            for mail in [mail for each in self.server.sessions for mail in each.read]:
                self._rewritten(mail)

    def _run(self, *arguments: str) -> Ran:
        def running() -> tuple[str, float]:
            return "this run", 10 * DAY + self.passed

        logger = logging.getLogger("restante")
        handlers = logger.handlers[:]
        with ExitStack() as changed:
            for target, name, value in (
                (time, "time", self.now),
                (os, "fsync", self.disk.fsync),
                (collector, "collect", partial(collector.collect, clock=self.now)),
                (
                    asynchronous,
                    "connect",
                    partial(asynchronous.connect, tls=NONE, context=UNUSED, timeout=9),
                ),
            ):
                changed.enter_context(mock.patch.object(target, name, value))
            changed.enter_context(mock.patch("restante.clock._running", running))
            changed.enter_context(mock.patch("restante.syncing._syncfs", return_value=None))
            try:
                return self.home.run(*arguments)
            finally:
                logger.handlers[:] = handlers

    def now(self) -> float:
        return _now() + self.passed

    # What the operator and the user do.

    def rename(self, *, by_hand: bool) -> None:
        self._names += 1
        old, self.name = self.name, f"isp{self._names}"
        if by_hand:
            (self.place / "conf.d" / f"account-{old}.toml").unlink()
            self._write_account()
            return
        ran = self._run("account", "rename", old, self.name)
        assert ran.code == 0, ran.err

    def ledger(self) -> list[Path]:
        return list((self.place / "state").glob("ledger.sqlite3*"))

    def lose_ledger(self) -> None:
        for path in self.ledger():
            path.unlink()
        self._limit = Limit()
        self.forgot()

    def back_up(self) -> None:
        backup = self.place / "backup"
        shutil.rmtree(backup, ignore_errors=True)
        backup.mkdir()
        for path in self.ledger():
            shutil.copy2(path, backup)

    def restore(self) -> None:
        for path in self.ledger():
            path.unlink()
        for path in (self.place / "backup").glob("*"):
            shutil.copy2(path, self.place / "state")
        self._removed.clear()
        for mail in self.server.mails:
            mail.is_disguised = True
        self._limit = Limit(is_old=True)
        self.forgot()

    def forgot(self) -> None:
        """Note that the ledger has lost its knowledge."""
        for letter in self.letters:
            self.excuses.forget(letter)

    def _is_steady(self, letter: Letter) -> bool:
        """Return whether it was always listed under unique-ids of its own, and is still here."""
        names = set()
        for unique_id, known in self.server.announced.items():
            if any(each is letter for each, _ in known):
                names |= {(unique_id, size) for _, size in known}
        is_named = letter not in self._unnamed and len(names) <= letter.deliveries
        return self.here.is_repeatable and is_named and not self._destroyed[letter]

    def delete_here(self, letter: Letter) -> None:
        for form in sorted(letter.forms):
            count = self.here.delete(form.replace(b"\r\n", b"\n"))
            self._deleted_here[letter] += count
            self._destroyed[letter] += 0 if self.here.holds else count

    def give_back(self) -> None:
        """Restore all messages that are still held."""
        self.here.give_back()

    def purge(self) -> None:
        held = [each for each in self.here.copies() if each.is_held]
        self.here.purge()
        for copy in held:
            self._destroyed += Counter(self._letters_of(copy))

    # Laws.

    def _judge_mark(self, session: Session, mail: Mail) -> None:
        """Check laws 1 and 2 at a DELE."""
        copies = self._judge_loss(mail)
        letter, name = mail.letter, _name(mail)
        if self.keep == "all":
            self.faults.append(f"{name} is deleted there, though all is kept")
        if self.keep == "7d":
            began = self._arrived.get(letter, self.now())
            if self.now() - began < 7 * DAY - 1:
                self.faults.append(f"{name} is deleted there after {self.now() - began:.0f} s")
        if self.keep == "until-verified" and not copies:
            self.faults.append(f"{name} is deleted there, and its copy cannot be verified")
        is_left = copies and letter.deliveries == 1  # otherwise the copy may be of an equal message
        if self.keep == "until-deleted" and (is_left or not self._deleted_here[letter]):
            self.faults.append(f"{name} is deleted there, and was not deleted here")

    def _judge_loss(self, mail: Mail) -> list[Copy]:
        """Check law 1; returns the copies of the message here."""
        copies = [each for each in self.here.copies() if _crlf(each.octets) in mail.letter.forms]
        is_durable = any(each.is_durable for each in copies) or not self.here.is_readable
        if not (copies and is_durable) and not self._deleted_here[mail.letter]:
            self.faults.append(
                f"{_name(mail)} is deleted there and not {'durable' if copies else ''} here"
            )
        return copies

    def _judge_removal(self, session: Session, mails: Sequence[Mail]) -> None:
        """Check laws 2 and 6 after the server removed the marked messages."""
        self._removed.update(each.unique_id for each in mails)
        self._taken_away.update(mails)
        left = len(session.listed) - len(session.marked)
        if left < min(self.newest, len(session.listed)):
            self.faults.append(f"{left} messages are left of the newest {self.newest}")
        self._limit.removed(len(mails))
        if mails and self._limit.is_broken(self):
            self.faults.append(f"more than {self.limit} were deleted within a day")

    def _judge_run(self, ran: Ran) -> None:
        """Check law 5 after a run."""
        if self.server.lies.is_honest and ran.code not in (0, _LOOKS_MOVED):
            self.faults.append(f"exit code {ran.code}: {ran.out} {ran.err}")
        if ran.code == 0:
            self._limit.is_certain = True
            self._in_doubt.clear()
        if any(word in ran.err.lower() for word in ("traceback", "bug")):
            self.faults.append(ran.err)
        self._look()

    def _look(self) -> None:
        """Check law 3."""
        found: Counter[Letter] = Counter()
        for copy in self.here.copies():
            for letter in self._letters_of(copy):
                found[letter] += 1
                self._arrived.setdefault(letter, self.now())
            if not self._is_part(copy):
                self.faults.append(f"this is here, and no server had it: {copy.octets!r}")
        found += self._destroyed
        for letter in self.excuses.allow(found, self._is_steady):
            text = f"letter {letter.number} was stored {found[letter]} times"
            self.faults.append(f"{text}, and delivered {letter.deliveries} times")
        faults, self.faults = self.faults, []
        assert not faults, "; ".join(faults)

    def _letters_of(self, copy: Copy) -> list[Letter]:
        return [each for each in self.letters if _crlf(copy.octets) in each.forms]

    def _is_part(self, copy: Copy) -> bool:
        forms = (form for each in self.letters for form in each.forms)
        return any(form.startswith(_crlf(copy.octets)) for form in forms)

    def become_honest(self) -> None:
        """Make the server honest, and check law 4."""
        _make_unique(self)
        self.here.refuse(False)
        for _ in range(4):
            self.passed += 8 * DAY
            if self.collect().code == _LOOKS_MOVED:
                ran = self.collect(None, "--again", "dedupe")
                assert ran.code == 0, ran
        here = {_crlf(each.octets) for each in self.here.copies()}
        for mail in self.server.mails:
            is_here = not here.isdisjoint(mail.letter.forms) or self._deleted_here[mail.letter]
            assert is_here or self._is_hidden(mail), f"letter {mail.letter.number} never came"

    def _is_hidden(self, mail: Mail) -> bool:
        """Return whether it secretly replaced other mail with the same unique-id and size.

        Its header would show that, but the client reads only headers of messages that are due: TOP
        for each message in each session is too expensive for servers that violate RFC 1939 §7.
        """
        known = self.server.announced.get(mail.unique_id, set())
        sizes = {size for letter, size in known if letter is not mail.letter}
        return mail.is_disguised and len(mail.octets) in sizes


def _name(mail: Mail) -> str:
    return f"letter {mail.letter.number} ({mail.unique_id})"


def _make_unique(world: World) -> None:
    seen = set()
    for mail in world.server.mails:
        if mail.unique_id in seen:
            mail.unique_id = world.new_id()
        seen.add(mail.unique_id)


def _crlf(octets: bytes) -> bytes:
    return octets.replace(b"\n", b"\r\n")


class Limit:
    """The most messages that may be deleted on the day after the first session or a new rule."""

    def __init__(self, *, is_old: bool = False) -> None:
        """``is_old``: the ledger was restored, and may have any rule and a day that is over."""
        self._is_old = is_old
        self.is_certain = False
        """Whether the ledger knows the rule of the last run."""
        self._rule: tuple[str, int] | None = None
        self._known: set[tuple[str, int]] = set()
        """The rules that the ledger may have for its last session."""
        self._until = 0.0
        self._count = 0

    def begin(self, world: World) -> None:
        rule = world.keep, world.newest
        if self._rule is not None:
            self._known = {self._rule} if self.is_certain else self._known | {self._rule}
            self._is_old &= not self.is_certain
        if rule != self._rule:
            is_new = not self._is_old and (self._rule is None or rule not in self._known)
            self._until = world.now() + DAY if is_new else 0.0
            self._count, self._rule = 0, rule
            self.is_certain = False
        if not world.limit:
            self._until = 0.0  # lifted by the operator

    def removed(self, count: int) -> None:
        self._count += count
        self.is_certain = True

    def is_broken(self, world: World) -> bool:
        return 0 < world.limit < self._count and world.now() < self._until - 60


class Death(test_killed.Death):
    """Ends a forked child with an exit code at the k-th moment of a block."""

    def _end(self) -> None:
        os._exit(_KILLED)

    @contextmanager
    def near(self) -> Iterator[None]:
        with ExitStack() as changed:
            for owner, name in _MOMENTS:
                around = self._around(getattr(owner, name))
                changed.enter_context(mock.patch.object(owner, name, around))
            yield
