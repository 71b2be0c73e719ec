"""``restante init``: set up a server with its first user."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..app import setup, setup_advice
from ..app.failures import describe
from ..auth import passwords
from ..auth.names import check_new_name
from ..errors import UnsafeArgument
from ..regular import read_regular
from . import common

_SELF_SIGNED = "self-signed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Set up a server: write its configuration, create a certificate and the first user, and "
        "start it with systemd. You are asked about everything that no option specifies. Root "
        "sets up the server of this machine; an ordinary user sets up a private server. A second "
        "run does what is still missing, and overwrites nothing."
    )
    parser.add_argument(
        "address", metavar="ADDRESS", help="the first user's address, such as ann@example.org"
    )
    parser.add_argument("--hostname", metavar="NAME", help="the server's host name")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--self-signed", action="store_true", help="create a self-signed certificate"
    )
    group.add_argument(
        "--cert", type=Path, metavar="FILE", help="use this certificate with its chain (PEM)"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="the key of --cert (PEM)")
    parser.add_argument(
        "--mail",
        choices=setup.MAIL_SOURCES,
        help="receive mail over LMTP from a mail server such as Postfix, over SMTP from other "
        "servers, or not at all",
    )
    parser.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="read the first user's password from the first line of FILE instead of generating one",
    )
    parser.add_argument("--no-start", action="store_true", help="do not start it with systemd")
    parser.add_argument("--yes", action="store_true", help="use the defaults and ask nothing")
    parser.add_argument(
        "--print", action="store_true", help="print the configuration and change nothing"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Set up a server.

    Raises:
        UnsafeArgument: something must be asked, but standard input is not a terminal.
        ConfigurationError: the existing configuration differs from the plan, or a precondition is
            missing; nothing was changed.
    """
    place = setup.place(options.config)
    plan = setup.plan(place, _choices(options, place))
    if options.print:
        print(plan.text, end="")
        return os.EX_OK
    plan = setup.check(plan)
    password = common.first_line(options.password_file) if options.password_file else ""
    work = setup.Setup(plan, password or passwords.generate())
    steps = work.missing_steps()
    if steps and not _is_confirmed(options, plan, steps):
        common.say("Nothing was changed.")
        return os.EX_OK
    _carry_out(options, work, steps)
    if options.json:
        _print_json(plan, work, steps)
        return os.EX_OK
    if not steps:
        common.say("Everything is set up already; nothing was changed.")
    _print_advice(plan, work, shows_password=not password)
    return os.EX_OK


# Questions


def _choices(options: argparse.Namespace, place: setup.Place) -> setup.Choices:
    """Return the user's decisions: from options, from the terminal, or the defaults.

    Raises:
        UnsafeArgument: the options contradict each other, or the terminal is missing.
    """
    address = check_new_name(options.address)
    if bool(options.cert) != bool(options.key):
        raise UnsafeArgument("--cert and --key must be given together")
    proposed = setup.default_hostname(place, address)
    hostname = options.hostname or _ask_until_valid(
        options, "Host name of the server", proposed, "--hostname", setup.check_hostname
    )
    certificate, key = options.cert, options.key
    if not certificate and not options.self_signed:
        question = "Certificate file (PEM), or self-signed"
        option = "--self-signed or --cert"
        answer = _ask_until_valid(options, question, _SELF_SIGNED, option, _check_certificate)
        if answer != _SELF_SIGNED:
            certificate = Path(answer)
            question = "Key file (PEM)"
            key = Path(_ask_until_valid(options, question, "", "--key", _check_file))
    mail = options.mail or _ask_for_mail_source(options)
    return setup.Choices(address, hostname, mail, certificate, key, starts=not options.no_start)


def _check_file(answer: str) -> None:
    read_regular(Path(answer))


def _check_certificate(answer: str) -> None:
    if answer != _SELF_SIGNED:
        _check_file(answer)


