"""Runs a program in a scenario, and checks the mail afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from .programs import Order, Program, environment, stored
from .remote import Fate, Remote, Session

POLITE = Session()
PATIENCE = 12.0  # seconds after which a program is ended
FILE_LIMIT = 8 * 2**20  # octets of a file; more than any message here
_ITS_OWN = 120  # octets at the beginning of a message that identify it
_MORE = 2  # additional runs if messages are still missing
_LOOK = 0.02  # seconds between checks of a program
_DISK = 2**19  # octets of a disk that becomes full
_ROOM = 50_000  # octets that are free on it at first


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A case: sessions with a failure, then sessions without one, or with a lasting one."""

    messages: Mapping[str, bytes]
    keep: bool
    first: tuple[Session, ...] = ()
    then: Session = POLITE
    runs: int = 2
    """Number of sessions at the end."""
    untaken: frozenset[str] = frozenset()
    """Messages that no program can get."""
    mbox: bool = False
    disk: str = ""
    """What is on the disk that is full in the first session: ``mail`` or ``all``."""
    hasty: bool = False
    small: bool = False
    scram: bool = False
    no_ids: bool = False
    no_top: bool = False
    asked: bool = False


@dataclass(slots=True)
class Verdict:
    """Failures in a case: numbers of messages, or flags; empty if everything is right."""

    lost: int = 0
    """Messages that are neither here nor on the server."""
    twice: int = 0
    half: int = 0
    """Partial messages, with or without other text after them."""
    forged: int = 0
    """Stored texts that are not messages of the server."""
    missing: int = 0
    """Messages on the server that were not fetched."""
    left: int = 0
    """Fetched messages that should have been deleted from the server."""
    removed: int = 0
    """Fetched messages that should have stayed on the server."""
    hangs: bool = False
    fills: bool = False
    was_reached: bool = True
    said: list[str] = field(default_factory=list)
    """The output of the program."""

    def wrong(self) -> list[str]:
        names = ("lost", "twice", "half", "forged", "missing", "left", "removed", "hangs", "fills")
        return [name for name in names if getattr(self, name)]


def judge(case: Case, remote: Remote, have: Iterable[bytes]) -> Verdict:
    """Check that each message is stored exactly once, except for line ends, and check the server.

    A known field added at the front is ignored, because this is not a test of rewriting.
    """
    found = Counter(map(normal, have))
    sent = {unique_id: normal(text) for unique_id, text in case.messages.items()}
    verdict = Verdict()
    for unique_id, text in sent.items():
        count, is_there = found.pop(text, 0), unique_id in remote.left
        verdict.twice += count > 1
        verdict.lost += not count and not is_there
        verdict.missing += not count and is_there and unique_id not in case.untaken
        verdict.left += bool(count) and is_there and not case.keep
        verdict.removed += bool(count) and not is_there and case.keep
    for text in found:
        is_half = any(whole.startswith(text[:_ITS_OWN]) for whole in sent.values())
        verdict.half += is_half
        verdict.forged += not is_half
    return verdict


def normal(text: bytes) -> bytes:
    text = text.replace(b"\r\n", b"\n").rstrip(b"\n")
    first, _, rest = text.partition(b"\n")
    return rest if first.startswith(b"Return-Path: ") else text  # getmail's


def trial(program: Program, case: Case, *, patience: float = PATIENCE) -> Verdict:
    """Run a case; a full disk needs root."""
    remote = Remote(case.messages)
    with home(program, case.disk) as place, remote:
        ca = place / "ca.pem"
        shutil.copy(remote.ca_file, ca)
        fate, hangs, fills, said = remote.fate, False, False, []
        sessions = [*case.first, *[case.then] * case.runs]
        is_fillable = _fill(place, case.disk)
        for at, session in enumerate([*sessions, *[case.then] * _MORE]):
            if (
                at >= len(sessions)
                and not judge(case, remote, stored(place, mbox=case.mbox)).missing
            ):
                break  # getmail sometimes fails for unknown reasons
            remote.session = session
            order = Order(
                place=place,
                port=remote.port,
                ca=ca,
                keep=case.keep,
                mbox=case.mbox,
                hasty=case.hasty,
                small=case.small,
                scram=case.scram and session is not POLITE,
                no_ids=case.no_ids,
                no_top=case.no_top,
                asked=case.asked and at > len(case.first),
            )
            ending = run(program, order, fate, patience)
            hangs |= ending.hangs
            fills |= ending.fills
            said.append(ending.said)
            if at == 0 and is_fillable:
                is_fillable.unlink()
        verdict = judge(case, remote, stored(place, mbox=case.mbox))
    verdict.hangs, verdict.fills, verdict.said = hangs, fills, said
    verdict.was_reached = fate.was_reached
    return verdict


