#!/usr/bin/env python3
"""Write the pages of ``docs/reference`` from the code, so that they cannot differ from it.

``--check`` writes nothing and fails if a page differs from the code.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any, TypeGuard

import restante
from restante import config, errors
from restante.app import failures
from restante.cli.command import make_parser
from restante.cli.examples import EXAMPLES
from restante.series import BUCKETS, METRICS

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from tests import faults, rfc  # noqa: E402 - found by the line above
from tests.compare import report  # noqa: E402

SOURCE = Path(restante.__file__).parent
NOTE = "<!-- Made by docs/generate.py from the code; change it there. -->\n"
ORPHAN = "---\norphan: true\n---\n"
"""The beginning of a page that is in no table of contents."""
WRAPPERS, CONNECTION = ("_log_event", "_warn"), "server/connection.py"
"""Names of functions that wrap a module's log; the function of ``Connection`` is inherited."""
LEVELS = ("debug", "info", "warning", "error", "exception")

MEANINGS = {
    "accept paused": "The server has run out of file descriptors or memory. It stops accepting "
    "connections and tries again later.",
    "adopted unique-ids damaged": "The file of adopted unique-ids is damaged. The maildrop is not "
    "opened, because clients would otherwise download all messages again.",
    "alert failed": "An alert about the server could not be sent. The server tries again, at the "
    "latest after an hour.",
    "alert sent": "An alert about the server was sent: an error of this `kind` has begun or is "
    "over.",
    "alerts not saved": "It could not be recorded which alerts were sent. After a restart, some "
    "may be sent again.",
    "bug": "An unexpected error occurred. A traceback follows.",
    "clock jumped": "The clock is ahead of the time that has passed since it was last trusted, by "
    "`seconds`. It is trusted again after a day.",
    "clock not saved": "The file `clock` in the state directory could not be written.",
    "certificate refused": "The renewed certificate is invalid. The server keeps the old one.",
    "connection refused": "A connection was refused because a limit on connections was reached.",
    "metrics refused": "A client that is not in `metrics.allow_from` connected to an address of "
    "`metrics.listen`. The connection was closed without an answer.",
    "deleted upstream": "A message was deleted on its server, for the reason `why` and on the "
    "evidence `evidence`. `message` is its short name.",
    "deletion rule changed": "`keep` or `newest` has changed. The new rule deletes `messages` "
    "messages that were collected earlier.",
    "deletions withheld": "A run would delete more than `limit` messages of an account that is new "
    "or has a new rule, so it deletes none of them.",
    "deletion braked": "A session that used a new password marked more messages as deleted than "
    "the limit for new passwords allows, so none was removed.",
    "delivered": "A message was stored on disk.",
    "delivery refused": "The message for a recipient was not stored. The sender was given the "
    "reason.",
    "expired": "Old mail was removed because of `expire`. It is held and can be restored.",
    "expiry withheld": "The clock may be wrong, so `messages` messages that look expired are kept "
    "for another day.",
    "expiry failed": "Old mail could not be removed. The server tries again in an hour.",
    "guesses not saved": "The record of failed logins could not be written. It is lost if the "
    "server stops now.",
    "line refused": "A line of the passwd-file is invalid. Its user cannot log in.",
    "journal damaged": "Some lines of a session journal cannot be read. The other lines are used.",
    "journal not written": "A session could not be added to the session journal. The mail is not "
    "affected.",
    "login cancelled": "A client began AUTH with the mechanism `mech`, cancelled it and "
    "disconnected without a login.",
    "login did not wait": "The `poll_on_login` time limit expired before all mail was collected. "
    "The login succeeds, and collecting continues.",
    "login impossible": "A login failed although the password may be correct, for example because "
    "the maildrop is in use or a back end does not answer.",
    "login ok": "A user logged in.",
    "login refused": "A login failed. `reason` is for the log only; it is not sent to the client.",
    "wrong sizes in names": "File names in a maildrop contain wrong sizes. From now on, all its "
    "messages are measured.",
    "maildrop indexed": "A login was slow because it had to read many messages.",
    "message not kept": "An incoming message could not be stored. The sender was asked to try "
    "again.",
    "partial delivery not noted": "It could not be recorded which recipients of a message have it. "
    "If the sender tries again, some of them may get a second copy.",
    "message not removed": "A marked message could not be removed at QUIT.",
    "password sprayed": "One password failed for ten users. `ip` is the address of the last client "
    "that tried it.",
    "proxy refused": "A listed load balancer sent no PROXY header, or an invalid one.",
    "purge withheld": "The clock may be wrong, so `messages` messages whose hold seems to be over "
    "are kept for another day. `restante maildrop purge --yes` destroys them now.",
    "purged": "Held messages were destroyed at the end of their hold.",
    "purge failed": "Held mail could not be destroyed. The server tries again in an hour.",
    "purge not recorded": "Messages were purged, but this could not be recorded, so "
    "`until-deleted` will not delete them on the server they were collected from.",
    "quota not counted": "`maildirsize` could not be updated after a delivery. It is written again "
    "later.",
    "read failed": "A message could not be read. Its response was cut off without the final dot.",
    "reload failed": "The new configuration or certificate is invalid. The server keeps the old "
    "one.",
    "reloaded": "The configuration and the certificate were read again. `restart` means that a "
    "restart is required as well. Because of a changed rule, `held` messages will be destroyed "
    "and `expiring` messages will expire, from `at` on.",
    "report failed": "An alert or metrics about an account could not be written. The server tries "
    "again.",
    "rule changed": "A hold or an expiry was made shorter. From `at` on, `held` messages will be "
    "destroyed and `expiring` messages will expire.",
    "seat given up": "A connection without a login was closed to make room for a new one.",
    "session ended": "The server closed a connection because its client broke a rule or reached a "
    "limit.",
    "session end": "A session with a login is over.",
    "size differs": "A message does not have the announced size. The connection was dropped.",
    "control": "An operator ran a command that changes something: `end` ends a session, `reload` "
    "requests a reload. `uid` is the number of the user who ran the command.",
    "control refused": "A process of another user connected to a control socket. `uid` is the "
    "number of this user. The connection was closed without an answer.",
    "control available": "A control socket that was unavailable could be opened.",
    "control unavailable": "A control socket could not be opened. The server runs without it and "
    "tries again, but commands such as `restante status` do not work.",
    "connections limited": "The limit on open files (`ulimit -Hn`, `LimitNOFILE=`) is too low for "
    "the `wanted` connections of `limits.sessions`. It allows `most` connections in all workers.",
    "socket not configured": "systemd passed a socket that is not in the configuration.",
    "stopping": "The server was asked to stop.",
    "tls refused": "A TLS handshake failed.",
    "upstream not polled": "`poll_on_login` could not collect mail from an account. The user gets "
    "the mail that is already in the maildrop.",
    "upstream polled": "`poll_on_login` has collected mail from an account.",
    "users not read": "The user database cannot be read at the moment. The limits announced in "
    "CAPA are not updated, and no mail expires.",
    "worker ended": "A worker process died and is started again.",
    "worker started": "A worker process was started again.",
    "worker hangs": "A worker process does not respond and is killed.",
    "update failed": "Not all marked messages could be removed.",
    "update finished": "The removal of messages that a crash had interrupted was completed.",
}


