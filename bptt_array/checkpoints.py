"""Everything that a training run is made of between two updates, as a file: what it takes to go on to the same bits.

The random numbers of a run need no generator here: masks of dropout are a function of the seed and the step, and so is
the place in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .architecture import Architecture
from .options import OPTIMIZERS, Options
from .progress import Progress, is_count, is_number
from .serialization import flush_folder, open_file, write_file
from .wording import short

HostArray = np.ndarray[Any, Any]

KIND = "training checkpoint"
FOLDER = "checkpoints"
#: Of files of a step.
NAME = re.compile(r"step-(\d{1,18})\.safetensors")


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
        Of the run, see :class:`bptt_array.options.Options`.
    source : list of str or None
        The files of the text; None: the language reference inside Python.
    text : str
        SHA-256 of the text.
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
    device: str
    updates: dict[str, int]
    events: list[dict[str, Any]]
    metrics: bytes
    seconds: HostArray
    losses: HostArray
    params: dict[str, HostArray]
    kept: dict[str, list[HostArray]]
    state: dict[str, HostArray]


#: The fields that are JSON, in the header; metrics, which grow, are among the data.
_SAID = ("step", "lr", "elapsed", "options", "source", "text", "device", "updates", "events")


def json_line(value: dict[str, Any]) -> bytes:
    """A line of JSON."""
    return json.dumps(value).encode() + b"\n"


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint of a run folder, then remove all but the last ``keep``, and what is left of later ones.

    Returns
    -------
    Path
        Of the new file.

    Raises
    ------
    OSError
        Naming the file; the checkpoints before are as they were.
    """
    here = folder / FOLDER
    if not here.exists():
        here.mkdir()
        flush_folder(folder)
    arrays = {
        "seconds": checkpoint.seconds,
        "losses": checkpoint.losses,
        "metrics": np.frombuffer(checkpoint.metrics, np.uint8),
        **{f"params.{name}": value for name, value in checkpoint.params.items()},
        **{f"kept.{k}.{name}": value for name, kept in checkpoint.kept.items() for k, value in enumerate(kept)},
        **{f"state.{name}": value for name, value in checkpoint.state.items()},
    }
    content = {name: getattr(checkpoint, name) for name in _SAID}
    path = here / f"step-{checkpoint.step:08}.safetensors"
    write_file(path, KIND, arrays, content)
    earlier = [other for other in checkpoints(folder) if step_of(other) < checkpoint.step]
    later = [other for other in checkpoints(folder) if step_of(other) > checkpoint.step]
    for other in [*later, *earlier[: max(0, len(earlier) + 1 - keep)]]:
        other.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint that :func:`write_checkpoint` wrote.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, is damaged, or none.
    """
    with open_file(path) as file:
        content = file.about(KIND)
        arrays = file.arrays()
    try:
        if not _is_description(content):
            raise ValueError
        kept: dict[str, list[HostArray]] = {name: [] for name in content["updates"]}
        for name, array in _part(arrays, "kept").items():  # 0.NAME, 1.NAME: sorted
            kept[name.partition(".")[2]].append(array)
        found = Checkpoint(
            **content,
            metrics=arrays["metrics"].tobytes(),
            seconds=arrays["seconds"],
            losses=arrays["losses"],
            params=_part(arrays, "params"),
            kept=kept,
            state=_part(arrays, "state"),
        )
        if found.seconds.shape != (len(read_lines(found.metrics)),) or not _are_numbers(arrays):
            raise ValueError
    except (KeyError, RecursionError, ValueError):
        raise ValueError(f"path={str(path)!r} does not hold what a checkpoint does") from None
    return found


def read_lines(metrics: bytes) -> list[Progress]:
    """The lines of ``metrics.jsonl``.

    Raises
    ------
    ValueError, RecursionError
        If they are none.
    """
    return [Progress.of(json.loads(line)) for line in metrics.decode("utf-8").removesuffix("\n").split("\n") if metrics]


def _is_description(content: dict[str, Any]) -> bool:
    """Whether a header says what a checkpoint's does, each of its kind."""

    def strings(values: Any) -> bool:
        return isinstance(values, list) and all(isinstance(value, str) for value in values)

    def events(values: Any) -> bool:
        return isinstance(values, list) and all(
            isinstance(event, dict)
            and is_count(event.get("step"))
            and isinstance(event.get("why"), str)
            and is_count(event.get("back_to"))
            and (event.get("lr") is None or is_number(event["lr"]))
            for event in values
        )

    kinds: dict[str, Callable[[Any], bool]] = {
        "step": is_count,
        "lr": is_number,
        "elapsed": is_number,
        "options": lambda value: isinstance(value, dict),
        "source": lambda value: value is None or strings(value),
        "text": lambda value: isinstance(value, str),
        "device": lambda value: isinstance(value, str),
        "updates": lambda value: isinstance(value, dict) and all(map(is_count, value.values())),
        "events": events,
    }
    return set(content) == set(kinds) and all(allowed(content[name]) for name, allowed in kinds.items())


def _are_numbers(arrays: dict[str, HostArray]) -> bool:
    """Whether everything is of a known name, and finite."""
    known = ("metrics", "seconds", "losses")
    named = all(name in known or name.startswith(("params.", "kept.", "state.")) for name in arrays)
    return named and all(np.isfinite(array).all() for array in arrays.values())


def _part(arrays: dict[str, HostArray], kind: str) -> dict[str, HostArray]:
    """The arrays under ``kind.``, by the rest of their names, in alphabetical order."""
    return {name.removeprefix(f"{kind}."): arrays[name] for name in sorted(arrays) if name.startswith(f"{kind}.")}


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
        expected |= {f"state.{name}": [architecture.states_shape(options.batch)] for name in architecture.cell.states}
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


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    found = [path for path in (folder / FOLDER).glob("step-*.safetensors") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step in the name of a file."""
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Checkpoint:
    """The last checkpoint of a run folder that can be read; of each that cannot, ``say`` gets a word.

    Raises
    ------
    ValueError
        If there is none.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            found = read_checkpoint(path)
            if found.step != step_of(path):
                raise ValueError(f"path={str(path)!r} is of step {short(found.step)}")
        except OSError as error:
            say(f"{path}: {error.strerror or error}; trying the checkpoint before it")
            continue
        except ValueError as error:
            say(f"{error}; trying the checkpoint before it")
            continue
        return found
    if paths:
        raise ValueError(f"{folder} has no checkpoint that can be read, of {len(paths)}: the run cannot be resumed")
    raise ValueError(
        f"{folder} has no checkpoint; expected a run folder that `train` wrote (if it did, and was killed before its "
        "first one, remove the folder and train again)"
    )
