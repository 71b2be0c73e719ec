"""A Gmail mailbox, by ``users.messages.import`` of its API: with a label, under its own date.

It goes the way of delivered mail but is never called spam, and nothing is sent.  A message counts
as stored only if the answer names it; that 200 alone may be another server's, such as a proxy's.
Gmail gives a message no name of ours: after a crash between its answer and the ledger one may be
there twice.

Security: the token goes to Google by HTTPS, and no redirect is followed.
"""

from __future__ import annotations

import json
from secrets import token_hex
from typing import IO, Any

from ...errors import ConfigurationError, ConsentNeeded, MessageRefused, TemporaryFailure
from ...https import JsonClient, JsonObject, is_lasting
from ...tls import client_context
from . import TokenSource
from .spooled import Handed

_BASE = "https://gmail.googleapis.com"
_PATIENCE = 120.0  # seconds for an answer
_MAX_ANSWER = 2**22  # octets
_OF_THE_MAILBOX = ("failedPrecondition",)  # Gmail is switched off for this user, say
_LATER = ("rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded", "dailyLimitExceeded")


class Gmail(Handed):
    """A Gmail mailbox; a missing ``label`` is created, without one mail goes to the inbox."""

    def __init__(self, label: str, token: TokenSource, base: str = _BASE) -> None:
        super().__init__()
        self._label = label
        self._source = token
        self._base = base
        self._token = ""
        self._labels: list[str] = []  # by id
        self._web = JsonClient(client_context(), patience=_PATIENCE, largest=_MAX_ANSWER)

    def _hand_over(self, message: IO[bytes]) -> None:
        """
        Raises:
            MessageRefused: it will never be taken; or an error that may be this message's fault,
                as long as there are few in a row.
            TemporaryFailure: not now.
            ConsentNeeded: the token may not do this.
        """
        if not self._labels:
            self._labels = ["UNREAD", self._label_id() if self._label else "INBOX"]
        border = token_hex(16)
        body = (
            f"--{border}\r\nContent-Type: application/json\r\n\r\n"
            f"{json.dumps({'labelIds': self._labels})}\r\n"
            f"--{border}\r\nContent-Type: message/rfc822\r\n\r\n"
        ).encode()
        body += message.read() + f"\r\n--{border}--\r\n".encode()
        answer = self._ask(
            "/upload/gmail/v1/users/me/messages/import?uploadType=multipart"
            "&internalDateSource=dateHeader&neverMarkSpam=true",
            body,
            f"multipart/related; boundary={border}",
        )
        if not answer.get("id"):
            raise self._doubt("Gmail answers 200 and names no message that it stored")

    def _label_id(self) -> str:
        path = "/gmail/v1/users/me/labels"
        for each in _objects(self._ask(path).get("labels")):
            if each.get("name") == self._label and each.get("id"):
                return str(each["id"])
        wanted = {"name": self._label, "labelListVisibility": "labelShow"}
        made = self._ask(path, json.dumps(wanted).encode(), "application/json").get("id")
        if not made:
            raise TemporaryFailure(f"Gmail made no label {self._label}")
        return str(made)

    def _ask(self, path: str, body: bytes | None = None, kind: str = "") -> JsonObject:
        """GET, or POST with a body.  Once more with a new token if the first was refused."""
        status, answer = self._try(path, body, kind, renew=False)
        if status == 401:
            status, answer = self._try(path, body, kind, renew=True)
        if status == 200:
            return answer
        (error,) = _objects([answer.get("error")]) or [{}]
        text = f"Gmail answers {status}: {str(error.get('message', ''))[:200]}"
        reasons = [each.get("reason") for each in _objects(error.get("errors"))]
        if "import" in path and status in (400, 413) and not set(reasons) & set(_OF_THE_MAILBOX):
            raise MessageRefused(text)
        if "import" in path and status >= 500:
            raise self._doubt(text)
        if any(reason in _LATER for reason in reasons):
            raise TemporaryFailure(text)
        if status in (401, 403):
            raise ConsentNeeded(f"{text}; next: restante account auth NAME --to")
        if status == 404:
            raise ConfigurationError(text)
        raise TemporaryFailure(text) from (ConfigurationError(text) if is_lasting(status) else None)

    def _try(
        self, path: str, body: bytes | None, kind: str, *, renew: bool
    ) -> tuple[int, JsonObject]:
        if renew or not self._token:
            self._token = self._source(renew)
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = kind
        try:
            status, answer = self._web.ask(self._base + path, body, headers)
        except TemporaryFailure as error:
            raise TemporaryFailure(f"Gmail: {error}") from error
        return status, answer or {}


def _objects(value: Any) -> list[JsonObject]:
    """The JSON objects of a list, whatever came in its place."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
