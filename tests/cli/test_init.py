"""``restante init``: what it writes, how it continues after a failure, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shlex
import smtplib
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest

from restante import tls
from restante.app import setup
from restante.config import load
from tests.as_root import python

from .conftest import Input, Outcome, Restante, program, started

ADDRESS = "ann@example.org"
IS_ROOT = getattr(os, "geteuid", lambda: 1)() == 0
PRIVATE_STEPS = 7
"""Steps of a private server: four directories, the file, the certificate and the user."""


@pytest.fixture(autouse=True)
def ordinary_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as an ordinary user, on free ports."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("container", raising=False)
    addresses = {**setup._ADDRESSES, "private": free_addresses("127.0.0.1")}
    monkeypatch.setattr(setup, "_ADDRESSES", addresses)


def free_addresses(host: str) -> tuple[str, str, str]:
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        ports = []
        for each in (one, two, three):
            each.bind((host, 0))
            ports.append(each.getsockname()[1])
    return f"pop3s://{host}:{ports[0]}", f"{host}:{ports[1]}", f"{host}:{ports[2]}"


def file_of(home: Path) -> Path:
    return home / "config" / "restante" / "restante.toml"


def files(home: Path) -> dict[str, bytes]:
    """Return the content of all files of the server."""
    folders = (home / "config", home / "state")
    paths = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in paths}


def password_in(found: Outcome) -> str:
    (line,) = [each for each in found.out.splitlines() if "shown only once" in each]
    return line.split()[1]


def type_(monkeypatch: pytest.MonkeyPatch, *answers: str | type[BaseException]) -> list[str]:
    """Answer at the terminal; the returned list holds the answers that were not read."""
    left = list(answers)

    def readline(self: Input) -> str:
        answer = left.pop(0)
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr(Input, "is_terminal", True)
    monkeypatch.setattr(Input, "readline", readline, raising=False)
    return left  # type: ignore[return-value]


def test_private_server_is_complete(restante: Restante, home: Path, state: Path) -> None:
    found = restante("init", ADDRESS, "--yes")
    assert found.code == 0, found.err
    config = load(file_of(home))
    assert config.server.hostname == "localhost"
    assert config.server.listen[0].startswith("pop3s://127.0.0.1:")
    assert config.intake.lmtp.listen
    assert restante("user", "list", "--json").json["users"][0]["name"] == ADDRESS
    password = password_in(found)
    assert (found.err.count(password), found.out.count(password)) == (0, 1)
    assert restante("check").code == 0
    fingerprint = tls.fingerprint(state / "tls" / "certificate.pem").split()
    assert " ".join(fingerprint[:8]) in found.out
    said = (found.out + found.err).replace(str(home), "")
    assert max(map(len, said.splitlines())) <= 80
    assert file_of(home).stat().st_mode & 0o077 == 0
    for expected in ("restante serve", "restante doctor", "Mail clients:", "localhost"):
        assert expected in found.out


def test_second_run_changes_nothing(restante: Restante, home: Path) -> None:
    assert restante("init", ADDRESS, "--yes").code == 0
    before = files(home)
    found = restante("init", ADDRESS, "--yes")
    assert (found.code, "nothing was changed" in found.err) == (0, True)
    assert "shown only once" not in found.out
    assert files(home) == before


def test_second_user_and_more_options_are_no_difference(restante: Restante, home: Path) -> None:
    assert restante("init", ADDRESS, "--yes").code == 0
    with file_of(home).open("a") as file:
        file.write("[limits]\nper_address = 7\n")
    before = file_of(home).read_text()
    found = restante("init", "bob@example.org", "--yes")
    assert (found.code, found.err.count("done: ")) == (0, 1)
    assert "add the user bob@example.org" in found.err
    assert file_of(home).read_text() == before


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--hostname", "mx"], 'server.hostname: "localhost" in the file, "mx" in the plan'),
        (["--mail", "smtp"], "intake.smtp.listen: no value in the file, "),
        (["--mail", "smtp"], 'intake.smtp.domains: no value in the file, ["example.org"] in the'),
    ],
)
def test_different_configuration_is_shown_and_kept(
    restante: Restante, home: Path, options: list[str], difference: str
) -> None:
    assert restante("init", ADDRESS, "--yes").code == 0
    before = files(home)
    found = restante("init", "bob@example.org", "--yes", *options)
    assert found.code == 78
    assert "exists and differs from the plan, so nothing was changed" in found.err
    assert difference in found.err
    assert files(home) == before


@pytest.mark.parametrize("content", ["[server", "server = 1\n", 'server = "x"\n[intake]\n', "\xff"])
def test_unusable_file_is_never_overwritten(restante: Restante, home: Path, content: str) -> None:
    file_of(home).parent.mkdir(parents=True)
    file_of(home).write_bytes(content.encode("latin-1"))
    found = restante("init", ADDRESS, "--yes")
    assert found.code == 78
    assert files(home) == {str(file_of(home)): content.encode("latin-1")}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ann"], 64, "not a mail address"),
        (["a/b@example.org"], 64, "must not contain '/'"),
        (["ann@"], 64, "each part of a user name"),
        ([ADDRESS, "--hostname", "mail example"], 78, "server.hostname: must be a host name"),
        ([ADDRESS, "--hostname", "x\ny"], 78, "server.hostname: must be"),
        ([ADDRESS, "--cert", "x.pem"], 64, "--cert and --key must be given together"),
        ([ADDRESS, "--cert", "no.pem", "--key", "no.key"], 78, "No such file"),
        ([ADDRESS, "--password-file", "no-such-file"], 78, "No such file"),
        ([ADDRESS, "--mail", "pigeon"], 64, "invalid choice"),
    ],
)
def test_invalid_choice_is_refused_before_any_change(
    restante: Restante, home: Path, arguments: list[str], code: int, words: str
) -> None:
    found = restante("init", *arguments, "--yes")
    assert (found.code, words in found.err) == (code, True), found.err
    assert files(home) == {}


def test_certificate_must_belong_to_its_key(restante: Restante, home: Path) -> None:
    one = tls.make_self_signed(home / "one", ["mail.example.org"])
    two = tls.make_self_signed(home / "two", ["mail.example.org"])
    found = restante("init", ADDRESS, "--yes", "--cert", one[0], "--key", two[1])
    assert (found.code, "is not the key of" in found.err) == (78, True)
    assert files(home) == {}
    found = restante("init", ADDRESS, "--yes", "--cert", one[0], "--key", one[1])
    assert found.code == 0
    assert "self-signed" not in found.out
    assert load(file_of(home)).tls.cert == str(one[0])


def test_taken_port_is_refused_before_any_change(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        addresses = list(free_addresses("127.0.0.1"))
        addresses[1] = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setitem(setup._ADDRESSES, "private", tuple(addresses))
        found = restante("init", ADDRESS, "--yes")
        assert (found.code, "uses this address" in found.err) == (69, True)
        assert files(home) == {}
        # The taken port is not needed.
        assert restante("init", ADDRESS, "--yes", "--mail", "none").code == 0


@pytest.mark.parametrize("failing", range(PRIVATE_STEPS))
def test_run_after_a_failure_completes(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """A full disk at each step: what was done is shown, and the same command does the rest."""

    def break_step(work: setup.Setup) -> list[setup.Step]:
        steps = list(work._missing_steps())
        assert len(steps) == PRIVATE_STEPS

        def fail() -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        steps[failing] = steps[failing]._replace(act=fail)
        return steps

    with monkeypatch.context() as patch:
        patch.setattr(setup.Setup, "missing_steps", break_step)
        found = restante("init", ADDRESS, "--yes")
    assert found.code == 75
    assert "No space left on device" in found.err
    assert found.out == ""
    assert found.err.count("done: ") == failing
    assert ("Nothing was changed." in found.err) is (failing == 0)
    assert ("run the same command again" in found.err) is (failing > 0)
    found = restante("init", ADDRESS, "--yes")
    assert (found.code, found.err.count("done: ")) == (0, PRIVATE_STEPS - failing)
    assert len(password_in(found)) == 20
    assert restante("check").code == 0


def test_full_disk_leaves_no_part_of_the_file(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        assert restante("init", ADDRESS, "--yes").code == 75
    assert files(home) == {}


def test_file_that_appears_meanwhile_is_kept(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = setup.check

    def check_and_write(plan: setup.Plan) -> setup.Plan:
        checked = check(plan)
        file_of(home).parent.mkdir(parents=True)
        return checked

    def is_there(work: setup.Setup) -> list[setup.Step]:
        steps = list(work._missing_steps())
        file_of(home).write_text("# another administrator\n")
        return steps

    monkeypatch.setattr(setup, "check", check_and_write)
    monkeypatch.setattr(setup.Setup, "missing_steps", is_there)
    found = restante("init", ADDRESS, "--yes")
    assert (found.code, "File exists" in found.err) == (74, True)
    assert file_of(home).read_text() == "# another administrator\n"
    assert [path.name for path in file_of(home).parent.iterdir() if path.is_file()] == [
        "restante.toml"
    ]


def test_questions_without_a_terminal_are_refused(restante: Restante, home: Path) -> None:
    found = restante("init", ADDRESS, stdin=b"mail.example.org\n\n\n\n")
    assert (found.code, "add --hostname, or --yes" in found.err) == (64, True)
    complete = ["--hostname", "mail.example.org", "--self-signed", "--mail", "none"]
    found = restante("init", ADDRESS, *complete)
    assert (found.code, "add --yes" in found.err) == (64, True)
    assert files(home) == {}
    # Without a change, there is no question.
    assert restante("init", ADDRESS, *complete, "--yes").code == 0
    assert restante("init", ADDRESS, *complete).code == 0


def test_answers_replace_options(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = type_(monkeypatch, "mail.example.org\n", "\n", "pigeon\n", "smtp\n", "yes\n")
    found = restante("init", ADDRESS)
    assert (found.code, left) == (0, [])
    assert "Enter lmtp, smtp or none." in found.err
    config = load(file_of(home))
    assert config.server.hostname == "mail.example.org"
    assert config.intake.smtp.domains == ("example.org",)


def test_certificate_files_can_be_typed(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tls.make_self_signed(home / "one", ["mail.example.org"])
    type_(monkeypatch, "\n", f"{certificate}\n", "\n", f"{key}\n", "none\n", "\n")
    assert restante("init", ADDRESS).code == 0
    assert load(file_of(home)).tls.key == str(key)


def test_invalid_answers_are_asked_again_at_once(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tls.make_self_signed(home / "one", ["mail.example.org"])
    answers = ["bad host!", "mail.example.org", f"{home}/no.pem", f"{home}", f"{certificate}"]
    answers += [f"{home}/no.key", f"{key}", "none", "no"]
    left = type_(monkeypatch, *(f"{each}\n" for each in answers))
    found = restante("init", ADDRESS)
    assert (found.code, left) == (0, []), found.err
    said = found.err.splitlines()
    problems = [line for line in said if "must be a host name" in line or str(home / "no") in line]
    assert len(problems) == 3, found.err
    assert f"{home}/no.pem: No such file or directory" in found.err
    assert found.err.index("must be a host name") < found.err.index("Certificate file")
    assert "restante.toml" not in found.err[: found.err.index("Mail arrives")]


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("end", [KeyboardInterrupt, ""])
def test_interrupt_in_a_prompt_changes_nothing(
    restante: Restante,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: int,
    end: str | type[BaseException],
) -> None:
    """Ctrl-C and Ctrl-D at each question."""
    type_(monkeypatch, *["\n"] * before, end)
    found = restante("init", ADDRESS)
    assert (found.code, "stopped" in found.err) == (130, True)
    assert files(home) == {}


def test_plan_can_be_rejected(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_(monkeypatch, "\n", "\n", "\n", "no\n")
    found = restante("init", ADDRESS)
    assert (found.code, "Nothing was changed." in found.err) == (0, True)
    assert files(home) == {}


def test_print_writes_only_the_configuration(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = restante("init", ADDRESS, "--yes", "--print")
    assert (found.code, found.err, files(home)) == (0, "", {})
    path = home / "printed.toml"
    path.write_text(found.out)
    assert load(path).server.hostname == "localhost"
    # Questions do not get into the file.
    type_(monkeypatch, "mail.example.org\n", "\n", "\n")
    assert restante("init", ADDRESS, "--print").out.startswith("# Made by `restante init`.")
    # The machine need not have what the plan requires.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Input, "is_terminal", False)
    text = restante("init", ADDRESS, "--yes", "--print").out
    assert 'hostname = "mail.example.org"' in text
    assert 'path = "/var/mail/restante/%d/%n"' in text


def test_json_has_everything(restante: Restante, home: Path) -> None:
    found = restante("init", ADDRESS, "--yes", "--json")
    assert found.code == 0
    row = found.json
    assert (row["schema"], row["user"]) == ("restante/init/1", ADDRESS)
    assert len(row["password"]) == 20
    assert len(row["done"]) == PRIVATE_STEPS
    again = restante("init", ADDRESS, "--yes", "--json").json
    assert (again["password"], again["done"]) == (None, [])
    assert again["fingerprint"] == row["fingerprint"]


def test_given_password_is_not_shown(restante: Restante, home: Path) -> None:
    path = home / "password"
    path.write_text("correct horse battery\n")
    found = restante("init", ADDRESS, "--yes", "--password-file", path)
    assert found.code == 0
    assert "correct horse" not in found.out + found.err


def test_container_uses_its_volume(
    restante: Restante, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("container", "oci")
    assert "127.0.0.1" in restante("init", ADDRESS, "--yes", "--print").out  # on a desktop
    monkeypatch.setenv("RESTANTE_CONFIG", str(home / "data" / "restante.toml"))
    monkeypatch.setitem(setup._ADDRESSES, "container", free_addresses("127.0.0.1"))
    found = restante("init", ADDRESS, "--yes", "--mail", "smtp")
    assert found.code == 0, found.err
    config = load(home / "data" / "restante.toml")
    assert config.server.hostname == "mail.example.org"
    assert config.store.path == f"{home}/data/mail/%d/%n"
    assert "_pop3s._tcp.example.org." in found.out
    assert "995" in found.out
    assert "Postfix" not in found.out


@pytest.mark.slow
def test_server_that_was_set_up_serves_mail(restante: Restante, home: Path, state: Path) -> None:
    row = restante("init", ADDRESS, "--yes", "--json").json
    (home / "password").write_text(row["password"] + "\n")
    ready, message = home / "ready", b"Subject: hello\n\nIt works.\n"
    with started("serve", "--ready-file", ready) as server:
        for _ in range(200):
            if ready.exists():
                break
            time.sleep(0.05)
        lmtp = load(file_of(home)).intake.lmtp.listen[0]
        with smtplib.LMTP(*lmtp.split(":")) as client:  # type: ignore[arg-type]
            client.sendmail("bob@example.net", [ADDRESS], message)
        url = f"pop3s://{ADDRESS.replace('@', '%40')}@127.0.0.1:{row['client']['port']}"
        files_ = ("--ca-file", state / "tls/certificate.pem", "--password-file", home / "password")
        found = program("fetch", url, "--to", home / "fetched", *files_)
        assert found.code == 0, found.err
        server.terminate()
        server.communicate(timeout=30)
    assert any(b"It works." in path.read_bytes() for path in (home / "fetched").rglob("*.eml"))


# The server of this machine, which root sets up.

_PROGRAM = """
import json, sys
from pathlib import Path
import restante.config
from restante.app import privileges, setup
from restante.config import loading
place, addresses = Path(sys.argv.pop(1)), json.loads(sys.argv.pop(1))
system = (place / "etc", place / "lib")
for module in (loading, restante.config, privileges, setup):
    module.SYSTEM = system
