"""What is tested: networks, inputs and options, drawn at random and nowhere symmetric."""

import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference
import reference_dropout
from array_api_compat import array_namespace
from hypothesis import strategies as st

SIZES = {"T": 7, "N": 4, "I": 3, "H": 5, "O": 4}


@dataclass(frozen=True)
class Case:
    cell: str = "tanh"
    layers: int = 1
    bidirectional: bool = False
    members: int | None = None
    shared: bool = True  # inputs, targets and weights, by the members
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    output: str = "identity"
    output_size: bool = True
    readout: str = "every"
    init: str = "uniform"
    proj_size: int | None = None
    loss: str = "mse"
    target: str = "values"  # or "classes", "probabilities"
    class_weights: bool = False
    ignored: int | None = None  # class number
    smoothing: float = 0.0
    delta: float = 1.0  # of Huber's loss
    tokens: bool = False
    embedding: int | None = None  # of tokens, in front of the first layer
    tied: bool = False
    bias: bool = True
    reverse: bool = False
    lengths: tuple[int, ...] | None = None
    weights: bool = False
    reduction: str = "mean"
    truncate: int | None = None
    backward: str = "sequential"
    budget: float | None = None  # between the smallest one, 0, and that which keeps everything
    state: bool = True
    segment: int = 2  # steps per segment
    parts: int | None = None  # into how many the batch is cut, with as many threads
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
    def directions(self):
        return 1 + self.bidirectional

    @property
    def outputs(self):
        return self.O if self.output_size else self.h * self.directions

    @property
    def h(self):
        """The width of the state."""
        return self.H if self.proj_size is None else self.proj_size

    @property
    def has_c(self):
        return self.cell == "lstm"

    @property
    def network(self):
        names = ("bidirectional", "reverse", "bias", "members", "dropout", "recurrent_dropout")
        names += ("output", "readout", "init", "tied", "proj_size")
        return {name: getattr(self, name) for name in names} | {
            "cell": CUSTOM_CELLS.get(self.cell, self.cell),
            "input_size": self.I,
            "embedding_size": self.embedding,
            "hidden_size": self.H,
            "output_size": self.O if self.output_size else None,
            "num_layers": self.layers,
            "seed": SEED,
        }

    @property
    def dropout_seed(self):
        return DROPOUT_SEED if self.dropout or self.recurrent_dropout else None

    @property
    def reference_options(self):
        names = ("cell", "layers", "bidirectional", "reverse", "output", "readout", "lengths", "truncate")
        return {name: getattr(self, name) for name in names}

    @property
    def step(self):
        """Of finite differences: fractions of an array's size."""
        return 1e-4 if self.cell == "relu" or self.kinks else 1e-3

    @property
    def kinks(self):
        """Errors at which the derivative of the loss jumps, or its slope does."""
        return {"mae": (0.0,), "huber": (-self.delta, self.delta)}.get(self.loss, ())

    @property
    def of_classes(self):
        """The weights of classes, one of them 0."""
        if not self.class_weights:
            return None
        rng = np.random.default_rng(self.seed + 1)
        return tuple((rng.random(self.outputs) + 0.5) * (rng.permutation(self.outputs) > 0))

    @property
    def loss_options(self):
        """Of the loss, as the reference takes them."""
        names = ("ignored", "smoothing", "delta")
        return {name: getattr(self, name) for name in names} | {"class_weights": self.of_classes}


SEED, DROPOUT_SEED = 3, 17

#: Cells that are not in the library, by name.
CUSTOM_CELLS = {}
LENGTHS = (7, 0, 4, 1)

#: Rows enough for a backend to take a copy of W_hh in order, as every real run does.
LONG = Case(T=60, N=8, segment=100)

