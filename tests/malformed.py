"""Malformed mail of kinds on which parsers raise, recurse or hang."""

from __future__ import annotations

PIECES = [
    *"\"\\<>@,;:()[]=?/*%. \t'\x00\x7f\udcff\ufffd",
    *("a", "b@c", "é", "1", "99999999999999999999", "utf-8''", "%41", "%zz", "*0", "*0*", "*"),
    *("=?utf-8?q?", "=?utf-8?b?", "?=", "=?idna?q?a?=", "=0d=0a", "text/plain", "charset", "name"),
    *("boundary", "filename", "Mon, 1 Jan 2020 00:00:00 +0000", "+9999", "(" * 30, ")" * 30),
]

_ADDRESSES = """
" | "\\ | \\ | < | > | <> | @ | @@ | , | ,, | ; | : | :: | ;; | ( | ) | () | ((( | ((a) | a(b
a (b) c | [ | ] | [] | <[ | <[0123456789@mail.example.org]> | a: | a:; | a:b | a:b; | a:< | a:(;
unlisted-recipients:; (no To-header on input) | undisclosed | a@b | a@ | @b | <a@b | a@b> | a b
a b@c | a@b c | a@[b | a@[b] | a@[b\\ | <@a:b@c> | <@a,@b:c@d> | <@a> | <@:> | <@a:> | a..b@c
.a@b | a.@b | a@.b | a@b. | "a"@b | "a" b@c | a "b" <c> | a <b> c | a <b@c> d | a <b@c>,
a <b@c>,, d | a <b@c> (d | a, (b | a: b: c; | a: b, c: d; | (a) b: c; | <a@b>: | "a | ' | `
a@b (c (d (e | a;b,c:d | a\x00b@c | \udcc3\udca9 | \udcff | \udcff <a@b> | a <\udcff@b>
"\udcff" <a@b> | a@\udcff | \u00e9 | \x7f | \x01 | \x85 | \u2028
"""
_PARAMETERS = """
name* | a/b; name* | a/b; name*= | a/b; name*0 | a/b; name*0* | a/b; name*0*= | a/b; name*='
a/b; name*='' | a/b; name*=a'b | a/b; name*=utf-8''% | a/b; name*=utf-8''%zz | a/b; name*=%00''x
a/b; name*=utf-7''+2AA- | text/plain; charset*=utf-7''+2AA-
a/b; name*=idna'en'x | a/b; name*=punycode''x%ff | a/b; name*x=1 | a/b; name**=1 | a/b; *=1
a/b; *0=1 | a/b; * | a/b; = | a/b; =x | a/b; | a/b;; | a/b; name=" | a/b; name="\\
a/b; name="x\\" | a/b; name=x y | a/b; name*1=x | a/b; name*99999999999999999999=x
a/b; name*01=x | a/b; name*-1=x | a/b; name=1; name*=utf-8''2; name*0=3 | attachment; filename*
attachment; filename*0*=utf-8''a; filename*1 | inline; filename= | ; filename=x | attachment;
multipart/mixed; boundary* | multipart/mixed; boundary= | multipart/mixed; boundary=""
multipart/mixed | multipart/ | / | a | a/ | /b | a/b/c | text/plain; charset | x/y
text/plain; charset= | text/plain; charset=" | text/plain; charset=\x00 | text/plain; charset=idna
text/plain; charset=x\xe9 | text/plain; charset*=utf-8''%00 | text/plain; charset*=nope''x
text/plain; charset*=%00''x | message/rfc822 | message/delivery-status | message/partial
message/external-body | 1.0 | 1 | 1. | a.b | 1.0.0 | 1.(x)0 | .1 | (1.0 | base64 | base64;
base64 x | x-uuencode | quoted-printable (x | 8bit\x00
"""
_DATES = """
Mon | Mon, | Mon, 99 Foo 99999 99:99:99 +9999 | 1 Jan 10000 00:00 | 1 Jan 0 00:00
1 Jan 2020 00:00:00 +99999999 | 1 Jan 2020 00:00:00 -2400 | 1 Jan 2020 24:00 | 0 | 01 | 1 2 3 4 5
1 Jan 99999999999999999999 0:0 | Thu, 01 Jan 1970 | 1 Jan | 1 Jan 2020 1:2:3:4 | 1 Jan 2020 +
12-Jan-99 1.2.3 | 1 Jan 2020 00:00:00 ( | , 1 Jan 2020 | Jan 1 2020 0:0 +0a00
"""
_WORDS = """
=? | =??= | =?utf-8? | =?utf-8?q? | =?utf-8?q?= | =?utf-8?q??= | =?utf-8?b?a?= | =?utf-8?b?====?=
=?utf-8?b?\xff?= | =?x?q?a?= | =?idna?q?a?= | =?idna?b?/w==?= | =?undefined?q?a?=
=?punycode?q?=ff?= | =?unicode_escape?q?=5Cd?= | =?hex?b?YQ==?= | =?utf-8?q?=00=0d=0a=0aX:_y?=
=?utf-8?q?a?= =?utf-8?q?=C3?= =?utf-8?q?=A9?= | =?utf-8*en?q?a?= | =?utf-8?z?a?=
=?utf-8?q?a b?= | =?\x00?q?a?= | x=?utf-8?q?a?=y | =?utf-8?q?a?=<a@b> | =?utf-8?q?=22?= <a@b>
=?utf-8?q?a?=@b | "=?utf-8?q?a?=" <a@b> | =?utf-8?q?=0A?= <a@b> | <=?utf-8?q?=0D=0A?=@b>
=?utf-8?q?=C3?= <a@b> | =?utf-7?q?+2AA-?= | =?utf-7?q?+2AA-?= <a@b>
"""
VALUES = [
    value.strip()
    for rows in (_ADDRESSES, _PARAMETERS, _DATES, _WORDS)
    for row in rows.strip("\n").split("\n")
    for value in row.split(" | ")
]
VALUES += ["", " ", "\t", " \t ", "\x0b", "\x0c", "x\x0cBcc: y"]
VALUES += ["a\rb", "a\r\nb", "a\r\n b", "a\n\nb", "\ra", "a\r", "a\r\rb", "a\r\n\r\n b"]
# Long, deeply nested or numerous.
VALUES += ["(" * 500 + ")" * 500, "(" * 500, "\\(" * 50 + "(" * 50, '"(' * 60, "()" * 400]
VALUES += [(piece * 300)[:900] for piece in ("<", '"', "[", ":", ";", "a:", "@", ",", "=?", "a,")]
VALUES += ["=?a?q?" * 200, "é " * 300, "a " * 3000, "x" * 50_000, "a@b, " * 250, "a@b," * 2500]
VALUES += [
    '"a b" <c@d>, ' * 100,
    "g: a@b, " * 100 + ";",
    '(")" ( ' * 30,
    "9" * 5000,
    "1." + "9" * 5000,
]
VALUES += ["=?utf-8?q?" + "a" * 300 + "?=", "9" * 30 + " Jan 2020 0:0"]
VALUES += ["a/b;" + "c=d;" * 300, "a/b; " + "n" * 77 + "=" + "\udcc3" * 3]
VALUES += [
    "a/b; " + "n" * 100 + end for end in ("=\udcc3\udca9", "*=utf-8''%C3%A9", "=" + "v" * 200)
]
VALUES += ["attachment; " + "n" * 90 + '="\udcff ' + "x" * 90 + '"']


