"""Clipping of gradients and an Adam update of ten million parameters on the CPU, against torch.

    python benchmarks/updates.py [--threads 2] [--dtype float32] [--quick]

``clip_by_global_norm`` and ``Adam.update`` against ``clip_grad_norm_`` and ``Adam(fused=True).step``, alone and one
after the other, in one process, taking turns; parameters and first moments after an update are compared first. Ours
returns new gradients and leaves those given as they are, torch's scales them in place. Needs torch. Prints tables and
writes results/updates-DTYPE.json, into runs/benchmarks unless --out says otherwise.
"""

import importlib.util
import math

import measure
import numpy as np
import peers

import bptt_array as ba

MOST = 1.0  # of the norm of clipped gradients


def _lstm(I, H, O):  # noqa: E741
    return {"W_xh": (4 * H, I), "W_hh": (4 * H, H), "b_h": (4 * H,), "W_hy": (O, H), "b_y": (O,)}


#: Shapes of parameters by name.
SETS = {
    "one array of 10 million": {"W": (10_000_000,)},
    "an LSTM, H = 1024": _lstm(1024, 1024, 1500),
    "an LSTM of 20,000 tokens, H = 256": _lstm(20_000, 256, 20_000),
    "an LSTM, H = 64": _lstm(64, 64, 200),
}
QUICK = {"one array of 1000": {"W": (1000,)}, "an LSTM, H = 8": _lstm(3, 8, 2)}
#: torch sums squares in float32: of ten million it has a norm that is wrong by 4e-4.
LIMIT = {"float32": 1e-3, "float64": 1e-9}
DONE = ("both", "clip", "update")


def arrays_of(shapes, dtype):
    """Parameters and gradients."""
    rng = np.random.default_rng(0)
    return [{name: rng.standard_normal(shape, dtype=dtype) for name, shape in shapes.items()} for _ in range(2)]


class Ours:
    def __init__(self, shapes, dtype):
        self.params, self.grads = arrays_of(shapes, dtype)
        self.optimizer = ba.Adam(1e-3)

    def clip(self):
        return ba.clip_by_global_norm(self.grads, MOST)

    def update(self):
        self.optimizer.update(self.params, self.grads)

    def both(self):
        self.optimizer.update(self.params, self.clip())

    def results(self):
        moments = {f"m of {name}": m for name, (m, _) in self.optimizer.state_dict()["kept"].items()}
        return self.params | moments


class Torch:
    def __init__(self, shapes, dtype):
        import torch

        params, grads = arrays_of(shapes, dtype)
        self.torch = torch
        self.params = {name: torch.from_numpy(value).requires_grad_() for name, value in params.items()}
        for name, param in self.params.items():
            param.grad = torch.from_numpy(grads[name])
        self.optimizer = torch.optim.Adam(self.params.values(), 1e-3, fused=True)

    def clip(self):
        self.torch.nn.utils.clip_grad_norm_(self.params.values(), MOST)

    def update(self):
        self.optimizer.step()

    def both(self):
        self.clip()
        self.update()

    def results(self):
        state = self.optimizer.state
        moments = {f"m of {name}": state[param]["exp_avg"].numpy() for name, param in self.params.items()}
        return {name: param.detach().numpy() for name, param in self.params.items()} | moments


PEERS = {"bptt_array": Ours, "torch": Torch}


def prepared(name, shapes, dtype):
    """Clipping and an update ready to run, with what is kept for the parameters in place."""
    PEERS[name](QUICK["an LSTM, H = 8"], dtype).both()
    made = PEERS[name](shapes, dtype)
    made.update()
    return made.both


def row(label, shapes, arguments):
    busy = measure.busy()
    made = {name: kind(shapes, arguments.dtype) for name, kind in PEERS.items()}
    for peer in made.values():
        peer.both()
    ours, theirs = (peer.results() for peer in made.values())
    difference = peers.gradient_difference(theirs, ours)
    if not difference <= LIMIT[arguments.dtype]:
        raise SystemExit(f"results of an update differ by {difference:.1e}: nothing was timed")
    result = {name: {} for name in made}
    for done in DONE:
        calls = {name: getattr(peer, done) for name, peer in made.items()}
        for name, times in measure.alternate(calls, arguments.repetitions, arguments.seconds).items():
            result[name][done] = measure.summary(times)
    for name in made if arguments.memory else ():
        found = measure.peak_memory(prepared, (name, shapes, arguments.dtype), arguments.threads)
        result[name] |= {"peak_bytes": found["bytes"], "peak_since": found["since"]}
    numbers = sum(math.prod(shape) for shape in shapes.values())
    return {"parameters": label, "numbers": numbers, "busy": busy, "difference": difference, "peers": result}


def tables(result):
    """The result as Markdown: ratios, times, memory."""
    rows, names = result["rows"], list(PEERS)
    head = ["parameters", "numbers"]
    labels = [[entry["parameters"], f"{entry['numbers']:,}"] for entry in rows]
    said = {"both": "clip and update", "clip": "clip", "update": "update"}

    def median(entry, name, done):
        return entry["peers"][name][done]["median_ms"]

    ratios = [
        [*label, *(f"{median(entry, 'bptt_array', done) / median(entry, 'torch', done):.2f}" for done in DONE)]
        for label, entry in zip(labels, rows, strict=True)
    ]
    told = "{median_ms:.3g} ({p10_ms:.3g}-{p90_ms:.3g})"
    times = [
        [*label, *(told.format(**entry["peers"][name][done]) for done in DONE for name in names)]
        for label, entry in zip(labels, rows, strict=True)
    ]
    of_times = [f"{said[done]}, {name}" for done in DONE for name in names]
    found = (
        (f"{said[done]}, {name}: {entry['parameters']}", entry["peers"][name][done])
        for entry in rows
        for done in DONE
        for name in names
    )
    lines = ["Our time / torch's (medians):", "", *measure.table([*head, *said.values()], ratios), ""]
    lines += ["Milliseconds, median (10th to 90th percentile):", "", *measure.table([*head, *of_times], times), ""]
    lines += measure.unsteady(found)
    if "peak_bytes" in rows[0]["peers"]["torch"]:
        since = {entry["peers"][name]["peak_since"] for entry in rows for name in names}
        note = " (peaks since the process began: this system cannot tell those of a step)" * ("the process" in since)
        memory = [
            [*label, *(f"{entry['peers'][name]['peak_bytes'] / 2**20:.1f}" for name in names)]
            for label, entry in zip(labels, rows, strict=True)
        ]
        lines += [f"Peak memory of both, MiB{note}:", "", *measure.table([*head, *names], memory), ""]
    worst = measure.up(max(entry["difference"] for entry in rows))
    return [*lines, f"Parameters and first moments after an update agree within {worst} of the largest."]


def main(argv=None):
    parser = measure.parser(__doc__)
    measure.add_turns(parser, repetitions=7, seconds=0.25)
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="time only")
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec("torch") is None:
        parser.error("torch is not installed: pip install -e '.[bench]'")
    if arguments.quick:
        arguments.repetitions, arguments.seconds = 2, 0.02
    rows = []
    with measure.threads(arguments.threads):
        for label, shapes in (QUICK if arguments.quick else SETS).items():
            print(f"{label} ...", flush=True)
            rows.append(row(label, shapes, arguments))
        busy = [entry["busy"] for entry in rows]
        about = measure.environment(arguments.threads, measure.command(__file__), busy)
    result = {"about": about, "dtype": arguments.dtype, "rows": rows}
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save(f'updates-{arguments.dtype}', result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
