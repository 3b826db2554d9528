"""The layers and the readout of a network one step at a time, forward, in arrays that are made once.

The step of a layer is its cell's, as in a segment (:meth:`Layer.step_forward`). The states before a step are in one of
two rows and those after it in the other, so nothing is copied, and nothing is lost where a step is not finished.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..backend.portable import Array, Backend
from ..equations.cell import Cell, Step, add, by_gate, is_fixed
from .batch import States, without
from .layer import Layer
from .passes import BoundNetwork

#: There is no end of steps: what pays for itself over many is made.
_ENDLESS = sys.maxsize

#: ``(z, x)`` that does ``z <- W_xh x_t + b_h``
Projection = Callable[[Array, Array], None]


class Move(NamedTuple):
    """What one layer does in a step: project its input to ``z``, then its cell's step on arrays that stay the same."""

    project_: Projection
    z: Array
    step_: Step
    arguments: tuple[Array, ...]
    h: Array


class LayerStream:
    """One layer: two rows of its states, and the moves from each to the other.

    Attributes
    ----------
    states : tuple of (2, ..., N, H)
        h, and c where the cell has one.
    """

    def __init__(self, backend: Backend, layer: Layer, initial: States) -> None:
        cell, row, dtype = layer.cell, (*initial[0].shape[:-1], layer.hidden_size), initial[0].dtype
        self.states = tuple([backend.empty((2, *state.shape), dtype) for state in initial])
        self._step = layer.step_forward(backend, row[:-1], _ENDLESS)
        self._z: Array = None
        self._more: tuple[Array, ...] = ()  # that the cell asks for beside z and states
        if cell.in_place:
            return
        kept: Array = backend.empty((1, cell.keeps, *row), dtype) if cell.keeps else None
        z = kept[:, : cell.gates, ...] if cell.apart(backend) else None
        z = backend.empty((1, *row[:-1], cell.gates * row[-1]), dtype) if z is None else z
        self._z = z[0, ...]

        def more() -> tuple[Array, ...]:
            return tuple([array[0, ...] for array in cell.forward_rows(backend, z, kept)])

        if is_fixed(cell) or type(cell).forward_rows is Cell.forward_rows:
            self._more = more()
        else:  # one of the caller's own may compute something from z there
            step_ = self._step
            self._step = lambda *arguments: step_(*arguments, *more())

    def move(self, before: int, project_: Projection) -> Move:
        """The step from the row ``before`` of the states to the other one."""
        arguments: list[Array] = []
        for state in self.states:
            arguments += [state[before, ...], state[1 - before, ...]]
        h = arguments[1]
        if self._z is None:
            return Move(project_, h, self._step, tuple(arguments), h)  # z becomes h
        return Move(project_, self._z, self._step, (self._z, *arguments, *self._more), h)


