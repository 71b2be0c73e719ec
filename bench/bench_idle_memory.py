"""Memory of one idle, logged-in connection: growth of the process tree over many."""

from __future__ import annotations

import harness


def main() -> None:
    parser = harness.options(__doc__, rounds=1)
    parser.add_argument("--connections", type=int, default=4000)
    chosen = parser.parse_args()
    results = harness.Results("bench_idle_memory")
    # One user per session, since a maildrop can be open only once.
    idle = ("-c", chosen.connections, "-U", chosen.connections, "-u", "i%d", "-T", 1)
    for _ in range(chosen.rounds):
        for tls in (False, True):
            with harness.contenders(["small"], chosen.against) as servers:
                for server in servers:
                    harness.load(server, "sessions", "-U", 100, "-c", 16, "-n", 100, tls=tls)
                    harness.load(server, "sessions", "-U", 100, "-c", 16, "-n", 300, tls=tls)
                    found = harness.load(server, "idle", *idle, tls=tls)
                    question = f"an idle connection, logged in{' over TLS' if tls else ''}"
                    results.add(question, server.name, "kB of PSS", found["kb_per_conn_pss"])
    results.report()


if __name__ == "__main__":
    main()
