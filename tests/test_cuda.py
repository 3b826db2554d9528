"""CuPy on a CUDA device, or on the emulated one, which counts every launch, copy and synchronisation."""

import gc
import importlib.util

import numpy as np
import pytest
from conftest import cuda, needs_cuda
from every_optimizer import OPTIMIZERS, each_optimizer

import bptt_array as ba
from bptt_array import cli
from bptt_array.schedules.instructions import Backward, Forward

T, N, V, H = 12, 4, 7, 8

needs_counters = pytest.mark.skipif(
    importlib.util.find_spec("gpuemu") is None,
    reason="counting launches and copies needs the emulated CUDA device (gpuemu)",
)


def network(device, **more):
    arguments = {"output": "softmax", "init": "orthogonal", "device": device, **more}
    return ba.RNN(V, H, V, **arguments)


def step_by_step(device):
    """The same device, on which time is a loop of launches, as where a cell or its width has no kernel."""
    return ba.backend.CupyBackend(ba.backend.resolve(device)._index, persistent=False)


def tokens(seed=0):
    return np.random.default_rng(seed).integers(0, V, (T, N))


@pytest.fixture
def pool():
    """A memory pool of this test's own, with room to spare: what it asks of the device depends on this test alone.

    Which blocks of the default pool are free, and in what pieces, depends on every array made before, on when the
    garbage collector let go of the last of them, and on addresses: of blocks of one size it takes any, and splits it.
    A block of a size served so far may be missing later.
    """
    import cupy

    class Pool(cupy.cuda.MemoryPool):
        asked = 0  # how many arrays were made, of the pool's blocks or new ones

        def malloc(self, size):
            self.asked += 1
            return super().malloc(size)

    own = Pool()
    gc.collect()
    gc.disable()
    try:
        with cupy.cuda.using_allocator(own.malloc):
            for index in range(cupy.cuda.runtime.getDeviceCount()):
                with cupy.cuda.Device(index):
                    cupy.empty(1 << 17, "int8")  # and free again; GPUEMU_STRICT looks after every page of it
            yield own
    finally:
        gc.enable()


@pytest.mark.parametrize("device", cuda)
@needs_counters
@pytest.mark.parametrize(
    "make_optimizer", [lambda: ba.Adam(1e-2), lambda: ba.SGD(0.1, momentum=0.9)], ids=["adam", "momentum"]
)
@pytest.mark.parametrize("lengths", [None, [12, 0, 5, 7]], ids=["full", "lengths"])
@pytest.mark.parametrize(
    "more",
    [
        {"cell": "tanh"},
        {"cell": "relu"},
        {"cell": "lstm", "num_layers": 2, "dropout": 0.3, "recurrent_dropout": 0.3},
        {"cell": "gru", "members": 3, "recurrent_dropout": 0.3},
        {"cell": "gru_reset_before", "recurrent_dropout": 0.3},
        {"cell": "lstm", "proj_size": 3, "num_layers": 2},
        {"cell": "lstm", "bidirectional": True},
    ],
    ids=lambda more: "-".join(map(str, more.values())),
)
def test_a_training_step_copies_the_batch_in_and_never_waits(device, more, lengths, make_optimizer, pool):
    import gpuemu

    rnn = network(device, **more)
    optimizer = make_optimizer()
    x, target = tokens(0), tokens(1)
    options = {"lengths": lengths, "truncate": None if rnn.bidirectional else 5, "dropout_seed": 1}

    def step(state):
        _, grads, state = rnn.loss_and_grad(x, target, "cross_entropy", state=state, **options)
        clipped = ba.clip_by_global_norm(grads.params, 1.0, members=rnn.members)
        optimizer.update(rnn.params, clipped)
        return state

    state, served = None, 0
    for _ in range(200):  # until kernels are compiled and the pool has blocks of every size, wherever these came to lie
        with gpuemu.count() as counted:
            state = step(state)
        served = 0 if counted.malloc else served + 1
        if served == 20:
            break
    gc.collect()  # what compiling left behind
    with rnn.backend.active():
        in_use = pool.used_bytes()
    with gpuemu.count() as counted:
        state = step(state)
    assert counted.syncs == 0
    assert counted.implicit_syncs == 0
    assert counted.d2h == 0
    assert counted.p2p == 0
    segments = 1 if rnn.bidirectional else 3  # of 5 steps at most
    assert counted.h2d == 2 * segments + (lengths is not None)
    assert counted.h2d_bytes == (2 * T * N + (N if lengths else 0)) * 8
    assert counted.malloc == 0  # the pool serves everything
    with rnn.backend.active():
        assert pool.used_bytes() == in_use  # nothing grows from step to step,
    assert gc.collect() == 0  # and nothing waits for the garbage collector


