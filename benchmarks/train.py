"""The default training run, as the command line does it: how long it takes, what it reaches, and what others cost it.

    python benchmarks/train.py [--threads 2] [--quick]

Writes results/train.json and images/training.png, into runs/benchmarks unless --out says otherwise.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

from bptt_array import cli
from bptt_array.runs.folder import METRICS, PLOT, TIMES
from bptt_array.training.threads import VARIABLES

#: Programs that use the cores beside a run, by how many there are for each core.
LOADS = {"nothing": 0, "a busy loop on each core": 1}
ROUNDS = 3


def tables(result):
    """The result as Markdown."""
    lines = [
        f"{result['steps']} updates took {result['seconds']:.1f} s and ended at {result['validation']:.3f} nats per "
        "character on the held-out tenth of the text."
    ]
    if "beside" in result:
        rows = [
            [load, *(f"{statistics.median(of[side]):.1f}" for side in ("chosen", "one", "all")), f"{ratio(of):.2f}"]
            for load, of in result["beside"].items()
        ]
        head = ["beside it", "threads chosen, s", "one thread, s", "all threads, s", "chosen / better of both"]
        lines += ["", "The program from beginning to end, median of its runs in turn:", "", *measure.table(head, rows)]
    return lines


def ratio(of):
    """How long the run takes with the threads that it chooses, over what it takes with the better of one and all."""
    chosen, *others = (statistics.median(of[side]) for side in ("chosen", "one", "all"))
    return chosen / min(others)


def seconds_of(threads, more):
    """Of the program, with the threads that it chooses, with one or with all."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    if threads != "chosen":
        environment["OPENBLAS_NUM_THREADS"] = str(1 if threads == "one" else len(measure.cores()))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bptt_array", "train", "--out", f"{folder}/run", *more]
        began = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return time.perf_counter() - began


def beside(rounds, more):
    """Seconds of the program beside nothing and beside busy loops, of every number of threads in turn."""
    found = {}
    for load, loops in LOADS.items():
        of = {"chosen": [], "one": [], "all": []}
        with measure.busy_loops(loops * len(measure.cores())):
            for _ in range(rounds):
                for side, times in of.items():
                    times.append(seconds_of(side, more))
        found[load] = of
    return found


def main(argv=None):
    arguments = measure.parser(__doc__).parse_args(argv)
    more = ["--steps", "20"] if arguments.quick else []
    with measure.threads(arguments.threads), tempfile.TemporaryDirectory() as folder:
        busy = measure.busy()
        run = Path(folder) / "run"
        if status := cli.main(["train", "--out", str(run), *more]):
            raise SystemExit(status)
        last, reached = (
            json.loads((run / name).read_text(encoding="utf-8").splitlines()[-1]) for name in (METRICS, TIMES)
        )
        about = measure.environment(arguments.threads, measure.command(__file__), [busy])
        result = {"about": about, "steps": last["step"], "seconds": reached["seconds"]}
        result |= {"validation": last["validation"]}
        images = arguments.out / "images"
        images.mkdir(parents=True, exist_ok=True)
        if (run / PLOT).exists():
            (images / "training.png").write_bytes((run / PLOT).read_bytes())
        result["beside"] = beside(1 if arguments.quick else ROUNDS, more)
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save('train', result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
