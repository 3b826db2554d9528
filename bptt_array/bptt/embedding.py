"""An embedding in front of the first layer, segment by segment: its vectors forward, and their gradients backward."""

from __future__ import annotations

import math

from ..backend.portable import Array, Backend
from ..equations.embedding import RowSums, embedding_sums, look_up_, rows_of_tokens
from ..equations.token_sums import TokenSums
from .batch import Batch
from .workspace import Loan, Scratch


class Embedding:
    """``W_emb ([E,] V, M)`` and what the segments of a batch have read of it, until it is released."""

    def __init__(self, backend: Backend, W_emb: Array, batch: Batch, arrays: Loan, rows: Scratch) -> None:
        self.backend = backend
        self.W_emb = W_emb
        self.row = (*batch.member_axis, batch.N, W_emb.shape[-1])
        self.most = batch.T * math.prod(self.row[:-1])
        self._arrays, self._longest = arrays, rows.longest
        self._kept: dict[int, tuple[Array, Array]] = {}

    def forward(self, start: int, tokens: Array) -> Array:
        """``x (S, [E,] N, M)`` of the tokens ``(S, [E or 1,] N)`` of the next segment."""
        index = rows_of_tokens(self.backend, self.W_emb, tokens)
        array = self._arrays.empty((self._longest, *self.row), self.W_emb.dtype)
        self._kept[start] = index, array
        x = array[: tokens.shape[0], ...]
        look_up_(self.backend, x, self.W_emb, index)
        return x

    def index(self, start: int) -> Array:
        """The rows that the segment from ``start`` on has read, (S, [E,] N)."""
        return self._kept[start][0]

    def release(self, start: int) -> None:
        """Let go of what a segment has read."""
        kept = self._kept.pop(start, None)
        if kept is not None:
            self._arrays.give_back(kept[1])


class EmbeddingBackward:
    """The gradient of ``W_emb``, from that of the input of the first layer, written to rows that it lends."""

    def __init__(self, embedding: Embedding, rows: Scratch) -> None:
        self.embedding = embedding
        self.sums: RowSums | TokenSums = embedding_sums(embedding.backend, embedding.W_emb, embedding.most)
        self._rows = rows

    def dx(self, start: int, stop: int) -> Array:
        """(S, [E,] N, M): where ``dx_t`` has to be written before :meth:`segment`."""
        return self._rows("dx", stop - start, self.embedding.row, self.embedding.W_emb.dtype)

    def segment(self, start: int, dx: Array) -> None:
        """``dW_emb[token_t] += dx_t`` of a segment."""
        backend = self.embedding.backend
        index = backend.reshape(self.embedding.index(start), (-1,))
        self.sums.add_rows(backend.reshape(dx, (-1, dx.shape[-1])), index)
