"""A step of a stream: ``y = step(x_t)`` of ``rnn.streamer(N)``, against its NumPy calls and ``rnn(x_t[None], state)``.

    python benchmarks/streaming.py [--threads 2] [--dtype float32] [--quick]

One layer and a linear readout in one process, taking turns; outputs are compared first, over steps whose states go on.
"Bare NumPy" is what one would write by hand for this step: ``np.matmul(..., out=)``, ``+=``, ``np.tanh(..., out=)`` on
arrays that are made once, with transposed copies of the weights in order, no checks and nothing else. Prints tables and
writes results/streaming-DTYPE.json, into runs/benchmarks unless --out says otherwise.
"""

from typing import NamedTuple

import measure
import numpy as np

import bptt_array as ba

CELLS = ("tanh", "lstm", "gru")
INPUTS, OUTPUTS = 16, 8


class Size(NamedTuple):
    """Sequences and hidden units."""

    N: int
    H: int


SIZES = [Size(N, H) for N in (1, 32) for H in (64, 128, 256)]
QUICK = [Size(1, 16), Size(4, 16)]
NAMES = ("bptt_array", "bare NumPy", "rnn(x_t[None], state)")
LIMIT = {"float32": 1e-5, "float64": 1e-13}


class Bare:
    """The calls of a step, and nothing else; the states are in ``h`` and ``c``."""

    def __init__(self, rnn, N):
        params, H, O, dtype = rnn.params, rnn.hidden_size, rnn.output_size, rnn.dtype  # noqa: E741
        self.W_xh, self.W_hh, self.W_hy = (
            np.ascontiguousarray(params[name].T) for name in ("l0.W_xh", "l0.W_hh", "W_hy")
        )
        self.b_h, self.b_y = params["l0.b_h"], params["b_y"]
        self.b_hn = params.get("l0.b_hn")
        self.half = np.asarray(0.5, dtype)
        self.z, self.of_h = (np.zeros((N, self.W_hh.shape[1]), dtype) for _ in range(2))
        self.h, self.c, self.product = (np.zeros((N, H), dtype) for _ in range(3))
        self.y = np.zeros((N, O), dtype)
        self.step = getattr(self, rnn.cell)()

    def tanh(self):
        W_xh, W_hh, W_hy, b_h, b_y, z, of_h, h, y = self.arrays

        def step(x):
            nonlocal z, y
            np.matmul(x, W_xh, out=z)
            z += b_h
            np.matmul(h, W_hh, out=of_h)
            z += of_h
            np.tanh(z, out=h)
            np.matmul(h, W_hy, out=y)
            y += b_y
            return y

        return step

    def lstm(self):
        W_xh, W_hh, W_hy, b_h, b_y, z, of_h, h, y = self.arrays
        half, c, product = self.half, self.c, self.product
        i, f, g, o = np.split(z, 4, axis=1)
        if_ = z[:, : 2 * h.shape[1]]

        def step(x):
            nonlocal z, y, if_, o, c
            np.matmul(x, W_xh, out=z)
            z += b_h
            np.matmul(h, W_hh, out=of_h)
            z += of_h
            if_ *= half
            o *= half
            np.tanh(z, out=z)
            if_ *= half
            if_ += half
            o *= half
            o += half
            c *= f
            np.multiply(i, g, out=product)
            c += product
            np.tanh(c, out=product)
            np.multiply(o, product, out=h)
            np.matmul(h, W_hy, out=y)
            y += b_y
            return y

        return step

    def gru(self):
        W_xh, W_hh, W_hy, b_h, b_y, z, of_h, h, y = self.arrays
        half, b_hn = self.half, self.b_hn
        r, u, n = np.split(z, 3, axis=1)
        ru, ru_of_h = (a[:, : 2 * h.shape[1]] for a in (z, of_h))
        n_of_h = of_h[:, 2 * h.shape[1] :]

        def step(x):
            nonlocal z, y, h, ru, n, n_of_h
            np.matmul(x, W_xh, out=z)
            z += b_h
            np.matmul(h, W_hh, out=of_h)
            ru += ru_of_h
            ru *= half
            np.tanh(ru, out=ru)
            ru *= half
            ru += half
            n_of_h += b_hn
            n_of_h *= r
            n += n_of_h
            np.tanh(n, out=n)
            h -= n
            h *= u
            h += n
            np.matmul(h, W_hy, out=y)
            y += b_y
            return y

        return step

    @property
    def arrays(self):
        return self.W_xh, self.W_hh, self.W_hy, self.b_h, self.b_y, self.z, self.of_h, self.h, self.y


