"""Advice in an error is followed, to the letter, and leads to the end."""

import ast
import copy
import pickle
import re
from pathlib import Path

import array_api_strict
import numpy as np
import pytest
from cells_without_kernels import cell_of
from conftest import needs_torch

import bptt_array as ba
from bptt_array import cli, diagnostics, lr_schedules, schedules
from bptt_array.distributed import communicator
from bptt_array.kernels.trace import trace
from bptt_array.plots import plot_loss_gradients
from bptt_array.tracing.program import CannotTraceError
from bptt_array.training import text
from bptt_array.training.options import Options
from bptt_array.training.sampling import sample
from bptt_array.training.trainer import Trainer

T, N, I, H, O = 5, 3, 4, 6, 2  # noqa: E741
RNG = np.random.default_rng(0)
X = RNG.standard_normal((T, N, I)).astype("float32")
Y = RNG.standard_normal((T, N, O)).astype("float32")
CLASSES = RNG.integers(0, O, (T, N))
LABELS = np.array(["cat", "dog"])[CLASSES]
ONES = np.ones((T, N), "float32")


class Leaky(ba.Cell):
    name = "leaky"


class Borrowed(ba.Cell):
    name = "lstm"


class Missing:
    """pandas.NA, as it comes out of a nullable column: no number, and equal to nothing."""

    def __repr__(self):
        return "<NA>"


