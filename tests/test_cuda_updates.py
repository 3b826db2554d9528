"""Updates, norms and clipping on CUDA: one launch each for all arrays, with the numbers of the portable code."""

import importlib.util
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import cuda, needs_cuda
from every_optimizer import OPTIMIZERS, each_optimizer

import bptt_array as ba
from bptt_array.backend.cuda_norms import MOST
from bptt_array.backend.cuda_updates import kernel_text, most_groups
from bptt_array.backend.portable import Backend
from bptt_array.optimizers import largest_entries
from bptt_array.tracing.program import CannotTraceError

needs_counters = pytest.mark.skipif(
    importlib.util.find_spec("gpuemu") is None,
    reason="counting launches and copies needs the emulated CUDA device (gpuemu)",
)

on_cuda = pytest.mark.parametrize("device", cuda)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
SHAPES = [(5, 4), (), (1,), (33,), (5000,), (1, 1), (7, 300)]


def counted(call):
    """Launches of a call that has been made twice before; it neither copies nor waits nor asks for memory."""
    import gpuemu

    for _ in range(2):
        result = call()
    with gpuemu.count() as count:
        result = call()
    others = ("syncs", "implicit_syncs", "h2d", "d2h", "p2p", "malloc", "memset")
    assert {name: getattr(count, name) for name in others} == dict.fromkeys(others, 0)
    return count.launches + count.d2d + count.gemms + count.blas, result


def arrays_of(shapes, dtype, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        return {f"p{k}": np.asarray(size * rng.standard_normal(shape), dtype) for k, shape in enumerate(shapes)}


def there(device, arrays):
    backend = ba.backend.resolve(device)
    with backend.active():
        return {name: backend.from_host(np.asarray(a)) for name, a in arrays.items()}


def here(arrays):
    return {name: a.get() for name, a in arrays.items()}


def portable(device):
    """The same device, with the portable norms."""
    kind = type("Portable", (ba.backend.CupyBackend,), {})
    for name in ("largest_entries", "global_norm", "clipped"):
        setattr(kind, name, getattr(Backend, name))
    return kind(ba.backend.resolve(device)._index)


def close(found, expected, dtype, times=20):
    eps = np.finfo(dtype).eps
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, rtol=times * eps, atol=4 * eps, err_msg=name)


# ---- updates ----------------------------------------------------------------------------------------------


@needs_counters
@on_cuda
@each_dtype
@each_optimizer
def test_an_update_of_all_parameters_is_one_launch(device, dtype, make):
    params, optimizer = arrays_of([*SHAPES, (0,)], dtype), make()
    grads = [arrays_of([*SHAPES, (0,)], dtype, seed) for seed in (1, 2, 3)]
    ours, theirs = there(device, params), [there(device, g) for g in grads]
    later = iter(theirs)
    launches, _ = counted(lambda: optimizer.update(ours, next(later)))
    assert launches == 1
    same = make()
    for g in grads:
        same.update(params, g)
    close(here(ours), params, dtype)


