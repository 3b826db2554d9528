"""Which of n segments to keep, and which to run forward again, where not all of them fit in memory.

To run n segments backward, the states inside of each have to be there when its turn comes, from the last to the first.
A segment that was not kept is run forward again from a checkpoint, the state that it began with. The fewest runs
within a given memory follow from dynamic programming (treeverse, Griewank 1992; revolve, Griewank & Walther 2000;
for recurrent networks Gruslys et al. 2016, whose "mixed" strategy this is: both kinds of memory have their own price).

The strategies here are the instructions of ``instructions.py``, in which a segment stands for a step: ``Forward(0, 3)``
runs the first three segments.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from .instructions import Backward, Forget, Forward, Instruction, Remember, Restore, Segments

#: ``(segments, slots, remembered)`` to what is done with them first.
Choice = Callable[[int, int, bool], int]

_NEVER = np.iinfo(np.int32).max // 4


#: What can be done with segments that are left: keep the first one, make a checkpoint, or run so many of them forward.
_KEEP, _SAVE = 0, -1


class Range(NamedTuple):
    """Segments that are still to be run backward; ``remembered``: the state before them can be gone back to."""

    first: int
    last: int
    slots: int
    remembered: bool


class Sweep(NamedTuple):
    """What running segments backward takes, from :meth:`Strategy.counted`.

    Attributes
    ----------
    forward_steps : int
        Steps run forward, all runs together.
    before, after : dict of int to int
        For numbers of segments in memory the most checkpoints beside them: before the last segment has first run, and
        from then on. One segment that is let go of leaves its room to the next.
    """

    forward_steps: int
    before: dict[int, int]
    after: dict[int, int]


class Strategy(Protocol):
    """How to run segments backward where not all of them fit."""

    def moves(self, n: int) -> Iterator[Instruction]:
        """What to do with n segments, which stand for steps."""

    def counted(self, parts: Segments) -> Sweep:
        """What that takes, where the segments are these."""


@dataclass(frozen=True)
class TwoSweeps:
    """Run n segments backward of which the last ``kept`` are kept at once, and every other is run forward once more.

    That is n runs forward and ``n - kept`` more; in between there are ``n - kept - 1`` checkpoints.
    """

    kept: int

    def moves(self, n: int) -> Iterator[Instruction]:
        again = n - self.kept
        for k in range(n):
            if 0 < k < again:
                yield Remember(k)
            yield Forward(k, k + 1, keep=k >= again)
        for k in reversed(range(n)):
            if k < again:
                yield Restore(k)
                yield Forward(k, k + 1, keep=True)
            yield Backward(k, k + 1)
            if 0 < k < again:
                yield Forget(k)

    def counted(self, parts: Segments) -> Sweep:
        n, again = len(parts), max(0, len(parts) - self.kept)
        at_once = {n - again: max(0, again - 1)}
        return Sweep(parts.edge(n) - parts.edge(0) + parts.edge(again) - parts.edge(0), at_once, at_once)


def count(moves: Iterator[Instruction], parts: Segments) -> Sweep:
    """Walk through the moves of a strategy, of which there are a few for every segment, and count."""
    kept = room = checkpoints = forward_steps = 0
    before: dict[int, int] = {}
    after: dict[int, int] = {}
    ended = False
    for move in moves:
        match move:
            case Forward(first, last, keep):
                forward_steps += parts.edge(last) - parts.edge(first)
                kept, room = kept + keep, 1 - keep
                if last == len(parts) and not ended:
                    before[kept + room] = max(before.get(kept + room, 0), checkpoints)
                    ended = True
            case Backward():
                kept, room = kept - 1, 1
            case Remember():
                checkpoints += 1
            case Forget():
                checkpoints -= 1
        most = after if ended else before
        most[kept + room] = max(most.get(kept + room, 0), checkpoints)
    return Sweep(forward_steps, before, after)


class Reversals:
    """The fewest runs forward for 1 to n segments with 0 to ``slots`` slots of memory, and how they are reached.

    A checkpoint takes one slot and a kept segment ``kept`` of them. The state before the first segment is there, and
    so is room for one kept segment beside the slots: the one whose turn it is. Runs that keep count as well.

    Let F(n, s) be the fewest runs where the state before the n segments can be gone back to, and G(n, s) where it is
    the present state and nothing else. With n > 1 segments left:

    ``F(n, s) = min(min_y y + G(n - y, s) + F(y, s), 1 + G(n - 1, s - kept))``: run y of them, deal with those after
    them, go back and deal with the y; or keep the first one, which ends with the state before the others;
    ``G(n, s) = min(F(n, s - 1), 1 + G(n - 1, s - kept))``: make a checkpoint; or keep the first one.

    Where nothing but checkpoints fits, F(n, s) - n is the figure of revolve with c = s + 1 snapshots:
    ``r n - C(c + r, c + 1)`` for the least r with ``C(c + r, c) >= n``.
    """

    def __init__(self, n: int, slots: int, kept: int) -> None:
        self.n = n
        self.slots = slots
        self.kept = kept
        F = np.full((n + 1, slots + 1), _NEVER, np.int32)
        G = F.copy()
        self._split: np.ndarray[Any, Any] = np.zeros((n + 1, slots + 1), np.int16)  # y, or 0: keep the first one
        self._save: np.ndarray[Any, Any] = np.zeros((n + 1, slots + 1), bool)
        F[:2] = G[:2] = [[0], [1]]
        for m in range(2, n + 1):
            of_split = np.arange(1, m, dtype=np.int32)[:, None] + G[m - 1 : 0 : -1] + F[1:m]
            best = np.argmin(of_split, axis=0)
            F[m], self._split[m] = np.take_along_axis(of_split, best[None], 0)[0], best + 1
            if slots >= kept:
                G[m, kept:] = 1 + G[m - 1, : slots + 1 - kept]
                keep = G[m] < F[m]
                F[m, keep], self._split[m, keep] = G[m, keep], 0
            if slots:
                self._save[m, 1:] = F[m, :-1] <= G[m, 1:]
                G[m, 1:] = np.minimum(F[m, :-1], G[m, 1:])
        self._runs = F[:, -1].copy()

    def runs(self, n: int | None = None) -> int:
        """F(n, s) with all slots: runs of a segment forward."""
        return int(self._runs[self.n if n is None else n])

    def choice(self, n: int, slots: int, *, remembered: bool) -> int:
        """What is done first with n segments: how many are run forward, or :data:`_KEEP`, or :data:`_SAVE`."""
        if n == 1:
            return _KEEP
        if remembered:
            return int(self._split[n, slots])
        return _SAVE if self._save[n, slots] else _KEEP

    def written(self, *numbers: int) -> Reversal:
        """How to run so many segments backward with all slots in :meth:`runs` runs, without the tables."""
        choices = {}
        for n in numbers:
            choices[n] = array("h")
            for _ in _moves(n, self.slots, self.kept, self._choices(choices[n])):
                pass
        return Reversal(self.slots, self.kept, choices)

    def _choices(self, written: array[int]) -> Choice:
        def choose(n: int, slots: int, remembered: bool) -> int:
            written.append(self.choice(n, slots, remembered=remembered))
            return written[-1]

        return choose


class Reversal:
    """What :class:`Reversals` found for some numbers of segments, in a few bytes for each of them."""

    def __init__(self, slots: int, kept: int, choices: dict[int, array[int]]) -> None:
        self._slots = slots
        self._kept = kept
        self._choices = choices

    def moves(self, n: int) -> Iterator[Instruction]:
        written = iter(self._choices[n])
        return _moves(n, self._slots, self._kept, lambda *_: next(written))

    def counted(self, parts: Segments) -> Sweep:
        return count(self.moves(len(parts)), parts)


def _moves(n: int, slots: int, kept: int, choose: Choice) -> Iterator[Instruction]:
    """``choose`` says of every :class:`Range`, in the order in which they come, what is done with it first."""
    todo: list[Instruction | Range] = [Range(0, n, slots, remembered=True)]  # what is still to be done, the next on top
    while todo:
        task = todo.pop()
        if not isinstance(task, Range):
            yield task
            continue
        first, last, slots, remembered = task
        chosen = choose(last - first, slots, remembered)
        if chosen == _SAVE:
            yield Remember(first)
            todo += [Forget(first), Range(first, last, slots - 1, remembered=True)]
        elif chosen != _KEEP:
            middle = first + chosen
            yield Forward(first, middle, keep=False)
            todo += [
                Range(first, middle, slots, remembered=True),
                Restore(first),
                Range(middle, last, slots, remembered=False),
            ]
        else:
            yield Forward(first, first + 1, keep=True)
            todo.append(Backward(first, first + 1))
            if last - first > 1:
                todo.append(Range(first + 1, last, slots - kept, remembered=False))
