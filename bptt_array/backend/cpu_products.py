"""The product of a time step on a CPU: the same few rows times the same matrix, again and again.

A BLAS copies both factors into the order of its kernel before it multiplies, which is half of the time where there are
few rows. OpenBLAS leaves that out for small products on cores with AVX-512, so there a product is cut into small ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from .portable import Array
from .workers import workers

Product = Callable[[Array], None]

#: BLAS multiplies by a transposed matrix of a few hundred rows at about two thirds of its speed; a copy in
#: order costs about as much as is lost over this many rows of the other factor (measured at H = 64 to 512).
_ROWS_THAT_PAY_FOR_A_COPY = 128

#: Rows of a matrix that lie a multiple of this many bytes apart fall on the same few lines of a cache: a product with
#: them takes up to a quarter longer (4H = 1024 and 2048 in float32), so there is one more line between them.
_PAGE, _LINE = 1024, 64

#: Cores for which OpenBLAS (0.3.17 and later) has kernels for small products, and how many multiply-adds are small.
_CORES, _SMALL = frozenset({"SkylakeX", "Cooperlake", "SapphireRapids"}), 10**6
#: Columns of a small product in bytes, and rows that it has at least, where there are so many (measured on AMD Zen 4
#: with H = 128 to 1024: 0.3 to 0.9 of the time of one product).
_COLUMNS, _ROWS = 256, 8
#: Where a BLAS shares products out to its threads, so many rows or multiply-adds are faster in one piece.
_SHARED_ROWS, _SHARED = 32, 1 << 22


class _Copies:
    """Copies of matrices that the parts of a call share while any of them needs one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: WeakValueDictionary[Any, Array] = WeakValueDictionary()

    def get(self, key: Any, make: Callable[[], Array]) -> Array:
        with self._lock:
            found = self._found.get(key)
            if found is None:
                found = self._found[key] = make()
            return found


_copies: ContextVar[_Copies | None] = ContextVar("copies of this call", default=None)


@contextmanager
def shared_copies() -> Iterator[None]:
    """Context for the parts of a call, which share what is copied; the matrices must stay as they are meanwhile."""
    token = _copies.set(_Copies())
    try:
        yield
    finally:
        _copies.reset(token)


def _copied(W: Array, how: str, copy: Callable[[Array], Array]) -> Array:
    copies = _copies.get()
    if copies is None:
        return copy(W)
    key = W.__array_interface__["data"], W.shape, W.strides, W.dtype, how
    return copies.get(key, lambda: copy(W))


def product_with(W: Array, N: int, steps: int) -> tuple[Product, Array]:
    """A function ``(a)`` that does ``out <- a @ W``, and that ``out (..., N, M)``, for ``steps`` calls.

    ``W (..., F, M)``; ``a (..., N, F)`` broadcasts with it.
    """
    F, M = W.shape[-2:]
    if steps * N < _ROWS_THAT_PAY_FOR_A_COPY:
        return _whole(W, N)
    block = _block_of(N, F, M, W.itemsize)
    if block is not None:
        return _blocked(W, N, *block)
    return _whole(_copied(W, "whole", _in_order), N)


def _in_order(W: Array) -> Array:
    ordered = _rows_apart(W.shape, W.dtype)
    ordered[...] = W
    return ordered


def _whole(W: Array, N: int) -> tuple[Product, Array]:
    out = _rows_apart((*W.shape[:-2], N, W.shape[-1]), W.dtype)
    if W.ndim == 2 and out.flags.c_contiguous and (W.flags.c_contiguous or W.flags.f_contiguous):
        return lambda a: a.dot(W, out), out  # np.matmul with half a microsecond less around it
    return lambda a: np.matmul(a, W, out), out


def _rows_apart(shape: tuple[int, ...], dtype: Any) -> Array:
    """An empty array, with a gap behind each row where rows would fall on each other in the cache."""
    width, itemsize = shape[-1], np.dtype(dtype).itemsize
    if len(shape) > 2 or width * itemsize < 2 * _PAGE or width * itemsize % _PAGE:
        return np.empty(shape, dtype)
    return np.empty((*shape[:-1], width + _LINE // itemsize), dtype)[..., :width]


def _block_of(N: int, F: int, M: int, itemsize: int) -> tuple[int, int] | None:
    """Rows and columns of the small products that an ``(N, F) @ (F, M)`` is cut into; None if it is better whole."""
    multiply_adds = N * F * M
    if N == 1 or multiply_adds <= _SMALL:
        return None
    cores = workers.cores
    if not cores or not cores <= _CORES:
        return None
    if N >= _SHARED_ROWS and multiply_adds > _SHARED and workers.of_a_product > 1:
        return None
    for columns in (_COLUMNS // itemsize, _COLUMNS // itemsize // 2):
        most = _SMALL // (F * columns)
        rows = next((rows for rows in range(min(N, most), 0, -1) if N % rows == 0), 0)
        if rows >= min(N, _ROWS) and columns <= M:
            return rows, columns
    return None


def _blocked(W: Array, N: int, rows: int, columns: int) -> tuple[Product, Array]:
    *lead, F, M = W.shape
    count, last = M // columns, M - M % columns

    def one_by_one(W: Array) -> Array:  # columns of one block after the other, each in one piece
        return np.ascontiguousarray(np.moveaxis(W[..., :last].reshape(*lead, F, count, columns), -2, -3))

    blocks = _copied(W, f"blocks of {columns}", one_by_one)[..., None, :, :]  # each for all rows
    rest = np.ascontiguousarray(W[..., last:])
    out = np.empty((*lead, N, M), W.dtype)
    of_blocks = np.moveaxis(out[..., :last].reshape(*lead, N // rows, rows, count, columns), -2, -4)
    of_rest = out[..., last:]

    def product_(a: Array) -> None:
        np.matmul(a.reshape(*a.shape[:-2], 1, -1, rows, F), blocks, of_blocks)
        if last < M:
            np.matmul(a, rest, of_rest)

    return product_, out
