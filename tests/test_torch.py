"""The fourth oracle, where PyTorch is installed; weights that move there and back; and its meta device."""

import itertools
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_torch

import bptt_array as ba

pytestmark = needs_torch
T, N, I, H, O, P = 9, 4, 3, 6, 5, 4  # noqa: E741
LENGTHS = [9, 2, 5, 1]
CELLS = ("tanh", "relu", "lstm", "gru")
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For arrays this small torch's threads only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recurrent_module(cell, layers=1, bidirectional=False, dtype="float64", **more):
    import torch

    made = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(cell, torch.nn.RNN)
    more |= {} if cell in ("lstm", "gru") else {"nonlinearity": cell}
    torch.manual_seed(0)
    return made(I, H, layers, bidirectional=bidirectional, dtype=getattr(torch, dtype), **more)


def module(cell, layers=1, bidirectional=False, dtype="float64", bias=True, names=("rnn", "readout"), **more):
    """A module in torch as from_torch_state_dict takes it."""
    import torch

    recurrent = recurrent_module(cell, layers, bidirectional, dtype, bias=bias, **more)
    linear = torch.nn.Linear(
        (more.get("proj_size") or H) * (1 + bidirectional), O, bias=bias, dtype=getattr(torch, dtype)
    )
    return torch.nn.ModuleDict(dict(zip(names, (recurrent, linear), strict=True)))


def load(theirs, state_dict):
    import torch

    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in state_dict.items()}, strict=True)
    return theirs


def outputs(theirs, x):
    """Of a module from zero states, on the host."""
    import torch

    with torch.no_grad():
        return theirs["readout"](theirs["rnn"](torch.from_numpy(x))[0]).numpy()


@dataclass(frozen=True)
class Run:
    """Outputs, final states and gradients of one forward and backward pass, under common names."""

    arrays: dict

    def assert_near(self, other, tolerance):
        assert self.arrays.keys() == other.arrays.keys()
        for name, value in self.arrays.items():
            assert value.shape == other.arrays[name].shape, name
            assert np.max(np.abs(value - other.arrays[name])) <= tolerance * np.max(np.abs(value)), name


def inputs(cell, layers, bidirectional, dtype, h=H):
    """x, initial states, and random gradients of the outputs and of the final states."""
    rng = np.random.default_rng(0)
    states = ("h", "c") if cell == "lstm" else ("h",)
    drawn = {"x": rng.standard_normal((T, N, I)), "dy": rng.standard_normal((T, N, O))}
    for name in states:
        width = h if name == "h" else H
        drawn[name], drawn["d" + name] = rng.standard_normal((2, layers, 1 + bidirectional, N, width))
    return {name: value.astype(dtype) for name, value in drawn.items()}, states


def run_ours(rnn, given, states, lengths):
    y, last, backward = rnn.forward(given["x"], ba.State(**{name: given[name] for name in states}), lengths=lengths)
    dlast = ba.State(**{name: given["d" + name] for name in states})
    grads = backward(given["dy"], dlast, input_grad=True)
    arrays = {"y": y, "dx": grads.x}
    for name in states:
        arrays |= {f"last {name}": getattr(last, name), f"d initial {name}": getattr(grads.state, name)}
    return Run(arrays | grads.params)


def run_theirs(theirs, given, states, lengths):
    import torch

    x = torch.tensor(given["x"], requires_grad=True)
    flat = {name: (-1, N, given[name.removeprefix("d")].shape[-1]) for name in (*states, *[f"d{s}" for s in states])}
    initial = [torch.tensor(given[name].reshape(flat[name]), requires_grad=True) for name in states]
    valid = torch.ones((T, N), dtype=bool)
    packed = x
    if lengths is not None:
        valid = torch.arange(T)[:, None] < torch.tensor(lengths)
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    hidden, last = theirs["rnn"](packed, tuple(initial) if len(states) == 2 else initial[0])
    if lengths is not None:
        hidden, _ = torch.nn.utils.rnn.pad_packed_sequence(hidden, total_length=T)
    last = list(last) if len(states) == 2 else [last]
    y = theirs["readout"](hidden)
    loss = (y * torch.from_numpy(given["dy"]))[valid].sum()
    for name, value in zip(states, last, strict=True):
        loss = loss + (value * torch.from_numpy(given["d" + name].reshape(flat["d" + name]))).sum()
    loss.backward()
    arrays = {"y": (y * valid[..., None]).detach().numpy(), "dx": x.grad.numpy()}
    for name, first, value in zip(states, initial, last, strict=True):
        arrays |= {f"last {name}": value.detach().numpy(), f"d initial {name}": first.grad.numpy()}
    arrays = {
        name: a.reshape(given[name[-1]].shape) if "last" in name or "initial" in name else a
        for name, a in arrays.items()
    }
    return Run(arrays | gradients_under_our_names(theirs))


