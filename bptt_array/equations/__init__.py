"""The equations: a step of a cell and its derivative, the loops over time, readout, loss, sums of the weights."""

from .cell import Cell
from .elman import Elman
from .gru import GRU
from .gru_reset_before import GRUResetBefore
from .lstm import LSTM

__all__ = ["GRU", "LSTM", "Cell", "Elman", "GRUResetBefore"]
