"""The loop of updates that every training goes through, whatever it learns: until it is finished, stopped or diverged.

It asks the device for nothing at an update. Losses, and the largest entries of gradients, stay there and are read
together every ten updates. Where one of them is no number, the loop goes back to the last checkpoint.

The ranks of a job share batches out. After each update all of them know the same, to the same bits, and do the same
with it, so that nobody has to be told.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..backend.portable import Array
from ..bptt.state import State
from ..checks import check_number
from ..distributed.ranks import OneProcess
from ..losses import AnyLoss
from ..optimizers.lr_schedules import Schedule
from ..optimizers.norms import clip_by_global_norm, largest_entries
from ..optimizers.state import Optimizer
from ..rnn.rnn import RNN
from .checkpoint import HostArray, Moment
from .divergence import DivergenceError, Readings, check_losses, check_parameters
from .listener import Listener

#: How often the learning rate is halved before training is given up.
HALVINGS = 20


class Update(NamedTuple):
    """What one update leaves, on the device.

    Attributes
    ----------
    loss : 0-d, or (E,)
    state : State
        Of this rank's sequences.
    largest : dict of str to array
        The largest absolute entry of every gradient, 0-d or (E,).
    stops : 0-d
        How many ranks want to stop; where the host has it, on the host.
    """

    loss: Array
    state: State
    largest: dict[str, Array]
    stops: Array


class Loop(ABC):
    """What is trained, by what, and how far it is.

    Parameters
    ----------
    rnn : RNN
    optimizer : Optimizer
        Its ``lr`` is set before each update.
    ranks : OneProcess
        Those that train together.
    loss : str or (y, target) -> (loss, dy)
    schedule : (int) -> float
    clip : float
        The largest global norm, of each member by itself; 0: gradients are not clipped.
    on_divergence : {"stop", "halve-lr"}
    seed : int
        Of the masks of dropout: that of an update is its number more.
    how : dict
        What else ``loss_and_grad`` is told of every batch.

    Attributes
    ----------
    step : int
        Updates so far.
    lr : float
        The learning rate that the schedule multiplies; halved where training diverged.
    losses : list of (0-d or (E,))
        Of the last updates, as far as they are on the host and nobody has taken them.
    events : list of dict
        Where training diverged, see :class:`~bptt_array.training.checkpoint.Moment`.
    good : Moment or None
        The last checkpoint that was due: a divergence goes back to it. Others, such as those where a run is stopped,
        are there to go on from, and change nothing of what becomes of the run.
    unsaid : bool
        Whether there is to be a checkpoint before the next update.
    stopped : bool
        By what all ranks know.
    """

    #: The device is asked for losses after so many updates.
    report_every = 10

    def __init__(
        self,
        rnn: RNN,
        optimizer: Optimizer,
        ranks: OneProcess,
        *,
        loss: AnyLoss,
        schedule: Schedule,
        clip: float,
        on_divergence: str,
        seed: int = 0,
        how: dict[str, Any] | None = None,
    ) -> None:
        self.rnn, self.optimizer, self.ranks = rnn, optimizer, ranks
        self.loss, self.schedule, self.clip, self.on_divergence = loss, schedule, clip, on_divergence
        self.lr = optimizer.lr
        self.step = 0
        self.losses: list[HostArray] = []
        self.events: list[dict[str, Any]] = []
        self.good: Any = None
        self.unsaid = True
        self.stopped = False
        self._seed, self._how = seed, how or {}
        self._readings = Readings(rnn.backend)

    # ---- what is trained says -------------------------------------------------------------------------

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether all is done."""

    @abstractmethod
    def go_on(self, listener: Listener) -> None:
        """The next update, and what is due after it; or the rest of what was due and interrupted."""

    @abstractmethod
    def checkpoint(self) -> Moment:
        """The run as it is, of all ranks; all have to call this."""

    @abstractmethod
    def restore(self, checkpoint: Any) -> None:
        """Go on from a checkpoint, to the same bits on the same device."""

    def named(self) -> AbstractContextManager[None]:
        """Where errors say of which data they are, if those can be wrong."""
        return nullcontext()

    def begin(self, listener: Listener) -> None:
        """What is done before the first update of :meth:`run`; of most: nothing."""
        return

    # ---- the loop -------------------------------------------------------------------------------------

    def run(self, listener: Listener | None = None) -> None:
        """Train until it is finished, or the listener of a rank says that an update is to be the last.

        There is a checkpoint at the beginning.

        Raises
        ------
        DivergenceError
            If a loss, a gradient or a parameter is no number any more: with ``on_divergence="halve-lr"`` only after
            the learning rate was halved many times, or where the data are the reason. All is then as it was at the last
            checkpoint that was due.
        """
        listener = Listener() if listener is None else listener
        self.ranks.broadcast(self.rnn.params)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # readings look at what they lead to
            if self.unsaid:
                self.keep(listener, due=self.good is None)
            self.stopped = False
            self.begin(listener)
            while not (self.finished or self.stopped):
                try:
                    self.go_on(listener)
                except DivergenceError as error:
                    self._go_back(error, listener)

    def apply(self, step: int, stop: Callable[[], bool], x: Any, target: Any, **given: Any) -> Update:
        """Update number ``step``: (2.1), (3.1)-(3.4) and (4), with what ``loss_and_grad`` is given of this rank.

        Nothing here waits for the device. ``stop`` says, when the gradient is there, whether this rank wants the update
        to be the last.
        """
        rnn, members = self.rnn, self.rnn.members
        self.optimizer.lr = self.rate(step)
        seed = self._seed + step if rnn.dropout or rnn.recurrent_dropout else None
        with self.named():
            loss, own, state = rnn.loss_and_grad(x, target, self.loss, dropout_seed=seed, **self._how, **given)
        grads, loss, stops = self.ranks.all_reduce(own, loss, flag=stop())
        changes = {name: grads.params[name] for name in rnn.params}  # in this order they are named
        largest = largest_entries(changes, members)
        if self.clip:
            changes = clip_by_global_norm(changes, self.clip, members, largest=largest)
        self.optimizer.update(rnn.params, changes)
        return Update(loss, state, largest, stops)

    def note(self, done: Update, *, reads: bool) -> None:
        """What an update left is to be read later; ``reads``: the device will be asked anyway after this one."""
        self._readings.add(self.step, self.optimizer.lr, done.loss, done.largest)
        # To ask a device is to wait for it: that is done where there is something to report.
        on_host = isinstance(done.stops, (np.ndarray, np.generic))
        if on_host or reads:
            stops = done.stops if on_host else self.rnn.backend.to_host(done.stops)
            self.stopped = bool(stops > 0)

    def rate(self, step: int) -> float:
        """The learning rate of update number ``step``."""
        return self.lr * check_number(f"schedule({step - 1})", self.schedule(step - 1))

    def read(self) -> None:
        """Bring the losses since the last time to the host: the only place where updates are waited for."""
        self.losses += self._readings.read()

    def check_validation(self, losses: HostArray) -> None:
        """Validation losses ``(batches, [E])`` are numbers.

        Raises
        ------
        DivergenceError
            If not, naming the parameters that are none, or else the losses.
        """
        try:
            check_losses(self.step, self.optimizer.lr, losses)
        except DivergenceError:
            check_parameters(self.step, self.optimizer.lr, self.host_params())
            raise

    # ---- checkpoints ----------------------------------------------------------------------------------

    def keep(self, listener: Listener, *, due: bool) -> None:
        """A checkpoint, if all that goes into it are numbers; ``due``: a run that is never stopped has it too."""
        self.read()
        checkpoint = self.checkpoint()
        check_parameters(self.step, self.optimizer.lr, checkpoint.numbers())
        self.ranks.check_equal(self.rnn.params)
        if due or self.good.step == self.step:
            self.good = checkpoint
        else:
            checkpoint = replace(checkpoint, goes_back_to=self.good.step, earlier=self.good)
        self.unsaid = False
        listener.checkpoint(checkpoint)

    def moment(self) -> dict[str, Any]:
        """The fields that all checkpoints have, of what was read."""
        to_host, optimizer = self.rnn.backend.to_host, self.optimizer.state_dict()
        members = () if self.rnn.members is None else (self.rnn.members,)
        return {
            "step": self.step,
            "lr": self.lr,
            "device": self.rnn.backend.name,
            "updates": optimizer["updates"],
            "events": list(self.events),
            "losses": np.array(self.losses, self.rnn.dtype).reshape(-1, *members),
            "params": self.host_params(),
            "kept": {name: [to_host(array) for array in kept] for name, kept in optimizer["kept"].items()},
        }

    def back_to(self, moment: Moment) -> None:
        """Be as at this moment, as far as all checkpoints say it; the arrays of the parameters stay the same."""
        with self.rnn.backend.active():
            kept = {name: list(arrays) for name, arrays in moment.kept.items()}
            self.optimizer.load_state_dict({"updates": moment.updates, "kept": kept}, like=self.rnn.params)
            self.rnn.load_params(moment.params)
        self.step, self.lr, self.unsaid = moment.step, moment.lr, False
        self.good = moment if moment.earlier is None else moment.earlier
        self.losses, self.events = list(moment.losses), list(moment.events)
        self._readings.forget()

    def host_params(self) -> dict[str, HostArray]:
        return {name: self.rnn.backend.to_host(value) for name, value in self.rnn.params.items()}

    def _go_back(self, error: DivergenceError, listener: Listener) -> None:
        """To the last checkpoint, and on with half the learning rate; or give up there."""
        good, halved, events = self.good, self.lr / 2, self.events
        tried = sum(event["lr"] is not None for event in events)
        again = self.on_divergence != "stop" and tried < HALVINGS and not error.of_data
        self.restore(good)
        self.lr = halved if again else good.lr
        event = {"step": error.step, "why": str(error), "back_to": good.step, "lr": halved if again else None}
        self.events = [*events, event]
        self.keep(listener, due=True)  # with what happened, and the learning rate that follows from it
        if not again:
            raise error
        listener.went_back(error, good.step, halved)


def on_any_rank(ranks: OneProcess, flag: bool) -> bool:
    """Whether it is so on one of the ranks; all of them have to ask."""
    if ranks.size == 1:
        return flag
    return bool(ranks.sum({"flag": np.array(float(flag))})["flag"] > 0)
