"""Compressed and encrypted files in a Maildir: imports unpack them, sessions never send them."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restante.cli.main import main
from restante.errors import PermanentFailure
from restante.store import coded
from restante.store.coded import encoding_of, unpacked
from restante.store.maildir import MaildirStore

from .helpers import contents, listing, put, run

# First octets as in Dovecot 2.3.19 and in the formats of the compression programs.
BEGINNINGS = {
    "gzip": bytes.fromhex("1f8b0800000000000003"),
    "bzip2": b"BZh61AY&SY",
    "zstd": bytes.fromhex("28b52ffd0058a42e"),
    "lz4": bytes.fromhex("04224d1864"),
    "xz": b"\xfd7zXZ\0",
    "encryption": bytes.fromhex("435259505445440307020000"),
}
DOVECOTS_LZ4 = b"Dovecot-LZ4\r*\x9b\xc5\0\1\0\0"
TEXT = b"Subject: x\r\n\r\n" + b"hello " * 50 + b"\r\n"


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_codings_are_recognised_by_the_first_octets(kind: str) -> None:
    assert encoding_of(BEGINNINGS[kind] + b"rest") == kind


def test_dovecot_lz4_is_recognised() -> None:
    assert encoding_of(DOVECOTS_LZ4) == "lz4"


@pytest.mark.parametrize(
    "octets",
    [b"", b"\x1f", b"BZh", b"BZh: a field\r\n", b"BZh9: a field\r\n", b"CRYPTED: x\r\n", TEXT],
)
def test_header_is_not_taken_for_a_coding(octets: bytes) -> None:
    assert encoding_of(octets) == ""


@pytest.mark.parametrize(("kind", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress)])
@given(texts=st.lists(st.binary(max_size=300), min_size=1, max_size=3), cut=st.integers(1, 100))
def test_unpacked_in_any_pieces(
    kind: str, pack: Callable[[bytes], bytes], texts: list[bytes], cut: int
) -> None:
    """Also several streams in sequence."""
    octets = b"".join(map(pack, texts))
    pieces = [octets[at : at + cut] for at in range(0, len(octets), cut)]
    assert b"".join(unpacked(pieces, kind, 1000)) == b"".join(texts)


@pytest.mark.parametrize(("kind", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress)])
@given(cut=st.integers(1, 2**16), at=st.integers(0, 2**16))
def test_damaged_data_is_an_error(
    kind: str, pack: Callable[[bytes], bytes], cut: int, at: int
) -> None:
    """Data that is truncated anywhere, or has a wrong octet anywhere that matters."""
    octets = pack(TEXT)
    with pytest.raises(PermanentFailure):
        list(unpacked([octets[: cut % len(octets) or 1]], kind, 10_000))
    other = bytearray(octets)
    other[at % len(octets)] ^= 1
    try:
        found = b"".join(unpacked([bytes(other)], kind, 10_000))
    except PermanentFailure:
        return
    assert found == TEXT  # a field without content, such as the time


@pytest.mark.parametrize(("kind", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress)])
def test_unpacking_stops_at_the_limit(kind: str, pack: Callable[[bytes], bytes]) -> None:
    sizes: list[int] = []
    with pytest.raises(PermanentFailure, match="larger than 1000000 octets"):
        sizes.extend(map(len, unpacked([pack(bytes(10_000_000))], kind, 1_000_000)))
    assert max(sizes) <= coded._PIECE


# -- Import


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MaildirStore:
    (tmp_path / "mail").mkdir()
    monkeypatch.setenv("RESTANTE__STORE__PATH", f"{tmp_path}/mail/%u")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return MaildirStore(f"{tmp_path}/mail/%u")


UIDLIST = b"3 V1 N9 G0\n1 :1.a\n2 :2.b,S=%d\n3 :3.c\n" % len(TEXT)
NAMES = ["cur/1.a:2,S", f"cur/2.b,S={len(TEXT)}:2,RSZ", "new/3.c"]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        put(tmp_path / "old", name, b"X: %d\r\n" % number + TEXT)
    (tmp_path / "old/dovecot-uidlist").write_bytes(UIDLIST)
    (tmp_path / "old/courierpop3dsizelist").write_bytes(b"/3 1\n")
    return tmp_path / "old"


def code(file: Path, pack: Callable[[bytes], bytes]) -> None:
    file.write_bytes(pack(file.read_bytes()))


@pytest.mark.parametrize("kind", ["dovecot", "courier"])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_import_unpacks_messages(
    pack: Callable[[bytes], bytes], kind: str, store: MaildirStore, old: Path
) -> None:
    before = [(old / name).read_bytes() for name in NAMES]
    for name in NAMES[1:]:  # with any flags
        code(old / name, pack)
    for _ in range(2):
        assert main(["import", kind, str(old), "ann"]) == 0
        assert sorted(run(contents(store, "ann"))) == before
    place = old.parent / "mail" / "ann"
    names = sorted(each.name for part in ("cur", "new") for each in (place / part).iterdir())
    assert names == ["1.a:2,S", f"2.b,S={len(TEXT)}:2,RS", "3.c"]


@pytest.mark.parametrize("kind", ["zstd", "lz4", "xz", "encryption"])
def test_import_refuses_codings_it_cannot_unpack(
    kind: str, store: MaildirStore, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code(old / NAMES[1], lambda _: BEGINNINGS[kind] + bytes(100))
    for dry_run in (["--dry-run"], []):
        assert main(["import", "dovecot", str(old), "ann", *dry_run]) == 78
        reported = capsys.readouterr().err
        for words in (f"1 file cannot be read by restante ({kind})", NAMES[1], "doveadm -o"):
            assert words in reported
    assert not (old.parent / "mail" / "ann").exists()


@pytest.mark.parametrize(
    "pack",
    [
        lambda text: gzip.compress(text)[:-1],
        lambda text: gzip.compress(text)[:20],
        lambda text: gzip.compress(text[:-1] + bytes(10_000_000)),
    ],
)
def test_damaged_or_too_large_messages_are_found_before_any_change(
    pack: Callable[[bytes], bytes],
    store: MaildirStore,
    old: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RESTANTE__LIMITS__MESSAGE", "1MiB")
    code(old / NAMES[2], pack)
    assert main(["import", "dovecot", str(old), "ann"]) == 78
    assert NAMES[2] in capsys.readouterr().err
    assert not (old.parent / "mail" / "ann").exists()


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_compressed_mail_is_refused_if_nothing_is_copied(
    dry_run: list[str], store: MaildirStore, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the old Maildir is the maildrop its files are not changed, so they cannot be unpacked."""
    code(old / NAMES[1], gzip.compress)
    old.rename(old.parent / "mail" / "ann")
    place = old.parent / "mail" / "ann"
    assert main(["import", "dovecot", str(place), "ann", *dry_run]) == 78
    assert "cannot be read by restante (gzip)" in capsys.readouterr().err
    assert not (place / "restante.ids").exists()


