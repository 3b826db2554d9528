"""Which sequences are in which batch: a pure function of a seed and the number of an epoch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

Indices = np.ndarray[Any, Any]


def in_order(N: int, size: int, lengths: Indices | None = None) -> list[Indices]:
    """The numbers of N sequences, ``size`` of them in a batch, the rest in the last one; the shortest first."""
    order = np.arange(N) if lengths is None else np.argsort(lengths, kind="stable")
    return _cut(order, np.arange(size, N, size))


def shuffled(N: int, size: int, seed: int, epoch: int, lengths: Indices | None = None) -> list[Indices]:
    """The same, in an order that is another one in every epoch.

    With ``lengths`` those of a batch have similar ones: all are sorted by length, moved from there by up to ``size``
    places at random, and cut into batches, whose order is random. The batch that is smaller is any of them.

    Nothing but the bits that NumPy's PCG64 makes of a seed goes into it, which are the same for good, in every version
    and on every machine.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,)))

    def permutation(count: int) -> Indices:
        return np.argsort(bits.random_raw(count), kind="stable")

    order = permutation(N)
    ends = np.arange(size, N, size)
    if lengths is None:
        return _cut(order, ends)
    order = order[np.argsort(lengths[order], kind="stable")]
    moved = np.arange(N) + size * ((bits.random_raw(N) >> np.uint64(11)) * 2.0**-53)
    order = order[np.argsort(moved, kind="stable")]
    count = len(ends) + 1
    smaller = bits.random_raw() % count
    ends[smaller:] -= size * count - N
    batches = _cut(order, ends)
    return [batches[k] for k in permutation(count)]


def _cut(order: Indices, ends: Indices) -> list[Indices]:
    """Views of all up to each end, and of the rest."""
    return [order[start:end] for start, end in pairwise([0, *ends.tolist(), len(order)])]
