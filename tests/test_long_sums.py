"""Sums over time in float32 are as exact for a million steps as for a few: relative errors stay below 1e-5."""

import numpy as np
import pytest
from conftest import backends_and_dtypes

import bptt_array as ba
from bptt_array.equations.long_sums import PARTS, Sums, add_rows, levels_of
from bptt_array.equations.sums import add_weight_sum

MOST = 1e-5
IN_FLOAT32 = [some for some in backends_and_dtypes() if some.values[1] == "float32"]


def assert_near(found, expected):
    """Relative to the largest number of an array: equal terms are the worst case for a sum."""
    assert np.abs(found - expected).max() <= MOST * np.abs(expected).max()


def both(rnn, x, target, loss="mse", **call):
    """Loss, gradients and dh_0 in float32 and, of the same numbers, in float64."""
    exact = ba.RNN(**rnn.config | {"dtype": "float64"}, device=rnn.backend)
    exact.params.update({name: exact.asarray(value) for name, value in rnn.params.items()})
    results = []
    for network in (rnn, exact):
        arrays = [array if array.dtype.kind == "i" else array.astype(network.dtype) for array in (x, target)]
        more = {name: value.astype(network.dtype) if name == "weights" else value for name, value in call.items()}
        value, grads, _ = network.loss_and_grad(*arrays, loss, **more)
        found = {"loss": value, "dh_0": grads.state.h, **grads.params}
        results.append({name: rnn.backend.to_host(array) for name, array in found.items()})
    return results


@pytest.mark.parametrize(
    ("T", "call"), [(10**6, {"reduction": "sum"}), (10**5, {}), (10**5, {"reduction": "sum", "truncate": 20})], ids=str
)
def test_a_million_steps_of_constant_input_have_gradients_to_five_digits(T, call):
    rnn, x = ba.RNN(1, 2, 1), np.full((T, 1, 1), 0.1, "float32")
    found, exact = both(rnn, x, np.full_like(x, 3), **call)
    for name, expected in exact.items():
        assert_near(found[name], expected)


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"cell": "relu"}, {}),
        ({"cell": "lstm"}, {}),
        ({"cell": "gru", "num_layers": 2}, {}),
        ({"cell": "gru", "members": 2}, {"truncate": 500}),
        ({"bidirectional": True}, {}),
        ({"cell": "tanh"}, {"weights": True}),
        ({"cell": "tanh"}, {"backward": "parallel"}),
        ({"cell": "tanh"}, {"lengths": True}),
        ({"cell": "tanh"}, {"memory": "2MiB"}),
        ({"cell": "lstm", "tokens": True}, {}),
        ({"hidden_size": 20, "N": 4}, {"truncate": 400}),
    ],
    ids=str,
)
def test_long_sequences_have_gradients_to_five_digits(options, call):
    T, N, options, call = 30_000, options.get("N", 1), dict(options), dict(call)
    tokens, _ = options.pop("tokens", False), options.pop("N", 1)
    rnn = ba.RNN(**{"input_size": 2, "hidden_size": 3, "output_size": 2} | options)
    x = np.zeros((T, N), int) if tokens else np.full((T, N, 2), 0.1, "float32")
    if "weights" in call:
        call["weights"] = np.full((T, N), 0.3, "float32")
    if "lengths" in call:
        call["lengths"] = [T - 1] * N
    found, exact = both(rnn, x, np.full((T, N, 2), 3, "float32"), reduction="sum", **call)
    for name, expected in exact.items():
        assert_near(found[name], expected)


@pytest.mark.parametrize(("make_backend", "dtype"), IN_FLOAT32)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 2), (3, 17), (40, 30)], ids=str)
@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
def test_a_product_over_many_rows_is_exact_on_every_device(make_backend, dtype, shape, lead):
    backend, rows, (M, F) = make_backend(), 30_011, shape
    dz, a = np.full((*lead, rows, M), 0.1, dtype), np.full((rows, *lead, 1, F), 0.3, dtype)
    sums = Sums()
    with backend.active():
        add_weight_sum(backend, sums, "W", backend.from_host(dz), backend.from_host(a))
        add_rows(backend, sums, "b", backend.from_host(dz))
        found = {name: backend.to_host(total) for name, total in sums.totals().items()}
    each = float(dz.flat[0])
    assert (found["W"].shape, found["b"].shape) == ((*lead, M, F), (*lead, M))
    assert_near(found["b"], np.full((*lead, M), rows * each))
    assert_near(found["W"], np.full((*lead, M, F), rows * each * float(a.flat[0])))


@pytest.mark.parametrize("rows", [1, 255, 256, 512, 513, 767, 768, 4097, 33_000])
def test_every_row_is_in_a_product_once(rows):
    rng = np.random.default_rng(0)
    backend, sums = ba.RNN(1, 1).backend, Sums()
    dz, a = (rng.integers(-9, 9, (rows, F)).astype("float32") for F in (3, 2))
    add_weight_sum(backend, sums, "W", dz, a[:, None, :])
    add_rows(backend, sums, "b", dz)
    assert np.array_equal(sums.totals()["W"], dz.T @ a)
    assert np.array_equal(sums.totals()["b"], dz.sum(axis=0))


@pytest.mark.parametrize("parts", [1, 2, 63, 64, 65, 128, 4095, 4096, 4161, 70_000])
def test_a_sum_has_every_part_once_and_few_arrays(parts):
    sums, most = Sums(), 0
    for k in range(parts):
        sums.add("a", np.full(1, k % 7, "float32"))
        if k in (100, 3000):  # what is read in between is that of the parts so far
            assert sums.totals()["a"] == sum(j % 7 for j in range(k + 1))
        most = max(most, sum(count > 0 for count, _ in sums._levels["a"]))
    assert sums.totals()["a"] == sum(k % 7 for k in range(parts))
    assert most <= levels_of(parts) <= 1 + np.log(parts) / np.log(PARTS)


def test_a_sum_that_overflows_is_infinite_and_no_other_is_touched():
    sums = Sums()
    with np.errstate(over="ignore"):
        for _ in range(5000):
            sums.add("a", np.array([3e38, 1.0], "float32"))
    assert sums.totals()["a"].tolist() == [np.inf, 5000.0]


def test_losses_of_members_are_as_exact_as_that_of_one_network():
    """NumPy adds the rows of an axis that is not the last one by one."""
    T = 100_000
    rnn = ba.RNN(1, 1, 1, members=2)
    found, exact = both(rnn, np.zeros((T, 1, 1), "float32"), np.full((T, 1, 1), 0.3, "float32"), reduction="sum")
    assert found["loss"] == pytest.approx(exact["loss"], rel=MOST)
