"""Commands of root: which user they become, and that they cannot become root again."""

from __future__ import annotations

import json
import os
import pwd
import struct
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest

from restante.app import privileges
from restante.config import load
from restante.errors import ConfigurationError
from tests.as_root import python

pytestmark = pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can change its user"
)
MAIL, OTHER = (pwd.getpwnam(name) for name in ("mail", "www-data"))
"""Two ordinary accounts that every Debian has: the server's, and one that must get nothing."""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of root that all users can enter, with a configuration."""
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    folder = Path(mkdtemp(prefix="restante-"))
    folder.chmod(0o755)
    monkeypatch.setenv("HOME", str(folder / "root"))
    monkeypatch.setenv("STATE_DIRECTORY", str(folder / "state"))
    configure(folder)
    yield folder
    rmtree(folder)


def configure(place: Path, folder: Path | None = None) -> None:
    folder = folder or place
    store, auth = f'path = "{folder}/mail/%u"', f'users = "{folder}/users.sqlite3"'
    (place / "restante.toml").write_text(f"[store]\n{store}\n[auth]\n{auth}\n")


def own(path: Path, account: pwd.struct_passwd, mode: int = 0o700) -> Path:
    path.mkdir(exist_ok=True)
    os.chown(path, account.pw_uid, account.pw_gid)
    path.chmod(mode)
    return path


def account_of(place: Path) -> str:
    """Return the name of the user that a command becomes; "root" if it stays root."""
    account = privileges.server_account(load(place / "restante.toml"))
    return account.pw_name if account else "root"


def refused(place: Path) -> str:
    with pytest.raises(ConfigurationError) as error:
        privileges.server_account(load(place / "restante.toml"))
    return str(error.value)


def run(place: Path, *arguments: str, code: int = 0, prefix: tuple[str, ...] = ()) -> str:
    options = ("-m", "restante", "-c", place / "restante.toml")
    done, said = python(*options, *arguments, prefix=prefix)
    assert done == code, said
    return said


def test_command_becomes_owner_of_the_data(place: Path) -> None:
    """Each of the paths at which the server writes is enough."""
    assert account_of(place) == "root"
    for name in ("mail", "state"):
        own(place / name, MAIL)
        assert account_of(place) == "mail"
        (place / name).rmdir()
    (place / "users.sqlite3").touch()
    os.chown(place / "users.sqlite3", MAIL.pw_uid, -1)
    assert account_of(place) == "mail"


def test_directory_that_does_not_exist_yet_belongs_to_the_owner_of_its_parent(place: Path) -> None:
    configure(place, own(place / "home", MAIL))
    assert account_of(place) == "mail"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o1775])
def test_directory_that_another_user_could_create_proves_nothing(place: Path, mode: int) -> None:
    shared = own(place / "shared", pwd.getpwuid(0), mode)
    os.chown(shared, 0, OTHER.pw_gid)
    configure(place, shared)
    own(shared / "mail", OTHER)
    assert "other users than root may have created it" in refused(place)
    # Such a directory of the server's user harms nothing if another path proves this user.
    own(shared / "mail", MAIL)
    own(place / "state", MAIL)
    assert account_of(place) == "mail"
    own(shared / "mail", OTHER)
    assert "root does not know which user the server runs as" in refused(place)


def test_directory_below_a_writable_one_proves_nothing(place: Path) -> None:
    shared = own(place / "shared", pwd.getpwuid(0), 0o777)
    middle = own(shared / "middle", pwd.getpwuid(0), 0o755)
    configure(place, middle)
    own(middle / "mail", OTHER)
    assert "other users than root may have created it" in refused(place)


def test_link_of_another_user_leads_to_no_third_user(place: Path) -> None:
    """A compromised server must not make root act as a third user."""
    configure(place, own(place / "data", MAIL))
    victim = own(place / "victim", OTHER)
    (place / "data/mail").symlink_to(victim)
    assert "root does not know which user the server runs as" in refused(place)
    (place / "data/mail").unlink()
    (place / "data/mail").symlink_to("../victim/../victim")
    assert "root does not know which user the server runs as" in refused(place)


def test_owner_is_repaired_only_where_the_configuration_points(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privileges, "_package_account", lambda config: MAIL)
    data = own(place / "state", OTHER)
    configure(place, data)
    own(data / "mail", MAIL)
    said = refused(place)
    assert said.endswith(f"All must belong to mail. Run: chown -h mail {data}")
    assert "runuser" not in said
    own(data, MAIL)
    (data / "mail").rmdir()
    (data / "mail").symlink_to(own(place / "victim", OTHER))
    assert "chown" not in refused(place)


def test_links_of_root_are_followed(place: Path) -> None:
    own(place / "disk", MAIL)
    (place / "one").symlink_to("two")
    (place / "two").symlink_to(place / "disk")
    configure(place, place / "one")
    assert account_of(place) == "mail"
    (place / "disk").rmdir()
    (place / "two").unlink()
    (place / "two").symlink_to("one")  # a loop ends
    assert account_of(place) == "root"


def test_configuration_must_belong_to_root_or_the_servers_user(place: Path) -> None:
    configure(place, own(place / "data", MAIL))
    file = place / "restante.toml"
    os.chown(file, MAIL.pw_uid, -1)
    assert account_of(place) == "mail"
    os.chown(file, OTHER.pw_uid, -1)
    assert "belongs to www-data, so root does not follow it" in refused(place)
    os.chown(file, 0, -1)
    own(place / "conf.d", OTHER)
    assert "belongs to www-data, so root does not follow it" in refused(place)
    own(place / "conf.d", MAIL)
    assert account_of(place) == "mail"
    extra = place / "conf.d/one.toml"
    extra.touch()
    os.chown(extra, OTHER.pw_uid, -1)
    assert "belongs to www-data, so root does not follow it" in refused(place)
    extra.unlink()
    file.chmod(0o666)
    assert "can be changed by other users, so root does not follow it" in refused(place)
    file.chmod(0o644)
    # Also if root would stay root: the configuration may contain commands.
    configure(place)
    os.chown(file, OTHER.pw_uid, -1)
    assert "belongs to www-data, so root does not follow it. It must belong to root" in refused(
        place
    )


@pytest.mark.parametrize("name", ["restante.toml", "conf.d/one.toml"])
def test_file_of_another_user_is_refused_after_it_vanished(place: Path, name: str) -> None:
    """In a sticky directory, the owner can rename it while root loads it."""
    shared = own(place / "shared", pwd.getpwuid(0), 0o1777)
    for folder in (shared / "ann", shared / "ann/conf.d"):
        own(folder, OTHER if name == "restante.toml" else pwd.getpwuid(0))
    configure(shared / "ann", place)
    (shared / "ann/conf.d/one.toml").touch()
    os.chown(shared / "ann" / name, OTHER.pw_uid, -1)
    config = load(shared / "ann/restante.toml")
    (shared / "ann" / name).rename(place / "hidden")
    for moved in ("", "ann"):  # only the file, or the whole directory
        if moved:
            (place / "hidden").rename(shared / "ann" / name)
            (shared / moved).rename(shared / "moved")
        with pytest.raises(ConfigurationError, match=r"changed while root read it|www-data"):
            privileges.server_account(config)


@pytest.mark.parametrize("name", ["restante.toml", "conf.d/one.toml"])
def test_configuration_that_was_exchanged_after_loading_is_refused(place: Path, name: str) -> None:
    (place / "conf.d").mkdir()
    (place / "conf.d/one.toml").touch()
    config = load(place / "restante.toml")
    (place / name).rename(place / "old")
    (place / name).touch()
    with pytest.raises(ConfigurationError, match="changed while root read it"):
        privileges.server_account(config)


def test_file_that_another_user_may_write_is_refused_as_it_was_read(place: Path) -> None:
    file = place / "restante.toml"
    file.chmod(0o666)
    config = load(file)
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="can be changed by other users"):
        privileges.server_account(config)


def test_link_of_the_servers_user_leads_root_to_no_private_file(place: Path) -> None:
    """The user who owns ``conf.d`` must be able to read what root reads there."""
    configure(place, own(place / "data", MAIL))
    own(place / "conf.d", MAIL)
    secret = place / "secret"
    secret.write_text('[server]\nhostname = "secret.example.org"\n')
    secret.chmod(0o600)
    link = place / "conf.d/one.toml"
    link.symlink_to(secret)
    assert f"{link}: Permission denied" in run(place, "user", "list", code=78)
    secret.chmod(0o640)
    os.chown(secret, 0, MAIL.pw_gid)
    run(place, "user", "list")


def test_access_control_list_opens_a_directory(place: Path) -> None:
    """With such a list, the bits of root's group are a mask for other users (acl(5))."""
    shared = own(place / "shared", pwd.getpwuid(0), 0o775)
    configure(place, shared)
    own(shared / "mail", OTHER)
    assert account_of(place) == "www-data"
    # Version 2: owner rwx, user www-data rwx, group r-x, mask rwx, others r-x.
    entries = [(1, 7, -1), (2, 7, OTHER.pw_uid), (4, 5, -1), (16, 7, -1), (32, 5, -1)]
    octets = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *each) for each in entries)
    os.setxattr(shared, "system.posix_acl_access", octets)
    assert "other users than root may have created it" in refused(place)