privileges.ACCOUNT = "mail"
setup._SYSTEM_MAIL = str(place / "mail")
setup._SYSTEMD = place / "systemd"
setup._ADDRESSES["system"] = addresses
from restante.cli.main import main
sys.exit(main())
"""
# Knows the units in the directory "units", and records what is enabled and started.
_SYSTEMCTL = """#!/bin/sh
cd {place} || exit 1
[ "$1" = --no-pager ] && shift
verb=$1; shift
echo "$verb $*" >> calls
[ "$1" = --quiet ] || [ "$1" = --now ] && shift
case $verb in
cat) [ -e "units/$1" ];;
is-enabled|is-active) [ -e "started/$1" ];;
enable) [ -e broken ] && {{ echo "Job for $1 failed." >&2; exit 1; }}
    for unit; do touch "started/$unit"; done;;
esac
"""
UNITS = ("restante.socket", "restante-lmtp.socket", "restante-smtp.socket", "restante.service")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that stands for the file system of a machine with systemd."""
    monkeypatch.undo()  # this process is root again
    place = Path(mkdtemp(prefix="restante-"))
    place.chmod(0o755)
    for name in ("etc", "bin", "units", "started", "systemd"):
        (place / name).mkdir()
    for name in UNITS:
        (place / "units" / name).touch()
    (place / "bin/systemctl").write_text(_SYSTEMCTL.format(place=shlex.quote(str(place))))
    (place / "bin/systemctl").chmod(0o755)
    yield place
    rmtree(place)


