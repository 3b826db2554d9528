"""The other commands: sample, report, parity, info."""

from __future__ import annotations

import argparse
import importlib.util

from ..backend.cuda import cuda_description, cuda_device_count
from ..backend.devices import resolve
from ..rnn.cells import CELLS
from ..runs.environment import version, versions
from .errors import CommandError


def sample(options: argparse.Namespace) -> int:
    from ..runs.folder import load
    from ..training.sampling import sample as write

    rnn, vocabulary = load(options.run_or_model, options.device)
    text = write(
        rnn,
        vocabulary,
        options.prompt,
        length=options.length,
        temperature=options.temperature,
        seed=options.seed,
        member=options.member,
    )
    print(options.prompt + text)
    return 0


def report(options: argparse.Namespace) -> int:
    need("report", "matplotlib")
    from ..runs.report import write_report

    print(f"wrote {write_report(options.folder, options.out)}")
    return 0


def need(command: str, *packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise CommandError(f"{command} needs {names}: pip install {' '.join(missing)} (the extra `train`)")


def parity(options: argparse.Namespace) -> int:
    from ..parity import compare_devices, table

    backend = resolve(options.device)
    rows = compare_devices(backend)
    print(f"{backend.name} against NumPy in float64; largest difference relative to the largest value\n")
    print(table(rows))
    wrong = sum(not row.ok for row in rows)
    print(f"\n{len(rows) - wrong} of {len(rows)} within bounds")
    return 1 if wrong else 0


def kernels_of(index: int) -> str:
    """Up to which H a segment of time is one launch each way on a CUDA device, by the model of its layouts."""
    backend = resolve(f"cuda:{index}")
    if not backend.persistent:
        return "time is a launch a step: kernels for segments are off (BPTT_ARRAY_PERSISTENT)"
    from ..kernels.segments import widest

    with backend.active():
        widths = {name: widest(backend, cell, N=32) for name, cell in CELLS.items() if name != "relu"}
    found = ", ".join(f"{name} {width}" for name, width in widths.items() if width)
    return f"one launch a segment of time up to H = {found} (float32, N=32)"


def info(options: argparse.Namespace) -> int:
    for name, found in {**versions(), "mpi4py": version("mpi4py")}.items():
        print(f"{name:<17} {found}")
    print("device cpu        NumPy")
    count = cuda_device_count()
    for index in range(count):
        print(f"device cuda:{index}     {cuda_description(index)}")
        print(f"                  {kernels_of(index)}")
    if not count:
        try:
            resolve("cuda")
        except ValueError as reason:
            print(f"no CUDA           {reason}")
    return 0
