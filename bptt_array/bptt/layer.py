"""One layer over time, segment by segment: forward, and backward through what that left.

In which order segments run is a schedule's business (``schedules/``), what happens inside of one the recurrence's
(``equations/recurrence.py``); where its input comes from and where the gradient of its states comes from is the
caller's. Axes ``...`` are those of the members of an ensemble, then of two directions, as far as there are any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from operator import add
from typing import TYPE_CHECKING, NamedTuple

from ..backend.portable import Array, Backend
from ..equations.cell import Cell, OwnGradients, Step, Tape, by_gate, rows_by_gate
from ..equations.long_sums import Sums, Waiting, add_rows
from ..equations.parallel import backward_parallel_
from ..equations.recurrence import backward_, forward_, project_
from ..equations.state_product import StateProduct
from ..equations.sums import add_weight_sum, add_weight_sums, flat
from ..equations.token_sums import TokenSums, Unfinished
from ..schedules.chunks import best_chunks
from . import chunk_times
from .padding import Padding
from .workspace import Loan, Scratch

if TYPE_CHECKING:
    from ..kernels.segments import BackwardKernel, ForwardKernel

States = tuple[Array, ...]
Finish = Callable[[], OwnGradients]


class Layer(NamedTuple):
    """A cell and its parameters: ``W_xh (..., G*H, I)``, ``W_hh (..., R*H, H)``, ``b_h (..., G*H)`` and its own.

    ``zeros``: which of them are no parameters, but zeros in the place of biases that the network has not.
    """

    cell: Cell
    params: Mapping[str, Array]
    zeros: frozenset[str] = frozenset()

    @property
    def b_h(self) -> Array | None:
        """``b_h``, if there is one."""
        return None if "b_h" in self.zeros else self.params["b_h"]

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.params["W_hh"].shape[-2]) // self.cell.gates_of_state

    @property
    def outputs(self) -> int:
        """Numbers of h: H, or P where the cell projects it."""
        return int(self.params["W_hh"].shape[-1])

    def step_forward(self, backend: Backend, rows: tuple[int, ...], steps: int, mask: Array | None = None) -> Step:
        """The cell's step with these parameters, for states of ``rows (..., N)``, to be called ``steps`` times."""
        cell, params, W = self.cell, self.params, self.params["W_hh"].mT
        W = by_gate(backend, W, cell.gates_of_state) if cell.apart(backend) else W  # (R, ..., H, H)
        return cell.forward_(backend, params, StateProduct(backend, W, rows, steps, mask, params, cell.of_state))

    def step_backward(self, backend: Backend, rows: tuple[int, ...], steps: int, mask: Array | None = None) -> Step:
        """The same of ``cell.backward_``."""
        cell, params = self.cell, self.params
        product = StateProduct(backend, params["W_hh"], rows, steps, mask, params, cell.of_state, backward=True)
        return cell.backward_(backend, params, product)

    def bias(self, backend: Backend, N: int) -> Array | None:
        """``b_h (..., 1, G*H)``; on NumPy, which adds arrays of one shape faster, for each sequence; by gate, if so."""
        if self.b_h is None:
            return None
        b_h: Array = self.b_h[..., None, :]
        if self.cell.apart(backend):
            b_h = by_gate(backend, b_h, self.cell.gates)
        if not backend.gates_apart:
            return b_h
        rows = backend.empty((*b_h.shape[:-2], N, b_h.shape[-1]), b_h.dtype)
        rows[...] = b_h
        return rows


class Segment(NamedTuple):
    """What a segment left: its input, what its cell kept, and the arrays in which that is."""

    x: Array
    tape: Tape
    arrays: list[Array]


