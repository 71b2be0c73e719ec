"""Users in a text file: permissions, malformed lines, and changes of the file."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import closing
from hashlib import md5
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar

import pytest

from restante.auth import passwd_file, schemes
from restante.auth.passwd_file import PasswdFile
from restante.errors import AuthenticationFailed, BackendUnavailable
from restante.passdb import Accounts, Credentials, Digest, Digests, Generations, UserAccount

T = TypeVar("T")
LONG_AGO = 1_600_000_000  # seconds since the epoch; what was written then is settled


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def write(path: Path, text: str | bytes, at: float = LONG_AGO) -> None:
    """As an administrator's editor does: another file, renamed into its place."""
    new = path.with_name("new")
    new.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.utime(new, (at, at))
    new.rename(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "users", "mrose:{PLAIN}tan staaf\n")
    return tmp_path / "users"


def log_in(
    file: PasswdFile, identity: str = "mrose", password: str = "tan staaf", **more: str
) -> UserAccount:
    return run(file.verify(Credentials("PLAIN", identity, password, **more)))


def refused(file: PasswdFile, *arguments: str, **more: str) -> str:
    """The reason."""
    with pytest.raises(AuthenticationFailed) as raised:
        log_in(file, *arguments, **more)
    return raised.value.reason


def test_it_keeps_its_contracts(path: Path) -> None:
    file = PasswdFile(path)
    assert isinstance(file, Accounts)
    assert isinstance(file, Digests)
    assert isinstance(file, Generations)


def test_a_right_password_opens_the_maildrop_of_that_name(path: Path) -> None:
    file = PasswdFile(path)
    assert log_in(file) == UserAccount("mrose", "mrose")
    assert refused(file, "mrose", "wrong") == "bad-password"
    assert refused(file, "nobody", "tan staaf") == "unknown-user"
    assert refused(file, "mrose", "tan staaf", authorization="ann") == "authorization"
    assert run(file.account("mrose")) == UserAccount("mrose", "mrose")
    assert run(file.account("ann")) is None


@pytest.mark.parametrize(
    ("line", "account"),
    [
        ("ann:{PLAIN}p", UserAccount("ann", "ann")),
        ("ann:{PLAIN}p::::::", UserAccount("ann", "ann")),
        ("ann:{PLAIN}p:1000:1000:Ann Other:/home/ann:/bin/sh", UserAccount("ann", "ann")),
        ("ann:{PLAIN}p:1000:1000:Ann:/home/ann:/bin/sh:", UserAccount("ann", "ann")),
        (
            "ann:{PLAIN}p::::::userdb_mail=maildir:~/Maildir userdb_quota=1",
            UserAccount("ann", "ann"),
        ),
        ("ann:{PLAIN}p::::::nologin", UserAccount("ann", "ann", is_enabled=False)),
        (
            "ann:{PLAIN}p::::::allow_nets=192.0.2.0/24,2001:db8::1",
            UserAccount(
                "ann", "ann", networks=tuple(map(ip_network, ("192.0.2.0/24", "2001:db8::1")))
            ),
        ),
        ("Ann:{PLAIN}p\r", UserAccount("ann", "ann")),
        ("\nann:{PLAIN}p\n\n", UserAccount("ann", "ann")),
    ],
)
def test_extra_fields_are_permissions(path: Path, line: str, account: UserAccount) -> None:
    write(path, line)
    file = PasswdFile(path)
    assert log_in(file, "ann", "p") == account
    assert run(file.account("ANN")) == account


