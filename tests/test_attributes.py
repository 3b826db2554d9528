"""What is set on an object has an effect, or is an error that says what to do: never silence."""

import copy
import dataclasses
import re

import numpy as np
import pytest

import bptt_array as ba
from bptt_array import distributed
from bptt_array.backend import NumpyBackend, resolve
from bptt_array.equations.lstm import LSTM

X = np.random.default_rng(0).standard_normal((5, 3, 2)).astype("f")


def network(**options):
    return ba.RNN(**{"input_size": 2, "hidden_size": 4, "output_size": 3, "num_layers": 2} | options)


def value_and_gradient(rnn):
    target = np.ones(rnn(X)[0].shape, "f")
    loss, grads, _ = rnn.loss_and_grad(X, target, dropout_seed=1)
    return [rnn(X)[0], rnn(X, dropout_seed=1)[0], loss, *grads.params.values()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dropout", 0.5),
        ("recurrent_dropout", 0.4),
        ("output", "softmax"),
        ("readout", "last"),
        ("time_major", False),
        ("seed", 7),
    ],
)
def test_an_option_that_is_set_acts_as_if_the_network_had_been_built_with_it(name, value, tmp_path):
    given = {"dropout": 0.1, "recurrent_dropout": 0.1}  # so that a seed says something
    rnn, built = network(**given), network(**given | {name: value})
    built.load_params(rnn.params)
    before, arrays = value_and_gradient(rnn), dict(rnn.params)
    _, _, backward = rnn.forward(X, dropout_seed=1)
    earlier = backward(np.ones((5, 3, 3), "f")).params
    setattr(rnn, name, value)
    assert getattr(rnn, name) == rnn.config[name] == value
    found, expected = value_and_gradient(rnn), value_and_gradient(built)
    assert all(map(np.array_equal, found, expected))
    assert not all(map(np.array_equal, found, before))
    assert all(rnn.params[name] is array for name, array in arrays.items())
    again = backward(np.ones((5, 3, 3), "f")).params  # what ran before goes on as it ran
    assert all(np.array_equal(again[name], grad) for name, grad in earlier.items())
    rnn.save(tmp_path / "model")
    assert ba.RNN.load(tmp_path / "model").config == built.config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dropout", 1.5, r"dropout=1\.5; expected a finite number of at least 0 and below 1"),
        ("dropout", "0.5", r"dropout='0\.5' is a str"),
        ("output", "elu", r"output='elu' is unknown"),
        ("readout", None, r"readout=None is unknown"),
        ("seed", -1, r"seed=-1 is too small"),
        ("time_major", 1, r"time_major=1 is a int"),
        ("params", [1], r"params is a list; expected a dictionary of arrays"),
    ],
)
def test_an_option_that_is_none_is_refused_as_at_the_beginning_and_nothing_changes(name, value, message):
    rnn = network()
    before = rnn.config
    with pytest.raises((ValueError, TypeError), match=message):
        setattr(rnn, name, value)
    assert rnn.config == before
    one = ba.RNN(2, 4)
    with pytest.raises(ValueError, match=r"dropout=0\.5 is between layers, but num_layers=1"):
        one.dropout = 0.5
    with pytest.raises(ValueError, match="output='softmax' needs a readout"):
        one.output = "softmax"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 5),
        ("input_size", 3),
        ("output_size", None),
        ("num_layers", 1),
        ("bidirectional", True),
        ("members", 2),
        ("embedding_size", 3),
        ("tied", False),
        ("bias", False),
        ("cell", "gru"),
        ("cell", "relu"),
        ("dtype", "float64"),
        ("init", "identity"),
    ],
)
def test_what_parameters_were_made_for_is_fixed_and_the_way_out_works(name, value):
    rnn = network()
    with pytest.raises(
        AttributeError, match=re.escape(f"RNN.{name} cannot be set: the parameters were made for it; ")
    ) as e:
        setattr(rnn, name, value)
    code = re.search(r"ba\.RNN\(.*\)", str(e.value))[0]
    same_shapes = value in ("relu", "float64")
    if not same_shapes:
        code = code.removesuffix(".load_params(rnn.params)")
    other = eval(code.replace("…", repr(value)), {"ba": ba, "rnn": rnn})
    assert name == "init" or getattr(other, name) == value
    if same_shapes:
        assert all(np.array_equal(other.params[key], array) for key, array in rnn.params.items())


