"""Sums over the rows of several matrices in one launch, on a CUDA device."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .portable import Array

#: Threads of a block, and rows that each of them should read.
THREADS, ROWS_OF_A_THREAD = 256, 16
#: Blocks of one matrix beyond which its rows are not shared out to more, and matrices of a launch.
BLOCKS, MATRICES = 2048, 16

#: A block adds up some rows of 32 columns, or of more where these have few; the last one of those columns that is done
#: adds up what all of them found, in the order of the rows: the result does not depend on which it is. All in double:
#: in float a sum of a million would lose what makes it up.
SOURCE = r"""
struct Matrix {
    const T* rows;  // (lead, K, F)
    T* out;  // (lead, F)
    long long K, F, tiles, chunks, first, tickets, found;  // the first block, ticket and place for what a block finds
    long long width;  // of a tile of columns
    double factor;
};
struct Matrices { Matrix of[COUNT]; };

__device__ __forceinline__ double over_rows(double* shared, double mine, int width) {
    shared[threadIdx.x] = mine;
    __syncthreads();
    for (int n = THREADS / 2; n >= width; n /= 2) {
        if (threadIdx.x < n) shared[threadIdx.x] += shared[threadIdx.x + n];
        __syncthreads();
    }
    return shared[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(THREADS)
bptt_column_sums(const Matrices matrices, volatile double* found, unsigned int* tickets) {
    __shared__ double shared[THREADS];
    __shared__ bool last;
    int which = 0;
    while (which + 1 < COUNT && matrices.of[which + 1].first <= blockIdx.x) ++which;
    const Matrix& m = matrices.of[which];
    const long long block = blockIdx.x - m.first, chunk = block % m.chunks, tile = block / m.chunks;
    const int width = (int)m.width, lanes = THREADS / width;
    const int lane = threadIdx.x / width;
    const long long column = tile % m.tiles * width + threadIdx.x % width;
    const long long each = (m.K + m.chunks - 1) / m.chunks, stop = min(m.K, (chunk + 1) * each);
    double sum = 0;
    if (column < m.F) {
        const T* rows = m.rows + tile / m.tiles * m.K * m.F + column;
        #pragma unroll 4
        for (long long k = chunk * each + lane; k < stop; k += lanes) sum += (double)rows[k * m.F];
    }
    sum = over_rows(shared, sum, width);
    if (m.chunks > 1) {
        volatile double* of_tile = found + m.found + tile * m.chunks * width;
        if (lane == 0) of_tile[chunk * width + threadIdx.x] = sum;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) last = atomicAdd(tickets + m.tickets + tile, 1u) == (unsigned int)m.chunks - 1;
        __syncthreads();
        if (!last) return;
        __threadfence();
        if (threadIdx.x == 0) atomicExch(tickets + m.tickets + tile, 0u);
        sum = 0;
        for (long long k = lane; k < m.chunks; k += lanes) sum += of_tile[k * width + threadIdx.x % width];
        sum = over_rows(shared, sum, width);
    }
    if (lane == 0 && column < m.F) m.out[tile / m.tiles * m.F + column] = (T)(sum * m.factor);
}
"""


def kernel_text(real: str, count: int) -> str:
    """For so many matrices at once."""
    return f"typedef {real} T;\n#define COUNT {count}\n#define THREADS {THREADS}\n{SOURCE}"


_PACKED = struct.Struct("=10qd")


class _Layout(NamedTuple):
    """How the work on a matrix is shared out."""

    K: int
    F: int
    width: int
    tiles: int
    chunks: int
    blocks: int


def _layout(lead: int, K: int, F: int) -> _Layout:
    lanes = 1 << max(0, -(-K // ROWS_OF_A_THREAD) - 1).bit_length()  # that the rows of a column keep busy
    width = min(max(32, THREADS // lanes), 1 << max(0, F - 1).bit_length())
    tiles = -(-F // width)
    wanted = -(-K // (THREADS // width * ROWS_OF_A_THREAD))
    chunks = max(1, min(wanted, BLOCKS // max(1, lead * tiles)))
    return _Layout(K, F, width, tiles, chunks, lead * tiles * chunks)


class ColumnSums:
    """Of arrays of one dtype, ``(..., K, F)`` to ``(..., F)``, each times its factor; ``stream()`` is the one."""

    def __init__(self, cupy: Any, dtype: Any, stream: Callable[[], Any]) -> None:
        self._cupy = cupy
        self._dtype = dtype
        self._stream = stream
        self._kernels: dict[int, Any] = {}
        self._tickets: dict[Any, Array] = {}  # by stream: all zero between launches

    def __call__(self, matrices: Sequence[Array], factors: Sequence[float]) -> list[Array]:
        found = []
        for k in range(0, len(matrices), MATRICES):
            found += self._launch(matrices[k : k + MATRICES], factors[k : k + MATRICES])
        return found

    def _launch(self, matrices: Sequence[Array], factors: Sequence[float]) -> list[Array]:
        cupy = self._cupy
        matrices = [cupy.ascontiguousarray(matrix) for matrix in matrices]
        results = [cupy.empty((*matrix.shape[:-2], matrix.shape[-1]), self._dtype) for matrix in matrices]
        first = tickets = found = 0
        packed = []
        for matrix, out, factor in zip(matrices, results, factors, strict=True):
            *lead, K, F = matrix.shape
            layout = _layout(math.prod(lead), K, F)
            places = first, tickets, found, layout.width
            packed.append(
                _PACKED.pack(matrix.data.ptr, out.data.ptr, K, F, layout.tiles, layout.chunks, *places, factor)
            )
            first += layout.blocks
            if layout.chunks > 1:
                tickets += layout.blocks // layout.chunks
                found += layout.blocks * layout.width
        if first:
            room = cupy.empty(max(1, found), "float64")
            kernel = self._kernel(len(matrices))
            kernel((first,), (THREADS,), (np.void(b"".join(packed)), room, self._tickets_of_stream()))
        return results

    def _kernel(self, count: int) -> Any:
        if count not in self._kernels:
            text = kernel_text("float" if self._dtype.itemsize == 4 else "double", count)
            self._kernels[count] = self._cupy.RawKernel(text, "bptt_column_sums", options=("--std=c++17",))
        return self._kernels[count]

    def _tickets_of_stream(self) -> Array:
        """Two streams may run a launch at the same time."""
        stream = self._stream()
        if stream not in self._tickets:
            self._tickets[stream] = self._cupy.zeros(BLOCKS // 2 * MATRICES, "uint32")
        return self._tickets[stream]
