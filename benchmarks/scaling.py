"""How time and peak memory of a training step grow with T, N and H.

    python benchmarks/scaling.py [--threads 2] [--dtype float32] [--quick]

One size at a time is changed from T=200, N=32, H=256 (I=64, O=16). Straight lines are expected: time in T and N,
memory in T and N, and in H^2 the time of the products once H is large. A line is fitted by least squares to every
series (in H: to its square) and the largest distance from it printed. Writes results/scaling-DTYPE.json and
images/scaling-DTYPE.png, into runs/benchmarks unless --out says otherwise.
"""

import importlib.util

import measure
import numpy as np
from compare import prepared
from peers import Ours, Problem, Shape

BASE = Shape(T=200, N=32, I=64, H=256, O=16)
SERIES = {"T": (100, 200, 400, 800, 1600), "N": (16, 32, 64, 128, 256), "H": (128, 256, 512, 768, 1024)}
QUICK_BASE = Shape(T=20, N=4, I=3, H=16, O=2)
QUICK = {"T": (10, 20, 40), "N": (4, 8, 16), "H": (16, 32, 64)}


def line(sizes, values):
    """Least-squares line through (size, value): intercept, slope, and the largest distance over the largest value."""
    sizes, values = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    slope, intercept = np.polyfit(sizes, values, 1)
    distance = np.max(np.abs(intercept + slope * sizes - values)) / np.max(np.abs(values))
    return {"intercept": float(intercept), "slope": float(slope), "distance": float(distance)}


def series(axis, sizes, base, dtype, threads, repetitions, seconds):
    """Time and memory along one axis, and the lines through them."""
    shapes = [base._replace(**{axis: size}) for size in sizes]
    busy = measure.busy()
    steps = {size: Ours(Problem(shape, dtype)).run for size, shape in zip(sizes, shapes, strict=True)}
    times = measure.alternate(steps, repetitions, seconds)
    memory = [measure.peak_memory(prepared, (Ours, Problem, shape, dtype), threads)["bytes"] for shape in shapes]
    points = [
        {"size": size, **measure.summary(times[size]), "peak_bytes": b} for size, b in zip(sizes, memory, strict=True)
    ]
    along = [size**2 if axis == "H" else size for size in sizes]
    return {
        "busy": busy,
        "points": points,
        "time": line(along, [point["median_ms"] for point in points]),
        "memory": line(sizes, memory),
    }


def tables(result):
    """One table, a row for every size."""
    head = ["", "size", "ms, median (p10-p90)", "ms / size", "peak MiB", "KiB / size"]
    rows, notes = [], []
    for axis, found in result["series"].items():
        power = 2 if axis == "H" else 1
        for point in found["points"]:
            per = point["median_ms"] / point["size"] ** power
            rows.append([
                axis,
                str(point["size"]),
                "{median_ms:.2f} ({p10_ms:.2f}-{p90_ms:.2f})".format(**point),
                f"{per:.3g}" + (" (of H^2)" if power == 2 else ""),
                f"{point['peak_bytes'] / 2**20:.1f}",
                f"{point['peak_bytes'] / 2**10 / point['size']:.1f}",
            ])  # fmt: skip
        of = "H^2" if power == 2 else axis
        notes.append(
            f"- {axis}: time is within {100 * found['time']['distance']:.1f} % of a line in {of}, "
            f"memory within {100 * found['memory']['distance']:.1f} % of a line in {axis} (of the largest value)."
        )
    base = "T={}, N={}, I={}, H={}, O={}".format(*result["base"])
    points = [(f"{axis}={p['size']}", p) for axis, found in result["series"].items() for p in found["points"]]
    table = measure.table(head, rows)
    return [f"From {base}, one size changed at a time:", "", *table, "", *measure.unsteady(points), *notes]


def plot(result, out):
    """Time above, memory below, a column for each size; points and the fitted lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(result["series"]), figsize=(10, 5.5), layout="constrained")
    for column, (axis, found) in enumerate(result["series"].items()):
        sizes = np.array([point["size"] for point in found["points"]], dtype=float)
        along = sizes**2 if axis == "H" else sizes
        time, memory = axes[0, column], axes[1, column]
        time.plot(along, [point["median_ms"] for point in found["points"]], "o", color="C0")
        time.plot(along, found["time"]["intercept"] + found["time"]["slope"] * along, color="C0", linewidth=1)
        time.set(xlabel="H²" if axis == "H" else axis, ylabel="ms per step" if column == 0 else "")
        memory.plot(sizes, [point["peak_bytes"] / 2**20 for point in found["points"]], "o", color="C1")
        fitted = found["memory"]["intercept"] + found["memory"]["slope"] * sizes
        memory.plot(sizes, fitted / 2**20, color="C1", linewidth=1)
        memory.set(xlabel=axis, ylabel="peak MiB" if column == 0 else "")
    for panel in axes.flat:
        panel.set_ylim(bottom=0)
        panel.set_xlim(left=0)
        panel.spines[["top", "right"]].set_visible(False)
    base = "T={}, N={}, I={}, H={}, O={}".format(*result["base"])
    figure.suptitle(
        f"A training step from {base}, {result['dtype']}, {result['about']['threads']} threads", fontsize=10
    )
    path = measure.save_figure(figure, f"scaling-{result['dtype']}", out)
    plt.close(figure)
    return path


def main(argv=None):
    parser = measure.parser(__doc__)
    measure.add_turns(parser, repetitions=5, seconds=0.2)
    arguments = parser.parse_args(argv)
    base, sizes = (QUICK_BASE, QUICK) if arguments.quick else (BASE, SERIES)
    if arguments.quick:
        arguments.repetitions, arguments.seconds = 2, 0.01
    with measure.threads(arguments.threads):
        found = {}
        for axis, values in sizes.items():
            print(f"{axis} = {', '.join(map(str, values))} ...", flush=True)
            found[axis] = series(
                axis, values, base, arguments.dtype, arguments.threads, arguments.repetitions, arguments.seconds
            )
        busy = [line["busy"] for line in found.values()]
        about = measure.environment(arguments.threads, measure.command(__file__), busy)
    result = {"about": about, "dtype": arguments.dtype, "base": list(base), "series": found}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save(f'scaling-{arguments.dtype}', result, arguments.out)}")
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no chart")
    else:
        print(f"wrote {plot(result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
