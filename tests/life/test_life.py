"""Sequences of everything that users, programs and operators do: one fixed, others random."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from . import collecting, doors, imap, importing, keeping, operating, visits
from .looking import look, look_thoroughly
from .servers import InThread
from .steps import Step
from .world import World

ROOT = Path(__file__).parents[2]
BOTH = ["ann", "bob"]
WALK: list[Step] = [
    # An empty maildrop, one message, nine at once.
    (operating.wait,),
    (doors.arrive, BOTH, "LMTP", 9, "short"),
    (visits.visit, "ann", "all", "all", "quits"),
    (operating.wait,),
    (doors.drop_files, "ann", "INBOX", 9, "dots", "LF", "S= in the names", False, False),
    (visits.visit, "ann", "the first", "all but the first", "drops the connection"),
    (doors.arrive, ["ann"], "SMTP", 1, "large"),
    (doors.arrive, ["bob"], "command", 1, "8 bit"),
    (doors.drop_namesake, "ann", "INBOX", "the first"),
    # Only inode numbers distinguish these two messages, and a backup changes them.
    (keeping.back_up, "ann"),
    (doors.arrive, ["ann"], "LMTP", 1, "short"),
    (keeping.restore_backup, "ann"),
    # Held mail is restored and deleted again.
    (keeping.restore, "ann", "every other", True),
    (keeping.restore, "ann", "all", False),
    (visits.visit, "ann", "none", "the last nine", "quits"),
    (keeping.purge, ["ann"]),
    # An IMAP server changes files during a session.
    (visits.visit, "bob", "the first", "the last", "stays"),
    (imap.set_flags, "bob", "INBOX", "all", "S"),
    (imap.expunge, "bob", "INBOX", "the first", False),
    (imap.move, "bob", "INBOX", "every other"),
    (visits.visit, "bob", "all", "the last", "quits"),
    (imap.move, "bob", "Junk", "all"),
    (imap.copy, "bob", "INBOX", "all", True),
    (operating.set_view, "bob", ("INBOX", "Junk")),
    (visits.visit, "bob", "all", "every other", "quits"),
    (imap.set_flags_meanwhile, "bob", "RS"),
    # Wrong caches, and a restart.
    (keeping.harm_index, "ann", "INBOX", "copied for later"),
    (doors.arrive, BOTH, "LMTP", 8, "long lines"),
    (keeping.harm_index, "ann", "INBOX", "replaced by an older copy"),
    (operating.restart,),
    (keeping.harm_index, "bob", "INBOX", "garbled"),
    (operating.reload, "welcome"),
    # Rules, passwords, and mail of other servers.
    (operating.set_quota, "ann", "what is there, and a little"),
    (doors.arrive, ["ann"], "LMTP", 63, "short"),
    (doors.arrive, BOTH, "SMTP", 1, "large"),
    (operating.set_quota, "ann", "none"),
    (doors.send_again,),
    (operating.set_hold, "ann", "0"),
    (visits.visit, "ann", "none", "the first nine", "quits"),
    (operating.set_hold, "ann", "keep"),
    (visits.visit, "ann", "none", "the last", "quits"),
    (operating.add_app_password, "ann"),
    (operating.revoke_app_password, "ann"),
    (operating.enable, "ann", False),
    (operating.enable, "ann", True),
    (importing.take_over, "bob", "dovecot", 7, "short", "mixed"),
    (visits.visit, "bob", "all", "the first", "quits"),
    (importing.take_over, "bob", "dovecot", 7, "short", "mixed"),
    # A collector.
    (collecting.elsewhere, (doors.arrive, ["ann"], "LMTP", 10, "short")),
    (collecting.set_policy, "none", 1, 0, "Bob"),
    (collecting.collect, "fetch"),
    (collecting.elsewhere, (keeping.restore, "ann", "all", True)),
    (collecting.collect, "fetch"),
]


@pytest.mark.usefixtures("loggers")
def test_walk_keeps_every_promise() -> None:
    world = World(InThread)
    try:
        for function, *arguments in WALK:
            function(world, *arguments)
            look(world)
        for each in world.all():
            look_thoroughly(each)
    except BaseException:
        world.abandon()
        raise
    world.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("level", ["thread", "processes"])
def test_random_lives_keep_every_promise(level: str) -> None:
    """Run lives in a separate process: the children it forks must not have our threads."""
    command = [sys.executable, "-m", "tests.life", "--minutes", "0.8", "--level", level]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
