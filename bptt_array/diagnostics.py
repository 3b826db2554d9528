"""Seeing the gradient: whether it vanishes or explodes, where, and why; for any network and any batch.

:func:`gradient_flow` says what arrives at every state, :func:`jacobian` and :func:`singular_values` how two states of
a layer depend on each other, the product (3.3), :func:`lyapunov_exponents` what that comes to per step in the long
run, :func:`saturation` where units have no slope to pass a gradient on; :func:`diagnose` is all of these. The network
is left as it is. Results are NumPy arrays on the host; pictures of them are in :mod:`bptt_array.plots`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Array
from .checks import check_count, check_number
from .flow import GradientFlow, gradient_flow, in_time
from .jacobians import (
    HostArray,
    Trajectory,
    check_rnn,
    jacobian,
    jacobian_norms,
    trajectories,
)
from .losses import UserLoss
from .lyapunov import check_exponents, exponents_of, lyapunov_exponents
from .serialization import open_file, write_file
from .singular import of_product, singular_values

if TYPE_CHECKING:
    from .rnn import RNN
    from .state import State

__all__ = [
    "Diagnosis",
    "GradientFlow",
    "diagnose",
    "gradient_flow",
    "jacobian",
    "jacobian_norms",
    "lyapunov_exponents",
    "saturation",
    "singular_values",
]

#: f'(z) from ``y = f(z)``, as a part of the largest f' there is.
_SLOPES: dict[str, Callable[[Any, Array], Array]] = {
    "tanh": lambda xp, y: 1 - y * y,
    "sigmoid": lambda xp, y: 4 * y * (1 - y),
    "relu": lambda xp, y: xp.astype(y > 0, y.dtype),
}

#: What a file of :meth:`Diagnosis.save` says that it is.
_KIND = "diagnosis"

#: The most multiply-adds that :func:`diagnose` spends on the singular values of a layer.
_MULTIPLY_ADDS = 10**9

#: How much a gradient grows or shrinks over the longest sequence before that is said of it, in powers of ten.
_NOTABLE = 2


def saturation(
    rnn: RNN, x: Any, *, state: State | None = None, lengths: Any = None, below: float = 0.05
) -> dict[str, HostArray]:
    """Which part of the units is saturated, at every step: f' smaller than ``below`` times the largest f' there is.

    Such a unit passes next to nothing on of a gradient that comes through f. With y the value of f that is
    ``1 - y^2 < below`` for tanh, ``4 y (1 - y) < below`` for a sigmoid gate, ``y = 0`` for a ReLU, for ``below > 0``.

    Parameters
    ----------
    rnn, x, state, lengths
        As for calling the network; NumPy arrays may be given to a network on any device.
    below : float
        In [0, 1].

    Returns
    -------
    dict of str to (L, D, T, [E]) float64 on the host
        Fractions of the units of all sequences that have the step t of ``x``; those that are NaN are left out, and
        where there are no others so is it. By name: ``"h"`` for f of (1.1); ``"i"``, ``"f"``, ``"g"``, ``"o"``,
        ``"tanh_c"`` for an LSTM; ``"r"``, ``"u"``, ``"n"`` for a GRU; what a cell of your own calls
        :attr:`~bptt_array.Cell.activations`.

    Raises
    ------
    ValueError, TypeError
        Naming the argument, before any work.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> from bptt_array.diagnostics import saturation
    >>> rnn = ba.RNN(1, 2, init="orthogonal", dtype="float64")
    >>> rnn.params["l0.W_xh"][...] = [[0.1], [9.0]]  # the second unit is driven to +-1
    >>> saturation(rnn, np.ones((3, 1, 1)))["h"].ravel()
    array([0.5, 0.5, 0.5])
    """
    check_rnn(rnn)
    below = _check_below(below)
    with rnn.backend.active(), rnn._layout.in_errors():
        batch = rnn._batch(x, state, lengths, None, False, host=True)
        _check_activations(rnn)
        ran = trajectories(rnn._network(), batch)
        return _saturation(ran, below, bidirectional=rnn.bidirectional)


def _check_below(below: Any) -> float:
    number = check_number("below", below)
    if number > 1:
        raise ValueError(f"below={number:g}; expected at most 1: a part of the largest slope")
    return number


def _check_activations(rnn: RNN) -> None:
    cell = rnn.architecture.cell
    for name, (function, index) in cell.activations.items():
        if function not in _SLOPES or (index is not None and not 0 <= index < cell.keeps):
            raise ValueError(
                f"{cell!r} has activations[{name!r}]=({function!r}, {index}); expected one of "
                f"{', '.join(map(repr, _SLOPES))} and None, or an index below keeps={cell.keeps}"
            )


def _saturation(ran: list[Trajectory], below: float, *, bidirectional: bool) -> dict[str, HostArray]:
    names = ran[0].layer.cell.activations
    return {
        name: np.stack([_of_layer(one, function, index, below, bidirectional) for one in ran])
        for name, (function, index) in names.items()
    }


def _of_layer(ran: Trajectory, function: str, index: int | None, below: float, bidirectional: bool) -> HostArray:
    """``(D, T, [E])``"""
    backend, tape, N = ran.backend, ran.tape, ran.rows[-1]
    values = tape.h if index is None else tape.kept[:, index, ...]
    xp, known = backend.xp, ~backend.xp.isnan(values)
    flat = known & (_SLOPES[function](xp, values) < below)
    lengths = np.full(N, ran.steps) if ran.lengths is None else ran.lengths
    valid = np.arange(ran.steps)[:, None] < lengths  # (T, N)
    sums = []
    for units in (flat, known):
        counts = backend.to_host(xp.sum(xp.astype(units, xp.int64), axis=-1))  # (T, [E,] [2,] N)
        by_side = np.moveaxis(counts, -2, 0) if bidirectional else counts[None]
        if bidirectional:
            by_side = np.stack([by_side[0], in_time(by_side[1], ran.lengths, axis=0)])
        there = valid.reshape(1, ran.steps, *(1,) * (by_side.ndim - 3), N)
        sums.append(np.sum(by_side, axis=-1, where=there))
    return np.where(sums[1] > 0, sums[0] / np.maximum(sums[1], 1), np.nan)


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
    singular_values : (L, D, [E,] N, S), or None
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
    K = arrays["flow.at"].size if "flow.at" in arrays else 0
    expected: dict[str, tuple[tuple[int | None, ...], str]] = {
        "flow.loss": ((*members,), "() or (E,)"),
        "flow.lengths": ((N,), "(N,)"),
        "flow.total_c": (total.shape, "(L, D, T, [E,] N)"),
        "flow.at": ((K,), "(K,)"),
        "flow.per_loss": ((K, *total.shape), "(K, L, D, T, [E,] N)"),
        "flow.per_loss_c": ((K, *total.shape), "(K, L, D, T, [E,] N)"),
        "exponents": ((L, D, *members, N, None), "(L, D, [E,] N, count)"),
        "singular_values": ((L, D, *members, N, None), "(L, D, [E,] N, S)"),
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
    loss: str | UserLoss = "mse",
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
    The time is that of K training steps for the single losses (``at``), of a backward pass of ``count`` times as many
    sequences for the exponents, and of one of S times as many for the singular values. The latter are left out where
    they would take more than 1e9 multiply-adds a layer, T D E N S G H^2: ask :func:`singular_values` for fewer steps,
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
    below, count = _check_below(below), check_count("count", count)
    check_exponents(count, rnn.hidden_size * len(rnn.architecture.cell.states))
    _check_activations(rnn)
    flow = gradient_flow(rnn, x, target, loss, state=state, lengths=lengths, weights=weights, at=at)
    with rnn.backend.active():
        batch = rnn._batch(x, state, lengths, None, False, host=True)
        ran = trajectories(rnn._network(), batch)
        exponents = _by_layer([exponents_of(one, count) for one in ran], rnn.bidirectional, axis=-3)
        values = None
        if all(_multiply_adds(one) <= _MULTIPLY_ADDS for one in ran):
            of_layers = [of_product(one, 0, one.steps) for one in ran]
            values = _by_layer(of_layers, rnn.bidirectional, axis=-3)
        saturated = _saturation(ran, below, bidirectional=rnn.bidirectional)
    return Diagnosis(flow, saturated, exponents, values)


def _by_layer(of_layers: list[HostArray], bidirectional: bool, axis: int) -> HostArray:
    """``([E,] [2,] N, K)`` of every layer, as ``(L, D, [E,] N, K)``."""
    stacked = np.stack(of_layers)
    return np.moveaxis(stacked, axis, 1) if bidirectional else stacked[:, None]


def _multiply_adds(ran: Trajectory) -> int:
    """Of the products with ``W_hh`` that all S gradients take over all steps."""
    return int(ran.steps * np.prod(ran.rows) * ran.size * ran.layer.cell.gates * ran.layer.hidden_size**2)