def test_owner_without_an_account_is_refused(place: Path) -> None:
    configure(place, place / "data")
    for uid in (65_534, 3_999_999):  # the first one stands for all unknown users
        os.chown(own(place / "data", MAIL), uid, uid)
        assert f"belongs to user {uid}, who has no account here" in refused(place)


def test_new_service_uses_the_account_of_the_package(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privileges, "SYSTEM", (place, place / "state"))
    monkeypatch.setattr(privileges, "ACCOUNT", "mail")
    assert account_of(place) == "mail"
    shared = own(place / "shared", pwd.getpwuid(0), 0o777)
    configure(place, shared)
    own(shared / "mail", MAIL)  # not proven, but certainly not a third user's
    assert account_of(place) == "mail"
    monkeypatch.setattr(privileges, "ACCOUNT", "no-such-account")
    assert "other users than root may have created it" in refused(place)
    (shared / "mail").rmdir()
    assert account_of(place) == "root"  # a container in which root owns everything


def test_files_belong_to_the_servers_user_and_private_files_of_root_are_read(place: Path) -> None:
    configure(place, own(place / "data", MAIL))
    own(place / "data/mail", MAIL)
    secret = place / "secret"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)
    run(place, "user", "add", "ann", "--password-file", str(secret))
    assert "ann" in run(place, "user", "list")
    run(place, "check")
    for path in [*(place / "data").rglob("*"), *(place / "state").rglob("*")]:
        status = path.stat()
        assert (status.st_uid, status.st_mode & 0o077) == (MAIL.pw_uid, 0), path


