"""Known mistakes, put in on purpose: the gradient check has to see every one of them.

Each mutant is a copy of the package with one piece of source replaced, imported under another name.
"""

import importlib
import itertools
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cases import LENGTHS, LONG, TRUNCATED, Case
from gradients import (
    check_explosion_in_the_padding,
    check_given_gradient,
    check_loss_gradient,
    check_padding,
    check_weights_of_zero,
)

import bptt_array

#: One case per family of options, so that the whole of it takes a fraction of a second.
CHECKS = [
    Case(),
    Case(cell="relu"),
    Case(lengths=LENGTHS),
    Case(lengths=LENGTHS, weights=True, output="sigmoid", reduction="sum"),
    Case(output="softmax"),
    Case(output="tanh", tokens=True),
    Case(output="softmax", loss="cross_entropy", target="classes"),
    Case(output="softmax", loss="cross_entropy", target="probabilities"),
    Case(output="sigmoid", loss="binary_cross_entropy", target="probabilities"),
    Case(loss="cubic", output="sigmoid"),
    Case(readout="last", lengths=LENGTHS),
    Case(readout="last", output="softmax"),
    Case(output_size=False),
    Case(weights=True),
    TRUNCATED[0],
    LONG,
]

MUTANTS = {
    # the text's 3.2-3.4 taken literally: only the direct part of dh_t
    "direct-only sum": ("recurrence.py", "add_product(row, dz_after)", "pass"),
    "no gradient between segments": ("bptt.py", "dhs[stop - start - 1, ...] += self._carried", "pass"),
    "carried gradient not cut": ("bptt.py", "if self._carried is not None and not cut:", "if self._carried is not None:"),
    "carried gradient lands a step early": ("bptt.py", "dhs[stop - start - 1, ...] += self._carried", "dhs[0, ...] += self._carried"),
    "unshifted dW_hh": ("bptt.py", "flat(backend, hs[:-1, ...], 2)", "flat(backend, hs[1:, ...], 2)"),
    "skipped first step backward": ("recurrence.py", "cell.backward_(row, slopes[t, ...])", "cell.backward_(row, slopes[t, ...] * (t > 0))"),
    "skipped last step backward": ("recurrence.py", "cell.backward_(row, slopes[t, ...])", "cell.backward_(row, slopes[t, ...] * (dz_after is not None))"),
    "skipped first step of the sums": ("bptt.py", "dz = flat(backend, dhs, 2)", "dhs[0, ...] *= start != 0; dz = flat(backend, dhs, 2)"),
    "transposed W_hh backward": (
        "bptt.py",
        "backend.accumulator(layer.W_hh, unrolled",
        "backend.accumulator(layer.W_hh.mT, unrolled",
    ),
    "dh_0 without W_hh": ("recurrence.py", "add_product(dh_before, dz_after)", "dh_before += dz_after"),
    "f' forgotten": ("cells.py", "row *= slope", "pass"),
    "f' of the step before": ("recurrence.py", "cell.slopes_(backend, slopes, hs[1:, ...])", "cell.slopes_(backend, slopes, hs[:-1, ...])"),
    "tanh' without the square": ("backend.py", "np.multiply(y[k : k + steps], y[k : k + steps], out=block)", "np.multiply(y[k : k + steps], 1, out=block)"),
    "sigmoid' without (1 - y)": ("activations.py", "out[...] = y * (1 - y)", "out[...] = y * 1"),
    "softmax' as a diagonal": ("activations.py", "return y * (dy - backend.xp.sum(y * dy, axis=-1, keepdims=True))", "return y * (1 - y) * dy"),
    "g' forgotten": ("losses.py", "self.readout.g.vjp(backend, y, dy)", "dy"),
    "g' forgotten with a given dy": ("direct.py", "return readout.g.vjp(readout.backend, readout(h), dy)", "return dy"),
    "squared error without the half": ("losses.py", "return 0.5 * backend.xp.vecdot", "return backend.xp.vecdot"),
    "cross-entropy gradient without the target": ("losses.py", "p -= target", "pass"),
    "cross-entropy gradient without the class": ("losses.py", "p -= backend.one_hot(target, v.shape[-1], v.dtype)", "pass"),
    "binary cross-entropy times sigmoid'": ("losses.py", "dv -= target", "dv -= target; dv *= 0.25"),
    "mean in the loss only": ("losses.py", "dv *= self.scale", "pass"),
    "weights in the loss only": ("losses.py", "xp.zeros_like(dv)) * weights[..., None]", "xp.zeros_like(dv)) * self.scale"),
    "mean over all steps": ("batch.py", "int(self.lengths.sum() if", "int(self.T * self.N if"),
    "copy of W_hh transposed": ("backend.py", "W = np.ascontiguousarray(W)", "W = np.ascontiguousarray(W.T)"),
    "clipping hidden in the backward loop": ("cells.py", "row *= slope", "row *= slope; row.clip(-100, 100, out=row)"),
    "steps of weight 0 in the gradient": ("losses.py", "dv = xp.where(counts[..., None], dv, xp.zeros_like(dv))", "dv = dv"),
    "steps of weight 0 in the loss": ("losses.py", "loss = xp.where(counts, loss, xp.zeros_like(loss))", "loss = loss"),
    "weight 0 taken for 1": ("losses.py", "counts = weights != 0", "weights = weights + (weights == 0); counts = weights != 0"),
    "padding that leaks into the states": ("bptt.py", "hs[1:, ...] = padding.zeroed(hs[1:, ...], start, stop)", "pass"),
    "padding that leaks into the loss": ("direct.py", "return self.weights(start, stop)", "return self.weights.array[start:stop]"),
    "padding in the loss without weights": (
        "direct.py",
        "if self.padding is None or not self.padding.begins_before(stop):",
        "if True:",
    ),
    "padding that leaks out of the inputs": ("padding.py", "return part if self.padding is None else self.padding.zeroed(part, start, stop)", "return part"),
    "padding that leaks out of y": ("passes.py", "part if batch.padding is None else batch.padding.zeroed(part, start, stop)", "part"),
    "padding of a given dy": ("passes.py", "Feed(backend, dy, batch.padding)", "Feed(backend, dy, None)"),
    "final state at T": ("bptt.py", "self.last_state = self.backend.xp.where(ends_here, states, self.last_state)", "self.last_state = hs[stop - start, ...]"),
    "final gradient at T": ("padding.py", "here = steps[:, None] == self._lengths[None, :] - 1", "here = steps[:, None] == self._lengths[None, :] * 0 + stop - 1"),
    "final gradient a step early": ("padding.py", "self._lengths[None, :] - 1", "self._lengths[None, :] - 2"),
    "final gradient of empty sequences lost": ("bptt.py", "return dh_0 + padding.of_empty(self.d_last)", "return dh_0"),
    "final gradient in every segment": ("bptt.py", "elif stop == self.unrolled.batch.T:", "else:"),
    "gradient of the first segment only": ("recurrence.py", "sums[name] += part", "pass"),
    "dW_hy of the state before": ("direct.py", "readout.backward_(dhs, dv, hs[1:, ...], self.grads)", "readout.backward_(dhs, dv, hs[:-1, ...], self.grads)"),
    "db_y forgotten": ("readout.py", 'bias_sum(backend, dv)', "0 * bias_sum(backend, dv)"),
    "db_h forgotten": ("bptt.py", 'bias_sum(backend, dz)', "0 * bias_sum(backend, dz)"),
    "dx forgotten": ("bptt.py", "backend.matmul_(dx, dz, layer.W_xh)", "dx[...] = 0"),
    "tokens taken for the first": ("bptt.py", "x = backend.one_hot(x, layer", "x = backend.one_hot(x * 0, layer"),
    "dy of sequences without a step": ("direct.py", "padding.zeroed_if_empty(h), padding.zeroed_if_empty(dy)", "h, dy"),
    "last step read in every segment": ("direct.py", "if stop != self.T:", "if False:"),
}  # fmt: skip

