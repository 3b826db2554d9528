"""The large arrays of a training step, kept for the next one.

An array of a megabyte that is let go of goes back to the system, and the next one comes with pages that have
to be found and cleared: 5 to 25 % of a step on a CPU. CuPy has a pool of its own, which also knows of streams.
"""

from __future__ import annotations

from typing import Any

from .backend import Array, Backend


class Workspace:
    """Arrays left by the last step, at most as many as it used at once.

    A :class:`Loan` takes all of them and puts its own in their place at its end, so steps that run at the same
    time in several threads never share one, and a change of shapes leaves nothing behind.
    """

    def __init__(self) -> None:
        self._left: list[list[Array]] = []  # one list of arrays, or none while a step has it

    @property
    def arrays(self) -> list[Array]:
        """What is there to be taken."""
        return [array for left in self._left for array in left]

    def take(self) -> list[Array]:
        """What was left, for one caller alone: a pop is atomic, whatever other threads do."""
        try:
            return self._left.pop()
        except IndexError:
            return []

    def leave(self, arrays: list[Array]) -> None:
        """Leave arrays in place of those that are there."""
        self._left[:] = [arrays]

    def __deepcopy__(self, memo: dict[int, Any]) -> Workspace:
        return Workspace()


class Loan:
    """The arrays of one step. What they hold at first does not matter; none may outlive the step."""

    def __init__(self, backend: Backend, workspace: Workspace | None = None) -> None:
        self.backend = backend
        self.workspace = workspace
        self._used: list[Array] = []
        self._given_back: list[Array] = []
        self._left: list[Array] = []  # by the step before
        if workspace is not None and backend.keeps_arrays:
            self._left = workspace.take()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array to write to; one that is free, if it has this shape and dtype."""
        for free in (self._given_back, self._left):
            for k, array in enumerate(free):
                if array.shape == shape and array.dtype == dtype:
                    self._used.append(free.pop(k))
                    return array
        self._left.clear()  # of other shapes: old and new together would be a higher peak
        array = self.backend.empty(shape, dtype)
        self._used.append(array)
        return array

    def give_back(self, array: Array) -> None:
        """Let the same step use the array again."""
        for k, used in enumerate(self._used):
            if used is array:
                self._given_back.append(self._used.pop(k))
                return

    def let_go(self, array: Array) -> None:
        """Neither use the array again nor leave it to the next step."""
        self._used = [used for used in self._used if used is not array]

    def end(self) -> None:
        """Leave the arrays to the next step."""
        if self.workspace is not None and self.backend.keeps_arrays:
            self.workspace.leave(self._used + self._given_back)


class Scratch:
    """Arrays over time that segments use one after the other, by name; what they hold is left over."""

    def __init__(self, arrays: Loan) -> None:
        self.arrays = arrays
        self._buffers: dict[tuple[str, tuple[int, ...]], Array] = {}

    def __call__(self, name: str, steps: int, row: tuple[int, ...], dtype: Any) -> Array:
        """``(steps, *row)``: the first rows of the one array of that name and shape, made anew if it is too short."""
        buffer = self._buffers.get((name, row))
        if buffer is None or buffer.shape[0] < steps:
            buffer = self._buffers[name, row] = self.arrays.empty((steps, *row), dtype)
        return buffer[:steps, ...]

    def clear(self) -> None:
        """Let go of all of them."""
        for buffer in self._buffers.values():
            self.arrays.let_go(buffer)
        self._buffers.clear()
