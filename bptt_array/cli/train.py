"""``train``: a new run, or one that is gone on with, by one process or several."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..backend.cpu import NumpyBackend
from ..checks import said
from ..distributed.ranks import communicator
from ..runs.signals import Stop
from ..training.divergence import DivergenceError
from ..training.options import OF_THE_KEEPING, Options
from ..training.reading import STDIN
from .commands import need
from .errors import CommandError, say, tell, tell_at_once
from .job import Job

if TYPE_CHECKING:
    from pathlib import Path

    from ..runs.folder import RunFolder
    from ..training.beginning import Beginning
    from ..training.checkpoint import Checkpoint
    from ..training.text import Text
    from ..training.trainer import Trainer

#: What a first signal is answered with.
STOPPING = "stopping as soon as what was learnt is saved; a second signal stops at once"
#: Options of a run that may be others where it is resumed.
MAY_CHANGE = ("steps", "device", "transport", *OF_THE_KEEPING)


def train(options: argparse.Namespace) -> int:
    need("train", "tqdm", "matplotlib")
    names = Options.__dataclass_fields__
    given = {name: value for name, value in vars(options).items() if name in (*names, *MAY_CHANGE, "init_from")}
    for name in names:  # so that errors can name what was not given too
        vars(options).setdefault(name, getattr(Options, name))
    job = _job(given.pop("transport", None))
    go = _train_anew if options.resume is None else _resume
    with Stop(lambda: tell_at_once(STOPPING) if job.first else None) as stop:
        try:
            return job.run(lambda: go(options, given, stop, job), lambda error, whose: tell(error, options, whose))
        except KeyboardInterrupt:  # a second signal
            say("interrupted")
            return 128 + (stop.signal or signal.SIGINT)


def _job(transport: str | None) -> Job:
    """The job that this process belongs to."""
    try:
        ranks = communicator(transport or "auto")
    except ImportError as error:
        raise CommandError(str(error)) from None
    if ranks.size == 1 and transport is not None:
        raise ValueError(f"--transport {transport} is for several processes, started by mpiexec; leave it out")
    return Job(ranks)


def _train_anew(options: argparse.Namespace, given: dict[str, Any], stop: Stop, job: Job) -> int:
    from ..runs.claims import new_run
    from ..training.trainer import Trainer

    device = job.on_each(lambda: job.device(given.pop("device", "cpu")))
    path = given.pop("init_from", None)
    network = None if path is None else job.at_first(lambda: _beginning(path))
    chosen = job.on_each(lambda: Options(**given) if network is None else network.chosen(given))
    source = _source(options.files) or None
    with stop.at_once():
        text = job.at_first(lambda: _text(options.files))
    of_the_run = text, chosen, device, source, job.ranks
    trainer = job.on_each(lambda: Trainer(*of_the_run) if network is None else Trainer.begun_from(network, *of_the_run))
    environment = job.environment | job.on_each(lambda: _threads(trainer, "threads" in given, job))
    with job.first_within(lambda: new_run(options.out)) as folder:
        if folder is not None:
            print(f"{trainer.rnn!r}")
            print(f"learning {_described(options.files)}: {_size(trainer)}{_shared(trainer, folder, job)}")
            if network is not None:
                print(_known(network, trainer))
        return _run(trainer, folder, stop, job, environment)


def _beginning(path: Path) -> Beginning:
    from ..runs.folder import load
    from ..training.beginning import Beginning

    return Beginning.of(os.path.abspath(path), *load(path))


def _known(network: Beginning, trainer: Trainer) -> str:
    """Which characters have whose weights."""
    new = sorted(set(trainer.vocabulary.characters) - set(network.characters))
    begin = f"; new to it, with weights of their own: {said(''.join(new))}" if new else ", all of the text among them"
    return f"beginning with the weights of {network.path}, which knows {len(network.characters)} characters{begin}"


def _resume(options: argparse.Namespace, given: dict[str, Any], stop: Stop, job: Job) -> int:
    from ..runs.claims import resumed_run
    from ..training.trainer import Trainer

    for name in given:
        if name not in MAY_CHANGE:
            flag = f"--{name.replace('_', '-')}"
            raise job.together(ValueError(f"{flag} belongs to the run from its beginning; leave it out with --resume"))
    with job.first_within(lambda: resumed_run(options.resume, say)) as claimed:
        folder, found = (None, None) if claimed is None else claimed
        checkpoint: Any = job.at_first(lambda: found)
        device = job.on_each(lambda: job.device(given.pop("device", job.same_device(checkpoint.device))))
        source = _source(options.files) or checkpoint.source
        with stop.at_once():
            text = job.at_first(lambda: _text_of(checkpoint, options.files))
        chosen = job.on_each(lambda: _options_of(checkpoint, given))
        trainer = job.on_each(
            lambda: Trainer.resumed(replace(checkpoint, source=source), text, chosen, device, job.ranks)
        )
        environment = job.environment | job.on_each(lambda: _threads(trainer, "threads" in given, job))
        if folder is not None:
            folder.save_results(trainer)  # the run may have been killed between a checkpoint and what follows from it
            print(f"{trainer.rnn!r}")
            print(
                f"going on with {options.resume} after step {checkpoint.step} of {trainer.options.steps}, learning "
                f"{_described(source)}: {_size(trainer)}{_shared(trainer, folder, job)}"
            )
            if trainer.options.steps != checkpoint.options["steps"]:
                print(_of_other_length(trainer, checkpoint))
        return _run(trainer, folder, stop, job, environment)


def _of_other_length(trainer: Trainer, checkpoint: Checkpoint) -> str:
    """What becomes of the learning rate of a run that is to have more or fewer steps than so far."""
    before, now = checkpoint.options["steps"], trainer.options.steps
    length = f"the run is to have {now:,} steps, not {before:,}"
    if trainer.options.lr_schedule == "constant" or trainer.step == now:
        return length
    return (
        f"{length}: the learning rate goes on with {trainer.rate(trainer.step + 1):.3g} and falls to zero over the rest"
    )


def _options_of(checkpoint: Checkpoint, given: dict[str, Any]) -> Options:
    try:
        return Options(**checkpoint.options | given)
    except TypeError as error:
        raise ValueError(f"the run's options cannot be used: {error}") from None


def _source(files: Sequence[str]) -> list[str]:
    """The files of a text, as a run finds them again from elsewhere."""
    return [file if file == STDIN else os.path.abspath(file) for file in files]


def _text_of(checkpoint: Checkpoint, files: Sequence[str]) -> Text:
    """The text of a run, of its own files unless others are given."""
    for file in [] if files else checkpoint.source or []:
        if file == STDIN:
            raise ValueError(
                f"the text of the run came from standard input, which is gone; give it again: --resume RUN {STDIN}, or "
                "a file that holds it"
            )
        if os.path.exists(file) and not os.path.isfile(file):
            raise ValueError(f"{file}, the text of the run, is no plain file; give the text: --resume RUN FILE")
    return _text(files or checkpoint.source or [])


def _text(files: Sequence[str]) -> Text:
    from ..training import text
    from ..training.reading import read_texts

    return read_texts(files) if files else text.Text.of(text.language_reference())


def _described(files: Sequence[str] | None) -> str:
    return (
        ", ".join("standard input" if file == STDIN else file for file in files or [])
        or "the language reference inside Python (pydoc_data.topics)"
    )


def _size(trainer: Trainer) -> str:
    size = f"{trainer.characters:,} characters, {trainer.different} different"
    read, held_out = trainer.validation.characters, trainer.held_out
    if not 0 < read < held_out - trainer.options.batch * trainer.options.seq_len:
        return size
    return f"{size}; each validation reads {read:,} of the {held_out:,} held out (--eval-characters)"


def _shared(trainer: Trainer, folder: RunFolder, job: Job) -> str:
    """Of a job: who has how much of it, and what to do when it is ended by force, which nobody can say then."""
    if job.alone:
        return ""
    batch, size = trainer.options.batch, job.ranks.size
    each = f"{batch // size}" if batch % size == 0 else f"{batch // size} or {batch // size + 1}"
    return (
        f"\non {size} ranks ({job.environment['MPI']}), each with {each} of {batch} streams; if one of them dies, the "
        f"job ends; to go on from the last checkpoint: {job.command('train', '--resume', folder.argument)}"
    )


def _threads(trainer: Trainer, given: bool, job: Job) -> dict[str, str]:
    """Let a trainer have as many threads as were said, or let it find out; returns how that was, for its folder."""
    from ..training import threads

    wanted, most = trainer.options.threads if given or job.alone else None, threads.cores()
    if wanted is not None and wanted > most:
        if given:
            raise ValueError(f"threads={wanted}; expected at most {most}: the cores that this process may use")
        wanted = None  # of a run on another machine
    by = None if wanted is not None else threads.set_by()
    if by is not None:
        return {"threads": f"{os.environ[by]}, by {by}"}
    if wanted is None and not (job.alone and isinstance(trainer.rnn.backend, NumpyBackend)):
        return {}
    pool = threads.Pool()
    trainer.have(threads.Threads(pool, wanted), parts=pool.all)
    return {"threads": f"{wanted} throughout" if wanted is not None else f"chosen, of {pool.all}"}


def _run(trainer: Trainer, folder: RunFolder | None, stop: Stop, job: Job, environment: dict[str, str]) -> int:
    """Train, from wherever the trainer is, into a folder (None: that is another rank's); say how it went."""
    from ..runs.listeners import RunListener, SilentListener
    from ..training.sampling import sample as write

    if folder is None:
        try:
            trainer.run(SilentListener(stop))
        except DivergenceError as error:
            raise job.together(FloatingPointError(str(error))) from None
        return 0
    if changed := folder.describe(trainer.rnn.backend.name, environment):
        say(f"not as it was when the run was last started, and so perhaps not to the last bit: {', '.join(changed)}")
    with RunListener(trainer, folder, stop, say) as listener:
        try:
            trainer.run(listener)
        except DivergenceError as error:
            folder.diverged = True
            raise job.together(FloatingPointError(f"{error}{listener.way_out()}")) from None
    folder.save_plot(trainer)
    if not trainer.finished:
        go_on = job.command("train", "--resume", folder.argument)
        say(f"interrupted after step {trainer.step}; what was learnt is in {folder.path}; to go on: {go_on}")
        return 128 + (stop.signal or signal.SIGTERM)
    print(f"\nSaved in {folder.path}. For more text, and for a page that shows the run:")
    for command in ("sample", "report"):
        print(shlex.join([sys.executable, "-m", "bptt_array", command, folder.argument]))
    with trainer.threads or contextlib.nullcontext():
        written = write(trainer.rnn, trainer.vocabulary, seed=trainer.options.seed)
    print(f"\nA sample (temperature 0.8):\n\n{written}\n")
    return 0
