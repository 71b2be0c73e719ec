"""Two workers against one, on all cores that there are, and the load generator beside them.

Where it has no core of its own, as on a machine with two, the ratio stays below what two workers
could do: both then share with it what the second core gives.  The cost of a session
shows what workers with their own cores can do: it grows with their number, minus the higher cost.
"""

from __future__ import annotations

import harness


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--sessions", type=int, default=3000)
    chosen = parser.parse_args()
    results = harness.Results("bench_workers")
    many = ("-U", harness.corpora.SMALL_USERS, "-c", 12)  # who waits must not meet himself
    for _ in range(chosen.rounds):
        for workers in (1, 2):
            with harness.restante(["small"], workers=workers, core=None) as server:
                harness.load(server, "sessions", *many, "-n", 100, core=None)
                for tls in (False, True):
                    question = "sessions over TLS, unpinned" if tls else "sessions, unpinned"
                    count = chosen.sessions // (3 if tls else 1)
                    found = harness.load(server, "sessions", *many, "-n", count, tls=tls, core=None)
                    name = f"restante, {workers} worker{'s' if workers > 1 else ''}"
                    results.add(question, name, "sessions/s", found["sessions_s"])
                    cost = found["server_cpu_us_per_session"]
                    results.add(question, name, "µs of server CPU each", cost)
    results.report()


if __name__ == "__main__":
    main()
