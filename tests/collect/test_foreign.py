"""Configuration files of getmail, fetchmail and mpop, as in their manuals."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from pwd import getpwuid

import pytest

from restante.collect.foreign import ForeignAccount
from restante.collect.foreign.fetchmail import fetchmail
from restante.collect.foreign.getmail import getmail
from restante.collect.foreign.mpop import mpop
from restante.collect.ledger import Ledger
from restante.collect.plan import UNKNOWN_SIZE, Collected, Fetch, Policy, plan
from restante.errors import PermanentFailure
from restante.pop3.listing import Message


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def summary(account: ForeignAccount) -> tuple[str, str, str, str, str, list[str]]:
    return (
        account.name,
        account.url,
        account.user,
        account.to,
        account.keep,
        account.seen,
    )


# getmail


def test_getmail_all_accounts_of_its_directory(tmp_path: Path) -> None:
    written(
        tmp_path / "getmailrc",
        "[retriever]\ntype = SimplePOP3SSLRetriever\nserver = pop.example.net\n"
        "username = ann\npassword = tan staaf\n"
        "[destination]\ntype = Maildir\npath = /home/ann/Mail/\n"
        "[options]\nread_all = false\ndelete_after = 14\nmax_message_size = 1000000\n",
    )
    written(
        tmp_path / "work",
        "[retriever]\ntype = SimplePOP3SSLRetriever\nserver = pop.example.org\nport = 1995\n"
        'username = ann@example.org\npassword_command = ("pass", "show", "work")\n'
        '[destination]\ntype = MDA_external\npath = /bin/procmail\narguments = ("-f", "a b")\n'
        "[options]\ndelete = true\n",
    )
    written(tmp_path / "oldmail-pop.example.net-995-ann", "u1\x001700000000\nu2\x001700000001\n")
    written(tmp_path / "oldmail-pop.example.org-1995-ann@example.org", "w\x001700000000\nbroken\n")
    one, two = getmail(tmp_path)
    assert summary(one) == (
        "getmail",
        "pop3s://pop.example.net",
        "ann",
        "maildir:/home/ann/Mail",
        "14d",
        ["u1", "u2"],
    )
    assert (one.password, one.largest, one.notes) == ("tan staaf", 1_000_000, [])
    assert summary(two) == (
        "work",
        "pop3s://pop.example.org:1995",
        "ann@example.org",
        "command:/bin/procmail -f 'a b'",
        "none",
        ["w"],
    )
    assert two.password_command == ("pass", "show", "work")


def test_getmail_import_names_unsupported_settings(tmp_path: Path) -> None:
    rc = written(
        tmp_path / "rc",
        "[retriever]\ntype = SimplePOP3Retriever\nserver = h\nusername = u\npassword = p\n"
        "[destination]\ntype = MultiDestination\ndestinations = ()\n",
    )
    (found,) = getmail(rc)
    assert found.url == "pop3://h"
    assert found.to == ""
    assert "STLS" in " ".join(found.notes)
    assert "MultiDestination" in found.no_destination


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[retriever]\ntype = SimplePOP3Retriever\n",
        "poll localhost\n",
        "[retriever]\ntype = SimplePOP3Retriever\nport = pop\n[destination]\n",
    ],
)
def test_file_that_is_not_of_getmail_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(PermanentFailure):
        getmail(written(tmp_path / "rc", text))


@pytest.mark.parametrize("read", [getmail, fetchmail, mpop])
def test_a_password_in_another_encoding_is_not_guessed(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    rc = tmp_path / "rc"
    rc.write_bytes("[retriever]\npassword = gr\xfc\xdfe\n".encode("latin-1"))
    with pytest.raises(PermanentFailure, match="UTF-8"):
        read(rc)


# mpop


def test_mpop_accounts_inherit(tmp_path: Path) -> None:
    rc = written(
        tmp_path / ".mpoprc",
        f"# comment\ndefaults\ntls on\nuidls_file {tmp_path}/%U_at_%H\ndelivery mbox /m/box\n"
        "account base\nhost pop.example.net\ntls_starttls off\nkeep on\n"
        'account isp : base\nuser "ann"\npasswordeval pass show isp\nskipsize 10m\n'
        "account other\nhost pop.example.org\nport 1110\nuser bob\npassword x\n"
        "delivery maildir /m/dir\n",
    )
    written(
        tmp_path / "ann_at_pop.example.net",
        "# by mpop\n 1 pop.example.net bob\nno\n 2 pop.example.net ann\nu1\nu 2\n 0 x y\n",
    )
    isp, other = mpop(rc)  # the base has no user
    assert summary(isp) == (
        "isp",
        "pop3s://pop.example.net",
        "ann",
        "mbox:/m/box",
        "all",
        ["u1", "u 2"],
    )
    assert (isp.password_command, isp.largest) == (("/bin/sh", "-c", "pass show isp"), 10 * 2**20)
    assert summary(other)[1:5] == ("pop3://pop.example.org:1110", "bob", "maildir:/m/dir", "none")
    assert other.seen == []


# fetchmail

FORMS = [
    'poll pop.example.net proto pop3 user "ann42" there with password "x" is ann here ssl keep',
    "poll pop.example.net protocol POP3:\n username ann42, password 'x', to ann, keep, ssl",
    'defaults proto pop3 ssl keep\nserver pop.example.net user ann here is "ann42" there pass x',
    '# a comment\npoll "isp" via pop.example.net no dns auth password port 995\n'
    'user ann42 options ssl keep limit 50000 no rewrite pass "x" is ann here',
]


@pytest.mark.parametrize("text", FORMS)
def test_fetchmails_language(text: str, tmp_path: Path) -> None:
    written(
        tmp_path / ".fetchids",
        "ann42@pop.example.net u1\nann42@POP.example.net u2\nbob@pop.example.net v\n",
    )
    (found,) = fetchmail(written(tmp_path / ".fetchmailrc", text))
    assert found.url.removesuffix(":995") == "pop3s://pop.example.net"
    assert (found.user, found.password, found.keep) == ("ann42", "x", "all")
    assert (found.to, found.recipient) == ("smtp:localhost:25", "ann@localhost")
    assert found.seen == ["u1", "u2"]


def test_fetchmail_several_users_and_servers(tmp_path: Path) -> None:
    rc = written(
        tmp_path / "rc",
        f'set idfile "{tmp_path}/ids"\nset daemon 300\ndefaults mda "/bin/mda -d ann"\n'
        'poll a.example proto pop3\n user "ann@a.example" pass "q\\"uote" keep\n'
        "  user bob pass y fetchall\n"
        "poll imap.example proto imap user ann pass z\n"
        "skip b.example proto pop3 user ann pass z mda 'x %T'\n",
    )
    written(tmp_path / "ids", "ann@a.example@a.example u1\n")
    ann, bob, imap, skipped = fetchmail(rc)
    assert (ann.name, bob.name, skipped.name) == (
        "a.example-ann@a.example",
        "a.example-bob",
        "b.example",
    )
    assert "IMAP" in imap.refused
    assert (ann.password, ann.keep, ann.seen) == ('q"uote', "all", ["u1"])
    assert ann.to == "command:/bin/sh -c '/bin/mda -d ann'"
    assert (bob.keep, bob.seen) == ("none", [])
    assert skipped.to == ""
    assert "envelope" in skipped.no_destination
    assert "skip" in skipped.notes[0]


# No account is omitted silently.

REFUSED = {
    "proto imap user u pass p": "IMAP",
    "proto IMAP user u pass p": "IMAP",
    "user u pass p service 993": "IMAP",  # "auto" would find it
    "proto pop2 user u": "POP2",
    "proto etrn": "ETRN",
    "proto odmr user u": "ODMR",
    "proto kpop user u": "KPOP",
    "proto strange user u": "STRANGE",
    "proto pop3 auth kerberos_v5 user u": "kerberos_v5",
    "proto pop3 auth gssapi user u": "gssapi",
    "proto pop3 auth ntlm user u": "ntlm",
    "proto pop3 user u is ann bob here": "multidrop",
    "proto pop3 user u to * here": "multidrop",
    'proto pop3 user u is "x@h"=ann "y@h"=bob here': "multidrop",
    'proto pop3 plugin "ssh %h nc localhost 110" user u': "plugin",
}


@pytest.mark.parametrize("options", REFUSED)
def test_fetchmail_account_that_cannot_be_imported_is_explained(
    options: str, tmp_path: Path
) -> None:
    rc = written(
        tmp_path / "rc",
        f"poll one.example {options}\npoll two.example proto pop3 user ann pass p ssl\n",
    )
    one, two = fetchmail(rc)
    assert (one.host, REFUSED[options] in one.refused) == ("one.example", True), one.refused
    assert (two.host, two.user, two.refused) == ("two.example", "ann", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ('preconnect "x"', "preconnect"),
        ("no sslcertck", "certificate"),
        ("flush", "flush"),
        ("frobnicate", "frobnicate"),
        ("frobnicate 3 keep", "frobnicate 3"),
    ],
)
def test_import_notes_differences_from_fetchmail(options: str, words: str, tmp_path: Path) -> None:
    rc = written(tmp_path / "rc", f"poll h proto pop3 user u pass p ssl {options}")
    (found,) = fetchmail(rc)
    assert words in " ".join(found.notes)


@pytest.mark.parametrize(
    ("options", "to", "recipient"),
    [
        ("lmtp smtphost /run/lmtp", "lmtp:unix:/run/lmtp", "ann@localhost"),
        ("lmtp smtphost h/24", "lmtp:h:24", "ann@localhost"),
        ("lmtp smtphost h", "", "ann@localhost"),
        ("smtphost h1 h2/26 smtpaddress example.org", "smtp:h1:25", "ann@example.org"),
        ('smtpname "bob@example.org"', "smtp:localhost:25", "bob@example.org"),
        ("bsmtp /tmp/x", "", ""),
    ],
)
def test_destinations_of_fetchmail_are_translated(
    options: str, to: str, recipient: str, tmp_path: Path
) -> None:
    rc = written(tmp_path / "rc", f"poll h proto pop3 user u is ann pass p {options}")
    (found,) = fetchmail(rc)
    assert (found.to, found.recipient, bool(found.no_destination)) == (to, recipient, not to)


def test_a_default_user_is_not_one_user_more(tmp_path: Path) -> None:
    rc = written(
        tmp_path / "rc",
        "defaults proto pop3 user joe is joe here pass p\n"
        "poll a user u is ann here pass q user v\npoll b\n",
    )
    found = fetchmail(rc)
    assert [(each.host, each.user, each.password, each.recipient) for each in found] == [
        ("a", "u", "q", "ann@localhost"),
        ("a", "v", "p", "joe@localhost"),
        ("b", "joe", "p", "joe@localhost"),
    ]


def test_without_a_local_name_mail_is_for_the_owner_of_the_file(tmp_path: Path) -> None:
    rc = written(tmp_path / "rc", "poll h proto pop3 user u pass p")
    (found,) = fetchmail(rc)
    assert found.recipient == f"{getpwuid(os.getuid()).pw_name}@localhost"


def test_escapes_in_a_password_of_fetchmail(tmp_path: Path) -> None:
    rc = written(tmp_path / "rc", r'poll h proto pop3 user u pass "\"a\"b\\c\x41\101\065\q"')
    (found,) = fetchmail(rc)
    assert found.password == '"a"b\\cAe5q'


def test_one_bad_getmail_file_does_not_stop_the_others(tmp_path: Path) -> None:
    good = (
        "[retriever]\ntype = SimplePOP3SSLRetriever\nserver = h\nusername = u\npassword = p\n"
        "[destination]\ntype = Maildir\npath = Mail/\n"
    )
    written(tmp_path / "good", good)
    written(tmp_path / "imap", good.replace("POP3", "IMAP"))
    written(tmp_path / "multi", good.replace("Simple", "Multidrop"))
    written(tmp_path / "oauth", good + "[x]\n").write_text(
        good.replace("password = p", "use_xoauth2 = true")
    )
    written(tmp_path / "broken", "[retriever]\nno ini file\n")
    written(tmp_path / "without", "[retriever]\ntype = SimplePOP3Retriever\n")
    (tmp_path / "latin").write_bytes(good.replace("= p", "= gr\xfc\xdfe").encode("latin-1"))
    written(tmp_path / "other", "nothing of getmail\n")
    found = {each.name: each for each in getmail(tmp_path)}
    assert found.keys() == {"good", "imap", "multi", "oauth", "broken", "without", "latin"}
    assert [name for name, each in found.items() if not each.refused] == ["good"]
    assert found["good"].to == f"maildir:{Path.home()}/Mail"
    for name, words in {"imap": "POP3", "multi": "several users", "oauth": "OAuth 2"}.items():
        assert words in found[name].refused
    assert "UTF-8" in found["latin"].refused


def test_getmails_filters_are_said_not_to_be_imported(tmp_path: Path) -> None:
    rc = written(
        tmp_path / "rc",
        "[retriever]\ntype = SimplePOP3SSLRetriever\nserver = h\nusername = u\npassword = p\n"
        "[destination]\ntype = Maildir\npath = $PLACE/Mail/\n"
        "[filter-spam]\ntype = Filter_external\n[options]\nmax_messages_per_session = 7\n",
    )
    (found,) = getmail(rc)
    assert "its filter-spam is not imported" in found.notes
    assert found.limit == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("user u\nauth gssapi", "gssapi"),
        ("user u\nauth xoauth2", "OAuth 2"),
        ("user u\nproxy_host h", "proxy"),
        ("", "user is missing"),
    ],
)
def test_mpop_account_that_cannot_be_imported_is_explained(
    options: str, words: str, tmp_path: Path
) -> None:
    rc = written(
        tmp_path / "rc",
        f"account one\nhost h\npassword p\n{options}\n"
        "account two\nhost\th2\nuser\tu\npassword p\ntls\nauth\n",
    )
    one, two = mpop(rc)
    assert words in one.refused
    assert (two.host, two.user, two.url, two.refused) == ("h2", "u", "pop3://h2", "")


def test_missing_parent_of_an_mpop_account_is_named(tmp_path: Path) -> None:
    rc = written(tmp_path / "rc", "account my isp : nothing\nhost h\nuser u\n")
    (found,) = mpop(rc)
    assert (found.name, "nothing, which does not exist" in found.refused) == ("my isp", True)


# The ledger.


def test_messages_seen_by_another_program_are_neither_fetched_nor_deleted() -> None:
    ledger = Ledger(None)
    ledger.of("isp").adopt([("u", UNKNOWN_SIZE)], 1.0)
    known = ledger.of("isp").known(["u", "v"])
    ledger.close()
    assert known == {"u": Collected(UNKNOWN_SIZE, 1.0, is_adopted=True)}
    listing = [Message(1, "u", 100), Message(2, "v", 100)]
    assert list(plan(listing, known, Policy(keep=0.0), 9e9)) == [Fetch(listing[1], "v")]
