"""What a run of ``fit`` is a run of, in words: a folder of another one is refused.

The words are the same in every process, and differ where settings do, as far as that can be told of what a user wrote.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
import sys
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from ..checks import said
from ..optimizers.state import Optimizer
from ..rnn.rnn import RNN
from ..training.feed import Feed

#: Characters of a setting that are kept as they are.
_LONGEST = 500


def identity(
    rnn: RNN, optimizer: Optimizer, loss: Any, schedule: Any, data: Feed, validation: Feed | None
) -> dict[str, str]:
    """Of a run, what its results depend on, in words that are the same in every process."""
    settings = {name: name_of(value) for name, value in vars(optimizer).items() if not name.startswith("_")}
    return {
        "rnn": json.dumps(rnn.config),
        "optimizer": f"{type(optimizer).__name__} {json.dumps(settings, sort_keys=True)}",
        "loss": name_of(loss),
        "schedule": name_of(schedule),
        "data": f"sha256 {data.digest()}",
        "validation": "none" if validation is None else f"sha256 {validation.digest()}",
    }


def name_of(thing: Any) -> str:
    """What is the same for the same thing in every process, as far as that can be told, and short."""
    try:
        words = _words(thing)
    except RecursionError:  # it holds itself
        words = type(thing).__qualname__
    if len(words) <= _LONGEST:
        return words
    return f"{words[:100]}… sha256 {hashlib.sha256(words.encode(errors='surrogatepass')).hexdigest()}"


def _words(thing: Any) -> str:
    """A thing with what it was made of: no address in memory, and all that a repr may leave out.

    What a function has from around it, and what an object without a repr of its own holds, does not show.
    """
    kind = type(thing).__qualname__
    if hasattr(thing, "__qualname__"):
        of = getattr(thing, "__self__", None)  # of a method
        whose = "" if of is None or inspect.ismodule(of) else f" of {_words(of)}"
        return f"{thing.__qualname__}{whose}"
    if isinstance(thing, functools.partial):
        return f"partial({_words(thing.func)}, {_words(thing.args)}, {_words(thing.keywords)})"
    if isinstance(thing, np.generic):
        return _words(thing.item())
    if isinstance(thing, np.ndarray):
        return f"array {thing.shape} of sha256 {hashlib.sha256(repr(thing.tolist()).encode()).hexdigest()}"
    if isinstance(thing, (list, tuple)):
        return f"({', '.join(map(_words, thing))})"
    if isinstance(thing, (set, frozenset)):
        return f"({', '.join(sorted(map(_words, thing)))})"
    if isinstance(thing, dict):
        return f"({', '.join(sorted(f'{name}={_words(value)}' for name, value in thing.items()))})"
    if is_dataclass(thing):
        return kind + _words({field.name: getattr(thing, field.name) for field in fields(thing) if field.init})
    shown = "__repr__" in {name for each in type(thing).__mro__[:-1] for name in vars(each)}
    return re.sub(r" at 0x[0-9a-fA-F]+", "", said(thing, sys.maxsize)) if shown else kind
