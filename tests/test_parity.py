"""Parity second: the same numbers from every backend, in both dtypes, from inputs that cannot be written to."""

import inspect
import os
import subprocess
import sys
from dataclasses import replace

import array_api_strict
import numpy as np
import pytest
from cases import SOFTMAX, Case, any_case, backward_options, call_options, draw, flat_gradients, make, options, state_of
from conftest import backends_and_dtypes, cuda
from hypothesis import given
from hypothesis import strategies as st

import bptt_array as ba
from bptt_array.backend import cpu_products

#: Each option once, to keep the slow backends bearable.
CHOSEN = [
    Case(),
    Case(cell="relu", segment=100),
    Case(tokens=True, output="softmax", loss="cross_entropy", target="classes", lengths=(7, 0, 4, 1)),
    Case(output="softmax", loss="cross_entropy", target="probabilities"),
    Case(output="sigmoid", loss="binary_cross_entropy", target="probabilities", weights=True),
    Case(output="tanh", lengths=(7, 0, 4, 1), weights=True),
    Case(output="softmax", readout="last", lengths=(7, 0, 4, 1)),
    Case(output_size=False, readout="last"),
    Case(output="sigmoid", truncate=3),
    Case(output="tanh", loss="cubic"),
    Case(output="tanh", loss="mae"),
    Case(loss="huber", delta=0.4, weights=True, reduction="weighted_mean", lengths=(7, 0, 4, 1)),
    Case(**SOFTMAX, ignored=-100, lengths=(7, 0, 4, 1), members=2, shared=False),
    Case(**SOFTMAX, ignored=-100, class_weights=True, smoothing=0.2, weights=True),
    Case(**SOFTMAX | {"target": "probabilities"}, class_weights=True, smoothing=0.2),
    Case(tokens=True, I=40),
    Case(cell="lstm", layers=2, dropout=0.4, recurrent_dropout=0.3, lengths=(7, 0, 4, 1)),
    Case(cell="gru", bidirectional=True, layers=2, dropout=0.4, lengths=(7, 0, 4, 1), readout="last"),
    Case(cell="gru", members=2, tokens=True, output="softmax", loss="cross_entropy", target="classes", truncate=3),
    Case(cell="lstm", members=2, shared=False, bidirectional=True, recurrent_dropout=0.3, weights=True),
    Case(cell="lstm", proj_size=3, layers=2, bidirectional=True, recurrent_dropout=0.3, lengths=(7, 0, 4, 1)),
    Case(T=20, N=2, segment=3, budget=0.1, lengths=(20, 9)),
    Case(T=20, N=2, segment=3, budget=0.2, cell="lstm", layers=2, truncate=9, dropout=0.4),
    Case(T=20, N=2, segment=100, backward="parallel", recurrent_dropout=0.3, members=2, lengths=(20, 9)),
]


def results(case, dtype, backend, rounded_to):
    """Every result on the host; inputs and parameters are rounded to ``rounded_to`` first."""
    arrays = draw(case)
    rounded = {
        name: value.astype(rounded_to) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
        for name, value in arrays.items()
    }
    params = {name: value.astype(rounded_to) for name, value in arrays["params"].items()}
    rnn = make(ba, case, params, dtype, backend)
    on_device = {
        name: None if value is None else rnn.asarray(value) for name, value in rounded.items() if name != "params"
    }
    if backend.name == "cpu":
        for value in on_device.values():
            if value is not None:
                value.flags.writeable = False
    keywords = options(ba, rnn, case, rounded)
    input_grad = not case.tokens
    with backend.active():
        loss, grads, state = rnn.loss_and_grad(
            on_device["x"], on_device["target"], **keywords, **backward_options(rnn, case, rounded)
        )
        alone, _ = rnn.loss(on_device["x"], on_device["target"], **keywords)
        y, _, backward = rnn.forward(on_device["x"], **call_options(ba, rnn, case, rounded), backward=case.backward)
        again, _ = rnn(on_device["x"], **call_options(ba, rnn, case, rounded))
        dstate = state_of(ba, rnn, on_device, "d{}_last")
        given = backward(on_device["dy"], dstate, input_grad=input_grad)
    found = {"loss": loss, "loss alone": alone, "y": y, "y again": again, "state": state.h}
    found |= {"c": state.c} if case.has_c else {}
    for array in [*found.values(), *grads.params.values(), *given.params.values(), grads.state.h, given.state.h]:
        assert backend.owns(array)
        assert array.dtype == backend.dtype(dtype)
    assert found["loss"].shape == (() if case.members is None else (case.members,))
    host = {name: backend.to_host(value) for name, value in found.items()} | flat_gradients(rnn, grads)
    return host | {f"{name} of dy": value for name, value in flat_gradients(rnn, given).items()}


