"""The flags of every command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from .._version import __version__
from ..backend.portable import DTYPES
from ..distributed.transports import NAMES as TRANSPORTS
from ..rnn.cells import CELLS
from ..rnn.initializers import INITIALIZERS
from ..training.options import ON_DIVERGENCE, OPTIMIZERS, Options
from .commands import info, parity, report, sample
from .errors import PROGRAM
from .train import MAY_CHANGE, train


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but for None, "" and False, whose meaning is in the help text itself.

    Options of a run have no default here, so that it shows which were given: their defaults are those of Options.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default is argparse.SUPPRESS and action.dest in Options.__dataclass_fields__:
            default = getattr(Options, action.dest)
            return action.help if default is None or default is False else f"{action.help} (default: {default})"
        hidden = default is False or default in (None, "", [])
        return action.help if hidden else super()._get_help_string(action)


def _path(text: str) -> Path:
    """An argument that names a file or folder: nothing is no name."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    formatter = _Formatter
    rates = ", ".join(f"{name} {lr:g}" for name, (_, lr) in OPTIMIZERS.items())
    top = _Parser(prog=PROGRAM, description="Recurrent networks by backpropagation through time.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add = commands.add_parser(
        "train",
        help="learn a text character by character",
        formatter_class=formatter,
        argument_default=argparse.SUPPRESS,
    )
    add.set_defaults(run=train)
    add.add_argument(
        "files",
        nargs="*",
        default=[],
        metavar="FILE",
        help="UTF-8 texts (default: the language reference inside Python)",
    )
    add.add_argument("--cell", choices=CELLS, help="what a step of the recurrence computes")
    add.add_argument("--hidden", type=int, metavar="H", help="hidden units of a layer")
    add.add_argument("--layers", type=int, metavar="L", help="layers, each above the states of the last")
    add.add_argument(
        "--bidirectional",
        action="store_true",
        help="an error here: a second direction would read the characters to be predicted",
    )
    add.add_argument(
        "--members",
        type=int,
        metavar="E",
        help="train an ensemble of E networks side by side on the same text, with the seeds from SEED on (default: one "
        "network)",
    )
    add.add_argument(
        "--dropout",
        type=float,
        metavar="P",
        help="part of the states between layers that is left out of a training step",
    )
    add.add_argument(
        "--recurrent-dropout",
        type=float,
        metavar="P",
        help="the same of the states that go on to the next time step",
    )
    add.add_argument("--seq-len", type=int, metavar="T", help="time steps per update")
    add.add_argument("--batch", type=int, metavar="N", help="streams of text read side by side")
    add.add_argument("--steps", type=int, help="updates")
    add.add_argument("--lr", type=float, help=f"learning rate, falling linearly to zero (default: {rates})")
    add.add_argument("--optimizer", choices=OPTIMIZERS, help="update rule")
    add.add_argument(
        "--clip",
        type=float,
        metavar="NORM",
        help="clip the global gradient norm to this; 0: do not clip",
    )
    add.add_argument("--init", choices=INITIALIZERS, help="initial W_hh")
    add.add_argument(
        "--forget-bias",
        type=float,
        metavar="B",
        help="of an lstm, added to the initial bias of its forget gate; 1 lets it begin by remembering",
    )
    add.add_argument("--validation", type=float, metavar="PART", help="part of the text held out")
    add.add_argument("--eval-every", type=int, metavar="STEPS", help="validate that often (default: ten times)")
    add.add_argument(
        "--checkpoint-every", type=int, metavar="STEPS", help="a checkpoint that often (default: ten times)"
    )
    add.add_argument("--keep-checkpoints", type=int, metavar="K", help="the last K checkpoints are kept")
    add.add_argument(
        "--on-divergence",
        choices=ON_DIVERGENCE,
        help="where a loss or gradient is no number: stop, or go back to the last checkpoint and on with half the "
        "learning rate",
    )
    add.add_argument(
        "--diagnose-every",
        type=int,
        metavar="STEPS",
        help="write how the gradient flows through time into the run folder that often (default: never)",
    )
    add.add_argument("--device", help="cpu, cuda, cuda:1 (and so on) or auto (default: cpu)")
    add.add_argument(
        "--transport",
        choices=("auto", *TRANSPORTS),
        help="of a job that mpiexec started on GPUs, how gradients travel: by NCCL, by an MPI that takes a device's "
        "memory, or through the host's (default: the first that there is)",
    )
    add.add_argument("--dtype", choices=DTYPES, help="of weights, states and gradients")
    add.add_argument("--seed", type=int, help="of the initial weights, of dropout and of the sample")
    where = add.add_mutually_exclusive_group()
    where.add_argument(
        "--out", type=_path, default=None, metavar="RUN", help="new run folder (default: runs/DATE-TIME)"
    )
    where.add_argument(
        "--resume",
        type=_path,
        default=None,
        metavar="RUN",
        help="go on with a run that was stopped, from its last checkpoint to the same bits, with its own text (FILE: "
        "where that is now) and options, but for "
        f" {', '.join(f'--{name}'.replace('_', '-') for name in MAY_CHANGE)}",
    )

    add = commands.add_parser("sample", help="write text with a trained network", formatter_class=formatter)
    add.set_defaults(run=sample)
    add.add_argument("folder", type=Path, metavar="RUN", help="run folder that train wrote")
    add.add_argument("--prompt", default="", help="beginning of the text (default: a line break, unseen)")
    add.add_argument("--length", type=int, default=500, help="characters to write")
    add.add_argument(
        "--temperature", type=float, default=0.8, help="below 1 more cautious, above 1 wilder, 0: always the likeliest"
    )
    add.add_argument("--seed", type=int, default=0, help="of the choice of characters")
    add.add_argument(
        "--member", type=int, metavar="K", help="of an ensemble, 0 to E-1 (default: the mean of all probabilities)"
    )
    add.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (and so on) or auto")

    add = commands.add_parser("report", help="write a page about a training run", formatter_class=formatter)
    add.set_defaults(run=report)
    add.add_argument("folder", type=Path, metavar="RUN", help="run folder that train wrote, or is writing")
    add.add_argument("--out", type=_path, metavar="FILE", help="the page, one HTML file (default: RUN/report.html)")

    add = commands.add_parser(
        "parity", help="compare a device with NumPy in float64, every gradient", formatter_class=formatter
    )
    add.set_defaults(run=parity)
    add.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (and so on) or auto")

    add = commands.add_parser("info", help="print versions and devices")
    add.set_defaults(run=info)
    return top
