"""Schedules, initial weights, optimizers, files: the parts that have no time in them."""

import copy
import json
import re
from collections import Counter

import numpy as np
import pytest
from conftest import backends_and_dtypes
from every_optimizer import each_keeping
from gradients import check_updates
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import bptt_array as ba
from bptt_array import serialization
from bptt_array.backend import resolve
from bptt_array.backend.arrays import dtype_name
from bptt_array.backend.devices import backend_of, unpacked
from bptt_array.rnn import files as models
from bptt_array.rnn.initializers import initial_parameters
from bptt_array.schedules.instructions import Backward, Forward, Segments, full, segment_length, truncated


@given(T=st.integers(1, 60), k=st.integers(1, 70), length=st.integers(1, 70))
def test_a_schedule_runs_every_step_once_each_way_and_never_keeps_more_than_a_window(T, k, length):
    forward, backward, kept, cuts = [], Counter(), {}, set()
    carried = None  # where the segment begins whose gradient is at hand
    for action in truncated(T, k, length):
        steps = range(action.start, action.stop)
        assert 1 <= len(steps) <= length
        if isinstance(action, Forward):
            forward += steps
            kept[action.start] = action.stop
            assert sum(stop - start for start, stop in kept.items()) <= min(k, T)
            continue
        assert kept.pop(action.start) == action.stop
        backward.update(steps)
        if action.cut:
            cuts.add(action.stop)
        else:
            assert carried == action.stop
        carried = action.start
    assert forward == list(range(T))
    assert backward == Counter(range(T))
    assert cuts == {min(begin + k, T) for begin in range(0, T, k)}


