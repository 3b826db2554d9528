"""How time and memory are measured, and what the machine is: shared by every script of this folder."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

#: After another library's work its idle threads still spin, for up to a tenth of a second with OpenBLAS.
SETTLE_S = 0.12


@contextlib.contextmanager
def threads(count):
    """The same number of threads for every library. Enter before any of them is imported."""
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if available is not None and count < len(available):
        os.sched_setaffinity(0, available[:count])  # JAX has no setting of its own: it counts these
    from threadpoolctl import threadpool_limits

    if "torch" in installed_versions():
        import torch

        torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        if available is not None:
            os.sched_setaffinity(0, available)


def alternate(functions, repetitions, seconds):
    """Call each function in turn, ``repetitions`` times around.

    Every turn begins with a pause in which the threads of the one before go to sleep, and a call that is not
    timed; then calls are timed, one by one, until ``seconds`` have gone by.

    Returns
    -------
    dict
        Seconds of every timed call, by name.
    """
    times = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            time.sleep(SETTLE_S)
            function()
            began = last = time.perf_counter()
            while last - began < seconds:
                function()
                now = time.perf_counter()
                times[name].append(now - last)
                last = now
    return times


def summary(times):
    """Median and spread of seconds, in milliseconds, and how many there were."""
    if len(times) > 1:
        p10, *_, p90 = statistics.quantiles(times, n=10, method="inclusive")
    else:
        p10 = p90 = times[0]
    return {
        "median_ms": statistics.median(times) * 1e3,
        "p10_ms": p10 * 1e3,
        "p90_ms": p90 * 1e3,
        "calls": len(times),
    }


def _resident(field):
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _memory_of_a_step(prepare, arguments, count):
    with threads(count):
        run = prepare(*arguments)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
            before, peak = _resident("VmRSS"), lambda: _resident("VmHWM")
        except OSError:  # no /proc: the mark since the process began
            unit = 1 if sys.platform == "darwin" else 1024
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit  # noqa: E731
        run()
        run()
        return peak() - before


def peak_memory(prepare, arguments, count):
    """Bytes by which two steps raise the peak of resident memory, in a fresh process.

    ``prepare(*arguments)`` returns the step, with its data and weights in place and its libraries warm.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_memory_of_a_step, prepare, arguments, count).result()


def installed_versions():
    """Versions of what is compared, where it is installed."""
    names = [
        "bptt-array",
        "numpy",
        "array-api-compat",
        "torch",
        "jax",
        "autograd",
        "cupy",
        "cupy-cuda12x",
        "cupy-cuda13x",
    ]
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment(count, command):
    """Machine, versions, date and command, for the head of a table."""
    from threadpoolctl import threadpool_info

    pools = {
        f"{pool['internal_api']} {pool.get('version') or ''}".strip(): pool["num_threads"] for pool in threadpool_info()
    }
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": count,
        "thread_pools": pools,
        "versions": installed_versions(),
    }


def command(script):
    """This call, as one would type it in the project's folder."""
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *sys.argv[1:]])


def describe(about):
    """The environment as lines of text."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    pools = ", ".join(f"{name}: {count}" for name, count in about["thread_pools"].items())
    return [
        f"{about['date']}, `{about['command']}`",
        f"{about['processor']}, {about['cores']} cores, {about['system']}; {about['threads']} threads ({pools})",
        f"Python {about['python']}, {versions}",
    ]


def table(head, rows):
    """A Markdown table whose columns also line up as plain text; all but the first to the right."""
    cells = [head, *rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]

    def line(row):
        aligned = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        return "| " + " | ".join(aligned) + " |"

    rule = "|" + "|".join("-" * (widths[0] + 2) if k == 0 else "-" * (w + 1) + ":" for k, w in enumerate(widths)) + "|"
    return [line(head), rule, *map(line, rows)]


def save(name, result, folder=RESULTS):
    """Write ``results/NAME.json``; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path
