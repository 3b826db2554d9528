"""The product (3.3): how the state after one step depends on the state after an earlier one, ``dh_k/dh_t``.

A backward pass multiplies a gradient by the transposed Jacobian of one step after the other. Here it is given unit
vectors, as sequences of their own, over the states that a forward pass left: so what is said here of a cell, the
library's or your own, is what its ``backward_`` does. ``...`` are the axes [E,] of members and [2,] of directions, as
far as there are any; S is H, or 2H for a cell with c, whose state is h and then c.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .backend import Array, Backend
from .batch import Batch
from .bptt import Unrolled
from .cells import Tape
from .checks import check_count, dtype_name
from .layer import Layer
from .passes import Network
from .recurrence import StateProduct, backward_
from .wording import said

if TYPE_CHECKING:
    from .rnn import RNN
    from .state import State

HostArray = np.ndarray[Any, Any]

#: Rows of states that a backward pass over unit vectors takes at a time, in bytes of all its arrays.
_BLOCK_BYTES = 1 << 26

#: An exponent of two below that of any number.
_NOTHING = -(1 << 30)

#: How many of the states 0 to T all pairs are formed of, unless told otherwise, ...
_PAIRS = 33

#: ... fewer where the Jacobians between them would hold more numbers than this, ...
_NUMBERS = 1 << 25

#: ... or their products for all pairs would take more multiply-adds than this.
_MULTIPLY_ADDS = 10**10


class Trajectory(NamedTuple):
    """The states that one layer went through, and what its cell kept, for T steps of N sequences.

    ``sound (T, ..., N)`` says of every step whether the states before and after are numbers; past the end of a sequence
    it is True.
    """

    backend: Backend
    layer: Layer
    tape: Tape
    lengths: HostArray | None
    sound: HostArray

    @property
    def steps(self) -> int:
        """T."""
        return int(self.tape.states[0].shape[0]) - 1

    @property
    def rows(self) -> tuple[int, ...]:
        """(..., N)"""
        return tuple(self.tape.states[0].shape[1:-1])

    @property
    def size(self) -> int:
        """S."""
        return len(self.tape.states) * self.layer.hidden_size

    @property
    def epsilon(self) -> float:
        """The precision of its numbers."""
        return float(np.finfo(dtype_name(self.tape.states[0])).eps)

    def pull_back(self, step: int, vectors: HostArray) -> HostArray:
        """``J^T v`` with the Jacobian J of the states after a step by those before it, float64.

        Parameters
        ----------
        vectors : (..., R, N, S)
            R of them for every sequence. Past the end of a sequence its state stays what it is: J is the identity.
            Where a state is no number J is none either, whatever f' would make of it (that of a ReLU is 0).
        """
        backend, (cell, params), tape = self.backend, self.layer, self.tape
        count, N = vectors.shape[-3:-1]
        rows, H, dtype = (*vectors.shape[:-3], count * N), self.layer.hidden_size, params["W_hh"].dtype
        states = tuple(_repeated(backend, states[step : step + 2, ...], count) for states in tape.states)
        kept = None if tape.kept is None else _repeated(backend, tape.kept[step : step + 1, ...], count)
        dstates = tuple(backend.zeros((2, *rows, H), dtype) for _ in states)
        for dstate, part in zip(dstates, np.split(vectors, len(states), axis=-1), strict=True):
            dstate[1, ...] = backend.from_host(part.reshape((*rows, H)).astype(dtype_name(params["W_hh"])))
        dz = backend.empty((1, *rows, cell.gates * H), dtype)
        slopes = backend.empty((1, cell.slopes, *rows, H), dtype) if cell.slopes else None
        product = StateProduct(backend, params["W_hh"], rows, 1, backward=True)
        backward_(backend, cell, cell.backward_(backend, params, product), Tape(states, kept), dstates, dz, slopes)
        parts = [backend.to_host(d[0, ...]).astype(np.float64).reshape(*vectors.shape[:-1], H) for d in dstates]
        before = np.concatenate(parts, axis=-1)
        if self.lengths is not None:
            before = np.where((step < self.lengths)[:, None], before, vectors)
        return np.where(self.sound[step][..., None, :, None], before, np.nan)

    def jacobian(self, t: int, k: int) -> tuple[HostArray, HostArray]:
        """``d state_k / d state_t``, from the last step to the first, as ``J * 2**exponents``.

        Returns
        -------
        J : (..., N, S, S) float64
            Rows of the order of 1: a product over many steps neither under- nor overflows.
        exponents : (..., N, S, 1) of integers
        """
        *lead, N = self.rows
        identity = np.eye(self.size)[:, None, :]  # (R, 1, S)
        at_once = self._vectors_at_once()
        parts = []
        for first in range(0, self.size, at_once):
            units = identity[first : first + at_once]
            vectors = np.broadcast_to(units, (*lead, len(units), N, self.size))
            exponents = np.zeros((*vectors.shape[:-1], 1), np.intc)
            for step in reversed(range(t, k)):
                vectors, more = _scaled(self.pull_back(step, vectors), axis=-1)
                exponents += more
            parts.append((np.moveaxis(vectors, -3, -2), np.moveaxis(exponents, -3, -2)))
        J, exponents = (np.concatenate(of_parts, axis=-2) for of_parts in zip(*parts, strict=True))
        return J, exponents

    def _bytes_of_a_row(self) -> int:
        """What one step of one vector takes in a backward pass."""
        cell, H = self.layer.cell, self.layer.hidden_size
        arrays = 2 * len(self.tape.states) + cell.keeps + cell.slopes + cell.gates
        return arrays * H * np.dtype(dtype_name(self.layer.params["W_hh"])).itemsize

    def _vectors_at_once(self) -> int:
        return max(1, _BLOCK_BYTES // (self._bytes_of_a_row() * math.prod(self.rows)))


def _repeated(backend: Backend, a: Array, count: int) -> Array:
    """``a (..., N, K)``, ``count`` times one after the other along N."""
    return backend.xp.concat([a] * count, axis=-2)


def _scaled(a: HostArray, axis: int | tuple[int, ...]) -> tuple[HostArray, HostArray]:
    """``a`` as numbers below 1 times powers of two, the same along ``axis``: no digit is lost."""
    largest = np.max(np.abs(a), axis=axis, keepdims=True)
    exponents = np.where(np.isfinite(largest), np.frexp(largest)[1], 0).astype(np.intc)
    return np.ldexp(a, -exponents), exponents


def _product(a: HostArray, exponents: HostArray) -> HostArray:
    """``a * 2**exponents``: zeros stay zero, what is too large becomes infinite."""
    with np.errstate(over="ignore", under="ignore"):
        result: HostArray = np.ldexp(a, exponents)
    return result


def _as_matrix(J: HostArray, exponents: HostArray) -> tuple[HostArray, HostArray]:
    """Rows with an exponent each as a matrix with one, ``(..., 1, 1)``: that of its longest row."""
    there = np.any(J != 0, axis=-1, keepdims=True)
    top = np.max(exponents, axis=-2, keepdims=True, where=there, initial=_NOTHING)
    top = np.where(top > _NOTHING, top, 0).astype(np.intc)
    return _product(J, exponents - top), top


def trajectories(network: Network, batch: Batch) -> list[Trajectory]:
    """The layers of a network, run forward over a batch."""
    backend = network.backend
    unrolled = Unrolled(backend, network.stack, batch, batch.T)
    unrolled.forward(0, batch.T)
    unrolled.end()
    tapes = [forward.kept(0).tape for forward in unrolled.layers]
    return [
        Trajectory(backend, layer, tape, batch.lengths, _sound(backend, tape, batch.lengths))
        for layer, tape in zip(network.stack.layers, tapes, strict=True)
    ]


def _sound(backend: Backend, tape: Tape, lengths: HostArray | None) -> HostArray:
    """See :class:`Trajectory`."""
    xp = backend.xp
    finite = np.all([backend.to_host(xp.all(xp.isfinite(states), axis=-1)) for states in tape.states], axis=0)
    sound: HostArray = finite[:-1] & finite[1:]  # (T, ..., N)
    if lengths is None:
        return sound
    past = np.arange(len(sound))[:, None] >= lengths
    return sound | past.reshape(len(sound), *(1,) * (sound.ndim - 2), len(lengths))


def check_rnn(rnn: Any) -> None:
    from .rnn import RNN

    if not isinstance(rnn, RNN):
        raise TypeError(f"rnn is a {type(rnn).__name__}; expected a bptt_array.RNN")


def check_layer(layer: Any, num_layers: int) -> int:
    """The number of a layer, from the top if negative."""
    least = -num_layers
    whole = isinstance(layer, (int, np.integer)) and not isinstance(layer, (bool, np.timedelta64))
    if whole and not least <= layer < num_layers:
        raise ValueError(
            f"layer={said(layer)}; expected {least} to {num_layers - 1}: this RNN has num_layers={num_layers}"
        )
    return check_count("layer", layer, least=least) % num_layers


def checked(rnn: RNN, x: Any, layer: Any, state: State | None, lengths: Any) -> tuple[Network, Batch, int]:
    """What a diagnosis of one layer works on."""
    layer = check_layer(layer, rnn.num_layers)
    return rnn._network(), rnn._batch(x, state, lengths, None, False, host=True), layer


def check_steps(t: Any, k: Any, T: int) -> tuple[int, int]:
    t, k = check_count("t", t, least=0), check_count("k", k, least=0)
    if k > T:
        raise ValueError(f"k={k}; expected at most T={T}: states are numbered from h_0, the initial one, to h_T")
    if t > k:
        raise ValueError(f"t={t}, k={k}: expected t <= k, an earlier state and a later one")
    return t, k


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
    ([E,] [D,] N, S, S) float64 on the host; D where there are two directions
        ``J[..., i, j] = d state_k[i] / d state_t[j]``; S = H or, for a cell with c, 2H: h, then c. NaN for sequences
        with a state from t to k that is not finite.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, before any work.

    Notes
    -----
    Rows are gradients, so this costs a backward pass over k - t steps of S times as many sequences, in blocks of about
    64 MiB, and N S^2 numbers. Entries are as precise as the largest of their row is; what the smaller singular values
    are cannot be said from them, see :func:`singular_values`. A product that no float64 holds is infinite, or zero.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> from bptt_array.diagnostics import jacobian
    >>> rnn = ba.RNN(input_size=2, hidden_size=3, dtype="float64", seed=0)
    >>> x = np.ones((5, 1, 2))
    >>> y, _ = rnn(x)  # without a readout y is h
    >>> J = jacobian(rnn, x, 3, 4)[0]
    >>> bool(np.allclose(J, np.diag(1 - y[3, 0] ** 2) @ rnn.params["l0.W_hh"]))  # diag(f'(z_4)) W_hh
    True
    """
    check_rnn(rnn)
    with rnn.backend.active(), rnn._layout.in_errors():
        network, batch, layer = checked(rnn, x, layer, state, lengths)
        t, k = check_steps(t, k, batch.T)
        return _product(*trajectories(network, batch)[layer].jacobian(t, k))


