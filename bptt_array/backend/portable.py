"""Devices: an array namespace, one of its devices, and the few operations that say where results land.

A :class:`Backend` is the only place where arrays are born and the only thing that knows which library runs
the mathematics. Its primitives end in an underscore and write into an array they are given. Each has a
portable body here, in pure Array API; NumPy and CuPy override it with ``out=`` forms of the same signature.

They rely on basic slices (and reshapes of contiguous arrays) being views. That is asked of a namespace, see
:mod:`bptt_array.backend.namespaces`.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import array_api_compat
import array_api_compat.numpy
import numpy as np

from ..checks import Settings, check_count, check_flag, only_settings
from .host import host_copy
from .namespaces import dtypes_of, namespace_of

Array = Any  # an array of the backend's namespace
_Kind = TypeVar("_Kind", bound=type)
_Result = TypeVar("_Result")
DTYPES = ("float32", "float64")

#: Rows that :meth:`Backend.add_rows_` adds up in one product.
ADDED_AT_ONCE = 256


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


class RowFunction(Protocol):
    """``(backend, v, ...)``, see :meth:`Backend.over_rows`; equal ones do the same."""

    @property
    def arguments(self) -> tuple[str, ...]: ...

    def __call__(self, *backend_and_arrays: Any, **none: Any) -> tuple[Array, ...]: ...


class Uploads(Protocol):
    """Arrays of the host that are copied to a device while it computes, in the order in which they are begun."""

    def stage(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Copies that a device can read by itself; of any thread."""

    def begin(self, staged: Sequence[np.ndarray[Any, Any]]) -> Any:
        """Begin to copy what was staged; called by the thread that computes, as what follows."""

    def end(self, begun: Any) -> list[Array]:
        """The arrays, for what is computed from here on."""

    def abandon(self, begun: Any) -> None:
        """Nobody wants them."""


class CudaDevice(NamedTuple):
    """One device, and whether CuPy has NCCL for it."""

    place: str
    has_nccl: bool


def _of_module(kind: type[Backend], namespace: str, device: Any) -> Backend:
    """A backend that was pickled."""
    return kind(importlib.import_module(namespace), device)


def flag(name: str, value: Any) -> bool:
    """A setting that is True or False."""
    check_flag(name, value)
    return bool(value)


#: What may be set on a backend, with its check: choices of speed and memory, no result depends on them.
_SETTINGS: Settings = {
    "segment_bytes": check_count,
    "keeps_arrays": flag,
    "temporaries": flag,
    "one_thread_multiply_adds": lambda name, value: None if value is None else check_count(name, value),
}


_ONE_PLACE = "a backend is one place; make another, ba.Backend(xp, device), and move the network there, rnn.to(backend)"


def place(**more: Callable[[str, Any], Any]) -> Callable[[_Kind], _Kind]:
    """Of a class of backends: its settings, and ``more``; nothing else can be set, since it is a place."""
    settings = {**_SETTINGS, **more}
    ways_out = dict.fromkeys(("xp", "device", "name"), _ONE_PLACE)
    return only_settings(settings, f"expected one of {', '.join(settings)}", ways_out)


