"""What may be set on a network, and the way out for what may not."""

from __future__ import annotations

from typing import Any

from ..checks import only_settings
from .calls import Calls

#: Options that no parameter depends on.
_OPTIONS = ("dropout", "recurrent_dropout", "output", "readout", "reverse", "time_major", "seed")
_AS_BUILT = (
    *("input_size", "hidden_size", "output_size", "num_layers", "bidirectional", "members"),
    *("embedding_size", "tied", "bias"),
    *("init", "forget_bias"),
)
_BUILD = "build another network, ba.RNN(**rnn.config | {%r: …}, device=rnn.backend)"
_SAME_SHAPES = f"{_BUILD}.load_params(rnn.params)"


def option(name: str) -> property:
    """An option that no parameter depends on: it may be set, and calls from then on go by it."""

    def of(rnn: Any) -> Any:
        return getattr(rnn.architecture, name)

    def change(rnn: Any, value: Any) -> None:
        before = rnn.calls
        vars(rnn)["calls"] = Calls(before.architecture.changed(**{name: value}), before.backend, before.workspace)

    return property(of, change)


def _dictionary(name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise TypeError(f"{name} is a {kind}; expected a dictionary of arrays, such as another network's rnn.params")
    return value


#: The decorator of a network.
settable = only_settings(
    {"params": _dictionary, **dict.fromkeys(_OPTIONS)},
    f"expected params or one of the options {', '.join(_OPTIONS)}",
    {name: f"the parameters were made for it; {_BUILD % name}" for name in _AS_BUILT}
    | {name: f"the parameters were made for it; {_SAME_SHAPES % name}" for name in ("cell", "dtype")}
    | dict.fromkeys(("backend", "device"), "move the network, rnn.to(device)")
    | dict.fromkeys(
        ("architecture", "config", "calls"), "it follows from the options; set them, or build another network"
    ),
)
