"""Where gradients go: the size of ``dL/dh_t`` (3.1), and of ``dL_k/dh_t`` for single losses, at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat
import numpy as np

from ..backend.arrays import dtype_name
from ..backend.portable import Array, Backend
from ..bptt.batch import Batch
from ..bptt.padding import Padding
from ..bptt.parts import Targets
from ..bptt.passes import BoundNetwork, run_loss_and_grad
from ..bptt.state import State
from ..bptt.workspace import Workspace
from ..equations.objective import Objective
from ..losses import AnyLoss
from ..rnn.rnn import RNN
from ..schedules import plans
from .arguments import check_increasing, check_rnn, evenly
from .trajectory import HostArray

#: How many single losses are followed unless told otherwise.
_LOSSES = 64

#: What the states of the copies of a batch that run side by side may take, in bytes.
_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True)
class GradientFlow:
    """Euclidean norms of gradients of the states, of every layer, direction, step and sequence.

    Index t is the step of ``x`` at which a state was computed, also in a direction that reads from the end; in one that
    reads from the beginning that is the state ``h_{t+1}`` if the initial one is ``h_0``. All norms are float64 on the
    host and zero past the end of a sequence.

    Attributes
    ----------
    loss : () or (E,)
        L, the sum over all steps and sequences (2.1).
    lengths : (N,) int64
        Steps of every sequence.
    total : (L, D, T, [E,] N)
        ``|dL/dh_t|``, the total derivative (3.1).
    total_c : the same, or None
        ``|dL/dc_t|`` of cells with c, also by way of the h_t that follows from c_t.
    at : (A,) int64, or None
        The steps k of single losses.
    per_loss : (A, L, D, T, [E,] N), or None
        ``|dL_k/dh_t|``; in the first direction zero for t > k. None where there is one loss, ``readout="last"``.
    per_loss_c : the same, or None
    """

    loss: HostArray
    lengths: HostArray
    total: HostArray
    total_c: HostArray | None = None
    at: HostArray | None = None
    per_loss: HostArray | None = None
    per_loss_c: HostArray | None = None


def gradient_flow(
    rnn: RNN,
    x: Any,
    target: Any,
    loss: AnyLoss = "mse",
    *,
    state: State | None = None,
    lengths: Any = None,
    weights: Any = None,
    at: Iterable[int] | None = None,
) -> GradientFlow:
    """The size of the gradient that arrives at every state: of the whole loss, and of the losses of single steps.

    Parameters
    ----------
    rnn, x, target, loss, state, lengths, weights
        As for :meth:`RNN.loss_and_grad`; L is the sum of the losses, ``reduction="sum"``, and nothing is dropped out.
        A loss of your own is called with several copies of the batch side by side: more sequences than there are.
    at : ints, optional
        Steps k of single losses, each greater than the one before; if left out all of them, of more than 64 that many,
        evenly spaced, the first and the last among them. Empty: none. With ``readout="last"`` there are none.

    Returns
    -------
    GradientFlow

    Raises
    ------
    ValueError, TypeError
        Naming the argument, before any work.

    Notes
    -----
    ``dL_k/dh_t`` is the gradient of an L with the weight of step k alone, of a copy of the batch for every k: A times
    the time of a training step, in blocks of copies whose states take about 64 MiB. ``at=()`` costs one step.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> from bptt_array.diagnostics import gradient_flow
    >>> rnn = ba.RNN(2, 4, 1, cell="relu", init="orthogonal", dtype="float64", seed=1)
    >>> rnn.params["l0.W_hh"] *= 0.5
    >>> rnn.params["l0.b_h"] += 10  # far from the kink, where one step back halves a gradient
    >>> flow = gradient_flow(rnn, np.ones((5, 1, 2)), np.zeros((5, 1, 1)), at=[1, 4])
    >>> flow.total.shape, flow.per_loss.shape
    ((1, 1, 5, 1), (2, 1, 1, 5, 1))
    >>> (flow.per_loss[:, 0, 0, :, 0] / flow.per_loss.max(axis=(1, 2, 3, 4))[:, None]).round(4)
    array([[0.5   , 1.    , 0.    , 0.    , 0.    ],
           [0.0625, 0.125 , 0.25  , 0.5   , 1.    ]])
    """
    check_rnn(rnn)
    with rnn.backend.active(), rnn.calls.layout.in_errors():
        batch = rnn.calls.batch(x, state, lengths, None, False, host=True)
        network = rnn.calls.network(rnn.params)._replace(workspace=Workspace())  # that of the network is left alone
        objective, targets = rnn.calls.objective(network, batch, target, loss, weights, "sum", False)
        chosen = _losses(at, batch.T, rnn.readout)
        value, total = _run(network, batch, objective, targets)
        ends = np.full(batch.N, batch.T) if batch.lengths is None else batch.lengths
        flow = GradientFlow(rnn.backend.to_host(value).astype(np.float64), ends.astype(np.int64), *_pair(total))
        if chosen is None:
            return flow
        per_loss, per_loss_c = _pair(_of_single_losses(network, batch, objective, targets, chosen))
        return replace(flow, at=np.array(chosen, np.int64), per_loss=per_loss, per_loss_c=per_loss_c)


def _losses(at: Iterable[int] | None, T: int, readout: str) -> list[int] | None:
    """Which single losses are followed; None where there are none."""
    if readout == "last":
        if at is None or not check_increasing("at", at, math.inf):
            return None
        raise ValueError(f"at={at!r}, but this RNN has readout='last', which has one loss; leave at=None")
    return evenly(0, T - 1, _LOSSES) if at is None else check_increasing("at", at, T - 1)


def _pair(norms: list[HostArray]) -> tuple[HostArray, HostArray | None]:
    """Of h, and of c where there is one."""
    return norms[0], norms[1] if len(norms) > 1 else None


class _Norms:
    """A :data:`~bptt_array.bptt.unrolled.Watch` that takes the norms of what it is shown."""

    def __init__(self, network: BoundNetwork, batch: Batch) -> None:
        self.backend = network.backend
        self.two = network.stack.bidirectional
        layers, sides = len(network.stack.layers), 1 + self.two
        shape = (layers, sides, batch.T, *batch.member_axis, batch.N)
        self.of_states = [np.zeros(shape) for _ in batch.initial[0]]

    def __call__(self, layer: int, start: int, stop: int, total: tuple[Array, ...]) -> None:
        for found, gradient in zip(self.of_states, total, strict=True):
            norms = row_norms(self.backend, gradient)  # (S, [E,] [2,] N)
            found[layer, :, start:stop] = np.moveaxis(norms, -2, 0) if self.two else norms[None]


def row_norms(backend: Backend, a: Array) -> HostArray:
    """Euclidean norms over the last axis, in float64 on the host; squares neither under- nor overflow."""
    xp = backend.xp
    largest = xp.max(xp.abs(a), axis=-1, keepdims=True)
    usable = xp.isfinite(largest) & (largest > 0)
    scaled = xp.where(usable, a, xp.zeros_like(largest)) / xp.where(usable, largest, xp.ones_like(largest))
    norms, scale = backend.to_host(xp.sqrt(xp.vecdot(scaled, scaled))), backend.to_host(largest[..., 0])
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(np.isfinite(scale), norms.astype(np.float64) * scale, scale)


def _run(network: BoundNetwork, batch: Batch, objective: Objective, targets: Targets) -> tuple[Array, list[HostArray]]:
    """L, and the norms of the gradients of h, and of c if there is one, ``(L, D, T, [E,] N)``."""
    norms = _Norms(network, batch)
    plan = plans.plan(batch.T, longest=network.segment_length(batch), truncate=None)
    value, _, _ = run_loss_and_grad(network, batch, objective, targets, None, plan, input_grad=False, watch=norms)
    if batch.reverse:
        norms.of_states = [in_time(found, batch.lengths, axis=2) for found in norms.of_states]
    if norms.two:
        for found in norms.of_states:
            found[:, 1] = in_time(found[:, 1], batch.lengths, axis=1)
    return value, norms.of_states


def in_time(a: HostArray, lengths: HostArray | None, axis: int) -> HostArray:
    """What a direction from the end has step by step, ``(..., T, [E,] N)`` with T at ``axis``, in the order of time."""
    if lengths is None:
        return np.flip(a, axis)
    T = a.shape[axis]
    steps = np.arange(T)[:, None]
    turned = np.where(steps < lengths, lengths - 1 - steps, steps)  # (T, N)
    between = a.ndim - axis - 2
    index = turned.reshape(*(1,) * axis, T, *(1,) * between, len(lengths))
    return np.take_along_axis(a, np.broadcast_to(index, a.shape), axis)


def _of_single_losses(
    network: BoundNetwork, batch: Batch, objective: Objective, targets: Targets, chosen: list[int]
) -> list[HostArray]:
    """``(A, L, D, T, [E,] N)`` for h, and for c if there is one."""
    layers, sides = len(network.stack.layers), 1 + network.stack.bidirectional
    shape = (len(chosen), layers, sides, batch.T, *batch.member_axis, batch.N)
    found = [np.zeros(shape) for _ in batch.initial[0]]
    at_once = _copies_at_once(network, batch)
    for first in range(0, len(chosen), at_once):
        steps = chosen[first : first + at_once]
        copies = _copied(batch, len(steps))
        alone = Targets(
            _along_sequences(targets.target, len(steps), 1 + len(batch.member_axis)),
            _weights_of(steps, network.backend, batch, targets.weights),
        )
        _, norms = _run(network, copies, objective, alone)
        for result, of_copies in zip(found, norms, strict=True):
            apart = of_copies.reshape(*of_copies.shape[:-1], len(steps), batch.N)
            result[first : first + len(steps)] = np.moveaxis(apart, -2, 0)
    return found


def _copies_at_once(network: BoundNetwork, batch: Batch) -> int:
    cell, layers = network.stack.top.cell, len(network.stack.layers)
    numbers: int = batch.T * math.prod(batch.initial[0][0].shape) * layers * (len(batch.initial[0]) + cell.keeps)
    return max(1, _BLOCK_BYTES // (numbers * int(network.backend.xp.finfo(batch.dtype).bits) // 8))


def _weights_of(steps: list[int], backend: Backend, batch: Batch, weights: Array | None) -> HostArray:
    """Those of ``weights`` at one step alone for every copy of the batch, ``(T, [E or 1,] A*N)``."""
    if weights is None:
        given = np.ones((batch.T, *(1,) * len(batch.member_axis), batch.N), dtype_name(batch.initial[0][0]))
    else:
        given = backend.to_host(weights) if backend.owns(weights) else weights
    alone = np.zeros((*given.shape[:-1], len(steps), batch.N), given.dtype)
    for copy, step in enumerate(steps):
        alone[step, ..., copy, :] = given[step]
    return alone.reshape(*given.shape[:-1], -1)


def _copied(batch: Batch, count: int) -> Batch:
    """A batch ``count`` times, one copy after the other along its sequences."""
    padding = None if batch.lengths is None else Padding(batch.backend, np.tile(batch.lengths, count))
    return replace(
        batch,
        N=count * batch.N,
        x=_along_sequences(batch.x, count, 1 + len(batch.member_axis)),
        initial=[tuple([_along_sequences(a, count, a.ndim - 2) for a in states]) for states in batch.initial],
        padding=padding,
    )


def _along_sequences(array: Array, count: int, axis: int) -> Array:
    return array_api_compat.array_namespace(array).concat([array] * count, axis=axis)