def _ask_until_valid(
    options: argparse.Namespace,
    question: str,
    default: str,
    option: str,
    check: Callable[[str], None],
) -> str:
    """Return an answer for which ``check`` raises neither OSError nor UnsafeArgument."""
    while True:
        answer = _ask(options, question, default, option)
        try:
            check(answer)
        except (OSError, UnsafeArgument) as error:
            if options.yes:  # the default would be used again
                raise
            common.say(describe(error))
        else:
            return answer


def _ask_for_mail_source(options: argparse.Namespace) -> str:
    sources = setup.MAIL_SOURCES
    while True:
        question = "Mail arrives by lmtp (from Postfix), by smtp (directly), or none"
        answer = _ask(options, question, sources[0], "--mail")
        if answer in sources:
            return answer
        common.say(f"Enter {', '.join(sources[:-1])} or {sources[-1]}.")


def _ask(options: argparse.Namespace, question: str, default: str, option: str) -> str:
    """Return the answer to a question; the default if the answer is empty, or with ``--yes``.

    The question is printed to standard error, because standard output may be a file.

    Raises:
        UnsafeArgument: standard input is not a terminal.
        EOFError: the terminal was closed.
    """
    if options.yes and default:
        return default
    if not sys.stdin.isatty():
        raise UnsafeArgument(f"standard input is not a terminal; add {option}, or --yes")
    while True:
        print(f"{question}{f' [{default}]' if default else ''}: ", end="", file=sys.stderr)
        sys.stderr.flush()
        if not (line := sys.stdin.readline()):
            raise EOFError
        if answer := line.strip() or default:
            return answer


def _is_confirmed(
    options: argparse.Namespace, plan: setup.Plan, steps: Sequence[setup.Step]
) -> bool:
    """Show the plan, and return whether the user agrees."""
    common.say("This will:")
    for step in steps:
        common.say(f"  {step.text}")
    if not plan.place.file.exists():
        common.say(f"\nThe configuration, {plan.place.file}:")
        for line in plan.text.splitlines():
            common.say(f"  {line}".rstrip())
    common.say("")
    return _ask(options, "Continue (yes or no)", "yes", "--yes").lower() in ("y", "yes")


# Work and results


def _carry_out(options: argparse.Namespace, work: setup.Setup, steps: Sequence[setup.Step]) -> None:
    """Carry out the steps; if one fails, say what was done and how to continue."""
    for number, step in enumerate(steps):
        try:
            step.act()
        except BaseException:
            common.say(f"failed: {step.text}")
            if number == 0:
                common.say("Nothing was changed.")
            else:
                common.say("Done before: " + "; ".join(each.text for each in steps[:number]) + ".")
                common.say("Remove the cause, and run the same command again to do the rest.")
            if work.password and not options.password_file:
                common.say(f"The password of {work.user}, shown only once: {work.password}")
            raise
        common.say(f"done: {step.text}")


def _print_json(plan: setup.Plan, work: setup.Setup, steps: Sequence[setup.Step]) -> None:
    common.print_json(
        "init",
        config=str(plan.place.file),
        done=[step.text for step in steps],
        user=work.user,
        password=work.password or None,
        fingerprint=work.fingerprint() or None,
        dns=setup_advice.dns_records(plan),
        postfix=setup_advice.postfix_lines(plan),
        client=setup_advice.client_settings(plan),
    )


def _print_advice(plan: setup.Plan, work: setup.Setup, *, shows_password: bool) -> None:
    """Print what users and the operator need next."""
    settings = setup_advice.client_settings(plan)
    rows = list(settings.items())
    if work.password and shows_password:
        rows.append(("password", f"{work.password} (shown only once)"))
    print("Mail clients:")
    common.print_fields(rows)
    if fingerprint := work.fingerprint():
        print("\nThe certificate is self-signed. Its SHA-256 fingerprint:")
        for line in common.halves(fingerprint):
            print(f"  {line}")
    _print_lines("DNS records:", setup_advice.dns_records(plan))
    _print_lines("Postfix, in main.cf:", setup_advice.postfix_lines(plan))
    _print_lines("Next:", setup_advice.next_commands(plan))


def _print_lines(heading: str, lines: Sequence[str]) -> None:
    if lines:
        print(f"\n{heading}")
        for line in lines:
            print(f"  {line}")
