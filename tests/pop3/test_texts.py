"""LANG and its texts: each one a client can hear is there in every language."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import restante
from restante.pop3 import texts
from restante.pop3.session import Policy

from .core import Core

SOURCE = Path(restante.__file__).parent
HEARD = (
    "pop3/commands.py",
    "pop3/session.py",
    "pop3/grammar.py",
    "server/pop3.py",
    "server/retrieval.py",
    "sasl/plain.py",
    "sasl/login.py",
    "sasl/oauth.py",
    "sasl/external.py",
    "sasl/scram.py",
    "store/files.py",
    "store/place.py",
    "auth/users.py",
    "errors.py",
)
SPOKEN = (
    "Response",
    "_last",
    "BadCommand",
    "NoExchange",
    "NoSuchMessage",
    "TemporaryFailure",
    "PermanentFailure",
    "TooBusy",
)
OF_ADMINISTRATION = {  # errors that no session meets
    "NoSuchUser",
    "MessageTooLarge",
    "NameTaken",
    "NoSuchAppPassword",
    "CommandFailed",
    "LoginWithheld",
    "QuotaExceeded",
}
LOGIN = b"USER mrose\r\nPASS tan staaf\r\n"


def spoken() -> Iterator[str]:
    """Texts of responses and errors as the source has them, a number where a value stands."""
    for name in HEARD:
        tree = ast.parse((SOURCE / name).read_text())
        tree.body = [e for e in tree.body if getattr(e, "name", "") not in OF_ADMINISTRATION]
        for where in ast.walk(tree):
            if isinstance(where, ast.Call) and where.args:
                called = ast.unparse(where.func).rpartition(".")[2]
                text = _text(where.args[0])
                if text and (called in SPOKEN or ast.unparse(where.func) == "super().__init__"):
                    yield text


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if not isinstance(node, ast.JoinedStr):
        return ""
    return "".join(
        str(part.value)
        if isinstance(part, ast.Constant)
        else "NOOP"
        if "keyword" in ast.unparse(part) or "state" in ast.unparse(part)
        else "7"
        for part in node.values
    )


@pytest.mark.rfc("P-150")
def test_every_text_is_there_in_every_language() -> None:
    found = {text for text in spoken() if not re.fullmatch(r"[0-9 ]*", text)}
    assert len(found) > 50
    assert sorted(each for each in found if texts.key(each)[0] not in texts.TEXTS) == []


@pytest.mark.parametrize("english", texts.TEXTS)
def test_a_translation_says_the_same_values_and_is_a_line(english: str) -> None:
    """RFC 1939 §3: 512 octets; RFC 2449 §3: "[" would begin a response code."""
    assert len(texts.TEXTS[english]) == len(texts.LANGUAGES) - 1
    for text in texts.TEXTS[english]:
        assert re.findall(r"[#*]", text) == re.findall(r"[#*]", english)
        assert text.isprintable()
        assert not text.startswith("[")
        assert len(text.encode()) < 400


@pytest.mark.rfc("P-151", "P-022")
def test_languages_are_listed_in_their_own_words() -> None:
    core = Core([])
    for _ in range(2):
        assert core.send(b"LANG\r\n").decode() == (
            "+OK languages follow\r\nen English\r\nde Deutsch\r\nzh 中文\r\n.\r\n"
        )
        core.send(LOGIN)


@pytest.mark.rfc("P-150", "P-152")
def test_a_language_holds_for_all_that_follows_and_codes_stay() -> None:
    core = Core([b"Subject: x\r\n\r\n"])
    assert core.send(b"LANG de\r\n") == b"+OK de diese Texte sind deutsch\r\n"
    assert core.send(b"USER mrose\r\n").decode() == "+OK jetzt das Passwort\r\n"
    assert core.send(b"PASS x\r\n").decode() == "-ERR [AUTH] Anmeldung fehlgeschlagen\r\n"
    assert "+OK 1 Nachrichten (14 Oktette)\r\n" in core.send(LOGIN).decode()
    assert core.send(b"RETR 1\r\n").startswith(b"+OK 14 Oktette\r\nSubject")
    assert core.send(b"STAT\r\nLIST 1\r\nUIDL 1\r\n") == b"+OK 1 14\r\n+OK 1 14\r\n+OK 1 u1\r\n"
    assert core.send(b"LANG zh-Hant-TW\r\n").decode() == "+OK zh 以下文本使用中文\r\n"
    assert core.send(b"NOOP x\r\n").decode() == "-ERR NOOP 的参数不正确\r\n"
    assert core.send(b"LANG *\r\nNOOP x\r\n") == (
        b"+OK en these texts are in English\r\n-ERR NOOP takes other arguments\r\n"
    )
    assert core.send(b"LANG de\r\nQUIT\r\n").endswith(b"+OK auf Wiedersehen\r\n")


@pytest.mark.parametrize("wanted", [b"fr", b"d", b"dee", b"x-klingon", b"", b"de en", b"*-de"])
@pytest.mark.rfc("P-150")
def test_a_language_that_is_not_there_leaves_the_old_one(wanted: bytes) -> None:
    core = Core([])
    core.send(b"LANG de\r\n")
    assert core.send(b"LANG " + wanted + b"\r\n").startswith(b"-ERR ")
    assert core.send(b"XYZ\r\n").decode() == "-ERR unbekannter Befehl\r\n"


@pytest.mark.parametrize(
    ("wanted", "tag"),
    [("DE", "de"), ("de-AT", "de"), ("zh-CN", "zh"), ("en-GB-oed", "en"), ("*", "zh")],
)
def test_the_nearest_language_is_chosen(wanted: str, tag: str) -> None:
    assert texts.chosen(wanted, "zh") == tag


@pytest.mark.rfc("P-152")
def test_a_default_language_is_the_sites() -> None:
    core = Core([], policy=Policy(language="de"))
    assert core.send(b"XYZ\r\n").decode() == "-ERR unbekannter Befehl\r\n"
    assert core.send(b"LANG *\r\n").startswith(b"+OK de ")


def test_a_unique_id_is_no_word() -> None:
    core = Core([b"x\r\n"])
    core._listing[0] = core._listing[0].__class__("octets", 3)
    core.send(LOGIN + b"LANG de\r\n")
    assert core.send(b"UIDL 1\r\n") == b"+OK 1 octets\r\n"
