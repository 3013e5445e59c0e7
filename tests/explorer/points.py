"""Where programs stand: production's own code over `tests.explorer.world`, run on from step to step.

A program can't be copied in mid-air, so where it stands is kept as the answers that its steps were given; it is run
again from its start to find what it does next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from contracts.errors import StageError
from tests.explorer.standing_still import fingerprint, value_of
from tests.explorer.world import Chain, Op, Outside, Rules, Stop, Tape, apply

Stage = Callable[[Tape, Any], Any]
"""One pod's work: gets what the stage before returned."""


class Broken(AssertionError):  # noqa: N818  what it says is broken is an invariant
    """An invariant does not hold; says the way there."""


@dataclass(frozen=True)
class Program:
    """A named chain of stages; a crash begins the stage again, as Argo's retry does, or nobody ever does."""

    name: str
    stages: tuple[Stage, ...]
    may_crash: bool = True


@dataclass(eq=False, slots=True)
class Point:
    """Where a program stands: a stage, and the answers that its steps were given."""

    program: Program
    stage: int
    given: Any
    parent: Point | None = None
    answer: Any = None
    op: Op | None = None
    """The next step; None where the stage has ended."""
    ended: Any = None
    children: dict[Any, Point] = field(default_factory=dict)
    depth: int = field(init=False, default=0)
    start: Point = field(init=False)
    """The first point of this stage."""

    def __post_init__(self) -> None:
        self.start = self
        if self.parent is not None:
            self.depth, self.start = self.parent.depth + 1, self.parent.start
            if self.depth > MOST_STEPS:
                raise Broken(f"{self.program.name} does not come to an end")

    @property
    def saw(self) -> int | None:
        """What the program saw of the alias last."""
        return next((a for a in reversed(self.answers()) if a is None or isinstance(a, int)), None)

    def answers(self) -> list[Any]:
        found: list[Any] = []
        point: Point = self
        while point.parent is not None:
            found.append(point.answer)
            point = point.parent
        return found[::-1]

    def go(self, key: Any, answer: Any, reads: Reads) -> Point:
        """Return where the program stands when its step is answered."""
        if key not in self.children:
            _run(self, key, answer, reads)
        return self.children[key]

    def next(self) -> Point | None:
        """Return the first point of the next stage, None when the program has ended."""
        if isinstance(self.ended, StageError) or self.stage + 1 == len(self.program.stages):
            return None
        return begin(self.program, self.stage + 1, self.ended)


Reads = Callable[[Op], tuple[Any, Any] | None]
"""A step -> what tells its answer from others, and the answer, where it changes nothing for others; else None."""


def _run(point: Point, key: Any, answer: Any, reads: Reads) -> None:
    """Run a stage again with one more answer, and on while it reads what it was not seen to read there before."""

    def further(op: Op, frame: FrameType) -> Any:
        nonlocal point, key, answer
        point = _reached(point, key, answer, op, (value_of(op.arguments), fingerprint(frame, _ending.__code__)))
        read = reads(op)
        if read is None or read[0] in point.children:
            raise Stop
        key, answer = read
        return answer

    with suppress(Stop):
        ended = _ending(point.program.stages[point.stage], Tape((*point.answers(), answer), further), point.given)
        _reached(point, key, answer, None, repr(ended)).ended = ended


def _reached(parent: Point, key: Any, answer: Any, op: Op | None, stands: Any) -> Point:
    """Return the point after a step: one that goes on alike, if there is one."""
    point = Point(parent.program, parent.stage, parent.given, parent, answer, op)
    # while the turn is let go, what is to be returned stands in no variable
    if ALIKE is not None and (op is None or op.name != "free"):
        saw = point.saw if op is not None and op.name == "set alias" else None  # an invariant asks for it
        point = ALIKE.setdefault((point.start, op and op.name, stands, saw), point)
    parent.children[key] = point
    return point


def _ending(stage: Stage, tape: Tape, given: Any) -> Any:
    try:
        return stage(tape, given)
    except StageError as error:
        return error


MOST_STEPS = 120
ALIKE: dict[Any, Point] | None = {}
"""Points by what they go on by; None where each is to be taken for itself."""
BEGUN: dict[tuple[Program, int, str], Point] = {}


def forget() -> None:
    """Forget all points: production's code may be another now."""
    BEGUN.clear()
    Chain.known.clear()
    if ALIKE is not None:
        ALIKE.clear()


@contextmanager
def merging(wanted: bool) -> Iterator[None]:
    """Take programs that stand alike for one, or not: the same worlds are reached, after more steps."""
    global ALIKE
    kept, ALIKE = ALIKE, {} if wanted else None
    try:
        yield
    finally:
        ALIKE = kept


def begin(program: Program, stage: int = 0, given: Any = None) -> Point:
    """Return the first point of a stage: one, whatever way led to what it is given."""
    key = (program, stage, repr(given))
    if key not in BEGUN:
        point = BEGUN[key] = Point(program, stage, given)

        def further(op: Op, _: FrameType) -> None:
            point.op = op
            raise Stop

        with suppress(Stop):
            point.ended = _ending(program.stages[stage], Tape((), further), given)
    return BEGUN[key]


def run_alone(program: Program, outside: Outside, rules: Rules) -> tuple[Outside, Any, int]:
    """Run a program by itself; return the world, how it ended and how many entries and effects that took."""
    given, effects = None, 0

    def further(op: Op, _: FrameType) -> Any:
        nonlocal outside, effects
        before = outside
        outside, _, answer = apply(op, outside, program.name, rules)
        effects += outside._replace(turn="") != before._replace(turn="")
        return answer

    for stage in program.stages:
        given = _ending(stage, Tape((), further), given)
        if isinstance(given, StageError):
            break
    return outside, given, effects