@needs_counters
@pytest.mark.parametrize("device", cuda)
@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("lengths", [None, [12, 0, 5, 7]], ids=["full", "lengths"])
@pytest.mark.parametrize(
    ("options", "reduction"),
    [
        ({"ignore_index": -100}, "mean"),
        ({"ignore_index": -100, "class_weights": range(V), "label_smoothing": 0.1}, "mean"),
        ({"ignore_index": 1}, "weighted_mean"),
    ],
    ids=str,
)
def test_what_a_mean_is_over_is_known_to_the_device_alone(device, options, reduction, lengths, members):
    import gpuemu

    rnn, loss = network(device, members=members), ba.losses.CrossEntropy(**options)
    here = ba.RNN(**rnn.config).load_params(rnn.params)
    x, target = tokens(0), tokens(1)
    target[::3, 1:] = loss.ignore_index
    weights = np.random.default_rng(0).random(target.shape).astype(rnn.dtype)
    given = [rnn.asarray(a) for a in (x, target, weights)]

    def step(rnn, x, target, weights):
        return rnn.loss_and_grad(x, target, loss, weights=weights, reduction=reduction, lengths=lengths, truncate=5)

    step(rnn, *given)
    with gpuemu.count() as counted:
        value, grads, _ = step(rnn, *given)
    assert counted.syncs == counted.implicit_syncs == counted.d2h == 0
    assert counted.h2d == (lengths is not None)
    assert counted.kernels["bptt_rows"] == 3  # a segment each
    expected, exact, _ = step(here, x, target, weights)
    of_host, again, _ = step(rnn, x, target, weights)  # travels there, a segment at a time, and counts the same
    host = rnn.backend.to_host
    for loss_found, found in ((value, grads), (of_host, again)):
        np.testing.assert_allclose(host(loss_found), expected, rtol=1e-5)
        np.testing.assert_allclose(host(found.steps), exact.steps, rtol=1e-6)
        for name, grad in exact.params.items():
            np.testing.assert_allclose(host(found.params[name]), grad, rtol=1e-4, atol=1e-6)


@needs_counters
@pytest.mark.parametrize("device", cuda)
def test_within_a_budget_the_batch_travels_as_often_as_it_runs_and_nothing_waits(device):
    import gpuemu

    steps, N, I = 120, 4, 3  # noqa: E741
    rnn = ba.RNN(I, 8, 2, device=device)
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((steps, N, I)).astype("f"), rng.standard_normal((steps, N, 2)).astype("f")
    with pytest.raises(ValueError, match="too small") as error:
        rnn.plan(x.shape, 1, from_host=True)
    memory = int(str(error.value).rpartition("memory=")[2].split()[0]) + 2000
    plan = rnn.plan(x.shape, memory, from_host=True)
    assert plan.forward_steps > steps
    rnn.loss_and_grad(x, target, memory=memory)
    forward = [i for i in plan.schedule() if isinstance(i, Forward)]
    backward = [i for i in plan.schedule() if isinstance(i, Backward)]
    with gpuemu.count() as counted:
        _, grads, _ = rnn.loss_and_grad(x, target, memory=memory)
    assert counted.syncs == counted.implicit_syncs == counted.d2h == 0
    assert counted.h2d == len(forward) + len(backward)
    assert counted.h2d_bytes == plan.forward_steps * N * I * 4 + steps * N * 2 * 4
    _, expected, _ = ba.RNN(I, 8, 2).loss_and_grad(x, target)
    for name, gradient in expected.params.items():
        assert np.allclose(rnn.backend.to_host(grads.params[name]), gradient, rtol=1e-4, atol=1e-6)


