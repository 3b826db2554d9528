"""What is on a cell, written down: its text has the numbers in it, so whether one has changed has to be seen."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import is_dataclass
from types import SimpleNamespace
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

    Numbers, text, NumPy arrays, containers, cells and objects of a user's own go by their values, all else by being the
    same object: what can be called, and what Python, this library and devices have. Numbers in a closure, a module or a
    class that is an attribute are not seen.
    """
    return _object(cell, {})


#: Of what was met: how many there were before it, by its id.
_Seen = dict[int, int]


def _object(a: Any, seen: _Seen) -> Any:
    own = [(name, _value(value, seen)) for name, value in vars(a).items()] if hasattr(a, "__dict__") else []
    for kind in type(a).__mro__[:-1]:
        if kind is Cell:
            continue
        slots = getattr(kind, "__slots__", ())
        names = [slots] if isinstance(slots, str) else slots
        own += [(name, _value(getattr(a, name, None), seen)) for name in names]
        own += [(name, _value(value, seen)) for name, value in vars(kind).items() if not name.startswith("__")]
    return _It(type(a)), own


def _value(a: Any, seen: _Seen) -> Any:
    if a is None or isinstance(a, (bool, int, str, bytes)):
        return type(a), a
    if isinstance(a, (float, complex)):
        return type(a), repr(a)  # so that NaN is NaN, and 0 is not -0
    if isinstance(a, (np.ndarray, np.generic)):
        if a.dtype.hasobject:
            return _It(a)
        return type(a), a.shape, a.dtype.str, hashlib.sha256(a.tobytes()).digest()
    if id(a) in seen:
        return "again", seen[id(a)]
    seen[id(a)] = len(seen)
    if isinstance(a, Mapping):
        return type(a), [(_value(key, seen), _value(value, seen)) for key, value in a.items()]
    if isinstance(a, (Sequence, Set)):
        return type(a), [_value(value, seen) for value in a]
    return _object(a, seen) if _of_users(a) else _It(a)


def _of_users(a: Any) -> bool:
    if isinstance(a, (Cell, SimpleNamespace)) or (is_dataclass(a) and not isinstance(a, type)):
        return True
    of = type(a).__module__.partition(".")[0]
    own = of not in sys.stdlib_module_names and of not in ("bptt_array", "numpy", "cupy")
    return own and not callable(a) and (hasattr(a, "__dict__") or hasattr(type(a), "__slots__"))
