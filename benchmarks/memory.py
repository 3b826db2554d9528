"""Time against memory: exact gradients of long sequences within budgets, against torch with and without checkpoints.

    python benchmarks/memory.py [--threads 2] [--dtype float32] [--quick]

A training step (see peers.py) of T = 1000 and T = 10000 that keeps everything, and within budgets, from the smallest
one that takes no more than 5 T steps forward; torch.nn.RNN with autograd; and the same with torch.utils.checkpoint
around every segment of about sqrt(T) steps, readout and loss included. All in one process, taking turns; gradients are
compared first. Prints tables and writes results/memory-DTYPE.json and images/memory-DTYPE.png, into runs/benchmarks
unless --out says otherwise.
"""

import importlib.util
import math
import re
import tracemalloc
from functools import partial

import compare
import measure
import numpy as np
from peers import Ours, Problem, Shape, Torch, installed

from bptt_array import schedules
from bptt_array.schedules.instructions import Backward, Forward

SHAPES = [Shape(T, 8, 16, 64, 8) for T in (1000, 10_000)]
QUICK = [Shape(T, 2, 3, 8, 2) for T in (100, 400)]

#: Steps forward over T, beyond which a budget is not tried; budgets that are run, and those of the planner's curve.
MOST, BUDGETS, OF_THE_CURVE = 5, 7, 60

#: What the planner minimizes, in words.
COST = f"(steps forward + {schedules.plans.RUN} for every run of a segment, forward or backward) / T"

ALL = "bptt_array"
TORCH, CHECKPOINTED = "torch.nn.RNN", "torch, checkpoints"


class Within(Ours):
    """``bptt_array`` within ``memory`` bytes."""

    def __init__(self, problem, memory):
        super().__init__(problem)
        self.memory = memory

    def run(self):
        return self.rnn.loss_and_grad(self.problem.x, self.problem.target, "mse", memory=self.memory)


class Checkpointed(Torch):
    """torch with ``torch.utils.checkpoint`` around every segment of about sqrt(T) steps: h is what stays between."""

    def __init__(self, problem):
        super().__init__(problem)
        from torch.utils.checkpoint import checkpoint

        T, N, _, H, _ = problem.shape
        self.length = math.isqrt(T - 1) + 1
        self.checkpoint = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        self.h0 = self.torch.zeros((1, N, H), dtype=self.x.dtype)

    def segment(self, x, target, h):
        hs, h = self.layer(x, h)
        return self.torch.square(self.linear(hs) - target).sum(), h

    def run(self):
        self.layer.zero_grad()
        self.linear.zero_grad()
        loss, h = 0, self.h0
        for x, target in zip(self.x.split(self.length), self.target.split(self.length), strict=True):
            part, h = self.checkpoint(self.segment, x, target, h)
            loss = loss + part
        (loss * self.scale).backward()


def smallest(plan):
    """The smallest budget that works, which the error of a smaller one tells."""
    try:
        plan(memory=1)
    except ValueError as error:
        return int(re.findall(r"memory=(\d+)", str(error))[-1])
    return 1


def budgets(plan, T, count):
    """``count`` budgets, evenly spaced on a log scale: MOST T steps forward take the first, all is kept in the last."""
    high = plan().peak
    tried = map(math.ceil, np.geomspace(smallest(plan), high, 200))
    low = next(budget for budget in tried if plan(memory=budget).forward_steps <= MOST * T)
    return [math.ceil(budget) for budget in np.geomspace(low, high, count)]


def ready(make, shape, dtype):
    """The step of a peer made anew, its library warm and data in place: ones, as making random ones leaves pages."""
    make(Problem(Shape(2, 2, 2, 2, 2), dtype)).run()
    problem, (T, N, I, _, O) = Problem(shape, dtype), shape  # noqa: E741
    vars(problem).update(x=np.ones((T, N, I), dtype), target=np.ones((T, N, O), dtype))
    return make(problem).run


