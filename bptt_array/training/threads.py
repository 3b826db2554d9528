"""How many threads the products of a run have: the number that is fast now.

A product on several threads is done when the last of them is, and threads that wait for each other on cores that other
programs use take many times as long as one thread does. So a few gradients are timed with one thread and with all,
alternately; again when updates become slower or faster; and now and then anyway, since what was measured may have been
bad luck.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..backend.workers import workers

#: With one of these set, how many threads a process may have is somebody's decision.
VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

#: Rounds of a trial, fewer where they take so many seconds; and how much longer all threads have to take than one, in
#: the first round or in all so far, for no other to be needed. (Not the other way round: a single thread may have been
#: held up by chance, but not be hurried.)
ROUNDS, PATIENCE, CLEAR_AT_ONCE, CLEAR = 5, 1.0, 5.0, 1.5
#: Seconds: as many time steps are timed as take all threads that long, or as an update has.
ENOUGH = 0.01
#: How much faster another number has to be to be taken, and to be taken for good.
BETTER, FOR_GOOD = 1.1, 2.0
#: Updates have become slower or faster when the middle one of so many differs by that factor from what was usual.
WINDOW, CHANGE = 10, 1.3
#: The first so many after a trial should together take less than so many times what a gradient took there, or that was
#: luck; and later ones less than so many times what was usual: threads that wait hold up a few updates for long.
SURPRISE = 2.0
#: Seconds of training between two trials, as multiples of what a trial took: after a change (the first number, doubled
#: from trial to trial up to the second), and anyway.
SOON, AFTER_CHANGE, ANYWAY = 2, 20, 100


def set_by() -> str | None:
    """The environment variable that says how many threads there are, if one does."""
    return next((name for name in VARIABLES if os.environ.get(name)), None)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """The threads of the BLAS libraries in this process.

    Attributes
    ----------
    all : int
        How many there were to begin with; 1 where no library is found that can be told.
    """

    def __init__(self) -> None:
        self._before = workers.counts
        self.all: int = max(self._before, default=1)

    def set(self, count: int) -> None:
        """Let there be so many, from the next product on."""
        workers.allow([count] * len(self._before))

    def restore(self) -> None:
        """As many as there were."""
        workers.allow(self._before)


class Threads:
    """As many threads as are fast, found out as a run goes on.

    Results must not depend on that. So before the number is changed for the first time, the results of both are
    compared (the ways in which a library cuts up a product depend on its shape, and not on what is in it). Where they
    are equal to the last bit the number may change at any time. Where not, a run that has not begun takes one thread
    for good if that is much faster, and any other keeps all threads.

    Parameters
    ----------
    pool : Pool
    fixed : int, optional
        This many, and no trials.
    clock : () -> float
        Seconds.

    Attributes
    ----------
    now : int
        How many there are.
    for_good : bool
        Whether that does not change any more.
    """

    def __init__(self, pool: Any, fixed: int | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.pool, self._clock = pool, clock
        self.now: int = pool.all if fixed is None else fixed
        self.for_good = fixed is not None or pool.all == 1
        self._free = False  # whether results are known not to depend on the number
        self._wait = SOON / 2
        self._watch(0.0, 0.0)

    def __enter__(self) -> Threads:
        self.pool.set(self.now)
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.restore()

    def _watch(self, cost: float, expected: float) -> None:
        """Begin to watch anew, after a trial of so many seconds which says how many a gradient takes."""
        self._wait = min(2 * self._wait, AFTER_CHANGE) if cost else self._wait
        self._cost, self._expected, self._seconds = cost, expected, 0.0
        self._usual: float | None = None
        self._surprised = False
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def note(self, seconds: float) -> bool:
        """An update took so long; returns whether it is time to choose anew."""
        if self.for_good:
            return False
        self._seconds += seconds
        self._recent.append(seconds)
        if len(self._recent) < WINDOW:
            return False
        middle, mean = statistics.median(self._recent), statistics.fmean(self._recent)
        if self._usual is None:
            self._usual, self._surprised = middle, mean > SURPRISE * self._expected
        changed = self._surprised or not self._usual / CHANGE < middle < self._usual * CHANGE
        changed = changed or mean > SURPRISE * self._usual
        return self._seconds > self._cost * (self._wait if changed else ANYWAY)

    def choose(
        self, gradient: Callable[[int], object], steps: int, results: Callable[[], object], *, begun: bool
    ) -> str | None:
        """Take the number of threads that is fast now.

        Parameters
        ----------
        gradient : (int) -> object
            Computes one of so many time steps.
        steps : int
            How many an update has.
        results : () -> object
            Of all kinds of work of a run, to be compared.
        begun : bool
            Whether there were updates.

        Returns
        -------
        str or None
            What was found, in words; None if the number was and is for good.
        """
        if self.for_good:
            return None
        began = self._clock()
        one, all_ = self.trial(gradient, steps)
        cost = self._clock() - began  # without the comparison, which is made once
        faster, times = (1, all_ / one) if one < all_ else (self.pool.all, one / all_)
        said = ""
        if faster != self.now and times > BETTER:
            self._free = self._free or self._are_equal(results)
            if not self._free:
                self.for_good = True
                said = "; results depend on that to the last bit: so many to the end of the run (--threads: others)"
                if begun or times < FOR_GOOD or not self._is_faster(faster, gradient, steps):
                    faster = self.now
            self.now = faster
        self.pool.set(self.now)
        self._watch(cost, one if self.now == 1 else all_)
        other, ratio = (self.pool.all, all_ / one) if self.now == 1 else (1, one / all_)
        return f"{self.now} of {self.pool.all} threads: {other} would take {ratio:.3g} times as long now{said}"

    def _is_faster(self, count: int, gradient: Callable[[int], object], steps: int) -> bool:
        """Whether another trial says so too, for what cannot be changed again."""
        one, all_ = self.trial(gradient, steps)
        return (all_ / one if count == 1 else one / all_) > FOR_GOOD

    def trial(self, gradient: Callable[[int], object], steps: int) -> tuple[float, float]:
        """Seconds of a gradient of so many time steps with one thread and with all, timed alternately.

        The mean of all rounds, not the best: threads that wait for each other do so now and then. And of all threads
        the worst, where there is one now: to take all by mistake costs many times what can be won.
        """
        of_all, timed = self.pool.all, 1
        while self._timed(of_all, gradient, timed) < ENOUGH and timed < steps:
            timed = min(2 * timed, steps)
        self._timed(1, gradient, timed)  # to warm up: where memory is taken for the first time
        one: list[float] = []
        all_: list[float] = []
        for k in range(ROUNDS):
            for count, times in ((1, one), (of_all, all_), (1, one)):
                times.append(self._timed(count, gradient, timed))
            if min(all_) > (CLEAR if k else CLEAR_AT_ONCE) * max(one) or sum(all_) + sum(one) > PATIENCE:
                break
        seconds_of_all = max(all_) if self.now == 1 else statistics.fmean(all_)
        return statistics.fmean(one) * steps / timed, seconds_of_all * steps / timed

    def _timed(self, count: int, gradient: Callable[[int], object], steps: int) -> float:
        self.pool.set(count)
        began = self._clock()
        gradient(steps)
        return max(self._clock() - began, 1e-9)

    def _are_equal(self, results: Callable[[], object]) -> bool:
        found = []
        for count in (1, self.pool.all):
            self.pool.set(count)
            found.append(results())
        return found[0] == found[1]