@place()
class Backend:
    """A mutable Array API namespace and one of its devices; the portable form of every primitive.

    Parameters
    ----------
    xp : module
        An Array API namespace, of version 2024.12 of the standard or later, whose arrays can be written in place
        and through their slices, for example ``array_api_strict`` or ``torch`` (wrapped by array-api-compat where
        needed).
    device : optional
        A device of that namespace; its default device if left out.

    Attributes
    ----------
    integer : dtype
        The widest signed integer of the device: int64 on most. Tokens, classes and lengths are of it.
    measured : dict
        What was measured on the device, for those who decide by it (see ``bptt/chunk_times.py``).
    compiled : dict
        What was compiled for the device (see ``kernels/segments.py``).

    Raises
    ------
    TypeError
        If ``xp`` is no such namespace: its arrays cannot be written in place (JAX), its slices are copies (ndonnx), or
        it lacks something, which is named.
    ValueError
        If it has no such device.

    Notes
    -----
    Two backends are equal where they are the same place. One that is pickled is made anew by the process that reads it,
    which needs the namespace and the device. What can be set (``segment_bytes`` and the like) changes speed and memory,
    and no result.

    Examples
    --------
    >>> import numpy, bptt_array as ba
    >>> ba.RNN(input_size=3, hidden_size=4, device=ba.Backend(numpy)).backend
    Backend('array_api_compat.numpy', device='cpu')
    """

    xp: Any
    device: Any
    integer: Any
    measured: dict[Any, Any]
    compiled: dict[Any, Any]
    elementwise: Elementwise
    _dtypes: Mapping[str, Any]
    _zeros: dict[str, Array]

    #: States of one segment should fit in this many bytes: about what stays in a core's cache.
    segment_bytes = 1 << 22
    #: Whether a network should keep the large arrays of a step for the next one (see ``bptt/workspace.py``).
    keeps_arrays = False
    #: Whether an operation makes an array before it is written where it belongs: no ``out=``.
    temporaries = True
    #: Whether gates are faster apart, ``(G, ..., N, H)``, than side by side (see ``Cell.gates_apart``).
    gates_apart = False
    #: Whether a segment of time is one launch each way, where the device runs kernels (see ``kernels/``).
    persistent = False
    #: Products of at most so many multiply-adds are not shared out to threads, which would wait for each other.
    one_thread_multiply_adds: int | None = None
    #: Whether rows of a table can be added to by arrays of their numbers, of which each comes once, without waiting.
    indexed_by_arrays = False
    #: Whether there is :meth:`column_sums`, of many matrices at once: then sums over rows are no products with ones.
    sums_columns = False

    def __init__(self, xp: Any, device: Any = None) -> None:
        self.xp, self.device = namespace_of(xp, device)
        self._dtypes = dtypes_of(self.xp, self.device)
        self.integer = self._dtypes["int64" if "int64" in self._dtypes else "int32"]
        self.elementwise = Elementwise(self.xp)
        self._zeros = {}
        self.measured = {}
        self.compiled = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Backend:
        return self  # a place, not a value: a copied network lives in the same one

    def __copy__(self) -> Backend:
        """The same place, with settings of its own."""
        other = type(self).__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __eq__(self, other: object) -> bool:
        """Whether it is the same place: of the same kind, with the same namespace and device."""
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, Backend)
        return self.xp is other.xp and bool(self.device == other.device)

    def __hash__(self) -> int:
        return hash((type(self), self.name))

    def __reduce__(self) -> tuple[Any, ...]:
        name = getattr(self.xp, "__name__", None)
        if sys.modules.get(name or "") is not self.xp:
            raise TypeError(
                f"{self!r} cannot be pickled: its namespace is no module that another process could import; move to "
                "the CPU first, rnn.to('cpu')"
            )
        return _of_module, (type(self), name, self.device), self.settings

    @property
    def settings(self) -> dict[str, Any]:
        """What was set on this one, and differs from its class."""
        return {name: value for name, value in vars(self).items() if name in (*_SETTINGS, "persistent", "threads")}

    def __repr__(self) -> str:
        return f"Backend({self.xp.__name__!r}, device={str(self.device)!r})"

    @property
    def name(self) -> str:
        """Where arrays live, in the words of the ``device`` argument: ``"cpu"``, ``"cuda:0"``, …"""
        return f"{self.xp.__name__.removeprefix('array_api_compat.')}:{self.device}"

    def count_parts(self, N: int, multiply_adds: int) -> int | None:
        """Into how many parts N sequences are cut for threads; 1 where one thread is as fast as several.

        None: a batch is in one piece, and the device knows best how a product is shared out. ``multiply_adds``: those
        of a step for each gate.
        """
        return None

    def one_thread(self) -> AbstractContextManager[Any]:
        """Context in which products are not shared out to threads, which would wait for each other."""
        return nullcontext()

    def run_parts(self, parts: Sequence[Callable[[Callable[[], None]], _Result]]) -> list[_Result]:
        """The results of functions that have nothing to do with each other, each called with a function ``going()``.

        Where threads call them that one raises once another part has failed.
        """
        return [part(lambda: None) for part in parts]

    def active(self) -> AbstractContextManager[Any]:
        """Context in which new arrays are born on this device (CuPy allocates on the current device)."""
        return nullcontext()

    # ---- arrays ---------------------------------------------------------------------------------------

    def dtype(self, name: str) -> Any:
        """The dtype object that the namespace calls ``name``."""
        if name not in self._dtypes and not self.has_dtype(name):
            raise ValueError(
                f"dtype={name!r}, of which there are no arrays on {self.name}; use dtype='float32', or another device"
            )
        return getattr(self.xp, name)

    def has_dtype(self, name: str) -> bool:
        """Whether there are arrays of it on this device, which need not have all that its namespace has."""
        return name in self._dtypes or (name not in ("float64", "int64") and hasattr(self.xp, name))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.empty(shape, dtype=dtype, device=self.device)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.zeros(shape, dtype=dtype, device=self.device)

    def ones(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.ones(shape, dtype=dtype, device=self.device)

    def arange(self, stop: int, dtype: Any = None) -> Array:
        """``0, 1, ..., stop - 1`` as :attr:`integer` or the integer dtype given."""
        return self.xp.arange(stop, dtype=self.integer if dtype is None else dtype, device=self.device)

    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        """A copy of a NumPy array on this device, of the same dtype; integers that it has not as :attr:`integer`."""
        dtype = array.dtype.newbyteorder("=")
        name = dtype.name  # NumPy makes it anew each time, in a microsecond
        if name not in self._dtypes and dtype.kind in "iu":
            dtype = self._integer_of(array)
            name = dtype.name
        # Other libraries take neither other byte orders nor negative strides.
        plain = np.array(array, dtype=dtype, order="C", copy=True)
        return self.xp.asarray(plain, dtype=self.dtype(name), device=self.device)

    def _integer_of(self, array: np.ndarray[Any, Any]) -> np.dtype[Any]:
        """NumPy's dtype of :attr:`integer`, if it holds all entries."""
        dtype = np.dtype(str(self.integer).rpartition(".")[2])
        limits = np.iinfo(dtype)
        wrong = array[(array < limits.min) | (array > limits.max)]
        if wrong.size:
            raise ValueError(
                f"{wrong[0]} does not fit in {dtype.name}, the widest integer of {self.name}; expected at most "
                f"{limits.max}"
            )
        return dtype

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """A NumPy copy of an array of this device (synchronises)."""
        return host_copy(array)

    def owns(self, array: Any) -> bool:
        """Whether ``array`` is of this namespace and on this device."""
        if not array_api_compat.is_array_api_obj(array):
            return False
        return array_api_compat.array_namespace(array) is self.xp and array_api_compat.device(array) == self.device

    def copy(self, a: Array) -> Array:
        """A copy that shares no memory with ``a``."""
        return self.xp.asarray(a, copy=True)

    def reshape(self, a: Array, shape: tuple[int, ...]) -> Array:
        """``a`` in another shape; a view where that can be."""
        return self.xp.reshape(a, shape)

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

    @property
    def uploads(self) -> Uploads | None:
        """How arrays come here while the device computes; None where nothing is gained by that."""
        return None

    def cuda_device(self) -> CudaDevice | None:
        """Which CUDA device this is, for those who send its arrays; None where they have to go through the host."""
        return None

    # ---- kernels, where ``persistent`` is not False ---------------------------------------------------

    def cuda_limits(self) -> tuple[Mapping[str, int], tuple[int, int]]:
        """The attributes of a CUDA device, and its compute capability."""
        raise ValueError(f"{self.name} runs no kernels")

    def cuda_function(
        self, source: str, name: str, options: tuple[str, ...], *, shared: int, cooperative: bool
    ) -> tuple[Any, int]:
        """The function ``name`` of a CUDA text, compiled; and the bytes of its registers that have no room.

        ``shared``: bytes of shared memory that a block will have; ``cooperative``: blocks wait for each other.
        """
        raise ValueError(f"{self.name} runs no kernels")

    def cuda_operand(self, a: Array) -> Array:
        """``a``, or a copy of it in one piece that begins at a multiple of 16 bytes."""
        raise ValueError(f"{self.name} runs no kernels")

    def cuda_launch(
        self, function: Any, grid: tuple[int, int, int], threads: int, arguments: list[Any], *, shared: int
    ) -> None:
        """Launch a function: arrays in one piece or None, and whole numbers of 32 bits."""
        raise ValueError(f"{self.name} runs no kernels")

    def cuda_stream(self) -> Any:
        """Something that is the same only for launches that run one after the other."""
        raise ValueError(f"{self.name} runs no kernels")

    def nccl(self, size: int, rank: int) -> Any:
        """CuPy's NCCL communicator of all processes of an MPI job; all have to call this."""
        raise ValueError(f"{self.name} has no NCCL")

    # ---- primitives -----------------------------------------------------------------------------------

    def matmul_(self, out: Array, a: Array, b: Array) -> None:
        """``out <- a @ b``"""
        out[...] = self.xp.matmul(a, b)

    def transposed_products_(self, out: Array, a: Array, b: Array) -> None:
        """``out <- a^T b`` for each of many ``a (..., B, R, M)`` and ``b (..., B, R, F)``"""
        self.matmul_(out, a.mT, b)

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

    def column_reader(self, W: Array, b: Array | None, uses: int) -> Callable[[Array, Array], None]:
        """A function ``(out, index)`` that does ``out[i...] <- W[..., index[i...]] + b``, for ``uses`` numbers in all.

        ``W (..., M, I)`` and ``b (..., M)``, if any, stay as they are; ``out (S, ..., N, M)``, ``index (S, ..., N)``
        with axes in between that may be 1. Columns are read without a one-hot array.
        """
        xp, (*lead, M, I) = self.xp, W.shape  # noqa: E741
        if not lead and uses < I:

            def read_few_(out: Array, index: Array) -> None:  # fewer than there are columns: fetch those
                columns = xp.take(W, xp.reshape(index, (-1,)), axis=1)
                out[...] = xp.reshape(columns.mT, out.shape)
                if b is not None:
                    out += b

            return read_few_
        table: Array = None  # (I, M) rows: W[:, i] + b for every i, of one of the leading axes after the other

        def read_(out: Array, index: Array) -> None:
            nonlocal table
            if table is None:
                table = self.empty((*lead, I, M), out.dtype)  # each row in one piece
                table[...] = W.mT
                if b is not None:
                    table += b[..., None, :]
                table = xp.reshape(table, (-1, M)) if lead else table
            if lead:
                index = index + I * xp.reshape(self.arange(math.prod(lead)), (*lead, 1))
            self.take_rows_(out, table, index)

        return read_

    def column_sums(self, matrices: Sequence[Array], factors: Sequence[float]) -> list[Array]:
        """Of each ``(..., K, F)`` the sum of its rows, ``(..., F)``, times its factor; as exact as by pairs."""
        sums = [self.xp.sum(matrix, axis=-2) for matrix in matrices]
        return [total * factor for total, factor in zip(sums, factors, strict=True)]

    def sums_by_token(self, vocabulary: int, width: int) -> bool:
        """Whether columns of that many numbers are summed up by token, and not by products with one-hot rows.

        For that (``equations/token_sums.py``) arrays have to be indexed by arrays.
        """
        return False

    def add_rows_(self, out: Array, index: Array, rows: Array) -> None:
        """``out[index[k], :] += rows[k, :]`` for all k, ``out (V, F)``; each sum as exact as that of a few numbers."""
        K = index.shape[0]
        for start in range(0, K, ADDED_AT_ONCE):  # in blocks, so that one-hot rows take little
            part = slice(start, min(K, start + ADDED_AT_ONCE))
            out += self.xp.matmul(self.one_hot(index[part], out.shape[0], rows.dtype).mT, rows[part, :])

    def sums_by_index(self, rows: Array, index: Array, size: int) -> tuple[Array, Array]:
        """Of ``rows (K, F)`` the sums of those with the same ``index (K,)``, below ``size``: the indices, and the sums.

        There may be more indices, each once; their sums are 0.
        """
        return self.arange(size), self.xp.matmul(self.one_hot(index, size, rows.dtype).mT, rows)

    def over_rows(self, function: RowFunction) -> Callable[..., tuple[Array, ...]]:
        """A function of rows ``(..., O)``, of which each result row depends on one row of each argument, in one kernel
        where there are any.

        Its arguments, named by ``function.arguments``, are ``"entry"`` arrays that broadcast with the first, ``"row"``
        arrays without the last axis, a ``"target"``, of either kind, integers if it is without, and ``"number"``.
        """
        return partial(function, self)

    def fused(self, make: Callable[[Elementwise], Callable[..., None]]) -> Callable[..., None]:
        """The elementwise function ``make(ops)``, which writes into its arguments, as one kernel where there are any.

        Its arguments are arrays of one shape (or that broadcast to the first one's), then Python floats, on which
        it must not compute with each other: CuPy would do that in half precision.
        """
        return make(self.elementwise)

    def fused_over(self, make: Callable[[Elementwise], Callable[..., None]]) -> Callable[..., None]:
        """:meth:`fused` for many groups of arrays: a function ``(groups, *numbers)``, with a tuple of arrays a group.

        It is called for one after the other, or for all of them in as few launches as the device can.
        """
        function = self.fused(make)

        def over(groups: Iterable[tuple[Array, ...]], *numbers: float) -> None:
            for arrays in groups:
                function(*arrays, *numbers)

        return over

    def over_segment(self, make: Callable[[Elementwise], Callable[..., None]]) -> Callable[..., None]:
        """:meth:`fused` for whole segments ``(S, ...)``, where passes over blocks of steps may pay."""
        return self.fused(make)

    def largest_entries(self, grads: Mapping[str, Array], members: int | None) -> dict[str, Array] | None:
        """The largest absolute value of each array, of each of its members; None where that takes several calls."""
        return None

    def global_norm(self, grads: Mapping[str, Array], members: int | None) -> Array | None:
        """The Euclidean norm of all arrays together, of each of their members; or None."""
        return None

    def clipped(self, grads: Mapping[str, Array], max_norm: float, members: int | None) -> dict[str, Array] | None:
        """New arrays, scaled by ``min(1, max_norm / norm)`` of that norm; or None."""
        return None

    def minus_one_hot_(self, p: Array, index: Array, there: float | Array = 1.0) -> None:
        """``p[i..., index[i...]] -= there[i...]``, or one number for all."""
        one_hot = self.one_hot(index, p.shape[-1], p.dtype)
        if not isinstance(there, float):
            one_hot *= there[..., None]
        elif there != 1:
            one_hot *= there
        p -= one_hot

    def take_entries(self, table: Array, index: Array) -> Array:
        """``result[i...] = table[index[i...]]`` of ``table (K,)``."""
        return self.xp.reshape(self.xp.take(table, self.xp.reshape(index, (-1,)), axis=0), index.shape)

    def zero_unless_(self, a: Array, keep: Array) -> None:
        """``a <- 0`` where ``keep``, which broadcasts, is False; whatever was there."""
        a[...] = self.xp.where(keep, a, self.zeros((1,) * a.ndim, a.dtype))

    def one_hot(self, index: Array, size: int, dtype: Any) -> Array:
        """``result[i..., k] = 1 if index[i...] == k else 0``, shape ``(*index.shape, size)``."""
        return self.xp.astype(index[..., None] == self.arange(size), dtype)
