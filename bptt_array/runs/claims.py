"""Who may write to a run folder: one process at a time."""

from __future__ import annotations

import contextlib
import errno
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..serialization import flush_folder, remove_unfinished
from ..training.checkpoint import Checkpoint
from .checkpoints import FOLDER as CHECKPOINTS
from .checkpoints import newest_checkpoint
from .folder import DIAGNOSES, RunFolder
from .held import Held


@contextlib.contextmanager
def new_run(path: Path | None) -> Iterator[RunFolder]:
    """Claim a new run folder; if it came to nothing, leave nothing behind.

    Raises
    ------
    ValueError
        If the folder holds anything, or another run is writing there.
    """
    made = path is None or not path.exists()
    path = _default_folder() if path is None else path
    with contextlib.ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(alone_in(path))
            if any(path.iterdir()):
                raise FileExistsError
        except FileExistsError:
            raise ValueError(f"out={path} exists and is not an empty folder; choose another name") from None
        folder = RunFolder(path, held)
        try:
            flush_folder(path.parent)
            yield folder
        finally:
            if held.is_here and not folder.worth_keeping:
                with contextlib.suppress(OSError):
                    folder.remove()
                    if made:
                        path.rmdir()


@contextlib.contextmanager
def resumed_run(path: Path, say: Callable[[str], None]) -> Iterator[tuple[RunFolder, Checkpoint]]:
    """Claim a run folder that was left, and its last checkpoint that can be read.

    Raises
    ------
    ValueError
        If it is no run folder, has no checkpoint that can be read, or another run is writing there.
    """
    if not path.is_dir():
        instead = "; a new run begins with the weights of a model by --init-from" if path.is_file() else ""
        raise ValueError(f"{path} is no run folder; expected one that `train` wrote{instead}")
    with alone_in(path) as held:
        for folder in (path, path / CHECKPOINTS, path / DIAGNOSES):
            remove_unfinished(folder)
        yield RunFolder(path, held), newest_checkpoint(path, say)


@contextlib.contextmanager
def alone_in(path: Path) -> Iterator[Held]:
    """Hold the folder for this process, as long as it lives; the system lets go of it, however the process ends.

    Where a system or a file system has no locks others may hold it too.
    """
    with Held(path) as held:
        if held.handle is not None:
            _lock(held.handle, path)
        held.check()  # it may have been moved before it was locked
        yield held


def _lock(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # a system without locks
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise ValueError(f"{path} is in use by another run, which is writing there; wait for its end") from None


def _default_folder() -> Path:
    """A new folder named after the time, and after nobody else's."""
    stem = time.strftime("%Y%m%d-%H%M%S")
    for count in itertools.count(1):
        folder = Path("runs") / (stem if count == 1 else f"{stem}-{count}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable")
