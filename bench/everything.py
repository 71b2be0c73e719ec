"""All benchmarks in some twelve minutes: results.jsonl, and from it two pages of docs/.

Name some to run only these; the results of the others stay.  ``--prepare`` only makes the mail that
they need, 10 GB, which takes minutes; later runs find it in build/bench.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import corpora
import harness
import measured
import report

HERE = Path(__file__).resolve().parent
ALL_MODES = ("--against", "dovecot-fast,dovecot-multi,dovecot-mdbox")
RUNS = (
    ("bench_sessions.py", "--sessions", "2000", *ALL_MODES),
    ("bench_logins.py", "--rounds", "2", "--against", "dovecot-multi"),
    ("bench_drain.py", "--corpora", "d4k", *ALL_MODES),
    ("bench_drain.py", "--corpora", "d25m,r25m", "--rounds", "2", "--against", "dovecot-multi"),
    ("bench_retr.py",),
    ("bench_top.py",),
    ("bench_listing.py", "--against", "dovecot-multi"),
    ("bench_listing.py", "--corpora", "n1m", "--rounds", "1", "--against", "dovecot-multi"),
    ("bench_large.py",),
    ("bench_idle_memory.py", "--connections", "4000", "--against", "dovecot-multi"),
    ("bench_crowd.py",),
    ("bench_guessing.py", "--tries", "40"),
    ("bench_workers.py", "--sessions", "2000"),
    ("bench_start.py", "--rounds", "3", "--against", "dovecot-multi"),
    ("bench_client.py",),
    ("bench_delivery.py", "--messages", "900"),
    ("bench_collect.py", "--rounds", "1", "--patience", "4", "--delay", "0,20,100"),
    # Last, since ext4 avoids inodes that were just freed, at a cost.
    ("bench_delete.py",),
    ("bench_delete.py", "--corpus", "n100k", "--rounds", "1", "--against", "dovecot-multi"),
)
DEADLINE = 600.0  # seconds for one of them


def main() -> int:
    if sys.argv[1:] == ["--prepare"]:
        prepare()
        return 0
    chosen = [run for run in RUNS if not sys.argv[1:] or run[0] in sys.argv[1:]]
    if not sys.argv[1:]:
        prepare()
    status, commands = 0, set()
    for run in chosen:
        began = time.monotonic()
        command = [sys.executable, str(HERE / run[0]), *run[1:]]
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            output, _ = running.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            print(f"bench: {run[0]} took too long and is left out", file=sys.stderr)
            os.killpg(running.pid, signal.SIGKILL)  # its servers, too, which hold its output open
            running.communicate()
            status = 1
            continue
        status |= running.returncode
        lines = [json.loads(line) for line in output.splitlines()]
        commands |= {line["command"] for line in lines}
        measured.keep(lines)
        print(f"bench: {run[0]} took {time.monotonic() - began:.0f} s", file=sys.stderr)
    if not sys.argv[1:] and status == 0:
        measured.forget_all_but(commands)
    try:
        report.write()
    except measured.Missing as error:
        print(f"bench: {error}; the pages are unchanged", file=sys.stderr)
        return 1
    return status


def prepare() -> None:
    """Make all mail, before the deadlines count."""
    forms = ("lf", "crlf")
    names = ["small", "slow", *(f"{shape}_{form}" for shape in ("d4k", "d25m") for form in forms)]
    names += ["r25m_crlf", *(f"{shape}_lf" for shape in corpora.SHAPES if shape[0] in "nc")]
    names.append("d100k_lf")
    harness.built("popload")
    for server in ("restante", "dovecot"):
        harness.mail_for(server, names)
    if harness.modes("dovecot-mdbox"):
        with harness.dovecot("mdbox", ["small", "d4k_lf", "d4k_crlf", "n10k_lf", "d100k_lf"]):
            pass  # it imports them


if __name__ == "__main__":
    sys.exit(main())
