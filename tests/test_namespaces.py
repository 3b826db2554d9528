"""What an array namespace has to have and to do is asked when a backend is made of it, and said in one line."""

import ast
from pathlib import Path

import array_api_strict
import numpy as np
import pytest
from array_api_strict import Device

import bptt_array as ba
from bptt_array import diagnostics
from bptt_array.backend import namespaces
from bptt_array.backend.arrays import on_host
from bptt_array.training.options import Options
from bptt_array.training.trainer import Trainer

OTHERS = r"use NumPy, CuPy, torch or array_api_strict$"
Array = type(array_api_strict.ones(1))
get_item = Array.__getitem__


def copied(array, key):
    return array_api_strict.asarray(get_item(array, key), copy=True)


def copied_rows(array, key):
    """Slices are views, rows are not."""
    return get_item(array, key) if any(isinstance(part, slice) for part in key) else copied(array, key)


def of_slices_that_are_copies(patch):
    patch.setattr(Array, "__getitem__", copied)


def of_rows_that_are_copies(patch):
    patch.setattr(Array, "__getitem__", copied_rows)


def of_turned_arrays_that_are_copies(patch):
    turn = array_api_strict.moveaxis
    patch.setattr(array_api_strict, "moveaxis", lambda x, *at: array_api_strict.asarray(turn(x, *at), copy=True))


def of_reshaped_arrays_that_are_copies(patch):
    shaped = array_api_strict.reshape
    patch.setattr(array_api_strict, "reshape", lambda x, shape: array_api_strict.asarray(shaped(x, shape), copy=True))


def of_arrays_that_take_no_writing(patch):
    def refuse(array, key, value):
        raise TypeError("does not support item assignment")

    patch.setattr(Array, "__setitem__", refuse)


NO_VIEWS = [
    of_slices_that_are_copies,
    of_rows_that_are_copies,
    of_turned_arrays_that_are_copies,
    of_reshaped_arrays_that_are_copies,
    of_arrays_that_take_no_writing,
]


@pytest.mark.parametrize("change", NO_VIEWS, ids=lambda change: change.__name__)
def test_a_namespace_whose_slices_are_no_views_is_refused(monkeypatch, change):
    change(monkeypatch)
    message = r"^xp=array_api_strict has arrays that cannot be written in place through their slices, .*; " + OTHERS
    with pytest.raises(TypeError, match=message):
        ba.Backend(array_api_strict)


LACKING = [
    (lambda patch: patch.delattr(Array, "mT"), r"arrays with \.mT"),
    (lambda patch: patch.delattr(Array, "device"), r".*arrays with \.device.*"),
    (lambda patch: patch.delattr(array_api_strict, "take_along_axis"), "take_along_axis"),
    (lambda patch: patch.delattr(array_api_strict, "__array_namespace_info__"), "__array_namespace_info__"),
]


@pytest.mark.parametrize(("change", "what"), LACKING, ids=[row[-1] for row in LACKING])
def test_a_namespace_that_lacks_something_says_what(monkeypatch, change, what):
    change(monkeypatch)
    message = rf"^xp=array_api_strict has no {what}; expected the Array API standard in version 2024\.12 or later: "
    with pytest.raises(TypeError, match=message + OTHERS):
        ba.Backend(array_api_strict)


def train(backend):
    network = ba.RNN(3, 4, 2, cell="lstm", output="softmax", recurrent_dropout=0.5, device=backend)
    x, target = network.asarray(np.ones((5, 2, 3))), np.zeros((5, 2), int)
    return network, network.loss_and_grad(x, target, "cross_entropy", lengths=[5, 2], dropout_seed=1)


def test_the_version_of_the_standard_that_is_asked_for_is_the_lowest_that_works():
    assert namespaces.STANDARD == "2024.12"
    with array_api_strict.ArrayAPIStrictFlags(api_version="2024.12"):
        train(ba.Backend(array_api_strict))
    with (
        array_api_strict.ArrayAPIStrictFlags(api_version="2023.12"),
        pytest.raises(TypeError, match=r"has no take_along_axis; expected .* 2024\.12 or later"),
    ):
        ba.Backend(array_api_strict)