MISSPELT = [
    (network, "dropuot", 0.5, "expected params or one of the options dropout, recurrent_dropout, output"),
    (network, "loss", "mse", "expected params or one of the options"),
    (network, "device", "cuda", r"move the network, rnn\.to\(device\)"),
    (network, "backend", resolve("cpu"), r"move the network, rnn\.to\(device\)"),
    (network, "config", {}, "it follows from the options; set them, or build another network"),
    (network, "calls", None, "it follows from the options; set them, or build another network"),
    (ba.Adam, "learning_rate", 0.1, "Adam has no setting 'learning_rate': expected one of lr, beta1, beta2, eps"),
    (ba.Adam, "slots", 1, "expected one of lr, beta1, beta2, eps"),
    (lambda: ba.SGD(0.1), "Lr", 0.1, "SGD has no setting 'Lr': expected lr"),
    (lambda: ba.SGD(0.1), "momentum", 0.9, r"it decides what is kept; make a new optimizer, SGD\(lr, momentum=…, nest"),
    (
        lambda: ba.SGD(0.1),
        "nesterov",
        True,
        r"it belongs to the momentum; make a new optimizer, SGD\(lr, momentum=…, nest",
    ),
    (
        ba.AdamW,
        "decay",
        0.1,
        "AdamW has no setting 'decay': expected one of lr, beta1, beta2, eps, weight_decay, no_decay",
    ),
    (ba.AdamW, "slots", 1, "expected one of lr, beta1, beta2, eps, weight_decay, no_decay"),
    (ba.RMSprop, "beta2", 0.9, "RMSprop has no setting 'beta2': expected one of lr, alpha, eps"),
    (
        ba.RMSprop,
        "momentum",
        0.9,
        r"it decides what is kept; make a new optimizer, RMSprop\(lr, momentum=…, centered=…\)",
    ),
    (
        ba.RMSprop,
        "centered",
        True,
        r"it decides what is kept; make a new optimizer, RMSprop\(lr, momentum=…, centered=…\)",
    ),
    (ba.lr_schedules.Plateau, "patients", 3, "expected one of factor, patience, threshold, cooldown, least"),
    (lambda: ba.Backend(np), "segmentbytes", 1, "expected one of segment_bytes, keeps_arrays, temporaries"),
    (lambda: ba.Backend(np), "device", "cpu", r"a backend is one place; make another, ba\.Backend\(xp, device\)"),
    (NumpyBackend, "xp", np, r"a backend is one place; make another, ba\.Backend\(xp, device\)"),
    (NumpyBackend, "tanh_", np.tanh, "expected one of segment_bytes, keeps_arrays, temporaries"),
    (
        lambda: network(cell="lstm").architecture.cell,
        "keeps",
        6,
        "all networks share this cell; make a class of your own",
    ),
    (lambda: network(cell="gru").architecture.cell, "nmae", "x", "all networks share this cell"),
    (lambda: network().architecture.cell, "name", "x", "all networks share this cell"),
    (lambda: network().plan((5, 3, 2)), "memory", 1, r"a plan is as it was made; make another, rnn\.plan\(…\)"),
    (lambda: network().plan((5, 3, 2)), "memroy", 1, r"Plan has no setting 'memroy': a plan is as it was made"),
    (
        lambda: ba.lr_schedules.cosine(3),
        "steps",
        1,
        r"cosine\.steps cannot be set: it stays as it was made; make another",
    ),
    (lambda: ba.lr_schedules.warm_up(3), "then", None, r"warm_up\.then cannot be set: it stays as it was made; make"),
    (lambda: ba.losses.Huber(), "delta", 2.0, r"Huber\.delta cannot be set: it stays as it was made; make another"),
    (lambda: ba.State(h=X), "h", 1, r"it stays as it was made; make another, dataclasses\.replace"),
    (lambda: ba.Gradients({}, ba.State(X)), "parms", 1, r"Gradients has no setting 'parms': it stays as it was made"),
    (lambda: network().streamer(3), "stat", 1, "Streamer has no setting 'stat': expected state"),
    (lambda: network().streamer(3), "N", 4, r"another streamer, rnn\.streamer\(N\)"),
    (distributed.OneProcess, "size", 4, r"make another, distributed\.Communicator\(comm, transport=…\)"),
    (distributed.OneProcess, "transport", "host", r"make another, distributed\.Communicator\(comm, transport=…\)"),
]


@pytest.mark.parametrize(
    ("make", "name", "value", "message"), MISSPELT, ids=[f"{name}-{k}" for k, (_, name, *_) in enumerate(MISSPELT)]
)
def test_what_would_have_no_effect_is_an_error_that_says_what_to_do(make, name, value, message):
    made = make()
    before = dict(vars(made))
    with pytest.raises(AttributeError, match=message):
        setattr(made, name, value)
    assert vars(made) == before


