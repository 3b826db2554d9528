"""Rows added to those of a table by their numbers, on a CUDA device: the gradient of an embedding."""

from __future__ import annotations

from typing import Any

from .portable import Array

#: Threads of a block: so many columns of one row of the table.
THREADS = 128

#: A block looks for its row among all numbers and adds up what there is in their order, in double: the result is the
#: same each time, as it is not where threads add to the table as they come. Rows that no number names cost one look.
SOURCE = r"""
__device__ __forceinline__ long long wrapped(long long index, long long V) { return (index % V + V) % V; }

extern "C" __global__ void __launch_bounds__(THREADS)
bptt_add_rows(T* out, const T* __restrict__ rows, const long long* __restrict__ index, const int* __restrict__ named,
              long long K, long long V, long long F) {
    __shared__ unsigned int found[THREADS / 32];
    const long long v = blockIdx.x, f = (long long)blockIdx.y * THREADS + threadIdx.x;
    if (!named[v]) return;
    double sum = 0;
    for (long long first = 0; first < K; first += THREADS) {
        const long long k = first + threadIdx.x;
        const unsigned int here = __ballot_sync(0xffffffffu, k < K && wrapped(index[k], V) == v);
        if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = here;
        __syncthreads();
        for (int w = 0; w < THREADS / 32; ++w)
            for (unsigned int left = found[w]; left; left &= left - 1)
                if (f < F) sum += (double)rows[(first + 32 * w + __ffs(left) - 1) * F + f];
        __syncthreads();
    }
    if (f < F) out[v * F + f] += (T)sum;
}
"""


def kernel_text(real: str) -> str:
    return f"typedef {real} T;\n#define THREADS {THREADS}\n{SOURCE}"


class AddRows:
    """``out[index[k], :] += rows[k, :]`` for arrays of one dtype; a number that is no row's wraps, as in a take."""

    def __init__(self, cupy: Any, dtype: Any) -> None:
        self._cupy = cupy
        real = "float" if dtype.itemsize == 4 else "double"
        self._kernel = cupy.RawKernel(kernel_text(real), "bptt_add_rows", options=("--std=c++17",))
        self._name = cupy.ElementwiseKernel(
            "I index, int64 V", "raw int32 named", "named[(index % V + V) % V] = 1", "bptt_named_rows"
        )

    def __call__(self, out: Array, index: Array, rows: Array) -> None:
        cupy, (V, F), K = self._cupy, out.shape, index.shape[0]
        if not K:
            return
        index, rows = cupy.ascontiguousarray(index, "int64"), cupy.ascontiguousarray(rows)
        named = cupy.zeros(V, "int32")
        self._name(index, V, named)
        self._kernel((V, -(-F // THREADS)), (THREADS,), (out, rows, index, named, K, V, F))
