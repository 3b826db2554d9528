"""Dropout: the same bits everywhere, the odds that were asked for, and nothing that repeats."""

import itertools

import numpy as np
import pytest
import reference_dropout
from conftest import backends_and_dtypes
from reference_dropout import lowbias32

import bptt_array as ba
from bptt_array.bptt.dropout import Dropout, _hash_, _signed

T, N, K = 40, 8, 32


def masks(backend, dtype="float64", rate=0.3, seed=5, network_seed=2, members=None, first=0, batch=N):
    return Dropout(backend, backend.dtype(dtype), rate, rate, seed, network_seed, members, first, batch)


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


@pytest.mark.parametrize("rows", [None, (0, 11), (5, 11)], ids=str)
@pytest.mark.parametrize("seeds", [(0, 0), (17, 3), (2**40 + 1, 2**31 - 1), (2**63 - 1, 2**35 + 5)], ids=str)
def test_masks_are_those_of_the_reference(seeds, rows):
    """In every layer, at every step, for every direction and member, wherever the sequences are in a batch."""
    steps, N, F, rate, (call_seed, network_seed) = 3, 2, 5, 0.3, seeds
    first, batch = rows or (0, N)
    numpy = ba.backend.NumpyBackend()
    one = masks(numpy, "float64", rate, call_seed, network_seed, None, first, batch)
    three = masks(numpy, "float64", rate, call_seed, network_seed, 3, first, batch)
    for layer, start, k in itertools.product(range(1, 4), (0, 1, 7, 2**31, 2**32 - 1), range(3)):
        expected = reference_dropout.between(
            call_seed, network_seed + k, rate, layer, steps, N, F, start=start, rows=rows
        )
        assert np.array_equal(three.between(layer, start, steps, N, F)[:, k], expected)
        assert k or np.array_equal(one.between(layer, start, steps, N, F), expected)
    for layer, k in itertools.product(range(3), range(3)):
        expected = reference_dropout.recurrent(call_seed, network_seed + k, rate, layer, 2, N, F, rows=rows)
        assert np.array_equal(three.recurrent(layer, (2,), N, F)[k], expected)
        assert np.array_equal(three.recurrent(layer, (), N, F)[k], expected[0])
        assert k or np.array_equal(one.recurrent(layer, (2,), N, F), expected)
    assert one.between(0, 0, steps, N, F) is reference_dropout.between(*seeds, rate, 0, steps, N, F) is None


#: Options of a network, arguments of a call (with seed 0), and what is kept of 3 steps of 2 sequences with 8 units, or
#: of their states: for good, since a run that another version resumes has to go on with the masks that it began with.
KEPT = {
    "layer 1": ({"dropout": 0.5, "num_layers": 2}, {}, "5b07eb1745db"),
    "layer 2": ({"dropout": 0.5, "num_layers": 3}, {}, "6e000bebb25e"),
    "another seed of the call": ({"dropout": 0.5, "num_layers": 2}, {"dropout_seed": 2**40 + 1}, "5faed5b18862"),
    "another seed of the network": ({"dropout": 0.5, "num_layers": 2, "seed": 2**33 + 7}, {}, "3d46f69ba0ac"),
    "another rate": ({"dropout": 0.2, "num_layers": 2}, {}, "ffafefdfd5fb"),
    "a part of a batch": ({"dropout": 0.5, "num_layers": 2}, {"dropout_rows": (3, 7)}, "17456bce460c"),
    "two directions": ({"dropout": 0.5, "num_layers": 2, "bidirectional": True}, {}, "5b07eb1745dbbf8a11b36bce"),
    "two members": ({"dropout": 0.5, "num_layers": 2, "members": 2}, {}, "5b07c78ceb17bf8645db04c2"),
    "state of layer 0": ({"recurrent_dropout": 0.5}, {}, "1111"),
    "state of layer 1": ({"recurrent_dropout": 0.5, "num_layers": 2}, {}, "b529"),
    "state, another seed of the call": ({"recurrent_dropout": 0.5}, {"dropout_seed": 2**40 + 1}, "830a"),
    "state, another seed of the network": ({"recurrent_dropout": 0.5, "seed": 2**33 + 7}, {}, "bb0f"),
    "state, another rate": ({"recurrent_dropout": 0.2}, {}, "7b97"),
    "state, a part of a batch": ({"recurrent_dropout": 0.5}, {"dropout_rows": (3, 7)}, "1a09"),
    "state, two directions": ({"recurrent_dropout": 0.5, "bidirectional": True}, {}, "1116111a"),
    "state, two members": ({"recurrent_dropout": 0.5, "members": 2}, {}, "111153d9"),
}


def shows_its_mask(options, dtype, device):
    """A network whose outputs are the mask of its top layer's input or, from a state of ones, of its state."""
    rnn = ba.RNN(1, 8, cell="relu", dtype=dtype, device=device, **options)
    top, D = f"l{rnn.num_layers - 1}.", 1 + rnn.bidirectional
    for name, value in rnn.params.items():
        below = not name.startswith(top) and name.endswith("b_h")  # which gives ones
        shown = np.ones(value.shape) if below else np.zeros(value.shape)
        if name == top + ("W_hh" if "recurrent_dropout" in options else "W_xh"):
            units = np.eye(value.shape[-1])
            shown += units if len(units) == 8 else units.reshape(D, 8, D * 8)  # each direction shows its own half
        rnn.params[name] = rnn.asarray(shown)
    return rnn


def mask_of_the_reference(options, call):
    """What such a network shows, ``(T, [E,] N, D*H)``."""
    E, layer, D = options.get("members"), options.get("num_layers", 1) - 1, 1 + options.get("bidirectional", False)
    drawn = []
    for k in range(E or 1):
        seeds, rows = (call["dropout_seed"], options.get("seed", 0) + k), call.get("dropout_rows")
        if "dropout" in options:
            drawn.append(reference_dropout.between(*seeds, options["dropout"], layer, 3, 2, D * 8, rows=rows))
        else:
            of_sides = reference_dropout.recurrent(*seeds, options["recurrent_dropout"], layer, D, 2, 8, rows=rows)
            drawn.append(np.concatenate(of_sides, axis=-1)[None])
    return drawn[0] if E is None else np.stack(drawn, axis=1)


@pytest.mark.parametrize("case", KEPT)
@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_what_is_left_out_for_a_seed_is_what_it_always_was(make_backend, dtype, case):
    options, call, kept = KEPT[case]
    call = {"dropout_seed": 0} | call
    expected = mask_of_the_reference(options, call)
    assert np.packbits(expected.ravel() > 0).tobytes().hex() == kept
    rnn = shows_its_mask(options, dtype, make_backend())
    of_state, members = "recurrent_dropout" in options, () if rnn.members is None else (rnn.members,)
    h_0 = rnn.asarray(np.ones((rnn.num_layers, 1 + rnn.bidirectional, *members, 2, 8)))
    x = rnn.asarray(np.zeros((1 if of_state else 3, 2, 1)))
    y, _ = rnn(x, ba.State(h=h_0) if of_state else None, **call)
    assert np.array_equal(rnn.backend.to_host(y), expected.astype(dtype))


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
