"""Take programs through every interleaving of their steps, with a crash after every effect; states are merged.

Where a program stands, and what it does next, is `tests.explorer.points`'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from tests.explorer.points import Broken, Point, Program, begin
from tests.explorer.world import Blocked, Op, Outside, Rules, apply

COMMUTES = ("tag", "free", "after")
"""Steps that others' steps change nothing for, nor they for others', whatever the order: taken at once.  So is an entry
that the ledger must refuse, since another follows the same one already: no later step lets it in.  So is what the one
does to the server that holds the turn: no program reads it, `look` sees to it that no other touches it meanwhile, and
what it asks of the ledger then, it asks of the shortest."""


class Idle(NamedTuple):
    """A program that does not run: it crashed, or was not begun.  It may be begun (again), or nobody ever does."""

    start: Point


Look = Callable[[Outside, Outside, Op, Point], str]
"""World before and after a step, the step and who takes it -> what is wrong, empty when nothing is."""
Finish = Callable[[Outside, bool], str]
"""A world in which nobody has anything left to do, and whether nobody crashed -> what is wrong."""
End = Callable[[Outside, Point], str]
"""The world at the moment when a program's stage ended, and how it ended -> what is wrong."""


Box = tuple[int, ...]
"""A world, how often a program may still crash, and for each program a set of places, all by their numbers.

Whatever place of its set each program stands at, that is a state, and it is reached.
"""


class Move(NamedTuple):
    """What one program can do next, from one place in one world."""

    says: str
    place: int
    to_world: int
    to_place: int
    crash: bool = False

    def changes(self, world: int) -> bool:
        """Whether it is one that others may see, or a crash."""
        return self.crash or self.to_world != world


class Acts(NamedTuple):
    """What one program can do in one world, from a set of places."""

    at_once: tuple[Move, ...]
    """What is done before anything else is."""
    others: tuple[Move, ...]
    waits: int
    """The set without the places from which something is done at once."""
    rests: bool
    """Whether it may have nothing left to do: it ended, or it does not run."""
    blocked: bool
    """Whether it may have to wait for others."""


class Step(NamedTuple):
    """A move of one program, by its index, and where all may stand when it is made."""

    box: Box
    by: int
    move: Move
    beside: list[int]


T = TypeVar("T")


class Numbered(Generic[T]):
    """Values, each with a number."""

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}
        self._values: list[T] = []

    def number(self, value: T) -> int:
        """Return the number of a value."""
        found = self._numbers.setdefault(value, len(self._values))
        if found == len(self._values):
            self._values.append(value)
        return found

    def __getitem__(self, number: int) -> T:
        return self._values[number]

    def __iter__(self) -> Iterator[T]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(repr=False)
