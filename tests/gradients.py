"""The gradient check that every option and every mutant goes through.

It takes the package as an argument, so that the same check runs on mutated copies of it.
"""

from dataclasses import replace

import numpy as np
import reference
from cases import (
    Case,
    backward_options,
    call_options,
    draw,
    draw_off_the_kink,
    flat_gradients,
    make,
    members_of,
    of_member,
    of_the_sum,
    options,
    run_reference,
    state_of,
    substituted,
    variables,
)


def check_loss_gradient(ba, case, at_once=False):
    """loss_and_grad against directional finite differences of the library's own loss, in float64.

    With truncation the differences are of the reference, with the state at the start of every window held fixed.

    ``at_once``: one direction for all arrays together, which takes a few values of the loss and not a few for each.
    """
    arrays = draw_off_the_kink(case)
    rnn = make(ba, case, arrays["params"])
    value, grads, last = rnn.loss_and_grad(
        arrays["x"],
        arrays["target"],
        **options(ba, rnn, case, arrays),
        **backward_options(rnn, case, arrays),
    )
    at = variables(case, arrays)
    if not case.state:
        at = {name: array for name, array in at.items() if name not in ("h_0", "c_0")}

    def library_loss(values):
        changed = substituted(arrays, values)
        other = make(ba, case, changed["params"])
        return float(np.sum(other.loss(changed["x"], arrays["target"], **options(ba, other, case, changed))[0]))

    def truncated_loss(values):
        return float(np.sum(reference_losses(np, case, substituted(arrays, values), frozen=starts)))

    starts = [run_reference(np, case, of_member(case, arrays, k)).starts for k in members_of(case)]
    loss = library_loss if case.truncate is None else truncated_loss
    found = of_the_sum(case, flat_gradients(rnn, grads))
    check_slopes(ba, loss, at, {name: found[name] for name in at}, case.step, at_once)
    expected = np.asarray(reference_losses(np, case, arrays))
    assert value.shape == (() if case.members is None else (case.members,))
    assert np.max(np.abs(value - expected)) <= 1e-12 * max(1.0, np.max(np.abs(expected)))
    _, state = rnn(arrays["x"], **call_options(ba, rnn, case, arrays))
    assert np.allclose(last.h, state.h, rtol=1e-12, atol=1e-12)


def check_given_gradient(ba, case, dy=True, dstate=True, at_once=False):
    """backward(dy, dstate) against directional finite differences of ``<dy, y> + <dstate, last state>``."""
    arrays = draw_off_the_kink(case)
    rnn = make(ba, case, arrays["params"])
    given = {"dy": arrays["dy"] if dy else None}
    given["dstate"] = state_of(ba, rnn, arrays, "d{}_last") if dstate else None
    _, _, backward = rnn.forward(arrays["x"], **given_options(ba, rnn, case, arrays), backward=case.backward)
    found = of_the_sum(case, flat_gradients(rnn, backward(**given, input_grad=not case.tokens)))

    def probe(values):
        changed = substituted(arrays, values)
        other = make(ba, case, changed["params"])
        y, state = other(changed["x"], **given_options(ba, other, case, changed))
        total = 0.0
        if dy:
            total += np.sum(y * arrays["dy"])
        if dstate:
            total += np.sum(state.h * arrays["dh_last"])
            total += np.sum(state.c * arrays["dc_last"]) if case.has_c else 0.0
        return float(total)

    check_slopes(ba, probe, variables(case, arrays), found, case.step, at_once)


def check_slopes(ba, loss, at, grads, step, at_once):
    """Gradients by name against finite differences of ``loss`` at the arrays ``at``."""
    if not at_once:
        ba.check_gradients(loss, at, grads, tolerance=1e-6, step=step)
        return
    # All arrays in one, each in units of its size, so that none is moved by more than another.
    size = {name: np.sqrt(np.mean(array * array)) or 1.0 for name, array in at.items()}
    ends = np.cumsum([array.size for array in at.values()])[:-1]

    def of_all(values):
        parts = np.split(values["all"], ends)
        return loss({name: part.reshape(at[name].shape) * size[name] for name, part in zip(at, parts, strict=True)})

    whole = np.concatenate([(array / size[name]).reshape(-1) for name, array in at.items()])
    slopes = np.concatenate([(grads[name] * size[name]).reshape(-1) for name in at])
    ba.check_gradients(of_all, {"all": whole}, {"all": slopes}, tolerance=1e-6, step=step)


