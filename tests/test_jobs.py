"""The command line on real ranks: the same run however many there are, and what becomes of all when one fails."""

import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mpi
import numpy as np
import pytest
from conftest import needs_cuda

from bptt_array import cli, distributed
from bptt_array.cli import job as jobs
from bptt_array.distributed import OneProcess
from bptt_array.runs import checkpoints
from bptt_array.runs import folder as runs
from bptt_array.runs.folder import read_metrics
from bptt_array.training.threads import VARIABLES


def flags(text):
    return text.split()


TEXT = "the quick brown fox jumps over the lazy dog; größer!\n" * 40
#: Five streams: no number of ranks shares them out evenly. In float64, so that only mistakes are seen.
SMALL = flags("--hidden 8 --seq-len 8 --batch 5 --steps 60 --checkpoint-every 7 --eval-every 12 --dtype float64")
KINDS = {
    "plain": [],
    "lstm": flags("--cell lstm --layers 2 --dropout 0.3 --recurrent-dropout 0.2 --forget-bias 1 --diagnose-every 30"),
    "members": flags("--cell gru --members 2 --optimizer momentum --recurrent-dropout 0.2 --validation 0.02"),
    "no-validation": flags("--validation 0 --clip 0 --optimizer sgd"),
}
RUN = "-m", "bptt_array", "train"
FAULTY = str(mpi.TESTS / "on_job.py")

pytestmark = mpi.needs_mpi


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def train(text_file, out, *options):
    """A run of one process, to compare with."""
    assert cli.main(["train", str(text_file), *SMALL, *options, "--out", str(out)]) == 0
    return out


def train_on(ranks, text_file, out, *options, program=RUN, **environment):
    return mpi.run(ranks, *program, text_file, *SMALL, *options, "--out", out, **environment)


@pytest.fixture(scope="module")
def whole(text_file, tmp_path_factory):
    """A function of a number of ranks (1: one process without MPI): the folder of a run that nothing stopped."""

    @functools.cache
    def run(ranks):
        folder = tmp_path_factory.mktemp("whole") / str(ranks)
        if ranks == 1:
            return train(text_file, folder, *KINDS["lstm"])
        status, _, err = train_on(ranks, text_file, folder, *KINDS["lstm"])
        assert status == 0, err
        return folder

    return run


def assert_same_run(folder, other, bound=1e-9):
    """The same metrics and the same weights, to rounding; and the same samples."""
    lines, others = read_metrics(folder), read_metrics(other)
    assert [line.step for line in lines] == [line.step for line in others]
    for mine, theirs in zip(lines, others, strict=True):
        for name in ("loss", "validation", "lr", "characters", "members_loss", "members_validation"):
            a, b = getattr(mine, name), getattr(theirs, name)
            assert (a is None) == (b is None)
            assert a is None or np.allclose(a, b, rtol=bound, atol=0), (mine.step, name, a, b)
        assert mine.sample == theirs.sample
    (mine, _), (theirs, _) = runs.load(folder), runs.load(other)
    for name, value in mine.params.items():
        assert np.max(np.abs(value - theirs.params[name])) <= 1e-7 * np.max(np.abs(value)), name


def same_bytes(folder, other):
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in (runs.MODEL, runs.METRICS))


def to_go_on(out):
    """The command that a job says to go on with, on the ranks that it says."""
    (line,) = re.findall(r"to go on from the last checkpoint: (mpiexec .*)", out)
    _, _, ranks, python, *arguments = shlex.split(line)
    assert python == sys.executable
    return int(ranks), *arguments


# ---- the same run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_two_three_and_four_ranks_learn_as_one_process_does(kind, text_file, tmp_path):
    alone = train(text_file, tmp_path / "alone", *KINDS[kind])
    for ranks in (2, 4) if kind == "plain" else (3,):
        status, out, err = train_on(ranks, text_file, tmp_path / str(ranks), *KINDS[kind])
        assert status == 0, err
        assert_same_run(tmp_path / str(ranks), alone)
        assert out.count("learning ") == out.count("A sample") == 1  # rank 0 speaks, and nobody else
        assert len(re.findall(r"^step +\d+ .* validation", out, re.M)) == (0 if kind == "no-validation" else 5)
        names = {str(path.relative_to(alone)) for path in alone.rglob("*") if path.is_file()}
        folder = tmp_path / str(ranks)
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == names


