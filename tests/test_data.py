"""From sequences to batches: what comes in comes out, in every form, and only what is in a batch is read."""

import copy
import importlib.util
import json
import math
import pickle
import tempfile
import threading
import tracemalloc
from array import array as memory

import array_api_strict
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import backends_and_dtypes, cuda, needs_torch

import bptt_array as ba
from bptt_array.backend import NumpyBackend
from bptt_array.distributed import OneProcess


def ranks(rank, size):
    return type("Ranks", (OneProcess,), {"rank": rank, "size": size})()


def sequences_of(lengths, I=3, seed=0):  # noqa: E741
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((T, I)).astype("float32") for T in lengths]


LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=20)

# ---- pad and unpad ----------------------------------------------------------------------------------------


@hypothesis.given(LENGTHS, st.integers(0, 3), st.sampled_from([0.0, -1.5, np.nan]))
def test_what_is_padded_comes_back(lengths, more, value):
    sequences = sequences_of(lengths)
    x, found = ba.pad(iter(sequences), value=value, length=max(lengths) + more)
    assert x.shape == (max(lengths) + more, len(lengths), 3)
    assert x.dtype == np.float32
    assert found.dtype == np.int64
    assert found.tolist() == lengths
    for one, back in zip(sequences, ba.unpad(x, found), strict=True):
        assert np.array_equal(one, back)
        assert not back.size or np.shares_memory(back, x)
    beyond = np.arange(len(x))[:, None] >= found
    assert np.array_equal(x[beyond], np.full((beyond.sum(), 3), value, "float32"), equal_nan=True)


def test_one_feature_and_tokens():
    x, lengths = ba.pad([np.array([1.5, 2.5]), [0.5]], dtype="float64")
    assert x.dtype == np.float64
    assert x.tolist() == [[[1.5], [0.5]], [[2.5], [0.0]]]
    x, lengths = ba.pad([np.array([3, 4], "uint8"), [], [5]], value=-1)
    assert x.dtype == np.int64
    assert x.tolist() == [[3, -1, 5], [4, -1, -1]]
    assert lengths.tolist() == [2, 0, 1]
    x, _ = ba.pad([[[1, 2], [3, 4]], [], np.zeros((0, 2))])  # integers with features are numbers
    assert x.dtype == np.float32
    assert x.shape == (2, 3, 2)


# ---- batches ----------------------------------------------------------------------------------------------

FORMS = ["list", "array", "batch first"]


def data_in(form, sequences, target, weights, **more):
    """The same data set as a list, or as arrays with NaN past the end."""
    if form == "list":
        return ba.batches(sequences, target, weights=weights, per_step=True, **more)
    x, lengths = ba.pad(sequences, value=np.nan)
    arrays = [x, *(ba.pad(column, value=np.nan)[0] for column in (target, weights))]
    arrays[2] = arrays[2][..., 0]
    if form == "batch first":
        arrays, more = [array.swapaxes(0, 1) for array in arrays], more | {"time_major": False}
    return ba.batches(arrays[0], arrays[1], weights=arrays[2], lengths=lengths, per_step=True, **more)


