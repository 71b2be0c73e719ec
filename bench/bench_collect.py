"""Durable messages a second into a fresh Maildir, 10,000 × 4 kB over TLS, nothing deleted there.

restante also collects into a maildrop of its own, through its store, without and with a quota.
Whole commands, start to end, from the same server; slow ones are ended after ``--patience`` seconds
and their rate is taken from what had arrived.  ``--delay`` puts a relay between, which holds back
every octet for half of a round trip each way.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import harness

RUN = harness.PLACE / "collect"
NAME = "c10k_lf"


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--delay", default="0,20", help="round trips to try, in ms")
    parser.add_argument("--patience", type=float, default=15.0, help="seconds for each run")
    chosen = parser.parse_args()
    results = harness.Results("bench_collect")
    shutil.rmtree(RUN, ignore_errors=True)  # not between runs: it slows down what follows
    with harness.restante([NAME]) as server:
        harness.warm(server.mail, [NAME])
        certificate = harness.PLACE / "restante" / "tls" / "certificate.pem"
        for delay in map(float, chosen.delay.split(",")):
            with relay(server.tls_port, delay / 2000) as port:
                for at in range(chosen.rounds):
                    for contender, command in CONTENDERS.items():
                        place = RUN / f"{contender}-{delay:g}-{at}"
                        rate = measure(command, place, port, certificate, chosen.patience)
                        if rate:
                            results.add(f"round trip {delay:g} ms", contender, "messages/s", rate)
    results.report()


def measure(
    command: Callable[[Path, int, Path], list[str]],
    place: Path,
    port: int,
    certificate: Path,
    patience: float,
) -> float:
    for name in ("cur", "new", "tmp"):
        (place / "Mail" / name).mkdir(parents=True)
    words = command(place, port, certificate)
    if shutil.which(words[0]) is None:
        print(f"bench: {words[0]} left out: not installed", file=sys.stderr)
        return 0.0
    began = time.monotonic()
    environment = harness.ENVIRONMENT | {"STATE_DIRECTORY": str(place), "HOME": str(place)}
    # getmail delivers nothing as root.
    owner = pwd.getpwnam("nobody").pw_uid if words[0] == "getmail" else None
    if owner is not None:
        for path in (place, *place.rglob("*")):
            os.chown(path, owner, owner)
    said = place / "said"
    with open(said, "wb") as log:
        running = subprocess.Popen(
            words, env=environment, stdout=log, stderr=log, user=owner, group=owner
        )
        try:
            running.wait(patience)
        except subprocess.TimeoutExpired:
            running.terminate()
            running.wait()
    took = time.monotonic() - began
    return sum(1 for _ in place.glob("*/new/*")) / took


def restante(place: Path, port: int, certificate: Path, name: str = NAME) -> list[str]:
    return _restante(place, port, certificate, f"maildir:{place}/Mail", name=name)


def maildrop(place: Path, port: int, certificate: Path) -> list[str]:
    return _restante(place, port, certificate, "maildrop:ann")


def quota(place: Path, port: int, certificate: Path) -> list[str]:
    return _restante(place, port, certificate, "maildrop:ann", limit="1GiB")


def _restante(
    place: Path, port: int, certificate: Path, to: str, limit: str | int = 0, name: str = NAME
) -> list[str]:
    (place / "passwords").write_text("ann:{PLAIN}secret\n")
    sections = {
        "store": {"path": f"{place}/%u", "quota": limit},
        "auth": {"chain": ["passwd-file"]},
        "auth.passwd_file": {"path": f"{place}/passwords"},
        "account.bench": {
            "url": f"pop3s://127.0.0.1:{port}",
            "user": name,
            "password": harness.PASSWORD,
            "to": to,
            "ca_file": str(certificate),
        },
    }
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(each)}" for key, each in values.items())]
    command = [harness.PYTHON, "-m", "restante", "-c", "{}", "collect", "bench"]
    return _configured(place / "restante.toml", lines, command)


def fetch(place: Path, port: int, certificate: Path) -> list[str]:
    """Without a configuration, a ledger or an account, for once."""
    (place / "password").write_text(harness.PASSWORD)
    command = [harness.PYTHON, "-m", "restante", "fetch", f"pop3s://{NAME}@127.0.0.1:{port}"]
    command += ["--password-file", f"{place}/password", "--ca-file", str(certificate)]
    return [*command, "--keep", "--to", f"maildir:{place}/Mail"]


def mpop(place: Path, port: int, certificate: Path, name: str = NAME) -> list[str]:
    lines = [
        "defaults",
        "tls on",
        "tls_starttls off",
        f"tls_trust_file {certificate}",
        "account default",
        "host 127.0.0.1",
        f"port {port}",
        f"user {name}",
        f"password {harness.PASSWORD}",
        f"delivery maildir {place}/Mail",
        "keep on",
        f"uidls_file {place}/uidls",
    ]
    return _configured(place / "mpoprc", lines, ["mpop", "-q", "-C", "{}"])


def getmail(place: Path, port: int, certificate: Path) -> list[str]:
    lines = [
        "[retriever]",
        "type = SimplePOP3SSLRetriever",
        "server = 127.0.0.1",
        f"port = {port}",
        f"username = {NAME}",
        f"password = {harness.PASSWORD}",
        "[destination]",
        "type = Maildir",
        f"path = {place}/Mail/",
        "[options]",
        "read_all = false",
        "delete = false",
        "verbose = 0",
    ]
    return _configured(
        place / "getmailrc", lines, ["getmail", "--getmaildir", str(place), "--rcfile", "{}"]
    )


def fetchmail(place: Path, port: int, certificate: Path) -> list[str]:
    """With the cheapest program that can take mail from it, which makes nothing durable."""
    lines = [
        f"poll 127.0.0.1 protocol pop3 port {port} no dns",
        f"  user {NAME} password {harness.PASSWORD} ssl no sslcertck keep fetchall",
        f'  mda "cat > {place}/Mail/new/$$"',
    ]
    command = ["fetchmail", "-s", "-f", "{}", "-i", f"{place}/ids", "--pidfile", f"{place}/pid"]
    return _configured(place / "fetchmailrc", lines, command)


def poplib(place: Path, port: int, certificate: Path) -> list[str]:
    """The loop that everybody writes, which makes nothing durable."""
    lines = [
        "import pathlib, poplib, ssl",
        f"context = ssl.create_default_context(cafile={str(certificate)!r})",
        f"client = poplib.POP3_SSL('127.0.0.1', {port}, context=context)",
        f"client.user({NAME!r}), client.pass_({harness.PASSWORD!r})",
        "for number in range(1, client.stat()[0] + 1):",
        "    octets = b'\\n'.join(client.retr(number)[1])",
        f"    pathlib.Path({f'{place}/Mail/new'!r}, str(number)).write_bytes(octets)",
    ]
    return _configured(place / "loop.py", lines, [harness.PYTHON, "{}"])


CONTENDERS = {
    "restante": restante,
    "restante fetch": fetch,
    "restante, to a maildrop": maildrop,
    "restante, to a maildrop with a quota": quota,
    "mpop": mpop,
    "fetchmail": fetchmail,
    "getmail6": getmail,
    "a poplib loop": poplib,
}


def _configured(path: Path, lines: list[str], command: list[str]) -> list[str]:
    path.write_text("\n".join([*lines, ""]))
    path.chmod(0o600)
    return [word.format(path) for word in command]


# -- A longer way


@contextmanager
def relay(port: int, delay: float) -> Iterator[int]:
    """A port that leads to the other one, ``delay`` seconds later in each direction."""
    if not delay:
        yield port
        return
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_relay, args=(port, delay, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _relay(port: int, delay: float, port_pipe: object) -> None:
    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while octets := await source.read(262_144):
            loop.call_later(delay, target.write, octets)
        loop.call_later(delay, target.close)

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        await asyncio.gather(carry(reader, there[1]), carry(there[0], writer))

    async def serve() -> None:
        server = await asyncio.start_server(meet, "127.0.0.1", 0, limit=2**24)
        port_pipe.send(server.sockets[0].getsockname()[1])  # type: ignore[attr-defined]
        await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
