"""The benchmark scripts run, compare what they say, and measure what they claim; how fast is not tested."""

import contextlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import busy
import cells
import char_rnn
import communication
import compare
import distributed
import ensembles
import exchange
import gpu
import kernels
import longest
import measure
import memory
import numpy as np
import parallel
import parts
import peers
import practice
import practice_data
import pytest
import report
import scaling
import streaming
import tasks
import train
import updates
import vanishing
import words
from conftest import cuda
from mpi import needs_mpi
from peers import Problem, Shape

FOLDER = Path(report.__file__).parent
OURS_AND_THE_LIMIT = ["bptt_array", "products alone"]
QUICK = ["--quick", "--threads", "1"]


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    """No pauses: how fast anything is, and how quiet the machine, is not looked at here."""
    monkeypatch.setattr(measure, "SETTLE_S", 0)
    monkeypatch.setattr(measure.busy, "__defaults__", (0.01,))
    monkeypatch.setattr(measure, "_bind", lambda to: None)  # others may be at work on the same cores


@pytest.fixture
def forked(monkeypatch):
    """Fresh processes come from one that has imported the libraries already, where the system has such."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "bptt_array", "threadpoolctl"])
        monkeypatch.setattr(measure.multiprocessing, "get_context", lambda method=None: context)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [name for name in peers.PEERS if name != "products alone"])
def test_every_peer_computes_the_same_gradients(name, dtype):
    if name not in peers.installed():
        pytest.skip(f"{name} is not installed: pip install {peers.PEERS[name][1]}")
    if name == "JAX scan, jit" and dtype == "float64":
        pytest.skip("JAX's 64-bit switch is for the whole process, and compare.py is one; float32 is tested")
    problem = Problem(Shape(5, 3, 4, 6, 2), dtype)
    found = peers.make(name, problem).gradients()
    difference = peers.gradient_difference(found, peers.Textbook(problem).gradients())
    assert difference < 50 * np.finfo(dtype).eps


needs_torch = pytest.mark.skipif(
    "torch.nn.RNN" not in peers.installed(), reason="torch is not installed: pip install torch"
)


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", cells.CELLS)
def test_torch_computes_the_gradients_of_cells_with_gates(cell, dtype):
    problem = Problem(Shape(5, 3, 4, 6, 2), dtype, cell)
    ours, theirs = (peers.make(name, problem, peers.PEERS_OF_CELLS).gradients() for name in ("bptt_array", "torch"))
    assert peers.gradient_difference(theirs, ours) < 50 * np.finfo(dtype).eps
    assert ("l0.b_hn" in theirs) == (cell == "gru")


@pytest.mark.parametrize("cell", ensembles.CELLS)
@pytest.mark.parametrize("name", ensembles.PEERS)
def test_every_way_to_train_an_ensemble_computes_the_gradients_of_its_members(name, cell):
    if name not in peers.installed(ensembles.PEERS):
        pytest.skip(f"{name} is not installed: pip install torch")
    problem = Problem(Shape(5, 3, 4, 6, 2), "float64", cell, members=3)
    found = peers.make(name, problem, ensembles.PEERS).gradients()
    for k in range(3):
        expected = peers.Ours(problem, network=problem.network.member(k)).gradients()
        difference = peers.gradient_difference({name: grad[k] for name, grad in found.items()}, expected)
        assert difference < 1e-13


def test_a_wrong_gradient_stops_the_comparison():
    problem = Problem(Shape(5, 3, 4, 6, 2))
    made = {name: peers.make(name, problem) for name in ("bptt_array", "textbook NumPy")}
    right = compare.check_gradients(made, "float32")
    assert 0 <= right["textbook NumPy"] < 1e-5
    for wrong in (lambda a: a * 1.01, lambda a: a * np.nan):
        changed = {name: wrong(a) for name, a in peers.Textbook(problem).gradients().items()}
        made["textbook NumPy"].gradients = lambda changed=changed: changed
        with pytest.raises(SystemExit, match=r"gradients of textbook NumPy differ by .*: nothing was timed"):
            compare.check_gradients(made, "float32")


@pytest.mark.parametrize("cell", ["tanh", *cells.CELLS])
@pytest.mark.parametrize("shape", [Shape(7, 2, 3, 5, 4), Shape(70, 2, 3, 5, 4)], ids=str)
def test_products_alone_are_the_products_of_a_training_step(shape, cell, monkeypatch):
    """Every product with two matrices of ours, and of theirs: shapes, and whether operands are in order."""
    problem = Problem(shape, cell=cell)
    backend = problem.network.to(type(problem.network.backend)()).backend
    backend.segment_bytes = 3 * 2 * 5 * 4
    products = []

    def noted(a, b):
        b = np.moveaxis(b, 0, -2).reshape(b.shape[-2], -1) if b.ndim > 2 else b  # gates apart: G products at once
        products.append((a.shape, a.flags.c_contiguous, b.shape, b.flags.c_contiguous))

    class Noted(np.ndarray):
        def dot(self, b, out=None):
            noted(self, b)
            return np.dot(np.asarray(self), b, out)

    def matmul(a, b, *args, of=np.matmul, **kwargs):
        noted(a, b)
        return of(a, b, *args, **kwargs)

    monkeypatch.setattr(backend.xp, "matmul", matmul)
    monkeypatch.setattr(np, "matmul", matmul)
    monkeypatch.setitem(vars(backend), "empty", lambda shape, dtype: np.empty(shape, dtype).view(Noted))
    limit = peers.Products(problem)
    limit.h, limit.z = limit.h.view(Noted), limit.z.view(Noted)  # of which every step's products are made
    limit.run()
    theirs, products[:] = sorted(products), []
    problem.network.loss_and_grad(problem.x, problem.target)
    assert len(products) > 2 * shape.T
    assert sorted(products) == theirs


def test_peers_take_turns_and_the_first_call_of_a_turn_is_not_timed():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measure.alternate(functions, 3, 0.001)
    turns = re.findall(r"a+|b+", "".join(calls))
    assert [turn[0] for turn in turns] == ["a", "b", "a", "b"]  # a b, b a, a b: each begins as often
    for name in "ab":
        assert len(times[name]) == calls.count(name) - 3
        assert len(times[name]) >= 3 * 3
        assert min(times[name]) > 0


@pytest.mark.skipif(len(measure.cores()) < 2, reason="needs two cores")
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_every_library_is_held_to_the_same_number_of_threads():
    code = """
