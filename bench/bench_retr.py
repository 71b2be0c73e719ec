"""RETR one at a time, each after the last octet of the one before, as Outlook and poplib do."""

from __future__ import annotations

import harness


def main() -> None:
    parser = harness.options(__doc__)
    parser.set_defaults(against="dovecot-multi,dovecot-mdbox")
    parser.add_argument("--corpora", default="n10k")
    chosen = parser.parse_args()
    results = harness.Results("bench_retr")
    names = [f"{shape}_lf" for shape in chosen.corpora.split(",")]
    with harness.contenders(names, chosen.against) as servers:
        for name in names:
            _, digest = harness.expected_sum(servers[0].mail, name)
            for server in servers:
                harness.load(server, "drain", "-u", name, "-d", 64, "-x", digest)
            for _ in range(chosen.rounds):
                for tls in (False, True):
                    question = f"RETR one at a time, {name}{' over TLS' if tls else ''}"
                    for server in servers:
                        options = ("-u", name, "-d", 1, "-x", digest)
                        found = harness.load(server, "drain", *options, tls=tls)
                        results.add(question, server.name, "messages/s", found["msgs_s"])
                        cost = found["server_cpu_us_per_msg"]
                        results.add(question, server.name, "µs of server CPU each", cost)
    results.report()


if __name__ == "__main__":
    main()