_number = itertools.count()


@pytest.fixture
def mutate(tmp_path, monkeypatch):
    """A function ``(file, old, new)`` that imports a copy of the package with ``old`` replaced."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"mutant_{next(_number)}"

    def copy(file=None, old="", new=""):
        folder = tmp_path / name
        shutil.copytree(Path(bptt_array.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
        if file is not None:
            source = (folder / file).read_text(encoding="utf-8")
            assert old in source, f"{old!r} is no longer in {file}: mend the mutant"
            (folder / file).write_text(source.replace(old, new), encoding="utf-8")
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield copy
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        del sys.modules[module]


def check_everything(package):
    for case in CHECKS:
        check_loss_gradient(package, case)
        if case.truncate is None and case.loss == "mse":
            check_given_gradient(package, case)
        if case.lengths:
            check_padding(package, case)
    check_explosion_in_the_padding(package)
    check_weights_of_zero(package)
    check_loss_gradient(package, replace(CHECKS[0], target_scale=1e6))


def test_the_copy_without_a_mistake_passes(mutate):
    check_everything(mutate())


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.filterwarnings("ignore")
def test_the_gradient_check_finds(mutate, mutant):
    package = mutate(*MUTANTS[mutant])
    with pytest.raises(AssertionError):
        check_everything(package)