class Called:
    """The network called for one step, as one does without a streamer."""

    def __init__(self, rnn, N):
        self.rnn, self.state = rnn, None

    def step(self, x):
        y, self.state = self.rnn(x[None], self.state)
        return y[0]


def made(rnn, N):
    """A function ``y = step(x_t)`` for each name, with states of its own."""
    return dict(zip(NAMES, (rnn.streamer(N), Bare(rnn, N).step, Called(rnn, N).step), strict=True))


def difference(steps, xs):
    """How far outputs are apart at most, after all inputs; the largest of them is about 1."""
    found = [[step(x).copy() for x in xs] for step in steps.values()]
    return max(float(np.max(np.abs(np.subtract(one, found[0])))) for one in found)


def row(cell, size, dtype, repetitions, seconds, at_once):
    """One row of the table; ``at_once``: steps that are timed together."""
    busy, rng = measure.busy(), np.random.default_rng(0)
    rnn = ba.RNN(INPUTS, size.H, OUTPUTS, cell=cell, dtype=dtype)
    xs = rng.standard_normal((at_once, size.N, INPUTS)).astype(dtype)
    steps = made(rnn, size.N)
    apart = difference(steps, xs[:20])
    if not apart <= LIMIT[dtype]:
        raise SystemExit(f"outputs of {cell} differ by {apart:.1e}: nothing was timed")

    def run(step):
        def all_of_them():
            for x in xs:
                step(x)

        return all_of_them

    times = measure.alternate({name: run(step) for name, step in steps.items()}, repetitions, seconds)
    found = {name: measure.summary([seconds / at_once for seconds in times[name]]) for name in NAMES}
    return {"cell": cell, "size": list(size), "busy": busy, "difference": apart, "peers": found}


def label(entry):
    return f"{entry['cell']} {tuple(entry['size'])}"


def over_bare(entry, name="bptt_array"):
    """Its time over that of the bare calls."""
    return entry["peers"][name]["median_ms"] / entry["peers"]["bare NumPy"]["median_ms"]


def tables(result):
    """The result as Markdown."""
    rows, others = result["rows"], [NAMES[0], NAMES[2]]
    told = "{0:.1f} ({1:.1f}-{2:.1f})"
    ratios = [[label(entry), *(f"{over_bare(entry, name):.2f}" for name in others)] for entry in rows]
    times = [
        [label(entry), *(told.format(*(1e3 * entry["peers"][name][f"{key}_ms"] for key in ("median", "p10", "p90")))
                         for name in NAMES)]
        for entry in rows
    ]  # fmt: skip
    found = ((f"{name} at {label(entry)}", entry["peers"][name]) for entry in rows for name in NAMES)
    return [
        f"I = {INPUTS}, O = {OUTPUTS}. Time / bare NumPy (medians):",
        "",
        *measure.table(["(N, H)", *others], ratios),
        "",
        "Microseconds a step, median (10th to 90th percentile):",
        "",
        *measure.table(["(N, H)", *NAMES], times),
        "",
        *measure.unsteady(found),
        f"Outputs agree within {measure.up(max(entry['difference'] for entry in rows))}.",
    ]


def main(argv=None):
    parser = measure.parser(__doc__)
    measure.add_turns(parser, repetitions=9, seconds=0.1)
    arguments = parser.parse_args(argv)
    at_once, sizes = (20, QUICK) if arguments.quick else (200, SIZES)
    if arguments.quick:
        arguments.repetitions, arguments.seconds = 2, 0.005
    rows = []
    with measure.threads(arguments.threads, peers=False):
        for cell in CELLS:
            for size in sizes:
                print(f"{cell} {tuple(size)} ...", flush=True)
                rows.append(row(cell, size, arguments.dtype, arguments.repetitions, arguments.seconds, at_once))
        about = measure.environment(arguments.threads, measure.command(__file__), [entry["busy"] for entry in rows])
    result = {"about": about, "dtype": arguments.dtype, "rows": rows}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save(f'streaming-{arguments.dtype}', result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
