"""A program as C++ statements, of a type ``T`` and functions ``f_tanh``, ``f_exp``, ..."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .program import BOOLEAN, COMPARE, INFIX, LOGIC, CannotTraceError, Program

#: The functions that a program may call, for a type T of float or double; max and min pass NaN on, as NumPy does.
PRELUDE = """
#define BPTT_F(name, call) \\
    __device__ __forceinline__ T f_##name(T x) { return sizeof(T) == 4 ? (T)call##f((float)x) : (T)call((double)x); }
BPTT_F(tanh, tanh) BPTT_F(exp, exp) BPTT_F(log, log) BPTT_F(sqrt, sqrt) BPTT_F(abs, fabs) BPTT_F(sin, sin)
BPTT_F(cos, cos) BPTT_F(atan, atan) BPTT_F(sinh, sinh) BPTT_F(cosh, cosh) BPTT_F(expm1, expm1) BPTT_F(log1p, log1p)
__device__ __forceinline__ T f_pow(T a, T b) {
    return sizeof(T) == 4 ? (T)powf((float)a, (float)b) : (T)pow((double)a, (double)b);
}
__device__ __forceinline__ T f_max(T a, T b) { return a > b || a != a ? a : b; }
__device__ __forceinline__ T f_min(T a, T b) { return a < b || a != a ? a : b; }
"""


def literal(value: float) -> str:
    """A number of Python as one of type T."""
    infinity = "f_exp((T)1e4)"  # NVRTC has no INFINITY
    if math.isfinite(value):
        return f"(T){value!r}"
    return f"({infinity} - {infinity})" if math.isnan(value) else infinity if value > 0 else f"(-{infinity})"


def statements(program: Program, outputs: Mapping[str, int], given: Mapping[int, str]) -> list[str]:
    """C++ for ``outputs {lvalue: k}`` from ``given {k: expression}``."""
    names = dict(given)
    lines = []
    for k in program.needed(outputs.values(), given):
        if k in names:
            continue
        op, *args = program.ops[k]
        if op in ("const", "bool"):
            names[k] = literal(args[0]) if op == "const" else str(args[0]).lower()
            continue
        if op == "leaf":
            raise CannotTraceError(f"uses {args[0]}, which is not at hand here")
        names[k] = f"v{k}"
        kind = "bool" if op in BOOLEAN else "T"
        lines.append(f"const {kind} v{k} = {_expression(op, [names[a] for a in args])};")
    return lines + [f"{name} = {names[k]};" for name, k in outputs.items() if names[k] != name]


def _expression(op: str, x: list[str]) -> str:
    symbol = INFIX.get(op) or COMPARE.get(op) or LOGIC.get(op)
    if symbol:
        return f"{x[0]} {symbol} {x[1]}"
    if op == "where":
        return f"{x[0]} ? {x[1]} : {x[2]}"
    return f"-{x[0]}" if op == "neg" else f"!{x[0]}" if op == "not" else f"f_{op}({', '.join(x)})"