SOFTMAX = {"output": "softmax", "loss": "cross_entropy", "target": "classes"}

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
    Case(loss="torch_mse", output="tanh"),
    Case(loss="mae"),
    Case(loss="mae", lengths=LENGTHS, weights=True, reduction="sum", output="tanh"),
    Case(loss="huber", weights=True, reduction="weighted_mean"),
    Case(loss="huber", delta=0.4, output="sigmoid", readout="last", lengths=LENGTHS),
    Case(**SOFTMAX, ignored=-100),
    Case(**SOFTMAX, ignored=2, lengths=LENGTHS, tokens=True),
    Case(**SOFTMAX, class_weights=True, readout="last", lengths=LENGTHS),
    Case(**SOFTMAX, class_weights=True, ignored=-1, weights=True, lengths=LENGTHS),
    Case(**SOFTMAX, smoothing=0.2),
    Case(**SOFTMAX, smoothing=0.2, class_weights=True, ignored=99, reduction="sum"),
    Case(**SOFTMAX, smoothing=0.3, class_weights=True, weights=True, reduction="weighted_mean"),
    Case(**SOFTMAX | {"target": "probabilities"}, smoothing=0.2, class_weights=True),
    Case(weights=True, reduction="weighted_mean"),
    Case(weights=True, reduction="weighted_mean", parts=2),
    Case(**SOFTMAX, ignored=-100, class_weights=True, lengths=LENGTHS, parts=3),
    Case(reduction="weighted_mean", truncate=3),
    Case(weights=True, reduction="weighted_mean", lengths=LENGTHS, readout="last", loss="cubic"),
    Case(weights=True, reduction="weighted_mean", lengths=(0, 0, 0, 0)),
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
    Case(tokens=True, I=500, H=40, cell="lstm", layers=2),
    Case(tokens=True, I=500, H=140, lengths=LENGTHS, bidirectional=True),
    Case(tokens=True, I=500, H=48, members=2, shared=False, cell="gru"),
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
#: Segments that are run again, and time in chunks: both need more steps than a segment has.
PROJECTED = [
    Case(**{"cell": "lstm", "proj_size": 3, **more})
    for more in (
        {},
        {"segment": 100},
        {"state": False, "T": 1, "N": 1, "H": 2, "proj_size": 1},
        {"T": 60, "N": 8, "segment": 100},
        {"lengths": LENGTHS, "layers": 2, "tokens": True, "weights": True},
        {"readout": "last", "lengths": LENGTHS, "bidirectional": True, "layers": 2},
        {"output_size": False, "bidirectional": True, "layers": 2, "init": "orthogonal"},
        {"members": 2, "shared": False, "layers": 2, "dropout": 0.3, "recurrent_dropout": 0.3},
        {"members": 2, "bidirectional": True, "recurrent_dropout": 0.4, "lengths": LENGTHS},
        {"T": 30, "budget": 0.1, "layers": 2, "recurrent_dropout": 0.4, "lengths": (30, 0, 4, 21)},
        {"parts": 2, "N": 5, "layers": 2},
    )
]
SCHEDULED = [
    Case(T=30, budget=0.0),
    Case(T=30, budget=0.3, lengths=(30, 0, 4, 21)),
    Case(T=30, budget=0.1, cell="lstm", layers=2, dropout=0.4, recurrent_dropout=0.4, lengths=(30, 0, 4, 21)),
    Case(T=30, budget=0.2, cell="gru", members=2, tokens=True, readout="last", lengths=(30, 0, 4, 21)),
    Case(T=30, budget=0.1, truncate=11, weights=True),
    Case(T=30, budget=0.0, **SOFTMAX, ignored=-100, class_weights=True, smoothing=0.1, lengths=(30, 0, 4, 21)),
    Case(T=30, budget=0.1, loss="huber", weights=True, reduction="weighted_mean"),
    Case(T=45, segment=100, backward="parallel"),
    Case(T=45, segment=30, backward="parallel", cell="relu", lengths=(45, 0, 4, 31)),
    Case(T=45, segment=100, backward="parallel", recurrent_dropout=0.4, layers=2),
    Case(T=45, segment=100, backward="parallel", members=2, bidirectional=True, lengths=(45, 0, 4, 31)),
    Case(T=45, segment=100, backward="parallel", members=2, readout="last", recurrent_dropout=0.4),
    Case(T=45, segment=100, backward="parallel", truncate=21, budget=1.0),
    Case(T=45, segment=100, backward="auto", N=1, H=1),
    Case(T=30, budget=0.1, cell="gru_reset_before", recurrent_dropout=0.4, layers=2, lengths=(30, 0, 4, 21)),
]
GATED = [
    Case(cell=cell, **more)
    for cell in ("lstm", "gru", "gru_reset_before")
    for more in (
        {},
        {"segment": 100},
        {"lengths": LENGTHS, "tokens": True, "output": "softmax", "loss": "cross_entropy", "target": "classes"},
        {"readout": "last", "lengths": LENGTHS},
        {"T": 1, "N": 1, "H": 1, "I": 1, "O": 1},
        {"T": 60, "N": 8, "segment": 100},
    )
]
STACKED = [
    Case(layers=2),
    Case(layers=3, cell="gru", lengths=LENGTHS, segment=3),
    Case(layers=2, cell="lstm", tokens=True, readout="last", output_size=False),
    Case(layers=2, cell="gru_reset_before", bidirectional=True, lengths=LENGTHS, tokens=True),
    Case(members=2, shared=False, cell="gru_reset_before", layers=2, weights=True),
    Case(bidirectional=True),
    Case(bidirectional=True, lengths=LENGTHS, tokens=True),
    Case(bidirectional=True, output_size=False),
    Case(bidirectional=True, layers=2, cell="lstm", lengths=LENGTHS),
    Case(bidirectional=True, layers=2, cell="gru", readout="last"),
    Case(bidirectional=True, readout="last", lengths=LENGTHS, weights=True),
    Case(members=3),
    Case(members=3, shared=False, cell="gru", weights=True),
    Case(members=2, shared=False, tokens=True, output="softmax", loss="cross_entropy", target="classes"),
    Case(members=2, tokens=True, output="softmax", loss="cross_entropy", target="classes", lengths=LENGTHS),
    Case(members=2, cell="lstm", layers=2, readout="last", lengths=LENGTHS, weights=True, shared=False),
    Case(members=2, bidirectional=True, layers=2, cell="lstm", lengths=LENGTHS, output="tanh"),
    Case(members=2, bidirectional=True, tokens=True, readout="last", shared=False),
    Case(members=2, loss="cubic", output="sigmoid", output_size=True),
    Case(members=2, loss="mae", weights=True, reduction="weighted_mean", shared=False, lengths=LENGTHS),
    Case(members=2, loss="huber", weights=True, reduction="weighted_mean"),
    Case(members=2, **SOFTMAX, ignored=-100, shared=False, class_weights=True),
    Case(members=3, **SOFTMAX, ignored=-100, lengths=LENGTHS, readout="last", smoothing=0.2, class_weights=True),
    Case(members=2, **SOFTMAX, ignored=1, weights=True, shared=False, reduction="weighted_mean", smoothing=0.2),
    Case(members=1, output="softmax", loss="cross_entropy", target="probabilities"),
    Case(members=2, N=2, O=2, loss="cubic", output="sigmoid", shared=False),  # E = N = O: whose axis is whose?
]
DROPPED = [
    Case(layers=3, dropout=0.4),
    Case(recurrent_dropout=0.4),
    Case(layers=2, dropout=0.3, recurrent_dropout=0.3, cell="lstm", lengths=LENGTHS),
    Case(layers=2, dropout=0.3, recurrent_dropout=0.3, cell="gru", bidirectional=True, lengths=LENGTHS),
    Case(layers=2, dropout=0.3, recurrent_dropout=0.3, members=2, readout="last"),
    Case(recurrent_dropout=0.4, cell="gru_reset_before", lengths=LENGTHS),
    Case(layers=2, dropout=0.3, recurrent_dropout=0.3, cell="gru_reset_before", members=2, bidirectional=True),
    Case(layers=2, dropout=0.3, recurrent_dropout=0.3, members=2, bidirectional=True, cell="lstm", tokens=True),
]
EMBEDDED = [
    Case(tokens=True, embedding=6),
    Case(tokens=True, embedding=6, I=40, segment=100),
    Case(tokens=True, embedding=6, cell="lstm", layers=2, lengths=LENGTHS),
    Case(tokens=True, embedding=2, cell="gru", readout="last", lengths=LENGTHS, weights=True),
    Case(tokens=True, embedding=6, bidirectional=True, layers=2, lengths=LENGTHS, recurrent_dropout=0.3),
    Case(tokens=True, embedding=6, members=2, cell="lstm", layers=2, dropout=0.3),
    Case(tokens=True, embedding=6, members=2, shared=False, bidirectional=True, lengths=LENGTHS, readout="last"),
    Case(tokens=True, embedding=6, truncate=3, state=False, parts=2),
    Case(tokens=True, embedding=6, T=30, budget=0.1, cell="gru", members=2, lengths=(30, 0, 4, 21)),
    Case(tokens=True, embedding=5, tied=True, I=9, O=9, output="softmax", loss="cross_entropy", target="classes"),
    Case(tokens=True, embedding=5, tied=True, I=4, cell="lstm", layers=2, lengths=LENGTHS, readout="last", parts=3),
    Case(tokens=True, embedding=10, tied=True, I=4, members=2, bidirectional=True, shared=False, output="tanh"),
    Case(tokens=True, embedding=5, tied=True, I=4, T=30, budget=0.3, cell="gru", truncate=11),
]
WITHOUT_BIAS = [
    Case(bias=False),
    Case(bias=False, cell="lstm", layers=2, lengths=LENGTHS, init="orthogonal"),
    Case(bias=False, cell="gru", bidirectional=True, recurrent_dropout=0.3),
    Case(bias=False, cell="gru", members=2, tokens=True, lengths=LENGTHS, readout="last"),
    Case(bias=False, cell="lstm", tokens=True, I=500, H=40),
    Case(bias=False, tokens=True, I=40),
    Case(bias=False, tokens=True, embedding=5, tied=True, I=4, cell="relu"),
    Case(bias=False, cell="gru", T=30, budget=0.3, output_size=False),
]
REVERSED = [
    Case(reverse=True),
    Case(reverse=True, segment=100, state=False),
    Case(reverse=True, cell="lstm", layers=2, lengths=LENGTHS, weights=True),
    Case(reverse=True, cell="gru", readout="last", lengths=LENGTHS, output="softmax"),
    Case(reverse=True, layers=2, dropout=0.4, recurrent_dropout=0.3, lengths=LENGTHS),
    Case(
        reverse=True, members=2, lengths=LENGTHS, output="softmax", loss="cross_entropy", target="classes", tokens=True
    ),
    Case(reverse=True, members=2, shared=False, cell="lstm", lengths=LENGTHS, parts=2),
    Case(reverse=True, tokens=True, embedding=4, bias=False, lengths=LENGTHS, loss="cubic", output="tanh"),
    Case(reverse=True, T=30, budget=0.1, cell="gru", layers=2, lengths=(30, 0, 4, 21)),
    Case(reverse=True, T=30, budget=0.0, weights=True, parts=3),
    Case(reverse=True, T=45, segment=30, backward="parallel", lengths=(45, 0, 4, 31)),
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
    Case(truncate=3, cell="lstm", layers=2, lengths=LENGTHS),
    Case(truncate=3, cell="lstm", proj_size=2, lengths=LENGTHS),
    Case(truncate=3, cell="gru_reset_before", layers=2, lengths=LENGTHS, recurrent_dropout=0.3),
    Case(truncate=2, cell="gru", members=2, readout="last", lengths=LENGTHS, recurrent_dropout=0.3),
]

