"""All questions in some ten minutes: results.jsonl, and from it docs/performance.md.

What a question has said is kept until it is asked again, so that one can be asked alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import report

HERE = Path(__file__).resolve().parent
RUNS = (
    ("bench_sessions.py", "--sessions", "2000"),
    ("bench_drain.py", "--corpora", "d4k"),
    ("bench_drain.py", "--corpora", "d25m,r25m", "--rounds", "2", "--against", "dovecot-multi"),
    ("bench_listing.py", "--against", "dovecot-multi"),
    ("bench_listing.py", "--corpora", "n1m", "--rounds", "1", "--against", "dovecot-multi"),
    ("bench_idle_memory.py", "--connections", "4000", "--against", "dovecot-multi"),
    ("bench_crowd.py",),
    ("bench_guessing.py", "--tries", "100"),
    ("bench_workers.py", "--sessions", "2000"),
    ("bench_start.py", "--rounds", "5", "--against", "dovecot-multi"),
    ("bench_delivery.py", "--messages", "900"),
    ("bench_collect.py", "--rounds", "1", "--patience", "8", "--delay", "0,20,100"),
)
DEADLINE = 300.0  # seconds for one of them


def main() -> int:
    status = 0
    for run in RUNS:
        if sys.argv[1:] and run[0] not in sys.argv[1:]:
            continue
        began = time.monotonic()
        command = [sys.executable, str(HERE / run[0]), *run[1:]]
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            output, _ = running.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            print(f"bench: {run[0]} took too long and is left out", file=sys.stderr)
            os.killpg(running.pid, signal.SIGTERM)  # its servers, too
            running.communicate()
            status = 1
            continue
        status |= running.returncode
        report.keep([json.loads(line) for line in output.splitlines()])
        print(f"bench: {run[0]} took {time.monotonic() - began:.0f} s", file=sys.stderr)
    report.write()
    return status


if __name__ == "__main__":
    sys.exit(main())
