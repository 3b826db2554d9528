"""(2.1) and (3.2) of a segment: losses of the library or of the caller, weighted and reduced, and ``dL/dv``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ..backend.arrays import is_integer, is_plain
from ..backend.portable import Array, Backend
from .activations import Activation
from .long_sums import Sums, with_waiting
from .losses import Factor, Loss, UserLoss
from .readout import Readout, with_bias


class LossOfRows(NamedTuple):
    """A loss of the library and g: from ``W_hy h`` of a step to the loss and its derivative, a function of rows.

    Attributes
    ----------
    loss : Loss
    g : Activation
        Of the outputs.
    before : float
        What the loss of a step is multiplied by, before a square that would overflow, where there are no weights.
    with_class_weights : bool
        Whether the loss is given those.
    """

    loss: Loss
    g: Activation
    before: float
    with_class_weights: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of v, b_y, target, weights, scale, and class weights."""
        return ("entry", "entry", "target", "row", "number", *["entry"] * self.with_class_weights)

    def __call__(
        self,
        backend: Backend,
        v: Array,
        b_y: Array | None,
        target: Array,
        weights: Array | None,
        scale: float,
        *class_weights: Array,
    ) -> tuple[Array, Array]:
        """``factor L_t`` and ``scale dL_t/dv``; v is used up."""
        per_step = partial(self._per_step, backend, with_bias(backend, v, b_y), target, class_weights)
        return _weighted(backend, per_step, weights, scale, self.before)

    def _per_step(
        self, backend: Backend, v: Array, target: Array, class_weights: tuple[Array, ...], factor: Factor
    ) -> tuple[Array, Array]:
        """``factor L_t`` and ``dL_t/dv``."""
        loss = self.loss
        if loss.output is not None:
            return loss.function(backend, v, target, factor, *loss.options, *class_weights)
        y, g = v, self.g
        g.value_(backend, y)
        losses, dy = loss.function(backend, y, target, factor, *loss.options)
        return losses, g.vjp(backend, y, dy)  # (3.2): g' * dL/dy


def _weighted(
    backend: Backend,
    per_step: Callable[[Factor], tuple[Array, Array]],
    weights: Array | None,
    scale: float,
    before: float,
) -> tuple[Array, Array]:
    """``factor L_t`` and ``scale dL_t/dv`` of every step, or weighted; ``before`` is the factor without weights."""
    xp = backend.xp
    if weights is None:
        loss, dv = per_step(before)
        dv *= scale
        return loss, dv
    counts = weights != 0
    weights = weights * scale
    # 0 times a loss that is infinite would be no number.
    loss, dv = per_step(xp.where(counts, weights, xp.ones_like(weights)))
    loss = xp.where(counts, loss, xp.zeros_like(loss))
    backend.zero_unless_(dv, counts[..., None])
    dv *= weights[..., None]
    return loss, dv


def _checked(backend: Backend, y: Array, result: Any) -> tuple[Array, Array]:
    """What a caller's own loss returned, or an error that says what it should have been."""
    expected = f"expected (loss, dy) of shapes {tuple(y.shape[:-1])} and {tuple(y.shape)}"
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(f"loss returned a {type(result).__name__}; {expected}")
    for name, array, shape in zip(("loss", "dy"), result, (y.shape[:-1], y.shape), strict=True):
        if not is_plain(array) or not backend.owns(array) or array.dtype != y.dtype:
            raise TypeError(
                f"loss returned {name} as {type(array).__name__} of dtype {getattr(array, 'dtype', None)}; "
                f"expected an array of {backend.name} and dtype {y.dtype}, like y"
            )
        if tuple(array.shape) != tuple(shape):
            raise ValueError(
                f"loss returned {name} of shape {tuple(array.shape)}; {expected}: one loss per step and "
                "sequence. For a loss that is no sum over steps use rnn.forward and its backward"
            )
    return result


