"""Root backs up and restores; the files belong to the server's user again."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from shutil import rmtree

import pytest

from tests.as_root import python

from .test_privileges import MAIL, configure, own, run
from .test_privileges import place as place

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can change its user"
    ),
]


@pytest.fixture
def backup(place: Path) -> Path:
    """A backup of a server whose configuration only root can read."""
    configure(place, own(place / "data", MAIL))
    own(place / "state", MAIL)
    (place / "restante.toml").chmod(0o600)
    (place / "password").write_text("tan staaf\n")
    run(place, "user", "add", "ann", "--password-file", str(place / "password"))
    path = own(place / "backups", MAIL) / "a.tar"
    run(place, "backup", str(path))
    assert path.stat().st_uid == MAIL.pw_uid
    rmtree(place / "data")
    rmtree(place / "state")
    (place / "restante.toml").unlink()
    return path


def test_restored_files_belong_to_the_servers_user(place: Path, backup: Path) -> None:
    """Also if only root can read the backup."""
    own(place / "state", MAIL)
    os.chown(backup, 0, 0)
    own(place / "backups", pwd.getpwuid(0))
    run(place, "restore", str(backup), "--yes")
    source = (place / "restante.toml").stat()
    assert (source.st_uid, source.st_gid, stat.S_IMODE(source.st_mode)) == (0, MAIL.pw_gid, 0o600)
    paths = [place / "data", *(place / "data").rglob("*"), *(place / "state").rglob("*")]
    assert place / "data" / "users.sqlite3" in paths
    assert {path.stat().st_uid for path in paths} == {MAIL.pw_uid}
    assert "ann" in run(place, "user", "list")


def test_backup_contains_no_file_that_only_root_can_read(place: Path) -> None:
    """The server's user made the link."""
    configure(place, own(place / "data", MAIL))
    own(place / "conf.d", MAIL)
    (place / "secret").write_text('[server]\nhostname = "secret.example.org"\n')
    (place / "secret").chmod(0o600)
    (place / "conf.d/one.toml").symlink_to(place / "secret")
    path = own(place / "backups", MAIL) / "a.tar"
    said = run(place, "backup", str(path), code=os.EX_CONFIG)
    assert "conf.d/one.toml: Permission denied" in said
    assert not path.exists()


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("is_state", [True, False])
def test_root_creates_nothing_behind_a_link_of_the_servers_user(
    place: Path, monkeypatch: pytest.MonkeyPatch, *, exists: bool, is_state: bool
) -> None:
    """Neither the directories nor the marker of the restore."""
    data = own(place / "data", MAIL)
    inside = own(own(data / "link", MAIL) / "victim", MAIL)
    state = inside if is_state else own(place / "state", MAIL)
    monkeypatch.setenv("STATE_DIRECTORY", str(state))
    configure(place, data if is_state else inside)
    (place / "password").write_text("tan staaf\n")
    run(place, "user", "add", "ann", "--password-file", str(place / "password"))
    path = own(place / "backups", MAIL) / "a.tar"
    run(place, "backup", str(path))
    for each in (data, state):
        rmtree(each, ignore_errors=True)
    (place / "restante.toml").unlink()
    private = own(place / "private", pwd.getpwuid(0), 0o755)
    if exists:
        (private / "victim").mkdir()
    own(data, MAIL)
    if not is_state:
        own(state, MAIL)
    before = sorted(private.rglob("*"))
    (data / "link").symlink_to(private)
    run(place, "restore", str(path), "--yes", code=os.EX_IOERR)
    assert sorted(private.rglob("*")) == before


def test_root_writes_no_configuration_behind_a_link_of_the_servers_user(place: Path) -> None:
    home = own(place / "home", MAIL)
    source = own(home / "etc", MAIL) / "restante.toml"
    configure(home / "etc", own(place / "data", MAIL))
    own(place / "state", MAIL)
    path = own(place / "backups", MAIL) / "a.tar"
    run(place, "backup", str(path), "-c", str(source))
    source.unlink()
    run(place, "restore", str(path), "--yes", "-c", str(source))
    assert source.stat().st_uid == MAIL.pw_uid
    rmtree(home / "etc")
    private = own(place / "private", pwd.getpwuid(0))
    (home / "etc").symlink_to(private)
    run(place, "restore", str(path), "--yes", "-c", str(source), code=os.EX_IOERR)
    assert list(private.iterdir()) == []


