"""How well a network does on the part of a text that is held out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..distributed.ranks import OneProcess
from ..rnn.rnn import RNN
from .loop import on_any_rank
from .options import Options
from .text import Streams, Tokens


class InterruptedValidation(Exception):  # noqa: N818 (nothing went wrong)
    """A rank did not wait for the end of a validation."""


class Validation:
    """As many streams of the held-out text as training has, or as fit, of which ranks read a part each.

    Parameters
    ----------
    tokens : (length,) int
        The text that is held out.
    options : Options
    ranks : OneProcess

    Attributes
    ----------
    streams : Streams or None
        Those of this rank; None if there is no text for one.
    characters : int
        That each validation reads, of all ranks, from the beginning of each stream on.
    """

    def __init__(self, tokens: Tokens, options: Options, ranks: OneProcess) -> None:
        self.streams: Streams | None = None
        self.characters, self._batches, self._share, self._ranks = 0, 0, 0.0, ranks
        if len(tokens) < 2:
            return
        seq_len = min(options.seq_len, len(tokens) - 1)
        batch = min(options.batch, (len(tokens) - 1) // seq_len)
        rows = ranks.part(batch)
        self.streams = Streams(tokens, batch, seq_len, rows=rows)
        most, all_ = options.most_validated, len(self.streams)
        self._batches = all_ if most is None else min(all_, max(1, most // (batch * seq_len)))
        self._share = (rows.stop - rows.start) / batch
        self.characters = self._batches * batch * seq_len

    def losses(self, rnn: RNN, interrupted: Callable[[], bool]) -> np.ndarray[Any, Any] | None:
        """Nats per character of every batch ``(batches,)``, of an ensemble ``(batches, E)``; None without a text.

        Parameters
        ----------
        rnn : RNN
        interrupted : () -> bool
            Whether not to wait for the end; asked before every batch.

        Raises
        ------
        InterruptedValidation
            If a rank was interrupted.
        """
        if self.streams is None:
            return None
        state, losses, backend = None, [], rnn.backend
        for _, x, target in self.streams.once(self._batches):
            if on_any_rank(self._ranks, interrupted()):
                raise InterruptedValidation
            loss, state = rnn.loss(x, target, "cross_entropy", state=state)
            losses.append(loss)
        with backend.active():
            means = backend.to_host(backend.xp.stack(losses)) * self._share
        summed: np.ndarray[Any, Any] = self._ranks.sum({"losses": means})["losses"]
        return summed
