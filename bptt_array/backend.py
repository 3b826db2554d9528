"""Devices: an array namespace, one of its devices, and the few operations that say where results land.

A :class:`Backend` is the only place where arrays are born and the only thing that knows which library runs
the mathematics. Its primitives end in an underscore and write into an array they are given. Each has a
portable body here, in pure Array API; NumPy and CuPy override it with ``out=`` forms of the same signature.

They rely on basic slices (and reshapes of contiguous arrays) being views, which holds for every namespace
whose arrays can be written to: NumPy, CuPy, torch, array-api-strict.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import array_api_compat
import array_api_compat.numpy
import numpy as np

from .wording import said

Array = Any  # an array of the backend's namespace
DTYPES = ("float32", "float64")

_INSTALL_CUPY = "pip install 'cupy-cuda12x[ctk]' (or cupy-cuda13x[ctk]), or use device='cpu'"


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
    #: Whether a network should keep the large arrays of a step for the next one (see ``workspace.py``).
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


class NumpyBackend(Backend):
    """NumPy on the CPU: the same primitives with ``out=``, so that nothing is allocated in the loop."""

    keeps_arrays = True
    temporaries = False
    one_thread_multiply_adds = 1 << 18  # OpenBLAS

    def __init__(self) -> None:
        super().__init__(array_api_compat.numpy)
        self.elementwise = NumpyElementwise(self.xp)

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
                function(*(a[k : k + steps] for a in arrays))

        return in_blocks

    def take_rows_(self, out: Array, table: Array, index: Array) -> None:
        # mode="clip" lets take write straight into out; indices were checked when they came in.
        np.take(table, index, axis=0, out=out, mode="clip")

    def one_hot(self, index: Array, size: int, dtype: Any) -> Array:
        result = np.zeros((index.size, size), dtype=dtype)
        result[np.arange(index.size), index.reshape(-1)] = 1
        return result.reshape(*index.shape, size)


class CupyBackend(Backend):
    """CuPy on one CUDA device."""

    #: A launch costs the host 10-20 us whatever its size, so segments are long on a GPU.
    segment_bytes = 1 << 26
    temporaries = False

    def __init__(self, index: int) -> None:
        import array_api_compat.cupy
        import cupy

        self.cupy = cupy
        self._index = index
        self._fused: dict[Any, Callable[..., None]] = {}
        with self.active():
            super().__init__(array_api_compat.cupy)
            self.gemm = self._find_gemm()
        self._one_minus_square = cupy.ElementwiseKernel("T y", "T out", "out = 1 - y * y", "bptt_one_minus_square")

    def _find_gemm(self) -> Any:
        """``cupy.cublas.gemm``, if there is one that adds to ``out`` in place; it is not documented.

        ``None`` otherwise: the loop then multiplies and adds, with the same result.
        """
        try:
            gemm = importlib.import_module("cupy.cublas").gemm
            a, W = np.asarray([[1, 2, 3], [4, 5, 6]]), np.asarray([[1, 0, 2], [0, 3, 1], [4, 1, 0]])
            for order, product in (("N", a @ W), ("T", a @ W.T)):
                out, *operands = (self.cupy.asarray(array, dtype="float32") for array in (np.ones((2, 3)), a, W))
                gemm("N", order, *operands, out=out, beta=1.0)
                if out.tolist() != (1 + product).tolist():
                    return None
            return gemm
        except (ImportError, AttributeError, TypeError, AssertionError, ValueError):
            return None

    @property
    def name(self) -> str:
        return f"cuda:{self._index}"

    def active(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.cupy.cuda.Device(self._index)
        return context

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        host: np.ndarray[Any, Any] = self.cupy.asnumpy(array)
        return host

    def synchronize(self) -> None:
        self.cupy.cuda.get_current_stream().synchronize()

    def host_buffer(self, a: Array) -> np.ndarray[Any, Any]:
        import cupyx

        locked: np.ndarray[Any, Any] = cupyx.empty_pinned(a.shape, a.dtype)
        return locked

    def copy_to_host_(self, out: np.ndarray[Any, Any], a: Array) -> None:
        a.get(out=out)

    def copy_from_host_(self, out: Array, a: np.ndarray[Any, Any]) -> None:
        out.set(a)

    def cuda_device(self) -> CudaDevice | None:
        nccl = importlib.import_module("cupy.cuda.nccl")
        return CudaDevice(self.cupy.cuda.Device(self._index).pci_bus_id, bool(nccl.available))

    def nccl(self, size: int, rank: int) -> Any:
        import cupyx.distributed

        return cupyx.distributed.init_process_group(size, rank, use_mpi=True)

    def matmul_(self, out: Array, a: Array, b: Array) -> None:
        self.cupy.matmul(a, b, out=out)

    def _in_order(self, W: Array) -> Array:
        """A batched product copies a transposed operand in every call: copy it once."""
        return self.cupy.ascontiguousarray(W) if W.ndim > 2 else W

    def accumulator(self, W: Array, rows: tuple[int, ...], steps: int) -> Callable[[Array, Array], None]:
        if 0 in rows:  # an empty batch, of which cuBLAS will not hear
            return lambda out, a: None
        if W.ndim == 2 and self.gemm is not None:
            return self._gemm_accumulator(W)
        W = self._in_order(W)
        product = self.cupy.empty((*rows, W.shape[-1]), W.dtype)
        matmul = self.cupy.matmul

        def add_product(out: Array, a: Array) -> None:
            matmul(a, W, out=product)
            out += product

        return add_product

    def multiplier(self, W: Array, rows: tuple[int, ...], steps: int) -> tuple[Callable[[Array], None], Array]:
        W, matmul = self._in_order(W), self.cupy.matmul
        product = self.cupy.empty((*rows, W.shape[-1]), W.dtype)

        def product_(a: Array) -> None:
            matmul(a, W, out=product)

        return product_, product

    def elementwise_accumulator(self, rows: tuple[int, ...], dtype: Any) -> Callable[[Array, Array, Array], None]:
        return self.fused(_add_product_of)

    def _gemm_accumulator(self, W: Array) -> Callable[[Array, Array], None]:
        """``out <- a W + 1 out`` in one cuBLAS call; a transposed ``W`` is a flag of it, not a copy."""
        gemm = self.gemm
        order, matrix = ("N", W) if W.flags.c_contiguous else ("T", W.T)

        def add_product(out: Array, a: Array) -> None:
            gemm("N", order, a, matrix, out=out, beta=1.0)

        return add_product

    def tanh_(self, z: Array) -> None:
        self.cupy.tanh(z, out=z)

    def relu_(self, z: Array) -> None:
        self.cupy.maximum(z, 0, out=z)

    def one_minus_square_(self, out: Array, y: Array) -> None:
        self._one_minus_square(y, out)

    def positive_(self, out: Array, y: Array) -> None:
        self.cupy.greater(y, 0, out=out)

    def take_rows_(self, out: Array, table: Array, index: Array) -> None:
        self.cupy.take(table, index, axis=0, out=out)

    def fused(self, make: Callable[[Elementwise], Callable[..., None]]) -> Callable[..., None]:
        if make not in self._fused:
            self._fused[make] = self.cupy.fuse(make(self.elementwise))
        return self._fused[make]


def _add_product_of(ops: Elementwise) -> Callable[[Array, Array, Array], None]:
    def add(out: Array, a: Array, b: Array) -> None:
        out += a * b

    return add


# ---- from the `device` argument to a Backend ----------------------------------------------------------


@cache
def _numpy_backend() -> NumpyBackend:
    return NumpyBackend()


@cache
def _cupy_backend(index: int) -> CupyBackend:
    return CupyBackend(index)


def cuda_device_count() -> int:
    """How many CUDA devices CuPy finds; 0 without CuPy, without a driver or without a device."""
    if importlib.util.find_spec("cupy") is None or cupy_import_error():
        return 0
    import cupy

    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError:
        return 0


def cupy_import_error() -> str:
    """Why an installed CuPy cannot be imported, in one line; empty if it can."""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount  # noqa: B018 (an empty folder named cupy has it not)
    except Exception as error:  # noqa: BLE001 (a broken installation raises anything; the text is passed on)
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip(" =")) or repr(error)
    return ""


def cuda_description(index: int) -> str:
    """Name and memory of a CUDA device, for people."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(index)
    return f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.1f} GiB"