# -- Configuration


def configuration() -> Iterator[str]:
    """Every section and option."""
    yield """# Configuration

The configuration is a TOML file: the file given with `-c`, otherwise the file named by
`RESTANTE_CONFIG`, otherwise `~/.config/restante/restante.toml`, otherwise
`/etc/restante/restante.toml`. Without a configuration file, restante runs in private mode: only
programs on this machine can connect to the server.

The files `conf.d/*.toml` in the same directory are read after the configuration file, sorted by
name. Environment variables such as `RESTANTE__SERVER__HOSTNAME` override the files, and the command
line overrides everything else.

Unknown options and invalid values are errors; the error message names the file, the line and the
option. `restante check` validates the configuration. `restante check --example` prints a sample
file that lists every option; all options in it are commented out.

Times are written as `90s`, `10min`, `2h`, `14d` or `1w`, sizes as `64KiB`, `50MiB` or `1GiB`. The
value shown for an option is an example.

restante stores its own files in the state directory. This is `$STATE_DIRECTORY`, which systemd
sets, otherwise `/var/lib/restante` if the configuration is in `/etc`, otherwise
`~/.local/state/restante`.
"""
    for name, kind, options in config.sections():
        yield f"## [{name}]\n\n{_paragraph(kind)}\n"
        for each in options:
            example = config.toml(each.metadata["example"])
            yield f"`{each.name} = {example}`\n: {each.metadata['doc']}{_default(each)}\n"


def _default(option: Any) -> str:
    """A sentence about the default, if there is one."""
    if option.name == "hostname":
        return " Default: the name of this machine."
    default = option.default
    if default is None:
        return f" Default: `{config.toml(option.metadata['default'])}`."
    if not default and default != 0:
        return ""
    example = option.metadata["example"]
    if default == option.metadata["convert"](example):
        default = example
    default = round(default) if isinstance(default, float) else default
    return f" Default: `{config.toml(default)}`."