@needs_counters
@on_cuda
@each_optimizer
def test_what_the_arguments_of_one_launch_do_not_hold_takes_a_second(device, make):
    numbers = make()._numbers("", ba.backend.NumpyBackend(), np.dtype("float32"), 1)
    most = most_groups(2 + len(make().keeps), len(numbers))
    assert most > 64
    for count, expected in ((most, 1), (most + 1, 2), (3 * most, 3)):
        shapes = [(k % 5,) for k in range(count * 5 // 4)]
        shapes = [*filter(all, shapes), *([(2,)] * count)][:count]
        params, grads, optimizer = arrays_of(shapes, "float32"), arrays_of(shapes, "float32", 1), make()
        ours, theirs = there(device, params), there(device, grads)
        launches, _ = counted(lambda o=optimizer, p=ours, g=theirs: o.update(p, g))
        assert launches == expected
        same = make()
        for _ in range(3):
            same.update(params, grads)
        close(here(ours), params, "float32")


@needs_counters
@on_cuda
@each_optimizer
def test_each_dtype_is_a_launch_and_so_is_each_age_of_adam(device, make):
    wide, narrow = arrays_of(SHAPES, "float64"), arrays_of(SHAPES, "float32", 1)
    params = narrow | {f"wide {name}": a for name, a in wide.items()}
    grads = {name: a / 3 for name, a in params.items()}
    optimizer, same = make(), make()
    ours, theirs = there(device, params), there(device, grads)
    launches, _ = counted(lambda: optimizer.update(ours, theirs))
    assert launches == 2
    for _ in range(3):
        same.update(params, grads)
    first = {name: params[name] for name in narrow}
    close({name: ours[name].get() for name in narrow}, first, "float32")
    close(
        {name: ours[name].get() for name in params if name not in narrow},
        {n: params[n] for n in params if n not in narrow},
        "float64",
    )
    joined = {name: params[name] for name in narrow} | {"later": np.ones(3, np.float32)}
    of_joined = {name: np.ones_like(a) for name, a in joined.items()}
    ours = {name: ours[name] for name in narrow} | there(device, {"later": joined["later"]})
    theirs = there(device, of_joined)
    launches, _ = counted(lambda: optimizer.update(ours, theirs))
    assert launches == (2 if isinstance(optimizer, ba.Adam) else 1)
    for _ in range(3):
        same.update(joined, of_joined)
    close(here(ours), joined, "float32")


@needs_counters
@on_cuda
@each_dtype
def test_what_does_not_decay_is_a_launch_of_its_own(device, dtype):
    host, (same, optimizer) = arrays_of(SHAPES, dtype), (ba.AdamW(1e-2, weight_decay=0.5) for _ in range(2))
    same.no_decay = optimizer.no_decay = ("p1", "p3", "p4")
    ours, grads = there(device, host), arrays_of(SHAPES, dtype, 1)
    theirs, schedule = there(device, grads), ba.lr_schedules.warm_up(3)
    steps = iter(range(3))

    def update():
        optimizer.lr = 1e-2 * schedule(next(steps))
        optimizer.update(ours, theirs)

    launches, _ = counted(update)
    assert launches == 2
    for step in range(3):
        same.lr = 1e-2 * schedule(step)
        same.update(host, grads)
    close(here(ours), host, dtype)


@on_cuda
@each_dtype
@each_optimizer
def test_parameters_that_lie_otherwise_or_share_memory_are_updated_as_on_the_host(device, dtype, make):
    """Strided, transposed, in pieces of one array, twice the same one, and as their own gradients."""

    def parts(a, b):
        return {
            "whole": a[0, ...],
            "strided": a[1, :, ::2],
            "transposed": a[2, ...].T,
            "again": a[0, ...],
            "row": a[3, 0, :],
            "overlapping": b[:7],
            "overlapped": b[4:],
            "single": b[1:2],
        }

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 6, 6)).astype(dtype), rng.standard_normal(12).astype(dtype)
    ours, theirs = {"a": a, "b": b}, there(device, {"a": a, "b": b})
    optimizers = make(), make()
    for _ in range(3):
        params = parts(**ours)
        grads = {name: np.cos(value) for name, value in params.items()} | {"row": params["row"]}
        others = parts(**theirs)
        of_others = there(device, grads) | {"row": others["row"]}
        optimizers[0].update(params, grads)
        optimizers[1].update(others, of_others)
        close(here(theirs), ours, dtype)


@needs_counters
@on_cuda
def test_only_what_does_not_lie_in_order_is_updated_alone(device):
    params, grads = (
        whole | {"strided": whole["p6"][:, ::2]}
        for whole in (there(device, arrays_of(SHAPES, "float32")) for _ in "ab")
    )
    del params["p6"], grads["p6"]
    optimizer = ba.SGD(0.5)
    launches, _ = counted(lambda: optimizer.update(params, grads))
    assert launches == 2


@on_cuda
@each_dtype
def test_numbers_at_the_ends_of_a_dtype_are_updated_as_on_the_host(device, dtype):
    most = np.finfo(dtype).max
    values = np.array([0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, most, -most, 1e-30, 1e30], dtype)
    for make in OPTIMIZERS.values():
        ours, optimizer = {"a": np.ones(10, dtype), "b": values.copy()}, make()
        theirs, other = there(device, ours), make()
        grads = {"a": values, "b": np.ones(10, dtype)}
        with np.errstate(all="ignore"):
            for _ in range(2):
                optimizer.update(ours, grads)
                other.update(theirs, there(device, grads))
        close(here(theirs), ours, dtype)


