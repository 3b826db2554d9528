"""Weights that a run begins with, of a network that has learnt another text: which character has which of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..rnn.architecture import Architecture
from ..rnn.rnn import RNN
from .options import Options
from .text import Vocabulary

HostArray = np.ndarray[Any, Any]

#: Options that a trained network decides.
OF_THE_NETWORK = ("cell", "hidden", "layers", "members", "dtype")
#: Options of initial weights, which it has already.
OF_INITIAL_WEIGHTS = ("init", "forget_bias")
#: Where a parameter has one row or column for every character, counted from its end.
_CHARACTERS = {"l0.W_xh": -1, "W_hy": -2, "b_y": -1}


@dataclass(frozen=True)
class Beginning:
    """A trained network on the host, from whose weights a run learns a text.

    Attributes
    ----------
    path : str
        Where it came from.
    characters : str
        That it knows, sorted.
    options : dict
        Those of :data:`OF_THE_NETWORK`.
    params : dict of str to array
    """

    path: str
    characters: str
    options: dict[str, Any]
    params: dict[str, HostArray]

    @classmethod
    def of(cls, path: str, rnn: RNN, vocabulary: Vocabulary) -> Beginning:
        """From a character model.

        Raises
        ------
        ValueError
            If it is no network that a run could have made.
        """
        made = rnn.architecture
        options: dict[str, Any] = {
            "cell": made.cell.name,
            "hidden": made.hidden_size,
            "layers": made.num_layers,
            "members": made.members,
            "dtype": made.dtype,
        }
        # Dropout and the seed are not of the weights.
        same = replace(made, dropout=0.0, recurrent_dropout=0.0, seed=0)
        if Architecture.checked(**Options(**options).network(len(vocabulary))) != same:
            raise ValueError(f"init_from={path} is {rnn!r}, which train could not have made; expected a model of train")
        params = {name: rnn.backend.to_host(value) for name, value in rnn.params.items()}
        return cls(path, vocabulary.characters, options, params)

    def chosen(self, given: Mapping[str, Any]) -> Options:
        """The options of a run, of what was given for it and what the network decides.

        Raises
        ------
        ValueError
            If what the network decides was given.
        """
        for name in (*OF_THE_NETWORK, *OF_INITIAL_WEIGHTS):
            if name in given:
                raise ValueError(f"{name}={given[name]} is what the model of init_from decides; leave it out")
        return Options(**self.options | dict(given))

    def parameters(self, drawn: Mapping[str, HostArray], vocabulary: Vocabulary) -> dict[str, HostArray]:
        """Those of a network over ``vocabulary``, which has all characters of this one.

        A character that this network knows keeps its weights; one that it does not has those that were ``drawn``.
        """
        at = vocabulary.encode(self.characters)
        params = {}
        for name, value in self.params.items():
            if name in _CHARACTERS:
                params[name] = drawn[name].copy()
                np.moveaxis(params[name], _CHARACTERS[name], 0)[at] = np.moveaxis(value, _CHARACTERS[name], 0)
            else:
                params[name] = value
        return params

    @property
    def origin(self) -> dict[str, str]:
        """What checkpoints of the run say of it."""
        return {"path": self.path, "characters": self.characters}