def init(place: Path, *options: str, address: str = ADDRESS) -> tuple[int, str]:
    path = place / "addresses"
    if not path.exists():
        path.write_text(json.dumps(free_addresses("127.0.0.1")))
    environment: Mapping[str, str] = {"PATH": f"{place}/bin:{os.environ['PATH']}"}
    prefix = ("env", *(f"{name}={value}" for name, value in environment.items()))
    arguments = ["-c", _PROGRAM, str(place), path.read_text(), "init", address, "--yes"]
    return python(*arguments, *options, prefix=prefix)


needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can set up a machine")


@needs_root
def test_machine_is_set_up_as_the_servers_user(machine: Path) -> None:
    code, said = init(machine)
    assert code == 0, said
    mail = pwd.getpwnam("mail")
    for name, owner, mode in (
        ("etc/restante", 0, 0o750),
        ("etc/restante/restante.toml", 0, 0o640),
        ("etc/restante/conf.d", mail.pw_uid, 0o700),
        ("lib", mail.pw_uid, 0o700),
        ("lib/users.sqlite3", mail.pw_uid, 0o600),
        ("lib/tls/key.pem", mail.pw_uid, 0o600),
        ("mail", mail.pw_uid, 0o700),
    ):
        status = (machine / name).stat()
        found = (status.st_uid, status.st_gid, oct(status.st_mode & 0o7777))
        assert found == (owner, mail.pw_gid, oct(mode)), name
    for expected in ("virtual_transport = lmtp:inet:127.0.0.1:", "_pop3s._tcp.example.org.", "MX"):
        assert expected in said
    started = {path.name for path in (machine / "started").iterdir()}
    assert started == {"restante.socket", "restante-lmtp.socket", "restante.service"}
    calls = (machine / "calls").read_text()
    code, said = init(machine)
    assert (code, "nothing was changed" in said) == (0, True)
    assert (machine / "calls").read_text().replace(calls, "").count("enable --now") == 0


