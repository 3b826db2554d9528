"""Devices: an array namespace, one of its devices, and the few operations that say where results land.

A :class:`Backend` is the only place where arrays are born and the only thing that knows which library runs
the mathematics. Its primitives end in an underscore and write into an array they are given. Each has a
portable body here, in pure Array API; NumPy and CuPy override it with ``out=`` forms of the same signature.

They rely on basic slices (and reshapes of contiguous arrays) being views, which holds for every namespace
whose arrays can be written to: NumPy, CuPy, torch, array-api-strict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import array_api_compat
import array_api_compat.numpy
import numpy as np

Array = Any  # an array of the backend's namespace
DTYPES = ("float32", "float64")


class Elementwise:
    """Elementwise operations that write into an array they are given: what a fused function is made of.

    The bodies here are portable, and CuPy makes one kernel of any number of them.
    """

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def add_(self, out: Array, a: Array, b: Array) -> None:
        """``out <- a + b``"""
        out[...] = a + b

    def subtract_(self, out: Array, a: Array, b: Array) -> None:
        """``out <- a - b``"""
        out[...] = a - b

    def multiply_(self, out: Array, a: Array, b: Array) -> None:
        """``out <- a * b``"""
        out[...] = a * b

    def one_minus_(self, out: Array, a: Array) -> None:
        """``out <- 1 - a``"""
        out[...] = 1 - a

    def tanh_(self, out: Array, a: Array) -> None:
        """``out <- tanh(a)``"""
        out[...] = self.xp.tanh(a)


class CudaDevice(NamedTuple):
    """One device, and whether CuPy has NCCL for it."""

    place: str
    has_nccl: bool


class Backend:
    """A mutable Array API namespace and one of its devices; the portable form of every primitive.

    Parameters
    ----------
    xp : module
        An Array API namespace whose arrays can be written in place, for example ``array_api_strict``
        or ``torch`` (wrapped by array-api-compat where needed).
    device : optional
        A device of that namespace; its default device if left out.

    Raises
    ------
    TypeError
        If arrays of the namespace cannot be written in place (JAX).

    Examples
    --------
    >>> import numpy, bptt_array as ba
    >>> ba.RNN(input_size=3, hidden_size=4, device=ba.Backend(numpy)).backend
    Backend('array_api_compat.numpy', device='cpu')
    """

    #: States of one segment should fit in this many bytes: about what stays in a core's cache.
    segment_bytes = 1 << 22
    #: Whether a network should keep the large arrays of a step for the next one (see ``bptt/workspace.py``).
    keeps_arrays = False
    #: Whether an operation makes an array before it is written where it belongs: no ``out=``.
    temporaries = True
    #: Products of at most so many multiply-adds are not shared out to threads, which would wait for each other.
    one_thread_multiply_adds: int | None = None

    def __init__(self, xp: Any, device: Any = None) -> None:
        if not callable(getattr(xp, "zeros", None)):
            raise TypeError(f"xp={xp!r} is no Array API namespace; expected a module like array_api_strict or torch")
        probe = xp.zeros(1) if device is None else xp.zeros(1, device=device)
        self.xp = array_api_compat.array_namespace(probe)
        self.device = array_api_compat.device(probe)
        self.elementwise = Elementwise(self.xp)
        self._zeros: dict[str, Array] = {}
        if not array_api_compat.is_writeable_array(probe):
            raise TypeError(
                f"xp={self.xp.__name__} has arrays that cannot be written in place, which the time loop needs; "
                "use NumPy, CuPy, torch or array_api_strict"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Backend:
        return self  # a place, not a value: a copied network lives in the same one

    def __repr__(self) -> str:
        return f"Backend({self.xp.__name__!r}, device={str(self.device)!r})"

    @property
    def name(self) -> str:
        """Where arrays live, in the words of the ``device`` argument: ``"cpu"``, ``"cuda:0"``, …"""
        return f"{self.xp.__name__.removeprefix('array_api_compat.')}:{self.device}"

    def active(self) -> AbstractContextManager[Any]:
        """Context in which new arrays are born on this device (CuPy allocates on the current device)."""
        return nullcontext()

    # ---- arrays ---------------------------------------------------------------------------------------

    def dtype(self, name: str) -> Any:
        """The dtype object that the namespace calls ``name``."""
        return getattr(self.xp, name)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.empty(shape, dtype=dtype, device=self.device)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.zeros(shape, dtype=dtype, device=self.device)

    def ones(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.ones(shape, dtype=dtype, device=self.device)

    def arange(self, stop: int, dtype: Any = None) -> Array:
        """``0, 1, ..., stop - 1`` as int64 or the integer dtype given."""
        return self.xp.arange(stop, dtype=self.xp.int64 if dtype is None else dtype, device=self.device)

    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        """A copy of a NumPy array on this device, of the same dtype."""
        # Other libraries take neither other byte orders nor negative strides.
        plain = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True)
        return self.xp.asarray(plain, dtype=self.dtype(plain.dtype.name), device=self.device)

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """A NumPy copy of an array of this device (synchronises)."""
        host = self.xp.__array_namespace_info__().default_device()
        local = array_api_compat.to_device(array, host)
        # DLPack is what every namespace has for this; NumPy's own scalars have it not.
        return np.array(local) if array_api_compat.is_numpy_array(local) else np.from_dlpack(local).copy()

    def owns(self, array: Any) -> bool:
        """Whether ``array`` is of this namespace and on this device."""
        if not array_api_compat.is_array_api_obj(array):
            return False
        return array_api_compat.array_namespace(array) is self.xp and array_api_compat.device(array) == self.device

    def copy(self, a: Array) -> Array:
        """A copy that shares no memory with ``a``."""
        return self.xp.asarray(a, copy=True)

    def rows(self, a: Array, *, reverse: bool = False) -> Iterator[Array]:
        """``a[t, ...]`` for every t, as views, first to last or last to first."""
        steps = range(a.shape[0])
        return (a[t, ...] for t in (reversed(steps) if reverse else steps))

    # ---- between processes ----------------------------------------------------------------------------

    def synchronize(self) -> None:
        """Wait for all that was begun on this device (on CUDA: on the current stream)."""

    def host_buffer(self, a: Array) -> np.ndarray[Any, Any]:
        """An array on the host that ``a`` can be copied to: where that helps, in page-locked memory."""
        return np.empty(tuple(a.shape), str(a.dtype).rpartition(".")[2])

    def copy_to_host_(self, out: np.ndarray[Any, Any], a: Array) -> None:
        """``out <- a``, done when this returns."""
        out[...] = self.to_host(a)

    def copy_from_host_(self, out: Array, a: np.ndarray[Any, Any]) -> None:
        """``out <- a``; on CUDA perhaps later, in the order of the current stream."""
        out[...] = self.from_host(a)

    def cuda_device(self) -> CudaDevice | None:
        """Which CUDA device this is, for those who send its arrays; None where they have to go through the host."""
        return None

    def nccl(self, size: int, rank: int) -> Any:
        """CuPy's NCCL communicator of all processes of an MPI job; all have to call this."""
        raise ValueError(f"{self.name} has no NCCL")

    # ---- primitives -----------------------------------------------------------------------------------

    def matmul_(self, out: Array, a: Array, b: Array) -> None:
        """``out <- a @ b``"""
        out[...] = self.xp.matmul(a, b)

    def accumulator(self, W: Array, rows: tuple[int, ...], steps: int) -> Callable[[Array, Array], None]:
        """A function ``(out, a)`` that does ``out += a @ W``, to be called ``steps`` times with the same ``W``.

        ``rows (..., N)`` is the shape of ``out`` without its last axis. What the product needs beside its result is
        allocated here, once, and not in the time loop.
        """
        matmul = self.xp.matmul

        def add_product(out: Array, a: Array) -> None:
            out += matmul(a, W)

        return add_product

    def multiplier(self, W: Array, rows: tuple[int, ...], steps: int) -> tuple[Callable[[Array], None], Array]:
        """:meth:`accumulator` without the sum: a function ``(a)`` that does ``out <- a @ W``, and that ``out``."""
        out = self.empty((*rows, W.shape[-1]), W.dtype)
        return lambda a: self.matmul_(out, a, W), out

    def elementwise_accumulator(self, rows: tuple[int, ...], dtype: Any) -> Callable[[Array, Array, Array], None]:
        """A function ``(out, a, b)`` that does ``out += a * b`` for arrays of the shape ``rows``."""

        def add_elementwise(out: Array, a: Array, b: Array) -> None:
            out += a * b

        return add_elementwise

    def tanh_(self, z: Array) -> None:
        """``z <- tanh(z)``"""
        z[...] = self.xp.tanh(z)

    def relu_(self, z: Array) -> None:
        """``z <- max(z, 0)``"""
        z[...] = self.xp.maximum(z, self._zero(z.dtype))

    def _zero(self, dtype: Any) -> Array:
        """A 0-d zero, made once."""
        if str(dtype) not in self._zeros:
            self._zeros[str(dtype)] = self.zeros((), dtype)
        return self._zeros[str(dtype)]

    def one_minus_square_(self, out: Array, y: Array) -> None:
        """``out <- 1 - y^2``, the derivative of tanh from its value."""
        out[...] = 1 - y * y

    def positive_(self, out: Array, y: Array) -> None:
        """``out <- [y > 0]``, 1 or 0: the derivative of ReLU from its value."""
        out[...] = self.xp.astype(y > 0, y.dtype)

    def take_rows_(self, out: Array, table: Array, index: Array) -> None:
        """``out[i..., :] <- table[index[i...], :]``"""
        rows = self.xp.take(table, self.xp.reshape(index, (-1,)), axis=0)
        out[...] = self.xp.reshape(rows, out.shape)

    def fused(self, make: Callable[[Elementwise], Callable[..., None]]) -> Callable[..., None]:
        """The elementwise function ``make(ops)``, which writes into its arguments, as one kernel where there are any.

        Its arguments are arrays of one shape (or that broadcast to the first one's), then Python floats, on which
        it must not compute with each other: CuPy would do that in half precision.
        """
        return make(self.elementwise)

    def over_segment(self, make: Callable[[Elementwise], Callable[..., None]]) -> Callable[..., None]:
        """:meth:`fused` for whole segments ``(S, ...)``, where passes over blocks of steps may pay."""
        return self.fused(make)

    def one_hot(self, index: Array, size: int, dtype: Any) -> Array:
        """``result[i..., k] = 1 if index[i...] == k else 0``, shape ``(*index.shape, size)``."""
        return self.xp.astype(index[..., None] == self.arange(size), dtype)
