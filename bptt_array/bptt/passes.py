"""What a network does with a batch: forward; backward from a given gradient; a loss; a loss and its gradient.

Each is a schedule run over the segments of :mod:`bptt_array.bptt.unrolled`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from ..backend.portable import Array, Backend
from ..equations.embedding import TiedSums
from ..equations.long_sums import Sums, Waiting
from ..equations.objective import Objective
from ..equations.readout import Readout
from ..schedules.instructions import (
    Backward,
    Forget,
    Forward,
    Remember,
    Restore,
    Segments,
    bytes_of_parts,
    full,
    longest_segment,
)
from ..schedules.plans import Plan
from .batch import Batch, States, as_state, without
from .direct import GivenAtEveryStep, last_state_gradient, loss_head, nothing_direct
from .directions import in_time
from .dropout import Dropout
from .parts import Part, Targets, added, cut, joined, of_rows, rows_of_parts
from .state import Gradients, State
from .unrolled import BackwardPass, DirectPart, Stack, Unrolled, Watch
from .workspace import Loan, Workspace

_Result = TypeVar("_Result")
#: Called now and then by a part of a call; raises where another part has failed.
Going = Callable[[], None]


def go_on() -> None:
    """There are no other parts."""


class BoundNetwork(NamedTuple):
    """Layers and their readout with the parameters bound to them."""

    backend: Backend
    stack: Stack
    readout: Readout
    mode: str  # "every" or "last"
    workspace: Workspace
    largest: int  # numbers of the largest parameter that is a factor of products

    @property
    def tied(self) -> bool:
        """Whether the readout has the matrix of the embedding."""
        return self.readout.W_hy is not None and self.readout.W_hy is self.stack.W_emb

    def segment_length(self, batch: Batch) -> int:
        itemsize = self.backend.xp.finfo(batch.dtype).bits // 8
        bytes_per_step = math.prod(batch.initial[0][0].shape) * itemsize
        segment_bytes, members = self.backend.segment_bytes, batch.members is not None
        if (self.parts(batch) or 1) > 1:
            segment_bytes = bytes_of_parts(segment_bytes)
        return longest_segment(
            segment_bytes, batch.T, bytes_per_step, bidirectional=self.stack.bidirectional, members=members
        )

    def parts(self, batch: Batch) -> int | None:
        """Into how many parts a batch may be cut, see :meth:`~bptt_array.Backend.count_parts`."""
        top = self.stack.top
        return self.backend.count_parts(
            batch.N, batch.N * math.prod(top.params["W_hh"].shape) // top.cell.gates_of_state
        )

    def run(self, whole: Part, one: Callable[..., _Result], *, in_parts: bool) -> list[_Result]:
        """``one(part, workspace, going)`` of every part of a batch, or ``one(whole, workspace)``."""
        count = self.parts(whole.batch)
        if count is None or count == 1 or not in_parts:
            return [self.in_one_piece(whole.batch, partial(one, whole, self.workspace))]
        pairs = zip(cut(whole, count, self.mode), self.workspace.of_parts(count), strict=True)
        return self.backend.run_parts([partial(one, *pair) for pair in pairs])

    def in_one_piece(self, batch: Batch, function: Callable[[], _Result]) -> _Result:
        """Its result; where threads do not pay, products have one."""
        few = self.backend.one_thread_multiply_adds
        if few is not None and batch.T * batch.N * self.largest > few and self.parts(batch) == 1:
            with self.backend.one_thread():
                return function()
        return function()

    def empty_dx(self, batch: Batch) -> Array:
        inputs = self.stack.layers[0].params["W_xh"].shape[-1]
        return self.backend.empty((batch.T, *batch.member_axis, batch.N, inputs), batch.dtype)

    def as_state(self, layers: list[States], *, own: bool = False) -> State:
        return as_state(self.backend, layers, bidirectional=self.stack.bidirectional, own=own)

    def last_state(self, unrolled: Unrolled) -> State:
        """That after a pass that is over; where a batch has no steps at all it may be the caller's."""
        last = unrolled.last
        return self.as_state(last, own=last[0][0] is not unrolled.batch.initial[0][0])


