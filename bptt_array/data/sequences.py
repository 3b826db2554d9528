"""Sequences of a data set, read as they are, and a few of them filled up to one length.

A :class:`Column` has an array for each sequence: those of a list, or views of one large array, of which nothing is read
before it is asked for. Integers without an axis of features are tokens or classes, and stay integers; all else becomes
floats.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend.arrays import is_array
from ..checks import is_whole, said
from ..rnn.conversions import HostArray, as_floats, as_integers, real_numbers


@dataclass(frozen=True)
class Column:
    """One array for each of N sequences, ``(T_n, ...)`` where it is ``timed`` and ``(...)`` where it is not.

    Attributes
    ----------
    name : str
        Of the argument, for errors.
    items : list of arrays, or array (N, ...)
    tail : tuple of int
        The axes that all have: ``(I,)``, or none.
    timed : bool
    whole : bool
        Whether these are integers that stay such.
    """

    name: str
    items: Sequence[HostArray] | HostArray
    tail: tuple[int, ...]
    timed: bool
    whole: bool

    def __len__(self) -> int:
        return len(self.items)

    def filled(
        self, rows: Iterable[int], lengths: HostArray, T: int, dtype: str, *, value: float = 0, time_major: bool = True
    ) -> HostArray:
        """Those of some sequences in a new array ``(n, ...)`` or, with ``value`` past the end of each, ``(T, n, ...)``.

        ``lengths``: of these sequences.
        """
        rows, kind = list(rows), np.dtype("int64" if self.whole else dtype)
        time = (T,) if self.timed else ()
        shape = (*time, len(rows)) if time_major else (len(rows), *time)
        out = np.full((*shape, *self.tail), value, kind) if value else np.zeros((*shape, *self.tail), kind)
        each = out.swapaxes(0, 1) if self.timed and time_major else out
        try:
            with np.errstate(over="raise", under="ignore"):
                for k, row in enumerate(rows):
                    if self.timed:
                        each[k, : lengths[k]] = self.items[row][: lengths[k]]
                    else:
                        each[k] = self.items[row]
        except FloatingPointError:  # say where
            at = "[:, {}]" if isinstance(self.items, np.ndarray) and self.timed and time_major else "[{}]"
            for k, row in enumerate(rows):
                one = self.items[row]
                as_floats(self.name + at.format(row), one[: lengths[k]] if self.timed else one, dtype)
            raise
        return out


def readable(name: str, value: Any) -> HostArray:
    """Real numbers in a NumPy array, unread where it is one already; integers are such that int64 holds."""
    array = real_numbers(name, value)
    return as_integers(name, array) if array.dtype.kind == "u" and array.dtype.itemsize == 8 else array


def is_list(value: Any) -> bool:
    """Whether it is a list of sequences and no array: any iterable, an array of objects, or a column of a table."""
    if isinstance(value, np.ndarray) or isinstance(getattr(value, "dtype", None), np.dtype):
        return bool(value.dtype == object and value.ndim == 1)
    if not isinstance(value, Iterable) or isinstance(value, str) or is_array(value) or hasattr(value, "__array__"):
        return False
    try:
        memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return True
    return False  # a piece of memory, such as one of the module array


def has_sequences(values: list[Any]) -> bool:
    """Whether a list has something else than numbers."""
    return any(
        getattr(value, "ndim", isinstance(value, (Iterable, Sized)) and not isinstance(value, (str, bytes)))
        for value in values
    )


def of_list(name: str, sequences: Any) -> Column:
    """Sequences ``(T_n, I)`` or ``(T_n,)``; without an axis I floats get one, of one feature, and integers are tokens.

    One without any step goes with all others.
    """
    kind = type(sequences).__name__
    if hasattr(sequences, "columns") or kind.endswith("GroupBy"):
        raise TypeError(
            f"{name} is a {kind}; expected a list of them, one for each sequence, such as "
            "[rows for _, rows in table.groupby('sequence')]"
        )
    if isinstance(sequences, (Mapping, str, bytes)) or not (is_list(sequences) or hasattr(sequences, "__len__")):
        way = f": use list({name}.values())" if isinstance(sequences, Mapping) else ""
        raise TypeError(f"{name} is a {kind}; expected a list of arrays (T_n, I) or (T_n,){way}")
    if not is_list(sequences):
        sequences = readable(name, sequences)
        if not sequences.ndim:
            raise TypeError(f"{name} is a single number; expected a list of arrays (T_n, I) or (T_n,)")
    arrays = [readable(f"{name}[{n}]", sequence) for n, sequence in enumerate(sequences)]
    if not arrays:
        raise ValueError(f"{name} has no sequences; expected at least one, which may be empty")
    first = None  # that is not empty
    for n, array in enumerate(arrays):
        if array.ndim not in (1, 2):
            raise ValueError(f"{name}[{n}] has shape {array.shape}; expected (T, I), time first, or (T,)")
        if array.shape != (0,):
            first = n if first is None else first
            _check_alike(name, n, array, first, arrays[first])
    like = arrays[0 if first is None else first]
    whole = first is not None and _is_tokens(like)
    tail = () if whole else (like.shape[1] if like.ndim == 2 else 1,)
    items = [
        array.reshape(len(array), *tail) if array.size else np.empty((len(array), *tail), array.dtype)
        for array in arrays
    ]
    return Column(name, items, tail, timed=True, whole=whole)


def _is_tokens(array: HostArray) -> bool:
    return array.ndim == 1 and array.dtype.kind in "iu"


def _check_alike(name: str, n: int, array: HostArray, first: int, like: HostArray) -> None:
    """Sequence n has as many features as the first one, or is one of tokens as that is."""
    if _is_tokens(array) != _is_tokens(like):
        tokens, floats = (n, first) if _is_tokens(array) else (first, n)
        raise TypeError(
            f"{name}[{tokens}] has integers (T,), which are tokens, and {name}[{floats}] is none of these; expected "
            f"all of one kind: as numbers use [np.asarray(one, dtype=float) for one in {name}]"
        )
    features, expected = (a.shape[1] if a.ndim == 2 else 1 for a in (array, like))
    if features != expected:
        raise ValueError(
            f"{name}[{n}] has shape {array.shape}, with {features} features (last axis), and {name}[{first}] "
            f"{like.shape}, with {expected}; expected (T, I) with the same I for all, time first"
        )


def check_value(value: Any, whole: bool, dtype: str) -> float:
    """What stands past the end: any real number of ``dtype``, of tokens a whole one."""
    if not (is_whole(value) or isinstance(value, (float, np.floating))):
        raise TypeError(f"value={said(value)} is a {type(value).__name__}; expected a real number")
    if whole:
        if not (is_whole(value) or float(value).is_integer()):
            raise ValueError(f"value={said(value)}, but the sequences hold tokens; expected a whole number, such as 0")
        if not -(2**63) <= int(value) < 2**63:
            raise ValueError(f"value={said(value)} does not fit in int64, as which tokens are held; expected such as 0")
        return int(value)
    if is_whole(value):
        if abs(int(value)) > sys.float_info.max:
            raise ValueError(f"value={said(value)} is too large; expected a number such as 0")
        value = float(value)
    return float(as_floats("value", np.asarray(value), dtype))
