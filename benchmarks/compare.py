"""Time and peak memory of a training step: this library, its peers, and its matrix products alone.

    python benchmarks/compare.py [--threads 2] [--dtype float32] [--quick]

Forward, readout, loss and every gradient (see peers.py), all in one process, taking turns. Before anything is
timed, the gradients of every peer are compared with ours. Peers that are not installed are left out and named.
Prints tables and writes results/compare-DTYPE.json and images/compare-DTYPE.png, into runs/benchmarks unless
--out says otherwise.
"""

import importlib.util
from pathlib import Path

import measure
import peers
from peers import Problem, Shape

SHAPES = [
    Shape(25, 1, 65, 100, 65),
    Shape(50, 32, 32, 64, 32),
    Shape(100, 64, 128, 256, 64),
    Shape(200, 64, 256, 512, 64),
    Shape(1000, 32, 64, 256, 16),
    Shape(100, 128, 512, 1024, 64),
]
QUICK = [Shape(25, 1, 65, 100, 65), Shape(50, 32, 32, 64, 32)]
LIMIT = {"float32": 1e-3, "float64": 1e-9}


def check_gradients(made, dtype):
    """Every peer's gradients against ours, the first; largest relative difference by name. Stops where one is wrong."""
    ours, *others = made
    expected = {name: value.copy() for name, value in made[ours].gradients().items()}
    differences = {}
    for name in others:
        if name == "products alone":
            continue
        differences[name] = peers.gradient_difference(made[name].gradients(), expected)
        if not differences[name] <= LIMIT[dtype]:
            raise SystemExit(f"gradients of {name} differ by {differences[name]:.1e}: nothing was timed")
    return differences


def prepared(peer, problem, shape, *options):
    """A step of a peer ready to run, its library warm: after a small step of the same kind of ``problem``."""
    peer(problem(Shape(2, 2, 2, 2, 2), *options)).run()
    return peer(problem(shape, *options)).run


def row(problem, names, arguments, among):
    """One row of the table."""
    busy = measure.busy()
    made = {name: peers.make(name, problem, among) for name in names}
    differences = check_gradients(made, problem.dtype)
    times = measure.alternate({name: peer.run for name, peer in made.items()}, arguments.repetitions, arguments.seconds)
    result = {name: measure.summary(times[name]) for name in names}
    for name in names:
        if name in differences:
            result[name]["gradient_difference"] = differences[name]
        if arguments.memory and name != "products alone":
            options = among[name][0], type(problem), problem.shape, problem.dtype, problem.cell
            found = measure.peak_memory(prepared, options, arguments.threads)
            result[name] |= {"peak_bytes": found["bytes"], "peak_since": found["since"]}
    about = {"cell": problem.cell, "members": problem.members, "shape": list(problem.shape)}
    return {**about, "busy": busy, "peers": result}


def label(entry):
    """What a row is called: its shape, after the cell where that is not the same in every row."""
    cell, shape = entry.get("cell", "tanh"), str(Shape(*entry["shape"]))
    return shape if cell == "tanh" and not entry.get("members") else f"{cell} {shape}"


def ours_over_theirs(rows, names):
    """A line of cells for every row: our median, which is the first one's, over that of each other."""
    ours, *others = names
    return [
        [label(entry), *(f"{found[ours]['median_ms'] / found[name]['median_ms']:.2f}" for name in others)]
        for entry in rows
        for found in [entry["peers"]]
    ]


def tables(result):
    """The result as Markdown: ratios of time, times, memory."""
    names, rows, head = result["names"], result["rows"], ["(T, N, I, H, O)"]
    ratios = []
    for entry in rows:
        by_name = entry["peers"]
        base = by_name["products alone"]["median_ms"]
        ratios.append([label(entry), *(f"{by_name[name]['median_ms'] / base:.2f}" for name in names)])
    lines = ["Time / products alone (medians):", "", *measure.table(head + names, ratios), ""]
    lines += ["Our time / theirs:", "", *measure.table(head + names[1:], ours_over_theirs(rows, names)), ""]
    return [*lines, *times_and_spread(rows, names), *peaks(rows, names), *agreement(result)]


def peaks(rows, names):
    """The table of memory, where it was measured."""
    memory = []
    for entry in rows:
        bytes_ = [entry["peers"][name].get("peak_bytes") for name in names]
        if any(b is not None for b in bytes_):  # 0 is a figure too
            memory.append([label(entry), *("" if b is None else f"{b / 2**20:.1f}" for b in bytes_)])
    if not memory:
        return []
    since = {peer.get("peak_since", "the step") for entry in rows for peer in entry["peers"].values()}
    note = " (peaks since the process began: this system cannot tell those of a step)" * ("the process" in since)
    return [f"Peak memory of a step, MiB{note}:", "", *measure.table(["(T, N, I, H, O)", *names], memory), ""]


def times_and_spread(rows, names):
    """The table of times, and what was unsteady."""
    told = "{median_ms:.2f} ({p10_ms:.2f}-{p90_ms:.2f})"
    times = [[label(entry), *(told.format(**entry["peers"][name]) for name in names)] for entry in rows]
    table = measure.table(["(T, N, I, H, O)", *names], times)
    found = ((f"{name} at {label(entry)}", entry["peers"][name]) for entry in rows for name in names)
    return ["Milliseconds, median (10th to 90th percentile):", "", *table, "", *measure.unsteady(found)]


