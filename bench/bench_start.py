"""Start and memory: from the start of a server until it serves, and the CPU of whole commands.

The server has two workers, on all cores.  Memory is the sum of the proportional set sizes (PSS) of
all its processes, idle and after 400 sessions, with few and with many users in the passwd-file.

Commands are counted from start to end.  ``python -c pass`` is what every Python program costs.
``deliver`` stores one message of 4 kB, as dovecot-lda does, which lets its server look the user up.
``fetch`` and ``collect`` look at a maildrop that has nothing new, as does mpop.  Modules are
compiled before, as an installation does.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path

import bench_collect
import corpora
import harness

from restante.auth.users import Users

RUN = harness.PLACE / "start"
USER = "u0"
FEW = corpora.SMALL_USERS  # those with mail, who log in
LDA = "/usr/lib/dovecot/dovecot-lda"


def main() -> None:
    parser = harness.options(__doc__)
    chosen = parser.parse_args()
    results = harness.Results("bench_start")
    harness.ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)
    compiling = [harness.PYTHON, "-m", "compileall", "-q", str(harness.HOUSE / "src")]
    subprocess.run(compiling, check=True)
    for _ in range(chosen.rounds):
        for users in (harness.USERS[:FEW], harness.USERS):
            with harness.restante(["small"], workers=2, core=None, users=users) as server:
                look_at(server, results, len(users))
            for mode in harness.modes(chosen.against):
                with harness.dovecot(mode, ["small"], core=None, users=users) as server:
                    look_at(server, results, len(users))
    with harness.contenders(["small"], chosen.against) as servers:
        commands = {**_restante(servers[0]), **_peers(servers)}
        for words in commands.values():
            cpu(words)  # fetches what there is
        for _ in range(chosen.rounds):
            for (question, contender), words in commands.items():
                results.add(question, contender, "ms of CPU", cpu(words))
    results.report()


def look_at(server: harness.Server, results: harness.Results, users: int) -> None:
    where = f"whole server, {users:,} users"
    if users == FEW:
        results.add("from start to ready", server.name, "ms", server.started * 1000)
        results.add(f"{where}, idle", server.name, "MB of PSS", harness.pss(server.pid))
    harness.load(server, "sessions", "-U", FEW, "-c", 16, "-n", 400, core=None)
    results.add(f"{where}, after 400 sessions", server.name, "MB of PSS", harness.pss(server.pid))


def _restante(server: harness.Server) -> dict[tuple[str, str], list[str]]:
    """Return our commands by question and contender."""
    shutil.rmtree(RUN, ignore_errors=True)
    place, certificate = RUN / "restante", harness.PLACE / "restante" / "tls" / "certificate.pem"
    place.mkdir(parents=True)
    collect = bench_collect.restante(place, server.tls_port, certificate, USER)
    restante = collect[:-2]
    (place / "password").write_text(harness.PASSWORD)
    users = Users(place / "users.sqlite3")
    users.add("ann", harness.PASSWORD)
    users.close()
    url = f"pop3s://{USER}@127.0.0.1:{server.tls_port}"
    options = ["--keep", "--password-file", f"{place}/password", "--ca-file", str(certificate)]
    fetch = [*restante, "fetch", url, "--to", f"maildir:{place}/Fetched", *options]
    commands = {
        "python -c pass": [harness.PYTHON, "-I", "-c", "pass"],
        "--version": [*restante, "--version"],
        "deliver": [*restante, "deliver", "ann"],
        "fetch, nothing new": fetch,
        "collect, nothing new": collect,
    }
    return {(question, "restante"): words for question, words in commands.items()}


def _peers(servers: list[harness.Server]) -> dict[tuple[str, str], list[str]]:
    """Return the commands of the programs that are installed."""
    found = {}
    if dovecot := [each.name for each in servers if each.name.startswith("dovecot")]:
        source = str(harness.PLACE / dovecot[0] / "dovecot.conf")
        found["--version", "dovecot"] = ["dovecot", "--version"]
        found["deliver", "dovecot"] = [LDA, "-c", source, "-d", USER]
    if shutil.which("mpop"):
        place, certificate = RUN / "mpop", harness.PLACE / "restante" / "tls" / "certificate.pem"
        for name in ("cur", "new", "tmp"):
            (place / "Mail" / name).mkdir(parents=True)
        words = bench_collect.mpop(place, servers[0].tls_port, certificate, USER)
        found["collect, nothing new", "mpop"] = words
    return found


def cpu(words: list[str]) -> float:
    """Run a command; return the ms of processor time of all its processes.

    Raises:
        SystemExit: it failed; such a run has no figures.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    place = Path(RUN, "restante")
    done = subprocess.run(
        words,
        env=harness.ENVIRONMENT
        | {"STATE_DIRECTORY": str(place), "HOME": str(place), "RESTANTE__AUTH__CHAIN": "users"},
        input=corpora.message(1, 4096),
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"bench: {words}: {done.stdout.decode()}{done.stderr.decode()}")
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


if __name__ == "__main__":
    main()