def test_more_ranks_than_streams_and_a_validation_text_of_one(text_file, tmp_path):
    options = "--batch", "2", "--validation", "0.003"
    alone = train(text_file, tmp_path / "alone", *options)
    status, out, err = train_on(4, text_file, tmp_path / "four", *options)
    assert status == 0, err
    assert "each with 0 or 1 of 2 streams" in out
    assert_same_run(tmp_path / "four", alone)


def test_the_same_job_gives_the_same_bits(text_file, tmp_path, whole):
    assert train_on(3, text_file, tmp_path / "again", *KINDS["lstm"])[0] == 0
    assert same_bytes(tmp_path / "again", whole(3))


def test_a_run_folder_says_on_how_many_ranks_of_which_mpi(text_file, tmp_path):
    from mpi4py import MPI

    assert train_on(2, text_file, tmp_path / "run")[0] == 0
    (entry,) = runs.RunFolder(tmp_path / "run").started()
    assert entry["ranks"] == "2"
    assert entry["MPI"].startswith(MPI.get_vendor()[0])


# ---- stopped, and gone on with ----------------------------------------------------------------------------


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_on_any_number_of_ranks(text_file, tmp_path, whole):
    folder = tmp_path / "2"
    status, out, err = train_on(2, text_file, folder, *KINDS["lstm"], program=(FAULTY, "terminate", "train"))
    assert status == 128 + signal.SIGTERM
    assert err.count("interrupted after step 10; what was learnt is in") == 1
    assert checkpoints.newest_checkpoint(folder, pytest.fail).step == 10
    one, three = (shutil.copytree(folder, tmp_path / name) for name in "13")
    assert cli.main(["train", "--resume", str(one)]) == 0
    assert mpi.run(*to_go_on(out))[0] == 0
    assert same_bytes(folder, whole(2))
    status, _, err = mpi.run(3, *RUN, "--resume", three)
    assert status == 0, err
    assert "perhaps not to the last bit: ranks 2 -> 3" in err
    for resumed in (one, folder, three):
        assert_same_run(resumed, whole(2))


def test_a_run_of_one_process_goes_on_on_several(text_file, tmp_path, whole):
    folder = tmp_path / "run"
    arguments = ["train", str(text_file), *SMALL, *KINDS["lstm"], "--out", str(folder)]
    stop_at(25, arguments)
    status, out, err = mpi.run(3, *RUN, "--resume", folder)
    assert status == 0, err
    assert "going on with" in out
    assert "ranks none -> 3" in err
    assert_same_run(folder, whole(1))


def stop_at(step, arguments):
    """Run a command in this process until a signal after some update."""
    from bptt_array.training import trainer as training

    update = training.Trainer.update

    def stopping(self, x, target, state, at, stop):
        if at == step:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, x, target, state, at, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Trainer, "update", stopping)
        assert cli.main(arguments) == 130


def test_a_signal_to_one_rank_within_a_validation_stops_all_in_the_midst_of_it(text_file, tmp_path, whole):
    folder = tmp_path / "run"
    status, _, err = train_on(2, text_file, folder, *KINDS["lstm"], program=(FAULTY, "in-validation", "train"))
    assert status == 143, err
    last = checkpoints.newest_checkpoint(folder, pytest.fail)
    assert f"interrupted after step {last.step}; " in err
    assert last.step not in [line.step for line in read_metrics(folder)]
    assert mpi.run(2, *RUN, "--resume", folder)[0] == 0
    assert same_bytes(folder, whole(2))


