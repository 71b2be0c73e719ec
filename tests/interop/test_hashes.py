"""Hashes made by Dovecot: both programs accept the same passwords."""

from __future__ import annotations

import subprocess

import pytest

from restante.auth import schemes
from restante.auth.choices import SCHEMES

from .programs import need

pytestmark = pytest.mark.interop
ENCODED = [
    (scheme, encoding)
    for scheme in ("PLAIN", "SHA", "SHA256", "SHA512", "SSHA", "SSHA256", "SSHA512")
    for encoding in (".HEX", ".B64")
]
PASSWORDS = ["tan staaf", "p", "pässwörd 密码", "a:b{c}$d", "x" * 72, " "]


def doveadm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([need("doveadm"), *arguments], capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize(("scheme", "encoding"), [*((each, "") for each in SCHEMES), *ENCODED])
def test_hashes_of_dovecot_work_here(scheme: str, encoding: str) -> None:
    for password in PASSWORDS:
        made = doveadm("pw", "-s", scheme + encoding, "-p", password)
        assert made.returncode == 0, made.stderr
        stored = made.stdout.rstrip("\n")
        assert schemes.matches(password, stored), stored
        assert not schemes.matches(password[:-1] + "~", stored), stored


@pytest.mark.parametrize("scheme", sorted({*SCHEMES} - {"PLAIN"}))
def test_changed_hash_works_here_only_if_it_works_in_dovecot(scheme: str) -> None:
    """One character is changed, at several places; Dovecot tolerates some changes, we fewer."""
    stored = doveadm("pw", "-s", scheme, "-p", "tan staaf").stdout.rstrip("\n")
    begin = stored.index("}") + 1
    for place in range(begin, len(stored), max(1, (len(stored) - begin) // 8)):
        other = "A" if stored[place] != "A" else "B"
        changed = stored[:place] + other + stored[place + 1 :]
        theirs = doveadm("pw", "-t", changed, "-p", "tan staaf").returncode == 0
        assert theirs or not schemes.matches("tan staaf", changed), changed
