"""A command run by the ranks of a job: who speaks and writes, and what becomes of all where one of them fails.

Rank 0 reads files, writes the run folder and prints. What it alone does, and what each rank does by itself, ends well
on all of them or is the same error on all, which rank 0 tells. An error that one rank has by itself ends the job.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from ..backend.cuda import cuda_device_count
from ..backend.devices import resolve
from ..backend.portable import Backend
from ..distributed.ranks import OneProcess
from ..distributed.transports import RanksError
from ..distributed.world import library
from ..training.threads import set_by

T = TypeVar("T")


class OnEveryRankError(Exception):
    """What all ranks raise together, because of one of them or of all.

    Attributes
    ----------
    error : Exception
    rank : int or None
        Whose error it is; None where it is everybody's.
    """

    def __init__(self, error: Exception, rank: int | None = None) -> None:
        super().__init__(str(error))
        self.error, self.rank = error, rank


class Job:
    """The ranks that run one command; alone, everything here is what it would be without it.

    Parameters
    ----------
    ranks : OneProcess
    """

    def __init__(self, ranks: OneProcess) -> None:
        self.ranks = ranks
        self.alone = ranks.size == 1
        self.first = ranks.rank == 0
        self._local = 0
        if not self.alone:
            from mpi4py import MPI

            self._comm: Any = ranks.comm  # type: ignore[attr-defined]
            here = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
            self._local = here.Get_rank()
            _share_cores(here)
            here.Free()

    # ---- together -------------------------------------------------------------------------------------

    def at_first(self, work: Callable[[], T]) -> T:
        """Let rank 0 do it; every rank gets the result."""
        if self.alone:
            return work()
        done: tuple[Any, Exception | None] = None, None
        if self.first:
            try:
                done = work(), None
            except Exception as error:  # noqa: BLE001 (all raise it)
                done = None, error
        result, failure = self._comm.bcast(done)
        if failure is not None:
            raise OnEveryRankError(failure)
        found: T = result
        return found

    @contextlib.contextmanager
    def first_within(self, context: Callable[[], AbstractContextManager[T]]) -> Iterator[T | None]:
        """Let rank 0 enter a context; the others get None."""
        with contextlib.ExitStack() as stack:
            entered: list[T] = []

            def enter() -> None:
                entered.append(stack.enter_context(context()))

            self.at_first(enter)
            yield entered[0] if entered else None

    def on_each(self, work: Callable[[], T]) -> T:
        """Do it on every rank, and go on if it went well on all."""
        if self.alone:
            return work()
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 (all raise it)
            failure = error
        failures = self._comm.allgather(failure)
        failed = [(rank, error) for rank, error in enumerate(failures) if error is not None]
        if failed:
            rank, first = failed[0]
            everybodys = len({str(other) for other in failures}) == 1
            raise OnEveryRankError(first, None if everybodys else rank)
        return result

    def together(self, error: Exception) -> Exception:
        """To be raised, where all ranks come to the same error by themselves."""
        return error if self.alone else OnEveryRankError(error)

    def run(self, work: Callable[[], int], tell: Callable[[BaseException, str], None]) -> int:
        """Run a command; returns its exit status.

        Nobody leaves before rank 0 has written and said everything: launchers end the whole job when a process leaves
        with an error.

        Parameters
        ----------
        tell : (error, whose) -> None
            Says what went wrong; ``whose`` is "rank 1 of 4: ", or empty for an error of all.
        """
        if self.alone:
            return work()
        try:
            status = work()
        except RanksError as error:
            status = self._failed(error, None, tell)
        except OnEveryRankError as failure:
            status = self._failed(failure.error, failure.rank, tell)
        except BaseException as error:  # whatever it is: the others would wait for this rank for ever
            tell(error, self._name(self.ranks.rank))
            sys.stderr.flush()
            self._comm.Abort(128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 2)
            raise
        self._comm.Barrier()
        return status

    def _failed(self, error: Exception, rank: int | None, tell: Callable[[BaseException, str], None]) -> int:
        if self.first:
            tell(error, "" if rank is None else self._name(rank))
            sys.stderr.flush()
        return 2

    def _name(self, rank: int) -> str:
        return f"rank {rank} of {self.ranks.size}: "

    # ---- what a job is --------------------------------------------------------------------------------

    def device(self, name: str) -> Backend:
        """:func:`~bptt_array.backend.resolve`, and of ``"cuda"`` and ``"auto"`` a device for each rank of a machine."""
        count = 0 if self.alone or name not in ("cuda", "auto") else cuda_device_count()
        backend = resolve(f"cuda:{self._local % count}" if count else name)
        asked = getattr(self.ranks, "transport", "auto")
        if asked != "auto" and backend.cuda_device() is None:
            raise ValueError(
                f"--transport {asked} is for CUDA devices, but this run is on {backend.name}; leave it out"
            )
        return backend

    def same_device(self, name: str) -> str:
        """What a run that was on the device ``name`` of rank 0 goes on with on all."""
        return "cuda" if name.startswith("cuda") and not self.alone else name

    @property
    def environment(self) -> dict[str, str]:
        """What of the job results may depend on, to the last bit."""
        return {} if self.alone else {"ranks": str(self.ranks.size), "MPI": library()}

    def command(self, *arguments: str) -> str:
        """This program with other arguments, as it was started."""
        launcher = [] if self.alone else ["mpiexec", "-n", str(self.ranks.size)]
        return shlex.join([*launcher, sys.executable, "-m", "bptt_array", *arguments])


def _share_cores(here: Any) -> None:
    """Give each process on a machine its part of the cores for NumPy's threads, which would be in each other's way."""
    if set_by() is not None:
        return
    import threadpoolctl

    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set().union(*here.allgather(mine))  # a launcher may have bound each to cores of its own
    threadpoolctl.threadpool_limits(max(1, min(len(mine), len(cores) // here.Get_size())))
