"""RNN: parameters, layers and readout. What a user holds.

Symbols: T time steps, N sequences, I inputs, H hidden units, O outputs, L layers, D directions, E members of an
ensemble, G gates of a cell. Arrays are time-major, unless a network is told that its caller's are not.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import array_api_compat
import numpy as np

from ..backend.arrays import check_plain, is_integer, is_writeable
from ..backend.devices import resolve
from ..backend.portable import Array, Backend
from ..bptt import passes
from ..bptt.state import Gradients, State
from ..checks import check_count, check_flag, check_number, check_option, check_path, said
from ..equations.cell import Cell
from ..losses import AnyLoss, equation_of, selects
from ..schedules import plans
from ..schedules.plans import Plan
from .architecture import Architecture
from .arguments import (
    check_backward,
    check_input_grad,
    check_x_shape,
    in_order,
)
from .backward import BackwardFunction
from .calls import Calls
from .conversions import as_floats, as_integers, real_numbers
from .initializers import INITIALIZERS
from .memory import Workload, plan_for
from .settings import option, settable
from .streamer import Streamer


@settable
class RNN:
    """A recurrent network, trained by backpropagation through time.

    ``h_t = f(W_xh x_t + W_hh h_{t-1} + b_h)`` (1.1), or the LSTM or GRU in its place, and
    ``y_t = g(W_hy h_t + b_y)`` (1.2).

    On NumPy a network keeps the large arrays of its last :meth:`loss_and_grad` or :meth:`loss` (states, gates and
    their gradients) for the next one, which is faster; they go with the network. One network may be used by several
    threads.

    Parameters
    ----------
    input_size : int
        I, the features of a step; for integer tokens V, the size of the vocabulary.
    hidden_size : int
        H.
    output_size : int, optional
        O. Without it there is no readout and the outputs are the hidden states of the top layer, of two
        directions side by side.
    cell : {"tanh", "relu", "lstm", "gru", "gru_reset_before"} or Cell
        f of (1.1), or a gated cell (``"gru"`` is PyTorch's; with the reset gate before the product it is that of Cho et
        al., ONNX's default and Keras's ``reset_after=False``); or one of your own, see :class:`bptt_array.Cell`.
    num_layers : int
        L; each layer reads the hidden states of the one below.
    bidirectional : bool
        Every layer also reads every sequence from its end (D = 2), in the same loop.
    reverse : bool
        Every layer reads every sequence from its end, and in that direction alone: the state at step t is one of steps
        t, t+1, … . Inputs, outputs, targets and gradients are in the order of time all the same; ``state`` is the one
        before the last step of every sequence is read, and the one that comes out that after step 0, which is what
        ``readout="last"`` reads out. Not together with ``bidirectional``, nor with ``truncate``.
    embedding_size : int, optional
        M: inputs are tokens, each of which is read as a vector of its own, the row of ``W_emb`` that is learnt with
        all else: ``x_t = W_emb[token_t]``. Initially standard normal, as of torch.nn.Embedding. Without it the first
        layer reads tokens as one-hot vectors, each a column of its ``W_xh``.
    tied : bool
        The readout's matrix is the embedding's, ``v = W_emb h + b_y`` (Press & Wolf, 2017): for words in and words
        out, ``output_size`` = ``input_size`` and ``embedding_size`` = D*H. There is no ``W_hy`` then.
    bias : bool
        False: layers have no biases, neither ``b_h`` nor those of the cell (a GRU's ``b_hn``), as in
        ``torch.nn.LSTM(bias=False)``. The readout keeps its ``b_y``, as a ``torch.nn.Linear`` beside that does.
    members : int, optional
        E: an ensemble of E independent networks, trained side by side in the same products. Parameters have a
        first axis E; inputs and targets ``(T, E, N, ...)``, or shared by all members without it; outputs, states and
        gradients of inputs have the axis E before N, and the loss is ``(E,)``. Member k is the network with
        seed + k: see :meth:`member`. Clip with ``clip_by_global_norm(..., members=E)``: without it all share one norm.
    dropout : float
        Probability, in [0, 1), with which each input of a layer above the first is left out.
    recurrent_dropout : float
        The same of the state that goes into ``W_hh``, with one mask for all steps (Gal & Ghahramani, 2016).
        Both act where a call is given a ``dropout_seed``.
    output : {"identity", "softmax", "sigmoid", "tanh"}
        g of (1.2).
    readout : {"every", "last"}
        Outputs at every step, ``y (T, N, O)``, or of the last states of each sequence, ``y (N, O)``: those after its
        last valid step, of two directions each one's own last.
    init : {"uniform", "orthogonal", "identity"}
        Of ``W_hh``, for each gate. Uniform is PyTorch's default range, for all parameters; with the other two,
        biases are zero and the remaining weights uniform.
    forget_bias : float
        Added to the initial bias of the forget gate (of ``cell="lstm"``): 1 lets an LSTM begin by remembering.
    time_major : bool
        False: the caller's ``x``, ``y``, ``dy``, targets and weights have N first and T after it: ``(N, T, I)``, with
        members ``(E, N, T, I)``. States keep their layout, and a loss of your own sees arrays time first.
    dtype : {"float32", "float64"}
        Of everything: parameters, inputs, states, gradients.
    device : str or Backend
        ``"cpu"`` (NumPy), ``"cuda"``, ``"cuda:1"`` (CuPy), ``"auto"``, or a :class:`Backend`.
    seed : int
        Of the initial weights, the same model on every device; also goes into the masks of dropout.
    proj_size : int, optional
        P, less than H: the states h of ``cell="lstm"`` are P numbers, projections ``h_t = W_hr (o tanh(c_t))`` of its
        units (Sak et al., 2014), and so is what the layer above and the readout are given; c stays H. As in PyTorch.

    Attributes
    ----------
    params : dict of str to array
        ``"l0.W_xh" (G*H, I)``, ``"l0.W_hh" (G*H, H)``, ``"l0.b_h" (G*H,)``, of a GRU ``"l0.b_hn" (H,)``, of one with
        the reset gate before ``"l0.W_hh" (2H, H)`` and ``"l0.W_hn" (H, H)``; ``"l1.W_xh" (G*H, D*H)`` and so on;
        ``"W_hy" (O, D*H)``, ``"b_y" (O,)``. Those of layers have a first axis of 2 for the directions where there are
        two, and all have one of E, before it, in an ensemble. With an embedding ``"W_emb" (V, M)`` comes first, and
        ``"l0.W_xh"`` is (G*H, M); where it is ``tied`` there is no ``"W_hy"``.

    dropout, recurrent_dropout, output, readout, reverse, time_major, seed
        The options, which may be set: calls from then on go by them. Setting another one is an error, since parameters
        were made for it, and so is any other name.
    calls : Calls
        For the package itself: what a call works on, see :mod:`bptt_array.rnn.calls`.

    Raises
    ------
    ValueError, TypeError
        For an option that is unknown, out of range, or of the wrong type.
    AttributeError
        Where an attribute is set that cannot be; the message says what to do.

    Notes
    -----
    A network can be pickled, on any device, also for other processes (a cell of your own if they can import its
    class): it comes back the same to the bit, where it was. :meth:`save` is for files that are kept, or are another's.

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
    >>> deep = ba.RNN(3, 8, 2, cell="lstm", num_layers=2, bidirectional=True, members=6)
    >>> y, state = deep(x)
    >>> y.shape, state.c.shape, deep.params["l1.W_xh"].shape
    ((5, 6, 4, 2), (2, 2, 6, 4, 8), (6, 2, 32, 16))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        *,
        cell: str | Cell = "tanh",
        num_layers: int = 1,
        bidirectional: bool = False,
        reverse: bool = False,
        embedding_size: int | None = None,
        tied: bool = False,
        bias: bool = True,
        members: int | None = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        output: str = "identity",
        readout: str = "every",
        init: str = "uniform",
        forget_bias: float = 0.0,
        time_major: bool = True,
        dtype: str = "float32",
        device: str | Backend = "cpu",
        seed: int = 0,
        proj_size: int | None = None,
    ) -> None:
        architecture = Architecture.checked(
            input_size=input_size,
            hidden_size=hidden_size,
            output_size=output_size,
            cell=cell,
            num_layers=num_layers,
            bidirectional=bidirectional,
            members=members,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            output=output,
            readout=readout,
            time_major=time_major,
            embedding_size=embedding_size,
            tied=tied,
            bias=bias,
            reverse=reverse,
            dtype=dtype,
            seed=seed,
            proj_size=proj_size,
        )
        self._be(architecture, resolve(device))
        check_option("init", init, INITIALIZERS)
        forget_bias = check_number("forget_bias", forget_bias, least=-np.inf)
        if forget_bias and architecture.cell.forget_gate is None:
            raise ValueError(f"forget_bias={forget_bias:g}, but cell={self.cell!r} has no forget gate; leave it at 0")
        if forget_bias and not architecture.bias:
            raise ValueError(
                f"forget_bias={forget_bias:g}, but bias=False: there is no bias to add it to; leave it at 0, or leave "
                "bias=True"
            )
        if abs(forget_bias) > float(np.finfo(architecture.dtype).max):
            raise ValueError(f"forget_bias={forget_bias:g}; expected a number that {architecture.dtype} can hold")
        self.params = self._on(self.backend, architecture.initial_parameters(init, forget_bias))

    @classmethod
    def _with(cls, architecture: Architecture, params: Mapping[str, np.ndarray[Any, Any]], backend: Backend) -> RNN:
        """A network with given parameters, on the host."""
        rnn = cls.__new__(cls)
        rnn._be(architecture, backend)
        rnn.params = rnn._on(backend, params)
        return rnn

    def _be(self, architecture: Architecture, backend: Backend) -> None:
        """Take these options and this place from now on."""
        vars(self)["calls"] = Calls(architecture, backend)

    # ---- what a network is ----------------------------------------------------------------------------

    @property
    def architecture(self) -> Architecture:
        """Its options and what shapes follow from them."""
        return self.calls.architecture

    @property
    def backend(self) -> Backend:
        """Where it is; :meth:`to` moves it."""
        return self.calls.backend

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build a network of the same shape; of a cell of your own the name."""
        return self.architecture.config

    calls: Calls
    input_size = property(lambda self: self.architecture.input_size)
    hidden_size = property(lambda self: self.architecture.hidden_size)
    output_size = property(lambda self: self.architecture.output_size)
    cell = property(lambda self: self.architecture.cell.name)
    num_layers = property(lambda self: self.architecture.num_layers)
    bidirectional = property(lambda self: self.architecture.bidirectional)
    embedding_size = property(lambda self: self.architecture.embedding_size)
    tied = property(lambda self: self.architecture.tied)
    bias = property(lambda self: self.architecture.bias)
    members = property(lambda self: self.architecture.members)
    proj_size = property(lambda self: self.architecture.proj_size)
    dtype = property(lambda self: self.architecture.dtype)
    dropout = option("dropout")
    recurrent_dropout = option("recurrent_dropout")
    output = option("output")
    readout = option("readout")
    reverse = option("reverse")
    time_major = option("time_major")
    seed = option("seed")

    def __repr__(self) -> str:
        defaults = Architecture(self.input_size, self.hidden_size).config
        always = ("input_size", "hidden_size", "output_size", "cell", "dtype")
        given = {name: value for name, value in self.config.items() if name in always or value != defaults[name]}
        arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return f"RNN({arguments}, device={self.backend.name!r})"

    def member(self, k: int) -> RNN:
        """Member k of an ensemble as a network of its own, with copies of its parameters."""
        if self.members is None:
            raise ValueError("this RNN is no ensemble; build it with members=E, or use it as it is")
        if check_count("k", k, least=0) >= self.members:
            raise ValueError(f"k={said(k)}; expected 0 to {self.members - 1}: this RNN has members={self.members}")
        self.calls.check_params(self.params)
        values = {name: self.backend.to_host(value[k, ...]) for name, value in self.params.items()}
        return self._with(self.architecture.single(k), values, self.backend)

    def copy(self) -> RNN:
        """A network of its own on the same device, with copies of the parameters.

        What happens to one of the two is none of the other's: a snapshot to :meth:`load_params` from.

        Examples
        --------
        >>> import numpy as np, bptt_array as ba
        >>> rnn = ba.RNN(input_size=3, hidden_size=8, output_size=2)
        >>> best = rnn.copy()
        >>> rnn.params["b_y"] += 1  # in place, as optimizers do
        >>> float(rnn.load_params(best.params).params["b_y"][0] - best.params["b_y"][0])
        0.0
        """
        return copy.deepcopy(self)

    def load_params(self, params: Mapping[str, Any]) -> RNN:
        """Take the values of other parameters, in place; returns the network.

        The arrays of :attr:`params` stay the same objects, unless one cannot be written to: that one is replaced.

        Parameters
        ----------
        params : mapping of str to array
            The names and shapes of :attr:`params`, of any device and real dtype: they are copied, and rounded to this
            network's dtype.

        Raises
        ------
        ValueError, TypeError
            If names or shapes are others, or a number is too large for this dtype; nothing is changed then.
        """
        if not isinstance(params, Mapping):
            raise TypeError(f"params is a {type(params).__name__}; expected a dictionary of arrays, such as rnn.params")
        shapes, own, backend = self.architecture.shapes, self.params, self.backend
        if set(params) != set(shapes):
            raise ValueError(f"params has keys {sorted(map(str, params))}; expected {sorted(shapes)}")
        values = {name: self._value(f"params[{name!r}]", params[name], shape) for name, shape in shapes.items()}
        with backend.active():
            for name, value in values.items():
                array: Any = own.get(name)
                fits = backend.owns(array) and tuple(array.shape) == shapes[name] and array.dtype == value.dtype
                if fits and is_writeable(array):
                    array[...] = value
                else:
                    own[name] = value
        return self

    def _value(self, name: str, array: Any, shape: tuple[int, ...]) -> Array:
        """A copy on this network's device and in its dtype."""
        backend = self.backend
        with backend.active():
            if not (backend.owns(array) and array.dtype == backend.dtype(self.dtype)):
                array = backend.from_host(as_floats(name, real_numbers(name, array), self.dtype))
            else:
                check_plain(name, array)
                array = backend.copy(array)
        if tuple(array.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(array.shape)}; expected {shape}")
        return array

    def __copy__(self) -> RNN:
        """One that shares the parameters."""
        rnn = type(self).__new__(type(self))
        vars(rnn).update(vars(self))
        return rnn

    def __deepcopy__(self, memo: dict[int, Any]) -> RNN:
        memo[id(self)] = rnn = type(self).__new__(type(self))
        rnn._be(copy.deepcopy(self.architecture, memo), self.backend)
        others = {name: value for name, value in vars(self).items() if name != "calls"}
        vars(rnn).update(copy.deepcopy(others, memo))
        return rnn

    def __getstate__(self) -> dict[str, Any]:
        """With the parameters on the host, so that every device can be pickled."""
        self.calls.check_params(self.params)
        params = {name: self.backend.to_host(value) for name, value in self.params.items()}
        others = {name: value for name, value in vars(self).items() if name != "calls"}
        return others | {"architecture": self.architecture, "backend": self.backend, "params": params}

    def __setstate__(self, state: dict[str, Any]) -> None:
        others = dict(state)
        params = others.pop("params")
        self._be(others.pop("architecture"), others.pop("backend"))
        self.params = self._on(self.backend, params)
        vars(self).update(others)

    def _on(self, backend: Backend, values: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Array]:
        """Parameters from the host, in the order of the architecture, whatever order they come in."""
        with backend.active():
            return {name: backend.from_host(values[name].astype(self.dtype)) for name in self.architecture.shapes}

    # ---- devices and files ----------------------------------------------------------------------------

    def asarray(self, array: Any, dtype: str | None = None) -> Array:
        """``array`` on this network's device; floats and bools in its dtype, integers as int64.

        Takes anything that NumPy takes for real numbers, and arrays of other devices and libraries (which then travel
        through the host). On a device without int64 integers are of the widest that it has.

        Parameters
        ----------
        dtype : str, optional
            ``rnn.dtype``, also for integers: numbers to compute with, such as targets 0 and 1. ``"int64"``, also for
            floats and bools: class numbers.

        Raises
        ------
        ValueError, TypeError
            If it holds something else than real numbers, or one that the dtype cannot hold.
        """
        if dtype is not None:
            check_option("dtype", dtype, (self.dtype, "int64"))
        backend = self.backend
        with backend.active():
            if backend.owns(array) and not array_api_compat.is_numpy_array(array):
                if not backend.xp.isdtype(array.dtype, ("bool", "integral", "real floating")):
                    raise TypeError(f"array has dtype {array.dtype}; expected real numbers")
                if dtype != "int64" or is_integer(array):  # of floats it has to be seen whether they are whole
                    whole = is_integer(array) if dtype is None else dtype == "int64"
                    return backend.xp.astype(array, backend.integer if whole else backend.dtype(self.dtype), copy=False)
            host = real_numbers("array", array)
            whole = is_integer(host) if dtype is None else dtype == "int64"
            host = as_integers("array", host) if whole else as_floats("array", host, self.dtype)
            return host if backend.owns(host) else backend.from_host(host)

    def to(self, device: str | Backend) -> RNN:
        """Move the parameters to a device, in place; returns the network.

        What an optimizer keeps for them moves with its own ``optimizer.to(device)``.
        """
        backend = resolve(device)
        if backend is not self.backend:
            self.calls.check_params(self.params)
            values = {name: self.backend.to_host(value) for name, value in self.params.items()}
            params = self._on(backend, values)
            self._be(self.architecture, backend)
            self.params = params
        return self

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write weights and configuration to a safetensors file, atomically; ``metadata`` goes along.

        ``metadata`` is a dictionary of what JSON holds: strings, numbers, lists, dictionaries and so on. NumPy's
        numbers come back as Python's, tuples as lists.

        Of a cell of your own only the name is written: give the cell itself to :meth:`load`.
        """
        path = check_path("path", path)
        self.calls.check_params(self.params)
        values = {name: self.backend.to_host(value) for name, value in self.params.items()}
        from .files import write_model  # no network needs it before it is saved

        write_model(path, values, self.config, {} if metadata is None else metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | Backend = "cpu", *, cell: Cell | None = None) -> RNN:
        """The network that :meth:`save` wrote, on any device; see :meth:`load_with_metadata`."""
        return cls.load_with_metadata(path, device, cell=cell)[0]

    @classmethod
    def load_with_metadata(
        cls, path: str | os.PathLike[str], device: str | Backend = "cpu", *, cell: Cell | None = None
    ) -> tuple[RNN, dict[str, Any]]:
        """The network that :meth:`save` wrote, on any device, and the metadata that went along.

        Parameters
        ----------
        cell : Cell, optional
            The cell, where it is none of the library's.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file; if it is damaged or does not hold the weights that its configuration
            says; if it needs another cell.
        """
        backend, path = resolve(device), check_path("path", path)
        from .files import read_model

        architecture, params, metadata = read_model(path, cell)
        return cls._with(architecture, params, backend), metadata

    def to_torch_state_dict(
        self, recurrent_prefix: str = "rnn.", readout_prefix: str = "readout.", embedding_prefix: str = "embedding."
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The weights under the names of PyTorch's modules, as NumPy arrays.

        Parameters
        ----------
        recurrent_prefix, readout_prefix, embedding_prefix : str
            What the names begin with: those of the ``torch.nn.RNN``, ``LSTM`` or ``GRU``, of the ``Linear`` that is
            the readout and of the ``Embedding``, as they are called in your module, with a dot at the end; ``""`` for
            a module by itself. What is tied has both names.

        Raises
        ------
        ValueError
            For a cell that PyTorch has not, for ``reverse=True``, and for an ensemble: use :meth:`member`.

        Examples
        --------
        >>> import bptt_array as ba
        >>> list(ba.RNN(3, 8, 2, cell="gru").to_torch_state_dict())[:3]
        ['rnn.weight_ih_l0', 'rnn.weight_hh_l0', 'rnn.bias_ih_l0']
        """
        self.calls.check_params(self.params)
        values = {name: self.backend.to_host(value) for name, value in self.params.items()}
        from .torch_weights import Prefixes, to_state_dict

        prefixes = Prefixes(recurrent_prefix, readout_prefix, embedding_prefix)
        return to_state_dict(self.architecture, values, prefixes)

    @classmethod
    def from_torch_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        recurrent_prefix: str = "rnn.",
        readout_prefix: str = "readout.",
        embedding_prefix: str = "embedding.",
        *,
        cell: str | None = None,
        tied: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        output: str = "identity",
        readout: str = "every",
        reverse: bool = False,
        time_major: bool = True,
        device: str | Backend = "cpu",
        seed: int = 0,
    ) -> RNN:
        """A network with the weights of a PyTorch module: sizes, layers and directions follow from them.

        Parameters
        ----------
        state_dict : mapping of str to array
            NumPy arrays, or anything NumPy takes, such as ``module.state_dict()`` on the CPU; both biases of PyTorch
            become one.
        recurrent_prefix, readout_prefix, embedding_prefix : str
            What the names of the recurrent module, of a ``Linear`` on top of it and of an ``Embedding`` in front of it
            begin with, as for :meth:`to_torch_state_dict`; no readout where there are none of the second, no embedding
            where there are none of the third, ``bias=False`` where the first has no biases. Other names are an error.
        cell : {"tanh", "relu", "lstm", "gru"}, optional
            Follows from the shapes for an LSTM and a GRU; of a plain one only you know: ``"tanh"`` if left out.
        tied : bool
            The ``Linear`` has the weight of the ``Embedding``, which a state_dict holds twice.
        dropout, recurrent_dropout, output, readout, reverse, time_major, device, seed
            As for :class:`RNN`; the weights do not say them.

        Raises
        ------
        ValueError, TypeError
            If names or shapes are not those of such modules.
        """
        backend = resolve(device)
        options = {
            "dropout": dropout,
            "recurrent_dropout": recurrent_dropout,
            "output": output,
            "readout": readout,
            "reverse": reverse,
            "time_major": time_major,
            "seed": seed,
        }
        from .torch_weights import Prefixes, from_state_dict

        prefixes = Prefixes(recurrent_prefix, readout_prefix, embedding_prefix)
        architecture, values = from_state_dict(state_dict, prefixes, cell, tied, options)
        return cls._with(architecture, values, backend)

    # ---- forward and backward -------------------------------------------------------------------------

    def __call__(
        self,
        x: Array,
        state: State | None = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        dropout_seed: int | None = None,
        dropout_rows: tuple[int, int] | None = None,
        validate: bool = False,
    ) -> tuple[Array, State]:
        """Run the network forward, keeping nothing for a backward pass.

        Parameters
        ----------
        x : (T, N, I) of the network's dtype, or (T, N) integer tokens
            On the network's device. Of an ensemble also (T, E, N, I) or (T, E, N). N may be 0, as of an empty part
            of a batch: its loss is 0, and so are gradients.
        state : State, optional
            Initial state, ``h (L, D, N, H)`` and, of an LSTM, ``c``; zeros if left out.
        lengths : N integers on the host, optional
            Valid steps of each sequence, 0 to T. Outputs past the end are zero; the final state is the one
            after the last valid step.
        reset : (N,) bool, optional
            Sequences that begin anew: their initial state is zero, whatever ``state`` holds there. For streams whose
            state goes from call to call. A list or NumPy array on the host, or an array on the network's device.
        dropout_seed : int, optional
            With it dropout acts, with the masks of this seed, which are the same on every device and in every call;
            steps are counted from the beginning of the call. Without it, as in inference, nothing is left out.
        dropout_rows : (int, int), optional
            ``(first, batch)``: these sequences are those from ``first`` on of a batch that was shared out; they get
            the masks that they would have in it.
        validate : bool
            Check tokens that are on a CUDA device too, at the cost of a synchronisation.

        Returns
        -------
        y : (T, N, O); (N, O) with ``readout="last"``; D*H for O without a readout; of an ensemble with E before N
        state : State

        Raises
        ------
        ValueError, TypeError
            Naming the argument, before any work.
        """
        calls = self.calls
        with calls.backend.active(), calls.layout.in_errors():
            batch = calls.batch(x, state, lengths, reset, validate, host=False)
            dropout = calls.dropout(dropout_seed, dropout_rows, batch.N)
            network = calls.network(self.params)
            y, last, _ = passes.run_forward(network, batch, dropout, keep=False)
            return calls.outward(y), last

    def forward(
        self,
        x: Array,
        state: State | None = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        dropout_seed: int | str | None = None,
        dropout_rows: tuple[int, int] | None = None,
        backward: str = "sequential",
        validate: bool = False,
    ) -> tuple[Array, State, BackwardFunction]:
        """Run forward and return ``backward`` beside the result, for any loss of your own.

        Parameters and the first two results are those of calling the network, but that one with dropout has to be
        told a ``dropout_seed`` or ``"off"``, and ``backward`` says how the third one will run, see
        :meth:`loss_and_grad`. The third result is a
        :class:`~bptt_array.rnn.backward.BackwardFunction`: call it with ``dy`` of the shape of ``y``, ``dstate`` of
        that of ``state``, or both, as often as you like; ``x`` must not be written to in between.

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
        calls = self.calls
        with calls.backend.active(), calls.layout.in_errors():
            batch = calls.batch(x, state, lengths, reset, validate, host=False)
            check_backward(backward, calls.architecture.cell)
            dropout = calls.dropout(dropout_seed, dropout_rows, batch.N, needed=True)
            calls.check_params(self.params)
            copy = {name: calls.backend.copy(value) for name, value in self.params.items()}
            network = calls.bind(copy)
            y, last, unrolled = passes.run_forward(network, batch, dropout, keep=True)
            function = BackwardFunction(calls, network, batch, unrolled, tuple(y.shape), backward)
            return calls.outward(y), last, function

    def loss_and_grad(
        self,
        x: Array,
        target: Array,
        loss: AnyLoss = "mse",
        *,
        state: State | None = None,
        lengths: Any = None,
        weights: Array | None = None,
        reduction: str = "mean",
        reset: Any = None,
        truncate: int | tuple[int, int] | None = None,
        memory: int | str | None = None,
        backward: str = "sequential",
        input_grad: bool = False,
        dropout_seed: int | str | None = None,
        dropout_rows: tuple[int, int] | None = None,
        validate: bool = False,
    ) -> tuple[Array, Gradients, State]:
        """The loss (2.1), its gradient by backpropagation through time, and the final state.

        NumPy arrays may be given to a network on any device: they travel there one segment at a time.

        Parameters
        ----------
        x, state, lengths, reset, validate, dropout_rows
            As for calling the network; ``validate`` also reads class targets back.
        target : array
            ``"cross_entropy"``: class numbers ``(T, N)`` or probabilities ``(T, N, O)``; without T for
            ``readout="last"``. Of other names the shape and dtype of ``y``. The members of an ensemble may share it,
            without the axis E. For a loss of your own ``(T, N)`` or ``(T, N, F)``, of an ensemble also ``(T, E, N)`` or
            ``(T, E, N, F)``; where E = N the last one is expected, since ``(T, E, N)`` might be ``(T, N, F)``.
        loss : str, losses.CrossEntropy, losses.Huber or callable
            ``L_t``. ``"mse"`` is ``1/2 |y - target|^2``, half the *sum* of squares over the O outputs, where
            ``"torch_mse"``, as PyTorch's ``MSELoss``, is their *mean*: 2/O of it. ``"mae"`` and ``"huber"`` are means
            over the outputs too, equal to ``L1Loss`` and ``HuberLoss``. ``"cross_entropy"`` and
            ``"binary_cross_entropy"`` (a sum over the outputs) are for a softmax and a sigmoid output. With options:
            :class:`bptt_array.losses.CrossEntropy`, :class:`bptt_array.losses.Huber`. One of your own:
            ``(y, target) -> (loss, dy)``, called per segment with ``y (S, N, O)``, that returns the loss of
            every step ``(S, N)`` and ``dL_t/dy_t (S, N, O)``. With ``readout="last"`` it is called with
            ``y (N, O)`` for each segment in which a sequence ends; what it says of the others is left out.
        weights : (T, N), or (N,) with ``readout="last"``, optional
            Factors of ``L_t``, shared by the members of an ensemble or with its axis E. A weight of 0 takes a step out
            of the sum, and out of a ``"weighted_mean"``; in a ``"mean"`` it still counts as a step.
        reduction : {"mean", "weighted_mean", "sum"}
            ``"sum"`` is (2.1); ``"mean"`` divides it by the number of valid steps of all sequences (with
            ``readout="last"``: of sequences that have one), ``"weighted_mean"`` by the sum of their weights, of each
            member its own; where there are none they are the same, and over nothing a mean is 0. Where classes weigh or
            are ignored (``losses.CrossEntropy``) a step counts for as much as its class.
        truncate : int or (int, int), optional
            Truncated BPTT: the gradient is cut every k steps, the state carried on. ``(k1, k2)``: every k1 steps, back
            through k2, k1 <= k2; each loss is propagated once. Only of networks that read from the beginning.
        memory : int or str, optional
            Bytes, or a string such as ``"64MiB"``: the most that this call may take beside what it is given. The
            gradients are the same; segments run forward again where not all of them can be kept, see :meth:`plan`.
        backward : {"sequential", "parallel", "auto"}
            How time runs backward in tanh and ReLU cells: step by step, or in chunks side by side, which is more
            arithmetic in fewer dependent steps (``equations/parallel.py``). ``"auto"`` takes what a measurement of the
            device, made once, says is faster. The results are equal to rounding.
        input_grad : bool
            Also compute the gradient of ``x``.
        dropout_seed : int or "off"
            Of the masks of this step, which a network with dropout has to be told: another one for every step, or
            ``"off"``.

        Returns
        -------
        loss : 0-d array on the device; of an ensemble (E,)
        grads : Gradients
        state : State
        """
        calls = self.calls
        with calls.backend.active(), calls.layout.in_errors():
            batch = calls.batch(x, state, lengths, reset, validate, host=True)
            network = calls.network(self.params)
            objective, targets = calls.objective(network, batch, target, loss, weights, reduction, validate)
            check_input_grad(input_grad, x)
            truncate = calls.check_truncate(truncate)
            check_backward(backward, calls.architecture.cell)
            dropout = calls.dropout(dropout_seed, dropout_rows, batch.N, needed=True)
            if memory is None:
                plan = plans.plan(batch.T, longest=network.segment_length(batch), truncate=truncate)
            else:
                work = Workload(
                    batch.T,
                    batch.N,
                    tokens=batch.tokens,
                    shared=calls.architecture.members is None or batch.x.shape[1] == 1,
                    copied=batch.tokens or not (calls.backend.owns(batch.x) and calls.backend.owns(targets.target)),
                    unordered=not in_order(batch.x),
                    padded=batch.padding is not None,
                    weights=targets.weights is not None or selects(loss),
                    input_grad=input_grad,
                    dropout=dropout is not None,
                    loss=objective.loss,
                )
                plan = self._plan(work, memory, truncate, backward)
            value, grads, last_state = passes.run_loss_and_grad(
                network, batch, objective, targets, dropout, plan, input_grad=input_grad, backward=backward
            )
            return value, calls.layout.gradients(grads), last_state

    def plan(
        self,
        x_shape: tuple[int, ...],
        memory: int | str | None = None,
        *,
        loss: AnyLoss = "mse",
        tokens: bool | None = None,
        lengths: bool = False,
        weights: bool = False,
        truncate: int | tuple[int, int] | None = None,
        input_grad: bool = False,
        dropout: bool = True,
        backward: str = "sequential",
        from_host: bool = False,
        unordered: bool = False,
    ) -> Plan:
        """What :meth:`loss_and_grad` within ``memory`` will do and take, before anything runs; ``print`` it.

        Without ``memory``: what it takes to keep everything. A budget may be anything from what the error for too small
        a one says. Counted is what a call has at once beside its arguments and the parameters: on NumPy the peak is
        within 5 % of the budget at most; elsewhere pools and temporaries are the namespace's.

        Parameters
        ----------
        x_shape : tuple of int
            Of ``x``: (T, N, I), or (T, N) of tokens; with members also (T, E, N, I) or, with ``tokens=True``,
            (T, E, N).
        memory, loss, truncate, input_grad, backward
            As for :meth:`loss_and_grad`. Of a loss of your own it is not known how much it takes: a guess.
        tokens : bool, optional
            Whether the inputs are integers; follows from the number of axes if left out.
        lengths, weights, dropout : bool
            Whether there will be lengths, weights, a ``dropout_seed``.
        from_host : bool
            Whether ``x`` and ``target`` are NumPy arrays for a network on another device.
        unordered : bool
            Whether ``x`` is a view whose steps are not in one piece, as of a transposed array, or in a foreign byte
            order: products then copy it.

        Raises
        ------
        ValueError, TypeError
            As :func:`bptt_array.schedules.plan` does.

        Examples
        --------
        >>> import bptt_array as ba
        >>> rnn = ba.RNN(input_size=16, hidden_size=64, output_size=1)
        >>> print(rnn.plan((10_000, 32, 16), memory="16MiB"))
        10,000 steps: 16.0 MiB of 16.0 MiB, 18,571 steps forward (1.86 T)
        42 segments of at most 239 steps; at most 6 of them kept and 9 states remembered at once
        """
        flags = {
            "lengths": lengths,
            "weights": weights,
            "input_grad": input_grad,
            "dropout": dropout,
            "from_host": from_host,
            "unordered": unordered,
        }
        for name, flag in flags.items():
            check_flag(name, flag)
        equation = equation_of(loss, self.architecture.outputs, self.dtype)
        check_backward(backward, self.architecture.cell)
        T, N, tokens, shared = check_x_shape(x_shape, self.architecture, tokens)
        if tokens and input_grad:
            raise ValueError("input_grad=True, but tokens have no gradient; leave input_grad=False")
        work = Workload(
            T,
            N,
            tokens=tokens,
            shared=shared,
            copied=from_host or tokens,
            unordered=unordered,
            padded=lengths,
            weights=weights or selects(loss),
            input_grad=input_grad,
            dropout=dropout,
            loss=equation,
        )
        return self._plan(work, memory, self.calls.check_truncate(truncate), backward)

    def streamer(self, N: int, state: State | None = None) -> Streamer:
        """A function ``y = step(x_t)`` for N sequences whose steps come in one by one, as from sensors.

        Everything is checked and made here and at its first call: from then on a step is the calls of its mathematics
        and hardly anything else, and on NumPy allocates nothing but what g takes for softmax and sigmoid, arrays like
        y. Results are those of ``rnn(x)`` on whole sequences, to rounding; dropout never acts.

        It computes with copies of the parameters of this moment. After an update make another,
        ``rnn.streamer(N, step.state)``; likewise for another thread, since one at a time may call it.

        Parameters
        ----------
        N : int
        state : State, optional
            Before the first step; zeros if left out.

        Returns
        -------
        step : Streamer
            ``step(x_t)`` takes (N, I), or tokens (N,), and returns y (N, O), in an array that the next call writes
            over; ``step.reset(rows)`` sets states to zero; ``step.state`` can be read and set.

        Raises
        ------
        ValueError, TypeError
            If the network has two directions, or N or ``state`` does not fit.

        Examples
        --------
        >>> import numpy as np, bptt_array as ba
        >>> rnn = ba.RNN(input_size=3, hidden_size=8, output_size=2)
        >>> step = rnn.streamer(N=4)
        >>> for x_t in np.ones((5, 4, 3), dtype="float32"):
        ...     y = step(x_t)
        >>> y.shape, step.state.h.shape
        ((4, 2), (1, 1, 4, 8))
        >>> step.reset([0, 3])  # these two sequences begin anew
        """
        calls = self.calls
        with calls.backend.active():
            calls.check_params(self.params)
            copy = {name: calls.backend.copy(value) for name, value in self.params.items()}
            return Streamer(calls.architecture, calls.bind(copy), N, state)

    def kernels(self, N: int) -> dict[str, str]:
        """How every layer goes through time with batches of N sequences, and why: to look at, not to parse.

        On CUDA a segment of time is one launch each way, of a kernel that is made from the cell's own Python text.
        Where that cannot be, time is a loop of launches with the same results, and this says what stands in the way.
        What has not been compiled yet is compiled now, which takes seconds.

        Parameters
        ----------
        N : int
            At least 1.

        Returns
        -------
        dict of str to str
            By ``"l0 forward"``, ``"l0 backward"``, …

        Examples
        --------
        >>> import bptt_array as ba
        >>> ba.RNN(input_size=3, hidden_size=5).kernels(N=4)["l0 forward"]
        'step by step: cpu runs no kernels of its own'
        """
        return self.calls.kernels(self.params, check_count("N", N))

    def loss(
        self,
        x: Array,
        target: Array,
        loss: AnyLoss = "mse",
        *,
        state: State | None = None,
        lengths: Any = None,
        weights: Array | None = None,
        reduction: str = "mean",
        reset: Any = None,
        dropout_seed: int | None = None,
        dropout_rows: tuple[int, int] | None = None,
        validate: bool = False,
    ) -> tuple[Array, State]:
        """The loss and the final state of :meth:`loss_and_grad`, without the gradient, at about half its cost.

        Without a ``dropout_seed`` nothing is left out, as in inference.
        """
        calls = self.calls
        with calls.backend.active(), calls.layout.in_errors():
            batch = calls.batch(x, state, lengths, reset, validate, host=True)
            network = calls.network(self.params)
            objective, targets = calls.objective(network, batch, target, loss, weights, reduction, validate)
            dropout = calls.dropout(dropout_seed, dropout_rows, batch.N)
            return passes.run_loss(network, batch, objective, targets, dropout)

    def _plan(
        self, work: Workload, memory: int | str | None, truncate: int | tuple[int, int] | None, backward: str
    ) -> Plan:
        return plan_for(self.architecture, self.backend, work, memory, truncate, backward)
