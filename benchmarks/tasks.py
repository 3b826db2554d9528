"""Classic tasks of long memory, learnt from several seeds at once: what is reached, beside what was published.

    python benchmarks/tasks.py [--threads 2] [--minutes 10] [--seeds 5] [--seed 0] [--quick]

- Adding (Hochreiter & Schmidhuber, 1997; Le, Jaitly & Hinton, 2015): of T random numbers two are marked, and their sum
  is asked for after the last step. Always answering 1 has a mean squared error of 1/6.
- Copying (Hochreiter & Schmidhuber, 1997; Arjovsky, Shah & Bengio, 2016): ten symbols, to be repeated after a delay
  of T steps. Blanks and then guesses cost 10 ln 8 / (T + 20) nats a step.
- Parity of a string of bits after every bit, learnt on short strings and asked for in long ones.
- Counting (Gers & Schmidhuber, 2001): which letters may follow in a^n b^n, learnt for small n and asked for large n.

Every row is one ensemble, ``members=SEEDS``, whose networks see the same fresh random batches; there is no training
set that could be learnt by heart. Adam, gradients clipped to a norm of 1. Now and then they are looked at, on held-out
data: that is a curve. A row ends when every seed is at the goal in one look, or when its part of ``--minutes`` is
over; then all are tested, on data that they have not been looked at with. Rows run one to a core. The same seeds give
the same curves; only where they end depends on the clock. Writes results/tasks.json and images/tasks.png, into
runs/benchmarks unless --out says otherwise.
"""

import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field

import measure
import numpy as np
from threadpoolctl import threadpool_limits

import bptt_array as ba


@dataclass(frozen=True)
class Adding:
    """Uniform numbers and a mask with one mark in each half; the figure is the mean squared error."""

    T: int
    loss, unit, baseline, goal, best = "mse", "mean squared error", 1 / 6, 0.01, min
    sizes, options = (2, 1), {"readout": "last"}

    def draw(self, rng, N):
        """``x (T, N, 2)``: numbers and marks; the sum of the two numbers marked ``(N, 1)``."""
        x = np.zeros((self.T, N, 2), np.float32)
        x[..., 0] = rng.random((self.T, N))
        rows, half = np.arange(N), self.T // 2
        first, second = rng.integers(0, half, N), rng.integers(half, self.T, N)
        x[first, rows, 1] = x[second, rows, 1] = 1
        return x, x[first, rows, :1] + x[second, rows, :1], None

    def held_out(self, rng, test):
        return self.draw(rng, 2000 if test else 500)

    def figure(self, rnn, x, target, lengths):
        """Of every member."""
        y, _ = rnn(x)  # (E, N, 1)
        return np.square(y - target).mean(axis=(1, 2))


@dataclass(frozen=True)
class Copying:
    """Ten of eight symbols, a delay, a delimiter, and ten steps to answer; the figure is the loss over the baseline."""

    T: int
    loss, unit, baseline, goal, best = "cross_entropy", "loss / that of guesses", 1.0, 0.05, min
    sizes, options = (10, 9), {"output": "softmax"}
    symbols, blank, delimiter, count = 8, 8, 9, 10

    @property
    def guesses(self):
        """Nats a step of blanks, then guesses."""
        return self.count * math.log(self.symbols) / (self.T + 2 * self.count)

    def draw(self, rng, N):
        """Tokens ``(T + 20, N)`` and classes ``(T + 20, N)``; the delimiter stands before the ten answers."""
        steps = self.T + 2 * self.count
        x, target = np.full((2, steps, N), self.blank)
        x[: self.count] = target[-self.count :] = rng.integers(0, self.symbols, (self.count, N))
        x[-self.count - 1] = self.delimiter
        return x, target, None

    def held_out(self, rng, test):
        return self.draw(rng, 1000 if test else 250)

    def figure(self, rnn, x, target, lengths):
        return np.asarray(rnn.loss(x, target, self.loss)[0]) / self.guesses


