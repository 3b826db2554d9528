"""Sequences of different lengths in one batch: what is past the end never enters the time loop.

Inputs past the end are zeroed on the way in and states past the end on the way out, so the loop runs every
sequence through all T steps and no step of it asks where a sequence ends. The final state of sequence n is
the state after step ``lengths[n]`` (the initial one for length 0), and that is also where a gradient of the
final state goes in.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import is_numpy_array

from ..backend.arrays import is_integer
from ..backend.portable import Array, Backend


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

    def zeroed(self, a: Array, start: int, stop: int, *, features: bool = True) -> Array:
        """``a (S, ..., N, F)`` with zeros past the end of each sequence: a new array, or ``a``.

        Without ``features`` there is no last axis F: ``a (S, ..., N)``.
        """
        if not self.begins_before(stop):
            return a
        valid = self._along(self.valid(start, stop), a, features)
        return self.backend.xp.where(valid, a, self.backend.zeros((1,) * a.ndim, a.dtype))

    def _along(self, of_steps: Array, a: Array, features: bool) -> Array:
        """``of_steps (S, N)`` with axes of 1 where ``a (S, ..., N[, F])`` has others."""
        S, N = of_steps.shape
        last = (1,) if features else ()
        return self.backend.xp.reshape(of_steps, (S, *(1,) * (a.ndim - 2 - len(last)), N, *last))

    def last_states(self, states: Array, start: int, stop: int) -> Array:
        """(..., N, H): of the states ``(S+1, ..., N, H)`` of a segment, each sequence's last valid one.

        Meaningful for the sequences of :meth:`last` only; of the others it is the first state.
        """
        xp = self.backend.xp
        _, *lead, N, H = states.shape
        row = (self._lengths - start) * xp.astype(self.last(start, stop), self.backend.integer)
        between = xp.reshape(self.backend.arange(math.prod(lead)), (*lead, 1))
        index = (row * math.prod(lead) + between) * N + self.backend.arange(N)
        result = self.backend.empty((*lead, N, H), states.dtype)
        self.backend.take_rows_(result, xp.reshape(states, (-1, H)), index)
        return result

    def add_to_last_(self, dstates: Array, d_last: Array, start: int, stop: int) -> None:
        """Add ``d_last (..., N, H)`` to the row of ``dstates (S, ..., N, H)`` of each sequence's last valid step."""
        if not self.ends_within(start, stop):
            return
        steps = self.backend.arange(stop - start) + start
        here = self._along(steps[:, None] == self._lengths[None, :] - 1, dstates, features=True)
        dstates += self.backend.xp.where(here, d_last, self.backend.zeros((1,) * dstates.ndim, dstates.dtype))

    def of_empty(self, d_last: Array) -> Array:
        """``d_last (..., N, H)`` of sequences of length 0, whose last state is the initial one; zeros elsewhere."""
        return self.backend.xp.where((self._lengths == 0)[:, None], d_last, self.backend.zeros((1, 1), d_last.dtype))

    def zeroed_if_empty(self, a: Array, *, features: bool = True) -> Array:
        """``a (..., N, F)``, without ``features`` (..., N), with zeros for sequences of length 0, as a new array."""
        xp = self.backend.xp
        nonempty = xp.reshape(self._lengths > 0, (-1, 1) if features else (-1,))
        return xp.where(nonempty, a, self.backend.zeros((1,) * a.ndim, a.dtype))

    def reversed_steps(self, start: int, stop: int) -> Array:
        """(S, N) integers: the steps that come from ``start`` to ``stop`` when the valid part of a sequence is read
        back to front; past its end they stay where they are.
        """
        steps = self.backend.arange(stop - start)[:, None] + start
        turned = self._lengths[None, :] - 1 - steps
        return self.backend.xp.where(turned >= 0, turned, steps)

    def turned(self, a: Array, start: int, stop: int) -> Array:
        """Those steps of ``a (T, ..., N, F)``, as a new array."""
        xp, backend, (_, *lead, N, F) = self.backend.xp, self.backend, a.shape
        steps, between = self.reversed_steps(start, stop), backend.arange(math.prod(lead))
        index = xp.reshape(steps, (stop - start, *(1,) * len(lead), N)) * math.prod(lead)
        index = index + xp.reshape(between, (*lead, 1))  # which row of N, ...
        index = index * N + backend.arange(N)  # ... and which of its sequences
        result = backend.empty((stop - start, *lead, N, F), a.dtype)
        backend.take_rows_(result, xp.reshape(a, (-1, F)), index)
        return result

    def turned_on_host(self, a: np.ndarray[Any, Any], start: int, stop: int) -> np.ndarray[Any, Any]:
        """The same of a NumPy array, in whatever order its axes are: nothing else of it is copied."""
        steps = np.arange(start, stop)[:, None]
        turned = self.lengths - 1 - steps
        _, *lead, N, _ = a.shape
        there = np.where(turned >= 0, turned, steps).reshape(stop - start, *(1,) * len(lead), N)
        result: np.ndarray[Any, Any] = a[there, *np.ix_(*map(np.arange, (*lead, N)))]
        return result


class Feed:
    """A time-major array of the caller, handed over one segment at a time: on the device, padding zeroed.

    A host array of a device model travels segment by segment. Integers (tokens, classes) become those of
    :attr:`Backend.integer`.

    Parameters
    ----------
    array : (T, ..., N, F); without ``features`` (T, ..., N)
    reverse : bool
        Steps are counted from the end of every sequence.
    """

    def __init__(
        self, backend: Backend, array: Array, padding: Padding | None, *, features: bool, reverse: bool = False
    ) -> None:
        self.backend = backend
        self.array = array
        self.padding = padding
        self.features = features
        self.reverse = reverse
        self.integral = is_integer(array)

    def __call__(self, start: int, stop: int) -> Array:
        part = self._from_the_end(start, stop) if self.reverse else self.array[start:stop, ...]
        if not self.backend.owns(part):
            part = self.backend.from_host(part)
        if self.integral:
            part = self.backend.xp.astype(part, self.backend.integer, copy=False)
        return part if self.padding is None else self.padding.zeroed(part, start, stop, features=self.features)

    def _from_the_end(self, start: int, stop: int) -> Array:
        """A copy, in one piece."""
        a, padding, T = self.array, self.padding, self.array.shape[0]
        if padding is None:
            part = a[T - stop : T - start, ...]
            return self.backend.copy(self.backend.xp.flip(part, axis=0)) if self.backend.owns(a) else part[::-1, ...]
        a = a if self.features else a[..., None]
        turned = padding.turned_on_host if is_numpy_array(a) else padding.turned
        part = turned(a, start, stop)
        return part if self.features else part[..., 0]