def gradients_under_our_names(theirs):
    """Either bias of torch has the gradient of their sum; of the GRU's third gate the second is another one."""
    recurrent, grads = theirs["rnn"], {}
    for k in range(recurrent.num_layers):
        sides = [f"l{k}", f"l{k}_reverse"][: 1 + recurrent.bidirectional]
        parts = {"W_xh": "weight_ih", "W_hh": "weight_hh", "b_h": "bias_ih", "b_hn": "bias_hh"}
        if not recurrent.bias:
            del parts["b_h"], parts["b_hn"]
        elif recurrent.mode != "GRU":
            del parts["b_hn"]
        parts |= {"W_hr": "weight_hr"} if recurrent.proj_size else {}
        for ours, part in parts.items():
            both = np.stack([getattr(recurrent, f"{part}_{side}").grad.numpy() for side in sides])
            both = both[:, -H:] if ours == "b_hn" else both
            grads[f"l{k}.{ours}"] = both if recurrent.bidirectional else both[0]
    linear = theirs["readout"]
    return grads | {"W_hy": linear.weight.grad.numpy(), "b_y": linear.bias.grad.numpy()}


@DTYPES
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_states_and_all_gradients_equal_torch(cell, layers, bidirectional, lengths, dtype, tolerance):
    theirs = module(cell, layers, bidirectional, dtype)
    given, states = inputs(cell, layers, bidirectional, dtype)
    rnn = ba.RNN.from_torch_state_dict(theirs.state_dict(), cell=cell)
    assert (rnn.cell, rnn.num_layers, rnn.bidirectional, rnn.dtype) == (cell, layers, bidirectional, dtype)
    run_theirs(theirs, given, states, lengths).assert_near(run_ours(rnn, given, states, lengths), tolerance)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # slower, no more
@DTYPES
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("layers", [1, 3])
def test_outputs_states_and_all_gradients_of_a_projected_lstm_equal_torch(
    layers, bidirectional, lengths, dtype, tolerance
):
    theirs = module("lstm", layers, bidirectional, dtype, proj_size=P)
    given, states = inputs("lstm", layers, bidirectional, dtype, P)
    rnn = ba.RNN.from_torch_state_dict(theirs.state_dict())
    assert (rnn.cell, rnn.hidden_size, rnn.proj_size, rnn.num_layers) == ("lstm", H, P, layers)
    run_theirs(theirs, given, states, lengths).assert_near(run_ours(rnn, given, states, lengths), tolerance)
    fresh = load(module("lstm", layers, bidirectional, dtype, proj_size=P), rnn.to_torch_state_dict())
    for name, value in theirs.state_dict().items():
        if "bias" not in name or "readout" in name:  # of which there the sum alone is kept
            assert np.array_equal(fresh.state_dict()[name], value), name
    again = ba.RNN.from_torch_state_dict(fresh.state_dict())
    assert again.config == rnn.config
    assert all(np.array_equal(again.params[name], value) for name, value in rnn.params.items())


def test_members_of_a_projected_lstm_are_torch_modules():
    ensemble = ba.RNN(I, H, O, cell="lstm", proj_size=P, members=2, num_layers=2, dtype="float64")
    given, states = inputs("lstm", 2, False, "float64", P)
    both = ba.State(**{name: np.stack([given[name]] * 2, axis=2) for name in states})
    y, last = ensemble(given["x"], both)
    for k in range(2):
        theirs = load(module("lstm", 2, proj_size=P), ensemble.member(k).to_torch_state_dict())
        expected = run_theirs(theirs, given, states, None).arrays
        for name, found in {"y": y[:, k], "last h": last.h[:, :, k], "last c": last.c[:, :, k]}.items():
            assert np.allclose(found, expected[name], rtol=1e-12, atol=1e-14), name


@DTYPES
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("cell", CELLS)
def test_without_biases_outputs_states_and_all_gradients_equal_torch(cell, bidirectional, dtype, tolerance):
    theirs = module(cell, 2, bidirectional, dtype)
    theirs["rnn"] = recurrent_module(cell, 2, bidirectional, dtype, bias=False)
    given, states = inputs(cell, 2, bidirectional, dtype)
    rnn = ba.RNN.from_torch_state_dict(theirs.state_dict(), cell=cell)
    assert not rnn.bias
    assert list(rnn.params)[-2:] == ["W_hy", "b_y"]
    run_theirs(theirs, given, states, None).assert_near(run_ours(rnn, given, states, None), tolerance)
    load(theirs, rnn.to_torch_state_dict())


def word_model(tied=False, dtype="float64", **more):
    """An embedding, a layer and a readout of words in torch; and words, targets."""
    import torch

    V, M = 11, H if tied else 4
    torch.manual_seed(0)
    like = {"dtype": getattr(torch, dtype)}
    made = {
        "embedding": torch.nn.Embedding(V, M, **like),
        "rnn": torch.nn.LSTM(M, H, 2, **more, **like),
        "readout": torch.nn.Linear(H * (1 + more.get("bidirectional", False)), V, **like),
    }
    if tied:
        made["readout"].weight = made["embedding"].weight
    rng = np.random.default_rng(1)
    return torch.nn.ModuleDict(made), rng.integers(0, V, (T, N)), rng.integers(0, V, (T, N))


