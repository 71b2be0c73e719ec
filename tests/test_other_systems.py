"""The client, the server for tests and ``restante fetch`` where POSIX is missing, as on Windows.

A separate process hides the modules and attributes that only POSIX systems have, as far as
Python's library works without them here, and then acts like a user.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULES = (
    *("crypt", "curses", "fcntl", "grp", "nis", "pty", "pwd", "readline", "resource", "spwd"),
    *("syslog", "termios", "tty", "uvloop"),
)
ATTRIBUTES = {
    "os": (
        *("EX_CONFIG", "EX_DATAERR", "EX_IOERR", "EX_NOPERM", "EX_OK", "EX_SOFTWARE"),
        *("EX_TEMPFAIL", "EX_USAGE", "O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW"),
        *("O_NONBLOCK", "RWF_NOWAIT", "fchmod", "fchown", "fork", "geteuid", "getuid", "killpg"),
        *("mkfifo", "pread", "preadv", "sched_getaffinity", "sendfile", "statvfs"),
    ),
    "signal": ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGWINCH"),
    "socket": ("SO_REUSEPORT", "TCP_NOTSENT_LOWAT"),
    "time": ("CLOCK_BOOTTIME", "clock_gettime"),
}
FORGET = f"""
import os, shutil, signal, socket, sys, time
shutil._use_fd_functions = False  # Python's own library as on Windows: it needs O_NONBLOCK here
os.process_cpu_count = os.cpu_count  # and sched_getaffinity here
for name in {MODULES}:
    sys.modules[name] = None
for module, names in {ATTRIBUTES}.items():
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
"""


def ran(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORGET + program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def test_hidden_names_are_missing() -> None:
    """Otherwise the other tests would prove nothing."""
    with pytest.raises(AssertionError, match="fcntl"):
        ran("import fcntl")
    with pytest.raises(AssertionError, match="O_DIRECTORY"):
        ran("os.O_DIRECTORY")


def test_clients_and_the_server_for_tests(tmp_path: Path) -> None:
    program = """
import asyncio, ssl
from pathlib import Path
import restante
from restante import poplib
from restante.testing import Pop3Server
from restante.testing_hostile import ATTACKS, try_client

folder = Path(sys.argv[1])
with Pop3Server(users={"ann": "secret"}, sasl=["SCRAM-SHA-256", "PLAIN"]) as server:
    server.deliver("ann", b"Subject: one\\r\\n\\r\\nx\\r\\n")
    server.deliver("ann", b"Subject: two\\r\\n\\r\\n" + b"x" * 100_000 + b"\\r\\n")

    async def main():
        async with restante.connect(server.url("ann"), ca_file=server.ca_file) as maildrop:
            listing = await maildrop.list()
            async for message, body in maildrop.retrieve_all(listing):
                await body.save(folder / f"{message.number}.eml")

    asyncio.run(main())
    url = server.url("ann", stls=True)
    with restante.connect_blocking(url, ca_file=server.ca_file) as maildrop:
        for message, body in maildrop.retrieve_all(maildrop.list()):
            body.save(folder / f"again-{message.number}.eml")
            maildrop.delete(message)
            break
    client = poplib.POP3_SSL(
        server.host, server.port, context=ssl.create_default_context(cafile=server.ca_file)
    )
    client.user("ann")
    client.pass_("secret")
    print(client.stat()[0], len(server.held("ann")))
    client.quit()
    print(len(server.messages("ann")))

def fetch(url, ca_file, keep):
    with restante.connect_blocking(url, ca_file=ca_file) as maildrop:
        for message, body in maildrop.retrieve_all(maildrop.list()):
            keep(body.read())
            maildrop.delete(message)

print(try_client(fetch, ATTACKS["polite"]))
"""
    assert ran(program, str(tmp_path)) == "1 1\n1\n[]\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["1.eml", "2.eml", "again-1.eml"]


def test_fetch(tmp_path: Path) -> None:
    program = """
from restante.cli.main import main
from restante.testing import Pop3Server

folder = sys.argv[1]
with Pop3Server(users={"ann": "secret"}) as server:
    server.deliver("ann", b"Subject: one\\r\\n\\r\\nx\\r\\n")
    os.environ["RESTANTE_PASSWORD"] = "secret"
    url = server.url("ann").replace(":secret", "")
    sys.argv[1:] = ["fetch", url, "--to", folder, "--ca-file", str(server.ca_file)]
    print(main())
    print(len(server.messages("ann")))
"""
    assert ran(program, str(tmp_path)).splitlines()[-2:] == ["0", "0"]
    assert len(list(tmp_path.glob("*.eml"))) == 1


def test_posix_requirement_is_named() -> None:
    program = """
from restante.errors import ConfigurationError
from restante.shared import SharedLock
lock = SharedLock()
try:
    with lock:
        pass
except ConfigurationError as error:
    print(error)
lock.close()
"""
    assert "fcntl.lockf, which Windows does not have" in ran(program)
