"""`restante check`: what it warns of."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

from restante import config

from .conftest import Restante


def test_relative_paths_are_named(restante: Restante, home: Path) -> None:
    """A mistake that shows only when cron runs the command from elsewhere."""
    file = home / "restante.toml"
    file.write_text(
        '[account.isp]\nurl = "pop3s://h"\nuser = "ann"\npassword = { file = "secret" }\n'
        'to = "maildir:Mail"\nca_file = "ca.pem"\n'
        '[account.other]\nurl = "pop3s://h"\nuser = "bob"\nto = "maildir:../Mail"\n'
    )
    with chdir(home):
        done = restante("check", "-c", file.name)
        warnings = restante("check", "-c", file.name, "--json").json["warnings"]
    assert done.code == 0
    assert (
        f"isp.to: maildir:Mail depends on the current directory; write maildir:{home}/M" in done.err
    )
    assert [each.partition(":")[0] for each in warnings] == [
        "account.isp.to",
        "account.other.to",
        "account.isp.ca_file",
        "account.isp.password",
    ]


def test_the_configuration_stays_the_same_file_elsewhere(home: Path) -> None:
    (home / "restante.toml").write_text("")
    with chdir(home):
        found = config.load(Path("restante.toml"), environment={"XDG_STATE_HOME": "state"})
    assert found.source == home / "restante.toml"
    assert found.folder == home / "conf.d"
    assert found.state == home / "state" / "restante"