# -- Command line


def command_line() -> Iterator[str]:
    """Yield every command with its options, then the exit codes and the environment."""
    parser = make_parser(is_complete=True)
    summary, _, verbs = (parser.description or "").partition("\n\n")
    yield f"# Command line\n\n{summary}\n\n`restante [OPTIONS] COMMAND …`\n"
    yield f"```text\n{verbs.strip()}\n```\n"
    yield from _arguments(parser)
    yield "These options may come before or after the command.\n"
    yield from _verbs(
        parser, {name for action in parser._actions for name in action.option_strings}
    )
    yield from _exit_code_section()
    yield ENVIRONMENT


def _exit_code_section() -> Iterator[str]:
    yield "## Exit codes\n\nThe codes are those of `sysexits.h`. 75 means that nothing is lost and"
    yield "that trying again may help, for example if a file is locked, a disk is full, or a server"
    yield "does not answer."
    yield "\n| code | meaning |\n|---|---|"
    for code, when in sorted(_exit_codes().items()):
        yield f"| {code} | {', '.join(when)} |"


ENVIRONMENT = """
## Environment

`RESTANTE_CONFIG`
: The configuration file to use if `-c` is not given.

`RESTANTE__SECTION__OPTION`
: The value of an option, instead of the value in the configuration file.

`RESTANTE_PASSWORD`
: The password for `restante fetch`.

`STATE_DIRECTORY`
: The state directory, as set by systemd.

`RUNTIME_DIRECTORY`
: The directory for the control sockets, as set by systemd.

`XDG_STATE_HOME`
: The directory that contains the state directory; `~/.local/state` by default.

`XDG_CONFIG_HOME`
: The directory that contains `restante/restante.toml`; `~/.config` by default.
"""


def _verbs(parser: argparse.ArgumentParser, common: set[str]) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            for name, verb in action.choices.items():
                if name not in helps:  # a deprecated name of another verb
                    continue
                yield f"## {verb.prog}\n" if verb.prog.count(" ") == 1 else f"### {verb.prog}\n"
                yield _sentence(verb.description or helps[name]) + "\n"
                yield from _arguments(verb, common)
                yield from _verbs(verb, common)


def _arguments(
    parser: argparse.ArgumentParser, common: set[str] | frozenset[str] = frozenset()
) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        if action.help == argparse.SUPPRESS or common & set(action.option_strings):
            continue
        shown = action.metavar or action.dest.upper()
        takes = f" {shown}" if action.nargs != 0 and action.option_strings else ""
        names = ", ".join(f"`{name}{takes}`" for name in action.option_strings)
        text = (action.help or "").replace("%%", "%").replace("%(default)s", str(action.default))
        text = _sentence(text or _argument_text(shown, parser.prog))
        required = " Required." if action.required and action.option_strings else ""
        is_optional = action.nargs in ("?", "*") and "ptional" not in text
        yield f"{names or f'`{shown}`'}\n: {text}{required}{' Optional.' * is_optional}\n"


def _argument_text(shown: str, command: str) -> str:
    """The text of an argument that has no help, because its name says enough in a usage line."""
    owner = "account" if " account " in command else "user"
    return {
        "NAME": f"the {owner}'s name",
        "USER": "the user who owns the maildrop" if " maildrop " in command else "the user's name",
        "OLD": f"the {owner}'s current name",
        "NEW": f"the {owner}'s new name",
    }[shown]


def _exit_codes() -> dict[int, list[str]]:
    causes: dict[int, list[str]] = defaultdict(list)
    causes[os.EX_OK].append("success")
    causes[os.EX_USAGE].append("the command line is invalid")
    causes[os.EX_TEMPFAIL].append("any error after which trying again may help")
    causes[os.EX_NOHOST].append("a host name that does not exist")
    causes[os.EX_NOPERM].append("an untrusted certificate, `LoginFailed`")
    causes[os.EX_UNAVAILABLE].append("other restante errors")
    causes[os.EX_IOERR].append("a file or directory that is missing, damaged or inaccessible")
    causes[os.EX_SOFTWARE].append("a bug")
    causes[130].append("stopped by Ctrl-C")
    for kind, code in failures._EXIT_CODES:
        causes[code].append(f"`{kind.__name__}`")
    return causes


# -- Log events


