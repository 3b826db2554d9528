"""CuPy on a CUDA device, and what can be asked of CuPy before one is used.

The only file that imports cupy, and only where a CUDA device is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from .cuda_columns import ColumnSums
from .cuda_norms import CudaNorms
from .cuda_rows import RowKernels
from .cuda_updates import FusedOver
from .cuda_uploads import CudaUploads
from .portable import Array, Backend, CudaDevice, Elementwise, RowFunction, flag, place

_Result = TypeVar("_Result")


@place(persistent=flag)
class CupyBackend(Backend):
    """CuPy on one CUDA device.

    Parameters
    ----------
    index : int
        Of the device.
    persistent : bool, optional
        Whether a segment of time is one launch each way, where there is a kernel for it; may be set later. If left out,
        unless ``BPTT_ARRAY_PERSISTENT=0`` is in the environment.
    """

    cupy: Any
    gemm: Any
    _index: int
    _fused: dict[Any, Callable[..., None]]
    _fused_over: dict[Any, Callable[..., None]]
    _one_minus_square: Any
    _norms: CudaNorms
    _one_hot: Any
    _batched: Any
    _read_columns: Any
    _column_sums: dict[Any, ColumnSums]
    _rows: RowKernels
    _not_compiled: set[str]

    #: A launch costs the host 10-20 us whatever its size, so segments are long on a GPU.
    segment_bytes = 1 << 26
    temporaries = False
    persistent = True
    sums_columns = True

    def __init__(self, index: int, *, persistent: bool | None = None) -> None:
        import array_api_compat.cupy
        import cupy

        if persistent is None:
            said = os.environ.get("BPTT_ARRAY_PERSISTENT", "1")
            if said not in ("0", "1"):
                raise ValueError(f"BPTT_ARRAY_PERSISTENT={said!r} in the environment; expected 0 or 1")
            persistent = said == "1"
        if not flag("persistent", persistent):
            self.persistent = False

        self.cupy = cupy
        self._index = index
        self._fused = {}
        self._fused_over = {}
        with self.active():
            super().__init__(array_api_compat.cupy)
            self.gemm = self._find_gemm()
            self._batched = self._find_batched()
        self._norms = CudaNorms(cupy, index, self.cuda_stream)
        self._one_minus_square = cupy.ElementwiseKernel("T y", "T out", "out = 1 - y * y", "bptt_one_minus_square")
        self._one_hot = cupy.ElementwiseKernel(
            "I index, int64 size", "T out", "out = index == i % size", "bptt_one_hot"
        )
        # A number that is none of a column wraps, as in a take.
        column = "W[((i / M / N) % E * M + i % M) * columns + (index % columns + columns) % columns]"
        self._read_columns = cupy.ElementwiseKernel(
            "raw T W, T b, I index, int64 E, int64 N, int64 M, int64 columns",
            "T out",
            f"out = {column} + b",
            "bptt_read_columns",
        )
        self._column_sums = {}
        self._rows = RowKernels(cupy)
        self._not_compiled = set()

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

    def _find_batched(self) -> Any:
        """cuBLAS' product of many matrices, of which one is transposed without a copy: ``(out, a, b)``, in float32.

        ``None`` where CuPy has none with these arguments; copies are then multiplied.
        """
        one, zero = np.ones(1, "float32"), np.zeros(1, "float32")

        def batched(out: Array, a: Array, b: Array) -> None:  # out^T = b^T a, by columns
            cublas, (B, R, M), F = self.cupy.cuda.cublas, a.shape, b.shape[-1]
            handle = self.cupy.cuda.get_cublas_handle()
            mode = cublas.getPointerMode(handle)
            cublas.setPointerMode(handle, cublas.CUBLAS_POINTER_MODE_HOST)
            try:
                operands = one.ctypes.data, b.data.ptr, F, R * F, a.data.ptr, M, R * M, zero.ctypes.data
                order = cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_T
                cublas.sgemmStridedBatched(handle, *order, F, M, R, *operands, out.data.ptr, F, M * F, B)
            finally:
                cublas.setPointerMode(handle, mode)

        try:
            a, b = (self.cupy.arange(4 * R, dtype="float32").reshape(2, 2, R) for R in (3, 5))
            out = self.cupy.empty((2, 3, 5), "float32")
            batched(out, a, b)
            return batched if (out == self.cupy.matmul(a.mT, b)).all() else None
        except (AttributeError, TypeError):
            return None

    def __reduce__(self) -> tuple[Any, ...]:
        return CupyBackend, (self._index,), self.settings

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

    @cached_property
    def uploads(self) -> CudaUploads:
        with self.active():
            return CudaUploads(self.cupy, self._index)

    def cuda_device(self) -> CudaDevice | None:
        nccl = importlib.import_module("cupy.cuda.nccl")
        return CudaDevice(self.cupy.cuda.Device(self._index).pci_bus_id, bool(nccl.available))

    def cuda_limits(self) -> tuple[Mapping[str, int], tuple[int, int]]:
        device = self.cupy.cuda.Device(self._index)
        major_minor = int(device.compute_capability)
        return device.attributes, (major_minor // 10, major_minor % 10)

    def cuda_function(
        self, source: str, name: str, options: tuple[str, ...], *, shared: int, cooperative: bool
    ) -> tuple[Any, int]:
        # CuPy keeps what it compiled on disk, by the text and the options.
        module = self.cupy.RawModule(code=source, options=options, enable_cooperative_groups=cooperative)
        function = module.get_function(name)
        if shared > 48 << 10:
            function.max_dynamic_shared_size_bytes = shared
        return function, int(function.local_size_bytes)

    def cuda_operand(self, a: Array) -> Array:
        a = self.cupy.ascontiguousarray(a)
        return a if a.data.ptr % 16 == 0 else a.copy()

    def cuda_launch(
        self, function: Any, grid: tuple[int, int, int], threads: int, arguments: list[Any], *, shared: int
    ) -> None:
        null, int32 = np.intp(0), np.int32
        passed = [null if a is None else int32(a) if type(a) is int else a for a in arguments]
        function(grid, (threads,), passed, shared_mem=shared)

    def cuda_stream(self) -> Any:
        stream = self.cupy.cuda.get_current_stream().ptr
        return stream, threading.get_ident() if stream == _OF_EACH_THREAD else None

    def nccl(self, size: int, rank: int) -> Any:
        import cupyx.distributed

        return cupyx.distributed.init_process_group(size, rank, use_mpi=True)

    def matmul_(self, out: Array, a: Array, b: Array) -> None:
        self.cupy.matmul(a, b, out=out)

    def transposed_products_(self, out: Array, a: Array, b: Array) -> None:
        batched = self._batched
        if batched is None or a.ndim != 3 or not all(array.flags.c_contiguous for array in (out, a, b)):
            self.cupy.matmul(a.mT, b, out=out)  # which copies what is transposed
        else:
            batched(out, a, b)

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

    def one_hot(self, index: Array, size: int, dtype: Any) -> Array:
        return self._one_hot(index[..., None], size, self.empty((*index.shape, size), dtype))

    def copy(self, a: Array) -> Array:
        result = self.cupy.empty(a.shape, a.dtype)
        result[...] = a  # no launch where a is in one piece
        return result

    def column_reader(self, W: Array, b: Array, uses: int) -> Callable[[Array, Array], None]:
        *lead, M, columns = W.shape
        b = b[..., None, :]

        def read_(out: Array, index: Array) -> None:
            self._read_columns(W, b, index[..., None], math.prod(lead), out.shape[-2], M, columns, out)

        return read_

    def column_sums(self, matrices: Sequence[Array], factors: Sequence[float]) -> list[Array]:
        dtype = matrices[0].dtype
        if dtype not in self._column_sums:
            self._column_sums[dtype] = ColumnSums(self.cupy, dtype, self.cuda_stream)
        return self._compiled_or(
            "sums over rows",
            lambda: self._column_sums[dtype](matrices, factors),
            lambda: super(CupyBackend, self).column_sums(matrices, factors),
        )

    def over_rows(self, function: RowFunction) -> Callable[..., tuple[Array, ...]]:
        def run(*values: Any) -> tuple[Array, ...]:
            return self._compiled_or(
                "a loss in one launch", lambda: self._rows(function, *values), lambda: function(self, *values)
            )

        return run

    def _compiled_or(self, what: str, launch: Callable[[], _Result], instead: Callable[[], _Result]) -> _Result:
        """``launch()``, or ``instead()`` where its kernel does not compile, which is said once."""
        if what not in self._not_compiled:
            try:
                return launch()
            except self.cupy.cuda.compiler.CompileException as error:
                self._not_compiled.add(what)
                said = str(error).strip() or type(error).__name__
                warnings.warn(
                    f"the kernel for {what} did not compile: {said.splitlines()[0]}. Results are the same, only "
                    "slower. Please report this with the output of `python -m bptt_array info`.",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return instead()

    def fused(self, make: Callable[[Elementwise], Callable[..., None]]) -> Callable[..., None]:
        if make not in self._fused:
            self._fused[make] = self.cupy.fuse(make(self.elementwise))
        return self._fused[make]

    def fused_over(self, make: Callable[[Elementwise], Callable[..., None]]) -> Callable[..., None]:
        if make not in self._fused_over:
            self._fused_over[make] = FusedOver(self.cupy, make, self.fused(make))
        return self._fused_over[make]

    def largest_entries(self, grads: Mapping[str, Array], members: int | None) -> dict[str, Array] | None:
        return self._norms.largest_entries(grads, members)

    def global_norm(self, grads: Mapping[str, Array], members: int | None) -> Array | None:
        return self._norms.global_norm(grads, members)

    def clipped(self, grads: Mapping[str, Array], max_norm: float, members: int | None) -> dict[str, Array] | None:
        return self._norms.clipped(grads, max_norm, members)


#: The stream that has this number is another one in every thread (cudaStreamPerThread).
_OF_EACH_THREAD = 2


def _add_product_of(ops: Elementwise) -> Callable[[Array, Array, Array], None]:
    def add(out: Array, a: Array, b: Array) -> None:
        out += a * b

    return add


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