def test_ctrl_c_ends_a_job_and_leaves_what_it_can_go_on_from(text_file, tmp_path):
    folder, long = tmp_path / "run", ["--steps", "1000000", "--checkpoint-every", "50", "--eval-every", "500"]
    process = mpi.start(2, *RUN, text_file, *SMALL, *long, "--out", folder)
    wait_for(lambda: any(checkpoints.step_of(path) >= 100 for path in checkpoints.checkpoints(folder)))
    os.kill(process.pid, signal.SIGINT)  # to mpiexec alone: it is a launcher's business to pass it on
    status, out, err = mpi.finish(process)
    assert status != 0
    step = checkpoints.newest_checkpoint(folder, pytest.fail).step
    assert step >= 100
    # Open MPI's mpiexec passes nothing on any more that is written from here on
    assert f"interrupted after step {step}" in err or "Open MPI" in out


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_job_goes_on_for_more_steps_and_from_the_weights_of_a_run(text_file, tmp_path, whole):
    folder = tmp_path / "2"
    options = "--steps", "20", "--seq-len", "8", "--batch", "5"  # the network is that of the run
    begun = *RUN, text_file, *options, "--init-from", whole(1), "--lr-schedule", "constant", "--eval-every", "10"
    status, out, err = mpi.run(2, *begun, "--out", folder)
    assert status == 0, err
    assert out.count("beginning with the weights of") == 1
    status, out, err = mpi.run(2, *RUN, "--resume", folder, "--steps", "40")
    assert status == 0, err
    assert out.count("the run is to have 40 steps, not 20") == 1
    alone = tmp_path / "alone"
    assert cli.main(["train", *map(str, begun[3:]), "--steps", "40", "--out", str(alone)]) == 0
    assert_same_run(folder, alone)
    status, _, err = mpi.run(2, *RUN, "--resume", folder, "--steps", "20")
    assert status == 2
    assert err.count("error: --steps=20 is fewer than the 40 updates that the run has had") == err.count("error:") == 1


# ---- one rank fails ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["die", "die-first"])
def test_a_rank_that_is_killed_ends_the_job_which_goes_on_from_its_last_checkpoint(fault, text_file, tmp_path, whole):
    folder = tmp_path / "run"
    status, out, err = train_on(3, text_file, folder, *KINDS["lstm"], program=(FAULTY, fault, "train"))
    assert status != 0
    assert "signal 9" in out + err  # mpiexec says so
    assert checkpoints.newest_checkpoint(folder, pytest.fail).step == 7
    assert mpi.run(*to_go_on(out))[0] == 0  # and the job had said what to do
    assert same_bytes(folder, whole(3))


@pytest.mark.parametrize(
    ("fault", "step", "words"),
    [
        ("error", 7, "bptt-array: error: rank 1 of 2: /data: Input/output error"),
        ("mistake", 7, "KeyError: 'a mistake'"),
        ("twice", 7, "bptt-array: rank 1 of 2: interrupted"),
        ("full-disk", 7, f"bptt-array: error: rank 0 of 2: .*: {os.strerror(28)}"),
    ],
)
def test_an_error_of_one_rank_is_told_and_ends_the_job(fault, step, words, text_file, tmp_path):
    folder = tmp_path / "run"
    status, _, err = train_on(2, text_file, folder, program=(FAULTY, fault, "train"))
    assert status not in (0, None)
    assert re.search(words, err), err
    assert checkpoints.newest_checkpoint(folder, pytest.fail).step == step
    assert mpi.run(2, *RUN, "--resume", folder)[0] == 0


def test_a_job_whose_folder_is_moved_ends_and_writes_nothing_into_the_one_that_has_its_name(text_file, tmp_path, whole):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    status, _, err = train_on(3, text_file, folder, *KINDS["lstm"], program=(FAULTY, "move", "train"))
    assert status not in (0, None)
    assert f"error: rank 0 of 3: {folder} was moved or removed meanwhile, and another folder has its name now" in err
    assert [path.name for path in folder.iterdir()] == ["mine"]
    assert checkpoints.newest_checkpoint(moved, pytest.fail).step == 7
    assert mpi.run(3, *RUN, "--resume", moved)[0] == 0
    assert same_bytes(moved, whole(3))


