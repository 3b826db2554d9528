"""NumPy on the CPU: the primitives with ``out=``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np

from .portable import Array, Backend, Elementwise, place


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


#: BLAS multiplies by a transposed matrix of a few hundred rows at about two thirds of its speed; a copy in
#: order costs about as much as is lost over this many rows of the other factor (measured at H = 64 to 512).
_ROWS_THAT_PAY_FOR_A_COPY = 128

#: Rows of a matrix that lie a multiple of this many bytes apart fall on the same few lines of a cache: a product with
#: them takes up to a quarter longer (4H = 1024 and 2048 in float32), so there is one more line between them.
_PAGE, _LINE = 1024, 64


def _rows_apart(shape: tuple[int, ...], dtype: Any) -> Array:
    """An empty array, with a gap behind each row where rows would fall on each other in the cache."""
    width, itemsize = shape[-1], np.dtype(dtype).itemsize
    if len(shape) > 2 or width * itemsize < 2 * _PAGE or width * itemsize % _PAGE:
        return np.empty(shape, dtype)
    return np.empty((*shape[:-1], width + _LINE // itemsize), dtype)[..., :width]


#: What two passes over an array should take at a time: small enough for a core's own cache.
_BLOCK_BYTES = 1 << 18


@place()
class NumpyBackend(Backend):
    """NumPy on the CPU: the same primitives with ``out=``, so that nothing is allocated in the loop."""

    keeps_arrays = True
    temporaries = False
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

    def _factors(self, W: Array, rows: tuple[int, ...], steps: int) -> tuple[Array, Array, bool]:
        """``W``, or a copy in order if that pays; room for the product; and whether ``ndarray.dot`` takes both."""
        if steps * rows[-1] >= _ROWS_THAT_PAY_FOR_A_COPY:
            ordered = _rows_apart(W.shape, W.dtype)
            ordered[...] = W
            W = ordered
        product = _rows_apart((*rows, W.shape[-1]), W.dtype)
        whole = product.flags.c_contiguous and (W.flags.c_contiguous or W.flags.f_contiguous)
        return W, product, W.ndim == 2 and whole

    def accumulator(self, W: Array, rows: tuple[int, ...], steps: int) -> Callable[[Array, Array], None]:
        W, product, dot = self._factors(W, rows, steps)
        matmul, add = np.matmul, np.add

        def add_product(out: Array, a: Array) -> None:
            a.dot(W, product)  # np.matmul with half a microsecond less around it: much, where a step is short
            add(out, product, out)

        def add_any_product(out: Array, a: Array) -> None:
            matmul(a, W, product)
            add(out, product, out)

        return add_product if dot else add_any_product

    def multiplier(self, W: Array, rows: tuple[int, ...], steps: int) -> tuple[Callable[[Array], None], Array]:
        W, product, dot = self._factors(W, rows, steps)
        if dot:
            return lambda a: a.dot(W, product), product
        return lambda a: np.matmul(a, W, product), product

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
            steps = max(1, _BLOCK_BYTES * length // max(1, sum(a.nbytes for a in arrays)))
            for k in range(0, length, steps):
                function(*[a[k : k + steps] for a in arrays])

        return in_blocks

    def take_rows_(self, out: Array, table: Array, index: Array) -> None:
        # mode="clip" lets take write straight into out; indices were checked when they came in.
        np.take(table, index, axis=0, out=out, mode="clip")

    def one_hot(self, index: Array, size: int, dtype: Any) -> Array:
        result = np.zeros((index.size, size), dtype=dtype)
        result[np.arange(index.size), index.reshape(-1)] = 1
        return result.reshape(*index.shape, size)
