"""3.1.1: the direct part of ``dh_t``, what the output at step t tells the hidden state at step t.

Two sources: a loss, computed per segment while the backward sweep passes (so that outputs for all of T never
exist at once), or a gradient ``dy`` that the caller brings. Two readouts: every step, or the last valid one.
Each is a :class:`bptt_array.bptt.unrolled.DirectPart`.
"""

from __future__ import annotations

from ..backend.portable import Array, Backend
from ..equations.long_sums import Sums
from ..equations.objective import Objective
from ..equations.readout import Readout
from ..schedules.instructions import Segments
from .batch import Batch
from .padding import Feed, Padding
from .parts import Targets

#: So many bytes of a segment stand for a step that is counted, of which there are several small arrays.
_BYTES_OF_A_STEP = 1024


class _SumOfLosses:
    """A loss that adds up over the segments."""

    def __init__(self, batch: Batch, grads: Sums) -> None:
        self._batch = batch
        self.losses = Sums(grads.waiting)

    @property
    def loss(self) -> Array:
        """Of the segments so far, 0-d or (E,)."""
        total = self.losses.totals().get("loss")
        return self._batch.no_loss if total is None else total


class LossAtEveryStep(_SumOfLosses):
    """``L = sum_t L_t`` over all valid steps; :attr:`loss` adds up over the segments."""

    def __init__(self, objective: Objective, target: Array, weights: Array | None, batch: Batch, grads: Sums) -> None:
        super().__init__(batch, grads)
        self.objective = objective
        self.batch = batch
        # classes: as many axes as the weights, and no features
        features = target.ndim > 2 + (batch.members is not None)
        self.target = batch.feed(target, features=features)
        self.weights = None if weights is None else batch.feed(weights, features=False)
        self.grads = grads

    def add_loss(self, start: int, stop: int, h: Array, last: Array) -> Array:
        """Add the loss of a segment to :attr:`loss`; returns ``dv (S, [E,] N, O)``."""
        return self.objective.add_(self.losses, h, *self.compared(start, stop))

    def __call__(self, start: int, stop: int, h: Array, last: Array, dh: Array) -> None:
        dv = self.add_loss(start, stop, h, last)
        self.objective.readout.backward_(dh, dv, h, self.grads)

    def compared(self, start: int, stop: int) -> Targets:
        """The targets and weights of a segment."""
        return Targets(self.target(start, stop), self._weights(start, stop))

    def _weights(self, start: int, stop: int) -> Array | None:
        padding = self.batch.padding
        if self.weights is not None:
            return self.weights(start, stop)  # zero past the end
        if padding is None or not padding.begins_before(stop):
            return None
        valid = padding.backend.xp.astype(padding.valid(start, stop), self.batch.dtype)
        return valid if self.batch.members is None else valid[:, None, :]


class LossAtLastStep(_SumOfLosses):
    """A loss of the last valid step of every sequence, in the segment in which that step is."""

    def __init__(self, objective: Objective, target: Array, weights: Array | None, batch: Batch, grads: Sums) -> None:
        super().__init__(batch, grads)
        backend = objective.readout.backend
        self.objective = objective
        features = target.ndim > 1 + (batch.members is not None)
        self.target = Feed(backend, target, None, features=features)(0, target.shape[0])
        self.weights = None if weights is None else Feed(backend, weights, None, features=False)(0, weights.shape[0])
        self.T, self.dtype = batch.T, batch.dtype
        self.padding = batch.padding
        if self.padding is not None:  # a sequence of length 0 has no output: its target may be anything
            self.target = self.padding.zeroed_if_empty(self.target, features=features)
        self.grads = grads

    def add_loss(self, start: int, stop: int, h: Array, last: Array) -> tuple[Array, Array] | None:
        """Add the loss of the sequences that end in a segment; returns their ``h`` and ``dv ([E,] N, O)``."""
        padding, xp = self.padding, self.objective.readout.backend.xp
        if padding is not None:
            if not padding.ends_within(start, stop):
                return None
            last = xp.where(padding.last(start, stop)[:, None], last, xp.zeros_like(last))
        elif stop != self.T:
            return None
        return last, self.objective.add_(self.losses, last, *self.compared(start, stop))

    def __call__(self, start: int, stop: int, h: Array, last: Array, dh: Array) -> Array | None:
        dh[...] = 0
        ending = self.add_loss(start, stop, h, last)
        if ending is None:
            return None
        last, dv = ending
        d_last = self.objective.readout.backend.empty(last.shape, last.dtype)
        self.objective.readout.backward_(d_last, dv, last, self.grads)
        return d_last

    def compared(self, start: int, stop: int) -> Targets:
        """The targets, and the weights of the sequences that end in a segment."""
        if self.padding is None:
            return Targets(self.target, self.weights)
        xp = self.padding.backend.xp
        ends_here = self.padding.last(start, stop)
        if self.weights is None:
            return Targets(self.target, xp.astype(ends_here, self.dtype))
        return Targets(self.target, xp.where(ends_here, self.weights, xp.zeros_like(self.weights)))


