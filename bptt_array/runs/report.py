"""A run as one page: what it learnt, how its gradient flowed, what it wrote, what it was made of and ran on.

The page is one file that asks for nothing from anywhere: pictures are inside of it, there is no script, and a content
security policy says so to the browser.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plots import plot_loss
from ..serialization import write_atomically
from ..training.checkpoint import Checkpoint
from ..training.options import Options
from ..training.progress import Progress
from ..training.reading import STDIN
from .checkpoints import newest_checkpoint
from .folder import RunFolder, read_diagnoses, read_metrics
from .held import Held

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..diagnostics.diagnosis import Diagnosis

PAGE = "report.html"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
table { border-collapse: collapse; }
table + table { margin-top: 1rem; }
td, th { text-align: left; padding: 0.15rem 1.5rem 0.15rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: #f5f5f5; padding: 0.75rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0.25rem 0 1rem; }
p.note { color: #555; }
"""

#: What is done where an option is None.
_INSTEAD = {"members": "no ensemble", "eval_characters": "all", "diagnose_every": "never", "threads": "the fastest"}

#: What has no shape of its own, as the picture that Unicode has of it.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run folder.

    Parameters
    ----------
    folder : Path
        Of a run that is going on, was stopped, or is done.
    out : Path, optional
        The file; ``report.html`` in the folder if left out.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    ValueError
        If it is no run folder, or what is in it is damaged.
    """
    path = folder / PAGE if out is None else out
    if path.resolve().parent == folder.resolve() and path.suffix != ".html":
        raise ValueError(f"out={path} would be among the run's own files; expected a name that ends in .html")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no run folder; expected one that `train` wrote")
    with Held(folder) as held:
        data = page(folder).encode("utf-8", "backslashreplace")
        held.check()  # a page is of one run, and goes to no other
        write_atomically(path, data, flush=False)
    return path


def page(folder: Path) -> str:
    """The page as HTML."""
    metrics, diagnoses = read_metrics(folder), read_diagnoses(folder)
    notes: list[str] = []
    try:
        checkpoint: Checkpoint | None = newest_checkpoint(folder, notes.append)
    except ValueError as error:
        checkpoint = None
        notes.append(str(error))
    title = _title(folder.resolve().name, checkpoint)
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="note">{_text(_summary(metrics, checkpoint))}</p>',
        *(f'<p class="note">{_text(note)}</p>' for note in notes),
        *_section("Loss", _loss(metrics)),
        *_section("How the gradient flows through time", _flow(diagnoses)),
        *_section("What happened", _events(checkpoint)),
        *_section("Samples as training went", _samples(metrics)),
        *_section("Configuration", _configuration(checkpoint)),
        *_section("Environment", _environment(folder)),
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _text(value: Any) -> str:
    """As text of the page, whatever it is."""
    return html.escape(str(value).translate(_PICTURES))


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"<h2>{_text(title)}</h2>", *lines] if lines else []


def _picture(figure: Figure, what: str) -> str:
    import matplotlib as mpl

    svg = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": PAGE}):  # the same names, and so the same page, every time
        figure.savefig(svg, format="svg", metadata={"Date": None})
    data = base64.b64encode(svg.getvalue()).decode()
    return f'<img alt="{_text(what)}" src="data:image/svg+xml;base64,{data}">'


def _table(rows: Iterable[Iterable[Any]], head: Iterable[str] = ()) -> str:
    def cell(value: Any) -> str:
        value = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        number = isinstance(value, (int, float))
        shown = f"{value:,.4g}" if isinstance(value, float) else value
        return f"<td{' class=number' if number else ''}>{_text(shown)}</td>"

    top = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table>\n{f'<tr>{top}</tr>' if top else ''}\n{body}\n</table>"


def _title(name: str, checkpoint: Checkpoint | None) -> str:
    """What the run is called, and what learns which text there: names are often nothing but dates."""
    if checkpoint is None:
        return f"{name}: a training run"
    options = checkpoint.options
    layers, members = options.get("layers", 1), options.get("members")
    size = f"{options.get('hidden')} units" + (f" in each of {layers} layers" if layers != 1 else "")
    ensemble = f", {members} members" if members is not None else ""
    return f"{name}: {options.get('cell')}, {size}{ensemble}, learning {_source(checkpoint, os.path.basename)}"


def _source(checkpoint: Checkpoint, shown: Callable[[str], str]) -> str:
    """The text of a run."""
    names = ["standard input" if file == STDIN else shown(file) for file in checkpoint.source or []]
    return ", ".join(names) or "the language reference inside Python"


def _summary(metrics: list[Progress], checkpoint: Checkpoint | None) -> str:
    if not metrics:
        return "Nothing is learnt yet."
    last = metrics[-1]
    held_out = next((m for m in reversed(metrics) if m.validation is not None), None)
    of = f" of {checkpoint.options['steps']:,}" if checkpoint is not None and "steps" in checkpoint.options else ""
    parts = [f"{last.step:,}{of} updates, {last.characters:,} characters read; training loss {last.loss:.4f}"]
    if held_out is not None:
        parts.append(f"validation loss {held_out.validation:.4f} nats per character at update {held_out.step:,}")
    return ", ".join(parts) + "."


def _loss(metrics: list[Progress]) -> list[str]:
    return [_picture(plot_loss(metrics), "training and validation loss over the characters read")] if metrics else []


def _samples(metrics: list[Progress]) -> list[str]:
    written = [m for m in metrics if m.sample is not None]
    return [
        line
        for m in written
        for line in (
            f"<div>after {m.step:,} updates"
            + ("" if m.validation is None else f", validation loss {m.validation:.4f}")
            + ":</div>",
            f"<pre>{_text(m.sample)}</pre>",
        )
    ]


def _events(checkpoint: Checkpoint | None) -> list[str]:
    events = [] if checkpoint is None else checkpoint.events
    rows = [(event["step"], f"{event['why']}; {_consequence(event)}") for event in events]
    return [_table(rows, ("update", ""))] if rows else []


def _consequence(event: Mapping[str, Any]) -> str:
    if event["lr"] is None:
        return f"training stopped, and is kept as it was after update {event['back_to']:,}"
    return f"went back to update {event['back_to']:,} and on with a learning rate of {event['lr']:g}"


def _configuration(checkpoint: Checkpoint | None) -> list[str]:
    if checkpoint is None:
        return []
    origin = {"text": _source(checkpoint, str)}
    if checkpoint.init_from is not None:
        origin["weights to begin with"] = checkpoint.init_from["path"]
    # Names of files, which are long, apart from the values, which are short: columns stand close together.
    return [_table(origin.items()), _table((name.replace("_", " "), value) for name, value in _chosen(checkpoint))]


def _chosen(checkpoint: Checkpoint) -> Iterable[tuple[str, Any]]:
    """The options of a run, and of those that were left out what is done instead."""
    try:
        options = Options(**checkpoint.options)
    except (TypeError, ValueError):  # of another version
        return checkpoint.options.items()
    values = asdict(options) | {name: options.every(name) for name in ("eval_every", "checkpoint_every")}
    values["lr"] = checkpoint.lr  # less than what was given, if it was halved
    values["eval_characters"] = options.most_validated
    return [(name, _INSTEAD[name] if value is None else value) for name, value in values.items()]


def _environment(folder: Path) -> list[str]:
    started = RunFolder(folder).started()
    names = list(dict.fromkeys(name for entry in started for name in entry))
    return [_table([name, *(_of(entry, name) for entry in started)] for name in names)] if started else []


def _of(entry: Mapping[str, Any], name: str) -> Any:
    return entry.get(name, "")


def _flow(diagnoses: dict[int, Diagnosis]) -> list[str]:
    """Pictures of the first, a middle and the last diagnosis, and what became of rates and saturation."""
    if not diagnoses:
        return ['<p class="note">Not looked at: train with --diagnose-every STEPS.</p>']
    from matplotlib.figure import Figure

    from ..plots import plot_gradient_flow, plot_loss_gradients

    steps = list(diagnoses)
    few = {f"update {step:,}": diagnoses[step].flow for step in sorted({steps[0], steps[len(steps) // 2], steps[-1]})}
    curves = plot_gradient_flow(few)
    heat = plot_loss_gradients(diagnoses[steps[-1]].flow)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    rates, saturated = figure.subplots(1, 2)
    _over_updates(
        rates, steps, {"": [_mean(d.exponents[..., 0]) for d in diagnoses.values()]}, "growth rate (nats a step)"
    )
    rates.axhline(0, color="grey", linewidth=0.8)
    names = diagnoses[steps[-1]].saturation
    shares = {name: [_mean(d.saturation[name]) for d in diagnoses.values()] for name in names}
    _over_updates(saturated, steps, shares, "saturated units, of all")
    return [
        "<p>Norms of the gradient at every state, of a few sequences of the text that stay the same; the loss is the "
        "sum over all steps.</p>",
        _picture(curves, "norm of dL/dh_t against the time step"),
        f"<p>Of every single loss, after {steps[-1]:,} updates:</p>",
        _picture(heat, "norm of dL_k/dh_t for every loss k and time step t"),
        "<p>The largest Lyapunov exponent of the hidden dynamics (below zero gradients vanish, above they explode), "
        "and units whose slope is below 5 % of the largest:</p>",
        _picture(figure, "growth rate and saturation against updates"),
    ]


def _mean(values: np.ndarray[Any, Any]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _over_updates(axes: Any, steps: list[int], lines: Mapping[str, list[float]], label: str) -> None:
    for name, values in lines.items():
        axes.plot(steps, values, "o-", markersize=3, label=name or None)
    axes.set_xlabel("updates")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if any(lines):
        axes.legend()
