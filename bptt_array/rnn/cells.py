"""The cells that a network can be built with: those of the library by name, and the caller's own."""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from typing import Any

from ..checks import check_count, check_option, said
from ..equations.activations import CELL_ACTIVATIONS
from ..equations.cell import Cell
from ..equations.elman import Elman
from ..equations.gru import GRU
from ..equations.gru_reset_before import GRUResetBefore
from ..equations.lstm import LSTM

#: By name.
CELLS: dict[str, Cell] = {name: Elman(f) for name, f in CELL_ACTIVATIONS.items()} | {
    cell.name: cell for cell in (LSTM(), GRU(), GRUResetBefore())
}


def _reduced(cell: Cell) -> Any:
    """How a cell is pickled: those of the library by name, so that there is one of each in every process."""
    return (check_cell, (cell.name,)) if CELLS.get(cell.name) is cell else cell.__reduce_ex__(4)


for _kind in {type(cell) for cell in CELLS.values()}:
    copyreg.pickle(_kind, _reduced)


def check_cell(cell: Any) -> Cell:
    """A cell of the library by name, or one of the caller's own as it is."""
    if isinstance(cell, type) and issubclass(cell, Cell):
        raise TypeError(f"cell={cell.__name__} is a class; expected one of its objects: cell={cell.__name__}()")
    if not isinstance(cell, Cell):
        check_option("cell", cell, CELLS)
        return CELLS[cell]
    if cell.name in CELLS and type(cell) is not type(CELLS[cell.name]):  # files and PyTorch go by the name
        raise ValueError(
            f"cell is a {type(cell).__name__} with the name {cell.name!r}, which is the library's; give it a name of "
            "its own"
        )
    if cell.in_place and (cell.gates, cell.keeps) != (1, 0):
        raise ValueError(
            f"{cell!r} works in place with gates={cell.gates} and keeps={cell.keeps}; expected 1 and 0: rows of the "
            "states have room for nothing else"
        )
    own, H = cell.own_parameters(2), 2
    if not isinstance(own, Mapping):
        raise TypeError(
            f"own_parameters({H}) of {cell!r} is a {type(own).__name__}; expected a dictionary of names and shapes"
        )
    if taken := sorted({"W_xh", "W_hh", "b_h"} & set(own)):
        raise ValueError(f"{cell!r} has own parameters {taken}, which every cell has; expected other names")
    wrong = {
        name: shape for name, shape in own.items() if not isinstance(shape, (tuple, list)) or len(shape) not in (1, 2)
    }
    if wrong:
        raise ValueError(f"{cell!r} has own parameters of shapes {wrong}; expected vectors (M,) or matrices (M, K)")
    for name in cell.of_state:
        shape = own.get(name, ())
        if len(shape) != 2 or shape[0] % H or shape[1] != cell.widths(H)[0]:
            raise ValueError(
                f"{cell!r} has of_state={tuple(cell.of_state)}, but own_parameters({H}) says {own}; expected matrices "
                "(M, H) with a multiple of H for M"
            )
    if not 1 <= cell.gates_of_state <= cell.gates:
        raise ValueError(
            f"{cell!r} has recurrent_gates={cell.recurrent_gates} of gates={cell.gates}; expected 1 to {cell.gates}, "
            "or None for all"
        )
    return cell


def check_proj_size(proj_size: Any, hidden_size: int, cell: Cell) -> int | None:
    """P, of an LSTM whose state is a projection of its H units; None where it is not."""
    if cell.state_size is not None and cell.state_size > hidden_size:
        raise ValueError(
            f"{cell!r} has state_size={cell.state_size}, but hidden_size={hidden_size}; expected at most that"
        )
    if proj_size is None:
        return None
    P = check_count("proj_size", proj_size)
    if cell.name != "lstm":
        raise ValueError(
            f"proj_size={said(P)}, but cell={cell.name!r}: only cell='lstm' has a projection; give that, or "
            "proj_size=None"
        )
    if hidden_size <= P:
        raise ValueError(
            f"proj_size={said(P)}, but hidden_size={said(hidden_size)}; expected less than that, or proj_size=None for "
            "a state of all units"
        )
    return P
