"""In which order segments of time run forward and backward. No arrays in here.

A schedule is a list of two instructions over ``[start, stop)`` ranges of time steps:

- :class:`Forward`: run the segment and keep its states;
- :class:`Backward`: run the segment backward from its kept states, then let go of them.

Full BPTT runs every segment forward and then every segment backward. Truncated BPTT does the same within
windows of k steps and cuts the gradient that would be carried from one window into the one before. A memory
budget is a third such list, in which a segment is run forward without keeping its states and once more
before it is run backward; it is not written yet, and nothing but this file will have to know of it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple


class Forward(NamedTuple):
    """Run ``[start, stop)`` forward from the state that the segment before it left; keep its states."""

    start: int
    stop: int


class Backward(NamedTuple):
    """Run ``[start, stop)`` backward. ``cut``: no gradient is carried in from later steps."""

    start: int
    stop: int
    cut: bool


Schedule = list[Forward | Backward]


def segment_length(T: int, bytes_per_step: int, segment_bytes: int) -> int:
    """How many of ``T`` steps make a segment whose states fit in about ``segment_bytes``, at least one."""
    return max(1, min(T, segment_bytes // max(1, bytes_per_step)))


def segments(start: int, stop: int, length: int) -> list[tuple[int, int]]:
    """Cut ``[start, stop)`` into the fewest parts of at most ``length`` steps, as equal as they can be.

    >>> segments(0, 10, 4)
    [(0, 3), (3, 6), (6, 10)]
    """
    steps = stop - start
    parts = -(-steps // length)
    edges = [start + steps * k // parts for k in range(parts + 1)]
    return list(pairwise(edges))


def full(T: int, length: int) -> Schedule:
    """Full backpropagation through time over ``T`` steps in segments of at most ``length``.

    >>> full(4, 2)
    [Forward(start=0, stop=2), Forward(start=2, stop=4), Backward(start=2, stop=4, cut=True), \
Backward(start=0, stop=2, cut=False)]
    """
    return truncated(T, T, length)


def truncated(T: int, k: int, length: int) -> Schedule:
    """Truncated BPTT: the state goes on through all ``T`` steps, the gradient is cut every ``k`` steps.

    A window of k steps runs forward and backward before the next one begins, so no more than k steps of
    states are alive at once.
    """
    schedule: Schedule = []
    for begin in range(0, T, k):
        end = min(begin + k, T)
        window = segments(begin, end, length)
        schedule += [Forward(*segment) for segment in window]
        schedule += [Backward(start, stop, cut=stop == end) for start, stop in reversed(window)]
    return schedule
