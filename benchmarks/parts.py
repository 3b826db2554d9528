"""Where the time of a training step goes, and how long the library takes to import.

    python benchmarks/parts.py [--threads 2] [--dtype float32] [--quick]

A clock around each part of a step (itself a fraction of a microsecond); what one time step is made of, each
operation repeated alone, and the product that a loop with features first would make; and the import in fresh
processes. Writes results/parts.json, into runs/benchmarks unless --out says otherwise.
"""

import contextlib
import statistics
import subprocess
import sys
import time
from unittest import mock

import measure
import numpy as np
from compare import QUICK, SHAPES
from peers import Ours, Problem, Products, Shape

from bptt_array.bptt import layer
from bptt_array.bptt.direct import LossAtEveryStep

#: A part, and the functions whose time it is. None of them is called by another one of these.
PARTS = {
    "projection": [(layer, "project_")],
    "loop forward": [(layer, "forward_")],
    "readout, loss": [(LossAtEveryStep, "__call__")],
    "loop backward": [(layer, "backward_")],
    "weight sums": [(layer, "add_weight_sums"), (layer, "add_rows")],
}


def step_parts(run, repetitions, seconds=0.4):
    """Median milliseconds of a step and of its parts, all by clocks in the same calls."""
    spent = dict.fromkeys(PARTS, 0.0)

    def clocked(part, function):
        def call(*args, **kwargs):
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - began

        return call

    found = {part: [] for part in ("whole", *PARTS, "rest")}
    with contextlib.ExitStack() as patches:
        for part, functions in PARTS.items():
            for owner, name in functions:
                patches.enter_context(mock.patch.object(owner, name, clocked(part, getattr(owner, name))))
        run()
        first = time.perf_counter()
        while len(found["whole"]) < repetitions or time.perf_counter() - first < seconds:
            spent.update(dict.fromkeys(PARTS, 0.0))
            began = time.perf_counter()
            run()
            whole = time.perf_counter() - began
            for part, time_of_it in {"whole": whole, **spent, "rest": whole - sum(spent.values())}.items():
                found[part].append(time_of_it)
    return {part: statistics.median(times) * 1e3 for part, times in found.items()}


def microseconds(call, seconds=0.05):
    """Of one call: the median over batches of calls."""
    call()
    began = time.perf_counter()
    call()
    count = max(1, int(2e-4 / max(1e-7, time.perf_counter() - began)))
    times, first = [], time.perf_counter()
    while time.perf_counter() - first < seconds:
        began = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - began) / count)
    return statistics.median(times) * 1e6


def operations(shape, dtype):
    """Microseconds of what the loops do in a time step, each alone on arrays that are in the cache."""
    problem = Problem(shape, dtype)
    limit, W_hh = Products(problem), problem.params["l0.W_hh"]
    rng = np.random.default_rng(0)
    h, row, product = (rng.uniform(0.1, 0.9, (shape.N, shape.H)).astype(dtype) for _ in range(3))
    ones = np.ones_like(h)
    first, product_first = (np.ascontiguousarray(a.T) for a in (h, product))
    return {
        "h W_hh^T": microseconds(lambda: limit.forward_(h)),
        "dz W_hh": microseconds(lambda: limit.backward_(h)),
        "sum": microseconds(lambda: np.add(row, ones, product)),
        "tanh": microseconds(lambda: np.tanh(row, product)),
        "times the slope": microseconds(lambda: row.__imul__(ones)),
        "W_hh h, features first": microseconds(lambda: W_hh.dot(first, product_first)),
    }


def import_seconds(module, times):
    """Median seconds to import a module in a fresh process."""
    code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
    run = [sys.executable, "-c", code]
    return statistics.median(
        float(subprocess.run(run, check=True, capture_output=True, text=True).stdout) for _ in range(times)
    )


def tables(result):
    """The result as Markdown."""
    parts, steps = [], []
    for row in result["rows"]:
        label = str(Shape(*row["shape"]))
        parts.append([label, *(f"{ms:.2f}" for ms in row["parts_ms"].values())])
        steps.append([label, *(f"{us:.2f}" for us in row["operations_us"].values())])
    first = result["rows"][0]
    ours, numpy = (result["import_s"][name] for name in ("bptt_array", "numpy"))
    return [
        "Milliseconds of one training step, products included (rest: checks, schedule, arrays):",
        "",
        *measure.table(["(T, N, I, H, O)", *first["parts_ms"]], parts),
        "",
        "Microseconds of what a time step is made of, each alone on arrays that are in the cache:",
        "",
        *measure.table(["(T, N, I, H, O)", *first["operations_us"]], steps),
        "",
        f"`import bptt_array` takes {ours:.2f} s in a fresh process, `import numpy` {numpy:.2f} s.",
    ]


def main(argv=None):
    parser = measure.parser(__doc__)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(default: float32)")
    arguments = parser.parse_args(argv)
    repetitions = 3 if arguments.quick else 15
    rows, busy = [], []
    with measure.threads(arguments.threads):
        for shape in QUICK if arguments.quick else SHAPES:
            print(f"{shape} ...", flush=True)
            busy.append(measure.busy())
            spent = step_parts(Ours(Problem(shape, arguments.dtype)).run, repetitions)
            entry = {"shape": list(shape), "parts_ms": spent}
            rows.append(entry | {"operations_us": operations(shape, arguments.dtype)})
        seconds = {name: import_seconds(name, 3 if arguments.quick else 11) for name in ("bptt_array", "numpy")}
        about = measure.environment(arguments.threads, measure.command(__file__), busy)
    result = {"about": about, "dtype": arguments.dtype, "rows": rows, "import_s": seconds}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save('parts', result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