def test_mail_below_the_directory_of_the_users_is_restored(place: Path) -> None:
    """Root creates the directory of the users, and their user the one of the mail in it."""
    configure(place, own(place / "data", MAIL))
    own(place / "state", MAIL)
    (place / "password").write_text("tan staaf\n")
    run(place, "user", "add", "ann", "--password-file", str(place / "password"))
    for name in ("", "/ann", "/ann/cur", "/ann/new", "/ann/tmp"):
        own(Path(f"{place}/data/mail{name}"), MAIL)
    path = own(place / "backups", MAIL) / "a.tar"
    run(place, "backup", str(path))
    rmtree(place / "data")
    (place / "restante.toml").unlink()
    rmtree(place / "state")
    own(place / "state", MAIL)
    run(place, "restore", str(path), "--yes")
    assert {each.stat().st_uid for each in (place / "data").rglob("*")} == {MAIL.pw_uid}
    assert (place / "data/mail/ann/cur").is_dir()


def test_files_of_another_user_do_not_become_roots(place: Path, backup: Path) -> None:
    said = run(place, "restore", str(backup), "--yes", code=os.EX_CONFIG)
    assert f"install -d -o mail -m 0700 {place}/state" in said
    assert not (place / "restante.toml").exists()
    assert not (place / "state").exists()


def owners(*paths: Path) -> list[tuple[str, str]]:
    """Owner and mode of each path."""
    found = [path.stat() for path in paths]
    return [
        (pwd.getpwuid(each.st_uid).pw_name, oct(stat.S_IMODE(each.st_mode))[2:]) for each in found
    ]


@pytest.mark.parametrize("is_recorded", [True, False])
@pytest.mark.parametrize("server_owns", [True, False])
def test_configuration_files_keep_their_owners(
    place: Path, monkeypatch: pytest.MonkeyPatch, *, is_recorded: bool, server_owns: bool
) -> None:
    """The server reads what it could read; `account add` can write; root's files stay root's."""
    configure(place, own(place / "data", MAIL))
    own(place / "state", MAIL)
    (place / "restante.toml").chmod(0o644)
    folder = own(place / "conf.d", MAIL if server_owns else pwd.getpwuid(0), 0o700)
    paths = [place / "restante.toml", folder]
    if server_owns:
        for name, owner, mode in (("a", MAIL, 0o600), ("b", pwd.getpwuid(0), 0o644)):
            path = folder / f"{name}.toml"
            path.write_text("")
            os.chown(path, owner.pw_uid, owner.pw_gid)
            path.chmod(mode)
            paths.append(path)
    else:
        folder.chmod(0o755)
    before = owners(*paths)
    backup = own(place / "backups", MAIL) / "a.tar"
    if is_recorded:
        run(place, "backup", str(backup))
    else:
        make_without_owners(place, backup)
    for path in (place / "data", place / "state", folder):
        rmtree(path)
    (place / "restante.toml").unlink()
    own(place / "state", MAIL)
    run(place, "restore", str(backup), "--yes")
    if is_recorded or server_owns:
        assert owners(*paths) == before
    own(place / "data", MAIL)
    own(place / "data" / "mail", MAIL)
    run(place, "check")


def make_without_owners(place: Path, path: Path) -> None:
    """Make a backup like earlier versions."""
    code = (
        "import sys; from restante.app.backup import making, manifest, writing\n"
        "def file(self, entry, content, real=writing.TarWriter.file):\n"
        "    return real(self, entry._replace(owner=''), content)\n"
        "def directory(self, entry, real=writing.TarWriter.directory):\n"
        "    entry.path.startswith('configuration/') or real(self, entry)\n"
        "writing.TarWriter.file, writing.TarWriter.directory = file, directory\n"
        "making.FORMAT = 1\n"
        "from restante.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done, said = python("-c", code, "-c", place / "restante.toml", "backup", path)
    assert done == 0, said


@pytest.mark.parametrize("name", ["restante.toml", "conf.d/a.toml", "conf.d"])
def test_configuration_that_only_root_can_read_is_reported(place: Path, name: str) -> None:
    configure(place, own(place / "data", MAIL))
    own(place / "data" / "mail", MAIL)
    own(place / "state", MAIL)
    own(place / "conf.d", pwd.getpwuid(0), 0o755)
    (place / "conf.d" / "a.toml").write_text("")
    run(place, "check")
    (place / name).chmod(0o700 if name == "conf.d" else 0o600)
    text = f"mail cannot read {place / name}"
    assert text in run(place, "check", code=os.EX_CONFIG)
    options = ("-m", "restante", "-c", place / "restante.toml", "doctor", "--json")
    _, said = python(*options)
    assert text in said
