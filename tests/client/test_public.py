"""The names of ``restante``: complete, exact, and cheap to import."""

from __future__ import annotations

import ast
import asyncio
import copy
import inspect
import pickle
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

import restante
from restante.errors import LoginFailed
from restante.testing import Pop3Server

from .shells import kinds, opened

SOURCE = Path(restante.__file__)


def test_all_names_are_listed_once_and_can_be_had() -> None:
    assert sorted(restante.__all__) == sorted(set(restante.__all__)) == sorted(restante._MODULES)
    for name in restante.__all__:
        assert getattr(restante, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        restante.nonsense  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(SOURCE.read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom) and node.level]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert seen == restante._MODULES


BUILT_IN = {
    *("str", "int", "bytes", "float", "bool", "None", "object", "tuple", "list", "type", "slice"),
    *("Callable", "Iterable", "Iterator", "Sequence", "Mapping", "Awaitable", "AsyncIterator"),
    *("Any", "EmailMessage", "Literal", "Self", "frozenset", "ssl", "socket", "SSLContext"),
    *("PathLike", "TracebackType", "BaseException", "Exception", "NoReturn", "Generator"),
}


def test_every_type_in_a_public_signature_is_public() -> None:
    unknown = set()
    for thing in (getattr(restante, name) for name in restante.__all__):
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        members = [each for name, each in vars(thing).items() if name[0] != "_"]
        for function in [*filter(inspect.isfunction, members), thing]:
            if inspect.isfunction(function):
                words = " ".join(map(str, function.__annotations__.values()))
                unknown |= set(re.findall(r"\b[A-Za-z]\w+", words)) - BUILT_IN
    assert unknown - set(restante.__all__) == set()


def test_importing_costs_nothing_until_a_name_is_used() -> None:
    program = (
        "import sys; before = set(sys.modules); import restante; "
        "print(*[n for n in set(sys.modules) - before if n not in ('restante', '__future__')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, [])


# A secret.


@dataclass
class Settings:
    password: restante.Secret


def test_a_secret_does_not_show_itself() -> None:
    secret = restante.Secret("tan staaf")
    shown = [repr(secret), str(secret), f"{secret}", repr(Settings(secret))]
    shown += [repr([secret]), repr(asdict(Settings(secret)))]
    assert not any("staaf" in each for each in shown)
    assert secret.reveal() == "tan staaf"
    assert copy.copy(secret) == copy.deepcopy(secret) == restante.Secret("tan staaf")
    assert secret != restante.Secret("tan")
    assert secret != "tan staaf"
    assert len({secret, restante.Secret("tan staaf")}) == 1
    assert (bool(secret), bool(restante.Secret(""))) == (True, False)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        restante.Secret(b"tan staaf")  # type: ignore[arg-type]


@kinds
@pytest.mark.parametrize("what", ["password", "token", "function"])
def test_a_secret_is_taken_for_a_password_or_a_token(kind: str, what: str) -> None:
    async def main(server: Pop3Server) -> None:
        secret = restante.Secret("s3cret")
        given: dict[str, Any] = {"token": lambda: secret} if what == "function" else {what: secret}
        url = f"pop3s://ann@localhost:{server.port}"
        async with opened(kind, url, ca_file=server.ca_file, **given) as held:
            assert await held.call("stat") == (0, 0)
        wrong = {name: restante.Secret("wr0ng") for name in given}
        with pytest.raises(LoginFailed) as caught:
            async with opened(kind, url, ca_file=server.ca_file, **wrong):
                pass
        assert "wr0ng" not in str(caught.value)

    with Pop3Server(users={"ann": "s3cret"}, sasl=["PLAIN", "OAUTHBEARER"]) as server:
        asyncio.run(main(server))
