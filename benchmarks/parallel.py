"""Backward in parallel over time: a training step, and its backward loop alone, in chunks against step by step.

    python benchmarks/parallel.py [--threads 2] [--dtype float32] [--quick]

T = 1000, 10000 and 30000 steps of one sequence (I = 4, O = 1) and H = 8 to 64 tanh units. The whole step with
``backward="sequential"``, ``"parallel"`` and ``"auto"``, and torch.nn.RNN's; and of one segment, as long as those of
the step, the derivatives f' and the loop backward, or the chunks in its place. Gradients are compared first. Prints
tables and writes results/parallel-DTYPE.json, into runs/benchmarks unless --out says otherwise.
"""

from functools import partial

import compare
import measure
import numpy as np
import peers
from peers import Ours, Problem, Shape, Torch, installed

from bptt_array.bptt.chunk_times import choose
from bptt_array.equations.cell import Tape
from bptt_array.equations.parallel import backward_parallel_
from bptt_array.equations.recurrence import backward_
from bptt_array.equations.state_product import StateProduct
from bptt_array.schedules.chunks import best_chunks
from bptt_array.schedules.instructions import Segments

SHAPES = [Shape(T, 1, 4, H, 1) for T in (1000, 10_000, 30_000) for H in (8, 16, 32, 64)]
QUICK = [Shape(200, 1, 4, 8, 1), Shape(400, 1, 4, 16, 1)]
HOW = ("sequential", "parallel", "auto")
TORCH = "torch.nn.RNN"


class Backward(Ours):
    """``bptt_array`` with ``backward=how``."""

    def __init__(self, problem, how):
        super().__init__(problem)
        self.how = how

    def run(self):
        return self.rnn.loss_and_grad(self.problem.x, self.problem.target, "mse", backward=self.how)


class Segment:
    """The backward pass of one segment of S steps by itself, on states of the problem's network."""

    def __init__(self, problem, S):
        N, H = problem.shape.N, problem.shape.H
        rnn, rng, dtype = problem.network, np.random.default_rng(3), problem.dtype
        self.backend, self.cell, self.W_hh = rnn.backend, rnn.architecture.cell, problem.params["l0.W_hh"]
        hs = np.tanh(rng.standard_normal((S + 1, N, H))).astype(dtype)
        self.tape, self.direct = Tape((hs,), None), rng.standard_normal(hs.shape).astype(dtype)
        self.direct[0] = 0
        self.dstates, self.dz = np.empty_like(hs), np.empty_like(hs[1:])

    def loop(self):
        np.copyto(self.dstates, self.direct)
        product = StateProduct(self.backend, self.W_hh, self.dz.shape[1:-1], self.dz.shape[0], None, backward=True)
        step = self.cell.backward_(self.backend, {"W_hh": self.W_hh}, product)
        backward_(self.backend, self.cell, step, self.tape, (self.dstates,), self.dz, None)

    def chunks(self, count):
        np.copyto(self.dstates, self.direct)
        self.cell.slopes_(self.backend, None, self.dz, self.tape)
        backward_parallel_(self.backend, self.W_hh, self.dstates, self.dz, count)

    def gradients(self, run):
        run()
        return {"dh": self.dstates.copy(), "dz": self.dz.copy()}


def alone(problem, S, arguments):
    """The segment by loop and in chunks: times, chunks, what "auto" takes, the difference of the gradients."""
    segment, count = Segment(problem, S), best_chunks(S)
    in_chunks = partial(segment.chunks, count)
    difference = peers.gradient_difference(segment.gradients(in_chunks), segment.gradients(segment.loop))
    if not difference <= compare.LIMIT[problem.dtype]:
        raise SystemExit(f"gradients of a segment in chunks differ by {difference:.1e}: nothing was timed")
    auto = choose(segment.backend, S, segment.dz.shape[1:], segment.dz.dtype)
    steps = {"loop": segment.loop, "chunks": in_chunks}
    times = measure.alternate(steps, arguments.repetitions, arguments.seconds, least=2)
    found = {name: measure.summary(times[name]) for name in steps}
    return found | {"steps": S, "count": count, "auto": auto, "gradient_difference": difference}


