"""Lyapunov exponents: how fast, per step, small differences between states grow or die away.

They are what becomes of the singular values of the product (3.3): over many steps the logarithm of each, divided by the
number of steps, tends to one of them. Gradients explode where the largest exponent is positive, and vanish where it is
negative.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..bptt.state import State
from ..checks import LARGEST_SEED, check_count
from ..rnn.rnn import RNN
from .arguments import check_rnn, checked
from .singular import directions, step_back
from .trajectory import HostArray, Trajectory, trajectories


def lyapunov_exponents(
    rnn: RNN,
    x: Any,
    count: int = 1,
    *,
    layer: int = -1,
    state: State | None = None,
    lengths: Any = None,
    transient: int = 0,
    seed: int = 0,
) -> HostArray:
    """The largest Lyapunov exponents of a layer that is driven by its input, in nats per step.

    By the method of Benettin et al. (1980): random directions are carried through the Jacobians of single steps and
    made orthonormal again after every one (QR, on the host, in float64); an exponent is the mean logarithm of what
    a direction was stretched by. The directions go backward in time, as gradients do: transposed products have the
    same exponents.

    Parameters
    ----------
    rnn, x, layer, state, lengths
        As for :func:`bptt_array.diagnostics.jacobian`.
    count : int
        How many, at most Z: the H units of the layer, or 2H for a cell with c.
    transient : int
        Steps at both ends of a sequence that the mean leaves out: at its beginning, in which the state is still that
        of ``state`` and not of the dynamics; and at its end, in which the directions are still random.
    seed : int
        Of the directions to begin with.

    Returns
    -------
    ([E,] [D,] N, count) float64 on the host, the largest first
        ``-inf`` for a direction that is lost for good, as where units of a ReLU are zero; NaN for a sequence that has
        no step between its transients, or a state that is not finite.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, before any work.

    Notes
    -----
    An exponent is a limit over infinitely many steps. Over T of them, random directions turn to the fastest ones at the
    rate of the differences between exponents, which leaves an error of order 1/T; ``transient`` takes most of it
    away. What then is left to chance is the input: compare sequences, or lengths. The sum of all Z exponents
    needs no such turning, it is the mean of ``log |det J|``. A network that is driven by an input may have a
    negative largest exponent (it forgets how it began) and still be of use; gradients reach back about ``1 / |lambda|``
    steps.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> from bptt_array.diagnostics import lyapunov_exponents
    >>> rnn = ba.RNN(2, 3, cell="relu", init="orthogonal", dtype="float64")
    >>> rnn.params["l0.W_hh"] *= 0.5
    >>> rnn.params["l0.b_h"] += 10  # far from the kink: every step multiplies by 0.5 times a rotation
    >>> lyapunov_exponents(rnn, np.ones((20, 1, 2)), count=2).round(4), float(np.log(0.5).round(4))
    (array([[-0.6931, -0.6931]]), -0.6931)
    """
    check_rnn(rnn)
    count, transient = check_count("count", count), check_count("transient", transient, least=0)
    seed = check_count("seed", seed, least=0, most=LARGEST_SEED)
    with rnn.backend.active(), rnn.calls.layout.in_errors():
        check_exponents(count, sum(rnn.architecture.widths))
        network, batch, layer = checked(rnn, x, layer, state, lengths)
        if 2 * transient >= batch.T:
            raise ValueError(f"transient={transient} at both ends leaves nothing of T={batch.T} steps")
        return exponents_of(trajectories(network, batch)[layer], count, transient, seed)


def check_exponents(count: int, size: int) -> None:
    if count > size:
        raise ValueError(f"count={count}; expected at most {size}: the state of a layer has so many numbers")


def exponents_of(ran: Trajectory, count: int, transient: int = 0, seed: int = 0) -> HostArray:
    """Exponents of the states that a layer went through, ``(..., N, count)``."""
    *lead, N = ran.rows
    lengths = np.full(N, ran.steps) if ran.lengths is None else ran.lengths
    Q, total = directions(ran, count, seed), np.zeros((*lead, N, count))
    for step in reversed(range(transient, ran.steps)):
        Q, R = step_back(ran, step, Q)
        with np.errstate(divide="ignore"):
            stretched = np.log(np.abs(np.diagonal(R, axis1=-2, axis2=-1)))
        total += np.where((step < lengths - transient)[:, None], stretched, 0.0)
    steps = np.maximum(lengths - 2 * transient, 0)[:, None]
    mean = np.where(steps > 0, total / np.maximum(steps, 1), np.nan)
    return np.sort(mean, axis=-1)[..., ::-1]
