"""From what a caller has to real numbers in NumPy arrays, and what to do with what cannot be one.

Errors say how it can: advice is given only where it was tried or follows from the dtype.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np

from ..backend.arrays import dtype_name, host_array, is_array, is_integer, on_host, rounded
from ..checks import said

HostArray = np.ndarray[Any, Any]

_RAGGED = (
    "real numbers, of each axis equally many: fill sequences of different lengths up to the longest, and say with "
    "lengths=[…] how long each one is"
)


def real_numbers(name: str, value: Any) -> HostArray:
    """A NumPy array of bools, integers or floats, from anything that NumPy takes for real numbers."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is masked; expected a plain array (for masks see lengths and weights)")
    foreign = is_array(value) and not isinstance(value, (np.ndarray, np.generic))
    array = on_host(name, value) if foreign else host_array(name, value, _RAGGED)
    if array.dtype.kind == "O":
        return _of_objects(name, array)
    if array.dtype.kind == "V" and array.dtype.names is None and np.can_cast(array.dtype, np.float32):
        return array.astype(np.float32)  # bfloat16 and the like, which NumPy itself does not know
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers{_instead(name, array)}")
    return array


def _instead(name: str, array: HostArray) -> str:
    if array.dtype.kind == "c":
        return f": use {name}.real, and {name}.imag as features of their own"
    strings = array.dtype.kind == "O" and all(isinstance(value, str) for value in array.flat)
    if array.ndim and (strings or array.dtype.kind in "UST"):
        return f": the class numbers of labels are np.unique({name}, return_inverse=True)[1]"
    return ""


def _of_objects(name: str, array: HostArray) -> HostArray:
    """The numbers that a column of a table has as Python's objects, if all of them are numbers."""
    values = array.reshape(-1).tolist()
    wrong = [k for k, value in enumerate(values) if not _is_number(value)]
    if wrong:
        value = values[wrong[0]]
        if not array.ndim:
            raise TypeError(f"{name} is a {type(value).__name__}; expected real numbers")
        if is_array(value) or isinstance(value, (list, tuple)):
            raise ValueError(
                f"{_at(name, array, wrong[0])} is itself an array, so {name} is ragged; expected {_RAGGED}"
            )
        way = _instead(name, array) or (
            f", but {_at(name, array, wrong[0])} is {said(value, 100)}: put a number, such as 0, where one is "
            "missing, and in a target leave its step out with a weight of 0"
        )
        raise TypeError(f"{name} has dtype object; expected real numbers{way}")
    dtype = np.bool_ if all(isinstance(value, (bool, np.bool_)) for value in values) else np.float64
    if dtype is np.float64 and all(isinstance(value, Integral) for value in values):
        dtype = np.int64
    try:
        return np.array(values, dtype=dtype).reshape(array.shape)
    except OverflowError:
        largest = said(max(values, key=abs), 100)
        raise ValueError(f"{name} holds {largest}, which does not fit in {np.dtype(dtype).name}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, (Real, np.bool_)) and not isinstance(value, np.timedelta64)


def _at(name: str, array: HostArray, k: int) -> str:
    """The entry that is k-th in the order of C."""
    place = np.unravel_index(k, array.shape) if array.ndim else ()
    return f"{name}[{', '.join(map(str, place))}]" if array.ndim else name


def as_floats(name: str, array: HostArray, dtype: str) -> HostArray:
    """Real numbers as ``"float32"`` or ``"float64"``, none of which becomes infinite by that."""
    found, k = rounded(array, dtype)
    if k is not None:
        raise ValueError(
            f"{_at(name, array, k)}={array.reshape(-1)[k]} does not fit in {dtype}; expected at most "
            f"{np.finfo(dtype).max:.3g}: divide {name} by a scale"
        )
    return found


def as_integers(name: str, array: HostArray) -> HostArray:
    """Real numbers as int64, none of which changes by that."""
    if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        raise ValueError(f"{name} holds {array.max()}, which does not fit in int64")
    if array.dtype.kind == "f":
        whole = (np.abs(array) < 2.0**63) & (array == np.rint(array))
        if not whole.all():
            k = int(np.flatnonzero(~whole)[0])
            raise ValueError(
                f"{_at(name, array, k)}={array.reshape(-1)[k]} is no whole number; expected integers: where one is "
                "missing put any that is in range, and leave its step out with a weight of 0"
            )
    return array.astype(np.int64, copy=False)


def way_in(name: str, value: Any, dtype: str, *, integers: tuple[int, ...] = (), classes: tuple[int, ...] = ()) -> str:
    """How ``value`` becomes an array of this network: in words that work, or an error that says why there are none.

    Integers are taken where they have as many axes as one of ``integers``, and floats are classes where they have as
    many as one of ``classes``.
    """
    if getattr(value, "requires_grad", False):
        name, value = f"{name}.detach()", value.detach()
    ndim, integer = (value.ndim, is_integer(value)) if is_array(value) else (None, False)
    if ndim is None or not integer:  # tried, of a large array with none of its entries
        large = is_array(value) and value.ndim and dtype_name(value) != "object"
        found = real_numbers(name, _without_entries(value) if large else value)
        ndim, integer = found.ndim, is_integer(found)
    if integer and ndim not in integers:
        return f"use rnn.asarray({name}, dtype={dtype!r})"
    if not integer and ndim in classes:
        return f"for classes use rnn.asarray({name}, dtype='int64')"
    return f"use rnn.asarray({name})"


def _without_entries(array: Any) -> Any:
    """None of the entries of a foreign array, or all of one that cannot be cut, such as a sparse tensor."""
    try:
        return array[:0, ...]
    except Exception:  # noqa: BLE001 (another library's, which may raise anything; what is read then says why)
        return array
