"""One step at a time: ``rnn.streamer(N)`` does what the network does with whole sequences, and hardly anything else."""

import copy
import gc
import pickle
import re
import tracemalloc

import array_api_strict
import numpy as np
import pytest
from cases import Case
from cells_of_users import CELLS_OF_USERS
from conftest import backends_and_dtypes, cuda, needs_torch
from gradients import check_stream
from test_cuda import needs_counters

import bptt_array as ba

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype("float32")


# ---- the same numbers -------------------------------------------------------------------------------------

NUMBERS = [
    *(Case(cell=cell, **more)
      for cell in ("tanh", "relu", "lstm", "gru")
      for more in ({}, {"layers": 3, "T": 8}, {"members": 3}, {"members": 2, "shared": False, "layers": 2},
                   {"tokens": True, "output": "softmax"}, {"N": 1, "H": 1, "I": 1, "O": 1})),
    Case(cell="lstm", H=40, N=9),
    Case(state=False),
    Case(init="identity", output="sigmoid"),
    Case(readout="last", output="tanh", layers=2),
    Case(output_size=False, cell="gru"),
    Case(output_size=False, members=2, layers=2, readout="last"),
    Case(tokens=True, members=2),
    Case(tokens=True, members=2, shared=False, cell="gru", layers=2),
    Case(tokens=True, members=4, N=4, shared=False, I=4),  # E = N = I: whose axis is whose?
    Case(members=4, N=4, shared=False, I=4, H=4, O=4),
    Case(tokens=True, I=500, H=140, cell="lstm"),
    Case(tokens=True, embedding=6, cell="gru"),
    *(Case(bias=False, cell=cell, layers=2) for cell in ("tanh", "lstm", "gru", "gru_reset_before")),
    Case(cell="gru_reset_before", members=2),
    Case(cell="lstm", proj_size=3, layers=2, members=2),
    Case(cell="lstm", proj_size=3, output_size=False),
    Case(tokens=True, embedding=6, cell="lstm", layers=2, members=2, shared=False),
    Case(tokens=True, embedding=3, tied=True, I=4, cell="lstm", proj_size=3, bias=False, layers=2, members=2),
    Case(tokens=True, embedding=5, tied=True, I=4, cell="gru_reset_before", members=2, shared=False),
    Case(dropout=0.5, recurrent_dropout=0.5, layers=2),  # which never act
]  # fmt: skip


