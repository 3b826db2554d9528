"""(4) ``theta <- theta - eta dL/dtheta``, for every parameter, in place and without asking the device.

Parameters and gradients are dictionaries with the same keys, on any device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import array_api_compat

from .backend import Array, backend_of
from .checks import check_number, dtype_name

Arrays = Mapping[str, Array]


def _check_gradients(params: Arrays, grads: Arrays) -> None:
    """Everything that can be wrong, before anything is changed."""
    if not params:
        raise ValueError("params is empty; expected at least one array")
    if set(params) != set(grads):
        raise ValueError(f"grads has keys {sorted(grads)}; expected those of params, {sorted(params)}")
    for name, param in params.items():
        grad = grads[name]
        if not array_api_compat.is_array_api_obj(grad) or not backend_of(param).owns(grad):
            raise TypeError(
                f"grads[{name!r}] is a {type(grad).__name__}; expected an array of {backend_of(param).name}, "
                "like params"
            )
        if tuple(param.shape) != tuple(grad.shape) or param.dtype != grad.dtype:
            raise ValueError(
                f"grads[{name!r}] has shape {tuple(grad.shape)} and dtype {dtype_name(grad)}; expected those of "
                f"params[{name!r}], {tuple(param.shape)} and {dtype_name(param)}"
            )


class _Optimizer:
    """A learning rate, and arrays kept per parameter."""

    #: How many arrays of a parameter's shape an update keeps.
    slots = 0

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self._kept: dict[str, list[Array]] = {}

    @property
    def lr(self) -> float:
        """Learning rate, eta of (4); may be set between updates."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = check_number("lr", value)

    def update(self, params: Arrays, grads: Arrays) -> None:
        """Change every parameter in place.

        Raises
        ------
        ValueError, TypeError
            If keys, shapes, dtypes or devices of ``grads`` are not those of ``params``, or parameters
            changed their shape or device since the last update; nothing is changed then.
        """
        _check_gradients(params, grads)
        for name, kept in self._kept.items():
            if name in params and not all(
                backend_of(params[name]).owns(a) and a.shape == params[name].shape for a in kept
            ):
                raise ValueError(
                    f"params[{name!r}] changed its shape or device since the last update; expected one optimizer per "
                    "model and device: make a new one"
                )
        self._begin()
        for name, param in params.items():
            backend = backend_of(param)
            with backend.active():
                kept = self._kept.setdefault(name, [backend.xp.zeros_like(param) for _ in range(self.slots)])
                self._update(backend.xp, param, grads[name], *kept)

    def _begin(self) -> None:
        """Once per update, before the first parameter."""

    def _update(self, xp: Any, param: Array, grad: Array, *kept: Array) -> None:
        raise NotImplementedError


class SGD(_Optimizer):
    """Gradient descent (4), with optional momentum.

    ``u <- momentum u + dtheta``, ``theta <- theta - lr u``; without momentum ``u = dtheta``.

    Parameters
    ----------
    lr : float
        Finite, at least 0.
    momentum : float
        In [0, 1).
    """

    def __init__(self, lr: float, momentum: float = 0.0) -> None:
        super().__init__(lr)
        self.momentum = check_number("momentum", momentum, below=1.0)
        self.slots = 1 if self.momentum else 0

    def _update(self, xp: Any, param: Array, grad: Array, *kept: Array) -> None:
        if kept:
            (velocity,) = kept
            velocity *= self.momentum
            velocity += grad
            grad = velocity
        param -= self.lr * grad


class Adam(_Optimizer):
    """Adam (Kingma & Ba, 2015, algorithm 1).

    ``m <- b1 m + (1 - b1) dtheta``, ``v <- b2 v + (1 - b2) dtheta^2``,
    ``theta <- theta - lr m_hat / (sqrt(v_hat) + eps)`` with ``m_hat = m / (1 - b1^t)``,
    ``v_hat = v / (1 - b2^t)`` at update t.

    Parameters
    ----------
    lr : float
        Finite, at least 0.
    beta1, beta2 : float
        In [0, 1).
    eps : float
        Positive.
    """

    slots = 2

    def __init__(self, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__(lr)
        self.beta1 = check_number("beta1", beta1, below=1.0)
        self.beta2 = check_number("beta2", beta2, below=1.0)
        self.eps = check_number("eps", eps)
        if not self.eps:
            raise ValueError("eps=0; expected a positive number, which keeps parameters without a gradient finite")
        self._t = 0

    def _begin(self) -> None:
        self._t += 1

    def _update(self, xp: Any, param: Array, grad: Array, *kept: Array) -> None:
        m, v = kept
        m *= self.beta1
        m += (1 - self.beta1) * grad
        squared = grad * grad
        squared *= 1 - self.beta2
        v *= self.beta2
        v += squared
        # The two corrections as scalars: lr m_hat / (sqrt(v_hat) + eps) = lr / c1 * m / (sqrt(v) / sqrt(c2) + eps)
        step = xp.sqrt(v)
        step *= (1 - self.beta2**self._t) ** -0.5
        step += self.eps
        step = m / step
        step *= self.lr / (1 - self.beta1**self._t)
        param -= step


def global_norm(grads: Arrays) -> Array:
    """The Euclidean norm of all gradients together, 0-d, on the device.

    Scaled by the largest entry, so that exploding gradients do not overflow in the square.
    """
    if not grads:
        raise ValueError("grads is empty; expected at least one array")
    backend = backend_of(next(iter(grads.values())))
    xp = backend.xp
    with backend.active():
        largest = xp.zeros_like(xp.max(next(iter(grads.values()))))
        for grad in grads.values():
            largest = xp.maximum(largest, xp.maximum(xp.max(grad), -xp.min(grad)))
        scale = largest + xp.astype(largest == 0, largest.dtype)  # 1 where all gradients are zero
        total = xp.zeros_like(scale)
        for grad in grads.values():
            part = xp.reshape(grad / scale, (-1,))
            total = total + xp.vecdot(part, part)
        return scale * xp.sqrt(total)


def clip_by_global_norm(grads: Arrays, max_norm: float) -> dict[str, Array]:
    """Gradients scaled by ``min(1, max_norm / norm)``, as new arrays; no branch, no synchronisation.

    Parameters
    ----------
    grads : dict of str to array
    max_norm : float
        Finite and positive.
    """
    if not check_number("max_norm", max_norm):
        raise ValueError("max_norm=0; expected a positive number (0 would stop all learning)")
    norm = global_norm(grads)
    backend = backend_of(norm)
    with backend.active():
        # max_norm / max(norm, max_norm), which is exactly 1 where nothing is to be clipped
        factor = max_norm / backend.xp.where(norm < max_norm, backend.xp.full_like(norm, max_norm), norm)
        return {name: grad * factor for name, grad in grads.items()}
