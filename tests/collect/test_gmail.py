"""Importing mail into Gmail by its API, with a stand-in that checks each request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from restante.collect.destinations.gmail import Gmail
from restante.collect.destinations.opening import open_destination
from restante.errors import (
    ConsentNeeded,
    MessageRefused,
    RestanteError,
    TemporaryFailure,
    UnsafeArgument,
)

LETTER = b"Date: Tue, 3 Mar 2020 10:11:12 +0100\r\nSubject: x\r\n\r\nhe\nllo\r\n"


class StandIn(ThreadingHTTPServer):
    """Stands for Gmail; imports are first answered with ``answers``, in order."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.labels = {"INBOX": "INBOX"}
        self.good = {"token"}
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self.judge: Callable[[bytes], int] = lambda octets: 200
        """Returns the status for a message when ``answers`` is empty."""
        self.imported: list[tuple[dict[str, list[str]], dict[str, Any], bytes]] = []


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        labels = [{"id": id_, "name": name} for name, id_ in self.server.labels.items()]
        self._say(200, {"labels": labels})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = urlsplit(self.path)
        if self.headers["Authorization"].removeprefix("Bearer ") not in self.server.good:
            self._say(401, {"error": {"code": 401, "message": "Invalid Credentials"}})
        elif parts.path == "/gmail/v1/users/me/labels":
            name = json.loads(body)["name"]
            self.server.labels[name] = f"Label_{len(self.server.labels)}"
            self._say(200, {"id": self.server.labels[name], "name": name})
        elif parts.path == "/upload/gmail/v1/users/me/messages/import":
            if self.server.answers:
                self._say(*self.server.answers.pop(0))
                return
            kind, _, border = self.headers["Content-Type"].partition("; boundary=")
            assert kind == "multipart/related"
            empty, metadata, message, end = body.split(f"--{border}".encode())
            assert (empty, end) == (b"", b"--\r\n")
            head, _, text = metadata.partition(b"\r\n\r\n")
            assert head == b"\r\nContent-Type: application/json"
            type_, _, octets = message.partition(b"\r\n\r\n")
            assert type_ == b"\r\nContent-Type: message/rfc822"
            if (status := self.server.judge(octets)) != 200:
                self._say(status, {})
                return
            row = (parse_qs(parts.query), json.loads(text), octets.removesuffix(b"\r\n"))
            self.server.imported.append(row)
            self._say(200, {"id": "1"})
        else:
            self._say(404, {})

    def _say(self, status: int, answer: dict[str, Any]) -> None:
        octets = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(octets)))
        self.end_headers()
        self.wfile.write(octets)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[StandIn]:
    running = StandIn()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.shutdown()
    thread.join(10)
    running.server_close()


def give(destination: Gmail, octets: bytes = LETTER) -> None:
    assert destination.begin("any")
    destination.write(octets)
    try:
        destination.commit()
    finally:
        destination.abort()


def test_a_message_is_imported_octet_for_octet_with_label_and_date(server: StandIn) -> None:
    """It is not sent or marked as spam, and keeps its date; the label is created once."""
    with closing(Gmail("Old mail", lambda _: "token", server.url)) as destination:
        give(destination)
        give(destination, b"\r\n")
    (query, metadata, octets), (_, again, _) = server.imported
    assert query == {
        "uploadType": ["multipart"],
        "internalDateSource": ["dateHeader"],
        "neverMarkSpam": ["true"],
    }
    assert metadata == again == {"labelIds": ["UNREAD", "Label_1"]}
    assert octets == LETTER
    with closing(Gmail("Old mail", lambda _: "token", server.url)) as destination:
        give(destination)
    assert server.imported[2][1] == metadata


def test_without_a_label_it_goes_to_the_inbox(server: StandIn) -> None:
    with closing(Gmail("", lambda _: "token", server.url)) as destination:
        give(destination)
    assert server.imported[0][1] == {"labelIds": ["UNREAD", "INBOX"]}


def test_a_token_that_was_refused_is_renewed_once(server: StandIn) -> None:
    asked: list[bool] = []

    def token(renew: bool) -> str:
        asked.append(renew)
        return "token" if renew else "stale"

    with closing(Gmail("", token, server.url)) as destination:
        give(destination)
        give(destination)
    assert asked == [False, True]
    server.good = set()
    with (
        closing(
            Gmail("", token, server.url, sign_in="restante account auth isp --to")
        ) as destination,
        pytest.raises(ConsentNeeded, match="run: restante account auth isp --to"),
    ):
        give(destination)


def reason(text: str) -> dict[str, Any]:
    return {"error": {"message": text, "errors": [{"reason": text}]}}


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (403, reason("userRateLimitExceeded"), TemporaryFailure),
        (429, reason("rateLimitExceeded"), TemporaryFailure),
        (503, {}, MessageRefused),
        (500, {"error": "no object"}, MessageRefused),
        (200, {}, MessageRefused),
        (400, reason("failedPrecondition"), TemporaryFailure),
        (307, {}, TemporaryFailure),
        (403, reason("insufficientPermissions"), ConsentNeeded),
        (400, reason("invalidArgument"), MessageRefused),
        (413, reason("uploadTooLarge"), MessageRefused),
    ],
)
def test_failed_store_raises_an_error(
    status: int, answer: dict[str, Any], error: type[RestanteError], server: StandIn
) -> None:
    server.answers = [(status, answer)]
    with closing(Gmail("", lambda _: "token", server.url)) as destination:
        with pytest.raises(error):
            give(destination)
        give(destination)
    assert len(server.imported) == 1


@pytest.mark.parametrize("answer", [(200, {}), (503, {})])
def test_server_that_stores_nothing_ends_the_session(
    answer: tuple[int, dict[str, Any]], server: StandIn
) -> None:
    """Such as a proxy that answers 200 to everything; a few failures may be due to a message."""
    server.answers = [answer] * 20
    with closing(Gmail("", lambda _: "token", server.url)) as destination:
        for _ in range(9):
            with pytest.raises(MessageRefused):
                give(destination)
        with pytest.raises(TemporaryFailure):
            give(destination)


def test_unreachable_gmail_is_a_temporary_failure() -> None:
    with (
        closing(Gmail("", lambda _: "token", "http://127.0.0.1:1")) as destination,
        pytest.raises(TemporaryFailure, match="Gmail"),
    ):
        give(destination)


def test_gmail_destination_requires_oauth() -> None:
    with pytest.raises(UnsafeArgument, match="to_oauth"):
        open_destination("gmail:")
