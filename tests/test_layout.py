"""time_major=False: the same numbers, bit for bit, with N before T in what goes in and comes out."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from array_api_compat import array_namespace
from conftest import BACKENDS

import bptt_array as ba

backends = pytest.mark.parametrize(
    "make_backend",
    [
        pytest.param(some.values[0], id=some.id, marks=some.marks)
        for some in BACKENDS
        if some.id in ("numpy", "strict", "torch", "cuda:0")
    ],
)
E, T, N, I, H, O = 2, 5, 3, 4, 6, 7  # noqa: E741
LENGTHS = [5, 0, 3]


def own_loss(y, target):
    """Of the caller's own, with a target (..., O)."""
    return array_namespace(y).sum((y - target) ** 3, axis=-1) / 3, (y - target) ** 2


def own_loss_of_numbers(y, target):
    """The same with a target of one number per step, of any dtype."""
    return own_loss(y, array_namespace(y).astype(target, y.dtype)[..., None] / 10)


#: A class that there is, so that a mean is over fewer steps.
IGNORING = ba.losses.CrossEntropy(range(1, O + 1), ignore_index=2, label_smoothing=0.1)


@dataclass(frozen=True)
class Case:
    members: bool = False
    shared: bool = False  # among members: x, target and weights
    tokens: bool = False
    target: str = "values"  # or "classes", "probabilities", "numbers"
    loss: object = "mse"
    lengths: bool = False
    weights: bool = False
    readout: str = "every"
    bidirectional: bool = False
    reverse: bool = False
    embedding: int | None = None

    def __str__(self):
        changed = [f"{k}={getattr(v, '__name__', v)}" for k, v in vars(self).items() if v != getattr(Case, k)]
        return ",".join(changed) or "plain"

    def pair(self, backend):
        """The same network with time first and with time after the sequences."""
        known = {"cross_entropy": "softmax", IGNORING: "softmax", "binary_cross_entropy": "sigmoid"}
        output = known.get(self.loss, "tanh")
        options = {"members": E if self.members else None, "bidirectional": self.bidirectional, "output": output}
        options |= {"readout": self.readout, "cell": "lstm", "device": backend}
        options |= {"reverse": self.reverse, "embedding_size": self.embedding}
        return tuple(ba.RNN(I, H, O, time_major=time_major, **options) for time_major in (True, False))

    def arrays(self):
        """By name, time first, and what the same is with time after the sequences; both read-only."""
        rng = np.random.default_rng(0)
        every, own = self.readout == "every", self.members and not self.shared
        among = (E, N) if own else (N,)
        lead = (T, *among) if every else among
        x = rng.integers(0, I, (T, *among)) if self.tokens else rng.standard_normal((T, *among, I))
        target = {
            "values": lambda: rng.standard_normal((*lead, O)),
            "probabilities": lambda: rng.dirichlet(np.ones(O), lead),
            "classes": lambda: rng.integers(0, O, lead),
            "numbers": lambda: rng.standard_normal(lead),
        }[self.target]()
        first = {"x": float32(x), "target": float32(target)}
        first["weights"] = float32(rng.random(lead)) if self.weights else None
        dy = (E, N, O) if self.members else (N, O)
        first["dy"] = float32(rng.standard_normal((T, *dy) if every else dy))
        with_features = {"x": not self.tokens, "target": self.target in ("values", "probabilities"), "dy": True}
        after = dict(first)
        for name, array in first.items():
            if array is not None and (every or name == "x"):
                after[name] = after_sequences(array, with_features.get(name, False))
        for array in (*first.values(), *after.values()):
            if array is not None:
                array.flags.writeable = False
        return first, after


def float32(array):
    return array if array.dtype.kind == "i" else array.astype("float32")


def after_sequences(array, features=True):
    """From (T, ..., N, K) to (..., N, T, K), in one piece."""
    return np.ascontiguousarray(np.moveaxis(array, 0, -2 if features else -1))


