"""Norms of gradients, and gradients clipped by them, without asking the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..backend.arrays import dtype_name
from ..backend.devices import backend_of
from ..backend.portable import Array, Backend
from ..checks import check_count, check_number, said
from .arguments import Arrays, check_arrays, names_of


def _check_clipped(grads: Any, members: Any) -> int | None:
    """Gradients, of an ensemble with a first axis of E."""
    check_arrays("grads", grads)
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
    backend = backend_of(next(iter(grads.values())))
    with backend.active():
        found = backend.largest_entries(grads, members)
        return _largest(_rows(grads, members)) if found is None else found


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
    backend = backend_of(next(iter(grads.values())))
    with backend.active():
        norm = backend.global_norm(grads, members)
        if norm is not None:
            return norm
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
        raise ValueError(f"largest has keys {names_of(largest)}; expected those of grads, {names_of(grads)}")
    backend = backend_of(next(iter(grads.values())))
    with backend.active():
        xp, dtype = backend.xp, _widest(backend, grads)
        limits = xp.finfo(dtype)
        max_norm = max(min(max_norm, float(limits.max)), float(limits.smallest_normal))
        clipped = backend.clipped(grads, max_norm, members)
        if clipped is not None:
            return clipped
        rows = _rows(grads, members)
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
