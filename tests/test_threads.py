"""The number of threads of a run: fast now, the same bits whatever it is, and obeyed where somebody says so."""

import itertools
import json
import random
import threading

import numpy as np
import pytest
import threadpoolctl

from bptt_array import cli
from bptt_array.runs import checkpoints
from bptt_array.runs import folder as runs
from bptt_array.training import sampling, threads
from bptt_array.training.listener import Listener
from bptt_array.training.options import Options
from bptt_array.training.threads import Pool, Threads
from bptt_array.training.trainer import Trainer

TEXT = "the quick brown fox jumps over the lazy dog; größer!\n" * 30
SMALL = ["--hidden", "16", "--seq-len", "8", "--batch", "4", "--steps", "30"]
STEPS = 32

#: Seconds of a gradient on two cores that nobody else uses, and beside a busy loop on each.
QUIET, BUSY = {1: 0.006, 2: 0.005}, {1: 0.015, 2: 0.6}


class Machine:
    """Two cores with a clock of their own. ``takes(count, now)``: seconds of a gradient."""

    all = 2

    def __init__(self, takes, fixed=None):
        self.now, self.takes, self.count, self.compared, self.equal = 0.0, takes, 2, 0, True
        self.threads = Threads(self, fixed, clock=lambda: self.now)
        self.said, self.of_training = [], 0.0

    def set(self, count):
        self.count = count

    def restore(self):
        self.count = self.all

    def gradient(self, steps):
        self.now += self.takes(self.count, self.now) * steps / STEPS

    def results(self):
        self.compared += 1
        self.gradient(STEPS)
        return [1, 1 if self.equal else self.count]

    def choose(self, begun=True):
        said = self.threads.choose(self.gradient, STEPS, self.results, begun=begun)
        if said is not None:
            self.said.append(said)
        return self.threads.now

    def train(self, updates):
        """The numbers of threads that updates had."""
        counts = []
        for _ in range(updates):
            began = self.now
            self.gradient(STEPS)
            counts.append(self.count)
            self.of_training += self.now - began
            if self.threads.note(self.now - began):
                self.choose()
        return counts


def steady(takes):
    return lambda count, now: takes[count]


def test_all_threads_are_taken_where_they_are_faster_and_one_where_that_is():
    assert Machine(steady(QUIET)).choose() == 2
    busy = Machine(steady(BUSY))
    assert busy.choose() == 1
    assert busy.said == ["1 of 2 threads: 2 would take 40 times as long now"]
    small = Machine(steady({1: 1e-5, 2: 3e-5}))
    assert small.choose() == 1


def test_hardly_any_difference_changes_nothing():
    assert Machine(steady({1: 0.0095, 2: 0.01})).choose() == 2


def test_to_find_out_that_cores_are_busy_takes_little_of_what_it_saves():
    machine = Machine(steady(BUSY))
    machine.choose()
    assert machine.now < 2 * BUSY[2]  # one whole gradient of that kind, for results to be compared, and parts of others


@pytest.mark.parametrize("seed", range(5))
def test_beside_busy_loops_a_run_takes_hardly_longer_than_with_one_thread(seed):
    """Every gradient is held up by chance, as among programs that take turns."""
    rng = random.Random(seed)

    def takes(count, now):
        return BUSY[count] * rng.choice([0.3, 0.6, 1, 1, 1.5, 4])

    machine = Machine(takes)
    machine.choose()
    machine.train(2000)
    alone = sum(takes(1, 0) for _ in range(2000))
    assert machine.now < 1.3 * alone


@pytest.mark.parametrize("seed", range(5))
def test_on_a_quiet_machine_a_run_takes_hardly_longer_than_with_all_threads(seed):
    rng = random.Random(seed)

    def takes(count, now):
        return QUIET[count] * rng.choice([1, 1, 1, 1.05, 1.1, 1.3])

    machine = Machine(takes)
    machine.choose()
    counts = machine.train(2000)
    assert machine.now < 1.05 * sum(takes(2, 0) for _ in range(2000))
    assert counts.count(2) > 1900


@pytest.mark.parametrize("seed", range(5))
def test_threads_that_wait_only_now_and_then_are_not_taken_for_fast(seed):
    """Most gradients are faster with all threads than with one, and every fourth takes very long."""
    rng = random.Random(seed)
    machine = Machine(lambda count, now: (0.01 if rng.random() < 0.75 else 0.6) if count == 2 else 0.015)
    machine.choose()
    counts = machine.train(2000)
    assert machine.now < 1.5 * 2000 * 0.015
    assert counts.count(1) > 1900


