"""Backpropagation through time over one batch: a layer unrolled, segment by segment.

:class:`Unrolled` runs segments forward and keeps what they leave; :class:`BackwardPass` runs them backward
and sums the gradients. In which order that happens is a schedule's business (``schedules.py``), what
happens inside a segment the recurrence's (``recurrence.py``), and where the direct part of ``dh_t`` comes
from the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .backend import Array, Backend
from .batch import Batch
from .cells import Elman
from .padding import Feed
from .recurrence import add_to, backward_, bias_sum, flat, forward_, project_, weight_sum
from .workspace import Loan

#: (start, stop, hs, dhs): writes the direct part of ``dh_t`` (3.1.1) of a segment into ``dhs (S, N, H)``.
DirectPart = Callable[[int, int, Array, Array], None]


class Layer(NamedTuple):
    """A cell and its parameters: ``W_xh (H, I)``, ``W_hh (H, H)``, ``b_h (H,)``."""

    cell: Elman
    W_xh: Array
    W_hh: Array
    b_h: Array


class Unrolled:
    """A layer run forward over a batch.

    Attributes
    ----------
    last_state : (N, H)
        The state after the last valid step of every sequence, once all segments have run.
    """

    def __init__(self, backend: Backend, layer: Layer, batch: Batch, arrays: Loan | None = None) -> None:
        self.backend = backend
        self.arrays = Loan(backend) if arrays is None else arrays
        self.layer = layer
        self.batch = batch
        self.last_state = batch.h_0
        # The state before the next segment. That of a sequence without steps is nothing, even if it is no number.
        self._state = batch.h_0 if batch.padding is None else batch.padding.zeroed_if_empty(batch.h_0)
        self._x = Feed(backend, batch.x, batch.padding)
        self._kept: dict[int, tuple[Array, Array]] = {}
        self._newest = -1  # where the segment begins that ran last
        self._table: Array | None = None  # (I, H): W_xh x + b_h for every token x
        self._add_product = backend.accumulator(layer.W_hh.mT, batch.h_0, batch.T)  # W_hh h_{t-1}

    def forward(self, start: int, stop: int) -> Array:
        """Run the next segment; returns (and keeps) its states ``hs (S+1, N, H)``."""
        backend, layer = self.backend, self.layer
        x = self._x(start, stop)
        hs = self.arrays.empty((stop - start + 1, *self._state.shape), layer.W_hh.dtype)
        hs[0, ...] = self._state
        if self._x.integral:
            self._look_up(hs[1:, ...], x)
        else:
            project_(backend, hs[1:, ...], x, layer.W_xh, layer.b_h)
        forward_(backend, layer.cell, self._add_product, hs)
        self._keep_valid(start, stop, hs)
        self._state = hs[stop - start, ...]
        self._newest = start
        self._kept[start] = hs, x
        return hs

    @property
    def takes_tokens(self) -> bool:
        """Whether inputs are tokens ``(S, N)``."""
        return self._x.integral

    def _look_up(self, rows: Array, x: Array) -> None:
        """``rows[t] <- W_xh x_t + b_h`` for tokens ``x (S, N)``: columns of W_xh, without a one-hot array."""
        backend, layer = self.backend, self.layer
        H, I = layer.W_xh.shape  # noqa: E741
        if self.batch.T * self.batch.N < I:  # fewer tokens than columns: fetch those
            columns = backend.xp.take(layer.W_xh, backend.xp.reshape(x, (-1,)), axis=1)
            rows[...] = backend.xp.reshape(columns.mT, rows.shape)
            rows += layer.b_h
            return
        if self._table is None:
            self._table = backend.empty((I, H), rows.dtype)  # each row in one piece
            self._table[...] = layer.W_xh.mT
            self._table += layer.b_h
        backend.take_rows_(rows, self._table, x)

    def _keep_valid(self, start: int, stop: int, hs: Array) -> None:
        """Pick up the last states of sequences that end in this segment, then zero what is past the end."""
        padding = self.batch.padding
        if padding is None:
            self.last_state = hs[stop - start, ...]
            return
        if padding.ends_within(start, stop):
            ends_here = padding.last(start, stop)[:, None]
            states = padding.last_states(hs, start, stop)
            self.last_state = self.backend.xp.where(ends_here, states, self.last_state)
        if padding.begins_before(stop):
            hs[1:, ...] = padding.zeroed(hs[1:, ...], start, stop)

    def kept(self, start: int) -> tuple[Array, Array]:
        """States ``hs (S+1, N, H)`` and inputs of the segment that begins at ``start``."""
        return self._kept[start]

    def release(self, start: int) -> None:
        """Let go of a segment's states."""
        hs = self._kept.pop(start)[0]
        if start == self._newest:  # the states that go on are its last ones
            self._state = self.backend.xp.asarray(self._state, copy=True)
            if self.batch.padding is None:
                self.last_state = self._state
        self.arrays.give_back(hs)


