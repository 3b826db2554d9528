"""How a learning rate goes on: functions of the step, whose result it is multiplied with.

``schedule(step) -> factor``, where ``step`` counts the updates before this one, 0 for the first:

>>> import bptt_array as ba
>>> schedule = ba.lr_schedules.warm_up(2, then=ba.lr_schedules.cosine(4))
>>> [round(schedule(step), 3) for step in range(7)]
[0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]

and before each update ``optimizer.lr = 0.1 * schedule(step)``. Any function like that is a schedule. Those here can be
printed, compared and pickled. They depend on the step and on nothing else, so that a run which goes on needs no state
of theirs; but for :class:`Plateau`, which has one.

Steps that are negative or no whole numbers are a ValueError or TypeError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..checks import AS_IT_IS, Settings, as_float, check_count, check_number, is_whole, only_settings, said

Schedule = Callable[[int], float]

_BELOW_ONE = partial(check_number, below=1.0)
_COUNT = partial(check_count, least=0)


def _fraction(name: str, value: Any, otherwise: str = "") -> float:
    """A number from 0 to 1."""
    if (number := check_number(name, value)) > 1:
        raise ValueError(f"{name}={said(value)}; expected a number from 0 to 1{otherwise}")
    return number


#: What grows without end has no place in a long run.
_FACTOR = partial(_fraction, otherwise=": a rate that grows is a function of your own, such as lambda step: 1.01**step")


class _Checked:
    """What a schedule is made of, checked when it is made: each field by a function of its name and its value."""

    def _set(self, **checks: Callable[[str, Any], Any]) -> None:
        for name, check in checks.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))


@AS_IT_IS
@dataclass(frozen=True)
class cosine(_Checked):  # noqa: N801 (called as a function)
    """From 1 down half a cosine (Loshchilov & Hutter, 2017, "SGDR", without restarts), then ``least`` for good.

    ``least + (1 - least) (1 + cos(pi step / steps)) / 2`` up to ``steps``: torch's CosineAnnealingLR with
    ``T_max=steps``, ``eta_min=least * lr``, which rises again afterwards.

    Parameters
    ----------
    steps : int
        Updates until ``least``, at least 1.
    least : float
        From 0 to 1.
    """

    steps: int
    least: float = 0.0

    def __post_init__(self) -> None:
        self._set(steps=check_count, least=_fraction)

    def __call__(self, step: int) -> float:
        part = min(_COUNT("step", step), self.steps) / self.steps
        return self.least + (1 - self.least) * (1 + math.cos(math.pi * part)) / 2


@AS_IT_IS
@dataclass(frozen=True)
class linear(_Checked):  # noqa: N801
    """From 1 down to 0 in a straight line, ``1 - step / steps``, then 0 for good.

    torch's LinearLR with ``start_factor=1``, ``end_factor=0``, ``total_iters=steps``.

    Parameters
    ----------
    steps : int
        Updates until 0, at least 1.
    """

    steps: int

    def __post_init__(self) -> None:
        self._set(steps=check_count)

    def __call__(self, step: int) -> float:
        return 1 - min(_COUNT("step", step), self.steps) / self.steps


def _schedule(name: str, value: Any) -> Schedule | None:
    if value is not None and (not callable(value) or isinstance(value, type)):
        raise TypeError(
            f"{name}={said(value)} is a {type(value).__name__}; expected a function of the step, such as "
            "lr_schedules.cosine(1000), or None"
        )
    return value


#: What a schedule has that goes by losses.
_OF_LOSSES = ("observe", "state_dict", "load_state_dict")


@AS_IT_IS
@dataclass(frozen=True)
class warm_up(_Checked):  # noqa: N801
    """In the first ``steps`` updates up to 1 in a straight line, ``(step + 1) / steps``; then another schedule.

    The first update has ``1 / steps`` of the learning rate and not 0, which would waste it; number ``steps`` the whole
    of it. The next one is step 0 of ``then``. torch's SequentialLR of LinearLR with ``start_factor=1 / steps``,
    ``total_iters=steps - 1`` and of ``then``, with ``milestones=[steps]``.

    Parameters
    ----------
    steps : int
        At least 1.
    then : function of the step, optional
        Begins where the warm-up ends; left out, 1 for good. Of a :class:`Plateau` this has ``observe``, ``state_dict``
        and ``load_state_dict`` too, and what it is told during the warm-up counts.
    """

    steps: int
    then: Schedule | None = None

    def __getattr__(self, name: str) -> Any:
        """What ``then`` keeps between the losses that it is told, if it does."""
        if name in _OF_LOSSES and "then" in vars(self):
            return getattr(self.then, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __post_init__(self) -> None:
        self._set(steps=check_count, then=_schedule)

    def __call__(self, step: int) -> float:
        step = _COUNT("step", step)
        if step < self.steps:
            return (step + 1) / self.steps
        return 1.0 if self.then is None else self.then(step - self.steps)


@AS_IT_IS
@dataclass(frozen=True)
class step(_Checked):  # noqa: N801
    """Multiplied with ``factor`` after each ``every`` updates: ``factor**(step // every)``, torch's StepLR.

    Parameters
    ----------
    every : int
        At least 1.
    factor : float
        From 0 to 1.
    """

    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        self._set(every=check_count, factor=_FACTOR)

    def __call__(self, step: int) -> float:
        return self.factor ** (_COUNT("step", step) // self.every)


@AS_IT_IS
@dataclass(frozen=True)
class exponential(_Checked):  # noqa: N801
    """Multiplied with ``factor`` after every update: ``factor**step``, torch's ExponentialLR.

    Parameters
    ----------
    factor : float
        From 0 to 1.
    """

    factor: float

    def __post_init__(self) -> None:
        self._set(factor=_FACTOR)

    def __call__(self, step: int) -> float:
        return self.factor ** _COUNT("step", step)


_OF_PLATEAU: Settings = {
    "factor": _BELOW_ONE,
    "patience": _COUNT,
    "threshold": _BELOW_ONE,
    "cooldown": _COUNT,
    "least": _fraction,
}


@only_settings(_OF_PLATEAU, f"expected one of {', '.join(_OF_PLATEAU)}", {})
class Plateau:
    """Multiplied with ``factor`` where a loss has stopped falling: torch's ReduceLROnPlateau.

    That is so when more than ``patience`` losses after each other were no better than the best by the part
    ``threshold`` of it. Tell it each loss by :meth:`observe`; as a schedule it gives the factor that there is now,
    whatever the step.

    Parameters
    ----------
    factor : float
        In [0, 1).
    patience : int
        At least 0.
    threshold : float
        In [0, 1). It is a part of the size of the best loss, which may be negative; a loss that is no number, or
        infinite, is never better.
    cooldown : int
        For so many losses after a reduction none counts as no better.
    least : float
        The factor does not fall below this, from 0 to 1.

    All may be set between losses.

    Examples
    --------
    >>> import bptt_array as ba
    >>> plateau = ba.lr_schedules.Plateau(factor=0.5, patience=1)
    >>> [plateau.observe(loss) for loss in (3.0, 2.0, 2.0, 2.5, 1.0)]
    [1.0, 1.0, 1.0, 0.5, 0.5]
    >>> other = ba.lr_schedules.Plateau(factor=0.5, patience=1)
    >>> other.load_state_dict(plateau.state_dict())  # what json.loads(json.dumps(…)) makes of it does as well
    >>> other(step=5)
    0.5
    """

    factor: float
    patience: int
    threshold: float
    cooldown: int
    least: float
    _now: dict[str, Any]

    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        cooldown: int = 0,
        least: float = 0.0,
    ) -> None:
        self.factor, self.patience, self.threshold = factor, patience, threshold
        self.cooldown, self.least = cooldown, least
        self._now = {"factor": 1.0, "best": None, "no_better": 0, "cooldown": 0}

    def __repr__(self) -> str:
        return f"Plateau({', '.join(f'{name}={getattr(self, name)!r}' for name in _OF_PLATEAU)})"

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, Plateau) else NotImplemented

    __hash__ = None  # type: ignore[assignment] # it changes

    def __call__(self, step: int) -> float:
        _COUNT("step", step)
        return float(self._now["factor"])

    def observe(self, value: float) -> float:
        """Another loss, most often of validation.

        Parameters
        ----------
        value : float

        Returns
        -------
        float
            The factor from now on.
        """
        if not (is_whole(value) or isinstance(value, (float, np.floating))):
            raise TypeError(
                f"value={said(value)} is a {type(value).__name__}; expected a real number: float(value), of the losses "
                "of an ensemble float(value.mean())"
            )
        now = dict(self._now)
        if self._is_better(loss := as_float(value)):
            now |= {"best": loss, "no_better": 0}
        else:
            now["no_better"] += 1
        if now["cooldown"]:
            now |= {"cooldown": now["cooldown"] - 1, "no_better": 0}
        if now["no_better"] > self.patience:
            factor = min(now["factor"], max(now["factor"] * self.factor, self.least))
            now |= {"factor": factor, "cooldown": self.cooldown, "no_better": 0}
        vars(self)["_now"] = now
        return float(now["factor"])

    def _is_better(self, loss: float) -> bool:
        best = self._now["best"]
        if best is None:
            return math.isfinite(loss)
        return math.isfinite(loss) and loss < best * (1 - math.copysign(self.threshold, best))

    def state_dict(self) -> dict[str, float | int | None]:
        """What follows from the losses so far, for :meth:`load_state_dict`: numbers and None, as JSON has them."""
        return dict(self._now)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Raises
        ------
        ValueError, TypeError
            If it is no such dictionary; nothing is changed then.
        """
        if not isinstance(state_dict, Mapping) or set(state_dict) != set(self._now):
            raise TypeError(
                f"state_dict is none that state_dict() returned; expected a dictionary of {', '.join(self._now)}"
            )

        def of(key: str, check: Callable[[str, Any], Any]) -> Any:
            return check(f"state_dict[{key!r}]", state_dict[key])

        vars(self)["_now"] = {
            "factor": of("factor", _fraction),
            "best": None if state_dict["best"] is None else of("best", partial(check_number, least=-math.inf)),
            "no_better": of("no_better", _COUNT),
            "cooldown": of("cooldown", _COUNT),
        }
