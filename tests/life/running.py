"""Runs lives, and reports which steps broke a promise."""

from __future__ import annotations

import traceback

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from ..collect.lives import Collecting
from .machine import STORIES, HardLife, Life

LEVELS: dict[str, type[RuleBasedStateMachine]] = {
    "thread": Life,
    "processes": HardLife,
    "collector": Collecting,
}
"""Ways to run a life: the server in this process, the server as processes that are sometimes
killed, or only the collector with a hostile server."""


class BrokenPromise(AssertionError):
    """A life failed; the text has the error, the steps in words and as code, and the seed."""


def live(level: str, number: int, *, lives: int, steps: int, shrink: bool = False) -> None:
    """Run random lives; ``number`` is the seed, ``steps`` the length of each life.

    Raises:
        BrokenPromise: a life failed; with ``shrink`` after a search for a shorter one (minutes).
    """
    STORIES.clear()
    chosen = settings(
        max_examples=lives,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )
    try:
        run_state_machine_as_test(seed(number)(LEVELS[level]), settings=chosen)
    except Exception as error:
        story = "\n  ".join(["Steps:", *min(STORIES, key=len, default=[])])
        again = (
            f"Repeat it: ./dev life --level {level} --seed {number} (add --shrink for fewer steps)"
        )
        report = "".join(traceback.format_exception(error))
        raise BrokenPromise("\n\n".join([report, story, str(error), again])) from None
