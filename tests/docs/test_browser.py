"""The pages of the documentation in Chromium; ``./dev browser`` runs these tests.

Pages are opened from the disk, as in the README.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..interop.programs import need

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
HOUSE = Path(__file__).parent.parent.parent
BUILT = HOUSE / "build" / "docs"
SOURCES = sorted(set((HOUSE / "docs").rglob("*.md")) - set((HOUSE / "docs" / "man").iterdir()))
PAGES = [str(page.relative_to(HOUSE / "docs").with_suffix("")) for page in SOURCES]
SCREENS = {"telephone": (390, 844), "desk": (1280, 800)}
# Without sandbox: the tests may run as root, and the pages are our own.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync", "--disable-quic"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engines:
        browser = engines.chromium.launch(executable_path=need("chromium"), args=OPTIONS)
        yield browser
        browser.close()


def look(
    chromium: Browser, page: str, screen: str = "desk", script: bool = True
) -> tuple[Page, list[str]]:
    """Open a page; returns it and the errors that occurred."""
    width, height = SCREENS[screen]
    context = chromium.new_context(
        viewport={"width": width, "height": height}, java_script_enabled=script
    )
    seen, wrong = context.new_page(), []
    seen.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    seen.on("pageerror", lambda error: wrong.append(str(error)))
    asked: list[str] = []
    seen.on("request", lambda request: asked.append(request.url))
    seen.on("requestfailed", lambda request: wrong.append(f"not to be had: {request.url}"))
    seen.goto((BUILT / f"{page}.html").as_uri())
    wrong += [f"asks the network: {url}" for url in asked if not url.startswith(("file:", "data:"))]
    return seen, wrong


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_read(page: str, screen: str, chromium: Browser) -> None:
    seen, wrong = look(chromium, page, screen)
    assert seen.locator("h1").first.is_visible()
    assert wrong == []
    for part in ("html", ".content"):
        hidden = seen.locator(part).evaluate("part => part.scrollWidth - part.clientWidth")
        assert hidden <= 0, f"{part} must be moved sideways to be read"
    seen.context.close()


def test_a_page_can_be_read_without_scripts(chromium: Browser) -> None:
    seen, wrong = look(chromium, "index", script=False)
    assert seen.locator("article").is_visible()
    assert wrong == []
    seen.context.close()


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ("undelete", "Restore deleted mail"),
        ("restore", "Restore deleted mail"),
        ("migrate", "Migrate from Dovecot, Courier, Cyrus or mbox"),
        ("Microsoft 365", "Gmail and Microsoft 365: sign in with OAuth 2"),
    ],
)
def test_search_finds_the_page(words: str, title: str, chromium: Browser) -> None:
    seen, _ = look(chromium, "index")
    search = seen.get_by_role("textbox").first
    search.fill(words)
    search.press("Enter")
    seen.locator("ul.search").get_by_role("link", name=title, exact=True).first.click()
    assert seen.locator("h1").first.inner_text().startswith(title)
    seen.context.close()


def test_code_can_be_copied_and_screenshots_have_no_button(chromium: Browser) -> None:
    seen, _ = look(chromium, "howto/install")
    button = seen.get_by_role("button", name="Copy", exact=True).first
    button.click()
    seen.get_by_role("button", name="Copied").wait_for()
    seen.goto((BUILT / "index.html").as_uri())
    assert seen.locator(".screenshot").count() == 1
    assert seen.locator("button.copy").count() == 0
    seen.context.close()


def test_pictures_follow_the_theme(chromium: Browser) -> None:
    colours = set()
    for scheme in ("light", "dark"):
        seen = chromium.new_page(color_scheme=scheme)
        seen.goto((BUILT / "design.html").as_uri())
        text = seen.locator("svg.picture text").first
        colours.add(text.evaluate("text => getComputedStyle(text).fill"))
        seen.close()
    assert len(colours) == 2


@pytest.mark.parametrize("script", [True, False], ids=["scripts", "no scripts"])
def test_old_address_forwards_to_the_new_page(script: bool, chromium: Browser) -> None:
    seen, wrong = look(chromium, "howto/give-mail-back", script=script)
    seen.wait_for_url("**/howto/restore-deleted-mail.html")
    assert seen.locator("h1").first.is_visible()
    assert wrong == []
    seen.context.close()
