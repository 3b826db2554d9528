"""What an array namespace has to have and to do for the time loop, asked before a network is built on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np

from ..checks import said
from .host import host_copy

#: The lowest version of the Array API standard that has all of it: ``take_along_axis`` came last.
STANDARD = "2024.12"

#: All functions of a namespace that are called here.
FUNCTIONS = (
    *("abs", "all", "arange", "asarray", "astype", "broadcast_to", "clip", "concat", "empty", "empty_like", "exp"),
    *("finfo", "flip", "full_like", "isdtype", "isfinite", "isnan", "log", "log1p", "matmul", "max", "maximum", "min"),
    *("minimum", "moveaxis", "ones", "ones_like", "reshape", "sign", "sqrt", "stack", "sum", "take"),
    *("take_along_axis", "tanh", "vecdot", "where", "zeros", "zeros_like", "__array_namespace_info__"),
)

#: Numbers that a device has to have: dropout counts in int32, and masks are bools.
DTYPES_NEEDED = ("float32", "int32", "bool")

#: What is there and works, or is missing; a namespace may have a function and say that its version has not.
_TAKEN: dict[str, Callable[[Any, Any], Any]] = {
    "take_along_axis": lambda xp, a: xp.take_along_axis(a, xp.reshape(xp.arange(1), (1, 1)), axis=-1),
    "arrays with .device": lambda xp, a: a.device,
    "arrays with .mT": lambda xp, a: a.mT,
}

_OTHERS = "use NumPy, CuPy, torch or array_api_strict"


def namespace_of(xp: Any, device: Any) -> tuple[Any, Any]:
    """The namespace behind ``xp``, with the Array API around it where it needs that, and its device."""
    expected = "expected a module like array_api_strict or torch"
    if not callable(getattr(xp, "zeros", None)):
        raise TypeError(f"xp={said(xp)} is no Array API namespace; {expected}")
    try:
        probe = xp.zeros(1)
        namespace = array_api_compat.array_namespace(probe)
    except Exception as error:  # noqa: BLE001 (of another library, which raises what it likes)
        raise TypeError(f"xp={said(xp)} is no Array API namespace ({error}); {expected}") from None
    check_namespace(namespace, probe)
    if device is not None:
        try:
            probe = xp.zeros(1, device=device)
        except Exception as error:  # noqa: BLE001
            name = namespace.__name__
            raise ValueError(f"device={said(device)} cannot be used with xp={name} ({error}); leave it out") from None
    return namespace, array_api_compat.device(probe)


def check_namespace(xp: Any, probe: Any) -> None:
    """A namespace whose arrays can be written to, and through their slices, and that has all that is called.

    It is asked on its default device, since there may be others from which nothing can be read (torch's "meta").
    """
    name = f"xp={getattr(xp, '__name__', said(xp))}"
    if not array_api_compat.is_writeable_array(probe):
        raise TypeError(f"{name} has arrays that cannot be written in place, which the time loop needs; {_OTHERS}")
    missing = [function for function in FUNCTIONS if not callable(getattr(xp, function, None))]
    missing += [] if hasattr(xp, "__name__") else ["__name__"]
    missing += [what for what, take in _TAKEN.items() if what not in missing and not _works(take, xp)]
    if missing:
        raise TypeError(
            f"{name} has no {', '.join(missing)}; expected the Array API standard in version {STANDARD} or later: "
            f"{_OTHERS}"
        )
    if not _writes_through_views(xp):
        raise TypeError(
            f"{name} has arrays that cannot be written in place through their slices, which the time loop needs; "
            f"{_OTHERS}"
        )
    try:
        host_copy(probe)
    except Exception as error:  # noqa: BLE001
        raise TypeError(f"{name} has arrays that cannot be read as NumPy arrays ({error}); {_OTHERS}") from None


def _works(take: Callable[[Any, Any], Any], xp: Any) -> bool:
    try:
        take(xp, xp.zeros((1, 1), dtype=xp.float32))
    except Exception:  # noqa: BLE001 (of another library, which raises what it likes)
        return False
    return True


def _writes_through_views(xp: Any) -> bool:
    """Whether what is written to slices, and to what is made of arrays without a copy, arrives in them."""
    try:
        return bool(xp.all(_written(xp) == xp.asarray(_written(np).tolist(), dtype=xp.float32)))
    except Exception:  # noqa: BLE001 (what cannot even be tried does not work)
        return False


def _written(xp: Any) -> Any:
    """An array that is written to by way of each kind of view that the package takes."""
    base = xp.zeros((5, 2, 3), dtype=xp.float32)
    row, later = base[0, ...], base[1, ...]
    row[...] = 1.0
    inner = row[1:, :]
    inner += 1.0
    rows = xp.reshape(base, (10, 3))
    rows[9, ...] = 3.0
    turned = xp.moveaxis(base, -1, 0)
    turned[0, ...] *= 4.0
    base[1:3, ...] = 5.0
    base[3, ...] = later  # a view made before has what was written since
    return base


def dtypes_of(xp: Any, device: Any) -> dict[str, Any]:
    """Dtypes of the device by their names."""
    dtypes: dict[str, Any] = xp.__array_namespace_info__().dtypes(device=device)
    missing = [name for name in DTYPES_NEEDED if name not in dtypes]
    if missing:
        raise TypeError(
            f"xp={xp.__name__} has no {', '.join(missing)} on device={said(device)}, which networks need; {_OTHERS}, "
            "or another device"
        )
    return dtypes
