"""What is tested: networks, inputs and options, drawn at random and nowhere symmetric."""

from dataclasses import dataclass, replace

import numpy as np
import reference
from array_api_compat import array_namespace
from hypothesis import strategies as st

SIZES = {"T": 7, "N": 4, "I": 3, "H": 5, "O": 4}


@dataclass(frozen=True)
class Case:
    cell: str = "tanh"
    output: str = "identity"
    output_size: bool = True
    readout: str = "every"
    init: str = "uniform"
    loss: str = "mse"
    target: str = "values"  # or "classes", "probabilities"
    tokens: bool = False
    lengths: tuple[int, ...] | None = None
    weights: bool = False
    reduction: str = "mean"
    truncate: int | None = None
    state: bool = True
    segment: int = 2  # steps per segment
    T: int = SIZES["T"]
    N: int = SIZES["N"]
    I: int = SIZES["I"]  # noqa: E741
    H: int = SIZES["H"]
    O: int = SIZES["O"]  # noqa: E741
    seed: int = 0
    target_scale: float = 1.0

    def __str__(self):
        changed = [f"{k}={v}" for k, v in vars(self).items() if v != getattr(Case, k)]
        return ",".join(changed).replace(" ", "") or "plain"

    @property
    def outputs(self):
        return self.O if self.output_size else self.H

    @property
    def network(self):
        names = ("cell", "output", "readout", "init")
        return {name: getattr(self, name) for name in names} | {
            "input_size": self.I,
            "hidden_size": self.H,
            "output_size": self.O if self.output_size else None,
        }

    @property
    def reference_options(self):
        names = ("cell", "output", "readout", "lengths", "truncate")
        return {name: getattr(self, name) for name in names}


LENGTHS = (7, 0, 4, 1)

#: Rows enough for a backend to take a copy of W_hh in order, as every real run does.
LONG = Case(T=60, N=8, segment=100)

CASES = [
    Case(),
    Case(segment=100),
    Case(segment=1),
    Case(segment=3),
    Case(state=False),
    Case(cell="relu"),
    Case(cell="relu", init="identity"),
    Case(init="orthogonal"),
    Case(output_size=False),
    Case(output="tanh"),
    Case(output="sigmoid"),
    Case(output="softmax"),
    Case(output="softmax", loss="cross_entropy", target="classes"),
    Case(output="softmax", loss="cross_entropy", target="probabilities"),
    Case(output="sigmoid", loss="binary_cross_entropy", target="probabilities"),
    Case(loss="cubic", output="tanh"),
    Case(reduction="sum"),
    Case(weights=True),
    Case(lengths=LENGTHS),
    Case(lengths=LENGTHS, segment=100),
    Case(lengths=LENGTHS, weights=True, reduction="sum"),
    Case(lengths=LENGTHS, output="softmax", loss="cross_entropy", target="classes", tokens=True),
    Case(lengths=LENGTHS, cell="relu"),
    Case(lengths=(0, 0, 0, 0)),
    Case(tokens=True),
    Case(tokens=True, I=40),
    Case(readout="last"),
    Case(readout="last", segment=100),
    Case(readout="last", lengths=LENGTHS),
    Case(readout="last", lengths=LENGTHS, weights=True, output="softmax", loss="cross_entropy", target="classes"),
    Case(readout="last", output_size=False, lengths=LENGTHS),
    Case(readout="last", output="softmax", weights=True),
    Case(T=1),
    Case(N=1),
    Case(H=1),
    Case(I=1, O=1),
    Case(T=1, N=1, H=1, I=1, O=1),
    LONG,
    Case(
        cell="relu",
        output="sigmoid",
        loss="binary_cross_entropy",
        target="probabilities",
        reduction="sum",
        T=4,
        I=4,
        H=3,
        O=3,
        seed=208,
    ),
]
TRUNCATED = [
    Case(truncate=3),
    Case(truncate=1),
    Case(truncate=7),
    Case(truncate=100),
    Case(truncate=4, segment=100),
    Case(truncate=3, lengths=LENGTHS, weights=True),
    Case(truncate=3, readout="last", lengths=LENGTHS),
    Case(truncate=2, tokens=True, output="softmax", loss="cross_entropy", target="classes"),
]


