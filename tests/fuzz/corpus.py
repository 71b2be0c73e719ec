"""Initial inputs: lines of the transcripts, and inputs kept from earlier fuzzing."""

from __future__ import annotations

from pathlib import Path

from ..malformed import BODIES, VALUES
from ..transcript import load

KEPT = Path(__file__).parent / "corpus"

SEEDS: dict[str, list[bytes]] = {
    "command": [b"\x03RETR 1\r\nTOP 1 2\r\n"],
    "login": [b"PASS tan staaf", b"AUTH PLAIN AG1yb3NlAHRhbiBzdGFhZg==", b"AUTH PLAIN\r\n*"],
    "entry": [b"1", b"01", b"4", b"5", b" 1", b"1 "],
    "multi_line": [b"\x01Subject: a\n\n.\r\n..\nend", b"\x02\r.\r\n"],
    "unstuffing": [b"\x01a\r\n..b\r\n.\r\n+OK", b"\x03\n.\n\r\n.\r\n", b"\x00.\r\n"],
    "message": [b"\x04A: b\n\nbody\r\nmore\r", b"\x00\r\n\r\n.x"],
    "plain": [b"\0mrose\0tan staaf", b"a\0b\0c\0d", b"\0\xff\0\xff"],
    "oauthbearer": [b"n,a=mrose,\x01host=h\x01port=995\x01auth=Bearer vF9dft4qmT\x01\x01"],
    "xoauth2": [b"user=mrose\x01auth=Bearer vF9dft4qmT\x01\x01"],
    "external": [b"", b"mrose@example.org", b"other"],
    "scram": [
        b"n,,n=mrose,r=abc\nc=biws,r={},p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        b"p=tls-server-end-point,,n=mrose,r=abc\nc=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsZW5kIHBvaW50,r={},p=AA==",
        b"y,,n=mr=2Cose,r=abc\n",
    ],
    "scram_client": [
        b"r={}abc,s=QSXCR+Q6sek8bf92,i=4096\nv=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        b"r={}abc,s=QSXCR+Q6sek8bf92,i=1\ne=invalid-proof",
    ],
    "maildir_name": [
        b"1.M1P2R3.host,S=4,W=5,D=0:2,RS\x001.M1P2R3.host\x00 a b\0,,:\xff",
        b"a,S=99999999999999999999\0a\0a:2,\0" + b"x" * 80,
    ],
    "adopted_ids": [b"0 0000000165f4b2c1 1.M1P2.host\x0012 UID1-2 x\0"],
    "foreign_lists": [
        b"3 V1275660208 N25022 G3085f01b7f11094c501100008c4a11c1\n"
        b"25006 P000061ae4c09 O12 :1276528487.M364837P9451.kurkku,S=1355,W=1394:2,\n",
        b"1 1173189136 20221\n20214 1173189140.M123P1.host\n",
        b"/3 10 1173189136 5\nname:2,S 1355 1:1173189136:0\n/2 5 1\n",
        b"+OK\r\n1 whqtswO00WBw418f9t5JxYwZ\r\n2 QhdPYR:00WBw1Ph7x7\r\n.\r\n",
        b"From a@b Mon Jan  1 00:00:00 2024\nX-IMAP: 1234 5\n\nx\n\nFrom c\nX-UID: 7\n\ny\n",
    ],
    "configuration": [
        b"[server]\nlisten = ['pop3://127.0.0.1:0']\n[store]\nhold = '14d'\nquota = '2GiB'\n",
        b"[account.isp]\nurl = 'pop3s://pop.example'\nuser = 'ann'\npassword = {env='X'}\n",
        b"server = 1\nx = [1, {a=2}]\n[[a.b]]\n",
    ],
    "proxy_header": [
        b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 110\r\nUSER",
        b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\x13\x88\0\x6e\x16",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x07\x20\0\x04\x01\0\0\0",
    ],
    "downgraded": [
        '\x07Subject: Grüße\r\nFrom: "Jo, é" <j@é.example>, b@c\r\nTo: é:;\r\n\r\nb'.encode(),
        "\x00X: é\r\n y\r\nContent-Type: text/plain; name=é; x=y\r\n\r\n".encode(),
        b"\x01A: \xff\r\n\r\nbody",
    ],
    "malformed_mail": [octets for octets in BODIES.values() if len(octets) < 4096],
    "header_field": [
        bytes([at % 10]) + each.encode("utf-8", "surrogateescape")[:300]
        for at, each in enumerate(VALUES)
    ],
    "stored_hash": [
        b"{SSHA256}SoB/ZqBVxWNLVHVzVzxGBZDUJSC4mEgRWnVnNLkTQq7YKwBX",
        b"{SHA512-CRYPT}$6$saltsalt$x",
        b"{SCRAM-SHA-256}1,c2FsdA==,AA==,AA==",
        b"{PBKDF2}$1$salt$12$00",
        b"$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAAA",
        b"{SHA.HEX}00",
    ],
    "journal_line": [b"\x20x", b"00 {}", b"\0[]"],
    "foreign_accounts": [
        b'poll pop.example.org proto pop3 user "ann" pass "x" is ann here keep ssl\n',
        b"[retriever]\ntype=SimplePOP3SSLRetriever\nserver=h\nusername=u\n"
        b"[destination]\ntype=Maildir\npath=/m/\n",
        b"account a\nhost h\nuser u\ntls on\ndelivery maildir /m\n",
    ],
    "intake": [
        b"\x05EHLO x\r\nMAIL FROM:<b@x> SIZE=9\r\nRCPT TO:<ann@example.org>\r\n"
        b"DATA\r\nx\r\n.\r\nQUIT\r\n",
        b"\x00LHLO [1]\r\nMAIL FROM:<>\r\nRCPT TO:<ann>\r\nRCPT TO:<eve>\r\n"
        b"DATA\r\n\n.\r\n\r\n.\r\n",
    ],
    "data": [b"\x02Received: a\r\n\r\nbody\r\n", b"\x00\n.\n", b"\x01\r\n\r\r\n"],
    "client": [
        b"\x0f+OK hi\r\n+OK\r\nUIDL\r\nTOP\r\nPIPELINING\r\nSASL PLAIN SCRAM-SHA-256\r\n.\r\n"
        b"+OK\r\n+OK 2 9\r\n+OK\r\n1 5\r\n2 4\r\n.\r\n+OK\r\n1 a\r\n2 b\r\n.\r\n"
        b"+OK\r\nabc\r\n.\r\n+OK\r\nab\r\n.\r\n+OK\r\n+OK\r\n+OK bye\r\n",
        b"\x01+OK\r\n-ERR\r\n+OK\r\n+OK\r\n+OK 0 0\r\n",
    ],
}


def inputs(target: str) -> list[bytes]:
    found = [path.read_bytes() for path in sorted((KEPT / target).glob("*"))]
    if target == "session":
        found += [bytes([at]) + each.sent for at, each in enumerate(load("pop3"))]
    return found + SEEDS.get(target, [])
