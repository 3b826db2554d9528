"""Layers without biases: those of zeros, but for parameters and gradients that are not there."""

import numpy as np
import pytest
from conftest import backends_and_dtypes

import bptt_array as ba
from bptt_array.backend.portable import Backend

T, N, I, H, O = 9, 5, 3, 6, 2  # noqa: E741
CELLS = ("tanh", "relu", "lstm", "gru")


class Peeking(ba.Cell):
    """``h_t = z_t + a h_{t-1} + b_x``, with a weight and a bias of its own."""

    name = "peeking"

    def own_parameters(self, hidden_size):
        return {"a": (hidden_size,), "b_x": (hidden_size,)}

    def forward_(self, backend, params, product):
        add_product, a, b_x = product.adding(), params["a"][..., None, :], params["b_x"][..., None, :]

        def step_(z, h_before, h):
            add_product(z, h_before)
            h[...] = z + a * h_before + b_x

        return step_

    def backward_(self, backend, params, product):
        add_product, a = product.adding(), params["a"][..., None, :]

        def step_(dz, dh, dh_before):
            dz[...] = dh
            dh_before += a * dh
            add_product(dh_before, dz)

        return step_

    def finish_(self, backend, slopes, dz, dh, tape):
        return {"a": dh * tape.h_before, "b_x": backend.copy(dh)}


def with_zeros(rnn, cell):
    """The network with biases that are 0."""
    other = ba.RNN(**rnn.config | {"bias": True, "cell": cell}, device=rnn.backend)
    zeros = {name: np.zeros(value.shape) for name, value in other.params.items() if name not in rnn.params}
    assert zeros
    assert all(name.rpartition(".")[2].startswith("b_") for name in zeros)
    return other.load_params(rnn.params | zeros)


@pytest.mark.parametrize(("make", "dtype"), backends_and_dtypes())
@pytest.mark.parametrize(
    "options",
    [*({"cell": cell} for cell in CELLS), {"cell": "gru", "members": 2, "bidirectional": True, "num_layers": 2}],
    ids=str,
)
@pytest.mark.parametrize("tokens", [False, True])
def test_a_network_without_biases_is_one_whose_biases_are_zero(make, dtype, options, tokens):
    rng, rnn = np.random.default_rng(0), ba.RNN(I, H, O, bias=False, dtype=dtype, device=make(), **options)
    x = rnn.asarray(rng.integers(0, I, (T, N)) if tokens else rng.standard_normal((T, N, I)))
    target, host = rnn.asarray(rng.standard_normal((T, N, O))), rnn.backend.to_host
    other = with_zeros(rnn, rnn.cell)
    assert {name for name in rnn.params if "b_" in name} == {"b_y"}
    (loss, grads, _), (expected_loss, expected, _) = (of.loss_and_grad(x, target) for of in (rnn, other))
    assert list(grads.params) == list(rnn.params)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    assert np.allclose(host(loss), host(expected_loss), rtol=tolerance)
    for name, value in grads.params.items():
        there = host(expected.params[name])
        assert np.max(np.abs(host(value) - there)) <= tolerance * np.max(np.abs(there)), name
    assert np.allclose(host(rnn(x)[0]), host(other(x)[0]), rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_a_cell_of_ones_own_is_given_zeros_for_its_biases(options):
    rng, rnn = np.random.default_rng(0), ba.RNN(I, H, O, cell=Peeking(), bias=False, dtype="float64", **options)
    assert "l0.a" in rnn.params
    assert "l0.b_x" not in rnn.params
    x, target = rng.standard_normal((T, N, I)), rng.standard_normal((T, N, O))
    other = rnn.copy()
    _, grads, _ = rnn.loss_and_grad(x, target)
    ba.check_gradients(lambda params: other.load_params(params).loss(x, target)[0], rnn.params, grads.params)
    assert np.allclose(rnn(x)[0], with_zeros(rnn, Peeking())(x)[0], rtol=1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_no_zeros_are_added(cell, monkeypatch):
    """What adds a bias to all steps of a segment, and what sums its gradient up, is not called."""
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((T, N, I)).astype("float32"), np.ones((T, N, O), "float32")
    sums, add = [], ba.equations.sums.add_rows
    monkeypatch.setattr(ba.equations.sums, "add_rows", lambda *given: (sums.append(given[2]), add(*given)))
    for bias in (True, False):
        sums.clear()
        ba.RNN(I, H, O, cell=cell, bias=bias).loss_and_grad(x, target)
        assert ("b_h" in sums) == bias
    rows = np.ones((T, N, H), "float32")
    ba.equations.recurrence.project_(Backend(np), rows, x, np.ones((H, I), "float32"), None)
    assert np.allclose(rows, x.sum(axis=-1, keepdims=True), rtol=1e-6)


def test_files_copies_and_options(tmp_path):
    rnn = ba.RNN(I, H, O, cell="gru", bias=False, init="orthogonal", seed=3)
    rnn.save(tmp_path / "model.safetensors")
    again = ba.RNN.load(tmp_path / "model.safetensors")
    assert again.config == rnn.config
    assert "bias=False" in repr(again)
    x = np.ones((T, N, I), "float32")
    for other in (again, rnn.copy(), ba.RNN(**rnn.config).load_params(rnn.params)):
        assert np.array_equal(other(x)[0], rnn(x)[0])
    assert ba.RNN(I, H, O).config["bias"] is True
