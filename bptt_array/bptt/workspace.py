"""The large arrays of a training step, kept for the next one.

An array of a megabyte that is let go of goes back to the system, and the next one comes with pages that have
to be found and cleared: 5 to 25 % of a step on a CPU. CuPy has a pool of its own, which also knows of streams.
"""

from __future__ import annotations

from typing import Any

from ..backend.portable import Array, Backend


class Workspace:
    """Arrays left by the last step, at most as many as it used at once.

    A :class:`Loan` takes all of them and puts its own in their place at its end, so steps that run at the same
    time in several threads never share one, and a change of shapes leaves nothing behind.
    """

    def __init__(self) -> None:
        # One list of arrays and the budget they were made within, or nothing while a step has it.
        self._left: list[tuple[int | None, list[Array]]] = []
        self._of_parts: list[Workspace] = []

    @property
    def arrays(self) -> list[Array]:
        """What is there to be taken."""
        own = [array for _, left in self._left for array in left]
        return own + [array for part in self._of_parts for array in part.arrays]

    def of_parts(self, count: int) -> list[Workspace]:
        """One for each part of a call; what calls in one piece have left is let go of."""
        self._left.clear()
        parts = (self._of_parts + [Workspace() for _ in range(count)])[:count]
        self._of_parts = parts
        return parts

    def take(self, budget: int | None) -> list[Array]:
        """What was left, for one caller alone: a pop is atomic, whatever other threads do.

        Within a budget of bytes what a step left that had another one is too much, and let go of.
        """
        try:
            of_budget, arrays = self._left.pop()
        except IndexError:
            return []
        return arrays if budget is None or budget == of_budget else []

    def leave(self, arrays: list[Array], budget: int | None) -> None:
        """Leave arrays in place of those that are there."""
        self._of_parts = []
        self._left[:] = [(budget, arrays)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Workspace:
        return Workspace()


class Loan:
    """The arrays of one step. What they hold at first does not matter; none may outlive the step.

    ``budget``: the step has to make do with so many bytes. Of arrays that are given back one of each shape is then
    held, and not all of them.
    """

    def __init__(self, backend: Backend, workspace: Workspace | None = None, budget: int | None = None) -> None:
        self.backend = backend
        self.workspace = workspace
        self.budget = budget
        self._used: dict[int, Array] = {}  # by id: a step may have very many
        self._given_back: list[Array] = []
        self._left: list[Array] = []  # by the step before
        if workspace is not None and backend.keeps_arrays:
            self._left = workspace.take(budget)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array to write to; one that is free, if it has this shape and dtype."""
        for free in (self._given_back, self._left):
            for k, array in enumerate(free):
                if array.shape == shape and array.dtype == dtype:
                    self._used[id(array)] = free.pop(k)
                    return array
        self._left.clear()  # of other shapes: old and new together would be a higher peak
        array = self.backend.empty(shape, dtype)
        self._used[id(array)] = array
        return array

    def give_back(self, array: Array) -> None:
        """Let the same step use the array again."""
        if self._used.pop(id(array), None) is None:
            return
        alike = [one for one in self._given_back if one.shape == array.shape and one.dtype == array.dtype]
        if self.budget is None or not alike:
            self._given_back.append(array)

    def let_go(self, array: Array) -> None:
        """Neither use the array again nor leave it to the next step."""
        self._used.pop(id(array), None)

    def end(self) -> None:
        """Leave the arrays to the next step."""
        if self.workspace is not None and self.backend.keeps_arrays:
            self.workspace.leave([*self._used.values(), *self._given_back], self.budget)


class Scratch:
    """Arrays over time that segments use one after the other, by name; what they hold is left over.

    ``longest``: steps of the longest segment; there may be one row more, for the state before it.
    """

    def __init__(self, arrays: Loan, longest: int) -> None:
        self.arrays = arrays
        self.longest = longest
        self._buffers: dict[tuple[str, tuple[int, ...]], Array] = {}

    def __call__(self, name: str, steps: int, row: tuple[int, ...], dtype: Any) -> Array:
        """``(steps, *row)``: the first rows of the one array of that name and shape."""
        buffer = self._buffers.get((name, row))
        if buffer is None:
            buffer = self._buffers[name, row] = self.arrays.empty((self.longest + 1, *row), dtype)
        return buffer[:steps, ...]

    def clear(self) -> None:
        """Let go of all of them."""
        for buffer in self._buffers.values():
            self.arrays.let_go(buffer)
        self._buffers.clear()
