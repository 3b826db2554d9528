"""Singular values of the product (3.3), each to its own precision.

A product of many Jacobians has singular values that lie further apart than the digits of its entries reach: as soon as
the smallest is 1e-16 times the largest, it is rounding in the product. So the product is never formed. Directions are
carried through one Jacobian after the other and made orthonormal in between (QR), which leaves a product of triangular
matrices, ``R = diag(exp(logs)) U`` with rows U of length 1; and rows are then turned against each other until they are
orthogonal (Hestenes, 1958), which keeps the relative precision of each (Demmel & Veselić, 1992).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..bptt.state import State
from ..rnn.rnn import RNN
from .arguments import check_rnn, check_steps, checked
from .trajectory import HostArray, Trajectory, trajectories

#: Up to this spread of the logarithms LAPACK finds all singular values to about eight digits.
_NARROW = np.log(1e6)

#: Rows are orthogonal when no cosine between two of them is larger.
_ORTHOGONAL = 1e-11

#: Of rotations; each about doubles the digits, and five are rarely needed.
_SWEEPS = 40

#: Rows of a step that are shorter, in roundings of the longest times the root of Z, are nothing but rounding.
_LOST = 4

#: Decompositions of all rows at once before these, which bring them near to orthogonal.
_PASSES = 4


def singular_values(
    rnn: RNN,
    x: Any,
    t: int,
    k: int,
    *,
    layer: int = -1,
    state: State | None = None,
    lengths: Any = None,
) -> HostArray:
    """Singular values of the product (3.3), the largest first, float64 on the host, ``([E,] [D,] N, Z)``.

    By how much a gradient grows, at most and at least, on its way from ``h_k`` back to ``h_t``: all of them near 1 keep
    it, all below 1 let it vanish. Each is as precise as the Jacobian of one step, in the network's dtype, lets it be,
    however far they lie apart. A direction that one step makes smaller than ``4 sqrt(Z)`` times the precision of that
    dtype, as a part of what it makes of the largest, is no more than rounding there and counts as lost, with 0; that
    misses the few lost ones, about one of 200 at a step, that rounding makes larger, until a later step loses them too.
    NaN for sequences with a state from t to k that is not finite.

    Parameters, errors and axes are those of :func:`bptt_array.diagnostics.jacobian`. It costs a backward pass of Z
    times as many sequences, with a QR decomposition after every step, and rotations at the end.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> from bptt_array.diagnostics import singular_values
    >>> rnn = ba.RNN(2, 3, cell="relu", init="orthogonal", dtype="float64")
    >>> rnn.params["l0.W_hh"] *= 0.5
    >>> rnn.params["l0.b_h"] += 10  # far from the kink, where f' = 1
    >>> singular_values(rnn, np.ones((20, 1, 2)), 17, 20).round(4)
    array([[0.125, 0.125, 0.125]])
    """
    check_rnn(rnn)
    with rnn.backend.active(), rnn.calls.layout.in_errors():
        network, batch, layer = checked(rnn, x, layer, state, lengths)
        t, k = check_steps(t, k, batch.T)
        return of_product(trajectories(network, batch)[layer], t, k)


def directions(ran: Trajectory, count: int, seed: int = 0) -> HostArray:
    """``count`` random orthonormal directions ``(..., N, Z, count)``, the same for every sequence."""
    *lead, N = ran.rows
    drawn = np.random.default_rng(seed).standard_normal((ran.size, count))
    return np.broadcast_to(np.linalg.qr(drawn)[0], (*lead, N, ran.size, count))


def step_back(ran: Trajectory, step: int, Q: HostArray) -> tuple[HostArray, HostArray]:
    """``J^T Q = Q' R`` with the Jacobian of one step; rows of R that are nothing but rounding are zero."""
    vectors = ran.pull_back(step, np.moveaxis(Q, -1, -3))  # (..., count, N, Z)
    Q, R = np.linalg.qr(np.moveaxis(vectors, -3, -1))
    largest = np.max(np.abs(R), axis=-1, keepdims=True)
    rounding = _LOST * ran.size**0.5 * ran.epsilon * np.max(largest, axis=-2, keepdims=True)
    return Q, np.where(largest <= rounding, 0.0, R)  # what is no number stays so


def of_product(ran: Trajectory, t: int, k: int) -> HostArray:
    """Singular values of ``d state_k / d state_t``, ``(..., N, Z)``, the largest first."""
    Q = directions(ran, ran.size)
    logs, U = np.zeros((*ran.rows, ran.size)), np.broadcast_to(np.eye(ran.size), (*ran.rows, ran.size, ran.size))
    for step in reversed(range(t, k)):
        Q, R = step_back(ran, step, Q)
        # row i of R diag(exp(logs)) U, by its own exp(logs_i): what comes below is smaller, or soon will be
        ratio = np.exp(np.minimum(_minus(logs[..., None, :], logs[..., :, None]), 300.0))
        stretched, U = _normalised(np.matmul(np.where(R != 0, R * ratio, 0.0), U))
        logs = logs + stretched
    sound = np.all(np.isfinite(U), axis=(-2, -1)) & ~np.any(np.isnan(logs) | np.isposinf(logs), axis=-1)
    logs = _orthogonalised(np.where(sound[..., None], logs, 0.0), np.where(sound[..., None, None], U, 0.0))
    with np.errstate(over="ignore", under="ignore"):
        return np.where(sound[..., None], np.exp(logs), np.nan)


