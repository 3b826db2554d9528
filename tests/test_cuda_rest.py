"""What a training step launches on a CUDA device beside its time loop: lookup, loss, sums over rows and products.

Values are held to NumPy in float64, counts to the emulated device, which counts every launch.
"""

import itertools
import threading

import numpy as np
import pytest
from conftest import cuda
from test_cuda import needs_counters

import bptt_array as ba
from bptt_array.backend import NumpyBackend, cuda_columns, cuda_rows
from bptt_array.equations.activations import OUTPUT_ACTIVATIONS
from bptt_array.equations.long_sums import Sums, Waiting, add_product, add_rows
from bptt_array.equations.losses import LOSSES
from bptt_array.equations.objective import LossOfRows
from bptt_array.losses import CrossEntropy
from bptt_array.tracing.program import CannotTraceError
from bptt_array.tracing.rows import traced

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
KINDS = {
    "tokens": {"output": "softmax", "loss": "cross_entropy"},
    "floats": {"output": "identity", "loss": "mse"},
}


def step_of(device, cell, kind, T, N=4, V=7, H=8, dtype="float32"):
    """A network of one layer and its training step on arrays of the device."""
    rng, of = np.random.default_rng(0), KINDS[kind]
    rnn = ba.RNN(V, H, V, cell=cell, output=of["output"], dtype=dtype, device=device)
    if kind == "tokens":
        x, target = (rnn.asarray(rng.integers(0, V, (T, N))) for _ in range(2))
    else:
        x, target = (rnn.asarray(rng.standard_normal((T, N, V))) for _ in range(2))
    _, _, state = rnn.loss_and_grad(x, target, of["loss"])
    return rnn, lambda: rnn.loss_and_grad(x, target, of["loss"], state=state)


def counts(device, *arguments, **more):
    import gpuemu

    _, step = step_of(device, *arguments, **more)
    for _ in range(2):
        step()
    with gpuemu.count() as counted:
        step()
    assert counted.syncs == counted.implicit_syncs == counted.h2d == counted.d2h == 0
    return counted


@pytest.mark.parametrize("device", cuda)
@needs_counters
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
@pytest.mark.parametrize("T", [1, 4, 24])
def test_beside_its_segment_a_step_launches_little(device, cell, kind, T):
    counted = counts(device, cell, kind, T, N=30)  # 720 rows: products of blocks of them
    named = dict(counted.kernels)
    for name in ("forward", "backward", "bptt_rows", "bptt_column_sums"):
        assert named.pop(name) == 1
    if kind == "tokens":
        assert named.pop("bptt_read_columns") == named.pop("bptt_one_hot") == 1
    else:
        assert named.pop("cupy_add__float32_float32_float32") == 1  # b_h
    assert named == ({"cupy_copy__float32_float32": 1} if cell == "gru" else {})  # into dz, after the sum for W_hh
    assert counted.gemms == (5 if kind == "tokens" else 6)


@pytest.mark.parametrize("device", cuda)
@needs_counters
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
@pytest.mark.parametrize(
    "make", [lambda: ba.SGD(0.1), lambda: ba.SGD(0.1, 0.9), ba.Adam], ids=["sgd", "momentum", "adam"]
)
def test_a_whole_step_of_training_is_at_most_eight_launches_and_products_beside_its_segment(device, cell, kind, make):
    import gpuemu

    rnn, gradients = step_of(device, cell, kind, 12)
    optimizer = make()

    def step():
        _, grads, _ = gradients()
        optimizer.update(rnn.params, ba.clip_by_global_norm(grads.params, 1.0))

    for _ in range(2):
        step()
    with gpuemu.count() as counted:
        step()
    assert counted.kernels["forward"] == counted.kernels["backward"] == 1
    assert counted.launches - 2 <= (7 if cell == "gru" else 6)
    assert counted.gemms <= 6
    assert counted.syncs == counted.implicit_syncs == counted.h2d == counted.d2h == 0


@pytest.mark.parametrize("device", cuda)
@needs_counters
def test_each_segment_has_one_launch_for_its_sums_and_one_for_its_loss(device):
    import gpuemu

    rnn, _ = step_of(device, "tanh", "floats", 12)
    rng = np.random.default_rng(0)
    x, target = (rnn.asarray(rng.standard_normal((12, 4, 7))) for _ in range(2))
    rnn.loss_and_grad(x, target, truncate=4)
    with gpuemu.count() as counted:
        rnn.loss_and_grad(x, target, truncate=4)
    assert counted.kernels["bptt_column_sums"] == counted.kernels["bptt_rows"] == 3


