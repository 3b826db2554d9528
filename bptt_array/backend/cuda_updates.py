"""One elementwise function over many groups of arrays, as one launch on CUDA.

The text of the kernel is written down from the Python function, by :mod:`bptt_array.tracing`; what stands here is
which block computes what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..tracing.program import CannotTraceError
from ..tracing.text import PRELUDE, statements
from .portable import Array
from .traced import Make, traced

#: C++ names of dtypes; arrays of others are left to CuPy.
TYPES = {"float32": "float", "float64": "double"}
OPTIONS = ("--std=c++17",)
#: A kernel takes at most so many bytes of arguments, on every device and with every driver.
ARGUMENT_BYTES = 4096

_THREADS, _EACH = 256, 4
_CHUNK = _THREADS * _EACH  # entries of a block

_TEXT = """
typedef {T} T;
{prelude}
struct Groups {{
    T* array[{arrays}][{most}];
    long long size[{most}];       // entries of each of a group's arrays
    long long first[{most}];      // its first block
}};

extern "C" __global__ void __launch_bounds__({threads}) over({arguments}) {{
    int g = 0, end = count;       // the last group that begins at this block or before it
    while (end - g > 1) {{
        const int middle = (g + end) / 2;
        if (groups.first[middle] <= blockIdx.x) g = middle; else end = middle;
    }}
    const long long begin = (blockIdx.x - groups.first[g]) * {chunk};
    #pragma unroll
    for (int k = 0; k < {each}; ++k) {{
        const long long i = begin + k * {threads} + threadIdx.x;
        if (i >= groups.size[g]) return;
        {body}
    }}
}}
"""


class FusedOver:
    """``function(groups, *numbers)``: ``make(ops)`` over every group of arrays, in as few launches as there can be.

    Groups of one dtype are computed together. Those whose arrays are of several shapes, dtypes or orders go through
    ``one_by_one``, as do all of them, in their order, where arrays share memory, and where the function is none that
    can be traced or compiled.
    """

    def __init__(self, cupy: Any, make: Make, one_by_one: Callable[..., None]) -> None:
        self._cupy = cupy
        self._make = make
        self._one_by_one = one_by_one
        self._kernels: dict[tuple[str, int, int], Any] = {}

    def __call__(self, groups: Sequence[tuple[Array, ...]], *numbers: float) -> None:
        together: dict[str, list[tuple[Array, ...]]] = {}
        alone = []
        for arrays in groups:
            name = _dtype_of_alike(arrays)
            if name is None:
                alone.append(arrays)
            elif arrays[0].size:
                together.setdefault(name, []).append(arrays)
        if self._any_share_memory([a for arrays in groups for a in arrays]):
            together, alone = {}, list(groups)
        for name, alike in together.items():
            key = name, len(alike[0]), len(numbers)
            if key not in self._kernels:
                self._kernels[key] = self._compiled(*key)
            if self._kernels[key] is None:
                alone += alike
            else:
                _launch(self._kernels[key], alike, numbers)
        for arrays in alone:
            self._one_by_one(*arrays, *numbers)

    def _any_share_memory(self, arrays: Sequence[Array]) -> bool:
        """Whether the bytes between first and last of two arrays meet: then what is written first matters."""
        bounds = np.asarray([self._bounds(a) for a in arrays if a.size], np.uint64).reshape(-1, 2)
        begins, ends = bounds[np.argsort(bounds[:, 0])].T
        return bool((ends[:-1] > begins[1:]).any())

    def _bounds(self, a: Array) -> tuple[int, int]:
        if a.flags.c_contiguous:
            begin = a.data.ptr
            return begin, begin + a.nbytes
        low, high = self._cupy.byte_bounds(a)
        return low, high

    def _compiled(self, dtype: str, arrays: int, numbers: int) -> Any:
        """The kernel, or None where there can be none."""
        try:
            text = kernel_text(self._make, TYPES[dtype], arrays, numbers)
            return self._cupy.RawModule(code=text, options=OPTIONS).get_function("over")
        except (CannotTraceError, self._cupy.cuda.compiler.CompileException):
            return None


def _dtype_of_alike(arrays: Sequence[Array]) -> str | None:
    """The dtype of arrays of one dtype and shape that lie in order in memory; None for others."""
    first = arrays[0]
    dtype, shape = first.dtype, first.shape
    for a in arrays:
        if a.dtype != dtype or a.shape != shape or not a.flags.c_contiguous:
            return None
    return {"f": "float32", "d": "float64"}.get(dtype.char)


def most_groups(arrays: int, numbers: int) -> int:
    """How many groups of so many arrays fit in the arguments of one launch, beside so many numbers."""
    return (ARGUMENT_BYTES - 8 * (1 + numbers)) // (8 * (arrays + 2))


def _launch(kernel: Any, groups: Sequence[tuple[Array, ...]], numbers: Sequence[float]) -> None:
    width = len(groups[0])
    most = most_groups(width, len(numbers))
    for part in _parts(groups, most):
        table = np.zeros((width + 2, most), np.int64)
        sizes = [arrays[0].size for arrays in part]
        ends = np.cumsum([-(-size // _CHUNK) for size in sizes])
        table[:width, : len(part)] = np.asarray([[a.data.ptr for a in arrays] for arrays in part]).T
        table[-2, : len(part)] = sizes
        table[-1, 1 : len(part)] = ends[:-1]
        struct = table.reshape(-1).view(np.dtype((np.void, table.nbytes)))[0]
        kernel((int(ends[-1]),), (_THREADS,), (struct, np.int64(len(part)), *map(float, numbers)))


def _parts(groups: Sequence[tuple[Array, ...]], most: int) -> Iterator[Sequence[tuple[Array, ...]]]:
    return (groups[k : k + most] for k in range(0, len(groups), most))


def kernel_text(make: Make, T: str, arrays: int, numbers: int) -> str:
    """C++ for ``make(ops)``, of so many arrays and numbers; an array that it has written to is written.

    Raises
    ------
    CannotTraceError
        If it is not elementwise.
    """
    program, operands, scalars, written = traced(make, {"float": "float32", "double": "float64"}[T], arrays, numbers)
    given = {operand: f"groups.array[{k}][g][i]" for k, operand in enumerate(operands)}
    outputs = {given[operands[k]]: value for k, value in written.items()}
    # Arguments come in double precision, as Python has them, and are rounded to that of the arrays, as NumPy does it.
    names = {number: f"(T)x{k}" for k, number in enumerate(scalars)}
    # Every array is read before one is written.
    read = {k: f"r{i}" for i, k in enumerate(given) if k in program.needed(outputs.values())}
    lines = [f"const T {name} = {given[k]};" for k, name in read.items()]
    lines += statements(program, outputs, names | read)
    return _TEXT.format(
        T=T,
        prelude=PRELUDE,
        arrays=arrays,
        most=most_groups(arrays, numbers),
        threads=_THREADS,
        each=_EACH,
        chunk=f"{_CHUNK}LL",
        arguments=", ".join(
            ["const Groups groups", "const long long count", *(f"double x{k}" for k in range(numbers))]
        ),
        body="\n        ".join(lines),
    )
