"""Learning-rate schedules: those of torch over a thousand steps, from any step on, and errors in one line."""

import copy
import json
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import needs_torch

import bptt_array as ba
from bptt_array.optimizers.lr_schedules import Plateau, cosine, exponential, linear, step, warm_up

STEPS, LR = 1000, 0.3


def of_torch(make, losses=None):
    """The learning rate of each of the first STEPS updates under a scheduler of torch, made from its module."""
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))], lr=LR)
    scheduler, found = make(torch.optim.lr_scheduler, optimizer), []
    for k in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([] if losses is None else [losses[k]]))
    return np.array(found)


def warmed_up(steps, then):
    """The same in torch."""

    def make(kinds, optimizer):
        first = kinds.LinearLR(optimizer, start_factor=1 / steps, total_iters=steps - 1)
        return kinds.SequentialLR(optimizer, [first, then(kinds, optimizer)], milestones=[steps])

    return make


CASES = {
    "cosine": (cosine(STEPS), lambda kinds, o: kinds.CosineAnnealingLR(o, STEPS)),
    "cosine to a tenth": (cosine(STEPS, least=0.1), lambda kinds, o: kinds.CosineAnnealingLR(o, STEPS, 0.1 * LR)),
    "linear": (linear(STEPS), lambda kinds, o: kinds.LinearLR(o, 1.0, 0.0, STEPS)),
    "linear, then 0": (linear(700), lambda kinds, o: kinds.LinearLR(o, 1.0, 0.0, 700)),
    "step": (step(150), lambda kinds, o: kinds.StepLR(o, 150)),
    "step of one": (step(1, factor=0.995), lambda kinds, o: kinds.StepLR(o, 1, gamma=0.995)),
    "exponential": (exponential(0.99), lambda kinds, o: kinds.ExponentialLR(o, 0.99)),
    "warm-up": (warm_up(100), lambda kinds, o: kinds.LinearLR(o, start_factor=1 / 100, total_iters=99)),
    "warm-up, cosine": (
        warm_up(100, then=cosine(900, least=0.01)),
        warmed_up(100, lambda kinds, o: kinds.CosineAnnealingLR(o, 900, 0.01 * LR)),
    ),
    "warm-up, step": (
        warm_up(7, then=step(100, factor=0.5)),
        warmed_up(7, lambda kinds, o: kinds.StepLR(o, 100, 0.5)),
    ),
}


@needs_torch
@pytest.mark.parametrize(("schedule", "make"), CASES.values(), ids=CASES)
def test_a_schedule_is_that_of_torch_over_a_thousand_steps(schedule, make):
    found = np.array([LR * schedule(k) for k in range(STEPS)])
    np.testing.assert_allclose(found, of_torch(make), rtol=1e-12, atol=0)
    middle = pickle.loads(pickle.dumps(schedule))  # what goes on from the middle needs the step and nothing else
    assert [LR * middle(k) for k in range(500, STEPS)] == found[500:].tolist()


