"""Arrays of symbols: NumPy's views, broadcasting and ``out=``, with operations that are written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.numpy as compat
import numpy as np

from .program import BOOLEAN, CannotTraceError, Number, Place, Program

_FUNCTIONS = ("tanh", "exp", "log", "sqrt", "sin", "cos", "sinh", "cosh", "expm1", "log1p", "square", "reciprocal")

#: The elementwise functions of NumPy that are followed, and what they are in a program.
UFUNCS = {name: name for name in (*_FUNCTIONS, "positive")} | {
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "negative": "neg",
    "power": "pow",
    "maximum": "max",
    "minimum": "min",
    "absolute": "abs",
    "fabs": "abs",
    "arctan": "atan",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "equal": "eq",
    "not_equal": "ne",
    "logical_and": "and",
    "bitwise_and": "and",
    "logical_or": "or",
    "bitwise_or": "or",
    "logical_not": "not",
    "invert": "not",
}

#: Of these, those that are logic only for truth values.
_OF_BITS = ("bitwise_and", "bitwise_or", "invert")

#: Beginnings of the names of functions that make arrays.
_MAKERS = ("empty", "zeros", "ones", "full", "asarray")


class Symbols(np.ndarray[Any, Any]):
    """An array of :class:`Number`, plain numbers, and None where nothing is written yet.

    Of truth values or not, as a whole (``truth``): what is written to it becomes what it has.
    """

    program: Program
    truth: bool

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **how: Any) -> Any:
        if method != "__call__":
            raise CannotTraceError(f"uses {ufunc.__name__}.{method}: a sum (or the like) over an axis")
        if ufunc.__name__ not in UFUNCS or how:
            followed = f"which is none of {', '.join(sorted(UFUNCS))}"
            why = "which is not elementwise" if ufunc.signature else followed
            raise CannotTraceError(f"uses {ufunc.__name__}{sorted(how) or ''}, {why}")
        if ufunc.__name__ in _OF_BITS and not all(
            a.truth if isinstance(a, Symbols) else type(a) is bool for a in inputs
        ):
            raise CannotTraceError(f"uses {ufunc.__name__} of the bits of numbers")
        return self.elementwise(UFUNCS[ufunc.__name__], inputs, out)

    def elementwise(self, name: str, inputs: Any, out: Any = None) -> Any:
        """One operation for all entries, of arrays that broadcast."""
        program = program_of(inputs)
        arrays = np.broadcast_arrays(*[np.asarray(a, object).view(np.ndarray) for a in inputs])
        result = np.empty(arrays[0].shape, object)
        for i in np.ndindex(result.shape):
            result[i] = program.apply(name, *[a[i] for a in arrays])
        if out is None:
            return symbols(program, result, truth=True if name in BOOLEAN else None)
        out[0][...] = symbols(program, result)
        return out[0]

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_not_by_value(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.program is not None and not (isinstance(value, Symbols) and value.truth == self.truth):
            value = np.array(value, object)
            _of_one_kind(self.program, value, truth=self.truth)
        super().__setitem__(_not_by_value(index), value)

    def __array_finalize__(self, base: Any) -> None:
        self.program = getattr(base, "program", None)  # type: ignore[assignment]
        self.truth = getattr(base, "truth", False)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.where and len(args) == 3:
            return self.elementwise("where", args)
        if func in (np.nan_to_num, np.real_if_close):  # which leave objects as they are
            raise CannotTraceError(f"uses {func.__name__}, which looks at values")
        result = super().__array_function__(func, types, args, kwargs)
        if type(result) is np.ndarray and result.dtype == object:  # concatenations
            return symbols(program_of(args), result)
        return result

    @property
    def dtype(self) -> Any:
        """What it stands for: a cell may ask."""
        return np.dtype(bool if self.truth else getattr(self.program, "dtype", "float64"))

    def astype(self, dtype: Any, **how: Any) -> Any:  # type: ignore[override]
        """Truth values become 1 and 0, numbers truth values; no number becomes another."""
        program, to = self.program, np.dtype(dtype)
        if not self.truth and to.kind not in "bO" and to != program.dtype:
            raise CannotTraceError(f"rounds numbers, to {to}")
        array, truth = np.array(self, object), self.truth if to.kind == "O" else to.kind == "b"
        if self.truth and not truth:
            _of_one_kind(program, array, truth=False)
        return symbols(program, array, truth=truth)


def program_of(a: Any) -> Any:
    """That of the first symbol in (tuples of) arrays and numbers; None where there is none."""
    if isinstance(a, (Symbols, Number)):
        return a.program
    if isinstance(a, (tuple, list)):
        return next((program for program in map(program_of, a) if program is not None), None)
    return None


def _not_by_value(index: Any) -> Any:
    if any(isinstance(i, (Symbols, Number)) for i in (index if isinstance(index, tuple) else (index,))):
        raise CannotTraceError("takes numbers by their values: use xp.where")
    return index


def symbols(program: Program, a: Any, *, truth: bool | None = None) -> Symbols:
    """An array of symbols as one of a program; of truth values if all are such, unless ``truth`` says it."""
    array = np.asarray(a, object).view(np.ndarray)
    if truth is None:
        foreign = program.foreign.k
        kinds = {program.is_bool(n) for n in array.flat if n is not None and getattr(n, "k", None) != foreign}
        truth = kinds == {True}
        if len(kinds) > 1:
            _of_one_kind(program, array, truth=False)
    elif truth:
        _of_one_kind(program, array, truth=True)
    found = array.view(Symbols)
    found.program, found.truth = program, truth
    return found


def _of_one_kind(program: Program, a: Any, *, truth: bool) -> None:
    """Make all numbers of an array, in place, truth values, or none of them."""
    for i in np.ndindex(a.shape):
        if a[i] is not None and program.is_bool(a[i]) != truth:
            a[i] = program.apply("ne", a[i], 0.0) if truth else program.as_float(a[i])


def leaves(program: Program, name: str, shape: tuple[int, ...], H: int, place: Callable[..., Place] = tuple) -> Symbols:
    """``(..., blocks*H)`` symbols ``name0``, ``name1``, ...; just ``name`` where there is one block."""
    a = np.empty(shape, object)
    blocks = shape[-1] // H
    for i in np.ndindex(shape):
        a[i] = program.leaf(name if blocks == 1 else f"{name}{i[-1] // H}", place((*i[:-1], i[-1] % H)))
    return symbols(program, a, truth=False)


class Namespace:
    """NumPy as the Array API has it; new arrays are arrays of symbols, and all are taken for arrays of one dtype."""

    def __init__(self, program: Program, dtype: str) -> None:
        self._program = program
        self._dtype = program.dtype = dtype

    def finfo(self, type: Any = None) -> np.finfo[Any]:  # noqa: A002 (a name of the standard)
        return np.finfo(self._dtype)

    def clip(self, a: Any, min: Any = None, max: Any = None) -> Any:  # noqa: A002 (names of the standard)
        # NumPy's looks at values.
        for bound, name in ((min, "max"), (max, "min")):
            a = a if bound is None else a.elementwise(name, (a, bound))
        return a

    def __getattr__(self, name: str) -> Any:
        found = getattr(compat, name, None)
        if found is None:
            raise CannotTraceError(f"uses xp.{name}, which is not in the Array API")
        if name.split("_")[0] not in _MAKERS:
            return found

        def made(*args: Any, dtype: Any = None, device: Any = None, **how: Any) -> Symbols:
            if dtype is None and name.endswith("_like"):
                dtype = args[0].dtype
            a = found(*args, **how)
            a = np.full(a.shape, None) if name.startswith("empty") else a.astype(object)
            return symbols(self._program, a) if dtype is None else symbols(self._program, a).astype(dtype)

        return made
