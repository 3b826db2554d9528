"""Weights under the names and in the shapes of PyTorch's recurrent modules, as NumPy arrays; torch is not imported.

Shapes and the order of gates are the same on both sides. Two things differ: PyTorch has two biases where only their
sum matters (``b_h = bias_ih + bias_hh``; the GRU's third gate has two that count: ``b_h`` and ``b_hn``), and a module
for each direction where the arrays here have an axis of 2.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..backend.portable import DTYPES
from ..checks import check_flag, check_option, said
from .architecture import Architecture

HostArray = np.ndarray[Any, Any]

#: Cells that PyTorch has, by their gates; of the first the name of f.
CELLS_BY_GATES = {1: ("tanh", "relu"), 4: ("lstm",), 3: ("gru",)}

#: What the weight of the Embedding is called here, which has the same name as that of the Linear.
_EMBEDDING = "embedding.weight"
_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_NAME = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l(0|[1-9][0-9]{0,17})(_reverse)?")
#: Of a torch.nn.RNNCell, GRUCell or LSTMCell, which has one layer and no number for it.
_OF_A_CELL = re.compile(r"(?P<where>(.*\.)?)(weight|bias)_(ih|hh)")
#: Of weights that a module computes from others: by a parametrization, or by what came before those.
_COMPUTED = re.compile(
    r"(?P<where>(.*\.)?)(parametrizations\.(?P<new>[^.]+)\..+|(?P<old>(weight|bias)(_(ih|hh)_l\d+(_reverse)?)?)_(g|v|u|orig|mask))"
)


class Prefixes(NamedTuple):
    """What the names begin with, of the recurrent module, the ``Linear`` and the ``Embedding``."""

    recurrent: str
    readout: str
    embedding: str

    def check(self) -> None:
        for name, prefix in zip(self._fields, self, strict=True):
            if not isinstance(prefix, str):
                raise TypeError(
                    f"{name}_prefix={said(prefix)} is a {type(prefix).__name__}; expected a string such as 'rnn.'"
                )
            if prefix and not prefix.endswith("."):
                raise ValueError(
                    f"{name}_prefix={said(prefix)} has no dot at its end; expected {said(prefix + '.')}, or '' for no "
                    "name"
                )


def to_state_dict(
    architecture: Architecture, params: Mapping[str, HostArray], prefixes: Prefixes
) -> dict[str, HostArray]:
    """See :meth:`bptt_array.RNN.to_torch_state_dict`; ``params``, on the host, is used up."""
    prefixes.check()
    known = [name for names in CELLS_BY_GATES.values() for name in names]
    if architecture.cell.name not in known:
        raise ValueError(
            f"cell={architecture.cell.name!r} has no module in PyTorch; expected one of {', '.join(map(repr, known))}"
        )
    if architecture.reverse:
        raise ValueError(
            "this RNN has reverse=True, which PyTorch's modules have not: set rnn.reverse = False for the weights of "
            "one that is given x.flip(0)"
        )
    if architecture.members is not None:
        raise ValueError(
            f"this RNN has members={architecture.members}, which PyTorch's modules have not: use "
            "rnn.member(k).to_torch_state_dict()"
        )
    both = architecture.output_size is not None and architecture.embedding_size is not None
    if both and prefixes.readout == prefixes.embedding:
        raise ValueError(
            f"readout_prefix and embedding_prefix are both {said(prefixes.readout)}, so that two would have one "
            "name; expected different ones: give embedding_prefix='embedding.'"
        )
    state: dict[str, HostArray] = {}
    for k in range(architecture.num_layers):
        own = architecture.of_layer(k, params)
        for side in range(architecture.directions):
            of = {name: value[side] if architecture.bidirectional else value for name, value in own.items()}
            values = [of["W_xh"], of["W_hh"]]
            if architecture.bias:
                bias_hh = np.zeros_like(of["b_h"])
                if "b_hn" in of:
                    bias_hh[-architecture.hidden_size :] = of["b_hn"]
                values += [of["b_h"], bias_hh]
            for part, value in zip(_PARTS, values, strict=False):
                state[prefixes.recurrent + _name(part, k, side)] = value
            if "W_hr" in of:
                state[prefixes.recurrent + _name("weight_hr", k, side)] = of["W_hr"]
    if architecture.output_size is not None:
        W_hy = params["W_emb" if architecture.tied else "W_hy"]
        state |= {f"{prefixes.readout}weight": W_hy, f"{prefixes.readout}bias": params["b_y"]}
    if architecture.embedding_size is not None:
        state[f"{prefixes.embedding}weight"] = params["W_emb"]
    return state


def from_state_dict(
    state_dict: Mapping[str, Any], prefixes: Prefixes, cell: str | None, tied: Any, options: dict[str, Any]
) -> tuple[Architecture, dict[str, HostArray]]:
    """See :meth:`bptt_array.RNN.from_torch_state_dict`; returns what to build, and its parameters on the host."""
    prefixes.check()
    check_flag("tied", tied)
    arrays = _arrays(state_dict)
    _check_plain_layers(arrays)
    given = _sorted_out(arrays, prefixes)
    num_layers, directions = given.check_complete()
    input_size, (proj_size, hidden_size) = given.sizes("weight_ih_l0")[1], given.sizes_of_state()
    if tied:
        given.check_tied(prefixes)
    embedding_size = None
    if _EMBEDDING in given.arrays:
        embedding_size = input_size
        input_size, _ = given.sizes(_EMBEDDING)
    architecture = Architecture.checked(
        input_size=input_size,
        hidden_size=hidden_size,
        output_size=given.sizes("weight")[0] if "weight" in given.arrays else None,
        cell=_cell(given, cell),
        num_layers=num_layers,
        bidirectional=directions == 2,
        embedding_size=embedding_size,
        tied=tied,
        bias=given.has_biases,
        dtype=given.arrays["weight_hh_l0"].dtype.name,
        proj_size=proj_size,
        **options,
    )
    params: dict[str, HostArray] = {}
    for k in range(num_layers):
        sides = [_of_layer(given, k, side, architecture) for side in range(directions)]
        for name, value in sides[0].items():
            params[f"l{k}.{name}"] = np.stack([of[name] for of in sides]) if directions == 2 else value
    shapes = architecture.shapes
    if embedding_size is not None:
        params["W_emb"] = given.take(_EMBEDDING, shapes["W_emb"])
    if architecture.output_size is not None and not tied:
        params["W_hy"] = given.take("weight", shapes["W_hy"])
    if architecture.output_size is not None:
        params["b_y"] = given.take("bias", shapes["b_y"])
    return architecture, params


@dataclass(frozen=True)
class _Given:
    """Arrays by their names in the recurrent module and in the Linear, and the names they were given by."""

    arrays: dict[str, HostArray]
    names: dict[str, str]
    recurrent_prefix: str

    @property
    def has_biases(self) -> bool:
        """Whether layers have biases: there are none in modules made with bias=False."""
        return any(name.startswith("bias_") for name in self.arrays)

    def check_complete(self) -> tuple[int, int]:
        """The numbers of layers and of directions, of which there is every part."""
        places = {(int(m[2]), m[3] is not None, m[1]) for m in map(_NAME.fullmatch, self.arrays) if m}
        layers, directions = 1 + max(k for k, _, _ in places), 1 + max(side for _, side, _ in places)
        projected = any(part == "weight_hr" for _, _, part in places)  # in modules made with proj_size
        parts = (*(_PARTS if self.has_biases else _PARTS[:2]), *(("weight_hr",) if projected else ()))
        # One by one: the first that is missing ends it, however large a number is in a name.
        for k, side, part in ((k, side, part) for k in range(layers) for side in range(directions) for part in parts):
            if (k, bool(side), part) not in places:
                missing, other = _name(part, k, side), _name(max(places)[2], *max(places)[:2])
                raise ValueError(
                    f"state_dict has {self.names[other]!r} but no {self.recurrent_prefix + missing!r}; expected "
                    "every layer and direction with all its parts"
                )
        return layers, directions

    def check_tied(self, prefixes: Prefixes) -> None:
        """Whether the Linear has the weight of the Embedding."""
        for name, prefix in (("weight", prefixes.readout), (_EMBEDDING, prefixes.embedding)):
            if name not in self.arrays:
                raise ValueError(f"tied=True, but state_dict has no {prefix + 'weight'!r}; leave tied=False")
        if not np.array_equal(self.arrays["weight"], self.arrays[_EMBEDDING], equal_nan=True):
            raise ValueError(
                f"tied=True, but state_dict[{self.names['weight']!r}] and state_dict[{self.names[_EMBEDDING]!r}] are "
                "not the same; leave tied=False"
            )

    def sizes(self, name: str) -> tuple[int, int]:
        """Of a matrix."""
        shape = self.arrays[name].shape
        if len(shape) != 2:
            raise ValueError(f"state_dict[{self.names[name]!r}] has shape {shape}; expected a matrix")
        return int(shape[0]), int(shape[1])

    def sizes_of_state(self) -> tuple[int | None, int]:
        """P, where the state is a projection, and H."""
        if "weight_hr_l0" in self.arrays:
            return self.sizes("weight_hr_l0")
        return None, self.sizes("weight_hh_l0")[1]

    def take(self, name: str, shape: tuple[int, ...]) -> HostArray:
        """The array of this name; zeros where it is a bias that the module was made without."""
        if name not in self.arrays:
            return np.zeros(shape, self.arrays["weight_hh_l0"].dtype)
        if self.arrays[name].shape != shape:
            raise ValueError(
                f"state_dict[{self.names[name]!r}] has shape {self.arrays[name].shape}; expected {shape}, from the "
                "shapes of the first layer"
            )
        return self.arrays[name]


def _name(part: str, k: int, side: int) -> str:
    return f"{part}_l{k}" + "_reverse" * side


def _of_layer(given: _Given, k: int, side: int, architecture: Architecture) -> dict[str, HostArray]:
    """The parameters of one layer in one direction."""
    shapes = architecture.of_layer(k, architecture.shapes)
    H, lead = architecture.hidden_size, len(architecture.lead)

    def taken(part: str, name: str) -> HostArray:
        return given.take(_name(part, k, side), shapes[name][lead:])

    own = {"W_xh": taken("weight_ih", "W_xh"), "W_hh": taken("weight_hh", "W_hh")}
    if "W_hr" in shapes:
        own["W_hr"] = taken("weight_hr", "W_hr")
    if not architecture.bias:
        return own
    bias_ih, bias_hh = taken("bias_ih", "b_h"), taken("bias_hh", "b_h")
    own["b_h"] = bias_ih + bias_hh
    if "b_hn" in shapes:
        own["b_h"][-H:] = bias_ih[-H:]
        own["b_hn"] = bias_hh[-H:]
    return own


def _cell(given: _Given, cell: str | None) -> str:
    """The cell by its number of gates, or the one asked for if it has as many."""
    (rows, columns), (_, H) = given.sizes("weight_hh_l0"), given.sizes_of_state()
    names = CELLS_BY_GATES.get(rows // H if H and rows % H == 0 else 0)
    of_this_shape = f"state_dict[{given.names['weight_hh_l0']!r}] has shape {(rows, columns)}"
    if names is None:
        raise ValueError(f"{of_this_shape}; expected (G*H, H) with the G of an RNN (1), a GRU (3) or an LSTM (4)")
    if cell is None:
        return names[0]
    check_option("cell", cell, [name for some in CELLS_BY_GATES.values() for name in some])
    if cell not in names:
        expected = " or ".join(map(repr, names))
        raise ValueError(f"cell={cell!r}, but {of_this_shape}, (G*H, H) with G = {rows // H}; expected {expected}")
    return cell


def _arrays(state_dict: Any) -> dict[str, HostArray]:
    """All of them as NumPy arrays, of one dtype."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict is a {type(state_dict).__name__}; expected a mapping: use module.state_dict()")
    arrays = {name: _array(name, value) for name, value in state_dict.items()}
    for name, array in arrays.items():
        first, dtype = next((name, array.dtype.name) for name, array in arrays.items())
        if array.dtype.name != dtype:
            raise TypeError(
                f"state_dict[{name!r}] has dtype {array.dtype}, but state_dict[{first!r}] has {dtype}; "
                "expected one dtype: use module.float() or module.double()"
            )
    return arrays