# ---- the loss -----------------------------------------------------------------------------------------

OF_V = [("cross_entropy", "softmax"), ("binary_cross_entropy", "sigmoid")]
CASES = [
    (loss, output, target)
    for loss, output in [*(("mse", g) for g in OUTPUT_ACTIVATIONS), *OF_V, ("mae", "tanh"), ("huber", "identity")]
    for target in ("values", *(["classes"] if LOSSES[loss].takes_classes else []))
]


def on_both(device, function, *arrays):
    """What a function of rows gives on the device, and in float64 on NumPy."""
    backend, here = ba.backend.resolve(device), NumpyBackend()
    wide = [a.astype("float64") if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in arrays]
    with backend.active():
        there = [backend.from_host(a) if isinstance(a, np.ndarray) else a for a in arrays]
        copies = [a.copy() if isinstance(a, np.ndarray) else a for a in there]
        found = [backend.to_host(a) for a in backend.over_rows(function)(*there)]
        for a, copy in zip(there, copies, strict=True):  # nothing is written to
            assert not hasattr(a, "shape") or np.array_equal(*map(backend.to_host, (a, copy)), equal_nan=True)
    with np.errstate(all="ignore"):
        exact = here.over_rows(function)(*wide)
    return found, exact


def rows_of(rng, loss, target, rows, O, dtype):  # noqa: E741
    values = rng.standard_normal((*rows, O)) if LOSSES[loss].output is None else rng.random((*rows, O))
    if target == "classes":
        return rng.integers(0, O, rows)
    if loss == "cross_entropy":
        values /= values.sum(axis=-1, keepdims=True)
    return values.astype(dtype)


@pytest.mark.parametrize("device", cuda)
@DTYPES
@pytest.mark.parametrize(
    ("rows", "O"),
    [((1, 1), 1), ((625, 8), 1), ((75, 8), 2), ((200, 3), 33), ((3, 2), 1000), ((1,), 32), ((3,), 1025), ((5,), 3001)],
    ids=str,
)
@pytest.mark.parametrize(("loss", "output", "target"), CASES)
def test_a_loss_in_one_kernel_is_that_of_the_equations(device, loss, output, target, rows, O, dtype):  # noqa: E741
    rng = np.random.default_rng(0)
    v, b = 3 * rng.standard_normal((*rows, O)), rng.standard_normal(O)
    weights = rng.standard_normal(rows) * (rng.random(rows) < 0.7)
    targets = rows_of(rng, loss, target, rows, O, dtype)
    function = LossOfRows(LOSSES[loss], OUTPUT_ACTIVATIONS[output], 2.0**-5)
    for bias, weight in itertools.product((None, b.astype(dtype)), (None, weights.astype(dtype))):
        found, exact = on_both(device, function, v.astype(dtype), bias, targets, weight, 0.3)
        assert [a.shape for a in found] == [rows, (*rows, O)]
        for ours, expected in zip(found, exact, strict=True):
            assert ours.dtype == dtype
            scale = max(1e-3, np.abs(expected).max())
            assert np.abs(ours - expected).max() <= 30 * np.finfo(dtype).eps * scale * max(1, np.log2(O))


