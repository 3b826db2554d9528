"""Tokens as vectors: ``x_t = W_emb[token_t]``, the row of its token, and ``dW_emb[k]``, the sum of the ``dx_t`` of k.

Such a row is the product of ``W_emb^T`` with a one-hot vector: neither those vectors nor products with them are made.
"""

from __future__ import annotations

from ..backend.portable import Array, Backend
from .long_sums import PARTS, Sums
from .token_sums import TokenSums, Unfinished

_NAME = "W_emb"


def rows_of_tokens(backend: Backend, W_emb: Array, tokens: Array) -> Array:
    """The rows of ``W_emb ([E,] V, M)``, as one matrix ``(E*V, M)``, of tokens ``(S, [E or 1,] N)``: (S, [E,] N)."""
    *lead, V, _ = W_emb.shape
    return tokens + V * backend.arange(lead[0])[:, None] if lead else tokens


def look_up_(backend: Backend, x: Array, W_emb: Array, index: Array) -> None:
    """``x_t = W_emb[token_t]``: ``x (S, [E,] N, M)`` from the rows that :func:`rows_of_tokens` gives."""
    backend.take_rows_(x, backend.reshape(W_emb, (-1, W_emb.shape[-1])), index)


class RowSums(Unfinished):
    """The gradient of ``W_emb ([E,] V, M)`` as one array, to which rows are added by :meth:`Backend.add_rows_`.

    What 64 segments have added to it is one part of the level above: as exact as other long sums.
    """

    def __init__(self, backend: Backend, W_emb: Array) -> None:
        self._backend = backend
        self._like = W_emb
        self._levels = Sums()
        self._table: Array | None = None
        self._parts = 0

    def add_rows(self, dx: Array, index: Array) -> None:
        """Add ``dx (K, M)`` to the rows ``index (K,)``."""
        backend = self._backend
        if self._table is None:
            self._table = backend.zeros(self._like.shape, self._like.dtype)
        backend.add_rows_(backend.reshape(self._table, (-1, dx.shape[-1])), index, dx)
        self._parts += 1
        if self._parts == PARTS:
            self._levels.add(_NAME, self._table)
            self._table, self._parts = None, 0

    def total(self, *others: RowSums, onto: Array | None = None) -> Array:
        """The gradient, of others too, which all are used up: added to ``onto``, or an array that was theirs."""
        for each in (self, *others):
            for array in (each._levels.totals().get(_NAME), each._table):
                if onto is None:
                    onto = array
                elif array is not None:
                    onto += array
            each._table = None
        return self._backend.zeros(self._like.shape, self._like.dtype) if onto is None else onto


def embedding_sums(backend: Backend, W_emb: Array, most: int) -> RowSums | TokenSums:
    """Where the gradient of ``W_emb`` is added up, from at most so many tokens."""
    if backend.indexed_by_arrays:
        return TokenSums(backend, W_emb, most, by_rows=True)
    return RowSums(backend, W_emb)


class TiedSums(Unfinished):
    """The gradient of a matrix that is the embedding's and the readout's: the sum of both."""

    def __init__(self, of_embedding: Unfinished, of_readout: Array | None) -> None:
        self._of_embedding = of_embedding
        self._of_readout = of_readout

    def total(self, *others: TiedSums, onto: Array | None = None) -> Array:
        """Added up in an array of the readout's."""
        for each in (self, *others):
            if onto is None:
                onto = each._of_readout
            elif each._of_readout is not None:
                onto += each._of_readout
        return self._of_embedding.total(*[each._of_embedding for each in others], onto=onto)
