"""(4), and norms of gradients: what makes one step of training of them.

>>> import numpy as np
>>> from bptt_array import optimizers
>>> params, grads = {"a": np.ones(2)}, {"a": np.array([3.0, 4.0])}
>>> optimizers.SGD(lr=0.5).update(params, optimizers.clip_by_global_norm(grads, 1.0))
>>> params["a"].round(1).tolist()
[0.7, 0.6]
"""

from .norms import clip_by_global_norm, global_norm, largest_entries
from .updates import SGD, Adam, AdamW, RMSprop

__all__ = ["SGD", "Adam", "AdamW", "RMSprop", "clip_by_global_norm", "global_norm", "largest_entries"]
