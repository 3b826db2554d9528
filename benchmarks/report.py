"""Run every benchmark that this machine can, and write their tables into README.md.

    python benchmarks/report.py [--no-run] [--threads 2]

Each table stands between two comments of README.md, and comes from a file of results/; with --no-run the tables
are written anew from the files that are there. What has no file yet says so.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import compare
import gpu
import measure
import scaling

HERE = Path(__file__).parent


def char_rnn_lines(result):
    return ["```", *result["lines"], "```"]


#: The peers of the float64 table: those that come near.
NEAREST = ["torch.nn.RNN", "JAX scan, jit", "textbook NumPy"]

#: Name of the file in results/, the call that makes it, what makes lines of it.
REPORTS = {
    "compare-float32": (["compare.py"], compare.tables),
    "compare-float64": (
        ["compare.py", "--dtype", "float64", "--repetitions", "5", "--no-memory", "--peers", *NEAREST],
        compare.tables,
    ),
    "scaling": (["scaling.py"], scaling.tables),
    "char_rnn-32": (["char_rnn.py"], char_rnn_lines),
    "char_rnn-64": (["char_rnn.py", "--seq-len", "64", "--updates", "400"], char_rnn_lines),
    "gpu": (["gpu.py"], gpu.tables),
}


def section(name, results):
    """The lines that belong between the comments of ``name``."""
    path = results / f"{name}.json"
    if not path.exists():
        return [f"No figure exists yet: `python benchmarks/{shlex.join(REPORTS[name][0])}` has not been run."]
    result = json.loads(path.read_text(encoding="utf-8"))
    about = [f"{line}  " for line in measure.describe(result["about"])]
    return [*about, "", *REPORTS[name][1](result)]


def rewrite(text, results):
    """README with every table replaced by the one of its file."""
    for name in REPORTS:
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"README.md needs {begin} and {end} once each")
        lines = "\n".join([begin, "", *section(name, results), "", end])
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, lines=lines: lines, text, flags=re.DOTALL)
    return text


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-run", action="store_true", help="only write the tables from results/")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    if not arguments.no_run:
        for name, (call, _) in REPORTS.items():
            if name == "gpu" and not gpu.ba.backend.cuda_device_count():
                print("no CUDA device: benchmarks/gpu.py is left out")
                continue
            print(f"==== {' '.join(call)}", flush=True)
            command = [sys.executable, str(HERE / call[0]), *call[1:], "--threads", str(arguments.threads)]
            subprocess.run(command, check=True)
    readme = HERE / "README.md"
    readme.write_text(rewrite(readme.read_text(encoding="utf-8"), HERE / "results"), encoding="utf-8")
    print(f"wrote {readme}")


if __name__ == "__main__":
    main()
