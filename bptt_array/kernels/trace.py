"""What a cell does in one step, for one unit of one sequence: its own Python text, run on symbols.

What the trace relies on, and how each is checked:

* No unit uses another's numbers, except through the product with ``W_hh``. Symbols carry the row and the unit they
  belong to; an operation on two that differ raises in the line that does it.
* No step uses another's numbers, except through h and c. Of a segment of several steps one has symbols; all others are
  foreign, and so is whatever they touch; no result may be.
* The program is the same for every unit, sequence, segment and shape: several shapes are traced and compared, and the
  width in use.
* Nothing depends on values: a symbol has none.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.portable import Array, Backend, Elementwise
from ..equations.cell import Cell, Params, Tape
from ..tracing.program import CannotTraceError, Number, Program, merged
from ..tracing.symbols import Namespace, Symbols, leaves, symbols

#: Axes before H, H, the steps of a segment and which of them has symbols: no two alike, and one with members.
SHAPES = (((2,), 3, 3, 1), ((3,), 2, 4, 2), ((2, 2), 2, 2, 0))


@dataclass
class Traced:
    """What a cell does in a step. Numbers are operations of ``program``; those of a block each, in order.

    Leaves are ``z0, …`` (what the products of the input gave), ``sum0, …`` (the product with ``W_hh``, forward of each
    gate, backward one), ``h_before``, ``h``, ``c_before``, ``c``, ``kept0, …``, ``dh``, ``dc`` (total after the step),
    ``dh_before``, ``dc_before`` (direct parts before it) and the cell's own parameters (:func:`own_leaf`); where
    there is one block a name has no number.
    """

    cell: Cell
    program: Program
    own: dict[str, int]  # parameters of its own: how many numbers of each a unit has
    h: int
    c: int | None
    kept: list[int]
    dz: list[int]
    dh_before: int
    dc_before: int | None
    dc: int | None
    dz_after: list[int]  # what finish_ makes of dz
    d_own: dict[str, list[int]]  # gradients of every step of the own parameters
    #: What has to be stored of every step beside dz: blocks of dz that finish_ changes, then ``d_own``.
    extra: list[int] = field(default_factory=list)

    @property
    def changed(self) -> list[int]:
        """The blocks of dz that are not those of the loop after it."""
        return [g for g, (before, after) in enumerate(zip(self.dz, self.dz_after, strict=True)) if before != after]


def trace(cell: Cell, H: int, dtype: str) -> Traced:
    """Run a cell's steps on symbols, for networks of width H and of a dtype (which ``xp.finfo`` asks for).

    Raises
    ------
    CannotTraceError
        Naming the cell, what it does, and the line.
    """
    program, shapes = Program(opaque=("W_hh", "W_xh")), (*SHAPES, ((1,), H, 1, 0))
    found: list[tuple[Any, ...]] = []
    try:
        own = _own_blocks(cell)
        for shape in shapes:
            found.append(_OneTrace(_apart(cell), program, own, dtype, *shape).all())
            if found[-1] != found[0]:
                raise CannotTraceError("computes with something that depends on shapes, on the step, or on chance")
        (h, c, kept), (dz, dh_before, dc_before, dc, dz_after, d_own) = found[0]
        traced = Traced(copy.copy(cell), program, own, h, c, kept, dz, dh_before, dc_before, dc, dz_after, d_own)
        traced.extra = [dz_after[g] for g in traced.changed] + [k for ks in d_own.values() for k in ks]
        stored = {"dz": dz, "what finish_ makes": traced.extra, "dc": [] if dc is None else [dc]}
        for what, ks in stored.items():
            if any(program.depends(k, ["sum"]) for k in ks):
                raise CannotTraceError(f"{what} depends on the product of the same step")
    except Exception as error:
        why = str(error) if isinstance(error, CannotTraceError) else f"{type(error).__name__}: {error}"
        raise CannotTraceError(f"{cell!r} has no kernel of its own: {why}{_where(error)}") from error
    return traced


def _apart(cell: Cell) -> Cell:
    """A copy on which a cell may leave something, for a step of the same pass, without leaving it on the cell."""
    found = copy.copy(cell)
    for name, value in vars(found).items():
        if type(value) in (dict, list, set):
            vars(found)[name] = value.copy()
    return found


def _where(error: Exception) -> str:
    """The line of the cell that raised, if it is one."""
    ours = str(Path(__file__).parents[1])
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    of_cells = [f for f in frames if not f.filename.startswith(ours) or f"{ours}/equations" in f.filename]
    outside = [f for f in of_cells if "numpy" not in f.filename and "array_api" not in f.filename]
    if not outside:
        return ""
    last = outside[-1]
    return f", line {last.lineno} of {Path(last.filename).name}: {last.line}"


def _own_blocks(cell: Cell) -> dict[str, int]:
    """Parameters of its own, ``(M,)``: M / H, which has to be a whole number."""
    few, many = cell.own_parameters(6), cell.own_parameters(10)
    for name, shape in few.items():
        if len(shape) != 1:
            raise CannotTraceError(f"a step has a product with {name}; a kernel has one with W_hh alone")
    if cell.gates_of_state != cell.gates:
        raise CannotTraceError(f"recurrent_gates={cell.recurrent_gates}; a kernel has a part of W_hh for every gate")
    for name, shape in few.items():
        if shape[0] % 6 or many[name] != (shape[0] // 6 * 10,):
            raise CannotTraceError(f"own_parameters: {name} has not a whole number of values for each unit")
    return {name: shape[0] // 6 for name, shape in few.items()}


def own_leaf(k: int) -> str:
    """The leaf of the k-th of a cell's own parameters: whatever that is called, no other leaf is called so."""
    return f"own{k}."