@needs_counters
@pytest.mark.parametrize("device", cuda)
@pytest.mark.parametrize("backward", ["parallel", "auto"])
def test_in_parallel_over_time_a_step_takes_fewer_launches_and_never_waits(device, backward):
    import gpuemu

    steps = 400
    rnn, rng = ba.RNN(3, 8, 2, device=step_by_step(device)), np.random.default_rng(0)
    x, target = (rnn.asarray(rng.standard_normal((steps, 1, size))) for size in (3, 2))
    reset = rnn.backend.from_host(np.asarray([True]))
    state = ba.State(rnn.asarray(np.ones((1, 1, 1, 8))))

    def launches(backward):
        rnn.loss_and_grad(x, target, state=state, reset=reset, backward=backward)  # measured, compiled
        with gpuemu.count() as counted:
            rnn.loss_and_grad(x, target, state=state, reset=reset, backward=backward)
        assert counted.syncs == counted.implicit_syncs == counted.d2h == counted.h2d == 0
        return counted.launches + counted.gemms

    sequential, other = launches("sequential"), launches(backward)
    if backward == "parallel":  # of a loop of 2 a step each way
        assert other < sequential - 1.2 * steps


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


def on_every_step(call, steps_of, pool, few=4, many=T):
    """Products, launches, copies and new arrays that each further time step adds to ``call(steps)``."""
    import gpuemu

    found = []
    for steps in (few, many):
        for _ in range(2):  # kernels compiled
            call(steps)
        for _ in range(4):  # which block the pool cuts up depends on addresses: it may want one more at first
            asked = pool.asked
            with gpuemu.count() as counted:
                call(steps)
            if not counted.malloc:
                break
        assert pool.asked > asked  # or arrays are not counted
        assert counted.syncs == counted.implicit_syncs == counted.malloc == 0
        copies = counted.h2d + counted.d2h + counted.d2d
        found.append((counted.gemms, counted.launches, copies, pool.asked - asked))
    return tuple((b - a) / steps_of(many - few) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("device", cuda)
@needs_counters
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("cell", "each"), [("tanh", 1), ("relu", 1), ("lstm", 2), ("gru", 2)])
def test_each_time_step_is_one_product_and_few_launches_each_way(device, cell, each, dtype, pool):
    """One launch for the cell of (1.1), two for one with gates (forward gates, state; backward the same); no copy."""
    rnn = network(step_by_step(device), cell=cell, dtype=dtype)
    x, target = rnn.asarray(tokens(0)), rnn.asarray(tokens(1))
    with rnn.backend.active():
        forward = lambda steps: rnn(x[:steps, ...])  # noqa: E731
        both = lambda steps: rnn.loss_and_grad(x[:steps, ...], target[:steps, ...], "cross_entropy")  # noqa: E731
        assert on_every_step(forward, lambda steps: steps, pool) == (1, each, 0, 0)
        assert on_every_step(both, lambda steps: 2 * steps, pool) == (1, each, 0, 0)


@pytest.mark.parametrize("device", cuda)
@needs_counters
@pytest.mark.parametrize(("axes", "forward_each", "each"), [({}, 3, 5), ({"members": 3}, 3, 6)], ids=str)
def test_a_second_product_in_every_step_is_a_launch_more_and_no_copy(device, axes, forward_each, each, pool):
    """Forward gates, r h, state; backward what stands before the product with ``W_hn`` and what comes after it."""
    rnn = network(device, cell="gru_reset_before", **axes)
    assert "a step has a product with W_hn; a kernel has one with W_hh alone" in rnn.kernels(N)["l0 forward"]
    x, target = rnn.asarray(tokens(0)), rnn.asarray(tokens(1))
    with rnn.backend.active():
        forward = lambda steps: rnn(x[:steps, ...])  # noqa: E731
        both = lambda steps: rnn.loss_and_grad(x[:steps, ...], target[:steps, ...], "cross_entropy")  # noqa: E731
        assert on_every_step(forward, lambda steps: steps, pool) == (2, forward_each, 0, 0)
        assert on_every_step(both, lambda steps: steps, pool) == (4, each, 0, 0)


