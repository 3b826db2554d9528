"""Backward in parallel over time: the gradients of the loop, in fewer steps that wait for each other."""

import gc
import importlib.util
import math
import tracemalloc
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from conftest import backends_and_dtypes, cuda

import bptt_array as ba
from bptt_array.backend import NumpyBackend, resolve
from bptt_array.bptt import chunk_times as deciding
from bptt_array.bptt import layer
from bptt_array.bptt.chunk_times import Timings, choose
from bptt_array.equations.cell import Tape
from bptt_array.equations.parallel import backward_parallel_, rows_of_a_chunk
from bptt_array.equations.recurrence import backward_
from bptt_array.equations.state_product import StateProduct
from bptt_array.rnn.cells import CELLS
from bptt_array.schedules.chunks import LONGEST_CHUNK, best_chunks
from bptt_array.schedules.instructions import STACKED

#: A device that does nothing in parallel: a step costs what its arithmetic costs; and one on which a call costs most.
FLOP_BOUND = Timings(step=1e-6, start=1e-6, call=1e-9, work=20e-6)
LAUNCH_BOUND = Timings(step=30e-6, start=300e-6, call=15e-6, work=1e-8)


class Segment(NamedTuple):
    """What a backward pass is given, as NumPy arrays in float64."""

    W_hh: np.ndarray  # (..., H, H)
    h: np.ndarray  # (S+1, ..., N, H)
    dstates: np.ndarray  # (S+1, ..., N, H)
    mask: np.ndarray | None  # (..., N, H)
    f: str = "tanh"


def segment(S, N, H, lead=(), masked=False, f="tanh", W_hh=None, scale=0.5, seed=0):
    """States of S steps forward from a state that is not zero, random direct gradients and a carried one."""
    rng = np.random.default_rng(seed)
    W = rng.uniform(-1, 1, (*lead, H, H)) / np.sqrt(H) if W_hh is None else W_hh
    mask = rng.integers(0, 2, (*lead, N, H)) * 2.0 if masked else None
    h, z = np.empty((S + 1, *lead, N, H)), scale * rng.standard_normal((S, *lead, N, H))
    h[0] = rng.standard_normal((*lead, N, H))
    for t in range(S):
        z_t = z[t] + (h[t] if mask is None else mask * h[t]) @ W.mT
        h[t + 1] = np.tanh(z_t) if f == "tanh" else np.maximum(z_t, 0)
    dstates = rng.standard_normal((S + 1, *lead, N, H))
    dstates[0] = 0
    return Segment(W, h, dstates, mask, f)


def orthogonal(H, gain, seed=0):
    return gain * np.linalg.qr(np.random.default_rng(seed).standard_normal((H, H)))[0]


def run(backend, dtype, given, chunks=None):
    """The total ``dh (S+1, ..., N, H)`` and ``dz (S, ..., N, H)`` on the host: in chunks, or by the loop."""
    cell = CELLS[given.f]
    with backend.active():
        W, h, dstates = (backend.from_host(a.astype(dtype)) for a in (given.W_hh, given.h, given.dstates))
        mask = None if given.mask is None else backend.from_host(given.mask.astype(dtype))
        dz = backend.empty(given.h[1:].shape, backend.dtype(dtype))
        if chunks is None:
            product = StateProduct(backend, W, dz.shape[1:-1], dz.shape[0], mask, backward=True)
            backward_(
                backend, cell, cell.backward_(backend, {"W_hh": W}, product), Tape((h,), None), (dstates,), dz, None
            )
        else:
            cell.slopes_(backend, None, dz, Tape((h,), None))
            backward_parallel_(backend, W, dstates, dz, chunks, mask)
        return backend.to_host(dstates), backend.to_host(dz)


def difference(found, expected, axis=None):
    """The largest difference, relative to the largest entry expected: of all, or along an axis and then of all."""
    off = np.max(np.abs(found.astype(float) - expected), axis=axis)
    return np.max(off / np.max(np.abs(expected.astype(float)), axis=axis))


