"""Pictures of what :mod:`bptt_array.diagnostics` finds, with matplotlib (``pip install matplotlib``).

Every function draws into ``axes``, or else into a figure of its own, and returns the figure; save it with
``figure.savefig("flow.png")``. No window is opened and no global state of matplotlib is touched. Colours are those of
Okabe & Ito, which the colour-blind can tell apart, and lines differ in their dashes too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .checks import check_count, check_number, said
from .diagnostics.arguments import check_layer, check_numbers
from .diagnostics.flow import GradientFlow
from .diagnostics.trajectory import HostArray
from .training.history import History
from .training.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")


def plot_loss(metrics: Sequence[Progress], axes: Axes | None = None) -> Figure:
    """Training and validation loss of a run over the characters that it read."""
    if isinstance(metrics, (str, bytes)) or not isinstance(metrics, Sequence):
        raise TypeError(f"metrics is a {type(metrics).__name__}; expected a list of Progress, such as trainer.metrics")
    figure, axes = _axes(axes)
    from matplotlib.ticker import MaxNLocator

    marker = "." if len(metrics) == 1 else ""  # a line of one point would not be seen
    axes.plot([m.characters for m in metrics], [m.loss for m in metrics], marker=marker, label="training", linewidth=1)
    held_out = [(m.characters, m.validation) for m in metrics if m.validation is not None]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", label="validation")
        axes.set_title(f"validation loss {held_out[-1][1]:.3f} nats per character")
    axes.set_xlabel("characters read")
    axes.set_ylabel("loss (nats per character)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))  # numbers that stand apart
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_history(history: History, axes: Axes | None = None) -> Figure:
    """Training and validation loss of :func:`bptt_array.fit` over its epochs; of an ensemble a line for each member.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> x = np.ones((5, 4, 3))
    >>> history = ba.fit(ba.RNN(3, 8, 1), (x, x[..., :1]), epochs=3, progress=False)
    >>> figure = ba.plots.plot_history(history)  # figure.savefig("loss.png")
    """
    if not isinstance(history, History):
        raise TypeError(f"history is a {type(history).__name__}; expected a History, which ba.fit returns")
    figure, axes = _axes(axes)
    from matplotlib.ticker import MaxNLocator

    for n, (name, losses) in enumerate({"training": history.loss, "validation": history.validation}.items()):
        if losses is not None and losses.size:
            of_members = losses.reshape(len(losses), -1)
            label = [name, *[None] * (of_members.shape[1] - 1)]
            axes.plot(of_members, DASHES[n], color=COLOURS[n], marker="." if len(losses) == 1 else "", label=label)
            axes.legend()
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    return figure


def plot_gradient_flow(flows: GradientFlow | Mapping[str, GradientFlow], axes: Axes | None = None) -> Figure:
    """``|dL/dh_t|`` against t, on a logarithmic axis: one line for every flow, layer and direction.

    Norms are averaged over the sequences that have the step, and over members, as far as they are finite; where all are
    zero there is no line.

    Examples
    --------
    >>> import numpy as np, bptt_array as ba
    >>> from bptt_array.diagnostics import gradient_flow
    >>> from bptt_array.plots import plot_gradient_flow
    >>> rnn = ba.RNN(2, 8, 1, num_layers=2)
    >>> flow = gradient_flow(rnn, np.ones((30, 4, 2), "float32"), np.zeros((30, 4, 1), "float32"), at=())
    >>> figure = plot_gradient_flow({"at first": flow})  # figure.savefig("flow.png")
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['at first, layer 0', 'at first, layer 1']
    """
    named = flows if isinstance(flows, Mapping) else {"": flows}
    for flow in named.values():
        _check_flow("flows", flow)
    figure, axes = _axes(axes)
    for n, (label, flow) in enumerate(named.items()):
        mean = mean_over_sequences(flow.total, flow.lengths)  # (L, D, T)
        for style, (k, d) in enumerate(np.ndindex(*mean.shape[:2])):
            colour, dashes = (n, n + style) if len(named) > 1 else (style, style)
            name = ", ".join(part for part in (label, *_which(mean, k, d)) if part)
            _line(axes, np.arange(mean.shape[2]), _positive(mean[k, d]), colour, dashes, name or None)
    axes.set_yscale("log")
    axes.set_xlabel("time step $t$")
    axes.set_ylabel(r"$|\partial L / \partial h_t|$")
    return _finished(figure, axes)


def plot_loss_gradients(
    flow: GradientFlow,
    axes: Axes | None = None,
    *,
    layer: int = -1,
    direction: int = 0,
    limits: tuple[float, float] | None = None,
    bar: bool = True,
) -> Figure:
    """``|dL_k/dh_t|`` over t and k as a heat map, on a logarithmic scale: how far back each loss is heard.

    Norms are averaged as for :func:`plot_gradient_flow`, over the sequences that have the step k. Grey is zero.

    Parameters
    ----------
    limits : (float, float), optional
        Ends of the scale, ``0 < low < high``; if left out those of the data, but no more than 12 decades. What lies
        beyond has the colour of the end, and the bar a point there.
    bar : bool
        Whether the scale is drawn beside the map.

    Raises
    ------
    ValueError, TypeError
        If ``flow`` holds no gradients of single losses, or not that layer and direction; if ``limits`` are none.
    """
    _check_flow("flow", flow)
    if flow.per_loss is None or flow.at is None or not len(flow.at):
        raise ValueError("flow has no gradients of single losses: expected one with per_loss, see gradient_flow's at")
    layer = check_layer(layer, flow.per_loss.shape[1])
    if direction not in range(flow.per_loss.shape[2]):
        raise ValueError(f"direction={direction!r}; expected one of {list(range(flow.per_loss.shape[2]))}")
    limits = None if limits is None else _check_limits(limits)
    figure, axes = _axes(axes)
    from matplotlib.colors import LogNorm

    values = np.stack(
        [
            mean_over_sequences(of_k[layer : layer + 1, direction : direction + 1], flow.lengths, step=k)[0, 0]
            for of_k, k in zip(flow.per_loss, flow.at, strict=True)
        ]
    )
    positive = values[np.isfinite(values) & (values > 0)]
    high = float(positive.max()) if positive.size else 1.0
    low = max(float(positive.min()), high * 1e-12) if positive.size else high / 10
    low, high = limits or (low if low < high else high / 10, high)
    shown = np.ma.masked_where(~(values > 0), values)  # what is smaller than the scale has its lowest colour
    mesh = axes.pcolormesh(
        np.arange(values.shape[1]), np.arange(len(flow.at)), shown, norm=LogNorm(low, high), cmap="viridis"
    )
    axes.set_facecolor("0.85")
    _number_rows(axes, flow.at)
    axes.set_xlabel("time step $t$")
    axes.set_ylabel("step $k$ of the loss")
    if bar:
        beyond = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
        ends = bool((positive < low).any()), bool((positive > high).any())
        figure.colorbar(mesh, ax=axes, label=r"$|\partial L_k / \partial h_t|$", extend=beyond[ends])
    return figure


def _number_rows(axes: Axes, at: HostArray) -> None:
    """Steps of losses, which need not be evenly spaced, along the rows of a heat map."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda row, _: str(at[int(row)]) if row == int(row) and 0 <= row < len(at) else "")
    )


