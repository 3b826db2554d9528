"""A cell that is not in the library, as the README brings it; and what cells promise each other."""

import copy

import cases
import numpy as np
import pytest
from cases import LENGTHS, Case
from cells_of_users import Peephole
from conftest import backends_and_dtypes, cuda
from gradients import check_given_gradient, check_loss_gradient
from test_docs import cell_of_the_page
from test_gradients import (
    test_values_and_gradients_match_the_naive_reference_and_its_autograd as compare_with_reference,
)
from test_parity import test_every_result_equals_that_of_numpy as compare_with_numpy

import bptt_array as ba


@pytest.fixture(scope="module")
def update_gate():
    """The class that the page shows."""
    return cell_of_the_page()


@pytest.fixture
def known(update_gate, monkeypatch):
    monkeypatch.setitem(cases.CUSTOM_CELLS, "update gate", update_gate())


OWN = [
    Case(cell="update gate"),
    Case(cell="update gate", lengths=LENGTHS, tokens=True, layers=2),
    Case(cell="update gate", bidirectional=True, lengths=LENGTHS, readout="last"),
    Case(cell="update gate", members=2, layers=2, dropout=0.3, recurrent_dropout=0.3),
    Case(cell="update gate", truncate=3, T=1, N=1, H=1),
]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("case", OWN, ids=str)
def test_the_cell_of_the_readme_has_the_gradient_of_the_reference(case):
    compare_with_reference(case)
    check_loss_gradient(ba, case)
    if case.truncate is None:
        check_given_gradient(ba, case)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("case", [OWN[1], OWN[3]], ids=str)
@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_the_cell_of_the_readme_runs_on_every_device(make_backend, dtype, case):
    compare_with_numpy(make_backend, dtype, case)


def test_a_wrong_cell_is_found_by_the_public_gradient_check(update_gate):
    class Forgetful(update_gate):
        def slopes_(self, backend, slopes, dz, tape):
            u, slopes = super().slopes_(backend, slopes, dz, tape)
            slopes[:, 0, ...] *= 1 + 1e-4
            return u, slopes

    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 2))
    rnn = ba.RNN(3, 5, 2, cell=Forgetful(), dtype="float64")
    _, grads, _ = rnn.loss_and_grad(x, target)

    def loss(params):
        rnn.params.update(params)
        return rnn.loss(x, target)[0]

    with pytest.raises(AssertionError, match=r"l0\.b_h: finite differences"):
        ba.check_gradients(loss, dict(rnn.params), grads.params)


class ResetLast(ba.equations.GRU):
    """A GRU without a bias of its own, whose dz changes after the loop all the same."""

    name = "reset last"

    def own_parameters(self, hidden_size):
        return {}

    def forward_(self, backend, params, product):
        return super().forward_(backend, self.with_bias(params), product)

    def backward_(self, backend, params, product):
        return super().backward_(backend, self.with_bias(params), product)

    def with_bias(self, params):
        H = params["W_hh"].shape[-1]
        return {**params, "b_hn": 0 * params["b_h"][..., :H]}

    def finish_(self, backend, slopes, dz, dh, tape):
        super().finish_(backend, slopes, dz, dh, tape)
        return {}


@pytest.mark.parametrize("axes", [{}, {"members": 2}, {"bidirectional": True}], ids=str)
def test_a_cell_may_change_dz_without_parameters_of_its_own(axes):
    rng = np.random.default_rng(0)
    rnn = ba.RNN(3, 5, 2, cell=ResetLast(), dtype="float64", **axes)
    x, target = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 2))
    _, grads, _ = rnn.loss_and_grad(x, target)

    def loss(params):
        rnn.params.update(params)
        return np.sum(rnn.loss(x, target)[0])

    ba.check_gradients(loss, dict(rnn.params), grads.params)


class Residual(ba.Cell):
    """``h_t = tanh(z) + 0.3 h_{t-1}``; its product is written, backward too."""

    name = "residual"

    def forward_(self, backend, params, product):
        add_product, xp = product.adding(), backend.xp

        def step_(z, h_before, h):
            add_product(z, h_before)
            h[...] = xp.tanh(z) + 0.3 * h_before

        return step_

    def slopes_(self, backend, slopes, dz, tape):
        y = tape.h - 0.3 * tape.h_before
        return (1 - y * y,)

    def backward_(self, backend, params, product):
        product_, of_dz = product.writing()

        def step_(dz, dh, dh_before, slope):
            dz[...] = slope * dh
            product_(dz)
            dh_before += of_dz + 0.3 * dh

        return step_


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_cell_may_write_its_product_backward_too(rate):
    rnn = ba.RNN(3, 5, 2, cell=Residual(), recurrent_dropout=rate, dtype="float64", seed=0)
    rng, other = np.random.default_rng(0), rnn.copy()
    x, target, seed = (
        rng.standard_normal((6, 4, 3)),
        rng.standard_normal((6, 4, 2)),
        {"dropout_seed": 1} if rate else {},
    )
    _, grads, _ = rnn.loss_and_grad(x, target, **seed)
    ba.check_gradients(lambda params: other.load_params(params).loss(x, target, **seed)[0], rnn.params, grads.params)


