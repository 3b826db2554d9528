"""(4) ``theta <- theta - eta dL/dtheta``, for every parameter, in place and without asking the device.

Parameters and gradients are dictionaries with the same keys, on any device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import array_api_compat

from .backend.arrays import check_plain, dtype_name, is_array, repeats_itself
from .backend.devices import backend_of
from .backend.portable import DTYPES, Array, Backend, Elementwise
from .bptt.state import Gradients
from .checks import check_count, check_number, said

Arrays = Mapping[str, Array]


def _check_arrays(name: str, arrays: Any) -> None:
    """A dictionary of arrays, not empty."""
    if isinstance(arrays, Gradients):
        raise TypeError(f"{name} is a Gradients; expected its dictionary: use grads.params")
    if not isinstance(arrays, Mapping):
        raise TypeError(f"{name} is a {type(arrays).__name__}; expected a dictionary of arrays")
    if not arrays:
        raise ValueError(f"{name} is empty; expected at least one array")
    for key, array in arrays.items():
        if not isinstance(key, str):
            raise TypeError(f"{name} has the key {said(key)}, a {type(key).__name__}; expected strings")
        check_plain(f"{name}[{key!r}]", array)
        if not is_array(array) or dtype_name(array) not in DTYPES:
            kind = f"{type(array).__name__} of dtype {getattr(array, 'dtype', None)}"
            raise TypeError(f"{name}[{key!r}] is a {kind}; expected a float32 or float64 array")


def _names(arrays: Arrays) -> str:
    return said(sorted(arrays))


def _check_update(params: Arrays, grads: Arrays, kept: Mapping[str, list[Array]]) -> None:
    """Everything that can be wrong, before anything is changed."""
    _check_arrays("params", params)
    _check_arrays("grads", grads)
    if set(params) != set(grads):
        raise ValueError(f"grads has keys {_names(grads)}; expected those of params, {_names(params)}")
    for name, param in params.items():
        grad, backend = grads[name], backend_of(param)
        if not array_api_compat.is_writeable_array(param) or repeats_itself(param):
            raise ValueError(f"params[{name!r}] cannot be written to; expected an array of its own: copy it first")
        if not backend.owns(grad):
            raise TypeError(
                f"grads[{name!r}] is a {type(grad).__name__}; expected an array of {backend.name}, like params"
            )
        if tuple(param.shape) != tuple(grad.shape) or param.dtype != grad.dtype:
            raise ValueError(
                f"grads[{name!r}] has shape {tuple(grad.shape)} and dtype {dtype_name(grad)}; expected those of "
                f"params[{name!r}], {tuple(param.shape)} and {dtype_name(param)}"
            )
        for array in kept.get(name, []):
            if not backend.owns(array) or array.shape != param.shape or array.dtype != param.dtype:
                raise ValueError(
                    f"params[{name!r}] changed its shape, dtype or device since the last update; expected one "
                    "optimizer per model and device: make a new one"
                )


def _checked_state(state_dict: Any, slots: int) -> tuple[dict[str, int], dict[str, list[Array]]]:
    """Both parts of a state_dict, of an optimizer that keeps ``slots`` arrays a parameter."""
    if not isinstance(state_dict, Mapping) or set(state_dict) != {"updates", "kept"}:
        raise TypeError("state_dict is none that state_dict() returned; expected a dictionary of updates and kept")
    updates, kept = state_dict["updates"], state_dict["kept"]
    if not isinstance(updates, Mapping) or not isinstance(kept, Mapping) or set(updates) != set(kept):
        raise ValueError("state_dict has other parameters under 'updates' than under 'kept'; expected the same")
    for name, arrays in kept.items():
        check_count(f"state_dict['updates'][{name!r}]", updates[name])
        if not isinstance(arrays, list) or len(arrays) != slots:
            raise ValueError(
                f"state_dict['kept'][{name!r}] is not a list of {slots} arrays, as this optimizer keeps; expected the "
                "state of one of the same kind"
            )
        if arrays:
            _check_arrays(f"state_dict['kept'][{name!r}]", {str(k): array for k, array in enumerate(arrays)})
    return {name: int(count) for name, count in updates.items()}, {name: list(arrays) for name, arrays in kept.items()}


class _Optimizer(ABC):
    """A learning rate, and arrays kept per parameter."""

    #: How many arrays of a parameter's shape an update keeps.
    slots = 0

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self._kept: dict[str, list[Array]] = {}
        self._updates: dict[str, int] = {}  # of every parameter: one may join later

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
            changed their shape, dtype or device since the last update; nothing is changed then.
        """
        _check_update(params, grads, self._kept)
        for name, param in params.items():
            backend = backend_of(param)
            with backend.active():
                if name not in self._kept:
                    self._kept[name] = [backend.xp.zeros_like(param) for _ in range(self.slots)]
                self._updates[name] = self._updates.get(name, 0) + 1
                self._update(backend, self._updates[name], param, grads[name], *self._kept[name])

    def state_dict(self) -> dict[str, Any]:
        """What the next update depends on beside the settings, for :meth:`load_state_dict`.

        Returns
        -------
        dict
            ``"updates"``: how often each parameter was updated; ``"kept"``: copies of the arrays kept for each (of
            :class:`Adam` m and v, of momentum the velocity), on their device.
        """
        return {
            "updates": dict(self._updates),
            "kept": {name: [backend_of(a).copy(a) for a in kept] for name, kept in self._kept.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned; the arrays have to be where the parameters are.

        Raises
        ------
        ValueError, TypeError
            If it is no such dictionary, or of another kind of optimizer; nothing is changed then.
        """
        updates, kept = _checked_state(state_dict, self.slots)
        self._updates = updates
        self._kept = {name: [backend_of(a).copy(a) for a in arrays] for name, arrays in kept.items()}

    @abstractmethod
    def _update(self, backend: Backend, t: int, param: Array, grad: Array, *kept: Array) -> None:
        """Change one parameter, and what is kept for it, in place; ``t``: its updates, this one included."""


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
        squared = grad * grad
        squared *= one_minus_beta2
        v *= beta2
        v += squared
        step = ops.xp.sqrt(v)
        step *= correction
        step += eps
        step = m / step
        step *= lr
        param -= step

    return update


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
        self._momentum = check_number("momentum", momentum, below=1.0)
        self.slots = 1 if self._momentum else 0

    @property
    def momentum(self) -> float:
        """Part of the last step that is taken again; fixed, since it decides what is kept."""
        return self._momentum

    def _update(self, backend: Backend, t: int, param: Array, grad: Array, *kept: Array) -> None:
        if kept:
            backend.fused(_momentum)(param, grad, *kept, self.momentum, self.lr)
        else:
            backend.fused(_gradient_descent)(param, grad, self.lr)


class Adam(_Optimizer):
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
    """

    slots = 2

    def __init__(self, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__(lr)
        self.beta1 = check_number("beta1", beta1, below=1.0)
        self.beta2 = check_number("beta2", beta2, below=1.0)
        self.eps = check_number("eps", eps)
        if not self.eps:
            raise ValueError("eps=0; expected a positive number, which keeps parameters without a gradient finite")

    def _update(self, backend: Backend, t: int, param: Array, grad: Array, *kept: Array) -> None:
        # The two corrections as scalars: lr m_hat / (sqrt(v_hat) + eps) = lr / c1 * m / (sqrt(v) / sqrt(c2) + eps)
        lr = self.lr / (1 - self.beta1**t)
        correction = (1 - self.beta2**t) ** -0.5
        eps = max(self.eps, float(backend.xp.finfo(param.dtype).smallest_normal))  # which no dtype takes for 0
        moments = self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2
        backend.fused(_adam)(param, grad, *kept, *moments, correction, eps, lr)


def _check_clipped(grads: Any, members: Any) -> int | None:
    """Gradients, of an ensemble with a first axis of E."""
    _check_arrays("grads", grads)
    first = next(iter(grads))
    backend = backend_of(grads[first])
    for name, grad in grads.items():
        if not backend.owns(grad):
            raise TypeError(
                f"grads[{name!r}] is a {type(grad).__name__}; expected an array of {backend.name}, like "
                f"grads[{first!r}]"
            )
        if 0 in tuple(grad.shape):
            raise ValueError(f"grads[{name!r}] has shape {tuple(grad.shape)}; expected at least one number")
    if members is None:
        return None
    count = check_count("members", members)
    for name, grad in grads.items():
        if tuple(grad.shape[:1]) != (count,):
            raise ValueError(
                f"grads[{name!r}] has shape {tuple(grad.shape)}; expected a first axis of members={said(count)}"
            )
    return count


def _beside(values: Array, ndim: int) -> Array:
    """0-d, or ``(E,)`` with further axes, so that it goes with arrays ``(E, ...)`` of ``ndim`` axes."""
    return values[(..., *(None,) * (ndim - 1))] if values.ndim else values


def _rows(grads: Arrays, members: int | None) -> dict[str, Array]:
    """Every gradient as one row, of an ensemble as one for each member."""
    shape = (-1,) if members is None else (members, -1)
    return {name: backend_of(grad).xp.reshape(grad, shape) for name, grad in grads.items()}


def largest_entries(grads: Arrays, members: int | None = None) -> dict[str, Array]:
    """The largest absolute value of every gradient, on the device: no number where the gradient has one that is none.

    Parameters
    ----------
    grads : dict of str to array
    members : int, optional
        E of an ensemble, whose arrays have it as their first axis.

    Returns
    -------
    dict of str to array
        0-d; of an ensemble (E,).
    """
    members = _check_clipped(grads, members)
    with backend_of(next(iter(grads.values()))).active():
        return _largest(_rows(grads, members))


def _largest(rows: Mapping[str, Array]) -> dict[str, Array]:
    found = {}
    for name, row in rows.items():
        xp = backend_of(row).xp
        found[name] = xp.maximum(xp.max(row, axis=-1), -xp.min(row, axis=-1))
    return found


def _scaled_norm(
    rows: Mapping[str, Array], largest_of: Mapping[str, Array], least: float | None = None
) -> tuple[Array, Array]:
    """``(scale, root)``, 0-d or ``(E,)``, with norm = scale * root; squares of gradients / scale do not overflow.

    ``scale`` is the largest entry, and at least ``least`` (the smallest normal number, if left out).
    """
    first, *others = largest_of.values()
    xp = backend_of(first).xp
    limits = xp.finfo(first.dtype)
    largest = first
    for entry in others:
        largest = xp.maximum(largest, entry)
    least = float(limits.smallest_normal) if least is None else least
    scale = xp.minimum(xp.maximum(largest, xp.full_like(largest, least)), xp.full_like(largest, float(limits.max)))
    total = xp.zeros_like(scale)
    for row in rows.values():
        part = row / _beside(scale, row.ndim)
        total = total + xp.vecdot(part, part)
    return scale, xp.sqrt(total)


def global_norm(grads: Arrays, members: int | None = None) -> Array:
    """The Euclidean norm of all gradients together, on the device.

    Exploding gradients do not overflow in the square, nor do vanishing ones underflow.

    Parameters
    ----------
    grads : dict of str to array
    members : int, optional
        E of an ensemble, whose arrays have it as their first axis.

    Returns
    -------
    norm : 0-d; of an ensemble (E,), of every member's gradients by themselves
    """
    members = _check_clipped(grads, members)
    with backend_of(next(iter(grads.values()))).active():
        rows = _rows(grads, members)
        scale, root = _scaled_norm(rows, _largest(rows))
        return scale * root


def clip_by_global_norm(
    grads: Arrays, max_norm: float, members: int | None = None, *, largest: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Gradients scaled by ``min(1, max_norm / norm)``, as new arrays; no branch, no synchronisation.

    Parameters
    ----------
    grads : dict of str to array
    max_norm : float
        Finite and positive.
    members : int, optional
        E of an ensemble, whose arrays have it as their first axis: every member is scaled by its own norm, as the
        single network would be.
    largest : dict of str to array, optional
        What :func:`largest_entries` says of these gradients, where that is known already.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> grads = {"a": np.array([[3.0], [0.3]]), "b": np.array([[4.0], [0.4]])}
    >>> ba.global_norm(grads, members=2).tolist()
    [5.0, 0.5]
    >>> ba.clip_by_global_norm(grads, 1.0, members=2)["a"].tolist()
    [[0.6000000000000001], [0.3]]
    """
    max_norm = check_number("max_norm", max_norm)
    if not max_norm:
        raise ValueError("max_norm=0; expected a positive number (0 would stop all learning)")
    members = _check_clipped(grads, members)
    if largest is not None and set(largest) != set(grads):
        raise ValueError(f"largest has keys {_names(largest)}; expected those of grads, {_names(grads)}")
    backend = backend_of(next(iter(grads.values())))
    with backend.active():
        rows = _rows(grads, members)
        limits = backend.xp.finfo(next(iter(grads.values())).dtype)
        max_norm = max(min(max_norm, float(limits.max)), float(limits.smallest_normal))
        largest = _largest(rows) if largest is None else largest
        scale, root = _scaled_norm(rows, largest, least=min(1.0, max_norm))  # such that bound does not overflow
        bound = max_norm / scale
        # max_norm / max(norm, max_norm), both divided by the scale; exactly 1 where nothing is to be clipped
        factor = bound / backend.xp.maximum(root, bound)
        # of each gradient's own dtype
        return {
            name: grad * _beside(backend.xp.astype(factor, grad.dtype, copy=False), grad.ndim)
            for name, grad in grads.items()
        }
