"""Callers whose arrays have the batch first: turned at the border, never inside.

Turned: ``(N, T, K)`` to ``(T, N, K)`` and, with members, ``(E, N, T, K)`` to ``(T, E, N, K)``: T, which stands last
before the features, goes to the front. All of it is views.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import array_api_compat

from .backend import Array, Backend
from .state import Gradients


class TimeFirst:
    """The layout of the library: nothing is turned."""

    def inward(self, array: Any, *, features: bool) -> Any:
        return array

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

    def outward(self, array: Array) -> Array:
        """``(T, ..., K)`` for the caller, in one piece."""
        turned = self.backend.xp.moveaxis(array, 0, -2)
        result = self.backend.empty(turned.shape, turned.dtype)
        result[...] = turned
        return result

    def gradients(self, grads: Gradients) -> Gradients:
        return grads if grads.x is None else replace(grads, x=self.outward(grads.x))

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Shapes in messages are those of the turned arrays: say so."""
        try:
            yield
        except ValueError as error:
            if "shape" not in str(error):
                raise
            note = " (shapes are told time first: time_major=False turns x, targets and weights before they are checked)"
            raise ValueError(str(error) + note) from None


def is_array(array: Any) -> bool:
    return bool(array_api_compat.is_array_api_obj(array))
