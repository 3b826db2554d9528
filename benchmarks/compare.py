"""Time and peak memory of a training step: this library, its peers, and its matrix products alone.

    python benchmarks/compare.py [--threads 2] [--dtype float32] [--quick]

Forward, readout, loss and every gradient (see peers.py), all in one process, taking turns. Before anything is
timed, the gradients of every peer are compared with ours. Peers that are not installed are left out and named.
Prints a table and writes results/compare-DTYPE.json and images/compare-DTYPE.png.
"""

import argparse
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
    """Every peer's gradients against ours; largest relative difference by name. Stops the run where one is wrong."""
    expected = {name: value.copy() for name, value in made["bptt_array"].gradients().items()}
    differences = {}
    for name, peer in made.items():
        if name in ("bptt_array", "products alone"):
            continue
        differences[name] = peers.gradient_difference(peer.gradients(), expected)
        if not differences[name] <= LIMIT[dtype]:
            raise SystemExit(f"gradients of {name} differ by {differences[name]:.1e}: nothing was timed")
    return differences


def prepared(name, shape, dtype):
    """A step ready to run, its library warm: after a small step of the same kind."""
    peers.make(name, Problem(Shape(2, 2, 2, 2, 2), dtype)).run()
    return peers.make(name, Problem(shape, dtype)).run


def row(shape, dtype, names, threads, repetitions, seconds, memory):
    """One row of the table."""
    problem = Problem(shape, dtype)
    made = {name: peers.make(name, problem) for name in names}
    differences = check_gradients(made, dtype)
    times = measure.alternate({name: peer.run for name, peer in made.items()}, repetitions, seconds)
    result = {name: measure.summary(times[name]) for name in names}
    for name in names:
        if name in differences:
            result[name]["gradient_difference"] = differences[name]
        if memory and name != "products alone":
            result[name]["peak_bytes"] = measure.peak_memory(prepared, (name, shape, dtype), threads)
    return {"shape": list(shape), "peers": result}


def tables(result):
    """The result as Markdown: ratios of time, times, memory."""
    names = result["names"]
    head = ["(T, N, I, H, O)"]
    ratios, times, memory = [], [], []
    for entry in result["rows"]:
        by_name, label = entry["peers"], str(Shape(*entry["shape"]))
        base = by_name["products alone"]["median_ms"]
        ratios.append([label, *(f"{by_name[name]['median_ms'] / base:.2f}" for name in names)])
        times.append(
            [label, *("{median_ms:.2f} ({p10_ms:.2f}-{p90_ms:.2f})".format(**by_name[name]) for name in names)]
        )
        bytes_ = [by_name[name].get("peak_bytes") for name in names]
        if any(bytes_):
            memory.append([label, *("" if b is None else f"{b / 2**20:.1f}" for b in bytes_)])
    ours = [
        [
            line[0],
            *(
                f"{entry['peers']['bptt_array']['median_ms'] / entry['peers'][name]['median_ms']:.2f}"
                for name in names[1:]
            ),
        ]
        for line, entry in zip(ratios, result["rows"], strict=True)
    ]
    lines = ["Time / products alone (medians):", "", *measure.table(head + names, ratios), ""]
    lines += ["Our time / theirs:", "", *measure.table(head + names[1:], ours), ""]
    lines += ["Milliseconds, median (10th to 90th percentile):", "", *measure.table(head + names, times), ""]
    if memory:
        lines += ["Peak memory of a step, MiB:", "", *measure.table(head + names, memory), ""]
    worst = max(p.get("gradient_difference", 0.0) for entry in result["rows"] for p in entry["peers"].values())
    lines += [f"Gradients of all peers agree with ours within {worst:.0e} of the largest entry."]
    return lines


def plot(result, path):
    """Bars of time over products alone, one group a shape, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names, rows = [name for name in result["names"] if name != "products alone"], result["rows"]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.95 * len(rows)), layout="constrained")
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        values = [entry["peers"][name]["median_ms"] / entry["peers"]["products alone"]["median_ms"] for entry in rows]
        bars = axes.barh([g + k * width for g in range(len(rows))], values, 0.9 * width, label=name)
        axes.bar_label(bars, fmt=lambda v: f"{v:.2f}" if v < 10 else f"{v:.0f}", padding=2, fontsize=7)
    axes.set_yticks([g + width * (len(names) - 1) / 2 for g in range(len(rows))])
    axes.set_yticklabels([str(Shape(*entry["shape"])) for entry in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time of a training step / its matrix products alone (shorter is faster)")
    about = result["about"]
    axes.set_title(f"(T, N, I, H, O), {result['dtype']}, {about['threads']} threads, {about['processor']}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--shape", type=int, nargs=5, action="append", metavar=("T", "N", "I", "H", "O"))
    parser.add_argument("--peers", nargs="+", default=peers.installed(), metavar="NAME", choices=list(peers.PEERS))
    parser.add_argument("--repetitions", type=int, default=7, help="turns of every peer (default: 7)")
    parser.add_argument("--seconds", type=float, default=0.25, help="of timed calls per turn (default: 0.25)")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--quick", action="store_true", help="two small shapes, few turns, for a first look")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for results/ and images/")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.repetitions, arguments.seconds = 2, 0.02
    arguments.shapes = [Shape(*s) for s in arguments.shape] if arguments.shape else QUICK if arguments.quick else SHAPES
    return arguments


def main(argv=None):
    arguments = parse(argv)
    names = [name for name in peers.PEERS if name in {"bptt_array", "products alone", *arguments.peers}]
    missing = [name for name in peers.PEERS if name not in peers.installed()]
    with measure.threads(arguments.threads):
        rows = []
        for shape in arguments.shapes:
            print(f"{shape} ...", flush=True)
            rows.append(
                row(
                    shape,
                    arguments.dtype,
                    names,
                    arguments.threads,
                    arguments.repetitions,
                    arguments.seconds,
                    arguments.memory,
                )
            )
        about = measure.environment(arguments.threads, measure.command(__file__))
    result = {"about": about, "dtype": arguments.dtype, "names": names, "missing": missing, "rows": rows}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    if missing:
        print(f"Not installed, not compared: {', '.join(missing)}.")
    name = f"compare-{arguments.dtype}"
    print(f"wrote {measure.save(name, result, arguments.out / 'results')}")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no chart")
    else:
        plot(result, arguments.out / "images" / f"{name}.png")
        print(f"wrote {arguments.out / 'images' / f'{name}.png'}")
    return result


if __name__ == "__main__":
    main()
