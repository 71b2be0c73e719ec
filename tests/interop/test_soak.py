"""POP3 sessions, deliveries, an IMAP server and restores on one maildrop at once.

In any order, every accepted message is afterwards complete in exactly one place, or was expunged by
IMAP; and a session reads the messages of its listing.
"""

from __future__ import annotations

import imaplib
import os
import poplib
import random
import smtplib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from .shared import Shared, retrieve, shared, unique_ids

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(300)]

DELIVERIES = 10  # at once
EACH = 12  # messages
SESSIONS = 25
IMAP_STEPS = 60
RESTORES = 8


class Soak:
    """What each program knows for certain."""

    def __init__(self, servers: Shared, seed: int) -> None:
        self.servers = servers
        self.seed = seed
        self.delivered: list[bytes] = []
        self.condemned: list[bytes] = []
        self.moved: list[bytes] = []  # by IMAP
        """IMAP was asked to expunge it, which has no effect if POP3 has just removed it."""
        self.retrieved = 0
        self.removed = 0
        self.gone: list[bytes] = []
        """Messages acknowledged as removed and not restored since."""
        self.named: dict[bytes, bytes] = {}
        """The only message that each unique-id may ever have."""

    def deliver(self, actor: int) -> None:
        for number in range(EACH):
            self.deliver_one(b"%d.%d" % (actor, number), actor * 40)

    def deliver_one(self, token: bytes, lines: int) -> None:
        message = b"Subject: %s\r\n\r\n" % token + (b"body of %s\r\n" % token) * lines
        with smtplib.LMTP("127.0.0.1", self.servers.port("lmtp")) as lmtp:
            assert lmtp.sendmail("sender@example.org", ["mrose"], message) == {}
        self.delivered.append(message)

    def fetch(self, actor: int) -> None:
        """Run sessions that read and delete; every fourth one is dropped."""
        choose = random.Random(self.seed * 100 + actor)
        for _ in range(SESSIONS):
            self.fetch_once(choose)

    def fetch_once(self, choose: random.Random) -> None:
        try:
            with self.servers.pop3() as pop3:
                self.session(pop3, choose)
        except poplib.error_proto as error:
            # The first login needs a moment without changes, because it has no index to fill the
            # holes of a scan; see scanning.py.
            if not any(
                reason in str(error) for reason in ("[IN-USE]", "changed by another program")
            ):
                raise

    def session(self, pop3: poplib.POP3, choose: random.Random) -> None:
        named = unique_ids(pop3)
        sizes = dict(line.split() for line in pop3.list()[1])
        assert named.keys() == sizes.keys()
        assert len(set(named.values())) == len(named)
        chosen = choose.sample(sorted(named, key=int), k=min(len(named), 8))
        marked: list[bytes] = []
        for number in chosen:
            try:
                message = retrieve(pop3, int(number))
            except poplib.error_proto as error:
                if "[SYS/TEMP]" not in str(error):
                    raise
                continue  # IMAP has moved or expunged it
            assert len(message) == int(sizes[number])
            assert self.named.setdefault(named[number], message) == message
            self.retrieved += 1
            if choose.random() < 0.3:
                pop3.dele(int(number))
                marked.append(message)
        if choose.random() < 0.75:
            pop3.quit()
            self.removed += len(marked)
            self.gone += marked

    def read_by_imap(self) -> None:
        choose = random.Random(self.seed)
        for _ in range(IMAP_STEPS):
            self.read_once(choose)

    def read_once(self, choose: random.Random) -> None:
        with self.servers.imap() as imap:
            count = int(imap.select("INBOX")[1][0] or 0)
            if count:
                self.imap_step(imap, choose, str(choose.randint(1, count)))

    def imap_step(self, imap: imaplib.IMAP4, choose: random.Random, number: str) -> None:
        step = choose.choice(["flag", "unflag", "move", "append", "expunge"])
        match step:
            case "flag":
                imap.store(f"1:{number}", "+FLAGS", r"(\Seen \Flagged)")
            case "unflag":
                imap.store(f"1:{number}", "-FLAGS", r"(\Seen)")
            case "move":
                imap.create("Kept")
                found = imap.fetch(number, "(UID BODY.PEEK[])")[1]
                if found and isinstance(found[0], tuple):
                    # Dovecot copies, then unlinks: after a QUIT in between the message is in both.
                    self.moved.append(found[0][1])
                    uid = found[0][0].partition(b"UID ")[2].split()[0].decode()
                    imap.uid("MOVE", uid, "Kept")
            case "append":
                message = b"Subject: %r\r\n\r\nappended\r\n" % choose.random()
                if imap.append("INBOX", "", "", message)[0] == "OK":
                    self.delivered.append(message)
            case "expunge":
                found = imap.fetch(number, "(BODY.PEEK[])")[1]
                if found and isinstance(found[0], tuple):
                    self.condemned.append(found[0][1])
                    imap.store(number, "+FLAGS", r"(\Deleted)")
                    imap.expunge()

    def restore(self) -> None:
        for _ in range(RESTORES):
            self.restore_once()

    def restore_once(self) -> None:
        for _ in range(5):  # 75: other programs constantly changed the maildrop
            done = self.servers.command("maildrop", "restore", "mrose", "--since", "1h")
            if done.returncode != os.EX_TEMPFAIL:
                break
        assert done.returncode == 0, done.stderr

    def check(self) -> None:
        """Check that every acknowledged message is there once."""
        delivered, everywhere = texts(self.delivered), texts(self.servers.everywhere())
        found = {
            "lost": delivered - everywhere - texts(self.condemned),
            "twice, torn or out of nowhere": everywhere - delivered - texts(self.moved),
        }
        told = {what: [text[:20] for text in which] for what, which in found.items() if which}
        assert told == {}

    def check_listing(self) -> None:
        """Check that removed messages stay removed, and that unique-ids are unchanged."""
        with self.servers.pop3() as pop3:
            listed = {
                unique_id: retrieve(pop3, int(n)) for n, unique_id in unique_ids(pop3).items()
            }
        for unique_id, message in listed.items():
            assert self.named.setdefault(unique_id, message) == message
        assert not texts(list(listed.values())) & texts(self.gone)