def test_cells_that_do_not_fit_together_say_why():
    def cell(**attributes):
        return type("Odd", (ba.equations.GRU,), {"name": "odd", **attributes})()

    with pytest.raises(
        ValueError, match=r"<cell 'odd'> has own parameters of shapes \{'U': \(2, 2, 2\)\}; expected vectors \(M,\) or"
    ):
        ba.RNN(2, 2, cell=cell(own_parameters=lambda self, H: {"U": (H, H, H)}))
    for own in ({"U": (2,)}, {}, {"U": (2, 3)}, {"U": (3, 2)}):
        with pytest.raises(
            ValueError, match=r"<cell 'odd'> has of_state=\('U',\), but own_parameters\(2\) says .*expected m"
        ):
            ba.RNN(2, 2, cell=cell(of_state=("U",), own_parameters=lambda self, H, own=own: own))
    for count in (0, 4):
        with pytest.raises(ValueError, match=rf"has recurrent_gates={count} of gates=3; expected 1 to 3, or None for"):
            ba.RNN(2, 2, cell=cell(recurrent_gates=count))
    with pytest.raises(ValueError, match=r"<cell 'odd'> works in place with gates=3 and keeps=4; expected 1 and 0"):
        ba.RNN(2, 2, cell=cell(in_place=True))
    rnn = ba.RNN(2, 2, cell=cell(finish_=lambda self, *args: {}), dtype="float64")
    with pytest.raises(ValueError, match=r"finish_ of <cell 'odd'> returned gradients of \[\]; expected .*'b_hn'"):
        rnn.loss_and_grad(np.ones((2, 2, 2)), np.ones((2, 2, 2)))
    of_a_vector = {"own_parameters": lambda self, H: {"b": (H,)}, "finish_": lambda self, *a: {"b": (a[2], a[2])}}
    of_a_matrix = {"own_parameters": lambda self, H: {"W": (H, H)}, "finish_": lambda self, *a: {"W": a[2]}}
    for attributes, said in (
        (of_a_vector, r"2 array\(s\) for b \(2,\); expected one array"),
        (of_a_matrix, r"1 array\(s\) for W \(2, 2\); expected a pair dz, a of its factors"),
    ):
        odd = type("Odd", (Residual,), {"name": "odd", **attributes})()
        with pytest.raises(ValueError, match=rf"finish_ of <cell 'odd'> returned {said}"):
            ba.RNN(2, 2, cell=odd, dtype="float64").loss_and_grad(np.ones((2, 2, 2)), np.ones((2, 2, 2)))
    lists = cell(own_parameters=lambda self, H: {"b_hn": [H]})  # a list of sizes will do
    assert ba.RNN(2, 3, cell=lists).params["l0.b_hn"].shape == (3,)
    of_none = cell(forward_=lambda self, backend, params, product: product.of("nope").adding())
    with pytest.raises(ValueError, match=r"product\.of\('nope'\) is unknown; expected a matrix among \['W_hh', "):
        ba.RNN(2, 2, cell=of_none)(np.ones((2, 2, 2), "f"))
    for name in ("W_xh", "W_hh", "b_h"):
        with pytest.raises(
            ValueError, match=rf"own parameters \['{name}'\], which every cell has; expected other names"
        ):
            ba.RNN(2, 2, cell=cell(own_parameters=lambda self, H, name=name: {name: (H,)}))
    with pytest.raises(TypeError, match=r"own_parameters\(2\) of <cell 'odd'> is a list; expected a dictionary"):
        ba.RNN(2, 2, cell=cell(own_parameters=lambda self, H: ["U"]))
    with pytest.raises(ValueError, match=r"own parameters of shapes \{'U': 2\}; expected vectors"):
        ba.RNN(2, 2, cell=cell(own_parameters=lambda self, H: {"U": H}))


