"""Ctrl-C at any moment, and a closed terminal window."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..cli.conftest import program
from ..cli.screen import terminal

# sitecustomize.py: interrupts the process at the n-th import after the first slow one, which only
# Python's own start and three small files precede.
_INTERRUPTED = """
import os, signal, sys
left = int(os.environ["INTERRUPT_AT"])
def look(event, arguments):
    global left
    if event == "import" and "restante.cli.main" in sys.modules:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(look)
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["user", "list"], ["check"]])
@pytest.mark.parametrize("number", [1, 2, 3, 5, 10, 20, 40, 80, 160, 320])
def test_an_interrupt_at_any_moment_shows_no_traceback(
    number: int, arguments: list[str], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "INTERRUPT_AT": str(number)}
    found = program(*arguments, env=environment)
    assert "Traceback" not in found.err
    assert found.code in (0, 130, -signal.SIGINT)
    if number <= 20:
        assert found.code, "it was not interrupted"


def test_an_ignored_interrupt_stays_ignored(home: Path) -> None:
    """Shells start background processes like that."""
    code = (
        "import signal, restante.cli.main as m; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "import sys; sys.argv = ['restante', '--version']\n"
        "try: m.main()\nexcept SystemExit: pass\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_undisplayable_characters_are_escaped(ann: str) -> None:
    message = "Subject: =?utf-8?q?price_=E2=82=AC_5?=\r\n\r\nhello\r\n"
    assert program("deliver", ann, stdin=message.encode()).code == 0
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    found = program("maildrop", "show", ann, env=environment)
    assert (found.code, "price \\u20ac 5" in found.out) == (0, True), found


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["n", "", "no"])
def test_no_is_an_answer(answer: str, ann: str) -> None:
    with terminal("user", "rm", ann) as screen:
        screen.answer(r"\[y/N\] ", answer)
        assert screen.wait() == 0
    assert screen.shown.endswith("Nothing was changed.\n")
    assert "\nann " in program("user", "list").out


def test_without_a_terminal_nothing_is_asked(ann: str) -> None:
    done = program("user", "rm", ann)
    assert (done.code, "Confirm with --yes" in done.err) == (64, True)
    assert program("user", "rm", "bob").code == 67


LISTEN = ("--listen", "pop3s://127.0.0.1:0")
READY = r"trust .*\n.*\n.*\n"


def test_the_banner_names_networks_that_need_no_tls(home: Path) -> None:
    file = home / "restante.toml"
    networks = ["192.168.1.40/32", "2001:db8::/64"]
    file.write_text(f"[server]\nworkers = 1\n[auth]\nallow_plaintext_from = {networks}\n")
    with terminal("-c", file, "serve", *LISTEN) as screen:
        screen.expect(READY)
    assert "logins without TLS are accepted from 192.168.1.40/32, 2001:db8::/64" in screen.shown


@pytest.fixture(params=[1, 2])
def configuration(request: pytest.FixtureRequest, home: Path) -> Path:
    """Write a configuration for one process, or for a supervisor and workers."""
    file = home / "restante.toml"
    file.write_text(f'[server]\nhostname = "localhost"\nworkers = {request.param}\n')
    return file


def test_closing_the_terminal_stops_the_server(configuration: Path) -> None:
    with terminal("-c", configuration, "serve", *LISTEN) as screen:
        screen.expect(READY)
        screen.close()
        assert screen.process.wait(30) == 0


@pytest.mark.slow
def test_sighup_in_an_open_terminal_reloads(configuration: Path) -> None:
    with terminal("-c", configuration, "serve", *LISTEN) as screen:
        screen.expect(READY)
        for _ in range(2):
            screen.process.send_signal(signal.SIGHUP)
            screen.expect("reloaded")
        assert screen.process.poll() is None


@pytest.mark.slow
def test_a_closed_window_stops_an_ephemeral_server(home: Path) -> None:
    with terminal("serve", "--ephemeral", "--json") as screen:
        screen.expect(r"restante/serve/1.*\n")
        screen.close()
        assert screen.process.wait(30) == 0
    assert list((home / "tmp").iterdir()) == []


@pytest.mark.slow
def test_nohup_continues_after_the_terminal_is_closed(configuration: Path) -> None:
    with terminal("-c", configuration, "serve", *LISTEN, ignores_hangup=True) as screen:
        screen.expect(READY)
        screen.close()
        with pytest.raises(subprocess.TimeoutExpired):
            screen.process.wait(2)