def plot_singular_values(
    values: HostArray | Mapping[str, HostArray], axes: Axes | None = None, *, spans: Iterable[int] | None = None
) -> Figure:
    """Singular values of ``dh_k/dh_t``, on a logarithmic axis.

    Parameters
    ----------
    values : (..., Z), or a dictionary of such
        From :func:`bptt_array.diagnostics.singular_values`: drawn against their number, a geometric mean over all axes
        before, of those that are neither 0 nor infinite. With ``spans`` (P, ..., Z).
    spans : P ints, optional
        How many steps k - t lie between the states of each of P sets: then drawn against these, the largest, the
        median and the smallest one.
    """
    named = _arrays("values", values)
    steps = None
    if spans is not None:
        steps = [check_count(f"spans[{n}]", span, least=0) for n, span in enumerate(check_numbers("spans", spans))]
    figure, axes = _axes(axes)
    for n, (label, array) in enumerate(named.items()):
        if steps is None:
            numbers = np.arange(1, array.shape[-1] + 1)
            _line(axes, numbers, _positive(_geometric_mean(array, range(array.ndim - 1))), n, n, label or None)
            continue
        if len(array) != len(steps):
            raise ValueError(
                f"spans has {len(steps)} numbers, values {len(array)} along the first axis; expected as many"
            )
        mean = _geometric_mean(array, range(1, array.ndim - 1))  # (P, Z)
        axes.fill_between(steps, mean[:, -1], mean[:, 0], color=COLOURS[n % len(COLOURS)], alpha=0.15, linewidth=0)
        for dashes, (name, of_name) in enumerate(
            {"largest": mean[:, 0], "median": _median(mean), "smallest": mean[:, -1]}.items()
        ):
            _line(axes, np.array(steps), _positive(of_name), n, dashes, f"{label}, {name}" if label else name)
    axes.set_yscale("log")
    axes.set_xlabel("$i$" if steps is None else "steps between the states, $k - t$")
    axes.set_ylabel(r"singular values $\sigma_i$ of $\partial h_k / \partial h_t$")
    return _finished(figure, axes)