@pytest.mark.parametrize("case", NUMBERS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_stream_is_the_network_on_whole_sequences(case, dtype):
    check_stream(ba, case, dtype)


#: Each kind of step once, to keep the slow backends bearable.
CHOSEN = [
    Case(layers=2, output="softmax"),
    Case(cell="relu", tokens=True),
    Case(cell="lstm", members=2, output="sigmoid"),
    Case(cell="lstm", layers=2, tokens=True, readout="last"),
    Case(cell="gru", members=2, shared=False, tokens=True, layers=2, output_size=False),
    Case(cell="gru", output="tanh"),
    Case(tokens=True, embedding=6, members=2),
]


@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_on_every_backend(make_backend, dtype):
    for case in CHOSEN:
        check_stream(ba, case, dtype, make_backend())


class Ahead(ba.Cell):
    """``h_t = s (W_hh h_{t-1} + 1)`` with ``s = 1/2 + 1/2 tanh(W_xh x_t + b_h)``, for a whole segment at once."""

    name = "ahead"

    def forward_(self, backend, params, product):
        product_, of_h = product.writing()

        def step_(z, h_before, h, factor):
            product_(h_before)
            h[...] = factor * (of_h + 1)

        return step_

    def forward_rows(self, backend, z, kept):
        return (0.5 + 0.5 * backend.xp.tanh(z),)


@pytest.mark.parametrize("cell", [*CELLS_OF_USERS.values(), Ahead], ids=lambda cell: cell.name)
@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_cells_of_users(cell, make_backend, dtype):
    for more in ({"num_layers": 2}, {"members": 2}):
        rnn = ba.RNN(3, 5, 2, cell=cell(), device=make_backend(), dtype=dtype, **more)
        x = rnn.asarray(RNG.standard_normal((7, 4, 3)))
        expected, last = rnn(x)
        step = rnn.streamer(4)
        limit = 1e-12 if dtype == "float64" else 1e-5
        for t in range(7):
            y, there = (rnn.backend.to_host(a) for a in (step(x[t, ...]), expected[t, ...]))
            assert np.max(np.abs(y - there)) < limit
        for name in ("h", "c") if rnn.calls.architecture.cell.has_c else ("h",):
            now, there = (rnn.backend.to_host(getattr(state, name)) for state in (step.state, last))
            assert np.max(np.abs(now - there)) < limit


def test_what_comes_out_may_be_what_goes_in():
    rnn = ba.RNN(4, 8, 4, cell="gru", num_layers=2)
    step, x = rnn.streamer(3), normal(3, 4)
    expected, state = x[None], None
    for _ in range(5):
        expected, state = rnn(expected, state)
        x = step(x)
        assert np.allclose(x, expected[0], atol=1e-6)


def test_inputs_in_any_layout_and_byte_order_are_read():
    rnn = ba.RNN(3, 8, 2)
    x = normal(4, 3)
    expected = rnn.streamer(4)(x).copy()
    everywhere = np.zeros((4, 6), "float32")
    everywhere[:, ::2] = x
    for one in (np.asfortranarray(x), everywhere[:, ::2], x[::-1].copy()[::-1], x.astype(">f4")):
        assert np.allclose(rnn.streamer(4)(one), expected, atol=1e-6)
    mapped = x.view(np.memmap)
    assert np.array_equal(rnn.streamer(4)(mapped), expected)
    of_tokens = ba.RNN(7, 8, 2, members=2)
    tokens = RNG.integers(0, 7, 4)
    expected = of_tokens.streamer(4)(tokens).copy()
    for dtype in ("uint8", "int32", "uint64", ">i8"):
        step = of_tokens.streamer(4)
        assert np.array_equal(step(tokens.astype(dtype)), expected)
        for _ in range(2):
            step.reset()
            assert np.array_equal(step(tokens), expected)


def test_members_may_share_inputs_in_one_step_and_not_in_the_next():
    rnn = ba.RNN(3, 8, 2, cell="lstm", members=2)
    step, state = rnn.streamer(4), None
    for x in (normal(4, 3), normal(2, 4, 3), normal(4, 3)):
        y, state = rnn(x[None], state)
        assert np.allclose(step(x), y[0], atol=1e-6)


def test_callers_with_the_batch_first_give_steps_as_all_do():
    rnn = ba.RNN(3, 8, 2, time_major=False)
    x = normal(4, 6, 3)
    expected, _ = rnn(x)
    step = rnn.streamer(4)
    for t in range(6):
        assert np.allclose(step(x[:, t]), expected[:, t], atol=1e-6)


# ---- states -----------------------------------------------------------------------------------------------


def test_sequences_begin_anew_by_mask_by_number_or_all():
    rnn = ba.RNN(3, 8, 2, cell="lstm", num_layers=2, members=2)
    step = rnn.streamer(4)
    for rows, anew in [
        ([True, False, False, True], [0, 3]),
        (np.array([False, True, False, False]), [1]),
        (2, [2]),
        ([1, 1, 3], [1, 3]),
        (np.array([0, 2], "uint8"), [0, 2]),
        (range(1, 3), [1, 2]),
        ((), []),
        ([], []),
        (None, [0, 1, 2, 3]),
    ]:
        step(normal(4, 3))
        before = step.state
        step.reset(rows)
        now = step.state
        for n in range(4):
            for one, other in ((before.h, now.h), (before.c, now.c)):
                assert np.array_equal(other[..., n, :], one[..., n, :] * (n not in anew))
    assert not np.any(step.state.h)


def test_what_is_no_number_is_gone_where_a_sequence_begins_anew():
    rnn = ba.RNN(3, 8, 2)
    step, x = rnn.streamer(2), normal(2, 3)
    step(np.full((2, 3), np.nan, "float32"))
    step.reset([1])
    assert np.isnan(step.state.h[0, 0, 0]).all()
    assert np.array_equal(step(x)[1], rnn.streamer(2)(x)[1])


def test_a_state_is_a_copy_on_its_way_in_and_out():
    rnn = ba.RNN(3, 8, 2, cell="lstm", num_layers=2)
    given = ba.State(normal(2, 1, 4, 8), normal(2, 1, 4, 8))
    kept = copy.deepcopy(given)
    step = rnn.streamer(4, given)
    assert np.array_equal(step.state.h, given.h)
    taken = step.state
    for _ in range(3):
        step(normal(4, 3))
    assert np.array_equal(given.h, kept.h)
    assert np.array_equal(given.c, kept.c)
    assert np.array_equal(taken.h, kept.h)
    step.state = taken
    taken.h[...] = 7
    assert np.array_equal(step.state.h, kept.h)
    assert np.array_equal(step.state.c, kept.c)


def test_streamers_of_one_network_know_nothing_of_each_other():
    rnn = ba.RNN(3, 8, 2, cell="gru")
    one, other, x = rnn.streamer(4), rnn.streamer(4), normal(5, 4, 3)
    expected = [one(x_t).copy() for x_t in x]
    one.reset()
    for t, x_t in enumerate(x):
        one(normal(4, 3))
        assert np.array_equal(other(x_t), expected[t])


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
@pytest.mark.parametrize("N", [1, 200])
def test_it_has_the_parameters_of_the_moment_it_was_made(cell, N):
    rnn, x = ba.RNN(3, 8, 2, cell=cell, num_layers=2), normal(5, N, 3)
    expected, _ = rnn(x)
    step = rnn.streamer(N)
    for value in rnn.params.values():
        value += 1
    assert all(np.allclose(step(x_t), y, atol=1e-5) for x_t, y in zip(x, expected, strict=True))
    expected, _ = rnn(x[:1], step.state)
    assert np.allclose(rnn.streamer(N, step.state)(x[0]), expected[0], atol=1e-5)


# ---- errors -----------------------------------------------------------------------------------------------

X_T = normal(4, 3)
WRONG = [
    ({}, X_T[:3], ValueError, "x_t has shape (3, 3); expected (N, I) = (4, 3)"),
    ({}, X_T[:, :2], ValueError, "x_t has shape (4, 2); expected (N, I) = (4, 3)"),
    ({}, X_T[:1], ValueError, "x_t has shape (1, 3); expected (N, I) = (4, 3)"),  # NumPy would broadcast it
    ({}, X_T[0], ValueError, "x_t has shape (3,); expected (N, I) = (4, 3)"),
    ({}, X_T[None], ValueError, "of whole sequences give one step, x_t[t], or call rnn(x_t, step.state)"),
    ({}, X_T[:, 0], ValueError, "of floats that are tokens use rnn.asarray(x_t, dtype='int64')"),
    ({}, X_T.astype("float64"), TypeError, "x_t has dtype float64, but this RNN computes in float32: use rnn.asarray(x_t)"),
    ({}, X_T.astype(int), ValueError, "x_t has integers in shape (4, 3); expected (N,) = (4,); for features use rnn.asarray(x_t"),
    ({}, X_T > 0, TypeError, "x_t has dtype bool"),
    ({}, X_T.tolist(), TypeError, "x_t is a list, but this RNN is on cpu: expected a numpy array on cpu; use rnn.asarray(x_t)"),
    ({}, None, TypeError, "x_t is a NoneType; expected a numpy array on cpu"),
    ({}, np.float32(1), ValueError, "x_t has shape (); expected (N, I) = (4, 3)"),
    ({}, np.ma.masked_greater(X_T, 0), TypeError, "x_t is a MaskedArray; expected a plain array"),
    ({}, array_api_strict.asarray(X_T), TypeError, "x_t is a array_api_strict"),
    ({"members": 2}, normal(3, 4, 3), ValueError, "x_t has shape (3, 4, 3); expected (N, I) = (4, 3) or (E, N, I) = (2, 4, 3)"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "x_t", "kind", "message"), WRONG, ids=[row[-1] for row in WRONG])
@pytest.mark.parametrize("warm", [False, True])
def test_an_input_that_does_not_fit_is_named_and_changes_nothing(more, x_t, kind, message, warm):
    rnn = ba.RNN(3, 8, 2, **more)
    step, other = rnn.streamer(4), rnn.streamer(4)
    if warm:
        step(X_T), other(X_T)
    with pytest.raises(kind, match=re.escape(message)):
        step(x_t)
    assert np.array_equal(step(X_T), other(X_T))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("make", [lambda: "cpu", lambda: ba.Backend(np)], ids=["numpy", "portable"])
def test_tokens_that_do_not_fit_are_named_and_change_nothing(make, warm):
    tokens, device = np.array([0, 2, 1, 0]), make()
    for more, wrong, message in [
        ({}, [0, 3, 1, 0], "x_t[1]=3; expected 0 to 2 (tokens below input_size)"),
        ({}, [0, 0, 0, -1], "x_t[3]=-1; expected 0 to 2"),
        ({"members": 2}, [[0, 0, 0, 0], [0, 0, 9, 0]], "x_t[1, 2]=9; expected 0 to 2"),
        ({}, [0, 0, 0], "x_t has integers in shape (3,); expected (N,) = (4,)"),
        ({"members": 2}, [[0] * 4] * 3, "x_t has integers in shape (3, 4); expected (N,) = (4,) or (E, N) = (2, 4)"),
    ]:
        rnn = ba.RNN(3, 8, 2, device=device, **more)
        step, other = rnn.streamer(4), rnn.streamer(4)
        if warm:
            step(tokens), other(tokens)
        with pytest.raises(ValueError, match=re.escape(message)):
            step(np.array(wrong))
        assert np.array_equal(step(tokens), other(tokens))
        with pytest.raises(TypeError, match="x_t has floats, but this streamer was given tokens before; make another"):
            step(X_T)
        assert np.array_equal(step(tokens), other(tokens))


@needs_torch
def test_tensors_of_autograd_and_of_other_devices_are_refused_in_every_step():
    import torch

    rnn = ba.RNN(3, 8, 2, device=ba.Backend(torch))
    step, x_t = rnn.streamer(4), torch.from_numpy(X_T)
    for _ in range(2):
        with pytest.raises(TypeError, match=r"x_t is tracked by torch's autograd, .*; pass x_t\.detach\(\)"):
            step(x_t.clone().requires_grad_())
        with pytest.raises(TypeError, match=r"x_t is a numpy\.ndarray"):
            step(X_T)
        with pytest.raises(TypeError, match=r"x_t is a torch\.Tensor on meta"):
            step(x_t.to("meta"))
        step(x_t)


@pytest.mark.parametrize(
    ("more", "arguments", "kind", "message"),
    [
        ({"bidirectional": True}, {}, ValueError, r"bidirectional=True, but a stream has no end to read from; call rnn\(x\)"),
        ({"reverse": True}, {}, ValueError, r"reverse=True, but a stream has no end to read from; call rnn\(x\)"),
        ({}, {"N": 0}, ValueError, "N=0 is too small; expected a whole number of at least 1"),
        ({}, {"N": 2.0}, TypeError, r"N=2\.0 is a float"),
        ({}, {"state": normal(1, 1, 4, 8)}, TypeError, r"state is a ndarray; expected bptt_array\.State\(h=…\)"),
        ({}, {"state": ba.State(normal(1, 1, 3, 8))}, ValueError, r"state\.h has shape .*; expected \(L, D, N, H\) = \(1, 1, 4, 8\)"),
        ({"cell": "lstm"}, {"state": ba.State(normal(1, 1, 4, 8))}, ValueError, r"state\.c is missing"),
    ],
)  # fmt: skip
def test_what_no_streamer_can_be_made_of_says_why(more, arguments, kind, message):
    with pytest.raises(kind, match=message):
        ba.RNN(3, 8, 2, **more).streamer(**{"N": 4, **arguments})


@pytest.mark.parametrize("dtype", ["uint64", ">u8"])
def test_a_token_that_int64_does_not_hold_is_named_as_it_was_given(dtype):
    step, tokens = ba.RNN(3, 8, 2).streamer(2), np.array([0, 2**63 + 1], dtype)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^x_t\[1\]={2**63 + 1}; expected 0 to 2 \(tokens below input_size\)"):
            step(tokens)
    step(tokens % 3)


def test_states_and_rows_that_do_not_fit_say_why_and_change_nothing():
    step = ba.RNN(3, 8, 2).streamer(4)
    step(X_T)
    before = step.state.h
    with pytest.raises(ValueError, match=r"state\.h has shape \(1, 4, 8\); expected \(L, D, N, H\)"):
        step.state = ba.State(before[0])
    with pytest.raises(TypeError, match="state is a NoneType"):
        step.state = None
    for rows, kind, message in [
        ([0, 4], ValueError, r"rows\[1\]=4; expected 0 to 3, numbers of sequences, or N=4 bools"),
        (-1, ValueError, r"rows\[0\]=-1; expected 0 to 3"),
        ([True, False], ValueError, r"rows has shape \(2,\); expected \(N,\) = \(4,\)"),
        (np.ones(4), TypeError, r"rows has dtype float64; expected bool: .*; use np\.asarray\(rows\) != 0"),
        ("all", TypeError, "rows is a str; expected a list or array of N=4 bools, or numbers of sequences"),
        ([[0], [1, 2]], ValueError, "rows=.* is ragged; expected N=4 bools, or numbers of sequences"),
        (True, TypeError, "rows is a bool"),
        ([[0], [1]], ValueError, r"rows has shape \(2, 1\); expected numbers of sequences \(n,\), or N=4 bools"),
    ]:
        with pytest.raises(kind, match=message):
            step.reset(rows)
    with pytest.raises(AttributeError, match="Streamer has no setting 'stat': expected state"):
        step.stat = ba.State(before)
    assert np.array_equal(step.state.h, before)


def test_it_is_neither_pickled_nor_copied_and_the_way_out_works():
    rnn = ba.RNN(3, 8, 2)
    step = rnn.streamer(4)
    step(X_T)
    for how in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"a Streamer can be neither pickled nor copied.*rnn\.streamer\(N, state\)"):
            how(step)
    there, state = pickle.loads(pickle.dumps((rnn, step.state)))
    assert np.array_equal(there.streamer(4, state)(X_T), step(X_T))


