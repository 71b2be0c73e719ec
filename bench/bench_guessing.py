"""How long does an honest login take while others guess passwords?

An honest client logs in again and again, each time as another user, so that each password must be
hashed; "known" users have logged in from that network before the server was restarted.  Meanwhile
1,000 guesses a second come from 1,000 addresses, and whoever guesses does not wait for the answer;
or they come from the honest client's own address, by 20 connections that wait.

Limits are the defaults: 4,096 connections, 50 of one address; failures are answered after 2 to 8 s.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import socket
import sys
import time
from statistics import median, quantiles

import harness
import uvloop

PAUSE = 0.12  # seconds between two tries
HOME, FAR = "127.1.0.1", "127.200.0.1"
FLOOD = [f"127.2.{at // 250}.{at % 250 + 1}" for at in range(1_000)]


def main() -> None:
    parser = harness.options(__doc__ or "", rounds=1)
    parser.add_argument("--tries", type=int, default=150, help="honest logins; default %(default)s")
    parser.add_argument("--rate", type=int, default=1_000, help="guesses/s; default %(default)s")
    options = parser.parse_args()
    results = harness.Results("bench_guessing")
    os.environ["RESTANTE__LIMITS__SESSIONS"] = "4096"
    os.environ["RESTANTE__LIMITS__PER_ADDRESS"] = "50"
    harness.argon2_users()
    for _ in range(options.rounds):
        round_(results, options.tries, options.rate)
    results.tell()


def round_(results: harness.Results, tries: int, rate: int) -> None:
    fresh = iter(harness.USERS[::-1])  # without mail, and never used before
    known = {place: [next(fresh) for _ in range(tries)] for place in (HOME, FAR)}
    (harness.PLACE / "restante" / "guesses").unlink(missing_ok=True)
    with harness.restante(["small"]) as server:
        for place, users in known.items():
            for user in users:
                log_in(server.port, place, user)
    attacks: list[tuple[str, str, str, list[str]]] = [
        ("nobody guesses", FAR, "127.201.0.1", []),
        ("1,000 networks guess", FAR, "127.201.0.1", FLOOD),
        ("its own address guesses", HOME, HOME, [HOME]),
    ]
    for attack, at_home, elsewhere, attackers in attacks:
        for who, place in (("known user", at_home), ("stranger", elsewhere)):
            with harness.restante(["small"]) as server:
                users = known[place] if who == "known user" else [next(fresh) for _ in range(tries)]
                measure(results, attack, who, server, place, users, attackers, rate)


def measure(
    results: harness.Results,
    attack: str,
    who: str,
    server: harness.Server,
    place: str,
    users: list[str],
    attackers: list[str],
    rate: int,
) -> None:
    counted = multiprocessing.Value("l", 0)
    guessing = multiprocessing.Process(
        daemon=True, target=guess_for_ever, args=(server.port, attackers, rate, counted)
    )
    if attackers:
        guessing.start()
        time.sleep(3)
    began, before, guessed = time.monotonic(), cpu(server.pid), counted.value
    took, refused = [], 0
    for user in users:
        try:
            took.append(log_in(server.port, place, user) * 1000)
        except (OSError, ValueError) as error:
            refused += 1
            print(f"{attack}, {who}: {error}", file=sys.stderr)
        time.sleep(PAUSE)
    lasted = time.monotonic() - began
    used, guesses = cpu(server.pid) - before, counted.value - guessed
    if attackers:
        guessing.kill()
        guessing.join()
    for unit, value in {
        "ms, median": median(took),
        "ms, 99th of 100": quantiles([*took, *took[-1:]], n=100, method="inclusive")[98],
        "not let in": refused,
        "guesses/s": guesses / lasted,
        "% of a core": 100 * used / lasted,
    }.items():
        results.add(who, attack, unit, value)


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


def guess_for_ever(port: int, places: list[str], rate: int, counted: object) -> None:
    """So many a second, as far as there are seats; the answer is not waited for."""
    harness._allow_many_files()
    os.sched_setaffinity(0, {int(harness.LOAD_CORE)})
    uvloop.run(_guess_for_ever(port, places, rate, counted))


async def _guess_for_ever(port: int, places: list[str], rate: int, counted: object) -> None:
    tasks: set[asyncio.Task[None]] = set()
    began, number = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - began) * rate)
        while number < due and len(tasks) < min(20 * len(places), 3_000):
            task = asyncio.create_task(
                guess(port, places[number % len(places)], 1 if len(places) > 1 else 10, counted)
            )
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        number = due
        await asyncio.sleep(0.01)


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


def cpu(pid: int) -> float:
    """Seconds of processor time."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
