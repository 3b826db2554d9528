"""Arrays of any namespace, asked and checked: their dtype, whether they are plain, on the host, for writing."""

from __future__ import annotations

from functools import cache
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np

from ..checks import said
from .host import host_copy
from .portable import DTYPES


@cache  # NumPy makes the name anew each time, in microseconds
def _numpy_name(dtype: np.dtype[Any]) -> str:
    return dtype.name


def dtype_name(array: Any) -> str:
    """``"float32"`` for an array of any namespace, in any byte order."""
    return _numpy_name(array.dtype) if isinstance(array.dtype, np.dtype) else str(array.dtype).rpartition(".")[2]


def is_array(value: Any) -> bool:
    """An array of any namespace; some things only say that they are."""
    return bool(array_api_compat.is_array_api_obj(value)) and hasattr(value, "dtype") and hasattr(value, "ndim")


def is_integer(array: Any) -> bool:
    return dtype_name(array).startswith(("int", "uint"))


def check_dtype(dtype: Any, argument: str = "dtype") -> str:
    """``"float32"`` or ``"float64"`` from a name or anything NumPy takes for a dtype."""
    try:
        name = dtype if dtype is None or isinstance(dtype, str) else np.dtype(dtype).name
    except Exception:  # noqa: BLE001 (NumPy raises many kinds for what is no dtype)
        name = None
    if name not in DTYPES:
        raise ValueError(f"{argument}={said(dtype)} is not supported; expected 'float32' or 'float64'")
    return name


def host_array(name: str, value: Any, expected: str) -> np.ndarray[Any, Any]:
    """A NumPy array of anything that NumPy makes one of."""
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name}={said(value)} is ragged; expected {expected}") from None
    except Exception as error:  # noqa: BLE001 (raised by what there is inside, which may be anything)
        kind = type(value).__name__
        raise TypeError(f"{name} is a {kind} that cannot be read as an array ({error}); expected {expected}") from None


def on_host(name: str, array: Any) -> np.ndarray[Any, Any]:
    """A NumPy copy of an array of any namespace."""
    check_plain(name, array)
    try:  # without a backend, which those of JAX cannot have
        return host_copy(array)
    except Exception as error:  # noqa: BLE001 (other libraries raise what they like for what they cannot export)
        kind = type(array).__name__
        raise TypeError(f"{name} is a {kind} that cannot be read as a NumPy array ({error})") from None


def check_plain(name: str, array: Any) -> None:
    """No array with a mask, a matrix' rules, a layout of its own or somebody else's gradients."""
    if not is_plain(array):
        raise TypeError(
            f"{name} is a {type(array).__name__}; expected a plain array (for masks see lengths and weights)"
        )
    check_dense(name, array)
    if getattr(array, "requires_grad", False):
        raise TypeError(f"{name} is tracked by torch's autograd, which is not used here; pass {name}.detach()")


def is_dense(array: Any) -> bool:
    """Whether it has a place in memory for every entry, as a sparse tensor of torch has not."""
    layout = str(getattr(array, "layout", ""))  # torch's
    return layout == "torch.strided" or not layout.startswith("torch.")


def check_dense(name: str, array: Any) -> None:
    if not is_dense(array):
        raise TypeError(f"{name} has the layout {array.layout}; expected a dense array: pass {name}.to_dense()")


def repeats_itself(array: Any) -> bool:
    """Whether entries of the array share their memory, as those of ``broadcast_to`` do: no place to write to."""
    stride = getattr(array, "stride", None)  # torch's
    strides = stride() if callable(stride) else getattr(array, "strides", ())
    shape = tuple(array.shape)  # of NumPy, arrays without entries have strides of 0
    return 0 not in shape and any(step == 0 and size > 1 for step, size in zip(strides, shape, strict=False))


def is_writeable(array: Any) -> bool:
    """Whether numbers can be written to it, each to a place of its own."""
    return bool(array_api_compat.is_writeable_array(array)) and not repeats_itself(array)


def is_plain(array: Any) -> bool:
    """Whether it computes as arrays do: without a mask, and without a matrix' rules."""
    return not isinstance(array, (np.ma.MaskedArray, np.matrix))


def rounded(array: np.ndarray[Any, Any], dtype: str) -> tuple[np.ndarray[Any, Any], int | None]:
    """Numbers in ``"float32"`` or ``"float64"``, and which one is the first too large (in C order), if any is."""
    try:
        with np.errstate(over="raise", under="ignore"):
            return array.astype(dtype, copy=False), None
    except FloatingPointError:
        with np.errstate(over="ignore", under="ignore"):
            found = array.astype(dtype)
        return found, int(np.flatnonzero(np.isinf(found) & np.isfinite(array))[0])
