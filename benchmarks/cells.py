"""Time and peak memory of a training step of an LSTM and of a GRU: this library, torch, and the products alone.

    python benchmarks/cells.py [--threads 2] [--dtype float32] [--quick]

As compare.py: forward, readout, loss and every gradient, in one process, taking turns, gradients compared first.
torch is torch.nn.LSTM or torch.nn.GRU with autograd, without the bias that ours does not have. Prints tables and
writes results/cells-DTYPE.json and images/cells-DTYPE.png, into runs/benchmarks unless --out says otherwise.
"""

import compare
import measure
from peers import PEERS_OF_CELLS, Problem, Shape

CELLS = ("lstm", "gru")
SHAPES = [Shape(50, 32, 32, 64, 32), Shape(100, 64, 128, 256, 64), Shape(200, 64, 256, 512, 64)]
QUICK = [Shape(25, 4, 16, 32, 8)]


def main(argv=None):
    arguments = compare.parse(__doc__, argv, PEERS_OF_CELLS, SHAPES, QUICK)
    problems = [Problem(shape, arguments.dtype, cell) for cell in CELLS for shape in arguments.shapes]
    result, name = compare.run(__file__, arguments, problems, PEERS_OF_CELLS, compare.tables)
    compare.draw(result, name, arguments.out)
    return result


if __name__ == "__main__":
    measure.run(main)
