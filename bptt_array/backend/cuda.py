"""CuPy on a CUDA device, and what can be asked of CuPy before one is used.

The only file that imports cupy, and only where a CUDA device is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .columns import ColumnSums
from .portable import Array, Backend, CudaDevice, Elementwise, RowFunction, place
from .row_kernels import RowKernels


@place
class CupyBackend(Backend):
    """CuPy on one CUDA device."""

    cupy: Any
    gemm: Any
    _index: int
    _fused: dict[Any, Callable[..., None]]
    _one_minus_square: Any
    _one_hot: Any
    _batched: Any
    _read_columns: Any
    _column_sums: dict[Any, ColumnSums]
    _rows: RowKernels

    #: A launch costs the host 10-20 us whatever its size, so segments are long on a GPU.
    segment_bytes = 1 << 26
    temporaries = False
    sums_columns = True

    def __init__(self, index: int) -> None:
        import array_api_compat.cupy
        import cupy

        self.cupy = cupy
        self._index = index
        self._fused = {}
        with self.active():
            super().__init__(array_api_compat.cupy)
            self.gemm = self._find_gemm()
            self._batched = self._find_batched()
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

    def cuda_device(self) -> CudaDevice | None:
        nccl = importlib.import_module("cupy.cuda.nccl")
        return CudaDevice(self.cupy.cuda.Device(self._index).pci_bus_id, bool(nccl.available))

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
            self._column_sums[dtype] = ColumnSums(self.cupy, dtype)
        return self._column_sums[dtype](matrices, factors)

    def over_rows(self, function: RowFunction) -> Callable[..., tuple[Array, ...]]:
        def run(*values: Any) -> tuple[Array, ...]:
            return self._rows(function, *values)

        return run

    def fused(self, make: Callable[[Elementwise], Callable[..., None]]) -> Callable[..., None]:
        if make not in self._fused:
            self._fused[make] = self.cupy.fuse(make(self.elementwise))
        return self._fused[make]


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
