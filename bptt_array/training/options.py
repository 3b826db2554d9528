"""What a training run is made of, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..backend.portable import DTYPES
from ..checks import check_count, check_flag, check_number, check_option
from ..optimizers.lr_schedules import Schedule, linear
from ..optimizers.updates import SGD, Adam
from ..rnn.cells import CELLS
from ..rnn.initializers import INITIALIZERS

#: Optimizers by name, and learning rates that suit them here.
OPTIMIZERS: dict[str, tuple[Callable[[float], SGD | Adam], float]] = {
    "adam": (Adam, 3e-3),
    "sgd": (SGD, 2.0),
    "momentum": (lambda lr: SGD(lr, momentum=0.9), 0.3),
}
#: How the learning rate goes on in a run of so many steps: falling linearly to zero over all of them, or as it is.
LR_SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "linear": linear,
    "constant": lambda steps: lambda step: 1.0,
}
#: What a loss or gradient that is no number leads to: the end, or half the learning rate from the last checkpoint on.
ON_DIVERGENCE = ("stop", "halve-lr")
#: How a run is kept, not what it is: may be others where it is resumed.
OF_THE_KEEPING = ("checkpoint_every", "keep_checkpoints", "on_divergence", "threads")


def _option(default: Any, meaning: str, *, metavar: str | None = None, choices: Iterable[str] | None = None) -> Any:
    """A field of :class:`Options`, and all that the flag of the same name has to say of it."""
    return field(default=default, metadata={"help": meaning, "metavar": metavar, "choices": choices})


@dataclass(frozen=True)
class Options:
    """What a run is made of; each is a flag of ``train``, with its meaning.

    ``members`` of None: one network, no ensemble; ``lr`` of None: what suits the optimizer; ``eval_every`` and
    ``checkpoint_every`` of None: ten times; ``eval_characters`` of None: as many as are trained on between two
    validations; ``diagnose_every`` of None: never; ``threads`` of None: see
    :class:`~bptt_array.training.threads.Threads`. ``bidirectional`` is refused: a language
    model has one direction.
    """

    cell: str = _option("tanh", "what a step of the recurrence computes", choices=CELLS)
    hidden: int = _option(256, "hidden units of a layer", metavar="H")
    layers: int = _option(1, "layers, each above the states of the last", metavar="L")
    bidirectional: bool = _option(False, "an error here: a second direction would read the characters to be predicted")
    members: int | None = _option(
        None,
        "train an ensemble of E networks side by side on the same text, with the seeds from SEED on (default: one "
        "network)",
        metavar="E",
    )
    dropout: float = _option(0.0, "part of the states between layers that is left out of a training step", metavar="P")
    recurrent_dropout: float = _option(0.0, "the same of the states that go on to the next time step", metavar="P")
    seq_len: int = _option(32, "time steps per update", metavar="T")
    batch: int = _option(32, "streams of text read side by side", metavar="N")
    steps: int = _option(2000, "updates")
    lr: float | None = _option(
        None,
        "learning rate at the beginning (default: "
        + ", ".join(f"{name} {lr:g}" for name, (_, lr) in OPTIMIZERS.items())
        + ")",
    )
    lr_schedule: str = _option(
        "linear", "the learning rate falls linearly to zero over all steps, or is constant", choices=LR_SCHEDULES
    )
    optimizer: str = _option("adam", "update rule", choices=OPTIMIZERS)
    clip: float = _option(1.0, "clip the global gradient norm to this; 0: do not clip", metavar="NORM")
    init: str = _option("uniform", "initial W_hh", choices=INITIALIZERS)
    forget_bias: float = _option(
        0.0,
        "of an lstm, added to the initial bias of its forget gate; 1 lets it begin by remembering",
        metavar="B",
    )
    dtype: str = _option("float32", "of weights, states and gradients", choices=DTYPES)
    seed: int = _option(0, "of the initial weights, of dropout and of the sample")
    validation: float = _option(0.1, "part of the text held out", metavar="PART")
    eval_every: int | None = _option(None, "validate that often (default: ten times)", metavar="STEPS")
    eval_characters: int | None = _option(
        None,
        "each validation reads that many characters of the held-out part at most, in whole batches; 0: all of it "
        "(default: as many as are trained on between two validations)",
        metavar="K",
    )
    checkpoint_every: int | None = _option(None, "a checkpoint that often (default: ten times)", metavar="STEPS")
    keep_checkpoints: int = _option(
        3, "the last K checkpoints are kept, and those that a divergence may go back to", metavar="K"
    )
    on_divergence: str = _option(
        "stop",
        "where a loss or gradient is no number: stop, or go back to the last checkpoint that was due "
        "(--checkpoint-every) and on with half the learning rate",
        choices=ON_DIVERGENCE,
    )
    diagnose_every: int | None = _option(
        None,
        "write how the gradient flows through time into the run folder that often (default: never)",
        metavar="STEPS",
    )

    threads: int | None = _option(
        None,
        "threads of NumPy's products and of the parts of a batch, at most one a core (default: as many as are fast "
        "now, measured as the run goes on, or as OMP_NUM_THREADS and the like say)",
        metavar="K",
    )

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "seq_len", "batch", "steps", "keep_checkpoints"):
            check_count(name, getattr(self, name))
        for name in ("members", "eval_every", "checkpoint_every", "diagnose_every", "threads"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.eval_characters is not None:
            check_count("eval_characters", self.eval_characters, least=0)
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
        check_option("lr_schedule", self.lr_schedule, LR_SCHEDULES)
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

    @property
    def most_validated(self) -> int | None:
        """How many characters a validation reads at most; None: all that are held out."""
        if self.eval_characters is None:
            return self.every("eval_every") * self.batch * self.seq_len
        return self.eval_characters or None
