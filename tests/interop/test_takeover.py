"""Migration from Dovecot and Courier: clients fetch no message again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from restante.cli.main import main
from restante.store import foreign
from restante.store.maildir import MaildirStore

from ..store.helpers import contents, listing, put, rename, run
from .programs import call, missing, serving

pytestmark = pytest.mark.interop

DOVECOT = Path("/usr/lib/dovecot/pop3")
COURIER = (
    Path(__file__).parents[2] / "build/courier"
)  # unpacked: its package conflicts with Dovecot's
NAMES = ["cur/1700000009.c.host:2,S", "new/1700000003.a.host", "cur/1700000001.b.host,S=15:2,RS"]


@pytest.fixture
def old() -> Iterator[Path]:
    """Make a Maildir that the old server can access as any user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for number, name in enumerate(NAMES):
        put(folder / "mail", name, b"Subject: %d\n\nyy\n" % number)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MaildirStore:
    (tmp_path / "mail").mkdir()
    monkeypatch.setenv("RESTANTE__STORE__PATH", f"{tmp_path}/mail/%u")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    return MaildirStore(f"{tmp_path}/mail/%u")


def kept(command: list[str | Path], environment: Mapping[str, str]) -> list[tuple[str, int]]:
    """Return what a client that leaves mail on the server stores: unique-ids and sizes.

    ``command`` serves one client that is logged in already.
    """
    with subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,  # Dovecot refuses sockets, and needs this open until the end
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"UIDL\r\nLIST\r\nQUIT\r\n")
        process.stdin.flush()
        said = process.stdout.read()
    uidl, listed = re.findall(rb"\+OK[^\n]*\n((?:\d+ [^\n]*\n)+)\.\r\n", said)
    ids = [line.split()[1].decode() for line in uidl.splitlines()]
    return list(zip(ids, [int(line.split()[1]) for line in listed.splitlines()], strict=True))


def ours(store: MaildirStore) -> list[tuple[str, int]]:
    return [(entry.unique_id, entry.size) for entry in run(listing(store, "ann"))]


def dovecot(old: Path, template: str = "") -> list[tuple[str, int]]:
    if not DOVECOT.exists():
        missing("dovecot-pop3d is not installed")
    user = "mail" if os.getuid() == 0 else os.environ["USER"]
    settings = [f"mail_location = maildir:{old}/mail", "ssl = no", "first_valid_uid = 1"]
    settings += ["log_path = /dev/stderr"]
    if template:
        settings.append(f"pop3_uidl_format = {template}")
    if os.getuid() == 0:
        settings += ["mail_uid = mail", "mail_gid = mail", "first_valid_gid = 1"]
        call("chown", "-R", "mail:mail", old)
    (old / "dovecot.conf").write_text("\n".join(settings) + "\n")
    return kept([DOVECOT, "-c", old / "dovecot.conf"], {"HOME": str(old), "USER": user})


@pytest.mark.parametrize("template", ["", "%v.%u", "%f", "UID%u-%v", "%g"])
def test_from_dovecot(old: Path, store: MaildirStore, template: str) -> None:
    before = dovecot(old, template)
    assert len(before) == 3
    options = ["--format", template] if template else []
    assert main(["import", "dovecot", str(old / "mail"), "ann", *options]) == 0
    assert ours(store) == before
    assert len(run(contents(store, "ann"))) == 3


def test_from_dovecot_with_ids_and_an_order_of_an_older_server(
    old: Path, store: MaildirStore
) -> None:
    dovecot(old)
    uidlist = old / "mail/dovecot-uidlist"
    lines = uidlist.read_text().splitlines()
    lines[1] = lines[1].replace(" ", " Pfirst O7 ", 1)
    lines[3] = lines[3].replace(" ", " Pthird O2 ", 1)
    uidlist.write_text("\n".join(lines) + "\n")
    for index in (old / "mail").glob("dovecot.index*"):
        index.unlink()
    before = dovecot(old)
    assert [unique_id for unique_id, _ in before][:2] == ["third", "first"]
    assert main(["import", "dovecot", str(old / "mail"), "ann"]) == 0
    assert ours(store) == before


def test_back_to_dovecot(old: Path, store: MaildirStore, tmp_path: Path) -> None:
    before = dovecot(old)
    assert main(["import", "dovecot", str(old / "mail"), "ann"]) == 0
    back = foreign.dovecot_uidlist(
        run(store.unique_ids("ann")), uid_validity=1_700_000_000, guid="1" * 32
    )
    shutil.rmtree(old / "mail")
    shutil.copytree(tmp_path / "mail/ann", old / "mail")
    (old / "mail/dovecot-uidlist").write_bytes(back)
    assert dovecot(old) == before


def test_from_courier(old: Path, store: MaildirStore) -> None:
    server = COURIER / "usr/lib/courier/courier/courierpop3d"
    if not server.exists():
        missing("courier-pop is not unpacked in build/courier, as .ci/run does")
    libraries = [COURIER / "usr/lib", *COURIER.glob("usr/lib/*-linux-gnu")]
    environment = {"AUTHENTICATED": "ann", "MAILDIR": str(old / "mail")}
    environment["LD_LIBRARY_PATH"] = ":".join(map(str, libraries))
    before = kept([server, old / "mail"], environment)
    assert len(before) == 3
    assert main(["import", "courier", str(old / "mail"), "ann"]) == 0
    assert ours(store) == before


def test_comparison_with_the_old_server(
    store: MaildirStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving() as server:
        server.deliver([b"Subject: %d\r\n\r\n.x\r\n" % number for number in range(3)])
        files = sorted(path.name for path in (server.maildir / "new").iterdir())
        lines = [f"{n} P{name.partition(',')[0]} :{name}" for n, name in enumerate(files, 1)]
        uidlist = server.maildir / "dovecot-uidlist"
        uidlist.write_text("\n".join(["3 V1 N9 G0", *lines, ""]))
        monkeypatch.setenv("RESTANTE_PASSWORD", server.password)
        url = f"pop3s://{server.user}@localhost:{server.port('pop3s')}"
        command = ["import", "dovecot", str(server.maildir), "ann", "--compare", url]
        command += ["--ca-file", str(server.ca)]
        assert main(command) == 0
        assert len(ours(store)) == 3
        uidlist.write_text("\n".join(["3 V1 N9 G0", *lines[:-1], f"3 Pother :{files[-1]}", ""]))
        assert main([*command, "--dry-run"]) == 78
        rename(server.maildir, f"new/{files[0]}", "tmp/x")
        assert main([*command, "--dry-run"]) == 78
