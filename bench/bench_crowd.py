"""Does a crowd harm honest users?  10,000 idle TLS sessions, and 200 clients that stop reading.

The crowd is logged in, each with a maildrop of its own, at two workers.  Honest users log in, read
a message and quit, before the crowd comes and while it is there; told is how long their steps take.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import harness

HONEST = ("-U", harness.corpora.SMALL_USERS, "-c", 4)
FILES_EACH = 3  # that an idle session has open: its socket, its maildrop, the lock


def main() -> None:
    parser = harness.options(__doc__, rounds=1)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--slow", type=int, default=harness.corpora.SLOW_USERS)
    parser.add_argument("--sessions", type=int, default=1000)
    chosen = parser.parse_args()
    results = harness.Results("bench_crowd")
    names = ["small", "slow"]
    for _ in range(chosen.rounds):
        with harness.restante(names, workers=2, core=None) as server:
            harness.load(server, "sessions", *HONEST, "-n", 100, core=None)
            tell(results, server, "nobody else", chosen.sessions)
            command = [harness.built("popload"), "idle", "-t", "-p", server.tls_port, "-u", "i%d"]
            command += ["-c", chosen.idle, "-U", chosen.idle, "-T", 20, "-P", server.pid]
            crowd = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
            wait_for(server.pid, chosen.idle * FILES_EACH)
            tell(results, server, "an idle crowd", chosen.sessions)
            readers = [stops_reading(server.port, f"s{at}") for at in range(chosen.slow)]
            tell(results, server, "an idle crowd, and slow readers", chosen.sessions)
            for reader in readers:
                reader.close()
            said, _ = crowd.communicate(timeout=60)
            if crowd.returncode:
                raise SystemExit(f"bench: the crowd: {said}")
    results.tell()


def tell(results: harness.Results, server: harness.Server, beside: str, count: int) -> None:
    found = harness.load(server, "sessions", *HONEST, "-n", count, core=None)
    results.add(f"sessions beside {beside}", server.name, "sessions/s", found["sessions_s"])
    results.add(f"a session beside {beside}", server.name, "ms", found["session_ms"])


def wait_for(root: int, files: int) -> None:
    """Until the workers have so many files open."""
    until = time.monotonic() + 50
    while sum(map(open_files, children(root))) < files and time.monotonic() < until:
        time.sleep(0.2)


def children(root: int) -> list[int]:
    told = Path(f"/proc/{root}/task/{root}/children").read_text()
    return [int(word) for word in told.split()]


def open_files(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def stops_reading(port: int, user: str) -> socket.socket:
    """Logged in, with 25 MB on their way."""
    connected = socket.create_connection(("127.0.0.1", port), timeout=30)
    commands = f"USER {user}\r\nPASS {harness.PASSWORD}\r\nRETR 1\r\n".encode()
    connected.sendall(commands)
    heard = b""
    while heard.count(b"+OK") < 4:
        heard += connected.recv(256)
    return connected


if __name__ == "__main__":
    main()