@pytest.mark.parametrize("case", CHOSEN, ids=str)
@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_every_result_equals_that_of_numpy(make_backend, dtype, case):
    backend = make_backend()
    expected = results(case, "float64", ba.backend.NumpyBackend(), dtype)
    found = results(case, dtype, backend, dtype)
    assert found.keys() == expected.keys()
    # eps per step and per layer of products, and once more for good measure; gradients are of order one
    tolerance = 4 * float(np.finfo(dtype).eps) * case.T
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        scale = max(float(np.max(np.abs(value))), 1e-2)
        assert float(np.max(np.abs(found[name] - value))) <= tolerance * scale, name


FROM_THE_HOST = [
    Case(),
    Case(tokens=True, output="softmax", loss="cross_entropy", target="classes", weights=True, lengths=(7, 0, 4, 1)),
    Case(cell="lstm", layers=2, bidirectional=True, readout="last", lengths=(7, 0, 4, 1)),
    Case(cell="lstm", members=2, shared=False, weights=True),
    Case(cell="gru", members=2, truncate=3),
]


@pytest.mark.parametrize("reset", [None, [True, False, True, False]], ids=["no reset", "reset"])
@pytest.mark.parametrize("case", FROM_THE_HOST, ids=str)
@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_what_comes_from_the_host_gives_what_it_gives_from_the_device(make_backend, dtype, case, reset):
    """Inputs, targets, weights and both parts of the initial state: every bit, and nothing of it is written to."""
    backend, arrays = make_backend(), draw(case)
    rnn = make(ba, case, arrays["params"], dtype, backend)
    on_host = {name: a for name, a in arrays.items() if isinstance(a, np.ndarray)}
    on_host = {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in on_host.items()}
    for array in on_host.values():
        array.flags.writeable = False

    def everything(given):
        keywords = options(ba, rnn, case, arrays) | {"weights": given.get("weights"), "reset": reset}
        keywords["state"] = ba.State(**{name: given[f"{name}_0"] for name in ("h", "c") if f"{name}_0" in given})
        call = given["x"], given["target"]
        loss, grads, last = rnn.loss_and_grad(*call, **keywords, truncate=case.truncate, input_grad=not case.tokens)
        alone, last_alone = rnn.loss(*call, **keywords)
        named = {"loss": loss, "alone": alone} | {f"{k} last": a for k, a in vars(last).items() if a is not None}
        named |= {f"{k} last, alone": a for k, a in vars(last_alone).items() if a is not None}
        return {name: backend.to_host(a) for name, a in named.items()} | flat_gradients(rnn, grads)

    with backend.active():
        expected = everything({name: rnn.asarray(a) for name, a in on_host.items()})
        found = everything(on_host)
    assert {"loss", "alone", "h last", "h last, alone", "h_0", *rnn.params} <= found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


