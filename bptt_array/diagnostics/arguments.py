"""What a diagnosis is asked for, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ..bptt.batch import Batch
from ..bptt.passes import BoundNetwork
from ..bptt.state import State
from ..checks import check_count, is_several, is_whole, said
from ..rnn.rnn import RNN


def check_rnn(rnn: Any) -> None:
    if not isinstance(rnn, RNN):
        raise TypeError(f"rnn is a {type(rnn).__name__}; expected a bptt_array.RNN")


def check_layer(layer: Any, num_layers: int) -> int:
    """The number of a layer, from the top if negative."""
    least = -num_layers
    if is_whole(layer) and not least <= layer < num_layers:
        raise ValueError(
            f"layer={said(layer)}; expected {least} to {num_layers - 1}: this RNN has num_layers={num_layers}"
        )
    return check_count("layer", layer, least=least) % num_layers


def checked(rnn: RNN, x: Any, layer: Any, state: State | None, lengths: Any) -> tuple[BoundNetwork, Batch, int]:
    """What a diagnosis of one layer works on."""
    layer = check_layer(layer, rnn.num_layers)
    return rnn.calls.network(rnn.params), rnn.calls.batch(x, state, lengths, None, False, host=True), layer


def check_steps(t: Any, k: Any, T: int) -> tuple[int, int]:
    t, k = check_count("t", t, least=0), check_count("k", k, least=0)
    if k > T:
        raise ValueError(f"k={k}; expected at most T={T}: states are numbered from h_0, the initial one, to h_T")
    if t > k:
        raise ValueError(f"t={t}, k={k}: expected t <= k, an earlier state and a later one")
    return t, k


def evenly(first: int, last: int, count: int) -> list[int]:
    """All of ``first`` to ``last`` or, where these are more, ``count`` of them, evenly spaced, both ends included."""
    if last - first < count:
        return list(range(first, last + 1))
    return [int(step) for step in np.linspace(first, last, count).round()]


def check_increasing(name: str, steps: Any, most: float) -> list[int]:
    """Whole numbers from 0 to ``most``, each greater than the one before."""
    steps = check_numbers(name, steps)
    chosen = [check_count(f"{name}[{n}]", step, least=0) for n, step in enumerate(steps)]
    for n, step in enumerate(chosen):
        if step > most:
            raise ValueError(f"{name}[{n}]={step}; expected 0 to {most}")
    wrong = [n for n, (before, after) in enumerate(pairwise(chosen)) if before >= after]
    if wrong:
        n = wrong[0]
        raise ValueError(f"{name}[{n}]={chosen[n]} and {name}[{n + 1}]={chosen[n + 1]}; expected increasing numbers")
    return chosen


def check_numbers(name: str, steps: Any) -> list[Any]:
    """What may be whole numbers one after the other."""
    text = isinstance(steps, (str, bytes, bytearray, Mapping))
    if text or not is_several(steps):
        raise TypeError(
            f"{name}={said(steps)} is a {type(steps).__name__}; expected whole numbers, such as range(0, 10, 2)"
        )
    return list(steps)
