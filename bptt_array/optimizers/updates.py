"""(4) ``theta <- theta - eta dL/dtheta``, for every parameter, in place and without asking the device.

Parameters and gradients are dictionaries with the same keys, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cache, lru_cache, partial
from typing import Any

from ..backend.portable import Array, Backend, Elementwise
from ..checks import Settings, check_flag, check_number, is_several, only_settings, said
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


def _nesterov(ops: Elementwise) -> Callable[..., None]:
    def update(param: Array, grad: Array, velocity: Array, momentum: float, lr: float) -> None:
        velocity *= momentum
        velocity += grad
        step = momentum * velocity
        step += grad
        step *= lr
        param -= step

    return update


def _step_of_adam(
    ops: Elementwise,
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
) -> Array:
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
    return step


def _adam(ops: Elementwise) -> Callable[..., None]:
    def update(param: Array, grad: Array, m: Array, v: Array, *numbers: float) -> None:
        param -= _step_of_adam(ops, grad, m, v, *numbers)

    return update


def _adamw(ops: Elementwise) -> Callable[..., None]:
    def update(param: Array, grad: Array, m: Array, v: Array, *numbers: float) -> None:
        *of_adam, decay = numbers
        step = _step_of_adam(ops, grad, m, v, *of_adam)
        step += decay * param  # in one step: 1 - decay by itself is 1 for a float32 if the learning rate is small
        param -= step

    return update


@cache
def _rmsprop(centered: bool, momentum: bool) -> Callable[[Elementwise], Callable[..., None]]:
    def make(ops: Elementwise) -> Callable[..., None]:
        def update(param: Array, grad: Array, v: Array, *rest: Any) -> None:
            *kept, alpha, one_minus_alpha, root, factor, eps, lr = rest
            squared = root * (grad - kept[0] if centered else grad)  # not its square first: that overflows earlier
            squared *= squared
            v *= alpha
            v += squared
            if centered:
                mean = kept[0]
                mean *= alpha
                mean += one_minus_alpha * grad
            step = ops.xp.sqrt(v)
            step += eps
            step = grad / step
            if momentum:
                velocity = kept[-1]
                velocity *= factor
                velocity += step
                step = lr * velocity
            else:
                step *= lr
            param -= step

        return update

    return make


_NEW_SGD = "make a new optimizer, SGD(lr, momentum=…, nesterov=…)"


@only_settings(
    {"lr": check_number},
    "expected lr",
    {"momentum": f"it decides what is kept; {_NEW_SGD}", "nesterov": f"it belongs to the momentum; {_NEW_SGD}"},
)
class SGD(Optimizer):
    """Gradient descent (4), with optional momentum, of Nesterov too.

    ``u <- momentum u + dtheta``, ``theta <- theta - lr u``; without momentum ``u = dtheta``. With ``nesterov``
    ``theta <- theta - lr (dtheta + momentum u)``: the gradient is taken for that at the point to which the momentum
    leads (Sutskever et al., 2013, "On the importance of initialization and momentum in deep learning", in the form of
    torch.optim.SGD).

    Parameters
    ----------
    lr : float
        Finite, at least 0. May be set between updates, ``optimizer.lr = 0.01``.
    momentum : float
        In [0, 1), and fixed: it decides what is kept.
    nesterov : bool
        Fixed too; it needs a momentum.
    """

    momentum: float
    nesterov: bool

    def __init__(self, lr: float, momentum: float = 0.0, nesterov: bool = False) -> None:
        super().__init__(lr)
        self.momentum = check_number("momentum", momentum, below=1.0)
        check_flag("nesterov", nesterov)
        if nesterov and not self.momentum:
            raise ValueError("nesterov=True has no effect with momentum=0; expected a momentum too, such as 0.9")
        self.nesterov = bool(nesterov)

    @property
    def keeps(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    def _equation(self) -> Callable[[Elementwise], Callable[..., None]]:
        return _nesterov if self.nesterov else _momentum if self.keeps else _gradient_descent

    def _numbers(self, name: str, backend: Backend, dtype: Any, t: int) -> tuple[float, ...]:
        return (self.momentum, self.lr) if self.keeps else (self.lr,)


def _positive(name: str, value: Any) -> float:
    if not (number := check_number(name, value)):
        raise ValueError(f"{name}=0; expected a positive number, which keeps parameters without a gradient finite")
    return number


def _not_zero(backend: Backend, dtype: Any, eps: float) -> float:
    """A positive number, which no dtype takes for 0."""
    return max(eps, float(backend.xp.finfo(dtype).smallest_normal))


_BELOW_ONE = partial(check_number, below=1.0)
_OF_ADAM: Settings = {"lr": check_number, "beta1": _BELOW_ONE, "beta2": _BELOW_ONE, "eps": _positive}


@only_settings(_OF_ADAM, f"expected one of {', '.join(_OF_ADAM)}", {})
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

    beta1: float
    beta2: float
    eps: float

    def __init__(self, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__(lr)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    @property
    def keeps(self) -> tuple[str, ...]:
        return ("m", "v")

    def _equation(self) -> Callable[[Elementwise], Callable[..., None]]:
        return _adam

    def _numbers(self, name: str, backend: Backend, dtype: Any, t: int) -> tuple[float, ...]:
        # The two corrections as scalars: lr m_hat / (sqrt(v_hat) + eps) = lr / c1 * m / (sqrt(v) / sqrt(c2) + eps)
        lr = self.lr / (1 - self.beta1**t)
        correction = (1 - self.beta2**t) ** -0.5
        eps = _not_zero(backend, dtype, self.eps)
        return self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2, correction, eps, lr


def _names(name: str, value: Any) -> tuple[str, ...]:
    """Several names, as a tuple."""
    if isinstance(value, str):
        raise TypeError(f"{name}={said(value)} is one string; expected several, such as {name}=({said(value)},)")
    if not is_several(value):
        raise TypeError(f"{name}={said(value)} is a {type(value).__name__}; expected names, such as {name}=('b_h',)")
    names = tuple(value)
    for one in names:
        if not isinstance(one, str):
            raise TypeError(f"{name} has {said(one)}, a {type(one).__name__}; expected names, such as {name}=('b_h',)")
    return names


@lru_cache(maxsize=4096)
def _is_meant(name: str, entry: str) -> bool:
    """Whether a parameter has that name, or ends in it after a dot."""
    return f".{name}".endswith(f".{entry}")


_OF_ADAMW: Settings = {**_OF_ADAM, "weight_decay": check_number, "no_decay": _names}


@only_settings(_OF_ADAMW, f"expected one of {', '.join(_OF_ADAMW)}", {})
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019, "Decoupled weight decay regularization").

    ``theta <- theta - lr (m_hat / (sqrt(v_hat) + eps) + weight_decay theta)``, with the estimates of :class:`Adam`: the
    decay goes by the learning rate, as in torch.optim.AdamW, and does not enter them. A parameter whose gradient is 0
    decays too.

    Parameters
    ----------
    lr : float
        Finite, at least 0.
    beta1, beta2 : float
        In [0, 1).
    eps : float
        Positive.
    weight_decay : float
        Finite, at least 0.
    no_decay : sequence of str
        What does not decay, most often biases: every parameter whose name is one of these, ``"l0.b_h"``, or ends in
        one after a dot, ``"b_h"`` for that of all layers. On CUDA these are a launch of their own.

    All may be set between updates. An update raises ValueError if ``no_decay`` has a name that is meant for none of
    its parameters, nor for any that were updated before: one that joins later is named when it does,
    ``optimizer.no_decay += ("b_y",)``.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> params = {"l0.W_hh": np.ones(1), "l0.b_h": np.ones(1)}
    >>> optimizer = ba.AdamW(lr=0.1, weight_decay=0.5, no_decay=("b_h",))
    >>> optimizer.update(params, {name: np.zeros(1) for name in params})
    >>> params["l0.W_hh"].tolist(), params["l0.b_h"].tolist()
    ([0.95], [1.0])
    """

    weight_decay: float
    no_decay: tuple[str, ...]

    def __init__(
        self,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        no_decay: Iterable[str] = (),
    ) -> None:
        super().__init__(lr, beta1, beta2, eps)
        self.weight_decay, self.no_decay = weight_decay, _names("no_decay", no_decay)

    def _check_names(self, names: Collection[str]) -> None:
        for entry in self.no_decay:
            if not any(_is_meant(name, entry) for name in names):
                raise ValueError(
                    f"no_decay has {said(entry)}, which no parameter is called, nor ends in after a dot; expected "
                    f"names such as {said(sorted(names))}, or their ends: set optimizer.no_decay"
                )

    def _equation(self) -> Callable[[Elementwise], Callable[..., None]]:
        return _adamw

    def _numbers(self, name: str, backend: Backend, dtype: Any, t: int) -> tuple[float, ...]:
        stays = any(_is_meant(name, entry) for entry in self.no_decay)
        return *super()._numbers(name, backend, dtype, t), 0.0 if stays else self.lr * self.weight_decay


