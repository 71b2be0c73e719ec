"""``restante.poplib`` type-checks wherever the ``poplib`` of the standard library does.

The check is by mypy with its stub (typeshed), before and after Python 3.12, which removed
arguments.
"""

from __future__ import annotations

import re
from pathlib import Path

import mypy
import pytest
from mypy import api

STUB = Path(mypy.__file__).parent / "typeshed" / "stdlib" / "poplib.pyi"
VERSIONS = ["3.11", "3.12"]

PROGRAM = '''
from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

MODULE


def fetch(host: str, user: str, password: str, context: ssl.SSLContext | None) -> list[bytes]:
    server = poplib.POP3_SSL(host, 995, timeout=10, context=context)
    server.set_debuglevel(1)
    print(server.getwelcome().decode())
    server.user(user)
    server.pass_(password)
    count, size = server.stat()
    found: list[bytes] = []
    try:
        for number in range(1, count + 1):
            response, lines, octets = server.retr(number)
            assert response.startswith(b"+OK") and octets <= size
            found.append(b"\\r\\n".join(lines))
            for line in lines:
                print(line.decode("ascii", "replace"))
            server.dele(number)
    except poplib.error_proto as error:
        print(error.args[0])
        server.rset()
    finally:
        server.quit()
    return found


def numbers(server: poplib.POP3) -> Iterator[tuple[int, str]]:
    for line in server.uidl()[1]:
        number, _, name = line.decode().partition(" ")
        yield int(number), name
    one: bytes = server.uidl(1)
    print(one.split(b" ")[2])
    response, listing, octets = server.list()
    print(len(server.list("1")[1]), response, listing[0].split(), octets + 1)
    print(server.list(which=None)[2] + 1)


def other_commands(server: poplib.POP3) -> bool:
    header: list[bytes] = server.top("1", 0)[1]
    server.top(which=1, howmuch=10)
    server.apop("ann", "secret")
    server.rpop("ann")
    server.utf8()
    server.noop()
    has_top: bool = "TOP" in server.capa() and server.capa()["TOP"] == []
    return has_top and bool(header)


def plain(host: str, port: int = poplib.POP3_PORT) -> poplib.POP3:
    server = poplib.POP3(host, port, 30.0)
    if "STLS" in server.capa():
        answer: bytes = server.stls()
        server.stls(context=ssl.create_default_context())
        print(answer.decode())
    connection: socket.socket = server.sock
    connection.settimeout(60)
    file: BinaryIO = server.file
    print(file.closed, server.host.upper(), server.port + 1, server.encoding, server.welcome[:3])
    return server


class Counting(poplib.POP3_SSL):
    """As programs do that limit the time, or count."""

    def __init__(self, host: str, limit: float) -> None:
        super().__init__(host, timeout=limit)
        self.lines = 0

    def _getline(self) -> tuple[bytes, int]:
        self.lines += 1
        line: tuple[bytes, int] = super()._getline()  # type: ignore[misc]
        return line

    def _create_socket(self, timeout: float) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout)

    def _putcmd(self, line: str, *more: int) -> None:
        super()._putcmd(line)  # type: ignore[misc]

    def retr(self, which: Any) -> tuple[bytes, list[bytes], int]:
        return super().retr(which)

    def close(self) -> None:
        super().close()


if sys.version_info < (3, 12):
    poplib.POP3_SSL("localhost", 995, None, None, 10)
    print(poplib.POP3_SSL("localhost").keyfile)
else:
    poplib.POP3_SSL("localhost", port=poplib.POP3_SSL_PORT, timeout=1)


def make(kind: type[poplib.POP3]) -> Callable[[str], bytes]:
    return kind("localhost").user


print(make(poplib.POP3), make(poplib.POP3_SSL), poplib.CRLF + poplib.CR + poplib.LF)
print(poplib.HAVE_SSL)
'''


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for mypy, which takes seconds without one."""
    return tmp_path_factory.mktemp("mypy")


def checked(folder: Path, cache: Path, version: str, **files: str) -> str:
    """Return the errors that mypy finds in strict mode."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    arguments = ["--strict", "--python-version", version, "--config-file", "", "--no-error-summary"]
    arguments += ["--cache-dir", str(cache), "--warn-unreachable"]
    out, errors, _ = api.run([*arguments, *(str(folder / f"{name}.py") for name in files)])
    assert errors == ""
    return out


def without_ignores(text: str) -> str:
    """Remove comments that are needed only where the standard stub lacks a method."""
    return text.replace("  # type: ignore[misc]", "")


def protocols() -> str:
    """Return each class of the stub as a protocol, so that mypy compares all members."""
    text = STUB.read_text()
    classes = text[text.index("class POP3:") :]
    classes = re.sub(r"class POP3:", "class StandardPOP3(Protocol):", classes)
    classes = re.sub(r"class POP3_SSL\(POP3\):", "class StandardSSL(Protocol):", classes)
    # Constructors are not part of a protocol; PROGRAM calls them.
    classes = re.sub(
        r"(?m)^( +)(?:@overload\n +)?(?:@deprecated\((?:.|\n)*?\)\n +)?def __init__"
        r"(?:.|\n)*?-> None: \.\.\.$",
        r"\1pass",
        classes,
    )
    classes = re.sub(r"(?m)^ +@overload\n( +)pass$", r"\1pass", classes)
    head = text[: text.index("class error_proto")].replace("__all__", "_all")
    return f"""
from __future__ import annotations
{head}
from typing import Protocol
{classes}
"""


CHECK = """
from restante import poplib
from standard import StandardPOP3, StandardSSL

def plain(server: poplib.POP3) -> StandardPOP3:
    return server

def secure(server: poplib.POP3_SSL) -> StandardSSL:
    return server

def both(server: poplib.POP3_SSL) -> StandardPOP3:
    return server
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_types_of_programs_and_of_each_public_name(
    tmp_path: Path, cache: Path, version: str
) -> None:
    """Every program that mypy accepts with ``import poplib`` is accepted with ours."""
    stub = protocols()
    assert len(re.findall(r"(?m)^ +def (\w+)", stub)) > 20, "the stub looks otherwise than it did"
    (tmp_path / "standard.pyi").write_text(stub)
    theirs = PROGRAM.replace("MODULE", "import poplib")
    ours = without_ignores(PROGRAM.replace("MODULE", "from restante import poplib"))
    assert checked(tmp_path, cache, version, theirs=theirs, ours=ours, check=CHECK) == ""


@pytest.mark.slow
def test_type_check_finds_differences(tmp_path: Path, cache: Path) -> None:
    """Otherwise the other test would prove nothing."""
    (tmp_path / "standard.pyi").write_text(protocols().replace("-> tuple[int, int]", "-> str"))
    wrong = PROGRAM.replace("MODULE", "from restante import poplib") + "poplib.POP3(7)\n"
    out = checked(tmp_path, cache, VERSIONS[-1], check=CHECK, wrong=wrong)
    assert "def stat(self)" in out
    assert re.search(r"wrong\.py:\d+: error: .*incompatible type \"int\"", out)
