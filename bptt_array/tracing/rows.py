"""Functions of rows ``(..., O)``, elementwise and over the last axis, run on symbols for an entry and for a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .program import COMPARE, CannotTraceError, Number, Program

#: Over the entries of a row; ``("at", k, class)`` is the entry of which the row has the number.
REDUCTIONS = ("sum_of_row", "max_of_row")

#: Elementwise functions of an array namespace, and what they are in a program.
_FUNCTIONS = {name: name for name in ("exp", "log", "log1p", "tanh", "sqrt", "where")} | {
    "abs": "abs",
    "maximum": "max",
    "minimum": "min",
}


class RowSymbol:
    """``(..., O)`` or, with ``per_row``, ``(..., 1)`` and ``(...)``: one symbol, since all rows and entries are alike.

    Writing in place exchanges the symbol. Indices only add or leave out axes of 1.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, number: Number, *, per_row: bool, ndim: int) -> None:
        self.number = number
        self.per_row = per_row
        self.ndim = ndim

    @property
    def shape(self) -> tuple[None, ...]:
        return (None,) * self.ndim

    dtype = None

    def __getitem__(self, index: Any) -> RowSymbol:
        parts = index if isinstance(index, tuple) else (index,)
        if any(part not in (..., None, 0) for part in parts) or (0 in parts and not self.per_row):
            raise CannotTraceError(f"takes [{index}] of rows")
        return RowSymbol(self.number, per_row=self.per_row, ndim=self.ndim + parts.count(None) - parts.count(0))

    def __setitem__(self, index: Any, value: Any) -> None:
        if index is not ...:
            raise CannotTraceError(f"writes to [{index}] of rows")
        self._become(value if isinstance(value, RowSymbol) else RowSymbol(self._number(value), per_row=True, ndim=0))

    def _number(self, value: Any) -> Number:
        return self.number.program.number(value)

    def _become(self, other: RowSymbol) -> RowSymbol:
        if self.per_row and not other.per_row:
            raise CannotTraceError("writes a row into a number of a row")
        self.number = other.number
        return self

    def __bool__(self) -> bool:
        raise CannotTraceError("asks whether numbers are true: use xp.where")


def _apply(name: str, *operands: Any) -> RowSymbol:
    symbols = [a for a in operands if isinstance(a, RowSymbol)]
    numbers = [a.number if isinstance(a, RowSymbol) else a for a in operands]
    number = symbols[0].number.program.apply(name, *numbers)
    return RowSymbol(number, per_row=all(a.per_row for a in symbols), ndim=max(a.ndim for a in symbols))


def _operator(name: str, *, swapped: bool = False, in_place: bool = False) -> Callable[..., RowSymbol]:
    def method(self: RowSymbol, *other: Any) -> RowSymbol:
        result = _apply(name, *((*other, self) if swapped else (self, *other)))
        return self._become(result) if in_place else result

    return method


