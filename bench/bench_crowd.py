"""Does a crowd harm honest users?  10,000 idle TLS sessions, and 10,000 clients that hardly read.

The crowd is logged in at eight workers, because one cannot open enough files.  Each client has
its own maildrop.  Slow readers have requested 25 MB and read just enough not to be disconnected.
Honest users log in, read a message and quit, before the crowd connects and while it is connected.
The result is the time that this takes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import harness

HONEST = ("-U", harness.corpora.SMALL_USERS, "-c", 4, "-a", 40)  # ports of one would be scarce
WORKERS = 8
HOLD = 180  # seconds
FILES_EACH = 3  # that an idle session has open: its socket, its maildrop, the lock


def main() -> None:
    parser = harness.options(__doc__, rounds=1)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--slow", type=int, default=harness.corpora.SLOW_USERS)
    parser.add_argument("--sessions", type=int, default=1000)
    chosen = parser.parse_args()
    harness.ENVIRONMENT["RESTANTE__LIMITS__SESSIONS"] = "30000"
    harness.ENVIRONMENT["RESTANTE__LIMITS__PER_ADDRESS"] = "30000"
    results = harness.Results("bench_crowd")
    names = ["small", "slow"]
    for _ in range(chosen.rounds):
        with harness.restante(names, workers=WORKERS, core=None) as server:
            harness.load(server, "sessions", *HONEST, "-n", 100, core=None)
            report(results, server, "no crowd", chosen.sessions)
            command = [harness.built("popload"), "idle", "-t", "-p", server.tls_port, "-u", "i%d"]
            command += ["-c", chosen.idle, "-U", chosen.idle, "-T", HOLD, "-P", server.pid]
            crowd = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
            wait_for(server.pid, chosen.idle * FILES_EACH)
            report(results, server, "an idle crowd", chosen.sessions)
            readers: list[socket.socket] = []
            for at in range(chosen.slow):
                readers.append(hardly_reads(server.port, f"s{at}"))
                if at % 2000 == 1999:
                    sip(readers)
            report(results, server, "an idle crowd, and slow readers", chosen.sessions)
            memory = sum(map(resident, children(server.pid)))
            results.add("all workers, with both crowds", server.name, "kB of memory", memory)
            for reader in readers:
                reader.close()
            crowd.kill()
            crowd.communicate()
    results.report()


def report(results: harness.Results, server: harness.Server, beside: str, count: int) -> None:
    found = harness.load(server, "sessions", *HONEST, "-n", count, core=None)
    results.add(f"sessions beside {beside}", server.name, "sessions/s", found["sessions_s"])
    for unit, key in (("ms, median", "session_ms"), ("ms, 99th of 100", "session_ms_p99")):
        results.add(f"a session beside {beside}", server.name, unit, found[key])


def wait_for(root: int, files: int) -> None:
    """Wait until the workers have this number of files open."""
    until = time.monotonic() + 50
    while sum(map(open_files, children(root))) < files and time.monotonic() < until:
        time.sleep(0.2)


def children(root: int) -> list[int]:
    output = Path(f"/proc/{root}/task/{root}/children").read_text()
    return [int(word) for word in output.split()]


def open_files(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def resident(process: int) -> int:
    """kB; what workers share is shared out among them."""
    output = Path(f"/proc/{process}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in output.splitlines() if line.startswith("Pss:"))


def hardly_reads(port: int, user: str) -> socket.socket:
    """Logged in, with 25 MB on their way.  What waits at the client is little: its memory would be
    another machine's, and here all share what the kernel has for TCP."""
    connected = socket.socket()
    connected.settimeout(30)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connected.connect(("127.0.0.1", port))
    commands = f"USER {user}\r\nPASS {harness.PASSWORD}\r\nRETR 1\r\n".encode()
    connected.sendall(commands)
    heard = b""
    while heard.count(b"+OK") < 4:
        heard += connected.recv(256)
        if b"-ERR" in heard or not heard:
            raise SystemExit(f"bench: {user} hears {heard!r}")
    return connected


def sip(readers: list[socket.socket]) -> None:
    """Take a little, each of them."""
    for reader in readers:
        if not reader.recv(2048):
            raise SystemExit("bench: a slow reader was cut off")


if __name__ == "__main__":
    main()
