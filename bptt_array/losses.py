"""Losses with options: what ``loss=`` takes beside names and functions.

>>> import bptt_array as ba
>>> ba.losses.CrossEntropy(ignore_index=-100, label_smoothing=0.1)
CrossEntropy(ignore_index=-100, label_smoothing=0.1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from .backend.arrays import host_array
from .checks import AS_IT_IS, MOST, check_count, check_number, said
from .equations.losses import LOSSES, Loss, UserLoss, cross_entropy, huber

#: The smallest class weight but 0.
_LEAST = 1e-20

#: Of how many class weights a repr says each.
_FEW = 16


class _Options:
    """A loss with options: a value, of which the repr says what is not as usual."""

    def __repr__(self) -> str:
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.init}  # type: ignore[arg-type]
        usual = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]
        arguments = (f"{name}={_short(value)}" for name, value in given.items() if value != usual[name])
        return f"{type(self).__name__}({', '.join(arguments)})"


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > _FEW:
        return f"<{len(value)} numbers>"
    return repr(value)


@AS_IT_IS
@dataclass(frozen=True, repr=False)
class CrossEntropy(_Options):
    """Cross-entropy of a softmax output, ``L_t = -sum_k q_k log y_k``, as ``torch.nn.CrossEntropyLoss`` has it.

    With class numbers as targets q is one-hot, else it is the target. Without options it is ``loss="cross_entropy"``.

    Parameters
    ----------
    class_weights : sequence of O numbers, optional
        q_k is multiplied by that of class k. Of class numbers a ``"mean"`` is divided by the sum of the weights of the
        targets, not by the number of steps; of probabilities by that number, as in PyTorch. 0, or from 1e-20 to 1e20.
        Where all targets have the weight 0 a mean is 0 (PyTorch's is no number), also with a smoothing of their labels.
    ignore_index : int, optional
        Steps with this number for a class have no loss, no gradient, and do not count in a mean. It need not be below
        O: -100 is what PyTorch's users have. Other numbers that are no class stay errors. For class numbers only.
    label_smoothing : float
        In [0, 1]: q is ``1 - label_smoothing`` of what it was, and ``label_smoothing / O`` of every class more.

    Raises
    ------
    ValueError, TypeError
        Naming the option.

    Notes
    -----
    A mean over nothing, where all steps are ignored or have the weight 0, is 0; PyTorch's is nan.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> rnn = ba.RNN(input_size=2, hidden_size=3, output_size=4, output="softmax", seed=0)
    >>> x, classes = np.ones((5, 1, 2), "float32"), np.array([[2], [0], [-100], [3], [-100]])
    >>> loss, _ = rnn.loss(x, classes, ba.losses.CrossEntropy(ignore_index=-100))
    >>> of_all, _ = rnn.loss(x, np.maximum(classes, 0), "cross_entropy", weights=(classes >= 0).astype("float32"))
    >>> round(float(loss / of_all), 5)  # a mean over 3 steps, and one over 5
    1.66667
    """

    class_weights: Sequence[float] | np.ndarray[Any, Any] | None = None  # kept as a tuple
    ignore_index: int | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        be = object.__setattr__
        be(self, "class_weights", None if self.class_weights is None else _class_weights(self.class_weights))
        if self.ignore_index is not None:
            be(self, "ignore_index", check_count("ignore_index", self.ignore_index, least=-MOST))
        be(self, "label_smoothing", check_number("label_smoothing", self.label_smoothing))
        if self.label_smoothing > 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}; expected a number from 0 to 1")

    @property
    def selects(self) -> bool:
        """Whether steps have different weights by their classes, or none."""
        return self.class_weights is not None or self.ignore_index is not None

    def equation(self, outputs: int, dtype: str) -> Loss:
        """What it is with O outputs of a dtype, but for what the classes weigh."""
        if self.class_weights is not None and len(self.class_weights) != outputs:
            raise ValueError(
                f"loss.class_weights has {len(self.class_weights)} numbers; expected one for each of the "
                f"output_size={outputs} classes"
            )
        if not self.label_smoothing and self.class_weights is None:
            return LOSSES["cross_entropy"]
        options = self.label_smoothing, self.label_smoothing / outputs
        return Loss(cross_entropy, arrays=5, output="softmax", takes_classes=True, options=options)

    @cached_property
    def host_weights(self) -> np.ndarray[Any, Any]:
        """The class weights as an array."""
        return np.asarray(self.class_weights)


def _class_weights(given: Any) -> tuple[float, ...]:
    expected = "numbers of at least 0, one for each class"
    array = host_array("class_weights", given, expected)
    if array.ndim != 1 or array.dtype.kind not in "iuf" or isinstance(given, np.ma.MaskedArray):
        raise TypeError(f"class_weights={said(given)} is no sequence of numbers; expected {expected}")
    wrong = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    exact = array.astype(np.float64)
    far = np.flatnonzero((exact != 0) & ~((exact > 0.999 * _LEAST) & (exact < 1.001 / _LEAST)))  # of any dtype
    if far.size and not wrong.size:  # sums of them would be none in float32
        raise ValueError(
            f"class_weights[{far[0]}]={array[far[0]]}; expected 0, or numbers from {_LEAST:g} to {1 / _LEAST:g}: "
            "divide all by one of them, which changes no mean"
        )
    if wrong.size or not array.size:
        what = f"class_weights[{wrong[0]}]={array[wrong[0]]}" if wrong.size else "class_weights is empty"
        raise ValueError(f"{what}; expected {expected}")
    return tuple(exact.tolist())


@AS_IT_IS
@dataclass(frozen=True, repr=False)
class Huber(_Options):
    """Huber's loss, ``1/O`` of the sum of ``1/2 e^2``, where ``|e| > delta`` of ``delta (|e| - 1/2 delta)``.

    ``e = y - target``. Equal to ``torch.nn.HuberLoss``; with ``delta=1`` it is ``loss="huber"``.

    Parameters
    ----------
    delta : float
        Above 0: up to where it is a squared error.

    Raises
    ------
    ValueError, TypeError
        Naming the option.

    Examples
    --------
    >>> import bptt_array as ba
    >>> ba.losses.Huber(delta=0.5)
    Huber(delta=0.5)
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", check_number("delta", self.delta))
        if self.delta == 0:
            raise ValueError("delta=0; expected a number above 0, or use loss='mae', which is that without bends")

    def equation(self, outputs: int, dtype: str) -> Loss:
        """What it is with O outputs of a dtype, of which no error is above its largest number."""
        return Loss(huber, arrays=4, of_mean=1.0, options=(min(self.delta, float(np.finfo(dtype).max)),))


#: What ``loss=`` takes: a name, one with options, or ``(y, target) -> (loss, dy)``.
AnyLoss = str | CrossEntropy | Huber | UserLoss


def equation_of(loss: Any, outputs: int, dtype: str) -> Loss | UserLoss:
    """What ``loss`` is with O outputs of a dtype: of the library, or the caller's function as it is."""
    if isinstance(loss, (CrossEntropy, Huber)):
        return loss.equation(outputs, dtype)
    if isinstance(loss, type):
        raise TypeError(f"loss={loss.__name__} is a class; expected one of its losses, such as {loss.__name__}()")
    if callable(loss):
        function: UserLoss = loss
        return function
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(
            f"loss={said(loss)} is unknown; expected one of {', '.join(map(repr, LOSSES))}, one of losses.CrossEntropy "
            "and losses.Huber, or a function (y, target) -> (loss, dy)"
        )
    return LOSSES[loss]


def selects(loss: Any) -> bool:
    """Whether a loss gives steps weights of its own."""
    return isinstance(loss, CrossEntropy) and loss.selects