# ---- what a step costs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
@pytest.mark.parametrize("more", [{}, {"members": 2}, {"num_layers": 2, "output": "tanh"}], ids=str)
@pytest.mark.parametrize("tokens", [False, True])
def test_a_step_on_numpy_allocates_nothing(cell, more, tokens):
    N, O = 256, 128  # noqa: E741
    rnn = ba.RNN(32, 256, O, cell=cell, **more)
    step = rnn.streamer(N)
    x = RNG.integers(0, 32, (3, N)) if tokens else normal(3, N, 32)
    for x_t in x:
        step(x_t)
    gc.collect()
    tracemalloc.start()
    try:
        for x_t in x:
            y = step(x_t)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert y is step(x[0])
    assert held < 4000  # views, and numbers
    # less than half of what it returns, the smallest of its arrays; NumPy reads what has gaps through small buffers
    assert peak < N * O * 4 / 2


def test_a_streamer_holds_no_more_than_it_computes_with():
    V, H = 2000, 64
    rnn, N = ba.RNN(V, H, 2), 4
    weights = sum(value.nbytes for value in rnn.params.values())
    rnn.streamer(N)(np.zeros(N, int))
    tracemalloc.start()
    try:
        step = rnn.streamer(N)
        step(np.zeros(N, int))
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert weights < held < 1.1 * weights


