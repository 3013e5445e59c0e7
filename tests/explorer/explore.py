"""Take programs through every interleaving of their steps, with a crash after every effect; states are merged.

A program is production's own code over `tests.explorer.world`.  It can't be copied in mid-air, so where it stands is
kept as the answers that its steps were given; it is run again from its start to find its next step, once for each list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from contracts.errors import StageError
from tests.explorer.standing_still import fingerprint
from tests.explorer.world import Blocked, Chain, Op, Outside, Rules, Stop, Tape, apply

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


@dataclass(eq=False)
class Point:
    """Where a program stands: a stage, and the answers that its steps were given."""

    program: Program
    stage: int
    given: Any
    parent: Point | None = None
    answer: Any = None
    depth: int = 0
    children: dict[Any, Point] = field(default_factory=dict)
    op: Op | None = None
    """The next step; None where the stage has ended."""
    ended: Any = None
    stands: Any = None
    """What it goes on by; see `tests.explorer.standing_still`."""

    def __post_init__(self) -> None:
        if self.depth > MOST_STEPS:
            raise Broken(f"{self.program.name} does not come to an end")
        try:
            self.ended = self.program.stages[self.stage](Tape(self.answers()), self.given)
        except Stop as reached:
            self.op = reached.op
            trace = reached.__traceback__
            self.stands = fingerprint(trace.tb_next if trace else None)
        except StageError as error:
            self.ended = error

    @property
    def alike(self) -> Any:
        """What points that go on alike have in common."""
        if self.op is None:
            return self.program, self.stage, repr(self.ended)
        # while the turn is let go, what is to be returned stands in no variable
        return (self.program, self.stage, self.stands) if self.op.name != "free" else self

    def answers(self) -> list[Any]:
        found: list[Any] = []
        point: Point = self
        while point.parent is not None:
            found.append(point.answer)
            point = point.parent
        return found[::-1]

    def go(self, key: Any, answer: Any) -> Point:
        if key not in self.children:
            point = Point(self.program, self.stage, self.given, self, answer, self.depth + 1)
            self.children[key] = point if ALIKE is None else ALIKE.setdefault(point.alike, point)
        return self.children[key]

    @property
    def start(self) -> Point:
        """The first point of this stage."""
        point: Point = self
        while point.parent is not None:
            point = point.parent
        return point

    def next(self) -> Point | None:
        """Return the first point of the next stage, None when the program has ended."""
        if isinstance(self.ended, StageError) or self.stage + 1 == len(self.program.stages):
            return None
        return begin(self.program, self.stage + 1, self.ended)


MOST_STEPS = 120
ALIKE: dict[Any, Point] | None = {}
"""Points by what they go on by; None where each is to be taken for itself."""
BEGUN: dict[tuple[Program, int, str], Point] = {}
COMMUTES = ("tag", "free")
"""Steps after which the others can do nothing that they could not before, in any order: taken at once."""


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
        BEGUN[key] = Point(program, stage, given)
    return BEGUN[key]


class Dead(NamedTuple):
    """A program that crashed and may be begun again."""

    start: Point


class State(NamedTuple):
    """The world, where each program stands (None: ended), and how often one may still crash."""

    outside: Outside
    slots: tuple[Point | Dead | None, ...]
    crashes: int


Look = Callable[[Outside, Outside, Op, Point], str]
"""World before and after a step, the step and who takes it -> what is wrong, empty when nothing is."""
Finish = Callable[[Outside, bool], str]
"""A world in which nobody has anything left to do, and whether nobody crashed -> what is wrong."""
End = Callable[[Outside, Point], str]
"""The world at the moment when a program's stage ended, and how it ended -> what is wrong."""


