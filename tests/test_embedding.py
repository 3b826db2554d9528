"""An embedding in front of the first layer: the network that reads the same vectors as features, and sums by token."""

import tracemalloc

import numpy as np
import pytest
from conftest import backends_and_dtypes, cuda
from test_cuda import needs_counters

import bptt_array as ba
from bptt_array.diagnostics import gradient_flow, jacobian
from bptt_array.equations.embedding import RowSums
from bptt_array.equations.token_sums import TokenSums

V, M, H, T, N = 30, 6, 6, 9, 5


def of_features(rnn):
    """The network without the embedding in front."""
    config = rnn.config | {"input_size": rnn.embedding_size, "embedding_size": None, "tied": False}
    other = ba.RNN(**config, device=rnn.backend)
    own = {name: value for name, value in rnn.params.items() if name != "W_emb"}
    return other.load_params(own | ({"W_hy": rnn.params["W_emb"]} if rnn.tied else {}))


def vectors(rnn, tokens):
    """``W_emb[tokens]``, of every member its own, on the host."""
    W_emb = rnn.backend.to_host(rnn.params["W_emb"])
    if rnn.members is None:
        return W_emb[tokens]
    tokens = tokens if tokens.ndim == 3 else np.repeat(tokens[:, None], rnn.members, axis=1)
    return np.stack([W_emb[k][tokens[:, k]] for k in range(rnn.members)], axis=1)


def scattered(rnn, tokens, dx):
    """The gradient of ``W_emb`` from that of the vectors."""
    result = np.zeros(rnn.params["W_emb"].shape)
    if rnn.members is None:
        np.add.at(result, tokens, dx)
    else:
        for k in range(rnn.members):
            np.add.at(result[k], tokens[:, k] if tokens.ndim == 3 else tokens, dx[:, k])
    return result


def no_arrays_of_numbers():
    """NumPy as a device that is not indexed by arrays."""
    backend = ba.backend.NumpyBackend()
    vars(backend)["indexed_by_arrays"] = False
    return backend