def row(problem, arguments):
    """Everything about one shape."""
    busy, shape = measure.busy(), problem.shape
    makers = {how: partial(Backward, how=how) for how in HOW}
    if TORCH in installed():
        makers[TORCH] = Torch
    made = {name: make(problem) for name, make in makers.items()}
    differences = compare.check_gradients(made, problem.dtype)
    steps = {name: peer.run for name, peer in made.items()}
    times = measure.alternate(steps, arguments.repetitions, arguments.seconds, least=2)
    found = {name: measure.summary(times[name]) for name in steps}
    for name, difference in differences.items():
        found[name]["gradient_difference"] = difference
    parts = Segments(0, shape.T, problem.network.plan((shape.T, shape.N, shape.I)).longest)
    segment = alone(problem, parts[-1][1] - parts[-1][0], arguments)
    return {"shape": list(shape), "busy": busy, "peers": found, "segments": len(parts), "segment": segment}


def chunks(count):
    return "loop" if count == 1 else str(count)


def tables(result):
    """The whole step, then the loop alone."""
    whole, alone_, unsteady, told = [], [], [], "{median_ms:.2f} ({p10_ms:.2f}-{p90_ms:.2f})"
    names = [name for name in (*HOW, TORCH) if name in result["rows"][0]["peers"]]
    for entry in result["rows"]:
        found, segment, label = entry["peers"], entry["segment"], str(Shape(*entry["shape"]))
        base = found["sequential"]["median_ms"]
        whole.append([
            label,
            *(f"{found[name]['median_ms'] / base:.2f}" for name in names[1:]),
            *(told.format(**found[name]) for name in names),
        ])  # fmt: skip
        alone_.append([
            label,
            f"{entry['segments']} of {segment['steps']}",
            chunks(segment["count"]),
            f"{segment['chunks']['median_ms'] / segment['loop']['median_ms']:.2f}",
            *(told.format(**segment[name]) for name in ("loop", "chunks")),
            chunks(segment["auto"]),
        ])  # fmt: skip
        unsteady += [(f"{name} at {label}", found[name]) for name in names]
        unsteady += [(f"{name} alone at {label}", segment[name]) for name in ("loop", "chunks")]
    shape = "(T, N, I, H, O)"
    head = [shape, *(f"{name} / sequential" for name in names[1:]), *(f"{name}, ms" for name in names)]
    lines = ["A training step (medians; 10th to 90th percentile):", "", *measure.table(head, whole), ""]
    head = [shape, "segments of steps", "chunks", "chunks / loop", "loop, ms", "chunks, ms", '"auto" takes']
    lines += ["The backward pass of one segment alone:", "", *measure.table(head, alone_), ""]
    worst = max(entry["segment"]["gradient_difference"] for entry in result["rows"])
    lines += [*measure.unsteady(unsteady), *compare.agreement(result)]
    return [*lines, f"Gradients of a segment in chunks agree with the loop's within {measure.up(worst)}."]


def main(argv=None):
    parser = measure.parser(__doc__)
    measure.add_turns(parser, repetitions=3, seconds=0.1)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.repetitions, arguments.seconds = 2, 0.01
    rows = []
    with measure.threads(arguments.threads):
        for shape in QUICK if arguments.quick else SHAPES:
            print(f"{shape} ...", flush=True)
            rows.append(row(Problem(shape, arguments.dtype), arguments))
        about = measure.environment(arguments.threads, measure.command(__file__), [entry["busy"] for entry in rows])
    missing = [] if TORCH in installed() else [TORCH]
    result = {"about": about, "dtype": arguments.dtype, "missing": missing, "rows": rows}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save(f'parallel-{arguments.dtype}', result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