#: Several kinds of options at once.
COMBINED = [
    Case(**more)
    for more in (
        {"cell": "lstm", "proj_size": 2, "bias": False, "reverse": True, "layers": 2, "lengths": LENGTHS}
        | {"loss": "huber", "output": "tanh", "weights": True, "reduction": "weighted_mean"},
        {"cell": "lstm", "proj_size": 2, "tokens": True, "embedding": 4, "tied": True, "I": 6, "O": 6}
        | {"bidirectional": True, "bias": False, "recurrent_dropout": 0.3, "lengths": LENGTHS}
        | {**SOFTMAX, "ignored": -100, "smoothing": 0.2, "class_weights": True},
        {"cell": "gru_reset_before", "tokens": True, "embedding": 5, "tied": True, "I": 4, "reverse": True}
        | {"bias": False, "members": 2, "readout": "last", "lengths": LENGTHS, "recurrent_dropout": 0.3},
        {"cell": "gru_reset_before", "tokens": True, "embedding": 3, "T": 30, "budget": 0.1, "truncate": 11}
        | {"layers": 2, "dropout": 0.3, **SOFTMAX, "ignored": 1, "reduction": "sum", "lengths": (30, 0, 4, 21)},
        {"cell": "gru_reset_before", "bias": False, "reverse": True, "members": 3, "shared": False, "parts": 2}
        | {"weights": True, "reduction": "weighted_mean", "loss": "torch_mse", "lengths": LENGTHS},
        {"cell": "lstm", "proj_size": 3, "tokens": True, "embedding": 2, "members": 2, "reverse": True, "T": 30}
        | {"budget": 0.0, "readout": "last", "loss": "mae", "weights": True, "lengths": (30, 0, 4, 21)},
        {"bias": False, "reverse": True, "tokens": True, "embedding": 5, "tied": True, "I": 4, "T": 45}
        | {"backward": "parallel", "segment": 30, "members": 2, "lengths": (45, 0, 4, 31)},
    )
]
#: All of them but those of truncation, whose gradient is not that of the loss.
ALL = CASES + GATED + PROJECTED + STACKED + DROPPED + EMBEDDED + WITHOUT_BIAS + REVERSED + SCHEDULED + COMBINED


