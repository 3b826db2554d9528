"""Functions of rows as one kernel: a group of threads for each row, which reads its entries once for each sum in it."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..tracing.program import Program
from ..tracing.rows import REDUCTIONS, traced
from ..tracing.text import PRELUDE, literal, statements
from .portable import Array, RowFunction

#: Threads of a block; rows of more entries than this have a block each.
THREADS, LONG = 128, 1024

#: By ``shared`` where a row has a whole block: then its warps meet there. Every thread gets the same number.
_REDUCTIONS = """
__device__ __forceinline__ T f_add(T a, T b) { return a + b; }
#define BPTT_REDUCTION(name, combine) \\
    __device__ __forceinline__ T name(T x, T* shared) { \\
        for (int n = (LANES < 32 ? LANES : 32) / 2; n; n /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, n)); \\
        if (LANES > 32) { \\
            __syncthreads(); \\
            if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x; \\
            __syncthreads(); \\
            x = shared[0]; \\
            for (int k = 1; k < LANES / 32; ++k) x = combine(x, shared[k]); \\
        } \\
        return x; \\
    }
BPTT_REDUCTION(sum_of_row, f_add)
BPTT_REDUCTION(max_of_row, f_max)
"""
_ADD = {"sum_of_row": ("(T)0", "f_add"), "max_of_row": (literal(-math.inf), "f_max")}

#: How the arguments of a function of rows are read.
NUMBER, ROW, ENTRY, CLASS = "number", "row", "entry", "class"


def kernel_text(program: Program, outputs: Sequence[tuple[int, bool]], kinds: Sequence[str | None]) -> str:
    """The body of the kernel: ``outputs`` are (k, one for a row)."""
    return _Body(program, outputs, kinds).text()


class _Body:
    def __init__(self, program: Program, outputs: Sequence[tuple[int, bool]], kinds: Sequence[str | None]) -> None:
        self.program = program
        self.outputs = outputs
        self.kinds = kinds
        self.levels: dict[int, int] = {}
        self.of_rows: dict[int, str] = {}  # what is at hand, everywhere: numbers of a row
        self.entries: dict[int, str] = {}  # leaves that are an entry, by the name of the array
        for number, kind in enumerate(kinds):
            if kind is None:
                continue
            k = program.leaf(f"a{number}").k
            if kind == ENTRY:
                self.entries[k] = f"a{number}"
            else:
                self.of_rows[k] = f"x{number}"

    def text(self) -> str:
        lines = list(self._heads())
        reductions = [k for k in self.program.needed(k for k, _ in self.outputs) if self._reduces(k)]
        levels: dict[int, list[int]] = {}
        for k in reductions:
            levels.setdefault(self._level(k), []).append(k)
        for level in sorted(levels):
            lines += self._sums([k for k in levels[level] if self.program.ops[k][0] in REDUCTIONS])
            lines += self._taken([k for k in levels[level] if self.program.ops[k][0] == "at"])
        of_rows = {f"o{n}[row]": k for n, (k, per_row) in enumerate(self.outputs) if per_row}
        of_entries = {f"o{n}[row * O + k]": k for n, (k, per_row) in enumerate(self.outputs) if not per_row}
        lines += ["if (here && lane == 0) {", *statements(self.program, of_rows, self.of_rows), "}"]
        lines += ["if (here) for (long long k = lane; k < O; k += LANES) {"]
        lines += [*statements(self.program, of_entries, self._at(of_entries.values(), "k")), "}"]
        return "\n".join(lines)

    def _heads(self) -> list[str]:
        lines = []
        for number, kind in enumerate(self.kinds):
            if kind not in (None, NUMBER):
                at = " + ".join(f"{index} * s.of[{number}][{axis}]" for axis, index in enumerate("aen"))
                lines.append(f"const {'I' if kind == CLASS else 'T'}* const p{number} = a{number} + {at};")
            if kind == ROW:
                lines.append(f"const T x{number} = *p{number};")
            if kind == CLASS:  # one that is none does not read past the end
                lines.append(f"const long long c{number} = *p{number}, x{number} = (c{number} % O + O) % O;")
        return lines

    def _reduces(self, k: int) -> bool:
        return self.program.ops[k][0] in (*REDUCTIONS, "at")

    def _level(self, k: int) -> int:
        """How many passes over a row it takes."""
        if k not in self.levels:
            below = [self._level(j) for j in self.program.operands(k)]
            self.levels[k] = max(below, default=0) + self._reduces(k)
        return self.levels[k]

    def _at(self, outputs: Any, index: str) -> dict[int, str]:
        """What is at hand for one entry."""
        given = dict(self.of_rows)
        for k, name in self.entries.items():
            number = name[1:]
            given[k] = f"p{number}[{index} * s.of[{number}][3]]"
        for k in self.program.needed(outputs, given):
            if self.program.ops[k][0] == "is_entry":
                number = self.of_rows[self.program.ops[k][1]][1:]
                given[k] = f"({index} == c{number} ? (T)1 : (T)0)"
        return given

    def _sums(self, ks: list[int]) -> list[str]:
        if not ks:
            return []
        lines = [f"T r{k} = {_ADD[self.program.ops[k][0]][0]};" for k in ks]
        terms = {f"const T t{k}": self.program.ops[k][1] for k in ks}
        lines += ["for (long long k = lane; k < O; k += LANES) {"]
        lines += statements(self.program, terms, self._at(terms.values(), "k"))
        for k in ks:
            lines.append(f"r{k} = {_ADD[self.program.ops[k][0]][1]}(r{k}, t{k});")
        lines.append("}")
        for k in ks:
            lines.append(f"r{k} = {self.program.ops[k][0]}(r{k}, shared);")
            self.of_rows[k] = f"r{k}"
        return lines

    def _taken(self, ks: list[int]) -> list[str]:
        lines = []
        for k in ks:
            _, entry, index = self.program.ops[k]
            place = self.of_rows[index]
            taken = statements(self.program, {f"r{k}": entry}, self._at([entry], place))
            lines += [f"T r{k};", "{", *taken, "}"]
            self.of_rows[k] = f"r{k}"
        return lines


def lanes_of(O: int) -> int:  # noqa: E741
    """How many threads a row has."""
    return THREADS if O > LONG else min(32, 1 << max(0, O - 1).bit_length())


class RowKernels:
    """Kernels of functions of rows, made when they are first called."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._kernels: dict[Any, tuple[Any, list[bool]]] = {}

    def __call__(self, function: RowFunction, v: Array, *more: Any) -> tuple[Array, ...]:
        """``function(backend, v, *more)``"""
        cupy, O, lead = self._cupy, v.shape[-1], v.shape[:-1]  # noqa: E741
        values = [v, *more]
        kinds = [_kind(a, said, v.ndim) for a, said in zip(values, function.arguments, strict=True)]
        key = function, v.dtype.char, lanes_of(O), *kinds
        if key not in self._kernels:
            self._kernels[key] = self._made(function, kinds, v.ndim, v.dtype, lanes_of(O))
        kernel, per_row = self._kernels[key]
        results = [cupy.empty(lead if one else v.shape, v.dtype) for one in per_row]
        rows = math.prod(lead)
        if rows and O:
            sizes = [1] * (3 - len(lead)) + [*lead, O]
            for a, kind in zip(values, kinds, strict=True):
                sizes += [0] * 4 if kind in (None, NUMBER) else _strides(a, kind)
            shape = np.void(struct.pack(f"={len(sizes)}q", *sizes))
            given = [v.dtype.type(a) if kind == NUMBER else a for a, kind in zip(values, kinds, strict=True) if kind]
            blocks = -(-rows // (THREADS // lanes_of(O)))
            kernel((blocks,), (THREADS,), (shape, *given, *results))
        return tuple(results)

    def _made(
        self, function: Any, kinds: list[str | None], ndim: int, dtype: Any, lanes: int
    ) -> tuple[Any, list[bool]]:
        text, per_row = source(function, kinds, ndim, "float" if dtype.itemsize == 4 else "double", lanes)
        return self._cupy.RawKernel(text, "bptt_rows", options=("--std=c++17",)), per_row


def source(
    function: Callable[..., Any], kinds: Sequence[str | None], ndim: int, real: str, lanes: int
) -> tuple[str, list[bool]]:
    """The whole text of a kernel, and of each result whether it is one number of a row."""
    axes = {NUMBER: 0, ROW: ndim - 1, ENTRY: ndim, CLASS: ndim - 1}
    given = [None if kind is None else (f"a{n}", kind != ENTRY, axes[kind]) for n, kind in enumerate(kinds)]
    program, results = traced(function, given)
    outputs = [(program.as_float(result.number).k, result.per_row) for result in results]
    body = kernel_text(program, outputs, kinds)
    types = {
        NUMBER: "const T x{}",
        ROW: "const T* __restrict__ a{}",
        ENTRY: "const T* __restrict__ a{}",
        CLASS: "const I* __restrict__ a{}",
    }
    parameters = [types[kind].format(n) for n, kind in enumerate(kinds) if kind is not None]
    parameters += [f"T* __restrict__ o{n}" for n in range(len(outputs))]
    text = f"""
typedef {real} T;
typedef long long I;
#define LANES {lanes}
#define THREADS {THREADS}
{PRELUDE}
{_REDUCTIONS}
struct Shape {{ long long A, E, N, O, of[{len(kinds)}][4]; }};

extern "C" __global__ void __launch_bounds__(THREADS) bptt_rows(const Shape s, {", ".join(parameters)}) {{
__shared__ T shared[THREADS / 32];
const long long O = s.O, rows = s.A * s.E * s.N;
const int lane = threadIdx.x % LANES;
long long row = (long long)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
const bool here = row < rows;
if (!here) row = rows - 1;  // all threads of a warp take part in its sums
const long long n = row % s.N, e = row / s.N % s.E, a = row / s.N / s.E;
{body}
}}
"""
    return text, [one for _, one in outputs]


def _kind(a: Any, said: str, ndim: int) -> str | None:
    """How an argument is read: ``said`` is that, or ``"target"`` for entries or numbers of classes."""
    if a is None:
        return None
    if said != "target":
        return said
    return ENTRY if a.ndim == ndim else CLASS


def _strides(a: Array, kind: str | None) -> list[int]:
    """In numbers, of the three axes of rows and that of entries: 0 where there is one of all."""
    strides = [0 if size == 1 else stride // a.itemsize for size, stride in zip(a.shape, a.strides, strict=True)]
    of_entries = strides.pop() if kind == ENTRY else 0
    return [0] * (3 - len(strides)) + [*strides, of_entries]
