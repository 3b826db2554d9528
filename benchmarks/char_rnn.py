"""The default training run against torch.nn.RNN with autograd: time per update, and training losses.

    python benchmarks/char_rnn.py [FILE ...] [--updates 600] [--threads 2]

Both learn the same streams of the same text from the same initial weights with the same optimizer settings, in
one process with the same number of threads, 20 updates of one and 20 of the other in turn. Of each 20 the first 5
are not timed: the other's idle threads still spin then. Before anything is timed, the gradients of both are
compared. Needs torch and threadpoolctl.
"""

import argparse
import platform
import statistics
import time

import measure
import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from bptt_array.text import language_reference, read_texts
from bptt_array.training import Options, Trainer

BLOCK, WARM_UP = 20, 5


class Side:
    """Times and losses of one of the two."""

    def __init__(self):
        self.milliseconds, self.losses = [], []

    def add(self, k, began, loss):
        if k >= WARM_UP:
            self.milliseconds.append((time.perf_counter() - began) * 1e3)
        self.losses.append(float(loss))


class TorchTrainer:
    """torch.nn.RNN and a Linear on one-hot characters: the same network, weights and updates as ``ours``."""

    def __init__(self, ours, lr, clip):
        V, H = ours.input_size, ours.hidden_size
        self.V, self.lr, self.clip = V, lr, clip
        self.layer = torch.nn.RNN(V, H, nonlinearity=ours.cell)
        self.linear = torch.nn.Linear(H, V)
        with torch.no_grad():
            self.layer.weight_ih_l0.copy_(torch.from_numpy(ours.params["l0.W_xh"]))
            self.layer.weight_hh_l0.copy_(torch.from_numpy(ours.params["l0.W_hh"]))
            self.layer.bias_ih_l0.copy_(torch.from_numpy(ours.params["l0.b_h"]))
            self.layer.bias_hh_l0.zero_()
            self.linear.weight.copy_(torch.from_numpy(ours.params["W_hy"]))
            self.linear.bias.copy_(torch.from_numpy(ours.params["b_y"]))
        self.layer.bias_hh_l0.requires_grad_(False)  # one bias, as in (1.1)
        self.parameters = [p for m in (self.layer, self.linear) for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr)
        self.state = None

    def gradients(self, x, target):
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(x), self.V).float()
        hs, state = self.layer(one_hot, self.state)
        loss = torch.nn.functional.cross_entropy(self.linear(hs).flatten(0, 1), torch.from_numpy(target).flatten())
        self.optimizer.zero_grad()
        loss.backward()
        return loss, state.detach()

    def update(self, x, target, first, decay):
        if first:
            self.state = None
        loss, self.state = self.gradients(x, target)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * decay
        self.optimizer.step()
        return loss


def compare_gradients(trainer, theirs, x, target):
    """Largest relative difference of any gradient, on the first batch."""
    _, grads, _ = trainer.rnn.loss_and_grad(x, target, "cross_entropy")
    theirs.gradients(x, target)
    layer, linear = theirs.layer, theirs.linear
    pairs = {
        "l0.W_xh": layer.weight_ih_l0,
        "l0.W_hh": layer.weight_hh_l0,
        "l0.b_h": layer.bias_ih_l0,
        "W_hy": linear.weight,
        "b_y": linear.bias,
    }
    worst = 0.0
    for name, parameter in pairs.items():
        difference = np.abs(grads.params[name] - parameter.grad.numpy()).max() / np.abs(grads.params[name]).max()
        worst = max(worst, float(difference))
    if worst > 1e-4:
        raise SystemExit(f"gradients differ by {worst:.1e}: nothing was timed")
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    for name in ("hidden", "seq_len", "batch"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Options(), name))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = Options(hidden=arguments.hidden, seq_len=arguments.seq_len, batch=arguments.batch)
    text = read_texts(arguments.files) if arguments.files else language_reference()
    with threadpool_limits(arguments.threads):
        trainer = Trainer(text, options)
        theirs = TorchTrainer(trainer.rnn, trainer.lr, options.clip)
        batches, state = trainer.train.forever(), None
        _, x, target = next(batches)
        worst = compare_gradients(trainer, theirs, x, target)
        ours, their = Side(), Side()
        for begin in range(0, arguments.updates, BLOCK):
            block = [next(batches) for _ in range(min(BLOCK, arguments.updates - begin))]
            for k, (first, x, target) in enumerate(block):
                began = time.perf_counter()
                loss, state = trainer.update(x, target, None if first else state, 1 - (begin + k) / arguments.updates)
                ours.add(k, began, loss)
            for k, (first, x, target) in enumerate(block):
                began = time.perf_counter()
                loss = theirs.update(x, target, first, 1 - (begin + k) / arguments.updates)
                their.add(k, began, loss.detach())
    blas = ", ".join(f"{pool['internal_api']} {pool.get('version') or ''}".strip() for pool in threadpool_info())
    lines = [f"{platform.machine()}, {arguments.threads} threads, {blas}"]
    lines.append(f"Python {platform.python_version()}, NumPy {np.__version__}, torch {torch.__version__}")
    T, N, H, V = options.seq_len, options.batch, options.hidden, trainer.rnn.input_size
    lines.append(
        f"T={T} N={N} H={H} V={V}, {arguments.updates} updates of each; gradients differ by {worst:.1e} at most"
    )
    lines.append(f"{'':<12} {'median ms':>10} {'p10':>7} {'p90':>7} {'characters/s':>13} {'last losses':>12}")
    for name, side in (("bptt_array", ours), ("torch", their)):
        p10, *_, p90 = statistics.quantiles(side.milliseconds, n=10)
        median = statistics.median(side.milliseconds)
        speed, last = T * N / median * 1e3, np.mean(side.losses[-20:])
        lines.append(f"{name:<12} {median:10.2f} {p10:7.2f} {p90:7.2f} {speed:13,.0f} {last:12.3f}")
    lines.append(f"time / torch: {statistics.median(ours.milliseconds) / statistics.median(their.milliseconds):.2f}")
    print("\n".join(lines))
    about = measure.environment(arguments.threads, measure.command(__file__))
    print(f"wrote {measure.save(f'char_rnn-{options.seq_len}', {'about': about, 'lines': lines})}")


if __name__ == "__main__":
    main()
