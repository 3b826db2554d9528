"""The main job: learn a text character by character, by truncated BPTT over streams of it."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import serialization
from .backend import Array
from .checks import check_count, check_flag, check_number, check_option
from .optimizers import SGD, Adam, clip_by_global_norm
from .rnn import RNN
from .state import State
from .text import Streams, Vocabulary

#: Optimizers by name, and learning rates that suit them here.
OPTIMIZERS: dict[str, tuple[Callable[[float], SGD | Adam], float]] = {
    "adam": (Adam, 3e-3),
    "sgd": (SGD, 2.0),
    "momentum": (lambda lr: SGD(lr, momentum=0.9), 0.3),
}
#: On the host: 0-d, or of an ensemble (E,).
Means = np.ndarray[Any, Any]
MODEL, METRICS, PLOT = "model.safetensors", "metrics.jsonl", "loss.png"


@dataclass(frozen=True)
class Options:
    """What a run is made of.

    ``members`` of None: one network, no ensemble; ``lr`` of None: what suits the optimizer; ``eval_every`` of None: ten
    times. ``bidirectional`` is refused: a language model has one direction.
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

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "seq_len", "batch", "steps"):
            check_count(name, getattr(self, name))
        check_flag("bidirectional", self.bidirectional)
        if self.bidirectional:
            raise ValueError(
                "bidirectional=True makes no sense here: a second direction would read the characters that the network "
                "has to predict; leave it out"
            )
        if self.members is not None:
            check_count("members", self.members)
        for name in ("dropout", "recurrent_dropout"):
            check_number(name, getattr(self, name), below=1.0)
        if self.dropout and self.layers == 1:
            raise ValueError(
                f"dropout={self.dropout} is between layers, but layers=1: give layers=2 or more, or use "
                "recurrent_dropout"
            )
        check_option("optimizer", self.optimizer, OPTIMIZERS)
        check_number("clip", self.clip)
        check_number("validation", self.validation, below=1.0)
        if self.lr is not None:
            check_number("lr", self.lr)
        if self.eval_every is not None:
            check_count("eval_every", self.eval_every)


@dataclass(frozen=True)
class Progress:
    """One line of ``metrics.jsonl``: after ``step`` updates, losses in nats per character.

    ``loss`` is the mean over the training steps since the line before; ``validation`` is None where it was
    not computed. Of an ensemble they are the means over its members, each of which is in the lists.
    """

    step: int
    characters: int
    seconds: float
    lr: float
    loss: float
    validation: float | None = None
    members_loss: list[float] | None = None
    members_validation: list[float] | None = None