@pytest.mark.parametrize("device", cuda)
@needs_counters
@pytest.mark.parametrize(
    "axes", [{"members": 3}, {"bidirectional": True}, {"members": 3, "bidirectional": True}], ids=str
)
@pytest.mark.parametrize(("cell", "forward_each", "each"), [("tanh", 2, 4), ("lstm", 3, 6), ("gru", 2, 5)])
def test_members_and_directions_share_the_product_of_a_step(device, cell, forward_each, each, axes, pool):
    """However many there are: one product each way, and one launch more than a single network for its sum."""
    rnn = network(step_by_step(device), cell=cell, **axes)
    x, target = rnn.asarray(tokens(0)), rnn.asarray(tokens(1))
    with rnn.backend.active():
        forward = lambda steps: rnn(x[:steps, ...])  # noqa: E731
        both = lambda steps: rnn.loss_and_grad(x[:steps, ...], target[:steps, ...], "cross_entropy")  # noqa: E731
        assert on_every_step(forward, lambda steps: steps, pool) == (1, forward_each, 0, 0)
        assert on_every_step(both, lambda steps: steps, pool) == (2, each, 0, 0)


@pytest.mark.parametrize("device", cuda)
@needs_counters
@pytest.mark.parametrize("persistent", [True, False], ids=["one launch", "step by step"])
def test_a_segment_adds_a_constant_number_of_launches(device, persistent, pool):
    import gpuemu

    def launches(segments):
        rnn = network(device)
        rnn.to(ba.backend.CupyBackend(rnn.backend._index, persistent=persistent))
        rnn.backend.segment_bytes = T // segments * N * H * 4
        x, target = rnn.asarray(tokens(0)), rnn.asarray(tokens(1))
        with rnn.backend.active():
            for _ in range(3):
                rnn.loss_and_grad(x, target, "cross_entropy")
            with gpuemu.count() as counted:
                rnn.loss_and_grad(x, target, "cross_entropy")
        return counted.launches

    one, two, three, six = (launches(count) for count in (1, 2, 3, 6))
    assert three - two == two - one
    assert six - three == 3 * (two - one)
    assert two - one <= 40


@pytest.mark.parametrize("device", cuda)
@needs_counters
@each_optimizer
def test_an_update_is_one_launch(device, make, pool):
    import gpuemu

    rnn, optimizer = network(device), make()
    _, grads, _ = rnn.loss_and_grad(tokens(0), tokens(1), "cross_entropy")
    for _ in range(2):
        optimizer.update(rnn.params, grads.params)
    with gpuemu.count() as counted:
        optimizer.update(rnn.params, grads.params)
    assert counted.launches == 1
    assert counted.syncs == counted.implicit_syncs == counted.h2d == counted.d2h == counted.malloc == 0


@pytest.mark.parametrize("device", cuda)
@needs_counters
def test_clipping_is_one_launch_and_does_not_wait(device, pool):
    import gpuemu

    rnn = network(device)
    _, grads, _ = rnn.loss_and_grad(tokens(0), tokens(1), "cross_entropy")
    for _ in range(3):
        clipped = ba.clip_by_global_norm(grads.params, 1e-3)
    with gpuemu.count() as counted:
        clipped = ba.clip_by_global_norm(grads.params, 1e-3)
    assert counted.launches == 1
    assert counted.syncs == counted.implicit_syncs == counted.h2d == counted.d2h == counted.malloc == 0
    assert float(ba.global_norm(clipped)) == pytest.approx(1e-3, rel=1e-5)


