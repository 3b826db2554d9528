"""The gates of a step: sigmoid and tanh, each of its part of z."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

from ..backend.portable import Array, Backend, Elementwise
from .cell import Step


def gate_functions(
    backend: Backend, names: tuple[str, ...], rows: tuple[int, ...], dtype: Any
) -> Callable[[Array, Array], None]:
    """A function ``(gates, z)``, ``(G, ..., N, H)``, that does ``gates[k] <- f_k(z[k])``.

    Names are ``"sigmoid"`` or ``"tanh"``; ``rows (..., N)``. ``sigmoid(z) = 1/2 + 1/2 tanh(z/2)``, so there is one
    function for all, and none overflows. With gates apart (:attr:`Cell.gates_apart`) z is gates.
    """
    if backend.gates_apart:
        return _in_place(backend, names, dtype)
    slope = backend.ones((len(names), *(1,) * len(rows), 1), dtype)
    for k, name in enumerate(names):
        slope[k, ...] = 0.5 if name == "sigmoid" else 1.0
    shift, gates_ = 1 - slope, backend.fused(_by_slope)
    return lambda gates, z: gates_(gates, z, slope, shift)


def sigmoid_of_sum(ops: Elementwise) -> Step:
    """``gates <- sigmoid(z + of_h)``, elementwise."""

    def gates_(gates: Array, z: Array, of_h: Array) -> None:
        ops.add_(gates, z, of_h)
        gates *= 0.5
        ops.tanh_(gates, gates)
        gates *= 0.5
        gates += 0.5  # sigmoid(z) = 1/2 + 1/2 tanh(z/2)

    return gates_


def _by_slope(ops: Elementwise) -> Step:
    def gates_(gates: Array, z: Array, slope: Array, shift: Array) -> None:
        ops.multiply_(gates, z, slope)
        ops.tanh_(gates, gates)
        gates *= slope
        gates += shift

    return gates_


def _in_place(backend: Backend, names: tuple[str, ...], dtype: Any) -> Callable[[Array, Array], None]:
    """Of neighbours that are sigmoids all at once: NumPy is several times faster in one piece, and with one number."""
    ops, half = backend.elementwise, backend.ones((), dtype)
    half *= 0.5
    sigmoids, first = [], 0
    for name, group in groupby(names):
        last = first + len(list(group))
        if name == "sigmoid":
            sigmoids.append(slice(first, last))
        first = last

    def gates_(gates: Array, z: Array) -> None:
        parts = [gates[part] for part in sigmoids]
        for part in parts:
            ops.multiply_(part, part, half)
        ops.tanh_(gates, gates)
        for part in parts:
            ops.multiply_(part, part, half)
            ops.add_(part, part, half)

    return gates_
