"""One step of a recurrent cell, forward and backward. A cell knows no time.

Rows are ``(..., N, H)``: N sequences, H hidden units, and any axes before them (members, directions). A row
vector ``a W^T`` here is the column vector ``W a`` of the equations. Each cell has its backward step next to the
forward step that it belongs to, and between the two what can be computed for all steps of a segment at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from .activations import CELL_ACTIVATIONS, Activation
from .backend import Array, Backend, Elementwise

if TYPE_CHECKING:
    from .recurrence import StateProduct

Params = Mapping[str, Array]
Step = Callable[..., None]


class Tape(NamedTuple):
    """What a segment of S steps leaves for its backward pass.

    Attributes
    ----------
    z : (S, ..., N, G*H)
        Arrived as ``W_xh x_t + b_h``; whatever the cell made of it.
    states : tuple of (S+1, ..., N, H)
        h, and c where the cell has one; row 0 is the state before the segment.
    kept : tuple of (S, ..., N, H)
        What else the cell keeps.
    """

    z: Array
    states: tuple[Array, ...]
    kept: tuple[Array, ...]

    @property
    def h(self) -> Array:
        """``h_t`` of every step, (S, ..., N, H)."""
        return self.states[0][1:, ...]

    @property
    def h_before(self) -> Array:
        """``h_{t-1}`` of every step."""
        return self.states[0][:-1, ...]

    @property
    def c_before(self) -> Array:
        """``c_{t-1}`` of every step."""
        return self.states[1][:-1, ...]


class Cell:
    """A recurrent cell: the base of those of the library, and of your own (see the README).

    The time loops do ``z_t = W_xh x_t + b_h`` for all steps at once, call the cell once a step, forward and then
    backward, and sum up the gradients of ``W_xh``, ``W_hh`` and ``b_h`` from the ``dz_t`` that the cell leaves.

    Attributes
    ----------
    name : str
    gates : int
        G: ``W_xh`` is (G*H, I), ``W_hh`` (G*H, H), ``b_h`` (G*H,).
    has_c : bool
        Whether a cell state c goes from step to step beside h.
    keeps : int
        How many arrays ``(S, ..., N, H)`` the forward pass fills for the backward pass, beside z and the states.
    rooms : int
        How many such arrays the backward pass needs for itself.
    in_place : bool
        Whether z becomes h, in the rows of the states (G = 1).
    """

    name: str = "custom"
    gates: int = 1
    has_c: bool = False
    keeps: int = 0
    rooms: int = 0
    in_place: bool = False

    def __repr__(self) -> str:
        return f"<cell {self.name!r}>"

    @property
    def states(self) -> tuple[str, ...]:
        """The fields of :class:`State` that go from step to step."""
        return ("h", "c") if self.has_c else ("h",)

    def own_parameters(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of parameters beside ``W_xh``, ``W_hh`` and ``b_h``."""
        return {}

    def split(self, a: Array) -> tuple[Array, ...]:
        """The G parts ``(..., H)`` of an array ``(..., G*H)``, as views."""
        H = a.shape[-1] // self.gates
        return tuple(a[..., k * H : (k + 1) * H] for k in range(self.gates))

    # ---- forward --------------------------------------------------------------------------------------

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        """The step forward, for one pass over a batch.

        ``product.adding()`` is a function ``(out, a)`` that does ``out += a W_hh^T``, ``product.writing()`` one
        that does ``out <- a W_hh^T``.

        Returns
        -------
        step_ : ``(z, h_before, h)``, with c ``(z, h_before, h, c_before, c)``, then rows of :meth:`forward_rows`
            Writes h and c. z arrives as ``W_xh x_t + b_h`` and may be written over. Where the cell works in place,
            z is left out of the arguments: h arrives as z.
        """
        raise TypeError(f"{type(self).__name__} has no forward_: see bptt_array.Cell")

    def forward_rows(self, tape: Tape) -> tuple[Array, ...]:
        """Further arrays over time, of each of which a step forward is given its row."""
        return tape.kept

    # ---- backward -------------------------------------------------------------------------------------

    def slopes_(self, backend: Backend, dz: Array, tape: Tape, rooms: tuple[Array, ...]) -> tuple[Array, ...]:
        """Before the loop backward: everything that does not depend on the step after, for a whole segment.

        Writes into ``dz (S, ..., N, G*H)`` what the step backward wants to find there, usually the derivative that
        ``dh`` is multiplied by, and returns further arrays over time, of each of which the step is given its row.
        """
        return ()

    def backward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        """The step backward, for one pass; ``product`` is as in :meth:`forward_`, with ``W_hh`` for ``W_hh^T``.

        Returns
        -------
        step_ : ``(dz, dh, dh_before)``, with c ``(dz, dh, dh_before, dc, dc_before)``, then rows of :meth:`slopes_`
            dh is the total ``dh_t`` of (3.1). Makes dz the gradient of ``W_hh h_{t-1}`` and adds what goes on to
            the step before, ``W_hh^T dz_t`` and all else, to dh_before and dc_before.
        """
        raise TypeError(f"{type(self).__name__} has no backward_: see bptt_array.Cell")

    def finish_(
        self, backend: Backend, dz: Array, dh: Array, tape: Tape, rooms: tuple[Array, ...]
    ) -> dict[str, Array]:
        """After the loop and the sum of ``dW_hh``: make dz the gradient of ``W_xh x_t + b_h``, where it differs.

        Returns the gradients of :meth:`own_parameters`, by name: each the gradient of every step, (S, ..., N, K),
        which is then summed.
        """
        return {}


