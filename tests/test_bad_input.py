"""Errors are part of the interface: argument, value, expectation, way out; and nothing has changed."""

import copy
import subprocess
import sys
import tracemalloc

import array_api_strict
import numpy as np
import pytest
from every_optimizer import each_keeping

import bptt_array as ba
from bptt_array.backend import devices, namespaces
from bptt_array.training.options import Options

T, N, I, H, O = 5, 3, 4, 6, 2  # noqa: E741


def f32(*shape):
    return np.ones(shape, dtype="float32")


def rnn(**more):
    return ba.RNN(I, H, O, **more)


class Leaky(ba.Cell):
    """A cell of the caller's own, which here is only built, saved and loaded."""

    name = "leaky"


class Borrowed(ba.Cell):
    name = "lstm"


BUILD = [
    (dict(input_size=0), ValueError, r"input_size=0 is too small; expected a whole number of at least 1"),
    (dict(input_size=2.5), TypeError, r"input_size=2.5 is a float"),
    (dict(hidden_size=True), TypeError, r"hidden_size=True is a bool"),
    (dict(output_size=-1), ValueError, r"output_size=-1"),
    (dict(cell="elu"), ValueError, r"cell='elu' is unknown; expected one of 'tanh', 'relu'"),
    (dict(cell=None), ValueError, r"cell=None is unknown"),
    (dict(output="relu"), ValueError, r"output='relu' is unknown; expected one of 'identity'"),
    (dict(output_size=None, output="softmax"), ValueError, r"output='softmax' needs a readout; give output_size"),
    (dict(readout="first"), ValueError, r"readout='first' is unknown"),
    (dict(init="zeros"), ValueError, r"init='zeros' is unknown"),
    (dict(dtype="float16"), ValueError, r"dtype='float16' is not supported; expected 'float32' or 'float64'"),
    (dict(dtype=None), ValueError, r"dtype=None is not supported"),
    (dict(dtype=int), ValueError, r"dtype=<class 'int'> is not supported"),
    (dict(dtype=object()), ValueError, r"dtype=<object.*is not supported"),
    (dict(device="gpu"), ValueError, r"device='gpu' is unknown; expected 'cpu', 'cuda'"),
    (dict(device="cuda:x"), ValueError, r"device='cuda:x' is unknown"),
    (dict(device=0), TypeError, r"device=0 is a int; expected 'cpu'"),
    (dict(seed=-1), ValueError, r"seed=-1"),
    (dict(cell=Leaky), TypeError, r"cell=Leaky is a class; expected one of its objects: cell=Leaky\(\)"),
    (dict(cell=Borrowed()), ValueError, r"cell is a Borrowed with the name 'lstm', which is the library's; give it a name"),
    (dict(cell=np.tanh), ValueError, r"cell=<ufunc 'tanh'> is unknown; expected one of 'tanh', 'relu', 'lstm', 'gru'"),
    (dict(num_layers=0), ValueError, r"num_layers=0 is too small; expected a whole number of at least 1"),
    (dict(num_layers=2.0), TypeError, r"num_layers=2.0 is a float"),
    (dict(bidirectional=1), TypeError, r"bidirectional=1 is a int; expected True or False"),
    (dict(embedding_size=0), ValueError, r"embedding_size=0 is too small"),
    (dict(embedding_size=True), TypeError, r"embedding_size=True is a bool"),
    (dict(tied=1), TypeError, r"tied=1 is a int; expected True or False"),
    (dict(tied=True), ValueError, r"tied=True, but there is no embedding to share; give embedding_size=6 as well, or leave tied=False"),
    (dict(tied=True, embedding_size=6), ValueError, r"tied=True, but output_size=2 and input_size=4: what is read and what is said are one vocabulary; give output_size=4"),
    (dict(tied=True, embedding_size=6, output_size=None), ValueError, r"tied=True, but output_size=None and input_size=4: .*; give output_size=4"),
    (dict(tied=True, embedding_size=5, output_size=4, bidirectional=True), ValueError, r"tied=True, but embedding_size=5 and the top layer gives 12 numbers; give embedding_size=12, or"),
    (dict(members=0), ValueError, r"members=0 is too small"),
    (dict(members=True), TypeError, r"members=True is a bool"),
    (dict(dropout=0.1), ValueError, r"dropout=0\.1 is between layers, but num_layers=1: give num_layers=2 or more, or use rec"),
    (dict(dropout=1.0, num_layers=2), ValueError, r"dropout=1\.0; expected a finite number of at least 0 and below 1"),
    (dict(dropout=-0.1, num_layers=2), ValueError, r"dropout=-0\.1"),
    (dict(dropout="half", num_layers=2), TypeError, r"dropout='half' is a str; expected a real number"),
    (dict(recurrent_dropout=1), ValueError, r"recurrent_dropout=1; expected a finite number of at least 0 and below 1"),
    (dict(recurrent_dropout=np.nan), ValueError, r"recurrent_dropout=nan"),
    (dict(forget_bias=1.0), ValueError, r"forget_bias=1, but cell='tanh' has no forget gate; leave it at 0"),
    (dict(forget_bias=1.0, cell="gru"), ValueError, r"forget_bias=1, but cell='gru'"),
    (dict(forget_bias=1.0, cell="lstm", bias=False), ValueError, r"forget_bias=1, but bias=False: there is no bias to add it to; leave it at 0, or leave bias=True"),
    (dict(reverse=None), TypeError, r"reverse=None is a NoneType; expected True or False"),
    (dict(reverse=True, bidirectional=True), ValueError, r"reverse=True, but bidirectional=True, which reads every sequence from both ends; leave reverse=False, or bidirectional=False"),
    (dict(bias=0), TypeError, r"bias=0 is a int; expected True or False"),
    (dict(forget_bias=np.nan, cell="lstm"), ValueError, r"forget_bias=nan; expected a finite number$"),
    (dict(forget_bias=True, cell="lstm"), TypeError, r"forget_bias=True is a bool"),
    (dict(proj_size=2), ValueError, r"proj_size=2, but cell='tanh': only cell='lstm' has a projection; give that, or proj_size=None"),
    (dict(proj_size=2, cell="gru"), ValueError, r"proj_size=2, but cell='gru'"),
    (dict(proj_size=0, cell="lstm"), ValueError, r"proj_size=0 is too small"),
    (dict(proj_size=2.0, cell="lstm"), TypeError, r"proj_size=2.0 is a float"),
    (dict(proj_size=99, cell="lstm"), ValueError, r"proj_size=99, but hidden_size=\d+; expected less than that, or proj_size=None"),
    (dict(time_major="no"), TypeError, r"time_major='no' is a str; expected True or False"),
]  # fmt: skip


OPTIONS = [
    (lambda: ba.losses.CrossEntropy([]), ValueError, r"class_weights is empty; expected numbers of at least 0, one for each class"),
    (lambda: ba.losses.CrossEntropy(2.0), TypeError, r"class_weights=2.0 is no sequence of numbers; expected"),
    (lambda: ba.losses.CrossEntropy(np.ma.array([1.0, 2.0], mask=[0, 1])), TypeError, r"class_weights=.* is no sequence of n"),
    *(
        (lambda weights=weights: ba.losses.CrossEntropy(weights), ValueError, rf"class_weights\[1\]={said}; expected 0, or")
        for weights, said in (([1, 1e39], r"1e\+39"), ([0, 1e-42], "1e-42"), (np.array([1, 2.0**70], "f4"), r"1\.1805.*e\+21"))
    ),
    (lambda: ba.losses.CrossEntropy("ab"), TypeError, r"class_weights='ab' is no sequence of numbers; expected"),
    (lambda: ba.losses.CrossEntropy([1, -2]), ValueError, r"class_weights\[1\]=-2; expected numbers of at least 0"),
    (lambda: ba.losses.CrossEntropy([np.nan, 1]), ValueError, r"class_weights\[0\]=nan; expected"),
    (lambda: ba.losses.CrossEntropy([[1], [1, 2]]), ValueError, r"class_weights=\[\[1\], \[1, 2\]\] is ragged; expected"),
    (lambda: ba.losses.CrossEntropy(ignore_index=1.0), TypeError, r"ignore_index=1.0 is a float; expected a whole number"),
    (lambda: ba.losses.CrossEntropy(label_smoothing=1.5), ValueError, r"label_smoothing=1.5; expected a number from 0 to 1"),
    (lambda: ba.losses.CrossEntropy(label_smoothing=-1), ValueError, r"label_smoothing=-1; expected a finite number of at least 0"),
    (lambda: ba.losses.Huber(0), ValueError, r"delta=0; expected a number above 0, or use loss='mae'"),
    (lambda: ba.losses.Huber("1"), TypeError, r"delta='1' is a str; expected a real number"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), OPTIONS, ids=[row[-1] for row in OPTIONS])
