"""The flags of every command."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .._version import __version__
from ..distributed.transports import NAMES as TRANSPORTS
from ..training.beginning import OF_THE_NETWORK
from ..training.options import Options
from .commands import info, parity, report, sample
from .errors import PROGRAM
from .train import MAY_CHANGE, train


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """``--prompt=--`` has the value ``--``; Pythons before 3.13 drop it, which leaves no value at all."""
        values = super()._get_values(action, list(arg_strings))
        dropped = values == [] and action.option_strings and arg_strings == ["--"]
        return super()._get_values(action, ["--", "--"]) if dropped else values


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


#: What the text after a flag becomes, by what the option is said to be.
_TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}


def _add_option(add: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    """The flag of an option of a run: eval_every is --eval-every."""
    flag, meaning = f"--{field.name.replace('_', '-')}", field.metadata["help"]
    kind = str(field.type).partition(" ")[0]  # "int | None": no flag, no value
    if kind == "bool":
        add.add_argument(flag, action="store_true", help=meaning)
    elif field.metadata["choices"] is not None:
        add.add_argument(flag, choices=field.metadata["choices"], help=meaning)
    else:
        add.add_argument(flag, type=_TYPES[kind], metavar=field.metadata["metavar"], help=meaning)


def parser() -> argparse.ArgumentParser:
    formatter = _Formatter
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
        help="UTF-8 texts, also packed by gzip, bzip2 or xz; - is standard input (default: the language reference "
        "inside Python)",
    )
    for field in dataclasses.fields(Options):
        _add_option(add, field)
    add.add_argument("--device", help="cpu, cuda, cuda:1 (and so on) or auto (default: cpu)")
    add.add_argument(
        "--transport",
        choices=("auto", *TRANSPORTS),
        help="of a job that mpiexec started on GPUs, how gradients travel: by NCCL, by an MPI that takes a device's "
        "memory, or through the host's (default: the first that there is)",
    )
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
        f"{', '.join(f'--{name}'.replace('_', '-') for name in MAY_CHANGE)}; a finished one is made longer (--steps)",
    )
    add.add_argument(
        "--init-from",
        type=_path,
        metavar="RUN",
        help="begin a new run with the weights of another, whose folder or model.safetensors this is, and learn FILE "
        "with them; they decide "
        f"{', '.join(f'--{name}' for name in OF_THE_NETWORK)}. A character that they do not know begins with weights "
        "of its own, one that FILE does not have is still known",
    )

    add = commands.add_parser("sample", help="write text with a trained network", formatter_class=formatter)
    add.set_defaults(run=sample)
    add.add_argument(
        "run_or_model", type=Path, metavar="RUN", help="run folder that train wrote, or its model.safetensors"
    )
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
