"""A batch cut into parts of its sequences, which know nothing of each other until their gradients are added up.

One thread takes a part through all of time: in no step does one wait for another, as threads do that share a product,
and what is elementwise is shared out too. The order of a sum depends on how a batch is cut, so its last bits do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..backend.portable import Array, Backend
from ..equations.token_sums import total_of
from .batch import Batch
from .directions import in_time
from .dropout import Dropout
from .padding import Padding
from .state import Gradients, State


class Targets(NamedTuple):
    """What the outputs are compared with."""

    target: Array
    weights: Array | None


class Part(NamedTuple):
    """Sequences of a batch, all or some, and what goes with them; of one that ``is_cut`` arrays are views.

    ``rows (T, [E,] N, F)``: where outputs or gradients of the input are written.
    """

    batch: Batch
    targets: Targets | None
    dropout: Dropout | None
    rows: Array | None = None
    is_cut: bool = False

    @property
    def compared(self) -> Targets:
        """The targets of a part that has any."""
        assert self.targets is not None
        return self.targets


def rows_of_parts(N: int, count: int) -> list[slice]:
    """Which of N sequences are in each of so many parts, as equal as can be."""
    return [slice(N * k // count, N * (k + 1) // count) for k in range(count)]


def cut(whole: Part, count: int, mode: str) -> list[Part]:
    """The parts of a batch; ``mode``: whether there are targets for ``"every"`` step or for the ``"last"``."""
    return [_of(whole, rows, mode) for rows in rows_of_parts(whole.batch.N, count)]


def _of(whole: Part, rows: slice, mode: str) -> Part:
    batch, targets, dropout = whole.batch, whole.targets, whole.dropout
    if targets is not None:
        axes = (2 if mode == "every" else 1) + (batch.members is not None)
        weights = None if targets.weights is None else of_rows(targets.weights, rows, features=False)
        targets = Targets(of_rows(targets.target, rows, features=targets.target.ndim > axes), weights)
    return Part(
        batch_of(batch, rows),
        targets,
        None if dropout is None else replace(dropout, first=dropout.first + rows.start),
        None if whole.rows is None else of_rows(whole.rows, rows),
        is_cut=True,
    )


def of_rows(a: Array, rows: slice, *, features: bool = True) -> Array:
    """The sequences ``rows`` of ``a (..., N, F)``, without ``features`` (..., N): a view."""
    return a[..., rows, :] if features else a[..., rows]


def batch_of(batch: Batch, rows: slice) -> Batch:
    """The sequences ``rows`` of a batch."""
    return replace(
        batch,
        N=rows.stop - rows.start,
        x=of_rows(batch.x, rows, features=not batch.tokens),
        initial=[tuple([of_rows(state, rows) for state in states]) for states in batch.initial],
        padding=None if batch.padding is None else Padding(batch.backend, batch.padding.lengths[rows]),
        reset=None if batch.reset is None else batch.reset[rows],
    )


def joined(backend: Backend, states: Sequence[State]) -> State:
    """The states of all parts, side by side."""
    if len(states) == 1:
        return states[0]
    pairs = ([getattr(state, name) for state in states] for name in ("h", "c"))
    return State(*[None if arrays[0] is None else backend.xp.concat(arrays, axis=-2) for arrays in pairs])


def added(whole: Batch, parts: Sequence[Gradients], dx: Array | None) -> Gradients:
    """The gradients of a whole batch; those of the first part are used up."""
    backend = whole.backend
    if dx is not None and whole.reverse:
        dx = in_time(backend, dx, whole.padding)
    params = {name: total_of([part.params[name] for part in parts]) for name in parts[0].params}
    return replace(parts[0], params=params, state=joined(backend, [part.state for part in parts]), x=dx)
