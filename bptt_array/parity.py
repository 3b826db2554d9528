"""The same computation on NumPy in float64 and on a device: outputs, loss, states and every gradient."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np

from .backend.arrays import check_dtype
from .backend.devices import resolve
from .backend.portable import Backend
from .bptt.state import State
from .checks import said
from .losses import CrossEntropy, Huber
from .rnn.rnn import RNN

T, N, I, H, O = 40, 6, 5, 32, 7  # noqa: E741
SEGMENT = 8  # steps, in float64


class Difference(NamedTuple):
    """One row of the table.

    Attributes
    ----------
    case, quantity : str
    error : float
        ``max |device - reference| / max |reference|``; infinite where the device has a non-number.
    bound : float
    """

    case: str
    quantity: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bound


#: What is run: constructor arguments, arguments of loss_and_grad, whether inputs are tokens.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "tanh, mse": ({"output": "identity"}, {"loss": "mse"}, False),
    "relu, identity init, mse of tanh": (
        {"cell": "relu", "init": "identity", "output": "tanh"},
        {"loss": "mse"},
        False,
    ),
    "tokens, cross-entropy": ({"output": "softmax"}, {"loss": "cross_entropy"}, True),
    "tokens, classes that are ignored or weigh": (
        {"output": "softmax"},
        {"loss": CrossEntropy(range(O), ignore_index=0, label_smoothing=0.1), "lengths": True},
        True,
    ),
    "weighted mean, Huber's loss": ({}, {"loss": Huber(0.5), "weights": True, "reduction": "weighted_mean"}, False),
    "lengths, binary cross-entropy": ({"output": "sigmoid"}, {"loss": "binary_cross_entropy", "lengths": True}, False),
    "truncated, mse of softmax": ({"output": "softmax"}, {"loss": "mse", "truncate": 18}, False),
    "lengths, last step, mse of sigmoid": (
        {"output": "sigmoid", "readout": "last"},
        {"loss": "mse", "lengths": True},
        False,
    ),
    "LSTM, two layers, dropout, lengths": (
        {"cell": "lstm", "num_layers": 2, "dropout": 0.3, "recurrent_dropout": 0.2},
        {"loss": "mse", "lengths": True, "dropout_seed": 5},
        False,
    ),
    "GRU, two directions, lengths": (
        {"cell": "gru", "bidirectional": True, "output": "tanh"},
        {"loss": "mse", "lengths": True},
        False,
    ),
    "projected LSTM from the end, lengths": (
        {"cell": "lstm", "proj_size": 8, "reverse": True, "num_layers": 2},
        {"loss": "torch_mse", "lengths": True},
        False,
    ),
    "tied embedding, GRU with the reset before, no biases": (
        {"cell": "gru_reset_before", "embedding_size": H, "output_size": I, "tied": True, "bias": False}
        | {"output": "softmax", "recurrent_dropout": 0.2},
        {"loss": "cross_entropy", "lengths": True, "dropout_seed": 5},
        True,
    ),
    "GRU, three members, tokens": (
        {"cell": "gru", "members": 3, "output": "softmax"},
        {"loss": "cross_entropy", "truncate": 18},
        True,
    ),
}


def bound(dtype: str) -> float:
    """Largest relative difference that rounding explains.

    One rounding error of relative size eps per step, all of them adding up over T steps: ``eps T`` (float32:
    4.8e-6; float64: 8.9e-15). NumPy and CuPy's kernels stay five to ten times below it.
    """
    return float(np.finfo(dtype).eps) * T


def compare_devices(device: str | Backend, dtypes: tuple[str, ...] = ("float32", "float64")) -> list[Difference]:
    """Run forward, loss and every gradient on a device and on NumPy in float64.

    Parameters
    ----------
    device : str or Backend
        Where to compute; see :class:`bptt_array.RNN`.
    dtypes : tuple of str
        In which dtypes; the reference is float64 in any case.

    Returns
    -------
    list of Difference
        One for each case, dtype and quantity. All is well if every ``row.ok``.

    Examples
    --------
    >>> import bptt_array as ba
    >>> all(row.ok for row in ba.compare_devices("cpu"))
    True
    """
    backend = _in_segments(resolve(device))
    if not isinstance(dtypes, (tuple, list)):
        raise TypeError(f"dtypes={said(dtypes)} is a {type(dtypes).__name__}; expected a tuple such as ('float32',)")
    if not dtypes:
        raise ValueError("dtypes is empty; expected at least one of 'float32' and 'float64'")
    names = [check_dtype(dtype, f"dtypes[{k}]") for k, dtype in enumerate(dtypes)]
    rows = []
    for case in CASES:
        for dtype in names:
            reference = _run(case, _in_segments(resolve("cpu")), "float64", dtype)
            result = _run(case, backend, dtype, dtype)
            for quantity, expected in reference.items():
                error = _relative_difference(result[quantity], expected)
                rows.append(Difference(f"{case}, {dtype}", quantity, error, bound(dtype)))
    return rows


def _in_segments(backend: Backend) -> Backend:
    """The same place, with segments so short that gradients are carried over their borders."""
    backend = copy.copy(backend)
    backend.segment_bytes = SEGMENT * N * H * 8
    return backend


def _relative_difference(result: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    size = float(np.max(np.abs(expected)))
    error = float(np.max(np.abs(result.astype(np.float64) - expected)))
    if not np.isfinite(error):
        return float("inf")
    return error / size if size else error


def _run(case: str, backend: Backend, dtype: str, rounded_to: str) -> dict[str, np.ndarray[Any, Any]]:
    """Every quantity of a case, on the host. Inputs and weights are rounded to the coarser dtype for both."""
    network, options, tokens = CASES[case]
    options = dict(options)
    rng = np.random.default_rng(1)
    network = {"input_size": I, "hidden_size": H, "output_size": O, "seed": 2} | network
    rnn = RNN(**network, dtype=dtype, device=backend)
    for name, value in RNN(**network, dtype=rounded_to).params.items():
        rnn.params[name] = rnn.asarray(value)

    def draw(*shape: int) -> Any:
        return rnn.asarray(rng.standard_normal(shape).astype(rounded_to))

    x = rnn.asarray(rng.integers(0, I, (T, N))) if tokens else draw(T, N, I)
    architecture = rnn.architecture

    def draw_state() -> State:
        return State(*(draw(*shape) for shape in architecture.states_shapes(N).values()))

    state, y_shape = draw_state(), architecture.outputs_shape(T, N)
    dy, dstate = draw(*y_shape), draw_state()
    if options["loss"] == "cross_entropy" or isinstance(options["loss"], CrossEntropy):
        target = rnn.asarray(rng.integers(0, y_shape[-1], y_shape[:-1]))
    else:
        target = rnn.asarray(rng.random(y_shape).astype(rounded_to))
    if options.pop("lengths", False):
        options["lengths"] = [T, 0, 1, T // 2, T - 1, 3]
    if options.pop("weights", False):
        options["weights"] = rnn.asarray(rng.random(y_shape[:-1]).astype(rounded_to))
    given_to_both = {name: options[name] for name in ("lengths", "dropout_seed") if name in options}

    loss, grads, final = rnn.loss_and_grad(x, target, state=state, input_grad=not tokens, **options)
    y, _, backward = rnn.forward(x, state, **given_to_both)
    given = backward(dy, dstate, input_grad=not tokens)
    quantities = {"y": y, "final state": final.h, "loss": loss}
    if final.c is not None:
        quantities["final c"] = final.c
    for kind, result in (("loss", grads), ("dy, dstate", given)):
        quantities |= {f"d{name} of {kind}": grad for name, grad in result.params.items()}
        quantities[f"dh_0 of {kind}"] = result.state.h
        if result.state.c is not None:
            quantities[f"dc_0 of {kind}"] = result.state.c
        if result.x is not None:
            quantities[f"dx of {kind}"] = result.x
    return {name: backend.to_host(array) for name, array in quantities.items()}


def table(rows: list[Difference]) -> str:
    """The largest difference of every quantity in every case, for people."""
    width = max(len(row.case) for row in rows)
    quantity = max(len(row.quantity) for row in rows)
    lines = [f"{'case':<{width}}  {'quantity':<{quantity}}  {'largest':>8}  {'bound':>8}"]
    for row in rows:
        verdict = "ok" if row.ok else "TOO LARGE"
        lines.append(f"{row.case:<{width}}  {row.quantity:<{quantity}}  {row.error:8.1e}  {row.bound:8.1e}  {verdict}")
    return "\n".join(lines)