def test_cores_that_become_busy_and_free_again_are_noticed():
    machine = Machine(lambda count, now: (BUSY if 10 < now < 60 else QUIET)[count])
    machine.choose()
    counts = machine.train(9000)
    became_busy, became_free = counts.index(1), 9000 - counts[::-1].index(1)
    assert counts[:became_busy] == [2] * became_busy
    assert set(counts[became_busy:became_free]) == {1}
    assert set(counts[became_free:]) == {2}
    slow = sum(1 for _ in itertools.takewhile(lambda count: count == 2, counts[int(10 / QUIET[2] * 0.9) :]))
    assert slow < 250
    assert became_free < 9000 - 1000


def test_trials_are_a_small_part_of_a_run_even_where_updates_change_all_the_time():
    machine = Machine(lambda count, now: (QUIET if int(now) % 2 else BUSY)[count])
    machine.choose()
    machine.train(3000)
    assert machine.now < 1.1 * machine.of_training + 2


def test_a_measurement_by_luck_is_made_again_soon():
    """All threads were fast in the trial, and are slow in every update from the first on."""
    machine = Machine(lambda count, now: (QUIET if now < 0.5 else BUSY)[count])
    machine.choose()
    machine.now = 0.5
    counts = machine.train(300)
    assert 2 <= counts.index(1) < 60


def test_where_bits_depend_on_the_number_a_run_that_has_begun_keeps_it():
    machine = Machine(lambda count, now: (QUIET if now < 1 else BUSY)[count])
    machine.equal = False
    assert machine.choose(begun=False) == 2
    assert not machine.compared  # nothing was to be changed
    machine.now = 1.0
    machine.train(300)
    assert machine.compared == 2
    assert (machine.threads.now, machine.threads.for_good, machine.count) == (2, True, 2)
    assert machine.said[-1].endswith(
        "results depend on that to the last bit: so many to the end of the run (--threads: others)"
    )
    assert set(machine.train(300)) == {2}


def test_where_bits_depend_on_the_number_a_new_run_takes_one_thread_for_good_only_if_it_is_much_faster():
    for takes, expected in ((BUSY, 1), ({1: 0.01, 2: 0.013}, 2)):
        machine = Machine(steady(takes))
        machine.equal = False
        assert machine.choose(begun=False) == expected == machine.count
        assert machine.threads.for_good
        machine.takes = steady({1: 1.0, 2: 0.01} if expected == 1 else BUSY)
        assert set(machine.train(100)) == {expected}


def test_a_comparison_of_results_that_takes_long_does_not_put_off_the_next_trial():
    """It is made once; the cores are free again right after it."""
    machine = Machine(lambda count, now: (BUSY if now < 100 else QUIET)[count])

    def results():
        machine.now = 100.0
        return []

    assert machine.threads.choose(machine.gradient, STEPS, results, begun=True).startswith("1 of 2 threads")
    counts = machine.train(3000)
    assert counts.index(2) < 1500


def test_results_are_compared_only_once():
    machine = Machine(lambda count, now: (QUIET if int(now / 30) % 2 else BUSY)[count])
    machine.choose()
    machine.train(20000)
    assert len(machine.said) > 4
    assert machine.compared == 2


def test_a_number_that_was_said_is_taken_and_nothing_is_tried():
    machine = Machine(steady(BUSY), fixed=2)
    with machine.threads:
        assert machine.choose() == machine.count == 2
        assert set(machine.train(50)) == {2}
    assert machine.now == pytest.approx(50 * BUSY[2])


# ---- real runs --------------------------------------------------------------------------------------------


def now():
    return max(pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas")


class Restless(Threads):
    """Changes the number after every update, if results allow that."""

    def note(self, seconds):
        return True

    def trial(self, gradient, steps):
        return random.choice([(1.0, 3.0), (3.0, 1.0)])


class Heard(Listener):
    def __init__(self):
        self.said = []

    def threads(self, step, said):
        self.said.append((step, said))


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "float64", "clip": 0.01}, {"cell": "gru", "layers": 2, "dropout": 0.2}, {"diagnose_every": 2}],
    ids=str,
)
def test_however_threads_are_chosen_a_run_ends_with_the_bits_of_the_number_that_it_records(options):
    """A product of this size is cut up for the threads."""
    options = Options(**{"hidden": 160, "batch": 24, "seq_len": 4, "steps": 4} | options)
    text = TEXT * 2
    pool = Pool()
    pool.all = 2
    restless, heard = Trainer(text, options), Heard()
    restless.threads = Restless(pool)
    restless.run(heard)
    assert heard.said
    assert restless.threads.for_good == (restless.options.threads is not None)
    fixed = Trainer(text, options)
    fixed.threads = Threads(pool, restless.options.threads or 2)
    fixed.run()
    assert fixed.metrics == restless.metrics
    for name, value in fixed.rnn.params.items():
        assert np.array_equal(value, restless.rnn.params[name]), name


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def unset(monkeypatch):
    """No variable says how many threads there are, and there are two cores."""
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cores", lambda: 2)
    with threadpoolctl.threadpool_limits(2):
        yield