def check_two_periods(ba, case):
    """Truncation with k1 and k2: every k1 steps their loss, differentiated by the library from k2 steps back."""
    k1, k2 = case.truncate
    arrays = draw(case)
    if arrays["weights"] is None:
        arrays["weights"] = np.ones(arrays["target"].shape[:2])
    one = replace(case, truncate=None, reduction="sum")
    rnn = make(ba, one, arrays["params"])
    keywords = options(ba, rnn, one, arrays)
    input_grad = not case.tokens
    found_loss, found, last = rnn.loss_and_grad(
        arrays["x"], arrays["target"], **keywords, truncate=(k1, k2), input_grad=input_grad
    )
    total, loss = {}, 0
    ends = [*range(k1, case.T, k1), case.T]
    for begin, end in zip([0, *ends], ends, strict=False):
        first = max(0, end - k2)
        start = keywords["state"]
        if first:
            _, start = rnn(arrays["x"][:first], start, dropout_seed=keywords["dropout_seed"])
        weights = np.where(np.arange(first, end)[:, None] >= begin, keywords["weights"][first:end], 0)
        value, grads, _ = rnn.loss_and_grad(
            arrays["x"][first:end], arrays["target"][first:end], **keywords | {"state": start, "weights": weights},
            input_grad=input_grad,
        )  # fmt: skip
        loss = loss + value
        for name, gradient in flat_gradients(rnn, grads).items():
            if name == "x":
                whole = np.zeros((case.T, *gradient.shape[1:]))
                whole[first:end] = gradient
                gradient = whole
            if name in ("h_0", "c_0") and first:
                continue  # of a state that is held constant
            total[name] = total.get(name, 0) + gradient
    assert np.allclose(found_loss, loss)
    for name, gradient in flat_gradients(rnn, found).items():
        assert np.allclose(gradient, total[name], rtol=1e-9, atol=1e-12), name
    assert np.allclose(last.h, rnn(arrays["x"], keywords["state"], dropout_seed=keywords["dropout_seed"])[1].h)


def given_options(ba, rnn, case, arrays):
    """Keyword arguments of a call with the initial state in any case."""
    return call_options(ba, rnn, case, arrays) | {"state": state_of(ba, rnn, arrays)}


def check_padding(ba, case):
    """Whatever stands past the end of a sequence changes no bit of any result, not even by overflowing there."""
    plain, filled = draw(case), draw(case)
    steps = np.arange(case.T)[:, None]
    past = steps >= np.asarray(case.lengths) if case.readout == "every" else np.asarray(case.lengths) == 0
    filled["x"] = _filled(case, filled["x"], steps >= np.asarray(case.lengths), per_member=not case.shared)
    for name in ("target", "weights", "dy"):
        if filled[name] is not None:
            filled[name] = _filled(case, filled[name], past, per_member=name == "dy" or not case.shared)
    first, second = _everything(ba, case, plain), _everything(ba, case, filled)
    for name, value in first.items():
        assert np.isfinite(value).all(), name
        assert np.array_equal(value, second[name]), name


def _filled(case, array, past, *, per_member):
    """``array`` with what is no number, or no class, where ``past ([T,] N)``."""
    if case.members is not None and per_member:
        past = np.broadcast_to(past[..., None, :], (*past.shape[:-1], case.members, case.N))
    array = array.copy()
    array[past] = -7 if array.dtype.kind == "i" else np.nan
    return array


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


