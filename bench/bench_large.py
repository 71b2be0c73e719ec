"""A maildrop of 100,000 messages that receives mail: LMTP into it, and the first poll afterwards.

Mail arrives by the server's own LMTP, or another program renames files into ``new/``.  A poll is
PASS and STAT.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import bench_delivery
import corpora
import harness

USER = "n100k_lf"
SENDERS = 16
NEW = (1, 10)


def main() -> None:
    parser = harness.options(__doc__)
    parser.set_defaults(against="dovecot-multi")
    parser.add_argument("--messages", type=int, default=48, help="by LMTP; default %(default)s")
    chosen = parser.parse_args()
    results = harness.Results("bench_large")
    harness.use_load_core()
    with harness.contenders([USER], chosen.against) as servers:
        remove_new(servers)
        for server in servers:
            poll(server), poll(server)
        try:
            for _ in range(chosen.rounds):
                for server in servers:
                    polls(results, server)
                for server in servers:
                    deliver(results, server, chosen.messages)
                    time.sleep(0.05)
                    poll(server)  # so that the next poll finds only what arrives after this
        finally:
            remove_new(servers)
    results.report()


def polls(results: harness.Results, server: harness.Server) -> None:
    ways: dict[str, Callable[[harness.Server, int], object]]
    ways = {"delivered by the server": by_lmtp, "delivered by another program": by_renaming}
    for way, arrive in ways.items():
        for count in NEW:
            arrive(server, count)
            time.sleep(0.05)  # a change is seen by its time, whose ticks are 4 ms
            before = harness.cpu(server.pid)
            took = poll(server)
            cost = harness.cpu(server.pid) - before
            question = f"first poll of 100,000 after {count} new, {way}"
            results.add(question, server.name, "ms", took * 1e3)
            results.add(question, server.name, "ms of server CPU", cost * 1e3)
            time.sleep(0.05)
            poll(server)


def poll(server: harness.Server) -> float:
    """Return the seconds from PASS to the answer to STAT."""
    client = harness.Client(server)
    client.ask(f"USER {USER}")
    began = time.monotonic()
    client.ask(f"PASS {harness.PASSWORD}")
    client.ask("STAT")
    took = time.monotonic() - began
    client.quit()
    return took


def by_lmtp(server: harness.Server, count: int) -> float:
    """Return messages a second."""
    return bench_delivery.rate(server.lmtp, min(count, SENDERS), count, [USER])


def by_renaming(server: harness.Server, count: int) -> None:
    place = server.mail / USER / "Maildir"
    for number in range(count):
        wire = corpora.message(number, 600)
        name = f"{time.time_ns() // 10**9}.M{time.time_ns()}P1.other,S={len(wire)},W={len(wire)}"
        (place / "tmp" / name).write_bytes(wire)
        if os.geteuid() == 0:
            os.chown(place / "tmp" / name, corpora.OWNER, corpora.OWNER)
        (place / "tmp" / name).rename(place / "new" / name)


def deliver(results: harness.Results, server: harness.Server, count: int) -> None:
    before = harness.cpu(server.pid)
    rate = by_lmtp(server, count)
    cost = (harness.cpu(server.pid) - before) / count
    question = f"LMTP into a maildrop of 100,000, {SENDERS} senders"
    results.add(question, server.name, "messages/s", rate)
    results.add(question, server.name, "µs of server CPU each", cost * 1e6)


def remove_new(servers: list[harness.Server]) -> None:
    """Leave what other benchmarks expect."""
    corpus = harness.PLACE / "mail" / USER / "Maildir" / "cur"
    known = {_unique(path) for path in corpus.iterdir()}
    for server in servers:
        for folder in ("cur", "new"):
            for path in (server.mail / USER / "Maildir" / folder).iterdir():
                if _unique(path) not in known:
                    path.unlink()


def _unique(path: Path) -> str:
    return path.name.partition(",")[0].partition(":")[0]


if __name__ == "__main__":
    main()