_NEW_RMSPROP = "it decides what is kept; make a new optimizer, RMSprop(lr, momentum=…, centered=…)"


@only_settings(
    {"lr": check_number, "alpha": _BELOW_ONE, "eps": _positive},
    "expected one of lr, alpha, eps",
    dict.fromkeys(("momentum", "centered"), _NEW_RMSPROP),
)
class RMSprop(Optimizer):
    """RMSprop (Tieleman & Hinton, 2012, lecture 6.5), in the form of torch.optim.RMSprop.

    ``v <- alpha v + (1 - alpha) dtheta^2``, ``theta <- theta - lr dtheta / (sqrt(v) + eps)``.

    With momentum ``u <- momentum u + dtheta / (sqrt(v) + eps)``, ``theta <- theta - lr u``. ``centered`` (Graves, 2013,
    "Generating sequences with recurrent neural networks") divides by the standard deviation in place of the root mean
    square: with the mean ``g <- alpha g + (1 - alpha) dtheta``, v is what was the mean square less ``g^2``,
    here ``v <- alpha v + alpha (1 - alpha) (dtheta - g)^2`` with the g before, which is the same and never negative.

    Parameters
    ----------
    lr : float
        Finite, at least 0.
    alpha : float
        In [0, 1).
    eps : float
        Positive.
    momentum : float
        In [0, 1), and fixed: it decides what is kept.
    centered : bool
        Fixed too.

    The first three may be set between updates.
    """

    alpha: float
    eps: float
    momentum: float
    centered: bool

    def __init__(
        self,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(lr)
        self.alpha, self.eps = alpha, eps
        self.momentum = check_number("momentum", momentum, below=1.0)
        check_flag("centered", centered)
        self.centered = bool(centered)

    @property
    def keeps(self) -> tuple[str, ...]:
        return ("v", *["mean"] * self.centered, *["velocity"] * (self.momentum > 0))

    def _equation(self) -> Callable[[Elementwise], Callable[..., None]]:
        return _rmsprop(self.centered, self.momentum > 0)

    def _numbers(self, name: str, backend: Backend, dtype: Any, t: int) -> tuple[float, ...]:
        rest = 1 - self.alpha
        root = (self.alpha * rest if self.centered else rest) ** 0.5
        return self.alpha, rest, root, self.momentum, _not_zero(backend, dtype, self.eps), self.lr
