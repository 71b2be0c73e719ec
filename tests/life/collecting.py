"""A collector fetches mail from another restante, with any policy, and may be killed.

In every case a message is deleted there only after it was stored here, and is stored only once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..crash.cycles import forked
from .looking import look, look_at
from .model import GONE, HELD, LISTED, OWN, Message, User
from .servers import wait_for_end
from .world import World

SOURCE, TARGET = "ann", "bob"
"""The user whose mail is collected there, and the user who gets it here."""
KEEPS = ("all", "none", "14d", "until-verified", "until-deleted")

_NAME = "elsewhere"
_LOOKS_MOVED = 78  # exit code: nearly all messages look new
_MANY = 20  # messages that must look new before the collector stops and asks


@dataclass(slots=True)
class Account:
    """A maildrop of another restante, and where its mail was stored."""

    there: World
    keep: str = "all"
    newest: int = 0
    limit: int = 0
    target: str = TARGET
    """The user here, as spelled in the configuration."""
    copies: dict[str, Message] = field(default_factory=dict)
    """Messages that were stored here, by their unique-id there."""
    left: set[str] = field(default_factory=set)
    """Unique-ids that were deleted there; if listed again, they may stay for a session."""

    def may_delete(self, message: Message, here: set[bytes]) -> bool:
        """Return whether the policy allows deletion, now or once this session has stored it.

        ``here``: the texts of all messages listed or held here, in any folder.
        """
        is_taken = self.has_taken(message)
        return {
            "none": True,
            "until-verified": is_taken and message.text in here,
            "until-deleted": is_taken and message.text not in here,
        }.get(self.keep, False)

    def has_taken(self, message: Message) -> bool:
        """Return whether the message was stored here, possibly under another unique-id there.

        The collector recognises a message that was restored under a new unique-id, and does not
        store it again.
        """
        texts = {copy.text for copy in self.copies.values()}
        return _id(message) in self.copies or message.text in texts


def _id(message: Message) -> str:
    return message.unique_ids[OWN]


def elsewhere(world: World, step: Sequence[Any]) -> None:
    """Take a step at the other restante."""
    there = _account(world).there
    function, *arguments = step
    function(there, *arguments)
    look(there)


def _account(world: World) -> Account:
    """Return the account; at the first call the other server is started."""
    if world.account is None:
        there = World(world.serve, beside=world)
        world.account = Account(there)
    return world.account


def set_policy(world: World, keep: str, newest: int, limit: int, target: str = TARGET) -> None:
    world.say(
        f"the account of {target} keeps {keep} and the newest {newest}, and takes {limit or 'all'}"
    )
    account = _account(world)
    account.keep, account.newest, account.limit, account.target = keep, newest, limit, target


def collect(world: World, again: str, kill: str = "", seconds: float = 0) -> None:
    """Run the collector once.

    ``again``: the operator's answer if nearly all messages look new.
    ``kill``: "the collector" or "the other server", which is killed after ``seconds``.
    """
    account = _account(world)
    there = account.there
    source, target = there.users[SOURCE], world.users[TARGET]
    if not (_is_free(there, source) and _is_free(world, target)):
        return world.say("the collector does not run now")
    world.say(f"the collector runs{f', and {kill} is killed after {seconds} s' if kill else ''}")
    look_at(there, source)
    look_at(world, target)
    session = _Session(account, source, target)
    _configure(world, account)
    if kill:
        _run_and_kill(world, there, kill, seconds)
    else:
        session.is_complete = _run(world, session, again)
    look_at(world, target)
    look_at(there, source)
    session.check()
    return None


def _is_free(world: World, user: User) -> bool:
    return user.is_enabled and user.name not in world.sessions


def _configure(world: World, account: Account) -> None:
    addresses = account.there.server.addresses
    world.home.configure(
        f"account.{_NAME}",
        url=f"pop3s://{addresses['pop3s']}",
        ca_file=addresses["ca"],
        user=SOURCE,
        password=account.there.users[SOURCE].passwords[""],
        to=f"maildrop:{account.target}",
        keep=account.keep,
        newest=account.newest,
        limit=account.limit,
    )


def _run(world: World, session: _Session, again: str) -> bool:
    """Run the collector; returns whether it must have collected everything."""
    ran = world.home.run("collect", _NAME)
    if ran.code == _LOOKS_MOVED:
        assert len(session.copies) >= _MANY, f"too few look new to stop: {ran.err}"
        ran = world.home.run("collect", _NAME, "--again", again)
    if session.target.quota.limit:  # messages without room stay on their server
        assert ran.code in (0, 75), f"exit code {ran.code}: {ran.out} {ran.err}"
        return False
    assert ran.code == 0, f"exit code {ran.code}: {ran.out} {ran.err}"
    return True


def _run_and_kill(world: World, there: World, kill: str, seconds: float) -> None:
    with forked(lambda: world.home.run("collect", _NAME)) as collector:
        time.sleep(seconds)
        if kill == "the other server":
            there.kill()
            wait_for_end(collector)
    if kill == "the other server":
        there.server.start()


class _Session:
    """What one session of the collector may do, compared with what it did."""

    def __init__(self, account: Account, source: User, target: User) -> None:
        self.is_complete = False
        self._account = account
        self._before = [each for each in source.box("INBOX").messages if each.may_be(LISTED)]
        here = {each.text for each in target.messages if each.may_be(LISTED) or each.may_be(HELD)}
        self._may_go = [each for each in self._before if account.may_delete(each, here)]
        self._removed = source.removed()
        self.target = target
        known = {copy.text for copy in account.copies.values()}
        self._fresh = [each for each in self._before if each.text not in known]
        self.copies = {
            each: Message(
                each.text, frozenset({LISTED, GONE}), len(each.wire), each.wire, is_collected=True
            )
            for each in self._before
            if _id(each) not in account.copies
        }
        """For each message there, the copy that may be stored here."""
        target.box("INBOX").messages += self.copies.values()
        for each in self._may_go:
            each.put(LISTED, self._removed)

    def check(self) -> None:
        """Check the result; both maildrops must have been compared before."""
        stored = {each: copy for each, copy in self.copies.items() if copy.may_be(LISTED)}
        self._account.copies |= {_id(each): copy for each, copy in stored.items()}
        gone = [each for each in self._before if not each.may_be(LISTED)]
        for each in gone:
            assert self._account.has_taken(each), f"{each} left its server and is not here"
        left = len(self._before) - len(gone)
        assert left >= min(self._account.newest, len(self._before)), "the newest were deleted"
        if self.is_complete:
            self._check_all_is_done(stored)
        self._account.left.update(map(_id, gone))

    def _check_all_is_done(self, stored: dict[Message, Message]) -> None:
        account = self._account
        wanted = len(self._fresh)
        if account.limit:
            assert len(stored) <= account.limit, f"{len(stored)} messages were stored"
            wanted = min(wanted, account.limit)
        assert len(stored) >= wanted, f"{len(stored)} of {wanted} new messages were stored"
        is_limited = (
            account.newest or account.limit
        )  # old messages may be fetched again for comparison
        if account.keep == "none" and not is_limited and self._removed != LISTED:
            for each in self._before:
                must_go = _id(each) in account.copies and _id(each) not in account.left
                assert not (must_go and each.may_be(LISTED)), f"{each} was not deleted there"
