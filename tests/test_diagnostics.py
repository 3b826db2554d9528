"""What is said of gradients is true: against finite differences, the equations, torch, and what is known in advance."""

import dataclasses
import inspect
import sys

import cases
import numpy as np
import pytest
from cases import LENGTHS, Case, cubic, draw, make, options
from conftest import backends_and_dtypes, needs_torch
from test_docs import cell_of_the_page

import bptt_array as ba
from bptt_array import diagnostics, plots, serialization
from bptt_array.diagnostics import (
    Diagnosis,
    GradientFlow,
    diagnose,
    gradient_flow,
    jacobian,
    jacobian_norms,
    jacobians,
    lyapunov_exponents,
    saturation,
    singular,
    singular_values,
    trajectory,
)
from bptt_array.diagnostics import flow as flows


@pytest.fixture(autouse=True)
def _own_cell(monkeypatch):
    """The cell of ``equations/README.md``, under the name that the reference knows it by."""
    monkeypatch.setitem(cases.CUSTOM_CELLS, "update gate", cell_of_the_page()())


def built(case, **more):
    """A network, its arrays, and the keywords of gradient_flow."""
    arrays = draw(case)
    rnn = make(ba, case, arrays["params"], **more)
    keywords = options(ba, rnn, case, arrays)
    del keywords["dropout_seed"], keywords["reduction"]
    return rnn, arrays, keywords


def flow_of(case, at=None):
    rnn, arrays, keywords = built(case)
    return gradient_flow(rnn, arrays["x"], arrays["target"], at=at, **keywords)


# ---- dL/dh_t and dL_k/dh_t ----------------------------------------------------------------------------


def loss_from(case, arrays, n, t, names, values):
    """Losses of single steps as a function of the state of sequence n before step t, of a network with one layer."""
    end = case.T if case.lengths is None else case.lengths[n]
    rnn = make(ba, dataclasses.replace(case, lengths=None, segment=100), arrays["params"])
    state = ba.State(**{name: value.reshape(1, 1, 1, -1) for name, value in zip(names, values, strict=True)})
    y, _ = rnn(arrays["x"][t:end, n : n + 1], state)
    losses = []
    for k in range(t, end):
        at = y[k - t, 0], arrays["target"][k, n]
        loss = -np.log(at[0][at[1]]) if case.loss == "cross_entropy" else 0.5 * np.sum((at[0] - at[1]) ** 2)
        losses.append(loss * (1 if arrays["weights"] is None else arrays["weights"][k, n]))
    return np.array(losses)


SINGLE = [
    Case(segment=3),
    Case(cell="relu", segment=2),
    Case(cell="lstm", lengths=LENGTHS, weights=True),
    Case(cell="gru_reset_before", lengths=LENGTHS),
    Case(cell="gru", tokens=True, output="softmax", loss="cross_entropy", target="classes"),
    Case(cell="update gate", lengths=LENGTHS),
]


@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_gradients_of_every_state_are_what_moving_that_state_does_to_the_losses(case):
    """The network in two parts: what it makes of the rest of a sequence from a state that was moved."""
    flow = flow_of(case)
    arrays = draw(case)
    rnn = make(ba, case, arrays["params"])
    names, h = ("h", "c") if case.has_c else ("h",), 1e-6
    where = "h_0", "c_0"
    for n in range(case.N):
        end = case.T if case.lengths is None else case.lengths[n]
        for t in range(case.T):
            if t >= end:
                assert flow.total[0, 0, t, n] == 0
                assert not flow.per_loss[:, 0, 0, t, n].any()
                continue
            start = ba.State(**{a: arrays[b][:, :, n : n + 1] for a, b in zip(names, where, strict=False)})
            _, state = rnn(arrays["x"][: t + 1, n : n + 1], start)
            values = [getattr(state, name).ravel() for name in names]
            for s, (total, per_loss) in enumerate(
                [(flow.total, flow.per_loss), (flow.total_c, flow.per_loss_c)][: len(names)]
            ):
                slopes = np.zeros((case.T, case.H))
                for i in range(case.H):
                    losses = []
                    for sign in (1, -1):
                        moved = [value.copy() for value in values]
                        moved[s][i] += sign * h
                        if s == 1:  # h_t = o tanh(c_t) goes with c_t
                            moved[0] = values[0] / np.tanh(values[1]) * np.tanh(moved[1])
                        later = loss_from(case, arrays, n, t + 1, names, moved) if t + 1 < end else np.zeros(0)
                        now = step_loss_of(case, rnn, arrays, n, t, moved[0])
                        losses.append(np.concatenate([[now], later]))
                    slopes[t:end, i] = (losses[0] - losses[1]) / (2 * h)
                assert np.allclose(per_loss[:, 0, 0, t, n], np.linalg.norm(slopes, axis=1), rtol=1e-6, atol=1e-8)
                assert np.isclose(total[0, 0, t, n], np.linalg.norm(slopes.sum(axis=0)), rtol=1e-6, atol=1e-8)


def step_loss_of(case, rnn, arrays, n, t, h):
    """L_t from ``h_t``, by (1.2) and (2.1)."""
    v = rnn.params["W_hy"] @ h + rnn.params["b_y"]
    weight = 1 if arrays["weights"] is None else arrays["weights"][t, n]
    target = arrays["target"][t, n]
    if case.loss == "cross_entropy":
        return weight * (np.log(np.sum(np.exp(v))) - v[target])
    return weight * 0.5 * np.sum((v - target) ** 2)


DEEP = [
    Case(layers=3),
    Case(layers=2, cell="lstm", lengths=LENGTHS),
    Case(layers=2, cell="lstm", proj_size=3, lengths=LENGTHS),
    Case(bidirectional=True, layers=2, lengths=LENGTHS, weights=True),
    Case(bidirectional=True, layers=2, cell="gru"),
    Case(bidirectional=True, layers=2, cell="lstm", readout="last", lengths=LENGTHS),
    Case(layers=2, readout="last", weights=True),
    Case(layers=2, cell="update gate", lengths=LENGTHS, segment=3),
    Case(layers=2, bidirectional=True, cell="lstm", output_size=False, tokens=True),
]


@needs_torch
@pytest.mark.parametrize("case", DEEP, ids=str)
def test_gradients_of_every_state_of_deep_networks_are_those_of_autograd(case):
    """Every state is written down by the naive equations with a variable added to it, one sequence at a time."""
    import torch

    flow, arrays = flow_of(case), draw(case)
    params = {name: torch.tensor(value) for name, value in arrays["params"].items()}
    for n in range(case.N):
        losses, states = naive(torch, case, params, arrays, n)
        wanted = [(flow.total, flow.total_c, sum(losses.values()))]
        if case.readout == "every":
            assert flow.at.tolist() == list(range(case.T))
            wanted += [
                (flow.per_loss[k], None if flow.per_loss_c is None else flow.per_loss_c[k], losses.get(k, 0))
                for k in range(case.T)
            ]
        else:
            assert flow.at is None
            assert flow.per_loss is None
        for of_h, of_c, loss in wanted:
            expected = np.zeros((2, *flow.total.shape[:3]))
            variables = [(which, where, v) for where, pair in states.items() for which, v in enumerate(pair)]
            if isinstance(loss, torch.Tensor):
                grads = torch.autograd.grad(loss, [v for _, _, v in variables], retain_graph=True, allow_unused=True)
                for (which, where, _), grad in zip(variables, grads, strict=True):
                    expected[(which, *where)] = 0 if grad is None else float(grad.norm())
            assert np.allclose(of_h[..., n], expected[0], rtol=1e-9, atol=1e-12)
            if case.has_c:
                assert np.allclose(of_c[..., n], expected[1], rtol=1e-9, atol=1e-12)


