"""What a training run is made of, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..checks import check_count, check_flag, check_number, check_option
from ..optimizers import SGD, Adam

#: Optimizers by name, and learning rates that suit them here.
OPTIMIZERS: dict[str, tuple[Callable[[float], SGD | Adam], float]] = {
    "adam": (Adam, 3e-3),
    "sgd": (SGD, 2.0),
    "momentum": (lambda lr: SGD(lr, momentum=0.9), 0.3),
}
#: What a loss or gradient that is no number leads to: the end, or half the learning rate from the last checkpoint on.
ON_DIVERGENCE = ("stop", "halve-lr")
#: How a run is kept, not what it is: may be others where it is resumed.
OF_THE_KEEPING = ("checkpoint_every", "keep_checkpoints", "on_divergence")


@dataclass(frozen=True)
class Options:
    """What a run is made of.

    ``members`` of None: one network, no ensemble; ``lr`` of None: what suits the optimizer; ``eval_every`` and
    ``checkpoint_every`` of None: ten times; ``diagnose_every`` of None: never. ``bidirectional`` is refused: a language
    model has one direction.
    """

    cell: str = "tanh"
    hidden: int = 256
    layers: int = 1
    bidirectional: bool = False
    members: int | None = None
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    seq_len: int = 32
    batch: int = 32
    steps: int = 2000
    lr: float | None = None
    optimizer: str = "adam"
    clip: float = 1.0
    init: str = "uniform"
    forget_bias: float = 0.0
    dtype: str = "float32"
    seed: int = 0
    validation: float = 0.1
    eval_every: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 3
    on_divergence: str = "stop"
    diagnose_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "seq_len", "batch", "steps", "keep_checkpoints"):
            check_count(name, getattr(self, name))
        for name in ("members", "eval_every", "checkpoint_every", "diagnose_every"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_flag("bidirectional", self.bidirectional)
        if self.bidirectional:
            raise ValueError(
                "bidirectional=True makes no sense here: a second direction would read the characters that the network "
                "has to predict; leave it out"
            )
        for name in ("dropout", "recurrent_dropout"):
            check_number(name, getattr(self, name), below=1.0)
        if self.dropout and self.layers == 1:
            raise ValueError(
                f"dropout={self.dropout} is between layers, but layers=1: give layers=2 or more, or use "
                "recurrent_dropout"
            )
        check_option("optimizer", self.optimizer, OPTIMIZERS)
        check_option("on_divergence", self.on_divergence, ON_DIVERGENCE)
        check_number("clip", self.clip)
        check_number("validation", self.validation, below=1.0)
        if self.lr is not None:
            check_number("lr", self.lr)

    @property
    def of_the_model(self) -> dict[str, Any]:
        """What decides which model a run ends with."""
        return {name: value for name, value in asdict(self).items() if name not in OF_THE_KEEPING}

    def network(self, characters: int) -> dict[str, Any]:
        """The arguments of :class:`Architecture` for a text of so many different characters."""
        return {
            "input_size": characters,
            "hidden_size": self.hidden,
            "output_size": characters,
            "cell": self.cell,
            "num_layers": self.layers,
            "members": self.members,
            "dropout": self.dropout,
            "recurrent_dropout": self.recurrent_dropout,
            "output": "softmax",
            "dtype": self.dtype,
            "seed": self.seed,
        }

    def every(self, name: str) -> int:
        """``eval_every`` or ``checkpoint_every`` in steps: what was given, or a tenth of all steps."""
        return getattr(self, name) or max(1, self.steps // 10)
