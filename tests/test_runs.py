"""Nothing is lost: checkpoints, runs that are stopped, killed, starved of disk or damaged, and divergence."""

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import IN_CI, backends_and_dtypes, cuda
from every_optimizer import OPTIMIZERS, each_optimizer

import bptt_array as ba
from bptt_array import cli, serialization
from bptt_array.backend import NumpyBackend, resolve
from bptt_array.runs import checkpoints, claims, report
from bptt_array.runs import folder as runs
from bptt_array.training import divergence, loop
from bptt_array.training import text as texts
from bptt_array.training.beginning import Beginning
from bptt_array.training.listener import Listener
from bptt_array.training.options import Options
from bptt_array.training.trainer import Trainer

TEXT = "the quick brown fox jumps over the lazy dog; größer!\n" * 30
TINY = {"hidden": 8, "seq_len": 8, "batch": 4, "steps": 40, "checkpoint_every": 7, "eval_every": 12}
SMALL = ["--hidden", "8", "--seq-len", "8", "--batch", "4", "--checkpoint-every", "7", "--eval-every", "12"]


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def results(folder):
    """What has to be the same bytes, however often a run was stopped."""
    return {name: (folder / name).read_bytes() for name in (runs.MODEL, runs.METRICS)}


def run(*arguments):
    return cli.main(["train", *map(str, arguments)])


class Kept(Listener):
    """Keeps what it is told; stops after the updates of ``stops``."""

    def __init__(self, *stops):
        self.stops, self.asked = set(stops), 0
        self.checkpoints, self.lines, self.back = [], [], []

    def checkpoint(self, checkpoint):
        self.checkpoints.append(checkpoint)

    def progress(self, progress, seconds):
        self.lines.append(progress)

    def went_back(self, error, step, lr):
        self.back.append((error.step, step, lr))

    def stop(self):
        self.asked += 1
        return self.asked in self.stops


# ---- a checkpoint is all that a run is made of ------------------------------------------------------------

KINDS = [
    {},
    {"cell": "lstm", "layers": 2, "dropout": 0.3, "recurrent_dropout": 0.2, "forget_bias": 1.0},
    {"cell": "gru", "optimizer": "momentum", "members": 3, "recurrent_dropout": 0.2},
    {"cell": "relu", "init": "identity", "optimizer": "sgd", "clip": 0.0, "dtype": "float64"},
    {"validation": 0.0, "members": 2},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.get("cell", "tanh") + str(len(kind)))
@pytest.mark.parametrize("stop", [1, 6, 7, 23])
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(kind, stop, tmp_path):
    options = Options(**TINY | kind)
    whole = Trainer(TEXT, options)
    whole.run()
    first, listener = Trainer(TEXT, options), Kept(stop)
    first.run(listener)
    assert first.step == stop == listener.checkpoints[-1].step
    path = checkpoints.write_checkpoint(tmp_path, listener.checkpoints[-1])
    second = Trainer(TEXT, options)
    second.restore(checkpoints.read_checkpoint(path))
    names = list(second.rnn.architecture.shapes)  # in which order everything is, also what comes from a file
    optimizer = second.optimizer.state_dict()
    assert list(second.rnn.params) == list(optimizer["kept"]) == list(optimizer["updates"]) == names
    second.run()
    assert second.metrics == whole.metrics
    assert all(np.array_equal(second.rnn.params[name], whole.rnn.params[name]) for name in whole.rnn.params)
    kept, expected = (trainer.optimizer.state_dict() for trainer in (second, whole))
    assert kept["updates"] == expected["updates"]
    for name, arrays in expected["kept"].items():
        assert all(np.array_equal(*pair) for pair in zip(kept["kept"][name], arrays, strict=True))


