"""``python on_job.py FAULT ARGUMENTS``: the command line with a fault in it, for what real ranks do about it."""

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

from bptt_array import cli, distributed
from bptt_array.cli import flags
from bptt_array.cli.train import _job
from bptt_array.runs import folder as runs
from bptt_array.training import trainer as training

FAULT, *ARGUMENTS = sys.argv[1:]
STEP = 10


def of_rank(rank, fault):
    """Let ``fault(trainer)`` happen to one rank before update number STEP."""
    update = training.Trainer.update

    def spoiled(self, x, target, state, step, stop):
        if step == STEP and self.ranks.rank == rank:
            fault(self)
        return update(self, x, target, state, step, stop)

    training.Trainer.update = spoiled


def error(exception):
    def fail(trainer):
        raise exception

    return fail


def changed(trainer):
    trainer.rnn.params["W_hy"][0, 0] += 1e-6


def not_a_number(trainer):
    trainer.rnn.params["W_hy"][0, 0] = float("nan")


def die(trainer):
    os.kill(os.getpid(), signal.SIGKILL)


def terminate(trainer):
    os.kill(os.getpid(), signal.SIGTERM)


def move(trainer):
    """Let the run folder of this job be called otherwise, and something else have its name."""
    folder = Path(ARGUMENTS[ARGUMENTS.index("--out") + 1])
    folder.rename(folder.with_name("moved"))
    folder.mkdir()
    (folder / "mine").touch()


def twice(trainer):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def in_validation(rank):
    """A signal when the second validation has begun."""
    once, count = training.Trainer.evaluate, []

    def spoiled(self, *arguments):
        count.append(1)
        if len(count) == 2 and self.ranks.rank == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return once(self, *arguments)

    training.Trainer.evaluate = spoiled


def on_start(rank, exception):
    make = training.Trainer.__init__

    def spoiled(self, text, options, device, source, ranks, *more):
        if ranks.rank == rank:
            raise exception
        make(self, text, options, device, source, ranks, *more)

    training.Trainer.__init__ = spoiled


def full_disk():
    save = runs.RunFolder.save

    def spoiled(self, trainer, checkpoint):
        if checkpoint.step > STEP:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        save(self, trainer, checkpoint)

    runs.RunFolder.save = spoiled


def threads():
    """Say how many threads this rank has, instead of training."""
    import threadpoolctl

    def told(options):
        _job(None)
        return print(json.dumps([pool["num_threads"] for pool in threadpoolctl.threadpool_info()])) or 0

    flags.train = told


FAULTS = {
    "die": lambda: of_rank(1, die),
    "die-first": lambda: of_rank(0, die),
    "terminate": lambda: of_rank(1, terminate),
    "move": lambda: of_rank(1, move),
    "in-validation": lambda: in_validation(1),
    "twice": lambda: of_rank(1, twice),
    "error": lambda: of_rank(1, error(OSError(errno.EIO, "Input/output error", "/data"))),
    "mistake": lambda: of_rank(1, error(KeyError("a mistake"))),
    "changed": lambda: of_rank(1, changed),
    "not-a-number": lambda: of_rank(1, not_a_number),
    "no-memory": lambda: on_start(1, MemoryError("Unable to allocate 1.00 TiB")),
    "full-disk": full_disk,
    "threads": threads,
}

if __name__ == "__main__":
    if "ERRORS_TO" in os.environ:  # see mpi.py
        os.dup2(os.open(f"{os.environ['ERRORS_TO']}/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    FAULTS[FAULT]()
    assert distributed.launched() > 1
    sys.exit(cli.main(ARGUMENTS))