def _array(name: Any, value: Any) -> HostArray:
    if not isinstance(name, str):
        raise TypeError(f"state_dict has the key {said(name)}, a {type(name).__name__}; expected strings")
    way_out = "expected float32 or float64 on the CPU: use module.cpu().float() or module.cpu().double()"
    if getattr(value, "requires_grad", False):
        value = value.detach()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"state_dict[{name!r}] cannot be read as a NumPy array ({error}); {way_out}") from None
    if array.dtype.name not in DTYPES:
        raise TypeError(f"state_dict[{name!r}] has dtype {array.dtype}; {way_out}")
    return array


def _check_plain_layers(names: Collection[str]) -> None:
    """Weights of single cells, and those that a module computes from others, have names that no prefix makes right."""
    of_layers = any(_NAME.fullmatch(name.rpartition(".")[2]) for name in names)
    for name in names:
        if not of_layers and (cell := _OF_A_CELL.fullmatch(name)):
            rename = r"{re.sub('(_[ih]h)$', r'\1_l0', name): value for name, value in state_dict.items()}"
            raise ValueError(
                f"state_dict has {said(name)}, of a torch.nn.RNNCell, GRUCell or LSTMCell, and no layer; its weights "
                f"are those of a network of one layer: rename them, {rename}, with recurrent_prefix={cell['where']!r}"
            )
        if ("_ih_l" in name or "_hh_l" in name) and (way_out := _how_to_uncompute(name, names)):
            raise ValueError(way_out)


