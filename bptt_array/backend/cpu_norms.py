"""Norms of all gradients of a network on a CPU, and gradients clipped by them, with no array beside the new ones.

Squares are summed as they are, and where that is not safe once more, of numbers divided by the largest. A sum is of
blocks of one size, in float64, so that few roundings pile up and nothing depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .cpu_updates import shared_out
from .portable import Array

#: Numbers whose squares a BLAS sums up in float32: so few that the sum is as exact as one number, and that no BLAS
#: shares them out to its threads.
_BLOCK = 1 << 10
#: What a thread takes at a time: temporary arrays are no larger.
_PIECE = 1 << 18
#: Fewer numbers are not shared out: to begin and to end a thread's work takes as long as to read a million.
_SHARED = 1 << 22

_Threads = Callable[[], int]


class _Piece(NamedTuple):
    row: int
    members: slice
    columns: slice
    block: int  # the first of the blocks of its members


class _Rows:
    """Views ``(E, numbers)`` of arrays of one dtype, in the order of their memory, and the pieces of them."""

    def __init__(self, rows: Sequence[Array], threads: _Threads) -> None:
        self.rows, self.threads = rows, threads
        self.blocks = sum(-(-row.shape[1] // _BLOCK) for row in rows)
        self.pieces = list(self._pieces())

    def _pieces(self) -> Iterator[_Piece]:
        """Of about :data:`_PIECE` numbers; columns begin at multiples of that, whatever members there are."""
        block = 0
        for k, row in enumerate(self.rows):
            E, size = row.shape
            together = max(1, _PIECE // size)
            for e in range(0, E, together):
                for begin in range(0, size, _PIECE):
                    yield _Piece(k, slice(e, e + together), slice(begin, begin + _PIECE), block + begin // _BLOCK)
            block += -(-size // _BLOCK)

    def each(self, do: Callable[[_Piece], None]) -> None:
        size = sum(row.size for row in self.rows)
        shared_out(lambda: do, self.pieces, self.threads() if size >= _SHARED else 1)

    def of(self, members: Array) -> _Rows:
        """Copies of those of some members."""
        return _Rows([row[members] for row in self.rows], self.threads)


def largest_entries(grads: Mapping[str, Array], members: int | None, threads: _Threads) -> dict[str, Array] | None:
    """The largest absolute value of each array, of each of its members; None where pieces do not pay."""
    if sum(a.size for a in grads.values()) < _SHARED or (views := _views(list(grads.values()), members)) is None:
        return None
    whole = _Rows(views, threads)
    found = [np.empty((len(row), -(-row.shape[1] // _PIECE)), row.dtype) for row in whole.rows]

    def look(piece: _Piece) -> None:
        entries = whole.rows[piece.row][piece.members, piece.columns]  # which min finds in the cache
        place = piece.members, piece.columns.start // _PIECE
        found[piece.row][place] = np.maximum(entries.max(axis=-1), -entries.min(axis=-1))

    whole.each(look)
    of = {name: parts.max(axis=-1) for name, parts in zip(grads, found, strict=True)}
    return of if members is not None else {name: values[0] for name, values in of.items()}


def global_norm(grads: Mapping[str, Array], members: int | None, threads: _Threads) -> Array | None:
    """The Euclidean norm of all arrays together, of each of their members; None where they are not alike."""
    views = _views([grads[name] for name in sorted(grads)], members)
    if views is None:
        return None
    dtype = views[0].dtype
    scale, root = _scaled_norms(_Rows(views, threads), float(np.finfo(dtype).smallest_normal))
    norms = (scale * root).astype(dtype)
    return norms if members is not None else norms[0]


def clipped(
    grads: Mapping[str, Array], max_norm: float, members: int | None, threads: _Threads
) -> dict[str, Array] | None:
    """New arrays, scaled by ``min(1, max_norm / norm)`` of that norm; None where they are not alike."""
    names = sorted(grads)
    views = _views([grads[name] for name in names], members)
    if views is None:
        return None
    whole = _Rows(views, threads)
    scale, root = _scaled_norms(whole, min(1.0, max_norm))  # such that bound does not overflow
    bound = max_norm / scale
    factor = (bound / np.maximum(root, bound)).astype(views[0].dtype)[:, None]  # exactly 1 where nothing is to be done
    new = {name: np.empty_like(grad, subok=False) for name, grad in grads.items()}
    into = _views([new[name] for name in names], members)
    assert into is not None

    def multiply(piece: _Piece) -> None:
        place = piece.members, piece.columns
        np.multiply(views[piece.row][place], factor[piece.members], into[piece.row][place])

    whole.each(multiply)
    return new


def _views(arrays: Sequence[Array], members: int | None) -> list[Array] | None:
    """``(E, numbers)`` of arrays of one dtype, in the order of their memory; None where there are none."""
    dtype = arrays[0].dtype
    if not dtype.isnative:
        return None
    views = []
    for a in arrays:
        if a.dtype != dtype:
            return None
        of_members = np.asarray(a)[None] if members is None else a
        if not of_members[0].flags.c_contiguous:
            if not of_members[0].flags.f_contiguous:
                return None
            of_members = of_members.transpose(0, *range(of_members.ndim - 1, 0, -1))
        if len(of_members) > 1 and abs(of_members.strides[0]) < of_members[0].nbytes:
            return None  # members that share memory, as after broadcast_to, which a new array is not to do
        views.append(of_members.reshape(len(of_members), -1))
    return views


def _scaled_norms(whole: _Rows, least: float) -> tuple[Array, Array]:
    """``(scale, root)`` of every member, in float64, with norm = scale * root.

    ``scale`` is 1; or the largest entry, and at least ``least``, where squares overflow or too many may underflow.
    """
    total, limits = _sums_of_squares(whole), np.finfo(whole.rows[0].dtype)
    scale = np.ones_like(total)
    # What underflows is less than the smallest normal number, and all of it no more than a rounding of such a sum.
    enough = float(limits.smallest_normal) / float(limits.eps) * sum(row.shape[1] for row in whole.rows)
    unsafe = np.flatnonzero((total < enough) | (total == np.inf))
    if unsafe.size:
        some = whole if unsafe.size == total.size else whole.of(unsafe)
        largest = np.max([np.maximum(row.max(axis=-1), -row.min(axis=-1)) for row in some.rows], axis=0)
        scale[unsafe] = np.clip(largest.astype(np.float64), least, float(limits.max))
        total[unsafe] = _sums_of_squares(some, scale[unsafe])
    return scale, np.sqrt(total)


def _sums_of_squares(whole: _Rows, scale: Array | None = None) -> Array:
    """Of every member ``(E,)`` in float64, of numbers divided by its scale if there is one."""
    sums = np.empty((len(whole.rows[0]), whole.blocks))

    def add_up(piece: _Piece) -> None:
        entries = whole.rows[piece.row][piece.members, piece.columns]
        if scale is not None:
            entries = entries / scale[piece.members, None]
        E, size = entries.shape
        count = size // _BLOCK
        if count:
            blocks = entries[:, : count * _BLOCK].reshape(E, count, _BLOCK)
            sums[piece.members, piece.block : piece.block + count] = np.vecdot(blocks, blocks)
        if rest := size % _BLOCK:
            sums[piece.members, piece.block + count] = np.vecdot(entries[:, -rest:], entries[:, -rest:])

    with np.errstate(over="ignore", under="ignore"):
        whole.each(add_up)
        return sums.sum(axis=-1)