def run(actions: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(actions)) as pool:
        for done in [pool.submit(action) for action in actions]:
            done.result()


def texts(messages: list[bytes]) -> Counter[bytes]:
    """Count the messages, ignoring trace fields and kinds of line ends."""
    parts = (message.replace(b"\r\n", b"\n").partition(b"Subject: ") for message in messages)
    return Counter(text for _, _, text in parts)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_message_is_lost_or_duplicated(seed: int) -> None:
    with shared([]) as servers:
        soak = Soak(servers, seed)
        run(
            [
                *(partial(soak.deliver, actor) for actor in range(DELIVERIES)),
                *(partial(soak.fetch, actor) for actor in range(2)),
                soak.read_by_imap,
                soak.restore,
            ]
        )
        assert soak.retrieved > 50
        assert soak.removed > 5
        soak.check()


SCHEDULE = st.lists(
    st.lists(st.sampled_from(["deliver", "session", "imap", "restore"]), min_size=1, max_size=5),
    min_size=3,
    max_size=13,
)
"""The actions of each program in order."""


def test_any_schedule_is_harmless() -> None:
    """Run short sequences on one maildrop, with checks in between."""
    with shared([]) as servers:
        soak = Soak(servers, 0)
        stories = [0]

        @settings(
            max_examples=8, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
        )
        @given(SCHEDULE)
        def story(schedule: list[list[str]]) -> None:
            stories[0] += 1
            if any("restore" in steps for steps in schedule):
                soak.gone = []
            run([partial(act, actor, steps) for actor, steps in enumerate(schedule)])
            if any("restore" in steps for steps in schedule):
                soak.gone = []
            soak.check()
            soak.check_listing()

        def act(actor: int, steps: list[str]) -> None:
            choose = random.Random(stories[0] * 1000 + actor)
            for number, step in enumerate(steps):
                match step:
                    case "deliver":
                        soak.deliver_one(b"%d.%d.%d" % (stories[0], actor, number), 1 + actor * 9)
                    case "session":
                        soak.fetch_once(choose)
                    case "imap":
                        soak.read_once(choose)
                    case _:
                        soak.restore_once()

        story()
        assert soak.retrieved > 5