@given(case=any_case(), dtype=st.sampled_from(["float32", "float64"]), name=st.sampled_from(["numpy", "strict"]))
def test_any_combination_of_options_stays_in_its_dtype_and_near_the_reference(case, dtype, name):
    """Random shapes from 1, random lengths from 0; ``results`` asserts dtype and device of every array."""
    backend = ba.Backend({"numpy": np, "strict": array_api_strict}[name])
    expected = results(case, "float64", ba.backend.NumpyBackend(), dtype)
    found = results(case, dtype, backend, dtype)
    # every layer rounds, and what is kept by dropout is scaled by 1 / (1 - p) each time
    growth = case.layers / ((1 - case.dropout) * (1 - case.recurrent_dropout)) ** case.layers
    for quantity, value in expected.items():
        # small sums of terms of order one lose digits: their error is measured against one
        scale = max(float(np.max(np.abs(value))), 1.0) * growth
        assert float(np.max(np.abs(found[quantity] - value))) <= 32 * float(np.finfo(dtype).eps) * scale, quantity


@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_training_from_a_seed_takes_the_same_path_everywhere(make_backend, dtype):
    """Three updates with Adam, momentum and clipping: parameters stay together."""

    def train(device, dtype):
        rnn = ba.RNN(5, 6, 4, output="softmax", init="orthogonal", dtype=dtype, device=device, seed=3)
        rng = np.random.default_rng(0)
        x, target = rng.integers(0, 5, (6, 3)), rng.integers(0, 4, (6, 3))
        state = None
        for optimizer in (ba.Adam(1e-2), ba.SGD(0.1, momentum=0.9), ba.Adam(1e-2)):
            for _ in range(2):
                _, grads, state = rnn.loss_and_grad(x, target, "cross_entropy", state=state)
                optimizer.update(rnn.params, ba.clip_by_global_norm(grads.params, 0.5))
        return {name: rnn.backend.to_host(value) for name, value in rnn.params.items()}

    expected = train("cpu", "float64")
    for name, value in train(make_backend(), dtype).items():
        # Adam divides by the size of a gradient: an entry near zero may lose half its digits
        assert np.max(np.abs(value - expected[name])) <= float(np.finfo(dtype).eps) ** 0.5, name


def test_the_table_says_what_is_out_of_bounds(monkeypatch):
    rows = ba.compare_devices("cpu")
    assert {row.quantity for row in rows} >= {"y", "loss", "final state", "dW_hy of loss", "dl0.W_hh of dy, dstate"}
    assert all(row.ok for row in rows)
    assert min(row.bound / row.error for row in rows if row.error) < 20  # the bounds are not for show
    right = ba.backend.NumpyBackend.tanh_

    def wrong(self, z):
        right(self, z)
        z *= 1 + 1e-5

    broken = ba.backend.NumpyBackend()
    vars(broken)["tanh_"] = wrong.__get__(broken)
    rows = ba.compare_devices(broken)
    assert any(not row.ok for row in rows)
    assert "TOO LARGE" in ba.parity.table(rows)
    vars(broken)["tanh_"] = lambda z: z.fill(np.nan)
    assert any(row.error == float("inf") for row in ba.compare_devices(broken))


@pytest.mark.parametrize("device", cuda)
def test_a_cuda_device_passes_the_table(device):
    assert [row for row in ba.compare_devices(device) if not row.ok] == []


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru", "gru_reset_before"])
@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_members_side_by_side_are_single_networks(make_backend, dtype, cell):
    """Member k of an ensemble, on any backend, equals the single network with that seed on NumPy in float64."""
    E, T, N, I, H, O = 3, 5, 4, 3, 6, 2  # noqa: E741
    more = {"cell": cell, "num_layers": 2, "bidirectional": True, "dropout": 0.4, "recurrent_dropout": 0.3}
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((T, N, I)).astype(dtype), rng.standard_normal((T, N, O)).astype(dtype)
    options = {"lengths": [5, 0, 2, 4], "dropout_seed": 9}
    ensemble = ba.RNN(I, H, O, members=E, dtype=dtype, device=make_backend(), seed=4, **more)
    loss, grads, state = ensemble.loss_and_grad(x, target, **options, input_grad=True)
    host = ensemble.backend.to_host
    for k in range(E):
        single = ba.RNN(I, H, O, dtype=dtype, seed=4 + k, **more)
        member = ensemble.member(k)
        assert all(np.array_equal(host(value), single.params[name]) for name, value in member.params.items())
        precise = ba.RNN(I, H, O, dtype="float64", seed=4 + k, **more)
        precise.params = {name: value.astype("float64") for name, value in single.params.items()}
        alone = precise.loss_and_grad(x.astype("float64"), target.astype("float64"), **options, input_grad=True)
        pairs = [(host(loss)[k], alone[0]), (host(state.h)[:, :, k], alone[2].h), (host(grads.x)[:, k], alone[1].x)]
        pairs += [(host(grads.state.h)[:, :, k], alone[1].state.h)]
        pairs += [(host(grads.params[name])[k], value) for name, value in alone[1].params.items()]
        for found, expected in pairs:
            assert found.shape == expected.shape
            scale = max(float(np.max(np.abs(expected))), 1e-2)
            assert float(np.max(np.abs(found - expected))) <= 8 * T * float(np.finfo(dtype).eps) * scale


