"""What logging in costs with stored hashes: the first login of each user, later ones, and SCRAM.

argon2id in restante's own database beside ARGON2ID in Dovecot, bcrypt in a passwd-file of both, and
SCRAM-SHA-256, whose keys are stored, so that neither server computes PBKDF2.  Both caches are on.
Each session is as in bench_sessions; the first one of each of the 100 users meets a server that has
just been started.  SCRAM sessions come one at a time.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import harness

USERS = harness.corpora.SMALL_USERS
MANY = ("-U", USERS, "-c", 16)


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--sessions", type=int, default=1500)
    chosen = parser.parse_args()
    results = harness.Results("bench_logins")
    modes = harness.modes(chosen.against)
    for _ in range(chosen.rounds):
        for hashing, chain, scheme, theirs, share in hashes():
            with harness.restante(["small"], chain=chain, scheme=scheme) as server:
                measure_passwords(results, hashing, "restante", server, chosen.sessions)
                if chain == "users":
                    measure_scram(results, "restante", server, chosen.sessions // 5)
            for mode in modes:
                with harness.dovecot(mode, ["small"], scheme=theirs) as server:
                    sessions = chosen.sessions // share
                    measure_passwords(results, hashing, f"dovecot-{mode}", server, sessions)
        for mode in modes:
            with harness.dovecot(mode, ["small"], scheme="SCRAM-SHA-256") as server:
                measure_scram(results, f"dovecot-{mode}", server, chosen.sessions // 5)
    results.report()


def hashes() -> Iterator[tuple[str, str, str, str, int]]:
    """Yield the hash, the chain and the scheme of restante, the scheme of Dovecot, and the divisor
    of Dovecot's sessions, each of which takes 0.1 s with argon2id."""
    yield "argon2id", "users", "PLAIN", "ARGON2ID", 50
    trying = [harness.PYTHON, "-c", "import bcrypt"]
    if subprocess.run(trying, stderr=subprocess.DEVNULL).returncode:
        print("bench: bcrypt left out: needs restante[passwords]", file=sys.stderr)
    else:
        yield "bcrypt", "passwd-file", "BLF-CRYPT", "BLF-CRYPT", 5


def measure_passwords(
    results: harness.Results, hashing: str, contender: str, server: harness.Server, sessions: int
) -> None:
    first = harness.load(server, "sessions", *MANY, "-n", USERS)
    used = first["server_cpu_us_per_session"] / 1000
    results.add(f"{hashing}, first login", contender, "ms of server CPU each", used)
    for tls in (False, True):
        found = harness.load(server, "sessions", *MANY, "-n", sessions, tls=tls)
        question = f"{hashing}, later logins" + (", TLS" if tls else "")
        used = found["server_cpu_us_per_session"]
        results.add(question, contender, "µs of server CPU each", used)


def measure_scram(
    results: harness.Results, contender: str, server: harness.Server, sessions: int
) -> None:
    os.sched_setaffinity(0, {int(harness.LOAD_CORE)})
    for number in range(USERS):
        scram_session(server.port, f"u{number}")
    before = harness.cpu(server.pid)
    for number in range(sessions):
        scram_session(server.port, f"u{number % USERS}")
    used = (harness.cpu(server.pid) - before) * 1e6 / sessions
    results.add("SCRAM-SHA-256", contender, "µs of server CPU each", used)


# The client's half of SCRAM (RFC 5802 §3).  A library would compute PBKDF2 for each session.


def scram_session(port: int, user: str) -> None:
    with connected(port) as (connection, lines):

        def ask(command: bytes, *, is_listing: bool = False) -> bytes:
            connection.sendall(command + b"\r\n")
            answer = next(lines)
            if not answer.startswith(b"+"):
                sys.exit(f"bench: {command!r} is answered by {answer!r}")
            while is_listing and next(lines) != b".\r\n":
                pass
            return answer

        nonce = secrets.token_urlsafe(12)
        opening = f"n={user},r={nonce}"
        challenge = ask(b"AUTH SCRAM-SHA-256 " + b64encode(f"n,,{opening}".encode()))
        first = b64decode(challenge[2:]).decode()
        values = dict(part.split("=", 1) for part in first.split(","))
        key, stored = client_keys(b64decode(values["s"]), int(values["i"]))
        closing = f"c=biws,r={values['r']}"
        signature = hmac.digest(stored, f"{opening},{first},{closing}".encode(), "sha256")
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        closing += f",p={b64encode(proof).decode()}"
        if ask(b64encode(closing.encode())).startswith(b"+ "):
            ask(b"")
        ask(b"STAT")
        ask(b"UIDL", is_listing=True)
        ask(b"RETR 1", is_listing=True)
        ask(b"QUIT")


@contextmanager
def connected(port: int) -> Iterator[tuple[socket.socket, Iterator[bytes]]]:
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        connection.makefile("rb") as lines,
    ):
        next(lines)
        yield connection, lines


@cache
def client_keys(salt: bytes, iterations: int) -> tuple[bytes, bytes]:
    """Client key and stored key."""
    salted = hashlib.pbkdf2_hmac("sha256", harness.PASSWORD.encode(), salt, iterations)
    key = hmac.digest(salted, b"Client Key", "sha256")
    return key, hashlib.sha256(key).digest()


if __name__ == "__main__":
    main()
