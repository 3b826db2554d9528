"""What is pickled, copied and loaded again is the same to the bit, where it was, and shares nothing."""

import copy
import io
import multiprocessing
import pickle
import re

import numpy as np
import pytest
from conftest import BACKENDS, needs_torch
from every_optimizer import each_optimizer

import bptt_array as ba
from bptt_array.backend import NumpyBackend, resolve
from bptt_array.rnn.cells import CELLS

T, N, I, H, O = 5, 3, 2, 4, 2  # noqa: E741

#: Options, each of another kind of network.
NETWORKS = {
    "tanh": {},
    "relu, members": {"cell": "relu", "members": 2, "init": "identity"},
    "lstm, two layers and directions": {"cell": "lstm", "num_layers": 2, "bidirectional": True, "dropout": 0.3},
    "gru, last": {"cell": "gru", "readout": "last", "output": "softmax", "time_major": False, "seed": 7},
    "projected": {"cell": "lstm", "proj_size": 2, "num_layers": 2},
    "gru_reset_before": {"cell": "gru_reset_before"},
    "no readout": {"output_size": None, "recurrent_dropout": 0.2},
}


class Leak(ba.Cell):
    """``h_t = a h_{t-1} + z_t``, with a setting of its own."""

    in_place = True

    def __init__(self, a):
        self.a = a

    def forward_(self, backend, params, product):
        add_product = product.adding()

        def step_(h_before, h):
            add_product(h, h_before)
            h += self.a * h_before

        return step_

    def backward_(self, backend, params, product):
        add_product = product.adding()

        def step_(dz, dh, dh_before):
            dz[...] = dh
            dh_before += self.a * dh
            add_product(dh_before, dz)

        return step_


def network(kind="tanh", device="cpu", **more):
    return ba.RNN(**{"input_size": I, "hidden_size": H, "output_size": O} | NETWORKS[kind] | more, device=device)


def draw(rnn, seed=0):
    """Inputs of a network."""
    return rnn.asarray(np.random.default_rng(seed).standard_normal((T, N, I) if rnn.time_major else (N, T, I)))


def bits(rnn):
    return {name: (rnn.backend.to_host(a).tobytes(), tuple(a.shape), str(a.dtype)) for name, a in rnn.params.items()}


def gradient(rnn):
    y, _, backward = rnn.forward(draw(rnn), dropout_seed=3)
    return {name: rnn.backend.to_host(grad).tobytes() for name, grad in backward(y).params.items()}


def check_same(rnn, other):
    assert type(other) is type(rnn)
    assert other.architecture == rnn.architecture
    assert other.backend == rnn.backend
    assert all(other.backend.owns(value) for value in other.params.values())
    assert bits(other) == bits(rnn)
    assert list(other.params) == list(rnn.params)
    assert gradient(other) == gradient(rnn)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("make_backend", "dtypes"), BACKENDS)
def test_a_pickled_network_is_the_same_to_the_bit_where_it_was(make_backend, dtypes, kind):
    for dtype in dtypes:
        rnn = network(kind, make_backend(), dtype=dtype)
        rnn(draw(rnn))  # what a call leaves behind travels with nothing
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):  # devices of array_api_strict know no older one
            other = pickle.loads(pickle.dumps(rnn, protocol))
            assert bits(other) == bits(rnn)
        check_same(rnn, other)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_protocol_and_pickler_will_do(kind):
    rnn = network(kind)
    rnn.params["l0.b_h"].reshape(-1)[:3] = np.inf, -0.0, np.frombuffer(b"\x01\x02\xc0\x7f", "<f4")[0]  # a rare NaN
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert bits(pickle.loads(pickle.dumps(rnn, protocol))) == bits(rnn)
        buffer = io.BytesIO()
        pickle._Pickler(buffer, protocol).dump(rnn)  # written in Python: others, such as joblib's, are made from it
        assert bits(pickle.loads(buffer.getvalue())) == bits(rnn)


@needs_torch
def test_torch_saves_and_loads_a_network_in_a_dictionary():
    import torch

    rnn, buffer = network(), io.BytesIO()
    torch.save({"network": rnn, "epoch": 3}, buffer)
    buffer.seek(0)
    check_same(rnn, torch.load(buffer, weights_only=False)["network"])


def outputs(rnn, x):
    return rnn(x)[0], rnn.architecture.cell is CELLS.get(rnn.cell), rnn.backend is resolve("cpu")


@pytest.mark.parametrize("cell", ["lstm", Leak(0.5)], ids=str)
def test_a_network_goes_to_a_process_that_was_started_afresh(cell):
    rnn = network(cell=cell)
    x = draw(rnn)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        y, of_library, same_place = pool.apply(outputs, (rnn, x))
    assert np.array_equal(y, rnn(x)[0])
    assert of_library == (cell == "lstm")
    assert same_place


