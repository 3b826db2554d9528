"""One direction that reads from the end: the second of two, and the network that reads flipped sequences."""

import tracemalloc

import numpy as np
import pytest
from conftest import backends_and_dtypes

import bptt_array as ba
from bptt_array.bptt.padding import Feed, Padding
from bptt_array.diagnostics import gradient_flow, saturation
from bptt_array.training.sampling import sample
from bptt_array.training.text import Vocabulary

T, N, I, H, O = 9, 5, 3, 6, 2  # noqa: E741
LENGTHS = [9, 2, 0, 5, 1]
CELLS = ("tanh", "relu", "lstm", "gru")


def flipped(a, lengths=None, axis=1):
    """``a (T, N, ...)``, with N at ``axis``, with the first ``lengths`` steps of every sequence back to front."""
    a = np.moveaxis(a, axis, 1)
    result = a.copy()
    for n in range(a.shape[1]):
        valid = len(a) if lengths is None else lengths[n]
        result[:valid, n] = a[:valid, n][::-1]
    return np.moveaxis(result, 1, axis)


def drawn(dtype="float64"):
    rng = np.random.default_rng(0)
    return rng.standard_normal((T, N, I)).astype(dtype), rng.standard_normal((T, N, O)).astype(dtype)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("cell", CELLS)
def test_it_is_the_second_of_two_directions(cell, lengths):
    both = ba.RNN(I, H, cell=cell, bidirectional=True, dtype="float64")
    rnn = ba.RNN(I, H, cell=cell, reverse=True, dtype="float64")
    rnn.load_params({name: value[1] for name, value in both.params.items()})
    x, rng = drawn()[0], np.random.default_rng(1)
    initial = ba.State(*rng.standard_normal((1 + (cell == "lstm"), 1, 2, N, H)))
    half = ba.State(*(None if a is None else a[:, 1:] for a in (initial.h, initial.c)))
    (y, state, backward), (y_both, state_both, of_both) = (
        rnn.forward(x, half, lengths=lengths),
        both.forward(x, initial, lengths=lengths),
    )
    assert np.allclose(y, y_both[..., H:], rtol=1e-13)
    assert np.allclose(state.h, state_both.h[:, 1:], rtol=1e-13)
    dy = rng.standard_normal(y.shape)
    d_both = np.concatenate([np.zeros_like(dy), dy], axis=-1)
    grads, expected = backward(dy, input_grad=True), of_both(d_both, input_grad=True)
    assert np.allclose(grads.x, expected.x, rtol=1e-12, atol=1e-15)
    assert np.allclose(grads.state.h, expected.state.h[:, 1:], rtol=1e-12, atol=1e-15)
    for name, value in grads.params.items():
        assert np.allclose(value, expected.params[name][1], rtol=1e-12, atol=1e-15), name
    rnn.readout = both.readout = "last"  # the state at step 0
    last = rnn(x, lengths=lengths)[0]
    assert np.allclose(last, both(x, lengths=lengths)[0][:, H:], rtol=1e-13)
    rnn.readout = "every"
    read = np.array([n for n in range(N) if lengths is None or lengths[n]])
    assert np.allclose(last[read], rnn(x, lengths=lengths)[0][0, read], rtol=1e-13)


@pytest.mark.parametrize(("make", "dtype"), backends_and_dtypes())
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "options",
    [{"cell": "lstm", "num_layers": 2}, {"cell": "gru", "members": 2}, {"time_major": False}, {"readout": "last"}],
    ids=str,
)
def test_it_is_the_network_that_reads_flipped_sequences(make, dtype, lengths, options):
    forward = ba.RNN(I, H, O, dtype="float64", **options)
    rnn = ba.RNN(I, H, O, dtype=dtype, device=make(), reverse=True, **options).load_params(forward.params)
    host, (x, target) = rnn.backend.to_host, drawn()
    turn = (lambda a: a) if options.get("time_major", True) else (lambda a: np.moveaxis(a, 0, 1))
    every, axis = rnn.readout == "every", 1 if rnn.members is None else 2
    x_back, target_back = flipped(x, lengths), flipped(target, lengths) if every else target[0]
    target = target if every else target[0]
    target_turned, target_back = (turn(a) if every else a for a in (target, target_back))
    expected_loss, expected, expected_state = forward.loss_and_grad(
        turn(x_back), target_back, lengths=lengths, input_grad=True
    )
    tolerance = 1e-11 if dtype == "float64" else 2e-5
    for given in (rnn.asarray, lambda a: a.astype(dtype)):  # on the device, and on the host
        loss, grads, state = rnn.loss_and_grad(given(turn(x)), given(target_turned), lengths=lengths, input_grad=True)
        dx = turn(flipped(turn(expected.x), lengths, axis))
        found = {**grads.params, "loss": loss, "h": state.h, "dh": grads.state.h, "x": grads.x}
        there = {**expected.params, "loss": expected_loss, "h": expected_state.h, "dh": expected.state.h, "x": dx}
        for name, value in there.items():
            near = tolerance * max(np.max(np.abs(value)), 1e-3)
            assert np.max(np.abs(host(found[name]) - value)) <= near, name
    y, y_back = host(rnn(rnn.asarray(turn(x)), lengths=lengths)[0]), forward(turn(x_back), lengths=lengths)[0]
    y_back = turn(flipped(turn(y_back), lengths, axis)) if every else y_back
    assert np.max(np.abs(y - y_back)) <= tolerance * np.max(np.abs(y_back))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("layout", ["in order", "turned", "of another byte order"])
