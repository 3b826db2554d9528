"""``fit``: a network learns from a data set, shows how far it is, and goes on where it was left."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from ..backend.arrays import is_integer
from ..checks import check_count, check_flag, check_number, check_option, check_path, is_several, said
from ..distributed.ranks import OneProcess
from ..losses import AnyLoss
from ..optimizers.lr_schedules import Schedule
from ..optimizers.state import Optimizer
from ..optimizers.updates import Adam
from ..rnn.rnn import RNN
from ..schedules.instructions import check_truncate
from ..serialization import flush_folder, remove_unfinished
from ..training.checkpoint import FitCheckpoint, check_run
from ..training.feed import Feed
from ..training.fitting import Callback, Fitting, state_of_schedule
from ..training.history import History
from ..training.options import ON_DIVERGENCE
from .checkpoints import FOLDER as CHECKPOINTS
from .checkpoints import checkpoints, newest_checkpoint
from .claims import alone_in
from .fit_listener import FitListener, shown_of, stopping
from .held import Held
from .identity import identity

T = TypeVar("T")


def fit(
    rnn: RNN,
    data: Any,
    *,
    loss: AnyLoss = "mse",
    optimizer: Optimizer | None = None,
    epochs: int = 10,
    validation: Any = None,
    patience: int | None = None,
    schedule: Schedule | None = None,
    clip: float | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
    seed: int = 0,
    reduction: str = "mean",
    truncate: int | tuple[int, int] | None = None,
    memory: int | str | None = None,
    folder: Any = None,
    checkpoint_every: int | None = None,
    on_divergence: str = "stop",
    ranks: OneProcess | None = None,
) -> History:
    """Train a network on minibatches, and give it the weights that were best on the validation set.

    Parameters
    ----------
    rnn : RNN
        Its parameters are changed in place. Of an ensemble every member is trained, clipped, compared and given its
        best weights by itself.
    data : Batches, tuple or iterable of tuples
        :func:`bptt_array.batches`; or ``(x, target)``, ``(x, target, lengths)`` or ``(x, target, lengths, weights)``,
        which is one minibatch an epoch; or a list, or anything else that can be gone through again and again, of such
        tuples. Arrays as for :meth:`RNN.loss_and_grad`, but of any float dtype and device; integers are tokens or
        classes. Every minibatch begins with states of 0.
    loss : str, one of ``ba.losses``, or (y, target) -> (loss, dy)
        As for :meth:`RNN.loss_and_grad`.
    optimizer : Optimizer, optional
        ``ba.Adam()``, if left out. Its ``lr`` is afterwards what it was.
    epochs : int
    validation : as ``data``, optional
        After every epoch the loss of all of it is computed as if it were one minibatch, without dropout.
    patience : int, optional
        Stop after so many epochs in a row in which the validation loss was no lower than ever before; of an ensemble
        that of no member.
    schedule : (int) -> float, optional
        Of the number of updates done before: what ``optimizer.lr`` is multiplied with, see
        :mod:`bptt_array.optimizers.lr_schedules`. One with ``observe(value)`` is told the validation loss after every
        epoch (of an ensemble the mean over its members), and knows it afterwards: a new training wants a new one. With
        a folder or ``"halve-lr"`` it has ``state_dict()`` and ``load_state_dict(state)``, with a folder of a dict that
        JSON can hold.
    clip : float, optional
        Gradients of a larger global norm are scaled down to it.
    callbacks : functions
        Each is called after every epoch with its :class:`~bptt_array.training.history.EpochEnd`: ``epoch``, ``step``,
        ``history`` and ``rnn``. Where one returns True (of Python or of NumPy), it was the last; called again with the
        same ``folder``, training goes on. The learning rate is a matter of ``schedule``: what a callback sets
        ``optimizer.lr`` to has no effect.
    progress : bool
        A bar on standard error with tqdm (``pip install tqdm``) and a terminal, otherwise a line there for an epoch, at
        most one a second. False: nothing.
    seed : int
        Of the masks of dropout, which are others at every update. The order of data is the seed of ``ba.batches``.
    reduction, truncate, memory
        As for :meth:`RNN.loss_and_grad`.
    folder : str or Path, optional
        Where checkpoints are kept: the last three, and those that a divergence may go back to. Called again with the
        same arguments, in another process too, the run goes on from the last one, whatever the weights of ``rnn`` are
        then; on a CPU to the same bits as if it had never been stopped. ``epochs``, ``patience``, ``callbacks``,
        ``progress``, ``checkpoint_every``, ``on_divergence`` and ``ranks`` may be others. An epoch has to have
        the same minibatches each time, so that a loader which shuffles will not do; the first one is read once more to
        see that.
    checkpoint_every : int, optional
        Updates from a checkpoint to the next; left out, there is one after an epoch, if there were ten updates or more
        since the last one. Where training diverges it goes back to the last of those, also without a folder.
    on_divergence : {"stop", "halve-lr"}
        Where a loss, gradient or parameter is no number, which is looked at every ten updates: a DivergenceError, with
        the network as it was at the last checkpoint; or on from there with half the learning rate, at most 20 times,
        but where the data hold what is no number.
    ranks : OneProcess, optional
        Those of :func:`bptt_array.distributed.communicator`, each of which calls this with the same arguments, and
        takes its part of every minibatch. Rank 0 writes checkpoints and shows progress.

    Returns
    -------
    History

    Raises
    ------
    ValueError, TypeError
        Naming the argument, before anything is done; of a minibatch that is no list's and not the first one, and of a
        schedule that comes to no number, when it is their turn.
    DivergenceError, a FloatingPointError
        See ``on_divergence``.

    Notes
    -----
    Ctrl-C (in the main thread) ends training after the update or the minibatch of validation that is under way, with a
    checkpoint, and the best weights so far; a second one is a KeyboardInterrupt at once. On a device nothing waits for
    an update, but for what is read every ten of them, and for a validation.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> x = np.random.default_rng(0).standard_normal((20, 64, 1))
    >>> target = np.cumsum(x, axis=0) / 5
    >>> train, held_out = (x[:, :48], target[:, :48]), (x[:, 48:], target[:, 48:])
    >>> rnn = ba.RNN(1, 16, 1)
    >>> history = ba.fit(rnn, train, optimizer=ba.Adam(1e-2), epochs=50, validation=held_out, clip=1.0, progress=False)
    >>> bool(history.validation[history.best_epoch] < 0.2 * history.validation[0])
    True
    """
    if not isinstance(rnn, RNN):
        raise TypeError(f"rnn is a {type(rnn).__name__}; expected a ba.RNN")
    optimizer = Adam() if optimizer is None else optimizer
    if not isinstance(optimizer, Optimizer):
        what = f"class {optimizer.__name__}" if isinstance(optimizer, type) else type(optimizer).__name__
        raise TypeError(f"optimizer is a {what}; expected an optimizer, such as ba.Adam(lr=1e-3)")
    ranks = OneProcess() if ranks is None else ranks
    if not isinstance(ranks, OneProcess):
        raise TypeError(f"ranks is a {type(ranks).__name__}; expected ba.distributed.communicator()")
    epochs, seed = check_count("epochs", epochs), check_count("seed", seed, least=0, most=(1 << 63) - 1)
    patience = None if patience is None else check_count("patience", patience)
    checkpoint_every = None if checkpoint_every is None else check_count("checkpoint_every", checkpoint_every)
    if clip is not None and (clip := check_number("clip", clip, least=-math.inf)) <= 0:
        raise ValueError(f"clip={clip:g}; expected a positive number, or None to leave gradients as they are")
    check_option("on_divergence", on_divergence, ON_DIVERGENCE)
    check_flag("progress", progress)
    on_disk = folder is not None
    _check_schedule(schedule, validation, kept=on_disk or on_divergence != "stop", on_disk=on_disk)
    if patience is not None and validation is None:
        raise ValueError(f"patience={patience}, but there is no validation to get better on; give validation=…")
    callbacks = _functions(callbacks)
    truncate = check_truncate(truncate, bidirectional=rnn.bidirectional, reverse=rnn.reverse)
    feed = Feed("data", data, rnn, ranks, loss, reduction)
    held_out = None if validation is None else Feed("validation", validation, rnn, ranks, loss, reduction)
    _check_memory(rnn, feed, memory, loss, truncate)
    path = None if folder is None else check_path("folder", folder).absolute()  # wherever a callback changes to
    _check_alike(
        ranks,
        {
            "epochs": epochs,
            "patience": patience,
            "clip": clip,
            "seed": seed,
            "reduction": reduction,
            "truncate": truncate,
            "checkpoint_every": checkpoint_every,
            "on_divergence": on_divergence,
            "folder=… given": path is not None,
            "minibatches of data": len(feed),
            "minibatches of validation": None if held_out is None else len(held_out),
        },
    )
    lr, run = optimizer.lr, {}
    if path is not None:
        how = {"seed": seed, "reduction": reduction, "truncate": truncate, "memory": memory, "clip": clip}
        run = identity(rnn, optimizer, loss, schedule, feed, held_out) | {k: repr(v) for k, v in how.items()}
    fitting = Fitting(
        rnn,
        optimizer,
        ranks,
        feed,
        held_out,
        loss=loss,
        reduction=reduction,
        epochs=epochs,
        patience=patience,
        schedule=_constant if schedule is None else schedule,
        clip=clip or 0.0,
        callbacks=callbacks,
        checkpoint_every=checkpoint_every,
        on_divergence=on_divergence,
        seed=seed,
        how={"truncate": truncate, "memory": memory},
        run=run,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, optimizer, "lr", lr)
        held = None if path is None else _at_first(ranks, lambda: _claimed(path, stack))
        if path is not None:
            _go_on(fitting, path, held, ranks)
        stop = stack.enter_context(stopping())
        shown = stack.enter_context(shown_of(fitting, len(feed))) if progress and ranks.rank == 0 else None
        fitting.run(FitListener(stop, path, held, shown, first=ranks.rank == 0))
        fitting.history.stopped = fitting.ended_by
        fitting.take_best()
    return fitting.history


# ---- arguments --------------------------------------------------------------------------------------------


def _constant(step: int) -> float:
    return 1.0


def _check_schedule(schedule: Any, validation: Any, *, kept: bool, on_disk: bool) -> None:
    """``kept``: whether the run may go back to a checkpoint, or, ``on_disk``, on from one."""
    if schedule is None:
        return
    if not callable(schedule) or isinstance(schedule, type):
        raise TypeError(
            f"schedule={said(schedule, 100)} is a {type(schedule).__name__}; expected a function of the number of "
            "updates, such as ba.lr_schedules.cosine(1000)"
        )
    if hasattr(schedule, "observe") and validation is None:
        raise ValueError(
            f"schedule={said(schedule, 100)} goes by the validation loss, but there is no validation; give validation=…"
        )
    check_number("schedule(0)", schedule(0))
    has = {name: hasattr(schedule, name) for name in ("observe", "state_dict", "load_state_dict")}
    if kept and any(has.values()) and not (has["state_dict"] and has["load_state_dict"]):
        raise TypeError(
            f"schedule={said(schedule, 100)} has {' and '.join(name for name in has if has[name])}; expected both "
            "state_dict() and load_state_dict(state), by which checkpoints keep what it has observed, as "
            "ba.lr_schedules.Plateau has them"
        )
    state_of_schedule(schedule, on_disk=on_disk)


def _functions(callbacks: Any) -> list[Callback]:
    found = list(callbacks) if is_several(callbacks) else [callbacks]
    for k, callback in enumerate(found):
        if not callable(callback):
            which = f"[{k}]" if is_several(callbacks) else ""
            raise TypeError(
                f"callbacks{which} is a {type(callback).__name__}; expected a function of what an epoch left, or ()"
            )
    return found


def _check_memory(rnn: RNN, feed: Feed, memory: Any, loss: Any, truncate: Any) -> None:
    """Whether the first minibatch fits into the budget."""
    if memory is None or feed.first is None or 0 in feed.first.x.shape:
        return
    x, _, lengths, weights, _ = feed.first
    rnn.plan(
        tuple(x.shape),
        memory,
        loss=loss,
        tokens=is_integer(x),
        lengths=lengths is not None,
        weights=weights is not None,
        truncate=truncate,
    )


def _check_alike(ranks: OneProcess, given: dict[str, Any]) -> None:
    """The ranks of a job are asked for the same, or some would wait for others for ever."""
    of_ranks = ranks.comm.allgather(given) if ranks.size > 1 else [given]  # type: ignore[attr-defined]
    for rank, its in enumerate(of_ranks):
        for name, value in its.items():
            if value != (first := of_ranks[0][name]):
                raise ValueError(f"{name}: {value} on rank {rank}, {first} on rank 0; expected the same on all ranks")


# ---- a folder ---------------------------------------------------------------------------------------------


def _at_first(ranks: OneProcess, work: Callable[[], T]) -> T | None:
    """Let rank 0 do it, and the others raise what it raised."""
    found: T | None = None
    error: Exception | None = None
    if ranks.rank == 0:
        try:
            found = work()
        except Exception as raised:  # noqa: BLE001 (all raise it)
            error = raised
    if ranks.size > 1:
        error = ranks.comm.bcast(error)  # type: ignore[attr-defined]
    if error is not None:
        raise error
    return found


def _claimed(path: Path, stack: contextlib.ExitStack) -> Held:
    """The folder, made if need be, for this process alone."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"folder={str(path)!r} is a file; expected a folder, or the name of a new one") from None
    except NotADirectoryError:
        raise ValueError(f"folder={str(path)!r} is below a file; expected a folder, or the name of a new one") from None
    flush_folder(path.parent)
    held = stack.enter_context(alone_in(path))
    for each in (path, path / CHECKPOINTS):
        remove_unfinished(each)
    return held


def _go_on(fitting: Fitting, path: Path, held: Held | None, ranks: OneProcess) -> None:
    """From the last checkpoint of the folder, if there is one."""

    def newest() -> FitCheckpoint | None:
        if not checkpoints(path):
            return None
        found: FitCheckpoint = newest_checkpoint(path, warnings.warn, FitCheckpoint)
        try:
            for each in filter(None, (found, found.earlier)):
                check_run(each, fitting.of, fitting.rnn.architecture, len(fitting.optimizer.keeps))
        except ValueError as error:
            raise ValueError(f"folder={str(path)!r}: {error}") from None
        if found.epoch > fitting.epochs:
            raise ValueError(
                f"epochs={fitting.epochs} is fewer than the {found.epoch} that the run in folder={str(path)!r} has "
                "had; expected at least as many, or another folder"
            )
        return found

    found = _at_first(ranks, newest)
    if ranks.size > 1:
        found = ranks.comm.bcast(found)  # type: ignore[attr-defined]
    if found is not None:
        fitting.restore(found)
