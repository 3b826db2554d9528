"""Tokens of a large vocabulary: no one-hot rows, the numbers of a network that reads them, and as exact."""

import itertools
import tracemalloc
from functools import partial

import numpy as np
import pytest
from cases import smallest_budget

import bptt_array as ba
from bptt_array.equations.token_sums import ROWS, TokenSums

BACKEND = ba.backend.NumpyBackend()


@pytest.fixture(autouse=True)
def any_vocabulary_is_large(monkeypatch):
    monkeypatch.setattr(ba.backend.NumpyBackend, "sums_by_token", lambda *sizes: True)


def assert_as_one_hot(rnn, tokens, memory=None, **call):
    """Loss, gradients and state are those of the same tokens as one-hot rows."""
    rng = np.random.default_rng(1)
    lead = (*tokens.shape[:1], rnn.members, *tokens.shape[-1:]) if tokens.ndim == 3 else tokens.shape
    target = rng.standard_normal((*(lead if rnn.readout == "every" else lead[1:]), 3))
    loss, grads, state = rnn.loss_and_grad(tokens, target, memory=memory, **call)
    rows = np.eye(rnn.input_size)[tokens]
    expected_loss, expected, expected_state = rnn.loss_and_grad(rows, target, **call)
    assert np.allclose(loss, expected_loss, rtol=1e-12)
    assert np.allclose(state.h, expected_state.h, rtol=1e-11, atol=1e-14)
    assert grads.params.keys() == expected.params.keys()
    for name, value in expected.params.items():
        assert grads.params[name].shape == value.shape
        assert grads.params[name].flags.c_contiguous
        assert np.allclose(grads.params[name], value, rtol=1e-10, atol=1e-13), name


@pytest.mark.parametrize(("V", "T", "N"), list(itertools.product((1, 2, 50, 500), (1, 9), (1, 2, 90))))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cell": "gru"},
        {"members": 3},
        {"bidirectional": True},
        {"members": 2, "bidirectional": True, "cell": "lstm"},
    ],
    ids=str,
)
def test_any_vocabulary_gives_the_numbers_of_one_hot_rows(V, T, N, options):
    rng, rnn = np.random.default_rng(0), ba.RNN(V, 5, 3, dtype="float64", **options)
    assert_as_one_hot(rnn, rng.integers(0, V, (T, N)))
    if "members" in options:
        assert_as_one_hot(rnn, rng.integers(0, V, (T, rnn.members, N)))


@pytest.mark.parametrize("V", [3, 300])
@pytest.mark.parametrize(
    "call",
    [
        {"truncate": 4},
        {"truncate": (3, 11)},
        {"memory": True},
        {"memory": True, "truncate": (3, 11)},
        {"lengths": [40, 0, 17]},
        {"lengths": [40, 0, 17], "memory": True},
        {"backward": "parallel"},
    ],
    ids=str,
)
def test_any_call_gives_the_numbers_of_one_hot_rows(V, call):
    rng, rnn = np.random.default_rng(0), ba.RNN(V, 5, 3, dtype="float64")
    tokens, call = rng.integers(0, V, (40, 3)), dict(call)
    if "memory" in call:
        plan = partial(rnn.plan, (40, 3), truncate=call.get("truncate"), lengths="lengths" in call)
        call["memory"] = smallest_budget(lambda memory: plan(memory=memory))
        assert "truncate" in call or plan(memory=call["memory"]).forward_steps > 40
    assert_as_one_hot(rnn, tokens, **call)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64"])
def test_tokens_may_be_integers_of_any_size_and_in_any_order_of_axes(dtype):
    rng, rnn = np.random.default_rng(0), ba.RNN(200, 5, 3, dtype="float64")
    assert_as_one_hot(rnn, rng.integers(0, 200, (9, 4)).astype(dtype))
    assert_as_one_hot(rnn, rng.integers(0, 200, (4, 9)).astype(dtype).T)
    members = ba.RNN(200, 5, 3, dtype="float64", members=2)
    assert_as_one_hot(members, rng.integers(0, 200, (9, 4)).astype(dtype))