def test_cells_of_the_library_and_its_backends_are_one_of_each_also_after_pickling():
    for name, cell in CELLS.items():
        assert pickle.loads(pickle.dumps(cell)) is cell
        assert pickle.loads(pickle.dumps(network(cell=name))).architecture.cell is cell
        assert copy.deepcopy(network(cell=name)).architecture.cell is cell
    assert pickle.loads(pickle.dumps(resolve("cpu"))) is resolve("cpu")


def test_a_cell_of_ones_own_is_pickled_with_its_settings():
    rnn = network(cell=Leak(0.25), bidirectional=True)
    other = pickle.loads(pickle.dumps(rnn))
    assert other.architecture.cell.a == 0.25
    assert other.architecture.cell is not rnn.architecture.cell
    assert gradient(other) == gradient(rnn)


@pytest.mark.parametrize(("make_backend", "dtypes"), BACKENDS)
def test_a_pickled_backend_is_the_same_place(make_backend, dtypes):
    backend = make_backend()
    other = pickle.loads(pickle.dumps(backend))
    assert other == backend
    assert hash(other) == hash(backend)
    assert other.name == backend.name
    with backend.active():
        assert other.owns(backend.zeros((2,), backend.dtype("float32")))
    tuned = make_backend()
    tuned.segment_bytes, tuned.temporaries = 1000, True
    other = pickle.loads(pickle.dumps(tuned))
    assert (other.segment_bytes, other.temporaries) == (1000, True)
    assert pickle.loads(pickle.dumps(resolve("cpu"))).segment_bytes == NumpyBackend.segment_bytes  # not of all others


def test_backends_are_equal_where_they_are_the_same_place():
    strict = pytest.importorskip("array_api_strict")
    here, there = ba.Backend(strict), ba.Backend(strict, strict.Device("device1"))
    assert here == ba.Backend(strict)
    assert here != there
    assert ba.Backend(np) == ba.Backend(np) != resolve("cpu")  # the portable form is another one
    assert resolve("cpu") == NumpyBackend()
    assert len({here, there, ba.Backend(strict), resolve("cpu"), NumpyBackend(), ba.Backend(np)}) == 4
    assert here != "cpu"


def test_a_backend_of_a_namespace_that_nobody_can_import_says_so_and_its_way_out_works():
    rnn = network(device=ba.Backend(np))
    vars(rnn.backend)["xp"] = type("Namespace", (), {"__name__": "made here"})
    with pytest.raises(TypeError, match=r"no module that another process could import; move to the CPU first") as error:
        pickle.dumps(rnn.backend)
    assert "rnn.to('cpu')" in str(error.value)
    rnn = network(device=ba.Backend(np))
    assert pickle.loads(pickle.dumps(rnn.to("cpu"))).backend is resolve("cpu")


def test_a_network_with_parameters_that_do_not_fit_is_not_pickled():
    rnn = network()
    rnn.params["b_y"] = np.zeros(7, "f")
    with pytest.raises(ValueError, match=r"params\['b_y'\] has shape \(7,\)"):
        pickle.dumps(rnn)


class Named(ba.RNN):
    """A user's own class, with an attribute of its own."""

    def __init__(self, *arguments, label, **more):
        super().__init__(*arguments, **more)
        self.label = label


def test_classes_made_of_a_network_keep_what_they_have():
    rnn = Named(I, H, O, label="mine")
    for other in (pickle.loads(pickle.dumps(rnn)), copy.deepcopy(rnn), copy.copy(rnn), rnn.copy()):
        check_same(rnn, other)
        assert other.label == "mine"


def test_a_backward_function_says_that_it_stays_here_and_what_to_send_in_its_place():
    rnn = network("lstm, two layers and directions")
    x = draw(rnn)
    y, _, backward = rnn.forward(x, dropout_seed=1)
    with pytest.raises(TypeError, match=re.escape("a BackwardFunction cannot be pickled")) as error:
        pickle.dumps(backward)
    assert "Pickle the Gradients that it returns, or the network and x, and call rnn.forward(x) there" in str(
        error.value
    )
    expected = backward(y)
    sent = pickle.loads(pickle.dumps(expected))
    there, x_there = pickle.loads(pickle.dumps((rnn, x)))
    again = there.forward(x_there, dropout_seed=1)[2](y)
    copied = copy.deepcopy(backward)(y)
    for found in (sent, again, copied):
        assert all(np.array_equal(found.params[name], grad) for name, grad in expected.params.items())
        assert np.array_equal(found.state.c, expected.state.c)


