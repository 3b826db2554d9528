"""What one call works on: inputs, initial state and lengths, checked and in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .backend import Array, Backend
from .checks import check_lengths, check_range, check_state, check_x, is_integer
from .padding import Padding


@dataclass(frozen=True)
class Batch:
    """N sequences of T steps.

    Attributes
    ----------
    x : (T, N, I) or integer (T, N)
        Where the caller has it: on the device, or on the host.
    h_0 : (N, H)
        On the device.
    padding : Padding or None
        None where every sequence has T steps.
    """

    T: int
    N: int
    x: Array
    h_0: Array
    padding: Padding | None

    @property
    def lengths(self) -> np.ndarray[Any, Any] | None:
        return None if self.padding is None else self.padding.lengths

    def outputs_shape(self, readout: str) -> tuple[int, ...]:
        """``y.shape`` without its last axis."""
        return (self.T, self.N) if readout == "every" else (self.N,)

    def valid_outputs(self, readout: str) -> int:
        """How many outputs a loss is summed over."""
        if self.lengths is None:
            return self.T * self.N if readout == "every" else self.N
        return int(self.lengths.sum() if readout == "every" else np.count_nonzero(self.lengths))


def make_batch(
    backend: Backend,
    dtype: str,
    input_size: int,
    hidden_size: int,
    x: Any,
    state: Any,
    lengths: Any,
    *,
    validate: bool,
    host: bool,
) -> Batch:
    """Check what a caller gave; ``host``: NumPy arrays will do for a device model too."""
    T, N = check_x(x, input_size, backend, dtype, host=host)
    known = check_lengths(lengths, T, N)
    if is_integer(x):
        check_range("x", x, input_size, "tokens below input_size", backend, known, read=validate)
    if state is None:
        h_0 = backend.zeros((N, hidden_size), backend.dtype(dtype))
    else:
        check_state("state", state, (N, hidden_size), backend, dtype, host=host)
        h_0 = state.h[0, 0, ...] if backend.owns(state.h) else backend.from_host(state.h[0, 0, ...])
        h_0 = backend.xp.astype(h_0, backend.dtype(dtype), copy=False)  # the byte order of this machine
    return Batch(T, N, x, h_0, None if known is None else Padding(backend, known))
