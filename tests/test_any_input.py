"""Whatever comes in: every call ends in a result, or in a ValueError or TypeError that names an argument.

Hypothesis draws calls that are right but for up to three arguments: 10 000 where ``CI`` is set, 1 500 otherwise. How
they may end is said in :func:`outcome`; what is called in :data:`ENTRIES`, with one strategy for each part of the
public interface. The command line has its own file, ``test_any_command.py``.
"""

import copy
import importlib.util
import linecache
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
from conftest import IN_CI
from every_optimizer import OPTIMIZERS
from hypothesis import given, settings
from hypothesis import strategies as st

import bptt_array as ba
from bptt_array import parity, schedules
from bptt_array.checks import is_whole
from bptt_array.optimizers.lr_schedules import Plateau, cosine, exponential, linear, step, warm_up
from bptt_array.training import reading, sampling, text
from bptt_array.training import trainer as training

CASES = 10_000 if IN_CI else 1_500
PACKAGE = os.path.dirname(ba.__file__) + os.sep
HAS_TORCH = importlib.util.find_spec("torch") is not None
I, H, O = 3, 4, 2  # noqa: E741


# ---- a call, and how it may end ---------------------------------------------------------------------------


class OwnError(Exception):
    """What a caller's own function raises, which is nobody's business here."""


def short(value):
    """For reports of failures: a repr that neither fails nor is long."""
    try:
        said = repr(value)
    except Exception as error:  # noqa: BLE001 (that it fails is the point of some values)
        said = f"<{type(value).__name__} without a repr: {type(error).__name__}>"
    return f"{said[:200]}…" if len(said) > 200 else said


@dataclass
class Call:
    """A call with its arguments; ``check`` looks at the result, ``state`` is what an error must leave as it was."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    check: Callable[[Any], None] = lambda result: None
    state: Callable[[], Any] = lambda: None
    also: tuple[str, ...] = ()  # what an error may name beside the arguments
    may_raise: tuple[type[Exception], ...] = (ValueError, TypeError)
    wild: bool = field(init=False)

    def __post_init__(self):
        self.wild = any(map(is_wild, self.arguments.values()))

    def __repr__(self):
        said = ", ".join(f"{name}={short(value)}" for name, value in self.arguments.items())
        return f"{getattr(self.function, '__qualname__', self.function)}({said})"


@contextmanager
def quietly():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def is_wild(value):
    """Whether there are numbers in it with which floating-point arithmetic warns, as it would for NumPy's users."""
    if isinstance(value, ba.State):
        return is_wild(value.h) or is_wild(value.c)
    if isinstance(value, dict):
        return any(map(is_wild, value.values()))
    if isinstance(value, (list, tuple)):
        return any(is_wild(part) for part in value if part is not value)
    if isinstance(value, (np.ndarray, np.generic, float)) or hasattr(value, "__array_namespace__"):
        with quietly():
            try:
                array = np.asarray(value)
            except Exception:  # noqa: BLE001 (other libraries raise what they like)
                return True
            return array.dtype.kind in "fc" and not bool((np.abs(array) < 1e15).all())
    return callable(value)


def named(message, names):
    """Whether an error says of which argument it is."""
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) for name in names)


def raised_on_purpose(error):
    """By a ``raise`` of the library, or for arguments that a signature has not; not by what it happened to call."""
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    name, line = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
    if name == __file__:
        return True
    return name.startswith(PACKAGE) and linecache.getline(name, line).strip().startswith("raise")


def outcome(call):
    """``"result"`` or ``"error"``; anything that is neither fails here."""
    before = call.state()
    try:
        with np.errstate(all="ignore") if call.wild else nullcontext():
            result = call.function(**call.arguments)
    except OwnError:
        return "error"
    except call.may_raise as error:
        failed = error
    else:
        call.check(result)
        return "result"
    if not isinstance(failed, OSError) or failed.filename is None:
        assert named(str(failed), (*call.arguments, *call.also)), f"names no argument: {failed!r}"
        assert raised_on_purpose(failed), f"raised by what was called, not checked before: {failed!r}"
        assert len(str(failed)) < 2000, "who is to read that?"
    assert call.state() == before, f"changed something before it failed: {failed!r}"
    return "error"


# ---- values that are wrong nearly everywhere --------------------------------------------------------------


class NoRepr:
    def __repr__(self):
        raise RuntimeError("no repr")


class Duck:
    """Says that it is an array."""

    def __array_namespace__(self, api_version=None):
        return np