@st.composite
def any_case(draw_):
    """A point of the product space of all options."""
    loss, output, target = draw_(
        st.sampled_from(
            [("mse", g, "values") for g in ("identity", "softmax", "sigmoid", "tanh")]
            + [("cubic", "sigmoid", "values"), ("binary_cross_entropy", "sigmoid", "probabilities")]
            + [("cross_entropy", "softmax", kind) for kind in ("classes", "probabilities")]
        )
    )
    T, N = draw_(st.integers(1, 6)), draw_(st.integers(1, 4))
    sizes = {name: draw_(st.integers(1, 4)) for name in ("I", "H", "O")}
    lengths = st.none() | st.lists(st.integers(0, T), min_size=N, max_size=N).map(tuple)
    return Case(
        cell=draw_(st.sampled_from(["tanh", "relu"])),
        output=output,
        loss=loss,
        target=target,
        output_size=output != "identity" or draw_(st.booleans()),
        readout=draw_(st.sampled_from(["every", "last"])),
        tokens=draw_(st.booleans()),
        lengths=draw_(lengths),
        weights=draw_(st.booleans()),
        reduction=draw_(st.sampled_from(["mean", "sum"])),
        truncate=draw_(st.none() | st.integers(1, T + 1)),
        state=draw_(st.booleans()),
        segment=draw_(st.integers(1, T)),
        T=T,
        N=N,
        **sizes,
        seed=draw_(st.integers(0, 1000)),
    )


def cubic(y, target):
    """A loss of the caller's own: L_t = 1/3 sum (y - target)^3."""
    difference = y - target
    return array_namespace(y).sum(difference**3, axis=-1) / 3, difference**2


def draw(case):
    """Parameters and arrays of a case, float64 on the host."""
    rng = np.random.default_rng(case.seed)

    def normal(*shape):
        return rng.standard_normal(shape)

    params = {
        "l0.W_xh": normal(case.H, case.I) * 0.7,
        "l0.W_hh": normal(case.H, case.H) * 0.9 / case.H**0.5,
        "l0.b_h": normal(case.H) * 0.3,
    }
    if case.output_size:
        params |= {"W_hy": normal(case.O, case.H), "b_y": normal(case.O) * 0.3}
    lead = (case.T, case.N) if case.readout == "every" else (case.N,)
    values = {
        "values": lambda: normal(*lead, case.outputs),
        "classes": lambda: rng.integers(0, case.outputs, lead),
        "probabilities": lambda: rng.dirichlet(np.ones(case.outputs), lead) * 0.98 + 0.01,
    }
    return {
        "params": params,
        "x": rng.integers(0, case.I, (case.T, case.N)) if case.tokens else normal(case.T, case.N, case.I),
        "h_0": normal(case.N, case.H) if case.state else np.zeros((case.N, case.H)),
        "target": values[case.target]() * (case.target_scale if case.target_scale != 1 else 1),
        "weights": (rng.random(lead) + 0.5) * (rng.random(lead) < 0.8) if case.weights else None,
        "dy": normal(*lead, case.outputs),
        "d_last": normal(case.N, case.H),
    }


def draw_off_the_kink(case, margin=0.02):
    """:func:`draw`, with a seed for which no pre-activation of a ReLU cell is nearer to 0 than ``margin``."""
    for seed in range(case.seed, case.seed + 1000):
        arrays = draw(replace(case, seed=seed))
        if case.cell != "relu":
            return arrays
        pre = reference.forward(np, arrays["params"], arrays["x"], arrays["h_0"], **case.reference_options).pre
        if all(np.min(np.abs(z)) > margin for z in pre):
            return arrays
    raise AssertionError(f"no seed keeps {case} off the kink")


def make(ba, case, params, dtype="float64", backend=None):
    """The network of a case with given parameters, running in segments of ``case.segment`` steps."""
    backend = ba.backend.NumpyBackend() if backend is None else backend
    backend.segment_bytes = case.segment * case.N * case.H * np.dtype(dtype).itemsize
    rnn = ba.RNN(**case.network, dtype=dtype, device=backend)
    assert {name: value.shape for name, value in params.items()} == {k: tuple(v.shape) for k, v in rnn.params.items()}
    rnn.params = {name: rnn.asarray(value.astype(dtype)) for name, value in params.items()}
    return rnn


def options(ba, rnn, case, arrays):
    """Keyword arguments of loss_and_grad besides x and target, on the network's device."""
    return {
        "loss": cubic if case.loss == "cubic" else case.loss,
        "state": ba.State(h=rnn.asarray(arrays["h_0"])[None, None, ...]) if case.state else None,
        "lengths": case.lengths,
        "weights": None if arrays["weights"] is None else rnn.asarray(arrays["weights"]),
        "reduction": case.reduction,
    }


def flat_gradients(rnn, grads):
    """All gradients under the names that the references use, on the host."""
    named = {**grads.params, "h_0": grads.state.h[0, 0, ...]}
    if grads.x is not None:
        named["x"] = grads.x
    return {name: rnn.backend.to_host(value) for name, value in named.items()}


def variables(case, arrays):
    """What can be differentiated, by name."""
    named = {**arrays["params"], "h_0": arrays["h_0"]}
    return named if case.tokens else {**named, "x": arrays["x"]}


def substituted(arrays, values):
    """``(params, x, h_0)`` with some of them replaced by name."""
    params = {name: values.get(name, value) for name, value in arrays["params"].items()}
    return params, values.get("x", arrays["x"]), values.get("h_0", arrays["h_0"])
