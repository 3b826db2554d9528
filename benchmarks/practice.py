"""Three data sets, from the data to a trained network: with bptt_array, and with torch by hand.

    python benchmarks/practice.py [--threads 2] [--seeds 5] [--tasks sunspots vowels words] [--quick]

- Sunspots: from 33 years the numbers of the next 11, which is about a cycle, learnt on 1700 to 1908 and asked for from
  1909 on; the part of the variance that is explained (statsmodels).
- Japanese vowels: which of nine speakers said it, of 7 to 29 frames of 12 numbers each; the share that is right of the
  370 utterances of the test set (aeon).
- Words: the next word in the source of Python's standard library, of 20,000; an embedding and an LSTM of 256, one pass
  over 100,000 words; the share that is foretold of 20,000 others.

The programs are those of practice_ours.py and practice_torch.py: padding, scaling, batches, windows, validation, best
weights, early stopping and schedules, by the library or by hand. Both begin with the same weights (drawn by torch, for
each of the seeds) and see the same batches, which are those of ba.batches. Lines are those of a program that are not
empty, comments or docstrings. Every program runs in a fresh process with its library imported and its data in place;
its time is that of all seeds, which ours trains side by side in sunspots and vowels (members=), and its memory what it
adds to the peak of the process. Needs statsmodels, aeon and torch. Prints a table and writes results/practice.json and
images/practice.png, into runs/benchmarks unless --out says otherwise.
"""

import importlib.util
import inspect
import io
import multiprocessing
import time
import tokenize
from concurrent.futures import ProcessPoolExecutor

import measure
import numpy as np
import practice_data

import bptt_array as ba

PEERS = {"bptt_array": "practice_ours", "torch": "practice_torch"}
#: Of sunspots: how many numbers are learnt from, how many years a forecast sees, and how many it foretells.
END, LENGTH, HORIZON = 209, 33, 11
VOCABULARY, WORDS, TESTED = 20_000, 100_000, 20_000
#: How far the accuracies of both may be apart, in points.
POINTS = 0.5


def explained(forecasts, series):
    """The part of the variance of what came that forecasts (seeds, W, horizon) explain, in percent, of every seed."""
    came = came_after(series)
    return 100 * (1 - np.mean((forecasts - came) ** 2, axis=(1, 2)) / came.var())


def came_after(series):
    """(W, horizon): what followed the years that the forecasts of the test see."""
    return np.lib.stride_tricks.sliding_window_view(series[END:], HORIZON)


def networks(task, seeds):
    """The first weights of every seed, as torch draws them, on the host."""
    import torch

    practice_torch = importlib.import_module("practice_torch")
    make = {
        "sunspots": lambda: practice_torch.Network(1, 32, HORIZON),
        "vowels": lambda: practice_torch.Network(12, 64, 9),
        "words": lambda: practice_torch.Words(VOCABULARY),
    }[task]
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        found.append({name: value.numpy() for name, value in make().state_dict().items()})
    return found


def arguments_of(task, quick):
    """What the program of a task is given beside the weights."""
    if task == "sunspots":
        return practice_data.sunspots()[1], END, LENGTH, HORIZON
    if task == "vowels":
        (sequences, labels), (tested, _) = practice_data.japanese_vowels()
        return sequences, labels, tested
    words = practice_data.words_of_the_standard_library(VOCABULARY, WORDS + TESTED)
    count = 5000 if quick else WORDS
    return words[:count], words[-TESTED // (10 if quick else 1) :], VOCABULARY


def accuracies(task, result, arguments):
    """Of every seed, in percent."""
    if task == "sunspots":
        return explained(result, arguments[0]).tolist()
    if task == "vowels":
        speakers = practice_data.japanese_vowels()[1][1]
        return (100 * np.mean(result == speakers, axis=-1)).tolist()
    return [100 * share for _, share in result]


def learnt(task, arguments):
    """How many sequences a program learns from."""
    if task == "sunspots":
        last = END - LENGTH - HORIZON
        return last + 1 - last // 10
    return len(arguments[1]) if task == "vowels" else (len(arguments[0]) - 1) // 32


class Order:
    """``order(epoch)``: which of N sequences are in each batch."""

    def __init__(self, N):
        self._batches = ba.batches(np.zeros((1, N, 1), np.float32))

    def __call__(self, epoch):
        return list(self._batches.rows(epoch))


def _run(peer, task, arguments, weights, learnt, threads):
    """One program, in a process of its own."""
    with measure.threads(threads, peers=peer == "torch"):
        program = getattr(importlib.import_module(PEERS[peer]), task)
        if peer == "torch":
            import torch

            weights = [{name: torch.from_numpy(value) for name, value in of.items()} for of in weights]
        peak, began = measure.peak_from_now(), time.perf_counter()
        result = program(*arguments, weights, Order(learnt))
        return result, time.perf_counter() - began, peak()["bytes"]


def lines_of(peer, task):
    """How many lines a program has, with the class of its network."""
    module = importlib.import_module(PEERS[peer])
    used = [getattr(module, task)]
    used += [
        value for name, value in vars(module).items() if name in used[0].__code__.co_names and is_local(value, module)
    ]
    return sum(map(_lines, used))


def is_local(value, module):
    return getattr(value, "__module__", None) == module.__name__


def _lines(thing):
    """Lines of code: not empty, and neither comment nor docstring."""
    code, said = set(), (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(thing)).readline):
        docstring = token.type == tokenize.STRING and before in (tokenize.NEWLINE, tokenize.INDENT)
        if token.type not in (*said, tokenize.ENDMARKER) and not docstring:
            code.update(range(token.start[0], token.end[0] + 1))
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = token.type
    return len(code)


