"""All that is to be seen of a gradient on one batch, in one call: :func:`diagnose`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..bptt.state import State
from ..checks import check_count
from ..losses import AnyLoss
from ..rnn.rnn import RNN
from ..serialization import open_file, write_file
from .arguments import check_rnn
from .flow import GradientFlow, gradient_flow
from .lyapunov import check_exponents, exponents_of
from .saturated import check_activations, check_below, saturation_of
from .singular import of_product
from .trajectory import HostArray, Trajectory, trajectories

#: What a file of :meth:`Diagnosis.save` says that it is.
_KIND = "diagnosis"

#: The most multiply-adds that :func:`diagnose` spends on the singular values of a layer.
_MULTIPLY_ADDS = 10**9

#: How much a gradient grows or shrinks over the longest sequence before that is said of it, in powers of ten.
_NOTABLE = 2


@dataclass(frozen=True)
class Diagnosis:
    """All that :func:`diagnose` finds; NumPy arrays on the host.

    Attributes
    ----------
    flow : GradientFlow
    saturation : dict of str to (L, D, T, [E])
        See :func:`saturation`.
    exponents : (L, D, [E,] N, count)
        See :func:`lyapunov_exponents`.
    singular_values : (L, D, [E,] N, Z), or None
        Of ``d state_T / d state_0``, see :func:`singular_values`; None where they would have been too much work.
    """

    flow: GradientFlow
    saturation: dict[str, HostArray]
    exponents: HostArray
    singular_values: HostArray | None = None

    def arrays(self) -> dict[str, HostArray]:
        """Everything in one dictionary, ``"flow.total"``, ``"saturation.h"``, ``"exponents"``, …, as for a file."""
        flow = {f"flow.{field.name}": getattr(self.flow, field.name) for field in fields(self.flow)}
        saturated = {f"saturation.{name}": value for name, value in self.saturation.items()}
        named = flow | saturated | {"exponents": self.exponents, "singular_values": self.singular_values}
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, HostArray]) -> Diagnosis:
        """What :meth:`arrays` came from, saturation in the order of its names.

        Raises
        ------
        ValueError, TypeError
            If an array is missing, has no place here, or not the axes that it has to have beside the others.
        """
        allowed = {f"flow.{field.name}" for field in fields(GradientFlow)} | {"exponents", "singular_values"}
        if not isinstance(arrays, Mapping):
            raise TypeError(f"arrays is a {type(arrays).__name__}; expected a dictionary, from Diagnosis.arrays")
        needed = {"flow.loss", "flow.lengths", "flow.total", "exponents"}
        needed |= {"flow.at"} if "flow.per_loss" in arrays else set()
        missing = sorted(needed - set(arrays))
        unknown = sorted(str(name) for name in arrays if name not in allowed and not _is_saturation(name))
        if missing or unknown:
            raise ValueError(f"arrays is no diagnosis: missing {missing}, unknown {unknown}")
        _check_axes(arrays)

        def below(prefix: str) -> dict[str, HostArray]:
            return {name.removeprefix(prefix): arrays[name] for name in sorted(arrays) if name.startswith(prefix)}

        flow = GradientFlow(**below("flow."))
        return cls(flow, below("saturation."), arrays["exponents"], arrays.get("singular_values"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it to a safetensors file, atomically."""
        write_file(path, _KIND, self.arrays(), {"saturation": list(self.saturation)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Diagnosis:
        """What :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file; if it is damaged, or no diagnosis.
        """
        with open_file(path) as file:
            order = file.about(_KIND).get("saturation")
            found = cls.from_arrays(file.arrays())
        known = {name: n for n, name in enumerate(order) if isinstance(name, str)} if isinstance(order, list) else {}
        names = sorted(found.saturation, key=lambda name: known.get(name, len(known)))
        return replace(found, saturation={name: found.saturation[name] for name in names})

    def __str__(self) -> str:
        """A line for every layer and direction, and one where singular values were left out.

        The growth of a gradient is the largest exponent, its median over the sequences for which it is finite; those
        that pass nothing on (``-inf``) and that are no numbers are counted. Of several members it is the smallest and
        the largest. A gradient vanishes or explodes if that is a factor of 100 or more over the longest sequence.
        """
        lines = [f"layer {k}, direction {d}: {self._line(k, d)}" for k, d in np.ndindex(*self.exponents.shape[:2])]
        left_out = ["singular values: left out, see diagnose"] if self.singular_values is None else []
        return "\n".join(lines + left_out)

    def _line(self, k: int, d: int) -> str:
        steps = int(np.max(self.flow.lengths))
        if steps == 0:
            return "no steps"
        rates = self.exponents[k, d, ..., 0][..., self.flow.lengths > 0]  # ([E,] N)
        parts = {name: part[k, d][~np.isnan(part[k, d])] for name, part in self.saturation.items()}
        said = [f"{name} {np.mean(part):.0%}" for name, part in parts.items() if part.size]
        saturated = ["saturated: " + ", ".join(said)] if said else []
        return "; ".join([_growth(rates, steps), *_without_one(rates), *saturated])


def _growth(rates: HostArray, steps: int) -> str:
    """What happens to a gradient, of exponents ``([E,] N)``."""
    of_members = [_verdict(of_member, steps) for of_member in rates.reshape(-1, rates.shape[-1])]
    verdicts = Counter(verdict for verdict, _ in of_members)
    of_all = ", ".join(verdicts)
    if rates.ndim == 2:
        of_all = ", ".join(f"{verdict} in {n}" for verdict, n in verdicts.items()) + f" of {len(rates)} members"
    finite = sorted({rate for _, rate in of_members if rate is not None})
    if not finite:
        return f"a gradient {of_all}"
    ends = sorted({finite[0], finite[-1]})
    powers = " to ".join(f"10^{rate * steps / np.log(10):+.1f}" for rate in ends)
    return (
        f"a gradient {of_all}: exp({' to '.join(f'{rate:+.3f}' for rate in ends)}) a step, {powers} over {steps} steps"
    )


def _verdict(rates: HostArray, steps: int) -> tuple[str, float | None]:
    """Of one network, and the exponent if there is one."""
    finite = rates[np.isfinite(rates)]
    if not finite.size:
        return "is lost" if np.isneginf(rates).any() else "is no number", None
    rate = float(np.median(finite))
    power = rate * steps / np.log(10)
    return "explodes" if power > _NOTABLE else "vanishes" if power < -_NOTABLE else "keeps its size", rate


def _without_one(rates: HostArray) -> list[str]:
    """The sequences that are left out of the median, where there are any."""
    lost = int(np.isneginf(rates).sum())
    broken = rates.size - lost - int(np.isfinite(rates).sum())
    of_all = f"of {rates.size} sequences"
    counted = ((lost, "passes nothing on", "pass nothing on"), (broken, "is no number", "are no numbers"))
    return [f"{n} {of_all} {one if n == 1 else several}" for n, one, several in counted if n]


def _is_saturation(name: Any) -> bool:
    return isinstance(name, str) and name.startswith("saturation.")


def _check_axes(arrays: Mapping[str, HostArray]) -> None:
    """As many axes as the attributes of :class:`Diagnosis` have, of the sizes that they share."""
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise TypeError(f"arrays[{name!r}] is a {type(array).__name__}; expected a NumPy array of numbers")
    total = arrays["flow.total"]
    if total.ndim not in (4, 5) or 0 in total.shape:
        raise ValueError(f"arrays['flow.total'] has shape {total.shape}; expected (L, D, T, [E,] N), none of them 0")
    (L, D, T, *members), N = total.shape[:-1], total.shape[-1]
    A = arrays["flow.at"].size if "flow.at" in arrays else 0
    expected: dict[str, tuple[tuple[int | None, ...], str]] = {
        "flow.loss": ((*members,), "() or (E,)"),
        "flow.lengths": ((N,), "(N,)"),
        "flow.total_c": (total.shape, "(L, D, T, [E,] N)"),
        "flow.at": ((A,), "(A,)"),
        "flow.per_loss": ((A, *total.shape), "(A, L, D, T, [E,] N)"),
        "flow.per_loss_c": ((A, *total.shape), "(A, L, D, T, [E,] N)"),
        "exponents": ((L, D, *members, N, None), "(L, D, [E,] N, count)"),
        "singular_values": ((L, D, *members, N, None), "(L, D, [E,] N, Z)"),
    }
    for name, array in arrays.items():
        shape, axes = expected.get(name, ((L, D, T, *members), "(L, D, T, [E])"))
        open_ended = shape[-1:] == (None,)
        fits = array.shape[:-1] == shape[:-1] and 0 not in array.shape[-1:] if open_ended else array.shape == shape
        if name != "flow.total" and not fits:
            raise ValueError(
                f"arrays[{name!r}] has shape {array.shape}; expected {axes}, beside flow.total with {total.shape}"
            )


def diagnose(
    rnn: RNN,
    x: Any,
    target: Any,
    loss: AnyLoss = "mse",
    *,
    state: State | None = None,
    lengths: Any = None,
    weights: Any = None,
    at: Iterable[int] | None = None,
    below: float = 0.05,
    count: int = 1,
) -> Diagnosis:
    """Everything about the gradient of a network on a batch; ``print`` it, or draw it with :mod:`bptt_array.plots`.

    Parameters
    ----------
    rnn, x, target, loss, state, lengths, weights, at
        As for :func:`gradient_flow`.
    below : float
        As for :func:`saturation`.
    count : int
        How many Lyapunov exponents, see :func:`lyapunov_exponents`.

    Returns
    -------
    Diagnosis

    Raises
    ------
    ValueError, TypeError
        Naming the argument, before any work.

    Notes
    -----
    The time is that of A training steps for the single losses (``at``), of a backward pass of ``count`` times as many
    sequences for the exponents, and of one of Z times as many for the singular values. The latter are left out where
    they would take more than 1e9 multiply-adds a layer, T D E N Z G H^2: ask :func:`singular_values` for fewer steps,
    or of fewer sequences.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> from bptt_array.diagnostics import Diagnosis, diagnose
    >>> rnn = ba.RNN(2, 8, 1, init="orthogonal", seed=0)
    >>> rnn.params["l0.W_hh"] *= 0.5
    >>> x, target = np.ones((30, 4, 2), "float32"), np.zeros((30, 4, 1), "float32")
    >>> found = diagnose(rnn, x, target)
    >>> print(found)
    layer 0, direction 0: a gradient vanishes: exp(-0.788) a step, 10^-10.3 over 30 steps; saturated: h 0%
    >>> Diagnosis.from_arrays(found.arrays()).flow.total.shape
    (1, 1, 30, 4)
    """
    check_rnn(rnn)
    below, count = check_below(below), check_count("count", count)
    check_exponents(count, rnn.hidden_size * len(rnn.architecture.cell.states))
    check_activations(rnn)
    flow = gradient_flow(rnn, x, target, loss, state=state, lengths=lengths, weights=weights, at=at)
    with rnn.backend.active():
        batch = rnn.calls.batch(x, state, lengths, None, False, host=True)
        ran = trajectories(rnn.calls.network(rnn.params), batch)
        exponents = _by_layer([exponents_of(one, count) for one in ran], rnn.bidirectional, axis=-3)
        values = None
        if all(_multiply_adds(one) <= _MULTIPLY_ADDS for one in ran):
            of_layers = [of_product(one, 0, one.steps) for one in ran]
            values = _by_layer(of_layers, rnn.bidirectional, axis=-3)
        saturated = saturation_of(ran, below, bidirectional=rnn.bidirectional, reverse=rnn.reverse)
    return Diagnosis(flow, saturated, exponents, values)


def _by_layer(of_layers: list[HostArray], bidirectional: bool, axis: int) -> HostArray:
    """``([E,] [2,] N, F)`` of every layer, as ``(L, D, [E,] N, F)``."""
    stacked = np.stack(of_layers)
    return np.moveaxis(stacked, axis, 1) if bidirectional else stacked[:, None]


def _multiply_adds(ran: Trajectory) -> int:
    """Of the products with ``W_hh`` that all Z gradients take over all steps."""
    return int(ran.steps * np.prod(ran.rows) * ran.size * ran.layer.cell.gates * ran.layer.hidden_size**2)
