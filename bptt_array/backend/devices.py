"""From the ``device`` argument to a :class:`~bptt_array.Backend`, and from an array to the one it lives on."""

from __future__ import annotations

import copyreg
import importlib
import importlib.util
from functools import cache
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np

from ..checks import said
from .cpu import NumpyBackend
from .cuda import CupyBackend, cuda_device_count, cupy_import_error
from .portable import Array, Backend

_INSTALL_CUPY = "pip install 'cupy-cuda12x[ctk]' (or cupy-cuda13x[ctk]), or use device='cpu'"


@cache
def _numpy_backend() -> NumpyBackend:
    return NumpyBackend()


@cache
def _cupy_backend(index: int) -> CupyBackend:
    return CupyBackend(index)


#: The backends of arrays met so far: to ask a namespace what it can do takes longer than an update.
_met: list[Backend] = []


def _portable_backend(xp: Any, device: Any) -> Backend:
    for backend in _met:
        if backend.xp is xp and backend.device == device:
            return backend
    _met.append(Backend(xp, device))
    return _met[-1]


def resolve(device: str | Backend) -> Backend:
    """The backend that a ``device`` argument names.

    ``"cpu"`` is NumPy; ``"cuda"`` or ``"cuda:1"`` is CuPy on that device; ``"auto"`` is the first CUDA device
    where there is one and the CPU otherwise; a :class:`Backend` is itself.

    Raises
    ------
    ValueError
        If the name is unknown, CuPy is not installed, or there is no such CUDA device.
    TypeError
        If ``device`` is neither a string nor a Backend.
    """
    if isinstance(device, Backend):
        return device
    if not isinstance(device, str):
        raise TypeError(
            f"device={said(device)} is a {type(device).__name__}; expected 'cpu', 'cuda', 'cuda:1', 'auto' "
            "or a bptt_array.Backend"
        )
    if device == "auto":
        device = "cuda" if cuda_device_count() else "cpu"
    if device == "cpu":
        return _numpy_backend()
    kind, colon, index = device.partition(":")
    if kind != "cuda" or (colon and not (index.isascii() and index.isdigit())):
        raise ValueError(f"device={said(device)} is unknown; expected 'cpu', 'cuda', 'cuda:1', … or 'auto'")
    if importlib.util.find_spec("cupy") is None:
        raise ValueError(f"device={said(device)} needs CuPy, which is not installed: {_INSTALL_CUPY}")
    if problem := cupy_import_error():
        raise ValueError(f"device={said(device)}: the installed CuPy cannot be imported ({problem}): {_INSTALL_CUPY}")
    count = cuda_device_count()
    if count == 0:
        raise ValueError(
            f"device={said(device)}: CuPy finds no CUDA device; check that nvidia-smi lists a GPU and that the driver "
            "is recent enough for the installed CuPy, or use device='cpu'"
        )
    if int(index or 0) >= count:
        raise ValueError(
            f"device={said(device)} does not exist: CuPy finds {count} of them, cuda:0 to cuda:{count - 1}"
        )
    return _cupy_backend(int(index or 0))


def _reduced(backend: Any) -> tuple[Any, ...]:
    """How a backend of a ``device`` argument is pickled: by its name, so that there is one of each in every process."""
    own = _numpy_backend() if isinstance(backend, NumpyBackend) else _cupy_backend(int(backend.name[5:]))
    return (resolve, (backend.name,)) if backend is own else backend.__reduce__()


for _kind in (NumpyBackend, CupyBackend):
    copyreg.pickle(_kind, _reduced)


def packed(array: Array) -> tuple[Backend, np.ndarray[Any, Any]]:
    """An array as it can be pickled, of any namespace and device: where it is, and its numbers on the host."""
    backend = backend_of(array)
    return backend, backend.to_host(array)


def unpacked(backend: Backend, host: np.ndarray[Any, Any]) -> Array:
    """What was :func:`packed`, where it was."""
    with backend.active():
        return backend.from_host(host)


def backend_of(array: Array) -> Backend:
    """The backend on which an array lives."""
    if array_api_compat.is_numpy_array(array):
        return _numpy_backend()
    if array_api_compat.is_cupy_array(array):
        return _cupy_backend(array.device.id)
    return _portable_backend(array_api_compat.array_namespace(array), array_api_compat.device(array))
