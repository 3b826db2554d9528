"""What a network is trained and validated on, whatever a caller has it in: the minibatches of an epoch, one by one."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from ..backend.arrays import is_array, is_integer
from ..backend.portable import Array
from ..checks import said
from ..data.minibatches import Batches
from ..distributed.ranks import OneProcess
from ..losses import AnyLoss
from ..rnn.conversions import as_floats, real_numbers
from ..rnn.rnn import RNN

#: Of data whose loss is 0, whatever the network says.
NOTHING_COUNTS = (
    "has no step that counts in the loss (of an ensemble, in that of some member): all are of length 0, of weight 0, "
    "of an ignored class or of one of weight 0; expected at least one that counts"
)
_KINDS = "ba.batches(…), a tuple (x, target[, lengths[, weights]]), or a list of such tuples"


class Share(NamedTuple):
    """What a rank has of a minibatch; ``rows``: from which sequence on, and of how many."""

    x: Array
    target: Array
    lengths: Any
    weights: Array | None
    rows: tuple[int, int] | None

    @property
    def given(self) -> dict[str, Any]:
        """What the loss is told beside x and the target."""
        return {"lengths": self.lengths, "weights": self.weights}


class Feed:
    """The minibatches of ``data`` or ``validation``, of which each rank has its part.

    Parameters
    ----------
    name : str
        What it is called in errors.
    given : Batches, tuple or iterable of tuples
        See :func:`bptt_array.fit`.
    rnn : RNN
    ranks : OneProcess
    loss, reduction
        As of :meth:`RNN.loss`.

    Raises
    ------
    ValueError, TypeError
        If it is nothing of the kind, or a minibatch is not one of this network and loss. Of a list all are looked at,
        otherwise the first.
    """

    def __init__(self, name: str, given: Any, rnn: RNN, ranks: OneProcess, loss: AnyLoss, reduction: str) -> None:
        self._name, self._rnn, self._ranks, self._loss, self._reduction = name, rnn, ranks, loss, reduction
        self._one = _is_minibatch(given)
        if isinstance(given, Batches):
            with self.named(None):
                given = given.to(rnn)
        self._given = [given] if self._one else given
        self._minibatches = _epochs(name, self._given)
        if isinstance(self._given, (list, tuple)):  # converted and checked once for all epochs
            self._given = shares = [self._taken(k, item) for k, item in enumerate(self._given)]
            self._minibatches = _epochs(name, shares)
        else:
            shares = [self._taken(0, item) for item in itertools.islice(self._minibatches(0), 1)]
        counted = [self._count(k, share) for k, share in enumerate(shares)]
        if not shares:
            raise ValueError(f"{name} has no minibatches; expected {_KINDS}")
        if not any(sequences for sequences, *_ in counted):  # a loss of nothing is 0, and would be the best there is
            raise ValueError(f"{name} has no sequences: N=0; expected at least one")
        if self._given is shares and not self._any_counts(shares, [steps for _, steps, _ in counted]):
            raise ValueError(f"{name} {NOTHING_COUNTS}")
        self.first = shares[0]

    def __len__(self) -> int:
        """Minibatches of an epoch; 0 where that is not known."""
        try:
            return len(self._given)
        except TypeError:
            return 0

    def epoch(self, k: int) -> Iterator[Share]:
        """Those of epoch ``k``.

        Raises
        ------
        ValueError
            If there are none: what could be gone through once was not one of the kinds that can be again.
        """
        share = None
        for share in self._shares(k):
            yield share
        if share is None:
            raise ValueError(
                f"{self._name} has no minibatches any more in epoch {k}; expected the same number in every epoch: use "
                "list(…)"
            )

    def _shares(self, k: int) -> Iterator[Share]:
        given = self._given
        if self._ranks.size == 1:
            yield from (self._taken(n, item) for n, item in enumerate(self._minibatches(k)))
        elif isinstance(given, Batches):  # nobody reads what is another's
            for n, (rows, item) in enumerate(zip(given.rows(k), given.shared_by(self._ranks).epoch(k), strict=True)):
                mine = self._ranks.part(len(rows))
                yield self._taken(n, item)._replace(rows=(mine.start, len(rows)))
        else:
            for n, item in enumerate(self._minibatches(k)):
                yield self._cut(n, self._taken(n, item))

    def steps(self, n: int, share: Share) -> Any:
        """What the mean of the loss of minibatch ``n`` is over; None of a sum."""
        return self._count(n, share)[1]

    def _any_counts(self, shares: list[Share], steps: list[Any]) -> bool:
        """Whether a mean is over something, of every member, and a weight is not 0."""
        over = [
            np.asarray(each if isinstance(each, int) else self._on_host(each)) for each in steps if each is not None
        ]
        weights = [None if share.weights is None else self._on_host(share.weights) for share in shares]
        return bool(np.all(sum(over) if over else True)) and any(w is None or w.any() for w in weights)

    def _on_host(self, array: Array) -> np.ndarray[Any, Any]:
        return array if isinstance(array, np.ndarray) else self._rnn.backend.to_host(array)

    def digest(self) -> str:
        """SHA-256 of the first epoch, of all ranks.

        Raises
        ------
        ValueError
            If its first minibatch is another one than it was before.
        """
        found = hashlib.sha256()
        for n, item in enumerate(self._minibatches(0)):
            share = self._taken(n, item)
            self._add(found, share)
            if n == 0 and found.digest() != self._add(hashlib.sha256(), self.first).digest():
                raise ValueError(
                    f"{self._name} has other minibatches when it is gone through again, so that a run with folder=… "
                    "could not go on from there; expected the same: use ba.batches(…), whose order follows from "
                    "a seed, or list(…), or no folder"
                )
        return found.hexdigest()

    def _add(self, found: Any, share: Share) -> Any:
        for part in share[:4]:
            if part is None:
                found.update(b"none")
                continue
            array = self._on_host(part)
            found.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
        return found

    def not_finite(self, n: int, share: Share) -> str:
        """In words, which number of minibatch ``n`` is none, of those within their sequences; or nothing."""
        _, _, features = self._count(n, share)
        time_major, every = self._rnn.time_major, self._rnn.readout == "every"
        for name, timed, behind in (("x", True, 1), ("target", every, int(features)), ("weights", every, 0)):
            array = getattr(share, name)
            if array is None or is_integer(array):
                continue
            host = self._on_host(array)
            wrong = ~np.isfinite(host)
            if timed and share.lengths is not None:
                T = host.shape[host.ndim - behind - 2 + (not time_major)]
                there = np.arange(T) < share.lengths[:, None]  # (N, T)
                there = there.T if time_major else there
                wrong &= there.reshape(*there.shape, *(1,) * behind)
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0].tolist())
                return f"{'' if self._one else f'minibatch {n} of '}{self._name} has {name}{list(at)}={host[at]:g}"
        return ""

    def _taken(self, n: int, item: Any) -> Share:
        """A minibatch of the caller's in the dtype of the network; arrays stay where they are."""
        if isinstance(item, Share):
            return item
        if not _is_minibatch(item):
            what = f"of {len(item)}" if isinstance(item, (tuple, list)) else f"of type {type(item).__name__}"
            raise TypeError(
                f"minibatch {n} of {self._name} is {what}; expected (x, target), (x, target, lengths) or (x, target, "
                f"lengths, weights); {self._name} itself may be {_KINDS}"
            )
        x, target, lengths, weights = (*item, None, None)[:4]
        if target is None:
            raise TypeError(f"minibatch {n} of {self._name} has no target; expected (x, target[, lengths[, weights]])")
        with self.named(n):
            lengths = lengths if lengths is None else np.asarray(lengths)
            x, target = self._array("x", x), self._array("target", target)
            return Share(x, target, lengths, None if weights is None else self._array("weights", weights, True), None)

    def _array(self, name: str, value: Any, floats: bool = False) -> Array:
        rnn = self._rnn
        if rnn.backend.owns(value) and not array_api_compat.is_numpy_array(value):
            return rnn.asarray(value, rnn.dtype if floats else None)
        host = real_numbers(name, value)
        return host if is_integer(host) and not floats else as_floats(name, host, rnn.dtype)

    def _count(self, n: int, share: Share) -> tuple[int, Any, bool]:
        """Sequences, steps of a mean, and whether the target has features, of a minibatch that is checked."""
        rnn = self._rnn
        with self.named(n):
            return rnn.calls.count(
                rnn.params, share.x, share.target, self._loss, **share.given, reduction=self._reduction
            )

    def _cut(self, n: int, share: Share) -> Share:
        """This rank's part of a minibatch."""
        N, _, features = self._count(n, share)
        mine, every = self._ranks.part(N), self._rnn.readout == "every"
        behind = 0 if self._rnn.time_major else 1  # axes of time, which stand behind that of the sequences

        def part(array: Any, after: int) -> Any:
            return array[(..., mine, *(slice(None),) * after)]

        return Share(
            part(share.x, (not is_integer(share.x)) + behind),
            part(share.target, features + (behind if every else 0)),
            None if share.lengths is None else share.lengths[mine],
            None if share.weights is None else part(share.weights, behind if every else 0),
            (mine.start, N),
        )

    @contextlib.contextmanager
    def named(self, n: int | None) -> Iterator[None]:
        """Errors say of which minibatch they are, or of all."""
        try:
            yield
        except (TypeError, ValueError) as error:
            which = "" if self._one or n is None else f"minibatch {n} of "
            error.args = (f"{which}{self._name}: {error}",)
            raise


def _is_minibatch(given: Any) -> bool:
    """``(x, target[, lengths[, weights]])``, and no tuple of such."""
    fits = isinstance(given, (tuple, list)) and 2 <= len(given) <= 4
    return fits and not isinstance(given[0], tuple) and (isinstance(given, tuple) or is_array(given[0]))


def _epochs(name: str, given: Any) -> Callable[[int], Iterable[Any]]:
    """The minibatches of an epoch, as they are given."""
    if callable(epoch := getattr(given, "epoch", None)):
        found: Callable[[int], Iterable[Any]] = epoch
        return found
    if isinstance(given, Iterator):
        raise TypeError(
            f"{name} is a {type(given).__name__}, which can be gone through only once; expected {_KINDS}: use list(…)"
        )
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, dict)) or is_array(given):
        raise TypeError(f"{name}={said(given, 100)} is a {type(given).__name__}; expected {_KINDS}")
    return lambda k: given
