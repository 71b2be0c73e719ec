"""LANG and its texts: every text that a client can receive exists in every language."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import restante
from restante.pop3 import texts
from restante.pop3.commands import VERBS
from restante.pop3.grammar import Response
from restante.pop3.session import Policy
from restante.words import counted

from .core import Core

SOURCE = Path(restante.__file__).parent
SOURCES = (
    "pop3/commands.py",
    "pop3/session.py",
    "pop3/transaction.py",
    "pop3/grammar.py",
    "server/pop3.py",
    "server/retrieval.py",
    "sasl/plain.py",
    "sasl/login.py",
    "sasl/oauth.py",
    "sasl/external.py",
    "sasl/scram.py",
    "store/files.py",
    "store/paths.py",
    "auth/users.py",
    "errors.py",
)
RAISED = (
    "Response",
    "_last",
    "BadCommand",
    "NoExchange",
    "NoSuchMessage",
    "TemporaryFailure",
    "PermanentFailure",
    "TooBusy",
)
ADMINISTRATION_ONLY = {  # errors that cannot occur in a session
    "NoSuchUser",
    "MessageTooLarge",
    "NameTaken",
    "NoSuchAppPassword",
    "CommandFailed",
    "LoginWithheld",
    "QuotaExceeded",
}
LOGIN = b"USER mrose\r\nPASS tan staaf\r\n"


def texts_in_source() -> Iterator[str]:
    """Yield the texts of responses and errors in the source, with 1 and with 7 for each number."""
    for name in SOURCES:
        tree = ast.parse((SOURCE / name).read_text())
        tree.body = [e for e in tree.body if getattr(e, "name", "") not in ADMINISTRATION_ONLY]
        for where in ast.walk(tree):
            if isinstance(where, ast.Call) and where.args:
                called = ast.unparse(where.func).rpartition(".")[2]
                if called in RAISED or ast.unparse(where.func) == "super().__init__":
                    yield from filter(None, (_text(where.args[0], number) for number in (1, 7)))


def _text(node: ast.AST, number: int) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if not isinstance(node, ast.JoinedStr):
        return ""
    return "".join(_part(part, number) for part in node.values)


def _part(part: ast.expr, number: int) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    source = ast.unparse(part)
    if found := re.search(r"\bcounted\(.*, ['\"]([a-z -]+)['\"]\)", source):
        return counted(number, found[1])
    return "NOOP" if "keyword" in source or "state" in source else str(number)


@pytest.mark.rfc("P-150")
def test_every_text_exists_in_every_language() -> None:
    found = {text for text in texts_in_source() if not re.fullmatch(r"[0-9 ]*", text)}
    assert len(found) > 50
    assert sorted(each for each in found if texts.key(each)[0] not in texts.TEXTS) == []


@pytest.mark.parametrize("english", texts.TEXTS)
def test_translation_has_the_same_values_on_one_line(english: str) -> None:
    """RFC 2449 §3: a leading "[" would start a response code."""
    assert len(texts.TEXTS[english]) == len(texts.LANGUAGES) - 1
    for text in texts.TEXTS[english]:
        assert re.findall(r"[#*]", text) == re.findall(r"[#*]", english)
        assert text.isprintable()
        assert not text.startswith("[")


@pytest.mark.parametrize("english", texts.TEXTS)
def test_longest_response_fits_into_512_octets(english: str) -> None:
    """RFC 2449 §4: 512 octets with the response code and CRLF; numbers have up to 20 digits."""
    for text in (english, *texts.TEXTS[english]):
        longest = re.sub(r"[#*]", "9" * 20, text)
        assert len(Response(longest, "SYS/TEMP", is_ok=False).head()) <= 512


@pytest.mark.rfc("P-151")
def test_english_texts_are_printable_ascii() -> None:
    """RFC 2449 §3: UTF-8 is for clients that sent LANG or UTF8 (RFC 6856 §3.2)."""
    for english in texts.TEXTS:
        assert english.isascii()
        assert english.isprintable()


@pytest.mark.parametrize("login", [b"", LOGIN], ids=["before login", "after login"])
def test_responses_are_ascii_until_lang_is_sent(login: bytes) -> None:
    core = Core([b"x\r\n"], policy=Policy(bad_commands=20))
    said = core.send(
        login + b"XYZ\r\nUSER\r\nAUTH X\r\nLANG xx\r\nCAPA\r\nTOP\r\nRETR 9\r\nUTF8\r\n"
    )
    assert said.isascii()
    assert not core.send(b"LANG zh\r\n").isascii()


@pytest.mark.parametrize("keyword", VERBS)
def test_refused_command_is_named_in_every_language(keyword: str) -> None:
    """Commands have three letters (TOP) to seven (XCLIENT)."""
    for english in (
        f"wrong arguments for {keyword}",
        f"{keyword} is not allowed in the UPDATE state",
    ):
        for language in ("de", "zh"):
            translation = texts.translate(english, language)
            assert translation != english
            assert keyword in translation


@pytest.mark.rfc("P-151", "P-022")
def test_languages_are_listed_by_their_own_names() -> None:
    core = Core([])
    for _ in range(2):
        assert core.send(b"LANG\r\n").decode() == (
            "+OK languages follow\r\nen English\r\nde Deutsch\r\nzh 中文\r\n.\r\n"
        )
        core.send(LOGIN)


@pytest.mark.rfc("P-150", "P-152")
def test_lang_translates_texts_but_not_codes() -> None:
    core = Core([b"Subject: x\r\n\r\n"])
    assert core.send(b"LANG de\r\n") == b"+OK de Antworten ab jetzt auf Deutsch\r\n"
    assert core.send(b"USER mrose\r\n").decode() == "+OK Passwort senden\r\n"
    assert core.send(b"PASS x\r\n").decode() == "-ERR [AUTH] Anmeldung fehlgeschlagen\r\n"
    assert "+OK 1 Nachricht (14 Bytes)\r\n" in core.send(LOGIN).decode()
    assert core.send(b"RETR 1\r\n").startswith(b"+OK 14 Bytes\r\nSubject")
    assert core.send(b"STAT\r\nLIST 1\r\nUIDL 1\r\n") == b"+OK 1 14\r\n+OK 1 14\r\n+OK 1 u1\r\n"
    assert core.send(b"LANG zh-Hant-TW\r\n").decode() == "+OK zh 后续提示将使用中文\r\n"
    assert core.send(b"NOOP x\r\n").decode() == "-ERR NOOP 命令的参数不正确\r\n"
    assert core.send(b"LANG *\r\nNOOP x\r\n") == (
        b"+OK en responses are now in English\r\n-ERR wrong arguments for NOOP\r\n"
    )
    assert core.send(b"LANG de\r\nQUIT\r\n").endswith(b"+OK auf Wiedersehen\r\n")


def test_the_answer_to_stls_is_translated() -> None:
    core = Core([], tls=False)
    core.send(b"LANG de\r\n")
    assert core.send(b"STLS\r\n").decode() == "+OK TLS-Aushandlung beginnen\r\n"


def test_the_answers_to_several_dele_are_translated() -> None:
    core = Core([b"a\r\n", b"b\r\n"])
    core.send(b"USER mrose\r\nPASS tan staaf\r\nLANG de\r\n")
    said = core.send(b"DELE 1\r\nDELE 2\r\n").decode()
    assert said == "+OK als gelöscht markiert\r\n" * 2


@pytest.mark.parametrize("wanted", [b"fr", b"d", b"dee", b"x-klingon", b"", b"de en", b"*-de"])
@pytest.mark.rfc("P-150")
def test_unsupported_language_keeps_the_current_one(wanted: bytes) -> None:
    core = Core([])
    core.send(b"LANG de\r\n")
    assert core.send(b"LANG " + wanted + b"\r\n").startswith(b"-ERR ")
    assert core.send(b"XYZ\r\n").decode() == "-ERR unbekannter Befehl\r\n"


@pytest.mark.parametrize(
    ("wanted", "tag"),
    [("DE", "de"), ("de-AT", "de"), ("zh-CN", "zh"), ("en-GB-oed", "en"), ("*", "zh")],
)
def test_language_range_matches_the_nearest_tag(wanted: str, tag: str) -> None:
    assert texts.choose_language(wanted, "zh") == tag


@pytest.mark.rfc("P-152")
def test_default_language_is_set_by_the_policy() -> None:
    core = Core([], policy=Policy(language="de"))
    assert core.send(b"XYZ\r\n").decode() == "-ERR unbekannter Befehl\r\n"
    assert core.send(b"LANG *\r\n").startswith(b"+OK de ")


def test_unique_ids_are_not_translated() -> None:
    core = Core([b"x\r\n"])
    core._listing[0] = core._listing[0].__class__("octets", 3)
    core.send(LOGIN + b"LANG de\r\n")
    assert core.send(b"UIDL 1\r\n") == b"+OK 1 octets\r\n"
