"""Who is told what a run does, as it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .checkpoint import Checkpoint
from .divergence import DivergenceError
from .progress import Progress

if TYPE_CHECKING:
    from ..diagnostics.diagnosis import Diagnosis


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

    def threads(self, step: int, said: str) -> None:
        """How many threads there are from this step on, and why."""

    def stop(self) -> bool:
        """Whether to end after this update."""
        return False

    def interrupted(self) -> bool:
        """Whether not to wait for the end of a validation either, which is then begun anew when the run goes on."""
        return False
