"""RNN: parameters, the layer and its readout. What a user holds.

Symbols: T time steps, N sequences, I inputs, H hidden units, O outputs, L layers, D directions (both 1 so
far). Arrays are time-major.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import array_api_compat
import numpy as np

from . import passes, serialization
from .activations import OUTPUT_ACTIVATIONS
from .backend import Array, Backend, backend_of, resolve
from .backward import BackwardFunction
from .batch import Batch, make_batch
from .bptt import Layer
from .cells import CELLS
from .checks import (
    check_count,
    check_dtype,
    check_flag,
    check_floats,
    check_input_grad,
    check_option,
    check_target,
    is_integer,
)
from .initializers import INITIALIZERS, initial_parameters
from .losses import Objective, UserLoss
from .readout import Readout
from .state import Gradients, State
from .workspace import Workspace


class RNN:
    """A recurrent network, trained by backpropagation through time.

    ``h_t = f(W_xh x_t + W_hh h_{t-1} + b_h)`` (1.1) and ``y_t = g(W_hy h_t + b_y)`` (1.2).

    On NumPy a network keeps the arrays for the hidden states of its last :meth:`loss_and_grad` or :meth:`loss`
    for the next one, which is faster; they go with the network. One network may be used by several threads.

    Parameters
    ----------
    input_size : int
        I, the features of a step; for integer tokens the size of the vocabulary.
    hidden_size : int
        H.
    output_size : int, optional
        O. Without it there is no readout and the outputs are the hidden states.
    cell : {"tanh", "relu"}
        f of (1.1).
    output : {"identity", "softmax", "sigmoid", "tanh"}
        g of (1.2).
    readout : {"every", "last"}
        Outputs at every step, ``y (T, N, O)``, or at the last valid one of each sequence, ``y (N, O)``.
    init : {"uniform", "orthogonal", "identity"}
        Of ``W_hh``. Uniform is PyTorch's default range, for all parameters; with the other two, biases are
        zero and the remaining weights uniform.
    dtype : {"float32", "float64"}
        Of everything: parameters, inputs, states, gradients.
    device : str or Backend
        ``"cpu"`` (NumPy), ``"cuda"``, ``"cuda:1"`` (CuPy), ``"auto"``, or a :class:`Backend`.
    seed : int
        Of the initial weights; the same model on every device.

    Attributes
    ----------
    params : dict of str to array
        ``"l0.W_xh" (H, I)``, ``"l0.W_hh" (H, H)``, ``"l0.b_h" (H,)``, ``"W_hy" (O, H)``, ``"b_y" (O,)``.

    Raises
    ------
    ValueError, TypeError
        For an option that is unknown, out of range, or of the wrong type.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> rnn = ba.RNN(input_size=3, hidden_size=8, output_size=2, seed=0)
    >>> x = np.ones((5, 4, 3), dtype="float32")  # T=5 steps, N=4 sequences
    >>> y, state = rnn(x)
    >>> y.shape, state.h.shape
    ((5, 4, 2), (1, 1, 4, 8))
    >>> loss, grads, state = rnn.loss_and_grad(x, np.zeros_like(y), loss="mse")
    >>> sorted(grads.params)
    ['W_hy', 'b_y', 'l0.W_hh', 'l0.W_xh', 'l0.b_h']
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        *,
        cell: str = "tanh",
        output: str = "identity",
        readout: str = "every",
        init: str = "uniform",
        dtype: str = "float32",
        device: str | Backend = "cpu",
        seed: int = 0,
    ) -> None:
        self._configure(input_size, hidden_size, output_size, cell, output, readout, dtype, device)
        check_option("init", init, INITIALIZERS)
        values = initial_parameters(init, check_count("seed", seed, least=0), self._shapes(), self.hidden_size)
        self.params = self._on(self.backend, values)

    def _configure(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None,
        cell: str,
        output: str,
        readout: str,
        dtype: str,
        device: str | Backend,
    ) -> None:
        """Everything but the parameters."""
        self.input_size = check_count("input_size", input_size)
        self.hidden_size = check_count("hidden_size", hidden_size)
        self.output_size = None if output_size is None else check_count("output_size", output_size)
        check_option("cell", cell, CELLS)
        check_option("output", output, OUTPUT_ACTIVATIONS)
        check_option("readout", readout, ("every", "last"))
        if output_size is None and output != "identity":
            raise ValueError(f"output={output!r} needs a readout; give output_size as well, or leave output='identity'")
        self.cell = cell
        self.output = output
        self.readout = readout
        self.dtype = check_dtype(dtype)
        self.backend = resolve(device)
        self._workspace = Workspace()

    # ---- what a network is ----------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build a network of the same shape."""
        names = ("input_size", "hidden_size", "output_size", "cell", "output", "readout", "dtype")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        return f"RNN({arguments}, device={self.backend.name!r})"

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        H, O = self.hidden_size, self.output_size  # noqa: E741
        shapes: dict[str, tuple[int, ...]] = {"l0.W_xh": (H, self.input_size), "l0.W_hh": (H, H), "l0.b_h": (H,)}
        if O is not None:
            shapes |= {"W_hy": (O, H), "b_y": (O,)}
        return shapes

    def _on(self, backend: Backend, values: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Array]:
        with backend.active():
            return {name: backend.from_host(value.astype(self.dtype)) for name, value in values.items()}

    # ---- devices and files ----------------------------------------------------------------------------

    def asarray(self, array: Any) -> Array:
        """``array`` on this network's device; floats and bools in its dtype, integers as int64.

        Takes anything NumPy does, and arrays of other devices (which then travel through the host).
        """
        backend = self.backend
        with backend.active():
            if array_api_compat.is_array_api_obj(array) and not array_api_compat.is_numpy_array(array):
                if backend.owns(array):
                    if not backend.xp.isdtype(array.dtype, ("bool", "integral", "real floating")):
                        raise TypeError(f"array has dtype {array.dtype}; expected real numbers")
                    dtype = backend.dtype("int64" if is_integer(array) else self.dtype)
                    return backend.xp.astype(array, dtype, copy=False)
                array = backend_of(array).to_host(array)
            host = self._host_array(array)
            return host if backend.owns(host) else backend.from_host(host)

    def _host_array(self, array: Any) -> np.ndarray[Any, Any]:
        """A NumPy array of int64 or of this network's dtype, from anything that NumPy takes for real numbers."""
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError("array is masked; expected a plain array (for masks see lengths and weights)")
        array = np.asarray(array)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"array has dtype {array.dtype}; expected real numbers")
        if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
            raise ValueError(f"array holds {array.max()}, which does not fit in int64")
        host: np.ndarray[Any, Any] = array.astype(np.int64 if is_integer(array) else self.dtype, copy=False)
        return host

    def to(self, device: str | Backend) -> RNN:
        """Move the parameters to a device, in place; returns the network."""
        backend = resolve(device)
        if backend is not self.backend:
            values = {name: self.backend.to_host(value) for name, value in self.params.items()}
            self.params, self.backend, self._workspace = self._on(backend, values), backend, Workspace()
        return self

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write weights and configuration to a safetensors file, atomically; ``metadata`` goes along."""
        self._check_params(self.params)
        values = {name: self.backend.to_host(value) for name, value in self.params.items()}
        serialization.write_model(path, values, self.config, metadata or {})

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | Backend = "cpu") -> RNN:
        """The network that :meth:`save` wrote, on any device; see :meth:`load_with_metadata`."""
        return cls.load_with_metadata(path, device)[0]

    @classmethod
    def load_with_metadata(
        cls, path: str | os.PathLike[str], device: str | Backend = "cpu"
    ) -> tuple[RNN, dict[str, str]]:
        """The network that :meth:`save` wrote, on any device, and the metadata that went along.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file; if it is damaged or does not hold the weights that its configuration
            says.
        """
        backend = resolve(device)
        params, config, metadata = serialization.read_model(path)
        rnn = cls.__new__(cls)
        try:
            rnn._configure(**config, device=backend)
        except (TypeError, ValueError) as error:
            raise ValueError(f"path={str(path)!r} has an unusable configuration: {error}") from None
        found = {name: (value.shape, value.dtype.name) for name, value in params.items()}
        expected = {name: (shape, rnn.dtype) for name, shape in rnn._shapes().items()}
        if found != expected:
            raise ValueError(f"path={str(path)!r} holds parameters {found}; its configuration needs {expected}")
        rnn.params = rnn._on(rnn.backend, params)
        return rnn, metadata

    # ---- forward and backward -------------------------------------------------------------------------

    def __call__(
        self, x: Array, state: State | None = None, *, lengths: Any = None, validate: bool = False
    ) -> tuple[Array, State]:
        """Run the network forward, keeping nothing for a backward pass.

        Parameters
        ----------
        x : (T, N, I) of the network's dtype, or (T, N) integer tokens
            On the network's device.
        state : State, optional
            Initial state, ``h (L, D, N, H)``; zeros if left out.
        lengths : N integers on the host, optional
            Valid steps of each sequence, 0 to T. Outputs past the end are zero; the final state is the one
            after the last valid step.
        validate : bool
            Check tokens that are on a CUDA device too, at the cost of a synchronisation.

        Returns
        -------
        y : (T, N, O); (N, O) with ``readout="last"``; H for O without a readout
        state : State

        Raises
        ------
        ValueError, TypeError
            Naming the argument, before any work.
        """
        with self.backend.active():
            batch = self._batch(x, state, lengths, validate, host=False)
            y, unrolled = passes.run_forward(self._network(self.params), batch, keep=False)
            return y, passes.as_state(self.backend, unrolled.last_state)

    def forward(
        self, x: Array, state: State | None = None, *, lengths: Any = None, validate: bool = False
    ) -> tuple[Array, State, BackwardFunction]:
        """Run forward and return ``backward`` beside the result, for any loss of your own.

        Parameters and the first two results are those of calling the network. The third is a
        :class:`~bptt_array.backward.BackwardFunction`: call it with ``dy`` of the shape of ``y``, ``dstate`` of that of
        ``state``, or both, as often as you like; ``x`` must not be written to in between.

        Examples
        --------
        >>> import numpy as np, bptt_array as ba
        >>> rnn = ba.RNN(input_size=3, hidden_size=8, output_size=2, seed=0)
        >>> x = np.ones((5, 4, 3), dtype="float32")
        >>> y, state, backward = rnn.forward(x)
        >>> grads = backward(dy=y, input_grad=True)  # the gradient of 1/2 |y|^2
        >>> grads.x.shape
        (5, 4, 3)
        """
        backend = self.backend
        with backend.active():
            batch = self._batch(x, state, lengths, validate, host=False)
            self._check_params(self.params)
            copy = {name: backend.xp.asarray(value, copy=True) for name, value in self.params.items()}
            network = self._network(copy)
            y, unrolled = passes.run_forward(network, batch, keep=True)
        backward = BackwardFunction(network, unrolled, self.dtype, tuple(y.shape), self._y_axes)
        return y, passes.as_state(backend, unrolled.last_state), backward

    def loss_and_grad(
        self,
        x: Array,
        target: Array,
        loss: str | UserLoss = "mse",
        *,
        state: State | None = None,
        lengths: Any = None,
        weights: Array | None = None,
        reduction: str = "mean",
        truncate: int | None = None,
        input_grad: bool = False,
        validate: bool = False,
    ) -> tuple[Array, Gradients, State]:
        """The loss (2.1), its gradient by backpropagation through time, and the final state.

        NumPy arrays may be given to a network on any device: they travel there one segment at a time.

        Parameters
        ----------
        x, state, lengths, validate
            As for calling the network; ``validate`` also reads class targets back.
        target : array
            ``"mse"``, ``"binary_cross_entropy"``: the shape and dtype of ``y``. ``"cross_entropy"``: class
            numbers ``(T, N)`` or probabilities ``(T, N, O)``; without T for ``readout="last"``.
        loss : {"mse", "cross_entropy", "binary_cross_entropy"} or callable
            ``L_t``: ``1/2 |y - target|^2``; cross-entropies of a softmax or sigmoid output; or
            ``(y, target) -> (loss, dy)``, called per segment with ``y (S, N, O)``, that returns the loss of
            every step ``(S, N)`` and ``dL_t/dy_t (S, N, O)``. With ``readout="last"`` it is called with
            ``y (N, O)`` for each segment in which a sequence ends; what it says of the others is left out.
        weights : (T, N), or (N,) with ``readout="last"``, optional
            Factors of ``L_t``. A step of weight 0 is left out of the sum, but still counts in ``"mean"``.
        reduction : {"mean", "sum"}
            ``"sum"`` is (2.1); ``"mean"`` divides it by the number of valid steps of all sequences (with
            ``readout="last"``: of sequences that have one).
        truncate : int, optional
            Truncated BPTT: the gradient is cut every so many steps, the state carried on.
        input_grad : bool
            Also compute the gradient of ``x``.

        Returns
        -------
        loss : 0-d array on the device
        grads : Gradients
        state : State
        """
        with self.backend.active():
            batch = self._batch(x, state, lengths, validate, host=True)
            network = self._network(self.params)
            objective, targets = self._objective(network, batch, target, loss, weights, reduction, validate)
            check_input_grad(input_grad, x)
            window = batch.T if truncate is None else check_count("truncate", truncate)
            value, grads, last_state = passes.run_loss_and_grad(
                network, batch, objective, targets, window, input_grad=input_grad
            )
            return value, grads, last_state

    def loss(
        self,
        x: Array,
        target: Array,
        loss: str | UserLoss = "mse",
        *,
        state: State | None = None,
        lengths: Any = None,
        weights: Array | None = None,
        reduction: str = "mean",
        validate: bool = False,
    ) -> tuple[Array, State]:
        """The loss and the final state of :meth:`loss_and_grad`, without the gradient, at about half its cost."""
        with self.backend.active():
            batch = self._batch(x, state, lengths, validate, host=True)
            network = self._network(self.params)
            objective, targets = self._objective(network, batch, target, loss, weights, reduction, validate)
            return passes.run_loss(network, batch, objective, targets)

    # ---- what the passes are given --------------------------------------------------------------------

    def _objective(
        self,
        network: passes.Network,
        batch: Batch,
        target: Any,
        loss: Any,
        weights: Any,
        reduction: Any,
        validate: bool,
    ) -> tuple[Objective, passes.Targets]:
        """A loss and what it compares with, checked."""
        backend, dtype = self.backend, self.dtype
        y_shape = (*batch.outputs_shape(self.readout), self._outputs)
        check_option("reduction", reduction, ("mean", "sum"))
        check_target(target, loss, y_shape, self._y_axes, self.output, backend, dtype, batch.lengths, validate)
        if weights is not None:
            axes = "(T, N)" if self.readout == "every" else "(N,)"
            check_floats("weights", weights, y_shape[:-1], axes, backend, dtype, host=True)
        # (2.1) is a sum; without any valid step it is 0 either way.
        scale = 1.0 if reduction == "sum" else 1.0 / max(1, batch.valid_outputs(self.readout))
        return Objective(network.readout, loss, scale), passes.Targets(target, weights)

    def _batch(self, x: Any, state: Any, lengths: Any, validate: bool, *, host: bool) -> Batch:
        check_flag("validate", validate)
        return make_batch(
            self.backend, self.dtype, self.input_size, self.hidden_size, x, state, lengths, validate=validate, host=host
        )

    def _check_params(self, params: Mapping[str, Array]) -> None:
        """Parameters may be replaced by the caller: what does not fit must not compute, or be saved."""
        shapes = self._shapes()
        if set(params) != set(shapes):
            raise ValueError(f"rnn.params has keys {sorted(map(str, params))}; expected {sorted(shapes)}")
        dtype = self.backend.dtype(self.dtype)
        for name, shape in shapes.items():
            check_floats(f"params[{name!r}]", params[name], shape, "shape", self.backend, self.dtype, host=False)
            if params[name].dtype != dtype:
                raise TypeError(f"params[{name!r}] is not in the byte order of this machine; use rnn.asarray")

    def _network(self, params: Mapping[str, Array]) -> passes.Network:
        self._check_params(params)
        layer = Layer(CELLS[self.cell], params["l0.W_xh"], params["l0.W_hh"], params["l0.b_h"])
        g = OUTPUT_ACTIVATIONS[self.output]
        readout = Readout(self.backend, g, params.get("W_hy"), params.get("b_y"))
        return passes.Network(self.backend, layer, readout, self.readout, self._workspace)

    @property
    def _outputs(self) -> int:
        return self.hidden_size if self.output_size is None else self.output_size

    @property
    def _y_axes(self) -> str:
        O = "H" if self.output_size is None else "O"  # noqa: E741
        return f"(T, N, {O})" if self.readout == "every" else f"(N, {O})"
