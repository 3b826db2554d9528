"""What is computed of a row, a step, a sequence or a member does not depend on the others, up to the ends of the dtype.

The rest of the suite has numbers of one size everywhere; here one of them is enormous.
"""

import numpy as np
import pytest
from conftest import backends_and_dtypes
from gradients import check_rows_at_the_extremes

import bptt_array as ba
from bptt_array.equations.activations import OUTPUT_ACTIVATIONS, softmax
from bptt_array.equations.losses import LOSSES, squared_error
from bptt_array.optimizers import largest_entries

EVERYWHERE = pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())


def sizes(dtype):
    """Logits and errors of rows from tiny to the largest whose differences are finite."""
    most = float(np.finfo(dtype).max)
    return [1.0, most / 4, -most / 4, 1e-30, 7616.0, -7616.0, most**0.5, -(most**0.4)]


def row_by_row(backend, function, *arrays):
    """What a function of rows gives for all of them at once, and for one after the other."""
    with backend.active():
        results = [function(*(backend.from_host(array) for array in arrays))]
        for k in range(len(arrays[0])):
            results.append(function(*(backend.from_host(array[k : k + 1]) for array in arrays)))
        together, *alone = ([backend.to_host(part) for part in result] for result in results)
    return together, [np.concatenate(parts) for parts in zip(*alone, strict=True)]


