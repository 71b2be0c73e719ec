"""Store mail in a Gmail mailbox, with a label and the date of the message, through the Gmail API.

The method is ``users.messages.import``.  Gmail treats the message as delivered mail but never as
spam, and sends no mail.  A message counts as stored only if the response contains its id; a status
of 200 alone may come from another server, such as a proxy.  Gmail cannot search for a message by
its identity.  After a crash between the response and the ledger, one message may be stored twice.

Security: the token is sent to Google over HTTPS, and no redirect is followed.
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
_TIMEOUT = 120.0  # seconds for a response; an estimate, not measured
_MAX_ANSWER = 2**22  # octets
_OF_THE_MAILBOX = ("failedPrecondition",)  # for example, Gmail is disabled for this user
_LATER = ("rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded", "dailyLimitExceeded")


class Gmail(Handed):
    """A Gmail mailbox.  A missing ``label`` is created; if it is empty, mail goes to the inbox."""

    def __init__(
        self, label: str, token: TokenSource, base: str = _BASE, *, sign_in: str = ""
    ) -> None:
        """``sign_in`` is the command that an error suggests if Gmail refuses the token."""
        super().__init__()
        self._hint = f"; run: {sign_in}" if sign_in else ""
        self._label = label
        self._source = token
        self._base = base
        self._token = ""
        self._labels: list[str] = []  # by id
        self._web = JsonClient(client_context(), patience=_TIMEOUT, largest=_MAX_ANSWER)

    def _hand_over(self, message: IO[bytes]) -> None:
        """
        Raises:
            MessageRefused: the message will never be accepted; or the cause may be this message,
                and there were only a few such errors in a row.
            TemporaryFailure: the message cannot be stored now.
            ConsentNeeded: the token has no permission for this.
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
            raise self._doubt("Gmail answered 200, but did not confirm that it stored the message")

    def _label_id(self) -> str:
        path = "/gmail/v1/users/me/labels"
        for each in _objects(self._ask(path).get("labels")):
            if each.get("name") == self._label and each.get("id"):
                return str(each["id"])
        wanted = {"name": self._label, "labelListVisibility": "labelShow"}
        label_id = self._ask(path, json.dumps(wanted).encode(), "application/json").get("id")
        if not label_id:
            raise TemporaryFailure(f"Gmail did not create the label {self._label}")
        return str(label_id)

    def _ask(self, path: str, body: bytes | None = None, kind: str = "") -> JsonObject:
        """Send GET, or POST with a body; if the token is refused, try again with a new one."""
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
            raise ConsentNeeded(f"{text}{self._hint}")
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
    """Return the JSON objects of a list; empty if it is not a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
