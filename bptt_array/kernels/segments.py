"""Segments in one launch: kernels found or compiled for a cell, a width and a batch, and their launches.

Each direction is chosen by itself: both paths leave the same arrays. What has no kernel runs step by step, and
:func:`describe` says why.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, Self
from weakref import finalize

from ..backend.portable import Array, Backend
from ..equations.cell import Cell, Params, Tape, is_fixed
from ..tracing.program import CannotTraceError
from .attributes import written_down
from .layouts import Device, Layout, Work, best, microseconds, of_loops
from .text import CellText
from .trace import trace

States = tuple[Array, ...]

#: Kernels of one cell, width and dtype, for what is on the cell at a time, at most: a number that changes in every step
#: would take a compilation each.
_VARIANTS = 8
#: A layout of which the compiler needs more registers than there are is tried again with so many fewer, 8 times.
_ROOM = 12
#: A kernel that was compiled for a larger batch is taken for a smaller one if it is not slower than this, by the model.
_AS_GOOD = 3.0
_WORD = 32  # of a counter, in numbers of 32 bits: each on a line of its own


class NoKernelError(Exception):
    """There is no kernel; says why."""


class Kernel(NamedTuple):
    """A compiled kernel, for any number of steps and up to ``N`` sequences."""

    layout: Layout
    function: Any
    N: int


class Kernels:
    """All kernels of one device.

    Parameters
    ----------
    backend : Backend
        With ``persistent`` kernels.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.device = Device.of(*backend.cuda_limits())
        self._texts: dict[int, list[tuple[Any, CellText | str]]] = {}  # by the id of a cell that is alive
        self._kernels: dict[Any, list[Kernel] | str] = {}
        self._reported: set[str] = set()  # texts that did not compile
        self._counters: dict[Any, list[Array]] = {}

    @classmethod
    def of(cls, backend: Backend) -> Kernels:
        """Those of a backend, made once."""
        found: Kernels | None = backend.compiled.get("kernels")
        if found is None:
            found = backend.compiled["kernels"] = cls(backend)
        return found

    def text(self, cell: Cell, H: int, dtype: str) -> CellText:
        """The text of a cell as it is now: numbers on it are in the text, so those are compared with what they were."""
        traced = self._texts.get(id(cell))
        if traced is None:
            traced = self._texts[id(cell)] = []
            finalize(cell, self._texts.pop, id(cell), None).atexit = False
        now = H, dtype, None if is_fixed(cell) else written_down(cell)
        text = next((text for then, text in traced if then == now), None)
        if text is None:
            if len([then for then, _ in traced if then[:2] == now[:2]]) >= _VARIANTS:
                raise NoKernelError(f"what is on {cell!r} keeps changing, and each time would need another kernel")
            try:
                text = CellText(trace(cell, H, dtype))
            except CannotTraceError as error:
                text = str(error)
            traced.append((now, text))
        if isinstance(text, str):
            raise NoKernelError(text)
        return text

    def find(self, text: CellText, work: Work) -> Kernel:
        """A kernel that was compiled, or one that is now."""
        key = text.key, work.H, work.itemsize, work.backward, work.E
        there, of_batch = self._kernels.setdefault(key, []), self._kernels.get((*key, work.N))
        for found in (there, of_batch):
            if isinstance(found, str):
                raise NoKernelError(found)
        assert isinstance(there, list)
        fitting = [kernel for kernel in there if kernel.N >= work.N]
        if fitting:
            kernel = min(fitting, key=lambda kernel: kernel.N)
            ideal = best(work, self.device, room=0)
            if ideal is None or kernel.layout.clocks <= _AS_GOOD * ideal.clocks:
                return kernel
        kernel = self._compiled(text, work, key)
        there[:] = [kernel, *(other for other in there if work.N < other.N)]
        return kernel

    def layout(self, work: Work, room: int = 0) -> Layout:
        """What the model finds best."""
        layout = best(work, self.device, room=room)
        way = "backward" if work.backward else "forward"
        if layout is None:
            raise NoKernelError(
                f"{way}, the weights of H={work.H} for a batch of N={work.N} have no room on this device"
            )
        ours, loops = microseconds(layout, self.device), of_loops(work, self.device)
        if ours > loops:
            raise NoKernelError(
                f"{way}, a step of H={work.H}, N={work.N} would take {ours:.0f} us, step by step {loops:.0f} us"
            )
        return layout

    def _compiled(self, text: CellText, work: Work, key: Any) -> Kernel:
        name = "backward" if work.backward else "forward"
        T = {4: "float", 8: "double"}[work.itemsize]
        tried: list[tuple[int, Kernel]] = []
        for room in range(0, 9 * _ROOM, _ROOM):
            layout = self.layout(work, room)
            macros = {"T": T, "H": work.H, "BACKWARD": int(work.backward), **layout.constants}
            options = ("--std=c++17", *(f"-DBPTT_{macro}={value}" for macro, value in macros.items()))
            try:
                function, spilled = self.backend.cuda_function(
                    text.source, name, options, shared=layout.shared, cooperative=layout.OB > 1
                )
            except Exception as error:
                said = str(error).strip() or type(error).__name__
                why = f"its kernel did not compile: {said.splitlines()[0]}"
                self._kernels[key] = why
                self._report(text, why)
                raise NoKernelError(why) from error
            if not spilled:
                return Kernel(layout, function, work.N)
            if text.has_local_arrays[work.backward] and tried and tried[-1][0] == spilled:  # which is what they take
                return tried[-1][1]
            tried.append((spilled, Kernel(layout, function, work.N)))
        why = f"{name}, the compiler needs more registers than there are for H={work.H}, N={work.N}"
        self._kernels[*key, work.N] = why
        raise NoKernelError(why)

    def _report(self, text: CellText, why: str) -> None:
        """Once for a text, whichever way, width and dtype."""
        if text.key in self._reported:
            return
        self._reported.add(text.key)
        warnings.warn(
            f"{text.traced.cell!r} runs step by step, since {why}. Results are the same, only slower. Please report "
            "this with the output of `python -m bptt_array info` and the cell; BPTT_ARRAY_PERSISTENT=0 keeps it quiet.",
            RuntimeWarning,
            stacklevel=2,
        )

    def counter(self, groups: int) -> Array:
        """Zeros with which the blocks of groups of rows count themselves, of the current stream."""
        kept = self._counters.setdefault(self.backend.cuda_stream(), [])
        if not kept or kept[-1].shape[0] < groups * _WORD:  # the ones before may be in a graph that is launched again
            kept.append(self.backend.zeros((max(64, groups) * _WORD,), self.backend.dtype("uint32")))
        return kept[-1]


