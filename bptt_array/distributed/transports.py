"""How one flat buffer gets from rank to rank: by MPI, from the host's memory or from a device's, or by NCCL."""

from __future__ import annotations

import platform
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend.portable import Array, Backend

#: The first that all ranks can is taken.
NAMES = ("nccl", "direct", "host")


class RanksError(ValueError):
    """Raised by all ranks together: what has to fit together does not."""


class Device(NamedTuple):
    """What a rank says of its CUDA device before anything is sent.

    Attributes
    ----------
    place : str
        The machine and the device on it.
    nccl : bool
        Whether CuPy has NCCL there, and all processes of the job take part.
    direct : bool
        Whether MPI says that it takes a device's memory.
    """

    place: str
    nccl: bool
    direct: bool


class Buffers:
    """Flat arrays of the host, used again when nobody has a view of them any more.

    New memory costs a multiple of the copies: the system has to find it, and MPI to make it known to the others (all in
    all 0.6 ms in place of 0.25 for 0.5 MB and two ranks of one machine).
    """

    def __init__(self) -> None:
        self._lent: dict[tuple[int, np.dtype[Any]], list[tuple[bytearray, weakref.ref[Any]]]] = {}

    def take(self, size: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """``(size,)``, with anything in it."""
        lent = self._lent.setdefault((size, dtype), [])
        free = next((k for k, (_, array) in enumerate(lent) if array() is None), None)
        memory = bytearray(max(1, size) * dtype.itemsize) if free is None else lent.pop(free)[0]
        # Its views, and views of those, keep this very array alive, since it is not the owner of its memory.
        array = np.frombuffer(memory, dtype, size)
        lent.append((memory, weakref.ref(array)))
        return array


class Transport(ABC):
    """One way to sum, and to broadcast, a flat array in place.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    backend : Backend
        Where the arrays are.
    """

    def __init__(self, comm: Any, backend: Backend) -> None:
        self.comm, self.backend = comm, backend

    @abstractmethod
    def sum_(self, flat: Array) -> None:
        """``flat <- sum over all ranks of flat``"""

    @abstractmethod
    def broadcast_(self, flat: Array, root: int) -> None:
        """``flat <- that of rank root``"""


class Host(Transport):
    """MPI on the host's memory; what is elsewhere goes through a buffer there, page-locked for CUDA."""

    def __init__(self, comm: Any, backend: Backend) -> None:
        super().__init__(comm, backend)
        self._buffers: dict[Any, np.ndarray[Any, Any]] = {}

    def sum_(self, flat: Array) -> None:
        from mpi4py import MPI

        self._on_host(flat, lambda host: self.comm.Allreduce(MPI.IN_PLACE, host))

    def broadcast_(self, flat: Array, root: int) -> None:
        self._on_host(flat, lambda host: self.comm.Bcast(host, root=root))

    def _on_host(self, flat: Array, send: Callable[[np.ndarray[Any, Any]], None]) -> None:
        if isinstance(flat, np.ndarray):
            send(flat)
            return
        key = str(flat.dtype), flat.shape[0]
        if key not in self._buffers:
            self._buffers[key] = self.backend.host_buffer(flat)
        host = self._buffers[key]
        # On CUDA the first copy waits for all that came before it on the stream: for what computes `flat`, and for the
        # last copy out of this buffer.
        self.backend.copy_to_host_(host, flat)
        send(host)
        self.backend.copy_from_host_(flat, host)


class Direct(Transport):
    """A CUDA-aware MPI on the device's memory."""

    def sum_(self, flat: Array) -> None:
        from mpi4py import MPI

        self.backend.synchronize()  # MPI knows of no stream: without it it would send what is not computed yet
        self.comm.Allreduce(MPI.IN_PLACE, flat)

    def broadcast_(self, flat: Array, root: int) -> None:
        self.backend.synchronize()
        self.comm.Bcast(flat, root=root)


class Nccl(Transport):
    """NCCL, in the order of the stream: nothing waits for it."""

    def __init__(self, comm: Any, backend: Backend) -> None:
        super().__init__(comm, backend)
        self._nccl = backend.nccl(comm.Get_size(), comm.Get_rank())

    def sum_(self, flat: Array) -> None:
        self._nccl.all_reduce(flat, flat, "sum")

    def broadcast_(self, flat: Array, root: int) -> None:
        self._nccl.broadcast(flat, root)


CLASSES: dict[str, type[Transport]] = {"nccl": Nccl, "direct": Direct, "host": Host}


def device_of(backend: Backend, comm: Any) -> Device | None:
    """What there is to say of this rank's CUDA device; None where it has none."""
    found = backend.cuda_device()
    if found is None:
        return None
    from mpi4py import MPI

    world = MPI.COMM_WORLD.Get_size() == comm.Get_size() and MPI.COMM_WORLD.Get_rank() == comm.Get_rank()
    return Device(f"{platform.node()} {found.place}", found.has_nccl and world, _takes_device_memory(comm))


def _takes_device_memory(comm: Any) -> bool:
    """Whether MPI says so, as MPI 4.1 does; MPIs that take it and do not say so need ``transport="direct"``."""
    kinds = (comm.Get_info().get("mpi_memory_alloc_kinds") or "").split(",")
    return any(kind.partition(":")[0] == "cuda" for kind in kinds)


def choose(asked: str, devices: Sequence[Device | None]) -> str:
    """One of :data:`NAMES` for all ranks, from what was asked for and what each says of its device.

    What is on no CUDA device goes by the host, whatever was asked for.

    Raises
    ------
    RanksError
        If what was asked for cannot be.
    """
    for_all = [device for device in devices if device is not None]
    if not for_all:
        return "host"
    reasons = {}
    if len(for_all) < len(devices):
        reasons["nccl"] = reasons["direct"] = f"rank {list(devices).index(None)} has its arrays on no CUDA device"
    else:
        places = [device.place for device in for_all]
        shared = next((place for place in places if places.count(place) > 1), None)
        if shared is not None:
            reasons["nccl"] = f"several ranks are on {shared}, and NCCL needs one device for each"
        if not all(device.nccl for device in for_all):
            reasons["nccl"] = "CuPy finds no NCCL on all ranks, or not all processes of the job take part"
        if asked == "auto" and not all(device.direct for device in for_all):
            reasons["direct"] = "MPI does not say that it takes a device's memory"
    if asked in reasons:
        raise RanksError(f"transport={asked!r}: {reasons[asked]}; use 'auto' or 'host'")
    return next(name for name in (NAMES if asked == "auto" else (asked,)) if name not in reasons)
