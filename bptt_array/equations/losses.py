"""(2.1) ``L = sum_t L_t(y_t, target_t)``: the loss of every step and its derivative.

A loss is a function of O outputs at one step of one sequence; the arrays here hold any number of them,
``(..., O)``. Cross-entropies are functions of the pre-activation ``v = W_hy h + b_y``: together with their g
they never overflow, and ``dL/dv`` is a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..backend.portable import Array, Backend
from .activations import sigmoid

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


def absolute_error(backend: Backend, y: Array, target: Array, factor: Factor = 1.0) -> tuple[Array, Array]:
    """``factor L_t``, ``L_t = sum_k |y_k - target_k|``, and ``dL_t/dy = sign(y - target)``, at the kink 0."""
    xp, dy = backend.xp, y - target
    loss = xp.abs(dy)
    loss *= _of_entries(factor)
    loss = xp.sum(loss, axis=-1)
    return loss, xp.sign(dy)


def huber(backend: Backend, y: Array, target: Array, factor: Factor = 1.0, delta: float = 1.0) -> tuple[Array, Array]:
    """``factor L_t``, and ``dL_t/dy``: the error ``y - target``, clipped to at most delta.

    ``L_t`` is the sum of ``1/2 error^2``, beyond delta of ``delta (|error| - 1/2 delta)``: of the clipped one times
    what is left of the error without half of it.
    """
    xp, error = backend.xp, y - target
    dy = xp.clip(error, -delta, delta)
    error -= 0.5 * dy
    return xp.vecdot(dy * _of_entries(factor), error), dy


def _of_entries(factor: Factor) -> Factor:
    """A factor of steps, for all O outputs of each."""
    return factor if isinstance(factor, float) else factor[..., None]


def cross_entropy(
    backend: Backend,
    v: Array,
    target: Array,
    factor: Factor = 1.0,
    smoothing: float = 0.0,
    of_each: float = 0.0,
    class_weights: Array | None = None,
) -> tuple[Array, Array]:
    """``factor L_t``, ``L_t = -sum_k q_k log softmax(v)_k``, and the derivative of L_t in v, ``sum(q) softmax(v) - q``.

    ``target`` holds class numbers ``(...)`` or probabilities ``(..., O)``: one-hot or as they are they are q, with
    ``smoothing`` q is 1 - smoothing of them and ``of_each = smoothing / O`` of every class; ``class_weights (O,)``
    multiply it. ``v`` is used up. A class that cannot be, ``v_k = -inf``, costs nothing where its probability is 0:
    ``0 log 0 = 0``.
    """
    xp = backend.xp
    v -= xp.max(v, axis=-1, keepdims=True)
    p = xp.exp(v)
    Z = xp.sum(p, axis=-1, keepdims=True)
    p /= Z
    log_Z = xp.log(Z)  # -log softmax(v)_k = log Z - v_k
    if target.ndim < v.ndim:  # no array of q is made
        there: Factor = 1.0 - smoothing  # what q has of the class, beside of_each
        mass: Factor = 1.0
        of_class = xp.take_along_axis(v, target[..., None], axis=-1)[..., 0]
        if class_weights is not None:
            there = there * backend.take_entries(class_weights, target)
            mass = there + of_each * xp.sum(class_weights, axis=-1)
            p *= mass[..., None]
            of_class = xp.where(there == 0, xp.zeros_like(of_class), of_class)
        elif smoothing == 1:
            of_class = xp.zeros_like(of_class)
        loss = mass * log_Z[..., 0] - there * of_class
        if smoothing:
            p -= of_each if class_weights is None else of_each * class_weights
            if class_weights is not None:
                backend.zero_unless_(v, class_weights != 0)
                v *= class_weights
            loss -= of_each * xp.sum(v, axis=-1)
        backend.minus_one_hot_(p, target, there)
        return loss * factor, p
    if smoothing or class_weights is not None:
        target = target * (1.0 - smoothing)
        target += of_each
        if class_weights is not None:
            target *= class_weights
    mass = xp.sum(target, axis=-1, keepdims=True)  # 1 for probabilities; any mass has the right gradient
    p *= mass
    p -= target
    v = xp.where(target == 0, xp.zeros_like(v), v)
    v *= target
    return ((mass * log_Z)[..., 0] - xp.sum(v, axis=-1)) * factor, p


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
    function : ``(backend, y, target, factor, *options) -> (factor L_t, dL_t/dy)``
        With an ``output`` it is one of the pre-activation, ``(backend, v, target, factor) -> (factor L_t, dL_t/dv)``.
    arrays : int
        How many arrays of the shape of y there are at once while it is computed, for plans of memory.
    output : str or None
        The g that it belongs to, and is computed together with; None: any.
    takes_classes : bool
        Whether a target may hold class numbers.
    of_mean : float or None
        Where the loss is a mean over the O outputs: it is this many times ``1/O`` of what the function says.
    options : tuple of float
    """

    function: Callable[..., tuple[Array, Array]]
    arrays: int
    output: str | None = None
    takes_classes: bool = False
    of_mean: float | None = None
    options: tuple[float, ...] = ()

    def share(self, outputs: int) -> float:
        """What that function is multiplied by, with so many outputs."""
        return 1.0 if self.of_mean is None else self.of_mean / outputs


#: By name.
LOSSES = {
    "mse": Loss(squared_error, arrays=2),
    "cross_entropy": Loss(cross_entropy, arrays=4, output="softmax", takes_classes=True),
    "binary_cross_entropy": Loss(binary_cross_entropy, arrays=7, output="sigmoid"),
    "torch_mse": Loss(squared_error, arrays=2, of_mean=2.0),
    "mae": Loss(absolute_error, arrays=3, of_mean=1.0),
    "huber": Loss(huber, arrays=4, of_mean=1.0, options=(1.0,)),
}
