"""Where units have no slope left to pass a gradient on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.portable import Array
from ..bptt.state import State
from ..checks import check_number
from ..rnn.rnn import RNN
from .arguments import check_rnn
from .flow import in_time
from .trajectory import HostArray, Trajectory, trajectories

#: f'(z) from ``y = f(z)``, as a part of the largest f' there is.
_SLOPES: dict[str, Callable[[Any, Array], Array]] = {
    "tanh": lambda xp, y: 1 - y * y,
    "sigmoid": lambda xp, y: 4 * y * (1 - y),
    "relu": lambda xp, y: xp.astype(y > 0, y.dtype),
}


def saturation(
    rnn: RNN, x: Any, *, state: State | None = None, lengths: Any = None, below: float = 0.05
) -> dict[str, HostArray]:
    """Which part of the units is saturated, at every step: f' smaller than ``below`` times the largest f' there is.

    Such a unit passes next to nothing on of a gradient that comes through f. With y the value of f that is
    ``1 - y^2 < below`` for tanh, ``4 y (1 - y) < below`` for a sigmoid gate, ``y = 0`` for a ReLU, for ``below > 0``.

    Parameters
    ----------
    rnn, x, state, lengths
        As for calling the network; NumPy arrays may be given to a network on any device.
    below : float
        In [0, 1].

    Returns
    -------
    dict of str to (L, D, T, [E]) float64 on the host
        Fractions of the units of all sequences that have the step t of ``x``; those that are NaN are left out, and
        where there are no others so is it. By name: ``"h"`` for f of (1.1); ``"i"``, ``"f"``, ``"g"``, ``"o"``,
        ``"tanh_c"`` for an LSTM; ``"r"``, ``"u"``, ``"n"`` for a GRU; what a cell of your own calls
        :attr:`~bptt_array.Cell.activations`.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, before any work.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> from bptt_array.diagnostics import saturation
    >>> rnn = ba.RNN(1, 2, init="orthogonal", dtype="float64")
    >>> rnn.params["l0.W_xh"][...] = [[0.1], [9.0]]  # the second unit is driven to +-1
    >>> saturation(rnn, np.ones((3, 1, 1)))["h"].ravel()
    array([0.5, 0.5, 0.5])
    """
    check_rnn(rnn)
    below = check_below(below)
    with rnn.backend.active(), rnn.calls.layout.in_errors():
        batch = rnn.calls.batch(x, state, lengths, None, False, host=True)
        check_activations(rnn)
        ran = trajectories(rnn.calls.network(rnn.params), batch)
        return saturation_of(ran, below, bidirectional=rnn.bidirectional, reverse=rnn.reverse)


def check_below(below: Any) -> float:
    number = check_number("below", below)
    if number > 1:
        raise ValueError(f"below={number:g}; expected at most 1: a part of the largest slope")
    return number


def check_activations(rnn: RNN) -> None:
    cell = rnn.architecture.cell
    for name, (function, index) in cell.activations.items():
        if function not in _SLOPES or (index is not None and not 0 <= index < cell.keeps):
            raise ValueError(
                f"{cell!r} has activations[{name!r}]=({function!r}, {index}); expected one of "
                f"{', '.join(map(repr, _SLOPES))} and None, or an index below keeps={cell.keeps}"
            )


def saturation_of(ran: list[Trajectory], below: float, *, bidirectional: bool, reverse: bool) -> dict[str, HostArray]:
    names = ran[0].layer.cell.activations
    return {
        name: np.stack([_of_layer(one, function, index, below, bidirectional, reverse) for one in ran])
        for name, (function, index) in names.items()
    }


def _of_layer(
    ran: Trajectory, function: str, index: int | None, below: float, bidirectional: bool, reverse: bool
) -> HostArray:
    """``(D, T, [E])``"""
    backend, tape, N = ran.backend, ran.tape, ran.rows[-1]
    values = tape.h if index is None else tape.kept[:, index, ...]
    xp, known = backend.xp, ~backend.xp.isnan(values)
    flat = known & (_SLOPES[function](xp, values) < below)
    lengths = np.full(N, ran.steps) if ran.lengths is None else ran.lengths
    valid = np.arange(ran.steps)[:, None] < lengths  # (T, N)
    sums = []
    for units in (flat, known):
        counts = backend.to_host(
            xp.sum(xp.astype(units, backend.integer), axis=-1, dtype=backend.integer)
        )  # (T, [E,] [2,] N)
        by_side = np.moveaxis(counts, -2, 0) if bidirectional else counts[None]
        if reverse:
            by_side = in_time(by_side, ran.lengths, axis=1)
        if bidirectional:
            by_side = np.stack([by_side[0], in_time(by_side[1], ran.lengths, axis=0)])
        there = valid.reshape(1, ran.steps, *(1,) * (by_side.ndim - 3), N)
        sums.append(np.sum(by_side, axis=-1, where=there))
    return np.where(sums[1] > 0, sums[0] / np.maximum(sums[1], 1), np.nan)