@pytest.mark.parametrize("device", cuda)
@DTYPES
@pytest.mark.parametrize(("rows", "O"), [((1, 1), 1), ((75, 8), 3), ((4, 2, 3), 40), ((5,), 1300)], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("target", ["classes", "probabilities"])
def test_a_cross_entropy_with_options_in_one_kernel_is_that_of_the_equations(
    device,
    target,
    smoothing,
    rows,
    O,  # noqa: E741
    dtype,
):
    import gpuemu

    rng = np.random.default_rng(0)
    v, targets = 3 * rng.standard_normal((*rows, O)), rows_of(rng, "cross_entropy", target, rows, O, dtype)
    weights = (rng.standard_normal(rows) * (rng.random(rows) < 0.7)).astype(dtype)
    class_weights = (rng.random(O) * (np.arange(O) != 1)).astype(dtype)
    for of_classes, weight in itertools.product(((), (class_weights,)), (None, weights)):
        loss = CrossEntropy(of_classes[0] if of_classes else None, label_smoothing=smoothing).equation(O, dtype)
        function = LossOfRows(loss, OUTPUT_ACTIVATIONS["softmax"], 2.0**-5, bool(of_classes))
        given = v.astype(dtype), None, targets, weight, 0.3, *of_classes
        with gpuemu.count() as counted:
            found, exact = on_both(device, function, *given)
        assert counted.kernels["bptt_rows"] == 1
        for ours, expected in zip(found, exact, strict=True):
            assert ours.dtype == dtype
            scale = max(1e-3, np.abs(expected).max())
            assert np.abs(ours - expected).max() <= 30 * np.finfo(dtype).eps * scale * max(1, np.log2(O))


@pytest.mark.parametrize("device", cuda)
@DTYPES
@pytest.mark.parametrize(("loss", "output", "target"), CASES)
def test_members_share_targets_and_weights_or_have_their_own(device, loss, output, target, dtype):
    rng, (S, E, N, O) = np.random.default_rng(1), (5, 3, 4, 6)  # noqa: E741
    function = LossOfRows(LOSSES[loss], OUTPUT_ACTIVATIONS[output], 1.0)
    v, b = rng.standard_normal((S, E, N, O)).astype(dtype), rng.standard_normal((E, 1, O)).astype(dtype)
    for members, of_weights in itertools.product((1, E), (1, E)):
        targets = rows_of(rng, loss, target, (S, members, N), O, dtype)
        weights = rng.standard_normal((S, of_weights, N)).astype(dtype)
        if target == "classes":  # which portable code does not broadcast
            targets = np.broadcast_to(targets, (S, E, N))
        found, exact = on_both(device, function, v, b, targets, weights, 1.0)
        for ours, expected in zip(found, exact, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=200 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("device", cuda)
def test_rows_may_be_any_views(device):
    rng, backend = np.random.default_rng(2), ba.backend.resolve(device)
    function = LossOfRows(LOSSES["mse"], OUTPUT_ACTIVATIONS["identity"], 1.0)
    v, target, weights = rng.standard_normal((4, 5, 6)), rng.standard_normal((5, 4, 12)), rng.standard_normal((5, 8))
    with backend.active():
        there = [backend.from_host(a) for a in (v, target, weights)]
        views = there[0], None, there[1].swapaxes(0, 1)[..., ::-2], there[2][:, 1::2].T
        found = [backend.to_host(a) for a in backend.over_rows(function)(*views, 2.0)]
    exact = function(NumpyBackend(), v, None, target.swapaxes(0, 1)[..., ::-2], weights[:, 1::2].T, 2.0)
    for ours, expected in zip(found, exact, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-13)


@pytest.mark.parametrize("device", cuda)
@DTYPES
@pytest.mark.parametrize("O", [3, 40, 1100])
def test_logits_of_any_size_have_the_loss_of_the_equations(device, dtype, O):  # noqa: E741
    """Up to the ends of the dtype, infinite ones, and NaN: the same, row by row, as NumPy's in the same dtype."""
    most = float(np.finfo(dtype).max)
    sizes = [1.0, most / 4, -most / 4, 1e-30, 7616.0, -7616.0, most**0.5, -(most**0.4), -np.inf, np.inf, np.nan]
    v = np.zeros((len(sizes), O))
    v[:, 0], v[:, -1] = sizes, -0.5 * np.asarray(sizes)
    here = NumpyBackend()
    values = np.full((len(sizes), O), 0.25)
    values[:, 0] = 0
    for loss, output, target in (
        ("cross_entropy", "softmax", np.arange(len(sizes)) % O),
        ("cross_entropy", "softmax", values),
        ("binary_cross_entropy", "sigmoid", values),
        ("mse", "softmax", values),
        ("mse", "identity", values),
    ):
        function = LossOfRows(LOSSES[loss], OUTPUT_ACTIVATIONS[output], 2.0**-7)
        given = v.astype(dtype), None, target if target.dtype.kind == "i" else target.astype(dtype), None, 1.0
        found, _ = on_both(device, function, *given)
        with np.errstate(all="ignore"):
            expected = function(here, *given)
        for ours, theirs in zip(found, expected, strict=True):
            eps = np.finfo(dtype).eps
            np.testing.assert_allclose(ours, theirs, rtol=100 * eps, atol=10 * eps)


@pytest.mark.parametrize("device", cuda)
def test_a_step_of_weight_zero_may_have_any_target(device):
    function = LossOfRows(LOSSES["mse"], OUTPUT_ACTIVATIONS["identity"], 1.0)
    target = np.array([[np.nan, np.inf], [1, 2]])
    found, _ = on_both(device, function, np.ones((2, 2)), None, target, np.array([0.0, 2.0]), 0.5)
    assert found[0].tolist() == [0.0, 0.5]
    assert found[1].tolist() == [[0, 0], [0, -1]]


@pytest.mark.parametrize("device", cuda)
def test_a_class_that_is_none_reads_nothing_else(device):
    """Unchecked classes on the device: a number past the end wraps, as everywhere in CuPy."""
    function = LossOfRows(LOSSES["cross_entropy"], OUTPUT_ACTIVATIONS["softmax"], 1.0)
    v = np.random.default_rng(0).standard_normal((4, 5))
    backend = ba.backend.resolve(device)
    with backend.active():
        given = backend.from_host(v), None, backend.from_host(np.array([0, 5, -5, 10**12])), None, 1.0
        found = [backend.to_host(a) for a in backend.over_rows(function)(*given)]
    log = np.log(np.exp(v).sum(axis=-1)) - v[:, 0]
    np.testing.assert_allclose(found[0], log)


@pytest.mark.parametrize("device", cuda)
def test_no_rows_are_no_launch(device):
    backend = ba.backend.resolve(device)
    function = LossOfRows(LOSSES["mse"], OUTPUT_ACTIVATIONS["identity"], 1.0)
    with backend.active():
        y = backend.zeros((3, 0, 2), backend.dtype("float32"))
        loss, dv = backend.over_rows(function)(y, None, y, None, 1.0)
    assert (loss.shape, dv.shape) == ((3, 0), (3, 0, 2))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda backend, v: (v[0, ...],), "takes"),
        (lambda backend, v: (v[1],), "takes"),
        (lambda backend, v: (backend.xp.sum(v, axis=0),), "another axis"),
        (lambda backend, v: (backend.xp.flip(v),), "xp.flip"),
        (lambda backend, v: (v if v > 0 else -v,), "whether numbers are true"),
        (lambda backend, v: (1.0,), "no array of rows"),
        (lambda backend, v: (backend.xp.sum(v, axis=-1).__setitem__(..., v),), "writes a row"),
        (lambda backend, v: (backend.xp.take_along_axis(v, v, axis=-1),), "takes other entries"),
        (lambda backend, v: (v.__setitem__(0, v),), "writes to"),
    ],
)
def test_what_is_no_function_of_rows_says_so(function, says):
    with pytest.raises(CannotTraceError, match=says):
        traced(function, [("a0", False, 3)])