class NoArray:
    """Cannot be converted."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no array")


class Text(str):
    __slots__ = ()


def _matrix():
    with quietly():
        return np.matrix([[1.0, 2.0]])


def _itself():
    value = [1]
    value.append(value)
    return value


def _deep():
    value = [0]
    for _ in range(200):
        value = [value]
    return value


#: Made anew for every call: generators are used up, arrays may be written to.
ANYTHING = {
    "none": lambda: None,
    "false": lambda: False,
    "true": lambda: True,
    **{f"int {n}": (lambda n=n: n) for n in (0, 1, 2, 3, -1, 2**31, 2**63, -(2**63), 2**64, 10**18, 10**30, -(10**30))},
    "int of 401 digits": lambda: 10**400,
    "int of 5001 digits": lambda: 10**5000,
    "minus an int of 5001 digits": lambda: -(10**5000),
    **{
        f"float {x}": (lambda x=x: float(x)) for x in ("nan", "inf", "-inf", "0", "-0.0", "1", "0.5", "1e308", "5e-324")
    },
    **{f"string {s!a}": (lambda s=s: s) for s in ("", "a", "\0", "\ud800", "off", "1", "cpu", "64MiB", "auto")},
    "long string": lambda: "x" * 100_000,
    "string of lines": lambda: "a\nb",
    "string of its own type": lambda: Text("tanh"),
    "bytes": lambda: b"tanh",
    "bytearray": lambda: bytearray(8),
    "memoryview": lambda: memoryview(b"12345678"),
    "empty list": list,
    "empty tuple": tuple,
    "empty dict": dict,
    "list": lambda: [1, 2, 3],
    "long list": lambda: [0] * 10_000,
    "pair": lambda: (1, 2),
    "pair, wrong": lambda: (2, 1.0),
    "pair of huge": lambda: (10**30, 10**30),
    "pair of 5001 digits": lambda: (-(10**5000), 10**5000),
    "list of strings": lambda: ["float32", "a"],
    "ragged": lambda: [[1], [1, 2]],
    "list of itself": _itself,
    "deep list": _deep,
    "list of None": lambda: [None, 1],
    "list of huge": lambda: [10**400, 1.0],
    "list of what is no array": lambda: [NoArray(), NoRepr()],
    "dict": lambda: {"a": 1},
    "dict of arrays": lambda: {"a": np.ones(2)},
    "dict by number": lambda: {1: np.ones(2)},
    "set": lambda: {1, 2},
    "generator": lambda: (n for n in range(3)),
    "range": lambda: range(3),
    "iterator": lambda: iter([1, 2]),
    "object": object,
    "no repr": NoRepr,
    "no array": NoArray,
    "duck": Duck,
    "type": lambda: int,
    "function": lambda: ascii,
    "module": lambda: np,
    "ellipsis": lambda: ...,
    "slice": lambda: slice(1),
    "complex": lambda: 1j,
    "decimal": lambda: Decimal("0.5"),
    "fraction": lambda: Fraction(1, 2),
    "path": lambda: Path("nowhere"),
    "error": lambda: ValueError("x"),
    "NumPy float": lambda: np.float32(0.5),
    "NumPy float64": lambda: np.float64(0.5),
    "NumPy int": lambda: np.int64(2),
    "NumPy uint8": lambda: np.uint8(2),
    "NumPy bool": lambda: np.bool_(True),
    "NumPy string": lambda: np.str_("tanh"),
    "NumPy void": lambda: np.zeros(1, "i4,f4")[0],
    "NumPy date": lambda: np.datetime64("2020-01-01"),
    "NumPy not a time": lambda: np.timedelta64("NaT", "s"),
    "array 0-d": lambda: np.array(1.0),
    "array": lambda: np.ones(3, "float32"),
    "array of integers": lambda: np.arange(3),
    "array of bools": lambda: np.ones(3, bool),
    "array of objects": lambda: np.array([None, NoRepr()], dtype=object),
    "empty array": lambda: np.ones(0),
    "masked": lambda: np.ma.MaskedArray([1.0, 2.0, 3.0], [0, 1, 0]),
    "masked integers": lambda: np.ma.MaskedArray([1, 2, 3], [0, 1, 0]),
    "masked 0-d": lambda: np.ma.masked,
    "matrix": _matrix,
    "strict array": lambda: array_api_strict.ones(3),
    "strict array 0-d": lambda: array_api_strict.asarray(1),
    "state": lambda: ba.State(np.zeros((1, 1, 1, H), "float32")),
    "state of nothing": lambda: ba.State(None),
    "gradients": lambda: ba.Gradients({}, ba.State(None)),
    "class of networks": lambda: ba.RNN,
    "class of cells": lambda: ba.Cell,
    "backend": lambda: ba.Backend(np),
    "plan": lambda: schedules.plan(3),
}
if HAS_TORCH:
    import torch

    ANYTHING |= {
        "torch": lambda: torch.ones(3),
        "torch integers": lambda: torch.arange(3),
        "torch bfloat16": lambda: torch.ones(3, dtype=torch.bfloat16),
        "torch float8": lambda: torch.ones(3).to(torch.float8_e5m2),
        "torch complex": lambda: torch.ones(3, dtype=torch.complex64),
        "torch conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
        "torch with autograd": lambda: torch.ones(3, requires_grad=True),
        "torch nowhere": lambda: torch.ones(3, device="meta"),
        "torch sparse": lambda: torch.eye(3).to_sparse(),
        "list of torch with autograd": lambda: [torch.ones(3, requires_grad=True)],
    }

anything = st.sampled_from(sorted(ANYTHING)).map(lambda name: ANYTHING[name]())


def one_of(*values):
    """One of these, or more seldom anything."""
    return st.one_of(st.sampled_from(values), st.sampled_from(values), anything)


flags = one_of(True, False, np.bool_(True), 0, 1, "yes")
counts = one_of(1, 2, 3, np.int64(2), np.uint8(3), 0, -1, 2.0, True, "2")
#: Sizes of what is allocated: small ones, or such that no machine has the room for.
sizes = one_of(1, 2, 3, np.int8(2), 0, -1, 2.0, 10**18, 10**30).filter(
    lambda size: not is_whole(size) or size < 10 or size >= 10**18
)
seeds = st.one_of(st.integers(0, 2**70), st.integers(-3, 3), anything)
reals = st.one_of(st.floats(), st.floats(0, 1), st.floats(0, 1), anything)

DTYPES = ("float16", "float32", "float64", "longdouble", "complex64", "bool", "int8", "uint8", "int64", "uint64", ">i4")
DTYPES += (">f4", ">f8", "object", "U3", "S3", "M8[s]", "m8[D]", "i4,f4")


def _shaped(array, how):
    if how == "less":
        return array[0] if array.ndim and array.shape[0] else np.squeeze(array)
    if how == "more":
        return array[None]
    if how == "more behind":
        return array[..., None]
    if how == "empty":
        return array[:0]
    if how == "empty behind":
        return array[..., :0]
    if how == "longer":
        return np.concatenate([array, array]) if array.ndim else array
    if how == "wider":
        return np.concatenate([array, array], axis=-1) if array.ndim else array
    if how == "shorter":
        return array[:1]
    if how == "turned":
        return array.T
    if how == "swapped":
        return np.swapaxes(array, 0, 1) if array.ndim > 1 else array
    return array.reshape(-1)


SHAPES = (
    "less",
    "more",
    "more behind",
    "empty",
    "empty behind",
    "longer",
    "wider",
    "shorter",
    "turned",
    "swapped",
    "flat",
)
CONTENTS = (np.nan, np.inf, -np.inf, 1e30, -1, 7, 2**40)


class Subclass(np.ndarray):
    pass


def _as_matrix(array):
    with quietly():
        return np.matrix(array.reshape(-1, array.shape[-1]) if array.ndim > 2 else array)


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def _with_gaps(array):
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


CONTAINERS = {
    "list": lambda a: a.tolist(),
    "tuple": tuple,
    "masked": np.ma.MaskedArray,
    "matrix": _as_matrix,
    "read-only": _read_only,
    "gaps": _with_gaps,
    "Fortran": np.asfortranarray,
    "backwards": lambda a: a[::-1],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "subclass": lambda a: a.view(Subclass),
    "objects inside": lambda a: [None, *a],
    "generator": iter,
    "dict": lambda a: {"x": a},
    "strict": lambda a: array_api_strict.asarray(a.astype(a.dtype.newbyteorder("="), copy=True)),
    "strict elsewhere": lambda a: array_api_strict.asarray(
        a.astype(a.dtype.newbyteorder("="), copy=True), device=array_api_strict.Device("device1")
    ),
    "memoryview": lambda a: memoryview(np.ascontiguousarray(a)),
    "bytes": lambda a: a.tobytes(),
}
if HAS_TORCH:
    CONTAINERS["torch"] = lambda a: torch.asarray(a.astype(a.dtype.newbyteorder("="), copy=True))
    CONTAINERS["torch with autograd"] = lambda a: torch.asarray(a.astype("float32"), requires_grad=True)


def _with_content(array, content, at):
    array = np.array(array)
    if array.size and array.dtype.kind in "iufb":
        with quietly():
            value = np.asarray(content)
            if array.dtype.kind != "f" and not np.isfinite(value):
                return array
            array.reshape(-1)[at % array.size] = value.astype(array.dtype)
    return array


def _changed(right, change):
    """``right`` on the host with one thing different."""
    kind, how, at = change
    right = np.asarray(right)
    with quietly():
        try:
            if kind == "dtype":
                return right.astype(how)
            if kind == "shape":
                return _shaped(right, how)
            return CONTAINERS[how](right) if kind == "container" else _with_content(right, how, at)
        except (TypeError, ValueError, IndexError, OverflowError, RuntimeError):  # there is no such array
            return np.zeros(right.shape, how) if kind == "dtype" else right


changes = st.one_of(
    st.tuples(st.just("dtype"), st.sampled_from(DTYPES), st.just(0)),
    st.tuples(st.just("shape"), st.sampled_from(SHAPES), st.just(0)),
    st.tuples(st.just("content"), st.sampled_from(CONTENTS), st.integers(0, 30)),
    st.tuples(st.just("container"), st.sampled_from(sorted(CONTAINERS)), st.just(0)),
)


@st.composite
def arrays_like(draw, right, rnn=None):
    """An array that is nearly ``right`` (of the host), of the network's device or not; or anything."""
    if draw(st.integers(0, 5)) == 0:
        return draw(anything)
    value = np.asarray(right)
    for change in draw(st.lists(changes, min_size=1, max_size=2)):
        if not isinstance(value, np.ndarray):
            break
        value = _changed(value, change)
    return there(rnn, value)


def there(rnn, value):
    """A plain array on the network's device, where it can be."""
    if rnn is None or rnn.backend.name == "cpu" or type(value) is not np.ndarray:
        return value
    try:
        return rnn.backend.from_host(value)
    except (TypeError, ValueError, AttributeError):
        return value


#: How many arguments are wrong.
SPOILED = (0, 0, 1, 1, 1, 1, 2, 3)


@st.composite
def nearly(draw, right, wrong):
    """The arguments ``right``, but for up to three of those that ``wrong`` has strategies for."""
    names = draw(st.permutations(sorted(wrong)))[: draw(st.sampled_from(SPOILED))]
    return right | {name: draw(wrong[name]) for name in names}


# ---- networks ---------------------------------------------------------------------------------------------

NETWORKS = [
    {},
    {"cell": "lstm", "num_layers": 2, "dropout": 0.2, "members": 2},
    {"cell": "gru", "bidirectional": True, "output_size": None},
    {"output": "softmax", "readout": "last"},
    {"output": "softmax", "members": 2},
    {"output": "sigmoid", "recurrent_dropout": 0.3, "time_major": False},
    {"cell": "relu", "members": 2, "dtype": "float64", "time_major": False},
    {"cell": "lstm", "bidirectional": True, "readout": "last"},
    {"device": "strict"},
    {"output": "softmax", "members": 2, "time_major": False, "device": "strict"},
    {"cell": "lstm", "readout": "last", "output": "sigmoid", "device": "strict"},
    {"cell": "lstm", "proj_size": 2, "num_layers": 2, "members": 2},
    {"cell": "gru", "reverse": True, "bias": False, "time_major": False},
]


@cache
def network(index):
    options = {"output_size": O, **NETWORKS[index]}
    if options.get("device") == "strict":
        options["device"] = ba.Backend(array_api_strict)
    return ba.RNN(I, H, **options)


networks = st.integers(0, len(NETWORKS) - 1).map(network)


def weights_of(rnn):
    return lambda: {name: rnn.backend.to_host(value).tobytes() for name, value in rnn.params.items()}