@on_cuda
@each_optimizer
def test_nothing_is_changed_by_an_update_that_is_an_error(device, make):
    params = there(device, arrays_of([(5,), (6,)], "float32"))
    before, optimizer = here(params), make()
    grads = there(device, arrays_of([(5,), (7,)], "float32"))
    with pytest.raises(ValueError, match=r"grads\['p1'\] has shape \(7,\)"):
        optimizer.update(params, grads)
    assert all(np.array_equal(a, before[name]) for name, a in here(params).items())
    assert not optimizer.state_dict()["updates"]


@on_cuda
def test_two_optimizers_and_two_streams_do_not_disturb_each_other(device):
    import cupy

    backend = ba.backend.resolve(device)
    host = arrays_of(SHAPES, "float32")
    grads = arrays_of(SHAPES, "float32", 1, 30.0)
    optimizers = [make() for _ in range(2) for make in (OPTIMIZERS["adam"], OPTIMIZERS["momentum"])]
    with backend.active():
        streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
        sides = [(optimizer, there(device, host), streams[k % 2]) for k, optimizer in enumerate(optimizers)]
        there_ = there(device, grads)
        cupy.cuda.Device().synchronize()
        for _ in range(3):
            for optimizer, params, stream in sides:
                with stream:
                    optimizer.update(params, ba.clip_by_global_norm(there_, 1.0))
        for stream in streams:
            stream.synchronize()
    for optimizer, params, _ in sides:
        same, expected = type(optimizer)(optimizer.lr, *([0.9] if isinstance(optimizer, ba.SGD) else [])), {}
        expected = {name: a.copy() for name, a in host.items()}
        for _ in range(3):
            same.update(expected, ba.clip_by_global_norm(grads, 1.0))
        close(here(params), expected, "float32", times=40)


def test_the_text_of_an_update_reads_everything_before_it_writes():
    def make(ops):
        def swap(a, b, factor):
            kept = a + 0 * b
            a[...] = factor * b
            ops.add_(b, kept, b)

        return swap

    text = kernel_text(make, "float", 2, 1)
    body = text[text.index("const T r0") :]
    reads = [body.index(f"= groups.array[{k}][g][i];") for k in range(2)]
    writes = [body.index(f"groups.array[{k}][g][i] =") for k in range(2)]
    assert max(reads) < min(writes)
    assert "(T)x0" in body


@pytest.mark.parametrize(
    "change",
    [lambda xp, a: xp.sum(a), lambda xp, a: xp.sort(a), lambda xp, a: xp.flip(a), lambda xp, a: a if a[0] > 0 else -a],
)
def test_what_is_not_elementwise_is_no_kernel(change):
    def make(ops):
        def function(a):
            a[...] = change(ops.xp, a)

        return function

    with pytest.raises((CannotTraceError, TypeError)):
        kernel_text(make, "float", 1, 0)


@on_cuda
@pytest.mark.parametrize("broken", ["trace", "compile"])
def test_where_there_can_be_no_kernel_groups_are_computed_one_by_one(device, broken, monkeypatch):
    import cupy

    backend = ba.backend.CupyBackend(ba.backend.resolve(device)._index)
    assert backend.fused_over(made) is backend.fused_over(made)
    if broken == "trace":
        monkeypatch.setattr("bptt_array.backend.cuda_updates.statements", raises(CannotTraceError("no")))
    else:
        error = cupy.cuda.compiler.CompileException("no", "", "", ())
        monkeypatch.setattr(cupy, "RawModule", raises(error))
    with backend.active():
        groups = [(cupy.ones(n), cupy.full(n, 2.0)) for n in (1, 0, 5)]
        for _ in range(2):
            backend.fused_over(made)(groups, 3.0)
    assert [a.tolist() for a, _ in groups] == [[13.0], [], [13.0] * 5]


def raises(error):
    def function(*args, **more):
        raise error

    return function


def made(ops):
    def function(a, b, factor):
        a += factor * b

    return function


# ---- norms, and clipping ----------------------------------------------------------------------------------


def calls(members=None, bound=2.0):
    return {
        "norm": lambda grads: {"norm": ba.global_norm(grads, members)},
        "largest": lambda grads: largest_entries(grads, members),
        "clipped": lambda grads: ba.clip_by_global_norm(grads, bound, members),
    }