class Elman(Cell):
    """The cell of (1.1): ``h_t = f(W_xh x_t + W_hh h_{t-1} + b_h)``."""

    in_place = True

    def __init__(self, f: Activation) -> None:
        self.f, self.name = f, f.name

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        f_, add_product = self.f.bound(backend), product.adding()

        def step_(h_before: Array, h: Array) -> None:
            add_product(h, h_before)  # z_t = (W_xh x_t + b_h) + W_hh h_{t-1}
            f_(h)  # h_t = f(z_t)

        return step_

    def slopes_(self, backend: Backend, dz: Array, tape: Tape, rooms: tuple[Array, ...]) -> tuple[Array, ...]:
        assert self.f.derivative_ is not None  # every f of CELL_ACTIVATIONS is elementwise
        self.f.derivative_(backend, dz, tape.h)  # f'(z_t)
        return ()

    def backward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        add_product = product.adding()

        def step_(dz: Array, dh: Array, dh_before: Array) -> None:
            dz *= dh  # dz_t = f'(z_t) * dh_t
            add_product(dh_before, dz)  # (3.1): dh_{t-1} = (direct) + W_hh^T dz_t

        return step_


class LSTM(Cell):
    """Long short-term memory, with the gates i, f, g, o of PyTorch in that order.

    ``i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)``, ``g = tanh(z_g)``, ``z = W_xh x_t + W_hh h_{t-1} + b_h``;
    ``c_t = f c_{t-1} + i g``, ``h_t = o tanh(c_t)`` (Hochreiter & Schmidhuber, 1997; Gers et al., 2000).
    """

    name = "lstm"
    gates = 4
    has_c = True
    keeps = 1  # tanh(c_t)
    rooms = 1  # dc_t/dh_t

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        add_product = product.adding()
        gates_, state_ = backend.fused(_lstm_gates), backend.fused(_lstm_state)
        slope = backend.ones(params["b_h"].shape[-1:], params["b_h"].dtype)
        for gate in (0, 1, 3):
            self.split(slope)[gate][...] = 0.5
        shift = 1 - slope

        def step_(
            z: Array,
            h_before: Array,
            h: Array,
            c_before: Array,
            c: Array,
            i: Array,
            f: Array,
            g: Array,
            o: Array,
            tanh_c: Array,
        ) -> None:
            add_product(z, h_before)
            gates_(z, slope, shift)
            state_(i, f, g, o, c_before, c, tanh_c, h)

        return step_

    def forward_rows(self, tape: Tape) -> tuple[Array, ...]:
        return *self.split(tape.z), *tape.kept

    def slopes_(self, backend: Backend, dz: Array, tape: Tape, rooms: tuple[Array, ...]) -> tuple[Array, ...]:
        i, f, g, o = self.split(tape.z)
        backend.over_segment(_lstm_slopes)(i, f, g, o, tape.c_before, *tape.kept, *self.split(dz), *rooms)
        H = rooms[0].shape[-1]
        of_c = backend.xp.reshape(dz, (*dz.shape[:-1], 4, H))[..., :3, :]
        return rooms[0], f, of_c, dz[..., 3 * H :]

    def backward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        add_product, back_ = product.adding(), backend.fused(_lstm_back)

        def step_(
            dz: Array,
            dh: Array,
            dh_before: Array,
            dc: Array,
            dc_before: Array,
            slope_c: Array,
            f: Array,
            of_c: Array,
            of_h: Array,
        ) -> None:
            back_(dh, dc, dc_before, slope_c, f, of_h)
            of_c *= dc[..., None, :]  # dz_i, dz_f, dz_g = (g i (1-i), c_{t-1} f (1-f), i (1-g^2)) * dc_t
            add_product(dh_before, dz)

        return step_


