"""The second half of ``rnn.forward``: a backward pass that can be called."""

from __future__ import annotations

from .backend import Array
from .bptt import Unrolled
from .checks import check_floats, check_input_grad, check_state
from .passes import Network, run_backward
from .state import Gradients, State


class BackwardFunction:
    """Backpropagation through time from the point where ``rnn.forward`` ran, for any loss.

    It holds the states and a copy of the parameters of that moment, and a reference to ``x``, which must not
    be written to; it may be called any number of times, also after the parameters were updated.
    """

    def __init__(self, network: Network, unrolled: Unrolled, dtype: str, y_shape: tuple[int, ...], y_axes: str) -> None:
        self._network = network
        self._unrolled = unrolled
        self._dtype = dtype
        self._y_shape = y_shape
        self._y_axes = y_axes

    def __call__(self, dy: Array | None = None, dstate: State | None = None, *, input_grad: bool = False) -> Gradients:
        """Gradients of every parameter, of the initial state, and with ``input_grad`` of ``x``.

        Parameters
        ----------
        dy : array of the shape and dtype of ``y``, optional
            Gradient of your loss with respect to the outputs.
        dstate : State, optional
            Gradient with respect to the final state, ``h (L, D, N, H)``. At least one of the two is needed.

        Raises
        ------
        ValueError, TypeError
            Naming the argument, before any work.
        """
        backend, batch = self._network.backend, self._unrolled.batch
        if dy is None and dstate is None:
            raise ValueError("dy=None and dstate=None: expected a gradient of y, of the final state, or both")
        if dy is not None:
            check_floats("dy", dy, self._y_shape, self._y_axes, backend, self._dtype, host=False)
        if dstate is not None:
            check_state("dstate", dstate, batch.h_0.shape, backend, self._dtype, host=False)
        check_input_grad(input_grad, batch.x)
        d_last = None if dstate is None else dstate.h[0, 0, ...]
        with backend.active():
            return run_backward(self._network, self._unrolled, dy, d_last, input_grad=input_grad)
