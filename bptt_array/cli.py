"""The command line: ``python -m bptt_array`` or ``bptt-array``."""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ._version import __version__
from .backend import DTYPES, cuda_description, cuda_device_count, resolve
from .cells import CELLS
from .distributed import communicator
from .divergence import DivergenceError
from .environment import version, versions
from .initializers import INITIALIZERS
from .jobs import Job
from .options import OF_THE_KEEPING, ON_DIVERGENCE, OPTIMIZERS, Options
from .signals import Stop
from .transports import NAMES as TRANSPORTS

if TYPE_CHECKING:
    from .checkpoints import Checkpoint
    from .runs import RunFolder
    from .training import Trainer

PROGRAM = "bptt-array"
#: Options of a run that may be others where it is resumed.
MAY_CHANGE = ("device", "transport", *OF_THE_KEEPING)


class CommandError(Exception):
    """What is wrong, in one line, for the person at the terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0, 1 (parity out of bounds), 2 (error), or 128 + the number of the first signal that ended training (Ctrl-C: 130).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A sample may hold what the terminal has not; lines have to be seen when they are written.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    options = argparse.Namespace()
    try:
        options = parser().parse_args(arguments)
        status: int = options.run(options)
        if sys.stdout is not None:  # it may have been closed before the program began
            sys.stdout.flush()
    except _FORESEEN as error:
        _tell(error, options)
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 2
    return status


#: Errors that one line is enough for.
_FORESEEN = (CommandError, ValueError, FloatingPointError, MemoryError, OSError, KeyboardInterrupt)


def _tell(error: BaseException, options: argparse.Namespace, whose: str = "") -> None:
    """Say what went wrong, in one line if it was to be foreseen; ``whose`` stands before it."""
    if isinstance(error, KeyboardInterrupt):
        _say(f"{whose}interrupted")
    elif not isinstance(error, _FORESEEN):
        _say(f"{whose}a mistake of the program")
        traceback.print_exception(error)
    else:
        _say(f"error: {whose}{_what(error, options)}")


def _what(error: BaseException, options: argparse.Namespace) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}); use a smaller --hidden or --batch"
    if not isinstance(error, OSError):
        return _in_flags(str(error), options)
    if error.errno is None:  # in our own words
        return str(error)
    if error.filename is None:  # standard output is closed or full: keep the interpreter from trying again
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the end of the process)
    return f"{error.filename or 'output'}: {error.strerror or error}"


def _say(message: str) -> None:
    """One line on standard error; what came from a file neither breaks it nor moves the cursor."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    print(f"{PROGRAM}: {line}", file=sys.stderr)


def _in_flags(message: str, options: argparse.Namespace) -> str:
    """An error of the library about an argument, in the words of the command line: eval_every=0 is --eval-every=0."""
    flags = {name: f"--{name.replace('_', '-')}" for name in vars(options)}
    for name, value in vars(options).items():
        shown = [repr(value), str(value), *([f"{value:g}"] if isinstance(value, float) else [])]
        for given in (f"{name}={text}" for text in shown):
            if message.startswith(given):
                flag = flags[name] if value is True else flags[name] + given.removeprefix(name)
                others = re.compile(r"\b(\w+(?==)|\w+_\w+)")  # names in the rest of the message
                return flag + others.sub(lambda word: flags.get(word[0], word[0]), message.removeprefix(given))
    return message


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


def train(options: argparse.Namespace) -> int:
    _need("train", "tqdm", "matplotlib")
    names = Options.__dataclass_fields__
    given = {name: value for name, value in vars(options).items() if name in (*names, *MAY_CHANGE)}
    for name in names:  # so that errors can name what was not given too
        vars(options).setdefault(name, getattr(Options, name))
    job = _job(given.pop("transport", None))
    go = _train_anew if options.resume is None else _resume
    with Stop() as stop:
        try:
            return job.run(lambda: go(options, given, stop, job), lambda error, whose: _tell(error, options, whose))
        except KeyboardInterrupt:  # a second signal
            _say("interrupted")
            return 128 + (stop.signal or signal.SIGINT)


def _job(transport: str | None) -> Job:
    """The job that this process belongs to."""
    try:
        ranks = communicator(transport or "auto")
    except ImportError as error:
        raise CommandError(str(error)) from None
    if ranks.size > 1:
        _need("train on several processes", "threadpoolctl")
    elif transport is not None:
        raise ValueError(f"--transport {transport} is for several processes, started by mpiexec; leave it out")
    return Job(ranks)


def _train_anew(options: argparse.Namespace, given: dict[str, Any], stop: Stop, job: Job) -> int:
    from .claims import new_run
    from .training import Trainer

    device = job.on_each(lambda: job.device(given.pop("device", "cpu")))
    chosen = job.on_each(lambda: Options(**given))
    source = [os.path.abspath(file) for file in options.files] or None
    text = job.at_first(lambda: _text(options.files))
    trainer = job.on_each(lambda: Trainer(text, chosen, device, source, job.ranks))
    with job.first_within(lambda: new_run(options.out)) as folder:
        if folder is not None:
            print(f"{trainer.rnn!r}")
            print(f"learning {_described(options.files)}: {_size(trainer)}{_shared(trainer, folder, job)}")
        return _run(trainer, folder, stop, job)


