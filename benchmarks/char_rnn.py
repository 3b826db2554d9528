"""The default training run against torch.nn.RNN with autograd: time per update, and training losses.

    python benchmarks/char_rnn.py [FILE ...] [--updates 600] [--seq-len 32] [--threads 2] [--quick]

Both learn the same streams of the same text from the same initial weights with the same optimizer settings, in
one process with the same number of threads, 20 updates of one and 20 of the other in turn. Of each 20 the first 5
are not timed: the other's idle threads still spin then. Before anything is timed, the gradients of both are
compared. torch multiplies one-hot characters, which torch.nn.RNN needs, where we look columns up; its Adam is the
fused one. Needs torch. Writes results/char_rnn-SEQ_LEN.json, into runs/benchmarks unless --out says otherwise.
"""

import importlib.util
import time

import measure
import numpy as np
from peers import gradient_difference, into_torch

from bptt_array.training.options import Options
from bptt_array.training.reading import read_texts
from bptt_array.training.text import language_reference
from bptt_array.training.trainer import Trainer

BLOCK, WARM_UP = 20, 5


class Side:
    """Times and losses of one of the two."""

    def __init__(self):
        self.milliseconds, self.losses = [], []

    def add(self, k, began, loss):
        if k >= WARM_UP:
            self.milliseconds.append((time.perf_counter() - began) * 1e3)
        self.losses.append(float(loss))

    def summary(self):
        return {
            **measure.summary([ms / 1e3 for ms in self.milliseconds]),
            "last_loss": float(np.mean(self.losses[-BLOCK:])),
        }


class TorchTrainer:
    """torch.nn.RNN and a Linear on one-hot characters: the same network, weights and updates as ``ours``."""

    def __init__(self, ours, lr, clip):
        import torch

        self.torch = torch
        V, H = ours.input_size, ours.hidden_size
        self.V, self.lr, self.clip = V, lr, clip
        self.layer = torch.nn.RNN(V, H, nonlinearity=ours.cell)
        self.linear = torch.nn.Linear(H, V)
        self.parameters = into_torch(ours, self.layer, self.linear)
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr, fused=True)
        self.state = None

    def gradients(self, x, target):
        torch = self.torch
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
        self.torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * decay
        self.optimizer.step()
        return loss


def compare_gradients(trainer, theirs, x, target):
    """Largest relative difference of any gradient, on the first batch."""
    _, grads, _ = trainer.rnn.loss_and_grad(x, target, "cross_entropy")
    theirs.gradients(x, target)
    found = {name: parameter.grad.numpy() for name, parameter in theirs.parameters.items()}
    worst = gradient_difference(found, grads.params)
    if not worst <= 1e-4:
        raise SystemExit(f"gradients differ by {worst:.1e}: nothing was timed")
    return worst


def tables(result):
    """The result as Markdown."""
    sizes, rows = result["sizes"], []
    for name, side in result["sides"].items():
        speed = sizes["T"] * sizes["N"] / side["median_ms"] * 1e3
        milliseconds = "{median_ms:.2f} ({p10_ms:.2f}-{p90_ms:.2f})".format(**side)
        rows.append([name, milliseconds, f"{speed:,.0f}", f"{side['last_loss']:.3f}"])
    ours, theirs = (side["median_ms"] for side in result["sides"].values())
    return [
        ", ".join(f"{name}={size}" for name, size in sizes.items()) + f"; {result['updates']} updates of each:",
        "",
        *measure.table(["", "ms an update, median (p10-p90)", "characters / s", f"loss, last {BLOCK}"], rows),
        "",
        *measure.unsteady(result["sides"].items()),
        f"Our time / torch's: {ours / theirs:.2f}. Gradients of the first batch agree within "
        f"{measure.up(result['gradient_difference'])} of the largest entry.",
    ]


def main(argv=None):
    parser = measure.parser(__doc__)
    parser.add_argument("--updates", type=measure.positive, default=600, help="of each (default: 600)")
    parser.add_argument("files", nargs="*", help="text to learn (default: that of the default training run)")
    for name in ("hidden", "seq_len", "batch"):
        default = getattr(Options(), name)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=measure.positive, default=default, help=f"(default: {default})")
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec("torch") is None:
        parser.error("torch is not installed: pip install -e '.[bench]'")
    updates = 2 * BLOCK if arguments.quick else arguments.updates
    options = Options(hidden=arguments.hidden, seq_len=arguments.seq_len, batch=arguments.batch, steps=updates)
    text = read_texts(arguments.files) if arguments.files else language_reference()
    with measure.threads(arguments.threads):
        busy = measure.busy()
        trainer = Trainer(text, options)
        theirs = TorchTrainer(trainer.rnn, trainer.lr, options.clip)
        state = None
        _, x, target = trainer.train.at(0)
        worst = compare_gradients(trainer, theirs, x, target)
        ours, their = Side(), Side()
        for begin in range(0, updates, BLOCK):
            block = [trainer.train.at(1 + k) for k in range(begin, min(begin + BLOCK, updates))]
            for k, (first, x, target) in enumerate(block):
                began = time.perf_counter()
                done = trainer.update(x, target, None if first else state, begin + k + 1)
                state = done.state
                ours.add(k, began, done.loss)
            for k, (first, x, target) in enumerate(block):
                began = time.perf_counter()
                loss = theirs.update(x, target, first, 1 - (begin + k) / updates)
                their.add(k, began, loss.detach())
        about = measure.environment(arguments.threads, measure.command(__file__), [busy])
    result = {
        "about": about,
        "sizes": {"T": options.seq_len, "N": options.batch, "H": options.hidden, "V": trainer.rnn.input_size},
        "updates": updates,
        "gradient_difference": worst,
        "sides": {"bptt_array": ours.summary(), "torch": their.summary()},
    }
    print("\n".join([*measure.describe(about), "", *tables(result)]))
    print(f"wrote {measure.save(f'char_rnn-{options.seq_len}', result, arguments.out)}")
    return result


if __name__ == "__main__":
    measure.run(main)
