"""Learning from minibatches, epoch after epoch, up to the best that a network was: what :func:`bptt_array.fit` does.

Where a run is follows from the epoch and from how many of its minibatches are done, so that it goes on from any
checkpoint to the same bits, if an epoch has the same minibatches each time it is asked for.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ..backend.arrays import dtype_name, is_array
from ..backend.portable import Array
from ..checks import said
from ..distributed.ranks import OneProcess
from ..losses import AnyLoss
from ..optimizers.lr_schedules import Schedule
from ..optimizers.state import Optimizer
from ..rnn.rnn import RNN
from .checkpoint import FitCheckpoint, HostArray
from .divergence import DivergenceError
from .feed import NOTHING_COUNTS, Feed, Share
from .history import COLUMNS, EpochEnd, History
from .listener import Listener
from .loop import Loop, on_any_rank
from .validation import InterruptedValidation

Callback = Callable[[EpochEnd], Any]


class Fitting(Loop):
    """Goes through the epochs.

    Parameters
    ----------
    rnn, optimizer, ranks, loss, schedule, clip, on_divergence, seed, how
        As of a :class:`~bptt_array.training.loop.Loop`.
    data : Feed
    validation : Feed, optional
    reduction : str
        As of :meth:`RNN.loss`.
    epochs : int
    patience : int, optional
    callbacks : list of functions of an EpochEnd
    checkpoint_every : int, optional
        Updates; left out, there is a checkpoint after an epoch if there were ten updates since the last one.
    run : dict of str to str
        What this is a run of, for checkpoints to know.

    Attributes
    ----------
    epoch, done : int
        Epochs that are over, and minibatches of the one that is not.
    history : History
    best : dict of str to array
        The parameters with the lowest validation losses, on the device.
    """

    def __init__(
        self,
        rnn: RNN,
        optimizer: Optimizer,
        ranks: OneProcess,
        data: Feed,
        validation: Feed | None,
        *,
        loss: AnyLoss,
        reduction: str,
        epochs: int,
        patience: int | None,
        schedule: Schedule,
        clip: float,
        callbacks: Sequence[Callback],
        checkpoint_every: int | None,
        on_divergence: str,
        seed: int,
        how: dict[str, Any],
        run: dict[str, str],
    ) -> None:
        super().__init__(
            rnn,
            optimizer,
            ranks,
            loss=loss,
            schedule=schedule,
            clip=clip,
            on_divergence=on_divergence,
            seed=seed << 64,  # such that no update of one seed has the masks of any of another
            how=how | {"reduction": reduction},
        )
        self.data, self.validation, self.reduction = data, validation, reduction
        self.epochs, self.patience, self.callbacks = epochs, patience, callbacks
        self.checkpoint_every, self.of = checkpoint_every, run
        self.history = History(rnn.members)
        self.epoch = self.done = self.waited = 0
        self.best: dict[str, Array] = {}
        members = () if rnn.members is None else (rnn.members,)
        self.best_epoch, self.best_validation = np.full(members, -1), np.zeros(members)
        self._batches: Iterator[Share] | None = None
        self._unread: list[int] = []  # updates of the epochs that are over, and whose losses are not all read
        self._began = time.perf_counter()
        self._called_back = False

    @property
    def finished(self) -> bool:
        return self.epoch >= self.epochs or self._is_enough

    @property
    def _is_enough(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    @property
    def ended_by(self) -> str:
        """Why :meth:`run` returned, see :class:`History`."""
        if self._called_back:
            return "callback"
        return "patience" if self._is_enough else "epochs" if self.epoch >= self.epochs else "interrupted"

    def begin(self, listener: Listener) -> None:
        self._began, self._called_back = time.perf_counter(), False

    def go_on(self, listener: Listener) -> None:
        if self._batches is None:
            self._batches = itertools.islice(self.data.epoch(self.epoch), self.done, None)
        share = next(self._batches, None)
        try:
            if share is None:
                self._end_epoch(listener)
            else:
                self._advance(share, listener)
        except DivergenceError as error:
            if data := self._not_finite(error.step):
                error.comes_of(data)
            raise

    def _advance(self, share: Share, listener: Listener) -> None:
        self.step, self.done = self.step + 1, self.done + 1
        reads = self.step % self.report_every == 0
        self.note(self.update(share, self.step, listener.stop), reads=reads)
        if reads:
            self.read()
            listener.trained(self.step, float(np.mean(self.losses[-self.report_every :])))
        due = self._is_checked_step
        if due or self.stopped:
            self.keep(listener, due=due)

    @property
    def _is_checked_step(self) -> bool:
        """Whether there is a checkpoint after this update, wherever in an epoch it is."""
        return self.checkpoint_every is not None and self.step % self.checkpoint_every == 0

    def update(self, share: Share, step: int, stop: Callable[[], bool] = lambda: False) -> Any:
        """Update number ``step``, with what this rank has of a minibatch; see :meth:`apply`."""
        return self.apply(step, stop, share.x, share.target, dropout_rows=share.rows, **share.given)

    def named(self) -> AbstractContextManager[None]:
        return self.data.named(self.done - 1)

    def _end_epoch(self, listener: Listener) -> None:
        """What is due when all minibatches of an epoch are done."""
        held_out = None
        if self.validation is not None:
            self.read()
            try:
                held_out = self.evaluate(listener.interrupted)
            except InterruptedValidation:
                self.stopped = True
                self.keep(listener, due=False)
                return
            self.check_validation(held_out[None])
        now, rows = time.perf_counter(), self.history.rows
        rows["lr"].append(self.rate(self.step))  # this may have begun after the last update
        rows["seconds"].append(now - self._began)
        self._began = now
        self._unread.append(self.done)
        if held_out is not None:
            rows["validation"].append(held_out.tolist())
            self._compare(held_out)
        before, self.epoch, self.done, self._batches = self.step - self.done, self.epoch + 1, 0, None
        if self.callbacks or held_out is not None:
            self.read()
        else:
            self._take_losses()
        end = EpochEnd(self.epoch - 1, self.step, self.history, self.rnn)
        wishes = [_is_true(f"callbacks[{k}]", callback(end)) for k, callback in enumerate(self.callbacks)]
        if on_any_rank(self.ranks, any(wishes)):
            self.stopped = self._called_back = True
        crossed = before // self.report_every != self.step // self.report_every
        # Once more after the last update of an epoch: it is then over.
        due = self._is_checked_step or (crossed and self.checkpoint_every is None)
        if due or self.finished or self.stopped:
            self.keep(listener, due=due)
        listener.epoch(self.history)

    def _not_finite(self, step: int) -> str:
        """In words, what the update of this step was given that is no number, or else the validation; or nothing."""
        at, epoch, skipped, found = self.good.step, self.good.epoch, self.good.done, ""
        while at < step:
            for n, share in enumerate(self.data.epoch(epoch)):
                at += n >= skipped
                if at == step:
                    found = self.data.not_finite(n, share)
                    break
            epoch, skipped = epoch + 1, 0
        if self.validation is not None and not found:
            each = (self.validation.not_finite(n, share) for n, share in enumerate(self.validation.epoch(0)))
            found = next(filter(None, each), "")
        return found

    def read(self) -> None:
        super().read()
        self._take_losses()

    def _take_losses(self) -> None:
        """Those of epochs that are over, where all of them are here, become a mean of the history."""
        while self._unread and len(self.losses) >= self._unread[0]:
            updates = self._unread.pop(0)
            mean = np.mean(np.array(self.losses[:updates], np.float64), axis=0)
            self.history.rows["loss"].append(mean.tolist())
            del self.losses[:updates]

    # ---- validation -----------------------------------------------------------------------------------

    def evaluate(self, interrupted: Callable[[], bool] = lambda: False) -> HostArray:
        """The loss of all of ``validation``, 0-d or (E,), as if it were one minibatch; dropout is off.

        Raises
        ------
        InterruptedValidation
            If a rank did not want to wait for the end; asked before every minibatch.
        """
        assert self.validation is not None
        losses, steps, backend = [], [], self.rnn.backend
        for n, share in enumerate(self.validation.epoch(0)):
            if on_any_rank(self.ranks, interrupted()):
                raise InterruptedValidation
            steps.append(self.validation.steps(n, share))
            loss, _ = self.rnn.loss(share.x, share.target, self.loss, reduction=self.reduction, **share.given)
            losses.append(loss)
        with backend.active():
            means = backend.to_host(backend.xp.stack(losses)).astype(np.float64)  # (minibatches, [E])
        if steps[0] is None:
            return np.asarray(self.ranks.sum({"loss": means.sum(axis=0)})["loss"])
        over = np.array([each if isinstance(each, int) else backend.to_host(each) for each in steps], np.float64)
        over = over.reshape(over.shape + (1,) * (means.ndim - over.ndim))
        found = self.ranks.sum({"loss": (means * over).sum(axis=0), "over": over.sum(axis=0)})
        if not found["over"].all():
            raise ValueError(f"validation {NOTHING_COUNTS}")
        return np.asarray(found["loss"] / found["over"])

    def _compare(self, held_out: HostArray) -> None:
        """Keep what is better than ever; of an ensemble each member by itself."""
        better = (held_out < self.best_validation) | (self.best_epoch < 0)
        self.waited = 0 if better.any() else self.waited + 1
        backend, xp = self.rnn.backend, self.rnn.backend.xp
        with backend.active():
            if better.all():
                self.best = {name: backend.copy(value) for name, value in self.rnn.params.items()}
            elif better.any():
                of_members = backend.from_host(better)
                for name, value in self.rnn.params.items():
                    chosen = xp.reshape(of_members, (-1, *(1,) * (value.ndim - 1)))
                    self.best[name] = xp.where(chosen, value, self.best[name])
        self.best_validation = np.where(better, held_out, self.best_validation)
        self.best_epoch = np.where(better, self.epoch, self.best_epoch)
        self.history.best_epoch = self.best_epoch.tolist()
        observe = getattr(self.schedule, "observe", None)
        if observe is not None:
            observe(float(held_out.mean()))

    def take_best(self) -> None:
        """Give the network the best parameters, if there was a validation."""
        if self.best:
            self.rnn.load_params(self.best)

    # ---- checkpoints ----------------------------------------------------------------------------------

    def checkpoint(self) -> FitCheckpoint:
        self.read()
        to_host = self.rnn.backend.to_host
        return FitCheckpoint(
            **self.moment(),
            run=self.of,
            epoch=self.epoch,
            done=self.done,
            waited=self.waited,
            schedule=state_of_schedule(self.schedule, on_disk=bool(self.of)),
            history={name: self.history.column(name) for name in COLUMNS},
            best={name: to_host(value) for name, value in self.best.items()},
            best_epoch=self.best_epoch,
            best_validation=self.best_validation,
        )

    def restore(self, checkpoint: FitCheckpoint) -> None:
        """Go on from a checkpoint, which was compared with this run."""
        self.back_to(checkpoint)
        backend = self.rnn.backend
        with backend.active():
            self.best = {name: backend.from_host(value) for name, value in checkpoint.best.items()}
        if checkpoint.schedule is not None:
            self.schedule.load_state_dict(copy.deepcopy(checkpoint.schedule))  # type: ignore[attr-defined]
        self.epoch, self.done, self.waited = checkpoint.epoch, checkpoint.done, checkpoint.waited
        self.best_epoch, self.best_validation = checkpoint.best_epoch, checkpoint.best_validation
        for name in COLUMNS:
            self.history.rows[name][:] = checkpoint.history[name].tolist()
        self.history.best_epoch = self.best_epoch.tolist() if self.best else None
        self._batches, self._unread, self._began = None, [], time.perf_counter()


def state_of_schedule(schedule: Schedule, *, on_disk: bool) -> Any:
    """A copy of what a schedule has observed, for a checkpoint, which may be one ``on_disk``; None of a plain function.

    Raises
    ------
    TypeError
        If a file cannot hold it.
    """
    if not (hasattr(schedule, "state_dict") and hasattr(schedule, "load_state_dict")):
        return None
    state = schedule.state_dict()
    if not on_disk:
        return copy.deepcopy(state)
    if not (isinstance(state, dict) and _is_plain(state)):
        raise TypeError(
            f"schedule.state_dict() is {said(state, 100)}; expected a dict with strings as keys that JSON gives back "
            "as it is: of strings, lists, True, False, None and Python's own numbers, float(…) and int(…)"
        )
    return json.loads(json.dumps(state))


def _is_plain(value: Any) -> bool:
    """Whether JSON gives it back as it is."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(each) for name, each in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bool, int, float))


def _is_true(name: str, answer: Any) -> bool:
    """Whether a callback said True, which NumPy has one of its own of; other numbers are no answer."""
    if dtype_name(answer) == "bool" if is_array(answer) else isinstance(answer, bool):
        if getattr(answer, "ndim", 0):
            raise TypeError(
                f"{name} returned bools of shape {tuple(answer.shape)}; expected True where training is to end: of the "
                "members of an ensemble use .all() or .any()"
            )
        return bool(answer)
    return False