def row(task, arguments):
    """What both reach, and what it takes."""
    print(f"{task} …", flush=True)
    given, weights, peers = arguments_of(task, arguments.quick), networks(task, arguments.seeds), {}
    forecasts = None
    for peer in PEERS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            result, seconds, bytes_ = pool.submit(
                _run, peer, task, given, weights, learnt(task, given), arguments.threads
            ).result()
        peers[peer] = {
            "accuracy": accuracies(task, result, given),
            "lines": lines_of(peer, task),
            "seconds": seconds,
            "peak_bytes": bytes_,
        }
        if task == "words":
            peers[peer]["nats"] = [nats for nats, _ in result]
        forecasts = result if peer == "bptt_array" else forecasts
    entry = {"task": task, "peers": peers}
    if task == "sunspots":
        entry |= {"forecasts": np.asarray(forecasts).tolist(), "ensemble": of_the_ensemble(given[0], forecasts)}
    return entry


UNITS = {"sunspots": "variance explained", "vowels": "speakers right", "words": "words foretold"}


def apart(entry):
    """Our accuracy less torch's, in points, in the mean over seeds."""
    ours, theirs = (np.mean(entry["peers"][peer]["accuracy"]) for peer in PEERS)
    return float(ours - theirs)


ENSEMBLE = (
    "The mean of the members explains {mean:.1f} % (of the next year alone {next_year:.1f} %), the 11 years before, "
    "repeated, {years_before:.1f} %. {covered:.0f} % of what came was within the 90 % interval."
)


def tables(result):
    """The result as Markdown."""
    lines = []
    for entry in result["rows"]:
        seeds = len(entry["peers"]["torch"]["accuracy"])
        lines += [
            f"**{entry['task'].capitalize()}**: {apart(entry):+.2f} points from torch's, of {seeds} seeds",
            "",
            *measure.table(
                ["", f"{UNITS[entry['task']]}, %", "worst and best seed", "lines", "seconds", "peak MiB"],
                [
                    [
                        peer,
                        f"{np.mean(of['accuracy']):.2f}",
                        f"{min(of['accuracy']):.2f} to {max(of['accuracy']):.2f}",
                        str(of["lines"]),
                        f"{of['seconds']:.1f}",
                        f"{of['peak_bytes'] / 2**20:.0f}",
                    ]
                    for peer, of in entry["peers"].items()
                ],
            ),
            "",
        ]
        if entry["task"] == "sunspots":
            lines += [ENSEMBLE.format(**entry["ensemble"]), ""]
    return lines


def intervals(forecasts, series):
    """90 % intervals (W, horizon) of the forecasts (seeds, W, horizon) of an ensemble: their lower and upper bounds.

    That of a year is where the middle 90 % are of every member's forecast plus every error that this member had been
    seen to make by then, as many years ahead. No number where fewer than :data:`KNOWN` forecasts are known.
    """
    errors, (_, W, horizon) = came_after(series) - forecasts, forecasts.shape
    bounds = np.full((2, W, horizon), np.nan)
    for year in range(KNOWN + horizon - 1, W):
        for ahead in range(horizon):
            known = errors[:, : year - ahead, ahead]  # of forecasts whose year has come
            bounds[:, year, ahead] = np.quantile(forecasts[:, year, ahead, None] + known, [0.05, 0.95])
    return np.maximum(bounds, 0)


