"""Known mistakes, put in on purpose: the gradient check has to see every one of them.

Each mutant is the package with one piece of source replaced, imported under another name.
"""

import ast
import importlib.abc
import importlib.util
import itertools
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
from cases import LENGTHS, LONG, SOFTMAX, TRUNCATED, Case
from gradients import (
    check_explosion_in_the_padding,
    check_given_gradient,
    check_loss_gradient,
    check_padding,
    check_rows_at_the_extremes,
    check_stream,
    check_two_periods,
    check_updates,
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
    Case(tokens=True, I=40),
    Case(tokens=True, I=500, H=40, cell="lstm"),
    Case(tokens=True, I=500, H=140, members=2, shared=False, T=40, segment=7),
    Case(cell="lstm", reverse=True, lengths=LENGTHS, weights=True),
    Case(reverse=True, layers=2, dropout=0.4, parts=2),
    Case(cell="gru", bias=False, members=2, lengths=LENGTHS),
    Case(tokens=True, embedding=6, members=2, shared=False, bidirectional=True, lengths=LENGTHS),
    Case(tokens=True, embedding=6, T=12, N=90, segment=5),
    Case(tokens=True, embedding=5, tied=True, I=4, parts=3),
    Case(output="softmax", loss="cross_entropy", target="classes"),
    Case(output="softmax", loss="cross_entropy", target="probabilities"),
    Case(output="sigmoid", loss="binary_cross_entropy", target="probabilities"),
    Case(loss="cubic", output="sigmoid"),
    Case(loss="torch_mse", O=3),
    Case(loss="mae", output="tanh"),
    Case(loss="huber", delta=0.4),
    Case(**SOFTMAX, ignored=-100, reduction="weighted_mean", weights=True),
    Case(**SOFTMAX, ignored=2, class_weights=True, smoothing=0.3, lengths=LENGTHS),
    Case(**SOFTMAX, ignored=-100, smoothing=0.3),
    Case(**SOFTMAX, class_weights=True, weights=True, readout="last", lengths=LENGTHS),
    Case(**SOFTMAX | {"target": "probabilities"}, class_weights=True, smoothing=0.3),
    Case(members=2, shared=False, weights=True, reduction="weighted_mean"),
    Case(readout="last", lengths=LENGTHS),
    Case(readout="last", output="softmax"),
    Case(readout="last", layers=2, cell="lstm"),
    Case(readout="last", layers=2, bidirectional=True, lengths=LENGTHS),
    Case(output_size=False),
    Case(weights=True),
    TRUNCATED[0],
    LONG,
    Case(cell="lstm", lengths=LENGTHS),
    Case(cell="lstm", layers=2, dropout=0.4, recurrent_dropout=0.3, truncate=3),
    Case(cell="gru", tokens=True, recurrent_dropout=0.4),
    Case(cell="gru_reset_before", lengths=LENGTHS, recurrent_dropout=0.4),
    Case(cell="gru_reset_before", bidirectional=True, members=2),
    Case(cell="lstm", proj_size=3, layers=2, lengths=LENGTHS, recurrent_dropout=0.3),
    Case(cell="lstm", proj_size=3, bidirectional=True, members=2, readout="last"),
    Case(cell="gru", layers=2, bidirectional=True, lengths=LENGTHS, dropout=0.4, recurrent_dropout=0.3),
    Case(bidirectional=True, readout="last", lengths=LENGTHS),
    Case(members=3, lengths=LENGTHS, recurrent_dropout=0.4),
    Case(members=2, shared=False, tokens=True, bidirectional=True, readout="last"),
    Case(members=2, output="softmax", loss="cross_entropy", target="classes", weights=True),
    Case(T=30, budget=0.0),
    Case(T=30, budget=0.3, truncate=11),
    Case(T=20, N=2, budget=0.0, layers=2, dropout=0.4),
    Case(T=45, N=2, segment=100, backward="parallel"),
    Case(T=45, N=2, segment=100, backward="parallel", recurrent_dropout=0.4),
    Case(T=46, N=2, segment=100, backward="parallel", lengths=(46, 20)),
    Case(parts=2, N=5, cell="lstm", layers=2, dropout=0.4, recurrent_dropout=0.3, weights=True),
    Case(parts=3, output="softmax", loss="cross_entropy", target="classes", lengths=LENGTHS, tokens=True),
    Case(parts=2, N=5, members=2, shared=False, readout="last", bidirectional=True, cell="gru"),
]

#: One step at a time.
STREAMS = [
    Case(layers=2, I=5),  # I = H: whose input is whose?
    Case(cell="lstm", output="softmax"),
    Case(cell="gru", layers=2, members=2, tokens=True),
    Case(cell="lstm", members=2, shared=False, output_size=False),
]