@dataclass(frozen=True)
class Parity:
    """Whether the ones so far are odd; the figure is the share of strings with a wrong answer at any step."""

    T: int  # of strings looked at; those of the test are ten times as long
    longest: int = 20  # of strings learnt
    loss, unit, baseline, goal, best = "cross_entropy", "share of strings not right throughout", 1.0, 0.0, min
    sizes, options = (2, 2), {"output": "softmax"}

    def draw(self, rng, N):
        """Bits ``(S, N)``, parities ``(S, N)``, and lengths of 1 to ``longest``."""
        lengths = rng.integers(1, self.longest + 1, N)
        x = rng.integers(0, 2, (int(lengths.max()), N))
        return x, x.cumsum(axis=0) % 2, lengths

    def held_out(self, rng, test):
        x = rng.integers(0, 2, (self.T * (10 if test else 1), 500))
        return x, x.cumsum(axis=0) % 2, None

    def figure(self, rnn, x, target, lengths):
        y, _ = rnn(x)  # (T, E, N, 2)
        return np.any(np.argmax(y, axis=-1) != target[:, None], axis=0).mean(axis=1)


@dataclass(frozen=True)
class Counting:
    """a^n b^n; the figure is the largest n up to which every string is right, each letter that may follow at each step.

    The first symbol of a string stands for its beginning, and as an answer for its end.
    """

    T: int  # the largest n that is looked at
    longest: int = 30  # n of strings learnt
    loss, unit, best = "binary_cross_entropy", "largest n, all right up to it", max
    sizes, options = (3, 3), {"output": "sigmoid"}

    @property
    def baseline(self):
        return self.longest

    @property
    def goal(self):
        return self.longest * 3 // 2

    def strings(self, ns):
        """Tokens ``(S, N)``, what may follow ``(S, N, 3)`` and lengths ``(N,)`` of a^n b^n for each n of ``ns``."""
        ns = np.asarray(ns)
        t = np.arange(2 * int(ns.max()) + 1)[:, None]
        x = np.where(t == 0, 0, np.where(t <= ns, 1, 2))
        a, b, end = t <= ns, (t >= 1) & (t < 2 * ns), t >= 2 * ns  # after the beginning only an a may follow
        may = np.stack([end, a & ~end, b], axis=-1)
        return x, may.astype(np.float32), 2 * ns + 1

    def draw(self, rng, N):
        return self.strings(rng.integers(1, self.longest + 1, N))

    def held_out(self, rng, test):
        return self.strings(np.arange(1, self.T + 1))

    def figure(self, rnn, x, target, lengths):
        y, _ = rnn(x)  # (S, E, N, 3)
        right = np.all((y > 0.5) == (target[:, None] > 0.5), axis=-1)
        past = np.arange(len(x))[:, None, None] >= lengths
        return np.cumprod(np.all(right | past, axis=0), axis=-1).sum(axis=-1)


@dataclass(frozen=True)
class Row:
    """A task, the network and how it is trained; ``share`` of the time."""

    task: Adding | Copying | Parity | Counting
    cell: dict  # of the network
    said: str  # the network, in words
    H: int
    lr: float
    share: float
    rates: dict = field(default_factory=dict)  # lr of single parameters
    inputs: float = 1.0  # factor of the initial W_xh
    N: int = 32
    every: int = 100  # updates from look to look
    most: int | None = None  # updates
    published: str = ""


