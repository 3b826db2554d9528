"""Which of n segments to keep, and which to run forward again, where not all of them fit in memory.

To run n segments backward, the states inside of each have to be there when its turn comes, from the last to the first.
A segment that was not kept is run forward again from a checkpoint, the state that it began with. The fewest runs
within a given memory follow from dynamic programming (treeverse, Griewank 1992; revolve, Griewank & Walther 2000;
for recurrent networks Gruslys et al. 2016, whose "mixed" strategy this is: both kinds of memory have their own price).

The strategies here are the instructions of ``instructions.py``, in which a segment stands for a step: ``Forward(0, 3)``
runs the first three segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .instructions import Backward, Forget, Forward, Instruction, Remember, Restore

_NEVER = np.iinfo(np.int32).max // 4


class Range(NamedTuple):
    """Segments that are still to be run backward; ``remembered``: the state before them can be gone back to."""

    first: int
    last: int
    slots: int
    remembered: bool


def two_sweeps(n: int, kept: int) -> Iterator[Instruction]:
    """Run n segments backward of which the last ``kept`` are kept at once, and every other is run forward once more.

    That is n runs forward and ``n - kept`` more; in between there are ``n - kept - 1`` checkpoints.
    """
    again = n - kept
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

    def moves(self, n: int | None = None) -> Iterator[Instruction]:
        """How to run n segments backward with all slots in :meth:`runs` runs."""
        # What is still to be done, the next on top.
        todo: list[Instruction | Range] = [Range(0, self.n if n is None else n, self.slots, remembered=True)]
        while todo:
            task = todo.pop()
            if not isinstance(task, Range):
                yield task
                continue
            first, last, slots, remembered = task
            n = last - first
            split = int(self._split[n, slots])
            if n > 1 and not remembered and self._save[n, slots]:
                yield Remember(first)
                todo += [Forget(first), Range(first, last, slots - 1, remembered=True)]
            elif n > 1 and remembered and split:
                middle = first + split
                yield Forward(first, middle, keep=False)
                todo += [
                    Range(first, middle, slots, remembered=True),
                    Restore(first),
                    Range(middle, last, slots, remembered=False),
                ]
            else:
                yield Forward(first, first + 1, keep=True)
                todo.append(Backward(first, first + 1))
                if n > 1:
                    todo.append(Range(first + 1, last, slots - self.kept, remembered=False))