def log_events() -> Iterator[str]:
    """Every event with its level and keys, collected from the source."""
    yield """# Log events

A line consists of the name of an event and of `key=value` pairs. Names and keys do not change
between versions. Input from clients is escaped, so that it cannot forge a line, and passwords are
never logged. With `format = "json"`, spaces in event names are replaced with dots.

| event | level | keys | meaning |
|---|---|---|---|"""
    events: dict[str, tuple[set[str], dict[str, None]]] = defaultdict(lambda: (set(), {}))
    modules = [ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))]
    shared = _wrapper(ast.parse((SOURCE / CONNECTION).read_text()))
    assert shared is not None, f"{CONNECTION} wraps no log"
    for event, level, keys in (each for module in modules for each in _events(module, shared)):
        events[event][0].add(level)
        events[event][1].update(dict.fromkeys(keys))
    assert set(events) == set(MEANINGS), set(events) ^ set(MEANINGS)
    for event, (levels, keys) in sorted(events.items()):
        words = " ".join(f"`{key}`" for key in keys)
        yield f"| {event} | {', '.join(sorted(levels))} | {words} | {MEANINGS[event]} |"
    yield ""


def metrics() -> Iterator[str]:
    """Every metric of the server, with its labels and their values."""
    yield """# Metrics

The server shows these metrics at `/metrics`, in Prometheus's text format.
[Monitoring](../howto/monitoring.md) explains how to get them. Names, types and labels do not change
between versions. The number of series is fixed, and no label contains a user, an address or a
session. Counters include all workers, also those that have ended; they begin at 0 when the server
starts. Times are in seconds, sizes in octets.

| metric | type | labels | meaning |
|---|---|---|---|"""
    for metric in METRICS:
        labels = "; ".join(
            f"`{name}`: {', '.join(f'`{value}`' for value in values)}"
            for name, values in metric.labels.items()
        )
        labels = labels or ("`version`" if metric.name == "build_info" else "")
        kind = metric.kind.prometheus
        yield f"| `restante_{metric.name}` | {kind} | {labels} | {metric.text} |"
    limits = ", ".join(f"{limit:g}" for limit in BUCKETS)
    yield f"""
The buckets of the histograms end at {limits} seconds. In
`restante_login_seconds` and `restante_command_seconds`, times below a millisecond are counted in
the first bucket and as 0 in the sum.

With `metrics` under `[collect]`, the collector writes
[metrics of its own](../howto/collect.md#metrics-for-prometheus) to a file.
"""


def _events(module: ast.Module, shared: ast.AST) -> Iterator[tuple[str, str, list[str]]]:
    """Calls of ``_log``, and of the wrapper of the module or the ``shared`` one."""
    wrapper = _wrapper(module) or shared
    inner = next(call for call in ast.walk(wrapper) if _is_log(call))
    given = [key for each in inner.args for key in _of_dict(each)] + _keys(inner.keywords, wrapper)
    own = [key for key in given if key != "fields"]
    for function in _functions(module):
        for call in ast.walk(function):
            if not isinstance(call, ast.Call) or not call.args or function is wrapper:
                continue
            called, event = ast.unparse(call.func).rpartition(".")[::2], call.args[0]
            if not isinstance(event, ast.Constant) or not isinstance(event.value, str):
                continue
            if called[0] == "_log" and called[1] in LEVELS:
                level = "error" if called[1] == "exception" else called[1]
                yield event.value, level, _keys(call.keywords, function, module)
            elif called[1] in WRAPPERS:
                yield event.value, _level(call, inner), _keys(call.keywords, function, module) + own


def _wrapper(module: ast.Module) -> ast.AST | None:
    """The function or method in which a module wraps its log."""
    named = (each for each in _functions(module) if each.name in WRAPPERS)
    return next((each for each in named if any(map(_is_log, ast.walk(each)))), None)