def check_rows_at_the_extremes(ba):
    """Logits, errors and biases at the ends of the dtype: the loss, output and gradient of a row are its own."""
    x = np.eye(2)[None]  # two sequences, with logits (7616, 0) and (-7616, 0)
    rnn = ba.RNN(2, 2, 2, output="softmax", dtype="float64")
    rnn.params["l0.W_xh"][...], rnn.params["l0.b_h"][...] = 30 * np.eye(2), 0
    rnn.params["W_hy"][...], rnn.params["b_y"][...] = [[7616, -7616], [0, 0]], 0
    wrong = np.array([[1, 0]])
    for loss, target in (("cross_entropy", wrong), ("cross_entropy", np.eye(2)[wrong]), ("mse", np.eye(2)[wrong])):
        value, grads, _ = rnn.loss_and_grad(x, target, loss)
        assert np.isclose(value, 1 if loss == "mse" else 7616), loss
        assert all(np.isfinite(grad).all() for grad in grads.params.values()), loss
    assert np.array_equal(rnn(x)[0], [[[1, 0], [0, 1]]])
    for output, bias, target in (("softmax", [-np.inf, 0], [0, 1]), ("sigmoid", [-np.inf, np.inf], [0, 1])):
        rnn = ba.RNN(2, 2, 2, output=output, dtype="float64")
        rnn.params["W_hy"][...], rnn.params["b_y"][...] = 0, bias
        loss = "cross_entropy" if output == "softmax" else "binary_cross_entropy"
        value, grads, _ = rnn.loss_and_grad(x, np.broadcast_to(np.array(target, float), (1, 2, 2)), loss)
        assert value == 0, loss
        assert not any(grad.any() for grad in grads.params.values()), loss
    rnn = ba.RNN(2, 2, 1, dtype="float64")
    rnn.params["W_hy"][...], rnn.params["b_y"][...] = 0, 0
    most = float(np.finfo("float64").max)
    for reduction, share in (("sum", 0.9 / 2), ("mean", 0.9)):  # two squares, which together are too large
        value, _ = rnn.loss(x, np.full((1, 2, 1), np.sqrt(2 * share) * np.sqrt(most)), reduction=reduction)
        assert np.isclose(value, 0.9 * most), reduction


#: Optimizers, with settings that no default is.
UPDATES = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.7}),
    ("SGD", {"momentum": 0.7, "nesterov": True}),
    ("Adam", {"beta1": 0.8, "beta2": 0.9, "eps": 1e-2}),
    ("AdamW", {"beta1": 0.8, "beta2": 0.9, "eps": 1e-2, "weight_decay": 0.3}),
    ("RMSprop", {"alpha": 0.6, "eps": 1e-2}),
    ("RMSprop", {"alpha": 0.6, "eps": 1e-2, "momentum": 0.7}),
    ("RMSprop", {"alpha": 0.6, "eps": 1e-2, "centered": True}),
    ("RMSprop", {"alpha": 0.6, "eps": 1e-2, "centered": True, "momentum": 0.7}),
]


def check_updates(ba):
    """Updates of every optimizer against the equations, with a learning rate that changes.

    Of a parameter that has no gradient at first, of one that joins later, and of those whose weights do not decay.
    """
    rng = np.random.default_rng(0)
    shapes = {"l0.W": (3, 2), "l0.b": (4,), "W.late": (2,), "V": (), "l1.W": (1,), "bb": (2,)}
    stay, rates = ("l0.b", "W.late", "V"), rng.uniform(0.05, 0.2, 6)
    start = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    grads = [{name: np.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()} for _ in rates]
    for early in grads[:2]:
        early["l1.W"][...] = 0
        del early["W.late"]
    for optimizer, settings in UPDATES:
        found = {name: np.array(value) for name, value in start.items()}
        first = min(rates)  # no update's
        one = getattr(ba, optimizer)(lr=first, **settings)
        if optimizer == "AdamW":
            one.no_decay = ("b", "V")
        for given, rate in zip(grads, rates, strict=True):
            one.lr = rate
            if optimizer == "AdamW" and "W.late" in given:
                one.no_decay = ("b", "V", "late")
            one.update({name: found[name] for name in given}, given)
        for name, value in start.items():
            own = [(given[name], rate) for given, rate in zip(grads, rates, strict=True) if name in given]
            decay = {"weight_decay": 0} if name in stay else {}
            expected = reference.after_updates(np, optimizer, value, *zip(*own, strict=True), **settings | decay)
            assert np.allclose(found[name], expected, rtol=1e-12, atol=1e-13), (optimizer, settings, name)


