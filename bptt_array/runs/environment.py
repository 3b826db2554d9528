"""What a run runs on: versions, system, devices."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache
from typing import Any

from .._version import __version__

#: Packages whose versions matter; CuPy's own name depends on the CUDA version.
PACKAGES = ("numpy", "array-api-compat", "safetensors", "tqdm", "matplotlib")


def versions() -> dict[str, str]:
    """Versions by name, of this package first."""
    python = f"{platform.python_version()} on {platform.platform()}"
    names = (*PACKAGES, *_cupy_distributions())
    return {"bptt_array": __version__, "Python": python, **{name: version(name) for name in names}}


def version(name: str) -> str:
    """Of an installed distribution, or ``"not installed"``."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@cache  # what is installed stays so, and to look takes as long as fifty updates of a small network
def _cupy_distributions() -> list[str]:
    names: Any = importlib.metadata.packages_distributions().get("cupy", [])
    return sorted(set(names))