@needs_root
@pytest.mark.slow
def test_root_adds_an_account_as_the_servers_user(machine: Path) -> None:
    code, said = init(machine)
    assert code == 0, said
    (machine / "password").write_text("secret\n")
    (machine / "password").chmod(0o644)
    arguments = ["account", "add", "old", "bob@example.com", "--host", "pop.example.com"]
    arguments += ["--to", f"maildrop:{ADDRESS}", "--keep", "all", "--no-test"]
    arguments += ["--password-file", str(machine / "password")]
    addresses = (machine / "addresses").read_text()
    code, said = python("-c", _PROGRAM, str(machine), addresses, *arguments)
    assert code == 0, said
    made = list((machine / "etc/restante/conf.d").iterdir())
    assert [path.stat().st_uid for path in made] == [pwd.getpwnam("mail").pw_uid], said
    code, said = python("-c", _PROGRAM, str(machine), addresses, "account", "list", "--json")
    assert (code, '"old"' in said) == (0, True), said


@needs_root
@pytest.mark.slow
def test_unit_that_does_not_start_is_reported_with_the_password(machine: Path) -> None:
    (machine / "broken").touch()
    code, said = init(machine)
    assert code == 75
    assert "Job for restante.socket failed." in said
    assert "journalctl -u restante" in said
    assert f"The password of {ADDRESS}, shown only once: " in said
    (machine / "broken").unlink()
    code, said = init(machine)
    assert (code, said.count("done: ")) == (0, 1)
    assert "done: enable and start restante.socket" in said