def spectral_norm(J: HostArray) -> HostArray:
    """The largest singular value of matrices ``(..., S, S)``; infinite or NaN where one of their entries is."""
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
    This costs a backward pass from ``steps[-1]`` to ``steps[0]`` of S times as many sequences, holds P N S^2 numbers,
    the Jacobians between the P states, and then takes a product of S x S matrices and the eigenvalues of another one
    for every sequence and pair, together P^2/2 N S^3 times 0.2 to 1 nanoseconds on one core: 0.6 s for P = 33, N = 8
    and S = 64, 14 s for S = 256. If ``steps`` is left out P is such that there are at most 2^25 numbers (256 MiB) and
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
    with rnn.backend.active(), rnn._layout.in_errors():
        network, batch, layer = checked(rnn, x, layer, state, lengths)
        given = None if steps is None else check_increasing("steps", steps, batch.T)
        ran = trajectories(network, batch)[layer]
        chosen = evenly(0, batch.T, _states_of_pairs(ran)) if given is None else given
        between = [_as_matrix(*ran.jacobian(t, k)) for t, k in pairwise(chosen)]
    P = len(chosen)
    norms = np.full((*ran.rows, P, P), np.nan)
    norms[..., range(P), range(P)] = 1.0
    for b in range(1, P):
        J, exponents = np.eye(ran.size), np.zeros((1, 1), np.intc)
        for a in reversed(range(b)):
            factor, of_factor = between[a]
            with np.errstate(over="ignore", invalid="ignore"):
                J, more = _scaled(np.matmul(J, factor), axis=(-2, -1))
            exponents = exponents + of_factor + more
            norms[..., a, b] = _product(spectral_norm(J), exponents[..., 0, 0])
    return np.array(chosen, np.int64), norms


