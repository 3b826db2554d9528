"""Gradient check first: finite differences, a naive reference, and autograd of that reference."""

import autograd
import autograd.numpy as anp
import cases
import numpy as np
import pytest
import reference
from autograd.tracer import getval
from cases import (
    ALL,
    TRUNCATED,
    Case,
    any_case,
    backward_options,
    call_options,
    draw,
    flat_gradients,
    make,
    members_of,
    of_member,
    of_the_sum,
    options,
    run_reference,
    state_of,
    substituted,
    variables,
)
from conftest import examples
from gradients import check_given_gradient, check_loss_gradient, given_options, reference_losses
from hypothesis import assume, given, settings

import bptt_array as ba


@pytest.mark.parametrize("case", ALL + TRUNCATED, ids=str)
def test_the_gradient_of_a_loss_matches_finite_differences(case):
    check_loss_gradient(ba, case)


@pytest.mark.parametrize("given", ["dy", "dstate", "both"])
@pytest.mark.parametrize("case", [case for case in ALL if case.loss == "mse" and not case.weights], ids=str)
def test_the_gradient_of_a_given_dy_and_dstate_matches_finite_differences(case, given):
    if case.lengths and not any(case.lengths) and given == "dy":
        case = cases.replace(case, lengths=(1, 0, 0, 0))  # no output at all would leave nothing to check
    check_given_gradient(ba, case, dy=given != "dstate", dstate=given != "dy")


def close(found, expected, tolerance=1e-10):
    assert found.shape == expected.shape
    scale = np.max(np.abs(expected), initial=0.0)
    assert np.max(np.abs(found - expected), initial=0.0) <= tolerance * max(scale, 1e-3)


def autograd_gradients(function, at):
    """Values of every derivative of ``function(dict)`` by reverse-mode differentiation of the reference."""
    gradients = autograd.grad(function)(at)
    return {name: np.asarray(value) for name, value in gradients.items()}


@pytest.mark.parametrize("case", ALL + TRUNCATED, ids=str)
def test_values_and_gradients_match_the_naive_reference_and_its_autograd(case):
    arrays = draw(case)
    rnn = make(ba, case, arrays["params"])
    keywords = options(ba, rnn, case, arrays)
    value, grads, state = rnn.loss_and_grad(
        arrays["x"], arrays["target"], **keywords, **backward_options(rnn, case, arrays)
    )

    def loss(values):
        losses = reference_losses(anp, case, substituted(arrays, values), stop_gradient=getval)
        return losses if case.members is None else sum(losses)

    at = variables(case, arrays)
    close(np.sum(value), np.asarray(loss(at)))
    expected = autograd_gradients(loss, at) if loss(at) != 0.0 else {name: np.zeros_like(a) for name, a in at.items()}
    for name, gradient in of_the_sum(case, flat_gradients(rnn, grads)).items():
        close(gradient, expected[name])

    y, last = rnn(arrays["x"], **call_options(ba, rnn, case, arrays))
    close(last.h, state.h)
    assert (last.c is not None) == case.has_c
    for k in members_of(case):
        inside = (slice(None),) * 2 if case.members is None else (slice(None), slice(None), k)
        y_k = y if case.members is None else y[k] if case.readout == "last" else y[:, k]
        compare_forward(case, run_reference(np, case, of_member(case, arrays, k)), y_k, state, inside)


def compare_forward(case, forward, y, state, inside):
    """Outputs and last states of one member with those of the reference."""
    for n in range(case.N):
        for where, (h, c) in zip(np.ndindex(case.layers, case.directions), forward.last[n], strict=True):
            close(state.h[inside][where][n], h)
            if case.has_c:
                close(state.c[inside][where][n], c)
        ys = forward.outputs[n]
        if case.readout == "last":
            close(y[n], ys[0] if ys else np.zeros(case.outputs))
            continue
        for t in range(case.T):
            close(y[t, n], ys[t] if t < len(ys) else np.zeros(case.outputs))


