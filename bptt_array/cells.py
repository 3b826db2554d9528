"""One step of a recurrent cell, forward and backward. A cell knows no time.

Rows are ``(..., N, H)``: N sequences, H hidden units, and any axes before them. ``add_product(out, a)`` is
``out += a @ W`` for the matrix that the time loop bound to it (``W_hh^T`` forward, ``W_hh`` backward), so a
row vector ``a W^T`` here is the column vector ``W a`` of the equations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .activations import CELL_ACTIVATIONS, Activation
from .backend import Array, Backend

AddProduct = Callable[[Array, Array], None]


@dataclass(frozen=True)
class Elman:
    """The cell of (1.1): ``h_t = f(W_xh x_t + W_hh h_{t-1} + b_h)``."""

    f: Activation

    def forward_(self, backend: Backend, add_product: AddProduct) -> Callable[[Array, Array], None]:
        """One step ``(row, h_before)``: the row arrives as ``W_xh x_t + b_h`` and becomes ``h_t``."""
        f_ = self.f.bound(backend)

        def step_(row: Array, h_before: Array) -> None:
            add_product(row, h_before)  # z_t = (W_xh x_t + b_h) + W_hh h_{t-1}
            f_(row)  # h_t = f(z_t)

        return step_

    def slopes_(self, backend: Backend, out: Array, h: Array) -> None:
        """``out <- f'(z_t)`` for every step of a segment at once, from its states ``h (S, ..., N, H)``."""
        assert self.f.derivative_ is not None  # every f of CELL_ACTIVATIONS is elementwise
        self.f.derivative_(backend, out, h)

    def backward_(self, row: Array, slope: Array) -> None:
        """The row arrives as the total ``dh_t`` of (3.1) and becomes ``dz_t = f'(z_t) * dh_t``."""
        row *= slope


CELLS = {name: Elman(f) for name, f in CELL_ACTIVATIONS.items()}
