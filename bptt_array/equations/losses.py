"""(2.1) ``L = sum_t L_t(y_t, target_t)``: the loss of every step and its derivative.

A loss is a function of O outputs at one step of one sequence; the arrays here hold any number of them,
``(..., O)``. Cross-entropies are functions of the pre-activation ``v = W_hy h + b_y``: together with their g
they never overflow, and ``dL/dv`` is a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ..backend.arrays import is_plain
from ..backend.portable import Array, Backend
from .activations import Activation, sigmoid
from .long_sums import Sums, with_waiting
from .readout import Readout, with_bias

UserLoss = Callable[[Array, Array], tuple[Array, Array]]
#: What the losses of steps are multiplied by: a number, or an array of one for each, ``(...)``.
Factor = float | Array


def squared_error(backend: Backend, y: Array, target: Array, factor: Factor = 1.0) -> tuple[Array, Array]:
    """``factor L_t``, ``L_t = 1/2 |y - target|^2``, and ``dL_t/dy = y - target``.

    The factor, of a mean or of weights, comes before the square, which may overflow without it.
    """
    dy, factor, xp = y - target, 0.5 * factor, backend.xp
    if not isinstance(factor, float):
        return xp.vecdot(dy * factor[..., None], dy), dy
    root = 2.0 ** ((math.frexp(factor)[1] - 1) // 2)  # at most the root of the factor; it rounds nothing
    dy *= root
    loss = xp.vecdot(dy, dy) * (factor / root**2)
    dy *= 1 / root
    return loss, dy


def cross_entropy(backend: Backend, v: Array, target: Array, factor: Factor = 1.0) -> tuple[Array, Array]:
    """``factor L_t``, ``L_t = -sum_k target_k log softmax(v)_k``, and the derivative of L_t in v.

    ``target`` holds class numbers ``(...)`` or probabilities ``(..., O)``; ``v`` is used up. A class that cannot be,
    ``v_k = -inf``, costs nothing where its target is 0: ``0 log 0 = 0``.
    """
    xp = backend.xp
    v -= xp.max(v, axis=-1, keepdims=True)
    p = xp.exp(v)
    Z = xp.sum(p, axis=-1, keepdims=True)
    p /= Z
    if target.ndim < v.ndim:  # -log softmax(v)_k = log Z - v_k, and its derivative p - one_hot(k)
        backend.minus_one_hot_(p, target)
        return (xp.log(Z) - xp.take_along_axis(v, target[..., None], axis=-1))[..., 0] * factor, p
    mass = xp.sum(target, axis=-1, keepdims=True)  # 1 for probabilities; any mass has the right gradient
    p *= mass
    p -= target
    v = xp.where(target == 0, xp.zeros_like(v), v)
    v *= target
    return ((mass * xp.log(Z))[..., 0] - xp.sum(v, axis=-1)) * factor, p


def binary_cross_entropy(backend: Backend, v: Array, target: Array, factor: Factor = 1.0) -> tuple[Array, Array]:
    """``factor L_t`` and ``dL_t/dv``, with ``s = sigmoid(v)``.

    ``L_t = -sum_k [target_k log s_k + (1 - target_k) log(1 - s_k)]``: the sum of ``log(1 + exp(-|v_k|))`` and of
    ``|v_k|`` times what the target has on the other side of 0, ``1 - target_k`` for positive v_k, else ``target_k``.
    Nothing cancels in it, and ``0 log 0 = 0``.
    """
    xp = backend.xp
    dv = backend.copy(v)
    sigmoid.value_(backend, dv)
    dv -= target
    other_side = xp.where(v > 0, 1 - target, target)
    v = xp.abs(v)
    loss = xp.log1p(xp.exp(-v))
    v = xp.where(other_side == 0, xp.zeros_like(v), v)
    v *= other_side
    loss += v
    return xp.sum(loss, axis=-1) * factor, dv


@dataclass(frozen=True)
class Loss:
    """A loss of the library.

    Attributes
    ----------
    function : ``(backend, y, target, factor) -> (factor L_t, dL_t/dy)``
        With an ``output`` it is one of the pre-activation, ``(backend, v, target, factor) -> (factor L_t, dL_t/dv)``.
    arrays : int
        How many arrays of the shape of y there are at once while it is computed, for plans of memory.
    output : str or None
        The g that it belongs to, and is computed together with; None: any.
    takes_classes : bool
        Whether a target may hold class numbers.
    """

    function: Callable[[Backend, Array, Array, Factor], tuple[Array, Array]]
    arrays: int
    output: str | None = None
    takes_classes: bool = False


#: By name.
LOSSES = {
    "mse": Loss(squared_error, arrays=2),
    "cross_entropy": Loss(cross_entropy, arrays=4, output="softmax", takes_classes=True),
    "binary_cross_entropy": Loss(binary_cross_entropy, arrays=7, output="sigmoid"),
}


class LossOfRows(NamedTuple):
    """A loss of the library and g: from ``W_hy h`` of a step to the loss and its derivative, a function of rows.

    Attributes
    ----------
    loss : str
    g : Activation
        Of the outputs.
    before : float
        What the loss of a step is multiplied by, before a square that would overflow, where there are no weights.
    """

    loss: str
    g: Activation
    before: float

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of v, b_y, target, weights, scale."""
        return ("entry", "entry", "target", "row", "number")

    def __call__(
        self, backend: Backend, v: Array, b_y: Array | None, target: Array, weights: Array | None, scale: float
    ) -> tuple[Array, Array]:
        """``factor L_t`` and ``scale dL_t/dv``; v is used up."""
        per_step = partial(self._per_step, backend, with_bias(backend, v, b_y), target)
        return _weighted(backend, per_step, weights, scale, self.before)

    def _per_step(self, backend: Backend, v: Array, target: Array, factor: Factor) -> tuple[Array, Array]:
        """``factor L_t`` and ``dL_t/dv``."""
        loss = LOSSES[self.loss]
        if loss.output is not None:
            return loss.function(backend, v, target, factor)
        y, g = v, self.g
        g.value_(backend, y)
        losses, dy = loss.function(backend, y, target, factor)
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
    dv = xp.where(counts[..., None], dv, xp.zeros_like(dv)) * weights[..., None]
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

    ``loss`` is one of :data:`LOSSES` or the caller's ``(y, target) -> (loss, dy)``; ``steps`` is what a mean is taken
    over, None for the sum (2.1). With ``members`` E there is an axis of them before that of the sequences, in
    targets and weights possibly of 1, and every member has its own L: ``(E,)``.
    """

    readout: Readout
    loss: str | UserLoss
    steps: int | None
    members: int | None = None

    @property
    def scale(self) -> float:
        """What the sum is multiplied by; without any valid step it is 0 either way."""
        return 1.0 if self.steps is None else 1.0 / max(1, self.steps)

    def add_(self, losses: Sums, h: Array, target: Array, weights: Array | None) -> Array:
        """Add the loss (reduced: 0-d or (E,)) to ``losses["loss"]``; ``dv (..., O)`` of states ``h (..., H)``.

        Where a weight is zero, ``weights (...)``, so is the loss, even if the target there is no number.
        """
        backend, scale = self.readout.backend, self.scale
        # A power of two, which rounds nothing, before the sum: it does not overflow where the mean does not.
        before = 1.0 if self.steps is None or weights is not None else 2.0 ** -self.steps.bit_length()
        after = 1.0 if weights is not None else scale / before
        if isinstance(self.loss, str):
            v = self.readout.product(h)
            rows = backend.over_rows(LossOfRows(self.loss, self.readout.g, before))
            target = self._for_every_member(target, v) if LOSSES[self.loss].output is not None else target
            loss, dv = rows(v, self.readout.bias, target, weights, scale)
        else:
            loss, dv = _weighted(backend, partial(self._callers, h, target), weights, scale, before)
        self._sum(losses, loss, after)
        return dv

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

    def _callers(self, h: Array, target: Array, factor: Factor) -> tuple[Array, Array]:
        """Of a caller's own loss, ``factor L_t`` and ``dL_t/dv`` of every step."""
        assert not isinstance(self.loss, str)
        backend, y = self.readout.backend, self.readout(h)
        target = self._for_every_member(target, y)
        # Copies both ways: neither side may see the other write into its arrays.
        copy = partial(backend.xp.asarray, copy=True)
        loss, dy = _checked(backend, y, self.loss(copy(y), copy(target)))
        return loss * factor, self.readout.g.vjp(backend, y, copy(dy))  # (3.2): g' * dL/dy

    def _for_every_member(self, target: Array, y: Array) -> Array:
        """``target`` with the E of ``y`` where it has one axis of 1 for all members."""
        if self.members is None:
            return target
        shape = list(target.shape)
        shape[y.ndim - 3] = self.members
        return self.readout.backend.xp.broadcast_to(target, tuple(shape))
