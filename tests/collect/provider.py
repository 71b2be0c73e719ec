"""An OAuth 2 provider in a thread: it checks requests and rotates refresh tokens."""

from __future__ import annotations

import json
import threading
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from restante.collect.oauth.flow import Application, Provider

TOKEN = "vF9dft4qmT"  # opens the maildrop of tests.support.OneUser

Answer = tuple[int, dict[str, Any]]


class StandIn(ThreadingHTTPServer):
    """A provider; it first gives the ``answers``, in order, to any request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.provider = Provider(
            f"{self.url}/authorize", f"{self.url}/token", f"{self.url}/device", ("openid", "mail")
        )
        self.application = Application(self.provider, "app", "secret")
        self.metadata: dict[str, Any] = {
            "issuer": self.url,
            "authorization_endpoint": self.provider.authorize,
            "token_endpoint": self.provider.token,
            "device_authorization_endpoint": self.provider.device,
        }
        self.answers: list[Answer] = []
        self.forms: list[dict[str, str]] = []
        self.access = TOKEN
        self.nonce: str | None = None  # instead of the right one
        self.redirects = False
        self._asked: dict[str, str] = {}
        self._refresh = ""
        self._count = 0

    def agree(self, query: dict[str, str]) -> str:
        """Agree as a user with a browser would; returns the address of the redirect."""
        self._asked = query
        values = {"code": "the-code", "state": query["state"]}
        return f"{query['redirect_uri']}?{urlencode(values)}"

    def answer(self, path: str, form: dict[str, str]) -> Answer:
        self.forms.append(form)
        if self.answers:
            return self.answers.pop(0)
        if (form.get("client_id"), form.get("client_secret")) != ("app", "secret"):
            return 401, {"error": "invalid_client"}
        if path == "/device":
            return 200, {
                "device_code": "device",
                "user_code": "F7KQ-22LM",
                "verification_uri": f"{self.url}/enter",
                "expires_in": 600,
                "interval": 3,
            }
        match form["grant_type"]:
            case "authorization_code":
                digest = sha256(form["code_verifier"].encode()).digest()
                challenge = urlsafe_b64encode(digest).rstrip(b"=").decode()
                is_right = challenge == self._asked["code_challenge"]
                is_right = is_right and form["redirect_uri"] == self._asked["redirect_uri"]
            case "refresh_token":
                is_right = form["refresh_token"] == self._refresh
            case _:
                is_right = True
        if not is_right:
            return 400, {"error": "invalid_grant"}
        return 200, self._tokens(form["grant_type"])

    def _tokens(self, grant: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "access_token": self.access,
            "token_type": "Bearer",
            "expires_in": 3600,
        }
        if grant != "client_credentials":
            self._count += 1
            self._refresh = f"refresh-{self._count}"
            found["refresh_token"] = self._refresh
        if grant == "authorization_code":
            nonce = self._asked["nonce"] if self.nonce is None else self.nonce
            claims = {"aud": "app", "nonce": nonce, "email": "mrose"}
            body = urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
            found["id_token"] = f"e30.{body}.sig"
        return found


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        if self.path == "/.well-known/openid-configuration":
            self._say(200, self.server.metadata)
            return
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        self.send_response(302)
        self.send_header("Location", self.server.agree(query))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = {key: values[0] for key, values in parse_qs(text).items()}
        if self.server.redirects:
            self.send_response(307)
            self.send_header("Location", f"{self.server.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._say(*self.server.answer(self.path, form))

    def _say(self, status: int, answer: dict[str, Any]) -> None:
        octets = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(octets)))
        self.end_headers()
        self.wfile.write(octets)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def provider() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