@needs_counters
@on_cuda
@each_dtype
@pytest.mark.parametrize("members", [None, 1, 3])
def test_a_norm_and_clipping_are_one_launch_with_the_numbers_of_the_host(device, dtype, members):
    lead = () if members is None else (members,)
    shapes = [(*lead, *shape) for shape in SHAPES]
    for size in (1.0, 1e-3, 1e30, 1e-30, 1e38, 1e-40, 0.0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            host = arrays_of(shapes, dtype, size=size)
            grads = there(device, host)
            for name, call in calls(members).items():
                launches, found = counted(lambda call=call, grads=grads: call(grads))
                expected = call(host)
                assert launches == 1, name
                assert list(found) == list(expected)
                for key, value in expected.items():
                    assert (found[key].shape, found[key].dtype) == (value.shape, value.dtype)
                    assert found[key].flags.c_contiguous
                    assert found[key].flags.owndata or found[key].base is None or name == "largest"
                    np.testing.assert_allclose(found[key].get(), value, rtol=8 * np.finfo(dtype).eps, atol=0)


@on_cuda
@each_dtype
def test_what_is_no_number_or_infinite_shows_as_in_the_portable_code(device, dtype):
    backend = portable(device)
    for bad in (np.nan, np.inf, -np.inf, (np.nan, np.inf)):
        host = arrays_of([(3, *shape) for shape in SHAPES], dtype)
        host["p4"][1, 70] = np.ravel(bad)[0]
        host["p0"][1, 0, 0] = np.ravel(bad)[-1]
        grads = there(device, host)
        for name, call in calls(3).items():
            found = here(call(grads))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("bptt_array.optimizers.norms.backend_of", lambda array, backend=backend: backend)
                expected = here(call(grads))
            for key, value in expected.items():
                np.testing.assert_allclose(found[key], value, rtol=8 * np.finfo(dtype).eps, atol=0, err_msg=name)


@on_cuda
@each_dtype
def test_sums_neither_overflow_nor_underflow_between_the_ends_of_a_dtype(device, dtype):
    limits = np.finfo(dtype)
    for size in (limits.max, limits.max / 4, limits.smallest_normal * 4, 1.0):
        host = {"a": np.full(9, size, dtype), "b": np.full((2, 8), -size / 2, dtype)}
        grads = there(device, host)
        norm = float(ba.global_norm(grads))
        if size == limits.max:
            assert norm == np.inf
        else:
            assert norm / float(size) == pytest.approx(13**0.5, rel=1e-6)  # of 9 + 16 / 4
        for bound in (size / 8, size, limits.max, limits.smallest_normal, 1e300, 1e-300):
            found, expected = ba.clip_by_global_norm(grads, float(bound)), ba.clip_by_global_norm(host, float(bound))
            for name, value in expected.items():
                atol = float(limits.smallest_subnormal) * 2
                np.testing.assert_allclose(found[name].get(), value, rtol=1e2 * limits.eps, atol=atol)


@on_cuda
def test_entries_of_all_sizes_are_summed_together(device):
    for values in (
        [1e300, 1e150, 1.0, 1e-300],
        [1e150, 1e144, 1e-150, 1e-160],
        [2.0**480, 2.0**481, 2.0**479],
        [1e-160, 1e-150, 1e-144, 1e-145],
        [1e-300, 2e-300],
        [5e-324, 1e-310],
        [1e308, 1e308, 1e308],
        [1e160, 2e160],  # whose squares are too large, or too small, as they are
        [1e-170, 3e-170],
        [1e-310, 3.0, -4.0],
    ):
        host = np.array(values)
        scale = np.abs(host).max()
        with np.errstate(over="ignore"):
            expected = scale * np.sqrt(np.sum((host / scale) ** 2))
        assert float(ba.global_norm(there(device, {"a": host}))) == pytest.approx(expected, rel=1e-15, abs=0)


@on_cuda
@each_dtype
def test_nothing_to_clip_is_the_same_to_the_last_bit(device, dtype):
    host = arrays_of(SHAPES, dtype)
    host["p3"][:4] = [-0.0, 0.0, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).smallest_normal]
    clipped = here(ba.clip_by_global_norm(there(device, host), 1e6))
    for name, value in host.items():
        assert clipped[name].tobytes() == value.tobytes()


