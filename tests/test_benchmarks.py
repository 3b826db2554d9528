"""The benchmark scripts run, compare what they say, and measure what they claim; how fast is not tested."""

import json
import re
from pathlib import Path

import compare
import gpu
import measure
import numpy as np
import peers
import pytest
import report
import scaling
from conftest import cuda
from peers import Problem, Shape

FOLDER = Path(report.__file__).parent
OURS_AND_THE_LIMIT = ["bptt_array", "products alone"]


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


def test_products_alone_are_the_products_of_a_training_step(monkeypatch):
    """Operand by operand: shapes of every product with two matrices of ours, and of theirs."""
    problem = Problem(Shape(7, 2, 3, 5, 4))
    problem.network.backend = type(problem.network.backend)()
    problem.network.backend.segment_bytes = 3 * 2 * 5 * 4
    limit, shapes = peers.Products(problem), []

    def noted(function):
        def call(a, b, *args, **kwargs):
            shapes.append((a.shape, b.shape))
            return function(a, b, *args, **kwargs)

        return call

    monkeypatch.setattr(problem.network.backend.xp, "matmul", noted(np.matmul))
    monkeypatch.setattr(np, "matmul", noted(np.matmul))
    monkeypatch.setattr(np, "dot", noted(np.dot))
    limit.run()
    theirs, shapes[:] = sorted(shapes), []
    problem.network.loss_and_grad(problem.x, problem.target)
    assert len(shapes) > 20
    assert sorted(shapes) == theirs


def test_peers_take_turns_and_the_first_call_of_a_turn_is_not_timed(monkeypatch):
    monkeypatch.setattr(measure, "SETTLE_S", 0)
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measure.alternate(functions, 3, 0.001)
    turns = re.findall(r"a+|b+", "".join(calls))
    assert [turn[0] for turn in turns] == ["a", "b"] * 3
    for name in "ab":
        assert len(times[name]) == calls.count(name) - 3
        assert min(times[name]) > 0


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
    small, large = (measure.peak_memory(allocate, (mebibytes,), 1) / 2**20 for mebibytes in (1, 64))
    assert small < 8
    assert 60 < large < 72


def test_compare_prints_and_writes_what_it_measured(tmp_path, capsys):
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


def test_scaling_fits_lines_to_what_it_measured(tmp_path, capsys):
    result = scaling.main(["--quick", "--out", str(tmp_path)])
    assert [point["size"] for point in result["series"]["T"]["points"]] == list(scaling.QUICK["T"])
    assert (tmp_path / "images" / "scaling.png").exists()
    assert (tmp_path / "results" / "scaling.json").exists()
    assert "- N: time is within" in capsys.readouterr().out


def test_a_line_is_fitted_and_its_distance_told():
    assert scaling.line([1, 2, 3], [5, 7, 9]) == {
        "intercept": pytest.approx(3),
        "slope": pytest.approx(2),
        "distance": pytest.approx(0, abs=1e-12),
    }
    assert scaling.line([1, 2, 3], [0, 3, 0])["distance"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("device", ["cpu", *cuda])
def test_the_gpu_script_runs_but_for_its_timers(device, tmp_path, capsys):
    result = gpu.main(["--quick", "--device", device, "--out", str(tmp_path)])
    ours = result["rows"][0]["peers"]["bptt_array"]
    shape = Shape(*result["rows"][0]["shape"])
    assert ours["us_per_step"] == pytest.approx(ours["device"]["median_ms"] * 1e3 / shape.T)
    assert ours["gradient_difference"] < 1e-5
    printed = capsys.readouterr().out
    assert "TF32 off on both sides" in printed
    if device == "cpu":
        assert ours["launches"] is None
        assert "not counted" in printed
    else:
        assert ours["pool_bytes"] > 0
        if ours["counter"] == "emulated device":
            assert ours["products"] >= 2 * shape.T
            assert 2 * shape.T <= ours["launches"] < 2 * shape.T + 40
    assert (tmp_path / "results" / "gpu.json").exists()


@pytest.mark.parametrize("device", cuda)
def test_the_gpu_script_sets_tf32_on_the_handle_too(device, tmp_path):
    result = gpu.main(["--quick", "--tf32", "--device", device, "--out", str(tmp_path)])
    assert result["tf32"]
    import bptt_array as ba

    backend = ba.backend.resolve(device)
    with backend.active():
        handle = backend.cupy.cuda.Device().cublas_handle
        assert backend.cupy.cuda.cublas.getMathMode(handle) == 3
        gpu.set_cublas_mode(backend, on=False)
        assert backend.cupy.cuda.cublas.getMathMode(handle) == 0


def test_the_gpu_script_says_what_is_missing(capsys):
    if gpu.ba.backend.cuda_device_count():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(SystemExit):
        gpu.main(["--quick"])
    assert "--device cpu tries everything but the CUDA timers" in capsys.readouterr().err


def test_the_tables_of_the_readme_are_those_of_the_results():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert report.rewrite(text, FOLDER / "results") == text


def test_a_readme_without_its_comments_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="needs <!-- compare-float32 -->"):
        report.rewrite("nothing", tmp_path)