def _states_of_pairs(ran: Trajectory) -> int:
    """How many states :func:`jacobian_norms` takes of its own accord."""
    numbers = math.prod(ran.rows) * ran.size**2
    return max(2, min(_PAIRS, _NUMBERS // numbers, math.isqrt(2 * _MULTIPLY_ADDS // (numbers * ran.size))))


def evenly(first: int, last: int, count: int) -> list[int]:
    """All of ``first`` to ``last`` or, where these are more, ``count`` of them, evenly spaced, both ends included."""
    if last - first < count:
        return list(range(first, last + 1))
    return [int(step) for step in np.linspace(first, last, count).round()]


def check_increasing(name: str, steps: Any, most: float) -> list[int]:
    """Whole numbers from 0 to ``most``, each greater than the one before."""
    steps = check_numbers(name, steps)
    chosen = [check_count(f"{name}[{n}]", step, least=0) for n, step in enumerate(steps)]
    for n, step in enumerate(chosen):
        if step > most:
            raise ValueError(f"{name}[{n}]={step}; expected 0 to {most}")
    wrong = [n for n, (before, after) in enumerate(pairwise(chosen)) if before >= after]
    if wrong:
        n = wrong[0]
        raise ValueError(f"{name}[{n}]={chosen[n]} and {name}[{n + 1}]={chosen[n + 1]}; expected increasing numbers")
    return chosen


def check_numbers(name: str, steps: Any) -> list[Any]:
    """What may be whole numbers one after the other."""
    text = isinstance(steps, (str, bytes, bytearray, Mapping))
    if text or not isinstance(steps, Iterable) or getattr(steps, "ndim", 1) == 0:
        raise TypeError(
            f"{name}={said(steps)} is a {type(steps).__name__}; expected whole numbers, such as range(0, 10, 2)"
        )
    return list(steps)