@st.composite
def any_case(draw_):
    """A point of the product space of all options."""
    loss, output, target = draw_(
        st.sampled_from(
            [("mse", g, "values") for g in ("identity", "softmax", "sigmoid", "tanh")]
            + [(name, g, "values") for name in ("mae", "huber", "torch_mse") for g in ("identity", "tanh")]
            + [("cubic", "sigmoid", "values"), ("binary_cross_entropy", "sigmoid", "probabilities")]
            + [("cross_entropy", "softmax", kind) for kind in ("classes", "probabilities")]
        )
    )
    T, N = draw_(st.integers(1, 6)), draw_(st.integers(1, 4))
    sizes = {name: draw_(st.integers(1, 4)) for name in ("I", "H", "O")}
    lengths = st.none() | st.lists(st.integers(0, T), min_size=N, max_size=N).map(tuple)
    layers, bidirectional = draw_(st.sampled_from([1, 1, 2, 3])), draw_(st.booleans())
    cell = draw_(st.sampled_from(["tanh", "relu", "lstm", "gru", "gru_reset_before"]))
    projected = cell == "lstm" and sizes["H"] > 1 and draw_(st.booleans())
    proj_size = draw_(st.integers(1, sizes["H"] - 1)) if projected else None
    tokens = draw_(st.booleans())
    embedding = draw_(st.none() | st.integers(1, 4)) if tokens else None
    output_size = output != "identity" or draw_(st.booleans())
    tied = embedding is not None and output_size and draw_(st.booleans())
    if tied:
        embedding, sizes["O"] = (proj_size or sizes["H"]) * (1 + bidirectional), sizes["I"]
    rates = st.sampled_from([0.0, 0.0, 0.25, 0.5])
    members = draw_(st.sampled_from([None, None, 1, 2, 3]))
    shared = draw_(st.booleans()) and not (loss == "cubic" and members == N)  # whose axis is whose? That is an error
    return Case(
        cell=cell,
        proj_size=proj_size,
        layers=layers,
        bidirectional=bidirectional,
        members=members,
        shared=shared,
        dropout=draw_(rates) if layers > 1 else 0.0,
        recurrent_dropout=draw_(rates),
        output=output,
        loss=loss,
        target=target,
        class_weights=loss == "cross_entropy" and draw_(st.booleans()),
        ignored=draw_(st.sampled_from([None, -100, 0])) if target == "classes" else None,
        smoothing=draw_(st.sampled_from([0.0, 0.0, 0.3, 1.0])) if loss == "cross_entropy" else 0.0,
        delta=draw_(st.sampled_from([0.3, 1.0])) if loss == "huber" else 1.0,
        output_size=output_size,
        readout=draw_(st.sampled_from(["every", "last"])),
        init=draw_(st.sampled_from(["uniform", "orthogonal"])),
        tokens=tokens,
        embedding=embedding,
        tied=tied,
        bias=draw_(st.booleans()),
        lengths=draw_(lengths),
        weights=draw_(st.booleans()),
        reduction=draw_(st.sampled_from(["mean", "sum", "weighted_mean"])),
        reverse=(reverse := not bidirectional and draw_(st.booleans())),
        truncate=None if bidirectional or reverse else draw_(st.none() | st.integers(1, T + 1)),
        budget=draw_(st.none() | st.floats(0, 1.1)),
        state=draw_(st.booleans()),
        segment=draw_(st.integers(1, T)),
        parts=draw_(st.sampled_from((None, None, 2, 3))),
        T=T,
        N=N,
        **sizes,
        seed=draw_(st.integers(0, 1000)),
    )


