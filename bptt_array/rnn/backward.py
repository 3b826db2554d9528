"""The second half of ``rnn.forward``: a backward pass that can be called."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

from ..backend.portable import Array
from ..bptt.batch import Batch
from ..bptt.passes import BoundNetwork, run_backward
from ..bptt.state import Gradients, State
from ..bptt.unrolled import Unrolled
from .arguments import check_floats, check_input_grad, check_state
from .calls import Calls, as_initial


class BackwardFunction:
    """Backpropagation through time from the point where ``rnn.forward`` ran, for any loss.

    It holds the states and a copy of the parameters of that moment, and a reference to ``x``, which must not
    be written to; it may be called any number of times, also after the parameters were updated.
    """

    def __init__(
        self,
        calls: Calls,
        network: BoundNetwork,
        batch: Batch,
        unrolled: list[Unrolled],
        y_shape: tuple[int, ...],
        backward: str,
    ) -> None:
        self._calls = calls
        self._network = network
        self._batch = batch
        self._unrolled = unrolled  # the parts that the batch was cut into
        self._y_shape = y_shape
        self._backward = backward

    def __deepcopy__(self, memo: dict[int, Any]) -> BackwardFunction:
        memo[id(self)] = function = BackwardFunction.__new__(BackwardFunction)
        vars(function).update(copy.deepcopy(vars(self), memo))
        return function

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a BackwardFunction cannot be pickled: it holds the states and the bound steps of one call. Pickle the "
            "Gradients that it returns, or the network and x, and call rnn.forward(x) there"
        )

    def __call__(self, dy: Array | None = None, dstate: State | None = None, *, input_grad: bool = False) -> Gradients:
        """Gradients of every parameter, of the initial state, and with ``input_grad`` of ``x``.

        Parameters
        ----------
        dy : array of the shape and dtype of ``y``, optional
            Gradient of your loss with respect to the outputs.
        dstate : State, optional
            Gradient with respect to the final state, ``h (L, D, N, H)`` and, of an LSTM, ``c``. At least one of the
            two is needed.

        Raises
        ------
        ValueError, TypeError
            Naming the argument, before any work.
        """
        backend, batch = self._network.backend, self._batch
        architecture, layout = self._calls.architecture, self._calls.layout
        if dy is None and dstate is None:
            raise ValueError("dy=None and dstate=None: expected a gradient of y, of the final state, or both")
        with backend.active(), layout.in_errors():
            if dy is not None:
                if architecture.readout == "every":
                    dy = layout.inward(dy, features=True)
                axes, dtype = architecture.outputs_axes, architecture.dtype
                check_floats("dy", dy, self._y_shape, axes, backend, dtype, host=False)
            if dstate is not None:
                check_state("dstate", dstate, architecture, batch.N, backend, host=False)
            check_input_grad(input_grad, batch.x)
            d_last = None if dstate is None else as_initial(backend, architecture, dstate, batch.N)
            grads = run_backward(
                self._network, batch, self._unrolled, dy, d_last, input_grad=input_grad, backward=self._backward
            )
            return layout.gradients(grads)