@on_cuda
@each_dtype
def test_a_member_is_what_it_is_alone_and_names_have_no_order(device, dtype):
    rng = np.random.default_rng(0)
    host = arrays_of([(5, 40, 90), (5, 3), (5, 2048), (5, 2049), (5, 1)], dtype)
    grads = there(device, host)
    norms, clipped, largest = (calls(5)[name](grads) for name in ("norm", "clipped", "largest"))
    mixed = {name: grads[name] for name in rng.permutation(list(grads))}
    assert np.array_equal(ba.global_norm(mixed, 5).get(), norms["norm"].get())
    for k in range(5):
        alone = {name: a[k] for name, a in grads.items()}
        assert float(ba.global_norm(alone)) == float(norms["norm"][k])
        for name, value in ba.clip_by_global_norm(alone, 2.0).items():
            assert np.array_equal(value.get(), clipped[name][k].get())
        for name, value in largest_entries(alone).items():
            assert value.shape == ()
            assert float(value) == float(largest[name][k]) == np.abs(host[name][k]).max()


@on_cuda
@each_dtype
def test_gradients_of_more_chunks_than_are_added_up_have_longer_ones_that_blocks_share(device, dtype, monkeypatch):
    monkeypatch.setattr("bptt_array.backend.cuda_norms._CHUNKS", 2)
    monkeypatch.setitem(vars(ba.backend.resolve(device)._norms), "_blocks", 3)  # each has several chunks, and members
    host = arrays_of([(2, 9000), (2, 1), (2, 6001)], dtype)
    grads = there(device, host)
    for name, call in calls(2).items():
        found, expected = here(call(grads)), call(host)
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=8 * np.finfo(dtype).eps, err_msg=name)
    norms = ba.global_norm(grads, 2).get()
    assert [float(ba.global_norm({name: a[k] for name, a in grads.items()})) for k in range(2)] == norms.tolist()


@on_cuda
def test_the_largest_entry_is_found_in_every_chunk_of_a_long_row(device):
    host = {"a": np.ones(70_000, np.float32), "b": np.ones(3, np.float32)}
    for k in (0, 66_000, 69_999):  # the first of 35 chunks, one beyond 32, and the last entry
        host["a"][k] = -2.0 - k
        assert float(largest_entries(there(device, host))["a"]) == 2.0 + k


@on_cuda
def test_clipped_gradients_are_arrays_of_their_own(device):
    grads = there(device, arrays_of(SHAPES, "float32", size=100.0))
    before = here(grads)
    clipped = ba.clip_by_global_norm(grads, 1.0)
    for name in clipped:
        rest = {other: value.get() for other, value in clipped.items() if other != name}
        with clipped[name].device:
            clipped[name].fill(7.0)
        assert all(np.array_equal(clipped[other].get(), value) for other, value in rest.items())
    assert all(np.array_equal(a.get(), before[name]) for name, a in grads.items())


@needs_counters
@on_cuda
def test_gradients_of_several_dtypes_in_other_orders_or_too_many_take_the_portable_way(device):
    rng = np.random.default_rng(0)
    several = {"a": rng.standard_normal(5).astype("f"), "b": rng.standard_normal(7)}
    strided = {"a": rng.standard_normal((6, 4)), "b": rng.standard_normal((8, 9))}
    many = {str(k): rng.standard_normal(k % 7 + 1).astype("f") for k in range(MOST + 1)}
    for host in (several, strided, many):
        grads = there(device, host)
        if host is strided:
            grads, host = ({"a": a["a"].T, "b": a["b"][:, ::2]} for a in (grads, host))
        for name, call in calls().items():
            found, expected = here(call(grads)), call(host)
            for key, value in expected.items():
                assert found[key].dtype == value.dtype, name
                np.testing.assert_allclose(found[key], value, rtol=1e-6)
    del many[str(MOST)]
    grads = there(device, many)
    for name, call in calls().items():
        launches, found = counted(lambda call=call, grads=grads: call(grads))
        assert launches == 1, name
        for key, value in call(many).items():
            np.testing.assert_allclose(found[key].get(), value, rtol=1e-6)


