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
from bptt_array.bptt.workspace import Loan, Workspace
from bptt_array.equations.cell import Tape, by_gate
from bptt_array.equations.recurrence import backward_, forward_
from bptt_array.equations.state_product import StateProduct


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


#: The most operations of a time step on any namespace, forward and backward: the product, its sum, and the cell.
OPERATIONS = {"tanh": (4, 5), "relu": (4, 5), "lstm": (17, 16), "gru": (20, 7), "gru_reset_before": (21, 21)}


@pytest.mark.parametrize("cell", OPERATIONS)
def test_the_portable_form_takes_few_operations_a_step(cell, counted):
    backend = counted.backend
    rnn = ba.RNN(2, 3, cell=cell, device=backend)

    def count(call, steps):
        x, target = backend.zeros((steps, 2, 2), backend.xp.float32), backend.zeros((steps, 2, 3), backend.xp.float32)
        return counted.of(lambda: call(x, target))

    def per_step(call):
        count(call, 1)  # what is made once is there
        return (count(call, 12) - count(call, 6)) / 6  # neither mean is over a power of two, which takes one less

    forward = per_step(lambda x, target: rnn(x))
    both = per_step(lambda x, target: rnn.loss_and_grad(x, target))
    most_forward, most_backward = OPERATIONS[cell]
    assert 3 <= forward <= most_forward  # product, sum, f: fewer would mean that they were not counted
    assert 3 <= both - forward <= most_backward


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_allocated_per_time_step_on_numpy(name, members):
    S, N, H = 40, 256, 256
    lead = () if members is None else (members,)
    row = N * H * 4 * (members or 1)
    backend, cell = ba.backend.NumpyBackend(), ba.rnn.cells.CELLS[name]
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype("float32")

    params = {"W_hh": normal(*lead, cell.gates_of_state * H, H) / 32, "b_h": normal(*lead, cell.gates * H)}
    params |= {name: normal(*lead, *shape) for name, shape in cell.own_parameters(H).items()}
    tape = Tape(
        tuple(normal(S + 1, *lead, N, H) for _ in cell.states),
        normal(S, cell.keeps, *lead, N, H) if cell.keeps else None,
    )
    z, W = None if cell.in_place else normal(S, *lead, N, cell.gates * H), params["W_hh"].mT
    if cell.apart(backend):
        z, W = tape.kept[:, : cell.gates], by_gate(backend, W, cell.gates_of_state)
    dstates, dz = tuple(state.copy() for state in tape.states), normal(S, *lead, N, cell.gates * H)
    slopes = normal(S, cell.slopes, *lead, N, H) if cell.slopes else None
    forward = cell.forward_(backend, params, StateProduct(backend, W, (*lead, N), S, None, params))
    product = StateProduct(backend, params["W_hh"], (*lead, N), S, None, params, backward=True)
    backward = cell.backward_(backend, params, product)

    def peak(call):
        call()
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # less than one row: NumPy itself casts [h > 0], and reads what has gaps, through buffers of 8192 entries
    assert peak(lambda: forward_(backend, cell, forward, z, tape)) < row / 2
    assert peak(lambda: backward_(backend, cell, backward, tape, dstates, dz, slopes)) < row / 2


