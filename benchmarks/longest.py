"""A million steps: the exact gradients of a sequence whose states do not fit into the memory that is given.

    python benchmarks/longest.py [--threads 2] [--quick]

One ``loss_and_grad`` of T = 1000000, N = 8, I = 4, H = 64, O = 1 in float32, whose states alone are 1.9 GiB, within
256 MiB; inputs and targets are files, mapped into memory. Then the same, truncated to windows of 1000 steps, which
needs no more memory than one window. Each in a fresh process that imports nothing else, whose peak of resident memory,
the interpreter, libraries and pages of the files included, is that since it began. Writes results/longest.json, into
runs/benchmarks unless --out says otherwise.
"""

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import measure
import numpy as np
from peers import Shape

import bptt_array as ba

SHAPE, MEMORY, WINDOW = Shape(1_000_000, 8, 4, 64, 1), "256MiB", 1000
QUICK, QUICK_MEMORY, QUICK_WINDOW = Shape(20_000, 2, 4, 16, 1), "1MiB", 100


def write(folder, shape):
    """Inputs and targets as files of float32, a piece at a time: ``x.bin`` and ``target.bin``."""
    rng = np.random.default_rng(0)
    for name, size in (("x", shape.I), ("target", shape.O)):
        with (folder / f"{name}.bin").open("wb") as file:
            for start in range(0, shape.T, 10_000):
                steps = min(10_000, shape.T - start)
                file.write(rng.standard_normal((steps, shape.N, size), dtype=np.float32).tobytes())


def step(folder, shape, options, count):
    """One step in this process, which is a fresh one: seconds, loss, the plan, the peak of resident memory."""
    T, N, I, H, O = shape  # noqa: E741
    x, target = (
        np.memmap(folder / f"{name}.bin", np.float32, "r", shape=(T, N, size))
        for name, size in (("x", I), ("target", O))
    )
    with measure.threads(count, peers=False):
        rnn = ba.RNN(I, H, O, seed=2)
        rnn.loss_and_grad(x[:100], target[:100], "mse")  # libraries are warm
        before = time.perf_counter()
        plan = rnn.plan(x.shape, **options)
        planned = time.perf_counter()
        loss, grads, _ = rnn.loss_and_grad(x, target, "mse", **options)
        seconds = time.perf_counter() - planned
    if not all(np.all(np.isfinite(grad)) for grad in grads.params.values()):
        raise SystemExit("gradients are not finite")
    return {
        "options": options,
        "seconds": seconds,
        "plan_seconds": planned - before,
        "loss": float(loss),
        "plan": str(plan),
        "plan_bytes": plan.peak,
        "forward_steps": plan.forward_steps,
        "resident_bytes": measure.peak_of_process(),
    }


def tables(result):
    """The result as Markdown."""
    shape, rows = Shape(*result["shape"]), []
    for found in result["rows"]:
        options = ", ".join(f"{name}={value!r}" for name, value in found["options"].items())
        rows.append([
            f"`{options}`",
            f"{found['seconds']:.1f}",
            f"{shape.T / found['seconds']:,.0f}",
            f"{found['forward_steps'] / shape.T:.2f}",
            f"{found['plan_bytes'] / 2**20:.0f}",
            f"{found['resident_bytes'] / 2**20:.0f}",
            f"{found['loss']:.6f}",
        ])  # fmt: skip
    head = ["", "s", "steps / s", "steps forward / T", "plan's peak, MiB", "whole process, MiB", "loss"]
    lines = [f"One step at {shape}, float32:", "", *measure.table(head, rows), ""]
    lines += [
        f"All states together: {result['states_bytes'] / 2**20:,.0f} MiB; the plan without a budget: "
        f"{result['full_bytes'] / 2**20:,.0f} MiB; the files: {result['file_bytes'] / 2**20:,.0f} MiB. "
        f"Planning took {result['rows'][0]['plan_seconds']:.2f} s:"
    ]
    return [*lines, "", "```", *result["rows"][0]["plan"].splitlines(), "```"]


def main(argv=None):
    arguments = measure.parser(__doc__).parse_args(argv)
    shape, memory, window = (QUICK, QUICK_MEMORY, QUICK_WINDOW) if arguments.quick else (SHAPE, MEMORY, WINDOW)
    rows, busy = [], []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), shape)
        files = sum(path.stat().st_size for path in Path(folder).iterdir())
        for options in ({"memory": memory}, {"truncate": window}):
            print(f"{shape} {options} ...", flush=True)
            busy.append(measure.busy())
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                rows.append(pool.submit(step, Path(folder), shape, options, arguments.threads).result())
    with measure.threads(arguments.threads):
        about = measure.environment(arguments.threads, measure.command(__file__), busy)
    full = ba.RNN(shape.I, shape.H, shape.O).plan((shape.T, shape.N, shape.I)).peak
    states = shape.T * shape.N * shape.H * 4
    sizes = {"states_bytes": states, "full_bytes": full, "file_bytes": files}
    result = {"about": about, "shape": list(shape), **sizes, "rows": rows}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save('longest', result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