def test_files_that_only_root_can_read_are_otherwise_refused(place: Path) -> None:
    """Root must not follow what another user put there."""
    configure(place, own(place / "data", MAIL))
    mailbox = place / "mbox"
    mailbox.write_text("From x\nSubject: hi\n\nhi\n")
    mailbox.chmod(0o600)
    own(place / "data/mail", MAIL)
    # The password file is an exception.
    secret = place / "secret"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)
    compare = ("--compare", "pop3s://pop.example.org", "--password-file", str(secret))
    said = run(place, "import", "mbox", str(mailbox), "ann", *compare, code=74)
    assert f"{mailbox}: Permission denied" in said
    assert "root's command ran as mail" in said


_PROBE = """
import os, sys
from pathlib import Path
from restante.app import privileges
from restante.config import load
os.setgroups([0, 4])
privileges.drop(load(Path(sys.argv[1])))
for regain in (lambda: os.setuid(0), lambda: os.seteuid(0), lambda: os.setresuid(0, 0, 0),
               lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresgid(0, 0, 0)):
    try:
        regain()
    except PermissionError:
        continue
    raise SystemExit("regained")
status = Path("/proc/self/status").read_text()
print(os.getresuid(), os.getresgid(), os.getgroups(), oct(os.umask(0)))
print(os.environ["HOME"], os.environ["USER"], os.environ["LOGNAME"])
print(*(line for line in status.splitlines() if line.startswith(("CapPrm", "CapEff", "CapAmb"))))
print(sorted(os.listdir("/proc/self/fd")))
"""


