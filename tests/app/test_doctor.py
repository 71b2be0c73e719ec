"""``restante doctor``: for each check an installation with one fault, which only it reports."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pwd
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import md5, sha256
from importlib.metadata import PathDistribution
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any
from unittest.mock import patch

import pytest

from restante import config, tls
from restante.app import privileges
from restante.app.asking import ask
from restante.app.doctor import checks, clock, dns, files, host, intake, round_trip, server
from restante.app.doctor.findings import Check, Finding, Level, Subject, ok
from restante.app.doctor.repairs import CannotRepair, Repair
from restante.app.job import Job, open_ledger
from restante.auth.users import Users
from restante.collect.health import Health
from restante.collect.oauth.flow import Tokens
from restante.config import Configuration
from restante.errors import ConfigurationError, TemporaryFailure
from restante.passdb import UserAccount
from restante.store.maildir import MaildirStore

from .. import as_root
from ..cli.conftest import Restante
from ..cli.conftest import ann as ann
from ..cli.conftest import home as home
from ..cli.conftest import restante as restante
from ..client.test_discovery import answering as answering_dns
from ..support import once

OTHER = 12345  # a user ID without an account
WAIT = 20.0  # seconds
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change owners")


FILTER = (Path(__file__).parents[2] / "contrib/fail2ban/restante.conf").read_text()


class Installation:
    """A server as an operator runs it, with the files of an operating system beside it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.system = place / "system"
        self.source = place / "restante.toml"
        place.chmod(0o700)
        with closing(Users(place / "users.sqlite3")) as users:
            users.add("ann", "secret")
        (place / "mail").mkdir(0o700)
        self.use_certificate("first")
        self._write_system()
        self._write_configuration()

    def _write_system(self) -> None:
        """Write what the checks read of the operating system."""
        self.write_system("etc/fail2ban/jail.conf", "")
        self.write_system("etc/fail2ban/jail.d/restante.conf", "[restante]\nenabled = true\n")
        self.write_system("etc/fail2ban/filter.d/restante.conf", FILTER)
        self.write_system("lib/systemd/system/restante.service", "")
        self.write_system("etc/systemd/system/multi-user.target.wants/restante.service", "")
        for folder in ("proc/self", "run/systemd/system"):
            (self.system / folder).mkdir(parents=True)
        self.mount("ext4")

    def write_system(self, path: str, text: str) -> None:
        (self.system / path).parent.mkdir(parents=True, exist_ok=True)
        (self.system / path).write_text(text)

    def mount(self, kind: str) -> None:
        point = str(self.place).replace(" ", "\\040")
        (self.system / "proc/self/mountinfo").write_text(
            f"22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
            f"23 22 8:2 / {point} rw shared:2 - {kind} /dev/sdb1 rw\n"
        )

    def _write_configuration(self) -> None:
        self.source.write_text(
            f"""
[server]
hostname = "localhost"
listen = ["pop3://127.0.0.1:0", "pop3s://127.0.0.1:0"]
workers = 2
[intake.lmtp]
listen = "unix:{self.place}/lmtp.sock"
[tls]
mode = "files"
cert = "{self.place}/cert.pem"
key = "{self.place}/key.pem"
[limits]
sessions = 100
"""
        )

    def use_certificate(self, name: str) -> None:
        """Install a new certificate, which is its own authority."""
        made, key = tls.make_self_signed(self.place / "authority" / name, ["localhost"])
        self.install(made.read_bytes(), key.read_bytes())

    def install(self, certificate: bytes, key: bytes) -> None:
        for path, octets in (("cert.pem", certificate), ("key.pem", key)):
            (self.place / path).touch(0o600)
            (self.place / path).write_bytes(octets)

    def start(self) -> None:
        command = [sys.executable, "-m", "restante", "-c", str(self.source), "--json", "serve"]
        with open(self.place.parent / "log", "wb") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {"STATE_DIRECTORY": str(self.place)},
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        self.addresses = json.loads(self.process.stdout.readline())

        self.limit_files(4096)

    def limit_files(self, number: int) -> None:
        """Let each worker have this limit of open files."""
        status = self.subject().status
        assert status is not None
        for worker in status["workers"]:
            folder = self.system / f"proc/{worker['pid']}"
            folder.mkdir(exist_ok=True)
            line = f"Max open files            {number}             8192           files\n"
            (folder / "limits").write_text(line)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def load(self) -> Configuration:
        return config.load(self.source, environment={"STATE_DIRECTORY": str(self.place)})

    def subject(self, **changes: Any) -> Subject:
        loaded = self.load()
        given = {"timeout": 2.0, "system": self.system, "owner": os.geteuid(), **changes}
        given = {"mta": "no-such-user", "service_state": self.place, **given}
        return Subject(**{"config": loaded, **given})

    def reload(self) -> None:
        reply = ask(self.place / "control", "POST", "/reload", timeout=WAIT)
        text = reply.text()
        assert reply.status == 200, text


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A healthy installation, which each test leaves as it was."""
    place = tmp_path_factory.mktemp("doctor") / "state"
    place.mkdir()
    made = Installation(place)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def installation(
    running: Installation, monkeypatch: pytest.MonkeyPatch, home: Path
) -> Installation:
    monkeypatch.setenv("SSL_CERT_FILE", str(running.place / "cert.pem"))
    monkeypatch.setenv("STATE_DIRECTORY", str(running.place))
    return running


Fault = Callable[[Installation], AbstractContextManager[Subject]]
FAULTS: dict[str, tuple[str, Level, str, Fault]] = {}
"""By name of the fault: the check that reports it, its level, a part of the text, and the fault."""


def fault(check: str, text: str, level: Level = Level.ERROR) -> Callable[[Any], Any]:
    """Add a function that breaks an installation, yields the subject, and repairs it."""

    def add(function: Callable[[Installation], Iterator[Subject]]) -> object:
        FAULTS[function.__name__] = check, level, text, contextmanager(function)
        return function

    return add


def assert_healthy(here: Installation) -> None:
    """Examine until nothing is found; the server uses its own checks of disks for 10 seconds."""
    end = time.monotonic() + WAIT
    while found := problems(list(checks.examine(here.subject()))):
        assert found == [("server", Level.ERROR)], "the installation was not repaired"
        assert time.monotonic() < end
        time.sleep(0.5)


def problems(findings: list[Finding]) -> list[tuple[str, Level]]:
    return [
        (each.check, each.level) for each in findings if each.level in (Level.WARNING, Level.ERROR)
    ]


# -- Configuration and files


@fault("configuration", "is not the key of")
def key_of_another_certificate(here: Installation) -> Iterator[Subject]:
    path = here.place / "key.pem"
    before = path.read_bytes()
    _, key = tls.make_self_signed(here.place / "authority" / "other", ["localhost"])
    path.write_bytes(key.read_bytes())
    yield here.subject()
    path.write_bytes(before)


@fault("configuration", "includes all addresses", Level.WARNING)
def all_networks_are_trusted(here: Installation) -> Iterator[Subject]:
    loaded = here.load()
    trusting = replace(loaded.auth, trusted=(ip_network("0.0.0.0/0"),))
    yield here.subject(config=replace(loaded, auth=trusting))


@contextmanager
def mode(path: Path, value: int) -> Iterator[None]:
    before = path.stat().st_mode & 0o7777
    path.chmod(value)
    yield
    path.chmod(before)


@fault("files", "can write to")
def others_can_write_the_configuration(here: Installation) -> Iterator[Subject]:
    with mode(here.source, 0o666):
        yield here.subject()


@fault("files", "can read")
def others_can_read_the_users(here: Installation) -> Iterator[Subject]:
    with mode(here.place / "users.sqlite3", 0o644):
        yield here.subject()


@fault("files", "first-password, which contains a secret")
def others_can_read_a_password(here: Installation) -> Iterator[Subject]:
    path = here.place / "first-password"
    path.touch()
    path.chmod(0o640)
    yield here.subject()
    path.unlink()


@fault("files", "no process listens", Level.WARNING)
def socket_of_a_worker_that_no_longer_exists(here: Installation) -> Iterator[Subject]:
    path = here.place / "control/9.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    yield here.subject()
    path.unlink()


# -- The running server


@fault("server", "the running server uses")
def another_configuration_file(here: Installation) -> Iterator[Subject]:
    other = here.place / "other.toml"
    other.write_bytes(here.source.read_bytes())
    yield here.subject(config=replace(here.load(), source=other))
    other.unlink()


@fault("server", "not reloaded", Level.WARNING)
def configuration_was_changed(here: Installation) -> Iterator[Subject]:
    before = here.source.stat()
    os.utime(here.source, (time.time() + 60,) * 2)
    yield here.subject()
    os.utime(here.source, ns=(before.st_atime_ns, before.st_mtime_ns))


def reporting(here: Installation, fault: str) -> Subject:
    subject = here.subject()
    assert subject.status is not None
    for name in ("faults", "attention"):
        subject.status[name].append(fault)
    return subject


@fault("server", "mail storage: Input/output error (checked by the server at most 10 s ago)")
def server_cannot_store_mail(here: Installation) -> Iterator[Subject]:
    yield reporting(here, "mail storage: Input/output error")


@fault("server", "no identity back end answers")
def server_cannot_check_logins(here: Installation) -> Iterator[Subject]:
    yield reporting(here, "no identity back end answers: users")


@fault("store", "can write to")
def mail_directory_with_a_cause_that_the_server_reports(here: Installation) -> Iterator[Subject]:
    with mode(here.place / "mail", 0o777):
        yield reporting(here, "mail storage: Input/output error")


@fault("users", "users.sqlite3")
def user_database_that_the_server_cannot_read(here: Installation) -> Iterator[Subject]:
    path = here.place / "users.sqlite3"
    before = path.read_bytes()
    path.write_bytes(before[:100] + b"\xff" * (len(before) - 100))
    yield reporting(here, "no identity back end answers: users")
    path.write_bytes(before)


@fault("server", "does not listen on pop3://127.0.0.1:9")
def address_that_the_server_does_not_listen_on(here: Installation) -> Iterator[Subject]:
    loaded = here.load()
    listen = (*loaded.server.listen, "pop3://127.0.0.1:9")
    yield here.subject(config=replace(loaded, server=replace(loaded.server, listen=listen)))


@fault("server", "is not configured", Level.WARNING)
def address_that_is_not_configured(here: Installation) -> Iterator[Subject]:
    loaded = here.load()
    listen = loaded.server.listen[:1]
    yield here.subject(config=replace(loaded, server=replace(loaded.server, listen=listen)))


# -- Listeners


def issued(names: list[str], begins: timedelta, ends: timedelta) -> tuple[bytes, bytes]:
    """Return a self-signed certificate and its key, both in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    alternatives = x509.SubjectAlternativeName([x509.DNSName(each) for each in names])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(alternatives, critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(encoding), private


@contextmanager
def serving(here: Installation, certificate: bytes, key: bytes) -> Iterator[Subject]:
    """Make the server use another certificate."""
    before = [(here.place / name).read_bytes() for name in ("cert.pem", "key.pem")]
    here.install(certificate, key)
    here.reload()
    yield here.subject()
    here.install(*before)
    here.reload()


@fault("listen", "has expired")
def certificate_has_expired(here: Installation) -> Iterator[Subject]:
    with serving(here, *issued(["localhost"], timedelta(-9), timedelta(-1))) as subject:
        yield subject


@fault("listen", "expires in 2 days", Level.WARNING)
def certificate_expires_soon(here: Installation) -> Iterator[Subject]:
    with serving(here, *issued(["localhost"], timedelta(-9), timedelta(2.5))) as subject:
        yield subject


@fault("listen", "is not valid yet")
def certificate_is_not_valid_yet(here: Installation) -> Iterator[Subject]:
    with serving(here, *issued(["localhost"], timedelta(1), timedelta(90))) as subject:
        yield subject


@fault("listen", "is not for localhost")
def certificate_is_for_another_name(here: Installation) -> Iterator[Subject]:
    with serving(here, *issued(["example.org"], timedelta(-1), timedelta(90))) as subject:
        [finding] = [each for each in server.listen(subject) if each.level is Level.ERROR]
        assert "set server.hostname to one of its names" in finding.command
        yield subject


@fault("listen", "may not trust", Level.WARNING)
def certificate_is_not_trusted(here: Installation) -> Iterator[Subject]:
    before = os.environ["SSL_CERT_FILE"]
    os.environ["SSL_CERT_FILE"] = os.devnull
    yield here.subject()
    os.environ["SSL_CERT_FILE"] = before


@fault("listen", "does not use the certificate", Level.WARNING)
def renewed_certificate_is_not_in_use(here: Installation) -> Iterator[Subject]:
    before = [(here.place / name).read_bytes() for name in ("cert.pem", "key.pem")]
    here.use_certificate("renewed")
    yield here.subject()
    here.install(*before)


def pretend(subject: Subject, listen: list[dict[str, str]]) -> Subject:
    """Let the server say that it listens on these addresses."""
    assert subject.status is not None
    subject.status["listen"] = listen
    return subject


@contextmanager
def peer(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Run a peer on a free port, which calls ``serve`` for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connected, _ = listening.accept()
                    with connected, suppress(OSError):
                        connected.settimeout(5)
                        serve(connected)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(WAIT)


def another_pop3s(
    here: Installation, context: ssl.SSLContext, capability: bytes
) -> Iterator[Subject]:
    """Serve POP3S in place of the server; CAPA lists one capability."""

    def serve(connected: socket.socket) -> None:
        with context.wrap_socket(connected, server_side=True) as secured:
            secured.sendall(b"+OK\r\n")
            while octets := secured.recv(1000):
                answer = (
                    b"+OK\r\n%b\r\n.\r\n" % capability if octets.startswith(b"CAPA") else b"+OK\r\n"
                )
                secured.sendall(answer)

    with peer(serve) as port:
        loaded = here.load()
        listen = replace(loaded.server, listen=(f"pop3s://127.0.0.1:{port}",))
        subject = here.subject(config=replace(loaded, server=listen))
        lmtp = {"proto": "lmtp", "listen": f"unix:{here.place}/lmtp.sock"}
        yield pretend(subject, [{"proto": "pop3s", "listen": f"127.0.0.1:{port}"}, lmtp])


@fault("listen", "offers no way to log in")
def server_without_mechanisms(here: Installation) -> Iterator[Subject]:
    context = tls.server_context(here.place / "cert.pem", here.place / "key.pem")
    yield from another_pop3s(here, context, b"UIDL")


@fault("tls", "accepts TLS 1.0")
def server_accepts_old_tls(here: Installation) -> Iterator[Subject]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(here.place / "cert.pem", here.place / "key.pem")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    yield from another_pop3s(here, context, b"USER")


@fault("limits", "may open", Level.WARNING)
def too_few_open_files(here: Installation) -> Iterator[Subject]:
    here.limit_files(256)
    yield here.subject()
    here.limit_files(4096)


# -- Clock, store and users


@contextmanager
def ntp_server(*, ahead: float = 0.0, answers: bool = True) -> Iterator[str]:
    """Run an NTP server, whose clock is ahead by a number of seconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(WAIT)

        def serve() -> None:
            request, client = listening.recvfrom(100)
            seconds = time.time() + 2_208_988_800 + ahead
            stamp = struct.pack("!II", int(seconds), int(seconds % 1 * 2**32))
            forged = bytes([0x24, 1]).ljust(24, b"\0") + b"\1" * 8 + bytes(16)
            listening.sendto(forged, client)
            if answers:
                reply = bytes([0x24, 1]).ljust(24, b"\0") + request[40:] + stamp + stamp
                listening.sendto(reply, client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join(WAIT)


@fault("clock", "3600.0 s behind", Level.WARNING)
def clock_is_wrong(here: Installation) -> Iterator[Subject]:
    with ntp_server(ahead=3600) as name:
        yield here.subject(ntp=name)


@fault("store", "a network file system", Level.WARNING)
def mail_is_on_a_network_file_system(here: Installation) -> Iterator[Subject]:
    here.mount("nfs4")
    yield here.subject()
    here.mount("ext4")


@fault("store", "can write to")
def others_can_write_the_mail_directory(here: Installation) -> Iterator[Subject]:
    with mode(here.place / "mail", 0o777):
        yield here.subject()


@fault("store", "No such file")
def mail_directory_is_missing(here: Installation) -> Iterator[Subject]:
    (here.place / "mail").rename(here.place / "elsewhere")
    yield here.subject()
    (here.place / "elsewhere").rename(here.place / "mail")


@fault("users", "users.sqlite3")
def user_database_is_damaged(here: Installation) -> Iterator[Subject]:
    path = here.place / "users.sqlite3"
    before = path.read_bytes()
    path.write_bytes(before[:100] + b"\xff" * (len(before) - 100))
    yield here.subject()
    path.write_bytes(before)


@fault("users", "no users", Level.WARNING)
def there_are_no_users(here: Installation) -> Iterator[Subject]:
    loaded = here.load()
    missing = replace(loaded.auth, users=str(here.place / "none.sqlite3"))
    yield here.subject(config=replace(loaded, auth=missing))


# -- Back ends and mail


def answering(status: int, document: dict[str, object]) -> Callable[[socket.socket], None]:
    """Return an HTTP server that always gives this answer."""
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close\r\n"

    def serve(connected: socket.socket) -> None:
        connected.recv(65_536)
        connected.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    return serve


@contextmanager
def asking(here: Installation, serve: Callable[[socket.socket], None]) -> Iterator[Subject]:
    """Let tokens be checked by a provider on this machine."""
    with peer(serve) as port:
        loaded = here.load()
        provider = replace(
            loaded.auth.oauth,
            issuer="https://id.example.org",
            audience=("restante",),
            introspection=f"http://127.0.0.1:{port}/",
            client_id="restante",
            client_secret=config.Secret("text", "secret"),
        )
        auth = replace(loaded.auth, chain=("users", "oauth"), oauth=provider, deadline=1.0)
        yield here.subject(config=replace(loaded, auth=auth))


@fault("back-ends", "HTTP status 500")
def provider_of_tokens_fails(here: Installation) -> Iterator[Subject]:
    with asking(here, answering(500, {})) as subject:
        yield subject


@fault("back-ends", "HTTP status 401")
def provider_refuses_our_secret(here: Installation) -> Iterator[Subject]:
    with asking(here, answering(401, {})) as subject:
        yield subject


OK = b"250 x\r\n"


def lmtp_server(refusal: bytes) -> Callable[[socket.socket], None]:
    def serve(connected: socket.socket) -> None:
        with connected.makefile("rwb") as stream:
            stream.write(b"220 x\r\n")
            stream.flush()
            for line in stream:
                stream.write(refusal if line.startswith(b"RCPT") else b"250-a\r\n250 b\r\n")
                stream.flush()

    return serve


@fault("lmtp", "450 4.2.0 not now")
def lmtp_server_refuses_mail(here: Installation) -> Iterator[Subject]:
    with peer(lmtp_server(b"450 4.2.0 not now\r\n")) as port:
        loaded = here.load()
        intake = replace(loaded.intake, lmtp=config.LMTP(listen=(f"127.0.0.1:{port}",)))
        subject = here.subject(config=replace(loaded, intake=intake))
        assert subject.status is not None
        pop3 = [each for each in subject.status["listen"] if each["proto"] != "lmtp"]
        yield pretend(subject, [*pop3, {"proto": "lmtp", "listen": f"127.0.0.1:{port}"}])


@fault("lmtp-rights", "the user daemon cannot enter")
def mail_server_cannot_enter_the_directory(here: Installation) -> Iterator[Subject]:
    yield here.subject(mta="daemon")


# -- Accounts and the machine


def with_account(here: Installation, **options: Any) -> Subject:
    account = config.Account(
        url="pop3s://pop.example.net",
        user="ann@example.net",
        to=f"maildir:{here.place}/M",
        **options,
    )
    return here.subject(config=replace(here.load(), account={"isp": account}))


@fault("accounts", "2 sessions failed", Level.WARNING)
def sessions_of_an_account_fail(here: Installation) -> Iterator[Subject]:
    subject = with_account(here, password=config.Secret("text", "secret"))
    with closing(open_ledger(subject.config)) as ledger:
        for _ in range(2):
            Health(ledger.of("isp")).record_failure(time.time())
    yield subject
    (here.place / "ledger.sqlite3").unlink()


OAUTH = config.OAuth(provider="microsoft", client_id="x")


@fault("accounts", "not signed in yet")
def account_without_a_sign_in(here: Installation) -> Iterator[Subject]:
    yield with_account(here, oauth=OAUTH)
    assert not (here.place / "tokens").exists()


@contextmanager
def signed_in(here: Installation, seconds: float) -> Iterator[Subject]:
    subject = with_account(here, oauth=OAUTH)
    Job.of(subject.config, "isp").grant.file().put(
        Tokens("access", time.time() + 60, "refresh", refresh_expires_at=time.time() + seconds)
    )
    yield subject
    shutil.rmtree(here.place / "tokens")


@fault("accounts", "expires in 3 days", Level.WARNING)
def sign_in_expires_soon(here: Installation) -> Iterator[Subject]:
    with signed_in(here, 2.5 * 86_400) as subject:
        yield subject


@fault("accounts", "expired on")
def sign_in_has_expired(here: Installation) -> Iterator[Subject]:
    with signed_in(here, -86_400) as subject:
        yield subject


RECORDS = {
    "mail.example.org. A": ["192.0.2.1"],
    "mail.example.org. AAAA": ["2001:db8::1"],
    "_pop3s._tcp.example.org.": ["0 1 995 mail.example.org."],
    "example.org. MX": ["10 mail.example.org."],
}


@contextmanager
def in_dns(here: Installation, records: dict[str, list[str]], code: str = "") -> Iterator[Subject]:
    """Let the server be mail.example.org, which receives mail for example.org over SMTP."""
    certificate = issued(["mail.example.org"], timedelta(-1), timedelta(90))
    with serving(here, *certificate), answering_dns(records, code or "NOERROR") as resolver:
        loaded = here.load()
        smtp = config.SMTP(listen=("127.0.0.1:25",), domains=("example.org",))
        named = replace(
            loaded,
            server=replace(loaded.server, hostname="mail.example.org"),
            intake=replace(loaded.intake, smtp=smtp),
        )
        subject = here.subject(config=named, resolver=resolver)
        assert subject.status is not None
        subject.status["listen"].append({"proto": "smtp", "listen": "127.0.0.1:25"})
        yield subject


def add_dns_fault(
    name: str, text: str, level: Level, records: dict[str, list[str]], code: str = ""
) -> None:
    def break_(here: Installation) -> Iterator[Subject]:
        with in_dns(here, {k: v for k, v in {**RECORDS, **records}.items() if v}, code) as subject:
            yield subject

    FAULTS[name] = "dns", level, text, contextmanager(break_)


_WRONG_RECORDS: tuple[tuple[str, str, dict[str, list[str]]], ...] = (
    ("no_srv_record", "_pop3s._tcp.example.org does not exist", {"_pop3s._tcp.example.org.": []}),
    ("service_not_offered", "has no POP3 server", {"_pop3s._tcp.example.org.": ["0 0 0 ."]}),
    (
        "srv_record_of_another_host",
        "names old.example.org:995, not mail.example.org:995",
        {"_pop3s._tcp.example.org.": ["0 1 995 old.example.org."]},
    ),
    (
        "srv_record_with_another_port",
        "names mail.example.org:110",
        {"_pop3s._tcp.example.org.": ["0 1 110 mail.example.org."]},
    ),
    ("no_mx_record", "has no MX record", {"example.org. MX": []}),
    ("mx_of_another_host", "goes to mx.example.net", {"example.org. MX": ["10 mx.example.net."]}),
)
for name, text, records in _WRONG_RECORDS:
    add_dns_fault(name, text, Level.WARNING, records)
add_dns_fault(
    "no_address",
    "mail.example.org has no address",
    Level.ERROR,
    {"mail.example.org. A": [], "mail.example.org. AAAA": []},
)
for code in ("REFUSED", "SERVFAIL"):
    add_dns_fault(f"dns_{code}", "refuse the query or fail", Level.WARNING, {}, code)


@contextmanager
def without(path: Path) -> Iterator[None]:
    aside = path.with_name("aside")
    path.rename(aside)
    yield
    aside.rename(path)


@fault("units", "restante.service is not enabled", Level.WARNING)
def server_does_not_start_at_boot(here: Installation) -> Iterator[Subject]:
    with without(here.system / "etc/systemd/system/multi-user.target.wants/restante.service"):
        yield here.subject()


@fault("units", "is masked")
def unit_is_masked(here: Installation) -> Iterator[Subject]:
    link = here.system / "etc/systemd/system/restante.service"
    link.symlink_to("/dev/null")
    yield here.subject()
    link.unlink()


@fault("fail2ban", "No such file", Level.WARNING)
def filter_of_fail2ban_is_missing(here: Installation) -> Iterator[Subject]:
    with without(here.system / "etc/fail2ban/filter.d/restante.conf"):
        yield here.subject()


@fault("fail2ban", "does not match the server's line", Level.WARNING)
def filter_of_fail2ban_does_not_match(here: Installation) -> Iterator[Subject]:
    path = "etc/fail2ban/filter.d/restante.conf"
    here.write_system(path, FILTER.replace("login refused", "login failed"))
    yield here.subject()
    here.write_system(path, FILTER)


@fault("fail2ban", "log.format is json", Level.WARNING)
def log_is_not_what_fail2ban_expects(here: Installation) -> Iterator[Subject]:
    loaded = here.load()
    yield here.subject(config=replace(loaded, log=config.Log(format="json")))


@fault("package", "changed or missing: /usr/lib/restante/a.py", Level.WARNING)
def files_of_the_package_were_changed(here: Installation) -> Iterator[Subject]:
    sums = "".join(
        f"{md5(name.encode()).hexdigest()}  usr/lib/restante/{name}.py\n" for name in "abc"
    )
    here.write_system("var/lib/dpkg/info/restante.md5sums", sums)
    here.write_system("usr/lib/restante/a.py", "changed")
    here.write_system("usr/lib/restante/b.py", "b")
    with patch.object(host, "_program", lambda: Path("/usr/lib/restante/restante")):
        yield here.subject()
    (here.system / "var/lib/dpkg/info/restante.md5sums").unlink()


@fault("processes", "process 4242", Level.WARNING)
def another_server_runs(here: Installation) -> Iterator[Subject]:
    words = ["/usr/bin/python3", "/usr/bin/restante", "--config", str(here.source), "serve", ""]
    here.write_system("proc/4242/cmdline", "\0".join(words))
    yield here.subject()
    shutil.rmtree(here.system / "proc/4242")


@fault("round-trip", "fetch: the message is not in the maildrop")
def accepted_mail_is_lost(here: Installation) -> Iterator[Subject]:
    def serve(connected: socket.socket) -> None:
        with connected.makefile("rwb") as stream:
            stream.write(b"220 x\r\n")
            stream.flush()
            is_message = False
            for line in stream:
                is_message = (is_message or line == b"DATA\r\n") and line != b".\r\n"
                stream.write((b"354 x\r\n" if line == b"DATA\r\n" else b"") if is_message else OK)
                stream.flush()

    with peer(serve) as port:
        loaded = here.load()
        intake = replace(loaded.intake, lmtp=config.LMTP(listen=(f"127.0.0.1:{port}",)))
        subject = here.subject(config=replace(loaded, intake=intake), round_trip="ann")
        assert subject.status is not None
        pop3 = [each for each in subject.status["listen"] if each["proto"] != "lmtp"]
        yield pretend(subject, [*pop3, {"proto": "lmtp", "listen": f"127.0.0.1:{port}"}])


@pytest.mark.parametrize(
    ("opened", "expected"),
    [
        ([("pop3s", "127.0.0.1:1995"), ("pop3", "127.0.0.1:1110")], []),
        ([("pop3s", "127.0.0.1:1995")], ["pop3://127.0.0.1:1110"]),
        ([("pop3s", "[::]:995")], ["[::]:995"]),  # a socket unit; server.listen is not set
        ([], ["pop3s://127.0.0.1:1995", "pop3://127.0.0.1:1110"]),
    ],
)
def test_default_addresses_count_unless_systemd_opens_others(
    opened: list[tuple[str, str]], expected: list[str], home: Path
) -> None:
    loaded = config.load(environment={"STATE_DIRECTORY": str(home)})
    subject = Subject(replace(loaded, intake=config.Intake()), 0)
    status = {"listen": [{"proto": proto, "listen": address} for proto, address in opened]}
    found = [each.text for each in server._listeners(subject, status)]
    assert len(found) == len(expected)
    assert all(address in text for address, text in zip(expected, found, strict=True))


# -- The table


def test_every_check_has_a_broken_installation() -> None:
    assert {check for check, *_ in FAULTS.values()} == {each.name for each in checks.CHECKS}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_doctor_names_the_fault_and_nothing_else(name: str, installation: Installation) -> None:
    check, level, text, break_ = FAULTS[name]
    with break_(installation) as subject:
        found = list(checks.examine(subject))
    assert set(problems(found)) == {(check, level)}, found
    assert any(text in each.text for each in found if each.level is level), found
    assert checks.outcome(found) in ({1} if level is Level.WARNING else {69, 74, 75, 77, 78})
    assert_healthy(installation)


@pytest.mark.slow
def test_provider_that_rejects_an_invalid_token_is_well(installation: Installation) -> None:
    with asking(installation, answering(200, {"active": False})) as subject:
        found = list(checks.examine(subject))
    assert problems(found) == []
    assert [each.text for each in found if each.check == "back-ends"] == ["oauth answers"]


@pytest.mark.slow
def test_healthy_installation_has_no_findings(installation: Installation) -> None:
    with ntp_server() as name:
        found = list(checks.examine(installation.subject(ntp=name)))
    assert problems(found) == []
    assert checks.outcome(found) == 0
    assert {each.check for each in found} == {each.name for each in checks.CHECKS}
    assert {each.check for each in found if each.level is Level.OK} >= {
        *("configuration", "files", "server", "listen", "tls", "limits", "clock", "store", "users"),
        "lmtp",
        "units",
        "fail2ban",
        "processes",
    }


# -- Repairs

FIXABLE = {
    *("others_can_write_the_configuration", "others_can_read_the_users"),
    *("socket_of_a_worker_that_no_longer_exists", "others_can_write_the_mail_directory"),
    *("mail_directory_with_a_cause_that_the_server_reports", "mail_directory_is_missing"),
    *("server_does_not_start_at_boot", "others_can_read_a_password"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_only_safe_repairs_are_offered_and_they_work(
    name: str, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = installation.system / "etc/systemd/system/multi-user.target.wants"
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\ntouch "{links}/$4"\n')
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with FAULTS[name][3](installation) as subject:
        repairs = [each.repair for each in checks.examine(subject) if each.repair]
        assert bool(repairs) == (name in FIXABLE)
        for repair in repairs:
            repair.make()
        if repairs:
            assert_healthy(installation)
            undo_for_the_fault(name, installation)


def undo_for_the_fault(name: str, here: Installation) -> None:
    """Prepare the installation for the fault's own repair."""
    match name:
        case "socket_of_a_worker_that_no_longer_exists":
            (here.place / "control/9.sock").touch()
        case "mail_directory_is_missing":
            (here.place / "mail").rmdir()


@needs_root
@pytest.mark.slow
def test_files_of_another_user_get_the_right_owner(installation: Installation) -> None:
    path = installation.place / "guesses"
    path.touch(0o600)
    os.chown(path, OTHER, OTHER)
    [finding] = files.files(installation.subject())
    assert finding.repair is not None
    assert f"{path} does not belong to root" in finding.text
    finding.repair.make()
    assert path.stat().st_uid == 0
    path.unlink()


def trap(place: Path, kind: str) -> Path:
    """Return the path of a file that must not be changed through it."""
    victim = place / "victim"
    victim.mkdir()
    (victim / "file").touch(0o644)
    path = place / "state" / "file"
    path.parent.mkdir()
    match kind:
        case "link":
            path.symlink_to(victim / "file")
        case "link in the path":
            path.parent.rmdir()
            path.parent.symlink_to(victim)
        case "second name":
            path.hardlink_to(victim / "file")
        case "fifo":
            os.mkfifo(path)
        case "missing":
            pass
        case "socket":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
    return path


@pytest.mark.parametrize("action", ["chmod", "chown"])
@pytest.mark.parametrize(
    "kind", ["link", "link in the path", "second name", "fifo", "missing", "socket"]
)
def test_permissions_are_changed_only_on_the_named_file(
    kind: str, action: str, tmp_path: Path
) -> None:
    path = trap(tmp_path, kind)
    with pytest.raises(CannotRepair, match="file"):
        Repair(action, str(path), 0o600, OTHER).make()
    found = (tmp_path / "victim/file").stat()
    assert (found.st_mode & 0o777, found.st_uid) == (0o644, os.geteuid())


@pytest.mark.parametrize("kind", ["link", "link in the path", "second name", "fifo", "missing"])
def test_only_dead_sockets_are_removed(kind: str, tmp_path: Path) -> None:
    path = trap(tmp_path, kind)
    with pytest.raises(CannotRepair):
        Repair("rm", str(path)).make()
    assert (tmp_path / "victim/file").exists()
    assert os.path.lexists(path) == (kind != "missing")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "used"))
        listening.listen()
        with pytest.raises(CannotRepair, match="in use"):
            Repair("rm", str(tmp_path / "used")).make()
    Repair("rm", str(tmp_path / "used")).make()
    assert not (tmp_path / "used").exists()