@pytest.mark.parametrize("device", cuda)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 4), (1, 1), (300,)], ids=str)
def test_fused_updates_are_the_portable_ones(device, dtype, shape):
    rng = np.random.default_rng(0)
    param, *grads = (rng.standard_normal(shape).astype(dtype) for _ in range(6))
    backend = ba.backend.resolve(device)
    for make in (*OPTIMIZERS.values(), lambda: ba.Adam(1e-2, eps=1e-300), lambda: ba.RMSprop(1e-2, eps=1e-300)):
        ours, theirs = {"p": param.copy()}, {"p": backend.from_host(param)}
        here, there = make(), make()
        for grad in grads:
            here.update(ours, {"p": grad})
            there.update(theirs, {"p": backend.from_host(grad)})
        assert theirs["p"].dtype == param.dtype
        np.testing.assert_allclose(
            backend.to_host(theirs["p"]), ours["p"], rtol=20 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps
        )


@pytest.mark.parametrize("device", cuda)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru", "gru_reset_before"])
@pytest.mark.parametrize("shape", [(7, 4, 8), (1, 1, 1), (3, 1, 5), (5, 6, 1)], ids=str)
def test_the_fallback_without_gemm_gives_the_same_numbers(device, dtype, shape, cell):
    steps, sequences, hidden = shape
    fast, portable = step_by_step(device), step_by_step(device)
    assert fast.gemm is not None
    vars(portable)["gemm"] = None
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps, sequences, 3)).astype(dtype)
    target = rng.standard_normal((steps, sequences, 2)).astype(dtype)
    found = []
    for backend in (fast, portable):
        rnn = ba.RNN(3, hidden, 2, cell=cell, dtype=dtype, device=backend)
        loss, grads, state = rnn.loss_and_grad(x, target)
        found.append([backend.to_host(a) for a in (loss, state.h, grads.state.h, *grads.params.values())])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e3 * np.finfo(dtype).eps, atol=10 * np.finfo(dtype).eps)


@pytest.mark.parametrize("device", cuda)
@pytest.mark.parametrize(
    "broken",
    ["missing module", "missing name", "other arguments", "wrong numbers", "assertion", "transposed", "one flag"],
)
def test_a_cupy_whose_gemm_changed_is_noticed(device, broken, monkeypatch):
    import cupy

    def wrong(*args, out, **more):
        out[...] = 0

    def asserts(*args, **more):
        raise AssertionError

    def transposed(transa, transb, a, b, out, beta, of=cupy.cublas.gemm):
        result = cupy.zeros(out.shape, out.dtype)
        of(transa, transb, a, b, out=result)
        out[...] = beta * out + cupy.reshape(result.T, out.shape)

    def one_flag(transa, transb, a, b, out, beta, of=cupy.cublas.gemm):
        of(transa, "T", a, b, out=out, beta=beta)

    if broken == "missing module":
        monkeypatch.setitem(__import__("sys").modules, "cupy.cublas", None)
    elif broken == "missing name":
        monkeypatch.delattr(cupy.cublas, "gemm")
    else:
        changed = {
            "other arguments": lambda a, b: a @ b,
            "wrong numbers": wrong,
            "assertion": asserts,
            "transposed": transposed,
            "one flag": one_flag,
        }[broken]
        monkeypatch.setattr(cupy.cublas, "gemm", changed)
    assert ba.backend.CupyBackend(ba.backend.resolve(device)._index).gemm is None


@pytest.mark.parametrize("device", cuda)
def test_kernels_of_segments_can_be_switched_off(device, monkeypatch):
    index = ba.backend.resolve(device)._index
    backend = ba.backend.CupyBackend(index)
    assert backend.persistent
    rnn = ba.RNN(2, 3, device=backend)
    assert rnn.kernels(4)["l0 backward"].startswith("one launch a segment: ")
    backend.persistent = False
    assert rnn.kernels(4) == {
        "l0 forward": "step by step: kernels are off",
        "l0 backward": "step by step: kernels are off",
    }
    with pytest.raises(TypeError, match="persistent=1 is "):
        backend.persistent = 1
    monkeypatch.setenv("BPTT_ARRAY_PERSISTENT", "0")
    assert not ba.backend.CupyBackend(index).persistent
    assert ba.backend.CupyBackend(index, persistent=True).persistent
    monkeypatch.setenv("BPTT_ARRAY_PERSISTENT", "no")
    with pytest.raises(ValueError, match=r"BPTT_ARRAY_PERSISTENT='no' in the environment; expected 0 or 1"):
        ba.backend.CupyBackend(index)
