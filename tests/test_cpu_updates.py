"""Updates and clipping of large arrays on NumPy: in blocks and by threads, with the numbers of whole arrays."""

import math
import threading
import time
import tracemalloc

import numpy as np
import pytest
from every_optimizer import OPTIMIZERS, each_optimizer
from threadpoolctl import threadpool_info, threadpool_limits

import bptt_array as ba
from bptt_array.backend import NumpyBackend, cpu_norms, cpu_updates
from bptt_array.backend.portable import Backend
from bptt_array.optimizers import largest_entries

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
#: Of blocks of 32 numbers of float32, 16 of float64: nothing, one number, around a block, around two, several.
SHAPES = [(), (0,), (1,), (15,), (16,), (17,), (31,), (32,), (33,), (64,), (65,), (7, 30), (0, 3), (3, 5, 40), (1, 1)]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few numbers, for arrays of any size."""
    monkeypatch.setattr(cpu_updates, "_BLOCK_BYTES", 128)
    monkeypatch.setattr(cpu_updates, "_WHOLE", 0)
    monkeypatch.setattr(cpu_norms, "_BLOCK", 16)
    monkeypatch.setattr(cpu_norms, "_PIECE", 64)
    monkeypatch.setattr(cpu_norms, "_SHARED", 0)


@pytest.fixture(params=[1, 2, 3], ids=lambda count: f"{count} threads")
def threads(request):
    with threadpool_limits(request.param, "blas"):
        yield request.param


def arrays_of(dtype, seed, shapes=SHAPES, size=1.0):
    rng = np.random.default_rng(seed)
    return {f"p{k}": np.asarray(size * rng.standard_normal(shape), dtype) for k, shape in enumerate(shapes)}


def as_it_is(array):
    return array


def in_another_order(array):
    return np.array(array.T, order="C").T


def with_gaps(array):
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]) if array.ndim else (), array.dtype)
    view = wide[..., ::2] if array.ndim else wide
    view[...] = array
    return view


LAYOUTS = {
    "in order": (as_it_is, as_it_is),
    "both otherwise": (in_another_order, in_another_order),
    "gradients otherwise": (as_it_is, in_another_order),
    "parameters with gaps": (with_gaps, as_it_is),
    "gradients with gaps": (in_another_order, with_gaps),
}


def updated(make, params, grads, layout=LAYOUTS["in order"]):
    """Parameters, and what is kept, after updates by each of ``grads``."""
    optimizer, (of_param, of_grad) = make(), layout
    ours = {name: of_param(value.copy()) for name, value in params.items()}
    for update in grads:
        optimizer.update(ours, {name: of_grad(value) for name, value in update.items()})
    kept = optimizer.state_dict()["kept"]
    return ours | {f"{name} {k}": a for name, arrays in kept.items() for k, a in enumerate(arrays)}


def the_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert np.array_equal(found[name], value, equal_nan=True), name


# ---- updates ----------------------------------------------------------------------------------------------


@each_optimizer
@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_an_update_in_blocks_has_the_bits_of_one_of_whole_arrays(make, dtype, layout, threads, request):
    params, grads = arrays_of(dtype, 0), [arrays_of(dtype, seed) for seed in (1, 2, 3)]
    whole = updated(make, params, grads)
    request.getfixturevalue("small_blocks")
    the_same(updated(make, params, grads, layout), whole)


@each_optimizer
def test_an_update_of_large_arrays_is_that_of_float64(make, threads):
    shapes = [(1 << 19,), (300, 1001), (5,)]
    params, grads = arrays_of("float32", 0, shapes), [arrays_of("float32", seed, shapes) for seed in (1, 2)]
    wide = [{name: a.astype("float64") for name, a in arrays.items()} for arrays in (params, *grads)]
    found, expected = updated(make, params, grads), {}
    for name in params:  # one by one they are small, and computed whole
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu_updates, "_WHOLE", 1 << 30)
            expected |= updated(make, {name: wide[0][name]}, [{name: g[name]} for g in wide[1:]])
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
@each_optimizer
def test_arrays_that_share_memory_are_updated_one_after_the_other(make):
    def parts(base):
        return {"a": base[1:101], "b": base[101:201], "again": base[1:101], "ahead": base[40:140]}

    rng = np.random.default_rng(0)
    base, grads = rng.standard_normal(201), {name: rng.standard_normal(100) for name in ("a", "b", "again", "ahead")}
    grads["a"] = base[:100]  # what is written for one entry was the gradient of the next
    other, optimizer, alone = base.copy(), make(), make()
    optimizer.update(parts(base), grads)
    for name, param in parts(other).items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu_updates, "_WHOLE", 1 << 30)
            alone.update({name: param}, {name: other[:100] if name == "a" else grads[name]})
    assert np.array_equal(base, other)


def test_the_passes_of_adam_are_its_operations_and_need_one_block():
    passes = cpu_updates._passes(ba.Adam()._equation(), "float32", 4, 7)
    assert passes.scratch == 1
    assert len(passes.calls) == 13


def swap(ops):
    def function(a, b, factor):
        kept = a + 0 * b
        a[...] = factor * b
        b[...] = kept

    return function


def moved(ops):
    def function(a, b, factor):
        b[...] = a
        a[...] = factor * b + b

    return function


def chosen(ops):
    def function(a, b, factor):
        a[...] = ops.xp.where(b > 0, factor * a, b)

    return function


def of_constants(ops):
    def function(a, b, factor):
        a += 0.25
        b *= factor

    return function


@pytest.mark.usefixtures("small_blocks")
@each_dtype
@pytest.mark.parametrize("make", [swap, moved, chosen, of_constants])
def test_any_elementwise_function_is_computed_in_blocks(make, dtype, threads):
    backend = NumpyBackend()
    arrays = [tuple(arrays_of(dtype, seed, [(100,), (100,)]).values()) for seed in range(3)]
    expected = [tuple(a.copy() for a in group) for group in arrays]
    for group in expected:
        make(backend.elementwise)(*group, 3.0)
    backend.fused_over(make)(arrays, 3.0)
    for found, group in zip(arrays, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(found, group, strict=True))


@pytest.mark.usefixtures("small_blocks")
def test_groups_of_several_shapes_and_dtypes_are_computed_whole():
    def make(ops):
        def function(a, b, factor):
            a += factor * b

        return function

    backend = NumpyBackend()
    groups = [(np.ones((5, 40)), np.arange(40.0)), (np.ones(90), np.ones(90, "float32")), (np.ones(90), np.ones(90))]
    backend.fused_over(make)(groups, 2.0)
    assert np.array_equal(groups[0][0], 1 + 2 * np.broadcast_to(np.arange(40.0), (5, 40)))
    assert (groups[1][0] == 3).all()
    assert (groups[2][0] == 3).all()


# ---- what it costs, and how it fails ----------------------------------------------------------------------


def peak_of(call):
    call()
    tracemalloc.start()
    try:
        held = call()
        return tracemalloc.get_traced_memory()[1], held
    finally:
        tracemalloc.stop()


@each_optimizer
def test_an_update_allocates_a_few_blocks(make, threads):
    shapes = [(1_500_000,), (700, 1000)]
    params, grads, optimizer = arrays_of("float32", 0, shapes), arrays_of("float32", 1, shapes), make()
    peak, _ = peak_of(lambda: optimizer.update(params, grads))
    blocks = 2 if isinstance(optimizer, ba.AdamW) else 1  # one for the step, and one for the decay beside it
    assert peak < (blocks * threads + 0.5) * cpu_updates._BLOCK_BYTES


@pytest.mark.parametrize("size", [1.0, 1e30], ids=["squared as they are", "scaled"])
def test_clipping_allocates_the_new_gradients_and_a_few_pieces(size, threads):
    grads = arrays_of("float32", 0, [(3_000_000,), (2000, 1000)], size)
    peak, clipped = peak_of(lambda: ba.clip_by_global_norm(grads, 1.0))
    assert peak < sum(a.nbytes for a in clipped.values()) + (threads + 0.5) * 8 * cpu_norms._PIECE


@pytest.mark.usefixtures("small_blocks")
def test_an_error_in_a_block_is_raised_when_no_thread_computes_and_leaves_the_blas_its_threads():
    with threadpool_limits(3, "blas"):
        before = [pool["num_threads"] for pool in threadpool_info()]
        params, grads = {"a": np.zeros(100_000)}, {"a": np.ones(100_000)}
        grads["a"][70_000] = 1e308
        with np.errstate(over="raise"), pytest.raises(FloatingPointError):
            ba.SGD(1e10).update(params, grads)
        assert [pool["num_threads"] for pool in threadpool_info()] == before
        changed = params["a"].copy()
        assert not changed[70_000]
        ba.SGD(1e10).update(params, {"a": np.zeros(100_000)})
        assert np.array_equal(params["a"], changed)  # nobody went on behind


@pytest.mark.usefixtures("small_blocks")
def test_threads_of_the_callers_may_update_at_the_same_time():
    params, grads = ([arrays_of("float32", seed + 10 * k) for seed in range(4)] for k in range(2))
    expected = [updated(OPTIMIZERS["adam"], *one) for one in zip(params, [[g] * 5 for g in grads], strict=True)]
    found = {}

    def work(k):
        found[k] = updated(OPTIMIZERS["adam"], params[k], [grads[k]] * 5)

    with threadpool_limits(2, "blas"):
        callers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    for k in range(4):
        the_same(found[k], expected[k])


def test_blocks_are_taken_by_whoever_is_free():
    """One thread that is held up leaves all other blocks to the other."""
    seen, held = [], threading.Event()

    def begin():
        def do(item):
            if item == 0:
                assert held.wait(60)
            seen.append(item)
            if len(seen) == 9:
                held.set()

        return do

    with threadpool_limits(2, "blas"):
        cpu_updates.shared_out(begin, list(range(10)), 2)
    assert seen == [*range(1, 10), 0]


def test_an_error_ends_the_work_of_all_threads():
    seen, begun = [], threading.Event()

    def do(item):
        if item == 0:
            assert begun.wait(60)
            raise ValueError("no")
        begun.set()
        time.sleep(0.001)
        seen.append(item)

    with threadpool_limits(2, "blas"), pytest.raises(ValueError, match="no"):
        cpu_updates.shared_out(lambda: do, list(range(5000)), 2)
    assert len(seen) < 4999


# ---- norms, and clipping ----------------------------------------------------------------------------------

OF_NORMS = [shape for shape in SHAPES if 0 not in shape]


def norm_of(grads):
    """To the last digits of float64, also where squares overflow."""
    values = np.concatenate([a.reshape(-1) for a in grads.values()]).astype(float)
    return math.hypot(*values.tolist())


@pytest.mark.usefixtures("small_blocks")
@each_dtype
@pytest.mark.parametrize("order", [as_it_is, in_another_order, with_gaps])
@pytest.mark.parametrize("size", [1.0, 1e-18, 1e-25, 1e-38, 1e18, 3e36, 0.0, 1e200, 1e-200, 1e-310, 1e306])
def test_norms_and_clipping_are_those_of_float64_at_every_size(dtype, order, size, threads):
    limits = np.finfo(dtype)
    if not (float(limits.smallest_subnormal) < size < float(limits.max)) and size:
        pytest.skip("no number of this dtype")
    grads = {name: order(a) for name, a in arrays_of(dtype, 0, OF_NORMS, size).items()}
    before = {name: a.copy() for name, a in grads.items()}
    expected, few = norm_of(grads), 8 * float(limits.eps)
    norm = ba.global_norm(grads)
    assert norm.dtype == dtype
    smallest = float(limits.smallest_subnormal)
    assert float(norm) == pytest.approx(expected, rel=few, abs=smallest)
    for bound in (expected / 3, 1.0, 2 * expected):
        if not float(limits.smallest_normal) <= bound <= float(limits.max):
            continue
        clipped = ba.clip_by_global_norm(grads, bound)
        assert list(clipped) == list(grads)
        for name, a in clipped.items():
            assert a.dtype == dtype
            factor = min(1.0, bound / expected) if expected else 1.0
            # A factor below the normal numbers has few digits.
            rtol = max(few, smallest / factor)
            np.testing.assert_allclose(a, grads[name] * float(factor), rtol=rtol, atol=2 * smallest)
            assert not np.shares_memory(a, grads[name])
            if bound > expected:
                assert np.array_equal(a, grads[name])
    largest = largest_entries(grads)
    assert all(float(value) == np.abs(grads[name]).max() for name, value in largest.items())
    the_same(grads, before)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.filterwarnings("ignore:invalid value")
@each_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, (np.inf, np.nan)], ids=str)
def test_what_is_no_number_or_infinite_shows_as_in_the_portable_form(dtype, bad, threads):
    grads = {name: np.stack([a] * 3) for name, a in arrays_of(dtype, 0, OF_NORMS).items()}
    grads["p9"][1, 40], grads["p0"][1] = np.ravel(bad)[0], np.ravel(bad)[-1]
    calls = [
        lambda: {"norm": ba.global_norm(grads, 3)},
        lambda: largest_entries(grads, 3),
        lambda: ba.clip_by_global_norm(grads, 2.0, 3),
    ]
    for call in calls:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("largest_entries", "global_norm", "clipped"):
                patch.setattr(NumpyBackend, name, getattr(Backend, name))
            expected = call()
        for name, value in call().items():
            np.testing.assert_allclose(value, expected[name], rtol=8 * np.finfo(dtype).eps)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.filterwarnings("ignore:invalid value")  # of what is infinite, and scaled by 0
@each_dtype
def test_a_member_has_the_bits_that_it_has_alone_whatever_the_others_are(dtype, threads):
    sizes = [1.0, 1e30, 1e-30, 0.0, np.inf, np.nan, 1e-3]
    shapes = [(len(sizes), *shape) for shape in [*OF_NORMS, (200,), (3, 70)]]
    grads = arrays_of(dtype, 0, shapes)
    for a in grads.values():
        for k, size in enumerate(sizes):
            a[k, ...] = size * np.abs(a[k, ...]) if np.isinf(size) else size * a[k, ...]
    norms, clipped = ba.global_norm(grads, len(sizes)), ba.clip_by_global_norm(grads, 2.0, len(sizes))
    largest = largest_entries(grads, len(sizes))
    for k in range(len(sizes)):
        alone = {name: a[k, ...] for name, a in reversed(grads.items())}
        assert np.array_equal(norms[k], ba.global_norm(alone), equal_nan=True)
        the_same({name: a[k, ...] for name, a in clipped.items()}, ba.clip_by_global_norm(alone, 2.0))
        the_same({name: a[k, ...] for name, a in largest.items()}, largest_entries(alone))


def test_no_bit_of_a_norm_or_of_clipped_gradients_depends_on_the_threads():
    grads = arrays_of("float32", 0, [(5_000_000,), (300, 1001), (7,)], 1e-3)
    found = []
    for count in (1, 2, 3):
        with threadpool_limits(count, "blas"):
            found.append([ba.global_norm(grads), *ba.clip_by_global_norm(grads, 0.1).values()])
    for others in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("constant", [True, False])
def test_few_roundings_pile_up_in_a_long_sum(constant):
    rng = np.random.default_rng(0)
    grads = {"a": np.full(1 << 24, 0.1, "float32"), "b": np.full(10_001, 0.1, "float32")}
    if not constant:
        grads = {name: rng.standard_normal(a.shape, dtype="float32") for name, a in grads.items()}
    expected = math.sqrt(sum(np.sum(a.astype(float) ** 2) for a in grads.values()))
    assert float(ba.global_norm(grads)) == pytest.approx(expected, rel=2e-7)


@pytest.mark.usefixtures("small_blocks")
@each_dtype
def test_the_order_of_gradients_and_their_signs_make_no_difference(dtype):
    for size in (1.0, float(np.finfo(dtype).max) / 1e3):
        grads = {name: -np.abs(a) for name, a in arrays_of(dtype, 0, OF_NORMS * 3, size).items()}
        norm, clipped = ba.global_norm(grads), ba.clip_by_global_norm(grads, 1.0)
        assert float(norm) == pytest.approx(norm_of(grads), rel=1e-6)
        rng = np.random.default_rng(0)
        for _ in range(50):
            mixed = {name: -grads[name] for name in rng.permutation(list(grads))}
            assert ba.global_norm(mixed) == norm
            for name, a in ba.clip_by_global_norm(mixed, 1.0).items():
                assert np.array_equal(-a, clipped[name])


def test_clipped_gradients_lie_as_they_did():
    grads = {
        "a": np.asfortranarray(np.ones((30, 40))),
        "b": np.ones((30, 40)),
        "c": np.ones((2, 3, 4)).transpose(1, 2, 0),
    }
    clipped = ba.clip_by_global_norm(grads, 1.0)
    assert {name: a.strides for name, a in clipped.items()} == {name: a.strides for name, a in grads.items()}


@pytest.mark.parametrize("shape", [(2, 3), (7,), (1, 3), (1,)])
def test_gradients_of_members_in_any_place_of_memory_have_norms_and_are_clipped(shape):
    memory, size = np.random.default_rng(0).standard_normal(300), int(np.prod(shape))
    inner = np.empty(shape).strides
    places = {
        "one for all": np.broadcast_to(memory[:size].reshape(shape), (3, *shape)),
        "the last first": memory[: 3 * size].reshape(3, *shape)[::-1],
        "with room between": memory[: 6 * size].reshape(3, 2, *shape)[:, 0],
        "each within the one before": np.lib.stride_tricks.as_strided(memory, (3, *shape), (8, *inner)),
        "each the other way": memory[: 3 * size].reshape(3, *shape[::-1]).transpose(0, *range(len(shape), 0, -1)),
    }
    for name, of_members in places.items():
        grads = {"a": of_members, "b": np.ones((3, 2))}
        copies = {key: a.copy(order="C") for key, a in grads.items()}
        assert np.allclose(ba.global_norm(grads, members=3), ba.global_norm(copies, members=3), rtol=1e-14), name
        clipped, expected = (ba.clip_by_global_norm(each, 1.0, members=3) for each in (grads, copies))
        for key, a in clipped.items():
            assert np.allclose(a, expected[key], rtol=1e-14), name
            a += 1.0  # into a place of each number's own
            assert np.allclose(a, expected[key] + 1.0, rtol=1e-14), name
