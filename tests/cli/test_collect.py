"""Output of `restante collect`: bars on a terminal, none in cron, JSON lines for programs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from restante import config
from restante.app.job import Job
from restante.collect.destinations import Tracing, Verifying
from restante.collect.oauth.flow import Tokens
from restante.testing import Pop3Server

from .conftest import Restante, started
from .screen import terminal

MESSAGE = b"Subject: one\n\nhello\n"


@pytest.fixture
def server() -> Iterator[Pop3Server]:
    with Pop3Server(users={"ann": "pw", "bob": "pw"}, sasl=()) as running:
        yield running


@pytest.fixture
def configured(home: Path, server: Pop3Server) -> Path:
    """Configure two accounts, ann and bob."""
    path = home / "config" / "restante" / "restante.toml"
    path.parent.mkdir(parents=True)
    path.touch(0o600)
    for name in ("ann", "bob"):
        with path.open("a") as file:
            file.write(
                f'[account.{name}]\nurl = "pop3s://localhost:{server.port}"\nuser = "{name}"\n'
                f'password = "pw"\nca_file = "{server.ca_file}"\nto = "maildir:{home}/{name}"\n'
            )
    return path


def extend(path: Path, line: str) -> None:
    """Add lines to the last account, bob."""
    path.write_text(path.read_text() + line + "\n")


def stored(home: Path, name: str) -> int:
    return len(list((home / name / "new").glob("*")))


def test_cron_gets_only_the_results(
    home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    server.deliver("ann", MESSAGE)
    done = restante("collect", "--all")
    assert (done.code, done.out, done.err) == (0, "ann: 1 message stored, 23 bytes\n", "")
    done = restante("collect", "--all")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_wait_for_the_login_limit_prints_nothing(
    home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    """Only the exit code shows it, so that cron sends no mail."""
    extend(configured, "logins_per_hour = 1")
    assert restante("collect", "bob").code == 0
    done = restante("collect", "bob")
    assert (done.code, done.out, done.err) == (75, "", "")
    done = restante("--json", "collect", "bob")
    assert "the next login is allowed in" in done.json["error"]


def test_a_used_up_budget_is_said(
    home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    extend(configured, "messages_per_day = 2")
    for _ in range(3):
        server.deliver("bob", MESSAGE)
    done = restante("collect", "bob")
    assert done.code == 0
    assert (
        done.out
        == "bob: 2 messages stored, 46 bytes; 1 left for later because of the day's budget\n"
    )
    assert restante("--json", "collect", "bob").json["later"] == 1


def test_the_story_of_a_large_message(
    home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    extend(configured, "largest = 20")
    server.deliver("bob", MESSAGE)
    done = restante("collect", "bob")
    assert done.code == 0
    name = done.err.split()[-1]
    assert done.err == f"bob: message 1: 23 octets, more than 20; to fetch it: --whole {name}\n"
    extend(configured, 'larger = "stub"')
    done = restante("collect", "bob")
    assert done.out == "bob: 1 header of oversized messages stored\n"
    assert restante("collect", "bob").out == ""
    assert restante("collect", "bob", "--whole", name).out.startswith("bob: 1 message stored")
    assert stored(home, "bob") == 2


def test_refused_login_leaves_no_progress_bar(
    home: Path, configured: Path, server: Pop3Server
) -> None:
    server.deliver("ann", MESSAGE * 1000)
    configured.write_text(configured.read_text().replace('"pw"', '"wrong"', 1))
    with terminal("collect", "--all") as screen:
        assert screen.wait() == 77
    assert screen.shown == "ann: PASS: authentication failed\nbob: no new mail\n"


@pytest.mark.parametrize(
    "kind", ["dumb", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unknown", ""))]
)
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    kind: str, home: Path, configured: Path, server: Pop3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", kind)
    for _ in range(20):
        server.deliver("ann", MESSAGE * 1000)
    with terminal("collect", "ann") as screen:
        assert screen.wait() == 0
    assert re.fullmatch(r"ann: 20 messages stored, [\d.]+ kB\n", screen.shown)


@pytest.mark.slow
def test_no_color_is_respected(
    home: Path, configured: Path, server: Pop3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    for _ in range(20):
        server.deliver("ann", MESSAGE * 1000)
    with terminal("collect", "ann") as screen:
        assert screen.wait() == 0
    colours = re.findall(r"\x1b\[([0-9;]*)m", screen.shown)
    assert not [each for each in colours if re.search(r"(?:^|;)(?:3|4|9|10)[0-7]", each)]


def test_one_line_of_json_for_each_account(
    home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    server.deliver("ann", MESSAGE)
    server.fault.err("LIST", times=1)
    lines = [json.loads(line) for line in restante("--json", "collect", "--all").out.splitlines()]
    assert {line["schema"] for line in lines} == {"restante/collect/1"}
    assert {line["account"] for line in lines} == {"ann", "bob"}
    assert [line["exit_code"] for line in lines if "error" in line] == [75]


def test_bars_on_a_terminal_and_results_in_a_file(
    home: Path, configured: Path, server: Pop3Server
) -> None:
    for name in ("ann", "bob"):
        for _ in range(3):
            server.deliver(name, b"Subject: x\n\n" + b"x" * 30_000 + b"\n")
    server.fault.drip("RETR", octets=30_000, seconds=0.1)
    ours, theirs = os.openpty()
    with started("collect", "--all", stderr=theirs, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(theirs)
        shown = b""
        try:
            while octets := os.read(ours, 65_536):
                shown += octets
        except OSError:  # the terminal was closed
            pass
        os.close(ours)
        assert process.stdout is not None
        out = process.stdout.read().decode()
        assert process.wait(30) == 0
    assert sorted(out.splitlines()) == [
        f"{name}: 3 messages stored, 90 kB" for name in ("ann", "bob")
    ]
    assert b"3 messages" in shown
    assert b"ann" in shown
    assert b"bob" in shown


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_keeps_stored_messages(
    number: int, home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    for _ in range(3):
        server.deliver("ann", MESSAGE)
    server.deliver("ann", b"Subject: large\n\n" + b"x" * 30_000 + b"\n")
    server.fault.drip("RETR", octets=100, seconds=0.1)
    with started("collect", "ann", stdin=subprocess.DEVNULL) as process:
        while not any((home / "ann" / "tmp").glob("*")):
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert b"stopped; stored messages are recorded" in err
    assert list((home / "ann" / "tmp").glob("*")) == []
    server.fault.clear()
    while restante("collect", "ann").code == 75:  # until the server notices the lost connection
        pass
    assert stored(home, "ann") == 4


def metrics(path: Path) -> dict[str, float]:
    """Parse the text format as node_exporter does; HELP and TYPE must precede each family."""
    found, family = {}, ""
    for line in path.read_text().splitlines():
        if line.startswith("# HELP "):
            family = line.split()[2]
        elif line.startswith("# TYPE "):
            assert line.split()[2:] in ([family, "counter"], [family, "gauge"])
        else:
            sample, value = line.rsplit(" ", 1)
            assert re.fullmatch(rf'{family}\{{account="\w+"(,result="\w+")?\}}', sample)
            assert sample not in found
            found[sample] = float(value)
    return found


def test_metrics_of_all_accounts_after_each_session(
    home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    path = home / "restante.prom"
    server.deliver("ann", MESSAGE)
    before = time.time()
    mask = os.umask(0o077)
    restante("collect", "ann", "--metrics", path)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644
    server.fault.err("LIST", times=2)
    for _ in range(2):
        restante("collect", "ann", "--metrics", path)
    found = metrics(path)
    success = found.pop('restante_collect_last_success_timestamp_seconds{account="ann"}')
    assert before <= success <= time.time()
    assert {sample: value for sample, value in found.items() if "ann" in sample} == {
        'restante_collect_runs_total{account="ann",result="ok"}': 1,
        'restante_collect_runs_total{account="ann",result="failed"}': 2,
        'restante_collect_messages_total{account="ann"}': 1,
        'restante_collect_bytes_total{account="ann"}': 23,
        'restante_collect_failures{account="ann"}': 2,
    }
    assert found['restante_collect_runs_total{account="bob",result="ok"}'] == 0
    assert list(home.glob(".restante.prom*")) == []


def test_messages_before_a_failure_are_reported_and_counted(
    home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    extend(configured, 'keep = "none"')
    server.deliver("bob", MESSAGE)
    server.fault.lose_quit()
    path = home / "restante.prom"
    done = restante("collect", "bob", "--metrics", path)
    assert (done.code, done.out) == (75, "bob: 1 message stored, 23 bytes\n")
    assert done.err.startswith("bob: the server closed the connection")
    assert metrics(path)['restante_collect_messages_total{account="bob"}'] == 1
    server.deliver("bob", MESSAGE + b"another\n")
    server.fault.lose_quit()
    line = restante("--json", "collect", "bob").json
    assert (line["stored"], line["exit_code"]) == (1, 75)


@pytest.mark.parametrize("count", [1, 2])
def test_run_reaches_quit_without_messages_that_break_the_connection(
    count: int, home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    """They are tried again in the next run, and then wait a day."""
    extend(configured, 'keep = "none"')
    for number in range(count):
        server.deliver("bob", MESSAGE + b"%d\n" % number)
    server.fault.drop("RETR", after_bytes=10, times=None)
    for when in ("the next run", "24 h", "24 h"):
        done = restante("collect", "bob")
        names = set(re.findall(rf"tried again in {when}, or now: --whole (\w+)", done.err))
        assert (done.code, len(names)) == (0, count)
    assert stored(home, "bob") == 0


@pytest.mark.parametrize("losses", [1, 2, 3, 4])
def test_mail_is_fetched_in_the_next_run_after_lost_connections(
    losses: int, home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    extend(configured, 'keep = "none"')
    for number in range(4):
        server.deliver("bob", MESSAGE + b"%d\n" % number)
    server.fault.drop("RETR", after_bytes=10, times=losses)
    restante("collect", "bob")
    server.fault.clear()
    assert restante("collect", "bob").code == 0
    assert (stored(home, "bob"), server.messages("bob")) == (4, [])


@pytest.mark.slow
def test_each_turn_of_a_service_is_a_run(home: Path, configured: Path, server: Pop3Server) -> None:
    extend(configured, 'keep = "none"\nevery = "1s"')
    server.deliver("bob", MESSAGE)
    server.fault.drop("RETR", after_bytes=10, times=2)
    with started("collect", "bob", "--watch") as process:
        assert process.stderr is not None
        seen = process.stderr.readline()
        while b"deleted upstream" not in seen[-200:]:
            line = process.stderr.readline()
            assert line, seen
            seen += line
    assert b"tried again in the next run" in seen
    assert stored(home, "bob") == 1


def test_a_lost_answer_to_quit_is_no_failure_when_nothing_was_marked(
    home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    """RFC 1939 §6: QUIT removes marked messages, and none were marked."""
    server.deliver("ann", MESSAGE)
    server.fault.lose_quit(times=None)
    done = restante("collect", "ann")
    assert (done.code, done.out, done.err) == (0, "ann: 1 message stored, 23 bytes\n", "")
    assert restante("collect", "ann").code == 0


def test_metrics_that_cannot_be_written_fail_no_session(
    home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    with configured.open("a") as file:
        file.write(f'[collect]\nmetrics = "{home}/no/restante.prom"\n')
    server.deliver("ann", MESSAGE)
    done = restante("collect", "ann")
    assert (done.code, stored(home, "ann")) == (0, 1)
    assert "ann: no metrics: " in done.err
    assert "No such file" in done.err


def test_metrics_show_when_a_consent_expires(
    home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    extend(configured, '[account.bob.oauth]\nprovider = "microsoft"\nclient_id = "app"')
    end = 2_000_000_000.0
    agreed = Tokens("access", 0.0, "refresh", end)
    Job.of(config.load(), "bob").grant.file().put(agreed)
    path = home / "restante.prom"
    restante("collect", "ann", "--metrics", path)
    found = metrics(path)
    assert found['restante_oauth_token_expiry_timestamp_seconds{account="bob"}'] == end
    assert "refresh" not in path.read_text()


def test_account_log_shows_deletions_with_reasons(
    home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    extend(configured, 'keep = "none"')
    server.deliver("bob", MESSAGE)
    assert restante("account", "log", "bob").out == ""
    done = restante("collect", "bob")
    assert done.err == ""
    heads, line = restante("account", "log", "bob").out.splitlines()
    assert heads.split() == ["DELETED", "MESSAGE", "REASON", "EVIDENCE", "ANSWER"]
    reason = "the account keeps no mail on the server +fetched and stored in this session +removed"
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d  \S+ +{reason}", line)
    (removal,) = restante("--json", "account", "log", "bob").json["removals"]
    why = "the account keeps no mail on the server"
    assert (removal["why"], removal["answer"]) == (why, "removed")


def test_a_service_logs_each_deletion(home: Path, configured: Path, server: Pop3Server) -> None:
    extend(configured, 'keep = "none"\nevery = "1s"')
    server.deliver("bob", MESSAGE)
    with started("collect", "bob", "--watch") as process:
        assert process.stderr is not None
        line = process.stderr.readline()
    assert b" deleted upstream: account=bob message=" in line
    why = rb"the\x20account\x20keeps\x20no\x20mail\x20on\x20the\x20server"
    assert rb" why=" + why + rb" evidence=fetched\x20and\x20stored" in line


def test_a_limit_withholds_deletions_until_an_operator_lets_them_go(
    home: Path, configured: Path, server: Pop3Server, restante: Restante
) -> None:
    extend(configured, 'keep = "none"\ndeletion_limit = 2')
    for number in range(3):
        server.deliver("bob", MESSAGE + b"%d\n" % number)
    done = restante("collect", "bob")
    withheld = (
        "3 not deleted on the server yet because of deletion_limit "
        "(--no-deletion-limit deletes them now)"
    )
    assert (done.code, done.out) == (0, f"bob: 3 messages stored, 78 bytes; {withheld}\n")
    done = restante("collect", "bob", "--no-deletion-limit")
    assert done.out == "bob: 3 collected before; 3 deleted on the server\n"


@pytest.mark.parametrize("keep", ["until-verified", "until-deleted"])
@pytest.mark.parametrize(
    ("to", "verifies", "traces"),
    [
        ("{}/Mail", True, False),
        ("maildir:{}/Mail", True, False),
        ("maildrop:ann", True, True),
        ("mbox:{}/mbox", False, False),
        ("command:cat", False, False),
        ("lmtp:127.0.0.1:24", False, False),
        ("smtp:127.0.0.1:25", False, False),
        ("gmail:Label", False, False),
    ],
)
def test_a_keep_that_the_destination_cannot_support_is_a_mistake(
    to: str,
    verifies: bool,
    traces: bool,
    keep: str,
    home: Path,
    configured: Path,
    restante: Restante,
) -> None:
    """Both keys are named before anything is fetched; the code shows which values are supported."""
    place = to.format(home)
    text = configured.read_text().replace(f'to = "maildir:{home}/bob"', f'to = "{place}"')
    configured.write_text(text)
    assert restante("user", "add", "ann", stdin=b"secret password\n").code == 0
    extend(configured, f'keep = "{keep}"\nrecipient = "ann@example.org"')
    if to.startswith("gmail:"):
        extend(configured, 'to_oauth = { provider = "google", client_id = "x" }')
    is_possible = verifies if keep == "until-verified" else traces
    for words in (("check",), ("collect", "bob")):
        done = restante(*words)
        is_named = "account.bob.keep" in done.err and "account.bob.to" in done.err
        assert is_named is not is_possible, done.err
        assert is_possible or done.code == 78
    destination = Job.of(config.load(), "bob").open_destination()
    with closing(destination):
        kind: type = Verifying if keep == "until-verified" else Tracing
        assert isinstance(destination, kind) is is_possible
