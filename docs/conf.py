"""How Sphinx builds these pages: ``./dev docs``."""

from __future__ import annotations

import restante

project = "restante"
author = "The restante developers"
version = release = restante.__version__
html_title = f"restante {version}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_copyright = False
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# Links between pages are checked by Sphinx (-W), links to places outside by nobody here.
nitpicky = True

man_pages = [
    ("reference/command-line", "restante", "a POP3 server and what belongs to it", "", 1),
    ("reference/configuration", "restante.toml", "configuration of restante", "", 5),
]
man_show_urls = False
