"""One step of a recurrent cell, forward and backward. A cell knows no time.

Rows are ``(..., N, H)``: N sequences, H hidden units, and any axes before them (members, directions). A row
vector ``a W^T`` here is the column vector ``W a`` of the equations. Each cell has its backward step next to the
forward step that it belongs to, and between the two what can be computed for all steps of a segment at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
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
    states : tuple of (S+1, ..., N, H)
        h, and c where the cell has one; row 0 is the state before the segment.
    kept : (S, K, ..., N, H)
        K numbers more of every step and unit, as many as the cell keeps; None if there are none.
    """

    states: tuple[Array, ...]
    kept: Array

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
        That of the class, if none is given.
    gates : int
        G: ``W_xh`` is (G*H, I), ``W_hh`` (G*H, H), ``b_h`` (G*H,).
    has_c : bool
        Whether a cell state c goes from step to step beside h.
    keeps : int
        K: how many numbers of every step and unit the forward pass keeps for the backward pass, beside the states.
    slopes : int
        How many the backward pass computes for a whole segment before its loop.
    in_place : bool
        Whether z becomes h, in the rows of the states (G = 1, K = 0).
    diagonal : bool
        Whether ``dz_t = f'_t * dh_t`` is all that a step backward does before its product, with the ``f'_t`` that
        :meth:`slopes_` writes to dz: then it can run in parallel over time.
    forget_gate : int or None
        Which gate ``forget_bias`` is added to.
    activations : mapping of str to (str, int or None)
        What :func:`bptt_array.diagnostics.saturation` looks at, by name: the function (``"tanh"``, ``"sigmoid"`` or
        ``"relu"``) and which of the K kept numbers is its value; None for h itself.

    Notes
    -----
    Where sequences end early, states and what is kept are zero past the end when :meth:`slopes_` reads them, and dh
    is zero there: slopes have to be finite at zero.
    """

    name: str = "custom"
    gates: int = 1
    has_c: bool = False
    keeps: int = 0
    slopes: int = 0
    in_place: bool = False
    diagonal: bool = False
    forget_gate: int | None = None
    activations: Mapping[str, tuple[str, int | None]] = MappingProxyType({})

    def __init_subclass__(cls) -> None:
        if cls.name == "custom":  # files say with which cell they were written
            cls.name = cls.__name__

    def __repr__(self) -> str:
        return f"<cell {self.name!r}>"

    @property
    def states(self) -> tuple[str, ...]:
        """The fields of :class:`State` that go from step to step."""
        return ("h", "c") if self.has_c else ("h",)

    @property
    def changes_dz(self) -> bool:
        """Whether :meth:`finish_` may write to dz."""
        return type(self).finish_ is not Cell.finish_

    def own_parameters(self, hidden_size: int) -> dict[str, tuple[int]]:
        """Names and shapes ``(M,)`` of parameters beside ``W_xh``, ``W_hh`` and ``b_h``."""
        return {}

    def split(self, z: Array) -> tuple[Array, ...]:
        """The G parts ``(..., H)`` of ``z (..., G*H)``, as views."""
        H = z.shape[-1] // self.gates
        return tuple(z[..., k * H : (k + 1) * H] for k in range(self.gates))

    def by_gate(self, backend: Backend, z: Array) -> Array:
        """``z (S, ..., N, G*H)`` of a segment as ``(S, G, ..., N, H)``, a view."""
        z = backend.xp.reshape(z, (*z.shape[:-1], self.gates, z.shape[-1] // self.gates))
        return backend.xp.moveaxis(z, -2, 1)

    # ---- forward --------------------------------------------------------------------------------------

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        """The step forward, for one pass over a batch.

        ``product.adding()`` is a function ``(out, a)`` that does ``out += a W_hh^T``, ``product.writing()`` one of
        ``(a)`` that does ``out <- a W_hh^T``, and that ``out``.

        Returns
        -------
        step_ : ``(z, h_before, h)``, with c ``(z, h_before, h, c_before, c)``, then rows of :meth:`forward_rows`
            Writes h and c. z arrives as ``W_xh x_t + b_h`` and is nobody's afterwards. Where the cell works in place,
            z is left out of the arguments: h arrives as z.
        """
        raise TypeError(f"{type(self).__name__} has no forward_: see bptt_array.Cell")

    def forward_rows(self, backend: Backend, z: Array, kept: Array) -> tuple[Array, ...]:
        """Further arrays over time, of each of which a step forward is given its row: ``kept (S, K, ..., N, H)``.

        Not asked of a cell that works in place; ``kept`` is None where K = 0.
        """
        return () if kept is None else (kept,)

    # ---- backward -------------------------------------------------------------------------------------

    def slopes_(self, backend: Backend, slopes: Array, dz: Array, tape: Tape) -> tuple[Array, ...]:
        """Before the loop backward: everything that does not depend on the step after, for a whole segment.

        Writes, usually, the derivatives that ``dh`` is multiplied by into ``slopes``, ``(S, ..., N, H)`` as many times
        as the cell asked for on an axis after the first, and returns arrays over time, of each of which the step
        backward is given its row. ``dz (S, ..., N, G*H)`` is where that step will write.
        """
        return ()

    def backward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        """The step backward, for one pass; ``product`` is as in :meth:`forward_`, with ``W_hh`` for ``W_hh^T``.

        Returns
        -------
        step_ : ``(dz, dh, dh_before)``, with c ``(dz, dh, dh_before, dc, dc_before)``, then rows of :meth:`slopes_`
            dh is the total ``dh_t`` of (3.1), to be left as it is. Writes the gradient of ``W_hh h_{t-1}`` to dz and
            adds what goes on to the step before, ``W_hh^T dz_t`` and all else, to dh_before and dc_before.
        """
        raise TypeError(f"{type(self).__name__} has no backward_: see bptt_array.Cell")

    def finish_(self, backend: Backend, slopes: Array, dz: Array, dh: Array) -> dict[str, Array]:
        """After the loop and the sum of ``dW_hh``: make dz the gradient of ``W_xh x_t + b_h``, where it differs.

        Returns the gradients of :meth:`own_parameters`, by name: each the gradient of every step, (S, ..., N, M),
        which is then summed.
        """
        return {}


class Elman(Cell):
    """The cell of (1.1): ``h_t = f(W_xh x_t + W_hh h_{t-1} + b_h)``."""

    in_place = True
    diagonal = True

    def __init__(self, f: Activation) -> None:
        self.f, self.name = f, f.name
        self.activations = {"h": (f.name, None)}

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
    slopes = 5  # of z_i, z_f, z_g by c_t; of z_o and c_t by h_t
    activations = MappingProxyType(
        {"i": ("sigmoid", 0), "f": ("sigmoid", 1), "g": ("tanh", 2), "o": ("sigmoid", 3), "tanh_c": ("tanh", 4)}
    )

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        add_product = product.adding()
        gates_, state_ = backend.fused(_lstm_gates), backend.fused(_lstm_state)
        slope = backend.ones((4, *(1,) * len(product.rows), 1), params["b_h"].dtype)
        slope[:2, ...] = 0.5
        slope[3, ...] = 0.5
        shift = 1 - slope

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
            gates_(gates, by_gate, slope, shift)
            state_(i, f, g, o, c_before, c, tanh_c, h)

        return step_

    def forward_rows(self, backend: Backend, z: Array, kept: Array) -> tuple[Array, ...]:
        return self.by_gate(backend, z), kept[:, :4, ...], *_each(kept, 5)

    def slopes_(self, backend: Backend, slopes: Array, dz: Array, tape: Tape) -> tuple[Array, ...]:
        backend.over_segment(_lstm_slopes)(*_each(tape.kept, 5), tape.c_before, *_each(slopes, 5))
        by_gate = self.by_gate(backend, dz)
        dz_of_c, dz_of_h = by_gate[:, :3, ...], by_gate[:, 3, ...]
        return tape.kept[:, 1, ...], slopes[:, :3, ...], *_each(slopes, 5)[3:], dz_of_c, dz_of_h

    def backward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        add_product, back_, gates_ = product.adding(), backend.fused(_lstm_back), backend.fused(_product)

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


def _each(a: Array, count: int) -> tuple[Array, ...]:
    """``a[:, k]`` for every k."""
    return tuple(a[:, k, ...] for k in range(count))


def _product(ops: Elementwise) -> Step:
    return ops.multiply_


def _lstm_gates(ops: Elementwise) -> Step:
    def gates_(gates: Array, z: Array, slope: Array, shift: Array) -> None:
        ops.multiply_(gates, z, slope)  # sigmoid(z) = 1/2 + 1/2 tanh(z/2): one function for all, and none overflows
        ops.tanh_(gates, gates)
        gates *= slope
        gates += shift

    return gates_


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
        c_before: Array,
        slope_i: Array,
        slope_f: Array,
        slope_g: Array,
        slope_o: Array,
        slope_c: Array,
    ) -> None:
        for gate, slope, factor in ((i, slope_i, g), (f, slope_f, c_before), (o, slope_o, tanh_c)):
            ops.one_minus_(slope, gate)
            slope *= gate
            slope *= factor  # sigmoid' = gate (1 - gate), times what the gate is multiplied by
        for value, slope, factor in ((g, slope_g, i), (tanh_c, slope_c, o)):
            ops.multiply_(slope, value, value)
            ops.one_minus_(slope, slope)
            slope *= factor  # tanh' = 1 - value^2, times what tanh is multiplied by

    return slopes_


def _lstm_back(ops: Elementwise) -> Step:
    def back_(dh: Array, dc: Array, dc_before: Array, slope_c: Array, f: Array, slope_o: Array, dz_o: Array) -> None:
        ops.multiply_(dz_o, slope_o, dh)  # dz_o = tanh(c_t) o (1 - o) dh_t
        slope_c *= dh
        dc += slope_c  # dc_t = (through c_{t+1}) + o (1 - tanh(c_t)^2) dh_t
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
    keeps = 4  # r, u, n, W_hn h_{t-1} + b_hn
    slopes = 4  # of z_r, z_u and W_hn h_{t-1} + b_hn, and of W_xn x_t + b_n, all by h_t
    activations = MappingProxyType({"r": ("sigmoid", 0), "u": ("sigmoid", 1), "n": ("tanh", 2)})

    def own_parameters(self, hidden_size: int) -> dict[str, tuple[int]]:
        return {"b_hn": (hidden_size,)}

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        product_, of_h = product.writing()  # W_hh h_{t-1}
        gates_, state_ = backend.fused(_gru_gates), backend.fused(_gru_state)
        b_hn: Array = params["b_hn"][..., None, :]
        of_h_by_gate = self.by_gate(backend, of_h[None, ...])[0, ...]
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
        by_gate = self.by_gate(backend, z)
        return by_gate[:, :2, ...], by_gate[:, 2, ...], kept[:, :2, ...], *_each(kept, 4)

    def slopes_(self, backend: Backend, slopes: Array, dz: Array, tape: Tape) -> tuple[Array, ...]:
        backend.over_segment(_gru_slopes)(*_each(tape.kept, 4), tape.h_before, *_each(slopes, 4))
        return tape.kept[:, 1, ...], slopes[:, :3, ...], self.by_gate(backend, dz)

    def backward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        add_product, H = product.adding(), params["b_hn"].shape[-1]
        gates_ = backend.fused(_product)
        add_elementwise = backend.elementwise_accumulator((*product.rows, H), params["b_hn"].dtype)

        def step_(dz: Array, dh: Array, dh_before: Array, u: Array, slopes: Array, dz_by_gate: Array) -> None:
            gates_(dz_by_gate, slopes, dh)
            add_elementwise(dh_before, u, dh)  # dh_{t-1} = (direct) + u dh_t + W_hh^T dz_t
            add_product(dh_before, dz)

        return step_

    def finish_(self, backend: Backend, slopes: Array, dz: Array, dh: Array) -> dict[str, Array]:
        *_, dn = self.split(dz)
        of_b_hn = backend.copy(dn)
        backend.over_segment(_product)(dn, slopes[:, 3, ...], dh)  # dn_t, without the r of W_hn h_{t-1}
        return {"b_hn": of_b_hn}


def _gru_gates(ops: Elementwise) -> Step:
    def gates_(ru: Array, z_ru: Array, ru_of_h: Array) -> None:
        ops.add_(ru, z_ru, ru_of_h)
        ru *= 0.5
        ops.tanh_(ru, ru)
        ru *= 0.5
        ru += 0.5  # sigmoid(z) = 1/2 + 1/2 tanh(z/2)

    return gates_


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
        ops.multiply_(n, r, inner)
        n += z_n
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


CELLS: dict[str, Cell] = {name: Elman(f) for name, f in CELL_ACTIVATIONS.items()} | {"lstm": LSTM(), "gru": GRU()}
