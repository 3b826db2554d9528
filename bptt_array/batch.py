"""What one call works on: inputs, initial states and lengths, checked and in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .architecture import Architecture
from .backend import Array, Backend
from .checks import check_lengths, check_range, check_reset, check_state, check_x, is_integer
from .padding import Padding
from .state import State

States = tuple[Array, ...]


@dataclass(frozen=True)
class Batch:
    """N sequences of T steps, for a network with E members or none.

    Attributes
    ----------
    x : (T, N, I) or (T, E or 1, N, I), or integers without the last axis
        Where the caller has it: on the device, or on the host.
    initial : list of tuple of ([E,] [2,] N, H)
        The states of every layer, on the device.
    padding : Padding or None
        None where every sequence has T steps.
    reset : (N,) bool on the device, or None
        Sequences that begin anew: their initial states are zero whatever the caller's are.
    """

    backend: Backend
    dtype: Any
    T: int
    N: int
    members: int | None
    x: Array
    tokens: bool
    initial: list[States]
    padding: Padding | None
    reset: Array | None = None

    @property
    def lengths(self) -> np.ndarray[Any, Any] | None:
        return None if self.padding is None else self.padding.lengths

    @property
    def no_loss(self) -> Array:
        """Zero, for every member."""
        return self.backend.zeros(self.member_axis, self.dtype)

    @property
    def member_axis(self) -> tuple[int, ...]:
        """``(E,)``, or nothing."""
        return () if self.members is None else (self.members,)

    def valid_outputs(self, readout: str) -> int:
        """How many outputs a loss is summed over."""
        if self.lengths is None:
            return self.T * self.N if readout == "every" else self.N
        return int(self.lengths.sum() if readout == "every" else np.count_nonzero(self.lengths))


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


def without(backend: Backend, layers: Sequence[States], reset: Array) -> list[States]:
    """States ``(..., N, H)`` with zeros for the sequences of ``reset (N,)``, whatever was there."""
    xp = backend.xp
    return [tuple([xp.where(reset[:, None], xp.zeros_like(a), a) for a in states]) for states in layers]


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


def as_state(backend: Backend, layers: Sequence[States], *, bidirectional: bool) -> State:
    """The states of every layer as ``(L, D, [E,] N, H)`` of their own, which later writes cannot reach."""
    xp = backend.xp
    if bidirectional:
        return State(*(xp.stack([xp.moveaxis(a, -3, 0) for a in of_layers]) for of_layers in zip(*layers, strict=True)))
    if len(layers) == 1:
        return State(*[backend.copy(a)[None, None, ...] for a in layers[0]])
    return State(*(xp.stack(of_layers)[:, None, ...] for of_layers in zip(*layers, strict=True)))