class Trainer:
    """Learns a text.

    Parameters
    ----------
    text : str
    options : Options
    device : str or Backend

    Raises
    ------
    ValueError
        If the text is too short, or an option is no good.
    """

    #: Steps between two lines of metrics: the device is asked for the loss that often.
    report_every = 10

    def __init__(self, text: str, options: Options, device: Any = "cpu") -> None:
        self.options = options
        self.vocabulary = Vocabulary(text)
        tokens = self.vocabulary.encode(text)
        split = len(tokens) - int(len(tokens) * options.validation)
        self.train = Streams(tokens[:split], options.batch, options.seq_len, "the text without its held-out part")
        self.validation = _validation_streams(tokens[split:], options)
        make_optimizer, lr = OPTIMIZERS[options.optimizer]
        self.lr = lr if options.lr is None else options.lr
        self.rnn = RNN(
            len(self.vocabulary),
            options.hidden,
            len(self.vocabulary),
            cell=options.cell,
            num_layers=options.layers,
            members=options.members,
            dropout=options.dropout,
            recurrent_dropout=options.recurrent_dropout,
            output="softmax",
            init=options.init,
            forget_bias=options.forget_bias,
            dtype=options.dtype,
            device=device,
            seed=options.seed,
        )
        self.optimizer = make_optimizer(self.lr)
        self.eval_every = options.eval_every or max(1, options.steps // 10)
        self.metrics: list[Progress] = []

    def run(self, report: Callable[[Progress], None], stop: Callable[[], bool] = lambda: False) -> None:
        """Train for ``options.steps`` updates, or until ``stop()`` says so between two of them.

        ``report`` gets every line of metrics; the validation loss is computed ``eval_every`` steps and at the
        end, but not when stopped, which is to be quick.

        Raises
        ------
        FloatingPointError
            If the loss is no longer a number.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # _mean looks at what they lead to
            self._run(report, stop)

    def _run(self, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
        options, began = self.options, time.perf_counter()
        batches, state, since = self.train.forever(), None, []
        dropout = options.dropout or options.recurrent_dropout
        for step in range(1, options.steps + 1):
            first, x, target = next(batches)
            decay = 1 - (step - 1) / options.steps
            loss, state = self.update(x, target, None if first else state, decay, step if dropout else None)
            since.append(loss)
            stopped = stop()
            evaluate = not stopped and (step == options.steps or step % self.eval_every == 0)
            if stopped or evaluate or step % self.report_every == 0:
                means, held_out = self._means(since), self.evaluate() if evaluate else None
                progress = Progress(
                    step=step,
                    characters=step * options.batch * options.seq_len,
                    seconds=time.perf_counter() - began,
                    lr=self.optimizer.lr,
                    loss=float(means.mean()),
                    validation=None if held_out is None else float(held_out.mean()),
                    members_loss=_of_members(means),
                    members_validation=_of_members(held_out),
                )
                since = []
                report(progress)
                self.metrics.append(progress)
            if stopped:
                return

    def update(
        self, x: Any, target: Any, state: State | None, decay: float, dropout_seed: int | None = None
    ) -> tuple[Array, State]:
        """One step: (2.1), (3.1)-(3.4) and (4). Nothing here waits for the device."""
        self.optimizer.lr = self.lr * decay
        loss, grads, state = self.rnn.loss_and_grad(x, target, "cross_entropy", state=state, dropout_seed=dropout_seed)
        changes = grads.params
        if self.options.clip:
            changes = clip_by_global_norm(changes, self.options.clip, self.rnn.members)
        self.optimizer.update(self.rnn.params, changes)
        return loss, state

    @property
    def reported(self) -> int:
        """The step of the last line of metrics."""
        return self.metrics[-1].step if self.metrics else 0

    def _means(self, losses: list[Array]) -> Means:
        """The mean of losses on the device, on the host: the only place where training waits for it."""
        means: Means = np.mean([self.rnn.backend.to_host(loss) for loss in losses], axis=0)
        wrong = np.flatnonzero(~np.isfinite(means))
        if wrong.size:
            whose = "" if self.rnn.members is None else f" of member {wrong[0]}"
            raise FloatingPointError(
                f"the loss{whose} is {means.flat[wrong[0]]} at a learning rate of {self.optimizer.lr:g}: training "
                "diverged; use a smaller --lr or --clip"
            )
        return means

    def evaluate(self) -> Means | None:
        """Validation loss in nats per character, of an ensemble (E,); None without a validation text."""
        if self.validation is None:
            return None
        state, losses = None, []
        for _, x, target in self.validation.once():
            loss, state = self.rnn.loss(x, target, "cross_entropy", state=state)
            losses.append(loss)
        return self._means(losses)

    def save_model(self, folder: Path) -> None:
        """Write the network, its vocabulary and the options into a folder."""
        metadata = {"characters": self.vocabulary.characters, "options": json.dumps(asdict(self.options))}
        self.rnn.save(folder / MODEL, metadata)

    def save_metrics(self, folder: Path) -> None:
        """Write the metrics so far, and their plot, into a folder."""
        lines = "".join(json.dumps(asdict(progress)) + "\n" for progress in self.metrics)
        serialization.write_atomically(folder / METRICS, lines.encode())
        serialization.write_atomically(folder / PLOT, plot(self.metrics))


def _of_members(means: Means | None) -> list[float] | None:
    """One number for every member; None where there are no members or no means."""
    return None if means is None or means.ndim == 0 else means.tolist()


def _validation_streams(tokens: Any, options: Options) -> Streams | None:
    """As many streams of the validation text as training has, or as fit; None if there is no text for one."""
    if len(tokens) < 2:
        return None
    seq_len = min(options.seq_len, len(tokens) - 1)
    return Streams(tokens, min(options.batch, (len(tokens) - 1) // seq_len), seq_len)


def plot(metrics: list[Progress]) -> bytes:
    """Training and validation loss over the characters read, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    marker = "." if len(metrics) == 1 else ""  # a line of one point would not be seen
    axes.plot([m.characters for m in metrics], [m.loss for m in metrics], marker=marker, label="training", linewidth=1)
    held_out = [(m.characters, m.validation) for m in metrics if m.validation is not None]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", label="validation")
        axes.set_title(f"validation loss {held_out[-1][1]:.3f} nats per character")
    axes.set_xlabel("characters read")
    axes.set_ylabel("loss (nats per character)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()


def load(folder: str | Path, device: Any = "cpu") -> tuple[RNN, Vocabulary]:
    """The network and the characters of a run folder.

    Raises
    ------
    ValueError
        If the folder is no run folder, or its model is damaged.
    """
    path = Path(folder) / MODEL
    if not path.is_file():
        raise ValueError(f"{folder} is no run folder: it has no {MODEL}; expected one that `train` wrote")
    rnn, metadata = RNN.load_with_metadata(path, device)
    characters = metadata.get("characters", "")
    vocabulary = Vocabulary(characters)
    fits = characters == vocabulary.characters and len(vocabulary) == rnn.input_size == rnn.output_size
    forward = rnn.readout == "every" and not rnn.bidirectional and rnn.architecture.time_major
    if not fits or not forward or rnn.output != "softmax":
        raise ValueError(f"{path} is no character model: expected a softmax over the characters that its header lists")
    return rnn, vocabulary
