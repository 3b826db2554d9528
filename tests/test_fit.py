"""``ba.fit``: it does what a loop by hand does, keeps the best, and loses nothing that was learnt."""

import functools
import importlib.util
import io
import json
import operator
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass, replace

import mpi
import numpy as np
import pytest
from conftest import IN_CI, backends_and_dtypes, cuda
from test_hostile_files import cut_or_grown, flipped, overwritten, refusal
from test_mutants import mutate as mutate

import bptt_array as ba
from bptt_array.runs import checkpoints
from bptt_array.runs.held import FolderLostError
from bptt_array.runs.identity import name_of
from bptt_array.training import fitting
from bptt_array.training.divergence import DivergenceError

QUIET = {"progress": False}
LENGTHS = [9, 0, 4, 9, 2, 7]


def regression(N=6, T=9, members=None, seed=0, scale=1.0):
    """``x``, and the running sum of its features."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((T, N, 3)).astype("float32")
    return x, (scale * np.cumsum(x.sum(axis=-1, keepdims=True), axis=0) / 3).astype("float32")


def minibatches(count=5, **more):
    return [regression(N=2 + k, T=5 + k, seed=k, **more) for k in range(count)]


def network(package=ba, **more):
    return package.RNN(**{"input_size": 3, "hidden_size": 6, "output_size": 1, "cell": "gru", **more})


def params_of(rnn):
    return {name: rnn.backend.to_host(value).copy() for name, value in rnn.params.items()}


def assert_same(one, other):
    assert list(one) == list(other)
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name


def same_history(one, other):
    """All but the clock."""
    found, expected = one.to_dict(), other.to_dict()
    return {**found, "seconds": None} == {**expected, "seconds": None}


class Again:
    """Minibatches that are gone through again and again, as a DataLoader is."""

    def __init__(self, items):
        self.items, self.begun = items, 0

    def __iter__(self):
        self.begun += 1
        return iter(self.items)


class Shuffled:
    """As ba.batches: another order in every epoch."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def epoch(self, k):
        order = np.random.default_rng(k).permutation(len(self.items))
        return (self.items[n] for n in order)


# ---- the loop, also of packages with a mistake in them -------------------------------------------------------


def check_updates(package, members=None):
    """Every update is that of a loop by hand: order, dropout, clipping, learning rate, optimizer."""
    data = Shuffled(minibatches())
    options = {"cell": "lstm", "num_layers": 2, "dropout": 0.2, "recurrent_dropout": 0.2, "members": members}
    rnn, other = network(package, **options), network(package, **options)
    optimizer, theirs = package.SGD(0.5, momentum=0.5), package.SGD(0.5, momentum=0.5)

    def schedule(step):
        return 1.0 - step / 20

    history = package.fit(
        rnn, data, optimizer=optimizer, epochs=3, clip=0.1, schedule=schedule, seed=7, truncate=4, **QUIET
    )
    losses, step, clipped = [], 0, []
    for k in range(3):
        of_epoch = []
        for x, target in data.epoch(k):
            theirs.lr = 0.5 * schedule(step)
            step += 1
            loss, grads, _ = other.loss_and_grad(x, target, dropout_seed=(7 << 64) + step, truncate=4)
            clipped.append(package.global_norm(grads.params, members) > 0.1)
            theirs.update(other.params, package.clip_by_global_norm(grads.params, 0.1, members))
            of_epoch.append(loss)
        losses.append(np.mean(np.array(of_epoch, np.float64), axis=0))
    assert 0 < np.mean(clipped) < 1
    assert_same(params_of(rnn), params_of(other))
    assert np.array_equal(history.loss, losses)
    assert history.lr.tolist() == [0.5 * schedule(step) for step in (4, 9, 14)]
    assert optimizer.lr == 0.5
    assert history.validation is None
    assert history.best_epoch is None
    assert history.stopped == "epochs"


def check_validation(package, **options):
    """The validation loss is that of everything in one call, whatever the sizes of minibatches."""
    members, last = options.get("members"), options.get("readout") == "last"
    rnn = network(package, **options)
    x, target = regression(N=6)
    target = target[-1] if last else target
    if members is not None:
        x = np.stack([x, 2 * x, -x], axis=1)
    cuts = [slice(0, 1), slice(1, 5), slice(5, 6)]

    def of(cut):
        weights = None if last else np.linspace(0.1, 1, 9 * 6, dtype="float32").reshape(9, 6)[:, cut]
        return x[..., cut, :], target[cut] if last else target[:, cut], np.array(LENGTHS)[cut], weights

    for reduction in ("mean", "sum", "weighted_mean"):
        more = {"validation": [of(cut) for cut in cuts], "reduction": reduction, "epochs": 1}
        history = package.fit(rnn, of(slice(None)), optimizer=package.SGD(0.0), **more, **QUIET)
        whole = of(slice(None))
        expected, _ = rnn.loss(*whole[:2], lengths=whole[2], weights=whole[3], reduction=reduction)
        np.testing.assert_allclose(history.validation[0], expected, rtol=1e-6)


def wandering(members=None):
    """Data, optimizer and more with which a validation loss falls and rises."""
    x, target = regression(N=4, scale=3.0)
    held_out = x + 0.5, np.roll(target, 1, axis=1)
    return (x, target), {"validation": held_out, "epochs": 40, "clip": 1.0}


def check_best(package, members=None):
    """Each network ends with the weights of its own best epoch, and waits as long as it was told to."""
    data, more = wandering()
    rnn, kept = network(package, members=members, seed=3), []
    history = package.fit(
        rnn, data, optimizer=package.Adam(0.1), **more, callbacks=[lambda e: kept.append(params_of(e.rnn))], **QUIET
    )
    losses = history.validation
    best = losses.argmin(axis=0)
    assert history.best_epoch == best.tolist()
    assert len(kept) == len(history) == 40
    assert (best < 39).all()  # or nothing would be restored
    for name, value in params_of(rnn).items():
        if members is None:
            assert np.array_equal(value, kept[best][name])
        else:
            assert len({*best.tolist()}) > 1
            assert all(np.array_equal(value[k], kept[epoch][name][k]) for k, epoch in enumerate(best))
    better = np.array([(losses[k] < losses[:k].min(axis=0, initial=np.inf)).any() for k in range(40)])
    for patience in (1, 2, 3):
        again = package.fit(
            network(package, members=members, seed=3),
            data,
            optimizer=package.Adam(0.1),
            **more,
            patience=patience,
            **QUIET,
        )
        runs = [k for k in range(patience, 40) if not better[k - patience + 1 : k + 1].any()]
        assert len(again) == (runs[0] + 1 if runs else 40)
        assert again.stopped == ("patience" if runs else "epochs")
        assert np.array_equal(again.validation, losses[: len(again)])


def check_observed(package):
    """A schedule that goes by the validation loss is told it after every epoch, and acts from the next update on."""

    class Told:
        def __init__(self):
            self.values, self.steps = [], []

        def observe(self, value):
            self.values.append(value)

        def __call__(self, step):
            self.steps.append(step)
            return 0.5 ** len(self.values)

    told = Told()
    data, more = wandering()
    history = package.fit(
        network(package, members=2), data, optimizer=package.SGD(0.25), schedule=told, **more | {"epochs": 4}, **QUIET
    )
    assert told.values == history.validation.mean(axis=1).tolist()
    assert history.lr.tolist() == [0.25, 0.125, 0.0625, 0.03125]
    assert {*told.steps} == {0, 1, 2, 3}


