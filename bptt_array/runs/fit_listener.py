"""What becomes of what a run of ``fit`` tells: checkpoints, a bar or lines; and Ctrl-C, which it hears."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..training.checkpoint import FitCheckpoint
from ..training.fitting import Fitting
from ..training.history import History
from ..training.listener import Listener
from .checkpoints import remove_earlier, remove_later, write_checkpoint
from .held import Held
from .signals import Stop

#: Checkpoints that are kept.
KEPT = 3
#: Seconds between two plain lines, but for the last epoch's.
SOON = 1.0


class FitListener(Listener):
    """Writes checkpoints, shows what there is to show, and hears Ctrl-C."""

    def __init__(
        self, stop: Stop | None, path: Path | None, held: Held | None, shown: Shown | None, *, first: bool
    ) -> None:
        self._stop, self._path, self._held, self._shown, self._first = stop, path, held, shown, first

    def stop(self) -> bool:
        return self._stop is not None and self._stop.requested

    def interrupted(self) -> bool:
        return self.stop()

    def trained(self, step: int, loss: float) -> None:
        if self._shown is not None:
            self._shown.trained(step, loss)

    def epoch(self, history: History) -> None:
        if self._shown is not None:
            self._shown.epoch(history)

    def checkpoint(self, checkpoint: FitCheckpoint) -> None:
        if self._path is None or self._held is None:  # which rank 0 alone has
            return
        if not checkpoint.step:  # a run that comes to no update, by an argument that is wrong there, leaves nothing
            return
        with contextlib.nullcontext() if self._stop is None else self._stop.held():
            self._held.check()
            write_checkpoint(self._path, checkpoint)
            remove_later(self._path, checkpoint.step)
            remove_earlier(self._path, checkpoint.step, KEPT, FitCheckpoint)

    def went_back(self, error: Any, step: int, lr: float) -> None:
        if self._first:
            warnings.warn(f"{error}; going back to step {step} and on with lr={lr:g}", stacklevel=2)


@contextlib.contextmanager
def stopping() -> Iterator[Stop | None]:
    """Ctrl-C ends training cleanly, in the one thread that hears of it."""
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    with Stop(names=("SIGINT",)) as stop:
        yield stop


class Shown:
    """A bar on standard error, or lines."""

    def __init__(self, fitting: Fitting, updates: int) -> None:
        self._epochs, self._updates = fitting.epochs, updates
        self._bar: Any = None
        self._last, self._words = 0.0, ""
        if importlib.util.find_spec("tqdm") is not None and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            total = fitting.epochs * updates or None
            self._bar = tqdm(total=total, initial=fitting.step, unit=" updates", dynamic_ncols=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def trained(self, step: int, loss: float) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}{self._words}", refresh=False)
            self._bar.update(step - self._bar.n)

    def epoch(self, history: History) -> None:
        epochs = len(history.lr)
        validation = "" if history.validation is None else f"  validation {_mean(history.validation[-1])}"
        if self._bar is not None:
            self._words = f"{validation}  epoch {epochs} of {self._epochs}"
            if self._updates:
                self._bar.update(epochs * self._updates - self._bar.n)
            return
        now = time.monotonic()
        if sys.stderr is not None and (now - self._last >= SOON or epochs == self._epochs):
            self._last = now
            loss = f"  loss {_mean(history.loss[-1])}" if len(history) == epochs else ""
            print(f"epoch {epochs} of {self._epochs}{loss}{validation}", file=sys.stderr, flush=True)


def _mean(losses: Any) -> str:
    return f"{float(np.mean(losses)):.4g}"


@contextlib.contextmanager
def shown_of(fitting: Fitting, updates: int) -> Iterator[Shown]:
    shown = Shown(fitting, updates)
    try:
        yield shown
    finally:
        shown.close()