def test_a_checkpoint_comes_back_from_its_file_as_it_was(tmp_path):
    trainer, listener = Trainer(TEXT, Options(**TINY, cell="lstm", members=2), source=["/a/ö.txt"]), Kept(15)
    trainer.run(listener)
    written = listener.checkpoints[-1]
    checkpoints.write_checkpoint(tmp_path, written)
    found = checkpoints.newest_checkpoint(tmp_path, pytest.fail)
    assert (found.goes_back_to, found.earlier.goes_back_to, found.earlier.earlier) == (14, None, None)
    for moment, expected in ((found, written), (found.earlier, listener.checkpoints[-2])):
        for name, value in vars(expected).items():
            if name != "earlier":
                np.testing.assert_equal(getattr(moment, name), value)
    assert set(found.state) == {"h", "c"}
    assert found.losses.shape == (3, 2)  # of updates 13 to 15, of two members
    assert found.source == ["/a/ö.txt"]
    again = tmp_path / "again"
    again.mkdir()
    same = checkpoints.write_checkpoint(again, found)
    for one, other in zip(checkpoints.checkpoints(again), checkpoints.checkpoints(tmp_path), strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert same == checkpoints.checkpoints(again)[-1]


def test_checkpoints_are_written_every_so_often_and_the_last_are_kept(text_file, tmp_path):
    folder = tmp_path / "run"
    assert run(text_file, *SMALL, "--steps", "40", "--keep-checkpoints", "2", "--out", folder) == 0
    assert [path.name for path in checkpoints.checkpoints(folder)] == [
        "step-00000035.safetensors",
        "step-00000040.safetensors",
    ]
    listener = Kept()
    Trainer(TEXT, Options(**TINY)).run(listener)
    assert [checkpoint.step for checkpoint in listener.checkpoints] == [0, 7, 14, 21, 28, 35, 40]
    listener = Kept()
    Trainer(TEXT, Options(**TINY | {"checkpoint_every": None})).run(listener)
    assert [checkpoint.step for checkpoint in listener.checkpoints] == list(range(0, 44, 4))


@pytest.mark.parametrize(("make", "dtype"), backends_and_dtypes())
def test_a_run_goes_on_to_the_same_bits_on_every_device(make, dtype):
    options = Options(**TINY | {"steps": 8, "dtype": dtype, "cell": "gru", "recurrent_dropout": 0.3})
    whole = Trainer(TEXT, options, make())
    whole.run()
    first, listener = Trainer(TEXT, options, make()), Kept(5)
    first.run(listener)
    second = Trainer(TEXT, options, make())
    second.restore(listener.checkpoints[-1])
    second.run()
    to_host = whole.rnn.backend.to_host
    for name, value in whole.rnn.params.items():
        assert np.array_equal(to_host(second.rnn.params[name]), to_host(value))
    assert second.metrics == whole.metrics


def test_a_checkpoint_of_another_run_is_refused_and_changes_nothing():
    listener = Kept()
    Trainer(TEXT, Options(**TINY)).run(listener)
    last = listener.checkpoints[-1]
    for text, options, message in (
        (TEXT.replace("lazy", "idle"), {}, "the text is not the one that the run has learnt so far"),
        (TEXT, {"hidden": 9}, "the checkpoint's kept['W_hy'] is not that of this network"),
        (TEXT, {"dtype": "float64"}, "the checkpoint's kept['W_hy'] is not"),
        (TEXT, {"optimizer": "momentum"}, "the checkpoint's kept['W_hy'] is not"),
        (TEXT, {"batch": 5}, "the checkpoint's state.h is not"),
        (TEXT, {"cell": "lstm"}, "is not that of this network; expected one of the same run"),
        (TEXT, {"layers": 2}, "is not that of this network; expected one of the same run"),
    ):
        other = Trainer(text, Options(**TINY | options))
        before = {name: value.copy() for name, value in other.rnn.params.items()}
        with pytest.raises(ValueError, match=re.escape(message)):
            other.restore(last)
        assert other.step == 0
        assert all(np.array_equal(other.rnn.params[name], value) for name, value in before.items())


@each_optimizer
def test_an_optimizer_goes_on_from_its_state(make):
    rng = np.random.default_rng(0)
    grads = [{"W": rng.standard_normal((3, 2)), "b": rng.standard_normal(3)} for _ in range(6)]
    params, optimizer = {"W": np.ones((3, 2)), "b": np.ones(3)}, make()
    for grad in grads[:3]:
        optimizer.update(params, grad)
    state, copies, other = optimizer.state_dict(), {name: value.copy() for name, value in params.items()}, make()
    for grad in grads[3:]:
        optimizer.update(params, grad)
    other.load_state_dict(state)
    for grad in grads[3:]:
        other.update(copies, grad)
    assert all(np.array_equal(params[name], copies[name]) for name in params)
    assert state["updates"] == {"W": 3, "b": 3}  # of that moment: nothing later reaches it


def test_the_state_of_another_optimizer_is_refused():
    params = {"W": np.ones(2)}
    states = {}
    for name, make in OPTIMIZERS.items():
        optimizer = make()
        optimizer.update(params, {"W": np.ones(2)})
        states[name] = optimizer.state_dict()
    adam = ba.Adam(0.1)
    for state, kind, message in (
        (states["momentum"], ValueError, "state_dict['keeps']=['velocity'], but this optimizer keeps ['m', 'v'] for a"),
        (states["adam"] | {"keeps": ["v", "mean"]}, ValueError, "expected the state of one of the same kind"),
        (states["adam"] | {"keeps": None}, ValueError, "state_dict['keeps']=None, but this optimizer keeps"),
        ({**states["adam"], "more": 1}, TypeError, "state_dict is none that state_dict() returned"),
        (
            {name: states["momentum"][name] for name in ("updates", "kept")},  # of before 0.2
            ValueError,
            "state_dict['kept']['W'] is not a list of 2 arrays, as this optimizer keeps",
        ),
        ({"updates": {}}, TypeError, "state_dict is none that state_dict() returned"),
        (None, TypeError, "state_dict is none that"),
        ({"updates": {}, "kept": {"W": []}}, ValueError, "other parameters under 'updates' than under 'kept'"),
        ({"updates": {"W": -1}, "kept": {"W": [1, 2]}}, ValueError, "state_dict['updates']['W']=-1 is too small"),
        ({"updates": {"W": 1}, "kept": {"W": [1, 2]}}, TypeError, "state_dict['kept']['W']['0'] is a int"),
    ):
        with pytest.raises(kind, match=re.escape(message)):
            adam.load_state_dict(state)
    for state in (states["adam"], {name: states["adam"][name] for name in ("updates", "kept")}):
        adam.load_state_dict(state)
        assert adam.state_dict()["updates"] == {"W": 1}
    for kind, other in (
        (ba.SGD(0.1, momentum=0.5), ba.RMSprop()),
        (ba.RMSprop(momentum=0.5), ba.Adam()),
        (ba.RMSprop(momentum=0.5), ba.RMSprop(centered=True)),
    ):
        kind.update(params, {"W": -np.ones(2)})
        with pytest.raises(ValueError, match="expected the state of one of the same kind"):
            other.load_state_dict(kind.state_dict())
    ba.AdamW().load_state_dict(states["adam"])  # which keeps the same


# ---- runs that are stopped --------------------------------------------------------------------------------

#: Forks a run of the command line as often as it is told to, and kills it some time after. Forked and not started, so
#: that most of its life is training and not the import of NumPy.
KILLER = """
import json, os, random, signal, sys, time
from bptt_array import cli, plots  # before any fork, like the next two
from bptt_array.runs import listeners
from bptt_array.training import trainer

def child(arguments):
    process = os.fork()
    if process == 0:
        with open(os.devnull, "w") as nowhere:
            sys.stdout = nowhere
            os._exit(cli.main(arguments))
    return process

def waited(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

text, reference, folder, seed, wanted, *numbers = sys.argv[1:]
train = ["train", text, *json.loads(os.environ["OPTIONS"])]
began = time.monotonic()
assert waited(child([*train, "--out", reference])) == 0
duration = time.monotonic() - began
rng, killed, ended, last = random.Random(int(seed)), 0, None, set()
while killed < int(wanted) or ended != 0:
    if ended == 0:  # before it was killed often enough
        folder += "-next"
    begun = os.path.isdir(os.path.join(folder, "checkpoints")) and os.listdir(os.path.join(folder, "checkpoints"))
    begun = any(name.startswith("step") for name in begun or [])
    if os.path.exists(folder) and not begun:  # killed before its first checkpoint
        os.system(f"rm -r {folder}")
    process = child(["train", "--resume", folder] if begun else [*train, "--out", folder])
    if killed < int(wanted):
        time.sleep(rng.uniform(0, duration / 8))
        os.kill(process, getattr(signal, rng.choice(numbers)))
    ended = waited(process)
    killed += ended != 0
    last.add(ended)
print(json.dumps({"killed": killed, "statuses": sorted(last), "folder": folder}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which POSIX has")
@pytest.mark.parametrize(
    ("times", "signals", "statuses", "kind"),
    [
        (30 if IN_CI else 8, ["SIGKILL"], {0, -9}, "--cell lstm --layers 2 --dropout 0.2 --members 2"),
        (10 if IN_CI else 4, ["SIGINT", "SIGTERM"], {0, 130, 143, -15}, "--recurrent-dropout 0.1 --optimizer momentum"),
    ],
    ids=["killed", "stopped"],
)
def test_a_run_stopped_at_random_moments_ends_with_the_same_bytes(times, signals, statuses, kind, text_file, tmp_path):
    seed = random.randrange(1 << 30)
    options = [*SMALL, "--hidden", "32", "--steps", "300", "--checkpoint-every", "15", *kind.split()]
    arguments = [text_file, tmp_path / "whole", tmp_path / "often", seed, times, *signals]
    environment = {**os.environ, "OPTIONS": json.dumps(options), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (seed, done.stderr[-3000:])
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["killed"] >= times
    assert set(report["statuses"]) <= statuses
    folder = Path(report["folder"])
    assert results(folder) == results(tmp_path / "whole"), seed
    assert sorted(path.name for path in folder.rglob(".*")) == []  # no half-written file is left
    assert "Traceback" not in done.stderr


def test_a_resumed_run_says_where_it_goes_on_and_a_finished_one_has_nothing_left_to_do(text_file, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(text_file, *SMALL, "--steps", "20", "--out", folder) == 0
    before = results(folder)
    (folder / runs.MODEL).unlink()  # as if killed before it was written
    assert run("--resume", folder, "--keep-checkpoints", "1") == 0
    out = capsys.readouterr().out
    assert f"going on with {folder} after step 20 of 20, learning {text_file}: {len(TEXT):,} characters" in out
    assert results(folder) == before
    started = json.loads((folder / runs.ENVIRONMENT).read_text())
    assert len(started) == 2


def test_resuming_refuses_what_would_be_another_run(text_file, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    assert run(text_file, *SMALL, "--steps", "20", "--out", folder) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}

    def refused(*arguments):
        assert run(*arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err

    message = "--hidden belongs to the run from its beginning; leave it out with --resume"
    assert message in refused("--resume", folder, "--hidden", "8")  # even if it is the same
    assert "--seq-len belongs" in refused("--resume", folder, "--seq-len", "32")  # even if it is the default
    assert "--keep-checkpoints=0 is too small" in refused("--resume", folder, "--keep-checkpoints", "0")
    assert "--device='tpu' is unknown" in refused("--resume", folder, "--device", "tpu")
    assert "is no run folder" in refused("--resume", tmp_path / "none")
    assert "is no run folder" in refused("--resume", text_file)
    (tmp_path / "empty").mkdir()
    assert "empty has no checkpoint; expected a run folder that `train` wrote" in refused(
        "--resume", tmp_path / "empty"
    )
    with pytest.raises(SystemExit):
        run("--resume", folder, "--out", folder)
    assert "not allowed with argument" in capsys.readouterr().err
    with claims.resumed_run(folder, print):
        assert "is in use by another run" in refused("--resume", folder)
    text_file.write_text(TEXT.replace("lazy", "idle"), encoding="utf-8")
    assert "the text is not the one that the run has learnt so far" in refused("--resume", folder)
    text_file.unlink()
    assert "text.txt cannot be read: No such file or directory" in refused("--resume", folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_a_relative_path_of_a_text_is_found_again_from_elsewhere(text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(text_file.name, *SMALL, "--steps", "20", "--out", "run") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("--resume", "../run") == 0


# ---- runs that are made longer ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.get("cell", "tanh") + str(len(kind)))
def test_a_finished_run_made_longer_is_the_run_that_had_that_many_steps_from_the_start(kind, text_file, tmp_path):
    constant = [f"--{name.replace('_', '-')}={value}" for name, value in kind.items()]
    constant += ["--lr-schedule", "constant", "--eval-every", "10"]
    assert run(text_file, *SMALL, *constant, "--steps", "40", "--out", tmp_path / "whole") == 0
    folder = tmp_path / "run"
    assert run(text_file, *SMALL, *constant, "--steps", "20", "--out", folder) == 0
    assert run("--resume", folder, "--steps", "30") == 0
    assert run("--resume", folder, "--steps", "40") == 0
    assert results(folder) == results(tmp_path / "whole")


def test_the_learning_rate_of_a_run_made_longer_falls_to_zero_over_all_its_steps(text_file, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(text_file, *SMALL, "--lr", "0.1", "--steps", "20", "--out", folder) == 0
    assert run("--resume", folder, "--steps", "40") == 0
    said = "the run is to have 40 steps, not 20: the learning rate goes on with 0.05 and falls to zero over the rest\n"
    assert said in capsys.readouterr().out
    rates = {line.step: line.lr for line in runs.read_metrics(folder)}
    assert rates == pytest.approx({step: 0.1 * (1 - (step - 1) / (40 if step > 20 else 20)) for step in rates})
    assert max(rates) == 40


def test_how_long_a_run_is_to_be_is_remembered_at_once(text_file, tmp_path, monkeypatch):
    folder, options = tmp_path / "run", [*SMALL, "--lr-schedule", "constant", "--eval-every", "10"]
    assert run(text_file, *options, "--steps", "40", "--out", tmp_path / "whole") == 0
    assert run(text_file, *options, "--steps", "20", "--out", folder) == 0

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted)
        assert run("--resume", folder, "--steps", "40") == 130
    assert run("--resume", folder) == 0
    assert results(folder) == results(tmp_path / "whole")


def test_a_run_may_be_made_shorter_but_not_than_it_is(text_file, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(text_file, *SMALL, "--steps", "20", "--out", folder) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    capsys.readouterr()
    assert run("--resume", folder, "--steps", "19") == 2
    message = "error: --steps=19 is fewer than the 20 updates that the run has had; expected at least as many\n"
    assert capsys.readouterr().err.endswith(message)
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    options, listener = Options(**TINY, lr_schedule="constant"), Kept(13)
    Trainer(TEXT, options).run(listener)
    shorter = Trainer.resumed(listener.checkpoints[-1], TEXT, replace(options, steps=13))
    shorter.run(again := Kept())
    assert shorter.step == 13
    assert {checkpoint.options["steps"] for checkpoint in again.checkpoints} == {13}
    whole = Trainer(TEXT, replace(options, steps=13))
    whole.run()
    assert shorter.metrics == whole.metrics  # the last step is validated, as that of a run which was to be its last


# ---- runs that begin with the weights of others -----------------------------------------------------------

#: Of its characters TEXT has some, but not q, Q and é.
OTHER = "Queuing up is quite an équipe's quest\n" * 30


@pytest.fixture(scope="module", params=["tanh", "lstm", "gru of two members"])
def learnt(request, tmp_path_factory):
    """A finished run that learnt TEXT."""
    here = tmp_path_factory.mktemp("learnt")
    (here / "text.txt").write_text(TEXT, encoding="utf-8")
    (here / "other.txt").write_text(OTHER, encoding="utf-8")
    cell, _, members = request.param.partition(" of two ")
    more = ["--members", "2"] if members else []
    options = [*SMALL, "--steps", "20", "--layers", "2", "--cell", cell, *more]
    assert run(here / "text.txt", *options, "--out", here / "run") == 0
    return here


def test_a_run_begun_from_another_knows_what_that_knew(learnt):
    rnn, vocabulary = runs.load(learnt / "run")
    before = Beginning.of("there", rnn, vocabulary)
    trainer = Trainer.begun_from(before, OTHER, before.chosen({"seq_len": 8, "batch": 4, "seed": 3}))
    characters = trainer.vocabulary.characters
    assert characters == "".join(sorted(set(TEXT + OTHER)))
    fresh, new = Trainer(OTHER, trainer.options, init_from=before.origin), trainer.rnn.params
    known = np.array([c in vocabulary.characters for c in characters])
    assert 0 < known.sum() < len(known)
    for name, axis in {"l0.W_xh": -1, "W_hy": -2, "b_y": -1}.items():
        assert np.array_equal(np.compress(known, new[name], axis), rnn.params[name])
        drawn = fresh.rnn.params[name]
        assert np.array_equal(np.compress(~known, new[name], axis), np.compress(~known, drawn, axis))
    assert all(np.array_equal(new[name], rnn.params[name]) for name in ("l0.W_hh", "l1.W_xh", "l1.b_h"))
    # So of characters that it knows it expects what it did: the odds among them are the same.
    text = vocabulary.encode("the fox")[:, None]
    then, _ = rnn(text)
    now, _ = trainer.rnn(trainer.vocabulary.encode("the fox")[:, None])
    now = np.compress(known, now, -1)
    np.testing.assert_allclose(now / now.sum(axis=-1, keepdims=True), then, rtol=1e-5)


def test_another_text_is_learnt_from_the_weights_of_a_run_wherever_its_model_is(learnt, tmp_path, capsys):
    options = learnt / "other.txt", "--seq-len", "8", "--batch", "4", "--steps", "30", "--checkpoint-every", "10"
    moved = shutil.copy(learnt / "run" / runs.MODEL, tmp_path / "elsewhere.bin")
    for source, out in ((learnt / "run", "one"), (learnt / "run" / runs.MODEL, "two"), (moved, "three")):
        assert run(*options, "--init-from", source, "--out", tmp_path / out) == 0
        said = capsys.readouterr().out
        assert f"{len(OTHER):,} characters, {len(set(OTHER))} different" in said
        new = "".join(sorted(set(OTHER) - set(TEXT)))
        assert (
            f"beginning with the weights of {source}, which knows {len(set(TEXT))} characters; new to it, with weights "
            f"of their own: {new!r}\n"
        ) in said
    assert results(tmp_path / "one") == results(tmp_path / "two") == results(tmp_path / "three")
    assert str(learnt / "run") in report.page(tmp_path / "one")
    for prompt in ("fox", "équipe"):  # what either text had
        assert cli.main(["sample", str(tmp_path / "one"), "--prompt", prompt, "--length", "5"]) == 0
    assert run(*options, "--init-from", tmp_path / "one", "--out", tmp_path / "four") == 0
    assert "characters, all of the text among them" in capsys.readouterr().out


def test_a_run_begun_from_another_goes_on_to_the_same_bits_when_that_is_gone(learnt, tmp_path, monkeypatch):
    options = learnt / "other.txt", "--seq-len", "8", "--batch", "4", "--checkpoint-every", "7", "--eval-every", "10"
    constant = "--lr-schedule", "constant", "--init-from", tmp_path / "before"
    for folder, steps in (("whole", "30"), ("run", "20")):
        shutil.copytree(learnt / "run", tmp_path / "before")
        assert run(*options, *constant, "--steps", steps, "--out", tmp_path / folder) == 0
        shutil.rmtree(tmp_path / "before")
    for path in checkpoints.checkpoints(tmp_path / "run")[1:]:
        path.unlink()
    assert run("--resume", tmp_path / "run", "--steps", "30") == 0
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_what_a_network_decides_is_not_given_again(learnt, text_file, tmp_path, capsys):
    def refused(*arguments):
        capsys.readouterr()
        assert run(text_file, *arguments, "--out", tmp_path / "run") == 2
        assert not (tmp_path / "run").exists()
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    for flag, value in (
        ("--cell", "gru"),
        ("--hidden", "8"),
        ("--layers", "1"),
        ("--members", "2"),
        ("--init", "uniform"),
    ):
        message = f"error: {flag}={value} is what the model of --init-from decides; leave it out\n"
        assert message in refused("--init-from", learnt / "run", flag, value)
    assert "is no run folder: it has no model.safetensors" in refused("--init-from", tmp_path)
    assert "is a 'training checkpoint' of bptt_array; expected a model" in refused(
        "--init-from", checkpoints.checkpoints(learnt / "run")[-1]
    )
    assert "is damaged or no safetensors file" in refused("--init-from", text_file)
    ba.RNN(3, 4, 3).save(tmp_path / "no-text.safetensors")
    assert "is no character model" in refused("--init-from", tmp_path / "no-text.safetensors")
    capsys.readouterr()
    assert run("--resume", learnt / "run", "--init-from", learnt / "run") == 2
    assert "--init-from belongs to the run from its beginning; leave it out with --resume" in capsys.readouterr().err
    assert run("--resume", learnt / "run" / runs.MODEL) == 2
    assert "is no run folder; expected one that `train` wrote; a new run begins with" in capsys.readouterr().err


def test_a_model_writes_what_its_run_writes_wherever_it_is(learnt, tmp_path, capsys):
    moved = shutil.copy(learnt / "run" / runs.MODEL, tmp_path / "elsewhere")
    written = []
    for source in (learnt / "run", learnt / "run" / runs.MODEL, moved):
        assert cli.main(["sample", str(source), "--length", "40"]) == 0
        written.append(capsys.readouterr().out)
    assert len(set(written)) == 1
    assert len(written[0]) == 41
    for nothing in (tmp_path, tmp_path / "nowhere"):
        assert cli.main(["sample", str(nothing)]) == 2
        message = f"error: {nothing} is no run folder: it has no model.safetensors; expected one that `train` wrote, or"
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("origin", [{}, {"path": "a"}, {"path": 1, "characters": "a"}, ["path", "characters"], "a"])
def test_a_checkpoint_that_says_nonsense_about_its_beginning_is_refused(origin, tmp_path):
    listener = Kept()
    Trainer(TEXT, Options(**TINY)).run(listener)
    written = replace(listener.checkpoints[-1], init_from=origin)
    with pytest.raises(ValueError, match="does not hold what a checkpoint does"):
        checkpoints.read_checkpoint(checkpoints.write_checkpoint(tmp_path, written))


# ---- disks and folders that fail --------------------------------------------------------------------------


@pytest.fixture
def finished(text_file, tmp_path, capsys):
    """A finished run, and what it has to be."""
    folder = tmp_path / "finished"
    assert run(text_file, *SMALL, "--steps", "40", "--out", folder) == 0
    capsys.readouterr()
    return folder, results(folder)


def damaged(data, how, rng):
    if how == "cut short":
        return data[: rng.randrange(len(data))]
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


@pytest.mark.parametrize("how", ["cut short", "a bit flipped"])
def test_a_damaged_checkpoint_is_said_to_be_so_and_the_one_before_it_taken(how, finished, capsys):
    folder, expected = finished
    *_, before, last = checkpoints.checkpoints(folder)
    data, rng = last.read_bytes(), random.Random(0)
    for _ in range(10 if IN_CI else 3):
        last.write_bytes(damaged(data, how, rng))
        assert run("--resume", folder) == 0
        out, err = capsys.readouterr()
        # the second where a bit of our own name in the header is flipped
        assert err.startswith(f"bptt-array: path='{last}' ")
        assert "' is damaged or no safetensors file: " in err or "' was not written by bptt_array; trying" in err
        assert err.endswith("; trying the checkpoint before it\n")
        assert err.count("\n") == 1
        assert f"after step {checkpoints.step_of(before)} of 40" in out
        assert results(folder) == expected
        assert checkpoints.read_checkpoint(last).step == 40  # written anew


def test_where_every_checkpoint_is_damaged_each_is_named_and_nothing_else_is_touched(finished, capsys):
    folder, _ = finished
    paths = checkpoints.checkpoints(folder)
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    assert run("--resume", folder) == 2
    *said, last = capsys.readouterr().err.splitlines()
    assert len(said) == len(paths) == 3
    assert all(str(path) in line for path, line in zip(reversed(paths), said, strict=True))
    assert last == (f"bptt-array: error: {folder} has no checkpoint that can be read, of 3: the run cannot be resumed")
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_a_checkpoint_under_another_ones_name_is_not_taken(finished, capsys):
    folder, expected = finished
    *_, before, last = checkpoints.checkpoints(folder)
    shutil.copy(before, last)
    assert run("--resume", folder) == 0
    assert "is of step 35; trying the checkpoint before it" in capsys.readouterr().err
    assert results(folder) == expected


@pytest.mark.skipif(os.name != "posix", reason="only POSIX systems can be asked to keep the names in a folder")
def test_files_and_every_folder_that_got_a_name_are_on_the_disk_when_a_run_ends(text_file, tmp_path, monkeypatch):
    flushed, works = set(), os.fsync

    def fsync(handle):
        works(handle)
        flushed.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(serialization.os, "fsync", fsync)
    folder = tmp_path / "run"
    assert run(text_file, *SMALL, "--steps", "8", "--out", folder) == 0
    (checkpoint, *_) = checkpoints.checkpoints(folder)
    for path in (tmp_path, folder, checkpoint.parent, checkpoint, folder / runs.MODEL):
        assert path.stat().st_ino in flushed, path


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_wherever_the_disk_is_full_the_error_names_the_file_and_the_run_can_go_on(
    name, text_file, tmp_path, monkeypatch, capsys
):
    """Every single write of a run fails once."""
    assert run(text_file, *SMALL, "--steps", "15", "--out", tmp_path / "whole") == 0
    replace, written = os.replace, []

    def recorded(new, path):
        replace(new, path)
        written.append(Path(path).name)

    monkeypatch.setattr(serialization.os, "replace", recorded)
    expected, works, count = results(tmp_path / "whole"), getattr(os, name), [0]

    def failing_at(place):
        count[0] = 0
        written.clear()

        def full(*arguments):
            count[0] += 1
            if count[0] == place:
                raise OSError(28, "No space left on device")
            works(*arguments)

        return full

    for place in range(1, 200):
        folder = tmp_path / f"run-{place}"
        monkeypatch.setattr(serialization.os, name, failing_at(place))
        status = run(text_file, *SMALL, "--steps", "15", "--out", folder)
        monkeypatch.setattr(serialization.os, name, works)
        err = capsys.readouterr().err
        if status == 0:
            break
        assert status == 2
        assert re.fullmatch(rf"bptt-array: error: {tmp_path}[\w/.-]*: No space left on device\n", err)
        assert list(folder.rglob(".*")) == []
        if folder.exists():
            assert run("--resume", folder) == 0
        else:  # nothing was learnt yet
            assert not any(name.startswith("step-0000000") for name in set(written) - {"step-00000000.safetensors"})
            assert run(text_file, *SMALL, "--steps", "15", "--out", folder) == 0
        assert results(folder) == expected
    assert place > 8


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files, which POSIX has")
def test_a_file_system_that_takes_no_larger_files_is_one_line(text_file, tmp_path):
    """The limit is real, of the system: writes beyond 8 KiB fail with EFBIG."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192));"
        "from bptt_array.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    folder = tmp_path / "run"
    command = [sys.executable, "-c", code, "train", str(text_file), *SMALL, "--hidden", "64", "--out", str(folder)]
    unmeasured = {
        name: value for name, value in os.environ.items() if not name.startswith("COV")
    }  # it writes files too
    done = subprocess.run(command, env=unmeasured, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr == f"bptt-array: error: {folder}/checkpoints/step-00000000.safetensors: File too large\n"
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs users, which POSIX has")
def test_a_folder_that_cannot_be_written_is_one_line(text_file, tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    user = os.geteuid()
    for parent in (tmp_path, *tmp_path.parents):  # root may write anywhere: be somebody else
        if user == 0 and parent.stat().st_uid == 0 and parent != Path("/") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    try:
        if user == 0:
            os.seteuid(65534)
        status = run(text_file, *SMALL, "--steps", "15", "--out", locked / "run")
    finally:
        os.seteuid(user)
    assert status == 2
    assert capsys.readouterr().err == f"bptt-array: error: {locked / 'run'}: Permission denied\n"
    assert list(locked.iterdir()) == []


def test_a_folder_that_is_removed_while_training_is_one_line(text_file, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    update = Trainer.update

    def remove_later(self, x, target, state, step, stop):
        if step == 10:
            shutil.rmtree(folder)
        return update(self, x, target, state, step, stop)

    monkeypatch.setattr(Trainer, "update", remove_later)
    assert run(text_file, *SMALL, "--steps", "40", "--out", folder) == 2
    err = capsys.readouterr().err
    assert err.startswith("bptt-array: error: ")
    assert str(folder) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("how", ["moved", "removed", "moved and another made", "removed and another made"])
def test_a_run_whose_folder_is_gone_stops_and_leaves_the_one_that_has_its_name_alone(
    how, text_file, tmp_path, monkeypatch, capsys
):
    """The other run begins, and ends, while the first one goes on."""
    folder, moved, update = tmp_path / "run", tmp_path / "moved", Trainer.update
    options = text_file, *SMALL, "--steps", "40", "--diagnose-every", "5", "--out", folder
    other = {}

    def later(self, x, target, state, step, stop):
        if step == 10:
            monkeypatch.setattr(Trainer, "update", update)
            folder.rename(moved)
            if "removed" in how:
                shutil.rmtree(moved)
            if "another" in how:
                assert run(*options, "--seed", "1") == 0
                other.update({path: path.read_bytes() for path in folder.rglob("*.*")})
        return update(self, x, target, state, step, stop)

    monkeypatch.setattr(Trainer, "update", later)
    assert run(*options) == 2
    err = capsys.readouterr().err
    instead = ", and another folder has its name now" if other else ""
    assert err.startswith(f"bptt-array: error: {folder} was moved or removed meanwhile{instead}: nothing was written")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == other
    assert folder.exists() == bool(other)
    if moved.exists():  # as the error says
        assert run("--resume", moved) == 0
        assert run(*options[:-1], tmp_path / "whole") == 0
        assert results(moved) == results(tmp_path / "whole")


def test_wherever_a_folder_is_moved_not_a_byte_of_another_under_its_name_changes(
    finished, text_file, tmp_path, monkeypatch
):
    """After every single file that a run writes, also its model, metrics, diagnoses and plot."""
    replace, others, count = os.replace, {}, [0]
    options = text_file, *SMALL, "--steps", "15", "--diagnose-every", "5", "--keep-checkpoints", "1"

    def content(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}

    def moving(place, folder):
        def replaced(new, path):
            replace(new, path)
            count[0] += 1
            if count[0] == place:
                folder.rename(folder.with_name(f"moved-{place}"))
                shutil.copytree(finished[0], folder)  # with checkpoints of earlier and of later steps

        return replaced

    for place in range(1, 200):
        folder, count[0] = tmp_path / f"run-{place}", 0
        with monkeypatch.context() as patch:
            patch.setattr(serialization.os, "replace", moving(place, folder))
            status = run(*options, "--out", folder)
        if count[0] < place:
            break
        assert content(folder) == content(finished[0]), place
        others[place] = status
    assert len(others) > 12
    assert set(list(others.values())[:-1]) == {2}
    assert list(others.values())[-1] == 0  # nothing was to be written any more


def test_a_page_about_a_run_goes_into_no_other_run_s_folder(finished, tmp_path, monkeypatch, capsys):
    folder, moved, page = finished[0], tmp_path / "moved", report.page

    def slow(path):
        made = page(path)
        path.rename(moved)
        path.mkdir()
        return made

    monkeypatch.setattr(report, "page", slow)
    assert cli.main(["report", str(folder)]) == 2
    assert "was moved or removed meanwhile, and another folder has its name now" in capsys.readouterr().err
    assert list(folder.iterdir()) == []
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no run folder; expected one that `train` wrote" in capsys.readouterr().err


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def full_where(is_full, replace=os.replace):
    """A way to rename written files on a disk that is full at some times."""

    def renamed(new, path):
        if is_full():
            raise OSError(28, "No space left on device")
        replace(new, path)

    return renamed


def test_keeping_fewer_checkpoints_makes_room_on_a_full_disk(text_file, tmp_path, monkeypatch, capsys):
    folder, options = tmp_path / "run", [*SMALL, "--hidden", "32", "--steps", "40", "--checkpoint-every", "8"]
    assert run(text_file, *options, "--out", tmp_path / "whole") == 0
    first, *_ = checkpoints.checkpoints(tmp_path / "whole")
    most = size(tmp_path / "whole") - first.stat().st_size // 2  # for two of them, not for three
    with monkeypatch.context() as patch:
        patch.setattr(serialization.os, "replace", full_where(lambda: size(folder) > most))
        assert run(text_file, *options, "--out", folder) == 2
        last = checkpoints.newest_checkpoint(folder, pytest.fail)
        assert len(checkpoints.checkpoints(folder)) > 1
        (folder / "other").write_bytes(bytes(max(0, most - size(folder))))  # and another program takes the rest
        assert run("--resume", folder) == 2
        err = capsys.readouterr().err
        assert err.count(": No space left on device\n") == err.count("\n") == 2
        assert run("--resume", folder, "--keep-checkpoints", "1") == 0
    assert last.step < 40
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(folder)] == [40]
    assert results(folder) == results(tmp_path / "whole")


@pytest.mark.parametrize("readable", [1, 2, 3])
def test_a_full_disk_never_leaves_a_run_without_a_complete_checkpoint(
    readable, finished, tmp_path, monkeypatch, capsys
):
    """Whichever of the checkpoints can still be read, and whichever file does not fit."""
    folder, expected = finished
    steps = [checkpoints.step_of(path) for path in checkpoints.checkpoints(folder)]
    for path in checkpoints.checkpoints(folder)[readable:]:
        path.write_bytes(path.read_bytes()[:-1])
    for written in range(4):
        copy = shutil.copytree(folder, tmp_path / f"{written}")
        with monkeypatch.context() as patch:
            left = [True] * written
            patch.setattr(serialization.os, "replace", full_where(lambda left=left: not (left and left.pop())))
            assert run("--resume", copy, "--keep-checkpoints", "1") == 2
        assert checkpoints.newest_checkpoint(copy, print).step >= steps[readable - 1]
        assert run("--resume", copy) == 0
        assert results(copy) == expected


def test_a_run_that_has_learnt_something_is_never_removed(text_file, tmp_path, monkeypatch, capsys):
    """Whatever happens between its first checkpoint and the model that follows from it."""

    def interrupted(*arguments):
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ba.RNN, "save", interrupted)
        assert run(text_file, *SMALL, "--steps", "15", "--out", folder) == 130
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(folder)] == [0, 7]
    assert run("--resume", folder) == 0
    assert run(text_file, *SMALL, "--steps", "15", "--out", tmp_path / "whole") == 0
    assert results(folder) == results(tmp_path / "whole")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_two_signals_at_once_lose_nothing(number, text_file, tmp_path):
    code = (
        "import os, signal, sys, threading; from bptt_array import cli, plots\n"
        "from bptt_array.runs import listeners; from bptt_array.training import trainer\n"
        f"def twice(): [os.kill(os.getpid(), signal.{number}) for _ in range(2)]\n"
        "update, count = trainer.Trainer.update, []\n"
        "def spied(*arguments):\n"
        "    count.append(1)\n"
        "    if len(count) == 50: threading.Thread(target=twice).start()\n"
        "    return update(*arguments)\n"
        "trainer.Trainer.update = spied; sys.exit(cli.main(sys.argv[1:]))"
    )
    folder = tmp_path / "run"
    options = [*SMALL, "--steps", "1000000", "--checkpoint-every", "10", "--out", str(folder)]
    done = subprocess.run(
        [sys.executable, "-c", code, "train", str(text_file), *options], capture_output=True, timeout=300
    )
    assert done.returncode == 128 + getattr(signal, number)
    assert checkpoints.newest_checkpoint(folder, print).step >= 40
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("kind", KINDS[:3], ids=lambda kind: kind.get("cell", "tanh"))
@pytest.mark.parametrize(("asked", "step"), [(1, 12), (3, 12), (9, 36), (15, 40)])
def test_a_validation_that_was_interrupted_is_made_when_the_run_goes_on_to_the_same_bits(asked, step, kind, tmp_path):
    """``asked``: batches of validations until the signal comes."""

    class Impatient(Kept):
        batches = 0

        def interrupted(self):
            self.batches += 1
            return self.batches == asked

    options = Options(**TINY | kind)
    whole, heard = Trainer(TEXT, options), Impatient()
    whole.run()
    batches = whole.validation.characters // (options.seq_len * options.batch)
    assert batches == 4  # at each of the steps 12, 24, 36 and 40
    first = Trainer(TEXT, options)
    first.run(heard)
    assert (first.step, heard.batches, first.finished) == (step, asked, False)
    assert [line.step for line in heard.lines if line.step >= step] == []
    path = checkpoints.write_checkpoint(tmp_path, heard.checkpoints[-1])
    second, again = Trainer(TEXT, options), Kept()
    second.restore(checkpoints.read_checkpoint(path))
    second.run(again)
    assert again.lines[0].step == step
    assert second.finished
    assert second.metrics == whole.metrics
    assert all(np.array_equal(second.rnn.params[name], whole.rnn.params[name]) for name in whole.rnn.params)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_within_a_validation_is_answered_at_once_and_costs_nothing(
    number, text_file, tmp_path, monkeypatch, capfd
):
    assert run(text_file, *SMALL, "--steps", "40", "--out", tmp_path / "whole") == 0
    folder, loss, said = tmp_path / "run", ba.RNN.loss, []
    calls = []

    def interrupted(self, *arguments, **more):
        calls.append(1)
        if len(calls) == 6:  # the second batch of the second validation
            capfd.readouterr()
            signal.raise_signal(getattr(signal, number))
            said.append(capfd.readouterr().err)
        return loss(self, *arguments, **more)

    monkeypatch.setattr(ba.RNN, "loss", interrupted)
    assert run(text_file, *SMALL, "--steps", "40", "--out", folder) == 128 + getattr(signal, number)
    assert len(calls) == 6
    answer = "bptt-array: stopping as soon as what was learnt is saved; a second signal stops at once\n"
    assert said == [answer]
    assert f"interrupted after step 24; what was learnt is in {folder}; to go on: " in capfd.readouterr().err
    monkeypatch.setattr(ba.RNN, "loss", loss)
    assert run("--resume", folder) == 0
    assert results(folder) == results(tmp_path / "whole")


def test_a_signal_while_a_text_is_read_ends_the_command_at_once(text_file, tmp_path, monkeypatch, capsys):
    assert run(text_file, *SMALL, "--steps", "20", "--out", tmp_path / "run") == 0
    before = results(tmp_path / "run")
    capsys.readouterr()

    def interrupted(self, part):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it is read on")

    monkeypatch.setattr(texts.TextBuilder, "add", interrupted)
    for arguments in ((text_file, *SMALL, "--out", tmp_path / "new"), ("--resume", tmp_path / "run")):
        assert run(*arguments) == 130
        assert capsys.readouterr().err == "bptt-array: interrupted\n"
    assert not (tmp_path / "new").exists()
    assert results(tmp_path / "run") == before


def test_an_output_that_is_closed_before_or_while_training_loses_nothing(text_file, tmp_path):
    train = (
        f"{sys.executable} -m bptt_array train {text_file} {' '.join(SMALL)} --checkpoint-every 12 --steps 240 --out"
    )
    for command, status in ((f"{train} run >&-", 0), (f"{train} piped | head -3", 0)):
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == status
        assert "Traceback" not in done.stderr
    assert checkpoints.newest_checkpoint(tmp_path / "run", print).step == 240
    assert checkpoints.newest_checkpoint(tmp_path / "piped", print).step >= 12


def test_what_is_no_plain_file_is_not_written_over_and_permissions_stay(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null")):
        with pytest.raises(FileExistsError, match="is a device or a pipe; expected the name of a file"):
            serialization.write_atomically(path, b"data")
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()
    secret = tmp_path / ("s" * 250)  # as long as names may be
    secret.touch(0o600)
    serialization.write_atomically(secret, b"data")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.read_bytes() == b"data"
    mine = tmp_path / ".mine.new"
    mine.touch()
    (tmp_path / ".bptt_array.x.new").touch()
    serialization.remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.new", "pipe", secret.name]


def test_the_text_of_a_run_that_was_moved_can_be_said(text_file, tmp_path, capsys):
    folder, moved = tmp_path / "run", tmp_path / "moved.txt"
    assert run(text_file, *SMALL, "--steps", "20", "--out", folder) == 0
    text_file.rename(moved)
    assert run("--resume", folder) == 2
    assert "text.txt cannot be read: No such file" in capsys.readouterr().err
    assert run(moved, "--resume", folder) == 0
    assert checkpoints.newest_checkpoint(folder, print).source == [str(text_file)]  # nothing was written anew
    os.mkfifo(text_file)
    assert run("--resume", folder) == 2
    assert "the text of the run, is no plain file; give the text: --resume RUN FILE" in capsys.readouterr().err


def test_other_versions_than_a_run_began_with_are_said(text_file, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert run(text_file, *SMALL, "--steps", "20", "--out", folder) == 0
    monkeypatch.setattr(runs, "versions", lambda: {"numpy": "0.1"})
    assert run("--resume", folder) == 0
    assert f"perhaps not to the last bit: numpy {np.__version__} -> 0.1" in capsys.readouterr().err


# ---- divergence -------------------------------------------------------------------------------------------


def poisoned(monkeypatch, step, change, times=1):
    """Let something go wrong in an update, so many times."""
    update, left = Trainer.update, [times]

    def spoil(self, x, target, state, at, stop=lambda: False):
        if at == step and left[0]:
            left[0] -= 1
            return change(self, update, x, target, state, at, stop)
        return update(self, x, target, state, at, stop)

    monkeypatch.setattr(Trainer, "update", spoil)


def nan_loss(self, update, *arguments):
    done = update(self, *arguments)
    return done._replace(loss=done.loss * np.nan)


def inf_gradient(self, update, *arguments):
    done = update(self, *arguments)
    return done._replace(largest=done.largest | {"l0.b_h": done.largest["l0.b_h"] * np.inf})


def nan_parameter(self, update, *arguments):
    done = update(self, *arguments)
    self.rnn.params["W_hy"][..., 0, 0] = -np.inf
    return done


@pytest.mark.parametrize(
    ("change", "message", "parameters"),
    [
        (nan_loss, "training diverged at step 13: the loss is nan at a learning rate of 0.0021; use a smaller", []),
        (inf_gradient, "training diverged at step 13: the gradient of l0.b_h is inf at a learning", ["l0.b_h"]),
        (nan_parameter, "training diverged at step 14: ", ["l0.W_xh", "l0.W_hh", "l0.b_h", "W_hy", "b_y"]),
    ],
)
def test_divergence_stops_training_and_names_step_parameter_and_learning_rate(change, message, parameters, monkeypatch):
    poisoned(monkeypatch, 13, change)
    trainer, listener = Trainer(TEXT, Options(**TINY)), Kept()
    with pytest.raises(divergence.DivergenceError, match=re.escape(message)) as raised:
        trainer.run(listener)
    assert raised.value.parameters == parameters
    assert [checkpoint.step for checkpoint in listener.checkpoints] == [0, 7, 7]  # nothing bad was kept
    assert listener.lines[-1].step == 12
    (event,) = listener.checkpoints[-1].events
    assert (event["step"], event["back_to"], event["lr"]) == (raised.value.step, 7, None)
    assert str(raised.value) == event["why"]
    assert trainer.step == 7
    assert all(np.isfinite(value).all() for value in trainer.rnn.params.values())


def test_what_went_wrong_first_is_what_is_named(monkeypatch):
    """Of updates that are looked at together."""
    poisoned(monkeypatch, 3, inf_gradient)
    poisoned(monkeypatch, 5, nan_loss)
    with pytest.raises(FloatingPointError, match=r"at step 3: the gradient of l0\.b_h is inf"):
        Trainer(TEXT, Options(**TINY)).run()


def test_divergence_names_the_member(monkeypatch):
    def spoil(self, update, *arguments):
        self.rnn.params["b_y"][1, ...] = np.nan
        return update(self, *arguments)

    poisoned(monkeypatch, 3, spoil)
    trainer = Trainer(TEXT, Options(**TINY, members=3))
    message = "at step 3: the loss of member 1 is nan and the gradient of l0.W_xh (and of l0.W_hh, l0.b_h, W_hy, b_y)"
    with pytest.raises(FloatingPointError, match=re.escape(message)):
        trainer.run()
    assert np.isfinite(trainer.rnn.params["b_y"][[0, 2]]).all()  # clipped by itself


def test_parameters_that_are_no_numbers_never_reach_a_checkpoint(monkeypatch):
    def last(self, update, *arguments):  # nothing reads them after this
        return nan_parameter(self, update, *arguments)

    poisoned(monkeypatch, 7, last)
    listener = Kept()
    with pytest.raises(FloatingPointError, match=r"at step 7: W_hy came to hold -inf at a learning rate of 0\.00255"):
        Trainer(TEXT, Options(**TINY)).run(listener)
    assert [checkpoint.step for checkpoint in listener.checkpoints] == [0, 0]
    assert all(np.isfinite(value).all() for kept in listener.checkpoints for value in kept.params.values())


def test_nothing_that_is_no_number_reaches_a_checkpoint_of_the_optimizer_either(monkeypatch, tmp_path):
    def overflow(self, update, *arguments):
        done = update(self, *arguments)
        self.optimizer._kept["b_y"][1][0] = np.inf  # which no parameter shows
        return done

    poisoned(monkeypatch, 7, overflow)
    listener = Kept()
    with pytest.raises(FloatingPointError, match="at step 7: what the optimizer keeps of b_y came to hold inf"):
        Trainer(TEXT, Options(**TINY)).run(listener)
    for checkpoint in listener.checkpoints:  # every one can be read again
        assert checkpoints.read_checkpoint(checkpoints.write_checkpoint(tmp_path, checkpoint)).step == 0


@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_a_validation_or_a_sample_that_is_no_number_is_divergence_too(validation, monkeypatch):
    poisoned(monkeypatch, 12, nan_parameter)
    with pytest.raises(FloatingPointError, match=r"at step 12: W_hy came to hold -inf"):
        Trainer(TEXT, Options(**TINY | {"validation": validation})).run()


def test_a_run_that_diverged_keeps_its_last_good_checkpoint_and_says_how_to_go_on(
    text_file, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        poisoned(patch, 13, nan_loss)
        assert run(text_file, *SMALL, "--steps", "40", "--out", folder) == 2
    err = capsys.readouterr().err
    assert "error: training diverged at step 13: the loss is nan at a learning rate of 0.0021; use a smaller" in err
    assert (
        f"the last good checkpoint, of step 7, is in {folder}: --resume {folder} --on-divergence halve-lr goes on"
        in err
    )
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(folder)] == [0, 7]
    assert np.isfinite(runs.load(folder)[0].params["W_hy"]).all()
    poisoned(monkeypatch, 13, nan_loss)
    assert run("--resume", folder, "--on-divergence", "halve-lr") == 0
    err = capsys.readouterr().err
    assert err.endswith("to a smaller norm; going back to step 7 and on with --lr 0.0015\n")
    lines = [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 12, 20, 24, 30, 36, 40]
    assert lines[0]["lr"] == pytest.approx(0.0015 * (1 - 9 / 40))
    events = checkpoints.newest_checkpoint(folder, print).events
    assert [(event["step"], event["back_to"], event["lr"]) for event in events] == [(13, 7, None), (13, 7, 0.0015)]


def test_the_learning_rate_is_halved_until_it_goes_well(monkeypatch):
    poisoned(monkeypatch, 13, nan_loss, times=3)
    trainer, listener = Trainer(TEXT, Options(**TINY, on_divergence="halve-lr")), Kept()
    trainer.run(listener)
    assert listener.back == [(13, 7, 0.0015), (13, 7, 0.00075), (13, 7, 0.000375)]
    assert trainer.lr == 0.000375
    assert [event["back_to"] for event in trainer.events] == [7, 7, 7]
    calm = Trainer(TEXT, Options(**TINY))
    calm.restore([checkpoint for checkpoint in listener.checkpoints if checkpoint.step == 7][-1])
    assert calm.lr == 0.000375  # it is in the checkpoint
    calm.run()
    assert calm.metrics == trainer.metrics


@pytest.mark.parametrize("every", [7, 10, 24])
def test_a_stop_changes_nothing_of_where_a_divergence_goes_back_to(every, tmp_path, monkeypatch):
    """Else it would go back to where somebody stopped the run, and come to other weights."""
    options = Options(**TINY | {"checkpoint_every": every, "steps": 60}, on_divergence="halve-lr")
    ends = []
    for stop in (None, 1, 9, 13, 20, 22, 23):
        with monkeypatch.context() as patch:
            poisoned(patch, 23, nan_loss, times=2)
            folder, trainer = tmp_path / str(stop), Trainer(TEXT, options)
            folder.mkdir()
            listener = Kept(stop)
            listener.checkpoint = lambda checkpoint, folder=folder: checkpoints.write_checkpoint(folder, checkpoint)
            trainer.run(listener)
            if stop is not None:
                assert trainer.step == (trainer.good.step if stop == 23 else stop)  # it diverged there
                trainer = Trainer.resumed(checkpoints.newest_checkpoint(folder, pytest.fail), TEXT, options)
                trainer.run()
        ends.append((trainer.events, trainer.metrics, {n: v.tobytes() for n, v in trainer.rnn.params.items()}))
        assert [event["back_to"] for event in trainer.events] == [every * (22 // every)] * 2
    assert all(end == ends[0] for end in ends)


def test_of_every_checkpoint_that_is_kept_stays_the_one_gone_back_to(tmp_path):
    """Also of one before the last: that one may be damaged."""
    trainer, listener, there = Trainer(TEXT, Options(**TINY | {"checkpoint_every": 10, "steps": 60})), Kept(25), []
    trainer.run(listener)
    trainer.run(listener)
    for checkpoint in listener.checkpoints:
        checkpoints.write_checkpoint(tmp_path, checkpoint)
        checkpoints.remove_earlier(tmp_path, checkpoint.step, 2)
        there.append([checkpoints.step_of(path) for path in checkpoints.checkpoints(tmp_path)])
    assert there == [[0], [0, 10], [10, 20], [20, 25], [20, 25, 30], [30, 40], [40, 50], [50, 60]]


def test_a_checkpoint_of_another_step_is_not_gone_back_to(tmp_path):
    trainer, listener, said = Trainer(TEXT, Options(**TINY)), Kept(15), []
    trainer.run(listener)
    for checkpoint in listener.checkpoints:
        last = checkpoints.write_checkpoint(tmp_path, checkpoint)
    (last.parent / "step-00000007.safetensors").replace(last.parent / "step-00000014.safetensors")
    assert checkpoints.newest_checkpoint(tmp_path, said.append).earlier is None
    assert said == [
        f"path={str(last.parent / 'step-00000014.safetensors')!r} is of step 7; a divergence goes back to step 15"
    ]


def test_the_checkpoint_to_which_a_divergence_goes_back_stays(text_file, tmp_path, capsys):
    folder, steps = tmp_path / "run", ["--steps", "40", "--checkpoint-every", "10"]
    assert run(text_file, *SMALL, *steps, "--out", folder) == 0
    for more in ("43", "47"):  # ends that are not due
        assert run("--resume", folder, "--steps", more, "--keep-checkpoints", "1") == 0
        assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(folder)] == [40, int(more)]
    found = checkpoints.newest_checkpoint(folder, pytest.fail)
    assert (found.step, found.goes_back_to, found.earlier.step) == (47, 40, 40)
    first, _ = checkpoints.checkpoints(folder)
    first.write_bytes(first.read_bytes()[:-3])  # it can do without
    capsys.readouterr()
    assert run("--resume", folder, "--steps", "60") == 0
    assert "step-00000040.safetensors" in (said := capsys.readouterr().err)
    assert said.count("; a divergence goes back to step 47") == 1
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(folder)] == [60]


def test_halving_ends(monkeypatch):
    poisoned(monkeypatch, 13, nan_loss, times=1000)
    trainer, listener = Trainer(TEXT, Options(**TINY, on_divergence="halve-lr")), Kept()
    with pytest.raises(FloatingPointError, match="at step 13"):
        trainer.run(listener)
    assert len(listener.back) == loop.HALVINGS


@pytest.mark.parametrize("lr", [0.0, 5e-324, 1e-3])
def test_halving_ends_and_is_stopped_where_nothing_goes_well(lr, monkeypatch):
    def spoil(self, update, *arguments):
        return nan_loss(self, update, *arguments)

    poisoned(monkeypatch, 1, spoil, times=1000)
    options, listener = Options(**TINY, lr=lr, on_divergence="halve-lr"), Kept()
    with pytest.raises(FloatingPointError, match="at step 1"):
        Trainer(TEXT, replace(options, steps=1)).run(listener)
    assert len(listener.back) == loop.HALVINGS
    trainer, listener = Trainer(TEXT, options), Kept()
    listener.stop = lambda: True
    trainer.run(listener)
    assert len(listener.back) <= 1


def test_a_run_that_diverges_at_once_leaves_what_says_why(text_file, tmp_path, capsys):
    folder = tmp_path / "run"
    options = [*SMALL, "--steps", "20", "--lr", "3e38", "--clip", "0", "--optimizer", "sgd", "--diagnose-every", "1"]
    assert run(text_file, *options, "--out", folder) == 2
    assert f"the last good checkpoint, of step 0, is in {folder}" in capsys.readouterr().err
    assert "training diverged at step " in report.page(folder)
    assert list(runs.read_diagnoses(folder)) == []  # those of the course that was given up are not shown


def test_initial_parameters_that_are_no_numbers_are_said_to_be_so():
    trainer = Trainer(TEXT, Options(**TINY))
    trainer.rnn.params["b_y"][0] = np.inf
    with pytest.raises(FloatingPointError, match="before the first update b_y of the initial parameters holds inf"):
        trainer.run()
    with pytest.raises(ValueError, match=r"forget_bias=1e\+39; expected a number that float32 can hold"):
        Trainer(TEXT, Options(**TINY, cell="lstm", forget_bias=1e39))


def test_a_learning_rate_that_is_really_too_high_is_halved_until_training_ends_well(text_file, tmp_path, capsys):
    options = [*SMALL, "--cell", "relu", "--optimizer", "sgd", "--clip", "0", "--lr", "1e6", "--steps", "200"]
    assert run(text_file, *options, "--on-divergence", "halve-lr", "--out", tmp_path / "run") == 0
    assert "going back to step 0 and on with --lr 500000" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / runs.METRICS).read_text().splitlines()]
    assert lines[-1]["step"] == 200
    assert lines[-1]["validation"] < 0.1 * lines[0]["loss"]


@pytest.mark.parametrize("device", cuda)
@pytest.mark.skipif(importlib.util.find_spec("gpuemu") is None, reason="counting synchronisations needs gpuemu")
def test_divergence_is_looked_for_without_waiting_at_every_step(device):
    import gpuemu

    trainer = Trainer(TEXT, Options(**TINY), device)
    listener = Kept()
    trainer.run(listener)  # compiles
    watch = divergence.Readings(trainer.rnn.backend)
    with gpuemu.count() as counted:
        state = None
        for step in range(1, 9):
            _, x, target = trainer.train.at(step)
            done = trainer.update(x, target, state, step)
            state = done.state
            watch.add(step, 0.1, done.loss, done.largest)
    assert counted.syncs == counted.implicit_syncs == counted.d2h == 0
    with gpuemu.count() as counted:
        assert len(watch.read()) == 8
    assert counted.d2h == 1


@pytest.mark.parametrize(("make", "dtype"), backends_and_dtypes())
def test_the_largest_entries_are_those_and_what_is_no_number_shows(make, dtype):
    backend, rng = make(), np.random.default_rng(0)
    host = {"W": rng.standard_normal((3, 4, 2)).astype(dtype), "b": -np.arange(6, dtype=dtype).reshape(3, 2)}
    host["W"][1, 2, 1], host["b"][2, 0] = np.nan, -np.inf
    grads = {name: backend.from_host(value) for name, value in host.items()}
    found = ba.optimizers.largest_entries(grads, members=3)
    for name, value in host.items():
        expected = np.abs(value.reshape(3, -1)).max(axis=1)
        np.testing.assert_array_equal(backend.to_host(found[name]), expected)
    alone = ba.optimizers.largest_entries({"b": grads["b"][0, ...]})
    assert float(backend.to_host(alone["b"])) == 1
    finite = {"b": grads["b"][:2, ...]}
    clipped = ba.clip_by_global_norm(finite, 1.0)
    same = ba.clip_by_global_norm(finite, 1.0, largest=ba.optimizers.largest_entries(finite))
    np.testing.assert_array_equal(backend.to_host(clipped["b"]), backend.to_host(same["b"]))
    with pytest.raises(ValueError, match=r"largest has keys \['W'\]; expected those of grads, \['b'\]"):
        ba.clip_by_global_norm({"b": grads["b"]}, 1.0, largest={"W": found["W"]})


# ---- determinism ------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_in_another_process(text_file, tmp_path):
    options = [*SMALL, "--steps", "40", "--cell", "lstm", "--dropout", "0.2", "--layers", "2", "--members", "2"]
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, seed in zip(folders, ("0", "0", "1"), strict=True):
        command = [sys.executable, "-m", "bptt_array", "train", str(text_file), *options, "--seed", seed]
        # What Python draws at every start must not matter.
        environment = {**os.environ, "PYTHONHASHSEED": str(random.randrange(1 << 30))}
        subprocess.run([*command, "--out", str(folder)], check=True, capture_output=True, env=environment, timeout=300)
    one, two, three = map(results, folders)
    assert one == two
    assert one[runs.MODEL] != three[runs.MODEL]
    last = [checkpoints.checkpoints(folder)[-1] for folder in folders[:2]]
    found, other = map(checkpoints.read_checkpoint, last)
    for name in ("params", "kept", "state", "losses", "metrics"):
        np.testing.assert_equal(getattr(found, name), getattr(other, name))


@pytest.mark.parametrize(("make", "dtype"), backends_and_dtypes())
def test_the_same_seed_learns_the_same_on_every_device_to_rounding(make, dtype):
    options = Options(**TINY | {"steps": 10, "dtype": dtype, "cell": "lstm", "layers": 2, "dropout": 0.3, "members": 2})
    here, there = Trainer(TEXT, options, NumpyBackend()), Trainer(TEXT, options, make())
    start = {name: there.rnn.backend.to_host(value) for name, value in there.rnn.params.items()}
    assert all(np.array_equal(value, here.rnn.params[name]) for name, value in start.items())
    for trainer in (here, there):
        trainer.run()
    tolerance = {"float32": 2e-5, "float64": 1e-12}[dtype]
    for ours, theirs in zip(here.metrics, there.metrics, strict=True):
        assert theirs.loss == pytest.approx(ours.loss, rel=tolerance)
        assert theirs.validation == pytest.approx(ours.validation, rel=tolerance)


def test_a_run_is_resumed_on_its_own_device_unless_told_otherwise(text_file, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(text_file, *SMALL, "--steps", "15", "--out", folder) == 0
    last = checkpoints.checkpoints(folder)[-1]
    checkpoint = checkpoints.read_checkpoint(last)
    assert checkpoint.device == "cpu" == resolve("cpu").name
    capsys.readouterr()
    moved = checkpoints.Checkpoint(**vars(checkpoint) | {"device": "cuda:97"})
    checkpoints.write_checkpoint(folder, moved)
    assert run("--resume", folder) == 2
    assert "device='cuda:97'" in capsys.readouterr().err
    assert run("--resume", folder, "--device", "cpu") == 0
