"""The LSTM: one step forward and backward."""

from __future__ import annotations

from types import MappingProxyType

from ..backend.portable import Array, Backend, Elementwise
from .cell import Cell, Params, Step, Tape, each, multiply, shared
from .gates import gate_functions
from .state_product import StateProduct


@shared
class LSTM(Cell):
    """Long short-term memory, with the gates i, f, g, o of PyTorch in that order.

    ``i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)``, ``g = tanh(z_g)``, ``z = W_xh x_t + W_hh h_{t-1} + b_h``;
    ``c_t = f c_{t-1} + i g``, ``h_t = o tanh(c_t)`` (Hochreiter & Schmidhuber, 1997; Gers et al., 2000).
    """

    name = "lstm"
    gates = 4
    has_c = True
    forget_gate = 1
    keeps = 5  # i, f, g, o, tanh(c_t)
    gates_apart = True
    slopes = 5  # of z_i, z_f, z_g by c_t; of z_o and c_t by h_t
    activations = MappingProxyType(
        {"i": ("sigmoid", 0), "f": ("sigmoid", 1), "g": ("tanh", 2), "o": ("sigmoid", 3), "tanh_c": ("tanh", 4)}
    )

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        add_product = product.adding()
        gates_ = gate_functions(backend, ("sigmoid", "sigmoid", "tanh", "sigmoid"), product.rows, params["b_h"].dtype)
        state_ = backend.fused(_lstm_state)

        def step_(
            z: Array,
            h_before: Array,
            h: Array,
            c_before: Array,
            c: Array,
            by_gate: Array,
            gates: Array,
            i: Array,
            f: Array,
            g: Array,
            o: Array,
            tanh_c: Array,
        ) -> None:
            add_product(z, h_before)
            gates_(gates, by_gate)
            state_(i, f, g, o, c_before, c, tanh_c, h)

        return step_

    def forward_rows(self, backend: Backend, z: Array, kept: Array) -> tuple[Array, ...]:
        return self.z_by_gate(backend, z), kept[:, :4, ...], *each(kept, 5)

    def outputs(self, backend: Backend, slopes: Array, tape: Tape) -> Array:
        """``o tanh(c_t)`` of every step."""
        return tape.h

    def slopes_(self, backend: Backend, slopes: Array, dz: Array, tape: Tape) -> tuple[Array, ...]:
        out = self.outputs(backend, slopes, tape)
        backend.over_segment(_lstm_slopes)(*each(tape.kept, 5), out, tape.c_before, *each(slopes, 5))
        by_gate = self.by_gate(backend, dz)
        dz_of_c, dz_of_h = by_gate[:, :3, ...], by_gate[:, 3, ...]
        return tape.kept[:, 1, ...], slopes[:, :3, ...], *each(slopes, 5)[3:], dz_of_c, dz_of_h

    def backward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        add_product, back_, gates_ = product.adding(), backend.fused(_lstm_back), backend.fused(multiply)

        def step_(
            dz: Array,
            dh: Array,
            dh_before: Array,
            dc: Array,
            dc_before: Array,
            f: Array,
            slopes_of_c: Array,
            slope_o: Array,
            slope_c: Array,
            dz_of_c: Array,
            dz_of_h: Array,
        ) -> None:
            back_(dh, dc, dc_before, slope_c, f, slope_o, dz_of_h)
            gates_(dz_of_c, slopes_of_c, dc)  # dz_i, dz_f, dz_g
            add_product(dh_before, dz)

        return step_


def _lstm_state(ops: Elementwise) -> Step:
    def state_(i: Array, f: Array, g: Array, o: Array, c_before: Array, c: Array, tanh_c: Array, h: Array) -> None:
        ops.multiply_(c, f, c_before)
        ops.multiply_(h, i, g)
        c += h  # c_t = f c_{t-1} + i g
        ops.tanh_(tanh_c, c)
        ops.multiply_(h, o, tanh_c)  # h_t = o tanh(c_t)

    return state_


def _lstm_slopes(ops: Elementwise) -> Step:
    def slopes_(
        i: Array,
        f: Array,
        g: Array,
        o: Array,
        tanh_c: Array,
        out: Array,
        c_before: Array,
        slope_i: Array,
        slope_f: Array,
        slope_g: Array,
        slope_o: Array,
        slope_c: Array,
    ) -> None:
        # sigmoid' = gate (1 - gate) and tanh' = 1 - value^2, times what the gate or tanh is multiplied by
        ops.multiply_(slope_g, i, g)
        ops.one_minus_(slope_i, i)
        slope_i *= slope_g  # i (1 - i) g
        slope_g *= g
        ops.subtract_(slope_g, i, slope_g)  # (1 - g^2) i
        ops.one_minus_(slope_f, f)
        slope_f *= f
        slope_f *= c_before  # f (1 - f) c_{t-1}
        ops.one_minus_(slope_o, o)
        slope_o *= out  # o (1 - o) tanh(c_t), by out = o tanh(c_t)
        ops.multiply_(slope_c, out, tanh_c)
        ops.subtract_(slope_c, o, slope_c)  # (1 - tanh(c_t)^2) o

    return slopes_


def _lstm_back(ops: Elementwise) -> Step:
    def back_(dh: Array, dc: Array, dc_before: Array, slope_c: Array, f: Array, slope_o: Array, dz_o: Array) -> None:
        ops.multiply_(dz_o, slope_o, dh)  # dz_o = tanh(c_t) o (1 - o) dh_t
        slope_c *= dh
        dc += slope_c  # dc_t = (through c_{t+1}) + o (1 - tanh(c_t)^2) dh_t
        ops.multiply_(slope_c, f, dc)
        dc_before += slope_c  # dc_{t-1} = f dc_t

    return back_