def naive(torch, case, params, arrays, n):
    """Losses by step, and by (layer, direction, t) what was added to h and c there, of one sequence."""
    import reference

    lib = torch_as_numpy(torch)
    end = case.T if case.lengths is None else case.lengths[n]
    x = torch.tensor(arrays["x"][:, n])
    below = [x[t] if x.ndim == 2 else torch.eye(case.I, dtype=torch.float64)[x[t]] for t in range(end)]
    states, losses = {}, {}
    for k in range(case.layers):
        above = []
        for d in range(case.directions):
            W = {name.partition(".")[2]: value for name, value in params.items() if name.startswith(f"l{k}.")}
            W = {name: value[d] for name, value in W.items()} if case.bidirectional else W
            h = torch.tensor(arrays["h_0"][k, d, n])
            c = torch.tensor(arrays["c_0"][k, d, n]) if case.has_c else torch.zeros(())
            hs = {}
            for t in reversed(range(end)) if d else range(end):
                unprojected = {name: value for name, value in W.items() if name != "W_hr"}
                h, c = reference.step(lib, case.cell, unprojected, below[t], h, c, 1.0, [])
                states[k, d, t] = [
                    torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in (case.h, case.H)
                ]
                if case.has_c:
                    o, c = h / torch.tanh(c), c + states[k, d, t][1]
                    h = o * torch.tanh(c)  # which goes with c
                h = torch.mv(W["W_hr"], h) if "W_hr" in W else h
                h = h + states[k, d, t][0]
                hs[t] = h
            above.append(hs)
        lasts = [hs[t] for hs, t in zip(above, (end - 1, 0), strict=False)] if end else []
        below = [torch.cat([hs[t] for hs in above]) for t in range(end)]
    read = dict(enumerate(below)) if case.readout == "every" else {0: torch.cat(lasts)} if end else {}
    for t, h in read.items():
        y = params["W_hy"] @ h + params["b_y"] if case.output_size else h
        where = (t, n) if case.readout == "every" else (n,)
        weight = 1 if arrays["weights"] is None else arrays["weights"][where]
        losses[t] = weight * 0.5 * torch.sum((y - torch.tensor(arrays["target"][where])) ** 2)
    return losses, states


def torch_as_numpy(torch):
    """What the reference asks of NumPy."""

    class Lib:
        dot, tanh, exp, where = torch.mv, torch.tanh, torch.exp, torch.where

    Lib.dot = staticmethod(lambda a, b: torch.mv(a, b))
    return Lib


def test_segments_and_blocks_of_copies_give_the_same_numbers(monkeypatch):
    case = Case(layers=2, cell="lstm", lengths=LENGTHS, members=2, shared=False, weights=True)
    expected = flow_of(dataclasses.replace(case, segment=100))
    monkeypatch.setattr("bptt_array.diagnostics.flow._BLOCK_BYTES", 1)
    for segment in (1, 3):
        compare(flow_of(dataclasses.replace(case, segment=segment)), expected, 1e-12)


def compare(found, expected, tolerance):
    """Two dataclasses of arrays."""
    for field in dataclasses.fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        assert (a is None) == (b is None), field.name
        if b is not None:
            assert a.shape == b.shape, field.name
            assert np.allclose(a, b, rtol=tolerance, atol=tolerance * np.max(np.abs(b), initial=0)), field.name


def test_single_losses_may_be_chosen_and_are_64_at_most():
    case = Case(cell="gru")
    every, chosen = flow_of(case), flow_of(case, at=(1, 5))
    assert np.array_equal(chosen.per_loss, every.per_loss[[1, 5]])
    assert flow_of(case, at=()).per_loss.shape == (0, *every.total.shape)
    long = flow_of(Case(T=150, N=1, segment=100))
    assert len(long.at) == 64
    assert (long.at[0], long.at[-1]) == (0, 149)
    assert not np.triu(every.per_loss[:, 0, 0, :, 0].T < 0).any()
    for k in range(case.T):  # nothing comes from later states
        assert not every.per_loss[k, :, :, k + 1 :].any()
        assert every.per_loss[k, :, :, : k + 1].all()


def test_norms_neither_underflow_nor_overflow_in_float32():
    rnn = ba.RNN(2, 4, 1, cell="relu", init="orthogonal", seed=1)
    rnn.params["l0.b_h"] += 10
    x, target = np.ones((40, 1, 2), "float32"), np.zeros((40, 1, 1), "float32")
    rnn.params["l0.W_xh"][...] = 0
    for factor, bias in ((0.2, 1.0), (4.0, 0.0)):
        rnn.params["l0.W_hh"][...] = factor * np.eye(4, dtype="float32")
        rnn.params["l0.b_h"][...] = bias
        state = ba.State(h=np.full((1, 1, 1, 4), 1e-20, "float32"))
        norms = gradient_flow(rnn, x, target, at=[39], state=state).per_loss[0, 0, 0, :, 0]
        assert np.allclose(norms[:-1] / norms[1:], factor, rtol=1e-5)
        assert not 1e-23 < norms[0] < 1e23  # its square is no float32


def test_norms_of_rows_of_any_numbers():
    """Of a row with an infinity and 1e30 too, whose square no float32 holds."""
    backend = ba.backend.NumpyBackend()
    rows = np.array([[np.inf, 1e30], [3e30, 4e30], [np.nan, 1e30], [0, 0], [3e-40, 4e-40]], "float32")
    assert np.allclose(flows.row_norms(backend, rows), [np.inf, 5e30, np.nan, 0, 5e-40], rtol=1e-4, equal_nan=True)


def test_a_network_with_one_loss_may_be_asked_for_none():
    case = Case(readout="last")
    assert flow_of(case, at=()).per_loss is None
    assert np.array_equal(flow_of(case, at=()).total, flow_of(case).total)


def test_a_loss_of_the_callers_own_and_batch_first_are_as_for_training():
    case = Case(loss="cubic", output="tanh", members=2, shared=False, lengths=LENGTHS)
    rnn, arrays, keywords = built(case)
    expected = gradient_flow(rnn, arrays["x"], arrays["target"], **keywords)
    assert keywords["loss"] is cubic
    first = ba.RNN(**case.network, dtype="float64", time_major=False, device=rnn.backend)  # in the same segments
    first.params = rnn.params
    x, target = (np.moveaxis(arrays[name], 0, -2) for name in ("x", "target"))
    compare(gradient_flow(first, x, target, **keywords), expected, 0)
    assert np.array_equal(jacobian(first, x, 1, 4), jacobian(rnn, arrays["x"], 1, 4))
    with pytest.raises(ValueError, match="target has shape") as error:
        gradient_flow(first, x, target[..., :1, :])
    assert "time_major=False" in error.value.__notes__[0]


# ---- Jacobians ----------------------------------------------------------------------------------------

WITH_STATES = [
    Case(),
    Case(cell="relu"),
    Case(cell="lstm", lengths=LENGTHS),
    Case(cell="lstm", proj_size=2, lengths=LENGTHS),
    Case(cell="gru_reset_before"),
    Case(cell="gru", tokens=True),
    Case(cell="update gate"),
]


@pytest.mark.parametrize("case", WITH_STATES, ids=str)
@pytest.mark.parametrize(("t", "k"), [(0, 7), (2, 5), (3, 4)])
def test_a_jacobian_is_how_the_later_state_follows_the_earlier_one(case, t, k):
    rnn, arrays, keywords = built(case)
    state, names, h = keywords["state"], ("h", "c") if case.has_c else ("h",), 1e-6
    J = jacobian(rnn, arrays["x"], t, k, state=state, lengths=case.lengths)
    widths = (case.h, case.H)[: len(names)]
    assert J.shape == (case.N, *2 * (sum(widths),))
    for n in range(case.N):
        end = case.T if case.lengths is None else case.lengths[n]
        first, last = min(t, end), min(k, end)

        def later(vector, n=n, first=first, last=last):
            parts = np.split(vector, np.cumsum(widths)[:-1])
            given = ba.State(**{a: part.reshape(1, 1, 1, -1) for a, part in zip(names, parts, strict=True)})
            if last > first:
                _, given = rnn(arrays["x"][first:last, n : n + 1], given)
            return np.concatenate([getattr(given, a).ravel() for a in names])

        at = ba.State(**{a: getattr(state, a)[:, :, n : n + 1] for a in names})
        if first:
            _, at = rnn(arrays["x"][:first, n : n + 1], at)
        centre = np.concatenate([getattr(at, a).ravel() for a in names])
        unit = h * np.eye(len(centre))
        numeric = np.stack([(later(centre + u) - later(centre - u)) / (2 * h) for u in unit], axis=1)
        assert np.allclose(J[n], numeric, rtol=1e-6, atol=1e-8)


def test_the_jacobian_of_tanh_is_the_product_of_the_derivation():
    """(3.3): ``prod diag(1 - h_j^2) W_hh``"""
    case = Case(output_size=False)
    rnn, arrays, keywords = built(case)
    h, _ = rnn(arrays["x"], keywords["state"])
    for t, k in [(0, 7), (1, 4), (6, 7)]:
        expected = np.broadcast_to(np.eye(case.H), (case.N, case.H, case.H))
        for j in range(t, k):
            expected = (1 - h[j] ** 2)[:, :, None] * rnn.params["l0.W_hh"] @ expected
        assert np.allclose(jacobian(rnn, arrays["x"], t, k, state=keywords["state"]), expected, rtol=1e-12, atol=1e-15)


