"""Dropout: the same bits everywhere, the odds that were asked for, and nothing that repeats."""

import itertools

import numpy as np
import pytest
from conftest import backends_and_dtypes

import bptt_array as ba
from bptt_array.bptt.dropout import Dropout, _hash_, _signed

T, N, K = 40, 8, 32


def masks(backend, dtype="float64", rate=0.3, seed=5, network_seed=2, members=None, first=0, batch=N):
    return Dropout(backend, backend.dtype(dtype), rate, rate, seed, network_seed, members, first, batch)


def lowbias32(x, key):
    """The hash in Python's own integers, which never wrap: each step modulo 2^32."""
    word = 0xFFFFFFFF
    x ^= x >> 16
    x = (x * 0x7FEB352D + key) & word
    x ^= x >> 15
    x = x * 0x846CA68B & word
    return x ^ x >> 16


@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_every_backend_hashes_to_the_same_32_bits(make_backend, dtype):
    words = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, *np.random.default_rng(0).integers(0, 2**32, 200).tolist()]
    keys = list(reversed(words))
    backend = make_backend()
    with backend.active():
        x, key = (backend.from_host(np.array([_signed(w) for w in ws], dtype="int32")) for ws in (words, keys))
        _hash_(x, key)
        found = backend.to_host(x)
    assert [int(w) & 0xFFFFFFFF for w in found] == [lowbias32(w, k) for w, k in zip(words, keys, strict=True)]


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_every_backend_draws_the_same_mask_bit_for_bit(make_backend, dtype, members):
    backend, numpy = make_backend(), ba.backend.NumpyBackend()
    for seed, network_seed in [(0, 0), (2**40 + 1, 7), (3, 2**31 - 2)]:
        with backend.active():
            found = masks(backend, dtype, 0.3, seed, network_seed, members)
            expected = masks(numpy, dtype, 0.3, seed, network_seed, members)
            for there, here in [
                (found.between(1, 5, 4, N, K), expected.between(1, 5, 4, N, K)),
                (found.recurrent(0, (2,), N, K), expected.recurrent(0, (2,), N, K)),
            ]:
                assert backend.owns(there)
                assert np.array_equal(backend.to_host(there), here)


def test_a_mask_holds_nothing_but_zero_and_the_scale_that_keeps_the_mean():
    mask = masks(ba.backend.NumpyBackend(), rate=0.25).between(1, 0, T, N, K)
    assert mask.shape == (T, N, K)
    assert set(np.unique(mask)) == {0.0, 1 / 0.75}


@pytest.mark.parametrize("rate", [0.01, 0.25, 0.5, 0.9])
def test_as_much_is_left_out_as_was_asked_for(rate):
    mask = masks(ba.backend.NumpyBackend(), rate=rate).between(1, 0, 1000, N, K)
    deviation = (rate * (1 - rate) / mask.size) ** 0.5
    assert abs(np.mean(mask == 0) - rate) < 4 * deviation
    for axis in range(3):  # and everywhere alike
        others = tuple(k for k in range(3) if k != axis)
        left_out = np.mean(mask == 0, axis=others)
        assert np.max(np.abs(left_out - rate)) < 5 * (rate * (1 - rate) / (mask.size / len(left_out))) ** 0.5


def test_masks_of_other_places_seeds_and_members_have_nothing_in_common():
    numpy = ba.backend.NumpyBackend()
    size = (200, N, K)
    drawn = {
        **{f"layer {k}": masks(numpy).between(k, 0, *size) for k in (1, 2, 3)},
        **{f"later by {t}": masks(numpy).between(1, t, *size) for t in (1, 200, 2**20)},
        **{f"call {seed}": masks(numpy, seed=seed).between(1, 0, *size) for seed in (0, 1, 6, 5 + 2**32)},
        **{f"network {seed}": masks(numpy, network_seed=seed).between(1, 0, *size) for seed in (0, 1, 3)},
        "other rate": masks(numpy, rate=0.5).between(2, 7, *size),
    }
    _have_nothing_in_common(drawn)


def test_masks_of_the_state_have_nothing_in_common_either():
    numpy, K = ba.backend.NumpyBackend(), 4096
    drawn = {f"layer {k}": masks(numpy).recurrent(k, (), N, K) for k in (0, 1, 2)}
    first, second = masks(numpy).recurrent(0, (2,), N, K)
    drawn |= {"second direction": second, "call": masks(numpy, seed=6).recurrent(0, (), N, K)}
    drawn |= {f"network {seed}": masks(numpy, network_seed=seed).recurrent(0, (), N, K) for seed in (0, 3)}
    drawn |= {f"between {k}": masks(numpy).between(k, 0, 1, N, K)[0] for k in (1, 2)}
    assert np.array_equal(first, drawn["layer 0"])
    _have_nothing_in_common(drawn)