#: Errors that there are before there is an interval.
KNOWN = 30


def covered(forecasts, series):
    """The share of what came that was within its interval, in percent."""
    lower, upper = intervals(forecasts, series)[:, KNOWN + HORIZON - 1 :]
    came = came_after(series)[KNOWN + HORIZON - 1 :]
    return 100 * np.mean((came >= lower) & (came <= upper))


def of_the_ensemble(series, forecasts):
    """What there is to say of the forecasts (seeds, W, horizon) of all members together, in percent."""
    came, middle = came_after(series), forecasts.mean(axis=0)
    years_before = np.lib.stride_tricks.sliding_window_view(series[:-HORIZON], HORIZON)[END - HORIZON :]
    return {
        "mean": float(explained(middle[None], series)[0]),
        "next_year": float(100 * (1 - np.mean((middle - came)[:, 0] ** 2) / came[:, 0].var())),
        "years_before": float(explained(years_before[None], series)[0]),
        "covered": float(covered(forecasts, series)),
    }


def plot(result, out):
    """A forecast every 11 years with its interval, and the accuracy of every seed."""
    rows = {entry["task"]: entry for entry in result["rows"]}
    if "sunspots" not in rows:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    years, series = practice_data.sunspots()
    forecasts = np.array(rows["sunspots"]["forecasts"])
    lower, upper = intervals(forecasts, series)
    figure, (axes, beside) = plt.subplots(1, 2, figsize=(12, 4), width_ratios=(3, 1), constrained_layout=True)
    axes.plot(years[END - 30 :], series[END - 30 :], "k.-", lw=0.8, ms=3, label="observed")
    for k, made in enumerate(range((forecasts.shape[1] - 1) % HORIZON, forecasts.shape[1], HORIZON)):
        when = years[END + made : END + made + HORIZON]
        axes.plot(when, forecasts[:, made].mean(axis=0), "C0", lw=1.8, label="forecast" if not k else None)
        axes.plot(when, forecasts[:, made].T, "C0", lw=0.4, alpha=0.5)
        if made >= KNOWN + HORIZON - 1:
            axes.fill_between(when, lower[made], upper[made], color="C0", alpha=0.2, lw=0)
        axes.axvline(when[0] - 0.5, color="0.8", lw=0.6, zorder=0)
    axes.fill_between([], [], [], color="C0", alpha=0.2, label="90 % interval")
    axes.set(xlabel="year", ylabel="sunspots", ylim=(0, None), title="The next 11 years, foretold every 11 years")
    axes.legend(loc="upper left", fontsize=8)
    for k, entry in enumerate(rows.values()):
        for shift, (peer, of), mark in zip((-0.12, 0.12), entry["peers"].items(), "os", strict=True):
            values = of["accuracy"]
            where = k + np.linspace(-0.05, 0.05, len(values)) + shift
            beside.plot(where, values, mark, ms=4, color=f"C{'os'.index(mark)}", label=peer if not k else None)
    beside.set(xticks=range(len(rows)), xticklabels=rows, ylim=(0, 100), ylabel="%", title="Every seed")
    beside.legend(fontsize=8)
    return measure.save_figure(figure, "practice", out)


def main(argv=None):
    parser = measure.parser(__doc__)
    parser.add_argument("--seeds", type=measure.positive, default=5, help="networks of each task (default: 5)")
    parser.add_argument("--tasks", nargs="+", choices=UNITS, default=list(UNITS), help="(default: all)")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.seeds = min(arguments.seeds, 2)
    for package in ("statsmodels", "aeon", "torch"):
        if not importlib.util.find_spec(package):
            raise SystemExit(f"needs {package}: pip install {package}")
    busy, rows = [], []
    for task in arguments.tasks:
        busy.append(measure.busy())
        rows.append(row(task, arguments))
    with measure.threads(arguments.threads):
        about = measure.environment(arguments.threads, measure.command(__file__), busy)
    result = {"about": about, "rows": rows}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save('practice', result, arguments.out)} and {plot(result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