CASES = {
    "one step": (segment(1, 2, 3), 4),
    "two steps": (segment(2, 2, 3), 2),
    "chunks of one step": (segment(9, 2, 3), 9),
    "chunks of one step and a rest": (segment(9, 2, 3), 7),
    "more chunks than steps": (segment(9, 2, 3), 100),
    "two chunks": (segment(40, 2, 5), 2),
    "a rest of all but a chunk": (segment(47, 2, 5), 12),
    "one sequence": (segment(90, 1, 6), 9),
    "one unit": (segment(50, 3, 1), 6),
    "one of everything": (segment(50, 1, 1), 5),
    "relu": (segment(60, 2, 5, f="relu"), 8),
    "mask": (segment(60, 3, 5, masked=True), 8),
    "mask, chunks of one step": (segment(7, 3, 5, masked=True), 7),
    "members": (segment(60, 2, 5, lead=(3,)), 8),
    "members, one sequence": (segment(61, 1, 4, lead=(3,)), 8),
    "members, directions, mask, relu": (segment(62, 2, 4, lead=(3, 2), masked=True, f="relu"), 9),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_gradients_are_those_of_the_loop(make_backend, dtype, case):
    given, chunks = CASES[case]
    backend = make_backend()
    for found, expected in zip(run(backend, dtype, given, chunks), run(backend, dtype, given), strict=True):
        assert found.dtype == expected.dtype == dtype
        assert difference(found, expected) <= 8 * np.finfo(dtype).eps


@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_one_chunk_is_the_loop_to_the_last_bit(make_backend, dtype):
    backend, given = make_backend(), segment(11, 2, 3, masked=True)
    for found, expected in zip(run(backend, dtype, given, 1), run(backend, dtype, given), strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("chunks", [0, -3])
def test_less_than_one_chunk_is_refused(chunks):
    with pytest.raises(ValueError, match=f"chunks={chunks} is not possible; expected at least 1"):
        run(NumpyBackend(), "float64", segment(4, 1, 2), chunks)


def test_no_step_and_no_sequence_are_nothing_to_do():
    backend = NumpyBackend()
    for S, N in ((0, 2), (6, 0)):
        dstates, dz = np.ones((S + 1, N, 3)), np.ones((S, N, 3))
        backward_parallel_(backend, np.ones((3, 3)), dstates, dz, 2)
        assert np.all(dstates == 1)


@pytest.mark.parametrize("chunks", [20, 77, 200])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("gain", "scale"), [(1.0, 0.5), (1.0, 0.05), (1.2, 0.5), (1.2, 0.05)])
def test_long_sequences_are_as_exact_as_the_loop(gain, scale, dtype, chunks):
    """Orthogonal weights, and such that small states let gradients grow by up to 1.2 a step, over 2000 steps."""
    given = segment(2000, 2, 16, W_hh=orthogonal(16, gain), scale=scale)
    backend, eps = NumpyBackend(), np.finfo(dtype).eps
    parallel_dh, parallel_dz = run(backend, dtype, given, chunks)
    loop_dh, loop_dz = run(backend, dtype, given)
    grown = np.max(np.abs(loop_dh)) > 1e7
    assert grown == (gain == 1.2 and scale == 0.05)
    most = 200 if grown else 20
    assert difference(parallel_dh, loop_dh) <= most * eps
    assert difference(parallel_dz, loop_dz) <= most * eps
    each = (-1, -2)  # also where most is small beside what it grows to later
    assert difference(parallel_dh, loop_dh, each) <= 3 * most * eps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_that_explode_are_those_of_the_loop(dtype):
    """f' = 1 and weights of 1.2 times a rotation: 1.2^400 = 5e31 is near the end of float32."""
    S = 400
    given = segment(S, 2, 8)._replace(W_hh=orthogonal(8, 1.2), h=np.zeros((S + 1, 2, 8)))
    found, expected = run(NumpyBackend(), dtype, given, best_chunks(S)), run(NumpyBackend(), dtype, given)
    assert 1e31 < np.max(np.abs(expected[0])) < 1e34
    for ours, theirs in zip(found, expected, strict=True):
        assert difference(ours, theirs, axis=(-1, -2)) <= 100 * np.finfo(dtype).eps


def test_a_product_of_jacobians_may_overflow_where_the_gradient_does_not_and_shorter_chunks_help():
    """Two units that know nothing of each other: 16^n explodes, but no gradient enters there."""
    S, backend = 128, NumpyBackend()
    given = segment(S, 1, 2)._replace(W_hh=np.diag([0.5, 16.0]), h=np.zeros((S + 1, 1, 2)))
    given.dstates[:, :, 1] = 0
    expected, _ = run(backend, "float32", given)
    assert np.all(np.isfinite(expected))
    with np.errstate(over="ignore", invalid="ignore"):
        too_long, _ = run(backend, "float32", given, 2)  # 16^63 in float32
    assert np.all(np.isnan(too_long[:64, 0, 1]))  # 0 * inf
    shorter, _ = run(backend, "float32", given, 8)  # 16^15
    assert difference(shorter, expected) <= 8 * np.finfo("float32").eps
    with pytest.warns(RuntimeWarning, match="overflow|invalid"):  # NumPy says so
        run(backend, "float32", given, 2)


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_a_chunk_of_the_longest_length_holds_factors_of_four_a_step(factor):
    S, backend = 2 * LONGEST_CHUNK, NumpyBackend()
    rows, dz = np.zeros((S + 1, 1, 1), "float32"), np.ones((S, 1, 1), "float32")
    W = np.full((1, 1), factor, "float32")
    with np.errstate(over="raise", under="raise", invalid="raise"):
        if factor > 1:
            with pytest.raises(FloatingPointError, match="overflow"):  # 4^64 = 2^128
                backward_parallel_(backend, W, rows.copy(), dz.copy(), 2)
            W *= 0.98
        backward_parallel_(backend, W, rows, dz, 2)
    assert np.all(rows == 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
def test_products_for_one_thread_each_give_the_same(lead, masked, monkeypatch):
    given = segment(60, 2, 5, lead=lead, masked=masked)
    expected, products = run(NumpyBackend(), "float64", given, 8), []

    def matmul_(self, out, a, b):
        products.append(a.shape[-2] * b.shape[-2] * b.shape[-1])
        np.matmul(a, b, out=out)

    monkeypatch.setattr(NumpyBackend, "matmul_", matmul_)
    monkeypatch.setattr(NumpyBackend, "one_thread_multiply_adds", 300, raising=False)
    found = run(NumpyBackend(), "float64", given, 8)
    assert max(products) == 300
    for ours, theirs in zip(found, expected, strict=True):
        assert difference(ours, theirs) <= 4 * np.finfo("float64").eps


# ---- what a network runs ------------------------------------------------------------------------------


class Runs:
    """Backward passes of layers over segments, as they run: their steps, and the chunks of these."""

    def __init__(self, monkeypatch):
        self.found = []
        loop, in_chunks = layer.backward_, layer.backward_parallel_

        def backward_(backend, cell, step, tape, dstates, dz, slopes):
            self.found.append((dz.shape[0], 1))
            loop(backend, cell, step, tape, dstates, dz, slopes)

        def backward_parallel_(backend, W, dstates, dz, chunks, mask=None):
            self.found.append((dz.shape[0], chunks))
            in_chunks(backend, W, dstates, dz, chunks, mask)

        monkeypatch.setattr(layer, "backward_", backward_)
        monkeypatch.setattr(layer, "backward_parallel_", backward_parallel_)

    def of(self, how, backward, cell="tanh", T=100, **options):
        """Those of a call in segments of at most 60 steps (with two directions, of all)."""
        options = {"device": NumpyBackend()} | options  # one of its own, whose setting is nobody else's
        rnn = ba.RNN(2, 4, 3, cell=cell, dtype="float64", **options)
        rnn.backend.segment_bytes = 60 * 2 * 4 * 8 * (1 if rnn.members is None else rnn.members * STACKED)
        x, seed = np.random.default_rng(0).standard_normal((T, 2, 2)), 5 if options.get("recurrent_dropout") else None
        more = {"backward": backward, "dropout_seed": seed, "lengths": [T, T // 2]}
        self.found.clear()
        if how == "forward":
            y, state, run = rnn.forward(x, **more)
            run(y, state)
        else:
            rnn.loss_and_grad(x, rnn(x)[0], **more)
        return sorted(self.found)


OPTIONS = [
    {},
    {"cell": "relu"},
    {"num_layers": 2},
    {"recurrent_dropout": 0.5},
    {"bidirectional": True},
    {"members": 2},
    {"readout": "last"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("how", ["forward", "loss_and_grad"])
def test_a_network_runs_backward_in_chunks_where_it_is_told_to_and_only_there(how, options, monkeypatch):
    """Results do not show it: those of the loop are the same."""
    runs = Runs(monkeypatch)
    segments = [100] if options.get("bidirectional") else [50, 50]
    expected = sorted(segments * options.get("num_layers", 1))
    assert runs.of(how, "parallel", **options) == [(steps, best_chunks(steps)) for steps in expected]
    assert min(best_chunks(steps) for steps in expected) > 1
    assert runs.of(how, "sequential", **options) == [(steps, 1) for steps in expected]


@pytest.mark.parametrize("how", ["forward", "loss_and_grad"])
def test_auto_runs_what_the_measurement_says(how, monkeypatch):
    runs, whole = Runs(monkeypatch), {"T": 120, "bidirectional": True}  # a segment of 120 steps, long enough to ask
    monkeypatch.setattr(deciding, "measure", lambda *_: LAUNCH_BOUND)
    assert runs.of(how, "auto", **whole, device=ba.Backend(np)) == [(120, best_chunks(120))]
    assert runs.of(how, "auto", **whole, cell="lstm", device=ba.Backend(np)) == [(120, 1)]
    monkeypatch.setattr(deciding, "measure", lambda *_: FLOP_BOUND)
    assert runs.of(how, "auto", **whole, device=ba.Backend(np)) == [(120, 1)]


# ---- what it costs ------------------------------------------------------------------------------------


def allocated(S, row, chunks, masked=False, dtype="float32"):
    """The most bytes of new arrays that NumPy has at once."""
    backend, rng = NumpyBackend(), np.random.default_rng(0)
    W = rng.standard_normal((*row[:-2], row[-1], row[-1])).astype(dtype) / 8
    dstates, dz = (rng.random((S + more, *row)).astype(dtype) for more in (1, 0))
    mask = np.ones(row, dtype) if masked else None
    arguments = (backend, W, dstates, dz, chunks, mask)
    backward_parallel_(*arguments)
    tracemalloc.start()
    try:
        backward_parallel_(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def extra_bytes(S, row, itemsize, chunks):
    """The most that a backward pass has beside its arguments: all chunks but the first, and one row, and then less."""
    C = min(chunks, S)
    return itemsize * math.prod(row) * max((C - 1) * rows_of_a_chunk(row[-1]) + 1, 2 * C)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("S", "row", "chunks"),
    [(200, (1, 64), 20), (203, (2, 32), 60), (64, (16, 16), 32), (90, (3, 1, 24), 30), (90, (2, 3, 20), 90)],
    ids=str,
)
def test_the_memory_it_takes_is_what_it_says(S, row, chunks, masked):
    expected = extra_bytes(S, row, 4, chunks)
    # NumPy reads through buffers what has gaps, however much it is; before 2.4 through one more, and more objects
    buffers = 2 * 8192 * 4 + (0 if np.lib.NumpyVersion(np.__version__) >= "2.4.0" else 8192 * 4 + 1024)
    assert expected > 400_000
    assert expected <= allocated(S, row, chunks, masked) <= 1.01 * expected + buffers


def test_a_loop_takes_no_memory_that_grows_with_time():
    assert abs(allocated(4000, (2, 32), 1) - allocated(100, (2, 32), 1)) < 2 * 32 * 4


def test_nothing_is_allocated_per_step_or_chunk_on_numpy(monkeypatch):
    monkeypatch.setattr(NumpyBackend, "one_thread_multiply_adds", None)  # or there is a view for every product

    def beside(L, C):
        return allocated(L * C, (2, 32), C) - extra_bytes(L * C, (2, 32), 4, C)

    row = 2 * 32 * 4
    assert abs(beside(40, 20) - beside(4, 20)) < 36 / 2 * row
    assert abs(beside(10, 40) - beside(10, 20)) < 20 / 2 * row


@pytest.mark.parametrize("device", cuda)
@pytest.mark.skipif(importlib.util.find_spec("gpuemu") is None, reason="counting launches needs gpuemu")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("lead", "masked", "more_a_step", "more_a_chunk"),
    [((), False, 0, 0), ((), True, 3, 2), ((3,), False, 0, 0)],
    ids=str,
)
def test_a_dependent_step_is_few_launches_and_waits_for_nothing(device, lead, masked, more_a_step, more_a_chunk, dtype):
    """Two products and three launches a step of a chunk, one of each a chunk, whatever N and H; a mask adds its own."""
    import cupy
    import gpuemu

    backend, asked = resolve(device), []
    pool = cupy.get_default_memory_pool()

    def allocate(size):
        asked.append(size)
        return pool.malloc(size)

    def count(L, C):
        row = (*lead, 2, 5)
        with backend.active(), cupy.cuda.using_allocator(allocate):
            W, mask = backend.zeros((*lead, 5, 5), dtype), backend.ones(row, dtype) if masked else None
            dstates, dz = (backend.ones((L * C + more, *row), dtype) for more in (1, 0))
            for _ in range(3):
                backward_parallel_(backend, W, dstates, dz, C, mask)
            gc.collect()
            asked.clear()
            with gpuemu.count() as counted:
                backward_parallel_(backend, W, dstates, dz, C, mask)
        assert counted.syncs == counted.implicit_syncs == counted.h2d == counted.d2h == counted.malloc == 0
        assert asked
        return np.asarray([counted.gemms, counted.launches + counted.d2d, len(asked)])

    short, long, more = count(4, 3), count(14, 3), count(4, 13)
    assert np.array_equal((long - short) / 10, [2, 3 + more_a_step, 0])
    assert np.array_equal((more - short) / 10, [1, 1 + more_a_chunk, 0])


# ---- how many chunks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("S", [1, 2, 5, 16, 17, 18, 40, 101, 997, 4096, 20_000])
def test_the_best_number_of_chunks_has_the_fewest_dependent_calls(S):
    def calls(C):
        return 2 * S if C == 1 else 5 * (S // C) + 2 * C + 2 * (S % C)

    possible = [C for C in range(1, S + 1) if C == 1 or S // C <= LONGEST_CHUNK]
    assert calls(best_chunks(S)) == min(map(calls, possible))


def test_chunks_are_never_longer_than_the_longest():
    assert all(S // best_chunks(S) <= LONGEST_CHUNK for S in (10_000, 12_345, 100_000, 1_000_000))


def test_a_device_bound_by_launches_runs_in_chunks_and_one_bound_by_arithmetic_does_not():
    assert LAUNCH_BOUND.chunks(1000) == best_chunks(1000) > 1
    assert FLOP_BOUND.chunks(1000) == FLOP_BOUND.chunks(100_000) == 1
    assert LAUNCH_BOUND.chunks(8) == 1  # no number of chunks has fewer calls
    assert replace(LAUNCH_BOUND, start=1.0).chunks(1000) == 1  # what it costs once has to come back


def test_chunks_that_save_less_than_a_tenth_are_not_worth_it():
    costs = replace(LAUNCH_BOUND, start=0.0)
    gain = costs.step * 1000 / costs.in_chunks(1000, best_chunks(1000))
    assert replace(costs, step=costs.step / gain * 1.08).chunks(1000) == 1
    assert replace(costs, step=costs.step / gain * 1.15).chunks(1000) == best_chunks(1000)


def test_seconds_in_chunks_are_the_sum_of_their_parts():
    costs = Timings(step=1e9, start=1e6, call=1e3, work=1.0)
    assert costs.in_chunks(S=4 * 6 + 2, C=4) == 1e6 + (5 * 6 + 2 * 4) * 1e3 + 6 * 3 + 2 * 1e9


@pytest.mark.parametrize("costs", [FLOP_BOUND, LAUNCH_BOUND], ids=["arithmetic", "launches"])
def test_a_shape_is_measured_once_and_for_numbers_of_sequences_alike(costs, monkeypatch):
    measured, backend, dtype = [], ba.Backend(np), np.dtype("float32")

    def measure(backend, row_shape, dtype):
        measured.append((row_shape, dtype))
        return costs

    monkeypatch.setattr(deciding, "measure", measure)
    for N in (5, 8, 6):
        assert choose(backend, 1000, (N, 4), dtype) == costs.chunks(1000)
    assert measured == [((8, 4), dtype)]
    choose(backend, 5000, (9, 4), dtype)
    choose(backend, 5000, (3, 9, 4), dtype)
    choose(backend, 5000, (8, 4), np.dtype("float64"))
    choose(ba.Backend(np), 5000, (8, 4), dtype)  # another device
    assert [shape for shape, _ in measured[1:]] == [(16, 4), (3, 16, 4), (8, 4), (8, 4)]


def test_nothing_is_measured_where_the_answer_is_known(monkeypatch):
    monkeypatch.setattr(deciding, "measure", None)  # cannot be called
    backend, dtype = ba.Backend(np), np.dtype("float32")
    assert choose(backend, 50, (1, 8), dtype) == 1  # too few steps to matter
    assert choose(backend, 1000, (0, 8), dtype) == 1
    assert choose(backend, 1000, (64, 1024), dtype) == 1  # nor do launches


def test_what_was_measured_goes_with_its_backend():
    backend, another = ba.Backend(np), ba.Backend(np)
    choose(backend, 1000, (1, 2), np.dtype("float32"))
    assert len(backend.measured) == 1
    assert not another.measured


@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_a_measurement_is_of_seconds(make_backend, dtype):
    backend = make_backend()
    costs = deciding.measure(backend, (2, 4), backend.dtype(dtype))
    assert 1e-8 < costs.step < 1
    assert 0 <= costs.call < 1
    assert 0 <= costs.work < 1
    assert 0 <= costs.start < 1
    assert choose(backend, 1000, (2, 4), backend.dtype(dtype)) in (1, best_chunks(1000))


@pytest.mark.parametrize("row", [(1, 8), (8, 64)], ids=str)
@pytest.mark.parametrize("costs", [replace(LAUNCH_BOUND, call=3e-6), replace(FLOP_BOUND, call=2e-6)], ids=str)
def test_a_measurement_finds_the_constants_of_a_device_that_has_them(costs, row, monkeypatch):
    now = 0.0

    def run_(backend, W, dstates, dz, chunks):
        nonlocal now
        now += costs.in_chunks(len(dz), chunks) if chunks > 1 else costs.step * len(dz)

    monkeypatch.setattr(deciding, "backward_parallel_", run_)
    monkeypatch.setattr(deciding, "time", SimpleNamespace(perf_counter=lambda: now))
    found = deciding.measure(NumpyBackend(), row, np.dtype("float32"))
    assert asdict(found) == pytest.approx(asdict(costs), rel=1e-3)


def test_a_product_that_takes_long_is_measured_alone(monkeypatch):
    monkeypatch.setattr(deciding, "_LONG", 0.0)
    costs = deciding.measure(NumpyBackend(), (1, 4), np.dtype("float32"))
    assert costs.call == costs.start == 0
    assert costs.work > costs.step / 100