@given(start=st.integers(0, 50), steps=st.integers(1, 200), length=st.integers(1, 60))
def test_segments_are_few_and_even(start, steps, length):
    parts = Segments(start, start + steps, length)
    sizes = [b - a for a, b in parts]
    assert [start, *(b for _, b in parts)] == [*(a for a, _ in parts), start + steps]
    assert len(parts) == -(-steps // length)
    assert max(sizes) - min(sizes) <= 1


def test_full_bptt_is_all_forward_then_all_backward():
    assert list(full(5, 2)) == list(truncated(5, 5, 2))
    kinds = [type(action) for action in full(5, 2)]
    assert kinds == [Forward] * 3 + [Backward] * 3


def test_segments_fit_the_cache_and_have_at_least_one_step():
    assert segment_length(1000, 32 * 256 * 4, 2**20) == 32
    assert segment_length(10, 1, 2**20) == 10
    assert segment_length(10, 2**30, 2**20) == 1


SHAPES = {"l0.W_xh": (64, 3), "l0.W_hh": (64, 64), "l0.b_h": (64,), "W_hy": (2, 64), "b_y": (2,)}


def test_uniform_weights_have_the_range_of_pytorch():
    params = initial_parameters("uniform", 0, SHAPES, 64)
    for value in params.values():
        assert np.abs(value).max() <= 1 / 8
    assert np.abs(params["l0.W_hh"]).max() > 0.99 / 8
    assert abs(params["l0.W_hh"].mean()) < 0.01


@pytest.mark.parametrize("init", ["orthogonal", "identity"])
def test_other_initial_weights_keep_lengths_and_have_no_bias(init):
    params = initial_parameters(init, 0, SHAPES, 64)
    W_hh = params["l0.W_hh"]
    assert np.allclose(W_hh @ W_hh.T, np.eye(64), atol=1e-13)
    assert not params["l0.b_h"].any()
    assert not params["b_y"].any()
    assert params["W_hy"].any()
    assert np.array_equal(W_hh, np.eye(64)) == (init == "identity")


def test_a_seed_is_a_model_and_another_seed_another():
    first, same, other = (ba.RNN(3, 8, 2, seed=seed).params for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not np.array_equal(first["W_hy"], other["W_hy"])
    wide = ba.RNN(3, 8, 2, seed=1, dtype="float64").params
    assert all(np.array_equal(first[name], wide[name].astype("float32")) for name in first)


def test_sgd_is_equation_4_for_every_parameter():
    rnn = ba.RNN(3, 8, 2, dtype="float64")
    x = np.random.default_rng(0).standard_normal((6, 4, 3))
    _, grads, _ = rnn.loss_and_grad(x, np.zeros((6, 4, 2)))
    before = {name: value.copy() for name, value in rnn.params.items()}
    ba.SGD(lr=0.1).update(rnn.params, grads.params)
    for name, value in rnn.params.items():
        assert np.array_equal(value, before[name] - 0.1 * grads.params[name])
        assert not np.array_equal(value, before[name])


def test_updates_of_every_optimizer_are_those_of_the_equations():
    check_updates(ba)


def test_clipping_scales_all_gradients_by_one_factor_or_leaves_them_alone():
    grads = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    assert ba.global_norm(grads) == 5.0
    clipped = ba.clip_by_global_norm(grads, 1.0)
    assert np.allclose(clipped["a"], [0.6, 0.0])
    assert np.allclose(clipped["b"], [[0.8]])
    untouched = ba.clip_by_global_norm(grads, 7.0)
    assert all(np.array_equal(untouched[name], grads[name]) for name in grads)
    assert grads["a"][0] == 3.0


def test_clipping_survives_exploding_and_vanishing_gradients():
    huge = {"a": np.full(4, 1e30, dtype="float32"), "b": np.zeros(2, dtype="float32")}
    clipped = ba.clip_by_global_norm(huge, 1.0)
    assert np.allclose(clipped["a"], 0.5)
    assert clipped["a"].dtype == np.float32
    enormous = {"a": np.full(4, 3e38, dtype="float32")}
    assert np.allclose(ba.clip_by_global_norm(enormous, 1.0)["a"], 0.5, rtol=1e-5)
    small = {"a": np.full(2, 1e-23, dtype="float32")}
    assert np.allclose(ba.clip_by_global_norm(small, 1e-25)["a"], 1e-25 / 2**0.5, rtol=1e-5, atol=0)
    assert not ba.clip_by_global_norm({"a": np.zeros(2, dtype="float32")}, 1e-50)["a"].any()
    assert np.array_equal(ba.clip_by_global_norm(huge, 1e300)["a"], huge["a"])
    assert np.isnan(ba.clip_by_global_norm({"a": np.array([np.nan, 1.0])}, 1.0)["a"]).all()
    assert ba.global_norm({"a": np.array([np.inf, 1.0])}) == np.inf
    assert ba.clip_by_global_norm(huge, np.float64(1))["a"].dtype == np.float32
    tiny = {"a": np.full(4, 1e-30, dtype="float32")}
    assert np.isclose(ba.global_norm(tiny), 2e-30)
    zero = {"a": np.zeros(3, dtype="float32")}
    assert ba.global_norm(zero) == 0
    assert np.array_equal(ba.clip_by_global_norm(zero, 1.0)["a"], zero["a"])


def test_adam_takes_steps_of_about_the_learning_rate_whatever_the_scale():
    for scale in (1e-4, 1.0, 1e4):
        params = {"a": np.zeros(3)}
        ba.Adam(lr=0.01).update(params, {"a": scale * np.array([1.0, -2.0, 3.0])})
        assert np.allclose(params["a"], [-0.01, 0.01, -0.01], rtol=1e-3)


@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_adam_recovers_from_a_gradient_whose_square_overflows(make_backend, dtype):
    """Its second moment is 1 - beta2 of the square: of a gradient up to 31 times the root of the largest number."""
    backend, limits = make_backend(), np.finfo(dtype)
    explosion = 25 * float(limits.max) ** 0.5
    m, v, expected, scale = 0.0, 0.0, 1.0, explosion  # m and v in units of the explosion, so that no square overflows
    with np.errstate(over="ignore"), backend.active():
        param, optimizer = backend.ones((1,), backend.dtype(dtype)), ba.Adam(lr=0.1)
        for t, grad in enumerate([explosion, *[1.0] * 200], 1):
            optimizer.update({"w": param}, {"w": backend.from_host(np.array([grad], dtype))})
            m = 0.9 * m + 0.1 * (grad / scale)
            v = 0.999 * v + 0.001 * (grad / scale) ** 2
            expected -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8 / scale)
        _, second = optimizer.state_dict()["kept"]["w"]
        assert np.isfinite(backend.to_host(second)).all()
    assert backend.to_host(param)[0] == pytest.approx(expected, rel=1e-4)
    assert expected == pytest.approx(0.3994, abs=1e-3)


def test_adam_leaves_parameters_without_a_gradient_where_they_are():
    params = {"a": np.ones(2, dtype="float32")}
    ba.Adam(lr=0.1, eps=1e-60).update(params, {"a": np.array([0, 1], dtype="float32")})
    assert params["a"][0] == 1
    assert np.isclose(params["a"][1], 0.9)


def test_weights_decay_without_a_gradient_and_those_left_out_are_updated_by_adam_alone():
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(4) for name in ("l0.W_hh", "l0.b_h", "l1.b_h", "b_y", "W_hy")}
    plain, start = ({name: value.copy() for name, value in params.items()} for _ in range(2))
    optimizer, adam = ba.AdamW(0.1, weight_decay=0.5, no_decay=["b_h", "b_y"]), ba.Adam(0.1)
    for grads in ({name: rng.standard_normal(4) for name in params}, {name: np.zeros(4) for name in params}):
        optimizer.update(params, grads)
        adam.update(plain, grads)
    for name in ("l0.b_h", "l1.b_h", "b_y"):
        assert np.array_equal(params[name], plain[name])
    for name in ("l0.W_hh", "W_hy"):
        assert not np.allclose(params[name], plain[name])
    params, still = {name: value.copy() for name, value in start.items()}, ba.AdamW(0.1, weight_decay=0.5)
    still.no_decay = ("W_hy",)
    for _ in range(3):
        still.update(params, {name: np.zeros(4) for name in params})
    for name, value in start.items():
        assert np.allclose(params[name], value if name == "W_hy" else 0.95**3 * value, rtol=1e-15)