def loss_head(
    mode: str,
    objective: Objective,
    target: Array,
    weights: Array | None,
    batch: Batch,
    grads: Sums,
) -> LossAtEveryStep | LossAtLastStep:
    """The loss for a readout of ``"every"`` step or of the ``"last"``; ``grads`` are the readout's."""
    head = LossAtEveryStep if mode == "every" else LossAtLastStep
    return head(objective, target, weights, batch, grads)


def total_of(mode: str, objective: Objective, targets: Targets, batch: Batch) -> Array:
    """What a mean is taken over where targets or weights say it, (1,) or (E or 1, 1): known before any segment runs.

    It is added up on the device, a block of steps at a time, and never read.
    """
    target, weights = targets
    if target.ndim > (2 if mode == "every" else 1) + (batch.members is not None):
        target = target[..., :1]  # of features one is enough: only classes count, and those have none
    head, steps = loss_head(mode, objective, target, weights, batch, Sums()), batch.T
    if mode == "every":
        steps = max(1, batch.backend.segment_bytes // _BYTES_OF_A_STEP // max(1, batch.N * (batch.members or 1)))
    blocks = Segments(0, batch.T, steps)
    counts = [objective.counted(*head.compared(start, stop), batch.dtype) for start, stop in blocks]
    return sum(counts[1:], start=counts[0])


class GivenAtEveryStep:
    """A gradient ``dy`` of the outputs of every step, from the caller."""

    def __init__(self, readout: Readout, dy: Feed, grads: Sums) -> None:
        self.readout = readout
        self.dy = dy
        self.grads = grads

    def __call__(self, start: int, stop: int, h: Array, last: Array, dh: Array) -> None:
        dv = output_gradient(self.readout, h, self.dy(start, stop))
        self.readout.backward_(dh, dv, h, self.grads)


def nothing_direct(start: int, stop: int, h: Array, last: Array, dh: Array) -> None:
    """No loss at any step: all gradient comes in through the last state."""
    dh[...] = 0


def output_gradient(readout: Readout, h: Array, dy: Array) -> Array:
    """``dv = g'(v)^T dy`` (3.2). The outputs are computed again from ``h``, where g' needs them at all."""
    if readout.g.name == "identity":
        return dy
    return readout.g.vjp(readout.backend, readout(h), dy)


def last_state_gradient(
    backend: Backend, readout: Readout, h: Array, dy: Array, padding: Padding | None, grads: Sums
) -> Array:
    """The gradient of the last states ``h ([E,] N, H)`` from ``dy ([E,] N, O)`` of a readout of the last step."""
    if padding is not None:
        h, dy = padding.zeroed_if_empty(h), padding.zeroed_if_empty(dy)  # a sequence of length 0 has no output
    dh = backend.empty(h.shape, h.dtype)
    readout.backward_(dh, output_gradient(readout, h, dy), h, grads)
    return dh