def test_a_loss_with_options_that_are_none_says_why(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize(("arguments", "kind", "message"), BUILD, ids=[row[-1] for row in BUILD])
def test_a_network_that_cannot_be_built_says_why(arguments, kind, message):
    with pytest.raises(kind, match=message):
        ba.RNN(**{"input_size": I, "hidden_size": H, "output_size": O, **arguments})


X = f32(T, N, I)
RUN = [
    (dict(x=[[1.0]]), TypeError, r"x is a list, but this RNN is on cpu: expected a numpy array on cpu; use rnn\.asarray"),
    (dict(x=np.float32(1)), ValueError, r"x has shape \(\); expected \(T, N, I\)"),
    (dict(x=array_api_strict.ones((T, N, I))), TypeError, r"x is a array_api_strict.*rnn\.asarray\(x\)"),
    (dict(x=X.astype("float64")), TypeError, r"x has dtype float64, but this RNN computes in float32"),
    (dict(x=X.astype("complex64")), TypeError, r"x has dtype complex64"),
    (dict(x=X > 0), TypeError, r"x has dtype bool"),
    (dict(x=f32(T, I)), ValueError, r"x has shape \(5, 4\); expected \(T, N, I\), time first"),
    (dict(x=f32(T, N, I, 1)), ValueError, r"x has shape \(5, 3, 4, 1\)"),
    (dict(x=f32(T, N, I + 1)), ValueError, r"x has 5 features \(last axis\) but this RNN was built with input_size=4"),
    (dict(x=f32(0, N, I)), ValueError, r"x has shape \(0, 3, 4\): T=0"),
    (dict(x=np.zeros((T, N, 1), int)), ValueError, r"x has integers in shape \(5, 3, 1\); expected tokens of shape"),
    (dict(x=np.full((T, N), I)), ValueError, r"x\[0, 0\]=4; expected 0 to 3"),
    (dict(x=np.full((T, N), -1)), ValueError, r"x\[0, 0\]=-1; expected 0 to 3"),
    (dict(lengths=[6, 0, 0]), ValueError, r"lengths\[0\]=6; expected 0 to T=5"),
    (dict(lengths=[1, -1, 0]), ValueError, r"lengths\[1\]=-1"),
    (dict(lengths=[[1], [1, 2]]), ValueError, r"lengths=\[\[1\], \[1, 2\]\] is ragged; expected N=3 integers"),
    (dict(lengths=[]), ValueError, r"lengths has shape \(0,\); expected \(N,\) = \(3,\)"),
    (dict(x=np.ma.MaskedArray(X)), TypeError, r"x is a MaskedArray; expected a plain array"),
    (dict(lengths=[1, 2]), ValueError, r"lengths has shape \(2,\); expected \(N,\) = \(3,\)"),
    (dict(lengths=[1.0, 2.0, 3.0]), TypeError, r"lengths has dtype float64; expected integers"),
    (dict(lengths=3), TypeError, r"lengths is a int; expected a list or NumPy array of N=3 integers"),
    (dict(state=f32(1, 1, N, H)), TypeError, r"state is a ndarray; expected bptt_array\.State"),
    (dict(state=ba.State(h=f32(N, H))), ValueError, r"state\.h has shape \(3, 6\); expected \(L, D, N, H\) = \(1, 1, 3, 6\)"),
    (dict(state=ba.State(h=np.ones((1, 1, N, H)))), TypeError, r"state\.h has dtype float64"),
    (dict(state=ba.State(h=f32(1, 1, N, H), c=f32(1, 1, N, H))), ValueError, r"state\.c is given"),
    (dict(validate=1), TypeError, r"validate=1 is a int; expected True or False"),
    (dict(dropout_seed=-1), ValueError, r"dropout_seed=-1 is too small; expected a whole number of at least 0"),
    (dict(dropout_seed=1.0), TypeError, r"dropout_seed=1\.0 is a float"),
    (dict(dropout_seed=True), TypeError, r"dropout_seed=True is a bool"),
    (dict(dropout_seed="on"), ValueError, r"dropout_seed='on' is unknown; expected a whole number of at least 0, or 'off'"),
    (dict(dropout_rows=3), TypeError, r"dropout_rows=3 is no pair; expected \(first, batch\), the place of these N=3 sequences"),
    (dict(dropout_rows=(1, 2, 3)), TypeError, r"dropout_rows=\(1, 2, 3\) is no pair"),
    (dict(dropout_rows=(-1, 3)), ValueError, r"dropout_rows\[0\]=-1 is too small"),
    (dict(dropout_rows=(0, 3.0)), TypeError, r"dropout_rows\[1\]=3\.0 is a float"),
    (dict(dropout_rows=(1, 3)), ValueError, r"dropout_rows=\(1, 3\), but there are N=3 sequences; expected first \+ N"),
    (dict(dropout_seed=np.arange(2)), TypeError, r"dropout_seed=array\(\[0, 1\]\) is a ndarray"),
]  # fmt: skip
DEEP = dict(cell="lstm", num_layers=2, bidirectional=True, members=2)
GIVEN = (2, 2, 2, N, H)
RUN = [({}, *row) for row in RUN] + [
    (dict(embedding_size=3), dict(x=X), TypeError, r"x has dtype float32 and shape \(5, 3, 4\), but this RNN has an embedding, embedding_size=3: expected integer tokens of shape \(T, N\); of one-hot rows use x\.argmax\(-1\); for features build the RNN without"),
    (dict(embedding_size=3), dict(x=f32(T, N)), TypeError, r"x has dtype float32 and shape \(5, 3\), but .*; of whole numbers use rnn\.asarray\(x, dtype='int64'\)"),
    (dict(embedding_size=3), dict(x=np.full((T, N), I)), ValueError, r"x\[0, 0\]=4; expected 0 to 3 \(tokens below input_size\)"),
    (dict(cell="lstm"), dict(state=ba.State(h=f32(1, 1, N, H))), ValueError, r"state\.c is missing; the cell 'lstm' has a cell state: expected State\(h=…, c=…\)"),
    (dict(cell="gru"), dict(state=ba.State(f32(1, 1, N, H), f32(1, 1, N, H))), ValueError, r"state\.c is given, but the cell 'gru' has no cell state"),
    (dict(cell="lstm"), dict(state=ba.State(f32(1, 1, N, H), f32(1, 1, H, N))), ValueError, r"state\.c has shape \(1, 1, 6, 3\); expected \(L, D, N, H\)"),
    (dict(cell="lstm"), dict(state=ba.State(f32(1, 1, N, H), [0])), TypeError, r"state\.c is a list"),
    (dict(num_layers=2), dict(state=ba.State(f32(1, 1, N, H))), ValueError, r"state\.h has shape \(1, 1, 3, 6\); expected \(L, D, N, H\) = \(2, 1, 3, 6\)"),
    (dict(bidirectional=True), dict(state=ba.State(f32(1, 1, N, H))), ValueError, r"expected \(L, D, N, H\) = \(1, 2, 3, 6\)"),
    (DEEP, dict(state=ba.State(f32(2, 2, N, H), f32(2, 2, N, H))), ValueError, r"\(2, 2, 3, 6\); expected \(L, D, E, N, H\) = \(2, 2, 2, 3, 6\)"),
    (DEEP, dict(state=ba.State(f32(*GIVEN), f32(*GIVEN[1:]))), ValueError, r"state\.c has shape \(2, 2, 3, 6\); expected \(L, D, E, N, H\)"),
    (DEEP, dict(x=f32(T, 3, N, I)), ValueError, r"x has shape \(5, 3, 3, 4\), with 3 where the members are; this RNN has members=2"),
    (DEEP, dict(x=np.zeros((T, 3, N), int)), ValueError, r"x has shape \(5, 3, 3\), with 3 where the members are"),
    (DEEP, dict(x=f32(T, I)), ValueError, r"expected \(T, N, I\), time first, .*, or for every member its own, \(T, E, N, I\)"),
    (DEEP, dict(x=np.zeros((T, 2, N, I), int)), ValueError, r"expected tokens of shape \(T, N\) or, for every member its own, \(T, E, N\)"),
    (DEEP, dict(x=f32(T, 2, N, I + 1)), ValueError, r"x has 5 features \(last axis\)"),
    (DEEP, dict(lengths=f32(2, N).astype(int)), ValueError, r"lengths has shape \(2, 3\); expected \(N,\) = \(3,\)"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "arguments", "kind", "message"), RUN, ids=[row[-1] for row in RUN])
def test_inputs_that_do_not_fit_say_why_in_every_call(network, arguments, kind, message):
    network = rnn(**network)
    arguments = {"x": X, **arguments}
    with pytest.raises(kind, match=message):
        network(**arguments)
    with pytest.raises(kind, match=message):
        network.forward(**arguments)
    with pytest.raises(kind, match=message):
        network.loss_and_grad(target=f32(T, N, O), **arguments)
    with pytest.raises(kind, match=message):
        network.loss(target=f32(T, N, O), **arguments)


Y = f32(T, N, O)
CLASSES = np.zeros((T, N), dtype=int)
LOSS = [
    ({}, dict(target=f32(T, N)), ValueError, r"target has shape \(5, 3\); expected \(T, N, O\) = \(5, 3, 2\)"),
    ({}, dict(target=None), TypeError, r"target is a NoneType"),
    ({}, dict(target=Y.astype("float64")), TypeError, r"target has dtype float64"),
    ({}, dict(target=CLASSES), TypeError, r"target has dtype int64"),
    ({}, dict(loss="hinge"), ValueError, r"loss='hinge' is unknown; expected one of 'mse', 'cross_entropy'"),
    ({}, dict(loss="cross_entropy"), ValueError, r"loss='cross_entropy' belongs to output='softmax', but this RNN has"),
    ({}, dict(loss="binary_cross_entropy"), ValueError, r"belongs to output='sigmoid'"),
    ({}, dict(reduction="max"), ValueError, r"reduction='max' is unknown; expected one of 'mean', 'weighted_mean', 'sum'"),
    ({}, dict(loss=ba.losses.Huber), TypeError, r"loss=Huber is a class; expected one of its losses, such as Huber\(\)"),
    ({}, dict(loss=None), ValueError, r"loss=None is unknown; .*losses.CrossEntropy and losses.Huber, or a function \(y, target\)"),
    ({}, dict(loss=ba.losses.CrossEntropy(label_smoothing=0.1)), ValueError, r"loss=CrossEntropy\(label_smoothing=0.1\) belongs to output='softmax'"),
    (dict(output="softmax"), dict(loss=ba.losses.CrossEntropy([1, 2, 3]), target=CLASSES), ValueError, r"loss.class_weights has 3 numbers; expected one for each of the output_size=2 classes"),
    (dict(output="softmax"), dict(loss=ba.losses.CrossEntropy(ignore_index=-1), target=CLASSES - 2), ValueError, r"target\[0, 0\]=-2; expected 0 to 1 \(classes below output_size\) or -1, which is ignored"),
    (dict(output="softmax"), dict(loss=ba.losses.CrossEntropy(ignore_index=-1)), ValueError, r"but target holds probabilities, .* leave ignore_index=None"),
    (dict(output="softmax"), dict(loss=ba.losses.CrossEntropy(), target=CLASSES * 1.0), TypeError, r"target has dtype float64 and shape .* as class numbers have"),
    ({}, dict(truncate=0), ValueError, r"truncate=0 is too small"),
    ({}, dict(truncate=2.0), TypeError, r"truncate=2.0 is a float"),
    ({}, dict(truncate=(2, 1)), ValueError, r"truncate=\(2, 1\): every 2 steps, back through 1, .* expected k1 <= k2"),
    ({}, dict(truncate=(0, 1)), ValueError, r"truncate\[0\]=0 is too small"),
    ({}, dict(truncate=(1, 2.0)), TypeError, r"truncate\[1\]=2.0 is a float"),
    ({}, dict(truncate=(1, 2, 3)), ValueError, r"truncate=\(1, 2, 3\) has 3 numbers; expected k, or \(k1, k2\)"),
    ({}, dict(memory="much"), ValueError, r"memory='much' is no size; .* '64MiB'"),
    ({}, dict(memory=0), ValueError, r"memory=0 is too small"),
    ({}, dict(memory=1e9), TypeError, r"memory=1000000000.0 is a float"),
    ({}, dict(memory="2kB"), ValueError, r"memory=2000 \(1.95 KiB\) is too small; the smallest budget that works here is memory="),
    ({}, dict(backward="fast"), ValueError, r"backward='fast' is unknown; expected one of 'sequential', 'parallel', 'auto'"),
    (dict(cell="lstm"), dict(backward="parallel"), ValueError, r"backward='parallel', but the cell is 'lstm'; expected 'tanh' or 'relu'"),
    ({}, dict(weights=f32(N, T)), ValueError, r"weights has shape \(3, 5\); expected \(T, N\) = \(5, 3\)"),
    ({}, dict(weights=np.ones((T, N))), TypeError, r"weights has dtype float64"),
    ({}, dict(input_grad="yes"), TypeError, r"input_grad='yes' is a str"),
    ({}, dict(x=CLASSES, input_grad=True), ValueError, r"input_grad=True, but x holds integer tokens"),
    (dict(output="softmax"), dict(loss="cross_entropy", target=CLASSES + 2), ValueError, r"target\[0, 0\]=2; expected 0 to 1"),
    (dict(output="softmax"), dict(loss="cross_entropy", target=CLASSES[0]), ValueError, r"target has shape \(3,\); expected classes \(T, N\)"),
    (dict(readout="last"), {}, ValueError, r"target has shape \(5, 3, 2\); expected \(N, O\) = \(3, 2\)"),
    (dict(readout="last"), dict(target=f32(N, O), weights=f32(T, N)), ValueError, r"weights has shape \(5, 3\); expected \(N,\)"),
    (dict(readout="last", output="softmax"), dict(loss="cross_entropy", target=CLASSES), ValueError, r"classes \(N,\)"),
    ({}, dict(loss=lambda y, t: 0.0), TypeError, r"loss returned a float; expected \(loss, dy\) of shapes \(5, 3\)"),
    ({}, dict(loss=lambda y, t: (y.sum(), y)), ValueError, r"loss returned loss of shape \(\)"),
    ({}, dict(loss=lambda y, t: (float(y.sum()), y)), TypeError, r"loss returned loss as float of dtype None"),
    ({}, dict(loss=lambda y, t: (y, y)), ValueError, r"loss returned loss of shape \(5, 3, 2\).*use rnn\.forward"),
    ({}, dict(loss=lambda y, t: (y[..., 0], y.astype("float64"))), TypeError, r"loss returned dy as ndarray of dtype float64"),
    ({}, dict(loss=lambda y, t: (y[..., 0], y), target=f32(N, T)), ValueError, r"target has shape \(3, 5\); expected \(5, 3\)"),
    (dict(bidirectional=True), dict(truncate=2), ValueError, r"truncate=2, but bidirectional=True: .* leave truncate=None"),
    (dict(recurrent_dropout=0.5), {}, ValueError, r"dropout_seed is missing, but this RNN has recurrent_dropout=0\.5: give a whole"),
    (dict(dropout=0.5, num_layers=2), {}, ValueError, r"dropout_seed is missing, but this RNN has dropout=0\.5: .* or dropout_seed='off'"),
    (dict(members=2), dict(target=f32(T, 3, N, O)), ValueError, r"target has shape \(5, 3, 3, 2\); expected \(T, E, N, O\) = \(5, 2, 3, 2\)$"),
    (dict(members=2), dict(target=f32(2, N, O)), ValueError, r"target has shape \(2, 3, 2\); expected \(T, N, O\) = \(5, 3, 2\)"),
    (dict(members=2), dict(target=f32(T, N)), ValueError, r"expected \(T, E, N, O\) = \(5, 2, 3, 2\) or, the same for all members, \(T, N, O\) = \(5, 3, 2\)"),
    (dict(members=2), dict(weights=f32(T, N, 2)), ValueError, r"weights has shape \(5, 3, 2\); expected \(T, E, N\) = \(5, 2, 3\)"),
    (dict(members=2), dict(weights=f32(2, N)), ValueError, r"weights has shape \(2, 3\); expected \(T, N\) = \(5, 3\)"),
    (dict(members=2, readout="last"), dict(target=f32(2, N, O), weights=f32(N, 2)), ValueError, r"weights has shape \(3, 2\); expected \(E, N\) = \(2, 3\)"),
    (dict(members=2, readout="last"), dict(target=f32(N, O), weights=f32(2)), ValueError, r"weights has shape \(2,\); expected \(N,\) = \(3,\)"),
    (dict(members=2, readout="last"), dict(target=f32(T, 2, N, O)), ValueError, r"expected \(E, N, O\) = \(2, 3, 2\) or, the same for all members, \(N, O\)"),
    (dict(members=2, output="softmax"), dict(loss="cross_entropy", target=np.zeros((T, 3, N), int)), ValueError, r"expected classes \(T, E, N\) = \(5, 2, 3\)"),
    (dict(members=2, output="softmax"), dict(loss="cross_entropy", target=CLASSES.T), ValueError, r"expected classes \(T, N\) = \(5, 3\)"),
    (dict(members=2, output="softmax"), dict(loss="cross_entropy", target=CLASSES[:, None] + [[0], [2]]), ValueError, r"target\[0, 1, 0\]=2; expected 0 to 1"),
    (dict(members=2), dict(loss=lambda y, t: (y[..., 0], y), target=f32(2, T, N)), ValueError, r"target has shape .*; expected \(5, 2, 3\) or \(5, 3\)"),
    (dict(members=2), dict(loss=lambda y, t: (y[:, 0, :, 0], y)), ValueError, r"loss returned loss of shape \(5, 3\); expected \(loss, dy\) of shapes \(5, 2, 3\)"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "arguments", "kind", "message"), LOSS, ids=[row[-1] for row in LOSS])
def test_losses_and_targets_that_do_not_fit_say_why(network, arguments, kind, message):
    network = rnn(**network)
    before = {name: value.copy() for name, value in network.params.items()}
    with pytest.raises(kind, match=message):
        network.loss_and_grad(**{"x": X, "target": Y, **arguments})
    assert all(np.array_equal(before[name], network.params[name]) for name in before)


def test_gradients_that_do_not_fit_say_why():
    _, state, backward = rnn().forward(X)
    with pytest.raises(ValueError, match="dy=None and dstate=None"):
        backward()
    with pytest.raises(ValueError, match=r"dy has shape \(5, 3\); expected \(T, N, O\) = \(5, 3, 2\)"):
        backward(f32(T, N))
    with pytest.raises(TypeError, match=r"dy has dtype float64"):
        backward(np.ones((T, N, O)))
    with pytest.raises(TypeError, match=r"dstate is a ndarray; expected bptt_array\.State"):
        backward(Y, state.h)
    with pytest.raises(ValueError, match=r"dstate\.h has shape \(3, 6\)"):
        backward(Y, ba.State(h=f32(N, H)))
    with pytest.raises(ValueError, match=r"dstate\.c is given"):
        backward(Y, ba.State(h=state.h, c=state.h))
    _, state, backward = rnn(cell="lstm", members=2).forward(X)
    with pytest.raises(ValueError, match=r"dstate\.c is missing"):
        backward(dstate=ba.State(h=state.h))
    with pytest.raises(ValueError, match=r"dy has shape \(5, 3, 2\); expected \(T, E, N, O\) = \(5, 2, 3, 2\)"):
        backward(Y)
    with pytest.raises(ValueError, match=r"dropout_seed is missing"):
        rnn(recurrent_dropout=0.5).forward(X)
    _, _, backward = rnn().forward(CLASSES)
    with pytest.raises(ValueError, match="input_grad=True, but x holds integer tokens"):
        backward(Y, input_grad=True)


def test_invalid_tokens_and_targets_past_the_end_are_nobodys_business():
    network = rnn(output="softmax")
    x, target = np.zeros((T, N), int), np.zeros((T, N), int)
    x[3:, 0] = target[3:, 0] = -100
    network.loss_and_grad(x, target, "cross_entropy", lengths=[3, 5, 5])
    with pytest.raises(ValueError, match=r"x\[3, 0\]=-100"):
        network.loss_and_grad(x, target, "cross_entropy", lengths=[4, 5, 5])


OPTIMIZERS = [
    (lambda: ba.SGD(float("nan")), ValueError, r"lr=nan; expected a finite number of at least 0"),
    (lambda: ba.SGD(-0.1), ValueError, r"lr=-0.1"),
    (lambda: ba.SGD("fast"), TypeError, r"lr='fast' is a str; expected a real number"),
    (lambda: ba.SGD(True), TypeError, r"lr=True is a bool"),
    (lambda: ba.SGD(10**400), ValueError, r"lr=1000"),
    (lambda: ba.clip_by_global_norm([f32(2)], 1), TypeError, r"grads is a list; expected a dictionary"),
    (lambda: ba.clip_by_global_norm({"a": [1.0]}, 1), TypeError, r"grads\['a'\] is a list"),
    (lambda: ba.global_norm(ba.Gradients({}, ba.State(None))), TypeError, r"use grads\.params"),
    (lambda: ba.Backend(42), TypeError, r"xp=42 is no Array API namespace"),
    (
        lambda: ba.SGD(0.1, momentum=1.0),
        ValueError,
        r"momentum=1.0; expected a finite number of at least 0 and below 1",
    ),
    (lambda: ba.Adam(float("inf")), ValueError, r"lr=inf"),
    (lambda: ba.Adam(beta1=1), ValueError, r"beta1=1"),
    (lambda: ba.Adam(eps=0), ValueError, r"eps=0; expected a positive number"),
    (lambda: setattr(ba.Adam(), "lr", -1), ValueError, r"lr=-1"),
    (
        lambda: ba.SGD(0.1, nesterov=True),
        ValueError,
        r"nesterov=True has no effect with momentum=0; expected a momentum",
    ),
    (lambda: ba.SGD(0.1, 0.9, nesterov=1), TypeError, r"nesterov=1 is a int; expected True or False"),
    (lambda: ba.RMSprop(alpha=1), ValueError, r"alpha=1; expected a finite number of at least 0 and below 1"),
    (lambda: ba.RMSprop(eps=0), ValueError, r"eps=0; expected a positive number"),
    (lambda: ba.RMSprop(momentum=1.0), ValueError, r"momentum=1.0; expected a finite number of at least 0 and below 1"),
    (lambda: ba.RMSprop(centered="no"), TypeError, r"centered='no' is a str; expected True or False"),
    (lambda: ba.AdamW(weight_decay=-0.1), ValueError, r"weight_decay=-0.1; expected a finite number of at least 0"),
    (
        lambda: ba.AdamW(no_decay="b_h"),
        TypeError,
        r"no_decay='b_h' is one string; expected several, .*no_decay=\('b_h',\)",
    ),
    (lambda: ba.AdamW(no_decay=1), TypeError, r"no_decay=1 is a int; expected names, such as no_decay=\('b_h',\)"),
    (lambda: ba.AdamW(no_decay=["b_h", 1]), TypeError, r"no_decay has 1, a int; expected names"),
    (
        lambda: ba.AdamW(no_decay=("b_h", "b_o")).update({"l0.b_h": f32(2)}, {"l0.b_h": f32(2)}),
        ValueError,
        r"no_decay has 'b_o', which no parameter is called, nor ends in after a dot; expected names such as \['l0.b_h'\]",
    ),
    (lambda: ba.clip_by_global_norm({"a": f32(2)}, 0), ValueError, r"max_norm=0"),
    (lambda: ba.clip_by_global_norm({"a": f32(2)}, float("nan")), ValueError, r"max_norm=nan"),
    (lambda: ba.clip_by_global_norm({}, 1), ValueError, r"grads is empty"),
    (lambda: ba.check_gradients(float, {}, {}, tolerance=-1), ValueError, r"tolerance=-1"),
]


@pytest.mark.parametrize(("call", "kind", "message"), OPTIMIZERS, ids=[row[-1] for row in OPTIMIZERS])
def test_optimizer_settings_that_make_no_sense_say_why(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@each_keeping
def test_an_update_that_cannot_be_done_changes_nothing(make):
    optimizer = make()
    params = {"a": f32(2), "b": f32(3)}
    optimizer.update(params, {"a": f32(2), "b": f32(3)})
    before = {name: value.copy() for name, value in params.items()}
    bad = [
        ({"a": f32(2)}, ValueError, r"grads has keys \['a'\]; expected those of params, \['a', 'b'\]"),
        (
            {"a": f32(2), "b": f32(2)},
            ValueError,
            r"grads\['b'\] has shape \(2,\).*expected those of params\['b'\], \(3,\)",
        ),
        ({"a": f32(2), "b": np.ones(3)}, ValueError, r"grads\['b'\] has shape \(3,\) and dtype float64"),
        ({"a": f32(2), "b": [1, 1, 1]}, TypeError, r"grads\['b'\] is a list"),
        ({"a": f32(2), "b": np.ones(3, int)}, TypeError, r"grads\['b'\] is a ndarray of dtype int64"),
        ({"a": f32(2), "b": array_api_strict.ones(3)}, TypeError, r"grads\['b'\] is a Array"),
        (ba.Gradients(params=params, state=ba.State(h=None)), TypeError, r"grads is a Gradients; .*use grads\.params"),
        ([f32(2)], TypeError, r"grads is a list; expected a dictionary of arrays"),
    ]
    for grads, kind, message in bad:
        with pytest.raises(kind, match=message):
            optimizer.update(params, grads)
    for changed, message in (
        (f32(4), r"has shape \(4,\), but what the optimizer keeps for it \(2,\)"),
        (np.ones(2), r"has dtype float64, but what the optimizer keeps for it has dtype float32"),
        (array_api_strict.ones(2, dtype=array_api_strict.float32), r"is on array_api_strict:.*keeps for it is on cpu"),
    ):
        with pytest.raises(ValueError, match=rf"params\['a'\] {message}"):
            optimizer.update({"a": changed}, {"a": changed})
    fixed = np.broadcast_to(np.float32(1), 3)
    with pytest.raises(ValueError, match=r"params\['b'\] cannot be written to"):
        optimizer.update({"a": params["a"], "b": fixed}, {"a": f32(2), "b": f32(3)})
    with pytest.raises(ValueError, match="params is empty"):
        optimizer.update({}, {})
    assert all(np.array_equal(before[name], params[name]) for name in before)


def test_cuda_without_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^device='cuda' needs CuPy, which is not installed: pip install"):
        ba.RNN(1, 1, device="cuda")
    assert devices.resolve("auto").name == "cpu"


def test_cuda_without_a_device_says_what_to_check(monkeypatch):
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(devices, "cupy_import_error", lambda: "")
    monkeypatch.setattr(devices, "cuda_device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"^device='cuda:1': CuPy finds no CUDA device; check that nvidia-smi[^\n]*$"):
        ba.RNN(1, 1, device="cuda:1")
    assert devices.resolve("auto").name == "cpu"
    monkeypatch.setattr(devices, "cuda_device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"^device='cuda:2' does not exist: CuPy finds 2 of them, cuda:0 to cuda:1$"):
        ba.RNN(1, 1, device="cuda:2")


def test_a_namespace_that_cannot_be_written_to_is_refused(monkeypatch):
    monkeypatch.setattr(namespaces.array_api_compat, "is_writeable_array", lambda array: False)
    with pytest.raises(TypeError, match="cannot be written in place"):
        ba.Backend(np)


def test_importing_needs_and_loads_neither_cupy_nor_torch_nor_the_extras():
    code = (
        "import sys, bptt_array; "
        "heavy = {'cupy', 'torch', 'matplotlib', 'tqdm', 'scipy', 'pydoc_data'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_asarray_takes_numbers_and_nothing_else():
    network = rnn()
    assert network.asarray([[1, 2]]).dtype == np.int64
    assert network.asarray([1.5]).dtype == np.float32
    assert network.asarray(np.ones(2) > 0).dtype == np.float32
    assert network.asarray(array_api_strict.ones(2)).dtype == np.float32
    same = f32(2)
    assert network.asarray(same) is same
    with pytest.raises(TypeError, match="array has dtype <U1; expected real numbers"):
        network.asarray(["a"])


def test_asarray_does_not_guess():
    network = rnn()
    big = np.array([[1, 2]], dtype=">i8")
    assert network.asarray(big).dtype == np.dtype("int64")
    assert network.asarray(big).tolist() == [[1, 2]]
    assert network.asarray(np.array([1.5], ">f8")).dtype == np.dtype("float32")
    for wrong in (
        np.array([1 + 2j]),
        np.array(["1"]),
        np.array([None, 1.0]),
        np.array(["2020-01-01"], "datetime64[D]"),
    ):
        with pytest.raises(TypeError, match="expected real numbers"):
            network.asarray(wrong)
    with pytest.raises(ValueError, match="does not fit in int64"):
        network.asarray(np.array([2**64 - 1], dtype="uint64"))
    with pytest.raises(TypeError, match="array is masked"):
        network.asarray(np.ma.MaskedArray([1.0]))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "uint64", ">i4"])
def test_tokens_and_classes_of_any_integer_type_are_the_same(dtype):
    rng = np.random.default_rng(0)
    network = rnn(output="softmax")
    x, target = rng.integers(0, I, (T, N)), rng.integers(0, O, (T, N))
    expected, grads, _ = network.loss_and_grad(x, target, "cross_entropy")
    found, same, _ = network.loss_and_grad(x.astype(dtype), target.astype(dtype), "cross_entropy")
    assert found == expected
    assert all(np.array_equal(grads.params[name], same.params[name]) for name in same.params)


SEQUENCES = [f32(4, 2), f32(2, 2)]
STEPS = f32(6, 5, 2)  # T = 6, N = 5

DATA = [
    (lambda: ba.pad(3), TypeError, r"sequences is a int; expected a list of arrays \(T_n, I\) or \(T_n,\)"),
    (lambda: ba.pad({"a": f32(2)}), TypeError, r"sequences is a dict; .*: use list\(sequences\.values\(\)\)"),
    (lambda: ba.pad([]), ValueError, r"sequences has no sequences; expected at least one, which may be empty"),
    (lambda: ba.pad([f32(2, 3), f32(1, 4)]), ValueError, r"sequences\[1\] has shape \(1, 4\), with 4 features \(last axis\), and sequences\[0\] \(2, 3\), with 3; expected"),
    (lambda: ba.pad([[], f32(2), f32(1, 2, 3)]), ValueError, r"sequences\[2\] has shape \(1, 2, 3\); expected \(T, I\), time first, or \(T,\)"),
    (lambda: ba.pad([[1, 2], [0.5]]), TypeError, r"sequences\[0\] has integers \(T,\), which are tokens, and sequences\[1\] is none of these; .*: as numbers use \[np\.asarray"),
    (lambda: ba.pad([["a", "b"]]), TypeError, r"sequences\[0\] has dtype <U1; expected real numbers"),
    (lambda: ba.pad([[0.5], [0.5, None]]), TypeError, r"sequences\[1\] has dtype object; .*sequences\[1\]\[1\] is None"),
    (lambda: ba.pad([[0.5], [0.5, 1e300]]), ValueError, r"sequences\[1\]\[1, 0\]=1e\+300 does not fit in float32"),
    (lambda: ba.pad(SEQUENCES, length=3), ValueError, r"length=3, but sequences\[0\] has 4 steps; .*: \[one\[:3\] for one in sequences\]"),
    (lambda: ba.pad(SEQUENCES, value="0"), TypeError, r"value='0' is a str; expected a real number"),
    (lambda: ba.pad(SEQUENCES, value=10**400), ValueError, r"value=10+ is too large; expected a number such as 0"),
    (lambda: ba.pad(SEQUENCES, value=1e300), ValueError, r"value=1e\+300 does not fit in float32"),
    (lambda: ba.pad([[1, 2]], value=2.0**63), ValueError, r"value=9\.22\S+ does not fit in int64, as which tokens are"),
    (lambda: ba.pad([[1, 2]], value=-(2**63) - 1), ValueError, r"value=-9223372036854775809 does not fit in int64"),
    (lambda: ba.pad([[1, 2]], value=np.inf), ValueError, r"value=inf, but the sequences hold tokens"),
    (lambda: ba.pad([[1, 2]], value=0.5), ValueError, r"value=0.5, but the sequences hold tokens; expected a whole number"),
    (lambda: ba.pad(SEQUENCES, dtype="int64"), ValueError, r"dtype='int64' is not supported"),
    (lambda: ba.unpad(f32(3), [1]), TypeError, r"x is of shape \(3,\); expected an array \(T, N, \.\.\.\), time first"),
    (lambda: ba.unpad(f32(3, 2), [1]), ValueError, r"lengths has shape \(1,\); expected \(N,\) = \(2,\)"),
    (lambda: ba.windows(f32(5), 4, 2), ValueError, r"series has 5 steps, too few .*; expected at least length \+ horizon = 4 \+ 2 = 6"),
    (lambda: ba.windows(f32(5, 2, 1), 2), ValueError, r"series has shape \(5, 2, 1\); expected \(S, I\), time first, or \(S,\)"),
    (lambda: ba.windows(f32(5), 0), ValueError, r"length=0 is too small"),
    (lambda: ba.windows(f32(5), 2, stride=0), ValueError, r"stride=0 is too small"),
    (lambda: ba.batches(f32(5, 2)), ValueError, r"x has shape \(5, 2\); expected \(T, N, I\), .*; of one feature use x\[\.\.\., None\], of one long series see ba\.windows"),
    (lambda: ba.batches(f32(5, 2, 1, 1), time_major=False), ValueError, r"x has shape \(5, 2, 1, 1\); expected \(N, T, I\)"),
    (lambda: ba.batches(f32(5, 0, 1)), ValueError, r"x has shape \(5, 0, 1\), N=0 sequences of T=5 steps; expected at least one of both"),
    (lambda: ba.batches(SEQUENCES, lengths=[4, 2]), ValueError, r"lengths is given, but x is a list of sequences, which have theirs; leave it out"),
    (lambda: ba.batches(STEPS, lengths=[7] * 5), ValueError, r"lengths\[0\]=7; expected 0 to T=6"),
    (lambda: ba.batches(STEPS, by_length=True), ValueError, r"by_length=True, but x is an array without lengths; give lengths=…, or leave by_length out"),
    (lambda: ba.batches(STEPS, f32(6)), ValueError, r"target has shape \(6,\); expected \(T, N, O\) with \(6, 5\) first, one for each step, or \(N, O\) with N=5, one for each sequence"),
    (lambda: ba.batches(STEPS, f32(5, 2), per_step=True), ValueError, r"target has shape \(5, 2\); expected \(T, N, O\) with \(6, 5\) first, one for each step$"),
    (lambda: ba.batches(STEPS, f32(5, 6), time_major=True, per_step=True), ValueError, r"target has shape \(5, 6\)"),
    (lambda: ba.batches(STEPS, [1, 0, 1]), ValueError, r"target has 3 entries; expected one for each of N=5 sequences of x"),
    (lambda: ba.batches(SEQUENCES, [f32(4), f32(3)]), ValueError, r"target\[1\] has shape \(3,\); expected \(T_n, O\) with the 2 steps of x\[1\], one for each step, or \(O,\)"),
    (lambda: ba.batches(SEQUENCES, [f32(4, 2), f32(2, 1)]), ValueError, r"target\[1\] has shape \(2, 1\), with 1 features .*, and target\[0\] \(4, 2\), with 2"),
    (lambda: ba.batches(SEQUENCES, [f32(4), f32(2)], weights=[1.0, 1.0]), ValueError, r"weights has shape \(2,\); expected \(T, N\) with \(4, 2\) first, one for each step$"),
    (lambda: ba.batches(STEPS, ["a"] * 5), TypeError, r"target has dtype <U1; .*np\.unique\(target, return_inverse=True\)\[1\]"),
    (lambda: ba.batches(STEPS, weights=f32(6, 5, 1)), ValueError, r"weights has shape \(6, 5, 1\); expected \(T, N\) with \(6, 5\) first, one for each step, or \(N,\) with N=5"),
    (lambda: ba.batches(STEPS, size=0), ValueError, r"size=0 is too small"),
    (lambda: ba.batches(STEPS, seed=-1), ValueError, r"seed=-1 is too small"),
    (lambda: ba.batches(STEPS, shuffle=1), TypeError, r"shuffle=1 is a int; expected True or False"),
    (lambda: ba.batches(STEPS).epoch(-1), ValueError, r"k=-1 is too small"),
    (lambda: ba.batches(STEPS).to("cpu"), TypeError, r"rnn is a str; expected a bptt_array\.RNN"),
    (lambda: ba.batches(STEPS).to(rnn(time_major=False)), ValueError, r"time_major=False, and these batches True; .*: use ba\.batches\(\.\.\., time_major=False\)"),
    (lambda: ba.Standardization([1.0], [0.0]), ValueError, r"std\[0\]=0\.0; expected a finite number above 0"),
    (lambda: ba.Standardization([1.0, np.nan], [1.0, 1.0]), ValueError, r"mean\[1\]=nan; expected a finite number"),
    (lambda: ba.Standardization([1.0], [1.0, 1.0]), ValueError, r"std has shape \(2,\); expected \(I,\), a number for each feature in both"),
    (lambda: ba.Standardization.of(f32(5, 2) * np.array([1, np.nan])), ValueError, r"x has no number of feature 1; expected at least one"),
    (lambda: ba.Standardization.of(np.array([1.0, np.inf])), ValueError, r"x has numbers of feature 0 that are infinite, .*: put NaN where one is missing"),
    (lambda: ba.Standardization.of(SEQUENCES, [4, 2]), ValueError, r"lengths is given, but x is a list of sequences, which have theirs; leave it out"),
    (lambda: ba.Standardization.of(f32(5, 2), [5, 2]), ValueError, r"x has shape \(5, 2\); expected \(T, N, I\) where lengths are given"),
    (lambda: ba.Standardization([1.0, 2.0], [1.0, 1.0])(f32(5, 3)), ValueError, r"x has shape \(5, 3\); expected 2 features on the last axis"),
    (lambda: ba.Standardization([1e300], [1.0]).inverse(f32(5)), ValueError, r"mean\[0\]=1e\+300 does not fit in float32"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), DATA, ids=[row[-1] for row in DATA])
def test_data_that_do_not_fit_say_why(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


MEMBERS = [
    ({}, 0, ValueError, r"this RNN is no ensemble; build it with members=E, or use it as it is"),
    (dict(members=2), 2, ValueError, r"k=2; expected 0 to 1: this RNN has members=2"),
    (dict(members=2), -1, ValueError, r"k=-1 is too small"),
    (dict(members=2), "first", TypeError, r"k='first' is a str"),
]


@pytest.mark.parametrize(("network", "k", "kind", "message"), MEMBERS, ids=[row[-1] for row in MEMBERS])
def test_a_member_that_is_not_there_is_said_to_be_missing(network, k, kind, message):
    with pytest.raises(kind, match=message):
        rnn(**network).member(k)


LOADS = [
    (Leaky(), None, ValueError, r"was written with the cell 'leaky', which is not in the library; give it: cell=…"),
    (Leaky(), Leaky, TypeError, r"cell=Leaky is a class; expected one of its objects"),
    (Leaky(), Borrowed(), ValueError, r"cell is a Borrowed with the name 'lstm', which is the library's"),
    (Leaky(), "lstm", ValueError, r"cell='lstm', but path=.* was written with cell='leaky'"),
    ("tanh", Leaky(), ValueError, r"cell='leaky', but path=.* was written with cell='tanh'"),
]


@pytest.mark.parametrize(("saved", "given", "kind", "message"), LOADS, ids=[row[-1] for row in LOADS])
def test_a_file_with_another_cell_says_which_it_needs(saved, given, kind, message, tmp_path):
    network = rnn(cell=saved)
    network.save(tmp_path / "model")
    with pytest.raises(kind, match=message):
        ba.RNN.load(tmp_path / "model", cell=given)
    back = ba.RNN.load(tmp_path / "model", cell=saved if isinstance(saved, ba.Cell) else None)
    assert back.config == network.config


STATE_DICT = rnn(cell="lstm", num_layers=3, bidirectional=True, dtype="float64").to_torch_state_dict()


def without(name):
    return {key: value for key, value in STATE_DICT.items() if key != name}


def shaped(name, *shape):
    return {**STATE_DICT, name: np.zeros(shape)}


def projected(*shape):
    """With a projection in every layer and direction that the rest does not fit."""
    sides = [f"l{k}{side}" for k in range(3) for side in ("", "_reverse")]
    return {**STATE_DICT, **{f"rnn.weight_hr_{side}": np.zeros(shape) for side in sides}}


FROM_TORCH = [
    (without("rnn.weight_ih_l1"), ValueError, r"state_dict has 'rnn\.weight_ih_l2_reverse' but no 'rnn\.weight_ih_l1'; expected every"),
    (without("rnn.bias_hh_l0_reverse"), ValueError, r"but no 'rnn\.bias_hh_l0_reverse'"),
    (without("rnn.weight_hh_l0"), ValueError, r"but no 'rnn\.weight_hh_l0'"),
    (shaped("rnn.weight_ih_l999999999999", 1), ValueError, r"has 'rnn\.weight_ih_l999999999999' but no 'rnn\.weight_ih_l3'"),
    ({}, ValueError, r"state_dict has no 'rnn\.weight_ih_l0'; expected the weights of a torch\.nn\.RNN"),
    (without("readout.weight"), ValueError, r"state_dict has 'readout\.bias' but no 'readout\.weight'"),
    (shaped("rnn.weight_ih_l1", 24, 6), ValueError, r"state_dict\['rnn\.weight_ih_l1'\] has shape \(24, 6\); expected \(24, 12\), from"),
    (shaped("rnn.weight_ih_l0_reverse", 24, 3), ValueError, r"'rnn\.weight_ih_l0_reverse'\] has shape \(24, 3\); expected \(24, 4\)"),
    (shaped("rnn.weight_hh_l2", 24, 5), ValueError, r"'rnn\.weight_hh_l2'\] has shape \(24, 5\); expected \(24, 6\)"),
    (shaped("rnn.bias_ih_l0", 6), ValueError, r"'rnn\.bias_ih_l0'\] has shape \(6,\); expected \(24,\)"),
    (shaped("rnn.weight_hh_l0", 24), ValueError, r"'rnn\.weight_hh_l0'\] has shape \(24,\); expected a matrix"),
    (shaped("rnn.weight_ih_l0", 24), ValueError, r"'rnn\.weight_ih_l0'\] has shape \(24,\); expected a matrix"),
    (shaped("rnn.weight_hh_l0", 12, 6), ValueError, r"'rnn\.weight_hh_l0'\] has shape \(12, 6\); expected \(G\*H, H\) with the G of"),
    (shaped("rnn.weight_hh_l0", 0, 0), ValueError, r"'rnn\.weight_hh_l0'\] has shape \(0, 0\); expected \(G\*H, H\)"),
    (shaped("readout.weight", 2, 6), ValueError, r"'readout\.weight'\] has shape \(2, 6\); expected \(2, 12\)"),
    (shaped("readout.weight", 2), ValueError, r"'readout\.weight'\] has shape \(2,\); expected a matrix"),
    (shaped("readout.bias", 3), ValueError, r"'readout\.bias'\] has shape \(3,\); expected \(2,\)"),
    (shaped("rnn.weight_hr_l0", 2, 6), ValueError, r"but no 'rnn\.weight_hr_l0_reverse'; expected every layer and direction"),
    (projected(2, 6), ValueError, r"'rnn\.weight_hh_l0'\] has shape \(24, 6\); expected \(24, 2\), from the shapes of the first"),
    (projected(6, 6), ValueError, r"proj_size=6, but hidden_size=6; expected less than that"),
    (projected(2, 5), ValueError, r"'rnn\.weight_hh_l0'\] has shape \(24, 6\); expected \(G\*H, H\) with the G of"),
    (projected(2, 8), ValueError, r"proj_size=2, but cell='gru': only cell='lstm' has a projection"),
    (projected(2), ValueError, r"'rnn\.weight_hr_l0'\] has shape \(2,\); expected a matrix"),
    (shaped("rnn.weight_ih_l00", 24, 4), ValueError, r"'rnn\.weight_ih_l00', which is none of rnn\.weight_ih_l0 and the like"),
    (shaped("norm.weight", 6), ValueError, r"'norm\.weight', which is none of .*leave out those of other modules"),
    (shaped(0), TypeError, r"state_dict has the key 0, a int; expected strings"),
    ({**STATE_DICT, "readout.bias": "none"}, TypeError, r"state_dict\['readout\.bias'\] has dtype <U4; expected float32 or float64 on"),
    ({**STATE_DICT, "readout.bias": [[1], [1, 2]]}, TypeError, r"\['readout\.bias'\] cannot be read as a NumPy array"),
    ({**STATE_DICT, "readout.bias": f32(O)}, TypeError, r"state_dict\['readout\.bias'\] has dtype float32, but state_dict\['rnn\.weight_ih_l0'\] has float64; expected one"),
    ({name: a.astype("float16") for name, a in STATE_DICT.items()}, TypeError, r"has dtype float16; .*: use module\.cpu\(\)\.float\(\) or"),
    ({name: a.astype(int) for name, a in STATE_DICT.items()}, TypeError, r"state_dict\['rnn\.weight_ih_l0'\] has dtype int64; expected"),
    (list(STATE_DICT), TypeError, r"state_dict is a list; expected a mapping: use module\.state_dict\(\)"),
]  # fmt: skip


@pytest.mark.parametrize(("state_dict", "kind", "message"), FROM_TORCH, ids=[row[-1] for row in FROM_TORCH])
def test_a_state_dict_that_cannot_be_read_says_why(state_dict, kind, message):
    with pytest.raises(kind, match=message):
        ba.RNN.from_torch_state_dict(state_dict)


FROM_TORCH_OPTIONS = [
    (dict(cell="gru"), ValueError, r"cell='gru', but state_dict\['rnn\.weight_hh_l0'\] has shape \(24, 6\), .* with G = 4; expected 'lstm'"),
    (dict(cell="elu"), ValueError, r"cell='elu' is unknown; expected one of 'tanh', 'relu', 'lstm', 'gru'"),
    (dict(cell=Leaky()), ValueError, r"cell=<cell 'leaky'> is unknown"),
    (dict(recurrent_prefix="rnn"), ValueError, r"recurrent_prefix='rnn' has no dot at its end; expected 'rnn\.', or ''"),
    (dict(readout_prefix=None), TypeError, r"readout_prefix=None is a NoneType; expected a string such as 'rnn\.'"),
    (dict(recurrent_prefix="lstm."), ValueError, r"none of lstm\.weight_ih_l0 .*say with recurrent_prefix='rnn\.'"),
    (dict(readout="first"), ValueError, r"readout='first' is unknown; expected one of 'every', 'last'"),
    (dict(dropout=1.0), ValueError, r"dropout=1\.0; expected a finite number"),
    (dict(device="gpu"), ValueError, r"device='gpu' is unknown"),
    (dict(members=2), TypeError, r"unexpected keyword argument 'members'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "kind", "message"), FROM_TORCH_OPTIONS, ids=[row[-1] for row in FROM_TORCH_OPTIONS]
)
def test_options_that_do_not_go_with_a_state_dict_say_why(options, kind, message):
    with pytest.raises(kind, match=message):
        ba.RNN.from_torch_state_dict(STATE_DICT, **options)


TO_TORCH = [
    (dict(cell=Leaky()), {}, ValueError, r"cell='leaky' has no module in PyTorch; expected one of 'tanh', 'relu', 'lstm', 'gru'"),
    (dict(members=2), {}, ValueError, r"this RNN has members=2, .* use rnn\.member\(k\)\.to_torch_state_dict\(\)"),
    ({}, dict(readout_prefix="head"), ValueError, r"readout_prefix='head' has no dot at its end; expected 'head\.'"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "options", "kind", "message"), TO_TORCH, ids=[row[-1] for row in TO_TORCH])
def test_a_network_that_torch_does_not_have_says_so(network, options, kind, message):
    with pytest.raises(kind, match=message):
        rnn(**network).to_torch_state_dict(**options)


PARAMS = [
    (lambda p: p.pop("b_y"), ValueError, r"rnn\.params has keys \['W_hy', 'l0"),
    (lambda p: p.update(b_y=np.ones(O)), TypeError, r"params\['b_y'\] has dtype float64"),
    (lambda p: p.update(b_y=f32(O + 1)), ValueError, r"params\['b_y'\] has shape \(3,\); expected shape = \(2,\)"),
    (lambda p: p.update(b_y=[0, 0]), TypeError, r"params\['b_y'\] is a list"),
    (lambda p: p.update(b_y=f32(O).astype(">f4")), TypeError, r"params\['b_y'\] is not in the byte order"),
]


@pytest.mark.parametrize(("change", "kind", "message"), PARAMS, ids=[row[-1] for row in PARAMS])
def test_parameters_that_do_not_fit_neither_compute_nor_are_saved(change, kind, message, tmp_path):
    network = rnn()
    change(network.params)
    for call in (
        lambda: network(X),
        lambda: network.forward(X),
        lambda: network.loss_and_grad(X, Y),
        lambda: network.loss(X, Y),
        lambda: network.save(tmp_path / "model"),
    ):
        with pytest.raises(kind, match=message):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_loss_of_ones_own_may_write_into_what_it_gets_and_keep_what_it_gives():
    network = rnn(output="sigmoid")
    target = f32(T, N, O) / 3
    plain = network.loss_and_grad(X, target)
    kept = []

    def greedy(y, t):
        dy = y - t
        loss = 0.5 * (dy * dy).sum(axis=-1)
        y[...], t[...] = np.nan, np.nan
        kept.append((dy, dy.copy()))
        return loss, dy

    value, grads, _ = network.loss_and_grad(X, target, greedy)
    assert value == plain[0]
    assert all(np.array_equal(grads.params[name], plain[1].params[name]) for name in grads.params)
    assert np.array_equal(target, f32(T, N, O) / 3)
    hidden = ba.RNN(I, H)  # no readout: y are the states themselves
    hidden.loss_and_grad(X, f32(T, N, H), greedy)
    assert all(np.array_equal(dy, before) for dy, before in kept)


def test_a_tensor_that_autograd_tracks_is_refused():
    class Tracked(np.ndarray):
        requires_grad = True

    with pytest.raises(
        TypeError, match=r"x is tracked by torch's autograd, which is not used here; pass x\.detach\(\)"
    ):
        rnn()(X.view(Tracked))


@pytest.mark.parametrize("kind", ["ImportError", "RuntimeError", "ValueError", "AttributeError"])
def test_a_cupy_that_cannot_be_imported_is_said_to_be_so(tmp_path, kind):
    (tmp_path / "cupy.py").write_text(f"raise {kind}('\\n=====\\nlibcudart.so.12: cannot open\\n=====')")
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop()); from bptt_array.cli import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(*arguments):
        command = [sys.executable, "-c", code, *arguments, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    failed = run("parity", "--device", "cuda")
    assert failed.returncode == 2
    assert failed.stderr.startswith(
        "bptt-array: error: --device='cuda': the installed CuPy cannot be imported (libcudart.so.12: cannot open): pip"
    )
    assert failed.stderr.count("\n") == 1
    assert "libcudart.so.12: cannot open" in run("info").stdout
    assert run("parity", "--device", "auto").returncode == 0


def test_a_network_can_be_copied():
    network = rnn()
    network(X)  # what it bound to its parameters is copied with them
    other = copy.deepcopy(network)
    network.params["b_y"][...] = 7
    assert other.backend is network.backend
    assert not np.array_equal(other(X)[0], network(X)[0])


def test_host_arrays_of_any_byte_order_and_stride_go_to_any_backend():
    network = ba.RNN(I, H, O, device=ba.Backend(array_api_strict))
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((T, N, I)).astype("f4"), rng.standard_normal((T, N, O)).astype("f4")
    expected = float(network.loss(x, target)[0])
    assert float(network.loss(x.astype(">f4"), target.astype(">f4"))[0]) == expected
    assert float(network.loss(x[::-1].copy()[::-1], np.asfortranarray(target))[0]) == expected


def test_optimizers_refuse_arrays_with_masks_and_other_gradients():
    masked = {"a": np.ma.MaskedArray(f32(2))}
    for call in (lambda: ba.SGD(0.1).update({"a": f32(2)}, masked), lambda: ba.clip_by_global_norm(masked, 1.0)):
        with pytest.raises(TypeError, match=r"grads\['a'\] is a MaskedArray"):
            call()


def test_one_token_of_a_large_vocabulary_does_not_touch_the_rest():
    network = ba.RNN(100_000, 8)
    network(np.zeros((1, 1), int))
    tracemalloc.start()
    network(np.full((1, 1), 99_999))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


COSTS = ba.schedules.Costs(fixed=0, checkpoint=1, kept=1, work=1)
HUGE = 10**5000  # Python writes down no number of more than 4300 digits


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("truncate", lambda: rnn().plan((T, N, I), truncate=HUGE)),
        (r"truncate\[1\]", lambda: rnn().loss_and_grad(f32(T, N, I), f32(T, N, O), truncate=(1, HUGE))),
        ("T", lambda: ba.schedules.plan(HUGE, costs=COSTS)),
        ("longest", lambda: ba.schedules.plan(T, costs=COSTS, longest=HUGE)),
        (r"x_shape\[0\]", lambda: rnn().plan((HUGE, N, I))),
        ("hidden_size", lambda: ba.RNN(I, HUGE, O)),
        ("k", lambda: rnn(members=2).member(HUGE)),
        ("t", lambda: ba.diagnostics.jacobian(rnn(), f32(T, N, I), HUGE, HUGE)),
        (r"at\[0\]", lambda: ba.diagnostics.gradient_flow(rnn(), f32(T, N, I), f32(T, N, O), at=[HUGE])),
        ("count", lambda: ba.diagnostics.lyapunov_exponents(rnn(), f32(T, N, I), HUGE)),
        ("transient", lambda: ba.diagnostics.lyapunov_exponents(rnn(), f32(T, N, I), transient=HUGE)),
        ("count", lambda: ba.distributed.OneProcess().part(HUGE)),
        ("steps", lambda: Options(steps=HUGE)),
    ],
)
def test_a_whole_number_that_cannot_be_written_down_is_too_large(name, call):
    with pytest.raises(
        ValueError, match=rf"^{name}=a huge number is too large; expected a whole number of at most \d+"
    ):
        call()