def plot_saturation(saturation: Mapping[str, HostArray], axes: Axes | None = None) -> Figure:
    """Saturated parts of the units against t, from :func:`bptt_array.diagnostics.saturation`.

    One colour for every gate or activation, one kind of line for every layer and direction; averaged over members.
    """
    if not isinstance(saturation, Mapping):
        raise TypeError(f"saturation is a {type(saturation).__name__}; expected a dictionary, from saturation()")
    saturation = _arrays("saturation", saturation, axes=3)
    figure, axes = _axes(axes)
    for n, (name, parts) in enumerate(saturation.items()):
        mean = _mean_of_finite(parts.reshape(*parts.shape[:3], -1), axes=(-1,))
        for dashes, (k, d) in enumerate(np.ndindex(*mean.shape[:2])):
            _line(axes, np.arange(mean.shape[2]), mean[k, d], n, dashes, ", ".join([name, *_which(mean, k, d)]))
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("time step $t$")
    axes.set_ylabel("saturated part of the units")
    return _finished(figure, axes)


def plot_lyapunov(exponents: HostArray | Mapping[str, HostArray], axes: Axes | None = None) -> Figure:
    """Lyapunov exponents against their number, from :func:`bptt_array.diagnostics.lyapunov_exponents`.

    ``(..., count)``, or a dictionary of such; a line for the mean over all axes before, a dot for every one of them.
    """
    named = _arrays("exponents", exponents)
    figure, axes = _axes(axes)
    axes.axhline(0, color="0.5", linewidth=1, linestyle=":", label="no growth")
    for n, (label, array) in enumerate(named.items()):
        rows = array.reshape(-1, array.shape[-1])
        rows = np.where(np.isfinite(rows), rows, np.nan)
        numbers, mean = np.arange(1, rows.shape[1] + 1), _mean_of_finite(rows, axes=(0,))
        colour = COLOURS[n % len(COLOURS)]
        axes.plot(np.tile(numbers, len(rows)), rows.ravel(), ".", color=colour, alpha=0.35, markersize=4)
        axes.plot(numbers, mean, DASHES[n % 4], color=colour, marker="o", markersize=3, label=label or "mean")
    axes.set_xlabel("$i$")
    axes.set_ylabel(r"Lyapunov exponent $\lambda_i$ (nats per step)")
    return _finished(figure, axes)