@DTYPES
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"tied": True}], ids=str)
def test_a_word_model_and_all_its_gradients_equal_those_of_torch(options, dtype, tolerance):
    import torch

    theirs, x, target = word_model(dtype=dtype, **options)
    tied = options.get("tied", False)
    rnn = ba.RNN.from_torch_state_dict(theirs.state_dict(), output="softmax", tied=tied)
    assert (rnn.input_size, rnn.embedding_size, rnn.output_size, rnn.tied) == (11, H if tied else 4, 11, tied)
    loss, grads, _ = rnn.loss_and_grad(x, target, "cross_entropy")
    v = theirs["readout"](theirs["rnn"](theirs["embedding"](torch.from_numpy(x)))[0])
    expected = torch.nn.functional.cross_entropy(v.reshape(-1, v.shape[-1]), torch.from_numpy(target).reshape(-1))
    expected.backward()
    of_torch = gradients_under_our_names(theirs) | {"W_emb": theirs["embedding"].weight.grad.numpy()}
    if tied:
        del of_torch["W_hy"]
    Run({"loss": np.asarray(loss), "y": rnn(x)[0], **grads.params}).assert_near(
        Run({"loss": expected.detach().numpy(), "y": torch.softmax(v, -1).detach().numpy(), **of_torch}), tolerance
    )
    state_dict = rnn.to_torch_state_dict()
    assert all(
        np.array_equal(value, theirs.state_dict()[name].numpy())
        for name, value in state_dict.items()
        if "bias_" not in name
    )
    load(word_model(dtype=dtype, **options)[0], state_dict)
    back = ba.RNN.from_torch_state_dict(state_dict, tied=tied, output="softmax")
    assert back.config == rnn.config
    assert all(np.array_equal(back.params[name], rnn.params[name]) for name in rnn.params)


def test_what_is_not_tied_in_torch_is_said():
    state_dict = word_model()[0].state_dict()
    for change, says in (
        ({}, r"state_dict\['readout.weight'\] and state_dict\['embedding.weight'\] are not the same"),
        ({"embedding.weight": None}, r"state_dict has no 'embedding.weight'"),
    ):
        given = {name: value for name, value in (state_dict | change).items() if value is not None}
        with pytest.raises(ValueError, match=rf"tied=True, but {says}; leave tied=False"):
            ba.RNN.from_torch_state_dict(given, tied=True)
        ba.RNN.from_torch_state_dict(given)


@DTYPES
def test_a_loss_equals_that_of_torch(dtype, tolerance):
    import torch

    theirs = module("tanh", dtype=dtype)
    given, _ = inputs("tanh", 1, False, dtype)
    target = np.random.default_rng(1).integers(0, O, (T, N))
    rnn = ba.RNN.from_torch_state_dict(theirs.state_dict(), output="softmax")
    loss, grads, _ = rnn.loss_and_grad(given["x"], target, "cross_entropy")
    y = theirs["readout"](theirs["rnn"](torch.from_numpy(given["x"]))[0])
    expected = torch.nn.functional.cross_entropy(y.reshape(-1, O), torch.from_numpy(target).reshape(-1))
    expected.backward()
    Run({"loss": np.asarray(loss), **grads.params}).assert_near(
        Run({"loss": expected.detach().numpy(), **gradients_under_our_names(theirs)}), tolerance
    )


#: Options of a cross-entropy, with targets that go with them.
OF_CLASSES = [
    ({"class_weights": weights, "ignore_index": ignored, "label_smoothing": smoothing}, target)
    for weights, smoothing in itertools.product((None, (0.5, 0.0, 2.0, 1.0)), (0.0, 0.1, 1.0))
    for ignored, target in ((None, "classes"), (-100, "classes"), (2, "classes"), (None, "probabilities"))
]