class Right:
    """The arguments of a right call, on the host: with the batch first where the network wants that."""

    def __init__(self, draw, rnn):
        self.rnn, self.architecture = rnn, rnn.architecture
        self.T, self.N = draw(st.sampled_from([1, 4])), draw(st.sampled_from([1, 3]))
        self.tokens, self.shared = draw(st.booleans()), draw(st.booleans()) or rnn.members is None
        self.rng = np.random.default_rng(0)

    def turned(self, array, features=True):
        return array if self.architecture.time_major else np.moveaxis(array, 0, -2 if features else -1)

    def lead(self):
        return () if self.shared else (self.rnn.members,)

    def x(self):
        shape = (self.T, *self.lead(), self.N)
        if self.tokens:
            return self.turned(self.rng.integers(0, I, shape), features=False)
        return self.turned(self.rng.standard_normal((*shape, I)).astype(self.rnn.dtype))

    def state(self):
        return [np.ones(shape, self.rnn.dtype) for shape in self.architecture.states_shapes(self.N).values()]

    def outputs(self):
        shape = self.architecture.outputs_shape(self.T, self.N)
        if self.shared and self.rnn.members is not None:
            shape = (*shape[:-3], *shape[-2:])
        return shape

    def in_layout(self, array, features=True):
        return self.turned(array, features) if self.rnn.readout == "every" else array

    def target(self, loss):
        shape = self.outputs()
        if loss == "classes":
            return self.in_layout(self.rng.integers(0, shape[-1], shape[:-1]), features=False)
        return self.in_layout((self.rng.random(shape) / shape[-1]).astype(self.rnn.dtype))

    def weights(self):
        return self.in_layout(np.ones(self.outputs()[:-1], self.rnn.dtype), features=False)

    def dy(self):
        return self.in_layout(np.ones(self.architecture.outputs_shape(self.T, self.N), self.rnn.dtype))

    def of_call(self):
        """Right arguments, and strategies for wrong ones."""
        x = self.x()
        right = {
            "x": there(self.rnn, x),
            "state": None,
            "lengths": None,
            "reset": None,
            "validate": True,  # where it is not said, tokens that are on a device already are not looked at
            "dropout_seed": 3,
            "dropout_rows": (0, self.N),
        }
        wrong = {
            "x": arrays_like(x, self.rnn),
            "state": self.states(),
            "lengths": self.lengths(),
            "reset": arrays_like(np.ones(self.N, bool), self.rnn) | st.just([True] * self.N),
            "dropout_seed": seeds | st.just("off") | st.none(),
            "dropout_rows": st.tuples(seeds, seeds) | st.none(),
        }
        if self.rnn.backend.name == "cpu":
            wrong["validate"] = flags
        return right, wrong

    @st.composite
    @staticmethod
    def _states(draw, right, rnn):
        if draw(st.integers(0, 5)) == 0:
            return draw(anything)
        parts = [there(rnn, array) for array in right]
        wrong = draw(st.integers(0, 3))
        if wrong < 2:
            parts[min(wrong, len(parts) - 1)] = draw(arrays_like(right[0], rnn))
        elif wrong == 2:
            parts = draw(st.sampled_from([parts[:1], [parts[0], parts[0]], [None], [None, parts[0]]]))
        return ba.State(*parts)

    def states(self):
        return self._states(self.state(), self.rnn)

    def lengths(self):
        N, T = self.N, self.T
        elements = (
            st.integers(0, T) | st.integers(0, T) | st.sampled_from([-1, T + 1, 10**30, 1.0, True, "1", None, [1]])
        )
        right = st.lists(st.integers(0, T), min_size=N, max_size=N)
        some = st.lists(elements, min_size=N, max_size=N)
        return right | some | some.map(tuple) | st.lists(elements, max_size=5) | arrays_like(np.ones(N, int))

    # ---- what comes out ----

    def sizes_of(self, x):
        """T and N of an ``x`` that was taken."""
        shape = tuple(x.shape)
        lead = shape if "int" in getattr(x.dtype, "name", str(x.dtype)) else shape[:-1]
        T, N = (lead[0], lead[-1]) if self.architecture.time_major else (lead[-1], lead[-2])
        return T, N

    def check_array(self, array, shape):
        assert tuple(array.shape) == tuple(shape)
        assert array.dtype == self.rnn.backend.dtype(self.rnn.dtype)
        assert self.rnn.backend.owns(array)

    def check_state(self, state, N):
        for name in ("h", "c"):
            array = getattr(state, name)
            if name in self.architecture.cell.states:
                self.check_array(array, self.architecture.states_shapes(N)[name])
            else:
                assert array is None

    def check_outputs(self, y, T, N):
        shape = self.architecture.outputs_shape(T, N)
        if self.rnn.readout == "every":
            shape = self.turned(np.broadcast_to(0, shape)).shape
        self.check_array(y, shape)

    def check_gradients(self, grads, x, input_grad):
        assert {name: tuple(grad.shape) for name, grad in grads.params.items()} == self.architecture.shapes
        T, N = self.sizes_of(x)
        self.check_state(grads.state, N)
        if not input_grad:
            assert grads.x is None
        else:
            members = () if self.rnn.members is None else (self.rnn.members,)
            self.check_array(grads.x, self.turned(np.broadcast_to(0, (T, *members, N, I))).shape)


@st.composite
def run_calls(draw):
    """``rnn(x)`` and ``rnn.forward(x)``."""
    rnn = draw(networks)
    right = Right(draw, rnn)
    arguments, wrong = right.of_call()
    forward = draw(st.booleans())
    if forward:
        arguments["backward"] = "sequential"
        wrong["backward"] = one_of("sequential", "parallel", "auto", "Sequential")
    arguments = draw(nearly(arguments, wrong))

    def check(result):
        y, state, *backward = result
        T, N = right.sizes_of(arguments["x"])
        right.check_outputs(y, T, N)
        right.check_state(state, N)
        assert len(backward) == forward

    function = rnn.forward if forward else rnn.__call__
    return Call(function, arguments, check, weights_of(rnn))


@st.composite
def stream_calls(draw):
    """``rnn.streamer(N)``, and its step and ``reset``, which have been called before or not."""
    rnn = draw(networks)
    right = Right(draw, rnn)
    N, outputs = right.N, right.architecture.outputs
    if rnn.bidirectional or rnn.reverse or draw(st.integers(0, 3)) == 0:
        wrong = {"N": counts | anything, "state": right.states()}
        arguments = draw(nearly({"N": N, "state": None}, wrong))
        return Call(
            rnn.streamer, arguments, lambda step: step.reset(), weights_of(rnn), also=("bidirectional", "reverse")
        )
    right.tokens &= rnn.backend.name == "cpu"  # where tokens are looked at
    shape = (*right.lead(), N)
    x_t = right.rng.integers(0, I, shape) if right.tokens else np.ones((*shape, I), rnn.dtype)
    step = rnn.streamer(N)
    if draw(st.booleans()):
        step(there(rnn, x_t))

    def states():
        return [rnn.backend.to_host(getattr(step.state, name)).tobytes() for name in right.architecture.cell.states]

    if draw(st.integers(0, 2)) == 0:
        rows = right.rng.random(N) < 0.5
        some = arrays_like(rows, rnn) | st.lists(st.integers(-1, N), max_size=3) | st.none() | st.integers(-1, N)
        return Call(step.reset, draw(nearly({"rows": rows}, {"rows": some})), state=states)
    y_shape = (*right.architecture.member_axis, N, outputs)
    return Call(
        step,
        draw(nearly({"x_t": there(rnn, x_t)}, {"x_t": arrays_like(x_t, rnn)})),
        lambda y: right.check_array(y, y_shape),
        states,
    )


@st.composite
def backward_calls(draw):
    rnn = draw(networks)
    right = Right(draw, rnn)
    x, dy, dstate = there(rnn, right.x()), right.dy(), right.state()
    backward = rnn.forward(x, dropout_seed="off", validate=True)[2]
    given_state = ba.State(*(there(rnn, array) for array in dstate))
    arguments = {"dy": there(rnn, dy), "dstate": draw(st.sampled_from([None, given_state])), "input_grad": False}
    wrong = {"dy": arrays_like(dy, rnn) | st.none(), "dstate": right.states(), "input_grad": flags}
    arguments = draw(nearly(arguments, wrong))
    return Call(
        backward,
        arguments,
        lambda grads: right.check_gradients(grads, x, arguments["input_grad"]),
        weights_of(rnn),
    )


def _half_square(y, target):
    xp = y.__array_namespace__()
    return xp.sum(y * y, axis=-1) / 2, y


def _raises(y, target):
    raise OwnError


def is_ours(loss):
    """Of other functions the errors are their own."""
    return not callable(loss) or getattr(loss, "__module__", None) == __name__