@on_cuda
@pytest.mark.parametrize("broken", ["no cooperative launch", "compile"])
def test_a_device_that_cannot_takes_the_portable_way(device, broken, monkeypatch):
    import cupy

    backend = ba.backend.CupyBackend(ba.backend.resolve(device)._index)
    if broken == "compile":
        monkeypatch.setattr(cupy, "RawModule", raises(cupy.cuda.compiler.CompileException("no", "", "", ())))
    else:
        vars(backend._norms)["_able"] = False
    host = arrays_of(SHAPES, "float32", size=3.0)
    grads, on_host = there(device, host), {name: call(host) for name, call in calls().items()}
    monkeypatch.setattr("bptt_array.optimizers.norms.backend_of", lambda array: backend)
    with backend.active():
        assert backend.global_norm(grads, None) is None
    for name, call in calls().items():
        found = here(call(grads))
        for key, value in on_host[name].items():
            np.testing.assert_allclose(found[key], value, rtol=1e-6)


# ---- the barrier of the grid ------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent

#: What is taken out of the text of the kernels, or put in its place; without any the kernels are sound.
BARRIER = {
    "nothing": None,
    "fence before": ("        __threadfence();\n        const unsigned before", "        const unsigned before"),
    "fence after": ("        __threadfence();\n    }\n    __syncthreads();", "    }\n    __syncthreads();"),
    "threads of a block after": (
        "        __threadfence();\n    }\n    __syncthreads();",
        "        __threadfence();\n    }",
    ),
    "the wait": ("        while (((*(volatile unsigned*)word ^ before) & 0x80000000u) == 0) {}\n", ""),
    "a block": ("0x80000000u - (gridDim.y - 1)", "0x80000000u - gridDim.y"),
    "the whole barrier": ("    everybody(word);\n", ""),
    "before the sum of a block": ("    __syncthreads();\n    V all", "    V all"),
    "after the sum of a block": ("    __syncthreads();\n    return all", "    return all"),
}

PROGRAM = textwrap.dedent(
    """
    import sys, pathlib, numpy as np, cupy, gpuemu
    import bptt_array as ba
    from bptt_array.backend import cuda_norms
    from bptt_array.optimizers import largest_entries

    old, new = sys.argv[1:] or ("", "")
    sound = cuda_norms.kernel_text

    def changed(dtype):
        text = sound(dtype)
        assert old in text
        return text.replace(old, new) if old else text

    cuda_norms.kernel_text = changed
    # Several chunks a member and several a block, of which there are three.
    rng = np.random.default_rng(0)
    for members, shapes in ((None, [(4100,), (3,), (50,)]), (2, [(2, 2049), (2, 3)])):
        host = {str(k): rng.standard_normal(shape).astype("float32") for k, shape in enumerate(shapes)}
        grads = {name: cupy.asarray(a) for name, a in host.items()}
        for _ in range(2):
            with gpuemu.count():
                clipped = ba.clip_by_global_norm(grads, 1.0, members)
                largest = largest_entries(grads, members)
                norm = ba.global_norm(grads, members)
        expected = ba.clip_by_global_norm(host, 1.0, members)
        assert all(np.allclose(clipped[name].get(), value, rtol=1e-5) for name, value in expected.items())
        assert np.allclose(norm.get(), ba.global_norm(host, members), rtol=1e-6)
        for name, value in largest_entries(host, members).items():
            assert np.array_equal(largest[name].get(), value)
    """
)


@needs_counters
@pytest.mark.parametrize("left_out", BARRIER)
@pytest.mark.parametrize("device", [pytest.param("cuda", id="cuda", marks=needs_cuda(1))])
def test_blocks_wait_for_each_other_and_what_is_left_out_of_that_is_found(device, left_out, tmp_path):
    change = BARRIER[left_out] or ()
    environment = os.environ | {"GPUEMU_RACE": "1", "GPUEMU_POISON": "1", "GPUEMU_STRICT": "1", "GPUEMU_SMS": "3"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *change], env=environment, capture_output=True, text=True, timeout=600
    )
    assert (done.returncode == 0) == (left_out == "nothing"), done.stderr[-2000:]
    if change:
        assert "race" in done.stderr.lower() or "LAUNCH_TIMEOUT" in done.stderr or "LaunchTimeout" in done.stderr, (
            done.stderr[-2000:]
        )
