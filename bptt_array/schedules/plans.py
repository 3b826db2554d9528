"""In which order segments of time run forward and backward within a memory budget, and what that costs.

:func:`plan` answers before anything runs. What its schedules are made of is in ``instructions.py``; how often which
segment runs is worked out in ``reversals.py``. No arrays in here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from ..checks import check_count, check_flag, only_settings
from . import sizes
from .chunks import best_chunks
from .instructions import (
    Backward,
    Forget,
    Forward,
    Instruction,
    Remember,
    Restore,
    Segments,
    TwoPeriods,
    check_truncate,
    truncated,
    windows,
)
from .reversals import Reversals, Strategy, TwoSweeps

#: Time is cut into at most so many segments to fit a budget; and so many sums may be taken for one table of the dynamic
#: programming, and for all that a plan tries: about 0.3 s in all.
FINEST, OF_A_TABLE, OF_A_PLAN = 1024, 2 * 10**7, 5 * 10**7

#: What a run of a segment takes beside its steps, in steps forward (on two CPU cores 0.1 at N = 32, H = 256, 3 of an
#: LSTM at N = 8, H = 64, 9 of tanh there, 17 at N = 1, H = 8): segments are no shorter than pays.
RUN = 8

#: Schedules of about so many segments are written down once; longer ones are made as they run.
FEW = 64

#: More than anything takes, and few enough to divide.
MOST_BYTES = 1 << 128

Truncate = int | tuple[int, int] | None


class Costs(NamedTuple):
    """Bytes, as :func:`plan` counts them.

    Attributes
    ----------
    fixed : int
        What is there once: gradients, copies of weights, the state before the first step.
    checkpoint : int
        The state between two steps.
    kept : int
        What a kept segment takes for each of its steps; it takes one checkpoint more.
    work : int
        What running a segment takes beside that, for each step of the longest one; likewise.
    chunk : int
        What each of the chunks takes in which a segment runs backward, if they run in parallel.
    segment : int
        What a kept segment takes once, whatever its length, beside the checkpoint: of a short one that is most.
    """

    fixed: int = 0
    checkpoint: int = 0
    kept: int = 0
    work: int = 0
    chunk: int = 0
    segment: int = 0

    def of_kept(self, steps: int) -> int:
        return self.segment + self.checkpoint + steps * self.kept

    def of_work(self, steps: int) -> int:
        return self.checkpoint + steps * self.work + self.chunk * best_chunks(steps)


NOTHING = Costs()


@only_settings({}, "a plan is as it was made; make another, rnn.plan(…)", {})
@dataclass(frozen=True)
class Plan:
    """A schedule and what it costs; ``print(plan)`` says it in words.

    Attributes
    ----------
    T : int
        Time steps.
    memory : int or None
        The budget in bytes.
    longest : int
        Steps of the longest segment.
    forward_steps : int
        Steps run forward; full BPTT within enough memory runs T.
    peak : int
        Bytes at once, at most.
    kept, checkpoints : int
        How many segments are kept and how many states remembered at once, at most.
    """

    T: int
    memory: int | None
    truncate: Truncate
    costs: Costs
    longest: int
    strategy: Strategy | None

    def schedule(self) -> Iterable[Instruction]:
        """The instructions, one after the other."""
        if self.strategy is not None:
            return self._budgeted(self.strategy)
        return self._few if FEW * self.longest >= self.T else self._keeping_all()

    def _keeping_all(self) -> Iterator[Instruction]:
        if isinstance(self.truncate, tuple):
            return TwoPeriods(self.T, *self.truncate, self.longest).schedule()
        return truncated(self.T, self._window, self.longest)

    @cached_property
    def _few(self) -> list[Instruction]:
        return list(self._keeping_all())

    @property
    def _window(self) -> int:
        """Steps that the gradient goes back through, but for the last window, which may be shorter."""
        assert not isinstance(self.truncate, tuple)  # where windows overlap, no step runs again
        return min(self.T, self.truncate or self.T)

    def _budgeted(self, strategy: Strategy) -> Iterator[Instruction]:
        """Windows within the budget; the states at both ends of each are remembered."""
        for begin, end in windows(self.T, self._window):
            parts, reached = Segments(begin, end, self.longest), begin
            if begin == 0:
                yield Remember(begin)
            for move in strategy.moves(len(parts)):  # over the numbers of the parts, not yet over steps
                match move:
                    case Forward(first, last, keep):
                        for k in range(first, last):
                            start, stop = parts[k]
                            yield Forward(start, stop, keep=keep)
                            if stop == end < self.T and reached < end:
                                yield Remember(end)
                            reached = max(reached, stop)
                    case Backward(first):
                        start, stop = parts[first]
                        yield Backward(start, stop, cut=stop == end)
                    case Remember(first) | Restore(first) | Forget(first):
                        yield move._replace(start=parts.edge(first))
            yield Forget(begin)
            if end < self.T:
                yield Restore(end)

    @cached_property
    def _counted(self) -> Counted:
        """What the schedule does, without a walk through it: it may be as long as time is."""
        if isinstance(self.truncate, tuple):
            periods = TwoPeriods(self.T, *self.truncate, self.longest)
            return Counted(periods.segments(), self.T, {periods.kept(): 0})
        others, rest = divmod(self.T - 1, self._window)  # windows before the last one, which ends at T
        whole, last = Segments(0, self._window, self.longest), Segments(0, rest + 1, self.longest)
        count = others * len(whole) + len(last)
        if self.strategy is None:
            return Counted(count, self.T, {len(whole): 0})
        of_whole, of_last = self.strategy.counted(whole), self.strategy.counted(last)
        forward_steps = others * of_whole.forward_steps + of_last.forward_steps
        at_once: dict[int, int] = {}
        # The state at the beginning is remembered, and that at the end once it was reached, if a window comes after.
        found = [(of_last.before, 1), (of_last.after, 1)]
        found += [(of_whole.before, 1), (of_whole.after, 2)] if others else []
        for most, ends in found:
            for kept, states in most.items():
                at_once[kept] = max(at_once.get(kept, 0), states + ends)
        return Counted(count, forward_steps, at_once)

    forward_steps = property(lambda self: self._counted.forward_steps)
    kept = property(lambda self: self._counted.kept)
    checkpoints = property(lambda self: self._counted.checkpoints)

    @property
    def peak(self) -> int:
        costs, longest = self.costs, self.longest
        at_once = self._counted.at_once.items()
        held = [kept * costs.of_kept(longest) + states * costs.checkpoint for kept, states in at_once]
        return costs.fixed + costs.of_work(longest) + max(held)

    def __str__(self) -> str:
        counted = self._counted
        budget = "" if self.memory is None else f" of {sizes.in_words(self.memory)}"
        cut = "" if self.truncate is None else f", truncate={self.truncate}"
        return (
            f"{self.T:,} steps{cut}: {sizes.in_words(self.peak)}{budget}, {counted.forward_steps:,} steps forward "
            f"({counted.forward_steps / self.T:.2f} T)\n"
            f"{counted.segments:,} segments of at most {self.longest:,} steps; at most {counted.kept:,} of them "
            f"kept and {counted.checkpoints:,} states remembered at once"
        )


class Counted(NamedTuple):
    """What a schedule does; ``at_once``: for numbers of segments in memory the most states remembered beside them."""

    segments: int
    forward_steps: int
    at_once: dict[int, int]

    @property
    def kept(self) -> int:
        return max(self.at_once)

    @property
    def checkpoints(self) -> int:
        return max(self.at_once.values())


def plan(
    T: int,
    memory: int | str | None = None,
    *,
    costs: Costs = NOTHING,
    longest: int | None = None,
    truncate: Truncate = None,
    whole: bool = False,
) -> Plan:
    """The schedule with the least recomputation that fits in ``memory``; nothing runs.

    Everything is kept where that fits. Otherwise segments at the beginning are run forward once more, from checkpoints
    between them; and where those do not fit either, as often as the dynamic programming of
    :class:`~bptt_array.schedules.reversals.Reversals` says. Of the lengths of segments tried, about a tenth apart,
    that one is taken with which this costs least, where every run of a segment counts as 8 steps more than it has:
    shorter segments would save steps forward and lose more time between them.

    Parameters
    ----------
    T : int
        Time steps.
    memory : int or str, optional
        Bytes, or a string with a unit: ``"64MiB"``, ``"1.5 GB"``. Without it everything is kept.
    costs : Costs
        Bytes that things take, needed with ``memory``; for a network :meth:`RNN.plan` knows them.
    longest : int, optional
        Steps of a segment at most; T if left out.
    truncate : int or (int, int), optional
        As for :meth:`RNN.loss_and_grad`. With two periods everything that they need is kept.
    whole : bool
        Time cannot be cut, as with two directions: everything is kept or it does not fit.

    Raises
    ------
    ValueError, TypeError
        If ``memory`` is no size, or too small: with the smallest one that works (which may mean very many runs).

    Examples
    --------
    >>> from bptt_array import schedules
    >>> costs = schedules.Costs(fixed=0, checkpoint=100, kept=100, work=200)
    >>> print(schedules.plan(1000, costs=costs, longest=200))
    1,000 steps: 137 KiB, 1,000 steps forward (1.00 T)
    5 segments of at most 200 steps; at most 5 of them kept and 0 states remembered at once
    >>> print(schedules.plan(1000, "15 kB", costs=costs, longest=200))
    1,000 steps: 14.1 KiB of 14.6 KiB, 1,961 steps forward (1.96 T)
    26 segments of at most 39 steps; at most 1 of them kept and 25 states remembered at once
    """
    check_flag("whole", whole)
    T, truncate = check_count("T", T), check_truncate(truncate, bidirectional=bool(whole))
    longest = None if longest is None else check_count("longest", longest)
    if costs is not NOTHING:
        costs = _checked(costs)
    window = min(T, truncate[0] if isinstance(truncate, tuple) else truncate or T)
    longest = window if longest is None or whole else min(window, longest)
    if memory is not None and costs == NOTHING:
        raise ValueError("costs is missing, but memory is given: expected Costs(…), or use RNN.plan, which has them")
    if memory is None:
        return _unlimited(T, costs, _ceil(window, _ceil(window, longest)), truncate)
    return _within(T, sizes.parse("memory", memory), costs, window, longest, truncate, whole)


def _checked(costs: Any) -> Costs:
    """What a caller says that things take."""
    if not isinstance(costs, Costs):
        raise TypeError(f"costs is a {type(costs).__name__}; expected bptt_array.schedules.Costs(…)")
    counts = costs._asdict().items()
    return Costs(*(check_count(f"costs.{name}", count, least=0, most=MOST_BYTES) for name, count in counts))


@lru_cache(maxsize=64)
def _unlimited(T: int, costs: Costs, longest: int, truncate: Truncate) -> Plan:
    return Plan(T, None, truncate, costs, longest, None)


@lru_cache(maxsize=64)
def _within(T: int, memory: int, costs: Costs, window: int, longest: int, truncate: Truncate, whole: bool) -> Plan:
    lengths = [window] if whole else _lengths(window, longest)
    least, fitting = math.inf, None
    for S in lengths:
        least = min(least, _keeping_all(T, costs, window, S, truncate))
        if least <= memory:
            fitting = S
            break
    room = {}
    if not isinstance(truncate, tuple):
        ends = costs.checkpoint * (1 if window == T else 2)  # states at both ends of a window
        for S in lengths:
            left = memory - costs.fixed - costs.of_work(S) - costs.of_kept(S) - ends
            checkpoints = (_ceil(window, S) - 2) * costs.checkpoint
            if window > FINEST * S and left < checkpoints:  # without tables all of them have to fit
                left -= checkpoints
            least = min(least, memory - left)
            if left >= 0:
                room[S] = left
    if memory < least:
        raise ValueError(
            f"memory={memory} ({sizes.in_words(memory)}) is too small; the smallest budget that works here is "
            f"memory={least} ({sizes.in_words(int(least))})"
        )
    most = math.inf if fitting is None else _cost(window, fitting, _ceil(window, fitting))
    length, strategy = _fewest_runs(T, window, memory, costs, room, most) or (fitting, None)
    assert length is not None  # or memory would be less than the least
    return Plan(T, memory, truncate, costs, length, strategy)


def _ceil(a: int, b: int) -> int:
    """``a / b``, rounded up: of whole numbers that no float can hold too."""
    return -(-a // b)


def _keeping_all(T: int, costs: Costs, window: int, S: int, truncate: Truncate) -> int:
    """The peak where every segment of a window is kept."""
    if isinstance(truncate, tuple):
        return Plan(T, None, truncate, costs, S, None).peak
    return costs.fixed + costs.of_work(S) + _ceil(window, S) * costs.of_kept(S)


def _lengths(window: int, longest: int) -> list[int]:
    """Steps per segment that are tried, from long to short: about a tenth apart."""
    n = _ceil(window, longest)
    parts = {n, min(window, max(n, FINEST))}
    n = min(n, FINEST // 16)  # where time is very long, segments may have to be longer than is fast
    while n <= min(window, FINEST):
        parts.add(n)
        n = max(n + 1, n * 11 // 10)
    return sorted({_ceil(window, n) for n in parts}, reverse=True)


def _cost(T: int, length: int, runs: int) -> float:
    """In steps: n segments run forward ``runs`` times, and backward."""
    n = _ceil(T, length)
    return runs * (T / n + RUN) + n * RUN


def _fewest_runs(
    T: int, window: int, memory: int, costs: Costs, room: dict[int, int], least: float
) -> tuple[int, Strategy] | None:
    """How long segments are, of the lengths in ``room``, and how a window of them costs least, if below ``least``.

    ``room``: bytes for checkpoints and for kept segments beyond the one whose turn it is.
    """
    best: tuple[int, Strategy | Reversals] | None = None
    tables = []
    for length, left in room.items():
        n, kept = _ceil(window, length), costs.of_kept(length)
        most_kept = k = min(n, 1 + left // kept) if kept else n
        if k < n:  # (k - 1) kept + (n - k - 1) checkpoints have to fit
            k = min(k, (left + kept - (n - 1) * costs.checkpoint) // max(1, kept - costs.checkpoint))
        if k > 0 and _cost(window, length, 2 * n - k) < least:
            least, best = _cost(window, length, 2 * n - k), (length, TwoSweeps(k))
        if n <= FINEST:
            tables.append((_cost(window, length, 2 * n - most_kept), length))
    sums = 0
    for bound, length in sorted(tables):
        n = _ceil(window, length)
        if bound >= least or sums >= OF_A_PLAN:
            break
        slots, kept = _slots(n, room[length], costs.of_kept(length), costs.checkpoint, memory)
        sums += n**2 * (slots + 1)
        table = Reversals(n, slots, kept)
        if _cost(window, length, table.runs()) < least:
            least, best = _cost(window, length, table.runs()), (length, table)
    if best is None:
        return None
    length, found = best
    if isinstance(found, Reversals):  # which takes memory
        found = found.written(_ceil(window, length), _ceil((T - 1) % window + 1, length))
    return length, found


def _slots(n: int, room: int, kept: int, checkpoint: int, memory: int) -> tuple[int, int]:
    """Slots for the dynamic programming, and how many a kept segment takes: a slot is one checkpoint, or larger.

    The tables, about 32 bytes for each segment and slot while they are made, are within the budget themselves.
    """
    most = max(1, min(OF_A_TABLE // n**2, memory // (32 * n)))
    slot = max(checkpoint, _ceil(room, most), 1)
    of_kept = _ceil(kept, slot)
    return min(room // slot, (n - 1) * of_kept), of_kept
