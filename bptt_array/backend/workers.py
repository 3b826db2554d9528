"""Threads for the parts of one call, each with a BLAS of one thread.

A product that a BLAS shares out is done when the last of its threads is: in a time loop they wait for each other in
every step, and where another program has one of the cores, for long. Parts that know nothing of each other wait once.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
        self._of_executor = 0, 0  # its process, and how many threads it has at most

    @cached_property
    def _libraries(self) -> list[Any]:
        found: list[Any] = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
        return found

    @property
    def count(self) -> int:
        """How many threads a BLAS may have: 1 where none is found whose number can be set."""
        with self._lock:
            counts = self._before if self._busy else [library.num_threads for library in self._libraries]
        return max(counts, default=1)

    @property
    def of_a_product(self) -> int:
        """How many threads a product may have now: 1 while parts are being done."""
        return max((library.num_threads for library in self._libraries), default=1)

    @property
    def cores(self) -> frozenset[str]:
        """For which cores the BLAS libraries say that they multiply, as OpenBLAS calls them."""
        return frozenset(str(getattr(library, "architecture", None)) for library in self._libraries)

    @contextmanager
    def one_thread_each(self) -> Iterator[int]:
        """A BLAS has one thread meanwhile; how many it had before."""
        with self._lock:
            if not self._busy:
                self._before = [library.num_threads for library in self._libraries]
                for library in self._libraries:
                    library.set_num_threads(1)
            self._busy += 1
            before = max(self._before, default=1)
        try:
            yield before
        finally:
            with self._lock:
                self._busy -= 1
                if not self._busy:
                    for library, count in zip(self._libraries, self._before, strict=True):
                        library.set_num_threads(count)

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
            if count == 1:
                return [done(part) for part in parts]
            others: list[Future[_Result]] = []
            try:
                # What the caller has set for this context, as np.errstate does, holds for its parts too.
                for part in parts[1:]:
                    others.append(self._threads(count - 1).submit(contextvars.copy_context().run, done, part))
                results = [done(parts[0])]
            except PartAbandonedError:  # raised below is the error of the one that failed
                results = []
            except BaseException:
                failed.set()
                raise
            finally:
                errors = [future.exception() for future in others]
            for error in errors:
                if error is not None and not isinstance(error, PartAbandonedError):
                    raise error
            return results + [future.result() for future in others]

    def _threads(self, count: int) -> ThreadPoolExecutor:
        """An executor of at least so many threads, of this process: a fork has none of its parent's threads."""
        with self._lock:
            made, (process, most) = self._executor, self._of_executor
            if made is None or process != os.getpid() or most < count:
                made = self._executor = ThreadPoolExecutor(count, thread_name_prefix="bptt_array")
                self._of_executor = os.getpid(), count
            return made


#: Of this process.
workers = Workers()