@pytest.mark.parametrize("rows", [1, ROWS - 1, ROWS, ROWS + 1, 5000])
@pytest.mark.parametrize("lead", [(), (2,), (3, 2)], ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns", "between"])
def test_every_row_is_in_the_column_of_its_token_once(rows, lead, layout):
    rng, V, F = np.random.default_rng(0), 17, 3
    dz = rng.integers(-9, 9, (*lead, rows, F)).astype("float32")
    given = {"rows": dz, "columns": np.ascontiguousarray(dz.mT).mT, "between": np.repeat(dz, 2, axis=-1)[..., ::2]}[
        layout
    ]
    tokens = rng.integers(0, V, (rows, *lead, 1))
    sums = TokenSums(BACKEND, np.zeros((*lead, F, V), "float32"), tokens.size)
    for _ in range(2):  # what is read in between is that of the parts so far
        sums.add(given, tokens)
        sums.total()
    of_rows = np.moveaxis(tokens[..., 0], 0, -1)
    expected = 2 * np.matmul(dz.mT, np.eye(V, dtype="float32")[of_rows])
    assert np.array_equal(sums.total(), expected)
    assert np.array_equal(sums.total(), expected)


@pytest.mark.parametrize("parts", [1, 63, 64, 65, 4095, 4096, 4097, 9000])
def test_rows_of_a_token_that_come_one_by_one_are_added_once(parts):
    sums = TokenSums(BACKEND, np.zeros((2, 5), "float32"), parts + 1)
    for k in range(parts):
        sums.add(np.full((1, 2), k % 7, "float32"), np.array([[3]]))
    sums.add(np.full((1, 2), 5, "float32"), np.array([[1]]))
    expected = np.zeros((2, 5))
    expected[:, 3], expected[:, 1] = sum(k % 7 for k in range(parts)), 5
    assert np.array_equal(sums.total(), expected)


@pytest.mark.parametrize("at_once", [1, 7, ROWS, 100_000])
def test_a_token_that_comes_a_million_times_has_a_column_to_six_digits(at_once):
    count = 10**6 if at_once > ROWS else 10**4 * at_once
    each, sums = np.float32(0.1), TokenSums(BACKEND, np.zeros((2, 1000), "float32"), count)
    for start in range(0, count, at_once):
        part = np.full((min(at_once, count - start), 2), each)
        sums.add(part, np.full((len(part), 1), 7))
    expected = count * float(each)
    assert np.abs(sums.total()[:, 7] - expected).max() <= 1e-6 * expected


@pytest.mark.parametrize("options", [{}, {"members": 2}, {"bidirectional": True}], ids=str)
def test_parts_of_a_batch_give_the_columns_of_the_whole(options, monkeypatch):
    """Of each part there are other tokens, and none of them has a gradient of its own."""
    monkeypatch.setattr(ba.backend.NumpyBackend, "count_parts", lambda self, *sizes: self.thread_count())
    rng, V, grads = np.random.default_rng(0), 900, []
    x, target = rng.integers(0, V, (6, 32)), rng.standard_normal((6, 32, 3))
    for threads in (1, 2):
        backend = ba.backend.NumpyBackend()
        backend.threads = threads
        rnn = ba.RNN(V, 16, 3, dtype="float64", device=backend, **options)
        grads.append(rnn.loss_and_grad(x, target)[1].params["l0.W_xh"])
        y, _, backward = rnn.forward(x)
        again = backward((y - (target if "members" not in options else target[:, None])) / (6 * 32)).params["l0.W_xh"]
        assert np.allclose(again, grads[-1], rtol=1e-10, atol=1e-15)
    assert np.allclose(*grads, rtol=1e-10, atol=1e-15)


def test_a_step_has_the_same_bits_each_time():
    rng, rnn = np.random.default_rng(0), ba.RNN(5000, 32, 3, cell="lstm")
    x, target = rng.integers(0, 5000, (30, 20)), rng.standard_normal((30, 20, 3)).astype("float32")
    first, again = (rnn.loss_and_grad(x, target)[1].params for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("call", [{}, {"lengths": True}], ids=str)
def test_no_array_of_a_step_has_the_size_of_one_hot_rows(call, monkeypatch):
    monkeypatch.undo()  # as it is
    T, N, V, H = 50, 32, 20_000, 16
    rng, rnn = np.random.default_rng(0), ba.RNN(V, H, 3)
    x, target = rng.integers(0, V, (T, N)), rng.standard_normal((T, N, 3)).astype("float32")
    call = {"lengths": rng.integers(0, T + 1, N)} if call else {}
    rnn.loss_and_grad(x, target, **call)
    tracemalloc.start()
    rnn.loss_and_grad(x, target, **call)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    gradient = 4 * V * H
    assert gradient < peak < 3 * gradient < 4 * T * N * V / 30


def test_small_vocabularies_and_other_namespaces_have_one_hot_rows(monkeypatch):
    monkeypatch.undo()
    few_and_many = [(65, 64), (65, 2048), (1000, 64), (2000, 64), (20_000, 64), (300, 1024)]
    assert [BACKEND.sums_by_token(*sizes) for sizes in few_and_many] == [False, False, False, True, True, True]
    assert not ba.Backend(np).sums_by_token(20_000, 64)


@pytest.mark.parametrize("shape", [(), (1,), (4, 3), (2, 3, 4)], ids=str)
def test_one_is_taken_from_the_entry_of_each_class(shape):
    rng = np.random.default_rng(0)
    p, classes = rng.integers(0, 9, (*shape, 7)).astype("float32"), rng.integers(0, 7, shape)
    for backend in (BACKEND, ba.Backend(np)):
        found = p.copy()
        backend.minus_one_hot_(found, classes)
        assert np.array_equal(found, p - np.eye(7)[classes])


@pytest.mark.parametrize(
    "loss",
    ["cross_entropy", ba.losses.CrossEntropy(ignore_index=-100), ba.losses.CrossEntropy(range(5000), -100, 0.1)],
    ids=str,
)
def test_no_array_of_a_loss_has_the_size_of_one_hot_classes(loss):
    T, N, O = 20, 10, 5000  # noqa: E741
    rng, rnn = np.random.default_rng(0), ba.RNN(3, 4, O, output="softmax")
    x, classes = rng.standard_normal((T, N, 3)).astype("float32"), rng.integers(0, O, (T, N))
    if loss != "cross_entropy":
        classes[5:, 2] = -100
    rnn.loss_and_grad(x, classes, loss)
    tracemalloc.start()
    rnn.loss_and_grad(x, classes, loss)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 4 * T * N * O  # v, and what becomes dL/dv


def test_sums_by_index_are_those_of_any_namespace():
    rng = np.random.default_rng(0)
    rows, index = rng.integers(-9, 9, (40, 3)).astype("float32"), rng.integers(0, 12, 40)
    expected = np.zeros((12, 3))
    np.add.at(expected, index, rows)
    for backend in (BACKEND, ba.Backend(np)):
        which, sums = backend.sums_by_index(rows, index, 12)
        found = np.zeros((12, 3))
        found[which] = sums
        assert np.array_equal(found, expected)
        assert len(set(which.tolist())) == len(which)
