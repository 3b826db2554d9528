"""A line of metrics of a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """One line of ``metrics.jsonl``: after ``step`` updates, losses in nats per character.

    ``loss`` is the mean over the training steps since the line before; ``validation`` is None where it was
    not computed, and ``sample`` where nothing was written. Of an ensemble they are the means over its members, each of
    which is in the lists. Nothing here depends on a clock: the same seed gives the same lines.
    """

    step: int
    characters: int
    lr: float
    loss: float
    validation: float | None = None
    members_loss: list[float] | None = None
    members_validation: list[float] | None = None
    sample: str | None = None

    @classmethod
    def of(cls, line: Any) -> Progress:
        """From what JSON holds; names that are not known here are left out.

        Raises
        ------
        ValueError
            If it is no such line.
        """
        if not isinstance(line, dict) or not all(allowed(line.get(name)) for name, allowed in _FIELDS.items()):
            raise ValueError("no line of metrics")
        fields: dict[str, Any] = {name: line.get(name) for name in _FIELDS}
        return cls(**fields)


def is_count(value: Any) -> bool:
    """Whether JSON held a whole number that an array could have as its size."""
    return type(value) is int and 0 <= value < 1 << 62


def is_number(value: Any) -> bool:
    """Whether JSON held a finite number, not as large as to be none any more in a sum."""
    return type(value) in (int, float) and abs(value) < 1e300


def _or_none(allowed: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or allowed(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


#: What is allowed in each field of a line.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": is_count,
    "characters": is_count,
    "lr": is_number,
    "loss": is_number,
    "validation": _or_none(is_number),
    "members_loss": _or_none(_are_numbers),
    "members_validation": _or_none(_are_numbers),
    "sample": _or_none(lambda value: isinstance(value, str)),
}
