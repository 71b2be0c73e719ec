"""Run lives, and report in words what broke a promise."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from .machine import STORIES, HardLife, Life

LEVELS = {"thread": Life, "processes": HardLife}
"""Ways to run the server: in this process, or as processes that are killed now and then."""


class BrokenPromise(AssertionError):
    """With the seed, and the steps of the shortest life that showed it."""


def live(level: str, number: int, *, lives: int, steps: int, shrink: bool = True) -> None:
    """Run random lives; ``number`` is the seed, ``steps`` the length of each life.

    Raises:
        BrokenPromise: with ``shrink`` after the search for the shortest life, which takes minutes.
    """
    STORIES.clear()
    wanted = settings(
        max_examples=lives,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )
    try:
        run_state_machine_as_test(seed(number)(LEVELS[level]), settings=wanted)
    except Exception as error:
        story = min(STORIES, key=len, default=[])
        again = f"./dev life --level {level} --seed {number}"
        raise BrokenPromise("\n  ".join([f"{error}", *story, f"again: {again}"])) from error