def test_file_without_any_permission_can_be_repaired(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0)
    Repair("chmod", str(path), 0o600).make()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("closed", [".", "tls", "tls/key.pem", "tls/certificate.pem", "tokens/isp"])
def test_file_that_its_owner_cannot_open_is_repaired(closed: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    for name in ("tls/key.pem", "tls/certificate.pem", "tokens/isp"):
        (state / name).parent.mkdir(0o700, parents=True, exist_ok=True)
        (state / name).touch(0o600)
    state.chmod(0o700)
    subject = Subject(replace(config.load(text=""), state=state), os.geteuid())
    before = (state / closed).stat().st_mode
    (state / closed).chmod(0)
    [finding] = [each for each in files.files(subject) if each.level is Level.ERROR]
    assert (finding.code, finding.text.endswith(f"cannot open {state / closed}")) == (77, True)
    assert finding.repair is not None
    finding.repair.make()
    assert (state / closed).stat().st_mode == before
    assert [each.level for each in files.files(subject)] == [Level.OK]


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("closed", ["state", "conf", "conf/conf.d", "state/tls/key.pem"])
def test_fix_repairs_the_cause_of_a_denied_permission(closed: str) -> None:
    account = pwd.getpwnam("mail")
    place = Path(mkdtemp(prefix="restante-", dir="/tmp"))
    try:
        for folder in ("state/tls", "state/mail", "conf/conf.d"):
            (place / folder).mkdir(parents=True)
        (place / "conf/restante.toml").touch()
        (place / "state/tls/key.pem").touch()
        with closing(Users(place / "state/users.sqlite3")) as users:
            users.add("ann", "secret")
        for path in (place, *place.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
            os.chown(path, account.pw_uid, account.pw_gid)
        (place / closed).chmod(0)
        names = ("env", f"HOME={place}", f"STATE_DIRECTORY={place}/state")
        prefix = ("setpriv", "--reuid=mail", "--clear-groups", *names)
        options = ("-m", "restante", "-c", place / "conf/restante.toml", "doctor")
        code, said = as_root.python(*options, prefix=prefix)
        is_named = f"cannot open {place / closed} " in f"{' '.join(said.split())} "
        assert (code, is_named) == (os.EX_NOPERM, True), said
        assert "next: chmod " in said
        assert "mkdir" not in said
        code, said = as_root.python(*options, "--fix", prefix=prefix)
        assert (code, said.count("fixed: ")) == (os.EX_UNAVAILABLE, 1), said
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("is_empty", [True, False])
def test_damaged_user_database_is_reported_once_with_its_repair(
    is_empty: bool, tmp_path: Path
) -> None:
    path = tmp_path / "users.sqlite3"
    path.write_bytes(b"" if is_empty else b"no database" * 100)
    loaded = config.load(text="")
    auth = replace(loaded.auth, users=str(path))
    subject = Subject(replace(loaded, state=tmp_path, auth=auth), os.geteuid())
    found = [*files.configuration(subject), *files.users(subject)]
    [finding] = [each for each in found if each.level is Level.ERROR]
    assert "restante restore --to DIRECTORY BACKUP" in finding.command
    assert (f"| sqlite3 {path}" in finding.command) is not is_empty


@pytest.mark.parametrize(("folder", "level"), [("state", "NOT_CHECKED"), ("other", "ERROR")])
def test_user_database_of_another_user_gets_only_advice_about_its_owner(
    folder: str, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / folder / "users.sqlite3"
    path.parent.mkdir()
    path.write_bytes(b"no database")
    loaded = config.load(text="")
    auth = replace(loaded.auth, users=str(path))
    subject = Subject(replace(loaded, state=tmp_path / "state", auth=auth), OTHER)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read every file
    [finding] = files.users(subject)
    assert (finding.level, finding.text) == (Level[level], f"{path} does not belong to {OTHER}")
    assert finding.command == ("" if folder == "state" else f"chown {OTHER} {path}")


def test_service_is_started_without_systemd(tmp_path: Path) -> None:
    loaded = replace(config.load(text=""), state=tmp_path, runtime=tmp_path)
    owner = pwd.getpwnam("mail").pw_uid
    subject = Subject(loaded, owner, service_state=tmp_path, system=tmp_path)
    [finding] = server.server(subject)
    assert finding.command.startswith("setpriv --reuid=mail ")
    assert finding.command.endswith(" restante serve")
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    [finding] = server.server(subject)
    assert finding.command == "systemctl start restante"


def test_fix_reports_each_change_and_examines_again(restante: Restante, home: Path) -> None:
    source = home / "restante.toml"
    source.touch()
    source.chmod(0o664)
    state = home / "state/restante"
    before = restante("-c", source, "doctor")
    assert source.stat().st_mode & 0o777 == 0o664, "nothing is changed without --fix"
    assert not state.exists()
    assert "restante doctor --fix can fix some of them." in before.out
    done = restante("-c", source, "doctor", "--fix")
    assert done.err.splitlines() == [
        f"restante doctor: fixed: chmod 644 {source}",
        f"restante doctor: fixed: mkdir -m 700 {state}",
        f"restante doctor: fixed: mkdir -m 700 {state}/mail",
    ]
    assert done.out.count("can write to") == 1, "only in the first examination"
    assert source.stat().st_mode & 0o777 == 0o644
    again = restante("-c", source, "doctor", "--fix", "--json")
    assert (again.json["fixed"], again.json["not_fixed"], again.err) == ([], [], "")


# -- The round trip

OTHER_MAIL = b"Subject: hello\r\nX-Restante-Doctor: " + b"0" * 32 + b"\r\n\r\nhi\r\n"


@pytest.fixture
def mail(installation: Installation) -> dict[str, bytes]:
    """Ann's mail: two messages in the maildrop, and one that was deleted."""
    store = MaildirStore(str(installation.place / "mail/%u"))

    async def main() -> None:
        for _ in range(3):
            await store.deliver("ann", once(OTHER_MAIL))
        async with store.open("ann") as maildrop:
            await maildrop.remove(maildrop.listing[:1])

    asyncio.run(main())
    return contents(installation)


def contents(here: Installation) -> dict[str, bytes]:
    """Return the files with mail by name, without the held messages of round trips."""
    folder = here.place / "mail/ann"
    paths = [each for name in ("cur", "new", "held") for each in (folder / name).glob("*")]
    found = {str(each.relative_to(folder)): each.read_bytes() for each in paths}
    return {k: v for k, v in found.items() if not ("held/" in k and b"of restante doctor" in v)}


def app_passwords(here: Installation) -> list[str]:
    with closing(Users(here.place / "users.sqlite3")) as users:
        return [each.label for each in users.app_passwords("ann")]


def make_round_trip(here: Installation, **changes: Any) -> list[Finding]:
    subject = here.subject(round_trip="ann", **changes)
    return list(checks.examine(subject, [Check("round-trip", round_trip.round_trip)]))


@pytest.mark.slow
@pytest.mark.parametrize("has_lmtp", [True, False])
def test_round_trip_leaves_nothing(
    has_lmtp: bool, installation: Installation, mail: dict[str, bytes]
) -> None:
    loaded = installation.load()
    if not has_lmtp:
        loaded = replace(loaded, intake=replace(loaded.intake, lmtp=config.LMTP()))
    [finding] = make_round_trip(installation, config=loaded)
    assert finding.level is Level.OK, finding
    assert contents(installation) == mail
    assert app_passwords(installation) == []


STEPS = ("deliver", "add_password", "log_in", "fetch", "restore")


@pytest.mark.slow
@pytest.mark.parametrize("has_done_it", [True, False])
@pytest.mark.parametrize("step", STEPS)
def test_round_trip_that_fails_leaves_nothing(
    step: str,
    has_done_it: bool,
    installation: Installation,
    mail: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = getattr(round_trip.RoundTrip, step)

    def failing(self: Any, *arguments: Any) -> None:
        if has_done_it:
            result = original(self, *arguments)
            if step == "log_in":
                result.abort()
        raise TemporaryFailure("it failed")

    monkeypatch.setattr(round_trip.RoundTrip, step, failing)
    [finding] = make_round_trip(installation)
    assert finding.level is Level.ERROR
    assert "it failed" in finding.text
    assert contents(installation) == mail
    assert app_passwords(installation) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_round_trip_revokes_its_password(
    number: signal.Signals, installation: Installation, mail: dict[str, bytes]
) -> None:
    status = installation.subject().status
    assert status is not None
    command = ["-c", str(installation.source), "doctor", "--round-trip", "ann"]
    with subprocess.Popen(
        [sys.executable, "-m", "restante", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        end = time.monotonic() + WAIT
        while not app_passwords(installation) and process.poll() is None:
            assert time.monotonic() < end
        with ExitStack() as stack:
            for worker in status["workers"]:
                os.kill(worker["pid"], signal.SIGSTOP)
                stack.callback(os.kill, worker["pid"], signal.SIGCONT)
            process.send_signal(number)
        process.communicate(timeout=WAIT)
    assert app_passwords(installation) == []
    assert contents(installation) == mail


@pytest.mark.slow
def test_password_of_a_killed_round_trip_is_revoked_by_the_next(
    installation: Installation, mail: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Users(installation.place / "users.sqlite3")) as users:
        for label in ("restante doctor 0123456789abcdef", "restante doctor of ann", "phone"):
            users.add_app_password("ann", label)
    make_round_trip(installation)
    assert len(app_passwords(installation)) == 3, "another round trip may be using it"
    monkeypatch.setattr(round_trip, "_LEFT_OVER", 0)
    make_round_trip(installation)
    assert app_passwords(installation) == ["phone", "restante doctor of ann"]
    with closing(Users(installation.place / "users.sqlite3")) as users:
        for label in app_passwords(installation):
            users.revoke("ann", label)


@pytest.mark.slow
def test_password_is_sent_only_to_a_server_with_our_key(installation: Installation) -> None:
    heard = []
    made, key = tls.make_self_signed(installation.place / "authority/thief", ["localhost"])
    context = tls.server_context(made, key)

    def serve(connected: socket.socket) -> None:
        with context.wrap_socket(connected, server_side=True) as secured:
            secured.sendall(b"+OK\r\n")
            while octets := secured.recv(1000):
                heard.append(octets)
                secured.sendall(b"+OK\r\n.\r\n")

    with peer(serve) as port:
        loaded = installation.load()
        listen = replace(loaded.server, listen=(f"pop3s://127.0.0.1:{port}",))
        subject = installation.subject(
            config=replace(loaded, server=listen), round_trip="ann", timeout=0.5
        )
        lmtp = {"proto": "lmtp", "listen": f"unix:{installation.place}/lmtp.sock"}
        pretend(subject, [{"proto": "pop3s", "listen": f"127.0.0.1:{port}"}, lmtp])
        found = list(round_trip.round_trip(subject))
    assert found[0].level is Level.ERROR
    assert "fingerprint" in found[0].text
    assert heard == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("user", "level", "text"),
    [("bob", Level.ERROR, "no such user"), ("ann", Level.NOT_CHECKED, "may not delete mail")],
)
def test_round_trip_that_cannot_be_made(
    user: str, level: Level, text: str, installation: Installation
) -> None:
    with closing(Users(installation.place / "users.sqlite3")) as users:
        users.permit("ann", UserAccount("ann", "ann", is_read_only=True))
        [finding] = round_trip.round_trip(installation.subject(round_trip=user))
        users.permit("ann", UserAccount("ann", "ann"))
    assert finding.level is level
    assert text in finding.text


# -- DNS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "level", "text"),
    [("", Level.OK, ""), ("SILENT", Level.NOT_CHECKED, "the DNS server does not answer")],
)
def test_answers_of_dns(code: str, level: Level, text: str, installation: Installation) -> None:
    """Missing records and refusals are among the faults above, with other words."""
    with in_dns(installation, RECORDS, code) as subject:
        subject.timeout = 0.3 if code else subject.timeout
        found = list(dns.dns(subject))
    assert len(found) == 3, "the server's name, SRV and MX"
    assert {each.level for each in found} == {level}
    assert all(text in each.text for each in found)


# -- Packages


def test_changed_files_of_a_wheel_are_named(tmp_path: Path) -> None:
    (tmp_path / "restante").mkdir()
    for name in "abc":
        (tmp_path / f"restante/{name}.py").write_text(name)
    rows = []
    for name in "abcd":
        digest = base64.urlsafe_b64encode(sha256(name.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"restante/{name}.py,sha256={digest},1\n")
    elsewhere = f"../../bin/restante,sha256={digest},1\nrestante-1.dist-info/RECORD,,\n"
    info = tmp_path / "restante-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: restante\nVersion: 1\n")
    (info / "RECORD").write_text("".join(rows[:3]) + elsewhere)
    [finding] = host.changed_in_wheel(PathDistribution(info))
    assert finding.level is Level.OK
    (info / "RECORD").write_text("".join(rows))
    (tmp_path / "restante/b.py").write_text("changed")
    [finding] = host.changed_in_wheel(PathDistribution(info))
    assert finding.level is Level.WARNING
    assert finding.text.startswith("2 files")
    assert "b.py" in finding.text


# -- Other programs behind an address of ours


def silent(connected: socket.socket) -> None:
    connected.recv(1000)


def closing_at_once(connected: socket.socket) -> None:
    pass


def garbage(connected: socket.socket) -> None:
    connected.sendall(os.urandom(100_000))


def http(connected: socket.socket) -> None:
    connected.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def endless_line(connected: socket.socket) -> None:
    while True:
        connected.sendall(b"+OK" + b"x" * 10_000)


def endless_capabilities(connected: socket.socket) -> None:
    connected.sendall(b"+OK\r\n")
    connected.recv(1000)
    connected.sendall(b"+OK\r\n")
    while True:
        connected.sendall(b"UIDL\r\n" * 1000)


def one_octet_at_a_time(connected: socket.socket) -> None:
    while True:
        connected.sendall(b"+")
        time.sleep(0.02)


def tls_record_one_octet_at_a_time(connected: socket.socket) -> None:
    connected.sendall(b"\x16\x03\x03\x40\x00")
    one_octet_at_a_time(connected)


def data_before_tls(connected: socket.socket) -> None:
    connected.sendall(b"+OK\r\n")
    connected.recv(1000)
    connected.sendall(b"+OK\r\nSTLS\r\n.\r\n")
    connected.recv(1000)
    connected.sendall(b"+OK\r\n+OK forged\r\n")


@pytest.mark.parametrize("scheme", ["pop3", "pop3s"])
@pytest.mark.parametrize(
    "serve",
    [
        *(silent, closing_at_once, garbage, http, endless_line, endless_capabilities),
        *(one_octet_at_a_time, tls_record_one_octet_at_a_time, data_before_tls),
    ],
)
def test_hostile_peer_is_reported_in_time(
    serve: Callable[[socket.socket], None], scheme: str, home: Path
) -> None:
    with peer(serve) as port:
        address = f"{scheme}://127.0.0.1:{port}"
        loaded = config.load(environment={"STATE_DIRECTORY": str(home)})
        listen = replace(loaded.server, listen=(address,))
        subject = Subject(replace(loaded, server=listen, runtime=home), 0, timeout=0.2)
        found = list(checks.examine(subject, [Check("listen", server.listen)], deadline=2))
    [(check, level)] = problems(found)
    assert (check, level) == ("listen", Level.ERROR)
    assert address in found[0].text
    assert "has not finished" not in found[0].text
    assert found[0].code in (69, 75, 76)
    assert len(found[0].text) < 300


def endless_reply(connected: socket.socket) -> None:
    while True:
        connected.sendall(b"220-x\r\n" * 1000)


@pytest.mark.parametrize(
    "serve", [silent, closing_at_once, garbage, http, endless_line, endless_reply]
)
def test_hostile_lmtp_server_is_reported_in_time(
    serve: Callable[[socket.socket], None], home: Path
) -> None:
    with peer(serve) as port:
        loaded = config.load(environment={"STATE_DIRECTORY": str(home)})
        listener = replace(loaded.intake, lmtp=config.LMTP(listen=(f"127.0.0.1:{port}",)))
        subject = Subject(replace(loaded, intake=listener, runtime=home), 0, timeout=0.2)
        found = list(checks.examine(subject, [Check("lmtp", intake.lmtp)], deadline=2))
    assert problems(found) == [("lmtp", Level.ERROR)]
    assert "has not finished" not in found[0].text


@needs_root
@pytest.mark.parametrize(
    ("directory", "socket_mode", "obstacle"),
    [(0o711, 0o666, ""), (0o700, 0o666, "enter"), (0o711, 0o600, "connect to")],
)
def test_rights_of_the_mail_server_are_those_of_the_kernel(
    directory: int, socket_mode: int, obstacle: str
) -> None:
    """Root also connects as this user, and comes to the same result as from the modes."""
    account = pwd.getpwnam("daemon")
    with TemporaryDirectory(dir="/tmp") as name, socket.socket(socket.AF_UNIX) as listening:
        path = Path(name) / "lmtp.sock"
        listening.bind(str(path))
        listening.listen()
        path.chmod(socket_mode)
        Path(name).chmod(directory)
        [finding] = intake._rights(path, account)
        assert (finding.level is Level.OK) == (not obstacle)
        assert obstacle in finding.text
        assert (intake._obstacle(path, account) is None) == (not obstacle)
        assert intake._try(path, account) in (None, not obstacle)


@pytest.mark.parametrize("serve", [silent, one_octet_at_a_time, endless_line])
def test_tls_check_of_a_hostile_peer_ends_in_time(
    serve: Callable[[socket.socket], None], home: Path
) -> None:
    with peer(serve) as port:
        loaded = config.load(environment={"STATE_DIRECTORY": str(home)})
        listen = replace(loaded.server, listen=(f"pop3s://127.0.0.1:{port}",))
        subject = Subject(replace(loaded, server=listen, runtime=home), 0, timeout=0.2)
        found = list(checks.examine(subject, [Check("tls", server.tls)], deadline=2))
    assert problems(found) == []
    assert {each.level for each in found} <= {Level.NOT_CHECKED, Level.OK}


@pytest.mark.parametrize("network", ["127.0.0.0/8", "192.0.2.0/24"])
def test_listener_behind_a_load_balancer_gets_a_proxy_header(network: str, home: Path) -> None:
    made, key = tls.make_self_signed(home / "restante/tls", ["localhost"])
    context = tls.server_context(made, key)
    header = b"PROXY UNKNOWN\r\n" if network == "127.0.0.0/8" else b""

    def serve(connected: socket.socket) -> None:
        assert connected.recv(len(header)) == header
        with context.wrap_socket(connected, server_side=True) as secured:
            secured.sendall(b"+OK\r\n")
            while octets := secured.recv(1000):
                answer = b"+OK\r\nUSER\r\n.\r\n" if octets.startswith(b"CAPA") else b"+OK\r\n"
                secured.sendall(answer)

    with peer(serve) as port:
        loaded = config.load(environment={"STATE_DIRECTORY": str(home / "restante")})
        changed = replace(
            loaded.server,
            hostname="localhost",
            listen=(f"pop3s://127.0.0.1:{port}",),
            proxy_from=(ip_network(network),),
        )
        subject = Subject(replace(loaded, server=changed, runtime=home), 0, timeout=2)
        found = list(checks.examine(subject, [Check("listen", server.listen)]))
    assert {each.level for each in found} == {Level.OK}, found


def test_hanging_check_is_abandoned(home: Path) -> None:
    released = threading.Event()

    def hang(subject: Subject) -> Iterator[Finding]:
        yield ok("first")
        released.wait(WAIT)

    loaded = config.load(environment={"STATE_DIRECTORY": str(home)})
    found = list(checks.examine(Subject(loaded, 0), [Check("slow", hang)], deadline=0.05))
    released.set()
    assert [each.level for each in found] == [Level.OK, Level.ERROR]
    assert "has not finished" in found[1].text
    assert found[1].code == os.EX_TEMPFAIL


def test_check_that_fails_is_an_error_and_the_others_run(home: Path) -> None:
    def fail(subject: Subject) -> Iterator[Finding]:
        yield ok("first")
        raise PermissionError(13, "Permission denied", "/x")

    def none(subject: Subject) -> Iterator[Finding]:
        yield from ()

    loaded = config.load(environment={"STATE_DIRECTORY": str(home)})
    table = [Check("broken", fail), Check("empty", none)]
    found = list(checks.examine(Subject(loaded, 0), table))
    assert [(each.check, each.level) for each in found] == [
        ("broken", Level.OK),
        ("broken", Level.ERROR),
        ("empty", Level.NOT_CHECKED),
    ]


def test_unreachable_ntp_server_is_no_fault(home: Path) -> None:
    loaded = config.load(environment={"STATE_DIRECTORY": str(home)})
    with ntp_server(answers=False) as name:
        for host in (name, "127.0.0.1:9", "invalid.invalid"):
            subject = Subject(loaded, 0, timeout=0.2, ntp=host)
            [finding] = clock.clock(subject)
            assert finding.level is Level.NOT_CHECKED


# -- The command


def test_command_about_an_owner_is_the_next_command(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config: Configuration) -> None:
        raise ConfigurationError("the owners differ. Run: chown -h mail /state")

    monkeypatch.setattr(privileges, "is_root", lambda: True)
    monkeypatch.setattr(privileges, "server_account", refuse)
    finding = restante("doctor", "--json").json["findings"][0]
    assert (finding["text"], finding["command"]) == (
        "the owners differ.",
        "chown -h mail /state",
    )


def test_invalid_configuration_is_the_only_finding(restante: Restante, home: Path) -> None:
    source = home / "restante.toml"
    source.write_text("[server]\nlisten = 5\n[nonsense]\n")
    done = restante("-c", source, "doctor")
    assert done.code == os.EX_CONFIG
    assert done.out.count("restante.toml") == 2
    assert "not checked: the configuration cannot be used" in done.out
    found = restante("-c", source, "doctor", "--json").json["findings"]
    assert [(each["check"], each["level"]) for each in found] == [
        ("configuration", "error"),
        ("configuration", "error"),
        ("others", "not checked"),
    ]


@pytest.fixture
def free_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the server's address one on which no program of this machine listens."""
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = chosen.getsockname()[1]
    monkeypatch.setenv("RESTANTE__SERVER__LISTEN", f"pop3s://127.0.0.1:{port}")


@pytest.mark.usefixtures("free_address")
def test_lines_fit_into_80_columns(restante: Restante, home: Path, ann: str) -> None:
    done = restante("doctor")
    assert done.code == os.EX_UNAVAILABLE
    assert "no server is running" in done.out
    assert str(home) in done.out  # paths and commands are never broken
    lines = [each for each in done.out.splitlines() if str(home) not in each]
    assert max(map(len, lines)) <= 80
    assert "✓" in done.out


@pytest.mark.usefixtures("free_address")
def test_plain_ascii_if_the_terminal_has_no_other_characters(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "restante", "doctor"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=WAIT,
    )
    assert done.returncode == os.EX_UNAVAILABLE, done.stderr
    assert done.stdout.isascii()
    assert done.stdout.startswith(b"+ ")
    assert b"\n! " in done.stdout
    assert b"\\u" not in done.stdout


# -- Root


@needs_root
@pytest.mark.slow
def test_root_examines_as_the_servers_user(tmp_path: Path) -> None:
    """As root, every file could be opened, and new files would belong to root."""
    account = pwd.getpwnam("mail")
    place = Path(mkdtemp(prefix="restante-", dir="/tmp"))
    try:
        place.chmod(0o755)
        state = place / "state"
        state.mkdir(0o700)
        with closing(Users(state / "users.sqlite3")) as users:
            users.add("ann", "secret")
        (state / "mail").mkdir(0o500)  # root can write there all the same
        (state / "root's").touch()
        for path in (state, *state.iterdir()):
            if path.name != "root's":
                os.chown(path, account.pw_uid, account.pw_gid)
        source = place / "restante.toml"
        source.write_text(
            f'[store]\npath = "{state}/mail/%u"\n[auth]\nusers = "{state}/users.sqlite3"\n'
        )
        options = ("-m", "restante", "-c", source, "doctor", "--json")
        before = {path: path.stat().st_uid for path in state.rglob("*")}
        with patch.dict(os.environ, {"STATE_DIRECTORY": str(state), "HOME": str(place)}):
            code, said = as_root.python(*options)
        found = json.loads(said)["findings"]
        texts = [each["text"] for each in found if each["level"] == "error"]
        assert code == os.EX_NOPERM, said
        assert texts == [
            f"{state}/root's does not belong to mail",
            "no server is running",
            f"mail cannot write to {state}/mail",
        ]
        assert {path: path.stat().st_uid for path in state.rglob("*")} == before
        with patch.dict(os.environ, {"STATE_DIRECTORY": str(state), "HOME": str(place)}):
            code, said = as_root.python(*options[:-1], "--fix")
        assert code == os.EX_UNAVAILABLE, said
        assert "fixed: chown" in said
        assert {path.stat().st_uid for path in state.rglob("*")} == {account.pw_uid}
        assert (state / "mail").stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(place)


@needs_root
@pytest.mark.slow
def test_other_users_cannot_examine(tmp_path: Path) -> None:
    place = Path(mkdtemp(prefix="restante-", dir="/tmp"))
    try:
        place.chmod(0o755)
        (place / "restante.toml").touch()
        (place / "state").mkdir(0o700)
        code, said = as_root.python(
            *("-m", "restante", "-c", place / "restante.toml", "doctor"),
            prefix=(
                "setpriv",
                "--reuid",
                "daemon",
                "--clear-groups",
                "env",
                f"HOME={place}",
                f"STATE_DIRECTORY={place}/state",
            ),
        )
    finally:
        shutil.rmtree(place)
    assert code == os.EX_NOPERM, said
    assert "/state belongs to root; only this user" in said
