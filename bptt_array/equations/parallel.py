"""Exact backpropagation of an Elman cell in parallel over time: the gradients of (3.1), in fewer dependent steps.

T time steps, S of them in a segment, in C chunks of S/C steps each; N sequences, H hidden units. Backward, (3.1) is
linear: what a chunk hands to the state before it is ``own + dh J``, with the total gradient ``dh`` of its last state,
the product ``J (H, H)`` of its Jacobians (3.3), and what the direct parts inside of it send out by themselves. Neither
``J`` nor ``own`` needs ``dh``, so all chunks find theirs at once, the C gradients between them are joined one after
the other, and then all chunks run once more with the gradient that is theirs: about 2 S/C + C steps that wait for each
other where one loop has S, for about H + 2 times the multiply-adds. That pays where a step takes the time of a call
rather than of its arithmetic: small H and N, long sequences.

A scan over Jacobians is the idea of BPPSA (Wang, Bai & Pekhimenko, MLSys 2020); this is its form of two levels, in
which each level is a few large products instead of a tree of small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import tee

from ..backend.portable import Array, Backend, Elementwise
from .state_product import StateProduct


def backward_parallel_(
    backend: Backend, W_hh: Array, dstates: Array, dz: Array, chunks: int, mask: Array | None = None
) -> None:
    """Run a segment of an Elman cell backward, in place, as ``recurrence.backward_`` does: to rounding, the same.

    Parameters
    ----------
    W_hh : (..., H, H)
    dstates : (S+1, ..., N, H), contiguous
        Gradients of the states. They arrive as the part that does not come through later steps of this segment, in
        row 0 zero; they become the total gradients, in row 0 what the segment hands to the state before it.
    dz : (S, ..., N, H), contiguous
        Arrives as ``f'(z_t)``, as ``Elman.slopes_`` leaves it; becomes ``dz_t = f'(z_t) * dh_t``.
    chunks : int
        C, from 1 (one loop over all steps) to S; more are taken for S. What S // C leaves over is run at the end, step
        by step.
    mask : (..., N, H), optional
        Of recurrent dropout: ``dh_{t-1} = (direct) + mask * (W_hh^T dz_t)``.

    Raises
    ------
    ValueError
        If ``chunks`` is less than 1.

    Notes
    -----
    Rounding errors are of the size ``eps |J| |dh|``. So, in general, are those of the loop; but it knows nothing of
    the directions that a gradient does not take. Where a chunk's ``J`` overflows, which the gradient itself may not
    do, the result is inf or NaN: take more chunks, which are shorter.
    """
    if chunks < 1:
        raise ValueError(f"chunks={chunks} is not possible; expected at least 1")
    S = dz.shape[0]
    C = min(chunks, S)
    rest = S if C <= 1 else S % C
    if rest < S:
        in_chunks = dstates[rest:, ...], dz[rest:, ...]
        jacobians, own = _jacobians(backend, W_hh, *in_chunks, C, mask)
        _join_(backend, in_chunks[0], jacobians, own, mask)
        del jacobians, own
        _all_chunks_(backend, W_hh, *in_chunks, C, mask)
    add_product = StateProduct(backend, W_hh, dz.shape[1:-1], rest, mask, backward=True).adding()
    after, before = tee(backend.rows(dstates[: rest + 1, ...], reverse=True))
    next(before)
    for row, dh, dh_before in zip(backend.rows(dz[:rest, ...], reverse=True), after, before):  # noqa: B905
        row *= dh
        add_product(dh_before, row)


def _by_step(backend: Backend, a: Array, C: int) -> Array:
    """``a (S, ..., N, H)`` as ``(S/C, ..., C, N, H)``, a view: the same step of all chunks in one row."""
    xp = backend.xp
    return xp.moveaxis(xp.reshape(a, (C, a.shape[0] // C, *a.shape[1:])), 0, -3)


def _products(backend: Backend, out: Array, a: Array, W: Array) -> list[tuple[Array, Array]]:
    """Parts of ``out (..., M, H)`` and ``a (..., M, H)``: ``out <- a @ W`` in products as the device wants them.

    A BLAS that gives a product to several threads waits for the slowest of them, which on a busy machine is that whose
    core does something else: hundreds of such products, one after the other, then take fifty times as long.
    """
    H, most = W.shape[-1], backend.one_thread_multiply_adds
    length = max(1, a.shape[-2] if most is None else most // (H * H))
    return [(out[..., k : k + length, :], a[..., k : k + length, :]) for k in range(0, a.shape[-2], length)]


def _jacobians(
    backend: Backend, W: Array, dstates: Array, dz: Array, C: int, mask: Array | None
) -> tuple[Array, Array]:
    """What leaves each chunk but the first, ``own + dh J`` before the mask: J ``(C-1, ..., N, H, H)`` and own
    ``(C-1, ..., N, H)``.

    Row i of J is what comes out where unit vector i went in. The H unit vectors and, as row H + 1, the chunk's own
    gradient go through the steps together, as the rows of one matrix. Which of these it is comes first of the axes
    ``(..., H+1, C-1, N, H)``: the derivatives f', which all have in common, then repeat as a whole.
    """
    xp, (S, *lead, N, H), B = backend.xp, dz.shape, C - 1
    length, block = S // C, (B, N, H)
    slopes, direct = _by_step(backend, dz[length:, ...], B), _by_step(backend, dstates[length:-1, ...], B)
    rows, product = (backend.empty((*lead, (H + 1) * B * N, H), W.dtype) for _ in range(2))
    factor, products = backend.empty((*lead, *block), W.dtype), _products(backend, product, rows, W)
    scale_, enter_ = backend.fused(_scale), backend.fused(_enter)
    along = factor if mask is None else mask[..., None, :, :]

    def parts(a: Array) -> tuple[Array, Array]:
        a = xp.reshape(a, (*lead, H + 1, B * N * H))
        return a[..., :H, :], xp.reshape(a[..., H, :], (*lead, *block))

    (basis, own), (basis_product, own_product) = parts(rows), parts(product)
    by_unit = xp.reshape(product, (*lead, H + 1, *block))[..., :H, :, :, :]
    # The last step needs no product: that of diag(f') and W_hh. Nothing of the chunk's own came before it.
    scale_(by_unit, xp.moveaxis(slopes[length - 1, ...], -1, -3)[..., None], W[..., :, None, None, :])
    own_product[...] = 0
    steps = (backend.rows(a, reverse=True) for a in (slopes[: length - 1, ...], direct[1:, ...]))
    for slope, into in zip(*steps, strict=True):
        if mask is not None:
            own_product *= along
        enter_(own, factor, slope, own_product, into)
        if mask is not None:
            factor *= along
        scale_(basis, basis_product, xp.reshape(factor, (*lead, 1, B * N * H)))
        for out, a in products:
            backend.matmul_(out, a, W)
    # Each J in one piece, where the rows were.
    jacobians = xp.reshape(xp.reshape(rows, (-1,))[: B * math.prod(lead) * N * H * H], (B, *lead, N, H, H))
    jacobians[...] = xp.moveaxis(by_unit, (-3, -4), (0, -2))
    return jacobians, xp.moveaxis(own_product, -3, 0)


def _join_(backend: Backend, dstates: Array, jacobians: Array, own: Array, mask: Array | None) -> None:
    """The total gradient of every chunk's last state, from that of the last one, which is there."""
    B, *row = own.shape
    sent = backend.empty((*row[:-1], 1, row[-1]), own.dtype)
    sent_row, add_both_ = sent[..., 0, :], backend.fused(_add_both)
    last = dstates[dstates.shape[0] // (B + 1) :: dstates.shape[0] // (B + 1), ...]
    after, before = tee(backend.rows(last, reverse=True))
    next(before)
    chunks = (backend.rows(a, reverse=True) for a in (jacobians, own))
    for J, out, dh, dh_before in zip(*chunks, after, before):  # noqa: B905 (after has one row more)
        backend.matmul_(sent, dh[..., None, :], J)
        if mask is None:
            add_both_(dh_before, sent_row, out)
        else:
            sent_row += out
            sent_row *= mask
            dh_before += sent_row


def _all_chunks_(backend: Backend, W: Array, dstates: Array, dz: Array, C: int, mask: Array | None) -> None:
    """All chunks at once, each with the total gradient of its last state in place of what arrived there."""
    xp, (_, *lead, N, H) = backend.xp, dz.shape
    rows, product = (backend.empty((*lead, C * N, H), W.dtype) for _ in range(2))
    row, sent = (xp.reshape(a, (*lead, C, N, H)) for a in (rows, product))
    step_, products = backend.fused(_through_step), _products(backend, product, rows, W)
    along = None if mask is None else mask[..., None, :, :]
    product[...] = 0
    steps = (backend.rows(_by_step(backend, a, C), reverse=True) for a in (dz, dstates[1:, ...]))
    for dz_row, dh in zip(*steps, strict=True):
        step_(dz_row, dh, sent, row)
        for out, a in products:
            backend.matmul_(out, a, W)
        if along is not None:
            sent *= along
    first = dstates[0, ...]
    first += sent[..., 0, :, :]  # what the other chunks send is in the states between them already


def _scale(ops: Elementwise) -> Callable[..., None]:
    def scale(out: Array, a: Array, b: Array) -> None:
        ops.multiply_(out, a, b)

    return scale


def _enter(ops: Elementwise) -> Callable[..., None]:
    def enter(own: Array, factor: Array, slope: Array, product: Array, direct: Array) -> None:
        factor[...] = slope
        ops.add_(own, product, direct)  # dh_t of the chunk's own
        ops.multiply_(own, own, factor)  # dz_t

    return enter


def _add_both(ops: Elementwise) -> Callable[..., None]:
    def add_both(out: Array, a: Array, b: Array) -> None:
        ops.add_(out, out, a)
        ops.add_(out, out, b)

    return add_both


def _through_step(ops: Elementwise) -> Callable[..., None]:
    def through_step(dz: Array, dh: Array, sent: Array, row: Array) -> None:
        ops.add_(dh, dh, sent)  # (3.1), of the step after
        ops.multiply_(row, dz, dh)
        dz[...] = row

    return through_step


def rows_of_a_chunk(hidden_size: int) -> int:
    """How many rows ``(..., N, H)`` a chunk takes in :func:`backward_parallel_` beside its arguments.

    Its H unit vectors and its own gradient, their products with ``W_hh``, and the derivatives of a step. Where a
    backend has no ``out=`` (neither NumPy nor CuPy), temporary arrays come on top.
    """
    return 2 * (hidden_size + 1) + 1