@EVERYWHERE
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("target", ["classes", "values"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_the_loss_of_a_row_and_its_gradient_are_its_own(make_backend, dtype, name, target):
    backend, logits = make_backend(), np.array([[size, 0.0, -size / 2] for size in sizes(dtype)], dtype)
    if target == "classes":
        if not LOSSES[name].takes_classes:
            pytest.skip(f"{name} has no classes")
        targets = np.arange(len(logits)) % 3
    else:
        targets = np.tile(np.array([0.0, 0.25, 0.75], dtype), (len(logits), 1))
    together, alone = row_by_row(
        backend, lambda v, target: LOSSES[name].function(backend, v, target, 1.0), logits, targets
    )
    for ours, own in zip(together, alone, strict=True):
        assert np.array_equal(ours, own)
    if LOSSES[name].function is not squared_error:  # whose square overflows where its gradient does not
        assert np.isfinite(together[0]).all()
    assert np.isfinite(together[1]).all()


@EVERYWHERE
@pytest.mark.parametrize("name", OUTPUT_ACTIVATIONS)
def test_an_output_of_a_row_and_its_gradient_are_its_own(make_backend, dtype, name):
    backend, g = make_backend(), OUTPUT_ACTIVATIONS[name]
    logits = np.array([[size, 0.0, -size] for size in sizes(dtype)], dtype)
    dy = np.array([[size, -1.0, -size] for size in sizes(dtype)[::-1]], dtype)

    def value_and_vjp(v, dy):
        g.value_(backend, v)
        return v, g.vjp(backend, v, dy)

    together, alone = row_by_row(backend, value_and_vjp, logits, dy)
    for ours, own in zip(together, alone, strict=True):
        assert np.array_equal(ours, own)
        assert np.isfinite(ours).all()


def test_rows_at_the_extremes_are_exact():
    check_rows_at_the_extremes(ba)


@EVERYWHERE
def test_two_sequences_of_opposite_logits_have_the_losses_of_each(make_backend, dtype):
    rnn = ba.RNN(2, 2, 2, output="softmax", device=make_backend(), dtype=dtype)
    values = {"l0.W_xh": 20 * np.eye(2), "l0.b_h": np.zeros(2), "W_hy": [[7616.0, -7616.0], [0.0, 0.0]]}
    for name, value in values.items():
        rnn.params[name] = rnn.asarray(value)
    x = rnn.asarray(np.eye(2)[None])
    for target, expected in ((np.array([[0, 1]]), 0.0), (np.array([[1, 0]]), 7616.0)):
        for loss_target in (target, np.eye(2)[target]):
            loss, grads, _ = rnn.loss_and_grad(x, rnn.asarray(loss_target), "cross_entropy")
            assert float(loss) == pytest.approx(expected, abs=20)
            assert all(np.isfinite(rnn.backend.to_host(grad)).all() for grad in grads.params.values())
    y = rnn.backend.to_host(rnn(x)[0])
    assert np.allclose(y, [[[1, 0], [0, 1]]])


@EVERYWHERE
def test_the_gradient_through_softmax_is_finite_where_its_parts_have_opposite_ends(make_backend, dtype):
    backend, most = make_backend(), 0.9 * float(np.finfo(dtype).max)
    with backend.active():
        y, dy = (backend.from_host(np.array([row], dtype)) for row in ([0.0, 1.0], [most, -most]))
        dz = softmax.vjp(backend, y, dy)
    assert backend.to_host(dz).tolist() == [[0.0, 0.0]]


@EVERYWHERE
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_zero_times_the_logarithm_of_zero_is_zero(make_backend, dtype, loss):
    """Outputs that cannot be, by biases of -inf (and +inf), cost nothing where the target agrees."""
    output, bias = ("softmax", [-np.inf, 0, 1]) if loss == "cross_entropy" else ("sigmoid", [-np.inf, np.inf, 1])
    target = [0, 0.25, 0.75] if loss == "cross_entropy" else [0, 1, 0.75]
    rnn = ba.RNN(1, 2, 3, output=output, device=make_backend(), dtype=dtype)
    near = ba.RNN(1, 2, 3, output=output, dtype="float64")
    rnn.params["b_y"], near.params["b_y"] = rnn.asarray(bias), np.nan_to_num(bias, posinf=800, neginf=-800)
    x = np.full((3, 1, 1), 0.5)
    targets = np.broadcast_to(target, (3, 1, 3))
    found, grads, _ = rnn.loss_and_grad(rnn.asarray(x), rnn.asarray(targets), loss)
    expected, exact, _ = near.loss_and_grad(x, targets.astype(float), loss)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(rnn.loss(rnn.asarray(x), rnn.asarray(targets), loss)[0]) == float(found)
    for name, grad in grads.params.items():
        np.testing.assert_allclose(rnn.backend.to_host(grad), exact.params[name], rtol=1e-4, atol=1e-6)
    wrong = [0.5, 0.5, 0] if loss == "cross_entropy" else [0.5, 1, 0.75]
    found, _ = rnn.loss(rnn.asarray(x), rnn.asarray(np.broadcast_to(wrong, (3, 1, 3))), loss)
    assert float(found) == np.inf


@EVERYWHERE
def test_a_class_that_cannot_be_and_weighs_nothing_costs_nothing(make_backend, dtype):
    """0 log 0 = 0 for class weights too, also where a class has its part by smoothing."""
    rnn = ba.RNN(1, 2, 3, output="softmax", device=make_backend(), dtype=dtype)
    rnn.params["b_y"] = rnn.asarray([-np.inf, 0, 1])
    x, loss = rnn.asarray(np.full((3, 2, 1), 0.5)), ba.losses.CrossEntropy([0, 1, 2], label_smoothing=0.3)
    for target in (np.array([[0, 1], [2, 1], [0, 2]]), rnn.asarray(np.full((3, 2, 3), 1 / 3))):
        found, grads, _ = rnn.loss_and_grad(x, target, loss)
        for array in (found, *grads.params.values()):
            assert np.isfinite(rnn.backend.to_host(array)).all()
    assert float(rnn.loss(x, target, ba.losses.CrossEntropy(label_smoothing=0.3))[0]) == np.inf


@EVERYWHERE
def test_a_sure_and_right_output_has_the_small_loss_that_is_its(make_backend, dtype):
    """Nothing cancels: log(1 + exp(-v)), where softplus(v) - v would be 0."""
    rnn = ba.RNN(1, 1, 1, output="sigmoid", device=make_backend(), dtype=dtype)
    rnn.params["W_hy"], rnn.params["b_y"] = rnn.asarray([[0.0]]), rnn.asarray([30.0])
    one = rnn.asarray(np.ones((1, 1, 1)))
    assert float(rnn.loss(one, one, "binary_cross_entropy")[0]) == pytest.approx(np.exp(-30.0), rel=1e-5)


@EVERYWHERE
@pytest.mark.parametrize("loss", [*LOSSES, "own"])
@pytest.mark.filterwarnings("ignore:invalid value")  # of a target that is infinite
def test_a_weight_of_zero_leaves_out_a_loss_that_is_infinite(make_backend, dtype, loss):
    output = {"cross_entropy": "softmax", "binary_cross_entropy": "sigmoid"}.get(loss, "identity")
    rnn = ba.RNN(1, 2, 2, output=output, device=make_backend(), dtype=dtype)
    xp = rnn.backend.xp
    x, target = np.ones((2, 1, 1)), np.array([[[0.5, 0.5]], [[np.inf, np.nan]]])

    def own(y, target):
        return xp.sum((y - target) ** 2, axis=-1), 2 * (y - target)

    loss = own if loss == "own" else loss
    weights = rnn.asarray([[1.0], [0.0]])
    value, grads, _ = rnn.loss_and_grad(rnn.asarray(x), rnn.asarray(target), loss, weights=weights)
    padded, of_padded, _ = rnn.loss_and_grad(rnn.asarray(x), rnn.asarray(target), loss, lengths=[1])
    assert 2 * float(value) == pytest.approx(float(padded), rel=1e-5)
    for name, grad in grads.params.items():
        assert np.allclose(2 * rnn.backend.to_host(grad), rnn.backend.to_host(of_padded.params[name]), rtol=1e-4)


@EVERYWHERE
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_squared_error_overflows_only_where_the_loss_does(make_backend, dtype, reduction, weighted):
    """The half, the mean and the weights come before the square and before the sum."""
    rnn, steps = ba.RNN(1, 1, 1, device=make_backend(), dtype=dtype), 64
    most, share = float(np.finfo(dtype).max), 1 / steps if reduction == "mean" else 1.0
    weight = 1e-6 if weighted else 1.0
    error = np.sqrt(most) * np.sqrt(
        2 * 0.9 / (share * weight * steps)
    )  # of all steps together: 0.9 of the largest number
    x, target = np.zeros((steps, 1, 1)), np.full((steps, 1, 1), error)
    more = {"weights": rnn.asarray(np.full((steps, 1), weight))} if weighted else {}
    for loss in (rnn.loss, lambda *a, **k: rnn.loss_and_grad(*a, **k)[::2]):
        value, _ = loss(rnn.asarray(x), rnn.asarray(target), reduction=reduction, **more)
        assert float(value) == pytest.approx(0.9 * most, rel=1e-4)


@EVERYWHERE
def test_the_norm_of_a_member_and_its_clipping_are_its_own(make_backend, dtype):
    backend = make_backend()
    rows = np.array([[size, -size / 2, 0.0] for size in sizes(dtype)], dtype)
    grads = {"a": rows, "b": rows[:, :2] / 3}
    E = len(rows)

    def of(k):
        return {name: backend.from_host(a if k is None else a[k : k + 1]) for name, a in grads.items()}

    with backend.active():
        norms = backend.to_host(ba.global_norm(of(None), members=E))
        clipped = ba.clip_by_global_norm(of(None), 2.0, members=E)
        largest = largest_entries(of(None), members=E)
        for k in range(E):
            assert norms[k] == float(ba.global_norm(of(k))) != 0
            alone = ba.clip_by_global_norm(of(k), 2.0)
            for name, array in clipped.items():
                assert np.array_equal(backend.to_host(array)[k], backend.to_host(alone[name])[0])
                assert backend.to_host(largest[name])[k] == np.abs(grads[name][k]).max()


@pytest.mark.parametrize("backward", ["sequential", "parallel"])
@pytest.mark.parametrize("cell", ["tanh", "relu"])
@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_the_gradient_of_a_sequence_and_of_a_member_are_its_own(cell, backward):
    """One of them explodes until it is no number; the other is as it is alone."""
    rng = np.random.default_rng(0)
    T, H = 45, 5
    rnn = ba.RNN(3, H, 2, cell=cell, members=2, dtype="float32")
    rnn.params["l0.W_hh"][1] = 30 * np.eye(H)
    rnn.params["l0.b_h"][1] = 1
    x = np.stack([rng.standard_normal((T, 2, 3)), np.full((T, 2, 3), 1e3)], axis=1).astype("float32")
    target = rng.standard_normal((T, 2, 2, 2)).astype("float32")
    _, grads, _ = rnn.loss_and_grad(x, target, backward=backward, input_grad=True)
    _, alone, _ = rnn.member(0).loss_and_grad(x[:, 0], target[:, 0], backward=backward, input_grad=True)
    for name, grad in alone.params.items():
        np.testing.assert_allclose(grads.params[name][0], grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads.x[:, 0], alone.x, rtol=1e-4, atol=1e-6)
    one = rnn.member(0)
    _, batch, _ = one.loss_and_grad(np.stack([x[:, 0, 0], x[:, 1, 0]], axis=1), target[:, 0], input_grad=True)
    _, first, _ = one.loss_and_grad(x[:, 0, :1], target[:, 0, :1], input_grad=True)
    np.testing.assert_allclose(2 * batch.x[:, 0], first.x[:, 0], rtol=1e-4, atol=1e-6)
