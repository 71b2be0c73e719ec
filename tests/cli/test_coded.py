"""A shared Maildir where Dovecot stores compressed mail, which is never sent to clients."""

from __future__ import annotations

import bz2
import gzip
import poplib
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from ..store.helpers import put
from ..store.test_coded import BEGINNINGS, TEXT
from .conftest import Restante
from .test_serve import serving

SIZES = {"small": TEXT, "large": b"Subject: x\r\n\r\n" + b"a line\r\n" * 100_000}


def fields(text: bytes) -> str:
    return f",S={len(text)},W={len(text)}"


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tells", [lambda _: "", fields, lambda text: fields(text) + ",D=0"])
@pytest.mark.parametrize("kind", ["gzip", "bzip2", "encryption"])
def test_coded_octets_are_never_sent_as_a_message(
    kind: str,
    tells: Callable[[bytes], str],
    size: str,
    home: Path,
    ann: str,
    restante: Restante,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RESTANTE__INTAKE__SMTP__LISTEN", "127.0.0.1:0")
    text = SIZES[size]
    packed = {
        "gzip": gzip.compress(text),
        "bzip2": bz2.compress(text),
        "encryption": BEGINNINGS["encryption"] + text,
    }
    place = home / "state/restante/mail/ann"
    put(place, f"new/1.plain{fields(text)}", text)
    put(place, f"cur/2.coded{tells(text)}:2,S", packed[kind])
    with serving("--listen", "pop3s://127.0.0.1:0", "--json") as server:
        host, _, port = server.said["pop3s"].rpartition(":")
        context = ssl.create_default_context(cafile=server.said["ca"])
        client = poplib.POP3_SSL(host, int(port), context=context, timeout=20)
        client.user("ann")
        client.pass_("tan staaf")
        assert client.stat()[0] == 2  # the listing must have no holes
        for command in ("RETR 2", "TOP 2 0", "RETR 2"):
            with pytest.raises(poplib.error_proto, match=r"-ERR \[SYS/PERM\] message was comp"):
                client._longcmd(command)  # type: ignore[attr-defined]
        assert client.retr(1)[2] == len(text)
        client.quit()
    done = restante("maildrop", "verify", "ann")
    assert done.code == 65
    assert f"coded: 2.coded cannot be read by clients: {kind}" in done.out
