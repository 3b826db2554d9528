"""In how many chunks time runs backward in parallel (``equations/parallel.py``), and whether that pays on a device.

The number of chunks follows from the number of steps. Whether they pay against one loop is a cost model of four times
that are measured once per device and shape, for ``backward="auto"``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from ..backend.portable import Backend
from ..equations.parallel import backward_parallel_
from ..schedules.chunks import best_chunks, calls


@dataclass(frozen=True)
class Timings:
    """What backward passes cost on one device for rows ``(..., N, H)`` of one shape and dtype, in seconds.

    Attributes
    ----------
    step : float
        A step of the loop.
    start : float
        Once a segment in chunks, whatever its length.
    call : float
        A call that the next one waits for, however little it does.
    work : float
        A step of one chunk, beside these calls: the products of H + 2 rows a sequence.
    """

    step: float
    start: float
    call: float
    work: float

    def in_chunks(self, S: int, C: int) -> float:
        """Seconds for S steps in C chunks."""
        length, rest = S // C, S % C
        return self.start + self.call * calls(length * C, C) + self.work * length * (C - 1) + self.step * rest

    def chunks(self, S: int) -> int:
        """:func:`best_chunks` of S steps, or 1, the loop, where they do not save a tenth of its time."""
        C = best_chunks(S)
        return C if C > 1 and self.in_chunks(S, C) < 0.9 * self.step * S else 1


#: A step of more multiply-adds than this, all H + 1 rows together, takes longer than a loop's on any device today;
#: and fewer steps than this take no time worth measuring anything for.
_MOST, _FEWEST = 1 << 30, 100
#: One product alone that takes so many seconds is bound by its arithmetic.
_LONG = 2e-3


def choose(backend: Backend, S: int, row_shape: tuple[int, ...], dtype: Any) -> int:
    """In how many chunks S steps of rows ``(..., N, H)`` take the least time on this device; 1 is the loop.

    What decides it is measured when a shape (N rounded up to a power of two) and dtype are first asked about, in well
    under 0.2 s on a CPU, and kept with the backend. Chunks and loop round differently, so results are the same from
    run to run only where this is: give a number of chunks instead where every bit matters.
    """
    *lead, N, H = row_shape
    rounded = (*lead, 1 << (N - 1).bit_length() if N else 0, H)
    if S < _FEWEST or not 0 < math.prod(rounded) * H * (H + 1) <= _MOST:
        return 1
    known: dict[Any, Timings] = backend.measured
    key = (rounded, str(dtype))
    if key not in known:
        known[key] = measure(backend, rounded, dtype)
    return known[key].chunks(S)


def measure(backend: Backend, row_shape: tuple[int, ...], dtype: Any) -> Timings:
    """Time a few short segments of zeros, with ``W_hh`` stacked along all axes of ``(..., N, H)`` before N."""
    H = row_shape[-1]
    with backend.active():
        W = backend.zeros((*row_shape[:-2], H, H), dtype)

        def seconds(length: int, C: int) -> float:
            dstates, dz = (backend.zeros((length * C + more, *row_shape), dtype) for more in (1, 0))

            def once() -> float:
                begin = time.perf_counter()
                backward_parallel_(backend, W, dstates, dz, C)
                backend.to_host(backend.xp.reshape(dstates, (-1,))[:1])  # waits for the device
                return time.perf_counter() - begin

            once()  # kernels are compiled, libraries loaded
            times = [once()]
            while len(times) < 5 and sum(times) < 5 * _LONG:
                times.append(once())
            return min(times)

        step, shortest = seconds(64, 1) / 64, seconds(2, 2)
        if shortest > _LONG:
            return Timings(step, start=0.0, call=0.0, work=shortest)
        # Each differs from the one before in one way: chunks longer by 16 steps, then more of them.
        C = min(64, 4 + (1 << 25) // (math.prod(row_shape) * H * (H + 1)))
        longer, more = seconds(18, 2) - shortest, seconds(18, C)
        by_chunk = (more - longer - shortest) / (C - 2)  # 2 calls and 18 steps of work; longer: 80 calls and 16
        work = max(0.0, (by_chunk - longer / 40) / (18 - 16 / 40))
        call = max(0.0, (longer - 16 * work) / 80)
        return Timings(step, max(0.0, shortest - 14 * call - 2 * work), call, work)