EVERYWHERE = [
    Case(cell="lstm", layers=2, bidirectional=True, members=2, lengths=LENGTHS, shared=False),
    Case(cell="gru", bidirectional=True, lengths=LENGTHS),
    Case(members=3, tokens=True),
    Case(cell="gru_reset_before", layers=2, lengths=LENGTHS),
    Case(cell="lstm", proj_size=3, layers=2, bidirectional=True),
]


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("case", EVERYWHERE, ids=str)
def test_jacobians_follow_the_chain_rule_and_are_the_identity_between_a_state_and_itself(case, layer, monkeypatch):
    rnn, arrays, keywords = built(case)
    more = {"state": keywords["state"], "lengths": case.lengths, "layer": layer}
    S = case.h + (case.H if case.has_c else 0)
    whole = jacobian(rnn, arrays["x"], 1, 6, **more)
    lead = (*([case.members] if case.members else []), *([2] if case.bidirectional else []))
    assert whole.shape == (*lead, case.N, S, S)
    for s in (1, 3, 6):
        parts = [jacobian(rnn, arrays["x"], *pair, **more) for pair in ((s, 6), (1, s))]
        assert np.allclose(parts[0] @ parts[1], whole, rtol=1e-12, atol=1e-15)
    assert np.array_equal(jacobian(rnn, arrays["x"], 3, 3, **more), np.broadcast_to(np.eye(S), (*lead, case.N, S, S)))
    monkeypatch.setattr("bptt_array.diagnostics.trajectory._BLOCK_BYTES", 1)
    assert np.allclose(jacobian(rnn, arrays["x"], 1, 6, **more), whole, rtol=1e-12, atol=1e-15)


def test_the_second_direction_counts_in_the_order_in_which_it_reads():
    """Its Jacobians are those of a network of one direction on the sequence back to front."""
    case = Case(bidirectional=True, cell="gru", lengths=LENGTHS)
    rnn, arrays, keywords = built(case)
    both = jacobian(rnn, arrays["x"], 1, 3, state=keywords["state"], lengths=LENGTHS)
    alone = ba.RNN(case.I, case.H, cell="gru", dtype="float64")
    alone.params = {name: rnn.params[name][1] for name in rnn.params if name.startswith("l0.")}
    for n, end in enumerate(LENGTHS):
        if end >= 3:
            state = ba.State(h=keywords["state"].h[:, 1:, n : n + 1])
            expected = jacobian(alone, arrays["x"][:end, n : n + 1][::-1].copy(), 1, 3, state=state)
            assert np.allclose(both[1, n], expected[0], rtol=1e-12, atol=1e-15)


def test_singular_values_and_norms_are_those_of_the_jacobians():
    case = Case(cell="lstm", members=2, lengths=LENGTHS)
    rnn, arrays, keywords = built(case)
    more = {"state": keywords["state"], "lengths": LENGTHS}
    steps, norms = jacobian_norms(rnn, arrays["x"], steps=(0, 2, 7), **more)
    assert steps.tolist() == [0, 2, 7]
    for a, b in [(0, 1), (0, 2), (1, 2), (1, 1)]:
        J = jacobian(rnn, arrays["x"], steps[a], steps[b], **more)
        values = np.linalg.svd(J, compute_uv=False)
        assert np.allclose(singular_values(rnn, arrays["x"], steps[a], steps[b], **more), values, rtol=1e-9, atol=1e-13)
        assert np.allclose(norms[..., a, b], values[..., 0], rtol=1e-12)
    assert np.isnan(norms[..., [1, 2, 2], [0, 0, 1]]).all()
    assert jacobian_norms(rnn, arrays["x"])[0].tolist() == list(range(8))
    assert len(jacobian_norms(rnn, np.tile(arrays["x"], (10, 1, 1)))[0]) == 33


def still(W, factor=100.0):
    """A ReLU network that stays where it is, far from the kink, so that every step has the Jacobian W; x and state."""
    H, at = len(W), factor * np.ones(len(W))
    rnn = ba.RNN(1, H, cell="relu", dtype="float64")
    for name, value in {"W_hh": W, "W_xh": np.zeros((H, 1)), "b_h": at - W @ at}.items():
        rnn.params[f"l0.{name}"] = np.array(value)
    return rnn, ba.State(h=at[None, None, None])


@pytest.mark.parametrize("steps", [12, 60])
@pytest.mark.parametrize("H", [7, 16])
def test_singular_values_keep_their_digits_however_far_they_lie_apart(H, steps):
    """A symmetric W to the power 12 or 60: down to 1e-78, two of them the same."""
    V = np.linalg.qr(np.random.default_rng(0).standard_normal((H, H)))[0]
    w = np.geomspace(1.2, 0.05, H)
    w[2] = w[1]
    rnn, state = still(V * w @ V.T)
    values = singular_values(rnn, np.zeros((steps, 1, 1)), 0, steps, state=state)
    assert np.allclose(values[0], w**steps, rtol=1e-11, atol=0)
    norm = np.linalg.norm(jacobian(rnn, np.zeros((steps, 1, 1)), 0, steps, state=state)[0], 2)
    assert np.isclose(norm, w[0] ** steps)


def test_singular_values_of_rows_against_lapack(monkeypatch):
    monkeypatch.setattr(singular, "_NARROW", 0.0)
    rng = np.random.default_rng(0)
    for S in (1, 2, 5, 12):
        U = rng.standard_normal((3, S, S))
        U /= np.linalg.norm(U, axis=-1, keepdims=True)
        logs = np.linspace(0, -3, S) * np.ones((3, 1))
        expected = np.linalg.svd(np.exp(logs)[..., None] * U, compute_uv=False)
        assert np.allclose(np.exp(singular._orthogonalised(logs, U)), expected, rtol=1e-11)
    pairs = {tuple(sorted(pair)) for p, q in singular._rounds(12) for pair in zip(p.tolist(), q.tolist(), strict=True)}
    assert len(pairs) == 66


def test_what_is_lost_has_a_singular_value_of_zero_and_an_exponent_of_minus_infinity():
    W = 0.5 * np.eye(4)
    rnn, state = still(W)
    rnn.params["l0.b_h"][1] = -1e3  # dead
    x = np.zeros((9, 1, 1))
    assert singular_values(rnn, x, 0, 9, state=state)[0] == pytest.approx([0.5**9] * 3 + [0])
    assert lyapunov_exponents(rnn, x, 4, state=state, transient=1)[0] == pytest.approx([np.log(0.5)] * 3 + [-np.inf])


def test_a_jacobian_that_overflows_is_infinite():
    rnn, state = still(200.0 * np.eye(3), factor=1e-3)
    rnn.params["l0.b_h"][...] = 0
    x, state = np.zeros((140, 1, 1)), ba.State(h=np.full((1, 1, 1, 3), 1e-300))
    assert np.isinf(jacobian(rnn, x, 0, 140, state=state)[0, 0, 0])
    assert np.isinf(singular_values(rnn, x, 0, 140, state=state)).all()
    assert lyapunov_exponents(rnn, x, state=state)[0, 0] == pytest.approx(np.log(200.0))
    assert np.isinf(jacobian_norms(rnn, x, steps=[0, 70, 140], state=state)[1][0, 0, 2])


