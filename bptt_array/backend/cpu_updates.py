"""One elementwise function over many groups of arrays on a CPU, in blocks that stay in its caches.

A function of a dozen passes reads large arrays from memory a dozen times, and its temporary arrays are as large as they
are; of a block it reads once, and a block of scratch memory is all that it needs. What passes there are is written down
from the Python function, by :mod:`bptt_array.tracing`. Threads take blocks, the next one whoever is free, so that one
whose core another program has holds nobody up. No number of the result depends on its block, or on who computed it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..tracing.program import CannotTraceError
from ..tracing.symbols import UFUNCS
from .portable import Array, Elementwise
from .traced import Make, Traced, traced
from .workers import workers

_Item = TypeVar("_Item")

#: Bytes of a block of one array: each pass takes so much longer than what Python does around it, in which threads wait
#: for each other, that two are faster than one (1/8 of it is not); five of them for each of two threads are 5 MiB.
_BLOCK_BYTES = 1 << 19
#: Arrays of fewer numbers in all are computed whole: they stay in the caches as they are, and to begin and to end a
#: thread's work takes as long as an update of some ten thousand.
_WHOLE = 1 << 19

#: Arrays, and the slices of a block of each of them.
_Block = tuple[Sequence[Array], Any]

#: The operations of a program that are calls of NumPy.
_CALLS = {
    name: getattr(np, ufunc)
    for ufunc, name in UFUNCS.items()
    if ufunc not in ("fabs", "bitwise_and", "bitwise_or", "invert")
}


class _Pass(NamedTuple):
    """A call of NumPy, from and into slots: arrays, then numbers, then blocks of scratch memory."""

    call: Callable[..., Any]
    operands: tuple[int, ...]
    out: int


def shared_out(begin: Callable[[], Callable[[_Item], None]], items: Sequence[_Item], threads: int) -> None:
    """``do(item)`` for all of them, by so many threads, each with its own ``do = begin()``; each takes the next one."""
    waiting = deque(items)

    def work(going: Callable[[], None]) -> None:
        do = begin()
        while waiting:
            going()
            try:
                item = waiting.popleft()
            except IndexError:  # another thread has the last one
                return
            do(item)

    if (threads := min(threads, len(items))) > 1:
        workers.run([work] * threads)
    else:
        work(lambda: None)


class OverGroups:
    """``function(groups, *numbers)``: ``make(ops)`` over every group of arrays.

    Small arrays are computed whole, one group after the other, and so are all where arrays share memory.
    """

    def __init__(self, make: Make, elementwise: Elementwise, thread_count: Callable[[], int]) -> None:
        self._make = make
        self._function = make(elementwise)
        self._thread_count = thread_count

    def __call__(self, groups: Sequence[tuple[Array, ...]], *numbers: float) -> None:
        size = sum(arrays[0].size for arrays in groups)
        if size < _WHOLE or _any_share_memory([a for arrays in groups for a in arrays if a.size]):
            for arrays in groups:
                self._function(*arrays, *numbers)
            return
        blocks = [block for arrays in groups for block in _blocks(arrays)]
        shared_out(lambda: self._in_passes(numbers), blocks, self._thread_count())

    def _in_passes(self, numbers: Sequence[float]) -> Callable[[_Block], None]:
        """What one thread does with a block, with scratch memory of its own."""
        scratch: dict[Any, list[Array]] = {}
        of_dtype: dict[Any, list[Array]] = {}

        def do(block: _Block) -> None:
            arrays, index = block
            parts = [a[index] for a in arrays]
            first = parts[0]
            passes = _passes(self._make, first.dtype.name, len(parts), len(numbers)) if _are_alike(parts) else None
            if passes is None:
                self._function(*parts, *numbers)
                return
            if first.dtype not in scratch:
                size = _BLOCK_BYTES // first.itemsize
                scratch[first.dtype] = [np.empty(size, first.dtype) for _ in range(passes.scratch)]
                of_dtype[first.dtype] = [np.asarray(number, first.dtype) for number in numbers]
            free = [room[: first.size].reshape(first.shape) for room in scratch[first.dtype]]
            slots = [*parts, *of_dtype[first.dtype], *free]
            for call, operands, out in passes.calls:
                call(*[slots[k] for k in operands], slots[out])

        return do


def _any_share_memory(arrays: Sequence[Array]) -> bool:
    """Whether the bytes between first and last of two arrays meet: then what is written first matters."""
    bounds = sorted(np.lib.array_utils.byte_bounds(a) for a in arrays)
    return any(begin < end for (_, end), (begin, _) in pairwise(bounds))


def _are_alike(arrays: Sequence[Array]) -> bool:
    """Of one dtype and shape."""
    return len({(a.dtype, a.shape) for a in arrays}) == 1


def _blocks(arrays: Sequence[Array]) -> Iterator[_Block]:
    """Blocks of a group; the whole of it where its arrays are of several shapes or dtypes."""
    first = arrays[0]
    size = _BLOCK_BYTES // first.itemsize
    if not _are_alike(arrays):
        yield arrays, ...
    elif all(a.flags.c_contiguous for a in arrays) or all(a.flags.f_contiguous for a in arrays):
        rows = [(a if a.flags.c_contiguous else a.T).reshape(-1) for a in arrays]
        for k in range(0, first.size, size):
            yield rows, slice(k, k + size)
    else:
        for index in _tiles(first.shape, size):
            yield arrays, index


def _tiles(shape: tuple[int, ...], size: int) -> Iterator[tuple[slice, ...]]:
    """Slices of blocks of at most so many numbers, about as long along each axis: for arrays of different orders."""
    tiles = [tuple(slice(0, length) for length in shape)]
    while tiles:
        tile = tiles.pop()
        lengths = [part.stop - part.start for part in tile]
        if math.prod(lengths) <= size:
            yield tile
            continue
        axis = lengths.index(max(lengths))
        begin, end = tile[axis].start, tile[axis].stop
        middle = (begin + end) // 2
        tiles += [(*tile[:axis], part, *tile[axis + 1 :]) for part in (slice(middle, end), slice(begin, middle))]


class _Passes(NamedTuple):
    calls: list[_Pass]
    scratch: int


@lru_cache(maxsize=64)
def _passes(make: Make, dtype: str, arrays: int, numbers: int) -> _Passes | None:
    """The calls of NumPy that a function is made of; None where it is not made of such."""
    try:
        return _in_place(traced(make, dtype, arrays, numbers))
    except CannotTraceError:
        return None


def _in_place(function: Traced) -> _Passes:
    """Operations in their order, each written where something was that nothing needs any more."""
    program, given, numbers, written = function
    operations = [k for k in program.needed(written.values()) if k not in (*given, *numbers)]
    last = {a: step for step, k in enumerate(operations) for a in program.operands(k)}
    last |= dict.fromkeys(written.values(), len(operations))
    home = {value: array for array, value in written.items()}
    slot = {k: place for place, k in enumerate((*given, *numbers))}
    held = {array: given[array] for array in written}  # what there is in each slot that may be written to
    first = len(given) + len(numbers)
    calls = []
    for step, k in enumerate(operations):
        name, *operands = program.ops[k]
        if name not in _CALLS or any(a not in slot for a in operands):
            raise CannotTraceError(f"{name} is no call of NumPy with arrays and numbers that are given")
        free = [place for place, value in held.items() if last.get(value, -1) <= step]
        wanted = [home.get(k), *(slot[a] for a in operands), *(place for place in free if place >= first)]
        out = next((place for place in wanted if place in free), first + sum(place >= first for place in held))
        calls.append(_Pass(_CALLS[name], tuple(slot[a] for a in operands), out))
        slot[k], held[out] = out, k
    for array, value in written.items():
        if slot[value] != array:
            if last.get(held[array], -1) == len(operations):
                raise CannotTraceError("arrays change places")
            calls.append(_Pass(np.positive, (slot[value],), array))
    return _Passes(calls, sum(place >= first for place in held))
