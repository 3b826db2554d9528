"""Batches of sequences, in another order in every epoch."""

from __future__ import annotations

import copy
import itertools
import math
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..backend.arrays import check_dtype
from ..backend.portable import Array, Backend
from ..checks import LARGEST_SEED, check_count, check_flag, only_settings
from ..rnn.arguments import check_lengths
from ..rnn.conversions import HostArray
from ..rnn.rnn import RNN
from . import order
from .ahead import made_ahead, uploaded_ahead
from .sequences import Column, is_list, of_list, readable
from .targets import DataSet


class Minibatch(NamedTuple):
    """What ``rnn.loss_and_grad(x, target, lengths=lengths, weights=weights)`` takes.

    Attributes
    ----------
    x : (T, n, I), or tokens (T, n)
    target : (T, n, ...), or one for each sequence, (n, ...), or None
    lengths : (n,) int64 on the host, or None where all sequences have T steps
    weights : (T, n), or (n,), or None
    """

    x: Array
    target: Array | None = None
    lengths: HostArray | None = None
    weights: Array | None = None


class Ranks(Protocol):
    """Those of :func:`bptt_array.distributed.communicator`."""

    def part(self, count: int) -> slice: ...


class Options(NamedTuple):
    """How a data set is cut into batches."""

    size: int
    seed: int
    shuffle: bool
    by_length: bool
    time_major: bool
    dtype: str


