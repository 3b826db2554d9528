"""What a network is made of, checked: sizes, cell, layers, directions, members, dropout; and the shapes that follow."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..backend.arrays import check_dtype
from ..checks import LARGEST_SEED, MOST, check_count, check_flag, check_number, check_option, said
from ..equations.activations import OUTPUT_ACTIVATIONS
from ..equations.cell import Cell
from .cells import CELLS, check_cell
from .initializers import initial_parameters

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """The arguments of :class:`bptt_array.RNN` that say what network it is, but for its device."""

    input_size: int
    hidden_size: int
    output_size: int | None = None
    cell: Cell = CELLS["tanh"]
    num_layers: int = 1
    bidirectional: bool = False
    members: int | None = None
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    output: str = "identity"
    readout: str = "every"
    time_major: bool = True
    embedding_size: int | None = None
    tied: bool = False
    bias: bool = True
    reverse: bool = False
    dtype: str = "float32"
    seed: int = 0

    @classmethod
    def checked(cls, **given: Any) -> Architecture:
        """From what a caller gave: ``cell`` by name or as a :class:`Cell`.

        Raises
        ------
        ValueError, TypeError
            For what is unknown, out of range, or of the wrong type.
        """
        made = cls(**given)
        cell = check_cell(made.cell)
        check_flag("bidirectional", made.bidirectional)
        check_flag("time_major", made.time_major)
        check_option("output", made.output, OUTPUT_ACTIVATIONS)
        check_option("readout", made.readout, ("every", "last"))
        output_size = None if made.output_size is None else check_count("output_size", made.output_size)
        if output_size is None and made.output != "identity":
            raise ValueError(
                f"output={made.output!r} needs a readout; give output_size as well, or leave output='identity'"
            )
        embedding_size = None if made.embedding_size is None else check_count("embedding_size", made.embedding_size)
        check_flag("tied", made.tied)
        check_flag("bias", made.bias)
        check_flag("reverse", made.reverse)
        if made.reverse and made.bidirectional:
            raise ValueError(
                "reverse=True, but bidirectional=True, which reads every sequence from both ends; leave reverse=False, "
                "or bidirectional=False"
            )
        num_layers, dropout = check_count("num_layers", made.num_layers), check_number("dropout", made.dropout, below=1)
        if dropout and num_layers == 1:
            raise ValueError(
                f"dropout={dropout:g} is between layers, but num_layers=1: give num_layers=2 or more, "
                "or use recurrent_dropout"
            )
        checked = cls(
            input_size=check_count("input_size", made.input_size),
            hidden_size=check_count("hidden_size", made.hidden_size),
            output_size=output_size,
            cell=cell,
            num_layers=num_layers,
            bidirectional=bool(made.bidirectional),
            members=None if made.members is None else check_count("members", made.members),
            dropout=dropout,
            recurrent_dropout=check_number("recurrent_dropout", made.recurrent_dropout, below=1),
            output=made.output,
            readout=made.readout,
            time_major=bool(made.time_major),
            embedding_size=embedding_size,
            tied=bool(made.tied),
            bias=bool(made.bias),
            reverse=bool(made.reverse),
            dtype=check_dtype(made.dtype),
            seed=check_count("seed", made.seed, least=0, most=LARGEST_SEED),
        )
        checked._check_tied()
        return checked

    def _check_tied(self) -> None:
        """Whether one matrix can be both the embedding's, (V, M), and the readout's, (O, D*H)."""
        if not self.tied:
            return
        width = self.top_size
        if self.embedding_size is None:
            raise ValueError(
                f"tied=True, but there is no embedding to share; give embedding_size={width} as well, or leave "
                "tied=False"
            )
        if self.output_size != self.input_size:
            raise ValueError(
                f"tied=True, but output_size={said(self.output_size)} and input_size={said(self.input_size)}: what is "
                f"read and what is said are one vocabulary; give output_size={said(self.input_size)}"
            )
        if self.embedding_size != width:
            raise ValueError(
                f"tied=True, but embedding_size={said(self.embedding_size)} and the top layer gives {said(width)} "
                f"numbers; give embedding_size={said(width)}, or leave tied=False"
            )

    @property
    def config(self) -> dict[str, Any]:
        """The arguments by name, as JSON holds them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"cell": self.cell.name}

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    @property
    def top_size(self) -> int:
        """What the top layer gives: D*H."""
        return self.directions * self.hidden_size

    @property
    def outputs(self) -> int:
        """O, or without a readout what the top layer gives."""
        return self.top_size if self.output_size is None else self.output_size

    @property
    def features(self) -> int:
        """What the first layer reads: M of an embedding, or I."""
        return self.input_size if self.embedding_size is None else self.embedding_size

    @property
    def member_axis(self) -> tuple[int, ...]:
        """``(E,)``, or nothing: the axis before N in inputs, outputs and states, and the first one of parameters."""
        return () if self.members is None else (self.members,)

    @cached_property
    def lead(self) -> tuple[int, ...]:
        """``([E,] [2,])``: the axes before those of a layer's weights, and before N in its states."""
        return (*self.member_axis, 2) if self.bidirectional else self.member_axis

    def states_shape(self, N: int) -> tuple[int, ...]:
        """Of :class:`State`: (L, D, [E,] N, H)."""
        return (self.num_layers, self.directions, *self.member_axis, N, self.hidden_size)

    @property
    def states_axes(self) -> str:
        return f"(L, D, {self._lead}N, H)"

    @property
    def _lead(self) -> str:
        return "" if self.members is None else "E, "

    def outputs_shape(self, T: int, N: int) -> tuple[int, ...]:
        """Of y, time first: (T, [E,] N, O), or with ``readout="last"`` ([E,] N, O)."""
        return (*(() if self.readout == "last" else (T,)), *self.member_axis, N, self.outputs)

    @property
    def outputs_axes(self) -> str:
        O = "O" if self.output_size is not None else "2H" if self.bidirectional else "H"  # noqa: E741
        return f"({self._lead}N, {O})" if self.readout == "last" else f"(T, {self._lead}N, {O})"

    def single(self, k: int) -> Architecture:
        """That of member k of an ensemble: a network of its own."""
        return replace(self, members=None, seed=self.seed + k)

    def changed(self, **options: Any) -> Architecture:
        """The same with other options, which are checked."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Architecture.checked(**values | options)

    # ---- parameters -----------------------------------------------------------------------------------

    def _check_fits(self) -> None:
        """Refuse sizes with which the parameters alone are larger than the memory of this machine."""
        one, two, three = (self._numbers(layers) for layers in (1, 2, 3))
        numbers = one + (two - one) * (self.num_layers > 1) + (three - two) * max(0, self.num_layers - 2)
        # Drawn in float64 on the host, each layer as several arrays, which are objects.
        needed = (self.members or 1) * (8 * numbers + 3 * sys.getsizeof(np.empty(0)) * self.num_layers)
        if needed > (there := _memory_of_this_machine()):
            sizes = ("input_size", "embedding_size", "hidden_size", "output_size", "num_layers", "members")
            given = ", ".join(f"{name}={said(size)}" for name in sizes if (size := getattr(self, name)) is not None)
            raise ValueError(
                f"{given}: the parameters take {said(needed)} bytes, but this machine has {there}; expected smaller "
                "sizes"
            )

    def _numbers(self, num_layers: int) -> int:
        """Of the parameters of one member with so many layers."""
        return sum(map(math.prod, replace(self, num_layers=num_layers)._shapes_of_one().values()))

    @cached_property
    def shapes(self) -> Shapes:
        """Names and shapes of all parameters."""
        lead = self.member_axis
        return {name: (*lead, *shape) for name, shape in self._shapes_of_one().items()}

    def _shapes_of_one(self) -> Shapes:
        """Of one member."""
        H, D, rows = self.hidden_size, self.directions, self.cell.gates * self.hidden_size
        sides = (2,) if self.bidirectional else ()
        shapes: Shapes = {} if self.embedding_size is None else {"W_emb": (self.input_size, self.embedding_size)}
        for k in range(self.num_layers):
            inputs = D * H if k else self.features
            own = {"W_xh": (rows, inputs), "W_hh": (self.cell.gates_of_state * H, H), "b_h": (rows,)}
            own |= self.cell.own_parameters(H)
            left_out = () if self.bias else self._biases
            shapes |= {f"l{k}.{name}": (*sides, *shape) for name, shape in own.items() if name not in left_out}
        if self.output_size is not None:
            shapes |= {} if self.tied else {"W_hy": (self.output_size, D * H)}
            shapes |= {"b_y": (self.output_size,)}
        return shapes

    @cached_property
    def _biases(self) -> dict[str, tuple[int, ...]]:
        """Of a layer in one direction."""
        own = self.cell.own_parameters(self.hidden_size)
        named = {name: shape for name, shape in own.items() if name.startswith("b_")}
        return {"b_h": (self.cell.gates * self.hidden_size,), **named}

    @property
    def no_biases(self) -> Shapes:
        """Biases that a layer would have, but has not, and the shapes in which they would be 0."""
        return {} if self.bias else {name: (*self.lead, *shape) for name, shape in self._biases.items()}

    def initial_parameters(self, init: str, forget_bias: float) -> dict[str, np.ndarray[Any, Any]]:
        """Float64 values on the host; those of member k are those of the single network with seed + k.

        Raises
        ------
        ValueError
            Before anything is made, if this machine has not the memory for them.
        """
        self._check_fits()
        drawn = [
            initial_parameters(init, self.seed + k, self._shapes_of_one(), self.hidden_size, self.cell.of_state)
            for k in range(self.members or 1)
        ]
        if self.bias and (gate := self.cell.forget_gate) is not None:
            forget = slice(gate * self.hidden_size, (gate + 1) * self.hidden_size)
            for params in drawn:
                for k in range(self.num_layers):
                    params[f"l{k}.b_h"][..., forget] += forget_bias
        if self.members is None:
            return drawn[0]
        return {name: np.stack([params[name] for params in drawn]) for name in drawn[0]}

    @cached_property
    def _names(self) -> list[dict[str, str]]:
        """Of every layer: the names of its parameters in it, and in the network."""
        return [
            {name.partition(".")[2]: name for name in self.shapes if name.startswith(f"l{k}.")}
            for k in range(self.num_layers)
        ]

    def of_layer(self, k: int, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of layer k by their names in it."""
        return {name: params[full] for name, full in self._names[k].items()}


def _memory_of_this_machine() -> int:
    """Bytes, where the system says how many there are."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return MOST
