"""A real OpenID provider, the npm package oidc-provider, which .ci/run puts into build/openid.

Its only user is ann (ann@example.org), who consents to everything; ``collector`` is a client for
every flow, ``mail-server`` one that may introspect tokens.  Access tokens for the resource
``urn:restante:pop3`` are JWTs, others are opaque.
"""

from __future__ import annotations

import http.cookiejar
import re
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from ..programs import missing, need, running

_FOLDER = Path(__file__).parent
_INSTALLED = _FOLDER.parent.parent.parent / "build" / "openid"


@dataclass(frozen=True, slots=True)
class OpenId:
    """A running provider."""

    url: str
    client_id: str = "collector"
    client_secret: str = "collector-secret"


@contextmanager
def openid() -> Iterator[OpenId]:
    node = need("node")
    if not (_INSTALLED / "node_modules" / "oidc-provider").is_dir():
        missing("oidc-provider is not installed; .ci/run shows how")
    with running(node, str(_FOLDER / "provider.mjs"), str(_INSTALLED)) as process:
        assert process.stdout is not None
        yield OpenId(process.stdout.readline().decode().strip())


def _browser() -> urllib.request.OpenerDirector:
    cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    return urllib.request.build_opener(cookies)


def visit(url: str) -> str:
    """Follow an address as a browser with cookies does; returns the final one."""
    with _browser().open(url, timeout=30) as page:
        return str(page.url)


def browse(url: str) -> None:
    """Sign in as a user, in another thread."""
    threading.Thread(target=visit, args=(url,)).start()


def confirm(server: OpenId, user_code: str) -> None:
    """Enter the code of a device, and consent."""
    browser = _browser()
    page = f"{server.url}/device"
    for more in ({}, {"confirm": "yes"}):
        with browser.open(page, timeout=30) as shown:
            text = shown.read().decode()
        found = re.search(r'name="xsrf" value="([^"]+)"', text)
        assert found is not None, text
        form = {"xsrf": found[1], "user_code": user_code, **more}
        with browser.open(page, urlencode(form).encode(), timeout=30) as shown:
            text = shown.read().decode()
    assert "success" in text.lower(), text