def test_the_ends_of_schedules_are_exact():
    for k in (100, 101, 10**9):
        assert cosine(100, least=0.25)(k) == 0.25
        assert cosine(100)(k) == linear(100)(k) == 0
        assert warm_up(100)(k) == 1
    assert cosine(100)(0) == linear(100)(0) == step(3)(2) == exponential(0.5)(0) == 1
    assert [warm_up(4)(k) for k in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [warm_up(2, then=linear(4))(k) for k in range(7)] == [0.5, 1, 1, 0.75, 0.5, 0.25, 0]
    assert warm_up(1)(0) == 1
    assert [step(2, factor=0.5)(k) for k in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    assert step(2, factor=0)(2) == exponential(0.9)(10**9) == 0
    assert all(linear(7)(k) == 1 - k / 7 for k in range(8))  # to the last bit, as a training run has it


def test_any_function_of_the_step_follows_a_warm_up():
    assert [warm_up(2, then=lambda k: 10.0 + k)(k) for k in range(4)] == [0.5, 1, 10, 11]
    plateau = Plateau(factor=0.5, patience=0)
    schedule = warm_up(2, then=plateau)
    assert [plateau.observe(loss) for loss in (1.0, 1.0)] == [1.0, 0.5]
    assert [schedule(k) for k in range(4)] == [0.5, 1, 0.5, 0.5]
    assert [warm_up(2, then=warm_up(2))(k) for k in range(4)] == [0.5, 1, 0.5, 1]


def test_a_plateau_after_a_warm_up_is_told_losses_and_goes_on():
    schedule = warm_up(2, then=warm_up(2, then=Plateau(factor=0.5, patience=0)))
    assert [schedule.observe(loss) for loss in (1.0, 1.0)] == [1.0, 0.5]
    other = pickle.loads(pickle.dumps(warm_up(2, then=warm_up(2, then=Plateau(factor=0.5, patience=0)))))
    assert other != schedule
    other.load_state_dict(schedule.state_dict())
    assert other == schedule == copy.deepcopy(schedule)
    assert [other(k) for k in range(5)] == [0.5, 1, 0.5, 1, 0.5]
    for none in (warm_up(2), warm_up(2, then=linear(3))):
        assert not any(hasattr(none, name) for name in ("observe", "state_dict", "anything"))


def test_schedules_can_be_printed_and_compared_and_stay_as_they_are():
    schedule = warm_up(10, then=cosine(np.int64(90), least=0))
    assert repr(schedule) == "warm_up(steps=10, then=cosine(steps=90, least=0.0))"
    assert eval(repr(schedule)) == schedule == copy.deepcopy(schedule) != warm_up(10)
    assert repr([linear(3), step(2), exponential(0.5)]) == (
        "[linear(steps=3), step(every=2, factor=0.1), exponential(factor=0.5)]"
    )
    assert {linear(3): 1}[linear(np.int32(3))] == 1
    with pytest.raises(AttributeError, match="steps"):
        schedule.steps = 3
    assert type(schedule.then.steps) is int


def test_schedules_are_imported_when_they_are_asked_for():
    program = "import sys, bptt_array as ba; name = 'bptt_array.optimizers.lr_schedules'; print(name in sys.modules)"
    program += "; ba.lr_schedules; print(name in sys.modules, 'lr_schedules' in dir(ba))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "True", "True"]


# ---- a plateau --------------------------------------------------------------------------------------------

PLATEAUS = [
    {},
    {"factor": 0.5, "patience": 3},
    {"factor": 0.9, "patience": 0, "threshold": 0.01},
    {"factor": 0.7, "patience": 2, "cooldown": 5},
    {"factor": 0.3, "patience": 1, "cooldown": 1, "least": 0.01},
    {"factor": 0.5, "patience": 2, "threshold": 0.0, "least": 0.2},
]


def falling(seed):
    """Losses that fall in jumps, with noise, and one now and then that is no number."""
    rng = np.random.default_rng(seed)
    losses = np.exp(-np.floor(np.arange(STEPS) / 50) / 5) * (1 + 0.01 * rng.standard_normal(STEPS))
    losses[rng.integers(0, STEPS, 10)] = np.nan
    losses[rng.integers(0, STEPS, 10)] = np.inf
    return losses


@needs_torch
@pytest.mark.parametrize("settings", PLATEAUS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_plateau_is_that_of_torch_over_a_thousand_losses(settings, seed):
    losses, plateau = falling(seed), Plateau(**settings)
    least = settings.get("least", 0.0) * LR
    theirs = {name: value for name, value in settings.items() if name != "least"} | {"min_lr": least, "eps": 0.0}
    expected = of_torch(lambda kinds, o: kinds.ReduceLROnPlateau(o, **theirs), losses)
    found, states = [], []
    for k, loss in enumerate(losses):
        found.append(LR * plateau(k))
        states.append(json.dumps(plateau.state_dict(), allow_nan=False))
        plateau.observe(loss)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert len(set(found)) > 3
    for begin in range(0, STEPS, 97):
        other = Plateau(**settings)
        other.load_state_dict(json.loads(states[begin]))
        again = []
        for k in range(begin, STEPS):
            again.append(LR * other(k))
            other.observe(losses[k])
        assert again == found[begin:]
        assert other == plateau


def test_a_negative_loss_is_better_where_it_is_smaller():
    """A density's logarithm may be positive. A part of the size of the best is what counts, whatever its sign."""
    plateau, rising = Plateau(factor=0.5, patience=1, threshold=0.01), [-1.0, -0.999, -0.998, -0.997]
    assert [plateau.observe(loss) for loss in rising] == [1, 1, 0.5, 0.5]
    assert plateau.state_dict()["best"] == -1
    plateau = Plateau(factor=0.5, patience=1, threshold=0.01)
    assert [plateau.observe(loss) for loss in (-1.0, -1.005, -1.02, -1.0, -1.025)] == [1, 1, 1, 1, 0.5]


def test_a_plateau_waits_for_its_first_number():
    plateau = Plateau(factor=0.5, patience=1, threshold=0.5)
    assert [plateau.observe(loss) for loss in (np.nan, -np.inf, np.float32(3), 1, 0.9)] == [1, 0.5, 0.5, 0.5, 0.5]
    assert plateau.state_dict() == {"factor": 0.5, "best": 1.0, "no_better": 1, "cooldown": 0}


def test_a_plateau_takes_an_integer_that_no_float_holds_for_an_infinite_loss():
    for huge in (10**400, -(10**400)):
        plateau = Plateau(patience=0)
        assert [plateau.observe(loss) for loss in (1, huge)] == [1.0, 0.1]
        assert plateau.state_dict()["best"] == 1.0


def test_settings_of_a_plateau_act_and_its_copies_go_on_alone():
    plateau = Plateau()
    assert repr(plateau) == "Plateau(factor=0.1, patience=10, threshold=0.0001, cooldown=0, least=0.0)"
    assert eval(repr(plateau)) == plateau != Plateau(patience=9)
    assert plateau != 1
    plateau.patience, plateau.factor = 0, 0.5
    plateau.observe(1.0)
    state = plateau.state_dict()
    others = [copy.copy(plateau), copy.deepcopy(plateau), pickle.loads(pickle.dumps(plateau))]
    assert plateau.observe(1.0) == 0.5
    assert state["factor"] == 1
    for other in others:
        assert other != plateau
        assert other.state_dict() == state
        assert other.observe(1.0) == 0.5
        assert other == plateau
    plateau.least = 0.8  # which is above the factor: it stays
    assert plateau.observe(2.0) == 0.5


# ---- errors -----------------------------------------------------------------------------------------------

WRONG = [
    (lambda: cosine(0), ValueError, "steps=0 is too small; expected a whole number of at least 1"),
    (lambda: cosine(10.0), TypeError, "steps=10.0 is a float; expected a whole number of at least 1"),
    (lambda: cosine(10, least=2), ValueError, "least=2; expected a number from 0 to 1"),
    (lambda: cosine(10, -0.1), ValueError, "least=-0.1; expected a finite number of at least 0"),
    (lambda: linear(True), TypeError, "steps=True is a bool"),
    (lambda: warm_up(-1), ValueError, "steps=-1 is too small"),
    (
        lambda: warm_up(3, 0.5),
        TypeError,
        "then=0.5 is a float; expected a function of the step, such as lr_schedules.c",
    ),
    (
        lambda: warm_up(3, cosine),
        TypeError,
        "is a type; expected a function of the step, such as lr_schedules.cosine(1",
    ),
    (lambda: step(0), ValueError, "every=0 is too small"),
    (lambda: step(3, 1.5), ValueError, "factor=1.5; expected a number from 0 to 1: a rate that grows is a function of"),
    (lambda: exponential("0.9"), TypeError, "factor='0.9' is a str; expected a real number"),
    (lambda: exponential(float("nan")), ValueError, "factor=nan; expected a finite number of at least 0"),
    (lambda: Plateau(factor=1), ValueError, "factor=1; expected a finite number of at least 0 and below 1"),
    (lambda: Plateau(patience=-1), ValueError, "patience=-1 is too small; expected a whole number of at least 0"),
    (lambda: Plateau(threshold=1.0), ValueError, "threshold=1.0; expected a finite number of at least 0 and below 1"),
    (lambda: Plateau(cooldown=0.5), TypeError, "cooldown=0.5 is a float"),
    (lambda: Plateau(least=1.5), ValueError, "least=1.5; expected a number from 0 to 1"),
    (lambda: Plateau().observe("1"), TypeError, "value='1' is a str; expected a real number: float(value)"),
    (lambda: Plateau().observe(np.ones(2)), TypeError, "of an ensemble float(value.mean())"),
    (lambda: Plateau().observe(True), TypeError, "value=True is a bool; expected a real number"),
]


@pytest.mark.parametrize(("call", "kind", "message"), WRONG, ids=[row[-1] for row in WRONG])
def test_what_no_schedule_is_made_of_is_named(call, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        call()


@pytest.mark.parametrize("schedule", [*(schedule for schedule, _ in CASES.values()), Plateau()], ids=repr)
def test_a_step_is_a_whole_number(schedule):
    assert schedule(np.int64(3)) == schedule(3)
    with pytest.raises(ValueError, match="step=-1 is too small; expected a whole number of at least 0"):
        schedule(-1)
    with pytest.raises(TypeError, match=r"step=3\.0 is a float; expected a whole number of at least 0"):
        schedule(3.0)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            None,
            TypeError,
            "state_dict is none that state_dict() returned; expected a dictionary of factor, best, no_better",
        ),
        ({"more": 1}, TypeError, "state_dict is none that state_dict() returned"),
        ({"factor": 2.0}, ValueError, "state_dict['factor']=2.0; expected a number from 0 to 1"),
        ({"best": "1"}, TypeError, "state_dict['best']='1' is a str"),
        ({"best": float("nan")}, ValueError, "state_dict['best']=nan; expected a finite number"),
        ({"no_better": -1}, ValueError, "state_dict['no_better']=-1 is too small"),
        ({"cooldown": None}, TypeError, "state_dict['cooldown']=None is a NoneType"),
    ],
)
def test_a_state_that_is_none_changes_nothing(change, kind, message):
    plateau = Plateau(patience=0)
    for loss in (3.0, 4.0, 5.0):
        plateau.observe(loss)
    before = plateau.state_dict()
    with pytest.raises(kind, match=re.escape(message)):
        plateau.load_state_dict(change and before | {"factor": 0.5, "best": 1.0} | change)
    assert plateau.state_dict() == before


def test_what_the_errors_advise_works():
    assert [(lambda k: 1.01**k)(k) for k in range(2)] == [1, 1.01]
    assert warm_up(3, ba.lr_schedules.cosine(1000))(3) == 1
    loss = ba.RNN(2, 3, 1, members=2).loss(np.ones((2, 1, 2), "f"), np.ones((2, 1, 1), "f"))[0]
    assert Plateau().observe(float(loss.mean())) == Plateau().observe(float(loss[0])) == 1
