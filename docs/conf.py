"""How Sphinx builds these pages: ``./dev docs``."""

from __future__ import annotations

import re
import sys
from os.path import relpath
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import restante
from restante.cli.command import _GROUPS

sys.path.insert(0, str(Path(__file__).parent))

from pictures import Picture
from screenshot import Demo

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "restante"
author = "The restante developers"
version = release = restante.__version__
html_title = f"restante {version}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_js_files = ["copy.js"]
html_copy_source = False
html_show_copyright = False
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# Sphinx checks links between pages (-W). Links to other sites are not checked.
nitpicky = True

# Pages for the man builder only: ./dev docs excludes others there.
exclude_patterns = ["man/*"]
man_pages = [
    ("man/restante", "restante", "POP3 server, mail collector and client library", "", 1),
    ("man/restante.toml", "restante.toml", "configuration of restante", "", 5),
]
man_pages += [
    (f"man/restante-{verb}", f"restante-{verb}", summary, "", 1)
    for summaries in _GROUPS.values()
    for verb, summary in summaries.items()
]
man_show_urls = False

# Old address of a page → its address now. Bookmarks and links from other sites keep working.
MOVED = {
    "howto/back-up": "howto/backup-and-restore",
    "howto/behind-a-proxy": "howto/load-balancer",
    "howto/brake-deletions": "howto/deletion-limits",
    "howto/from-poplib": "howto/migrate-from-poplib",
    "howto/gateway": "howto/legacy-device-to-microsoft-365",
    "howto/give-mail-back": "howto/restore-deleted-mail",
    "howto/guessing": "howto/brute-force-protection",
    "howto/identities": "howto/authentication-back-ends",
    "howto/keep-an-eye": "howto/monitoring",
    "howto/leave-getmail": "howto/migrate-from-getmail",
    "howto/look-for-damage": "howto/check-and-repair",
    "howto/move-here": "howto/migrate",
    "howto/odd-servers": "howto/non-compliant-servers",
    "howto/old-device": "howto/legacy-devices",
    "howto/share-with-imap": "howto/imap",
    "howto/who-took-my-mail": "howto/session-journal",
}
# The script keeps the anchor, such as #when-the-clock-jumps; the refresh works without scripts.
_FORWARD = Template("""\
<!doctype html>
<meta charset="utf-8">
<title>Moved</title>
<link rel="canonical" href="$target">
<script>location.replace("$target" + location.hash)</script>
<noscript><meta http-equiv="refresh" content="0; url=$target"></noscript>
<p>This page has moved: <a href="$target">$target</a></p>
""")


def write_forwards(app: Sphinx, exception: Exception | None) -> None:
    """Write a page that forwards for each old address, after an HTML build."""
    if exception is not None or app.builder.format != "html":
        return
    for old, new in MOVED.items():
        page = Path(app.outdir, f"{old}.html")
        target = relpath(f"{new}.html", Path(old).parent)
        page.write_text(_FORWARD.substitute(target=target), encoding="utf-8")


def set_language(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, object], doctree: object
) -> None:
    """Set the ``lang`` attribute of Chinese pages: it selects fonts, hyphenation and voices."""
    if pagename.startswith("zh/"):
        context["language"] = "zh-CN"


def break_names(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, object], doctree: object
) -> None:
    """Let long names break between their parts, as ``a_b`` or ``aB``; copied text is the same."""
    body = str(context.get("body", ""))
    code = re.compile(r'(?<=<span class="pre">)[^<]+(?=</span>)')
    between = re.compile(r"(?<=\w[_/.:=])(?=\w)|(?<=[a-z])(?=[A-Z])")
    context["body"] = code.sub(lambda name: between.sub("<wbr>", name[0]), body)


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", break_names)
    app.connect("html-page-context", set_language)
    app.add_directive("demo", Demo)
    app.add_directive("picture", Picture)
    app.connect("build-finished", write_forwards)
