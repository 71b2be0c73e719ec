"""``python -m restante.testing``: the test server for programs in any language.

It prints its addresses, as one line of JSON if requested, and runs until its standard input ends or
until SIGTERM or SIGINT.  A test starts it with a pipe, reads the line, and closes the pipe.  If the
test ends without doing so, the server ends as well.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from .testing import SASL_MECHANISMS, Pop3Server


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Raises:
        SystemExit: the arguments are invalid, or a file with a message cannot be read.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    users = dict(_parse_pair(parser, "--user", each) for each in options.user)
    mail = [_parse_pair(parser, "--mail", each) for each in options.mail]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    sasl = options.sasl or ["PLAIN"]
    with Pop3Server(users=users, sasl=sasl, clear=options.clear) as server:
        for user, path in mail:
            try:
                server.deliver(user, Path(path))
            except OSError as error:
                parser.error(f"--mail: {path}: {error.strerror}")
        _announce(server, [*users, *(user for user, _ in mail)], as_json=options.json)
        threading.Thread(target=_wait_for_end_of_input, args=[stop], daemon=True).start()
        stop.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m restante.testing",
        description="Run a POP3 server for tests on loopback, with mail in memory. It ends when "
        "its standard input ends, or at SIGTERM or SIGINT.",
    )
    parser.add_argument(
        "--user",
        action="append",
        default=[],
        metavar="NAME:PASSWORD",
        help="create this user; may be repeated",
    )
    parser.add_argument(
        "--mail",
        action="append",
        default=[],
        metavar="NAME:FILE",
        help="deliver the message in FILE to the user NAME; may be repeated; a user without --user "
        "has the password pw",
    )
    parser.add_argument(
        "--sasl",
        action="append",
        choices=SASL_MECHANISMS,
        metavar="MECHANISM",
        help="offer this mechanism in addition to USER and PASS; may be repeated: "
        f"{', '.join(SASL_MECHANISMS)} (default: PLAIN)",
    )
    parser.add_argument(
        "--clear", action="store_true", help="allow logins without STLS on the STLS port"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser


def _parse_pair(parser: argparse.ArgumentParser, option: str, text: str) -> tuple[str, str]:
    name, colon, rest = text.partition(":")
    if not (name and colon):
        parser.error(f"{option}: the value must contain a name and a colon, not only {name!r}")
    return name, rest


def _announce(server: Pop3Server, users: Sequence[str], *, as_json: bool) -> None:
    """Print the addresses immediately, because clients wait for them."""
    if as_json:
        addresses = {
            "host": server.host,
            "pop3s": server.port,
            "pop3": server.stls_port,
            "ca": str(server.ca_file),
            "users": {user: server.password(user) for user in users},
        }
        print(json.dumps(addresses), flush=True)
        return
    lines = [f"trust {server.ca_file}"]
    for user in dict.fromkeys(users):
        lines += [server.url(user), server.url(user, stls=True)]
    if not users:
        lines += [
            f"pop3s://{server.host}:{server.port}",
            f"pop3://{server.host}:{server.stls_port}",
        ]
    print("\n".join(lines), flush=True)


def _wait_for_end_of_input(stop: threading.Event) -> None:
    """Wait for the end of standard input, then set ``stop``.

    ``sys.stdin`` is not used, because no thread may hold its lock when the interpreter exits.
    """
    try:
        while os.read(0, 65_536):
            pass
    except OSError:
        pass  # standard input is closed
    finally:
        stop.set()
