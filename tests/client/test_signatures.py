"""The public functions as shown by editors and ``help()``."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import restante
from restante.client.connecting import Limits
from restante.client.remote import Remote
from restante.testing import Pop3Server

from .shells import kinds, opened

CONNECTS = [restante.connect, restante.connect_blocking]


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def test_both_connects_take_the_same_arguments() -> None:
    assert parameters(restante.connect) == parameters(restante.connect_blocking)


@pytest.mark.parametrize("connect", CONNECTS)
def test_every_argument_is_explicit_and_explained(connect: Any) -> None:
    """There is no ``**options``, which editors cannot complete."""
    where, *others = parameters(connect).values()
    assert where.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert {each.kind for each in others} == {inspect.Parameter.KEYWORD_ONLY}
    text = inspect.getdoc(connect) or ""
    explained = text.partition("Args:\n")[2].partition("\nRaises:")[0]
    names = [line.split(":")[0].strip() for line in explained.splitlines() if line[4:5] != " "]
    assert names == list(parameters(connect))


@pytest.mark.parametrize("connect", CONNECTS)
def test_help_stands_alone(connect: Any) -> None:
    text = inspect.getdoc(connect) or ""
    assert "See ``" not in text
    for name in ("TLSUnavailable", "LoginFailed", "ConnectionLost", "CommandFailed"):
        assert f"    {name}: " in text


def test_both_clients_explain_every_method_in_the_same_words() -> None:
    """No docstring refers to the other client; at least the first lines are equal."""
    names = {name for name, _ in documented(restante.Client)}
    assert names == {name for name, _ in documented(restante.BlockingClient)}
    for name in names:
        ours = inspect.getdoc(getattr(restante.Client, name)) or ""
        theirs = inspect.getdoc(getattr(restante.BlockingClient, name)) or ""
        assert ours.splitlines()[0] == theirs.splitlines()[0], name
        assert "Client." not in ours + theirs, name


@pytest.mark.parametrize("connect", CONNECTS)
def test_options_are_the_arguments_that_can_be_passed_on(connect: Any) -> None:
    options, hints = get_type_hints(restante.Options), get_type_hints(connect)
    assert set(options) == set(hints) - {
        "where",
        "return",
        "timeout",
        "deadline",
        "max_size",
        "record",
    }
    assert options == {name: hints[name] for name in options}


def documented(kind: type) -> list[tuple[str, Any]]:
    return [(name, each) for name, each in vars(kind).items() if name[0] != "_"]


def public() -> list[Any]:
    return [getattr(restante, name) for name in restante.__all__]


def test_every_public_name_has_types_that_can_be_read() -> None:
    """For programs that make forms, commands or mocks from them."""
    for thing in public():
        if inspect.isclass(thing):
            functions = [each for _, each in documented(thing) if inspect.isfunction(each)]
        else:
            functions = [thing] if inspect.isfunction(thing) else []
        for function in functions:
            assert "return" in get_type_hints(function), function


@kinds
@pytest.mark.parametrize("convert", [str, Path])
def test_paths_may_be_texts(kind: str, convert: Any) -> None:
    async def main(server: Pop3Server) -> None:
        trust = convert(server.ca_file)
        async with opened(kind, server.url("ann"), ca_file=trust) as held:
            assert await held.call("stat") == (0, 0)

    with Pop3Server() as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("convert", [str, Path])
def test_a_certificate_may_be_texts(convert: Any, certificate: tuple[Path, Path]) -> None:
    paths = tuple(convert(each) for each in certificate)
    context = Remote.parse("pop3s://ann@localhost", certificate=paths).context()
    assert isinstance(context, ssl.SSLContext)


class Port(IntEnum):
    POP3S = 2995


@pytest.mark.parametrize("seconds", [5, 5.0, Decimal(5), Fraction(5)])
def test_seconds_may_be_any_number(seconds: Any) -> None:
    limits = Limits(seconds, seconds)
    assert (limits.timeout, limits.deadline) == (5.0, 5.0)
    assert limits.timeout_reason == "the server was silent for 5 s"


def test_a_port_may_be_any_whole_number() -> None:
    remote = Remote.parse("mail.example.org", user="ann", password="x", port=Port.POP3S)
    assert (remote.port, type(remote.port)) == (2995, int)