class LayerForward:
    """A layer run forward over a batch of T steps.

    Parameters
    ----------
    initial : tuple of (..., N, H)
        The states before the first step.
    arrays : Loan
        Where what a segment leaves is written, until it is released.
    rows : Scratch
        Where z is written, for one segment after the other; knows how long the longest is.
    mask : (..., N, H), optional
        What multiplies the state that goes into ``W_hh``.
    tokens : bool
        Whether inputs are integers.

    Attributes
    ----------
    last : tuple of (..., N, H)
        The states after the last valid step of every sequence, once all segments have run.
    state : tuple of (..., N, H)
        The states before the segment that comes next; never written to, so a reference to it remembers it.
    """

    def __init__(
        self,
        backend: Backend,
        layer: Layer,
        initial: States,
        T: int,
        padding: Padding | None,
        arrays: Loan,
        rows: Scratch,
        mask: Array | None = None,
        *,
        tokens: bool = False,
    ) -> None:
        self.backend = backend
        self.layer = layer
        self.initial = initial
        self.T = T
        self.padding = padding
        self.arrays = arrays
        self._rows = rows
        self.mask = mask
        self.tokens = tokens
        self.last = initial
        # The state before the next segment. That of a sequence without steps is nothing, even if it is no number.
        self.state = initial if padding is None else tuple(map(padding.zeroed_if_empty, initial))
        self._kept: dict[int, Segment] = {}
        self._look_up: Callable[[Array, Array], None] | None = None  # rows[t] <- W_xh x_t + b_h of tokens
        if tokens:
            self._look_up = backend.column_reader(layer.params["W_xh"], layer.b_h, T * initial[0].shape[-2])
        self._bias: Array | None = layer.bias(backend, initial[0].shape[-2])
        self._kernel: ForwardKernel | None = None  # runs a segment in one launch
        if backend.persistent:
            from ..kernels.segments import ForwardKernel  # not where nothing runs kernels

            self._kernel = ForwardKernel.find(backend, layer.cell, layer.params, initial[0].shape, mask)
        self._step = _none
        if self._kernel is None:
            self._step = layer.step_forward(backend, initial[0].shape[:-1], T, mask)

    def forward(self, start: int, stop: int, x: Array) -> Array:
        """Run the next segment on ``x (S, ..., N, I)`` or tokens ``(S, ..., N)``; returns its ``h (S, ..., N, H)``.

        Axes of ``x`` in between may be 1, where members or directions share it. What the segment leaves is kept.
        """
        backend, (cell, params, _) = self.backend, self.layer
        steps, row, dtype = stop - start, (*self.state[0].shape[:-1], self.layer.hidden_size), params["W_hh"].dtype
        longest = self._rows.longest  # one shape for all, so that the next segment can have what one gives back
        arrays = [self.arrays.empty((longest + 1, *state.shape), dtype) for state in self.state]
        states = tuple([array[: steps + 1, ...] for array in arrays])
        kept = None
        if cell.keeps:
            arrays.append(self.arrays.empty((longest, cell.keeps, *row), dtype))
            kept = arrays[-1][:steps, ...]
        tape = Tape(states, kept, params)
        z = None if cell.in_place else self._rows("z", steps, (*row[:-1], cell.gates * row[-1]), dtype)
        gates = tape.kept[:, : cell.gates, ...] if cell.apart(backend) else None
        if self._look_up is not None:
            self._look_up(tape.h if z is None else z, x)
            if gates is not None:
                gates[...] = rows_by_gate(backend, z, cell.gates)
        else:
            project_(backend, tape.h if z is None else z, x, params["W_xh"], self._bias, gates)
        z = z if gates is None else gates
        after: States | None = None
        if self._kernel is None:
            for buffer, before in zip(states, self.state, strict=True):
                buffer[0, ...] = before
            forward_(backend, cell, self._step, z, tape)
        else:
            after = self._kernel(self.state, z, tape)
        if after is None or self.padding is not None:
            self._without_padding(start, stop, tape)
            after = tuple([backend.copy(state[steps, ...]) for state in tape.states])
        self.state = after
        if self.padding is None and stop == self.T:
            self.last = self.state
        self._kept[start] = Segment(x, tape, arrays)
        return tape.h

    def _without_padding(self, start: int, stop: int, tape: Tape) -> None:
        """Pick up the last states of sequences that end in this segment, then zero what is past the end."""
        padding = self.padding
        if padding is None:
            return
        if padding.ends_within(start, stop):
            ends_here = padding.last(start, stop)[:, None]
            ending = tuple([padding.last_states(states, start, stop) for states in tape.states])
            where = self.backend.xp.where
            self.last = tuple([where(ends_here, *pair) for pair in zip(ending, self.last, strict=True)])
        if padding.begins_before(stop):
            for states in tape.states:
                states[1:, ...] = padding.zeroed(states[1:, ...], start, stop)
            if tape.kept is not None:
                tape.kept[...] = padding.zeroed(tape.kept, start, stop)

    def end(self) -> None:
        """No segment comes any more: let go of what only running forward needs."""
        self._look_up = self._bias = None
        self._step, self._kernel = _none, None

    def kept(self, start: int) -> Segment:
        """What the segment that begins at ``start`` left."""
        return self._kept[start]

    def release(self, start: int) -> None:
        """Let go of what a segment left, if that is still there."""
        segment = self._kept.pop(start, None)
        if segment is not None:
            for array in segment.arrays:
                self.arrays.give_back(array)