def _minus(a: HostArray, b: HostArray) -> HostArray:
    """``a - b`` of logarithms, where two that are ``-inf`` are as far apart as can be."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(a), -np.inf, a - b)


def _normalised(rows: HostArray) -> tuple[HostArray, HostArray]:
    """Logarithms of the lengths of rows, and the rows with length 1; a zero row stays one."""
    largest = np.max(np.abs(rows), axis=-1)
    usable = np.isfinite(largest) & (largest > 0)
    scaled = rows / np.where(usable, largest, 1.0)[..., None]
    lengths = np.where(usable, np.sqrt(np.vecdot(scaled, scaled)), 1.0)
    with np.errstate(divide="ignore"):
        return np.log(largest) + np.log(lengths), scaled / lengths[..., None]


def _orthogonalised(logs: HostArray, U: HostArray) -> HostArray:
    """Logarithms of the singular values of ``diag(exp(logs)) U``, the largest first."""
    Z = logs.shape[-1]
    top = np.max(logs, axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    if np.all(logs - top > -_NARROW):
        with np.errstate(divide="ignore"):
            values: HostArray = np.log(np.linalg.svd(np.exp(logs - top)[..., None] * U, compute_uv=False))
        return values + top
    for _ in range(_PASSES):
        logs, U = _sorted_out(logs, U)
    if Z % 2:  # rows meet in pairs
        logs, U = np.pad(logs, _at_end(logs, 1), constant_values=-np.inf), np.pad(U, _at_end(U, 2))
    logs, U = np.array(logs), np.array(U)
    rounds = _rounds(logs.shape[-1])
    for _ in range(_SWEEPS):
        if _largest_cosine(U) < _ORTHOGONAL:
            break
        for pairs in rounds:
            _turn(logs, U, *pairs)
    return np.sort(logs, axis=-1)[..., ::-1][..., :Z]


def _at_end(a: HostArray, axis: int) -> list[tuple[int, int]]:
    """For ``np.pad``: one more at the end of the axis that is ``axis`` from the last."""
    return [(0, 1 if k == a.ndim - axis else 0) for k in range(a.ndim)]


def _rounds(Z: int) -> list[tuple[HostArray, HostArray]]:
    """Z - 1 rounds in which all rows meet in pairs, each pair once (a round robin)."""
    order, rounds = np.arange(Z), []
    for _ in range(Z - 1):
        rounds.append((order[: Z // 2], order[: Z // 2 - 1 : -1]))
        order = np.concatenate([order[:1], order[-1:], order[1:-1]])
    return rounds


def _sorted_out(logs: HostArray, U: HostArray) -> tuple[HostArray, HostArray]:
    """Other rows with the same singular values, which the further apart they lie the nearer are to orthogonal.

    Those of R in ``A^T = Q R``, with A the rows, the longest first: QR keeps the precision of every column.
    """
    order = np.argsort(-logs, axis=-1)
    logs, U = np.take_along_axis(logs, order, -1), np.take_along_axis(U, order[..., None], -2)
    R = np.asarray(np.linalg.qr(U.mT, mode="r"))
    stretched, U = _normalised(R * np.exp(np.minimum(_minus(logs[..., None, :], logs[..., :, None]), 0.0)))
    return logs + stretched, U


def _largest_cosine(U: HostArray) -> float:
    """Between any two rows."""
    return float(np.max(np.abs(np.matmul(U, U.mT) * (1 - np.eye(U.shape[-2])))))


def _turn(logs: HostArray, U: HostArray, p: HostArray, q: HostArray) -> None:
    """Make rows p and q orthogonal, in place."""
    first = logs[..., p] >= logs[..., q]
    longer, shorter = (np.where(first, logs[..., a], logs[..., b]) for a, b in ((p, q), (q, p)))
    a, b = (np.where(first[..., None], U[..., i, :], U[..., j, :]) for i, j in ((p, q), (q, p)))
    cosine, ratio = np.vecdot(a, b), np.exp(_minus(shorter, longer))
    if np.max(np.abs(cosine)) < _ORTHOGONAL:
        return
    # the rotation by the smaller angle: its tangent is ratio * tau, and what it takes from the shorter row tau
    d = 1 - ratio * ratio
    below = d + np.sqrt(d * d + 4 * (ratio * cosine) ** 2)
    tau = np.where(below > 0, 2 * cosine / np.where(below > 0, below, 1.0), 0.0)
    scale = 1 / np.sqrt(1 + (ratio * tau) ** 2)
    by_a, new_a = _normalised(scale[..., None] * (a + (ratio**2 * tau)[..., None] * b))
    by_b, new_b = _normalised(scale[..., None] * (b - tau[..., None] * a))
    longer, shorter, there = longer + by_a, shorter + by_b, first[..., None]
    logs[..., p], logs[..., q] = np.where(first, longer, shorter), np.where(first, shorter, longer)  # no row moves
    U[..., p, :], U[..., q, :] = np.where(there, new_a, new_b), np.where(there, new_b, new_a)
