"""Threads for the parts of one call, each with a BLAS of one thread.

A product that a BLAS shares out is done when the last of its threads is: in a time loop they wait for each other in
every step, and where another program has one of the cores, for long. Parts that know nothing of each other wait once.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from queue import SimpleQueue
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
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._threads = 0  # that take parts from the queue

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
    def counts(self) -> list[int]:
        """How many threads each BLAS library may have now; see :meth:`allow`."""
        return _counts(self._libraries)

    def allow(self, counts: Sequence[int]) -> None:
        """Let each have so many, from the next product on, whichever thread says so."""
        with self._lock:
            _set(self._libraries, *counts)

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
        self._lock, self._busy, self._queue, self._threads = threading.Lock(), 0, SimpleQueue(), 0
        if busy:
            _set(self._of_process, *before)

    def run(self, parts: Sequence[Callable[[Callable[[], None]], _Result]]) -> list[_Result]:
        """The results of all parts, each done by one thread; as many at once as a BLAS may have threads.

        Each is called with a function ``going()``, which raises once another part has failed: a part that takes long
        should call it now and then. The error of the first that failed is raised, when no part runs any more.
        """
        with self.one_thread_each() as count:
            call = _Call(parts)
            call.do(self._have(min(count, len(parts)) - 1), self._queue.put)
            return call.results()

    def _have(self, count: int) -> int:
        """Let there be so many threads; how many there are, since none can be begun once the interpreter ends."""
        with self._lock:
            while self._threads < count:
                try:  # daemons: they have nothing to do but in a call, which waits for them
                    threading.Thread(target=self._work, args=(self._queue,), name="bptt_array", daemon=True).start()
                except RuntimeError:
                    break
                self._threads += 1
            return min(count, self._threads)

    def _work(self, queue: SimpleQueue[Callable[[], None]]) -> None:
        _set(self._of_threads, 1)
        while True:
            queue.get()()


class _Call:
    """The parts of one call, and what has become of them."""

    def __init__(self, parts: Sequence[Callable[[Callable[[], None]], Any]]) -> None:
        self._parts = parts
        self._waiting = deque(range(len(parts)))
        self._results: list[Any] = [None] * len(parts)
        self._errors: list[BaseException] = []
        self._failed = threading.Event()
        self._done = threading.Condition()
        self._others = 0  # threads that do parts, or will do so soon

    def _going(self) -> None:
        if self._failed.is_set():
            raise PartAbandonedError

    def do(self, others: int, put: Callable[[Callable[[], None]], None]) -> None:
        """Do the parts with so many other threads, whoever is free the next one, and wait for them."""
        try:
            for _ in range(others):
                self._others += 1
                # What the caller has set for this context, as np.errstate does, holds for its parts too.
                put(partial(contextvars.copy_context().run, self._do_there))
            self._do()
        except BaseException as error:  # noqa: BLE001 (raised again by results)
            self._fail(error)
        while not self._all_done():
            pass

    def _all_done(self) -> bool:
        """Wait for the others; who is interrupted while waiting lets them know, and waits on."""
        try:
            with self._done:
                # Python sees a signal that comes just before it waits when the wait is over: it is never a long one.
                return self._done.wait_for(lambda: not self._others, timeout=0.5)
        except BaseException as error:  # noqa: BLE001 (raised again by results)
            self._fail(error)
            return False

    def _do(self) -> None:
        while True:
            self._going()
            try:
                k = self._waiting.popleft()
            except IndexError:
                return
            self._results[k] = self._parts[k](self._going)

    def _do_there(self) -> None:
        try:
            self._do()
        except BaseException as error:  # noqa: BLE001 (raised again by results)
            self._fail(error)
        finally:
            with self._done:
                self._others -= 1
                self._done.notify_all()

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, PartAbandonedError):
            self._errors.append(error)
        self._failed.set()

    def results(self) -> list[Any]:
        """Of all parts; or the first error is raised, an interruption before all others."""
        for error in sorted(self._errors, key=lambda error: isinstance(error, Exception)):
            raise error
        return self._results


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


#: Of this process.
workers = Workers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=workers.forked)