@dataclass
class Explorer:
    """Explores from one world.  `trail` holds how each state was reached, for the reader of a failure."""

    rules: Rules
    look: Look
    end: End
    finish: Finish
    states: int = 0
    finals: set[Outside] = field(default_factory=set)
    """The worlds in which nobody had anything left to do."""
    taken: dict[tuple[Point, Outside], tuple[str, Outside, Point | None] | None] = field(default_factory=dict)

    def run(self, outside: Outside, programs: Sequence[Program], *, crashes: int) -> None:
        """Visit every state.

        Raises
        ------
        Broken
            With the steps that led there.
        """
        first = State(outside, tuple(begin(program) for program in programs), crashes)
        came: dict[State, tuple[State, str] | None] = {first: None}
        waiting = [first]
        while waiting:
            state = waiting.pop()
            self.states += 1
            nothing_left = True
            try:
                for says, following in self._steps(state):
                    nothing_left = False
                    if following not in came:
                        came[following] = (state, says)
                        waiting.append(following)
                if nothing_left and any(isinstance(slot, Point) for slot in state.slots):
                    raise Broken("nobody can go on, and not all have ended")
                if nothing_left or all(not isinstance(slot, Point) for slot in state.slots):
                    self.finals.add(state.outside)
                    self._say(self.finish(state.outside, state.crashes == crashes), "at the end")
            except Broken as broken:
                raise Broken("\n  ".join([*_trail(came, state), str(broken)])) from None

    def _steps(self, state: State) -> Iterator[tuple[str, State]]:
        live = [k for k, slot in enumerate(state.slots) if isinstance(slot, Point)]
        alone = next((k for k in live if getattr(_point(state, k).op, "name", "") in COMMUTES), None)
        for k in [alone] if alone is not None else live:
            yield from self._step(state, k)
        for k, slot in enumerate(state.slots):
            if isinstance(slot, Dead) and alone is None:
                yield f"{slot.start.program.name} is begun again", _with(state, k, slot.start)

    def _step(self, state: State, k: int) -> Iterator[tuple[str, State]]:
        point = _point(state, k)
        taken = self._take(point, state.outside)
        if taken is None:
            return
        says, outside, following = taken
        yield says, _with(state._replace(outside=outside), k, following)
        if outside is not state.outside and state.crashes and point.program.may_crash:
            freed = outside._replace(turn="") if outside.turn == point.program.name else outside
            crashed = state._replace(outside=freed, crashes=state.crashes - 1)
            yield f"{says}, and crashes", _with(crashed, k, Dead(point.start))

    def _take(self, point: Point, outside: Outside) -> tuple[str, Outside, Point | None] | None:
        """Take a program's step in a world; None while it has to wait.  Others' whereabouts do not matter to it."""
        if (point, outside) in self.taken:
            return self.taken[point, outside]
        op = point.op
        assert op is not None, "who has no step left is not live"
        name = point.program.name
        try:
            after, key, answer = apply(op, outside, name, self.rules)
        except Blocked:
            self.taken[point, outside] = None
            return None
        says = f"{name}: {_said(op)}" + (f" -> {type(answer).__name__}" if isinstance(answer, Exception) else "")
        self._say(self.look(outside, after, op, point), says)
        following: Point | None = point.go(key, answer)
        while following is not None and following.op is None:
            self._say(self.end(after, following), f"{says}, and its stage ends with {following.ended!r}")
            following = following.next()
        self.taken[point, outside] = says, after, following
        return says, after, following

    @staticmethod
    def _say(wrong: str, where: str) -> None:
        if wrong:
            raise Broken(f"{where}: {wrong}")


def run_alone(program: Program, outside: Outside, rules: Rules) -> tuple[Outside, Any, int]:
    """Run a program by itself; return the world, how it ended and how many entries and effects that took."""
    point: Point | None = begin(program)
    ended, effects = None, 0
    while point is not None:
        while point.op is not None:
            before = outside
            outside, key, answer = apply(point.op, outside, program.name, rules)
            effects += outside._replace(turn="") != before._replace(turn="")
            point = point.go(key, answer)
        ended = point.ended
        point = point.next()
    return outside, ended, effects


def _point(state: State, k: int) -> Point:
    slot = state.slots[k]
    assert isinstance(slot, Point)
    return slot


def _with(state: State, k: int, slot: Point | Dead | None) -> State:
    return state._replace(slots=(*state.slots[:k], slot, *state.slots[k + 1 :]))


def _said(op: Op) -> str:
    if op.name == "insert":
        return "enters " + ", ".join(f"{entry.state.value} of version {entry.version}" for entry in op.arguments)
    return " ".join([op.name, *map(str, op.arguments)])


def _trail(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    steps: list[str] = []
    while (before := came[state]) is not None:
        state, says = before
        steps.append(says)
    return ["", *steps[::-1]]