CHECKS = {
    "updates": check_updates,
    "updates of members": lambda package: check_updates(package, members=3),
    "validation": check_validation,
    "validation of last steps": lambda package: check_validation(package, readout="last"),
    "validation of members": lambda package: check_validation(package, members=3),
    "best": check_best,
    "best of members": lambda package: check_best(package, members=4),
    "observed": check_observed,
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_loop(check):
    CHECKS[check](ba)


#: A mistake, and the check that has to find it.
MUTANTS = {
    "best weights not restored": ("runs/fit.py", "fitting.take_best()", "pass", "best"),
    "the first member's best for all": ("training/fitting.py", "elif better.any():", "elif better[0]:", "best of members"),
    "best of all members": ("training/fitting.py", "            if better.all():", "            if better.any():", "best of members"),
    "as good counts as better": ("training/fitting.py", "(held_out < self.best_validation)", "(held_out > self.best_validation)", "best"),
    "patience too short": ("training/fitting.py", "self.waited >= self.patience", "self.waited >= self.patience - 1", "best"),
    "patience too long": ("training/fitting.py", "self.waited >= self.patience", "self.waited > self.patience", "best"),
    "patience ends with the first member": ("training/fitting.py", "0 if better.any() else", "0 if better.all() else", "best of members"),
    "the parameters themselves are the best": ("training/fitting.py", "{name: backend.copy(value) for", "{name: value for", "best"),
    "minibatches weigh the same": ("training/fitting.py", "over = over.reshape(", "over = over[:] * 0 + 1\n        over = over.reshape(", "validation"),
    "validation divided in the sum": ("training/fitting.py", "means.sum(axis=0)", "means.mean(axis=0)", "validation"),
    "lr not restored": ("runs/fit.py", "stack.callback(setattr, optimizer, \"lr\", lr)", "pass", "updates"),
    "schedule a step late": ("training/loop.py", "self.schedule(step - 1)", "self.schedule(step)", "updates"),
    "the same masks at every update": ("training/loop.py", "self._seed + step if", "self._seed if", "updates"),
    "members clipped together": ("training/loop.py", "self.clip, members, largest=largest)", "self.clip)", "updates of members"),
    "not clipped": ("training/loop.py", "        if self.clip:", "        if False:", "updates"),
    "the first epoch again and again": ("training/fitting.py", "self.data.epoch(self.epoch)", "self.data.epoch(0)", "updates"),
    "truncation forgotten": ("training/loop.py", "dropout_seed=seed, **self._how,", "dropout_seed=seed,", "updates"),
    "losses of the epoch before": ("training/fitting.py", "del self.losses[:updates]", "pass", "updates"),
    "nothing observed": ("training/fitting.py", "observe(float(held_out.mean()))", "pass", "observed"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_checks_find(mutate, mutant):
    *mistake, check = MUTANTS[mutant]
    package = mutate(*mistake)
    with pytest.raises(AssertionError):
        CHECKS[check](package)


def test_validation_counts_what_the_loss_counts():
    """Ignored classes and class weights decide what a mean is taken over."""
    rng = np.random.default_rng(0)
    for loss in (ba.losses.CrossEntropy(ignore_index=-100), ba.losses.CrossEntropy(class_weights=(0.1, 2.0, 1.0))):
        for members in (None, 2):
            rnn = ba.RNN(3, 6, 3, output="softmax", members=members)
            x, classes = rng.standard_normal((7, 6, 3)).astype("float32"), rng.integers(0, 3, (7, 6))
            if loss.ignore_index is not None:
                classes[:, :2] = -100
                classes[3:, 4] = -100
            cuts = [(x[:, cut], classes[:, cut], LENGTHS[cut]) for cut in (slice(0, 2), slice(2, 3), slice(3, 6))]
            lengths = [min(length, 7) for length in LENGTHS]
            cuts = [(x, target, [min(length, 7) for length in lengths]) for x, target, lengths in cuts]
            history = ba.fit(rnn, (x, classes), loss=loss, validation=cuts, optimizer=ba.SGD(0.0), epochs=1, **QUIET)
            expected, _ = rnn.loss(x, classes, loss, lengths=lengths)
            np.testing.assert_allclose(history.validation[0], expected, rtol=1e-6)


def test_the_schedules_and_optimizers_of_the_library_go_on_to_the_same_bits(tmp_path):
    kinds = [
        (lambda: ba.AdamW(0.05, weight_decay=0.1), lambda: ba.lr_schedules.Plateau(0.5, 0)),
        (lambda: ba.RMSprop(0.01), lambda: ba.lr_schedules.cosine(40)),
        (lambda: ba.SGD(0.1, momentum=0.5, nesterov=True), lambda: ba.lr_schedules.warm_up(15)),
        (lambda: ba.Adam(0.3), lambda: ba.lr_schedules.warm_up(8, then=ba.lr_schedules.Plateau(0.5, 0))),
    ]
    for k, (optimizer, schedule) in enumerate(kinds):
        whole = run("members", optimizer=optimizer(), schedule=schedule())
        assert whole[0].lr[-1] != whole[0].lr[0]
        for epochs in (2, 5, 8):
            more = {"folder": tmp_path / str(k), "epochs": epochs}
            found = run("members", optimizer=optimizer(), schedule=schedule(), **more)
        assert_same_end(found, whole)


def test_a_network_learns_and_the_best_of_it_is_kept():
    x, target = regression(N=40, T=20)
    rnn = network(hidden_size=16)
    before, _ = rnn.loss(x[:, 30:], target[:, 30:])
    history = ba.fit(
        rnn,
        [(x[:, k : k + 8], target[:, k : k + 8]) for k in range(0, 30, 8)],
        optimizer=ba.Adam(3e-2),
        validation=(x[:, 30:], target[:, 30:]),
        epochs=40,
        patience=5,
        **QUIET,
    )
    after, _ = rnn.loss(x[:, 30:], target[:, 30:])
    assert after < 0.2 * before
    assert float(after) == pytest.approx(history.validation[history.best_epoch], rel=1e-6)
    assert (history.seconds > 0).all()
    assert (
        repr(history)
        == f"<History of {len(history)} epochs, best_epoch={history.best_epoch}, stopped={history.stopped!r}>"
    )
    assert json.loads(json.dumps(history.to_dict()))["validation"] == history.validation.tolist()


@pytest.mark.parametrize(("make", "dtype"), backends_and_dtypes())
@pytest.mark.parametrize("members", [None, 3])
def test_every_device_learns_the_same(members, make, dtype):
    """What is on the host, or has another dtype, is taken as it is."""
    options = {"members": members, "dtype": dtype, "recurrent_dropout": 0.2, "dropout": 0.2, "num_layers": 2}
    data, held_out = minibatches(3), (*regression(), LENGTHS)
    found = []
    for backend in (make(), "cpu"):
        rnn = network(**options, device=backend)
        history = ba.fit(rnn, data, validation=held_out, epochs=6, optimizer=ba.Adam(0.03), clip=1.0, **QUIET)
        found.append((history, params_of(rnn)))
        assert len(history) == 6
        assert rnn.backend.owns(rnn.params["W_hy"])
    (history, params), (expected, values) = found
    tolerance = {"float32": 3e-4, "float64": 1e-10}[dtype]
    np.testing.assert_allclose(history.loss, expected.loss, rtol=tolerance)
    np.testing.assert_allclose(history.validation, expected.validation, rtol=tolerance)
    assert history.best_epoch == expected.best_epoch
    for name, value in values.items():
        np.testing.assert_allclose(params[name], value, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("device", cuda)
@pytest.mark.skipif(importlib.util.find_spec("gpuemu") is None, reason="counting synchronisations needs gpuemu")
@pytest.mark.parametrize("folded", [False, True], ids=["many minibatches", "one minibatch an epoch"])
def test_the_device_is_waited_for_every_ten_updates_at_most(device, folded):
    import gpuemu

    x, target = regression()
    rnn = network(device=device)
    data = (x, target) if folded else [(x, target)] * 40
    ba.fit(rnn, data, epochs=40 if folded else 1, **QUIET)  # compiles
    counts, update = [], fitting.Fitting.update

    class Counted(fitting.Fitting):
        pass

    def counted(self, share, step, stop):
        with gpuemu.count() as found:
            done = update(self, share, step, stop)
        counts.append(found.syncs + found.implicit_syncs + found.d2h)
        return done

    with pytest.MonkeyPatch.context() as patch, gpuemu.count() as whole:
        patch.setattr(fitting.Fitting, "update", counted)
        ba.fit(rnn, data, epochs=40 if folded else 1, clip=1.0, **QUIET)
    assert counts == [0] * 40
    arrays = len(rnn.params)
    kept = 5 if folded else 2  # at the beginning, and after epochs with ten updates since the last one
    assert whole.d2h <= 4 + kept * (3 * arrays + 2)  # losses, parameters and what Adam keeps


# ---- what is given ------------------------------------------------------------------------------------------


def test_data_of_every_kind_is_the_same():
    items = minibatches(3)
    expected = None
    kinds = {
        "list": items,
        "tuple of tuples": tuple(items),
        "list of lists": [list(item) for item in items],
        "again and again": Again(items),
        "float64": [(x.astype("float64"), target.tolist()) for x, target in items],
        "with None": [(x, target, None, None) for x, target in items],
    }
    for kind, data in kinds.items():
        rnn = network()
        history = ba.fit(rnn, data, epochs=2, **QUIET)
        expected = expected or (params_of(rnn), history)
        assert_same(params_of(rnn), expected[0])
        assert same_history(history, expected[1]), kind
    assert kinds["again and again"].begun == 3  # one of them to look at it
    one = ba.fit(network(), items[0], epochs=2, **QUIET)
    assert same_history(one, ba.fit(network(), [items[0]], epochs=2, **QUIET))


def test_what_can_be_gone_through_only_once_is_found_out():
    for name in ("data", "validation"):
        with pytest.raises(
            ValueError, match=rf"{name} has no minibatches any more in epoch [01]; expected .* list\(…\)"
        ):
            ba.fit(network(), **{"data": GOOD, name: Again(iter(GOOD))}, epochs=4, **QUIET)


@pytest.mark.parametrize("members", [None, 2])
def test_batches_are_data_and_any_order_of_validation_is_the_same(members):
    x, target = regression(N=11)
    rnn, other = network(members=members), network(members=members)
    data = ba.batches(x, target, lengths=[9, 4, 2, 9, 9, 1, 0, 3, 5, 6, 7], size=4, seed=3, by_length=True)
    history = ba.fit(rnn, data, validation=data, optimizer=ba.SGD(0.1), epochs=3, **QUIET)
    optimizer, losses = ba.SGD(0.1), []
    for k in range(3):
        losses.append([])
        for batch in data.epoch(k):
            loss, grads, _ = other.loss_and_grad(batch.x, batch.target, lengths=batch.lengths)
            optimizer.update(other.params, grads.params)
            losses[k].append(loss)
    assert np.array_equal(history.loss, np.mean(np.array(losses, np.float64), axis=1))
    whole, _ = other.loss(x, target, lengths=data.lengths)
    np.testing.assert_allclose(history.validation[-1], whole, rtol=1e-6)


@pytest.mark.parametrize(("make", "dtype"), backends_and_dtypes())
def test_batches_go_where_the_network_is(make, dtype):
    x, target = regression(N=11)
    data, found = ba.batches(x, target, size=4, lengths=[9, 4, 2, 9, 9, 1, 0, 3, 5, 6, 7]), []
    for backend in (make(), "cpu"):
        rnn = network(dtype=dtype, device=backend)
        found.append(ba.fit(rnn, data, validation=data, optimizer=ba.SGD(0.1), epochs=2, **QUIET))
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(found[0].loss, found[1].loss, rtol=tolerance)
    np.testing.assert_allclose(found[0].validation, found[1].validation, rtol=tolerance)
    other = ba.batches(x.swapaxes(0, 1), target.swapaxes(0, 1), time_major=False)
    with pytest.raises(ValueError, match=r"validation: rnn has time_major=True, and these batches False; expected"):
        ba.fit(rnn, data, validation=other, **QUIET)


def test_a_history_is_drawn():
    pytest.importorskip("matplotlib")
    for more in ({}, {"validation": GOOD}, {"epochs": 1}):
        for members in (None, 3):
            history = ba.fit(network(members=members), GOOD, **{"epochs": 2, **more}, **QUIET)
            (axes,) = ba.plots.plot_history(history).axes
            assert len(axes.lines) == (members or 1) * (1 + ("validation" in more))
            assert [text.get_text() for text in axes.get_legend().texts] == ["training", "validation"][
                : 1 + ("validation" in more)
            ]
            np.testing.assert_array_equal(axes.lines[0].get_ydata(), history.loss.reshape(len(history), -1)[:, 0])
    with pytest.raises(TypeError, match="history is a list; expected a History"):
        ba.plots.plot_history([])


def test_classes_tokens_lengths_and_weights_go_to_the_loss():
    rng = np.random.default_rng(0)
    x, target = rng.integers(0, 5, (7, 4)), rng.integers(0, 3, 4)
    rnn = ba.RNN(5, 6, 3, output="softmax", readout="last")
    lengths, weights = [7, 0, 3, 5], [0.5, 1.0, 0.0, 2.0]
    expected, _ = rnn.loss(x, target, "cross_entropy", lengths=lengths, weights=np.array(weights, "float32"))
    history = ba.fit(rnn, (x, target, lengths, weights), loss="cross_entropy", optimizer=ba.SGD(0.0), epochs=1, **QUIET)
    assert history.loss[0] == expected

    def loss(y, target):
        return (y - target)[..., 0] ** 2, 2 * (y - target)

    ba.fit(network(), regression(), loss=loss, epochs=1, **QUIET)


GOOD = minibatches(2)

BAD = [
    ({"data": iter(GOOD)}, TypeError, "data is a list_iterator, which can be gone through only once; expected ba.batches("),
    ({"data": (item for item in GOOD)}, TypeError, "data is a generator, which can be gone through only once"),
    ({"data": 3}, TypeError, "data=3 is a int; expected ba.batches(…), a tuple (x, target"),
    ({"data": GOOD[0][0]}, TypeError, "is a ndarray; expected ba.batches(…)"),
    ({"data": []}, ValueError, "data has no minibatches; expected ba.batches(…)"),
    ({"data": [GOOD[0], 3]}, TypeError, "minibatch 1 of data is of type int; expected (x, target)"),
    ({"data": [GOOD[0], GOOD[0] * 3]}, TypeError, "minibatch 1 of data is of 6; expected (x, target), (x, target, lengths)"),
    ({"data": [GOOD[0], (GOOD[0][0], None)]}, TypeError, "minibatch 1 of data has no target; expected (x, target"),
    ({"data": [GOOD[0], (GOOD[0][0], GOOD[1][1])]}, ValueError, "minibatch 1 of data: target has shape"),
    ({"data": (GOOD[0][0], GOOD[1][1])}, ValueError, "data: target has shape"),
    ({"data": Again([(GOOD[0][0][..., :2], GOOD[0][1])])}, ValueError, "minibatch 0 of data: x has 2 features"),
    ({"validation": (GOOD[0][0], GOOD[1][1])}, ValueError, "validation: target has shape"),
    ({"data": (*GOOD[0], [99, 1])}, ValueError, "data: lengths[0]=99; expected 0 to T=5"),
    ({"data": (GOOD[0][0].astype(complex), GOOD[0][1])}, TypeError, "data: x has dtype complex128"),
    ({"loss": "msee"}, ValueError, "loss='msee' is unknown; expected one of 'mse'"),
    ({"loss": "cross_entropy"}, ValueError, "belongs to output='softmax'"),
    ({"reduction": "max"}, ValueError, "reduction='max' is unknown"),
    ({"optimizer": "adam"}, TypeError, "optimizer is a str; expected an optimizer, such as ba.Adam(lr=1e-3)"),
    ({"epochs": 0}, ValueError, "epochs=0 is too small"),
    ({"patience": 2}, ValueError, "patience=2, but there is no validation to get better on; give validation=…"),
    ({"patience": 0, "validation": GOOD}, ValueError, "patience=0 is too small"),
    ({"schedule": 0.5}, TypeError, "schedule=0.5 is a float; expected a function of the number of updates"),
    ({"schedule": lambda step: -1.0}, ValueError, "schedule(0)=-1.0; expected a finite number of at least 0"),
    ({"clip": 0}, ValueError, "clip=0; expected a positive number, or None"),
    ({"clip": -1.0}, ValueError, "clip=-1; expected a positive number, or None to leave"),
    ({"callbacks": [3]}, TypeError, "callbacks[0] is a int; expected a function"),
    ({"callbacks": None}, TypeError, "callbacks is a NoneType; expected a function of what an epoch left, or ()"),
    ({"callbacks": np.array(3)}, TypeError, "callbacks is a ndarray; expected a function of what an epoch left, or ()"),
    ({"optimizer": ba.Adam}, TypeError, "optimizer is a class Adam; expected an optimizer, such as ba.Adam(lr=1e-3)"),
    ({"data": np.zeros((2, 2))}, TypeError, "data=array([[0., 0.], [0., 0.]]) is a ndarray; expected ba.batches(…)"),
    ({"data": tuple(a[:, :0] for a in GOOD[0])}, ValueError, "data has no sequences: N=0; expected at least one"),
    ({"validation": [tuple(a[:, :0] for a in GOOD[0])]}, ValueError, "validation has no sequences: N=0; expected at least one"),
    ({"folder": f"{__file__}/run"}, ValueError, "is below a file; expected a folder, or the name of a new one"),
    ({"progress": 1}, TypeError, "progress=1 is a int; expected True or False"),
    ({"seed": -1}, ValueError, "seed=-1 is too small"),
    ({"truncate": 0}, ValueError, "truncate=0"),
    ({"memory": "1B"}, ValueError, "memory"),
    ({"checkpoint_every": 0}, ValueError, "checkpoint_every=0 is too small"),
    ({"on_divergence": "go"}, ValueError, "on_divergence='go' is unknown; expected one of 'stop', 'halve-lr'"),
    ({"ranks": 2}, TypeError, "ranks is a int; expected ba.distributed.communicator()"),
    ({"folder": ""}, ValueError, "folder='' is empty; expected the name of a file or a folder"),
    ({"data": (*GOOD[0], [0] * len(GOOD[0][0][0]))}, ValueError, "data has no step that counts in the loss (of an"),
    (
        {"validation": [(*GOOD[1], None, np.zeros(GOOD[1][0].shape[:2]))]},
        ValueError,
        "validation has no step that counts in the loss (of an ensemble, in that of some member): all are of length 0",
    ),
    ({"folder": 3}, TypeError, "folder=3 is a int; expected a string or a pathlib.Path"),
    ({"folder": __file__}, ValueError, "is a file; expected a folder, or the name of a new one"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "kind", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_what_cannot_be_is_said_before_anything_is_done(given, kind, message):
    rnn, optimizer = network(), ba.Adam(0.1)
    before = params_of(rnn)
    with pytest.raises(kind, match=re.escape(message)):
        ba.fit(rnn, **{"data": GOOD, "optimizer": optimizer, "progress": False} | given)
    assert_same(params_of(rnn), before)
    assert optimizer.state_dict()["updates"] == {}
    assert optimizer.lr == 0.1


def test_to_do_as_errors_say_helps():
    data = (item for item in GOOD)
    ba.fit(network(), list(data), **QUIET)  # use list(…)
    ba.fit(network(), GOOD, patience=2, validation=GOOD, **QUIET)  # give validation=…
    ba.fit(network(), GOOD, clip=None, **QUIET)  # or None
    ba.fit(network(), GOOD, schedule=ba.lr_schedules.cosine(1000), **QUIET)  # such as that
    ba.fit(network(), GOOD, callbacks=(), epochs=1, **QUIET)  # or ()
    ba.fit(network(), [*GOOD, tuple(a[:, :0] for a in GOOD[0])], validation=GOOD, epochs=1, **QUIET)  # at least one


@pytest.mark.parametrize("what", ["data", "validation"])
def test_a_minibatch_that_is_wrong_when_it_is_its_turn_is_named(what):
    bad = Again([GOOD[0], (GOOD[0][0], GOOD[1][1][:3])])
    with pytest.raises(ValueError, match=f"^minibatch 1 of {what}: target has shape"):
        ba.fit(network(), **{"data": GOOD, what: bad}, epochs=1, **QUIET)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, ValueError), (-1.0, ValueError), (None, TypeError)])
def test_a_schedule_that_comes_to_no_number_is_named(value, kind):
    optimizer = ba.Adam(0.1)
    with pytest.raises(kind, match=rf"^schedule\(1\)={value}.*; expected a"):
        ba.fit(network(), GOOD, schedule=lambda step: value if step else 1.0, optimizer=optimizer, **QUIET)
    assert optimizer.lr == 0.1


def test_a_network_is_one():
    with pytest.raises(TypeError, match=r"rnn is a dict; expected a ba\.RNN"):
        ba.fit({}, GOOD)


def test_a_schedule_that_goes_by_validation_needs_one():
    schedule = type("Plateau", (), {"observe": print, "__call__": lambda self, step: 1.0})()
    with pytest.raises(ValueError, match=r"goes by the validation loss, but there is no validation; give validation=…"):
        ba.fit(network(), GOOD, schedule=schedule, **QUIET)


@pytest.mark.parametrize("more", [{"folder": "run"}, {"on_divergence": "halve-lr"}])
def test_what_a_schedule_has_observed_can_be_kept(more, tmp_path, monkeypatch):
    """Else a run would go on with another learning rate, and nobody would know."""

    def made(**methods):
        return type("Mine", (), {"observe": lambda *_: None, "__call__": lambda self, step: 1.0, **methods})()

    def state_of(state):
        return {"state_dict": lambda self: state, "load_state_dict": lambda self, state: None}

    monkeypatch.chdir(tmp_path)
    given = {"epochs": 1, "validation": GOOD, **more, **QUIET}
    for methods in ({}, {"state_dict": lambda self: {}}, {"load_state_dict": print}):
        with pytest.raises(TypeError, match=r"schedule=.* has observe.*; expected both state_dict\(\) and load"):
            ba.fit(network(), GOOD, schedule=made(**methods), **given)
    for state in ([1], {1: 2}, {"a": (1, 2)}, {"a": np.float32(1)}, {"a": np.zeros(2)}, {"a": {1}}, None):
        if "folder" in more:
            with pytest.raises(
                TypeError, match=r"schedule\.state_dict\(\) is .*; expected a dict with strings as keys"
            ):
                ba.fit(network(), GOOD, schedule=made(**state_of(state)), **given)
        else:  # in memory all is well
            ba.fit(network(), GOOD, schedule=made(**state_of(state)), **given)
    assert not list(tmp_path.iterdir())
    plain = {"a": float(np.float32(1)), "b": [1, None, True], "c": float("nan")}
    ba.fit(network(), GOOD, schedule=made(**state_of(plain)), **given)
    del given[next(iter(more))]
    ba.fit(network(), GOOD, schedule=made(), **given)  # nothing is gone back to


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_truncation_of_what_reads_from_the_end_is_refused_before_a_folder_is_made(direction, tmp_path):
    with pytest.raises(ValueError, match=rf"^truncate=2, but {direction}=True: .*; leave truncate=None"):
        ba.fit(network(**{direction: True}), GOOD, truncate=2, folder=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()
    ba.fit(network(**{direction: True}), GOOD, truncate=None, epochs=1, **QUIET)


def test_a_validation_of_nothing_is_none_when_it_is_its_turn():
    x, target = GOOD[0]
    with pytest.raises(ValueError, match=r"^validation has no step that counts in the loss "):
        ba.fit(network(), GOOD, validation=Again([(x, target, [0] * x.shape[1])]), **QUIET)


# ---- what is told -------------------------------------------------------------------------------------------


def test_callbacks_are_told_each_epoch_and_end_training():
    ends, others = [], []

    def enough(end):
        ends.append((end.epoch, end.step, len(end.history), end.history.loss[-1] > 0, end.history.stopped))
        return end.epoch == 2

    rnn = network()
    history = ba.fit(rnn, GOOD, epochs=9, callbacks=[enough, lambda end: others.append(end.rnn)], **QUIET)
    assert ends == [(0, 2, 1, True, None), (1, 4, 2, True, None), (2, 6, 3, True, None)]
    assert others == [rnn] * 3
    assert history.stopped == "callback"
    assert len(ba.fit(rnn, GOOD, epochs=2, callbacks=lambda end: 1, **QUIET)) == 2  # 1 is not True


@pytest.mark.parametrize("true", [True, np.True_, np.array(True)], ids=["Python", "NumPy", "array"])
def test_true_is_true_whoever_says_it(true):
    assert ba.fit(network(), GOOD, epochs=4, callbacks=lambda end: true, **QUIET).stopped == "callback"
    assert len(ba.fit(network(), GOOD, epochs=4, callbacks=lambda end: end.history.loss[-1] < 1e9, **QUIET)) == 1
    assert len(ba.fit(network(), GOOD, epochs=4, callbacks=lambda end: np.logical_not(true), **QUIET)) == 4
    assert len(ba.fit(network(), GOOD, epochs=4, callbacks=lambda end: end.history.loss, **QUIET)) == 4


def test_one_answer_of_all_members_is_asked_for():
    def enough(end):
        return end.history.loss[-1] < 1e9

    message = "callbacks[1] returned bools of shape (3,); expected True where training is to end: of the members of an "
    with pytest.raises(TypeError, match=re.escape(message)):
        ba.fit(network(members=3), GOOD, callbacks=[print, enough], **QUIET)
    # as it says: use .all() or .any()
    assert len(ba.fit(network(members=3), GOOD, callbacks=lambda end: enough(end).all(), **QUIET)) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("validation", [None, GOOD])
def test_progress_is_a_bar_or_lines_or_nothing(validation, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    ba.fit(network(), GOOD, epochs=3, validation=validation, progress=False)
    assert capsys.readouterr() == ("", "")
    ba.fit(network(), GOOD, epochs=3, validation=validation)
    out, err = capsys.readouterr()
    assert out == ""
    first, *_, last = err.splitlines()
    assert re.fullmatch(r"epoch 1 of 3(  loss [0-9.e-]+)?(  validation [0-9.e-]+)?", first)
    assert re.fullmatch(r"epoch 3 of 3  loss [0-9.e-]+(  validation [0-9.e-]+)?", last)
    assert ("validation" in last) == (validation is not None)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    ba.fit(network(), GOOD * 10, epochs=3, validation=validation)
    assert "60/60" in terminal.getvalue()
    assert "loss " in terminal.getvalue()
    assert ("validation" in terminal.getvalue()) == (validation is not None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    terminal.truncate(0)
    ba.fit(network(), GOOD, epochs=3)
    assert "epoch 3 of 3  loss" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", None)
    ba.fit(network(), GOOD, epochs=1)
    assert capsys.readouterr().out == ""


# ---- runs that are stopped and gone on with ------------------------------------------------------------------

KINDS = {
    "plain": {},
    "members": {"members": 3, "recurrent_dropout": 0.3},
    "no validation": {"validation": None},
}


class Halving:
    """A schedule with a state: half the rate after every second loss that is told."""

    def __init__(self):
        self.told = 0

    def observe(self, value):
        self.told += 1

    def state_dict(self):
        return {"told": self.told}

    def load_state_dict(self, state):
        self.told = state["told"]

    def __call__(self, step):
        return 0.5 ** (self.told // 2)


def job(kind, **more):
    """A network, and what :func:`run` gives to fit."""
    options = dict(KINDS[kind])
    given = {"validation": options.pop("validation", regression(seed=9))}
    schedule = None if given["validation"] is None else Halving()
    return network(**options), given | {
        "optimizer": ba.Adam(0.05),
        "epochs": 8,
        "schedule": schedule,
        "clip": 1.0,
    } | more


def run(kind, **more):
    rnn, given = job(kind, **more)
    optimizer = given["optimizer"]
    history = ba.fit(rnn, Shuffled(minibatches()), **given, **QUIET)
    return history, params_of(rnn), optimizer.state_dict()


def assert_same_end(one, other):
    assert same_history(one[0], other[0])
    assert_same(one[1], other[1])
    assert one[2]["updates"] == other[2]["updates"]
    for name, arrays in one[2]["kept"].items():
        assert all(np.array_equal(*pair) for pair in zip(arrays, other[2]["kept"][name], strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [None, 1, 3])
def test_a_run_goes_on_to_the_same_bits(every, kind, tmp_path, monkeypatch):
    whole = run(kind)
    ended = []
    for stop in (1, 7, 10, 14, 23, 39):

        def failing(self, share, step, stopping, stop=stop, update=fitting.Fitting.update):
            if step == stop + 1:
                raise RuntimeError("the end")
            return update(self, share, step, stopping)

        with monkeypatch.context() as patch:
            patch.setattr(fitting.Fitting, "update", failing)
            with pytest.raises(RuntimeError, match="the end"):
                run(kind, folder=tmp_path, checkpoint_every=every)
        if checkpoints.checkpoints(tmp_path):
            ended.append(checkpoints.newest_checkpoint(tmp_path, pytest.fail, checkpoints.FitCheckpoint).step)
        else:
            ended.append(0)  # the run begins anew
    assert ended == {None: [0, 0, 10, 10, 20, 30], 1: [1, 7, 10, 14, 23, 39], 3: [0, 6, 9, 12, 21, 39]}[every]
    assert_same_end(run(kind, folder=tmp_path, checkpoint_every=every), whole)
    assert len(checkpoints.checkpoints(tmp_path)) <= 3
    again = run(kind, folder=tmp_path, checkpoint_every=every)  # finished: nothing is left to do
    assert_same_end(again, whole)
    assert np.array_equal(again[0].seconds, run(kind, folder=tmp_path)[0].seconds)


def test_a_run_made_longer_is_the_longer_run(tmp_path):
    run("plain", folder=tmp_path, epochs=3)
    assert_same_end(run("plain", folder=tmp_path, epochs=8), run("plain"))
    with pytest.raises(ValueError, match=r"epochs=7 is fewer than the 8 that the run in folder=.* has had; expected"):
        run("plain", folder=tmp_path, epochs=7)


def test_one_that_patience_ended_is_ended_and_goes_on_with_more_of_it(tmp_path):
    data, more = wandering()

    def fitted(**others):
        rnn = network(seed=3)
        return ba.fit(rnn, data, optimizer=ba.Adam(0.1), **more, **others, **QUIET), params_of(rnn)

    history, params = fitted(patience=1, folder=tmp_path)
    assert history.stopped == "patience"
    again, same = fitted(patience=1, folder=tmp_path)
    assert same_history(again, history)
    assert_same(same, params)
    longer, params = fitted(patience=3, folder=tmp_path)
    expected, values = fitted(patience=3)
    assert same_history(longer, expected)
    assert_same(params, values)


@dataclass
class Named:
    """A schedule of settings."""

    names: frozenset
    more: dict

    def __call__(self, step):
        return 1.0


def test_of_what_a_run_is_is_said_the_same_way_in_every_process():
    """Python has another order of sets in each."""
    code = "import test_fit as t; print(*map(t.run_of, t.identities()), sep='\\n')"
    said = set()
    for seed in ("1", "2", "3"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(mpi.TESTS), *sys.path])}
        command = [sys.executable, "-c", code]
        said.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert said == {"".join(f"{run_of(thing)}\n" for thing in identities())}
    words = [run_of(thing) for thing in identities()]
    assert len(set(words)) == len(words)


def run_of(thing):
    return name_of(thing)


def identities():
    """Settings, no two of which are the same."""
    partial = functools.partial
    yield Named(frozenset("abcdef"), {"a": 1, "b": {"x", "y", "z"}})
    yield Named(frozenset("abcdeg"), {"a": 1, "b": {"x", "y", "z"}})
    yield partial(max, default=1, key=None)
    yield partial(max, default=2, key=None)
    yield Counted(1).count
    yield Counted(2).count
    yield partial(max, np.arange(2000))
    yield partial(max, np.where(np.arange(2000) == 1000, 0, np.arange(2000)))
    yield [np.float64(1.0)]
    yield [2.0]
    yield "\ud800" * 600
    yield ["\ud800" * 600]


@dataclass
class Counted:
    k: int

    def count(self, step):
        return self.k


def test_of_what_a_run_is_the_order_of_settings_and_the_kind_of_a_number_are_nothing():
    def name(thing):
        return run_of(thing)

    assert name(functools.partial(max, a=1, b=2)) == name(functools.partial(max, b=2, a=1))
    assert name([np.float64(1.0), {"a": 1, "b": 2}]) == name([1.0, {"b": 2, "a": 1}])
    itself = []
    itself.append(itself)
    assert name(itself) == "list"


class Rate:
    """A schedule that a user wrote, of which Python says only where it is in memory."""

    def __call__(self, step):
        return 0.5


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("schedule", lambda: functools.partial(operator.pow, 0.5)),
        ("schedule", lambda: functools.partial(lambda a, step: a, 1.0)),
        ("schedule", lambda: ba.lr_schedules.warm_up(2, then=lambda step: 1.0)),
        ("schedule", lambda: ba.lr_schedules.warm_up(2, then=Rate())),
        ("schedule", Rate),
        ("loss", lambda: functools.partial(lambda k, y, t: (k * ((y - t) ** 2)[..., 0], 2 * k * (y - t)), 0.5)),
    ],
    ids=["pow", "partial", "warm_up", "warm_up of an object", "object", "loss"],
)
def test_what_is_made_anew_is_the_same_run_wherever_it_is_in_memory(name, made, tmp_path):
    kept = [made()]
    ba.fit(network(), GOOD, **{name: kept[0]}, epochs=1, folder=tmp_path, **QUIET)
    kept.append(made())
    assert len(ba.fit(network(), GOOD, **{name: kept[1]}, epochs=2, folder=tmp_path, **QUIET)) == 2


def test_settings_of_any_length_are_compared_to_their_end(tmp_path):
    def fitted(last):
        weights, x = np.ones(300), np.arange(40).reshape(5, 8)
        weights[-1] = last
        rnn = ba.RNN(300, 3, 300, output="softmax")
        loss = ba.losses.CrossEntropy(class_weights=weights)
        return ba.fit(rnn, (x[:-1], x[1:]), loss=loss, epochs=1, folder=tmp_path, **QUIET)

    fitted(1.0)
    fitted(1.0)
    with pytest.raises(ValueError, match=r"loss is not that of the run .*; give the same, or another folder"):
        fitted(2.0)


def test_a_run_that_a_callback_ended_goes_on(tmp_path):
    whole = run("plain")
    run("plain", folder=tmp_path, callbacks=lambda end: end.epoch == 2)
    assert_same_end(run("plain", folder=tmp_path), whole)


def test_a_folder_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    ba.fit(network(), GOOD, folder="run", epochs=4, callbacks=lambda end: os.chdir(tmp_path / "elsewhere"), **QUIET)
    assert checkpoints.checkpoints(tmp_path / "run")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_folder_of_another_run_is_refused(tmp_path):
    rnn, given = job("plain", folder=tmp_path, epochs=2)
    data = minibatches()
    ba.fit(rnn, data, **given, **QUIET)
    changed = [(x, -target) for x, target in data]
    for other, name in (
        ({"data": changed}, "data"),
        ({"data": Shuffled(changed)}, "data"),
        ({"validation": None, "schedule": None}, "schedule"),
        ({"validation": regression(seed=10)}, "validation"),
        ({"optimizer": ba.Adam(0.06)}, "optimizer"),
        ({"optimizer": ba.SGD(0.05)}, "optimizer"),
        ({"rnn": network(hidden_size=7)}, "rnn"),
        ({"rnn": network(seed=1)}, "rnn"),
        ({"clip": 2.0}, "clip"),
        ({"seed": 1}, "seed"),
        ({"truncate": 3}, "truncate"),
        ({"loss": lambda y, t: ((y - t)[..., 0], y * 0 + 1)}, "loss"),
    ):
        message = f"folder='{tmp_path}': {name} is not that of the run that is in it"
        with pytest.raises(ValueError, match=re.escape(message)) as raised:
            ba.fit(**{"rnn": network(), "data": data, "progress": False} | given | other)
        assert str(raised.value).endswith("give the same, or another folder")
    ba.fit(network(), Again(data), **given | {"optimizer": ba.Adam(0.05), "patience": 3}, **QUIET)


def test_of_another_network_or_optimizer_the_settings_that_differ_are_said(tmp_path):
    ba.fit(network(), GOOD, optimizer=ba.AdamW(0.1), epochs=1, folder=tmp_path, **QUIET)
    for other, says in (
        (
            {"optimizer": ba.AdamW(0.1, weight_decay=0.5)},
            "{'weight_decay': '0.01'} there, {'weight_decay': '0.5'} here",
        ),
        ({"optimizer": ba.RMSprop(0.1)}, "AdamW"),
        ({"rnn": network(seed=7)}, "{'seed': 0} there, {'seed': 7} here"),
    ):
        given = {"rnn": network(), "optimizer": ba.AdamW(0.1), "epochs": 1, "folder": tmp_path, **QUIET}
        with pytest.raises(ValueError, match=re.escape(says)):
            ba.fit(**{"data": GOOD, **given, **other})


def test_data_in_another_order_each_time_cannot_go_on_and_that_is_said_at_the_beginning(tmp_path):
    class Shuffling(Again):
        def __iter__(self):
            self.items = self.items[1:] + self.items[:1]
            return super().__iter__()

    data = Shuffling(minibatches(4))
    with pytest.raises(
        ValueError, match=r"^data has other minibatches when it is gone through again.*: use ba\.batches"
    ):
        ba.fit(network(), data, folder=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()
    ba.fit(network(), list(data), folder=tmp_path / "run", epochs=1, **QUIET)  # or list(…)
    ba.fit(network(), data, epochs=1, **QUIET)  # or no folder


def test_a_run_that_comes_to_no_update_leaves_nothing_that_the_right_call_would_not_fit(tmp_path):
    rnn, (x, target) = ba.RNN(3, 5, 1), regression()
    with pytest.raises(ValueError, match="no_decay"):
        ba.fit(rnn, (x, target), optimizer=ba.AdamW(0.1, no_decay=("b_hh",)), folder=tmp_path / "run", **QUIET)
    history = ba.fit(rnn, (x, target), optimizer=ba.AdamW(0.1, no_decay=("b_h",)), folder=tmp_path / "run", **QUIET)
    assert history.loss[-1] < history.loss[0]


def test_what_is_wrong_with_the_optimizer_is_not_said_of_the_data():
    with pytest.raises(ValueError, match=r"^no_decay has 'b_z'"):
        ba.fit(network(), GOOD, optimizer=ba.AdamW(0.1, no_decay=("b_z",)), **QUIET)


def test_a_folder_in_use_and_a_damaged_checkpoint_are_said_to_be_so(tmp_path):
    from bptt_array.runs import claims

    rnn, given = job("plain", folder=tmp_path, epochs=2)
    with claims.alone_in(tmp_path), pytest.raises(ValueError, match="is in use by another run"):
        ba.fit(rnn, minibatches(), **given, **QUIET)
    whole = run("plain")
    run("plain", folder=tmp_path, epochs=6)
    last = checkpoints.checkpoints(tmp_path)[-1]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="trying the checkpoint before it"):
        assert_same_end(run("plain", folder=tmp_path), whole)
    for path in checkpoints.checkpoints(tmp_path):
        path.write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="has no checkpoint that can be read"):
            run("plain", folder=tmp_path)


@pytest.mark.parametrize(("damage", "count"), [(flipped, 100), (cut_or_grown, 50), (overwritten, 100)])
def test_a_damaged_checkpoint_is_an_error_or_the_same(damage, count, tmp_path):
    run("members", folder=tmp_path, epochs=3)
    (path, *_), rng, refused = checkpoints.checkpoints(tmp_path)[::-1], random.Random(3), 0
    data, expected = path.read_bytes(), checkpoints.read_checkpoint(path, checkpoints.FitCheckpoint)
    assert expected.step == 15
    again = tmp_path / "again"
    again.mkdir()
    assert checkpoints.write_checkpoint(again, expected).read_bytes() == data
    for _ in range(count):
        path.write_bytes(damage(data, rng))
        found, message = refusal(path, lambda path: checkpoints.read_checkpoint(path, checkpoints.FitCheckpoint))
        for name, value in vars(expected).items() if found else ():
            np.testing.assert_equal(getattr(found, name), value)
        refused += message is not None
    assert refused > 0.9 * count
    with pytest.raises(ValueError, match="is a 'checkpoint of fit' of bptt_array; expected a training checkpoint"):
        checkpoints.read_checkpoint(checkpoints.write_checkpoint(again, expected))


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        (
            "params",
            lambda arrays: {**arrays, "W_hy": arrays["W_hy"][..., 1:]},
            "the checkpoint's params.W_hy is not that",
        ),
        ("params", lambda arrays: {"W_hy": arrays["W_hy"]}, "the checkpoint's params.b_y is not that of this network"),
        ("best", lambda arrays: {**arrays, "more": arrays["W_hy"]}, "the checkpoint's best.more is not that"),
        ("kept", lambda arrays: {**arrays, "W_hy": arrays["W_hy"][:1]}, "the checkpoint's kept.1.W_hy is not that"),
        ("history", lambda arrays: {**arrays, "lr": arrays["lr"][1:]}, "the checkpoint's history.lr is not that"),
        ("best_epoch", lambda array: array[1:], "the checkpoint's best_epoch is not that"),
        ("losses", lambda array: array[:, 1:], "the checkpoint's losses are not those of 3 members"),
        ("run", lambda run: {**run, "more": "1"}, "more is not that of the run that is in it: '1' there, None here"),
    ],
)
def test_a_checkpoint_that_means_harm_changes_nothing(field, change, message, tmp_path):
    run("members", folder=tmp_path, epochs=3)
    found = checkpoints.newest_checkpoint(tmp_path, pytest.fail, checkpoints.FitCheckpoint)
    checkpoints.write_checkpoint(tmp_path, replace(found, **{field: change(getattr(found, field))}))
    rnn, given = job("members", folder=tmp_path)
    before = params_of(rnn)
    with pytest.raises(ValueError, match=re.escape(message)):
        ba.fit(rnn, Shuffled(minibatches()), **given, **QUIET)
    assert_same(params_of(rnn), before)
    assert given["optimizer"].state_dict()["updates"] == {}


def test_a_folder_that_is_moved_ends_the_run_and_what_has_its_name_is_left_alone(tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"

    def move(end):
        if end.epoch == 3:
            folder.rename(moved)
            folder.mkdir()

    with pytest.raises(FolderLostError, match="was moved or removed meanwhile, and another folder has its name now"):
        run("plain", folder=folder, callbacks=[move])
    assert list(folder.iterdir()) == []
    assert_same_end(run("plain", folder=moved), run("plain"))


PROGRAM = """
import json, os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
import test_fit as t
from bptt_array.runs import fit

def child(folder):
    process = os.fork()
    if process == 0:
        status = 3
        try:
            history, params, _ = t.run(t.KIND, folder=folder, epochs=60, checkpoint_every=7)
            status = 0 if history.stopped == "epochs" else 4
        finally:
            os._exit(status)
    return process

t.KIND, folder, seed, wanted, number = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
rng, stopped, statuses = random.Random(seed), 0, set()
began = time.monotonic()
assert os.waitstatus_to_exitcode(os.waitpid(child(folder + "-timed"), 0)[1]) == 0
duration = time.monotonic() - began
while True:
    process = child(folder)
    if stopped < wanted:
        time.sleep(rng.uniform(0, duration / 4))
        os.kill(process, getattr(signal, number))
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    statuses.add(status)
    stopped += status != 0
    if status == 0:
        if stopped >= wanted:
            break
        folder += "-next"
print(json.dumps({"folder": folder, "statuses": sorted(statuses)}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which POSIX has")
@pytest.mark.parametrize(("number", "statuses"), [("SIGKILL", {0, -9}), ("SIGINT", {0, 4, 3, 1, -2})])
def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bits(number, statuses, tmp_path):
    seed, times = random.randrange(1 << 30), 20 if IN_CI else 6
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", PROGRAM, here, "members", str(tmp_path / "run"), str(seed), str(times), number]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, (seed, done.stderr[-3000:])
    report = json.loads(done.stdout.splitlines()[-1])
    assert {*report["statuses"]} <= statuses, done.stderr[-3000:]
    found = run("members", folder=report["folder"], epochs=60, checkpoint_every=7)
    assert_same_end(found, run("members", epochs=60))


# ---- Ctrl-C -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["update", "evaluate"])
@pytest.mark.parametrize("folded", [False, True], ids=["no folder", "folder"])
def test_ctrl_c_keeps_the_best_and_the_run_goes_on(folded, where, tmp_path, monkeypatch):
    before, count, once = signal.getsignal(signal.SIGINT), [], getattr(fitting.Fitting, where)

    def interrupting(self, *arguments):
        count.append(1)
        if len(count) == {"update": 13, "evaluate": 3}[where]:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return once(self, *arguments)

    folder = tmp_path if folded else None
    with monkeypatch.context() as patch:
        patch.setattr(fitting.Fitting, where, interrupting)
        history, params, optimizer = run("plain", folder=folder)
    assert history.stopped == "interrupted"
    assert len(history) == 2
    whole, short = run("plain"), run("plain", epochs=2)
    assert np.array_equal(history.validation, whole[0].validation[:2])
    assert_same(params, short[1])  # the best so far
    assert signal.getsignal(signal.SIGINT) is before
    if folded:
        step = {"update": 13, "evaluate": 15}[where]
        assert checkpoints.step_of(checkpoints.checkpoints(folder)[-1]) == step
        assert optimizer["updates"]["W_hy"] == step
        assert_same_end(run("plain", folder=folder), whole)


def test_a_second_ctrl_c_goes_through(monkeypatch):
    update = fitting.Fitting.update

    def twice(self, share, step, stop):
        if step == 4:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        return update(self, share, step, stop)

    monkeypatch.setattr(fitting.Fitting, "update", twice)
    before, optimizer = signal.getsignal(signal.SIGINT), ba.Adam(0.1)
    with pytest.raises(KeyboardInterrupt):
        ba.fit(network(), GOOD, optimizer=optimizer, schedule=lambda step: 0.5, epochs=20, **QUIET)
    assert signal.getsignal(signal.SIGINT) is before
    assert optimizer.lr == 0.1


def test_another_thread_hears_of_no_signal():
    before, found = signal.getsignal(signal.SIGINT), []

    def fitted():
        found.append(ba.fit(network(), GOOD, epochs=2, **QUIET, callbacks=[lambda e: found.append(before)]))

    thread = threading.Thread(target=fitted)
    thread.start()
    thread.join()
    assert found[-1].stopped == "epochs"
    assert signal.getsignal(signal.SIGINT) is before


# ---- divergence ---------------------------------------------------------------------------------------------


def spoiled(monkeypatch, at, times=1):
    update, left = fitting.Fitting.update, [times]

    def spoil(self, share, step, stop):
        done = update(self, share, step, stop)
        if step == at and left[0]:
            left[0] -= 1
            self.rnn.params["W_hy"][...] = np.nan
            return done._replace(loss=done.loss * np.nan)
        return done

    monkeypatch.setattr(fitting.Fitting, "update", spoil)


def test_divergence_leaves_the_network_as_it_was_when_all_was_well(monkeypatch):
    data, rnn, optimizer = minibatches(), network(), ba.Adam(0.01)
    spoiled(monkeypatch, 13)
    with pytest.raises(
        DivergenceError, match=r"training diverged at step 13: the loss is nan at a learning rate of 0\.005"
    ):
        ba.fit(rnn, data, optimizer=optimizer, schedule=lambda step: 0.5, epochs=6, **QUIET)
    assert optimizer.lr == 0.01
    other = network()
    ba.fit(other, data, optimizer=ba.Adam(0.01), schedule=lambda step: 0.5, epochs=2, **QUIET)
    assert_same(params_of(rnn), params_of(other))


def test_half_the_learning_rate_goes_on_from_there(monkeypatch, tmp_path):
    data, more = minibatches(), {"optimizer": ba.Adam(0.01), "epochs": 6, "on_divergence": "halve-lr"}
    spoiled(monkeypatch, 13, times=2)
    rnn = network()
    with pytest.warns(UserWarning, match="going back to step 10 and on with lr=0.00"):
        history = ba.fit(rnn, data, **more, folder=tmp_path, **QUIET)
    assert history.lr.tolist() == [0.01, 0.01, *[0.0025] * 4]
    assert more["optimizer"].lr == 0.01
    found = checkpoints.newest_checkpoint(tmp_path, pytest.fail, checkpoints.FitCheckpoint)
    assert [(event["step"], event["back_to"], event["lr"]) for event in found.events] == [
        (13, 10, 0.005),
        (13, 10, 0.0025),
    ]
    spoiled(monkeypatch, 1, times=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DivergenceError):
            ba.fit(network(), data, **more, **QUIET)


class Listing(Halving):
    """One whose state is the very list that it goes on with."""

    def __init__(self):
        self.all = []

    @property
    def told(self):
        return len(self.all)

    def observe(self, value):
        self.all.append(value)

    def state_dict(self):
        return {"all": self.all}

    def load_state_dict(self, state):
        self.all = state["all"]


@pytest.mark.parametrize("every", [None, 3, 5])
def test_a_stop_changes_nothing_of_where_a_divergence_goes_back_to(every, tmp_path, monkeypatch):
    """Neither a signal, nor a callback, nor fewer epochs: what is kept there is only gone on from."""

    def fitted(folder, **more):
        rnn, schedule = network(), Listing()
        given = {"optimizer": ba.Adam(0.01), "epochs": 8, "folder": folder, "schedule": schedule, "validation": GOOD}
        history = ba.fit(rnn, data, **given | more, checkpoint_every=every, on_divergence="halve-lr", **QUIET)
        return history, params_of(rnn), schedule.told

    data, expected = minibatches(), None
    stops = [None, *({"epochs": k} for k in (1, 3, 4, 5, 7)), *({"callbacks": k} for k in (0, 2, 4)), 1, 8, 17, 21, 23]
    for number, stop in enumerate(stops):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spoiled(patch, 23, times=2)
            if isinstance(stop, int):
                seen, update = [], fitting.Fitting.update

                def counted(self, share, step, stopping, stop=stop, seen=seen, update=update):
                    seen.append(step)
                    if seen == [*range(1, stop + 1)]:
                        os.kill(os.getpid(), signal.SIGINT)
                    return update(self, share, step, stopping)

                patch.setattr(fitting.Fitting, "update", counted)
                assert fitted(folder)[0].stopped == "interrupted"
            elif stop is not None and "callbacks" in stop:
                fitted(folder, callbacks=lambda end, k=stop["callbacks"]: end.epoch == k)
            elif stop is not None:
                fitted(folder, **stop)
            found = fitted(folder)
        events = checkpoints.newest_checkpoint(folder, pytest.fail, checkpoints.FitCheckpoint).events
        expected = (*found, events) if expected is None else expected
        assert same_history(found[0], expected[0]), stop
        assert_same(found[1], expected[1])
        assert (found[2], events) == expected[2:], stop
        assert [event["back_to"] for event in events] == [{None: 20, 3: 21, 5: 20}[every]] * 2


def test_no_learning_rate_is_tried_where_the_data_are_the_reason(recwarn):
    data = minibatches()
    data[3][0][2, 1, 0] = np.nan
    with pytest.raises(DivergenceError, match=r"minibatch 3 of data has x\[2, 1, 0\]=nan; expected finite numbers"):
        ba.fit(network(), data, on_divergence="halve-lr", **QUIET)
    assert not recwarn.list


def test_numbers_that_become_0_are_no_error():
    x, target = regression()
    x = x.astype("float64")
    x[0] = 1e-300
    with np.errstate(all="raise"):
        ba.fit(network(), (x, target), epochs=1, **QUIET)
        ba.fit(network(), ba.batches(x, target), epochs=1, **QUIET)
        assert not ba.pad([x[:1, 0]])[0].any()


def test_a_validation_that_is_no_number_is_divergence_too():
    x, target = regression()
    held_out = x, target + np.float32(1e30)
    rnn = network()
    before = params_of(rnn)
    with pytest.raises(DivergenceError, match="the validation loss is inf"):
        ba.fit(rnn, (x, target), validation=held_out, **QUIET)
    assert_same(params_of(rnn), before)


@pytest.mark.parametrize("kind", ["data", "validation"])
@pytest.mark.parametrize("readout", ["every", "last"])
@pytest.mark.parametrize("time_major", [True, False])
@pytest.mark.parametrize("name", ["x", "target", "weights"])
def test_a_number_that_is_none_in_the_data_is_named(kind, readout, time_major, name):
    """No learning rate would help. What stands past the end of a sequence is no matter."""

    def minibatch(bad=False):
        x, target, lengths = rng.standard_normal((6, 4, 2)), rng.standard_normal((6, 4, 1)), [6, 2, 5, 6]
        arrays = {"x": x, "target": target, "weights": np.ones((6, 4))}
        if bad:
            arrays[name][4, 2] = np.nan
        for each in arrays.values():
            each[3:, 1] = np.nan
        x, target, weights = (
            a[0] if readout == "last" and key != "x" else a if time_major else a.swapaxes(0, 1)
            for key, a in arrays.items()
        )
        if bad and readout == "last" and name != "x":
            arrays[name][0, 2] = np.nan
        return x, target, lengths, weights

    rng = np.random.default_rng(0)
    rnn = ba.RNN(2, 3, 1, readout=readout, time_major=time_major)
    given = {"data": [minibatch() for _ in range(8)], "validation": [minibatch()], "epochs": 3, **QUIET}
    ba.fit(rnn, **given)
    before = params_of(rnn)
    given[kind].append(minibatch(bad=True))
    timed = name == "x" or readout == "every"
    at = ([4, 2] if time_major else [2, 4]) if timed else [2]
    at += [0] * (name != "weights")
    says = f"; minibatch {len(given[kind]) - 1} of {kind} has {name}{at}=nan; expected finite numbers, such as 0 where"
    with pytest.raises(DivergenceError, match=re.escape(says)):
        ba.fit(rnn, **given)
    assert_same(params_of(rnn), before)


# ---- several processes --------------------------------------------------------------------------------------


@mpi.needs_mpi
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_learn_what_one_process_learns(ranks):
    status, out, err = mpi.run(ranks, mpi.TESTS / "on_ranks.py", "fitted")
    assert status == 0, err
    assert out == "fitted is well\n"
