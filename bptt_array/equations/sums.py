"""The sums over all steps, §3.2-3.4: one matrix product over a segment each."""

from __future__ import annotations

from ..backend.portable import Array, Backend


def flat(backend: Backend, a: Array, weight_ndim: int) -> Array:
    """``(S, ..., N, K)`` as one matrix ``(..., S*N, K)`` of rows.

    A view where the weights are one matrix; one copy where they are stacked.
    """
    xp = backend.xp
    if weight_ndim == 2:
        return xp.reshape(a, (-1, a.shape[-1]))
    a = xp.moveaxis(a, 0, -3)
    return xp.reshape(a, (*a.shape[:-3], -1, a.shape[-1]))


def weight_sum(backend: Backend, dz: Array, a: Array) -> Array:
    """§3.2, §3.3: ``sum_t dz_t a_t^T``, ``(..., G*H, K)``, over a segment and its sequences in one product.

    Both are rows as :func:`flat` makes them; ``a`` is ``x`` for ``dW_xh`` and the states *before* each step,
    ``hs[:-1]``, for ``dW_hh``.
    """
    product: Array = backend.xp.matmul(dz.mT, a)
    return product


def bias_sum(backend: Backend, dz: Array) -> Array:
    """§3.4: ``sum_t dz_t``, ``(..., G*H)``, of rows: a product with ones (faster than a sum over leading axes)."""
    ones = backend.ones((1, dz.shape[-2]), dz.dtype)
    return backend.xp.matmul(ones, dz)[..., 0, :]


def add_to(sums: dict[str, Array], name: str, part: Array) -> None:
    """``sums[name] += part``; the first part becomes the sum."""
    if name in sums:
        sums[name] += part
    else:
        sums[name] = part
