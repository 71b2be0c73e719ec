"""All texts that the server may send to a POP3 client, in each language of LANG.

Standards: RFC 6856 §3 (LANG), RFC 5646 (tags), RFC 4647 §3.3.1 (basic filtering).
To add a language, change only this file.  In a text, ``#`` is a placeholder for a number, or for a
command or state in capitals, and a final ``*`` is a placeholder for words that are not translated.
The placeholders of a translation must have the same order as in the English text.
Response codes are for programs and are not translated.
"""

from __future__ import annotations

import re

LANGUAGES = {"en": "English", "de": "Deutsch", "zh": "中文"}
"""Each language tag, with the language's name in that language."""

# The German and the Chinese translation by English text.
TEXTS = {
    # Success.
    "send the password": ("Passwort senden", "请发送密码"),
    "# messages (# octets)": ("# Nachrichten (# Bytes)", "# 封邮件（# 字节）"),
    "# message (# octets)": ("# Nachricht (# Bytes)", "# 封邮件（# 字节）"),
    "# octets": ("# Bytes", "# 字节"),
    "capabilities follow": ("es folgt die Liste der Funktionen", "以下是支持的功能"),
    "unique-ids follow": ("es folgt die Liste der eindeutigen Kennungen", "以下是邮件唯一标识列表"),
    "languages follow": ("es folgt die Liste der Sprachen", "以下是支持的语言"),
    "top of message follows": ("es folgt der Anfang der Nachricht", "以下是邮件的开头部分"),
    "marked as deleted": ("als gelöscht markiert", "已标记为删除"),
    "begin TLS": ("TLS-Aushandlung beginnen", "开始 TLS 协商"),
    "UTF-8 enabled": ("UTF-8 aktiviert", "已启用 UTF-8"),
    "responses are now in English": ("Antworten ab jetzt auf Deutsch", "后续提示将使用中文"),
    "updated": ("aktualisiert", "已更新"),
    "goodbye": ("auf Wiedersehen", "再见"),
    # Sent before the server closes a session that reached a limit.
    "too many commands before login, closing the connection": (
        "zu viele Befehle vor der Anmeldung, Verbindung wird getrennt",
        "登录前的命令过多，即将断开连接",
    ),
    "too many bad commands, closing the connection": (
        "zu viele ungültige Befehle, Verbindung wird getrennt",
        "错误命令过多，即将断开连接",
    ),
    "too many refused or cancelled AUTH commands, closing the connection": (
        "zu viele abgelehnte oder abgebrochene AUTH-Befehle, Verbindung wird getrennt",
        "被拒绝或取消的 AUTH 命令过多，即将断开连接",
    ),
    "too many failed logins, closing the connection": (
        "zu viele fehlgeschlagene Anmeldungen, Verbindung wird getrennt",
        "登录失败次数过多，即将断开连接",
    ),
    # A bad command.
    "unknown command": ("unbekannter Befehl", "未知命令"),
    "wrong arguments for #": ("falsche Argumente für #", "# 命令的参数不正确"),
    "# is not allowed in the # state": (
        "# ist im Zustand # nicht erlaubt",
        "# 命令不能在 # 状态下使用",
    ),
    "line longer than # octets": ("Zeile ist länger als # Bytes", "命令行超过 # 字节"),
    "lines must end with CRLF, but this line has a bare LF": (
        "Zeilen müssen mit CRLF enden, aber diese enthält ein einzelnes LF",
        "每行必须以 CRLF 结尾，此行含有单独的 LF",
    ),
    "NUL in a command": ("NUL-Zeichen im Befehl", "命令中含有 NUL 字符"),
    "bare CR in a command": ("einzelnes CR im Befehl", "命令中含有单独的 CR"),
    "no such message": ("Nachricht nicht vorhanden", "邮件不存在"),
    "message is marked as deleted": ("Nachricht ist als gelöscht markiert", "该邮件已标记为删除"),
    "message-number must be a decimal number, at least #": (
        "die Nachrichtennummer muss eine Dezimalzahl ab # sein",
        "邮件编号必须是不小于 # 的十进制整数",
    ),
    "number of lines must be a decimal number, at least #": (
        "die Zeilenzahl muss eine Dezimalzahl ab # sein",
        "行数必须是不小于 # 的十进制整数",
    ),
    "language not supported": ("Sprache wird nicht unterstützt", "不支持该语言"),
    "TLS cannot be started here": ("TLS kann hier nicht gestartet werden", "此处无法启用 TLS"),
    "XCLIENT requires NAME=VALUE": (
        "XCLIENT erfordert NAME=WERT",
        "XCLIENT 命令的参数格式应为 NAME=VALUE",
    ),
    "ADDR is not a valid IP address": (
        "ADDR ist keine gültige IP-Adresse",
        "ADDR 不是有效的 IP 地址",
    ),
    # A failed login.
    "authentication failed": ("Anmeldung fehlgeschlagen", "身份验证失败"),
    "authentication cancelled": ("Anmeldung abgebrochen", "身份验证已取消"),
    "login requires TLS: send STLS first, or connect to the POP3S port": (
        "Anmeldung erfordert TLS: zuerst STLS senden oder den POP3S-Port verwenden",
        "登录需要 TLS：请先发送 STLS 命令，或连接 POP3S 端口",
    ),
    "USER requires a user name": ("USER erfordert einen Benutzernamen", "USER 命令需要用户名"),
    "send USER first": ("zuerst USER senden", "请先发送 USER 命令"),
    "PASS requires a password": ("PASS erfordert ein Passwort", "PASS 命令需要密码"),
    "authentication mechanism not supported": (
        "Authentifizierungsverfahren wird nicht unterstützt",
        "不支持该身份验证机制",
    ),
    "this mechanism does not accept an initial response": (
        "dieses Verfahren erlaubt keine erste Antwort (initial response)",
        "该身份验证机制不接受初始响应",
    ),
    "invalid Base64": ("ungültiges Base64", "不是有效的 Base64 编码"),
    "malformed PLAIN message": ("ungültige PLAIN-Nachricht", "PLAIN 消息格式错误"),
    "malformed OAUTHBEARER message": (
        "ungültige OAUTHBEARER-Nachricht",
        "OAUTHBEARER 消息格式错误",
    ),
    "malformed XOAUTH2 message": ("ungültige XOAUTH2-Nachricht", "XOAUTH2 消息格式错误"),
    "malformed OAuth message": ("ungültige OAuth-Nachricht", "OAuth 消息格式错误"),
    "missing bearer token": ("Bearer-Token fehlt", "缺少 Bearer 令牌"),
    "SCRAM: *": ("SCRAM: *", "SCRAM：*"),
    "no data may follow the server's proof": (
        "nach dem Nachweis des Servers sind keine Daten erlaubt",
        "服务器完成验证后，客户端不应再发送数据",
    ),
    "maildrop in use by another session for # s": (
        "Postfach ist seit # s durch eine andere Sitzung belegt",
        "邮箱已被另一会话占用 # 秒",
    ),
    "this password is too new to delete # messages; nothing was deleted": (
        "dieses Passwort ist zu neu, um # Nachrichten zu löschen; es wurden keine gelöscht",
        "该密码启用不久，暂不能删除 # 封邮件；未删除任何邮件",
    ),
    "this password is too new to delete # message; nothing was deleted": (
        "dieses Passwort ist zu neu, um # Nachricht zu löschen; es wurde keine gelöscht",
        "该密码启用不久，暂不能删除 # 封邮件；未删除任何邮件",
    ),
    "log in again in # s": ("erneute Anmeldung in # s möglich", "请在 # 秒后重新登录"),
    "logins cannot be checked now": (
        "Anmeldungen können zurzeit nicht geprüft werden",
        "暂时无法验证登录",
    ),
    "too many logins at once, try again later": (
        "zu viele gleichzeitige Anmeldungen, bitte später erneut versuchen",
        "同时登录的连接过多，请稍后再试",
    ),
    "too many connections, try again later": (
        "zu viele Verbindungen, bitte später erneut versuchen",
        "连接过多，请稍后再试",
    ),
    "internal error, try again later": (
        "interner Fehler, bitte später erneut versuchen",
        "内部错误，请稍后再试",
    ),
    "user database cannot be used": ("Benutzerdatenbank ist nicht verfügbar", "用户数据库不可用"),
    "user name is not valid as a maildrop name": (
        "Benutzername ist als Postfachname ungültig",
        "该用户名不能用作邮箱名",
    ),
    "user name is too long for a maildrop name": (
        "Benutzername ist zu lang für einen Postfachnamen",
        "用户名过长，不能用作邮箱名",
    ),
    "log in with a user name without a domain": (
        "bitte mit Benutzernamen ohne Domain anmelden",
        "请使用不带域名的用户名登录",
    ),
    "log in with your full address (name@domain)": (
        "bitte mit vollständiger E-Mail-Adresse anmelden (name@domain)",
        "请使用完整的邮箱地址登录（用户名@域名）",
    ),
    # Mail that cannot be read or removed.
    "this login is not allowed to delete messages": (
        "diese Anmeldung darf keine Nachrichten löschen",
        "当前登录方式无权删除邮件",
    ),
    "message was removed by another program": (
        "Nachricht wurde von einem anderen Programm entfernt",
        "该邮件已被其他程序删除",
    ),
    "message was compressed or encrypted by another program": (
        "Nachricht wurde von einem anderen Programm komprimiert oder verschlüsselt",
        "该邮件已被其他程序压缩或加密",
    ),
    "message does not have the announced size; log in again": (
        "Nachricht hat nicht die gemeldete Größe; bitte neu anmelden",
        "邮件大小与此前报告的不一致，请重新登录",
    ),
    "message uses UTF-8: send UTF8 before login": (
        "Nachricht verwendet UTF-8: vor der Anmeldung UTF8 senden",
        "该邮件使用 UTF-8：请在登录前发送 UTF8 命令",
    ),
    "# deleted messages not removed": (
        "# gelöschte Nachrichten konnten nicht entfernt werden",
        "有 # 封标记为删除的邮件未能删除",
    ),
    "# deleted message not removed": (
        "# gelöschte Nachricht konnte nicht entfernt werden",
        "有 # 封标记为删除的邮件未能删除",
    ),
    "mail storage: *": ("Mailspeicher: *", "邮件存储：*"),
    "no such folder": ("Ordner nicht vorhanden", "文件夹不存在"),
    "invalid folder name": ("ungültiger Ordnername", "文件夹名称无效"),
    "the unique-ids of this maildrop are damaged": (
        "die eindeutigen Kennungen dieses Postfachs sind beschädigt",
        "该邮箱的邮件唯一标识已损坏",
    ),
}
_COLUMNS = {"de": 0, "zh": 1}
_VARIABLE = re.compile(
    r"[0-9]+|\b[A-Z][A-Z0-9]{2,}(?= (?:is|state)\b)|(?<=arguments for )[A-Z0-9]+"
)


def choose_language(language_range: str, default: str) -> str | None:
    """Return the tag of the language for a language range, or None if no language matches.

    This is basic filtering, repeated with fewer subtags until a language matches: for de-AT, the
    result is de.  ``default`` is the result for ``*``.
    """
    if language_range == "*":
        return default
    parts = language_range.lower().split("-")
    while parts:
        for tag in LANGUAGES:
            if tag == "-".join(parts) or tag.startswith("-".join(parts) + "-"):
                return tag
        parts.pop()
    return None


def key(text: str) -> tuple[str, list[str]]:
    """Return the key in ``TEXTS`` for an English text, and the values of its placeholders."""
    if text in TEXTS:
        return text, []
    values = _VARIABLE.findall(text)
    key = _VARIABLE.sub("#", text)
    if key not in TEXTS and ": " in text:
        prefix, _, rest = text.partition(": ")
        return f"{prefix}: *", [rest]
    return key, values


def translate(text: str, language: str) -> str:
    """Return an English text in this language, or unchanged if it has no translation."""
    english, values = key(text)
    if language not in _COLUMNS or english not in TEXTS:
        return text
    remaining = iter(values)
    return re.sub(r"[#*]", lambda _: next(remaining), TEXTS[english][_COLUMNS[language]])
