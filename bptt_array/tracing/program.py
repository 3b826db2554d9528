"""Operations on single numbers, each written down once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

COMPARE = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
LOGIC = {"and": "&&", "or": "||"}
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
BOOLEAN = {*COMPARE, *LOGIC, "not"}
#: What NumPy does with truth values, which stay such.
_OF_BOOLEANS = {"add": "or", "mul": "and", "max": "or", "min": "and", "abs": "positive"}

#: What is computed here where all operands are known, in float64.
_FOLDED: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
}

#: To what row and unit a number belongs; None, for all or for one of them: to any.
Place = tuple[Any, ...] | None
Op = tuple[Any, ...]


class CannotTraceError(TypeError):
    """A function is no program over single numbers; says what it does instead."""


class Program:
    """Operations ``ops[k] = (name, *operands)``, each of which is there once; operands are earlier k.

    Beside those on numbers there are ``("leaf", name)``, a number that comes from elsewhere, ``("const", value)``,
    ``("bool", value)`` and ``("foreign",)``, a number that must not be used: whatever it touches is foreign too.
    """

    def __init__(self, opaque: Collection[str] = ()) -> None:
        #: Of all numbers.
        self.dtype = "float64"
        #: Leaves that no operation may use.
        self.opaque = frozenset(opaque)
        self.ops: list[Op] = []
        self._numbers: dict[Op, int] = {}
        self.foreign = Number(self, self.op("foreign"))

    def op(self, *op: Any) -> int:
        """The k of an operation, which is written down if it is new."""
        if op not in self._numbers:
            self._numbers[op] = len(self.ops)
            self.ops.append(op)
        return self._numbers[op]

    def leaf(self, name: str, place: Place = None) -> Number:
        return Number(self, self.op("leaf", name), place)

    def number(self, a: Any) -> Number:
        """A symbol, or a number of Python or NumPy, as a symbol."""
        if isinstance(a, Number):
            if a.program is not self:
                raise CannotTraceError("uses a number that an earlier trace left somewhere")
            if self.ops[a.k][0] == "leaf" and self.ops[a.k][1] in self.opaque:
                raise CannotTraceError(f"uses {self.ops[a.k][1]} otherwise than through `product`")
            return a
        if a is None:
            raise CannotTraceError("reads a number that nothing has written")
        if isinstance(a, (bool, np.bool_)):
            return Number(self, self.op("bool", bool(a)))
        if isinstance(a, (int, float, np.integer, np.floating)):
            return Number(self, self.op("const", float(a)))
        raise CannotTraceError(f"computes with {a!r} of type {type(a).__name__}")

    def is_bool(self, a: Any) -> bool:
        """Whether it is a truth value."""
        if isinstance(a, Number):
            return self.ops[a.k][0] in ("bool", *BOOLEAN)
        return isinstance(a, (bool, np.bool_))

    def as_float(self, a: Any) -> Number:
        """A truth value as 1 or 0."""
        a = self.number(a)
        return self.apply("where", a, 1.0, 0.0) if self.is_bool(a) else a

    def apply(self, name: str, *operands: Any) -> Number:
        """The result of an operation; ``a + 0`` (of which -0 stays) and ``1 a`` are left out."""
        args = [self.number(a) for a in operands]
        if any(a.k == self.foreign.k for a in args):
            return self.foreign
        place = merged([a.place for a in args])
        if name in _OF_BOOLEANS and all(map(self.is_bool, args)):
            name = _OF_BOOLEANS[name]
        if name == "where" and all(map(self.is_bool, args[1:])):
            a, b = self.apply("and", *args[:2]), self.apply("and", self.apply("not", args[0]), args[2])
            return self.apply("or", a, b)
        name, args = self._plainer(name, args)
        if name == "positive":
            return args[0]
        if name not in (*LOGIC, "not", "where"):
            args = [self.as_float(a) for a in args]
        if name == "where":
            args[1:] = [self.as_float(a) for a in args[1:]]
        ks = [a.k for a in args]
        values = [self.ops[k][1] if self.ops[k][0] == "const" else None for k in ks]
        if name in _FOLDED and None not in values and not (name == "div" and values[1] == 0):
            return Number(self, self.op("const", float(_FOLDED[name](*values))), place)
        if name in ("add", "mul"):
            neutral = {"add": 0.0, "mul": 1.0}[name]
            if neutral in values:
                return Number(self, ks[1 - values.index(neutral)], place)
            ks.sort()  # a + b and b + a are the same number
        if (name, values[-1]) in (("sub", 0.0), ("div", 1.0)):
            return Number(self, ks[0], place)
        if name == "neg" and self.ops[ks[0]][0] == "neg":
            return Number(self, self.ops[ks[0]][1], place)
        return Number(self, self.op(name, *ks), place)

    def _plainer(self, name: str, args: list[Number]) -> tuple[str, list[Number]]:
        """The same by an operation that there is in C++."""
        if name == "square":
            return "mul", args * 2
        if name == "reciprocal":
            return "div", [self.number(1.0), *args]
        if name == "pow" and self.ops[args[1].k] == ("const", 2.0):  # NumPy squares, too
            return "mul", [args[0]] * 2
        return name, args

    # ---- of programs that are done --------------------------------------------------------------------

    def operands(self, k: int) -> tuple[int, ...]:
        name, *args = self.ops[k]
        return () if name in ("leaf", "const", "bool", "foreign") else tuple(args)

    def needed(self, outputs: Iterable[int], given: Collection[int] = ()) -> list[int]:
        """Every operation that the outputs depend on, in order; what is ``given`` depends on nothing."""
        found: set[int] = set()
        todo = list(outputs)
        while todo:
            k = todo.pop()
            if k not in found:
                found.add(k)
                todo += () if k in given else self.operands(k)
        return sorted(found)

    def leaves(self, outputs: Iterable[int]) -> list[str]:
        """Names of the leaves that outputs depend on, in the order of their first use."""
        return [self.ops[k][1] for k in self.needed(outputs) if self.ops[k][0] == "leaf"]

    def depends(self, k: int, names: Collection[str]) -> bool:
        return any(name in names for name in self.leaves([k]))


def merged(places: Iterable[Place]) -> Place:
    """Where the result of an operation belongs, from where its operands do."""
    result: Place = None
    for place in places:
        if place is None or result is None:
            result = result if place is None else place
            continue
        both = []
        for axis, (x, y) in enumerate(zip(result, place, strict=True)):
            if x is not None and y is not None and x != y:
                what = "unit" if axis == len(place) - 1 else "sequence (or member)"
                raise CannotTraceError(
                    f"one {what} meets another's numbers, otherwise than through the product with W_hh"
                )
            both.append(y if x is None else x)
        result = tuple(both)
    return result


class Number:
    """A symbol: the operation k of a program, for one row and unit."""

    __slots__ = ("k", "place", "program")

    def __init__(self, program: Program, k: int, place: Place = None) -> None:
        self.program = program
        self.k = k
        self.place = place

    def __bool__(self) -> bool:
        raise CannotTraceError("asks whether a number is true: use xp.where")

    def __float__(self) -> float:
        raise CannotTraceError("asks for the value of a number")

    def __int__(self) -> int:
        raise CannotTraceError("asks for the value of a number")

    __index__ = __int__
    __hash__ = None  # type: ignore[assignment]


def _operator(name: str, *, swapped: bool = False) -> Callable[..., Number]:
    def method(self: Number, *other: Any) -> Number:
        return self.program.apply(name, *((*other, self) if swapped else (self, *other)))

    return method


for _name, _op in {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "pow": "pow"}.items():
    setattr(Number, f"__{_name}__", _operator(_op))
    setattr(Number, f"__r{_name}__", _operator(_op, swapped=True))
for _name in COMPARE:
    setattr(Number, f"__{_name}__", _operator(_name))
for _name, _op in {"neg": "neg", "abs": "abs", "and": "and", "or": "or", "invert": "not", "pos": "positive"}.items():
    setattr(Number, f"__{_name}__", _operator(_op))
