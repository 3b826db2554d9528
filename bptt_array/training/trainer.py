"""The main job: learn a text character by character, by truncated BPTT over streams of it.

The ranks of a job share the streams out: only what a run tells (a
:class:`~bptt_array.training.listener.Listener`) is one's own.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend.cpu import NumpyBackend
from ..bptt.state import State
from ..distributed.ranks import OneProcess
from ..optimizers.norms import global_norm
from ..rnn.architecture import Architecture
from ..rnn.rnn import RNN
from .checkpoint import Checkpoint, check_fits, json_line, read_lines
from .divergence import DivergenceError, check_parameters
from .listener import Listener
from .loop import Loop, Update
from .options import LR_SCHEDULES, OPTIMIZERS, Options
from .progress import Progress
from .sampling import sample
from .text import Streams, Text, Vocabulary
from .threads import Threads
from .validation import InterruptedValidation, Validation

if TYPE_CHECKING:
    from ..diagnostics.diagnosis import Diagnosis
    from .beginning import Beginning

#: On the host: 0-d, or of an ensemble (E,).
Means = np.ndarray[Any, Any]
#: Characters of the samples that are written as training goes on.
SAMPLE_LENGTH = 200


class Trainer(Loop):
    """Learns a text: a :class:`~bptt_array.training.loop.Loop` over it.

    Parameters
    ----------
    text : str or Text
    options : Options
    device : str or Backend
    source : list of str, optional
        The files of the text, for checkpoints to know.
    ranks : OneProcess
        Those that train together; this process alone, if left out.
    init_from : dict, optional
        Of the network whose weights the run began with, see
        :class:`~bptt_array.training.checkpoint.Checkpoint`. The weights themselves are not put in here: see
        :meth:`begun_from` and :meth:`resumed`.

    Attributes
    ----------
    characters, different : int
        Of the text: how many, and how many different ones.
    vocabulary : Vocabulary
        Of the network: the characters of the text, and those that ``init_from`` knew.
    held_out : int
        Characters of it that are held out.
    validation : Validation
        What is done with them.
    metrics : list of Progress
    seconds : list of float
        Of training, at each of the metrics.
    threads : Threads or None
        Who finds out how many threads the products of this run have; None, as at first: nobody.

    Raises
    ------
    ValueError
        If the text is too short, or an option is no good.
    """

    def __init__(
        self,
        text: str | Text,
        options: Options,
        device: Any = "cpu",
        source: Sequence[str] | None = None,
        ranks: OneProcess | None = None,
        init_from: dict[str, str] | None = None,
    ) -> None:
        self.options = options
        ranks = OneProcess() if ranks is None else ranks
        self.source = None if source is None else list(source)
        self.init_from = init_from
        text = _as_text(text)
        self.characters, self.different, self.fingerprint = len(text), len(text.vocabulary), text.fingerprint
        self.vocabulary = _vocabulary(text, init_from)
        tokens = text.numbered_by(self.vocabulary)
        split = len(tokens) - int(len(tokens) * options.validation)
        streams = tokens[:split], options.batch, options.seq_len, "the text without its held-out part"
        self.rows = ranks.part(options.batch)
        self.train = Streams(*streams, rows=self.rows)
        self._diagnosed = Streams(*streams, rows=slice(DIAGNOSED)).at(0)[1:]
        self.held_out = len(tokens) - split
        self.validation = Validation(tokens[split:], options, ranks)
        make_optimizer, lr = OPTIMIZERS[options.optimizer]
        network = options.network(len(self.vocabulary))
        super().__init__(
            RNN(**network, init=options.init, forget_bias=options.forget_bias, device=device),
            make_optimizer(lr if options.lr is None else options.lr),
            ranks,
            loss="cross_entropy",
            schedule=LR_SCHEDULES[options.lr_schedule](options.steps),
            clip=options.clip,
            on_divergence=options.on_divergence,
        )
        self.state: State | None = None
        self.metrics: list[Progress] = []
        self.seconds: list[float] = []
        self.threads: Threads | None = None
        self._lines, self._times = bytearray(), bytearray()  # metrics and seconds as lines of JSON
        self._elapsed, self._began = 0.0, math.nan

    @classmethod
    def resumed(
        cls,
        checkpoint: Checkpoint,
        text: str | Text,
        options: Options,
        device: Any = "cpu",
        ranks: OneProcess | None = None,
    ) -> Trainer:
        """A trainer that goes on from a checkpoint, whose arrays are compared with what the options need before any
        is made.

        Raises
        ------
        ValueError
            As :meth:`restore` does.
        """
        text = _as_text(text)
        if "eval_characters" not in checkpoint.options and options.eval_characters is None:
            options = replace(options, eval_characters=0)  # it has validated on everything so far
        _check_text(checkpoint, text.fingerprint)
        if options.steps < checkpoint.step:
            raise ValueError(
                f"steps={options.steps} is fewer than the {checkpoint.step} updates that the run has had; expected at "
                "least as many"
            )
        characters = len(_vocabulary(text, checkpoint.init_from))
        for each in filter(None, (checkpoint, checkpoint.earlier)):
            check_fits(each, Architecture.checked(**options.network(characters)), options)
        made = cls(text, options, device, checkpoint.source, ranks, checkpoint.init_from)
        made.restore(checkpoint)
        if options.steps != checkpoint.options.get("steps"):
            made.unsaid = True  # so that a checkpoint says so before anything else is done
        return made

    @classmethod
    def begun_from(
        cls,
        network: Beginning,
        text: str | Text,
        options: Options,
        device: Any = "cpu",
        source: Sequence[str] | None = None,
        ranks: OneProcess | None = None,
    ) -> Trainer:
        """A trainer of a new run, whose weights are those of a trained network as far as it knows the characters."""
        made = cls(text, options, device, source, ranks, network.origin)
        backend = made.rnn.backend
        with backend.active():
            params = network.parameters(made.host_params(), made.vocabulary)
            made.rnn.params.update({name: backend.from_host(value) for name, value in params.items()})
        return made

    @property
    def finished(self) -> bool:
        """Whether all updates are done, and all that has to be known about them."""
        return self.step == self.options.steps and not self._owes_a_line

    # ---- a run ----------------------------------------------------------------------------------------

    def run(self, listener: Listener | None = None) -> None:
        """As of any :class:`~bptt_array.training.loop.Loop`, until ``options.steps`` updates are done.

        There is a checkpoint at the beginning, every so often, and at the end or where it is stopped.
        """
        with self.threads or contextlib.nullcontext():
            self._began = time.perf_counter() - self._elapsed
            super().run(listener)

    def begin(self, listener: Listener) -> None:
        self._choose_threads(listener)

    def go_on(self, listener: Listener) -> None:
        if not self._owes_a_line:
            self._advance(listener)
        self._follow_up(listener)

    def _advance(self, listener: Listener) -> None:
        """One update."""
        first, x, target = self.train.at(self.step)
        self.step += 1
        began = time.perf_counter()
        done = self.update(x, target, None if first else self.state, self.step, listener.stop)
        if self.threads is not None and self.threads.note(time.perf_counter() - began):
            self._choose_threads(listener)
        self.state = done.state
        self.note(done, reads=self._reports)

    @property
    def _evaluates(self) -> bool:
        return self.step == self.options.steps or self.step % self.options.every("eval_every") == 0

    @property
    def _reports(self) -> bool:
        """Whether there is a line of metrics after this update."""
        return self._evaluates or self.step % self.report_every == 0

    @property
    def _owes_a_line(self) -> bool:
        """Whether the line of metrics after this update is not there: it is not yet, or its validation was interrupted,
        and the run then goes on with it."""
        return self.step > 0 and self._reports and not (self.metrics and self.metrics[-1].step >= self.step)

    def _follow_up(self, listener: Listener) -> None:
        """What is due after an update: a line of metrics, a diagnosis, a checkpoint."""
        options, reports = self.options, self._owes_a_line
        if reports:
            try:
                self._measure(listener.interrupted)
            except InterruptedValidation:
                self.stopped = True
                self.keep(listener, due=False)
                return
        if options.diagnose_every and self.step % options.diagnose_every == 0:
            self.read()
            listener.diagnosis(self.step, self.diagnose())
        due = self.step % options.every("checkpoint_every") == 0
        if due or self.stopped or self.step == options.steps:
            self.keep(listener, due=due)
        if reports:  # when it cannot be lost any more: nobody may be there to read it
            listener.progress(self.metrics[-1], self.seconds[-1])

    def have(self, threads: Threads, parts: int) -> None:
        """Let the number of threads be found out. Batches are always cut into so many parts, however many do them."""
        self.threads = threads
        if isinstance(self.rnn.backend, NumpyBackend):
            backend = copy.copy(self.rnn.backend)
            backend.threads = parts
            self.rnn.to(backend)

    def _choose_threads(self, listener: Listener) -> None:
        """Take as many threads as are fast now, if that is to be found out."""
        if self.threads is None or self.finished:
            return
        with self._not_training():
            said = self.threads.choose(self._gradient, self.options.seq_len, self._results, begun=self.step > 0)
        if said is not None:
            if self.threads.for_good:  # who goes on with the run takes the same
                self.options = replace(self.options, threads=self.threads.now)
            listener.threads(self.step, said)

    def _gradient(self, steps: int | None = None) -> Any:
        """That of a batch of the text, or of its first steps, which nothing is done with."""
        x, target = (tokens[:steps] for tokens in self.train.at(0)[1:])
        seed = 0 if self.options.dropout or self.options.recurrent_dropout else None
        return self.rnn.loss_and_grad(x, target, "cross_entropy", dropout_seed=seed)

    def _results(self) -> list[bytes]:
        """Of all that a run computes, as bytes: a gradient and its norm, a validation, a character, a diagnosis."""
        loss, grads, state = self._gradient()
        found = [loss, state.h, *grads.params.values(), global_norm(grads.params, self.rnn.members)]
        if self.validation.streams is not None:
            found.append(self.rnn.loss(*self.validation.streams.at(0)[1:], "cross_entropy")[0])
        found.append(self.rnn(np.zeros((1, 1), np.int64))[0])
        if self.options.diagnose_every:
            found += self.diagnose().arrays().values()
        return [np.asarray(array).tobytes() for array in found]

    def update(
        self, x: Any, target: Any, state: State | None, step: int, stop: Callable[[], bool] = lambda: False
    ) -> Update:
        """Update number ``step``, with ``x`` and ``target`` of this rank's streams; see :meth:`apply`."""
        return self.apply(step, stop, x, target, state=state, dropout_rows=(self.rows.start, self.options.batch))

    def _measure(self, interrupted: Callable[[], bool]) -> None:
        """Another line of metrics."""
        self.read()
        means: Means = np.mean(self.losses, axis=0)
        with self._not_training():
            held_out = self.evaluate(interrupted) if self._evaluates else None
            written = self._sample() if self._evaluates else None
        progress = Progress(
            step=self.step,
            characters=self.step * self.options.batch * self.options.seq_len,
            lr=self.rate(self.step),
            loss=float(means.mean()),
            validation=None if held_out is None else float(held_out.mean()),
            members_loss=_of_members(means),
            members_validation=_of_members(held_out),
            sample=written,
        )
        self.losses = []
        self._add(progress, time.perf_counter() - self._began)

    @contextlib.contextmanager
    def _not_training(self) -> Iterator[None]:
        """What happens within takes none of the seconds of training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._began += time.perf_counter() - began

    def _add(self, progress: Progress, seconds: float) -> None:
        self.metrics.append(progress)
        self.seconds.append(seconds)
        self._lines += json_line(asdict(progress))
        self._times += json_line({"step": progress.step, "seconds": seconds})

    @property
    def files(self) -> tuple[bytes, bytes]:
        """``metrics.jsonl`` and ``times.jsonl``."""
        return bytes(self._lines), bytes(self._times)

    def _sample(self) -> str:
        try:
            return sample(self.rnn, self.vocabulary, length=SAMPLE_LENGTH, seed=self.options.seed)
        except ValueError:  # outputs that are no numbers
            check_parameters(self.step, self.optimizer.lr, self.host_params())
            raise DivergenceError(self.step, self.optimizer.lr, "outputs are no numbers", []) from None

    def evaluate(self, interrupted: Callable[[], bool] = lambda: False) -> Means | None:
        """Validation loss in nats per character, of an ensemble (E,); None without a validation text.

        Parameters
        ----------
        interrupted : () -> bool
            Whether not to wait for the end; asked after every batch.

        Raises
        ------
        DivergenceError
            If it is no number.
        InterruptedValidation
            If a rank was interrupted.
        """
        means = self.validation.losses(self.rnn, interrupted)
        if means is None:
            return None
        self.check_validation(means)
        return np.asarray(np.mean(means, axis=0))

    def diagnose(self) -> Diagnosis:
        """How the gradient flows through a batch of the text: the same one throughout a run."""
        from ..diagnostics.diagnosis import diagnose

        x, target = map(self.rnn.asarray, self._diagnosed)
        return diagnose(self.rnn, x, target, "cross_entropy")

    # ---- checkpoints ----------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """The run as it is after this update, of all ranks; all have to call this."""
        self.read()
        if math.isfinite(self._began):
            self._elapsed = time.perf_counter() - self._began
        state = {} if self.state is None else {"h": self.state.h, "c": self.state.c}
        to_host = self.rnn.backend.to_host
        return Checkpoint(
            **self.moment(),
            elapsed=self._elapsed,
            options=asdict(self.options),
            source=self.source,
            text=self.fingerprint,
            init_from=self.init_from,
            metrics=bytes(self._lines),
            seconds=np.array(self.seconds, np.float64),
            state={
                name: self.ranks.gather(to_host(array), axis=-2) for name, array in state.items() if array is not None
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of a run with the same options and text: to the same bits, on the same device.

        Raises
        ------
        ValueError
            If it is of another text or network; nothing is changed then.
        """
        _check_text(checkpoint, self.fingerprint)
        check_fits(checkpoint, self.rnn.architecture, self.options)
        self.back_to(checkpoint)
        from_host, backend = self.rnn.backend.from_host, self.rnn.backend
        with backend.active():
            state = {name: from_host(array[..., self.rows, :]) for name, array in checkpoint.state.items()}
        self.state = State(**state) if state else None
        self.metrics, self.seconds, self._lines, self._times = [], [], bytearray(), bytearray()
        for progress, seconds in zip(read_lines(checkpoint.metrics), checkpoint.seconds.tolist(), strict=True):
            self._add(progress, seconds)
        self._elapsed = checkpoint.elapsed


#: Sequences of a batch that are diagnosed.
DIAGNOSED = 4


def _of_members(means: Means | None) -> list[float] | None:
    """One number for every member; None where there are no members or no means."""
    return None if means is None or means.ndim == 0 else means.tolist()


def _as_text(text: str | Text) -> Text:
    return text if isinstance(text, Text) else Text.of(text)


def _vocabulary(text: Text, init_from: dict[str, str] | None) -> Vocabulary:
    """The characters of a text and of the network that a run began with."""
    return text.vocabulary if init_from is None else text.vocabulary.joined(init_from["characters"])


def _check_text(checkpoint: Checkpoint, fingerprint: str) -> None:
    if checkpoint.text != fingerprint:
        where = "the same Python" if checkpoint.source is None else "the same files"
        raise ValueError(
            f"the text is not the one that the run has learnt so far; expected that of {where}, with the same contents"
        )
