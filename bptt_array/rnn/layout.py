"""Callers whose arrays have the batch first: turned at the border, never inside.

Turned: ``(N, T, F)`` to ``(T, N, F)`` and, with members, ``(E, N, T, F)`` to ``(T, E, N, F)``: T, which stands last
before the features, goes to the front. All of it is views.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import array_api_compat

from ..backend.arrays import is_array, is_integer
from ..backend.portable import Array, Backend
from ..bptt.state import Gradients
from .targets import may_have_features


class TimeFirst:
    """The layout of the library: nothing is turned."""

    def inward(self, array: Any, *, features: bool) -> Any:
        return array

    def inward_x(self, x: Any) -> Any:
        return x

    def inward_target(self, target: Any, loss: Any, y_shape: tuple[int, ...]) -> tuple[Any, bool | None]:
        """A target, and whether it has an axis of features, where that had to be found out."""
        return target, None

    def outward(self, array: Array) -> Array:
        return array

    def gradients(self, grads: Gradients) -> Gradients:
        return grads

    def in_errors(self) -> AbstractContextManager[Any]:
        return nullcontext()


class BatchFirst(TimeFirst):
    """``time_major=False``."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def inward(self, array: Any, *, features: bool) -> Any:
        """The caller's array, time first; what is no array, or has too few axes, is left for the checks to refuse."""
        at = -2 if features else -1
        if not is_array(array) or array.ndim < -at:
            return array
        return array_api_compat.array_namespace(array).moveaxis(array, at, 0)

    def inward_x(self, x: Any) -> Any:
        """Inputs, which have features unless they are tokens."""
        return self.inward(x, features=not (is_array(x) and is_integer(x)))

    def inward_target(self, target: Any, loss: Any, y_shape: tuple[int, ...]) -> tuple[Any, bool | None]:
        """``y_shape`` is time first. Of a target that may have features its sizes say whether it has."""
        if not is_array(target):
            return target, None
        if is_integer(target) and not callable(loss):
            return self.inward(target, features=False), None
        T, *lead, _ = y_shape
        fits = may_have_features(target, [(*lead, T), (lead[-1], T)])
        if len(fits) == 1:
            (features,) = fits
            return self.inward(target, features=features), features
        # What does not fit is turned as well, or it might fit time first; what fits both ways has axes of one size.
        return self.inward(target, features=target.ndim > 2), None

    def outward(self, array: Array) -> Array:
        """``(T, ..., F)`` for the caller, in one piece."""
        turned = self.backend.xp.moveaxis(array, 0, -2)
        result = self.backend.empty(turned.shape, turned.dtype)
        result[...] = turned
        return result

    def gradients(self, grads: Gradients) -> Gradients:
        return grads if grads.x is None else replace(grads, x=self.outward(grads.x))

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Shapes and indices in messages are those of the turned arrays: say so."""
        try:
            yield
        except ValueError as error:
            if "shape" in str(error) or "[" in str(error):
                error.add_note("time_major=False: x, targets, weights and dy are checked, and told here, time first")
            raise
