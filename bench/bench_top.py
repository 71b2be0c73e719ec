"""TOP n 0 of every message, 64 commands ahead, as programs look over the headers of a maildrop.

10,000 messages of 600 octets, and 2,000 of 100 kB, of which a server should read only the header.
"""

from __future__ import annotations

import harness

END = b"\r\n.\r\n"


def main() -> None:
    parser = harness.options(__doc__)
    parser.set_defaults(against="dovecot-multi,dovecot-mdbox")
    parser.add_argument("--corpora", default="n10k,d100k")
    chosen = parser.parse_args()
    results = harness.Results("bench_top")
    harness.use_load_core()
    names = [f"{shape}_lf" for shape in chosen.corpora.split(",")]
    with harness.contenders(names, chosen.against) as servers:
        for at in range(-1, chosen.rounds):
            for name in names:
                for server in servers:
                    cost = top(server, name)
                    if at >= 0:  # the first brings all into the page cache
                        question = f"TOP n 0, {name}"
                        results.add(question, server.name, "µs of server CPU each", cost)
    results.report()


def top(server: harness.Server, user: str) -> float:
    """Return the µs of server CPU for each message."""
    client = harness.Client(server)
    client.log_in(user)
    count = int(client.ask("STAT").split()[1])
    before = harness.cpu(server.pid)
    for commands in harness.run_of("TOP {} 0", count):
        client.pipeline(commands, END)
    cost = harness.cpu(server.pid) - before
    client.quit()
    return cost / count * 1e6


if __name__ == "__main__":
    main()
