"""Checkpoints of a run as files: written whole or not at all, and not trusted when read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checks import short
from ..serialization import flush_folder, open_file, write_file
from ..training.checkpoint import Checkpoint, FitCheckpoint, HostArray, Moment, read_lines
from ..training.history import COLUMNS
from ..training.progress import is_count, is_number

KIND = "training checkpoint"
FOLDER = "checkpoints"
#: Of files of a step.
NAME = re.compile(r"step-(\d{1,18})\.safetensors")


def write_checkpoint(folder: Path, checkpoint: Moment) -> Path:
    """Write a checkpoint of a run folder, after the one to which a divergence goes back from there, if that is missing.

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
    if checkpoint.earlier is not None and not (here / _name(checkpoint.goes_back_to)).exists():
        write_checkpoint(folder, checkpoint.earlier)
    form = _FORMS[type(checkpoint)]
    arrays = {
        **{name: np.frombuffer(getattr(checkpoint, name), np.uint8) for name in form.bytes},
        **{name: getattr(checkpoint, name) for name in form.arrays},
        **{f"kept.{k}.{name}": value for name, kept in checkpoint.kept.items() for k, value in enumerate(kept)},
        **{f"{part}.{name}": value for part in form.parts for name, value in getattr(checkpoint, part).items()},
    }
    path = here / _name(checkpoint.step)
    write_file(path, form.kind, arrays, {name: getattr(checkpoint, name) for name in form.said})
    return path


def _name(step: int | None) -> str:
    return f"step-{step:08}.safetensors"


def remove_earlier(folder: Path, step: int, keep: int, made: type[Moment] = Checkpoint) -> None:
    """Of the checkpoints up to that of ``step``, which can be read, leave the last ``keep``.

    And those to which a divergence goes back from one of them.
    """
    upto = [path for path in checkpoints(folder) if step_of(path) <= step]
    if upto and step_of(upto[-1]) == step:
        needed = {_goes_back_to(path, _FORMS[made]) for path in upto[-keep:]}
        for path in upto[:-keep]:
            if step_of(path) not in needed:
                path.unlink(missing_ok=True)


def _goes_back_to(path: Path, form: _Form) -> Any:
    """The step to which a divergence goes back from this checkpoint, if that can be read; None: it is this one."""
    try:
        with open_file(path) as file:
            return (form.since | file.about(form.kind)).get("goes_back_to")
    except (OSError, ValueError):  # which is said where it is to be gone on from
        return None


def remove_later(folder: Path, step: int) -> None:
    """Remove the checkpoints after that of ``step``: of a course that was not gone on with."""
    for path in checkpoints(folder):
        if step_of(path) > step:
            path.unlink(missing_ok=True)


def read_checkpoint(path: Path, made: type[Moment] = Checkpoint) -> Any:
    """A checkpoint that :func:`write_checkpoint` wrote, of this class.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, is damaged, or none.
    """
    form = _FORMS[made]
    with open_file(path) as file:
        content = form.since | file.about(form.kind)
        arrays = file.arrays()
    try:
        if set(content) != set(form.said) or not all(allowed(content[name]) for name, allowed in form.said.items()):
            raise ValueError
        kept: dict[str, list[HostArray]] = {name: [] for name in content["updates"]}
        for name, array in _part(arrays, "kept").items():  # 0.NAME, 1.NAME: in order
            kept[name.partition(".")[2]].append(array)
        of_data: dict[str, Any] = {name: arrays[name].tobytes() for name in form.bytes}
        of_data |= {name: arrays[name] for name in form.arrays}
        of_data |= {part: _part(arrays, part) for part in form.parts}
        found = made(**content, **of_data, kept=kept)
        if not form.fits(found) or not _are_numbers(arrays, form):
            raise ValueError
    except (KeyError, RecursionError, ValueError):
        raise ValueError(f"path={str(path)!r} does not hold what a checkpoint does") from None
    return found


def _strings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _events(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(event, dict)
        and is_count(event.get("step"))
        and isinstance(event.get("why"), str)
        and is_count(event.get("back_to"))
        and (event.get("lr") is None or is_number(event["lr"]))
        for event in values
    )