def test_both_words_of_a_key_depend_on_everything():
    seen = set()
    for seed, network_seed, place in itertools.product((0, 1, 2**33), (0, 1, 2), (0, 1, 2)):
        drawn = masks(ba.backend.NumpyBackend(), seed=seed, network_seed=network_seed)
        seen |= {(k, int(word[0])) for k, word in enumerate(drawn._keys(place, 0))}
    assert len(seen) == 2 * 27


def _have_nothing_in_common(drawn):
    for (one, a), (other, b) in itertools.combinations(drawn.items(), 2):
        correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(correlation) < 5 / a.size**0.5, (one, other)


def test_neighbours_in_a_mask_are_independent():
    mask = masks(ba.backend.NumpyBackend(), rate=0.5).between(1, 0, 512, 16, 64)
    flat = mask.ravel() - mask.mean()
    for lag in (1, 2, 3, 4, 8, 16, 32, 64, 128, 1024, 2**16):
        assert abs(np.mean(flat[lag:] * flat[:-lag]) / np.var(flat)) < 5 / flat.size**0.5, lag


@pytest.mark.parametrize("segment", [1, 3, 40])
def test_the_mask_does_not_depend_on_segments(segment):
    numpy = ba.backend.NumpyBackend()
    whole = masks(numpy).between(1, 0, T, N, K)
    parts = [masks(numpy).between(1, t, min(segment, T - t), N, K) for t in range(0, T, segment)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_member_k_draws_as_the_single_network_with_seed_plus_k():
    numpy = ba.backend.NumpyBackend()
    together = masks(numpy, members=3)
    for k in range(3):
        alone = masks(numpy, network_seed=2 + k)
        assert np.array_equal(together.between(1, 3, T, N, K)[:, k], alone.between(1, 3, T, N, K))
        assert np.array_equal(together.recurrent(1, (2,), N, K)[k], alone.recurrent(1, (2,), N, K))


def network(**more):
    return ba.RNN(3, 16, 2, num_layers=2, dtype="float64", **more)


def batch():
    rng = np.random.default_rng(0)
    return rng.standard_normal((12, 4, 3)), rng.standard_normal((12, 4, 2))


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"recurrent_dropout": 0.5}])
def test_dropout_acts_with_a_seed_and_only_then(rates):
    x, target = batch()
    rnn, plain = network(**rates), network()
    assert np.array_equal(rnn(x)[0], plain(x)[0])
    assert not np.allclose(rnn(x, dropout_seed=1)[0], plain(x)[0])
    assert np.array_equal(rnn(x, dropout_seed=1)[0], rnn(x, dropout_seed=1)[0])
    assert not np.allclose(rnn(x, dropout_seed=1)[0], rnn(x, dropout_seed=2)[0])
    assert rnn.loss(x, target)[0] == plain.loss(x, target)[0]
    assert rnn.loss(x, target, dropout_seed=1)[0] == rnn.loss_and_grad(x, target, dropout_seed=1)[0]
    off, expected = rnn.loss_and_grad(x, target, dropout_seed="off")[1], plain.loss_and_grad(x, target)[1]
    assert all(np.array_equal(off.params[name], value) for name, value in expected.params.items())


def test_a_forgotten_seed_is_an_error_where_gradients_are_asked_for():
    x, target = batch()
    for rates, said in (({"dropout": 0.5}, r"dropout=0\.5"), ({"recurrent_dropout": 0.25}, r"recurrent_dropout=0\.25")):
        rnn = network(**rates)
        with pytest.raises(ValueError, match=rf"^dropout_seed is missing, but this RNN has {said}: give a whole"):
            rnn.loss_and_grad(x, target)
        with pytest.raises(ValueError, match="dropout_seed is missing"):
            rnn.forward(x)


def test_the_mask_of_the_state_is_the_same_at_every_step_and_that_between_layers_is_not():
    """With W_hh = 1 and nothing else, a unit either keeps its state, scaled each step, or has none after the first."""
    rnn = ba.RNN(1, 64, cell="relu", recurrent_dropout=0.5, init="identity", dtype="float64")
    rnn.params["l0.W_xh"][...] = 0
    h_0 = np.ones((1, 1, 1, 64))
    y, _ = rnn(np.zeros((6, 1, 1)), ba.State(h=h_0), dropout_seed=4)
    alive = y[0, 0] > 0
    assert 10 < alive.sum() < 54
    assert np.array_equal(y[:, 0] > 0, np.broadcast_to(alive, (6, 64)))
    assert np.allclose(y[:, 0, alive], 2.0 ** np.arange(1, 7)[:, None])
    between = masks(ba.backend.NumpyBackend()).between(1, 0, T, N, K)
    assert not np.array_equal(between[0], between[1])
