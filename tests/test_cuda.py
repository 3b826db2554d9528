"""CuPy on a CUDA device, or on the emulated one, which counts every launch, copy and synchronisation."""

import importlib.util

import numpy as np
import pytest
from conftest import cuda, needs_cuda

import bptt_array as ba
from bptt_array import cli

T, N, V, H = 12, 4, 7, 8

needs_counters = pytest.mark.skipif(
    importlib.util.find_spec("gpuemu") is None,
    reason="counting launches and copies needs the emulated CUDA device (gpuemu)",
)


def network(device, **more):
    arguments = {"output": "softmax", "init": "orthogonal", "device": device, **more}
    return ba.RNN(V, H, V, **arguments)


def tokens(seed=0):
    return np.random.default_rng(seed).integers(0, V, (T, N))


@pytest.mark.parametrize("device", cuda)
@needs_counters
@pytest.mark.parametrize(
    "make_optimizer", [lambda: ba.Adam(1e-2), lambda: ba.SGD(0.1, momentum=0.9)], ids=["adam", "momentum"]
)
@pytest.mark.parametrize("lengths", [None, [12, 0, 5, 7]], ids=["full", "lengths"])
@pytest.mark.parametrize("cell", ["tanh", "relu"])
def test_a_training_step_copies_the_batch_in_and_never_waits(device, cell, lengths, make_optimizer):
    import gpuemu

    rnn = network(device, cell=cell)
    optimizer = make_optimizer()
    x, target = tokens(0), tokens(1)

    def step(state):
        _, grads, state = rnn.loss_and_grad(x, target, "cross_entropy", state=state, lengths=lengths, truncate=5)
        optimizer.update(rnn.params, ba.clip_by_global_norm(grads.params, 1.0))
        return state

    state = None
    for _ in range(5):  # until kernels are compiled and the pool has blocks of every size
        state = step(state)
    with gpuemu.count() as counted:
        step(state)
    assert counted.syncs == 0
    assert counted.implicit_syncs == 0
    assert counted.d2h == 0
    assert counted.p2p == 0
    segments = 3  # of 5 steps at most
    assert counted.h2d == 2 * segments + (lengths is not None)
    assert counted.h2d_bytes == (2 * T * N + (N if lengths else 0)) * 8
    assert counted.malloc == 0  # the pool serves everything: nothing grows from step to step


@pytest.mark.parametrize("device", cuda)
@needs_counters
def test_the_time_loop_makes_one_product_and_one_launch_a_step_each_way(device):
    import gpuemu

    rnn = network(device)
    x, target = rnn.asarray(tokens(0)), rnn.asarray(tokens(1))

    def count(steps):
        call = lambda: rnn.loss_and_grad(x[:steps, ...], target[:steps, ...], "cross_entropy")  # noqa: E731
        with rnn.backend.active():
            call()
            with gpuemu.count() as counted:
                call()
        return counted.gemms, counted.launches, counted.h2d + counted.d2h

    few, many = count(4), count(T)
    more = T - 4
    assert many[0] - few[0] == 2 * more  # one product with W_hh forward, one backward
    assert many[1] - few[1] == 2 * more  # f forward, the product with its slope backward
    assert few[2] == many[2] == 0


@pytest.mark.parametrize("device", cuda)
def test_results_and_parameters_live_on_the_device_that_was_asked_for(device):
    import cupy

    index = int(device.partition(":")[2] or 0)
    rnn = network(device)
    with cupy.cuda.Device(0):  # the caller's current device is another matter
        loss, grads, state = rnn.loss_and_grad(tokens(0), tokens(1), "cross_entropy", lengths=[3, 0, 12, 1])
        optimizer = ba.Adam()
        optimizer.update(rnn.params, ba.clip_by_global_norm(grads.params, 1.0))
        y, _, backward = rnn.forward(rnn.asarray(tokens()), state)
        again = backward(y, state)
    arrays = [loss, state.h, y, *rnn.params.values(), *grads.params.values(), *again.params.values(), again.state.h]
    assert {array.device.id for array in arrays} == {index}
    assert all(array.device.id == index for kept in optimizer._kept.values() for array in kept)


