"""How long does an honest login take while others guess passwords, or begin TLS and go?

An honest client logs in again and again, each time as another user, so that each password must be
hashed; "known" users have logged in from that network before the server was restarted.  Meanwhile
1,000 guesses a second come from 1,000 addresses, without waiting for the answers;
or they come from the honest client's own address, by 20 connections that wait; or 500 handshakes of
TLS a second come from 1,000 addresses, and nothing after them.

Limits are the defaults: 4,096 connections, 50 of one address; failures are answered after 2 to 8 s.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import harness
import uvloop

PAUSE = 0.12  # seconds between two tries
HOME, FAR = "127.1.0.1", "127.200.0.1"
FLOOD = [f"127.2.{at // 250}.{at % 250 + 1}" for at in range(1_000)]
ANY = ssl.create_default_context()
ANY.check_hostname, ANY.verify_mode = False, ssl.CERT_NONE


@dataclass(frozen=True)
class Attack:
    name: str
    rate: int = 0
    """Attempts a second."""
    places: Sequence[str] = ()
    """Addresses that the guesses come from."""
    known: str = FAR
    """Where a user is known."""
    strange: str = "127.201.0.1"
    """Where no user is."""
    only_tls: bool = False


def main() -> None:
    parser = harness.options(__doc__ or "", rounds=1)
    parser.add_argument("--tries", type=int, default=150, help="honest logins; default %(default)s")
    parser.add_argument("--rate", type=int, default=1_000, help="guesses/s; default %(default)s")
    options = parser.parse_args()
    results = harness.Results("bench_guessing")
    harness.ENVIRONMENT["RESTANTE__LIMITS__SESSIONS"] = "4096"
    harness.ENVIRONMENT["RESTANTE__LIMITS__PER_ADDRESS"] = "50"
    for _ in range(options.rounds):
        round_(results, options.tries, options.rate)
    results.report()


def round_(results: harness.Results, tries: int, rate: int) -> None:
    fresh = iter(harness.USERS[::-1])  # without mail, and never used before
    known = {place: [next(fresh) for _ in range(tries)] for place in (HOME, FAR)}
    (harness.PLACE / "restante" / "guesses").unlink(missing_ok=True)
    with harness.restante(["small"], chain="users") as server:
        for place, users in known.items():
            for user in users:
                log_in(server.port, place, user)
    attacks = [
        Attack("no attack"),
        Attack("1,000 networks guess", rate, FLOOD),
        Attack("its own address guesses", rate, [HOME], HOME, HOME),
        Attack("1,000 networks begin TLS", rate // 2, FLOOD, only_tls=True),
    ]
    for attack in attacks:
        for who, place in (("known user", attack.known), ("stranger", attack.strange)):
            with harness.restante(["small"], chain="users") as server:
                users = known[place] if who == "known user" else [next(fresh) for _ in range(tries)]
                measure(results, attack, who, server, place, users)


def measure(
    results: harness.Results,
    attack: Attack,
    who: str,
    server: harness.Server,
    place: str,
    users: list[str],
) -> None:
    counted = multiprocessing.Value("l", 0)
    attacking = multiprocessing.Process(
        daemon=True, target=attack_for_ever, args=(server, attack, counted)
    )
    if attack.rate:
        attacking.start()
        time.sleep(3)
    began, before, tried = time.monotonic(), harness.cpu(server.pid), counted.value
    took, refused = [], 0
    for user in users:
        try:
            took.append(log_in(server.port, place, user) * 1000)
        except (OSError, ValueError) as error:
            refused += 1
            print(f"{attack.name}, {who}: {error}", file=sys.stderr)
        time.sleep(PAUSE)
    lasted = time.monotonic() - began
    used, attempts = harness.cpu(server.pid) - before, counted.value - tried
    if attack.rate:
        attacking.kill()
        attacking.join()
    for unit, value in {
        "ms, median": median(took),
        "ms, 99th of 100": quantiles([*took, *took[-1:]], n=100, method="inclusive")[98],
        "not let in": refused,
        "attempts/s": attempts / lasted,
        "% of a core": 100 * used / lasted,
    }.items():
        results.add(who, attack.name, unit, value)


def log_in(port: int, place: str, user: str) -> float:
    """Seconds from PASS to its answer."""
    with socket.create_connection(("127.0.0.1", port), 60, (place, 0)) as connected:
        lines = connected.makefile("rb")
        ask(lines.readline())
        connected.sendall(b"USER %b\r\n" % user.encode())
        ask(lines.readline())
        began = time.perf_counter()
        connected.sendall(b"PASS %b\r\n" % harness.PASSWORD.encode())
        ask(lines.readline())
        took = time.perf_counter() - began
        connected.sendall(b"QUIT\r\n")
        lines.readline()
    return took


def ask(answer: bytes) -> None:
    if not answer.startswith(b"+OK"):
        raise ValueError(f"an honest client hears {answer!r}")


# -- Those who guess


def attack_for_ever(server: harness.Server, attack: Attack, counted: object) -> None:
    """Guess at a constant rate while connections are free, without waiting for answers."""
    harness._allow_many_files()
    os.sched_setaffinity(0, {int(harness.LOAD_CORE)})
    uvloop.run(_attack_for_ever(server, attack, counted))


async def _attack_for_ever(server: harness.Server, attack: Attack, counted: object) -> None:
    tasks: set[asyncio.Task[None]] = set()
    many = len(attack.places)
    began, number = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - began) * attack.rate)
        while number < due and len(tasks) < min(20 * many, 3_000):
            place = attack.places[number % many]
            attempt = (
                begin_tls(server.tls_port, place, counted)
                if attack.only_tls
                else guess(server.port, place, 1 if many > 1 else 10, counted)
            )
            task = asyncio.create_task(attempt)
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        number = due
        await asyncio.sleep(0.01)


async def begin_tls(port: int, place: str, counted: object) -> None:
    try:
        async with asyncio.timeout(20):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(place, 0), ssl=ANY
            )
        counted.value += 1  # type: ignore[attr-defined]
        writer.transport.abort()
    except (OSError, TimeoutError):
        pass


async def guess(port: int, place: str, patience: float, counted: object) -> None:
    try:
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(place, 0))
            if (await reader.readline()).startswith(b"+OK"):
                user = secrets.choice(harness.USERS)
                writer.write(f"USER {user}\r\nPASS {secrets.token_hex(4)}\r\n".encode())
                counted.value += 1  # type: ignore[attr-defined]
                async with asyncio.timeout(patience):
                    await reader.read(1_000)
                    await reader.read(1_000)
    except (OSError, TimeoutError):
        pass
    finally:
        if "writer" in locals():
            writer.transport.abort()


if __name__ == "__main__":
    main()
