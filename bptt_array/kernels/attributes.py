"""What is on a cell, written down: its text has the numbers in it, so whether one has changed has to be seen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from ..equations.cell import Cell


class _It:
    """An object that is equal to itself alone, whatever its class says."""

    def __init__(self, it: Any) -> None:
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _It) and other.it is self.it

    __hash__ = None  # type: ignore[assignment]


def written_down(cell: Cell) -> Any:
    """The attributes of a cell and of its classes: equal at two times only if nothing of them has changed in between.

    Numbers, text, NumPy arrays, containers, dataclasses and cells go by their values, all else by being the same
    object. Numbers in a closure or a module are not seen.
    """
    return _object(cell, ())


def _object(a: Any, inside: tuple[Any, ...]) -> Any:
    own = [(name, _value(value, (*inside, a))) for name, value in vars(a).items()] if hasattr(a, "__dict__") else []
    for kind in type(a).__mro__[:-1]:
        if kind is Cell:
            break
        slots = getattr(kind, "__slots__", ())
        own += [(name, _value(getattr(a, name, None), (*inside, a))) for name in slots if type(slots) is not str]
        own += [(name, _value(value, (*inside, a))) for name, value in vars(kind).items() if not name.startswith("__")]
    return _It(type(a)), own


def _value(a: Any, inside: tuple[Any, ...]) -> Any:
    if a is None or isinstance(a, (bool, int, str, bytes)):
        return type(a), a
    if isinstance(a, (float, complex)):
        return type(a), repr(a)  # so that NaN is NaN, and 0 is not -0
    if isinstance(a, (np.ndarray, np.generic)):
        if a.dtype.hasobject:
            return _It(a)
        return type(a), a.shape, a.dtype.str, hashlib.sha256(a.tobytes()).digest()
    if any(a is b for b in inside):
        return "again"
    inside = (*inside, a)
    if isinstance(a, Mapping):
        return type(a), [(_value(key, inside), _value(value, inside)) for key, value in a.items()]
    if isinstance(a, (list, tuple)):
        return type(a), [_value(value, inside) for value in a]
    if isinstance(a, Cell) or (is_dataclass(a) and not isinstance(a, type)):
        return _object(a, inside[:-1])
    return _It(a)
