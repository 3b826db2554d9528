"""Everything that can be wrong with parameters and gradients, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..backend.arrays import check_plain, dtype_name, is_array, is_writeable
from ..backend.devices import backend_of
from ..backend.portable import DTYPES, Array
from ..bptt.state import Gradients
from ..checks import said

Arrays = Mapping[str, Array]


def check_arrays(name: str, arrays: Any) -> None:
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


def names_of(arrays: Arrays) -> str:
    return said(sorted(arrays))


def check_update(params: Arrays, grads: Arrays, kept: Mapping[str, list[Array]]) -> None:
    """Everything that can be wrong, before anything is changed."""
    check_arrays("params", params)
    check_arrays("grads", grads)
    if set(params) != set(grads):
        raise ValueError(f"grads has keys {names_of(grads)}; expected those of params, {names_of(params)}")
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