for _name, _op in {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div"}.items():
    setattr(RowSymbol, f"__{_name}__", _operator(_op))
    setattr(RowSymbol, f"__r{_name}__", _operator(_op, swapped=True))
    setattr(RowSymbol, f"__i{_name}__", _operator(_op, in_place=True))
for _name in COMPARE:
    setattr(RowSymbol, f"__{_name}__", _operator(_name))
for _name, _op in {"neg": "neg", "abs": "abs"}.items():
    setattr(RowSymbol, f"__{_name}__", _operator(_op))


class RowNamespace:
    """What a function of rows may call, of the Array API."""

    def __getattr__(self, name: str) -> Callable[..., RowSymbol]:
        if name not in _FUNCTIONS:
            raise CannotTraceError(f"uses xp.{name}, which is not for functions of rows")
        return lambda *operands: _apply(_FUNCTIONS[name], *operands)

    def max(self, a: RowSymbol, axis: int, keepdims: bool = False) -> RowSymbol:
        return self._reduced("max_of_row", a, axis, keepdims)

    def sum(self, a: RowSymbol, axis: int, keepdims: bool = False) -> RowSymbol:
        return self._reduced("sum_of_row", a, axis, keepdims)

    def clip(self, a: RowSymbol, least: float, most: float) -> RowSymbol:
        return _apply("min", _apply("max", a, least), most)

    def sign(self, a: RowSymbol) -> RowSymbol:
        return _apply("where", _apply("gt", a, 0.0), 1.0, _apply("where", _apply("lt", a, 0.0), -1.0, a))

    def vecdot(self, a: RowSymbol, b: RowSymbol) -> RowSymbol:
        return self.sum(_apply("mul", a, b), axis=-1)

    def _reduced(self, name: str, a: RowSymbol, axis: int, keepdims: bool) -> RowSymbol:
        if axis != -1 or a.per_row:
            raise CannotTraceError("adds up another axis than that of a row")
        program = a.number.program
        number = Number(program, program.op(name, program.as_float(a.number).k))
        return RowSymbol(number, per_row=True, ndim=a.ndim - (not keepdims))

    def take_along_axis(self, a: RowSymbol, index: RowSymbol, axis: int) -> RowSymbol:
        if axis != -1 or a.per_row or not index.per_row:
            raise CannotTraceError("takes other entries than one of each row")
        program = a.number.program
        return RowSymbol(Number(program, program.op("at", a.number.k, index.number.k)), per_row=True, ndim=a.ndim)

    def zeros_like(self, a: RowSymbol) -> RowSymbol:
        return self._filled(a, 0.0)

    def ones_like(self, a: RowSymbol) -> RowSymbol:
        return self._filled(a, 1.0)

    def empty_like(self, a: RowSymbol) -> RowSymbol:
        return self._filled(a, 0.0)

    def _filled(self, a: RowSymbol, value: float) -> RowSymbol:
        return RowSymbol(a.number.program.number(value), per_row=a.per_row, ndim=a.ndim)


class RowBackend:
    """What a function of rows may ask of a backend."""

    def __init__(self) -> None:
        self.xp = RowNamespace()

    def copy(self, a: RowSymbol) -> RowSymbol:
        return RowSymbol(a.number, per_row=a.per_row, ndim=a.ndim)

    def minus_one_hot_(self, p: RowSymbol, index: RowSymbol, there: float | RowSymbol = 1.0) -> None:
        p[...] = _apply("sub", p, _apply("mul", self.one_hot(index, None, None), there))

    def take_entries(self, table: RowSymbol, index: RowSymbol) -> RowSymbol:
        return self.xp.take_along_axis(table, index[..., None], axis=-1)[..., 0]

    def zero_unless_(self, a: RowSymbol, keep: RowSymbol) -> None:
        a[...] = _apply("where", keep, a, 0.0)

    def one_hot(self, index: RowSymbol, size: Any, dtype: Any) -> RowSymbol:
        program = index.number.program
        number = Number(program, program.op("is_entry", index.number.k))
        return RowSymbol(number, per_row=False, ndim=index.ndim + 1)

    def tanh_(self, z: RowSymbol) -> None:
        z[...] = self.xp.tanh(z)

    def one_minus_square_(self, out: RowSymbol, y: RowSymbol) -> None:
        out[...] = _apply("sub", 1.0, _apply("mul", y, y))


def traced(
    function: Callable[..., Any], arguments: list[tuple[str, bool, int] | None]
) -> tuple[Program, list[RowSymbol]]:
    """The program of ``function(backend, *arguments)`` and its results.

    ``arguments``: (name, whether it is one number of a row, number of axes; 0 for a plain number), or None for None.
    """
    program = Program()
    symbols = [
        None if each is None else RowSymbol(program.leaf(each[0]), per_row=each[1], ndim=each[2]) for each in arguments
    ]
    results = function(RowBackend(), *symbols)
    if any(not isinstance(result, RowSymbol) for result in results):
        raise CannotTraceError("returns what is no array of rows")
    return program, list(results)
