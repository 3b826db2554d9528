"""What became of a training, epoch by epoch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..rnn.rnn import RNN

HostArray = np.ndarray[Any, Any]

#: What there is of every epoch.
COLUMNS = ("loss", "validation", "lr", "seconds")


class History:
    """Losses of every epoch, counted from 0, and how training ended.

    Attributes
    ----------
    loss : (epochs,) or, of an ensemble, (epochs, E)
        Mean of the losses of the epoch's updates.
    validation : (epochs,) or (epochs, E), or None
        After each epoch; None where there was no validation.
    lr : (epochs,)
        Learning rate of the last update of each epoch.
    seconds : (epochs,)
        That each took, with its validation. All else is the same to the bit where a training is done again.
    best_epoch : int, or list of E int, or None
        With the lowest validation loss: the network has its weights. None before the first validation.
    stopped : str or None
        ``"epochs"``: all were done; ``"patience"``; ``"callback"``; ``"interrupted"``, by Ctrl-C; None: not yet.
    """

    def __init__(self, members: int | None = None) -> None:
        self.members = members
        self.rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.best_epoch: int | list[int] | None = None
        self.stopped: str | None = None

    def __len__(self) -> int:
        """How many epochs there were."""
        return len(self.rows["loss"])

    def __repr__(self) -> str:
        best = "" if self.best_epoch is None else f", best_epoch={self.best_epoch}"
        return f"<History of {len(self)} epochs{best}, stopped={self.stopped!r}>"

    def column(self, name: str) -> HostArray:
        """One of :data:`COLUMNS` as float64."""
        members = () if self.members is None or name in ("lr", "seconds") else (self.members,)
        return np.array(self.rows[name], np.float64).reshape(-1, *members)

    @property
    def loss(self) -> HostArray:
        return self.column("loss")

    @property
    def validation(self) -> HostArray | None:
        return self.column("validation") if self.rows["validation"] else None

    @property
    def lr(self) -> HostArray:
        return self.column("lr")

    @property
    def seconds(self) -> HostArray:
        return self.column("seconds")

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        columns = {name: self.column(name).tolist() for name in COLUMNS}
        if self.validation is None:
            columns |= {"validation": None}
        return columns | {"best_epoch": self.best_epoch, "stopped": self.stopped}


class EpochEnd(NamedTuple):
    """What callbacks are given after an epoch.

    Attributes
    ----------
    epoch : int
        That has just ended, counted from 0.
    step : int
        Updates so far.
    history : History
    rnn : RNN
        With the weights of now, which need not be the best.
    """

    epoch: int
    step: int
    history: History
    rnn: RNN
