"""What a call of a network works on: made of what the caller gave, checked and in place.

This is the door to a network for the rest of the package: ``rnn.calls`` hands diagnostics what they need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from ..backend.arrays import is_integer
from ..backend.portable import Array, Backend
from ..bptt import passes
from ..bptt.batch import Batch, States, without
from ..bptt.direct import total_of
from ..bptt.dropout import Dropout
from ..bptt.layer import Layer, how_time_runs
from ..bptt.padding import Padding
from ..bptt.parts import Targets
from ..bptt.state import State
from ..bptt.unrolled import Stack
from ..bptt.workspace import Workspace
from ..checks import check_flag, check_option
from ..equations.activations import OUTPUT_ACTIVATIONS
from ..equations.objective import Objective
from ..equations.readout import Readout
from ..losses import CrossEntropy, equation_of
from ..schedules.instructions import check_truncate
from .architecture import Architecture
from .arguments import (
    check_dropout_rows,
    check_dropout_seed,
    check_float,
    check_floats,
    check_lengths,
    check_place,
    check_range,
    check_reset,
    check_state,
    check_x,
)
from .layout import BatchFirst, TimeFirst
from .targets import check_outputs_like, check_target


class Calls:
    """What the calls of one network work on, and what looks into it may ask for: all but its parameters.

    Everything here takes what a caller gave as it is, and hands out what :mod:`bptt_array.bptt.passes` run on: checked,
    time first, with an axis for members where there are any. Calls go on within ``backend.active()`` and
    ``layout.in_errors()``.

    Attributes
    ----------
    architecture : Architecture
    backend : Backend
    layout : TimeFirst
        How the caller's arrays stand.
    workspace : Workspace
    """

    def __init__(self, architecture: Architecture, backend: Backend, workspace: Workspace | None = None) -> None:
        self.architecture = architecture
        self.backend = backend
        self.layout = TimeFirst() if architecture.time_major else BatchFirst(backend)
        self.workspace = Workspace() if workspace is None else workspace
        self._bound: tuple[dict[str, Array], passes.BoundNetwork | None] = {}, None
        self._class_weights: tuple[CrossEntropy | None, Array] = None, None

    def __reduce__(self) -> tuple[Any, ...]:
        return Calls, (self.architecture, self.backend)  # all else is made as calls need it

    def outward(self, y: Array) -> Array:
        """Outputs as the caller has them."""
        return self.layout.outward(y) if self.architecture.readout == "every" else y

    def dropout(self, seed: Any, rows: Any, N: int, *, needed: bool = False) -> Dropout | None:
        """The masks of a call, or None where nothing is left out."""
        network, (first, batch) = self.architecture, check_dropout_rows(rows, N)
        rate, recurrent_rate = network.dropout, network.recurrent_dropout
        seed = check_dropout_seed(seed)
        if not (rate or recurrent_rate):
            return None
        if seed is None and needed:
            given = f"dropout={rate:g}" if rate else f"recurrent_dropout={recurrent_rate:g}"
            raise ValueError(
                f"dropout_seed is missing, but this RNN has {given}: give a whole number, another one for every "
                "training step, or dropout_seed='off' for gradients without dropout"
            )
        if seed is None or isinstance(seed, str):
            return None
        dtype = self.backend.dtype(network.dtype)
        return Dropout(self.backend, dtype, rate, recurrent_rate, seed, network.seed, network.members, first, batch)

    def objective(
        self,
        network: passes.BoundNetwork,
        batch: Batch,
        target: Any,
        loss: Any,
        weights: Any,
        reduction: Any,
        validate: bool,
    ) -> tuple[Objective, Targets]:
        """A loss and what it compares with, checked and time first, with an axis for the members if there are any."""
        backend, architecture = self.backend, self.architecture
        y_shape = architecture.outputs_shape(batch.T, batch.N)
        check_option("reduction", reduction, ("mean", "weighted_mean", "sum"))
        equation = equation_of(loss, y_shape[-1], architecture.dtype)
        every = architecture.readout == "every"
        features = None
        if every:
            target, features = self.layout.inward_target(target, loss, y_shape)
            weights = self.layout.inward(weights, features=False)
        features = check_target(
            target, loss, equation, y_shape, architecture, backend, batch.lengths, validate, features
        )
        if weights is not None:
            check_place("weights", weights, backend, architecture.dtype, host=True)
            check_float("weights", weights, architecture.dtype)
            check_outputs_like("weights", weights, y_shape, architecture.outputs_axes, architecture, features=False)
        steps = None if reduction == "sum" else batch.valid_outputs(architecture.readout)
        if architecture.members is not None:
            before = 1 if every else 0
            target = for_members(target, len(y_shape) - (not features), before)
            weights = None if weights is None else for_members(weights, len(y_shape) - 1, before)
        targets, by_weight = Targets(target, weights), reduction == "weighted_mean" and weights is not None
        objective = Objective(network.readout, equation, steps, architecture.members)
        of_classes = False
        if isinstance(loss, CrossEntropy) and loss.selects:
            of_classes = not features
            ignored = loss.ignore_index if of_classes else None
            objective = objective._replace(ignored=ignored, class_weights=self.class_weights(loss))
        if reduction != "sum" and (of_classes or by_weight):
            counted = targets if by_weight else Targets(target, None)
            total = total_of(architecture.readout, objective, counted, batch)
            objective = objective._replace(steps=None, total=total)
        return objective, targets

    def class_weights(self, loss: CrossEntropy) -> Array | None:
        """Those of a loss on the device, (O,); of the last loss they are there already."""
        if loss.class_weights is None:
            return None
        known, array = self._class_weights
        if known is not loss:
            array = self.backend.from_host(loss.host_weights.astype(self.architecture.dtype))
            self._class_weights = loss, array
        return array

    def count(
        self,
        params: dict[str, Array],
        x: Any,
        target: Any,
        loss: Any,
        *,
        lengths: Any = None,
        weights: Any = None,
        reduction: Any = "mean",
    ) -> tuple[int, Any, bool]:
        """Check a batch with its targets, and nothing more.

        Returns how many sequences it has, what a mean of its loss is over (None of a sum), and whether its target has
        an axis of features.
        """
        with self.backend.active(), self.layout.in_errors():
            batch = self.batch(x, None, lengths, None, False, host=True)
            objective, targets = self.objective(self.network(params), batch, target, loss, weights, reduction, False)
            outputs = self.architecture.outputs_shape(batch.T, batch.N)
            return batch.N, objective.mean_over, targets.target.ndim == len(outputs)

    def batch(self, x: Any, state: Any, lengths: Any, reset: Any, validate: bool, *, host: bool) -> Batch:
        """Inputs and initial states; ``host``: NumPy arrays will do for a network on a device too."""
        check_flag("validate", validate)
        x = self.layout.inward_x(x)
        return make_batch(self.backend, self.architecture, x, state, lengths, reset, validate=validate, host=host)

    def pre_activations(self, params: dict[str, Array], x: Any, state: Any) -> tuple[Array, State]:
        """``v = W_hy h + b_y`` of every step, before the function of the outputs, and the final state."""
        with self.backend.active(), self.layout.in_errors():
            batch, network = self.batch(x, state, None, None, False, host=False), self.network(params)
            plain = network._replace(readout=replace(network.readout, g=OUTPUT_ACTIVATIONS["identity"]))
            v, last, _ = passes.run_forward(plain, batch, None, keep=False)
            return self.outward(v), last

    def kernels(self, params: dict[str, Array], N: int) -> dict[str, str]:
        """How the time of every layer runs, in words."""
        with self.backend.active():
            row = (*self.architecture.lead, N, self.architecture.widths[0])
            found = {}
            for k, layer in enumerate(self.network(params).stack.layers):
                for way, words in how_time_runs(self.backend, layer.cell, layer.params, row).items():
                    found[f"l{k} {way}"] = words
            return found

    def check_truncate(self, truncate: Any) -> int | tuple[int, int] | None:
        """Periods of truncation, if this network may have any."""
        architecture = self.architecture
        return check_truncate(truncate, bidirectional=architecture.bidirectional, reverse=architecture.reverse)

    def check_params(self, params: Mapping[str, Array]) -> None:
        """Parameters may be replaced by the caller: what does not fit must not compute, or be saved."""
        backend, shapes, dtype = self.backend, self.architecture.shapes, self.architecture.dtype
        if set(params) != set(shapes):
            raise ValueError(f"rnn.params has keys {sorted(map(str, params))}; expected {sorted(shapes)}")
        for name, shape in shapes.items():
            check_floats(f"params[{name!r}]", params[name], shape, "shape", backend, dtype, host=False)
            if params[name].dtype != backend.dtype(dtype):
                raise TypeError(
                    f"params[{name!r}] is not in the byte order of this machine; use rnn.asarray(params[{name!r}])"
                )

    def network(self, params: dict[str, Array]) -> passes.BoundNetwork:
        """The network with these parameters, as passes take it: while they are the same arrays, the one made before."""
        if self.backend.name != "cpu":  # where a check costs next to nothing
            self.check_params(params)
            return self.bind(params)
        bound, network = self._bound
        if network is None or len(bound) != len(params) or any(params.get(k) is not a for k, a in bound.items()):
            self.check_params(params)
            self._bound = bound, network = dict(params), self.bind(params)
        return network

    def bind(self, params: Mapping[str, Array]) -> passes.BoundNetwork:
        """The same without a check, and made anew."""
        architecture = self.architecture
        zeros, without_bias = self._zeros, frozenset(self._zeros)
        layers = (
            Layer(architecture.step, architecture.of_layer(k, params) | zeros, without_bias)
            for k in range(architecture.num_layers)
        )
        g = OUTPUT_ACTIVATIONS[architecture.output]
        W_emb = params.get("W_emb")
        readout = Readout(self.backend, g, W_emb if architecture.tied else params.get("W_hy"), params.get("b_y"))
        stack = Stack(tuple(layers), architecture.bidirectional, W_emb)
        factors = [array for name, array in params.items() if name != "W_emb" or architecture.tied]
        largest = max(math.prod(array.shape) for array in factors)
        return passes.BoundNetwork(self.backend, stack, readout, architecture.readout, self.workspace, largest)

    @cached_property
    def _zeros(self) -> dict[str, Array]:
        """The biases that a network has not, as cells are given them."""
        dtype = self.backend.dtype(self.architecture.dtype)
        return {name: self.backend.zeros(shape, dtype) for name, shape in self.architecture.no_biases.items()}


def for_members(array: Array, ndim: int, before: int = 1) -> Array:
    """An array that all members share, with an axis of 1 for them after the first ``before`` axes.

    One that has ``ndim`` axes has one of E already.
    """
    return array if array.ndim == ndim else array[(slice(None),) * before + (None, ...)]


#: Where a network of one input was given integers.
_NUMBERS = "; numbers that are no tokens are floats (T, N, 1): rnn.asarray(x[..., None], dtype={!r})"


def make_batch(
    backend: Backend,
    architecture: Architecture,
    x: Any,
    state: Any,
    lengths: Any,
    reset: Any,
    *,
    validate: bool,
    host: bool,
) -> Batch:
    """Check what a caller gave, time first; ``host``: NumPy arrays will do for a device model too."""
    dtype, members = architecture.dtype, architecture.members
    T, N = check_x(x, architecture, backend, host=host)
    known = check_lengths(lengths, T, N)
    tokens = is_integer(x)
    if tokens:
        check_range(
            "x",
            x,
            architecture.input_size,
            "tokens below input_size",
            backend,
            known,
            read=validate,
            way=_NUMBERS.format(dtype) if architecture.input_size == 1 else "",
        )
    if members is not None:
        x = for_members(x, 3 if tokens else 4)
    if state is not None:
        check_state("state", state, architecture, N, backend, host=host)
    initial = as_initial(backend, architecture, state, N)
    reset = check_reset(reset, N, backend)
    if reset is not None and state is not None:
        initial = without(backend, initial, reset)
    padding = None if known is None else Padding(backend, known)
    return Batch(backend, backend.dtype(dtype), T, N, members, x, tokens, initial, padding, reset, architecture.reverse)


def as_initial(backend: Backend, architecture: Architecture, state: State | None, N: int) -> list[States]:
    """The states of every layer, ``([E,] [2,] N, H)``, from ``(L, D, [E,] N, H)`` or zeros."""
    dtype, xp = backend.dtype(architecture.dtype), backend.xp
    names, layers = architecture.cell.states, range(architecture.num_layers)
    if state is None:
        lead, widths = (*architecture.lead, N), architecture.widths
        return [tuple([backend.zeros((*lead, width), dtype) for width in widths]) for _ in layers]
    given = []
    for name in names:
        array = getattr(state, name)
        array = array if backend.owns(array) else backend.from_host(array)
        given.append(xp.astype(array, dtype, copy=False))  # the byte order of this machine

    def inside(array: Array) -> Array:
        return xp.moveaxis(array, 0, -3) if architecture.bidirectional else array[0, ...]

    return [tuple(inside(array[k, ...]) for array in given) for k in layers]