@pytest.mark.parametrize("shape", [(T, N, I), (T, 2, N, I), (T, 1, N), (T, N)], ids=str)
def test_segments_are_handed_over_from_the_end(lengths, layout, shape):
    a = np.arange(np.prod(shape), dtype="float64").reshape(shape)
    if layout == "turned":
        a = np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0)
    elif layout == "of another byte order":
        a = a.astype(">f8")
    features = shape[-1] == I
    sequences = np.moveaxis(a, len(shape) - 1 - features, 1)
    expected = np.moveaxis(flipped(sequences, lengths), 1, len(shape) - 1 - features)
    for backend in (ba.backend.NumpyBackend(), ba.Backend(np)):
        padding = None if lengths is None else Padding(backend, np.array(lengths))
        feed = Feed(backend, a, padding, features=features, reverse=True)
        if padding is not None:
            expected = padding.zeroed(expected, 0, T, features=features)
        for length in (1, 4, T):
            parts = [feed(start, min(T, start + length)) for start in range(0, T, length)]
            assert np.array_equal(np.concatenate(parts), expected)


def test_torch_says_the_same_of_flipped_arrays():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(I, H, 2), "readout": torch.nn.Linear(H, O)}).double()
    rnn = ba.RNN.from_torch_state_dict(theirs.state_dict(), reverse=True)
    x, _ = drawn()
    x_back = torch.tensor(x[::-1].copy(), requires_grad=True)
    y_back = theirs["readout"](theirs["rnn"](x_back)[0])
    y, _, backward = rnn.forward(x)
    assert np.allclose(y, y_back.detach().numpy()[::-1], rtol=1e-12)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    (y_back * torch.from_numpy(dy[::-1].copy())).sum().backward()
    assert np.allclose(backward(dy, input_grad=True).x, x_back.grad.numpy()[::-1], rtol=1e-10, atol=1e-14)


def test_a_state_goes_from_a_later_part_to_an_earlier_one():
    rnn, (x, _) = ba.RNN(I, H, O, cell="lstm", reverse=True, dtype="float64"), drawn()
    y, state = rnn(x)
    late, between = rnn(x[4:])
    early, last = rnn(x[:4], between)
    assert np.allclose(np.concatenate([early, late]), y, rtol=1e-13)
    assert np.allclose(last.c, state.c, rtol=1e-13)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
def test_diagnostics_are_in_the_order_of_time(lengths):
    x, target = drawn()
    rnn = ba.RNN(I, H, O, cell="gru", reverse=True, dtype="float64")
    forward = ba.RNN(**rnn.config | {"reverse": False}).load_params(rnn.params)
    back = flipped(x, lengths), flipped(target, lengths)
    flow, expected = gradient_flow(rnn, x, target, lengths=lengths), gradient_flow(forward, *back, lengths=lengths)
    assert np.allclose(flow.total[0, 0], flipped(expected.total[0, 0], lengths), rtol=1e-12)
    if lengths is None:
        assert np.allclose(flow.per_loss[2, 0, 0], expected.per_loss[T - 3, 0, 0][::-1], rtol=1e-12)
    assert not flow.per_loss[2, 0, 0, :2].any() or lengths is not None
    found, there = (saturation(of, a, lengths=lengths)["u"][0, 0] for of, a in ((rnn, x), (forward, back[0])))
    if lengths is None:
        assert np.array_equal(found, there[::-1])
    for n in range(N):  # of one sequence, so that no other is in its mean
        if valid := T if lengths is None else lengths[n]:
            one = slice(n, n + 1)
            found = saturation(rnn, x[:, one], lengths=[valid])["r"][0, 0, :valid]
            assert np.array_equal(found, saturation(forward, x[:valid, one][::-1])["r"][0, 0][::-1])


def test_nothing_as_large_as_the_inputs_is_made():
    rng, length = np.random.default_rng(0), 4000
    rnn = ba.RNN(100, 4, 1, reverse=True)
    x, target = rng.standard_normal((length, 8, 100)).astype("float32"), np.ones((length, 8, 1), "float32")
    memory = 1 << 20
    for lengths in (None, rng.integers(0, length, 8)):
        rnn.loss_and_grad(x, target, lengths=lengths, memory=memory)
        tracemalloc.start()
        rnn.loss_and_grad(x, target, lengths=lengths, memory=memory)
        assert tracemalloc.get_traced_memory()[1] <= 1.05 * memory < x.nbytes / 10
        tracemalloc.stop()


def test_it_may_be_set_and_what_writes_from_the_beginning_refuses_it():
    rnn, (x, _) = ba.RNN(I, H, O, dtype="float64"), drawn()
    y = rnn(x)[0]
    rnn.reverse = True
    assert "reverse=True" in repr(rnn)
    assert not np.allclose(rnn(x)[0], y)
    assert np.allclose(rnn(x[::-1])[0][::-1], y)
    with pytest.raises(ValueError, match="truncate=3, but reverse=True: it begins at the end"):
        rnn.loss_and_grad(x, np.zeros((T, N, O)), truncate=3)
    with pytest.raises(ValueError, match="truncate=3, but reverse=True: it begins at the end"):
        rnn.plan(x.shape, truncate=3)
    rnn.reverse = False
    assert np.array_equal(rnn(x)[0], y)
    with pytest.raises(ValueError, match="reverse=True, but bidirectional=True"):
        ba.RNN(I, H, bidirectional=True).reverse = True
    writer = ba.RNN(2, H, 2, output="softmax", reverse=True)
    with pytest.raises(ValueError, match="rnn"):
        sample(writer, Vocabulary("ab"), length=3)
