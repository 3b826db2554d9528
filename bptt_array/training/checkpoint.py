"""Everything that a training run is made of between two updates: what it takes to go on to the same bits.

The random numbers of a run need no generator here: masks of dropout are a function of the seed and the step, and so is
the place in the text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import short
from ..rnn.architecture import Architecture
from .history import COLUMNS
from .options import OPTIMIZERS, Options
from .progress import Progress

HostArray = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What every run is made of after ``step`` updates, on the host.

    Attributes
    ----------
    step : int
    lr : float
        The rate that the schedule multiplies; halved where training diverged.
    device : str
        On which the run was.
    updates : dict of str to int
        Of the optimizer, for every parameter.
    events : list of dict
        Where training diverged: ``step``, ``why``, ``back_to`` and ``lr``, with which it went on from there, or None.
    losses : (updates, [E])
        Those that nobody has taken.
    params : dict of str to array
    kept : dict of str to list of array
        What the optimizer keeps for every parameter.
    goes_back_to : int or None
        The step of the moment to which a divergence goes back from here, where it is an earlier one: one at which a run
        that is never stopped has a checkpoint too. ``earlier`` is that moment, where it is known; files of this one
        have only its step.
    """

    step: int
    lr: float
    device: str
    updates: dict[str, int]
    events: list[dict[str, Any]]
    losses: HostArray
    params: dict[str, HostArray]
    kept: dict[str, list[HostArray]]
    goes_back_to: int | None = None
    earlier: Any = None

    def numbers(self) -> dict[str, HostArray]:
        """What has to be finite, by what it is called in the words of errors."""
        kept = {f"what the optimizer keeps of {name}": array for name, of in self.kept.items() for array in of}
        return self.params | kept


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Moment):
    """A run that learns a text, between two updates.

    Attributes
    ----------
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
    metrics : bytes
        ``metrics.jsonl``.
    seconds : (lines,) float64
        Of training, at each line of the metrics. ``losses`` are those since the last one.
    state : dict of str to array
        ``h`` and, of an LSTM, ``c``; empty before the first update.
    """

    elapsed: float
    options: dict[str, Any]
    source: list[str] | None
    text: str
    init_from: dict[str, str] | None
    metrics: bytes
    seconds: HostArray
    state: dict[str, HostArray]

    def numbers(self) -> dict[str, HostArray]:
        return super().numbers() | {f"the state {name}": array for name, array in self.state.items()}


@dataclass(frozen=True, kw_only=True)
class FitCheckpoint(Moment):
    """A run of :func:`bptt_array.fit` between two updates; ``losses`` are those of the epoch that it is in.

    Attributes
    ----------
    run : dict of str to str
        What it is a run of: of the network, the data and every argument that results depend on.
    epoch, done : int
        Epochs that are over, and minibatches of the one that is not.
    waited : int
        Epochs since the last one that was better.
    schedule : dict, or None
        State of the schedule, of one that has any; where nothing is written, it may be of any kind.
    history : dict of str to array
        The columns of a :class:`~bptt_array.training.history.History`.
    best : dict of str to array
        The parameters with the lowest validation losses; empty before the first validation.
    best_epoch, best_validation : 0-d or (E,), int64 and float64
        When that was, and how low; -1 and 0 before it.
    """

    run: dict[str, str]
    epoch: int
    done: int
    waited: int
    schedule: Any
    history: dict[str, HostArray]
    best: dict[str, HostArray]
    best_epoch: HostArray
    best_validation: HostArray


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
    slots, step, members = len(OPTIMIZERS[options.optimizer][0](0.1).keeps), checkpoint.step, architecture.member_axis
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


def _different(then: Any, now: Any) -> tuple[Any, Any]:
    """Of two things that are written down with their settings those that are not the same."""
    (kind, _, old), (like, _, new) = (str(each).partition("{") for each in (then, now))
    try:
        old, new = json.loads(f"{{{old}"), json.loads(f"{{{new}")
    except (ValueError, RecursionError):  # no settings, or a file that means harm
        return then, now
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if kind != like or not names:
        return then, now
    return {name: old.get(name) for name in names}, {name: new.get(name) for name in names}


def check_run(checkpoint: FitCheckpoint, run: dict[str, str], architecture: Architecture, slots: int) -> None:
    """Whether a checkpoint is one of this run, whose optimizer keeps ``slots`` arrays a parameter.

    Raises
    ------
    ValueError
        Naming the argument, or the array, that is another.
    """
    for name in sorted({*run, *checkpoint.run}):
        if checkpoint.run.get(name) != run.get(name):
            then, now = _different(checkpoint.run.get(name), run.get(name))
            other = "" if "sha256" in str(now) else f": {short(then)} there, {short(now)} here"
            raise ValueError(f"{name} is not that of the run that is in it{other}; give the same, or another folder")
    shapes, members, dtype = architecture.shapes, architecture.member_axis, architecture.dtype
    updated = shapes if checkpoint.step else checkpoint.updates  # an optimizer may have had updates before
    columns = {name: (checkpoint.epoch, *(members if name in ("loss", "validation") else ())) for name in COLUMNS}
    if not len(checkpoint.history["validation"]):
        columns["validation"] = (0, *members)
    of_optimizer = {f"kept.{k}.{name}": shapes[name] for name in shapes if name in updated for k in range(slots)}
    of_network = {f"params.{name}": shape for name, shape in shapes.items()}
    of_network |= {f"best.{name}": shape for name, shape in shapes.items() if checkpoint.best}
    expected = {name: (shape, dtype) for name, shape in (of_network | of_optimizer).items()}
    expected |= {f"history.{name}": (shape, "float64") for name, shape in columns.items()}
    expected |= {"best_epoch": (members, "int64"), "best_validation": (members, "float64")}
    arrays = {f"params.{name}": array for name, array in checkpoint.params.items()}
    arrays |= {f"best.{name}": array for name, array in checkpoint.best.items()}
    arrays |= {f"kept.{k}.{name}": array for name, kept in checkpoint.kept.items() for k, array in enumerate(kept)}
    arrays |= {f"history.{name}": array for name, array in checkpoint.history.items()}
    arrays |= {"best_epoch": checkpoint.best_epoch, "best_validation": checkpoint.best_validation}
    found = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
    for name in sorted({*expected, *found}):
        if found.get(name) != expected.get(name):
            raise ValueError(f"the checkpoint's {name} is not that of this network; expected one of the same run")
    if checkpoint.losses.shape[1:] != members:
        raise ValueError(f"the checkpoint's losses are not those of {architecture.members} members")