# ---- sums over rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", cuda)
@DTYPES
def test_sums_of_columns_of_any_shapes_together(device, dtype):
    rng, backend = np.random.default_rng(0), ba.backend.resolve(device)
    shapes = [(1, 1), (600, 33), (5000, 1), (70_000, 2), (3, 1000), (2, 3, 700, 5), (0, 4), (17, 32), (2, 5000, 40)]
    shapes += [(9, 4)] * 10  # more than one launch takes
    arrays = [rng.integers(-50, 50, shape).astype(dtype) for shape in shapes]
    factors = [2.0 ** (k - 4) for k in range(len(shapes))]
    with backend.active():
        for _ in range(2):  # what the first launch leaves behind is as it was
            found = backend.column_sums([backend.from_host(a) for a in arrays], factors)
            for total, array, factor in zip(found, arrays, factors, strict=True):
                expected = array.astype("float64").sum(axis=-2) * factor
                assert np.array_equal(backend.to_host(total), expected.astype(dtype))
        turned = backend.from_host(arrays[1]).T
        (total,) = backend.column_sums([turned], [1.0])
        assert np.array_equal(backend.to_host(total), arrays[1].sum(axis=1))


@pytest.mark.parametrize("device", cuda)
def test_sums_of_columns_keep_to_themselves(device):
    """An infinite one, or NaN, is that of its column."""
    backend = ba.backend.resolve(device)
    rows = np.ones((5000, 3), "float32")
    rows[77, 0], rows[4000, 1] = np.inf, np.nan
    with backend.active():
        (total,) = backend.column_sums([backend.from_host(rows)], [1.0])
        assert np.array_equal(backend.to_host(total), np.array([np.inf, np.nan, 5000], "float32"), equal_nan=True)


