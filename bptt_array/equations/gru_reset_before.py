"""The GRU as it was published: one step forward and backward, with a product more than that of ``gru.py``."""

from __future__ import annotations

from types import MappingProxyType

from ..backend.portable import Array, Backend, Elementwise
from .cell import Cell, OwnGradients, Params, Step, Tape, by_gate, each, multiply, shared
from .gates import sigmoid_of_sum
from .state_product import StateProduct


@shared
class GRUResetBefore(Cell):
    """Gated recurrent unit with the reset gate before its product, as ONNX and Keras (``reset_after=False``) have it.

    ``r, u = sigmoid(z_r), sigmoid(z_u)`` of ``z = W_xh x_t + W_hh h_{t-1} + b_h``,
    ``n = tanh(W_xn x_t + b_n + W_hn (r h_{t-1}))``, ``h_t = (1 - u) n + u h_{t-1}`` (Cho et al., 2014). ``W_xh`` is
    (3H, I), for r, u and n, ``W_hh`` (2H, H), for r and u, and ``W_hn`` (H, H).
    """

    name = "gru_reset_before"
    gates = 3
    recurrent_gates = 2
    keeps = 3  # r, u, n
    gates_apart = True
    of_state = ("W_hn",)
    slopes = 3  # of z_r by r h_{t-1}; of z_u and z_n by h_t
    changes_dz = False
    activations = MappingProxyType({"r": ("sigmoid", 0), "u": ("sigmoid", 1), "n": ("tanh", 2)})

    def own_parameters(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {"W_hn": (hidden_size, hidden_size)}

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        product_, of_h = product.writing()  # W_hh h_{t-1}
        product_n_, of_reset = product.of("W_hn").writing()
        gates_, state_ = backend.fused(sigmoid_of_sum), backend.fused(_state)
        multiply_, reset = backend.fused(multiply), backend.empty(of_reset.shape, of_reset.dtype)
        of_h = of_h if self.apart(backend) else by_gate(backend, of_h, self.gates_of_state)

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
        ) -> None:
            product_(h_before)
            gates_(ru, z_ru, of_h)
            multiply_(reset, r, h_before)
            product_n_(reset)  # W_hn (r h_{t-1})
            state_(u, n, z_n, of_reset, h_before, h)

        return step_

    def forward_rows(self, backend: Backend, z: Array, kept: Array) -> tuple[Array, ...]:
        by_gate = self.z_by_gate(backend, z)
        return by_gate[:, :2, ...], by_gate[:, 2, ...], kept[:, :2, ...], *each(kept, 3)

    def slopes_(self, backend: Backend, slopes: Array, dz: Array, tape: Tape) -> tuple[Array, ...]:
        backend.over_segment(_slopes)(*each(tape.kept, 3), tape.h_before, *each(slopes, 3))
        return *each(tape.kept, 2), *each(slopes, 3), *self.split(dz)

    def backward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        add_product = product.adding()
        product_n_, d_reset = product.of("W_hn").writing()  # the gradient of r h_{t-1}
        before_, after_, H = backend.fused(_before_product), backend.fused(_after_product), d_reset.shape[-1]
        d_ru = backend.empty((*product.rows, 2 * H), d_reset.dtype)  # in one piece, as products want it
        d_r, d_u = d_ru[..., :H], d_ru[..., H:]

        def step_(
            dz: Array,
            dh: Array,
            dh_before: Array,
            r: Array,
            u: Array,
            slope_r: Array,
            slope_u: Array,
            slope_n: Array,
            dz_r: Array,
            dz_u: Array,
            dz_n: Array,
        ) -> None:
            before_(dz_u, d_u, dz_n, slope_u, slope_n, dh)
            product_n_(slope_n)
            after_(dz_r, d_r, slope_r, d_reset, r, u, dh, dh_before)
            add_product(dh_before, d_ru)

        return step_

    def finish_(self, backend: Backend, slopes: Array, dz: Array, dh: Array, tape: Tape) -> OwnGradients:
        reset, (*_, dz_n) = backend.empty(dh.shape, dh.dtype), self.split(dz)
        backend.over_segment(multiply)(reset, tape.kept[:, 0, ...], tape.h_before)
        return {"W_hn": (dz_n, reset)}


def _state(ops: Elementwise) -> Step:
    def state_(u: Array, n: Array, z_n: Array, of_reset: Array, h_before: Array, h: Array) -> None:
        ops.add_(n, z_n, of_reset)
        ops.tanh_(n, n)
        ops.subtract_(h, h_before, n)
        h *= u
        h += n  # h_t = n + u (h_{t-1} - n)

    return state_


def _slopes(ops: Elementwise) -> Step:
    def slopes_(r: Array, u: Array, n: Array, h_before: Array, slope_r: Array, slope_u: Array, slope_n: Array) -> None:
        ops.one_minus_(slope_u, u)
        ops.multiply_(slope_n, n, n)
        ops.one_minus_(slope_n, slope_n)
        slope_n *= slope_u  # (1 - u) (1 - n^2)
        slope_u *= u
        ops.subtract_(slope_r, h_before, n)
        slope_u *= slope_r  # (h_{t-1} - n) u (1 - u)
        ops.one_minus_(slope_r, r)
        slope_r *= r
        slope_r *= h_before  # r (1 - r) h_{t-1}

    return slopes_


def _before_product(ops: Elementwise) -> Step:
    def before_(dz_u: Array, d_u: Array, dz_n: Array, slope_u: Array, slope_n: Array, dh: Array) -> None:
        ops.multiply_(dz_u, slope_u, dh)
        ops.multiply_(d_u, slope_u, dh)
        ops.multiply_(dz_n, slope_n, dh)
        slope_n *= dh

    return before_


def _after_product(ops: Elementwise) -> Step:
    def after_(
        dz_r: Array, d_r: Array, slope_r: Array, d_reset: Array, r: Array, u: Array, dh: Array, dh_before: Array
    ) -> None:
        ops.multiply_(dz_r, slope_r, d_reset)
        ops.multiply_(d_r, slope_r, d_reset)
        ops.multiply_(slope_r, r, d_reset)
        dh_before += slope_r
        ops.multiply_(slope_r, u, dh)
        dh_before += slope_r  # dh_{t-1} = (direct) + u dh_t + r W_hn^T dz_n + W_hh^T dz_t

    return after_
