"""Recurrent networks trained by backpropagation through time, written once as the equations, on NumPy or CuPy.

>>> import numpy as np, bptt_array as ba
>>> rnn = ba.RNN(input_size=3, hidden_size=8, output_size=1, device="cpu", seed=0)
>>> x = np.ones((5, 2, 3), dtype="float32")  # (T, N, I): 5 steps of 2 sequences
>>> loss, grads, state = rnn.loss_and_grad(x, np.zeros((5, 2, 1), dtype="float32"))
>>> ba.SGD(lr=0.1).update(rnn.params, ba.clip_by_global_norm(grads.params, 1.0))
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import schedules
from ._version import __version__
from .backend import Backend
from .bptt.state import Gradients, State
from .equations.cell import Cell
from .gradcheck import check_gradients
from .optimizers import SGD, Adam, clip_by_global_norm, global_norm
from .rnn.rnn import RNN

if TYPE_CHECKING:
    from . import diagnostics, distributed, plots
    from .parity import compare_devices

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
    "diagnostics",
    "distributed",
    "global_norm",
    "plots",
    "schedules",
]

#: Imported when first asked for: a program that trains a network has no use for most of them.
_LATER = {"compare_devices": "parity", "diagnostics": "", "distributed": "", "parity": "", "plots": ""}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_LATER[name] or name}", __name__)
    found = globals()[name] = getattr(module, name) if _LATER[name] else module
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
