"""What all benchmarks share: servers side by side, a load generator, medians with spread.

Every server is pinned to one core and the load generator to another; contenders take turns in
each round, so that what disturbs the machine disturbs all.  Results are JSON lines on standard
output; the talk is on standard error.  Everything made here lies in build/bench.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import corpora

from restante.auth.users import Users

HERE = Path(__file__).resolve().parent
HOUSE = HERE.parent
PLACE = Path(os.environ.get("RESTANTE_BENCH", HOUSE / "build" / "bench"))
PYTHON = os.environ.get("RESTANTE_BENCH_PYTHON", sys.executable)
"""Interpreter of restante, which needs its requirements; published figures are from a PGO build."""
PASSWORD = "secret"
DATABASE = PLACE / "restante" / "users.sqlite3"  # of restante, where its chain is "users"
SERVER_CORE, LOAD_CORE = "0", str(max(os.cpu_count() or 1, 2) - 1)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HOUSE / "src")}
USERS = [f"u{at}" for at in range(corpora.SMALL_USERS)]
USERS += [f"{shape}_{form}" for shape in corpora.SHAPES for form in ("lf", "crlf")]
USERS += [f"s{at}" for at in range(corpora.SLOW_USERS)]
USERS += [f"i{at}" for at in range(10_000)]  # without mail


class Server:
    """A contender: where it serves, and the process whose tree is counted."""

    def __init__(self, name: str, pid: int, port: int, tls_port: int, mail: Path) -> None:
        self.name, self.pid, self.port, self.tls_port, self.mail = name, pid, port, tls_port, mail
        self.lmtp = ""
        self.started = 0.0
        """Seconds from its start until it served."""


def options(description: str, *, rounds: int = 3) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="how often; default %(default)s")
    parser.add_argument(
        "--against",
        default="dovecot-fast,dovecot-multi",
        help="peers beside restante, or empty; default %(default)s",
    )
    return parser


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def mail_for(server: str, names: Sequence[str]) -> Path:
    """Each server has links of its own to the same messages, so one cannot disturb another."""
    made, own = PLACE / "mail", PLACE / f"mail-{server.partition('-')[0]}"
    corpora.make(made, *names)
    own.mkdir(exist_ok=True)
    for source in made.iterdir():
        if not (own / source.name).exists():
            shutil.copytree(source, own / source.name, copy_function=os.link)
            corpora.give_to_owner(own / source.name / "Maildir")
    os.chown(own, corpora.OWNER, corpora.OWNER) if os.geteuid() == 0 else None
    return own


def warm(mail: Path, names: Sequence[str]) -> None:
    """Bring the messages into the page cache, where a machine under memory pressure drops them."""
    for name in names:
        for path in (mail / name / "Maildir" / "cur").iterdir() if name != "small" else ():
            path.read_bytes()


# -- Servers


@contextmanager
def restante(
    names: Sequence[str],
    *,
    workers: int = 1,
    core: str | None = SERVER_CORE,
    scheme: str = "PLAIN",
    chain: str = "passwd-file",
    users: Sequence[str] = USERS,
    hold: str = "0s",
) -> Iterator[Server]:
    """``restante serve`` with its log, timers and limits on.

    ``chain`` "users" is its own database, with argon2id and keys for SCRAM.
    """
    mail = mail_for("restante", names)
    place = PLACE / "-".join(["restante", *([hold] * (hold != "0s")), *_suffix(scheme)])
    place.mkdir(exist_ok=True)
    if chain == "users":
        _fill(DATABASE)
    port, tls_port = free_port(), free_port()
    settings = {
        "server": {"listen": [f"pop3://127.0.0.1:{port}", f"pop3s://127.0.0.1:{tls_port}"]},
        "store": {"path": f"{mail}/%u/Maildir", "hold": hold},
        "auth": {
            "allow_plaintext_from": ["127.0.0.0/8"],
            "chain": [chain],
            "users": str(DATABASE),
        },
        "auth.passwd_file": {"path": str(passwd_file(place, scheme, users))},
        "intake.lmtp": {"listen": [f"unix:{place}/lmtp.sock"]},
        "limits": {"sessions": 20_000, "per_address": 20_000},
        "log": {"format": "journal"},
    }
    settings["server"]["workers"] = workers  # type: ignore[assignment]
    source = place / "restante.toml"
    source.write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items())
            for section, values in settings.items()
        )
    )
    environment = ENVIRONMENT | {"STATE_DIRECTORY": str(place)}
    ready = place / "ready"
    ready.unlink(missing_ok=True)
    command = [PYTHON, "-m", "restante", "--config", str(source), "serve"]
    pinned = ["taskset", "-c", core] if core else []
    with open(place / "log", "wb") as log:
        running = subprocess.Popen(
            [*pinned, *command, "--ready-file", str(ready)],
            env=environment,
            stderr=log,
            preexec_fn=_allow_many_files,
        )
    try:
        started = _wait_for(ready.exists, running)
        _settle(running.pid)
        server = Server("restante", running.pid, port, tls_port, mail)
        server.started = started
        server.lmtp = f"{place}/lmtp.sock"
        yield server
    finally:
        running.terminate()
        running.wait(30)


def _fill(database: Path) -> None:
    """Add all users, with the same password and, so that it does not take minutes, one hash."""
    if database.exists():
        return
    users = Users(database)
    users.add(USERS[0], PASSWORD)
    with sqlite3.connect(database) as connection:
        for table in ("users", "credentials"):
            found = connection.execute(f"SELECT * FROM {table}")
            columns = [column[0] for column in found.description]
            key = columns.index("name" if table == "users" else "user")
            row = list(found.fetchone())
            marks = ", ".join("?" * len(row))
            rows = [[*row[:key], user, *row[key + 1 :]] for user in USERS[1:]]
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
    connection.close()
    users.close()


def passwd_file(place: Path, scheme: str, users: Sequence[str] = USERS) -> Path:
    """The same for all servers: everybody has the same password, and the same hash."""
    secret = "{PLAIN}" + PASSWORD
    if scheme != "PLAIN":
        output = ["doveadm", "-c", "/dev/null", "pw", "-s", scheme, "-p", PASSWORD]
        secret = subprocess.run(output, check=True, capture_output=True, text=True).stdout.strip()
    path = place / "users"
    path.write_text("".join(f"{user}:{secret}::::::\n" for user in users))
    os.utime(path, (0, 0))  # what was written just now is read again at each login
    return path


_DOVECOT = """
base_dir = {place}/run
state_dir = {place}/state
protocols = pop3 lmtp
listen = 127.0.0.1
log_path = {place}/error.log
info_log_path = /dev/null
default_login_user = dovenull
default_internal_user = dovecot
default_client_limit = 16000
default_process_limit = 6000
default_vsz_limit = 2 G
disable_plaintext_auth = no
auth_mechanisms = {mechanisms}
ssl = yes
ssl_cert = <{place}/cert.pem
ssl_key = <{place}/key.pem
mail_location = maildir:{mail}/%u/Maildir
mail_uid = 5000
mail_gid = 5000
first_valid_uid = 5000
mail_max_userip_connections = 0
mail_fsync = always
maildir_very_dirty_syncs = yes
pop3_no_flag_updates = yes
pop3_fast_size_lookups = yes
pop3_uidl_format = %08Xu%08Xv
passdb {{
  driver = passwd-file
  args = username_format=%u {place}/users
}}
userdb {{
  driver = static
  args = uid=5000 gid=5000 home={mail}/%u allow_all_users=yes
}}
service anvil {{
  client_limit = 16000
}}
service auth {{
  client_limit = 16000
}}
service stats {{
  client_limit = 16000
}}
service lmtp {{
  unix_listener {place}/lmtp.sock {{
    mode = 0600
  }}
}}
service pop3-login {{
  inet_listener pop3 {{
    address = 127.0.0.1
    port = {port}
  }}
  inet_listener pop3s {{
    address = 127.0.0.1
    port = {tls_port}
    ssl = yes
  }}
{login}
}}
service pop3 {{
{pop3}
}}
{more}
"""
_MODES = {
    # How Debian ships it: a login process and a pop3 process per connection.
    "secure": ("  process_limit = 6000\n  process_min_avail = 8", "  process_limit = 6000", ""),
    # Its quickest for one core: processes live on, the password cache is on.
    "fast": (
        "  service_count = 0\n  process_min_avail = 2\n  client_limit = 8000\n  process_limit = 2",
        "  service_count = 0\n  process_limit = 6000\n  process_min_avail = 2",
        "auth_cache_size = 20M\nauth_cache_ttl = 1 hour",
    ),
}
# And one process serves many users, as ours does.
_LOGIN, _POP3, _CACHE = _MODES["fast"]
_MODES["multi"] = (_LOGIN, f"{_POP3}\n  client_limit = 1000", _CACHE)
# The same, with many messages in one file and an index of them, which only Dovecot can read.
_MODES["mdbox"] = (*_MODES["multi"][:2], f"{_CACHE}\nmail_location = mdbox:{{mail}}/%u/mdbox")


@contextmanager
def dovecot(
    mode: str,
    names: Sequence[str],
    *,
    core: str | None = SERVER_CORE,
    scheme: str = "PLAIN",
    users: Sequence[str] = USERS,
) -> Iterator[Server]:
    """Debian's Dovecot 2.3; needs root."""
    mail = mail_for("dovecot", names)
    name = "-".join(["dovecot", mode, *_suffix(scheme)])
    place = PLACE / name
    for folder in ("run", "state"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    pid_file = place / "run" / "master.pid"
    pid_file.unlink(missing_ok=True)
    port, tls_port = free_port(), free_port()
    if not (place / "cert.pem").exists():
        making = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650"
        files = ["-keyout", place / "key.pem", "-out", place / "cert.pem"]
        subject = ["-subj", "/CN=localhost"]
        subprocess.run([*making.split(), *subject, *files], check=True, capture_output=True)
    passwd_file(place, scheme, users)
    login, pop3, more = _MODES[mode]
    more = more.format(mail=mail)
    values = {"login": login, "pop3": pop3, "more": more, "port": port, "tls_port": tls_port}
    values["mechanisms"] = scheme.lower() if scheme.startswith("SCRAM") else "plain"
    source = place / "dovecot.conf"
    source.write_text(_DOVECOT.format(place=place, mail=mail, **values))
    pinned = ["taskset", "-c", core] if core else []
    running = subprocess.Popen(
        [*pinned, "dovecot", "-F", "-c", str(source)], preexec_fn=_allow_many_files
    )
    try:
        started = _wait_for(lambda: pid_file.exists() and _answers(port), running)
        server = Server(name, running.pid, port, tls_port, mail)
        server.started = started
        server.lmtp = f"{place}/lmtp.sock"
        if mode == "mdbox":
            fill_mdbox(server, [user for name in names for user in users_of(name)])
        yield server
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(30)


def fill_mdbox(server: Server, users: Sequence[str]) -> None:
    """Import the Maildirs of these users, unless that was done before."""
    source = PLACE / "dovecot-mdbox" / "dovecot.conf"
    for user in users:
        if not (server.mail / user / "mdbox").exists():
            maildir = f"maildir:{server.mail}/{user}/Maildir"
            words = ["doveadm", "-c", source, "import", "-u", user, maildir, "", "ALL"]
            subprocess.run(words, check=True, capture_output=True)


def users_of(name: str) -> list[str]:
    """The users that ``corpora.make`` makes for a name."""
    return USERS[: corpora.SMALL_USERS] if name == "small" else [name]


def _suffix(scheme: str) -> list[str]:
    return [] if scheme == "PLAIN" else [scheme.lower()]


def _settle(process: int) -> None:
    """Until it has looked over all maildrops for what is to be purged, as at each start."""
    until, before = time.monotonic() + 30, -1
    while time.monotonic() < until:
        ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
        now = sum(map(int, ticks))
        if now - before < 3 and before >= 0:  # of 100 a second
            return
        before = now
        time.sleep(0.5)


def _allow_many_files() -> None:
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
            return probe.recv(3) == b"+OK"
    except OSError:
        return False


def _wait_for(condition: object, running: subprocess.Popen[bytes]) -> float:
    """Return the seconds that it took, from the start of the process on."""
    assert callable(condition)
    began = time.monotonic()
    while not condition():
        if running.poll() is not None or time.monotonic() > began + 30:
            raise SystemExit(f"bench: {running.args!r} does not serve; see build/bench")
        time.sleep(0.002)
    return time.monotonic() - began


@contextmanager
def contenders(names: Sequence[str], against: str) -> Iterator[list[Server]]:
    """restante first, then the peers that are installed; all stay up and take turns."""
    with ExitStack() as stack:
        found = [stack.enter_context(restante(names))]
        found += (stack.enter_context(dovecot(mode, names)) for mode in modes(against))
        yield found


def modes(against: str) -> list[str]:
    """Return the modes of Dovecot in ``--against``; none where it cannot be started."""
    peers = list(filter(None, against.split(",")))
    if peers and (shutil.which("dovecot") is None or os.geteuid() != 0):
        print(f"bench: {against} left out: needs Dovecot, and root", file=sys.stderr)
        return []
    return [peer.partition("-")[2] for peer in peers]


# -- Load


class Client:
    """A plain POP3 client, for what popload cannot do.

    Raises:
        SystemExit: a response was not what it must be; such a run has no figures.
    """

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), 300)
        self._name = server.name
        self._expect(1, b"\r\n")

    def log_in(self, user: str) -> None:
        self.ask(f"USER {user}")
        self.ask(f"PASS {PASSWORD}")

    def ask(self, command: str, end: bytes = b"\r\n") -> bytes:
        """Return the response, which ends with ``end``."""
        return self.pipeline([command], end)

    def pipeline(self, commands: Sequence[str], end: bytes = b"\r\n") -> bytes:
        """Send all of them at once; return the responses."""
        self._socket.sendall("".join(f"{command}\r\n" for command in commands).encode())
        return self._expect(len(commands), end)

    def _expect(self, responses: int, end: bytes) -> bytes:
        received = b""
        while received.count(end) < responses:
            more = self._socket.recv(2**20)
            if not more or b"-ERR" in received[:4] + more[:4]:
                raise SystemExit(f"bench: {self._name}: {(received + more)[-200:]!r}")
            received += more
        return received

    def quit(self) -> None:
        self.ask("QUIT")
        self._socket.close()


