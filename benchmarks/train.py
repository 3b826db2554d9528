"""The default training run, as the command line does it: how long it takes and what it reaches.

    python benchmarks/train.py [--threads 2] [--quick]

Writes results/train.json and images/training.png, into runs/benchmarks unless --out says otherwise.
"""

import json
import tempfile
from pathlib import Path

import measure

from bptt_array import cli
from bptt_array.runs.folder import METRICS, PLOT, TIMES


def tables(result):
    """The result as Markdown."""
    return [
        f"{result['steps']} updates took {result['seconds']:.1f} s and ended at {result['validation']:.3f} nats per "
        "character on the held-out tenth of the text."
    ]


def main(argv=None):
    arguments = measure.parser(__doc__).parse_args(argv)
    with measure.threads(arguments.threads), tempfile.TemporaryDirectory() as folder:
        busy = measure.busy()
        run = Path(folder) / "run"
        if status := cli.main(["train", "--out", str(run), *(["--steps", "20"] if arguments.quick else [])]):
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
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save('train', result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
