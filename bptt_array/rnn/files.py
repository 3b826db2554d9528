"""A network as a file: weights, the configuration that builds one of their shapes, and what the caller has to say."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checks import said, short
from ..equations.cell import Cell
from ..serialization import Entry, File, open_file, write_file
from .architecture import Architecture
from .cells import CELLS, check_cell

KIND = "model"
#: So deep may lists and dictionaries of metadata stand in each other.
DEEPEST = 32
#: What models said of themselves before they had a checksum.
_OLD_FORMAT = "bptt_array.RNN"


def write_model(
    path: str | os.PathLike[str],
    params: Mapping[str, np.ndarray[Any, Any]],
    config: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> None:
    """Write parameters (on the host), the configuration and further metadata (JSON) to one file."""
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata is a {type(metadata).__name__}; expected a dictionary, {{'mean': 43.8}}")
    write_file(path, KIND, params, {"config": dict(config), "metadata": _as_json("metadata", metadata)})


def _as_json(name: str, value: Any, depth: int = 0) -> Any:
    """A value as JSON gives it back: NumPy's numbers as Python's, tuples as lists."""
    if isinstance(value, np.generic) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        value = value.item()
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            str(value)
        except ValueError:
            raise ValueError(f"{name} is {said(value)}; expected fewer digits, or its repr in hex: hex(…)") from None
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if depth == DEEPEST and isinstance(value, (Mapping, list, tuple)):
        raise ValueError(f"{DEEPEST} lists and dictionaries stand in each other at {name[:40]}…; expected fewer")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{name} has the key {said(key)}, a {type(key).__name__}; expected strings as keys")
        return {key: _as_json(f"{name}[{key!r}]", each, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(f"{name}[{k}]", each, depth + 1) for k, each in enumerate(value)]
    raise TypeError(
        f"{name}={said(value)} is a {type(value).__name__}; expected what JSON holds: strings, numbers, True, False, "
        "None, lists and dictionaries (of an array its .tolist(), of other objects a str)"
    )


def read_model(
    path: str | os.PathLike[str], cell: Cell | None = None
) -> tuple[Architecture, dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """What network a file holds, its parameters, and the metadata.

    The parameters that the configuration needs are compared with those that the header lists before any is read.

    Raises
    ------
    FileNotFoundError, ValueError
        As :meth:`bptt_array.RNN.load_with_metadata` does.
    """
    cell = None if cell is None else check_cell(cell)
    with open_file(path) as file:
        config, metadata = _described(file)
        if cell is not None:
            if config.get("cell") != cell.name:
                written = short(config.get("cell"))
                raise ValueError(f"cell={cell.name!r}, but path={str(path)!r} was written with cell={written}")
            config["cell"] = cell
        elif isinstance(config.get("cell"), str) and config["cell"] not in CELLS:
            raise ValueError(
                f"path={str(path)!r} was written with the cell {short(config['cell'])}, which is not in the library; "
                "give it: cell=…"
            )
        architecture = _architecture(file, config)
        _check_entries(file, architecture)
        return architecture, file.arrays(), metadata


def _described(file: File) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the caller's metadata."""
    about = _old_description(file.strings) if file.strings.get("format") == _OLD_FORMAT else file.about(KIND)
    config, metadata = about.get("config"), about.get("metadata")
    if not isinstance(config, dict) or not isinstance(metadata, dict):
        raise ValueError(f"path={str(file.path)!r} has no readable configuration in its header")
    try:
        return config, _as_json("metadata", metadata)
    except ValueError as error:
        raise ValueError(f"path={str(file.path)!r} has unusable metadata: {short(str(error))}") from None


def _old_description(strings: Mapping[str, str]) -> dict[str, Any]:
    try:
        config = json.loads(strings["config"])
    except (KeyError, RecursionError, ValueError):
        return {}
    return {"config": config, "metadata": {k: v for k, v in strings.items() if k not in ("format", "config")}}


def _architecture(file: File, config: dict[str, Any]) -> Architecture:
    try:
        architecture = Architecture.checked(**config)
        if architecture.num_layers > len(file.entries):  # before their names are listed
            raise ValueError(f"num_layers={architecture.num_layers}, but there are {len(file.entries)} parameters")
    except (TypeError, ValueError) as error:
        why = str(error)
        why = why if len(why) <= 300 else f"{why[:300]}…"
        raise ValueError(f"path={str(file.path)!r} has an unusable configuration: {why}") from None
    return architecture


def _check_entries(file: File, architecture: Architecture) -> None:
    expected = {name: Entry(architecture.dtype, shape) for name, shape in architecture.shapes.items()}
    for name in sorted(set(expected) | set(file.entries)):
        there, needed = file.entries.get(name), expected.get(name)
        if there != needed:
            holds = f"no {short(name)}" if there is None else f"{short(name)} as {there}"
            needs = "nothing of that name" if needed is None else str(needed)
            raise ValueError(f"path={str(file.path)!r} holds {holds}; its configuration needs {needs}")
