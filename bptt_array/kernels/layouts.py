"""How a segment's kernel is laid out over a device: what each thread has of the weights, rows and sums.

The best of the layouts that fit is found by a model of what bounds a step: multiply-adds, instructions, shared memory,
latency, the exchange between blocks. All that it knows of a device are numbers that the device gives; no name is asked.
The constants of the model were read in compiled code and data sheets. No GPU has confirmed them yet, and nothing but
speed depends on them: what does not fit is found by the compiler, see :mod:`bptt_array.kernels.segments`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from .text import Size

#: Blocks that may share a group of rows; threads that may share a sum; units that a thread may have.
BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
SHARING = (2, 4, 8, 16, 32)
UNITS = (1, 2, 3, 4, 6, 8, 12, 16)
MOST_THREADS = 512
#: Blocks along the second and third axes of a grid, at most.
MOST_BLOCKS = 65535
#: Steps whose numbers are loaded ahead, at most.
PREFETCH = 4
#: Multiply-adds of a thread in the unrolled loop, at most: 16 bytes an instruction, and code has to stay in its cache.
UNROLLED = 2400
#: Registers for addresses and counters, and how many more where blocks share rows. Of 469 layouts for six architectures
#: compilers took 21 registers less than estimated in the median, with OB > 1 4 less; 1 in 20 took 8 (14) more. Of 157
#: others one did not fit at first, and was planned again with fewer.
ADDRESSES, OF_BARRIER = 42, 8
#: What a launch costs the host, in microseconds: two of them are a step of the loops.
LAUNCH = 12.5


@dataclass(frozen=True)
class Device:
    """What bounds a kernel.

    Attributes
    ----------
    multiprocessors : int
    shared : int
        Bytes that a block may have, at most.
    registers : int
        Of a multiprocessor, 32 bits each.
    lanes, wide_lanes : float
        Multiply-adds per clock and multiprocessor, of float32 and of float64.
    GHz : float
    cooperative : bool
        Whether all blocks of a launch can be there at the same time and wait for each other.
    exchange : int
        Clocks from the last write of a row to the first read of it by another block: an estimate.
    """

    multiprocessors: int
    shared: int
    registers: int = 65536
    lanes: float = 128
    wide_lanes: float = 64
    GHz: float = 1.7
    cooperative: bool = True
    exchange: int = 1500

    @classmethod
    def of(cls, attributes: Mapping[str, int], capability: tuple[int, int]) -> Device:
        """From what CUDA says of a device; how many lanes it has follows from its compute capability alone."""
        lanes = 64 if capability < (8, 6) else 128
        # 0 where a device does not say
        ratio = attributes.get("SingleToDoublePrecisionPerfRatio") or (
            2 if capability in ((8, 0), (9, 0), (10, 0)) else 32
        )
        return cls(
            multiprocessors=attributes["MultiProcessorCount"],
            shared=attributes["MaxSharedMemoryPerBlockOptin"],
            registers=attributes["MaxRegistersPerMultiprocessor"],
            lanes=lanes,
            wide_lanes=lanes / ratio,
            GHz=attributes.get("ClockRate", 1_500_000) / 1e6,
            cooperative=bool(attributes["CooperativeLaunch"]),
        )


#: Where the number of threads that share a sum is chosen, for all devices: how a sum is rounded depends on it.
REFERENCE = Device(multiprocessors=132, shared=232448)


class Layout(NamedTuple):
    """One layout; see ``segment.cu`` for the words. ``clocks`` are those of a step, ``registers`` those of a thread."""

    OB: int
    NB: int
    UT: int
    KS: int
    KR: int
    TH: int
    PF: int
    staged: bool
    shared: int
    registers: int
    clocks: float
    bounds: Mapping[str, float]

    @property
    def constants(self) -> dict[str, int]:
        names = ("OB", "NB", "UT", "KS", "KR", "TH", "PF")
        return {name: getattr(self, name) for name in names} | {"STAGED": int(self.staged)}

    def grid(self, N: int, E: int) -> tuple[int, int, int]:
        return self.OB, math.ceil(N / self.NB), E


class Work(NamedTuple):
    """A segment one way: width, sequences, members times directions, bytes of a number."""

    size: Size
    H: int
    N: int
    E: int
    itemsize: int
    backward: bool


@lru_cache(maxsize=1024)  # asked for in every pass
def best(work: Work, device: Device, *, room: int = 0) -> Layout | None:
    """The layout with the fewest clocks, or None where the weights do not fit; ``room``: registers to be left free."""
    KS = sharing(work.size, work.H, work.itemsize, backward=work.backward)
    if KS is None:
        return None
    return min(_all(work, device, (KS,), room), key=lambda layout: layout.clocks, default=None)


@lru_cache(maxsize=256)
def sharing(size: Size, H: int, itemsize: int, *, backward: bool) -> int | None:
    """How many threads share a sum: it follows from cell, width and dtype alone, so that neither N nor the device
    changes a bit of a result.
    """
    for N in (32, 1):
        work = Work(size, H, N, 1, itemsize, backward)
        found = min(_all(work, REFERENCE, SHARING, 0), key=lambda layout: layout.clocks, default=None)
        if found is not None:
            return found.KS
    return None


def microseconds(layout: Layout, device: Device) -> float:
    """Of a step, by the model."""
    return layout.clocks / device.GHz / 1e3


def of_loops(work: Work, device: Device) -> float:
    """Microseconds of a step of the loops: two launches, or the product at 70 % of what the device can do."""
    lanes = device.lanes if work.itemsize == 4 else device.wide_lanes
    multiply_adds = work.E * work.N * work.size.gates * work.H**2
    return max(2 * LAUNCH, multiply_adds / (device.multiprocessors * lanes * 0.7) / device.GHz / 1e3 + 4)


def _all(work: Work, device: Device, shares: tuple[int, ...], room: int) -> Iterator[Layout]:
    for OB in BLOCKS:
        if work.H < OB or (OB > 1 and not device.cooperative):
            return
        groups = device.multiprocessors // (OB * work.E)
        if OB > 1 and not groups:  # blocks that wait for each other have to be there together
            return
        # As many groups as there is room for, or more of fewer sequences, some after the others.
        rows = {math.ceil(work.N / max(1, groups))} | ({n for n in (1, 2, 4, 8) if n <= work.N} if OB == 1 else set())
        for NB in sorted(rows):
            for KS in shares:
                for UT in UNITS:
                    layout = _layout(work, device, OB, NB, KS, UT, room)
                    if layout is not None:
                        yield layout


def _layout(work: Work, device: Device, OB: int, NB: int, KS: int, UT: int, room: int) -> Layout | None:
    """The layout with these numbers, if its registers and shared memory are there."""
    size, H, N, E, itemsize, backward = work
    gates = 1 if backward else size.gates
    K, VEC, word = (size.gates * H if backward else H), 16 // itemsize, itemsize // 4
    operations, reads = size.operations[backward], size.reads[backward]
    UB, R = math.ceil(H / OB), UT * gates
    TH = math.ceil(math.ceil(UB / UT) * KS / 32) * 32
    if TH > MOST_THREADS or UT > UB or max(math.ceil(N / NB), E) > MOST_BLOCKS:
        return None
    KC, own = math.ceil(K / (VEC * KS)), math.ceil(NB * UT / KS)
    # Registers belong to the four schedulers of a multiprocessor: warps count by fours.
    limit = min(255, device.registers // (math.ceil(TH / 128) * 128) // 8 * 8)
    PF = PREFETCH
    while True:
        numbers = NB * R + R * VEC + 8 + PF * own * reads + own * 5  # sums, weights at hand, loaded ahead, states
        used = word * numbers + ADDRESSES + (OF_BARRIER if OB > 1 else 0) + operations + room
        if PF == 1 or (used < limit * 2 // 3 and PF * NB * R * KC * VEC <= UNROLLED):
            break
        PF //= 2
    if used > limit - 8:
        return None
    KR = max(0, min(KC, (limit - used) // (R * VEC * word)))
    rows = (2 if OB == 1 else 1) * NB * KC * VEC * KS * itemsize
    tile = KS * VEC * (UB + 1) * itemsize if backward else 0
    weights = (KC - KR) * R * TH * 16
    staged = backward and max(rows, tile) + 16 + weights <= device.shared
    shared = (max(rows, tile) + 16 if staged else rows) + weights
    if shared > device.shared:
        return None
    bounds = _bounds(work, device, OB, NB, KS, UT, KR, TH)
    blocks = OB * math.ceil(N / NB) * E
    waves = math.ceil(blocks / device.multiprocessors) if OB == 1 else 1
    if OB > 1 and blocks > device.multiprocessors:
        return None
    at_once = max(bounds["multiply-adds"], bounds["instructions"], bounds["shared memory"])
    clocks = waves * (at_once + bounds["latency"] + bounds["exchange"])
    registers = used + KR * R * VEC * word
    return Layout(OB, NB, UT, KS, KR, TH, PF, staged, shared, registers, clocks, bounds)


def _bounds(work: Work, device: Device, OB: int, NB: int, KS: int, UT: int, KR: int, TH: int) -> dict[str, float]:
    """Clocks of a step by what takes them; of the first three the longest counts."""
    gates = 1 if work.backward else work.size.gates
    K = work.size.gates * work.H if work.backward else work.H
    VEC, word = 16 // work.itemsize, work.itemsize // 4
    lanes = device.lanes if word == 1 else device.wide_lanes
    R, KC, warps = UT * gates, math.ceil(K / (VEC * KS)), TH // 32
    own, exchanges, operations = math.ceil(NB * UT / KS), KS.bit_length() - 1, work.size.operations[work.backward]
    products, shuffles, items = NB * R * KC * VEC, 0, NB * UT
    for _ in range(exchanges):
        items = (items + 1) // 2
        shuffles += items * gates * word
    from_shared = (KC - KR) * R
    scheduled = math.ceil(warps / 4)
    return {
        "multiply-adds": max(products * scheduled * 4 * 32 / lanes, 4 * KC * VEC),
        "instructions": scheduled * (products + NB * KC + from_shared + shuffles + (40 + 2 * operations) * own),
        "shared memory": warps * (NB * KC * max(1, KS / 8) + from_shared * 4 + shuffles),
        "latency": 100 + 25 * exchanges + (80 + 5 * operations) // (3 if work.backward else 1),
        "exchange": device.exchange + NB * K * work.itemsize / 32 if OB > 1 else 0,
    }
