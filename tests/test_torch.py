"""The fourth oracle, where PyTorch is installed; and its meta device, on which nothing can be read."""

import numpy as np
import pytest
from conftest import needs_torch

import bptt_array as ba

pytestmark = needs_torch
T, N, I, H, O = 9, 4, 3, 6, 5  # noqa: E741


def both(cell, dtype, seed=0):
    """The same network here and in torch, and inputs for it."""
    import torch

    rng = np.random.default_rng(seed)
    rnn = ba.RNN(I, H, O, cell=cell, output="softmax", dtype=dtype, seed=seed)
    layer = torch.nn.RNN(I, H, nonlinearity=cell, dtype=getattr(torch, dtype))
    linear = torch.nn.Linear(H, O, dtype=getattr(torch, dtype))
    weights = {"weight_ih_l0": "l0.W_xh", "weight_hh_l0": "l0.W_hh", "bias_ih_l0": "l0.b_h"}
    with torch.no_grad():
        for theirs, ours in weights.items():
            getattr(layer, theirs).copy_(torch.from_numpy(rnn.params[ours]))
        layer.bias_hh_l0.zero_()
        linear.weight.copy_(torch.from_numpy(rnn.params["W_hy"]))
        linear.bias.copy_(torch.from_numpy(rnn.params["b_y"]))
    x = rng.standard_normal((T, N, I)).astype(dtype)
    h_0 = rng.standard_normal((1, N, H)).astype(dtype)
    return rnn, layer, linear, x, h_0, rng


def compare(rnn, grads, layer, linear, x, h_0, tolerance):
    pairs = {
        "l0.W_xh": layer.weight_ih_l0,
        "l0.W_hh": layer.weight_hh_l0,
        "l0.b_h": layer.bias_ih_l0,
        "W_hy": linear.weight,
        "b_y": linear.bias,
    }
    for name, theirs in pairs.items():
        close(grads.params[name], theirs.grad, tolerance)
    close(grads.x, x.grad, tolerance)
    close(grads.state.h[0], h_0.grad, tolerance)


def close(ours, theirs, tolerance):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.max(np.abs(ours - theirs)) <= tolerance * np.max(np.abs(theirs))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
@pytest.mark.parametrize("cell", ["tanh", "relu"])
def test_outputs_loss_and_gradients_equal_torch(cell, dtype, tolerance):
    import torch

    rnn, layer, linear, x, h_0, rng = both(cell, dtype)
    target = rng.integers(0, O, (T, N))
    loss, grads, state = rnn.loss_and_grad(x, target, "cross_entropy", state=ba.State(h=h_0[None]), input_grad=True)
    tx, th = torch.tensor(x, requires_grad=True), torch.tensor(h_0, requires_grad=True)
    hs, last = layer(tx, th)
    v = linear(hs)
    theirs = torch.nn.functional.cross_entropy(v.reshape(-1, O), torch.from_numpy(target).reshape(-1))
    theirs.backward()
    close(np.asarray(loss), theirs, tolerance)
    close(state.h[0], last, tolerance)
    close(rnn(x, ba.State(h=h_0[None]))[0], torch.softmax(v, -1), tolerance)
    compare(rnn, grads, layer, linear, tx, th, tolerance)


def test_lengths_equal_packed_sequences_of_torch():
    import torch

    rnn, layer, linear, x, h_0, rng = both("tanh", "float64")
    lengths = [9, 2, 5, 1]
    dy, dlast = rng.standard_normal((T, N, O)), rng.standard_normal((1, N, H))
    tx, th = torch.tensor(x, requires_grad=True), torch.tensor(h_0, requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(tx, lengths, enforce_sorted=False)
    out, last = layer(packed, th)
    hs, _ = torch.nn.utils.rnn.pad_packed_sequence(out, total_length=T)
    y = torch.softmax(linear(hs), -1)
    valid = torch.arange(T)[:, None] < torch.tensor(lengths)
    ((y * torch.from_numpy(dy))[valid].sum() + (last * torch.from_numpy(dlast)).sum()).backward()
    _, state, backward = rnn.forward(x, ba.State(h=h_0[None]), lengths=lengths)
    close(state.h[0], last, 1e-13)
    grads = backward(dy, ba.State(h=dlast[None]), input_grad=True)
    compare(rnn, grads, layer, linear, tx, th, 1e-12)


@pytest.mark.parametrize("make_ours", [lambda: ba.SGD(0.1), lambda: ba.SGD(0.1, momentum=0.9), lambda: ba.Adam(0.01)])
def test_optimizers_equal_those_of_torch(make_ours):
    import torch

    ours = make_ours()
    rng = np.random.default_rng(0)
    params = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    if isinstance(ours, ba.Adam):
        optimizer = torch.optim.Adam(theirs.values(), 0.01)
    else:
        optimizer = torch.optim.SGD(theirs.values(), 0.1, momentum=ours.momentum)
    for _ in range(5):
        grads = {name: rng.standard_normal(value.shape) for name, value in params.items()}
        for name, grad in grads.items():
            theirs[name].grad = torch.tensor(grad)
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 1.5)
        assert np.isclose(ba.global_norm(grads), norm.item(), rtol=1e-13)
        optimizer.step()
        ours.update(params, ba.clip_by_global_norm(grads, 1.5))
    for name, value in params.items():
        assert np.allclose(value, theirs[name].detach().numpy(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("readout", ["every", "last"])
@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("lengths", [None, [5, 0, 3]])
def test_a_whole_training_step_runs_on_the_meta_device(readout, tokens, lengths):
    """Arrays there have shapes and no values: whoever reads one, or branches on one, fails."""
    import torch

    backend = ba.Backend(torch, "meta")
    backend.segment_bytes = 2 * 3 * H * 4
    rnn = ba.RNN(I, H, O, output="softmax", readout=readout, device=backend)
    x = np.zeros((5, 3), dtype="int64") if tokens else np.zeros((5, 3, I), dtype="float32")
    target = np.zeros((5, 3) if readout == "every" else 3, dtype="int64")
    optimizer, state = ba.Adam(), None
    for _ in range(2):
        loss, grads, state = rnn.loss_and_grad(
            x, target, "cross_entropy", state=state, lengths=lengths, truncate=3, input_grad=not tokens
        )
        optimizer.update(rnn.params, ba.clip_by_global_norm(grads.params, 1.0))
    y, _, backward = rnn.forward(rnn.asarray(x), state, lengths=lengths)
    backward(y, state)
    assert loss.device.type == "meta"
    with pytest.raises(RuntimeError):
        float(loss)
