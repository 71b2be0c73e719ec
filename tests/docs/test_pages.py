"""The commands, programs and configurations in README and docs/ work.

Each page gets a home, a server and a few messages; its blocks run in order.  A block of TOML
becomes ``restante.toml``; Python and console blocks run unchanged except for ``PLACES``.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from restante import config
from restante.cli.command import make_parser

HOUSE = Path(__file__).parent.parent.parent
CHINESE = sorted((HOUSE / "docs" / "zh").glob("*.md"))
PAGES = [HOUSE / "README.md", HOUSE / "README.zh.md", HOUSE / "CONTRIBUTING.md"]
PAGES += sorted((HOUSE / "docs").glob("*.md"))
PAGES += [*sorted((HOUSE / "docs" / "howto").glob("*.md")), *CHINESE]
README = (HOUSE / "README.md").read_text()
RUNNING = [
    page for page in PAGES if re.search(r"^```(console|python|toml)", page.read_text(), re.M)
]
NEEDS = "# Needs "  # and a package that is not a dependency of ours: such a block is only compiled
LANGUAGES = {"console", "python", "toml", "yaml", "sh", "ini", "text"}
LANGUAGES |= {"{toctree}", "{demo}", "{picture}"}
PASSWORD = "k7fq-2m9x-tw4r-h8zd"

# Where ``restante`` and ``python`` are; tests/package/test_wheel.py runs these tests again with the
# installed wheel.
BIN = Path(os.environ.get("RESTANTE_PAGES_BIN") or Path(sys.executable).parent)

# Commands to run before a page.
_ANN = ("restante user add ann", "restante deliver ann < message", "restante deliver ann < message")
_GETMAIL = (
    "mkdir .getmail",
    "printf '[retriever]\\ntype = SimplePOP3SSLRetriever\\nserver = pop.example.org\\n"
    "username = ann\\npassword = k7fq-2m9x-tw4r-h8zd\\n"
    "[destination]\\ntype = Maildir\\npath = Mail/\\n' > .getmail/getmailrc",
    "sed -i 's/ = localhost:/ = localhost\\nport = /' .getmail/getmailrc",
)
BEFORE = {
    "migrate-from-getmail": (*_ANN, *_GETMAIL),
    "app-passwords": _ANN,
    "collect": _ANN,
    "dns-and-ports": _ANN,
    "mail-clients": _ANN,
    "troubleshooting": _ANN,
    "upgrade": _ANN[:1],
    "README": _ANN,  # for its Python
    "quota": _ANN,
    "folders": _ANN,
    "brute-force-protection": _ANN,
    "fetch-mail": _ANN,
    "authentication-back-ends": _ANN[:1],
    "receive-mail": _ANN[:1],
    "check-and-repair": _ANN,
    "backup-and-restore": _ANN,
    "monitoring": _ANN,
    "migrate": (
        "restante user add ann@example.org",
        "mkdir -p Maildir/cur Maildir/new Maildir/tmp",
        "cp message Maildir/cur/1.example:2,",
        "printf '3 V1 N2 G0\\n1 :1.example\\n' > Maildir/dovecot-uidlist",
        "(echo 'From - Mon Nov 30 06:00:00 2026'; cat message)"
        " > 'All mail Including Spam and Trash.mbox'",
    ),
    "deletion-limits": _ANN[:1],
    "session-journal": (*_ANN, "restante fetch pop3s://ann@pop.example.org --to fetched"),
    "restore-deleted-mail": (*_ANN, "restante fetch pop3s://ann@pop.example.org --to fetched"),
}

# Text on pages and its replacement here; the first match is used.
PLACES = (
    ("restante doctor", "restante doctor; test $? -le 1"),  # warnings about this machine
    ("pop.example.org", "{pop3s}"),
    ("127.0.0.1:1995", "{pop3s}"),
    ("127.0.0.1:2525", "{smtp}"),
    ("/run/restante/lmtp.sock", "{lmtp_unix}"),
    ("/run/restante/control/0.sock", ".local/state/restante/control/0.sock"),  # short enough
    ("runuser -u restante -- ", ""),
    ("/var/mail/vhosts/example.org/ann/Maildir", "{home}/Maildir"),
    ("/var/backups/restante", "{home}"),
    ("/etc/restante/fullchain.pem", "{state}/tls/certificate.pem"),
    ("/etc/restante/privkey.pem", "{state}/tls/key.pem"),
    ("/etc/restante/restante.toml", "{home}/restante.toml"),
    ("/var/lib/restante", "{state}"),
    ("/var/mail/restante", "{state}/mail"),
    ("/var/spool/postfix/restante", "{home}"),
    ("[::]:995", "127.0.0.1:0"),
    ("[::]:110", "127.0.0.1:0"),
    ('password="…"', f'password="{PASSWORD}"'),
)

# Commands that cannot run here, by their beginning, and why.  They must be valid for sh.
ELSEWHERE = {
    "./dev": "prepares .venv, in which these tests run already",
    "restante serve": "has run since the page began",
    "restante restore /var/backups/restante/": "refuses while the server runs",
    "restante sessions end 1f3a5c7e90": "ends a session of another server",
    "restante log -f": "ends only with the server; tests/app/test_control.py runs it",
    ". .venv": "is where these tests run already",
    "adduser": "changes this machine",
    "apt": "changes this machine",
    "restante init": "changes this machine; tests/package/journey.py runs it",
    "docker": "requires a container engine; tests/package/test_image.py runs the image",
    "pipx": "asks a package index",
    "uv": "asks a package index",
    "python3 -m pip download": "asks a package index",
    "python3 -m venv /opt": "changes this machine",
    "/opt/restante": "asks a package index",
    "git pull": "asks another machine",
    "ufw": "changes this machine",
    "ln": "changes this machine",
    "rm": "changes this machine",
    "install": "changes this machine",
    "restante account add ann@contoso.example": "asks Microsoft",
    "restante account add contoso": "asks Microsoft",
    "restante account add old pop3s://ann@pop.example.net --to '": "asks Google, or for a password",
    "certbot": "asks Let's Encrypt",
    "promtool": "requires Prometheus; tests/interop/test_alert_rules.py runs it",
    "systemctl": "requires systemd",
    "journalctl": "requires systemd",
}


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each fenced block."""
    found = re.finditer(r"^```([\w{}]*)[^\n]*\n(.*?)^```$", page.read_text(), re.M | re.S)
    yield from ((match[1], match[2]) for match in found)


