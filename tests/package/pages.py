"""The commands of the pages for operators, for the booted system in which the package runs.

The other commands are run by tests/docs/test_pages.py and tests/package/test_image.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..docs.test_pages import blocks, commands

_PAGES = Path(__file__).resolve().parents[2] / "docs/howto"
NAMES = (
    *("install", "first-server", "monitoring", "troubleshooting", "backup-and-restore"),
    *("upgrade", "uninstall"),
)

# Commands that the booted system cannot run, by their beginning, and why.
_EXCUSED = {
    "./dev": "needs the checkout; the packages under test are its result",
    ". .venv": "needs the checkout",
    "git": "needs the checkout",
    "install -D -t": "needs the checkout",
    "uv": "installs the wheel; test_wheel.py",
    "pipx": "installs the wheel; test_wheel.py",
    "python3 -m venv": "installs the wheel; test_wheel.py",
    "/opt/restante": "installs the wheel; test_wheel.py",
    "ln": "installs the wheel; test_wheel.py",
    "adduser": "the package has done this",
    "install -d -o restante -g restante -m 0750": "the package has done this",
    "install -d -o restante -g postfix": "needs Postfix; tests/interop/test_postfix.py",
    "apt install debhelper": "needs the network",
    "apt install --allow-downgrades": "a step of journey.py",
    "apt install ./build": "a step of journey.py",
    "systemctl disable": "removes the program; test_wheel.py installs it",
    "rm": "removes the program; test_wheel.py installs it",
    "docker": "test_image.py",
    "apt remove": "a step of journey.py",
    "apt purge": "a step of journey.py",
    "restante init": "a step of journey.py",
    "promtool": "needs Prometheus; tests/interop/test_alert_rules.py",
    "systemctl reload prometheus": "needs Prometheus",
    "certbot": "needs Let's Encrypt",
    "restante account": "needs another mail server; tests/docs/test_pages.py",
    "restante sessions end 1f3a5c7e90": "ends a session of another server",
    "restante user add ann@example.org": "a step of journey.py has added this user",
}
_ALL = "/etc/restante/* /var/lib/restante/* /var/mail/restante/*"
_REPLACED = (
    (r"^(restante restore /var/backups/restante/)$", rf"rm -rf {_ALL}; \1 --yes"),  # all is lost
    (r"\b(ann|watch)\b(?!@)", r"\1@example.org"),  # store.path contains the domain
    (r" /etc/prometheus$", " /root"),  # Prometheus is not installed
    (r"^(restante log -f.*)", r"timeout 2 \1 || test $? = 124"),  # ends only with the server
    (r"^(restante doctor)$", r"\1 || test $? = 1"),  # warnings about this machine
)


def page_commands() -> list[str]:
    """Return the commands to run, in their order."""
    lines = [
        line
        for name in NAMES
        for language, text in blocks(_PAGES / f"{name}.md")
        if language == "console"
        for line in commands(text)
    ]
    unused = [each for each in _EXCUSED if not any(line.startswith(each) for line in lines)]
    assert unused == [], "excused, but on no page"
    chosen = [line for line in lines if not line.startswith(tuple(_EXCUSED))]
    for pattern, replacement in _REPLACED:
        chosen = [re.sub(pattern, replacement, line) for line in chosen]
    return chosen
