"""One step of a recurrent cell, forward and backward. A cell knows no time.

Rows are ``(..., N, H)``: N sequences, H hidden units, and any axes before them (members, directions). A row
vector ``a W^T`` here is the column vector ``W a`` of the equations. Each cell has its backward step next to the
forward step that it belongs to, and between the two what can be computed for all steps of a segment at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from ..backend.portable import Array, Backend, Elementwise
from ..checks import only_settings
from .state_product import StateProduct

Params = Mapping[str, Array]
Step = Callable[..., None]
#: Of every step: of a vector, and of a matrix the two factors.
OwnGradients = dict[str, Array | tuple[Array, Array]]


class Tape(NamedTuple):
    """What a segment of S steps leaves for its backward pass.

    Attributes
    ----------
    states : tuple of (S+1, ..., N, H)
        h, and c where the cell has one; row 0 is the state before the segment.
    kept : (S, K, ..., N, H)
        K numbers more of every step and unit, as many as the cell keeps; None if there are none.
    params : mapping of str to array
        The parameters that the segment ran with.
    """

    states: tuple[Array, ...]
    kept: Array
    params: Params = MappingProxyType({})

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

    @property
    def c(self) -> Array:
        """``c_t`` of every step."""
        return self.states[1][1:, ...]


class Cell:
    """A recurrent cell: the base of those of the library, and of your own (see ``bptt_array/equations/README.md``).

    The time loops do ``z_t = W_xh x_t + b_h`` for all steps at once, call the cell once a step, forward and then
    backward, and sum up the gradients of ``W_xh``, ``W_hh`` and ``b_h`` from the ``dz_t`` that the cell leaves.

    Attributes
    ----------
    name : str
        That of the class, if none is given.
    gates : int
        G: ``W_xh`` is (G*H, I), ``W_hh`` (G*H, H), ``b_h`` (G*H,).
    recurrent_gates : int or None
        How many of them ``W_hh`` is for, the first R: it is (R*H, H) then. The others get to the state by a matrix of
        the cell's own. None: all.
    state_size : int or None
        P: how many numbers of h there are where they are not H, of a cell with c: ``W_hh`` is (R*H, P) and matrices
        :attr:`of_state` are (M, P), what is kept, slopes and c stay (..., N, H). None: H.
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
    gates_apart : bool
        Whether the step forward looks at z by gate alone, and the first G numbers that are kept are the gates. Then,
        on a backend that prefers that, z stands where they will be and comes as ``(G, ..., N, H)``, and so does what
        ``product`` gives; :meth:`z_by_gate` is right for both. What ``product.of`` gives stays as it is.
    of_state : tuple of str
        Matrices of its own, (M, H), that multiply something made of the state unit by unit: recurrent dropout leaves
        out units there as it does before ``W_hh``, and ``init`` draws them as it draws ``W_hh``.
    forget_gate : int or None
        Which gate ``forget_bias`` is added to.
    activations : mapping of str to (str, int or None)
        What :func:`bptt_array.diagnostics.saturation` looks at, by name: the function (``"tanh"``, ``"sigmoid"`` or
        ``"relu"``) and which of the K kept numbers is its value; None for h itself.

    Notes
    -----
    Past the end of a sequence the states, what is kept and dh are zeros, and :meth:`slopes_` is computed there too: its
    formulas have to give finite numbers for zeros (``1 / c`` would not).
    """

    name: str = "custom"
    gates: int = 1
    recurrent_gates: int | None = None
    state_size: int | None = None
    has_c: bool = False
    keeps: int = 0
    slopes: int = 0
    in_place: bool = False
    diagonal: bool = False
    gates_apart: bool = False
    of_state: tuple[str, ...] = ()
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
    def gates_of_state(self) -> int:
        """R: ``W_hh`` is (R*H, H)."""
        return self.gates if self.recurrent_gates is None else self.recurrent_gates

    def widths(self, hidden_size: int) -> tuple[int, ...]:
        """How many numbers h has, and c where there is one."""
        h = hidden_size if self.state_size is None else self.state_size
        return (h, hidden_size) if self.has_c else (h,)

    @property
    def changes_dz(self) -> bool:
        """Whether :meth:`finish_` may write to dz."""
        return type(self).finish_ is not Cell.finish_

    def own_parameters(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of parameters beside ``W_xh``, ``W_hh`` and ``b_h``.

        They are vectors ``(M,)``, or matrices ``(M, K)`` with which a step has products of its own. Those whose names
        begin with ``b_`` are biases: with ``bias=False`` the cell is given zeros in their place, and what it says of
        their gradients is left out.
        """
        return {}

    def split(self, z: Array) -> tuple[Array, ...]:
        """The G parts ``(..., H)`` of ``z (..., G*H)``, as views."""
        H = z.shape[-1] // self.gates
        return tuple([z[..., k * H : (k + 1) * H] for k in range(self.gates)])

    def by_gate(self, backend: Backend, z: Array) -> Array:
        """``z (S, ..., N, G*H)`` of a segment as ``(S, G, ..., N, H)``, a view."""
        return rows_by_gate(backend, z, self.gates)

    def apart(self, backend: Backend) -> bool:
        """Whether z comes by gate to a step forward."""
        return self.gates_apart and backend.gates_apart

    def z_by_gate(self, backend: Backend, z: Array) -> Array:
        """z of :meth:`forward_rows`, or what ``product`` gives, as ``(S, G, ..., N, H)``."""
        return z if self.apart(backend) else self.by_gate(backend, z)

    # ---- forward --------------------------------------------------------------------------------------

    def forward_(self, backend: Backend, params: Params, product: StateProduct) -> Step:
        """The step forward, for one pass over a batch.

        ``product.adding()`` is a function ``(out, a)`` that does ``out += a W_hh^T``, ``product.writing()`` one of
        ``(a)`` that does ``out <- a W_hh^T``, and that ``out``. ``product.of("W")`` has both for a matrix W of the
        cell's own.

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
        """The step backward, for one pass; ``product`` is as in :meth:`forward_`, without the transposes.

        Returns
        -------
        step_ : ``(dz, dh, dh_before)``, with c ``(dz, dh, dh_before, dc, dc_before)``, then rows of :meth:`slopes_`
            dh is the total ``dh_t`` of (3.1), to be left as it is. Writes the gradient of ``W_hh h_{t-1}`` to dz and
            adds what goes on to the step before, ``W_hh^T dz_t`` and all else, to dh_before and dc_before.
        """
        raise TypeError(f"{type(self).__name__} has no backward_: see bptt_array.Cell")

    def finish_(self, backend: Backend, slopes: Array, dz: Array, dh: Array, tape: Tape) -> OwnGradients:
        """After the loop and the sum of ``dW_hh``: make dz the gradient of ``W_xh x_t + b_h``, where it differs.

        ``slopes``, ``dz`` and ``tape`` are those of :meth:`slopes_`, dh the total ``dh_t``. Returns the gradients of
        :meth:`own_parameters`, by name. Of a vector it is that of every step, (S, ..., N, M), to be summed; of a matrix
        a pair ``dz (S, ..., N, M)``, ``a (S, ..., N, K)`` with ``dW = sum_t dz_t a_t^T``: the gradient of what its
        product gave, and what that was given.
        """
        return {}


_SHARED = "all networks share this cell; make a class of your own from it, and give the network an object of that"

_FIXED: set[type[Cell]] = set()
_Kind = TypeVar("_Kind", bound=type[Cell])


def shared(kind: _Kind) -> _Kind:
    """Of a class of the library, whose cells all networks with ``cell="lstm"`` and the like share: none can be set."""
    _FIXED.add(kind)
    return only_settings({}, _SHARED, {})(kind)


def is_fixed(cell: Cell) -> bool:
    """Whether nothing on a cell can change."""
    return type(cell) in _FIXED


def by_gate(backend: Backend, a: Array, gates: int) -> Array:
    """``a (..., N, G*H)`` as ``(G, ..., N, H)``, a view."""
    return backend.xp.moveaxis(_split(backend, a, gates), -2, 0)


def rows_by_gate(backend: Backend, a: Array, gates: int) -> Array:
    """``a (S, ..., N, G*H)`` as ``(S, G, ..., N, H)``, a view."""
    return backend.xp.moveaxis(_split(backend, a, gates), -2, 1)


def _split(backend: Backend, a: Array, gates: int) -> Array:
    return backend.xp.reshape(a, (*a.shape[:-1], gates, a.shape[-1] // gates))


def each(a: Array, count: int) -> tuple[Array, ...]:
    """``a[:, k]`` for every k."""
    # Through a list: Python makes a tuple of a generator for ten entries and cuts it, and keeps 2000 of every length
    # that were cut for later, 0.7 MB in all.
    return tuple([a[:, k, ...] for k in range(count)])


def add(ops: Elementwise) -> Step:
    return ops.add_


def multiply(ops: Elementwise) -> Step:
    return ops.multiply_
