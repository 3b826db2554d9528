"""§3.2 for inputs that are tokens: ``dW_xh = sum_t dz_t x_t^T``, where ``x_t`` would be 0 but for one 1.

The column of a token is the sum of the ``dz_t`` of the steps that read it. Of a large vocabulary a batch has few:
one-hot rows would be nearly all zeros, and so would the gradient that every segment adds. Here only columns of tokens
that were read are summed up, as exactly as in ``long_sums.py``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from ..backend.portable import Array, Backend
from .long_sums import PARTS

#: Rows of dz that are added up by token at once: their product with which token is whose costs as much as the rest.
ROWS = 64
#: Columns that are written to the gradient at once: what is copied for that stays little.
COLUMNS = 256


class Unfinished(ABC):
    """A gradient that is no array yet: those of other parts of a batch may be added."""

    @abstractmethod
    def total(self, *others: Any, onto: Array | None = None) -> Array:
        """The sum of this one and of others of its kind, added to ``onto`` if that is given."""


class TokenSums(Unfinished):
    """The gradient of ``W (..., F, V)``, or ``by_rows`` (..., V, F), from rows of dz and their tokens.

    A token has one row of a table from when it first comes. Once 64 parts have been added to a row it is one part of
    that row in the table above, and 0 again: no number is rounded more than a few hundred times.

    Parameters
    ----------
    most : int
        How many tokens there are to come: there are no more columns than those.
    """

    def __init__(self, backend: Backend, W: Array, most: int, *, by_rows: bool = False) -> None:
        self._backend = backend
        self._by_rows = by_rows
        self._shape = W.shape
        self._lead: tuple[int, ...] = W.shape[:-2]
        self._width, self._vocabulary = W.shape[-2:][::-1] if by_rows else W.shape[-2:]
        self._dtype = W.dtype
        columns = math.prod(self._lead) * self._vocabulary
        self._most = min(columns, most)
        self._places = backend.zeros((columns,), backend.integer)  # of a token, from 1 on; 0: it has not come
        self._known = 0
        self._levels: list[tuple[Array, Array]] = []  # of every token a sum, and of how many parts

    @classmethod
    def on(cls, backend: Backend, W: Array, most: int) -> TokenSums | None:
        """For a large vocabulary; None where there are one-hot rows."""
        return cls(backend, W, most) if backend.sums_by_token(W.shape[-1], W.shape[-2]) else None

    def add(self, dz: Array, tokens: Array) -> None:
        """Add rows ``dz (..., S*N, F)`` to the columns of ``tokens (S, ..., N)``, whose axes in between may be 1."""
        xp, lead = self._backend.xp, self._lead
        if lead:  # every member has a vocabulary of its own, one after the other
            of_member = self._vocabulary * xp.reshape(self._backend.arange(math.prod(lead)), (*lead, 1))
            tokens = xp.moveaxis(tokens + of_member, 0, -2)
        self.add_rows(xp.reshape(dz, (-1, self._width)), xp.reshape(tokens, (-1,)))

    def add_rows(self, rows: Array, tokens: Array) -> None:
        """Add ``rows (K, F)`` of ``tokens (K,)``, those of a member counted on from those of the one before it."""
        for start in range(0, rows.shape[0], ROWS):
            part = slice(start, start + ROWS)
            distinct, sums = self._backend.sums_by_index(rows[part, :], tokens[part], self._places.shape[0])
            self._add(0, self._places_of(distinct), sums)

    def _places_of(self, tokens: Array) -> Array:
        """Rows of the tables, which new tokens are given."""
        places = self._places[tokens]
        new = tokens[places == 0]
        if new.shape[0]:
            self._places[new] = self._backend.arange(new.shape[0]) + self._known + 1
            self._known += new.shape[0]
            places = self._places[tokens]
        return places - 1

    def _add(self, level: int, places: Array, sums: Array) -> None:
        """Add one part to each of some rows."""
        backend = self._backend
        if level == len(self._levels):
            table = backend.zeros((self._most, self._width), self._dtype)
            self._levels.append((table, backend.zeros((self._most,), backend.dtype("int8"))))
        table, parts = self._levels[level]
        table[places] += sums
        parts[places] += 1
        full = places[parts[places] == PARTS]
        if full.shape[0]:
            self._add(level + 1, full, table[full])
            table[full], parts[full] = 0, 0

    def _add_to_(self, result: Array) -> None:
        """``result += sums``, in the shape of W."""
        backend, F, V = self._backend, self._width, self._vocabulary
        result = backend.reshape(result, (-1, F) if self._by_rows else (-1, F, V))
        known = backend.arange(self._places.shape[0])[self._places > 0]  # in order: neighbours are written together
        for start in range(0, self._known, COLUMNS):
            tokens = known[start : start + COLUMNS]
            places = self._places[tokens] - 1
            at = tokens if self._by_rows else (tokens // V, slice(None), tokens % V)
            result[at] += sum(table[places] for table, _ in reversed(self._levels))

    def total(self, *others: TokenSums, onto: Array | None = None) -> Array:
        """The gradient so far, of others too: added to ``onto``, or a new array, 0 where a token has not come."""
        result = self._backend.zeros(self._shape, self._dtype) if onto is None else onto
        for each in (self, *others):
            each._add_to_(result)
        return result


def total_of(parts: Sequence[Array | Unfinished]) -> Array:
    """The sum of what parts of a batch give; an array that is the first is used up."""
    first, *others = parts
    if isinstance(first, Unfinished):
        return first.total(*others)
    for other in others:
        first += other
    return first