#: A caller's own losses, most of them wrong.
LOSSES = {
    "right": _half_square,
    "raises": _raises,
    "a list": lambda y, t: list(_half_square(y, t)),
    "loss alone": lambda y, t: _half_square(y, t)[0],
    "three": lambda y, t: (*_half_square(y, t), 1),
    "nothing": lambda y, t: None,
    "floats": lambda y, t: (0.0, 1.0),
    "lists": lambda y, t: ([0.0], [1.0]),
    "gradient for loss": lambda y, t: (y, y),
    "loss for gradient": lambda y, t: (y[..., 0], y[..., 0]),
    "sum": lambda y, t: (y.__array_namespace__().sum(y), y),
    "host": lambda y, t: tuple(np.ones(tuple(a.shape)) for a in (y[..., 0], y)),
    "bools": lambda y, t: (y[..., 0] > 0, y > 0),
    "NaN": lambda y, t: (y[..., 0] * np.nan, y * np.nan),
    "masked": lambda y, t: (np.ma.MaskedArray(np.asarray(y)[..., 0]), y),
    "itself": lambda y, t: (_raises, _raises),
    "no repr": lambda y, t: (NoRepr(), NoRepr()),
    "0-d": lambda y, t: (np.float32(0), np.float32(0)),
    "strings": lambda y, t: "ab",
    "generator": lambda y, t: (a for a in (y[..., 0], y)),
    "writes": lambda y, t: (y[..., 0], y.__imul__(2.0)),
}
truncates = one_of(1, 2, 100, (1, 2), (2, 1), (1, 1), [1, 2], (0, 1), (1,), (1, 2, 3), 0, -1, 2.0, (1, 2.0), None)
memories = one_of(
    *(
        10**6,
        10**9,
        "1GB",
        "64 MiB",
        "1 kB",
        1,
        0,
        -1,
        1e9,
        "much",
        "1e9",
        "",
        " ",
        "-1MB",
        "1.5.5 MB",
        "9" * 400,
        "1\0MB",
    ),
    *("9" * 400 + "TB", "9" * 5000, "٣MB", "\ud800MB", "1 " * 1000, 10**25),
)
backwards = one_of("sequential", "auto", "parallel", "fast", "")


#: Losses with options, which may not go with the output, the number of classes or the target.
OPTIONS = [
    ba.losses.Huber(0.5),
    ba.losses.CrossEntropy(ignore_index=-1, label_smoothing=0.1),
    ba.losses.CrossEntropy([1.0, 2.0]),
    ba.losses.CrossEntropy,
]


@st.composite
def loss_calls(draw):
    """``loss_and_grad`` and ``loss``."""
    rnn = draw(networks)
    right = Right(draw, rnn)
    arguments, wrong = right.of_call()
    fused = {"softmax": ["cross_entropy", "classes"], "sigmoid": ["binary_cross_entropy"]}.get(rnn.output, [])
    loss = draw(st.sampled_from(["mse", *fused]))
    target = right.target(loss)
    with_grad = draw(st.booleans())
    arguments |= {
        "target": there(rnn, target),
        "loss": "cross_entropy" if loss == "classes" else loss,
        "weights": None,
        "reduction": "mean",
    }
    wrong |= {
        "target": arrays_like(target, rnn),
        "loss": one_of("mse", "mae", "cross_entropy", "MSE", *OPTIONS, *LOSSES.values()).filter(is_ours),
        "weights": arrays_like(right.weights(), rnn) | st.just(there(rnn, right.weights())),
        "reduction": one_of("mean", "sum", "max"),
    }
    if with_grad:
        arguments |= {"truncate": None, "memory": None, "backward": "sequential", "input_grad": False}
        wrong |= {"truncate": truncates, "memory": memories, "backward": backwards, "input_grad": flags}
    arguments = draw(nearly(arguments, wrong))

    def check(result):
        loss, *grads, state = result
        _, N = right.sizes_of(arguments["x"])
        right.check_array(loss, () if rnn.members is None else (rnn.members,))
        right.check_state(state, N)
        if with_grad:
            right.check_gradients(grads[0], arguments["x"], arguments["input_grad"])

    return Call(rnn.loss_and_grad if with_grad else rnn.loss, arguments, check, weights_of(rnn))


class Leaky(ba.Cell):
    name = "leaky"


class Nameless(ba.Cell):
    """A cell whose description is no good."""

    name = None


@st.composite
def constructions(draw):
    right = {"input_size": 3, "hidden_size": 4, "output_size": 2, "cell": "lstm", "num_layers": 2}
    wrong = {
        "input_size": sizes,
        "hidden_size": sizes,
        "output_size": sizes | st.none(),
        "cell": one_of("tanh", "relu", "lstm", "gru", "gru_reset_before", "LSTM", ba.Cell, Leaky, Leaky()),
        "proj_size": sizes | st.none(),
        "num_layers": sizes,
        "bidirectional": flags,
        "members": sizes | st.none(),
        "embedding_size": sizes | st.none(),
        "tied": flags,
        "bias": flags,
        "reverse": flags,
        "dropout": reals,
        "recurrent_dropout": reals,
        "output": one_of("identity", "softmax", "sigmoid", "tanh", "relu"),
        "readout": one_of("every", "last", "first"),
        "init": one_of("uniform", "orthogonal", "identity", "zeros"),
        "forget_bias": reals,
        "time_major": flags,
        "dtype": one_of(
            "float32", "float64", np.float32, np.dtype(">f8"), "f4", "float16", "int64", float, "float32,,"
        ),
        "device": devices,
        "seed": seeds,
    }
    arguments = draw(nearly(right, wrong))

    def check(rnn):
        assert {name: tuple(value.shape) for name, value in rnn.params.items()} == rnn.architecture.shapes
        assert (
            all(np.isfinite(rnn.backend.to_host(value)).all() for value in rnn.params.values())
            or "forget_bias" in arguments
        )
        assert all(rnn.backend.owns(value) for value in rnn.params.values())
        assert repr(rnn).startswith("RNN(input_size=")

    return Call(ba.RNN, arguments, check)


STRICT = ba.Backend(array_api_strict)
devices = one_of("cpu", "auto", "cuda", "cuda:7", "cuda:x", "cuda:", "cuda:-1", "cuda:²", "CPU", "", ba.Backend, STRICT)


@st.composite
def plan_calls(draw):
    if draw(st.booleans()):
        return draw(schedule_calls())
    rnn = draw(networks)
    right = Right(draw, rnn)
    shape = tuple(right.x().shape)
    wrong_shapes = st.lists(st.integers(-1, 5) | counts | st.sampled_from([10**12, 10**30]), max_size=5)
    wrong = {
        "x_shape": st.permutations(shape).map(tuple) | wrong_shapes | wrong_shapes.map(tuple) | anything,
        "memory": memories,
        "loss": one_of("mse", "cross_entropy", "MSE", _half_square),
        "tokens": flags | st.none(),
        "truncate": truncates,
        "backward": backwards,
        **dict.fromkeys(("lengths", "weights", "input_grad", "dropout", "from_host", "unordered"), flags),
    }
    arguments = draw(nearly({"x_shape": shape, "tokens": right.tokens}, wrong))
    return Call(rnn.plan, arguments, check_plan)


def check_plan(plan):
    assert isinstance(plan, schedules.Plan)
    assert plan.T >= 1
    assert 1 <= plan.longest <= plan.T
    if plan.T < 10**5:
        assert plan.forward_steps >= plan.T
        assert plan.memory is None or plan.peak <= plan.memory
        assert str(plan).startswith(f"{plan.T:,} steps")


bytes_of = st.integers(-1, 1000) | st.sampled_from(
    [0, 0, 10**12, 10**30, 10**400, 2.0, None, np.int64(3), True, NoRepr()]
)


@st.composite
def schedule_calls(draw):
    right_costs = schedules.Costs(1000, 100, 100, 200)
    some = st.lists(bytes_of, min_size=5, max_size=5).map(lambda numbers: schedules.Costs(*numbers))
    good = st.lists(st.integers(0, 1000), min_size=5, max_size=5).map(lambda numbers: schedules.Costs(*numbers))
    steps = one_of(1, 7, 1000, 10**5, 10**12, 10**18, 10**30, 0, -1, 2.0)
    wrong = {
        "T": steps,
        "memory": memories | st.integers(0, 10**6),
        "costs": some | good | good | one_of(schedules.plans.NOTHING, (1, 2, 3, 4, 5), [1, 2, 3, 4, 5]),
        "longest": steps,
        "truncate": truncates,
        "whole": flags,
    }
    arguments = draw(nearly({"T": draw(st.integers(1, 300)), "costs": right_costs}, wrong))
    return Call(schedules.plan, arguments, check_plan)


@st.composite
def moves(draw):
    """``member``, ``to`` and ``asarray``."""
    rnn = draw(networks)
    which = draw(st.sampled_from(["member", "to", "asarray"]))
    if which == "member":
        members = network(draw(st.sampled_from([1, 4, 6, 9])))

        def check_member(one):
            assert one.members is None
            assert set(one.params) == set(members.params)

        return Call(
            members.member, {"k": draw(one_of(0, 1, 2, -1, np.int64(1), 1.0))}, check_member, weights_of(members)
        )
    if which == "to":
        rnn = copy.deepcopy(rnn)

        def check_moved(moved):
            assert moved is rnn
            assert all(rnn.backend.owns(value) for value in rnn.params.values())

        return Call(rnn.to, {"device": draw(devices)}, check_moved, weights_of(rnn))
    right = np.asarray(draw(st.lists(st.floats(-10, 10), min_size=1, max_size=4)))

    def check_array(array):
        assert rnn.backend.owns(array)
        assert array.dtype in (rnn.backend.dtype(rnn.dtype), rnn.backend.dtype("int64"))

    return Call(rnn.asarray, {"array": draw(arrays_like(right, rnn) | st.just(right))}, check_array)