CASES = [
    Case(),
    Case(tokens=True),
    Case(lengths=True, weights=True),
    Case(bidirectional=True, lengths=True),
    Case(tokens=True, target="classes", loss="cross_entropy", lengths=True, weights=True),
    Case(target="probabilities", loss="cross_entropy", weights=True),
    Case(target="probabilities", loss="binary_cross_entropy"),
    Case(loss=own_loss, lengths=True),
    Case(target="numbers", loss=own_loss_of_numbers),
    Case(target="classes", loss=own_loss_of_numbers),
    Case(readout="last", lengths=True),
    Case(readout="last", target="classes", loss="cross_entropy", tokens=True, weights=True),
    Case(readout="last", target="numbers", loss=own_loss_of_numbers, bidirectional=True),
    Case(reverse=True, lengths=True, weights=True),
    Case(reverse=True, embedding=3, tokens=True, target="classes", loss=IGNORING, lengths=True),
]
CASES += [
    Case(**{**vars(case), "members": True, "shared": shared})
    for case in CASES
    if not case.bidirectional or case.readout == "last"
    for shared in (True, False)
]


def same(found, expected):
    """The same numbers, bit for bit, and found in one piece."""
    assert found.shape == expected.shape
    assert found.flags.c_contiguous
    return np.array_equal(found, expected)


def same_everywhere(backend, found, expected):
    """Of states and of the gradients of parameters, which are not turned."""
    host = backend.to_host
    states = ((state.h, state.c) for state in (found.state, expected.state))
    assert all(np.array_equal(host(a), host(b)) for a, b in zip(*states, strict=True))
    assert found.params.keys() == expected.params.keys()
    assert all(np.array_equal(host(found.params[name]), host(expected.params[name])) for name in found.params)


@backends
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_loss_and_its_gradients_do_not_depend_on_the_layout(case, make_backend):
    backend = make_backend()
    backend.segment_bytes = 2 * N * H * 4  # two steps a segment, so that T is cut
    first, after = case.arrays()
    results = []
    for rnn, arrays in zip(case.pair(backend), (first, after), strict=True):
        call = {name: arrays[name] for name in ("x", "target", "weights")}
        call |= {"loss": case.loss, "lengths": LENGTHS if case.lengths else None}
        loss, grads, _ = rnn.loss_and_grad(**call, input_grad=not case.tokens)
        results.append((grads, backend.to_host(loss), backend.to_host(rnn.loss(**call)[0])))
    (expected, *expected_losses), (grads, *losses) = results
    assert np.array_equal(losses, expected_losses)
    assert np.all(losses)
    same_everywhere(backend, grads, expected)
    if not case.tokens:
        assert same(backend.to_host(grads.x), after_sequences(backend.to_host(expected.x)))


@backends
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.target == "values" and isinstance(case.loss, str)], ids=str
)
def test_outputs_and_their_gradients_do_not_depend_on_the_layout(case, make_backend):
    backend = make_backend()
    backend.segment_bytes = 2 * N * H * 4
    lengths = LENGTHS if case.lengths else None
    results = []
    for rnn, arrays in zip(case.pair(backend), case.arrays(), strict=True):
        x, dy = (rnn.asarray(arrays[name]) for name in ("x", "dy"))
        y, state, backward = rnn.forward(x, lengths=lengths)
        assert np.array_equal(backend.to_host(rnn(x, lengths=lengths)[0]), backend.to_host(y))
        results.append((backend.to_host(y), backward(dy, state, input_grad=not case.tokens)))
    (expected_y, expected), (y, grads) = results
    assert same(y, after_sequences(expected_y) if case.readout == "every" else expected_y)
    same_everywhere(backend, grads, expected)
    if not case.tokens:
        assert same(backend.to_host(grads.x), after_sequences(backend.to_host(expected.x)))


