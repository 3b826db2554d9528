"""A batch cut into parts of its sequences, which know nothing of each other until their gradients are added up.

One thread takes a part through all of time: in no step does one wait for another, as threads do that share a product,
and what is elementwise is shared out too. The order of a sum depends on how a batch is cut, so its last bits do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..backend.portable import Array, Backend
from .batch import Batch
from .dropout import Dropout
from .padding import Padding
from .state import Gradients, State

#: Sequences of a part at least; and how many multiply-adds a gate has in a step, for each part and each other one that
#: wants Python to itself at the same time (measured: H = 64 to 1024, two threads).
FEWEST, ENOUGH = 16, 1 << 19


class Targets(NamedTuple):
    """What the outputs are compared with."""

    target: Array
    weights: Array | None


class Part(NamedTuple):
    """Sequences of a batch, all or some, and what goes with them; of one that ``is_cut`` arrays are views."""

    batch: Batch
    targets: Targets
    dropout: Dropout | None
    dx: Array | None = None
    is_cut: bool = False


def count_parts(backend: Backend, N: int, multiply_adds: int) -> int:
    """Into how many parts N sequences are cut, if a gate has so many multiply-adds in a step: one for every thread, or 1."""
    threads = backend.thread_count()
    return threads if threads <= min(N // FEWEST, math.isqrt(multiply_adds // ENOUGH)) else 1


def cut(whole: Part, count: int, mode: str) -> list[Part]:
    """Parts as equal as can be; ``mode``: whether there are targets for ``"every"`` step or for the ``"last"``."""
    batch, targets, dropout = whole.batch, whole.targets, whole.dropout
    axes = (2 if mode == "every" else 1) + (batch.members is not None)
    parts = []
    for k in range(count):
        rows = slice(batch.N * k // count, batch.N * (k + 1) // count)
        parts.append(
            Part(
                batch_of(batch, rows),
                Targets(
                    of_rows(targets.target, rows, features=targets.target.ndim > axes),
                    None if targets.weights is None else of_rows(targets.weights, rows, features=False),
                ),
                None if dropout is None else replace(dropout, first=dropout.first + rows.start),
                None if whole.dx is None else of_rows(whole.dx, rows),
                is_cut=True,
            )
        )
    return parts


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
    pairs = ([getattr(state, name) for state in states] for name in ("h", "c"))
    return State(*[None if arrays[0] is None else backend.xp.concat(arrays, axis=-2) for arrays in pairs])


def added(backend: Backend, parts: Sequence[Gradients], dx: Array | None) -> Gradients:
    """The gradients of a whole batch; those of the first part are used up."""
    first, *others = parts
    for other in others:
        for name, grad in first.params.items():
            grad += other.params[name]
    return replace(first, state=joined(backend, [part.state for part in parts]), x=dx)