@only_settings({}, "batches stay as they were made; make others with ba.batches(...)", {})
class Batches:
    """Batches of a data set, again and again: made by :func:`bptt_array.batches`, which says what they are.

    ``for batch in batches`` goes through one epoch, and the next time through the next one; ``len(batches)`` is how
    many batches an epoch has.

    Attributes
    ----------
    N : int
        How many sequences there are.
    lengths : (N,) int64 or None
        None where all have as many steps.
    options : Options
    """

    N: int
    lengths: HostArray | None
    options: Options
    _columns: tuple[Column | None, ...]
    _T: int
    _backend: Backend | None
    _ranks: Ranks | None
    _epochs: Iterator[int]

    def __init__(
        self,
        columns: tuple[Column, Column | None, Column | None],
        lengths: HostArray | None,
        T: int,
        options: Options,
        backend: Backend | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.N, self.lengths, self.options = len(columns[0]), lengths, options
        self._columns, self._T, self._backend, self._ranks = columns, T, backend, ranks
        self._epochs = itertools.count()

    def __len__(self) -> int:
        return math.ceil(self.N / self.options.size)

    def __repr__(self) -> str:
        return f"<{len(self)} batches of up to {self.options.size} of {self.N} sequences>"

    def __iter__(self) -> Iterator[Minibatch]:
        """The batches of the first epoch, of the second one when this is called again, and so on."""
        return self.epoch(next(self._epochs))

    def rows(self, k: int) -> list[HostArray]:
        """Which sequences are in which batch of epoch ``k``, those of all ranks: a function of the seed and ``k``."""
        k = check_count("k", k, least=0)
        size, seed, shuffle, by_length, *_ = self.options
        lengths = self.lengths if by_length else None
        return order.shuffled(self.N, size, seed, k, lengths) if shuffle else order.in_order(self.N, size, lengths)

    def epoch(self, k: int) -> Iterator[Minibatch]:
        """The batches of epoch ``k``, counted from 0, whatever was read before."""
        rows, backend = self.rows(k), self._backend
        if backend is None or backend.name == "cpu":
            return map(self._read, rows)
        return self._there(rows, backend)

    def to(self, rnn: RNN) -> Batches:
        """The same batches as that network takes them: floats of its dtype, arrays where it is.

        On CUDA a batch is read by a thread and copied, on a stream of its own, while the device computes on the one
        before. The host waits for no copy, and nothing of it is left when the iterator goes.
        """
        if not isinstance(rnn, RNN):
            raise TypeError(f"rnn is a {type(rnn).__name__}; expected a bptt_array.RNN")
        if rnn.time_major != self.options.time_major:
            raise ValueError(
                f"rnn has time_major={rnn.time_major}, and these batches {self.options.time_major}; expected the same: "
                f"use ba.batches(..., time_major={rnn.time_major}), of arrays with "
                f"{'time' if rnn.time_major else 'the sequences'} first"
            )
        return self._but(options=self.options._replace(dtype=rnn.dtype), _backend=rnn.backend)

    def shared_by(self, ranks: Ranks) -> Batches:
        """The same batches for the ranks of a job: of each batch only what is this rank's, ``ranks.part(n)`` of n.

        That may be nothing. All ranks have as many batches. Where these are in the whole batch, which masks of dropout
        depend on, is ``dropout_rows=(ranks.part(n).start, n)``, with the n of ``rows(k)``.
        """
        return self._but(_ranks=ranks)

    def _but(self, **changes: Any) -> Batches:
        """The same batches with something else, from the first epoch on."""
        other = copy.copy(self)
        vars(other).update(changes, _epochs=itertools.count())
        return other

    def _there(self, rows: list[HostArray], backend: Backend) -> Iterator[Minibatch]:
        """The batches of some sequences, on a device."""
        uploads = backend.uploads
        if uploads is None:
            for batch in map(self._read, rows):
                with backend.active():
                    arrays = [backend.from_host(array) for array in _moved(batch)]
                yield _with(batch, arrays)
            return
        batches: deque[Minibatch] = deque()  # of which arrays are on their way

        def stage(of_batch: HostArray) -> list[HostArray]:
            batches.append(self._read(of_batch))
            return uploads.stage(_moved(batches[-1]))

        with closing(made_ahead(stage, rows)) as staged, closing(uploaded_ahead(uploads, staged)) as uploaded:
            for arrays in uploaded:
                yield _with(batches.popleft(), arrays)

    def _read(self, rows: HostArray) -> Minibatch:
        """The batch of some sequences, on the host."""
        if self._ranks is not None:
            rows = rows[self._ranks.part(len(rows))]
        lengths = None if self.lengths is None else self.lengths[rows]
        T = self._T if lengths is None else max(1, int(lengths.max(initial=0)))
        each = np.full(len(rows), T) if lengths is None else lengths
        dtype, time_major = self.options.dtype, self.options.time_major
        x, target, weights = (
            None if column is None else column.filled(rows, each, T, dtype, time_major=time_major)
            for column in self._columns
        )
        return Minibatch(x, target, lengths, weights)


def _moved(batch: Minibatch) -> list[HostArray]:
    """The arrays of a batch that belong on the device; lengths are wanted on the host."""
    return [array for array in (batch.x, batch.target, batch.weights) if array is not None]


def _with(batch: Minibatch, arrays: list[Array]) -> Minibatch:
    """The same batch with other arrays in their place."""
    given = iter(arrays)
    x, target, weights = (None if a is None else next(given) for a in (batch.x, batch.target, batch.weights))
    return Minibatch(x, target, batch.lengths, weights)


def batches(
    x: Any,
    target: Any = None,
    *,
    lengths: Any = None,
    weights: Any = None,
    size: int = 32,
    seed: int = 0,
    shuffle: bool = True,
    by_length: bool = False,
    per_step: bool | None = None,
    time_major: bool = True,
    dtype: str = "float32",
) -> Batches:
    """Batches of sequences, which can be gone through again and again: in another order in every epoch.

    Only what is in a batch is read and copied, when its turn comes: arrays may be views or memory-mapped files. A batch
    is as long as the longest of its sequences; what stands past the end of one is 0.

    Parameters
    ----------
    x : list of N arrays (T_n, I) or tokens (T_n,), or array (T, N, I) or tokens (T, N)
        Sequences as :func:`bptt_array.pad` takes them, or what it returns, or :func:`bptt_array.windows`.
    target : array or list, optional
        One for each sequence, ``(N, O)`` or classes ``(N,)``, or one for each step: an array ``(T, N, ...)``, or a list
        of N arrays ``(T_n, ...)``. A list always has an entry for each sequence.
    lengths : (N,) int, optional
        Of the sequences of an array ``x``.
    weights : array or list, optional
        A number for each step, ``(T, N)`` or a list of ``(T_n,)``, or for each sequence, ``(N,)``: as the target.
    size : int
        Sequences in a batch. The last one of an epoch has those that are left.
    seed : int
        The order of epoch k is a function of ``seed`` and k, the same on every machine.
    shuffle : bool
        False: as they come, in every epoch.
    by_length : bool
        Sequences of similar length are in a batch, so that there is little to fill up; which ones is still random, and
        so is the order of batches. Without ``shuffle`` the shortest come first.
    per_step : bool, optional
        Whether the target, or without one the weights, is one for each step; needed only where its shape may mean both.
    time_major : bool
        False: arrays have N first, ``x (N, T, I)``, and batches too, as for a network with ``time_major=False``.
    dtype : {"float32", "float64"}
        Of floats. Integers without an axis of features, which are tokens or classes, become int64, others floats.

    Returns
    -------
    Batches
        Of :class:`Minibatch`: ``(x, target, lengths, weights)``.

    Raises
    ------
    ValueError, TypeError
        If arrays are not of the same sequences; the message says which one does not fit.

    Examples
    --------
    >>> import bptt_array as ba
    >>> data = ba.batches([[0.5, 1.5, 2.5], [3.5], [4.5, 5.5]], [0, 1, 0], size=2)
    >>> rnn = ba.RNN(1, 8, 2, output="softmax", readout="last")
    >>> for epoch in range(3):
    ...     for x, target, lengths, _ in data:
    ...         loss, grads, _ = rnn.loss_and_grad(x, target, "cross_entropy", lengths=lengths)
    """
    for name, flag in {"shuffle": shuffle, "by_length": by_length, "time_major": time_major}.items():
        check_flag(name, flag)
    options = Options(
        check_count("size", size),
        check_count("seed", seed, least=0, most=LARGEST_SEED),
        bool(shuffle),
        bool(by_length),
        bool(time_major),
        check_dtype(dtype),
    )
    if is_list(x):
        column = of_list("x", x)
        if lengths is not None:
            raise ValueError("lengths is given, but x is a list of sequences, which have theirs; leave it out")
        steps = np.array([len(item) for item in column.items], dtype=np.int64)
        T = int(steps.max())
        known = None if (steps == T).all() and T else steps
    else:
        column, T = _of_array(x, time_major)
        known = check_lengths(lengths, T, len(column))
        steps = np.full(len(column), T) if known is None else known
    if by_length and known is None and lengths is None and not is_list(x):
        raise ValueError("by_length=True, but x is an array without lengths; give lengths=…, or leave by_length out")
    if per_step is not None:
        check_flag("per_step", per_step)
    data = DataSet(len(column), T, steps, bool(time_major))
    about = None if target is None else data.target(target, per_step)
    timed = per_step if about is None else about.timed
    of_weights = None if weights is None else data.weights(weights, timed)
    return Batches((column, about, of_weights), known, T, options)


def _of_array(x: Any, time_major: bool) -> tuple[Column, int]:
    """The sequences of one array, and how many steps they have."""
    array = readable("x", x)
    axes = "(T, N, I)" if time_major else "(N, T, I)"
    whole = array.ndim == 2 and array.dtype.kind in "iu"
    if array.ndim != 3 and not whole:
        way = "; of one feature use x[..., None], of one long series see ba.windows" if array.ndim == 2 else ""
        raise ValueError(f"x has shape {array.shape}; expected {axes}, integers without I (tokens), or a list{way}")
    first = array.swapaxes(0, 1) if time_major else array
    N, T = first.shape[:2]
    if not (N and T):
        raise ValueError(f"x has shape {array.shape}, N={N} sequences of T={T} steps; expected at least one of both")
    return Column("x", first, first.shape[2:], timed=True, whole=whole), T
