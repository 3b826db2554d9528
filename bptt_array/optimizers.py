"""(4) ``theta <- theta - eta dL/dtheta``, for every parameter, in place and without asking the device.

Parameters and gradients are dictionaries with the same keys, on any device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

from .backend.arrays import check_plain, dtype_name, is_array, is_writeable, rounded
from .backend.devices import backend_of, packed, resolve, unpacked
from .backend.portable import DTYPES, Array, Backend, Elementwise
from .bptt.state import Gradients
from .checks import check_count, check_number, only_settings, said

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
        if not is_writeable(param):
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
                raise ValueError(f"params[{name!r}] {_what_differs(param, array)}")


def _what_differs(param: Array, kept: Array) -> str:
    """What a parameter has that an array kept for it has not, and the way out."""
    if tuple(kept.shape) != tuple(param.shape):
        return (
            f"has shape {tuple(param.shape)}, but what the optimizer keeps for it {tuple(kept.shape)}, which is of no "
            "use there; expected the parameters of the updates before. To go on without what it keeps for this one, "
            "take its name out of both parts of state = optimizer.state_dict() and optimizer.load_state_dict(state)"
        )
    where, before = backend_of(param), backend_of(kept)
    if where != before:
        there, here, way = before.name, where.name, "optimizer.to(rnn.backend), as rnn.to moves the network"
    else:
        there, here = dtype_name(kept), dtype_name(param)
        way = "optimizer.load_state_dict(optimizer.state_dict(), like=rnn.params)"
    what = "is on" if where != before else "has dtype"
    return f"{what} {here}, but what the optimizer keeps for it {what} {there}; move that too: {way}"


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


def _copied(array: Array) -> Array:
    """A copy where the array is, whatever device is the current one."""
    backend = backend_of(array)
    with backend.active():
        return backend.copy(array)


def _moved(name: str, kept: Array, backend: Backend, dtype: str) -> Array:
    """A copy of what is kept for a parameter, on a device and in a dtype."""
    own = backend_of(kept)
    if own == backend and dtype_name(kept) == dtype:
        return _copied(kept)
    host = own.to_host(kept)
    found, k = rounded(host, dtype)
    if k is not None:
        raise ValueError(f"{name} holds {host.reshape(-1)[k]:g}, which {dtype} cannot hold")
    return unpacked(backend, found)


class _Optimizer(ABC):
    """A learning rate, and arrays kept per parameter."""

    #: How many arrays of a parameter's shape an update keeps.
    slots: int = 0
    #: Learning rate, eta of (4); may be set between updates.
    lr: float
    _kept: dict[str, list[Array]]
    _updates: dict[str, int]  # of every parameter: one may join later

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self._kept, self._updates = {}, {}

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
            "kept": {name: [_copied(a) for a in kept] for name, kept in self._kept.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], like: Arrays | None = None) -> None:
        """Go on from what :meth:`state_dict` returned.

        Parameters
        ----------
        state_dict : dict
        like : dict of str to array, optional
            The parameters that will be updated: what is kept moves to the device and the dtype of each, rounded. Those
            for which nothing is kept begin anew. Left out, it stays where it is, which has to be where they are.

        Raises
        ------
        ValueError, TypeError
            If it is no such dictionary, or of another kind of optimizer; if ``like`` has another shape for a name, or
            not all of its names; if a number is too large for the dtype. Nothing is changed then.
        """
        updates, kept = _checked_state(state_dict, self.slots)
        if like is None:
            moved = {name: [_copied(a) for a in arrays] for name, arrays in kept.items()}
        else:
            _check_arrays("like", like)
            if missing := sorted(set(kept) - set(like)):
                raise ValueError(
                    f"like has no {', '.join(map(repr, missing))}, for which state_dict keeps something; expected the "
                    "parameters that the state is of, or a state_dict without these names"
                )
            for name, arrays in kept.items():
                shapes = {tuple(array.shape) for array in arrays} - {tuple(like[name].shape)}
                if shapes:
                    raise ValueError(
                        f"state_dict['kept'][{name!r}] has shape {shapes.pop()}, like[{name!r}] "
                        f"{tuple(like[name].shape)}; expected the same: what is kept for another shape is of no use, "
                        "take the name out of both parts of state_dict"
                    )
            moved = {
                name: [
                    _moved(f"state_dict['kept'][{name!r}]", array, backend_of(param), dtype_name(param))
                    for array in kept[name]
                ]
                for name, param in like.items()
                if name in kept
            }
        vars(self).update(_updates={name: updates[name] for name in moved}, _kept=moved)

    def to(self, device: str | Backend) -> Self:
        """Move what is kept to a device, as :meth:`RNN.to` moves the parameters; returns the optimizer.

        Examples
        --------
        >>> import bptt_array as ba
        >>> rnn, optimizer = ba.RNN(input_size=3, hidden_size=8), ba.Adam()
        >>> optimizer.update(rnn.to("cpu").params, rnn.params)  # "cuda", where there is one
        >>> optimizer = optimizer.to(rnn.backend)
        """
        backend = resolve(device)
        vars(self)["_kept"] = {
            name: [_moved(f"what is kept for {name!r}", array, backend, dtype_name(array)) for array in arrays]
            for name, arrays in self._kept.items()
        }
        return self

    def __getstate__(self) -> dict[str, Any]:
        """With what is kept on the host, so that it can be pickled from every device."""
        return vars(self) | {"_kept": {name: [packed(a) for a in arrays] for name, arrays in self._kept.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = {name: [unpacked(*one) for one in arrays] for name, arrays in state["_kept"].items()}
        vars(self).update(state | {"_kept": kept})

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
class SGD(_Optimizer):
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

    def _update(self, backend: Backend, t: int, param: Array, grad: Array, *kept: Array) -> None:
        if kept:
            backend.fused(_momentum)(param, grad, *kept, self.momentum, self.lr)
        else:
            backend.fused(_gradient_descent)(param, grad, self.lr)


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

    All four may be set between updates.
    """

    slots = 2
    beta1: float
    beta2: float
    eps: float

    def __init__(self, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        super().__init__(lr)
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

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


def _widest(backend: Backend, arrays: Mapping[str, Array]) -> Any:
    """The dtype that holds the numbers of all arrays, in whatever order they come and whatever that of their bytes."""
    return backend.dtype(max(dtype_name(array) for array in arrays.values()))  # "float64" is after "float32"


def _as(xp: Any, dtype: Any, array: Array) -> Array:
    return array if array.dtype == dtype else xp.astype(array, dtype)


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

    ``scale`` is the largest entry, and at least ``least`` (the smallest normal number, if left out). Both are of the
    widest dtype that there is.
    """
    backend = backend_of(next(iter(rows.values())))
    xp, dtype = backend.xp, _widest(backend, rows)
    limits = xp.finfo(dtype)
    largest, *others = (_as(xp, dtype, entry) for entry in largest_of.values())
    for entry in others:
        largest = xp.maximum(largest, entry)
    least = float(limits.smallest_normal) if least is None else least
    scale = xp.minimum(xp.maximum(largest, xp.full_like(largest, least)), xp.full_like(largest, float(limits.max)))
    total = xp.zeros_like(scale)
    for _, row in sorted(rows.items()):  # the same to the last bit in whatever order gradients come
        part = _as(xp, dtype, row) / _beside(scale, row.ndim)
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
        Of float64 if any gradient is.
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
        xp, dtype = backend.xp, _widest(backend, grads)
        limits = xp.finfo(dtype)
        max_norm = max(min(max_norm, float(limits.max)), float(limits.smallest_normal))
        largest = _largest(rows) if largest is None else largest
        scale, root = _scaled_norm(rows, largest, least=min(1.0, max_norm))  # such that bound does not overflow
        bound = max_norm / scale
        # max_norm / max(norm, max_norm), both divided by the scale; exactly 1 where nothing is to be clipped
        factor = bound / xp.maximum(root, bound)

        def scaled(grad: Array) -> Array:
            if grad.dtype == dtype:
                return grad * _beside(factor, grad.ndim)
            # In the dtype of the factor, which may be too small a number for that of the gradient.
            return xp.astype(xp.astype(grad, dtype) * _beside(factor, grad.ndim), backend.dtype(dtype_name(grad)))

        return {name: scaled(grad) for name, grad in grads.items()}