def agreement(result):
    """How far gradients were apart, and who was not there."""
    found = [peer.get("gradient_difference") for entry in result["rows"] for peer in entry["peers"].values()]
    lines, compared = [], [difference for difference in found if difference is not None]
    if compared:
        worst = measure.up(max(compared))
        lines += [f"Gradients of all peers agree with ours within {worst} of the largest entry."]
    if result["missing"]:
        lines += [f"Not installed, not compared: {', '.join(result['missing'])}."]
    return lines


def plot(result, name, out):
    """Time over products alone, and peak memory where there is any: a row for every shape, a mark for every peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names, rows = [name for name in result["names"] if name != "products alone"], result["rows"]
    memory = any("peak_bytes" in entry["peers"]["bptt_array"] for entry in rows)
    size = (11 if memory else 7.5, 1.6 + 0.55 * len(rows))
    figure, panels = plt.subplots(1, 1 + memory, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for k, peer in enumerate(names):
        marks = {"marker": "osD^vP"[k % 6], "color": f"C{k}", "zorder": 3 if k else 4, "linestyle": ""}
        for g, entry in enumerate(rows):
            base, times = entry["peers"]["products alone"]["median_ms"], entry["peers"][peer]
            low, middle, high = (times[key] / base for key in ("p10_ms", "median_ms", "p90_ms"))
            panels[0, 0].plot([low, high], [g, g], color=f"C{k}", linewidth=1)
            panels[0, 0].plot(middle, g, label=peer if g == 0 else None, **marks)
            if memory:
                panels[0, 1].plot(times["peak_bytes"] / 2**20, g, **marks)
    time = panels[0, 0]
    time.axvline(1, color="black", linewidth=0.8)
    time.set_yticks(range(len(rows)), list(map(label, rows)))
    time.set_ylim(len(rows) - 0.5, -0.5)
    time.set_xlabel("time of a training step / its matrix products alone\n(median, line from 10th to 90th percentile)")
    time.set_xscale("log")
    if memory:
        panels[0, 1].set_xlabel("peak memory of a training step, MiB")
        panels[0, 1].set_xscale("symlog", linthresh=0.1)  # a small step may fit in pages that the process has: 0
        most = max(entry["peers"][peer]["peak_bytes"] for entry in rows for peer in names) / 2**20
        panels[0, 1].set_xlim(0, 2 * max(most, 0.5))
    for panel in panels.flat:
        panel.xaxis.set_major_formatter("{x:g}")
        if panel.get_xlim()[1] < 10:  # less than a decade: its only labels are between
            panel.xaxis.set_minor_formatter("{x:g}")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    about = result["about"]
    title = f"(T, N, I, H, O), {result['dtype']}, {about['threads']} threads, {about['processor']}"
    figure.suptitle(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=len(names), fontsize=8)
    path = measure.save_figure(figure, name, out)
    plt.close(figure)
    return path


def parse(about, argv, among, shapes, quick, *, memory=True):
    """The arguments of a script that compares a step of the peers ``among``; ``shapes``: or those asked for."""
    made = measure.parser(about)
    measure.add_turns(made, repetitions=7, seconds=0.25)
    sizes, names = ("T", "N", "I", "H", "O"), list(among)
    made.add_argument("--shape", type=measure.positive, nargs=5, action="append", metavar=sizes, help="(repeatable)")
    made.add_argument("--peers", nargs="+", default=names, metavar="NAME", choices=names, help="whom to compare")
    made.set_defaults(memory=memory)
    if memory:
        made.add_argument("--no-memory", dest="memory", action="store_false", help="time only")
    arguments = made.parse_args(argv)
    if arguments.quick:
        arguments.repetitions, arguments.seconds = 2, 0.02
    arguments.shapes = [Shape(*s) for s in arguments.shape] if arguments.shape else quick if arguments.quick else shapes
    return arguments


def run(script, arguments, problems, among, tables):
    """Compare the peers ``among`` on every problem, print the tables and write the result; returns it and its name."""
    asked = [name for name in among if name in {"bptt_array", "products alone", *arguments.peers}]
    names = [name for name in asked if name in peers.installed(among)]
    rows = []
    with measure.threads(arguments.threads):
        for problem in problems:
            print(f"{problem.cell} {problem.shape} ...", flush=True)
            rows.append(row(problem, names, arguments, among))
        busy = [entry["busy"] for entry in rows]
        about = measure.environment(arguments.threads, measure.command(script), busy)
    missing = [name for name in asked if name not in names]
    result = {"about": about, "dtype": arguments.dtype, "names": names, "missing": missing, "rows": rows}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    name = f"{Path(script).stem}-{arguments.dtype}"
    print(f"wrote {measure.save(name, result, arguments.out)}")
    return result, name


def draw(result, name, out):
    """The chart, where matplotlib is."""
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no chart")
    else:
        print(f"wrote {plot(result, name, out)}")


def main(argv=None):
    arguments = parse(__doc__, argv, peers.PEERS, SHAPES, QUICK)
    problems = [Problem(shape, arguments.dtype) for shape in arguments.shapes]
    result, name = run(__file__, arguments, problems, peers.PEERS, tables)
    draw(result, name, arguments.out)
    return result


if __name__ == "__main__":
    measure.run(main)
