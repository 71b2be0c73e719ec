"""Our client and ``restante fetch`` with Debian's Dovecot."""

from __future__ import annotations

import asyncio
import mailbox
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import restante
from restante.errors import LoginFailed

from .dovecot import USER, Dovecot, dovecot
from .programs import RESTANTE, Account, call, differences
from .test_clients import MESSAGES

pytestmark = pytest.mark.interop

either_tls = pytest.mark.parametrize("scheme", ["pop3s", "pop3"])


@pytest.fixture
def server() -> Iterator[Dovecot]:
    """One message is stored with LF, as an MTA does, the others with CRLF."""
    with dovecot([MESSAGES[1].replace(b"\r\n", b"\n"), *MESSAGES]) as server:
        yield server


SENT = [MESSAGES[1], *MESSAGES]


def url(account: Account) -> str:
    scheme = "pop3s" if account.implicit else "pop3"
    return f"{scheme}://{USER}@localhost:{account.port}"


async def fetch(account: Account) -> list[bytes]:
    async with restante.connect(
        url(account), password=account.password, ca_file=account.ca
    ) as maildrop:
        messages = await maildrop.list()
        assert await maildrop.stat() == (len(messages), sum(each.size for each in messages))
        fetched = []
        async for message, body in maildrop.retrieve_all(messages):
            fetched.append(b"".join([piece async for piece in body]))
            assert len(fetched[-1]) == message.size
        if not account.keep:
            await maildrop.delete(*messages)
    return fetched


def fetch_blocking(account: Account) -> list[bytes]:
    with restante.connect_blocking(
        url(account), password=account.password, ca_file=account.ca
    ) as maildrop:
        fetched = []
        for message in maildrop.list():
            fetched.append(b"".join(maildrop.retrieve(message)))
            if not account.keep:
                maildrop.delete(message)
    return fetched


@either_tls
@pytest.mark.parametrize("keep", [True, False], ids=["keep", "delete"])
def test_both_clients_fetch_every_octet(server: Dovecot, scheme: str, keep: bool) -> None:
    before = server.stored()
    fetched = asyncio.run(fetch(server.account(scheme, keep=True)))
    again = fetch_blocking(server.account(scheme, keep=keep))
    assert differences(fetched, SENT) == []
    assert again == fetched
    assert server.stored() == (before if keep else [])


@either_tls
def test_asyncio_deletes(server: Dovecot, scheme: str) -> None:
    asyncio.run(fetch(server.account(scheme)))
    assert server.stored() == []


@either_tls
def test_top_gives_the_beginning(server: Dovecot, scheme: str) -> None:
    account = server.account(scheme)
    with restante.connect_blocking(
        url(account), password=account.password, ca_file=account.ca
    ) as maildrop:
        [*_, large] = maildrop.list()
        head, blank, body = MESSAGES[-1].partition(b"\r\n\r\n")
        assert maildrop.top(large).read() == head + blank
        assert maildrop.top(large, 2).read() == head + blank + body[:36]


@either_tls
def test_wrong_password_is_an_auth_failure(server: Dovecot, scheme: str) -> None:
    with (
        pytest.raises(LoginFailed) as refused,
        restante.connect_blocking(url(server.account(scheme)), password="wrong", ca_file=server.ca),
    ):
        pass
    assert refused.value.code == "AUTH"


@either_tls
def test_an_exception_removes_nothing(server: Dovecot, scheme: str) -> None:
    account, before = server.account(scheme), server.stored()
    connected = restante.connect_blocking(
        url(account), password=account.password, ca_file=account.ca
    )

    def fail() -> None:
        with connected as maildrop:
            maildrop.delete(*maildrop.list())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert server.stored() == before


# -- restante fetch


def read_folder(path: Path) -> list[bytes]:
    return [each.read_bytes() for each in path.glob("*.eml")]


def read_maildir(path: Path) -> list[bytes]:
    return [each.read_bytes() for each in (path / "new").iterdir()]


def read_mbox(path: Path) -> list[bytes]:
    """Read an mbox with mboxrd quoting, which Python's reader does not undo."""
    found = mailbox.mbox(path, create=False)
    try:
        messages = [found.get_bytes(key) for key in found.keys()]  # noqa: SIM118
    finally:
        found.close()
    unquoted = [re.sub(rb"^>(>*From )", rb"\1", each, flags=re.MULTILINE) for each in messages]
    return [message.replace(b"\n", b"\r\n") for message in unquoted]


@either_tls
@pytest.mark.parametrize(
    ("place", "read"),
    [("folder", read_folder), ("maildir:mail", read_maildir), ("mbox:mbox", read_mbox)],
    ids=["folder", "maildir", "mbox"],
)
def test_restante_fetch(
    server: Dovecot,
    scheme: str,
    place: str,
    read: Callable[[Path], list[bytes]],
    tmp_path: Path,
) -> None:
    account, before = server.account(scheme), server.stored()
    kind, colon, name = place.rpartition(":")

    def fetch(*options: str) -> int:
        to = ("--to", f"{kind}{colon}{tmp_path / name}", "--ca-file", str(account.ca))
        secret = {"RESTANTE_PASSWORD": account.password}
        command = (*RESTANTE, "fetch", url(account), *to, *options)
        return call(*command, environment=secret).returncode

    assert fetch("--keep") == 0
    assert differences(read(tmp_path / name), SENT) == []
    assert server.stored() == before
    assert fetch() == 0
    assert server.stored() == []
