"""A word model: a training step with 20,000 tokens, against torch.nn.Embedding and the same layer.

    python benchmarks/words.py [--threads 2] [--dtype float32] [--quick]

Tokens in, classes out with cross-entropy: forward, readout, loss and every gradient, in one process, taking turns;
gradients are compared first. The tokens are drawn as words of a text are, the k-th most frequent one in proportion to
1/k. Both have an embedding (V, H), whose gradient is dense, as optimizers want it, in front of a layer of H inputs and
H units: embedding_size=H, and torch.nn.Embedding. Beside them the same network without an embedding, which reads
columns of one matrix W_xh (G*H, V), the product of the two: of an LSTM, with G = 4, that is four times the numbers, and
so is its gradient. I is V, the vocabulary. Prints tables and writes results/words-DTYPE.json, into runs/benchmarks
unless --out says otherwise.
"""

from functools import cached_property

import compare
import measure
import numpy as np
from peers import TORCH_LAYERS, Problem, Shape

import bptt_array as ba

CELLS = ("tanh", "lstm")
SHAPES = [Shape(50, 32, 20_000, 256, 64), Shape(100, 64, 20_000, 256, 64), Shape(50, 32, 20_000, 256, 20_000)]
QUICK = [Shape(20, 4, 1000, 32, 8)]


class Words(Problem):
    """Tokens and classes, and weights of an embedding and of the layer that reads it."""

    @cached_property
    def x(self):
        T, N, V, _, _ = self.shape
        rng, odds = np.random.default_rng(0), 1 / np.arange(1, V + 1)
        return rng.permutation(V)[rng.choice(V, (T, N), p=odds / odds.sum())]

    @cached_property
    def target(self):
        return np.random.default_rng(1).integers(0, self.shape.O, (self.shape.T, self.shape.N))

    @cached_property
    def embedding(self):
        return self._normal(3, self.shape.I, self.shape.H)

    @cached_property
    def projection(self):
        gates = self.network.architecture.cell.gates
        return self._normal(4, gates * self.shape.H, self.shape.H) / np.float32(self.shape.H) ** 0.5

    @cached_property
    def network(self):
        _, _, V, H, O = self.shape  # noqa: E741
        return ba.RNN(V, H, O, cell=self.cell, embedding_size=H, output="softmax", dtype=self.dtype, seed=2)

    @cached_property
    def params(self):
        return {**super().params, "W_emb": self.embedding, "l0.W_xh": self.projection}


class Ours:
    """``bptt_array`` on the CPU."""

    def __init__(self, problem):
        self.problem, self.rnn = problem, problem.network.load_params(problem.params)

    def run(self):
        return self.rnn.loss_and_grad(self.problem.x, self.problem.target, "cross_entropy")

    def gradients(self):
        return self.run()[1].params


class Columns(Ours):
    """The same without an embedding."""

    def __init__(self, problem):
        _, _, V, H, O = problem.shape  # noqa: E741
        self.problem = problem
        self.rnn = ba.RNN(V, H, O, cell=problem.cell, output="softmax", dtype=problem.dtype)
        params = {name: value for name, value in problem.params.items() if name != "W_emb"}
        self.rnn.load_params(params | {"l0.W_xh": problem.projection @ problem.embedding.T})

    def gradients(self):
        grads = self.run()[1].params
        dW_xh = grads.pop("l0.W_xh")  # of the product of the two matrices that the others have
        return grads | {"W_emb": dW_xh.T @ self.problem.projection, "l0.W_xh": dW_xh @ self.problem.embedding}


class Embedded:
    """``torch.nn.Embedding``, ``RNN`` or ``LSTM``, and ``Linear`` with autograd."""

    def __init__(self, problem):
        import torch

        _, _, V, H, O = problem.shape  # noqa: E741
        self.torch, like = torch, {"dtype": getattr(torch, problem.dtype)}
        self.embedding = torch.nn.Embedding(V, H, **like)
        self.layer = getattr(torch.nn, TORCH_LAYERS[problem.cell])(H, H, **like)
        self.linear = torch.nn.Linear(H, O, **like)
        self.layer.bias_hh_l0.requires_grad_(False).zero_()
        self.parameters = {
            "W_emb": self.embedding.weight,
            "l0.W_xh": self.layer.weight_ih_l0,
            "l0.W_hh": self.layer.weight_hh_l0,
            "l0.b_h": self.layer.bias_ih_l0,
            "W_hy": self.linear.weight,
            "b_y": self.linear.bias,
        }
        values = problem.params
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(values[name]))
        self.x, self.target = torch.from_numpy(problem.x), torch.from_numpy(problem.target.reshape(-1))

    def run(self):
        for parameter in self.parameters.values():
            parameter.grad = None
        hs, _ = self.layer(self.embedding(self.x))
        v = self.linear(hs).reshape(len(self.target), -1)
        self.torch.nn.functional.cross_entropy(v, self.target).backward()

    def gradients(self):
        self.run()
        return {name: parameter.grad.numpy() for name, parameter in self.parameters.items()}


#: Name, class and what has to be installed.
PEERS = {
    "bptt_array": (Ours, None),
    "without an embedding": (Columns, None),
    "torch": (Embedded, "torch"),
}


def tables(result):
    """The result as Markdown: ratios of time and of memory, times, memory."""
    names, rows, head = result["names"], result["rows"], ["(T, N, I, H, O)"]
    lines = ["Our time / theirs:", "", *measure.table(head + names[1:], compare.ours_over_theirs(rows, names)), ""]
    return [
        *lines,
        *compare.times_and_spread(rows, names),
        *compare.peaks(rows, names),
        *compare.agreement(result),
    ]


def main(argv=None):
    arguments = compare.parse(__doc__, argv, PEERS, SHAPES, QUICK)
    problems = [Words(shape, arguments.dtype, cell) for cell in CELLS for shape in arguments.shapes]
    return compare.run(__file__, arguments, problems, PEERS, tables)[0]


if __name__ == "__main__":
    measure.run(main)
