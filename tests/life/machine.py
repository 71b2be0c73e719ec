"""The state machine: steps in any order, and after each step all promises must hold."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from . import steps
from .looking import look, look_thoroughly
from .servers import AsProcesses, InThread
from .steps import Step
from .world import World

STORIES: list[list[str]] = []
"""The story of each life that failed."""


class Life(RuleBasedStateMachine):
    """The life of one server in a thread of this process."""

    make: Callable[[], World] = staticmethod(lambda: World(InThread))

    def __init__(self) -> None:
        super().__init__()
        self.world = self.make()
        self._is_well = True
        """The last step and the check after it succeeded."""

    def teardown(self) -> None:
        try:
            if self._is_well:
                self._is_well = False
                for world in self.world.all():
                    look_thoroughly(world)
                self._is_well = True
        finally:
            self._end()

    def _end(self) -> None:
        world = self.world
        if self._is_well:
            return world.end()
        STORIES.append(world.story)
        return world.abandon()

    def _do(self, step: Step) -> None:
        self._is_well = False
        function, *arguments = step
        function(self.world, *arguments)

    @invariant()
    def all_is_as_promised(self) -> None:
        self._is_well = False
        if self.world.unchecked:
            self.world.unchecked -= 1
        else:
            look(self.world)
        self._is_well = True

    # Hypothesis disables some of these rules in each life, so that rare steps occur together.

    @rule(step=steps.ANYTHING)
    def live(self, step: Step) -> None:
        self._do(step)

    @rule(step=steps.POST_OFFICE)
    def come_and_go(self, step: Step) -> None:
        self._do(step)

    @rule(step=steps.SHARED)
    def share(self, step: Step) -> None:
        self._do(step)

    @rule(step=steps.FULL)
    def fill(self, step: Step) -> None:
        self._do(step)

    @rule(step=steps.COLLECTED)
    def collect(self, step: Step) -> None:
        self._do(step)


class HardLife(Life):
    """The life of a supervisor and two workers, which are sometimes killed."""

    make = staticmethod(lambda: World(AsProcesses, workers=2))

    @rule(step=steps.KILLS)
    def kill(self, step: Step) -> None:
        self._do(step)