@pytest.mark.parametrize("lr", [2e-6, 5e-6, 2e-5])
def test_a_decay_that_is_less_than_float32_tells_from_1_is_one(lr):
    """In torch ``1 - lr * weight_decay`` is rounded first: there is none at 2e-6, and 1.7 times as much at 5e-6."""
    rng, start = np.random.default_rng(0), np.random.default_rng(1).standard_normal(100_000).astype("float32")
    params = [{"a": start.copy()} for _ in range(2)]
    optimizers = [ba.AdamW(lr, weight_decay=decay) for decay in (0.01, 0.0)]
    for _ in range(200):
        grads = {"a": rng.standard_normal(len(start)).astype("float32")}
        for optimizer, of in zip(optimizers, params, strict=True):
            optimizer.update(of, grads)
    with_decay, without = (of["a"].astype("float64") for of in params)
    weights = start.astype("float64")
    assert (without - with_decay) @ weights / (weights @ weights) == pytest.approx(200 * lr * 0.01, rel=0.02)


def test_names_that_do_not_decay_have_to_be_those_of_parameters():
    params = {"l0.b_h": np.ones(1), "W": np.ones(1)}
    for entry in ("b", "h", "l0", "W_hy", "", ".b_h", "0.b_h"):
        optimizer = ba.AdamW(no_decay=("W", entry))
        with pytest.raises(ValueError, match=rf"no_decay has '{re.escape(entry)}', which no parameter is called"):
            optimizer.update(params, params)
        assert optimizer.state_dict() == {"updates": {}, "kept": {}, "keeps": list(optimizer.keeps)}
        optimizer.no_decay = [name for name in optimizer.no_decay if name != entry]
        optimizer.update(params, params)
    params["V"] = np.ones(1)  # one that joins later is named when it does, and need not come again
    optimizer.no_decay += ("V",)
    with pytest.raises(ValueError, match="no_decay has 'V'"):
        optimizer.update({"W": params["W"]}, {"W": params["W"]})
    optimizer.update(params, params)
    optimizer.update({"W": params["W"]}, {"W": params["W"]})
    other = ba.AdamW(no_decay=("V",))
    other.load_state_dict(optimizer.state_dict())
    other.update({"W": params["W"]}, {"W": params["W"]})