def _origin(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"path", "characters"} and _strings(list(value.values()))


class _Form(NamedTuple):
    """How checkpoints of a class are written.

    ``said``: fields that are JSON, in the header, and what is allowed there; all else is among the data: ``bytes``,
    ``arrays``, ``parts``, which are dictionaries of arrays, and ``kept``. ``since``: what the oldest ones did not say.
    """

    kind: str
    said: dict[str, Callable[[Any], bool]]
    bytes: tuple[str, ...]
    arrays: tuple[str, ...]
    parts: tuple[str, ...]
    fits: Callable[[Any], bool]
    since: dict[str, Any] = {}  # noqa: RUF012 (never changed)


_OF_ALL: dict[str, Callable[[Any], bool]] = {
    "step": is_count,
    "lr": is_number,
    "device": lambda value: isinstance(value, str),
    "updates": lambda value: isinstance(value, dict) and all(map(is_count, value.values())),
    "events": _events,
    "goes_back_to": lambda value: value is None or is_count(value),
}

_FORMS: dict[type[Moment], _Form] = {
    Checkpoint: _Form(
        KIND,
        {
            **_OF_ALL,
            "elapsed": is_number,
            "options": lambda value: isinstance(value, dict),
            "source": lambda value: value is None or _strings(value),
            "text": lambda value: isinstance(value, str),
            "init_from": lambda value: value is None or _origin(value),
        },
        bytes=("metrics",),  # which grow
        arrays=("seconds", "losses"),
        parts=("params", "state"),
        fits=lambda found: found.seconds.shape == (len(read_lines(found.metrics)),),
        since={"init_from": None, "goes_back_to": None},  # they began with weights of their own
    ),
    FitCheckpoint: _Form(
        "checkpoint of fit",
        {
            **_OF_ALL,
            "run": lambda value: isinstance(value, dict) and _strings(list(value.values())),
            "epoch": is_count,
            "done": is_count,
            "waited": is_count,
            "schedule": lambda value: value is None or isinstance(value, dict),
        },
        bytes=(),
        arrays=("losses", "best_epoch", "best_validation"),
        parts=("params", "best", "history"),
        fits=lambda found: set(found.history) == set(COLUMNS),
        since={"goes_back_to": None},
    ),
}


def _are_numbers(arrays: dict[str, HostArray], form: _Form) -> bool:
    """Whether everything is of a known name, and finite."""
    known, parts = (*form.bytes, *form.arrays), tuple(f"{part}." for part in (*form.parts, "kept"))
    named = all(name in known or name.startswith(parts) for name in arrays)
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


def _earlier(folder: Path, found: Moment, say: Callable[[str], None]) -> Any:
    """The checkpoint to which a divergence goes back from this one, if it can be read; else it is this one."""
    path = folder / FOLDER / _name(found.goes_back_to)
    try:
        return _read_of_step(path, type(found))
    except (OSError, ValueError) as error:
        say(f"{error}; a divergence goes back to step {found.step}")
        return None


def _read_of_step(path: Path, made: type[Moment]) -> Any:
    """A checkpoint that is of the step in its name."""
    found = read_checkpoint(path, made)
    if found.step != step_of(path):
        raise ValueError(f"path={str(path)!r} is of step {short(found.step)}")
    return found


def newest_checkpoint(
    folder: Path,
    say: Callable[[str], None],
    made: type[Moment] = Checkpoint,
) -> Any:
    """The last checkpoint of a run folder that can be read; of each that cannot, ``say`` gets a word.

    Raises
    ------
    ValueError
        If there is none.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            found = _read_of_step(path, made)
        except OSError as error:
            say(f"{path}: {error.strerror or error}; trying the checkpoint before it")
            continue
        except ValueError as error:
            say(f"{error}; trying the checkpoint before it")
            continue
        return found if found.goes_back_to is None else replace(found, earlier=_earlier(folder, found, say))
    if paths:
        raise ValueError(f"{folder} has no checkpoint that can be read, of {len(paths)}: the run cannot be resumed")
    raise ValueError(
        f"{folder} has no checkpoint; expected a run folder that `train` wrote (if it did, and was killed before its "
        "first one, remove the folder and train again)"
    )