def _functions(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _is_log(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether it calls a logger, such as ``self._service.log.log``, or ``write_event``."""
    levels = "|".join((*LEVELS, "log"))
    return isinstance(node, ast.Call) and bool(
        re.search(rf"\b_?log\.({levels})$|\.write_event$", ast.unparse(node.func))
    )


def _level(call: ast.Call, inner: ast.Call) -> str:
    given = [ast.unparse(each) for each in call.args[1:]]
    named = [each.removeprefix("logging.").lower() for each in given if "logging." in each]
    of_wrapper = ast.unparse(inner.func).rpartition(".")[2]
    return named[0] if named else "info" if of_wrapper in ("log", "write_event") else of_wrapper


def _keys(keywords: list[ast.keyword], *scopes: ast.AST) -> list[str]:
    """The keys that a call gives, through names of dictionaries too."""
    names: list[str] = []
    for keyword in keywords:
        if keyword.arg == "extra":
            assert isinstance(keyword.value, ast.Dict)
            names += _of_dict(keyword.value.values[0], *scopes)
        elif keyword.arg is None:
            names += _of_dict(keyword.value, *scopes)
        elif keyword.arg not in ("exc_info", "level"):
            names.append(keyword.arg)
    return names


def _of_dict(value: ast.AST, *scopes: ast.AST) -> list[str]:
    if isinstance(value, ast.Dict):
        names = []
        for key, inner in zip(value.keys, value.values, strict=True):
            names += _of_dict(inner, *scopes) if key is None else [ast.literal_eval(key)]
        return names
    if isinstance(value, ast.IfExp):
        return _of_dict(value.body, *scopes) + _of_dict(value.orelse, *scopes)
    for scope in scopes:
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(
                node.value, ast.Dict | ast.IfExp
            ):
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                if ast.unparse(target) == ast.unparse(value):
                    return _of_dict(node.value, *scopes)
    return []


# -- Errors and the Python interface


def error_classes() -> Iterator[str]:
    """The tree of exceptions."""
    yield """# Errors

All exceptions that restante raises on purpose are subclasses of `restante.errors.RestanteError`.
The attribute `code` is the response code that is sent to a POP3 client. The attribute `retry` says
whether the same request may succeed later. The dashes show subclasses: each class is a subclass of
the nearest class above it that has one dash fewer.

| error | code | retry | meaning |
|---|---|---|---|"""
    yield from _tree(errors.RestanteError, 0)
    yield ""


def _tree(kind: type[errors.RestanteError], depth: int) -> Iterator[str]:
    code = f"`[{kind.code}]`" if kind.code else ""
    retry = "yes" if kind.retry else ""
    yield f"| {'– ' * depth}`{kind.__name__}` | {code} | {retry} | {_paragraph(kind)} |"
    for each in sorted(kind.__subclasses__(), key=lambda each: each.__qualname__):
        if each.__module__ == "restante.errors":
            yield from _tree(each, depth + 1)


def python() -> Iterator[str]:
    """The public names of ``restante``."""
    yield "# Python interface\n\nThese are the public names of the module `restante`. A name is"
    yield "imported when it is first used. The [tutorial](../tutorial.md) shows how to use them."
    yield "[Errors](errors.md) lists all exceptions.\n"
    for name in restante.__all__:
        thing = getattr(restante, name)
        if isinstance(thing, type):
            yield f"## {name}\n\n{_doc(thing)}\n"
            yield from _members(thing)
        elif inspect.isfunction(thing):
            yield f"## {name}\n\n```python\n{_signature(thing)}\n```\n\n{_doc(thing)}\n"
        else:
            yield _alias(name)


def _alias(name: str) -> str:
    """A type alias, with the text below it."""
    module = import_module(f"restante.{restante._MODULES[name]}")
    nodes = ast.parse(inspect.getsource(module)).body
    for node, following in pairwise(nodes):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            text = ast.literal_eval(following.value) if isinstance(following, ast.Expr) else ""
            return f"## {name}\n\n```python\n{ast.unparse(node)}\n```\n\n{_text(text)}\n"
    raise LookupError(name)


def _members(kind: type) -> Iterator[str]:
    tree = ast.parse(dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    for at, node in enumerate(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            is_property = any(ast.unparse(each) == "property" for each in node.decorator_list)
            shown = (
                f"{node.name} -> {ast.unparse(node.returns)}"
                if is_property and node.returns
                else _head(node)
            )
            text = ast.get_docstring(node) or f"Whether {node.name.upper()} is announced."
            yield f"`{shown}`\n: {_indented(text)}\n"
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if ast.unparse(target).startswith("_"):
                continue
            following = tree.body[at + 1] if at + 1 < len(tree.body) else None
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = inspect.cleandoc(str(following.value.value))
            kind_of = f": {ast.unparse(node.annotation)}" if isinstance(node, ast.AnnAssign) else ""
            text = text or _inherited_text(kind, ast.unparse(target))
            yield f"`{ast.unparse(target)}{kind_of}`\n: {_indented(text)}\n"


def _inherited_text(kind: type, name: str) -> str:
    """The text of an attribute in a base class, or of the argument of ``connect``."""
    for base in kind.__mro__[1:-1]:
        if not base.__module__.startswith("restante"):
            continue
        tree = ast.parse(dedent(inspect.getsource(base))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for node, following in pairwise(tree.body):
            is_it = isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name
            if is_it and isinstance(following, ast.Expr):
                return inspect.cleandoc(ast.literal_eval(following.value))
    listed = re.search(
        rf"^    {name}: (.*(?:\n {{5,}}.*)*)", inspect.getdoc(restante.connect) or "", re.MULTILINE
    )
    assert listed, f"{kind.__name__}.{name} has no docstring"
    return " ".join(listed[1].split())


def _signature(function: Callable[..., Any]) -> str:
    node = ast.parse(dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return _head(node)


def _head(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    given = node.args
    parts = ast.unparse(given).removeprefix("self").removeprefix(", ")
    if len(parts) > 80:  # a line for each
        words = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        names = [each.arg for each in words[1:]]
        for name in names:
            parts = parts.replace(f", {name}: ", f",\n    {name}: ")
        parts = f"\n    {parts},\n".replace(", *,", ",\n    *,")
        parts = parts.replace(", **", ",\n    **")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    prefix = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"{prefix}{node.name}({parts}){returns}"


def _doc(thing: Any) -> str:
    return _text(inspect.getdoc(thing) or "")


def _text(docstring: str) -> str:
    """A docstring as Markdown; arguments and exceptions as lists."""
    lines = []
    for line in docstring.replace("``", "`").splitlines():
        name, _, rest = line.strip().partition(": ")
        raised = line.startswith("    ") and name.isidentifier()
        lines.append(f"- `{name}`: {rest}" if raised else line.strip())
        if line.startswith(("Args:", "Raises:")):
            lines.append("")
    return "\n".join(lines)


def _indented(docstring: str) -> str:
    return _text(docstring).replace("\n", "\n  ").replace("\n  \n", "\n\n")


def _paragraph(thing: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(_doc(thing).split("\n\n")[0].split())


def _sentence(text: str) -> str:
    first = text.partition(" ")[0].rstrip(",.:;")
    if first.replace("-", "").isalpha():  # not a literal such as ann@example.org or pop3s://host
        text = text[:1].upper() + text[1:]
    return text if not text or text[-1] in ".?…" else text + "."


# -- Requirements of the RFCs


def requirements() -> Iterator[str]:
    """Requirement, level, test: from ``docs/rfc.toml`` and the tests."""
    named = rfc.named()
    listed = rfc.requirements()
    shown = sum(each.id in named and not each.refused for each in listed)
    refused = sum(bool(each.refused) for each in listed)
    yield f"""# Requirements of the RFCs

This page lists {len(listed)} requirements: {shown} with tests, {refused} that restante
deliberately does not meet, for the reasons given, and
{sum(bool(each.not_yet) for each in listed)} not met yet or not tested completely.
"Fact" marks a statement of an RFC without MUST or SHOULD. "Ours" marks a requirement that comes
from experience and not from an RFC.
"""
    areas = rfc.areas()
    for each in listed:
        if each.id in areas:
            yield f"\n## {areas[each.id]}\n"
            yield "| requirement | level, source, side | tests |\n|---|---|---|"
        origin = ", ".join((each.level, _sources(each.sources), each.side)).replace(", ,", ",")
        tests = _evidence(each, named.get(each.id, []))
        yield f"| **{each.id}** {each.text} | {origin} | {tests} |"


def _sources(sources: tuple[str, ...]) -> str:
    """``RFC 1939 §3, §4, RFC 1957``"""
    words, last = [], ""
    for source in sources:
        number, _, section = source.partition(" ")
        words.append(section if number == last and section else f"RFC {source}")
        last = number
    return ", ".join(words)


def _evidence(requirement: rfc.Requirement, tests: list[str]) -> str:
    reason = ""
    if requirement.refused:
        reason = f"deliberately not met: {_sentence(requirement.refused)} "
    elif requirement.not_yet:
        reason = f"not met yet: {_sentence(requirement.not_yet)} "
    shown = [_short(test) for test in dict.fromkeys(tests)]
    return (reason + " ".join(f"`{test}`" for test in shown)).rstrip()


def _short(test: str) -> str:
    path, _, name = test.partition("::")
    if path.endswith(".txt"):
        return path.removeprefix("tests/transcripts/").removesuffix(".txt")
    return f"{path.removeprefix('tests/').removesuffix('.py')}: {name}".removesuffix(": ")


# -- Attacks and faults


def attacks() -> Iterator[str]:
    """Fault, test: from ``docs/faults.toml``."""
    yield """# Attacks and faults, and how restante handles them

This page lists known attacks on mail servers and clients, and faults of the machine, the disk and
the network. Each row names the tests that show how restante handles the fault. Test names contain
the path below `tests`; names without a colon are transcripts in `tests/transcripts`."""
    area = ""
    for each in faults.faults():
        if each.area != area:
            area = each.area
            yield f"\n## {area}\n\n| fault and how it is handled | tests |\n|---|---|"
        shown = " ".join(f"`{test}`" for test in each.tests)
        yield f"| **{each.number}** {each.text} | {shown or each.reason} |"


# -- Comparison of collectors


def comparison() -> Iterator[str]:
    """The results of ``./dev compare collectors``."""
    return report.page(report.read())


# -- Manual pages

# Files with their contents and the commands that read or write them. tests/cli/test_examples.py
# compares the names with the files that the examples open.
_ALL = "account auth check collect deliver doctor import maildrop serve user"
_STATE = "$STATE_DIRECTORY"
FILES = (
    ("restante.toml", "the configuration; see restante.toml(5)", _ALL),
    ("conf.d/*.toml", "parts of the configuration, for example one file for each account", _ALL),
    ("users.sqlite3", "users, password hashes, app passwords and permissions", _ALL),
    ("mail", "the maildrops, unless store.path names another directory",
     "collect deliver doctor import maildrop serve user"),
    ("ledger.sqlite3", "the record of collected messages", "account collect import serve"),
    ("passwords", "passwords of the accounts on other servers", "account collect serve"),
    ("tokens", "encrypted OAuth 2 tokens of these accounts", "account collect serve"),
    ("guesses", "recent failed logins", "auth serve"),
    ("clock", "the latest time known to be correct, used to detect a wrong clock",
     "doctor maildrop serve user"),
    ("intake.sqlite3",
     "the record of deliveries that failed for some recipients, used to avoid duplicates", "serve"),
    ("tls", "the certificate that was created at the first start", "doctor serve"),
    ("first-password", "the password of the first user", "serve"),
    ("control", "the control sockets, if there is no runtime directory",
     "doctor log reload serve sessions status"),
)  # fmt: skip
_FILES_OF = {
    "backup": "This command reads the configuration files and all files in the state directory and "
    "in the maildrops, except locks and files that are created again automatically.\n",
    "restore": "This command writes the configuration files and all files in the state directory "
    "and in the maildrops. While it runs, and after an interruption, the state directory contains "
    "`restore.incomplete`, and other commands refuse to work with it.\n",
    "demo": "This command uses only temporary files, which it removes at the end.\n",
    "init": (
        "This command writes `restante.toml`: root in `/etc/restante`, an ordinary user in\n"
        "`~/.config/restante`. It creates the users database, the certificate and the maildrops'\n"
        "directory.\n"
    ),
    "fetch": "This command writes to the directory, Maildir or mbox that `--to` names.\n",
}
_SEE_ALSO = {
    "serve": ("check", "user", "deliver"), "user": ("auth", "maildrop"),
    "maildrop": ("deliver", "user"), "deliver": ("maildrop", "serve"),
    "import": ("maildrop", "account"), "account": ("collect", "fetch"),
    "collect": ("account", "fetch"), "fetch": ("collect",), "check": ("serve", "doctor"),
    "doctor": ("check", "status"),
    "auth": ("user", "serve"), "demo": ("serve",), "status": ("sessions", "check"),
    "reload": ("check", "status"), "log": ("status", "maildrop"),
    "sessions": ("status", "maildrop"), "init": ("serve", "user"),
    "backup": ("restore", "maildrop"), "restore": ("backup", "maildrop", "check"),
}  # fmt: skip


def manual_pages() -> dict[str, Callable[[], Iterator[str]]]:
    """The pages that only the man builder of Sphinx reads (conf.py)."""
    parser = make_parser(is_complete=True)
    verbs = _actions(parser)
    pages = {"man/restante.md": partial(_manual, parser, verbs)}
    for verb, (summary, below) in verbs.items():
        pages[f"man/restante-{verb}.md"] = partial(_manual_of_verb, verb, summary, below, parser)
    return {**pages, "man/restante.toml.md": _manual_of_configuration}


def _actions(parser: argparse.ArgumentParser) -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Return the commands, or a command's actions, with their summaries; omit deprecated names."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {each.dest: each.help or "" for each in action._choices_actions}
            return {name: (text, action.choices[name]) for name, text in summaries.items()}
    return {}


def _manual(
    parser: argparse.ArgumentParser, verbs: dict[str, tuple[str, argparse.ArgumentParser]]
) -> Iterator[str]:
    yield "# restante\n\n## Synopsis\n\n`restante [OPTIONS] COMMAND …`\n\n## Description\n"
    yield "A POP3 mail system that serves mail and collects mail from other servers.\n"
    for verb, (summary, _) in verbs.items():
        yield f"restante-{verb}(1)\n: {_sentence(summary)}\n"
    yield "## Options\n\nThese options may come before or after the command.\n"
    yield from _arguments(parser)
    yield from _examples(EXAMPLES[verb][0] for verb in verbs)
    yield "## Files\n\nThe manual page of each command lists its files.\n"
    yield from _files()
    yield from _exit_code_section()
    yield ENVIRONMENT
    yield from _see_also(f"restante-{verb}" for verb in verbs)


def _manual_of_verb(
    verb: str, summary: str, parser: argparse.ArgumentParser, main: argparse.ArgumentParser
) -> Iterator[str]:
    common = {name for action in main._actions for name in action.option_strings}
    usage = parser.format_usage().removeprefix("usage: ")
    yield f"# restante-{verb}\n\n## Synopsis\n\n```text\n{dedent(usage).strip()}\n```\n"
    yield f"## Description\n\n{_sentence(parser.description or summary)}\n"
    yield from _arguments(parser, common)
    for name, (text, below) in _actions(parser).items():
        yield from _manual_of_action(f"{verb} {name}", text, below, common)
    below = [each for name, each in EXAMPLES.items() if name.split()[0] == verb]
    yield from _examples(dict.fromkeys(each for examples in below for each in examples))
    yield f"## Files\n\n{_FILES_OF.get(verb, '')}"
    yield from _files(verb) if verb not in _FILES_OF else ()
    yield from _see_also(("restante", *(f"restante-{each}" for each in _SEE_ALSO[verb])))


def _manual_of_action(
    name: str, text: str, parser: argparse.ArgumentParser, common: set[str]
) -> Iterator[str]:
    yield f"### restante {name}\n\n{_sentence(parser.description or text)}\n"
    yield from _arguments(parser, common)
    for below, (summary, its) in _actions(parser).items():
        yield from _manual_of_action(f"{name} {below}", summary, its, common)


def _manual_of_configuration() -> Iterator[str]:
    intro, *sections = configuration()
    yield "# restante.toml\n\n## Synopsis\n\n`restante.toml`, `conf.d/*.toml`\n\n## Description\n"
    yield intro.partition("\n\n")[2]
    yield from (section.replace("## [", "### [", 1) for section in sections)
    yield "## Examples\n\nA server with a certificate from a certification authority:\n\n```toml"
    yield EXAMPLE_OF_CONFIGURATION + "```\n\n## Files\n"
    yield from _files("check")
    yield "## See also\n\nrestante(1), restante-check(1), restante-serve(1)"


EXAMPLE_OF_CONFIGURATION = """\
[server]
hostname = "mail.example.org"
listen = ["pop3s://[::]:995", "pop3://[::]:110"]

[tls]
mode = "files"
cert = "/etc/restante/fullchain.pem"
key = "/etc/restante/privkey.pem"
"""


def _examples(examples: Iterable[str]) -> Iterator[str]:
    yield "## Examples\n\n```text\n" + "\n".join(examples) + "\n```\n"


def _files(verb: str = "") -> Iterator[str]:
    """Yield the files that a command uses, or all files."""
    for name, text, verbs in FILES:
        if not verb or verb in verbs.split():
            place = "" if name.endswith(".toml") else f"{_STATE}/"
            yield f"`{place}{name}`\n: {_sentence(text)}\n"


def _see_also(names: Iterable[str]) -> Iterator[str]:
    pages = [*(f"{name}(1)" for name in names), "restante.toml(5)"]
    yield f"## See also\n\n{', '.join(pages)}"


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "comparison.md": comparison,
    "reference/command-line.md": command_line,
    "reference/configuration.md": configuration,
    "reference/errors.md": error_classes,
    "reference/log-events.md": log_events,
    "reference/metrics.md": metrics,
    "reference/python.md": python,
    "faults.md": attacks,
    "rfc.md": requirements,
}


def main(arguments: list[str]) -> int:
    stale = []
    for name, page in {**PAGES, **manual_pages()}.items():
        head = ORPHAN + NOTE if name.startswith("man/") else NOTE
        path, text = DOCS / name, head + "\n" + "\n".join(page()).rstrip("\n") + "\n"
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if arguments != ["--check"]:
                path.write_text(text)
    if stale and arguments == ["--check"]:
        print(f"out of date: {' '.join(stale)}; run docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