@pytest.mark.parametrize("form", FORMS)
@hypothesis.given(
    LENGTHS.filter(any), st.integers(1, 25), st.integers(0, 2**100), st.integers(0, 3), st.booleans(), st.booleans()
)
def test_an_epoch_has_every_sequence_once(form, lengths, size, seed, k, shuffle, by_length):
    sequences = sequences_of(lengths)
    target, weights = [one[:, :2] * 2 for one in sequences], [one[:, 0] for one in sequences]
    options = {"size": size, "seed": seed, "shuffle": shuffle, "by_length": by_length}
    data = data_in(form, sequences, target, weights, **options)
    batches, rows = list(data.epoch(k)), data.rows(k)
    assert len(batches) == len(data) == len(rows) == -(-len(lengths) // size)
    assert sorted(np.concatenate(rows)) == list(range(len(lengths)))
    assert sorted(map(len, rows))[1:] == [size] * (len(rows) - 1)
    if not by_length or not shuffle:
        assert all(len(row) == size for row in rows[:-1])
    for batch, which in zip(batches, rows, strict=True):
        steps = [lengths[row] for row in which]
        assert batch.lengths is None or batch.lengths.tolist() == steps
        x, y, w = (a.swapaxes(0, 1) if form == "batch first" else a for a in (batch.x, batch.target, batch.weights))
        assert len(x) == max(1, *steps) if batch.lengths is not None else {len(x)} == set(steps)
        for j, row in enumerate(which):
            T = lengths[row]
            for got, expected in ((x, sequences), (y, target), (w, weights)):
                assert got.dtype == np.float32
                assert np.array_equal(got[:T, j], expected[row])
                assert not got[T:, j].any()
    again = list(data.epoch(k))
    assert all(
        np.array_equal(a, b) for one, two in zip(batches, again, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_epochs_differ_and_are_the_same_everywhere():
    """Nothing but the seed and the epoch goes into the order; these numbers may never change."""
    data = ba.batches(sequences_of([2] * 10), size=4, seed=7)
    assert [row.tolist() for row in data.rows(0)] == [[1, 8, 6, 5], [9, 2, 4, 7], [0, 3]]
    assert [row.tolist() for row in data.rows(1)] == [[1, 4, 9, 3], [2, 6, 5, 8], [0, 7]]
    by_length = ba.batches(sequences_of(range(10)), size=4, seed=7, by_length=True)
    assert [row.tolist() for row in by_length.rows(0)] == [[9, 8], [3, 5, 6, 7], [0, 2, 1, 4]]


def test_going_through_them_again_is_the_next_epoch():
    data = ba.batches([[float(k)] for k in range(50)], size=20)
    first, second = list(data), list(data)
    for k, epoch in enumerate((first, second)):
        for batch, expected in zip(epoch, data.epoch(k), strict=True):
            assert np.array_equal(batch.x, expected.x)
    assert not np.array_equal(first[0].x, second[0].x)
    assert not np.array_equal(first[0].x, next(ba.batches([[float(k)] for k in range(50)], size=20, seed=1).epoch(0)).x)


def test_batches_of_similar_length_have_little_padding_and_are_still_others_in_every_epoch():
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    sequences = [np.zeros((T, 1)) for T in lengths]

    def padding(data, k):
        steps = sum(batch.x.shape[0] * batch.x.shape[1] for batch in data.epoch(k))
        return 1 - lengths.sum() / steps

    plain, similar = (ba.batches(sequences, size=32, by_length=by_length) for by_length in (False, True))
    for k in range(3):
        assert padding(plain, k) > 0.45
        assert padding(similar, k) < 0.08
    one, two = ({frozenset(row.tolist()) for row in similar.rows(k)} for k in (0, 1))
    assert len(one & two) == 0
    means = [lengths[row].mean() for row in similar.rows(0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5  # the order of batches is random
    smaller = [min(similar.rows(k), key=len) for k in range(20)]
    assert np.ptp([lengths[row].mean() for row in smaller]) > 50  # as likely of short ones as of long ones


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ranks_share_out_every_batch(size):
    lengths = [4, 2, 0, 7, 1, 3, 3]
    data = ba.batches(sequences_of(lengths), list(range(7)), size=3, by_length=True)
    parts = [list(data.shared_by(ranks(rank, size)).epoch(2)) for rank in range(size)]
    for whole, *shares in zip(data.epoch(2), *parts, strict=True):
        assert np.concatenate([share.target for share in shares]).tolist() == whole.target.tolist()
        assert np.concatenate([share.lengths for share in shares]).tolist() == whole.lengths.tolist()
        for share in shares:
            assert share.x.shape == (max(1, *share.lengths, 1), len(share.target), 3)


FORMS_OF_A_TARGET = {
    "classes": (lambda lengths: [k % 3 for k in range(len(lengths))], (), False, "int64"),
    "array of classes": (lambda lengths: np.arange(len(lengths), dtype="uint8"), (), False, "int64"),
    "numbers": (lambda lengths: [k / 2 for k in range(len(lengths))], (1,), False, "float32"),
    "yes and no": (lambda lengths: np.arange(len(lengths)) % 2 == 0, (1,), False, "float32"),
    "vectors": (lambda lengths: np.arange(4 * len(lengths)).reshape(-1, 4), (4,), False, "float32"),
    "list of vectors": (lambda lengths: [[k, k + 1, k + 2] for k in range(len(lengths))], (3,), False, "float32"),
    "steps": (lambda lengths: sequences_of(lengths, 2), (2,), True, "float32"),
    "numbers of steps": (lambda lengths: [np.arange(T) / 2 for T in lengths], (1,), True, "float32"),
    "classes of steps": (lambda lengths: [np.arange(T) for T in lengths], (), True, "int64"),
    "classes of steps in an array": (
        lambda lengths: np.arange(max(lengths) * len(lengths)).reshape(max(lengths), -1), (), True, "int64",
    ),
    "numbers of steps in an array": (
        lambda lengths: np.ones((max(lengths), len(lengths))), (1,), True, "float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS_OF_A_TARGET)
def test_a_target_is_one_for_each_sequence_or_one_for_each_step(form):
    make, tail, timed, dtype = FORMS_OF_A_TARGET[form]
    lengths = [4, 2, 7, 1, 5]
    target = make(lengths)
    data = ba.batches(sequences_of(lengths), target, size=2, shuffle=False)
    for batch, rows in zip(data, data.rows(0), strict=True):
        T = max(lengths[row] for row in rows)
        assert batch.target.shape == (*([T] if timed else []), len(rows), *tail)
        assert batch.target.dtype == dtype
        for j, row in enumerate(rows):
            if not timed:
                assert np.array_equal(batch.target[j], np.asarray(target[row]).reshape(tail))
                continue
            one = target[:, row] if isinstance(target, np.ndarray) else target[row]
            stop = lengths[row]
            assert np.array_equal(batch.target[:stop, j], np.asarray(one)[:stop].reshape(stop, *tail))


def test_a_target_that_may_be_both_is_asked_for():
    x, target = np.zeros((5, 5, 2)), np.arange(25.0).reshape(5, 5)
    with pytest.raises(
        ValueError, match=r"target has shape \(5, 5\), which may be .*: per_step=True or per_step=False$"
    ):
        ba.batches(x, target)
    options = {"size": 3, "shuffle": False}
    of_steps = next(ba.batches(x, target, per_step=True, **options).epoch(0)).target
    of_sequences = next(ba.batches(x, target, per_step=False, **options).epoch(0)).target
    assert np.array_equal(of_steps, target[:, :3, None])
    assert np.array_equal(of_sequences, target[:3])
    three = np.zeros((5, 3, 4, 2))  # for a loss of one's own
    assert next(ba.batches(x, three[:, 0], per_step=False, **options).epoch(0)).target.shape == (3, 4, 2)
    sequences = [np.zeros((3, 1))] * 4
    with pytest.raises(
        ValueError, match=r"target\[0\] has shape \(3,\), which may be .*per_step=True or per_step=False$"
    ):
        ba.batches(sequences, [np.ones(3)] * 4)
    assert next(ba.batches(sequences, [np.ones(3)] * 4, per_step=False, **options).epoch(0)).target.shape == (3, 3)
    assert next(ba.batches(sequences, [np.ones(3)] * 4, per_step=True, **options).epoch(0)).target.shape == (3, 3, 1)


def test_members_share_batches():
    rnn = ba.RNN(3, 4, 2, output="softmax", readout="last", members=3)
    for x, target, lengths, weights in a_classification().to(rnn):
        loss, _, _ = rnn.loss_and_grad(x, target, "cross_entropy", lengths=lengths, weights=weights)
        assert loss.shape == (3,)


# ---- what data are in -------------------------------------------------------------------------------------


def in_pandas(one):
    import pandas

    return pandas.DataFrame(one) if one.ndim == 2 else pandas.Series(one)


def in_nullable_pandas(one):
    return in_pandas(one).astype("Float32" if one.dtype.kind == "f" else "Int64")


def in_torch(one):
    import torch

    return torch.from_numpy(one.copy())


def in_a_file(one):
    if not one.size:
        return one
    with tempfile.NamedTemporaryFile() as file:
        array = np.memmap(file.name, one.dtype, "w+", shape=one.shape)
        array[...] = one
        return array


needs_pandas = pytest.mark.skipif(not importlib.util.find_spec("pandas"), reason="needs pandas: pip install pandas")
CONTAINERS = [
    pytest.param(np.asarray, id="arrays"),
    pytest.param(lambda one: one.astype(one.dtype.newbyteorder(">")), id="big-endian"),
    pytest.param(np.asfortranarray, id="fortran"),
    pytest.param(lambda one: one.tolist() or one, id="lists"),
    pytest.param(in_pandas, id="pandas", marks=needs_pandas),
    pytest.param(in_nullable_pandas, id="nullable pandas", marks=needs_pandas),
    pytest.param(in_torch, id="torch", marks=needs_torch),
    pytest.param(in_a_file, id="files"),
    pytest.param(lambda one: array_api_strict.asarray(one), id="strict"),
]


@pytest.mark.parametrize("put", CONTAINERS)
@pytest.mark.parametrize("kind", ["features", "one feature", "tokens"])
def test_everything_that_has_numbers_will_do(put, kind):
    lengths = [4, 0, 2, 9]
    arrays = sequences_of(lengths)
    if kind == "one feature":
        arrays = [one[:, 0] for one in arrays]
    if kind == "tokens":
        arrays = [np.arange(T, dtype="int32") for T in lengths]
    there = [put(one) for one in arrays]
    x, found = ba.pad(there)
    expected, _ = ba.pad(arrays)
    assert found.tolist() == lengths
    assert x.dtype == expected.dtype == ("int64" if kind == "tokens" else "float32")
    assert np.array_equal(x, expected)

    data, wanted = (ba.batches(value, value, size=3, per_step=True) for value in (there, arrays))
    for batch, other in zip(data, wanted, strict=True):
        assert np.array_equal(batch.x, other.x)
        assert np.array_equal(batch.target, other.target)

    for window, other in zip(ba.windows(there[3], 4, 2), ba.windows(arrays[3], 4, 2), strict=True):
        assert np.allclose(window, other, rtol=0)
    scaling = ba.Standardization.of(arrays[3])
    assert ba.Standardization.of([there[3]]) == scaling
    if put is CONTAINERS[3].values[0] and kind == "features":
        return  # a list of lists is one of sequences
    assert ba.Standardization.of(there[3]) == scaling
    z = scaling(there[3])
    assert np.allclose(np.asarray(z), scaling(arrays[3]), rtol=1e-6, atol=1e-6)
    if kind != "features":
        series = scaling([there[3]])[0]
        assert np.allclose(series.reshape(-1), scaling(arrays[3]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("put", CONTAINERS[:7])
def test_padded_arrays_and_targets_may_be_in_anything_too(put):
    x = sequences_of([5])[0][:, None] + np.zeros((5, 4, 3))
    target = np.arange(8.0).reshape(4, 2)
    x_there = x.tolist() if put is CONTAINERS[3].values[0] else x  # a list is one of sequences
    if put is CONTAINERS[3].values[0]:
        x_there = x.swapaxes(0, 1).tolist()
    elif put not in (in_pandas, in_nullable_pandas):
        x_there = put(x)
    data = ba.batches(x_there, put(target), weights=put(np.arange(4.0)), size=3)
    expected = ba.batches(x, target, weights=np.arange(4.0), size=3)
    for batch, other in zip(data, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(batch, other, strict=True))


# ---- files that are larger than memory --------------------------------------------------------------------


@pytest.fixture
def huge(tmp_path):
    """64 GiB of zeros, which take no room on a disk, and which nobody reads as a whole."""

    def make(dtype, shape):
        path = tmp_path / "huge"
        with open(path, "wb") as file:
            file.truncate(math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(path, dtype, "r+", shape=shape)

    return make


def peak_of(function):
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("time_major", [True, False])
def test_of_a_file_only_what_is_in_a_batch_is_read(huge, time_major):
    T, N = 1 << 22, 1 << 10
    x = huge("float32", (T, N, 4) if time_major else (N, T, 4))
    x[(7, 5) if time_major else (5, 7)] = 1, 2, 3, 4
    lengths = np.full(N, 20)

    def read():
        data = ba.batches(x, x, lengths=lengths, size=16, shuffle=False, time_major=time_major)
        return next(data.epoch(0))

    batch, peak = peak_of(read)
    batch_x = batch.x if time_major else batch.x.swapaxes(0, 1)
    assert batch_x.shape == (20, 16, 4)
    assert batch_x[7, 5].tolist() == [1, 2, 3, 4]
    assert batch.x.sum() == batch.target.sum() == 10
    assert peak < 1 << 20


def test_windows_of_a_file_are_read_a_batch_at_a_time(huge):
    series = huge("float32", (1 << 34,))
    series[-3:] = 1, 2, 3

    def read():
        x, target = ba.windows(series, 100, horizon=1, stride=1 << 24)
        last, last_target = ba.windows(series[-102:], 100)
        batch = next(ba.batches(x, target[0], size=32).epoch(0))
        assert x.shape == (100, 1 << 10, 1)
        assert np.shares_memory(x, series, max_work=1)
        return batch, last, last_target

    (batch, last, last_target), peak = peak_of(read)
    assert batch.x.shape == (100, 32, 1)
    assert last[-1, :, 0].tolist() == [1, 2]
    assert last_target[0, :, 0].tolist() == [2, 3]
    assert peak < 1 << 20


def test_statistics_of_a_file_are_read_in_blocks(tmp_path):
    shape = (1 << 19, 16)  # 32 MiB
    x = np.memmap(tmp_path / "x", "float32", "w+", shape=shape)
    x[...] = np.random.default_rng(0).standard_normal(shape, dtype="float32") + np.arange(16)
    scaling, peak = peak_of(lambda: ba.Standardization.of(x))
    assert peak < 16 << 20
    assert np.allclose(scaling.mean, np.arange(16), atol=0.01)


# ---- windows ----------------------------------------------------------------------------------------------


@hypothesis.given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 4), st.integers(1, 5), st.sampled_from("tfv"))
def test_windows_are_views_of_every_place_where_one_fits(S, length, horizon, stride, kind):
    series = np.arange(2 * S).reshape(S, 2) if kind == "v" else np.arange(S) * (1 if kind == "t" else 0.5)
    if length + horizon > S:
        with pytest.raises(ValueError, match=rf"series has {S} steps.*{length} \+ {horizon} = {length + horizon}$"):
            ba.windows(series, length, horizon, stride)
        return
    x, target = ba.windows(series, length, horizon, stride)
    steps = series[:, None] if kind == "f" else series
    starts = range(0, S - length - horizon + 1, stride)
    assert x.shape == (length, len(starts), *steps.shape[1:])
    for w, start in enumerate(starts):
        assert np.array_equal(x[:, w], steps[start : start + length])
        if horizon:
            assert np.array_equal(target[:, w], steps[start + length : start + length + horizon])
    assert (target is None) == (horizon == 0)
    for view in (x, target)[: 2 if horizon else 1]:
        assert np.shares_memory(view, series)
        assert view.dtype == series.dtype
        assert not view.flags.writeable


# ---- standardization --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["list", "array", "batch first"])
def test_valid_steps_have_mean_0_and_deviation_1(form, monkeypatch):
    monkeypatch.setattr("bptt_array.data.standardization._BLOCK", 40)
    sequences = [3 + 5 * one for one in sequences_of([4, 0, 7, 1, 9])]
    steps = np.concatenate(sequences).astype("float64")
    x, lengths = ba.pad(sequences, value=np.nan)
    x = x.swapaxes(0, 1) if form == "batch first" else x
    x[np.isnan(x)] = 1e6  # past the end
    more = {"lengths": lengths, "time_major": form != "batch first"}
    scaling = ba.Standardization.of(sequences) if form == "list" else ba.Standardization.of(x, **more)
    assert np.allclose(scaling.mean, steps.mean(axis=0), rtol=1e-14)
    assert np.allclose(scaling.std, steps.std(axis=0), rtol=1e-14)
    if form == "list":
        z, back = scaling(sequences), scaling.inverse(scaling(sequences))
        assert all(np.allclose(one, two, rtol=1e-6) for one, two in zip(sequences, back, strict=True))
        z = np.concatenate(z)
    else:
        z = scaling(x, **more)
        valid = np.arange(9)[:, None] < lengths
        valid = valid.T if form == "batch first" else valid
        assert not z[~valid].any()
        assert np.allclose(scaling.inverse(z, **more)[valid], x[valid], rtol=1e-6)
        assert not scaling.inverse(z, **more)[~valid].any()
        z = z[valid]
    assert z.dtype == np.float32
    assert np.allclose(z.mean(axis=0), 0, atol=1e-6)
    assert np.allclose(z.std(axis=0), 1, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "offset", "close"), [("float64", 1e9, 1e-6), ("float32", 1e5, 1e-5)])
def test_it_is_exact_where_the_mean_is_far_larger_than_the_deviation(dtype, offset, close, monkeypatch):
    """In many blocks, of which the first has no number of one feature; float32 has the mean in two parts."""
    monkeypatch.setattr("bptt_array.data.standardization._BLOCK", 300)
    x = (offset + np.random.default_rng(0).standard_normal((20_000, 3))).astype(dtype)
    x[:200, 1] = x[5::7, 2] = np.nan
    scaling = ba.Standardization.of(x)
    far = x.astype("float64") - offset  # what is subtracted here has no rounding
    assert np.allclose(scaling.mean - offset, np.nanmean(far, axis=0), atol=1e-16 * offset)
    assert np.allclose(scaling.std, np.nanstd(far, axis=0), rtol=1e-12)
    z = scaling(x)
    assert z.dtype == dtype
    assert np.array_equal(np.isnan(z), np.isnan(x))
    assert np.allclose(np.nanmean(z.astype("float64"), axis=0), 0, atol=close)
    assert np.allclose(scaling.inverse(z), x, rtol=1e-7 if dtype == "float32" else 1e-15, equal_nan=True)


class Buffer:
    """An array of a library that NumPy can read, and that is none: such as one of Arrow."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


@pytest.mark.parametrize("kind", [lambda values: memory("d", values), Buffer], ids=["array", "Arrow"])
def test_pieces_of_memory_in_a_list_are_its_sequences(kind):
    rows = [[1.0, 2.0, 4.0], [4.0, 5.0, 6.0]]
    assert ba.Standardization.of([kind(row) for row in rows]) == ba.Standardization.of([np.array(row) for row in rows])
    data = ba.batches([np.zeros((3, 1))] * 2, [kind(row) for row in rows], per_step=True, shuffle=False)
    assert next(iter(data)).target[..., 0].T.tolist() == rows
    data = ba.batches([np.zeros((3, 1)), np.zeros((2, 1))], [kind(rows[0]), kind(rows[1][:2])], shuffle=False)
    assert next(iter(data)).target[..., 0].T.tolist() == [rows[0], [4.0, 5.0, 0.0]]


@needs_pandas
def test_a_column_of_sequences_is_a_list_of_them():
    import pandas

    table = pandas.DataFrame({"id": [0, 0, 0, 1, 1], "a": [0.5, 1.5, 2.0, 2.5, 3.0]})
    column, rows = table.groupby("id")["a"].agg(list), [[0.5, 1.5, 2.0], [2.5, 3.0]]
    x, lengths = ba.pad(column)
    assert (x[..., 0].T.tolist(), lengths.tolist()) == ([rows[0], [*rows[1], 0.0]], [3, 2])
    assert ba.Standardization.of(column) == ba.Standardization.of(rows)
    batch = next(iter(ba.batches(column, column, shuffle=False)))
    assert np.array_equal(batch.x, x)
    assert np.array_equal(batch.target, x)
    assert ba.Standardization.of(table["a"].astype(object)) == ba.Standardization.of(table["a"])
    for one in (table, table.groupby("id")):
        with pytest.raises(TypeError, match=r"expected a list of them, .* \[rows for _, rows in table\.groupby\("):
            ba.pad(one)
    x, _ = ba.pad([rows for _, rows in table.groupby("id")])
    assert x.shape == (3, 2, 2)


def test_a_standardization_is_of_features():
    with pytest.raises(ValueError, match=r"x has shape \(5, 0\); expected at least one feature \(last axis\)"):
        ba.Standardization.of(np.zeros((5, 0)))


def test_what_does_not_vary_has_the_deviation_1():
    x = np.full((1000, 2), 0.1)
    x[3, 1] = 0.2
    assert ba.Standardization.of(x).std[0] == 1
    assert not ba.Standardization.of(x)(x)[:, 0].any()
    assert ba.Standardization.of([5.0]).std == [1]


@hypothesis.given(
    st.lists(st.tuples(st.floats(-1e300, 1e300), st.floats(1e-300, 1e300)), min_size=1, max_size=4), st.booleans()
)
def test_a_configuration_is_plain_and_comes_back_to_the_bit(values, one):
    scaling = ba.Standardization(*zip(*values, strict=True))
    config = json.loads(json.dumps(scaling.config))
    assert config == scaling.config
    assert ba.Standardization(**config) == scaling == pickle.loads(pickle.dumps(scaling)) == copy.deepcopy(scaling)
    assert hash(ba.Standardization(**config)) == hash(scaling)
    other = ba.Standardization(scaling.mean, np.nextafter(scaling.std, np.inf))
    assert other != scaling


@pytest.mark.parametrize("device", cuda)
def test_on_cuda_the_host_does_not_wait_for_a_standardization(device):
    gpuemu = pytest.importorskip("gpuemu", reason="counts on the emulated device only")
    x = ba.RNN(3, 4, device=device).asarray(np.ones((5, 2, 3)))
    scaling = ba.Standardization([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    scaling.inverse(scaling(x, [5, 2]))
    with gpuemu.count() as c:
        scaling.inverse(scaling(x, [5, 2]))
    assert c.syncs == c.implicit_syncs == c.d2h == 0


def test_it_goes_along_with_a_model(tmp_path):
    scaling = ba.Standardization.of(np.random.default_rng(0).standard_normal((50, 3)) * 7 + 1)
    ba.RNN(3, 4).save(tmp_path / "model", {"scaling": scaling.config})
    _, metadata = ba.RNN.load_with_metadata(tmp_path / "model")
    assert ba.Standardization(**metadata["scaling"]) == scaling


@pytest.mark.parametrize(("make", "dtype"), backends_and_dtypes())
def test_arrays_of_any_backend_stay_where_they_are(make, dtype):
    backend = make()
    x = 1000 + np.random.default_rng(0).standard_normal((6, 4, 3)).astype(dtype)
    lengths = [6, 0, 3, 5]
    expected = ba.Standardization.of(x, lengths)
    with backend.active():
        there = backend.from_host(x)
        scaling = ba.Standardization.of(there, lengths)
        z, whole = scaling(there, lengths), scaling(there)
        back = scaling.inverse(whole)
        of_tokens = scaling(backend.from_host(np.ones((2, 3), "int32")))
    assert scaling == expected
    for array in (z, whole, back):
        assert backend.owns(array)
        assert array.dtype == there.dtype
    assert np.array_equal(backend.to_host(z), expected(x, lengths))
    assert np.array_equal(backend.to_host(whole), expected(x))
    assert np.allclose(backend.to_host(back), x, rtol=1e-6 if dtype == "float32" else 1e-15)
    assert backend.owns(of_tokens)
    assert np.allclose(backend.to_host(of_tokens), expected(np.ones((2, 3))), rtol=1e-6)


# ---- on the device of a network ---------------------------------------------------------------------------


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("bptt_array_ahead")]


def a_classification(**more):
    sequences = sequences_of([4, 2, 7, 1, 9, 3, 3, 5, 8, 2, 6])
    weights = np.linspace(0.5, 2, len(sequences))
    return ba.batches(sequences, [k % 2 for k in range(len(sequences))], weights=weights, size=3, **more)


@pytest.mark.parametrize(("make", "dtype"), backends_and_dtypes())
def test_batches_go_where_the_network_is(make, dtype):
    backend = make()
    rnn = ba.RNN(3, 4, 2, output="softmax", readout="last", device=backend, dtype=dtype, seed=1)
    data, losses = a_classification().to(rnn), []
    for k in range(2):
        for batch, expected in zip(data.epoch(k), a_classification(dtype=dtype).epoch(k), strict=True):
            assert all(backend.owns(array) for array in (batch.x, batch.target, batch.weights))
            assert isinstance(batch.lengths, np.ndarray)
            for got, wanted in zip(batch, expected, strict=True):
                assert np.array_equal(got if isinstance(got, np.ndarray) else backend.to_host(got), wanted)
            x, target, lengths, weights = batch
            loss, _, _ = rnn.loss_and_grad(x, target, "cross_entropy", lengths=lengths, weights=weights)
            losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert not readers()


class SlowUploads:
    """Copies that are made only where somebody waits for them."""

    def __init__(self):
        self.threads, self.calls = [], []

    def stage(self, arrays):
        self.threads.append(threading.current_thread())
        return [array.copy() for array in arrays]

    def begin(self, staged):
        self.calls.append("begin")
        return staged, [np.full_like(array, 77) for array in staged]

    def end(self, begun):
        self.calls.append("end")
        for array, out in zip(*begun, strict=True):
            out[...] = array
        return begun[1]

    def abandon(self, begun):
        self.calls.append("abandon")


class SlowBackend(NumpyBackend):
    name = "slow"
    uploads = None


@pytest.fixture
def slow():
    backend = SlowBackend()
    vars(backend)["uploads"] = SlowUploads()
    return backend


def test_a_thread_is_one_batch_ahead_and_ends_with_the_epoch(slow):
    data = a_classification().to(ba.RNN(3, 4, 2, device=slow))
    uploads = slow.uploads
    on_the_cpu = a_classification().to(ba.RNN(3, 4)).epoch(0)
    next(on_the_cpu)
    assert not readers()
    epoch = data.epoch(0)
    assert not uploads.threads  # until the first is asked for
    for k, (batch, expected) in enumerate(zip(epoch, a_classification().epoch(0), strict=True)):
        assert np.array_equal(batch.x, expected.x)
        assert len(readers()) == (k + 1 < len(data))
        assert uploads.calls.count("end") == k + 1
        assert uploads.calls.count("begin") == min(k + 2, len(data))
    assert len(uploads.threads) == len(data)
    assert {*uploads.threads}.isdisjoint({threading.main_thread()})
    assert not readers()


@pytest.mark.parametrize("how", ["close", "break", "drop", "never begun"])
def test_an_abandoned_epoch_leaves_no_thread(slow, how):
    data = a_classification().to(ba.RNN(3, 4, 2, device=slow))
    epoch = data.epoch(0)
    if how == "break":
        for _ in epoch:
            break
    elif how != "never begun":
        next(epoch)
    if how == "close":
        epoch.close()
    del epoch
    assert not readers()
    assert slow.uploads.calls == ([] if how == "never begun" else ["begin", "begin", "end", "abandon"])


def test_of_an_array_a_number_that_is_too_large_is_found_too():
    x = np.ones((4, 6, 2))
    x[3, 5, 1], x[3, 0] = 1e300, 1e300  # of which one is past the end
    data = ba.batches(x, lengths=[3, 4, 4, 4, 4, 4], size=3)
    with pytest.raises(ValueError, match=r"x\[:, 5\]\[3, 1\]=1e\+300 does not fit in float32"):
        list(data)
    assert len(list(ba.batches(x, dtype="float64"))) == 1


def test_batches_stay_as_they_were_made():
    data = a_classification()
    for name in ("size", "options", "N", "_next"):
        with pytest.raises(AttributeError, match=r"make others with ba\.batches\(\.\.\.\)"):
            setattr(data, name, 3)
    next(iter(data))
    assert np.array_equal(next(iter(data.shared_by(OneProcess()))).x, next(data.epoch(0)).x)  # from the first epoch on


def test_an_error_while_a_batch_is_read_reaches_who_asks_for_it(slow):
    sequences = sequences_of([2] * 10)
    sequences[7] = sequences[7].astype("float64")
    sequences[7][1, 2] = 1e300
    for device in (slow, "cpu"):
        data = ba.batches(sequences, size=2, shuffle=False).to(ba.RNN(3, 4, device=device))
        with pytest.raises(ValueError, match=r"x\[7\]\[1, 2\]=1e\+300 does not fit in float32"):
            list(data)
        assert not readers()
