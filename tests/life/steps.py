"""The steps of a life, and the frequency of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from . import collecting, doors, foreign, imap, importing, keeping, operating, visits
from .model import PICKS
from .texts import COUNTS, LINE_ENDS, SHAPES

_NAMES = st.sampled_from(["ann", "bob"])
_BOTH = st.sampled_from([["ann"], ["bob"], ["ann", "bob"]])
_FOLDERS = st.sampled_from(["INBOX", "Junk"])
_LOGINS = st.sampled_from(["ann", "bob", "ann+Junk", "Bob+Junk", "ann+INBOX"])
_COUNTS = st.sampled_from([*COUNTS[:-1], *COUNTS[:-1], *COUNTS[1:]])  # large counts are rare
_SHAPES = st.sampled_from(list(SHAPES))
_PICKS = st.sampled_from(list(PICKS))
_HOLDS = st.sampled_from(["default", "30d", "keep", "0"])
_SOME = st.sampled_from([each for each in PICKS if each != "none"])
_FLAGS = st.sampled_from(["S", "FS", "", "RST"])

Step = tuple[Any, ...]
"""A function and its arguments after the first, which is the world."""


def _step(function: Callable[..., None], *arguments: SearchStrategy[Any]) -> SearchStrategy[Step]:
    return st.tuples(st.just(function), *arguments)


def _often(*groups: tuple[int, SearchStrategy[Step]]) -> SearchStrategy[Step]:
    """Choose a step; the number of each group is its weight."""
    weighted = [group for times, group in groups for _ in range(times)]
    return st.sampled_from(weighted).flatmap(lambda group: group)


_MAIL = st.one_of(
    _step(doors.arrive, _BOTH, st.sampled_from(list(doors.DOORS)), _COUNTS, _SHAPES),
    _step(
        doors.drop_files,
        _NAMES,
        _FOLDERS,
        _COUNTS,
        _SHAPES,
        st.sampled_from(list(LINE_ENDS)),
        st.sampled_from(list(foreign.NAMES)),
        st.booleans(),
        st.booleans(),
    ),
    _step(doors.drop_namesake, _NAMES, _FOLDERS, _SOME),
)
_FULL = st.one_of(
    _step(operating.set_quota, _NAMES, st.sampled_from(list(operating.QUOTAS))),
    _step(doors.arrive, st.just(["ann", "bob"]), st.just("SMTP"), _COUNTS, _SHAPES),
    _step(doors.send_again),
)
_MOVES = st.one_of(
    _step(
        importing.take_over,
        _NAMES,
        st.sampled_from(list(importing.WRITERS)),
        _COUNTS,
        _SHAPES,
        st.sampled_from(list(LINE_ENDS)),
    ),
    _step(importing.adopt, _NAMES),
    _step(keeping.back_up, _NAMES),
    _step(keeping.restore_backup, _NAMES),
)
_CLIENTS = _step(visits.visit, _LOGINS, _PICKS, _PICKS, st.sampled_from(list(visits.ENDS)))
_IMAP = st.one_of(
    _step(imap.set_flags, _NAMES, _FOLDERS, _SOME, _FLAGS),
    _step(imap.set_flags_meanwhile, _NAMES, _FLAGS),
    _step(imap.expunge, _NAMES, _FOLDERS, _SOME, st.booleans()),
    _step(imap.move, _NAMES, _FOLDERS, _SOME),
    _step(imap.copy, _NAMES, _FOLDERS, _SOME, st.booleans()),
)
_HELD = st.one_of(
    _step(keeping.restore, _NAMES, _SOME, st.booleans()),
    _step(keeping.restore, _NAMES, _SOME, st.booleans()),
    _step(keeping.purge, _BOTH),
)
_RULES = st.one_of(
    _step(operating.set_hold, _NAMES, _HOLDS),
    _FULL,
    _step(operating.set_view, _NAMES, st.sampled_from([(), ("INBOX", "Junk"), ("Junk", "INBOX")])),
    _step(operating.enable, _NAMES, st.booleans()),
    _step(operating.add_app_password, _NAMES),
    _step(operating.revoke_app_password, _NAMES),
    _step(operating.change_password, _NAMES),
)
_UPKEEP = st.one_of(
    _step(keeping.harm_index, _NAMES, _FOLDERS, st.sampled_from(list(foreign.HARM))),
    _step(keeping.harm_index, _NAMES, _FOLDERS, st.sampled_from(list(foreign.HARM))),
    _step(keeping.lose_count, _NAMES),
    _step(keeping.reindex, _NAMES),
    _step(operating.reload, st.sampled_from(["ready", "welcome"])),
    _step(operating.restart),
)
_TIME = st.one_of(_step(operating.wait), _step(operating.check_nothing, st.integers(1, 3)))
_ELSEWHERE = _step(
    collecting.elsewhere,
    st.one_of(
        _step(doors.arrive, st.just([collecting.SOURCE]), st.just("LMTP"), _COUNTS, _SHAPES),
        _step(keeping.restore, st.just(collecting.SOURCE), _SOME, st.booleans()),
        _step(keeping.restore, st.just(collecting.SOURCE), _SOME, st.booleans()),
        _step(operating.set_hold, st.just(collecting.SOURCE), _HOLDS),
        _step(visits.visit, st.just(collecting.SOURCE), _PICKS, _PICKS, st.sampled_from(["quits"])),
    ),
)
_AGAIN = st.sampled_from(["dedupe", "fetch"])
_COLLECTOR = st.one_of(
    _step(collecting.collect, _AGAIN),
    _step(collecting.collect, _AGAIN),
    _step(
        collecting.set_policy,
        st.sampled_from(collecting.KEEPS),
        st.sampled_from([0, 0, 0, 1, 9]),
        st.sampled_from([0, 0, 0, 1, 9, 64]),
        st.sampled_from(["bob", "Bob", "bob@localhost"]),
    ),
    _ELSEWHERE,
    _ELSEWHERE,
)
KILLS = st.one_of(
    _step(operating.kill),
    _step(visits.kill_at_quit, _NAMES, _SOME),
    _step(
        collecting.collect,
        _AGAIN,
        st.sampled_from(["the collector", "the other server"]),
        st.floats(0, 0.3).map(lambda seconds: round(seconds, 3)),
    ),
    _step(doors.kill_while_they_arrive, _BOTH, _COUNTS, st.integers(0, 64)),
)
POST_OFFICE = _often((3, _MAIL), (3, _CLIENTS), (2, _HELD), (1, _TIME))
SHARED = _often((3, _MAIL), (2, _CLIENTS), (4, _IMAP), (1, _HELD), (1, _TIME))
COLLECTED = _often((6, _COLLECTOR), (1, _CLIENTS), (1, _HELD), (1, _UPKEEP))
FULL = _often((6, _FULL), (2, _MAIL), (1, _CLIENTS), (1, _HELD), (1, _RULES), (1, _MOVES))
ANYTHING = _often(
    (4, _MAIL),
    (4, _CLIENTS),
    (3, _IMAP),
    (2, _HELD),
    (1, _RULES),
    (1, _UPKEEP),
    (1, _TIME),
    (1, _MOVES),
    (3, _COLLECTOR),
)
