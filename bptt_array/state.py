"""The state of a network and the gradients of a backward pass: what goes in and comes out as a value."""

from __future__ import annotations

from dataclasses import dataclass

from .backend import Array


@dataclass(frozen=True)
class State:
    """The state of a network between two steps, or the gradient of one.

    Attributes
    ----------
    h : (L, D, N, H)
        Hidden states.
    c : None
        Cell states; the Elman cells have none.
    """

    h: Array
    c: Array | None = None


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
        Gradient of the input, with ``input_grad=True``.
    """

    params: dict[str, Array]
    state: State
    x: Array | None = None
