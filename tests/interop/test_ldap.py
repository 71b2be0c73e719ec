"""LDAP with a real directory."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from restante import threads
from restante.auth.chain import Chain
from restante.auth.ldap import Ldap, Search
from restante.errors import AuthenticationFailed, BackendUnavailable
from restante.passdb import Credentials, UserAccount

from .programs import missing
from .slapd import BASE, SERVICE, Slapd, slapd

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    if importlib.util.find_spec("ldap") is None:
        missing("python-ldap is not installed; .ci/run does it")
    with slapd(tmp_path_factory.mktemp("slapd")) as found:
        yield found


@pytest.fixture
def place(directory: Slapd) -> Search:
    return Search(
        f"ldaps://127.0.0.1:{directory.tls_port}",
        BASE,
        bind_dn=SERVICE,
        bind_password="search",
        ca_file=str(directory.certificate),
    )


def log_in(place: Search, identity: str, password: str) -> UserAccount:
    return asyncio.run(Ldap(place).verify(Credentials("PLAIN", identity, password)))


def refused(place: Search, identity: str, password: str) -> str:
    with pytest.raises(AuthenticationFailed) as raised:
        log_in(place, identity, password)
    return raised.value.reason


def test_a_right_password_opens_the_maildrop_of_that_name(place: Search) -> None:
    assert log_in(place, "mrose", "tan staaf") == UserAccount("mrose", "mrose")
    assert log_in(place, "MRose", "tan staaf").user == "mrose"
    assert log_in(place, "müller", "pässwörd").user == "müller"
    assert refused(place, "mrose", "wrong") == "bad-password"
    assert refused(place, "nobody", "tan staaf") == "unknown-user"
    assert refused(place, "open", "tan staaf") == "bad-password"
    assert asyncio.run(Ldap(place).account("mrose")) == UserAccount("mrose", "mrose")
    assert asyncio.run(Ldap(place).account("nobody")) is None


def test_no_user_can_log_in_as_another(place: Search) -> None:
    """RFC 4616 §2; another spelling of the same name is the same user."""
    oneself, other = (Credentials("PLAIN", "mrose", "tan staaf", x) for x in ("MROSE", "müller"))
    assert asyncio.run(Ldap(place).verify(oneself)).user == "mrose"
    with pytest.raises(AuthenticationFailed):
        asyncio.run(Ldap(place).verify(other))


def test_an_empty_password_is_no_anonymous_bind(place: Search) -> None:
    """RFC 4513 §5.1.2: the directory would accept it."""
    for password in "", "\0":
        assert refused(place, "mrose", password) == "impossible-password"


@pytest.mark.parametrize(
    "identity",
    [
        *(
            "*",
            "m*",
            "mros?",
            "mrose)(uid=*",
            "*)(uid=mrose",
            "mrose))(|(uid=*",
            "\\2a",
            "m\\72ose",
        ),
        *("(", ")", "\\", "&", "mrose\0", "mrose ", " mrose", "mr  ose", "uid=mrose", "", "."),
        *(
            f"uid=mrose,{BASE}",
            "mrose,dc=example",
            "star",
            "\udcff",
            "mrose\n",
            "mrose@example.org",
        ),
    ],
)
def test_user_name_cannot_change_the_filter(place: Search, identity: str) -> None:
    """CVE-2026-27860.  Nor do names that the directory considers equal open the same maildrop."""
    assert refused(place, identity, "tan staaf") in ("unknown-user", "bad-password")
    assert asyncio.run(Ldap(place).account(identity)) is None


def test_a_star_may_be_in_a_name(place: Search) -> None:
    assert log_in(place, "star*", "tan staaf").user == "star*"


def test_another_attribute_may_be_the_name(place: Search) -> None:
    mail = replace(place, filter="(&(objectClass=inetOrgPerson)(mail=%u))", name="MAIL")
    assert log_in(mail, "mrose@example.org", "tan staaf").user == "mrose@example.org"
    assert refused(mail, "mrose", "tan staaf") == "unknown-user"


def test_user_name_is_exactly_the_given_one(place: Search) -> None:
    """Otherwise it could be a user of another back end of the chain."""
    either = replace(place, filter="(|(uid=%u)(mail=%u))")
    assert log_in(either, "mrose", "tan staaf").user == "mrose"
    assert refused(either, "mrose@example.org", "tan staaf") == "unknown-user"


def test_ambiguous_name_cannot_log_in(place: Search) -> None:
    with pytest.raises(BackendUnavailable, match="cannot be checked"):
        log_in(place, "twin", "tan staaf")


def test_tls_is_started_unless_the_directory_is_here(directory: Slapd, place: Search) -> None:
    for host in "127.0.0.1", "localhost", "127.0.0.2":  # the last one counts as remote
        there = replace(place, url=f"ldap://{host}:{directory.port}")
        assert log_in(there, "mrose", "tan staaf").user == "mrose"
    with pytest.raises(BackendUnavailable):  # its certificate is not trusted
        log_in(replace(there, ca_file=""), "mrose", "tan staaf")


@pytest.mark.parametrize(
    "change",
    [
        {"ca_file": ""},
        {"bind_password": "wrong"},
        {"bind_dn": "cn=nobody,dc=example,dc=org"},
        {"bind_dn": "", "bind_password": ""},  # may not search
        {"filter": "(uid=%u"},
        {"base": "ou=nowhere,dc=example,dc=org"},
        {"base": "nonsense"},
        {"url": "ldaps://127.0.0.1:1"},
    ],
    ids=str,
)
def test_misconfiguration_makes_no_password_wrong(place: Search, change: dict[str, str]) -> None:
    """FAULTS.md I 195."""
    with pytest.raises(BackendUnavailable) as raised:
        log_in(replace(place, **change), "mrose", "tan staaf")
    assert raised.value.reason.startswith("ldap: ")
    assert "tan staaf" not in raised.value.reason


def test_directory_that_hangs_is_abandoned_at_the_deadline(
    place: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_IDLE_TIMEOUT", 0.0)  # an idle thread ends at once
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for scheme in "ldap", "ldaps":
            hangs = replace(place, url=f"{scheme}://127.0.0.1:{silent.getsockname()[1]}")
            chain = Chain({"ldap": Ldap(hangs, 1.0)}, deadline=0.2)
            with pytest.raises(BackendUnavailable) as raised:
                asyncio.run(chain.verify(Credentials("PLAIN", "mrose", "tan staaf")))
            assert raised.value.reason == "ldap: no answer in 0.2 s"
            # The query must end too: otherwise the 16th would block all others.
            for thread in threading.enumerate():
                if thread.name == "ldap":
                    thread.join(10)
                    assert not thread.is_alive()


def test_a_directory_that_stops_and_comes_back(place: Search, directory: Slapd) -> None:
    pid = int((directory.certificate.parent.parent / "pid").read_text())
    chain = Chain({"ldap": Ldap(place)}, deadline=0.5)
    credentials = Credentials("PLAIN", "mrose", "tan staaf")
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(BackendUnavailable):
            asyncio.run(chain.verify(credentials))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert asyncio.run(Chain({"ldap": Ldap(place)}).verify(credentials)).user == "mrose"