def _grads(draw, members=None):
    lead = () if members is None else (members,)
    some = draw(st.lists(st.floats(-10, 10), min_size=2, max_size=2))
    dtype = draw(st.sampled_from(["float32", "float64"]))
    return {"a": np.full((*lead, 2, 3), some[0], dtype), "b": np.full((*lead, 3), some[1], dtype)}


@st.composite
def dicts_like(draw, right):
    """Nearly the dictionary of arrays ``right``."""
    how = draw(st.integers(0, 5))
    if how == 0:
        return draw(anything)
    if how == 1:
        return draw(
            st.sampled_from([{}, list(right.values()), {"a": right["a"]}, right | {1: right["a"]}, right | {None: 0}])
        )
    return right | {draw(st.sampled_from(["a", "b"])): draw(arrays_like(right["a"]))}


@st.composite
def norms(draw):
    members = draw(st.sampled_from([None, None, 2]))
    grads = _grads(draw, members)
    wrong = {"grads": dicts_like(grads), "members": one_of(1, 2, 3, None, 0, 2.0, True)}
    clip = draw(st.booleans())
    if clip:
        wrong["max_norm"] = reals | st.floats(1e-3, 10)
    arguments = draw(nearly({"grads": grads, "members": members} | ({"max_norm": 1.0} if clip else {}), wrong))

    def check(result):
        if not clip:
            assert tuple(result.shape) == (() if arguments["members"] is None else (int(arguments["members"]),))
            return
        assert set(result) == set(arguments["grads"])
        for name, grad in arguments["grads"].items():
            assert result[name].shape == grad.shape
            assert result[name].dtype == grad.dtype.newbyteorder("=") if isinstance(grad, np.ndarray) else grad.dtype

    return Call(ba.clip_by_global_norm if clip else ba.global_norm, arguments, check)


NAMES = one_of("b", ("b",), ["a", "b"], [], ["", 1], {"a": 1}, b"b")


@st.composite
def optimizers(draw):
    """Optimizers, made or updating."""
    of_adam = {"lr": reals, "beta1": reals, "beta2": reals, "eps": reals}
    make, wrong = draw(
        st.sampled_from(
            [
                (ba.SGD, {"lr": reals, "momentum": reals, "nesterov": flags}),
                (ba.Adam, of_adam),
                (ba.AdamW, of_adam | {"weight_decay": reals, "no_decay": NAMES}),
                (ba.RMSprop, {"lr": reals, "alpha": reals, "eps": reals, "momentum": reals, "centered": flags}),
            ]
        )
    )
    if draw(st.integers(0, 2)) == 0:
        return Call(make, draw(nearly({"lr": 0.1}, wrong)), lambda optimizer: optimizer.lr + 1.0)
    optimizer = draw(st.sampled_from(list(OPTIMIZERS.values())))()
    params, grads = _grads(draw), _grads(draw)
    if draw(st.booleans()):
        optimizer.update(params, {name: np.ones_like(value) for name, value in params.items()})
    grads = {name: grad.astype(params[name].dtype) for name, grad in grads.items()}
    arguments = draw(
        nearly({"params": params, "grads": grads}, {"params": dicts_like(params), "grads": dicts_like(grads)})
    )
    given = arguments["params"]

    def state():
        kept = [array for arrays in optimizer._kept.values() for array in arrays]
        arrays = [*params.values(), *kept, *(given.values() if isinstance(given, dict) else [])]
        plain = [a.tobytes() for a in arrays if type(a) is np.ndarray and a.dtype != object]
        return dict(optimizer._updates), plain

    return Call(optimizer.update, arguments, state=state)


@st.composite
def lr_schedules(draw):
    """Schedules, made and called, and a plateau's losses and states."""
    plateau = Plateau(patience=1)
    for loss in (1.0, 2.0, 3.0):
        plateau.observe(loss)
    right, like = plateau.state_dict(), dict.fromkeys(("no_better", "cooldown"), counts)
    state = st.just(right) | anything | nearly(right, like | {"factor": reals, "best": reals | st.none()})
    of_plateau = {"factor": reals, "patience": counts, "threshold": reals, "cooldown": counts, "least": reals}
    kinds = [
        (cosine, {"steps": 10}, {"steps": counts, "least": reals}),
        (linear, {"steps": 10}, {"steps": counts}),
        (warm_up, {"steps": 10}, {"steps": counts, "then": one_of(None, cosine(3), cosine)}),
        (step, {"every": 3}, {"every": counts, "factor": reals}),
        (exponential, {"factor": 0.9}, {"factor": reals}),
        (Plateau, {}, of_plateau),
        *((schedule, {"step": 7}, {"step": counts}) for schedule in (cosine(9), warm_up(2), step(2), plateau)),
        (plateau.observe, {"value": 1.0}, {"value": reals}),
        (plateau.load_state_dict, {"state_dict": right}, {"state_dict": state}),
    ]
    function, arguments, wrong = draw(st.sampled_from(kinds))
    return Call(function, draw(nearly(arguments, wrong)), state=plateau.state_dict)


@st.composite
def loadings(draw):
    """``RNN.load_params``, and what an optimizer loads or moves."""
    which = draw(st.integers(0, 2))
    if which == 0:
        rnn = draw(networks).copy()
        right = {name: rnn.backend.to_host(value) for name, value in rnn.params.items()}
        name = draw(st.sampled_from(list(right)))
        wrong = [anything, st.just(dict(reversed(right.items()))), st.sampled_from([{}, list(right), right | {1: 2}])]
        wrong.append(arrays_like(right[name], rnn).map(lambda value: right | {name: value}))
        check = lambda loaded: loaded.calls.check_params(loaded.params)  # noqa: E731
        return Call(rnn.load_params, {"params": draw(st.just(right) | st.one_of(wrong))}, check, weights_of(rnn))
    optimizer = draw(st.sampled_from(list(OPTIMIZERS.values())))()
    params = _grads(draw)
    optimizer.update(params, {name: np.ones_like(value) for name, value in params.items()})

    def state():
        arrays = {name: [array.tobytes() for array in arrays] for name, arrays in optimizer._kept.items()}
        return dict(optimizer._updates), arrays

    if which == 1:
        return Call(optimizer.to, {"device": draw(devices | st.just("cpu"))}, state=state)
    like = {name: value.astype(draw(st.sampled_from(["float32", "float64"]))) for name, value in params.items()}
    right = optimizer.state_dict()
    wrong = {
        "state_dict": anything
        | st.sampled_from([{}, right | {"kept": {}}, right | {"more": 1}, {"updates": 1, "kept": 2}]),
        "like": dicts_like(like) | st.none(),
    }
    return Call(optimizer.load_state_dict, draw(nearly({"state_dict": right, "like": like}, wrong)), state=state)


@st.composite
def settings_of(draw):
    """Attributes that are set."""
    kinds = {
        "dropout": reals,
        "recurrent_dropout": reals,
        "output": one_of("softmax", "tanh", "elu"),
        "readout": one_of("last", "every", "first"),
        "time_major": flags,
        "seed": counts,
        "params": anything,
        "hidden_size": sizes,
        "cell": one_of("tanh", "gru"),
        "segments": anything,
    }
    of_adam = {"lr": reals, "beta1": reals, "beta2": reals, "eps": reals, "betas": anything}
    of_adam |= {"weight_decay": reals, "no_decay": NAMES}
    made, values = (ba.AdamW(), of_adam) if draw(st.booleans()) else (draw(networks).copy(), kinds)
    name = draw(st.sampled_from(list(values)))
    before = lambda: made.config if isinstance(made, ba.RNN) else dict(vars(made))  # noqa: E731

    def set_it(**arguments):
        setattr(made, *arguments.popitem())

    errors = (ValueError, TypeError, AttributeError)
    return Call(set_it, {name: draw(values[name])}, state=before, may_raise=errors)


def _square_sum(arrays):
    return sum(float(np.sum(a * a)) for a in arrays.values())


SLOPES = {
    "right": _square_sum,
    "raises": lambda arrays: _raises(0, 0),
    **{f"gives {short(value)}": (lambda arrays, value=value: value)
       for value in (None, "a", "1", np.nan, np.inf, 10**400, [1.0], np.ones(2), np.ones(1), 1j, b"1", True, 10**5000)},
}  # fmt: skip