@pytest.mark.parametrize(
    "case",
    [
        Case(lengths=cases.LENGTHS),
        Case(readout="last"),
        Case(output="softmax"),
        Case(cell="lstm", layers=2, lengths=cases.LENGTHS),
        Case(cell="gru", bidirectional=True, lengths=cases.LENGTHS, readout="last"),
        Case(cell="lstm", bidirectional=True, layers=2, members=2, dropout=0.4, recurrent_dropout=0.4),
    ],
    ids=str,
)
def test_backward_matches_the_autograd_of_the_reference(case):
    arrays = draw(case)
    rnn = make(ba, case, arrays["params"])
    _, _, backward = rnn.forward(arrays["x"], **given_options(ba, rnn, case, arrays))
    dstate = state_of(ba, rnn, arrays, "d{}_last")
    found = of_the_sum(case, flat_gradients(rnn, backward(arrays["dy"], dstate, input_grad=True)))

    def probe(values):
        total = 0.0
        for k in members_of(case):
            one = of_member(case, substituted(arrays, values), k)
            given = [one[name] for name in ("params", "x", "h_0", "c_0", "dy", "dh_last", "dc_last")]
            total = total + reference.probe(anp, *given, masks=one["masks"], **case.reference_options)
        return total

    for name, expected in autograd_gradients(probe, variables(case, arrays)).items():
        close(found[name], expected)


@settings(max_examples=examples(300))
@given(case=any_case())
def test_any_combination_of_options_has_the_gradient_of_the_reference(case):
    arrays = draw(case)
    with np.errstate(all="ignore"):
        forwards = [run_reference(np, case, of_member(case, arrays, k)) for k in members_of(case)]
    # States of ReLU cells may grow until the reference's own derivatives of tanh and softmax overflow.
    assume(all(np.abs(h).max() < 30 for forward in forwards for of_layers in forward.last for h, _ in of_layers))
    test_values_and_gradients_match_the_naive_reference_and_its_autograd(case)


@pytest.mark.parametrize(
    "case",
    [
        Case(output="softmax", lengths=cases.LENGTHS),
        Case(cell="gru", layers=2, dropout=0.5, members=2),
        Case(cell="lstm", bidirectional=True, lengths=cases.LENGTHS),
    ],
    ids=str,
)
def test_backward_twice_and_after_an_update_gives_the_same_numbers(case):
    arrays = draw(case)
    rnn = make(ba, case, arrays["params"])
    y, state, backward = rnn.forward(arrays["x"], **given_options(ba, rnn, case, arrays))
    dstate = state_of(ba, rnn, arrays, "d{}_last")
    first = flat_gradients(rnn, backward(arrays["dy"], dstate, input_grad=True))
    ba.SGD(lr=0.5).update(rnn.params, backward(arrays["dy"]).params)
    y[...] = np.nan  # results are the caller's own
    state.h[...] = np.nan
    rnn.to(ba.Backend(np))
    again = flat_gradients(rnn, backward(arrays["dy"], dstate, input_grad=True))
    assert all(np.array_equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    "options", [{}, {"members": 2}, {"bidirectional": True}, {"readout": "last"}, {"tokens": True}]
)
@pytest.mark.parametrize("lengths", [None, [5, 0, 3], [0, 0, 0]])
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru", "projected"])
def test_a_backward_pass_does_not_see_what_is_written_to_arguments_after_forward(options, lengths, cell):
    """All but x, which is documented: the state, lengths, reset, the outputs and the final state."""
    options = dict(options)
    tokens = options.pop("tokens", False)
    options |= {"cell": "lstm", "proj_size": 2} if cell == "projected" else {"cell": cell}
    rnn = ba.RNN(4, 5, 2, num_layers=2, dtype="float64", **options)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, (5, 3)) if tokens else rng.standard_normal((5, 3, 4))
    shapes = rnn.architecture.states_shapes(3).values()
    results = []
    for write in (False, True):
        state = ba.State(*(np.full(shape, 0.3) for shape in shapes))
        reset = np.array([True, False, False])
        given = None if lengths is None else np.array(lengths)
        y, last, backward = rnn.forward(x, state, lengths=given, reset=reset)
        dy, dstate = np.ones_like(y), ba.State(*(np.ones(shape) for shape in shapes))
        if write:
            reset[...] = ~reset
            for array in (y, *filter(lambda a: a is not None, (given, state.h, state.c, last.h, last.c))):
                array[...] = 4
            for value in rnn.params.values():
                value *= 2
        grads = backward(dy, dstate, input_grad=not tokens)
        assert all((array == 1).all() for array in (dy, dstate.h))
        results.append({"h": grads.state.h, "x": grads.x, **grads.params})
        if write:
            for value in rnn.params.values():
                value /= 2
    for name, expected in results[0].items():
        assert np.array_equal(results[1][name], expected), name


