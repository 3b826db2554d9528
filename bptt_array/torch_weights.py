"""Weights under the names and in the shapes of PyTorch's recurrent modules, as NumPy arrays; torch is not imported.

Shapes and the order of gates are the same on both sides. Two things differ: PyTorch has two biases where only their
sum matters (``b_h = bias_ih + bias_hh``; the GRU's third gate has two that count: ``b_h`` and ``b_hn``), and a module
for each direction where the arrays here have an axis of 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .architecture import Architecture
from .checks import DTYPES, check_option

HostArray = np.ndarray[Any, Any]

#: Cells that PyTorch has, by their gates; of the first the name of f.
CELLS_BY_GATES = {1: ("tanh", "relu"), 4: ("lstm",), 3: ("gru",)}
OPTIONS = ("output", "readout_mode", "dropout", "recurrent_dropout", "time_major", "seed")

_NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh)_l(\d+)(_reverse)?")


def to_state_dict(
    architecture: Architecture, params: Mapping[str, HostArray], recurrent: str, readout: str
) -> dict[str, HostArray]:
    """See :meth:`bptt_array.RNN.to_torch_state_dict`; ``params`` on the host."""
    known = [name for names in CELLS_BY_GATES.values() for name in names]
    if architecture.cell.name not in known:
        raise ValueError(f"cell={architecture.cell.name!r} has no module in PyTorch; expected one of {', '.join(known)}")
    if architecture.members is not None:
        raise ValueError(
            f"this RNN has members={architecture.members}, which PyTorch's modules have not: use "
            "rnn.member(k).to_torch_state_dict()"
        )
    state: dict[str, HostArray] = {}
    for k in range(architecture.num_layers):
        own = architecture.of_layer(k, params)
        for side, suffix in enumerate(("", "_reverse")[: architecture.directions]):
            of = {name: value[side] if architecture.bidirectional else value for name, value in own.items()}
            bias_hh = np.zeros_like(of["b_h"])
            if "b_hn" in of:
                bias_hh[-architecture.hidden_size :] = of["b_hn"]
            parts = {"weight_ih": of["W_xh"], "weight_hh": of["W_hh"], "bias_ih": of["b_h"], "bias_hh": bias_hh}
            state |= {f"{recurrent}{part}_l{k}{suffix}": value.copy() for part, value in parts.items()}
    if architecture.output_size is not None:
        state |= {f"{readout}weight": params["W_hy"].copy(), f"{readout}bias": params["b_y"].copy()}
    return state


def from_state_dict(
    state_dict: Mapping[str, Any], recurrent: str, readout: str, cell: str | None, options: Mapping[str, Any]
) -> tuple[Architecture, dict[str, HostArray]]:
    """See :meth:`bptt_array.RNN.from_torch_state_dict`; returns what to build, and its parameters on the host."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict is a {type(state_dict).__name__}; expected a mapping: use module.state_dict()")
    if unknown := set(options) - set(OPTIONS):
        raise TypeError(f"{sorted(unknown)[0]}=… is no option here; expected {', '.join(OPTIONS)}")
    layers, linear = _sorted_out({name: _array(name, value) for name, value in state_dict.items()}, recurrent, readout)
    sides = {reverse for _, reverse in layers}
    num_layers = 1 + max(k for k, _ in layers)
    for k in range(num_layers):
        for reverse in sides:
            if not {"weight_ih", "weight_hh"} <= set(layers.get((k, reverse), {})):
                raise ValueError(f"state_dict has no {recurrent}weight_*_l{k}{'_reverse' * reverse}; its layers are not all there")
    first = layers[0, False]
    rows, H = first["weight_hh"].shape
    names = CELLS_BY_GATES.get(rows // H if H and rows % H == 0 else 0)
    if names is None:
        raise ValueError(
            f"state_dict[{recurrent + 'weight_hh_l0'!r}] has shape {(rows, H)}; expected (G*H, H) with G = 1, 3 or 4"
        )
    if cell is not None:
        check_option("cell", cell, names)
    architecture = Architecture.checked(
        input_size=int(first["weight_ih"].shape[1]),
        hidden_size=int(H),
        output_size=int(linear["weight"].shape[0]) if linear else None,
        cell=cell or names[0],
        num_layers=num_layers,
        bidirectional=len(sides) == 2,
        dtype=first["weight_hh"].dtype.name,
        **{"readout" if name == "readout_mode" else name: value for name, value in options.items()},
    )
    params = {}
    for k in range(num_layers):
        both = [_of_layer(layers[k, reverse], rows, H, architecture.cell.name) for reverse in sorted(sides)]
        for name, value in both[0].items():
            params[f"l{k}.{name}"] = np.stack([side[name] for side in both]) if len(both) == 2 else value
    if linear:
        params |= {"W_hy": linear["weight"], "b_y": linear.get("bias", np.zeros_like(linear["weight"][:, 0]))}
    for name, shape in architecture.shapes.items():
        if params[name].shape != shape:
            raise ValueError(f"state_dict gives {name} the shape {params[name].shape}; expected {shape}")
    return architecture, params


def _array(name: str, value: Any) -> HostArray:
    if getattr(value, "requires_grad", False):
        value = value.detach()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"state_dict[{name!r}] cannot be read as a NumPy array: {error}; move it to the CPU") from None
    if array.dtype.name not in DTYPES:
        raise TypeError(f"state_dict[{name!r}] has dtype {array.dtype}; expected float32 or float64")
    return array


def _sorted_out(
    arrays: Mapping[str, HostArray], recurrent: str, readout: str
) -> tuple[dict[tuple[int, bool], dict[str, HostArray]], dict[str, HostArray]]:
    """By (layer, whether reverse) and part; and the parts of the Linear."""
    layers: dict[tuple[int, bool], dict[str, HostArray]] = {}
    linear: dict[str, HostArray] = {}
    for name, array in arrays.items():
        found = _NAME.fullmatch(name.removeprefix(recurrent)) if name.startswith(recurrent) else None
        if found:
            part, k, reverse = found.groups()
            layers.setdefault((int(k), reverse is not None), {})[part] = array
        elif name.startswith(readout) and name.removeprefix(readout) in ("weight", "bias"):
            linear[name.removeprefix(readout)] = array
        else:
            raise ValueError(
                f"state_dict has {name!r}, which is none of {recurrent}weight_ih_l0 and the like, {readout}weight and "
                f"{readout}bias; say with recurrent=… and readout=… what your module's names begin with"
            )
    if (0, False) not in layers:
        raise ValueError(f"state_dict has no {recurrent}weight_ih_l0; expected the weights of a torch.nn.RNN, LSTM or GRU")
    if linear and "weight" not in linear:
        raise ValueError(f"state_dict has {readout}bias but no {readout}weight")
    return layers, linear


def _of_layer(parts: Mapping[str, HostArray], rows: int, H: int, cell: str) -> dict[str, HostArray]:
    """The parameters of one layer in one direction."""
    none = np.zeros(rows, parts["weight_hh"].dtype)  # modules made with bias=False
    bias_ih, bias_hh = parts.get("bias_ih", none), parts.get("bias_hh", none)
    if bias_ih.shape != (rows,) or bias_hh.shape != (rows,):
        raise ValueError(f"state_dict has biases of shapes {bias_ih.shape} and {bias_hh.shape}; expected {(rows,)}")
    own = {"W_xh": parts["weight_ih"], "W_hh": parts["weight_hh"], "b_h": bias_ih + bias_hh}
    if cell == "gru":
        own["b_h"][-H:] = bias_ih[-H:]
        own["b_hn"] = bias_hh[-H:].copy()
    return own