def check_explosion_in_the_padding(ba):
    """A network whose states overflow after two steps is no matter if every sequence has one."""
    case = Case(cell="relu", lengths=(1, 0, 1, 1), segment=3)
    arrays = draw(case)
    arrays["params"]["l0.W_hh"] = np.abs(arrays["params"]["l0.W_hh"]) * 1e200
    arrays["params"]["l0.b_h"] = np.abs(arrays["params"]["l0.b_h"])
    arrays["h_0"] *= 1e-200
    _check_finite(ba, case, arrays)
    # Past the end of a sequence tanh' is 1, and a product of Jacobians one of W_hh alone
    case = Case(T=45, lengths=(30, 1, 0, 2), segment=100, backward="parallel")
    arrays = draw(case)
    arrays["params"]["l0.W_hh"] *= 1e100
    arrays["params"]["l0.b_h"][...] = 100  # so that tanh' is 0 where there are steps
    arrays["params"]["l0.W_xh"] *= 0
    arrays["h_0"] *= 0
    _check_finite(ba, case, arrays)
    # The states of a GRU are bounded, but r (W_hn h + b_hn) is 0 times infinity where r is closed and its sum overflows
    case = Case(cell="gru", lengths=(1, 0, 1, 1), segment=3)
    arrays = draw(case)
    params, H = arrays["params"], case.H
    params["l0.W_hh"][:H], params["l0.W_hh"][2 * H :], params["l0.b_h"][2 * H :] = -1.7e308, 1.7e308, 3
    params["W_hy"] *= 1e-30
    arrays["h_0"] *= 0
    arrays["dh_last"] *= 1e-30
    _check_finite(ba, case, arrays)


def _check_finite(ba, case, arrays):
    with np.errstate(over="ignore", invalid="ignore"):
        for name, value in _everything(ba, case, arrays).items():
            assert np.isfinite(value).all(), name


def _everything(ba, case, arrays):
    """Every result of both kinds of backward pass, by name."""
    rnn = make(ba, case, arrays["params"])
    keywords = options(ba, rnn, case, arrays)
    input_grad = not case.tokens
    backward = {"backward": case.backward}
    loss, grads, state = rnn.loss_and_grad(arrays["x"], arrays["target"], **keywords, **backward, input_grad=input_grad)
    y, _, backward = rnn.forward(arrays["x"], **call_options(ba, rnn, case, arrays), **backward)
    given = backward(arrays["dy"], state_of(ba, rnn, arrays, "d{}_last"), input_grad=input_grad)
    named = {"loss": loss, "y": y, "state": state.h} | ({} if state.c is None else {"c": state.c})
    named |= flat_gradients(rnn, grads)
    return named | {f"{name} of dy": value for name, value in flat_gradients(rnn, given).items()}


def reference_losses(np, case, arrays, frozen=None, **more):
    """The loss of a case by the equations: of every member, or one."""
    losses = []
    for k in members_of(case):
        one = of_member(case, arrays, k)
        states = one["h_0"], one["c_0"]
        losses.append(
            reference.loss(
                np,
                one["params"],
                one["x"],
                *states,
                one["target"],
                loss=case.loss,
                of_loss=case.loss_options,
                weights=one["weights"],
                reduction=case.reduction,
                masks=one["masks"],
                frozen=None if frozen is None else frozen[k],
                **case.reference_options,
                **more,
            )
        )
    return losses[0] if case.members is None else losses


def check_stream(ba, case, dtype="float64", backend=None):
    """A streamer, step by step, against the network on whole sequences, whose loops are others: outputs and states.

    In between sequences begin anew, and the streamer goes on from a state that was taken and set.
    """
    arrays = draw(case)
    rnn = make(ba, case, arrays["params"], dtype, backend)
    x = arrays["x"] if case.tokens else arrays["x"].astype(dtype)
    given = {name: arrays[f"{name}_0"].astype(dtype) for name in ("h", "c") if f"{name}_0" in arrays}
    state = ba.State(**{name: rnn.asarray(value) for name, value in given.items()}) if case.state else None
    step, half, limit = rnn.streamer(case.N, state), case.T // 2, 1e-12 if dtype == "float64" else 2e-5
    anew = np.arange(case.N) % 2 == 1

    def compared(part, state, reset=None):
        expected, last = rnn(rnn.asarray(x[part]), state, reset=reset)
        ys = [np.array(rnn.backend.to_host(step(rnn.asarray(x_t)))) for x_t in x[part]]
        found = np.stack(ys) if case.readout == "every" else ys[-1]
        now = step.state
        for one, other in [(found, expected), (now.h, last.h), *([(now.c, last.c)] if case.has_c else [])]:
            one, other = (a if isinstance(a, np.ndarray) else rnn.backend.to_host(a) for a in (one, other))
            assert one.shape == other.shape
            assert np.max(np.abs(one - other)) <= limit * max(1.0, np.max(np.abs(other)))
        return last

    middle = compared(slice(0, half), state)
    before = step.state
    step.reset(anew)
    compared(slice(half, case.T), middle, anew)
    step.state = before
    compared(slice(half, case.T), middle)
    step.reset()
    compared(slice(0, half), None)
