"""Password hashes: what they accept, and what they refuse to compute."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from cryptography.hazmat.primitives.kdf import argon2

from restante.auth import passwords

PHC = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$" + "A" * 43
pytestmark = pytest.mark.usefixtures("full_cost")


@pytest.mark.parametrize("password", ["tan staaf", " ", "pässwörd", "密码", "x" * 1024, "\udcff"])
def test_a_password_matches_its_own_hash_only(password: str) -> None:
    phc = passwords.make_hash(password)
    assert passwords.matches(password, phc)
    assert not passwords.matches(password + "x", phc)


def test_a_hash_holds_a_fresh_salt_and_sound_parameters() -> None:
    """OWASP's first line for argon2id: 19 MiB, two passes, one lane."""
    one, two = passwords.make_hash("same"), passwords.make_hash("same")
    assert one != two
    assert one.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


@pytest.mark.parametrize(
    "phc",
    [
        "",
        "tan staaf",
        "{PLAIN}tan staaf",
        "$2b$12$abcdefghijklmnopqrstuv",
        PHC.replace("argon2id", "argon2i"),
        PHC.replace("v=19", "v=16"),
        PHC.replace("m=19456", "m=0"),
        PHC.replace("m=19456", "m=2147483648"),
        PHC.replace("m=19456", "m=9999999"),
        PHC.replace("t=2", "t=999"),
        PHC.replace("p=1", "p=255"),
        PHC.replace("$c29t", "$*"),
        PHC.replace("t=2", "t=-2"),
        PHC + "$more",
        PHC + "\n",
        PHC.rsplit("$", 1)[0] + "$",
    ],
)
def test_malformed_hash_matches_nothing(phc: str) -> None:
    assert not passwords.matches("tan staaf", phc)


@pytest.mark.parametrize(
    "parameters",
    [
        *("m=262145,t=2,p=1", "m=19456,t=17,p=1", "m=19456,t=2,p=17"),
        *("m=262144,t=5,p=1", "m=262144,t=16,p=4", "m=65537,t=16,p=1"),  # the product counts
    ],
)
def test_hash_that_costs_too_much_is_not_computed(parameters: str, hashed: Counter[str]) -> None:
    """A cost of 2^31 in a foreign database fails closed, and delays no other user."""
    assert not passwords.matches("x", PHC.replace("m=19456,t=2,p=1", parameters))
    assert not hashed


@pytest.mark.parametrize("parameters", ["m=262144,t=4,p=16", "m=65536,t=16,p=1", "m=8,t=16,p=1"])
def test_a_hash_of_the_highest_cost_is_computed(
    parameters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(argon2.Argon2id, "verify_phc_encoded", lambda *_: None, raising=False)
    assert passwords.matches("x", PHC.replace("m=19456,t=2,p=1", parameters))


def test_generated_passwords_differ_and_can_be_read_aloud() -> None:
    made = {passwords.generate() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch("[a-hjkmnp-z2-9]{20}", each) for each in made)


@pytest.mark.parametrize("length", [8, 16, 19, 64])
def test_generated_password_never_looks_like_an_app_password(length: int) -> None:
    """Only app passwords are selected by their first characters."""
    made = [passwords.generate(length) for _ in range(300)]
    assert {passwords.selector(each) for each in made} == {""}
    assert {len(each) for each in made} == {length}


@pytest.mark.parametrize("length", [16, 19, 64])
def test_check_digit_distinguishes_app_passwords(length: int) -> None:
    made = passwords.generate_app_password(length)
    assert (len(made), passwords.selector(made)) == (length, made[:4])
    others = {passwords.selector(made[:-1] + each) for each in "abcdefghjkmnpqrstuvwxyz23456789"}
    assert others == {"", made[:4]}
    swapped = made[:5] + made[6] + made[5] + made[7:]
    assert passwords.selector(swapped) == (made[:4] if made[5] == made[6] else "")


def test_app_passwords_of_earlier_versions_are_known() -> None:
    assert passwords.selector("2qab-zeg8-k25j-stc2-sc3a-abcd-efgh") == "2qab"
    assert passwords.selector("2qab-zeg8-k25j-stc2-sc3a") == ""


def test_decoy_hash_costs_the_same_as_a_new_hash(hashed: Counter[str]) -> None:
    passwords.matches("x", passwords.decoy_hash())
    assert list(hashed) == [PHC.split("$")[3]]