def _none(*rows: Array) -> None:
    raise RuntimeError("no segment comes any more")


def how_time_runs(backend: Backend, cell: Cell, params: Mapping[str, Array], row: tuple[int, ...]) -> dict[str, str]:
    """In words, forward and backward, for states of the shape ``row (..., N, H)``."""
    if not backend.persistent:
        can = type(backend).persistent
        words = "step by step: " + ("kernels are off" if can else f"{backend.name} runs no kernels of its own")
        return {"forward": words, "backward": words}
    from ..kernels import segments

    return segments.describe(backend, cell, params, row)


class LayerBackward:
    """The backward pass over what :class:`LayerForward` kept, from the last segment to the first.

    Parameters
    ----------
    d_last : tuple of (..., N, H), optional
        Gradients of :attr:`LayerForward.last`.
    rows : Scratch
        Where the gradients of a segment's states, its slopes and its dz are written. All layers have the same: of one
        that is done nothing but dz is read, and the gradient of its input may take the place of that of its states.
    backward : {"sequential", "parallel", "auto"}
        The time loop step by step, or in chunks side by side (``equations/parallel.py``) where the cell allows it.

    Attributes
    ----------
    d_initial : tuple of (..., N, H)
        Gradients of the initial states, once the first segment has run backward; added up if it does so more than once.
    """

    def __init__(
        self, forward: LayerForward, d_last: States | None, rows: Scratch, backward: str, waiting: Waiting | None = None
    ) -> None:
        backend, layer = forward.backend, forward.layer
        self.forward = forward
        self.d_last = d_last
        self.backward = backward if layer.cell.diagonal else "sequential"
        self._sums = Sums(waiting)
        self._by_token: TokenSums | None = None  # the sum for W_xh, where it is not one of those
        if forward.tokens:
            most = forward.T * math.prod(forward.initial[0].shape[:-1])
            self._by_token = TokenSums.on(backend, layer.params["W_xh"], most)
        self.d_initial: States | None = None
        self._dstates: States = ()
        self._carried: States | None = None  # what the segment after the one at hand hands to the states before it
        self._rows, self._names = rows, [f"d{name}" for name in layer.cell.states]
        row = forward.initial[0].shape
        self._step = _none
        self._kernel: BackwardKernel | None = None
        if backend.persistent and self.backward != "parallel":
            from ..kernels.segments import BackwardKernel

            self._kernel = BackwardKernel.find(backend, layer.cell, layer.params, row, forward.mask)
        if self._kernel is None:
            self._step = layer.step_backward(backend, row[:-1], forward.T, forward.mask)

    def _rows_of_states(self, steps: int) -> States:
        """Rows for the gradients of the states before and after the steps of a segment, ``(S+1, ..., N, H)``."""
        pairs = zip(self._names, self.forward.initial, strict=True)
        return tuple([self._rows(name, steps + 1, state.shape, state.dtype) for name, state in pairs])

    def direct(self, start: int, stop: int) -> Array:
        """(S, ..., N, H): where the direct part of ``dh_t`` (3.1) has to be written before :meth:`segment`."""
        self._dstates = self._rows_of_states(stop - start)
        return self._dstates[0][1:, ...]

    def segment(self, start: int, stop: int, *, cut: bool, d_ending: Array | None = None) -> None:
        """Run one segment backward, to ``dz``; :meth:`dx_` then gives the gradient of its input.

        Parameters
        ----------
        cut : bool
            Without the gradient carried from later steps.
        d_ending : (..., N, H), optional
            A further gradient of the last h of the sequences that end in this segment.
        """
        segment = self.forward.kept(start)
        if cut:
            self._carried = None
        self._receive(start, stop, d_ending)
        dz, finish_ = self._through_time(start, stop, segment.tape)
        self._hand_on(start)
        self._sum_up(segment, dz, finish_)

    def _receive(self, start: int, stop: int, d_ending: Array | None) -> None:
        """Add to the direct part of (3.1) what comes from later segments and from gradients of the last states.

        A kernel does the first of these, and takes what is not written for 0, but for a c if d_last has one.
        """
        steps, alone = stop - start, self._kernel is None
        for k, dstate in enumerate(self._dstates):
            if alone or (k and self.d_last is not None):
                dstate[: 1 if k == 0 else steps + 1, ...] = 0  # no c has a direct part
            if alone and self._carried is not None:
                dstate[steps, ...] += self._carried[k]
            if self.d_last is not None:
                self._add_last(start, stop, dstate, self.d_last[k])
        if d_ending is not None:
            self._add_last(start, stop, self._dstates[0], d_ending)

    def _through_time(self, start: int, stop: int, tape: Tape) -> tuple[Array, Finish]:
        """(3.1) from the last step to the first: the total gradients of the states; returns dz, and what the cell has
        to do with it after the sum for ``W_hh``.
        """
        forward, steps, dstates = self.forward, stop - start, self._dstates
        backend, (cell, params, _), dz = forward.backend, forward.layer, self._dz(steps)
        row = (*forward.initial[0].shape[:-1], forward.layer.hidden_size)
        kernel = self._kernel
        if kernel is not None:
            extra = self._rows("extra", steps, (kernel.stored, *row), dz.dtype) if kernel.stored else None
            direct_c = self.d_last is not None
            self._carried = kernel(tape, dstates, self._carried, dz, extra, direct_c=direct_c)
            return dz, partial(kernel.finish_, dz, extra)
        slopes = self._rows("slopes", steps, (cell.slopes, *row), dz.dtype) if cell.slopes else None
        count = self._chunks(steps)
        if count == 1:
            backward_(backend, cell, self._step, tape, dstates, dz, slopes)
        else:
            cell.slopes_(backend, slopes, dz, tape)
            if forward.padding is not None:  # where no gradient is, a product of Jacobians may still overflow
                dz[...] = forward.padding.zeroed(dz, start, stop)
            backward_parallel_(backend, params["W_hh"], dstates[0], dz, count, forward.mask)
        return dz, partial(cell.finish_, backend, slopes, dz, dstates[0][1:, ...], tape)

    def _hand_on(self, start: int) -> None:
        """Keep what goes to the state before the segment: that of the segment before it, or the initial one."""
        if self._kernel is None:
            self._carried = tuple([self.forward.backend.copy(dstate[0, ...]) for dstate in self._dstates])
        if start == 0 and self._carried is not None:
            d_initial = self._initial_gradients(self._carried)
            before = self.d_initial
            self.d_initial = d_initial if before is None else (*map(add, before, d_initial),)

    def _sum_up(self, segment: Segment, dz: Array, finish_: Finish) -> None:
        """§3.2-3.4, and the sums of the cell's own parameters."""
        backend, (cell, params, zeros) = self.forward.backend, self.forward.layer
        x, tape, mask, ndim = segment.x, segment.tape, self.forward.mask, params["W_hh"].ndim
        h_before = tape.h_before if mask is None else tape.h_before * mask
        if self.forward.tokens and self._by_token is None:
            x = backend.one_hot(x, params["W_xh"].shape[-1], dz.dtype)
        rows = flat(backend, dz, ndim)
        of_h = rows if cell.recurrent_gates is None else rows[..., : params["W_hh"].shape[-2]]

        def of_input() -> Array:
            self._sum_up_own(finish_(), math.prod(h_before.shape[:-1]))
            stacked = ndim > 2  # the rows are a copy
            return flat(backend, dz, ndim) if cell.changes_dz and stacked else rows

        bias = "b_h" not in zeros
        add_weight_sums(backend, self._sums, of_h, h_before, x, of_input, self._by_token, bias=bias)
        self._sums.settle()  # dz and what was made of it is written to again

    def _sum_up_own(self, own: OwnGradients, rows_of_all: int) -> None:
        """What ``cell.finish_`` returned: of every step and sequence, so many, of the cell's own parameters."""
        backend, (cell, params, zeros) = self.forward.backend, self.forward.layer
        expected = cell.own_parameters(self.forward.layer.hidden_size)
        if not isinstance(own, Mapping) or own.keys() != expected.keys():
            what = f"gradients of {sorted(own)}" if isinstance(own, Mapping) else f"a {type(own).__name__}"
            raise ValueError(
                f"finish_ of {cell!r} returned {what}; expected a dictionary with those of {sorted(expected)}"
            )
        for name, shape in expected.items():
            if name in zeros:
                continue
            param, found = params[name], own[name]
            given = found if isinstance(found, tuple) else (found,)
            if len(given) != len(shape):
                kind = "a pair dz, a of its factors" if len(shape) == 2 else "one array"
                raise ValueError(
                    f"finish_ of {cell!r} returned {len(given)} array(s) for {name} {shape}; expected {kind}"
                )
            for array, size in zip(given, shape, strict=True):
                if array.shape[-1:] != (size,) or math.prod(array.shape[:-1]) != rows_of_all:
                    raise ValueError(
                        f"finish_ of {cell!r} returned an array of shape {tuple(array.shape)} for {name} {shape}; "
                        f"expected (S, ..., N, {size}), of every step and sequence as h_before"
                    )
            # A number that a cell made an array of may be of another dtype.
            dz, *a = [array if array.dtype == param.dtype else backend.xp.astype(array, param.dtype) for array in given]
            rows = flat(backend, dz, params["W_hh"].ndim)
            if not a:
                add_rows(backend, self._sums, name, rows)
                continue
            masked = name in cell.of_state and self.forward.mask is not None
            add_weight_sum(backend, self._sums, name, rows, a[0] * self.forward.mask if masked else a[0])

    @property
    def grads(self) -> dict[str, Array | Unfinished]:
        """Of the layer's parameters: the sums of §3.2-3.4, over the segments that have run backward.

        Those of tokens are not an array yet: those of other parts of a batch may be added.
        """
        totals = self._sums.totals()
        return totals if self._by_token is None else totals | {"W_xh": self._by_token}

    @property
    def total(self) -> States:
        """``dh_t`` of (3.1), and ``dc_t``, of the segment that ran last, (S, ..., N, H), while its rows are its own."""
        return tuple([dstate[1:, ...] for dstate in self._dstates])

    def _chunks(self, steps: int) -> int:
        """In how many chunks side by side a segment runs backward; 1: step by step."""
        if self.backward == "sequential":
            return 1
        h = self.forward.initial[0]
        if self.backward == "parallel":
            return best_chunks(steps)
        return chunk_times.choose(self.forward.backend, steps, h.shape, h.dtype)

    def dx_(self, start: int, stop: int, dx: Array) -> None:
        """``dx_t = W_xh^T dz_t`` of the segment that :meth:`segment` ran last, into ``dx (S, ..., N, I)``."""
        backend, W_xh, dz = self.forward.backend, self.forward.layer.params["W_xh"], self._dz(stop - start)
        if W_xh.ndim == 2:
            backend.matmul_(flat(backend, dx, 2), flat(backend, dz, 2), W_xh)
        else:
            backend.matmul_(dx, dz, W_xh)

    def _dz(self, steps: int) -> Array:
        """(S, ..., N, G*H): where dz is, in the rows that z had forward."""
        h, layer = self.forward.initial[0], self.forward.layer
        return self._rows("z", steps, (*h.shape[:-1], layer.cell.gates * layer.hidden_size), h.dtype)

    def _add_last(self, start: int, stop: int, dstate: Array, d_last: Array) -> None:
        """Add the gradient of the last states to the rows after the last valid steps, where these are in a segment."""
        padding = self.forward.padding
        if padding is not None:
            padding.add_to_last_(dstate[1:, ...], d_last, start, stop)
        elif stop == self.forward.T:
            dstate[stop - start, ...] += d_last

    def _initial_gradients(self, carried: States) -> States:
        """``dh_0 = W_hh^T dz_1``; where a sequence has length 0, its last state is h_0 and brings its gradient."""
        padding = self.forward.padding
        if padding is None or self.d_last is None:
            return carried
        return tuple([d + padding.of_empty(d_last) for d, d_last in zip(carried, self.d_last, strict=True)])
