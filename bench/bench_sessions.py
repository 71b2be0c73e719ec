"""Sessions a second: log in, STAT, UIDL, RETR 1, QUIT; 100 users, 16 connections, plain and TLS."""

from __future__ import annotations

import harness


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--sessions", type=int, default=3000)
    chosen = parser.parse_args()
    results = harness.Results("bench_sessions")
    many = ("-U", harness.corpora.SMALL_USERS, "-c", 16)
    with harness.contenders(["small"], chosen.against) as servers:
        for server in servers:
            harness.load(server, "sessions", *many, "-n", 100)  # every password was seen once
        for _ in range(chosen.rounds):
            for tls in (False, True):
                question = "sessions over TLS" if tls else "sessions"
                count = chosen.sessions // (3 if tls else 1)
                for server in servers:
                    found = harness.load(server, "sessions", *many, "-n", count, tls=tls)
                    results.add(question, server.name, "sessions/s", found["sessions_s"])
                    cost = found["server_cpu_us_per_session"]
                    results.add(question, server.name, "µs of server CPU each", cost)
    results.report()


if __name__ == "__main__":
    main()
