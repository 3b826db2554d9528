"""Whether training still goes well, asked of the device every few updates and not at each.

Every update leaves its loss and the largest entry of every gradient on the device: no number (or infinite) where one of
the gradient's entries is. Looked at together, they say at which update it began, and with which parameter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..backend.portable import Array, Backend

HostArray = np.ndarray[Any, Any]


class DivergenceError(FloatingPointError):
    """Training came to a loss, a gradient or a parameter that is no number, or infinite.

    Attributes
    ----------
    step : int
        The update at which it was seen first.
    lr : float
        The learning rate there.
    parameters : list of str
        Whose gradients (or, found at a checkpoint, values) are no numbers.
    of_data : bool
        Whether the network was given what is no number, so that no learning rate helps.
    """

    def __init__(self, step: int, lr: float, what: str, parameters: list[str]) -> None:
        self.step, self.lr, self.parameters, self._what = step, lr, parameters, what
        self.of_data = False
        super().__init__(self._said("use a smaller one, or clip the gradients to a smaller norm"))

    def _said(self, way_out: str) -> str:
        if not self.step:
            return f"before the first update {self._what}; begin with smaller parameters"
        return f"training diverged at step {self.step}: {self._what} at a learning rate of {self.lr:g}; {way_out}"

    def comes_of(self, data: str) -> None:
        """What the network was given is the reason."""
        self.of_data = True
        self.args = (self._said(f"{data}; expected finite numbers, such as 0 where one is missing"),)


class _Entry(NamedTuple):
    step: int
    lr: float
    loss: Array
    largest: dict[str, Array]


class Readings:
    """Losses and largest gradient entries of the updates since they were last read, left on the device until then."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._entries: list[_Entry] = []

    def add(self, step: int, lr: float, loss: Array, largest: dict[str, Array]) -> None:
        """Note one update; nothing waits for the device."""
        self._entries.append(_Entry(step, lr, loss, largest))

    def forget(self) -> None:
        """Begin anew."""
        self._entries.clear()

    def read(self) -> list[HostArray]:
        """The losses, 0-d or (E,), on the host; one synchronisation for all of them.

        Raises
        ------
        DivergenceError
            If a loss or a gradient was no number, naming the first update and what is wrong there.
        """
        entries, self._entries = self._entries, []
        if not entries:
            return []
        backend, names = self.backend, list(entries[0].largest)
        with backend.active():
            stacked = backend.xp.stack([value for entry in entries for value in (entry.loss, *entry.largest.values())])
        values = backend.to_host(stacked)  # (updates * (1 + P), [E])
        values = values.reshape(len(entries), 1 + len(names), *values.shape[1:])
        for entry, of_update in zip(entries, values, strict=True):
            if not np.isfinite(of_update).all():
                raise DivergenceError(entry.step, entry.lr, *_what(of_update, names))
        return list(values[:, 0, ...])


def _what(values: HostArray, names: list[str], of: str = "loss") -> tuple[str, list[str]]:
    """In words what is wrong at an update, of ``values (1 + P, [E])``, and whose gradients are."""
    whose = ""
    if values.ndim > 1:
        member = int(np.flatnonzero(~np.isfinite(values).all(axis=0))[0])
        values, whose = values[:, member], f" of member {member}"
    loss, *largest = values
    wrong = {name: value for name, value in zip(names, largest, strict=True) if not np.isfinite(value)}
    parts = [] if np.isfinite(loss) else [f"the {of}{whose} is {loss:g}"]
    if wrong:
        first, value = next(iter(wrong.items()))
        others = f" (and of {', '.join(list(wrong)[1:])})" if len(wrong) > 1 else ""
        parts.append(f"the gradient of {first}{others}{'' if parts else whose} is {value:g}")
    return " and ".join(parts), list(wrong)


def check_losses(step: int, lr: float, losses: HostArray) -> None:
    """Validation losses ``(batches, [E])`` are numbers.

    Raises
    ------
    DivergenceError
    """
    for loss in losses:
        if not np.isfinite(loss).all():
            raise DivergenceError(step, lr, *_what(loss[None], [], "validation loss"))


def check_parameters(step: int, lr: float, params: dict[str, HostArray]) -> None:
    """Nothing that is no number is worth keeping.

    Raises
    ------
    DivergenceError
        Naming the parameters.
    """
    wrong = [name for name, value in params.items() if not np.isfinite(value).all()]
    if wrong:
        value = params[wrong[0]][~np.isfinite(params[wrong[0]])].flat[0]
        came = "came to hold" if step else "of the initial parameters holds"
        raise DivergenceError(step, lr, f"{' and '.join(wrong)} {came} {value:g}", wrong)