@st.composite
def gradient_checks(draw):
    arrays = {name: value.astype("float64") for name, value in _grads(draw).items()}
    grads = {name: 2 * value for name, value in arrays.items()}
    right = {"loss": _square_sum, "arrays": arrays, "grads": grads}
    wrong = {
        "loss": one_of(*SLOPES.values()).filter(is_ours),
        "arrays": dicts_like(arrays),
        "grads": dicts_like(grads),
        "tolerance": reals,
        "step": reals | st.floats(1e-6, 1),
        "seed": seeds,
    }

    def function(**arguments):
        with suppress(AssertionError):  # the answer, where gradients are wrong
            return ba.check_gradients(**arguments)

    return Call(function, draw(nearly(right, wrong)))


@st.composite
def parities(draw):
    """``compare_devices``, with one case that is quickly done."""
    wrong = {
        "device": devices,
        "dtypes": one_of(
            "float32", ("float32",), ["float64"], ("float16",), (), (None,), ("float32", 1), np.array(["a"])
        ),
    }
    right = {"device": "cpu", "dtypes": (draw(st.sampled_from(["float32", "float64"])),)}
    return Call(
        ba.compare_devices, draw(nearly(right, wrong)), lambda rows: [row.ok for row in rows] and parity.table(rows)
    )


@cache
def _state_dict(index):
    return network(index).to_torch_state_dict()


@st.composite
def state_dicts(draw):
    if draw(st.integers(0, 3)) == 0:
        prefixes = one_of("rnn.", "", "a.b.", "rnn", "\ud800.", ".")
        arguments = draw(nearly({}, {"recurrent_prefix": prefixes, "readout_prefix": prefixes}))
        rnn = draw(networks)
        also = ("members", "cell", "reverse")
        return Call(
            rnn.to_torch_state_dict,
            arguments,
            lambda made: made["".join(made)[:0] or next(iter(made))].shape,
            weights_of(rnn),
            also,
        )
    right = _state_dict(draw(st.sampled_from([0, 2, 3, 7, 8])))
    wrong = {
        "state_dict": _wrong_state_dicts(right),
        "recurrent_prefix": one_of("rnn.", "", "lstm.", "rnn", "readout."),
        "readout_prefix": one_of("readout.", "", "head.", "rnn."),
        "cell": one_of("tanh", "relu", "lstm", "gru", None, "elu"),
        "dropout": reals,
        "recurrent_dropout": reals,
        "output": one_of("identity", "softmax", "relu"),
        "readout": one_of("every", "last", "first"),
        "time_major": flags,
        "device": devices,
        "seed": seeds,
    }
    arguments = draw(nearly({"state_dict": right}, wrong))

    def check(rnn):
        assert {name: tuple(value.shape) for name, value in rnn.params.items()} == rnn.architecture.shapes

    return Call(ba.RNN.from_torch_state_dict, arguments, check, also=("input_size", "output_size"))


@st.composite
def _wrong_state_dicts(draw, right):
    how, name = draw(st.integers(0, 5)), draw(st.sampled_from(sorted(right)))
    if how == 0:
        return draw(anything)
    if how == 1:
        return {key: value for key, value in right.items() if key != name}
    if how == 2:
        other = draw(
            st.sampled_from([1, None, "", "rnn.", "\ud800", "rnn.weight_ih_l1", "rnn.weight_ih_l" + "9" * 5000, "bias"])
        )
        return right | {other: right[name]}
    if how == 3:
        dtype = draw(st.sampled_from((*DTYPES[:11], ">f4", ">f8")))
        return {key: value.astype(dtype) for key, value in right.items()}
    return right | {name: draw(arrays_like(right[name]))}


characters = st.text(alphabet="ab\n\0é\U0001d4b3\ud800", max_size=8)
tokens_of = st.lists(st.integers(0, 4), max_size=30).map(np.array)


@st.composite
def texts(draw):
    """``Vocabulary``, its two directions, ``Streams``, ``read_texts``."""
    which = draw(st.sampled_from(["make", "encode", "decode", "streams", "read"]))
    if which == "make":
        given = draw(characters | anything)
        return Call(
            text.Vocabulary, {"text": given}, lambda vocabulary: vocabulary.decode(vocabulary.encode(given)) == given
        )
    vocabulary = text.Vocabulary(draw(st.sampled_from(["ab", "ab\n\0é", "a"])))
    if which == "encode":
        given = draw(characters | anything)
        return Call(vocabulary.encode, {"text": given}, lambda tokens: tokens.shape == (len(given),))
    if which == "decode":
        tokens = tokens_of | st.lists(st.integers(-2, 3), max_size=5) | arrays_like(np.zeros(3, int)) | anything
        return Call(vocabulary.decode, {"tokens": draw(tokens)}, len)
    if which == "streams":
        right = {"tokens": np.arange(draw(st.integers(8, 30))), "batch": 2, "seq_len": 3}
        wrong = {"tokens": tokens_of | arrays_like(np.arange(9)), "batch": counts, "seq_len": counts}
        arguments = draw(nearly(right, wrong))

        def check(streams):
            for _, x, target in streams.once():
                assert x.shape == target.shape == (arguments["seq_len"], arguments["batch"])

        return Call(text.Streams, arguments, check, also=("text",))
    names = st.sampled_from(
        [FOLDER / name for name in FILES] + [str(FOLDER / "a"), FOLDER, "nowhere", "", "\0", "\ud800"]
    )
    paths = draw(st.lists(names, max_size=3) | st.just([FOLDER / "a"]) | st.just(str(FOLDER / "a")) | anything)
    # Of files errors say the name: ``notes.txt is empty``.
    also = tuple(str(Path(path)) for path in paths if isinstance(path, (str, Path))) if isinstance(paths, list) else ()
    return Call(reading.read_texts, {"paths": paths}, len, also=also)


FILES = {
    "a": b"abc",
    "empty": b"",
    "latin": b"caf\xe9",
    "bom": b"\xef\xbb\xbfa",
    "utf16": "a".encode("utf-16"),
    "nul": b"a\0",
}
FOLDER = Path(".")  # set by the fixture


@cache
def _writer(index):
    options = [
        {"output_size": 3, "output": "softmax"},
        {"output_size": 3, "output": "softmax", "members": 2, "cell": "lstm"},
        {"output_size": 3, "output": "softmax", "device": STRICT},
    ]
    wrong = [
        {"output_size": 3},
        {"output_size": 2, "output": "softmax"},
        {"output_size": 3, "output": "softmax", "readout": "last"},
        {"output_size": 3, "output": "softmax", "bidirectional": True},
        {"output_size": 3, "output": "softmax", "time_major": False},
        {"output_size": None},
    ]
    return ba.RNN(3, H, **(options + wrong)[index])


@st.composite
def samples(draw):
    right = {"rnn": _writer(draw(st.integers(0, 2))), "vocabulary": text.Vocabulary("ab\n"), "length": 2}
    wrong = {
        "rnn": st.integers(0, 8).map(_writer) | anything,
        "vocabulary": st.sampled_from(["", "a", "abc", "abcd"]).map(text.Vocabulary) | anything,
        "prompt": st.text(alphabet="ab\n", max_size=5) | characters | anything,
        "length": one_of(0, 1, 3, -1, 2.0, "3").filter(lambda length: not isinstance(length, int) or length < 10),
        "temperature": reals | st.floats(0, 2),
        "seed": seeds,
        "member": one_of(0, 1, 2, None, -1, 1.0),
    }
    arguments = draw(nearly(right, wrong))
    return Call(sampling.sample, arguments, lambda written: len(written) == arguments["length"])


@st.composite
def files(draw):
    """``save`` and what ``load`` makes of it; what is inside of files is tested with serialization."""
    good = FOLDER / "model"
    network(0).save(good)
    paths = one_of(
        good, str(good), os.fsencode(good), FOLDER, FOLDER / "none" / "model", FOLDER / "a", "", "a\0", "\ud800"
    )
    paths = paths.filter(
        lambda path: not isinstance(path, str) or len(path) > 1000 or path in ("", "a\0", "\ud800", str(good))
    )
    may_raise = (ValueError, TypeError, OSError)
    if draw(st.booleans()):
        wrong = {
            "path": paths,
            "metadata": one_of({}, {"a": "b"}, {"a": 1}, {1: "a"}, {"\ud800": "\0"}, None, [("a", "b")]),
        }
        rnn = draw(networks)
        return Call(rnn.save, draw(nearly({"path": good}, wrong)), state=weights_of(rnn), may_raise=may_raise)
    wrong = {"path": paths, "device": devices, "cell": one_of("tanh", "lstm", None, Leaky(), Leaky)}
    check = lambda rnn: rnn.config == network(0).config  # noqa: E731
    return Call(ba.RNN.load, draw(nearly({"path": good}, wrong)), check, may_raise=may_raise)