def run_of(command: str, count: int, depth: int = 64) -> Iterator[list[str]]:
    """Yield ``command`` for the messages 1 to ``count``, ``depth`` at a time."""
    for first in range(1, count + 1, depth):
        numbers = range(first, min(first + depth, count + 1))
        yield [command.format(number) for number in numbers]


def use_load_core() -> None:
    """Run what this process does on the core of the load generator."""
    os.sched_setaffinity(0, {int(LOAD_CORE)})


def built(name: str) -> str:
    """The program made from ``name.c``."""
    source, program = HERE / f"{name}.c", PLACE / name
    PLACE.mkdir(parents=True, exist_ok=True)
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        flags = ["-O2", "-Wall", "-Wextra", "-o", program, source, "-lssl", "-lcrypto"]
        subprocess.run(["cc", *flags], check=True)
    return str(program)


def load(
    server: Server, mode: str, *arguments: object, tls: bool = False, core: str | None = LOAD_CORE
) -> dict[str, float]:
    """One run of popload; its figures by name.

    Raises:
        SystemExit: a response was not what it must be; such a run has no figures.
    """
    port = server.tls_port if tls else server.port
    pinned = ["taskset", "-c", core] if core else []
    command = [*pinned, built("popload"), mode, "-p", port, "-P", server.pid]
    output = subprocess.run(
        [*map(str, command), *(["-t"] if tls else []), *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    if output.returncode:
        raise SystemExit(f"bench: {server.name}: {output.stdout}{output.stderr}")
    found = {
        key: float(value) for key, value in re.findall(r"(\w+)=(\d[\d.]*)(?=\s)", output.stdout)
    }
    for key, rows in re.findall(r"(\w+_ms)=(p50:\S+)", output.stdout):
        for at, value in re.findall(r"(\w+):([\d.]+)", rows):
            found[key if at == "p50" else f"{key}_{at}"] = float(value)
    return found


def expected_sum(mail: Path, user: str) -> tuple[int, str]:
    """Messages, and the checksum of what a right server sends."""
    command = [built("popload"), "sum", str(mail / user / "Maildir")]
    count, _, digest = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return int(count), digest


# -- Results


class Results:
    """Figures of all rounds, printed as medians with their spread."""

    def __init__(self, bench: str) -> None:
        self._bench = bench
        self._command = shlex.join(["./dev", "bench", f"bench/{bench}.py", *sys.argv[1:]])
        self._found: dict[tuple[str, str, str], list[float]] = defaultdict(list)

    def add(self, question: str, contender: str, unit: str, value: float) -> None:
        self._found[question, contender, unit].append(value)
        print(f"{question} {contender}: {value:.4g} {unit}", file=sys.stderr)

    def report(self) -> None:
        for (question, contender, unit), values in self._found.items():
            line = {
                "bench": self._bench,
                "question": question,
                "contender": contender,
                "unit": unit,
                "median": _short(median(values)),
                "least": _short(min(values)),
                "most": _short(max(values)),
                "rounds": len(values),
                "at": datetime.now(UTC).isoformat(timespec="minutes"),
                "commit": _commit(),
                "machine": machine(),
                "command": self._command,
            }
            print(json.dumps(line), flush=True)


def cpu(pid: int) -> float:
    """Seconds of processor time of a server: of this process and its descendants."""
    return sum(_cpu(each) for each in _tree(pid))


def _cpu(pid: int) -> float:
    """Of all threads, in ns, where /proc/PID/stat counts ticks of 10 ms; and of ended children."""
    try:
        used = time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) computes it
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended: its parent counts it
        return 0.0
    return used + sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")


def disk() -> tuple[int, int]:
    """Writes and flushes of the disk that holds all mail, by all programs, since it was started.

    Raises:
        OSError: it has no counters, as where it is not a disk.
    """
    device = PLACE.stat().st_dev
    path = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat"
    fields = Path(path).read_text().split()  # Documentation/block/stat.rst of Linux
    return int(fields[4]), int(fields[15])


def pss(pid: int) -> float:
    """MB of memory of a server; what processes share is counted once."""
    rollups = (Path(f"/proc/{each}/smaps_rollup").read_text() for each in _tree(pid))
    return sum(int(re.findall(r"^Pss: +(\d+) kB", each, re.M)[0]) for each in rollups) / 1000


def _tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return
    for child in children:
        yield from _tree(int(child))


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _commit() -> str:
    output = ["git", "-C", str(HOUSE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(output, capture_output=True, text=True).stdout.strip()


@functools.cache
def machine() -> str:
    """The processor, the kernel, and the interpreter that runs restante."""
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    processor = found[1] if found else platform.machine()
    return f"{os.cpu_count()} × {processor}, Linux {platform.release()}, {interpreter()}"


def interpreter() -> str:
    """Version, build and compiler of ``PYTHON``, and whether its build was guided by a profile.

    ``configure --enable-optimizations`` is in its configuration.  Debian's build rules instead
    run ``make profile-opt``, which leaves no trace there: it is known by the package of the binary.
    """
    asked = (
        "import os, platform as p, sys, sysconfig as s\n"
        "print('Python', p.python_version(), 'built', p.python_build()[1],"
        " 'by', p.python_compiler())\n"
        "print('--enable-optimizations' in (s.get_config_var('CONFIG_ARGS') or ''))\n"
        "print(os.path.realpath(getattr(sys, '_base_executable', sys.executable)))"
    )
    output = subprocess.run([PYTHON, "-c", asked], check=True, capture_output=True, text=True)
    version, is_optimized, binary = output.stdout.splitlines()
    if is_optimized == "True":
        return f"{version}, PGO"
    return f"{version}, {'Debian, PGO' if _is_packaged(binary) else 'no PGO'}"


def _is_packaged(binary: str) -> bool:
    """Whether the interpreter is Debian's."""
    if shutil.which("dpkg-query") is None:
        return False
    asked = ["dpkg-query", "--search", binary]
    return subprocess.run(asked, capture_output=True).returncode == 0