def compare_with_torch(loss, criterion, output, target, reduction):
    """The loss of (6, 4) steps with 4 outputs, and its gradient as every state has a part in it."""
    import torch

    x = np.random.default_rng(2).standard_normal((6, 4, I))
    rnn = ba.RNN(I, H, 4, output=output, dtype="float64", seed=1)
    h = ba.RNN(I, H, dtype="float64", seed=1).load_params({k: v for k, v in rnn.params.items() if "y" not in k})(x)[0]
    logits = torch.from_numpy(h @ rnn.params["W_hy"].T + rnn.params["b_y"]).requires_grad_()
    y = torch.tanh(logits) if output == "tanh" else logits
    theirs = criterion(y.reshape(-1, 4), torch.from_numpy(target.reshape(-1, *target.shape[2:])))
    theirs.backward()
    value, grads, _ = rnn.loss_and_grad(x, target, loss, reduction=reduction)
    assert float(value) == pytest.approx(theirs.item(), rel=1e-13, abs=1e-14)
    assert float(rnn.loss(x, target, loss, reduction=reduction)[0]) == pytest.approx(
        theirs.item(), rel=1e-13, abs=1e-14
    )
    dv = logits.grad.numpy()
    np.testing.assert_allclose(grads.params["b_y"], dv.sum((0, 1)), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(grads.params["W_hy"], np.einsum("tno,tnh->oh", dv, h), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("output", ["identity", "tanh"])
@pytest.mark.parametrize(
    ("loss", "theirs"),
    [
        ("torch_mse", ("MSELoss", {})),
        ("mae", ("L1Loss", {})),
        ("huber", ("HuberLoss", {})),
        (ba.losses.Huber(0.3), ("HuberLoss", {"delta": 0.3})),
    ],
    ids=str,
)
def test_a_regression_loss_equals_that_of_torch(loss, theirs, output):
    import torch

    name, options = theirs
    compare_with_torch(
        loss, getattr(torch.nn, name)(**options), output, np.random.default_rng(1).standard_normal((6, 4, 4)), "mean"
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("options", "target"), OF_CLASSES, ids=str)
def test_a_cross_entropy_with_options_equals_that_of_torch(options, target, reduction):
    import torch

    rng, (weights, ignored, smoothing) = np.random.default_rng(1), options.values()
    given = rng.integers(0, 4, (6, 4)) if target == "classes" else rng.dirichlet(np.ones(4), (6, 4))
    if ignored is not None:
        given[rng.random((6, 4)) < 0.4] = ignored
    criterion = torch.nn.CrossEntropyLoss(
        weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
        ignore_index=-100 if ignored is None else ignored,
        label_smoothing=smoothing,
        reduction=reduction,
    )
    compare_with_torch(ba.losses.CrossEntropy(**options), criterion, "softmax", given, reduction)


def test_a_mean_over_nothing_is_0_where_that_of_torch_is_nan():
    import torch

    nothing = np.full((2, 3), -100)
    rnn = ba.RNN(I, H, O, output="softmax")
    loss, grads, _ = rnn.loss_and_grad(
        np.ones((2, 3, I), "float32"), nothing, ba.losses.CrossEntropy(ignore_index=-100)
    )
    assert loss == grads.steps == 0
    assert not any(grad.any() for grad in grads.params.values())
    assert torch.nn.functional.cross_entropy(torch.ones(6, O), torch.from_numpy(nothing.reshape(-1))).isnan()


# ---- weights, there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_weights_come_back_from_torch_the_same(cell, layers, bidirectional, dtype):
    rnn = ba.RNN(I, H, O, cell=cell, num_layers=layers, bidirectional=bidirectional, dtype=dtype, seed=3)
    state_dict = load(module(cell, layers, bidirectional, dtype), rnn.to_torch_state_dict()).state_dict()
    back = ba.RNN.from_torch_state_dict(state_dict, cell=cell, seed=3)
    assert back.config == rnn.config
    assert all(np.array_equal(back.params[name], rnn.params[name]) for name in rnn.params)
    assert all(back.params[name].dtype == dtype for name in rnn.params)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_a_module_that_was_here_gives_the_same_outputs(cell, layers, bidirectional):
    theirs = module(cell, layers, bidirectional)
    x = inputs(cell, layers, bidirectional, "float64")[0]["x"]
    there_and_back = ba.RNN.from_torch_state_dict(theirs.state_dict(), cell=cell).to_torch_state_dict()
    fresh = module(cell, layers, bidirectional)
    for value in fresh.parameters():
        value.data.fill_(9.0)  # what strict loading has to replace, all of it
    again = load(fresh, there_and_back)
    assert np.max(np.abs(outputs(again, x) - outputs(theirs, x))) <= 1e-14


def running_sum(dtype):
    x = np.random.default_rng(5).standard_normal((T, N, I)).astype(dtype)
    return x, np.repeat(np.cumsum(x.sum(-1, keepdims=True), axis=0), O, axis=-1)


@pytest.mark.parametrize("cell", CELLS)
def test_a_network_trained_here_says_the_same_in_torch(cell):
    x, target = running_sum("float32")
    forget_bias = 1.0 if cell == "lstm" else 0.0
    rnn = ba.RNN(I, H, O, cell=cell, num_layers=2, bidirectional=True, init="orthogonal", forget_bias=forget_bias)
    optimizer, losses = ba.Adam(1e-2), []
    for _ in range(30):
        loss, grads, _ = rnn.loss_and_grad(x, target)
        optimizer.update(rnn.params, ba.clip_by_global_norm(grads.params, 1.0))
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    theirs = load(module(cell, 2, True, "float32"), rnn.to_torch_state_dict())
    y = rnn(x)[0]
    assert np.max(np.abs(outputs(theirs, x) - y)) <= 1e-6 * np.max(np.abs(y))


@pytest.mark.parametrize("cell", CELLS)
def test_a_network_trained_in_torch_says_the_same_here(cell):
    import torch

    x, target = running_sum("float32")
    theirs = module(cell, 2, True, "float32")
    optimizer, losses = torch.optim.Adam(theirs.parameters(), 1e-2), []
    for _ in range(30):
        optimizer.zero_grad()
        y = theirs["readout"](theirs["rnn"](torch.from_numpy(x))[0])
        loss = ((y - torch.from_numpy(target)) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    y = ba.RNN.from_torch_state_dict(theirs.state_dict(), cell=cell)(x)[0]
    assert np.max(np.abs(outputs(theirs, x) - y)) <= 1e-6 * np.max(np.abs(y))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # slower, no more
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("cell", "more"), [*((cell, {}) for cell in CELLS), ("lstm", {"proj_size": P})], ids=str)
def test_a_module_without_biases_is_a_network_without(cell, more, bidirectional):
    theirs = module(cell, 2, bidirectional, bias=False, **more)
    x = inputs(cell, 2, bidirectional, "float64")[0]["x"]
    rnn = ba.RNN.from_torch_state_dict(theirs.state_dict(), cell=cell)
    assert rnn.proj_size == more.get("proj_size")
    assert {name: np.any(value) for name, value in rnn.params.items() if "b_" in name} == {"b_y": False}
    assert rnn.to_torch_state_dict().keys() == theirs.state_dict().keys() | {"readout.bias"}
    assert np.max(np.abs(rnn(x)[0] - outputs(theirs, x))) <= 1e-14


def test_a_recurrent_module_alone_is_a_network_without_a_readout():
    import torch

    theirs = recurrent_module("gru", layers=2)
    rnn = ba.RNN.from_torch_state_dict(theirs.state_dict(), recurrent_prefix="")
    x = inputs("gru", 2, False, "float64")[0]["x"]
    assert rnn.output_size is None
    assert np.max(np.abs(rnn(x)[0] - theirs(torch.from_numpy(x))[0].detach().numpy())) <= 1e-14
    assert rnn.to_torch_state_dict("").keys() == theirs.state_dict().keys()


def test_two_weights_have_two_names():
    rnn = ba.RNN(5, 4, 5, embedding_size=4)
    for prefixes in (("", "", ""), ("rnn.", "x.", "x.")):
        with pytest.raises(
            ValueError, match=r"readout_prefix and embedding_prefix are both .*; expected different ones"
        ):
            rnn.to_torch_state_dict(*prefixes)
    assert len(rnn.to_torch_state_dict("", "", "embedding.")) == 4 + 2 + 1  # as it says
    assert len(ba.RNN(5, 4, embedding_size=4).to_torch_state_dict("", "", "")) == 4 + 1  # there is no readout


def test_modules_may_have_any_names():
    import torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.ModuleDict({"lstm": recurrent_module("lstm")})
            self.head = torch.nn.Linear(H, O, dtype=torch.float64)

    prefixes = {"recurrent_prefix": "encoder.lstm.", "readout_prefix": "head."}
    rnn = ba.RNN.from_torch_state_dict(Model().state_dict(), **prefixes)
    load(Model(), rnn.to_torch_state_dict(**prefixes))
    with pytest.raises(ValueError, match=r"say with recurrent_prefix='encoder\.lstm\.' and readout_prefix=…"):
        ba.RNN.from_torch_state_dict(Model().state_dict())


def test_tracked_parameters_will_do_and_are_copied():
    theirs = module("tanh")
    rnn = ba.RNN.from_torch_state_dict(dict(theirs.named_parameters()))
    before = {name: value.copy() for name, value in rnn.params.items()}
    for value in theirs.parameters():
        value.data.fill_(9.0)
    assert all(np.array_equal(before[name], rnn.params[name]) for name in before)
    given = rnn.to_torch_state_dict()
    for value in given.values():
        value[...] = 7.0
    assert all(np.array_equal(before[name], rnn.params[name]) for name in before)


def test_each_member_of_an_ensemble_can_go_to_torch():
    ensemble = ba.RNN(I, H, O, cell="gru", members=3, dtype="float64")
    x = inputs("gru", 1, False, "float64")[0]["x"]
    y = ensemble(x)[0]
    for k in range(3):
        theirs = load(module("gru"), ensemble.member(k).to_torch_state_dict())
        assert np.max(np.abs(outputs(theirs, x) - y[:, k])) <= 1e-14


def test_options_that_weights_do_not_say_can_be_given():
    state_dict = module("lstm", 2).state_dict()
    options = {"output": "softmax", "readout": "last", "dropout": 0.5, "recurrent_dropout": 0.25, "time_major": False}
    rnn = ba.RNN.from_torch_state_dict(state_dict, seed=3, **options)
    assert rnn.config.items() >= {**options, "seed": 3}.items()
    assert rnn(np.ones((N, T, I)))[0].shape == (N, O)


def test_weights_on_another_backend_go_there_and_back():
    import torch

    rnn = ba.RNN(I, H, O, cell="lstm", device=ba.Backend(torch, "cpu"))
    state_dict = rnn.to_torch_state_dict()
    assert all(type(value) is np.ndarray for value in state_dict.values())
    back = ba.RNN.from_torch_state_dict(state_dict, device=ba.Backend(torch, "cpu"))
    assert all(torch.equal(back.params[name], rnn.params[name]) for name in rnn.params)


def test_state_dicts_need_no_torch():
    code = (
        "import sys, numpy as np, bptt_array as ba; "
        "rnn = ba.RNN(3, 4, 2, cell='gru', num_layers=2, bidirectional=True); "
        "back = ba.RNN.from_torch_state_dict(rnn.to_torch_state_dict()); "
        "assert all(np.array_equal(back.params[name], rnn.params[name]) for name in rnn.params); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("change", [lambda a: a.to("meta"), lambda a: a.bfloat16()], ids=["meta", "bfloat16"])
def test_tensors_that_numpy_cannot_read_are_said_to_be_so(change):
    state_dict = module("lstm").state_dict()
    state_dict["rnn.weight_ih_l0"] = change(state_dict["rnn.weight_ih_l0"])
    with pytest.raises(TypeError, match=r"state_dict\['rnn\.weight_ih_l0'\] cannot be read .*; expected .* on the CPU"):
        ba.RNN.from_torch_state_dict(state_dict)


def test_a_module_is_no_state_dict():
    with pytest.raises(TypeError, match=r"state_dict is a RNN; expected a mapping: use module\.state_dict\(\)"):
        ba.RNN.from_torch_state_dict(recurrent_module("tanh"))


# ---- optimizers, and a device with nothing to read --------------------------------------------------------


#: Ours, what it is in torch, and settings that both know.
OPTIMIZERS = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adam", {}),
    ("AdamW", {}),
    ("AdamW", {"eps": 1e-3, "weight_decay": 0.5}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.9, "eps": 1e-3, "momentum": 0.9}),
    ("RMSprop", {"alpha": 0.9, "centered": True}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
]


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS, ids=[f"{kind}{settings}" for kind, settings in OPTIMIZERS])
def test_a_thousand_updates_are_those_of_torch_to_rounding(kind, settings):
    """Of several shapes, with a learning rate that changes and clipping; weights join later, and some do not decay."""
    import torch

    rng = np.random.default_rng(0)
    shapes = {"l0.W_hh": (3, 4), "l0.b_h": (5,), "V": (2, 1, 3), "c": (), "first": (1, 1), "late": (2, 2)}
    params = {name: np.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    ours = getattr(ba, kind)(lr=0.01, **settings)
    optimizer = getattr(torch.optim, kind)([theirs["first"]], lr=0.01, **settings)
    stay = ("l0.b_h", "c") if kind == "AdamW" else ()

    def join(names):
        optimizer.add_param_group({"params": [theirs[name] for name in names if name not in stay]})
        if kind == "AdamW" and set(stay) & set(names):
            optimizer.add_param_group({"params": [theirs[name] for name in stay], "weight_decay": 0.0})

    join([name for name in shapes if name not in ("first", "late")])
    if stay:
        ours.no_decay = ("b_h", "c")
    there, worst = [name for name in shapes if name != "late"], 0.0
    for step in range(1000):
        if step == 300:
            there.append("late")
            join(["late"])
        ours.lr = 0.01 * (1 + np.sin(step / 50))
        for group in optimizer.param_groups:
            group["lr"] = ours.lr
        grads = {name: np.asarray(rng.standard_normal(shapes[name]) + 0.3) for name in there}
        grads["V"][0] *= step % 7 == 0
        clipped = ba.clip_by_global_norm(grads, 5.0)
        if step < 5:
            for name, grad in grads.items():
                theirs[name].grad = torch.tensor(grad)
            norm = torch.nn.utils.clip_grad_norm_([theirs[name] for name in there], 5.0)
            assert np.isclose(ba.global_norm(grads), norm.item(), rtol=1e-13)
            for name in there:  # torch divides by the norm + 1e-6
                assert np.allclose(clipped[name], theirs[name].grad.numpy(), rtol=1e-6, atol=1e-8)
        for name in there:
            theirs[name].grad = torch.tensor(clipped[name])
        optimizer.step()
        ours.update({name: params[name] for name in there}, clipped)
        worst = max(worst, *(np.abs(params[name] - theirs[name].detach().numpy()).max() for name in there))
    assert worst < 1e-13


def test_weight_decay_is_not_rounded_away_by_itself():
    """In float32 torch multiplies by 1 - lr * weight_decay, rounded to a float32; ours goes with the step."""
    import torch

    rng = np.random.default_rng(0)
    start, lr, decay = rng.uniform(0.5, 1.0, 20_000).astype("float32"), 1e-5, 0.005
    narrow, wide, theirs = {"a": start.copy()}, {"a": start.astype("float64")}, torch.nn.Parameter(torch.tensor(start))
    ours = [ba.AdamW(lr, weight_decay=decay) for _ in range(2)]
    optimizer = torch.optim.AdamW([theirs], lr, weight_decay=decay)
    for _ in range(200):
        grad = rng.standard_normal(start.shape).astype("float32")
        theirs.grad = torch.tensor(grad)
        optimizer.step()
        ours[0].update(narrow, {"a": grad})
        ours[1].update(wide, {"a": grad.astype("float64")})
    decayed = 200 * lr * decay * float(np.mean(wide["a"]))
    errors = [abs(float(np.mean(found - wide["a"]))) for found in (narrow["a"], theirs.detach().numpy())]
    assert errors[0] < 0.02 * decayed
    assert errors[1] > 0.1 * decayed


NETWORKS = [
    {},
    {"cell": "relu", "time_major": False},
    {"cell": "lstm"},
    {"cell": "gru", "num_layers": 2, "dropout": 0.5},
    {"cell": "lstm", "bidirectional": True, "recurrent_dropout": 0.5},
    {"cell": "gru", "members": 2},
    {"cell": "lstm", "num_layers": 2, "bidirectional": True, "members": 2, "dropout": 0.5, "recurrent_dropout": 0.5},
    {"embedding_size": 4},
    {"cell": "lstm", "reverse": True, "members": 2},
    {"cell": "gru", "bias": False, "bidirectional": True},
    {"embedding_size": 2 * H, "tied": True, "bidirectional": True, "members": 2},
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: ",".join(map(str, network.values())) or "plain")
@pytest.mark.parametrize("readout", ["every", "last"])
@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("lengths", [None, [5, 0, 3]])
def test_a_whole_training_step_runs_on_the_meta_device(network, readout, tokens, lengths):
    """Arrays there have shapes and no values: whoever reads one, or branches on one, fails."""
    tokens = tokens or "embedding_size" in network
    import torch

    backend = ba.Backend(torch, "meta")
    backend.segment_bytes = 2 * 3 * H * 4
    O_ = I if network.get("tied") else O
    rnn = ba.RNN(I, H, O_, output="softmax", readout=readout, device=backend, **network)
    lead = (5, 3) if network.get("time_major", True) else (3, 5)
    x = np.zeros(lead, dtype="int64") if tokens else np.zeros((*lead, I), dtype="float32")
    target = np.zeros(lead if readout == "every" else 3, dtype="int64")
    optimizer, state = ba.Adam(), None
    truncate = None if rnn.bidirectional or rnn.reverse else 3
    for step in range(2):
        loss, grads, state = rnn.loss_and_grad(
            x,
            target,
            "cross_entropy",
            state=state,
            lengths=lengths,
            truncate=truncate,
            input_grad=not tokens,
            dropout_seed=step,
        )
        optimizer.update(rnn.params, ba.clip_by_global_norm(grads.params, 1.0))
    y, _, backward = rnn.forward(rnn.asarray(x), state, lengths=lengths, dropout_seed=2)
    backward(y, state)
    assert loss.device.type == "meta"
    with pytest.raises(RuntimeError):
        loss.sum().item()


def test_the_truncations_of_the_readme_are_those_of_the_torch_code_beside_them():
    import torch

    page = Path(ba.schedules.__file__).with_name("README.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- in torch -->\n```py\n(.*?)```", page, re.DOTALL)[1]
    T, N, H = 65, 3, 5
    rng = np.random.default_rng(0)
    rnn = ba.RNN(2, H, 2, dtype="float64")
    x, target = rng.standard_normal((T, N, 2)), rng.standard_normal((T, N, 2))
    layer, linear = torch.nn.RNN(2, H).double(), torch.nn.Linear(H, 2).double()
    state = {name: torch.from_numpy(value) for name, value in rnn.to_torch_state_dict("0.", "1.").items()}
    torch.nn.ModuleList([layer, linear]).load_state_dict(state)
    names = {"x": torch.from_numpy(x), "target": torch.from_numpy(target), "layer": layer, "linear": linear}
    names |= {"torch": torch, "T": T, "N": N, "H": H, "ended": [False] * N}
    names["squared_error"] = lambda y, target: 0.5 * ((y - target) ** 2).sum()
    torch.set_default_dtype(torch.float64)
    try:
        for part, truncate in zip(code.split("\n\n"), (20, (5, 20)), strict=True):
            layer.zero_grad()
            linear.zero_grad()
            exec(part, names)
            _, grads, _ = rnn.loss_and_grad(x, target, reduction="sum", truncate=truncate)
            theirs = {"l0.W_xh": layer.weight_ih_l0, "l0.W_hh": layer.weight_hh_l0, "l0.b_h": layer.bias_ih_l0}
            theirs |= {"W_hy": linear.weight, "b_y": linear.bias}
            for name, parameter in theirs.items():
                assert np.allclose(grads.params[name], parameter.grad.numpy(), rtol=1e-9, atol=1e-12), (truncate, name)
    finally:
        torch.set_default_dtype(torch.float32)


# ---- modules that compute their weights, or are a single cell ---------------------------------------------


@pytest.mark.parametrize("where", ["", "decoder."])
@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_the_weights_of_a_single_cell_come_as_the_error_says(kind, where):
    import torch

    theirs = getattr(torch.nn, kind)(3, 4)
    state_dict = {where + name: value for name, value in theirs.state_dict().items()}
    for prefix in ("rnn.", where):
        with pytest.raises(ValueError, match=rf"state_dict has '{where}weight_ih', of a torch\.nn\.RNNCell") as error:
            ba.RNN.from_torch_state_dict(state_dict, recurrent_prefix=prefix)
    rename, prefix = re.search(r"rename them, (.*), with recurrent_prefix=(.*)", str(error.value)).groups()
    renamed = eval(rename, {"re": re, "state_dict": state_dict})
    rnn = ba.RNN.from_torch_state_dict(renamed, recurrent_prefix=eval(prefix))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 3)).astype("f"))
    found, expected = rnn(x.numpy()[None])[1].h[0, 0], theirs(x)
    expected = expected[0] if kind == "LSTMCell" else expected
    assert np.allclose(found, expected.detach().numpy(), atol=1e-6)


