"""Sums of many terms that stay as exact as those of a few: sums of sums.

A sum of n terms that is formed one after the other has a relative error of up to ``n eps / 2``, and equal terms come
near that: in float32, 1 % for a million. Here no number is rounded more than a few hundred times, however many steps
there are: neither among the rows of a segment (:func:`add_product`) nor from segment to segment (:class:`Sums`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from ..backend.portable import Array, Backend

#: How many parts are added up one after the other before they count as one.
PARTS = 64
#: Rows of a product that are added up one after the other, and those of a block of one that has more.
ROWS, BLOCK = 512, 256
#: Numbers of the products of blocks that there are at once.
NUMBERS = 1 << 16
#: Rows of a product that is added to another, at least and in multiples, and how many bytes of it there are at once.
ROWS_AT_ONCE, BYTES_AT_ONCE = 64, 1 << 19
#: As NUMBERS, where there are sums of columns: this many bytes, or so many products, if those are more.
PRODUCT_BYTES, PRODUCTS = 1 << 26, 4
#: Rows that a block then has at least, and at most :data:`ROWS`.
FEWEST = 128
#: The BLAS of a CPU adds up a product of so many numbers or more in blocks of a few hundred rows by itself.
SMALL_PRODUCT = 1024


class TransposedProduct(NamedTuple):
    """``a^T b`` of rows ``a (K, M)`` and ``b (K, F)`` on NumPy, to be added to something without ever being whole."""

    backend: Backend
    a: Array
    b: Array

    def add_to_(self, there: Array) -> None:
        """``there += a^T b``, a few rows of it at a time: what is added is still in the cache."""
        a, b = self.a, self.b
        itemsize = self.backend.xp.finfo(b.dtype).bits // 8
        rows = max(ROWS_AT_ONCE, BYTES_AT_ONCE // (itemsize * b.shape[-1]) // ROWS_AT_ONCE * ROWS_AT_ONCE)
        for first in range(0, a.shape[-1], rows):
            part = slice(first, first + rows)
            there[part, :] += self.backend.xp.matmul(a[:, part].mT, b)


def _array(part: Array | TransposedProduct) -> Array:
    if isinstance(part, TransposedProduct):
        return part.backend.xp.matmul(part.a.mT, part.b)
    return part


class Sums:
    """Sums by name, of any number of parts each: 64 make one of the next level, 64 of those one of the level above.

    An array that is added belongs to the sum. There is one array for every level that has been reached. Parts may be
    ``waiting`` together with those of other sums.
    """

    def __init__(self, waiting: Waiting | None = None) -> None:
        self._levels: dict[str, list[tuple[int, Array]]] = {}
        self.waiting = waiting

    def add(self, name: str, part: Array | TransposedProduct) -> None:
        """``sum += part``; the first part becomes the sum."""
        levels = self._levels.get(name)
        if levels is None:
            self._levels[name] = [(1, _array(part))]
            return
        for k, (count, there) in enumerate(levels):
            if not count:
                levels[k] = 1, _array(part)
                return
            if isinstance(part, TransposedProduct):
                part.add_to_(there)
            else:
                there += part
            if count + 1 < PARTS:
                levels[k] = count + 1, there
                return
            levels[k] = 0, None
            part = there
        levels.append((1, part))

    def settle(self) -> None:
        """Add what is waiting: its arrays may be written to again."""
        if self.waiting is not None:
            self.waiting.settle()

    def totals(self) -> dict[str, Array]:
        """All sums. They are those of this object: what is added later may be added to the same arrays."""
        if self.waiting is not None:
            self.waiting.settle()
        found = {}
        for name, levels in self._levels.items():
            while len(levels) > 1:
                (count, lower), (count_above, upper) = levels[:2]
                if count and count_above:
                    upper += lower
                levels[:2] = [(count_above, upper) if count_above else (count, lower)]
            found[name] = levels[0][1]
        return found


class Waiting:
    """Rows that are to be added up, for any number of :class:`Sums`, in one launch: ``backend.column_sums``.

    They have to stay as they are until they are.
    """

    #: At so many they are added up without being asked: what is at hand stays little.
    MOST = 16

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._parts: list[tuple[Sums, str, tuple[int, ...]]] = []
        self._rows: list[Array] = []
        self._factors: list[float] = []

    @classmethod
    def on(cls, backend: Backend) -> Waiting | None:
        """Where sums are made together; None where each is made at once."""
        return cls(backend) if backend.sums_columns else None

    def add(self, sums: Sums, name: str, rows: Array, shape: tuple[int, ...], factor: float = 1.0) -> None:
        """``sums[name] += factor`` times the sum of ``rows (..., K, F)``, in the shape of a sum."""
        self._parts.append((sums, name, shape))
        self._rows.append(rows)
        self._factors.append(factor)
        if len(self._rows) == self.MOST:
            self.settle()

    def settle(self) -> None:
        """Add them up."""
        if not self._rows:
            return
        parts, rows, factors = self._parts, self._rows, self._factors
        self._parts, self._rows, self._factors = [], [], []
        totals = self._backend.column_sums(rows, factors)
        for (sums, name, shape), total in zip(parts, totals, strict=True):
            sums.add(name, self._backend.xp.reshape(total, shape))


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
        in_rows = a.ndim == 2 and not backend.temporaries and not backend.sums_columns
        sums.add(name, TransposedProduct(backend, a, b) if in_rows else backend.xp.matmul(a.mT, b))
        return
    if backend.sums_columns:
        _add_products_of_blocks(backend, sums, name, a, b)
        return
    numbers = math.prod(a.shape[:-2]) * M * F  # of all members, where they share what they read too
    for a_blocks, b_blocks in zip(*(_blocks(backend, rows, numbers) for rows in (a, b)), strict=True):
        sums.add(name, backend.xp.sum(backend.xp.matmul(a_blocks.mT, b_blocks), axis=-3))


def add_rows(backend: Backend, sums: Sums, name: str, rows: Array) -> None:
    """Add the sum of rows ``(..., K, F)``, ``(..., F)``: a product with ones (faster than a sum over leading axes).

    Where there are sums of columns, one of those, perhaps later: until ``sums.settle()`` the rows must stay.
    """
    xp = backend.xp
    if backend.sums_columns:
        with_waiting(backend, sums).add(sums, name, rows, (*rows.shape[:-2], rows.shape[-1]))
        return
    K, F = rows.shape[-2:]
    if K <= ROWS or _is_short(backend, rows, 2048 if F >= 16 else ROWS):
        sums.add(name, xp.matmul(backend.ones((1, K), rows.dtype), rows)[..., 0, :])
        return
    for blocks in _blocks(backend, rows, math.prod(rows.shape[:-2]) * F):
        ones = backend.ones((1, blocks.shape[-2]), rows.dtype)
        sums.add(name, xp.sum(xp.matmul(ones, blocks), axis=-3)[..., 0, :])


def with_waiting(backend: Backend, sums: Sums) -> Waiting:
    """Where parts of a sum wait; one is made where there is none."""
    if sums.waiting is None:
        sums.waiting = Waiting(backend)
    return sums.waiting


def _add_products_of_blocks(backend: Backend, sums: Sums, name: str, a: Array, b: Array) -> None:
    """Products of blocks of a few hundred rows, of as many at once as may be; their sum is one of columns."""
    *lead, K, M = a.shape
    F, xp = b.shape[-1], backend.xp
    numbers, rows = math.prod(lead) * M * F, rows_of_block(K)
    at_once = max(PRODUCTS, PRODUCT_BYTES * 8 // (xp.finfo(a.dtype).bits * numbers))
    waiting, whole = with_waiting(backend, sums), K - K % rows
    for start in range(0, whole, at_once * rows):
        part = slice(start, min(whole, start + at_once * rows))
        blocks = [xp.reshape(of[..., part, :], (*of.shape[:-2], -1, rows, of.shape[-1])) for of in (a, b)]
        count = blocks[0].shape[-3]
        rest = part.stop == whole < K  # fewer rows than a block has
        products = backend.empty((*lead, count + rest, M, F), a.dtype)
        backend.transposed_products_(products[..., :count, :, :], *blocks)
        if rest:
            backend.matmul_(products[..., count, :, :], a[..., whole:, :].mT, b[..., whole:, :])
        waiting.add(sums, name, xp.reshape(products, (*lead, count + rest, M * F)), (*lead, M, F))


@lru_cache(maxsize=256)
def rows_of_block(K: int) -> int:
    """Into how many rows a sum of products is cut up: so that nothing is left over, if that can be."""
    return next((rows for rows in range(ROWS, FEWEST - 1, -1) if K % rows == 0), ROWS)


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
