"""What ``members=E`` buys: a training step of many small networks at once, against one after the other, and torch.

    python benchmarks/ensembles.py [--threads 2] [--dtype float32] [--quick]

Forward, readout, loss and every gradient of E = 32 networks that read the same sequences, each with weights of its
own, in one process, taking turns; gradients are compared with ours first. "ours, one by one" are single networks.
"torch, one by one" are as many torch.nn.RNN (or LSTM) and Linear with autograd; "torch, vmap" are the same modules in
torch.func: ``stack_module_state``, ``functional_call``, and ``vmap`` of ``grad``. There oneDNN is off: its LSTM has no
rule for stacked weights, so ``vmap`` would run one network after the other, and more slowly than a loop. Prints
tables and writes results/ensembles-DTYPE.json, into runs/benchmarks unless --out says otherwise.
"""

from functools import partial

import compare
import measure
import numpy as np
from peers import Ours, Problem, Shape, Torch

CELLS = ("tanh", "lstm")
SHAPES = [Shape(50, N, 32, 64, 16) for N in (1, 8, 32)]
QUICK = [Shape(10, 2, 4, 8, 3)]


class OneByOne:
    """The members of an ensemble as single networks, one after the other; each a ``peer``."""

    def __init__(self, problem, peer):
        self.singles = [peer(problem, network=problem.network.member(k)) for k in range(problem.members)]

    def run(self):
        for single in self.singles:
            single.run()

    def gradients(self):
        found = [single.gradients() for single in self.singles]
        return {name: np.stack([grads[name] for grads in found]) for name in found[0]}


class Vmap:
    """``torch.func``: the gradients of all members by ``vmap``, over the stacked parameters of torch's modules."""

    def __init__(self, problem):
        import torch
        from torch.func import functional_call, grad, stack_module_state, vmap

        singles = OneByOne(problem, Torch).singles
        layer, linear, scale = singles[0].layer, singles[0].linear, singles[0].scale

        def stacked(modules):
            return {name: values.detach() for name, values in stack_module_state(modules)[0].items()}

        def loss(layers, linears, frozen, x, target):
            hs, _ = functional_call(layer, layers | frozen, (x,))
            return torch.square(functional_call(linear, linears, (hs,)) - target).sum() * scale

        layers, linears = stacked([s.layer for s in singles]), stacked([s.linear for s in singles])
        frozen = {"bias_hh_l0": layers.pop("bias_hh_l0")}
        self.mkldnn = torch.backends.mkldnn
        self.arguments = layers, linears, frozen, singles[0].x, singles[0].target
        self.function = vmap(grad(loss, argnums=(0, 1)), in_dims=(0, 0, 0, None, None))

    def run(self):
        self.mkldnn.enabled = False
        try:
            return self.function(*self.arguments)
        finally:
            self.mkldnn.enabled = True

    def gradients(self):
        layers, linears = self.run()
        theirs = {
            "l0.W_xh": layers["weight_ih_l0"],
            "l0.W_hh": layers["weight_hh_l0"],
            "l0.b_h": layers["bias_ih_l0"],
            "W_hy": linears["weight"],
            "b_y": linears["bias"],
        }
        return {name: value.numpy() for name, value in theirs.items()}


#: Name, class and what has to be installed.
PEERS = {
    "bptt_array": (Ours, None),
    "ours, one by one": (partial(OneByOne, peer=Ours), None),
    "torch, vmap": (Vmap, "torch"),
    "torch, one by one": (partial(OneByOne, peer=Torch), "torch"),
}


def tables(result):
    """The result as Markdown: ratios of time, times."""
    names, rows = result["names"], result["rows"]
    lines = [f"Our time with `members={rows[0]['members']}` / that of as many networks:", ""]
    lines += [*measure.table(["(T, N, I, H, O)", *names[1:]], compare.ours_over_theirs(rows, names)), ""]
    return [*lines, *compare.times_and_spread(rows, names), *compare.agreement(result)]


def main(argv=None):
    arguments = compare.parse(__doc__, argv, PEERS, SHAPES, QUICK, memory=False)
    members = 3 if arguments.quick else 32
    problems = [Problem(shape, arguments.dtype, cell, members) for cell in CELLS for shape in arguments.shapes]
    return compare.run(__file__, arguments, problems, PEERS, tables)[0]


if __name__ == "__main__":
    measure.run(main)
