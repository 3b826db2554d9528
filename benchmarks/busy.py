"""A training step where another program computes on each core: this library with all threads and with one, and torch.

    python benchmarks/busy.py [--threads 2] [--quick]

Forward, readout, loss and every gradient (see peers.py), of tanh, LSTM and GRU, beside nothing and beside a busy loop
on each core, in one process, taking turns. "One thread" is the same call while NumPy's BLAS may have one. Threads that
wait for each other in every step wait for their turn on a core each time. Prints tables and writes results/busy.json,
into runs/benchmarks unless --out says otherwise.
"""

import measure
import peers
from peers import PEERS, PEERS_OF_CELLS, Problem, Shape
from threadpoolctl import ThreadpoolController

PROBLEMS = [
    Problem(Shape(50, 32, 32, 64, 32)),
    Problem(Shape(100, 64, 128, 256, 64)),
    Problem(Shape(200, 64, 256, 512, 64)),
    Problem(Shape(50, 32, 32, 64, 32), cell="lstm"),
    Problem(Shape(100, 64, 128, 256, 64), cell="lstm"),
    Problem(Shape(100, 64, 128, 256, 64), cell="gru"),
]
QUICK = [Problem(Shape(10, 4, 5, 16, 3))]
#: Programs beside it, for each core.
LOADS = {"nothing": 0, "a busy loop on each core": 1}


def steps_of(problem):
    """What is timed, by name."""
    among = PEERS if problem.cell == "tanh" else PEERS_OF_CELLS
    torch = next(name for name in among if name.startswith("torch"))
    ours, blas = peers.make("bptt_array", problem, among).run, ThreadpoolController().select(user_api="blas")

    def with_one_thread():
        with blas.limit(limits=1):
            ours()

    steps = {"all threads": ours, "one thread": with_one_thread}
    if torch in peers.installed(among):
        steps["torch"] = peers.make(torch, problem, among).run
    return steps


def row(problem, arguments):
    """Times of all by load."""
    steps, found, quiet = steps_of(problem), {}, measure.busy()
    for load, loops in LOADS.items():
        with measure.busy_loops(loops * arguments.threads):
            times = measure.alternate(steps, arguments.repetitions, arguments.seconds)
        found[load] = {name: measure.summary(of) for name, of in times.items()}
    return {"cell": problem.cell, "shape": list(problem.shape), "busy": quiet, "beside": found}


def ratio(entry, load, one, other):
    """The median of one over that of another; None where one is missing."""
    of = entry["beside"][load]
    return of[one]["median_ms"] / of[other]["median_ms"] if {one, other} <= set(of) else None


def tables(result):
    """The result as Markdown."""
    lines = []
    for load in LOADS:
        rows = []
        for entry in result["rows"]:
            of = entry["beside"][load]
            told = "{median_ms:.2f} ({p10_ms:.2f}-{p90_ms:.2f})"
            ratios = [ratio(entry, load, "all threads", name) for name in ("one thread", "torch")]
            rows.append(
                [
                    f"{entry['cell']} {Shape(*entry['shape'])}",
                    *(told.format(**of[name]) if name in of else "" for name in ("all threads", "one thread", "torch")),
                    *("" if value is None else f"{value:.2f}" for value in ratios),
                ]
            )
        head = ["(T, N, I, H, O)", "all threads, ms", "one thread, ms", "torch, ms", "all / one", "all / torch"]
        lines += [f"Beside {load}, median (10th to 90th percentile):", "", *measure.table(head, rows), ""]
    return lines[:-1]


def main(argv=None):
    made = measure.parser(__doc__)
    measure.add_turns(made, repetitions=7, seconds=0.4)
    arguments = made.parse_args(argv)
    if arguments.quick:
        arguments.repetitions, arguments.seconds = 2, 0.02
    rows = []
    with measure.threads(arguments.threads):
        for problem in QUICK if arguments.quick else PROBLEMS:
            print(f"{problem.cell} {problem.shape} ...", flush=True)
            rows.append(row(Problem(problem.shape, arguments.dtype, problem.cell), arguments))
        about = measure.environment(arguments.threads, measure.command(__file__), [entry["busy"] for entry in rows])
    result = {"about": about, "dtype": arguments.dtype, "rows": rows}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save('busy', result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
