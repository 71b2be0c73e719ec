"""Every text that a client may hear from the server, in each language that LANG knows.

Standards: RFC 6856 §3 (LANG), RFC 5646 (tags), RFC 4647 §3.3.1 (which tag is meant).
A translator needs this file alone.  In the English text ``#`` stands for a number, or for a
command or state in capitals, and ``*`` at the end for words that stay English.  A translation
has them in the same order.  Response codes are for programs and the same in every language.
"""

from __future__ import annotations

import re

LANGUAGES = {"en": "English", "de": "Deutsch", "zh": "中文"}
"""Tags, and what each language calls itself."""

# English: German, Chinese.
TEXTS = {
    # Success.
    "now the password": ("jetzt das Passwort", "请输入密码"),
    "# messages (# octets)": ("# Nachrichten (# Oktette)", "# 封邮件（# 个八位字节）"),
    "# octets": ("# Oktette", "# 个八位字节"),
    "capabilities follow": ("Fähigkeiten folgen", "以下是功能列表"),
    "unique-ids follow": ("Kennungen folgen", "以下是唯一标识列表"),
    "languages follow": ("Sprachen folgen", "以下是语言列表"),
    "top of message follows": ("Anfang der Nachricht folgt", "以下是邮件开头"),
    "marked as deleted": ("zum Löschen vorgemerkt", "已标记为删除"),
    "begin TLS": ("TLS kann beginnen", "开始 TLS"),
    "UTF-8 from here on": ("von hier an UTF-8", "从现在起使用 UTF-8"),
    "these texts are in English": ("diese Texte sind deutsch", "以下文本使用中文"),
    "updated": ("übernommen", "已更新"),
    "goodbye": ("auf Wiedersehen", "再见"),
    # The last words of a session that reached a limit.
    "too many commands before login, closing the connection": (
        "zu viele Befehle vor der Anmeldung, die Verbindung wird geschlossen",
        "登录前的命令过多，连接即将关闭",
    ),
    "too many bad commands, closing the connection": (
        "zu viele falsche Befehle, die Verbindung wird geschlossen",
        "错误命令过多，连接即将关闭",
    ),
    "too many refused mechanisms, closing the connection": (
        "zu viele abgelehnte Mechanismen, die Verbindung wird geschlossen",
        "被拒绝的身份验证机制过多，连接即将关闭",
    ),
    "too many failed logins, closing the connection": (
        "zu viele fehlgeschlagene Anmeldungen, die Verbindung wird geschlossen",
        "登录失败次数过多，连接即将关闭",
    ),
    # A command that is wrong.
    "unknown command": ("unbekannter Befehl", "未知命令"),
    "# takes other arguments": ("# verlangt andere Argumente", "# 的参数不正确"),
    "# is not for the # state": (
        "# gehört nicht in den Zustand #",
        "# 不能在 # 状态下使用",
    ),
    "line longer than # octets": ("Zeile länger als # Oktette", "行的长度超过 # 个八位字节"),
    "a line ends with CRLF, this one has a bare LF": (
        "eine Zeile endet mit CRLF, diese hat ein bloßes LF",
        "行必须以 CRLF 结束，此行只有 LF",
    ),
    "NUL in a command": ("NUL in einem Befehl", "命令中含有 NUL 字符"),
    "a bare CR in a command": ("ein bloßes CR in einem Befehl", "命令中有单独的 CR"),
    "no such message": ("keine solche Nachricht", "没有这封邮件"),
    "message is marked as deleted": (
        "die Nachricht ist zum Löschen vorgemerkt",
        "邮件已标记为删除",
    ),
    "a message-number is a decimal number from #": (
        "eine Nachrichtennummer ist eine Dezimalzahl ab #",
        "邮件编号是从 # 开始的十进制数",
    ),
    "a number of lines is a decimal number from #": (
        "eine Zeilenzahl ist eine Dezimalzahl ab #",
        "行数是从 # 开始的十进制数",
    ),
    "no such language": ("keine solche Sprache", "没有这种语言"),
    "TLS cannot be started here": ("TLS kann hier nicht beginnen", "此处不能开始 TLS"),
    "XCLIENT takes NAME=VALUE": ("XCLIENT verlangt NAME=WERT", "XCLIENT 的参数形式为 NAME=VALUE"),
    "ADDR is no IP address": ("ADDR ist keine IP-Adresse", "ADDR 不是 IP 地址"),
    # A login that fails.
    "authentication failed": ("Anmeldung fehlgeschlagen", "身份验证失败"),
    "authentication cancelled": ("Anmeldung abgebrochen", "身份验证已取消"),
    "login needs TLS: send STLS first, or connect to the POP3S port": (
        "die Anmeldung verlangt TLS: erst STLS senden oder den Port für POP3S benutzen",
        "登录需要 TLS：请先发送 STLS，或连接 POP3S 端口",
    ),
    "USER takes a name": ("USER verlangt einen Namen", "USER 需要用户名"),
    "USER comes first": ("zuerst kommt USER", "请先发送 USER"),
    "PASS takes a password": ("PASS verlangt ein Passwort", "PASS 需要密码"),
    "no such mechanism": ("kein solches Verfahren", "没有这种机制"),
    "this mechanism takes no initial response": (
        "dieses Verfahren nimmt keine erste Antwort",
        "此机制不接受初始响应",
    ),
    "not base64": ("kein Base64", "不是 Base64"),
    "malformed PLAIN message": ("fehlerhafte PLAIN-Nachricht", "PLAIN 消息格式错误"),
    "malformed OAUTHBEARER message": (
        "fehlerhafte OAUTHBEARER-Nachricht",
        "OAUTHBEARER 消息格式错误",
    ),
    "malformed XOAUTH2 message": ("fehlerhafte XOAUTH2-Nachricht", "XOAUTH2 消息格式错误"),
    "malformed OAuth message": ("fehlerhafte OAuth-Nachricht", "OAuth 消息格式错误"),
    "no bearer token": ("kein Bearer-Token", "没有 bearer 令牌"),
    "SCRAM: *": ("SCRAM: *", "SCRAM：*"),
    "nothing may follow the server's proof": (
        "auf den Nachweis des Servers folgt nichts",
        "服务器证明之后不能再有内容",
    ),
    "maildrop in use by another session for # s": (
        "das Postfach wird seit # s von einer anderen Sitzung benutzt",
        "邮箱已被另一会话占用 # 秒",
    ),
    "this password is too new to delete # messages; none is deleted": (
        "dieses Passwort ist zu neu, um # Nachrichten zu löschen; keine ist gelöscht",
        "此密码太新，不能删除 # 封邮件；未删除任何邮件",
    ),
    "log in again in # s": ("die nächste Anmeldung ist in # s möglich", "请在 # 秒后再登录"),
    "logins cannot be checked now": (
        "Anmeldungen können gerade nicht geprüft werden",
        "目前无法验证登录",
    ),
    "too many logins at once": ("zu viele Anmeldungen zugleich", "同时登录过多"),
    "too many connections, try again later": (
        "zu viele Verbindungen, bitte später noch einmal",
        "连接过多，请稍后再试",
    ),
    "internal error, try again later": (
        "interner Fehler, bitte später noch einmal",
        "内部错误，请稍后再试",
    ),
    "user database cannot be used": (
        "die Benutzerdatenbank ist nicht benutzbar",
        "无法使用用户数据库",
    ),
    "user name cannot name a maildrop": (
        "der Benutzername kann kein Postfach benennen",
        "此用户名不能用作邮箱名",
    ),
    "user name is too long to name a maildrop": (
        "der Benutzername ist zu lang für ein Postfach",
        "用户名过长，不能用作邮箱名",
    ),
    "log in with a user name without a domain": (
        "bitte mit einem Benutzernamen ohne Domain anmelden",
        "请使用不带域名的用户名登录",
    ),
    "log in with your full address (name@domain)": (
        "bitte mit der vollständigen Adresse anmelden (Name@Domain)",
        "请使用完整的邮箱地址登录（用户名@域名）",
    ),
    # Mail that cannot be read or removed.
    "messages cannot be deleted by this login": (
        "mit dieser Anmeldung können keine Nachrichten gelöscht werden",
        "此登录不能删除邮件",
    ),
    "message was removed by another program": (
        "ein anderes Programm hat die Nachricht entfernt",
        "邮件已被其他程序删除",
    ),
    "message is compressed or encrypted by another program": (
        "ein anderes Programm hat die Nachricht komprimiert oder verschlüsselt",
        "邮件已被其他程序压缩或加密",
    ),
    "message is not of the announced size; log in again": (
        "die Nachricht hat nicht die angekündigte Größe; bitte neu anmelden",
        "邮件大小与所报告的不符，请重新登录",
    ),
    "message is in UTF-8: send UTF8 before the login": (
        "die Nachricht ist in UTF-8: vor der Anmeldung UTF8 senden",
        "邮件使用 UTF-8：请在登录前发送 UTF8",
    ),
    "# deleted messages not removed": (
        "# gelöschte Nachrichten nicht entfernt",
        "# 封已删除的邮件未能移除",
    ),
    "mail storage: *": ("Postspeicher: *", "邮件存储：*"),
    "there is no folder of that name": (
        "es gibt keinen Ordner dieses Namens",
        "没有该名称的文件夹",
    ),
    "no folder can have that name": ("kein Ordner kann so heißen", "文件夹不能使用该名称"),
    "the unique-ids of this maildrop are damaged": (
        "die Kennungen dieses Postfachs sind beschädigt",
        "此邮箱的唯一标识已损坏",
    ),
}
_COLUMNS = {"de": 0, "zh": 1}
_VARIABLE = re.compile(r"[0-9]+|\b[A-Z]{4,}(?= (?:takes|is|state))|\b[A-Z]{4,}(?= state)")


def chosen(wanted: str, default: str) -> str | None:
    """The tag that a range of languages means; None: there is no such language.

    Basic filtering first; who asks for de-AT and can have only de gets that.
    """
    if wanted == "*":
        return default
    parts = wanted.lower().split("-")
    while parts:
        for tag in LANGUAGES:
            if tag == "-".join(parts) or tag.startswith("-".join(parts) + "-"):
                return tag
        parts.pop()
    return None


def key(text: str) -> tuple[str, list[str]]:
    """The English text as the table has it, and what ``#`` or ``*`` stands for."""
    if text in TEXTS:
        return text, []
    found = _VARIABLE.findall(text)
    key = _VARIABLE.sub("#", text)
    if key not in TEXTS and ": " in text:
        head, _, tail = text.partition(": ")
        return f"{head}: *", [tail]
    return key, found


def translated(text: str, language: str) -> str:
    """Stays English where there is no translation."""
    name, values = key(text)
    if language not in _COLUMNS or name not in TEXTS:
        return text
    rest = iter(values)
    return re.sub(r"[#*]", lambda _: next(rest), TEXTS[name][_COLUMNS[language]])
