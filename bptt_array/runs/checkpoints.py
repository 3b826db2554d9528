"""Checkpoints of a run as files: written whole or not at all, and not trusted when read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import short
from ..serialization import flush_folder, open_file, write_file
from ..training.checkpoint import Checkpoint, HostArray, read_lines
from ..training.progress import is_count, is_number

KIND = "training checkpoint"
FOLDER = "checkpoints"
#: Of files of a step.
NAME = re.compile(r"step-(\d{1,18})\.safetensors")

#: The fields that are JSON, in the header; metrics, which grow, are among the data.
_SAID = ("step", "lr", "elapsed", "options", "source", "text", "init_from", "device", "updates", "events")


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint of a run folder.

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
    return path


def remove_earlier(folder: Path, step: int, keep: int) -> None:
    """Of the checkpoints up to that of ``step``, which can be read, leave the last ``keep``."""
    upto = [path for path in checkpoints(folder) if step_of(path) <= step]
    if upto and step_of(upto[-1]) == step:
        for path in upto[:-keep]:
            path.unlink(missing_ok=True)


def remove_later(folder: Path, step: int) -> None:
    """Remove the checkpoints after that of ``step``: of a course that was not gone on with."""
    for path in checkpoints(folder):
        if step_of(path) > step:
            path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint that :func:`write_checkpoint` wrote.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, is damaged, or none.
    """
    with open_file(path) as file:
        content = {"init_from": None} | file.about(KIND)  # the oldest runs began with weights of their own
        arrays = file.arrays()
    try:
        if not _is_description(content):
            raise ValueError
        kept: dict[str, list[HostArray]] = {name: [] for name in content["updates"]}
        for name, array in _part(arrays, "kept").items():  # 0.NAME, 1.NAME: in order
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

    def origin(value: Any) -> bool:
        return isinstance(value, dict) and set(value) == {"path", "characters"} and strings(list(value.values()))

    kinds: dict[str, Callable[[Any], bool]] = {
        "step": is_count,
        "lr": is_number,
        "elapsed": is_number,
        "options": lambda value: isinstance(value, dict),
        "source": lambda value: value is None or strings(value),
        "text": lambda value: isinstance(value, str),
        "init_from": lambda value: value is None or origin(value),
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
    return {name.removeprefix(f"{kind}."): arrays[name] for name in arrays if name.startswith(f"{kind}.")}


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