def traced(make, shape, dtype):
    """The most bytes that a first step of a new network has at once, by tracemalloc; the plan is there already."""
    run = ready(make, shape, dtype)
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def planned(plan, T, memory=None):
    """What the planner says of a budget; ``cost``: what it minimizes, in which every run of a segment is RUN steps."""
    found = plan(memory=memory)
    runs = sum(isinstance(instruction, (Forward, Backward)) for instruction in found.schedule())
    cost = (found.forward_steps + schedules.plans.RUN * runs) / T
    return {"budget": memory, "plan_bytes": found.peak, "forward": found.forward_steps / T, "cost": cost}


def fit(points, full_ms):
    """``a`` and ``b`` of ``time / everything kept = a cost + b`` with the least relative squares."""
    cost = np.array([point["cost"] for point in points])
    ratio = np.array([point["median_ms"] for point in points]) / full_ms
    (a, b), *_ = np.linalg.lstsq(np.stack([cost / ratio, 1 / ratio], axis=1), np.ones_like(ratio), rcond=None)
    return {"a": float(a), "b": float(b), "distance": float(np.max(np.abs((a * cost + b) / ratio - 1)))}


def row(shape, arguments):
    """Everything about one shape."""
    busy, problem = measure.busy(), Problem(shape, arguments.dtype)
    plan = partial(problem.network.plan, (shape.T, shape.N, shape.I))
    tried = budgets(plan, shape.T, 3 if arguments.quick else BUDGETS + 1)[:-1]
    makers = {ALL: Ours} | {f"memory={budget}": partial(Within, memory=budget) for budget in tried}
    said = {name: planned(plan, shape.T, budget) for name, budget in zip(makers, [None, *tried], strict=True)}
    if "torch.nn.RNN" in installed():
        makers |= {TORCH: Torch, CHECKPOINTED: Checkpointed}
    made = {name: make(problem) for name, make in makers.items()}
    differences = compare.check_gradients(made, arguments.dtype)
    steps = {name: peer.run for name, peer in made.items()}
    times = measure.alternate(steps, arguments.repetitions, arguments.seconds, least=1)
    found = {}
    for name, make in makers.items():
        peak = measure.peak_memory(ready, (make, shape, arguments.dtype), arguments.threads)
        found[name] = measure.summary(times[name]) | {"peak_bytes": peak["bytes"], "peak_since": peak["since"]}
        if name in said:
            found[name] |= said[name] | {"traced_bytes": traced(make, shape, arguments.dtype)}
        if name in differences:
            found[name]["gradient_difference"] = differences[name]
    curve = [planned(plan, shape.T, budget) for budget in budgets(plan, shape.T, OF_THE_CURVE)]
    fitted = fit([found[name] for name in said], found[ALL]["median_ms"])
    return {"shape": list(shape), "busy": busy, "peers": found, "curve": curve, "fit": fitted}


def label(name, found):
    """What a row of a table is called."""
    if found.get("budget"):
        return f"memory={found['budget'] / 2**20:.2f} MiB"
    return f"{name}, everything kept" if name in (ALL, TORCH) else name


def tables(result):
    """A table for every shape: what was planned, what was measured."""
    head = [
        "",
        "steps forward / T",
        "ms, median (p10-p90)",
        "time / all kept",
        "plan's peak, MiB",
        "traced peak, MiB",
        "resident peak, MiB",
    ]
    lines, unsteady = [], []
    for entry in result["rows"]:
        peers = entry["peers"]
        shape, by_budget = Shape(*entry["shape"]), sorted(peers.items(), key=lambda item: item[1].get("budget") or 0)
        # Budgets first, from the smallest; then what keeps everything, then torch.
        by_budget = [i for i in by_budget if i[1].get("budget")] + [i for i in by_budget if not i[1].get("budget")]
        rows = []
        for name, found in by_budget:
            mebibytes = [found.get(key) for key in ("plan_bytes", "traced_bytes", "peak_bytes")]
            rows.append([
                label(name, found),
                f"{found['forward']:.2f}" if "forward" in found else "",
                "{median_ms:.2f} ({p10_ms:.2f}-{p90_ms:.2f})".format(**found),
                f"{found['median_ms'] / peers[ALL]['median_ms']:.2f}",
                *("" if size is None else f"{size / 2**20:.2f}" for size in mebibytes),
            ])  # fmt: skip
            unsteady.append((f"{label(name, found)} at T={shape.T}", found))
        lines += [f"{shape}:", "", *measure.table(head, rows), ""]
        fitted = "Time / all kept is within {:.0f} % of {a:.2f} c {b:+.2f}, where c is {} (a, b: least squares)."
        lines += [fitted.format(100 * entry["fit"]["distance"], COST, **entry["fit"]), ""]
    since = {found["peak_since"] for entry in result["rows"] for found in entry["peers"].values()}
    if "the process" in since:
        lines += ["Resident peaks are since the process began: this system cannot tell those of a step.", ""]
    return [*lines, *measure.unsteady(unsteady), *compare.agreement(result)]


