"""Kernels of whole segments on a CUDA device, a few times each, values and gradients against the CPU.

    python benchmarks/kernels.py [--list small|heavy] [--device cuda] [--quick]

The small list has every cell, both dtypes, one block for a group of rows and several, a mask, members and both
directions, in shapes that end within a minute under compute-sanitizer; the heavy list the two networks whose kernels
take longest, for a profiler. Writes results/kernels-LIST.json, into runs/benchmarks unless --out says otherwise; fails
where numbers differ.
"""

import measure
import numpy as np
import peers

import bptt_array as ba
from bptt_array.kernels import segments

#: Cell, T, N, H, dtype, more arguments of the network.
SMALL = [
    ("tanh", 6, 3, 20, "float32", {}),
    ("relu", 6, 3, 20, "float32", {"recurrent_dropout": 0.3}),
    ("lstm", 6, 3, 20, "float64", {"members": 2}),
    ("gru", 6, 3, 20, "float32", {"bidirectional": True}),
    ("tanh", 4, 3, 520, "float32", {"recurrent_dropout": 0.3}),
    ("lstm", 4, 3, 260, "float32", {}),
]
HEAVY = [("tanh", 64, 64, 1024, "float32", {}), ("lstm", 64, 64, 512, "float32", {})]
QUICK = [SMALL[0], ("lstm", 2, 2, 200, "float32", {})]
BOUNDS = {"float32": 1e-3, "float64": 1e-9}


def one(backend, cell, T, N, H, dtype, more):
    """How a network's segments run on a device, and how far its gradients are from those of the CPU."""
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((T, N, 5)).astype(dtype), rng.standard_normal((T, N, 3)).astype(dtype)
    rnn = ba.RNN(5, H, 3, cell=cell, dtype=dtype, seed=1, **more)
    seed = {"dropout_seed": 2} if "recurrent_dropout" in more else {}
    _, expected, _ = rnn.loss_and_grad(x, target, "mse", **seed)
    there = rnn.copy().to(backend)
    _, found, _ = there.loss_and_grad(x, target, "mse", **seed)
    difference = peers.gradient_difference(
        {name: backend.to_host(grad) for name, grad in found.params.items()}, expected.params
    )
    params = {name[3:]: value for name, value in there.params.items() if name.startswith("l0.")}
    lead = tuple(params["W_hh"].shape[:-2])
    paths = {}
    if backend.persistent:
        with backend.active():
            paths = segments.describe(backend, rnn.architecture.cell, params, (*lead, N, H))
    about = ", ".join([f"{name}={value}" for name, value in more.items()])
    return {"case": f"{cell} T={T} N={N} H={H} {dtype} {about}".strip(), "difference": difference, "paths": paths}


def tables(result):
    """The result as Markdown."""
    rows = [
        [row["case"], f"{row['difference']:.1e}", *(row["paths"].get(way, "") for way in ("forward", "backward"))]
        for row in result["rows"]
    ]
    return measure.table(["case", "difference", "forward", "backward"], rows)


def main(argv=None):
    parser = measure.parser(__doc__)
    parser.add_argument("--list", choices=("small", "heavy"), default="small", help="(default: small)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the script (default: cuda)")
    arguments = parser.parse_args(argv)
    try:
        backend = ba.backend.resolve(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    chosen = QUICK if arguments.quick else {"small": SMALL, "heavy": HEAVY}[arguments.list]
    result = {"rows": []}
    for case in chosen:
        result["rows"].append(one(backend, *case))
        path = measure.save(f"kernels-{arguments.list}", result, arguments.out)
    print("\n".join(tables(result)))
    print(f"wrote {path}")
    wrong = [
        row["case"]
        for row, case in zip(result["rows"], chosen, strict=True)
        if not row["difference"] <= BOUNDS[case[4]]
    ]
    if wrong:
        raise SystemExit(f"gradients differ: {'; '.join(wrong)}")
    return result


if __name__ == "__main__":
    measure.run(main)