def loss_of(ba, case):
    """What the loss of a case is given as."""
    if case.loss == "cubic":
        return cubic
    if case.loss == "huber" and case.delta != 1:
        return ba.losses.Huber(delta=case.delta)
    if case.class_weights or case.ignored is not None or case.smoothing:
        return ba.losses.CrossEntropy(case.of_classes, case.ignored, case.smoothing)
    return case.loss


def cubic(y, target):
    """A loss of the caller's own: L_t = 1/3 sum (y - target)^3."""
    difference = y - target
    return array_namespace(y).sum(difference**3, axis=-1) / 3, difference**2


GATES = {"lstm": 4, "gru": 3, "gru_reset_before": 3, "update gate": 2}
#: Gates that W_hh is for, where they are not all.
RECURRENT_GATES = {"gru_reset_before": 2}


def draw(case):
    """Parameters and arrays of a case, float64 on the host."""
    rng = np.random.default_rng(case.seed)
    members = () if case.members is None else (case.members,)
    sides = (2,) if case.bidirectional else ()
    shared = () if case.shared else members

    def normal(*shape):
        return rng.standard_normal(shape)

    params, H, h, rows = {}, case.H, case.h, GATES.get(case.cell, 1) * case.H
    if case.embedding is not None:
        params["W_emb"] = normal(*members, case.I, case.embedding)
    for k in range(case.layers):
        inputs = h * case.directions if k else case.embedding or case.I
        params |= {
            f"l{k}.W_xh": normal(*members, *sides, rows, inputs) * 0.7,
            f"l{k}.W_hh": normal(*members, *sides, RECURRENT_GATES.get(case.cell, rows // H) * H, h) * 0.9 / h**0.5,
        }
        if case.bias:
            params[f"l{k}.b_h"] = normal(*members, *sides, rows) * 0.3
        if case.proj_size is not None:
            params[f"l{k}.W_hr"] = normal(*members, *sides, h, H)
        if case.cell == "gru" and case.bias:
            params[f"l{k}.b_hn"] = normal(*members, *sides, H) * 0.3
        if case.cell == "gru_reset_before":
            params[f"l{k}.W_hn"] = normal(*members, *sides, H, H) * 0.9 / H**0.5
    if case.output_size:
        if not case.tied:
            params["W_hy"] = normal(*members, case.O, h * case.directions)
        params["b_y"] = normal(*members, case.O) * 0.3
    time = (case.T,) if case.readout == "every" else ()
    lead = (*time, *shared, case.N)
    values = {
        "values": lambda: normal(*lead, case.outputs),
        "classes": lambda: rng.integers(0, case.outputs, lead),
        "probabilities": lambda: rng.dirichlet(np.ones(case.outputs), lead) * 0.98 + 0.01,
    }
    states, of_c = ((case.layers, case.directions, *members, case.N, width) for width in (h, H))
    x = (case.T, *shared, case.N)
    arrays = {
        "params": params,
        "x": rng.integers(0, case.I, x) if case.tokens else normal(*x, case.I),
        "h_0": normal(*states) if case.state else np.zeros(states),
        "target": values[case.target]() * (case.target_scale if case.target_scale != 1 else 1),
        "weights": (rng.random(lead) + 0.5) * (rng.random(lead) < 0.8) if case.weights else None,
        "dy": normal(*time, *members, case.N, case.outputs),
        "dh_last": normal(*states),
    }
    if case.has_c:
        arrays |= {"c_0": normal(*of_c) if case.state else np.zeros(of_c), "dc_last": normal(*of_c)}
    if case.ignored is not None:
        arrays["target"][rng.random(lead) < 0.4] = case.ignored
    return arrays


def draw_off_the_kink(case, margin=0.02):
    """:func:`draw`, with a seed for which nothing is nearer than ``margin`` to where a derivative jumps.

    That is no pre-activation of a ReLU cell to 0, and no error to a kink of the loss.
    """
    for seed in range(case.seed, case.seed + 1000):
        arrays = draw(replace(case, seed=seed))
        if case.cell != "relu" and not case.kinks:
            return arrays
        near = [z for k in members_of(case) for z in _from_kinks(case, of_member(case, arrays, k))]
        if all(np.min(np.abs(z)) > margin for z in near):
            return arrays
        margin *= 0.99  # large networks have many
    raise AssertionError(f"no seed keeps {case} off the kink")


def _from_kinks(case, one):
    """How far everything of one member is from where a derivative jumps."""
    found = run_reference(np, case, one)
    yield from found.pre if case.cell == "relu" else ()
    for n, ys in enumerate(found.outputs):
        for t, y in enumerate(ys):
            yield from (y - one["target"][(t, n) if case.readout == "every" else n] - kink for kink in case.kinks)


def members_of(case):
    """The members, or one that stands for a network without any."""
    return range(case.members or 1)


def of_member(case, arrays, k):
    """The arrays of one member, and its masks, as the reference takes them."""
    masks = _masks(case, k)
    if case.members is None:
        one = dict(arrays)
    else:
        one = {"params": {name: value[k] for name, value in arrays["params"].items()}}
        time = case.readout == "every"
        for name in ("x", "target", "weights", "dy"):
            value = arrays[name]
            per_member = value is not None and (name == "dy" or not case.shared)
            one[name] = value if not per_member else value[:, k] if name == "x" or time else value[k]
        one |= {name: arrays[name][:, :, k] for name in ("h_0", "c_0", "dh_last", "dc_last") if name in arrays}
    for name in ("c_0", "dc_last"):
        one.setdefault(name, np.zeros(one["h_0"].shape))
    return one | {"masks": masks}


def _masks(case, k):
    """Those of member k, which draws as the single network with k added to its seed does."""
    if case.dropout_seed is None:
        return None
    seeds, layers, D = (case.dropout_seed, SEED + k), range(case.layers), case.directions
    between, recurrent = reference_dropout.between, reference_dropout.recurrent
    return {
        "between": [between(*seeds, case.dropout, layer, case.T, case.N, case.h * D) for layer in layers],
        "recurrent": [recurrent(*seeds, case.recurrent_dropout, layer, D, case.N, case.h) for layer in layers],
    }


def run_reference(np, case, one, **more):
    """The reference's forward pass on the arrays of one member."""
    states = one["h_0"], one["c_0"]
    return reference.forward(np, one["params"], one["x"], *states, masks=one["masks"], **case.reference_options, **more)


def make(ba, case, params, dtype="float64", backend=None):
    """The network of a case with given parameters, running in segments of ``case.segment`` steps."""
    backend = ba.backend.NumpyBackend() if backend is None else backend
    step = case.N * case.h * np.dtype(dtype).itemsize
    backend.segment_bytes = (
        case.segment * step * (1 if case.members is None else case.members * ba.schedules.instructions.STACKED)
    )
    if case.parts is not None:
        vars(backend)["count_parts"] = lambda N, multiply_adds: case.parts
    rnn = ba.RNN(**case.network, dtype=dtype, device=backend)
    assert {name: value.shape for name, value in params.items()} == {k: tuple(v.shape) for k, v in rnn.params.items()}
    rnn.params = {name: rnn.asarray(value.astype(dtype)) for name, value in params.items()}
    return rnn


def state_of(ba, rnn, arrays, kind="{}_0"):
    """The initial state, or with ``"d{}_last"`` the gradient of the final one, on the network's device."""
    given = {name: arrays[kind.format(name)] for name in ("h", "c") if kind.format(name) in arrays}
    return ba.State(**{name: rnn.asarray(value) for name, value in given.items()})


def call_options(ba, rnn, case, arrays):
    """Keyword arguments of every call."""
    return {
        "state": state_of(ba, rnn, arrays) if case.state else None,
        "lengths": case.lengths,
        "dropout_seed": case.dropout_seed,
    }


def options(ba, rnn, case, arrays):
    """Keyword arguments of loss_and_grad besides x and target, on the network's device."""
    return call_options(ba, rnn, case, arrays) | {
        "loss": loss_of(ba, case),
        "weights": None if arrays["weights"] is None else rnn.asarray(arrays["weights"]),
        "reduction": case.reduction,
    }


def smallest_budget(call):
    """The smallest budget that works, as the error for too small a one says it, and it does."""
    with pytest.raises(ValueError, match="too small") as error:
        call(1)
    least = int(str(error.value).rpartition("memory=")[2].split()[0])
    call(least)
    with pytest.raises(ValueError, match="too small"):
        call(least - 1)
    return least


def plan_options(rnn, case):
    """Keyword arguments of ``rnn.plan`` besides the shape of x and the budget."""
    package = sys.modules[type(rnn).__module__.partition(".")[0]]  # which may be a mutated copy
    return {
        "loss": loss_of(package, case),
        "tokens": case.tokens,
        "lengths": case.lengths is not None,
        "weights": case.weights,
        "truncate": case.truncate,
        "input_grad": not case.tokens,
        "dropout": case.dropout_seed is not None,
        "backward": case.backward,
    }


def backward_options(rnn, case, arrays):
    """Keyword arguments of loss_and_grad that :meth:`RNN.loss` has not."""
    memory = None
    if case.budget is not None:
        shape, planned = arrays["x"].shape, plan_options(rnn, case)
        least = smallest_budget(lambda memory: rnn.plan(shape, memory, **planned))
        memory = least + int(case.budget * (rnn.plan(shape, **planned).peak - least))
    return {
        "truncate": case.truncate,
        "memory": memory,
        "backward": case.backward,
        "input_grad": not case.tokens,
    }


def flat_gradients(rnn, grads):
    """All gradients under the names that the references use, on the host; of a shared x for every member."""
    named = {**grads.params, "h_0": grads.state.h}
    if grads.state.c is not None:
        named["c_0"] = grads.state.c
    if grads.x is not None:
        named["x"] = grads.x
    return {name: rnn.backend.to_host(value) for name, value in named.items()}


def of_the_sum(case, gradients):
    """:func:`flat_gradients` as those of the sum of all members' losses: one for an x that they share."""
    if case.members is None or not case.shared or "x" not in gradients:
        return gradients
    return gradients | {"x": gradients["x"].sum(axis=1)}


def variables(case, arrays):
    """What can be differentiated, by name."""
    named = {**arrays["params"], **{name: arrays[name] for name in ("h_0", "c_0") if name in arrays}}
    return named if case.tokens else {**named, "x": arrays["x"]}


def substituted(arrays, values):
    """``arrays`` with some variables replaced by name."""
    params = {name: values.get(name, value) for name, value in arrays["params"].items()}
    return {name: values.get(name, value) for name, value in arrays.items()} | {"params": params}
