"""Losses with options as values, and means over what weights and classes say. Equations: test_gradients, test_torch."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from conftest import InParts, backends_and_dtypes

import bptt_array as ba
from bptt_array import diagnostics

T, N, I, O = 6, 4, 3, 5  # noqa: E741
RNG = np.random.default_rng(0)
X = RNG.standard_normal((T, N, I))
CLASSES = RNG.integers(0, O, (T, N))
IGNORED = np.where(RNG.random((T, N)) < 0.4, -100, CLASSES)
WEIGHTS = RNG.random((T, N)) * (RNG.random((T, N)) < 0.7)


def network(**more):
    return ba.RNN(I, 7, O, **{"output": "softmax", "dtype": "float64", "seed": 1} | more)


LOSSES = [
    (ba.losses.Huber(), "Huber()"),
    (ba.losses.Huber(delta=2), "Huber(delta=2.0)"),
    (ba.losses.CrossEntropy(), "CrossEntropy()"),
    (ba.losses.CrossEntropy([1, 2.5]), "CrossEntropy(class_weights=(1.0, 2.5))"),
    (
        ba.losses.CrossEntropy(np.ones(20), -1, 0.5),
        "CrossEntropy(class_weights=<20 numbers>, ignore_index=-1, label_smoothing=0.5)",
    ),
]


@pytest.mark.parametrize(("loss", "text"), LOSSES, ids=[text for _, text in LOSSES])
def test_a_loss_with_options_is_a_value(loss, text):
    assert repr(loss) == text
    same = [copy.copy(loss), copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), dataclasses.replace(loss)]
    for other in same:
        assert other == loss
        assert hash(other) == hash(loss)
        assert repr(other) == text
    assert [loss == other for other, _ in LOSSES].count(True) == 1


@pytest.mark.parametrize(("loss", "name"), [(ba.losses.Huber(), "huber"), (ba.losses.CrossEntropy(), "cross_entropy")])
def test_without_options_it_is_the_one_of_that_name(loss, name):
    rnn = network(output="softmax" if name == "cross_entropy" else "identity")
    target = CLASSES if name == "cross_entropy" else RNG.standard_normal((T, N, O))
    of_name, of_loss = (rnn.loss_and_grad(X, target, given) for given in (name, loss))
    assert of_name[0] == of_loss[0]
    assert all(np.array_equal(grad, of_loss[1].params[key]) for key, grad in of_name[1].params.items())
    plans = [rnn.plan(X.shape, loss=given) for given in (name, loss)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_delta_that_no_error_reaches_is_none(dtype):
    target, half = RNG.standard_normal((T, N, O)), network(output="identity", dtype=dtype)
    x, target = (array.astype(dtype) for array in (X, target))
    value, grads, _ = half.loss_and_grad(x, target, ba.losses.Huber(1e300))  # no warning, which is an error here
    squares, of_squares, _ = half.loss_and_grad(x, target, "mse")
    assert value == pytest.approx(squares / O, rel=1e-5)
    for name, grad in of_squares.params.items():
        np.testing.assert_allclose(grads.params[name], grad / O, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ignored", [None, 2])
@pytest.mark.parametrize("weights", [None, np.full((T, N), 2.0)])
def test_a_mean_over_nothing_is_0(weights, ignored):
    """With smoothed labels steps have a loss, also those whose class weighs nothing."""
    loss = ba.losses.CrossEntropy([0.0, *[1.0] * (O - 1)], ignored, label_smoothing=0.1)
    target = np.zeros((T, N), int)
    if ignored is not None:
        target[0] = ignored
    value, grads, _ = network().loss_and_grad(X, target, loss, weights=weights)
    assert value == 0
    assert not any(grad.any() for grad in grads.params.values())


def test_what_no_option_can_ignore_is_not_said_to_be_ignorable():
    for number, can in ((2**63 - 1, True), (2**63 + 3, False)):
        with pytest.raises(ValueError, match=rf"^target\[0, 0\]={number}; expected 0 to ") as error:
            network().loss(X, np.full((T, N), number, "uint64"), "cross_entropy")
        assert ("ignored by" in str(error.value)) is can
    ba.losses.CrossEntropy(ignore_index=2**63 - 1)


def test_weights_that_cancel_have_a_mean_of_0():
    weights = np.ones((T, N))
    weights.reshape(-1)[: weights.size // 2] = -1
    assert weights.sum() == 0
    assert network().loss(X, CLASSES, "cross_entropy", weights=weights, reduction="weighted_mean")[0] == 0


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30])
def test_a_mean_over_weights_is_of_their_ratios(scale):
    """Also where one over their sum is infinite in float32."""
    rnn, weights = network(output="identity", dtype="float32"), RNG.random((T, N)).astype("float32")
    x, target = X.astype("float32"), RNG.standard_normal((T, N, O)).astype("float32")
    expected, grads, _ = rnn.loss_and_grad(x, target, weights=weights, reduction="weighted_mean")
    small = (weights.astype("float64") * scale).astype("float32")
    found, others, _ = rnn.loss_and_grad(x, target, weights=small, reduction="weighted_mean")
    assert found == pytest.approx(expected, rel=1e-3 if scale == 1e-40 else 1e-5)  # of few bits
    for name, grad in grads.params.items():
        np.testing.assert_allclose(others.params[name], grad, rtol=0.01, atol=1e-4)


def test_what_is_ignored_has_no_gradient_and_may_be_any_number():
    rnn, found = network(), []
    for ignored in (-100, O, 10**12, 2**62):
        target = np.where(IGNORED == -100, ignored, IGNORED)
        found.append(rnn.loss_and_grad(X, target, ba.losses.CrossEntropy(ignore_index=ignored), input_grad=True))
    for loss, grads, _ in found[1:]:
        assert loss == found[0][0]
        assert np.array_equal(grads.x, found[0][1].x)
    last = ~(IGNORED >= 0)[-1]
    assert last.any()
    assert not found[0][1].x[-1, last].any()
    with pytest.raises(
        ValueError, match=r"=-100; expected 0 to 4 \(classes below output_size\) or 7, which is ignored"
    ):
        rnn.loss(X, IGNORED, ba.losses.CrossEntropy(ignore_index=7))


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8", "uint16", ">i4"])
def test_classes_of_any_integers(dtype):
    rnn, ignored = network(), 200 if dtype.startswith("u") else -100
    target = np.where(IGNORED == -100, ignored, IGNORED)
    expected = rnn.loss(X, target, ba.losses.CrossEntropy(ignore_index=ignored))[0]
    assert rnn.loss(X, target.astype(dtype), ba.losses.CrossEntropy(ignore_index=ignored))[0] == expected
    plain = rnn.loss(X, CLASSES, "cross_entropy")[0]  # a number that no such integer is
    assert rnn.loss(X, CLASSES.astype(dtype), ba.losses.CrossEntropy(ignore_index=-(10**9)))[0] == pytest.approx(plain)


@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
@pytest.mark.parametrize("lengths", [None, [6, 0, 3, 1]], ids=["full", "lengths"])
def test_a_weighted_mean_is_the_sum_over_the_sum_of_weights(make_backend, dtype, lengths):
    rnn = ba.RNN(I, 7, O, device=make_backend(), dtype=dtype, seed=1, members=2)
    rnn.backend.segment_bytes = 2048  # several segments, and blocks of what is counted
    x, target = rnn.asarray(X), rnn.asarray(RNG.standard_normal((T, N, O)))
    for weights in (WEIGHTS, np.stack([WEIGHTS, WEIGHTS[::-1]], axis=1)):
        call = {"weights": rnn.asarray(weights), "lengths": lengths}
        summed, of_sum, _ = rnn.loss_and_grad(x, target, "mae", **call, reduction="sum")
        mean, grads, _ = rnn.loss_and_grad(x, target, "mae", **call, reduction="weighted_mean")
        valid = np.arange(T)[:, None] < (lengths or [T] * N)
        of_members = weights if weights.ndim == 3 else weights[:, None]
        total = np.broadcast_to((of_members * valid[:, None]).sum(axis=(0, 2)), (2,))
        host, near = rnn.backend.to_host, 1e-12 if dtype == "float64" else 2e-5
        np.testing.assert_allclose(host(mean), host(summed) / total, rtol=near)
        np.testing.assert_allclose(host(grads.steps), total, rtol=near)
        for name, grad in grads.params.items():
            expected = host(of_sum.params[name])
            expected = expected / total.reshape(2, *(1,) * (expected.ndim - 1))
            np.testing.assert_allclose(host(grad), expected, rtol=near, atol=near * np.abs(expected).max())
        nothing, grads, _ = rnn.loss_and_grad(
            x, target, weights=rnn.asarray(0 * weights), lengths=lengths, reduction="weighted_mean"
        )
        assert not host(nothing).any()
        assert not any(host(grad).any() for grad in grads.params.values())


def test_a_weight_of_0_is_out_of_a_weighted_mean_and_counts_in_a_mean():
    rnn, counts = network(), (IGNORED >= 0).astype(float)
    ignored, _ = rnn.loss(X, IGNORED, ba.losses.CrossEntropy(ignore_index=-100))
    call = {"loss": "cross_entropy", "weights": counts}
    weighted, _ = rnn.loss(X, CLASSES, **call, reduction="weighted_mean")
    mean, _ = rnn.loss(X, CLASSES, **call)
    assert weighted == pytest.approx(float(ignored), rel=1e-14)
    assert mean == pytest.approx(float(ignored) * counts.mean(), rel=1e-14)


def test_what_a_mean_is_over_does_not_depend_on_parts_or_blocks():
    loss = ba.losses.CrossEntropy(range(O), ignore_index=-100, label_smoothing=0.1)
    expected, exact, _ = network().loss_and_grad(X, IGNORED, loss)
    parts, short = InParts(), ba.backend.NumpyBackend()
    short.segment_bytes = 1
    for backend in (parts, short):
        found, grads, _ = network(device=backend).loss_and_grad(X, IGNORED, loss)
        assert found == pytest.approx(float(expected), rel=1e-14)
        assert grads.steps == pytest.approx(float(exact.steps))
        for name, grad in exact.params.items():
            np.testing.assert_allclose(grads.params[name], grad, rtol=1e-11, atol=1e-15)


def test_diagnostics_take_losses_with_options():
    rnn = network()
    counts = (IGNORED >= 0).astype(float)
    flow = diagnostics.gradient_flow(rnn, X, IGNORED, ba.losses.CrossEntropy(ignore_index=-100))
    expected = diagnostics.gradient_flow(rnn, X, CLASSES, "cross_entropy", weights=counts)
    np.testing.assert_allclose(flow.total, expected.total, rtol=1e-12)
    np.testing.assert_allclose(flow.per_loss, expected.per_loss, rtol=1e-12)
    found = diagnostics.diagnose(network(output="identity"), X, RNG.standard_normal((T, N, O)), ba.losses.Huber(0.5))
    assert found.flow.total.shape == (1, 1, T, N)


def test_class_weights_are_sent_to_a_device_once(monkeypatch):
    loss, rnn = ba.losses.CrossEntropy(range(O)), network()
    rnn.loss(X, CLASSES, loss)
    monkeypatch.setattr(type(rnn.backend), "from_host", None)
    rnn.loss(X, CLASSES, loss)