class _Pass:
    """What both directions have: the kernel, and arrays of a pass as it takes them.

    ``row (..., N, H)`` is the shape of the layer's states, the mask what multiplies h before its product.

    Raises
    ------
    NoKernelError
    """

    backward: bool

    def __init__(
        self, backend: Backend, cell: Cell, params: Params, row: tuple[int, ...], mask: Array | None = None
    ) -> None:
        kernels = Kernels.of(backend)
        *lead, N, H = row
        W = params["W_hh"]
        self.E, self.N = math.prod(lead), N
        itemsize = int(backend.xp.finfo(W.dtype).bits) // 8
        self.text = kernels.text(cell, H, {4: "float32", 8: "float64"}[itemsize])
        work = Work(self.text.size, H, max(1, N), self.E, itemsize, self.backward)
        self.layout, self._function, _ = kernels.find(self.text, work)
        self._grid = self.layout.grid(N, self.E)
        self._counter = kernels.counter(self._grid[1] * self.E if self.layout.OB > 1 else 0)
        self.backend = backend
        self._W = backend.cuda_operand(W)
        self._mask = None if mask is None else backend.cuda_operand(mask)
        self._own = [backend.cuda_operand(params[name]) for name in self.text.traced.own]

    @classmethod
    def find(
        cls, backend: Backend, cell: Cell, params: Params, row: tuple[int, ...], mask: Array | None = None
    ) -> Self | None:
        """The kernel of a layer, or None where there is none: :func:`describe` says why."""
        try:
            return cls(backend, cell, params, row, mask)
        except NoKernelError:
            return None

    def empty_like(self, states: States) -> States:
        return tuple([self.backend.empty(tuple(state.shape), state.dtype) for state in states])

    def launch(self, arrays: list[Array | int | None], S: int) -> None:
        if self.N and self.E and S:
            arguments = [*arrays, self._W, self._mask, S, self.E, self.N, self._counter, *self._own]
            self.backend.cuda_launch(self._function, self._grid, self.layout.TH, arguments, shared=self.layout.shared)


