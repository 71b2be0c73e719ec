"""Downloading everything, pipelined 64 deep: small, middling and large messages."""

from __future__ import annotations

import harness


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--corpora", default="d4k,d100k,d25m,r25m")
    chosen = parser.parse_args()
    results = harness.Results("bench_drain")
    names = [f"{shape}_{form}" for shape in chosen.corpora.split(",") for form in ("lf", "crlf")]
    names = [name for name in names if name != "r25m_lf"]
    with harness.contenders(names, chosen.against) as servers:
        sums = {name: harness.expected_sum(servers[0].mail, name)[1] for name in names}
        for name in names:  # whatever is made at the first opening is made now
            for server in servers:
                harness.load(server, "list", "-u", name, "-n", 1)
        for _ in range(chosen.rounds):
            for name in names:
                harness.warm(servers[0].mail, [name])
                for tls in (False, True):
                    question = f"drain {name}{' over TLS' if tls else ''}"
                    for server in servers:
                        drain = ("-u", name, "-d", 64, "-x", sums[name])
                        found = harness.load(server, "drain", *drain, tls=tls)
                        cost = found["server_cpu_us_per_msg"]
                        results.add(question, server.name, "messages/s", found["msgs_s"])
                        results.add(question, server.name, "MB/s", found["MB_s"])
                        results.add(question, server.name, "µs of server CPU each", cost)
    results.report()


if __name__ == "__main__":
    main()