@pytest.mark.parametrize("options", [{}, {"members": 2}, {"bidirectional": True}, {"recurrent_dropout": 0.2}], ids=str)
def test_gradients_of_own_parameters_have_their_sizes(options):
    """Or arrays of other shapes than the parameters' would come out, and nobody say so."""

    def returned(found):
        attributes = {
            "own_parameters": lambda self, H: {"W": (H, H), "b": (H,)},
            "finish_": lambda self, backend, slopes, dz, dh, tape: found(dz, tape.h_before),
        }
        cell = type("Odd", (Residual,), {"name": "odd", **attributes})()
        rnn, seed = ba.RNN(3, 4, 2, cell=cell, **options), {"dropout_seed": 1} if "recurrent_dropout" in options else {}
        return rnn.loss_and_grad(np.ones((5, 6, 3), "f"), np.ones((5, 6, 2), "f"), **seed)[1].params

    for found, shape, name in (
        (lambda dz, h: {"W": (dz[..., :2], h), "b": dz}, 2, "W"),
        (lambda dz, h: {"W": (dz, h[..., :1]), "b": dz}, 1, "W"),
        (lambda dz, h: {"W": (dz, h), "b": dz[..., :3]}, 3, "b"),
        (lambda dz, h: {"W": (dz, h), "b": dz[:2]}, 4, "b"),
        (lambda dz, h: {"W": (dz, h[..., :1, :]), "b": dz}, 4, "W"),
    ):
        with pytest.raises(
            ValueError, match=rf"returned an array of shape \(.* {shape}\) for {name} .*; expected \(S, "
        ):
            returned(found)
    with pytest.raises(ValueError, match="returned a NoneType; expected a dictionary with those of "):
        returned(lambda dz, h: None)
    assert returned(lambda dz, h: {"W": (dz, h), "b": dz})["l0.W"].shape[-2:] == (4, 4)


def test_a_cell_without_a_step_says_which_it_lacks():
    nothing = type("Nothing", (ba.Cell,), {})()
    one_way = type("OneWay", (ba.equations.GRU,), {"name": "one way", "backward_": ba.Cell.backward_})()
    x = np.ones((2, 1, 2), "float32")
    with pytest.raises(TypeError, match=r"^Nothing has no forward_: see bptt_array\.Cell$"):
        ba.RNN(2, 3, cell=nothing)(x)
    rnn = ba.RNN(2, 3, cell=one_way)
    y, _ = rnn(x)
    with pytest.raises(TypeError, match=r"^OneWay has no backward_: see bptt_array\.Cell$"):
        rnn.loss_and_grad(x, y)


def test_a_forget_bias_may_be_all_that_the_dtype_holds():
    most = float(np.finfo("float32").max)
    bias = ba.RNN(2, 3, cell="lstm", init="orthogonal", forget_bias=most).params["l0.b_h"]
    assert bias.tolist() == [0] * 3 + [most] * 3 + [0] * 6
    with pytest.raises(ValueError, match=r"forget_bias=.*; expected a number that float32 can hold"):
        ba.RNN(2, 3, cell="lstm", forget_bias=1.1 * most)


def test_a_cell_has_the_name_of_its_class_and_an_lstm_made_by_hand_its_forget_gate():
    assert type("Mine", (ba.Cell,), {})().name == "Mine"
    ba.RNN(3, 4, cell=ba.equations.LSTM(), forget_bias=1.0)


@pytest.mark.parametrize("device", ["cpu", *cuda])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_own_parameters_are_of_the_dtype_of_the_network(device, dtype):
    """Whatever ``finish_`` made of them: on CUDA those of another were read as if they were of this one."""

    class Otherwise(Peephole):
        def finish_(self, backend, slopes, dz, dh, tape):
            found = super().finish_(backend, slopes, dz, dh, tape)
            other = backend.dtype("float64" if dtype == "float32" else "float32")
            return {name: backend.xp.astype(grad, other) for name, grad in found.items()}

    x = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(dtype)
    found = []
    for cell in (Peephole(), Otherwise()):
        backend = copy.copy(ba.backend.resolve(device))
        if device != "cpu":
            backend.persistent = False
        rnn = ba.RNN(3, 5, cell=cell, dtype=dtype, device=backend)
        _, grads, _ = rnn.loss_and_grad(rnn.asarray(x), rnn.asarray(np.ones((6, 2, 5))))
        assert {str(grad.dtype) for grad in grads.params.values()} == {dtype}
        found.append({name: rnn.backend.to_host(grad) for name, grad in grads.params.items()})
    for name, grad in found[0].items():
        np.testing.assert_allclose(found[1][name], grad, rtol=1e-5, atol=1e-6)


def test_a_saved_network_needs_its_own_cell_to_be_read(update_gate, tmp_path):
    rnn, path = ba.RNN(3, 5, 2, cell=update_gate(), num_layers=2), tmp_path / "model.safetensors"
    rnn.save(path)
    x = np.ones((4, 2, 3), "float32")
    assert np.array_equal(ba.RNN.load(path, cell=update_gate())(x)[0], rnn(x)[0])
    with pytest.raises(ValueError, match="written with the cell 'update gate', which is not in the library; give it"):
        ba.RNN.load(path)