class ForwardKernel(_Pass):
    """A layer's segments forward."""

    backward = False

    def __call__(self, before: States, z: Array | None, tape: Tape) -> States:
        """As :func:`bptt_array.equations.recurrence.forward_`, from the states before the segment, which become row 0.

        Returns the states after the last step, as arrays of their own.
        """
        before = tuple([self.backend.cuda_operand(state) for state in before])
        last = self.empty_like(before)
        arrays = [one for states in (tape.states, before, last) for one in _two(states)]
        self.launch([*arrays, z, tape.kept], tape.states[0].shape[0] - 1)
        return last


class BackwardKernel(_Pass):
    """A layer's segments backward."""

    backward = True

    @property
    def stored(self) -> int:
        """X: how many numbers of a unit and step :meth:`finish_` needs."""
        return len(self.text.traced.extra)

    def __call__(
        self, tape: Tape, dstates: States, after: States | None, dz: Array, extra: Array | None, *, direct_c: bool
    ) -> States:
        """As :func:`bptt_array.equations.recurrence.backward_`, with what later steps hand to the last states.

        Row 0 of ``dstates`` is not used, nor need dc be written before unless ``direct_c``. ``extra``, of
        ``stored (X) * S`` rows, is for :meth:`finish_`. Returns what the segment hands to the states before it.
        """
        first = self.empty_like(tuple([dstate[0, ...] for dstate in dstates]))
        received = [*_two(dstates), *_two(after or ()), int(direct_c)]
        self.launch([*received, *_two(first), dz, extra, *_two(tape.states), tape.kept], dz.shape[0])
        return first

    def finish_(self, dz: Array, extra: Array | None) -> dict[str, Array]:
        """What ``cell.finish_`` does: dz becomes the gradient of ``W_xh x_t + b_h``; those of the own parameters."""
        traced, (S, *row) = self.text.traced, dz.shape
        H = row[-1] // traced.cell.gates
        if extra is None:
            return {}
        stored = iter(self.backend.xp.reshape(extra, (self.stored, S, *row[:-1], H)))
        for g in traced.changed:
            dz[..., g * H : (g + 1) * H] = next(stored)
        own = {name: [next(stored) for _ in ks] for name, ks in traced.d_own.items()}
        return {
            name: blocks[0] if len(blocks) == 1 else self.backend.xp.concat(blocks, axis=-1)
            for name, blocks in own.items()
        }


def _two(states: States) -> list[Array | None]:
    """h and c, of which there may be one or none."""
    return [*states, None, None][:2]


def widest(backend: Backend, cell: Cell, N: int, dtype: str = "float32") -> int:
    """The largest H, a multiple of 8, for which the model of layouts has room both ways; 0 if there is none."""
    kernels, itemsize = Kernels.of(backend), {"float32": 4, "float64": 8}[dtype]
    try:
        size = kernels.text(cell, 8, dtype).size
    except NoKernelError:
        return 0
    H = 0
    while all(best(Work(size, H + 8, N, 1, itemsize, backward), kernels.device) for backward in (False, True)):
        H += 8
    return H


def describe(backend: Backend, cell: Cell, params: Mapping[str, Array], row: tuple[int, ...]) -> dict[str, str]:
    """How segments run, forward and backward, in words."""
    found: dict[str, str] = {}
    ways: tuple[tuple[str, type[_Pass]], ...] = (("forward", ForwardKernel), ("backward", BackwardKernel))
    for way, make in ways:
        try:
            of_pass = make(backend, cell, params, row)
        except NoKernelError as error:
            found[way] = f"step by step: {error}"
            continue
        layout = of_pass.layout
        found[way] = (
            f"one launch a segment: {layout.OB} block(s) for each {layout.NB} sequence(s), {layout.TH} threads; "
            f"{microseconds(layout, Kernels.of(backend).device):.2f} us a step by the model"
        )
    return found
