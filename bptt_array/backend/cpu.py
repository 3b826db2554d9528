"""NumPy on the CPU: the primitives with ``out=``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import array_api_compat
import array_api_compat.numpy
import numpy as np

from ..checks import check_count
from . import cpu_norms
from .cpu_products import product_with, shared_copies
from .cpu_updates import OverGroups
from .portable import Array, Backend, Elementwise, place
from .workers import workers

_Result = TypeVar("_Result")


class NumpyElementwise(Elementwise):
    """The same without a temporary array."""

    def add_(self, out: Array, a: Array, b: Array) -> None:
        np.add(a, b, out)

    def subtract_(self, out: Array, a: Array, b: Array) -> None:
        np.subtract(a, b, out)

    def multiply_(self, out: Array, a: Array, b: Array) -> None:
        np.multiply(a, b, out)

    def one_minus_(self, out: Array, a: Array) -> None:
        np.subtract(1, a, out)

    def tanh_(self, out: Array, a: Array) -> None:
        np.tanh(a, out)


#: What two passes over an array should take at a time: small enough for a core's own cache; and many passes over many
#: arrays, whose blocks are not in one piece: small enough for the cache of all cores.
_BLOCK_BYTES, _BLOCKS_BYTES = 1 << 18, 1 << 22


#: Sequences of a part at least; and how many multiply-adds a gate has in a step, for each part and each other one that
#: wants Python to itself at the same time (measured: H = 64 to 1024, two threads).
_FEWEST, _ENOUGH = 8, 1 << 19


@place(threads=lambda name, value: None if value is None else check_count(name, value))
class NumpyBackend(Backend):
    """NumPy on the CPU: the same primitives with ``out=``, so that nothing is allocated in the loop.

    Attributes
    ----------
    threads : int or None
        Into how many parts a large batch is cut, one for each thread, which its results depend on to rounding. None: as
        many as NumPy's BLAS may have threads.
    """

    threads: int | None = None
    keeps_arrays = True
    temporaries = False
    gates_apart = True
    one_thread_multiply_adds = 1 << 18  # OpenBLAS

    def __init__(self) -> None:
        super().__init__(array_api_compat.numpy)
        vars(self)["elementwise"] = NumpyElementwise(self.xp)

    def __reduce__(self) -> tuple[Any, ...]:
        return NumpyBackend, (), self.settings

    @property
    def name(self) -> str:
        return "cpu"

    def owns(self, array: Any) -> bool:
        return isinstance(array, (np.ndarray, np.generic))

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        return np.array(array)

    def thread_count(self) -> int:
        """How many threads work is shared out to."""
        return workers.count if self.threads is None else self.threads

    def count_parts(self, N: int, multiply_adds: int) -> int | None:
        most = math.isqrt(multiply_adds // _ENOUGH)
        if most < 2:
            return 1
        threads = self.thread_count()
        return threads if threads <= min(N // _FEWEST, most) else None

    def one_thread(self) -> AbstractContextManager[Any]:
        return workers.one_thread_each()

    def run_parts(self, parts: Sequence[Callable[[Callable[[], None]], _Result]]) -> list[_Result]:
        with shared_copies():
            return workers.run(parts)

    # NumPy's own are microseconds faster than those of the compatibility layer: much, where a step is short.

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.zeros(shape, dtype)

    def ones(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.ones(shape, dtype)

    def copy(self, a: Array) -> Array:
        return a.copy()

    def reshape(self, a: Array, shape: tuple[int, ...]) -> Array:
        return a.reshape(shape)

    def matmul_(self, out: Array, a: Array, b: Array) -> None:
        np.matmul(a, b, out=out)

    def rows(self, a: Array, *, reverse: bool = False) -> Iterator[Array]:
        return iter(a[::-1] if reverse else a)

    def accumulator(self, W: Array, rows: tuple[int, ...], steps: int) -> Callable[[Array, Array], None]:
        product_, product = product_with(W, rows[-1], steps)
        add = np.add

        def add_product(out: Array, a: Array) -> None:
            product_(a)
            add(out, product, out)

        return add_product

    def multiplier(self, W: Array, rows: tuple[int, ...], steps: int) -> tuple[Callable[[Array], None], Array]:
        return product_with(W, rows[-1], steps)

    def elementwise_accumulator(self, rows: tuple[int, ...], dtype: Any) -> Callable[[Array, Array, Array], None]:
        product = np.empty(rows, dtype)
        multiply, add = np.multiply, np.add

        def add_elementwise(out: Array, a: Array, b: Array) -> None:
            multiply(a, b, product)
            add(out, product, out)

        return add_elementwise

    def tanh_(self, z: Array) -> None:
        np.tanh(z, z)

    def relu_(self, z: Array) -> None:
        np.maximum(z, 0, out=z)

    def one_minus_square_(self, out: Array, y: Array) -> None:
        steps = max(1, _BLOCK_BYTES * len(y) // max(1, y.nbytes))  # the second pass finds the block in the cache
        for k in range(0, len(y), steps):
            block = out[k : k + steps]
            np.multiply(y[k : k + steps], y[k : k + steps], out=block)
            np.subtract(1, block, out=block)

    def positive_(self, out: Array, y: Array) -> None:
        np.greater(y, 0, out=out)

    def over_segment(self, make: Callable[[Elementwise], Callable[..., None]]) -> Callable[..., None]:
        function = make(self.elementwise)

        def in_blocks(*arrays: Array) -> None:  # each pass but the first finds the block in the cache
            length = len(arrays[0])
            steps = max(1, _BLOCKS_BYTES * length // max(1, sum(a.nbytes for a in arrays)))
            for k in range(0, length, steps):
                function(*[a[k : k + steps] for a in arrays])

        return in_blocks

    def fused_over(self, make: Callable[[Elementwise], Callable[..., None]]) -> Callable[..., None]:
        return OverGroups(make, self.elementwise, self.thread_count)

    def largest_entries(self, grads: Mapping[str, Array], members: int | None) -> dict[str, Array] | None:
        return cpu_norms.largest_entries(grads, members, self.thread_count)

    def global_norm(self, grads: Mapping[str, Array], members: int | None) -> Array | None:
        return cpu_norms.global_norm(grads, members, self.thread_count)

    def clipped(self, grads: Mapping[str, Array], max_norm: float, members: int | None) -> dict[str, Array] | None:
        return cpu_norms.clipped(grads, max_norm, members, self.thread_count)

    def take_rows_(self, out: Array, table: Array, index: Array) -> None:
        # mode="clip" lets take write straight into out; indices were checked when they came in.
        np.take(table, index, axis=0, out=out, mode="clip")

    def column_reader(self, W: Array, b: Array, uses: int) -> Callable[[Array, Array], None]:
        if not self.sums_by_token(W.shape[-1], W.shape[-2]):
            return super().column_reader(W, b, uses)

        def read_(out: Array, index: Array) -> None:  # a table of all columns would be larger than what is read of it
            index = np.broadcast_to(index, out.shape[:-1])
            for which in np.ndindex(W.shape[:-2]):
                of_one = slice(None), *which
                distinct, places = np.unique(index[of_one], return_inverse=True)
                table = W[which].T[distinct]  # faster than np.take of columns, which reads all rows one by one
                table += b[which]
                self.take_rows_(out[of_one], table, places.reshape(index[of_one].shape))

        return read_

    def sums_by_token(self, vocabulary: int, width: int) -> bool:
        # Measured: from 1000 tokens of 64 numbers on, and 300 of 256 to 1024. Below, calls cost more than products.
        return vocabulary > 256 and vocabulary * width > 1 << 16

    def sums_by_index(self, rows: Array, index: Array, size: int) -> tuple[Array, Array]:
        distinct, places = np.unique(index, return_inverse=True)
        same = np.zeros((len(distinct), len(index)), rows.dtype)
        same[places, np.arange(len(index))] = 1
        return distinct, same @ rows

    def minus_one_hot_(self, p: Array, index: Array, there: float | Array = 1.0) -> None:
        p[*np.indices(index.shape, sparse=True), index] -= there

    def zero_unless_(self, a: Array, keep: Array) -> None:
        np.copyto(a, 0, where=~keep)

    def one_hot(self, index: Array, size: int, dtype: Any) -> Array:
        result = np.zeros((index.size, size), dtype=dtype)
        result[np.arange(index.size), index.reshape(-1)] = 1
        return result.reshape(*index.shape, size)