IRNN = {"cell": "relu", "init": "identity"}
TANH, ORTHOGONAL = {"cell": "tanh"}, {"cell": "tanh", "init": "orthogonal"}
GRU, LSTM = {"cell": "gru"}, {"cell": "lstm", "forget_bias": 1.0}
#: With small inputs a tanh is nearly linear, and what remains to be learnt is the readout (Henaff et al., 2016).
NEARLY_LINEAR = {"inputs": 0.1, "rates": {"W_hh": 1e-4, "W_hy": 0.1, "b_y": 0.1}}
LE, ARJOVSKY = "Le et al. 2015", "Arjovsky et al. 2016"
AS_LSTM = f"near 0, as LSTM ({LE})"
ROWS = [  # what takes longest first
    Row(Adding(200), IRNN, "ReLU, identity", 100, 5e-4, 20, published=AS_LSTM),
    Row(Copying(200), ORTHOGONAL, "tanh, orthogonal, small inputs", 128, 3e-4, 18, **NEARLY_LINEAR, every=50,
        published=f"LSTM: as guesses ({ARJOVSKY})"),
    Row(Adding(200), GRU, "GRU", 100, 1e-2, 16, every=50),
    Row(Adding(150), IRNN, "ReLU, identity", 100, 5e-4, 18, published=AS_LSTM),
    Row(Adding(100), GRU, "GRU", 100, 1e-2, 8, every=50),
    Row(Adding(100), IRNN, "ReLU, identity", 100, 5e-4, 8),
    Row(Copying(100), ORTHOGONAL, "tanh, orthogonal, small inputs", 128, 3e-4, 8, **NEARLY_LINEAR, every=50,
        published=f"LSTM: better than guesses ({ARJOVSKY})"),
    Row(Counting(150), LSTM, "LSTM", 8, 1e-2, 6, N=16, every=250,
        published="from n = 1-10 to far larger n, with peepholes (Gers & Schmidhuber 2001)"),
    Row(Adding(200), TANH, "tanh", 100, 5e-4, 12, published=f"not learnt ({LE})"),
    Row(Copying(100), ORTHOGONAL, "tanh, orthogonal", 128, 1e-3, 8),
    Row(Parity(100), TANH, "tanh", 16, 1e-2, 3, N=64, every=50),
]  # fmt: skip
QUICK = [
    Row(Adding(10), IRNN, "ReLU, identity", 16, 3e-3, 1, every=20, most=40),
    Row(Copying(3), ORTHOGONAL, "tanh, orthogonal, small inputs", 64, 3e-4, 1, **NEARLY_LINEAR, every=20, most=40),
    Row(Counting(12, 3), LSTM, "LSTM", 8, 1e-2, 1, every=20, most=40),
    Row(Parity(10, 4), TANH, "tanh", 16, 1e-2, 1, every=20, most=40),
]


def without_explosions(grads, members):
    """Which members' gradients are not finite ``(E,)``; they are set to zero: only momentum moves those weights."""
    exploded = ~np.isfinite(ba.global_norm(grads, members=members))
    for grad in grads.values():
        grad[exploded] = 0
    return exploded


def at_goal(task, figures):
    """Whether each figure is at the goal or better; what is no number is not."""
    figures = np.asarray(figures, np.float64)
    return figures >= task.goal if task.best is max else figures <= task.goal


def train(row, members, seed, seconds):
    """Train ``members`` networks side by side; curves, when each was first at the goal, the test."""
    task, began = row.task, time.perf_counter()
    sizes = task.sizes[0], row.H, task.sizes[1]
    rnn = ba.RNN(*sizes, **row.cell, **task.options, members=members, seed=seed)
    rnn.params["l0.W_xh"] *= np.float32(row.inputs)
    optimizers = {name: ba.Adam(row.rates.get(name.removeprefix("l0."), row.lr)) for name in rnn.params}
    look_at = task.held_out(np.random.default_rng([seed, 1]), test=False)
    rng, updates, exploded = np.random.default_rng([seed, 0]), 0, np.zeros(members, int)
    steps, curves = [], []
    with np.errstate(over="ignore", invalid="ignore"):  # a ReLU network may explode, which is looked at
        while True:
            if updates % row.every == 0:
                steps.append(updates)
                curves.append(task.figure(rnn, *look_at))
                over = time.perf_counter() - began > seconds or (row.most is not None and updates >= row.most)
                if over or at_goal(task, curves[-1]).all():
                    break
            x, target, lengths = task.draw(rng, row.N)
            _, grads, _ = rnn.loss_and_grad(x, target, task.loss, lengths=lengths)
            exploded += without_explosions(grads.params, members)
            clipped = ba.clip_by_global_norm(grads.params, 1.0, members=members)
            for name, optimizer in optimizers.items():
                optimizer.update({name: rnn.params[name]}, {name: clipped[name]})
            updates += 1
        test = task.figure(rnn, *task.held_out(np.random.default_rng([seed, 2]), test=True))
    return summary(row, steps, np.array(curves), test, exploded, time.perf_counter() - began)


