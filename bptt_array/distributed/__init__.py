"""Training on several processes: the sequences of a batch, or the members of an ensemble, shared out over MPI's ranks.

The sequences of a batch do not know of each other, so that its gradient is the sum of those of its parts. Of means over
``n_r`` valid steps on rank r::

    dtheta = sum_r n_r dtheta_r / sum_r n_r

All of it, the loss and ``n_r`` included, travels in one buffer, which :meth:`Communicator.all_reduce` sums in one
message a step. Members of an ensemble need no message at all.

>>> import numpy as np, bptt_array as ba
>>> from bptt_array import distributed
>>> ranks = distributed.communicator()  # those that mpiexec started, or this process alone
>>> rnn = ba.RNN(input_size=3, hidden_size=8, output_size=1, seed=0)
>>> ranks.broadcast(rnn.params)
>>> x, target = np.ones((5, 32, 3), dtype="float32"), np.zeros((5, 32, 1), dtype="float32")
>>> mine = ranks.part(32)  # of 32 sequences
>>> loss, grads, state = rnn.loss_and_grad(x[:, mine], target[:, mine])
>>> grads, loss, _ = ranks.all_reduce(grads, loss)  # those of all 32
>>> ba.SGD(lr=0.1).update(rnn.params, grads.params)
"""

from .ranks import Communicator, OneProcess, Reduced, communicator
from .transports import RanksError
from .world import launched, library

__all__ = ["Communicator", "OneProcess", "RanksError", "Reduced", "communicator", "launched", "library"]
