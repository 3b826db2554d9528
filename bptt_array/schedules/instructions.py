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

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

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


def segments(start: int, stop: int, length: int) -> list[tuple[int, int]]:
    """Cut ``[start, stop)`` into the fewest parts of at most ``length`` steps, as equal as they can be.

    >>> segments(0, 10, 4)
    [(0, 3), (3, 6), (6, 10)]
    """
    steps = stop - start
    parts = -(-steps // length)
    edges = [start + steps * k // parts for k in range(parts + 1)]
    return list(pairwise(edges))


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


def check_truncate(truncate: Any, *, bidirectional: bool) -> int | tuple[int, int] | None:
    """None, a number of steps, or two of them, k1 <= k2."""
    if truncate is None:
        return None
    if bidirectional:
        raise ValueError(
            f"truncate={said(truncate)}, but bidirectional=True: the second direction begins at the end, so there is "
            "no step up to which the past alone counts; leave truncate=None"
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
        window = segments(begin, end, length)
        for segment in window:
            yield Forward(*segment)
        for start, stop in reversed(window):
            yield Backward(start, stop, cut=stop == end)


def windows(T: int, k: int) -> Iterator[tuple[int, int]]:
    """``[0, k), [k, 2k), …`` up to ``T``."""
    return ((begin, min(begin + k, T)) for begin in range(0, T, k))


def overlapping(T: int, k1: int, k2: int, length: int) -> Iterator[Instruction]:
    """Truncated BPTT with two periods, k1 <= k2 (Williams & Peng, 1990): every k1 steps, back through k2.

    Each loss is propagated once: that of ``[t - k1, t)`` goes back to step ``t - k2``, through states that earlier
    windows ran forward. States of no more than about k2 steps are alive at once.

    >>> for instruction in overlapping(4, 2, 3, 2):
    ...     print(instruction)
    Forward(start=0, stop=1, keep=True)
    Forward(start=1, stop=2, keep=True)
    Backward(start=1, stop=2, cut=True, loss=True, keep=True)
    Backward(start=0, stop=1, cut=False, loss=True, keep=False)
    Forward(start=2, stop=4, keep=True)
    Backward(start=2, stop=4, cut=True, loss=True, keep=False)
    Backward(start=1, stop=2, cut=False, loss=False, keep=False)
    """
    begins = sorted({max(0, end - k2) for _, end in windows(T, k1)})  # where the gradient of a window stops
    window: list[tuple[int, int]] = []
    for new, end in windows(T, k1):
        inside = begins[bisect_right(begins, new) : bisect_left(begins, end)]
        added = [part for edge in pairwise([new, *inside, end]) for part in segments(*edge, length)]
        window = [part for part in window if part[0] >= end - k2] + added
        for part in added:
            yield Forward(*part)
        kept_from = T if end == T else min(end + k1, T) - k2
        for start, stop in reversed(window):
            yield Backward(start, stop, cut=stop == end, loss=start >= new, keep=start >= kept_from)