def test_an_error_of_one_rank_before_training_leaves_nothing(text_file, tmp_path):
    status, _, err = train_on(2, text_file, tmp_path / "run", program=(FAULTY, "no-memory", "train"))
    assert status == 2
    expected = "bptt-array: error: rank 1 of 2: not enough memory (Unable to allocate 1.00 TiB); use a smaller --hidden"
    assert err.count(expected) == err.count("error: rank") == 1
    assert not (tmp_path / "run").exists()


def test_ranks_that_come_to_differ_are_found_at_the_next_checkpoint(text_file, tmp_path):
    folder = tmp_path / "run"
    status, _, err = train_on(2, text_file, folder, program=(FAULTY, "changed", "train"))
    assert status == 2
    assert err.count("error: params are not the same on all 2 ranks: 'W_hy' of rank 1 differ from those of rank 0") == 1
    assert checkpoints.newest_checkpoint(folder, pytest.fail).step == 7


def test_what_is_no_number_on_one_rank_is_divergence_on_all(text_file, tmp_path):
    folder = tmp_path / "run"
    status, _, err = train_on(2, text_file, folder, program=(FAULTY, "not-a-number", "train"))
    assert status == 2
    assert err.count("error: training diverged at step 10: the loss is nan") == err.count("diverged") == 1
    assert checkpoints.newest_checkpoint(folder, pytest.fail).step == 7


