"""The product (3.3): how the state after one step depends on the state after an earlier one, ``dh_k/dh_t``.

A backward pass multiplies a gradient by the transposed Jacobian of one step after the other. Here it is given unit
vectors, as sequences of their own, over the states that a forward pass left: so what is said here of a cell, the
library's or your own, is what its ``backward_`` does. ``...`` are the axes [E,] of members and [2,] of directions, as
far as there are any; Z is H, or 2H for a cell with c, whose state is h and then c (with ``proj_size=P`` P + H).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..backend.arrays import dtype_name
from ..backend.portable import Array, Backend
from ..bptt.batch import Batch
from ..bptt.layer import Layer
from ..bptt.passes import BoundNetwork
from ..bptt.unrolled import Unrolled
from ..equations.cell import Tape
from ..equations.recurrence import backward_

HostArray = np.ndarray[Any, Any]

#: Rows of states that a backward pass over unit vectors takes at a time, in bytes of all its arrays.
_BLOCK_BYTES = 1 << 26

#: An exponent of two below that of any number.
_NOTHING = -(1 << 30)


class Trajectory(NamedTuple):
    """The states that one layer went through, and what its cell kept, for T steps of N sequences.

    ``sound (T, ..., N)`` says of every step whether the states before and after are numbers; past the end of a sequence
    it is True.
    """

    backend: Backend
    layer: Layer
    tape: Tape
    lengths: HostArray | None
    sound: HostArray

    @property
    def steps(self) -> int:
        """T."""
        return int(self.tape.states[0].shape[0]) - 1

    @property
    def rows(self) -> tuple[int, ...]:
        """(..., N)"""
        return tuple(self.tape.states[0].shape[1:-1])

    @property
    def size(self) -> int:
        """Z."""
        return sum(self._widths)

    @property
    def _widths(self) -> tuple[int, ...]:
        """Of h and c."""
        return tuple([int(state.shape[-1]) for state in self.tape.states])

    @property
    def epsilon(self) -> float:
        """The precision of its numbers."""
        return float(np.finfo(dtype_name(self.tape.states[0])).eps)

    def pull_back(self, step: int, vectors: HostArray) -> HostArray:
        """``J^T v`` with the Jacobian J of the states after a step by those before it, float64.

        Parameters
        ----------
        vectors : (..., R, N, Z)
            R of them for every sequence. Past the end of a sequence its state stays what it is: J is the identity.
            Where a state is no number J is none either, whatever f' would make of it (that of a ReLU is 0).
        """
        backend, cell, params, tape = self.backend, self.layer.cell, self.layer.params, self.tape
        count, N = vectors.shape[-3:-1]
        rows, H, dtype = (*vectors.shape[:-3], count * N), self.layer.hidden_size, params["W_hh"].dtype
        states = tuple(_repeated(backend, states[step : step + 2, ...], count) for states in tape.states)
        kept = None if tape.kept is None else _repeated(backend, tape.kept[step : step + 1, ...], count)
        dstates = tuple(backend.zeros((2, *rows, width), dtype) for width in self._widths)
        ends = np.cumsum(self._widths)[:-1]
        for dstate, part in zip(dstates, np.split(vectors, ends, axis=-1), strict=True):
            dstate[1, ...] = backend.from_host(part.reshape(dstate[1, ...].shape).astype(dtype_name(params["W_hh"])))
        dz = backend.empty((1, *rows, cell.gates * H), dtype)
        slopes = backend.empty((1, cell.slopes, *rows, H), dtype) if cell.slopes else None
        step_ = self.layer.step_backward(backend, rows, 1)
        backward_(backend, cell, step_, Tape(states, kept, params), dstates, dz, slopes)
        parts = [
            backend.to_host(d[0, ...]).astype(np.float64).reshape(*vectors.shape[:-1], d.shape[-1]) for d in dstates
        ]
        before = np.concatenate(parts, axis=-1)
        if self.lengths is not None:
            before = np.where((step < self.lengths)[:, None], before, vectors)
        return np.where(self.sound[step][..., None, :, None], before, np.nan)

    def product(self, rows: HostArray, t: int, k: int) -> tuple[HostArray, HostArray]:
        """``rows (dh_k/dh_t)``, with the product (3.3): ``dh_k/dh_t = prod_{j=t+1..k} J_j``.

        Of the cell of (1.1) a factor is ``J_j = diag(f'(z_j)) W_hh``. The last step comes first, from the left, as a
        gradient meets them.

        Parameters
        ----------
        rows : (..., R, N, Z)

        Returns
        -------
        rows : (..., R, N, Z)
            Each of the order of 1: over many steps a product neither under- nor overflows.
        exponents : (..., R, N, 1) of integers
            Of two, with whose powers the rows are to be multiplied.
        """
        exponents = np.zeros((*rows.shape[:-1], 1), np.intc)
        for j in reversed(range(t + 1, k + 1)):
            rows, more = scaled(self.pull_back(j - 1, rows), axis=-1)  # rows <- rows J_j
            exponents += more
        return rows, exponents

    def jacobian(self, t: int, k: int) -> tuple[HostArray, HostArray]:
        """The product (3.3) itself, ``d state_k / d state_t``, as ``J * 2**exponents``.

        Returns
        -------
        J : (..., N, Z, Z) float64
        exponents : (..., N, Z, 1) of integers
        """
        *lead, N = self.rows
        identity = np.eye(self.size)[:, None, :]  # (R, 1, Z)
        at_once = self._vectors_at_once()
        parts = []
        for first in range(0, self.size, at_once):
            units = identity[first : first + at_once]
            rows, exponents = self.product(np.broadcast_to(units, (*lead, len(units), N, self.size)), t, k)
            parts.append((np.moveaxis(rows, -3, -2), np.moveaxis(exponents, -3, -2)))
        J, exponents = (np.concatenate(of_parts, axis=-2) for of_parts in zip(*parts, strict=True))
        return J, exponents

    def _bytes_of_a_row(self) -> int:
        """What one step of one vector takes in a backward pass."""
        cell, H = self.layer.cell, self.layer.hidden_size
        arrays = 2 * len(self.tape.states) + cell.keeps + cell.slopes + cell.gates
        return arrays * H * np.dtype(dtype_name(self.layer.params["W_hh"])).itemsize

    def _vectors_at_once(self) -> int:
        return max(1, _BLOCK_BYTES // (self._bytes_of_a_row() * math.prod(self.rows)))


def _repeated(backend: Backend, a: Array, count: int) -> Array:
    """``a (..., N, F)``, ``count`` times one after the other along N."""
    return backend.xp.concat([a] * count, axis=-2)


def scaled(a: HostArray, axis: int | tuple[int, ...]) -> tuple[HostArray, HostArray]:
    """``a`` as numbers below 1 times powers of two, the same along ``axis``: no digit is lost."""
    largest = np.max(np.abs(a), axis=axis, keepdims=True)
    exponents = np.where(np.isfinite(largest), np.frexp(largest)[1], 0).astype(np.intc)
    return np.ldexp(a, -exponents), exponents


def unscaled(a: HostArray, exponents: HostArray) -> HostArray:
    """``a * 2**exponents``: zeros stay zero, what is too large becomes infinite."""
    with np.errstate(over="ignore", under="ignore"):
        result: HostArray = np.ldexp(a, exponents)
    return result


def as_matrix(J: HostArray, exponents: HostArray) -> tuple[HostArray, HostArray]:
    """Rows with an exponent each as a matrix with one, ``(..., 1, 1)``: that of its longest row."""
    there = np.any(J != 0, axis=-1, keepdims=True)
    top = np.max(exponents, axis=-2, keepdims=True, where=there, initial=_NOTHING)
    top = np.where(top > _NOTHING, top, 0).astype(np.intc)
    return unscaled(J, exponents - top), top


def trajectories(network: BoundNetwork, batch: Batch) -> list[Trajectory]:
    """The layers of a network, run forward over a batch."""
    backend = network.backend
    unrolled = Unrolled(backend, network.stack, batch, batch.T)
    unrolled.forward(0, batch.T)
    unrolled.end()
    tapes = [forward.kept(0).tape for forward in unrolled.layers]
    return [
        Trajectory(backend, layer, tape, batch.lengths, _sound(backend, tape, batch.lengths))
        for layer, tape in zip(network.stack.layers, tapes, strict=True)
    ]


def _sound(backend: Backend, tape: Tape, lengths: HostArray | None) -> HostArray:
    """See :class:`Trajectory`."""
    xp = backend.xp
    finite = np.all([backend.to_host(xp.all(xp.isfinite(states), axis=-1)) for states in tape.states], axis=0)
    sound: HostArray = finite[:-1] & finite[1:]  # (T, ..., N)
    if lengths is None:
        return sound
    past = np.arange(len(sound))[:, None] >= lengths
    return sound | past.reshape(len(sound), *(1,) * (sound.ndim - 2), len(lengths))
