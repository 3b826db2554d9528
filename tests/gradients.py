"""The gradient check that every option and every mutant goes through.

It takes the package as an argument, so that the same check runs on mutated copies of it.
"""

import numpy as np
import reference
from cases import Case, draw, draw_off_the_kink, flat_gradients, make, options, substituted, variables


def check_loss_gradient(ba, case):
    """loss_and_grad against directional finite differences of the library's own loss, in float64.

    With truncation the differences are of the reference, with the state at the start of every window held fixed.
    """
    arrays = draw_off_the_kink(case)
    rnn = make(ba, case, arrays["params"])
    value, grads, _ = rnn.loss_and_grad(
        arrays["x"],
        arrays["target"],
        **options(ba, rnn, case, arrays),
        truncate=case.truncate,
        input_grad=not case.tokens,
    )
    at = variables(case, arrays)
    if not case.state:
        del at["h_0"]

    def library_loss(values):
        params, x, h_0 = substituted(arrays, values)
        changed = {**arrays, "h_0": h_0}
        other = make(ba, case, params)
        return float(other.loss(x, arrays["target"], **options(ba, other, case, changed))[0])

    def truncated_loss(values):
        params, x, h_0 = substituted(arrays, values)
        return reference_loss(np, case, arrays, params, x, h_0, frozen=starts)

    starts = reference.forward(np, *substituted(arrays, {}), **case.reference_options).starts
    loss = library_loss if case.truncate is None else truncated_loss
    found = flat_gradients(rnn, grads)
    step = 1e-3 if case.cell == "tanh" else 1e-4
    ba.check_gradients(loss, at, {name: found[name] for name in at}, tolerance=1e-6, step=step)
    expected = reference_loss(np, case, arrays, *substituted(arrays, {}))
    assert abs(float(value) - expected) <= 1e-12 * max(1.0, abs(expected))


def check_given_gradient(ba, case, dy=True, dstate=True):
    """backward(dy, dstate) against directional finite differences of ``<dy, y> + <dstate, h_last>``."""
    arrays = draw_off_the_kink(case)
    rnn = make(ba, case, arrays["params"])
    given = {"dy": arrays["dy"] if dy else None}
    given["dstate"] = ba.State(h=arrays["d_last"][None, None, ...]) if dstate else None
    _, _, backward = rnn.forward(arrays["x"], ba.State(h=arrays["h_0"][None, None, ...]), lengths=case.lengths)
    found = flat_gradients(rnn, backward(**given, input_grad=not case.tokens))

    def probe(values):
        params, x, h_0 = substituted(arrays, values)
        y, state = make(ba, case, params)(x, ba.State(h=h_0[None, None, ...]), lengths=case.lengths)
        total = 0.0
        if dy:
            total += np.sum(y * arrays["dy"])
        if dstate:
            total += np.sum(state.h[0, 0] * arrays["d_last"])
        return float(total)

    step = 1e-3 if case.cell == "tanh" else 1e-4
    ba.check_gradients(probe, variables(case, arrays), found, tolerance=1e-6, step=step)


def check_padding(ba, case):
    """Whatever stands past the end of a sequence changes no bit of any result, not even by overflowing there."""
    plain, filled = draw(case), draw(case)
    steps = np.arange(case.T)[:, None]
    past = steps >= np.asarray(case.lengths) if case.readout == "every" else np.asarray(case.lengths) == 0
    filled["x"][steps >= np.asarray(case.lengths)] = -7 if case.tokens else np.nan
    for name in ("target", "weights", "dy"):
        if filled[name] is not None:
            filled[name][past] = -7 if filled[name].dtype.kind == "i" else np.nan
    first, second = _everything(ba, case, plain), _everything(ba, case, filled)
    for name, value in first.items():
        assert np.isfinite(value).all(), name
        assert np.array_equal(value, second[name]), name


def check_weights_of_zero(ba):
    """A step of weight 0 is nothing: a target there that is no number changes no bit."""
    case = Case(weights=True, output="tanh")
    plain, filled = draw(case), draw(case)
    nothing = filled["weights"] == 0
    assert nothing.any()
    assert not nothing.all()
    filled["target"][nothing] = np.nan
    plain["target"][nothing] = 0
    first, second = _everything(ba, case, plain), _everything(ba, case, filled)
    for name, value in first.items():
        assert np.isfinite(second[name]).all(), name
        assert np.array_equal(value, second[name]), name


def check_explosion_in_the_padding(ba):
    """A network whose states overflow after two steps is no matter if every sequence has one."""
    case = Case(cell="relu", lengths=(1, 0, 1, 1), segment=3)
    arrays = draw(case)
    arrays["params"]["l0.W_hh"] = np.abs(arrays["params"]["l0.W_hh"]) * 1e200
    arrays["params"]["l0.b_h"] = np.abs(arrays["params"]["l0.b_h"])
    arrays["h_0"] *= 1e-200
    with np.errstate(over="ignore", invalid="ignore"):
        for name, value in _everything(ba, case, arrays).items():
            assert np.isfinite(value).all(), name


def _everything(ba, case, arrays):
    """Every result of both kinds of backward pass, by name."""
    rnn = make(ba, case, arrays["params"])
    keywords = options(ba, rnn, case, arrays)
    input_grad = not case.tokens
    loss, grads, state = rnn.loss_and_grad(arrays["x"], arrays["target"], **keywords, input_grad=input_grad)
    y, _, backward = rnn.forward(arrays["x"], keywords["state"], lengths=case.lengths)
    given = backward(arrays["dy"], ba.State(h=arrays["d_last"][None, None]), input_grad=input_grad)
    named = {"loss": loss, "y": y, "state": state.h}
    named |= flat_gradients(rnn, grads)
    return named | {f"{name} of dy": value for name, value in flat_gradients(rnn, given).items()}


def reference_loss(np, case, arrays, params, x, h_0, **more):
    """The loss of a case by the equations."""
    return reference.loss(
        np,
        params,
        x,
        h_0,
        arrays["target"],
        loss=case.loss,
        weights=arrays["weights"],
        reduction=case.reduction,
        **case.reference_options,
        **more,
    )
