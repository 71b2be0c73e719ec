"""The life of the Debian package on a new machine; runs in the booted system (see booted.py).

Each step prints its name when it has succeeded; the last line is "all steps succeeded".
"""

from __future__ import annotations

import json
import os
import pwd
import re
import smtplib
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

MAIL = Path("/var/mail/restante")
STATE = Path("/var/lib/restante")
CONFIG = Path("/etc/restante/restante.toml")
ADDRESS = "ann@example.org"
UNITS = [
    *("restante.service", "restante.socket", "restante-lmtp.socket", "restante-smtp.socket"),
    "restante-collect.service",
]
STEPS: list[Callable[[], None]] = []


def step(function: Callable[[], None]) -> Callable[[], None]:
    STEPS.append(function)
    return function


def run(*command: str, text: str = "", fails: bool = False) -> str:
    """Run a command and return its standard output; ``fails`` says whether it must fail."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    output = f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    assert (done.returncode != 0) is fails, f"{command}: {output}"
    return done.stdout


def wait_for(condition: Callable[[], bool], what: str) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"waited 30 s for: {what}")


def open_ports() -> set[str]:
    lines = run("ss", "-ltnH").splitlines()
    return {line.split()[3] for line in lines}


def state_of(unit: str) -> str:
    done = subprocess.run(["systemctl", "is-active", unit], capture_output=True, text=True)
    return done.stdout.strip()


class Pop3:
    """A client on port 995 that verifies nothing: the certificate is made in this machine."""

    def __init__(self) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        raw = socket.create_connection(("127.0.0.1", 995), timeout=30)
        self.socket = context.wrap_socket(raw)
        self.file = self.socket.makefile("rb")
        assert self.file.readline().startswith(b"+OK")

    def ask(self, line: str) -> str:
        self.socket.sendall(line.encode() + b"\r\n")
        return self.file.readline().decode().strip()

    def log_in(self) -> Pop3:
        assert self.ask(f"USER {ADDRESS}").startswith("+OK")
        answer = self.ask(f"PASS {PASSWORD[0]}")
        assert answer.startswith("+OK"), answer
        return self

    def count(self) -> int:
        return int(self.ask("STAT").split()[1])


PASSWORD = [""]


def messages() -> int:
    client = Pop3().log_in()
    count = client.count()
    client.ask("QUIT")
    return count


@step
def install() -> None:
    run("apt-get", "install", "--yes", "--no-install-recommends", "/test/restante.deb")
    assert "restante 0" in run("restante", "--version")


@step
def nothing_is_enabled_and_no_port_is_open() -> None:
    assert open_ports() == set()
    for unit in UNITS:
        assert run("systemctl", "is-enabled", unit, fails=True).strip() == "disabled"


@step
def files_have_owners_and_modes() -> None:
    owner = pwd.getpwnam("restante")
    for directory, uid, mode in (
        (MAIL, owner.pw_uid, 0o700),
        (STATE, owner.pw_uid, 0o700),
        (CONFIG.parent, 0, 0o750),
    ):
        status = directory.stat()
        assert (status.st_uid, oct(stat.S_IMODE(status.st_mode))) == (uid, oct(mode)), directory
        assert status.st_gid == owner.pw_gid, directory


@step
def libraries_are_compiled() -> None:
    assert len(list(Path("/usr/lib/restante").rglob("*.pyc"))) > 100


@step
def the_launcher_ignores_python_variables_and_the_current_directory() -> None:
    Path("/tmp/restante").mkdir()
    Path("/tmp/restante/__init__.py").write_text("raise SystemExit('the wrong module')")
    command = ["env", "-C", "/tmp", "PYTHONPATH=/tmp", "restante", "--version"]
    assert "restante 0" in run(*command)


@step
def set_up() -> None:
    said = run("restante", "init", ADDRESS, "--yes")
    PASSWORD[0] = re.findall(r"^  password +(\S+)", said, re.MULTILINE)[0]
    status = CONFIG.stat()
    owner = pwd.getpwnam("restante")
    assert (status.st_uid, status.st_gid) == (0, owner.pw_gid)
    assert oct(stat.S_IMODE(status.st_mode)) == oct(0o640)
    for unit in ("restante.service", "restante.socket", "restante-lmtp.socket"):
        assert state_of(unit) == "active", unit
        assert run("systemctl", "is-enabled", unit).strip() == "enabled"
    assert state_of("restante-smtp.socket") == "inactive"
    assert {address.rpartition(":")[2] for address in open_ports()} == {"995", "24"}
    before = CONFIG.read_text()
    assert "password" not in run("restante", "init", ADDRESS, "--yes")
    assert CONFIG.read_text() == before


@step
def commands_of_root_run_as_the_servers_user() -> None:
    run("restante", "check")
    assert ADDRESS in run("restante", "user", "list")
    secret = Path.home() / "secret"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)
    run("restante", "user", "add", "bob@example.org", "--password-file", str(secret))
    run("restante", "deliver", "bob@example.org", text="Subject: hi\n\nhi\n")
    assert "hi" in run("restante", "maildrop", "show", "bob@example.org")
    owner = pwd.getpwnam("restante").pw_uid
    for path in [*STATE.rglob("*"), *MAIL.rglob("*")]:
        assert path.lstat().st_uid == owner, path
    run("restante", "user", "rm", "bob@example.org", "--yes")


@step
def deliver_by_lmtp_and_download_by_curl() -> None:
    with smtplib.LMTP("127.0.0.1", 24) as client:
        client.sendmail("bob@example.net", [ADDRESS], "Subject: hello\r\n\r\nIt works.\r\n")
    command = ["curl", "--silent", "--insecure", "--user", f"{ADDRESS}:{PASSWORD[0]}"]
    assert "It works." in run(*command, "pop3s://127.0.0.1/1")


@step
def doctor_finds_no_fault() -> None:
    """Only DNS and the disk cannot be right on an overlay without a network."""
    before = messages()
    command = ["restante", "doctor", "--json", "--round-trip", ADDRESS, "--mta-user", "daemon"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    findings = json.loads(done.stdout)["findings"]
    faults = [each for each in findings if each["level"] in ("warning", "error")]
    assert {each["check"] for each in faults} == {"dns", "store"}, faults
    assert "is on overlay" in str(faults), faults
    well = {each["check"] for each in findings if each["level"] == "ok"}
    assert well >= {
        *("configuration", "files", "server", "listen", "tls", "limits", "users", "lmtp"),
        *("units", "package", "processes", "round-trip"),
    }, findings
    assert messages() == before


@step
def doctor_names_a_disabled_unit_and_enables_it() -> None:
    run("systemctl", "disable", "restante.service", "restante.socket")
    assert "is not enabled" in run("restante", "doctor", fails=True)
    run("restante", "doctor", "--fix", fails=True)  # because of DNS
    assert run("systemctl", "is-enabled", "restante.service").strip() == "enabled"
    run("systemctl", "enable", "restante.socket")


@step
def root_sees_status_and_sessions_and_ends_them() -> None:
    run("restante", "status", "--exit-code")
    client = Pop3().log_in()
    client.ask("DELE 1")
    assert ADDRESS in run("restante", "sessions", "list")
    run("restante", "sessions", "end", "--user", ADDRESS)
    assert client.file.readline() == b""
    assert messages() == 1  # ended without QUIT, so nothing was removed (RFC 1939 §6)
    # Other users of the machine may neither read nor change anything.
    run("runuser", "-u", "nobody", "--", "restante", "sessions", "list", fails=True)


@step
def metrics_and_health_can_be_scraped() -> None:
    CONFIG.write_text(CONFIG.read_text() + '\n[metrics]\nlisten = "127.0.0.1:9110"\n')
    run("systemctl", "restart", "restante")
    messages()
    login = 'restante_logins_total{result="ok",mechanism="user"} 1\n'
    scrape = ["curl", "--silent", "--fail", "http://127.0.0.1:9110/metrics"]
    wait_for(lambda: login in run(*scrape), "the count of one login")
    for path in ("healthz", "readyz"):
        run("curl", "--silent", "--fail", f"http://127.0.0.1:9110/{path}")
    by_socket = ["curl", "--silent", "--fail", "--unix-socket", "/run/restante/control/0.sock"]
    assert "restante_build_info" in run(*by_socket, "http://restante/metrics")


@step
def reload_keeps_sessions() -> None:
    client = Pop3().log_in()
    run("systemctl", "reload", "restante")
    assert client.count() == 1
    client.ask("QUIT")


@step
def refused_reload_fails_and_changes_nothing() -> None:
    before = CONFIG.read_text()
    CONFIG.write_text(before + "[nonsense]\n")
    run("systemctl", "reload", "restante", fails=True)
    assert "nonsense" in run("sh", "-c", "restante reload 2>&1", fails=True)
    CONFIG.write_text(before)
    run("systemctl", "reload", "restante")
    assert messages() == 1


@step
def a_killed_server_is_started_again() -> None:
    run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "restante.service")
    wait_for(lambda: state_of("restante.service") == "active", "the restarted server")
    assert messages() == 1


@step
def the_sandbox_is_strict() -> None:
    last = run("systemd-analyze", "security", "--no-pager", "restante.service").splitlines()[-1]
    assert last.rstrip().endswith(("OK", "OK 🙂", "OK :-)")), last
    for unit in UNITS:
        run("systemd-analyze", "verify", "--man=no", f"/lib/systemd/system/{unit}")


@step
def upgrade_with_a_client_in_a_session() -> None:
    client = Pop3().log_in()
    client.ask("DELE 1")
    run("apt-get", "install", "--yes", "/test/newer.deb")
    assert "+test" in run("dpkg-query", "-W", "-f", "${Version}", "restante")
    wait_for(lambda: state_of("restante.service") == "active", "the upgraded server")
    # The session ended without QUIT, so its message is still there (RFC 1939 §6).
    assert messages() == 1


@step
def roll_back() -> None:
    run("apt-get", "install", "--yes", "--allow-downgrades", "/test/restante.deb")
    assert "+test" not in run("dpkg-query", "-W", "-f", "${Version}", "restante")
    wait_for(lambda: state_of("restante.service") == "active", "the older server")
    assert messages() == 1


@step
def commands_of_the_pages_work() -> None:
    for command in Path("/test/commands").read_text().splitlines():
        print(f"  {command}", flush=True)
        # The input is the password of a user that a page adds.
        run("sh", "-ec", f"cd /root; {command}", text="k7fq-2m9x-tw4r-h8zd\n")
    wait_for(lambda: state_of("restante.service") == "active", "the server")
    assert messages() > 0


@step
def remove_stops_everything_and_keeps_the_configuration_and_mail() -> None:
    run("apt-get", "remove", "--yes", "restante")
    assert open_ports() == set()
    assert run("pgrep", "-u", "restante", fails=True) == ""
    assert CONFIG.exists()
    assert list(MAIL.glob("**/new/*")) + list(MAIL.glob("**/cur/*"))
    assert not list(Path("/usr/lib").glob("restante/**/*.pyc"))


@step
def purge_keeps_mail_and_users() -> None:
    said = run("sh", "-c", "apt-get purge --yes restante 2>&1")
    assert f"{MAIL} is not empty and was kept" in said
    assert list(MAIL.glob("**/new/*")) + list(MAIL.glob("**/cur/*"))
    assert (STATE / "users.sqlite3").exists() or list(STATE.iterdir())


def main() -> None:
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    for each in STEPS:
        print(f"{each.__name__} …", flush=True)
        each()
    print("all steps succeeded", flush=True)


if __name__ == "__main__":
    main()