MUTANTS = {
    # the text's 3.2-3.4 taken literally: only the direct part of dh_t
    "direct-only sum": ("equations/elman.py", "add_product(dh_before, dz)", "pass"),
    "direct-only sum of an LSTM": ("equations/lstm.py", "add_product(dh_before, dz)", "pass"),
    "direct-only sum of a GRU": ("equations/gru.py", "add_product(dh_before, dz)", "pass"),
    "no gradient between segments": ("bptt/layer.py", "dstate[steps, ...] += self._carried[k]", "pass"),
    "carried gradient not cut": ("bptt/layer.py", "        if cut:\n", "        if False:\n"),
    "carried gradient lands a step early": ("bptt/layer.py", "dstate[steps, ...] += self._carried[k]", "dstate[1, ...] += self._carried[k]"),
    "unshifted dW_hh": ("bptt/layer.py", "h_before = tape.h_before if", "h_before = tape.h if"),
    "skipped first step backward": ("equations/recurrence.py", "for rows in zip(*arguments):  # noqa: B905 (after", "for rows in list(zip(*arguments))[:-1]:  # noqa: B905 (after"),
    "skipped last step backward": ("equations/recurrence.py", "for rows in zip(*arguments):  # noqa: B905 (after", "for rows in list(zip(*arguments))[1:]:  # noqa: B905 (after"),
    "skipped first step of the sums": ("bptt/layer.py", "        self._hand_on(start)", "        self._hand_on(start); dz[0, ...] *= start != 0"),
    "transposed W_hh backward": ("equations/elman.py", "dz *= dh", "dz *= dh; product.W = product.W.mT; add_product = product.adding()"),
    "dh_0 without W_hh": ("bptt/layer.py", "d_initial = self._initial_gradients(self._carried)", "d_initial = self._initial_gradients(tuple([d[1, ...].copy() for d in self._dstates]))"),
    "f' forgotten": ("equations/elman.py", "dz *= dh", "dz[...] = dh"),
    "f' of the step before": ("equations/elman.py", "derivative_(backend, dz, tape.h)", "derivative_(backend, dz, tape.h_before)"),
    "tanh' without the square": ("backend/cpu.py", "np.multiply(y[k : k + steps], y[k : k + steps], out=block)", "np.multiply(y[k : k + steps], 1, out=block)"),
    "sigmoid' without (1 - y)": ("equations/activations.py", "out[...] = y * (1 - y)", "out[...] = y * 1"),
    "softmax' as a diagonal": ("equations/activations.py", "    dz += dz\n    return dz", "    return y * (1 - y) * dy"),
    "g' forgotten": ("equations/objective.py", "return losses, g.vjp(backend, y, dy)", "return losses, dy"),
    "g' forgotten with a caller's loss": ("equations/objective.py", "self.readout.g.vjp(backend, y, copy(dy))", "copy(dy)"),
    "g' forgotten with a given dy": ("bptt/direct.py", "return readout.g.vjp(readout.backend, readout(h), dy)", "return dy"),
    "squared error without the half": ("equations/losses.py", "y - target, 0.5 * factor, backend.xp", "y - target, 1.0 * factor, backend.xp"),
    "cross-entropy gradient without the target": ("equations/losses.py", "p -= target", "pass"),
    "cross-entropy gradient without the class": ("equations/losses.py", "backend.minus_one_hot_(p, target, there)", "pass"),
    "classes of other sequences": ("backend/cpu.py", "sparse=True), index] -= there", "sparse=True), index[::-1]] -= there"),
    "smoothing in the loss only": ("equations/losses.py", "p -= of_each if class_weights is None else of_each * class_weights", "pass"),
    "smoothing in the gradient only": ("equations/losses.py", "loss -= of_each * xp.sum(v, axis=-1)", "pass"),
    "smoothing that is not taken from the class": ("equations/losses.py", "there: Factor = 1.0 - smoothing", "there: Factor = 1.0"),
    "probabilities not smoothed": ("equations/losses.py", "target += of_each", "pass"),
    "probabilities without class weights": ("equations/losses.py", "target *= class_weights", "pass"),
    "classes without their mass": ("equations/losses.py", "p *= mass[..., None]", "pass"),
    "mass of a class without smoothing": ("equations/losses.py", "mass = there + of_each * xp.sum(class_weights, axis=-1)", "mass = there"),
    "the weight of another class": ("equations/losses.py", "take_entries(class_weights, target)", "take_entries(class_weights[::-1], target)"),
    "smoothing without class weights": ("equations/losses.py", "                v *= class_weights\n", "                pass\n"),
    "the weight of a class in the gradient alone": ("equations/losses.py", "loss = mass * log_Z[..., 0] - there * of_class", "loss = mass * log_Z[..., 0] - of_class"),
    "means over outputs that are sums": ("equations/losses.py", "return 1.0 if self.of_mean is None else self.of_mean / outputs", "return 1.0"),
    "torch's squared error, halved": ("equations/losses.py", "of_mean=2.0", "of_mean=1.0"),
    "the derivative of a size that is no sign": ("equations/losses.py", "xp.sign(dy)", "dy"),
    "Huber's error without a bound": ("equations/losses.py", "dy = xp.clip(error, -delta, delta)", "dy = error + 0"),
    "Huber's lines too low": ("equations/losses.py", "error -= 0.5 * dy", "error -= dy"),
    "steps ignored that count": ("equations/objective.py", "xp.astype(counts, dtype) if weights", "xp.ones_like(target, dtype=dtype) if weights"),
    "steps ignored that have a weight": ("equations/objective.py", "else xp.where(counts, weights, xp.zeros_like(weights))", "else weights"),
    "a mean over classes that weigh the same": ("equations/objective.py", "of_classes = self.readout.backend.take_entries(self.class_weights, target)", "of_classes = self.readout.backend.take_entries(self.class_weights, target) ** 0"),
    "one mean for all members": ("equations/objective.py", "xp.sum(of_all, axis=0))[:, None]", "xp.sum(of_all, axis=0))[:, None] * 0 + xp.sum(weights) / self.members"),
    "a mean over the first block": ("bptt/direct.py", "return sum(counts[1:], start=counts[0])", "return counts[0]"),
    "a mean over weights that was to be one over steps": ("rnn/calls.py", "counted = targets if by_weight else Targets(target, None)", "counted = targets"),
    "a mean over steps that was to be one over weights": ("rnn/calls.py", "counted = targets if by_weight else Targets(target, None)", "counted = Targets(target, weights * 0 + 1)"),
    "binary cross-entropy times sigmoid'": ("equations/losses.py", "dv -= target", "dv -= target; dv *= 0.25"),
    "mean in the loss only": ("equations/objective.py", "dv *= scale", "pass"),
    "weights in the loss only": ("equations/objective.py", "dv *= weights[..., None]", "dv *= scale"),
    "mean over all steps": ("bptt/batch.py", "int(self.lengths.sum() if", "int(self.T * self.N if"),
    "copy of W_hh transposed": ("backend/cpu_products.py", "ordered[...] = W", "ordered[...] = W.mT if W.shape[-2] == W.shape[-1] else W"),
    "clipping hidden in the backward loop": ("equations/elman.py", "dz *= dh", "dz *= dh; dz.clip(-100, 100, out=dz)"),
    "steps of weight 0 in the gradient": ("equations/objective.py", "backend.zero_unless_(dv, counts[..., None])", "pass"),
    "steps of weight 0 in the loss": ("equations/objective.py", "loss = xp.where(counts, loss, xp.zeros_like(loss))", "loss = loss"),
    "weight 0 taken for 1": ("equations/objective.py", "counts = weights != 0", "weights = weights + (weights == 0); counts = weights != 0"),
    "padding that leaks into the states": ("bptt/layer.py", "states[1:, ...] = padding.zeroed(states[1:, ...], start, stop)", "pass"),
    "padding that leaks into the loss": ("bptt/direct.py", "return self.weights(start, stop)", "return self.weights.array[start:stop]"),
    "padding in the loss without weights": (
        "bptt/direct.py",
        "if padding is None or not padding.begins_before(stop):",
        "if True:",
    ),
    "padding that leaks out of the inputs": ("bptt/padding.py", "return part if self.padding is None else self.padding.zeroed(part, start, stop, features=self.features)", "return part"),
    "padding that leaks out of y": ("bptt/passes.py", "of_segment if padding is None else padding.zeroed(of_segment, start, stop)", "of_segment"),
    "padding of a given dy": ("bptt/passes.py", "batch.feed(dy, ", "__import__('dataclasses').replace(batch, padding=None).feed(dy, "),
    "final state at T": ("bptt/layer.py", "[where(ends_here, *pair) for", "[where(ends_here | True, *pair) for"),
    "final gradient at T": ("bptt/padding.py", "steps[:, None] == self._lengths[None, :] - 1", "steps[:, None] == self._lengths[None, :] * 0 + stop - 1"),
    "final gradient a step early": ("bptt/padding.py", "== self._lengths[None, :] - 1", "== self._lengths[None, :] - 2"),
    "final gradient of empty sequences lost": ("bptt/layer.py", "[d + padding.of_empty(d_last) for", "[d for"),
    "final gradient in every segment": ("bptt/layer.py", "elif stop == self.forward.T:", "else:"),
    "gradient of the first segment only": ("equations/long_sums.py", "there += part", "pass"),
    "dW_hy of another step": ("bptt/direct.py", "readout.backward_(dh, dv, h, self.grads)", "readout.backward_(dh, dv, h[::-1], self.grads)"),
    "db_y forgotten": ("equations/readout.py", 'add_rows(backend, grads, "b_y", rows)', 'add_rows(backend, grads, "b_y", 0 * rows)'),
    "db_h forgotten": ("equations/sums.py", 'add_bias(backend, sums, "b_h", dz)', 'add_bias(backend, sums, "b_h", 0 * dz)'),
    "dx forgotten": ("bptt/layer.py", "backend.matmul_(flat(backend, dx, 2), flat(backend, dz, 2), W_xh)", "dx[...] = 0"),
    "tokens taken for the first": ("bptt/layer.py", "x = backend.one_hot(x, params", "x = backend.one_hot(x * 0, params"),
    "tokens without their sums": ("equations/token_sums.py", "        table[places] += sums\n", "        table[places] = sums\n"),
    "columns of other tokens": ("equations/token_sums.py", "places = self._places[tokens] - 1\n", "places = self._places[tokens[::-1]] - 1\n"),
    "tokens of the first member for all": ("equations/token_sums.py", "tokens = xp.moveaxis(tokens + of_member, 0, -2)", "tokens = xp.moveaxis(tokens + 0 * of_member, 0, -2)"),
    "rows of the same token once": ("backend/cpu.py", "return distinct, same @ rows", "return distinct, rows[: len(distinct)]"),
    "columns of the first member for all": ("backend/cpu.py", "table = W[which].T[distinct]", "table = W[(0,) * len(which)].T[distinct]"),
    "bias forgotten where there are many tokens": ("backend/cpu.py", "                    table += b[which]\n", "                    pass\n"),
    "x from the beginning": ("bptt/unrolled.py", "batch.feed(batch.x, ", "__import__('dataclasses').replace(batch, reverse=False).feed(batch.x, "),
    "targets from the beginning": ("bptt/direct.py", "batch.feed(target, ", "Feed(batch.backend, target, batch.padding, "),
    "weights from the beginning": ("bptt/direct.py", "batch.feed(weights, ", "Feed(batch.backend, weights, batch.padding, "),
    "dy from the beginning": ("bptt/passes.py", "batch.feed(dy, ", "__import__('dataclasses').replace(batch, reverse=False).feed(dy, "),
    "y in the order of reading": ("bptt/passes.py", "y = in_time(backend, y, batch.padding)", "pass"),
    "dx in the order of reading": ("bptt/parts.py", "dx = in_time(backend, dx, whole.padding)", "pass"),
    "whole sequences turned, not their valid parts": ("bptt/padding.py", "there = np.where(turned >= 0, turned, steps)", "there = (len(a) - 1 - steps + 0 * turned)"),
    "another segment from the end": ("bptt/padding.py", "part = a[T - stop : T - start, ...]", "part = a[start:stop, ...]"),
    "gates without their sums where there is no bias": ("equations/recurrence.py", "        gates[...] = rows_by_gate", "        gates[...] = 0 * rows_by_gate"),
    "vectors of the first member for all": ("equations/embedding.py", "tokens + V * backend", "tokens + 0 * V * backend"),
    "gradients to the rows of other tokens": ("bptt/embedding.py", "index = backend.reshape(self.embedding.index(start), (-1,))", "index = backend.reshape(self.embedding.index(start), (-1,))[::-1]"),
    "gradient of vectors in one direction alone": ("bptt/unrolled.py", "        embedding.segment(start, dx)", "        embedding.segment(start, dx if not two else dx / 2)"),
    "an embedding of the first segment for all": ("bptt/embedding.py", "return self._kept[start][0]", "return self._kept[min(self._kept)][0][: 1] + 0 * self._kept[start][0]"),
    "tied, and only the readout's gradient": ("equations/embedding.py", "return self._of_embedding.total(*[", "return onto if onto is not None else self._of_embedding.total(*["),
    "tied, and only the embedding's gradient": ("equations/embedding.py", "for each in others], onto=onto)", "for each in others])"),
    "tied, and the readout's gradient of the first part": ("equations/embedding.py", "                onto += each._of_readout\n", "                pass\n"),
    "an embedding of columns": ("equations/token_sums.py", "result[at] += sum(table[places] for", "result[at] += sum(table[places][:, ::-1 if self._by_rows else 1] for"),
    "dy of sequences without a step": ("bptt/direct.py", "padding.zeroed_if_empty(h), padding.zeroed_if_empty(dy)", "h, dy"),
    "last step read in every segment": ("bptt/direct.py", "elif stop != self.T:", "elif False:"),
    "bias forgotten where there are few tokens": ("backend/portable.py", "                    out += b\n", "                    pass\n"),
    "other columns where there are few tokens": ("backend/portable.py", "columns = xp.take(W, xp.reshape(index, (-1,)), axis=1)", "columns = xp.take(W, xp.reshape(index.mT, (-1,)), axis=1)"),
    # gates
    "gates swapped": ("equations/lstm.py", "slope_f *= f\n        slope_f *= c_before", "slope_f *= i\n        slope_f *= c_before"),
    "gates swapped both ways": ("equations/lstm.py", "state_(i, f, g, o, c_before, c, tanh_c, h)", "state_(i, o, g, f, c_before, c, tanh_c, h)"),
    "gates of the GRU swapped": ("equations/gru.py", "gates_(dz_by_gate, slopes, dh)", "gates_(dz_by_gate[::-1], slopes, dh)"),
    "h for c": ("equations/cell.py", "return self.states[1][:-1, ...]", "return self.states[0][:-1, ...]"),
    "h for c in the final state": ("bptt/layer.py", "self._add_last(start, stop, dstate, self.d_last[k])", "self._add_last(start, stop, dstate, self.d_last[0])"),
    "h for c at a segment's start": ("bptt/layer.py", "dstate[steps, ...] += self._carried[k]", "dstate[steps, ...] += self._carried[0]"),
    "no gradient through c": ("equations/lstm.py", "dc_before += slope_c", "pass"),
    "no gradient from h to c": ("equations/lstm.py", "dc += slope_c", "pass"),
    "gradient of c left from the segment after": ("bptt/layer.py", "dstate[: 1 if k == 0 else steps + 1, ...] = 0", "dstate[:1, ...] = 0"),
    "c without the forget gate": ("equations/lstm.py", "ops.multiply_(slope_c, f, dc)", "ops.multiply_(slope_c, dc, dc * 0 + 1)"),
    "sigmoid' of a gate forgotten": ("equations/lstm.py", "ops.one_minus_(slope_i, i)", "slope_i[...] = i"),
    "the reset gate after the product": ("equations/gru.py", "ops.multiply_(slope_inner, slope_n, r)", "slope_inner[...] = slope_n"),
    "dW_xh of the GRU with the reset gate": ("equations/gru.py", "backend.over_segment(multiply)(dn, slopes[:, 3, ...], dh)", "pass"),
    "db_hn without the reset gate": ("equations/gru.py", 'return {"b_hn": of_b_hn}', 'return {"b_hn": dn}'),
    "u dh forgotten": ("equations/gru.py", "add_elementwise(dh_before, u, dh)", "pass"),
    "u of the step before": ("equations/gru.py", "ops.subtract_(slope_inner, h_before, n)", "ops.subtract_(slope_inner, n, h_before)"),
    "the reset gate without its product": ("equations/gru_reset_before.py", "ops.multiply_(dz_r, slope_r, d_reset)", "ops.multiply_(dz_r, slope_r, dh)"),
    "d_ru without r": ("equations/gru_reset_before.py", "ops.multiply_(d_r, slope_r, d_reset)", "d_r[...] = 0"),
    "d_ru without u": ("equations/gru_reset_before.py", "ops.multiply_(d_u, slope_u, dh)", "d_u[...] = 0"),
    "r W_hn^T dz_n forgotten": ("equations/gru_reset_before.py", "ops.multiply_(slope_r, r, d_reset)", "slope_r[...] = 0"),
    "W_hn^T dz_n without r": ("equations/gru_reset_before.py", "ops.multiply_(slope_r, r, d_reset)", "slope_r[...] = d_reset"),
    "u dh forgotten, with the reset gate before": ("equations/gru_reset_before.py", "ops.multiply_(slope_r, u, dh)", "slope_r[...] = 0"),
    "W_hn given dh": ("equations/gru_reset_before.py", "product_n_(slope_n)", "product_n_(dh)"),
    "dW_hn of h in place of r h": ("equations/gru_reset_before.py", "(reset, tape.kept[:, 0, ...], tape.h_before)", "(reset, 0 * tape.kept[:, 0, ...] + 1, tape.h_before)"),
    "dW_hn of the gradient of u": ("equations/gru_reset_before.py", "(*_, dz_n) = backend.empty(dh.shape, dh.dtype), self.split(dz)", "(_, dz_n, _) = backend.empty(dh.shape, dh.dtype), self.split(dz)"),
    "n without its slope": ("equations/gru_reset_before.py", "slope_n *= slope_u  #", "pass  #"),
    "dh in place of W_hr^T dh": ("equations/projected_lstm.py", "product_(dh)  #", "d_out[...] = 0; d_out[..., : dh.shape[-1]] = dh  #"),
    "a state that is not projected": ("equations/projected_lstm.py", "            h[...] = projected", "            h[...] = out[..., : h.shape[-1]]"),
    "dW_hr of c in place of o tanh(c)": ("equations/projected_lstm.py", '(dh, slopes[:, -1, ...])', '(dh, tape.c)'),
    "slopes of a projected LSTM without o": ("equations/projected_lstm.py", "(out, tape.kept[:, 3, ...], tape.kept[:, 4, ...])", "(out, tape.kept[:, 4, ...], tape.kept[:, 4, ...])"),
    "W_hh of the last gates": ("bptt/layer.py", 'rows[..., : params["W_hh"].shape[-2]]', 'rows[..., -params["W_hh"].shape[-2] :]'),
    "the mask of the state forgotten in own matrices": ("equations/state_product.py", "self.mask if name in self.of_state else None", "None"),
    "the mask of the state forgotten in the sums of own matrices": ("bptt/layer.py", "masked = name in cell.of_state and self.forward.mask is not None", "masked = False"),
    "own matrices transposed": ("equations/state_product.py", "W if self.backward else W.mT, self.rows", "W.mT if self.backward else W.mT, self.rows"),
    "padding that leaks into what is kept": ("bptt/layer.py", "tape.kept[...] = padding.zeroed(tape.kept, start, stop)", "pass"),
    # layers and directions
    "direct part of the layer below forgotten": ("bptt/unrolled.py", "layer.dx_(start, stop, dx)\n        mask", "dx[...] = 0\n        mask"),
    "initial state of the top layer for all": ("bptt/unrolled.py", "return [layer.d_initial for layer in self.layers", "return [self.layers[-1].d_initial for layer in self.layers"),
    "gradient of the last outputs in every layer": ("bptt/unrolled.py", "            d_ending = None\n", "            pass\n"),
    "gradient of dy in place of that of the last state": ("bptt/unrolled.py", "dh = dh + (directions", "dh = (directions"),
    "gradient of the last states below lost with dy": ("bptt/unrolled.py", "return [*d_last[:-1], (dh, *dc)]", "return [*(tuple(0 * d for d in below) for below in d_last[:-1]), (dh, *dc)]"),
    "gradient of the last c lost with dy": ("bptt/unrolled.py", "return [*d_last[:-1], (dh, *dc)]", "return [*d_last[:-1], (dh, *(0 * d for d in dc))]"),
    "the reverse direction not reversed": ("bptt/directions.py", "result[..., 1, :, :] = reverse(backend, x, padding)", "result[..., 1, :, :] = x"),
    "outputs of the reverse direction not turned back": ("bptt/directions.py", "result[..., H:] = reverse(backend, h[..., 1, :, :], padding)", "result[..., H:] = h[..., 1, :, :]"),
    "gradient of the reverse direction not reversed": ("bptt/directions.py", "dh[..., 1, :, :] = reverse(backend, d_merged[..., H:], padding)", "dh[..., 1, :, :] = d_merged[..., H:]"),
    "dx of the reverse direction not turned back": ("bptt/directions.py", "dx[..., 0, :, :] + reverse(backend, dx[..., 1, :, :], padding)", "dx[..., 0, :, :] + dx[..., 1, :, :]"),
    "reversed over its padding": ("bptt/directions.py", "if padding is None else padding.turned", "if True else padding.turned"),
    "directions mixed": ("bptt/directions.py", "dh[..., 0, :, :] = d_merged[..., :H]", "dh[..., 0, :, :] = d_merged[..., H:]"),
    "last states of the directions mixed": ("bptt/directions.py", "[d_merged[..., :H], d_merged[..., H:]]", "[d_merged[..., H:], d_merged[..., :H]]"),
    # dropout
    "a dropout mask redrawn in backward": ("bptt/unrolled.py", "mask = unrolled.mask(k, start, stop)", "mask = unrolled.mask(k, start + 1, stop + 1)"),
    "a dropout mask forgotten in backward": ("bptt/unrolled.py", "dx *= mask", "pass"),
    "a mask without its scale": ("bptt/dropout.py", "mask *= 1 / (1 - rate)", "pass"),
    "a mask of the wrong layer": ("bptt/dropout.py", "return self._mask(self.rate, 2 * layer,", "return self._mask(self.rate, 0,"),
    "a mask that begins anew in every segment": ("bptt/dropout.py", "self._mask(self.rate, 2 * layer, start,", "self._mask(self.rate, 2 * layer, 0,"),
    "the mask of the state forgotten backward": ("equations/state_product.py", "out *= mask", "pass"),
    "the mask of the state forgotten in dW_hh": ("bptt/layer.py", "if mask is None else tape.h_before * mask", "if True else None"),
    "the same mask of the state in every layer": ("bptt/dropout.py", "2 * layer + 1", "1"),
    "the mask of the state from that between layers": ("bptt/dropout.py", "2 * layer + 1", "2 * layer"),
    # schedules
    "last state of a segment that ran again": ("bptt/layer.py", "if self.padding is None and stop == self.T:", "if self.padding is None:"),
    "gone back to another state": ("bptt/unrolled.py", "            layer.state = state", "            layer.state = state if start else tuple(1.5 * a for a in state)"),
    "gradient cut between segments of a budget": ("schedules/plans.py", "yield Backward(start, stop, cut=stop == end)", "yield Backward(start, stop, cut=True)"),
    "gradient not cut between windows of a budget": ("schedules/plans.py", "yield Backward(start, stop, cut=stop == end)", "yield Backward(start, stop, cut=stop == self.T)"),
    "windows of a budget go on from where they last were": ("schedules/plans.py", "            yield Restore(end)", "            pass"),
    "a loss in every window that passes it": ("bptt/unrolled.py", "direct = self.direct if loss else nothing_direct", "direct = self.direct"),
    "no loss of the first part of a window": ("schedules/instructions.py", "loss=start >= new", "loss=start > new"),
    "windows that do not overlap": ("schedules/instructions.py", "window = [part for part in window if part[0] >= end - k2] + added", "window = added"),
    "dx of the last window only": ("bptt/unrolled.py", "            target += dx", "            target[...] = dx"),
    "dh_0 of the last window only": ("bptt/layer.py", "self.d_initial = d_initial if before is None else (*map(add, before, d_initial),)", "self.d_initial = d_initial"),
    # parallel over time
    "own gradient of a chunk lost": ("equations/parallel.py", "ops.add_(own, product, direct)", "ops.add_(own, product, 0 * direct)"),
    "f' of a chunk's last step forgotten": ("equations/parallel.py", "xp.moveaxis(slopes[length - 1, ...], -1, -3)[..., None], W", "xp.moveaxis(slopes[length - 1, ...] * 0 + 1, -1, -3)[..., None], W"),
    "Jacobians transposed": ("equations/parallel.py", "xp.moveaxis(by_unit, (-3, -4), (0, -2))", "xp.moveaxis(by_unit, (-3, -4), (0, -1))"),
    "carries that are not joined": ("equations/parallel.py", "        add_both_(dh_before, sent_row, out)", "        add_both_(dh_before, sent_row * 0, out)") ,
    "mask of the state forgotten in the Jacobians": ("equations/parallel.py", "            factor *= along", "            pass"),
    "mask of the state forgotten between chunks": ("equations/parallel.py", "            sent_row *= mask", "            pass"),
    "mask of the state forgotten in chunks": ("equations/parallel.py", "            sent *= along", "            pass"),
    "dh_0 of chunks lost": ("equations/parallel.py", "    first += sent[..., 0, :, :]", "    first += 0"),
    "the steps that chunks leave over forgotten": ("equations/parallel.py", "        row *= dh\n", "        pass\n"),
    "padding in the product of Jacobians": ("bptt/layer.py", "dz[...] = forward.padding.zeroed(dz, start, stop)", "pass"),
    # members
    "members mixed": ("backend/portable.py", "index = index + I * xp", "index = index + 0 * xp"),
    "members mixed in the readout": ("equations/readout.py", "return xp.matmul(h, self.W_hy.mT)", "return xp.matmul(h, xp.flip(self.W_hy, axis=0).mT)"),
    "gradients of members mixed": ("equations/readout.py", "backend.matmul_(dh, dv, self.W_hy)", "backend.matmul_(dh, dv, backend.xp.flip(self.W_hy, axis=0))"),
    "losses of members summed": ("equations/objective.py", "xp.sum(loss, axis=-1 if self.members is not None else None)", "xp.sum(loss)"),
    "mean over the members too": ("bptt/batch.py", "return self.T * self.N if readout", "return (self.members or 1) * self.T * self.N if readout"),
    "the rate between layers for that of the state": ("bptt/dropout.py", "self._mask(self.recurrent_rate, 2", "self._mask(self.rate or self.recurrent_rate, 2"),
    "the mask of the state in both directions alike": ("bptt/dropout.py", "rows *= _signed(self.batch * F)", "rows *= _signed(self.batch * F) if before else 0"),
    "masks of units counted by sequences": ("bptt/dropout.py", "backend.arange(math.prod(row), xp.int32), row)", "backend.arange(math.prod(row), xp.int32), row[::-1]).mT"),
    "masks of members alike": ("bptt/dropout.py", "seeds = (backend.arange(self.members or 1, xp.int32)", "seeds = (backend.arange(self.members or 1, xp.int32) * 0"),
    # parts
    "gradients of the first part alone": ("equations/token_sums.py", "        first += other\n", "        pass\n"),
    "losses of the first part alone": ("bptt/passes.py", "loss = sum(losses[1:], start=losses[0])", "loss = losses[0]"),
    "targets of the first part for all": ("bptt/parts.py", "of_rows(targets.target, rows, features", "of_rows(targets.target, slice(0, rows.stop - rows.start), features"),
    "weights of the first part for all": ("bptt/parts.py", "of_rows(targets.weights, rows, features", "of_rows(targets.weights, slice(0, rows.stop - rows.start), features"),
    "masks of the first part for all": ("bptt/parts.py", "first=dropout.first + rows.start", "first=dropout.first"),
    "lengths of the first part for all": ("bptt/parts.py", "batch.padding.lengths[rows]", "batch.padding.lengths[: rows.stop - rows.start]"),
    "initial states of the first part for all": ("bptt/parts.py", "of_rows(state, rows) for state", "of_rows(state, slice(0, rows.stop - rows.start)) for state"),
    "states of parts in another order": ("bptt/parts.py", "arrays, axis=-2)", "arrays[::-1], axis=-2)"),
    "dx of a part lost": ("bptt/unrolled.py", "elif two or apart:", "elif two:"),
    # one step at a time
    "a stream that stays where it is": ("bptt/streaming.py", "self._now = 1 - now", "pass"),
    "a stream that goes on from the state before": ("bptt/streaming.py", "[state[before, ...], state[1 - before, ...]]", "[state[1 - before, ...], state[before, ...]]"),
    "states of a stream that is not where they are": ("bptt/streaming.py", "state[self._now, ...] for state", "state[0, ...] for state"),
    "every layer of a stream reads its input": ("bptt/streaming.py", "            x = h\n        self", "        x = h\n        self"),
    "a stream that reads out its input": ("bptt/streaming.py", "self._read_out(x)", "self._read_out(self._moves[1 - now][-1].h)"),
    "b_h forgotten in a stream": ("bptt/streaming.py", "add_(z, of_x, bias)", "add_(z, of_x, 0 * bias)"),
    "b_y forgotten in a stream": ("equations/readout.py", "add_(y, of_h, b_y)", "add_(y, of_h, 0 * b_y)"),
    "g forgotten in a stream": ("equations/readout.py", "            g_(y)", "            pass"),
    "tokens of the first member for all in a stream": ("bptt/streaming.py", "of_all, x + first)", "of_all, x + 0 * first)"),
    "a stream that begins anew everywhere": ("bptt/streaming.py", "without(self._backend, self.states, rows)", "without(self._backend, self.states, rows | True)"),
    "a stream that begins anew nowhere": ("bptt/streaming.py", "without(self._backend, self.states, rows)", "without(self._backend, self.states, rows & False)"),
    "states of another layer set": ("bptt/streaming.py", "zip(self.states, states, strict=True)", "zip(self.states, states[::-1], strict=True)"),
    # rows
    "the largest logit of all rows, in a loss": ("equations/losses.py", "v -= xp.max(v, axis=-1, keepdims=True)", "v -= xp.max(v)"),
    "the largest logit of all rows, in softmax": ("equations/activations.py", "z -= xp.max(z, axis=-1, keepdims=True)", "z -= xp.max(z)"),
    "a softmax that subtracts nothing": ("equations/activations.py", "z -= xp.max(z, axis=-1, keepdims=True)", "pass"),
    "0 log 0 in cross-entropy": ("equations/losses.py", "v = xp.where(target == 0, xp.zeros_like(v), v)", "pass"),
    "0 log 0 in binary cross-entropy": ("equations/losses.py", "v = xp.where(other_side == 0, xp.zeros_like(v), v)", "pass"),
    "the square before its factor": ("equations/losses.py", "root = 2.0 ** ((math.frexp(factor)[1] - 1) // 2)", "root = 1.0"),
    "the sum before the mean": ("equations/objective.py", "2.0 ** (math.frexp(scale)[1] - 1)", "1.0"),
    # updates
    "gradient ascent": ("optimizers/updates.py", "param -= lr * grad", "param += lr * grad"),
    "momentum that adds up": ("optimizers/updates.py", "velocity *= momentum", "pass"),
    "step of Nesterov from the velocity": ("optimizers/updates.py", "step = momentum * velocity", "step = 1.0 * velocity"),
    "Nesterov forgotten": ("optimizers/updates.py", "return _nesterov if self.nesterov else", "return _nesterov if False else"),
    "first moment not corrected": ("optimizers/updates.py", "lr = self.lr / (1 - self.beta1**t)", "lr = self.lr"),
    "second moment not corrected": ("optimizers/updates.py", "correction = (1 - self.beta2**t) ** -0.5", "correction = 1.0"),
    "updates of all parameters counted together": ("optimizers/state.py", "self._updates.get(name, 0) + 1", "max([0, *self._updates.values()]) + 1"),
    "decay of the gradient": ("optimizers/updates.py", "step += decay * param", "step += decay * grad"),
    "decay in the moments": ("optimizers/updates.py", "step = _step_of_adam(ops, grad, m, v, *of_adam)", "step = _step_of_adam(ops, grad + decay * param, m, v, *of_adam)"),
    "decay without the learning rate": ("optimizers/updates.py", "0.0 if stays else self.lr * self.weight_decay", "0.0 if stays else self.weight_decay"),
    "everything decays": ("optimizers/updates.py", "0.0 if stays else self.lr", "0.0 if False else self.lr"),
    "names by their letters": ("optimizers/updates.py", 'f".{name}".endswith(f".{entry}")', "name.endswith(entry)"),
    "names as they stand alone": ("optimizers/updates.py", "stays = any(_is_meant(name, entry) for", "stays = any(name == entry for"),
    "mean square that adds up": ("optimizers/updates.py", "v *= alpha", "pass"),
    "square of a root of nothing": ("optimizers/updates.py", "if self.centered else rest) ** 0.5", "if self.centered else rest)"),
    "variance around zero": ("optimizers/updates.py", "grad - kept[0] if centered else grad", "grad"),
    "variance of the next mean": ("optimizers/updates.py", "self.alpha * rest if self.centered else rest", "rest"),
    "mean that adds up": ("optimizers/updates.py", "mean *= alpha", "pass"),
    "mean of new gradients": ("optimizers/updates.py", "mean += one_minus_alpha * grad", "mean += alpha * grad"),
    "velocity for the mean": ("optimizers/updates.py", "velocity = kept[-1]", "velocity = kept[0]"),
    "momentum of RMSprop that adds up": ("optimizers/updates.py", "velocity *= factor", "pass"),
}  # fmt: skip