def test_compressed_copy_in_the_maildrop_is_found_too(
    store: MaildirStore, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For example in a Maildir that was copied there by other means."""
    place = old.parent / "mail" / "ann"
    for name in NAMES:
        put(place, name, gzip.compress((old / name).read_bytes()))
    assert main(["import", "dovecot", str(old), "ann"]) == 78
    assert "compressed or encrypted" in capsys.readouterr().err
    assert not (place / "restante.ids").exists()


def test_compressed_mbox_is_named_in_the_error(
    store: MaildirStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "box").write_bytes(gzip.compress(b"From a\n" + TEXT))
    assert main(["import", "mbox", str(tmp_path / "box"), "ann"]) == 78
    assert "gzip" in capsys.readouterr().err


# -- Served


def test_coded_message_is_not_cached(maildir: MaildirStore, place: Path) -> None:
    """They end like a text, so the form of the octets alone is not enough."""
    put(place, "new/1.a", BEGINNINGS["zstd"] + b"x\r\n")
    (entry,) = run(listing(maildir, "ann"))

    async def read() -> bytes:
        async with maildir.open("ann") as maildrop:
            assert maildrop.cached_texts([entry], 100) == []  # type: ignore[attr-defined]
            raw = maildrop.open_raw(entry)  # type: ignore[attr-defined]
            assert raw is None or not raw.has_crlf
            return b"".join([piece async for piece in maildrop.read(entry)])

    with pytest.raises(PermanentFailure, match="compressed or encrypted"):
        run(read())