class BackwardPass:
    """The backward pass over what :class:`Unrolled` kept, from the last segment to the first.

    Parameters
    ----------
    grads : dict
        ``W_xh``, ``W_hh`` and ``b_h`` of the layer, where the sums of §3.2-3.4 are added up.
    direct : DirectPart
    d_last : (N, H), optional
        Gradient of :attr:`Unrolled.last_state`.
    dx : (T, N, I), optional
        Where the gradient of the input is written.

    Attributes
    ----------
    d_initial : (N, H)
        ``dh_0``, the gradient of the initial state, once the first segment has run backward.
    """

    def __init__(
        self,
        unrolled: Unrolled,
        grads: dict[str, Array],
        direct: DirectPart,
        d_last: Array | None,
        dx: Array | None,
        arrays: Loan | None = None,
    ) -> None:
        self.unrolled = unrolled
        self.grads = grads
        self.direct = direct
        self.d_last = d_last
        self.dx = dx
        self.d_initial: Array | None = None
        self._carried: Array | None = None  # W_hh^T dz of the segment after the one at hand
        self._buffers: tuple[Array, Array] | None = None
        backend, layer = unrolled.backend, unrolled.layer
        self._arrays = Loan(backend) if arrays is None else arrays
        self._add_product = backend.accumulator(layer.W_hh, unrolled.batch.h_0, unrolled.batch.T)  # W_hh^T dz_{t+1}

    def segment(self, start: int, stop: int, *, cut: bool) -> None:
        """Run one segment backward; ``cut``: without the gradient carried from later steps."""
        backend, layer = self.unrolled.backend, self.unrolled.layer
        hs, x = self.unrolled.kept(start)
        dhs, slopes = self._rows(hs)
        self.direct(start, stop, hs, dhs)
        self._add_last(start, stop, dhs)
        if self._carried is not None and not cut:
            dhs[stop - start - 1, ...] += self._carried
        self._carried = backward_(backend, layer.cell, self._add_product, hs, dhs, slopes)
        dz = flat(backend, dhs, 2)
        if self.unrolled.takes_tokens:
            x = backend.one_hot(x, layer.W_xh.shape[-1], dz.dtype)
        add_to(self.grads, "W_xh", weight_sum(backend, dz, flat(backend, x, 2)))
        add_to(self.grads, "W_hh", weight_sum(backend, dz, flat(backend, hs[:-1, ...], 2)))
        add_to(self.grads, "b_h", bias_sum(backend, dz))
        if self.dx is not None:
            dx = flat(backend, self.dx[start:stop, ...], 2)
            backend.matmul_(dx, dz, layer.W_xh)  # dx_t = W_xh^T dz_t
        if start == 0:
            self.d_initial = self._initial_gradient(self._carried)

    def _rows(self, hs: Array) -> tuple[Array, Array]:
        """Two ``(S, N, H)``, for gradients and slopes, that all segments share; what they hold is left over."""
        S = hs.shape[0] - 1
        if self._buffers is None or self._buffers[0].shape[0] < S:
            empty, shape = self._arrays.empty, (S, *hs.shape[1:])
            self._buffers = empty(shape, hs.dtype), empty(shape, hs.dtype)
        dhs, slopes = self._buffers
        return dhs[:S, ...], slopes[:S, ...]

    def _add_last(self, start: int, stop: int, dhs: Array) -> None:
        if self.d_last is None:
            return
        padding = self.unrolled.batch.padding
        if padding is not None:
            padding.add_to_last_(dhs, self.d_last, start, stop)
        elif stop == self.unrolled.batch.T:
            dhs[stop - start - 1, ...] += self.d_last

    def _initial_gradient(self, dh_0: Array) -> Array:
        """``dh_0 = W_hh^T dz_1``; where a sequence has length 0, its last state is h_0 and brings its gradient."""
        padding = self.unrolled.batch.padding
        if padding is None or self.d_last is None:
            return dh_0
        return dh_0 + padding.of_empty(self.d_last)