def _resume(options: argparse.Namespace, given: dict[str, Any], stop: Stop, job: Job) -> int:
    from .claims import resumed_run
    from .training import Trainer

    for name in given:
        if name not in MAY_CHANGE:
            flag = f"--{name.replace('_', '-')}"
            raise job.together(ValueError(f"{flag} belongs to the run from its beginning; leave it out with --resume"))
    with job.first_within(lambda: resumed_run(options.resume, _say)) as claimed:
        folder, found = (None, None) if claimed is None else claimed
        checkpoint: Any = job.at_first(lambda: found)
        device = job.on_each(lambda: job.device(given.pop("device", job.same_device(checkpoint.device))))
        source = [os.path.abspath(file) for file in options.files] or checkpoint.source
        text = job.at_first(lambda: _text_of(checkpoint, options.files))
        chosen = job.on_each(lambda: _options_of(checkpoint, given))
        trainer = job.on_each(
            lambda: Trainer.resumed(replace(checkpoint, source=source), text, chosen, device, job.ranks)
        )
        if folder is not None:
            folder.save_results(trainer)  # the run may have been killed between a checkpoint and what follows from it
            print(f"{trainer.rnn!r}")
            print(
                f"going on with {options.resume} after step {checkpoint.step} of {trainer.options.steps}, learning "
                f"{_described(source)}: {_size(trainer)}{_shared(trainer, folder, job)}"
            )
        return _run(trainer, folder, stop, job)


def _options_of(checkpoint: Checkpoint, given: dict[str, Any]) -> Options:
    try:
        return Options(**checkpoint.options | given)
    except TypeError as error:
        raise ValueError(f"the run's options cannot be used: {error}") from None


def _text_of(checkpoint: Checkpoint, files: Sequence[str]) -> str:
    """The text of a run, of its own files unless others are given."""
    for file in [] if files else checkpoint.source or []:
        if os.path.exists(file) and not os.path.isfile(file):
            raise ValueError(f"{file}, the text of the run, is no plain file; give the text: --resume RUN FILE")
    return _text(files or checkpoint.source or [])


def _text(files: Sequence[str]) -> str:
    from .text import language_reference, read_texts

    return read_texts(files) if files else language_reference()


def _described(files: Sequence[str] | None) -> str:
    return ", ".join(files or []) or "the language reference inside Python (pydoc_data.topics)"


def _size(trainer: Trainer) -> str:
    return f"{trainer.characters:,} characters, {len(trainer.vocabulary)} different"


def _shared(trainer: Trainer, folder: RunFolder, job: Job) -> str:
    """Of a job: who has how much of it, and what to do when it is ended by force, which nobody can say then."""
    if job.alone:
        return ""
    batch, size = trainer.options.batch, job.ranks.size
    each = f"{batch // size}" if batch % size == 0 else f"{batch // size} or {batch // size + 1}"
    return (
        f"\non {size} ranks ({job.environment['MPI']}), each with {each} of {batch} streams; if one of them dies, the "
        f"job ends; to go on from the last checkpoint: {job.command('train', '--resume', str(folder.path))}"
    )


def _run(trainer: Trainer, folder: RunFolder | None, stop: Stop, job: Job) -> int:
    """Train, from wherever the trainer is, into a folder (None: that is another rank's); say how it went."""
    from .runs import RunListener, SilentListener
    from .sampling import sample as write

    if folder is None:
        try:
            trainer.run(SilentListener(stop))
        except DivergenceError as error:
            raise job.together(FloatingPointError(str(error))) from None
        return 0
    if changed := folder.describe(trainer.rnn.backend.name, job.environment):
        _say(f"not as it was when the run was last started, and so perhaps not to the last bit: {', '.join(changed)}")
    with RunListener(trainer, folder, stop, _say) as listener:
        try:
            trainer.run(listener)
        except DivergenceError as error:
            folder.diverged = True
            raise job.together(FloatingPointError(f"{error}{listener.way_out()}")) from None
    folder.save_plot(trainer)
    if trainer.step < trainer.options.steps:
        go_on = job.command("train", "--resume", str(folder.path))
        _say(f"interrupted after step {trainer.step}; what was learnt is in {folder.path}; to go on: {go_on}")
        return 128 + (stop.signal or signal.SIGTERM)
    print(f"\nSaved in {folder.path}. For more text, and for a page that shows the run:")
    for command in ("sample", "report"):
        print(shlex.join([sys.executable, "-m", "bptt_array", command, str(folder.path)]))
    print(f"\nA sample (temperature 0.8):\n\n{write(trainer.rnn, trainer.vocabulary, seed=trainer.options.seed)}\n")
    return 0


def sample(options: argparse.Namespace) -> int:
    from .runs import load
    from .sampling import sample as write

    rnn, vocabulary = load(options.folder, options.device)
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
    _need("report", "matplotlib")
    from .report import write_report

    print(f"wrote {write_report(options.folder, options.out)}")
    return 0


def _need(command: str, *packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise CommandError(f"{command} needs {names}: pip install {' '.join(missing)} (the extra `train`)")


def parity(options: argparse.Namespace) -> int:
    from .parity import compare_devices, table

    backend = resolve(options.device)
    rows = compare_devices(backend)
    print(f"{backend.name} against NumPy in float64; largest difference relative to the largest value\n")
    print(table(rows))
    wrong = sum(not row.ok for row in rows)
    print(f"\n{len(rows) - wrong} of {len(rows)} within bounds")
    return 1 if wrong else 0


def info(options: argparse.Namespace) -> int:
    for name, found in {**versions(), "mpi4py": version("mpi4py")}.items():
        print(f"{name:<17} {found}")
    print("device cpu        NumPy")
    count = cuda_device_count()
    for index in range(count):
        print(f"device cuda:{index}     {cuda_description(index)}")
    if not count:
        try:
            resolve("cuda")
        except ValueError as reason:
            print(f"no CUDA           {reason}")
    return 0
