"""Run every benchmark that this machine can, and write their tables into README.md.

    python benchmarks/report.py [--no-run] [--threads 2]

Each table stands between two comments of README.md, and comes from a file of results/; with --no-run the tables
are written anew from the files that are there. What has no file yet says so. A script that cannot run, or fails,
is named at the end, and the others go on.
"""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import busy
import char_rnn
import compare
import distributed
import ensembles
import gpu
import longest
import measure
import memory
import parallel
import parts
import peers
import practice
import scaling
import streaming
import tasks
import train
import updates
import vanishing
import words
from peers import Shape

HERE = Path(__file__).parent

#: The peers of the float64 table: those that come near.
NEAREST = ["torch.nn.RNN", "JAX scan, jit", "textbook NumPy"]

#: Name of the file in results/, the call that makes it, what makes lines of it.
REPORTS = {
    "compare-float32": (["compare.py"], compare.tables),
    "compare-float64": (
        ["compare.py", "--dtype", "float64", "--repetitions", "5", "--no-memory", "--peers", *NEAREST],
        compare.tables,
    ),
    "cells-float32": (["cells.py"], compare.tables),
    "ensembles-float32": (["ensembles.py"], ensembles.tables),
    "words-float32": (["words.py"], words.tables),
    "streaming-float32": (["streaming.py"], streaming.tables),
    "parts": (["parts.py"], parts.tables),
    "scaling-float32": (["scaling.py"], scaling.tables),
    "memory-float32": (["memory.py"], memory.tables),
    "longest": (["longest.py"], longest.tables),
    "parallel-float32": (["parallel.py"], parallel.tables),
    "char_rnn-32": (["char_rnn.py"], char_rnn.tables),
    "char_rnn-64": (["char_rnn.py", "--seq-len", "64", "--updates", "400"], char_rnn.tables),
    "train": (["train.py"], train.tables),
    "busy": (["busy.py"], busy.tables),
    "updates-float32": (["updates.py"], updates.tables),
    "distributed": (["distributed.py"], distributed.tables),
    "tasks": (["tasks.py"], tasks.tables),
    "practice": (["practice.py"], practice.tables),
    "vanishing": (["vanishing.py"], vanishing.tables),
    "gpu-float32": (["gpu.py"], gpu.tables),
    "gpu-float32-tf32": (["gpu.py", "--tf32"], gpu.tables),
}


def is_small(shape):
    return shape.H < 256


def ratios(rows, name):
    """Our time over that of a peer, by the shape of a row (of rows with one cell)."""
    found = {}
    for row in rows:
        if name in row["peers"]:
            ours, theirs = (row["peers"][who]["median_ms"] for who in ("bptt_array", name))
            found[Shape(*row["shape"])] = ours / theirs
    return found


def ratios_of_cells(files, name):
    """The same for LSTM and GRU, by cell and shape as they are written; empty without a file."""
    rows = files.get("cells-float32", {"rows": []})["rows"]
    return {compare.label(row): value for row in rows for value in ratios([row], name).values()}


def width(label):
    """H of ``"lstm (T, N, I, H, O)"``."""
    return int(label.split(", ")[3])


def above(found):
    """Those of them with H of 256 and more."""
    return {label: value for label, value in found.items() if width(label) >= 256}


def beside_busy_loops(files):
    """Our time over that with one thread, beside busy loops."""
    rows, load = files.get("busy", {"rows": []})["rows"], list(busy.LOADS)[-1]
    return {compare.label(row): busy.ratio(row, load, "all threads", "one thread") for row in rows}


def of_updates(files):
    """Our time over torch's, of ten million parameters and more."""
    found = {}
    for row in files.get("updates-float32", {"rows": []})["rows"]:
        if "torch" in row["peers"] and row["numbers"] > 9e6:
            ours, theirs = (row["peers"][who]["both"]["median_ms"] for who in ("bptt_array", "torch"))
            found[row["parameters"]] = ours / theirs
    return found


def of_words(files, figure):
    """Our time or memory over torch's, with tokens."""
    return {
        compare.label(row): row["peers"]["bptt_array"][figure] / row["peers"]["torch"][figure]
        for row in files.get("words-float32", {"rows": []})["rows"]
        if figure in row["peers"].get("torch", {})
    }


def of_streams(files):
    """The time of a step of a stream over that of its NumPy calls."""
    rows = files.get("streaming-float32", {"rows": []})["rows"]
    return {streaming.label(entry): streaming.over_bare(entry) for entry in rows}


def of_practice(files):
    """How many points the accuracy of each data set is below torch's, in the mean over seeds."""
    rows = files.get("practice", {"rows": []})["rows"]
    return {entry["task"]: -practice.apart(entry) for entry in rows}


def verdict(goal, values, limit):
    """A line of the table of goals: in how many rows ``values`` keep below ``limit(shape)``, and where they do not."""
    missed = [f"{value:.3f} at {shape}" for shape, value in values.items() if not value <= limit(shape)]
    met = f"in {len(values) - len(missed)} of {len(values)} rows" if missed else "met in every row"
    return [goal, met if values else "not measured", "; ".join(missed)]


