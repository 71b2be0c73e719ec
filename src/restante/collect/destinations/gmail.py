"""Store mail in a Gmail mailbox, with a label and the date of the message, through the Gmail API.

The API method is ``users.messages.import``.  Gmail treats the message as delivered mail but never
as spam, and sends no mail.  A message counts as stored only if the response contains its id,
because a status of 200 alone may come from another server, such as a proxy.  Gmail cannot search
for a message by its identity.  After a crash between the response and the record in the ledger, one
message may be stored twice.

Security: the token is sent to Google over HTTPS, and no redirect is followed.
"""

from __future__ import annotations

import json
from secrets import token_hex
from typing import IO, Any

from ...errors import ConfigurationError, ConsentNeeded, MessageRefused, TemporaryFailure
from ...https import JsonClient, JsonObject, is_permanent
from ...tls import client_context
from . import TokenSource
from .spooled import Spooled

_BASE = "https://gmail.googleapis.com"
_TIMEOUT = 120.0  # seconds for a response; chosen without measurement
_MAX_RESPONSE = 2**22  # octets
_MAILBOX_REASONS = ("failedPrecondition",)  # for example, Gmail is disabled for this user
_TEMPORARY_REASONS = (
    "rateLimitExceeded",
    "userRateLimitExceeded",
    "quotaExceeded",
    "dailyLimitExceeded",
)


class Gmail(Spooled):
    """A Gmail mailbox.

    A missing ``label`` is created.  If ``label`` is empty, mail goes to the inbox.
    """

    def __init__(
        self, label: str, token: TokenSource, base: str = _BASE, *, sign_in: str = ""
    ) -> None:
        """``sign_in`` is the command that error messages suggest if Gmail refuses the token."""
        super().__init__()
        self._hint = f"; run: {sign_in}" if sign_in else ""
        self._label = label
        self._request_token = token
        self._base = base
        self._token = ""
        self._labels: list[str] = []  # IDs of the labels for each message; empty until known
        self._client = JsonClient(client_context(), timeout=_TIMEOUT, max_octets=_MAX_RESPONSE)

    def _deliver(self, message: IO[bytes]) -> None:
        """Import the message.

        Raises:
            MessageRefused: Gmail will never accept the message.
            Doubtful: the cause may be this message or the mailbox.
            TemporaryFailure: the message cannot be stored now, or there were too many doubts.
            ConsentNeeded: the token does not allow this.
        """
        if not self._labels:
            self._labels = ["UNREAD", self._label_id() if self._label else "INBOX"]
        boundary = token_hex(16)
        body = (
            f"--{boundary}\r\nContent-Type: application/json\r\n\r\n"
            f"{json.dumps({'labelIds': self._labels})}\r\n"
            f"--{boundary}\r\nContent-Type: message/rfc822\r\n\r\n"
        ).encode()
        body += message.read() + f"\r\n--{boundary}--\r\n".encode()
        response = self._request(
            "/upload/gmail/v1/users/me/messages/import?uploadType=multipart"
            "&internalDateSource=dateHeader&neverMarkSpam=true",
            body,
            f"multipart/related; boundary={boundary}",
        )
        if not response.get("id"):
            raise self._doubtful_error(
                "Gmail answered 200, but did not confirm that it stored the message"
            )

    def _label_id(self) -> str:
        path = "/gmail/v1/users/me/labels"
        for each in _objects(self._request(path).get("labels")):
            if each.get("name") == self._label and each.get("id"):
                return str(each["id"])
        new_label = {"name": self._label, "labelListVisibility": "labelShow"}
        label_id = self._request(path, json.dumps(new_label).encode(), "application/json").get("id")
        if not label_id:
            raise TemporaryFailure(f"Gmail did not create the label {self._label}")
        return str(label_id)

    def _request(self, path: str, body: bytes | None = None, kind: str = "") -> JsonObject:
        """Send GET, or POST if there is a body; if the token is refused, retry with a new token."""
        status, response = self._send(path, body, kind, renew=False)
        if status == 401:
            status, response = self._send(path, body, kind, renew=True)
        if status == 200:
            return response
        (error,) = _objects([response.get("error")]) or [{}]
        text = f"Gmail answered {status}: {str(error.get('message', ''))[:200]}"
        reasons = [each.get("reason") for each in _objects(error.get("errors"))]
        if "import" in path and status in (400, 413) and not set(reasons) & set(_MAILBOX_REASONS):
            raise MessageRefused(text)
        if "import" in path and status >= 500:
            raise self._doubtful_error(text)
        if any(reason in _TEMPORARY_REASONS for reason in reasons):
            raise TemporaryFailure(text)
        if status in (401, 403):
            raise ConsentNeeded(f"{text}{self._hint}")
        if status == 404:
            raise ConfigurationError(text)
        raise TemporaryFailure(text) from (
            ConfigurationError(text) if is_permanent(status) else None
        )

    def _send(
        self, path: str, body: bytes | None, kind: str, *, renew: bool
    ) -> tuple[int, JsonObject]:
        if renew or not self._token:
            self._token = self._request_token(renew)
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = kind
        try:
            status, response = self._client.request(self._base + path, body, headers)
        except TemporaryFailure as error:
            raise TemporaryFailure(f"Gmail: {error}") from error
        return status, response or {}


def _objects(value: Any) -> list[JsonObject]:
    """Return the JSON objects in a list; the result is empty if ``value`` is not a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
