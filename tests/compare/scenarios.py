"""The scenarios as a table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from restante.testing_hostile import ATTACKS, Attack, Say, _listing

from .programs import Program
from .remote import Kill, Session
from .trial import PATIENCE, POLITE, Case, Verdict, trial

FEW, MANY = 4, 30
_HANGS = 3  # enough hangs of one program in one scenario
_LIMIT = 500  # points; longer than any session


def mail(number: int, *, octets: int = 0) -> dict[str, bytes]:
    """Return messages by unique-id, which no collector changes."""
    return {
        f"id{at}": b"From: ann@example.org\r\nTo: bob@example.org\r\n"
        b"Date: Thu, 1 Jan 2026 00:00:%02d +0000\r\nMessage-ID: <%d@example.org>\r\n"
        b"Subject: message %d\r\n\r\n"
        % (at, at, at)
        + b"This is message %d.\r\n" % at * (3 + octets // 20)
        for at in range(1, number + 1)
    }


def _says(**says: Say) -> Attack:
    """Return answers by command; an underscore is a space."""
    return Attack(what="", says={key.replace("_", " "): value for key, value in says.items()})


def _sizes(number: int) -> list[bytes]:
    return [b"%d %d" % (at, len(text)) for at, text in enumerate(mail(number).values(), 1)]


def _ids(number: int) -> list[bytes]:
    return [b"%d id%d" % (at, at) for at in range(1, number + 1)]


def _lists(number: int) -> Session:
    """Return a listing of the first messages of FEW."""
    octets = sum(map(len, list(mail(FEW).values())[:number]))
    return Session(
        attack=_says(
            STAT=b"+OK %d %d\r\n" % (number, octets),
            LIST=_listing(*_sizes(FEW)[:number]),
            UIDL=_listing(*_ids(FEW)[:number]),
        )
    )


_NO_UIDL = _says(CAPA=_listing(b"USER", b"TOP", b"PIPELINING"), UIDL=b"-ERR unknown command\r\n")
_SMUGGLED = {
    name: {**mail(FEW), "id2": ATTACKS[name].messages[0].replace(b"\r\n\r\n", b"\r\n\r\n", 1)}
    for name in ("dot-lf", "dot-cr", "dot-half")
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One or two rows: with mail kept on the server, and deleted."""

    what: str
    first: tuple[Session, ...] = ()
    then: Session = POLITE
    messages: Mapping[str, bytes] = field(default_factory=lambda: mail(FEW))
    modes: tuple[bool, ...] = (True, False)
    """Whether mail is kept: the values to test."""
    points: str = ""
    """``kill``: at each command; ``fin``, ``notify``, ``rst``: an end at many octets."""
    options: Mapping[str, bool] = field(default_factory=dict)
    untaken: frozenset[str] = frozenset()
    disk: str = ""
    remark: str = ""

    def applies_to(self, program: Program) -> bool:
        can_log_in = program.has_scram or "scram" not in self.options
        return can_log_in and (program.has_mbox or "mbox" not in self.options)

    @property
    def can_run(self) -> bool:
        return not self.disk or os.geteuid() == 0

    def cases(self, *, keep: bool, step: int) -> Iterator[Case]:
        """Yield the cases; with points, until one is not reached."""
        for session in self._sessions(step):
            yield Case(
                messages=self.messages,
                keep=keep,
                first=(*self.first, *session),
                then=self.then,
                runs=1 if self.points else 2,
                untaken=self.untaken,
                disk=self.disk,
                **self.options,
            )

    def _sessions(self, step: int) -> Iterator[tuple[Session, ...]]:
        if not self.points:
            yield ()
        elif self.points == "kill":
            for at in count(0, (step + 99) // 100):
                yield (Session(kill=Kill(at, is_half=False)),)
                yield (Session(kill=Kill(at, is_half=True)),)
        else:
            for at in range(0, 100_000, step):
                attack = Attack(what="", cut=at, reset=self.points == "rst")
                yield (Session(attack=attack, notifies=self.points == "notify"),)

    def tries(
        self, program: Program, *, keep: bool, step: int, patience: float = PATIENCE
    ) -> Iterator[Verdict]:
        hangs = 0
        for at, case in enumerate(self.cases(keep=keep, step=step)):
            verdict = trial(program, case, patience=patience)
            if self.points and not verdict.was_reached and not verdict.wrong():
                return  # it ran to its end
            yield verdict
            hangs += verdict.hangs
            if hangs >= _HANGS or at > _LIMIT:
                return


_TWICE = "an earlier run had fetched the mail"
SCENARIOS: Mapping[str, Scenario] = {
    # Crashes.
    "kill": Scenario(
        what="`kill -9` at each command, before its response and in the middle of it", points="kill"
    ),
    # Ends of connections.
    "fin": Scenario(what="The connection ends (FIN) at every n-th octet", points="fin"),
    "notify": Scenario(
        what="TLS is shut down (close_notify) and the connection ends at every n-th octet",
        points="notify",
    ),
    "rst": Scenario(what="The connection ends (RST) at every n-th octet", points="rst"),
    "silent": Scenario(
        what="The server stops responding in the middle of one session",
        first=(Session(silent="RETR 2"),),
        options={"hasty": True},
        remark="Even after a minute, mpop was still waiting.",
    ),
    "drip": Scenario(
        what="In one session, half of a message arrives at four octets per second",
        messages=mail(FEW, octets=4000),
        first=(Session(drips="RETR 2"),),
        options={"hasty": True},
    ),
    "expired": Scenario(
        what="In one session, the login expires: the third RETR gets -ERR and the connection ends",
        first=(
            Session(
                attack=Attack(
                    what="",
                    says={"RETR 3": b"-ERR [AUTH] AccessTokenExpired\r\n"},
                    ends_at="RETR 3",
                )
            ),
        ),
    ),
    # Listings.
    "half-listing": Scenario(
        what="In one session, only half of the messages are listed; " + _TWICE,
        first=(POLITE, _lists(FEW // 2)),
        modes=(True,),
    ),
    "empty-listing": Scenario(
        what="In one session, no message is listed; " + _TWICE,
        first=(POLITE, _lists(0)),
        modes=(True,),
    ),
    "other-ids-once": Scenario(
        what="All unique-ids change in one session; " + _TWICE,
        first=(POLITE, Session(renames=True)),
        modes=(True,),
    ),
    "other-ids": Scenario(
        what="All unique-ids change permanently; " + _TWICE,
        first=(POLITE,),
        then=Session(renames=True),
        modes=(True,),
    ),
    "other-ids-of-many": Scenario(
        what=f"All unique-ids of {MANY} messages change permanently; " + _TWICE,
        messages=mail(MANY),
        first=(POLITE,),
        then=Session(renames=True),
        modes=(True,),
        options={"asked": True},
        remark="restante stops and asks what to do; the next run used `--again dedupe`.",
    ),
    "same-id": Scenario(
        what="All messages have the same unique-id",
        then=Session(names=lambda at: b"same"),
        options={"no_ids": True},
    ),
    "blank-ids": Scenario(
        what="All unique-ids are blank",
        then=Session(names=lambda at: b""),
        options={"no_ids": True},
    ),
    "long-ids": Scenario(
        what="Unique-ids of 5000 octets",
        then=Session(names=lambda at: b"%d" % at + b"x" * 4999),
        options={"no_ids": True},
    ),
    "no-uidl": Scenario(
        what="The server does not support UIDL",
        then=Session(attack=_NO_UIDL),
        options={"no_ids": True},
    ),
    "uidl-err": Scenario(
        what="In one session, UIDL fails; " + _TWICE,
        first=(POLITE, Session(attack=_says(UIDL=b"-ERR [SYS/TEMP] later\r\n"))),
        modes=(True,),
    ),
    "no-top": Scenario(
        what="The server does not support TOP",
        then=Session(
            attack=_says(CAPA=_listing(b"USER", b"UIDL", b"PIPELINING"), TOP=b"-ERR unknown\r\n")
        ),
        options={"no_top": True},
    ),
    "no-pipelining": Scenario(
        what="The server does not announce PIPELINING",
        then=Session(attack=_says(CAPA=_listing(b"USER", b"UIDL", b"TOP"))),
    ),
    "no-capa": Scenario(
        what="The server does not support CAPA",
        then=Session(attack=_says(CAPA=b"-ERR unknown\r\n")),
    ),
    # Messages.
    "sizes": Scenario(
        what="The sizes in LIST are wrong: 1, 99999999, 0 and 7",
        then=Session(
            attack=_says(LIST=_listing(b"1 1", b"2 99999999", b"3 0", b"4 7"), STAT=b"+OK 4 1\r\n")
        ),
    ),
    "flood": Scenario(
        what="In one session, a message is a single endless line; the limit is 1 MiB",
        first=(Session(floods="RETR 2"),),
        options={"small": True, "hasty": True},
    ),
    **{
        name: Scenario(
            what=f"A message contains {shown} followed by forged responses (smuggling)",
            messages=messages,
        )
        for (name, messages), shown in zip(
            _SMUGGLED.items(), ("`LF . LF`", "`CR . CR`", "`LF . CRLF`"), strict=True
        )
    },
    "retr-err": Scenario(
        what="RETR of one message is always refused; the others work",
        then=Session(attack=_says(RETR_2=b"-ERR [SYS/TEMP] cannot read it\r\n")),
        untaken=frozenset(["id2"]),
    ),
    # Deleting.
    "dele-err": Scenario(
        what="In one session, DELE of one message is refused",
        first=(Session(attack=_says(DELE_2=b"-ERR [SYS/TEMP] later\r\n")),),
        modes=(False,),
    ),
    "quit-lost": Scenario(
        what="QUIT removes the messages, but its response is lost",
        first=(Session(attack=_says(QUIT=b"")),),
        modes=(False,),
    ),
    "quit-not-heard": Scenario(
        what="In one session, QUIT removes nothing, and its response is lost",
        first=(Session(attack=_says(QUIT=b""), removes=False),),
        modes=(False,),
    ),
    "quit-err": Scenario(
        what="In one session, QUIT removes nothing and answers -ERR",
        first=(Session(attack=_says(QUIT=b"-ERR [SYS/TEMP] not removed\r\n"), removes=False),),
        modes=(False,),
    ),
    "quit-forgets": Scenario(
        what="In one session, QUIT removes nothing and answers +OK",
        first=(Session(removes=False),),
        modes=(False,),
    ),
    # Login.
    "scram": Scenario(
        what="In one session, the server requires 1,000,000,000 iterations of SCRAM-SHA-256",
        first=(Session(attack=ATTACKS["scram-iterations"]),),
        modes=(True,),
        options={"scram": True},
    ),
    # Disks.
    "disk": Scenario(
        what="In one run, the disk that holds the Maildir fills up after two of four messages",
        messages=mail(FEW, octets=20_000),
        disk="mail",
    ),
    "disk-mbox": Scenario(
        what="In one run, the disk that holds the mbox fills up after two of four messages",
        messages=mail(FEW, octets=20_000),
        disk="mail",
        options={"mbox": True},
    ),
    "all-disk": Scenario(
        what="In one run, the disk that holds the Maildir and the program's own files is full",
        messages=mail(FEW, octets=20_000),
        disk="all",
    ),
}