class Stream:
    """N sequences on their way through a network; ``stream(x_t)`` is one step of them, after :meth:`read`.

    Parameters
    ----------
    network : BoundNetwork
        Whose parameters nobody writes to.
    initial : one tuple of ([E,] N, H) for every layer
        The states before the first step.
    """

    def __init__(self, network: BoundNetwork, initial: Sequence[States]) -> None:
        backend, layers = network.backend, network.stack.layers
        self._backend = backend
        self._layers = [LayerStream(backend, layer, states) for layer, states in zip(layers, initial, strict=True)]
        self._now = 0  # the row of the states that the next step begins with
        self.states = initial
        self._rows = initial[0][0].shape[:-1]
        self._first: Layer | None = layers[0]  # until it is known what it reads
        self._W_emb = network.stack.W_emb
        pairs = zip(self._layers[1:], layers[1:], strict=True)
        above = [(mine, _projection(backend, layer, self._rows)) for mine, layer in pairs]
        self._moves = [[mine.move(before, project_) for mine, project_ in above] for before in (0, 1)]
        self._read_out, self._y = _outputs(network, initial[-1][0])

    def read(self, *, tokens: bool) -> None:
        """Say once what inputs are: ``([E,] N, I)``, or integers ``([E,] N)``; the axis E may be left out or 1."""
        assert self._first is not None
        project_ = _projection(self._backend, self._first, self._rows, tokens=tokens, W_emb=self._W_emb)
        self._first = self._W_emb = None
        for before, moves in enumerate(self._moves):
            moves.insert(0, self._layers[0].move(before, project_))

    def __call__(self, x: Array) -> Array:
        """The outputs of a step, ``([E,] N, O)``, which the next one writes over."""
        now = self._now
        for project_, z, step_, arguments, h in self._moves[now]:
            project_(z, x)
            step_(*arguments)
            x = h
        self._read_out(x)
        self._now = 1 - now
        return self._y

    @property
    def states(self) -> Sequence[States]:
        """The states of every layer, ``([E,] N, H)``: of these very arrays, which steps write to."""
        return [tuple([state[self._now, ...] for state in layer.states]) for layer in self._layers]

    @states.setter
    def states(self, states: Sequence[States]) -> None:
        for mine, given in zip(self.states, states, strict=True):
            for array, values in zip(mine, given, strict=True):
                array[...] = values

    def reset(self, rows: Array) -> None:
        """Zeros for the states of ``rows (N,)``, bools on the device."""
        self.states = without(self._backend, self.states, rows)


def _outputs(network: BoundNetwork, h: Array) -> tuple[Callable[[Array], None], Array]:
    """A function ``(h)`` that writes the outputs (1.2), and where; without an output layer they are a copy of h."""
    if network.readout.W_hy is not None:
        return network.readout.writing(h.shape[:-1], _ENDLESS)
    y = network.backend.empty(h.shape, h.dtype)

    def copy_(h: Array) -> None:
        y[...] = h

    return copy_, y


def _projection(
    backend: Backend, layer: Layer, rows: tuple[int, ...], *, tokens: bool = False, W_emb: Array | None = None
) -> Projection:
    """The part of (1.1) that needs no state, of one step: a function ``(z, x)`` that does ``z <- W_xh x_t + b_h``.

    Of tokens x_t is a one-hot vector, whose product is read, or with an embedding the row of ``W_emb``.
    """
    cell, W = layer.cell, layer.params["W_xh"].mT
    read_: Callable[[Array], None]
    if W_emb is not None:
        look_up_, vectors = _row_reader(backend, W_emb, rows)
        product_, of_x = backend.multiplier(W, rows, _ENDLESS)

        def read_vectors(x: Array) -> None:
            look_up_(x)
            product_(vectors)

        read_ = read_vectors
    elif tokens:
        table = backend.empty(W.shape, W.dtype)
        table[...] = W  # each column of W_xh in one piece
        read_, of_x = _row_reader(backend, table, rows)
    else:
        read_, of_x = backend.multiplier(W, rows, _ENDLESS)
    if cell.apart(backend):
        of_x = by_gate(backend, of_x, cell.gates)
    add_, bias = backend.fused(add), layer.bias(backend, rows[-1])

    def project_(z: Array, x: Array) -> None:
        read_(x)
        add_(z, of_x, bias)

    def without_bias(z: Array, x: Array) -> None:
        read_(x)
        z[...] = of_x

    return without_bias if bias is None else project_


def _row_reader(backend: Backend, table: Array, rows: tuple[int, ...]) -> tuple[Callable[[Array], None], Array]:
    """A function ``(x)`` that reads the rows of ``table (..., V, M)`` which tokens stand for, and where it writes them.

    Nothing of the size of the table is made for them.
    """
    *lead, V, M = table.shape
    out, take_ = backend.empty((*rows, M), table.dtype), backend.take_rows_
    if not lead:
        return lambda x: take_(out, table, x), out
    of_all = backend.reshape(table, (-1, M))
    first = V * backend.reshape(backend.arange(math.prod(lead)), (*lead, 1))
    return lambda x: take_(out, of_all, x + first), out