class Explorer:
    """Explores from one world.

    Worlds and places of programs are numbered, and what a program does in a world is worked out once: where the others
    stand does not matter to it.
    """

    rules: Rules
    look: Look
    end: End
    finish: Finish
    at_once: bool = True
    """Whether steps that commute with all others are taken at once."""
    together: bool = True
    """Whether the places on a program's way to its next effect are taken together.

    What it reads on that way changes nothing for others, nor what they read for it: in one world every place on one
    program's way is reached with every place on another's.  So only effects are put in every order.
    """
    tags: bool = False
    """Whether worlds that differ in tags alone are told apart: no step reads one."""
    boxes: int = 0
    finals: set[Outside] = field(default_factory=set)
    """The worlds in which nobody had anything left to do."""
    worlds: Numbered[Outside] = field(default_factory=Numbered)
    places: Numbered[Point | Idle | None] = field(default_factory=Numbered)
    """Where a program may stand; None: it ended."""
    _sets: Numbered[frozenset[int]] = field(default_factory=Numbered)
    _moves: dict[tuple[int, int], tuple[Move, ...]] = field(default_factory=dict)
    _spreads: dict[tuple[int, int], int] = field(default_factory=dict)
    _acts: dict[tuple[int, int], Acts] = field(default_factory=dict)
    _finished: set[tuple[int, bool]] = field(default_factory=set)
    _from: int | None = None
    """The place from which a move is being worked out."""

    def run(self, outside: Outside, programs: Sequence[Program], *, crashes: int, all_begin: bool = True) -> None:
        """Visit every state.

        Parameters
        ----------
        crashes : int
            How many there may be at most, each after any effect of any program.
        all_begin : bool
            Whether each program begins: else also those worlds come to an end in which some never do.

        Raises
        ------
        Broken
            With the steps that led there.
        """
        world = self.worlds.number(outside)
        firsts = [begin(program) for program in programs]
        starts = [self._only(self.places.number(first if all_begin else Idle(first))) for first in firsts]
        came: dict[Box, Step | None] = {}
        last: Step | None = None
        try:
            first: Box = (world, crashes, *(self._spread(start, world) for start in starts))
            came[first] = None
            waiting = [first]
            while waiting:
                box = waiting.pop()
                last = came[box]
                for last in self._steps(box, crashes):
                    following = self._after(last)
                    if following not in came:
                        came[following] = last
                        waiting.append(following)
        except Broken as broken:
            raise Broken("\n  ".join(["", *self._trail(last, came, world, starts), str(broken)])) from None
        self.boxes = len(came)

    def _steps(self, box: Box, crashes: int) -> Iterator[Step]:
        world, left, *sets = box
        acts = [self._acting(each, world) for each in sets]
        if all(act.rests or act.blocked for act in acts):
            if any(act.blocked for act in acts):
                raise Broken("nobody can go on, and not all have ended")
            self._finish(world, nobody_crashed=left == crashes)
        waits = [act.waits for act in acts]
        for by, act in enumerate(acts):
            for moves, beside in (act.at_once, [*waits[:by], *sets[by:]]), (act.others, waits):
                if moves and all(self._sets[each] for k, each in enumerate(beside) if k != by):
                    yield from (Step(box, by, move, beside) for move in moves if left or not move.crash)

    def _after(self, step: Step) -> Box:
        to = step.move.to_world
        sets = [
            self._spread(self._only(step.move.to_place) if k == step.by else each, to)
            for k, each in enumerate(step.beside)
        ]
        return (to, step.box[1] - step.move.crash, *sets)

    def _only(self, place: int) -> int:
        return self._sets.number(frozenset({place}))

    def _spread(self, places: int, world: int) -> int:
        """Return where a program may stand in a world, from where it may have stood when that came about."""
        found = self._spreads.get((places, world))
        if found is None:
            spread: set[int] = set()
            for place in self._sets[places]:
                *read, effect = self._way(place, world)
                spread |= {effect, *(p for p in read if not self._commutes(p, world))}
            found = self._spreads[places, world] = self._sets.number(frozenset(spread))
        return found

    def _way(self, place: int, world: int) -> list[int]:
        """Return the places from one to the next effect."""
        way = [place]
        while self.together and (moves := self._moving(way[-1], world)) and not moves[0].changes(world):
            if moves[0].to_place in way:
                raise Broken("a program reads the same over and over")
            way.append(moves[0].to_place)
        return way

    def _acting(self, places: int, world: int) -> Acts:
        found = self._acts.get((places, world))
        if found is None:
            at_once: list[Move] = []
            others: list[Move] = []
            waits, rests, blocked = set(), False, False
            for place in self._sets[places]:
                commutes, moves = self._commutes(place, world), self._moving(place, world)
                if not isinstance(self.places[place], Point):
                    rests = True
                elif not moves:
                    blocked = True
                if not commutes:
                    waits.add(place)
                for move in moves:
                    if move.changes(world) or not self.together:
                        (at_once if commutes else others).extend(self._with_what_follows(move))
            waiting = self._sets.number(frozenset(waits))
            found = self._acts[places, world] = Acts(tuple(at_once), tuple(others), waiting, rests, blocked)
        return found

    def _with_what_follows(self, move: Move) -> Iterator[Move]:
        """Yield a move with what is done at once after it."""
        if not self._commutes(move.to_place, move.to_world):
            yield move
            return
        for more in self._moving(move.to_place, move.to_world):
            says, crash = f"{move.says}\n  {more.says}", move.crash or more.crash
            yield from self._with_what_follows(Move(says, move.place, more.to_world, more.to_place, crash))

    def _commutes(self, place: int, world: int) -> bool:
        point, outside = self.places[place], self.worlds[world]
        if not self.at_once or not isinstance(point, Point) or point.op is None:
            return False
        match point.op.name:
            case "insert":
                return self.rules.unique and outside.chain.refuses(point.op.arguments)
            case "serve" | "stop":
                return self.rules.exclusive and outside.turn == point.program.name
            case name:
                return name in COMMUTES

    def _moving(self, place: int, world: int) -> tuple[Move, ...]:
        found = self._moves.get((place, world))
        if found is None:
            self._from = place
            found = self._moves[place, world] = tuple(self._worked_out(place, world))
            self._from = None
        return found

    def _worked_out(self, place: int, world: int) -> Iterator[Move]:
        stands, outside = self.places[place], self.worlds[world]
        if isinstance(stands, Idle):
            first = stands.start
            says = f"{first.program.name}: its stage {first.stage + 1} begins"
            yield Move(says, place, world, self.places.number(first))
            return
        if stands is None:
            return
        assert stands.op is not None, "who has no step left does not stand anywhere"
        name = stands.program.name
        try:
            after, key, answer = self._applied(stands.op, outside, name)
        except Blocked:
            return
        says = f"{name}: {_said(stands.op)}" + (f" -> {type(answer).__name__}" if isinstance(answer, Exception) else "")
        self._say(self.look(outside, after, stands.op, stands), says)

        def reads(op: Op) -> tuple[Any, Any] | None:
            with suppress(Blocked):
                then, *read = self._applied(op, after, name)
                if then == after:
                    return tuple(read)
            return None

        following: Point | None = stands.go(key, answer, reads)
        while following is not None and following.op is None:
            self._say(self.end(after, following), f"{says}, and its stage ends with {following.ended!r}")
            following = following.next()
        to = self.worlds.number(after)
        yield Move(says, place, to, self.places.number(following))
        if to != world and stands.program.may_crash:
            freed = after._replace(turn="") if after.turn == name else after
            idle = self.places.number(Idle(stands.start))
            yield Move(f"{says}, and crashes", place, self.worlds.number(freed), idle, crash=True)

    def _applied(self, op: Op, outside: Outside, name: str) -> tuple[Outside, Any, Any]:
        after, key, answer = apply(op, outside, name, self.rules)
        return after if self.tags else after._replace(tags=outside.tags), key, answer

    def _finish(self, world: int, *, nobody_crashed: bool) -> None:
        if (world, nobody_crashed) not in self._finished:
            self._finished.add((world, nobody_crashed))
            self.finals.add(self.worlds[world])
            self._say(self.finish(self.worlds[world], nobody_crashed), "at the end")

    @staticmethod
    def _say(wrong: str, where: str) -> None:
        if wrong:
            raise Broken(f"{where}: {wrong}")

    def _trail(
        self, last: Step | None, came: Mapping[Box, Step | None], world: int, starts: Sequence[int]
    ) -> list[str]:  # fmt: skip
        """Return one way to where it broke: back from there, by where each program must have stood."""
        said: list[str] = []
        stood: dict[int, int] = {}
        if self._from is not None:
            program = self._program(self._from)
            stood = {k: self._from for k, start in enumerate(starts) if self._program(*self._sets[start]) is program}
        while True:
            at, beside = (last.move.to_world, list(last.beside)) if last else (world, list(starts))
            if last:
                beside[last.by] = self._only(last.move.to_place)
            for k, place in stood.items():
                stood[k], reads = self._came_by(place, at, self._sets[beside[k]])
                said += reads
            if last is None:
                return said[::-1]
            said.append(last.move.says)
            stood[last.by] = last.move.place
            last = came[last.box]

    def _came_by(self, place: int, world: int, places: Iterable[int]) -> tuple[int, list[str]]:
        """Return from which of these places a program came to where it is, and what it read, the last first."""
        for start in places:
            at, said = start, []
            while at != place and (moves := self._moves.get((at, world))) and not moves[0].changes(world):
                at = moves[0].to_place
                said.append(moves[0].says)
            if at == place:
                return start, said[::-1]
        raise AssertionError("it came from nowhere")

    def _program(self, place: int) -> Program:
        stands = self.places[place]
        assert stands is not None
        return stands.start.program


def _said(op: Op) -> str:
    if op.name == "insert":
        return "enters " + ", ".join(f"{entry.state.value} of version {entry.version}" for entry in op.arguments)
    return " ".join([op.name, *(str(argument)[:12] for argument in op.arguments)])
