"""From sequences to batches: what comes in comes out, in every form, and only what is in a batch is read."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import bptt_array as ba
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
    smaller = [min(range(32), key=lambda j: len(similar.rows(k)[j])) for k in range(20)]
    assert len(set(smaller)) > 10


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