@needs_root
@pytest.mark.slow
def test_missing_unit_is_refused_before_any_change(machine: Path) -> None:
    (machine / "units/restante-lmtp.socket").unlink()
    code, said = init(machine)
    assert (code, "the unit restante-lmtp.socket is not installed" in said) == (78, True)
    assert not list((machine / "etc").iterdir())
    code, said = init(machine, "--no-start")
    units = "restante.socket restante-lmtp.socket restante.service"
    assert (code, f"systemctl enable --now \\\n      {units}" in said) == (0, True)


@needs_root
@pytest.mark.slow
def test_machine_without_systemd_is_set_up(machine: Path) -> None:
    (machine / "systemd").rmdir()
    code, said = init(machine)
    assert (code, "setpriv --reuid=mail" in said) == (0, True)
    assert not (machine / "calls").exists()


@needs_root
def test_directory_of_another_user_is_refused(machine: Path) -> None:
    (machine / "mail").mkdir()
    other = pwd.getpwnam("www-data")
    os.chown(machine / "mail", other.pw_uid, other.pw_gid)
    machine.chmod(0o777)
    code, said = init(machine)
    assert (code, "other users than root may have created it" in said) == (78, True)
    machine.chmod(0o755)
    assert not list((machine / "etc").iterdir())


@needs_root
@pytest.mark.slow
def test_certificate_must_be_readable_for_the_servers_user(machine: Path) -> None:
    certificate, key = tls.make_self_signed(machine / "own", ["mail.example.org"])
    files = ("--cert", str(certificate), "--key", str(key))
    code, said = init(machine, *files)
    assert (code, "install -o restante -m 0400" in said) == (78, True)
    assert not list((machine / "etc").iterdir())
    for path in (certificate.parent, certificate, key):
        os.chown(path, pwd.getpwnam("mail").pw_uid, -1)
    assert init(machine, *files)[0] == 0


@needs_root
def test_root_names_only_files_in_etc(machine: Path) -> None:
    code, said = python("-m", "restante", "-c", machine / "x.toml", "init", ADDRESS, "--yes")
    assert (code, "is not in /etc" in said) == (64, True)