def train(*arguments):
    return cli.main(["train", *map(str, arguments)])


def started(folder):
    return json.loads((folder / runs.ENVIRONMENT).read_text())


def test_a_run_in_a_thread_of_its_own_sets_the_number_too():
    """threadpoolctl 3.8: what another thread than the first says is silently left out."""
    found = []

    def run():
        pool = Pool()
        pool.set(1)
        found.append(now())
        pool.restore()
        found.append(now())

    with threadpoolctl.threadpool_limits(2):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert found == [1, 2]


def spied(monkeypatch):
    """The numbers of threads of updates, and of the sample at the end."""
    counts, update, write = [], Trainer.update, sampling.sample

    def spy(self, *arguments):
        counts.append(now())
        return update(self, *arguments)

    def last(*arguments, **more):
        counts.append(now())
        return write(*arguments, **more)

    monkeypatch.setattr(Trainer, "update", spy)
    monkeypatch.setattr(sampling, "sample", last)  # of the finished run
    return counts


def test_train_says_which_number_it_took_and_notes_it(unset, text_file, tmp_path, capsys, monkeypatch):
    counts = spied(monkeypatch)
    assert train(text_file, *SMALL, "--out", tmp_path / "run") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if " of 2 threads (" in line]
    assert said
    (start,) = started(tmp_path / "run")
    assert start["threads"] == "chosen, of 2"
    assert start["threads taken"].startswith(f"from step 0 on {said[0].partition(' (')[0]}")
    assert said[0].startswith(f"{counts[0]} of 2 threads")
    assert now() == 2  # as before


@pytest.mark.parametrize("count", [1, 2])
def test_a_number_can_be_said_also_for_a_run_that_goes_on(count, unset, text_file, tmp_path, capsys, monkeypatch):
    counts = spied(monkeypatch)
    assert train(text_file, *SMALL, "--threads", count, "--out", tmp_path / "run") == 0
    assert train("--resume", tmp_path / "run") == 0  # takes the same
    assert set(counts) == {count}
    assert "not as it was" not in capsys.readouterr().err
    other = 3 - count
    assert train("--resume", tmp_path / "run", "--threads", other) == 0
    assert f"threads {count} throughout -> {other} throughout" in capsys.readouterr().err


@pytest.mark.parametrize("name", threads.VARIABLES)
def test_a_variable_that_says_how_many_is_obeyed(name, unset, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(name, "2")
    counts = spied(monkeypatch)
    assert train(text_file, *SMALL, "--out", tmp_path / "run") == 0
    assert set(counts) == {2}
    assert started(tmp_path / "run")[0]["threads"] == f"2, by {name}"
    assert " threads (" not in capsys.readouterr().out


def test_more_threads_than_cores_are_refused(unset, text_file, tmp_path, capsys):
    assert train(text_file, *SMALL, "--threads", "3", "--out", tmp_path / "run") == 2
    assert "error: --threads=3; expected at most 2: the cores" in capsys.readouterr().err
    assert train(text_file, *SMALL, "--threads", "0", "--out", tmp_path / "run") == 2
    assert "error: --threads=0 is too small" in capsys.readouterr().err


def test_what_was_chosen_for_good_is_taken_by_whoever_goes_on(unset, text_file, tmp_path, monkeypatch, capsys):
    """Results that depend on the number, and one thread that is much faster at the start of the run alone."""
    with monkeypatch.context() as patch:
        patch.setattr(Threads, "_are_equal", lambda self, results: False)
        patch.setattr(Threads, "trial", lambda self, gradient, steps: (1.0, 40.0))
        assert train(text_file, *SMALL, "--out", tmp_path / "run") == 0
    assert "to the end of the run" in capsys.readouterr().out
    assert checkpoints.newest_checkpoint(tmp_path / "run", print).options["threads"] == 1
    monkeypatch.setattr(Threads, "trial", lambda self, gradient, steps: pytest.fail("nothing is to be tried"))
    assert train("--resume", tmp_path / "run") == 0
    monkeypatch.setattr(threads, "cores", lambda: 0)  # another machine, which has not as many
    monkeypatch.setattr(Threads, "trial", lambda self, gradient, steps: (1.0, 1.0))
    assert train("--resume", tmp_path / "run") == 0
