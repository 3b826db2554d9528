"""Models as safetensors files: weights and configuration, no pickle, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

FORMAT = "bptt_array.RNN"


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that at any moment the old file or the new one is there, complete."""
    path = Path(os.path.realpath(path))  # a link stays a link: what it points to is replaced
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: the folder does not exist; make it first")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's file is private; a written file is not
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_model(
    path: str | os.PathLike[str],
    params: Mapping[str, np.ndarray[Any, Any]],
    config: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> None:
    """Write parameters (on the host), the configuration (JSON) and further strings to one file."""
    for key, value in metadata.items():
        if key in ("format", "config") or not (isinstance(key, str) and isinstance(value, str)):
            raise ValueError(
                f"metadata[{key!r}]={value!r}; expected a string under a string other than 'format' and 'config'"
            )
    header = {**metadata, "format": FORMAT, "config": json.dumps(config)}
    contiguous = {name: np.ascontiguousarray(value) for name, value in params.items()}
    write_atomically(path, save(contiguous, metadata=header))


def read_model(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any], dict[str, str]]:
    """Parameters, configuration and further strings of a file that :func:`write_model` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is cut short, no safetensors file, or none of ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path={str(path)!r}: no such file")
    with open(path, "rb"):  # what the system has against reading it, in its own words
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, TypeError) as error:  # TypeError: a dtype that NumPy has not
        raise ValueError(f"path={str(path)!r} is damaged or no safetensors file: {error}") from None
    if metadata.pop("format", None) != FORMAT:
        raise ValueError(f"path={str(path)!r} was not written by bptt_array (no format={FORMAT!r} in its header)")
    try:
        config = dict(json.loads(metadata.pop("config")).items())
    except (AttributeError, KeyError, RecursionError, ValueError):
        raise ValueError(f"path={str(path)!r} has no readable configuration in its header") from None
    return params, config, metadata
