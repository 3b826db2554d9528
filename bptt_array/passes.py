"""What a network does with a batch: forward; backward from a given gradient; a loss; a loss and its gradient.

Each is a schedule run over the segments of :mod:`bptt_array.bptt`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .backend import Array, Backend
from .batch import Batch
from .bptt import BackwardPass, DirectPart, Layer, Unrolled
from .direct import GivenAtEveryStep, last_state_gradient, loss_head, nothing_direct
from .losses import Objective
from .padding import Feed
from .readout import Readout
from .schedules import Backward, Forward, full, segment_length, segments, truncated
from .state import Gradients, State
from .workspace import Loan, Workspace


class Targets(NamedTuple):
    """What the outputs are compared with."""

    target: Array
    weights: Array | None


class Network(NamedTuple):
    """A layer and its readout with the parameters bound to them."""

    backend: Backend
    layer: Layer
    readout: Readout
    mode: str  # "every" or "last"
    workspace: Workspace

    def segment_length(self, batch: Batch) -> int:
        itemsize = self.backend.xp.finfo(self.layer.W_hh.dtype).bits // 8
        bytes_per_step = batch.N * self.layer.W_hh.shape[-1] * itemsize
        return segment_length(batch.T, bytes_per_step, self.backend.segment_bytes)

    def empty_dx(self, batch: Batch) -> Array:
        return self.backend.empty((batch.T, batch.N, self.layer.W_xh.shape[-1]), self.layer.W_hh.dtype)


def as_state(backend: Backend, h: Array) -> State:
    """``h (N, H)`` as a state ``(1, 1, N, H)`` of its own, which later writes cannot reach."""
    return State(h=backend.xp.asarray(h, copy=True)[None, None, ...])


def run_forward(network: Network, batch: Batch, *, keep: bool) -> tuple[Array, Unrolled]:
    """Outputs, and the layer unrolled; ``keep`` its states for :func:`run_backward`."""
    backend, layer, readout, mode, _ = network
    unrolled = Unrolled(backend, layer, batch)
    outputs = readout.size(batch.h_0.shape[-1])
    y = backend.empty((*batch.outputs_shape(mode), outputs), layer.W_hh.dtype)
    for start, stop in segments(0, batch.T, network.segment_length(batch)):
        hs = unrolled.forward(start, stop)
        if mode == "every":
            part = readout(hs[1:, ...])
            y[start:stop, ...] = part if batch.padding is None else batch.padding.zeroed(part, start, stop)
        if not keep:
            unrolled.release(start)
    if mode == "last":
        y = readout(unrolled.last_state)
        y = y if batch.padding is None else batch.padding.zeroed_if_empty(y)
    return y, unrolled


def run_backward(
    network: Network, unrolled: Unrolled, dy: Array | None, d_last: Array | None, *, input_grad: bool
) -> Gradients:
    """Full BPTT from gradients of the outputs and of the last state ``d_last (N, H)``."""
    backend, _, readout, mode, _ = network
    batch = unrolled.batch
    layer_grads: dict[str, Array] = {}
    readout_grads: dict[str, Array] = {}
    direct: DirectPart = nothing_direct
    if dy is not None and mode == "every":
        direct = GivenAtEveryStep(readout, Feed(backend, dy, batch.padding), readout_grads)
    elif dy is not None:
        through_y = last_state_gradient(backend, readout, unrolled.last_state, dy, batch.padding, readout_grads)
        d_last = through_y if d_last is None else d_last + through_y
    sweep = BackwardPass(unrolled, layer_grads, direct, d_last, network.empty_dx(batch) if input_grad else None)
    for action in full(batch.T, network.segment_length(batch)):
        if isinstance(action, Backward):
            sweep.segment(action.start, action.stop, cut=action.cut)
    return _gradients(network, sweep, readout_grads)


def run_loss(network: Network, batch: Batch, objective: Objective, targets: Targets) -> tuple[Array, State]:
    """Loss and last state; no segment is kept."""
    arrays = Loan(network.backend, network.workspace)
    head = loss_head(network.mode, objective, *targets, batch, {})
    unrolled = Unrolled(network.backend, network.layer, batch, arrays)
    for start, stop in segments(0, batch.T, network.segment_length(batch)):
        head.add_loss(start, stop, unrolled.forward(start, stop))
        unrolled.release(start)
    last_state = as_state(network.backend, unrolled.last_state)
    arrays.end()
    return head.loss, last_state


def run_loss_and_grad(
    network: Network, batch: Batch, objective: Objective, targets: Targets, window: int, *, input_grad: bool
) -> tuple[Array, Gradients, State]:
    """Loss, gradients and last state; the gradient is cut every ``window`` steps."""
    arrays = Loan(network.backend, network.workspace)
    layer_grads: dict[str, Array] = {}
    readout_grads: dict[str, Array] = {}
    head = loss_head(network.mode, objective, *targets, batch, readout_grads)
    unrolled = Unrolled(network.backend, network.layer, batch, arrays)
    sweep = BackwardPass(unrolled, layer_grads, head, None, network.empty_dx(batch) if input_grad else None, arrays)
    for action in truncated(batch.T, window, network.segment_length(batch)):
        if isinstance(action, Forward):
            unrolled.forward(action.start, action.stop)
        else:
            sweep.segment(action.start, action.stop, cut=action.cut)
            unrolled.release(action.start)
    last_state = as_state(network.backend, unrolled.last_state)
    arrays.end()
    return head.loss, _gradients(network, sweep, readout_grads), last_state


def _gradients(network: Network, sweep: BackwardPass, readout_grads: dict[str, Array]) -> Gradients:
    readout = network.readout
    params: dict[str, Any] = {f"l0.{name}": sweep.grads[name] for name in ("W_xh", "W_hh", "b_h")}
    if readout.W_hy is not None:  # zero where no output has a gradient
        for name in ("W_hy", "b_y"):
            grad = readout_grads.get(name)
            params[name] = network.backend.xp.zeros_like(getattr(readout, name)) if grad is None else grad
    return Gradients(params=params, state=as_state(sweep.unrolled.backend, sweep.d_initial), x=sweep.dx)
