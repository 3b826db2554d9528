"""The product (3.3) between two states, and its size between all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from ..bptt.state import State
from ..rnn.rnn import RNN
from .arguments import check_increasing, check_rnn, check_steps, checked, evenly
from .trajectory import HostArray, Trajectory, as_matrix, scaled, trajectories, unscaled

#: How many of the states 0 to T all pairs are formed of, unless told otherwise, ...
_PAIRS = 33

#: ... fewer where the Jacobians between them would hold more numbers than this, ...
_NUMBERS = 1 << 25

#: ... or their products for all pairs would take more multiply-adds than this.
_MULTIPLY_ADDS = 10**10


def jacobian(
    rnn: RNN,
    x: Any,
    t: int,
    k: int,
    *,
    layer: int = -1,
    state: State | None = None,
    lengths: Any = None,
) -> HostArray:
    """The product (3.3), ``dh_k/dh_t``: how a layer's state after step k depends on that after step t.

    The inputs of the layer are held fixed. States are numbered from h_0, the initial one, to h_T, the last; with two
    directions in the order in which each of them reads, so that h_1 of the second is its state after the last valid
    step. Past the end of a sequence its state stays what it is: those steps have the identity.

    Parameters
    ----------
    rnn : RNN
    x, state, lengths
        As for calling the network; NumPy arrays may be given to a network on any device.
    t, k : int
        ``0 <= t <= k <= T``.
    layer : int
        0 is the lowest one, -1 the top one.

    Returns
    -------
    ([E,] [D,] N, Z, Z) float64 on the host; D where there are two directions
        ``J[..., i, j] = d state_k[i] / d state_t[j]``; Z = H or, for a cell with c, 2H: h, then c. NaN for sequences
        with a state from t to k that is not finite.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, before any work.

    Notes
    -----
    Rows are gradients, so this costs a backward pass over k - t steps of Z times as many sequences, in blocks of about
    64 MiB, and N Z^2 numbers. Entries are as precise as the largest of their row is; what the smaller singular values
    are cannot be said from them, see :func:`singular_values`. A product that no float64 holds is infinite, or zero.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> from bptt_array.diagnostics import jacobian
    >>> rnn = ba.RNN(input_size=2, hidden_size=3, dtype="float64", seed=0)
    >>> x = np.ones((5, 1, 2))
    >>> y, _ = rnn(x)  # without a readout y is h
    >>> J = {j: np.diag(1 - y[j - 1, 0] ** 2) @ rnn.params["l0.W_hh"] for j in (3, 4, 5)}  # diag(f'(z_j)) W_hh
    >>> bool(np.allclose(jacobian(rnn, x, 2, 5)[0], J[5] @ J[4] @ J[3]))
    True
    """
    check_rnn(rnn)
    with rnn.backend.active(), rnn.calls.layout.in_errors():
        network, batch, layer = checked(rnn, x, layer, state, lengths)
        t, k = check_steps(t, k, batch.T)
        return unscaled(*trajectories(network, batch)[layer].jacobian(t, k))


def spectral_norm(J: HostArray) -> HostArray:
    """The largest singular value of matrices ``(..., Z, Z)``; infinite or NaN where one of their entries is."""
    largest = np.max(np.abs(J), axis=(-2, -1), keepdims=True)
    finite, as_it_is = np.isfinite(largest), largest[..., 0, 0]
    largest = np.where(finite & (largest > 0), largest, 1.0)
    scaled = np.where(finite, J, 0.0) / largest
    squared = np.linalg.eigvalsh(np.matmul(scaled.mT, scaled))[..., -1]  # of the largest one no digit is lost
    return np.where(finite[..., 0, 0], np.sqrt(np.maximum(squared, 0.0)) * largest[..., 0, 0], as_it_is)


def jacobian_norms(
    rnn: RNN,
    x: Any,
    *,
    layer: int = -1,
    steps: Iterable[int] | None = None,
    state: State | None = None,
    lengths: Any = None,
) -> tuple[HostArray, HostArray]:
    """The spectral norm of (3.3) between all pairs of states: how far a gradient reaches.

    Parameters
    ----------
    rnn, x, layer, state, lengths
        As for :func:`jacobian`.
    steps : ints, optional
        P states between 0 and T, each greater than the one before; if left out all, or 33 of them evenly spaced, or
        fewer: see below.

    Returns
    -------
    steps : (P,) int64
    norms : ([E,] [D,] N, P, P) float64
        ``norms[..., a, b]`` is the largest singular value of ``d state_k / d state_t`` with ``t = steps[a]`` and
        ``k = steps[b]``; NaN where t > k, and for sequences with a state from t to k that is not finite.

    Notes
    -----
    This costs a backward pass from ``steps[-1]`` to ``steps[0]`` of Z times as many sequences, holds P N Z^2 numbers,
    the Jacobians between the P states, and then takes a product of Z x Z matrices and the eigenvalues of another one
    for every sequence and pair, together P^2/2 N Z^3 times 0.2 to 1 nanoseconds on one core: 0.6 s for P = 33, N = 8
    and Z = 64, 14 s for Z = 256. If ``steps`` is left out P is such that there are at most 2^25 numbers (256 MiB) and
    1e10 multiply-adds (some seconds), but at least 2.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> from bptt_array.diagnostics import jacobian_norms
    >>> rnn = ba.RNN(2, 3, cell="relu", init="orthogonal", dtype="float64")
    >>> rnn.params["l0.W_hh"] *= 0.5
    >>> rnn.params["l0.b_h"] += 10
    >>> steps, norms = jacobian_norms(rnn, np.ones((4, 1, 2)), steps=[0, 2, 4])
    >>> norms[0].round(4)
    array([[1.    , 0.25  , 0.0625],
           [   nan, 1.    , 0.25  ],
           [   nan,    nan, 1.    ]])
    """
    check_rnn(rnn)
    with rnn.backend.active(), rnn.calls.layout.in_errors():
        network, batch, layer = checked(rnn, x, layer, state, lengths)
        given = None if steps is None else check_increasing("steps", steps, batch.T)
        ran = trajectories(network, batch)[layer]
        chosen = evenly(0, batch.T, _states_of_pairs(ran)) if given is None else given
        between = [as_matrix(*ran.jacobian(t, k)) for t, k in pairwise(chosen)]
    P = len(chosen)
    norms = np.full((*ran.rows, P, P), np.nan)
    norms[..., range(P), range(P)] = 1.0
    for b in range(1, P):
        J, exponents = np.eye(ran.size), np.zeros((1, 1), np.intc)
        for a in reversed(range(b)):
            factor, of_factor = between[a]
            with np.errstate(over="ignore", invalid="ignore"):
                J, more = scaled(np.matmul(J, factor), axis=(-2, -1))
            exponents = exponents + of_factor + more
            norms[..., a, b] = unscaled(spectral_norm(J), exponents[..., 0, 0])
    return np.array(chosen, np.int64), norms


def _states_of_pairs(ran: Trajectory) -> int:
    """How many states :func:`jacobian_norms` takes of its own accord."""
    numbers = math.prod(ran.rows) * ran.size**2
    return max(2, min(_PAIRS, _NUMBERS // numbers, math.isqrt(2 * _MULTIPLY_ADDS // (numbers * ran.size))))
