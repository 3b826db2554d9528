"""Norms of all gradients of a network on CUDA, and gradients clipped by them, as one launch each (``norms.cu``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cuda_updates import ARGUMENT_BYTES, OPTIONS, TYPES
from .portable import Array

_THREADS = 512
_FOUR_EACH = 4 * _THREADS
#: A member's gradients are cut in about so many chunks at most: every block adds them all up.
_CHUNKS = 2048
#: Clipped gradients begin at multiples of so many entries, as arrays of their own would.
_UNIT = 128
#: Gradients of one launch: each takes 24 bytes of arguments, beside 64 others.
MOST = (ARGUMENT_BYTES - 64) // 24
_GRADIENTS = np.dtype(
    [
        ("array", np.uint64, MOST),
        ("size", np.int64, MOST),
        ("first", np.uint32, MOST),
        ("place", np.uint32, MOST),
        ("chunk", np.int64),
        ("count", np.int32),
        ("members", np.int32),
        ("chunks", np.int64),  # an int, and what makes it whole
    ]
)


class CudaNorms:
    """What is asked of all gradients at once; None where that is no matter of one launch.

    That is so for gradients of several dtypes, whose entries do not lie in order, or of which there are more than
    :data:`MOST`, and on devices and with compilers that cannot do it.
    """

    def __init__(self, cupy: Any, index: int, stream: Callable[[], Any]) -> None:
        self._cupy = cupy
        self._stream = stream
        attributes = cupy.cuda.Device(index).attributes
        self._blocks = int(attributes["MultiProcessorCount"])
        self._able = bool(attributes["CooperativeLaunch"])
        self._kernels: dict[str, dict[str, Any]] = {}
        self._words: dict[Any, Array] = {}

    def largest_entries(self, grads: Mapping[str, Array], members: int | None) -> dict[str, Array] | None:
        arrays = list(grads.values())
        if (kernel := self._kernel("largest_entries", arrays)) is None:
            return None
        found = self._cupy.empty((len(arrays), *_shape(members)), arrays[0].dtype)
        self._launch(kernel, 1, arrays, members, found)
        return {name: found[g, ...] for g, name in enumerate(grads)}

    def global_norm(self, grads: Mapping[str, Array], members: int | None) -> Array | None:
        arrays = [grads[name] for name in sorted(grads)]
        if (kernel := self._kernel("global_norm", arrays)) is None:
            return None
        found = self._cupy.empty(_shape(members), arrays[0].dtype)
        self._launch(kernel, _of_squares(found), arrays, members, found)
        return found

    def clipped(self, grads: Mapping[str, Array], max_norm: float, members: int | None) -> dict[str, Array] | None:
        names = sorted(grads)
        arrays = [grads[name] for name in names]
        if (kernel := self._kernel("clip", arrays)) is None:
            return None
        places = _places(arrays)
        whole = self._cupy.empty(places[-1] * _UNIT, arrays[0].dtype)
        self._launch(kernel, _of_squares(whole), arrays, members, whole, max_norm)
        # Arrays of their own for all that can be seen, of one piece of memory.
        step, place_of = _UNIT * whole.itemsize, dict(zip(names, places, strict=False))
        return {
            name: self._cupy.ndarray(a.shape, a.dtype, whole.data + place_of[name] * step) for name, a in grads.items()
        }

    def _kernel(self, name: str, arrays: Sequence[Array]) -> Any:
        """The kernel for these arrays, or None."""
        dtype = arrays[0].dtype
        if not self._able or len(arrays) > MOST or dtype.name not in TYPES:
            return None
        if not all(a.dtype == dtype and a.flags.c_contiguous for a in arrays):
            return None
        if dtype.name not in self._kernels:
            self._kernels[dtype.name] = self._compiled(dtype.name)
        return self._kernels[dtype.name].get(name)

    def _compiled(self, dtype: str) -> dict[str, Any]:
        """All kernels for a dtype; none where they cannot be compiled."""
        try:
            text = kernel_text(dtype)
            module = self._cupy.RawModule(code=text, options=OPTIONS, enable_cooperative_groups=True)
            return {name: module.get_function(name) for name in ("largest_entries", "global_norm", "clip")}
        except self._cupy.cuda.compiler.CompileException:
            return {}

    def _launch(
        self, kernel: Any, kept: int, arrays: Sequence[Array], members: int | None, out: Array, *more: float
    ) -> None:
        """``kept``: numbers of float64 that are kept of a chunk."""
        gradients, chunks = _gradients(arrays, members or 1)
        parts = self._cupy.empty(chunks * kept, np.float64)
        struct = gradients.view(np.dtype((np.void, gradients.nbytes)))[0]
        # Of two axes: CuPy would make a grid of one smaller where not all blocks can run at the same time.
        kernel((1, min(self._blocks, chunks)), (_THREADS,), (struct, parts, self._word(), out, *more))

    def _word(self) -> Array:
        """Where blocks wait for each other: a word for each stream, since kernels of two may run at the same time."""
        of = self._stream()
        if of not in self._words:
            self._words[of] = self._cupy.zeros(1, np.uint32)
        return self._words[of]


def _shape(members: int | None) -> tuple[int, ...]:
    return () if members is None else (members,)


def _of_squares(array: Array) -> int:
    """What is kept of a sum of squares: of float64 that of large and that of small entries too."""
    return 1 if array.dtype == np.float32 else 3


def _places(arrays: Sequence[Array]) -> list[int]:
    """Where each begins, in units, of arrays that lie one after the other; and where they end."""
    places = [0]
    for a in arrays:
        places.append(places[-1] - (-a.size // _UNIT))
    return places


def _gradients(arrays: Sequence[Array], members: int) -> tuple[np.ndarray[Any, Any], int]:
    """What a launch is told, and how many chunks there are of all members."""
    count = len(arrays)
    sizes = [a.size // members for a in arrays]
    # Of what a member has alone: its sums are the same beside others.
    chunk = _FOUR_EACH * max(1, math.ceil(sum(sizes) / (_FOUR_EACH * _CHUNKS)))
    ends = np.cumsum([-(-size // chunk) for size in sizes])
    table = np.zeros(1, _GRADIENTS)
    one = table[0]
    one["array"][:count] = [a.data.ptr for a in arrays]
    one["size"][:count] = sizes
    one["first"][1:count] = ends[:-1]
    one["place"][:count] = _places(arrays)[:-1]
    one["chunk"], one["count"], one["members"], one["chunks"] = chunk, count, members, ends[-1]
    return table, int(ends[-1]) * members


def kernel_text(dtype: str) -> str:
    """C++ of all three kernels for a dtype."""
    constants = {
        "T": TYPES[dtype],
        "DOUBLE": int(dtype == "float64"),
        "MOST": MOST,
        "THREADS": _THREADS,
        "UNIT": _UNIT,
    }
    defined = "".join(f"#define BPTT_{name} {value}\n" for name, value in constants.items())
    return defined + Path(__file__).with_name("norms.cu").read_text(encoding="utf-8")