def _lstm_gates(ops: Elementwise) -> Step:
    def gates_(z: Array, slope: Array, shift: Array) -> None:
        z *= slope  # sigmoid(z) = 1/2 + 1/2 tanh(z/2): one function for all gates, and none overflows
        ops.tanh_(z, z)
        z *= slope
        z += shift

    return gates_


def _lstm_state(ops: Elementwise) -> Step:
    def state_(
        i: Array, f: Array, g: Array, o: Array, c_before: Array, c: Array, tanh_c: Array, h: Array
    ) -> None:
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
        c_before: Array,
        tanh_c: Array,
        di: Array,
        df: Array,
        dg: Array,
        do: Array,
        slope_c: Array,
    ) -> None:
        for gate, slope, factor in ((i, di, g), (f, df, c_before), (o, do, tanh_c)):
            ops.one_minus_(slope, gate)
            slope *= gate
            slope *= factor  # sigmoid' = gate (1 - gate), times what the gate is multiplied by
        for value, slope, factor in ((g, dg, i), (tanh_c, slope_c, o)):
            ops.multiply_(slope, value, value)
            ops.one_minus_(slope, slope)
            slope *= factor  # tanh' = 1 - value^2, times what tanh is multiplied by

    return slopes_


def _lstm_back(ops: Elementwise) -> Step:
    def back_(dh: Array, dc: Array, dc_before: Array, slope_c: Array, f: Array, of_h: Array) -> None:
        slope_c *= dh
        dc += slope_c  # dc_t = (through c_{t+1}) + o (1 - tanh(c_t)^2) dh_t
        of_h *= dh  # dz_o = tanh(c_t) o (1 - o) dh_t
        ops.multiply_(slope_c, f, dc)
        dc_before += slope_c  # dc_{t-1} = f dc_t

    return back_


