"""The GRU of cuDNN and PyTorch: one step forward and backward."""

from __future__ import annotations

from types import MappingProxyType

from ..backend.portable import Array, Backend, Elementwise
from .cell import Cell, OwnGradients, Params, Step, Tape, each, multiply, shared
from .gates import sigmoid_of_sum
from .state_product import StateProduct


@shared
class GRU(Cell):
    """Gated recurrent unit, with the gates r, z, n of PyTorch in that order, and its formulas.

    ``r, u = sigmoid(z_r), sigmoid(z_u)`` of ``z = W_xh x_t + W_hh h_{t-1} + b_h``,
    ``n = tanh(W_xn x_t + b_n + r (W_hn h_{t-1} + b_hn))``, ``h_t = (1 - u) n + u h_{t-1}`` (Cho et al., 2014; u is
    z in PyTorch's words, which here is the name of the sums). ``b_hn (H,)`` is a parameter of its own; of the other
    gates' two biases in PyTorch only the sum matters.
    """

    name = "gru"
    gates = 3
    keeps = 4  # r, u, n, W_hn h_{t-1} + b_hn
    gates_apart = True
    slopes = 4  # of z_r, z_u and W_hn h_{t-1} + b_hn, and of W_xn x_t + b_n, all by h_t
    activations = MappingProxyType({"r": ("sigmoid", 0), "u": ("sigmoid", 1), "n": ("tanh", 2)})

    def own_parameters(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {"b_hn": (hidden_size,)}

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        product_, of_h = product.writing()  # W_hh h_{t-1}
        gates_, state_ = backend.fused(sigmoid_of_sum), backend.fused(_gru_state)
        b_hn: Array = params["b_hn"][..., None, :]
        of_h_by_gate = self.z_by_gate(backend, of_h[None, ...])[0, ...]
        ru_of_h, n_of_h = of_h_by_gate[:2, ...], of_h_by_gate[2, ...]

        def step_(
            z: Array,
            h_before: Array,
            h: Array,
            z_ru: Array,
            z_n: Array,
            ru: Array,
            r: Array,
            u: Array,
            n: Array,
            inner: Array,
        ) -> None:
            product_(h_before)
            gates_(ru, z_ru, ru_of_h)
            state_(r, u, n, inner, z_n, n_of_h, b_hn, h_before, h)

        return step_

    def forward_rows(self, backend: Backend, z: Array, kept: Array) -> tuple[Array, ...]:
        by_gate = self.z_by_gate(backend, z)
        return by_gate[:, :2, ...], by_gate[:, 2, ...], kept[:, :2, ...], *each(kept, 4)

    def slopes_(self, backend: Backend, slopes: Array, dz: Array, tape: Tape) -> tuple[Array, ...]:
        backend.over_segment(_gru_slopes)(*each(tape.kept, 4), tape.h_before, *each(slopes, 4))
        return tape.kept[:, 1, ...], slopes[:, :3, ...], self.by_gate(backend, dz)

    def backward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        add_product, H = product.adding(), params["b_hn"].shape[-1]
        gates_ = backend.fused(multiply)
        add_elementwise = backend.elementwise_accumulator((*product.rows, H), params["b_hn"].dtype)

        def step_(dz: Array, dh: Array, dh_before: Array, u: Array, slopes: Array, dz_by_gate: Array) -> None:
            gates_(dz_by_gate, slopes, dh)
            add_elementwise(dh_before, u, dh)  # dh_{t-1} = (direct) + u dh_t + W_hh^T dz_t
            add_product(dh_before, dz)

        return step_

    def finish_(self, backend: Backend, slopes: Array, dz: Array, dh: Array, tape: Tape) -> OwnGradients:
        *_, dn = self.split(dz)
        of_b_hn = backend.copy(dn)
        backend.over_segment(multiply)(dn, slopes[:, 3, ...], dh)  # dn_t, without the r of W_hn h_{t-1}
        return {"b_hn": of_b_hn}


def _gru_state(ops: Elementwise) -> Step:
    def state_(
        r: Array,
        u: Array,
        n: Array,
        inner: Array,
        z_n: Array,
        n_of_h: Array,
        b_hn: Array,
        h_before: Array,
        h: Array,
    ) -> None:
        ops.add_(inner, n_of_h, b_hn)  # W_hn h_{t-1} + b_hn
        ops.multiply_(h, r, inner)
        h += z_n
        ops.tanh_(n, h)
        ops.subtract_(h, h_before, n)
        h *= u
        h += n  # h_t = n + u (h_{t-1} - n)

    return state_


def _gru_slopes(ops: Elementwise) -> Step:
    def slopes_(
        r: Array,
        u: Array,
        n: Array,
        inner: Array,
        h_before: Array,
        slope_r: Array,
        slope_u: Array,
        slope_inner: Array,
        slope_n: Array,
    ) -> None:
        ops.one_minus_(slope_u, u)
        ops.multiply_(slope_n, n, n)
        ops.one_minus_(slope_n, slope_n)
        slope_n *= slope_u  # (1 - u) (1 - n^2): of W_xn x_t + b_n
        ops.subtract_(slope_inner, h_before, n)
        slope_u *= u
        slope_u *= slope_inner  # (h_{t-1} - n) u (1 - u)
        ops.one_minus_(slope_r, r)
        slope_r *= r
        slope_r *= inner
        slope_r *= slope_n  # r (1 - r) (W_hn h_{t-1} + b_hn), times that of n
        ops.multiply_(slope_inner, slope_n, r)  # of W_hn h_{t-1} + b_hn

    return slopes_
