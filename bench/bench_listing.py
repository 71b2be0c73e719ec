"""A poll and a listing of 10 to 1,000,000 messages, warm: how the cost grows."""

from __future__ import annotations

import harness


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--corpora", default="n10,n1k,n10k,n100k", help="also n1m, of some GB")
    chosen = parser.parse_args()
    results = harness.Results("bench_listing")
    names = [f"{shape}_lf" for shape in chosen.corpora.split(",")]
    with harness.contenders(names, chosen.against) as servers:
        for server in servers:
            for name in names:
                harness.load(server, "list", "-u", name, "-n", 2)
        for _ in range(chosen.rounds):
            for name in names:
                for server in servers:
                    found = harness.load(server, "list", "-u", name, "-n", 5)
                    poll = found["auth_ms"] + found["stat_ms"]
                    results.add(f"PASS and STAT, {name}", server.name, "ms", poll)
                    for step in ("list", "uidl"):
                        question = f"{step.upper()}, {name}"
                        results.add(question, server.name, "ms", found[f"{step}_ms"])
    results.report()


if __name__ == "__main__":
    main()
