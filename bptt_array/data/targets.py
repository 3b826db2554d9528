"""Targets and weights of a data set: one for each step, or one for each sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..rnn.conversions import HostArray
from .sequences import Column, has_sequences, is_list, of_list, readable


@dataclass(frozen=True)
class DataSet:
    """What they go with: N sequences of ``steps (N,)``, at most T."""

    N: int
    T: int
    steps: HostArray
    time_major: bool

    def target(self, value: Any, timed: bool | None) -> Column:
        """``timed``: whether there is one for each step, where that is known; else it has to follow from the shape.

        Floats without an axis of features get one.
        """
        return self._column("target", value, timed, features=True)

    def weights(self, value: Any, timed: bool | None) -> Column:
        """The same; they have no features."""
        return self._column("weights", value, timed, features=False)

    def _column(self, name: str, value: Any, timed: bool | None, features: bool) -> Column:
        if is_list(value):
            value = list(value)
            if len(value) != self.N:
                raise ValueError(f"{name} has {len(value)} entries; expected one for each of N={self.N} sequences of x")
            if has_sequences(value):
                return self._of_list(name, value, timed, features)
        array = readable(name, value)  # also of a list of numbers
        lead = (self.T, self.N) if self.time_major else (self.N, self.T)
        axes = "(T, N" if self.time_major else "(N, T"
        more = features + 2 * (features and timed is not None)  # who says how it is meant may have other axes
        timed = self._known(
            f"{name} has shape {array.shape}",
            timed,
            array.shape[:2] == lead and array.ndim <= 2 + more,
            array.shape[:1] == (self.N,) and array.ndim <= 1 + more,
            f"{axes}{', O' * features}) with {lead} first",
            f"(N{', O' if features else ','}) with N={self.N}",
        )
        items = array.swapaxes(0, 1) if timed and self.time_major else array
        return _column(name, items, items.shape[1 + timed :], timed, features, array.dtype.kind in "iu")

    def _of_list(self, name: str, values: list[Any], timed: bool | None, features: bool) -> Column:
        """From a list that has an array for each sequence."""
        arrays = [readable(f"{name}[{n}]", value) for n, value in enumerate(values)]
        most = 2 if features else 1
        wrong = [n for n, a in enumerate(arrays) if len(a.shape[:1]) != 1 or len(a) != self.steps[n] or a.ndim > most]
        alike = all(a.shape == arrays[0].shape and a.ndim == 1 for a in arrays) and features
        n = wrong[0] if wrong else 0
        timed = self._known(
            f"{name}[{n}] has shape {arrays[n].shape}",
            timed,
            not wrong,
            alike,
            f"(T_n{', O' if features else ','}) with the {self.steps[n]} steps of x[{n}]",
            "(O,) with the same O for all" if features else "a number",
        )
        if timed:
            column = of_list(name, arrays)
            return _column(name, column.items, column.tail, True, features, column.whole)
        return _column(name, np.stack(arrays), arrays[0].shape, False, features, arrays[0].dtype.kind in "iu")

    def _known(self, has: str, timed: bool | None, each_step: bool, each: bool, of_steps: str, of_each: str) -> bool:
        """Whether it is one for each step, if it can be that or one for each sequence, as ``timed`` may say."""
        fits = [way for way, can in ((True, each_step), (False, each)) if can and timed in (None, way)]
        ways = [f"{of_steps}, one for each step", f"{of_each}, one for each sequence"]
        if not fits:
            expected = ", or ".join(ways) if timed is None else ways[0 if timed else 1]
            raise ValueError(f"{has}; expected {expected}")
        if len(fits) == 2:
            raise ValueError(
                f"{has}, which may be one for each of {self.T} steps or one for each of {self.N} sequences; say which: "
                "per_step=True or per_step=False"
            )
        return fits[0]


def _column(
    name: str, items: Sequence[HostArray] | HostArray, tail: tuple[int, ...], timed: bool, features: bool, integer: bool
) -> Column:
    """Integers without features are classes; floats without them have one."""
    whole = integer and features and not tail
    if features and not (tail or whole):
        items, tail = (items[..., None] if isinstance(items, np.ndarray) else items), (1,)
    if not features and tail == (1,):
        items, tail = [item[:, 0] for item in items], ()
    return Column(name, items, tail, timed, whole)
