"""What a time step costs where nothing is timed: operations on any namespace, allocations on NumPy."""

import copy
import subprocess
import sys
import threading
import tracemalloc
from types import FunctionType

import array_api_strict
import numpy as np
import pytest
from conftest import needs_torch

import bptt_array as ba
from bptt_array.recurrence import backward_, forward_
from bptt_array.workspace import Loan, Workspace

CELLS = ("tanh", "relu")


@pytest.fixture
def operations(monkeypatch):
    """A list that every function and operator of array_api_strict writes its name to when it is called."""
    calls = []

    def counted(name, function):
        def call(*args, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)

        return call

    for name, value in list(vars(array_api_strict).items()):
        if isinstance(value, FunctionType) and not name.startswith("_"):
            monkeypatch.setattr(array_api_strict, name, counted(name, value))
    kind = type(array_api_strict.zeros(1))
    operators = [a + b for a in ("", "i", "r") for b in ("add", "sub", "mul", "truediv", "matmul", "pow")]
    for name in [f"__{name}__" for name in [*operators, "neg", "abs", "gt", "ge", "lt", "le", "eq", "ne", "setitem"]]:
        monkeypatch.setattr(kind, name, counted(name, getattr(kind, name)))
    return calls


class Operations:
    """Names of the operations of array_api_strict that were called."""

    def __init__(self, calls):
        self.calls = calls
        self.backend = ba.Backend(array_api_strict)

    def of(self, call):
        self.calls.clear()
        call()
        return len(self.calls)