@st.composite
def trainers(draw):
    """``training.Options`` and ``Trainer``."""
    small = {"hidden": 3, "batch": 2, "seq_len": 3, "steps": 2}
    wrong = {
        "cell": one_of("tanh", "lstm", "LSTM"),
        "hidden": sizes,
        "layers": sizes,
        "bidirectional": flags,
        "members": sizes | st.none(),
        "dropout": reals,
        "recurrent_dropout": reals,
        "seq_len": counts,
        "batch": counts,
        "steps": counts,
        "lr": reals,
        "optimizer": one_of("adam", "sgd", "momentum", "Adam"),
        "clip": reals,
        "init": one_of("uniform", "orthogonal", "zeros"),
        "forget_bias": reals,
        "dtype": one_of("float32", "float64", "float16"),
        "seed": seeds,
        "validation": reals,
        "eval_every": counts,
        "eval_characters": counts,
        "threads": counts,
        "checkpoint_every": counts,
        "keep_checkpoints": counts,
        "on_divergence": one_of("stop", "halve-lr", "go on"),
        "diagnose_every": counts,
    }
    arguments = draw(nearly(small, wrong))
    also = ("hidden_size", "num_layers")
    if draw(st.booleans()):
        return Call(training.Options, arguments, also=also)
    given = draw(st.just("ab" * 30) | st.just("ab" * 30) | characters | anything)

    def function(text, device, **options):
        return training.Trainer(text, training.Options(**options), device)

    return Call(function, {"text": given, "device": draw(st.just("cpu") | devices), **arguments}, also=also)


#: Every part of the interface that takes something: its calls, and its part of all cases.
LENGTHS = [4, 0, 2, 3]


def _lists(right):
    """A list of sequences, one of which is wrong, or anything."""

    def spoiled(value_and_place):
        value, place = value_and_place
        return [*right[:place], value, *right[place + 1 :]]

    places = st.integers(0, len(right) - 1)
    ones = places.flatmap(lambda n: st.tuples(arrays_like(right[n]), st.just(n)))
    return st.one_of(ones.map(spoiled), ones.map(spoiled).map(iter), arrays_like(np.ones((4, 4, I))), anything)


def _few(value):
    """No number that would have an array of more than a few entries made."""
    return not is_whole(value) or value < 1000


@st.composite
def paddings(draw):
    sequences = [np.arange(T) for T in LENGTHS] if draw(st.booleans()) else [np.ones((T, I)) for T in LENGTHS]
    wrong = {
        "sequences": _lists(sequences),
        "value": reals,
        "dtype": one_of("float32", "float64", "int64", None),
        "length": (counts | st.sampled_from([4, 5])).filter(_few),
    }
    return Call(ba.pad, draw(nearly({"sequences": sequences}, wrong)), lambda result: ba.unpad(*result))


@st.composite
def data_sets(draw):
    """``batches``, all of which are read."""
    per_step, listed = draw(st.booleans()), draw(st.booleans())
    sequences = [np.ones((T, I)) for T in LENGTHS]
    target = [np.ones((T, O)) for T in LENGTHS] if per_step else draw(st.sampled_from([[0, 1, 1, 0], np.ones((4, O))]))
    weights = [np.ones(T) for T in LENGTHS] if per_step else np.ones(4)
    right = {"x": sequences, "target": target, "weights": weights, "size": 3}
    if not listed:
        x, lengths = ba.pad(sequences, length=5)
        right |= {"x": x, "lengths": lengths, "per_step": per_step}
        if per_step:
            right |= {"target": np.ones((5, 4, O)), "weights": np.ones((5, 4))}
    wrong = {
        "x": _lists(sequences) if listed else arrays_like(right["x"]),
        "target": _lists(target) if isinstance(target, list) and listed else arrays_like(right["target"]),
        "lengths": arrays_like(np.array(LENGTHS)) | st.none(),
        "weights": arrays_like(np.ones(4)) if listed else arrays_like(right["weights"]),
        "size": counts,
        "seed": seeds,
        "shuffle": flags,
        "by_length": flags,
        "per_step": flags | st.none(),
        "time_major": flags,
        "dtype": one_of("float32", "float64", "int64", None),
    }

    def read(**arguments):
        return list(ba.batches(**arguments))

    def check(batches):
        for batch in batches:
            assert batch.x.dtype in ("float32", "float64", "int64")

    return Call(read, draw(nearly(right, wrong)), check)


@st.composite
def series(draw):
    """``windows``, or a standardization."""
    right = np.ones((9, I)) if draw(st.booleans()) else np.arange(9.0)
    if draw(st.booleans()):
        wrong = {"series": arrays_like(right), "length": counts, "horizon": counts, "stride": counts}
        return Call(ba.windows, draw(nearly({"series": right, "length": 3}, wrong)), lambda result: result[0][:1].sum())
    if draw(st.integers(0, 3)) == 0:
        numbers = arrays_like(np.arange(1.0, 4))
        arguments = draw(nearly({"mean": [1.0, 2.0, 3.0], "std": [1.0, 2.0, 3.0]}, {"mean": numbers, "std": numbers}))
        return Call(ba.Standardization, arguments, lambda scaling: ba.Standardization(**scaling.config))
    x = np.arange(60.0).reshape(5, 4, I)
    right = {"x": x, "lengths": None}
    wrong = {
        "x": arrays_like(x) | _lists([np.ones((T, I)) for T in LENGTHS]),
        "lengths": arrays_like(np.array(LENGTHS)),
        "time_major": flags,
    }
    scaling = ba.Standardization([1.0] * I, [2.0] * I)
    function = draw(st.sampled_from([ba.Standardization.of, scaling, lambda x, **more: scaling.inverse(x, **more)]))
    if function is not ba.Standardization.of and function is not scaling:
        wrong = {("y" if name == "x" else name): value for name, value in wrong.items()}
        right = {"y": x, "lengths": None}
        function = scaling.inverse
    return Call(function, draw(nearly(right, wrong)))


ENTRIES = {
    "pad": (paddings(), 3),
    "batches": (data_sets(), 6),
    "series": (series(), 4),
    "RNN": (constructions(), 12),
    "run": (run_calls(), 15),
    "stream": (stream_calls(), 8),
    "backward": (backward_calls(), 8),
    "loss": (loss_calls(), 20),
    "plan": (plan_calls(), 8),
    "moves": (moves(), 7),
    "norms": (norms(), 6),
    "optimizers": (optimizers(), 7),
    "lr_schedules": (lr_schedules(), 3),
    "loadings": (loadings(), 4),
    "settings": (settings_of(), 3),
    "check_gradients": (gradient_checks(), 5),
    "parity": (parities(), 1),
    "state_dict": (state_dicts(), 6),
    "text": (texts(), 5),
    "sample": (samples(), 4),
    "files": (files(), 3),
    "training": (trainers(), 4),
}


@pytest.fixture(scope="module", autouse=True)
def some_files(tmp_path_factory):
    global FOLDER
    FOLDER = tmp_path_factory.mktemp("files")
    for name, content in FILES.items():
        (FOLDER / name).write_bytes(content)


@pytest.fixture(autouse=True)
def one_quick_case(monkeypatch):
    monkeypatch.chdir(FOLDER)  # where a file of any name may be written
    monkeypatch.setattr(parity, "CASES", {"tanh, mse": parity.CASES["tanh, mse"]})


