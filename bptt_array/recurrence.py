"""The two time loops, and the matrix products around them. They know no cell by name.

A segment is S consecutive time steps. N sequences, I inputs, H hidden units; axes may stand between time
and N: states ``(S+1, ..., N, H)`` with weights ``(..., H, I)``, ``(..., H, H)`` and ``(..., H)``.
Only what depends on the step before is inside a loop: one product with ``W_hh`` and one elementwise
function, each way. Everything else is one product over the whole segment.
"""

from __future__ import annotations

from .backend import Array, Backend
from .cells import AddProduct, Elman


def flat(backend: Backend, a: Array, weight_ndim: int) -> Array:
    """``(S, ..., N, K)`` as one matrix ``(..., S*N, K)`` of rows.

    A view where the weights are one matrix; one copy where they are stacked.
    """
    xp = backend.xp
    if weight_ndim == 2:
        return xp.reshape(a, (-1, a.shape[-1]))
    a = xp.moveaxis(a, 0, -3)
    return xp.reshape(a, (*a.shape[:-3], -1, a.shape[-1]))


def project_(backend: Backend, rows: Array, x: Array, W_xh: Array, b_h: Array) -> None:
    """The part of (1.1) that needs no state: ``rows[t] <- W_xh x_t + b_h``.

    Parameters
    ----------
    rows : (S, ..., N, H)
        Rows 1.. of the states buffer.
    x : (S, ..., N, I)
    """
    if W_xh.ndim == 2:
        backend.matmul_(flat(backend, rows, 2), flat(backend, x, 2), W_xh.mT)
    else:
        backend.matmul_(rows, x, W_xh.mT)
    rows += b_h[..., None, :]


def forward_(backend: Backend, cell: Elman, add_product: AddProduct, hs: Array) -> None:
    """Run a segment forward, in place.

    Parameters
    ----------
    add_product : ``(out, a)``
        ``out += a @ W_hh^T``, from :meth:`Backend.accumulator`.
    hs : (S+1, ..., N, H)
        Row 0 is the state before the segment. Rows 1.. arrive as ``W_xh x_t + b_h``; each becomes ``h_t``.
    """
    h_before = hs[0, ...]
    step_ = cell.forward_(backend, add_product)
    for t in range(1, hs.shape[0]):
        row = hs[t, ...]
        step_(row, h_before)
        h_before = row


def backward_(backend: Backend, cell: Elman, add_product: AddProduct, hs: Array, dhs: Array, slopes: Array) -> Array:
    """Run a segment backward, in place: (3.1) by the total derivative.

    ``dh_t = (direct) + W_hh^T dz_{t+1}`` and ``dz_t = f'(z_t) * dh_t``: the product (3.3) of the Jacobians
    ``diag(f'(z_j)) W_hh`` is never formed, the loop multiplies the gradient by one of them in every step.

    Parameters
    ----------
    add_product : ``(out, a)``
        ``out += a @ W_hh``, from :meth:`Backend.accumulator`.
    hs : (S+1, ..., N, H)
        The states that :func:`forward_` left.
    dhs : (S, ..., N, H)
        Arrives as the part of ``dh_t`` that does not come through ``h_{t+1}`` inside this segment; each row
        becomes ``dz_t``.
    slopes : (S, ..., N, H)
        Room for ``f'(z_t)``; what it holds does not matter.

    Returns
    -------
    (..., N, H)
        ``W_hh^T dz_1``: what the segment hands to the state before it.
    """
    cell.slopes_(backend, slopes, hs[1:, ...])
    dh_before = backend.xp.zeros_like(hs[0, ...])
    dz_after = None
    for t in reversed(range(dhs.shape[0])):
        row = dhs[t, ...]
        if dz_after is not None:
            add_product(row, dz_after)  # dh_t = (direct) + W_hh^T dz_{t+1}
        cell.backward_(row, slopes[t, ...])  # dz_t = f'(z_t) * dh_t
        dz_after = row
    add_product(dh_before, dz_after)
    return dh_before


def weight_sum(backend: Backend, dz: Array, a: Array) -> Array:
    """§3.2, §3.3: ``sum_t dz_t a_t^T``, ``(..., H, K)``, over a segment and its sequences in one product.

    Both are rows as :func:`flat` makes them; ``a`` is ``x`` for ``dW_xh`` and the states *before* each step,
    ``hs[:-1]``, for ``dW_hh``.
    """
    product: Array = backend.xp.matmul(dz.mT, a)
    return product


def bias_sum(backend: Backend, dz: Array) -> Array:
    """§3.4: ``sum_t dz_t``, ``(..., H)``, of rows: a product with ones (faster than a sum over leading axes)."""
    ones = backend.ones((1, dz.shape[-2]), dz.dtype)
    return backend.xp.matmul(ones, dz)[..., 0, :]


def add_to(sums: dict[str, Array], name: str, part: Array) -> None:
    """``sums[name] += part``; the first part becomes the sum."""
    if name in sums:
        sums[name] += part
    else:
        sums[name] = part