@pytest.mark.parametrize("backend", [ba.backend.NumpyBackend, no_arrays_of_numbers], ids=["by token", "in rows"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cell": "lstm", "num_layers": 2},
        {"members": 3},
        {"bidirectional": True, "cell": "gru"},
        {"tied": True},
        {"tied": True, "members": 2, "readout": "last"},
    ],
    ids=str,
)
@pytest.mark.parametrize("call", [{}, {"lengths": [9, 0, 3, 1, 9]}, {"memory": "4MiB"}], ids=str)
def test_a_network_with_an_embedding_is_one_that_reads_its_vectors(options, call, backend):
    rng, O = np.random.default_rng(0), V if options.get("tied") else 3  # noqa: E741
    rnn = ba.RNN(V, H, O, embedding_size=M, dtype="float64", device=backend(), **options)
    lead = (T, rnn.members, N) if "members" in options else (T, N)
    tokens = rng.integers(0, V, lead)
    target = rng.standard_normal((*(lead if rnn.readout == "every" else lead[1:]), O))
    loss, grads, state = rnn.loss_and_grad(tokens, target, **call)
    features = of_features(rnn)
    expected_loss, expected, expected_state = features.loss_and_grad(
        vectors(rnn, tokens), target, **call, input_grad=True
    )
    assert np.allclose(loss, expected_loss, rtol=1e-13)
    assert np.allclose(state.h, expected_state.h, rtol=1e-12)
    of_embedding = scattered(rnn, tokens, expected.x) + (expected.params.pop("W_hy") if rnn.tied else 0)
    assert list(grads.params) == list(rnn.params)
    assert np.allclose(grads.params["W_emb"], of_embedding, rtol=1e-10, atol=1e-14)
    for name, value in expected.params.items():
        assert np.allclose(grads.params[name], value, rtol=1e-10, atol=1e-14), name
    y, _ = rnn(tokens, lengths=call.get("lengths"))
    assert np.allclose(y, features(vectors(rnn, tokens), lengths=call.get("lengths"))[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("make", "dtype"), backends_and_dtypes())
@pytest.mark.parametrize("options", [{}, {"members": 2, "bidirectional": True}, {"tied": True}], ids=str)
def test_every_device_has_the_same_numbers(make, dtype, options):
    rng, O = np.random.default_rng(0), V if options.get("tied") else 3  # noqa: E741
    here = ba.RNN(V, H, O, embedding_size=M, dtype="float64", **options)
    there = ba.RNN(V, H, O, embedding_size=M, dtype=dtype, device=make(), **options)
    host = there.backend.to_host
    assert all(np.array_equal(host(there.params[name]), value.astype(dtype)) for name, value in here.params.items())
    tokens, target = rng.integers(0, V, (T, N)), rng.standard_normal((T, N, O))
    loss, expected, _ = here.loss_and_grad(tokens, target)
    found_loss, found, _ = there.loss_and_grad(there.asarray(tokens), there.asarray(target))
    tolerance = 1e-12 if dtype == "float64" else 2e-5
    assert np.allclose(host(found_loss), loss, rtol=tolerance)
    for name, value in expected.params.items():
        assert np.max(np.abs(host(found.params[name]) - value)) <= tolerance * np.max(np.abs(value)), name


@pytest.mark.parametrize("device", cuda)
@needs_counters
@pytest.mark.parametrize("tied", [False, True])
def test_a_training_step_on_cuda_waits_for_nothing_and_has_the_same_bits_each_time(device, tied):
    import gpuemu

    rnn = ba.RNN(V, H, V, embedding_size=M, tied=tied, output="softmax", device=device)
    rng = np.random.default_rng(0)
    x, target = (rnn.asarray(rng.integers(0, V, (T, N))) for _ in range(2))
    first = rnn.loss_and_grad(x, target, "cross_entropy")[1].params
    with gpuemu.count() as counted:
        again = rnn.loss_and_grad(x, target, "cross_entropy")[1].params
    assert counted.syncs == counted.implicit_syncs == counted.h2d == counted.d2h == 0
    assert counted.kernels["bptt_add_rows"] == counted.kernels["bptt_named_rows"] == 1
    assert all(np.array_equal(*map(rnn.backend.to_host, (first[name], again[name]))) for name in first)


def test_initial_values_are_those_of_torch_and_other_networks_draw_what_they_did():
    rnn = ba.RNN(2000, 8, 3, embedding_size=50, seed=3)
    W_emb = rnn.params["W_emb"]
    assert W_emb.shape == (2000, 50)
    assert abs(W_emb.mean()) < 0.02
    assert abs(W_emb.std() - 1) < 0.02
    assert np.array_equal(W_emb, ba.RNN(2000, 8, 3, embedding_size=50, seed=3, init="orthogonal").params["W_emb"])
    members = ba.RNN(2000, 8, 3, embedding_size=50, members=2, seed=2)
    assert np.array_equal(members.member(1).params["W_emb"], W_emb)
    assert abs(ba.RNN(3, 4, 2).params["l0.W_xh"][0, 0] - 0.13696170) < 1e-7  # of 0.1.0


def test_parts_of_a_batch_give_the_rows_of_the_whole(monkeypatch):
    monkeypatch.setattr(ba.backend.NumpyBackend, "count_parts", lambda self, *sizes: self.thread_count())
    rng, found = np.random.default_rng(0), []
    x, target = rng.integers(0, V, (T, 32)), rng.standard_normal((T, 32, V))
    for threads in (1, 2, 3):
        backend = ba.backend.NumpyBackend()
        backend.threads = threads
        rnn = ba.RNN(V, H, V, embedding_size=M, tied=True, dtype="float64", device=backend)
        found.append(rnn.loss_and_grad(x, target)[1].params["W_emb"])
        y, _, backward = rnn.forward(x)
        for _ in range(2):
            assert np.allclose(backward((y - target) / (T * 32)).params["W_emb"], found[-1], rtol=1e-10, atol=1e-15)
    assert np.allclose(found[1:], found[0], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("parts", [1, 63, 64, 65, 4095, 4096, 4097])
@pytest.mark.parametrize("kind", [TokenSums, RowSums])
def test_rows_of_a_token_that_come_one_by_one_are_added_once(parts, kind):
    W_emb, more = np.zeros((5, 2), "float32"), ({"by_rows": True} if kind is TokenSums else {})
    sums = kind(no_arrays_of_numbers(), W_emb, *([parts + 1] if more else []), **more)
    for k in range(parts):
        sums.add_rows(np.full((1, 2), k % 7, "float32"), np.array([3]))
    sums.add_rows(np.full((1, 2), 5, "float32"), np.array([1]))
    expected = np.zeros((5, 2))
    expected[3], expected[1] = sum(k % 7 for k in range(parts)), 5
    assert np.array_equal(sums.total(), expected)


@pytest.mark.parametrize("at_once", [1, 300])
def test_a_token_that_comes_very_often_has_a_row_to_five_digits(at_once):
    each, sums, count = np.float32(0.1), RowSums(no_arrays_of_numbers(), np.zeros((3, 2), "float32")), 30_000
    for _ in range(count // at_once):
        sums.add_rows(np.full((at_once, 2), each), np.full(at_once, 2))
    assert np.abs(sums.total()[2] - count * float(each)).max() <= 1e-5 * count * float(each)


def test_nothing_of_the_size_of_the_embedding_is_made_but_its_gradient():
    rng, many, wide = np.random.default_rng(0), 40_000, 32
    rnn = ba.RNN(many, 8, 3, embedding_size=wide)
    x, target = rng.integers(0, many, (20, 8)), rng.standard_normal((20, 8, 3)).astype("float32")
    rnn.loss_and_grad(x, target)
    tracemalloc.start()
    rnn.loss_and_grad(x, target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    gradient = 4 * many * wide
    assert gradient < peak < 1.3 * gradient


def test_copies_files_and_other_options_keep_the_embedding(tmp_path):
    rnn = ba.RNN(V, H, V, embedding_size=M, tied=True, members=2, time_major=False)
    rnn.save(tmp_path / "model.safetensors")
    again = ba.RNN.load(tmp_path / "model.safetensors")
    assert again.config == rnn.config
    assert "embedding_size=6, tied=True" in repr(again)
    x = np.random.default_rng(0).integers(0, V, (N, T))
    for other in (again, rnn.copy(), ba.RNN(**rnn.config).load_params(rnn.params)):
        assert np.array_equal(other(x)[0], rnn(x)[0])
    assert np.allclose(rnn.member(1)(x)[0], rnn(x)[0][1], atol=1e-6)


def test_diagnostics_see_the_states_that_the_vectors_make():
    rng, rnn = np.random.default_rng(0), ba.RNN(V, H, 3, embedding_size=M, dtype="float64")
    x, target = rng.integers(0, V, (T, N)), rng.standard_normal((T, N, 3))
    flow, expected = (gradient_flow(of, a, target) for of, a in ((rnn, x), (of_features(rnn), vectors(rnn, x))))
    assert np.allclose(flow.per_loss, expected.per_loss, rtol=1e-10)
    found = jacobian(rnn, x, 2, 7)
    assert np.allclose(found, jacobian(of_features(rnn), vectors(rnn, x), 2, 7), rtol=1e-10)