def commands(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def runs_here(command: str) -> bool:
    return not any(command.startswith(beginning) for beginning in ELSEWHERE)


class Home:
    """A home and a server for one page."""

    def __init__(self, path: Path) -> None:
        self.path = path
        state = path / ".local" / "state" / "restante"
        self.environment = {
            "HOME": str(path),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RESTANTE__SERVER__LISTEN": "pop3s://127.0.0.1:0 pop3://127.0.0.1:0",
            "RESTANTE__INTAKE__SMTP__LISTEN": "127.0.0.1:0",
            "RESTANTE_PASSWORD": PASSWORD,
            "SSL_CERT_FILE": f"{state}/tls/certificate.pem",
        }
        self.places = {"home": str(path), "state": str(state)}
        (path / "message").write_text("Subject: one\n\nOne.\n")
        self._server = subprocess.Popen(
            [str(BIN / "restante"), "--json", "serve"],
            cwd=path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._server.stdout is not None
        self.places |= json.loads(self._server.stdout.readline())

    def here(self, text: str) -> str:
        """Return the text of a page, adapted to this home."""
        for place, here in PLACES:
            text = text.replace(place, here.format(**self.places))
        return text

    def run(self, *command: str) -> None:
        """Run a command; every prompt is answered with the password."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env=self.environment,
            input=PASSWORD + "\n",
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def end(self) -> None:
        self._server.terminate()
        self._server.communicate(timeout=20)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    found = Home(tmp_path)
    yield found
    found.end()


def name(page: Path) -> str:
    return f"zh/{page.stem}" if page in CHINESE else page.stem


def names(pages: list[Path]) -> list[str]:
    return [name(page) for page in pages]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=names(RUNNING))
def test_commands_on_pages_work(page: Path, home: Home) -> None:
    for command in BEFORE.get(page.stem, ()):
        home.run("sh", "-c", home.here(command))
    for language, text in blocks(page):
        if language == "toml":
            (home.path / "restante.toml").write_text(home.here(text))
            config.load(home.path / "restante.toml")
        elif language == "python" and text.startswith(NEEDS):
            compile(text, page.name, "exec")
        elif language == "python" and "(pop3_server)" in text:
            (home.path / "test_page.py").write_text(text)
            home.run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_page.py")
        elif language == "python":
            home.run(str(BIN / "python"), "-W", "error", "-c", home.here(text))
        elif language == "console":
            for command in filter(runs_here, commands(text)):
                home.run("sh", "-c", home.here(command))


@pytest.mark.slow
def test_the_table_of_the_readme_works(home: Home) -> None:
    rows = re.findall(r"^\|.*\| .*?`((?:restante|\./dev) [^`]+)`", README, re.MULTILINE)
    assert len(rows) > 3
    for command in filter(runs_here, rows):
        home.run("sh", "-c", home.here(command))


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_that_cannot_run_here_are_valid(page: Path) -> None:
    assert not re.search(r"^\n {4}\S", re.sub(r"(?ms)^```.*?^```$", "", page.read_text()), re.M)
    for language, text in blocks(page):
        assert language in LANGUAGES, f"{page.name}: a block of {language or 'no language'}"
        if language in ("console", "sh"):
            done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True)
            assert done.returncode == 0, f"{page.name}: {done.stderr}"
        elif language == "ini":
            unit = configparser.ConfigParser(strict=False, interpolation=None)
            unit.read_string(text)
            assert {"Unit", "Service"} <= set(unit.sections())
        elif language == "toml":
            tomllib.loads(text)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_a_command_in_a_sentence_is_one(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments may be missing if only its name is mentioned."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for command in re.findall(r"`restante\s+([^`<]+)", text):
        try:
            make_parser().parse_args(shlex.split(command))
        except SystemExit:
            error = capsys.readouterr().err.splitlines()[-1:]  # empty for --version
            wrong = [line for line in error if not re.search("required|expected one arg", line)]
            assert wrong == []


def test_every_excused_command_is_on_a_page() -> None:
    said = [line for page in PAGES for name, text in blocks(page) for line in commands(text)]
    for beginning in ELSEWHERE:
        assert any(line.startswith(beginning) for line in said), beginning
    everything = "".join(page.read_text() for page in PAGES)
    assert [place for place, _ in PLACES if place not in everything] == []


@pytest.mark.parametrize("page", CHINESE, ids=names(CHINESE))
def test_chinese_page_has_the_blocks_of_the_english_page(page: Path) -> None:
    """A command changed in English must change in Chinese too."""
    chinese = [block for block in blocks(page) if block[0] != "{toctree}"]
    english = HOUSE / "docs" / "howto" / page.name
    assert chinese == (list(blocks(english)) if english.exists() else [])
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_chinese_pages_are_marked_as_chinese() -> None:
    set_language = runpy.run_path(str(HOUSE / "docs" / "conf.py"))["set_language"]
    for page, language in (("zh/collect", "zh-CN"), ("howto/collect", "en")):
        context = {"language": "en"}
        set_language(None, page, "page.html", context, None)
        assert context["language"] == language


def test_chinese_pages_are_linked_from_the_english_ones() -> None:
    assert "(README.zh.md)" in README
    assert "<zh/index>" in (HOUSE / "docs" / "index.md").read_text()
    readme = (HOUSE / "README.zh.md").read_text()
    for page in ("first-server", "collect"):
        assert f"(docs/zh/{page}.md)" in readme
        other = "collect" if page == "first-server" else "first-server"
        assert f"({other}.md)" in (HOUSE / "docs" / "zh" / f"{page}.md").read_text()


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """Errors about missing programs and users do not count."""
    page = HOUSE / "docs" / "howto" / "first-server.md"
    unit_file = tmp_path / "restante.service"
    unit_file.write_text(next(text for language, text in blocks(page) if language == "ini"))
    for unit in (unit_file, *(HOUSE / "contrib" / "systemd").glob("*.service")):
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
        assert "Unknown" not in done.stderr, unit