@pytest.mark.parametrize("name", ENTRIES)
def test_every_call_ends_in_a_result_or_in_an_error_that_names_an_argument(name):
    calls, part = ENTRIES[name]
    total = sum(part for _, part in ENTRIES.values())

    cases, ended = -(-CASES * part // total), Counter()

    @settings(max_examples=cases)
    @given(calls)
    def drive(call):
        ended[outcome(call)] += 1

    drive()
    assert ended.total() >= cases, ended  # as many as promised, and of both kinds
    for kind in ("result", "error"):
        assert ended[kind] >= (0.1 * ended.total() if IN_CI else 1), ended


# ---- what was found ---------------------------------------------------------------------------------------

HUGE = 10**5000  # of which Python makes no string
LEAKS = np.ma.MaskedArray([1, 2, 3], [0, 1, 0])


def params(**arrays):
    return {"a": np.ones(2, "float32")} | arrays


FOUND = [
    (lambda: ba.RNN(-HUGE, 1), ValueError, r"input_size=a huge number is too small"),
    (lambda: ba.RNN(1, 1, seed=HUGE), ValueError, r"seed=a huge number is too large"),
    (lambda: ba.RNN(1, 10**9), ValueError, r"hidden_size=1000000000, .* bytes, but this machine has \d+; "),
    (lambda: ba.RNN(1, 1, num_layers=10**12), ValueError, r"num_layers=1000000000000: the parameters take"),
    (lambda: ba.RNN(1, 1, bidirectional=NoRepr()), TypeError, r"bidirectional=<NoRepr> is a NoRepr"),
    (lambda: ba.RNN(1, 1, dtype={1: 2}), ValueError, r"dtype=\{1: 2\} is not supported"),
    (lambda: ba.RNN(1, 1, cell="x" * 10**5), ValueError, r"^cell='x{499}… is unknown"),
    (lambda: network(0)(X, lengths=LEAKS), TypeError, r"lengths is a MaskedArray; expected a plain array"),
    (lambda: network(0)(X, lengths=[NoArray()]), TypeError, r"lengths is a list that cannot be read .*\(no array\)"),
    (lambda: network(0)(X, reset=Duck()), TypeError, r"reset is a Duck"),
    (lambda: network(8)(Duck()), TypeError, r"x is a test_any_input\.Duck, but this RNN"),
    (lambda: network(0).asarray([NoArray()]), TypeError, r"array is a list that cannot be read as an array"),
    (lambda: network(4).member(HUGE), ValueError, r"k=a huge number is too large"),
    (lambda: network(8).loss(X, np.ones((2, 3), object), _half_square), TypeError, r"target has dtype object"),
    (lambda: network(0).loss(X, X[..., :2], LOSSES["masked"]), TypeError, r"loss returned loss as MaskedArray"),
    (lambda: network(0).plan((2**60, 9, I)), ValueError, r"x_shape=.* more entries than an array can have"),
    (lambda: network(0).plan((1, 0, I)), ValueError, r"x_shape\[1\]=0 is too small"),
    (lambda: network(0).plan((9, 1, I), "9" * 400 + "TB"), ValueError, r"memory=.* is more than there can be"),
    (lambda: network(0).plan((9, 1, I), HUGE), ValueError, r"memory=a huge number is more than there can be"),
    (lambda: network(0).plan((9, 1, I), truncate=(HUGE, 1)), ValueError, r"truncate\[0\]=a huge number is too"),
    (lambda: schedules.plan(10**400), ValueError, r"T=1.* is too large"),
    (lambda: schedules.plan(9, costs=[1, 2, 3, 4, 5]), TypeError, r"costs is a list; expected bptt_array\.sch"),
    (lambda: schedules.plan(9, 99, costs=schedules.Costs(kept="1")), TypeError, r"costs\.kept='1' is a str"),
    (lambda: schedules.plan(9, whole="no"), TypeError, r"whole='no' is a str"),
    (lambda: ba.global_norm({"a": np.ones((2, 0))}), ValueError, r"grads\['a'\] has shape \(2, 0\); exp"),
    (lambda: ba.global_norm(params(b=array_api_strict.ones(2))), TypeError, r"grads\['b'\] is a Array; .* like"),
    (lambda: ba.global_norm(params(a=Duck())), TypeError, r"grads\['a'\] is a Duck"),
    (lambda: ba.clip_by_global_norm({NoRepr(): np.ones(2)}, 1), TypeError, r"grads has the key <NoRepr>, a NoRepr"),
    (lambda: ba.global_norm(params(), members=HUGE), ValueError, r"members=a huge number is too large"),
    (lambda: ba.check_gradients(_square_sum, 1, {}), TypeError, r"arrays=1 is a int; expected a dictionary"),
    (lambda: ba.check_gradients(None, {}, {}), TypeError, r"loss is a NoneType; expected a function"),
    (lambda: ba.check_gradients(_square_sum, {}, {}, step=0), ValueError, r"step=0; expected a positive number"),
    (lambda: ba.check_gradients(_square_sum, {}, {}, seed=-1), ValueError, r"seed=-1 is too small"),
    (lambda: ba.check_gradients(lambda a: "1", W, W), TypeError, r"loss returned '1', a str; expected a real number"),
    (lambda: ba.check_gradients(lambda a: HUGE, W, W), TypeError, r"loss returned a huge number, a int"),
    (lambda: ba.check_gradients(lambda a: np.nan, W, {"a": 0 * W["a"]}), AssertionError, r"a: .* relative error nan"),
    (lambda: ba.compare_devices("cpu", "float32"), TypeError, r"dtypes='float32' is a str; expected a tuple"),
    (lambda: ba.compare_devices("cpu", ("a",)), ValueError, r"dtypes\[0\]='a' is not supported"),
    (lambda: ba.compare_devices("cpu", ()), ValueError, r"dtypes is empty"),
    (lambda: ba.RNN.from_torch_state_dict({"rnn.weight_ih_l" + "9" * 5000: W["a"]}), ValueError, r"which is none of"),
    (lambda: ba.pad([[0.5], [3.5]], length=2**62), ValueError, r"length=4611686018427387904 is too large"),
    (lambda: ba.pad([np.ones((2, 0))], length=2**62), ValueError, r"length=4611686018427387904 is too large"),
    (lambda: network(0).streamer(2**62), ValueError, r"N=4611686018427387904 is too large"),
    (lambda: network(0).streamer(HUGE), ValueError, r"N=a huge number is too large"),
    (lambda: ba.AdamW(no_decay=np.array("b_h")), TypeError, r"no_decay=array\('b_h', .* is a ndarray; expected names"),
    (lambda: text.Vocabulary(["a"]), TypeError, r"text is a list; expected a string"),
    (lambda: text.Vocabulary("").encode("a"), ValueError, r"text has the character 'a'"),
    (lambda: text.Vocabulary("ab").encode(b"a"), TypeError, r"text is a bytes"),
    (lambda: text.Vocabulary("ab").decode([0, 2]), ValueError, r"tokens\[1\]=2; expected 0 to 1"),
    (lambda: text.Vocabulary("ab").decode([-1]), ValueError, r"tokens\[0\]=-1; expected 0 to 1"),
    (lambda: text.Vocabulary("ab").decode([0.5]), TypeError, r"tokens has shape \(1,\) and dtype float64"),
    (lambda: text.Text.of(b"ab"), TypeError, r"text is a bytes; expected a string"),
    (lambda: text.Text.of("a\0b"), ValueError, r"text has a NUL \(character 1\)"),
    (lambda: text.Streams([0, 1, 2], 1, 1), TypeError, r"tokens is a list of shape None; expected a NumPy array"),
    (lambda: text.Streams(LEAKS, 1, 1), TypeError, r"tokens is a MaskedArray; expected a plain array"),
    (lambda: text.Streams(np.arange(9), 0, 1), ValueError, r"batch=0 is too small"),
    (lambda: text.Streams(np.arange(9), 1, -1), ValueError, r"seq_len=-1 is too small"),
    (lambda: reading.read_texts("a.txt"), TypeError, r"paths is a str; expected a list of paths"),
    (lambda: reading.read_texts(["a\0"]), ValueError, r"paths\[0\]='a\\x00' has a null character"),
    (lambda: reading.read_texts(["\ud800"]), ValueError, r"paths\[0\]='\\ud800' has characters"),
    (lambda: network(0).save("\ud800"), ValueError, r"path='\\ud800' has characters"),
    (lambda: ba.RNN.load(3), TypeError, r"path=3 is a int; expected a string or a pathlib\.Path"),
    (lambda: sampling.sample(None, text.Vocabulary("a")), TypeError, r"rnn is a NoneType; expected a bptt"),
    (lambda: sampling.sample(_writer(0), "abc"), TypeError, r"vocabulary is a str"),
    (lambda: sampling.sample(_writer(0), text.Vocabulary("")), ValueError, r"vocabulary is empty"),
    (lambda: sampling.sample(_writer(0), text.Vocabulary("ab")), ValueError, r"rnn=RNN\(.* as many inputs"),
    (lambda: sampling.sample(_writer(3), text.Vocabulary("abc")), ValueError, r"rnn=RNN\(.* output='softmax' at"),
    (lambda: sampling.sample(_writer(0), text.Vocabulary("abc"), np.ones(2)), TypeError, r"prompt=array.* a ndarray"),
]  # fmt: skip
X, W = np.ones((2, 3, I), "float32"), {"a": np.ones(2)}


@pytest.mark.parametrize(("call", "kind", "message"), FOUND, ids=[row[-1] for row in FOUND])
def test_what_was_something_else_once_says_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_an_infinite_loss_does_not_pass_for_a_right_gradient():
    """Its rounding would be infinite too."""
    slopes = iter([1.0, np.inf, 1.0, 1.0])
    with pytest.raises(AssertionError, match="relative error nan"):
        ba.check_gradients(lambda arrays: next(slopes), W, {"a": 0 * W["a"]})


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed: pip install torch")
@pytest.mark.parametrize(
    "name", ["torch conjugate", "torch float8", "torch sparse", "torch nowhere", "torch with autograd"]
)
def test_tensors_that_numpy_cannot_read_are_refused(name):
    rnn, tensor = network(0), ANYTHING[name]()
    with pytest.raises(TypeError, match=r"^array (is|has)"):
        rnn.asarray(tensor)
    for argument, call in (
        ("x", lambda: rnn(tensor)),
        ("target", lambda: rnn.loss_and_grad(X, tensor)),
        ("weights", lambda: rnn.loss_and_grad(X, X[..., :2], weights=tensor)),
        ("state.h", lambda: rnn(X, ba.State(tensor))),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^{argument}(\.detach\(\))? (is|has)"):
            call()