class Objective(NamedTuple):
    """A loss with its weights and its reduction: from hidden states to ``L`` and ``dL/dv``.

    ``loss`` is one of the library or the caller's ``(y, target) -> (loss, dy)``; ``steps`` is what a mean is taken
    over, None for the sum (2.1). With ``members`` E there is an axis of them before that of the sequences, in
    targets and weights possibly of 1, and every member has its own L: ``(E,)``.

    Steps whose class is the number ``ignored`` are left out, ``class_weights (O,)`` multiply what a class costs, and
    ``total``, (1,) or (E or 1, 1), is what a mean is taken over where targets or weights say it (see :meth:`counted`).
    """

    readout: Readout
    loss: Loss | UserLoss
    steps: int | None
    members: int | None = None
    ignored: int | None = None
    class_weights: Array | None = None
    total: Array | None = None

    @property
    def mean_over(self) -> int | Array | None:
        """What a mean is taken over, of an ensemble with a ``total`` (E,); None of a sum."""
        if self.total is None:
            return self.steps
        backend = self.readout.backend
        if self.members is None:
            return backend.xp.reshape(self.total, ())
        of_members = backend.empty((self.members,), self.total.dtype)  # which may be written to, unlike a broadcast
        of_members[...] = self.total[:, 0]
        return of_members

    def add_(self, losses: Sums, h: Array, target: Array, weights: Array | None) -> Array:
        """Add the loss (reduced: 0-d or (E,)) to ``losses["loss"]``; ``dv (..., O)`` of states ``h (..., H)``.

        Where a weight is zero, ``weights (...)``, so is the loss, even if the target there is no number.
        """
        backend, loss = self.readout.backend, self.loss
        target, weights = self._without_ignored(target, weights, h.dtype)
        if self.total is not None:
            weights = self._share(self.total, weights)
        scale = 1.0 if self.steps is None else 1.0 / max(1, self.steps)  # without any valid step it is 0 either way
        if isinstance(loss, Loss):
            v = self.readout.product(h)
            scale *= loss.share(v.shape[-1])
        # A power of two, which rounds nothing, before the sum: it does not overflow where the mean does not.
        before = 1.0 if weights is not None else 2.0 ** (math.frexp(scale)[1] - 1)
        if isinstance(loss, Loss):
            more = () if self.class_weights is None else (self.class_weights,)
            rows = backend.over_rows(LossOfRows(loss, self.readout.g, before, bool(more)))
            target = self._for_every_member(target, v) if loss.output is not None else target
            value, dv = rows(v, self.readout.bias, target, weights, scale, *more)
        else:
            value, dv = _weighted(backend, partial(self._callers, loss, h, target), weights, scale, before)
        self._sum(losses, value, 1.0 if weights is not None else scale / before)
        return dv

    def counted(self, target: Array, weights: Array | None, dtype: Any) -> Array:
        """What a mean is taken over, of some steps: the sum of their weights, times those of their classes."""
        xp = self.readout.backend.xp
        target, weights = self._without_ignored(target, weights, dtype)
        if self.class_weights is not None and is_integer(target):
            of_classes = self.readout.backend.take_entries(self.class_weights, target)
            weights = of_classes if weights is None else weights * of_classes
        assert weights is not None
        if self.members is None:
            return xp.reshape(xp.sum(weights), (1,))
        of_all = xp.sum(weights, axis=-1)
        return (of_all if of_all.ndim == 1 else xp.sum(of_all, axis=0))[:, None]

    def _without_ignored(self, target: Array, weights: Array | None, dtype: Any) -> tuple[Array, Array | None]:
        """A class that there is, and a weight of 0, for what is ignored."""
        if self.ignored is None:
            return target, weights
        xp, counts = self.readout.backend.xp, target != self.ignored
        weights = xp.astype(counts, dtype) if weights is None else xp.where(counts, weights, xp.zeros_like(weights))
        return xp.where(counts, target, xp.zeros_like(target)), weights

    def _share(self, total: Array, weights: Array | None) -> Array:
        """``weights / total``, and 0 where that is 0."""
        xp = self.readout.backend.xp
        nothing = total == 0
        share = (1 if weights is None else weights) / xp.where(nothing, xp.ones_like(total), total)
        return xp.where(nothing, total, share)

    def _sum(self, losses: Sums, loss: Array, after: float) -> None:
        """Over steps and sequences: ``([S,] [E,] N)``."""
        backend, xp = self.readout.backend, self.readout.backend.xp
        if self.members is not None:
            # Each member's in one piece, which NumPy adds up in pairs; over a leading axis it adds one to the other.
            of_members = backend.empty((self.members, math.prod(loss.shape) // self.members), loss.dtype)
            of_members[...] = xp.reshape(xp.moveaxis(loss, -2, 0), of_members.shape)
            loss = of_members
        if backend.sums_columns:
            rows = xp.reshape(loss, (-1, 1)) if self.members is None else loss[..., None]
            with_waiting(backend, losses).add(losses, "loss", rows, rows.shape[:-2], after)
        else:
            total = xp.sum(loss, axis=-1 if self.members is not None else None)
            losses.add("loss", total if after == 1 else total * after)

    def _callers(self, function: UserLoss, h: Array, target: Array, factor: Factor) -> tuple[Array, Array]:
        """Of a caller's own loss, ``factor L_t`` and ``dL_t/dv`` of every step."""
        backend, y = self.readout.backend, self.readout(h)
        target = self._for_every_member(target, y)
        # Copies both ways: neither side may see the other write into its arrays.
        copy = partial(backend.xp.asarray, copy=True)
        loss, dy = _checked(backend, y, function(copy(y), copy(target)))
        return loss * factor, self.readout.g.vjp(backend, y, copy(dy))  # (3.2): g' * dL/dy

    def _for_every_member(self, target: Array, y: Array) -> Array:
        """``target`` with the E of ``y`` where it has one axis of 1 for all members."""
        if self.members is None:
            return target
        shape = list(target.shape)
        shape[y.ndim - 3] = self.members
        return self.readout.backend.xp.broadcast_to(target, tuple(shape))