class TorchOperations:
    """The same of torch: every call that dispatches, but for views and questions about an array."""

    FREE = ("__get__", "__getitem__", "reshape", "view", "device", "dtype", "ndim", "shape")

    def __init__(self):
        import torch

        self.backend = ba.Backend(torch)

    def of(self, call):
        from torch.overrides import TorchFunctionMode

        calls = []

        class Counting(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                if not (function.__name__ == "to" and result is args[0]):  # of the dtype that it has
                    calls.append(function.__name__)
                return result

        with Counting():
            call()
        return sum(name not in TorchOperations.FREE for name in calls)


@pytest.fixture(params=["strict", pytest.param("torch", marks=needs_torch)])
def counted(request):
    if request.param == "torch":
        return TorchOperations()
    return Operations(request.getfixturevalue("operations"))


@pytest.mark.parametrize("cell", CELLS)
def test_the_portable_form_takes_at_most_four_operations_forward_and_five_backward(cell, counted):
    backend = counted.backend
    rnn = ba.RNN(2, 3, cell=cell, device=backend)

    def count(call, steps):
        x, target = backend.zeros((steps, 2, 2), backend.xp.float32), backend.zeros((steps, 2, 3), backend.xp.float32)
        return counted.of(lambda: call(x, target))

    def per_step(call):
        count(call, 1)  # what is made once is there
        return (count(call, 12) - count(call, 4)) / 8

    forward = per_step(lambda x, target: rnn(x))
    both = per_step(lambda x, target: rnn.loss_and_grad(x, target))
    assert forward in (3, 4)  # product, sum, f: fewer would mean that they were not counted
    assert both - forward in (3, 4, 5)


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_allocated_per_time_step_on_numpy(cell):
    S, N, H = 200, 64, 256
    row = N * H * 4
    backend, f = ba.backend.NumpyBackend(), ba.cells.CELLS[cell]
    rng = np.random.default_rng(0)
    W = rng.standard_normal((H, H)).astype("float32") / 32
    hs = rng.standard_normal((S + 1, N, H)).astype("float32")
    dhs, slopes = hs[1:].copy(), np.empty_like(hs[1:])
    products = backend.accumulator(W.T, hs[0], S), backend.accumulator(W, hs[0], S)

    def peak(call):
        call()
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert row == 65536
    assert peak(lambda: forward_(backend, f, products[0], hs)) < row / 4
    back = peak(lambda: backward_(backend, f, products[1], hs, dhs, slopes))
    assert back < 1.25 * row + 8192 * 5  # dh_0, which is returned; a cast of [h > 0] goes through 8192 entries


def step_of(rnn, T=50, N=32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((T, N, rnn.input_size)).astype(rnn.dtype)
    target = rng.standard_normal((N, rnn.hidden_size)).astype(rnn.dtype)
    return lambda **more: rnn.loss_and_grad(x, target, **more)


def test_the_second_training_step_uses_the_states_of_the_first_again():
    rnn = ba.RNN(4, 256, readout="last")
    step, states = step_of(rnn), 50 * 32 * 256 * 4
    peaks = []
    for _ in range(2):
        tracemalloc.start()
        step()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > 3 * states  # states, gradients, slopes
    assert peaks[1] < states
    kept = sum(array.nbytes for array in rnn._workspace.arrays)
    step_of(rnn, T=5)()
    assert sum(array.nbytes for array in rnn._workspace.arrays) < kept / 5  # those of the last step only
    assert copy.deepcopy(rnn)._workspace.arrays == []
    ba.RNN.to(rnn, ba.Backend(array_api_strict))
    assert rnn._workspace.arrays == []


@pytest.mark.parametrize("more", [{}, {"truncate": 7}, {"lengths": [50, 0, 9] + [31] * 29}], ids=str)
def test_what_was_given_back_is_never_read(more, monkeypatch):
    rnn = ba.RNN(4, 16, readout="last")
    rnn.backend = type(rnn.backend)()
    rnn.backend.segment_bytes = 5 * 32 * 16 * 4  # several segments a window
    step = step_of(rnn)
    flat = lambda result: [result[0], result[2].h, result[1].state.h, *result[1].params.values()]  # noqa: E731

    def spoiling(loan, array, give_back=Loan.give_back):
        array[...] = np.nan
        give_back(loan, array)

    expected = flat(step(**more))
    monkeypatch.setattr(Loan, "give_back", spoiling)
    for one, other in zip(flat(step(**more)), expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("more", [{}, {"truncate": 7}, {"lengths": [50, 0, 9] + [31] * 29}], ids=str)
def test_what_is_left_in_the_workspace_is_never_read(more):
    rnn = ba.RNN(4, 16, readout="last")
    step = step_of(rnn)
    flat = lambda result: [result[0], result[2].h, result[1].state.h, *result[1].params.values()]  # noqa: E731
    first = [np.array(a, copy=True) for a in flat(step(**more))]
    held = flat(step(**more))  # results of a step, which the next must not write to
    for array in rnn._workspace.arrays:
        array[...] = np.nan
    assert rnn._workspace.arrays
    for results in (held, flat(step(**more)), held):
        for one, other in zip(first, results, strict=True):
            assert np.array_equal(one, other)


def test_threads_that_share_a_network_share_no_array():
    rnn = ba.RNN(4, 16, readout="last")
    expected = {seed: float(step_of(rnn, seed=seed)()[0]) for seed in range(4)}
    found = {}

    def work(seed):
        step = step_of(rnn, seed=seed)
        found[seed] = {float(step()[0]) for _ in range(30)}

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: {value} for seed, value in expected.items()}


def test_a_loan_gives_each_array_to_one_user():
    workspace, backend = Workspace(), ba.backend.NumpyBackend()
    loan = Loan(backend, workspace)
    a, b = loan.empty((2, 3), "float32"), loan.empty((2, 3), "float32")
    assert a is not b
    loan.give_back(a)
    assert loan.empty((2, 3), "float32") is a
    assert loan.empty((2, 3), "float64") is not a
    loan.end()
    later, at_once = Loan(backend, workspace), Loan(backend, workspace)
    assert {id(later.empty((2, 3), "float32")) for _ in range(2)} == {id(a), id(b)}
    assert id(at_once.empty((2, 3), "float32")) not in {id(a), id(b)}


def test_importing_the_library_imports_no_framework():
    code = "import sys, bptt_array; print(*{'cupy', 'torch', 'jax', 'matplotlib', 'tqdm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
