"""One step at a time: what a user calls once for every step of a stream."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NoReturn

import array_api_compat.numpy
import numpy as np

from ..backend.arrays import dtype_name, is_integer
from ..backend.portable import DTYPES, Array, Backend
from ..bptt.batch import as_state
from ..bptt.passes import BoundNetwork
from ..bptt.state import State
from ..bptt.streaming import Stream
from ..checks import MOST, check_count, only_settings
from .architecture import Architecture
from .arguments import check_float, check_place, check_range, check_rows, check_state, check_tokens_alone
from .calls import as_initial

Run = Callable[[Array], Array]


@only_settings({"state": None}, "expected state; for all else make another streamer, rnn.streamer(N)", {})
class Streamer:
    """N sequences whose steps come in one by one, ``y = step(x_t)``: what :meth:`RNN.streamer` returns.

    Attributes
    ----------
    state : State
        That after the last step, ``h (L, 1, N, H)``, of an ensemble ``(L, 1, E, N, H)``, and, of an LSTM, ``c``: a
        copy, as ``rnn(x, state)`` takes it. May be set.
    """

    _architecture: Architecture
    _backend: Backend
    _stream: Stream
    _N: int
    _tokens: bool | None
    _run: Run
    _kind: Any
    _shape: tuple[int, ...]
    _dtype: Any

    def __init__(self, architecture: Architecture, network: BoundNetwork, N: int, state: State | None) -> None:
        backend = network.backend
        # Far beyond any machine, but not beyond what NumPy can count: a KiB for each number in a row of parameters.
        widest = max(max(shape) for shape in architecture.shapes.values()) * (architecture.members or 1)
        check_count("N", N, most=MOST // (1024 * widest))
        for option in ("bidirectional", "reverse"):
            if getattr(architecture, option):
                raise ValueError(
                    f"{option}=True, but a stream has no end to read from; call rnn(x) with whole sequences, or build "
                    f"the RNN with {option}=False"
                )
        if state is not None:
            check_state("state", state, architecture, N, backend, host=False)
        self._architecture, self._backend, self._N = architecture, backend, int(N)
        self._stream = Stream(network, as_initial(backend, architecture, state, N))
        # What inputs are is known when the first one comes in. From then on an array of NumPy is looked at only for
        # what is here; on other devices, where that costs next to nothing, at all.
        vars(self).update(_tokens=None, _run=None, _kind=None, _shape=(), _dtype=None)

    def __call__(self, x_t: Any) -> Array:
        """One step.

        Parameters
        ----------
        x_t : (N, I) of the network's dtype, or (N,) integer tokens
            On the network's device; of an ensemble also (E, N, I) or (E, N). The first one decides between the two.

        Returns
        -------
        y : (N, O), of an ensemble (E, N, O)
            Always the same array, which the next step writes over: copy what is to stay. It may be the next ``x_t``.

        Raises
        ------
        ValueError, TypeError
            Naming ``x_t``, before any work: the states are as they were. Tokens out of range are found on NumPy; a
            device would have to be asked, and waited for.
        """
        if type(x_t) is self._kind and x_t.shape == self._shape and x_t.dtype == self._dtype:
            return self._run(x_t)
        x_t = self._checked(x_t)  # which knows only now what runs
        return self._run(x_t)

    def _checked(self, x_t: Any) -> Array:
        """An input that was looked at as a whole, and in the byte order of this machine."""
        backend, dtype, E = self._backend, self._architecture.dtype, self._architecture.members
        integers = (1,) if E is None else (1, 2)
        classes = () if self._architecture.embedding_size is None else integers
        check_place("x_t", x_t, backend, dtype, host=False, integers=integers, classes=classes)
        check_tokens_alone("x_t", x_t, self._architecture, "(N,)")
        tokens = is_integer(x_t)
        if not tokens and dtype_name(x_t) not in DTYPES:
            check_float("x_t", x_t, dtype)
        self._check_shape(x_t, tokens=tokens)
        if not tokens:
            check_float("x_t", x_t, dtype)
        if self._tokens is None:
            self._begin(tokens=tokens)
        elif tokens is not self._tokens:
            here, there = ("tokens", "floats") if tokens else ("floats", "tokens")
            raise TypeError(
                f"x_t has {here}, but this streamer was given {there} before; make another, rnn.streamer({self._N}, "
                "step.state)"
            )
        if x_t.dtype != self._dtype:
            if tokens:  # some of which int64 does not hold
                size = self._architecture.input_size
                check_range("x_t", x_t, size, "tokens below input_size", backend, None, read=False, timed=False)
            with backend.active():
                return backend.xp.astype(x_t, self._dtype)
        vars(self)["_shape"] = tuple(x_t.shape)
        return x_t

    def _check_shape(self, x_t: Array, *, tokens: bool) -> None:
        E, I, N = self._architecture.members, self._architecture.input_size, self._N  # noqa: E741
        lead, shape = {"(N, I)": (N,)} if E is None else {"(N, I)": (N,), "(E, N, I)": (E, N)}, tuple(x_t.shape)
        of_floats = {axes: (*one, I) for axes, one in lead.items()}
        of_tokens = {axes.replace(", I", "" if "E" in axes else ","): one for axes, one in lead.items()}
        expected = of_tokens if tokens else of_floats
        if shape in expected.values():
            return
        way = ""
        if shape[1:] in expected.values():
            way = "; of whole sequences give one step, x_t[t], or call rnn(x_t, step.state)"
        elif tokens and shape in of_floats.values():
            way = f"; for features use rnn.asarray(x_t, dtype={self._architecture.dtype!r})"
        elif not tokens and shape in of_tokens.values():
            way = "; of floats that are tokens use rnn.asarray(x_t, dtype='int64')"
        words = " or ".join(f"{axes} = {one}" for axes, one in expected.items())
        raise ValueError(f"x_t has {'integers in ' * tokens}shape {shape}; expected {words}{way}")

    def _begin(self, *, tokens: bool) -> None:
        """Make room for floats or for tokens, once."""
        backend, run = self._backend, self._stream
        with backend.active():
            self._stream.read(tokens=tokens)
        of_numpy = backend.xp is array_api_compat.numpy
        made: Run = _in_range(run, self._architecture.input_size) if tokens and of_numpy else run
        if not isinstance(backend.active(), nullcontext):
            made = _active(backend, made)
        vars(self).update(
            _tokens=tokens,
            _run=made,
            _kind=np.ndarray if backend.name == "cpu" else None,
            _dtype=backend.integer if tokens else backend.dtype(self._architecture.dtype),
        )

    @property
    def state(self) -> State:
        backend = self._backend
        with backend.active():
            return as_state(backend, self._stream.states, bidirectional=False)

    @state.setter
    def state(self, state: State) -> None:
        backend, architecture = self._backend, self._architecture
        with backend.active():
            check_state("state", state, architecture, self._N, backend, host=False)
            self._stream.states = as_initial(backend, architecture, state, self._N)

    def reset(self, rows: Any = None) -> None:
        """Begin anew with zero states.

        Parameters
        ----------
        rows : (N,) bool, or whole numbers from 0 to N - 1, optional
            The sequences that do; all of them if left out. Bools may be on the network's device.
        """
        backend, N = self._backend, self._N
        with backend.active():
            self._stream.reset(check_rows([True] * N if rows is None else rows, N, backend))

    def __repr__(self) -> str:
        return f"<streamer of N={self._N} sequences on {self._backend.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Streamer can be neither pickled nor copied: it is a step that is bound to its arrays. Take step.state, "
            "and make another of the network there: rnn.streamer(N, state)"
        )


def _in_range(run: Run, size: int) -> Run:
    """``run`` of tokens of NumPy that are looked at: below 0 they are huge without a sign."""
    largest = np.maximum.reduce

    def checked(x_t: Array) -> Array:
        if largest(x_t.view(np.uint64), axis=None) >= size:
            index = tuple(int(i) for i in np.argwhere((x_t < 0) | (x_t >= size))[0])
            raise ValueError(
                f"x_t[{', '.join(map(str, index))}]={x_t[index]}; expected 0 to {size - 1} (tokens below input_size)"
            )
        return run(x_t)

    return checked


def _active(backend: Backend, run: Run) -> Run:
    def within(x_t: Array) -> Array:
        with backend.active():
            return run(x_t)

    return within