def summary(row, steps, curves, test, exploded, seconds):
    """What JSON holds of a row: figures by seed, None where they are no numbers."""
    there = at_goal(row.task, curves)
    first = [steps[int(np.argmax(column))] if column.any() else None for column in there.T]
    described = {"task": type(row.task).__name__, **asdict(row.task), "baseline": row.task.baseline,
                 "goal": row.task.goal, "unit": row.task.unit, "higher_is_better": row.task.best is max}  # fmt: skip
    settings = {name: getattr(row, name) for name in ("cell", "said", "H", "N", "lr", "rates", "inputs", "published")}

    def plain(values):
        return [float(value) if np.isfinite(value) else None for value in values]

    return {
        **described,
        **settings,
        "updates": steps[-1],
        "seconds": seconds,
        "steps": steps,
        "curves": [plain(curve) for curve in curves.T],
        "first_at_goal": first,
        "test": plain(test),
        "solved": [bool(there) for there in at_goal(row.task, test)],
        "exploded": [int(count) for count in exploded],
    }


def trained(row, members, seed, seconds):
    """:func:`train` in a process of its own, on one thread."""
    with threadpool_limits(1):
        return train(row, members, seed, seconds)


def number(value, result):
    """A figure in a table: a count, a share, or three digits."""
    if value is None:
        return "no number"
    if result["higher_is_better"]:
        return f"{value:.0f}"
    if 0 < value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if value < 1000 else f"{value:.0e}"


def ranked(result):
    """The figures of the test, best first; what is no number is last."""
    sign = -1 if result["higher_is_better"] else 1
    return sorted(result["test"], key=lambda value: math.inf if value is None else sign * value)


def label(result):
    of = {"Parity": "1-{longest} bits", "Counting": "n = 1-{longest}"}.get(result["task"], "T = {T}")
    return f"{result['task']}, {of.format(**result)}"


def in_order(result):
    """Rows by task and T, as they are told; they ran in another order."""
    tasks = ("Adding", "Parity", "Copying", "Counting")
    return sorted(result["rows"], key=lambda found: (tasks.index(found["task"]), found["T"]))


