"""What a training run tells as it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoints import Checkpoint
    from .diagnostics import Diagnosis
    from .divergence import DivergenceError


@dataclass(frozen=True)
class Progress:
    """One line of ``metrics.jsonl``: after ``step`` updates, losses in nats per character.

    ``loss`` is the mean over the training steps since the line before; ``validation`` is None where it was
    not computed, and ``sample`` where nothing was written. Of an ensemble they are the means over its members, each of
    which is in the lists. Nothing here depends on a clock: the same seed gives the same lines.
    """

    step: int
    characters: int
    lr: float
    loss: float
    validation: float | None = None
    members_loss: list[float] | None = None
    members_validation: list[float] | None = None
    sample: str | None = None


class Listener:
    """What a run tells as it goes on, and asks; nothing is done about it here."""

    def progress(self, progress: Progress, seconds: float) -> None:
        """A line of metrics, after so many seconds of training."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """All that the run is made of at this moment, and nothing that is no number."""

    def diagnosis(self, step: int, diagnosis: Diagnosis) -> None:
        """How the gradient flows at this step."""

    def went_back(self, error: DivergenceError, step: int, lr: float) -> None:
        """Training diverged and goes on from an earlier step with a smaller learning rate."""

    def stop(self) -> bool:
        """Whether to end after this update."""
        return False