class Column:
    """A column of a table whose values are Python's objects, such as one of Int64 or Float64 of pandas."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=object)


def rnn(**more):
    return ba.RNN(**{"input_size": I, "hidden_size": H, "output_size": O} | more)


def classifier(**more):
    return rnn(output="softmax", **more)


def tokens_before(network):
    step = network.streamer(N)
    step(CLASSES[0])
    return step


def strict():
    return ba.Backend(array_api_strict)


def named(network):
    optimizer = ba.AdamW(no_decay=("b_h", "b_x"))
    optimizer.no_decay = ("b_h", "b_y")
    optimizer.update(network.params, network.params)


# What goes wrong, what is said to it, and what is done then: each row a call, the advice, and a call that follows it.
# ``r`` is the network.
CALLS = [
    # ---- inputs
    (rnn, lambda r: r(X.tolist()), r"x is a list, .*; use rnn\.asarray\(x\)$", lambda r: r(r.asarray(X.tolist()))),
    (rnn, lambda r: r(X.astype(">f8")), r"x has dtype float64, .*: use rnn\.asarray\(x\), or build the RNN with dtype='float64'$", lambda r: (r(r.asarray(X.astype(">f8"))), rnn(dtype="float64")(X.astype(">f8")))),
    (rnn, lambda r: r(X.astype("float16")), r"x has dtype float16, .*: use rnn\.asarray\(x\)$", lambda r: r(r.asarray(X.astype("float16")))),
    (rnn, lambda r: r(X > 0), r"x has dtype bool, .*: use rnn\.asarray\(x\)$", lambda r: r(r.asarray(X > 0))),
    (rnn, lambda r: r(array_api_strict.asarray(X)), r"x is a array_api_strict.*; use rnn\.asarray\(x\)$", lambda r: r(r.asarray(array_api_strict.asarray(X)))),
    (lambda: rnn(device=strict()), lambda r: r(X), r"x is a numpy.*; use rnn\.asarray\(x\)$", lambda r: r(r.asarray(X))),
    (rnn, lambda r: r((X > 0).astype(int)), r"expected tokens of shape \(T, N\); for features use rnn\.asarray\(x, dtype='float32'\)$", lambda r: r(r.asarray((X > 0).astype(int), dtype="float32"))),
    (rnn, lambda r: r((X > 0).astype(int).tolist()), r"x is a list, .*; use rnn\.asarray\(x, dtype='float32'\)$", lambda r: r(r.asarray((X > 0).astype(int).tolist(), dtype="float32"))),
    (lambda: rnn(members=2, device=strict()), lambda r: r(CLASSES), r"use rnn\.asarray\(x\)$", lambda r: r(r.asarray(CLASSES))),
    (rnn, lambda r: r(X.astype("complex64")), r"x has dtype complex64; expected real numbers: use x\.real, and x\.imag as", lambda r: r(X.astype("complex64").real)),
    (rnn, lambda r: r(LABELS), r"x has dtype <U3; expected real numbers: the class numbers of labels are np\.unique\(x, return_inverse=True\)\[1\]$", lambda r: r(np.unique(LABELS, return_inverse=True)[1])),
    (rnn, lambda r: r([[[1.0] * I] * 2, [[1.0] * I]]), r"x=.* is ragged; .*: fill sequences .* up to the longest, and say with lengths=", lambda r: r(r.asarray([[[1.0] * I] * 2, [[1.0] * I, [0.0] * I]]), lengths=[2, 1])),
    (rnn, lambda r: r(np.array([X[0], X[0, :2]], dtype=object)), r"x\[0\] is itself an array, so x is ragged; .* say with lengths=", lambda r: r(X[:2], lengths=[2, 2, 1])),
    (lambda: rnn(num_layers=2), lambda r: r(CLASSES.astype("float32")), r"integer tokens of shape \(T, N\); of floats that are such use rnn\.asarray\(x, dtype='int64'\)", lambda r: r(r.asarray(CLASSES.astype("float32"), dtype="int64"))),
    (lambda: rnn(embedding_size=3), lambda r: r(X), r"of one-hot rows use x\.argmax\(-1\); for features build the RNN without embedding_size$", lambda r: (r(X.argmax(-1)), rnn()(X))),
    (lambda: rnn(embedding_size=3), lambda r: r(CLASSES.astype("float32")), r"of whole numbers use rnn\.asarray\(x, dtype='int64'\)$", lambda r: r(r.asarray(CLASSES.astype("float32"), dtype="int64"))),
    (lambda: rnn(embedding_size=3), lambda r: r.plan((T, N), tokens=False), r"reads tokens alone; leave tokens out$", lambda r: r.plan((T, N))),
    (rnn, lambda r: r(np.ma.masked_greater(X, 0)), r"x is a MaskedArray; expected a plain array \(for masks see lengths and weights\)", lambda r: (r(np.ma.masked_greater(X, 0).data, lengths=[3, 5, 5]), r.loss(X, Y, weights=ONES))),
    (rnn, lambda r: r.asarray(np.ma.masked_greater(X, 0)), r"array is masked; expected a plain array \(for masks see lengths and weights\)", lambda r: r.asarray(X)),
    (rnn, lambda r: r(np.full((T, N), I)), r"expected 0 to 3 .*; steps to be left out are marked with lengths, or with any value in range and a weight of 0", lambda r: (r(np.full((T, N), I), lengths=[0, 0, 0]), r.loss(np.zeros((T, N), int), Y, weights=0 * ONES))),
    (lambda: rnn(input_size=1), lambda r: r(np.full((T, N), 112)), r"; numbers that are no tokens are floats \(T, N, 1\): rnn\.asarray\(x\[\.\.\., None\], dtype='float32'\)$", lambda r: r(r.asarray(np.full((T, N), 112)[..., None], dtype="float32"))),
    (rnn, lambda r: r(X, lengths=[5.0, 3.0, 1.0]), r"lengths has dtype float64; expected integers: use np\.asarray\(lengths, dtype=int\)", lambda r: r(X, lengths=np.asarray([5.0, 3.0, 1.0], dtype=int))),
    (rnn, lambda r: r(X, lengths=Column([5, 3, 1])), r"lengths is a Column; .*: use np\.asarray\(lengths\)", lambda r: r(X, lengths=np.asarray(Column([5, 3, 1]), dtype=int))),
    (rnn, lambda r: r.loss(X, Y, reset=[1, 0, 1]), r"reset has dtype int64; .*; use np\.asarray\(reset\) != 0", lambda r: r.loss(X, Y, reset=np.asarray([1, 0, 1]) != 0)),
    (lambda: rnn(device=strict()), lambda r: r.loss(X, Y, reset=r.asarray([1, 0, 1])), r"reset has dtype int64; .*; use reset != 0", lambda r: r.loss(X, Y, reset=r.asarray([1, 0, 1]) != 0)),
    (rnn, lambda r: r(X, ba.State(np.ones((1, 1, N, H)))), r"state\.h has dtype float64, .*: use rnn\.asarray\(state\.h\)", lambda r: r(X, ba.State(r.asarray(np.ones((1, 1, N, H)))))),
    (rnn, lambda r: r(X, ba.State(np.ones((1, 1, N, H), int))), r"state\.h has dtype int64, .*: use rnn\.asarray\(state\.h, dtype='float32'\)", lambda r: r(X, ba.State(r.asarray(np.ones((1, 1, N, H), int), dtype="float32")))),
    (rnn, lambda r: r.loss_and_grad(CLASSES, Y, input_grad=True), r"which have no gradient; leave input_grad=False", lambda r: r.loss_and_grad(CLASSES, Y, input_grad=False)),
    (rnn, lambda r: r.plan((T, N), input_grad=True), r"tokens have no gradient; leave input_grad=False", lambda r: r.plan((T, N), input_grad=False)),
    (lambda: rnn(recurrent_dropout=0.5), lambda r: r.forward(X), r"dropout_seed is missing, .*: give a whole number, .*, or dropout_seed='off'", lambda r: (r.forward(X, dropout_seed=1), r.forward(X, dropout_seed="off"))),
    # ---- one step at a time
    (lambda: rnn(bidirectional=True), lambda r: r.streamer(N), r"call rnn\(x\) with whole sequences, or build the RNN with bidirectional=False$", lambda r: (r(X), rnn(bidirectional=False).streamer(N)(X[0]))),
    (lambda: rnn(reverse=True), lambda r: r.streamer(N), r"call rnn\(x\) with whole sequences, or build the RNN with reverse=False$", lambda r: (r(X), rnn(reverse=False).streamer(N)(X[0]))),
    (rnn, lambda r: r.streamer(N)(X), r"of whole sequences give one step, x_t\[t\], or call rnn\(x_t, step\.state\)$", lambda r: (r.streamer(N)(X[1]), r(X, r.streamer(N).state))),
    (rnn, lambda r: r.streamer(N)((X[0] > 0).astype(int)), r"; for features use rnn\.asarray\(x_t, dtype='float32'\)$", lambda r: r.streamer(N)(r.asarray((X[0] > 0).astype(int), dtype="float32"))),
    (rnn, lambda r: r.streamer(N)(CLASSES[0] * 1.0), r"; of floats that are tokens use rnn\.asarray\(x_t, dtype='int64'\)$", lambda r: r.streamer(N)(r.asarray(CLASSES[0] * 1.0, dtype="int64"))),
    (lambda: tokens_before(rnn()), lambda step: step(X[0]), r"was given tokens before; make another, rnn\.streamer\(3, step\.state\)$", lambda step: rnn().streamer(3, step.state)(X[0])),
    (lambda: rnn().streamer(N), lambda step: step.reset([0, N]), r"expected 0 to 2, numbers of sequences, or N=3 bools$", lambda step: (step.reset([0, 2]), step.reset([True, False, True]))),
    (lambda: rnn().streamer(N), copy.copy, r"Take step\.state, and make another of the network there: rnn\.streamer\(N, state\)$", lambda step: rnn().streamer(N, pickle.loads(pickle.dumps(step.state)))),
    # ---- targets
    (rnn, lambda r: r.loss(X, Y.tolist()), r"target is a list, .*; use rnn\.asarray\(target\)$", lambda r: r.loss(X, r.asarray(Y.tolist()))),
    (rnn, lambda r: r.loss(X, (Y > 0).astype(int)), r"target has dtype int64, .*: use rnn\.asarray\(target, dtype='float32'\)$", lambda r: r.loss(X, r.asarray((Y > 0).astype(int), dtype="float32"))),
    (rnn, lambda r: r.loss(X, (Y > 0).astype(int).tolist()), r"target is a list, .*; use rnn\.asarray\(target, dtype='float32'\)$", lambda r: r.loss(X, r.asarray((Y > 0).astype(int).tolist(), dtype="float32"))),
    (lambda: rnn(output="sigmoid"), lambda r: r.loss(X, (Y > 0).astype(int), "binary_cross_entropy"), r"target has dtype int64, .*: use rnn\.asarray\(target, dtype='float32'\)$", lambda r: r.loss(X, r.asarray((Y > 0).astype(int), dtype="float32"), "binary_cross_entropy")),
    (lambda: rnn(output="sigmoid", device=strict()), lambda r: r.loss(X, r.asarray((Y > 0).astype(int)), "binary_cross_entropy"), r"target has dtype int64, .*: use rnn\.asarray\(target, dtype='float32'\)$", lambda r: r.loss(X, r.asarray(r.asarray((Y > 0).astype(int)), dtype="float32"), "binary_cross_entropy")),
    (lambda: ba.RNN(I, H, 1, output="sigmoid"), lambda r: r.loss(X, CLASSES, "binary_cross_entropy"), r"expected float32 and \(5, 3, 1\), as y has: use rnn\.asarray\(target\[\.\.\., None\], dtype='float32'\)$", lambda r: r.loss(X, r.asarray(CLASSES[..., None], dtype="float32"), "binary_cross_entropy")),
    (lambda: ba.RNN(I, H, 1), lambda r: r.loss(X, ONES), r"expected float32 and \(5, 3, 1\), as y has: use rnn\.asarray\(target\[\.\.\., None\], dtype='float32'\)$", lambda r: r.loss(X, r.asarray(ONES[..., None], dtype="float32"))),
    (classifier, lambda r: r.loss(X, CLASSES), r"as class numbers have; expected float32 .*loss='mse': for classes build the RNN with output='softmax', and use loss='cross_entropy'$", lambda r: rnn(output="softmax").loss(X, CLASSES, loss="cross_entropy")),
    (classifier, lambda r: r.loss(X, CLASSES.tolist(), "cross_entropy"), r"target is a list, .*; use rnn\.asarray\(target\)$", lambda r: r.loss(X, r.asarray(CLASSES.tolist()), "cross_entropy")),
    (classifier, lambda r: r.loss(X, LABELS, "cross_entropy"), r"target has dtype <U3; .*: the class numbers of labels are np\.unique\(target, return_inverse=True\)\[1\]$", lambda r: r.loss(X, np.unique(LABELS, return_inverse=True)[1], "cross_entropy")),
    (classifier, lambda r: r.loss(X, LABELS.tolist(), "cross_entropy"), r"the class numbers of labels are np\.unique\(target, return_inverse=True\)\[1\]$", lambda r: r.loss(X, np.unique(LABELS.tolist(), return_inverse=True)[1], "cross_entropy")),
    (classifier, lambda r: r.loss(X, CLASSES.astype("float32"), "cross_entropy"), r"target has dtype float32 and shape \(5, 3\), as class numbers have, .*: for classes use rnn\.asarray\(target, dtype='int64'\)$", lambda r: r.loss(X, r.asarray(CLASSES.astype("float32"), dtype="int64"), "cross_entropy")),
    (classifier, lambda r: r.loss(X, CLASSES.astype("float64"), "cross_entropy"), r"for classes use rnn\.asarray\(target, dtype='int64'\)$", lambda r: r.loss(X, r.asarray(CLASSES.astype("float64"), dtype="int64"), "cross_entropy")),
    (classifier, lambda r: r.loss(X, (CLASSES * 1.0).tolist(), "cross_entropy"), r"target is a list, .*; for classes use rnn\.asarray\(target, dtype='int64'\)$", lambda r: r.loss(X, r.asarray((CLASSES * 1.0).tolist(), dtype="int64"), "cross_entropy")),
    (classifier, lambda r: r.loss(X, CLASSES > 0, "cross_entropy"), r"target has dtype bool .*: for classes use rnn\.asarray\(target, dtype='int64'\)$", lambda r: r.loss(X, r.asarray(CLASSES > 0, dtype="int64"), "cross_entropy")),
    (lambda: classifier(time_major=False), lambda r: r.loss(X.swapaxes(0, 1), CLASSES.T.astype("float32"), "cross_entropy"), r"for classes use rnn\.asarray\(target, dtype='int64'\)$", lambda r: r.loss(X.swapaxes(0, 1), r.asarray(CLASSES.T.astype("float32"), dtype="int64"), "cross_entropy")),
    (lambda: classifier(members=2), lambda r: r.loss(X, CLASSES.astype("float32"), "cross_entropy"), r"for classes use rnn\.asarray\(target, dtype='int64'\)$", lambda r: r.loss(X, r.asarray(CLASSES.astype("float32"), dtype="int64"), "cross_entropy")),
    (lambda: classifier(readout="last", device=strict()), lambda r: r.loss(X, r.asarray(CLASSES[0] * 1.0), "cross_entropy"), r"for classes use rnn\.asarray\(target, dtype='int64'\)$", lambda r: r.loss(X, r.asarray(r.asarray(CLASSES[0] * 1.0), dtype="int64"), "cross_entropy")),
    (rnn, lambda r: r.loss(X, Y, "binary_cross_entropy"), r"this RNN has output='identity': build it with output='sigmoid', or use loss='mse'$", lambda r: (rnn(output="sigmoid").loss(X, abs(Y), "binary_cross_entropy"), r.loss(X, Y, loss="mse"))),
    (classifier, lambda r: r.loss(X, CLASSES - 100 * (CLASSES == 0), "cross_entropy"), r"or with any value in range and a weight of 0, or ignored by loss=losses\.CrossEntropy\(ignore_index=-100\)$", lambda r: (r.loss(X, CLASSES, "cross_entropy", weights=0 * ONES), r.loss(X, CLASSES - 100 * (CLASSES == 0), ba.losses.CrossEntropy(ignore_index=-100)))),
    (classifier, lambda r: r.loss(X, abs(Y), ba.losses.CrossEntropy(ignore_index=-100)), r"give such steps a weight of 0, or leave ignore_index=None$", lambda r: r.loss(X, abs(Y), ba.losses.CrossEntropy(ignore_index=None), weights=0 * ONES)),
    (classifier, lambda r: r.loss(X, CLASSES, ba.losses.CrossEntropy), r"such as CrossEntropy\(\)$", lambda r: r.loss(X, CLASSES, ba.losses.CrossEntropy())),
    (rnn, lambda r: r.loss(X, Y, ba.losses.Huber(0)), r"or use loss='mae'", lambda r: r.loss(X, Y, loss="mae")),
    (rnn, lambda r: r.loss(X, Y, weights=ONES > 0), r"weights has dtype bool, .*: use rnn\.asarray\(weights\)$", lambda r: r.loss(X, Y, weights=r.asarray(ONES > 0))),
    (rnn, lambda r: r.loss(X, Y, weights=CLASSES), r"weights has dtype int64, .*: use rnn\.asarray\(weights, dtype='float32'\)$", lambda r: r.loss(X, Y, weights=r.asarray(CLASSES, dtype="float32"))),
    (rnn, lambda r: r.loss(X, Y, lambda y, t: (y, y)), r"For a loss that is no sum over steps use rnn\.forward and its backward$", lambda r: r.forward(X)[2](Y)),
    (rnn, lambda r: r.forward(X)[2](np.ones((T, N, O), int)), r"dy has dtype int64, .*: use rnn\.asarray\(dy, dtype='float32'\)$", lambda r: r.forward(X)[2](r.asarray(np.ones((T, N, O), int), dtype="float32"))),
    # ---- rnn.asarray
    (rnn, lambda r: r.asarray([[1.0, 2.0], [3.0]]), r"array=.* is ragged; .*: fill sequences of different lengths up to the longest", lambda r: r.asarray([[1.0, 2.0], [3.0, 0.0]])),
    (rnn, lambda r: r.asarray([1j]), r"array has dtype complex128; expected real numbers: use array\.real", lambda r: r.asarray(np.array([1j]).real)),
    (rnn, lambda r: r.asarray(Column([1, Missing()])), r"array has dtype object; expected real numbers, but array\[1\] is <NA>: put a number, such as 0, where one is missing, and in a target leave its step out with a weight of 0$", lambda r: (r(r.asarray(Column(np.zeros((T, N, I)).tolist()))), r.loss(X, 0 * Y, weights=0 * ONES))),
    (rnn, lambda r: r.asarray([1.5, np.nan], dtype="int64"), r"array\[0\]=1\.5 is no whole number; expected integers", lambda r: r.asarray([1.0, 2.0], dtype="int64")),
    (classifier, lambda r: r.asarray([0.0, np.nan], dtype="int64"), r"array\[1\]=nan is no whole number; .*: where one is missing put any that is in range, and leave its step out with a weight of 0$", lambda r: r.loss(X, r.asarray(CLASSES * 0.0, dtype="int64"), "cross_entropy", weights=0 * ONES)),
    (rnn, lambda r: r.asarray([[0.0, 1e300]]), r"array\[0, 1\]=1e\+300 does not fit in float32; expected at most 3\.4e\+38: divide array by a scale$", lambda r: r.asarray(np.array([[0.0, 1e300]]) / 1e300)),
    # ---- the network itself
    (rnn, lambda r: r.member(0), r"no ensemble; build it with members=E, or use it as it is", lambda r: (rnn(members=2).member(0)(X), r(X))),
    (rnn, lambda r: r.loss_and_grad(X, Y, memory="2kB"), r"memory=2000 .* is too small; the smallest budget that works here is memory=(?P<budget>\d+)", lambda r, budget: r.loss_and_grad(X, Y, memory=int(budget))),
    (rnn, lambda r: r.plan((T, N, I), memory=1 << 70), r"is more than there can be, .*; leave it out for no limit", lambda r: r.plan((T, N, I))),
    (lambda: rnn(cell="lstm"), lambda r: r.loss_and_grad(X, Y, backward="parallel"), r"; use backward='sequential' or 'auto'$", lambda r: (r.loss_and_grad(X, Y, backward="sequential"), r.loss_and_grad(X, Y, backward="auto"))),
    (lambda: rnn(bidirectional=True), lambda r: r.loss_and_grad(X, Y, truncate=2), r"; leave truncate=None$", lambda r: r.loss_and_grad(X, Y, truncate=None)),
    (lambda: rnn(readout="last"), lambda r: diagnostics.gradient_flow(r, X, Y[0], at=[1]), r"one loss; leave at=None$", lambda r: diagnostics.gradient_flow(r, X, Y[0], at=None)),
    (lambda: rnn(members=2), lambda r: r.to_torch_state_dict(), r"use rnn\.member\(k\)\.to_torch_state_dict\(\)$", lambda r: r.member(1).to_torch_state_dict()),
    (rnn, lambda r: ba.SGD(0.1).update(r.params, r.loss_and_grad(X, Y)[1]), r"grads is a Gradients; .*: use grads\.params$", lambda r: ba.SGD(0.1).update(r.params, r.loss_and_grad(X, Y)[1].params)),
    (rnn, lambda r: lr_schedules.step(3, 1.5), r": a rate that grows is a function of your own, such as lambda step: 1\.01\*\*step$", lambda r: lr_schedules.warm_up(3, lambda step: 1.01**step)(5)),
    (lambda: rnn(members=2), lambda r: lr_schedules.Plateau().observe(r.loss(X, Y)[0]), r"expected a real number: float\(value\), of the losses of an ensemble float\(value\.mean\(\)\)$", lambda r: (lr_schedules.Plateau().observe(float(r.loss(X, Y)[0].mean())), lr_schedules.Plateau().observe(float(rnn().loss(X, Y)[0])))),
    (rnn, lambda r: ba.AdamW(no_decay="b_h"), r"is one string; expected several, such as no_decay=\('b_h',\)$", lambda r: ba.AdamW(no_decay=("b_h",)).update(r.params, r.params)),
    (rnn, lambda r: ba.AdamW(no_decay=("b_h", "b_x")).update(r.params, r.params), r"expected names such as \['W_hy', 'b_y', 'l0\.W_hh', 'l0\.W_xh', 'l0\.b_h'\], or their ends: set optimizer\.no_decay$", named),
    (rnn, lambda r: ba.SGD(0.1, nesterov=True), r"expected a momentum too, such as 0\.9$", lambda r: ba.SGD(0.1, momentum=0.9, nesterov=True).update(r.params, r.params)),
    (rnn, lambda r: ba.SGD(0.1).update({"a": np.broadcast_to(ONES[0], (T, N))}, {"a": ONES}), r"expected an array of its own: copy it first$", lambda r: ba.SGD(0.1).update({"a": np.broadcast_to(ONES[0], (T, N)).copy()}, {"a": ONES})),
]  # fmt: skip


@pytest.mark.parametrize(("build", "wrong", "message", "advice"), CALLS, ids=[row[2] for row in CALLS])
def test_what_an_error_of_a_call_advises_works(build, wrong, message, advice):
    network = build()
    with pytest.raises((TypeError, ValueError), match=message) as failed:
        wrong(network)
    advice(network, **re.search(message, str(failed.value)).groupdict())


def params(network, change):
    network.params["b_y"] = change
    return network(X)


UNTIED = ba.RNN(I, H, I, embedding_size=H).to_torch_state_dict()
MIXED = rnn().to_torch_state_dict() | {"readout.bias": np.zeros(O)}
BUILDS = [
    (lambda: ba.RNN(I, H, output="softmax"), r"give output_size as well, or leave output='identity'", lambda: (ba.RNN(I, H, O, output="softmax"), ba.RNN(I, H, output="identity"))),
    (lambda: rnn(dropout=0.1), r"give num_layers=2 or more, or use recurrent_dropout", lambda: (rnn(dropout=0.1, num_layers=2), rnn(recurrent_dropout=0.1))),
    (lambda: rnn(proj_size=2), r"only cell='lstm' has a projection; give that, or proj_size=None", lambda: (rnn(proj_size=2, cell="lstm"), rnn(proj_size=None))),
    (lambda: rnn(proj_size=H, cell="lstm"), r"expected less than that, or proj_size=None", lambda: (rnn(proj_size=H - 1, cell="lstm"), rnn(proj_size=None, cell="lstm"))),
    (lambda: rnn(forget_bias=1.0), r"no forget gate; leave it at 0", lambda: rnn(forget_bias=0)),
    (lambda: rnn(forget_bias=1.0, cell="lstm", bias=False), r"leave it at 0, or leave bias=True", lambda: (rnn(forget_bias=0, cell="lstm", bias=False), rnn(forget_bias=1.0, cell="lstm", bias=True))),
    (lambda: rnn(reverse=True, bidirectional=True), r"leave reverse=False, or bidirectional=False", lambda: (rnn(reverse=False, bidirectional=True), rnn(reverse=True, bidirectional=False))),
    (lambda: rnn(reverse=True).loss_and_grad(X, Y, truncate=2), r"the past alone counts; leave truncate=None", lambda: rnn(reverse=True).loss_and_grad(X, Y, truncate=None)),
    (lambda: rnn(reverse=True).to_torch_state_dict(), r"set rnn\.reverse = False for the weights of one that is given x\.flip\(0\)", lambda: setattr(r := rnn(reverse=True), "reverse", False) or r.to_torch_state_dict()),
    (lambda: rnn(tied=True), r"give embedding_size=6 as well, or leave tied=False", lambda: (ba.RNN(I, H, I, embedding_size=6, tied=True), rnn(tied=False))),
    (lambda: rnn(embedding_size=6, tied=True), r"are one vocabulary; give output_size=4", lambda: ba.RNN(I, H, 4, embedding_size=6, tied=True)),
    (lambda: ba.RNN(I, H, I, embedding_size=3, tied=True), r"give embedding_size=6, or leave tied=False", lambda: (ba.RNN(I, H, I, embedding_size=6, tied=True), ba.RNN(I, H, I, embedding_size=3, tied=False))),
    (lambda: ba.RNN.from_torch_state_dict(rnn().to_torch_state_dict(), tied=True), r"has no 'embedding\.weight'; leave tied=False", lambda: ba.RNN.from_torch_state_dict(rnn().to_torch_state_dict(), tied=False)),
    (lambda: ba.RNN.from_torch_state_dict(UNTIED, tied=True), r"are not the same; leave tied=False", lambda: ba.RNN.from_torch_state_dict(UNTIED, tied=False)),
    (lambda: rnn(cell=Leaky), r"expected one of its objects: cell=Leaky\(\)", lambda: rnn(cell=Leaky())),
    (lambda: rnn(cell=Borrowed()), r"give it a name of its own", lambda: rnn(cell=Leaky())),
    (lambda: rnn(device="cuda:99"), r"^device='cuda:99'.*(?:use device='cpu'|finds \d+ of them)", lambda: rnn(device="cpu")),
    (lambda: params(rnn(), np.zeros(O, ">f4")), r"use rnn\.asarray\(params\['b_y'\]\)", lambda: params(rnn(), rnn().asarray(np.zeros(O, ">f4")))),
    (lambda: params(rnn(), [0, 0]), r"params\['b_y'\] is a list, .*use rnn\.asarray\(params\['b_y'\], dtype='float32'\)", lambda: params(rnn(), rnn().asarray([0, 0], dtype="float32"))),
    (lambda: ba.Backend(np.linalg), r"expected a module like array_api_strict or torch", lambda: ba.Backend(array_api_strict)),
    (lambda: schedules.plan(100, memory=1000), r"expected Costs\(…\), or use RNN\.plan, which has them", lambda: (schedules.plan(100, memory=1000, costs=schedules.Costs(1, 1)), rnn().plan((T, N, I), memory="1MiB"))),
    (lambda: rnn().loss_and_grad(X, Y, truncate=(2, 1)), r"expected k1 <= k2", lambda: rnn().loss_and_grad(X, Y, truncate=(1, 2))),
    (lambda: Options(bidirectional=True), r"the network has to predict; leave it out", Options),
    (lambda: Options(dropout=0.1, layers=1), r"give layers=2 or more, or use recurrent_dropout", lambda: (Options(dropout=0.1, layers=2), Options(recurrent_dropout=0.1, layers=1))),
    (lambda: text.Streams(np.arange(10), 3, 4), r"expected at least 13: give more text, or a smaller --batch, --seq-len or --validation", lambda: (text.Streams(np.arange(13), 3, 4), text.Streams(np.arange(10), 2, 4), text.Streams(np.arange(10), 3, 3))),
    (lambda: sample(ba.RNN(2, H, 2, output="softmax"), text.Vocabulary("ab"), length=3, member=0), r"no ensemble; leave it out", lambda: sample(ba.RNN(2, H, 2, output="softmax"), text.Vocabulary("ab"), length=3)),
    (lambda: plot_loss_gradients(diagnostics.gradient_flow(rnn(), X, Y, at=[])), r"expected one with per_loss, see gradient_flow's at", lambda: plot_loss_gradients(diagnostics.gradient_flow(rnn(), X, Y, at=[1, 4]))),
    (lambda: communicator().all_reduce(rnn().params), r"to add up other arrays use sum\)", lambda: communicator().sum(rnn().params)),
    (lambda: communicator().all_reduce(ba.Gradients({"loss": ONES}, ba.State(None))), r"as the loss itself is called; rename it", lambda: communicator().all_reduce(ba.Gradients({"losses": ONES}, ba.State(None)))),
    (lambda: ba.RNN.from_torch_state_dict(MIXED), r"expected one dtype: use module\.float\(\) or module\.double\(\)", lambda: [ba.RNN.from_torch_state_dict({name: value.astype(dtype) for name, value in MIXED.items()}) for dtype in ("float32", "float64")]),
    (lambda: text.Text.of("ab" * 50 + "\0"), r"has a NUL \(character 100\); leave it out: no text has any", lambda: text.Text.of("ab" * 50)),
    (lambda: ba.RNN.from_torch_state_dict(list(rnn().to_torch_state_dict())), r"expected a mapping", lambda: ba.RNN.from_torch_state_dict(rnn().to_torch_state_dict())),
    (lambda: ba.RNN.from_torch_state_dict(rnn().to_torch_state_dict(), recurrent_prefix="rnn"), r"has no dot at its end; expected 'rnn\.', or '' for no name", lambda: ba.RNN.from_torch_state_dict(rnn().to_torch_state_dict(), recurrent_prefix="rnn.")),
    (lambda: ba.RNN.from_torch_state_dict(rnn().to_torch_state_dict("lstm.")), r"say with recurrent_prefix='lstm\.'", lambda: ba.RNN.from_torch_state_dict(rnn().to_torch_state_dict("lstm."), recurrent_prefix="lstm.")),
    (lambda: ba.RNN.from_torch_state_dict({**rnn().to_torch_state_dict(), "norm.weight": ONES}), r"leave out those of other modules", lambda: ba.RNN.from_torch_state_dict(rnn().to_torch_state_dict())),
    (lambda: ba.pad({"a": X[0], "b": X[1]}), r"use list\(sequences\.values\(\)\)$", lambda: ba.pad(list({"a": X[0], "b": X[1]}.values()))),
    (lambda: ba.pad([[1, 2], [0.5]]), r"as numbers use \[np\.asarray\(one, dtype=float\) for one in sequences\]$", lambda: ba.pad([np.asarray(one, dtype=float) for one in [[1, 2], [0.5]]])),
    (lambda: ba.pad([X[0], X[1, :2]], length=2), r"or cut them: \[one\[:2\] for one in sequences\]$", lambda: (ba.pad([X[0], X[1, :2]], length=3), ba.pad([one[:2] for one in [X[0], X[1, :2]]], length=2))),
    (lambda: ba.batches(X[..., 0]), r"of one feature use x\[\.\.\., None\], of one long series see ba\.windows$", lambda: (ba.batches(X[..., 0][..., None]), ba.batches(ba.windows(X[..., 0], 2)[0]))),
    (lambda: ba.batches(list(X), lengths=[3] * T), r"which have theirs; leave it out$", lambda: ba.batches(list(X))),
    (lambda: ba.batches(X, by_length=True), r"give lengths=…, or leave by_length out$", lambda: (ba.batches(X, by_length=True, lengths=[5, 2, 3]), ba.batches(X))),
    (lambda: ba.batches(X[:3], np.ones((3, 3))), r"say which: per_step=True or per_step=False$", lambda: (ba.batches(X[:3], np.ones((3, 3)), per_step=True), ba.batches(X[:3], np.ones((3, 3)), per_step=False))),
    (lambda: ba.batches(X).to(rnn(time_major=False)), r"use ba\.batches\(\.\.\., time_major=False\), of arrays with the sequences first$", lambda: ba.batches(X.swapaxes(0, 1), time_major=False).to(rnn(time_major=False))),
    (lambda: ba.Standardization.of(np.array([1.0, np.inf])), r"put NaN where one is missing$", lambda: ba.Standardization.of(np.array([1.0, np.nan]))),
    (lambda: ba.Standardization([1e300], [1.0])(X[..., :1]), r"mean\[0\]=1e\+300 does not fit in float32, the dtype of x; give x in float64$", lambda: ba.Standardization([1e300], [1.0])(X[..., :1].astype("float64"))),
    (lambda: ba.Standardization([0.0], [1e-50]).inverse(X[..., :1]), r"std\[0\]=1e-50 does not fit in float32, the dtype of y; give y in float64$", lambda: ba.Standardization([0.0], [1e-50]).inverse(X[..., :1].astype("float64"))),
    (lambda: ba.losses.CrossEntropy([1e38, 1e38]), r"class_weights\[0\]=1e\+38; expected 0, or numbers from 1e-20 to 1e\+20: divide all by one of them", lambda: ba.losses.CrossEntropy([1.0, 1.0])),
    (lambda: rnn(embedding_size=3).to_torch_state_dict("", "", ""), r"expected different ones: give embedding_prefix='embedding\.'$", lambda: rnn(embedding_size=3).to_torch_state_dict("", "", embedding_prefix="embedding.")),
    (lambda: ba.Standardization.of(list(X), [3] * T), r"which have theirs; leave it out$", lambda: ba.Standardization.of(list(X))),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message", "advice"), BUILDS, ids=[row[1] for row in BUILDS])
def test_what_an_error_of_building_something_advises_works(wrong, message, advice):
    with pytest.raises((TypeError, ValueError), match=message):
        wrong()
    advice()


#: Advice that rows cannot follow: what it says, and where it is followed or why it cannot be.
ELSEWHERE = {
    "there is no validation.*give validation=": "test_fit.py: test_to_do_as_errors_say_helps",
    "is not that of the run that is in it.*give the same, or another folder": "test_fit.py: test_the_folder_of_another_run_is_refused",
    r"use list\(…\)|use ba\.batches\(…\), whose order follows from a seed": "test_fit.py: test_to_do_as_errors_say_helps",
    r"pass …\.detach\(\)": "test_tensors_that_autograd_tracks_come_in_as_the_error_says",
    r"pass …\.to_dense\(\)": "test_sparse_tensors_are_made_dense_as_the_error_says",
    r"use lengths\.tolist\(\)": "test_tensors_that_autograd_tracks_come_in_as_the_error_says",
    r"use module\.cpu\(\)\.float\(\) or module\.cpu\(\)\.double\(\)": "test_tensors_that_autograd_tracks_come_in_as_the_error_says",
    "not in the library; give it: cell=": "test_a_file_with_a_cell_of_ones_own_is_loaded_as_the_error_says",
    "the folder does not exist; make it first": "test_a_folder_is_made_first_as_the_error_says",
    "clip the gradients to a smaller norm": "test_training_that_diverged_goes_well_with_a_smaller_learning_rate_or_norm",
    "or use device='cpu'": "row with device='cuda:99', where there is no CUDA",
    r"use NumPy 2\.1 or later": "test_namespaces.py: a memory that the host cannot read, on each NumPy",
    "cannot be used with xp=.*; leave it out": "test_namespaces.py: a device that a namespace has not",
    "use NumPy, CuPy, torch or array_api_strict": "test_namespaces.py: they are backends there",
    "use dtype='float32', or another device": "test_namespaces.py: a network in float64",
    "is for CUDA devices, but .*; leave it out": "needs several processes: test_jobs.py",
    "is for several processes, .*; leave it out": "test_flags_are_left_out_as_the_error_says",
    "use the mpiexec of that one": "needs a second MPI",
    "broadcast them at the start": "needs several processes: test_distributed.py",
    "use 'auto' or 'host'": "needs several processes: test_distributed.py",
    "use a smaller --hidden or --batch": "needs a machine without memory: test_jobs.py",
    "give the text: --resume RUN FILE": "test_runs.py",
    "leave it out with --resume": "test_flags_are_left_out_as_the_error_says",
    "is what the model of init_from decides; leave it out": "test_flags_are_left_out_as_the_error_says",
    "is in use by another run, .*; wait for its end": "test_runs.py",
    "begin with smaller parameters": "of parameters that are no numbers",
    "train again with a smaller --lr": "as for a run that diverged",
    "in which the language reference is: give the FILE": "needs a Python without it: test_any_command.py",
    "pass nothing on": "no advice: of units without a slope",
    "make another|set them, or build another network|build another network, ba.RNN|make a class of your own|make a new opt": "test_attributes.py",
    r"make others with ba\.batches": "test_data.py",
    "make that a plain weight of the same values first|network of one layer: rename them": "test_torch.py",
    "came from standard input, .*; give it again": "test_training.py",
    r"use xp\.where": "test_a_step_that_looks_at_values_has_a_kernel_with_where_as_the_error_says",
}

ADVICE = re.compile(
    r"(?:^|[;:,(] |\bor )(?:for \w+ )?(use|give|leave|pass|build|put|say|make|fill|clip|divide|copy|rename|wait|begin with|train again|broadcast) "
)


def advice_in(file):
    """Of a file of the package, the texts that tell somebody to do something: in pieces, between which values are put.

    Docstrings and the help of flags are none.
    """
    tree, skipped = ast.parse(file.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= set(map(id, node.values))
        elif isinstance(node, ast.Expr):
            skipped.add(id(node.value))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_option":
            skipped |= set(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        pieces = [""]
        for part in node.values if isinstance(node, ast.JoinedStr) else [node]:
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                pieces[-1] += part.value
            else:
                pieces.append("")
        if id(node) not in skipped and any(map(ADVICE.search, pieces)):
            yield pieces


def said(wrong, *given):
    with pytest.raises((TypeError, ValueError)) as failed:
        wrong(*given)
    return str(failed.value)


def test_no_error_of_the_package_has_advice_that_is_not_followed_here():
    heard = [said(wrong, build()) for build, wrong, *_ in CALLS] + [said(wrong) for wrong, *_ in BUILDS]
    elsewhere, package, unheard = re.compile("|".join(ELSEWHERE)), Path(ba.__file__).parent, []
    found = [(file, pieces) for file in sorted(package.rglob("*.py")) for pieces in advice_in(file)]
    for file, pieces in found:
        message = re.compile("(?s:.*)".join(map(re.escape, pieces)))
        if not any(map(message.search, heard)) and not elsewhere.search("…".join(pieces)):
            unheard.append(f"{file.relative_to(package)}: {'…'.join(pieces)}")
    assert len(found) > 50
    assert unheard == []  # each wants a row, or to be named in ELSEWHERE


def test_a_step_that_looks_at_values_has_a_kernel_with_where_as_the_error_says():
    def with_where(self, xp, z, h, params):
        return xp.where(z > 0, z, xp.zeros_like(z))

    for name in ("branch", "by value"):
        cell = cell_of(name)
        with pytest.raises(CannotTraceError, match=r"use xp\.where, line \d+ of cells_without_kernels\.py"):
            trace(cell, H, "float32")
        cell.f = with_where.__get__(cell)
        assert trace(cell, H, "float32").cell.gates == 1


def test_a_folder_is_made_first_as_the_error_says(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder does not exist; make it first"):
        rnn().save(tmp_path / "models" / "first")
    (tmp_path / "models").mkdir()
    rnn().save(tmp_path / "models" / "first")


def test_flags_are_left_out_as_the_error_says(tmp_path, capsys):
    file, run = tmp_path / "text.txt", str(tmp_path / "run")
    file.write_text("to be or not to be\n" * 50)
    small = ["--seq-len", "8", "--batch", "4", "--steps", "4"]
    begun = ["train", str(file), "--hidden", "8", *small, "--out", run]
    for command, flag in (
        (begun, ["--transport", "host"]),
        (["train", "--resume", run], ["--hidden", "9"]),
        (["train", str(file), "--init-from", run, *small, "--out", str(tmp_path / "more")], ["--hidden", "9"]),
    ):
        assert cli.main([*command, *flag]) == 2
        assert "leave it out" in capsys.readouterr().err
        assert cli.main(command) == 0


def test_a_file_with_a_cell_of_ones_own_is_loaded_as_the_error_says(tmp_path):
    rnn(cell=Leaky()).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"'leaky', which is not in the library; give it: cell=…"):
        ba.RNN.load(tmp_path / "model")
    assert ba.RNN.load(tmp_path / "model", cell=Leaky()).cell == "leaky"


def test_integers_to_compute_with_and_classes_in_floats_are_what_asarray_is_asked_for():
    for network in (rnn(), rnn(device=strict())):
        xp, host = network.backend.xp, network.backend.to_host
        for given in ([0, 1], np.array([0, 1], "uint8"), network.asarray([0, 1]), np.array([False, True]), [0.0, 1.0]):
            floats, classes = network.asarray(given, dtype="float32"), network.asarray(given, dtype="int64")
            assert (floats.dtype, classes.dtype) == (xp.float32, xp.int64)
            assert host(floats).tolist() == host(classes).tolist() == [0, 1]
        with pytest.raises(ValueError, match=r"dtype='float64' is unknown; expected one of 'float32', 'int64'"):
            network.asarray([0, 1], dtype="float64")
        for lost in ([2.0**63], [np.inf], [0.5], network.asarray([0.5])):
            with pytest.raises(ValueError, match="is no whole number"):
                network.asarray(lost, dtype="int64")


def test_columns_of_a_table_that_holds_objects_are_numbers_where_all_of_them_are():
    network = rnn()
    for values, dtype in (
        ([1, np.int32(2)], "int64"),
        ([1, 2.5], "float32"),
        ([np.float64(1), np.nan], "float32"),
        ([True, False], "float32"),
        ([True, 2], "int64"),
    ):
        found = network.asarray(Column(values))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.array(values, dtype))
    for table in (["a", "b"], [["a"], ["b"]]):
        with pytest.raises(TypeError, match=r"labels are np\.unique\(array, return_inverse=True\)\[1\]$"):
            network.asarray(Column(table))
        assert network.asarray(np.unique(Column(table), return_inverse=True)[1]).reshape(-1).tolist() == [0, 1]
    for values, entry in (([1, None], "None"), ([1, "2"], "'2'"), ([1, 2j], "2j"), ([1, Missing()], "<NA>")):
        with pytest.raises(TypeError, match=rf"expected real numbers, but array\[1\] is {entry}"):
            network.asarray(Column(values))
    with pytest.raises(TypeError, match=r"array is a NoneType; expected real numbers$"):
        network.asarray(None)
    for huge, dtype in (([2**70], "int64"), ([2**70, 1], "int64"), ([10**400, 0.5], "float64")):
        with pytest.raises(ValueError, match=rf"array holds 1\d*…?, which does not fit in {dtype}$"):
            network.asarray(Column(huge))


def test_infinities_that_were_there_stay_and_none_is_made():
    network = rnn()
    with np.errstate(all="raise"):
        assert network.asarray([np.inf, -np.inf]).tolist() == [np.inf, -np.inf]
    for dtype in ("float64", "longdouble"):
        with pytest.raises(ValueError, match=r"array\[1\]=-1e\+39 does not fit in float32"):
            network.asarray(np.array([np.inf, -1e39], dtype))
    assert rnn(dtype="float64").asarray([1e300]).tolist() == [1e300]


def test_what_is_missing_is_said_to_be_missing_and_not_to_be_converted():
    for call in (lambda: rnn()(None), lambda: rnn().loss(X, None), lambda: rnn().loss_and_grad(X, None)):
        with pytest.raises(TypeError, match=r"is a NoneType; expected a numpy array on cpu$"):
            call()


@needs_torch
def test_arrays_of_any_library_come_in_as_the_error_says():
    import torch

    jax = pytest.importorskip("jax", reason="JAX is not installed: pip install jax")
    for network in (rnn(), rnn(device=strict()), rnn(device=ba.Backend(torch))):
        expected = network.backend.to_host(network(network.asarray(X))[0])
        for x in (jax.numpy.asarray(X), torch.tensor(X), array_api_strict.asarray(X), X):
            if not network.backend.owns(x):
                with pytest.raises(TypeError, match=r"; use rnn\.asarray\(x\)$"):
                    network(x)
            np.testing.assert_array_equal(network.backend.to_host(network(network.asarray(x))[0]), expected)
        for half in (jax.numpy.asarray(X, "bfloat16"), torch.tensor(X).bfloat16()):
            with pytest.raises(TypeError, match=r" rnn\.asarray\(x\)$"):
                network(half)
            assert ba.backend.arrays.dtype_name(network.asarray(half)) == "float32"


@needs_torch
def test_sparse_tensors_are_made_dense_as_the_error_says():
    import torch

    sparse, numbers = torch.tensor(X).to_sparse(), [1.0] * I
    readers = [rnn(device=ba.Backend(torch)), ba.Standardization.of, ba.Standardization(numbers, numbers)]
    for read in (*readers, lambda x: ba.unpad(x, None)):
        with pytest.raises(TypeError, match=r"^x has the layout torch\.sparse_coo; .*: pass x\.to_dense\(\)$"):
            read(sparse)
        read(sparse.to_dense())


@needs_torch
def test_tensors_that_autograd_tracks_come_in_as_the_error_says():
    import torch

    x = torch.tensor(X, requires_grad=True)
    with pytest.raises(TypeError, match=r"; use rnn\.asarray\(x\.detach\(\)\)$"):
        rnn()(x)
    rnn()(rnn().asarray(x.detach()))
    network = rnn(device=ba.Backend(torch))
    with pytest.raises(TypeError, match=r"; pass x\.detach\(\)$"):
        network(x)
    network(x.detach())
    for lengths in (torch.tensor([5, 3, 1]), array_api_strict.asarray([5, 3, 1])):
        with pytest.raises(TypeError, match=r": use (lengths\.tolist\(\)|np\.asarray\(lengths\))$") as failed:
            network(x.detach(), lengths=lengths)
        said = str(failed.value).rpartition("use ")[2]
        network(x.detach(), lengths=lengths.tolist() if "tolist" in said else np.asarray(lengths))
    state_dict = {name: torch.tensor(value).half() for name, value in rnn().to_torch_state_dict().items()}
    with pytest.raises(TypeError, match=r"use module\.cpu\(\)\.float\(\) or module\.cpu\(\)\.double\(\)$"):
        ba.RNN.from_torch_state_dict(state_dict)
    for convert in (torch.Tensor.float, torch.Tensor.double):
        ba.RNN.from_torch_state_dict({name: convert(value.cpu()) for name, value in state_dict.items()})


def test_a_mask_of_another_library_says_which_sequences_begin_anew():
    mask = np.array([True, False, True])
    for network in (rnn(), rnn(device=strict())):
        state = ba.State(network.asarray(np.ones((1, 1, N, H))))
        x = network.asarray(X)
        expected = float(network.loss(x, Y, state=state, reset=mask)[0])
        assert float(network.loss(x, Y, state=state, reset=array_api_strict.asarray(mask))[0]) == expected
        assert float(network.loss(x, Y, state=state, reset=mask.tolist())[0]) == expected


def test_training_that_diverged_goes_well_with_a_smaller_learning_rate_or_norm():
    def train(**more):
        options = {"cell": "relu", "optimizer": "sgd", "hidden": 8, "seq_len": 8, "batch": 4, "steps": 10}
        Trainer("to be or not to be\n" * 50, Options(**options, **more)).run()

    with pytest.raises(FloatingPointError, match=r"use a smaller one, or clip the gradients to a smaller norm$"):
        train(lr=1e38)
    train(lr=1e-2)
    train(lr=1e38, clip=1e-38)
