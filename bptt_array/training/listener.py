"""Who is told what a run does, as it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .divergence import DivergenceError
from .progress import Progress

if TYPE_CHECKING:
    from ..diagnostics.diagnosis import Diagnosis
    from .history import History


class Listener:
    """What a run tells as it goes on, and asks; nothing is done about it here."""

    def progress(self, progress: Progress, seconds: float) -> None:
        """A line of metrics, after so many seconds of training."""

    def trained(self, step: int, loss: float) -> None:
        """Of :func:`bptt_array.fit`: so many updates are done; the mean loss of the last ones of this epoch."""

    def epoch(self, history: History) -> None:
        """Of :func:`bptt_array.fit`: an epoch is over."""

    def checkpoint(self, checkpoint: Any) -> None:
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