import os, numpy as np, measure
a = np.ones((300, 300)); a @ a  # OpenBLAS has its threads now
with measure.threads(1):
    a @ a
    from threadpoolctl import threadpool_info
    print({pool["num_threads"] for pool in threadpool_info()} == {1})
    print({len(os.sched_getaffinity(int(t))) for t in os.listdir("/proc/self/task")} == {1})
    if "torch" in measure.installed_versions():
        import torch
        print(torch.get_num_threads() == 1)
print(len(os.sched_getaffinity(0)) > 1)
"""
    unbound = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=FOLDER, env=unbound, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"True"}, done.stdout + done.stderr
    with pytest.raises(SystemExit, match=r"--threads 1000: this process may use \d+ cores"), measure.threads(1000):
        pass


@pytest.mark.skipif(measure.busy(0.01) is None, reason="needs /proc/stat")
def test_a_machine_that_is_not_quiet_is_said_to_be_so():
    work = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        found = measure.busy(0.5)
    finally:
        work.kill()
        work.wait()
    assert found > 0.5 / len(measure.cores())
    about = {**measure.environment(1, "command", [0.0, found]), "cores": 2}
    assert ("NOT A QUIET MACHINE" in "".join(measure.describe(about))) == (found > measure.QUIET)
    assert "NOT A QUIET" not in "".join(measure.describe({**about, "busy_before": [0.05]}))


def test_what_varies_is_named():
    steady, shaky = {"p10_ms": 1.0, "p90_ms": 1.4}, {"p10_ms": 1.0, "p90_ms": 1.6}
    assert measure.unsteady([("a", steady)]) == []
    assert "10th: b, c." in measure.unsteady([("a", steady), ("b", shaky), ("c", shaky)])[0]


@pytest.mark.parametrize(("value", "bound"), [(1.05e-6, "2e-6"), (1e-6, "1e-6"), (9.2e-7, "1e-6"), (0.0, "0")])
def test_a_bound_is_rounded_up(value, bound):
    assert measure.up(value) == bound
    assert float(bound) >= value


def test_the_summary_of_times_is_median_and_spread():
    found = measure.summary([k / 1000 for k in range(11)])
    assert found == {
        "median_ms": pytest.approx(5),
        "p10_ms": pytest.approx(1),
        "p90_ms": pytest.approx(9),
        "calls": 11,
    }


def allocate(mebibytes):
    return lambda: np.ones((mebibytes, 1 << 20), np.uint8).sum()


def test_peak_memory_is_that_of_the_step():
    small, large = (measure.peak_memory(allocate, (mebibytes,), 1)["bytes"] / 2**20 for mebibytes in (1, 64))
    assert small < 8
    assert 60 < large < 72


def test_compare_prints_and_writes_what_it_measured(tmp_path, capsys, forked):
    arguments = ["--quick", "--shape", "4", "2", "3", "5", "2", "--out", str(tmp_path)]
    result = compare.main([*arguments, "--peers", "textbook NumPy"])
    assert result["names"] == [*OURS_AND_THE_LIMIT, "textbook NumPy"]
    found = result["rows"][0]["peers"]
    assert found["textbook NumPy"]["gradient_difference"] < 1e-5
    assert found["bptt_array"]["peak_bytes"] >= 0
    assert json.loads((tmp_path / "results" / "compare-float32.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "images" / "compare-float32.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "2 threads" in printed
    ratio = found["bptt_array"]["median_ms"] / found["products alone"]["median_ms"]
    assert re.search(rf"\(4, 2, 3, 5, 2\) \| +{ratio:.2f} \|", printed)


@needs_torch
def test_cells_prints_and_writes_what_it_measured(tmp_path, capsys, forked):
    result = cells.main([*QUICK, "--shape", "4", "2", "3", "5", "2", "--out", str(tmp_path)])
    assert result["names"] == [*OURS_AND_THE_LIMIT, "torch"]
    assert [row["cell"] for row in result["rows"]] == list(cells.CELLS)
    printed = capsys.readouterr().out
    for row in result["rows"]:
        found = row["peers"]
        assert found["torch"]["gradient_difference"] < 1e-5
        assert found["torch"]["peak_bytes"] >= 0
        ratio = found["bptt_array"]["median_ms"] / found["products alone"]["median_ms"]
        assert re.search(rf"{row['cell']} \(4, 2, 3, 5, 2\) +\| +{ratio:.2f} \|", printed)
    assert json.loads((tmp_path / "results" / "cells-float32.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "images" / "cells-float32.png").read_bytes().startswith(b"\x89PNG")


@needs_torch
def test_ensembles_prints_and_writes_what_it_measured(tmp_path, capsys):
    result = ensembles.main([*QUICK, "--shape", "4", "2", "3", "5", "2", "--out", str(tmp_path)])
    assert result["names"] == list(ensembles.PEERS)
    printed = capsys.readouterr().out
    for row in result["rows"]:
        found = row["peers"]
        assert all(found[name]["gradient_difference"] < 1e-5 for name in result["names"][1:])
        ratio = found["bptt_array"]["median_ms"] / found["ours, one by one"]["median_ms"]
        assert re.search(rf"{row['cell']} \(4, 2, 3, 5, 2\) +\| +{ratio:.2f} \|", printed)
    assert json.loads((tmp_path / "results" / "ensembles-float32.json").read_text()) == json.loads(json.dumps(result))


@pytest.mark.parametrize("cell", streaming.CELLS)
def test_what_a_stream_is_compared_with_does_the_same(cell):
    rnn, other = (
        streaming.ba.RNN(streaming.INPUTS, 6, streaming.OUTPUTS, cell=cell, dtype="float64", seed=seed)
        for seed in (1, 2)
    )
    xs = np.random.default_rng(0).standard_normal((7, 3, streaming.INPUTS))
    assert streaming.difference(streaming.made(rnn, 3), xs) < 1e-14
    assert streaming.difference(streaming.made(rnn, 3) | {"other": other.streamer(3)}, xs) > 0.01


def test_streaming_prints_and_writes_what_it_measured(tmp_path, capsys):
    result = streaming.main([*QUICK, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert [entry["cell"] for entry in result["rows"][::2]] == list(streaming.CELLS)
    for entry in result["rows"]:
        ratios = [streaming.over_bare(entry, name) for name in (streaming.NAMES[0], streaming.NAMES[2])]
        assert re.search(rf"{re.escape(streaming.label(entry))} +\| +{ratios[0]:.2f} +\| +{ratios[1]:.2f} \|", printed)
    assert json.loads((tmp_path / "results" / "streaming-float32.json").read_text()) == json.loads(json.dumps(result))


@needs_torch
@pytest.mark.parametrize("cell", words.CELLS)
def test_an_embedding_has_the_gradients_of_the_columns_that_stand_for_it(cell):
    problem = words.Words(Shape(5, 3, 400, 6, 2), "float64", cell)
    ours, *others = (peers.make(name, problem, words.PEERS).gradients() for name in words.PEERS)
    for theirs in others:
        assert peers.gradient_difference(theirs, ours) < 1e-13


@needs_torch
def test_words_prints_and_writes_what_it_measured(tmp_path, capsys, forked):
    result = words.main([*QUICK, "--shape", "4", "2", "300", "5", "2", "--out", str(tmp_path)])
    assert result["names"] == ["bptt_array", "without an embedding", "torch"]
    printed = capsys.readouterr().out
    for row, name in zip(result["rows"], ["", "lstm "], strict=True):
        found = row["peers"]
        assert found["torch"]["gradient_difference"] < 1e-5
        columns, ratio = (found["bptt_array"]["median_ms"] / found[peer]["median_ms"] for peer in result["names"][1:])
        assert re.search(rf"{re.escape(name)}\(4, 2, 300, 5, 2\) +\| +{columns:.2f} \| +{ratio:.2f} \|", printed)
        assert f"{found['torch']['peak_bytes'] / 2**20:.1f} |" in printed
    assert json.loads((tmp_path / "results" / "words-float32.json").read_text()) == json.loads(json.dumps(result))


def test_a_peak_that_is_not_that_of_a_step_is_said_to_be_so(tmp_path, forked):
    result = compare.main(
        ["--quick", "--shape", "4", "2", "3", "5", "2", "--peers", "bptt_array", "--out", str(tmp_path)]
    )
    told = "peaks since the process began"
    ours = result["rows"][0]["peers"]["bptt_array"]
    assert (told in "".join(compare.tables(result))) == (ours["peak_since"] == "the process")
    ours["peak_since"] = "the process"
    assert told in "".join(compare.tables(result))


def test_scaling_fits_lines_to_what_it_measured(tmp_path, capsys, forked):
    result = scaling.main([*QUICK, "--out", str(tmp_path)])
    assert [point["size"] for point in result["series"]["T"]["points"]] == list(scaling.QUICK["T"])
    assert (tmp_path / "images" / "scaling-float32.png").exists()
    assert (tmp_path / "results" / "scaling-float32.json").exists()
    assert "- N: time is within" in capsys.readouterr().out


def test_a_line_is_fitted_and_its_distance_told():
    assert scaling.line([1, 2, 3], [5, 7, 9]) == {
        "intercept": pytest.approx(3),
        "slope": pytest.approx(2),
        "distance": pytest.approx(0, abs=1e-12),
    }
    assert scaling.line([1, 2, 3], [0, 3, 0])["distance"] == pytest.approx(2 / 3)


@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("T", [2, 9, 23], ids=lambda T: f"T={T}")
def test_torch_with_checkpoints_computes_the_same_gradients(T, dtype):
    problem = Problem(Shape(T, 3, 4, 6, 2), dtype)
    found = memory.Checkpointed(problem).gradients()
    assert peers.gradient_difference(found, peers.Ours(problem).gradients()) < 50 * np.finfo(dtype).eps


def test_budgets_reach_from_few_steps_forward_to_everything_kept():
    shape = Shape(400, 2, 3, 8, 2)
    plan = partial(Problem(shape).network.plan, (shape.T, shape.N, shape.I))
    tried = memory.budgets(plan, shape.T, 4)
    assert tried == sorted(tried)
    assert tried[0] >= memory.smallest(plan)
    assert 1 < plan(memory=tried[0]).forward_steps / shape.T <= memory.MOST
    assert tried[-1] == plan().peak
    assert plan(memory=tried[-1]).forward_steps == shape.T


def test_a_line_through_times_is_fitted_to_their_ratios():
    points = [{"cost": cost, "median_ms": 10 * (2 * cost + 3)} for cost in (1, 2, 5)]
    assert memory.fit(points, full_ms=10) == {
        "a": pytest.approx(2),
        "b": pytest.approx(3),
        "distance": pytest.approx(0, abs=1e-12),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_memory_prints_and_writes_what_it_measured(tmp_path, capsys, forked):
    result = memory.main([*QUICK, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for row in result["rows"]:
        found = row["peers"]
        within = [entry for entry in found.values() if entry.get("budget")]
        assert len(within) == 2
        for entry in within:
            assert entry["traced_bytes"] <= 1.05 * entry["budget"]
            assert entry["plan_bytes"] <= entry["budget"]
            assert f"memory={entry['budget'] / 2**20:.2f} MiB" in printed
        assert all(entry["gradient_difference"] < 1e-5 for name, entry in found.items() if name != memory.ALL)
        assert all(entry["peak_bytes"] >= 0 for entry in found.values())
        assert (memory.CHECKPOINTED in found) == (memory.CHECKPOINTED not in result["missing"])
        assert len(row["curve"]) == memory.OF_THE_CURVE
    assert re.search(r"\| steps forward / T \| +ms, median \(p10-p90\) \| time / all kept \|", printed)
    assert json.loads((tmp_path / "results" / "memory-float32.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "images" / "memory-float32.png").read_bytes().startswith(b"\x89PNG")


def test_longest_reads_files_and_keeps_within_its_memory(tmp_path, capsys):
    result = longest.main([*QUICK, "--out", str(tmp_path)])
    within, cut = result["rows"]
    assert (within["options"], cut["options"]) == ({"memory": "1MiB"}, {"truncate": 100})
    assert within["plan_bytes"] <= 2**20 < result["full_bytes"]
    assert within["loss"] == pytest.approx(cut["loss"], rel=1e-6)
    assert within["forward_steps"] > cut["forward_steps"] == longest.QUICK.T
    assert 0 < within["resident_bytes"] < 2**30
    printed = capsys.readouterr().out
    assert re.search(r"\| `memory='1MiB'` +\| +[\d.]+ \| +[\d,]+ \|", printed)
    assert within["plan"] in printed
    assert json.loads((tmp_path / "results" / "longest.json").read_text()) == json.loads(json.dumps(result))


def test_a_segment_alone_has_the_gradients_of_the_loop_in_chunks_too():
    segment = parallel.Segment(Problem(Shape(60, 2, 3, 5, 1), "float64"), 60)
    expected = segment.gradients(segment.loop)
    assert peers.gradient_difference(segment.gradients(partial(segment.chunks, 7)), expected) < 1e-13


def test_parallel_prints_and_writes_what_it_measured(tmp_path, capsys):
    result = parallel.main([*QUICK, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for row in result["rows"]:
        found, segment = row["peers"], row["segment"]
        assert list(found)[:3] == list(parallel.HOW)
        assert (parallel.TORCH in found) == (parallel.TORCH not in result["missing"])
        assert all(entry["gradient_difference"] < 1e-5 for name, entry in found.items() if name != "sequential")
        assert segment["gradient_difference"] < 1e-5
        assert segment["count"] > 1
        assert segment["auto"] in (1, segment["count"])
        ratio = found["parallel"]["median_ms"] / found["sequential"]["median_ms"]
        shape = re.escape(str(Shape(*row["shape"])))
        assert re.search(rf"{shape} +\| +{ratio:.2f} \|", printed)
        assert re.search(rf"{shape} +\| +1 of {segment['steps']} \| +{segment['count']} \|", printed)
    assert json.loads((tmp_path / "results" / "parallel-float32.json").read_text()) == json.loads(json.dumps(result))


@pytest.mark.parametrize("device", ["cpu", *cuda])
def test_the_gpu_script_runs_but_for_its_timers(device, tmp_path, capsys):
    result = gpu.main([*QUICK, "--device", device, "--out", str(tmp_path)])
    ours = result["rows"][0]["peers"]["bptt_array"]
    shape = Shape(*result["rows"][0]["shape"])
    assert ours["us_per_step"] == pytest.approx(ours["device"]["median_ms"] * 1e3 / shape.T)
    assert ours["gradient_difference"] < 1e-5
    printed = capsys.readouterr().out
    assert "TF32 off on both sides" in printed
    if device == "cpu":
        assert ours["launches"] is None
        assert "not counted" in printed
        assert list(result["rows"][0]["peers"])[1:] in ([], ["torch.nn.RNN"])
        assert result["rows"][0]["kernels"] is None
    else:
        assert ours["pool_bytes"] > 0
        stepwise = result["rows"][0]["peers"]["bptt_array, step by step"]
        assert stepwise["gradient_difference"] < 1e-5
        if ours["counter"] == "emulated device":
            assert stepwise["products"] >= 2 * shape.T
            assert 2 * shape.T <= stepwise["launches"] < 2 * shape.T + 40
            assert ours["products"] == stepwise["products"] - 2 * shape.T
            assert ours["launches"] <= stepwise["launches"] - 2 * shape.T + 2
        for way, kernel in result["rows"][0]["kernels"].items():
            assert kernel["path"].startswith("one launch a segment")
            assert 0 < kernel["model_us_per_step"] < 5
            assert f"| {way} |" in re.sub(" +", " ", printed)
    for found in result["rows"][0]["peers"].values():
        assert found["forward"].keys() == found["backward"].keys() == {"us_per_step", "fixed_us"}
    assert (tmp_path / "results" / "gpu-float32.json").exists()


@pytest.mark.parametrize("device", ["cpu", *cuda])
@pytest.mark.parametrize("cell", cells.CELLS)
def test_the_gpu_script_knows_cells_with_gates(cell, device, tmp_path):
    result = gpu.main([*QUICK, "--cell", cell, "--device", device, "--out", str(tmp_path)])
    found = result["rows"][0]["peers"]
    assert all(peer["gradient_difference"] < 1e-5 for peer in found.values())
    ours = {"bptt_array"} if device == "cpu" else {"bptt_array", "bptt_array, step by step"}
    assert ours <= set(found) <= {*ours, f"torch.nn.{cell.upper()}"}
    assert (tmp_path / "results" / f"gpu-{cell}-float32.json").exists()


@pytest.mark.parametrize("device", cuda)
def test_the_gpu_script_sets_tf32_on_the_handle_too(device, tmp_path):
    result = gpu.main([*QUICK, "--tf32", "--device", device, "--out", str(tmp_path)])
    assert result["tf32"]
    assert result["tf32_state"]["cuBLAS handle of CuPy"]
    import bptt_array as ba

    backend = ba.backend.resolve(device)
    with backend.active():
        handle = backend.cupy.cuda.Device().cublas_handle
        assert backend.cupy.cuda.cublas.getMathMode(handle) == 3
        gpu.set_cublas_mode(backend, on=False)
        assert backend.cupy.cuda.cublas.getMathMode(handle) == 0


def test_kernels_are_told_from_copies_in_a_profile():
    events = [("ampere_sgemm", "CUDA"), ("Memcpy HtoD", "CUDA"), ("Memset (Device)", "CUDA"), ("aten::mm", "CPU")]
    assert gpu.kernel_count([*events, ("tanh", "CUDA")]) == 2


def test_the_gpu_script_says_what_is_missing(capsys):
    if gpu.ba.backend.cuda_device_count():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(SystemExit):
        gpu.main(QUICK)
    assert "--device cpu tries everything but the CUDA timers" in capsys.readouterr().err


@pytest.mark.parametrize("device", cuda)
def test_kernels_of_every_kind_are_held_against_the_cpu(device, tmp_path, capsys):
    result = kernels.main([*QUICK, "--device", device, "--out", str(tmp_path)])
    assert all(row["difference"] < 1e-5 for row in result["rows"])
    one_block, several = (row["paths"] for row in result["rows"])
    assert all("1 block(s)" in path for path in one_block.values())
    assert all(path.startswith("one launch") and " 1 block(s)" not in path for path in several.values())
    assert "| forward" in re.sub(" +", " ", capsys.readouterr().out)
    assert (tmp_path / "results" / "kernels-small.json").exists()


def test_kernels_that_give_other_numbers_are_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "gradient_difference", lambda *gradients: float("nan"))
    with pytest.raises(SystemExit, match="gradients differ: tanh T=6 N=3 H=20 float32"):
        kernels.main([*QUICK, "--device", "cpu", "--out", str(tmp_path)])


@pytest.mark.parametrize("device", cuda)
def test_the_exchange_between_blocks_is_clocked(device, tmp_path, capsys):
    result = exchange.main([*QUICK, "--device", device, "--out", str(tmp_path)])
    assert [row["OB"] for row in result["rows"]] == [2, 4]
    assert np.isfinite([row["clocks"] for row in result["rows"]]).all()
    assert "`Device.exchange` is 1500; by this it should be " in capsys.readouterr().out
    assert (tmp_path / "results" / "exchange.json").exists()


GPU_DAY = FOLDER / "gpu_day.sh"


def day(folder, path=(), **environment):
    """``gpu_day.sh``, with programs of these folders before all others: its exit status, and its summary."""
    path = os.pathsep.join([*map(str, path), os.environ["PATH"]])
    environment = os.environ | {"PYTHON": sys.executable, "GPU_DAY": "quick", "PATH": path} | environment
    status = subprocess.run([GPU_DAY, folder], env=environment, capture_output=True, text=True).returncode
    return status, (folder / "summary.txt").read_text().splitlines()


@pytest.mark.skipif("GPUEMU_STRICT" in os.environ, reason="once is enough, where device memory is not watched")
@pytest.mark.parametrize("device", cuda[:1])
def test_every_command_for_the_day_of_a_gpu_runs(device, tmp_path):
    for tool in ("compute-sanitizer", "ncu"):  # which run what they are given
        (tmp_path / tool).write_text('#!/bin/bash\nwhile [ "$1" != "$PYTHON" ]; do shift; done\nexec "$@"\n')
        (tmp_path / tool).chmod(0o755)
    status, summary = day(tmp_path / "day", [tmp_path])
    assert [line.partition(":")[0] for line in summary] == [
        *("info", "parity", "tests", "kernels"),
        *(f"bench-{cell}{tf32}" for tf32 in ("", "-tf32") for cell in ("tanh", "lstm", "gru")),
        *("racecheck", "memcheck", "synccheck", "exchange", "train", "ncu"),
    ]
    assert all(": ok, " in line for line in summary), summary
    assert status == 0
    written = {path.name for path in (tmp_path / "day" / "results").iterdir()}
    assert {"gpu-gru-float32-tf32.json", "exchange.json", "kernels-small.json"} <= written
    assert re.search(r"\n(\d+) of \1 within bounds\n", (tmp_path / "day" / "02-parity.txt").read_text())


@pytest.mark.skipif(os.name == "nt", reason="a script of bash")
def test_a_part_of_the_day_that_fails_does_not_stop_the_others(tmp_path):
    status, summary = day(tmp_path / "day", PYTHON="false", ONLY="info exchange train")
    assert [line.rpartition(",")[0] for line in summary if "not run" not in line] == [
        f"{part}: failed (1)" for part in ("info", "exchange", "train")
    ]
    assert status == 1


def test_the_day_of_a_gpu_ends_within_25_minutes():
    text = GPU_DAY.read_text()
    limits = {name: int(seconds) for seconds, name in re.findall(r"^ *part (\d+) (\S+)", text, re.MULTILINE)}
    times = {name: 6 if name.startswith('"bench') else 3 if name == "$tool" else 1 for name in limits}
    assert len(limits) == 9
    assert sum(seconds * times[name] for name, seconds in limits.items()) <= 25 * 60


def test_the_parts_of_a_step_are_clocked(tmp_path, capsys):
    result = parts.main([*QUICK, "--out", str(tmp_path)])
    for row in result["rows"]:
        parts_ms = row["parts_ms"]
        assert set(parts.PARTS) < set(parts_ms)
        assert min(parts_ms.values()) > 0  # every part of a step was seen, and none twice
        assert all(parts_ms[part] < parts_ms["whole"] for part in parts.PARTS)
        assert min(row["operations_us"].values()) > 0
    assert min(result["import_s"].values()) > 0
    assert "`import bptt_array` takes" in capsys.readouterr().out
    assert (tmp_path / "results" / "parts.json").exists()


@needs_torch
def test_char_rnn_trains_both_alike(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    small = ["--hidden", "16", "--seq-len", "8", "--batch", "4"]
    result = char_rnn.main([str(text), *small, *QUICK, "--out", str(tmp_path)])
    assert result["gradient_difference"] < 1e-5
    ours, theirs = (side["last_loss"] for side in result["sides"].values())
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert "Our time / torch's" in capsys.readouterr().out
    assert (tmp_path / "results" / "char_rnn-8.json").exists()


def test_the_training_run_is_measured(tmp_path, capsys):
    result = train.main([*QUICK, "--out", str(tmp_path)])
    assert result["steps"] == 20
    assert 0 < result["validation"] < 10
    out = capsys.readouterr().out
    assert "20 updates took" in out
    assert "chosen / better of both" in out
    assert all(train.ratio(of) > 0 and len(of["chosen"]) == 1 for of in result["beside"].values())
    assert (tmp_path / "results" / "train.json").exists()


def test_every_call_that_sends_is_counted_with_its_bytes():
    class Comm:
        size = 2

        def Get_rank(self):  # noqa: N802 (mpi4py's name)
            return 1

        def Allreduce(self, *arguments, op=None):  # noqa: N802
            return arguments, op

        def allgather(self, value):
            return [value]

    counting = communication.Counting(Comm())
    flat, in_place = np.zeros(5, np.float32), object()
    assert (counting.size, counting.Get_rank()) == (2, 1)
    assert counting.calls == []
    assert counting.Allreduce(in_place, flat, op="sum") == ((in_place, flat), "sum")
    assert counting.allgather("x") == ["x"]
    assert counting.calls == [("Allreduce", 20), ("allgather",)]


#: Slow enough to calculate by hand.
LINK = communication.Link(latency=2.0, bandwidth=10.0)


@pytest.mark.parametrize(
    ("size", "ranks", "seconds"),
    [
        (100, 1, 0),
        (100, 2, 2 * 1 * 2 + 2 * 1 / 2 * 100 / 10),  # the ring: 14, of the tree 24
        (1e6, 4, 2 * 3 * 2 + 2 * 3 / 4 * 1e6 / 10),
        (10, 64, 2 * 6 * 2 + 2 * 10 / 10),  # the tree: 26, of the ring 254
        (10, 65, 2 * 7 * 2 + 2 * 10 / 10),
    ],
)
def test_an_all_reduce_takes_the_better_of_a_ring_and_a_tree(size, ranks, seconds):
    assert communication.flat(size, ranks, LINK) == pytest.approx(seconds)


def test_an_all_reduce_of_nodes_goes_between_them_in_shares():
    between = communication.Link(latency=7.0, bandwidth=5.0)
    cluster = communication.Cluster(per_node=4, inside=LINK, between=between)
    for gpus in (1, 2, 4):
        assert communication.all_reduce(1e6, gpus, cluster) == communication.flat(1e6, gpus, LINK)
    # Reduce-scatter and all-gather of 4 inside, and 3 nodes that all-reduce a fourth of the bytes.
    inside = 2 * (3 * 2 + 3 / 4 * 1e6 / 10)
    assert communication.all_reduce(1e6, 12, cluster) == pytest.approx(inside + 2 * 2 * 7 + 2 * 2 / 3 * 250e3 / 5)


@pytest.mark.parametrize("cell", ["tanh", "lstm"])
def test_the_model_knows_the_parameters_of_a_network(cell):
    params = peers.ba.RNN(12, 12, 12, cell=cell).params
    network = communication.Network(cell, 12)
    assert network.parameters == sum(value.size for value in params.values())
    assert network.bytes == 4 * network.parameters + 12
    assert network.weights == sum(value.size for name, value in params.items() if "W_" in name)


def test_computing_takes_its_calls_or_its_arithmetic_whichever_is_more():
    cluster, network = communication.Cluster(call=1e-5, flops=1e12), communication.Network("tanh", 100)
    assert communication.compute(network, 32, 1, cluster) == pytest.approx(32 * 4 * 1e-5)
    assert communication.compute(communication.Network("lstm", 100), 32, 1, cluster) == pytest.approx(32 * 6 * 1e-5)
    assert communication.compute(network, 32, 10_000, cluster) == pytest.approx(6 * 3e4 * 32 * 1e4 / 1e12)


@pytest.mark.parametrize("gpus", communication.GPUS)
@pytest.mark.parametrize("network", communication.NETWORKS, ids=str)
def test_the_least_batch_is_the_first_with_which_computing_takes_as_long(network, gpus):
    cluster, T = communication.Cluster(), communication.T
    sent = communication.all_reduce(network.bytes, gpus, cluster)
    least = communication.least_batch(network, T, gpus, cluster)
    assert communication.compute(network, T, least, cluster) >= sent
    assert least == 1 or communication.compute(network, T, least - 1, cluster) < sent
    own = communication.compute(network, T, 8, cluster)
    plain, bound = (communication.efficiency(network, T, 8, gpus, cluster, overlap=hide) for hide in (False, True))
    assert plain == pytest.approx(own / (own + sent))
    assert bound == pytest.approx(own / max(own, sent))


def test_too_many_gpus_are_the_first_with_which_sending_takes_longer():
    cluster, network = communication.Cluster(), communication.Network("tanh", 4096)

    def sends_longer(gpus):
        return communication.compute(network, 32, 8192 / gpus, cluster) < communication.all_reduce(
            network.bytes, gpus, cluster
        )

    found = communication.too_many(network, 32, 8192, cluster)
    assert sends_longer(found)
    assert not any(sends_longer(gpus) for gpus in (8, 16, 64, 256, found // 2))
    assert communication.too_many(network, 32, found // 2, cluster) is not None  # fewer sequences, fewer GPUs
    assert communication.too_many(communication.Network("tanh", 256), 32, 8192, cluster) is None


@needs_mpi
def test_updates_of_several_ranks_are_measured_and_their_messages_counted(tmp_path, capsys):
    result = distributed.main(["--quick", "--ranks", "1", "2", "--threads", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = {(row["work"][0], row["ranks"]): row for row in result["rows"]}
    assert set(rows) == {(kind, ranks) for kind in ("strong", "weak", "members") for ranks in (1, 2)}
    for (kind, ranks), row in rows.items():
        times = row["times"]
        assert times["update"]["calls"] == times["send"]["calls"] == 4
        assert times["update"]["median_ms"] > 0
        assert row["segments"] == 1
        assert ("after" in times) == ("at once" in times) == (kind == "strong" and ranks > 1)
        if ranks == 1:
            assert "sent" not in row
        else:  # one message: all gradients, the loss, the steps, the flag
            assert row["sent"] == ([] if kind == "members" else [["Allreduce", row["bytes"] + 3 * 4]])
    work = distributed.Work(*rows["strong", 1]["work"])
    params = peers.ba.RNN(distributed.V, work.H, distributed.V, output="softmax").params
    assert rows["strong", 2]["bytes"] == 4 * sum(value.size for value in params.values())
    assert 2 * rows["members", 2]["bytes"] == rows["members", 1]["bytes"]
    one, two = (rows["strong", ranks]["times"]["update"]["median_ms"] for ranks in (1, 2))
    assert re.search(rf"\| {work} +\| +2 \| +1 \| [^|]+ \| +{one / two:.2f} \|", printed)
    one, two = (rows["weak", ranks]["times"]["update"]["median_ms"] for ranks in (1, 2))
    assert re.search(rf"\| weak: [^|]+ \| +2 \| +1 \| [^|]+ \| +{2 * one / two:.2f} \|", printed)
    assert json.loads((tmp_path / "results" / "distributed.json").read_text()) == json.loads(json.dumps(result))


@needs_mpi
def test_ranks_that_fail_end_the_script_with_what_they_said():
    with pytest.raises(SystemExit, match=r"(?s)1 ranks ended with status \d+:.*hidden_size"):
        distributed.job(1, 1, [distributed.Work("strong", 4, 2, 0)], 1)


def test_without_mpi_the_script_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "mpiexec", lambda: None)
    with pytest.raises(SystemExit):
        distributed.main(["--quick"])
    assert "mpi4py or mpiexec is not there: pip install mpi4py mpich" in capsys.readouterr().err
    assert report.cannot_run(["distributed.py"]) == distributed.missing() != ""


@needs_torch
def test_updates_prints_and_writes_what_it_measured(tmp_path, capsys, forked):
    result = updates.main([*QUICK, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for entry in result["rows"]:
        ours, theirs = entry["peers"].values()
        assert entry["difference"] < 1e-5
        assert theirs["peak_bytes"] >= 0
        ratios = [f"{ours[done]['median_ms'] / theirs[done]['median_ms']:.2f}" for done in updates.DONE]
        assert re.search(rf"{re.escape(entry['parameters'])} .*" + r" \| +".join(ratios), printed)
    assert json.loads((tmp_path / "results" / "updates-float32.json").read_text()) == json.loads(json.dumps(result))


@needs_torch
def test_a_wrong_update_stops_the_comparison(monkeypatch):
    monkeypatch.setattr(updates.Torch, "clip", lambda self: None)
    arguments = updates.measure.argparse.Namespace(dtype="float64")
    with pytest.raises(SystemExit, match=r"results of an update differ by .*: nothing was timed"):
        updates.row("", {"W": (100,)}, arguments)


def test_three_networks_differ_in_what_becomes_of_their_gradients(tmp_path, capsys):
    result = vanishing.main([*QUICK, "--out", str(tmp_path)])
    short, keeping, wild = (row["exponents"][0] for row in result["rows"])
    assert short < -0.4 < keeping < wild
    assert "largest exponent" in capsys.readouterr().out
    assert json.loads((tmp_path / "results" / "vanishing.json").read_text()) == result
    assert (tmp_path / "images" / "gradient-flow.png").read_bytes()[:4] == b"\x89PNG"


def test_a_first_look_does_not_touch_the_results_that_are_kept():
    for script in (
        compare,
        cells,
        ensembles,
        scaling,
        streaming,
        memory,
        longest,
        parallel,
        practice,
        gpu,
        parts,
        char_rnn,
        train,
        updates,
        distributed,
        tasks,
        vanishing,
        words,
    ):
        assert "default: runs/benchmarks" in help_of(script)
    assert Path("runs") / "benchmarks" == measure.OUT


def help_of(script):
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
        script.main(["--help"])
    return re.sub(r"\s+", " ", text.getvalue())


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        (compare, ["--threads", "0"], "argument --threads: 0 is not positive"),
        (compare, ["--shape", "0", "1", "1", "1", "1"], "argument --shape: 0 is not positive"),
        (scaling, ["--repetitions", "x"], "argument --repetitions: invalid positive value: 'x'"),
        (compare, ["--peers", "torch"], "invalid choice: 'torch'"),
        (cells, ["--peers", "torch.nn.RNN"], "invalid choice: 'torch.nn.RNN'"),
        (ensembles, ["--no-memory"], "unrecognized arguments: --no-memory"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_named(script, arguments, said, capsys):
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert said in capsys.readouterr().err


def test_results_are_written_whole_or_not_at_all(tmp_path):
    path = measure.save("a", {"b": 1}, tmp_path)
    with pytest.raises(TypeError):
        measure.save("a", {"b": object()}, tmp_path)
    assert json.loads(path.read_text()) == {"b": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_goal_that_is_missed_says_where():
    values = {Shape(1, 1, 1, 100, 1): 0.3, Shape(1, 1, 1, 256, 1): 0.8}
    assert report.verdict("g", values, lambda shape: 0.75) == ["g", "in 1 of 2 rows", "0.800 at (1, 1, 1, 256, 1)"]
    assert report.verdict("g", values, lambda shape: 0.9) == ["g", "met in every row", ""]
    assert (
        report.verdict("g", {values_of: float("nan") for values_of in values}, lambda shape: 1)[1] == "in 0 of 2 rows"
    )


def test_goals_of_cells_are_looked_up_by_cell_and_size():
    def row(cell, H, ours, theirs):
        peers_ = {"bptt_array": {"median_ms": ours}, "torch": {"median_ms": theirs}}
        return {"cell": cell, "shape": [1, 1, 1, H, 1], "peers": peers_}

    files = {"cells-float32": {"rows": [row("lstm", 64, 9, 1), row("lstm", 512, 1, 2), row("gru", 512, 3, 2)]}}
    found = report.ratios_of_cells(files, "torch")
    assert found == {"lstm (1, 1, 1, 64, 1)": 9, "lstm (1, 1, 1, 512, 1)": 0.5, "gru (1, 1, 1, 512, 1)": 1.5}
    assert report.above(found) == {"lstm (1, 1, 1, 512, 1)": 0.5, "gru (1, 1, 1, 512, 1)": 1.5}
    assert report.ratios_of_cells({}, "torch") == {}
    assert report.ratios_of_cells(files, "products alone") == {}


def test_busy_prints_and_writes_what_it_measured(tmp_path, capsys):
    result = busy.main([*QUICK, "--out", str(tmp_path)])
    (entry,) = result["rows"]
    assert list(entry["beside"]) == ["nothing", "a busy loop on each core"]
    printed = capsys.readouterr().out
    for load, of in entry["beside"].items():
        assert {"all threads", "one thread"} <= set(of)
        value = of["all threads"]["median_ms"] / of["one thread"]["median_ms"]
        assert busy.ratio(entry, load, "all threads", "one thread") == value
        assert f"Beside {load}, median" in printed
        assert re.search(rf"tanh \(10, 4, 5, 16, 3\) .*\| +{value:.2f} \|", printed)
    assert busy.ratio(entry, "nothing", "all threads", "nobody") is None
    assert report.beside_busy_loops({"busy": result}) == {"(10, 4, 5, 16, 3)": value}
    assert report.beside_busy_loops({}) == {}
    assert json.loads((tmp_path / "results" / "busy.json").read_text()) == json.loads(json.dumps(result))


def test_the_goal_of_streams_is_a_ratio_to_bare_numpy():
    peers_ = {"bptt_array": {"median_ms": 3.0}, "bare NumPy": {"median_ms": 2.0}}
    files = {"streaming-float32": {"rows": [{"cell": "gru", "size": [1, 64], "peers": peers_}]}}
    assert report.of_streams(files) == {"gru (1, 64)": 1.5}
    assert report.of_streams({}) == {}


def test_goals_of_updates_and_words_are_ratios_to_torch():
    def peers_of(ours, theirs):
        return {"bptt_array": ours, "torch": theirs}

    both = [{"both": {"median_ms": value}} for value in (3, 2)]
    rows = [
        {"parameters": name, "numbers": n, "peers": peers_of(*both)} for name, n in (("large", 10**7), ("small", 9))
    ]
    assert report.of_updates({"updates-float32": {"rows": rows}}) == {"large": 1.5}
    figures = peers_of({"median_ms": 1, "peak_bytes": 6}, {"median_ms": 4, "peak_bytes": 3})
    files = {"words-float32": {"rows": [{"cell": "lstm", "shape": [1, 1, 1, 2, 1], "peers": figures}]}}
    assert report.of_words(files, "median_ms") == {"lstm (1, 1, 1, 2, 1)": 0.25}
    assert report.of_words(files, "peak_bytes") == {"lstm (1, 1, 1, 2, 1)": 2}
    assert report.of_updates({}) == report.of_words({}, "median_ms") == {}


def test_intervals_hold_what_they_say_of_errors_that_stay_the_same():
    rng = np.random.default_rng(0)
    series = 100 + 10 * rng.standard_normal(practice.END + 600)
    forecasts = 100 + rng.standard_normal((5, len(practice.came_after(series)), practice.HORIZON))
    assert 87 < practice.covered(forecasts, series) < 93
    lower, upper = practice.intervals(forecasts, series)
    assert np.isnan(lower[practice.KNOWN + practice.HORIZON - 2]).all()
    later = series.copy()
    later[practice.END + 300 :] += 1000  # nothing that is known only later is in an interval
    assert np.array_equal(practice.intervals(forecasts, later)[:, :300], [lower[:300], upper[:300]], equal_nan=True)
    assert practice.explained(practice.came_after(series)[None], series) == [100]


def test_lines_of_a_program_are_those_that_do_something():
    def program(x):
        """A docstring.

        Of several lines.
        """
        # a comment
        text = """two
        lines"""

        return (
            x
            + len(text)
        )  # fmt: skip

    assert practice._lines(program) == 7


@needs_torch
def test_practice_prints_and_writes_what_it_measured(tmp_path, capsys, monkeypatch, forked):
    rng = np.random.default_rng(0)

    def utterances(count):
        speakers = rng.integers(0, 9, count)
        return [rng.standard_normal((5, 12)) + np.eye(12)[k] * 3 for k in speakers], speakers

    made = [utterances(32), utterances(40)]
    monkeypatch.setattr(practice_data, "japanese_vowels", lambda: made)
    monkeypatch.setattr(
        practice_data, "sunspots", lambda: (np.arange(1700, 2009), 50 + 50 * np.sin(np.arange(309) / 2))
    )
    monkeypatch.setattr(practice.importlib.util, "find_spec", lambda name: name)
    result = practice.main(["--tasks", "vowels", "sunspots", "--seeds", "1", "--threads", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    vowels, sunspots = result["rows"]
    for entry in (vowels, sunspots):
        ours, theirs = (entry["peers"][peer] for peer in practice.PEERS)
        assert min(ours["accuracy"] + theirs["accuracy"]) > 60
        assert f"{practice.apart(entry):+.2f} points from torch's" in printed
        assert re.search(rf"bptt_array +\| +{np.mean(ours['accuracy']):.2f} \|", printed)
        assert 0 < ours["lines"] < theirs["lines"]
    assert set(report.of_practice({"practice": result})) == {"vowels", "sunspots"}
    assert f"{sunspots['ensemble']['mean']:.1f} %" in printed
    assert json.loads((tmp_path / "results" / "practice.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "images" / "practice.png").read_bytes()[:4] == b"\x89PNG"


def test_busy_loops_end_with_what_they_are_beside(monkeypatch):
    began, start = [], subprocess.Popen
    monkeypatch.setattr(measure.subprocess, "Popen", lambda *a, **k: (began.append(start(*a, **k)), began[-1])[1])
    with contextlib.suppress(KeyError), measure.busy_loops(2):
        assert [loop.poll() for loop in began] == [None, None]
        raise KeyError
    assert len(began) == 2
    assert all(loop.poll() is not None for loop in began)


def test_the_tables_of_the_readme_are_those_of_the_results():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert report.rewrite(text, FOLDER / "results") == text


def test_a_readme_without_its_comments_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="needs <!-- goals -->"):
        report.rewrite("nothing", tmp_path)