def computed(how):
    """A function ``(layer, name)`` that makes a weight one that torch computes from others."""
    import torch
    import torch.nn.utils.prune

    utils = torch.nn.utils
    if how == "pruned":
        return lambda layer, name: utils.prune.random_unstructured(layer, name, 0.3)
    return getattr(utils, how.removeprefix("old ")) if how.startswith("old ") else getattr(utils.parametrizations, how)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, of what is deprecated there
@pytest.mark.parametrize(
    "at", [("rnn", "weight_hh_l1"), ("rnn", "weight_ih_l0_reverse"), ("readout", "weight")], ids="-".join
)
@pytest.mark.parametrize(
    "how", ["weight_norm", "orthogonal", "spectral_norm", "old weight_norm", "old spectral_norm", "pruned"]
)
def test_weights_that_a_module_computes_come_as_the_error_says(how, at):
    import torch

    theirs = module("lstm", layers=2, bidirectional=True)
    computed(how)(theirs.get_submodule(at[0]), at[1])
    with pytest.raises(ValueError, match="make that a plain weight of the same values first") as error:
        ba.RNN.from_torch_state_dict(theirs.state_dict())
    call = re.search(r"first, (.*), then take module\.state_dict\(\)", str(error.value))[1]
    assert call.endswith(f"(module.get_submodule({at[0]!r}), {at[1]!r})")
    eval(call, {"torch": torch, "module": theirs})
    rnn = ba.RNN.from_torch_state_dict(theirs.state_dict())
    x = np.random.default_rng(0).standard_normal((5, 2, rnn.input_size))
    assert np.allclose(rnn(x)[0], outputs(theirs, x), atol=1e-12)


