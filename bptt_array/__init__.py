"""Recurrent networks trained by backpropagation through time, written once as the equations, on NumPy or CuPy.

>>> import numpy as np, bptt_array as ba
>>> rnn = ba.RNN(input_size=3, hidden_size=8, output_size=1, device="cpu", seed=0)
>>> x = np.ones((5, 2, 3), dtype="float32")  # (T, N, I): 5 steps of 2 sequences
>>> loss, grads, state = rnn.loss_and_grad(x, np.zeros((5, 2, 1), dtype="float32"))
>>> ba.SGD(lr=0.1).update(rnn.params, ba.clip_by_global_norm(grads.params, 1.0))
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .backend import Backend
from .bptt.state import Gradients, State
from .equations.cell import Cell
from .gradcheck import check_gradients
from .optimizers import SGD, Adam, AdamW, RMSprop, clip_by_global_norm, global_norm
from .rnn.rnn import RNN

if TYPE_CHECKING:
    from . import data as data
    from . import diagnostics as diagnostics
    from . import distributed as distributed
    from . import losses as losses
    from . import parity as parity
    from . import plots as plots
    from . import schedules as schedules
    from .data import Minibatch, Standardization, batches, pad, unpad, windows
    from .optimizers import lr_schedules as lr_schedules
    from .parity import compare_devices
    from .runs.fit import fit
    from .training.history import History

__all__ = [
    "RNN",
    "SGD",
    "Adam",
    "AdamW",
    "Backend",
    "Cell",
    "Gradients",
    "History",
    "Minibatch",
    "RMSprop",
    "Standardization",
    "State",
    "batches",
    "check_gradients",
    "clip_by_global_norm",
    "compare_devices",
    "fit",
    "global_norm",
    "pad",
    "unpad",
    "windows",
]

#: For users, beside the names above: rooms, files that stand beside rooms, and one of a room.
_MODULES = {
    name: f".{name}"
    for name in (
        "backend",
        "data",
        "diagnostics",
        "distributed",
        "losses",
        "parity",
        "plots",
        "schedules",
        "serialization",
    )
} | {"lr_schedules": ".optimizers.lr_schedules"}

#: Names of rooms, and of files in them, that are at the top too, and imported when they are first asked for.
_LAZY = {
    "data": ("Minibatch", "Standardization", "batches", "pad", "unpad", "windows"),
    "parity": ("compare_devices",),
    "runs.fit": ("fit",),
    "training.history": ("History",),
}


def __getattr__(name: str) -> Any:
    """What is imported when it is first asked for: a program that trains a network has no use for most of it."""
    for module, names in _LAZY.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name], __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])