class GRU(Cell):
    """Gated recurrent unit, with the gates r, z, n of PyTorch in that order, and its formulas.

    ``r, u = sigmoid(z_r), sigmoid(z_u)`` of ``z = W_xh x_t + W_hh h_{t-1} + b_h``,
    ``n = tanh(W_xn x_t + b_n + r (W_hn h_{t-1} + b_hn))``, ``h_t = (1 - u) n + u h_{t-1}`` (Cho et al., 2014; u is
    z in PyTorch's words, which here is the name of the sums). ``b_hn (H,)`` is a parameter of its own; of the other
    gates' two biases in PyTorch only the sum matters.
    """

    name = "gru"
    gates = 3
    keeps = 1  # W_hn h_{t-1} + b_hn
    rooms = 1  # dn_t/dh_t

    def own_parameters(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {"b_hn": (hidden_size,)}

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        product_ = product.writing()
        gates_, state_ = backend.fused(_gru_gates), backend.fused(_gru_state)
        H = params["b_hn"].shape[-1]
        b_hn = params["b_hn"][..., None, :]
        of_h = backend.empty((*product.rows, 3 * H), b_hn.dtype)  # W_hh h_{t-1}
        ru_of_h, n_of_h = of_h[..., : 2 * H], of_h[..., 2 * H :]

        def step_(
            z: Array, h_before: Array, h: Array, ru: Array, r: Array, u: Array, n: Array, inner: Array
        ) -> None:
            product_(of_h, h_before)
            gates_(ru, ru_of_h)
            state_(r, u, n, n_of_h, b_hn, inner, h_before, h)

        return step_

    def forward_rows(self, tape: Tape) -> tuple[Array, ...]:
        r, u, n = self.split(tape.z)
        return tape.z[..., : 2 * n.shape[-1]], r, u, n, *tape.kept

    def slopes_(self, backend: Backend, dz: Array, tape: Tape, rooms: tuple[Array, ...]) -> tuple[Array, ...]:
        r, u, n = self.split(tape.z)
        backend.over_segment(_gru_slopes)(r, u, n, *tape.kept, tape.h_before, *self.split(dz), *rooms)
        return u, backend.xp.reshape(dz, (*dz.shape[:-1], 3, n.shape[-1]))

    def backward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        add_product, H = product.adding(), params["b_hn"].shape[-1]
        add_elementwise = backend.elementwise_accumulator((*product.rows, H), params["b_hn"].dtype)

        def step_(dz: Array, dh: Array, dh_before: Array, u: Array, by_gate: Array) -> None:
            by_gate *= dh[..., None, :]
            add_elementwise(dh_before, u, dh)  # dh_{t-1} = (direct) + u dh_t + W_hh^T dz_t
            add_product(dh_before, dz)

        return step_

    def finish_(
        self, backend: Backend, dz: Array, dh: Array, tape: Tape, rooms: tuple[Array, ...]
    ) -> dict[str, Array]:
        *_, dn = self.split(dz)
        of_b_hn = backend.xp.asarray(dn, copy=True)
        backend.over_segment(_product)(dn, dh, *rooms)  # dn_t, without the r of W_hn h_{t-1}
        return {"b_hn": of_b_hn}


def _product(ops: Elementwise) -> Step:
    return ops.multiply_


def _gru_gates(ops: Elementwise) -> Step:
    def gates_(ru: Array, ru_of_h: Array) -> None:
        ru += ru_of_h
        ru *= 0.5
        ops.tanh_(ru, ru)
        ru *= 0.5
        ru += 0.5  # sigmoid(z) = 1/2 + 1/2 tanh(z/2)

    return gates_


def _gru_state(ops: Elementwise) -> Step:
    def state_(
        r: Array, u: Array, n: Array, n_of_h: Array, b_hn: Array, inner: Array, h_before: Array, h: Array
    ) -> None:
        ops.add_(inner, n_of_h, b_hn)  # W_hn h_{t-1} + b_hn
        ops.multiply_(h, r, inner)
        n += h
        ops.tanh_(n, n)
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
        dr: Array,
        du: Array,
        dn: Array,
        slope_n: Array,
    ) -> None:
        ops.one_minus_(du, u)
        ops.multiply_(slope_n, n, n)
        ops.one_minus_(slope_n, slope_n)
        slope_n *= du  # (1 - u) (1 - n^2): of W_xn x_t + b_n
        ops.subtract_(dn, h_before, n)
        du *= u
        du *= dn  # (h_{t-1} - n) u (1 - u)
        ops.one_minus_(dr, r)
        dr *= r
        dr *= inner
        dr *= slope_n  # r (1 - r) (W_hn h_{t-1} + b_hn), times that of n
        ops.multiply_(dn, slope_n, r)  # of W_hn h_{t-1} + b_hn

    return slopes_


CELLS: dict[str, Cell] = {name: Elman(f) for name, f in CELL_ACTIVATIONS.items()} | {"lstm": LSTM(), "gru": GRU()}
