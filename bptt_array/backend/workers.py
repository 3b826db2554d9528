"""Threads for the parts of one call, each with a BLAS of one thread.

A product that a BLAS shares out is done when the last of its threads is: in a time loop they wait for each other in
every step, and where another program has one of the cores, for long. Parts that know nothing of each other wait once.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar

import threadpoolctl

_Result = TypeVar("_Result")


class PartAbandonedError(Exception):
    """Another part of the same call has failed, and nobody waits for this one."""


class Workers:
    """The threads that the BLAS of this process may have, for parts of a call.

    Calls of several threads of the caller's may run at the same time; while any of them has its parts done, a BLAS has
    one thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = 0  # calls whose parts are being done
        self._before: list[int] = []  # the threads of each BLAS before the first of them
        self._executor: ThreadPoolExecutor | None = None
        self._most = 0  # threads of it

    @cached_property
    def _libraries(self) -> list[Any]:
        found: list[Any] = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
        return found

    @cached_property
    def _of_threads(self) -> list[Any]:
        """Libraries that have a number of threads for each thread that calls them (OpenMP)."""
        return [library for library in self._libraries if getattr(library, "threading_layer", "") == "openmp"]

    @cached_property
    def _of_process(self) -> list[Any]:
        """All others, which have one for the process."""
        return [library for library in self._libraries if library not in self._of_threads]

    @property
    def count(self) -> int:
        """How many threads a BLAS may have: 1 where none is found whose number can be set."""
        with self._lock:
            if self._busy:
                return max([*self._before, *_counts(self._of_threads)], default=1)
        return max(_counts(self._libraries), default=1)

    @property
    def of_a_product(self) -> int:
        """How many threads a product may have now: 1 while parts are being done."""
        return max(_counts(self._libraries), default=1)

    @property
    def cores(self) -> frozenset[str]:
        """For which cores the BLAS libraries say that they multiply, as OpenBLAS calls them."""
        return frozenset(str(getattr(library, "architecture", None)) for library in self._libraries)

    @contextmanager
    def one_thread_each(self) -> Iterator[int]:
        """A BLAS has one thread meanwhile; how many it had before."""
        own_before = _counts(self._of_threads)
        with self._lock:
            if not self._busy:
                self._before = _counts(self._of_process)
                _set(self._of_process, 1)
            self._busy += 1
        try:
            _set(self._of_threads, 1)
            yield max([*self._before, *own_before], default=1)
        finally:
            _set(self._of_threads, *own_before)
            with self._lock:
                self._busy -= 1
                if not self._busy:
                    _set(self._of_process, *self._before)

    def forked(self) -> None:
        """This process is a copy of another, without its threads and what they were doing."""
        busy, before = self._busy, self._before
        self._lock, self._busy, self._executor = threading.Lock(), 0, None
        if busy:
            _set(self._of_process, *before)

    def _begin(self) -> None:
        """Of a new thread."""
        _set(self._of_threads, 1)

    def run(self, parts: Sequence[Callable[[Callable[[], None]], _Result]]) -> list[_Result]:
        """The results of all parts, each done by one thread; as many at once as a BLAS may have threads.

        Each is called with a function ``going()``, which raises once another part has failed: a part that takes long
        should call it now and then. The error of the first that failed is raised, when no part runs any more.
        """
        failed = threading.Event()

        def going() -> None:
            if failed.is_set():
                raise PartAbandonedError

        def done(part: Callable[[Callable[[], None]], _Result]) -> _Result:
            going()
            try:
                return part(going)
            except BaseException:
                failed.set()
                raise

        with self.one_thread_each() as count:
            here, there = (list(parts), []) if count == 1 else (list(parts[:1]), list(parts[1:]))
            others: list[Future[_Result]] = []
            try:
                for part in there:
                    try:  # what the caller has set for this context, as np.errstate does, holds for its parts too
                        future = self._threads(count - 1).submit(contextvars.copy_context().run, done, part)
                    except RuntimeError:  # the main thread has ended, and no thread can be begun any more
                        here += there[len(others) :]
                        break
                    others.append(future)
                results = [done(part) for part in here]
            except PartAbandonedError:  # raised below is the error of the one that failed
                results = []
            except BaseException:
                failed.set()
                raise
            finally:
                errors = _errors(others, failed)
            for error in errors:
                if error is not None and not isinstance(error, PartAbandonedError):
                    raise error
            return results[:1] + [future.result() for future in others] + results[1:]

    def _threads(self, count: int) -> ThreadPoolExecutor:
        """An executor of at least so many threads."""
        with self._lock:
            made = self._executor
            if made is None or self._most < count:
                made = self._executor = ThreadPoolExecutor(count, "bptt_array", self._begin)
                self._most = count
            return made


def _counts(libraries: list[Any]) -> list[int]:
    return [library.num_threads for library in libraries]


def _set(libraries: list[Any], *counts: int) -> None:
    """So many threads for each; one number for all of them."""
    for library, count in zip(libraries, counts * len(libraries) if len(counts) == 1 else counts, strict=True):
        # Since threadpoolctl 3.8 only the thread that was the first to set the number of a process can set it, and what
        # others say is silently left out, until that thread lets go. A lock here has them take turns.
        let_go = getattr(library, "clear_controlling_thread", None)
        if let_go is not None:
            let_go(force=True)
        library.set_num_threads(count)
        if let_go is not None:
            let_go(force=True)


def _errors(futures: list[Future[Any]], failed: threading.Event) -> list[BaseException | None]:
    """Of each that has one, once all are done; who is interrupted while waiting lets the others know."""
    try:
        return [future.exception() for future in futures]
    except BaseException:
        failed.set()
        wait(futures)
        raise


#: Of this process.
workers = Workers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=workers.forked)