def goals(results):
    """What was aimed at in float32 (in one row in float64), and what the files in ``results`` say."""
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    if not {"compare-float32", "compare-float64", "parts"} <= set(files):
        return ["Not measured yet."]
    single, double = files["compare-float32"]["rows"], files["compare-float64"]["rows"]
    products, torch, jax = (ratios(single, name) for name in ("products alone", "torch.nn.RNN", "JAX scan, jit"))
    memory = {
        Shape(*row["shape"]): row["peers"]["bptt_array"]["peak_bytes"] / row["peers"]["torch.nn.RNN"]["peak_bytes"]
        for row in single
        if row["shape"][0] == 1000 and "torch.nn.RNN" in row["peers"]
    }
    wide = {shape: value for shape, value in products.items() if not is_small(shape)}
    cells = {of: ratios_of_cells(files, of) for of in ("torch", "products alone")}
    lstm, gru = (
        {of: {at: value for at, value in found.items() if at.startswith(cell)} for of, found in cells.items()}
        for cell in ("lstm", "gru")
    )
    rows = [
        verdict("tanh: time / products alone at most 1.05 for H of 256 and more", wide, lambda shape: 1.05),
        verdict("tanh: at most 1.5 at (50, 32, 32, 64, 32)",
                {shape: value for shape, value in products.items() if shape == Shape(50, 32, 32, 64, 32)},
                lambda shape: 1.5),
        verdict("GRU: time / products alone at most 1.15 for H of 256 and more", above(gru["products alone"]),
                lambda row: 1.15),
        verdict("LSTM: at most 1.2 for H of 256 and more, 2.2 at 64", lstm["products alone"],
                lambda row: 1.2 if width(row) >= 256 else 2.2),
        verdict("tanh: time / torch at most 0.85 to H = 512, 1.0 above", torch,
                lambda shape: 0.85 if shape.H <= 512 else 1.0),
        verdict("GRU: time / torch at most 0.85", gru["torch"], lambda row: 0.85),
        verdict("LSTM: time / torch at most 1.0 for H of 256 and more, 1.2 at 64", lstm["torch"],
                lambda row: 1.0 if width(row) >= 256 else 1.2),
        verdict("float64: time / torch at most 0.9", ratios(double, "torch.nn.RNN"), lambda shape: 0.9),
        verdict("time / JAX at most 0.8, 1.0 at (25, 1, 65, 100, 65)", jax,
                lambda shape: 1.0 if shape.N == 1 else 0.8),
        verdict("beside busy loops at most 1.3 times the time of one thread there", beside_busy_loops(files),
                lambda row: 1.3),
        verdict("clipping and Adam of large parameters: time / torch at most 1.0", of_updates(files), lambda row: 1.0),
        verdict("20,000 tokens: time / torch at most 1.0", of_words(files, "median_ms"), lambda row: 1.0),
        verdict("20,000 tokens: memory / torch at most 0.7", of_words(files, "peak_bytes"), lambda row: 0.7),
        verdict("one step of a stream: time / bare NumPy at most 1.5", of_streams(files), lambda row: 1.5),
        verdict("three data sets: accuracy at most 0.5 points below torch's", of_practice(files),
                lambda task: practice.POINTS),
        verdict("peak memory / torch's at most 0.5 where T = 1000", memory, lambda shape: 0.5),
    ]  # fmt: skip
    return measure.table(["goal", "reached", "where not"], rows)


def section(name, results):
    """The lines that belong between the comments of ``name``."""
    if name == "goals":
        return goals(results)
    path = results / f"{name}.json"
    if not path.exists():
        return [f"No figure exists yet: `python benchmarks/{shlex.join(REPORTS[name][0])}` has not been run."]
    result = json.loads(path.read_text(encoding="utf-8"))
    about = [f"{line}  " for line in measure.describe(result["about"])]
    return [*about, "", *REPORTS[name][1](result)]


def rewrite(text, results):
    """README with every table replaced by the one of its file."""
    for name in ("goals", *REPORTS):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"README.md needs {begin} and {end} once each")
        lines = "\n".join([begin, "", *section(name, results), "", end])
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, lines=lines: lines, text, flags=re.DOTALL)
    return text


def cannot_run(call):
    """Why a script cannot run here; empty if it can."""
    if call[0] == "gpu.py" and not gpu.ba.backend.cuda_device_count():
        return "there is no CUDA device"
    if call[0] == "gpu.py" and importlib.util.find_spec("gpuemu"):
        return "the CUDA device here is emulated, its times mean nothing"
    if call[0] == "distributed.py" and distributed.missing():
        return distributed.missing()
    if call[0] in ("char_rnn.py", "updates.py") and "torch.nn.RNN" not in peers.installed():
        return "torch is not installed"
    return ""


def main(argv=None):
    parser = measure.argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-run", action="store_true", help="only write the tables from results/")
    parser.add_argument("--threads", type=measure.positive, default=2, help="of every library (default: 2)")
    arguments = parser.parse_args(argv)
    problems = []
    for call, _ in REPORTS.values() if not arguments.no_run else ():
        print(f"==== {shlex.join(call)}", flush=True)
        if problem := cannot_run(call):
            problems.append(f"benchmarks/{call[0]} was left out: {problem}")
            continue
        folder = ["--threads", str(arguments.threads), "--out", HERE.name]
        command = [sys.executable, f"{HERE.name}/{call[0]}", *call[1:], *folder]
        if status := subprocess.run(command, cwd=HERE.parent, check=False).returncode:
            problems.append(f"benchmarks/{shlex.join(call)} failed with exit status {status}; its table is as it was")
    readme = HERE / "README.md"
    new = readme.with_name(".README.md.new")
    new.write_text(rewrite(readme.read_text(encoding="utf-8"), HERE / "results"), encoding="utf-8")
    new.replace(readme)
    print("\n".join([f"wrote {readme}", *problems]))
    if any("failed" in problem for problem in problems):
        raise SystemExit(1)


if __name__ == "__main__":
    measure.run(main)