def test_losses_do_not_overflow():
    """Cross-entropies are computed before g: values of thousands have exact losses and gradients."""
    rnn = ba.RNN(1, 1, 3, output="softmax", dtype="float32")
    rnn.params["W_hy"][...] = 0
    rnn.params["b_y"][...] = np.array([0.0, 3000.0, -3000.0])
    x = np.zeros((1, 1, 1), "float32")
    loss, grads, _ = rnn.loss_and_grad(x, np.array([[2]]), "cross_entropy")
    assert loss == 6000
    assert grads.params["b_y"].tolist() == [0, 1, -1]
    rnn = ba.RNN(1, 1, 2, output="sigmoid", dtype="float32")
    rnn.params["W_hy"][...] = 0
    rnn.params["b_y"][...] = np.array([-4000.0, 2000.0])
    loss, grads, _ = rnn.loss_and_grad(x, np.array([[[1, 0]]], "float32"), "binary_cross_entropy")
    assert loss == 6000
    assert grads.params["b_y"].tolist() == [-1, 1]
    y, _ = rnn(x)
    assert y.tolist() == [[[0, 1]]]
    rnn = ba.RNN(1, 1, 2, output="softmax", dtype="float32")
    rnn.params["b_y"][...] = np.array([-4000.0, 2000.0])
    assert rnn(x)[0].tolist() == [[[0, 1]]]


def test_truncation_at_every_step_or_beyond_the_end_are_the_two_extremes():
    case = Case()
    arrays = draw(case)
    rnn = make(ba, case, arrays["params"])

    def gradient(truncate):
        return flat_gradients(rnn, rnn.loss_and_grad(arrays["x"], arrays["target"], truncate=truncate)[1])

    full, cut = gradient(None), gradient(1)
    assert all(np.array_equal(full[name], gradient(case.T + 5)[name]) for name in full)
    assert not np.allclose(full["l0.W_hh"], cut["l0.W_hh"], rtol=1e-2)


def test_check_gradients_finds_a_wrong_one_and_names_it():
    arrays = {"a": np.arange(1.0, 4.0), "b": np.ones((2, 2))}

    def loss(at):
        return float(np.sum(at["a"] ** 2) + np.sum(at["b"] ** 3))

    right = {"a": 2 * arrays["a"], "b": 3 * arrays["b"] ** 2}
    assert max(check.error for check in ba.check_gradients(loss, arrays, right)) < 1e-9
    wrong = {**right, "b": right["b"] * (1 + 1e-5)}
    with pytest.raises(AssertionError, match="b: finite differences"):
        ba.check_gradients(loss, arrays, wrong)
    with pytest.raises(AssertionError, match="a: finite differences"):
        ba.check_gradients(loss, arrays, {**right, "a": np.full(3, np.nan)})
    with pytest.raises(ValueError, match="keys"):
        ba.check_gradients(loss, arrays, {"a": right["a"]})
    with pytest.raises(TypeError, match="float64"):
        ba.check_gradients(loss, arrays, {**right, "a": right["a"].astype("float32")})
