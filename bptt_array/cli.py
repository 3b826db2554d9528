"""The command line: ``python -m bptt_array`` or ``bptt-array``."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from . import __version__
from .backend import cuda_description, cuda_device_count, resolve
from .cells import CELLS
from .initializers import INITIALIZERS

PROGRAM = "bptt-array"
LEARNING_RATES = "adam 0.003, momentum 0.3, sgd 2"
INTERRUPTED = 128 + signal.SIGINT


class CommandError(Exception):
    """What is wrong, in one line, for the person at the terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 (parity out of bounds), 2 (error) or 130 (Ctrl-C)."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (CommandError, ValueError, FloatingPointError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{PROGRAM}: error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"{PROGRAM}: error: not enough memory ({error}); use a smaller --hidden or --batch", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but for None and "", whose meaning is in the help text itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "", []) else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    formatter = _Formatter
    top = argparse.ArgumentParser(prog=PROGRAM, description="Recurrent networks by backpropagation through time.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add = commands.add_parser("train", help="learn a text character by character", formatter_class=formatter)
    add.set_defaults(run=train)
    add.add_argument(
        "files", nargs="*", metavar="FILE", help="UTF-8 texts (default: the language reference inside Python)"
    )
    add.add_argument("--cell", choices=CELLS, default="tanh", help="f of the recurrence")
    add.add_argument("--hidden", type=int, default=256, metavar="H", help="hidden units")
    add.add_argument("--seq-len", type=int, default=32, metavar="T", help="time steps per update")
    add.add_argument("--batch", type=int, default=32, metavar="N", help="streams of text read side by side")
    add.add_argument("--steps", type=int, default=2000, help="updates")
    add.add_argument("--lr", type=float, help=f"learning rate, falling linearly to zero (default: {LEARNING_RATES})")
    add.add_argument("--optimizer", choices=("adam", "sgd", "momentum"), default="adam", help="update rule")
    add.add_argument(
        "--clip", type=float, default=1.0, metavar="NORM", help="clip the global gradient norm to this; 0: do not clip"
    )
    add.add_argument("--init", choices=INITIALIZERS, default="uniform", help="initial W_hh")
    add.add_argument("--validation", type=float, default=0.1, metavar="PART", help="part of the text held out")
    add.add_argument("--eval-every", type=int, metavar="STEPS", help="validate that often (default: ten times)")
    add.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (and so on) or auto")
    add.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="of weights, states and gradients"
    )
    add.add_argument("--seed", type=int, default=0, help="of the initial weights and of the sample")
    add.add_argument("--out", type=Path, metavar="RUN", help="new run folder (default: runs/DATE-TIME)")

    add = commands.add_parser("sample", help="write text with a trained network", formatter_class=formatter)
    add.set_defaults(run=sample)
    add.add_argument("folder", type=Path, metavar="RUN", help="run folder that train wrote")
    add.add_argument("--prompt", default="", help="beginning of the text (default: a line break, unseen)")
    add.add_argument("--length", type=int, default=500, help="characters to write")
    add.add_argument(
        "--temperature", type=float, default=0.8, help="below 1 bolder, above 1 wilder, 0: always the likeliest"
    )
    add.add_argument("--seed", type=int, default=0, help="of the choice of characters")
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
        raise CommandError(f"train needs {' and '.join(missing)}: pip install 'bptt-array[train]'")
    from tqdm import tqdm

    from .sampling import sample as write
    from .text import language_reference, read_texts
    from .training import Options, Progress, Trainer

    names = Options.__dataclass_fields__
    chosen = Options(**{name: value for name, value in vars(options).items() if name in names})
    device = resolve(options.device)
    text = read_texts(options.files) if options.files else language_reference()
    trainer = Trainer(text, chosen, device)
    folder = _new_folder(options.out)
    source = ", ".join(options.files) or "the language reference inside Python (pydoc_data.topics)"
    print(f"{trainer.rnn!r}")
    print(f"learning {source}: {len(text):,} characters, {len(trainer.vocabulary)} different")

    characters = chosen.batch * chosen.seq_len
    interrupt = _Interrupt()
    total = chosen.steps * characters
    # disable=None: no bar where standard error is no terminal; the lines on standard output are there anyway.
    with tqdm(total=total, unit="char", unit_scale=True, dynamic_ncols=True, disable=None) as bar, interrupt:
        read = 0

        def report(progress: Progress) -> None:
            nonlocal read
            bar.set_postfix_str(f"loss {progress.loss:.3f}", refresh=False)
            bar.update(progress.characters - read)
            read = progress.characters
            if progress.validation is not None:
                bar.write(
                    f"step {progress.step:>6}  loss {progress.loss:.3f}  validation {progress.validation:.4f} nats per "
                    f"character  {progress.characters / progress.seconds:,.0f} characters per second",
                    file=sys.stdout,
                )

        trainer.run(report, stop=lambda: interrupt.asked)
        trainer.save(folder)
    if interrupt.asked:
        step = trainer.metrics[-1].step
        print(f"{PROGRAM}: interrupted after step {step}; what was learnt is in {folder}", file=sys.stderr)
        return INTERRUPTED
    print(f"\nA sample (temperature 0.8):\n\n{write(trainer.rnn, trainer.vocabulary, seed=chosen.seed)}\n")
    print(f"Saved in {folder}. More text: python -m bptt_array sample {folder} --prompt 'The '")
    return 0


class _Interrupt:
    """While active, the first Ctrl-C only sets a flag, so that work ends between two steps; the second one raises."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Interrupt:
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _new_folder(folder: Path | None) -> Path:
    """Make the run folder; one that holds anything is left alone."""
    if folder is None:
        folder = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CommandError(f"--out {folder} exists and is not an empty folder; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
