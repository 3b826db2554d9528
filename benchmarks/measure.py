"""How time and memory are measured, what the machine is, and how results are told: shared by every script here."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

#: Where results go unless told otherwise: report.py alone writes to this folder.
OUT = Path("runs") / "benchmarks"

#: How much of the cores others may use before a run is called disturbed.
QUIET = 0.1

#: After another library's work its idle threads still spin, for up to a tenth of a second with OpenBLAS.
SETTLE_S = 0.12


def cores():
    """The cores this process may use; JAX, which has no setting of its own, takes as many threads."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))


def _bind(to):
    """Let every thread of this process, those of libraries too, use these cores and no others."""
    if hasattr(os, "sched_setaffinity"):
        for thread in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else [0]:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread), to)


@contextlib.contextmanager
def threads(count, *, peers=True):
    """The same number of threads for every library. Enter before torch or JAX is imported; ``peers``: they will be."""
    available = cores()
    if count > len(available):
        raise SystemExit(f"--threads {count}: this process may use {len(available)} cores")
    _bind(available[:count])
    from threadpoolctl import threadpool_limits

    if peers and "torch" in installed_versions():
        import torch

        torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        _bind(available)


def busy(seconds=0.5):
    """The part of all cores that others use while this process sleeps, 0 to 1; None without /proc/stat."""

    def read():
        user, nice, system, idle, iowait, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
        return user + nice + system, idle + iowait

    time.sleep(SETTLE_S)
    try:
        worked, idle = read()
        time.sleep(seconds)
        worked, idle = (after - before for after, before in zip(read(), (worked, idle), strict=True))
    except (OSError, ValueError):
        return None
    return worked / max(1, worked + idle)


@contextlib.contextmanager
def busy_loops(count):
    """So many programs that each use a core."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def alternate(functions, repetitions, seconds, least=3):
    """Call each function in turn, ``repetitions`` times around, each time beginning with another one.

    Every turn begins with a pause in which the threads of the one before go to sleep, and a call that is not
    timed; then calls are timed, one by one, until ``seconds`` have gone by and at least ``least`` times.

    Returns
    -------
    dict
        Seconds of every timed call, by name.
    """
    times = {name: [] for name in functions}
    order = list(functions.items())
    for k in range(repetitions):
        first = k % len(order)
        for name, function in order[first:] + order[:first]:
            time.sleep(SETTLE_S)
            function()
            began = last = time.perf_counter()
            calls = 0
            while calls < least or last - began < seconds:
                function()
                now = time.perf_counter()
                times[name].append(now - last)
                last = now
                calls += 1
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


def peak_of_process():
    """The peak of this process's resident memory in bytes, since it began or the mark was set anew."""
    try:
        return _resident("VmHWM")
    except OSError:  # no /proc
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _give_back():
    """What was let go of goes back to the system, where the C library has a call for that (glibc).

    A step would else find room that the making of its weights has left, and that is not counted.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_from_now():
    """A function that says by how many bytes the peak of resident memory has grown, and since when: see below."""
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
        before, since = _resident("VmRSS"), "the step"
    except OSError:  # no /proc: the mark since the process began
        before, since = peak_of_process(), "the process"
    return lambda: {"bytes": peak_of_process() - before, "since": since}


def _memory_of_a_step(prepare, arguments, count):
    with threads(count):
        run = prepare(*arguments)
        peak = peak_from_now()
        run()
        run()
        return peak()


def peak_memory(prepare, arguments, count):
    """``bytes`` by which two steps raise the peak of resident memory in a fresh process.

    The peak counts ``since`` the step began or, where the system cannot reset it, since the process did: the bytes
    are then too few by what the process had let go of. ``prepare(*arguments)`` returns the step, with its data and
    weights in place and its libraries warm.
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
        "statsmodels",
        "aeon",
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


def _commit():
    """The commit of this checkout, with a + where files differ from it; None without git."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        code = [":(top)bptt_array", ":(top)benchmarks/*.py"]
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed else "")


def environment(count, command, busy_before):
    """Machine, versions, date and command, for the head of a table; ``busy_before``: see :func:`busy`."""
    from threadpoolctl import threadpool_info

    pools = {
        " ".join(part for part in map(pool.get, ("internal_api", "version", "architecture")) if part): pool[
            "num_threads"
        ]
        for pool in threadpool_info()
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
        "busy_before": [b for b in busy_before if b is not None],
        "commit": _commit(),
        "versions": installed_versions(),
    }


def command(script):
    """This call, as one would type it in the project's folder; with what is set for OpenBLAS, if anything."""
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("OPENBLAS_")]
    return shlex.join([*settings, "python", f"benchmarks/{Path(script).name}", *sys.argv[1:]])


def describe(about):
    """The environment as lines of text."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    pools = ", ".join(f"{name}: {count}" for name, count in about["thread_pools"].items())
    return [
        f"{about['date']}, `{about['command']}`",
        f"{about['processor']}, {about['cores']} cores, {about['system']}; {about['threads']} threads ({pools})",
        f"Python {about['python']}, {versions}",
        *_quiet(about["busy_before"]),
    ]


def _quiet(busy_before):
    if not busy_before:
        return []
    most = max(busy_before)
    said = f"Other programs used {100 * most:.0f} % of the cores at most, looked at before every row"
    return [said + (": NOT A QUIET MACHINE" if most > QUIET else "")]


def unsteady(entries):
    """A line that names what varied by more than half, of ``(label, summary)`` pairs; none if nothing did."""
    found = [label for label, times in entries if times["p90_ms"] > 1.5 * times["p10_ms"]]
    return [f"90th percentile over 1.5 times the 10th: {', '.join(found)}.", ""] if found else []


def up(value):
    """A bound in one digit that holds: rounded up."""
    decimal = Decimal(value)
    exponent = Decimal(1).scaleb(decimal.adjusted())
    return f"{(decimal / exponent).to_integral_value(ROUND_CEILING) * exponent:.0e}" if value else "0"


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


def save(name, result, out):
    """Write ``out/results/NAME.json``, whole or not at all; returns its path."""
    folder = out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path, new = folder / f"{name}.json", folder / f".{name}.json.new"
    new.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
    return path


def save_figure(figure, name, out):
    """Write ``out/images/NAME.png``, whole or not at all; returns its path."""
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    path, new = folder / f"{name}.png", folder / f".{name}.new.png"
    figure.savefig(new, dpi=130, metadata={"Software": None})
    new.replace(path)
    return path


def positive(text):
    """A whole number above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def parser(about):
    """Options that all scripts share; ``about``: a script's docstring."""
    made = argparse.ArgumentParser(description=about.splitlines()[0])
    count = min(2, len(cores()))
    made.add_argument("--threads", type=positive, default=count, help=f"of every library (default: {count})")
    made.add_argument("--quick", action="store_true", help="small sizes, few turns, for a first look")
    made.add_argument("--out", type=Path, default=OUT, help=f"folder for results/ and images/ (default: {OUT})")
    return made


def add_turns(made, repetitions, seconds):
    """Options of the scripts whose peers take turns."""
    made.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(default: float32)")
    made.add_argument("--repetitions", type=positive, default=repetitions, help=f"turns (default: {repetitions})")
    made.add_argument("--seconds", type=float, default=seconds, help=f"of timed calls a turn (default: {seconds})")


def run(main):
    """``main()`` of a script; Ctrl-C ends it with a word."""
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted: what was not said to be written is not") from None
