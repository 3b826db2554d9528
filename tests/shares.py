"""A batch in parts: what each part has of it, and what has to come out when they are put together.

The checks take the package as an argument, so that they run on mutated copies of it.
"""

from dataclasses import replace

import numpy as np
from cases import backward_options, draw, make, options


def slice_of(case, arrays, rows):
    """The case and the arrays of some of its sequences."""
    features = {"x": not case.tokens, "target": case.target != "classes", "weights": False}
    part = dict(arrays)
    for name, value in arrays.items():
        if name != "params" and value is not None:
            part[name] = value[..., rows, :] if features.get(name, True) else value[..., rows]
    lengths = None if case.lengths is None else case.lengths[rows]
    return replace(case, N=rows.stop - rows.start, lengths=lengths), part


def run(ba, rnn, case, arrays, rows, more):
    """loss_and_grad of some sequences, on the network's device."""
    part, own = slice_of(case, arrays, rows)
    keywords = options(ba, rnn, part, own) | more | {"dropout_rows": (rows.start, case.N)}
    return rnn.loss_and_grad(rnn.asarray(own["x"]), rnn.asarray(own["target"]), **keywords)


def whole_and_parts(ba, case, parts, dtype="float64", backend=None):
    """``(rnn, what loss_and_grad returns for the whole, the same for every part)``."""
    arrays = draw(case)
    rnn = make(ba, case, arrays["params"], dtype, backend)
    more = backward_options(rnn, case, arrays)
    whole = rnn.loss_and_grad(
        rnn.asarray(arrays["x"]), rnn.asarray(arrays["target"]), **options(ba, rnn, case, arrays) | more
    )
    return rnn, whole, [run(ba, rnn, case, arrays, rows, more) for rows in parts]


def bound(case, dtype="float64"):
    """Relative to the largest entry; chunks of time round differently for other numbers of sequences."""
    return (1e-12 if case.backward == "sequential" else 1e-10) * (1 if dtype == "float64" else 1e8)


def assert_near(found, expected, bound, what):
    assert tuple(found.shape) == tuple(expected.shape), what
    if expected.size:
        scale = np.max(np.abs(expected))
        assert np.max(np.abs(found - expected)) <= bound * scale, (what, np.max(np.abs(found - expected)), scale)


def assert_rows(rnn, grads, whole, rows, scale, bound):
    """Gradients of this part's states and inputs are those rows of the whole's."""
    host = rnn.backend.to_host
    pairs = [(grads.state.h, whole.state.h), (grads.state.c, whole.state.c), (grads.x, whole.x)]
    for k, (mine, all_of_it) in enumerate(pairs):
        assert (mine is None) == (all_of_it is None)
        if mine is not None and rows.stop > rows.start:
            expected = host(all_of_it)
            found = host(mine) * scale
            size = max(np.max(np.abs(expected)), np.finfo(float).tiny)
            assert np.max(np.abs(found - expected[..., rows, :])) <= bound * size, k


def of_members(weight, ndim):
    """A weight, or those of all members, for arrays that have them first."""
    return np.reshape(weight, np.shape(weight) + (1,) * (ndim - np.ndim(weight)))


def cut(N):
    """Unequal parts, one of them without a sequence."""
    first = min(1, N)
    return [slice(0, first), slice(first, first), slice(first, N)]


def check_parts(ba, case):
    """The weighted sum of the gradients of all parts is the gradient of the whole."""
    rnn, (loss, grads, _), parts = whole_and_parts(ba, case, cut(case.N))
    counts = [g.steps for _, g, _ in parts]
    if case.reduction == "sum":
        assert counts == [None] * 3
        assert grads.steps is None
        weights = [1.0] * 3
    else:
        assert np.allclose(sum(counts), grads.steps)
        weights = [count / np.where(grads.steps == 0, 1, grads.steps) for count in counts]
    near = bound(case)
    total = sum(w * value for w, (value, _, _) in zip(weights, parts, strict=True))
    assert_near(np.asarray(total), np.asarray(loss), near, "loss")
    for name, expected in grads.params.items():
        found = (
            of_members(w, g.params[name].ndim) * g.params[name] for w, (_, g, _) in zip(weights, parts, strict=True)
        )
        assert_near(sum(found), expected, near, name)
    for rows, weight, (_, g, _) in zip(cut(case.N), weights, parts, strict=True):
        assert_rows(rnn, g, grads, rows, of_members(weight, 3) if np.ndim(weight) else weight, near)
    empty_loss, empty, _ = parts[1]
    assert np.all(empty_loss == 0)
    assert all(np.all(value == 0) and value.shape == rnn.params[name].shape for name, value in empty.params.items())