@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
@pytest.mark.parametrize("more", [{}, {"momentum": 0.9}, {"centered": True}], ids=["plain", "momentum", "centered"])
def test_rmsprop_recovers_from_a_gradient_whose_square_overflows(make_backend, dtype, more):
    """Its mean square is 1 - alpha of the square: of a gradient up to 10 times the root of the largest number."""
    backend, limits = make_backend(), np.finfo(dtype)
    explosion = 9 * float(limits.max) ** 0.5
    settings = {"alpha": 0.99, "eps": 1e-8} | more
    with np.errstate(over="ignore"), backend.active():
        param, optimizer = backend.ones((1,), backend.dtype(dtype)), ba.RMSprop(1e-2, **settings)
        for grad in (explosion, *[1.0] * 200):
            optimizer.update({"w": param}, {"w": backend.from_host(np.array([grad], dtype))})
        kept = optimizer.state_dict()["kept"]["w"]
        assert all(np.isfinite(backend.to_host(array)).all() for array in kept)
    # In units of the explosion, whose square is a number, nothing but the first gradient moves the parameter.
    first = 1e-2 / (0.0099 if more.get("centered") else 0.01) ** 0.5
    expected = 1 - first * sum(more.get("momentum", 0) ** k for k in range(201))
    assert backend.to_host(param)[0] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_variance_is_never_negative():
    """The mean square of equal gradients less that of their mean is, by rounding: in torch no number is left."""
    params, optimizer = {"a": np.ones(1)}, ba.RMSprop(1e-3, centered=True)
    for _ in range(5000):
        optimizer.update(params, {"a": np.full(1, 0.1)})
    assert np.isfinite(params["a"]).all()


def test_no_step_is_taken_without_a_gradient():
    for make in (lambda: ba.RMSprop(0.1, eps=1e-60), lambda: ba.RMSprop(0.1, eps=1e-60, centered=True, momentum=0.9)):
        params = {"a": np.ones(2, dtype="float32")}
        make().update(params, {"a": np.array([0, 1], dtype="float32")})
        assert params["a"][0] == 1
        assert params["a"][1] < 0.9


# ---- files ------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    rnn = ba.RNN(3, 5, 2, cell="relu", output="tanh", readout="last", dtype="float64", seed=4)
    path = tmp_path / "model.safetensors"
    rnn.save(path, {"note": "ö"})
    return rnn, path


def test_a_saved_network_comes_back_the_same(saved):
    rnn, path = saved
    back = ba.RNN.load(path)
    assert back.config == rnn.config
    assert all(np.array_equal(back.params[name], rnn.params[name]) for name in rnn.params)
    assert models.read_model(path)[2] == {"note": "ö"}
    assert set(load_file(path)) == set(rnn.params)  # any safetensors reader can
    assert "cell='relu'" in repr(back)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_metadata_hold_what_json_holds(tmp_path):
    metadata = {
        "mean": 43.8,
        "count": 10**30,
        "scaled": True,
        "nothing": None,
        "names": ["a", "ö", "\0\udc80"],
        "of each": {"x": {"mean": -0.0, "std": float("inf")}},
        "characters": "a string as ever",
        "": [],
    }
    ba.RNN(1, 1).save(tmp_path / "model", metadata)
    found = ba.RNN.load_with_metadata(tmp_path / "model")[1]
    assert found == metadata
    assert type(found["scaled"]) is bool
    from_numpy = {"mean": np.float32(0.1), "count": np.int8(3), "yes": np.bool_(True), "pair": (1, np.float64(2))}
    ba.RNN(1, 1).save(tmp_path / "model", from_numpy)
    found = ba.RNN.load_with_metadata(tmp_path / "model")[1]
    assert found == {"mean": float(np.float32(0.1)), "count": 3, "yes": True, "pair": [1, 2.0]}
    ba.RNN(1, 1).save(tmp_path / "model", {"mean": np.ones(2).tolist()})  # the way out
    assert ba.RNN.load_with_metadata(tmp_path / "model")[1] == {"mean": [1.0, 1.0]}


