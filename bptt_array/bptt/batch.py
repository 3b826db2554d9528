"""What one pass works on: inputs, initial states and lengths, in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend.portable import Array, Backend
from .padding import Feed, Padding
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
    reverse : bool
        Sequences are read from their ends. The steps of a pass are those of reading: what the caller has in the order
        of time comes in by :meth:`feed`, and goes out by :func:`bptt_array.bptt.directions.in_time`.
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
    reverse: bool = False

    def feed(self, array: Array, *, features: bool) -> Feed:
        """A time-major array of the caller, ``(T, ..., N, F)`` or without F, in the order in which steps are read."""
        return Feed(self.backend, array, self.padding, features=features, reverse=self.reverse)

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


def without(backend: Backend, layers: Sequence[States], reset: Array) -> list[States]:
    """States ``(..., N, H)`` with zeros for the sequences of ``reset (N,)``, whatever was there."""
    xp = backend.xp
    return [tuple([xp.where(reset[:, None], xp.zeros_like(a), a) for a in states]) for states in layers]


def as_state(backend: Backend, layers: Sequence[States], *, bidirectional: bool, own: bool = False) -> State:
    """The states of every layer as ``(L, D, [E,] N, H)`` of their own, which later writes cannot reach.

    ``own``: nobody else has the arrays any more, and they need no copy.
    """
    xp = backend.xp
    if bidirectional:
        return State(*(xp.stack([xp.moveaxis(a, -3, 0) for a in of_layers]) for of_layers in zip(*layers, strict=True)))
    if len(layers) == 1:
        return State(*[(a if own else backend.copy(a))[None, None, ...] for a in layers[0]])
    return State(*(xp.stack(of_layers)[:, None, ...] for of_layers in zip(*layers, strict=True)))
