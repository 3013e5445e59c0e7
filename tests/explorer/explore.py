"""Take programs through every interleaving of their steps, with a crash after every effect; states are merged.

A program is production's own code over `tests.explorer.world`.  It can't be copied in mid-air, so where it stands is
kept as the answers that its steps were given; it is run again from its start to find its next step, once for each list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from contracts.errors import StageError
from tests.explorer.standing_still import fingerprint, value_of
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
            self.stands = reached.op.name, value_of(reached.op.arguments), fingerprint(trace.tb_next if trace else None)
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
COMMUTES = ("tag", "free", "after")
"""Steps that others' steps change nothing for, nor they for others', whatever the order: taken at once.  So is an entry
that the ledger must refuse, since another follows the same one already: no later step lets it in."""


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


Look = Callable[[Outside, Outside, Op, Point], str]
"""World before and after a step, the step and who takes it -> what is wrong, empty when nothing is."""
Finish = Callable[[Outside, bool], str]
"""A world in which nobody has anything left to do, and whether nobody crashed -> what is wrong."""
End = Callable[[Outside, Point], str]
"""The world at the moment when a program's stage ended, and how it ended -> what is wrong."""


State = int
"""The number of a world, how often a program may still crash, and the number of where each program stands, packed."""
_OUTSIDE_BITS, _CRASH_BITS, _SLOT_BITS = 24, 4, 20
_SLOTS_FROM = _OUTSIDE_BITS + _CRASH_BITS
_OUTSIDE, _SLOT = (1 << _OUTSIDE_BITS) - 1, (1 << _SLOT_BITS) - 1
_ONE_CRASH = 1 << _OUTSIDE_BITS


class Move(NamedTuple):
    """What one program can do next, in one world."""

    says: str
    outside: int
    slot: int
    crash: bool = False