#: Launches of a step of a layer on CUDA beside its two products: b_h, and the cell's functions.
LAUNCHES = {"tanh": 2, "relu": 2, "lstm": 3, "gru": 3}


@needs_counters
@pytest.mark.parametrize("device", cuda)
@pytest.mark.parametrize("cell", LAUNCHES)
@pytest.mark.parametrize("more", [{}, {"num_layers": 3}, {"members": 2}], ids=str)
def test_a_step_on_cuda_launches_little_and_never_waits(device, cell, more):
    import gpuemu

    rnn = ba.RNN(3, 8, 2, cell=cell, device=device, **more)
    for x in (normal(4, 3), np.array([0, 2, 1, 0])):
        step, x_t = rnn.streamer(4), rnn.asarray(x)
        step(x_t), step(x_t)
        with gpuemu.count() as counted:
            for _ in range(10):
                step(x_t)
        assert counted.syncs == counted.implicit_syncs == counted.d2h == counted.h2d == 0
        tokens, members = x.ndim == 1, rnn.members is not None
        assert counted.gemms == 10 * (2 * rnn.num_layers + 1 - tokens)
        expected = LAUNCHES[cell] * rnn.num_layers + 1 + tokens  # b_y; columns looked up
        # Products of several matrices do not add up, nor read an operand that members share.
        assert 10 * expected <= counted.launches <= 10 * (expected + 4 * members)


@needs_counters
@pytest.mark.parametrize("device", cuda)
def test_rows_on_cuda_begin_anew_without_a_wait(device):
    import gpuemu

    rnn = ba.RNN(3, 8, 2, cell="lstm", device=device)
    step, x_t = rnn.streamer(4), rnn.asarray(normal(4, 3))
    rows = rnn.backend.from_host(np.array([True, False, True, False]))
    step(x_t), step.reset(rows)
    step(x_t)
    with gpuemu.count() as counted:
        step.reset(rows)
    assert counted.syncs == counted.implicit_syncs == counted.d2h == 0
    assert np.array_equal(rnn.backend.to_host(step.state.h)[0, 0].any(axis=-1), [False, True, False, True])
