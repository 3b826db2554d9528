"""The folder of a training run: what is in it, written and read."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plots import plot_loss
from ..rnn.rnn import RNN
from ..serialization import write_atomically
from ..training.checkpoint import Checkpoint, read_lines
from ..training.progress import Progress
from ..training.text import Vocabulary
from ..training.trainer import Trainer
from .checkpoints import FOLDER as CHECKPOINTS
from .checkpoints import NAME, checkpoints, remove_earlier, remove_later, step_of, write_checkpoint
from .environment import versions
from .held import FolderLostError, Held

if TYPE_CHECKING:
    from ..diagnostics.diagnosis import Diagnosis

MODEL, METRICS, TIMES, PLOT, ENVIRONMENT = (
    "model.safetensors",
    "metrics.jsonl",
    "times.jsonl",
    "loss.png",
    "environment.json",
)
DIAGNOSES = "diagnostics"
#: In the environment: how many threads were taken, as the run went on.
TAKEN = "threads taken"
#: What is that of one start, and need not be that of the next.
_OF_A_START = ("started", TAKEN)


class RunFolder:
    """A run folder that this process may write to, as long as its name leads to it.

    Every method that writes or removes something raises :class:`FolderLostError` where it does not any more: a folder
    that has the name now is another run's.

    Parameters
    ----------
    path : Path
    held : Held, optional
        The folder, held open since it was claimed. If left out, the folder is only read.

    Attributes
    ----------
    path : Path
    diverged : bool
        Whether the run ended because it diverged.
    """

    def __init__(self, path: Path, held: Held | None = None) -> None:
        self.path = path
        self._held = held
        self.diverged = False

    @property
    def argument(self) -> str:
        """The folder as a command takes it: no option, whatever it is called."""
        name = str(self.path)
        return os.path.join(os.curdir, name) if name.startswith("-") else name

    def describe(self, device: str, job: Mapping[str, str]) -> list[str]:
        """Note what the run runs on, from here on; returns what of it is not as it was at the last start."""
        before = self.started()
        now = {"started": time.strftime("%Y-%m-%d %H:%M:%S"), "device": device, **versions(), **job}
        text = json.dumps([*before, now], indent=1) + "\n"
        self._write(ENVIRONMENT, text.encode())
        then = before[-1] if before else now
        not_both = {"threads"} - (now.keys() & then.keys())  # not noted by every run
        names = [
            name
            for name in {**now, **then}
            if name not in {*_OF_A_START, *not_both} and then.get(name) != now.get(name)
        ]
        return [f"{name} {then.get(name, 'none')} -> {now.get(name, 'none')}" for name in names]

    def note_threads(self, step: int, said: str) -> None:
        """How many threads there were from a step of this start on."""
        *before, now = self.started()
        found = "; ".join([*([now[TAKEN]] if TAKEN in now else []), f"from step {step} on {said}"])
        text = json.dumps([*before, {**now, TAKEN: found}], indent=1) + "\n"
        self._write(ENVIRONMENT, text.encode())

    def started(self) -> list[dict[str, str]]:
        """What the run ran on, for every time that it was started or resumed."""
        try:
            found = json.loads((self.path / ENVIRONMENT).read_text(encoding="utf-8"))
        except (OSError, RecursionError, ValueError):  # not written yet, or not by us: nothing depends on it
            return []
        entries = found if isinstance(found, list) else []
        return [
            entry
            for entry in entries
            if isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values())
        ]

    def save(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        """A checkpoint, then what follows from it."""
        self._check()
        write_checkpoint(self.path, checkpoint)
        self._check()
        remove_later(self.path, checkpoint.step)
        self.save_results(trainer)

    def save_results(self, trainer: Trainer) -> None:
        """What follows from the last checkpoint: earlier ones go, and what is of a later course of the run.

        Then, where there is room for it, come the model (if it has learnt anything), the metrics so far, and when they
        were reached. The checkpoint holds all of that too: it is enough to flush the model.
        """
        self._check()
        remove_earlier(self.path, trainer.step, trainer.options.keep_checkpoints)
        for path in _diagnoses(self.path):
            if step_of(path) > trainer.step:  # of a course that was not gone on with
                path.unlink()
        if trainer.step:
            metadata = {
                "characters": trainer.vocabulary.characters,
                "options": json.dumps(trainer.options.of_the_model),
            }
            self._check()
            trainer.rnn.save(self.path / MODEL, metadata)
        metrics, times = trainer.files
        self._write(METRICS, metrics)
        self._write(TIMES, times)

    def save_plot(self, trainer: Trainer) -> None:
        """The metrics as a picture, if there are any."""
        if trainer.metrics:
            png = io.BytesIO()
            plot_loss(trainer.metrics).savefig(png, format="png", dpi=120)
            self._write(PLOT, png.getvalue())

    def save_diagnosis(self, step: int, diagnosis: Diagnosis) -> None:
        """How the gradient flowed at a step, as arrays."""
        self._check()
        folder = self.path / DIAGNOSES
        folder.mkdir(exist_ok=True)
        diagnosis.save(folder / f"step-{step:08}.safetensors")

    def _write(self, name: str, data: bytes) -> None:
        """A file that follows from the checkpoint, and need not be flushed."""
        self._check()
        write_atomically(self.path / name, data, flush=False)

    def _check(self) -> None:
        try:
            if self._held is not None:
                self._held.check()
        except FolderLostError as error:
            way_out = "the run ends here, and goes on with train --resume NAME if NAME is what its folder is called now"
            raise FolderLostError(f"{error}; {way_out}") from None

    @property
    def worth_keeping(self) -> bool:
        """Whether there is anything that took training, or says why it did not go well."""
        return (self.path / MODEL).exists() or any(map(step_of, checkpoints(self.path))) or self.diverged

    def remove(self) -> None:
        """Remove what a run that came to nothing wrote."""
        self._check()
        names = (METRICS, TIMES, ENVIRONMENT, PLOT)
        for path in [*checkpoints(self.path), *_diagnoses(self.path), *(self.path / name for name in names)]:
            path.unlink(missing_ok=True)
        for folder in (self.path / CHECKPOINTS, self.path / DIAGNOSES):
            if folder.exists():
                folder.rmdir()


def read_metrics(folder: Path) -> list[Progress]:
    """The metrics of a run folder.

    Raises
    ------
    ValueError
        If the folder is no run folder, or they are damaged.
    """
    try:
        return read_lines((folder / METRICS).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{folder} is no run folder: it has no {METRICS}; expected one that `train` wrote") from None
    except (RecursionError, ValueError):
        raise ValueError(f"{folder / METRICS} is damaged; expected a line of JSON for every line of metrics") from None


def read_diagnoses(folder: Path) -> dict[int, Diagnosis]:
    """How the gradient flowed, by step.

    Raises
    ------
    ValueError
        If a file is damaged.
    """
    from ..diagnostics.diagnosis import Diagnosis

    return {step_of(path): Diagnosis.load(path) for path in _diagnoses(folder)}


def _diagnoses(folder: Path) -> list[Path]:
    """The files of diagnoses, by step."""
    found = [path for path in (folder / DIAGNOSES).glob("step-*.safetensors") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def load(run: str | Path, device: Any = "cpu") -> tuple[RNN, Vocabulary]:
    """The network and the characters of a run folder, or of the model that is in one, wherever that is now.

    Raises
    ------
    ValueError
        If it is neither, or the model is damaged.
    """
    path = Path(run)
    if not path.is_file():
        path /= MODEL
    if not path.is_file():
        raise ValueError(f"{run} is no run folder: it has no {MODEL}; expected one that `train` wrote, or its {MODEL}")
    try:
        rnn, metadata = RNN.load_with_metadata(path, device)
    except ValueError as error:
        raise ValueError(f"{error}; expected a run folder that `train` wrote, or its {MODEL}") from None
    characters = metadata.get("characters")
    characters = characters if isinstance(characters, str) else ""
    vocabulary = Vocabulary(characters)
    fits = characters == vocabulary.characters and len(vocabulary) == rnn.input_size == rnn.output_size
    forward = rnn.readout == "every" and not (rnn.bidirectional or rnn.reverse) and rnn.architecture.time_major
    if not fits or not forward or rnn.output != "softmax":
        raise ValueError(f"{path} is no character model: expected a softmax over the characters that its header lists")
    return rnn, vocabulary