class TraceBackend(Backend):
    """The portable primitives, on symbols."""

    program: Program

    def __init__(self, program: Program, dtype: str) -> None:
        self.program = program
        self.xp, self.device = Namespace(program, dtype), "trace"
        self.elementwise = Elementwise(self.xp)
        self._zeros = {}

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.empty(shape, dtype=dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.zeros(shape, dtype=dtype)

    def ones(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.ones(shape, dtype=dtype)

    def copy(self, a: Array) -> Array:
        return symbols(self.program, np.array(a, object))


class TraceProduct:
    """Stands where ``StateProduct`` does: its sums are new symbols."""

    def __init__(self, backend: TraceBackend, rows: tuple[int, ...], H: int, blocks: int) -> None:
        self.backend = backend
        self.rows = rows
        self.H = H
        self.blocks = blocks
        #: Whether the step at hand is the one with symbols, and what it multiplied by.
        self.now = False
        self.multiplied: list[Array] = []

    def _sums(self, a: Array) -> Symbols:
        program, shape = self.backend.program, (*self.rows, self.blocks * self.H)
        if not self.now:
            return symbols(program, np.full(shape, program.foreign))
        self.multiplied.append(np.array(a, object))
        return leaves(program, "sum", shape, self.H)

    def adding(self) -> Callable[[Array, Array], None]:
        def add_product(out: Array, a: Array) -> None:
            out += self._sums(a)

        return add_product

    def writing(self) -> tuple[Callable[[Array], None], Array]:
        out = self.backend.empty((*self.rows, self.blocks * self.H), object)

        def product_(a: Array) -> None:
            out[...] = self._sums(a)

        return product_, out


class _OneTrace:
    """A segment of S steps of which step ``mid`` has symbols, forward and backward."""

    def __init__(
        self,
        cell: Cell,
        program: Program,
        own: Mapping[str, int],
        dtype: str,
        rows: tuple[int, ...],
        H: int,
        S: int,
        mid: int,
    ) -> None:
        self.cell, self.program, self.own = cell, program, own
        self.rows, self.H, self.S, self.mid = rows, H, S, mid
        self.backend = TraceBackend(program, dtype)
        self.params = self._params()

    def all(self) -> tuple[Any, ...]:
        return self.forward(), self.backward()

    def _params(self) -> Params:
        lead, H, G, program = self.rows[:-1], self.H, self.cell.gates, self.program

        def of_units(name: str, blocks: int) -> Symbols:
            return leaves(program, name, (*lead, blocks * H), H, lambda i: (*i[:-1], None, i[-1]))

        params = {name: of_units(own_leaf(k), blocks) for k, (name, blocks) in enumerate(self.own.items())}
        params["b_h"] = of_units("b_h", G)
        for name, width in {"W_hh": H, "W_xh": H + 1}.items():
            params[name] = symbols(program, np.full((*lead, G * H, width), program.leaf(name)), truth=False)
        return params

    def _foreign(self, *shape: int) -> Symbols:
        return symbols(self.program, np.full(shape, self.program.foreign), truth=False)

    def _leaves(self, name: str, blocks: int = 1) -> Symbols:
        return leaves(self.program, name, (*self.rows, blocks * self.H), self.H)

    def forward(self) -> tuple[int, int | None, list[int]]:
        """h, c and what is kept."""
        cell, program, rows, H, S, mid = self.cell, self.program, self.rows, self.H, self.S, self.mid
        product = TraceProduct(self.backend, rows, H, cell.gates)
        step_ = cell.forward_(self.backend, self.params, product)  # type: ignore[arg-type]
        z, kept = self._foreign(S, *rows, cell.gates * H), None
        z[mid] = self._leaves("z", cell.gates)
        if cell.keeps:
            kept = self.backend.empty((S, cell.keeps, *rows, H), None)
        states = [self._foreign(S + 1, *rows, H) for _ in cell.states]
        further = () if cell.in_place else cell.forward_rows(self.backend, z, kept)
        for t in range(mid + 1):
            product.now = t == mid
            for name, state in zip(cell.states, states, strict=True):
                state[t + 1] = z[t] if cell.in_place else None
                if product.now:
                    state[t] = self._leaves(f"{name}_before")
            arguments = [] if cell.in_place else [z[t, ...]]
            for state in states:
                arguments += [state[t, ...], state[t + 1, ...]]
            step_(*arguments, *[a[t, ...] for a in further])
        before = [program.op("leaf", f"{name}_before") for name in cell.states]
        if self._multiplied(product, "forward_") != before[:1]:
            raise CannotTraceError("forward_ multiplies W_hh by something else than h_before")
        results = []
        for name, state, given in zip(cell.states, states, before, strict=True):
            if self._blocks(state[mid], f"{name}_before") != [given]:
                raise CannotTraceError(f"forward_ writes to {name}_before")
            results += self._blocks(state[mid + 1], name)
        keeps = [] if kept is None else self._blocks(np.concatenate(list(kept[mid]), axis=-1), "kept")
        return results[0], results[1] if cell.has_c else None, keeps

    def backward(self) -> tuple[Any, ...]:
        """dz, dh_before, dc_before, dc, dz after ``finish_``, and the gradients of the own parameters."""
        cell, program, rows, H, S, mid = self.cell, self.program, self.rows, self.H, self.S, self.mid
        product = TraceProduct(self.backend, rows, H, 1)
        step_ = cell.backward_(self.backend, self.params, product)  # type: ignore[arg-type]
        states, dstates = ([self._foreign(S + 1, *rows, H) for _ in cell.states] for _ in range(2))
        for name, state in zip(cell.states, states, strict=True):
            state[mid], state[mid + 1] = self._leaves(f"{name}_before"), self._leaves(name)
        kept: Any = None
        if cell.keeps:
            kept = self._foreign(S, cell.keeps, *rows, H)
            for k in range(cell.keeps):
                kept[mid, k] = self._leaves(f"kept{k}")
        dz = self.backend.empty((S, *rows, cell.gates * H), None)
        slopes = self.backend.empty((S, cell.slopes, *rows, H), None) if cell.slopes else None
        tape = Tape(tuple(states), kept, self.params)
        further = cell.slopes_(self.backend, slopes, dz, tape)
        found: dict[str, int] = {}
        blocks: list[int] = []
        for t in reversed(range(S)):
            product.now = t == mid
            if product.now:
                for name, dstate in zip(cell.states, dstates, strict=True):
                    dstate[t + 1], dstate[t] = self._leaves(f"d{name}"), self._leaves(f"d{name}_before")
            arguments = [dz[t, ...]]
            for dstate in dstates:
                arguments += [dstate[t + 1, ...], dstate[t, ...]]
            step_(*arguments, *[a[t, ...] for a in further])
            if product.now:
                for name, dstate in zip(cell.states, dstates, strict=True):
                    (found[f"d{name}"],) = self._blocks(dstate[t + 1], f"d{name}")
                    (found[f"d{name}_before"],) = self._blocks(dstate[t], f"d{name}_before")
                    dstate[t] = program.foreign
                blocks = self._blocks(dz[t], "dz")
        if found["dh"] != program.op("leaf", "dh"):
            raise CannotTraceError("backward_ writes to dh")
        if self._multiplied(product, "backward_") != blocks:
            raise CannotTraceError("backward_ multiplies W_hh^T by something else than the dz it leaves")
        own = cell.finish_(self.backend, slopes, dz, dstates[0][1:, ...], tape)
        if set(own) != set(self.own):
            raise CannotTraceError(f"finish_ returned gradients of {sorted(own)}; expected those of {sorted(self.own)}")
        d_own = {name: self._blocks(own[name][mid], f"the gradient of {name}") for name in self.own}
        after = self._blocks(dz[mid], "dz")
        return blocks, found["dh_before"], found.get("dc_before"), found.get("dc"), after, d_own

    def _multiplied(self, product: TraceProduct, where: str) -> list[int]:
        """What the step gave to the product."""
        if len(product.multiplied) != 1:
            raise CannotTraceError(f"{where} calls the product {len(product.multiplied)} times a step; expected once")
        return self._blocks(product.multiplied[0], "what goes into the product")

    def _blocks(self, a: Array, what: str) -> list[int]:
        """The operations of one unit that made ``a (rows..., blocks*H)``, block by block."""
        a, program, H = np.asarray(a, object).view(np.ndarray), self.program, self.H
        found: list[int] = []
        for i in np.ndindex(a.shape):
            if a[i] is None:
                raise CannotTraceError(f"leaves numbers of {what} unwritten")
            number: Number = program.as_float(a[i])
            if number.k == program.foreign.k:
                raise CannotTraceError(f"{what} depends on other time steps than through h and c")
            try:
                merged([number.place, (*i[:-1], i[-1] % H)])
            except CannotTraceError as error:
                raise CannotTraceError(f"{what}: {error}") from None
            block = i[-1] // H
            if block == len(found):
                found.append(number.k)
            elif found[block] != number.k:
                raise CannotTraceError(f"{what} is computed differently for some units or sequences")
        return found