def test_the_other_ways_out_work_too():
    state = ba.State(h=X)
    assert dataclasses.replace(state, c=X).c is X
    assert ba.SGD(0.1, momentum=0.9, nesterov=True).keeps == ("velocity",)
    assert ba.RMSprop(0.1, momentum=0.9, centered=True).keeps == ("v", "mean", "velocity")
    rnn = network()
    assert rnn.to(ba.Backend(np)).backend == ba.Backend(np)

    class Longer(LSTM):
        name = "longer"

        def __init__(self):
            self.note = "of its own"

    assert network(cell=Longer())(X)[0].shape == (5, 3, 3)


@pytest.mark.parametrize(
    ("make", "name", "value", "message", "good"),
    [
        (ba.Adam, "lr", -1, "lr=-1; expected a finite number of at least 0", 0.3),
        (ba.Adam, "beta1", 1, "beta1=1; expected a finite number of at least 0 and below 1", 0.5),
        (ba.Adam, "beta2", "0.9", "beta2='0.9' is a str", 0.6),
        (ba.Adam, "eps", 0, "eps=0; expected a positive number", 1e-2),
        (ba.AdamW, "eps", 0, "eps=0; expected a positive number", 1e-2),
        (ba.AdamW, "weight_decay", -1, "weight_decay=-1; expected a finite number of at least 0", 0.1),
        (ba.AdamW, "no_decay", "a", "no_decay='a' is one string; expected several, such as no_decay=('a',)", ["a"]),
        (ba.RMSprop, "lr", None, "lr=None is a NoneType; expected a real number", 0.3),
        (ba.RMSprop, "alpha", 1.0, "alpha=1.0; expected a finite number of at least 0 and below 1", 0.5),
        (ba.RMSprop, "eps", 0, "eps=0; expected a positive number", 1e-2),
    ],
)
def test_settings_of_an_optimizer_are_checked_when_they_are_set_and_then_act(make, name, value, message, good):
    optimizer = make()
    before = dict(vars(optimizer))
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        setattr(optimizer, name, value)
    assert vars(optimizer) == before
    setattr(optimizer, name, good)
    results = []
    for one in (optimizer, make(**{name: good}), make()):
        params = {"a": np.array([1.0, 2.0])}
        for grad in ([0.1, 0.2], [-0.3, 0.1]):
            one.update(params, {"a": np.array(grad)})
        results.append(params["a"].tolist())
    assert results[0] == results[1] != results[2]


def test_what_is_set_on_a_backend_acts_and_changes_no_result():
    rnn, other = network(device=NumpyBackend()), network(device=NumpyBackend())
    other.backend.segment_bytes = 2 * 3 * 4 * 4  # two steps a segment
    assert other.plan((5, 3, 2)).longest < rnn.plan((5, 3, 2)).longest
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(*map(value_and_gradient, (rnn, other)), strict=True))
    shared = resolve("cpu")
    own = copy.copy(shared)  # the same place, with settings of its own
    own.segment_bytes = 100
    assert own == shared
    assert shared.segment_bytes == NumpyBackend.segment_bytes
    assert ba.RNN(2, 4, device=own).to(shared).backend is shared
    with pytest.raises(TypeError, match=r"segment_bytes=1\.5 is a float"):
        other.backend.segment_bytes = 1.5


def test_kernels_can_be_asked_for_where_a_device_runs_them_and_nowhere_else():
    for backend in (NumpyBackend(), ba.Backend(np)):
        with pytest.raises(AttributeError, match=r"Backend\.persistent cannot be set: expected one of segment_bytes, "):
            backend.persistent = True


def test_a_class_of_ones_own_may_have_attributes_of_its_own():
    class Mine(ba.RNN):
        pass

    rnn = Mine(2, 4)
    rnn.note = "anything"
    assert rnn.note == "anything"
    with pytest.raises(AttributeError, match=r"RNN\.hidden_size cannot be set"):
        rnn.hidden_size = 3


def test_the_products_of_one_thread_are_a_number_or_none():
    backend = ba.Backend(np)
    for value in (300, None, 1):
        backend.one_thread_multiply_adds = value
        assert backend.one_thread_multiply_adds == value
    for value, kind in ((1.5, TypeError), (0, ValueError), ("all", TypeError)):
        with pytest.raises(kind, match=f"^one_thread_multiply_adds={value!r} is "):
            backend.one_thread_multiply_adds = value
    assert backend.one_thread_multiply_adds == 1