@pytest.mark.parametrize("kind", [ba.backend.NumpyBackend, ba.backend.CupyBackend])
def test_backends_override_primitives_under_the_same_signature(kind):
    primitives = [name for name in vars(ba.Backend) if name.endswith("_") and not name.endswith("__")]
    assert len(primitives) >= 4
    names = ["accumulator", "multiplier", "elementwise_accumulator", "fused", "over_segment", "one_hot", "rows", "copy"]
    names += ["reshape", "column_reader", "column_sums", "over_rows", "sums_by_index", "sums_by_token"]
    for name in [*primitives, *names, "to_host", "active", "owns"]:
        assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(ba.Backend, name)), name


@pytest.mark.parametrize(("cell", "H"), [("tanh", 256), ("lstm", 64), ("lstm", 128), ("gru", 128)])
def test_rows_that_lie_apart_in_memory_give_the_same_numbers(cell, H):
    """Products whose rows would fall on each other in the cache have a gap behind each; the portable form has none."""
    case = Case(cell=cell, T=30, N=5, H=H, segment=12, recurrent_dropout=0.3)
    assert case.T * case.N >= cpu_products._ROWS_THAT_PAY_FOR_A_COPY
    gates = ba.rnn.cells.CELLS[cell].gates
    assert not cpu_products._rows_apart((5, gates * H), "float64").flags.c_contiguous
    expected = results(case, "float64", ba.Backend(np), "float64")
    for name, value in results(case, "float64", ba.backend.NumpyBackend(), "float64").items():
        assert np.allclose(value, expected[name], rtol=1e-11, atol=1e-13), name


def test_segments_of_any_length_give_the_same_numbers():
    case = Case(output="softmax", lengths=(7, 0, 4, 1))
    expected = results(case, "float64", ba.backend.NumpyBackend(), "float64")
    for segment in range(1, 9):
        found = results(replace(case, segment=segment), "float64", ba.backend.NumpyBackend(), "float64")
        for name, value in expected.items():
            assert np.allclose(found[name], value, rtol=1e-12, atol=1e-14), (segment, name)


#: A training step with products large enough to be shared out to threads; it prints the gradients' sums.
STEP = """
import numpy as np, bptt_array as ba
rng = np.random.default_rng(0)
rnn = ba.RNN(64, 256, 64, cell="lstm", init="orthogonal", dtype="float64")
x, target = rng.standard_normal((12, 64, 64)), rng.standard_normal((12, 64, 64))
loss, grads, _ = rnn.loss_and_grad(x, target, input_grad=True)
print(float(loss), *(float(np.sum(a * rng.standard_normal(a.shape))) for a in [*grads.params.values(), grads.x]))
"""


def test_several_threads_of_the_blas_give_the_same_to_rounding():
    """The tests run beside each other, with one thread each; here are two."""

    def numbers(threads):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", STEP]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
        return np.array(done.stdout.split(), dtype=float)

    one, two = numbers("1"), numbers("2")
    assert one.size == 7
    assert np.max(np.abs(two - one)) <= 1e-9 * np.max(np.abs(one))