def test_the_learning_rate_is_halved_on_all_ranks(text_file, tmp_path):
    options = flags("--optimizer sgd --lr 1e150 --clip 0 --cell relu --on-divergence halve-lr --steps 30")
    status, out, err = train_on(2, text_file, tmp_path / "run", *options)
    assert status == 2
    assert err.count("going back to step 0") == 20
    assert err.count("the learning rate was halved 20 times") == 1
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "-1"], "error: --lr=-1.0; expected"),
        (["--cell", "lstm", "--init", "identity", "--hidden", "0"], "error: --hidden=0 is too small"),
        (["--device", "cuda:77"], r"error: (device='cuda:77'|--device)"),
        (["/nowhere.txt"], "error: /nowhere.txt cannot be read"),
        (["--resume", "/nowhere"], "error: /nowhere is no run folder"),
        (["--resume", "/nowhere", "--hidden", "3"], "error: --hidden belongs to the run"),
        (["--transport", "nccl"], "error: --transport nccl is for CUDA devices, but this run is on cpu"),
    ],
)
def test_an_error_of_all_is_told_once(arguments, words, tmp_path):
    out = [] if "--resume" in arguments else ["--out", tmp_path / "run"]
    status, printed, err = mpi.run(2, *RUN, *arguments, *out)
    assert status == 2
    assert len(re.findall(words, err)) == len(re.findall("error:", err)) == 1, err
    assert "Traceback" not in printed + err
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_told_once(text_file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    status, _, err = train_on(2, text_file, tmp_path / "run")
    assert status == 2
    assert len(re.findall(r"error: --out=.* exists and is not an empty folder", err)) == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


# ---- what a job is ----------------------------------------------------------------------------------------


def test_ranks_share_the_cores_unless_told_otherwise():
    cores = len(os.sched_getaffinity(0))
    for environment, expected in (
        ({}, max(1, cores // 2)),
        ({"OPENBLAS_NUM_THREADS": "3"}, 3),
    ):
        environment = dict.fromkeys(VARIABLES, "") | environment  # the tests' own is no wish
        status, out, err = mpi.run(2, FAULTY, "threads", "train", **environment)
        assert status == 0, err
        of_ranks = [json.loads(line) for line in re.findall(r"\[.*?\]", out)]  # two may have written one line
        assert len(of_ranks) == 2
        assert {count for counts in of_ranks for count in counts} <= {expected, min(expected, cores)}


@pytest.mark.parametrize(
    ("mine", "all_of_them", "expected"),
    [
        ({0, 1, 2, 3}, [{0, 1, 2, 3}] * 2, 2),  # not bound: shared
        ({2, 3}, [{0, 1}, {2, 3}], 2),  # bound to cores of their own
        ({0}, [{0}] * 3, 1),
    ],
)
def test_threads_of_a_rank(mine, all_of_them, expected, monkeypatch):
    import threadpoolctl

    found = []
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: mine)
    monkeypatch.setattr(threadpoolctl, "threadpool_limits", found.append)
    here = SimpleNamespace(allgather=lambda own: all_of_them, Get_size=lambda: len(all_of_them))
    jobs._share_cores(here)
    assert found == [expected]


def test_every_rank_of_a_machine_takes_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(jobs, "cuda_device_count", lambda: 2)
    monkeypatch.setattr(jobs, "resolve", lambda name: SimpleNamespace(name=name))
    job = jobs.Job(OneProcess())
    assert [job.device(name).name for name in ("cuda", "auto", "cuda:1", "cpu")] == ["cuda", "auto", "cuda:1", "cpu"]
    mpi4py = SimpleNamespace(MPI=SimpleNamespace(COMM_TYPE_SHARED="of one machine"))
    monkeypatch.setitem(sys.modules, "mpi4py", mpi4py)
    monkeypatch.setattr(jobs, "_share_cores", lambda here: None)
    for local, expected in enumerate(["cuda:0", "cuda:1", "cuda:0"]):
        here = SimpleNamespace(Get_rank=lambda local=local: local, Free=lambda: None)
        comm = SimpleNamespace(Split_type=lambda kind, here=here: {"of one machine": here}[kind])
        job = jobs.Job(SimpleNamespace(size=8, rank=5 + local, comm=comm))
        assert job.device("cuda").name == job.device("auto").name == expected
        assert (job.device("cuda:1").name, job.device("cpu").name) == ("cuda:1", "cpu")
    assert (job.same_device("cuda:0"), job.same_device("cpu")) == ("cuda", "cpu")
    monkeypatch.setattr(jobs, "cuda_device_count", lambda: 0)
    assert (job.device("cuda").name, job.device("auto").name) == ("cuda", "auto")  # for resolve to say what is missing


def test_a_transport_is_for_several_processes(capsys):
    assert cli.main(["train", "--transport", "host"]) == 2
    assert capsys.readouterr().err == (
        "bptt-array: error: --transport host is for several processes, started by mpiexec; leave it out\n"
    )


def test_a_launcher_without_mpi4py_is_an_error_that_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "2")
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mpi4py" else find(name))
    assert cli.main(["train"]) == 2
    assert re.match(r"bptt-array: error: .* needs mpi4py and an MPI: pip install mpi4py mpich", capsys.readouterr().err)


# ---- on CUDA devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("_", [pytest.param(None, marks=needs_cuda(2))])
def test_ranks_on_devices_of_their_own_learn_as_one_process_on_the_cpu(_, text_file, tmp_path):
    options = *KINDS["lstm"], "--steps", "20"
    alone = train(text_file, tmp_path / "alone", *options)
    status, out, err = train_on(2, text_file, tmp_path / "run", *options, "--device", "cuda")
    assert status == 0, err
    assert "device='cuda:0'" in out
    assert_same_run(tmp_path / "run", alone)
    assert checkpoints.newest_checkpoint(tmp_path / "run", pytest.fail).device == "cuda:0"
    status, _, err = train_on(2, text_file, tmp_path / "other", *options, "--device", "cuda", "--transport", "nccl")
    assert status == 2
    assert "transport='nccl': " in err


@pytest.mark.parametrize("_", [pytest.param(None, marks=needs_cuda(1))])
def test_a_stop_is_noticed_on_a_device_where_its_results_are_read(_, text_file, tmp_path):
    status, _, err = train_on(
        2, text_file, tmp_path / "run", "--device", "cuda", program=(FAULTY, "terminate", "train")
    )
    assert status == 128 + signal.SIGTERM, err
    assert re.search(r"interrupted after step (10|12);", err)


def test_this_file_tells_the_readme_s_command():
    page = Path(distributed.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert "mpiexec -n 4 .venv/bin/python -m bptt_array train" in page
