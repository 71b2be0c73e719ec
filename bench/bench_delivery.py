"""Messages a second by LMTP, each durable before its 250; 4 kB, plain sockets, 1 to 64 senders.

Both servers sync the file and the directory (Dovecot by ``mail_fsync = always``).  ``many``: to 100
users in turn; ``one``: all to one user.  Each sender waits for the 250 before it sends the next.
The cost is the processor time of the server and its children for each message.  Writes and flushes
of the disk are those of all programs, counted by the kernel.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import harness

USERS = 100
BODY = b"Subject: message\r\n\r\n" + b"0123456789012345678901234567890123456789 line\r\n" * 85
SENDERS = (1, 16, 64)
DISK = ("disk writes each", "disk flushes each")


class Sender:
    """One connection."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(path)
        self._unread = b""
        self._expect(1, b"220")
        self._ask(b"LHLO bench\r\n", 1, b"250")

    def send(self, user: str) -> None:
        envelope = f"MAIL FROM:<bench@example.org>\r\nRCPT TO:<{user}>\r\nDATA\r\n"
        self._ask(envelope.encode(), 3, b"354")
        self._ask(BODY + b".\r\n", 1, b"250")

    def _ask(self, octets: bytes, replies: int, last: bytes) -> None:
        self._socket.sendall(octets)
        self._expect(replies, last)

    def _expect(self, replies: int, last: bytes) -> None:
        while replies:
            line, end, rest = self._unread.partition(b"\n")
            if not end:
                more = self._socket.recv(65_536)
                assert more, "the server closed"
                self._unread += more
                continue
            self._unread = rest
            if line[3:4] != b"-":
                replies -= 1
                assert line[:1] in b"23", line
        assert line.startswith(last), line

    def close(self) -> None:
        self._socket.close()


def rate(path: str, senders: int, count: int, users: list[str]) -> float:
    """Messages a second."""
    opened = [Sender(path) for _ in range(senders)]

    def work(at: int) -> None:
        for number in range(at, count, senders):
            opened[at].send(users[number % len(users)])

    with ThreadPoolExecutor(senders) as pool:
        begin = time.perf_counter()
        for done in [pool.submit(work, at) for at in range(senders)]:
            done.result()
        taken = time.perf_counter() - begin
    for each in opened:
        each.close()
    return count / taken


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--messages", type=int, default=1500)
    chosen = parser.parse_args()
    if chosen.against == "dovecot-fast,dovecot-multi":
        chosen.against = "dovecot-fast"  # its modes differ in POP3 only
    os.sched_setaffinity(0, {int(harness.LOAD_CORE)})
    results = harness.Results("bench_delivery")
    users = [f"i{at}" for at in range(USERS)]
    with harness.contenders(["small"], chosen.against) as servers:
        for server in servers:
            for user in users:
                shutil.rmtree(server.mail / user, ignore_errors=True)
            rate(server.lmtp, 1, 2 * USERS, users)  # maildrops are made
        for _ in range(chosen.rounds):
            for senders in SENDERS:
                for name, chosen_users in (("many", users), ("one", users[:1])):
                    count = chosen.messages // (4 if senders == 1 else 1)
                    for server in servers:
                        who = f"{senders} sender{'s' if senders > 1 else ''}"
                        question = f"{who}, {name} maildrop{'s' if name == 'many' else ''}"
                        deliver(results, question, server, senders, count, chosen_users)
        for server in servers:  # not before: ext4 shuns inodes that were just freed, at a cost
            for user in users:
                shutil.rmtree(server.mail / user, ignore_errors=True)
    results.report()


def deliver(
    results: harness.Results,
    question: str,
    server: harness.Server,
    senders: int,
    count: int,
    users: list[str],
) -> None:
    before, disk = harness.cpu(server.pid), harness.disk()
    found = rate(server.lmtp, senders, count, users)
    cost = (harness.cpu(server.pid) - before) / count
    results.add(question, server.name, "messages/s", found)
    results.add(f"{question}, cost", server.name, "µs CPU", cost * 1e6)
    for unit, old, new in zip(DISK, disk, harness.disk(), strict=True):
        results.add(f"{question}, disk", server.name, unit, (new - old) / count)


if __name__ == "__main__":
    main()