def plot(result, name, out):
    """Time over that of keeping everything against resident memory: a panel for every T."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(result["rows"]), figsize=(10, 4.6), layout="constrained", squeeze=False)
    for panel, entry in zip(panels.flat, result["rows"], strict=True):
        peers, fitted = entry["peers"], entry["fit"]
        curve = np.array([[p["plan_bytes"] / 2**20, fitted["a"] * p["cost"] + fitted["b"]] for p in entry["curve"]])
        told = "planned: a (cost that the planner minimizes) + b over its peak; a, b fitted"
        panel.plot(*curve.T, color="C0", linewidth=1, drawstyle="steps-post", label=told)
        groups = {
            "bptt_array within memory=...": [found for found in peers.values() if found.get("budget")],
            "bptt_array, everything kept": [peers[ALL]],
            "torch.nn.RNN": [peers[TORCH]] if TORCH in peers else [],
            "torch, checkpoints every sqrt(T)": [peers[CHECKPOINTED]] if CHECKPOINTED in peers else [],
        }
        for (told, group), marker, color in zip(groups.items(), "oDs^", ("C0", "C0", "C1", "C3"), strict=True):
            at = [max(found["peak_bytes"], 4096) / 2**20 for found in group]  # may fit in pages that are there: 0
            middle, low, high = (
                np.array([found[key] for found in group]) / peers[ALL]["median_ms"]
                for key in ("median_ms", "p10_ms", "p90_ms")
            )
            if group:
                panel.vlines(at, low, high, color=color, linewidth=1)
                panel.plot(at, middle, marker, color=color, label=told, markersize=6)
        panel.set_title(f"T = {entry['shape'][0]:,}", fontsize=10)
        panel.set(xscale="log", yscale="log", xlabel="peak memory of a training step, MiB")
        most = 1.15 * max(found["p90_ms"] for found in peers.values()) / peers[ALL]["median_ms"]
        panel.set_ylim(0.8, max(most, 4))
        panel.set_yticks([k for k in (1, 2, 3, 5, 10, 20, 50, 100) if k < max(most, 4)])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3, which="major")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("time / that of bptt_array, everything kept")
    about = result["about"]
    sizes = "N={1}, I={2}, H={3}, O={4}".format(*result["rows"][0]["shape"])
    figure.suptitle(f"{sizes}, {result['dtype']}, {about['threads']} threads, {about['processor']}", fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    path = measure.save_figure(figure, name, out)
    plt.close(figure)
    return path


def main(argv=None):
    parser = measure.parser(__doc__)
    measure.add_turns(parser, repetitions=5, seconds=0.2)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.repetitions, arguments.seconds = 2, 0.01
    rows = []
    with measure.threads(arguments.threads):
        for shape in QUICK if arguments.quick else SHAPES:
            print(f"{shape} ...", flush=True)
            rows.append(row(shape, arguments))
        about = measure.environment(arguments.threads, measure.command(__file__), [entry["busy"] for entry in rows])
    missing = [] if "torch.nn.RNN" in installed() else [TORCH, CHECKPOINTED]
    result = {"about": about, "dtype": arguments.dtype, "missing": missing, "rows": rows}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    name = f"memory-{arguments.dtype}"
    print(f"wrote {measure.save(name, result, arguments.out)}")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no chart")
    else:
        print(f"wrote {plot(result, name, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