# ---- cells that PyTorch has no module for -------------------------------------------------------------------


def _gru_reset_before(torch, z, W, h, c):
    H = h.shape[-1]
    r, u = torch.sigmoid(z[:, : 2 * H] + h @ W["W_hh"].T).chunk(2, -1)
    n = torch.tanh(z[:, 2 * H :] + (r * h) @ W["W_hn"].T)
    return (1 - u) * n + u * h, c


def _peephole(torch, z, W, h, c):
    (z_i, z_f, z_g, z_o), (p_i, p_f, p_o) = (z + h @ W["W_hh"].T).chunk(4, -1), W["p"].chunk(3)
    c = torch.sigmoid(z_f + p_f * c) * c + torch.sigmoid(z_i + p_i * c) * torch.tanh(z_g)
    return torch.sigmoid(z_o + p_o * c) * torch.tanh(c), c


def _minimal_gate(torch, z, W, h, c):
    z_f, z_a = z.chunk(2, -1)
    f = torch.sigmoid(z_f + h @ W["W_hh"].T)
    return (1 - f) * h + f * torch.tanh(z_a + (f * h) @ W["W_ha"].T), c


def _deep_transition(torch, z, W, h, c):
    return torch.tanh(z + h @ W["W_hh"].T + torch.tanh(h @ W["U"].T) @ W["V"].T), c


