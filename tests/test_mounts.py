"""No file is made below the mount point of a disk that is not mounted."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from restante import mounts
from restante.collect.destinations.opening import check_destination, open_destination
from restante.errors import TemporaryFailure
from restante.store.maildir import MaildirStore

from .store.helpers import deliver, run

Table = Callable[..., Path]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Add a mount point to fstab."""
    point = tmp_path / "my disk"
    point.mkdir()
    table(tmp_path, monkeypatch, str(point))
    return point


def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *points: str) -> None:
    lines = ["# a comment", "", "tmpfs", "UUID=1 / ext4 defaults 0 1", "UUID=2 none swap sw 0 0"]
    lines += [f"UUID=3 {each.replace(' ', chr(92) + '040')} ext4 nofail 0 2" for each in points]
    (tmp_path / "fstab").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(mounts, "_FSTAB", str(tmp_path / "fstab"))


def mount(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(disk))


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_a_disk_that_is_not_mounted_is_named(
    below: str, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TemporaryFailure, match="my disk is a mount point"):
        mounts.refuse_unmounted(f"{disk}/{below}")
    mount(disk, monkeypatch)
    mounts.refuse_unmounted(f"{disk}/{below}")


def test_a_symbolic_link_leads_there(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(disk)
    with pytest.raises(TemporaryFailure):
        mounts.refuse_unmounted(f"{tmp_path}/link/Mail")


def test_other_paths_are_not_checked(disk: Path, tmp_path: Path) -> None:
    """Other mount points are not accessed, since their file server may be down."""
    for place in (tmp_path / "Mail", tmp_path / "my disk 2", Path("/")):
        mounts.refuse_unmounted(str(place))


@pytest.mark.parametrize("text", ["", "x", "\udcff / \udcfe", "UUID=4 relative ext4"])
def test_empty_or_missing_fstab_refuses_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fstab").write_bytes(text.encode("utf-8", "surrogateescape"))
    monkeypatch.setattr(mounts, "_FSTAB", str(tmp_path / "fstab"))
    mounts.refuse_unmounted(str(tmp_path))
    monkeypatch.setattr(mounts, "_FSTAB", str(tmp_path / "none"))
    mounts.refuse_unmounted(str(tmp_path))


@pytest.mark.parametrize("to", ["maildir:{}/Mail", "mbox:{}/mail", "{}/Mail"])
def test_collector_creates_nothing_on_an_unmounted_disk(
    to: str, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in (check_destination, open_destination):
        with pytest.raises(TemporaryFailure, match="is a mount point"):
            attempt(to.format(disk))
    assert list(disk.iterdir()) == []
    with monkeypatch.context() as patch:
        mount(disk, patch)
        open_destination(to.format(disk)).close()
    # An existing directory is used: perhaps the disk is not needed.
    open_destination(to.format(disk)).close()


def test_store_creates_no_maildrop_on_an_unmounted_disk(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for a delivery nor for a login, which would list an empty maildrop."""
    store = MaildirStore(f"{disk}/%u")
    with pytest.raises(TemporaryFailure, match="is a mount point"):
        run(deliver(store, "ann", b"x"))
    with closing(store.deliveries("ann")) as deliveries, pytest.raises(TemporaryFailure):
        deliveries.begin("0" * 32)

    async def opened() -> None:
        async with store.open("ann"):
            pass

    with pytest.raises(TemporaryFailure, match="is a mount point"):
        run(opened())
    assert list(disk.iterdir()) == []
    with monkeypatch.context() as patch:
        mount(disk, patch)
        run(deliver(store, "ann", b"x"))
    run(deliver(store, "ann", b"x"))
