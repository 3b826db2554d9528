"""Sequences of different lengths in one batch: what is past the end never enters the time loop.

Inputs past the end are zeroed on the way in and states past the end on the way out, so the loop runs every
sequence through all T steps and no step of it asks where a sequence ends. The final state of sequence n is
the state after step ``lengths[n]`` (the initial one for length 0), and that is also where a gradient of the
final state goes in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .backend import Array, Backend
from .checks import is_integer


class Padding:
    """Where the sequences of a batch end.

    Parameters
    ----------
    lengths : (N,) int64, on the host
        Unsorted; 0 is allowed. Questions about a whole segment are answered from these without asking the
        device.
    """

    def __init__(self, backend: Backend, lengths: np.ndarray[Any, Any]) -> None:
        self.backend = backend
        self.lengths = lengths
        self._lengths = backend.from_host(lengths)

    def begins_before(self, stop: int) -> bool:
        """Whether any sequence ends before step ``stop``."""
        return bool((self.lengths < stop).any())

    def ends_within(self, start: int, stop: int) -> bool:
        """Whether the last valid step of any sequence is in ``[start, stop)``."""
        return bool(((self.lengths > start) & (self.lengths <= stop)).any())

    def valid(self, start: int, stop: int) -> Array:
        """(S, N) bool: whether each step of ``[start, stop)`` is within its sequence."""
        steps = self.backend.arange(stop - start) + start
        return steps[:, None] < self._lengths[None, :]

    def last(self, start: int, stop: int) -> Array:
        """(N,) bool: whether the last valid step of a sequence is in ``[start, stop)``."""
        return (self._lengths > start) & (self._lengths <= stop)

    def zeroed(self, a: Array, start: int, stop: int) -> Array:
        """``a (S, N)`` or ``(S, ..., N, K)`` with zeros past the end of each sequence: a new array, or ``a``."""
        if not self.begins_before(stop):
            return a
        valid = self.valid(start, stop)
        if a.ndim > 2:
            S, N = valid.shape
            valid = self.backend.xp.reshape(valid, (S, *(1,) * (a.ndim - 3), N, 1))
        return self.backend.xp.where(valid, a, self.backend.zeros((1,) * a.ndim, a.dtype))

    def last_states(self, hs: Array, start: int, stop: int) -> Array:
        """(N, H): of the states ``hs (S+1, N, H)`` of a segment, each sequence's last valid one.

        Meaningful for the sequences of :meth:`last` only; of the others it is the first state.
        """
        xp = self.backend.xp
        rows, N, H = hs.shape
        row = (self._lengths - start) * xp.astype(self.last(start, stop), xp.int64)
        return xp.take(xp.reshape(hs, (rows * N, H)), row * N + self.backend.arange(N), axis=0)

    def add_to_last_(self, dhs: Array, d_last: Array, start: int, stop: int) -> None:
        """Add ``d_last (N, H)`` to the row of ``dhs (S, N, H)`` that is each sequence's last valid step."""
        if not self.ends_within(start, stop):
            return
        steps = self.backend.arange(stop - start) + start
        here = steps[:, None] == self._lengths[None, :] - 1
        dhs += self.backend.xp.where(here[..., None], d_last, self.backend.zeros((1, 1, 1), dhs.dtype))

    def of_empty(self, d_last: Array) -> Array:
        """``d_last (N, H)`` for sequences of length 0, whose last state is the initial one; zeros elsewhere."""
        return self.backend.xp.where((self._lengths == 0)[:, None], d_last, self.backend.zeros((1, 1), d_last.dtype))

    def zeroed_if_empty(self, a: Array) -> Array:
        """``a (N,)`` or ``(N, K)`` with zeros for sequences of length 0, as a new array."""
        xp = self.backend.xp
        nonempty = xp.reshape(self._lengths > 0, (-1, *(1,) * (a.ndim - 1)))
        return xp.where(nonempty, a, self.backend.zeros((1,) * a.ndim, a.dtype))


class Feed:
    """A time-major array of the caller, handed over one segment at a time: on the device, padding zeroed.

    A host array of a device model travels segment by segment. Integers (tokens, classes) become int64.
    """

    def __init__(self, backend: Backend, array: Array, padding: Padding | None) -> None:
        self.backend = backend
        self.array = array
        self.padding = padding
        self.integral = is_integer(array)

    def __call__(self, start: int, stop: int) -> Array:
        part = self.array[start:stop, ...]
        if not self.backend.owns(part):
            part = self.backend.from_host(part)
        if self.integral:
            part = self.backend.xp.astype(part, self.backend.xp.int64, copy=False)
        return part if self.padding is None else self.padding.zeroed(part, start, stop)