@each_optimizer
@pytest.mark.parametrize(("make_backend", "dtypes"), BACKENDS)
def test_a_pickled_or_copied_optimizer_goes_on_to_the_same_bits(make_backend, dtypes, make):
    rnn, optimizer = network("gru, last", make_backend(), dtype=dtypes[-1]), make()
    grads = rnn.copy().params
    optimizer.update(rnn.params, grads)
    optimizer.lr = 0.03
    others = [pickle.loads(pickle.dumps((rnn, optimizer), protocol)) for protocol in (2, pickle.HIGHEST_PROTOCOL)]
    others.append(copy.deepcopy((rnn, optimizer)))
    optimizer.update(rnn.params, grads)
    for other, of_other in others:
        assert bits(other) != bits(rnn)  # nothing is shared
        of_other.update(other.params, grads)
        assert bits(other) == bits(rnn)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("make_backend", "dtypes"), BACKENDS)
def test_a_copy_is_a_network_of_its_own(make_backend, dtypes, kind):
    rnn = network(kind, make_backend(), dtype=dtypes[0])
    before, other = bits(rnn), rnn.copy()
    check_same(rnn, other)
    assert other.backend is rnn.backend
    for changed, factor in ((rnn, 0.5), (other, 0.25)):
        ba.SGD(factor).update(changed.params, changed.params)  # in place
        assert (bits(other) == before) == (changed is rnn)
    assert bits(rnn) != bits(other)


def test_what_is_copied_together_stays_together():
    rnn = network()
    other, params = copy.deepcopy((rnn, rnn.params))
    assert other.params is params
    assert copy.copy(rnn).params is rnn.params  # a shallow copy shares them


# ---- parameters that come back ----------------------------------------------------------------------------


@pytest.mark.parametrize(("make_backend", "dtypes"), BACKENDS)
def test_a_snapshot_restores_what_an_optimizer_changed_in_place(make_backend, dtypes):
    rnn = network("lstm, two layers and directions", make_backend(), dtype=dtypes[-1])
    best, before, arrays = rnn.copy(), bits(rnn), dict(rnn.params)
    x, optimizer = draw(rnn), ba.Adam(0.1)
    for step in range(2):
        y, _, backward = rnn.forward(x, dropout_seed=step)
        optimizer.update(rnn.params, backward(y).params)
    assert bits(rnn) != before
    assert rnn.load_params(best.params) is rnn
    assert bits(rnn) == before
    assert all(rnn.params[name] is array for name, array in arrays.items())  # in place, for all who hold them
    assert gradient(rnn) == gradient(best)
    optimizer.update(rnn.params, backward(y).params)
    assert bits(best) == before


def test_parameters_of_any_order_device_and_dtype_are_taken():
    rnn, wide = network(), network(dtype="float64", seed=1)
    expected = {name: value.astype("f") for name, value in wide.params.items()}
    strict = pytest.importorskip("array_api_strict")
    for params in (
        wide.params,
        dict(reversed(wide.params.items())),
        {name: value.astype(">f8") for name, value in wide.params.items()},
        {name: value.tolist() for name, value in wide.params.items()},
        {name: strict.asarray(value) for name, value in wide.params.items()},
    ):
        other = network().load_params(params)
        assert all(np.array_equal(other.params[name], value) for name, value in expected.items())
        assert list(other.params) == list(rnn.params)
        assert all(value.dtype == np.float32 for value in other.params.values())
    assert bits(wide) == bits(network(dtype="float64", seed=1))


def test_parameters_that_cannot_be_written_to_are_replaced_and_left_alone():
    rnn = network()
    fixed = np.full(O, 7, "f")
    fixed.flags.writeable = False
    rnn.params["b_y"] = fixed
    rnn.params["l0.b_h"] = np.broadcast_to(np.float32(5), (H,))
    rnn.load_params(network(seed=3).params)
    assert bits(rnn) == bits(network(seed=3))
    assert fixed.tolist() == [7.0] * O


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda params: None, TypeError, "params is a NoneType; expected a dictionary of arrays, such as rnn.params"),
        (lambda params: {"b_y": params["b_y"]}, ValueError, r"params has keys \['b_y'\]; expected \['W_hy', 'b_y'"),
        (lambda params: params | {"W": 1}, ValueError, r"params has keys \['W', 'W_hy'"),
        (lambda params: params | {"b_y": np.ones(3)}, ValueError, r"params\['b_y'\] has shape \(3,\); expected \(2,\)"),
        (lambda params: params | {"b_y": "text"}, TypeError, r"params\['b_y'\] has dtype <U4; expected real numbers"),
        (
            lambda params: params | {"b_y": [1e300, 1]},
            ValueError,
            r"params\['b_y'\]\[0\]=1e\+300 does not fit in float32",
        ),
        (lambda params: params | {"b_y": [[1], [1, 2]]}, ValueError, r"params\['b_y'\].* is ragged"),
        (lambda params: params | {"b_y": np.ma.ones(2)}, TypeError, r"params\['b_y'\] is masked"),
    ],
)
def test_parameters_that_do_not_fit_change_nothing(change, kind, message):
    rnn = network()
    before = bits(rnn)
    with pytest.raises(kind, match=message):
        rnn.load_params(change(dict(network(seed=1).params)))
    assert bits(rnn) == before