@pytest.mark.parametrize("device", cuda)
def test_sums_of_columns_are_the_same_every_time_and_on_every_stream(device):
    import cupy

    backend = ba.backend.resolve(device)
    rows = np.random.default_rng(0).standard_normal((20_000, 3)).astype("float32")
    with backend.active():
        there = backend.from_host(rows)
        first = backend.to_host(backend.column_sums([there], [1.0])[0])
        with cupy.cuda.Stream():
            assert np.array_equal(backend.to_host(backend.column_sums([there], [1.0])[0]), first)
    assert np.abs(first - rows.astype("float64").sum(axis=0)).max() <= 1e-6 * np.abs(first).max()


@pytest.mark.parametrize("device", cuda)
def test_the_streams_that_each_thread_has_for_itself_share_nothing(device):
    """They have one number. What a launch counts in, those of another thread may not."""
    import cupy

    backend, rows = ba.backend.resolve(device), np.ones((20_000, 3), "float32")
    with backend.active():
        there = backend.from_host(rows)
        backend.column_sums([there], [1.0])
        of_one = backend._column_sums[there.dtype]
        before = len(of_one._tickets), len(backend._norms._words)

        def run(ready):
            with backend.active(), cupy.cuda.Stream.ptds:
                totals.append(backend.to_host(backend.column_sums([there], [1.0])[0]).tolist())
                totals.append([float(backend.global_norm({"a": there}, None)) ** 2] * 3)
            ready.wait()  # both threads are there at a time: none has the number of one that is gone

        totals, ready = [], threading.Barrier(2)
        threads = [threading.Thread(target=run, args=(ready,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(of_one._tickets), len(backend._norms._words)) == (before[0] + 2, before[1] + 2)
    np.testing.assert_allclose(sorted(totals), [[20_000] * 3] * 2 + [[60_000] * 3] * 2, rtol=1e-6)


def test_sums_of_columns_have_a_portable_form():
    backend, rows = ba.Backend(np), np.arange(12.0).reshape(4, 3)
    totals = backend.column_sums([rows, rows[None, :2, :]], [1.0, 0.5])
    assert [total.tolist() for total in totals] == [[18, 22, 26], [[1.5, 2.5, 3.5]]]


@pytest.mark.parametrize("device", cuda)
@pytest.mark.parametrize("K", [513, 600, 1000, 4099, 6400])
@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
def test_every_row_is_in_a_product_of_blocks_once(device, K, lead, monkeypatch):
    rng, backend = np.random.default_rng(0), ba.backend.resolve(device)
    dz, a = (rng.integers(-9, 9, (*lead, K, F)).astype("float32") for F in (3, 2))
    for products, most in ((4, 1 << 26), (1, 1)):  # all blocks at once, and one after the other
        monkeypatch.setattr("bptt_array.equations.long_sums.PRODUCTS", products)
        monkeypatch.setattr("bptt_array.equations.long_sums.PRODUCT_BYTES", most)
        with backend.active():
            waiting = Waiting.on(backend)
            sums = Sums(waiting)
            add_product(backend, sums, "W", *map(backend.from_host, (dz, a)))
            add_rows(backend, sums, "b", backend.from_host(dz))
            totals = sums.totals()
            assert np.array_equal(backend.to_host(totals["W"]), np.swapaxes(dz, -1, -2) @ a)
            assert np.array_equal(backend.to_host(totals["b"]), dz.sum(axis=-2))


@pytest.mark.parametrize("device", cuda)
def test_without_a_batched_product_of_cublas_copies_are_multiplied(device, monkeypatch):
    import cupy

    index, found = ba.backend.resolve(device)._index, []
    rng = np.random.default_rng(0)
    dz, a = (rng.integers(-9, 9, (1200, F)).astype("float32") for F in (3, 2))
    for batched in (True, False):
        if not batched:
            monkeypatch.setattr(cupy.cuda.cublas, "sgemmStridedBatched", lambda handle: None)
        backend = ba.backend.CupyBackend(index)
        assert (backend._batched is not None) == batched
        with backend.active():
            sums = Sums()
            add_product(backend, sums, "W", *map(backend.from_host, (dz, a)))
            found.append(backend.to_host(sums.totals()["W"]))
    assert np.array_equal(found[0], dz.T @ a)
    assert np.array_equal(found[1], found[0])


@pytest.mark.parametrize("device", cuda)
@pytest.mark.parametrize("members", [None, 3])
def test_the_loss_of_many_segments_is_that_of_one(device, members):
    """More segments than may wait at a time."""
    rng, T, backend = np.random.default_rng(0), 40, ba.backend.CupyBackend(ba.backend.resolve(device)._index)
    rnn = ba.RNN(3, 4, 2, dtype="float64", members=members, device=backend)
    x, target = (rnn.asarray(rng.standard_normal((T, 2, size))) for size in (3, 2))
    weights = rnn.asarray(rng.standard_normal((T, 2)))
    whole = [backend.to_host(rnn.loss(x, target, weights=of)[0]) for of in (None, weights)]
    backend.segment_bytes = 1
    for of, expected in zip((None, weights), whole, strict=True):
        for loss in (rnn.loss(x, target, weights=of)[0], rnn.loss_and_grad(x, target, weights=of)[0]):
            assert loss.shape == (() if members is None else (members,))
            np.testing.assert_allclose(backend.to_host(loss), expected, rtol=1e-12)


@pytest.mark.parametrize("device", cuda)
@pytest.mark.parametrize("options", [{}, {"members": 2}, {"cell": "gru"}, {"bidirectional": True}], ids=str)
def test_a_plan_counts_what_waits_to_be_summed(device, options):
    import cupy

    class Pool(cupy.cuda.MemoryPool):
        most = 0

        def malloc(self, size):
            memory = super().malloc(size)
            self.most = max(self.most, self.used_bytes())
            return memory

    rnn = ba.RNN(20, 40, 20, device=device, **options)
    x, target = (rnn.asarray(np.ones((100, 32, 20), "float32")) for _ in range(2))
    rnn.loss_and_grad(x, target)
    pool = Pool()
    with cupy.cuda.using_allocator(pool.malloc):
        rnn.loss_and_grad(x, target)
    assert pool.most <= rnn.plan(x.shape).peak


# ---- tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", cuda)
@DTYPES
@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
@pytest.mark.parametrize(("M", "I"), [(1, 1), (12, 7), (5, 1000)])
def test_columns_are_read_as_by_portable_code(device, dtype, lead, M, I):  # noqa: E741
    rng, backend = np.random.default_rng(0), ba.backend.resolve(device)
    W, b = rng.standard_normal((*lead, M, I)).astype(dtype), rng.standard_normal((*lead, M)).astype(dtype)
    for between in {(1,) * len(lead), lead}:
        index = rng.integers(0, I, (6, *between, 4))
        for uses in (1, 10**6):
            expected = np.empty((6, *lead, 4, M), dtype)
            ba.Backend(np).column_reader(W, b, uses)(expected, index)
            with backend.active():
                rows = backend.empty((7, *lead, 4, M), backend.dtype(dtype))
                backend.column_reader(*map(backend.from_host, (W, b)), uses)(rows[1:, ...], backend.from_host(index))
                assert np.array_equal(backend.to_host(rows[1:, ...]), expected)


@pytest.mark.parametrize("device", cuda)
@DTYPES
def test_one_hot_is_one_where_the_number_is(device, dtype):
    backend, index = ba.backend.resolve(device), np.array([[0, 3], [6, 2]])
    with backend.active():
        found = backend.one_hot(backend.from_host(index), 7, backend.dtype(dtype))
        assert found.dtype == dtype
        assert np.array_equal(backend.to_host(found), np.eye(7)[index])


@pytest.mark.parametrize("device", cuda)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_what_does_not_compile_is_said_once_and_done_by_the_portable_form(device, cell, monkeypatch):
    monkeypatch.setattr(cuda_columns, "SOURCE", "no C++")
    monkeypatch.setattr(cuda_rows, "_REDUCTIONS", "no C++")
    backend = ba.backend.CupyBackend(ba.backend.resolve(device)._index)
    rng = np.random.default_rng(0)
    x, target = rng.integers(0, 7, (5, 3)), rng.integers(0, 7, (5, 3))
    here, there = (ba.RNN(7, 6, 7, cell=cell, output="softmax", device=d, dtype="float64") for d in ("cpu", backend))
    expected = here.loss_and_grad(x, target, "cross_entropy")
    with pytest.warns(RuntimeWarning, match=r"^the kernel for .* did not compile: .*Please report this") as said:
        found = there.loss_and_grad(x, target, "cross_entropy")
    assert sorted(str(warning.message).partition(" did")[0] for warning in said) == [
        "the kernel for a loss in one launch",
        "the kernel for sums over rows",
    ]
    again = there.loss_and_grad(x, target, "cross_entropy")  # without a word
    for loss, grads, _ in (found, again):
        assert np.allclose(backend.to_host(loss), expected[0], rtol=1e-13, atol=0)
        for name, gradient in expected[1].params.items():
            assert np.allclose(backend.to_host(grads.params[name]), gradient, rtol=0, atol=1e-13)