@contextmanager
def home(program: Program, disk: str = "") -> Iterator[Path]:
    """Make a new home with an empty Maildir, owned by the user that runs the program."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        place = Path(name) / "home"
        (place / "Mail").mkdir(parents=True)
        Path(name).chmod(0o755)
        full = {"": None, "mail": place / "Mail", "all": place}[disk]
        if full is not None:
            options = ["-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs"]
            subprocess.run(["mount", *options, str(full)], check=True)
        try:
            for folder in ("new", "cur", "tmp"):
                (place / "Mail" / folder).mkdir(parents=True)
            if os.geteuid() == 0 and program.owner:
                owner = pwd.getpwnam(program.owner)
                for path in (place, *place.rglob("*")):
                    os.chown(path, owner.pw_uid, owner.pw_gid)
            yield place
        finally:
            if full is not None:
                subprocess.run(["umount", "--lazy", str(full)], check=True)


def _fill(place: Path, disk: str) -> Path | None:
    """Fill the disk."""
    if not disk:
        return None
    ballast = (place / "Mail" if disk == "mail" else place) / "ballast"
    free = os.statvfs(ballast.parent)
    ballast.write_bytes(b"\0" * (free.f_bavail * free.f_frsize - _ROOM))
    return ballast


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a run."""

    hangs: bool
    fills: bool
    said: str


def run(program: Program, order: Order, fate: Fate, patience: float) -> Ending:
    """Run the program to its end or its time limit, and kill remaining processes."""
    command = program.command(order)
    owner = pwd.getpwnam(program.owner) if os.geteuid() == 0 and program.owner else None
    if owner is not None:
        for path in order.place.rglob("*"):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    limits = ["prlimit", f"--fsize={FILE_LIMIT}", "--core=0", "--"]
    has_begun = threading.Event()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*limits, *command],
            cwd=order.place,
            env=environment(order.place),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
            user=owner.pw_uid if owner else None,
            group=owner.pw_gid if owner else None,
            extra_groups=[] if owner else None,
        )

        def kill() -> None:
            has_begun.wait()
            process.kill()

        fate.kill = kill
        has_begun.set()
        until, fills, before = time.monotonic() + patience, False, _octets(order.place)
        while process.poll() is None and time.monotonic() < until and not fills:
            time.sleep(_LOOK)
            fills = _octets(order.place) - before > FILE_LIMIT // 2
        hangs = process.poll() is None and not fills
        fills |= process.returncode == -signal.SIGXFSZ or os.fstat(said.fileno()).st_size > 2**20
        if hangs or fills:
            process.terminate()  # first as an operator would
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            process.kill()
        process.wait()
        _leave_nothing(process.pid)
        said.seek(0)
        return Ending(hangs, fills, said.read(2000).decode("utf-8", "replace"))


def _leave_nothing(group: int) -> None:
    """Kill remaining processes; deliveries may first end when their input ends."""
    with suppress(ProcessLookupError, PermissionError):
        for _ in range(150):
            os.killpg(group, 0)
            time.sleep(_LOOK)
        os.killpg(group, signal.SIGKILL)


def _octets(place: Path) -> int:
    """Return the octets of all files there."""
    octets = 0
    for folder, _, names in os.walk(place):
        for name in names:
            with suppress(OSError):
                octets += os.stat(os.path.join(folder, name)).st_size
    return octets
