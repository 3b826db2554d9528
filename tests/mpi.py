"""Programs started by ``mpiexec``: real ranks, on this machine."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
#: Where programs find what they import.
FOLDERS = [TESTS, TESTS.parent / "benchmarks"]
BESIDE = Path(sys.executable).parent / "mpiexec"
MPIEXEC = str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")

needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpi4py and an mpiexec: pip install mpi4py mpich",
)

#: What Open MPI asks of those who start it as root, or with more ranks than cores; and one thread each, as tests of
#: several ranks on a few cores want it.
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


def start(ranks, *command, **environment):
    """``mpiexec -n RANKS python COMMAND``, in a process group of its own; the tests' modules can be imported."""
    path = os.pathsep.join(map(str, [*FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])]))
    return subprocess.Popen(
        [MPIEXEC, "-n", str(ranks), sys.executable, *map(str, command)],
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": path} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, seconds=300):
    """Its exit status and what it wrote, ``(status, out, err)``; what takes longer hangs, and is a failure."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"still there after {seconds} s; it had written:\n{out}\n{err}")
    return process.returncode, out, err


def run(ranks, *command, seconds=300, **environment):
    """:func:`start` and :func:`finish`.

    The tests' own programs write errors to files in a folder, and what these hold is added here: an mpiexec whose job
    is ended by force may lose what was written just before, above all on a busy machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        status, out, err = finish(start(ranks, *command, ERRORS_TO=folder, **environment), seconds)
        return status, out, err + "".join(path.read_text(encoding="utf-8") for path in Path(folder).iterdir())