def test_parameters_come_in_the_order_of_the_architecture_wherever_they_come_from(tmp_path):
    rnn = ba.RNN(3, 4, 2, cell="gru", num_layers=3, bidirectional=True, members=2)
    names = list(rnn.architecture.shapes)
    rnn.save(tmp_path / "model.safetensors")
    x, target = np.ones((5, 2, 3), "f"), np.ones((5, 2, 2), "f")
    y, _, backward = rnn.forward(x)
    upside_down = ba.RNN(3, 4, 2, cell="gru", num_layers=3, bidirectional=True, members=2)
    upside_down.params = dict(reversed(upside_down.params.items()))
    state_dict = rnn.member(0).to_torch_state_dict()
    orders = {
        "built": rnn.params,
        "loaded": ba.RNN.load(tmp_path / "model.safetensors").params,
        "moved": copy.deepcopy(upside_down).to(ba.Backend(np)).params,
        "a member": upside_down.member(1).params,
        "from torch": ba.RNN.from_torch_state_dict(dict(reversed(state_dict.items()))).params,
        "of loss_and_grad": upside_down.loss_and_grad(x, target)[1].params,
        "of backward": backward(y).params,
    }
    assert {order: list(params) for order, params in orders.items()} == dict.fromkeys(orders, names)


def test_arrays_of_a_file_come_in_the_same_order_every_time(tmp_path):
    names = [f"{k:02}" for k in range(30)]
    serialization.write_file(tmp_path / "a", "test", {name: np.ones(1) for name in reversed(names)}, {})
    for _ in range(3):
        with serialization.open_file(tmp_path / "a") as file:
            assert list(file.arrays()) == names


