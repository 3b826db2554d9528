"""What a schedule is made of, and the schedules in which nothing is run twice. No arrays in here.

A schedule is a list of instructions over ``[start, stop)`` ranges of time steps:

- :class:`Forward`: run the segment forward; keep its states, or only the state that it ends with;
- :class:`Backward`: run the segment backward from its kept states, then let go of them;
- :class:`Remember`, :class:`Restore`, :class:`Forget`: keep the state between two steps, go back to it, let go of it.
  A state that is remembered is what the literature calls a checkpoint.

Full BPTT runs every segment forward and then every segment backward. Truncated BPTT does the same within windows and
cuts the gradient that would be carried from one window into the one before. Schedules within a memory budget, in which
segments run forward more than once, are those of ``plans.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, overload

from ..checks import check_count, said


class Forward(NamedTuple):
    """Run ``[start, stop)`` forward from the present state; ``keep`` its states for a backward pass."""

    start: int
    stop: int
    keep: bool = True


class Backward(NamedTuple):
    """Run ``[start, stop)`` backward from its kept states.

    ``cut``: no gradient is carried in from later steps. ``loss``: its own steps have a loss, and this is the first time
    that it runs backward; otherwise it hands on and sums up what is carried in. ``keep``: it will be needed once more.
    """

    start: int
    stop: int
    cut: bool = False
    loss: bool = True
    keep: bool = False


class Remember(NamedTuple):
    """Keep the present state, that before step ``start``."""

    start: int


class Restore(NamedTuple):
    """Make the remembered state before step ``start`` the present one."""

    start: int


class Forget(NamedTuple):
    """Let go of the remembered state before step ``start``."""

    start: int


#: With stacked weights a segment is copied for its weight sums, so more of it has to stay in the cache: it is this many
#: times shorter (measured with 32 members of 64 units: 1 MiB of states takes 0.6 to 1.0 of the time that 4 MiB take).
STACKED = 4
Instruction = Forward | Backward | Remember | Restore | Forget


def segment_length(T: int, bytes_per_step: int, segment_bytes: int) -> int:
    """How many of ``T`` steps make a segment whose states fit in about ``segment_bytes``, at least one."""
    return max(1, min(T, segment_bytes // max(1, bytes_per_step)))


def longest_segment(segment_bytes: int, T: int, bytes_per_step: int, *, bidirectional: bool, members: bool) -> int:
    """Steps of a segment at most, where the states of a layer take ``bytes_per_step``; of two directions all.

    ``segment_bytes``: what the states of one segment should fit in, on the device that runs it.
    """
    if bidirectional:
        return T
    return segment_length(T, bytes_per_step, segment_bytes // (STACKED if members else 1))


def bytes_of_parts(segment_bytes: int) -> int:
    """``segment_bytes`` of a batch that is cut into parts: what is saved makes room for the gradients of each part."""
    return segment_bytes * 3 // 4


class Segments(Sequence[tuple[int, int]]):
    """``[start, stop)`` cut into the fewest parts of at most ``length`` steps, as equal as they can be.

    Like a range: a part follows from its number, and ten million of them take no memory.

    >>> list(Segments(0, 10, 4))
    [(0, 3), (3, 6), (6, 10)]
    """

    __slots__ = "_count", "_start", "_steps"

    def __init__(self, start: int, stop: int, length: int) -> None:
        self._start, self._steps = start, stop - start
        self._count = -(-self._steps // length)

    def __len__(self) -> int:
        return self._count

    def edge(self, k: int) -> int:
        """The step at which part k begins, and the one before it ends."""
        return self._start + self._steps * k // self._count

    @overload
    def __getitem__(self, k: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, k: slice) -> list[tuple[int, int]]: ...
    def __getitem__(self, k: int | slice) -> tuple[int, int] | list[tuple[int, int]]:
        which = range(self._count)[k]
        if isinstance(which, range):
            return [self[j] for j in which]
        return self.edge(which), self.edge(which + 1)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return pairwise(map(self.edge, range(self._count + 1)))


def full(T: int, length: int) -> Iterator[Instruction]:
    """Full backpropagation through time over ``T`` steps in segments of at most ``length``.

    >>> for instruction in full(4, 2):
    ...     print(instruction)
    Forward(start=0, stop=2, keep=True)
    Forward(start=2, stop=4, keep=True)
    Backward(start=2, stop=4, cut=True, loss=True, keep=False)
    Backward(start=0, stop=2, cut=False, loss=True, keep=False)
    """
    return truncated(T, T, length)


def check_truncate(truncate: Any, *, bidirectional: bool, reverse: bool = False) -> int | tuple[int, int] | None:
    """None, a number of steps, or two of them, k1 <= k2."""
    if truncate is None:
        return None
    if bidirectional:
        raise ValueError(
            f"truncate={said(truncate)}, but bidirectional=True: the second direction begins at the end, so there is "
            "no step up to which the past alone counts; leave truncate=None"
        )
    if reverse:
        raise ValueError(
            f"truncate={said(truncate)}, but reverse=True: it begins at the end, so there is no step up to which the "
            "past alone counts; leave truncate=None"
        )
    if not isinstance(truncate, (tuple, list)):
        return check_count("truncate", truncate)
    if len(truncate) != 2:
        raise ValueError(f"truncate={said(truncate)} has {len(truncate)} numbers; expected k, or (k1, k2)")
    k1, k2 = check_count("truncate[0]", truncate[0]), check_count("truncate[1]", truncate[1])
    if k1 > k2:
        raise ValueError(
            f"truncate={said((k1, k2))}: every {said(k1)} steps, back through {said(k2)}, would leave out the loss of "
            "the others; expected k1 <= k2"
        )
    return k1 if k1 == k2 else (k1, k2)


def truncated(T: int, k: int, length: int) -> Iterator[Instruction]:
    """Truncated BPTT: the state goes on through all ``T`` steps, the gradient is cut every ``k`` steps.

    A window of k steps runs forward and backward before the next one begins, so no more than k steps of
    states are alive at once.
    """
    for begin, end in windows(T, k):
        window = Segments(begin, end, length)
        for segment in window:
            yield Forward(*segment)
        for start, stop in reversed(window):
            yield Backward(start, stop, cut=stop == end)


def windows(T: int, k: int) -> Iterator[tuple[int, int]]:
    """``[0, k), [k, 2k), …`` up to ``T``."""
    return ((begin, min(begin + k, T)) for begin in range(0, T, k))


class TwoPeriods(NamedTuple):
    """Truncated BPTT with two periods, k1 <= k2 (Williams & Peng, 1990): every k1 steps, back through k2.

    Each loss is propagated once: that of ``[t - k1, t)`` goes back to step ``t - k2``, through states that earlier
    windows ran forward. States of no more than about k2 steps are alive at once.

    How many segments that are follows from the sizes alone: but for the beginning and the end every window is like the
    one before it.
    """

    T: int
    k1: int
    k2: int
    length: int

    def schedule(self) -> Iterator[Instruction]:
        """
        >>> for instruction in TwoPeriods(4, 2, 3, 2).schedule():
        ...     print(instruction)
        Forward(start=0, stop=1, keep=True)
        Forward(start=1, stop=2, keep=True)
        Backward(start=1, stop=2, cut=True, loss=True, keep=True)
        Backward(start=0, stop=1, cut=False, loss=True, keep=False)
        Forward(start=2, stop=4, keep=True)
        Backward(start=2, stop=4, cut=True, loss=True, keep=False)
        Backward(start=1, stop=2, cut=False, loss=False, keep=False)
        """
        T, k1, k2, _ = self
        window: list[tuple[int, int]] = []
        for new, end in windows(T, k1):
            added = [part for piece in self._pieces(new) for part in piece]
            window = [part for part in window if part[0] >= end - k2] + added
            for part in added:
                yield Forward(*part)
            kept_from = T if end == T else min(end + k1, T) - k2
            for start, stop in reversed(window):
                yield Backward(start, stop, cut=stop == end, loss=start >= new, keep=start >= kept_from)

    def _pieces(self, new: int) -> list[Segments]:
        """What the window ``[new, new + k1)`` runs forward, cut where the gradient of a later one stops."""
        T, k1, k2, length = self
        end = min(new + k1, T)
        stops = {new + -k2 % k1, T - k2}  # those of windows that are whole, and of the last one
        inside = sorted(stop for stop in stops if new < stop < end and stop + k2 <= T)
        return [Segments(*edge, length) for edge in pairwise([new, *inside, end])]

    def segments(self, stop: int | None = None) -> int:
        """How many there are in all, or before the step ``stop``, at which one has to begin or end."""
        T, k1, k2, length = self
        stop = T if stop is None else stop
        alike = min(max(0, T - k2), stop) // k1  # windows before that in which the last gradient stops
        count = alike * sum(map(len, self._pieces(0)))
        begin = alike * k1
        if begin < stop and begin <= T - k2:  # that one, or a part of one
            count += sum(len(piece) for piece in self._pieces(begin) if piece.edge(0) < stop)
            begin += k1
        whole, rest = divmod(max(0, stop - begin), k1)  # no gradient stops in these
        return count + whole * -(-k1 // length) + -(-rest // length)

    def kept(self) -> int:
        """How many of them are kept at once, at most."""
        T, k1, k2, _ = self
        last = -(-T // k1) - 1
        # In between it changes by the same number from window to window.
        turns = (0, k2 // k1, (T - k2) // k1, T // k1, last)
        numbers = {min(max(0, turn + k), last) for turn in turns for k in (-2, -1, 0, 1, 2)}
        ends = (min(T, (k + 1) * k1) for k in numbers)
        return max(self.segments(end) - self.segments(max(0, end - k2)) for end in ends)
