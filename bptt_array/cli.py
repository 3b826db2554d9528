"""The command line: ``python -m bptt_array`` or ``bptt-array``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import itertools
import os
import platform
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from . import __version__
from .backend import DTYPES, cuda_description, cuda_device_count, resolve
from .cells import CELLS
from .initializers import INITIALIZERS
from .training import METRICS, MODEL, OPTIMIZERS, Options

PROGRAM = "bptt-array"


class CommandError(Exception):
    """What is wrong, in one line, for the person at the terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0, 1 (parity out of bounds), 2 (error), or 128 + the number of the signal that ended training (Ctrl-C: 130).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A sample may hold what the terminal has not; lines have to be seen when they are written.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    options = argparse.Namespace()
    try:
        options = parser().parse_args(arguments)
        status: int = options.run(options)
        sys.stdout.flush()
    except (CommandError, ValueError, FloatingPointError) as error:
        return _fail(_in_flags(str(error), options))
    except MemoryError as error:
        return _fail(f"not enough memory ({error}); use a smaller --hidden or --batch")
    except OSError as error:
        if error.filename is None:  # standard output is closed or full: keep the interpreter from trying again
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the end of the process)
        return _fail(f"{error.filename or 'output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return status


def _fail(message: str) -> int:
    message = message.replace("\n", "\\n")
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    return 2


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
    """Shows defaults, but for None, "" and False, whose meaning is in the help text itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        hidden = action.default is False or action.default in (None, "", [])
        return action.help if hidden else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    formatter = _Formatter
    rates = ", ".join(f"{name} {lr:g}" for name, (_, lr) in OPTIMIZERS.items())
    top = _Parser(prog=PROGRAM, description="Recurrent networks by backpropagation through time.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add = commands.add_parser("train", help="learn a text character by character", formatter_class=formatter)
    add.set_defaults(run=train)
    add.add_argument(
        "files", nargs="*", metavar="FILE", help="UTF-8 texts (default: the language reference inside Python)"
    )
    add.add_argument("--cell", choices=CELLS, default=Options.cell, help="what a step of the recurrence computes")
    add.add_argument("--hidden", type=int, default=Options.hidden, metavar="H", help="hidden units of a layer")
    add.add_argument(
        "--layers", type=int, default=Options.layers, metavar="L", help="layers, each above the states of the last"
    )
    add.add_argument(
        "--bidirectional",
        action="store_true",
        default=Options.bidirectional,
        help="an error here: a second direction would read the characters to be predicted",
    )
    add.add_argument(
        "--members",
        type=int,
        default=Options.members,
        metavar="E",
        help="train an ensemble of E networks side by side on the same text, with the seeds from SEED on (default: one "
        "network)",
    )
    add.add_argument(
        "--dropout",
        type=float,
        default=Options.dropout,
        metavar="P",
        help="part of the states between layers that is left out of a training step",
    )
    add.add_argument(
        "--recurrent-dropout",
        type=float,
        default=Options.recurrent_dropout,
        metavar="P",
        help="the same of the states that go on to the next time step",
    )
    add.add_argument("--seq-len", type=int, default=Options.seq_len, metavar="T", help="time steps per update")
    add.add_argument("--batch", type=int, default=Options.batch, metavar="N", help="streams of text read side by side")
    add.add_argument("--steps", type=int, default=Options.steps, help="updates")
    add.add_argument("--lr", type=float, help=f"learning rate, falling linearly to zero (default: {rates})")
    add.add_argument("--optimizer", choices=OPTIMIZERS, default=Options.optimizer, help="update rule")
    add.add_argument(
        "--clip",
        type=float,
        default=Options.clip,
        metavar="NORM",
        help="clip the global gradient norm to this; 0: do not clip",
    )
    add.add_argument("--init", choices=INITIALIZERS, default=Options.init, help="initial W_hh")
    add.add_argument(
        "--forget-bias",
        type=float,
        default=Options.forget_bias,
        metavar="B",
        help="of an lstm, added to the initial bias of its forget gate; 1 lets it begin by remembering",
    )
    add.add_argument(
        "--validation", type=float, default=Options.validation, metavar="PART", help="part of the text held out"
    )
    add.add_argument("--eval-every", type=int, metavar="STEPS", help="validate that often (default: ten times)")
    add.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (and so on) or auto")
    add.add_argument("--dtype", choices=DTYPES, default=Options.dtype, help="of weights, states and gradients")
    add.add_argument(
        "--seed", type=int, default=Options.seed, help="of the initial weights, of dropout and of the sample"
    )
    add.add_argument("--out", type=Path, metavar="RUN", help="new run folder (default: runs/DATE-TIME)")

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

    add = commands.add_parser(
        "parity", help="compare a device with NumPy in float64, every gradient", formatter_class=formatter
    )
    add.set_defaults(run=parity)
    add.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (and so on) or auto")

    add = commands.add_parser("info", help="print versions and devices")
    add.set_defaults(run=info)
    return top


def train(options: argparse.Namespace) -> int:
    missing = [name for name in ("tqdm", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f"train needs {' and '.join(missing)}: pip install {' '.join(missing)} (the extra `train`)")
    from tqdm import tqdm

    from .sampling import sample as write
    from .text import language_reference, read_texts
    from .training import Progress, Trainer

    names = Options.__dataclass_fields__
    chosen = Options(**{name: value for name, value in vars(options).items() if name in names})
    device = resolve(options.device)
    text = read_texts(options.files) if options.files else language_reference()
    trainer = Trainer(text, chosen, device)
    with _Stop() as stop, _run_folder(options.out) as folder:
        source = ", ".join(options.files) or "the language reference inside Python (pydoc_data.topics)"
        print(f"{trainer.rnn!r}")
        print(f"learning {source}: {len(text):,} characters, {len(trainer.vocabulary)} different")
        total = chosen.steps * chosen.batch * chosen.seq_len
        # None: no bar where standard error is no terminal; the lines on standard output are there anyway.
        no_bar = True if sys.stderr is None else None
        with tqdm(total=total, unit="char", unit_scale=True, dynamic_ncols=True, disable=no_bar) as bar:

            def report(progress: Progress) -> None:
                bar.set_postfix_str(f"loss {progress.loss:.3f}", refresh=False)
                bar.update(chosen.batch * chosen.seq_len * (progress.step - trainer.reported))
                if progress.step % trainer.eval_every == 0 or not (folder / MODEL).exists():
                    trainer.save_model(folder)  # before anything that may fail, such as writing to a closed pipe
                if progress.validation is not None:
                    bar.write(
                        f"step {progress.step:>6}  loss {progress.loss:.3f}  validation {progress.validation:.4f} nats "
                        f"per character  {progress.characters / progress.seconds:,.0f} characters per second",
                        file=sys.stdout,
                    )

            try:
                trainer.run(report, stop=lambda: stop.signal is not None)
                trainer.save_model(folder)
            except BaseException:
                if trainer.metrics:
                    with contextlib.suppress(OSError):  # what went wrong first is what has to be said
                        trainer.save_metrics(folder)
                raise
            trainer.save_metrics(folder)
    if stop.signal is not None:
        step = trainer.metrics[-1].step
        print(f"{PROGRAM}: interrupted after step {step}; what was learnt is in {folder}", file=sys.stderr)
        return 128 + stop.signal
    print(f"\nSaved in {folder}. For more text:")
    print(shlex.join([sys.executable, "-m", "bptt_array", "sample", str(folder)]))
    print(f"\nA sample (temperature 0.8):\n\n{write(trainer.rnn, trainer.vocabulary, seed=chosen.seed)}\n")
    return 0


class _Stop:
    """While active, the first Ctrl-C or SIGTERM is only noted, so that work ends between two steps.

    A second one raises KeyboardInterrupt.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> _Stop:
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


@contextlib.contextmanager
def _run_folder(folder: Path | None) -> Iterator[Path]:
    """Claim a new run folder; if nothing was learnt in the end, leave nothing behind.

    A folder that holds anything, or is claimed by another run, is left alone.
    """
    made = folder is None or not folder.exists()
    folder = _default_folder() if folder is None else folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FileExistsError
        (folder / METRICS).touch(exist_ok=False)  # of two runs that come this far, one gets an error
    except FileExistsError:
        raise CommandError(f"--out {folder} exists and is not an empty folder; choose another name") from None
    try:
        yield folder
    finally:
        if not (folder / MODEL).exists():
            with contextlib.suppress(OSError):
                (folder / METRICS).unlink()
                if made:
                    folder.rmdir()


def _default_folder() -> Path:
    """A new folder named after the time, and after nobody else's."""
    stem = time.strftime("%Y%m%d-%H%M%S")
    for count in itertools.count(1):
        folder = Path("runs") / (stem if count == 1 else f"{stem}-{count}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable")


def sample(options: argparse.Namespace) -> int:
    from .sampling import sample as write
    from .training import load

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
    print(f"bptt_array        {__version__}")
    print(f"Python            {platform.python_version()} on {platform.platform()}")
    packages = ("numpy", "array-api-compat", "safetensors", "tqdm", "matplotlib")
    for name in (*packages, *_cupy_distributions()):
        print(f"{name:<17} {_version(name)}")
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


def _cupy_distributions() -> list[str]:
    names: Any = importlib.metadata.packages_distributions().get("cupy", [])
    return sorted(set(names))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
