"""What one call of a network works on: made of what the caller gave, checked and in place."""

from __future__ import annotations

from typing import Any

from ..backend.arrays import is_integer
from ..backend.portable import Array, Backend
from ..bptt.batch import Batch, States, without
from ..bptt.padding import Padding
from ..bptt.state import State
from .architecture import Architecture
from .arguments import check_lengths, check_range, check_reset, check_state, check_x


def for_members(array: Array, ndim: int, before: int = 1) -> Array:
    """An array that all members share, with an axis of 1 for them after the first ``before`` axes.

    One that has ``ndim`` axes has one of E already.
    """
    return array if array.ndim == ndim else array[(slice(None),) * before + (None, ...)]


def make_batch(
    backend: Backend,
    architecture: Architecture,
    x: Any,
    state: Any,
    lengths: Any,
    reset: Any,
    *,
    validate: bool,
    host: bool,
) -> Batch:
    """Check what a caller gave, time first; ``host``: NumPy arrays will do for a device model too."""
    dtype, members = architecture.dtype, architecture.members
    T, N = check_x(x, architecture.input_size, members, backend, dtype, host=host)
    known = check_lengths(lengths, T, N)
    tokens = is_integer(x)
    if tokens:
        check_range("x", x, architecture.input_size, "tokens below input_size", backend, known, read=validate)
    if members is not None:
        x = for_members(x, 3 if tokens else 4)
    if state is not None:
        check_state("state", state, architecture, N, backend, host=host)
    initial = as_initial(backend, architecture, state, N)
    reset = check_reset(reset, N, backend)
    if reset is not None and state is not None:
        initial = without(backend, initial, reset)
    padding = None if known is None else Padding(backend, known)
    return Batch(backend, backend.dtype(dtype), T, N, members, x, tokens, initial, padding, reset)


def as_initial(backend: Backend, architecture: Architecture, state: State | None, N: int) -> list[States]:
    """The states of every layer, ``([E,] [2,] N, H)``, from ``(L, D, [E,] N, H)`` or zeros."""
    dtype, xp = backend.dtype(architecture.dtype), backend.xp
    names, layers = architecture.cell.states, range(architecture.num_layers)
    if state is None:
        shape = (*architecture.lead, N, architecture.hidden_size)
        return [tuple([backend.zeros(shape, dtype) for _ in names]) for _ in layers]
    given = []
    for name in names:
        array = getattr(state, name)
        array = array if backend.owns(array) else backend.from_host(array)
        given.append(xp.astype(array, dtype, copy=False))  # the byte order of this machine

    def inside(array: Array) -> Array:
        return xp.moveaxis(array, 0, -3) if architecture.bidirectional else array[0, ...]

    return [tuple(inside(array[k, ...]) for array in given) for k in layers]