def _how_to_uncompute(name: str, names: Collection[str]) -> str:
    """Of a weight that is computed from others: the call that makes it plain; nothing of other names."""
    found = _COMPUTED.fullmatch(name)
    if found is None:
        return ""
    weight = found["new"] or found["old"]
    others = {suffix for suffix in ("_g", "_mask", "_orig") if f"{found['where']}{weight}{suffix}" in names}
    if found["new"]:
        call = "torch.nn.utils.parametrize.remove_parametrizations"
    elif "_g" in others:
        call = "torch.nn.utils.remove_weight_norm"
    elif "_mask" in others:
        call = "torch.nn.utils.prune.remove"
    elif "_orig" in others:
        call = "torch.nn.utils.remove_spectral_norm"
    else:
        return ""
    module = f"module.get_submodule({found['where'].removesuffix('.')!r})"
    return (
        f"state_dict has {said(name)}, from which the module computes {weight!r} (weight_norm and the like); make that "
        f"a plain weight of the same values first, {call}({module}, {weight!r}), then take module.state_dict()"
    )


def _sorted_out(arrays: Mapping[str, HostArray], prefixes: Prefixes) -> _Given:
    """Those of the recurrent module, of the Linear and of the Embedding."""
    recurrent_prefix, readout_prefix, embedding_prefix = prefixes
    given = _Given({}, {}, recurrent_prefix)
    for name, array in arrays.items():
        if name == f"{embedding_prefix}weight" and embedding_prefix != readout_prefix:
            given.arrays[_EMBEDDING], given.names[_EMBEDDING] = array, name
            continue
        in_recurrent = name.removeprefix(recurrent_prefix) if name.startswith(recurrent_prefix) else ""
        in_readout = name.removeprefix(readout_prefix) if name.startswith(readout_prefix) else ""
        known = in_recurrent if _NAME.fullmatch(in_recurrent) else in_readout
        if known is in_readout and known not in ("weight", "bias"):
            raise ValueError(
                _how_to_uncompute(name, arrays)
                or f"state_dict has {said(name)}, which is none of {recurrent_prefix}weight_ih_l0 and the like, "
                f"{readout_prefix}weight, {readout_prefix}bias and {embedding_prefix}weight; "
                f"{_what_prefix(arrays, recurrent_prefix)}"
            )
        given.arrays[known], given.names[known] = array, name
    if not any(map(_NAME.fullmatch, given.arrays)):
        raise ValueError(
            f"state_dict has no {recurrent_prefix + 'weight_ih_l0'!r}; expected the weights of a torch.nn.RNN, LSTM or "
            "GRU"
        )
    if "bias" in given.arrays and "weight" not in given.arrays:
        raise ValueError(f"state_dict has {given.names['bias']!r} but no {readout_prefix + 'weight'!r}")
    return given


def _what_prefix(names: Iterable[str], recurrent_prefix: str) -> str:
    """Of names that do not fit: what recurrent_prefix they speak for."""
    found = {name.removesuffix("weight_hh_l0") for name in names if name.endswith("weight_hh_l0")} - {recurrent_prefix}
    guess = repr(found.pop()) if len(found) == 1 else "…"
    return (
        f"say with recurrent_prefix={guess} and readout_prefix=…, of an Embedding with embedding_prefix=…, what the "
        "names begin with, and leave out those of other modules"
    )
