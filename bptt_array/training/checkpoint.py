"""Everything that a training run is made of between two updates: what it takes to go on to the same bits.

The random numbers of a run need no generator here: masks of dropout are a function of the seed and the step, and so is
the place in the text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..rnn.architecture import Architecture
from .options import OPTIMIZERS, Options
from .progress import Progress

HostArray = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A run after ``step`` updates, on the host.

    Attributes
    ----------
    step : int
    lr : float
        The rate that the schedule begins with; halved where training diverged.
    elapsed : float
        Seconds of training so far.
    options : dict
        Of the run, see :class:`bptt_array.training.options.Options`.
    source : list of str or None
        The files of the text; None: the language reference inside Python.
    text : str
        SHA-256 of the text.
    init_from : dict of str to str, or None
        Of the network whose weights the run began with: its ``path``, and the ``characters`` that it knew, which the
        run's own knows too.
    device : str
        On which the run was.
    updates : dict of str to int
        Of the optimizer, for every parameter.
    events : list of dict
        Where training diverged: ``step``, ``why``, ``back_to`` and ``lr``, with which it went on from there, or None.
    metrics : bytes
        ``metrics.jsonl``.
    seconds : (lines,) float64
        Of training, at each line of the metrics.
    losses : (updates, [E])
        Since the last line of the metrics.
    params : dict of str to array
    kept : dict of str to list of array
        What the optimizer keeps for every parameter.
    state : dict of str to array
        ``h`` and, of an LSTM, ``c``; empty before the first update.
    """

    step: int
    lr: float
    elapsed: float
    options: dict[str, Any]
    source: list[str] | None
    text: str
    init_from: dict[str, str] | None
    device: str
    updates: dict[str, int]
    events: list[dict[str, Any]]
    metrics: bytes
    seconds: HostArray
    losses: HostArray
    params: dict[str, HostArray]
    kept: dict[str, list[HostArray]]
    state: dict[str, HostArray]


def json_line(value: dict[str, Any]) -> bytes:
    """A line of JSON."""
    return json.dumps(value).encode() + b"\n"


def read_lines(metrics: bytes) -> list[Progress]:
    """The lines of ``metrics.jsonl``.

    Raises
    ------
    ValueError, RecursionError
        If they are none.
    """
    return [Progress.of(json.loads(line)) for line in metrics.decode("utf-8").removesuffix("\n").split("\n") if metrics]


def check_fits(checkpoint: Checkpoint, architecture: Architecture, options: Options) -> None:
    """Whether a checkpoint is one of a run with these options: its arrays those of such a network, all of its dtype.

    Raises
    ------
    ValueError
        Naming what is not.
    """
    slots, step, members = OPTIMIZERS[options.optimizer][0](0.1).slots, checkpoint.step, architecture.member_axis
    if step > options.steps:
        raise ValueError(f"the checkpoint is of step {step}; expected at most the {options.steps} of its run")
    expected: dict[str, list[tuple[int, ...]]] = {}
    if architecture.num_layers <= len(checkpoint.params):  # before their names are listed
        shapes = architecture.shapes
        expected |= {f"params[{name!r}]": [shape] for name, shape in shapes.items()}
        expected |= {f"kept[{name!r}]": [shape] * slots for name, shape in shapes.items() if step}
        expected |= {f"updates[{name!r}]": [] for name in shapes if step}
    if step:
        expected |= {f"state.{name}": [shape] for name, shape in architecture.states_shapes(options.batch).items()}
    found = {f"params[{name!r}]": [value] for name, value in checkpoint.params.items()}
    found |= {f"kept[{name!r}]": arrays for name, arrays in checkpoint.kept.items()}
    found |= {f"updates[{name!r}]": [] for name in checkpoint.updates}
    found |= {f"state.{name}": [value] for name, value in checkpoint.state.items()}
    for name in sorted(set(expected) | set(found)):
        arrays, shapes_of = found.get(name), expected.get(name)
        there = None if arrays is None else [array.shape for array in arrays]
        if there != shapes_of or any(array.dtype != options.dtype for array in arrays or ()):
            raise ValueError(f"the checkpoint's {name} is not that of this network; expected one of the same run")
    if checkpoint.losses.shape[1:] != members:
        raise ValueError(f"the checkpoint's losses are not those of {architecture.members} members")
