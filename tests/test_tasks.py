"""The classic tasks are what their definitions say, a wrong answer counts as wrong, and what is told was measured."""

import json
import math
import re
from dataclasses import replace

import measure
import numpy as np
import pytest
import tasks
from tasks import Adding, Copying, Counting, Parity


def rng(seed=0):
    return np.random.default_rng(seed)


def answering(y):
    """A network that answers ``y``."""
    return lambda x: (y, None)


def for_members(*answers, axis):
    return np.stack(answers, axis=axis).astype(np.float32)


# ---- adding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [2, 7, 100])
def test_adding_marks_one_number_in_each_half_and_asks_for_their_sum(T):
    x, target, lengths = Adding(T).draw(rng(), 300)
    assert (x.shape, target.shape, lengths) == ((T, 300, 2), (300, 1), None)
    numbers, marks = x[..., 0], x[..., 1]
    assert set(np.unique(marks)) <= {0, 1}
    assert (marks[: T // 2].sum(axis=0) == 1).all()
    assert (marks[T // 2 :].sum(axis=0) == 1).all()
    assert 0 <= numbers.min() <= numbers.max() < 1
    for n in range(300):
        first, second = np.flatnonzero(marks[:, n])
        assert target[n, 0] == numbers[first, n] + numbers[second, n]
    assert (marks.sum(axis=1) > 0).all()  # every step is marked somewhere


def test_the_numbers_of_adding_are_uniform():
    numbers = Adding(20).draw(rng(), 5000)[0][..., 0]
    assert numbers.mean() == pytest.approx(0.5, abs=0.005)
    assert numbers.var() == pytest.approx(1 / 12, abs=0.002)


def test_answering_one_to_adding_costs_the_baseline_and_the_truth_nothing():
    task = Adding(10)
    x, target, _ = task.draw(rng(), 20_000)
    y = for_members(np.ones_like(target), target, target + 0.5, axis=0)
    one, right, wrong = task.figure(answering(y), x, target, None)
    assert one == pytest.approx(task.baseline, rel=0.03)
    assert right == 0
    assert wrong == pytest.approx(0.25, rel=1e-5)  # not half of it


# ---- copying --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 5, 100])
def test_copying_shows_ten_symbols_a_delay_and_a_delimiter_and_asks_for_the_symbols(T):
    x, target, lengths = Copying(T).draw(rng(), 200)
    assert x.shape == target.shape == (T + 20, 200)
    assert lengths is None
    assert set(np.unique(x[:10])) == set(range(8))
    assert (x[10 : T + 9] == 8).all()  # blanks
    assert (x[T + 9] == 9).all()  # the delimiter
    assert (x[T + 10 :] == 8).all()
    assert (target[: T + 10] == 8).all()
    assert (target[T + 10 :] == x[:10]).all()


class Copier:
    """Answers blanks until it is asked, then ``answer(x)``: probabilities ``(10, N, 9)``."""

    def __init__(self, answer):
        self.answer = answer

    def loss(self, x, target, loss):
        assert loss == "cross_entropy"
        p = np.zeros((*x.shape, 9))
        p[:-10, :, 8] = 1
        p[-10:] = self.answer(x)
        with np.errstate(divide="ignore"):
            nats = -np.log(np.take_along_axis(p, target[..., None], axis=-1))
        return nats.mean(), None


def test_guesses_cost_the_memoryless_baseline_of_copying_and_memory_costs_nothing():
    task = Copying(30)
    assert task.guesses == pytest.approx(10 * math.log(8) / 50)
    x, target, _ = task.held_out(rng(), test=False)
    uniform = np.full((10, x.shape[1], 9), 1 / 8)
    assert task.figure(Copier(lambda x: uniform), x, target, None) == pytest.approx(task.baseline)
    assert task.figure(Copier(lambda x: np.eye(9)[x[:10]]), x, target, None) == 0
    assert task.figure(Copier(lambda x: np.eye(9)[x[:10] - 1]), x, target, None) == np.inf


# ---- parity ---------------------------------------------------------------------------------------------


def test_parity_is_that_of_all_bits_so_far():
    x, target, lengths = Parity(50, longest=6).draw(rng(), 100)
    assert set(lengths) == set(range(1, 7))
    assert len(x) == 6
    for n in range(100):
        for t in range(6):
            assert target[t, n] == sum(int(bit) for bit in x[: t + 1, n]) % 2


def test_strings_of_parity_that_are_held_out_are_longer_than_those_learnt():
    task = Parity(50, longest=6)
    assert [len(task.held_out(rng(), test)[0]) for test in (False, True)] == [50, 500]


def test_one_wrong_parity_makes_a_string_wrong():
    task = Parity(8)
    x, target, _ = task.held_out(rng(), test=False)
    right = np.eye(2)[target]
    wrong = right.copy()
    wrong[5, :100] = wrong[5, :100, ::-1]
    y = for_members(right, wrong, right[..., ::-1], axis=1)
    assert task.figure(answering(y), x, target, None).tolist() == [0, 0.2, 1]


# ---- counting -------------------------------------------------------------------------------------------


def may_follow(prefix):
    """Letters after a beginning of a^n b^n, n at least 1, by trying: "e" is its end."""
    words = ["a" * n + "b" * n + "e" for n in range(1, 20)]
    return {word[len(prefix)] for word in words if word.startswith(prefix) and len(word) > len(prefix)}


def test_counting_asks_for_every_letter_that_may_follow():
    x, target, lengths = Counting(9).strings([1, 4, 9])
    assert lengths.tolist() == [3, 9, 19]
    for k, n in enumerate([1, 4, 9]):
        word = "a" * n + "b" * n
        assert "".join("eab"[token] for token in x[: 2 * n + 1, k]) == "e" + word
        for t in range(2 * n + 1):
            assert {"eab"[i] for i in np.flatnonzero(target[t, k])} == may_follow(word[:t])


def test_counting_learns_short_strings_and_is_looked_at_with_all_up_to_long_ones():
    task = Counting(40, longest=5)
    assert set(task.draw(rng(), 200)[2]) == {3, 5, 7, 9, 11}
    assert task.held_out(rng(), test=True)[2].tolist() == [2 * n + 1 for n in range(1, 41)]
    assert (task.baseline, task.goal) == (5, 7)


def test_counting_ends_before_the_first_string_with_a_wrong_letter():
    task = Counting(12)
    x, target, lengths = task.held_out(rng(), test=True)
    wrong, past = target.copy(), target.copy()
    wrong[10, 6] = 1 - wrong[10, 6]  # n = 7; those above are right
    past[3, 0] = 1 - past[3, 0]  # after the end of n = 1
    y = for_members(target, wrong, past, 0 * target, np.nan * target, axis=1)
    assert task.figure(answering(y), x, target, lengths).tolist() == [12, 6, 12, 0, 0]


# ---- training -------------------------------------------------------------------------------------------


def test_goals_are_not_met_by_what_is_no_number():
    assert tasks.at_goal(Adding(5), [0.01, 0.011, np.nan, np.inf]).tolist() == [True, False, False, False]
    assert tasks.at_goal(Counting(99), [45, 44, 50, np.nan]).tolist() == [True, False, True, False]


def test_gradients_that_explode_are_left_out_of_that_member_alone():
    grads = {"a": np.ones((3, 2)), "b": np.ones((3, 1, 2))}
    grads["a"][1, 0], grads["b"][2, 0, 1] = np.inf, np.nan
    assert tasks.without_explosions(grads, 3).tolist() == [False, True, True]
    assert grads["a"].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert grads["b"].tolist() == [[[1, 1]], [[0, 0]], [[0, 0]]]


@pytest.mark.parametrize("row", tasks.QUICK, ids=lambda row: type(row.task).__name__)
def test_the_same_seed_gives_the_same_curves_and_time_only_ends_them(row):
    row = replace(row, every=5, most=15)
    first, again, other = (tasks.train(row, 2, seed, math.inf) for seed in (0, 0, 7))
    assert first["curves"] == again["curves"]
    assert first["test"] == again["test"]
    if isinstance(row.task, Adding | Copying):  # the others have learnt nothing yet
        assert first["curves"] != other["curves"]
    longer = tasks.train(replace(row, most=25), 2, 0, math.inf)
    assert [curve[: len(first["steps"])] for curve in longer["curves"]] == first["curves"]
    assert tasks.train(replace(row, most=None), 2, 0, 0)["steps"] == [0]  # no time, no update


def test_a_row_ends_when_every_seed_is_at_the_goal_and_says_when_each_was():
    easy = tasks.Row(Copying(2), tasks.ORTHOGONAL, "", 64, 3e-4, 1, **tasks.NEARLY_LINEAR, every=20, most=1000)
    found = tasks.train(easy, 2, 0, math.inf)
    assert found["updates"] < 1000
    assert found["solved"] == [True, True]
    assert max(found["test"]) <= found["goal"]
    for first, curve in zip(found["first_at_goal"], found["curves"], strict=True):
        at = found["steps"].index(first)
        assert curve[at] <= found["goal"] < min(curve[:at])
    assert found["updates"] == found["steps"][-1] >= max(found["first_at_goal"])


class Forgetful(Parity):
    """At the goal whenever it is looked at, and wrong in the test."""

    def figure(self, rnn, x, target, lengths):
        return np.full(rnn.members, float(len(x) > self.T))


def test_a_goal_that_was_reached_but_not_held_in_the_test_is_not_said_to_be():
    found = tasks.train(replace(tasks.QUICK[3], task=Forgetful(10)), 2, 0, math.inf)
    assert (found["updates"], found["first_at_goal"]) == (0, [0, 0])
    assert (found["test"], found["solved"]) == ([1, 1], [False, False])


def test_the_inputs_factor_is_that_of_the_weights_of_the_inputs():
    row = replace(tasks.QUICK[0], inputs=0.0, most=0)  # the network answers 0: biases and states are
    found = tasks.train(row, 2, 0, math.inf)
    _, target, _ = row.task.held_out(rng([0, 1]), test=False)
    assert found["curves"] == [[pytest.approx(np.square(target).mean(), rel=1e-5)]] * 2


# ---- what is told ---------------------------------------------------------------------------------------


def result_with(**changes):
    row = tasks.train(replace(tasks.QUICK[0], most=0), 3, 0, math.inf) | {"published": "there"} | changes
    return {"seeds": 3, "rows": [row]}


def test_the_table_says_median_worst_and_for_how_many_seeds_the_goal_was_reached():
    found = result_with(
        test=[0.004, None, 0.2], solved=[True, False, False], first_at_goal=[20, None, 40], exploded=[0, 3, 0]
    )
    (line,) = [line for line in tasks.tables(found) if line.startswith("| Adding")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[-6:] == ["<= 0.01", "0.200", "no number", "1 of 3", "20-40", "there"]
    assert "were left out, by seed: Adding, T = 10, ReLU, identity: 0, 3, 0." in "".join(tasks.tables(found))


def test_of_figures_that_should_be_high_the_lowest_is_the_worst():
    found = {"higher_is_better": True, "test": [3, None, 9, 5]}
    assert tasks.ranked(found) == [9, 5, 3, None]
    assert tasks.ranked(found | {"higher_is_better": False}) == [3, 5, 9, None]


def test_the_script_prints_and_writes_what_it_measured(tmp_path, capsys):
    result = tasks.main(["--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert [row["task"] for row in result["rows"]] == ["Adding", "Copying", "Counting", "Parity"]
    for row in result["rows"]:
        assert row["updates"] == 40
        assert len(row["curves"]) == len(row["test"]) == result["seeds"] == 2
        solved, worst = sum(row["solved"]), tasks.number(tasks.ranked(row)[-1], row)
        assert re.search(rf"\| {re.escape(tasks.label(row))} +\|.* {worst} \| +{solved} of 2 \|", printed)
    assert json.loads((tmp_path / "results" / "tasks.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "images" / "tasks.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_shown_in_the_figure_may_be_no_number(tmp_path):
    found = result_with()
    found["rows"][0]["curves"] = [[0.2], [None], [0.1]]
    assert tasks.save_figure(found, tmp_path).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "argument --minutes: 0 is not positive"),
        (["--minutes", "nan"], "argument --minutes: nan is not positive"),
        (["--seeds", "0"], "argument --seeds: 0 is not positive"),
        (["--seed", "-1"], "argument --seed: -1 is negative"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_named(arguments, said, capsys):
    with pytest.raises(SystemExit):
        tasks.main(arguments)
    assert said in capsys.readouterr().err


def test_a_first_look_does_not_touch_the_results_that_are_kept():
    assert tasks.parse([]).out == measure.OUT
