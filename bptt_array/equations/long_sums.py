"""Sums of many terms that stay as exact as those of a few: sums of sums.

A sum of n terms that is formed one after the other has a relative error of up to ``n eps / 2``, and equal terms come
near that: in float32, 1 % for a million. Here no number is rounded more than a few hundred times, however many steps
there are: neither among the rows of a segment (:func:`add_product`) nor from segment to segment (:class:`Sums`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

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
        found = {}
        for name, levels in self._levels.items():
            while len(levels) > 1:
                (count, lower), (count_above, upper) = levels[:2]
                if count and count_above:
                    upper += lower
                levels[:2] = [(count_above, upper) if count_above else (count, lower)]
            found[name] = levels[0][1]
        return found


def levels_of(parts: int) -> int:
    """How many arrays :class:`Sums` has at most for one name after so many parts."""
    levels = 1
    while parts >= PARTS:
        parts, levels = parts // PARTS, levels + 1
    return levels


def add_product(backend: Backend, sums: Sums, name: str, a: Array, b: Array) -> None:
    """Add ``a^T b``, ``(..., M, F)``, of rows ``a (..., K, M)`` and ``b (..., K, F)``: a sum of K terms."""
    K, M, F = a.shape[-2], a.shape[-1], b.shape[-1]
    if K <= ROWS or _is_short(backend, a, 8192 if min(M, F) >= 16 and M * F >= SMALL_PRODUCT else ROWS):
        sums.add(name, backend.xp.matmul(a.mT, b))
        return
    numbers = math.prod(a.shape[:-2]) * M * F  # of all members, where they share what they read too
    for a_blocks, b_blocks in zip(*(_blocks(backend, rows, numbers) for rows in (a, b)), strict=True):
        sums.add(name, backend.xp.sum(backend.xp.matmul(a_blocks.mT, b_blocks), axis=-3))


def add_rows(backend: Backend, sums: Sums, name: str, rows: Array) -> None:
    """Add the sum of rows ``(..., K, F)``, ``(..., F)``: a product with ones (faster than a sum over leading axes)."""
    xp = backend.xp
    K, F = rows.shape[-2:]
    if K <= ROWS or _is_short(backend, rows, 2048 if F >= 16 else ROWS):
        sums.add(name, xp.matmul(backend.ones((1, K), rows.dtype), rows)[..., 0, :])
        return
    for blocks in _blocks(backend, rows, math.prod(rows.shape[:-2]) * F):
        ones = backend.ones((1, blocks.shape[-2]), rows.dtype)
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