def _multiparts(levels: int, kind: str = "mixed", *, ended: bool = True) -> bytes:
    each = f"Content-Type: multipart/{kind}; boundary=b%d\r\n\r\n--b%d\r\n"
    octets = "".join(each % (level, level) for level in range(levels)) + "\r\nx\r\n"
    ends = [f"--b{level}--\r\n" for level in reversed(range(levels))] if ended else []
    return (octets + "".join(ends)).encode()


def _of(kind: str, content: bytes, *fields: str) -> bytes:
    head = "\r\n".join([f"Content-Type: {kind}", *fields, "", ""])
    return head.encode("utf-8", "surrogateescape") + content


def _encoded(encoding: str, content: bytes) -> bytes:
    return _of("text/plain", content, f"Content-Transfer-Encoding: {encoding}")


_X = "multipart/mixed; boundary=x"
_PART = b"--x\r\n\r\ny\r\n"
BODIES = {
    "empty": b"",
    "NUL": b"\0" * 1000,
    "no blank line": b"abc\r\n\r\nx",
    "begins with a continuation": b" abc\r\nx: y\r\n\r\nx",
    "lines of mbox": b"From x\r\nFrom y\r\n: z\r\nFrom z\r\na: b\r\n\r\n",
    "bare CR": b"Subject: a\rb\r\rc\r\n\r\nx\ry",
    "many fields": b"a: b\r\n" * 5000 + b"\r\n",
    "ten levels": _multiparts(10),
    "levels without end": _multiparts(40, ended=False),
    "digests": _multiparts(30, "digest"),
    "3000 levels": _multiparts(3000),
    "1500 messages in each other": _of("message/rfc822", b"") * 1500,
    "40 messages in each other": _of("message/rfc822", b"") * 40,
    "message/partial": _of("message/partial", b"") * 4,
    "deep and many lines": _multiparts(49, ended=False) + b"\r\n" * 5000,
    "delivery status": _of("message/delivery-status", b"a: b\r\n\r\n" * 500),
    "too many of them": _of("message/delivery-status", b"a: b\r\n\r\n" * 3000),
    "delivery status, blank": _of("message/delivery-status", b"\r\n" * 3000),
    "delivery status, octets": _of("message/delivery-status; charset=x", b"\xff\xff"),
    "external body": _of("message/external-body", b"\xff"),
    "999 parts": _of(_X, _PART * 999),
    "5000 parts": _of(_X, b"--x\r\n\r\n" * 5000),
    "only the end": _of(_X, b"--x--\r\n"),
    "same boundary inside": _of(_X, b"--x\r\n" + _of(_X, _PART + b"--x--\r\n") + b"--x--"),
    "empty boundary": _of('multipart/mixed; boundary=""', b"--\r\n\r\ny\r\n----\r\n"),
    "two lines in a boundary": _of("multipart/mixed; boundary*=utf-8''a%0D%0Ab", b"--a\r\nb\r\n"),
    "boundary in UTF-8": _of("multipart/mixed; boundary=é", "--é\r\n\r\nx\r\n--é--\r\n".encode()),
    "no boundary": _of("multipart/mixed; boundary*", b"b\xc3\xb6dy"),
    "multipart in Base64": _of(_X, _PART + b"--x--\r\n", "Content-Transfer-Encoding: base64"),
    "related": _of('multipart/related; boundary=x; start="<', b"--x\r\nContent-ID: <[\r\n\r\ny"),
    "alternative": _of(
        "multipart/alternative; boundary=x",
        b"--x\r\n" + _of("text/html; charset=punycode", b"\xff\r\n--x\r\n")
        + _of("a/b", b"--x--", "Content-Disposition: attachment; filename*"),
    ),
    "Base64": _encoded("base64", b"abc=def=\xff\r\n="),
    "quoted-printable": _encoded("quoted-printable", b"=\r\n=zz=\xff"),
    "uuencode, mode": _encoded("x-uuencode", b"begin zzz x\r\n\xff\xff\r\nend"),
    "uuencode, short": _encoded("uuencode", b"begin 666\r\n\r\n!\r\nM\r\nend"),
    "uuencode, odd": _encoded("uue", b"begin 666 x\r\n#0V%T\r\nzzzzzz\r\n"),
}  # fmt: skip
