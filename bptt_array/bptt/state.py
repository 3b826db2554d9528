"""The state of a network and the gradients of a backward pass: what goes in and comes out as a value."""

from __future__ import annotations

from dataclasses import dataclass

from ..backend.portable import Array
from ..checks import AS_IT_IS


@AS_IT_IS
@dataclass(frozen=True)
class State:
    """The state of a network between two steps, or the gradient of one.

    Attributes
    ----------
    h : (L, D, N, H), of an ensemble (L, D, E, N, H)
        Hidden states of every layer and direction.
    c : of the same shape, or None
        Cell states, of cells that have one (LSTM). With ``proj_size=P`` the last axis of h alone is P.
    """

    h: Array
    c: Array | None = None


@AS_IT_IS
@dataclass(frozen=True)
class Gradients:
    """What a backward pass returns.

    Attributes
    ----------
    params : dict of str to array
        The keys and shapes of :attr:`RNN.params`.
    state : State
        Gradient of the initial state.
    x : (T, N, I) or None
        Gradient of the input, with ``input_grad=True``; of an ensemble (T, E, N, I), for every member its own even
        where they share ``x``.
    steps : int, 0-d array, (E,) or None
        What the loss is a mean over: valid steps of all sequences (with ``readout="last"``: sequences). Where weights
        or classes say it, an array on the device: the sum of their weights. None where it is a sum, or unknown.
        Gradients of several parts of a batch are weighted with it, see :mod:`bptt_array.distributed`.
    """

    params: dict[str, Array]
    state: State
    x: Array | None = None
    steps: int | Array | None = None