PACKAGE = Path(bptt_array.__file__).parent
_number = itertools.count()


@cache
def compiled(path, source):
    """What is as it was is compiled once for all mutants; under names that no measurement of coverage knows."""
    return compile(source, f"<mutant>/{path.relative_to(PACKAGE)}", "exec", dont_inherit=True)


class Mutant(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the package's source under the name ``name``, with ``old`` replaced in one file."""

    def __init__(self, name, file=None, old="", new=""):
        self.name, self.old, self.new = name, old, new
        self.mutated = None if file is None else PACKAGE / file

    def find_spec(self, fullname, path=None, target=None):
        name, *parts = fullname.split(".")
        if name != self.name:
            return None
        folder = PACKAGE.joinpath(*parts)
        is_package = (folder / "__init__.py").exists()
        file = folder / "__init__.py" if is_package else folder.with_suffix(".py")
        if not file.exists():
            return None
        spec = importlib.util.spec_from_loader(fullname, self, origin=str(file), is_package=is_package)
        spec.loader_state = file
        return spec

    def exec_module(self, module):
        file = module.__spec__.loader_state
        module.__file__ = str(file)
        source = file.read_text(encoding="utf-8")
        exec(compiled(file, source.replace(self.old, self.new) if file == self.mutated else source), module.__dict__)


@pytest.fixture
def mutate(monkeypatch):
    """A function ``(file, old, new)`` that imports the package under another name with ``old`` replaced."""
    name = f"mutant_{next(_number)}"

    def mutant(file=None, old="", new=""):
        if file is not None:
            assert old in (PACKAGE / file).read_text(encoding="utf-8"), (
                f"{old!r} is no longer in {file}: mend the mutant"
            )
        monkeypatch.setattr(sys, "meta_path", [Mutant(name, file, old, new), *sys.meta_path])
        return importlib.import_module(name)

    yield mutant
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        del sys.modules[module]


def finite_differences():
    """Functions of a package, and of ``at_once``: see ``check_loss_gradient``."""
    for case in CHECKS:
        yield partial(check_loss_gradient, case=case)
        if case.truncate is None and case.loss == "mse":
            yield partial(check_given_gradient, case=case)
    for alone in ({"dy": False}, {"dstate": False}):
        yield partial(check_given_gradient, case=Case(cell="lstm", layers=2, readout="last"), **alone)
    yield partial(check_loss_gradient, case=replace(CHECKS[0], target_scale=1e6))


def other_checks():
    """Functions of a package."""
    for case in CHECKS:
        if case.lengths:
            yield partial(check_padding, case=case)
    yield partial(check_two_periods, case=Case(T=11, truncate=(3, 8), segment=4))
    yield check_explosion_in_the_padding
    yield check_updates
    yield check_weights_of_zero
    for case in STREAMS:
        yield partial(check_stream, case=case)
    yield check_rows_at_the_extremes


#: First one direction for all arrays of a case, which hardly any mistake survives, and then one for each.
#: What found the last mistake comes before all: it often finds the next one too.
ORDER = [
    *(partial(check, at_once=True) for check in finite_differences()),
    *other_checks(),
    *finite_differences(),
]


def check_everything(package):
    """Every check until one fails. One that ends in another error says nothing about gradients: the rest go on."""
    broken = None
    for check in list(ORDER):
        try:
            check(package)
        except AssertionError:
            ORDER.remove(check)
            ORDER.insert(0, check)
            raise
        except Exception as error:  # noqa: BLE001 (a mistake may make shapes that do not fit, and so anything)
            broken = broken or error
    if broken is not None:
        raise broken


def test_the_copy_without_a_mistake_passes(mutate):
    check_everything(mutate())


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.filterwarnings("ignore")
def test_the_gradient_check_finds(mutate, mutant):
    package = mutate(*MUTANTS[mutant])
    with pytest.raises(AssertionError):
        check_everything(package)


@pytest.mark.parametrize("file", ["cases.py", "gradients.py", "reference.py", "reference_dropout.py"])
def test_the_check_has_nothing_from_the_package_but_what_it_is_given(file):
    """Or a mistake in the package itself would be compared with itself."""
    imported = set()
    for node in ast.walk(ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported
    assert "bptt_array" not in imported