def step_of(rnn, T=50, N=32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((T, N, rnn.input_size)).astype(rnn.dtype)
    target = rng.standard_normal((N, rnn.output_size or rnn.hidden_size)).astype(rnn.dtype)
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
    kept = sum(array.nbytes for array in rnn.calls.workspace.arrays)
    step_of(rnn, T=5)()
    assert sum(array.nbytes for array in rnn.calls.workspace.arrays) < kept / 5  # those of the last step only
    assert copy.deepcopy(rnn).calls.workspace.arrays == []
    ba.RNN.to(rnn, ba.Backend(array_api_strict))
    assert rnn.calls.workspace.arrays == []


def test_the_second_loss_alone_uses_the_states_of_the_first_again():
    rnn = ba.RNN(4, 256, readout="last")
    x, target = (np.ones(shape, "float32") for shape in ((50, 32, 4), (32, 256)))
    (first, _), (again, _) = peak_of(lambda: rnn.loss(x, target), warm=False), peak_of(lambda: rnn.loss(x, target))
    segment = sum(array.nbytes for array in rnn.calls.workspace.arrays)
    assert first > segment > 2 * again


KINDS = [
    {},
    {"cell": "lstm", "num_layers": 2},
    {"cell": "gru", "members": 2, "num_layers": 2},
    {"cell": "lstm", "bidirectional": True, "num_layers": 2},
]
CALLS = [{}, {"truncate": 7}, {"lengths": [50, 0, 9] + [31] * 29}]


def pairs_of_kind_and_call():
    return [(kind, more) for kind in KINDS for more in CALLS if not ("bidirectional" in kind and "truncate" in more)]


@pytest.mark.parametrize(("kind", "more"), pairs_of_kind_and_call(), ids=str)
def test_what_was_given_back_is_never_read(kind, more, monkeypatch):
    rnn = ba.RNN(4, 16, 5, readout="last", **kind)
    rnn.to(type(rnn.backend)())
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


@pytest.mark.parametrize(("kind", "more"), pairs_of_kind_and_call(), ids=str)
def test_what_is_left_in_the_workspace_is_never_read(kind, more):
    rnn = ba.RNN(4, 16, 5, readout="last", **kind)
    step = step_of(rnn)
    flat = lambda result: [result[0], result[2].h, result[1].state.h, *result[1].params.values()]  # noqa: E731
    first = [np.array(a, copy=True) for a in flat(step(**more))]
    held = flat(step(**more))  # results of a step, which the next must not write to
    for array in rnn.calls.workspace.arrays:
        array[...] = np.nan
    assert rnn.calls.workspace.arrays
    for results in (held, flat(step(**more)), held):
        for one, other in zip(first, results, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_threads_that_share_a_network_share_no_array(kind):
    rnn = ba.RNN(4, 16, 5, readout="last", **kind)
    expected = {seed: float(np.sum(step_of(rnn, seed=seed)()[0])) for seed in range(4)}
    found = {}

    def work(seed):
        step = step_of(rnn, seed=seed)
        found[seed] = {float(np.sum(step()[0])) for _ in range(20)}

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: {value} for seed, value in expected.items()}


def peak_of(call, warm=True):
    """Bytes: the most at once, and what stays while the result is held; ``warm``: of the second call."""
    if warm:
        call()
    tracemalloc.start()
    try:
        result = call()
        held, most = tracemalloc.get_traced_memory()
        del result
        return most, held
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("N", [32, 64], ids=["fewer tokens than columns", "more"])
def test_a_backward_function_holds_what_it_needs_and_no_more(N):
    T, H, V = 50, 64, 2000
    rnn = ba.RNN(V, H, 2, cell="lstm", readout="last")
    x = np.random.default_rng(0).integers(0, V, (T, N))
    _, held = peak_of(lambda: rnn.forward(x))
    params = sum(value.nbytes for value in rnn.params.values())
    kept = (5 * T + 2 * (T + 1)) * N * H * 4  # i, f, g, o, tanh(c); h and c
    assert kept + params < held < 1.1 * (kept + params)


def test_inference_in_two_directions_keeps_one_layer_at_a_time():
    x = np.zeros((200, 16, 8), "float32")
    one, four = (ba.RNN(8, 64, cell="lstm", bidirectional=True, num_layers=layers) for layers in (1, 4))
    assert peak_of(lambda: four(x))[0] < 1.5 * peak_of(lambda: one(x))[0]
    assert peak_of(lambda: four.forward(x))[0] > 2 * peak_of(lambda: one.forward(x))[0]  # or nothing was measured


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