def tables(result):
    """The result as Markdown."""
    rows, told, notes = [], [], []
    for found in in_order(result):
        order, seeds, solved = ranked(found), len(found["test"]), sum(found["solved"])
        median, worst = (number(order[k], found) for k in (seeds // 2, -1))
        firsts = [first for first in found["first_at_goal"] if first is not None]
        span = "-".join(f"{first:,}" for first in sorted({min(firsts), max(firsts)})) if firsts else "never"
        sign = ">=" if found["higher_is_better"] else "<="
        rows.append([
            label(found), found["said"], str(found["H"]), f"{found['updates']:,}", f"{found['seconds']:.0f}",
            number(found["baseline"], found), f"{sign} {found['goal']:g}", median, worst, f"{solved} of {seeds}", span,
            found["published"] or "-",
        ])  # fmt: skip
        if any(found["exploded"]):
            counts = ", ".join(str(count) for count in found["exploded"])
            told.append(f"{label(found)}, {found['said']}: {counts}")
        if found["task"] == "Parity":
            notes.append(f"Strings of parity have {found['T']} bits when looked at, {10 * found['T']} in the test.")
        if found["task"] == "Copying":
            notes.append(
                f"Guesses cost {Copying(found['T']).guesses:.4f} nats a step of copying with T = {found['T']}."
            )
    head = ["task", "network", "H", "updates", "s", "baseline", "goal", "median", "worst", "seeds there",
            "first there after", "published"]  # fmt: skip
    units = "; ".join(dict.fromkeys(f"{found['task'].lower()}: {found['unit']}" for found in in_order(result)))
    lines = [f"Test figures of {result['seeds']} seeds ({units}):", "", *measure.table(head, rows), ""]
    if told:
        notes.append(f"Gradients that were not finite and were left out, by seed: {'; '.join(told)}.")
    return [*lines, " ".join(dict.fromkeys(notes))] if notes else lines[:-1]


def save_figure(result, out):
    """Learning curves, one panel a task and T: seeds thin, their median thick."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    panels = {}
    for found in in_order(result):
        panels.setdefault(label(found), []).append(found)
    networks = list(dict.fromkeys(found["said"] for founds in panels.values() for found in founds))
    columns = -(-len(panels) // 2)
    figure = Figure(figsize=(4.4 * columns, 7), layout="constrained")
    figure.suptitle("Held-out figures while learning. Thin: each seed; thick: median; dashed: baseline; dotted: goal")
    grid = figure.subplots(2, columns, squeeze=False).ravel()
    for axes, (title, founds) in zip(grid, panels.items(), strict=False):
        for found in founds:
            color = f"C{networks.index(found['said'])}"
            curves = np.array(found["curves"], np.float64)  # None is NaN
            axes.plot(found["steps"], curves.T, color=color, linewidth=0.8, alpha=0.45)
            worst = -np.inf if found["higher_is_better"] else np.inf
            median = np.median(np.where(np.isnan(curves), worst, curves), axis=0)
            axes.plot(found["steps"], median, color=color, linewidth=2.4, label=found["said"])
        axes.axhline(founds[0]["baseline"], color="black", linestyle="--", linewidth=1)
        axes.axhline(founds[0]["goal"], color="gray", linestyle=":", linewidth=1.2)
        if founds[0]["task"] in ("Adding", "Copying"):
            axes.set_yscale("log")
            least = min(v for found in founds for curve in found["curves"] for v in curve if v is not None)
            axes.set_ylim(max(least, 1e-4) / 1.5, 8 * founds[0]["baseline"])
        axes.set(title=title, xlabel="updates", ylabel=founds[0]["unit"])
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return measure.save_figure(figure, "tasks", out)


def parse(argv):
    parser = measure.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of all rows together (default: 10)")
    parser.add_argument("--seeds", type=measure.positive, default=5, help="networks of every row (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: 0)")
    arguments = parser.parse_args(argv)
    if not arguments.minutes > 0:
        parser.error(f"argument --minutes: {arguments.minutes:g} is not positive")
    if arguments.seed < 0:
        parser.error(f"argument --seed: {arguments.seed} is negative")
    return arguments


def main(argv=None):
    arguments = parse(argv)
    rows = QUICK if arguments.quick else ROWS
    seeds = min(arguments.seeds, 2) if arguments.quick else arguments.seeds
    second = 60 * arguments.minutes * arguments.threads / sum(row.share for row in rows)
    busy, results = [measure.busy()], []
    with ProcessPoolExecutor(arguments.threads, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(trained, row, seeds, arguments.seed, second * row.share) for row in rows]
        for row, future in zip(rows, waiting, strict=True):
            results.append(future.result())
            print(f"{label(results[-1])}, {row.said}: {results[-1]['updates']} updates", flush=True)
    with measure.threads(1, peers=False):
        about = measure.environment(arguments.threads, measure.command(__file__), busy)
    settings = {"seeds": seeds, "seed": arguments.seed, "minutes": arguments.minutes}
    result = {"about": about, **settings, "rows": results}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save('tasks', result, arguments.out)} and {save_figure(result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
