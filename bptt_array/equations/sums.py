"""§3.2-3.4: the gradients of the weights, sums over all steps and sequences.

Each is one matrix product over a whole segment. Its factors are rows, ``(..., S*N, F)``: those of all S steps and N
sequences, one below the other (:func:`flat`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..backend.portable import Array, Backend
from .long_sums import Sums, add_product, add_rows
from .token_sums import TokenSums


def add_weight_sums(
    backend: Backend,
    sums: Sums,
    dz: Array,
    h_before: Array,
    x: Array,
    of_input: Callable[[], Array],
    by_token: TokenSums | None = None,
    *,
    bias: bool = True,
) -> None:
    """Add what the steps of a segment contribute to the gradients of ``W_hh``, ``W_xh`` and ``b_h``.

    ``dz_t`` is the total one, by the ``dh_t`` of (3.1): with the direct part (3.2) alone these are not the gradient.

    Parameters
    ----------
    dz : (..., S*N, R*H), rows
        Gradients of ``W_hh h_{t-1}``.
    h_before : (S, ..., N, H)
        The states *before* each step, ``h_{t-1}``.
    x : (S, ..., N, I)
    of_input : () -> (..., S*N, G*H), rows
        Called after the sum for ``W_hh``: gradients of ``W_xh x_t + b_h``. They are dz itself, but of cells such as
        the GRU, which write them over dz.
    by_token : TokenSums, optional
        Where the sum for ``W_xh`` is made if x are tokens ``(S, ..., N)``.
    bias : bool
        Whether there is ``b_h``.
    """
    add_input = by_token.add if by_token is not None else partial(add_weight_sum, backend, sums, "W_xh")
    add_bias = add_rows if bias else lambda *there_is_none: None
    add_weight_sum(backend, sums, "W_hh", dz, h_before)  # §3.3: dW_hh = sum_t dz_t h_{t-1}^T
    add_input(dz := of_input(), x)  # §3.2: dW_xh = sum_t dz_t x_t^T
    add_bias(backend, sums, "b_h", dz)  # §3.4: db_h = sum_t dz_t


def add_weight_sum(backend: Backend, sums: Sums, name: str, dz: Array, a: Array) -> None:
    """Add ``sum_t dz_t a_t^T``, ``(..., G*H, F)``, of rows ``dz (..., S*N, G*H)`` and ``a (S, ..., N, F)``."""
    add_product(backend, sums, name, dz, flat(backend, a, dz.ndim))


def flat(backend: Backend, a: Array, weight_ndim: int) -> Array:
    """``(S, ..., N, F)`` as one matrix ``(..., S*N, F)`` of rows.

    A view where the weights are one matrix; one copy where they are stacked.
    """
    if weight_ndim == 2:
        return backend.reshape(a, (-1, a.shape[-1]))
    a = backend.xp.moveaxis(a, 0, -3)
    return backend.reshape(a, (*a.shape[:-3], -1, a.shape[-1]))