def resolve(device: str | Backend) -> Backend:
    """The backend that a ``device`` argument names.

    ``"cpu"`` is NumPy; ``"cuda"`` or ``"cuda:1"`` is CuPy on that device; ``"auto"`` is the first CUDA device
    where there is one and the CPU otherwise; a :class:`Backend` is itself.

    Raises
    ------
    ValueError
        If the name is unknown, CuPy is not installed, or there is no such CUDA device.
    TypeError
        If ``device`` is neither a string nor a Backend.
    """
    if isinstance(device, Backend):
        return device
    if not isinstance(device, str):
        raise TypeError(
            f"device={said(device)} is a {type(device).__name__}; expected 'cpu', 'cuda', 'cuda:1', 'auto' "
            "or a bptt_array.Backend"
        )
    if device == "auto":
        device = "cuda" if cuda_device_count() else "cpu"
    if device == "cpu":
        return _numpy_backend()
    kind, colon, index = device.partition(":")
    if kind != "cuda" or (colon and not (index.isascii() and index.isdigit())):
        raise ValueError(f"device={said(device)} is unknown; expected 'cpu', 'cuda', 'cuda:1', … or 'auto'")
    if importlib.util.find_spec("cupy") is None:
        raise ValueError(f"device={said(device)} needs CuPy, which is not installed: {_INSTALL_CUPY}")
    if problem := cupy_import_error():
        raise ValueError(f"device={said(device)}: the installed CuPy cannot be imported ({problem}): {_INSTALL_CUPY}")
    count = cuda_device_count()
    if count == 0:
        raise ValueError(
            f"device={said(device)}: CuPy finds no CUDA device; check that nvidia-smi lists a GPU and that the driver "
            "is recent enough for the installed CuPy, or use device='cpu'"
        )
    if int(index or 0) >= count:
        raise ValueError(
            f"device={said(device)} does not exist: CuPy finds {count} of them, cuda:0 to cuda:{count - 1}"
        )
    return _cupy_backend(int(index or 0))


def is_plain(array: Any) -> bool:
    """Whether it computes as arrays do: without a mask, and without a matrix' rules."""
    return not isinstance(array, (np.ma.MaskedArray, np.matrix))


def backend_of(array: Array) -> Backend:
    """The backend on which an array lives."""
    if array_api_compat.is_numpy_array(array):
        return _numpy_backend()
    if array_api_compat.is_cupy_array(array):
        return _cupy_backend(array.device.id)
    return Backend(array_api_compat.array_namespace(array), array_api_compat.device(array))