@pytest.mark.parametrize("init", ["uniform", "orthogonal", "identity"])
def test_the_state_of_a_projected_lstm_is_narrower_than_its_units(init, tmp_path):
    E, L, T, N, I, H, P = 2, 3, 4, 5, 2, 8, 3  # noqa: E741
    rnn = ba.RNN(
        I, H, cell="lstm", proj_size=P, num_layers=L, bidirectional=True, members=E, init=init, dtype="float64"
    )
    assert {name: value.shape[2:] for name, value in rnn.params.items() if "l1" in name} == {
        "l1.W_xh": (4 * H, 2 * P),
        "l1.W_hh": (4 * H, P),
        "l1.b_h": (4 * H,),
        "l1.W_hr": (P, H),
    }
    if init != "uniform":
        for W in rnn.params["l0.W_hh"].reshape(-1, H, P):
            assert np.allclose(W.T @ W, np.eye(P), atol=1e-13)
    x = np.random.default_rng(0).standard_normal((T, N, I))
    y, state = rnn(x)
    assert y.shape == (T, E, N, 2 * P)
    assert (state.h.shape, state.c.shape) == ((L, 2, E, N, P), (L, 2, E, N, H))
    with pytest.raises(
        ValueError, match=r"state\.h has shape \(3, 2, 2, 5, 8\); expected \(L, D, E, N, P\) = \(3, 2, 2, 5, 3\)"
    ):
        rnn(x, ba.State(h=state.c, c=state.c))
    with pytest.raises(
        ValueError, match=r"state\.c has shape \(3, 2, 2, 5, 3\); expected \(L, D, E, N, H\) = \(3, 2, 2, 5, 8\)"
    ):
        rnn(x, ba.State(h=state.h, c=state.h))
    rnn.save(tmp_path / "model.safetensors")
    again = ba.RNN.load(tmp_path / "model.safetensors")
    assert again.config == rnn.config == ba.RNN(**rnn.config).config
    assert "proj_size=3" in repr(again)
    assert np.array_equal(again(x)[0], y)


def test_a_state_may_not_be_wider_than_the_units():
    wide = type("Wide", (ba.equations.LSTM,), {"name": "wide", "state_size": 5})()
    with pytest.raises(ValueError, match=r"<cell 'wide'> has state_size=5, but hidden_size=4; expected at most that"):
        ba.RNN(3, 4, cell=wide)


def test_a_cell_without_a_step_says_so():
    for half in ("forward_", "backward_"):
        unfinished = type("Unfinished", (ba.Cell,), {"slopes_": ba.Cell.slopes_})()
        with pytest.raises(TypeError, match=f"Unfinished has no {half}: see bptt_array.Cell"):
            getattr(unfinished, half)(None, {}, None)


def test_the_forget_bias_is_that_of_the_forget_gate_alone():
    plain, biased = (ba.RNN(3, 4, cell="lstm", num_layers=2, forget_bias=bias, dtype="float64") for bias in (0, 1.5))
    for name, value in biased.params.items():
        difference = value - plain.params[name]
        if name.endswith("b_h"):
            assert np.allclose(difference, np.repeat([0, 1.5, 0, 0], 4))
        else:
            assert not difference.any()


@pytest.mark.parametrize("init", ["orthogonal", "identity"])
@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3), ("tanh", 1), ("gru_reset_before", 3)])
def test_every_gate_has_a_recurrent_matrix_of_its_own(cell, gates, init):
    rnn = ba.RNN(3, 8, cell=cell, init=init, bidirectional=True, dtype="float64")
    matrices = [rnn.params[f"l0.{name}"].reshape(-1, 8, 8) for name in ("W_hh", "W_hn") if f"l0.{name}" in rnn.params]
    matrices = np.concatenate(matrices)
    assert len(matrices) == 2 * gates
    for k, W in enumerate(matrices):
        assert np.allclose(W @ W.T, np.eye(8), atol=1e-13)
        others = [other for n, other in enumerate(matrices) if n != k]
        assert init == "identity" or not any(np.allclose(W, other) for other in others)


def test_gates_that_saturate_are_exact_and_overflow_nowhere():
    """Sums of thousands: sigmoid is 0 or 1, and no warning is raised."""
    rnn = ba.RNN(1, 1, cell="lstm")
    rnn.params["l0.W_xh"][...] = np.array([[5000], [-5000], [5000], [5000]])
    for name in ("l0.W_hh", "l0.b_h"):
        rnn.params[name][...] = 0
    y, state, backward = rnn.forward(np.ones((3, 1, 1), "float32"))
    assert state.c.ravel().tolist() == [1]  # i = 1, f = 0, g = 1: the cell state is always new
    assert np.allclose(y.ravel(), np.tanh(1))
    grads = backward(np.ones_like(y), input_grad=True)
    assert all(np.isfinite(grad).all() for grad in [grads.x, *grads.params.values()])
