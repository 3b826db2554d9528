"""Parity second: the same numbers from every backend, in both dtypes, from inputs that cannot be written to."""

import inspect
from dataclasses import replace

import array_api_strict
import numpy as np
import pytest
from cases import Case, any_case, draw, flat_gradients, make, options
from conftest import backends_and_dtypes, cuda
from hypothesis import given, settings
from hypothesis import strategies as st

import bptt_array as ba
from bptt_array.recurrence import backward_, bias_sum, flat, forward_, project_, weight_sum

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
    Case(tokens=True, I=40),
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
            on_device["x"], on_device["target"], **keywords, truncate=case.truncate, input_grad=input_grad
        )
        alone, _ = rnn.loss(on_device["x"], on_device["target"], **keywords)
        y, _, backward = rnn.forward(on_device["x"], keywords["state"], lengths=case.lengths)
        again, _ = rnn(on_device["x"], keywords["state"], lengths=case.lengths)
        dstate = ba.State(h=on_device["d_last"][None, None, ...])
        given = backward(on_device["dy"], dstate, input_grad=input_grad)
    found = {"loss": loss, "loss alone": alone, "y": y, "y again": again, "state": state.h}
    for array in [*found.values(), *grads.params.values(), *given.params.values(), grads.state.h, given.state.h]:
        assert backend.owns(array)
        assert array.dtype == backend.dtype(dtype)
    assert found["loss"].shape == ()
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


@settings(max_examples=100, deadline=None)
@given(case=any_case(), dtype=st.sampled_from(["float32", "float64"]), name=st.sampled_from(["numpy", "strict"]))
def test_any_combination_of_options_stays_in_its_dtype_and_near_the_reference(case, dtype, name):
    """Random shapes from 1, random lengths from 0; ``results`` asserts dtype and device of every array."""
    backend = ba.Backend({"numpy": np, "strict": array_api_strict}[name])
    expected = results(case, "float64", ba.backend.NumpyBackend(), dtype)
    found = results(case, dtype, backend, dtype)
    for quantity, value in expected.items():
        # small sums of terms of order one lose digits: their error is measured against one
        scale = max(float(np.max(np.abs(value))), 1.0)
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
    broken.tanh_ = wrong.__get__(broken)
    rows = ba.compare_devices(broken)
    assert any(not row.ok for row in rows)
    assert "TOO LARGE" in ba.parity.table(rows)
    broken.tanh_ = lambda z: z.fill(np.nan)
    assert any(row.error == float("inf") for row in ba.compare_devices(broken))


@pytest.mark.parametrize("device", cuda)
def test_a_cuda_device_passes_the_table(device):
    assert [row for row in ba.compare_devices(device) if not row.ok] == []


@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_stacked_weights_run_members_side_by_side(make_backend, dtype):
    """Axes between T and N: six layers in one loop give what each gives alone, on NumPy in float64."""
    rng = np.random.default_rng(0)
    S, lead, N, I, H = 5, (3, 2), 4, 3, 6  # noqa: E741
    cell = ba.cells.CELLS["tanh"]

    def run(backend, dtype, *arrays):
        x, W_xh, W_hh, b_h, h_0, dzs = (backend.from_host(array.astype(dtype)) for array in arrays)
        hs = backend.empty((S + 1, *h_0.shape), h_0.dtype)
        hs[0, ...] = h_0
        project_(backend, hs[1:, ...], x, W_xh, b_h)
        forward_(backend, cell, backend.accumulator(W_hh.mT, h_0, S), hs)
        slopes = backend.empty(dzs.shape, dzs.dtype)
        dh_0 = backward_(backend, cell, backend.accumulator(W_hh, h_0, S), hs, dzs, slopes)
        dz = flat(backend, dzs, W_hh.ndim)
        sums = [weight_sum(backend, dz, flat(backend, a, W_hh.ndim)) for a in (x, hs[:-1, ...])]
        in_time = [np.moveaxis(backend.to_host(array), 0, -3) for array in (hs, dzs)]
        return in_time + [backend.to_host(array) for array in (dh_0, *sums, bias_sum(backend, dz))]

    shapes = [(S, *lead, N, I), (*lead, H, I), (*lead, H, H), (*lead, H), (*lead, N, H), (S, *lead, N, H)]
    arrays = [rng.standard_normal(shape).astype(dtype) / H**0.5 for shape in shapes]
    x, W_xh, W_hh, b_h, h_0, dhs = arrays
    backend = make_backend()
    with backend.active():
        stacked = run(backend, dtype, *arrays)
    for k in np.ndindex(*lead):
        at = (slice(None), *k)
        alone = run(ba.backend.NumpyBackend(), "float64", x[at], W_xh[k], W_hh[k], b_h[k], h_0[k], dhs[at])
        for together, one in zip(stacked, alone, strict=True):
            assert np.max(np.abs(together[k] - one)) <= 4 * S * float(np.finfo(dtype).eps) * max(np.max(np.abs(one)), 1)


@pytest.mark.parametrize("kind", [ba.backend.NumpyBackend, ba.backend.CupyBackend])
def test_backends_override_primitives_under_the_same_signature(kind):
    primitives = [name for name in vars(ba.Backend) if name.endswith("_") and not name.endswith("__")]
    assert len(primitives) >= 4
    for name in [*primitives, "accumulator", "one_hot", "to_host", "active", "owns"]:
        assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(ba.Backend, name)), name


def test_segments_of_any_length_give_the_same_numbers():
    case = Case(output="softmax", lengths=(7, 0, 4, 1))
    expected = results(case, "float64", ba.backend.NumpyBackend(), "float64")
    for segment in range(1, 9):
        found = results(replace(case, segment=segment), "float64", ba.backend.NumpyBackend(), "float64")
        for name, value in expected.items():
            assert np.allclose(found[name], value, rtol=1e-12, atol=1e-14), (segment, name)