@pytest.mark.parametrize(
    "line",
    [
        "ann",
        "ann:",
        "ann::1000",
        "ann:::::::nopassword",
        "ann:{PLAIN}p::::::nopassword",
        "ann:{PLAIN}p::::::nopassword=y",
        "ann:{PLAIN}p::::::allow_net=192.0.2.0/24",
        "ann:{PLAIN}p::::::allow_nets=",
        "ann:{PLAIN}p::::::allow_nets=local",
        "ann:{PLAIN}p::::::allow_nets=192.0.2.0/24 allow_nets=0.0.0.0/0",
        "ann:{PLAIN}p::::::user=mrose",
        "ann:{PLAIN}p::::::proxy host=192.0.2.1",
        "ann:{NOSUCH}p",
        "ann:{PLAIN}p:nologin",
        "ann:{PLAIN}p:::::nologin",
        "ann:{PLAIN}p::: nologin=y::",
        "ann:{PLAIN}p:::allow_nets=2001:db8::/32",
        "ann:{PLAIN}p:::::::nologin",
        "#ann:{PLAIN}p",
        "../ann:{PLAIN}p",
        "an/n:{PLAIN}p",
        "an n:{PLAIN}p",
        "ann:{PLAIN}p\nANN:{PLAIN}p",
        "ann:{PLAIN}p\nann:{PLAIN}other",
    ],
)
def test_user_of_a_malformed_line_cannot_log_in(
    path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All other users can."""
    write(path, f"{line}\nmrose:{{PLAIN}}tan staaf\n")
    file = PasswdFile(path)
    name = line.partition(":")[0]
    for password in ("p", "", "tan staaf"):
        with pytest.raises(AuthenticationFailed):
            log_in(file, name, password)
    assert log_in(file).user == "mrose"
    if not line.startswith("#"):
        reported = caplog.records[0].__dict__["fields"]
        assert reported["line"] == len(line.splitlines())
        assert "{" not in reported["reason"]


@pytest.mark.parametrize(
    "name", [" ann", "ann ", "ann\t", "\xa0ann", "\ufeffann", "ann\u200b", "an\xadn", " Ann@x "]
)
def test_name_with_invisible_characters_is_refused_not_unknown(path: Path, name: str) -> None:
    """Otherwise the next back end could admit a user that this line refuses."""
    write(path, f"{name}:{{PLAIN}}p::::::nologin\nmrose:{{PLAIN}}tan staaf\n")
    file = PasswdFile(path)
    meant = "ann@x" if "@" in name else "ann"
    for typed in (meant, meant.upper()):
        account = run(file.account(typed))
        assert account is not None
        assert not account.is_enabled
        assert refused(file, typed, "p") == "line-refused"
    accounts, problems = file.review()
    assert [each.user for each in accounts] == ["mrose"]
    assert len(problems) == 1
    assert "line 1 " in problems[0]


def test_latin_1_name_is_refused_not_unknown(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An editor that writes Latin-1 must not hand the user to the next back end."""
    write(path, "mrose:{PLAIN}tan staaf\nm\xfcller:{PLAIN}p::::::nologin\n".encode("latin-1"))
    file = PasswdFile(path)
    for typed in ("m\xfcller", "M\xdcLLER", "mu\u0308ller"):
        account = run(file.account(typed))
        assert account is not None
        assert not account.is_enabled
        assert refused(file, typed, "p") == "line-refused"
    assert run(file.account("m\udcfcller")) is None
    reason = "begins with a name that is not UTF-8; convert the file with iconv"
    fields = [each.__dict__["fields"] for each in caplog.records]
    assert [(each["line"], each["reason"]) for each in fields] == [(2, reason)]
    accounts, problems = file.review()
    assert [each.user for each in accounts] == ["mrose"]
    assert problems == [f"{path}: line 2 {reason}"]


def test_latin_1_name_of_another_line_shuts_both_out(path: Path) -> None:
    write(path, b"m\xfcller:{PLAIN}p\n" + "m\xfcller:{PLAIN}p\n".encode())
    assert refused(PasswdFile(path), "m\xfcller", "p") == "line-refused"


def test_name_that_is_not_utf8_is_unknown(path: Path) -> None:
    write(path, b"\xff:{PLAIN}p\nmrose:{PLAIN}p\xffq\n")
    file = PasswdFile(path)
    assert refused(file, "\udcff", "p") == "unknown-user"
    assert log_in(file, "mrose", "p\udcffq").user == "mrose"  # octets are octets


@pytest.mark.parametrize("password", ["", "a\0b", "x" * 1025])
def test_impossible_password_costs_no_hash(path: Path, password: str) -> None:
    assert refused(PasswdFile(path), "mrose", password) == "impossible-password"


# What a login costs.


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each hash was checked."""
    counted: Counter[str] = Counter()
    real = schemes.matches

    def matches(password: str, stored: str, scheme: str) -> bool:
        counted[stored] += 1
        return real(password, stored, scheme)

    monkeypatch.setattr(schemes, "matches", matches)
    return counted


def test_unknown_user_costs_one_hash_of_the_file(path: Path, checked: Counter[str]) -> None:
    """One hash of the file, always the same one for a name, and it opens nothing."""
    passwords = [f"p{number}" for number in range(8)]
    write(path, "".join(f"u{each}:{{PLAIN}}{each}\n" for each in passwords))
    file = PasswdFile(path)
    drawn = set()
    for number in range(40):
        checked.clear()
        for password in passwords[:3]:
            assert refused(file, f"nobody{number}", password) == "unknown-user"
        ((stored, times),) = checked.items()
        assert times == 3
        drawn.add(stored)
    assert len(drawn) > 4


def test_unknown_user_costs_a_hash_in_an_empty_file(path: Path, checked: Counter[str]) -> None:
    write(path, "")
    assert refused(PasswdFile(path), "ann", "p") == "unknown-user"
    ((stored, times),) = checked.items()
    assert stored.startswith("$argon2id$")
    assert times == 1


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a hash of each scheme was computed."""
    counted: Counter[str] = Counter()

    def counting(name: str, check: schemes.Check) -> schemes.Check:
        def count(password: str, text: str, encoding: str) -> bool:
            counted[name] += 1
            return check(password, text, encoding)

        return count

    for name, scheme in schemes._SCHEMES.items():
        counting_scheme = scheme._replace(check=counting(name, scheme.check))
        monkeypatch.setitem(schemes._SCHEMES, name, counting_scheme)
    return counted


COSTLY = "$argon2id$v=19$m=262144,t=16,p=1$34fOKsIGQLLUpQX+FdTjtQ$" + "C" * 43


@pytest.mark.parametrize(
    "line",
    [
        "# ann is unknown",
        "ann:{ARGON2ID}malformed",
        f"ann:{{ARGON2ID}}{COSTLY}",
        "ann:$1$salt$md5",
        "ann:*",
        "ann:!!",
        "ann:{PLAIN}",
        "ann:{SSHA256}c2hvcnQ=",
        "ann:{NOSUCH}p",
        "ann:",
        "ann:{PLAIN}p::::::unknown",
        "ann:{PLAIN}p:nologin",
        "an\u200bn:{PLAIN}p",
        "ann:{PLAIN}p\nann:{PLAIN}p",
        "ann:{PLAIN}wrong",
        "ann:{PLAIN}wrong::::::nologin",
    ],
)
def test_each_refusal_costs_one_hash_and_no_decoy_is_accepted(
    line: str, path: Path, computed: Counter[str]
) -> None:
    """So the time of an answer does not show which users have no hash that can be computed.

    The only hash that can be drawn as a decoy is that of mrose, whose password is tried.
    """
    write(path, f"eve:{{ARGON2ID}}malformed\n{line}\nmrose:{{PLAIN}}tan staaf\n")
    with closing(PasswdFile(path)) as file:
        assert refused(file, "ann", "tan staaf") in ("unknown-user", "line-refused", "bad-password")
    assert computed == {"PLAIN": 1}


# Changes.


def test_changed_file_counts_at_the_next_login(path: Path) -> None:
    file = PasswdFile(path)
    log_in(file)
    before = run(file.generation("mrose"))
    assert run(file.generation("mrose")) == before
    write(path, "mrose:{PLAIN}another\n")
    assert refused(file) == "bad-password"
    assert log_in(file, "mrose", "another").user == "mrose"
    assert run(file.generation("mrose")) != before
    write(path, "")
    assert refused(file, "mrose", "another") == "unknown-user"


def test_change_under_the_same_time_stamp_is_seen(path: Path) -> None:
    """Time stamps are coarse: what was written just now may be written again in the same tick."""
    now = path.stat().st_mtime + 10**9
    write(path, "mrose:{PLAIN}aaa\n", now)
    file = PasswdFile(path)
    log_in(file, "mrose", "aaa")
    before, generation = path.stat(), run(file.generation("mrose"))
    with open(path, "r+") as opened:
        opened.write("mrose:{PLAIN}bbb\n")
    os.utime(path, (now, now))
    after = path.stat()
    assert (before.st_mtime_ns, before.st_size, before.st_ino) == (
        *(after.st_mtime_ns, after.st_size, after.st_ino),
    )
    assert refused(file, "mrose", "aaa") == "bad-password"
    assert run(file.generation("mrose")) != generation


def test_an_unchanged_file_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PasswdFile(path)
    log_in(file)
    monkeypatch.setattr("builtins.open", None)
    log_in(file)


def test_a_file_that_was_read_ahead_is_not_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(path, (LONG_AGO, LONG_AGO))
    file = PasswdFile(path)
    file.read_ahead()
    monkeypatch.setattr(passwd_file, "open_regular", None)
    assert run(file.account("mrose")) == UserAccount("mrose", "mrose")


def test_file_that_cannot_be_read_ahead_is_reported_at_the_login(tmp_path: Path) -> None:
    file = PasswdFile(tmp_path / "missing")
    file.read_ahead()
    with pytest.raises(BackendUnavailable):
        run(file.account("mrose"))


def test_missing_file_is_a_temporary_failure(path: Path) -> None:
    """FAULTS.md I 195: a failure of the server does not count as a guess."""
    file = PasswdFile(path)
    for prepare in (path.unlink, path.mkdir):
        prepare()
        with pytest.raises(BackendUnavailable) as raised:
            log_in(file)
        assert str(path) not in str(raised.value)  # the client hears it
        assert str(path) in raised.value.reason
        with pytest.raises(BackendUnavailable):
            run(file.account("mrose"))
    path.rmdir()
    write(path, "mrose:{PLAIN}tan staaf\n")
    assert log_in(file).user == "mrose"


def test_a_file_that_changes_while_it_is_read_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stats = os.fstat, 0

    def fstat(descriptor: int) -> os.stat_result:
        nonlocal stats
        stats += 1
        if stats == 2:
            with open(path, "a") as file:
                file.write("ann:{PLAIN}p\n")
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", fstat)
    assert log_in(PasswdFile(path), "ann", "p").user == "ann"


def test_partly_written_file_is_never_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        with open(path, "a") as file:
            file.write("#\n")
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(BackendUnavailable):
        log_in(PasswdFile(path))


def test_no_secret_is_in_a_repr_or_in_the_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    write(path, "mrose:{PLAIN}tan staaf\nann:{NOSUCH}tan staaf\n")
    file = PasswdFile(path)
    log_in(file)
    assert "staaf" not in repr(file._content)
    assert "staaf" not in "".join(map(str, (record.__dict__ for record in caplog.records)))


# APOP.

STAMP = "<1896.697170952@dbc.mtview.ca.us>"


def prove(file: PasswdFile, identity: str, password: str, digest: str = "") -> UserAccount:
    made = md5((STAMP + password).encode()).hexdigest()
    return run(file.digested(Digest("APOP", identity, STAMP, digest or made)))


@pytest.mark.rfc("P-041", "P-043")
def test_digest_of_a_clear_text_password_is_accepted(path: Path) -> None:
    """The first is RFC 1939 §7's; the others stand in Base64, hexadecimal, and unprepared."""
    lines = ("mrose:{PLAIN}tanstaaf", "ann:{plain.b64}dHdv", "bob:{PLAIN.HEX}74776f", "eve:two")
    write(path, "\n".join((*lines, "zoe:{PLAIN}gro\u0308\u00dfe")))
    file = PasswdFile(path, scheme="PLAIN")
    shown = "c4c9334bac560ecc979e58001b3e22fb"
    assert prove(file, "mrose", "", shown) == UserAccount("mrose", "mrose")
    assert prove(file, "MROSE", "tanstaaf") == UserAccount("mrose", "mrose")
    assert [prove(file, name, "two").user for name in ("ann", "bob", "eve")] == [
        "ann",
        "bob",
        "eve",
    ]
    assert prove(file, "zoe", "größe") == UserAccount("zoe", "zoe")


@pytest.mark.rfc("P-041")
def test_wrong_digest_is_refused_for_every_user(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One digest is computed and compared for each; a decoy never admits a user."""
    hashed = "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="  # of "password"
    write(path, f"mrose:{{PLAIN}}tanstaaf\nann:{hashed}\nbob:{{PLAIN}}\neve:{{PLAIN.B64}}!\n")
    file = PasswdFile(path)
    compared: list[int] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    tries = [("mrose", "wrong"), ("mrose", ""), ("nobody", "tanstaaf"), ("ann", "password")]
    tries += [("ann", hashed), ("bob", ""), ("eve", "")]
    tries += [
        (name, passwd_file._UNKNOWN_PASSWORD.decode()) for name in ("ann", "bob", "eve", "nobody")
    ]
    reasons = []
    for identity, password in tries:
        with pytest.raises(AuthenticationFailed) as raised:
            prove(file, identity, password)
        assert str(raised.value) == str(AuthenticationFailed())
        reasons.append(raised.value.reason)
    assert set(reasons[:3]) == {"bad-password", "unknown-user"}
    assert set(reasons[3:7]) == {"no-plain-password"}
    assert compared == [32] * len(tries)


@pytest.mark.parametrize(
    "digest",
    ["C4C9334BAC560ECC979E58001B3E22FB", "c4c9334bac560ecc979e58001b3e22f", "x", "ü\udcff"],
)
def test_a_digest_of_another_form_is_wrong(path: Path, digest: str) -> None:
    write(path, "mrose:{PLAIN}tanstaaf\n")
    with pytest.raises(AuthenticationFailed):
        prove(PasswdFile(path), "mrose", "", digest)


def test_pipe_in_place_of_the_file_is_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "passwd")
    file = PasswdFile(tmp_path / "passwd")
    for ask in (file.account, file.generation):
        with pytest.raises(BackendUnavailable) as caught:
            run(ask("ann"))
        assert caught.value.reason.endswith("is not a regular file")


def test_changed_file_is_read_outside_the_event_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 12 MB, or one on a disk that hangs, must not stop a worker."""
    file, threads = PasswdFile(path), set()
    real = file._read_again

    def read() -> Any:
        threads.add(threading.current_thread().name)
        return real()

    monkeypatch.setattr(file, "_read_again", read)
    run(file.account("mrose"))
    run(file.generation("mrose"))
    assert threads == {"passwd-file"}


def test_logins_that_arrive_together_read_the_file_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would need time and memory for all lines, in each worker."""
    os.utime(path, (LONG_AGO, LONG_AGO))
    file, parse, count = PasswdFile(path), passwd_file._parse_all, 0

    def parse_slowly(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        time.sleep(0.05)  # while the others arrive
        return parse(*arguments)

    monkeypatch.setattr(passwd_file, "_parse_all", parse_slowly)

    async def main() -> None:
        asked = [file.account("mrose") for _ in range(8)]
        assert await asyncio.gather(*asked) == [UserAccount("mrose", "mrose")] * 8

    run(main())
    assert count == 1


def test_hashes_that_no_password_matches_are_problems(path: Path) -> None:
    """Their users cannot log in; the error is that of a wrong password."""
    path.write_text(
        "ann:{PLAIN}x\n"
        "bob:{ARGON2ID}$argon2id$v=19$m=262144,t=16,p=1$34fOKsIGQLLUpQX+FdTjtQ$" + "C" * 43 + "\n"
        "cat:$1$salt$md5\n"
        "dan:*\neve:!!\n"  # locked on purpose
    )
    with closing(PasswdFile(path)) as file:
        assert [each.partition(": ")[2] for each in file.review()[1]] == [
            f"the hash of {name} is malformed or too expensive, so no password matches it"
            for name in ("bob", "cat")
        ]
