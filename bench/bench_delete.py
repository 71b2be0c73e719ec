"""DELE of all messages, 64 commands ahead, and the QUIT that removes them.

restante removes them at once (``hold = "0s"``) or keeps them for 14 days; Dovecot, which cannot
keep them, is put beside both.  The maildrops are copies made for each round.  QUIT is answered
when all messages are gone for good; the client hears nothing until then.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack

import corpora
import harness

HOLDS = {"0s": "hold = 0", "14d": "hold = 14 d"}


def main() -> None:
    parser = harness.options(__doc__)
    parser.set_defaults(against="dovecot-multi,dovecot-mdbox")
    parser.add_argument("--corpus", default="n10k", help="default %(default)s; also n100k")
    chosen = parser.parse_args()
    results = harness.Results("bench_delete")
    harness.use_load_core()
    name = f"{chosen.corpus}_lf"
    with ExitStack() as stack:
        servers = stack.enter_context(harness.contenders([name], chosen.against))
        holding = stack.enter_context(harness.restante([name], hold="14d"))
        questions = {id(server): list(HOLDS.values()) for server in servers}
        questions[id(servers[0])], questions[id(holding)] = [HOLDS["0s"]], [HOLDS["14d"]]
        made = []
        for at in range(chosen.rounds):
            for number, server in enumerate([*servers, holding]):
                user = f"i{at * 10 + number}"
                copy(server, name, user)
                made.append(server.mail / user)
                delete(results, server, user, corpora.SHAPES[chosen.corpus][0], questions)
    for place in made:  # not before: ext4 avoids inodes that were just freed, at a cost
        shutil.rmtree(place)
    results.report()


def copy(server: harness.Server, name: str, user: str) -> None:
    """Give the user files of its own, so that removing them frees their blocks."""
    source, place = server.mail / name / "Maildir", server.mail / user
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source / "cur", place / "Maildir" / "cur", copy_function=shutil.copyfile)
    for folder in ("new", "tmp"):
        (place / "Maildir" / folder).mkdir()
    corpora.give_to_owner(place / "Maildir")
    if server.name == "dovecot-mdbox":
        harness.fill_mdbox(server, [user])


def delete(
    results: harness.Results,
    server: harness.Server,
    user: str,
    count: int,
    questions: dict[int, list[str]],
) -> None:
    time.sleep(0.1)  # the directories must be older than the listing
    for _ in range(2):
        client = harness.Client(server)
        client.log_in(user)  # indexes them
        client.quit()
    client = harness.Client(server)
    client.log_in(user)
    before = harness.cpu(server.pid)
    for commands in harness.run_of("DELE {}", count):
        client.pipeline(commands)
    between, began = harness.cpu(server.pid), time.monotonic()
    client.quit()
    silence, after = time.monotonic() - began, harness.cpu(server.pid)
    client = harness.Client(server)
    client.log_in(user)
    if client.ask("STAT").split()[1] != b"0":
        raise SystemExit(f"bench: {server.name} did not remove all messages")
    client.quit()
    for hold in questions[id(server)]:
        deleting, quitting = f"DELE of {count:,}, {hold}", f"QUIT that removes {count:,}, {hold}"
        each = "µs of server CPU each"
        results.add(deleting, server.name, each, (between - before) / count * 1e6)
        results.add(quitting, server.name, each, (after - between) / count * 1e6)
        results.add(quitting, server.name, "ms until the answer", silence * 1e3)


if __name__ == "__main__":
    main()