def mean_over_sequences(norms: HostArray, lengths: HostArray, step: int | None = None) -> HostArray:
    """``(L, D, T, [E,] N)`` as ``(L, D, T)``: the mean over members and the sequences that have the step of the state.

    With ``step`` over those that have that one. Of finite norms; NaN where there are none.
    """
    L, D, T = norms.shape[:3]
    N = len(lengths)
    there = np.arange(T)[:, None] < lengths if step is None else np.broadcast_to(step < lengths, (T, N))
    return _mean_of_finite(norms.reshape(L, D, T, -1, N), axes=(-2, -1), there=there[:, None, :])


def _mean_of_finite(values: HostArray, axes: Iterable[int], there: HostArray | bool = True) -> HostArray:
    """One sequence that is no number leaves the others to be seen; NaN where none is left."""
    there, axes = there & np.isfinite(values), tuple(axes)
    count = np.sum(there, axis=axes)
    return np.where(count > 0, np.sum(values, axis=axes, where=there) / np.maximum(count, 1), np.nan)


def _geometric_mean(values: HostArray, axes: Iterable[int]) -> HostArray:
    """Of those that are neither 0 nor infinite; where there are none, 0 if that was one of them."""
    axes = tuple(axes)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.exp(_mean_of_finite(np.log(values), axes))
    return np.where(np.isnan(mean) & np.any(values == 0, axis=axes), 0.0, mean)


def _median(rows: HostArray) -> HostArray:
    """Of every row ``(P, Z)``, of what is a number."""
    numbers = [row[~np.isnan(row)] for row in rows]
    return np.array([np.median(row) if row.size else np.nan for row in numbers])


def _positive(values: HostArray) -> HostArray:
    """What a logarithmic axis can show; the rest is a gap."""
    return np.where(values > 0, values, np.nan)


def _which(by_layer: HostArray, layer: int, direction: int) -> list[str]:
    """Which layer and direction a line is of, as far as there are several."""
    L, D = by_layer.shape[:2]
    return [f"layer {layer}"] * (L > 1) + [("forward", "reverse")[direction]] * (D > 1)


def _line(axes: Axes, x: HostArray, y: HostArray, colour: int, dashes: int, label: str | None) -> None:
    marker = "o" if len(x) == 1 else ""  # a line of one point would not be seen
    axes.plot(x, y, DASHES[dashes % 4], color=COLOURS[colour % len(COLOURS)], marker=marker, label=label, linewidth=1.6)


def _check_flow(name: str, flow: object) -> None:
    if not isinstance(flow, GradientFlow):
        raise TypeError(f"{name} is a {type(flow).__name__}; expected a GradientFlow, from gradient_flow")


def _arrays(name: str, given: Any, axes: int = 1) -> Mapping[str, HostArray]:
    """A dictionary of arrays, or one array as a dictionary."""
    named = given if isinstance(given, Mapping) else {"": given}
    for label, array in named.items():
        at = f"{name}[{label!r}]" if isinstance(given, Mapping) else name
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise TypeError(f"{at} is a {type(array).__name__}; expected a NumPy array of numbers")
        if array.ndim < axes:
            raise ValueError(f"{at} has shape {array.shape}; expected at least {axes} axes")
    return named


def _check_limits(limits: object) -> tuple[float, float]:
    if not isinstance(limits, (tuple, list, np.ndarray)) or len(limits) != 2:
        raise TypeError(f"limits={said(limits)}; expected two numbers, 0 < low < high")
    low, high = (check_number(f"limits[{n}]", limit) for n, limit in enumerate(limits))
    if not 0 < low < high:
        raise ValueError(f"limits=({low:g}, {high:g}); expected 0 < low < high: the ends of a logarithmic scale")
    return low, high


def _axes(axes: Axes | None) -> tuple[Figure, Axes]:
    if axes is not None:
        return cast("Figure", axes.figure), axes
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "plots need matplotlib: pip install matplotlib (it comes with the extra: pip install 'bptt-array[train]')"
        ) from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()


def _finished(figure: Figure, axes: Axes) -> Figure:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
    return figure