@pytest.mark.parametrize("device", cuda)
def test_the_same_seed_is_the_same_model_and_travels_both_ways(device, tmp_path):
    ours, theirs = network("cpu", seed=5), network(device, seed=5)
    for name, value in ours.params.items():
        assert np.array_equal(value, theirs.backend.to_host(theirs.params[name]))
    theirs.save(tmp_path / "model.safetensors")
    back = ba.RNN.load(tmp_path / "model.safetensors")
    assert np.array_equal(back(tokens())[0], ours(tokens())[0])
    there = ba.RNN.load(tmp_path / "model.safetensors", device=device)
    assert there.backend.name == theirs.backend.name
    assert theirs.to("cpu").backend.name == "cpu"
    assert np.array_equal(theirs.params["W_hy"], ours.params["W_hy"])


@pytest.mark.parametrize("device", cuda)
def test_arrays_of_another_device_are_refused_with_the_way_out(device):
    rnn = network(device)
    with pytest.raises(
        TypeError, match=r"x is a numpy\.ndarray on cpu, but this RNN is on cuda.*use rnn\.asarray\(x\)"
    ):
        rnn(tokens())
    here = network("cpu")
    with pytest.raises(TypeError, match=r"x is a cupy\.ndarray.*this RNN is on cpu.*rnn\.asarray\(x\)"):
        here(rnn.asarray(tokens()))
    with pytest.raises(TypeError, match=r"target is a cupy\.ndarray"):
        here.loss_and_grad(tokens(), rnn.asarray(tokens()), "cross_entropy")
    _, grads, _ = here.loss_and_grad(tokens(), tokens(), "cross_entropy")
    with pytest.raises(TypeError, match=r"grads\['l0\.W_xh'\] is a ndarray; expected an array of cuda"):
        ba.SGD(0.1).update(rnn.params, grads.params)
    assert np.array_equal(here.asarray(rnn.asarray(tokens())), tokens())


@pytest.mark.parametrize("device", [pytest.param("cuda:1", marks=needs_cuda(2))])
def test_arrays_of_another_cuda_device_are_refused(device):
    one, other = network("cuda:0"), network(device)
    with pytest.raises(TypeError, match="this RNN is on cuda:1"):
        other(one.asarray(tokens()))


@pytest.mark.parametrize("device", cuda)
def test_tokens_on_the_device_are_read_back_only_on_request(device):
    rnn = network(device)
    x = rnn.asarray(tokens())
    rnn(x, validate=True)
    bad = tokens()
    bad[3, 1] = V
    with pytest.raises(ValueError, match=r"x\[3, 1\]=7; expected 0 to 6"):
        rnn(rnn.asarray(bad), validate=True)
    with pytest.raises(ValueError, match=r"target\[3, 1\]=7"):
        rnn.loss_and_grad(x, rnn.asarray(bad), "cross_entropy", validate=True)
    with pytest.raises(ValueError, match=r"x\[3, 1\]=7"):
        rnn.loss_and_grad(bad, tokens(), "cross_entropy")  # from the host: always checked


@pytest.mark.gpu
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_cuda(1))])
def test_a_device_that_is_not_there_is_named(device):
    count = ba.backend.cuda_device_count()
    with pytest.raises(ValueError, match=f"device='cuda:{count}' does not exist: CuPy finds {count} of them"):
        ba.RNN(1, 1, device=f"cuda:{count}")
    assert ba.backend.resolve("auto").name == "cuda:0"


@pytest.mark.parametrize("device", cuda)
def test_the_command_line_trains_samples_and_compares_on_the_device(device, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    run = tmp_path / "run"
    small = ["--hidden", "8", "--seq-len", "8", "--batch", "4", "--steps", "12"]
    assert cli.main(["train", str(text), *small, "--device", device, "--out", str(run)]) == 0
    assert cli.main(["sample", str(run), "--device", device, "--length", "20", "--prompt", "the "]) == 0
    on_device = capsys.readouterr().out[-25:]
    assert cli.main(["sample", str(run), "--length", "20", "--prompt", "the "]) == 0
    assert capsys.readouterr().out[-25:] == on_device
    assert cli.main(["info"]) == 0
    assert "device cuda:0" in capsys.readouterr().out


@pytest.mark.parametrize("device", cuda)
def test_the_parity_command_passes_on_the_device(device, capsys):
    assert cli.main(["parity", "--device", device]) == 0
    assert "TOO LARGE" not in capsys.readouterr().out
