"""Sequences of different lengths: what stands past the end is nothing."""

from dataclasses import replace

import numpy as np
import pytest
from cases import ALL, Case, any_case, draw, make
from gradients import check_explosion_in_the_padding, check_padding, check_weights_of_zero
from hypothesis import given
from hypothesis import strategies as st

import bptt_array as ba

PADDED = [case for case in ALL if case.lengths]


@pytest.mark.parametrize("case", PADDED, ids=str)
def test_padding_filled_with_nan_changes_nothing(case):
    check_padding(ba, case)


@given(case=any_case(), data=st.data())
def test_padding_changes_nothing_for_any_combination_of_options(case, data):
    lengths = tuple(data.draw(st.lists(st.integers(0, case.T), min_size=case.N, max_size=case.N)))
    check_padding(ba, replace(case, lengths=lengths, truncate=None))


def test_steps_of_weight_zero_are_nothing():
    check_weights_of_zero(ba)


def test_an_initial_state_that_is_no_number_is_nothing_to_a_sequence_without_steps():
    case = Case(lengths=(7, 0, 4, 1), readout="last")
    plain, filled = draw(case), draw(case)
    filled["h_0"][0, 0, 1] = np.nan
    results = []
    for arrays in (plain, filled):
        rnn = make(ba, case, arrays["params"])
        state = ba.State(h=arrays["h_0"])
        _, grads, _ = rnn.loss_and_grad(arrays["x"], arrays["target"], state=state, lengths=case.lengths)
        _, _, backward = rnn.forward(arrays["x"], state, lengths=case.lengths)
        results.append({**grads.params, **{f"{k} of dy": v for k, v in backward(arrays["dy"]).params.items()}})
    assert all(np.array_equal(value, results[1][name]) for name, value in results[0].items())


def test_states_that_overflow_in_the_padding_do_not_reach_the_gradient():
    check_explosion_in_the_padding(ba)


def test_a_batch_with_lengths_is_the_sum_of_its_sequences():
    case = Case(lengths=(7, 0, 4, 1), reduction="sum")
    arrays = draw(case)
    rnn = make(ba, case, arrays["params"])
    loss, grads, state = rnn.loss_and_grad(arrays["x"], arrays["target"], lengths=case.lengths, reduction="sum")
    total, summed = 0.0, {name: np.zeros_like(value) for name, value in rnn.params.items()}
    for n, length in enumerate(case.lengths):
        if length == 0:
            assert not state.h[0, 0, n].any()
            continue
        x, target = arrays["x"][:length, n : n + 1], arrays["target"][:length, n : n + 1]
        alone, alone_grads, alone_state = rnn.loss_and_grad(x, target, reduction="sum")
        total += alone
        assert np.allclose(alone_state.h[0, 0, 0], state.h[0, 0, n], rtol=1e-13, atol=0)
        for name in summed:
            summed[name] += alone_grads.params[name]
    assert np.isclose(loss, total, rtol=1e-13)
    assert all(np.allclose(grads.params[name], summed[name], rtol=1e-11, atol=1e-13) for name in summed)


def test_lengths_may_be_a_list_a_tuple_or_an_array_and_full_lengths_are_none():
    case = Case()
    arrays = draw(case)
    rnn = make(ba, case, arrays["params"])
    plain = rnn(arrays["x"])[0]
    for lengths in ([7] * 4, (7,) * 4, np.full(4, 7, dtype="uint8")):
        assert np.array_equal(rnn(arrays["x"], lengths=lengths)[0], plain)
