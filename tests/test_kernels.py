"""A segment of time in one launch each way: what is traced and what is refused, every number, launch and barrier.

Without CUDA only the first part runs. What is said about races needs the emulated device, which looks for them.
"""

import copy
import gc
import importlib.util
import json
import math
import os
import pickle
import re
import subprocess
import sys
import warnings
from array import array
from collections import deque
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import cells_without_kernels
import numpy as np
import pytest
from cases import smallest_budget
from cells_of_users import CELLS_OF_USERS
from conftest import IN_CI, needs_cuda
from kernel_runs import (
    CELLS,
    MUTANTS,
    TOLERANCE,
    Mutated,
    Shape,
    bits,
    cell_text_mutants,
    check,
    draw,
    expected,
    forced,
    launched,
    notices,
)

import bptt_array as ba
from bptt_array.backend import NumpyBackend
from bptt_array.equations.cell import Tape
from bptt_array.kernels import layouts, segments
from bptt_array.kernels.text import CellText
from bptt_array.kernels.trace import trace
from bptt_array.rnn.cells import check_cell
from bptt_array.schedules.instructions import Backward, Forward
from bptt_array.tracing.program import CannotTraceError

needs_counters = pytest.mark.skipif(
    importlib.util.find_spec("gpuemu") is None,
    reason="counting launches and looking for races needs the emulated CUDA device (gpuemu)",
)

#: What devices say of themselves.
DEVICES = {
    "T4": ({"MultiProcessorCount": 40, "MaxSharedMemoryPerBlockOptin": 65536}, (7, 5)),
    "A100": ({"MultiProcessorCount": 108, "MaxSharedMemoryPerBlockOptin": 166912}, (8, 0)),
    "RTX 3090": ({"MultiProcessorCount": 82, "MaxSharedMemoryPerBlockOptin": 101376}, (8, 6)),
    "H100": ({"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 232448}, (9, 0)),
    "small": ({"MultiProcessorCount": 2, "MaxSharedMemoryPerBlockOptin": 65536}, (7, 5)),
}


class OnPaper(NumpyBackend):
    """Finds layouts as a CUDA device does, and compiles and launches nothing."""

    def __init__(self, device="A100", cooperative=1):
        super().__init__()
        attributes, capability = DEVICES[device]
        more = {"MaxRegistersPerMultiprocessor": 65536, "CooperativeLaunch": cooperative}
        vars(self).update(limits=(attributes | more, capability), compilations=[], answer=lambda *asked: 0)

    def cuda_limits(self):
        return self.limits

    def cuda_function(self, source, name, options, *, shared, cooperative):
        self.compilations.append((name, options))
        return name, self.answer(name, options)

    def cuda_operand(self, a):
        return a

    def cuda_stream(self):
        return 0


def described(cell, H=12, N=4, backend=None, dtype="float32"):
    """What is said of a network's segments."""
    cell = CELLS[cell] if isinstance(cell, str) else cell
    shapes = {
        "W_hh": (cell.gates * H, H),
        "W_xh": (cell.gates * H, 1),
        "b_h": (cell.gates * H,),
        **cell.own_parameters(H),
    }
    backend = backend or OnPaper()
    params = {name: backend.from_host(np.zeros(shape, dtype)) for name, shape in shapes.items()}
    return segments.describe(backend, cell, params, (N, H))


# ---- tracing: no CUDA needed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2}, {"bidirectional": True}, {"members": 2}, {"recurrent_dropout": 0.4}],
    ids=str,
)
@pytest.mark.parametrize("name", CELLS_OF_USERS)
def test_the_cells_of_users_that_these_tests_have_are_right(name, options):
    rng = np.random.default_rng(0)
    rnn = ba.RNN(3, 5, 2, cell=CELLS_OF_USERS[name](), dtype="float64", **options)
    for value in rnn.params.values():
        value += 0.3 * rng.standard_normal(value.shape)
    x, target = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 2))
    given = {"lengths": [6, 0, 3, 5], "dropout_seed": 1 if rnn.recurrent_dropout else None}
    _, grads, _ = rnn.loss_and_grad(x, target, **given)

    def loss(params):
        rnn.params.update(params)
        return np.sum(rnn.loss(x, target, **given)[0])

    ba.check_gradients(loss, dict(rnn.params), grads.params, step=1e-4)


