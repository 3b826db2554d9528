"""What becomes of what a run tells: a bar and lines for people, files in its folder."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..training.checkpoint import Checkpoint
from ..training.divergence import DivergenceError
from ..training.listener import Listener
from ..training.loop import HALVINGS
from ..training.progress import Progress
from ..training.trainer import Trainer
from .folder import RunFolder
from .signals import Stop

if TYPE_CHECKING:
    from ..diagnostics.diagnosis import Diagnosis


class SilentListener(Listener):
    """Keeps to itself what a run tells.

    Parameters
    ----------
    stop : Stop
        Whether to end after an update, or in the middle of a validation.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def stop(self) -> bool:
        return self._stop.requested

    def interrupted(self) -> bool:
        return self._stop.requested


class RunListener(SilentListener):
    """Writes what a run tells into its folder, and shows it: a bar, and a line for every validation.

    Parameters
    ----------
    stop : Stop
        Whether to end after an update.
    say : (str) -> None
        Where warnings go.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, stop: Stop, say: Callable[[str], None]) -> None:
        super().__init__(stop)
        self._trainer, self._folder, self._say = trainer, folder, say
        self._number = ""  # of threads, in words
        self._last: tuple[float, float] | None = None  # on the clock and of training, at the last line of metrics

    def __enter__(self) -> RunListener:
        from tqdm import tqdm

        options = self._trainer.options
        per_step = options.batch * options.seq_len
        # None: no bar where standard error is no terminal; the lines on standard output are there anyway.
        no_bar = True if sys.stderr is None else None
        self._bar = tqdm(
            total=options.steps * per_step,
            initial=self._trainer.step * per_step,
            unit="char",
            unit_scale=True,
            dynamic_ncols=True,
            disable=no_bar,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        if any(exception):
            with contextlib.suppress(OSError):  # what went wrong first is what has to be said
                self._folder.save_plot(self._trainer)

    def progress(self, progress: Progress, seconds: float) -> None:
        self._leave_out_what_was_no_training(seconds)
        self._bar.set_postfix_str(f"loss {progress.loss:.3f}", refresh=False)
        self._bar.update(progress.characters - self._bar.n)
        if progress.validation is not None and sys.stdout is not None:
            self._bar.write(
                f"step {progress.step:>6}  loss {progress.loss:.3f}  validation {progress.validation:.4f} nats per "
                f"character  {progress.characters / seconds:,.0f} characters per second",
                file=sys.stdout,
            )

    def _leave_out_what_was_no_training(self, seconds: float) -> None:
        """Of the rate that the bar shows: validations, samples."""
        now = time.perf_counter()
        if self._last is not None and not self._bar.disable:
            then, before = self._last
            pause = now - then - (seconds - before)
            self._bar.start_t += pause
            self._bar.last_print_t += pause
        self._last = now, seconds

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        with self._stop.held():
            self._folder.save(self._trainer, checkpoint)

    def diagnosis(self, step: int, diagnosis: Diagnosis) -> None:
        self._folder.save_diagnosis(step, diagnosis)

    def threads(self, step: int, said: str) -> None:
        number, _, why = said.partition(": ")
        before, self._number = self._number, number
        if number != before:
            self._folder.note_threads(step, number)
            if sys.stdout is not None:
                self._bar.write(f"{f'from step {step} on ' if before else ''}{number} ({why})", file=sys.stdout)

    def went_back(self, error: DivergenceError, step: int, lr: float) -> None:
        self._say(f"{error}; going back to step {step} and on with --lr {lr:g}")

    def way_out(self) -> str:
        """Of a run that diverged: what there is to go on from."""
        step, go_on = self._trainer.step, shlex.quote(self._folder.argument)
        kept = f"; the last good checkpoint, of step {step}, is in {self._folder.path}"
        if self._trainer.options.on_divergence != "stop":
            return f"{kept}; the learning rate was halved {HALVINGS} times, to {self._trainer.lr:g}"
        return (
            f"{kept}: --resume {go_on} --on-divergence halve-lr goes on from there, with half the learning rate where "
            "it diverges again"
        )
