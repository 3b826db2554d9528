"""§3.2-3.4: the gradients of the weights, sums over all steps and sequences.

Each is one matrix product over a whole segment. Its factors are rows, ``(..., S*N, F)``: those of all S steps and N
sequences, one below the other (:func:`flat`).

A sum of n terms that is formed one after the other has a relative error of up to ``n eps / 2``, and equal terms come
near that: in float32, 1 % for a million. So long ones are sums of sums, of the rows of a segment
(:func:`add_weight_sum`) and from segment to segment (:class:`Sums`): no number is rounded more than a few hundred
times, however many steps there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ..backend.portable import Array, Backend

#: How many parts are added up one after the other before they count as one.
PARTS = 64
#: Rows of a product that are added up one after the other, and those of a block of one that has more.
ROWS, BLOCK = 512, 256
#: Numbers of the products of blocks that there are at once.
NUMBERS = 1 << 16
#: The BLAS of a CPU adds up a product of so many numbers or more in blocks of a few hundred rows by itself.
SMALL_PRODUCT = 1024


class Sums:
    """Sums by name, of any number of parts each: 64 make one of the next level, 64 of those one of the level above.

    An array that is added belongs to the sum. There is one array for every level that has been reached.
    """

    def __init__(self) -> None:
        self._levels: dict[str, list[tuple[int, Array]]] = {}

    def add(self, name: str, part: Array) -> None:
        """``sum += part``; the first part becomes the sum."""
        levels = self._levels.get(name)
        if levels is None:
            self._levels[name] = [(1, part)]
            return
        for k, (count, there) in enumerate(levels):
            if not count:
                levels[k] = 1, part
                return
            there += part
            if count + 1 < PARTS:
                levels[k] = count + 1, there
                return
            levels[k] = 0, None
            part = there
        levels.append((1, part))

    def totals(self) -> dict[str, Array]:
        """All sums. They are those of this object: what is added later may be added to the same arrays."""
        for levels in self._levels.values():
            while len(levels) > 1:
                (count, lower), (count_above, upper) = levels[:2]
                if count and count_above:
                    upper += lower
                levels[:2] = [(count_above, upper) if count_above else (count, lower)]
        return {name: levels[0][1] for name, levels in self._levels.items()}


def levels_of(parts: int) -> int:
    """How many arrays :class:`Sums` has at most for one name after so many parts."""
    levels = 1
    while parts >= PARTS:
        parts, levels = parts // PARTS, levels + 1
    return levels


def add_weight_sums(
    backend: Backend, sums: Sums, dz: Array, h_before: Array, x: Array, of_input: Callable[[], Array]
) -> None:
    """Add what the steps of a segment contribute to the gradients of ``W_hh``, ``W_xh`` and ``b_h``.

    ``dz_t`` is the total one, by the ``dh_t`` of (3.1): with the direct part (3.2) alone these are not the gradient.

    Parameters
    ----------
    dz : (..., S*N, G*H), rows
        Gradients of ``W_hh h_{t-1}``.
    h_before : (S, ..., N, H)
        The states *before* each step, ``h_{t-1}``.
    x : (S, ..., N, I)
    of_input : () -> (..., S*N, G*H), rows
        Called after the sum for ``W_hh``: gradients of ``W_xh x_t + b_h``. They are dz itself, but of cells such as
        the GRU, which write them over dz.
    """
    add_weight_sum(backend, sums, "W_hh", dz, h_before)  # §3.3: dW_hh = sum_t dz_t h_{t-1}^T
    add_weight_sum(backend, sums, "W_xh", dz := of_input(), x)  # §3.2: dW_xh = sum_t dz_t x_t^T
    add_bias_sum(backend, sums, "b_h", dz)  # §3.4: db_h = sum_t dz_t


def add_weight_sum(backend: Backend, sums: Sums, name: str, dz: Array, a: Array) -> None:
    """Add ``sum_t dz_t a_t^T``, ``(..., G*H, F)``, of rows ``dz (..., S*N, G*H)`` and ``a (S, ..., N, F)``."""
    a = flat(backend, a, dz.ndim)
    K, M, F = dz.shape[-2], dz.shape[-1], a.shape[-1]
    if K <= ROWS or _is_short(backend, dz, 8192 if min(M, F) >= 16 and M * F >= SMALL_PRODUCT else ROWS):
        sums.add(name, backend.xp.matmul(dz.mT, a))
        return
    numbers = math.prod(dz.shape[:-2]) * M * F  # of all members, where they share what they read too
    for dz_blocks, a_blocks in zip(*(_blocks(backend, rows, numbers) for rows in (dz, a)), strict=True):
        sums.add(name, backend.xp.sum(backend.xp.matmul(dz_blocks.mT, a_blocks), axis=-3))


def add_bias_sum(backend: Backend, sums: Sums, name: str, dz: Array) -> None:
    """Add ``sum_t dz_t``, ``(..., G*H)``, of rows: a product with ones (faster than a sum over leading axes)."""
    xp = backend.xp
    K, F = dz.shape[-2:]
    if K <= ROWS or _is_short(backend, dz, 2048 if F >= 16 else ROWS):
        sums.add(name, xp.matmul(backend.ones((1, K), dz.dtype), dz)[..., 0, :])
        return
    for blocks in _blocks(backend, dz, math.prod(dz.shape[:-2]) * F):
        ones = backend.ones((1, blocks.shape[-2]), dz.dtype)
        sums.add(name, xp.sum(xp.matmul(ones, blocks), axis=-3)[..., 0, :])


def _is_short(backend: Backend, rows: Array, limit: int) -> bool:
    """Whether so many rows may be one product: at most ``limit`` on NumPy; in float64 any number."""
    return (backend.name == "cpu" and rows.shape[-2] <= limit) or float(backend.xp.finfo(rows.dtype).eps) < 1e-12


def _blocks(backend: Backend, rows: Array, numbers: int) -> Iterator[Array]:
    """``rows (..., K, F)`` as blocks ``(..., B, rows, F)``, views; of each there will be so many ``numbers`` in all.

    B of them at once, at most 64: as many as are small together. What is left over comes as a block of its own.
    """
    *lead, K, F = rows.shape
    at_once = min(PARTS, max(1, NUMBERS // numbers))
    whole = K - K % BLOCK
    for start in range(0, whole, at_once * BLOCK):
        part = rows[..., start : min(whole, start + at_once * BLOCK), :]
        yield backend.xp.reshape(part, (*lead, -1, BLOCK, F))
    if whole < K:
        yield rows[..., None, whole:, :]


def flat(backend: Backend, a: Array, weight_ndim: int) -> Array:
    """``(S, ..., N, F)`` as one matrix ``(..., S*N, F)`` of rows.

    A view where the weights are one matrix; one copy where they are stacked.
    """
    xp = backend.xp
    if weight_ndim == 2:
        return xp.reshape(a, (-1, a.shape[-1]))
    a = xp.moveaxis(a, 0, -3)
    return xp.reshape(a, (*a.shape[:-3], -1, a.shape[-1]))