@pytest.mark.parametrize("time_major", [True, False])
@pytest.mark.parametrize("readout", ["every", "last"])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_a_target_that_can_be_read_in_two_ways_is_refused_and_both_ways_out_work(time_major, readout, dtype):
    """E = N: (T, E, N) may be (T, N, F), (E, N) may be (N, F), and with T = N too (E, N, T) may be (N, T, F)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 2, I)).astype("float32")
    target = rng.integers(0, 9, (2, 2, 2) if readout == "every" else (2, 2)).astype(dtype)
    rnn = ba.RNN(I, H, 2, members=2, time_major=time_major, readout=readout)

    def of_features(y, target):
        return own_loss(y, target.astype(y.dtype))

    with pytest.raises(ValueError, match="a number for every member, or one without E and with features F") as caught:
        rnn.loss(x, target, of_features)
    [shared] = re.findall(r"broadcast_to\(target\[(.*)\], (.*)\)$", str(caught.value))
    of_every_member, axis = target[..., None], -3 if time_major or readout == "last" else 0
    shared = np.broadcast_to(eval(f"target[{shared[0]}]"), eval(shared[1]))
    for full, of_member in (
        (of_every_member, lambda k: np.take(of_every_member, k, axis=axis)),
        (shared, lambda k: target),
    ):
        losses, _ = rnn.loss(x, full, of_features)
        alone = [rnn.member(k).loss(x, of_member(k), of_features)[0] for k in range(2)]
        assert losses == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("loss", [own_loss, own_loss_of_numbers])
def test_sizes_that_leave_no_doubt_are_read_as_they_are_with_time_first(loss):
    """E = N = F and another T: (E, N, T) is no (N, T, F), although (T, E, N) may be (T, N, F)."""
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((3, 2, I)).astype("float32"), rng.integers(0, 9, (3, 2, 2)).astype("float32")
    features = loss is own_loss
    full = np.broadcast_to(target[:, None], (3, 2, 2, 2)) if features else target[..., None]
    first, after = (ba.RNN(I, H, 2, members=2, time_major=time_major) for time_major in (True, False))
    expected, _ = first.loss(x, full, own_loss if features else lambda y, t: own_loss_of_numbers(y, t[..., 0]))
    found, _ = after.loss(after_sequences(x), after_sequences(target, features=features), loss)
    assert np.array_equal(found, expected)


def test_what_does_not_fit_is_told_time_first_and_said_to_be():
    rnn = ba.RNN(I, H, O, time_major=False)
    x, y = np.ones((N, T, I), "float32"), np.ones((N, T, O), "float32")
    calls = {
        r"target has shape \(5, 3, 4\); expected \(T, N, O\) = \(5, 3, 7\)": lambda: rnn.loss(x, x),
        r"target has shape \(3, 5, 1\); expected \(5, 3\)": lambda: rnn.loss(x, y[..., :1].swapaxes(0, 1), own_loss),
        r"target has shape \(3, 5\); expected \(5, 3\)": lambda: rnn.loss(x, y[..., 0].T, own_loss_of_numbers),
        r"weights has shape \(3, 5\); expected \(T, N\) = \(5, 3\)": lambda: rnn.loss(x, y, weights=y[..., 0].T),
        r"x\[4, 0\]=9; expected 0 to 3": lambda: rnn(np.array([[0, 0, 0, 0, 9]])),
        r"dy has shape \(5, 3, 4\)": lambda: rnn.forward(x)[2](x),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert caught.value.__notes__ == [
            "time_major=False: x, targets, weights and dy are checked, and told here, time first"
        ]


def test_an_error_of_the_callers_own_loss_comes_through_as_it_is():
    def failing(y, target):
        raise np.linalg.LinAlgError("shapes of mine")

    x = np.ones((N, T, I), "float32")
    with pytest.raises(np.linalg.LinAlgError, match="shapes of mine"):
        ba.RNN(I, H, O, time_major=False).loss(x, x[..., :1], failing)
