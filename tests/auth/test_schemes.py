"""Hashes that other programs stored; each was made by Dovecot 2.3 for "tan staaf"."""

from __future__ import annotations

import builtins
import hashlib
import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from restante.auth import choices, schemes
from restante.errors import BackendUnavailable

STORED = [
    "{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$34fOKsIGQLLUpQX+FdTjtQ"
    "$Cj5BwWMeafvDGFOtSJphXH2GH/iMQ0P9YbihroKeL50",
    "{ARGON2I}$argon2i$v=19$m=32768,t=4,p=1$t9jgJnaWs2fJ+oQ78d1pIg"
    "$Fvnt0+1iQSzSHYVde8yQ2dgh0RjS509pobNm3aE9W3s",
    "{BLF-CRYPT}$2y$05$q73ziyeV9D8Pp4lv.5Zq5.KZNo3E02IH12X/qtPC4vpxB2rpWDn8.",
    "{SHA512-CRYPT}$6$s337zKwn/IFK0ktF$2kKZEmxdBw3Ae3toKuRE.4dQgNGVr9Nib4VsatIIbLi7"
    "..x8EcuTKmjf1QNZ0abRjmPFXE9uSOaBMW2QcNeDC1",
    "{SHA256-CRYPT}$5$bEx3nQmNdyazo08H$cXztj5fq0rkFLtK39rmJjYiBjJCJpMNxI5r7u40HSE4",
    "{SSHA}3ZJGzcS7ivQiazmp4RaEq6VvnO+//o23",
    "{SSHA.B64}dpNOURhNbU3EOesUQ0Uv+x5y6COx2cyr",
    "{SSHA256}cv5F1FKDRTsET8AU0sDw8P6ICLJCRgPjG+3SBbC2mSdIYSFq",
    "{SSHA512}cN06guyEVqSGu0iSL+vmOXKpHtHDedHkbdyw2zTsH0iVUqgnkwAHS93aYONWH75O1rP3Dk9hT4wL"
    "MlGGYWAfdbDjQew=",
    "{SHA}2wW3+7EdexTj7T7ig0OF4guzRHE=",
    "{sha1}2wW3+7EdexTj7T7ig0OF4guzRHE=",
    "{SHA256}cx0hgwH9a2NHpnFajA9GFf/Akv9tEwFFY2BHCpoWNKs=",
    "{SHA256.HEX}731d218301fd6b6347a6715a8c0f4615ffc092ff6d1301456360470a9a1634ab",
    "{SHA256}731d218301fd6b6347a6715a8c0f4615ffc092ff6d1301456360470a9a1634ab",
    "{SHA512}YR+atp1K2LIanGenmm0YKB+Liof1hlxBAV29BtYLW83eLsPuYx+IBRMYrHub24galYQDgwxG1L8IP9"
    "/uFQyuFA==",
    "{PBKDF2}$1$o7F4wu9moN83TDUl$5000$17fe24607573b301f6c22b985843f0c1997c7265",
    "{PLAIN}tan staaf",
    "{PLAIN.HEX}74616e207374616166",
    "{CRYPT}$2y$05$eoZEBqRu/JxtqcmI7lAKpeL4O0PFD6ouCiCnmhnFlZO16vJs0lUYu",
    "$2y$05$eoZEBqRu/JxtqcmI7lAKpeL4O0PFD6ouCiCnmhnFlZO16vJs0lUYu",
    "$5$bEx3nQmNdyazo08H$cXztj5fq0rkFLtK39rmJjYiBjJCJpMNxI5r7u40HSE4",
    "{SCRAM-SHA-256}4096,qNjFJoBo5UIi3RoOoso8PA==,"
    "u94hKCbeFw5VtFr9rPhdAistI7L8U0N7pejWkI1rCzw=,dLrC8fQ/nyAiqFkpQLWTJhouDYItekP6squampJ2HFA=",
]