def test_every_function_that_the_package_calls_is_asked_for():
    called = set()
    for file in Path(ba.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            of_xp = isinstance(node, ast.Attribute) and (
                (isinstance(node.value, ast.Name) and node.value.id == "xp")
                or (isinstance(node.value, ast.Attribute) and node.value.attr == "xp")
            )
            called |= {node.attr} if of_xp else set()
    assert called - set(namespaces.FUNCTIONS) == {"__name__", "float32", "int32"}
    assert set(namespaces.FUNCTIONS) <= called


class Nameless:
    """A namespace that is no module, and the name of nothing."""

    zeros = staticmethod(lambda shape: "no array")

    def __repr__(self):
        return "Nameless()"


def test_what_is_no_namespace_is_said_to_be_none():
    for xp, why in ((42, ""), (Nameless(), r" \(.*\)"), (np.linalg, "")):
        with pytest.raises(TypeError, match=rf"^xp=.* is no Array API namespace{why}; expected a module like"):
            ba.Backend(xp)


def test_a_device_that_a_namespace_has_not_is_said_to_be_unknown():
    with pytest.raises(ValueError, match=r"^device='gpu' cannot be used with xp=array_api_strict \(.*\); leave it out"):
        ba.Backend(array_api_strict, "gpu")
    assert ba.Backend(array_api_strict).device == Device("CPU_DEVICE")


def test_a_device_without_int32_is_refused(monkeypatch):
    info = array_api_strict.__array_namespace_info__()

    def without_integers(self, *, device=None, kind=None):
        return {name: dtype for name, dtype in dtypes(self, device=device, kind=kind).items() if "int" not in name}

    dtypes = type(info).dtypes
    monkeypatch.setattr(type(info), "dtypes", without_integers)
    with pytest.raises(
        TypeError, match=r"^xp=array_api_strict has no int32 on device=.*CPU_DEVICE.*, which networks need"
    ):
        ba.Backend(array_api_strict)


# ---- devices without numbers of 64 bits ------------------------------------------------------------------


def no_x64():
    return ba.Backend(array_api_strict, Device("no_x64"))


def test_without_int64_tokens_classes_and_lengths_are_of_the_widest_integer_there_is():
    backend = no_x64()
    assert ba.Backend(array_api_strict).integer == array_api_strict.int64
    assert backend.integer == array_api_strict.int32
    options = {"cell": "gru", "output": "softmax", "bidirectional": True, "num_layers": 2, "dropout": 0.5}
    rng = np.random.default_rng(0)
    tokens, classes = rng.integers(0, 5, (6, 3)), rng.integers(0, 2, (6, 3))
    tokens[4:, 1] = -100  # past the end
    found = {}
    for device in ("cpu", backend):
        rnn = ba.RNN(5, 4, 2, device=device, **options)
        loss, grads, state = rnn.loss_and_grad(
            rnn.asarray(tokens), classes, "cross_entropy", lengths=[6, 4, 0], dropout_seed=3
        )
        found[device] = {
            "loss": rnn.backend.to_host(loss),
            "h": rnn.backend.to_host(state.h),
            **{name: rnn.backend.to_host(grad) for name, grad in grads.params.items()},
        }
        assert rnn.asarray(tokens).dtype == rnn.backend.integer
    for name, value in found["cpu"].items():
        np.testing.assert_allclose(found[backend][name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_an_integer_that_the_device_cannot_hold_is_said_to_be_too_large():
    rnn = ba.RNN(3, 4, device=no_x64())
    assert rnn.asarray([2**31 - 1]).dtype == array_api_strict.int32
    with pytest.raises(ValueError, match=r"2147483648 does not fit in int32, the widest integer of array_api_strict:"):
        rnn.asarray([2**31])


def test_a_network_in_float64_on_a_device_without_it_says_so(tmp_path):
    message = r"^dtype='float64', of which there are no arrays on .*no_x64.*; use dtype='float32', or another device$"
    ba.RNN(3, 4, dtype="float64").save(tmp_path / "model")
    for build in (
        lambda: ba.RNN(3, 4, dtype="float64", device=no_x64()),
        lambda: ba.RNN.load(tmp_path / "model", device=no_x64()),
        lambda: ba.RNN(3, 4, dtype="float64").to(no_x64()),
    ):
        with pytest.raises(ValueError, match=message):
            build()
    assert ba.RNN(3, 4, dtype="float32", device=no_x64()).dtype == "float32"
    assert ba.RNN.load(tmp_path / "model").dtype == "float64"


def test_without_int64_a_loss_of_ones_own_and_training_get_their_integers_too():
    rnn, x, found = ba.RNN(3, 4, 2, device=no_x64()), np.ones((5, 2, 3), "float32"), []

    def loss(y, target):
        found.append(target.dtype)
        return y[..., 0], y

    rnn.loss(x, np.zeros((5, 2), "int64"), loss)
    assert set(found) == {array_api_strict.int32}
    options = Options(hidden=8, seq_len=8, batch=4, steps=4, layers=2, dropout=0.2, members=2)
    trainer = Trainer("to be or not to be\n" * 60, options, no_x64())
    trainer.run()
    assert np.isfinite(trainer.metrics[-1].loss)


def test_diagnostics_count_on_a_device_without_int64():
    rnn, x = ba.RNN(3, 4, 2, device=no_x64()), np.ones((5, 2, 3), "float32")
    expected = ba.RNN(3, 4, 2)
    for name, found in diagnostics.saturation(rnn, x).items():
        np.testing.assert_array_equal(found, diagnostics.saturation(expected, x)[name])


# ---- to the host -----------------------------------------------------------------------------------------


@pytest.fixture
def another_memory(monkeypatch):
    """Arrays of array_api_strict in memory that the host cannot read, as dpnp's are, also on the default device.

    By DLPack they come to the host where they are asked to, and only in the form that NumPy has from 2.1 on.
    """
    hand_out = Array.__dlpack__

    def dlpack(self, *, dl_device=None, max_version=None, **more):
        if dl_device != (1, 0) or max_version is None:
            raise RuntimeError("Unsupported device in DLTensor.")
        return hand_out(self, dl_device=dl_device, max_version=max_version, **more)

    monkeypatch.setattr(Array, "__dlpack_device__", lambda self: (14, 0))
    monkeypatch.setattr(Array, "__dlpack__", dlpack)
    monkeypatch.setattr(Array, "__array__", None, raising=False)
    monkeypatch.setattr(Array, "__buffer__", None, raising=False)


def test_a_network_in_memory_that_the_host_cannot_read_is_saved_moved_and_looked_into(another_memory, tmp_path):
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":  # it cannot ask, and says so
        with pytest.raises(TypeError, match=r"cannot be read as NumPy arrays \(.*use NumPy 2\.1 or later\)"):
            ba.Backend(array_api_strict)
        return
    rnn, (loss, *_) = train(ba.Backend(array_api_strict))
    assert float(loss) > 0
    rnn.save(tmp_path / "model")
    x = np.ones((5, 2, 3), "float32")
    for other in (ba.RNN.load(tmp_path / "model"), ba.RNN.load(tmp_path / "model", device=rnn.backend).to("cpu")):
        np.testing.assert_array_equal(other(x)[0], on_host("y", rnn(rnn.asarray(x))[0]))
    norms = diagnostics.gradient_flow(rnn, x, np.zeros((5, 2), int), "cross_entropy").total
    expected = diagnostics.gradient_flow(other, x, np.zeros((5, 2), int), "cross_entropy").total
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
