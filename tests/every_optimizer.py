"""One optimizer of each kind, for tests that hold for all of them."""

import pytest

import bptt_array as ba

OPTIMIZERS = {
    "sgd": lambda: ba.SGD(0.1),
    "momentum": lambda: ba.SGD(0.1, momentum=0.9),
    "nesterov": lambda: ba.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: ba.Adam(1e-2),
    "adamw": lambda: ba.AdamW(1e-2, weight_decay=0.5),
    "rmsprop": lambda: ba.RMSprop(1e-2, alpha=0.5),
    "rmsprop, momentum": lambda: ba.RMSprop(1e-2, alpha=0.5, momentum=0.9),
    "centered": lambda: ba.RMSprop(1e-2, alpha=0.5, centered=True),
    "centered, momentum": lambda: ba.RMSprop(1e-2, alpha=0.5, momentum=0.9, centered=True),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)

#: Those that keep arrays for a parameter.
KEEPING = {name: make for name, make in OPTIMIZERS.items() if make().keeps}
each_keeping = pytest.mark.parametrize("make", KEEPING.values(), ids=KEEPING)
