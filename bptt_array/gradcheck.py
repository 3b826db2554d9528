"""Gradients against finite differences, along random directions in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .backend.arrays import check_plain
from .checks import LARGEST_SEED, check_count, check_number, said

HostArrays = Mapping[str, np.ndarray[Any, Any]]

#: Central differences of fourth order: f'(0) = sum_k w_k f(k h) / h, error of order h^4.
_STENCIL = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))


class GradientCheck(NamedTuple):
    """What was found for one array.

    Attributes
    ----------
    name : str
    numeric, analytic : float
        The slope of the loss along a random direction, by finite differences and from the gradient.
    error : float
        Their difference beyond what rounding of the loss explains, relative to the typical slope along a random
        direction (or the larger of both).
    """

    name: str
    numeric: float
    analytic: float
    error: float


def check_gradients(
    loss: Callable[[dict[str, np.ndarray[Any, Any]]], float],
    arrays: HostArrays,
    grads: HostArrays,
    *,
    tolerance: float = 1e-6,
    step: float = 1e-3,
    seed: int = 0,
) -> list[GradientCheck]:
    """Compare gradients with directional finite differences, one random direction per array.

    A random direction touches every entry at once, so one slope covers a whole array:
    ``d/dh loss(a + h u) = <grad, u>`` for ``u`` standard normal.

    Parameters
    ----------
    loss : callable
        From a dictionary like ``arrays`` to the loss, a float. Has to be smooth within a few ``step`` of
        ``arrays``: keep ReLU away from its kink.
    arrays : dict of str to float64 array
        Where the gradient was taken.
    grads : dict of str to float64 array
        The gradient of ``loss`` for each of ``arrays``.
    tolerance : float
        Largest relative error.
    step : float
        h of the difference, as a fraction of the root mean square of an array (or of 1, for a zero array).
    seed : int
        Of the directions.

    Returns
    -------
    list of GradientCheck
        One for each array.

    Raises
    ------
    AssertionError
        If an error is above the tolerance (or no number); it names the arrays and both slopes.
    TypeError, ValueError
        If keys, shapes or dtypes do not fit.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> a = {"w": np.array([1.0, 2.0])}
    >>> [check] = ba.check_gradients(lambda a: np.sum(a["w"] ** 3), a, {"w": 3 * a["w"] ** 2})
    >>> check.error < 1e-9
    True
    """
    check_number("tolerance", tolerance)
    if not check_number("step", step):
        raise ValueError("step=0; expected a positive number")
    if not callable(loss):
        raise TypeError(f"loss is a {type(loss).__name__}; expected a function of a dictionary like arrays")
    for where, given in (("arrays", arrays), ("grads", grads)):
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise TypeError(
                f"{where}={said(given)} is a {type(given).__name__}; expected a dictionary of arrays by name"
            )
    if set(arrays) != set(grads):
        raise ValueError(f"grads has keys {said(sorted(grads))}; expected those of arrays, {said(sorted(arrays))}")
    for where, given in (("arrays", arrays), ("grads", grads)):
        for name, array in given.items():
            check_plain(f"{where}[{name!r}]", array)
            shape = getattr(arrays[name], "shape", None)
            if not isinstance(array, np.ndarray) or array.dtype != np.float64 or array.shape != shape:
                raise TypeError(
                    f"{where}[{name!r}] is a {type(array).__name__} of shape {getattr(array, 'shape', None)} and dtype "
                    f"{getattr(array, 'dtype', None)}; expected a float64 NumPy array of shape {shape}"
                )
    rng = np.random.default_rng(check_count("seed", seed, least=0, most=LARGEST_SEED))
    checks = [_check(loss, arrays, name, grads[name], rng, step) for name in sorted(arrays)]
    failed = [check for check in checks if not check.error <= tolerance]
    if failed:
        lines = [
            f"  {check.name}: finite differences {check.numeric:.12g}, gradient {check.analytic:.12g}, "
            f"relative error {check.error:.2g}"
            for check in failed
        ]
        raise AssertionError(
            "\n".join([f"gradients differ from finite differences by more than {tolerance:g}:", *lines])
        )
    return checks


def _check(
    loss: Callable[[dict[str, np.ndarray[Any, Any]]], float],
    arrays: HostArrays,
    name: str,
    grad: np.ndarray[Any, Any],
    rng: np.random.Generator,
    step: float,
) -> GradientCheck:
    centre = arrays[name]
    direction = rng.standard_normal(centre.shape)
    size = float(np.sqrt(np.mean(centre * centre))) if centre.size else 0.0
    h = step * (size or 1.0) or step
    values = [_number(loss({**arrays, name: centre + k * h * direction})) for k, _ in _STENCIL]
    numeric = sum(w * value for (_, w), value in zip(_STENCIL, values, strict=True)) / h
    analytic = float(np.sum(grad * direction))
    # |<grad, u>| is |grad| on average: a direction that happens to be flat must not inflate the error.
    scale = max(float(np.linalg.norm(grad)), abs(numeric), abs(analytic))
    # Each value of the loss is rounded; where the gradient is zero there is nothing but that.
    rounding = 16 * float(np.finfo(np.float64).eps) * float(np.max(np.abs(values))) / h
    difference = abs(numeric - analytic)
    if not math.isfinite(difference):  # nor would rounding be
        return GradientCheck(name, numeric, analytic, math.nan)
    error = 0.0 if difference <= rounding else (difference - rounding) / scale
    return GradientCheck(name, numeric, analytic, error)


def _number(value: Any) -> float:
    """What the caller's loss returned."""
    try:
        if isinstance(value, (str, bytes)) or getattr(value, "ndim", 0) != 0:
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"loss returned {said(value)}, a {type(value).__name__}; expected a real number") from None