@pytest.mark.parametrize(("w", "steps"), [(5e-4, 16), (1e10, 6)])
def test_a_product_beyond_float32_is_as_exact_as_any_other(w, steps):
    """``w^steps`` is 1.5e-53 and 1e60; off the diagonal there is nothing, not 0 times infinity."""
    rnn = ba.RNN(1, 3, cell="relu")
    rnn.params["l0.W_hh"][...] = w * np.eye(3)
    rnn.params["l0.W_xh"][...] = 0
    rnn.params["l0.b_h"][...] = 1 if w < 1 else 0
    x, state = np.zeros((steps, 1, 1), "float32"), ba.State(h=np.full((1, 1, 1, 3), 1e-30, "float32"))
    factor = float(np.float32(w))
    J = jacobian(rnn, x, 0, steps, state=state)[0]
    assert np.allclose(J, factor**steps * np.eye(3), rtol=1e-5, atol=0)
    assert np.allclose(singular_values(rnn, x, 0, steps, state=state), factor**steps, rtol=1e-5, atol=0)
    expected = [1, factor ** (steps // 2), factor**steps]
    norms = jacobian_norms(rnn, x, steps=[0, steps // 2, steps], state=state)[1][0]
    assert np.allclose(norms[0], expected, rtol=1e-5, atol=0)


def test_a_norm_may_come_back_from_beyond_float64():
    """1e200 to the power 2 and then 1e-100 to the power 3."""
    exact = np.array([[1e200, 0], [0, 1e-20]]), np.array([[1e-100, 0], [0, 1e-100]])
    products = [trajectory.scaled(a, axis=(-2, -1)) for a in (exact[0], exact[0], exact[1], exact[1], exact[1])]
    J, exponents = np.eye(2), 0
    for a, of_a in products:
        J, more = trajectory.scaled(J @ a, axis=(-2, -1))
        exponents = exponents + of_a + more
    assert trajectory.unscaled(J, exponents) == pytest.approx(np.diag([1e100, 0]), rel=1e-12)


def test_norms_of_products_that_overflow_are_infinite_and_never_no_number():
    rnn, state = still(np.diag([200.0, 1.0, 0.5]), factor=1e-3)
    rnn.params["l0.b_h"][...] = 0
    x, state = np.zeros((140, 1, 1)), ba.State(h=np.full((1, 1, 1, 3), 1e-300))
    J = jacobian(rnn, x, 0, 140, state=state)[0]
    assert np.isinf(J[0, 0])
    assert J[1, 1] == pytest.approx(1)
    assert not J[~np.eye(3, dtype=bool)].any()
    norms = jacobian_norms(rnn, x, steps=[0, 139, 140], state=state)[1][0]
    assert np.isinf(norms[0, 1:]).all()
    assert norms[1, 2] == pytest.approx(200)


def test_singular_values_in_float32_are_those_in_float64():
    """A direction counts as lost only where float32 says nothing of it: of an LSTM none does here."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((10, 2, 4)).astype("float32")
    single = ba.RNN(4, 64, cell="lstm", seed=0)
    double = ba.RNN(4, 64, cell="lstm", dtype="float64")
    double.params = {name: value.astype("float64") for name, value in single.params.items()}
    found, expected = singular_values(single, x, 0, 10), singular_values(double, x.astype("float64"), 0, 10)
    assert (found > 0).all()
    assert np.allclose(np.log(found), np.log(expected), rtol=0, atol=0.01)
    assert np.isfinite(lyapunov_exponents(single, x, 128)).all()
    relu = ba.RNN(2, 64, cell="relu", init="orthogonal", seed=0)
    relu.params["l0.b_h"][...] = 5
    relu.params["l0.b_h"][:37] = -100
    x = rng.standard_normal((8, 1, 2)).astype("float32")
    always = (relu(x)[0][:, 0] == 0).all(axis=0).sum()
    assert always >= 37
    assert (singular_values(relu, x, 0, 8) == 0).sum() >= always


def test_pairs_are_fewer_where_they_would_be_much_work(monkeypatch):
    monkeypatch.setattr(jacobians, "_MULTIPLY_ADDS", 4 * 5**3 * 18)  # P = 6
    rnn, arrays, _ = built(Case())
    assert len(jacobian_norms(rnn, arrays["x"])[0]) == 6
    monkeypatch.setattr(jacobians, "_NUMBERS", 1)
    assert jacobian_norms(rnn, arrays["x"])[0].tolist() == [0, 7]
    assert len(jacobian_norms(rnn, arrays["x"], steps=range(8))[0]) == 8


@pytest.mark.parametrize("cell", ["tanh", "lstm"])
def test_a_sequence_that_is_no_number_leaves_the_others_alone(cell):
    case = Case(cell=cell)
    rnn, arrays, keywords = built(case)
    x = arrays["x"].copy()
    x[2, 1] = np.nan
    others = [0, 2, 3]
    for function, args, axis in [
        (jacobian, (1, 5), 0),
        (singular_values, (1, 5), 0),
        (lyapunov_exponents, (2,), 0),
        (lambda *given, **more: jacobian_norms(*given, **more)[1][..., 0, :], (), 0),
        (lambda *given, **more: gradient_flow(*given, arrays["target"], **more).total, (), 3),
    ]:
        expected = function(rnn, arrays["x"], *args, state=keywords["state"])
        found = function(rnn, x, *args, state=keywords["state"])
        assert np.allclose(np.take(found, others, axis), np.take(expected, others, axis), rtol=1e-9, atol=1e-15)
        assert np.isnan(np.take(found, 1, axis)).any()


# ---- Lyapunov exponents -------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.5, 1.0, 1.7])
def test_exponents_of_a_rotation_that_stretches_are_its_logarithm(a):
    P = np.roll(np.eye(5), 1, axis=0)
    rnn, state = still(a * P)
    rnn.params["l0.b_h"][...] = 1.0 if a < 1 else 0.0
    found = lyapunov_exponents(rnn, np.zeros((30, 1, 1)), 5, state=state)
    assert np.allclose(found, np.log(a), atol=1e-13)
    assert found.shape == (1, 5)


def test_exponents_of_known_powers_come_after_a_transient():
    W = np.triu(np.ones((3, 3)), 1) * 0.3 + np.diag([0.9, 0.5, 0.1])
    rnn, state = still(W)
    exact, x = np.log([0.9, 0.5, 0.1]), np.zeros((80, 1, 1))
    roughly = lyapunov_exponents(rnn, x, 2, state=state)[0]
    closely = lyapunov_exponents(rnn, x, 2, state=state, transient=35)[0]
    assert np.allclose(roughly, exact[:2], atol=0.05)
    assert np.max(np.abs(roughly - exact[:2])) > 1e-6
    assert np.allclose(closely, exact[:2], atol=1e-6)


@pytest.mark.parametrize(
    "case", [Case(lengths=LENGTHS), Case(cell="lstm", lengths=LENGTHS, bidirectional=True)], ids=str
)
def test_all_exponents_together_are_the_mean_logarithm_of_the_determinant(case):
    rnn, arrays, keywords = built(case)
    more = {"state": keywords["state"], "lengths": LENGTHS}
    S = case.H * (1 + case.has_c)
    found = lyapunov_exponents(rnn, arrays["x"], S, **more)
    logs = sum(np.linalg.slogdet(jacobian(rnn, arrays["x"], t, t + 1, **more))[1] for t in range(case.T))
    there = np.array(LENGTHS) > 0
    assert np.allclose(found.sum(axis=-1)[..., there], (logs / np.maximum(LENGTHS, 1))[..., there], rtol=1e-10)
    assert np.isnan(found[..., ~there, :]).all()
    assert (np.diff(found[..., there, :]) <= 0).all()
    assert np.allclose(
        lyapunov_exponents(rnn, arrays["x"], S, **more, seed=5).sum(axis=-1), found.sum(axis=-1), equal_nan=True
    )


def test_the_largest_exponent_is_how_fast_two_runs_come_apart():
    """Chaos, measured without any derivative: two states a hair apart, brought back to that distance every step."""
    rng = np.random.default_rng(0)
    rnn = ba.RNN(2, 30, dtype="float64")
    rnn.params["l0.W_hh"][...] = 2 * rng.standard_normal((30, 30)) / 30**0.5
    x = 0.1 * rng.standard_normal((400, 1, 2))
    _, state = rnn(x[:100])
    other, logs = ba.State(h=state.h + 1e-8 * rng.standard_normal(30)), []
    one = state
    for t in range(100, 400):
        _, one = rnn(x[t : t + 1], one)
        _, other = rnn(x[t : t + 1], other)
        distance = np.linalg.norm(other.h - one.h)
        if t > 120:
            logs.append(np.log(distance / 1e-8))
        other = ba.State(h=one.h + 1e-8 * (other.h - one.h) / distance)
    found = lyapunov_exponents(rnn, x[100:], state=state, transient=20)[0, 0]
    assert found > 0.05
    assert abs(np.mean(logs) - found) < 0.02


# ---- saturation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [Case(), Case(cell="relu"), Case(bidirectional=True, lengths=LENGTHS, members=2)], ids=str
)
def test_saturation_of_the_hidden_units_is_what_counting_them_gives(case):
    """From the outputs of a network whose outputs are its states."""
    case = dataclasses.replace(case, output_size=False, seed=2)
    rnn, arrays, keywords = built(case)
    below = 0.4
    found = saturation(rnn, arrays["x"], state=keywords["state"], lengths=case.lengths, below=below)
    y, _ = rnn(arrays["x"], keywords["state"], lengths=case.lengths)
    assert list(found) == ["h"]
    assert found["h"].shape == (1, case.directions, case.T, *([2] if case.members else []))
    slopes = (y > 0) * 1.0 if case.cell == "relu" else 1 - y * y
    for d in range(case.directions):
        for t in range(case.T):
            there = [n for n in range(case.N) if case.lengths is None or t < case.lengths[n]]
            part = slopes[t][..., there, d * case.H : (d + 1) * case.H] < below
            if there:
                assert np.allclose(found["h"][0, d, t], part.mean(axis=(-2, -1)))
            else:
                assert np.isnan(found["h"][0, d, t]).all()
    assert 0 < np.nanmean(found["h"]) < 1


def test_saturation_of_gates_is_that_of_the_equations():
    rng = np.random.default_rng(0)
    T, N, I, H = 5, 3, 2, 6  # noqa: E741
    x = 3 * rng.standard_normal((T, N, I))

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    for cell in ("lstm", "gru"):
        rnn = ba.RNN(I, H, cell=cell, num_layers=2, dtype="float64", seed=1)
        rnn.params = {name: 4 * value for name, value in rnn.params.items()}
        found = saturation(rnn, x, below=0.3)
        W = {name.partition(".")[2]: value for name, value in rnn.params.items() if name.startswith("l0.")}
        h, c = np.zeros((N, H)), np.zeros((N, H))
        for t in range(T):
            of_x, of_h = x[t] @ W["W_xh"].T + W["b_h"], h @ W["W_hh"].T
            z = np.split(of_x + of_h, 4 if cell == "lstm" else 3, axis=1)
            if cell == "lstm":
                i, f, g, o = sigmoid(z[0]), sigmoid(z[1]), np.tanh(z[2]), sigmoid(z[3])
                c = f * c + i * g
                values = {"i": i, "f": f, "g": g, "o": o, "tanh_c": np.tanh(c)}
                h = o * np.tanh(c)
            else:
                r, u = sigmoid(z[0]), sigmoid(z[1])
                n = np.tanh(of_x[:, 2 * H :] + r * (of_h[:, 2 * H :] + W["b_hn"]))
                values = {"r": r, "u": u, "n": n}
                h = (1 - u) * n + u * h
            assert list(found) == list(values)
            for name, y in values.items():
                slope = 1 - y * y if name in ("g", "tanh_c", "n") else 4 * y * (1 - y)
                assert found[name][0, 0, t] == pytest.approx(np.mean(slope < 0.3)), name
        assert all(value.shape == (2, 1, T) and 0 < value.mean() < 1 for value in found.values())


def test_a_cell_of_ones_own_says_what_saturates():
    rnn, arrays, _ = built(Case(cell="update gate"))
    assert saturation(rnn, arrays["x"]) == {}
    own = type(cases.CUSTOM_CELLS["update gate"])
    telling = type("Telling", (own,), {"name": "telling", "activations": {"u": ("sigmoid", 0), "a": ("tanh", 1)}})
    same = ba.RNN(3, 5, 4, cell=telling(), dtype="float64")
    same.params = rnn.params
    assert list(saturation(same, arrays["x"])) == ["u", "a"]
    assert saturation(same, arrays["x"], below=1.0)["a"].min() > 0.9
    for wrong in (("sigmoid", 2), ("softmax", 0)):
        odd = type("Odd", (own,), {"name": "odd", "activations": {"u": wrong}})
        with pytest.raises(ValueError, match=r"<cell 'odd'> has activations\['u'\]=.*below keeps=2"):
            saturation(ba.RNN(3, 5, 4, cell=odd()), np.ones((2, 2, 3), "float32"))


# ---- everywhere ---------------------------------------------------------------------------------------


def everything(rnn, arrays, keywords, at=None):
    """All that can be said of a network, as a dictionary of arrays."""
    found = diagnose(rnn, arrays["x"], arrays["target"], at=at, count=2, below=0.3, **keywords).arrays()
    more = {"state": keywords["state"], "lengths": keywords["lengths"]}
    found["J"] = jacobian(rnn, arrays["x"], 1, 5, **more)
    found["norms"] = jacobian_norms(rnn, arrays["x"], layer=0, steps=[0, 3, 6], **more)[1]
    return found


PLACES = [
    Case(cell="lstm", layers=2, bidirectional=True, members=2, lengths=LENGTHS, weights=True),
    Case(tokens=True, output="softmax", loss="cross_entropy", target="classes", lengths=LENGTHS),
    Case(cell="gru", readout="last", members=2, shared=False),
]


@pytest.mark.parametrize("case", PLACES, ids=str)
@pytest.mark.parametrize(("make_backend", "dtype"), backends_and_dtypes())
def test_every_device_says_the_same(make_backend, dtype, case):
    at = None if case.readout == "last" else (0, 4)
    arrays = draw(case)
    rounded = {
        name: value.astype(dtype).astype("float64")
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        else value
        for name, value in arrays.items()
    }
    params = {name: value.astype(dtype).astype("float64") for name, value in arrays["params"].items()}

    def run(dtype, backend):
        rnn = make(ba, case, params, dtype, backend)
        keywords = options(ba, rnn, case, rounded)
        del keywords["dropout_seed"], keywords["reduction"]
        given = {name: rounded[name] for name in ("x", "target")}
        given = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in given.items()}
        return everything(rnn, given, keywords, at)

    expected, found = run("float64", ba.backend.NumpyBackend()), run(dtype, make_backend())
    assert found.keys() == expected.keys()
    tolerance = 100 * np.finfo(dtype).eps
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        scale = 30 if name == "exponents" else np.nanmax(np.abs(value), initial=1.0)  # a logarithm has no scale
        slack = 1.01 / case.H if name.startswith("saturation") and dtype == "float32" else 0  # a unit at the border
        assert np.array_equal(np.isnan(found[name]), np.isnan(value)), name
        assert np.nanmax(np.abs(found[name] - value), initial=0) <= tolerance * scale + slack, name


@pytest.mark.parametrize("case", [PLACES[0], Case(members=2, shared=False, tokens=True, cell="gru")], ids=str)
def test_a_member_of_an_ensemble_is_diagnosed_as_the_single_network(case):
    rnn, arrays, keywords = built(case)
    whole = everything(rnn, arrays, keywords)
    for k in range(case.members):
        one = cases.of_member(case, arrays, k)
        alone = dict(
            keywords, state=ba.State(*(getattr(keywords["state"], s)[:, :, k] for s in ("h", "c")[: 1 + case.has_c]))
        )
        alone["weights"] = one["weights"]
        single = everything(rnn.member(k), one, alone)
        for name, value in single.items():
            assert np.allclose(of_member(name, whole[name], k), value, rtol=1e-9, atol=1e-13, equal_nan=True), name


def of_member(name, value, k):
    if name in ("flow.lengths", "flow.at"):
        return value
    axis = {"J": 0, "norms": 0, "exponents": 2, "singular_values": 2, "flow.loss": 0}.get(name)
    return np.take(value, k, (4 if "per_loss" in name else 3) if axis is None else axis)


@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru", "gru_reset_before"])
@pytest.mark.parametrize("size", [1e30, np.nan])
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_a_member_at_the_extremes_changes_nothing_of_the_others(cell, size):
    rnn, arrays, keywords = built(Case(cell=cell, members=3, shared=False, layers=2))
    before = everything(rnn, arrays, keywords)
    for param in rnn.params.values():
        param[1] *= size
    after = everything(rnn, arrays, keywords)
    assert not np.allclose(after["flow.total"], before["flow.total"])
    for name, value in before.items():
        for k in (0, 2):
            pair = of_member(name, after[name], k), of_member(name, value, k)
            assert np.allclose(*pair, rtol=1e-12, atol=1e-15, equal_nan=True), name


@pytest.mark.parametrize(
    "case", [Case(cell="lstm", bidirectional=True, layers=2, lengths=LENGTHS, weights=True)], ids=str
)
def test_what_is_past_the_end_does_not_matter(case):
    rnn, arrays, keywords = built(case)
    expected = everything(rnn, arrays, keywords)
    dirty = {name: arrays[name].copy() for name in ("x", "target", "weights")}
    for n, end in enumerate(LENGTHS):
        for value in dirty.values():
            value[end:, n] = np.nan
    state = ba.State(*(a.copy() for a in (keywords["state"].h, keywords["state"].c)))
    state.h[:, :, 1], state.c[:, :, 1] = np.nan, np.nan  # of a sequence without steps
    found = everything(rnn, dirty, {**keywords, "weights": dirty["weights"], "state": state})
    for name, value in expected.items():
        assert np.array_equal(found[name], value, equal_nan=True), name
    past = np.arange(case.T)[:, None] >= np.array(LENGTHS)
    assert not expected["flow.total"][:, :, past].any()
    short = saturation(rnn, arrays["x"], lengths=[3, 0, 2, 1])["i"]
    assert np.isnan(short[:, :, 3:]).all()
    assert np.isfinite(short[:, :, :3]).all()


def test_a_network_is_left_as_it_was():
    case = Case(cell="lstm", layers=2, dropout=0.3, recurrent_dropout=0.2)
    rnn, arrays, keywords = built(case)
    step = {**keywords, "dropout_seed": 3}
    loss, before, _ = rnn.loss_and_grad(arrays["x"], arrays["target"], **step)
    params = {name: (value, value.copy()) for name, value in rnn.params.items()}
    left = [id(array) for array in rnn.calls.workspace.arrays]
    assert left
    everything(rnn, arrays, keywords)
    assert [id(array) for array in rnn.calls.workspace.arrays] == left
    again, after, _ = rnn.loss_and_grad(arrays["x"], arrays["target"], **step)
    assert all(rnn.params[name] is value and np.array_equal(value, copy) for name, (value, copy) in params.items())
    assert loss == again
    assert all(np.array_equal(after.params[name], value) for name, value in before.params.items())


def test_a_diagnosis_survives_being_a_file(tmp_path):
    rnn, arrays, keywords = built(Case(cell="lstm", layers=2, bidirectional=True))
    found, path = diagnose(rnn, arrays["x"], arrays["target"], **keywords), tmp_path / "diagnosis.safetensors"
    found.save(path)
    flat, again = found.arrays(), Diagnosis.load(path).arrays()
    assert again.keys() == flat.keys()
    for name, value in flat.items():
        assert (again[name].shape, again[name].dtype) == (value.shape, value.dtype)
        np.testing.assert_array_equal(again[name], value)
    rnn.save(path)
    with pytest.raises(ValueError, match="is a 'model' of bptt_array; expected a diagnosis"):
        Diagnosis.load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        Diagnosis.load(path)


def test_a_diagnosis_from_a_file_says_what_it_said(tmp_path, monkeypatch):
    """Whatever the order in which the file's arrays arrive."""
    rnn, arrays, keywords = built(Case(cell="lstm"))
    found, path = diagnose(rnn, arrays["x"], arrays["target"], **keywords), tmp_path / "diagnosis.safetensors"
    found.save(path)
    read = serialization.File.arrays
    for order in (sorted, lambda names: sorted(names, reverse=True)):

        def in_order(file, order=order):
            arrays = read(file)
            return {name: arrays[name] for name in order(arrays)}

        monkeypatch.setattr(serialization.File, "arrays", in_order)
        assert str(Diagnosis.load(path)) == str(found)
    again = Diagnosis.from_arrays(dict(reversed(found.arrays().items())))
    assert list(again.saturation) == sorted(found.saturation)
    serialization.write_file(path, "diagnosis", found.arrays(), {})  # of an older version
    assert list(Diagnosis.load(path).saturation) == sorted(found.saturation)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (
            "exponents",
            lambda a: a[0],
            r"arrays\['exponents'\] has shape \(1, 4, 1\); expected \(L, D, \[E,\] N, count\)",
        ),
        ("exponents", lambda a: a[..., :0], r"arrays\['exponents'\] has shape \(1, 1, 4, 0\)"),
        ("singular_values", lambda a: a[..., :3, :], r"arrays\['singular_values'\] has shape"),
        ("flow.total", lambda a: a[0], r"arrays\['flow.total'\] has shape \(1, 7, 4\); expected \(L, D, T, \[E,\] N\)"),
        ("flow.lengths", lambda a: a[:-1], r"arrays\['flow.lengths'\] has shape \(3,\); expected \(N,\)"),
        ("flow.loss", lambda a: a[None], r"arrays\['flow.loss'\] has shape \(1,\)"),
        ("flow.per_loss", lambda a: a[1:], r"arrays\['flow.per_loss'\] has shape"),
        ("flow.at", lambda a: None, r"missing \['flow.at'\]"),
        ("saturation.h", lambda a: a[..., None], r"arrays\['saturation.h'\] has shape \(1, 1, 7, 1\)"),
        ("saturation.h", lambda a: a.tolist(), r"arrays\['saturation.h'\] is a list; expected a NumPy array"),
    ],
)
def test_arrays_of_the_wrong_axes_are_no_diagnosis(name, change, match):
    rnn, arrays, keywords = built(Case())
    flat = diagnose(rnn, arrays["x"], arrays["target"], **keywords).arrays()
    changed = {**flat, name: change(flat[name])}
    with pytest.raises((ValueError, TypeError), match=match):
        Diagnosis.from_arrays({k: v for k, v in changed.items() if v is not None})
    with pytest.raises(TypeError, match="arrays is a NoneType"):
        Diagnosis.from_arrays(None)


def test_a_diagnosis_survives_being_arrays():
    rnn, arrays, keywords = built(Case(cell="lstm", layers=2, bidirectional=True))
    found = diagnose(rnn, arrays["x"], arrays["target"], **keywords)
    flat = found.arrays()
    assert all(isinstance(value, np.ndarray) and value.dtype in (np.float64, np.int64) for value in flat.values())
    again = Diagnosis.from_arrays(flat)
    compare(again.flow, found.flow, 0)
    assert again.arrays().keys() == flat.keys()
    last = Diagnosis.from_arrays({k: v for k, v in flat.items() if "per_loss" not in k and k != "singular_values"})
    assert last.singular_values is None
    assert last.flow.per_loss is None
    with pytest.raises(ValueError, match=r"missing \['exponents'\], unknown \['else'\]"):
        Diagnosis.from_arrays({**{k: v for k, v in flat.items() if k != "exponents"}, "else": flat["exponents"]})
    assert str(found).splitlines()[3].startswith("layer 1, direction 1: a gradient ")
    flow = gradient_flow(rnn, arrays["x"], arrays["target"], **keywords)
    compare(found.flow, flow, 0)
    more = {"state": keywords["state"]}
    for k in range(2):
        assert np.array_equal(found.exponents[k], lyapunov_exponents(rnn, arrays["x"], layer=k, **more))
        assert np.array_equal(found.singular_values[k], singular_values(rnn, arrays["x"], 0, 7, layer=k, **more))
    assert np.array_equal(found.saturation["o"], saturation(rnn, arrays["x"], **more)["o"])


def test_a_diagnosis_says_in_words_what_happens():
    said = {}
    for factor in (0.5, 1.0, 1.5):
        rnn, state = still(factor * np.eye(3), factor=1.0 if factor < 1 else 1e-9)
        if factor >= 1:
            rnn.params["l0.b_h"][...] = 0
        found = diagnose(
            rnn, np.zeros((20, 2, 1)), np.ones((20, 2, 3)), state=ba.State(h=np.tile(state.h, (1, 1, 2, 1)))
        )
        said[factor] = str(found)
    assert (
        said[0.5]
        == "layer 0, direction 0: a gradient vanishes: exp(-0.693) a step, 10^-6.0 over 20 steps; saturated: h 0%"
    )
    assert "keeps its size: exp(+0.000) a step, 10^+0.0 over 20 steps" in said[1.0]
    assert "explodes: exp(+0.405) a step, 10^+3.5 over 20 steps" in said[1.5]
    nothing = diagnose(rnn, np.zeros((2, 2, 1)), np.ones((2, 2, 3)), lengths=[0, 0])
    assert str(nothing) == "layer 0, direction 0: no steps"
    dead = diagnose(rnn, np.zeros((2, 2, 1)), np.ones((2, 2, 3)))
    assert str(dead) == (
        "layer 0, direction 0: a gradient is lost; 2 of 2 sequences pass nothing on; saturated: h 100%"
    )


def found_with(exponents, lengths, **more):
    """A diagnosis with these exponents ``([E,] N)``."""
    exponents, T = np.array(exponents, float), 20
    *members, N = exponents.shape
    flow = GradientFlow(np.zeros(members), np.array(lengths), np.ones((1, 1, T, *members, N)))
    return Diagnosis(flow, {}, exponents[None, None, ..., None], **{"singular_values": np.ones(1), **more})


@pytest.mark.parametrize(
    ("exponents", "said"),
    [
        ([0.4, 0.5, 9.0], "a gradient explodes: exp(+0.500) a step, 10^+4.3 over 20 steps"),
        (
            [0.5] + 7 * [np.nan],
            "a gradient explodes: exp(+0.500) a step, 10^+4.3 over 20 steps; 7 of 8 sequences are no numbers",
        ),
        (
            7 * [0.0] + [-np.inf],
            "a gradient keeps its size: exp(+0.000) a step, 10^+0.0 over 20 steps; 1 of 8 sequences passes nothing on",
        ),
        ([np.nan, np.nan], "a gradient is no number; 2 of 2 sequences are no numbers"),
        (
            [-np.inf, np.nan],
            "a gradient is lost; 1 of 2 sequences passes nothing on; 1 of 2 sequences is no number",
        ),
        (
            [[-0.5, -0.5], [0.5, 0.5], [-0.6, -0.6]],
            "a gradient vanishes in 2, explodes in 1 of 3 members: "
            "exp(-0.600 to +0.500) a step, 10^-5.2 to 10^+4.3 over 20 steps",
        ),
        (
            [[0.5, np.nan], [np.nan, np.nan]],
            "a gradient explodes in 1, is no number in 1 of 2 members: exp(+0.500) a step, 10^+4.3 over 20 steps; "
            "3 of 4 sequences are no numbers",
        ),
    ],
    ids=str,
)
def test_no_sequence_speaks_for_the_others(exponents, said):
    lengths = [20, *[10] * (np.shape(exponents)[-1] - 1)]
    assert str(found_with(exponents, lengths)) == f"layer 0, direction 0: {said}"


def test_what_was_left_out_is_said_and_a_sequence_without_steps_does_not_count():
    left_out = str(found_with([0.5, np.nan], [20, 0], singular_values=None)).splitlines()
    assert left_out[0] == "layer 0, direction 0: a gradient explodes: exp(+0.500) a step, 10^+4.3 over 20 steps"
    assert left_out[1:] == ["singular values: left out, see diagnose"]


def test_a_network_that_is_no_number_is_diagnosed_as_such():
    """Of a ReLU too, whose f' is 0 where its value is NaN, so that all units would seem dead."""
    for cell in ("relu", "tanh"):
        rnn, x = ba.RNN(2, 4, 1, cell=cell, dtype="float64"), np.ones((6, 3, 2))
        x[2, 1] = np.nan
        found = diagnose(rnn, x, np.ones((6, 3, 1)))
        assert "1 of 3 sequences is no number" in str(found), cell
        sound = np.isfinite(found.exponents[0, 0, :, 0]) | np.isneginf(found.exponents[0, 0, :, 0])
        assert sound.tolist() == [True, False, True], cell
        assert np.isnan(found.singular_values[0, 0, 1]).all()
        J = jacobian(rnn, x, 2, 4)
        assert np.isnan(J).all(axis=(-2, -1)).tolist() == [False, True, False]
        assert np.isfinite(J[[0, 2]]).all()
        assert np.isfinite(jacobian(rnn, x, 0, 2)).all()  # before it
        norms = jacobian_norms(rnn, x)[1]
        assert np.isnan(norms[1, 0, 3:]).all()
        assert np.isfinite(norms[1, 0, :3]).all()
        others = saturation(rnn, x[:, [0, 2]])["h"]
        assert np.allclose(saturation(rnn, x)["h"][..., 2:], others[..., 2:])
        assert np.isnan(saturation(rnn, x[:, [1]])["h"][..., 2:]).all()
        rnn.params["l0.W_hh"][...] = np.nan
        whole = diagnose(rnn, x, np.ones((6, 3, 1)))
        assert str(whole) == "layer 0, direction 0: a gradient is no number; 3 of 3 sequences are no numbers"


def test_a_diagnosis_leaves_out_singular_values_that_are_too_much_work(monkeypatch):
    monkeypatch.setattr(diagnostics.diagnosis, "_MULTIPLY_ADDS", 7 * 4 * 5 * 25 - 1)
    rnn, arrays, keywords = built(Case())
    assert diagnose(rnn, arrays["x"], arrays["target"], **keywords).singular_values is None
    monkeypatch.setattr(diagnostics.diagnosis, "_MULTIPLY_ADDS", 7 * 4 * 5 * 25)
    assert diagnose(rnn, arrays["x"], arrays["target"], **keywords).singular_values is not None


RNN = ba.RNN(3, 5, 2, num_layers=2, dtype="float64")
LAST = ba.RNN(3, 5, 2, readout="last", dtype="float64")
X, Y = np.ones((7, 4, 3)), np.ones((7, 4, 2))

BAD = [
    (jacobian, (RNN, X, 3, 2), {}, ValueError, r"t=3, k=2: expected t <= k"),
    (jacobian, (RNN, X, 3, 8), {}, ValueError, r"k=8; expected at most T=7"),
    (jacobian, (RNN, X, -1, 3), {}, ValueError, r"t=-1 is too small"),
    (jacobian, (RNN, X, 1.0, 3), {}, TypeError, r"t=1.0 is a float"),
    (jacobian, (RNN, X, 1, 3), {"layer": 2}, ValueError, r"layer=2; expected -2 to 1"),
    (jacobian, (RNN, X, 1, 3), {"layer": -3}, ValueError, r"layer=-3; expected -2 to 1: this RNN has num_layers=2"),
    (jacobian, (LAST, X, 1, 3), {"layer": -2}, ValueError, r"layer=-2; expected -1 to 0: this RNN has num_layers=1"),
    (jacobian, (RNN, X, 1, 3), {"layer": "top"}, TypeError, r"layer='top' is a str"),
    (jacobian, (RNN, X[..., :2], 1, 3), {}, ValueError, r"x has 2 features"),
    (jacobian, (RNN, X.astype("float32"), 1, 3), {}, TypeError, r"x has dtype float32"),
    (jacobian, (RNN, X, 1, 3), {"state": 3}, TypeError, r"state is a int"),
    (jacobian, (RNN, X, 1, 3), {"lengths": [8, 1, 1, 1]}, ValueError, r"lengths\[0\]=8"),
    (jacobian, (X, X, 1, 3), {}, TypeError, r"rnn is a ndarray; expected a bptt_array.RNN"),
    (singular_values, (RNN, X, 3, 2), {}, ValueError, r"t=3, k=2"),
    (singular_values, ("rnn", X, 3, 2), {}, TypeError, r"rnn is a str"),
    (jacobian_norms, (RNN, X), {"steps": [1, 9]}, ValueError, r"steps\[1\]=9; expected 0 to 7"),
    (jacobian_norms, (RNN, X), {"steps": [3, 3]}, ValueError, r"steps\[0\]=3 and steps\[1\]=3; expected increasing"),
    (jacobian_norms, (RNN, X), {"steps": 3}, TypeError, r"steps=3 is a int"),
    (jacobian_norms, (None, X), {}, TypeError, r"rnn is a NoneType"),
    (lyapunov_exponents, (RNN, X, 6), {}, ValueError, r"count=6; expected at most 5"),
    (lyapunov_exponents, (RNN, X, 0), {}, ValueError, r"count=0 is too small"),
    (lyapunov_exponents, (RNN, X), {"transient": 4}, ValueError, r"transient=4 at both ends leaves nothing of T=7"),
    (lyapunov_exponents, (RNN, X), {"seed": -1}, ValueError, r"seed=-1 is too small"),
    (lyapunov_exponents, (RNN, X), {"layer": 5}, ValueError, r"layer=5"),
    (gradient_flow, (RNN, X, Y), {"at": [7]}, ValueError, r"at\[0\]=7; expected 0 to 6"),
    (gradient_flow, (RNN, X, Y), {"at": [2, 1]}, ValueError, r"at\[0\]=2 and at\[1\]=1"),
    (gradient_flow, (RNN, X, Y), {"at": [1.5]}, TypeError, r"at\[0\]=1.5 is a float"),
    (gradient_flow, (RNN, X, Y), {"at": "all"}, TypeError, r"at='all' is a str"),
    (gradient_flow, (RNN, X, Y), {"at": b"all"}, TypeError, r"at=b'all' is a bytes"),
    (gradient_flow, (RNN, X, Y), {"at": {1: 2}}, TypeError, r"at=\{1: 2\} is a dict"),
    (gradient_flow, (LAST, X, Y[0]), {"at": b"all"}, TypeError, r"at=b'all' is a bytes"),
    (jacobian_norms, (RNN, X), {"steps": np.array(3)}, TypeError, r"steps=array\(3\) is a ndarray"),
    (gradient_flow, (LAST, X, Y[0]), {"at": [6]}, ValueError, r"at=\[6\], but this RNN has readout='last'"),
    (gradient_flow, (RNN, X, Y[1:]), {}, ValueError, r"target has shape"),
    (gradient_flow, (RNN, X, Y, "hinge"), {}, ValueError, r"loss='hinge' is unknown"),
    (gradient_flow, (RNN, X, Y), {"weights": Y}, ValueError, r"weights has shape"),
    (saturation, (RNN, X), {"below": 1.5}, ValueError, r"below=1.5; expected at most 1"),
    (saturation, (RNN, X), {"below": -1}, ValueError, r"below=-1; expected a finite number of at least 0"),
    (saturation, (RNN, X), {"below": "half"}, TypeError, r"below='half' is a str"),
    (diagnose, (RNN, X, Y), {"count": 6}, ValueError, r"count=6; expected at most 5"),
    (diagnose, (RNN, X, Y), {"below": 2}, ValueError, r"below=2"),
    (diagnose, (LAST, X, Y[0]), {"at": [6]}, ValueError, r"readout='last'"),
    (diagnose, (3, X, Y), {}, TypeError, r"rnn is a int"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "args", "keywords", "error", "match"), BAD, ids=lambda value: getattr(value, "__name__", None)
)
def test_errors_name_the_argument(function, args, keywords, error, match):
    with pytest.raises(error, match=match):
        function(*args, **keywords)


# ---- plots --------------------------------------------------------------------------------------------


def drawn(axes):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.lines}


def test_the_plot_of_a_flow_shows_the_mean_over_the_sequences_that_are_there():
    flow = flow_of(Case(layers=2, bidirectional=True, lengths=(7, 0, 4, 1)))
    figure = plots.plot_gradient_flow({"a": flow, "b": flow})
    lines = drawn(figure.axes[0])
    assert len(lines) == 8
    x, y = lines["b, layer 1, reverse"]
    assert x.tolist() == list(range(7))
    expected = [np.mean([flow.total[1, 1, t, n] for n in range(4) if t < (7, 0, 4, 1)[n]]) for t in range(7)]
    assert np.allclose(y, expected)
    assert figure.axes[0].get_yscale() == "log"
    assert "h_t" in figure.axes[0].get_ylabel()
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 8
    again = plots.plot_gradient_flow(flow, figure.axes[0])
    assert again is figure
    assert len(figure.axes[0].lines) == 12


def test_the_heat_map_shows_every_loss_and_leaves_zeros_out():
    flow = flow_of(Case(lengths=(7, 3, 4, 1)), at=(0, 3, 6))
    figure = plots.plot_loss_gradients(flow)
    [mesh] = figure.axes[0].collections
    shown = mesh.get_array().reshape(3, 7)
    assert np.allclose(shown[1, :4], flow.per_loss[1, 0, 0, :4][:, [0, 2]].mean(axis=1))
    assert np.ma.getmaskarray(shown).tolist() == [[t > k for t in range(7)] for k in (0, 3, 6)]
    assert mesh.norm.vmin == pytest.approx(shown.min())
    assert mesh.norm.vmax == pytest.approx(shown.max())
    assert len(figure.axes) == 2
    assert figure.axes[0].yaxis.get_major_formatter()(1, None) == "3"
    assert plots.plot_loss_gradients(flow, limits=(1e-3, 1), bar=False).axes[0].collections[0].norm.vmin == 1e-3
    nothing = dataclasses.replace(flow, per_loss=0 * flow.per_loss)
    assert np.ma.getmaskarray(plots.plot_loss_gradients(nothing).axes[0].collections[0].get_array()).all()
    for wrong, match in [({"layer": 1}, "layer=1"), ({"direction": 1}, "direction=1")]:
        with pytest.raises(ValueError, match=match):
            plots.plot_loss_gradients(flow, **wrong)
    with pytest.raises(ValueError, match="flow has no gradients of single losses"):
        plots.plot_loss_gradients(flow_of(Case(readout="last")))


def test_the_other_plots_show_their_data():
    values = np.array([[[4.0, 2.0, 1.0]], [[16.0, 4.0, 0.0]]])
    lines = drawn(plots.plot_singular_values(values, spans=[1, 2]).axes[0])
    assert lines["largest"][1].tolist() == pytest.approx([4, 16])
    assert lines["median"][1].tolist() == pytest.approx([2, 4])
    assert lines["smallest"][1][0] == 1
    assert np.isnan(lines["smallest"][1][1])
    assert lines["largest"][0].tolist() == [1, 2]
    [(x, y)] = drawn(plots.plot_singular_values({"a": values}).axes[0]).values()
    assert x.tolist() == [1, 2, 3]
    assert y[:2].tolist() == pytest.approx([8, 8**0.5])
    with pytest.raises(ValueError, match="spans has 3 numbers, values 2"):
        plots.plot_singular_values(values, spans=[1, 2, 3])
    parts = {"f": np.array([[[0.0, 0.5]]]), "o": np.array([[[1.0, np.nan]]])}
    lines = drawn(plots.plot_saturation(parts).axes[0])
    assert lines["f"][1].tolist() == [0, 0.5]
    assert lines["o"][1][0] == 1
    exponents = np.array([[0.5, -1.0], [0.7, -np.inf], [np.nan, np.nan]])
    lines = drawn(plots.plot_lyapunov({"wild": exponents}).axes[0])
    assert lines["wild"][1].tolist() == pytest.approx([0.6, -1.0])
    assert set(lines["no growth"][1]) == {0}


def test_one_sequence_that_is_no_number_or_dead_leaves_the_others_to_be_seen():
    flow = flow_of(Case())
    total, per_loss = flow.total.copy(), flow.per_loss.copy()
    total[..., 1], per_loss[..., 1] = np.nan, np.inf
    broken, others = dataclasses.replace(flow, total=total, per_loss=per_loss), [0, 2, 3]
    [line] = plots.plot_gradient_flow(broken).axes[0].lines
    assert np.allclose(line.get_ydata(), flow.total[0, 0][:, others].mean(axis=1))
    [mesh] = plots.plot_loss_gradients(broken).axes[0].collections
    assert np.allclose(mesh.get_array()[6], flow.per_loss[6, 0, 0][:, others].mean(axis=1))
    values = np.array([[4.0, 2.0, 1.0], [np.nan] * 3, [0.0, 0.0, 0.0], [9.0, 2.0, 0.0]])
    [(_, y)] = drawn(plots.plot_singular_values({"a": values}).axes[0]).values()
    assert y.tolist() == pytest.approx([6, 2, 1])
    lines = drawn(plots.plot_singular_values(np.stack([values, np.full((4, 3), np.nan)]), spans=[1, 2]).axes[0])
    assert [lines[name][1][0] for name in ("largest", "median", "smallest")] == pytest.approx([6, 2, 1])
    assert np.isnan(lines["median"][1][1])
    lines = drawn(plots.plot_saturation({"h": np.array([[[[0.5, np.nan]]]])}).axes[0])
    assert lines["h"][1].tolist() == [0.5]


FLOW = GradientFlow(np.zeros(()), np.array([1]), np.ones((1, 1, 1, 1)), None, np.array([0]), np.ones((1, 1, 1, 1, 1)))
VALUES = np.ones((2, 3))

BAD_PLOTS = [
    (plots.plot_loss, (None,), {}, TypeError, r"metrics is a NoneType"),
    (plots.plot_gradient_flow, (None,), {}, TypeError, r"flows is a NoneType"),
    (plots.plot_gradient_flow, ({"a": None},), {}, TypeError, r"flows is a NoneType"),
    (plots.plot_loss_gradients, (None,), {}, TypeError, r"flow is a NoneType"),
    (plots.plot_loss_gradients, (FLOW,), {"limits": (0, 1)}, ValueError, r"limits=\(0, 1\); expected 0 < low < high"),
    (plots.plot_loss_gradients, (FLOW,), {"limits": (2, 1)}, ValueError, r"limits=\(2, 1\)"),
    (plots.plot_loss_gradients, (FLOW,), {"limits": 5}, TypeError, r"limits=5; expected two numbers"),
    (plots.plot_singular_values, (None,), {}, TypeError, r"values is a NoneType"),
    (plots.plot_singular_values, ({"a": 3},), {}, TypeError, r"values\['a'\] is a int"),
    (plots.plot_singular_values, (VALUES,), {"spans": 5}, TypeError, r"spans=5 is a int"),
    (plots.plot_singular_values, (VALUES,), {"spans": [1, 2.5]}, TypeError, r"spans\[1\]=2.5 is a float"),
    (plots.plot_saturation, (None,), {}, TypeError, r"saturation is a NoneType"),
    (plots.plot_saturation, ({"h": VALUES},), {}, ValueError, r"saturation\['h'\] has shape \(2, 3\)"),
    (plots.plot_lyapunov, (None,), {}, TypeError, r"exponents is a NoneType"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "args", "keywords", "error", "match"), BAD_PLOTS)
def test_plots_name_the_argument_that_is_wrong(function, args, keywords, error, match):
    with pytest.raises(error, match=match):
        function(*args, **keywords)


def test_the_bar_has_a_point_where_the_data_go_on():
    flow = dataclasses.replace(FLOW, at=np.array([0, 1]), per_loss=np.array([1e-3, 1e3]).reshape(2, 1, 1, 1, 1))
    flow = dataclasses.replace(flow, lengths=np.array([2]), total=np.ones((1, 1, 2, 1)))
    flow = dataclasses.replace(flow, per_loss=np.repeat(flow.per_loss, 2, axis=3))
    for limits, extend in [(None, "neither"), ((1, 1e4), "min"), ((1e-4, 1), "max"), ((0.1, 10), "both")]:
        [mesh] = plots.plot_loss_gradients(flow, limits=limits).axes[0].collections
        assert mesh.colorbar.extend == extend


def test_plots_touch_no_global_state_and_say_what_is_missing(monkeypatch):
    code = inspect.getsource(plots)
    assert "pyplot" not in code
    flow = GradientFlow(np.zeros(()), np.array([1]), np.ones((1, 1, 1, 1)))
    [line] = plots.plot_gradient_flow(flow).axes[0].lines
    assert line.get_marker() == "o"  # a line of one point would not be seen
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plots need matplotlib: pip install matplotlib"):
        plots.plot_gradient_flow(flow)