STEPS = {
    "gru_reset_before": _gru_reset_before,
    "peephole": _peephole,
    "minimal gate": _minimal_gate,
    "deep transition": _deep_transition,
}


def steps_in_torch(rnn, given, states, lengths):
    """A run of autograd's over the step of :data:`STEPS`, sequence by sequence; one direction, any layers."""
    import torch

    params = {name: torch.tensor(value, requires_grad=True) for name, value in rnn.params.items()}
    x = torch.tensor(given["x"], requires_grad=True)
    first = {name: torch.tensor(given[name], requires_grad=True) for name in states}
    step, last = STEPS[rnn.architecture.cell.name], {name: [] for name in states}
    hidden = [[x[t, n : n + 1] for t in range(T if lengths is None else lengths[n])] for n in range(N)]
    for k in range(rnn.num_layers):
        W = {name[3:]: value for name, value in params.items() if name.startswith(f"l{k}.")}
        ends, above = [], []
        for n in range(N):
            h, c = (first[name][k, 0, n : n + 1] if name in first else None for name in ("h", "c"))
            rows = []
            for below in hidden[n]:
                h, c = step(torch, below @ W["W_xh"].T + W["b_h"], W, h, c)
                rows.append(h)
            ends.append((h, c))
            above.append(rows)
        hidden = above
        for of_state, name in enumerate(states):
            last[name].append(torch.cat([end[of_state] for end in ends])[None])
    y = torch.zeros(T, N, O, dtype=torch.float64)
    for n, rows in enumerate(hidden):
        y[: len(rows), n] = torch.cat(rows) @ params["W_hy"].T + params["b_y"]
    last = {name: torch.stack(value) for name, value in last.items()}
    valid = torch.tensor([[t < len(rows) for rows in hidden] for t in range(T)])
    loss = (y * torch.from_numpy(given["dy"]))[valid].sum()
    for name in states:
        loss = loss + (last[name] * torch.from_numpy(given["d" + name])).sum()
    loss.backward()
    arrays = {"y": y.detach().numpy(), "dx": x.grad.numpy()}
    for name in states:
        arrays |= {f"last {name}": last[name].detach().numpy(), f"d initial {name}": first[name].grad.numpy()}
    return Run(arrays | {name: value.grad.numpy() for name, value in params.items()})


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("name", STEPS)
def test_cells_that_torch_has_not_have_the_gradients_of_its_autograd(name, lengths):
    from cells_of_users import CELLS_OF_USERS

    rnn = ba.RNN(
        I, H, O, cell=CELLS_OF_USERS[name]() if name in CELLS_OF_USERS else name, num_layers=2, dtype="float64"
    )
    rng = np.random.default_rng(1)
    for value in rnn.params.values():
        value[...] = rng.standard_normal(value.shape) * 0.5
    given, states = inputs("lstm" if rnn.architecture.cell.has_c else "gru", 2, False, "float64")
    run_ours(rnn, given, states, lengths).assert_near(steps_in_torch(rnn, given, states, lengths), 1e-11)