@dataclass
class Explorer:
    """Explores from one world.

    Worlds and places of programs are numbered, and what a program does in a world is worked out once: where the others
    stand does not matter to it.  A state is then one number, and going on from it is arithmetic.
    """

    rules: Rules
    look: Look
    end: End
    finish: Finish
    at_once: bool = True
    """Whether steps that commute with all others are taken at once."""
    states: int = 0
    finals: set[Outside] = field(default_factory=set)
    """The worlds in which nobody had anything left to do."""
    _outsides: list[Outside] = field(default_factory=list)
    _slots: list[Point | Dead | None] = field(default_factory=list)
    """Where a program may stand; None: it ended."""
    _numbers: dict[Any, int] = field(default_factory=dict)
    _moves: dict[int, tuple[Move, ...]] = field(default_factory=dict)
    _at_once: dict[int, bool] = field(default_factory=dict)
    _finished: set[tuple[int, bool]] = field(default_factory=set)

    def run(self, outside: Outside, programs: Sequence[Program], *, crashes: int) -> None:
        """Visit every state.

        Raises
        ------
        Broken
            With the steps that led there.
        """
        first = self._number(outside, self._outsides) | crashes << _OUTSIDE_BITS
        for k, program in enumerate(programs):
            first |= self._number(begin(program), self._slots) << _SLOTS_FROM + k * _SLOT_BITS
        try:
            self._visit(first, len(programs), crashes, None)
        except Broken:  # once more, keeping how each state was reached
            came: dict[State, tuple[State, str]] = {}
            self.states = 0
            self._finished.clear()
            self._visit(first, len(programs), crashes, came)

    def _visit(self, first: State, programs: int, crashes: int, came: dict[State, tuple[State, str]] | None) -> None:
        shifts = [_SLOTS_FROM + k * _SLOT_BITS for k in range(programs)]
        seen, waiting = {first}, [first]
        while waiting:
            state = waiting.pop()
            outside, left = state & _OUTSIDE, state >> _OUTSIDE_BITS & (1 << _CRASH_BITS) - 1
            slots = [state >> shift & _SLOT for shift in shifts]
            alone = next((k for k, slot in enumerate(slots) if self._is_at_once(slot, outside)), None)
            self.states += alone is None
            stuck = True
            try:
                for k in range(programs) if alone is None else (alone,):
                    slot = slots[k]
                    key = slot << _OUTSIDE_BITS | outside
                    moves = self._moves.get(key)
                    if moves is None:
                        moves = self._moves[key] = tuple(self._worked_out(slot, outside))
                    for move in moves:
                        if move.crash and not left:
                            continue
                        stuck = False
                        following = state + (move.outside - outside) + (move.slot - slot << shifts[k])
                        following -= _ONE_CRASH * move.crash
                        if following not in seen:
                            seen.add(following)
                            waiting.append(following)
                            if came is not None:
                                came[following] = (state, move.says)
                live = any(isinstance(self._slots[slot], Point) for slot in slots)
                if stuck and live:
                    raise Broken("nobody can go on, and not all have ended")
                if not live:
                    self._finish(outside, nobody_crashed=left == crashes)
            except Broken as broken:
                raise Broken("\n  ".join([*_trail(came or {}, state), str(broken)])) from None

    def _number(self, value: Any, among: list[Any]) -> int:
        key = (id(among), value)
        if key not in self._numbers:
            self._numbers[key] = len(among)
            among.append(value)
        return self._numbers[key]

    def _is_at_once(self, slot: int, outside: int) -> bool:
        key = slot << _OUTSIDE_BITS | outside
        if key not in self._at_once:
            self._at_once[key] = self._commutes(self._slots[slot], self._outsides[outside])
        return self._at_once[key]

    def _commutes(self, slot: Point | Dead | None, outside: Outside) -> bool:
        if not self.at_once or not isinstance(slot, Point) or slot.op is None:
            return False
        refused = slot.op.name == "insert" and self.rules.unique
        return slot.op.name in COMMUTES or (refused and outside.chain.refuses(slot.op.arguments))

    def _worked_out(self, number: int, at: int) -> Iterator[Move]:
        slot, outside = self._slots[number], self._outsides[at]
        if isinstance(slot, Dead):
            yield Move(f"{slot.start.program.name} is begun again", at, self._number(slot.start, self._slots))
            return
        if slot is None:
            return
        assert slot.op is not None, "who has no step left does not stand anywhere"
        name = slot.program.name
        try:
            after, key, answer = apply(slot.op, outside, name, self.rules)
        except Blocked:
            return
        says = f"{name}: {_said(slot.op)}" + (f" -> {type(answer).__name__}" if isinstance(answer, Exception) else "")
        self._say(self.look(outside, after, slot.op, slot), says)
        following: Point | None = slot.go(key, answer)
        while following is not None and following.op is None:
            self._say(self.end(after, following), f"{says}, and its stage ends with {following.ended!r}")
            following = following.next()
        yield Move(says, self._number(after, self._outsides), self._number(following, self._slots))
        if after is not outside and slot.program.may_crash:
            freed = after._replace(turn="") if after.turn == name else after
            dead = self._number(Dead(slot.start), self._slots)
            yield Move(f"{says}, and crashes", self._number(freed, self._outsides), dead, crash=True)

    def _finish(self, outside: int, *, nobody_crashed: bool) -> None:
        if (outside, nobody_crashed) not in self._finished:
            self._finished.add((outside, nobody_crashed))
            self.finals.add(self._outsides[outside])
            self._say(self.finish(self._outsides[outside], nobody_crashed), "at the end")

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


def _said(op: Op) -> str:
    if op.name == "insert":
        return "enters " + ", ".join(f"{entry.state.value} of version {entry.version}" for entry in op.arguments)
    return " ".join([op.name, *map(str, op.arguments)])


def _trail(came: Mapping[State, tuple[State, str]], state: State) -> list[str]:
    steps: list[str] = []
    while state in came:
        state, says = came[state]
        steps.append(says)
    return ["", *steps[::-1]]