def test_nothing_of_root_remains(place: Path) -> None:
    own(place / "mail", MAIL)
    code, said = python("-c", _PROBE, place / "restante.toml")
    assert code == 0, said
    ids, names, capabilities, descriptors = said.splitlines()
    uid, gid = MAIL.pw_uid, MAIL.pw_gid
    groups = sorted(set(os.getgrouplist("mail", gid)))
    assert ids == f"{(uid,) * 3} {(gid,) * 3} {groups} 0o77"
    assert names == f"{MAIL.pw_dir} mail mail"
    assert set(capabilities.split()[1::2]) == {"0" * 16}
    assert descriptors == "['0', '1', '2', '3']"  # the last one lists the others


def test_kept_capabilities_are_noticed(place: Path) -> None:
    """With these securebits(7), a process keeps its capabilities when it changes its user."""
    own(place / "mail", MAIL)
    prefix = ("setpriv", "--securebits=+no_setuid_fixup")
    assert "could become root again" in run(place, "user", "list", code=78, prefix=prefix)


def test_capabilities_that_are_only_permitted_are_noticed(place: Path) -> None:
    """PR_SET_KEEPCAPS: not in effect, so the process cannot become root before it raises them."""
    own(place / "mail", MAIL)
    keep = "import ctypes; assert ctypes.CDLL(None).prctl(8, 1, 0, 0, 0) == 0"
    code, said = python("-c", f"{keep}\n{_PROBE}", place / "restante.toml")
    assert (code, "could become root again" in said) == (1, True), said


def test_root_without_the_right_to_change_its_user_is_refused(place: Path) -> None:
    own(place / "mail", MAIL)
    prefix = ("setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-setuid,-setgid")
    said = run(place, "user", "list", code=78, prefix=prefix)
    assert "root cannot become mail: Operation not permitted" in said


def test_program_that_the_server_cannot_read_is_reported(place: Path) -> None:
    own(place / "mail", MAIL)
    patch = f"import os; os.__file__ = {str(own(place / 'closed', OTHER) / 'os.py')!r}"
    code, said = python("-c", f"{patch}\n{_PROBE}", place / "restante.toml")
    assert (code, "mail cannot read the program" in said) == (1, True)


_RUN_AS = """
import json, os, sys
from restante import errors
from restante.app import privileges
from restante.app import failures
import pwd
account = pwd.getpwnam("mail")
def fail(error):
    raise error
def outcome(work):
    try:
        return privileges.run_as(account, work)
    except Exception as error:
        return [type(error).__name__, str(error)]
print(json.dumps([
    outcome(lambda: [os.getuid(), os.geteuid()]),
    outcome(lambda: fail(OSError(28, "No space left on device", "/x"))),
    outcome(lambda: fail(errors.TemporaryFailure("busy"))),
    outcome(lambda: fail(errors.NoSuchUser("ann"))),
    outcome(lambda: os.kill(os.getpid(), 9)),
    os.getuid(),
]))
"""


def test_work_of_a_child_process_has_its_result_or_its_error() -> None:
    code, said = python("-c", _RUN_AS)
    assert code == 0, said
    assert json.loads(said) == [
        [MAIL.pw_uid, MAIL.pw_uid],
        ["OSError", "[Errno 28] No space left on device: '/x'"],
        ["TemporaryFailure", "busy"],
        ["ConfigurationError", "no such user: 'ann'"],
        ["TemporaryFailure", "a part of this command was killed"],
        0,
    ]
