"""Paths of maildrops: no two users share one, and none is inside another."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.errors import ConfigurationError, PermanentFailure, TemporaryFailure
from restante.store.maildir import MaildirStore
from restante.store.paths import Template

from .helpers import deliver, listing, names, run

TEMPLATES = ["/mail/%u", "/mail/%d/%n", "/mail/%n/%d/box", "/home/m-%n.d/Maildir", "/mail/%d/%u"]


@pytest.mark.parametrize(
    ("template", "user", "base", "names"),
    [
        ("/var/mail/%u", "ann@example.org", "/var/mail", ["ann@example.org"]),
        ("/var/mail/%d/%n", "ann@example.org", "/var/mail", ["example.org", "ann"]),
        ("/home/%n/Maildir/", "ann", "/home", ["ann", "Maildir"]),
        ("//mail//100%%/x-%n.box", "ann", "/mail/100%", ["x-ann.box"]),
        ("/%u", "ann", "/", ["ann"]),
        ("/mail/%d/%n", "a@b@c", "/mail", ["c", "a@b"]),
        ("/mail/%u", "jörg@exämple.org", "/mail", ["jörg@exämple.org"]),
        ("/mail/%u", "%n%%d$HOME~", "/mail", ["%n%%d$HOME~"]),
    ],
)
def test_template(template: str, user: str, base: str, names: list[str]) -> None:
    place = Template(template)
    assert (place.base, list(place.names(user))) == (base, names)


@pytest.mark.parametrize(
    "template",
    [
        "mail/%u",
        "",
        "/mail",
        "/mail/%d",
        "/mail/%x",
        "/mail/%",
        "/mail/%u%",
        "/mail/%n-%d",
        "/mail/%n%d",
        "/mail/../%u",
        "/mail/./%u",
        "/mail/%u\0",
    ],
)
def test_unsafe_template_is_refused(template: str) -> None:
    with pytest.raises(ConfigurationError):
        Template(template)


@pytest.mark.parametrize("template", ["/mail/%u", "/mail/%d/%n", "/mail/%n"])
@pytest.mark.parametrize(
    "user",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc",
        ".hidden",
        "-o",
        "a\0b",
        "a\tb",
        "a\nb",
        "a\x7fb",
        "a\x85b",
        "\ud800",
        "a\u200bb",
        "@",
        "a@",
        "@b",
        "a@.",
        "a@..",
        "a@../x",
        "../a@b",
        "a@-b",
        "x" * 129,
        "é" * 65,
        "a@" + "b" * 129,
    ],
)
def test_unsafe_user_is_refused(template: str, user: str) -> None:
    with pytest.raises(PermanentFailure):
        Template(template).names(user)


def test_user_without_domain_is_refused_where_a_domain_is_needed() -> None:
    with pytest.raises(PermanentFailure):
        Template("/mail/%d/%n").names("ann")


def test_user_with_domain_is_refused_where_it_would_be_lost() -> None:
    """ann@one and ann@two would share /mail/ann."""
    with pytest.raises(PermanentFailure):
        Template("/mail/%n").names("ann@one")


def test_names_longer_than_a_file_name_are_refused() -> None:
    with pytest.raises(PermanentFailure):
        Template("/mail/%u").names("a" * 128 + "@" + "b" * 128)


parts = st.text(st.characters(exclude_categories=()), max_size=4) | st.sampled_from(
    ["ann", "x", "new", "cur", "a@b", "%d", "%n", "..", "held"]
)
users = st.one_of(parts, st.tuples(parts, parts).map("@".join))


@given(st.sampled_from(TEMPLATES), users, users)
def test_no_maildrop_is_inside_another(template: str, one: str, two: str) -> None:
    place = Template(template)
    paths = []
    for user in (one, two):
        try:
            names = place.names(user)
        except PermanentFailure:
            return
        assert all(name not in ("", ".", "..") and "/" not in name for name in names)
        paths.append("/".join([place.base, *names, ""]))
    if one != two:
        assert not paths[0].startswith(paths[1])
        assert not paths[1].startswith(paths[0])


@pytest.mark.parametrize("template", ["%u", "%d/%n", "%d/%u/Maildir", "m-%n.x/%d"])
def test_users_are_found_again(tmp_path: Path, template: str) -> None:
    async def story() -> None:
        store = MaildirStore(f"{tmp_path}/{template}")
        users = ["ann@example.org", "bob@example.org", "jörg@other.org", "a@b@other.org"]
        for user in users:
            await deliver(store, user, b"x")
        (tmp_path / "stray").write_text("")
        (tmp_path / "example.org" / "no-maildir").mkdir(parents=True, exist_ok=True)
        (tmp_path / "link").symlink_to(tmp_path)
        assert sorted([user async for user in store.users()]) == sorted(users)

    run(story())


def test_directory_of_another_owner_hides_no_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example lost+found, which only root can read."""
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if path.endswith("lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    async def story() -> list[str]:
        store = MaildirStore(f"{tmp_path}/%d/%n")
        (tmp_path / "lost+found").mkdir()
        for user in "ann@example.org", "zoe@zoo.org":
            await deliver(store, user, b"x")
        monkeypatch.setattr(os, "scandir", refusing)
        return [user async for user in store.users()]

    assert sorted(run(story())) == ["ann@example.org", "zoe@zoo.org"]


def test_missing_mount_is_not_many_empty_maildrops(tmp_path: Path) -> None:
    async def story() -> None:
        store = MaildirStore(f"{tmp_path}/disk/%u")
        with pytest.raises(TemporaryFailure):
            await listing(store, "ann")
        with pytest.raises(TemporaryFailure):
            await deliver(store, "ann", b"x")
        with pytest.raises(TemporaryFailure):
            await store.held("ann")
        with pytest.raises(TemporaryFailure):
            assert [user async for user in store.users()]
        assert names(tmp_path) == []

    run(story())
