"""Recurrent networks trained by backpropagation through time, written once as the equations, on NumPy or CuPy.

>>> import numpy as np, bptt_array as ba
>>> rnn = ba.RNN(input_size=3, hidden_size=8, output_size=1, device="cpu", seed=0)
>>> x = np.ones((5, 2, 3), dtype="float32")  # (T, N, I): 5 steps of 2 sequences
>>> loss, grads, state = rnn.loss_and_grad(x, np.zeros((5, 2, 1), dtype="float32"))
>>> ba.SGD(lr=0.1).update(rnn.params, ba.clip_by_global_norm(grads.params, 1.0))
"""

from ._version import __version__
from .backend import Backend
from .cells import Cell
from .gradcheck import check_gradients
from .optimizers import SGD, Adam, clip_by_global_norm, global_norm
from .parity import compare_devices
from .rnn import RNN
from .state import Gradients, State

__all__ = [
    "RNN",
    "SGD",
    "Adam",
    "Backend",
    "Cell",
    "Gradients",
    "State",
    "__version__",
    "check_gradients",
    "clip_by_global_norm",
    "compare_devices",
    "global_norm",
]