def test_the_configuration_may_name_every_scheme_that_is_known() -> None:
    assert tuple(schemes._SCHEMES) == choices.SCHEMES


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: stored[:16])
def test_a_hash_of_dovecot_opens_for_its_password_only(stored: str) -> None:
    assert schemes.is_known(stored)
    assert schemes.is_sane(stored)
    assert schemes.matches("tan staaf", stored)
    for wrong in "Tan staaf", "\udcff":
        assert not schemes.matches(wrong, stored)


OURS = [each for each in STORED if each.startswith(("{SSHA", "{SHA", "{P", "{SCRAM", "{sha"))]


@pytest.mark.parametrize(
    "stored", [each for each in OURS if "CRYPT" not in each], ids=lambda stored: stored[:16]
)
def test_hash_comparison_takes_constant_time(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2026-27856.  Other hashes are compared by the libraries that compute them."""
    compared: list[tuple[bytes, bytes]] = []

    def differ(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(hmac, "compare_digest", differ)
    assert not schemes.matches("tan staaf", stored)
    assert len(compared) == 1


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: stored[:16])
def test_truncated_hash_matches_nothing(stored: str) -> None:
    prefix = stored.partition("}")[0]
    for end in range(0, len(stored), 13):
        # A shorter plain text is another plain text.
        if "PLAIN" not in prefix:
            assert not schemes.matches("tan staaf", stored[:end])


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "!",
        "*",
        "x",
        "{}",
        "{PLAIN}",
        "{PLAIN.HEX}zz",
        "{CLEARTEXT-ISH}tan staaf",
        "{MD5}tan staaf",
        "{SHA}",
        "{SSHA}2wW3+7EdexTj7T7ig0OF4guzRHE=",  # no salt
        "{SHA}3ZJGzcS7ivQiazmp4RaEq6VvnO+//o23",  # a salt
        "{SHA}2wW3+7EdexTj7T7ig0OF4guzRHE=\n",
        "{CRYPT}tan staaf",
        "{CRYPT}$1$abc$def",
        "{CRYPT}$y$j9T$abc$def",
        "{CRYPT}{PLAIN}tan staaf",
        "{PLAIN.ROT13}tan staaf",
        "{BLF-CRYPT}$6$s337zKwn/IFK0ktF$2kKZ",
        "{SHA256-CRYPT}$6$s337zKwn/IFK0ktF$2kKZEmxdBw3Ae3toKuRE.4dQgNGVr9Nib4VsatIIbLi7"
        "..x8EcuTKmjf1QNZ0abRjmPFXE9uSOaBMW2QcNeDC1",
        "{SCRAM-SHA-256}4096,,,",
        "{SCRAM-SHA-256}1,qNjFJoBo5UIi3RoOoso8PA==,u94hKCbeFw5VtFr9rPhdAistI7L8U0N7pejWkI1rCzw=,"
        "dLrC8fQ/nyAiqFkpQLWTJhouDYItekP6squampJ2HFA=",
        "{PBKDF2}$1$$5000$17fe24607573b301f6c22b985843f0c1997c7265",
        "tan staaf",
        "{PLAIN} tan staaf",
        "{\udcff}tan staaf",
        "{ARGON2ID}$argon2i$v=19$m=32768,t=4,p=1$t9jgJnaWs2fJ+oQ78d1pIg"
        "$Fvnt0+1iQSzSHYVde8yQ2dgh0RjS509pobNm3aE9W3s",
    ],
)
def test_garbage_matches_nothing(stored: str) -> None:
    assert not schemes.matches("tan staaf", stored)


@contextmanager
def nothing_computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import bcrypt
    from cryptography.hazmat.primitives.kdf import argon2
    from passlib.hash import sha256_crypt, sha512_crypt

    def refuse(*_: Any, **__: Any) -> bool:
        raise AssertionError("computed")

    with monkeypatch.context() as patch:
        patch.setattr(bcrypt, "checkpw", refuse)
        patch.setattr(hashlib, "pbkdf2_hmac", refuse)
        patch.setattr("restante.auth.scram.make_keys", refuse)
        for kind in (argon2.Argon2id, argon2.Argon2i):
            patch.setattr(kind, "verify_phc_encoded", refuse)
        for scheme in (sha256_crypt, sha512_crypt):
            patch.setattr(scheme, "verify", refuse)
        yield


@pytest.mark.parametrize(
    "stored",
    [
        "{BLF-CRYPT}$2y$31$q73ziyeV9D8Pp4lv.5Zq5.KZNo3E02IH12X/qtPC4vpxB2rpWDn8.",
        "{BLF-CRYPT}$2y$15$q73ziyeV9D8Pp4lv.5Zq5.KZNo3E02IH12X/qtPC4vpxB2rpWDn8.",
        "{SHA256-CRYPT}$5$rounds=999999999$bEx3nQmNdyazo08H$cXztj5fq0rkFLtK39rmJjYiBjJCJpMN",
        "{SHA512-CRYPT}$6$rounds=2147483648$bEx3nQmNdyazo08H$" + "a" * 86,
        "{CRYPT}$6$rounds=1000001$bEx3nQmNdyazo08H$" + "a" * 86,
        "{PBKDF2}$1$o7F4wu9moN83TDUl$2147483648$17fe24607573b301f6c22b985843f0c1997c7265",
        "{PBKDF2}$1$o7F4wu9moN83TDUl$999999999$17fe24607573b301f6c22b985843f0c1997c7265",
        "{SCRAM-SHA-256}999999999,qNjFJoBo5UIi3RoOoso8PA==,"
        "u94hKCbeFw5VtFr9rPhdAistI7L8U0N7pejWkI1rCzw=,"
        "dLrC8fQ/nyAiqFkpQLWTJhouDYItekP6squampJ2HFA=",
        "{SCRAM-SHA-256}2000001,qNjFJoBo5UIi3RoOoso8PA==,"
        "u94hKCbeFw5VtFr9rPhdAistI7L8U0N7pejWkI1rCzw=,"
        "dLrC8fQ/nyAiqFkpQLWTJhouDYItekP6squampJ2HFA=",
        "{ARGON2ID}$argon2id$v=19$m=262144,t=16,p=1$34fOKsIGQLLUpQX+FdTjtQ$" + "C" * 43,
        "{ARGON2ID}$argon2id$v=19$m=2147483648,t=3,p=1$34fOKsIGQLLUpQX+FdTjtQ$" + "C" * 43,
        "{ARGON2I}$argon2i$v=19$m=65536,t=2147483648,p=1$34fOKsIGQLLUpQX+FdTjtQ$" + "C" * 43,
    ],
    ids=lambda stored: stored[:48],
)
def test_hash_with_an_absurd_cost_is_not_computed(
    stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS.md I 196: it fails closed, and delays no other user."""
    with nothing_computed(monkeypatch):
        assert not schemes.matches("tan staaf", stored)
        assert not schemes.is_sane(stored)


def test_costly_hashes_are_recognised_before_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    sane = (
        each
        for each in STORED
        if each.startswith(("{ARGON", "{BLF", "{SHA512-C", "{PBK", "{SCRAM"))
    )
    for stored in sane:
        with nothing_computed(monkeypatch), pytest.raises(AssertionError):
            schemes.matches("tan staaf", stored)


def test_bcrypt_reads_72_octets_as_everywhere() -> None:
    stored = "$2y$05$eoZEBqRu/JxtqcmI7lAKpeL4O0PFD6ouCiCnmhnFlZO16vJs0lUYu"
    assert not schemes.matches("x" * 1024, stored)


def test_the_default_scheme_is_for_hashes_that_name_none() -> None:
    assert schemes.matches("tan staaf", "tan staaf", "PLAIN")
    assert not schemes.matches("tan staaf", "{SHA}tan staaf", "PLAIN")


def test_missing_hash_library_is_a_temporary_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name in ("bcrypt", "passlib.hash"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for stored in STORED[2], STORED[3]:
        with pytest.raises(BackendUnavailable) as raised:
            schemes.matches("tan staaf", stored)
        assert "restante[passwords]" in raised.value.reason