#: What is stored of a step beside dz, and the gradients of the cell's own parameters that are found in there or in dz.
LEFT = {
    "tanh": (0, {}),
    "relu": (0, {}),
    "lstm": (0, {}),
    "gru": (2, {"b_hn": 1}),  # dn without the gate, and with it
    "update gate": (0, {}),
    "peephole": (3, {"p": 3}),
    "leaky": (3, {"s": 1, "gain": 1}),
    "softsign": (0, {}),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_traced(name, dtype):
    cell = CELLS[name]
    text = CellText(trace(cell, 7, dtype))
    stored, own = LEFT[name]
    assert len(text.traced.extra) == stored
    assert {name: len(blocks) for name, blocks in text.traced.d_own.items()} == own
    assert text.size.gates == cell.gates
    assert ("__restrict__ own0" in text.text) == bool(cell.own_parameters(7))
    assert text.key == CellText(trace(cell, 12, dtype)).key  # no width is in it
    assert set(described(cell, dtype=dtype)) == {"forward", "backward"}
    assert all(said.startswith("one launch a segment: 1 block") for said in described(cell, dtype=dtype).values())


def test_numbers_on_a_cell_are_in_its_text():
    first, second = (
        CellText(trace(CELLS_OF_USERS["softsign"](*numbers), 5, "float32")) for numbers in ((1.5, 2), (1.25, 3))
    )
    assert "(T)1.5" in first.text
    assert "(T)1.25" in second.text
    assert first.key != second.key


@pytest.mark.parametrize("name", cells_without_kernels.REFUSED)
def test_what_has_no_kernel_is_refused_with_the_reason_and_the_line(name):
    _, reason, line = cells_without_kernels.REFUSED[name]
    for way, said in described(cells_without_kernels.cell_of(name)).items():
        assert said.startswith(f"step by step: {cells_without_kernels.cell_of(name)!r} has no kernel of its own: "), way
        assert re.search(reason, said)
        where = re.search(r", line (\d+) of cells_without_kernels\.py: (.*)", said)
        if line is None:
            assert where is None
        else:
            assert line in where[2]
            text = Path(cells_without_kernels.__file__).read_text(encoding="utf-8").splitlines()
            assert text[int(where[1]) - 1].strip() == where[2]


def test_the_cell_that_the_refused_ones_change_is_not_refused():
    assert all(said.startswith("one launch") for said in described(cells_without_kernels.Plain()).values())


def test_a_branch_on_the_width_is_right_where_every_width_goes_the_same_way():
    assert all(said.startswith("one launch") for said in described(cells_without_kernels.cell_of("wide"), H=6).values())


# ---- layouts ------------------------------------------------------------------------------------------------

SIZES = {name: CellText(trace(cell, 3, "float32")).size for name, cell in CELLS.items()}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("name", ["tanh", "lstm", "leaky"])
def test_neither_the_batch_nor_the_device_decides_how_a_sum_is_rounded(name, itemsize, backward):
    for H in (1, 2, 33, 64, 100, 128, 200):
        found = set()
        for attributes, capability in DEVICES.values():
            more = {"MaxRegistersPerMultiprocessor": 65536, "CooperativeLaunch": 1}
            device = layouts.Device.of(attributes | more, capability)
            for N in (1, 3, 64, 300):
                work = layouts.Work(SIZES[name], H, N, 1, itemsize, backward)
                layout = layouts.best(work, device)
                if layout is not None:
                    found.add(layout.KS)
                    assert layout.shared <= device.shared
                    assert layout.TH <= 1024
                    assert layout.registers * layout.TH <= device.registers
                    assert layout.OB == 1 or math.prod(layout.grid(N, 1)) <= device.multiprocessors
                    assert layout.OB * math.ceil(H / layout.OB) >= H
        assert len(found) <= 1


def test_without_cooperative_launches_no_blocks_wait_for_each_other():
    there, not_there = (described("tanh", 512, 32, OnPaper("A100", cooperative)) for cooperative in (1, 0))
    assert "one launch a segment: 1 block" not in there["forward"]
    assert there["forward"].startswith("one launch")
    assert not_there["forward"] == (
        "step by step: forward, the weights of H=512 for a batch of N=32 have no room on this device"
    )


def test_a_kernel_that_would_be_slower_than_the_loops_is_not_taken():
    said = described("tanh", 1, 500_000)
    assert re.fullmatch(
        r"step by step: forward, a step of H=1, N=500000 would take \d+ us, step by step \d+ us", said["forward"]
    )


def test_a_grid_is_as_large_as_cuda_allows():
    device = layouts.Device.of(*OnPaper("H100").cuda_limits())
    for sequences, networks in ((600_000, 1), (524_281, 1), (1, 70_000)):
        for size, width in product(SIZES.values(), (1, 128, 200)):
            layout = layouts.best(layouts.Work(size, width, sequences, networks, 4, False), device)
            assert layout is None or max(layout.grid(sequences, networks)[1:]) <= 65535


def test_a_cell_without_kernels_has_room_for_none():
    assert segments.widest(OnPaper("H100"), check_cell("gru_reset_before"), N=32) == 0


@pytest.mark.parametrize(("name", "width"), [("tanh", 2016), ("relu", 2016), ("lstm", 736), ("gru", 960)])
def test_the_widths_that_the_page_names_for_an_h100_are_the_models(name, width):
    assert segments.widest(OnPaper("H100"), CELLS[name], N=32) == width
    page = " ".join(Path(segments.__file__).with_name("README.md").read_text(encoding="utf-8").split())
    assert "on an H100 there is room up to H = 2016 for tanh, 736 for LSTM and 960 for GRU (float32, N = 32;" in page


# ---- compiling ----------------------------------------------------------------------------------------------


def test_what_needs_more_registers_than_there_are_is_tried_with_fewer_and_then_left():
    backend = OnPaper()
    backend.answer = lambda name, options: 8 if len(backend.compilations) <= 2 else 0
    assert described("tanh", 128, 32, backend)["forward"].startswith("one launch")
    kept = [int(re.search(r"BPTT_KR=(\d+)", " ".join(options))[1]) for _, options in backend.compilations[:3]]
    assert len(backend.compilations) >= 4
    assert kept[0] >= kept[1] >= kept[2]
    backend = OnPaper()
    backend.answer = lambda name, options: 8
    for _ in range(2):
        said = described("tanh", 128, 32, backend)
        for way in said:
            assert said[way] == f"step by step: {way}, the compiler needs more registers than there are for H=128, N=32"
        assert len(backend.compilations) <= 18  # and not once more
    backend.answer = lambda name, options: 0
    assert all(words.startswith("one launch") for words in described("tanh", 128, 33, backend).values())


class Wave(ba.Cell):
    """``h = sin(z)``, whose kernel has an array of its own: where the compiler puts large angles."""

    name, keeps = "wave", 1

    def forward_(self, backend, params, product):
        add_product = product.adding()

        def step_(z, h_before, h, kept):
            add_product(z, h_before)
            kept[0, ...] = backend.xp.cos(z)
            h[...] = backend.xp.sin(z)

        return step_

    def slopes_(self, backend, slopes, dz, tape):
        return (tape.kept[:, 0, ...],)

    def backward_(self, backend, params, product):
        add_product = product.adding()

        def step_(dz, dh, dh_before, cos):
            dz[...] = cos * dh
            add_product(dh_before, dz)

        return step_


def test_the_array_of_a_function_is_not_taken_for_registers_without_room():
    backend = OnPaper()
    backend.answer = lambda name, options: 28  # however many registers are left free
    found = described(Wave(), 128, 32, backend)
    assert [name for name, _ in backend.compilations].count("forward") == 2
    assert found["forward"].startswith("one launch")
    assert found["backward"].startswith("step by step")  # there is no sine in it: those are registers


@pytest.mark.parametrize(("error", "said"), [("no compiler\nand much else", "no compiler"), ("", "RuntimeError")])
def test_what_does_not_compile_is_reported_once(error, said):
    def answer(name, options):
        raise RuntimeError(error)

    backend, why = OnPaper(), f"its kernel did not compile: {said}"
    backend.answer = answer
    with pytest.warns(RuntimeWarning, match=rf"<cell 'gru'> runs step by step, since {why}\. ") as warned:
        found = described("gru", backend=backend)
    assert len(warned) == 1
    assert set(found.values()) == {f"step by step: {why}"}
    for dtype, width in (("float64", 12), ("float32", 13)):
        assert described("gru", width, backend=backend, dtype=dtype) == found
    assert len(backend.compilations) == 6
    described("gru", backend=backend)
    assert len(backend.compilations) == 6  # it is not tried again


# ---- one launch alone ---------------------------------------------------------------------------------------

#: Few widths, so that few kernels are compiled: every number of sequences and steps that follows has the same ones.
SHAPES = {
    "float32": [
        Shape(),
        Shape(S=1, N=1, E=2, mask=True),
        Shape(S=13, c=False),
        Shape(H=7, N=5, E=2, OB=1, NB=2, mask=True),
        Shape(H=7, N=1, OB=1, NB=2, after=False),
    ],
    "float64": [
        Shape(N=5, mask=True),
        Shape(S=1, N=1, c=False, after=False),
        Shape(H=33, N=5, E=2, OB=2, NB=3, mask=True),
        Shape(S=1, H=33, N=2, OB=2, NB=3),
        Shape(S=9, H=33, N=3, OB=2, NB=3, c=False, after=False),
    ],
}
FURTHER = [
    Shape(H=1),
    Shape(H=33, N=4),
    Shape(H=24, N=3, OB=3, NB=2, mask=True),
    Shape(H=24, N=9, OB=1, NB=4, c=False, after=False),
    Shape(H=40, N=1, OB=3, NB=1),
]
IN_BOTH = SHAPES["float32"] + SHAPES["float64"]
if IN_CI:  # every kernel takes a second to be compiled
    SHAPES = dict.fromkeys(SHAPES, IN_BOTH)


@pytest.fixture(scope="module", autouse=True)
def _compiled_without_optimizing():
    """Kernels on the emulated device are compiled twice as fast that way, and run long enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUEMU_CXXFLAGS", "-O0")
        yield


@pytest.fixture(scope="module")
def backend():
    return ba.backend.CupyBackend(0)


on_cuda = pytest.mark.parametrize("device", [pytest.param(0, id="cuda", marks=needs_cuda(1))])
one_of_each = [("tanh", "float32"), ("gru", "float64"), ("peephole", "float32")]


def alone(cells_and_dtypes, shapes):
    found = [(name, dtype, shape) for name, dtype in cells_and_dtypes for shape in shapes[dtype]]
    return pytest.mark.parametrize(("name", "dtype", "shape"), found, ids=lambda value: str(value) or "small")


every = [(name, dtype) for name in CELLS for dtype in TOLERANCE]


@on_cuda
@alone(every, SHAPES)
def test_a_launch_leaves_what_the_loops_leave(device, backend, name, dtype, shape):
    check(backend, CELLS[name], shape, dtype)


@on_cuda
@alone(one_of_each, dict.fromkeys(SHAPES, FURTHER))
def test_a_launch_of_any_width_leaves_what_the_loops_leave(device, backend, name, dtype, shape):
    check(backend, CELLS[name], shape, dtype)


# ---- in the library -----------------------------------------------------------------------------------------

T, N, I, H, O = 7, 3, 4, 6, 2  # noqa: E741
LONG = 1 << 26  # bytes of a segment

#: By name: of the network, of both calls, and of the loss alone.
NETWORKS = {
    "plain": ({}, {}, {}),
    "two layers": ({"num_layers": 2}, {}, {}),
    "bidirectional": ({"bidirectional": True, "num_layers": 2}, {"lengths": [7, 0, 4]}, {}),
    "members": ({"members": 2}, {}, {}),
    "lengths": ({}, {"lengths": [7, 0, 4], "state": True}, {}),
    "truncate": ({"num_layers": 2}, {}, {"truncate": 3}),
    "two periods": ({}, {}, {"truncate": (2, 4)}),
    "budget": ({}, {"lengths": [30, 0, 17]}, {"memory": 0.2}),
    "dropout": ({"num_layers": 2, "dropout": 0.3, "recurrent_dropout": 0.3}, {"dropout_seed": 1}, {}),
    "members with dropout": ({"members": 2, "recurrent_dropout": 0.3}, {"dropout_seed": 1, "lengths": [7, 0, 4]}, {}),
    "reset": ({}, {"state": True, "reset": [True, False, True]}, {}),
    "state": ({"num_layers": 2}, {"state": True}, {}),
    "last": ({"readout": "last", "bidirectional": True}, {"lengths": [7, 0, 4], "state": True}, {}),
    "segments": ({"num_layers": 2}, {"lengths": [7, 0, 4], "state": True}, {"segment": 2}),
}


def results(backend, cell, options, dtype, rounded_to, sizes=(N, H)):
    """Everything that a network gives, on the host; arrays are rounded to ``rounded_to`` first."""
    network, both, of_loss = options
    (N, H), T = sizes, 30 if "memory" in of_loss else 7
    segment, of_loss = of_loss.get("segment"), dict(of_loss)
    of_loss.pop("segment", None)
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(rounded_to).astype(dtype)

    rnn = ba.RNN(I, H, O, cell=cell, dtype=dtype, device=backend, **network)
    rnn.params = {name: rnn.asarray(normal(*a.shape) * (0.5 if "W" in name else 0.8)) for name, a in rnn.params.items()}
    members = () if rnn.members is None else (rnn.members,)
    time = () if rnn.readout == "last" else (T,)
    x, target, dy = normal(T, N, I), normal(*time, N, O), normal(*time, *members, N, O)
    states = (rnn.num_layers, 1 + rnn.bidirectional, *members, N, H)
    has_c = getattr(cell, "has_c", False)
    state, dstate = (ba.State(*[rnn.asarray(normal(*states)) for _ in range(1 + has_c)]) for _ in range(2))
    both = dict(both) | {"state": state if both.get("state") else None}
    if segment or "memory" in of_loss:
        backend.segment_bytes = (segment or 3) * N * H * np.dtype(dtype).itemsize
    if "memory" in of_loss:
        given = {"lengths": "lengths" in both}
        least = smallest_budget(lambda memory: rnn.plan(x.shape, memory, **given))
        of_loss["memory"] = least + int(of_loss["memory"] * (rnn.plan(x.shape, **given).peak - least))
    loss, grads, last = rnn.loss_and_grad(rnn.asarray(x), rnn.asarray(target), **both, **of_loss, input_grad=True)
    y, end, backward = rnn.forward(rnn.asarray(x), **{k: v for k, v in both.items() if k != "reset"})
    of_y = backward(rnn.asarray(dy), dstate, input_grad=True)
    found = {"loss": loss, "y": y}
    for kind, state_of in {"last": last, "end": end, "dh": grads.state, "dh of dy": of_y.state}.items():
        found |= {
            f"{kind} {name}": a for name, a in zip(("h", "c"), (state_of.h, state_of.c), strict=True) if a is not None
        }
    for kind, of in {"": grads, " of dy": of_y}.items():
        found |= {f"d{name}{kind}": a for name, a in {"x": of.x, **of.params}.items()}
    backend.segment_bytes = LONG
    return {name: backend.to_host(a) for name, a in found.items()}


def compare(backend, cell, options, dtype, sizes=(N, H)):
    expected = results(NumpyBackend(), cell, options, "float64", dtype, sizes)
    found = results(backend, cell, options, dtype, dtype, sizes)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == dtype
        error = np.max(np.abs(found[name] - value)) / max(np.max(np.abs(value)), 1e-30)
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


@on_cuda
@pytest.mark.parametrize("options", NETWORKS)
@pytest.mark.parametrize(("name", "dtype"), every)
def test_a_network_has_the_values_and_gradients_of_numpy(device, backend, name, dtype, options):
    compare(backend, CELLS[name], NETWORKS[options], dtype)
    assert all(said.startswith("one launch") for said in described(name, H, N, backend, dtype).values())


@on_cuda
@needs_counters
@pytest.mark.parametrize(
    ("options", "forward", "backward"),
    [
        ({}, 3, 3),
        ({"num_layers": 2}, 6, 6),
        ({"bidirectional": True}, 1, 1),
        ({"members": 2, "num_layers": 2}, 6, 6),
        ({"recurrent_dropout": 0.3}, 3, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize(("name", "dtype"), one_of_each)
def test_a_segment_of_a_layer_is_one_launch_each_way_and_nothing_waits(
    device, backend, name, dtype, options, forward, backward
):
    import gpuemu

    rnn = ba.RNN(I, H, O, cell=CELLS[name], dtype=dtype, device=backend, **options)
    x, target = (rnn.asarray(np.ones((T, N, size))) for size in (I, O))
    given = {"truncate": None if rnn.bidirectional else 3, "dropout_seed": 1 if rnn.recurrent_dropout else None}
    for _ in range(30):  # until the pool has blocks of every size
        with gpuemu.count() as counted:
            rnn.loss_and_grad(x, target, **given)
        if not counted.malloc:
            break
    assert counted.kernels["forward"] == forward
    assert counted.kernels["backward"] == backward
    assert counted.syncs == counted.implicit_syncs == counted.malloc == 0
    assert counted.h2d == counted.d2h == counted.p2p == 0
    found = []
    for steps in (2, T):  # however many there are
        with gpuemu.count() as counted:
            rnn.loss_and_grad(x[:steps], target[:steps], **given | {"truncate": None})
        found.append((counted.kernels["forward"], counted.kernels["backward"], counted.launches + counted.gemms))
    layers = rnn.num_layers
    assert found[0] == found[1] == (layers, layers, found[0][2])


@on_cuda
@needs_counters
def test_a_memory_budget_runs_every_segment_in_one_launch(device, backend):
    import gpuemu

    rnn = ba.RNN(I, H, O, cell="lstm", device=backend)
    backend.segment_bytes = 2 * N * H * 4
    x, target = (rnn.asarray(np.ones((40, N, size))) for size in (I, O))
    memory = smallest_budget(lambda memory: rnn.plan(x.shape, memory))
    schedule = list(rnn.plan(x.shape, memory).schedule())
    rnn.loss_and_grad(x, target, memory=memory)
    with gpuemu.count() as counted:
        rnn.loss_and_grad(x, target, memory=memory)
    backend.segment_bytes = LONG
    assert counted.kernels["forward"] == sum(isinstance(step, Forward) for step in schedule) > 20
    assert counted.kernels["backward"] == sum(isinstance(step, Backward) for step in schedule)


@on_cuda
def test_what_a_kernel_leaves_for_finish_is_in_the_plan_of_memory(device, backend):
    import cupy

    class Pool(cupy.cuda.MemoryPool):
        peak = 0

        def malloc(self, size):
            found = super().malloc(size)
            self.peak = max(self.peak, self.used_bytes())
            return found

    pool = Pool()
    gc.collect()
    with cupy.cuda.using_allocator(pool.malloc):
        rnn = ba.RNN(I, 24, O, cell=CELLS["peephole"], device=backend)
        x, target = (rnn.asarray(np.ones((40, 100, size))) for size in (I, O))
        most = rnn.plan(x.shape).peak
        least = smallest_budget(lambda memory: rnn.plan(x.shape, memory))
        for memory in (most, (most + least) // 2):
            rnn.loss_and_grad(x, target, memory=memory)
            before, pool.peak = pool.used_bytes(), 0
            rnn.loss_and_grad(x, target, memory=memory)
            assert most / 4 < pool.peak - before <= memory


@on_cuda
@pytest.mark.parametrize("cell", [cells_without_kernels.Centred(), cells_without_kernels.Width()], ids=str)
@pytest.mark.parametrize("options", ["plain", "bidirectional", "dropout"])
def test_what_has_no_kernel_runs_step_by_step_with_the_same_gradients(device, backend, cell, options):
    compare(backend, cell, NETWORKS[options], "float64", (N, 12))
    said = described(cell, 12, N, backend)
    assert all(why.startswith("step by step: ") for why in said.values())


@pytest.mark.parametrize("cell", [cells_without_kernels.Centred(), cells_without_kernels.Width()], ids=str)
def test_those_that_run_step_by_step_are_right(cell):
    rng = np.random.default_rng(0)
    rnn = ba.RNN(3, 5, 2, cell=cell, dtype="float64")
    x, target = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 2))
    _, grads, _ = rnn.loss_and_grad(x, target)

    def loss(params):
        rnn.params.update(params)
        return rnn.loss(x, target)[0]

    ba.check_gradients(loss, dict(rnn.params), grads.params)


# ---- which kernel, and which bits ---------------------------------------------------------------------------


@pytest.fixture
def counting(monkeypatch):
    """A device with nothing compiled, and what it is asked to compile."""
    asked = []

    class Counting(ba.backend.CupyBackend):
        def cuda_function(self, source, name, options, **how):
            asked.append((name, options))
            return super().cuda_function(source, name, options, **how)

    return Counting(0), asked


@on_cuda
@pytest.mark.parametrize(("OB", "NB"), [(None, None), (2, 3)])
def test_smaller_batches_compile_nothing(device, counting, OB, NB):
    backend, asked = counting
    width = 6 if OB is None else 33
    for sequences in (5, 3, 1, 5):  # of several groups, of one, of a part of one
        check(backend, CELLS["gru"], Shape(N=sequences, H=width, OB=OB, NB=NB), "float64")
        assert len(asked) == 2


@on_cuda
def test_larger_batches_compile_no_text_that_was_compiled_before(device, counting):
    backend, asked = counting
    for sequences in (1, 2, 5, 3, 9):
        check(backend, CELLS["gru"], Shape(N=sequences), "float64")
    assert len(set(asked)) == 2
    assert len(asked) == 8  # CuPy has it already


@on_cuda
@pytest.mark.parametrize(
    ("name", "dtype", "width"), [("gru", "float64", 33), ("peephole", "float32", 24)], ids=["gru", "peephole"]
)
def test_a_sequence_has_the_same_bits_whatever_it_is_computed_with(device, backend, name, dtype, width):
    cell, whole = CELLS[name], Shape(H=width, N=9, E=2, mask=True)
    arrays = draw(cell, whole, dtype)
    found = {}
    for OB, NB in ((1, 1), (1, 4), (2, 3), (3, 2)):
        with forced(OB, NB):
            found[OB, NB] = launched(backend, cell, whole, arrays, dtype)
    for values in found.values():
        for key, value in found[1, 1].items():
            assert np.array_equal(values[key], value), key
    sequence = 7

    def one(a):
        return a[..., sequence : sequence + 1, :]

    few = {"params": arrays["params"], "z": one(arrays["z"]), "mask": one(arrays["mask"])}
    few |= {key: [one(a) for a in arrays[key]] for key in ("before", "direct", "after")}
    for OB, NB in ((1, 1), (2, 3)):
        with forced(OB, NB):
            alone = launched(backend, cell, whole._replace(N=1), few, dtype)
        for key, value in alone.items():
            assert np.array_equal(value, one(found[1, 1][key]) if key != "params" else value), key


def elsewhere(what, *given, **environment):
    """What ``kernel_runs.py`` prints, under another environment."""
    program = [sys.executable, str(Path(__file__).with_name("kernel_runs.py")), json.dumps([what, *given])]
    done = subprocess.run(program, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


STRICT = {"GPUEMU_RACE": "1", "GPUEMU_STRICT": "1", "GPUEMU_POISON": "1"}
RUN = [("tanh", "float32"), ("lstm", "float64"), ("leaky", "float32")]
RUN_SHAPES = [
    Shape(H=7, N=5, E=2, OB=1, NB=2, mask=True),
    Shape(S=30, H=7, N=1, OB=1, NB=2, c=False, after=False),
    Shape(H=9, N=5, E=2, OB=2, NB=3, mask=True),
    Shape(S=1, H=9, N=4, OB=2, NB=3),
    Shape(S=30, H=9, N=3, OB=2, NB=3, c=False),
]


@on_cuda
@needs_counters
@pytest.mark.parametrize("arch", ["75", "90"])
def test_devices_of_every_kind_have_the_same_bits(device, backend, arch):
    cells, shapes = [("peephole", "float32")], [Shape(H=24, N=3), Shape(H=24, N=9, mask=True)]
    assert elsewhere("bits", cells, shapes, GPUEMU_ARCH=arch) == bits(cells, shapes, backend)


@on_cuda
@needs_counters
@pytest.mark.parametrize(
    "environment",
    [STRICT, {"GPUEMU_ORDER": "reverse"}, {"GPUEMU_ORDER": "shuffle:3"}],
    ids=["races", "reverse", "shuffled"],
)
def test_no_two_threads_meet_in_memory_and_their_order_changes_no_bit(device, backend, environment):
    assert elsewhere("bits", RUN, RUN_SHAPES, **environment) == bits(RUN, RUN_SHAPES, backend)


#: One OB of each outside of continuous integration.
CHANGES = [
    (name, OB)
    for k, (name, (_, _, OBs)) in enumerate(MUTANTS.items())
    for OB in (OBs if IN_CI else [OBs[k % len(OBs)]])
]


@on_cuda
@needs_counters
@pytest.mark.parametrize("part", range(4))
def test_what_is_taken_out_of_a_kernel_is_noticed(device, part):
    """Barriers, fences, buffers, what is read and from where: by the race check, or by a wrong number."""
    noticed = elsewhere("mutants", CHANGES[part::4], GPUEMU_ORDER="shuffle:1", **STRICT)
    assert len(noticed) == len(CHANGES[part::4])
    assert [name for name, by in noticed.items() if by is None] == []


@on_cuda
@needs_counters
@pytest.mark.parametrize("name", CELLS)
def test_a_mistake_in_the_text_of_a_cell_is_noticed(device, name):
    """A sign, an operator, an index, a constant: each is seen in a number."""
    backend, case = Mutated(0), (name, Shape(H=5, N=3, E=2, OB=1, NB=2))
    for old, new, what in cell_text_mutants(CellText(trace(CELLS[name], 5, "float64")).source, seed=0, count=5):
        assert notices(backend, lambda source, way, old=old, new=new: source.replace(old, new), [case], "float64"), what


# ---- whatever happens ---------------------------------------------------------------------------------------


def kernels_of(call):
    """How often each kernel of a segment was launched."""
    import gpuemu

    with gpuemu.count() as counted:
        call()
    return {name: counted.kernels[name] for name in ("forward", "backward") if name in counted.kernels}


@on_cuda
@needs_counters
def test_what_does_not_compile_runs_step_by_step_and_says_so_once(device):
    backend = Mutated(0)
    vars(backend)["change"] = lambda source, name: source + "\n#error of a compiler\n"
    said = (
        r"<cell 'lstm'> runs step by step, since its kernel did not compile: .* Results are the same, only slower\. "
        r"Please report this with the output of `python -m bptt_array info` and the cell; BPTT_ARRAY_PERSISTENT=0 keeps"
    )
    with pytest.warns(RuntimeWarning, match=said) as warned:
        compare(backend, CELLS["lstm"], NETWORKS["two layers"], "float64")
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(backend, CELLS["lstm"], NETWORKS["members"], "float64")
    assert all(
        why.startswith("step by step: its kernel did not compile") for why in described("lstm", H, N, backend).values()
    )


@on_cuda
@needs_counters
def test_kernels_can_be_switched_off(device, monkeypatch):
    def launched_by(backend):
        rnn = ba.RNN(I, H, O, device=backend)
        return kernels_of(lambda: rnn.loss_and_grad(np.ones((T, N, I), "f"), np.ones((T, N, O), "f")))

    make = ba.backend.CupyBackend
    assert launched_by(make(0)) == {"forward": 1, "backward": 1}
    assert launched_by(make(0, persistent=False)) == {}
    backend = make(0)
    backend.persistent = False
    assert (
        launched_by(backend)
        == launched_by(copy.copy(backend))
        == launched_by(pickle.loads(pickle.dumps(backend)))
        == {}
    )
    monkeypatch.setenv("BPTT_ARRAY_PERSISTENT", "0")
    assert launched_by(make(0)) == {}
    assert launched_by(make(0, persistent=True)) == {"forward": 1, "backward": 1}


@on_cuda
@needs_counters
def test_the_switch_is_in_the_environment(device):
    program = (
        "import gpuemu, numpy as np, bptt_array as ba\n"
        "with gpuemu.count() as counted:\n"
        "    rnn = ba.RNN(2, 3, device='cuda')\n"
        "    rnn(rnn.asarray(np.ones((4, 2, 2))))\n"
        "print('forward' in counted.kernels)"
    )
    for value, answer in (("0", "False"), ("1", "True")):
        environment = os.environ | {"BPTT_ARRAY_PERSISTENT": value}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == answer


@on_cuda
def test_a_backend_that_has_compiled_can_be_copied_and_pickled(device, backend):
    compare(backend, "tanh", NETWORKS["plain"], "float64")
    for other in (copy.copy(backend), copy.deepcopy(backend), pickle.loads(pickle.dumps(backend))):
        compare(other, "tanh", NETWORKS["plain"], "float64")


@on_cuda
def test_a_number_on_a_cell_may_change(device, backend):
    cell = CELLS_OF_USERS["softsign"]()
    for cell.scale in (1.5, 0.75, 1.5):
        compare(backend, cell, NETWORKS["plain"], "float64")


@on_cuda
@needs_counters
def test_streams_have_counters_of_their_own(device):
    import cupy

    backend, shape = ba.backend.CupyBackend(0), Shape(H=33, N=5, OB=2, NB=3)
    for _ in range(2):
        for stream in (cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)):
            with stream:
                check(backend, CELLS["gru"], shape, "float64")
    check(backend, CELLS["gru"], shape, "float64")
    counters = [counter for kept in segments.Kernels.of(backend)._counters.values() for counter in kept]
    assert len({counter.data.ptr for counter in counters}) == len(counters) >= 3


@on_cuda
def test_the_counter_of_blocks_is_ready_for_any_launch(device, backend):
    import cupy

    for sequences in (5, 1, 7, 3, 200, 5):
        check(backend, CELLS["gru"], Shape(S=3, H=33, N=sequences, OB=2, NB=3 if sequences < 200 else 7), "float64")
        for kept in segments.Kernels.of(backend)._counters.values():
            for counter in kept:
                values = cupy.asnumpy(counter)
                assert not (values & 0x7FFFFFFF).any()


@on_cuda
@needs_counters
@pytest.mark.parametrize(("OB", "NB"), [(1, 2), (2, 3)])
def test_launches_can_be_captured_and_launched_again(device, backend, OB, NB):
    import cupy

    cell, shape = CELLS["tanh"], Shape(H=33, N=5, OB=OB, NB=NB)
    arrays = draw(cell, shape, "float64")
    on = backend.from_host
    params = {name: on(a) for name, a in arrays["params"].items()}
    before, z = on(arrays["before"][0]), on(arrays["z"])
    states = on(np.full((shape.S + 1, shape.E, shape.N, shape.H), np.nan))
    stream = cupy.cuda.Stream(non_blocking=True)
    with forced(OB, NB), stream:
        kernel = segments.ForwardKernel(backend, cell, params, before.shape)
        tape = Tape((states,), None, params)
        states[1:] = z
        kernel((before,), None, tape)  # compiled, loaded
        stream.synchronize()
        first = backend.to_host(states)
        stream.begin_capture()
        states[1:] = z
        kernel((before,), None, tape)
        graph = stream.end_capture()
        for _ in range(3):
            states[...] = np.nan
            graph.launch(stream)
            stream.synchronize()
            assert np.array_equal(backend.to_host(states), first)


@on_cuda
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_parameters_may_be_views_of_any_kind(device, backend, dtype):
    import cupy

    def misaligned(a):
        whole = cupy.empty(a.size + 1, a.dtype)
        whole[1:] = a.ravel()
        return whole[1:].reshape(a.shape)

    def strided(a):
        whole = cupy.empty((*a.shape, 2), a.dtype)
        whole[..., 1] = a
        return whole[..., 1]

    rng = np.random.default_rng(0)
    x, target = (rng.standard_normal((T, N, size)).astype(dtype) for size in (I, O))
    for view in (misaligned, strided, lambda a: cupy.asfortranarray(a)):
        here, there = (ba.RNN(I, H, O, cell="gru", dtype=dtype, device=place) for place in ("cpu", backend))
        for name, value in there.params.items():
            there.params[name] = view(value)
        _, expected, _ = here.loss_and_grad(x, target)
        _, found, _ = there.loss_and_grad(x, target)
        for name, value in expected.params.items():
            np.testing.assert_allclose(backend.to_host(found.params[name]), value, rtol=0, atol=TOLERANCE[dtype] * 10)


@on_cuda
@pytest.mark.parametrize("options", ["plain", "members", "dropout", "two layers"])
def test_a_batch_may_be_empty(device, backend, options):
    network, both, _ = NETWORKS[options]
    for cell in ("tanh", "lstm", CELLS["peephole"]):
        for sequences, steps in ((0, T), (N, 1)):
            found = []
            for place in ("cpu", backend):
                rnn = ba.RNN(I, H, O, cell=cell, dtype="float64", device=place, **network)
                x, target = np.ones((steps, sequences, I)), np.ones((steps, sequences, O))
                loss, grads, state = rnn.loss_and_grad(x, target, reduction="sum", input_grad=True, **both)
                found.append([rnn.backend.to_host(a) for a in (loss, state.h, grads.x, *grads.params.values())])
            for one, other in zip(*found, strict=True):
                assert one.shape == other.shape
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@on_cuda
@needs_counters
def test_a_device_with_few_multiprocessors_gives_the_same_bits(device, backend):
    cells, shapes = [("peephole", "float32")], [Shape(H=24, N=9, mask=True)]
    assert elsewhere("bits", cells, shapes, GPUEMU_SMS="1") == bits(cells, shapes, backend)


class Numbers(CELLS_OF_USERS["softsign"]):
    """With its two numbers in some other place."""

    name = "numbers"

    def __init__(self):
        pass


def _in_a_list():
    cell = Numbers()
    cell.numbers = [1.5, 1.25]
    type(cell).scale, type(cell).width = (property(lambda self, k=k: self.numbers[k]) for k in range(2))

    def change():
        cell.numbers[0] = 0.5

    return cell, change


def _in_an_array():
    cell, _ = _in_a_list()
    cell.numbers = np.array([1.5, 1.25])

    def change():
        cell.numbers[0] = 0.5

    return cell, change


def _on_its_class():
    cell = type("OfClass", (Numbers,), {"scale": 1.5, "width": 1.25})()

    def change():
        type(cell).scale = 0.5

    return cell, change


def _in_another_cell():
    cell = type("Outer", (Numbers,), {"scale": property(lambda self: self.inner.scale), "width": 1.25})()
    cell.inner = CELLS_OF_USERS["softsign"]()

    def change():
        cell.inner.scale = 0.5

    return cell, change


def _in_a_dataclass():
    """Which has no hash."""

    @dataclass
    class WithFields(Numbers):
        scale: float = 1.5
        width: float = 1.25

    cell = WithFields()

    def change():
        cell.scale = 0.5

    return cell, change


def _in_an_object(made):
    cell, _ = _in_a_list()
    cell.numbers = made

    def change():
        cell.numbers[0] = 0.5

    return cell, change


def _in_a_deque():
    return _in_an_object(deque([1.5, 1.25]))


def _in_an_array_of_python():
    return _in_an_object(array("d", [1.5, 1.25]))


def _in_a_namespace():
    numbers = {
        name: property(lambda self, k=k: self.config.given.numbers[k]) for k, name in enumerate(("scale", "width"))
    }
    cell = type("OfConfig", (Numbers,), numbers)()
    cell.config = SimpleNamespace(given=Given([1.5, 1.25]))

    def change():
        cell.config.given.numbers = [0.5, 1.25]

    return cell, change


class Given:
    """Neither a dataclass nor a cell."""

    __slots__ = ("numbers",)

    def __init__(self, numbers):
        self.numbers = numbers


def _on_a_class_behind_that_of_cells():
    mixin = type("Mixin", (), {"scale": 1.5, "width": 1.25})
    of_numbers = {
        name: value for name, value in vars(CELLS_OF_USERS["softsign"]).items() if name not in ("__init__", "__dict__")
    }
    cell = type("Mixed", (ba.Cell, mixin), of_numbers)()

    def change():
        mixin.scale = 0.5

    return cell, change


PLACES = [
    _in_a_list,
    _in_an_array,
    _on_its_class,
    _in_another_cell,
    _in_a_deque,
    _in_an_array_of_python,
    _in_a_namespace,
    _on_a_class_behind_that_of_cells,
    _in_a_dataclass,
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_wherever_a_number_is_on_a_cell_its_change_is_seen(place):
    (cell, change), kernels = place(), segments.Kernels(OnPaper())
    first = kernels.text(cell, 6, "float32")
    assert kernels.text(cell, 6, "float32") is first
    change()
    second = kernels.text(cell, 6, "float32")
    assert "(T)1.5" in first.text
    assert "(T)0.5" in second.text
    assert kernels.text(cell, 6, "float32") is second


@on_cuda
@pytest.mark.parametrize("place", PLACES[:1] + PLACES[-1:], ids=lambda place: place.__name__)
def test_wherever_a_number_is_on_a_cell_results_are_those_of_numpy(device, backend, place):
    cell, change = place()
    compare(backend, cell, NETWORKS["plain"], "float64")
    change()
    compare(backend, cell, NETWORKS["plain"], "float64")


class Function(ba.Cell):
    """``h_t = f(z_t)``, and backward ``f(z_t) dh_t``: whatever f is, the same on every device."""

    name, keeps = "function", 1

    def __init__(self, f):
        self.f = f

    def forward_(self, backend, params, product):
        add_product, xp = product.adding(), backend.xp

        def step_(z, h_before, h, kept):
            add_product(z, h_before)
            kept[0, ...] = z
            h[...] = self.f(xp, z)

        return step_

    def slopes_(self, backend, slopes, dz, tape):
        return (tape.kept[:, 0, ...],)

    def backward_(self, backend, params, product):
        add_product, xp = product.adding(), backend.xp

        def step_(dz, dh, dh_before, z):
            dz[...] = self.f(xp, z) * dh
            add_product(dh_before, dz)

        return step_


def _functions(xp, z):
    smooth = xp.exp(-z * z) + xp.log(1.5 + z * z) + xp.sqrt(1 + xp.abs(z)) + xp.sin(z) - xp.cos(2 * z) + xp.atan(z)
    more = xp.sinh(0.1 * z) - xp.cosh(0.2 * z) + xp.expm1(-xp.abs(z)) + xp.log1p(z * z) + xp.square(z) / (1 + z**2)
    return 0.1 * xp.tanh(smooth) + 0.05 * more


def _powers(xp, z):
    return (
        (1 + z * z) ** -0.75 + (0.5 + xp.tanh(z)) ** 3 / 7 - 2.0 ** (-z * z) + (+z) * 0.1 - (-z) / 9 + (z**1 + z**0) / 8
    )


def _bounds(xp, z):
    return xp.maximum(z, -0.3) - xp.minimum(z, 0.25 * xp.ones_like(z)) + xp.clip(z, -0.4, 0.6) + xp.clip(z, max=0.1)


def _conditions(xp, z):
    kinds = xp.where((z > 0.1) | ~(z >= -0.5), 0.3 * z, xp.tanh(z)) + xp.where(xp.logical_not(z < 0), 0.5, z)
    return (
        kinds + xp.astype((z <= 0.3) & (z != 0.1), z.dtype) * 0.25 + (z == z) * 0.125 - xp.where(z < xp.inf, z, -xp.inf)
    )


def _truth(xp, z):
    both = xp.astype(z > 0, bool) + (z > -0.5)  # of NumPy: or
    return both * xp.tanh(z) + xp.astype(xp.astype(z, bool), z.dtype) * 0.1 + (z > 0) * (z < 1) * 0.2


def _truth_in_numbers(xp, z):
    """What is written to an array of numbers is no truth value any more, and the other way round."""
    a, either, both = xp.empty_like(z), z > 0.5, xp.concat([z > 0, z], axis=-1)
    a[...] = z > 0
    a += xp.asarray(z > -0.5, dtype=z.dtype) + xp.asarray(z > -1, dtype=z.dtype)
    either[...] = z * 0.5
    a += either + (z > 9)
    return 0.25 * (a + both[..., : z.shape[-1]] + (z < 1)) + xp.minimum(z > 0, z < 1) * z


def _truth_of_truth(xp, z):
    sums = xp.where(z > 0, z > 1, z < -1) + (z > -5), xp.maximum(z > 0, z > 1) + (z > -5), xp.abs(z > 0) + (z > -1)
    more = (
        xp.ones_like(z > 0) + (z > -1),
        xp.ones_like(z, dtype=xp.bool) + (z > 1),
        xp.stack([z > 0, z > 1])[0] + (z > 0),
    )
    return 0.1 * xp.tanh(z) + sum(xp.astype(truth, z.dtype) for truth in sums + more) / 8


def asks_for_dtypes(xp, z):
    small = 0.375 if z.dtype == xp.float32 else 0.625
    return small * xp.tanh(z) + (0.1 if (z > 0).dtype == xp.bool else 0.3) + xp.finfo(z.dtype).eps


def _pieces(xp, z):
    first, second = z[..., :2], z[..., 2:]
    whole = xp.concat([xp.tanh(first), xp.tanh(second)], axis=-1)
    return xp.reshape(xp.stack([whole, z], axis=0)[0, ...], z.shape) + xp.zeros(z.shape, dtype=z.dtype)


FUNCTIONS = [_functions, _powers, _bounds, _conditions, _truth, _truth_in_numbers, _truth_of_truth, _pieces]


@on_cuda
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_operation_is_that_of_numpy(device, backend, function, dtype):
    compare(backend, Function(function), NETWORKS["plain"], dtype)
    assert all(said.startswith("one launch") for said in described(Function(function), H, N, backend, dtype).values())


def test_a_cell_may_ask_of_which_dtype_a_number_is():
    for dtype, there, not_there in (("float32", "0.375", "0.625"), ("float64", "0.625", "0.375")):
        text = CellText(trace(Function(asks_for_dtypes), 5, dtype)).text
        assert f"(T){there}" in text
        assert f"(T){not_there}" not in text
        assert f"(T){float(np.finfo(dtype).eps)!r}" in text
        assert "(T)0.3;" not in text


@on_cuda
@pytest.mark.parametrize("function", [_bounds, _conditions], ids=lambda function: function.__name__)
def test_what_is_no_number_stays_none(device, backend, function):
    cell, shape = Function(function), Shape(S=1, N=7, H=6)
    arrays = draw(cell, shape, "float64")
    arrays["params"]["W_hh"][...] = 0
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 0.1, 5.0]
    arrays["z"][...] = np.array(special)[:, None]
    with np.errstate(invalid="ignore"):
        found, wanted = launched(backend, cell, shape, arrays, "float64"), expected(cell, shape, arrays)
    for name in ("h", "kept"):
        assert np.array_equal(np.isnan(found[name]), np.isnan(wanted[name]))
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-13, atol=0)


class Renamed(CELLS_OF_USERS["leaky"]):
    """With other names for its parameters."""

    name = "renamed"

    def __init__(self, *names):
        self.names = names

    def __repr__(self):
        return f"leaky,\n#with {self.names}"

    def own_parameters(self, hidden_size):
        return dict.fromkeys(self.names, (hidden_size,))

    def usual(self, params):
        return dict(zip(("s", "gain"), [params[name] for name in self.names], strict=True)) | {"b_h": params["b_h"]}

    def rate(self, xp, params):
        return super().rate(xp, params if "gain" in params else self.usual(params))

    def forward_(self, backend, params, product):
        return super().forward_(backend, self.usual(params), product)

    def backward_(self, backend, params, product):
        return super().backward_(backend, self.usual(params), product)

    def finish_(self, backend, slopes, dz, dh, tape):
        return dict(zip(self.names, super().finish_(backend, slopes, dz, dh, tape).values(), strict=True))


@on_cuda
@pytest.mark.parametrize("names", [("c", "z"), ("kept0", "sum"), ("a b", "größe"), ("h_before", "own0.")], ids=str)
def test_parameters_of_a_cell_may_have_any_name(device, backend, names):
    compare(backend, Renamed(*names), NETWORKS["plain"], "float64")
    assert all(said.startswith("one launch") for said in described(Renamed(*names), H, N, backend, "float64").values())


class Sine(ba.Cell):
    """In place, and with a c."""

    name, in_place, has_c = "sine", True, True

    def forward_(self, backend, params, product):
        add_product, xp = product.adding(), backend.xp

        def step_(h_before, h, c_before, c):
            add_product(h, h_before)
            c[...] = 0.5 * c_before + xp.tanh(h)
            h[...] = xp.sin(c)

        return step_

    def slopes_(self, backend, slopes, dz, tape):
        dz[...] = 1 - (tape.c - 0.5 * tape.c_before) ** 2
        return (backend.xp.cos(tape.c),)

    def backward_(self, backend, params, product):
        add_product = product.adding()

        def step_(dz, dh, dh_before, dc, dc_before, cos_c):
            dc += cos_c * dh
            dz *= dc
            dc_before += 0.5 * dc
            add_product(dh_before, dz)

        return step_


class Remembering(Function):
    """Makes its constants once, and remembers them by the width."""

    name = "remembering"

    def __init__(self, made):
        super().__init__(lambda xp, z: xp.tanh(z))
        self.made = made

    def forward_(self, backend, params, product):
        H = params["b_h"].shape[-1]
        made = self.made if type(self.made) is dict else self.made[0]
        half = made.setdefault(H, backend.ones((H,), params["b_h"].dtype) * 0.5)
        self.f = lambda xp, z: xp.tanh(z + half[0])
        return super().forward_(backend, params, product)


def test_a_trace_leaves_nothing_on_a_cell_and_takes_nothing_that_another_left():
    cell = Remembering({})
    first = CellText(trace(cell, 5, "float32")).text
    assert not cell.made
    assert CellText(trace(cell, 5, "float32")).text == first
    deeper = Remembering([{}])
    assert CellText(trace(deeper, 5, "float32")).text == first
    with pytest.raises(CannotTraceError, match="uses a number that an earlier trace left somewhere, line"):
        trace(deeper, 5, "float32")


@on_cuda
@pytest.mark.parametrize("options", NETWORKS)
def test_a_cell_may_work_in_place_and_have_a_c(device, backend, options):
    compare(backend, Sine(), NETWORKS[options], "float64")
    assert all(said.startswith("one launch") for said in described(Sine(), H, N, backend, "float64").values())


def test_a_number_that_keeps_changing_ends_in_the_loops_and_one_that_is_none_in_one_text():
    cell, backend = CELLS_OF_USERS["softsign"](), OnPaper()
    cell.unused = float("nan")
    for k in range(20):
        cell.scale = 1 + k / 8
        said = described(cell, backend=backend)["forward"]
        assert said.startswith("one launch") == (k < 8)
    assert said == "step by step: what is on <cell 'softsign'> keeps changing, and each time would need another kernel"
    cell.scale = 1.0
    assert described(cell, backend=backend)["forward"].startswith("one launch")
    kernels = segments.Kernels.of(backend)
    assert len(kernels._texts) == 1
    del cell
    gc.collect()
    assert not kernels._texts