def run_forward(
    network: BoundNetwork, batch: Batch, dropout: Dropout | None, *, keep: bool
) -> tuple[Array, State, list[Unrolled]]:
    """Outputs, last state, and the layers of every part unrolled; ``keep`` their states for :func:`run_backward`."""
    backend, stack, readout, mode, *_ = network
    y: Array = None
    if mode == "every":
        y = backend.empty((batch.T, *batch.member_axis, batch.N, readout.size(stack.outputs)), batch.dtype)
    one = partial(_forward, network, length=network.segment_length(batch), keep=keep)
    ys, unrolled = zip(*network.run(Part(batch, None, dropout, y), one, in_parts=True), strict=True)
    if mode == "last":
        y = ys[0] if len(ys) == 1 else backend.xp.concat(ys, axis=-2)
    elif batch.reverse:
        y = in_time(backend, y, batch.padding)
    return y, joined(backend, [network.as_state(of_part.last) for of_part in unrolled]), list(unrolled)


def _forward(
    network: BoundNetwork, part: Part, workspace: Workspace, going: Going = go_on, *, length: int, keep: bool
) -> tuple[Array, Unrolled]:
    backend, stack, readout, mode, *_ = network
    batch = part.batch
    y: Array = part.rows
    unrolled = Unrolled(backend, stack, batch, length, dropout=part.dropout, keep=keep)
    for start, stop in Segments(0, batch.T, length):
        going()
        h = unrolled.forward(start, stop)
        if mode == "every":
            of_segment = readout(h)
            padding = batch.padding
            y[start:stop, ...] = of_segment if padding is None else padding.zeroed(of_segment, start, stop)
        if not keep:
            unrolled.release(start)
    if mode == "last":
        y = readout(unrolled.last_outputs)
        y = y if batch.padding is None else batch.padding.zeroed_if_empty(y)
    unrolled.end()  # a backward pass, of which there may be several at a time, has rows of its own
    return y, unrolled


def run_backward(
    network: BoundNetwork,
    whole: Batch,
    unrolled: list[Unrolled],
    dy: Array | None,
    d_last: list[States] | None,
    *,
    input_grad: bool,
    backward: str = "sequential",
) -> Gradients:
    """Full BPTT from gradients of the outputs and of the last states of every layer, of the parts that ran forward."""
    dx = network.empty_dx(whole) if input_grad else None
    one = partial(_backward, network, backward=backward)
    count = len(unrolled)
    if count == 1:
        grads = network.in_one_piece(whole, partial(one, unrolled[0], dy, d_last, dx))
        return added(whole, [grads], dx)
    parts = [
        partial(
            one,
            unrolled[k],
            None if dy is None else of_rows(dy, rows),
            None if d_last is None else [tuple([of_rows(d, rows) for d in states]) for states in d_last],
            None if dx is None else of_rows(dx, rows),
            dx_apart=True,
        )
        for k, rows in enumerate(rows_of_parts(whole.N, count))
    ]
    return added(whole, network.backend.run_parts(parts), dx)


def _backward(
    network: BoundNetwork,
    unrolled: Unrolled,
    dy: Array | None,
    d_last: list[States] | None,
    dx: Array | None,
    going: Going = go_on,
    *,
    backward: str,
    dx_apart: bool = False,
) -> Gradients:
    backend, _, readout, mode, *_ = network
    batch = unrolled.batch
    waiting = Waiting.on(backend)
    readout_grads = Sums(waiting)
    direct: DirectPart = nothing_direct
    if dy is not None and mode == "every":
        direct = GivenAtEveryStep(readout, batch.feed(dy, features=True), readout_grads)
    elif dy is not None:
        last = unrolled.last_outputs
        d_outputs = last_state_gradient(backend, readout, last, dy, batch.padding, readout_grads)
        d_last = unrolled.with_last_outputs(d_last, d_outputs)
    sweep = BackwardPass(unrolled, direct, d_last, dx, backward=backward, waiting=waiting, dx_apart=dx_apart)
    for step in full(batch.T, unrolled.rows.longest):  # the segments that ran forward
        going()
        if isinstance(step, Backward):
            sweep.segment(step.start, step.stop, cut=step.cut)
    return _gradients(network, sweep, readout_grads)


def run_loss(
    network: BoundNetwork, batch: Batch, objective: Objective, targets: Targets, dropout: Dropout | None
) -> tuple[Array, State]:
    """Loss and last state; no segment is kept."""
    one = partial(_loss, network, objective=objective, length=network.segment_length(batch))
    done = network.run(Part(batch, targets, dropout), one, in_parts=not callable(objective.loss))
    losses, states = zip(*done, strict=True)
    return sum(losses[1:], start=losses[0]), joined(network.backend, states)


