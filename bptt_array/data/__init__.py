"""From sequences to arrays: padding, batches, windows, standardization.

>>> import bptt_array as ba
>>> x, lengths = ba.pad([[0.5, 1.5, 2.5], [3.5]])
>>> x.shape, lengths.tolist()
((3, 2, 1), [3, 1])
"""

from .minibatches import Batches, Minibatch, batches
from .padding import pad, unpad
from .sliding import windows
from .standardization import Standardization

__all__ = ["Batches", "Minibatch", "Standardization", "batches", "pad", "unpad", "windows"]
