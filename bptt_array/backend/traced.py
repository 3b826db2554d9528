"""An elementwise function over arrays, written down once for all of their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..tracing.program import Program
from ..tracing.symbols import Namespace, symbols
from .portable import Elementwise

Make = Callable[[Elementwise], Callable[..., None]]


class Traced(NamedTuple):
    """Operations of a program: the arrays and numbers given, and by its array what is written to it in the end."""

    program: Program
    arrays: list[int]
    numbers: list[int]
    written: dict[int, int]


def traced(make: Make, dtype: str, arrays: int, numbers: int) -> Traced:
    """What ``make(ops)`` does to so many arrays and numbers.

    Raises
    ------
    CannotTraceError
        If it is not elementwise.
    """
    program = Program()
    # Two entries each, of which the first is written down: what makes them meet is not elementwise, and raises.
    pairs = [symbols(program, [program.leaf(f"a{k}[{i}]", place=(i,)) for i in range(2)]) for k in range(arrays)]
    given = [pair.view(np.ndarray)[0].k for pair in pairs]
    scalars = [program.leaf(f"x{k}") for k in range(numbers)]
    make(Elementwise(Namespace(program, dtype)))(*pairs, *(symbols(program, number) for number in scalars))
    last = [program.as_float(pair.view(np.ndarray)[0]).k for pair in pairs]
    written = {k: value for k, value in enumerate(last) if value != given[k]}
    return Traced(program, given, [number.k for number in scalars], written)