def _loss(
    network: BoundNetwork, part: Part, workspace: Workspace, going: Going = go_on, *, objective: Objective, length: int
) -> tuple[Array, State]:
    batch, backend = part.batch, network.backend
    arrays = Loan(backend, workspace)
    head = loss_head(network.mode, objective, *part.compared, batch, Sums(Waiting.on(backend)))
    unrolled = Unrolled(backend, network.stack, batch, length, arrays, part.dropout, keep=False)
    for start, stop in Segments(0, batch.T, length):
        going()
        h = unrolled.forward(start, stop)
        head.add_loss(start, stop, h, unrolled.last_outputs)
        unrolled.release(start)
    last_state = network.last_state(unrolled)
    arrays.end()
    return head.loss, last_state


def run_loss_and_grad(
    network: BoundNetwork,
    batch: Batch,
    objective: Objective,
    targets: Targets,
    dropout: Dropout | None,
    plan: Plan,
    *,
    input_grad: bool,
    backward: str = "sequential",
    watch: Watch | None = None,
) -> tuple[Array, Gradients, State]:
    """Loss, gradients and last state, as planned."""
    whole = Part(batch, targets, dropout, network.empty_dx(batch) if input_grad else None)
    one = partial(_loss_and_grad, network, objective=objective, plan=plan, backward=backward, watch=watch)
    in_parts = not callable(objective.loss) and plan.memory is None and backward == "sequential" and watch is None
    losses, grads, states = zip(*network.run(whole, one, in_parts=in_parts), strict=True)
    loss = sum(losses[1:], start=losses[0])
    return loss, added(batch, grads, whole.rows), joined(network.backend, states)


def _loss_and_grad(
    network: BoundNetwork,
    part: Part,
    workspace: Workspace,
    going: Going = go_on,
    *,
    objective: Objective,
    plan: Plan,
    backward: str,
    watch: Watch | None,
) -> tuple[Array, Gradients, State]:
    batch, backend = part.batch, network.backend
    arrays = Loan(backend, workspace, plan.memory)
    waiting = Waiting.on(backend)
    readout_grads = Sums(waiting)
    head = loss_head(network.mode, objective, *part.compared, batch, readout_grads)
    unrolled = Unrolled(backend, network.stack, batch, plan.longest, arrays, part.dropout)
    sweep = BackwardPass(unrolled, head, None, part.rows, unrolled.rows, backward, watch, waiting, dx_apart=part.is_cut)
    for instruction in plan.schedule():
        going()
        match instruction:
            case Forward(start, stop, keep):
                unrolled.forward(start, stop)
                if not keep:
                    unrolled.release(start)
            case Backward(start, stop, is_cut, loss, keep):
                if stop == batch.T and plan.memory is None:  # nothing runs forward twice
                    unrolled.end_forward()
                sweep.segment(start, stop, cut=is_cut, loss=loss)
                if not keep:
                    unrolled.release(start)
            case Remember(start):
                unrolled.remember(start)
            case Restore(start):
                unrolled.restore(start)
            case Forget(start):
                unrolled.forget(start)
    last_state = network.last_state(unrolled)
    arrays.end()
    return head.loss, _gradients(network, sweep, readout_grads, objective.mean_over), last_state


def _gradients(
    network: BoundNetwork, sweep: BackwardPass, readout_grads: Sums, steps: int | Array | None = None
) -> Gradients:
    readout, params = network.readout, sweep.grads
    if readout.W_hy is not None:  # zero where no output has a gradient
        totals, names = readout_grads.totals(), ["W_hy", "b_y"]
        if sweep.embedding is not None and network.tied:
            params["W_emb"] = TiedSums(sweep.embedding.sums, totals.get(names.pop(0)))
        for name in names:
            grad = totals.get(name)
            params[name] = network.backend.xp.zeros_like(getattr(readout, name)) if grad is None else grad
    reset, d_initial = sweep.unrolled.batch.reset, sweep.d_initial
    if reset is not None:  # what the state was there does not matter
        d_initial = without(network.backend, d_initial, reset)
    return Gradients(params=params, state=network.as_state(d_initial, own=True), x=sweep.dx, steps=steps)