def test_a_file_that_cannot_be_written_leaves_the_old_one(saved, monkeypatch):
    _, path = saved
    before = path.read_bytes()

    def no_space(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serialization.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        ba.RNN(3, 5, 2).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_saving_says_what_is_wrong_and_follows_links(saved, tmp_path):
    rnn, path = saved
    with pytest.raises(FileNotFoundError, match="the folder does not exist"):
        rnn.save(tmp_path / "none" / "model")
    for metadata, message in (
        ({"note": np.ones(2)}, r"metadata\['note'\]=array.* is a ndarray; expected what JSON holds.* its \.tolist\(\)"),
        ({"a": [{"b": {1}}]}, r"metadata\['a'\]\[0\]\['b'\]=\{1\} is a set; expected what JSON holds"),
        ({2: "x"}, r"metadata has the key 2, a int; expected strings"),
        ({"a": {None: 1}}, r"metadata\['a'\] has the key None, a NoneType; expected strings"),
        (["note"], "metadata is a list; expected a dictionary"),
    ):
        with pytest.raises(TypeError, match=message):
            rnn.save(path, metadata)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        rnn.save(tmp_path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    link = tmp_path / "link"
    link.symlink_to(path)
    ba.RNN(1, 1).save(link)
    assert link.is_symlink()
    assert ba.RNN.load(path).hidden_size == 1
    with pytest.raises(TypeError, match="device=0 is a int"):
        ba.RNN.load(path, device=0)


def test_files_that_are_no_model_say_so(saved, tmp_path):
    rnn, path = saved
    data = path.read_bytes()
    bad = tmp_path / "bad"
    for length in (0, 4, 8, 50, len(data) // 2, len(data) - 1):
        bad.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"is damaged or no safetensors file"):
            ba.RNN.load(bad)
    with pytest.raises(FileNotFoundError, match="no such file"):
        ba.RNN.load(tmp_path / "none")

    def write(params=rnn.params, **header):
        """As models were written before they had a checksum."""
        save_file(params, bad, metadata={"format": "bptt_array.RNN", "config": json.dumps(rnn.config)} | header)

    write(note="old")
    old, metadata = ba.RNN.load_with_metadata(bad)
    assert metadata == {"note": "old"}
    assert all(np.array_equal(old.params[name], rnn.params[name]) for name in rnn.params)

    for header, message in [
        ({"format": "pt"}, "was not written by bptt_array"),
        ({"config": "{"}, "no readable configuration"),
        ({"config": "[]"}, "no readable configuration"),
        ({"config": "[" * 100_000}, "no readable configuration"),
        ({"config": json.dumps({"cell": "tanh"})}, "unusable configuration"),
        ({"config": json.dumps({**rnn.config, "evil": 1})}, "unusable configuration"),
        ({"config": json.dumps({**rnn.config, "hidden_size": 6})}, "its configuration needs"),
        ({"config": json.dumps({**rnn.config, "hidden_size": 10**9})}, "its configuration needs"),
        ({"config": json.dumps({**rnn.config, "num_layers": 10**12})}, "unusable configuration: num_layers=10+, but"),
        ({"config": json.dumps({**rnn.config, "members": 10**12})}, "its configuration needs"),
        ({"config": json.dumps({**rnn.config, "cell": "elu"})}, "written with the cell 'elu', .* give it: cell="),
        ({"config": json.dumps({**rnn.config, "cell": ["tanh"]})}, "unusable configuration: cell=.* is unknown"),
    ]:
        write(**header)
        with pytest.raises(ValueError, match=message):
            ba.RNN.load(bad)
    name = json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    bad.write_bytes(len(name).to_bytes(8, "little") + name + b"\0\0")
    with pytest.raises(ValueError, match=r"is damaged or no safetensors file: 'a' has dtype 'BF16'"):
        ba.RNN.load(bad)
    write({name: value for name, value in rnn.params.items() if name != "b_y"})
    with pytest.raises(ValueError, match="its configuration needs"):
        ba.RNN.load(bad)
    write({name: value.astype("float32") for name, value in rnn.params.items()})
    with pytest.raises(ValueError, match="its configuration needs"):
        ba.RNN.load(bad)


def test_a_parameter_that_joins_later_begins_its_own_adam():
    optimizer = ba.Adam(1e-3)
    one, late = np.zeros(1), np.zeros(1)
    for _ in range(1000):
        optimizer.update({"one": one}, {"one": np.ones(1)})
    optimizer.update({"one": one, "late": late}, {"one": np.ones(1), "late": np.ones(1)})
    assert late == pytest.approx(-1e-3, rel=1e-6)


def test_momentum_is_fixed():
    optimizer = ba.SGD(0.1)
    with pytest.raises(AttributeError):
        optimizer.momentum = 0.9
    assert optimizer.momentum == 0


#: array_api_strict does not show where its arrays lie.
WITH_STRIDES = [backend for backend in backends_and_dtypes() if not backend.id.startswith("strict")]


@pytest.mark.parametrize(("make", "dtype"), WITH_STRIDES)
def test_a_parameter_whose_entries_share_memory_is_refused_before_anything_changes(make, dtype):
    backend = make()
    first = backend.zeros((2,), backend.dtype(dtype))
    shared = backend.xp.broadcast_to(backend.zeros((1,), backend.dtype(dtype)), (3,))
    grads = {"first": backend.ones((2,), first.dtype), "shared": backend.ones((3,), first.dtype)}
    with pytest.raises(ValueError, match=r"params\['shared'\] cannot be written to; expected an array of its own"):
        ba.SGD(1.0).update({"first": first, "shared": shared}, grads)
    assert not backend.to_host(first).any()


@pytest.mark.parametrize(("make", "dtype"), WITH_STRIDES)
def test_a_parameter_without_entries_is_updated_with_the_others(make, dtype):
    """Those of NumPy have strides of 0, as what repeats itself has."""
    backend = make()
    params = {name: backend.ones(shape, backend.dtype(dtype)) for name, shape in (("a", (2,)), ("none", (0, 3)))}
    ba.SGD(1.0).update(params, {name: backend.xp.ones_like(param) for name, param in params.items()})
    assert not backend.to_host(params["a"]).any()


@pytest.mark.parametrize("order", [("a", "b", "c"), ("b", "a", "c"), ("c", "b", "a")])
@pytest.mark.parametrize("members", [None, 1])
def test_the_norm_of_gradients_of_two_dtypes_is_that_of_the_wider_in_any_order(order, members):
    arrays = {"a": np.array([[1e300, 1]]), "b": np.array([[1, 3e38]], np.float32), "c": np.array([[1e-300, 2e300]])}
    grads = {name: arrays[name] for name in order}
    norm = ba.global_norm(grads, members)
    assert norm.dtype == np.float64
    assert norm == pytest.approx(5**0.5 * 1e300, rel=1e-15)
    assert norm == ba.global_norm(arrays, members)  # to the last bit
    clipped = ba.clip_by_global_norm(grads, 1e280, members)  # by a factor that no float32 can be
    assert clipped["b"].dtype == np.float32
    np.testing.assert_allclose(clipped["b"], [[1e-20 / 5**0.5, 3e18 / 5**0.5]], rtol=1e-6)
    np.testing.assert_allclose(clipped["a"], [[1e280 / 5**0.5, 1e-20 / 5**0.5]], rtol=1e-14)
    large = ba.clip_by_global_norm(grads, 1e301, members)
    assert all(np.array_equal(large[name], arrays[name]) for name in arrays)


def test_the_norm_of_gradients_does_not_depend_on_the_order_of_their_names():
    rng = np.random.default_rng(0)
    arrays = {str(k): rng.standard_normal(100).astype("float32") for k in range(20)}
    assert len({float(ba.global_norm({k: arrays[k] for k in rng.permutation(list(arrays))})) for _ in range(20)}) == 1


def test_gradients_of_two_dtypes_are_clipped_in_their_own():
    clipped = ba.clip_by_global_norm({"a": np.ones(2, np.float32), "b": np.ones(2)}, 1.0)
    assert [clipped[name].dtype for name in "ab"] == [np.float32, np.float64]
    assert float(ba.global_norm({name: a.astype(float) for name, a in clipped.items()})) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_gradients_of_two_byte_orders_are_of_one_dtype(order):
    arrays = {"a": np.array([3.0], ">f4"), "b": np.array([4.0], np.float32)}
    grads = {name: arrays[name] for name in order}
    assert float(ba.global_norm(grads)) == 5
    clipped = ba.clip_by_global_norm(grads, 1.0)
    assert {array.dtype for array in clipped.values()} == {np.dtype("float32")}  # of this machine
    assert [float(clipped[name][0]) for name in "ab"] == pytest.approx([0.6, 0.8])


# ---- states of optimizers that move -----------------------------------------------------------------------


def _updated(make, dtype="float32", backend=None):
    """A parameter's dictionary and an optimizer after two updates, on a backend."""
    backend = resolve("cpu") if backend is None else backend
    params, optimizer = {name: np.arange(1.0, size + 1, dtype=dtype) for name, size in (("b", 2), ("a", 3))}, make()
    params = {name: unpacked(backend, value) for name, value in params.items()}
    for _ in range(2):
        optimizer.update(params, _halves(params))
    return params, optimizer


def _halves(params):
    """Gradients, made from the parameters."""
    with backend_of(params["a"]).active():
        return {name: 0.5 * value for name, value in params.items()}


def _values(params):
    return {name: backend_of(value).to_host(value).tolist() for name, value in params.items()}


@each_keeping
@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_an_optimizer_moves_with_its_parameters_and_goes_on_as_it_would_have(make_backend, dtype, make):
    (params, optimizer), (expected, stayed) = _updated(make, dtype), _updated(make, dtype)
    backend = make_backend()
    moved = {name: unpacked(backend, value) for name, value in params.items()}
    if not backend.owns(params["b"]):
        with pytest.raises(
            ValueError, match=rf"params\['b'\] is on {re.escape(backend.name)}, .* is on cpu; move that too"
        ) as error:
            optimizer.update(moved, _halves(moved))
        assert "optimizer.to(rnn.backend)" in str(error.value)
    assert optimizer.to(backend) is optimizer
    optimizer.update(moved, _halves(moved))
    stayed.update(expected, _halves(expected))
    for name, value in expected.items():
        assert np.allclose(_values(moved)[name], value, rtol=1e-6)
    optimizer.to("cpu").update(expected, _halves(expected))


@each_keeping
@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_a_state_is_loaded_to_where_the_parameters_are(make_backend, dtype, make):
    (params, optimizer), backend = _updated(make, "float32"), make_backend()
    other = {name: unpacked(backend, value.astype(dtype)) for name, value in reversed(params.items())}
    if dtype != "float32":
        with pytest.raises(
            ValueError, match=r"has dtype float64, but what the optimizer keeps for it has dtype float32"
        ) as e:
            optimizer.update({name: value.astype(dtype) for name, value in params.items()}, _wide(params))
        assert "optimizer.load_state_dict(optimizer.state_dict(), like=rnn.params)" in str(e.value)
    there = make()
    there.load_state_dict(optimizer.state_dict(), like=other)
    state = there.state_dict()
    assert list(state["kept"]) == list(state["updates"]) == list(other)  # in the order of the parameters
    for name, arrays in state["kept"].items():
        for found, array in zip(arrays, optimizer.state_dict()["kept"][name], strict=True):
            assert backend.owns(found)
            assert dtype_name(found) == dtype
            assert backend.to_host(found).tolist() == array.tolist()  # float32 is exact in either
    there.update(other, _halves(other))
    optimizer.update(params, _halves(params))
    assert all(np.allclose(_values(other)[name], value, rtol=1e-6) for name, value in params.items())


def _wide(params):
    return {name: 0.5 * value.astype("float64") for name, value in params.items()}


def test_a_parameter_of_another_shape_can_begin_anew_while_the_others_go_on():
    params, optimizer = _updated(ba.Adam)
    larger = params | {"b": np.ones(5, "f")}
    with pytest.raises(
        ValueError, match=r"params\['b'\] has shape \(5,\), but what the optimizer keeps for it \(2,\)"
    ) as e:
        optimizer.update(larger, _halves(larger))
    assert "take its name out of both parts of state = optimizer.state_dict()" in str(e.value)
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"state_dict\['kept'\]\['b'\] has shape \(2,\), like\['b'\] \(5,\)"):
        optimizer.load_state_dict(state, like=larger)
    for part in ("updates", "kept"):
        del state[part]["b"]
    optimizer.load_state_dict(state, like=larger)
    optimizer.update(larger, _halves(larger))
    assert optimizer.state_dict()["updates"] == {"a": 3, "b": 1}


@pytest.mark.parametrize(
    ("like", "kind", "message"),
    [
        ({"a": np.ones(3, "f")}, ValueError, r"like has no 'b', for which state_dict keeps something"),
        ([1], TypeError, r"like is a list; expected a dictionary of arrays"),
        ({"a": np.ones(3, "f"), "b": np.ones(2, int)}, TypeError, r"like\['b'\] is a ndarray of dtype int64"),
    ],
)
def test_a_state_that_does_not_fit_its_parameters_is_refused_before_anything_changes(like, kind, message):
    _, optimizer = _updated(ba.Adam, "float64")
    before = optimizer.state_dict()
    with pytest.raises(kind, match=message):
        optimizer.load_state_dict(before, like=like)
    large = optimizer.state_dict()
    large["kept"]["a"][1][0] = 1e300
    with pytest.raises(ValueError, match=r"state_dict\['kept'\]\['a'\] holds 1e\+300, which float32 cannot hold"):
        optimizer.load_state_dict(large, like={"a": np.ones(3, "f"), "b": np.ones(2, "f")})
    after = optimizer.state_dict()
    assert before["updates"] == after["updates"]
    assert all(
        np.array_equal(x, y) for name in "ab" for x, y in zip(before["kept"][name], after["kept"][name], strict=True)
    )
