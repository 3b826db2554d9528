"""(4) ``theta <- theta - eta dL/dtheta``, for every parameter, in place and without asking the device.

Parameters and gradients are dictionaries with the same keys, on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..backend.portable import Array, Backend, Elementwise
from ..checks import check_number, only_settings
from .state import Optimizer


def _gradient_descent(ops: Elementwise) -> Callable[..., None]:
    def update(param: Array, grad: Array, lr: float) -> None:
        param -= lr * grad

    return update


def _momentum(ops: Elementwise) -> Callable[..., None]:
    def update(param: Array, grad: Array, velocity: Array, momentum: float, lr: float) -> None:
        velocity *= momentum
        velocity += grad
        param -= lr * velocity

    return update


def _adam(ops: Elementwise) -> Callable[..., None]:
    def update(
        param: Array,
        grad: Array,
        m: Array,
        v: Array,
        beta1: float,
        one_minus_beta1: float,
        beta2: float,
        one_minus_beta2: float,
        correction: float,
        eps: float,
        lr: float,
    ) -> None:
        m *= beta1
        m += one_minus_beta1 * grad
        squared = one_minus_beta2 * grad  # not grad * grad first, which overflows for smaller ones
        squared *= grad
        v *= beta2
        v += squared
        step = ops.xp.sqrt(v)
        step *= correction
        step += eps
        step = m / step
        step *= lr
        param -= step

    return update


@only_settings(
    {"lr": check_number},
    "expected lr",
    {"momentum": "it decides what is kept; make a new optimizer, SGD(lr, momentum=…)"},
)
class SGD(Optimizer):
    """Gradient descent (4), with optional momentum.

    ``u <- momentum u + dtheta``, ``theta <- theta - lr u``; without momentum ``u = dtheta``.

    Parameters
    ----------
    lr : float
        Finite, at least 0. May be set between updates, ``optimizer.lr = 0.01``.
    momentum : float
        In [0, 1), and fixed: it decides what is kept.
    """

    momentum: float

    def __init__(self, lr: float, momentum: float = 0.0) -> None:
        super().__init__(lr)
        self.momentum = check_number("momentum", momentum, below=1.0)
        vars(self)["slots"] = 1 if self.momentum else 0

    def _equation(self) -> Callable[[Elementwise], Callable[..., None]]:
        return _momentum if self.slots else _gradient_descent

    def _numbers(self, backend: Backend, dtype: Any, t: int) -> tuple[float, ...]:
        return (self.momentum, self.lr) if self.slots else (self.lr,)


def _positive(name: str, value: Any) -> float:
    if not (number := check_number(name, value)):
        raise ValueError(f"{name}=0; expected a positive number, which keeps parameters without a gradient finite")
    return number


_BELOW_ONE = partial(check_number, below=1.0)


@only_settings(
    {"lr": check_number, "beta1": _BELOW_ONE, "beta2": _BELOW_ONE, "eps": _positive},
    "expected one of lr, beta1, beta2, eps",
    {},
)
class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015, algorithm 1).

    ``m <- b1 m + (1 - b1) dtheta``, ``v <- b2 v + (1 - b2) dtheta^2``,
    ``theta <- theta - lr m_hat / (sqrt(v_hat) + eps)`` with ``m_hat = m / (1 - b1^t)``,
    ``v_hat = v / (1 - b2^t)`` at update t of a parameter.

    Parameters
    ----------
    lr : float
        Finite, at least 0.
    beta1, beta2 : float
        In [0, 1).
    eps : float
        Positive.

    All four may be set between updates.
    """

    slots = 2
    beta1: float
    beta2: float
    eps: float

    def __init__(self, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__(lr)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def _equation(self) -> Callable[[Elementwise], Callable[..., None]]:
        return _adam

    def _numbers(self, backend: Backend, dtype: Any, t: int) -> tuple[float, ...]:
        # The two corrections as scalars: lr m_hat / (sqrt(v_hat) + eps) = lr / c1 * m / (sqrt(v) / sqrt(c2) + eps)
        lr = self.lr / (1 - self.beta1**t)
        correction = (1 - self.beta2**t) ** -0.5
        eps = max(self.eps, float(backend.xp.finfo(dtype).smallest_normal))  # which no dtype takes for 0
        return self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2, correction, eps, lr
