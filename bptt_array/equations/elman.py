"""One step of the cell of the derivation, forward by (1.1) and backward by (3.1).

(1.1) ``h_t = f(z_t)``, ``z_t = W_xh x_t + W_hh h_{t-1} + b_h``
(3.1) ``dh_t = dL_t/dh_t + sum_{k>t} dL_k/dh_k dh_k/dh_t``

The sum in (3.1), over all later losses, is what the step after hands back: ``W_hh^T dz_{t+1}`` with
``dz = f'(z) * dh``, since dh_{t+1} has all of these losses in it. What needs no other step is done for all at once:
``W_xh x_t + b_h`` before the loop forward, the direct part dL_t/dh_t (3.2) and f'(z_t) before the loop backward.
"""

from __future__ import annotations

from ..backend.portable import Array, Backend
from .activations import Activation
from .cell import Cell, Params, Step, Tape, shared
from .state_product import StateProduct


@shared
class Elman(Cell):
    """The cell of (1.1), with f tanh or ReLU; ``product.adding()`` is the product with ``W_hh``, see :class:`Cell`."""

    f: Activation
    in_place = True
    diagonal = True

    def __init__(self, f: Activation) -> None:
        self.f = f
        vars(self).update(name=f.name, activations={"h": (f.name, None)})  # nobody sets them after this

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        f_, add_product = self.f.bound(backend), product.adding()

        def step_(h_before: Array, h: Array) -> None:
            add_product(h, h_before)  # z_t = (W_xh x_t + b_h) + W_hh h_{t-1}
            f_(h)  # h_t = f(z_t)

        return step_

    def slopes_(self, backend: Backend, slopes: Array, dz: Array, tape: Tape) -> tuple[Array, ...]:
        assert self.f.derivative_ is not None  # every f of CELL_ACTIVATIONS is elementwise
        self.f.derivative_(backend, dz, tape.h)  # f'(z_t), where dz_t will be
        return ()

    def backward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        add_product = product.adding()

        def step_(dz: Array, dh: Array, dh_before: Array) -> None:
            dz *= dh  # dz_t = f'(z_t) * dh_t
            add_product(dh_before, dz)  # (3.1): dh_{t-1} = (direct) + W_hh^T dz_t

        return step_
